//! The catalogue: services, their plans, and the pod that a plan stands for.
//!
//! A plan says of a pod what its owner does not have to: image, volumes, limits, how it is stopped and when it is captured.
//! [`Plan::pod_spec`] makes the specification of a new pod of it. Pods that exist keep theirs: a plan that changes later is a
//! plan for later pods.
//!
//! Whoever wrote a service is told everything that is wrong with it at once ([`Service::mistakes`]). The rules for what ends up
//! in a pod are those of [`PodSpec`] and no others: every field is tried in a specification of its own, so that one mistake
//! hides no other. A generated secret is described here and has no value: who makes a pod makes its secrets (D40).

mod mistakes;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use crate::error::Error;
use crate::hook::Hooks;
use crate::schedule::SnapshotRules;
use crate::spec::{DeclaredVolume, OnStop, PodSpec, PortSpec, PrivilegeEscalation, Profile, Resources, check_label};

pub use crate::health::{HEALTH_INTERVAL, HEALTH_RETRIES, HEALTH_START_PERIOD, HEALTH_TIMEOUT, HealthCheck, Probe};
pub use mistakes::{Mistake, looks_secret};

/// Most plans of a service.
pub const PLANS_MAX: usize = 50;

/// A service's name, unique in the catalogue.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceName(String);

/// A plan's name, unique in its service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PlanName(String);

impl ServiceName {
    /// Checks and wraps a DNS label of at most 40 characters.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for `name`.
    pub fn parse(text: &str) -> Result<Self, Error> {
        check_label("name", text, 40)?;
        Ok(Self(text.to_owned()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl PlanName {
    /// Checks and wraps a DNS label of at most 40 characters.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for `name`.
    pub fn parse(text: &str) -> Result<Self, Error> {
        check_label("name", text, 40)?;
        Ok(Self(text.to_owned()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for ServiceName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::fmt::Display for PlanName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// An entry of the catalogue, such as n8n.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: ServiceName,
    /// What people call it.
    pub title: String,
    /// What whoever orders it has to know; may be empty.
    pub description: String,
    /// Its variants, at least one, in the order they are shown in.
    pub plans: Vec<Plan>,
}

/// A variant of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Its name.
    pub name: PlanName,
    /// What people call it.
    pub title: String,
    /// What sets it apart from the other plans; may be empty.
    pub description: String,
    /// Image reference; a pod pins what it resolved to.
    pub image: String,
    /// Replaces the image's command; `None` keeps it.
    pub command: Option<Vec<String>>,
    /// Replaces the image's entry point; `None` keeps it.
    pub entrypoint: Option<Vec<String>>,
    /// User; `None` keeps the image's.
    pub user: Option<String>,
    /// Working directory; `None` keeps the image's.
    pub working_dir: Option<String>,
    /// Container runtime; `None` takes the installation's default.
    pub runtime: Option<String>,
    /// What persists.
    pub profile: PlanProfile,
    /// Limits.
    pub resources: PlanResources,
    /// Environment added to the image's.
    pub env: BTreeMap<String, EnvValue>,
    /// Ports of the container that are published on the host's loopback; the engine chooses those of the host, because a
    /// plan has many pods.
    pub ports: Vec<u16>,
    /// How one finds out whether a pod works; `None`: nobody asks.
    pub health: Option<HealthCheck>,
    /// What `stop` means for its pods (D1).
    pub on_stop: OnStop,
    /// Signal that asks a pod to stop; `None` takes the image's, else SIGTERM.
    pub stop_signal: Option<String>,
    /// Seconds between that signal and SIGKILL; `None` takes a pod's default.
    pub stop_timeout: Option<u32>,
    /// Whether processes may gain privileges by setuid programs such as sudo (D39).
    pub privilege_escalation: PrivilegeEscalation,
    /// When snapshots are taken and which are kept; what is left out is the installation's.
    pub snapshots: SnapshotRules,
    /// What a pod runs around the freeze of a snapshot.
    pub hooks: Hooks,
}

/// A size in bytes, and how it was written: `250Mi` is shown as `250Mi`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Size {
    /// The bytes.
    pub bytes: u64,
    /// The text they were read from.
    pub written: String,
}

/// Limits of a plan's pods; `None` is no limit of that kind.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PlanResources {
    /// CPU time, in billionths of a CPU.
    pub nano_cpus: Option<u64>,
    /// Hard memory limit.
    pub memory: Option<Size>,
    /// Swap beyond `memory`.
    pub memory_swap: Option<Size>,
    /// Soft memory limit.
    pub memory_reservation: Option<Size>,
    /// Largest number of processes and threads.
    pub pids: Option<u32>,
    /// What a pod's volumes may take together (D13); `None`: the sum of the declared volumes where each has a size.
    pub disk: Option<Size>,
}

/// What of a plan's pods persists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlanProfile {
    /// Everything that is not virtual or temporary.
    Universal,
    /// These directories and nothing else.
    Declared(Vec<PlanVolume>),
}

/// One volume of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanVolume {
    /// Name, unique in the plan.
    pub name: String,
    /// Absolute path in the container.
    pub mount_path: String,
    /// Intended size; `None` is unbounded.
    pub size: Option<Size>,
    /// Storage class, for engines that have such; `None` takes the engine's default. Docker has none.
    pub storage_class: Option<String>,
    /// Who may mount it.
    pub access_mode: AccessMode,
}

/// Who may mount a volume. A mode with several writers does not exist: a pod's data has one (law 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AccessMode {
    /// One node.
    #[default]
    ReadWriteOnce,
    /// One container on one node.
    ReadWriteOncePod,
}

/// The value of an environment variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EnvValue {
    /// The same for every pod, and readable by everybody who may read the pod.
    Plain(String),
    /// Made anew for every pod.
    Generated(Secret),
}

/// How a secret is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Secret {
    /// Characters.
    pub length: u32,
    /// What they are chosen from.
    pub alphabet: Alphabet,
}

/// Characters that a secret is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Alphabet {
    /// A to Z, a to z, 0 to 9.
    #[default]
    Alphanumeric,
    /// 0 to 9, a to f.
    Hex,
    /// a to z, 0 to 9.
    Lowercase,
    /// A to Z, a to z, 0 to 9, `-` and `_`.
    UrlSafe,
}

impl Alphabet {
    /// The characters.
    #[must_use]
    pub const fn characters(self) -> &'static str {
        match self {
            Self::Alphanumeric => "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789",
            Self::Hex => "0123456789abcdef",
            Self::Lowercase => "abcdefghijklmnopqrstuvwxyz0123456789",
            Self::UrlSafe => "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_",
        }
    }
}

impl Service {
    /// The plan of this name.
    #[must_use]
    pub fn plan(&self, name: &str) -> Option<&Plan> {
        self.plans.iter().find(|plan| plan.name.as_str() == name)
    }
}

impl Plan {
    /// The specification of a new pod of this plan. Environment variables that are generated ([`Self::secrets`]) are not in it.
    #[must_use]
    pub fn pod_spec(&self) -> PodSpec {
        let plain = |(name, value): (&String, &EnvValue)| match value {
            EnvValue::Plain(text) => Some((name.clone(), text.clone())),
            EnvValue::Generated(_) => None,
        };
        let unplanned = PodSpec::new(self.image.as_str());
        PodSpec {
            command: self.command.clone(),
            entrypoint: self.entrypoint.clone(),
            runtime: self.runtime.clone(),
            resources: Resources { disk: self.disk(), ..self.resources.limits() },
            env: self.env.iter().filter_map(plain).collect(),
            working_dir: self.working_dir.clone(),
            user: self.user.clone(),
            profile: match &self.profile {
                PlanProfile::Universal => Profile::Universal,
                PlanProfile::Declared(volumes) => Profile::Declared(volumes.iter().map(PlanVolume::declared).collect()),
            },
            ports: self.ports.iter().map(|port| PortSpec { container: *port, host: None }).collect(),
            stop_signal: self.stop_signal.clone(),
            stop_timeout: self.stop_timeout.unwrap_or(unplanned.stop_timeout),
            on_stop: self.on_stop,
            privilege_escalation: self.privilege_escalation,
            snapshots: self.snapshots.clone(),
            hooks: self.hooks.clone(),
            health: self.health.clone(),
            ..unplanned
        }
    }

    /// The environment variables that are made anew for every pod.
    pub fn secrets(&self) -> impl Iterator<Item = (&str, Secret)> {
        self.env.iter().filter_map(|(name, value)| match value {
            EnvValue::Generated(secret) => Some((name.as_str(), *secret)),
            EnvValue::Plain(_) => None,
        })
    }

    /// The volumes it declares; none where everything persists.
    #[must_use]
    pub fn volumes(&self) -> &[PlanVolume] {
        match &self.profile {
            PlanProfile::Universal => &[],
            PlanProfile::Declared(volumes) => volumes,
        }
    }

    /// The quota of a pod, in bytes: one number (D13).
    #[must_use]
    pub fn disk(&self) -> Option<u64> {
        self.resources.disk.as_ref().map(|size| size.bytes).or_else(|| self.declared_bytes())
    }

    /// What the declared volumes take together; `None` where one is unbounded, or nothing is declared.
    fn declared_bytes(&self) -> Option<u64> {
        let sum = |sum: u64, volume: &PlanVolume| Some(sum.saturating_add(volume.size.as_ref()?.bytes));
        let bytes = self.volumes().iter().try_fold(0, sum)?;
        (!self.volumes().is_empty()).then_some(bytes)
    }
}

impl PlanVolume {
    fn declared(&self) -> DeclaredVolume {
        DeclaredVolume {
            name: self.name.clone(),
            mount_path: self.mount_path.clone(),
            size: self.size.as_ref().map(|size| size.bytes),
        }
    }
}

impl PlanResources {
    /// The limits as a pod has them.
    fn limits(&self) -> Resources {
        let bytes = |size: &Option<Size>| size.as_ref().map(|size| size.bytes);
        Resources {
            nano_cpus: self.nano_cpus,
            memory: bytes(&self.memory),
            memory_swap: bytes(&self.memory_swap),
            memory_reservation: bytes(&self.memory_reservation),
            pids: self.pids,
            disk: bytes(&self.disk),
        }
    }
}
