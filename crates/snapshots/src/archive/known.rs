//! Trees to compare with, all of them in memory before the writers are held still: meanwhile the store is not asked.
//!
//! Up to a bound they are ready to compare; those beyond it are kept compressed, at some 60 to 100 bytes a file, and
//! cost the scanner their decoding. Those that are kept compressed are counted, and not bounded: the store may not be asked for them.

use std::collections::HashMap;
use std::sync::Arc;

use perennial_core::progress::Progress;

use super::ahead::Asker;
use super::build::Known;
use crate::error::{Error, Result};
use crate::id::Id;
use crate::memory::Charge;
use crate::node::{Node, decode_tree};
use crate::reader::{Reader, Scratch};
use crate::repository::Inner;
use crate::wire::BlobKind;

enum Tree {
    Ready(Arc<Vec<Node>>),
    Packed(Vec<u8>),
}

/// Every tree below some that can be compared with.
#[derive(Default)]
pub(crate) struct Loaded {
    trees: HashMap<Id, Tree>,
    ready: usize,
    packed: usize,
    charge: Charge,
}

impl Loaded {
    /// Loads everything below a tree. What is not there or makes no sense is left out: it is read anew, which is how
    /// damage heals.
    pub(crate) fn add(&mut self, inner: &Inner, root: Id, progress: &Progress) -> Result<()> {
        let reader = Reader::new(inner);
        let most = inner.shares().ready;
        self.charge.begin(&inner.account);
        let mut scratch = Scratch::default();
        let mut wanted = vec![root];
        while let Some(id) = wanted.pop() {
            progress.check()?;
            if self.trees.contains_key(&id) {
                continue;
            }
            let loaded = reader
                .load(BlobKind::Tree, id, "a tree to compare with", &mut scratch)
                .and_then(|json| Ok((decode_tree(id, json)?, json)));
            let (nodes, json) = match loaded {
                Ok(loaded) => loaded,
                Err(Error::MissingBlob { .. } | Error::Damaged { .. } | Error::InvalidContent { .. }) => continue,
                Err(error) => return Err(error),
            };
            // The first is visited first, and lies first in its pack.
            wanted.extend(nodes.iter().rev().filter_map(|node| node.subtree));
            let size = nodes.iter().map(memory_of).sum::<usize>();
            let tree = if self.ready + size <= most {
                self.ready += size;
                Tree::Ready(Arc::new(nodes))
            } else {
                let packed = zstd::bulk::compress(json, 1);
                let packed = packed.map_err(|source| Error::System { doing: "compress", source })?;
                self.packed += packed.capacity();
                Tree::Packed(packed)
            };
            self.charge.set(self.ready + self.packed);
            self.trees.insert(id, tree);
        }
        Ok(())
    }

    fn get(&self, id: Id) -> Option<Arc<Vec<Node>>> {
        match self.trees.get(&id)? {
            Tree::Ready(nodes) => Some(Arc::clone(nodes)),
            Tree::Packed(packed) => {
                let json = zstd::decode_all(packed.as_slice()).ok()?;
                decode_tree(id, &json).ok().map(Arc::new)
            }
        }
    }
}

fn memory_of(node: &Node) -> usize {
    let attributes: usize = node.xattrs.iter().map(|x| x.name.len() + x.value.len() + size_of_val(x)).sum();
    size_of::<Node>() + node.name.len() + node.content.len() * size_of::<Id>() + node.link_target.len() + attributes
}

/// Trees of the repository that are in a snapshot as they are, from when its archive read them until it is proven: they need not be
/// read, opened and hashed a second time within a moment. What is in them is looked up again.
#[derive(Default)]
pub(crate) struct Kept {
    trees: HashMap<Id, Arc<Vec<Node>>>,
    bytes: usize,
    most: usize,
    charge: Charge,
}

impl Kept {
    /// Keeps no more bytes than there are shares for; the default keeps none.
    pub(crate) fn new(inner: &Inner) -> Self {
        Self { most: inner.shares().kept, charge: inner.charge(0), ..Self::default() }
    }

    pub(crate) fn keep(&mut self, id: Id, nodes: &Arc<Vec<Node>>) {
        let bytes = nodes.iter().map(memory_of).sum::<usize>();
        if self.bytes + bytes <= self.most && self.trees.insert(id, Arc::clone(nodes)).is_none() {
            self.bytes += bytes;
            self.charge.set(self.bytes);
        }
    }

    pub(crate) fn get(&self, id: Id) -> Option<Arc<Vec<Node>>> {
        self.trees.get(&id).map(Arc::clone)
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.trees.len()
    }

    #[cfg(test)]
    pub(crate) fn ids(&self) -> impl Iterator<Item = Id> + '_ {
        self.trees.keys().copied()
    }
}

/// Where scanners get the trees from that they compare with.
pub(crate) enum Trees<'a> {
    /// From the repository, a little ahead of the scanner.
    Ahead(Asker<'a>),
    /// From memory.
    Loaded(&'a Loaded),
}

impl Trees<'_> {
    /// Says that a tree will be needed soon.
    pub(crate) fn want(&self, id: Id) {
        if let Self::Ahead(asker) = self {
            asker.want(id);
        }
    }

    /// The tree; none when it is not there or makes no sense.
    pub(crate) fn get(&self, id: Id, at: &str) -> Result<Option<Known>> {
        let asker = match self {
            Self::Loaded(loaded) => return Ok(loaded.get(id).map(|nodes| (id, nodes))),
            Self::Ahead(asker) => asker,
        };
        match asker.take(id).map_or_else(|| asker.load(id, at), Ok) {
            Ok(nodes) => Ok(Some((id, Arc::new(nodes)))),
            Err(Error::MissingBlob { .. } | Error::Damaged { .. } | Error::InvalidContent { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
