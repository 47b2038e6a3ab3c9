//! A stored image as the layer below the trees of a snapshot, for whoever puts snapshots together.

use std::sync::Arc;

use perennial_snapshots::{Lower, Node, NodeKind, Repository, SnapshotFileId};

use super::failure::Failure;
use super::image::{ImageEntry, ImageTree};

/// An image whose tree was read.
#[derive(Debug, Clone)]
pub(crate) struct ImageBelow(Arc<ImageTree>);

impl ImageBelow {
    /// Reads the tree of an image that is in this snapshot of the repository.
    pub(crate) fn load(repository: &Repository, snapshot: SnapshotFileId, image: &str) -> Result<Self, Failure> {
        ImageTree::load(repository, snapshot, image).map(|tree| Self(Arc::new(tree)))
    }

    /// What is below a tree that is mounted there.
    pub(crate) fn at(&self, mount: &str) -> Arc<dyn Lower> {
        Arc::new(Mounted { image: Arc::clone(&self.0), mount: mount.as_bytes().to_vec() })
    }
}

#[derive(Debug)]
struct Mounted {
    image: Arc<ImageTree>,
    mount: Vec<u8>,
}

impl Mounted {
    fn find(&self, path: &[u8]) -> Option<ImageEntry> {
        let mut at = self.image.root();
        let names = [self.mount.as_slice(), path].into_iter().flat_map(|part| part.split(|b| *b == b'/'));
        for name in names.filter(|name| !name.is_empty()) {
            at = self.image.child(at, name)?;
        }
        Some(at)
    }
}

impl Lower for Mounted {
    fn entry(&self, path: &[u8]) -> Option<Node> {
        self.find(path).map(|entry| self.image.node(entry).clone())
    }

    fn names(&self, path: &[u8]) -> Vec<Vec<u8>> {
        let directory = self.find(path).filter(|entry| self.image.node(*entry).kind == NodeKind::Dir);
        directory.map(|entry| self.image.children(entry).map(|(name, _)| name.to_vec()).collect()).unwrap_or_default()
    }
}
