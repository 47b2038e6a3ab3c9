//! Pods that are copies of others.

use perennial_core::Error;
use perennial_core::id::{PodId, SnapshotId};
use perennial_core::pod::{Identity, Pod};
use perennial_core::spec::PodName;
use perennial_core::verbs::{self, Answer, ForkSource, Order};

use super::App;
use super::act::{Outcome, Request, requested};
use crate::store::{Change, StoreError};

/// How often a clone is decided anew because its source changed meanwhile.
const ATTEMPTS: usize = 8;

/// A clone, as the API understood it.
#[derive(Debug, Clone)]
pub struct CloneRequest {
    /// Its name.
    pub name: PodName,
    /// The snapshot of the source that it is made from; `None`: the source as it is now.
    pub snapshot: Option<SnapshotId>,
    /// What becomes of the source's identity.
    pub identity: Identity,
}

impl App {
    /// Makes a pod that is a copy of another and starts it. Without a snapshot its data set is copied on the host, where that
    /// can be; elsewhere one is taken of the source first, asked for in the same transaction.
    ///
    /// # Errors
    /// See [`verbs::fork_source`]; [`Error::Conflict`] for a taken name and for a snapshot that is being deleted. Nothing is
    /// created then.
    pub async fn clone_pod(&self, request: Request<'_>, source: PodId, clone: &CloneRequest) -> Result<Outcome, Error> {
        for _ in 0..ATTEMPTS {
            let (pod, _) = self.pod(request.caller, source).await?;
            self.refuse_lapsed(request.caller, source).await?;
            let named = match clone.snapshot {
                Some(id) => Some(self.snapshot(request.caller, id).await?),
                None => None,
            };
            let order = self.order(request.caller);
            let of_source = Order { operation: self.operation_id(), ..order.clone() };
            let from = verbs::fork_source(&pod, named.as_ref(), self.snapshot_id(), &of_source)?;
            self.check_engine(&pod.spec).await?;
            let own = (self.pod_id(), clone.name.clone());
            let (copy, operation) = verbs::fork(own, &pod, from.origin(), clone.identity, &order);
            let bounded = Some(copy.tenant.clone());
            let mut change = Change { pod: Some(copy.clone()), bounded, ..Change::default() };
            match from {
                ForkSource::Stored(id) => change.uses.push(id),
                // What becomes of the source until the copy is made is seen then.
                ForkSource::Host(..) => {}
                ForkSource::Taken(_, decision) => {
                    change.other_pod = Some(decision.pod);
                    change.snapshots.extend(decision.snapshot);
                    if let Answer::New(taking) = decision.answer {
                        change.events.push(requested(&taking));
                        change.operations.push(*taking);
                    }
                }
            }
            change.events.push(requested(&operation));
            change.operations.push(operation.clone());
            let stored = Pod { version: 1, ..copy };
            let outcome = Outcome { pod: stored, latest: None, operation, snapshot: None };
            match self.write(request, change, outcome).await {
                Ok(outcome) => {
                    (self.waker)(source);
                    return Ok(outcome);
                }
                Err(StoreError::Stale) => {}
                Err(other) => return Err(other.into()),
            }
        }
        Err(StoreError::Stale.into())
    }
}
