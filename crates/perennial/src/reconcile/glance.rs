//! Looks at every pod to find those that need a pass.
//!
//! Nearly all pods are at rest whenever they are looked at, so the look is made cheap: versions of rows are read by the
//! page, and nothing is read, queued or taken for a pod at which nothing changed since it was last seen at rest. A glance
//! decides nothing: whatever is not plainly at rest gets a pass, which looks again.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
use std::panic::AssertUnwindSafe;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use futures::{FutureExt as _, StreamExt as _};
use jiff::{SignedDuration, Timestamp};
use perennial_core::engine::{ObservedPod, SetSpec};
use perennial_core::id::{PodId, SnapshotId};
use perennial_core::plan::{self, Next};
use perennial_core::pod::{Pod, Retry};

use super::controller::{GLANCES, Waker};
use super::worker::{Reconciler, View, apply_status, has_untried_hook, is_urgent, quiet_sets, seen_due, set_specs};
use crate::store::{Page, PodFilter, SnapshotBody, StoreError, Visibility};

/// Pods that are looked at before others may be read: few enough that a request that comes meanwhile hardly waits.
const PAGE: u32 = 50;
/// How many times as long as it looked at a page a gentle look rests after it, so that requests have the processors.
const REST: u32 = 3;
/// Longest such rest: an engine that answers slowly leaves the processors idle by itself.
const REST_MAX: Duration = Duration::from_millis(100);
/// How long a pod is taken to be at rest because nothing changed, and up to twice that, so that not all are read again in
/// the same look. It only bounds what a mistake in here could do.
const REMEMBERED: SignedDuration = SignedDuration::from_mins(10);

/// How a look at all pods shares the processors with requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    /// As quickly as it goes: nobody knows yet what happened while no server ran.
    Swift,
    /// Spread over some seconds, because nothing is expected to be found.
    Gentle,
}

/// Rows of snapshots.
type Bodies = HashMap<SnapshotId, SnapshotBody>;

/// A pod that was seen at rest, and all that its plan was made from: while none of that changes, and until its time comes,
/// it still is.
#[derive(Debug)]
pub(super) struct AtRest {
    /// Of its row.
    version: i64,
    /// The snapshots its plan may look at, and a hash of their rows.
    snapshots: (Vec<SnapshotId>, u64),
    specs: Vec<SetSpec>,
    observed: ObservedPod,
    runtime: Option<String>,
    layer_hidden: bool,
    /// When it wants to be looked at.
    wake: Option<Timestamp>,
    /// When it was seen: a clock that shows less was set.
    since: Timestamp,
    /// When it has to be read again.
    until: Timestamp,
}

impl AtRest {
    fn counts(&self, version: i64, now: Timestamp) -> bool {
        self.version == version && self.since <= now && now < self.until && self.wake.is_none_or(|at| now < at)
    }
}

/// What a glance at a pod found.
enum Glanced {
    /// It needs a pass.
    Awake,
    /// It rests until then, after a failure or because of what nobody remembers.
    Rests(Option<Timestamp>),
    /// There is nothing to do.
    AtRest(Box<AtRest>),
}

fn hash(of: impl std::hash::Hash) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one(of)
}

fn fingerprint(snapshots: &[SnapshotId], bodies: &Bodies) -> u64 {
    hash(snapshots.iter().map(|id| bodies.get(id)).collect::<Vec<_>>())
}

impl Reconciler {
    /// Glances at every pod; wakes those that are not at rest, and notes when the others want to be looked at.
    pub(super) async fn glance_at_all(&self, waker: &Waker, pace: Pace) -> Result<(), StoreError> {
        let filter = PodFilter { visibility: Visibility::All, ..PodFilter::default() };
        let mut page = Page::first(PAGE);
        let mut known = HashSet::new();
        loop {
            let began = Instant::now();
            let versions = self.store.pod_versions(&filter, &page).await?;
            let is_last = versions.len() < PAGE as usize;
            known.extend(versions.iter().map(|(pod, _)| *pod));
            page.after = versions.last().map(|(pod, _)| pod.to_string());
            self.glance_at_page(waker, versions).await?;
            if is_last {
                let mut memory = self.memory();
                memory.at_rest.retain(|pod, _| known.contains(pod));
                memory.health.retain(|pod, _| known.contains(pod));
                return Ok(());
            }
            if pace == Pace::Gentle {
                tokio::time::sleep((began.elapsed() * REST).min(REST_MAX)).await;
            }
        }
    }

    async fn glance_at_page(&self, waker: &Waker, versions: Vec<(PodId, i64)>) -> Result<(), StoreError> {
        let changed = self.glance_at_resting(waker, versions).await?;
        let pods = self.store.pods_fetch(&changed).await?;
        let bodies = self.store.snapshot_bodies(&united(pods.iter().map(plan::referenced_snapshots))).await?;
        let glances = futures::stream::iter(pods).for_each_concurrent(GLANCES, |pod| {
            let bodies = &bodies;
            async move {
                let id = pod.id;
                // A defect that one pod's state meets must not end the looks at all others.
                match AssertUnwindSafe(self.glance(pod, bodies)).catch_unwind().await {
                    Ok(Glanced::Rests(due)) => waker.rests(id, due),
                    Ok(Glanced::AtRest(seen)) => {
                        waker.rests(id, seen.wake);
                        self.memory().at_rest.insert(id, *seen);
                    }
                    Ok(Glanced::Awake) | Err(_) => waker.wake(id),
                }
                // Requests wait for these threads too.
                tokio::task::yield_now().await;
            }
        });
        glances.await;
        Ok(())
    }

    /// Asks the engine about the pods that were at rest and whose rows did not change; answers which have to be read.
    async fn glance_at_resting(&self, waker: &Waker, versions: Vec<(PodId, i64)>) -> Result<Vec<PodId>, StoreError> {
        let now = self.now();
        let mut resting = Vec::new();
        let mut changed = Vec::new();
        {
            let mut memory = self.memory();
            for (pod, version) in versions {
                match memory.at_rest.remove(&pod).filter(|seen| seen.counts(version, now)) {
                    Some(seen) => resting.push((pod, seen)),
                    None => changed.push(pod),
                }
            }
        }
        let referenced = united(resting.iter().map(|(_, seen)| seen.snapshots.0.clone()));
        let bodies = self.store.snapshot_bodies(&referenced).await?;
        let changed = Mutex::new(changed);
        let glances = futures::stream::iter(resting).for_each_concurrent(GLANCES, |(pod, seen)| {
            let (bodies, changed) = (&bodies, &changed);
            async move {
                if AssertUnwindSafe(self.is_unchanged(pod, &seen, bodies)).catch_unwind().await.unwrap_or(false) {
                    waker.rests(pod, seen.wake);
                    self.memory().at_rest.insert(pod, seen);
                } else {
                    changed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(pod);
                }
                tokio::task::yield_now().await;
            }
        });
        glances.await;
        Ok(changed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// Whether everything beside its row is as it was when the pod was seen at rest.
    async fn is_unchanged(&self, pod: PodId, seen: &AtRest, bodies: &Bodies) -> bool {
        let (snapshots, rows) = &seen.snapshots;
        fingerprint(snapshots, bodies) == *rows
            && self.engine.observe(pod, &seen.specs).await.is_ok_and(|observed| observed == seen.observed)
            && self.hides_layers(seen.runtime.as_deref()).await.is_ok_and(|hidden| hidden == seen.layer_hidden)
    }

    async fn glance(&self, pod: Pod, bodies: &Bodies) -> Glanced {
        let not_before = pod.retry.not_before;
        let rests = not_before.is_some_and(|at| at > self.now());
        if rests && !has_untried_hook(&pod) && self.memory().thawed.contains(&pod.id) {
            return Glanced::Rests(not_before);
        }
        let snapshots = plan::referenced_snapshots(&pod);
        let rows = snapshots.iter().filter_map(|id| bodies.get(id)).map(SnapshotBody::read).collect();
        // What goes wrong is for the pass to report.
        let Ok(rows) = rows else { return Glanced::Awake };
        let Ok(view) = self.look_with(pod, rows).await else { return Glanced::Awake };
        let plan = self.plan(&view);
        if rests && !is_urgent(&plan.next) {
            return Glanced::Rests(not_before);
        }
        let Next::Settled { wake } = plan.next else { return Glanced::Awake };
        let mut shown = view.pod.clone();
        let stale = apply_status(&mut shown, &plan, self.now()) || self.should_record_seen(&view.pod, &view);
        if stale || view.pod.retry != Retry::default() {
            return Glanced::Awake;
        }
        if quiet_sets(&view.pod, &view.observed).next().is_some() {
            // Who else may have them mounted is asked every time.
            return Glanced::Rests(wake);
        }
        let rows = fingerprint(&snapshots, bodies);
        Glanced::AtRest(Box::new(self.at_rest(view, (snapshots, rows), wake)))
    }

    fn at_rest(&self, view: View, snapshots: (Vec<SnapshotId>, u64), wake: Option<Timestamp>) -> AtRest {
        let now = self.now();
        let spread = SignedDuration::from_secs((hash(view.pod.id) % REMEMBERED.as_secs().unsigned_abs()).cast_signed());
        let remembered = now.checked_add(REMEMBERED + spread).unwrap_or(now);
        AtRest {
            version: view.pod.version,
            snapshots,
            specs: set_specs(&view.pod),
            until: seen_due(&view.pod).map_or(remembered, |due| due.min(remembered)),
            runtime: view.pod.spec.runtime,
            observed: view.observed,
            layer_hidden: view.layer_hidden,
            wake,
            since: now,
        }
    }
}

fn united(of: impl Iterator<Item = Vec<SnapshotId>>) -> Vec<SnapshotId> {
    let mut all: Vec<SnapshotId> = of.flatten().collect();
    all.sort_unstable();
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_at_rest_counts_until_its_time_or_a_change_of_its_row_or_a_clock_set_back() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let seen = |wake| AtRest {
            version: 7,
            snapshots: (Vec::new(), 0),
            specs: Vec::new(),
            observed: ObservedPod::default(),
            runtime: None,
            layer_hidden: false,
            wake,
            since: at(100),
            until: at(200),
        };
        assert!(seen(None).counts(7, at(100)));
        assert!(seen(None).counts(7, at(199)));
        assert!(!seen(None).counts(7, at(200)), "it has to be read again");
        assert!(!seen(None).counts(8, at(150)), "its row has changed");
        assert!(!seen(None).counts(7, at(99)), "the clock may have been wrong");
        assert!(seen(Some(at(150))).counts(7, at(149)));
        assert!(!seen(Some(at(150))).counts(7, at(150)), "its time has come");
    }

    #[test]
    fn a_row_of_a_snapshot_that_changes_or_goes_changes_the_fingerprint() {
        let id = |n| SnapshotId::from_parts(n, [1; 10]);
        let ids = [id(1), id(2)];
        let body = |text: &str| SnapshotBody::from(text.to_owned());
        let both = Bodies::from([(id(1), body("one")), (id(2), body("two"))]);
        let of = |bodies: &Bodies| fingerprint(&ids, bodies);
        assert_eq!(of(&both), of(&both.clone()));
        assert_ne!(of(&both), of(&Bodies::from([(id(1), body("one")), (id(2), body("other"))])));
        assert_ne!(of(&both), of(&Bodies::from([(id(1), body("one"))])));
        assert_ne!(of(&both), of(&Bodies::from([(id(1), body("two")), (id(2), body("one"))])));
    }
}
