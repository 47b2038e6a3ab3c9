//! Trees grow from their leaves: a directory is written when its last entry is known.
//!
//! Each directory under way counts what it still waits for: files that workers read, subdirectories, and the scanner
//! itself. Whoever brings the count to zero writes the tree and goes on with the parent. Depth costs no stack.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::{Shared, lock};
use crate::error::{Error, Result};
use crate::id::Id;
use crate::node::{Node, NodeKind, encode_tree};
use crate::pack::Sealer;
use crate::request::{Counts, Pass};
use crate::wire::BlobKind;

/// A directory whose entries are not all known yet.
pub(crate) struct Pending {
    /// Where the finished node goes; none for a root.
    parent: Option<(Arc<Pending>, usize)>,
    waits_for: AtomicUsize,
    /// What the trees to compare with have here.
    known: Vec<Known>,
    state: Mutex<State>,
}

/// A tree of the repository.
pub(crate) type Known = (Id, Arc<Vec<Node>>);

/// What is known of an entry.
#[derive(Clone)]
pub(crate) enum Entry {
    /// Nothing: not looked at yet, or lost.
    Unknown,
    /// It is as a tree to compare with has it: which of them, and where in it. No memory is needed for such an entry.
    Same(u32, u32),
    New(Box<Node>),
}

struct State {
    /// The directory itself; its subtree is filled in at the end. Once a root is finished, it is here.
    node: Option<Node>,
    /// In the order of names, so that no sorting is needed; what was lost stays empty.
    entries: Vec<Entry>,
    counts: Counts,
    finished: bool,
}

impl Pending {
    /// Starts a directory with so many entries, all unknown; it also waits for the scanner's [`complete`] call with
    /// no slot.
    pub(crate) fn new(parent: Option<(Arc<Self>, usize)>, node: Node, entries: usize, known: Vec<Known>) -> Arc<Self> {
        let state = State {
            node: Some(node),
            entries: vec![Entry::Unknown; entries],
            counts: Counts::default(),
            finished: false,
        };
        Arc::new(Self { parent, waits_for: AtomicUsize::new(1), known, state: Mutex::new(state) })
    }

    /// Adds something to wait for; only the scanner does, while it is waited for itself.
    pub(crate) fn wait_for_one_more(&self) {
        self.waits_for.fetch_add(1, Ordering::Relaxed);
    }

    /// Fills in an entry that is known at once.
    pub(crate) fn put(&self, slot: usize, node: Node) {
        let (kind, size) = (node.kind, node.size);
        self.fill(slot, Entry::New(Box::new(node)), kind, size);
    }

    /// Fills in an entry that is exactly what a tree to compare with has.
    pub(crate) fn put_same(&self, slot: usize, (tree, index): (usize, usize)) {
        let Some(node) = self.known.get(tree).and_then(|(_, nodes)| nodes.get(index)) else { return };
        match (u32::try_from(tree), u32::try_from(index)) {
            (Ok(tree), Ok(index)) => self.fill(slot, Entry::Same(tree, index), node.kind, node.size),
            _ => self.put(slot, node.clone()),
        }
    }

    fn fill(&self, slot: usize, found: Entry, kind: NodeKind, size: u64) {
        let mut state = lock(&self.state);
        state.counts.add(kind, size);
        if let Some(entry) = state.entries.get_mut(slot) {
            *entry = found;
        }
    }

    fn node_of<'e>(&'e self, entry: &'e Entry) -> Option<&'e Node> {
        match entry {
            Entry::Unknown => None,
            Entry::Same(tree, index) => self.known.get(*tree as usize)?.1.get(*index as usize),
            Entry::New(node) => Some(node),
        }
    }

    /// The tree to compare with that has exactly these entries.
    fn same_tree(&self, shared: &Shared<'_>, entries: &[Entry]) -> Option<Id> {
        let (_, (id, nodes)) = self.known.iter().enumerate().find(|(at, (id, nodes))| {
            let same = |(index, entry): (usize, &Entry)| match entry {
                Entry::Same(tree, i) if (*tree as usize, *i as usize) == (*at, index) => true,
                entry => self.node_of(entry) == nodes.get(index),
            };
            entries.len() == nodes.len()
                && entries.iter().enumerate().all(same)
                && shared.uploader.has(BlobKind::Tree, *id)
        })?;
        if shared.pass == Pass::Commit {
            lock(&shared.kept).keep(*id, nodes);
        }
        Some(*id)
    }

    /// Takes the finished root out.
    pub(crate) fn into_root(self: &Arc<Self>) -> Result<(Node, Counts)> {
        let mut state = lock(&self.state);
        let counts = state.counts;
        match state.node.take() {
            Some(node) if state.finished => Ok((node, counts)),
            // Cannot happen once all jobs are done; an error is better than an incomplete tree.
            _ => Err(Error::InvalidContent { place: "a tree being built".into(), reason: "it is unfinished".into() }),
        }
    }
}

/// Long chains of parents must not be dropped recursively: a tenant decides how deep a tree is.
impl Drop for Pending {
    fn drop(&mut self) {
        let mut next = self.parent.take();
        while let Some((parent, _)) = next {
            next = Arc::into_inner(parent).and_then(|mut parent| parent.parent.take());
        }
    }
}

/// Tells a directory that one of the things it waits for is done, and writes every tree that becomes complete.
///
/// While writers are held still, a tree that has to be written waits: see [`write_later`].
pub(crate) fn complete(shared: &Shared<'_>, sealer: &mut Sealer, dir: &Arc<Pending>) -> Result<()> {
    if dir.waits_for.fetch_sub(1, Ordering::AcqRel) == 1 { finish(shared, sealer, Arc::clone(dir)) } else { Ok(()) }
}

/// Writes the trees that waited, and those above them that become complete by it.
pub(crate) fn write_later(shared: &Shared<'_>, sealer: &mut Sealer) -> Result<()> {
    loop {
        shared.check()?;
        let Some(dir) = lock(&shared.later).pop() else { return Ok(()) };
        finish(shared, sealer, dir)?;
    }
}

fn finish(shared: &Shared<'_>, sealer: &mut Sealer, mut dir: Arc<Pending>) -> Result<()> {
    loop {
        let (mut entries, counts) = {
            let mut state = lock(&dir.state);
            (std::mem::take(&mut state.entries), state.counts)
        };
        entries.retain(|entry| !matches!(entry, Entry::Unknown));
        // An unchanged directory is the same tree: nothing to write down, hash and look up.
        let tree = match dir.same_tree(shared, &entries) {
            Some(tree) => tree,
            None if shared.held.load(Ordering::Acquire) => {
                lock(&dir.state).entries = entries;
                lock(&shared.later).push(dir);
                return Ok(());
            }
            None => {
                let json = encode_tree(entries.iter().filter_map(|entry| dir.node_of(entry)))?;
                shared.uploader.save(sealer, BlobKind::Tree, &json)?
            }
        };
        let Some(mut node) = lock(&dir.state).node.take() else { return Ok(()) };
        node.subtree = Some(tree);
        let mut total = counts;
        total.add(node.kind, 0);
        let Some((parent, slot)) = &dir.parent else {
            let mut state = lock(&dir.state);
            state.node = Some(node);
            state.counts = total;
            state.finished = true;
            return Ok(());
        };
        {
            let mut state = lock(&parent.state);
            state.counts.merge(total);
            if let Some(entry) = state.entries.get_mut(*slot) {
                *entry = Entry::New(Box::new(node));
            }
        }
        if parent.waits_for.fetch_sub(1, Ordering::AcqRel) != 1 {
            return Ok(());
        }
        dir = Arc::clone(parent);
    }
}

/// Where a file's node goes.
pub(crate) struct Slot {
    pub(crate) dir: Arc<Pending>,
    pub(crate) index: usize,
    pub(crate) name: Vec<u8>,
    /// Path in the snapshot, for losses.
    pub(crate) path: Vec<u8>,
}

impl Slot {
    pub(crate) fn fill(self, shared: &Shared<'_>, sealer: &mut Sealer, mut node: Node) -> Result<()> {
        node.name = self.name;
        self.dir.put(self.index, node);
        complete(shared, sealer, &self.dir)
    }
}

/// Inodes with several names, by device and inode number. Each is read once: two names of one file must never get
/// different contents, whatever happens between the reads.
#[derive(Default)]
pub(crate) struct Links(HashMap<(u64, u64), Link>);

enum Link {
    /// A worker is reading it; these names wait for the result.
    Reading(Vec<Slot>),
    Known(Box<Node>),
    /// It was lost under its first name.
    Lost(crate::request::LossReason),
}

/// What to do with one more name of an inode.
pub(crate) enum LinkState {
    /// It is the first: read it and report with [`Links::resolve`].
    First,
    /// Somebody reads it already and will fill the slot.
    Waiting,
    /// It is known.
    Known(Box<Node>),
    /// It is lost.
    Lost(crate::request::LossReason),
}

impl Links {
    /// Registers a name; `make_slot` is called only when the name has to wait.
    pub(crate) fn meet(&mut self, key: (u64, u64), make_slot: impl FnOnce() -> Slot) -> LinkState {
        match self.0.get_mut(&key) {
            None => {
                self.0.insert(key, Link::Reading(Vec::new()));
                LinkState::First
            }
            Some(Link::Reading(waiting)) => {
                waiting.push(make_slot());
                LinkState::Waiting
            }
            Some(Link::Known(node)) => LinkState::Known(node.clone()),
            Some(Link::Lost(reason)) => LinkState::Lost(*reason),
        }
    }

    /// Records what became of an inode and returns the names that waited for it.
    pub(crate) fn resolve(&mut self, key: (u64, u64), result: Result<Node, crate::request::LossReason>) -> Vec<Slot> {
        let link = match result {
            Ok(node) => Link::Known(Box::new(node)),
            Err(reason) => Link::Lost(reason),
        };
        match self.0.insert(key, link) {
            Some(Link::Reading(waiting)) => waiting,
            _ => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use perennial_core::progress::Progress;

    use super::*;
    use crate::uploader::Uploader;
    use crate::{
        ArchiveRequest, KeyCost, Layout, MemoryBackend, Parent, Pass, Password, Repository, Root, Source, TreeId,
    };

    fn archive(repo: &Repository, path: &Path, parent: Option<Id>) -> Id {
        let source = Source::Directory { path: path.into(), layout: Layout::Plain, exclude: vec![] };
        let request = ArchiveRequest {
            time: jiff::Timestamp::UNIX_EPOCH,
            hostname: "test".into(),
            tags: vec![],
            parents: parent.map(|tree| Parent::Tree(TreeId(tree))).into_iter().collect(),
            roots: vec![Root { at: "/data".into(), source }],
            pass: Pass::Detached,
            accept_losses: vec![],
        };
        repo.archive(&request, &Progress::default()).expect("archived").tree.0
    }

    /// Saves directories anew as somebody else might write them down: the same nodes in other bytes.
    fn rewritten(repo: &Repository, uploader: &Uploader<'_>, tree: Id) -> Id {
        let mut nodes = repo.inner.load_tree(tree, "/").expect("a tree");
        for node in &mut nodes {
            node.subtree = node.subtree.map(|tree| rewritten(repo, uploader, tree));
        }
        let mut json = encode_tree(&nodes).expect("encoded");
        json.push(b' ');
        let mut sealer = Sealer::new().expect("a compressor");
        uploader.save(&mut sealer, BlobKind::Tree, &json).expect("saved")
    }

    fn make_pipe(path: &Path) {
        use rustix::fs::{CWD, FileType, Mode, mknodat};
        mknodat(CWD, path, FileType::Fifo, Mode::RUSR, 0).expect("a pipe");
    }

    fn subtree(repo: &Repository, tree: Id, path: &str) -> Id {
        repo.inner.resolve(tree, path.as_bytes()).expect("it is there").subtree.expect("a directory")
    }

    #[test]
    fn an_unchanged_directory_keeps_the_very_tree_it_had_and_a_changed_one_does_not() {
        let dir = tempfile::tempdir().expect("a directory");
        for name in ["kept", "changed"] {
            fs::create_dir(dir.path().join(name)).expect("made");
            // No regular files, whose change times would have to be old enough, and no links, which a look changes.
            make_pipe(&dir.path().join(name).join("old"));
        }
        let backend = std::sync::Arc::new(MemoryBackend::new());
        let repo = Repository::init(backend, &Password::new("p"), KeyCost::Test).expect("a repository");
        let first = archive(&repo, dir.path(), None);
        let uploader = Uploader::new(&repo.inner);
        let theirs = rewritten(&repo, &uploader, first);
        uploader.flush().expect("flushed");
        let same = archive(&repo, dir.path(), Some(theirs));
        assert_eq!(subtree(&repo, same, "/data"), subtree(&repo, theirs, "/data"));

        make_pipe(&dir.path().join("changed/new"));
        let next = archive(&repo, dir.path(), Some(theirs));
        assert_eq!(subtree(&repo, next, "/data/kept"), subtree(&repo, theirs, "/data/kept"));
        let changed = subtree(&repo, next, "/data/changed");
        assert_ne!(changed, subtree(&repo, theirs, "/data/changed"));
        let nodes = repo.inner.load_tree(changed, "/").expect("a tree");
        assert_eq!(nodes.iter().map(|n| &n.name[..]).collect::<Vec<_>>(), [&b"new"[..], b"old"]);
    }
}
