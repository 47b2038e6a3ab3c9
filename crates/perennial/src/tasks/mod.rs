//! Housekeeping: what nobody waits for. Every task reads what is due from the database, so a crash loses none.
//!
//! - deletion of snapshots, recorded as operations by the API and by retention;
//! - `schedule`: snapshots that are due, and rules that let older ones go;
//! - `drill`: drills that were asked for, and those of the schedule;
//! - `erase`: tenants that are gone for good;
//! - `prune`: the space of what was forgotten;
//! - `replicate`: copies of every snapshot in a second repository;
//! - subscriptions whose time is over, and what follows;
//! - the end of the undelete window, which executes the consent given at delete;
//! - which pods are on the engine and in no database, and since when;
//! - old idempotency keys, and received archives and looks at pods that nobody needs any more.

mod drill;
mod erase;
mod prune;
mod replicate;
mod schedule;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use perennial_core::Error;
use perennial_core::clock::Clock;
use perennial_core::id::{OperationId, SnapshotId};
use perennial_core::operation::{NewEvent, Operation, OperationKind, OperationState, Problem};
use perennial_core::snapshot::Snapshot;
use perennial_core::spec::TenantId;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::reconcile::{Going, Reconciler};
use crate::service::{App, RETENTION, SnapshotRemover};
use crate::store::{Change, Page, Store, StoreError};

/// How often what is due is looked for.
const EVERY: Duration = Duration::from_secs(15);
/// Subscriptions that are looked at in one go.
const DUE_AT_ONCE: u32 = 200;
/// How long an idempotency key is remembered.
const IDEMPOTENCY: SignedDuration = SignedDuration::from_hours(24);
/// After this long a deletion is anybody's: the server that was asked for it may be gone.
const ADOPT_AFTER: SignedDuration = SignedDuration::from_mins(2);

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

pub use drill::DrillRules;
pub use replicate::Replicas;

/// How often it is looked for orphans.
const ORPHANS_EVERY: SignedDuration = SignedDuration::from_hours(1);

/// Does what is due.
pub struct Housekeeper {
    app: App,
    reconciler: Arc<Reconciler>,
    /// Deletions that are asked for and not done.
    open: BTreeSet<OperationId>,
    /// What was looked at when rules were applied last.
    applied: schedule::Applied,
    /// Pods of which no schedule wants anything yet.
    resting: schedule::Resting,
    /// When it was looked for orphans last.
    orphans_at: Option<Timestamp>,
    /// `None`: nothing is drilled by itself.
    drills: Option<DrillRules>,
    replicator: Arc<replicate::Replicator>,
}

impl Housekeeper {
    /// A housekeeper for this server.
    #[must_use]
    pub fn new(app: App, reconciler: Arc<Reconciler>) -> Self {
        let replicator = replicate::Replicator::new(app.clone(), Arc::clone(&reconciler), None);
        Self {
            app,
            reconciler,
            open: BTreeSet::new(),
            applied: schedule::Applied::default(),
            resting: schedule::Resting::default(),
            orphans_at: None,
            drills: None,
            replicator: Arc::new(replicator),
        }
    }

    /// Has snapshots drilled by a schedule, too.
    #[must_use]
    pub fn with_drills(self, drills: Option<DrillRules>) -> Self {
        Self { drills, ..self }
    }

    /// Has every verified snapshot copied to replicas, too.
    #[must_use]
    pub fn with_replicas(self, replicas: Option<Replicas>) -> Self {
        let replicator = replicate::Replicator::new(self.app.clone(), Arc::clone(&self.reconciler), replicas);
        Self { replicator: Arc::new(replicator), ..self }
    }

    /// Runs until `stopped` says so.
    #[must_use]
    pub fn start(mut self, mut inbox: Inbox, mut stopped: watch::Receiver<bool>) -> JoinHandle<()> {
        let pruner = prune::Pruner::new(self.app.clone(), Arc::clone(&self.reconciler));
        let driller = self.driller();
        let eraser = self.eraser();
        let replicator = Arc::clone(&self.replicator);
        tokio::spawn(async move {
            let replicating = replicator.run(stopped.clone());
            let pruning = pruner.run(stopped.clone());
            let drilling = driller.run(stopped.clone());
            let erasing = eraser.run(stopped.clone());
            let keeping = async {
                self.find_unfinished(SignedDuration::ZERO).await;
                while !*stopped.borrow() {
                    self.run_due().await;
                    tokio::select! {
                        Some(operation) = inbox.0.recv() => { self.open.insert(operation); }
                        () = tokio::time::sleep(EVERY) => {}
                        _ = stopped.changed() => {}
                    }
                }
            };
            tokio::join!(pruning, drilling, replicating, erasing, keeping);
        })
    }

    /// Prunes every repository that is due, as the server does beside everything else.
    pub async fn prune_due(&self) {
        prune::Pruner::new(self.app.clone(), Arc::clone(&self.reconciler)).prune_due().await;
    }

    fn eraser(&self) -> erase::Eraser {
        erase::Eraser::new(self.app.clone(), Arc::clone(&self.reconciler))
    }

    /// Gets every erasure of a tenant as far as it goes now, as the server does beside everything else.
    pub async fn erase_due(&self) {
        self.eraser().erase_due().await;
    }

    fn driller(&self) -> drill::Driller {
        drill::Driller::new(self.app.clone(), Arc::clone(&self.reconciler), self.drills.clone())
    }

    /// Begins the drills that are due, and does those that were asked for, as the server does beside everything else.
    pub async fn drill_due(&self) {
        let (_running, stopped) = watch::channel(false);
        self.driller().drill_due(&stopped).await;
    }

    /// Has one turn for every replica, as the server does beside everything else.
    pub async fn replicate_due(&self) {
        let _ = self.replicator.replicate_due().await;
    }

    /// Deletions that were asked for at least so long ago and are not done, whoever was asked.
    async fn find_unfinished(&mut self, age: SignedDuration) {
        let now = self.app.clock.now();
        match self.app.store.operations_of_snapshots().await {
            Ok(found) => {
                let deletions = found.iter().filter(|o| o.kind == OperationKind::SnapshotDelete);
                self.open.extend(deletions.filter(|o| now.duration_since(o.created_at) >= age).map(|o| o.id));
            }
            Err(error) => tracing::warn!(%error, "list unfinished deletions"),
        }
    }

    /// Does everything that is due now.
    pub async fn run_due(&mut self) {
        self.keep_subscriptions().await;
        self.take_scheduled().await;
        self.apply_rules().await;
        self.find_unfinished(ADOPT_AFTER).await;
        self.delete_snapshots().await;
        self.app.imports_sweep().await;
        self.app.looks_sweep().await;
        let now = self.app.clock.now();
        self.end_windows(now).await;
        self.note_orphans(now).await;
        if let Ok(before) = now.checked_sub(IDEMPOTENCY)
            && let Err(error) = self.app.store.idempotency_prune(before).await
        {
            tracing::debug!(%error, "forget old idempotency keys");
        }
    }

    /// Does what time has come for of subscriptions; one thing of each.
    async fn keep_subscriptions(&self) {
        let mut page = Page::first(DUE_AT_ONCE);
        loop {
            let due = match self.app.store.subscriptions_due(self.app.clock.now(), &page).await {
                Ok(due) => due,
                Err(error) => return tracing::warn!(%error, "list subscriptions of which something is due"),
            };
            for id in &due {
                if let Err(error) = self.app.subscription_tick(*id).await {
                    tracing::warn!(subscription = %id, %error, "do what a subscription is due for");
                }
            }
            match due.last() {
                Some(last) if due.len() == DUE_AT_ONCE as usize => page.after = Some(last.to_string()),
                _ => return,
            }
        }
    }

    /// Notes what nobody has. Nothing is done about it.
    async fn note_orphans(&mut self, now: Timestamp) {
        // A clock that was set back is no reason not to look.
        let is_fresh = |at: Timestamp| now >= at && now.duration_since(at) < ORPHANS_EVERY;
        if self.orphans_at.is_some_and(is_fresh) {
            return;
        }
        match self.app.note_orphans().await {
            Ok(()) => self.orphans_at = Some(now),
            Err(error) => tracing::debug!(%error, "look for orphans; tried again later"),
        }
    }

    /// Destroys what was deleted long enough ago, which executes the consent given then, unless nobody looked for long.
    async fn end_windows(&self, now: Timestamp) {
        match self.app.store.keeping(now).await {
            Ok(None) => {}
            Ok(Some(until)) => return tracing::debug!(%until, "nothing is destroyed yet: nobody looked for long"),
            Err(error) => return tracing::warn!(%error, "note that it is looked for what has ended"),
        }
        let pods = match self.app.store.pod_ids_to_purge(now).await {
            Ok(pods) if pods.is_empty() => return,
            Ok(pods) => pods,
            Err(error) => return tracing::warn!(%error, "list ended undelete windows"),
        };
        let owned = match self.app.engine.list_owned().await {
            Ok(owned) => owned,
            Err(error) => return tracing::warn!(%error, "list what is on the engine before anything is destroyed"),
        };
        for pod in pods {
            match self.app.purge_ended(pod, &owned).await {
                Ok(()) => {}
                // It would not answer for the next one either, and others wait for this task.
                Err(error @ Error::Unavailable { .. }) => {
                    return tracing::warn!(%pod, %error, "end undelete windows; tried again later");
                }
                Err(error) => tracing::warn!(%pod, %error, "end the undelete window"),
            }
        }
    }

    /// Does the deletions that were asked for, those of one tenant together.
    async fn delete_snapshots(&mut self) {
        let mut ready: BTreeMap<TenantId, Vec<Deletion>> = BTreeMap::new();
        for id in self.open.clone() {
            match self.ready_to_delete(id).await {
                Ok(Some(deletion)) => ready.entry(deletion.row.tenant.clone()).or_default().push(deletion),
                Ok(None) => {
                    self.open.remove(&id);
                }
                Err(error) => tracing::warn!(operation = %id, %error, "delete a snapshot; tried again later"),
            }
        }
        for (tenant, deletions) in ready {
            let going = deletions.iter().map(|d| Going { snapshot: d.row.id, replaced_by: d.replaced_by.clone() });
            let stay = match self.reconciler.forget_snapshots(&tenant, going.collect()).await {
                Ok(stay) => stay,
                Err(problem) => {
                    tracing::warn!(%tenant, problem = problem.message, "delete snapshots; tried again later");
                    continue;
                }
            };
            for Deletion { operation, row, .. } in deletions {
                let id = operation.id;
                let (gone, problem) = match stay.contains(&row.id) {
                    false => (Some(&row), None),
                    true => {
                        self.applied.rest(row.pod, self.app.clock.now());
                        (None, Some(not_replaced("the repository holds none of the snapshots that replace it")))
                    }
                };
                match end(&self.app.store, &*self.app.clock, operation, gone, problem).await {
                    Ok(()) => {
                        self.open.remove(&id);
                    }
                    Err(error) => tracing::warn!(operation = %id, %error, "record a deletion; tried again later"),
                }
            }
        }
    }

    /// The deletion and its snapshot, looked at once more; `None` when it has ended, or ends here.
    async fn ready_to_delete(&self, id: OperationId) -> Result<Option<Deletion>, Error> {
        let (store, clock) = (&self.app.store, &*self.app.clock);
        let Some(operation) = store.operation_fetch(id).await? else { return Ok(None) };
        let Some(snapshot) = operation.snapshot.filter(|_| !operation.state.is_terminal()) else { return Ok(None) };
        let Some(row) = store.snapshot_fetch(snapshot).await? else {
            end(store, clock, operation, None, None).await?;
            return Ok(None);
        };
        let mut problem = None;
        if let Some(pod) = store.pod_fetch(row.pod).await?
            && let Some(message) = self.app.snapshot_dependents(snapshot, &pod).await?.into_iter().next()
        {
            let hint = "start or purge that pod, or wait for the operation, and try again".to_owned();
            problem = Some(Problem { code: "snapshot-in-use".to_owned(), message, hint });
        }
        let mut replaced_by = None;
        if problem.is_none() && operation.actor == RETENTION {
            // What replaced it may have been deleted by hand since a rule let it go.
            let others = self.app.replacements(&row).await?;
            problem = others.is_empty().then(|| not_replaced("no newer verified snapshot is left"));
            replaced_by = Some(others);
        }
        if problem.is_none() {
            return Ok(Some(Deletion { operation, row, replaced_by }));
        }
        end(store, clock, operation, None, problem).await?;
        Ok(None)
    }
}

/// A deletion that can be done.
struct Deletion {
    operation: Operation,
    row: Snapshot,
    /// See [`Going::replaced_by`].
    replaced_by: Option<Vec<SnapshotId>>,
}

/// Why a snapshot stays that a rule let go.
fn not_replaced(message: &str) -> Problem {
    Problem {
        code: "snapshot-not-replaced".to_owned(),
        message: message.to_owned(),
        hint: "nothing is lost; it goes by the rules when a newer verified snapshot has replaced it".to_owned(),
    }
}

async fn end(
    store: &Store,
    clock: &dyn Clock,
    mut operation: Operation,
    gone: Option<&Snapshot>,
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
    if let Some(snapshot) = gone.map(|row| row.id) {
        tracing::info!(%snapshot, pod = %operation.pod, actor = operation.actor, "a snapshot was deleted");
        events.push(event((
            "snapshot.deleted",
            format!("snapshot {snapshot} deleted: {} asked for it", operation.actor),
        )));
    }
    events.push(event(operation.news()));
    let change = Change {
        operations: vec![operation.clone()],
        snapshots_gone: gone.map(|row| row.id).into_iter().collect(),
        prunes_wanted: gone.map(|row| (row.tenant.clone(), now)).into_iter().collect(),
        events,
        ..Change::default()
    };
    store.commit(change).await
}
