//! Housekeeping: forgetting snapshots, pruning what nothing needs, checking everything, repairing what can be repaired; and
//! the end of a repository ([`raze`]).

mod check;
mod hurt;
mod prune;
mod raze;
mod repair;
mod rewrite;

pub use check::{CheckReport, Depth, Problem};
pub use prune::{DoomedPack, PruneReason, PruneReport, PruneRequest};
pub use raze::{Raze, Razed, Seen, raze};
pub use repair::{DamagedPack, Fate, HurtSnapshot, RepairReport, RepairRequest};

use crate::backend::FileKind;
use crate::error::Result;
use crate::id::SnapshotFileId;
use crate::lock::{LockGuard, LockMode};
use crate::repository::Repository;

/// Whether a clean-up does what it finds, or only tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Report what would be done and change nothing.
    DryRun,
    /// Do it.
    Execute,
}

impl Repository {
    /// Says which snapshots somebody counts on: a prune ends when a listing lacks one of them that is there. One that is not there
    /// is not missed.
    pub fn expect(&self, snapshots: impl IntoIterator<Item = SnapshotFileId>) {
        self.inner.expect_snapshots(snapshots.into_iter().map(|id| id.0));
    }

    /// Removes snapshot files; one that is gone already is fine. Only what is called so here goes, and never a copy by its
    /// original's name: the same call again would take one more. What they needed stays until [`prune`](Self::prune).
    ///
    /// Others may work on the repository meanwhile: whoever reads or builds on one of these snapshots keeps what it
    /// needs, because only a prune takes that away, and a prune waits for everybody.
    ///
    /// # Errors
    /// [`Error::Locked`](crate::Error::Locked) while somebody prunes; store errors.
    pub fn forget(&self, snapshots: &[SnapshotFileId]) -> Result<()> {
        let guard = LockGuard::acquire(&self.inner, LockMode::Shared)?;
        for id in snapshots {
            guard.ensure()?;
            self.inner.backend.remove(FileKind::Snapshot, id.0)?;
        }
        Ok(())
    }
}
