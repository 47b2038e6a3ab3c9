//! The scanner: walks a root, decides what is unchanged, and hands the rest to workers.
//!
//! "Unchanged" means: size, mtime, ctime and inode number equal those in a tree we compare with, and all its blobs are
//! in the repository. That is only sound because of two precautions. A node read while its ctime was too fresh is
//! stored with another ctime (as git does with its index). And a root's file system is synced before the scan: a
//! mapped page that is clean faults on its next write and moves the ctime; one that is dirty already does not.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::io::Errno;

use super::ahead::Asker;
use super::build::{Known, LinkState, Pending, Slot, complete};
use super::read::{Job, ReadError, capture_xattrs, loss_reason};
use super::{Shared, lock};
use crate::chunker::Grain;
use crate::error::{Error, Result};
use crate::fsdir::{self, Dir, Stat};
use crate::id::Id;
use crate::node::{Node, NodeKind, Time};
use crate::pack::Sealer;
use crate::removed::{self, Removal, Removed};
use crate::request::{Counts, Layout, Loss, LossReason, Pass};
use crate::wire::BlobKind;

/// Directories whose descriptors are kept open on the way down.
const OPEN_DEPTH: usize = 64;
/// Longest path below a root; four times what the system takes as an argument. The memory for the way down grows
/// with its square.
const MAX_PATH: usize = 16 << 10;
/// The kernel stamps files with a clock that ticks every 10 ms at the slowest.
const GRANULARITY_NS: u32 = 20_000_000;
const LIST_ATTEMPTS: u32 = 4;
/// So many subdirectories' trees are loaded before they are needed.
const LOOK_AHEAD: usize = 4;
/// So many small files go to a worker at once, because waking one costs as much as reading one.
const BATCH: usize = 16;
/// No more than one file goes after so many bytes, because everybody is to have something to do.
const BATCH_BYTES: u64 = 1 << 20;

/// One root about to be scanned.
pub(crate) struct Scan<'a> {
    shared: &'a Shared<'a>,
    root: Option<Dir>,
    at: &'a str,
    layout: Layout,
    exclude: HashSet<Vec<u8>>,
    parents: Vec<Known>,
    ahead: Asker<'a>,
    racy_from: Time,
    removed: Vec<Removed>,
    /// Files of one directory that no worker was told of yet, and their size.
    batch: Vec<Job>,
    batch_bytes: u64,
    sealer: Sealer,
}

/// A scanned root whose files may still be under way.
pub(crate) struct Scanned {
    root: Arc<Pending>,
    removed: Vec<Removed>,
}

/// A captured root.
pub(crate) struct Outcome {
    pub(crate) node: Node,
    pub(crate) counts: Counts,
    pub(crate) removed: Vec<Removed>,
}

impl Scanned {
    /// Takes the result once all workers are done.
    pub(crate) fn finish(self) -> Result<Outcome> {
        let (node, counts) = self.root.into_root()?;
        Ok(Outcome { node, counts, removed: self.removed })
    }
}

/// A directory on the way down.
struct Frame {
    dir: Dir,
    pending: Arc<Pending>,
    /// What the trees to compare with have here.
    parents: Vec<Known>,
    /// Subdirectories still to visit, last first.
    subdirs: Vec<(usize, Vec<u8>)>,
}

impl<'a> Scan<'a> {
    pub(crate) fn prepare(
        shared: &'a Shared<'a>,
        path: &Path,
        at: &'a str,
        layout: Layout,
        exclude: &[PathBuf],
        parents: &[Id],
        ahead: Asker<'a>,
    ) -> Result<Self> {
        let io = |doing| move |e: Errno| Error::io(doing, path, e);
        let root = Dir::open_root(path).map_err(io("open directory"))?;
        let racy_from = racy_bound();
        let fd = root.fd().map_err(io("open directory"))?;
        rustix::fs::syncfs(&*fd).map_err(io("sync the file system of"))?;
        let mut trees = Vec::new();
        for parent in parents {
            let known = |tree| shared.inner.load_tree(tree, at).map(|nodes| (tree, Arc::new(nodes)));
            match shared.inner.resolve(*parent, at.as_bytes()).and_then(|node| node.subtree.map(known).transpose()) {
                Ok(known) => trees.extend(known),
                // What cannot be compared with is read anew: that is how damage heals.
                Err(Error::NotFound { .. } | Error::MissingBlob { .. } | Error::Damaged { .. }) => {}
                Err(Error::InvalidContent { .. }) => {}
                Err(e) => return Err(e),
            }
        }
        let exclude = exclude
            .iter()
            .map(|p| p.as_os_str().as_bytes().to_vec())
            .map(|p| p.strip_suffix(b"/").map_or_else(|| p.clone(), <[u8]>::to_vec))
            .collect();
        let sealer = Sealer::new()?;
        Ok(Self {
            shared,
            root: Some(root),
            at,
            layout,
            exclude,
            parents: trees,
            ahead,
            racy_from,
            removed: Vec::new(),
            batch: Vec::new(),
            batch_bytes: 0,
            sealer,
        })
    }

    pub(crate) fn run(mut self, jobs: &SyncSender<Vec<Job>>) -> Result<Scanned> {
        let mut stack: Vec<Frame> = Vec::new();
        let result = self.walk(jobs, &mut stack);
        // From the deepest up, so that no chain of parents hangs on the last one.
        while stack.pop().is_some() {}
        result.map(|root| Scanned { root, removed: self.removed })
    }

    fn walk(&mut self, jobs: &SyncSender<Vec<Job>>, stack: &mut Vec<Frame>) -> Result<Arc<Pending>> {
        let root = self.root.take().ok_or(Error::Cancelled)?;
        let parents = std::mem::take(&mut self.parents);
        let root_error =
            |reason: LossReason, at: &str| Error::Incomplete { losses: vec![Loss::new(at.as_bytes(), reason)] };
        let frame = match self.enter(jobs, root, None, parents, Vec::new()) {
            Ok(frame) => frame,
            // Without its root there is nothing that an accepted loss could leave over.
            Err(ReadError::Lost(reason)) => return Err(root_error(reason, self.at)),
            Err(ReadError::Failed(e)) => return Err(e),
        };
        let pending = Arc::clone(&frame.pending);
        stack.push(frame);
        while let Some(frame) = stack.last_mut() {
            self.shared.check()?;
            let Some((slot, name)) = frame.subdirs.pop() else {
                if let Some(done) = stack.pop() {
                    complete(self.shared, &mut self.sealer, &done.pending)?;
                }
                continue;
            };
            let (pending, entered) = (Arc::clone(&frame.pending), self.descend(jobs, frame, slot, &name));
            match entered {
                Ok(next) => {
                    stack.push(next);
                    if let Some(far) = stack.len().checked_sub(OPEN_DEPTH).and_then(|i| stack.get(i)) {
                        far.dir.release();
                    }
                }
                Err(ReadError::Lost(reason)) => {
                    self.lose(&child_path(stack.last().map_or(&[], |f| f.dir.path()), &name), reason);
                    complete(self.shared, &mut self.sealer, &pending)?;
                }
                Err(ReadError::Failed(e)) => return Err(e),
            }
        }
        Ok(pending)
    }

    fn lose(&self, relative: &[u8], reason: LossReason) {
        self.shared.lose(Loss::new(&self.snapshot_path(relative), reason));
    }

    fn snapshot_path(&self, relative: &[u8]) -> Vec<u8> {
        child_path(self.at.as_bytes(), relative)
    }

    fn descend(
        &mut self,
        jobs: &SyncSender<Vec<Job>>,
        frame: &Frame,
        slot: usize,
        name: &[u8],
    ) -> Result<Frame, ReadError> {
        if frame.dir.path().len() + name.len() >= MAX_PATH {
            return Err(ReadError::Lost(LossReason::TooLarge));
        }
        let dir = frame.dir.open_dir(name)?;
        // What comes after this directory and its subdirectories.
        self.want(frame);
        let mut parents = Vec::new();
        for (_, nodes) in &frame.parents {
            let Some(tree) = find(nodes, name).and_then(|n| n.subtree) else { continue };
            let loaded = self.ahead.take(tree).map_or_else(|| self.ahead.load(tree, self.at), Ok);
            match loaded {
                Ok(nodes) => parents.push((tree, Arc::new(nodes))),
                Err(Error::MissingBlob { .. } | Error::Damaged { .. } | Error::InvalidContent { .. }) => {}
                Err(e) => return Err(e.into()),
            }
        }
        self.enter(jobs, dir, Some((Arc::clone(&frame.pending), slot)), parents, name.to_vec())
    }

    /// Has the trees of the next subdirectories loaded.
    fn want(&self, frame: &Frame) {
        for (_, name) in frame.subdirs.iter().rev().take(LOOK_AHEAD) {
            for (_, nodes) in &frame.parents {
                if let Some(tree) = find(nodes, name).and_then(|n| n.subtree) {
                    self.ahead.want(tree);
                }
            }
        }
    }

    /// Lists a directory, settles what can be settled at once, and queues files that must be read.
    fn enter(
        &mut self,
        jobs: &SyncSender<Vec<Job>>,
        dir: Dir,
        parent: Option<(Arc<Pending>, usize)>,
        parents: Vec<Known>,
        name: Vec<u8>,
    ) -> Result<Frame, ReadError> {
        let fd = dir.fd()?;
        let (stat, entries) = self.list(&fd, dir.path())?;
        let captured = capture_xattrs(&fd, self.layout, &self.snapshot_path(dir.path()))?;
        if captured.opaque {
            self.removed.push(Removed { path: dir.path().to_vec(), how: Removal::Opaque });
        }
        let mut node = stat.to_node(&name, NodeKind::Dir);
        node.xattrs = captured.xattrs;
        let pending = Pending::new(parent, node, entries.len(), parents.clone());
        let mut frame = Frame { dir, pending, parents, subdirs: Vec::new() };
        for (slot, (name, stat)) in entries.into_iter().enumerate() {
            self.settle(jobs, &mut frame, &fd, slot, name, stat)?;
        }
        self.send(jobs)?;
        // Popped from the end, so the first comes last.
        frame.subdirs.reverse();
        self.want(&frame);
        Ok(frame)
    }

    /// Names and states of all entries; taken again when the directory changed meanwhile.
    #[expect(clippy::type_complexity, reason = "a pair, used once")]
    fn list(&self, fd: &OwnedFd, path: &[u8]) -> Result<(Stat, Vec<(Vec<u8>, Stat)>), ReadError> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let before = fsdir::stat_fd(fd)?;
            let mut vanished = false;
            let mut unreadable = Vec::new();
            let mut entries = Vec::new();
            for name in fsdir::list_names(fd)? {
                if self.exclude.contains(&child_path(path, &name)) {
                    continue;
                }
                match fsdir::stat_at(fd, &name) {
                    Ok(stat) => entries.push((name, stat)),
                    Err(Errno::NOENT) => vanished = true,
                    Err(errno) => unreadable.push((name, loss_reason(errno))),
                }
            }
            let stable = !vanished && fsdir::stat_fd(fd)?.same_state(&before);
            let settled = stable || self.shared.pass == Pass::Live;
            if settled || attempt >= LIST_ATTEMPTS {
                for (name, reason) in unreadable {
                    self.lose(&child_path(path, &name), reason);
                }
                if !settled {
                    self.lose(path, LossReason::Changed);
                }
                return Ok((before, entries));
            }
        }
    }

    fn settle(
        &mut self,
        jobs: &SyncSender<Vec<Job>>,
        frame: &mut Frame,
        fd: &Arc<OwnedFd>,
        slot: usize,
        name: Vec<u8>,
        stat: Stat,
    ) -> Result<()> {
        let relative = child_path(frame.dir.path(), &name);
        let Some(kind) = stat.kind() else {
            self.lose(&relative, LossReason::Unrepresentable);
            return Ok(());
        };
        if self.layout == Layout::OverlayUpper && kind == NodeKind::CharDevice && stat.rdev == 0 {
            self.removed.push(Removed { path: relative, how: Removal::Whiteout });
            return Ok(());
        }
        match kind {
            NodeKind::Dir => {
                frame.pending.wait_for_one_more();
                frame.subdirs.push((slot, name));
                Ok(())
            }
            NodeKind::File => self.settle_file(jobs, frame, fd, slot, name, stat),
            _ => {
                match self.special(fd, &name, &relative, kind) {
                    Ok(node) => {
                        frame.pending.put(slot, node);
                        self.shared.progress.add_files(1);
                    }
                    Err(ReadError::Lost(reason)) => self.lose(&relative, reason),
                    Err(ReadError::Failed(e)) => return Err(e),
                }
                Ok(())
            }
        }
    }

    fn settle_file(
        &mut self,
        jobs: &SyncSender<Vec<Job>>,
        frame: &Frame,
        fd: &Arc<OwnedFd>,
        slot: usize,
        name: Vec<u8>,
        stat: Stat,
    ) -> Result<()> {
        let path = self.snapshot_path(&child_path(frame.dir.path(), &name));
        let link = (stat.nlink > 1).then_some((stat.dev, stat.ino));
        let make_slot = |name: &[u8]| {
            frame.pending.wait_for_one_more();
            Slot { dir: Arc::clone(&frame.pending), index: slot, name: name.to_vec(), path: path.clone() }
        };
        if let Some(key) = link {
            match lock(&self.shared.links).meet(key, || make_slot(&name)) {
                LinkState::First => {}
                LinkState::Waiting => return Ok(()),
                LinkState::Known(mut node) => {
                    node.name = name;
                    frame.pending.put(slot, *node);
                    self.shared.progress.add_files(1);
                    return Ok(());
                }
                LinkState::Lost(reason) => {
                    self.shared.lose(Loss::new(&path, reason));
                    return Ok(());
                }
            }
        }
        if let Some(known) = self.unchanged(frame, &name, stat) {
            if let Some(key) = link {
                // Nobody can be waiting: this thread is the only one that registers names.
                drop(lock(&self.shared.links).resolve(key, Ok(known.clone())));
            }
            self.shared.progress.add_files(1);
            frame.pending.put(slot, known);
            return Ok(());
        }
        let in_place = changes_in_place(frame, &name, stat);
        let job = Job {
            parent: Arc::clone(fd),
            slot: make_slot(&name),
            layout: self.layout,
            racy_from: self.racy_from,
            link,
            in_place,
        };
        self.batch.push(job);
        self.batch_bytes = self.batch_bytes.saturating_add(stat.size);
        if self.batch.len() >= BATCH || self.batch_bytes >= BATCH_BYTES { self.send(jobs) } else { Ok(()) }
    }

    /// Hands over what was gathered.
    fn send(&mut self, jobs: &SyncSender<Vec<Job>>) -> Result<()> {
        self.batch_bytes = 0;
        let batch = std::mem::take(&mut self.batch);
        // The receiver lives as long as the scanner runs, so this only fails when everything is being torn down.
        if batch.is_empty() { Ok(()) } else { jobs.send(batch).map_err(|_| Error::Cancelled) }
    }

    /// Finds the file in a tree we compare with; an unchanged ctime vouches for the extended attributes as well.
    fn unchanged(&self, frame: &Frame, name: &[u8], stat: Stat) -> Option<Node> {
        let known = frame.parents.iter().find_map(|(_, nodes)| {
            let node = find(nodes, name)?;
            let same = node.kind == NodeKind::File
                && node.size == stat.size
                && node.inode == stat.ino
                && node.mtime == stat.mtime.clamped()
                && node.ctime == stat.ctime.clamped()
                && node.ctime != Time::default();
            // A tree of the same directory captured as a plain one holds the kernel's bookkeeping.
            let plain =
                self.layout == Layout::Plain || node.xattrs.iter().all(|x| !x.name.starts_with(removed::PREFIX));
            let complete = || node.content.iter().all(|blob| self.shared.uploader.has(BlobKind::Data, *blob));
            (same && plain && complete()).then_some(node)
        })?;
        let mut node = stat.to_node(name, NodeKind::File);
        node.content.clone_from(&known.content);
        node.xattrs.clone_from(&known.xattrs);
        Some(node)
    }

    /// Links, devices, pipes and sockets: everything about them is in the inode.
    fn special(&self, dir: &OwnedFd, name: &[u8], relative: &[u8], kind: NodeKind) -> Result<Node, ReadError> {
        let fd = fsdir::open_path(dir, name)?;
        let stat = fsdir::stat_fd(&fd)?;
        if stat.kind() != Some(kind) {
            return Err(ReadError::Lost(LossReason::Vanished));
        }
        let mut node = stat.to_node(name, kind);
        if kind == NodeKind::Symlink {
            node.link_target = rustix::fs::readlinkat(&fd, c"", Vec::new())?.into_bytes();
        }
        node.xattrs = capture_xattrs(&fd, self.layout, &self.snapshot_path(relative))?.xattrs;
        Ok(node)
    }
}

/// Reports whether a changed file is still the same inode of the same size, as a database or a disk image is, or was
/// seen to be so before.
fn changes_in_place(frame: &Frame, name: &[u8], stat: Stat) -> bool {
    frame.parents.iter().filter_map(|(_, nodes)| find(nodes, name)).any(|known| {
        let same = known.size == stat.size && known.inode == stat.ino && known.mtime != stat.mtime.clamped();
        known.kind == NodeKind::File && (same || Grain::was_paged(known.size, known.content.len()))
    })
}

fn find<'n>(nodes: &'n [Node], name: &[u8]) -> Option<&'n Node> {
    nodes.binary_search_by(|n| n.name.as_slice().cmp(name)).ok().and_then(|i| nodes.get(i))
}

fn child_path(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() || name.is_empty() {
        return [dir, name].concat();
    }
    [dir, b"/", name].concat()
}

fn racy_bound() -> Time {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let bound = now.saturating_sub(std::time::Duration::from_nanos(u64::from(GRANULARITY_NS)));
    Time { seconds: i64::try_from(bound.as_secs()).unwrap_or(0), nanoseconds: bound.subsec_nanos() }
}
