//! The one way a verb is committed: load, decide, commit, wake; again when somebody was faster.

use perennial_core::Error;
use perennial_core::id::{OperationId, PodId, SnapshotId};
use perennial_core::operation::{NewEvent, Operation, OperationKind, OperationState, Problem};
use perennial_core::pod::{Desired, Pod};
use perennial_core::snapshot::{Snapshot, SnapshotState};
use perennial_core::verbs::{Answer, Decision, Order, Superseded};

use super::{App, Caller};
use crate::store::{Change, IdempotencyRecord, StoreError};

/// How often a verb is decided anew because the pod changed meanwhile.
const ATTEMPTS: usize = 8;

/// What a request led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The pod as it stands now.
    pub pod: Pod,
    /// Its newest verified snapshot.
    pub latest: Option<Snapshot>,
    /// The operation to wait for.
    pub operation: Operation,
    /// The snapshot that is taken or deleted, where the request was about one.
    pub snapshot: Option<Snapshot>,
}

/// Makes a request repeatable: its answer is recorded in the transaction that does its work.
#[derive(Clone, Copy)]
pub struct Once<'a> {
    /// The caller's key.
    pub key: &'a str,
    /// Hash of what was asked.
    pub request_hash: &'a str,
    /// Renders the answer: status and body.
    pub render: &'a (dyn Fn(&Outcome) -> (u16, String) + Send + Sync),
}

/// Who asks, and whether the request may be repeated.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// Who.
    pub caller: &'a Caller,
    /// `None`: a repetition is a new request.
    pub once: Option<Once<'a>>,
}

impl<'a> Request<'a> {
    /// A request without an idempotency key.
    #[must_use]
    pub const fn new(caller: &'a Caller) -> Self {
        Self { caller, once: None }
    }
}

impl App {
    pub(super) fn order(&self, caller: &Caller) -> Order {
        Order { operation: self.operation_id(), actor: caller.actor.clone(), now: self.now() }
    }

    /// Carries out a verb on a pod.
    pub(super) async fn act(
        &self,
        request: Request<'_>,
        pod: PodId,
        decide: impl Fn(&Pod, &Order) -> Result<Decision, Error>,
    ) -> Result<Outcome, Error> {
        for _ in 0..ATTEMPTS {
            let (before, latest) = self.pod(request.caller, pod).await?;
            let order = self.order(request.caller);
            let decision = decide(&before, &order)?;
            match self.commit(request, &before, decision, latest).await {
                Err(StoreError::Stale) => {}
                other => return Ok(other?),
            }
        }
        Err(StoreError::Stale.into())
    }

    pub(super) async fn commit(
        &self,
        request: Request<'_>,
        before: &Pod,
        decision: Decision,
        latest: Option<Snapshot>,
    ) -> Result<Outcome, StoreError> {
        let (change, outcome) = self.change_of(before, decision, latest).await?;
        self.write(request, change, outcome).await
    }

    /// What a decision writes, and what it leads to.
    pub(super) async fn change_of(
        &self,
        before: &Pod,
        decision: Decision,
        latest: Option<Snapshot>,
    ) -> Result<(Change, Outcome), StoreError> {
        let Decision { pod, answer, superseded, dropped, snapshot, uses } = decision;
        let changed = Pod { updated_at: before.updated_at, ..pod.clone() } != *before;
        let (operation, new) = match answer {
            Answer::New(operation) => (*operation, true),
            Answer::Join(id) => (self.operation_of(id).await?, false),
        };
        let hidden = |pod: &Pod| matches!(pod.desired, Desired::Archived | Desired::Deleted);
        // One that comes back takes its share again.
        let bounded = (hidden(before) && !hidden(&pod)).then(|| pod.tenant.clone());
        let mut change = Change { uses, bounded, ..Change::default() };
        for ended in superseded {
            let (operation, event) = self.superseded(ended, &operation).await?;
            change.operations.push(operation);
            change.events.push(event);
        }
        change.snapshots = self.abandoned(&dropped).await?;
        change.snapshots.extend(snapshot.clone());
        if new {
            change.forgets_all_of = (operation.kind == OperationKind::Purge).then_some(pod.id);
            change.events.push(requested(&operation));
            change.operations.push(operation.clone());
        }
        change.moved_from = (before.desired != pod.desired).then_some(before.desired);
        change.pod = changed.then(|| pod.clone());
        let stored = Pod { version: pod.version + i64::from(changed), ..pod };
        Ok((change, Outcome { pod: stored, latest, operation, snapshot }))
    }

    /// Commits a change together with the recorded answer, and wakes the reconciler.
    pub(super) async fn write(
        &self,
        request: Request<'_>,
        mut change: Change,
        outcome: Outcome,
    ) -> Result<Outcome, StoreError> {
        change.idempotency = request.once.map(|once| {
            let (status, body) = (once.render)(&outcome);
            IdempotencyRecord {
                owner: request.caller.owner(),
                about: Some(outcome.pod.tenant.clone()),
                key: once.key.to_owned(),
                request_hash: once.request_hash.to_owned(),
                status,
                body,
                at: self.now(),
            }
        });
        match self.commit_for(request.caller, change).await {
            Ok(()) => {}
            // Written or not: the rows tell (law 5). What is not there yet may still come, so the caller is told to
            // ask again.
            Err(StoreError::OutcomeUnknown(source)) => {
                if !self.was_written(&outcome).await {
                    return Err(StoreError::OutcomeUnknown(source));
                }
            }
            Err(other) => return Err(other),
        }
        (self.waker)(outcome.pod.id);
        Ok(outcome)
    }

    async fn was_written(&self, outcome: &Outcome) -> bool {
        let (operation, state) = (self.store.operation_fetch(outcome.operation.id).await, outcome.operation.state);
        let ended = operation.ok().flatten().is_some_and(|o| !state.is_terminal() || o.state == state);
        let pod = self.store.pod_fetch(outcome.pod.id).await;
        ended && pod.ok().flatten().is_some_and(|p| p.version >= outcome.pod.version)
    }

    async fn operation_of(&self, id: OperationId) -> Result<Operation, StoreError> {
        self.store.operation_fetch(id).await?.ok_or_else(|| StoreError::Corrupt {
            what: format!("operation {id}"),
            problem: "a pod refers to it, and it does not exist".to_owned(),
        })
    }

    async fn superseded(&self, ended: Superseded, by: &Operation) -> Result<(Operation, NewEvent), StoreError> {
        let mut operation = self.operation_of(ended.operation).await?;
        operation.state = ended.state;
        operation.finished_at = Some(by.created_at);
        if ended.state == OperationState::Cancelled {
            operation.error = Some(Problem {
                code: "superseded".to_owned(),
                message: format!("{} was asked for ({})", by.kind.as_str(), by.id),
                hint: String::new(),
            });
        }
        let (kind, message) = operation.news();
        let event = NewEvent {
            at: by.created_at,
            actor: by.actor.clone(),
            tenant: operation.tenant.clone(),
            pod: Some(operation.pod),
            operation: Some(operation.id),
            kind: kind.to_owned(),
            message,
        };
        Ok((operation, event))
    }

    /// Rows of captures nobody waits for; one that is complete stays a snapshot, unless it was put together.
    pub(super) async fn abandoned(&self, dropped: &[SnapshotId]) -> Result<Vec<Snapshot>, StoreError> {
        let mut rows = Vec::new();
        for id in dropped {
            if let Some(mut row) = self.store.snapshot_fetch(*id).await?
                && (row.state == SnapshotState::Pending || self.store.snapshot_is_unused_composition(&row).await?)
            {
                row.state = SnapshotState::Failed;
                row.error = Some("cancelled before it was complete".to_owned());
                rows.push(row);
            }
        }
        Ok(rows)
    }
}

/// The line of the audit trail for what was asked.
pub(crate) fn requested(operation: &Operation) -> NewEvent {
    let (kind, message) = operation.news();
    NewEvent {
        at: operation.created_at,
        actor: operation.actor.clone(),
        tenant: operation.tenant.clone(),
        pod: Some(operation.pod),
        operation: Some(operation.id),
        kind: kind.to_owned(),
        message,
    }
}
