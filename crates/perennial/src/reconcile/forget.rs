//! Forgetting: snapshots whose deletion was asked for, leftovers of interrupted work, and everything of a purged pod.

use std::collections::HashSet;
use std::num::NonZeroU64;

use jiff::SignedDuration;
use perennial_core::id::{OperationId, PodId, SnapshotId};
use perennial_core::operation::Problem;
use perennial_core::progress::Progress;
use perennial_core::spec::TenantId;
use perennial_snapshots::{Mode, PruneReport, PruneRequest, SnapshotFileId};

use super::capture::snapshot_tag;
use super::images::blocking;
use super::repositories::{ERASED, Repositories};
use super::step::{StepError, problem, retry};
use super::worker::{Reconciler, View};
use crate::store::{Page, SnapshotScope};

/// Snapshots fetched at a time.
const PAGE: u32 = 500;
/// How long what nothing needs is only marked: longer than any upload whose lock might have been lost.
pub(super) const GRACE: SignedDuration = SignedDuration::from_hours(24);
/// Listings after which a store does not do what it says.
const MOST_LISTINGS: u32 = 8;
/// Bytes of packs that one prune takes apart: everybody else waits that long.
pub(super) const REWRITE_AT_MOST: u64 = 1 << 30;

/// A snapshot that is to be forgotten.
#[derive(Debug, Clone)]
pub struct Going {
    /// Which.
    pub snapshot: SnapshotId,
    /// Of one that a rule let go: what replaces it, one of which must be in the repository. Nothing of one that a
    /// person gave up.
    pub replaced_by: Option<Vec<SnapshotId>>,
}

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

    /// Forgets these snapshots of one tenant in its repository; what they alone needed stays until a prune. Answers
    /// those that stay, because a rule let them go and the repository holds nothing that replaces them: rows tell what
    /// was verified once, and a repository may have been brought back from an older copy since.
    ///
    /// # Errors
    /// A problem to be shown; the same call again finishes what was begun.
    pub async fn forget_snapshots(&self, tenant: &TenantId, going: Vec<Going>) -> Result<HashSet<SnapshotId>, Problem> {
        let (repositories, tenant) = (self.repositories.clone(), tenant.clone());
        let forgotten = blocking(move || {
            let repository = repositories.open(&tenant)?;
            // One list for all of them, however many there are.
            let known = repository.find(&[])?;
            let present: HashSet<&str> = known.iter().flat_map(|s| &s.tags).map(String::as_str).collect();
            let is_present = |id: &SnapshotId| present.contains(snapshot_tag(*id).as_str());
            let (may_go, stay): (Vec<_>, Vec<_>) = going
                .into_iter()
                .partition(|one| one.replaced_by.as_ref().is_none_or(|others| others.iter().any(is_present)));
            let tags: HashSet<String> = may_go.iter().map(|one| snapshot_tag(one.snapshot)).collect();
            let gone = known.iter().filter(|s| s.tags.iter().any(|tag| tags.contains(tag)));
            let ids: Vec<SnapshotFileId> = gone.map(|s| s.id).collect();
            if !ids.is_empty() {
                repository.forget(&ids)?;
            }
            Ok(stay.into_iter().map(|one| one.snapshot).collect())
        });
        shown(forgotten.await)
    }

    /// Prunes a tenant's repository: marks what nothing needs, deletes what was marked long enough ago.
    ///
    /// # Errors
    /// A problem to be shown, `repository-locked` while somebody works on the repository; the same call again goes on.
    pub async fn prune(&self, tenant: &TenantId, progress: &Progress) -> Result<PruneReport, Problem> {
        let (repositories, tenant, progress) = (self.repositories.clone(), tenant.clone(), progress.clone());
        let request =
            PruneRequest { mode: Mode::Execute, grace: GRACE, now: self.now(), rewrite_at_most: REWRITE_AT_MOST };
        shown(blocking(move || Ok(repositories.open_existing(&tenant)?.prune_with(&request, &progress)?)).await)
    }

    /// Begins to show how far the files of an erased tenant's repositories are deleted; whoever began it ends it.
    pub fn erasure_begin(&self, id: OperationId) -> Progress {
        self.board.begin(Some(id), "take away what is in the repositories")
    }

    /// Ends that.
    pub fn erasure_end(&self, id: OperationId) {
        self.board.end(id);
    }

    /// Reads one share of the packs of a tenant's repository; returns what is wrong, in words.
    ///
    /// # Errors
    /// A problem to be shown: nothing is known then.
    pub async fn check_share(
        &self,
        tenant: &TenantId,
        (turn, of): (u64, NonZeroU64),
        progress: &Progress,
    ) -> Result<Vec<String>, Problem> {
        let (repositories, tenant, progress) = (self.repositories.clone(), tenant.clone(), progress.clone());
        let check = blocking(move || Ok(repositories.open_existing(&tenant)?.check_share(turn, of, &progress)?));
        Ok(shown(check.await)?.problems.iter().map(ToString::to_string).collect())
    }

    /// What others than the pod have in its repository, as far as the database knows: snapshots of the tenant's other pods, and images.
    async fn counted_on(&self, view: &View) -> Result<Vec<SnapshotFileId>, StepError> {
        let scope = SnapshotScope::Tenant(view.pod.tenant.clone());
        let (mut ids, mut after) = (Vec::new(), None);
        loop {
            let page = self.store.snapshot_list(&scope, &Page { after: after.take(), limit: PAGE }).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.id.to_string());
            ids.extend(page.iter().filter(|s| s.pod != view.pod.id).filter_map(|s| s.repository_id.clone()));
        }
        ids.extend(self.store.images_of(&view.pod.tenant).await?.into_iter().map(|image| image.repository_id));
        // One that is written in another way is of no repository of ours.
        Ok(ids.iter().filter_map(|id| id.parse().ok()).collect())
    }

    /// Forgets everything of the pod in its repository and prunes what nobody else needs.
    pub(super) async fn forget_everything(&self, view: &View, progress: &Progress) -> Result<(), StepError> {
        let (repositories, tenant) = (self.repositories.clone(), view.pod.tenant.clone());
        let (tag, progress) = (format!("pod:{}", view.pod.id), progress.clone());
        let others = self.counted_on(view).await?;
        blocking(move || {
            let repository = match repositories.open(&tenant) {
                // Its tenant was erased, which an old database does not know: there is nothing to forget that anybody can read.
                Err(StepError::Definite(problem)) if problem.code == ERASED => return Ok(()),
                other => other?,
            };
            // What goes now goes without a grace time: the database knows what must not.
            repository.expect(others);
            // Until two listings in turn have none: one that is left out of the first would stay for ever, and nothing would name it.
            let (mut clean, mut listings) = (0, 0);
            while clean < 2 {
                if listings == MOST_LISTINGS {
                    let message = "the repository still lists snapshots that were removed again and again";
                    return Err(retry("repository-unsteady", message));
                }
                listings += 1;
                progress.check().map_err(|_| StepError::Cancelled)?;
                let ids: Vec<SnapshotFileId> = repository.find(&[&tag])?.into_iter().map(|s| s.id).collect();
                clean = if ids.is_empty() { clean + 1 } else { 0 };
                repository.forget(&ids)?;
            }
            // Also when an earlier try forgot them: only now the bytes go.
            repository.prune(Mode::Execute, &progress)?;
            Ok(())
        })
        .await
    }
}

/// What a person is shown of a failure.
pub(super) fn shown<T>(result: Result<T, StepError>) -> Result<T, Problem> {
    result.map_err(|error| match error {
        StepError::Retry(found) | StepError::Definite(found) => found,
        StepError::Overtaken | StepError::Occupied | StepError::Cancelled => {
            problem("interrupted", "it was interrupted", "")
        }
    })
}

impl Repositories {
    /// The tags of everything that the tenant's repository has of a pod; nothing of a tenant that was erased.
    ///
    /// # Errors
    /// Why that cannot be told.
    pub(crate) async fn tags_of_pod(&self, tenant: &TenantId, pod: PodId) -> Result<Vec<String>, Problem> {
        let (repositories, tenant, tag) = (self.clone(), tenant.clone(), format!("pod:{pod}"));
        let found = blocking(move || {
            let repository = match repositories.open(&tenant) {
                Err(StepError::Definite(problem)) if problem.code == ERASED => return Ok(Vec::new()),
                other => other?,
            };
            Ok(repository.find(&[&tag])?.into_iter().flat_map(|found| found.tags).collect())
        });
        shown(found.await)
    }
}
