//! What is written down after each step, as data, and the one function that applies it to a pod.
//!
//! The executor commits the changed pod, the ended operations and the events in one transaction. Nothing else in the
//! program changes a pod's state, except the verbs a person asks for.

mod container;

use jiff::Timestamp;

use crate::health::Found;
use crate::hook::OwedHook;
use crate::id::{OperationId, PodId, SnapshotId};
use crate::operation::{OperationKind, Problem};
use crate::pod::{
    Composed, CrashLoop, Desired, LayerCapture, LayerGap, PinnedImage, Pod, ReadyContainer, RefusedLimits, Resets,
    Retry, Task, Work,
};
use crate::snapshot::{Snapshot, WriterStamp};
use crate::spec::Resources;
use crate::volume::{Origin, SetNumber, SetState, VolumeSet};

/// The event of a pod that was found not to answer its health check: once, until it answers again.
pub const POD_UNHEALTHY: &str = "pod.unhealthy";
/// The event of a pod that is restarted because of that once more.
pub const POD_STILL_UNHEALTHY: &str = "pod.still-unhealthy";

/// One fact about a pod that has to be remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// The image reference was resolved.
    ImagePinned(PinnedImage),
    /// A new set was begun; nothing of it exists yet.
    SetAllocated(VolumeSet),
    /// The set was filled and marked complete. The layer is what its origin brings along.
    SetCompleted {
        /// Which set.
        set: SetNumber,
        /// The system layer of its origin; `None` for the image's own.
        layer: Option<LayerCapture>,
        /// Since when the layer lacks changes that the volumes may have: a copy of such a pod is like it.
        gap: Option<LayerGap>,
    },
    /// A set that never ran and whose data vanished will be made again from the same source.
    SetAbandoned(SetNumber),
    /// The set is gone from the engine.
    SetGone(SetNumber),
    /// Nothing proves a copy of this set: it is kept until its owner decides.
    SetQuarantined(SetNumber),
    /// A container is ready: made, and its system layer put back.
    ContainerReady(ReadyContainer),
    /// The container is about to be given other limits; committed before the engine is asked, so that nobody takes it for one
    /// that has those of before.
    Limiting,
    /// The container has these limits now.
    Limited {
        /// Which.
        limits: Resources,
        /// Whether it had others.
        changed: bool,
    },
    /// The engine did not give the container its limits.
    LimitsRefused(RefusedLimits),
    /// The container was removed by us.
    ContainerGone,
    /// A container that ran is gone and nobody here removed it.
    ContainerLost,
    /// From here on a writer may change the set (D29); committed before the start.
    Attached {
        /// Which set.
        set: SetNumber,
    },
    /// The start answered: the generation is written beside the data.
    Started {
        /// Which set.
        set: SetNumber,
    },
    /// The engine refused the first start of a set, and nothing ran: it is as if it had never been attached.
    LaunchRefused {
        /// Which set.
        set: SetNumber,
        /// Where its content came from.
        origin: Origin,
    },
    /// A run was ended by us.
    StoppedRun(WriterStamp),
    /// A run ended by itself.
    Crashed {
        /// Which run.
        stamp: WriterStamp,
        /// Exit code, when the engine knows.
        code: Option<i64>,
        /// Whether the kernel ended it for memory.
        oom: bool,
    },
    /// Something new was found out about the health of a run.
    Health {
        /// Which run.
        run: WriterStamp,
        /// What.
        found: Found,
    },
    /// The container has run for long enough to forget earlier crashes.
    Stable,
    /// A capture for a release was begun with this snapshot.
    ReleaseCaptureBegun(Snapshot),
    /// A capture of what the task in work replaces was begun with this snapshot.
    SafetyCaptureBegun(Snapshot),
    /// The snapshot is authoritative and the host's copy is garbage (D30).
    Released {
        /// Which snapshot.
        snapshot: SnapshotId,
    },
    /// The host's copy never ran; the source stays what it was.
    ReleasedUnused,
    /// The replacing task's new set, with its layer, is the pod's data now.
    Switched,
    /// A snapshot was begun that is put together out of others; the first is its row.
    ComposeBegun(Snapshot, Composed),
    /// A clone's source is its own from here on.
    Forked(Option<Origin>),
    /// A clone that could not be copied on the host is made from this snapshot of its source.
    ForkedElsewhere(SnapshotId),
    /// A released pod's next start uses another source.
    SourceReplaced(Origin),
    /// The system layer was captured.
    LayerCaptured(LayerCapture),
    /// A `before` hook may be started from here on; committed before it is.
    HookOwed(OwedHook),
    /// The owed hook is about to be run by a step of its own.
    HookTried,
    /// The owed hook is owed no more.
    HookSettled(HookEnd),
    /// A restart saw which run has to end.
    RestartBegan(WriterStamp),
    /// The first task is done.
    TaskDone,
    /// The first task failed for good.
    TaskFailed(Problem),
    /// The desired state is reached.
    GoalReached,
    /// The desired state cannot be reached; the pod goes back to the previous one.
    GoalFailed(Problem),
    /// The data was seen whole.
    DataSeen,
}

/// Why a hook is owed no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HookEnd {
    /// Nothing was begun that it would end, or that is gone.
    NotNeeded,
    /// It succeeded.
    Done,
    /// It failed, or could not be run: the pod may still be as the other hook left it.
    Failed(Problem),
}

/// How an operation ends with a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Which operation.
    pub operation: OperationId,
    /// `None` for success.
    pub problem: Option<Problem>,
}

/// What else has to be committed together with the changed pod.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Consequences {
    /// Operations that end.
    pub ended: Vec<Ended>,
    /// Snapshot rows to be written.
    pub snapshots: Vec<Snapshot>,
    /// The event beside the ends of operations, as kind and message; `None` for what is not worth a line in the trail.
    pub event: Option<(&'static str, String)>,
}

/// First delay after a crash, in seconds; doubles with each.
const CRASH_DELAY_FIRST: i64 = 1;
/// Longest delay between crashes, in seconds.
const CRASH_DELAY_MAX: i64 = 300;

/// The delay before the next start after `count` crashes in a row: none after the first.
#[must_use]
pub fn crash_delay_seconds(count: u32) -> i64 {
    match count {
        0 | 1 => 0,
        n => CRASH_DELAY_FIRST.checked_shl(n - 2).unwrap_or(CRASH_DELAY_MAX).clamp(CRASH_DELAY_FIRST, CRASH_DELAY_MAX),
    }
}

/// Applies a record to the pod.
pub fn apply(pod: &mut Pod, record: &Record, now: Timestamp) -> Consequences {
    pod.updated_at = now;
    if is_milestone(record) {
        pod.retry = Retry::default();
    }
    match record {
        Record::ImagePinned(image) => {
            pod.image = Some(image.clone());
            Consequences::default()
        }
        Record::SetAllocated(_)
        | Record::SetCompleted { .. }
        | Record::SetAbandoned(_)
        | Record::SetGone(_)
        | Record::SetQuarantined(_)
        | Record::Attached { .. }
        | Record::Started { .. }
        | Record::LaunchRefused { .. }
        | Record::DataSeen => apply_to_sets(pod, record, now),
        Record::ContainerReady(_)
        | Record::Limiting
        | Record::Limited { .. }
        | Record::LimitsRefused(_)
        | Record::ContainerGone
        | Record::ContainerLost
        | Record::StoppedRun(_)
        | Record::Crashed { .. }
        | Record::Stable
        | Record::LayerCaptured(_) => container::apply(pod, record, now),
        Record::ReleaseCaptureBegun(_)
        | Record::SafetyCaptureBegun(_)
        | Record::Released { .. }
        | Record::ReleasedUnused
        | Record::Switched
        | Record::ComposeBegun(..)
        | Record::Forked(_)
        | Record::ForkedElsewhere(_)
        | Record::SourceReplaced(_) => apply_to_data(pod, record, now),
        Record::Health { run, found } => container::apply_health(pod, run, found, now),
        Record::HookOwed(_) | Record::HookTried | Record::HookSettled(_) => apply_to_hook(pod, record),
        Record::RestartBegan(_)
        | Record::TaskDone
        | Record::TaskFailed(_)
        | Record::GoalReached
        | Record::GoalFailed(_) => apply_to_work(pod, record),
    }
}

/// Whether something was reached that a failed try goes back behind: only then a new series of tries begins. A step
/// that is undone and done again by every try is no progress.
const fn is_milestone(record: &Record) -> bool {
    matches!(
        record,
        Record::ImagePinned(_)
            | Record::SetCompleted { .. }
            | Record::ContainerReady(_)
            | Record::Started { .. }
            | Record::LayerCaptured(_)
            | Record::Released { .. }
            | Record::ReleasedUnused
            | Record::Switched
            | Record::Forked(_)
            | Record::SourceReplaced(_)
            | Record::TaskDone
            | Record::TaskFailed(_)
            | Record::GoalReached
            | Record::GoalFailed(_)
    )
}

fn event(kind: &'static str, message: impl Into<String>) -> Consequences {
    Consequences { event: Some((kind, message.into())), ..Consequences::default() }
}

fn with_set(pod: &mut Pod, number: SetNumber, change: impl FnOnce(&mut VolumeSet)) {
    if let Some(set) = pod.sets.iter_mut().find(|s| s.number == number) {
        change(set);
    }
}

fn apply_to_sets(pod: &mut Pod, record: &Record, now: Timestamp) -> Consequences {
    match record {
        Record::SetAllocated(set) => {
            pod.last_set = pod.last_set.max(set.number);
            pod.sets.push(set.clone());
            if let Some(Task { work: Work::Replace { new, .. }, .. }) = pod.tasks.first_mut() {
                *new = Some(set.number);
            }
            Consequences::default()
        }
        Record::SetCompleted { set, layer, gap } => {
            with_set(pod, *set, |s| s.state = SetState::Complete);
            pod.data_seen_at = Some(now);
            let mut consequences = Consequences::default();
            if let Some(Origin::Pod { pod: source, .. }) = pod.set(*set).map(|s| s.origin) {
                consequences = copied(pod, *set, source);
            }
            if let Some(Task { work: Work::Replace { new, layer: of_new, .. }, .. }) = pod.tasks.first_mut()
                && *new == Some(*set)
            {
                of_new.clone_from(layer);
            } else {
                pod.current = Some(*set);
                pod.layer.clone_from(layer);
                pod.layer_gap.clone_from(gap);
                pod.container = None;
            }
            consequences
        }
        Record::SetAbandoned(set) => {
            with_set(pod, *set, |s| s.state = SetState::Retired);
            if pod.current == Some(*set) {
                pod.current = None;
            }
            event("pod.set-abandoned", format!("set {set} never ran and vanished; it is made again from its source"))
        }
        Record::SetGone(set) => {
            pod.sets.retain(|s| s.number != *set);
            event("pod.set-deleted", format!("volumes of set {set} deleted"))
        }
        Record::SetQuarantined(set) => {
            with_set(pod, *set, |s| s.state = SetState::Quarantined);
            event("pod.set-quarantined", format!("set {set} is kept: nothing proves a copy of it"))
        }
        Record::Attached { set } => {
            pod.data_generation += 1;
            let generation = pod.data_generation;
            with_set(pod, *set, |s| {
                s.attached = Some(generation);
                s.proof = None;
            });
            pod.source = None;
            pod.capture = None;
            // From here on the layer changes again, so its capture no longer is the last word.
            if let Some(layer) = &mut pod.layer {
                layer.after_stop = false;
            }
            Consequences::default()
        }
        Record::LaunchRefused { set, origin } => {
            with_set(pod, *set, |s| s.attached = None);
            pod.source = Some(*origin);
            Consequences::default()
        }
        Record::Started { set } => {
            with_set(pod, *set, |s| s.marked = s.attached);
            pod.data_seen_at = Some(now);
            let mut consequences = started(pod);
            consequences.event = Some(("pod.started", format!("started with data generation {}", pod.data_generation)));
            consequences
        }
        _ => {
            pod.data_seen_at = Some(now);
            Consequences::default()
        }
    }
}

/// A set that was copied on the host is data that no snapshot holds: from here on it counts as if a writer had had it, so
/// that nothing but a capture lets it go, and nothing makes it anew.
fn copied(pod: &mut Pod, set: SetNumber, source: PodId) -> Consequences {
    pod.data_generation += 1;
    let generation = pod.data_generation;
    with_set(pod, set, |s| s.attached = Some(generation));
    pod.source = None;
    pod.fork = None;
    event("pod.forked", format!("the clone has a data set of its own, copied from that of pod {source}"))
}

/// Ends what waited for the start: a running container, not a lasting one, is what was asked for.
fn started(pod: &mut Pod) -> Consequences {
    if pod.desired != Desired::Running {
        return Consequences::default();
    }
    if matches!(pod.tasks.first(), Some(Task { work: Work::Replace { .. }, .. })) {
        return Consequences::default();
    }
    if pod.goal.is_some() {
        return apply_to_work(pod, &Record::GoalReached);
    }
    match pod.tasks.first() {
        Some(Task { work: Work::Restart { before: Some(_) }, .. }) => end_task(pod, None),
        _ => Consequences::default(),
    }
}

/// Ends what waited for a pause: everything stays where it is, and what else is due for a paused pod keeps nobody waiting.
fn stopped(pod: &mut Pod) -> Consequences {
    let replacing = matches!(pod.tasks.first(), Some(Task { work: Work::Replace { .. }, .. }));
    if pod.desired != Desired::Paused || pod.goal.is_none() || pod.current.is_none() || replacing {
        return Consequences::default();
    }
    pod.retry = Retry::default();
    apply_to_work(pod, &Record::GoalReached)
}

fn apply_to_hook(pod: &mut Pod, record: &Record) -> Consequences {
    match record {
        Record::HookOwed(owed) => pod.hook = Some(owed.clone()),
        Record::HookTried => {
            if let Some(owed) = &mut pod.hook {
                owed.tries += 1;
            }
        }
        Record::HookSettled(end) => {
            pod.hook = None;
            match end {
                HookEnd::NotNeeded => {}
                HookEnd::Done => pod.hook_failed = None,
                HookEnd::Failed(problem) => {
                    pod.hook_failed = Some(problem.clone());
                    return event("pod.hook-failed", problem.message.clone());
                }
            }
        }
        _ => {}
    }
    Consequences::default()
}

fn apply_to_data(pod: &mut Pod, record: &Record, now: Timestamp) -> Consequences {
    match record {
        Record::ReleaseCaptureBegun(snapshot) => {
            pod.capture = Some(snapshot.id);
            Consequences { snapshots: vec![snapshot.clone()], ..Consequences::default() }
        }
        Record::SafetyCaptureBegun(snapshot) => {
            if let Some(Task { work: Work::Replace { safety, .. }, .. }) = pod.tasks.first_mut() {
                *safety = Some(snapshot.id);
            }
            Consequences { snapshots: vec![snapshot.clone()], ..Consequences::default() }
        }
        Record::Released { snapshot } => {
            if let Some(current) = pod.current.take() {
                with_set(pod, current, |s| {
                    s.state = SetState::Retired;
                    s.proof = Some(*snapshot);
                });
            }
            pod.source = Some(Origin::Snapshot(*snapshot));
            pod.capture = None;
            pod.layer = None;
            pod.layer_gap = None;
            event("pod.released", format!("snapshot {snapshot} is verified and authoritative"))
        }
        Record::ReleasedUnused => {
            if let Some(current) = pod.current.take() {
                with_set(pod, current, |s| s.state = SetState::Retired);
            }
            pod.capture = None;
            Consequences::default()
        }
        Record::ComposeBegun(snapshot, composed) => {
            match pod.tasks.first_mut() {
                Some(Task { work: Work::Replace { composed: of_task, .. }, .. }) => *of_task = Some(*composed),
                _ => {
                    if let Some(fork) = &mut pod.fork {
                        fork.composed = Some(*composed);
                    }
                }
            }
            Consequences { snapshots: vec![snapshot.clone()], ..Consequences::default() }
        }
        Record::Forked(source) => {
            pod.source = *source;
            pod.fork = None;
            event("pod.forked", "the clone has a snapshot of its own")
        }
        Record::ForkedElsewhere(snapshot) => {
            pod.source = Some(Origin::Snapshot(*snapshot));
            // What the copy had come to never ran and is nobody's data.
            for set in pod.sets.iter_mut().filter(|s| s.state == SetState::Preparing) {
                set.state = SetState::Retired;
            }
            event("pod.forked-elsewhere", format!("its source is not copied on the host, but by snapshot {snapshot}"))
        }
        Record::Switched => switch(pod, now),
        Record::SourceReplaced(origin) => {
            if *origin == Origin::Image {
                let kept_in = match pod.source {
                    Some(Origin::Snapshot(id)) => Some(id),
                    _ => None,
                };
                reset(pod, kept_in, now);
            }
            pod.source = Some(*origin);
            pod.layer = None;
            pod.layer_gap = None;
            event("pod.source-replaced", "the next start uses another source")
        }
        _ => Consequences::default(),
    }
}

fn reset(pod: &mut Pod, kept_in: Option<SnapshotId>, now: Timestamp) {
    pod.resets = Resets { count: pod.resets.count.saturating_add(1), last_at: Some(now), kept_in };
}

fn switch(pod: &mut Pod, now: Timestamp) -> Consequences {
    let Some(origin) = pod.replacement() else { return Consequences::default() };
    let Some(Task { work: Work::Replace { safety, old, new, layer, switched, .. }, .. }) = pod.tasks.first_mut() else {
        return Consequences::default();
    };
    let (safety, new, layer) = (*safety, *new, layer.take());
    *switched = true;
    *old = pod.current;
    let old = pod.current;
    pod.current = new;
    pod.source = Some(origin);
    pod.layer = layer;
    pod.layer_gap = None;
    pod.capture = None;
    pod.crash = CrashLoop::default();
    if origin == Origin::Image {
        reset(pod, safety, now);
    }
    if let Some(old) = old {
        with_set(pod, old, |s| {
            // One that never ran needs no proof: what it was made from is still there.
            let provable = safety.is_some() || s.attached.is_none();
            s.state = if provable { SetState::Retired } else { SetState::Quarantined };
            s.proof = safety;
        });
    }
    event("pod.data-replaced", "the pod uses its new data set; the old one is kept until the new one runs")
}

fn apply_to_work(pod: &mut Pod, record: &Record) -> Consequences {
    match record {
        Record::RestartBegan(stamp) => {
            if let Some(Task { work: Work::Restart { before }, .. }) = pod.tasks.first_mut() {
                *before = Some(stamp.clone());
            }
            // Somebody did something about it, so restarts may help again.
            if pod.health.as_ref().is_some_and(|health| health.verdict.is_ill()) {
                pod.crash.count = 0;
            }
            Consequences::default()
        }
        Record::TaskDone => end_task(pod, None),
        Record::TaskFailed(problem) => end_task(pod, Some(problem)),
        Record::GoalReached => {
            let Some(goal) = pod.goal.take() else { return Consequences::default() };
            pod.failed = None;
            Consequences { ended: vec![Ended { operation: goal.operation, problem: None }], ..Consequences::default() }
        }
        Record::GoalFailed(problem) => fail_goal(pod, problem),
        _ => Consequences::default(),
    }
}

fn end_task(pod: &mut Pod, problem: Option<&Problem>) -> Consequences {
    if pod.tasks.is_empty() {
        return Consequences::default();
    }
    let task = pod.tasks.remove(0);
    if let (Some(_), Work::Replace { new: Some(new), switched: false, .. }) = (problem, &task.work) {
        // The half-made replacement never ran and is nobody's data.
        with_set(pod, *new, |s| s.state = SetState::Retired);
    }
    if matches!(task.work, Work::Snapshot { .. }) {
        pod.snapshot_failed = problem.cloned();
    }
    // An archive that cannot be taken says nothing about the pod.
    if !matches!(task.work, Work::Import { .. }) {
        pod.failed = problem.cloned();
    }
    Consequences {
        ended: vec![Ended { operation: task.operation, problem: problem.cloned() }],
        ..Consequences::default()
    }
}

fn fail_goal(pod: &mut Pod, problem: &Problem) -> Consequences {
    let Some(goal) = pod.goal.take() else { return Consequences::default() };
    pod.failed = Some(problem.clone());
    pod.capture = None;
    // The next start of a clone puts a new snapshot together: this one has ended with the goal.
    if let Some(fork) = &mut pod.fork {
        fork.composed = None;
    }
    let never_ran =
        (pod.source == Some(Origin::Image) || pod.fork.is_some()) && pod.sets.iter().all(|s| s.attached.is_none());
    // What was copied on the host counts as if it had run, so that a capture precedes its end; but the clone never did.
    let never_ran = never_ran || goal.kind == OperationKind::Clone;
    // A pod whose provisioning failed leaves nothing behind (D5); it can be started again.
    pod.desired = if never_ran && goal.previous == Desired::Running { Desired::Stopped } else { goal.previous };
    if matches!(goal.kind, OperationKind::Archive | OperationKind::Delete) {
        pod.trash = None;
    }
    Consequences {
        ended: vec![Ended { operation: goal.operation, problem: Some(problem.clone()) }],
        ..Consequences::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crashes_back_off_and_are_capped() {
        let delays: Vec<i64> = (0..6).map(crash_delay_seconds).collect();
        assert_eq!(delays, [0, 0, 1, 2, 4, 8]);
        assert_eq!(crash_delay_seconds(11), CRASH_DELAY_MAX);
        assert_eq!(crash_delay_seconds(u32::MAX), CRASH_DELAY_MAX);
    }
}
