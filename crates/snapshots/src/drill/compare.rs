//! Compares a directory with a tree of a repository, entry by entry and byte by byte.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use perennial_core::progress::Progress;
use rustix::io::Errno;

use super::Drilled;
use crate::error::{Error, Result};
use crate::fsdir::{self, Dir, Stat, XattrError};
use crate::id::Id;
use crate::node::{Node, NodeKind, Xattr};
use crate::reader::Reader;
use crate::removed::{OPAQUE, PREFIX, Removal, Removed};
use crate::repository::Inner;
use crate::verify::plain_length;
use crate::wire::BlobKind;

/// A label of the host's policy, which no restore decides on.
const LABEL: &str = "security.selinux";
/// Times of inodes that every usual file system can keep: 1901 to 2446.
const KEPT_TIMES: std::ops::Range<i64> = -0x8000_0000..0x3_8000_0000;

/// One comparison under way.
pub(super) struct Comparison<'a> {
    inner: &'a Inner,
    reader: Reader<'a>,
    at: &'a [u8],
    /// What the list removes, by directory and name; none: the tree is no overlay's. An opaque directory is its own
    /// entry without a name.
    removed: Option<BTreeMap<Vec<u8>, BTreeSet<Vec<u8>>>>,
    opaque: BTreeSet<Vec<u8>>,
    /// Where the first name of each hard link is.
    links: HashMap<(u64, u64), (u64, u64)>,
    progress: &'a Progress,
    buffer: Vec<u8>,
    done: Drilled,
}

impl<'a> Comparison<'a> {
    pub(super) fn new(inner: &'a Inner, at: &'a [u8], list: Option<Vec<Removed>>, progress: &'a Progress) -> Self {
        let mut opaque = BTreeSet::new();
        let removed = list.map(|list| {
            let mut removed: BTreeMap<Vec<u8>, BTreeSet<Vec<u8>>> = BTreeMap::new();
            for entry in list {
                match entry.how {
                    Removal::Opaque => drop(opaque.insert(entry.path)),
                    Removal::Whiteout => {
                        let cut = entry.path.iter().rposition(|b| *b == b'/');
                        let (directory, name) = match cut {
                            Some(cut) => (entry.path[..cut].to_vec(), entry.path[cut + 1..].to_vec()),
                            None => (Vec::new(), entry.path),
                        };
                        removed.entry(directory).or_default().insert(name);
                    }
                }
            }
            removed
        });
        Self {
            inner,
            reader: Reader::new(inner),
            at,
            removed,
            opaque,
            links: HashMap::new(),
            progress,
            buffer: Vec::new(),
            done: Drilled::default(),
        }
    }

    /// Compares everything below a directory, and the directory itself.
    pub(super) fn run(mut self, root: &Node, target: &Path) -> Result<Drilled> {
        let io = |e: Errno| Error::io("open directory", target, e);
        let dir = Dir::open_root(target).map_err(io)?;
        let fd = dir.fd().map_err(io)?;
        self.metadata(root, &fd, &fsdir::stat_fd(&fd).map_err(io)?, b"")?;
        drop(fd);
        let tree = root.subtree.ok_or_else(|| Error::invalid(self.shown(b""), "not a directory"))?;
        self.done.counts.add(NodeKind::Dir, 0);
        // Directories to look into: where they are, and their tree.
        let mut stack: Vec<(Arc<Dir>, Vec<u8>, Id)> = Vec::new();
        self.directory(Arc::new(dir), tree, &mut stack)?;
        while let Some((parent, name, tree)) = stack.pop() {
            let opened = parent.open_dir(&name);
            parent.release();
            let place = || self.path(&[parent.path(), b"/", &name].concat());
            let dir = opened.map_err(|e| Error::io("open directory", place(), e))?;
            self.directory(Arc::new(dir), tree, &mut stack)?;
        }
        // A list that names what is in no directory of the tree was not restored either.
        match self.removed.iter().flatten().find(|(_, names)| !names.is_empty()) {
            Some((directory, _)) => Err(self.differs(directory, "a removed list names what is not there")),
            None => Ok(self.done),
        }
    }

    fn directory(&mut self, dir: Arc<Dir>, tree: Id, stack: &mut Vec<(Arc<Dir>, Vec<u8>, Id)>) -> Result<()> {
        self.progress.check()?;
        let nodes = self.reader.load_tree(tree, &self.shown(dir.path()))?;
        let place = self.path(dir.path());
        let io = |e: Errno| Error::io("list directory", &place, e);
        let fd = dir.fd().map_err(io)?;
        let mut names: BTreeSet<Vec<u8>> = fsdir::list_names(&fd).map_err(io)?.into_iter().collect();
        let removed = self.removed.as_mut().and_then(|removed| removed.remove(dir.path())).unwrap_or_default();
        for name in removed {
            let at = join(dir.path(), &name);
            let is_there = names.remove(&name);
            let stat = is_there.then(|| fsdir::stat_at(&fd, &name)).transpose().map_err(io)?;
            if !stat.is_some_and(|s| s.kind() == Some(NodeKind::CharDevice) && s.rdev == 0) {
                return Err(self.differs(&at, "it was deleted from the image, and nothing says so"));
            }
            self.done.removals += 1;
        }
        for node in nodes {
            let at = join(dir.path(), &node.name);
            if node.kind == NodeKind::Socket {
                // Whoever listens makes it again.
                continue;
            }
            if !names.remove(&node.name) {
                return Err(self.differs(&at, "it is missing"));
            }
            self.entry(&fd, &node, &at)?;
            self.done.counts.add(node.kind, node.size);
            stack.extend(node.subtree.map(|subtree| (Arc::clone(&dir), node.name, subtree)));
        }
        dir.release();
        match names.first() {
            Some(name) => Err(self.differs(&join(dir.path(), name), "it is not in the snapshot")),
            None => Ok(()),
        }
    }

    fn entry(&mut self, dir: &std::os::fd::OwnedFd, node: &Node, at: &[u8]) -> Result<()> {
        let place = self.path(at);
        let io = |e: Errno| Error::io("look at", &place, e);
        let fd = fsdir::open_path(dir, &node.name).map_err(io)?;
        let stat = fsdir::stat_fd(&fd).map_err(io)?;
        if stat.kind() != Some(node.kind) {
            return Err(self.differs(at, "it is something else"));
        }
        if node.kind == NodeKind::Symlink {
            let target = rustix::fs::readlinkat(&fd, c"", Vec::new()).map_err(io)?.into_bytes();
            if target != node.link_target {
                return Err(self.differs(at, "the link points elsewhere"));
            }
        }
        let is_device = matches!(node.kind, NodeKind::BlockDevice | NodeKind::CharDevice);
        if is_device && stat.rdev != node.device {
            return Err(self.differs(at, "it is another device"));
        }
        if let Some(key) = node.link_key() {
            let inode = (stat.dev, stat.ino);
            if *self.links.entry(key).or_insert(inode) != inode {
                return Err(self.differs(at, "two names of one file became two files"));
            }
        }
        self.metadata(node, &fd, &stat, at)?;
        if node.kind == NodeKind::File {
            let file = File::from(fsdir::open_readable(&fd).map_err(io)?);
            self.content(node, stat.size, file, at)?;
        }
        Ok(())
    }

    fn metadata(&self, node: &Node, fd: &std::os::fd::OwnedFd, stat: &Stat, at: &[u8]) -> Result<()> {
        // The mode of a link means nothing and cannot be set.
        if node.kind != NodeKind::Symlink && stat.mode & 0o7777 != node.mode {
            return Err(self.differs(at, "its mode differs"));
        }
        if (stat.uid, stat.gid) != (node.uid, node.gid) {
            return Err(self.differs(at, "its owner differs"));
        }
        if stat.mtime.clamped() != node.mtime && KEPT_TIMES.contains(&node.mtime.seconds) {
            return Err(self.differs(at, "the time of its last change differs"));
        }
        let mut found = match fsdir::read_xattrs(fd) {
            Ok(found) => found,
            Err(XattrError::Errno(e)) => return Err(Error::io("read attributes of", self.path(at), e)),
            Err(XattrError::Name) => return Err(self.differs(at, "an attribute's name is not Unicode")),
        };
        let opaque = found.iter().any(|x| x.name == OPAQUE && x.value == b"y");
        if self.removed.is_some() {
            found.retain(|x| !x.name.starts_with(PREFIX));
            if opaque != self.opaque.contains(at) {
                return Err(self.differs(at, "whether it hides the image's directory differs"));
            }
        }
        let ours = |list: &[Xattr]| list.iter().filter(|x| x.name != LABEL).cloned().collect::<Vec<_>>();
        if ours(&found) != ours(&node.xattrs) {
            return Err(self.differs(at, "its extended attributes differ"));
        }
        Ok(())
    }

    fn content(&mut self, node: &Node, size: u64, mut file: File, at: &[u8]) -> Result<()> {
        if size != node.size {
            return Err(self.differs(at, "its size differs"));
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        for blob in &node.content {
            self.progress.check()?;
            let missing = || Error::MissingBlob { blob: *blob, needed_by: self.shown(at) };
            let length = plain_length(&self.inner.find_blob(BlobKind::Data, *blob).ok_or_else(missing)?.blob);
            buffer.resize(usize::try_from(length).unwrap_or(usize::MAX), 0);
            match file.read_exact(&mut buffer) {
                Ok(()) if Id::of(&buffer) == *blob => {}
                Ok(()) => return Err(self.differs(at, "its content differs")),
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(self.differs(at, "its content is shorter"));
                }
                Err(e) => return Err(Error::io("read", self.path(at), e)),
            }
            self.done.bytes_compared += length;
            self.progress.add_bytes(length);
        }
        self.buffer = buffer;
        Ok(())
    }

    fn differs(&self, at: &[u8], what: &str) -> Error {
        Error::Differs { path: self.path(at), what: what.to_owned() }
    }

    fn path(&self, at: &[u8]) -> PathBuf {
        use std::os::unix::ffi::OsStrExt as _;
        PathBuf::from(std::ffi::OsStr::from_bytes(&join(self.at, at)))
    }

    fn shown(&self, at: &[u8]) -> String {
        String::from_utf8_lossy(&join(self.at, at)).into_owned()
    }
}

fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() || name.is_empty() { [directory, name].concat() } else { [directory, b"/", name].concat() }
}
