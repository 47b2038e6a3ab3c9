//! What is no longer the pod's data, and the proof that lets it go.

use super::{Action, Input, Next, snapshot};
use crate::engine::{ObservedContainer, Presence};
use crate::permit::DeletePermit;
use crate::pod::{Acceptance, Work};
use crate::record::Record;
use crate::snapshot::Snapshot;
use crate::volume::{SetNumber, SetState, VolumeSet};

/// Which sets are no leftovers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    /// The pod's data is in the repository: whatever is on the host goes.
    Nothing,
    /// The current set, and the retired ones until the new one runs.
    Current,
    /// Only the current set.
    OnlyCurrent,
}

/// The next removal, or `None` when nothing is left over.
pub(super) fn remove(input: &Input<'_>, keep: Keep) -> Option<Next> {
    if let Some(container) = &input.observed.container {
        let misplaced = keep == Keep::Nothing || input.pod.current != Some(container.set);
        if misplaced {
            return Some(remove_container(input, container));
        }
    } else if keep == Keep::Nothing && input.pod.container.is_some() {
        return Some(Next::Act(Action::Record(Record::ContainerGone)));
    }
    if keep == Keep::Current {
        return None;
    }
    let replacing = match input.pod.tasks.first().map(|t| &t.work) {
        Some(Work::Replace { new, .. }) => *new,
        _ => None,
    };
    let left_over = |s: &&VolumeSet| {
        Some(s.number) != input.pod.current && Some(s.number) != replacing && s.state != SetState::Quarantined
    };
    input.pod.sets.iter().find(left_over).map(|set| remove_set(input, set))
}

/// Removes the container with the best proof there is; captures its system layer when there is none.
pub(super) fn remove_container(input: &Input<'_>, container: &ObservedContainer) -> Next {
    if container.is_live() {
        return Next::Act(Action::Stop { container: container.id.clone() });
    }
    let proof = input.pod.set(container.set).and_then(|s| s.proof).and_then(|id| snapshot(input, id));
    match container_permit(input, proof) {
        Some(permit) => Next::Act(Action::RemoveContainer { container: container.id.clone(), permit }),
        None => Next::Act(Action::CaptureLayer { container: container.id.clone() }),
    }
}

fn container_permit(input: &Input<'_>, proof: Option<&Snapshot>) -> Option<DeletePermit> {
    let (pod, observed) = (input.pod, input.observed);
    DeletePermit::never_started_container(pod, observed)
        .or_else(|_| DeletePermit::container_without_data(pod, observed))
        .or_else(|denied| proof.map_or(Err(denied), |s| DeletePermit::captured_container(pod, s, observed)))
        .or_else(|denied| match (proof, acceptance(input)) {
            (Some(s), Some(accepted)) => DeletePermit::accepted_container(pod, s, accepted, observed),
            _ => Err(denied),
        })
        .or_else(|denied| {
            pod.layer.as_ref().map_or(Err(denied), |l| DeletePermit::layer_captured_container(pod, l, observed))
        })
        .ok()
}

fn remove_set(input: &Input<'_>, set: &VolumeSet) -> Next {
    let gone = input.observed.set(set.number).is_some_and(|s| s.presence == Presence::Absent);
    if gone {
        return Next::Act(Action::Record(Record::SetGone(set.number)));
    }
    match set_permit(input, set.number, set.proof) {
        Some(permit) => Next::Act(Action::DeleteSet { set: set.number, permit }),
        None => Next::Act(Action::Record(Record::SetQuarantined(set.number))),
    }
}

fn set_permit(input: &Input<'_>, set: SetNumber, proof: Option<crate::id::SnapshotId>) -> Option<DeletePermit> {
    let (pod, observed) = (input.pod, input.observed);
    let proof = proof.and_then(|id| snapshot(input, id));
    DeletePermit::never_started_set(pod, set, observed)
        .or_else(|denied| proof.map_or(Err(denied), |s| DeletePermit::captured_set(pod, set, s, observed)))
        .or_else(|denied| match (proof, acceptance(input)) {
            (Some(s), Some(accepted)) => DeletePermit::accepted_set(pod, set, s, accepted, observed),
            _ => Err(denied),
        })
        .ok()
}

/// The owner's acceptance of losses that belongs to the work in hand.
fn acceptance<'a>(input: &Input<'a>) -> Option<&'a Acceptance> {
    let of_task = match input.pod.tasks.first().map(|t| &t.work) {
        Some(Work::Replace { accepted, .. }) => accepted.as_ref(),
        _ => None,
    };
    of_task.or_else(|| input.pod.goal.as_ref().and_then(|g| g.accepted.as_ref()))
}
