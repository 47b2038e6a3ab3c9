//! Restoring: from a snapshot to a directory, which may be hostile while we write.
//!
//! Nothing is touched before the whole subtree was walked and every blob found in the index. Then one thread goes
//! through the tree, makes directories and special files and queues regular files ([`plan`]); workers write those
//! ([`write`]); a directory's metadata comes when its last entry is done ([`meta`]). An existing file is never
//! written into: what differs is written beside it and renamed over it, so that other names of the old inode (hard
//! links) and its open readers keep what they had. Nothing is durable before the one call at the end, [`crate::durable`].

mod behind;
mod lists;
mod lower;
mod meta;
mod plan;
mod preview;
mod remove;
mod write;

pub(crate) use meta::{Overlay, apply};
pub use preview::{Lost, RestorePreview, WhyLost};
pub(crate) use remove::{remove_entry, temporary_name};

use std::path::PathBuf;
use std::sync::Arc;

use perennial_core::progress::Progress;

use crate::error::{Error, Result};
use crate::fsdir::{self, Dir};
use crate::id::{Id, SnapshotFileId};
use crate::lock::{LockGuard, LockMode};
use crate::node::Node;
use crate::reader::Reader;
use crate::removed::{self, Removed};
use crate::repository::Repository;
use crate::request::Counts;
use crate::verify::walk_tree;

/// What to restore, and where.
#[derive(Debug, Clone)]
pub struct RestoreRequest {
    /// A directory in the snapshot, such as `/volumes/home`.
    pub subtree: String,
    /// The directory that becomes it. It is made when missing; its parent must exist, and its last component must
    /// not be a symbolic link.
    pub target: PathBuf,
    /// What happens to what is there.
    pub existing: Existing,
    /// What happens with the subtree's removed list.
    pub removals: Removals,
    /// For a full tree that becomes an overlay's upper layer: the lower layer. Only what differs from it is restored,
    /// and whiteouts are made for what it has and the snapshot lacks. Goes with [`Removals::Ignore`].
    pub against_lower: Option<PathBuf>,
}

/// What a restore does to entries that exist already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// There must be none, or nothing is restored.
    MustBeEmpty,
    /// The target becomes exactly what the snapshot holds; only what differs is touched, extra entries are deleted.
    Replace,
    /// Entries of the snapshot are added or replaced; extra entries stay.
    Keep,
}

/// What a restore does with a removed list, see [`removed`](crate::removed).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removals {
    /// Nothing: the subtree is all there is.
    Ignore,
    /// The target is an overlay's upper layer: make whiteouts and opaque marks.
    Whiteouts {
        /// The list's path in the snapshot.
        list: String,
    },
    /// The same, with a list that is of a directory above the subtree.
    WhiteoutsBelow {
        /// The list's path in the snapshot.
        list: String,
        /// The subtree's place among the list's paths.
        directory: String,
    },
    /// The target was seeded with the lower layer's content: delete what the list names, and everything that an
    /// opaque directory hides.
    Delete {
        /// The list's path in the snapshot.
        list: String,
    },
}

/// What a restore did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// What the target now holds of the snapshot.
    pub counts: Counts,
    /// Regular files that were there already with the same content.
    pub unchanged_files: u64,
    /// Bytes written into files; holes do not count.
    pub written_bytes: u64,
    /// Entries deleted, each with everything below it counting once.
    pub removed_entries: u64,
    /// Whiteouts made.
    pub whiteouts: u64,
}

/// What a request needs of the repository.
struct Part {
    root: Node,
    /// What the subtree holds.
    expected: Counts,
    list: Vec<Removed>,
}

impl Repository {
    /// Restores a directory of a snapshot; durable when it returns.
    ///
    /// # Errors
    /// [`Error::TargetNotEmpty`]; [`Error::MissingBlob`] and [`Error::Mismatch`] before anything was touched;
    /// [`Error::Damaged`] and [`Error::Io`] also later, when the target is incomplete: nobody may count on it, and
    /// the same call with [`Existing::Replace`] finishes it.
    pub fn restore(&self, snapshot: SnapshotFileId, request: &RestoreRequest, progress: &Progress) -> Result<Restored> {
        let mut restored = self.restore_all(snapshot, std::slice::from_ref(request), progress)?;
        restored.pop().ok_or_else(|| Error::InvalidRequest("nothing to restore".into()))
    }

    /// Restores directories of a snapshot one after the other, as [`restore`](Self::restore) does each of them; all of them
    /// are durable when it returns, and none before. Several cost one lock, one look at the index and one wait for the disk.
    ///
    /// # Errors
    /// As there; before anything was touched means before anything of any of them was.
    pub fn restore_all(
        &self,
        snapshot: SnapshotFileId,
        requests: &[RestoreRequest],
        progress: &Progress,
    ) -> Result<Vec<Restored>> {
        let inner = &self.inner;
        progress.check()?;
        let _guard = LockGuard::acquire(inner, LockMode::Shared)?;
        inner.refresh_index()?;
        let tree = inner.load_snapshot(snapshot)?.tree;
        let reader = Reader::new(inner);
        let looked_up = |request: &RestoreRequest| self.look_up((snapshot, tree), request, &reader, progress);
        let parts = requests.iter().map(looked_up).collect::<Result<Vec<_>>>()?;
        progress.set_total(parts.iter().map(|part| part.expected.bytes).sum());
        let targets = requests.iter().map(open_target).collect::<Result<Vec<_>>>()?;
        // Opened before anything is written: what cannot be written later is told to those who had opened it.
        let opened = |(request, target): (&RestoreRequest, &Dir)| {
            target.fd().map_err(|e| Error::io("open directory", &request.target, e))
        };
        let written = requests.iter().zip(&targets).map(opened).collect::<Result<Vec<_>>>()?;
        let mut restored = Vec::with_capacity(requests.len());
        for (((request, part), target), sync) in requests.iter().zip(parts).zip(targets).zip(&written) {
            let done = plan::run((inner, &reader), request, (part.root, part.list), (target, &**sync), progress)?;
            if request.against_lower.is_none() && done.counts != part.expected {
                return Err(Error::Mismatch {
                    what: format!("entries restored to {}", request.target.display()),
                    expected: part.expected.files + part.expected.dirs,
                    found: done.counts.files + done.counts.dirs,
                });
            }
            restored.push(done);
        }
        let at: Vec<_> =
            requests.iter().map(|request| request.target.as_path()).zip(written.iter().map(|fd| &**fd)).collect();
        crate::durable::sync_once(&at, |fd| rustix::fs::syncfs(fd))?;
        Ok(restored)
    }

    /// Finds everything that a request needs, before anything is touched.
    fn look_up(
        &self,
        (snapshot, tree): (SnapshotFileId, Id),
        request: &RestoreRequest,
        reader: &Reader<'_>,
        progress: &Progress,
    ) -> Result<Part> {
        if request.against_lower.is_some() && request.removals != Removals::Ignore {
            return Err(Error::InvalidRequest("a lower layer and a removed list exclude each other".into()));
        }
        let inner = &self.inner;
        let root = inner.resolve(tree, request.subtree.as_bytes())?;
        let subtree = root.subtree.ok_or_else(|| Error::invalid(&request.subtree, "not a directory"))?;
        let load = |tree, path: &str| reader.load_tree(tree, path).map(Arc::new);
        let walked = walk_tree((inner, &load), subtree, request.subtree.trim_end_matches('/'), progress)?;
        let list = match &request.removals {
            Removals::Ignore => Vec::new(),
            Removals::Whiteouts { list } | Removals::Delete { list } => self.removed_list(snapshot, list)?,
            Removals::WhiteoutsBelow { list, directory } => {
                removed::below(self.removed_list(snapshot, list)?, directory.as_bytes())
            }
        };
        Ok(Part { root, expected: walked.counts, list })
    }

    fn removed_list(&self, snapshot: SnapshotFileId, path: &str) -> Result<Vec<Removed>> {
        removed::decode(&self.read_file(snapshot, path)?)
    }
}

fn open_target(request: &RestoreRequest) -> Result<Dir> {
    let path = &request.target;
    let io = |doing| move |e: rustix::io::Errno| Error::io(doing, path, e);
    match rustix::fs::mkdir(path, rustix::fs::Mode::RWXU) {
        Ok(()) => {
            // The new name must survive a power cut like everything below it.
            if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
                let parent_error = |e| Error::io("sync", parent, e);
                std::fs::File::open(parent).and_then(|p| p.sync_all()).map_err(parent_error)?;
            }
        }
        Err(rustix::io::Errno::EXIST) => {}
        Err(e) => return Err(Error::io("make directory", path, e)),
    }
    let dir = Dir::open_root(path).map_err(io("open directory"))?;
    let fd = dir.fd().map_err(io("open directory"))?;
    if request.existing == Existing::MustBeEmpty && !fsdir::list_names(&fd).map_err(io("list directory"))?.is_empty() {
        return Err(Error::TargetNotEmpty { path: path.clone() });
    }
    Ok(dir)
}
