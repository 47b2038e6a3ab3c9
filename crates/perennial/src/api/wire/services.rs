//! The catalogue: services, their plans, and how they are described.
//!
//! A definition is the document that somebody wrote: its sizes are texts and stay as they were written. Everywhere else they are
//! bytes.

use std::borrow::Cow;
use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, OneOfBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use super::answer::Condition;
use super::names::OnHookFailure;
use super::request::{OnStop, PrivilegeEscalation};
use super::retention::SnapshotRules;
use super::size::Cpus;

/// The services that can be ordered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceList {
    /// By name.
    pub items: Vec<Service>,
    /// What is wrong with files that no service comes from, for administrators.
    pub conditions: Vec<Condition>,
}

/// An entry of the catalogue.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// Its name.
    pub name: String,
    /// What people call it.
    pub title: String,
    /// What whoever orders it has to know.
    pub description: String,
    /// Names this definition: another one has another. Also the `ETag`.
    pub revision: String,
    /// Where it comes from.
    pub source: ServiceSource,
    /// The file it comes from, for administrators; null for the others, and when there is none.
    pub file: Option<String>,
    /// Who changed it last; null when it is in no database.
    pub changed_by: Option<String>,
    /// When; null when it is in no database.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub changed_at: Option<Timestamp>,
    /// Its variants.
    pub plans: Vec<Plan>,
    /// What people and programs can act on, for administrators.
    pub conditions: Vec<Condition>,
    /// How it is described, for administrators; null in lists.
    pub definition: Option<ServiceDefinition>,
}

/// Where a service comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ServiceSource {
    /// It is shipped with this program.
    Shipped,
    /// A file of the catalogue's directory.
    File,
    /// The database: somebody changed it over the API. Wins over the others.
    Database,
}

/// A variant of a service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// Its name.
    pub name: String,
    /// What people call it.
    pub title: String,
    /// What sets it apart.
    pub description: String,
    /// The image.
    pub image: String,
    /// What persists.
    pub profile: ServiceProfile,
    /// The volumes it declares; none where everything persists.
    pub volumes: Vec<PlanVolume>,
    /// Processors; null: not limited.
    pub cpus: Option<Cpus>,
    /// Hard memory limit in bytes; null: not limited.
    pub memory: Option<u64>,
    /// Soft memory limit in bytes; null: not limited.
    pub memory_reservation: Option<u64>,
    /// What a pod's volumes may take together, in bytes; null: not limited.
    pub disk: Option<u64>,
}

/// What of a pod persists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ServiceProfile {
    /// Everything that is not virtual or temporary.
    #[default]
    Universal,
    /// The volumes and nothing else.
    Declared,
}

/// A volume of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlanVolume {
    /// Name, unique in the plan.
    pub name: String,
    /// Absolute path in the container.
    pub mount_path: String,
    /// Size as it was written, such as `250Mi`; null: unbounded.
    pub size: Option<String>,
    /// The same in bytes.
    pub size_bytes: Option<u64>,
    /// Storage class; null: the engine's default. Docker has none.
    pub storage_class: Option<String>,
    /// Who may mount it.
    pub access_mode: AccessMode,
}

/// Who may mount a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub enum AccessMode {
    /// One node.
    #[default]
    ReadWriteOnce,
    /// One container on one node.
    ReadWriteOncePod,
}

/// Makes a text that may also be sent as a number.
macro_rules! text_or_number {
    ($(#[doc = $doc:literal])* $name:ident, $pattern:literal) => {
        $(#[doc = $doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub String);

        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                let text = ObjectBuilder::new().schema_type(Type::String).pattern(Some($pattern));
                let number = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0));
                OneOfBuilder::new().item(text).item(number).description(Some(concat!($($doc, "\n"),*).trim())).into()
            }
        }

        impl ToSchema for $name {
            fn name() -> Cow<'static, str> {
                stringify!($name).into()
            }
        }
    };
}

text_or_number! {
    /// A size as it was written, such as "250Mi"; may be sent as bytes, too.
    SizeText, "^[0-9]{1,18}(\\.[0-9]{1,18})?(Ki|Mi|Gi|Ti|Pi|k|M|G|T|P)?$"
}

text_or_number! {
    /// A time such as "30s" or "5m"; may be sent as seconds, too.
    TimeText, "^[0-9]{1,9}(s|m|h)$"
}

/// A service as it is described: the same in a file of the catalogue, where keys are written `mount_path`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceDefinition {
    /// Name: a DNS label of at most 40 characters.
    #[schema(max_length = 40, pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
    pub name: String,
    /// What people call it; left out, its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// What whoever orders it has to know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Its variants, 1 to 50.
    pub plans: Vec<PlanDefinition>,
}

/// A plan as it is described.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PlanDefinition {
    /// Name, unique in the service: a DNS label of at most 40 characters.
    #[schema(max_length = 40, pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
    pub name: String,
    /// What people call it; left out, its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// What sets it apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Image reference.
    pub image: String,
    /// Replaces the image's command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// Replaces the image's entry point.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// User; left out, the image's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Working directory; left out, the image's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    /// Container runtime; left out, the installation's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
    /// What persists; `universal` when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<ServiceProfile>,
    /// Ports of the container that are published on the host's loopback.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<Vec<u16>>,
    /// What `stop` does with the data on the host; `release` when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_stop: Option<OnStop>,
    /// Signal that asks a pod to stop; left out, the image's, else SIGTERM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// Time between that signal and SIGKILL, such as "30s", or seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_timeout: Option<TimeText>,
    /// Whether setuid programs such as sudo work; `denied` when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub privilege_escalation: Option<PrivilegeEscalation>,
    /// Limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourcesDefinition>,
    /// The volumes of the profile `declared`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volumes: Option<Vec<VolumeDefinition>>,
    /// Environment added to the image's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<BTreeMap<String, EnvDefinition>>,
    /// How one finds out whether a pod works.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthDefinition>,
    /// When snapshots are taken and which are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshots: Option<SnapshotRules>,
    /// What a pod runs around the freeze of a snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hooks: Option<HooksDefinition>,
}

/// Limits as they are described; what is left out is not limited.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ResourcesDefinition {
    /// Processors, such as 1.5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<Cpus>,
    /// Hard memory limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<SizeText>,
    /// Swap beyond `memory`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_swap: Option<SizeText>,
    /// Soft memory limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_reservation: Option<SizeText>,
    /// Largest number of processes and threads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<u32>,
    /// What a pod's volumes may take together; left out, the sum of the declared volumes where each has a size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<SizeText>,
}

/// A volume as it is described.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VolumeDefinition {
    /// Name, unique in the plan.
    pub name: String,
    /// Absolute path in the container, not at, above or below that of another volume.
    pub mount_path: String,
    /// Intended size; left out, unbounded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<SizeText>,
    /// Storage class, for engines that have such.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_class: Option<String>,
    /// Who may mount it; `ReadWriteOnce` when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_mode: Option<AccessMode>,
}

/// The value of an environment variable: a text; how a secret is made; or a text that looks like a secret, by choice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum EnvDefinition {
    /// The same for every pod.
    Text(String),
    /// Made anew for every pod.
    Generated(GeneratedDefinition),
    /// The same for every pod, although it looks like a secret.
    Plain(PlainDefinition),
}

/// A secret that is made anew for every pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GeneratedDefinition {
    /// How.
    pub generate: SecretDefinition,
}

/// A value that looks like a secret and is none, or that everybody may read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PlainDefinition {
    /// The value.
    pub value: String,
    /// Has to be true for a value that looks like a secret.
    #[serde(default)]
    pub plain: bool,
}

/// How a secret is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecretDefinition {
    /// Characters, 16 to 256.
    #[schema(minimum = 16, maximum = 256)]
    pub length: u32,
    /// What they are chosen from; `alphanumeric` when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alphabet: Option<Alphabet>,
}

/// Characters that a secret is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Alphabet {
    /// A to Z, a to z, 0 to 9.
    Alphanumeric,
    /// 0 to 9, a to f.
    Hex,
    /// a to z, 0 to 9.
    Lowercase,
    /// A to Z, a to z, 0 to 9, `-` and `_`.
    UrlSafe,
}

/// How one finds out whether a pod works: exactly one of `http`, `tcp` and `exec`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HealthDefinition {
    /// Time between two questions; 30 seconds when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<TimeText>,
    /// Time an answer may take; 10 seconds when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<TimeText>,
    /// Questions in a row that have to fail; 3 when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<u32>,
    /// Time after a start in which a failure means nothing; a minute when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_period: Option<TimeText>,
    /// A page that answers with 200 to 399.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpProbe>,
    /// A port that takes a connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpProbe>,
    /// A program in the container that ends with 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exec: Option<ExecProbe>,
}

/// A page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HttpProbe {
    /// Port in the container.
    pub port: u16,
    /// Path with its query; `/` when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

/// A port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TcpProbe {
    /// Port in the container.
    pub port: u16,
}

/// A program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecProbe {
    /// The program and its arguments; no shell is involved.
    pub command: Vec<String>,
}

/// What a pod runs around the freeze of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HooksDefinition {
    /// Runs before the freeze.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<HookDefinition>,
    /// Runs once the pod goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<HookDefinition>,
    /// What becomes of a snapshot whose `before` failed; `fail` when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_failure: Option<OnHookFailure>,
}

/// A hook as it is described.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HookDefinition {
    /// The program and its arguments; no shell is involved.
    pub command: Vec<String>,
    /// Who runs it; left out, the user of the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Time it may take; 30 seconds when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<TimeText>,
}

/// What became of a service that was removed from the database.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceRemoved {
    /// Its name.
    pub name: String,
    /// The one of a file that is in force again; null when there is none.
    pub service: Option<Service>,
}
