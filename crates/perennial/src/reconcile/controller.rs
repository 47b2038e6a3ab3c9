//! Which pod is looked at when: wake-ups, delays, periodic observation, bounded concurrency.
//!
//! A wake-up carries no data. A pod is in work at most once at a time in this process; leases keep other servers off.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use jiff::Timestamp;
use perennial_core::engine::ChangeSink;
use perennial_core::id::PodId;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use super::glance::Pace;
use super::health::supervise;
use super::hooking::apart;
use super::worker::{Passed, Reconciler};

/// Pods that are glanced at at the same time.
pub(super) const GLANCES: usize = 8;
/// [`Settings::resync`](super::Settings::resync) of a server: the safety net behind the event watch.
pub const RESYNC: Duration = Duration::from_secs(30);
/// Delay before the event watch is opened again after it ended; doubles while it ends at once.
const WATCH_AGAIN: Duration = Duration::from_millis(500);
/// Longest such delay.
const WATCH_AGAIN_MAX: Duration = Duration::from_secs(5);

/// What waits to be looked at.
#[derive(Debug, Default)]
struct Queue {
    ready: VecDeque<PodId>,
    queued: HashSet<PodId>,
    busy: HashSet<PodId>,
    /// Woken while busy: looked at again when done.
    again: HashSet<PodId>,
    later: BTreeSet<(Timestamp, PodId)>,
    later_of: HashMap<PodId, Timestamp>,
}

impl Queue {
    fn push(&mut self, pod: PodId) {
        if self.busy.contains(&pod) {
            self.again.insert(pod);
        } else if self.queued.insert(pod) {
            self.ready.push_back(pod);
        }
        if let Some(at) = self.later_of.remove(&pod) {
            self.later.remove(&(at, pod));
        }
    }

    fn pop(&mut self) -> Option<PodId> {
        let pod = self.ready.pop_front()?;
        self.queued.remove(&pod);
        self.busy.insert(pod);
        Some(pod)
    }

    fn done(&mut self, pod: PodId, passed: Passed) {
        self.busy.remove(&pod);
        if self.again.remove(&pod) || passed == Passed::Again {
            self.push(pod);
        } else if let Passed::Wait(Some(at)) = passed {
            if let Some(old) = self.later_of.insert(pod, at) {
                self.later.remove(&(old, pod));
            }
            self.later.insert((at, pod));
        }
    }

    /// Notes when a pod at rest wants to be looked at. One that is about to be looked at will say so itself. Answers
    /// whether nothing else is due earlier.
    fn rests(&mut self, pod: PodId, due: Option<Timestamp>) -> bool {
        if self.busy.contains(&pod) || self.queued.contains(&pod) {
            return false;
        }
        if let Some(old) = self.later_of.remove(&pod) {
            self.later.remove(&(old, pod));
        }
        if let Some(at) = due {
            self.later_of.insert(pod, at);
            self.later.insert((at, pod));
        }
        due.is_some() && self.later.first().map(|(_, first)| *first) == Some(pod)
    }

    fn wake_due(&mut self, now: Timestamp) -> Option<Timestamp> {
        while let Some((at, pod)) = self.later.first().copied() {
            if at > now {
                return Some(at);
            }
            self.push(pod);
        }
        None
    }
}

/// Wakes pods from anywhere; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Waker {
    queue: Arc<Mutex<Queue>>,
    notify: Arc<Notify>,
}

impl Waker {
    /// Has the pod looked at soon.
    pub fn wake(&self, pod: PodId) {
        self.with(|queue| queue.push(pod));
        self.notify.notify_one();
    }

    /// Has a pod that was seen at rest looked at when it wants to be.
    pub(super) fn rests(&self, pod: PodId, due: Option<Timestamp>) {
        if self.with(|queue| queue.rests(pod, due)) {
            self.notify.notify_one();
        }
    }

    fn with<T>(&self, change: impl FnOnce(&mut Queue) -> T) -> T {
        change(&mut self.queue.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ChangeSink for Waker {
    fn pod_changed(&self, pod: PodId) {
        self.wake(pod);
    }
}

/// The running reconciler of a server.
#[derive(Debug)]
pub struct Controller;

/// Stops the controller.
#[derive(Debug)]
pub struct ControllerHandle {
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl Controller {
    /// Starts looking at every pod, and goes on until the handle is shut down.
    #[must_use]
    pub fn start(reconciler: Arc<Reconciler>, waker: Waker) -> ControllerHandle {
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        tasks.spawn(watch_engine(Arc::clone(&reconciler), waker.clone(), stopped.clone()));
        tasks.spawn(resync(Arc::clone(&reconciler), waker.clone(), stopped.clone()));
        tasks.spawn(supervise(Arc::clone(&reconciler), waker.clone(), stopped.clone()));
        tasks.spawn(work(reconciler, waker, stopped));
        ControllerHandle { stop, tasks }
    }
}

impl ControllerHandle {
    /// Finishes the passes in work, starts no other, and gives the leases back. A hook before a snapshot is cancelled, one after it
    /// left to the next server when it does not end soon.
    pub async fn shutdown(mut self) {
        let _ = self.stop.send(true);
        while self.tasks.join_next().await.is_some() {}
    }
}

async fn work(reconciler: Arc<Reconciler>, waker: Waker, mut stopped: watch::Receiver<bool>) {
    let mut passes: JoinSet<(PodId, Passed)> = JoinSet::new();
    let mut waiting = reconciler.hooking.waiting();
    while !*stopped.borrow() {
        let next_due = waker.with(|queue| queue.wake_due(reconciler.now()));
        let most = reconciler.settings.pods_at_once + apart(*waiting.borrow_and_update());
        while passes.len() < most
            && let Some(pod) = waker.with(Queue::pop)
        {
            let (reconciler, waker) = (Arc::clone(&reconciler), waker.clone());
            passes.spawn(async move {
                let pass = std::panic::AssertUnwindSafe(reconciler.pass(pod)).catch_unwind().await;
                reconciler.take_woken().into_iter().for_each(|other| waker.wake(other));
                (pod, pass.unwrap_or_else(|_| reconciler.after_panic(pod)))
            });
        }
        let due = async {
            match next_due {
                Some(at) => {
                    let left = at.duration_since(reconciler.now());
                    tokio::time::sleep(Duration::try_from(left).unwrap_or_default()).await;
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(joined) = passes.join_next() => finish(&waker, joined),
            () = waker.notify.notified() => {}
            () = due => {}
            _ = waiting.changed() => {}
            _ = stopped.changed() => {}
        }
    }
    reconciler.hooking.stop();
    while let Some(joined) = passes.join_next().await {
        finish(&waker, joined);
    }
    reconciler.release_leases().await;
}

fn finish(waker: &Waker, joined: Result<(PodId, Passed), tokio::task::JoinError>) {
    match joined {
        Ok((pod, passed)) => waker.with(|queue| queue.done(pod, passed)),
        Err(error) => tracing::error!(%error, "a pass was aborted"),
    }
}

async fn resync(reconciler: Arc<Reconciler>, waker: Waker, mut stopped: watch::Receiver<bool>) {
    let mut pace = Pace::Swift;
    while !*stopped.borrow() {
        let due = tokio::time::Instant::now() + reconciler.settings.resync;
        tokio::select! {
            looked = reconciler.glance_at_all(&waker, pace) => {
                if let Err(error) = looked {
                    tracing::warn!(%error, "list the pods");
                }
            }
            _ = stopped.changed() => return,
        }
        pace = Pace::Gentle;
        tokio::select! {
            () = tokio::time::sleep_until(due) => {}
            _ = stopped.changed() => return,
        }
    }
}

async fn watch_engine(reconciler: Arc<Reconciler>, waker: Waker, mut stopped: watch::Receiver<bool>) {
    let mut delay = WATCH_AGAIN;
    while !*stopped.borrow() {
        let began = tokio::time::Instant::now();
        tokio::select! {
            ended = reconciler.engine.watch(&waker) => {
                if let Err(error) = ended {
                    tracing::warn!(%error, "the engine's event stream ended");
                }
            }
            _ = stopped.changed() => return,
        }
        // Whatever happened while nobody listened is found by looking.
        if let Ok(pods) = reconciler.store.pod_ids().await {
            pods.into_iter().for_each(|pod| waker.wake(pod));
        }
        // An engine that is away is not asked about every pod all the time.
        delay = if began.elapsed() > WATCH_AGAIN_MAX { WATCH_AGAIN } else { (delay * 2).min(WATCH_AGAIN_MAX) };
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            _ = stopped.changed() => return,
        }
    }
}
