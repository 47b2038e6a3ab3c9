//! What a container without processes is: a record, a state, and a directory for what it changes outside volumes.
//!
//! Each lies at `containers/<id>/`: `container.json` and `layer`. What its command would do is read from its text:
//! `-p PORT` listens, `trap '' TERM` ignores the request to stop, a last word `exit N` ends at once with that code, and `echo TEXT` says it when
//! the container starts.

use std::fs;
use std::io;
use std::path::Path;

use jiff::Timestamp;
use perennial_core::engine::{ContainerSpec, ContainerState, ObservedContainer};
use perennial_core::id::PodId;
use perennial_core::spec::{Backend, Resources};
use perennial_core::volume::SetNumber;
use serde::{Deserialize, Serialize};

use super::{State, text};

pub(super) const RECORD: &str = "container.json";
/// Exit code of a process that SIGTERM ended.
pub(super) const TERMINATED: i64 = 143;
/// Exit code of a process that SIGKILL ended.
pub(super) const KILLED: i64 = 137;

/// Where a volume is mounted.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Mount {
    pub volume: String,
    pub path: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum SetKind {
    Overlay,
    Engine,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Life {
    Created,
    Running,
    Frozen,
    Exited { code: i64, oom: bool },
}

/// What the command does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Behaviour {
    /// Runs until it is asked to stop.
    Obedient,
    /// Runs until it is killed.
    Stubborn,
    /// Ends at once.
    Ends(i64),
}

/// Whether the host can see what the container changes outside volumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Layer {
    Visible,
    Hidden,
}

/// What limits a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Limits {
    pub nano_cpus: Option<u64>,
    pub memory: Option<u64>,
    pub memory_swap: Option<u64>,
    pub memory_reservation: Option<u64>,
    pub pids: Option<u32>,
}

impl Limits {
    pub(super) const fn of(resources: &Resources) -> Self {
        let Resources { nano_cpus, memory, memory_swap, memory_reservation, pids, disk: _ } = *resources;
        Self { nano_cpus, memory, memory_swap, memory_reservation, pids }
    }

    pub(super) const fn resources(self) -> Resources {
        let Self { nano_cpus, memory, memory_swap, memory_reservation, pids } = self;
        Resources { nano_cpus, memory, memory_swap, memory_reservation, pids, disk: None }
    }

    /// Whether some limit of this one is none of the other's.
    pub(super) const fn takes_away(self, wanted: Self) -> bool {
        (self.nano_cpus.is_some() && wanted.nano_cpus.is_none())
            || (self.memory.is_some() && wanted.memory.is_none())
            || (self.memory_reservation.is_some() && wanted.memory_reservation.is_none())
    }
}

/// Who started the present or last run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Starter {
    Caller,
    Outsider,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Container {
    pub id: String,
    #[serde(with = "text")]
    pub pod: PodId,
    pub set: SetNumber,
    pub kind: SetKind,
    pub image: String,
    pub spec_generation: u64,
    pub fingerprint: String,
    pub mounts: Vec<Mount>,
    pub behaviour: Behaviour,
    #[serde(default)]
    pub says: Vec<String>,
    #[serde(default)]
    pub listens: Vec<u16>,
    #[serde(default)]
    pub limits: Limits,
    /// Memory that its processes hold.
    #[serde(default)]
    pub holds: u64,
    pub layer: Layer,
    pub life: Life,
    pub started_at: Option<Timestamp>,
    pub starter: Starter,
}

/// Somebody who is not ours and uses a pod's volumes.
#[derive(Debug, Clone)]
pub(super) struct Foreign {
    pub id: String,
    pub set: SetNumber,
    pub kind: ForeignKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ForeignKind {
    /// The engine lists it.
    Container,
    /// It outlived its container: the engine knows nothing of it.
    Process,
}

impl Container {
    pub(super) const fn backend(&self) -> Backend {
        match self.kind {
            SetKind::Overlay => Backend::Overlay,
            SetKind::Engine => Backend::Engine,
        }
    }

    pub(super) const fn is_live(&self) -> bool {
        matches!(self.life, Life::Running | Life::Frozen)
    }

    pub(super) fn observed(&self) -> ObservedContainer {
        ObservedContainer {
            id: self.id.clone(),
            state: match self.life {
                Life::Created => ContainerState::Created,
                Life::Running => ContainerState::Running,
                Life::Frozen => ContainerState::Frozen,
                Life::Exited { code, oom } => ContainerState::Exited { code: Some(code), oom },
            },
            started_at: self.started_at,
            set: self.set,
            spec_generation: self.spec_generation,
        }
    }
}

/// Finds the containers that an earlier process left.
pub(super) fn load(root: &Path, state: &mut State) -> io::Result<()> {
    for entry in fs::read_dir(root.join("containers"))? {
        let bytes = match fs::read(entry?.path().join(RECORD)) {
            Ok(bytes) => bytes,
            // Made halfway: nobody was told its id.
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        let container: Container = serde_json::from_slice(&bytes)?;
        state.by_pod.insert(container.pod, container.id.clone());
        state.containers.insert(container.id.clone(), container);
        state.made += 1;
    }
    Ok(())
}

fn words(spec: &ContainerSpec) -> impl Iterator<Item = &String> {
    spec.spec.entrypoint.iter().flatten().chain(spec.spec.command.iter().flatten())
}

/// What a shell would print of it.
pub(super) fn says(spec: &ContainerSpec) -> Vec<String> {
    let commands = words(spec).flat_map(|word| word.split(';'));
    let said = commands.filter_map(|command| command.trim().strip_prefix("echo "));
    said.map(|text| text.trim_end_matches(">&2").trim().to_owned()).collect()
}

/// The ports that a server of it would take connections at.
pub(super) fn listens(spec: &ContainerSpec) -> Vec<u16> {
    let text = words(spec).cloned().collect::<Vec<_>>().join(" ");
    let rests = text.split(" -p ").skip(1);
    let number = |rest: &str| rest.split(|c: char| !c.is_ascii_digit()).next().and_then(|port| port.parse().ok());
    rests.filter_map(number).collect()
}

pub(super) fn behaviour(spec: &ContainerSpec) -> Behaviour {
    let mut found = Behaviour::Obedient;
    for word in words(spec) {
        if word.contains("trap '' TERM") {
            found = Behaviour::Stubborn;
        }
        if let Some(code) = word.strip_prefix("exit ").and_then(|c| c.trim().parse().ok()) {
            found = Behaviour::Ends(code);
        }
    }
    found
}
