//! How far running operations and copies into replicas are: kept in memory, shown by the API, gone with the process.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use perennial_core::id::OperationId;
use perennial_core::progress::{Progress, ProgressReading};
use perennial_core::replication::Wanted;
use perennial_core::spec::TenantId;

/// The step of every operation that is being worked on, and what each tenant's replica is being given.
#[derive(Debug, Clone, Default)]
pub struct ProgressBoard {
    operations: Arc<Mutex<HashMap<OperationId, Running>>>,
    copies: Arc<Mutex<HashMap<TenantId, RunningCopy>>>,
}

/// One operation's present step.
#[derive(Debug, Clone)]
struct Running {
    step: &'static str,
    began: Instant,
    progress: Progress,
}

/// What is copied now.
#[derive(Debug, Clone)]
struct RunningCopy {
    what: Wanted,
    began: Instant,
    progress: Progress,
}

/// How far a copy into a replica is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShownCopy {
    /// What is copied.
    pub what: Wanted,
    /// Its counters: bytes as they are stored.
    pub reading: ProgressReading,
    /// How long it has been worked on.
    pub elapsed: Duration,
}

/// A copy is shown until this is dropped.
pub(super) struct CopyOnBoard {
    board: ProgressBoard,
    tenant: TenantId,
}

impl Drop for CopyOnBoard {
    fn drop(&mut self) {
        self.board.copies.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.tenant);
    }
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
        let board = self.operations.lock().unwrap_or_else(PoisonError::into_inner);
        let shown = |r: &Running| Shown { step: r.step, reading: r.progress.read(), elapsed: r.began.elapsed() };
        board.get(&operation).map(shown)
    }

    /// Asks the work on an operation to stop at its next safe point.
    pub fn cancel(&self, operation: OperationId) {
        let board = self.operations.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = board.get(&operation) {
            running.progress.cancel();
        }
    }

    /// What is copied into a tenant's replica now; `None` when this process copies nothing into it.
    #[must_use]
    pub fn copying(&self, tenant: &TenantId) -> Option<ShownCopy> {
        let copies = self.copies.lock().unwrap_or_else(PoisonError::into_inner);
        let copy = copies.get(tenant)?;
        Some(ShownCopy { what: copy.what.clone(), reading: copy.progress.read(), elapsed: copy.began.elapsed() })
    }

    /// Shows a copy into a tenant's replica; there is one at a time.
    pub(super) fn begin_copy(&self, tenant: &TenantId, what: Wanted, progress: Progress) -> CopyOnBoard {
        let copy = RunningCopy { what, began: Instant::now(), progress };
        self.copies.lock().unwrap_or_else(PoisonError::into_inner).insert(tenant.clone(), copy);
        CopyOnBoard { board: self.clone(), tenant: tenant.clone() }
    }

    /// Begins a step of an operation; housekeeping without one gets counters nobody sees.
    pub(super) fn begin(&self, operation: Option<OperationId>, step: &'static str) -> Progress {
        let progress = Progress::default();
        if let Some(operation) = operation {
            let mut board = self.operations.lock().unwrap_or_else(PoisonError::into_inner);
            board.insert(operation, Running { step, began: Instant::now(), progress: progress.clone() });
        }
        progress
    }

    /// Forgets an operation that ended.
    pub(super) fn end(&self, operation: OperationId) {
        self.operations.lock().unwrap_or_else(PoisonError::into_inner).remove(&operation);
    }
}

#[cfg(test)]
mod tests {
    use perennial_core::replication::Part;

    use super::*;

    #[test]
    fn a_copy_is_shown_while_it_lasts_and_with_its_own_tenant() {
        let board = ProgressBoard::default();
        let tenant = TenantId::default_tenant();
        let of = |name: &str| Wanted { part: Part::Snapshot, name: name.to_owned(), original: "o".to_owned() };
        assert_eq!(board.copying(&tenant), None);
        let progress = Progress::default();
        let first = board.begin_copy(&tenant, of("1"), progress.clone());
        progress.expect_more(10);
        progress.add_bytes(4);
        let shown = board.copying(&tenant).expect("it is shown");
        assert_eq!((shown.what, shown.reading.bytes_done, shown.reading.bytes_total), (of("1"), 4, 10));
        assert_eq!(board.copying(&TenantId::parse("acme").expect("a tenant")), None);
        drop(first);
        assert_eq!(board.copying(&tenant), None);
    }
}
