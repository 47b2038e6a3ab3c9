//! Drills that were asked for and those of the schedule, one at a time beside everything else.
//!
//! A turn of the schedule asks for drills of the pods that were not tried for the longest time, and reads a share of
//! all packs, another one each time. It is recorded before it begins, and its drills are operations like any other,
//! so a crash loses no more than that turn's reading, which comes round again. Damage is told, and
//! repaired by whoever is told: nothing is moved in a repository while nobody looks.

use std::collections::BTreeSet;
use std::num::{NonZeroU8, NonZeroU64};
use std::sync::Arc;
use std::time::Duration;

use perennial_core::id::{PodId, SnapshotId};
use perennial_core::pod::Pod;
use perennial_core::progress::Progress;
use perennial_core::schedule::Schedule;
use perennial_core::spec::TenantId;

use perennial_core::operation::{NewEvent, Operation, OperationKind, OperationState, Problem};
use perennial_core::snapshot::{Care, Snapshot};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;

use crate::reconcile::{Reconciler, Unproven};
use crate::service::{App, Caller, requested};
use crate::store::{Change, HeadedPod, Page, PodFilter, StoreError, Visibility};

/// How often drills are looked for that another server recorded.
const EVERY: Duration = Duration::from_secs(15);

/// Who asks for the drills of the schedule.
const ACTOR: &str = "drills";
/// Pods read at a time.
const PAGE: u32 = 50;

/// Which drills come by themselves.
#[derive(Debug, Clone)]
pub struct DrillRules {
    /// When.
    pub schedule: Schedule,
    /// Percent of the pods that are drilled each time, at least one, and of all packs that are read.
    pub share: NonZeroU8,
}

pub(super) struct Driller {
    app: App,
    reconciler: Arc<Reconciler>,
    rules: Option<DrillRules>,
}

impl Driller {
    pub(super) fn new(app: App, reconciler: Arc<Reconciler>, rules: Option<DrillRules>) -> Self {
        Self { app, reconciler, rules }
    }

    /// Runs until `stopped` says so. A drill in work is interrupted and stays asked for.
    pub(super) async fn run(self, mut stopped: watch::Receiver<bool>) {
        self.reconciler.drills_clean_up();
        let mut commits = self.app.store.subscribe();
        while !*stopped.borrow() {
            self.drill_due(&stopped).await;
            let something_new = async {
                loop {
                    match commits.recv().await {
                        Ok(commit) if commit.operations.is_empty() => {}
                        Ok(_) | Err(RecvError::Lagged(_)) => return,
                        Err(RecvError::Closed) => std::future::pending().await,
                    }
                }
            };
            tokio::select! {
                () = something_new => {}
                () = tokio::time::sleep(EVERY) => {}
                _ = stopped.changed() => {}
            }
        }
    }

    /// Begins a turn when one is due, and does the drills that were asked for.
    pub(super) async fn drill_due(&self, stopped: &watch::Receiver<bool>) {
        let read = match self.begin_turn().await {
            Ok(read) => read,
            Err(error) => {
                tracing::warn!(%error, "begin the drills of the schedule");
                None
            }
        };
        self.drill_asked(stopped).await;
        if let Some((share, tenants)) = read {
            for tenant in tenants {
                self.read_share(&tenant, share, stopped.clone()).await;
            }
        }
    }

    /// Records a turn that is due and asks for its drills; returns which share of which repositories is to be read.
    async fn begin_turn(&self) -> Result<Option<((u64, NonZeroU64), BTreeSet<TenantId>)>, StoreError> {
        let Some(rules) = &self.rules else { return Ok(None) };
        let now = self.app.clock.now();
        let Some((turn, began)) = self.app.store.drill_turn().await? else {
            // The first one comes when the schedule says so, and not when the server was started.
            self.app.store.drill_turn_begin(0, now).await?;
            return Ok(None);
        };
        // A time in the future is a wrong clock's: the schedule is counted anew.
        let due = began > now || rules.schedule.next_after(began).is_some_and(|at| at <= now);
        if !due || !self.app.store.drill_turn_begin(turn, now).await? || began > now {
            return Ok(None);
        }
        let pods = self.candidates().await?;
        let tenants = pods.iter().map(|(pod, _)| pod.tenant.clone()).collect();
        let count = (pods.len() * usize::from(rules.share.get())).div_ceil(100);
        for (pod, snapshot) in pods.into_iter().take(count) {
            self.ask(&pod, snapshot).await?;
        }
        let of = NonZeroU64::new(100_u64.div_ceil(u64::from(rules.share.get()))).unwrap_or(NonZeroU64::MIN);
        Ok(Some(((turn.unsigned_abs(), of), tenants)))
    }

    /// Every pod with its newest verified snapshot, the longest untried first: one whose drills prove nothing must not
    /// keep the others waiting.
    async fn candidates(&self) -> Result<Vec<(Pod, SnapshotId)>, StoreError> {
        let tries = self.app.store.drill_tries().await?;
        let filter = PodFilter { visibility: Visibility::All, ..PodFilter::default() };
        let mut page = Page::first(PAGE);
        let mut found = Vec::new();
        loop {
            let ids: Vec<PodId> = self.app.store.pod_heads(&filter, &page).await?.iter().map(|head| head.id).collect();
            for HeadedPod { pod, latest, .. } in self.app.store.pods_fetch_with_latest(&ids).await? {
                let Some(latest) = latest.filter(Snapshot::is_restorable) else { continue };
                found.push((pod, latest.id));
            }
            match ids.last() {
                Some(last) if ids.len() == PAGE as usize => page.after = Some(last.to_string()),
                _ => break,
            }
        }
        // Never comes before any time.
        found.sort_by_key(|(pod, _)| (tries.get(&pod.id).copied(), pod.id));
        Ok(found)
    }

    async fn ask(&self, pod: &Pod, snapshot: SnapshotId) -> Result<(), StoreError> {
        if !self.app.store.operations_of_snapshot(snapshot).await?.is_empty() {
            // It is being drilled or deleted already, and that was its turn.
            let drill_tries = vec![(pod.id, self.app.clock.now())];
            return self.app.store.commit(Change { drill_tries, ..Change::default() }).await;
        }
        let caller = Caller::server(ACTOR);
        let operation = self.app.drill_of(pod, snapshot, &caller);
        let events = vec![requested(&operation)];
        self.app.store.commit(Change { operations: vec![operation], events, ..Change::default() }).await
    }

    /// Reads a share of the packs of one repository.
    async fn read_share(&self, tenant: &TenantId, share: (u64, NonZeroU64), mut stopped: watch::Receiver<bool>) {
        let progress = Progress::default();
        let interrupt = async {
            let _ = stopped.wait_for(|stop| *stop).await;
            progress.cancel();
            std::future::pending().await
        };
        let result = tokio::select! {
            biased;
            result = self.reconciler.check_share(tenant, share, &progress) => result,
            never = interrupt => never,
        };
        match result {
            Ok(problems) if problems.is_empty() => {}
            Ok(problems) => {
                tracing::error!(%tenant, count = problems.len(), first = problems.first(), "damage in a repository");
                let first = problems.first().map(String::as_str).unwrap_or_default();
                self.tell(tenant, "repository.damaged", format!("a drill found {} problems: {first}", problems.len()))
                    .await;
            }
            Err(problem) => tracing::warn!(%tenant, problem = problem.message, "read a share of a repository"),
        }
    }

    async fn tell(&self, tenant: &TenantId, kind: &str, message: String) {
        let event = NewEvent {
            at: self.app.clock.now(),
            actor: ACTOR.to_owned(),
            tenant: tenant.clone(),
            pod: None,
            operation: None,
            kind: kind.to_owned(),
            message,
        };
        if let Err(error) = self.app.store.commit(Change { events: vec![event], ..Change::default() }).await {
            tracing::warn!(%tenant, %error, "record what became of a repository");
        }
    }

    /// Does the drills that were asked for.
    async fn drill_asked(&self, stopped: &watch::Receiver<bool>) {
        let found = match self.app.store.operations_of_snapshots().await {
            Ok(found) => found,
            Err(error) => return tracing::warn!(%error, "look for drills"),
        };
        for operation in found.into_iter().filter(|o| o.kind == OperationKind::SnapshotDrill) {
            if *stopped.borrow() {
                return;
            }
            let id = operation.id;
            if let Err(error) = self.drill(operation, stopped.clone()).await {
                tracing::warn!(operation = %id, %error, "record a drill; tried again later");
            }
        }
    }

    async fn drill(&self, mut operation: Operation, mut stopped: watch::Receiver<bool>) -> Result<(), StoreError> {
        let Some(row) = self.snapshot_of(&operation).await? else {
            return self.end(operation, None, Some(gone())).await;
        };
        if operation.state == OperationState::Pending {
            operation.state = OperationState::Running;
            let drill_tries = vec![(operation.pod, self.app.clock.now())];
            let operations = vec![operation.clone()];
            self.app.store.commit(Change { operations, drill_tries, ..Change::default() }).await?;
        }
        // It may have been cancelled while others were drilled; what has ended stays as it ended.
        if self.app.store.operation_fetch(operation.id).await?.is_none_or(|now| now.state.is_terminal()) {
            return Ok(());
        }
        let interrupt = async {
            let _ = stopped.wait_for(|stop| *stop).await;
            self.reconciler.drill_cancel(operation.id);
            std::future::pending().await
        };
        let result = tokio::select! {
            biased;
            result = self.reconciler.drill(&row, Some(operation.id)) => result,
            never = interrupt => never,
        };
        match result {
            Ok(drilled) => {
                tracing::info!(snapshot = %row.id, bytes = drilled.bytes_compared, "a drill proved a snapshot");
                self.end(operation, Some((&row, Care::Proven(self.app.clock.now()))), None).await
            }
            // Whoever cancelled it has recorded that; a server that stops goes on when it is back.
            Err(Unproven::Cancelled) => Ok(()),
            // What was deleted meanwhile cannot be read, which is as it should be.
            Err(Unproven::Damaged(_)) if self.snapshot_of(&operation).await?.is_none() => {
                self.end(operation, None, Some(gone())).await
            }
            Err(Unproven::Damaged(what)) => {
                tracing::error!(snapshot = %row.id, damage = what, "a drill found a snapshot damaged");
                let problem = Problem {
                    code: "snapshot-damaged".to_owned(),
                    message: format!("snapshot {} cannot be restored as it was taken: {what}", row.id),
                    hint:
                        "perennial repository repair salvages what can be; then the next snapshot heals what is still \
                           on the host"
                            .to_owned(),
                };
                let care = Care::Damaged(self.app.clock.now(), what);
                self.end(operation, Some((&row, care)), Some(problem)).await
            }
            Err(Unproven::NotRun(why)) => {
                let problem = Problem {
                    code: "drill-not-run".to_owned(),
                    message: format!(
                        "the drill could not run to its end, which says nothing of the snapshot: {}",
                        why.message
                    ),
                    hint: if why.code == "no-space" { "make space below the data directory" } else { "try again" }
                        .to_owned(),
                };
                self.end(operation, None, Some(problem)).await
            }
        }
    }

    async fn snapshot_of(&self, operation: &Operation) -> Result<Option<Snapshot>, StoreError> {
        match operation.snapshot {
            Some(id) => Ok(self.app.store.snapshot_fetch(id).await?.filter(Snapshot::is_restorable)),
            None => Ok(None),
        }
    }

    async fn end(
        &self,
        mut operation: Operation,
        found: Option<(&Snapshot, Care)>,
        problem: Option<Problem>,
    ) -> Result<(), StoreError> {
        let now = self.app.clock.now();
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
        if let Some((row, care)) = &found {
            events.push(event(match care {
                Care::Damaged(_, what) => ("snapshot.damaged", format!("a drill of snapshot {} found: {what}", row.id)),
                _ => ("snapshot.proven", format!("snapshot {} was restored and compared: it is good", row.id)),
            }));
        }
        events.push(event(operation.news()));
        let cares = found.map(|(row, care)| (row.id, care)).into_iter().collect();
        let change = Change { operations: vec![operation.clone()], cares, events, ..Change::default() };
        self.app.store.commit(change).await
    }
}

fn gone() -> Problem {
    Problem {
        code: "snapshot-gone".to_owned(),
        message: "the snapshot was deleted".to_owned(),
        hint: "choose another: perennial snapshot ls".to_owned(),
    }
}
