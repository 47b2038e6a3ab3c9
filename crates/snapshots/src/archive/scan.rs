//! The scanner: walks a root, decides what is unchanged, and hands the rest to workers. While writers are held still, and
//! where there is something to compare with, several scan a root together ([`Pool`]).
//!
//! "Unchanged" means: size, mtime, ctime and inode number equal those in a tree we compare with, and all its blobs are
//! in the repository. That is only sound because of two precautions. A node read while its ctime was too fresh is
//! stored with another ctime (as git does with its index). And a root's file system is synced before the scan (before
//! the writers are held still, because it can take long and what is written after it counts as too fresh): a
//! mapped page that is clean faults on its next write and moves the ctime; one that is dirty already does not.

use std::collections::{HashSet, VecDeque};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::io::Errno;

use super::build::{Known, LinkState, Pending, Slot, complete};
use super::held::CopyOf;
use super::known::Trees;
use super::read::{Job, ReadError, capture_xattrs, loss_reason};
use super::{Shared, lock};
use crate::chunker::Grain;
use crate::effort::Effort;
use crate::error::{Error, Result};
use crate::fsdir::{self, Dir, Stat};
use crate::id::Id;
use crate::node::{Node, NodeKind, Time};
use crate::pack::Sealer;
use crate::pool::Pool;
use crate::removed::{self, Removal, Removed};
use crate::repository::Inner;
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
    at: &'a str,
    layout: Layout,
    exclude: HashSet<Vec<u8>>,
    trees: Trees<'a>,
    racy_from: Time,
    path: PathBuf,
    /// The device number of what this root is a copy of.
    copy_of: Option<u64>,
    parents: Vec<Known>,
}

/// What all scanners of a root know.
struct PlaceOf<'a> {
    shared: &'a Shared<'a>,
    at: &'a str,
    layout: Layout,
    exclude: HashSet<Vec<u8>>,
    trees: Trees<'a>,
    racy_from: Time,
    /// Set when the root is a copy.
    copy: Option<CopyOf>,
}

impl PlaceOf<'_> {
    /// The state of an entry as it is recorded.
    fn known_as(&self, stat: Stat) -> Stat {
        self.copy.map_or(stat, |copy| copy.original(stat))
    }
}

/// A directory that another scanner opened and left to whoever comes.
struct Task {
    dir: Dir,
    /// Where its node goes.
    parent: (Arc<Pending>, usize),
    known: Vec<Known>,
    name: Vec<u8>,
}

/// One of those who scan a root together.
struct Scanner<'a> {
    place: &'a PlaceOf<'a>,
    jobs: &'a SyncSender<Vec<Job>>,
    pool: &'a Pool<Task>,
    removed: Vec<Removed>,
    /// Files of one directory that no worker was told of yet, and their size.
    batch: Vec<Job>,
    batch_bytes: u64,
    sealer: Sealer,
    stack: Vec<Frame>,
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
    subdirs: VecDeque<(usize, Vec<u8>)>,
}

/// Makes everything written so far in a directory's file system durable, and tells from when on changes might not show.
pub(crate) fn settled(path: &Path) -> Result<Time> {
    let racy_from = racy_bound();
    let io = |e: Errno| Error::io("sync the file system of", path, e);
    let root = Dir::open_root(path).map_err(|e| Error::io("open directory", path, e))?;
    rustix::fs::syncfs(&*root.fd().map_err(io)?).map_err(io)?;
    Ok(racy_from)
}

/// What a tree to compare with has where the root goes.
pub(crate) fn known_root(inner: &Inner, parent: Id, at: &str) -> Result<Option<Id>> {
    match inner.resolve(parent, at.as_bytes()) {
        Ok(node) => Ok(node.subtree),
        // What cannot be compared with is read anew: that is how damage heals.
        Err(Error::NotFound { .. } | Error::MissingBlob { .. } | Error::Damaged { .. }) => Ok(None),
        Err(Error::InvalidContent { .. }) => Ok(None),
        Err(e) => Err(e),
    }
}

impl<'a> Scan<'a> {
    /// Prepares a root. `known` is what there is to compare with at this place, `racy_from` what [`settled`] said.
    pub(crate) fn prepare(
        shared: &'a Shared<'a>,
        (path, at): (&'a Path, &'a str),
        (layout, exclude): (Layout, &[PathBuf]),
        (known, trees): (&[Id], Trees<'a>),
        racy_from: Time,
    ) -> Result<Self> {
        let mut parents = Vec::new();
        for tree in known {
            parents.extend(trees.get(*tree, at)?);
        }
        let exclude = exclude
            .iter()
            .map(|p| p.as_os_str().as_bytes().to_vec())
            .map(|p| p.strip_suffix(b"/").map_or_else(|| p.clone(), <[u8]>::to_vec))
            .collect();
        let path = path.to_owned();
        Ok(Self { shared, at, layout, exclude, trees, racy_from, path, copy_of: None, parents })
    }

    /// The directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether there is nothing to compare with.
    pub(crate) const fn is_new(&self) -> bool {
        self.parents.is_empty()
    }

    /// The same root, to be read from a copy of it.
    pub(crate) fn of_copy(self, copy: &Path) -> Result<Self> {
        let original = Dir::open_root(&self.path)
            .and_then(|dir| fsdir::stat_fd(&*dir.fd()?))
            .map_err(|e| Error::io("open directory", &self.path, e))?;
        Ok(Self { path: copy.to_owned(), copy_of: Some(original.dev), ..self })
    }

    /// Scans the root with so many threads; files that must be read become jobs.
    pub(crate) fn run(self, (scanners, effort): (usize, Effort), jobs: &SyncSender<Vec<Job>>) -> Result<Scanned> {
        let Self { shared, at, layout, exclude, trees, racy_from, path, copy_of, parents } = self;
        let io = |e: Errno| Error::io("open directory", &path, e);
        // Only now: what was there when everything was prepared may have been replaced since.
        let root = Dir::open_root(&path).map_err(io)?;
        let copy = copy_of.map(|original| CopyOf::at(&root, original)).transpose().map_err(io)?;
        let place = PlaceOf { shared, at, layout, exclude, trees, racy_from, copy };
        let pool = Pool::new(scanners.max(1));
        let mut first = Scanner::new(&place, &pool, jobs)?;
        let frame = match first.enter(root, None, parents, Vec::new()) {
            Ok(frame) => frame,
            // Without its root there is nothing that an accepted loss could leave over.
            Err(ReadError::Lost(reason)) => {
                return Err(Error::Incomplete { losses: vec![Loss::new(at.as_bytes(), reason)] });
            }
            Err(ReadError::Failed(e)) => return Err(e),
        };
        let pending = Arc::clone(&frame.pending);
        first.stack.push(frame);
        let help = || {
            effort.begin();
            Scanner::new(&place, &pool, jobs)?.work()
        };
        let removed = std::thread::scope(|scope| {
            let others: Vec<_> = (1..scanners).map(|_| scope.spawn(help)).collect();
            let ours = first.work();
            let ended = |thread: std::thread::ScopedJoinHandle<'_, Result<Vec<Removed>>>| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            [ours].into_iter().chain(others.into_iter().map(ended)).collect::<Result<Vec<_>>>()
        })?;
        Ok(Scanned { root: pending, removed: removed.concat() })
    }
}

/// One that panics must not leave the others waiting for it.
impl Drop for Scanner<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.pool.give_up();
        }
    }
}

impl<'a> Scanner<'a> {
    fn new(place: &'a PlaceOf<'a>, pool: &'a Pool<Task>, jobs: &'a SyncSender<Vec<Job>>) -> Result<Self> {
        let sealer = Sealer::new().inspect_err(|_| pool.give_up())?;
        let (removed, batch, stack) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Self { place, jobs, pool, removed, batch, batch_bytes: 0, sealer, stack })
    }

    /// Scans what it has, then what others leave to it, until nothing is left.
    fn work(mut self) -> Result<Vec<Removed>> {
        let result = self.work_on();
        if let Err(error) = result {
            // The first who fails says why; the others end because of it.
            self.place.shared.fail(error);
            self.pool.give_up();
        }
        // From the deepest up, so that no chain of parents hangs on the last one.
        while self.stack.pop().is_some() {}
        Ok(std::mem::take(&mut self.removed))
    }

    fn work_on(&mut self) -> Result<()> {
        loop {
            while let Some(frame) = self.stack.last_mut() {
                self.place.shared.check()?;
                let Some((slot, name)) = frame.subdirs.pop_back() else {
                    if let Some(done) = self.stack.pop() {
                        complete(self.place.shared, &mut self.sealer, &done.pending)?;
                    }
                    continue;
                };
                let pending = Arc::clone(&frame.pending);
                let path = child_path(frame.dir.path(), &name);
                let entered = self.open(self.stack.len() - 1, slot, name).and_then(|task| self.begin(task));
                self.entered(entered, &pending, &path)?;
                self.share()?;
            }
            let Some(task) = self.pool.take() else { return Ok(()) };
            let (pending, path) = (Arc::clone(&task.parent.0), task.dir.path().to_vec());
            let entered = self.begin(task);
            self.entered(entered, &pending, &path)?;
        }
    }

    /// Goes on in a directory, or without it.
    fn entered(&mut self, entered: Result<Frame, ReadError>, parent: &Arc<Pending>, path: &[u8]) -> Result<()> {
        match entered {
            Ok(next) => {
                self.stack.push(next);
                if let Some(far) = self.stack.len().checked_sub(OPEN_DEPTH).and_then(|i| self.stack.get(i)) {
                    far.dir.release();
                }
                Ok(())
            }
            Err(ReadError::Lost(reason)) => {
                self.lose(path, reason);
                complete(self.place.shared, &mut self.sealer, parent)
            }
            Err(ReadError::Failed(e)) => Err(e),
        }
    }

    /// Leaves a directory to somebody who has nothing to do: the one it would come to last, near the root, because
    /// there is most below it.
    fn share(&mut self) -> Result<()> {
        while self.pool.is_hungry() {
            let Some(at) = self.stack.iter().position(|frame| !frame.subdirs.is_empty()) else { return Ok(()) };
            let Some((slot, name)) = self.stack[at].subdirs.pop_front() else { return Ok(()) };
            let pending = Arc::clone(&self.stack[at].pending);
            let path = child_path(self.stack[at].dir.path(), &name);
            let opened = self.open(at, slot, name);
            if at + OPEN_DEPTH < self.stack.len() {
                // It was opened again for this.
                self.stack[at].dir.release();
            }
            match opened {
                Ok(task) => self.pool.give(task),
                Err(ReadError::Lost(reason)) => {
                    self.lose(&path, reason);
                    complete(self.place.shared, &mut self.sealer, &pending)?;
                }
                Err(ReadError::Failed(e)) => return Err(e),
            }
        }
        Ok(())
    }

    fn lose(&self, relative: &[u8], reason: LossReason) {
        self.place.shared.lose(Loss::new(&self.snapshot_path(relative), reason));
    }

    fn snapshot_path(&self, relative: &[u8]) -> Vec<u8> {
        child_path(self.place.at.as_bytes(), relative)
    }

    /// Opens a subdirectory and finds what there is to compare it with.
    fn open(&self, frame: usize, slot: usize, name: Vec<u8>) -> Result<Task, ReadError> {
        let frame = &self.stack[frame];
        if frame.dir.path().len() + name.len() >= MAX_PATH {
            return Err(ReadError::Lost(LossReason::TooLarge));
        }
        let dir = frame.dir.open_dir(&name)?;
        // What comes after this directory and its subdirectories.
        self.want(frame);
        let mut known: Vec<Known> = Vec::new();
        for (_, nodes) in &frame.parents {
            let Some(tree) = find(nodes, &name).and_then(|i| nodes[i].subtree) else { continue };
            if known.iter().all(|(id, _)| *id != tree) {
                known.extend(self.place.trees.get(tree, self.place.at)?);
            }
        }
        Ok(Task { dir, parent: (Arc::clone(&frame.pending), slot), known, name })
    }

    fn begin(&mut self, task: Task) -> Result<Frame, ReadError> {
        self.enter(task.dir, Some(task.parent), task.known, task.name)
    }

    /// Has the trees of the next subdirectories loaded.
    fn want(&self, frame: &Frame) {
        for (_, name) in frame.subdirs.iter().rev().take(LOOK_AHEAD) {
            for (_, nodes) in &frame.parents {
                if let Some(tree) = find(nodes, name).and_then(|i| nodes[i].subtree) {
                    self.place.trees.want(tree);
                }
            }
        }
    }

    /// Lists a directory, settles what can be settled at once, and queues files that must be read.
    fn enter(
        &mut self,
        dir: Dir,
        parent: Option<(Arc<Pending>, usize)>,
        parents: Vec<Known>,
        name: Vec<u8>,
    ) -> Result<Frame, ReadError> {
        let fd = dir.fd()?;
        let (stat, entries) = self.list(&fd, dir.path())?;
        let captured = capture_xattrs(&fd, self.place.layout, &self.snapshot_path(dir.path()))?;
        if captured.opaque {
            self.removed.push(Removed { path: dir.path().to_vec(), how: Removal::Opaque });
        }
        let mut node = stat.to_node(&name, NodeKind::Dir);
        node.xattrs = captured.xattrs;
        let pending = Pending::new(parent, node, entries.len(), parents.clone());
        let mut frame = Frame { dir, pending, parents, subdirs: VecDeque::new() };
        for (slot, (name, stat)) in entries.into_iter().enumerate() {
            self.settle(&mut frame, &fd, slot, name, stat)?;
        }
        self.send()?;
        // Popped from the end, so the first comes last.
        frame.subdirs.make_contiguous().reverse();
        self.want(&frame);
        Ok(frame)
    }

    /// Names and states of all entries; taken again when the directory changed meanwhile.
    #[expect(clippy::type_complexity, reason = "a pair, used once")]
    fn list(&self, fd: &OwnedFd, path: &[u8]) -> Result<(Stat, Vec<(Vec<u8>, Stat)>), ReadError> {
        let exclude = &self.place.exclude;
        let mut attempt = 0;
        loop {
            attempt += 1;
            let before = fsdir::stat_fd(fd)?;
            let mut vanished = false;
            let mut unreadable = Vec::new();
            let mut entries = Vec::new();
            for name in fsdir::list_names(fd)? {
                if !exclude.is_empty() && exclude.contains(&child_path(path, &name)) {
                    continue;
                }
                match fsdir::stat_at(fd, &name) {
                    Ok(stat) => entries.push((name, self.place.known_as(stat))),
                    Err(Errno::NOENT) => vanished = true,
                    Err(errno) => unreadable.push((name, loss_reason(errno))),
                }
            }
            let stable = !vanished && fsdir::stat_fd(fd)?.same_state(&before);
            let settled = stable || self.place.shared.pass == Pass::Live;
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

    fn settle(&mut self, frame: &mut Frame, fd: &Arc<OwnedFd>, slot: usize, name: Vec<u8>, stat: Stat) -> Result<()> {
        let relative = |name: &[u8]| child_path(frame.dir.path(), name);
        let Some(kind) = stat.kind() else {
            self.lose(&relative(&name), LossReason::Unrepresentable);
            return Ok(());
        };
        if self.place.layout == Layout::OverlayUpper && kind == NodeKind::CharDevice && stat.rdev == 0 {
            self.removed.push(Removed { path: relative(&name), how: Removal::Whiteout });
            return Ok(());
        }
        match kind {
            NodeKind::Dir if self.place.copy.is_some_and(|copy| copy.lacks(&stat)) => {
                self.lose(&relative(&name), LossReason::Subvolume);
                Ok(())
            }
            NodeKind::Dir => {
                frame.pending.wait_for_one_more();
                frame.subdirs.push_back((slot, name));
                Ok(())
            }
            NodeKind::File => self.settle_file(frame, fd, slot, name, stat),
            _ => {
                match self.special(fd, &name, &relative(&name), kind) {
                    Ok(node) => {
                        frame.pending.put(slot, node);
                        self.place.shared.progress.add_files(1);
                    }
                    Err(ReadError::Lost(reason)) => self.lose(&relative(&name), reason),
                    Err(ReadError::Failed(e)) => return Err(e),
                }
                Ok(())
            }
        }
    }

    fn settle_file(&mut self, frame: &Frame, fd: &Arc<OwnedFd>, slot: usize, name: Vec<u8>, stat: Stat) -> Result<()> {
        let shared = self.place.shared;
        let path = || self.snapshot_path(&child_path(frame.dir.path(), &name));
        let link = (stat.nlink > 1).then_some((stat.dev, stat.ino));
        let make_slot = || {
            frame.pending.wait_for_one_more();
            Slot { dir: Arc::clone(&frame.pending), index: slot, name: name.clone(), path: path() }
        };
        shared.meet(stat.size);
        if let Some(key) = link {
            match lock(&shared.links).meet(key, make_slot) {
                LinkState::First => {}
                LinkState::Waiting => return Ok(()),
                LinkState::Known(mut node) => {
                    node.name = name;
                    shared.count_whole(node.size);
                    frame.pending.put(slot, *node);
                    return Ok(());
                }
                LinkState::Lost(reason) => {
                    shared.lose(Loss::new(&path(), reason));
                    return Ok(());
                }
            }
        }
        if let Some((tree, index)) = self.unchanged(frame, &name, stat) {
            let known = &frame.parents[tree].1[index];
            shared.count_whole(stat.size);
            if link.is_none() && stat.is_all_of(known) {
                frame.pending.put_same(slot, (tree, index));
                return Ok(());
            }
            let mut node = stat.to_node(&name, NodeKind::File);
            node.content.clone_from(&known.content);
            node.xattrs.clone_from(&known.xattrs);
            if let Some(key) = link {
                let waiting = lock(&shared.links).resolve(key, Ok(node.clone()));
                for other in waiting {
                    shared.count_whole(node.size);
                    other.fill(shared, &mut self.sealer, node.clone())?;
                }
            }
            frame.pending.put(slot, node);
            return Ok(());
        }
        let in_place = changes_in_place(frame, &name, stat, self.place.shared.inner.is_sketch());
        let job = Job {
            parent: Arc::clone(fd),
            slot: make_slot(),
            layout: self.place.layout,
            racy_from: self.place.racy_from,
            copy: self.place.copy,
            link,
            in_place,
        };
        self.batch.push(job);
        self.batch_bytes = self.batch_bytes.saturating_add(stat.size);
        if self.batch.len() >= BATCH || self.batch_bytes >= BATCH_BYTES { self.send() } else { Ok(()) }
    }

    /// Hands over what was gathered.
    fn send(&mut self) -> Result<()> {
        self.batch_bytes = 0;
        let batch = std::mem::take(&mut self.batch);
        // The receiver lives as long as the scanner runs, so this only fails when everything is being torn down.
        if batch.is_empty() { Ok(()) } else { self.jobs.send(batch).map_err(|_| Error::Cancelled) }
    }

    /// Finds the file in a tree we compare with: which tree, and where in it. An unchanged ctime vouches for the extended
    /// attributes as well.
    fn unchanged(&self, frame: &Frame, name: &[u8], stat: Stat) -> Option<(usize, usize)> {
        frame.parents.iter().enumerate().find_map(|(tree, (_, nodes))| {
            let index = find(nodes, name)?;
            let node = &nodes[index];
            let same = node.kind == NodeKind::File
                && node.size == stat.size
                && node.inode == stat.ino
                && node.mtime == stat.mtime.clamped()
                && node.ctime == stat.ctime.clamped()
                && node.ctime != Time::default();
            // A tree of the same directory captured as a plain one holds the kernel's bookkeeping.
            let plain =
                self.place.layout == Layout::Plain || node.xattrs.iter().all(|x| !x.name.starts_with(removed::PREFIX));
            let uploader = self.place.shared.uploader;
            let complete = || node.content.iter().all(|blob| uploader.has(BlobKind::Data, *blob));
            (same && plain && complete()).then_some((tree, index))
        })
    }

    /// Links, devices, pipes and sockets: everything about them is in the inode.
    fn special(&self, dir: &OwnedFd, name: &[u8], relative: &[u8], kind: NodeKind) -> Result<Node, ReadError> {
        let fd = fsdir::open_path(dir, name)?;
        let stat = self.place.known_as(fsdir::stat_fd(&fd)?);
        if stat.kind() != Some(kind) {
            return Err(ReadError::Lost(LossReason::Vanished));
        }
        let mut node = stat.to_node(name, kind);
        if kind == NodeKind::Symlink {
            node.link_target = rustix::fs::readlinkat(&fd, c"", Vec::new())?.into_bytes();
        }
        node.xattrs = capture_xattrs(&fd, self.place.layout, &self.snapshot_path(relative))?.xattrs;
        Ok(node)
    }
}

/// Reports whether a changed file is still the same inode of the same size, as a database or a disk image is, or was
/// seen to be so before. A sketch is cut as what it is compared with was: the same content has to show as the same.
fn changes_in_place(frame: &Frame, name: &[u8], stat: Stat, of_sketch: bool) -> bool {
    frame.parents.iter().filter_map(|(_, nodes)| find(nodes, name).map(|i| &nodes[i])).any(|known| {
        let same = known.size == stat.size && known.inode == stat.ino && known.mtime != stat.mtime.clamped();
        known.kind == NodeKind::File && (same && !of_sketch || Grain::was_paged(known.size, known.content.len()))
    })
}

fn find(nodes: &[Node], name: &[u8]) -> Option<usize> {
    nodes.binary_search_by(|n| n.name.as_slice().cmp(name)).ok()
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
