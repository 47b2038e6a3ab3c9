//! Loads the trees to compare with before the scanner comes to them, so that it has little to do but look at files.
//!
//! It is only ever quicker for it: what is not there in time, or could not be loaded, the scanner loads itself, and
//! then meets whatever is wrong with it.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Condvar, Mutex, PoisonError};

use super::lock;
use crate::id::Id;
use crate::node::Node;
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
        Self { inner, trees: Mutex::default(), loaded: Condvar::new() }
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
                loading.nodes = self.inner.load_tree(id, "").ok();
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
