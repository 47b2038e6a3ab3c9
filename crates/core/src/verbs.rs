//! What a person may ask of a pod, and when: pure transitions over (what is desired, what is in work, where the data is).
//!
//! A verb never touches data: it changes `desired`, `goal` and `tasks`, and the plan does the rest. Every verb answers
//! with a [`Decision`] to be committed as one, or refuses with a conflict that says how to go on.
//!
//! | verb | running, paused | stopping, before its commit | stopped | archived, deleted |
//! |---|---|---|---|---|
//! | start | start, or nothing to do | cancels the stop | start | refused |
//! | pause | pause, or nothing to do | replaces the stop | refused | refused |
//! | stop | stop | joins it | nothing to do | refused |
//! | restart, snapshot | queued (restart: only running) | refused | refused | refused |
//! | clone | from its data set, or a new snapshot | refused | from its final one | refused (from a snapshot that is named: made) |
//! | reset, restore, import | queued | queued | queued | refused |
//! | archive, delete | releases and hides | replaces the stop | hides | delete after archive only |
//! | undelete | refused | refused | refused | to stopped |
//! | purge | destroys | destroys | destroys | destroys |
//!
//! While a purge is in work everything else is refused.

mod fork;
mod restore;

pub use fork::{ForkSource, REPLACED, fork, fork_source, fork_source_elsewhere};
pub use restore::{not_restorable, require_same_volumes, restore, select};

use jiff::{SignedDuration, Timestamp};

use crate::error::Error;
use crate::id::{OperationId, SnapshotId};
use crate::operation::{Operation, OperationKind, OperationState};
use crate::parts::Parts;
use crate::pod::{Acceptance, Composed, CrashLoop, Desired, Goal, Import, Phase, Pod, Retry, Task, Trash, Work};
use crate::progress::ProgressReading;
use crate::snapshot::{Snapshot, SnapshotKind};
use crate::spec::{OnStop, PodSpec};
use crate::volume::{Origin, SetState};

/// Work that may wait at the same time on one pod.
pub const TASKS_MAX: usize = 16;

/// Who asks, when, and the operation that is recorded for it.
#[derive(Debug, Clone)]
pub struct Order {
    /// Id for the operation, should one be made.
    pub operation: OperationId,
    /// Who asks.
    pub actor: String,
    /// The present time.
    pub now: Timestamp,
}

/// The operation that answers a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// A new one; already ended when there was nothing to do.
    New(Box<Operation>),
    /// One that already does exactly this.
    Join(OperationId),
}

/// How an operation ends because of another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Superseded {
    /// Which.
    pub operation: OperationId,
    /// Cancelled, or succeeded when its point of no return was passed.
    pub state: OperationState,
}

/// What a verb changes; committed as one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The pod as it is to be stored.
    pub pod: Pod,
    /// The operation to answer with.
    pub answer: Answer,
    /// Operations that end with this.
    pub superseded: Vec<Superseded>,
    /// Captures nobody waits for any more: rows still pending are marked failed.
    pub dropped: Vec<SnapshotId>,
    /// A new snapshot row.
    pub snapshot: Option<Snapshot>,
    /// Snapshots that this builds on: with one whose deletion began meanwhile nothing is committed.
    pub uses: Vec<SnapshotId>,
}

impl Decision {
    /// This, and then another thing of the pod as it is by then, as one: the answer is the last operation, and one that the other
    /// ends at once was never begun.
    ///
    /// # Errors
    /// What the other says.
    pub fn then(self, next: impl FnOnce(&Pod) -> Result<Self, Error>) -> Result<Self, Error> {
        let Self { pod, answer, mut superseded, mut dropped, snapshot, mut uses } = self;
        let next = next(&pod)?;
        let first = match answer {
            Answer::New(operation) => Some(operation.id),
            Answer::Join(_) => None,
        };
        superseded.extend(next.superseded.into_iter().filter(|ended| Some(ended.operation) != first));
        dropped.extend(next.dropped);
        uses.extend(next.uses);
        Ok(Self { superseded, dropped, uses, snapshot: snapshot.or(next.snapshot), ..next })
    }

    fn new(pod: Pod, answer: Answer) -> Self {
        Self { pod, answer, superseded: Vec::new(), dropped: Vec::new(), snapshot: None, uses: Vec::new() }
    }
}

fn operation(pod: &Pod, kind: OperationKind, order: &Order) -> Operation {
    Operation {
        id: order.operation,
        tenant: pod.tenant.clone(),
        pod: pod.id,
        kind,
        state: OperationState::Pending,
        step: String::new(),
        progress: ProgressReading::default(),
        snapshot: None,
        error: None,
        actor: order.actor.clone(),
        created_at: order.now,
        finished_at: None,
    }
}

/// Whether the host's copy is no longer the data: what a stop was for has happened (D30).
fn is_released(pod: &Pod) -> bool {
    pod.desired.releases_host() && pod.current.is_none()
}

fn is_purging(pod: &Pod) -> Option<OperationId> {
    pod.tasks.iter().find(|t| matches!(t.work, Work::Purge { .. })).map(|t| t.operation)
}

/// Whether the pod is being destroyed.
#[must_use]
pub fn is_being_purged(pod: &Pod) -> bool {
    is_purging(pod).is_some()
}

fn refuse_purging(pod: &Pod) -> Result<(), Error> {
    match is_purging(pod) {
        None => Ok(()),
        Some(_) => Err(Error::conflict("pod-being-purged", "the pod is being purged", "create a new one")),
    }
}

/// Refuses what only a living pod can do.
fn require_living(pod: &Pod) -> Result<(), Error> {
    refuse_purging(pod)?;
    let undelete = "bring it back first: perennial pod undelete";
    match pod.desired {
        Desired::Archived => Err(Error::conflict("pod-archived", "the pod is archived", undelete)),
        Desired::Deleted => Err(Error::conflict("pod-deleted", "the pod is deleted", undelete)),
        Desired::Running | Desired::Paused | Desired::Stopped => Ok(()),
    }
}

/// A copy of the pod on which a new try begins: earlier failures are forgotten.
fn begin(pod: &Pod, order: &Order) -> Pod {
    Pod { failed: None, retry: Retry::default(), updated_at: order.now, ..pod.clone() }
}

/// Nothing to do: the answer is an operation that has ended well.
fn nothing_to_do(pod: Pod, kind: OperationKind, order: &Order) -> Decision {
    let mut done = operation(&pod, kind, order);
    done.state = OperationState::Succeeded;
    done.finished_at = Some(order.now);
    Decision::new(pod, Answer::New(Box::new(done)))
}

fn join(pod: Pod, operation: OperationId) -> Decision {
    Decision::new(pod, Answer::Join(operation))
}

/// Makes `desired` the goal; whatever was in work towards another one ends.
fn aim(pod: &Pod, desired: Desired, kind: OperationKind, accepted: Option<Acceptance>, order: &Order) -> Decision {
    let mut next = begin(pod, order);
    let mut superseded = Vec::new();
    let mut dropped = Vec::new();
    let released = is_released(pod);
    let previous = match &pod.goal {
        // What a failed or cancelled goal goes back to is the last state that was reached, not one that was on its way.
        Some(goal) if !released => goal.previous,
        _ => pod.desired,
    };
    if let Some(goal) = next.goal.take() {
        let state = if released { OperationState::Succeeded } else { OperationState::Cancelled };
        superseded.push(Superseded { operation: goal.operation, state });
    }
    if !(pod.desired.releases_host() && desired.releases_host()) {
        dropped.extend(next.capture.take());
    }
    // Work that could only fail from here on ends now, and says so.
    next.tasks.retain(|task| {
        let pointless = match task.work {
            Work::Restart { .. } => desired != Desired::Running,
            Work::Snapshot { snapshot, .. } => {
                if desired.releases_host() {
                    dropped.push(snapshot);
                }
                desired.releases_host()
            }
            Work::Replace { .. } | Work::Import { .. } | Work::Purge { .. } => false,
        };
        if pointless {
            superseded.push(Superseded { operation: task.operation, state: OperationState::Cancelled });
        }
        !pointless
    });
    if released && desired == Desired::Running {
        // The times that passed meanwhile had nothing to take.
        next.scheduled_until = Some(order.now);
    }
    next.desired = desired;
    next.goal = Some(Goal { operation: order.operation, kind, previous, accepted });
    let answer = Answer::New(Box::new(operation(&next, kind, order)));
    Decision { superseded, dropped, ..Decision::new(next, answer) }
}

/// Asks for a desired state: nothing to do when it is reached, joins when it is on its way.
fn reach(pod: &Pod, desired: Desired, kind: OperationKind, accepted: Option<Acceptance>, order: &Order) -> Decision {
    if pod.desired != desired {
        return aim(pod, desired, kind, accepted, order);
    }
    let mut next = begin(pod, order);
    let Some(goal) = &mut next.goal else { return nothing_to_do(next, kind, order) };
    if accepted.is_some() {
        goal.accepted = accepted;
    }
    let operation = goal.operation;
    join(next, operation)
}

/// Starts a paused or stopped pod; before the commit of a stop it cancels the stop (D30).
///
/// # Errors
/// [`Error::Conflict`] when the pod is archived, deleted or being purged.
pub fn start(pod: &Pod, order: &Order) -> Result<Decision, Error> {
    require_living(pod)?;
    let mut fresh = pod.clone();
    fresh.crash = CrashLoop { last: fresh.crash.last.take(), ..CrashLoop::default() };
    if fresh.desired == Desired::Running && fresh.goal.is_none() && fresh.phase != Phase::Running {
        // It should run and does not: somebody waits for it from now on.
        return Ok(aim(&fresh, Desired::Running, OperationKind::Start, None, order));
    }
    Ok(reach(&fresh, Desired::Running, OperationKind::Start, None, order))
}

/// Stops the container and keeps everything on the host.
///
/// # Errors
/// [`Error::Conflict`] when the host was released, or the pod is archived, deleted or being purged.
pub fn pause(pod: &Pod, order: &Order) -> Result<Decision, Error> {
    require_living(pod)?;
    if is_released(pod) {
        return Err(Error::conflict(
            "pod-stopped",
            "the pod is stopped, so there is nothing on the host to keep",
            "start it first: perennial pod start",
        ));
    }
    Ok(reach(pod, Desired::Paused, OperationKind::Pause, None, order))
}

/// Captures, verifies, releases the host; a pod with `onStop: pause` is paused instead (D31).
///
/// # Errors
/// [`Error::Conflict`] when the pod is archived, deleted or being purged.
pub fn stop(pod: &Pod, accepted: Option<Acceptance>, order: &Order) -> Result<Decision, Error> {
    require_living(pod)?;
    let desired = match pod.spec.on_stop {
        OnStop::Pause if !is_released(pod) => Desired::Paused,
        OnStop::Pause | OnStop::Release => Desired::Stopped,
    };
    Ok(reach(pod, desired, OperationKind::Stop, accepted, order))
}

/// Stops and hides the pod, kept without a clock.
///
/// # Errors
/// [`Error::Conflict`] when the pod is deleted or being purged.
pub fn archive(pod: &Pod, accepted: Option<Acceptance>, order: &Order) -> Result<Decision, Error> {
    refuse_purging(pod)?;
    if pod.desired == Desired::Deleted {
        require_living(pod)?;
    }
    let mut decision = reach(pod, Desired::Archived, OperationKind::Archive, accepted, order);
    if pod.desired != Desired::Archived {
        decision.pod.trash = Some(Trash { deleted_at: order.now, purge_at: None, actor: order.actor.clone() });
    }
    Ok(decision)
}

/// Stops and hides the pod; its data is destroyed when the undelete window has passed.
///
/// # Errors
/// [`Error::Conflict`] when the pod is being purged.
pub fn delete(
    pod: &Pod,
    window: SignedDuration,
    accepted: Option<Acceptance>,
    order: &Order,
) -> Result<Decision, Error> {
    refuse_purging(pod)?;
    let mut decision = reach(pod, Desired::Deleted, OperationKind::Delete, accepted, order);
    if pod.desired != Desired::Deleted {
        // A window that no calendar can hold is as good as none: without a time nothing is purged.
        let purge_at = order.now.checked_add(window).ok();
        decision.pod.trash = Some(Trash { deleted_at: order.now, purge_at, actor: order.actor.clone() });
    }
    Ok(decision)
}

/// Brings an archived or deleted pod back to stopped (D38).
///
/// # Errors
/// [`Error::Conflict`] when the pod is neither, or being purged.
pub fn undelete(pod: &Pod, order: &Order) -> Result<Decision, Error> {
    refuse_purging(pod)?;
    if !matches!(pod.desired, Desired::Archived | Desired::Deleted) {
        return Err(Error::conflict("pod-not-deleted", "the pod is neither archived nor deleted", ""));
    }
    let mut decision = aim(pod, Desired::Stopped, OperationKind::Undelete, None, order);
    if let Some(goal) = &mut decision.pod.goal
        && matches!(goal.previous, Desired::Archived | Desired::Deleted)
    {
        goal.previous = Desired::Stopped;
    }
    decision.pod.trash = None;
    Ok(decision)
}

fn push(pod: &Pod, kind: OperationKind, work: Work, order: &Order) -> Result<Decision, Error> {
    if pod.tasks.len() >= TASKS_MAX {
        return Err(Error::conflict(
            "too-much-queued",
            format!("{TASKS_MAX} operations wait on this pod already"),
            "wait for them, or cancel some: perennial op cancel",
        ));
    }
    let mut next = begin(pod, order);
    next.tasks.push(Task { operation: order.operation, work });
    let answer = Answer::New(Box::new(operation(&next, kind, order)));
    Ok(Decision::new(next, answer))
}

/// Stops and starts the container; a changed specification is applied.
///
/// # Errors
/// [`Error::Conflict`] when the pod is not meant to run.
pub fn restart(pod: &Pod, order: &Order) -> Result<Decision, Error> {
    require_living(pod)?;
    if pod.desired != Desired::Running {
        return Err(Error::conflict(
            "pod-not-running",
            "the pod is not meant to run, so it cannot be restarted",
            "start it: perennial pod start",
        ));
    }
    push(pod, OperationKind::Restart, Work::Restart { before: None }, order)
}

fn replace(
    pod: &Pod,
    kind: OperationKind,
    (origin, parts): (Origin, Option<Parts>),
    accepted: Option<Acceptance>,
    order: &Order,
) -> Result<Decision, Error> {
    require_living(pod)?;
    let work = Work::Replace {
        origin,
        parts,
        composed: None,
        safety: None,
        old: None,
        new: None,
        layer: None,
        switched: false,
        accepted,
    };
    let mut decision = push(pod, kind, work, order)?;
    if let (Origin::Snapshot(id), Answer::New(operation)) = (origin, &mut decision.answer) {
        operation.snapshot = Some(id);
        decision.uses.push(id);
    }
    Ok(decision)
}

/// Replaces the data set by a fresh one, as the image has it, after a safety snapshot (D8).
///
/// # Errors
/// [`Error::Conflict`] when the pod is archived, deleted or being purged.
pub fn reset(pod: &Pod, accepted: Option<Acceptance>, order: &Order) -> Result<Decision, Error> {
    replace(pod, OperationKind::Reset, (Origin::Image, None), accepted, order)
}

/// Takes a snapshot of a pod whose data is on the host.
///
/// # Errors
/// [`Error::Conflict`] when the host is, or is about to be, released: the final snapshot holds the data then.
pub fn snapshot(pod: &Pod, id: SnapshotId, accepted: Option<Acceptance>, order: &Order) -> Result<Decision, Error> {
    require_living(pod)?;
    if pod.desired.releases_host() {
        return Err(Error::conflict(
            "pod-released",
            "the pod is stopped, or stopping: its final snapshot holds the data",
            "list it: perennial snapshot ls",
        ));
    }
    let mut decision = push(pod, OperationKind::Snapshot, Work::Snapshot { snapshot: id, accepted }, order)?;
    decision.snapshot = Some(Snapshot::pending(id, pod.id, pod.tenant.clone(), SnapshotKind::Manual, order.now));
    if let Answer::New(operation) = &mut decision.answer {
        operation.snapshot = Some(id);
    }
    Ok(decision)
}

/// Takes the snapshot that the schedule asks for, and records that everything up to `until` is done.
///
/// # Errors
/// [`Error::Conflict`] when the pod is archived, deleted or being purged, or its host is released.
pub fn scheduled_snapshot(pod: &Pod, id: SnapshotId, until: Timestamp, order: &Order) -> Result<Decision, Error> {
    let mut decision = snapshot(pod, id, None, order)?;
    // Nobody asked: what went wrong before stays visible, and a failed step waits for its own time.
    decision.pod.failed.clone_from(&pod.failed);
    decision.pod.retry.clone_from(&pod.retry);
    decision.pod.scheduled_until = Some(until);
    if let Some(row) = &mut decision.snapshot {
        row.kind = SnapshotKind::Scheduled;
    }
    Ok(decision)
}

/// Makes a snapshot of an archive that was received; nothing of the pod changes by it.
///
/// # Errors
/// [`Error::Conflict`] when the pod is archived, deleted or being purged, or has never had an image.
pub fn import(pod: &Pod, id: SnapshotId, import: Import, order: &Order) -> Result<Decision, Error> {
    require_living(pod)?;
    if pod.image.is_none() {
        return Err(Error::conflict(
            "pod-without-image",
            "the pod was never started, so nobody knows what its image has",
            "start it once: perennial pod start",
        ));
    }
    let mut decision = push(pod, OperationKind::SnapshotImport, Work::Import { snapshot: id, import }, order)?;
    // What went wrong with the pod itself stays visible, and a failed step waits for its own time.
    decision.pod.failed.clone_from(&pod.failed);
    decision.pod.retry.clone_from(&pod.retry);
    decision.snapshot = Some(Snapshot::pending(id, pod.id, pod.tenant.clone(), SnapshotKind::Imported, order.now));
    if let Answer::New(operation) = &mut decision.answer {
        operation.snapshot = Some(id);
    }
    Ok(decision)
}

/// Destroys the pod, its data and its snapshots; everything else in work ends.
///
/// # Errors
/// None today; the signature is that of every verb.
pub fn purge(pod: &Pod, order: &Order) -> Result<Decision, Error> {
    if let Some(operation) = is_purging(pod) {
        return Ok(join(begin(pod, order), operation));
    }
    let mut next = begin(pod, order);
    let mut superseded: Vec<Superseded> = Vec::new();
    let cancelled = |operation| Superseded { operation, state: OperationState::Cancelled };
    superseded.extend(next.goal.take().map(|g| cancelled(g.operation)));
    superseded.extend(next.tasks.drain(..).map(|t| cancelled(t.operation)));
    next.capture = None;
    next.desired = Desired::Deleted;
    // The window ends with the confirmation; a crash before the task is done finds it due.
    next.trash = Some(Trash { deleted_at: order.now, purge_at: Some(order.now), actor: order.actor.clone() });
    let work = Work::Purge { actor: order.actor.clone(), at: order.now };
    next.tasks.push(Task { operation: order.operation, work });
    let answer = Answer::New(Box::new(operation(&next, OperationKind::Purge, order)));
    Ok(Decision { superseded, ..Decision::new(next, answer) })
}

/// Changes the specification; a restart applies it. `None` when nothing differs.
///
/// # Errors
/// [`Error::InvalidInput`] naming the field; [`Error::Conflict`] when the pod is archived, deleted or being purged.
pub fn patch(pod: &Pod, spec: PodSpec, now: Timestamp) -> Result<Option<Pod>, Error> {
    require_living(pod)?;
    spec.validate()?;
    if spec.image != pod.spec.image || spec.profile != pod.spec.profile || spec.backend != pod.spec.backend {
        // D11: the data depends on these.
        return Err(Error::conflict(
            "spec-field-fixed",
            "image, volumes and backend are fixed while the pod has data",
            "create another pod",
        ));
    }
    if spec == pod.spec {
        return Ok(None);
    }
    // When what the container is made from is the same, nothing has to be restarted.
    let same_container = spec.of_container() == pod.spec.of_container();
    let spec_generation = pod.spec_generation + u64::from(!same_container);
    // A new schedule begins now; times that it would have had before are not made up.
    let scheduled_until = if spec.snapshots == pod.spec.snapshots { pod.scheduled_until } else { Some(now) };
    // What was answered to another question says nothing about this one.
    let health = pod.health.clone().filter(|_| spec.health == pod.spec.health);
    Ok(Some(Pod { spec, spec_generation, scheduled_until, health, updated_at: now, ..pod.clone() }))
}

/// The pod, so that whatever is in work on it leads to rest, also when it fails or is cancelled.
#[must_use]
pub fn to_rest(mut pod: Pod) -> Pod {
    let at_rest = if pod.ever_ran() { Desired::Paused } else { Desired::Stopped };
    if let Some(goal) = pod.goal.as_mut().filter(|goal| goal.previous == Desired::Running) {
        goal.previous = at_rest;
    }
    pod
}

/// A pod that became one of another plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Adapted {
    /// Nothing has to be done for it now.
    Already(Box<Pod>),
    /// It runs, and its container has to be made anew.
    Restarts(Box<Decision>),
}

/// Makes the pod one of another plan: the specification changes, also in the sizes of volumes. `None` when nothing differs.
///
/// # Errors
/// [`Error::Conflict`] for a plan of another image or other volumes, and as [`patch`] and [`restart`] say.
pub fn adapt(pod: &Pod, spec: PodSpec, order: &Order) -> Result<Option<Adapted>, Error> {
    if spec.image != pod.spec.image || !spec.profile.has_volumes_of(&pod.spec.profile) {
        return Err(Error::conflict(
            "plan-of-other-data",
            "the plan is of another image, or of other volumes, which the pod's data does not fit",
            "subscribe to that plan, and bring over what you need",
        ));
    }
    let resized = Pod { spec: PodSpec { profile: spec.profile.clone(), ..pod.spec.clone() }, ..pod.clone() };
    let next = match patch(&resized, spec, order.now)? {
        Some(next) => next,
        None if resized.spec == pod.spec => return Ok(None),
        None => Pod { updated_at: order.now, ..resized },
    };
    if next.spec_generation != pod.spec_generation && next.desired == Desired::Running {
        return Ok(Some(Adapted::Restarts(Box::new(restart(&next, order)?))));
    }
    Ok(Some(Adapted::Already(Box::new(next))))
}

/// What a cancelled operation leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cancelled {
    /// The pod as it is to be stored.
    pub pod: Pod,
    /// Captures nobody waits for any more.
    pub dropped: Vec<SnapshotId>,
}

/// Cancels an operation that has not passed its point of no return.
///
/// # Errors
/// [`Error::Conflict`] when it has ended or cannot be taken back.
pub fn cancel(pod: &Pod, target: &Operation, now: Timestamp) -> Result<Cancelled, Error> {
    if target.state.is_terminal() {
        return Err(Error::conflict("operation-ended", "the operation has ended", ""));
    }
    let committed = || {
        Error::conflict(
            "operation-committed",
            format!("the {} can no longer be taken back", target.kind.as_str()),
            "wait for its end: perennial op wait",
        )
    };
    let mut next = Pod { retry: Retry::default(), updated_at: now, ..pod.clone() };
    let mut dropped = Vec::new();
    if let Some(goal) = next.goal.take_if(|g| g.operation == target.id) {
        if goal.kind == OperationKind::Undelete || (is_released(pod) && pod.ever_ran()) {
            return Err(committed());
        }
        dropped.extend(next.capture.take());
        // The next start of a clone puts a new snapshot together.
        dropped.extend(next.fork.as_mut().and_then(|fork| fork.composed.take()).map(|c| c.snapshot));
        // A pod that never came to be leaves nothing behind (D5).
        let copied = goal.kind == OperationKind::Clone && pod.sets.iter().all(|set| set.marked.is_none());
        let never_made = goal.kind.makes_pod() && (!pod.ever_ran() || copied);
        next.desired = if never_made { Desired::Stopped } else { goal.previous };
        if matches!(goal.kind, OperationKind::Archive | OperationKind::Delete) {
            next.trash = match (next.desired, next.trash.take()) {
                (Desired::Archived, Some(trash)) => Some(Trash { purge_at: None, ..trash }),
                _ => None,
            };
        }
        return Ok(Cancelled { pod: next, dropped });
    }
    let Some(position) = next.tasks.iter().position(|t| t.operation == target.id) else { return Err(committed()) };
    match &next.tasks[position].work {
        Work::Purge { .. } | Work::Replace { switched: true, .. } => return Err(committed()),
        Work::Snapshot { snapshot, .. } | Work::Import { snapshot, .. } => dropped.push(*snapshot),
        Work::Replace { safety, new, composed, .. } => {
            dropped.extend(*safety);
            dropped.extend(composed.map(|c| c.snapshot));
            // The half-made replacement never ran and is nobody's data.
            let new = *new;
            for set in next.sets.iter_mut().filter(|s| Some(s.number) == new) {
                set.state = SetState::Retired;
            }
        }
        Work::Restart { .. } => {}
    }
    next.tasks.remove(position);
    Ok(Cancelled { pod: next, dropped })
}

/// Whether the pod would lose data, or work in progress, without this snapshot (D37).
#[must_use]
pub fn depends_on(pod: &Pod, snapshot: SnapshotId) -> bool {
    let of_task = |task: &Task| match &task.work {
        Work::Replace { origin, safety, composed, .. } => {
            let composes = |c: &Composed| c.snapshot == snapshot || c.base == snapshot;
            *origin == Origin::Snapshot(snapshot)
                || *safety == Some(snapshot)
                || composed.as_ref().is_some_and(composes)
        }
        Work::Snapshot { snapshot: taken, .. } | Work::Import { snapshot: taken, .. } => *taken == snapshot,
        Work::Restart { .. } | Work::Purge { .. } => false,
    };
    let of_fork = pod.fork.and_then(|fork| fork.composed);
    pod.source == Some(Origin::Snapshot(snapshot))
        || of_fork.is_some_and(|c| c.snapshot == snapshot)
        || pod.capture == Some(snapshot)
        || pod.sets.iter().any(|s| s.proof == Some(snapshot))
        || pod.tasks.iter().any(of_task)
}

#[cfg(test)]
mod tests;
