//! Forgetting: snapshots whose deletion was asked for, leftovers of interrupted work, and everything of a purged pod.

use perennial_core::id::SnapshotId;
use perennial_core::operation::Problem;
use perennial_core::progress::Progress;
use perennial_core::snapshot::Snapshot;
use perennial_snapshots::{Mode, SnapshotFileId};

use super::capture::snapshot_tag;
use super::images::blocking;
use super::step::{StepError, problem};
use super::worker::{Reconciler, View};
use crate::store::{Page, SnapshotScope};

/// Snapshots fetched at a time.
const PAGE: u32 = 500;

impl Reconciler {
    /// Forgets what only this lease's holder could have needed.
    ///
    /// The lease is looked at after the list was made: what another server uploaded since it took over is not in it.
    pub(super) async fn forget_stale(&self, view: &View, stale: Vec<SnapshotFileId>) -> Result<(), StepError> {
        let Some(lease) = view.lease.as_ref().filter(|_| !stale.is_empty()) else { return Ok(()) };
        if !self.store.lease_holds(lease).await? {
            return Err(StepError::Overtaken);
        }
        let (repositories, tenant) = (self.repositories.clone(), view.pod.tenant.clone());
        blocking(move || Ok(repositories.open(&tenant)?.forget(&stale)?)).await
    }

    /// Ids of all snapshot rows of the pod.
    pub(super) async fn all_snapshots(&self, view: &View) -> Result<Vec<SnapshotId>, StepError> {
        let scope = SnapshotScope::Pod(view.pod.id);
        let mut ids: Vec<SnapshotId> = Vec::new();
        loop {
            let after = ids.last().map(ToString::to_string);
            let page = self.store.snapshot_list(&scope, &Page { after, limit: PAGE }).await?;
            if page.is_empty() {
                return Ok(ids);
            }
            ids.extend(page.iter().map(|s| s.id));
        }
    }

    /// Forgets one snapshot in its repository and prunes what nobody else needs.
    ///
    /// # Errors
    /// A problem to be shown; the same call again finishes what was begun.
    pub async fn forget_snapshot(&self, row: &Snapshot) -> Result<(), Problem> {
        let (repositories, tenant) = (self.repositories.clone(), row.tenant.clone());
        let tag = snapshot_tag(row.id);
        let forgotten = blocking(move || {
            let repository = repositories.open(&tenant)?;
            let ids: Vec<SnapshotFileId> = repository.find(&[&tag])?.into_iter().map(|s| s.id).collect();
            if !ids.is_empty() {
                repository.forget(&ids)?;
            }
            match repository.prune(Mode::Execute, &Progress::default()) {
                // Somebody works on the repository: the next prune gets the space.
                Err(perennial_snapshots::Error::Locked { .. }) => Ok(()),
                other => Ok(other.map(drop)?),
            }
        });
        match forgotten.await {
            Ok(()) => Ok(()),
            Err(StepError::Retry(found) | StepError::Definite(found)) => Err(found),
            Err(StepError::Overtaken | StepError::Cancelled) => {
                Err(problem("internal", "the deletion was interrupted", ""))
            }
        }
    }

    /// Forgets everything of the pod in its repository and prunes what nobody else needs.
    pub(super) async fn forget_everything(&self, view: &View, progress: &Progress) -> Result<(), StepError> {
        let (repositories, tenant) = (self.repositories.clone(), view.pod.tenant.clone());
        let (tag, progress) = (format!("pod:{}", view.pod.id), progress.clone());
        blocking(move || {
            let repository = repositories.open(&tenant)?;
            let ids: Vec<SnapshotFileId> = repository.find(&[&tag])?.into_iter().map(|s| s.id).collect();
            if !ids.is_empty() {
                repository.forget(&ids)?;
            }
            // Also when an earlier try forgot them: only now the bytes go.
            repository.prune(Mode::Execute, &progress)?;
            Ok(())
        })
        .await
    }
}
