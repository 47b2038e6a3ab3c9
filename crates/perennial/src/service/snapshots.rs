//! The verbs of a snapshot.

use perennial_core::Error;
use perennial_core::id::{PodId, SnapshotId};
use perennial_core::operation::{Operation, OperationKind, OperationState};
use perennial_core::pod::Pod;
use perennial_core::progress::ProgressReading;
use perennial_core::retention;
use perennial_core::snapshot::{Snapshot, SnapshotKind};
use perennial_core::verbs;

use super::act::{Outcome, Request, requested};
use super::pods::{Confirmation, Consent};
use super::{App, Caller};
use crate::store::{Change, StoreError};

/// How often a deletion is decided anew because the pod changed meanwhile.
const ATTEMPTS: usize = 8;

impl App {
    /// Takes a snapshot of a pod.
    ///
    /// # Errors
    /// See [`verbs::snapshot`].
    pub async fn snapshot_create(&self, request: Request<'_>, pod: PodId, consent: &Consent) -> Result<Outcome, Error> {
        let id = self.snapshot_id();
        self.consented(request, pod, (consent, Confirmation::WithLosses), |pod, accepted, order| {
            verbs::snapshot(pod, id, accepted, order)
        })
        .await
    }

    /// Deletes a snapshot nothing depends on (D37); the deletion itself goes on in the background. `confirm` is the name of
    /// its pod, typed by a person: without it the pod's last verified snapshot stays.
    ///
    /// # Errors
    /// [`Error::Conflict`] while a pod depends on it or work refers to it, and for the last one without the confirmation;
    /// [`Error::InvalidInput`] for another name.
    pub async fn snapshot_delete(
        &self,
        request: Request<'_>,
        id: SnapshotId,
        confirm: Option<&str>,
    ) -> Result<Outcome, Error> {
        for _ in 0..ATTEMPTS {
            let snapshot = self.snapshot(request.caller, id).await?;
            let (pod, latest) = self.pod(request.caller, snapshot.pod).await?;
            let unfinished = self.store.operations_of_snapshot(id).await?;
            if let Some(same) = unfinished.iter().find(|o| o.kind == OperationKind::SnapshotDelete) {
                let operation = same.clone();
                return Ok(Outcome { pod, latest, operation, snapshot: Some(snapshot) });
            }
            self.refuse_dependents(id, &pod).await?;
            let consent = Consent { confirm: confirm.map(ToOwned::to_owned), accept_loss: None };
            consent.check(&pod, Confirmation::WithLosses)?;
            if confirm.is_none() {
                self.refuse_last(&snapshot, &pod).await?;
            }
            let operation = deletion(self, &pod, id, request.caller);
            // The pod's version grows, so that a restore of this snapshot decided meanwhile is decided anew.
            let change = Change {
                pod: Some(pod.clone()),
                forgets: vec![id],
                operations: vec![operation.clone()],
                events: vec![requested(&operation)],
                ..Change::default()
            };
            let stored = Pod { version: pod.version + 1, ..pod };
            let outcome = Outcome { pod: stored, latest, operation, snapshot: Some(snapshot) };
            match self.write(request, change, outcome).await {
                Ok(outcome) => {
                    self.remover.snapshot_remove(outcome.operation.id, id);
                    return Ok(outcome);
                }
                Err(StoreError::Stale) => {}
                Err(other) => return Err(other.into()),
            }
        }
        Err(StoreError::Stale.into())
    }

    /// Says what would be lost with this snapshot; empty when nothing depends on it.
    ///
    /// # Errors
    /// Why the store could not tell.
    pub async fn snapshot_dependents(&self, id: SnapshotId, pod: &Pod) -> Result<Vec<String>, StoreError> {
        let mut found: Vec<String> = Vec::new();
        if verbs::depends_on(pod, id) {
            found.push(format!("pod {} ({}) depends on it", pod.name, pod.id));
        }
        let others = self.store.pod_ids_from_snapshot(id).await?;
        found.extend(others.iter().filter(|p| **p != pod.id).map(|p| format!("pod {p} starts from it")));
        let work = self.store.operations_of_snapshot(id).await?;
        let uses = work.iter().filter(|o| o.kind != OperationKind::SnapshotDelete);
        found.extend(uses.map(|o| format!("{} {} is not finished", o.kind.as_str(), o.id)));
        Ok(found)
    }

    async fn refuse_dependents(&self, id: SnapshotId, pod: &Pod) -> Result<(), Error> {
        match self.snapshot_dependents(id, pod).await?.first() {
            None => Ok(()),
            Some(reason) => Err(Error::conflict(
                "snapshot-in-use",
                reason.clone(),
                "start or purge that pod, or wait for the operation, and try again",
            )),
        }
    }

    /// Refuses to let the last snapshot go that a pod could be brought back from, were its volumes lost.
    async fn refuse_last(&self, snapshot: &Snapshot, pod: &Pod) -> Result<(), Error> {
        if !snapshot.is_restorable() || snapshot.kind == SnapshotKind::Imported {
            return Ok(());
        }
        let others = self.snapshots_staying(pod.id).await?;
        if others.iter().any(|other| other.id != snapshot.id && retention::is_whole(other)) {
            return Ok(());
        }
        Err(Error::conflict(
            "last-verified-snapshot",
            format!("{} is the last verified snapshot of pod {} ({})", snapshot.id, pod.name, pod.id),
            format!(
                "take another first (perennial snapshot create {}), or confirm with the pod's name (perennial snapshot rm {} \
                 --yes --last)",
                pod.name, snapshot.id
            ),
        ))
    }

    /// Refuses to build on a snapshot whose deletion was asked for.
    pub(super) async fn refuse_deleting(&self, id: SnapshotId) -> Result<(), Error> {
        let unfinished = self.store.operations_of_snapshot(id).await?;
        if unfinished.iter().any(|o| o.kind == OperationKind::SnapshotDelete) {
            return Err(Error::conflict(
                "snapshot-being-deleted",
                format!("snapshot {id} is being deleted"),
                "choose another: perennial snapshot ls",
            ));
        }
        Ok(())
    }
}

pub(super) fn deletion(app: &App, pod: &Pod, snapshot: SnapshotId, caller: &Caller) -> Operation {
    Operation {
        id: app.operation_id(),
        tenant: pod.tenant.clone(),
        pod: pod.id,
        kind: OperationKind::SnapshotDelete,
        state: OperationState::Pending,
        step: String::new(),
        progress: ProgressReading::default(),
        snapshot: Some(snapshot),
        error: None,
        actor: caller.actor.clone(),
        created_at: app.now(),
        finished_at: None,
    }
}
