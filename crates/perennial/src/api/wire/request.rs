//! What a request may say.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use super::health::HealthCheck;
use super::hooks::Hooks;
use super::retention::SnapshotRules;
use super::size::{Cpus, Size};

/// Asks for a new pod, to be run.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CreatePod {
    /// Name, unique among the living pods of the tenant: a DNS label of at most 63 characters.
    #[schema(max_length = 63, pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
    pub name: String,
    /// Makes a pod of this plan, such as `n8n/plus`: variables may be added, and everything else comes with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<String>,
    /// Image reference. May be left out with `plan`, and with `fromSnapshot` while the snapshot's pod is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Replaces the image's command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// Replaces the image's entry point.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// Container runtime; left out, the installation's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
    /// Limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Environment added to the image's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<BTreeMap<String, String>>,
    /// Working directory; left out, the image's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    /// User; left out, the image's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// What persists: null for everything (the universal profile), a list for exactly these directories.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volumes: Option<Vec<VolumeDeclaration>>,
    /// Ports published on the host's loopback.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<Vec<Port>>,
    /// Signal that asks the pod to stop; left out, the image's, else SIGTERM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// Seconds between that signal and SIGKILL; 10 when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_timeout: Option<u32>,
    /// What `stop` does with the data on the host; `release` when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_stop: Option<OnStop>,
    /// Where the volumes live; left out, the best the engine and the runtime offer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<Backend>,
    /// Whether setuid programs such as sudo work; `denied` when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub privilege_escalation: Option<PrivilegeEscalation>,
    /// When snapshots are taken and which are kept; what is left out is the installation's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshots: Option<SnapshotRules>,
    /// What the pod runs around the freeze of a snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hooks: Option<Hooks>,
    /// How one finds out whether the pod works; nobody asks when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthCheck>,
    /// Whose it is; needed only when the caller has several tenants.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Makes the pod from this snapshot instead of from the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_snapshot: Option<String>,
}

/// Changes a pod's specification; a restart applies it. A field left out stays, null goes back to the default.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PatchPod {
    /// Replaces the image's command.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<String>>)]
    pub command: Option<Option<Vec<String>>>,
    /// Replaces the image's entry point.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<String>>)]
    pub entrypoint: Option<Option<Vec<String>>>,
    /// Container runtime.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub runtime: Option<Option<String>>,
    /// Limits; those left out of it become unlimited.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Resources>)]
    pub resources: Option<Option<Resources>>,
    /// The whole environment added to the image's.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<BTreeMap<String, String>>)]
    pub env: Option<Option<BTreeMap<String, String>>>,
    /// Working directory.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub working_dir: Option<Option<String>>,
    /// User.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub user: Option<Option<String>>,
    /// All ports published on the host's loopback.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Port>>)]
    pub ports: Option<Option<Vec<Port>>>,
    /// Signal that asks the pod to stop.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub stop_signal: Option<Option<String>>,
    /// Seconds between that signal and SIGKILL.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u32>)]
    pub stop_timeout: Option<Option<u32>>,
    /// What `stop` does with the data on the host.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<OnStop>)]
    pub on_stop: Option<Option<OnStop>>,
    /// Whether setuid programs such as sudo work.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<PrivilegeEscalation>)]
    pub privilege_escalation: Option<Option<PrivilegeEscalation>>,
    /// When snapshots are taken and which are kept, as a whole; needs no restart.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<SnapshotRules>)]
    pub snapshots: Option<Option<SnapshotRules>>,
    /// What the pod runs around the freeze of a snapshot, as a whole; needs no restart.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Hooks>)]
    pub hooks: Option<Option<Hooks>>,
    /// How one finds out whether the pod works, as a whole; needs no restart.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<HealthCheck>)]
    pub health: Option<Option<HealthCheck>>,
}

/// The same for an object: derived code would take a list for one as well.
pub(super) fn given_object<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Option<T>>, D::Error> {
    struct Object<T>(std::marker::PhantomData<T>);

    impl<'de, T: Deserialize<'de>> serde::de::Visitor<'de> for Object<T> {
        type Value = Option<T>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object, or null")
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
            T::deserialize(serde::de::value::MapAccessDeserializer::new(map)).map(Some)
        }
    }

    deserializer.deserialize_any(Object(std::marker::PhantomData)).map(Some)
}

/// Keeps "null" apart from "left out".
pub(super) fn given<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// Limits of a pod; what is left out or null is not limited. A change counts at once where the engine can make it; where it cannot, the
/// condition `RestartRequired` says why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Resources {
    /// Processors, such as 1.5.
    #[serde(default)]
    pub cpus: Option<Cpus>,
    /// Hard memory limit.
    #[serde(default)]
    pub memory: Option<Size>,
    /// Swap beyond `memory`.
    #[serde(default)]
    pub memory_swap: Option<Size>,
    /// Soft memory limit.
    #[serde(default)]
    pub memory_reservation: Option<Size>,
    /// Largest number of processes and threads.
    #[serde(default)]
    pub pids: Option<u32>,
    /// What the pod's volumes may take together. Where nothing can enforce it, the condition
    /// `DiskLimitAdvisory` says so.
    #[serde(default)]
    pub disk: Option<Size>,
}

/// One persistent directory of a pod that declares its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VolumeDeclaration {
    /// Name, unique in the pod.
    pub name: String,
    /// Absolute path in the container.
    pub mount_path: String,
    /// Intended size; null is unbounded.
    #[serde(default)]
    pub size: Option<Size>,
}

/// A container port published on 127.0.0.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Port {
    /// Port in the container.
    pub container: u16,
    /// Port on the host; null lets the engine choose.
    #[serde(default)]
    pub host: Option<u16>,
}

/// What `stop` does with the data on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnStop {
    /// Captures, verifies, then releases the host.
    Release,
    /// Keeps everything on the host, like `pause`.
    Pause,
}

/// Where volumes live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// The image's directory below, only the pod's changes above.
    Overlay,
    /// The engine's own volumes.
    Docker,
}

/// Whether setuid programs work in the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PrivilegeEscalation {
    /// `no-new-privileges` is set.
    Denied,
    /// A personal VM with sudo.
    Allowed,
}

/// Losses the owner accepts, for stop, archive, delete and snapshot of a damaged pod. The body may be left out.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AcceptRequest {
    /// Exactly the paths that may be missing from the snapshot, such as `/volumes/home/broken`; needs `confirm`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accept_loss: Option<Vec<String>>,
    /// The pod's name; needed only with `acceptLoss`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirm: Option<String>,
}

/// Deletes a snapshot. The body may be left out.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SnapshotDeleteRequest {
    /// The pod's name; needed only for the last verified snapshot of a pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirm: Option<String>,
}

/// Confirms a reset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConfirmRequest {
    /// The pod's name.
    pub confirm: String,
    /// Exactly the paths that may be missing from the safety snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accept_loss: Option<Vec<String>>,
}

/// What a restore does with files that the snapshot lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Extra {
    /// They are removed: a directory becomes what it was.
    Remove,
    /// They are kept.
    Keep,
}

/// Replaces the pod's data, or parts of it, by a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RestoreRequest {
    /// Which snapshot.
    pub snapshot_id: String,
    /// Only these volumes, by name; `system` is what no volume holds. Everything else stays as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volumes: Option<Vec<String>>,
    /// Only these files and directories, absolute and as the pod sees them. Everything else stays as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paths: Option<Vec<String>>,
    /// What happens to files in the named parts that the snapshot lacks; `remove` when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extra: Option<Extra>,
    /// Say what would change, and do nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
    /// The pod's name; needed unless it is a dry run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirm: Option<String>,
    /// Exactly the paths that may be missing from the safety snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accept_loss: Option<Vec<String>>,
}

/// Makes a pod that is a copy of another.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CloneRequest {
    /// Name of the new pod, unique among the living pods of the tenant.
    #[schema(max_length = 63, pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
    pub name: String,
    /// The snapshot of the pod that is copied; left out, the pod as it is now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_id: Option<String>,
    /// Keep machine-id and ssh host keys of the pod instead of making new ones.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep_identity: bool,
}

/// Nothing more to say. The body may be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Nothing {}

/// Confirms a purge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PurgeRequest {
    /// The pod's name.
    pub confirm: String,
}
