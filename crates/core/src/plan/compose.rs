//! Putting a snapshot together before a data set is made from it: for a restore of parts, and for a clone.
//!
//! Only when it was read back does anything else happen, so a crash leaves the data as it was, or the new set whole.

use jiff::SignedDuration;

use super::{Action, Input, Next, Recipe, problem, snapshot};
use crate::id::SnapshotId;
use crate::parts::Parts;
use crate::pod::{Composed, Fork};
use crate::record::Record;
use crate::snapshot::{Snapshot, SnapshotState};
use crate::volume::Origin;

/// How often a clone looks whether the snapshot that it waits for is there.
const WAITING: SignedDuration = SignedDuration::from_secs(1);

/// How far a snapshot is put together.
#[expect(clippy::large_enum_variant, reason = "one value per pass")]
pub(super) enum Progress {
    /// Something is still to be done.
    Step(Next),
    /// It was read back.
    Done(SnapshotId),
}

/// Puts the snapshot together that a restore of parts restores.
pub(super) fn parts(
    input: &Input<'_>,
    (wanted, parts): (SnapshotId, &Parts),
    base: SnapshotId,
    composed: Option<Composed>,
) -> Progress {
    compose(input, base, composed, || Recipe::Parts { base, wanted, parts: parts.clone() })
}

/// What a clone does before its first set is made.
pub(super) fn fork(input: &Input<'_>, fork: Fork) -> Next {
    let Some(Origin::Snapshot(base)) = input.pod.source else {
        // Its source was replaced by the image: there is nothing of anybody else's in it.
        return Next::Act(Action::Record(Record::Forked(input.pod.source)));
    };
    let source = snapshot(input, base);
    if source.is_some_and(|s| matches!(s.state, SnapshotState::Pending | SnapshotState::Uploaded)) {
        return match input.now.checked_add(WAITING) {
            Ok(until) => Next::Wait { until },
            Err(_) => Next::Settled { wake: None },
        };
    }
    if !source.is_some_and(Snapshot::is_restorable) {
        let why = source.and_then(|s| s.error.clone()).map_or_else(String::new, |error| format!(": {error}"));
        return Next::Blocked(problem(
            "clone-source-failed",
            format!("snapshot {base}, which this clone is made from, failed or no longer exists{why}"),
            "delete this pod (perennial pod rm), mend the cause and clone again",
        ));
    }
    match compose(input, base, fork.composed, || Recipe::Fork { base, identity: fork.identity }) {
        Progress::Done(own) => Next::Act(Action::Record(Record::Forked(Some(Origin::Snapshot(own))))),
        Progress::Step(next) => next,
    }
}

fn compose(
    input: &Input<'_>,
    base: SnapshotId,
    composed: Option<Composed>,
    recipe: impl FnOnce() -> Recipe,
) -> Progress {
    let step = |action| Progress::Step(Next::Act(action));
    // One that was begun over another base is of a past that nobody asked for any more.
    let begun = composed.filter(|c| c.base == base).and_then(|c| snapshot(input, c.snapshot));
    let Some(row) = begun else { return step(Action::BeginCompose { base }) };
    match row.state {
        SnapshotState::Pending => step(Action::Compose { snapshot: row.id, recipe: recipe() }),
        SnapshotState::Uploaded => step(Action::Verify { snapshot: row.id }),
        SnapshotState::Verified => Progress::Done(row.id),
        SnapshotState::Failed => Progress::Step(Next::Blocked(problem(
            "snapshot-failed",
            row.error.clone().unwrap_or_else(|| "the snapshot failed".to_owned()),
            "nothing was changed; mend the cause and try again",
        ))),
    }
}
