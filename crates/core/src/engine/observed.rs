//! What an engine shows.

use jiff::Timestamp;

use crate::id::PodId;
use crate::snapshot::WriterStamp;
use crate::spec::Backend;
use crate::volume::SetNumber;

/// How a container stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerState {
    /// Made, never started.
    Created,
    /// Running.
    Running,
    /// Running, frozen.
    Frozen,
    /// Ended.
    Exited {
        /// Exit code; `None` when the engine does not know.
        code: Option<i64>,
        /// Whether the kernel ended it for memory.
        oom: bool,
    },
}

/// A container as the engine shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedContainer {
    /// The engine's id.
    pub id: String,
    /// How it stands.
    pub state: ContainerState,
    /// When its present or last run began; `None` when it never ran.
    pub started_at: Option<Timestamp>,
    /// The set it is attached to, by label.
    pub set: SetNumber,
    /// The specification it was made from, by label.
    pub spec_generation: u64,
}

impl ObservedContainer {
    /// Whether it may be writing, or go on writing.
    #[must_use]
    pub const fn is_live(&self) -> bool {
        matches!(self.state, ContainerState::Running | ContainerState::Frozen)
    }

    /// Which run of which container this is.
    #[must_use]
    pub fn stamp(&self) -> WriterStamp {
        WriterStamp { container: self.id.clone(), started_at: self.started_at }
    }
}

/// Whether a set's data is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Presence {
    /// Proven to be absent: no volume and no marker.
    Absent,
    /// Some of it is missing.
    Partial {
        /// Names of what is missing.
        missing: Vec<String>,
    },
    /// Every volume is there, and so is the marker where the backend keeps one.
    Whole,
}

/// A set as the engine shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedSet {
    /// Which.
    pub number: SetNumber,
    /// Whether its data is there.
    pub presence: Presence,
    /// The data generation written beside the data at the last start; `None` when the backend keeps none.
    pub generation: Option<u64>,
    /// How its size is limited; `None` when its backend cannot be asked to.
    pub limit: Option<SetLimit>,
}

/// How the size of a set is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SetLimit {
    /// Bytes that all volumes of the set may take together; `None` is no limit.
    pub bytes: Option<u64>,
    /// Whether the file system refuses what is beyond it; otherwise the number is advice.
    pub enforced: bool,
}

/// Everything of one pod that an engine shows at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ObservedPod {
    /// The pod's container.
    pub container: Option<ObservedContainer>,
    /// Who else uses the pod's volumes: other containers that refer to them, by id, and processes that outlived theirs
    /// ([`Engine::lingering`](super::Engine::lingering), where it was asked).
    pub foreign: Vec<String>,
    /// The sets that were asked about.
    pub sets: Vec<ObservedSet>,
}

impl ObservedPod {
    /// The presence of this set; one that was not asked about counts as unknown, so it is `None`.
    #[must_use]
    pub fn set(&self, number: SetNumber) -> Option<&ObservedSet> {
        self.sets.iter().find(|s| s.number == number)
    }
}

/// Something on the engine that carries this installation's labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owned {
    /// A container.
    Container {
        /// Whose, by label.
        pod: PodId,
        /// The engine's id.
        id: String,
    },
    /// A volume set.
    Set {
        /// Whose, by label or marker.
        pod: PodId,
        /// Which.
        number: SetNumber,
        /// Where.
        backend: Backend,
    },
}
