//! What a composed tree is made of: a tree of one snapshot, with parts of others, see
//! [`Source::Composed`](crate::Source::Composed).

use std::fmt;
use std::sync::Arc;

use crate::id::SnapshotFileId;
use crate::node::Node;
use crate::request::Layout;

/// A tree of a snapshot of which parts are exchanged.
#[derive(Debug, Clone)]
pub struct Composition {
    /// The snapshot whose tree stays wherever nothing is exchanged.
    pub base: SnapshotFileId,
    /// The tree's path in this snapshot and in all that parts are taken from; an empty directory where one has none.
    pub root: String,
    /// What the tree's entries mean; that of an upper layer has a removed list beside it, which is composed as well.
    pub layout: Layout,
    /// The layer below an upper one: without it nothing can be exchanged but the whole tree.
    pub lower: Option<Arc<dyn Lower>>,
    /// What is exchanged, in this order.
    pub grafts: Vec<Graft>,
    /// Keeps files that were one inode in one snapshot from becoming one with files of another: different for every
    /// composition.
    pub salt: [u8; 16],
}

/// One exchange.
#[derive(Debug, Clone)]
pub struct Graft {
    /// The path relative to the root, without slashes at either end; empty for the whole tree.
    pub path: Vec<u8>,
    /// What comes there.
    pub with: With,
}

/// What comes to a path.
#[derive(Debug, Clone)]
pub enum With {
    /// What another snapshot shows there: its own entry, or the lower layer's, or nothing.
    Taken {
        /// The snapshot.
        snapshot: SnapshotFileId,
        /// What happens to entries that it does not have.
        extra: Extra,
    },
    /// This content in the regular file that is there, which keeps its owner, mode and attributes.
    Content(Vec<u8>),
    /// Nothing.
    Nothing,
}

/// What happens to entries of a directory that the snapshot lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extra {
    /// They go.
    Removed,
    /// They stay, unless something else takes the place of a directory above them.
    Kept,
}

/// The layer below an overlay's upper one. Paths are relative to the root, without slashes at either end.
pub trait Lower: fmt::Debug + Send + Sync {
    /// What is at a path; `None` when nothing is. No link is followed.
    fn entry(&self, path: &[u8]) -> Option<Node>;

    /// The names in a directory, in any order; none when it is no directory.
    fn names(&self, path: &[u8]) -> Vec<Vec<u8>>;
}
