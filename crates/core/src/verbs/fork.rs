//! Making a pod that is a copy of another.

use super::{Decision, Order, is_released, not_restorable, operation, refuse_purging, require_living, snapshot};
use crate::error::Error;
use crate::id::{PodId, SnapshotId};
use crate::operation::{Operation, OperationKind};
use crate::pod::{Desired, Fork, Identity, Pod, Work};
use crate::snapshot::Snapshot;
use crate::spec::{Backend, PodName, PodSpec, PortSpec};
use crate::volume::{Origin, VolumeSet};

/// Where a clone's data comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ForkSource {
    /// A snapshot that is there.
    Stored(SnapshotId),
    /// One that is taken for it: what this changes in the source.
    Taken(SnapshotId, Box<Decision>),
    /// The data set of this pod on the host.
    Host(PodId),
}

impl ForkSource {
    /// What the clone's first set is made from.
    #[must_use]
    pub const fn origin(&self) -> Origin {
        match self {
            Self::Stored(id) | Self::Taken(id, _) => Origin::Snapshot(*id),
            Self::Host(pod) => Origin::Pod(*pod),
        }
    }
}

/// Decides what a clone is made from: the named snapshot, the final one of a stopped pod, the data set on the host where it
/// can be copied, or a new snapshot with this id.
///
/// # Errors
/// [`Error::InvalidInput`] for a snapshot of another pod; [`Error::Conflict`] when it cannot be restored, and when the pod
/// has no data, or has it neither on the host nor in a final snapshot.
pub fn fork_source(source: &Pod, named: Option<&Snapshot>, id: SnapshotId, order: &Order) -> Result<ForkSource, Error> {
    if let Some(named) = named {
        refuse_purging(source)?;
        if named.pod != source.id {
            let hint = "list them: perennial snapshot ls POD";
            return Err(Error::invalid("snapshotId", "is of another pod", hint));
        }
        return if named.is_restorable() { Ok(ForkSource::Stored(named.id)) } else { Err(not_restorable(named)) };
    }
    require_living(source)?;
    if is_released(source) {
        return match source.source {
            Some(Origin::Snapshot(last)) => Ok(ForkSource::Stored(last)),
            _ => Err(no_data()),
        };
    }
    if source.image.is_none() {
        return Err(no_data());
    }
    if is_copied_on_host(source) {
        return Ok(ForkSource::Host(source.id));
    }
    taken(source, id, order)
}

/// Decides for a clone whose source cannot be copied on the host after all: the final snapshot of a source that was released
/// since, whatever became of it, or a new one with this id.
///
/// # Errors
/// [`Error::Conflict`] when the source is being purged, or is on its way to being released.
pub fn fork_source_elsewhere(source: &Pod, id: SnapshotId, order: &Order) -> Result<ForkSource, Error> {
    refuse_purging(source)?;
    match source.source {
        Some(Origin::Snapshot(last)) if is_released(source) => Ok(ForkSource::Stored(last)),
        _ => taken(source, id, order),
    }
}

fn taken(source: &Pod, id: SnapshotId, order: &Order) -> Result<ForkSource, Error> {
    Ok(ForkSource::Taken(id, Box::new(snapshot(source, id, None, order)?)))
}

/// Whether the data is a whole overlay set on the host that nobody is about to replace. What is queued comes first.
fn is_copied_on_host(source: &Pod) -> bool {
    let ran = |set: &VolumeSet| set.backend == Backend::Overlay && set.attached.is_some();
    let stays = matches!(source.desired, Desired::Running | Desired::Paused)
        && source.tasks.iter().all(|task| matches!(task.work, Work::Snapshot { .. } | Work::Restart { .. }));
    stays && source.current_set().is_some_and(ran)
}

fn no_data() -> Error {
    Error::conflict(
        "pod-never-ran",
        "the pod never ran, so there is no data to copy",
        "start it first, or make another from its image: perennial pod create",
    )
}

/// The clone of a pod, and the operation that makes it. Ports of the host are its source's, and not taken over.
#[must_use]
pub fn fork(
    (id, name): (PodId, PodName),
    source: &Pod,
    from: Origin,
    identity: Identity,
    order: &Order,
) -> (Pod, Operation) {
    let ports = source.spec.ports.iter().map(|port| PortSpec { host: None, ..*port }).collect();
    let spec = PodSpec { ports, ..source.spec.clone() };
    let mut pod = Pod::new(id, source.tenant.clone(), name, spec, order.operation, order.now);
    if let Some(goal) = &mut pod.goal {
        goal.kind = OperationKind::Clone;
    }
    pod.source = Some(from);
    pod.image.clone_from(&source.image);
    pod.fork = Some(Fork { identity, composed: None });
    let mut operation = operation(&pod, OperationKind::Clone, order);
    operation.snapshot = match from {
        Origin::Snapshot(id) => Some(id),
        Origin::Image | Origin::Pod(_) => None,
    };
    (pod, operation)
}
