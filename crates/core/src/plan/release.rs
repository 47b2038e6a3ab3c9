//! Releasing the host: capture, verify, commit, then remove what is left (stop, archive, delete).

use super::{Action, Input, Next, data_problem, leftovers, problem, snapshot};
use crate::engine::ContainerState;
use crate::permit;
use crate::record::Record;
use crate::snapshot::{Grade, Snapshot, SnapshotKind, SnapshotState};
use crate::volume::VolumeSet;

pub(super) fn release(input: &Input<'_>) -> Next {
    let Some(set) = input.pod.current_set() else {
        return leftovers::remove(input, leftovers::Keep::Nothing).unwrap_or(Next::Settled { wake: None });
    };
    if !may_hold_data(input, set) {
        return Next::Act(Action::Record(Record::ReleasedUnused));
    }
    let accepted = input.pod.goal.as_ref().and_then(|g| g.accepted.as_ref()).map(|a| a.paths.clone());
    let chosen = input.pod.capture.and_then(|id| snapshot(input, id));
    match capture(input, set, chosen, accepted.as_deref(), SnapshotKind::Final) {
        Progress::Step(next) => next,
        Progress::Done(snapshot) => Next::Act(Action::Record(Record::Released { snapshot: snapshot.id })),
    }
}

/// Whether somebody ever had the set: we attached it, or somebody else started its container.
pub(super) fn may_hold_data(input: &Input<'_>, set: &VolumeSet) -> bool {
    let container = input.observed.container.as_ref().filter(|c| c.set == set.number);
    set.attached.is_some() || container.is_some_and(|c| c.started_at.is_some())
}

/// How far a capture of a stopped data set is.
#[expect(clippy::large_enum_variant, reason = "one value per pass")]
pub(super) enum Progress<'a> {
    /// Something is still to be done.
    Step(Next),
    /// This snapshot holds everything the last writer left.
    Done(&'a Snapshot),
}

/// Brings a set into a verified snapshot: live pass, stop, final pass, verify (D2).
pub(super) fn capture<'a>(
    input: &Input<'a>,
    set: &VolumeSet,
    chosen: Option<&'a Snapshot>,
    accepted: Option<&[String]>,
    kind: SnapshotKind,
) -> Progress<'a> {
    let container = input.observed.container.as_ref().filter(|c| c.set == set.number);
    let act = |action| Progress::Step(Next::Act(action));
    if accepted.is_none()
        && let Some(problem) = data_problem(input, set)
    {
        return Progress::Step(Next::Blocked(problem));
    }
    if set.attached.is_none() {
        // Somebody else started it, so there is data without a generation; a capture has to name one.
        return act(Action::Record(Record::Attached { set: set.number }));
    }
    let Some(chosen) = chosen else { return act(Action::BeginCapture { kind }) };
    if let Some(container) = container
        && container.is_live()
    {
        let lives = container.state == ContainerState::Running && chosen.state == SnapshotState::Pending;
        if lives && accepted.is_none() && !input.live_passed.contains(&chosen.id) {
            return act(Action::LivePass { snapshot: chosen.id, set: set.number });
        }
        return act(Action::Stop { container: container.id.clone() });
    }
    match chosen.state {
        SnapshotState::Pending => act(Action::Capture {
            snapshot: chosen.id,
            set: set.number,
            grade: Grade::Stopped,
            accepted: accepted.map(<[String]>::to_vec).unwrap_or_default(),
        }),
        SnapshotState::Uploaded | SnapshotState::Verified
            if permit::check_same_instant(input.pod, set.number, chosen, input.observed).is_err() =>
        {
            // Somebody wrote after this capture: it stays a snapshot, and a new one is taken.
            act(Action::BeginCapture { kind })
        }
        SnapshotState::Uploaded => act(Action::Verify { snapshot: chosen.id }),
        SnapshotState::Verified => {
            let whole = permit::check_captured(input.pod, set.number, chosen, input.observed).is_ok();
            let agreed = accepted.is_some_and(|paths| chosen.losses.iter().all(|l| paths.contains(&l.path)));
            if whole || agreed { Progress::Done(chosen) } else { act(Action::BeginCapture { kind }) }
        }
        SnapshotState::Failed => Progress::Step(Next::Blocked(problem(
            "snapshot-failed",
            chosen.error.clone().unwrap_or_else(|| "the snapshot failed".to_owned()),
            "nothing was deleted; mend the cause and try again",
        ))),
    }
}
