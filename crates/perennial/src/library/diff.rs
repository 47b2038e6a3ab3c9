//! What differs between two snapshots, found without reading a file.
//!
//! Contents are compared by their blobs: the same list is the same content. A file that one snapshot holds and the other
//! has from the image counts as other content, because nothing short of reading would show that it is the same. Of
//! metadata the owner, mode, time of change and attributes count. Directories that are put together from the same trees
//! are passed over whole, so that a comparison costs what differs.

use perennial_snapshots::{Node, NodeKind};

use super::failure::Failure;
use super::path::PodPath;
use super::view::{Found, View};

/// One path that differs.
#[derive(Debug)]
pub(super) struct Difference {
    pub(super) path: Vec<Vec<u8>>,
    pub(super) before: Option<Found>,
    pub(super) after: Option<Found>,
    pub(super) what: Differs,
}

/// In which respect two entries differ; neither for equal ones.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Differs {
    /// Type, content, target or device; for a directory: what is below it, when that was looked at.
    pub content: bool,
    /// Owner, mode, time of change or extended attributes.
    pub metadata: bool,
}

impl Differs {
    /// Whether anything does.
    #[must_use]
    pub const fn any(self) -> bool {
        self.content || self.metadata
    }
}

/// Compares two entries; of directories only what they are, not what is in them.
pub(super) fn compare((a, view): (&Found, &View), (b, other): (&Found, &View)) -> Differs {
    let (x, y) = (&a.node, &b.node);
    let content = x.kind != y.kind
        || match x.kind {
            NodeKind::File => x.size != y.size || !view.is_same_content(a, other, b),
            NodeKind::Symlink => x.link_target != y.link_target,
            NodeKind::BlockDevice | NodeKind::CharDevice => x.device != y.device,
            NodeKind::Dir | NodeKind::Fifo | NodeKind::Socket => false,
        };
    let metadata = |n: &Node| (n.mode, n.uid, n.gid, n.mtime);
    Differs { content, metadata: metadata(x) != metadata(y) || x.xattrs != y.xattrs }
}

type Pair = (Vec<u8>, Option<Found>, Option<Found>);

/// Walks both at the same time, in the order of paths.
pub(super) struct Walk<'v> {
    before: &'v View,
    after: &'v View,
    /// The names on the way to the directory in work, and what is left in each.
    stack: Vec<(Vec<Vec<u8>>, std::vec::IntoIter<Pair>)>,
    /// Paths up to this one were seen.
    seen: Option<Vec<Vec<u8>>>,
}

impl<'v> Walk<'v> {
    /// Begins at a path, behind another one when it goes on.
    pub(super) fn new(
        (before, after): (&'v View, &'v View),
        path: &PodPath,
        seen: Option<Vec<Vec<u8>>>,
    ) -> Result<Self, Failure> {
        let find = |view: &View| match view.find(path) {
            Ok(found) => Ok(Some(found)),
            Err(Failure::NotFound { .. }) => Ok(None),
            Err(other) => Err(other),
        };
        let (old, new) = (find(before)?, find(after)?);
        if old.is_none() && new.is_none() {
            return Err(Failure::NotFound { path: path.to_string(), instead: "in neither of them".to_owned() });
        }
        let mut names: Vec<Vec<u8>> = path.names().map(<[u8]>::to_vec).collect();
        let name = names.pop().unwrap_or_default();
        Ok(Self { before, after, stack: vec![(names, vec![(name, old, new)].into_iter())], seen })
    }

    /// The next difference; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<Difference>, Failure> {
        while let Some((directory, pairs)) = self.stack.last_mut() {
            let Some((name, old, new)) = pairs.next() else {
                self.stack.pop();
                continue;
            };
            let mut path = directory.clone();
            // The root of everything has no name.
            path.extend((!name.is_empty()).then_some(name));
            let is_seen = self.seen.as_ref().is_some_and(|seen| path <= *seen);
            if is_seen && !self.seen.as_ref().is_some_and(|seen| seen.starts_with(&path)) {
                continue;
            }
            let what = match (&old, &new) {
                (Some(old), Some(new)) => compare((old, self.before), (new, self.after)),
                _ => Differs { content: true, metadata: true },
            };
            self.descend(&path, old.as_ref(), new.as_ref())?;
            if what.any() && !is_seen {
                return Ok(Some(Difference { path, before: old, after: new, what }));
            }
        }
        Ok(None)
    }

    fn descend(&mut self, path: &[Vec<u8>], old: Option<&Found>, new: Option<&Found>) -> Result<(), Failure> {
        if let (Some(old), Some(new)) = (old, new)
            && self.before.is_same_directory(old, self.after, new)
        {
            return Ok(());
        }
        let entries = |view: &View, found: Option<&Found>| match found {
            Some(found) if found.node.kind == NodeKind::Dir => view.list(found),
            _ => Ok(Vec::new()),
        };
        let pairs = pairs(entries(self.before, old)?, entries(self.after, new)?);
        if !pairs.is_empty() {
            self.stack.push((path.to_vec(), pairs.into_iter()));
        }
        Ok(())
    }
}

/// Brings entries of the same name together; both are sorted by name.
fn pairs(old: Vec<Found>, new: Vec<Found>) -> Vec<Pair> {
    let mut pairs = Vec::with_capacity(old.len().max(new.len()));
    let (mut old, mut new) = (old.into_iter().peekable(), new.into_iter().peekable());
    loop {
        let order = match (old.peek(), new.peek()) {
            (None, None) => return pairs,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some(a), Some(b)) => a.node.name.cmp(&b.node.name),
        };
        let a = old.next_if(|_| order.is_le());
        let b = new.next_if(|_| order.is_ge());
        let name = a.as_ref().or(b.as_ref()).map(|f| f.node.name.clone()).unwrap_or_default();
        pairs.push((name, a, b));
    }
}
