//! Every lifecycle decision, as data: what is recorded and what is seen go in, the next action comes out.
//!
//! [`plan`] is total and pure. It returns **one** action at a time; the executor carries it out, records the result,
//! observes anew and asks again. A crash between any two steps therefore needs no recovery code: the next pass sees
//! what is there and goes on. Deletions carry a [`DeletePermit`], and this is the only place that asks for one.
//!
//! Order of decisions in a pass: a purge, a frozen leftover, an owed hook, a foreign writer, a replacement in work, the desired
//! state (`run`, `release`, pause), then other one-time work.

mod compose;
mod conditions;
mod hook;
mod leftovers;
mod release;
mod replace;
mod run;
mod work;

#[cfg(test)]
mod tests;

pub use conditions::retrying;

use jiff::{SignedDuration, Timestamp};

use crate::engine::{ContainerState, ObservedPod, Presence};
use crate::id::SnapshotId;
use crate::operation::Problem;
use crate::parts::Parts;
use crate::permit::DeletePermit;
use crate::pod::{ConditionKind, Desired, Identity, Phase, Pod, Work};
use crate::record::Record;
use crate::snapshot::{Grade, Snapshot, SnapshotKind};
use crate::spec::Resources;
use crate::volume::{Origin, SetNumber, VolumeSet};

/// Everything a decision may depend on.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// What is recorded.
    pub pod: &'a Pod,
    /// What the engine shows.
    pub observed: &'a ObservedPod,
    /// The snapshot rows the pod refers to (see [`referenced_snapshots`]).
    pub snapshots: &'a [Snapshot],
    /// Snapshots whose live pass was done by this process; it only saves work, so it is not recorded.
    pub live_passed: &'a [SnapshotId],
    /// When the system layer was last looked at by this process.
    pub layer_checked: Option<Timestamp>,
    /// Whether the pod's runtime hides changes outside volumes, so that nobody can capture them.
    pub layer_hidden: bool,
    /// Knobs.
    pub policy: &'a Policy,
    /// The present time.
    pub now: Timestamp,
}

/// Knobs of the lifecycle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// How often the system layer of a running pod is captured; default five minutes.
    pub layer_interval: SignedDuration,
    /// How long a container has to run until earlier crashes are forgotten; default ten minutes.
    pub stable_after: SignedDuration,
    /// How long it takes until limits that the engine refused are tried again; default ten minutes.
    pub limits_retry: SignedDuration,
    /// How long a pod may stand still for one snapshot before it is let go on and the snapshot given up; default 30 s.
    pub freeze_limit: SignedDuration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            layer_interval: SignedDuration::from_mins(5),
            stable_after: SignedDuration::from_mins(10),
            limits_retry: SignedDuration::from_mins(10),
            freeze_limit: SignedDuration::from_secs(30),
        }
    }
}

/// What to do next, and what to show meanwhile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The next step.
    pub next: Next,
    /// The phase to show.
    pub phase: Phase,
    /// What is worth knowing.
    pub conditions: Vec<Finding>,
}

/// A condition before it has a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What it is about.
    pub kind: ConditionKind,
    /// Machine-readable cause.
    pub reason: &'static str,
    /// One sentence for people.
    pub message: String,
}

/// The next step.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "one value per pass; boxing would only blur the patterns")]
pub enum Next {
    /// Do this, then ask again.
    Act(Action),
    /// Nothing to do until something changes, or until this time.
    Settled {
        /// When to look again at the latest; `None` leaves it to periodic observation.
        wake: Option<Timestamp>,
    },
    /// Nothing to do here until something else is done, which is not this pod's work.
    Wait {
        /// When to look again.
        until: Timestamp,
    },
    /// What is asked for cannot be done: the world has to change, or its owner has to decide.
    Blocked(Problem),
}

/// One step, carried out without an opinion.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "one value per pass; boxing would only blur the patterns")]
pub enum Action {
    /// Resolve the image reference, pulling it when the engine lacks it.
    PinImage,
    /// Choose backend and layout of a new set and record it.
    AllocateSet {
        /// Where its content will come from.
        origin: Origin,
    },
    /// Make the set's volumes, fill them from its origin, mark them complete.
    FillSet {
        /// Which set.
        set: SetNumber,
    },
    /// Make the container and put the system layer back.
    MakeContainer {
        /// The set to attach.
        set: SetNumber,
    },
    /// Commit the attach, then start.
    Launch {
        /// The container.
        container: String,
        /// Its set.
        set: SetNumber,
    },
    /// Limit what the set may take, or take the limit away.
    LimitSet {
        /// The set.
        set: SetNumber,
        /// Bytes; `None` is no limit.
        bytes: Option<u64>,
    },
    /// Give the container these limits, whether it runs or not.
    LimitContainer {
        /// The container.
        container: String,
        /// Those of a container.
        limits: Resources,
    },
    /// Stop the container, gracefully first.
    Stop {
        /// The container.
        container: String,
    },
    /// Let a frozen container go on.
    Unfreeze {
        /// The container.
        container: String,
    },
    /// Run the hook that is owed.
    RunHook {
        /// The container.
        container: String,
    },
    /// Upload what is there while the pod runs, so that little is left for the capture.
    LivePass {
        /// The snapshot it prepares.
        snapshot: SnapshotId,
        /// The set.
        set: SetNumber,
    },
    /// Capture the data set at one instant and upload it.
    Capture {
        /// The snapshot.
        snapshot: SnapshotId,
        /// The set.
        set: SetNumber,
        /// Stopped, or frozen for the last pass.
        grade: Grade,
        /// Losses the owner accepted.
        accepted: Vec<String>,
    },
    /// Make the snapshot out of the archive that was received for it.
    Import {
        /// The snapshot.
        snapshot: SnapshotId,
    },
    /// Read back what the capture wrote.
    Verify {
        /// The snapshot.
        snapshot: SnapshotId,
    },
    /// Capture the system layer of a container.
    CaptureLayer {
        /// The container.
        container: String,
    },
    /// Remove the container.
    RemoveContainer {
        /// The container.
        container: String,
        /// Why it may go.
        permit: DeletePermit,
    },
    /// Delete a volume set.
    DeleteSet {
        /// Which.
        set: SetNumber,
        /// Why it may go.
        permit: DeletePermit,
    },
    /// Begin to put a snapshot together: make its row and record it.
    BeginCompose {
        /// The snapshot it is but for what is exchanged in it.
        base: SnapshotId,
    },
    /// Put a snapshot together in the repository.
    Compose {
        /// The new snapshot.
        snapshot: SnapshotId,
        /// Out of what.
        recipe: Recipe,
    },
    /// Begin a capture: make the snapshot row and record it.
    BeginCapture {
        /// Final or safety.
        kind: SnapshotKind,
    },
    /// Record a fact.
    Record(Record),
    /// Forget every snapshot of the pod, prune, and drop the pod's row.
    PurgeEverything {
        /// Why it may go.
        permit: DeletePermit,
    },
}

/// What a snapshot is put together out of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recipe {
    /// One with parts of another.
    Parts {
        /// What stays.
        base: SnapshotId,
        /// Where the parts come from.
        wanted: SnapshotId,
        /// Which.
        parts: Parts,
    },
    /// One that becomes the first of a clone.
    Fork {
        /// The clone's source.
        base: SnapshotId,
        /// What becomes of the source's identity.
        identity: Identity,
    },
}

/// The snapshot rows a plan for this pod may look at.
#[must_use]
pub fn referenced_snapshots(pod: &Pod) -> Vec<SnapshotId> {
    let mut ids: Vec<SnapshotId> = pod.capture.into_iter().collect();
    ids.extend(pod.hook.as_ref().map(|owed| owed.snapshot));
    let of_origin = |origin: &Origin| match origin {
        Origin::Snapshot(id) => Some(*id),
        Origin::Image | Origin::Pod { .. } => None,
    };
    ids.extend(pod.source.as_ref().and_then(of_origin));
    ids.extend(pod.fork.and_then(|fork| fork.composed).map(|c| c.snapshot));
    for set in &pod.sets {
        ids.extend(set.proof);
        ids.extend(of_origin(&set.origin));
    }
    for task in &pod.tasks {
        match &task.work {
            Work::Replace { origin, safety, composed, .. } => {
                ids.extend(*safety);
                ids.extend(composed.iter().flat_map(|c| [c.snapshot, c.base]));
                ids.extend(of_origin(origin));
            }
            Work::Snapshot { snapshot, .. } | Work::Import { snapshot, .. } => ids.push(*snapshot),
            Work::Restart { .. } | Work::Purge { .. } => {}
        }
    }
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// Decides the next step for one pod.
#[must_use]
pub fn plan(input: Input<'_>) -> Plan {
    let mut next = decide(&input);
    let mut conditions = conditions::findings(&input);
    if let Next::Blocked(problem) = &next {
        let blocked = conditions::of_block(problem).filter(|f| conditions.iter().all(|c| c.kind != f.kind));
        conditions.extend(blocked);
        // An operation that waits for the impossible ends now; the desired state is kept and tried again when the
        // world changes (a task or goal is the only thing that can end).
        if let Some(end) = failure_of(input.pod, problem) {
            next = Next::Act(Action::Record(end));
        }
    }
    let phase = conditions::phase(&input, &next);
    Plan { next, phase, conditions }
}

/// The record that ends the operation which waits for what cannot be done; `None` when nothing waits.
#[must_use]
pub fn failure_of(pod: &Pod, problem: &Problem) -> Option<Record> {
    let first = pod.tasks.first().map(|t| &t.work);
    let by_task = pod.goal.is_none() || matches!(first, Some(Work::Replace { .. } | Work::Purge { .. }));
    if by_task && first.is_some() {
        return Some(Record::TaskFailed(problem.clone()));
    }
    pod.goal.as_ref().map(|_| Record::GoalFailed(problem.clone()))
}

fn decide(input: &Input<'_>) -> Next {
    let first = input.pod.tasks.first().map(|t| &t.work);
    if let Some(Work::Purge { .. }) = first {
        return work::purge(input);
    }
    if let Some(container) = &input.observed.container
        && container.state == ContainerState::Frozen
    {
        return Next::Act(Action::Unfreeze { container: container.id.clone() });
    }
    // It needs nothing of the pod, so no trouble with the pod is a reason to wait; what is wanted of the pod goes first.
    if let Some(Work::Import { snapshot, .. }) = first
        && input.pod.goal.is_none()
    {
        return work::import(input, *snapshot);
    }
    if let Some(step) = hook::owed(input) {
        return step;
    }
    if !input.observed.foreign.is_empty() {
        return Next::Blocked(foreign_writer(&input.observed.foreign));
    }
    if let Some(Work::Replace { .. }) = first {
        return replace::replace(input);
    }
    let step = match input.pod.desired {
        Desired::Running => {
            // A restart in work decides itself when the old run has to end.
            if input.pod.goal.is_none()
                && let Some(Work::Restart { before }) = first
            {
                return work::restart(input, before.as_ref());
            }
            run::run(input)
        }
        Desired::Paused => run::pause(input),
        Desired::Stopped | Desired::Archived | Desired::Deleted => release::release(input),
    };
    match step {
        Next::Settled { .. } if input.pod.goal.is_some() => Next::Act(Action::Record(Record::GoalReached)),
        Next::Settled { wake } => work::one_time(input, wake),
        other => other,
    }
}

// ---- what several decisions share -----------------------------------------------------------------------------

fn snapshot<'a>(input: &Input<'a>, id: SnapshotId) -> Option<&'a Snapshot> {
    input.snapshots.iter().find(|s| s.id == id)
}

/// Whether the set's data is there, as a problem when it is not.
fn data_problem(input: &Input<'_>, set: &VolumeSet) -> Option<Problem> {
    let Some(observed) = input.observed.set(set.number) else {
        return Some(problem(
            "volume-state-unknown",
            "the engine did not tell whether the volumes are there".into(),
            "",
        ));
    };
    let since = input.pod.data_seen_at.map_or_else(|| "never".to_owned(), |t| t.to_string());
    match &observed.presence {
        Presence::Absent => Some(problem(
            "volume-data-lost",
            format!("the volumes of set {} are gone; data written after {since} would be missing", set.number),
            "bring the storage back, or restore a snapshot: perennial pod restore",
        )),
        Presence::Partial { missing } => Some(problem(
            "volume-data-partial",
            format!(
                "of set {} these are missing: {}; the data was last seen whole at {since}",
                set.number,
                missing.join(", ")
            ),
            "bring the storage back, or restore a snapshot: perennial pod restore",
        )),
        Presence::Whole => generation_problem(input, set, observed.generation),
    }
}

/// Whether data and database tell of different times (law 2 and D15).
fn generation_problem(input: &Input<'_>, set: &VolumeSet, seen: Option<u64>) -> Option<Problem> {
    let seen = seen?;
    if set.marked.is_some_and(|marked| seen < marked) {
        return Some(problem(
            "data-older-than-recorded",
            format!(
                "the volumes carry data generation {seen}, older than the recorded {}",
                set.marked.unwrap_or_default()
            ),
            "bring the newest storage back, or restore a snapshot",
        ));
    }
    if seen > input.pod.data_generation {
        return Some(problem(
            "database-older-than-data",
            format!(
                "the volumes carry data generation {seen}, newer than the database's {}",
                input.pod.data_generation
            ),
            "bring the newest database back; nothing was changed",
        ));
    }
    None
}

fn problem(code: &str, message: String, hint: &str) -> Problem {
    Problem { code: code.to_owned(), message, hint: hint.to_owned() }
}

fn foreign_writer(ids: &[String]) -> Problem {
    problem(
        "foreign-writer",
        format!("others use this pod's volumes: {}", ids.join(", ")),
        "remove those containers, end those processes; Perennial touches nothing while they exist",
    )
}
