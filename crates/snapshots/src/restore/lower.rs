//! A full tree becomes an overlay's upper layer: what must be in it, given the layer below.
//!
//! An entry stays out when the lower layer has the same: type, content, owner, mode, modification time and extended
//! attributes. Names that share an inode in the snapshot stay out together or not at all. What the lower layer has
//! and the snapshot lacks becomes a whiteout. The lower layer is read in full where names meet, because times alone
//! prove nothing about content.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use rustix::io::Errno;

use super::write::same_content;
use crate::error::{Error, Result};
use crate::fsdir::{self, Dir, Stat};
use crate::node::{Node, NodeKind};
use crate::removed::{Removal, Removed};
use crate::repository::Inner;

const OPEN_DEPTH: usize = 64;

/// What of a tree goes into an upper layer; paths are relative to its root.
#[derive(Default)]
pub(crate) struct Upper {
    /// Entries that differ, and the directories on the way to them.
    pub(crate) some: HashSet<Vec<u8>>,
    /// Directories that the lower layer has nothing to do with: everything below goes.
    pub(crate) whole: HashSet<Vec<u8>>,
    /// Whiteouts.
    pub(crate) removed: Vec<Removed>,
}

impl Upper {
    fn add(&mut self, mut path: &[u8]) {
        // Once a directory is in, so are all above it.
        while self.some.insert(path.to_vec()) && !path.is_empty() {
            path = path.iter().rposition(|b| *b == b'/').map_or(&[], |at| &path[..at]);
        }
    }
}

/// Names of one inode, and whether each was found in the lower layer, all in one inode there as well.
#[derive(Default)]
struct Group {
    paths: Vec<Vec<u8>>,
    lower: Option<(u64, u64)>,
    differs: bool,
}

struct Frame {
    lower: Dir,
    path: Vec<u8>,
    nodes: std::vec::IntoIter<Node>,
}

pub(crate) fn child(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() }
}

/// Compares a snapshot's directory with a lower layer.
pub(crate) fn compare(inner: &Inner, root: &Node, lower: &Path, check: &dyn Fn() -> Result<()>) -> Result<Upper> {
    let mut upper = Upper::default();
    let mut groups: HashMap<(u64, u64), Group> = HashMap::new();
    let dir = Dir::open_root(lower).map_err(|e| Error::io("open directory", lower, e))?;
    upper.add(b"");
    let mut stack = vec![enter(inner, root, dir, Vec::new(), lower, &mut upper)?];
    while let Some(frame) = stack.last_mut() {
        check()?;
        let Some(node) = frame.nodes.next() else {
            stack.pop();
            continue;
        };
        let path = child(&frame.path, &node.name);
        let error = |e: Errno| Error::io("compare with", lower.join(String::from_utf8_lossy(&path).as_ref()), e);
        let fd = frame.lower.fd().map_err(error)?;
        let stat = match fsdir::stat_at(&fd, &node.name) {
            Ok(stat) => Some(stat),
            Err(Errno::NOENT) => None,
            Err(e) => return Err(error(e)),
        };
        match node.kind {
            NodeKind::Dir if stat.is_some_and(|s| s.kind() == Some(NodeKind::Dir)) => {
                let dir = frame.lower.open_dir(&node.name).map_err(error)?;
                let next = enter(inner, &node, dir, path, lower, &mut upper)?;
                stack.push(next);
                if let Some(far) = stack.len().checked_sub(OPEN_DEPTH).and_then(|i| stack.get(i)) {
                    far.lower.release();
                }
            }
            NodeKind::Dir => {
                upper.add(&path);
                upper.whole.insert(path);
            }
            NodeKind::Socket => {
                if stat.is_some_and(|s| s.kind() != Some(NodeKind::Socket)) {
                    upper.add(&frame.path);
                    upper.removed.push(Removed { path, how: Removal::Whiteout });
                }
            }
            _ => {
                let same = match stat {
                    Some(stat) => same_entry(inner, &fd, &node, &stat, check).map_err(|e| e.into_error(&error))?,
                    None => false,
                };
                match node.link_key() {
                    None if !same => upper.add(&path),
                    None => {}
                    Some(key) => {
                        let inode = stat.map(|s| (s.dev, s.ino));
                        let group = groups.entry(key).or_insert_with(|| Group { lower: inode, ..Group::default() });
                        group.differs |= !same || group.lower != inode;
                        group.paths.push(path);
                    }
                }
            }
        }
    }
    for path in groups.into_values().filter(|g| g.differs).flat_map(|g| g.paths) {
        upper.add(&path);
    }
    Ok(upper)
}

/// Compares a directory's own metadata and finds what the snapshot lacks.
fn enter(inner: &Inner, node: &Node, dir: Dir, path: Vec<u8>, lower: &Path, upper: &mut Upper) -> Result<Frame> {
    let at = String::from_utf8_lossy(&path).into_owned();
    let error = |e: Errno| Error::io("compare with", lower.join(&at), e);
    let subtree = node.subtree.ok_or_else(|| Error::invalid(&at, "not a directory"))?;
    let nodes = inner.load_tree(subtree, &at)?;
    let fd = dir.fd().map_err(error)?;
    let stat = fsdir::stat_fd(&fd).map_err(error)?;
    if !same_metadata(&fd, &stat, node) {
        upper.add(&path);
    }
    for name in fsdir::list_names(&fd).map_err(error)? {
        if nodes.binary_search_by(|n| n.name.cmp(&name)).is_err() {
            upper.add(&path);
            upper.removed.push(Removed { path: child(&path, &name), how: Removal::Whiteout });
        }
    }
    Ok(Frame { lower: dir, path, nodes: nodes.into_iter() })
}

fn same_entry(
    inner: &Inner,
    dir: &std::os::fd::OwnedFd,
    node: &Node,
    stat: &Stat,
    check: &dyn Fn() -> Result<()>,
) -> Result<bool, super::write::CompareError> {
    if node.kind == NodeKind::File {
        let found = same_content((inner, &mut Vec::new()), dir, node, stat, check)?;
        return Ok(found.is_some_and(|(file, stat)| same_metadata(&file, &stat, node)));
    }
    let same = stat.kind() == Some(node.kind)
        && match node.kind {
            NodeKind::Symlink => {
                let target = rustix::fs::readlinkat(dir, &node.name, Vec::new());
                target.is_ok_and(|target| target.as_bytes() == node.link_target)
            }
            NodeKind::Fifo => true,
            _ => stat.rdev == node.device,
        };
    // An entry that cannot be opened is written again: that is always right.
    Ok(same && fsdir::open_path(dir, &node.name).is_ok_and(|fd| same_metadata(&fd, stat, node)))
}

fn same_metadata(fd: &std::os::fd::OwnedFd, stat: &Stat, node: &Node) -> bool {
    stat.uid == node.uid
        && stat.gid == node.gid
        && stat.mtime.clamped() == node.mtime
        && (node.kind == NodeKind::Symlink || stat.mode & 0o7777 == node.mode)
        && fsdir::read_xattrs(fd).is_ok_and(|xattrs| xattrs == node.xattrs)
}
