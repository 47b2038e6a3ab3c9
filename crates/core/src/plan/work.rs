//! One-time work: restart, snapshot, purge.

use jiff::Timestamp;

use super::{Action, Input, Next, data_problem, problem, run, snapshot};
use crate::permit::DeletePermit;
use crate::pod::{Desired, Work};
use crate::record::Record;
use crate::snapshot::{Grade, SnapshotState, WriterStamp};

/// The first task of a pod whose desired state is reached.
pub(super) fn one_time(input: &Input<'_>, wake: Option<Timestamp>) -> Next {
    match input.pod.tasks.first().map(|t| &t.work) {
        Some(Work::Snapshot { snapshot, accepted }) => {
            take_snapshot(input, *snapshot, accepted.as_ref().map(|a| a.paths.clone()).unwrap_or_default())
        }
        Some(Work::Restart { .. }) => Next::Blocked(problem(
            "pod-not-running",
            "the pod is not meant to run, so it cannot be restarted".to_owned(),
            "start it: perennial pod start",
        )),
        Some(Work::Import { snapshot, .. }) => import(input, *snapshot),
        Some(Work::Replace { .. } | Work::Purge { .. }) | None => Next::Settled { wake },
    }
}

/// Makes a snapshot of what was received.
pub(super) fn import(input: &Input<'_>, id: crate::id::SnapshotId) -> Next {
    let Some(row) = snapshot(input, id) else {
        return Next::Blocked(problem("snapshot-gone", format!("snapshot {id} was deleted"), ""));
    };
    match row.state {
        SnapshotState::Pending => Next::Act(Action::Import { snapshot: id }),
        SnapshotState::Uploaded => Next::Act(Action::Verify { snapshot: id }),
        SnapshotState::Verified => Next::Act(Action::Record(Record::TaskDone)),
        SnapshotState::Failed => Next::Blocked(problem(
            "snapshot-failed",
            row.error.clone().unwrap_or_else(|| "the import failed".to_owned()),
            "mend the cause and send the archive again",
        )),
    }
}

pub(super) fn restart(input: &Input<'_>, before: Option<&WriterStamp>) -> Next {
    let container = input.observed.container.as_ref();
    if input.pod.desired != Desired::Running {
        return one_time(input, None);
    }
    let Some(before) = before else {
        let stamp = container.map_or_else(
            || WriterStamp { container: String::new(), started_at: None },
            crate::engine::ObservedContainer::stamp,
        );
        return Next::Act(Action::Record(Record::RestartBegan(stamp)));
    };
    if let Some(container) = container.filter(|c| c.is_live() && &c.stamp() == before) {
        return Next::Act(Action::Stop { container: container.id.clone() });
    }
    // The start's record ends the task; a settled pod without one was restarted by somebody else meanwhile.
    match run::run(input) {
        Next::Settled { .. } => Next::Act(Action::Record(Record::TaskDone)),
        other => other,
    }
}

fn take_snapshot(input: &Input<'_>, id: crate::id::SnapshotId, accepted: Vec<String>) -> Next {
    let Some(set) = input.pod.current_set() else {
        return Next::Blocked(problem(
            "pod-released",
            "the pod is stopped: its data is in its final snapshot already".to_owned(),
            "list it: perennial snapshot ls",
        ));
    };
    let Some(row) = snapshot(input, id) else {
        return Next::Blocked(problem("snapshot-gone", format!("snapshot {id} was deleted"), ""));
    };
    match row.state {
        SnapshotState::Pending => {
            if accepted.is_empty()
                && let Some(found) = data_problem(input, set)
            {
                return Next::Blocked(found);
            }
            let live = input.observed.container.as_ref().is_some_and(crate::engine::ObservedContainer::is_live);
            if live && accepted.is_empty() && !input.live_passed.contains(&id) {
                return Next::Act(Action::LivePass { snapshot: id, set: set.number });
            }
            let grade = if live { Grade::Frozen } else { Grade::Stopped };
            Next::Act(Action::Capture { snapshot: id, set: set.number, grade, accepted })
        }
        SnapshotState::Uploaded => Next::Act(Action::Verify { snapshot: id }),
        SnapshotState::Verified => Next::Act(Action::Record(Record::TaskDone)),
        SnapshotState::Failed => Next::Blocked(problem(
            "snapshot-failed",
            row.error.clone().unwrap_or_else(|| "the snapshot failed".to_owned()),
            "mend the cause and take another",
        )),
    }
}

/// Destroys everything, in the order in which a crash leaves the least doubt.
pub(super) fn purge(input: &Input<'_>) -> Next {
    let pod = input.pod;
    if let Some(step) = run::stop_live(input) {
        return step;
    }
    if let Some(container) = &input.observed.container {
        return match DeletePermit::purged_container(pod, input.observed) {
            Ok(permit) => Next::Act(Action::RemoveContainer { container: container.id.clone(), permit }),
            Err(denied) => Next::Blocked(problem("purge-denied", denied.to_string(), "")),
        };
    }
    if let Some(set) = pod.sets.first() {
        return match DeletePermit::purged_set(pod, set.number) {
            Ok(permit) => Next::Act(Action::DeleteSet { set: set.number, permit }),
            Err(denied) => Next::Blocked(problem("purge-denied", denied.to_string(), "")),
        };
    }
    match DeletePermit::purged_snapshots(pod) {
        Ok(permit) => Next::Act(Action::PurgeEverything { permit }),
        Err(denied) => Next::Blocked(problem("purge-denied", denied.to_string(), "")),
    }
}
