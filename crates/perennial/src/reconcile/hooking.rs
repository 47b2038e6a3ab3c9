//! A hook that takes a while, and everybody who cannot wait for it: who asks something of its pod, other pods, and a server that
//! is to stop.
//!
//! A pass that waits for a program of a pod costs this machine nothing, so it has no place among those that are bounded because
//! they do. A tenant's hooks that hang keep only that tenant's snapshots waiting: of those it has few at a time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use perennial_core::id::PodId;
use perennial_core::plan::Action;
use perennial_core::pod::Work;
use perennial_core::progress::Progress;
use perennial_core::snapshot::Grade;
use perennial_core::spec::TenantId;
use tokio::sync::watch;
use tokio::time::Instant;

use super::worker::{Reconciler, View};

/// How often it is looked whether somebody still wants what runs. The database is asked, because another server may have
/// been told.
const LOOK: Duration = Duration::from_millis(500);
/// How long a server that stops waits for an `after`: most end at once, and what goes on is waited for by the next server.
const AFTER_STOP: Duration = Duration::from_secs(3);
/// Snapshots with hooks that one tenant has in work at the same time.
const PER_TENANT: usize = 4;
/// Passes that wait for hooks and are not counted among those that work.
const APART: usize = 32;

/// What makes a hook one that nobody wants any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// The pod is another version than this: whatever was asked of it (a stop, a deletion, another specification), what is being
    /// captured can no longer be recorded. A server that stops cancels it as well.
    Changed(i64),
    /// The pod is to be destroyed. A server that stops leaves it to the next one.
    Purged,
}

/// Which hooks this process waits for.
#[derive(Debug, Default)]
pub(super) struct Hooking {
    waiting: watch::Sender<usize>,
    stopping: watch::Sender<bool>,
    seats: Mutex<HashMap<TenantId, usize>>,
}

impl Hooking {
    /// How many passes wait for hooks, as it changes.
    pub(super) fn waiting(&self) -> watch::Receiver<usize> {
        self.waiting.subscribe()
    }

    /// Ends what waits for hooks.
    pub(super) fn stop(&self) {
        self.stopping.send_replace(true);
    }

    /// Not for a pass that works beside its hook.
    pub(super) fn wait(&self) -> Waiting<'_> {
        Waiting::begin(&self.waiting)
    }

    fn seats(&self) -> MutexGuard<'_, HashMap<TenantId, usize>> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn seat(self: &Arc<Self>, tenant: &TenantId) -> Option<Seat> {
        let mut seats = self.seats();
        let taken = seats.entry(tenant.clone()).or_default();
        if *taken >= PER_TENANT {
            return None;
        }
        *taken += 1;
        Some(Seat { of: Arc::clone(self), tenant: tenant.clone() })
    }
}

/// How many passes may be in work beside those that are bounded.
pub(super) fn apart(waiting: usize) -> usize {
    waiting.min(APART)
}

/// One of the few snapshots with hooks that a tenant has in work.
#[derive(Debug)]
pub(super) struct Seat {
    of: Arc<Hooking>,
    tenant: TenantId,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut seats = self.of.seats();
        if let Some(taken) = seats.get_mut(&self.tenant) {
            *taken -= 1;
            if *taken == 0 {
                seats.remove(&self.tenant);
            }
        }
    }
}

/// A pass that does nothing but wait for a hook, as long as this lives.
pub(super) struct Waiting<'a>(&'a watch::Sender<usize>);

impl<'a> Waiting<'a> {
    fn begin(count: &'a watch::Sender<usize>) -> Self {
        count.send_modify(|count| *count += 1);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl Reconciler {
    /// A place for an action that runs hooks of a pod; `Err` while its tenant has none left, and `Ok(None)` for one that needs none.
    pub(super) fn seat(&self, view: &View, action: &Action) -> Result<Option<Seat>, ()> {
        let runs_hooks = matches!(action, Action::Capture { grade, .. } if *grade != Grade::Stopped);
        if !runs_hooks || view.pod.spec.hooks.before.is_none() {
            return Ok(None);
        }
        self.hooking.seat(&view.pod.tenant).map(Some).ok_or(())
    }

    /// Waits for a hook, and cancels it once nobody wants it any more; `None` when it is left to the next server.
    pub(super) async fn while_wanted<T>(
        &self,
        (pod, until): (PodId, Until),
        progress: &Progress,
        hook: impl Future<Output = T>,
    ) -> Option<T> {
        let mut stopping = self.hooking.stopping.subscribe();
        let mut hook = std::pin::pin!(hook);
        let mut looks = tokio::time::interval(LOOK);
        let mut left_at: Option<Instant> = None;
        loop {
            let stops = async {
                match left_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => {
                        let _ = stopping.wait_for(|stop| *stop).await;
                    }
                }
            };
            tokio::select! {
                ended = &mut hook => return Some(ended),
                () = stops => match (until, left_at) {
                    (Until::Purged, Some(_)) => return None,
                    // It is asked to end; that it does is waited for, however long that takes.
                    (Until::Changed(_), _) => {
                        progress.cancel();
                        return Some(hook.await);
                    }
                    (Until::Purged, None) => left_at = Some(Instant::now() + AFTER_STOP),
                },
                _ = looks.tick() => {
                    if self.is_over(pod, until).await {
                        progress.cancel();
                    }
                }
            }
        }
    }

    async fn is_over(&self, pod: PodId, until: Until) -> bool {
        match self.store.pod_fetch(pod).await {
            Ok(Some(pod)) => match until {
                Until::Changed(version) => pod.version != version,
                Until::Purged => pod.tasks.first().is_some_and(|task| matches!(task.work, Work::Purge { .. })),
            },
            Ok(None) => true,
            // A database that is silent for a moment asked for nothing.
            Err(_) => false,
        }
    }
}
