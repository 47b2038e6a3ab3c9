//! The pinned image, kept in the tenant's repository once per image: without it no snapshot is complete.

use std::path::{Path, PathBuf};

use perennial_core::progress::Progress;
use perennial_snapshots::{
    ArchiveRequest, Error, Existing, Layout, Pass, Removals, Repository, RestoreRequest, Root, SnapshotFileId, Source,
    Verify,
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

/// Restores an image's archive below a directory, and tells where it is; none when no snapshot has it.
///
/// The snapshot on record was read back when it was recorded, and needs nothing but itself; then the newest. A damaged one
/// may lie beside whole ones, since what a repair cannot heal it keeps (incident P32), so each is tried.
fn restore_image(
    repository: &Repository,
    recorded: Option<SnapshotFileId>,
    image: &str,
    into: &Path,
    progress: &Progress,
) -> perennial_snapshots::Result<Option<PathBuf>> {
    let restore = |stored: SnapshotFileId| {
        let target = into.join(stored.to_string());
        std::fs::create_dir(&target).map_err(|source| Error::System { doing: "make a scratch directory", source })?;
        let done = repository.restore(stored, &plain_restore(image_directory(image), target.clone()), progress);
        done.map(|_| target.join(IMAGE_FILE)).inspect_err(|_| {
            let _ = std::fs::remove_dir_all(&target);
        })
    };
    let mut damage = None;
    let mut attempt = |stored| match restore(stored) {
        Ok(archive) => Ok(Some(archive)),
        Err(error) if error.is_damage() => {
            damage = Some(error);
            Ok(None)
        }
        Err(error) => Err(error),
    };
    if let Some(archive) = recorded.map(&mut attempt).transpose()?.flatten() {
        return Ok(Some(archive));
    }
    for found in repository.find(&[&image_tag(image)])?.iter().rev().filter(|found| Some(found.id) != recorded) {
        if let Some(archive) = attempt(found.id)? {
            return Ok(Some(archive));
        }
    }
    match damage {
        None | Some(Error::NotFound { .. }) => Ok(None),
        Some(damage) => Err(damage),
    }
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
        let recorded = match self.store.image_fetch(&view.pod.tenant, &image.id).await? {
            Some(row) => Some(parse_id(&row.repository_id)?),
            None => None,
        };
        let repositories = self.repositories.clone();
        let (tenant, id, progress_) = (view.pod.tenant.clone(), image.id.clone(), progress.clone());
        let scratch = self.scratch()?;
        let into = scratch.path().to_owned();
        let elsewhere = image.digest.is_some();
        let restored = blocking(move || {
            match restore_image(&repositories.open(&tenant)?, recorded, &id, &into, &progress_) {
                // Its registry may still have it.
                Err(error) if error.is_damage() && elsewhere => Ok(None),
                result => Ok(result?),
            }
        });
        if let Some(archive) = restored.await? {
            self.engine.image_import(&archive, progress).await?;
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
