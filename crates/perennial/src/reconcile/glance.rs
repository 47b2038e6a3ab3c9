//! Looks at every pod to find those that need a pass.
//!
//! Nearly all pods are at rest whenever they are looked at, so the look is made cheap: rows are read by the page, and
//! nothing is queued or taken for a pod at which there is nothing to do. A glance decides nothing: whatever is not
//! plainly at rest gets a pass, which looks again.

use std::time::{Duration, Instant};

use futures::{FutureExt as _, StreamExt as _};
use jiff::Timestamp;
use perennial_core::id::SnapshotId;
use perennial_core::plan::{self, Next};
use perennial_core::pod::{Pod, Retry};
use perennial_core::snapshot::Snapshot;

use super::controller::{GLANCES, Waker};
use super::worker::{Reconciler, apply_status, has_untried_hook, is_urgent};
use crate::store::{Page, PodFilter, StoreError, Visibility};

/// Pods that are read at once: few enough that a request that comes meanwhile hardly waits.
const PAGE: u32 = 50;
/// How many times as long as it looked at a page a gentle look rests after it, so that requests have the processors.
const REST: u32 = 3;
/// Longest such rest: an engine that answers slowly leaves the processors idle by itself.
const REST_MAX: Duration = Duration::from_millis(100);

/// How a look at all pods shares the processors with requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    /// As quickly as it goes: nobody knows yet what happened while no server ran.
    Swift,
    /// Spread over some seconds, because nothing is expected to be found.
    Gentle,
}

impl Reconciler {
    /// Glances at every pod; wakes those that are not at rest, and notes when the others want to be looked at.
    pub(super) async fn glance_at_all(&self, waker: &Waker, pace: Pace) -> Result<(), StoreError> {
        let filter = PodFilter { visibility: Visibility::All, ..PodFilter::default() };
        let mut page = Page::first(PAGE);
        loop {
            let began = Instant::now();
            let pods = self.store.pod_list(&filter, &page).await?;
            let is_last = pods.len() < PAGE as usize;
            let Some(last) = pods.last().map(|p| p.id.to_string()) else { return Ok(()) };
            let mut referenced: Vec<SnapshotId> = pods.iter().flat_map(plan::referenced_snapshots).collect();
            referenced.sort_unstable();
            referenced.dedup();
            let snapshots = self.store.snapshots_fetch(&referenced).await?;
            let glances = futures::stream::iter(pods).for_each_concurrent(GLANCES, |pod| {
                let snapshots = &snapshots;
                async move {
                    let id = pod.id;
                    // A defect that one pod's state meets must not end the looks at all others.
                    let glance = std::panic::AssertUnwindSafe(self.glance(pod, snapshots)).catch_unwind().await;
                    match glance {
                        Ok(Some(due)) => waker.rests(id, due),
                        Ok(None) | Err(_) => waker.wake(id),
                    }
                    // Requests wait for these threads too.
                    tokio::task::yield_now().await;
                }
            });
            glances.await;
            if is_last {
                return Ok(());
            }
            if pace == Pace::Gentle {
                tokio::time::sleep((began.elapsed() * REST).min(REST_MAX)).await;
            }
            page.after = Some(last);
        }
    }

    /// When a pod at rest wants to be looked at; `None` when it has to be looked at now.
    async fn glance(&self, pod: Pod, snapshots: &[Snapshot]) -> Option<Option<Timestamp>> {
        let not_before = pod.retry.not_before;
        let rests = not_before.is_some_and(|at| at > self.now());
        if rests && !has_untried_hook(&pod) && self.memory().thawed.contains(&pod.id) {
            return Some(not_before);
        }
        let wanted = plan::referenced_snapshots(&pod);
        let rows = snapshots.iter().filter(|s| wanted.contains(&s.id)).cloned().collect();
        // What goes wrong is for the pass to report.
        let view = self.look_with(pod, rows).await.ok()?;
        let plan = self.plan(&view);
        if rests && !is_urgent(&plan.next) {
            return Some(not_before);
        }
        let Next::Settled { wake } = plan.next else { return None };
        let mut shown = view.pod.clone();
        let stale = apply_status(&mut shown, &plan, self.now()) || self.should_record_seen(&view.pod, &view);
        (view.pod.retry == Retry::default() && !stale).then_some(wake)
    }
}
