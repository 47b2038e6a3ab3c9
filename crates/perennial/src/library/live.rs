//! What is in a pod now, put beside a snapshot.
//!
//! Its directories are walked as for a snapshot of them, which a tenant who rearranges them meanwhile cannot lead astray, into
//! a sketch of the repository ([`perennial_snapshots::Repository::sketch`]): nothing is stored. A file whose size, times
//! and inode are those of the snapshot counts as unchanged; any other is read and hashed. The pod may run: what it
//! changes while it is looked at shows as it was when its turn came.

use std::collections::HashSet;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use perennial_core::id::PodId;
use perennial_core::progress::Progress;
use perennial_core::snapshot::{Loss, SnapshotVolume};
use perennial_core::spec::TenantId;
use perennial_core::volume::SetNumber;
use perennial_snapshots::{
    ArchiveRequest, Error as RepositoryError, Loss as ByteLoss, Parent, Pass, Repository, Root, SnapshotFileId,
    Source as Bytes, TreeId, removed,
};

use super::failure::Failure;
use super::{Difference, Library, PodPath, Source, StoredImage, differences};
use crate::library::view::View;

/// What a look may take up of the disk.
const SKETCH_MAX: u64 = 2 << 30;
/// Where the system layer is in a snapshot.
const SYSTEM: &str = "/system";

/// Where a pod's data is now.
#[derive(Debug, Clone)]
pub struct Present {
    /// The pod.
    pub pod: PodId,
    /// The set that is attached to it.
    pub set: SetNumber,
    /// Its volumes.
    pub volumes: Vec<SnapshotVolume>,
    /// Their directories, and that of the system layer where it is one of this host.
    pub roots: Vec<Root>,
    /// What of the pod is out of reach, and why: the system layer, which then counts as the snapshot has it.
    pub unreached: Option<Loss>,
    /// When it was looked at.
    pub looked_at: Timestamp,
}

/// A look at what is in a pod.
pub struct Sketch {
    repository: Repository,
    tree: TreeId,
    /// Whose repository.
    tenant: TenantId,
    /// What it is compared with: a file counted as unchanged, and was cut, by what this one says of it.
    before: SnapshotFileId,
    present: Present,
    /// Paths that could not be looked at: nothing is known of what is there and below.
    lost: Lost,
    unseen: Vec<Unseen>,
}

/// Paths as the pod sees them of which nothing is known.
pub(super) type Lost = HashSet<Vec<Vec<u8>>>;

/// Something that could not be looked at.
struct Unseen {
    /// Where it is; `None`: everything outside volumes.
    path: Option<Vec<Vec<u8>>>,
    loss: Loss,
}

impl Sketch {
    /// When it was made.
    #[must_use]
    pub const fn looked_at(&self) -> Timestamp {
        self.present.looked_at
    }

    /// Names the look for its next page.
    #[must_use]
    pub fn name(&self) -> String {
        self.tree.to_string()
    }

    /// Whether it is compared with this snapshot.
    pub(super) fn is_beside(&self, before: &Source) -> bool {
        (&self.tenant, self.before) == (&before.tenant, before.snapshot)
    }

    pub(super) const fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    pub(super) const fn pod(&self) -> PodId {
        self.present.pod
    }

    pub(super) const fn set(&self) -> SetNumber {
        self.present.set
    }

    /// What of a path could not be looked at, and why.
    #[must_use]
    pub fn unseen(&self, path: &PodPath) -> Vec<Loss> {
        let asked: Vec<Vec<u8>> = path.names().map(<[u8]>::to_vec).collect();
        let in_volume = self.present.volumes.iter().any(|v| asked.starts_with(&names(Path::new(&v.mount_path))));
        let concerns = |unseen: &&Unseen| match &unseen.path {
            Some(path) => path.starts_with(&asked) || asked.starts_with(path),
            None => !in_volume,
        };
        self.unseen.iter().filter(concerns).map(|unseen| unseen.loss.clone()).collect()
    }
}

impl Library {
    /// Looks at what is in a pod, to be compared with one of its snapshots.
    ///
    /// # Errors
    /// See [`Failure`]; [`Failure::Busy`] when enough pods are looked at already; cancelled when `progress` is.
    pub async fn sketch(&self, before: &Source, present: Present, progress: Progress) -> Result<Arc<Sketch>, Failure> {
        let before = before.clone();
        let turn = self.pods.begin(&before.tenant)?;
        self.look(move |library| {
            let _turn = turn;
            let repository = library.repositories.read(&before.tenant).map_err(Failure::Closed)?;
            std::fs::create_dir_all(&library.scratch).map_err(Failure::Broken)?;
            let repository = repository.sketch(&library.scratch, SKETCH_MAX)?;
            let mut roots = present.roots.clone();
            if present.unreached.is_some() {
                roots.extend(layer_as_stored(&repository, &before)?);
            }
            let request = ArchiveRequest {
                time: present.looked_at,
                hostname: String::new(),
                tags: Vec::new(),
                parents: vec![Parent::Snapshot(before.snapshot)],
                roots,
                pass: Pass::Live,
                accept_losses: Vec::new(),
            };
            let archived = repository.archive(&request, &progress).map_err(full_or_failed)?;
            let layer = present.unreached.iter().map(|loss| Unseen { path: None, loss: loss.clone() });
            let unseen: Vec<_> = layer.chain(archived.losses.iter().map(|loss| unseen(loss, &present))).collect();
            let lost = unseen.iter().filter_map(|unseen| unseen.path.clone()).collect();
            Ok(Arc::new(Sketch {
                repository,
                tree: archived.tree,
                tenant: before.tenant,
                before: before.snapshot,
                present,
                lost,
                unseen,
            }))
        })
        .await
    }

    /// Lists what differs between a snapshot and what a look found, as [`Library::diff`] does; nothing of what could not be
    /// looked at.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn diff_with(
        &self,
        (before, sketch): (Source, Arc<Sketch>),
        image: Option<StoredImage>,
        path: PodPath,
        seen: Option<Vec<Vec<u8>>>,
        most: usize,
    ) -> Result<Vec<Difference>, Failure> {
        self.look(move |library| {
            let old = library.view(&before)?;
            let of_pod = Source { image, ..before };
            // Images are kept longer than looks, which go when nothing refers to them.
            let below = library.repositories.read(&of_pod.tenant).map_err(Failure::Closed)?;
            let image = library.image(&below, &of_pod)?;
            let new = View::of_tree(sketch.repository.clone(), sketch.tree, &sketch.present.volumes, image)?;
            differences((&old, &new), &path, &sketch.lost, (seen, most))
        })
        .await
    }
}

/// The system layer as the snapshot has it, so that nothing differs there.
fn layer_as_stored(repository: &Repository, before: &Source) -> Result<Vec<Root>, Failure> {
    let tree = repository.snapshot(before.snapshot)?.tree;
    let mut roots = Vec::new();
    for at in [SYSTEM.to_owned(), removed::list_path(SYSTEM)] {
        match repository.entry(tree, at.as_bytes()) {
            Ok(_) => roots.push(Root { source: Bytes::Stored { snapshot: before.snapshot, path: at.clone() }, at }),
            Err(RepositoryError::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(roots)
}

/// A store that is full in the middle of a look is the look's own: it writes to no other.
fn full_or_failed(error: RepositoryError) -> Failure {
    match error {
        RepositoryError::Backend(error) if error.source.kind() == io::ErrorKind::StorageFull => Failure::LookTooLarge,
        other => other.into(),
    }
}

fn unseen(loss: &ByteLoss, present: &Present) -> Unseen {
    let path = seen_by_pod(&loss.path, present);
    let loss = Loss { path: path.display().to_string(), reason: loss.reason.to_string() };
    Unseen { path: Some(names(&path)), loss }
}

fn names(path: &Path) -> Vec<Vec<u8>> {
    path.as_os_str().as_bytes().split(|b| *b == b'/').filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect()
}

/// A path of the snapshot as the pod sees it.
fn seen_by_pod(path: &Path, present: &Present) -> PathBuf {
    let in_volume = present.volumes.iter().find_map(|volume| {
        let rest = path.strip_prefix(format!("/volumes/{}", volume.name)).ok()?;
        Some(Path::new(&volume.mount_path).join(rest))
    });
    let in_layer = || path.strip_prefix(SYSTEM).ok().map(|rest| Path::new("/").join(rest));
    in_volume.or_else(in_layer).unwrap_or_else(|| path.to_owned())
}

#[cfg(test)]
mod tests {
    use perennial_snapshots::{BackendError, FileKind};

    use super::*;

    /// It stays so however often somebody asks again.
    #[test]
    fn a_full_look_is_a_conflict_and_a_store_that_fails_is_not() {
        let failed = |kind: io::ErrorKind| {
            let error = BackendError { doing: "write", kind: FileKind::Pack, id: None, source: kind.into() };
            perennial_core::Error::from(full_or_failed(error.into()))
        };
        let full = failed(io::ErrorKind::StorageFull);
        assert!(matches!(&full, perennial_core::Error::Conflict { code, .. } if *code == "look-too-large"), "{full:?}");
        assert!(matches!(failed(io::ErrorKind::TimedOut), perennial_core::Error::Unavailable { .. }));
    }
}
