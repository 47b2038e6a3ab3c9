//! What is written down after a step: its fact with everything that follows, or its failure.

use futures::future::BoxFuture;
use jiff::SignedDuration;
use perennial_core::engine::ObservedPod;
use perennial_core::id::{OperationId, PodId};
use perennial_core::operation::{NewEvent, Operation, OperationKind, OperationState, Problem};
use perennial_core::plan;
use perennial_core::pod::{ConditionKind, Pod, Retry, Work};
use perennial_core::record::{self, Record};
use perennial_core::snapshot::{Snapshot, SnapshotState};

use super::step::StepError;
use super::worker::{Passed, Reconciler, View, apply_status, condition, current_operation};
use crate::store::Change;

/// First delay after a failed try; doubles with each.
pub(super) const RETRY_FIRST: SignedDuration = SignedDuration::from_millis(500);
/// Longest delay between tries.
pub(super) const RETRY_MAX: SignedDuration = SignedDuration::from_secs(60);
/// Tries after which a start or a replacement that cannot read its source ends (the pod keeps what it had).
const GIVE_UP_AFTER: u32 = 5;
/// Tries of a snapshot after which its owners are told that there is none: less than half an hour.
const TOLD_AFTER: u32 = 30;
/// The event that tells of that.
pub(crate) const SNAPSHOT_DELAYED: &str = "snapshot.delayed";

impl Reconciler {
    /// Commits one fact with everything that follows from it, and goes on with the changed pod.
    pub(super) async fn record(&self, view: &mut View, fact: Record) -> Result<(), StepError> {
        self.record_with(view, fact, Change::default()).await
    }

    /// The same, together with `change`.
    pub(super) fn record_with<'a>(
        &'a self,
        view: &'a mut View,
        fact: Record,
        change: Change,
    ) -> BoxFuture<'a, Result<(), StepError>> {
        // On the heap: nearly every action ends with one.
        Box::pin(self.commit_fact(view, fact, change))
    }

    async fn commit_fact(&self, view: &mut View, fact: Record, mut change: Change) -> Result<(), StepError> {
        let now = self.now();
        if matches!(fact, Record::GoalFailed(_) | Record::TaskFailed(_)) {
            change.snapshots.extend(self.abandoned_captures(view, &fact).await?);
        }
        let mut pod = view.pod.clone();
        let consequences = record::apply(&mut pod, &fact, now);
        change.snapshots.extend(consequences.snapshots);
        let mut event_operation = current_operation(&view.pod);
        let mut ends = Vec::new();
        for ended in &consequences.ended {
            event_operation = Some(ended.operation);
            if let Some(mut operation) = self.store.operation_fetch(ended.operation).await? {
                operation.state =
                    if ended.problem.is_none() { OperationState::Succeeded } else { OperationState::Failed };
                operation.error.clone_from(&ended.problem);
                operation.finished_at = Some(now);
                if let Some(last) = self.board.read(ended.operation) {
                    operation.step = last.step.to_owned();
                    operation.progress = last.reading;
                }
                ends.push(self.news(&pod, &operation));
                change.operations.push(operation);
            }
        }
        if let Some((kind, message)) = consequences.event {
            change.events.push(self.event(&pod, event_operation, kind, message));
        }
        change.events.extend(ends);
        for snapshot in &change.snapshots {
            view.snapshots.retain(|s| s.id != snapshot.id);
            view.snapshots.push(snapshot.clone());
        }
        let needed = pod.layers();
        let dropped = view.pod.layers().into_iter().filter(|id| !needed.contains(id)).map(str::to_owned).collect();
        view.pod = pod;
        let plan = self.plan(view);
        apply_status(&mut view.pod, &plan, now);
        change.pod = Some(view.pod.clone());
        change.lease.clone_from(&view.lease);
        self.store.commit(change).await?;
        view.pod.version += 1;
        for ended in consequences.ended {
            self.board.end(ended.operation);
        }
        self.forget_layers(view, dropped).await;
        Ok(())
    }

    /// The line of the audit trail for an operation as it stands.
    pub(super) fn news(&self, pod: &Pod, operation: &Operation) -> NewEvent {
        let (kind, message) = operation.news();
        self.event(pod, Some(operation.id), kind, message)
    }

    pub(super) fn event(
        &self,
        pod: &Pod,
        operation: Option<OperationId>,
        kind: &str,
        message: impl Into<String>,
    ) -> NewEvent {
        NewEvent {
            at: self.now(),
            actor: "system".to_owned(),
            tenant: pod.tenant.clone(),
            pod: Some(pod.id),
            operation,
            kind: kind.to_owned(),
            message: message.into(),
        }
    }

    /// Records a failed try: another one later, or the end of the operation.
    pub(super) async fn failed(&self, id: PodId, found: Problem, failure: Failure) -> Passed {
        match self.record_failure(id, found, failure).await {
            Ok(passed) => passed,
            Err(error) => {
                tracing::warn!(pod = %id, ?error, "record a failure");
                Passed::Wait(self.after(RETRY_FIRST))
            }
        }
    }

    async fn record_failure(&self, id: PodId, found: Problem, failure: Failure) -> Result<Passed, StepError> {
        let Some(pod) = self.store.pod_fetch(id).await? else { return Ok(Passed::Gone) };
        tracing::warn!(pod = %id, code = found.code, problem = found.message, tries = pod.retry.count + 1, "a step failed");
        let lease = self.memory().leases.get(&id).map(|(lease, _)| lease.clone());
        let mut view = View {
            pod,
            observed: ObservedPod::default(),
            snapshots: Vec::new(),
            lease,
            retry_cleared: false,
            layer_hidden: false,
        };
        let lasting = failure == Failure::Lasting || gives_up(&view.pod, &found);
        if lasting && let Some(end) = plan::failure_of(&view.pod, &found) {
            if let Ok(looked) = self.look(view.pod.clone()).await {
                view = View { lease: view.lease, ..looked };
            }
            self.record(&mut view, end).await?;
            return Ok(Passed::Again);
        }
        let count = view.pod.retry.count.saturating_add(1);
        let delay = retry_delay(count);
        let until = self.after(delay);
        let now = self.now();
        view.pod.retry = Retry { count, not_before: until, problem: Some(found.clone()) };
        view.pod.updated_at = now;
        let others = view.pod.conditions.iter().filter(|c| c.kind != ConditionKind::Retrying).cloned();
        let shown = plan::retrying(&view.pod.retry).map(|found| condition(&view.pod, &found, now));
        view.pod.conditions = others.chain(shown).collect();
        let mut change = Change { lease: view.lease.clone(), ..Change::default() };
        if let Some(operation) = current_operation(&view.pod)
            && let Some(mut row) = self.store.operation_fetch(operation).await?
            && !row.state.is_terminal()
        {
            row.state = OperationState::Running;
            row.error = Some(found);
            change.operations.push(row);
        }
        let is_snapshot = matches!(view.pod.tasks.first().map(|task| &task.work), Some(Work::Snapshot { .. }));
        if count == TOLD_AFTER && is_snapshot {
            let problem = view.pod.retry.problem.as_ref().map_or("", |problem| problem.message.as_str());
            let message = format!("snapshot failed {count} times in a row, and is tried again: {problem}");
            change.events.push(self.event(&view.pod, current_operation(&view.pod), SNAPSHOT_DELAYED, message));
        }
        change.pod = Some(view.pod);
        self.store.commit(change).await?;
        Ok(Passed::Wait(until))
    }

    /// Captures that nobody will finish: they are failed, not pending for ever. What was put together for something that
    /// does not happen fails even when it is complete: nobody's data is like that.
    async fn abandoned_captures(&self, view: &View, fact: &Record) -> Result<Vec<Snapshot>, StepError> {
        let (Record::GoalFailed(found) | Record::TaskFailed(found)) = fact else { return Ok(Vec::new()) };
        let of_task = match view.pod.tasks.first().map(|t| &t.work) {
            Some(Work::Replace { safety, composed, .. }) => [*safety, composed.map(|c| c.snapshot)],
            Some(Work::Snapshot { snapshot, .. } | Work::Import { snapshot, .. }) => [Some(*snapshot), None],
            _ => [None, None],
        };
        let of_goal = [view.pod.capture, view.pod.fork.and_then(|fork| fork.composed).map(|c| c.snapshot)];
        let ids = if matches!(fact, Record::GoalFailed(_)) { of_goal } else { of_task };
        let mut rows = Vec::new();
        for row in ids.into_iter().flatten().filter_map(|id| view.snapshot(id)) {
            let is_open = matches!(row.state, SnapshotState::Pending | SnapshotState::Uploaded);
            if is_open || self.store.snapshot_is_unused_composition(row).await? {
                rows.push(Snapshot { state: SnapshotState::Failed, error: Some(found.message.clone()), ..row.clone() });
            }
        }
        Ok(rows)
    }
}

/// Whether repeating may help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    MayPass,
    Lasting,
}

/// Whether a start or a replacement has tried often enough to read its source.
fn gives_up(pod: &Pod, found: &Problem) -> bool {
    let reads = pod.goal.as_ref().is_some_and(|g| g.kind.makes_pod() || g.kind == OperationKind::Start)
        || matches!(pod.tasks.first().map(|t| &t.work), Some(Work::Replace { switched: false, .. }));
    let source = found.code.starts_with("repository-") || found.code == "image-pull-failed";
    // Somebody who works on the repository ends some day.
    let source = source && found.code != "repository-locked";
    // Another server may have received it; when none of them takes it in, its disk is gone.
    let lost = found.code == super::import::BODY_MISSING;
    (lost || (reads && source)) && pod.retry.count + 1 >= GIVE_UP_AFTER
}

fn retry_delay(count: u32) -> SignedDuration {
    let factor = 1_i32.checked_shl(count.saturating_sub(1).min(16)).unwrap_or(i32::MAX);
    RETRY_FIRST.checked_mul(factor).unwrap_or(RETRY_MAX).min(RETRY_MAX)
}
