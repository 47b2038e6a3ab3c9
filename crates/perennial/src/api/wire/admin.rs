//! What administrators see and do.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::names::{AdminAction, CleanupStep, DeliveryState, Desired, OrphanKind, Phase, SetRecord, SubscriptionState};
use super::request::Backend;

/// A pod, as administrators see it in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AdminPod {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Whose it is.
    pub tenant: String,
    /// What was asked for.
    pub desired: Desired,
    /// What is seen.
    pub phase: Phase,
    /// The plan it is of, such as `n8n/plus`; null for a pod that somebody put together.
    pub plan: Option<String>,
    /// The subscription that it belongs to; null: none.
    pub subscription: Option<String>,
    /// How that stands.
    pub subscription_state: Option<SubscriptionState>,
    /// What its volumes may take together, in bytes; null: as much as there is.
    pub disk: Option<u64>,
    /// When it was asked for.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When it is destroyed; null unless deleted.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub purge_at: Option<Timestamp>,
}

/// Does something with somebody's pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AdminActionRequest {
    /// What.
    pub action: AdminAction,
    /// The pod's name, for `reset` and `delete`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirm: Option<String>,
}

/// The database against the engine. Nothing is done about what differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DebugReport {
    /// Every pod of the database, archived and deleted ones too.
    pub pods: Vec<DebugPod>,
    /// What carries this installation's labels on the engine and belongs to no pod.
    pub orphans: Vec<OrphanThing>,
    /// Why the database itself may be the wrong one; null when nothing says so.
    pub suspicion: Option<String>,
    /// The file systems that the server uses on its host, each once.
    pub file_systems: Vec<FileSystem>,
}

/// A file system that the server uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct FileSystem {
    /// What for: `data`, `pods`, `repositories`.
    pub uses: Vec<String>,
    /// A directory on it.
    pub path: String,
    /// Bytes of all of it; null when nobody can tell.
    pub total_bytes: Option<u64>,
    /// Bytes that can still be written; null when nobody can tell.
    pub free_bytes: Option<u64>,
    /// Why nobody can tell; null otherwise.
    pub problem: Option<String>,
}

/// A pod in both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DebugPod {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Whose it is.
    pub tenant: String,
    /// What was asked for.
    pub desired: Desired,
    /// What is seen.
    pub phase: Phase,
    /// The container that is recorded; null: none.
    pub container: Option<String>,
    /// Its containers on the engine.
    pub containers_found: Vec<String>,
    /// Its volume sets.
    pub sets: Vec<DebugSet>,
    /// What its volumes may take together, in bytes; null: as much as there is.
    pub disk: Option<u64>,
    /// Bytes of content in its volumes when they were captured last; null where no snapshot tells. What they take up now:
    /// `GET /pods/{id}/volumes`.
    pub used_bytes: Option<u64>,
    /// When that was.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub used_at: Option<Timestamp>,
    /// What does not fit; a pod that is being worked on may differ for a moment.
    pub differences: Vec<String>,
}

/// A volume set in both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DebugSet {
    /// Its number.
    pub number: u32,
    /// Where its volumes live.
    pub backend: Backend,
    /// What is recorded of it; null: nothing.
    pub recorded: Option<SetRecord>,
    /// Whether something of it is on the engine.
    pub found: bool,
}

/// Something on the engine that belongs to no pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OrphanThing {
    /// What it is.
    pub kind: OrphanKind,
    /// The id of the pod that it says it is of.
    pub pod: String,
    /// The container's id; null for a set.
    pub container: Option<String>,
    /// The set's number; null for a container.
    pub set: Option<u32>,
    /// Where the set's volumes live; null for a container.
    pub backend: Option<Backend>,
}

/// Asks for a clean-up of orphans.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CleanupRequest {
    /// The plan that is to be carried out, as an answer before named it; left out or null: nothing is done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan: Option<String>,
    /// Ids of the pods that are meant; left out or empty: all that are orphaned.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 1000)]
    pub pods: Vec<String>,
}

/// What a clean-up of orphans would do, or did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CleanupReport {
    /// Names exactly this plan: sent back as `plan`, it is carried out.
    pub plan: String,
    /// Why nothing can be done now; null: nothing stands against it.
    pub halted: Option<String>,
    /// Whether the plan was carried out.
    pub done: bool,
    /// Each orphaned pod.
    pub items: Vec<CleanupItem>,
}

/// A pod that is on the engine and in no database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CleanupItem {
    /// The id that its labels say.
    pub pod: String,
    /// What of it is on the engine.
    pub things: Vec<OrphanThing>,
    /// Since when it is known that nobody has it.
    #[schema(value_type = String, format = DateTime)]
    pub first_seen_at: Timestamp,
    /// Since when it is quarantined; null: it is not.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub quarantined_at: Option<Timestamp>,
    /// Until when it is kept all the same; null unless quarantined.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub kept_until: Option<Timestamp>,
    /// What is done about it.
    pub step: CleanupStep,
    /// Why.
    pub reason: String,
    /// Why it was not done; null when it was, or when nothing was to be done.
    pub problem: Option<String>,
}

/// A message to one receiver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Delivery {
    /// Its id, which the receiver sees too.
    pub id: String,
    /// The number of the event that it tells of.
    pub event: i64,
    /// The event's kind.
    #[serde(rename = "type")]
    pub kind: String,
    /// Whose.
    pub tenant: String,
    /// Which pod; null: none.
    pub pod: Option<String>,
    /// Where it goes: `mail:ADDRESS` or `webhook:NAME`.
    pub target: String,
    /// How far it is.
    pub state: DeliveryState,
    /// How often it was tried.
    pub tries: u32,
    /// Why the last try failed; null: it did not.
    pub problem: Option<String>,
    /// Since when it is on its way.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When it is tried next; null when it has ended.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub next_at: Option<Timestamp>,
    /// When it ended; null while it is on its way.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub ended_at: Option<Timestamp>,
}
