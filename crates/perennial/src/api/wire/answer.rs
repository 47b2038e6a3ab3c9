//! What answers look like. Fields that are null say that nobody knows, or that there is no such thing.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::health::{HealthCheck, PodHealth};
use super::hooks::{HookReport, Hooks};
use super::names::{
    CheckStatus, Desired, Grade, OperationKind, OperationState, Phase, SnapshotKind, SnapshotState, VolumeState,
};
use super::request::{Backend, OnStop, Port, PrivilegeEscalation, Resources, VolumeDeclaration};
use super::retention::SnapshotRules;

/// A pod.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Pod {
    /// Its id, for ever.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its owner.
    pub tenant: String,
    /// What was asked for.
    pub desired: Desired,
    /// What is seen.
    pub phase: Phase,
    /// Grows with every change of the specification.
    pub spec_generation: u64,
    /// Grows before every writable attach and every restore; 0: it never ran.
    pub data_generation: u64,
    /// When the system layer was captured last; null when the image's own is what counts.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub system_layer_captured_at: Option<Timestamp>,
    /// Image as asked for.
    pub image: String,
    /// The registry's digest, or the engine's image id for an image made locally; null until resolved.
    pub image_digest: Option<String>,
    /// Container runtime; null for the installation's default.
    pub runtime: Option<String>,
    /// Its container; null when there is none.
    pub container: Option<Container>,
    /// Its volumes.
    pub volumes: Vec<PodVolume>,
    /// What is worth knowing.
    pub conditions: Vec<Condition>,
    /// What its health check found out; null: it has none.
    #[serde(default)]
    pub health: Option<PodHealth>,
    /// The newest verified snapshot.
    pub latest_snapshot: Option<Snapshot>,
    /// When a drill proved last that the pod can be restored; in lists and answers to actions only when that was with
    /// its newest snapshot.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub proven_at: Option<Timestamp>,
    /// When the next scheduled one is due, in the past when it is overdue; null without a schedule and while the pod
    /// is stopped.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub next_snapshot_at: Option<Timestamp>,
    /// The specification.
    pub spec: PodSpec,
    /// When it was archived or deleted; null for a living pod.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub deleted_at: Option<Timestamp>,
    /// When it will be destroyed; null unless deleted.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub purge_at: Option<Timestamp>,
    /// How often its data was thrown away on request.
    #[serde(default)]
    pub reset_count: u32,
    /// When that was last; null: never.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub last_reset_at: Option<Timestamp>,
    /// The safety snapshot that was taken before; null when there was nothing to keep.
    #[serde(default)]
    pub last_reset_snapshot: Option<String>,
    /// When it was asked for.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When its record changed last.
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
}

/// Everything a person decides about a pod, as it stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodSpec {
    /// Replaces the image's command; null keeps it.
    pub command: Option<Vec<String>>,
    /// Replaces the image's entry point; null keeps it.
    pub entrypoint: Option<Vec<String>>,
    /// Limits.
    pub resources: Resources,
    /// Environment added to the image's.
    pub env: BTreeMap<String, String>,
    /// Names of variables that were made for this pod alone; `GET /pods/{id}/secrets` has their values.
    #[serde(default)]
    pub secrets: Vec<String>,
    /// The plan it was made of; null for a pod that somebody put together.
    #[serde(default)]
    pub plan: Option<PlanOfPod>,
    /// Working directory; null keeps the image's.
    pub working_dir: Option<String>,
    /// User; null keeps the image's.
    pub user: Option<String>,
    /// Declared volumes; null for the universal profile.
    pub volumes: Option<Vec<VolumeDeclaration>>,
    /// Ports published on the host's loopback.
    pub ports: Vec<Port>,
    /// Signal that asks the pod to stop; null for the image's, else SIGTERM.
    pub stop_signal: Option<String>,
    /// Seconds between that signal and SIGKILL.
    pub stop_timeout: u32,
    /// What `stop` does with the data on the host.
    pub on_stop: OnStop,
    /// Where the volumes live; null for the best there is.
    pub backend: Option<Backend>,
    /// Whether setuid programs work.
    pub privilege_escalation: PrivilegeEscalation,
    /// When snapshots are taken and which are kept; what is null is the installation's.
    #[serde(default)]
    pub snapshots: SnapshotRules,
    /// What the pod runs around the freeze of a snapshot.
    #[serde(default)]
    pub hooks: Hooks,
    /// How one finds out whether the pod works; null: nobody asks.
    #[serde(default)]
    pub health: Option<HealthCheck>,
}

/// Which plan a pod was made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlanOfPod {
    /// The service.
    pub service: String,
    /// The plan.
    pub plan: String,
    /// The definition of the service that the pod was made by.
    pub revision: String,
}

/// What was made for one pod alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodSecrets {
    /// Values of variables, by name.
    #[schema(value_type = BTreeMap<String, String>)]
    pub secrets: BTreeMap<String, Secret>,
}

/// A pod's container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Container {
    /// The engine's id.
    pub id: String,
}

/// A volume of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodVolume {
    /// Its name.
    pub name: String,
    /// Absolute path in the container.
    pub mount_path: String,
    /// Its name on the engine; null while there is none.
    pub engine_name: Option<String>,
    /// Whether its data is there.
    pub state: VolumeState,
}

/// A volume of a pod, and what it takes up on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct MeasuredVolume {
    /// The volume.
    #[serde(flatten)]
    pub volume: PodVolume,
    /// Bytes on the host: of an overlay volume what the pod changed, else all of it; null when it is not there or
    /// nobody can tell.
    pub used_bytes: Option<u64>,
}

/// A statement about a pod that people and programs can act on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What it is about, such as `DataLost`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Whether it holds: conditions that do not hold are left out, so this is true.
    pub status: bool,
    /// Machine-readable cause.
    pub reason: String,
    /// One sentence for people.
    pub message: String,
    /// Since when.
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
}

/// A durable piece of work on a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Operation {
    /// Its id.
    pub id: String,
    /// On which pod.
    pub pod_id: String,
    /// What it does.
    pub kind: OperationKind,
    /// How it stands.
    pub state: OperationState,
    /// How far it is.
    pub progress: Progress,
    /// The snapshot it takes, restores or deletes.
    pub snapshot_id: Option<String>,
    /// Why it ended without success, or the last failure while it is retried.
    pub error: Option<Problem>,
    /// Who asked.
    pub actor: String,
    /// When it was recorded.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When it ended; null before.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub finished_at: Option<Timestamp>,
}

/// How far an operation is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// The step being worked on; empty before the first.
    pub step: String,
    /// Bytes finished in this step.
    pub bytes_done: u64,
    /// Bytes of this step in all; 0 while nobody knows.
    pub bytes_total: u64,
    /// Files finished in this step.
    pub files_done: u64,
    /// Bytes a second since this step began; null in its first second, and when nothing works on it now.
    pub bytes_per_second: Option<u64>,
    /// Seconds that the rest of this step takes at that rate; null while nobody knows.
    pub seconds_left: Option<u64>,
}

/// A failure (RFC 9457, `application/problem+json`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// A URI that names the kind of failure.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind of failure in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// Stable machine-readable reason, such as `pod-name-taken`.
    pub code: String,
    /// What happened, for people.
    pub detail: String,
    /// The field of the request it is about; null when it is about none.
    pub field: Option<String>,
    /// How to go on; null when there is nothing to advise.
    pub hint: Option<String>,
    /// Everything that is wrong with a document that was sent; left out when there is nothing more to say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mistakes: Vec<Mistake>,
    /// The request it answers; null inside an operation.
    pub request_id: Option<String>,
}

/// One thing that is wrong with a document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Mistake {
    /// The line, from 1; null in JSON.
    pub line: Option<u32>,
    /// The column, from 1; null in JSON.
    pub column: Option<u32>,
    /// `syntax`, `unknown-key`, `missing`, `wrong-kind` or `invalid-value`.
    pub kind: String,
    /// The field as it is written there; null for the document itself.
    pub field: Option<String>,
    /// What is wrong.
    pub problem: String,
    /// What to write instead; null when the problem says it all.
    pub hint: Option<String>,
}

/// A point-in-time copy of a whole data set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    /// Its id.
    pub id: String,
    /// Whose data.
    pub pod_id: String,
    /// How far.
    pub state: SnapshotState,
    /// Why.
    pub kind: SnapshotKind,
    /// Data generation captured.
    pub generation: u64,
    /// When it was asked for.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// Bytes of content; null when unknown.
    pub bytes: Option<u64>,
    /// Bytes added to the repository; null when unknown.
    pub new_bytes: Option<u64>,
    /// Regular files; null when unknown.
    pub files: Option<u64>,
    /// The volumes it holds.
    pub volumes: Vec<SnapshotVolume>,
    /// What instant it shows, and what is missing from it.
    pub consistency: Consistency,
    /// Why it failed; null otherwise.
    pub error: Option<String>,
    /// When a drill proved it last; null: never, or the last one found damage.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub proven_at: Option<Timestamp>,
    /// What the last drill found wrong with it; null otherwise.
    pub damage: Option<String>,
    /// When it was proven to be in the replica, with its image; null: it is not there, as far as is known.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub replicated_at: Option<Timestamp>,
    /// Why it could not be copied to the replica; null otherwise.
    pub replica_problem: Option<String>,
}

/// One volume's share of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotVolume {
    /// Volume name.
    pub name: String,
    /// Mount path in the container.
    pub mount_path: String,
    /// Regular files; null when unknown.
    pub files: Option<u64>,
    /// Bytes of content; null when unknown.
    pub bytes: Option<u64>,
}

/// What instant a snapshot shows, and what is missing from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Consistency {
    /// How the instant was made; null until captured.
    pub grade: Option<Grade>,
    /// When that instant was; null until captured.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub captured_at: Option<Timestamp>,
    /// How long the pod stood still for it, in milliseconds; null when it did not.
    pub frozen_millis: Option<u64>,
    /// What the pod's hooks did; null when it had none, or did not stand still.
    #[serde(default)]
    pub hooks: Option<HookReport>,
    /// Losses its owner accepted.
    pub losses: Vec<Loss>,
}

/// Something that could not be captured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Loss {
    /// Path in the snapshot.
    pub path: String,
    /// What went wrong.
    pub reason: String,
}

/// One line of the audit trail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// Position in the trail, growing.
    pub id: i64,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// Who; `system` for housekeeping.
    pub actor: String,
    /// Whose.
    pub tenant: String,
    /// Which pod; null for the installation itself.
    pub pod_id: Option<String>,
    /// Which operation it belongs to.
    pub operation_id: Option<String>,
    /// What, such as `pod.stopped`.
    #[serde(rename = "type")]
    pub kind: String,
    /// One sentence for people.
    pub message: String,
}

/// The answer to every action on a pod.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodOperation {
    /// The pod as it stands now.
    pub pod: Pod,
    /// The work that was begun.
    pub operation: Operation,
}

/// The answer to taking or deleting a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotOperation {
    /// The snapshot as it stands now.
    pub snapshot: Snapshot,
    /// The work that was begun.
    pub operation: Operation,
}

/// One page of a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct List<T> {
    /// The page's items.
    pub items: Vec<T>,
    /// Pass it as `after` for the next page; null on the last.
    pub next: Option<String>,
}

/// How a pod stands, in detail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodStatus {
    /// What was asked for.
    pub desired: Desired,
    /// What is seen.
    pub phase: Phase,
    /// What is worth knowing.
    pub conditions: Vec<Condition>,
    /// The pod's container; null when there is none.
    pub container: Option<Container>,
    /// Work that has not ended, in the order it will be done.
    pub operations: Vec<Operation>,
    /// What its health check found out; null: it has none.
    pub health: Option<PodHealth>,
    /// Crashes in a row; 0 after it ran for a while.
    pub crashes: u32,
    /// Exit code of the last crash; null when unknown or none.
    pub exit_code: Option<i64>,
    /// Whether that crash was the kernel ending it for memory.
    pub out_of_memory: bool,
    /// The next try is not before this time; null when nothing waits.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub next_try_at: Option<Timestamp>,
    /// Failed tries of the present step.
    pub failed_tries: u32,
    /// Last time the data was seen whole on the host.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub data_seen_at: Option<Timestamp>,
    /// When the system layer was captured last.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub system_layer_captured_at: Option<Timestamp>,
}

/// The installation, and whether everything it needs works.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct System {
    /// Perennial's version.
    pub version: String,
    /// The installation's id: what its labels carry.
    pub installation: String,
    /// Where its state lives.
    pub data_dir: String,
    /// The server's clock.
    #[schema(value_type = String, format = DateTime)]
    pub time: Timestamp,
    /// The engine; null when it does not answer.
    pub engine: Option<EngineInfo>,
    /// Everything that was checked.
    pub checks: Vec<Check>,
    /// Whether somebody has a recovery kit; null when that cannot be told.
    pub recovery_kit: Option<RecoveryStatus>,
}

/// Whether somebody has a recovery kit with the key of every repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RecoveryStatus {
    /// When one was exported last; null: never.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub exported_at: Option<Timestamp>,
    /// Tenants whose key is in none.
    pub missing: Vec<String>,
}

/// Everything that is needed to read the repositories without this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RecoveryKit {
    /// The installation's id.
    pub installation: String,
    /// Perennial's version.
    pub version: String,
    /// The name of the server's host.
    pub host: String,
    /// Where the server's state lives on it.
    pub data_dir: String,
    /// When the kit was made.
    #[schema(value_type = String, format = DateTime)]
    pub made_at: Timestamp,
    /// The repositories of all tenants.
    pub repositories: Vec<RecoveryRepository>,
}

/// One repository and what opens it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RecoveryRepository {
    /// Whose.
    pub tenant: String,
    /// Where it is, as restic writes it; a path is one of the server's host.
    pub location: String,
    /// Its password.
    #[schema(value_type = String)]
    pub password: Secret,
    /// Whether it is the replica of the tenant's repository.
    #[serde(default)]
    pub replica: bool,
}

/// Something that no log shows.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// What an engine offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct EngineInfo {
    /// Name and version.
    pub version: String,
    /// The runtime taken when a pod names none.
    pub default_runtime: String,
    /// Runtimes that may be asked for.
    pub runtimes: Vec<Runtime>,
    /// Volume backends that work here, best first.
    pub backends: Vec<Backend>,
    /// Why something is not offered.
    pub notes: Vec<String>,
}

/// What a probe saw of one runtime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Runtime {
    /// Its name.
    pub name: String,
    /// Whether overlay volumes work on it.
    pub overlay_volumes: bool,
    /// Whether changes outside volumes can be captured.
    pub root_changes: bool,
    /// Whether it can freeze a running container.
    pub freeze: bool,
}

/// One check of the installation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Check {
    /// What was checked, such as `database`.
    pub name: String,
    /// How it went.
    pub status: CheckStatus,
    /// What was found.
    pub message: String,
    /// How to mend it; null when nothing is wrong.
    pub hint: Option<String>,
}
