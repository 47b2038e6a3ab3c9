//! Filling a new volume set from its origin.

use std::path::PathBuf;

use perennial_core::engine::{Fill, Presence, SetAccess, VolumePath};
use perennial_core::permit::DeletePermit;
use perennial_core::progress::Progress;
use perennial_core::record::Record;
use perennial_core::snapshot::Snapshot;
use perennial_core::spec::Backend;
use perennial_core::volume::{Origin, SetNumber, VolumeSet};
use perennial_snapshots::{Error, Existing, Removals, Repository, RestoreRequest, SnapshotFileId};

use super::capture::Reached;
use super::images::blocking;
use super::layer::{SYSTEM, SYSTEM_REMOVED, layer_removals, parse_id};
use super::placement::Placement;
use super::step::{StepError, definite, retry};
use super::worker::{Reconciler, View, set_spec, unknown_set};

impl Reconciler {
    /// Makes the set's volumes anew, fills them, marks them complete; repeated from nothing after any failure.
    pub(super) async fn fill_set(
        &self,
        view: &mut View,
        number: SetNumber,
        progress: &Progress,
    ) -> Result<(), StepError> {
        self.ensure_image(view, progress).await?;
        let set = view.pod.set(number).ok_or_else(unknown_set)?.clone();
        let spec = set_spec(&view.pod, &set);
        self.clear_earlier_try(view, &set).await?;
        match set.origin {
            Origin::Pod { pod, set: of } => return self.copy_set(view, &set, (pod, of), progress).await,
            Origin::Image => {
                self.engine.set_prepare(&spec, Fill::Image).await?;
                self.sync_seeded(view, &set).await?;
            }
            Origin::Snapshot(id) => {
                let row = view.snapshot(id).filter(|s| s.is_restorable()).ok_or_else(|| {
                    definite(
                        "snapshot-not-restorable",
                        format!("snapshot {id} is not verified or no longer exists"),
                        "",
                    )
                })?;
                let row = row.clone();
                let fill = restore_fill(&row, &set);
                self.check_snapshot_readable(view, &row).await?;
                self.engine.set_prepare(&spec, fill).await?;
                self.restore_volumes(view, &set, &row, progress).await?;
            }
        }
        self.engine.set_complete(&spec).await?;
        let layer = match set.origin {
            Origin::Image | Origin::Pod { .. } => None,
            Origin::Snapshot(id) => {
                let row = view.snapshot(id).ok_or(StepError::Overtaken)?.clone();
                self.layer_of_snapshot(view, &row, &set, progress).await?
            }
        };
        self.record(view, Record::SetCompleted { set: number, layer, gap: None }).await
    }

    /// Removes what an earlier try of the same set left, even one that was finished and not recorded.
    async fn clear_earlier_try(&self, view: &View, set: &VolumeSet) -> Result<(), StepError> {
        if view.observed.set(set.number).is_none_or(|s| s.presence == Presence::Absent) {
            return Ok(());
        }
        let permit = DeletePermit::never_started_set(&view.pod, set.number, &view.observed)
            .map_err(|denied| retry("set-in-use", format!("set {} cannot be made again: {denied}", set.number)))?;
        self.engine.set_delete(&set_spec(&view.pod, set), &permit).await?;
        Ok(())
    }

    /// Looks whether the snapshot is there before anything is made for it.
    async fn check_snapshot_readable(&self, view: &View, row: &Snapshot) -> Result<(), StepError> {
        let (repositories, tenant) = (self.repositories.clone(), view.pod.tenant.clone());
        let id = parse_id(row.repository_id.as_deref().unwrap_or_default())?;
        blocking(move || {
            let found = repositories.open(&tenant).and_then(|r| Ok(r.snapshot(id)?));
            if found.is_err() {
                // Another look has to see the place anew: a disk may come back.
                repositories.close(&tenant);
            }
            found.map(drop)
        })
        .await
    }

    async fn restore_volumes(
        &self,
        view: &View,
        set: &VolumeSet,
        row: &Snapshot,
        progress: &Progress,
    ) -> Result<(), StepError> {
        let placement = Placement::new(row, set)?;
        let Reached { paths, mut reach } = self.reach(view, set).await?;
        let from = row.backend.unwrap_or(set.backend);
        let id = parse_id(row.repository_id.as_deref().unwrap_or_default())?;
        let (repositories, tenant, progress) = (self.repositories.clone(), view.pod.tenant.clone(), progress.clone());
        progress.set_total(row.bytes.unwrap_or_default());
        let expected = row.volumes.clone();
        blocking(move || {
            let repository = repositories.open(&tenant)?;
            // In one call: they wait for the disk together.
            let (mut requests, mut counted) = (Vec::new(), Vec::new());
            for path in &paths {
                if let Some(volume) = expected.iter().find(|v| v.name == path.name) {
                    requests.push(volume_request(path, from));
                    // Of a whole tree only what differs from the image is in an overlay.
                    let whole = from == Backend::Overlay || path.lower.is_none();
                    counted.push((&path.name, volume.files.filter(|_| whole)));
                } else if let Some(directory) = placement.out_of_layer(&path.name)
                    && is_in_layer(&repository, id, directory)?
                {
                    requests.push(request_out_of_layer(path, directory));
                    counted.push((&path.name, None));
                }
                // Any other that the image gained since keeps what the image seeds it with.
            }
            let restored = reach.restore_all(&repository, id, &requests, &progress)?;
            for ((name, expected), restored) in counted.into_iter().zip(restored) {
                let files = restored.counts.files;
                if let Some(expected) = expected.filter(|expected| *expected != files) {
                    let message = format!("volume {name}: {files} files restored, {expected} captured");
                    return Err(retry("repository-restore-incomplete", message));
                }
            }
            Ok(())
        })
        .await
    }

    /// Makes durable what the engine copied into a set that only a mover reaches; elsewhere its driver did so.
    async fn sync_seeded(&self, view: &View, set: &VolumeSet) -> Result<(), StepError> {
        if set.backend == Backend::Overlay
            || matches!(self.engine.set_access(&set_spec(&view.pod, set)).await?, SetAccess::Local(_))
        {
            return Ok(());
        }
        let Reached { paths, mut reach } = self.reach(view, set).await?;
        blocking(move || {
            let directories: Vec<PathBuf> = paths.into_iter().map(|v| v.path).collect();
            Ok(reach.sync(&directories)?)
        })
        .await
    }
}

/// Whether a snapshot's system layer has this directory.
fn is_in_layer(repository: &Repository, id: SnapshotFileId, directory: &str) -> Result<bool, StepError> {
    match repository.ls(id, &format!("{SYSTEM}/{directory}")) {
        Ok(_) => {}
        Err(Error::NotFound { .. }) => {
            let deleted = layer_removals(repository, id)?.iter().any(|r| r.path == directory.as_bytes());
            return if deleted { Err(no_directory(directory)) } else { Ok(false) };
        }
        Err(Error::InvalidContent { .. }) => return Err(no_directory(directory)),
        Err(error) => return Err(error.into()),
    }
    Ok(true)
}

fn no_directory(directory: &str) -> StepError {
    let message = format!("/{directory} is a volume of the new set, and in the snapshot it is no directory");
    definite("volume-unplaced", message, "restore it to a pod with the volume backend of the snapshot")
}

/// How the engine has to make volumes that this snapshot is restored into.
fn restore_fill(row: &Snapshot, set: &VolumeSet) -> Fill {
    match (row.backend.unwrap_or(set.backend), set.backend) {
        // Whole trees need nothing below them.
        (Backend::Engine, Backend::Engine) => Fill::Empty,
        // Changes need what they change; an overlay has it below.
        (Backend::Overlay, _) | (Backend::Engine, Backend::Overlay) => Fill::Image,
    }
}

/// The restore of one volume, whichever way snapshot and set keep trees.
fn volume_request(path: &VolumePath, from: Backend) -> RestoreRequest {
    let list = format!("/removed/{}", path.name);
    let (existing, removals, against_lower) = match (from, &path.lower) {
        (Backend::Overlay, Some(_)) => (Existing::Replace, Removals::Whiteouts { list }, None),
        (Backend::Overlay, None) => (Existing::Keep, Removals::Delete { list }, None),
        (Backend::Engine, Some(lower)) => (Existing::Replace, Removals::Ignore, Some(lower.clone())),
        (Backend::Engine, None) => (Existing::Replace, Removals::Ignore, None),
    };
    RestoreRequest {
        subtree: format!("/volumes/{}", path.name),
        target: path.path.clone(),
        existing,
        removals,
        against_lower,
    }
}

/// The restore of a volume whose directory was in the snapshot's system layer.
fn request_out_of_layer(path: &VolumePath, directory: &str) -> RestoreRequest {
    RestoreRequest {
        subtree: format!("{SYSTEM}/{directory}"),
        target: path.path.clone(),
        existing: Existing::Replace,
        removals: Removals::WhiteoutsBelow { list: SYSTEM_REMOVED.to_owned(), directory: directory.to_owned() },
        against_lower: None,
    }
}
