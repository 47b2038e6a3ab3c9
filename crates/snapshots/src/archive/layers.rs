//! A tree of a snapshot as it looks above its lower layer, loaded as far as it is looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::graft::{Composition, Lower};
use crate::id::{Id, SnapshotFileId};
use crate::node::{Node, NodeKind};
use crate::removed::{self, Removal, Removed};
use crate::repository::Inner;
use crate::request::Layout;

pub(super) type Entries = BTreeMap<Vec<u8>, Node>;

/// What the tree and the layer below have at a path.
#[derive(Debug, Clone, Default)]
pub(super) struct Look {
    pub(super) upper: Option<Node>,
    /// Only what shows: not what the upper layer hides.
    pub(super) lower: Option<Node>,
}

impl Look {
    /// What is seen.
    pub(super) fn seen(&self) -> Option<&Node> {
        self.upper.as_ref().or(self.lower.as_ref())
    }

    pub(super) fn is_dir(&self) -> bool {
        self.seen().is_some_and(|node| node.kind == NodeKind::Dir)
    }

    fn lower_is_dir(&self) -> bool {
        self.lower.as_ref().is_some_and(|node| node.kind == NodeKind::Dir)
    }
}

/// A removed list, ready to be asked and changed.
#[derive(Debug, Default, Clone)]
pub(super) struct Marks {
    pub(super) whiteouts: BTreeSet<Vec<u8>>,
    pub(super) opaque: BTreeSet<Vec<u8>>,
}

impl Marks {
    fn new(list: Vec<Removed>) -> Self {
        let mut marks = Self::default();
        for entry in list {
            match entry.how {
                Removal::Whiteout => marks.whiteouts.insert(entry.path),
                Removal::Opaque => marks.opaque.insert(entry.path),
            };
        }
        marks
    }

    pub(super) fn list(self) -> Vec<Removed> {
        let entry = |how| move |path| Removed { path, how };
        let opaque = self.opaque.into_iter().map(entry(Removal::Opaque));
        self.whiteouts.into_iter().map(entry(Removal::Whiteout)).chain(opaque).collect()
    }

    /// The marks below a path, itself excepted.
    pub(super) fn below(&self, path: &[u8]) -> Self {
        let of = |set: &BTreeSet<Vec<u8>>| range(set, path).cloned().collect();
        Self { whiteouts: of(&self.whiteouts), opaque: of(&self.opaque) }
    }

    pub(super) fn is_same_below(&self, other: &Self, path: &[u8]) -> bool {
        range(&self.whiteouts, path).eq(range(&other.whiteouts, path))
            && range(&self.opaque, path).eq(range(&other.opaque, path))
    }

    /// Forgets everything at and below a path.
    pub(super) fn clear(&mut self, path: &[u8]) {
        let below = self.below(path);
        for mark in below.whiteouts {
            self.whiteouts.remove(&mark);
        }
        for mark in below.opaque {
            self.opaque.remove(&mark);
        }
        self.whiteouts.remove(path);
        self.opaque.remove(path);
    }

    pub(super) fn extend(&mut self, other: Self) {
        self.whiteouts.extend(other.whiteouts);
        self.opaque.extend(other.opaque);
    }
}

fn range<'a>(set: &'a BTreeSet<Vec<u8>>, path: &[u8]) -> impl Iterator<Item = &'a Vec<u8>> {
    let start = if path.is_empty() { Vec::new() } else { [path, b"/"].concat() };
    let prefix = start.clone();
    // The root's own mark is the empty path.
    let from = if path.is_empty() { Bound::Excluded(start) } else { Bound::Included(start) };
    set.range((from, Bound::Unbounded)).take_while(move |mark| mark.starts_with(&prefix))
}

pub(super) fn child(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() { name.to_vec() } else { [directory, b"/", name].concat() }
}

/// The directory of a path and its last name; none for the root.
pub(super) fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = path.iter().rposition(|b| *b == b'/');
    match at {
        _ if path.is_empty() => None,
        None => Some((b"", path)),
        Some(at) => Some((&path[..at], &path[at + 1..])),
    }
}

/// The paths above a path, from the root down; the root first, the path itself not among them.
pub(super) fn above(path: &[u8]) -> Vec<&[u8]> {
    let mut found: Vec<&[u8]> = Vec::new();
    let mut at = path;
    while let Some((directory, _)) = split(at) {
        found.push(directory);
        at = directory;
    }
    found.reverse();
    found
}

/// An error about a path of the tree.
pub(super) fn not_composable(path: &[u8], reason: impl Into<String>) -> Error {
    Error::NotComposable { path: String::from_utf8_lossy(path).into_owned(), reason: reason.into() }
}

/// A tree, and what it shows.
pub(super) struct Layers<'a> {
    inner: &'a Inner,
    pub(super) node: Node,
    pub(super) marks: Marks,
    lower: Option<Arc<dyn Lower>>,
    /// Directories that were looked into.
    pub(super) open: BTreeMap<Vec<u8>, Entries>,
}

impl<'a> Layers<'a> {
    pub(super) fn load(inner: &'a Inner, of: &Composition, snapshot: SnapshotFileId) -> Result<Self> {
        let tree = inner.load_snapshot(snapshot)?.tree;
        let node = match inner.resolve(tree, of.root.as_bytes()) {
            Ok(node) if node.subtree.is_none() => return Err(Error::invalid(&of.root, "not a directory")),
            Ok(node) => node,
            Err(Error::NotFound { .. }) => {
                let mut node = Node::new(Vec::new(), NodeKind::Dir);
                node.mode = 0o755;
                node
            }
            Err(error) => return Err(error),
        };
        let mut marks = Marks::default();
        if of.layout == Layout::OverlayUpper {
            match inner.resolve(tree, removed::list_path(&of.root).as_bytes()) {
                Ok(list) => {
                    let mut bytes = Vec::new();
                    for blob in &list.content {
                        bytes.extend(inner.load_blob(crate::wire::BlobKind::Data, *blob, "a removed list")?);
                    }
                    marks = Marks::new(removed::decode(&bytes)?);
                }
                Err(Error::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let lower = of.lower.clone().filter(|_| of.layout == Layout::OverlayUpper);
        Ok(Self { inner, node, marks, lower, open: BTreeMap::new() })
    }

    pub(super) fn lower_entry(&self, path: &[u8]) -> Option<Node> {
        self.lower.as_ref()?.entry(path)
    }

    pub(super) fn lower_names(&self, path: &[u8]) -> Vec<Vec<u8>> {
        self.lower.as_ref().map(|lower| lower.names(path)).unwrap_or_default()
    }

    /// The tree's own entries of a directory that it has.
    pub(super) fn entries(&mut self, path: &[u8], tree: Option<Id>) -> Result<&mut Entries> {
        if !self.open.contains_key(path) {
            let shown = String::from_utf8_lossy(path);
            let nodes = tree.map(|tree| self.inner.load_tree(tree, &shown)).transpose()?.unwrap_or_default();
            let entries = nodes.into_iter().map(|node| (node.name.clone(), node)).collect();
            self.open.insert(path.to_vec(), entries);
        }
        Ok(self.open.entry(path.to_vec()).or_default())
    }

    /// What is at a path. The error tells which part of it is no directory.
    pub(super) fn look(&mut self, path: &[u8]) -> Result<Look> {
        let mut at = Vec::new();
        let lower = self.lower_entry(b"").filter(|_| !self.marks.opaque.contains(&b""[..]));
        let mut look = Look { upper: Some(self.node.clone()), lower };
        for name in path.split(|b| *b == b'/').filter(|name| !name.is_empty()) {
            if look.seen().is_some() && !look.is_dir() {
                return Err(not_composable(&at, "is no directory"));
            }
            let below = child(&at, name);
            look = self.look_in(&at, &look, &below, name)?;
            at = below;
        }
        Ok(look)
    }

    /// What is at a name of a directory that was looked at.
    pub(super) fn look_in(&mut self, directory: &[u8], its: &Look, path: &[u8], name: &[u8]) -> Result<Look> {
        let upper = match &its.upper {
            Some(dir) if dir.kind == NodeKind::Dir => self.entries(directory, dir.subtree)?.get(name).cloned(),
            _ => None,
        };
        let shows = its.lower_is_dir() && !self.marks.whiteouts.contains(path);
        let lower = if shows { self.lower_entry(path) } else { None };
        let lower = lower.filter(|lower| match &upper {
            None => true,
            Some(upper) => {
                upper.kind == NodeKind::Dir && lower.kind == NodeKind::Dir && !self.marks.opaque.contains(path)
            }
        });
        Ok(Look { upper, lower })
    }

    /// The names that are seen in a directory.
    pub(super) fn names(&mut self, path: &[u8], its: &Look) -> Result<BTreeSet<Vec<u8>>> {
        let mut names: BTreeSet<Vec<u8>> = BTreeSet::new();
        if let Some(dir) = its.upper.as_ref().filter(|node| node.kind == NodeKind::Dir) {
            names.extend(self.entries(path, dir.subtree)?.keys().cloned());
        }
        if its.lower_is_dir() {
            let lower = self.lower_names(path).into_iter();
            names.extend(lower.filter(|name| !self.marks.whiteouts.contains(&child(path, name))));
        }
        Ok(names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_found_by_whole_names() {
        let mark = |path: &str, how| Removed { path: path.into(), how };
        let mut marks = Marks::new(vec![
            mark("", Removal::Opaque),
            mark("a", Removal::Whiteout),
            mark("a/b", Removal::Whiteout),
            mark("a/b", Removal::Opaque),
            mark("a-b", Removal::Whiteout),
            mark("ab/c", Removal::Opaque),
        ]);
        assert_eq!(marks.below(b"a").list(), [mark("a/b", Removal::Whiteout), mark("a/b", Removal::Opaque)]);
        assert_eq!(marks.below(b"").list().len(), 5);
        marks.clear(b"a");
        let left = [mark("a-b", Removal::Whiteout), mark("", Removal::Opaque), mark("ab/c", Removal::Opaque)];
        assert_eq!(marks.clone().list(), left);
        marks.clear(b"");
        assert_eq!(marks.list(), []);
    }

    #[test]
    fn paths_are_taken_apart() {
        assert_eq!(split(b""), None);
        assert_eq!(split(b"a"), Some((&b""[..], &b"a"[..])));
        assert_eq!(split(b"a/b/c"), Some((&b"a/b"[..], &b"c"[..])));
        assert_eq!(above(b"a/b/c"), [&b""[..], b"a", b"a/b"]);
        assert_eq!(above(b""), [] as [&[u8]; 0]);
    }
}
