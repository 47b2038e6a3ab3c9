//! The pinned image, kept in the tenant's repository once per image: without it no snapshot is complete.

use std::path::PathBuf;

use perennial_core::progress::Progress;
use perennial_snapshots::{
    ArchiveRequest, Error, Existing, Layout, Pass, Removals, RestoreRequest, Root, SnapshotFileId, Source, Verify,
};

use super::layer::parse_id;
use super::step::{StepError, retry};
use super::worker::{Reconciler, View};
use crate::store::{Change, StoredImage};

/// The file inside an image's snapshot.
const IMAGE_FILE: &str = "image.tar";

/// A directory below the scratch directory that goes when its user is done.
pub(super) struct Scratch(tempfile::TempDir);

impl Scratch {
    pub(super) fn path(&self) -> &std::path::Path {
        self.0.path()
    }
}

/// Runs blocking work on a thread of its own.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StepError> + Send + 'static,
) -> Result<T, StepError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(retry("internal", format!("a worker thread ended: {error}"))),
    }
}

/// The tag that finds an image's snapshot.
fn image_tag(image: &str) -> String {
    format!("image:{image}")
}

/// The directory of an image in its snapshot: `/images/<id>`.
fn image_directory(image: &str) -> String {
    format!("/images/{}", image.replace([':', '/'], "-"))
}

/// Where an image's archive is in its snapshot, as the engine saved it.
pub(crate) fn stored_image_path(image: &str) -> String {
    format!("{}/{IMAGE_FILE}", image_directory(image))
}

/// A restore of a whole tree into an empty directory.
pub(super) fn plain_restore(subtree: String, target: PathBuf) -> RestoreRequest {
    RestoreRequest { subtree, target, existing: Existing::MustBeEmpty, removals: Removals::Ignore, against_lower: None }
}

impl Reconciler {
    pub(super) fn scratch(&self) -> Result<Scratch, StepError> {
        let make = || {
            std::fs::create_dir_all(&self.settings.scratch)?;
            tempfile::tempdir_in(&self.settings.scratch)
        };
        make().map(Scratch).map_err(|e| retry("scratch-unavailable", format!("make a scratch directory: {e}")))
    }

    /// Makes sure that the engine has the pod's image: from its registry or from the repository.
    pub(super) async fn ensure_image(&self, view: &View, progress: &Progress) -> Result<(), StepError> {
        let image = self.pinned(view)?.clone();
        if self.engine.image_resolve(&image.id).await?.is_some() {
            return Ok(());
        }
        let repositories = self.repositories.clone();
        let (tenant, id, progress_) = (view.pod.tenant.clone(), image.id.clone(), progress.clone());
        let scratch = self.scratch()?;
        let target: PathBuf = scratch.path().join("image");
        let into = target.clone();
        let found = blocking(move || {
            std::fs::create_dir(&into).map_err(|e| retry("scratch-unavailable", e.to_string()))?;
            let repository = repositories.open(&tenant)?;
            let Some(stored) = repository.find(&[&image_tag(&id)])?.pop() else { return Ok(false) };
            let request = plain_restore(image_directory(&id), into);
            repository.restore(stored.id, &request, &progress_)?;
            Ok(true)
        })
        .await?;
        if found {
            self.engine.image_import(&target.join(IMAGE_FILE), progress).await?;
        } else if let Some(digest) = &image.digest {
            self.engine.image_pull(digest, progress).await?;
        }
        match self.engine.image_resolve(&image.id).await? {
            Some(_) => Ok(()),
            None => {
                Err(retry("image-lost", format!("image {} is neither on the engine nor in the repository", image.id)))
            }
        }
    }

    /// Makes sure that the pod's image is in the tenant's repository, read back and whole.
    pub(super) async fn ensure_image_stored(&self, view: &View, progress: &Progress) -> Result<(), StepError> {
        let image = self.pinned(view)?.clone();
        if let Some(row) = self.store.image_fetch(&view.pod.tenant, &image.id).await? {
            // The record may be older than the repository, which somebody may have begun anew, or repaired.
            let (repositories, tenant) = (self.repositories.clone(), view.pod.tenant.clone());
            let (stored, path) = (parse_id(&row.repository_id)?, stored_image_path(&image.id));
            let there = blocking(move || {
                let repository = repositories.open(&tenant)?;
                let open = || {
                    let tree = repository.snapshot(stored)?.tree;
                    repository.open_file(&repository.entry(tree, path.as_bytes())?)
                };
                match open() {
                    Ok(_) => Ok(true),
                    // Stored again, it makes whole what shared its blobs (incident P32).
                    Err(Error::NotFound { .. } | Error::MissingBlob { .. } | Error::Damaged { .. }) => Ok(false),
                    Err(error) => Err(error.into()),
                }
            });
            if there.await? {
                return Ok(());
            }
        }
        let (repositories, tenant, id) = (self.repositories.clone(), view.pod.tenant.clone(), image.id.clone());
        let known = blocking({
            let (repositories, tenant, id) = (repositories.clone(), tenant.clone(), id.clone());
            let progress_ = progress.clone();
            move || {
                let repository = repositories.open(&tenant)?;
                let Some(found) = repository.find(&[&image_tag(&id)])?.pop() else { return Ok(None) };
                // Left by a try that did not get to record it: it counts only when all of it is there.
                Ok(repository.verify(found.id, &Verify::Everything, &progress_).is_ok().then_some(found.id))
            }
        })
        .await?;
        let stored = match known {
            Some(found) => found,
            None => self.store_image(view, (repositories, tenant, id), progress).await?,
        };
        let row = StoredImage {
            tenant: view.pod.tenant.clone(),
            image: image.id.clone(),
            repository_id: stored.to_string(),
            stored_at: self.now(),
        };
        self.store.commit(Change { images: vec![row], ..Change::default() }).await?;
        Ok(())
    }

    async fn store_image(
        &self,
        view: &View,
        (repositories, tenant, id): (super::repositories::Repositories, perennial_core::spec::TenantId, String),
        progress: &Progress,
    ) -> Result<SnapshotFileId, StepError> {
        let scratch = self.scratch()?;
        self.engine.image_export(&id, &scratch.path().join(IMAGE_FILE), progress).await?;
        let request = ArchiveRequest {
            time: self.now(),
            hostname: self.settings.installation.clone(),
            tags: vec![image_tag(&id)],
            parents: Vec::new(),
            roots: vec![Root {
                at: image_directory(&id),
                source: Source::Directory {
                    path: scratch.path().to_owned(),
                    layout: Layout::Plain,
                    exclude: Vec::new(),
                },
            }],
            pass: Pass::Commit,
            accept_losses: Vec::new(),
        };
        let progress = progress.clone();
        tracing::info!(image = id, tenant = %view.pod.tenant, "store the image in the repository");
        blocking(move || {
            let repository = repositories.open(&tenant)?;
            let archived = repository.archive(&request, &progress)?;
            drop(scratch);
            let snapshot = archived.snapshot.ok_or_else(|| retry("internal", "a commit pass made no snapshot"))?;
            repository.verify(snapshot, &Verify::Written { packs: archived.written_packs }, &progress)?;
            Ok(snapshot)
        })
        .await
    }
}
