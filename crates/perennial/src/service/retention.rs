//! Snapshots that a schedule takes, and those that rules let go.

use std::collections::BTreeMap;

use jiff::tz::TimeZone;
use perennial_core::id::{OperationId, PodId, SnapshotId};
use perennial_core::operation::{Operation, OperationKind};
use perennial_core::plan;
use perennial_core::pod::Pod;
use perennial_core::retention::{self, Decision, Fate, Keep, Lifetime};
use perennial_core::schedule::{self, Due};
use perennial_core::snapshot::Snapshot;
use perennial_core::{Error, verbs};

use super::act::{Request, requested};
use super::snapshots::deletion;
use super::{App, Caller};
use crate::store::{Change, Page, SnapshotScope, StoreError};

/// Who takes scheduled snapshots.
const SCHEDULER: &str = "system:schedule";
/// Who lets snapshots go by rule.
pub(crate) const RETENTION: &str = "system:retention";
/// Snapshots that go in one transaction; the rest goes with the next.
const AT_ONCE: usize = 100;
/// Rows read at a time.
const PAGE: u32 = 500;
/// How often a decision is made anew because the pod changed meanwhile.
const ATTEMPTS: usize = 8;

/// What is asked of a pod's snapshots.
#[derive(Debug, Clone, Default)]
pub struct Forget {
    /// Other rules than the pod's, for this once.
    pub keep: Option<Keep>,
    /// The pod's name, typed by a person.
    pub confirm: Option<String>,
    /// Whether nothing is done.
    pub dry_run: bool,
}

/// What becomes of a pod's snapshots.
#[derive(Debug, Clone)]
pub struct Forgotten {
    /// The rules that were applied.
    pub keep: Keep,
    /// The time zone they count in.
    pub zone: TimeZone,
    /// Every snapshot that is not being deleted already, newest first.
    pub decisions: Vec<(Snapshot, Decision)>,
    /// The deletions that were begun.
    pub operations: Vec<Operation>,
}

/// What a look at a pod's schedule led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheduled {
    /// Nothing was due.
    Nothing,
    /// The time is recorded; there was nothing to take.
    Passed,
    /// A snapshot was asked for.
    Taken,
}

impl App {
    /// Asks for the snapshot that a pod's schedule wants now, if it wants one. Safe to be called by several servers.
    ///
    /// # Errors
    /// Why the store could not tell or write; the next call tries again.
    pub async fn snapshot_scheduled(&self, pod: PodId) -> Result<Scheduled, Error> {
        let caller = Caller::server(SCHEDULER);
        for _ in 0..ATTEMPTS {
            let Some((pod, latest)) = self.store.pod_fetch_with_latest(pod).await? else {
                return Ok(Scheduled::Nothing);
            };
            let rules = self.settings.snapshot_rules(&pod);
            let (done, scheduled) = match schedule::due(&pod, rules.schedule.as_ref(), latest.as_ref(), self.now()) {
                Due::NotYet => return Ok(Scheduled::Nothing),
                Due::Pass(until) => {
                    let pod = Pod { scheduled_until: Some(until), ..pod };
                    (self.store.commit(Change { pod: Some(pod), ..Change::default() }).await, Scheduled::Passed)
                }
                Due::Take(until) => {
                    let decision = verbs::scheduled_snapshot(&pod, self.snapshot_id(), until, &self.order(&caller))?;
                    let done = self.commit(Request::new(&caller), &pod, decision, latest).await;
                    (done.map(drop), Scheduled::Taken)
                }
            };
            match done {
                Ok(()) => return Ok(scheduled),
                // Another server was faster, or the pod was asked for something.
                Err(StoreError::Stale) => {}
                Err(other) => return Err(other.into()),
            }
        }
        Err(StoreError::Stale.into())
    }

    /// Says which snapshots of a pod its rules keep, and, unless it is a dry run, begins to delete the others.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for rules out of range, and without the confirmation.
    pub async fn snapshots_forget(&self, caller: &Caller, pod: PodId, ask: &Forget) -> Result<Forgotten, Error> {
        if let Some(keep) = &ask.keep {
            keep.validate("keep")?;
        }
        let (record, _) = self.pod(caller, pod).await?;
        if !ask.dry_run && ask.confirm.as_deref() != Some(record.name.as_str()) {
            return Err(Error::invalid(
                "confirm",
                "is not the pod's name",
                format!("repeat the name to confirm: {:?}; see what goes with dryRun", record.name.as_str()),
            ));
        }
        for _ in 0..ATTEMPTS {
            let (pod, _) = self.pod(caller, pod).await?;
            let mut found = self.decide_retention(&pod, ask.keep).await?;
            if ask.dry_run {
                return Ok(found);
            }
            match self.begin_deletions(caller, &pod, &found.decisions).await {
                Ok(operations) => {
                    found.operations = operations;
                    return Ok(found);
                }
                Err(StoreError::Stale | StoreError::SnapshotNeeded(_)) => {}
                Err(other) => return Err(other.into()),
            }
        }
        Err(StoreError::Stale.into())
    }

    /// Lets go what a pod's own rules do not keep; answers the deletions that this begins.
    ///
    /// # Errors
    /// Why the store could not tell or write; the next call tries again.
    pub async fn retention_apply(&self, pod: PodId) -> Result<Vec<OperationId>, Error> {
        let caller = Caller::server(RETENTION);
        let Some(pod) = self.store.pod_fetch(pod).await? else { return Ok(Vec::new()) };
        let purging = pod.tasks.iter().any(|t| matches!(t.work, perennial_core::pod::Work::Purge { .. }));
        if purging || self.settings.snapshot_rules(&pod).keep.is_empty() {
            return Ok(Vec::new());
        }
        let found = self.decide_retention(&pod, None).await?;
        match self.begin_deletions(&caller, &pod, &found.decisions).await {
            Ok(begun) => Ok(begun.into_iter().map(|operation| operation.id).collect()),
            // Whoever changed the pod may have changed the answer: the next look decides anew.
            Err(StoreError::Stale | StoreError::SnapshotNeeded(_)) => Ok(Vec::new()),
            Err(other) => Err(other.into()),
        }
    }

    async fn decide_retention(&self, pod: &Pod, keep: Option<Keep>) -> Result<Forgotten, StoreError> {
        let rules = self.settings.snapshot_rules(pod);
        let keep = keep.unwrap_or(rules.keep);
        let rows = self.snapshots_staying(pod.id).await?;
        let mut in_use: BTreeMap<SnapshotId, String> = plan::referenced_snapshots(pod)
            .into_iter()
            .map(|id| (id, format!("pod {} ({}) refers to it", pod.name, pod.id)))
            .collect();
        let life = Lifetime { born: pod.created_at, now: self.now() };
        // Only of what might go is it worth to ask who needs it.
        for decision in retention::decide(&rows, &keep, &rules.zone, life, &in_use) {
            if decision.fate == Fate::Forget
                && let Some(reason) = self.snapshot_dependents(decision.snapshot, pod).await?.into_iter().next()
            {
                in_use.insert(decision.snapshot, reason);
            }
        }
        let decisions = retention::decide(&rows, &keep, &rules.zone, life, &in_use);
        let decisions = rows.into_iter().zip(decisions).collect();
        Ok(Forgotten { keep, zone: rules.zone, decisions, operations: Vec::new() })
    }

    /// The snapshots of a pod whose deletion was not asked for, newest first.
    pub(super) async fn snapshots_staying(&self, pod: PodId) -> Result<Vec<Snapshot>, StoreError> {
        let unfinished = self.store.operations_unfinished(pod).await?;
        let deletions = unfinished.into_iter().filter(|o| o.kind == OperationKind::SnapshotDelete);
        let deleting: Vec<SnapshotId> = deletions.filter_map(|o| o.snapshot).collect();
        let mut rows = self.all_snapshots(pod).await?;
        rows.retain(|row| !deleting.contains(&row.id));
        Ok(rows)
    }

    /// All snapshots of a pod, newest first.
    pub(super) async fn all_snapshots(&self, pod: PodId) -> Result<Vec<Snapshot>, StoreError> {
        let scope = SnapshotScope::Pod(pod);
        let mut rows: Vec<Snapshot> = Vec::new();
        loop {
            let after = rows.last().map(|s| s.id.to_string());
            let page = self.store.snapshot_list(&scope, &Page { after, limit: PAGE }).await?;
            let is_last = page.len() < PAGE as usize;
            rows.extend(page);
            if is_last {
                return Ok(rows);
            }
        }
    }

    /// Records deletions; the pod's version grows with them, so that whatever was decided on the same rows meanwhile
    /// is decided anew.
    async fn begin_deletions(
        &self,
        caller: &Caller,
        pod: &Pod,
        decisions: &[(Snapshot, Decision)],
    ) -> Result<Vec<Operation>, StoreError> {
        let going = decisions.iter().filter(|(_, decision)| decision.fate == Fate::Forget).take(AT_ONCE);
        let operations: Vec<Operation> = going.map(|(row, _)| deletion(self, pod, row.id, caller)).collect();
        if operations.is_empty() {
            return Ok(operations);
        }
        let change = Change {
            pod: Some(pod.clone()),
            forgets: operations.iter().filter_map(|operation| operation.snapshot).collect(),
            events: operations.iter().map(requested).collect(),
            operations: operations.clone(),
            ..Change::default()
        };
        self.commit_for(caller, change).await?;
        for operation in &operations {
            operation.snapshot.into_iter().for_each(|id| self.remover.snapshot_remove(operation.id, id));
        }
        Ok(operations)
    }

    /// The newer snapshots that stay and replace one that a rule let go.
    ///
    /// # Errors
    /// Why the store could not tell.
    pub(crate) async fn replacements(&self, row: &Snapshot) -> Result<Vec<SnapshotId>, StoreError> {
        let mut found = Vec::new();
        for other in self.all_snapshots(row.pod).await? {
            if retention::is_replaced(row, std::slice::from_ref(&other), self.now()) {
                let work = self.store.operations_of_snapshot(other.id).await?;
                if !work.iter().any(|o| o.kind == OperationKind::SnapshotDelete) {
                    found.push(other.id);
                }
            }
        }
        Ok(found)
    }
}
