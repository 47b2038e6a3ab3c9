//! Replacing a data set as one: reset (from the image) and restore (from a snapshot).
//!
//! The old set is captured first, stays until the new one runs, and then goes with the capture as its proof.

use super::{Action, Input, Next, data_problem, leftovers, problem, release, run, snapshot};
use crate::pod::{Desired, Work};
use crate::record::Record;
use crate::snapshot::SnapshotKind;
use crate::volume::{Origin, SetState, VolumeSet};

pub(super) fn replace(input: &Input<'_>) -> Next {
    let Some(Work::Replace { origin, safety, new, switched, accepted, .. }) = input.pod.tasks.first().map(|t| &t.work)
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
    let Some(current) = input.pod.current_set() else { return replace_source(input, *origin) };
    let chosen = safety.and_then(|id| snapshot(input, id));
    let accepted_paths = accepted.as_ref().map(|a| a.paths.as_slice());
    let lost = data_problem(input, current);
    let never_ran = !release::may_hold_data(input, current);
    let restoring_lost = lost.is_some() && matches!(origin, Origin::Snapshot(_)) && accepted_paths.is_none();
    if !never_ran && !restoring_lost {
        match release::capture(input, current, chosen, accepted_paths, SnapshotKind::Safety) {
            release::Progress::Step(next) => return next,
            release::Progress::Done(_) => {}
        }
    } else if let Some(step) = run::stop_live(input) {
        return step;
    }
    match new.and_then(|n| input.pod.set(n)) {
        None => Next::Act(Action::AllocateSet { origin: *origin }),
        Some(set) if set.state == SetState::Preparing => Next::Act(Action::FillSet { set: set.number }),
        Some(set) => switch_or_refill(input, set),
    }
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
