//! How far running operations are: kept in memory, shown by the API, gone with the process.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use perennial_core::id::OperationId;
use perennial_core::progress::{Progress, ProgressReading};

/// The step of every operation that is being worked on.
#[derive(Debug, Clone, Default)]
pub struct ProgressBoard(Arc<Mutex<HashMap<OperationId, Running>>>);

/// One operation's present step.
#[derive(Debug, Clone)]
struct Running {
    step: &'static str,
    began: Instant,
    progress: Progress,
}

/// How far a step is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shown {
    /// Its name.
    pub step: &'static str,
    /// Its counters.
    pub reading: ProgressReading,
    /// How long it has been worked on.
    pub elapsed: Duration,
}

impl ProgressBoard {
    /// The step and the counters of an operation; `None` when nothing works on it now.
    #[must_use]
    pub fn read(&self, operation: OperationId) -> Option<Shown> {
        let board = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let shown = |r: &Running| Shown { step: r.step, reading: r.progress.read(), elapsed: r.began.elapsed() };
        board.get(&operation).map(shown)
    }

    /// Asks the work on an operation to stop at its next safe point.
    pub fn cancel(&self, operation: OperationId) {
        let board = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = board.get(&operation) {
            running.progress.cancel();
        }
    }

    /// Begins a step of an operation; housekeeping without one gets counters nobody sees.
    pub(super) fn begin(&self, operation: Option<OperationId>, step: &'static str) -> Progress {
        let progress = Progress::default();
        if let Some(operation) = operation {
            let mut board = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            board.insert(operation, Running { step, began: Instant::now(), progress: progress.clone() });
        }
        progress
    }

    /// Forgets an operation that ended.
    pub(super) fn end(&self, operation: OperationId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&operation);
    }
}
