//! What a person asks for: the pod's specification, and its validation.
//!
//! Validation is complete before anything is touched: every problem names the field and the remedy.

use std::collections::BTreeMap;

use crate::error::Error;
use crate::health::HealthCheck;
use crate::hook::Hooks;
use crate::planned::{PlanOf, SecretText};
use crate::schedule::SnapshotRules;
use crate::volume::SYSTEM_NAME;

/// Smallest memory limit Docker accepts, in bytes (6 MiB since API 1.41; older ones took 4 MiB).
pub const MEMORY_MIN: u64 = 6 << 20;
/// Largest memory a pod may ask for, in bytes: a typing mistake beyond this is refused by name.
pub const MEMORY_MAX: u64 = 1 << 44;
/// Below that a file system's own structures are most of it.
const DISK_MIN: u64 = 16 << 20;
const DISK_MAX: u64 = 1 << 50;
/// Longest stop grace, in seconds: one hour.
pub const STOP_TIMEOUT_MAX: u32 = 3600;

/// A tenant's immutable slug; also the directory name of its repository (D44).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantId(String);

/// A pod's name: unique among the living pods of its tenant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodName(String);

/// Checks a DNS label: 1 to `max` lower-case letters, digits and inner hyphens.
pub(crate) fn check_label(field: &str, text: &str, max: usize) -> Result<(), Error> {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let good = !text.is_empty()
        && text.len() <= max
        && text.chars().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-');
    if good {
        return Ok(());
    }
    Err(Error::invalid(
        field,
        format!("{} is not a valid name", shown(text)),
        format!("use 1 to {max} lower-case letters, digits and hyphens, beginning and ending with a letter or digit"),
    ))
}

/// Quotes a caller's text for an error, shortened so that a hostile input cannot flood a log.
pub(crate) fn shown(text: &str) -> String {
    let short: String = text.chars().take(60).collect();
    if short.len() < text.len() { format!("{short:?}…") } else { format!("{short:?}") }
}

impl TenantId {
    /// The tenant every installation starts with.
    #[must_use]
    pub fn default_tenant() -> Self {
        Self("default".to_owned())
    }

    /// Checks and wraps a slug of at most 40 characters.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for `tenant`.
    pub fn parse(text: &str) -> Result<Self, Error> {
        check_label("tenant", text, 40)?;
        Ok(Self(text.to_owned()))
    }

    /// The slug.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl PodName {
    /// Checks and wraps a name of at most 63 characters (a DNS label).
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for `name`.
    pub fn parse(text: &str) -> Result<Self, Error> {
        check_label("name", text, 63)?;
        Ok(Self(text.to_owned()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for TenantId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::fmt::Display for PodName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Everything a person decides about a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodSpec {
    /// Image reference as asked for; the pod pins what it resolved to.
    pub image: String,
    /// Replaces the image's command; `None` keeps it.
    pub command: Option<Vec<String>>,
    /// Replaces the image's entry point; `None` keeps it.
    pub entrypoint: Option<Vec<String>>,
    /// Container runtime; `None` takes the installation's default.
    pub runtime: Option<String>,
    /// Limits.
    pub resources: Resources,
    /// Environment added to the image's.
    pub env: BTreeMap<String, String>,
    /// More of it, made for this pod alone: shown to nobody who may only read.
    pub secrets: BTreeMap<String, SecretText>,
    /// The plan it was made of; `None` for a pod that somebody put together.
    pub plan: Option<PlanOf>,
    /// Working directory; `None` keeps the image's.
    pub working_dir: Option<String>,
    /// User; `None` keeps the image's.
    pub user: Option<String>,
    /// What persists.
    pub profile: Profile,
    /// Ports published on the host's loopback.
    pub ports: Vec<PortSpec>,
    /// Signal that asks the pod to stop; `None` takes the image's, else SIGTERM.
    pub stop_signal: Option<String>,
    /// Seconds between that signal and SIGKILL.
    pub stop_timeout: u32,
    /// What `stop` means for this pod (D1).
    pub on_stop: OnStop,
    /// Where the volumes live; `None` takes the best the engine and the runtime offer.
    pub backend: Option<Backend>,
    /// Whether processes may gain privileges by setuid programs such as sudo (D39).
    pub privilege_escalation: PrivilegeEscalation,
    /// When snapshots are taken and which are kept.
    pub snapshots: SnapshotRules,
    /// What the pod runs around the freeze of a snapshot.
    pub hooks: Hooks,
    /// How one finds out whether the pod works; `None`: nobody asks.
    pub health: Option<HealthCheck>,
}

/// Limits of a pod; `None` is no limit of that kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Resources {
    /// CPU time, in billionths of a CPU (Docker's `NanoCpus`).
    pub nano_cpus: Option<u64>,
    /// Hard memory limit in bytes.
    pub memory: Option<u64>,
    /// Swap beyond `memory`, in bytes.
    pub memory_swap: Option<u64>,
    /// Soft memory limit in bytes.
    pub memory_reservation: Option<u64>,
    /// Largest number of processes and threads.
    pub pids: Option<u32>,
    /// Bytes that the pod's volumes may take together (D13): of overlay volumes, what the pod changed.
    pub disk: Option<u64>,
}

impl Resources {
    /// Those that the container itself has: the disk limit is the volumes'.
    #[must_use]
    pub const fn of_container(self) -> Self {
        Self { disk: None, ..self }
    }
}

/// What of a pod persists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Profile {
    /// Everything that is not virtual or temporary: the eight standard volumes and the system layer.
    Universal,
    /// These directories and nothing else, so that a new image replaces the rest.
    Declared(Vec<DeclaredVolume>),
}

impl Profile {
    /// Whether data of the other one fits this: the same volumes at the same places, of whatever size.
    #[must_use]
    pub fn has_volumes_of(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Universal, Self::Universal) => true,
            (Self::Declared(own), Self::Declared(others)) => {
                let places = |volumes: &[DeclaredVolume]| -> Vec<(String, String)> {
                    volumes.iter().map(|volume| (volume.name.clone(), volume.mount_path.clone())).collect()
                };
                places(own) == places(others)
            }
            (Self::Universal, Self::Declared(_)) | (Self::Declared(_), Self::Universal) => false,
        }
    }
}

/// One volume of a declared profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeclaredVolume {
    /// Name, unique in the pod.
    pub name: String,
    /// Absolute path in the container.
    pub mount_path: String,
    /// Intended size in bytes; `None` is unbounded.
    pub size: Option<u64>,
}

/// A container port published on 127.0.0.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortSpec {
    /// Port in the container.
    pub container: u16,
    /// Port on the host; `None` lets the engine choose.
    pub host: Option<u16>,
}

/// What `stop` does with the data on the host (D1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnStop {
    /// Captures, verifies, then releases the host.
    #[default]
    Release,
    /// Keeps everything on the host, like `pause`.
    Pause,
}

/// Volume backend (snapshots.md).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Backend {
    /// Overlay volumes: the image's directory below, only the pod's changes above.
    Overlay,
    /// The engine's own volumes, seeded once from the image.
    Engine,
}

impl Backend {
    /// The name used in labels, the API and `pod.json`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Overlay => "overlay",
            Self::Engine => "docker",
        }
    }
}

/// Whether setuid programs work in the pod (D39).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PrivilegeEscalation {
    /// `no-new-privileges` is set.
    #[default]
    Denied,
    /// A personal VM with sudo.
    Allowed,
}

/// Checks a user of a container.
///
/// # Errors
/// [`Error::InvalidInput`] for `field`.
pub(crate) fn check_user(field: &str, user: &str) -> Result<(), Error> {
    let good = |c: char| c.is_ascii_alphanumeric() || "._-:".contains(c);
    if !user.is_empty() && user.len() <= 128 && user.chars().all(good) {
        return Ok(());
    }
    Err(Error::invalid(field, format!("{} is not a user", shown(user)), "use a name or a number, optionally :group"))
}

/// Paths no volume may be mounted at or below: virtual, temporary, or Docker's own.
const RESERVED_MOUNTS: [&str; 5] = ["/proc", "/sys", "/dev", "/tmp", "/run"];
const SIGNALS: [&str; 8] = ["SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGWINCH", "SIGKILL"];

impl PodSpec {
    /// A specification with the given image and every default.
    #[must_use]
    pub fn new(image: impl Into<String>) -> Self {
        Self {
            image: image.into(),
            command: None,
            entrypoint: None,
            runtime: None,
            resources: Resources::default(),
            env: BTreeMap::new(),
            secrets: BTreeMap::new(),
            plan: None,
            working_dir: None,
            user: None,
            profile: Profile::Universal,
            ports: Vec::new(),
            stop_signal: None,
            stop_timeout: 10,
            on_stop: OnStop::Release,
            backend: None,
            privilege_escalation: PrivilegeEscalation::Denied,
            snapshots: SnapshotRules::default(),
            hooks: Hooks::default(),
            health: None,
        }
    }

    /// What of it a container is made from for good: all that differs in nothing else can go on with the same container.
    #[must_use]
    pub fn of_container(&self) -> Self {
        Self {
            resources: Resources::default(),
            on_stop: OnStop::default(),
            plan: None,
            snapshots: SnapshotRules::default(),
            hooks: Hooks::default(),
            health: None,
            ..self.clone()
        }
    }

    /// Checks every field that can be checked without an engine.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] naming the first field that cannot be accepted.
    pub fn validate(&self) -> Result<(), Error> {
        self.validate_image()?;
        self.validate_process()?;
        self.resources.validate()?;
        self.validate_volumes()?;
        self.validate_ports()?;
        self.snapshots.validate()?;
        self.hooks.validate()?;
        self.health.as_ref().map_or(Ok(()), HealthCheck::validate)
    }

    fn validate_image(&self) -> Result<(), Error> {
        let hint = "write a reference such as debian:12 or name@sha256:…";
        if self.image.is_empty() {
            return Err(Error::invalid("image", "is missing", hint));
        }
        let good = |c: char| c.is_ascii_alphanumeric() || "._-/:@".contains(c);
        if self.image.len() > 255
            || !self.image.chars().all(good)
            || !self.image.starts_with(|c: char| c.is_ascii_alphanumeric())
        {
            return Err(Error::invalid("image", format!("{} is not an image reference", shown(&self.image)), hint));
        }
        // Images of system layers belong to one pod only (D39).
        if self.image.starts_with("perennial-internal/") {
            return Err(Error::invalid(
                "image",
                "images made by Perennial for one pod cannot be used for another",
                hint,
            ));
        }
        Ok(())
    }

    fn validate_process(&self) -> Result<(), Error> {
        for (field, words) in [("command", &self.command), ("entrypoint", &self.entrypoint)] {
            let Some(words) = words else { continue };
            if words.is_empty() || words.len() > 1000 || words.iter().any(|w| w.contains('\0') || w.len() > 128 << 10) {
                return Err(Error::invalid(
                    field,
                    "is empty, too long, or contains a NUL",
                    "leave it out to use the image's own",
                ));
            }
        }
        if let Some(runtime) = &self.runtime {
            check_label("runtime", runtime, 63)?;
        }
        for (name, value) in &self.env {
            let good = !name.is_empty() && name.len() <= 256 && !name.contains(['=', '\0']);
            if !good || value.contains('\0') || value.len() > 128 << 10 {
                return Err(Error::invalid(
                    format!("env.{}", shown(name)),
                    "is not a valid environment variable",
                    "use NAME=VALUE without NUL, value up to 128 KiB",
                ));
            }
            if self.secrets.contains_key(name) {
                let problem = "is made for this pod by its plan";
                return Err(Error::invalid(format!("env.{}", shown(name)), problem, "leave it out"));
            }
        }
        if let Some(dir) = &self.working_dir {
            check_path("workingDir", dir)?;
        }
        if let Some(user) = &self.user {
            check_user("user", user)?;
        }
        if let Some(signal) = &self.stop_signal
            && !SIGNALS.contains(&signal.as_str())
        {
            return Err(Error::invalid(
                "stopSignal",
                format!("{} is not offered", shown(signal)),
                format!("use one of {}", SIGNALS.join(", ")),
            ));
        }
        if self.stop_timeout > STOP_TIMEOUT_MAX {
            return Err(Error::invalid(
                "stopTimeout",
                format!("{} seconds is too long", self.stop_timeout),
                format!("use at most {STOP_TIMEOUT_MAX}"),
            ));
        }
        Ok(())
    }

    fn validate_volumes(&self) -> Result<(), Error> {
        let Profile::Declared(volumes) = &self.profile else { return Ok(()) };
        if volumes.len() > 64 {
            return Err(Error::invalid("volumes", format!("{} are too many", volumes.len()), "declare at most 64"));
        }
        for (i, volume) in volumes.iter().enumerate() {
            check_label(&format!("volumes[{i}].name"), &volume.name, 40)?;
            if volume.name == SYSTEM_NAME {
                return Err(Error::invalid(
                    format!("volumes[{i}].name"),
                    format!("{SYSTEM_NAME} is the name of what no volume holds"),
                    "choose another name",
                ));
            }
            let field = format!("volumes[{i}].mountPath");
            check_path(&field, &volume.mount_path)?;
            if let Some(reserved) = RESERVED_MOUNTS.iter().find(|r| is_at_or_below(&volume.mount_path, r)) {
                return Err(Error::invalid(
                    field,
                    format!("{reserved} is virtual or temporary"),
                    "choose another directory",
                ));
            }
            if volumes[..i].iter().any(|v| v.name == volume.name) {
                return Err(Error::invalid(
                    format!("volumes[{i}].name"),
                    format!("{} is used twice", shown(&volume.name)),
                    "name every volume differently",
                ));
            }
            if volumes[..i].iter().any(|v| v.mount_path == volume.mount_path) {
                return Err(Error::invalid(
                    field,
                    format!("{} is used twice", shown(&volume.mount_path)),
                    "mount every volume at its own path",
                ));
            }
            if volume.size.is_some_and(|s| !(1 << 20..=1 << 50).contains(&s)) {
                return Err(Error::invalid(
                    format!("volumes[{i}].size"),
                    "is out of range",
                    "use 1Mi to 1Pi, or leave it out",
                ));
            }
        }
        Ok(())
    }

    fn validate_ports(&self) -> Result<(), Error> {
        for (i, port) in self.ports.iter().enumerate() {
            let earlier = &self.ports[..i];
            if port.container == 0 || port.host == Some(0) {
                return Err(Error::invalid(format!("ports[{i}]"), "0 is not a port", "use 1 to 65535"));
            }
            if earlier.iter().any(|p| p.container == port.container || (p.host.is_some() && p.host == port.host)) {
                return Err(Error::invalid(format!("ports[{i}]"), "is used twice", "publish every port once"));
            }
        }
        Ok(())
    }
}

impl Resources {
    fn validate(&self) -> Result<(), Error> {
        if let Some(cpus) = self.nano_cpus
            && !(10_000_000..=1_024_000_000_000).contains(&cpus)
        {
            return Err(Error::invalid("resources.cpus", "is out of range", "use 0.01 to 1024"));
        }
        let sizes = [
            ("resources.memory", self.memory, MEMORY_MIN),
            ("resources.memorySwap", self.memory_swap, 0),
            ("resources.memoryReservation", self.memory_reservation, MEMORY_MIN),
        ];
        for (field, value, min) in sizes {
            if let Some(value) = value
                && !(min..=MEMORY_MAX).contains(&value)
            {
                return Err(Error::invalid(
                    field,
                    format!("{value} bytes is out of range"),
                    "use 6Mi to 16Ti, such as \"512Mi\"",
                ));
            }
        }
        if let (Some(soft), Some(hard)) = (self.memory_reservation, self.memory)
            && soft > hard
        {
            return Err(Error::invalid(
                "resources.memoryReservation",
                "is larger than resources.memory",
                "make it at most the hard limit",
            ));
        }
        if self.memory_swap.is_some() && self.memory.is_none() {
            return Err(Error::invalid("resources.memorySwap", "needs resources.memory", "set both or neither"));
        }
        if let Some(disk) = self.disk
            && !(DISK_MIN..=DISK_MAX).contains(&disk)
        {
            return Err(Error::invalid(
                "resources.disk",
                format!("{disk} bytes is out of range"),
                "use 16Mi to 1024Ti, such as \"20Gi\"",
            ));
        }
        if let Some(pids) = self.pids
            && !(2..=4_194_304).contains(&pids)
        {
            return Err(Error::invalid("resources.pids", format!("{pids} is out of range"), "use 2 to 4194304"));
        }
        Ok(())
    }
}

/// Whether `path` is `base` or lies below it; both absolute and normal.
#[must_use]
pub fn is_at_or_below(path: &str, base: &str) -> bool {
    path == base || path.strip_prefix(base).is_some_and(|rest| rest.starts_with('/'))
}

/// Checks an absolute path without `.`, `..`, empty parts, NUL or a trailing slash; `/` itself is refused.
fn check_path(field: &str, path: &str) -> Result<(), Error> {
    let hint = "use an absolute path without . or .., such as /data";
    let Some(rest) = path.strip_prefix('/') else {
        return Err(Error::invalid(field, format!("{} is not absolute", shown(path)), hint));
    };
    let bad = |part: &str| part.is_empty() || part == "." || part == ".." || part.len() > 255;
    // Docker's mount syntax gives ':' and ',' meanings; a newline would end a mountinfo line.
    if path.len() > 1024
        || path.chars().any(|c| c.is_control() || c == ':' || c == ',' || c == '\\')
        || rest.split('/').any(bad)
    {
        return Err(Error::invalid(field, format!("{} is not a plain path", shown(path)), hint));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field_of(spec: &PodSpec) -> String {
        match spec.validate() {
            Err(Error::InvalidInput { field, .. }) => field,
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn a_plain_spec_is_valid() {
        assert_eq!(PodSpec::new("debian:12").validate(), Ok(()));
    }

    #[test]
    fn names_are_dns_labels() {
        for bad in ["", "-a", "a-", "A", "a_b", "a.b", "../x", &"x".repeat(64)] {
            assert!(PodName::parse(bad).is_err(), "{bad}");
        }
        assert!(PodName::parse("dev-1").is_ok());
    }

    #[test]
    fn bad_fields_are_named() {
        let volume = |name: &str, path: &str| DeclaredVolume { name: name.into(), mount_path: path.into(), size: None };
        let with = |volumes: Vec<DeclaredVolume>| PodSpec { profile: Profile::Declared(volumes), ..PodSpec::new("a") };
        assert_eq!(field_of(&PodSpec::new("")), "image");
        assert_eq!(field_of(&PodSpec::new("perennial-internal/x")), "image");
        assert_eq!(field_of(&with(vec![volume("a", "/data/../etc")])), "volumes[0].mountPath");
        assert_eq!(field_of(&with(vec![volume("a", "/")])), "volumes[0].mountPath");
        assert_eq!(field_of(&with(vec![volume("a", "/proc/x")])), "volumes[0].mountPath");
        assert_eq!(field_of(&with(vec![volume("a", "/a"), volume("a", "/b")])), "volumes[1].name");
        assert_eq!(field_of(&with(vec![volume("system", "/a")])), "volumes[0].name");
        assert_eq!(field_of(&with(vec![volume("a", "/a"), volume("b", "/a")])), "volumes[1].mountPath");
        let memory = |bytes| PodSpec {
            resources: Resources { memory: Some(bytes), ..Resources::default() },
            ..PodSpec::new("a")
        };
        assert_eq!(field_of(&memory(1)), "resources.memory");
        assert_eq!(field_of(&memory(u64::MAX)), "resources.memory");
        let signal = PodSpec { stop_signal: Some("SIGFOO".into()), ..PodSpec::new("a") };
        assert_eq!(field_of(&signal), "stopSignal");
    }
}
