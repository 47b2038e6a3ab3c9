//! Copies into the replicas of repositories, and what goes from them.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use perennial_core::operation::Problem;
use perennial_core::progress::Progress;
use perennial_core::replication::{Copying, Wanted};
use perennial_core::spec::TenantId;
use perennial_snapshots::{CopyOutcome, CopyStep, Mode, PruneReport, PruneRequest, Repository, SnapshotFileId};
use tokio::sync::mpsc;

use super::forget::{GRACE, REWRITE_AT_MOST, shown};
use super::images::blocking;
use super::layer::parse_id;
use super::repositories::Repositories;
use super::step::StepError;
use super::worker::Reconciler;
use crate::causes::describe;

/// Code of the problem that somebody else works on a repository.
pub const LOCKED: &str = "repository-locked";

/// A replica that answers, beside a repository that does.
#[derive(Debug)]
pub struct SeenReplica {
    /// The id that it carries itself.
    pub id: String,
    /// What the snapshots in it are called.
    pub names: HashSet<String>,
}

impl Reconciler {
    /// Opens a tenant's repository and its replica, which is made when there is none yet, and lists what is in the replica.
    ///
    /// # Errors
    /// A problem to be shown: nothing is known of the replica then. So it is while the repository itself does not answer.
    pub async fn replica_look(&self, replicas: &Repositories, tenant: &TenantId) -> Result<SeenReplica, Problem> {
        let both = self.both(replicas, tenant);
        let seen = blocking(move || {
            let (_, replica) = both()?;
            let names = replica.snapshot_names()?.iter().map(ToString::to_string).collect();
            Ok(SeenReplica { id: replica.id().to_owned(), names })
        });
        self.told_of(replicas, tenant, seen.await)
    }

    /// Copies this of a tenant's repository to its replica, in this order, shows how far each is, and tells what became of it. After
    /// `at_most` no other is begun, so that whoever needs a repository for himself gets it in between.
    ///
    /// # Errors
    /// A problem to be shown; what was told before is so, and the same call goes on.
    pub async fn replicate(
        &self,
        (replicas, tenant): (&Repositories, &TenantId),
        wanted: &[Wanted],
        (progress, at_most): (&Progress, Duration),
        told: mpsc::UnboundedSender<(String, Copying)>,
    ) -> Result<(), Problem> {
        let both = self.both(replicas, tenant);
        let (wanted, progress) = (wanted.to_vec(), progress.clone());
        let (board, of_tenant) = (self.board.clone(), tenant.clone());
        let copied = blocking(move || {
            let ids = wanted.iter().map(|one| parse_id(&one.original)).collect::<Result<Vec<SnapshotFileId>, _>>()?;
            let (first, replica) = both()?;
            let began = Instant::now();
            let mut shown = None;
            replica.copy_each(&first, &ids, &progress, &mut |id, step| {
                let outcome = match step {
                    CopyStep::Begun(progress) => {
                        let what = ids.iter().zip(&wanted).find(|(other, _)| **other == id);
                        shown = what.map(|(_, what)| board.begin_copy(&of_tenant, what.clone(), progress));
                        return ControlFlow::Continue(());
                    }
                    CopyStep::Ended(outcome) => outcome,
                };
                // Before it is told: who is told may look.
                drop(shown.take());
                let copying = match outcome {
                    CopyOutcome::Copied(copy) | CopyOutcome::There(copy) => Copying::Copied(copy.to_string()),
                    CopyOutcome::Failed(error) => Copying::Failed(describe(&error)),
                };
                // Whoever listens is gone when the server stops.
                let listened = told.send((id.to_string(), copying)).is_ok();
                if listened && began.elapsed() < at_most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
            Ok(())
        });
        self.told_of(replicas, tenant, copied.await)
    }

    /// Forgets what is in a tenant's replica of snapshots that are called so, there or where they were made, and tells how many
    /// it found; what they alone needed stays until a prune.
    ///
    /// # Errors
    /// A problem to be shown; the same call again finishes what was begun.
    pub async fn replica_forget(
        &self,
        replicas: &Repositories,
        tenant: &TenantId,
        names: &[String],
    ) -> Result<usize, Problem> {
        let both = self.both(replicas, tenant);
        let names = names.to_vec();
        let forgotten = blocking(move || {
            let (_, replica) = both()?;
            let ids = names.iter().map(|id| parse_id(id)).collect::<Result<Vec<SnapshotFileId>, _>>()?;
            // Two servers at once may have made two copies of one, and a first repository that became a replica has none.
            let found = replica.names_of(&ids)?;
            if !found.is_empty() {
                replica.forget(&found)?;
            }
            Ok(found.len())
        });
        self.told_of(replicas, tenant, forgotten.await)
    }

    /// Prunes a tenant's replica, as [`Reconciler::prune`] does its repository.
    ///
    /// # Errors
    /// A problem to be shown, `repository-locked` while somebody works on the replica; the same call again goes on.
    pub async fn replica_prune(
        &self,
        replicas: &Repositories,
        tenant: &TenantId,
        progress: &Progress,
    ) -> Result<PruneReport, Problem> {
        let (open, of, progress) = (replicas.clone(), tenant.clone(), progress.clone());
        let request =
            PruneRequest { mode: Mode::Execute, grace: GRACE, now: self.now(), rewrite_at_most: REWRITE_AT_MOST };
        let pruned = blocking(move || Ok(open.open_existing(&of)?.prune_with(&request, &progress)?));
        self.told_of(replicas, tenant, pruned.await)
    }

    /// Opens both. The first one has to answer whatever is done with the replica: while it is gone the replica may be all
    /// there is, and nothing is changed in it.
    fn both(
        &self,
        replicas: &Repositories,
        tenant: &TenantId,
    ) -> impl FnOnce() -> Result<(Repository, Repository), StepError> + Send + 'static {
        let (firsts, replicas, tenant) = (self.repositories.clone(), replicas.clone(), tenant.clone());
        move || {
            let first = firsts.open_existing(&tenant)?;
            // An open one says nothing of the place itself.
            first.snapshot_names()?;
            Ok((first, replicas.open(&tenant)?))
        }
    }

    /// What a person is shown of a failure, after which the replica is opened anew, with the credentials of then, unless it was
    /// only in use: to open it costs more than most turns do.
    fn told_of<T>(
        &self,
        replicas: &Repositories,
        tenant: &TenantId,
        result: Result<T, StepError>,
    ) -> Result<T, Problem> {
        match &result {
            Ok(_) | Err(StepError::Cancelled) => {}
            Err(StepError::Retry(problem)) if problem.code == LOCKED => {}
            Err(_) => replicas.close(tenant),
        }
        shown(result)
    }
}
