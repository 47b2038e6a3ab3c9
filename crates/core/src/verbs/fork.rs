//! Making a pod that is a copy of another.

use super::{Decision, Order, is_released, not_restorable, operation, refuse_purging, require_living, snapshot};
use crate::error::Error;
use crate::id::{PodId, SnapshotId};
use crate::operation::{Operation, OperationKind};
use crate::pod::{Desired, Fork, Identity, Pod, Work};
use crate::snapshot::{Snapshot, SnapshotKind};
use crate::spec::{Backend, PodName, PodSpec, PortSpec};
use crate::volume::{Origin, SetNumber, VolumeSet};

/// Where a clone's data comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ForkSource {
    /// A snapshot that is there.
    Stored(SnapshotId),
    /// One that is taken for it: what this changes in the source.
    Taken(SnapshotId, Box<Decision>),
    /// This data set of this pod on the host.
    Host(PodId, SetNumber),
}

impl ForkSource {
    /// What the clone's first set is made from.
    #[must_use]
    pub const fn origin(&self) -> Origin {
        match self {
            Self::Stored(id) | Self::Taken(id, _) => Origin::Snapshot(*id),
            Self::Host(pod, set) => Origin::Pod { pod: *pod, set: *set },
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
    if let Some(set) = copied_on_host(source) {
        return Ok(ForkSource::Host(source.id, set.number));
    }
    taken(source, id, order)
}

/// Decides for a clone of this set that cannot be copied on the host after all: a new snapshot with this id as long as it is
/// the pod's data, and otherwise what was captured of it, among these of the pod's snapshots, when it was released or replaced.
///
/// # Errors
/// [`Error::Conflict`]: `clone-source-replaced` when nothing holds the set's data any more; otherwise the source is being purged,
/// or on its way to being released or to other data.
pub fn fork_source_elsewhere(
    (source, set): (&Pod, SetNumber),
    captured: &[Snapshot],
    id: SnapshotId,
    order: &Order,
) -> Result<ForkSource, Error> {
    refuse_purging(source)?;
    if source.current_set().is_some_and(|current| current.number == set) {
        if source.tasks.iter().any(|task| matches!(task.work, Work::Replace { .. })) {
            let hint = "wait until it is done: perennial op ls POD";
            return Err(Error::conflict("pod-busy", "the data of the pod is about to be replaced", hint));
        }
        return taken(source, id, order);
    }
    let last = |s: &&Snapshot| {
        let kept = matches!(s.kind, SnapshotKind::Final | SnapshotKind::Safety) && s.is_restorable();
        kept && s.pod == source.id && s.set == Some(set)
    };
    let last = captured.iter().filter(last).max_by_key(|s| (s.captured_at, s.id));
    last.map(|last| ForkSource::Stored(last.id)).ok_or_else(|| {
        Error::conflict(
            REPLACED,
            "the data of its source was replaced before it was copied, and no snapshot holds what it was",
            "delete this pod (perennial pod rm), and clone another",
        )
    })
}

/// The code of the error of a clone whose source's data is no more.
pub const REPLACED: &str = "clone-source-replaced";

fn taken(source: &Pod, id: SnapshotId, order: &Order) -> Result<ForkSource, Error> {
    Ok(ForkSource::Taken(id, Box::new(snapshot(source, id, None, order)?)))
}

/// The overlay set on the host that is the data, when nobody is about to replace it, and when no hook has to run before it is
/// whole. What is queued comes first.
fn copied_on_host(source: &Pod) -> Option<&VolumeSet> {
    let ran = |set: &VolumeSet| set.backend == Backend::Overlay && set.attached.is_some();
    let stays = matches!(source.desired, Desired::Running | Desired::Paused)
        && source.tasks.iter().all(|task| matches!(task.work, Work::Snapshot { .. } | Work::Restart { .. }));
    source.current_set().filter(|_| stays && source.spec.hooks.before.is_none()).filter(|set| ran(set))
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
        Origin::Image | Origin::Pod { .. } => None,
    };
    (pod, operation)
}
