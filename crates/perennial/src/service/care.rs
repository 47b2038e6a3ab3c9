//! Drills: proving that a snapshot can be restored.

use perennial_core::Error;
use perennial_core::id::SnapshotId;
use perennial_core::operation::{Operation, OperationKind, OperationState};
use perennial_core::pod::Pod;
use perennial_core::progress::ProgressReading;

use super::act::{Outcome, Request, requested};
use super::{App, Caller};
use crate::store::Change;

impl App {
    /// Asks for a drill of a snapshot; one that was asked for and is not over is joined.
    ///
    /// # Errors
    /// [`Error::Conflict`] when the snapshot is not verified, or is being deleted.
    pub async fn snapshot_drill(&self, request: Request<'_>, id: SnapshotId) -> Result<Outcome, Error> {
        let snapshot = self.snapshot(request.caller, id).await?;
        let (pod, latest) = self.pod(request.caller, snapshot.pod).await?;
        if !snapshot.is_restorable() {
            return Err(Error::conflict(
                "snapshot-not-verified",
                format!("snapshot {id} is not verified, so there is nothing to prove yet"),
                "choose a verified one: perennial snapshot ls",
            ));
        }
        self.refuse_deleting(id).await?;
        let unfinished = self.store.operations_of_snapshot(id).await?;
        if let Some(same) = unfinished.into_iter().find(|o| o.kind == OperationKind::SnapshotDrill) {
            return Ok(Outcome { pod, latest, operation: same, snapshot: Some(snapshot) });
        }
        let operation = self.drill_of(&pod, id, request.caller);
        let change =
            Change { operations: vec![operation.clone()], events: vec![requested(&operation)], ..Change::default() };
        let outcome = Outcome { pod, latest, operation, snapshot: Some(snapshot) };
        Ok(self.write(request, change, outcome).await?)
    }

    /// A drill, as it is asked for.
    pub(crate) fn drill_of(&self, pod: &Pod, snapshot: SnapshotId, caller: &Caller) -> Operation {
        Operation {
            id: self.operation_id(),
            tenant: pod.tenant.clone(),
            pod: pod.id,
            kind: OperationKind::SnapshotDrill,
            state: OperationState::Pending,
            step: String::new(),
            progress: ProgressReading::default(),
            snapshot: Some(snapshot),
            error: None,
            actor: caller.actor.clone(),
            created_at: self.now(),
            finished_at: None,
        }
    }
}
