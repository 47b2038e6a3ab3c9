//! Going back to a snapshot, with everything or with parts.

use std::collections::BTreeSet;

use super::{Decision, Order, replace};
use crate::error::Error;
use crate::operation::OperationKind;
use crate::parts::{Layer, Parts, Selection};
use crate::pod::{Acceptance, Pod};
use crate::snapshot::Snapshot;
use crate::volume::Origin;

/// Replaces the data set, or parts of it, by a snapshot, after a safety snapshot.
///
/// # Errors
/// [`Error::Conflict`] when the snapshot cannot be restored, or the pod is archived, deleted or being purged;
/// [`Error::NotFound`] when the snapshot is another tenant's; [`Error::InvalidInput`] for parts that it does not have.
pub fn restore(
    pod: &Pod,
    (snapshot, parts): (&Snapshot, Option<Parts>),
    accepted: Option<Acceptance>,
    order: &Order,
) -> Result<Decision, Error> {
    require_restorable(pod, snapshot)?;
    if let Some(parts) = &parts {
        select(pod, snapshot, parts)?;
    }
    replace(pod, OperationKind::Restore, (Origin::Snapshot(snapshot.id), parts), accepted, order)
}

/// Finds where parts of a snapshot are stored that are to be put into a pod's data.
///
/// # Errors
/// [`Error::InvalidInput`] naming `volumes` or `paths`; [`Error::Conflict`] when both are not kept in the same way.
pub fn select(pod: &Pod, snapshot: &Snapshot, parts: &Parts) -> Result<Vec<Selection>, Error> {
    let backend = pod.current_set().map(|set| set.backend);
    if let (Some(ours), Some(theirs)) = (backend, snapshot.backend)
        && ours != theirs
    {
        return Err(Error::conflict(
            "snapshot-of-another-backend",
            format!(
                "snapshot {} is of {} volumes, and the pod's are {}: their parts cannot be put together",
                snapshot.id,
                theirs.as_str(),
                ours.as_str()
            ),
            "leave out volumes and paths to restore everything, or fetch the files: perennial snapshot export",
        ));
    }
    let volumes: Vec<(&str, &str)> =
        snapshot.volumes.iter().map(|v| (v.name.as_str(), v.mount_path.as_str())).collect();
    let found = parts.select(&volumes, if pod.keeps_layer() { Layer::Kept } else { Layer::None })?;
    if let Some(set) = pod.current_set() {
        let ours = set.volumes.iter().map(|v| (v.name.as_str(), v.mount_path.as_str()));
        require_same_volumes(snapshot, ours)?;
    }
    Ok(found)
}

/// Requires that a snapshot has these volumes, by name and mount path: elsewhere the same path, or the same name, means
/// something else.
///
/// # Errors
/// [`Error::Conflict`] naming what one has and the other has not.
pub fn require_same_volumes<'a>(
    snapshot: &Snapshot,
    ours: impl Iterator<Item = (&'a str, &'a str)>,
) -> Result<(), Error> {
    let ours: BTreeSet<(&str, &str)> = ours.collect();
    let theirs = snapshot.volumes.iter().map(|v| (v.name.as_str(), v.mount_path.as_str())).collect();
    let mut differ = ours.symmetric_difference(&theirs);
    let Some((name, mount)) = differ.next() else { return Ok(()) };
    let (has, lacks) =
        if ours.contains(&(*name, *mount)) { ("the pod", "the snapshot") } else { ("the snapshot", "the pod") };
    Err(Error::conflict(
        "snapshot-of-other-volumes",
        format!(
            "{has} has volume {name} at {mount} and {lacks} has not: parts of snapshot {} cannot be taken",
            snapshot.id
        ),
        "leave out volumes and paths to restore everything, or fetch the files: perennial snapshot export",
    ))
}

fn require_restorable(pod: &Pod, snapshot: &Snapshot) -> Result<(), Error> {
    if snapshot.tenant != pod.tenant {
        return Err(Error::not_found(format!("snapshot {}", snapshot.id)));
    }
    if !snapshot.is_restorable() {
        return Err(not_restorable(snapshot));
    }
    // Its trees and its system layer are changes of one image; over another they would make a mixture (law 3).
    match (&snapshot.image, &pod.image) {
        (Some(theirs), Some(ours)) if *theirs != ours.id => Err(Error::conflict(
            "snapshot-of-another-image",
            format!("snapshot {} is of image {theirs}, and the pod runs {}", snapshot.id, ours.id),
            "make a new pod from it: perennial pod create NAME --from-snapshot",
        )),
        _ => Ok(()),
    }
}

/// The refusal to take data from a snapshot that is not verified.
#[must_use]
pub fn not_restorable(snapshot: &Snapshot) -> Error {
    Error::conflict(
        "snapshot-not-restorable",
        format!("snapshot {} is not verified", snapshot.id),
        "choose a verified one: perennial snapshot ls",
    )
}
