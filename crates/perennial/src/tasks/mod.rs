//! Housekeeping: what nobody waits for. Every task reads what is due from the database, so a crash loses none.
//!
//! - deletion of snapshots, recorded as operations by the API;
//! - the end of the undelete window, which executes the consent given at delete;
//! - old idempotency keys.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use perennial_core::Error;
use perennial_core::clock::Clock;
use perennial_core::id::{OperationId, PodId, SnapshotId};
use perennial_core::operation::{NewEvent, Operation, OperationKind, OperationState, Problem};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::reconcile::Reconciler;
use crate::service::{App, Caller, Consent, Request, SnapshotRemover};
use crate::store::{Change, Store, StoreError};

/// How often what is due is looked for.
const EVERY: Duration = Duration::from_secs(15);
/// How long an idempotency key is remembered.
const IDEMPOTENCY: SignedDuration = SignedDuration::from_hours(24);

/// Hands deletions over to the housekeeper; never blocks.
#[derive(Debug, Clone)]
pub struct Deletions(mpsc::UnboundedSender<OperationId>);

/// What was handed over.
#[derive(Debug)]
pub struct Inbox(mpsc::UnboundedReceiver<OperationId>);

/// The two ends of the way to the housekeeper.
#[must_use]
pub fn deletions() -> (Deletions, Inbox) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (Deletions(sender), Inbox(receiver))
}

impl SnapshotRemover for Deletions {
    fn snapshot_remove(&self, operation: OperationId, _snapshot: SnapshotId) {
        // A housekeeper that is gone finds the operation in the database when it comes back.
        let _ = self.0.send(operation);
    }
}

/// Does what is due.
pub struct Housekeeper {
    app: App,
    reconciler: Arc<Reconciler>,
    /// Deletions that are asked for and not done.
    open: BTreeSet<OperationId>,
}

impl Housekeeper {
    /// A housekeeper for this server.
    #[must_use]
    pub fn new(app: App, reconciler: Arc<Reconciler>) -> Self {
        Self { app, reconciler, open: BTreeSet::new() }
    }

    /// Runs until `stopped` says so.
    #[must_use]
    pub fn start(mut self, mut inbox: Inbox, mut stopped: watch::Receiver<bool>) -> JoinHandle<()> {
        tokio::spawn(async move {
            self.find_unfinished().await;
            while !*stopped.borrow() {
                self.run_due().await;
                tokio::select! {
                    Some(operation) = inbox.0.recv() => { self.open.insert(operation); }
                    () = tokio::time::sleep(EVERY) => {}
                    _ = stopped.changed() => {}
                }
            }
        })
    }

    /// Deletions that a server before this one did not finish.
    async fn find_unfinished(&mut self) {
        let found = async {
            let mut found = Vec::new();
            for pod in self.app.store.pod_ids().await? {
                found.extend(self.app.store.operations_unfinished(pod).await?);
            }
            Ok::<Vec<Operation>, StoreError>(found)
        };
        match found.await {
            Ok(found) => {
                let deletions = found.iter().filter(|o| o.kind == OperationKind::SnapshotDelete);
                self.open.extend(deletions.map(|o| o.id));
            }
            Err(error) => tracing::warn!(%error, "list unfinished deletions"),
        }
    }

    /// Does everything that is due now.
    pub async fn run_due(&mut self) {
        for operation in self.open.clone() {
            match self.delete_snapshot(operation).await {
                Ok(()) => {
                    self.open.remove(&operation);
                }
                Err(error) => tracing::warn!(%operation, %error, "delete a snapshot; tried again later"),
            }
        }
        let now = self.app.clock.now();
        match self.app.store.pod_ids_to_purge(now).await {
            Ok(pods) => {
                for pod in pods {
                    if let Err(error) = self.end_window(pod).await {
                        tracing::warn!(%pod, %error, "end the undelete window");
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "list ended undelete windows"),
        }
        if let Ok(before) = now.checked_sub(IDEMPOTENCY)
            && let Err(error) = self.app.store.idempotency_prune(before).await
        {
            tracing::debug!(%error, "forget old idempotency keys");
        }
    }

    /// Executes the consent given at delete.
    async fn end_window(&self, pod: PodId) -> Result<(), Error> {
        let Some(record) = self.app.store.pod_fetch(pod).await? else { return Ok(()) };
        let Some(trash) = record.trash.filter(|t| perennial_core::permit::window_ended(t, self.app.clock.now())) else {
            return Ok(());
        };
        let caller = Caller { actor: trash.actor, ..Caller::admin() };
        let consent = Consent { confirm: Some(record.name.to_string()), accept_loss: None };
        self.app.purge(Request::new(&caller), pod, &consent).await.map(drop)
    }

    async fn delete_snapshot(&self, id: OperationId) -> Result<(), Error> {
        let store = &self.app.store;
        let Some(operation) = store.operation_fetch(id).await? else { return Ok(()) };
        let Some(snapshot) = operation.snapshot.filter(|_| !operation.state.is_terminal()) else { return Ok(()) };
        let Some(row) = store.snapshot_fetch(snapshot).await? else {
            return Ok(end(store, &*self.app.clock, operation, None, None).await?);
        };
        if let Some(pod) = store.pod_fetch(row.pod).await? {
            let dependents = self.app.snapshot_dependents(snapshot, &pod).await?;
            if let Some(reason) = dependents.first() {
                let problem = Problem {
                    code: "snapshot-in-use".to_owned(),
                    message: reason.clone(),
                    hint: "start or purge that pod, or wait for the operation, and try again".to_owned(),
                };
                return Ok(end(store, &*self.app.clock, operation, None, Some(problem)).await?);
            }
        }
        self.reconciler
            .forget_snapshot(&row)
            .await
            .map_err(|problem| Error::Unavailable { problem: problem.message })?;
        Ok(end(store, &*self.app.clock, operation, Some(snapshot), None).await?)
    }
}

async fn end(
    store: &Store,
    clock: &dyn Clock,
    mut operation: Operation,
    gone: Option<SnapshotId>,
    problem: Option<Problem>,
) -> Result<(), StoreError> {
    let now = clock.now();
    operation.state = if problem.is_none() { OperationState::Succeeded } else { OperationState::Failed };
    operation.error = problem;
    operation.finished_at = Some(now);
    let event = |(kind, message): (&str, String)| NewEvent {
        at: now,
        actor: operation.actor.clone(),
        tenant: operation.tenant.clone(),
        pod: Some(operation.pod),
        operation: Some(operation.id),
        kind: kind.to_owned(),
        message,
    };
    let mut events = Vec::new();
    if let Some(snapshot) = gone {
        tracing::info!(%snapshot, pod = %operation.pod, actor = operation.actor, "a snapshot was deleted");
        events.push(event((
            "snapshot.deleted",
            format!("snapshot {snapshot} deleted: {} asked for it", operation.actor),
        )));
    }
    events.push(event(operation.news()));
    let change = Change {
        operations: vec![operation.clone()],
        snapshots_gone: gone.into_iter().collect(),
        events,
        ..Change::default()
    };
    store.commit(change).await
}
