//! Replacing a data set as one: reset (from the image) and restore (from a snapshot).
//!
//! The old set is captured first, stays until the new one runs, and then goes with the capture as its proof. A restore of
//! parts is a restore of a snapshot that is put together for it: the capture, with the parts of the wanted one.

use super::compose::{self, Progress};
use super::{Action, Input, Next, data_problem, leftovers, problem, release, run, snapshot};
use crate::id::SnapshotId;
use crate::pod::{Desired, Work};
use crate::record::Record;
use crate::snapshot::SnapshotKind;
use crate::volume::{Origin, SetState, VolumeSet};

pub(super) fn replace(input: &Input<'_>) -> Next {
    let Some(Work::Replace { origin, parts, composed, safety, new, switched, accepted, .. }) =
        input.pod.tasks.first().map(|t| &t.work)
    else {
        return Next::Settled { wake: None };
    };
    if let Origin::Snapshot(id) = origin
        && !*switched
        && !snapshot(input, *id).is_some_and(crate::snapshot::Snapshot::is_restorable)
    {
        return Next::Blocked(problem(
            "snapshot-not-restorable",
            format!("snapshot {id} is not verified or no longer exists"),
            "choose another: perennial snapshot ls",
        ));
    }
    if *switched {
        return after_switch(input);
    }
    if input.pod.image.is_none() {
        return Next::Act(Action::PinImage);
    }
    let of_source = match input.pod.source {
        Some(Origin::Snapshot(id)) => Some(id),
        _ => None,
    };
    let Some(current) = input.pod.current_set() else {
        if composed.is_some_and(|c| of_source == Some(c.snapshot)) {
            return Next::Act(Action::Record(Record::TaskDone));
        }
        return match with_parts(input, of_source) {
            Some(Progress::Step(next)) => next,
            Some(Progress::Done(composed)) => replace_source(input, Origin::Snapshot(composed)),
            None => replace_source(input, *origin),
        };
    };
    let chosen = safety.and_then(|id| snapshot(input, id));
    let accepted_paths = accepted.as_ref().map(|a| a.paths.as_slice());
    let lost = data_problem(input, current);
    let never_ran = !release::may_hold_data(input, current);
    let whole = matches!(origin, Origin::Snapshot(_)) && parts.is_none();
    let restoring_lost = lost.is_some() && whole && accepted_paths.is_none();
    let mut base = of_source;
    if !never_ran && !restoring_lost {
        match release::capture(input, current, chosen, accepted_paths, SnapshotKind::Safety) {
            release::Progress::Step(next) => return next,
            release::Progress::Done(safety) => base = Some(safety.id),
        }
    } else if let Some(step) = run::stop_live(input) {
        return step;
    }
    let origin = match with_parts(input, base) {
        Some(Progress::Step(next)) => return next,
        Some(Progress::Done(composed)) => Origin::Snapshot(composed),
        None => *origin,
    };
    // A set of another origin is of a past safety snapshot: somebody wrote since.
    match new.and_then(|n| input.pod.set(n)).filter(|set| set.origin == origin) {
        None => Next::Act(Action::AllocateSet { origin }),
        Some(set) if set.state == SetState::Preparing => Next::Act(Action::FillSet { set: set.number }),
        Some(set) => switch_or_refill(input, set),
    }
}

/// The snapshot that is put together for a restore of parts; `None` when everything is replaced.
fn with_parts(input: &Input<'_>, base: Option<SnapshotId>) -> Option<Progress> {
    let Some(Work::Replace { origin: Origin::Snapshot(wanted), parts: Some(parts), composed, .. }) =
        input.pod.tasks.first().map(|t| &t.work)
    else {
        return None;
    };
    let Some(base) = base else {
        return Some(Progress::Step(Next::Blocked(problem(
            "pod-never-ran",
            "the pod never ran and has no data of its own that parts could be put into".to_owned(),
            "leave out volumes and paths to restore everything, or start the pod first",
        ))));
    };
    Some(compose::parts(input, (*wanted, parts), base, *composed))
}

/// Switches to the filled set; one that vanished since it was filled is filled again.
fn switch_or_refill(input: &Input<'_>, set: &VolumeSet) -> Next {
    if data_problem(input, set).is_some() {
        return Next::Act(Action::FillSet { set: set.number });
    }
    Next::Act(Action::Record(Record::Switched))
}

/// A released pod has nothing on the host: only what its next start reads changes.
fn replace_source(input: &Input<'_>, origin: Origin) -> Next {
    if input.pod.source == Some(origin) {
        return Next::Act(Action::Record(Record::TaskDone));
    }
    leftovers::remove(input, leftovers::Keep::Nothing)
        .unwrap_or(Next::Act(Action::Record(Record::SourceReplaced(origin))))
}

fn after_switch(input: &Input<'_>) -> Next {
    let step = match input.pod.desired {
        Desired::Running => run::run(input),
        Desired::Paused => run::pause(input),
        Desired::Stopped | Desired::Archived | Desired::Deleted => Next::Settled { wake: None },
    };
    match step {
        Next::Settled { .. } => leftovers::remove(input, leftovers::Keep::OnlyCurrent)
            .unwrap_or(Next::Act(Action::Record(Record::TaskDone))),
        other => other,
    }
}
