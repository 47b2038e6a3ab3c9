//! Loads the trees to compare with before the scanner comes to them, so that it has little to do but look at files.
//!
//! It is only ever quicker for it: what is not there in time, or could not be loaded, the scanner loads itself, and
//! then meets whatever is wrong with it.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Condvar, Mutex, PoisonError};

use super::lock;
use crate::error::Result;
use crate::id::Id;
use crate::node::Node;
use crate::reader::Reader;
use crate::repository::Inner;
use crate::wire::BlobKind;

/// So many trees at most are loaded or waited for, which bounds memory.
const MOST: usize = 64;

/// What is known of a tree that was asked for.
enum Tree {
    Wanted,
    Loading,
    Loaded(Option<Vec<Node>>),
}

/// Trees on their way.
pub(crate) struct Ahead<'a> {
    inner: &'a Inner,
    reader: Reader<'a>,
    trees: Mutex<HashMap<Id, Tree>>,
    loaded: Condvar,
}

/// Asks for trees; the loader ends when this goes.
pub(crate) struct Asker<'a> {
    ahead: &'a Ahead<'a>,
    wanted: SyncSender<Id>,
}

impl<'a> Ahead<'a> {
    pub(crate) fn new(inner: &'a Inner) -> Self {
        Self { inner, reader: Reader::new(inner), trees: Mutex::default(), loaded: Condvar::new() }
    }

    /// Both ends: what [`load`](Self::load) needs and what the scanner asks with.
    pub(crate) fn ends(&'a self) -> (Asker<'a>, Receiver<Id>) {
        let (wanted, asked) = sync_channel(MOST);
        (Asker { ahead: self, wanted }, asked)
    }

    /// Loads what is asked for until nobody can ask any more.
    pub(crate) fn load(&self, asked: Receiver<Id>) {
        for id in asked {
            match lock(&self.trees).get_mut(&id) {
                Some(tree @ Tree::Wanted) => *tree = Tree::Loading,
                // The scanner was quicker.
                _ => continue,
            }
            let mut loading = Loading { ahead: self, id, nodes: None };
            // A missing tree would make the whole index be read again, which is for the scanner to decide.
            if self.inner.find_blob(BlobKind::Tree, id).is_some() {
                loading.nodes = self.reader.load_tree(id, "").ok();
            }
        }
    }
}

/// Reports the end of loading even when it ends by a panic: the scanner may be waiting for it.
struct Loading<'a> {
    ahead: &'a Ahead<'a>,
    id: Id,
    nodes: Option<Vec<Node>>,
}

impl Drop for Loading<'_> {
    fn drop(&mut self) {
        lock(&self.ahead.trees).insert(self.id, Tree::Loaded(self.nodes.take()));
        self.ahead.loaded.notify_all();
    }
}

impl Asker<'_> {
    /// Asks for a tree that will be needed soon.
    pub(crate) fn want(&self, id: Id) {
        let mut trees = lock(&self.ahead.trees);
        if trees.len() < MOST && !trees.contains_key(&id) && self.wanted.try_send(id).is_ok() {
            trees.insert(id, Tree::Wanted);
        }
    }

    /// Loads a tree that was not loaded ahead.
    ///
    /// # Errors
    /// As [`Inner::load_tree`].
    pub(crate) fn load(&self, id: Id, path: &str) -> Result<Vec<Node>> {
        self.ahead.reader.load_tree(id, path)
    }

    /// Takes a tree; none when the caller has to load it.
    pub(crate) fn take(&self, id: Id) -> Option<Vec<Node>> {
        let mut trees = lock(&self.ahead.trees);
        while matches!(trees.get(&id), Some(Tree::Loading)) {
            trees = self.ahead.loaded.wait(trees).unwrap_or_else(PoisonError::into_inner);
        }
        match trees.remove(&id) {
            Some(Tree::Loaded(nodes)) => nodes,
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::node::{NodeKind, encode_tree};
    use crate::pack::Sealer;
    use crate::uploader::Uploader;
    use crate::{KeyCost, MemoryBackend, Password, Repository};

    fn names(nodes: Option<Vec<Node>>) -> Option<Vec<Vec<u8>>> {
        nodes.map(|nodes| nodes.into_iter().map(|node| node.name).collect())
    }

    #[test]
    fn trees_come_ahead_and_whatever_does_not_is_left_to_the_scanner() {
        let backend = Arc::new(MemoryBackend::new());
        let repo = Repository::init(backend, &Password::new("p"), KeyCost::Test).expect("a repository");
        let uploader = Uploader::new(&repo.inner);
        let mut sealer = Sealer::new().expect("a compressor");
        let mut trees = Vec::new();
        for n in 0..2 * MOST {
            let json = encode_tree(&[Node::new(format!("entry{n}"), NodeKind::Fifo)]).expect("encoded");
            trees.push(uploader.save(&mut sealer, BlobKind::Tree, &json).expect("saved"));
        }
        uploader.flush().expect("flushed");
        let missing = Id([7; 32]);
        let ahead = Ahead::new(&repo.inner);
        let (asker, asked) = ahead.ends();
        // The scanner comes before the loader, asks twice, and for what is not there.
        asker.want(trees[1]);
        assert_eq!(names(asker.take(trees[1])), None);
        asker.want(trees[0]);
        asker.want(trees[0]);
        asker.want(missing);
        // The loader ends with the last who can ask.
        let (later, asked_later) = ahead.ends();
        drop(asker);
        ahead.load(asked);
        assert_eq!(names(later.take(trees[0])), Some(vec![b"entry0".to_vec()]));
        assert_eq!(names(later.take(trees[0])), None, "a tree is taken once");
        assert_eq!(names(later.take(trees[1])), None, "nobody waits for it any more, so it is not loaded");
        assert_eq!(names(later.take(missing)), None);
        assert!(matches!(later.load(missing, "/at"), Err(crate::Error::MissingBlob { .. })));
        assert_eq!(names(later.load(trees[1], "/at").ok()), Some(vec![b"entry1".to_vec()]));
        // No more are held than was promised, however many are asked for.
        for tree in &trees {
            later.want(*tree);
        }
        let (last, _) = ahead.ends();
        drop(later);
        ahead.load(asked_later);
        assert_eq!(trees.iter().filter(|tree| last.take(**tree).is_some()).count(), MOST);
    }
}
