//! What tests ask afterwards: which rules were broken, and what was deleted on which ground.

use jiff::Timestamp;
use perennial_core::engine::EngineError;
use perennial_core::id::PodId;
use perennial_core::permit::DeletePermit;
use perennial_core::volume::SetNumber;

use super::{SimEngine, State};

/// Something that was deleted through the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deleted {
    /// A volume set.
    Set(SetNumber),
    /// A still of this set.
    Still(SetNumber),
    /// A container and its layer, by the engine's id.
    Container(String),
}

/// One deletion, with its proof.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deletion {
    /// When.
    pub at: Timestamp,
    /// Whose.
    pub pod: PodId,
    /// What.
    pub what: Deleted,
    /// Data generation of its last start; `None` when it never ran.
    pub generation: Option<u64>,
    /// The proof that was given.
    pub permit: DeletePermit,
}

impl State {
    /// Records a broken precondition and hands back the refusal.
    pub(super) fn violation(&mut self, refusal: EngineError) -> EngineError {
        self.violations.push(refusal.to_string());
        refusal
    }
}

impl SimEngine {
    /// Preconditions that a caller broke, in order; empty in a correct history.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        self.lock().violations.clone()
    }

    /// Everything deleted through the engine, in order; what hands removed from outside is not here.
    #[must_use]
    pub fn deletions(&self) -> Vec<Deletion> {
        self.lock().deletions.clone()
    }
}
