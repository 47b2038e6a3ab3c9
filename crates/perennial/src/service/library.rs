//! Looking into snapshots: who may, and which of them can be looked into.

use perennial_core::Error;
use perennial_core::id::SnapshotId;
use perennial_core::snapshot::{Snapshot, SnapshotState};
use perennial_snapshots::SnapshotFileId;

use super::{App, Caller};
use crate::library::{PodPath, Source, StoredImage, Version};

/// How much of a snapshot is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// What the pod would see: the image with the changes in it.
    Everything,
    /// What the snapshot itself holds.
    Changes,
}

/// What became of a look into one snapshot; `None` when it is not in the repository.
pub type Looked = Option<Result<Version, Error>>;

impl App {
    /// Finds what of a snapshot can be looked at.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such snapshot for this caller; [`Error::Conflict`] when it is not in the
    /// repository (yet), or its image is not.
    pub async fn snapshot_source(&self, caller: &Caller, id: SnapshotId, shown: Shown) -> Result<Source, Error> {
        let row = self.snapshot(caller, id).await?;
        self.source_of(&row, shown).await
    }

    pub(super) async fn source_of(&self, row: &Snapshot, shown: Shown) -> Result<Source, Error> {
        let id = row.id;
        if row.state == SnapshotState::Failed {
            let reason = row.error.as_deref().unwrap_or("it did not read back");
            let problem = format!("snapshot {id} failed: {reason}");
            return Err(Error::conflict("snapshot-failed", problem, "choose another: perennial snapshot ls"));
        }
        let Some(repository_id) = row.repository_id.as_deref().filter(|_| row.state != SnapshotState::Pending) else {
            let problem = format!("snapshot {id} is not complete in the repository yet");
            return Err(Error::conflict("snapshot-not-ready", problem, "wait for its operation and try again"));
        };
        let image = match (&row.image, shown) {
            (Some(image), Shown::Everything) => Some(self.stored_image(row, image).await?),
            // One of before images were recorded is shown as it is.
            (None, _) | (_, Shown::Changes) => None,
        };
        let snapshot = parse(repository_id)?;
        Ok(Source { tenant: row.tenant.clone(), snapshot, volumes: row.volumes.clone(), image })
    }

    /// Tells what each of these snapshots, newest first, has at a path; nothing of one that is not in the repository.
    ///
    /// # Errors
    /// Why nothing could be looked at.
    pub async fn file_versions(&self, rows: &[Snapshot], path: PodPath, shown: Shown) -> Result<Vec<Looked>, Error> {
        let mut looked: Vec<Looked> = Vec::with_capacity(rows.len());
        let (mut sources, mut places) = (Vec::new(), Vec::new());
        for row in rows {
            if !matches!(row.state, SnapshotState::Uploaded | SnapshotState::Verified) {
                looked.push(None);
                continue;
            }
            match self.source_of(row, shown).await {
                Ok(source) => {
                    places.push(looked.len());
                    sources.push(source);
                    looked.push(None);
                }
                Err(error @ Error::Conflict { .. }) => looked.push(Some(Err(error))),
                Err(error) => return Err(error),
            }
        }
        let versions = self.library.versions(sources, path).await?;
        for (place, version) in places.into_iter().zip(versions) {
            looked[place] = Some(version.map_err(Error::from));
        }
        Ok(looked)
    }

    pub(super) async fn stored_image(&self, row: &Snapshot, image: &str) -> Result<StoredImage, Error> {
        match self.store.image_fetch(&row.tenant, image).await? {
            Some(stored) => Ok(StoredImage { id: image.to_owned(), snapshot: parse(&stored.repository_id)? }),
            None => Err(Error::conflict(
                "image-unreadable",
                format!("image {image}, which the snapshot's changes are relative to, is not in the repository"),
                "ask for the changes alone: changes=true, or --changes",
            )),
        }
    }
}

fn parse(id: &str) -> Result<SnapshotFileId, Error> {
    id.parse().map_err(|_| Error::Internal { problem: format!("{id:?} is not a snapshot of a repository") })
}
