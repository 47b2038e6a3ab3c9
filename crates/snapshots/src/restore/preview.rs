//! What a restore would do to a directory that holds something: the same walk, and nothing is touched.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use perennial_core::progress::Progress;
use rustix::io::Errno;

use super::write::{same_content, same_special};
use super::{Existing, Removals, RestoreRequest};
use crate::error::{Error, Result};
use crate::fsdir::{self, Dir, Stat};
use crate::id::{Id, SnapshotFileId};
use crate::lock::{LockGuard, LockMode};
use crate::node::{Node, NodeKind};
use crate::reader::Reader;
use crate::repository::{Inner, Repository};

/// What a restore would do to what is in its target. Owners, modes and times that would change are not looked at.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RestorePreview {
    /// Entries that are not there and would be made, directories included.
    pub added: u64,
    /// Files, links and devices that would be replaced by others of their kind.
    pub replaced: u64,
    /// Entries that would be deleted, each one below a directory that goes included.
    pub removed: u64,
    /// Bytes of the regular files among those.
    pub removed_bytes: u64,
    /// Files, links and devices that are there already as they must be.
    pub unchanged: u64,
    /// The first that would be deleted or replaced, a directory that goes once; as many as were asked for.
    pub lost: Vec<Lost>,
}

/// Something whose present content would be gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// Where it is, relative to the target.
    pub path: PathBuf,
    /// Why it goes.
    pub why: WhyLost,
}

/// Why something would be gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhyLost {
    /// The snapshot has nothing there.
    Extra,
    /// The snapshot has something of another kind there.
    OtherKind,
    /// The snapshot has another content there.
    OtherContent,
}

impl RestorePreview {
    /// Whether anything that is there now would be gone.
    #[must_use]
    pub const fn loses_anything(&self) -> bool {
        self.removed > 0 || self.replaced > 0
    }
}

/// A directory that is still to be looked at.
enum Next {
    /// One that both have.
    Both(Arc<Dir>, Vec<u8>, Id),
    /// One that only the snapshot has.
    Made(Id),
    /// One that would go.
    Gone(Arc<Dir>, Vec<u8>),
}

struct Walk<'a> {
    inner: &'a Inner,
    reader: &'a Reader<'a>,
    target: &'a Path,
    progress: &'a Progress,
    removes_extras: bool,
    shown: usize,
    buffer: Vec<u8>,
    found: RestorePreview,
    next: Vec<Next>,
}

impl Repository {
    /// Says what [`restore`](Self::restore) would do to what is in the target, and names the first `shown` entries whose
    /// content would be gone. Reads what is there, and touches nothing. What changes before the restore is not seen.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] for a request with removals or a lower layer; else those that a restore fails with before it
    /// touches anything, and [`Error::Io`] for what of the target it could not look at either.
    pub fn restore_preview(
        &self,
        snapshot: SnapshotFileId,
        request: &RestoreRequest,
        shown: usize,
        progress: &Progress,
    ) -> Result<RestorePreview> {
        if request.removals != Removals::Ignore || request.against_lower.is_some() {
            return Err(Error::InvalidRequest("a preview is of a plain directory".into()));
        }
        let inner = &self.inner;
        progress.check()?;
        let _guard = LockGuard::acquire(inner, LockMode::Shared)?;
        inner.refresh_index()?;
        let tree = inner.load_snapshot(snapshot)?.tree;
        let reader = Reader::new(inner);
        let part = self.look_up((snapshot, tree), request, &reader, progress)?;
        progress.set_total(part.expected.bytes);
        let subtree = part.root.subtree.ok_or_else(|| Error::invalid(&request.subtree, "not a directory"))?;
        let mut walk = Walk {
            inner,
            reader: &reader,
            target: &request.target,
            progress,
            removes_extras: request.existing != Existing::Keep,
            shown,
            buffer: Vec::new(),
            found: RestorePreview::default(),
            next: Vec::new(),
        };
        match Dir::open_root(&request.target) {
            Ok(dir) => walk.both(&Arc::new(dir), subtree)?,
            Err(Errno::NOENT) => walk.made(subtree)?,
            Err(e) => return Err(Error::io("open directory", &request.target, e)),
        }
        while let Some(next) = walk.next.pop() {
            progress.check()?;
            match next {
                Next::Both(parent, name, subtree) => {
                    let dir = walk.open(&parent, &name)?;
                    walk.both(&dir, subtree)?;
                }
                Next::Made(subtree) => walk.made(subtree)?,
                Next::Gone(parent, name) => {
                    let dir = walk.open(&parent, &name)?;
                    walk.gone(&dir)?;
                }
            }
        }
        Ok(walk.found)
    }
}

impl Walk<'_> {
    /// Opens a directory, and keeps no more descriptors than the depth asks for at this moment.
    fn open(&self, parent: &Dir, name: &[u8]) -> Result<Arc<Dir>> {
        let dir = parent.open_dir(name).map_err(|e| self.error("open directory", parent, name, e))?;
        parent.release();
        Ok(Arc::new(dir))
    }

    fn both(&mut self, dir: &Arc<Dir>, subtree: Id) -> Result<()> {
        let fd = dir.fd().map_err(|e| self.error("open directory", dir, b"", e))?;
        let names = fsdir::list_names(&fd).map_err(|e| self.error("list directory", dir, b"", e))?;
        let nodes = self.reader.load_tree(subtree, &self.path(dir, b"").display().to_string())?;
        if self.removes_extras {
            for name in &names {
                if nodes.binary_search_by(|node| node.name.cmp(name)).is_err() {
                    let stat = fsdir::stat_at(&fd, name).map_err(|e| self.error("look at", dir, name, e))?;
                    self.lose(dir, name, &stat, WhyLost::Extra);
                }
            }
        }
        for node in nodes {
            match fsdir::stat_at(&fd, &node.name) {
                // Nothing is ever restored for a socket.
                _ if node.kind == NodeKind::Socket => {}
                Ok(stat) => self.meet(dir, &fd, &node, &stat)?,
                Err(Errno::NOENT) => self.make(&node),
                Err(e) => return Err(self.error("look at", dir, &node.name, e)),
            }
        }
        dir.release();
        Ok(())
    }

    /// Compares an entry of the snapshot with what is in its place.
    fn meet(&mut self, dir: &Arc<Dir>, fd: &std::os::fd::OwnedFd, node: &Node, stat: &Stat) -> Result<()> {
        if stat.kind() != Some(node.kind) {
            self.lose(dir, &node.name, stat, WhyLost::OtherKind);
            self.make(node);
            return Ok(());
        }
        if let (NodeKind::Dir, Some(subtree)) = (node.kind, node.subtree) {
            self.next.push(Next::Both(Arc::clone(dir), node.name.clone(), subtree));
            return Ok(());
        }
        let failed = |e| Error::io("compare", self.target.join(OsStr::from_bytes(dir.path())), e);
        let same = if node.kind == NodeKind::File {
            let alone = stat.nlink == 1 || node.link_key().is_some();
            let check = || self.progress.check().map_err(Error::from);
            let same = same_content((self.inner, &mut self.buffer), fd, node, stat, &check);
            alone && same.map_err(|e| e.into_error(&failed))?.is_some()
        } else {
            same_special(fd, node, stat).map_err(failed)?
        };
        self.progress.add_bytes(node.size);
        if same {
            self.found.unchanged += 1;
        } else {
            self.found.replaced += 1;
            self.show(dir, &node.name, WhyLost::OtherContent);
        }
        Ok(())
    }

    fn made(&mut self, subtree: Id) -> Result<()> {
        for node in self.reader.load_tree(subtree, &self.target.display().to_string())? {
            self.make(&node);
        }
        Ok(())
    }

    fn make(&mut self, node: &Node) {
        self.progress.add_bytes(node.size);
        self.found.added += u64::from(node.kind != NodeKind::Socket);
        self.next.extend(node.subtree.map(Next::Made));
    }

    fn gone(&mut self, dir: &Arc<Dir>) -> Result<()> {
        let fd = dir.fd().map_err(|e| self.error("open directory", dir, b"", e))?;
        for name in fsdir::list_names(&fd).map_err(|e| self.error("list directory", dir, b"", e))? {
            let stat = fsdir::stat_at(&fd, &name).map_err(|e| self.error("look at", dir, &name, e))?;
            self.count(dir, &name, &stat);
        }
        dir.release();
        Ok(())
    }

    fn lose(&mut self, dir: &Arc<Dir>, name: &[u8], stat: &Stat, why: WhyLost) {
        self.show(dir, name, why);
        self.count(dir, name, stat);
    }

    fn count(&mut self, dir: &Arc<Dir>, name: &[u8], stat: &Stat) {
        self.found.removed += 1;
        match stat.kind() {
            Some(NodeKind::Dir) => self.next.push(Next::Gone(Arc::clone(dir), name.to_vec())),
            Some(NodeKind::File) => self.found.removed_bytes += stat.size,
            _ => {}
        }
    }

    fn show(&mut self, dir: &Dir, name: &[u8], why: WhyLost) {
        if self.found.lost.len() < self.shown {
            let path = Path::new(OsStr::from_bytes(dir.path())).join(OsStr::from_bytes(name));
            self.found.lost.push(Lost { path, why });
        }
    }

    fn path(&self, dir: &Dir, name: &[u8]) -> PathBuf {
        self.target.join(OsStr::from_bytes(dir.path())).join(OsStr::from_bytes(name))
    }

    fn error(&self, doing: &'static str, dir: &Dir, name: &[u8], errno: Errno) -> Error {
        Error::io(doing, self.path(dir, name), errno)
    }
}
