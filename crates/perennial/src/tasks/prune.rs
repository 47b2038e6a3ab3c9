//! The space of what was forgotten: repositories are pruned beside everything else, one at a time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use perennial_core::progress::Progress;
use perennial_core::spec::TenantId;
use tokio::sync::watch;

use crate::reconcile::Reconciler;
use crate::service::App;

/// How often what is due is looked for.
const EVERY: Duration = Duration::from_secs(60);
/// A repository in which things are forgotten all the time is pruned this often.
const APART: SignedDuration = SignedDuration::from_hours(1);
/// How often every repository is pruned: what was marked goes, and what interrupted uploads left.
const AT_LEAST_EVERY: SignedDuration = SignedDuration::from_hours(24);

pub(super) struct Pruner {
    app: App,
    reconciler: Arc<Reconciler>,
    progress: Progress,
    /// Repositories that could not be pruned: how often, and when the next try is. A prune keeps everybody else away
    /// while it looks for what is needed, so that one which cannot succeed must not be tried all the time.
    failed: Mutex<HashMap<TenantId, (u32, Timestamp)>>,
}

impl Pruner {
    pub(super) fn new(app: App, reconciler: Arc<Reconciler>) -> Self {
        Self { app, reconciler, progress: Progress::default(), failed: Mutex::default() }
    }

    /// Runs until `stopped` says so; a prune in work is interrupted, which is safe at any moment.
    pub(super) async fn run(self, mut stopped: watch::Receiver<bool>) {
        let progress = self.progress.clone();
        let mut told = stopped.clone();
        let work = async {
            while !*stopped.borrow() {
                self.prune_due().await;
                tokio::select! {
                    () = tokio::time::sleep(EVERY) => {}
                    _ = stopped.changed() => {}
                }
            }
        };
        let interrupt = async {
            let _ = told.wait_for(|stop| *stop).await;
            progress.cancel();
        };
        tokio::join!(work, interrupt);
    }

    /// Prunes every repository that is due.
    pub(super) async fn prune_due(&self) {
        let now = self.app.clock.now();
        let before = |age| now.checked_sub(age).unwrap_or(now);
        let due = match self.app.store.prunes_due((before(AT_LEAST_EVERY), before(APART), now)).await {
            Ok(due) => due,
            Err(error) => return tracing::warn!(%error, "look for repositories to prune"),
        };
        for tenant in due {
            if self.failed().get(&tenant).is_some_and(|(_, next)| now < *next) {
                continue;
            }
            // Taken before: what is forgotten while this one runs wants another.
            let began = self.app.clock.now();
            match self.reconciler.prune(&tenant, &self.progress).await {
                Ok(report) => {
                    self.failed().remove(&tenant);
                    let (marked, deleted, freed) = (report.waiting, report.expired.len(), report.freed_bytes);
                    if report.doomed.is_empty() && deleted == 0 && report.recovered == 0 {
                        tracing::debug!(%tenant, marked, "nothing to prune in a repository");
                    } else {
                        tracing::info!(%tenant, marked, deleted, freed, "pruned a repository");
                    }
                    if let Err(error) = self.app.store.prune_done(&tenant, began).await {
                        tracing::warn!(%tenant, %error, "record a prune");
                    }
                }
                // Somebody works on it; the next look tries again.
                Err(problem) if problem.code == "repository-locked" => {
                    tracing::debug!(%tenant, problem = problem.message, "the repository is in use");
                }
                Err(problem) => {
                    let next = self.postpone(tenant.clone(), now);
                    tracing::warn!(%tenant, problem = problem.message, %next, "prune a repository");
                }
            }
        }
    }

    /// Notes a failure; the next try is twice as far away each time, up to a day.
    fn postpone(&self, tenant: TenantId, now: Timestamp) -> Timestamp {
        let mut failed = self.failed();
        let (count, next) = failed.entry(tenant).or_insert((0, now));
        *count += 1;
        let pause = EVERY.saturating_mul(1 << (*count).min(12)).min(AT_LEAST_EVERY.unsigned_abs());
        *next = now.checked_add(pause).unwrap_or(now);
        *next
    }

    fn failed(&self) -> std::sync::MutexGuard<'_, HashMap<TenantId, (u32, Timestamp)>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
