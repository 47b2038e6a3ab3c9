//! Goes through the tree: makes directories and special files, deletes what must go, queues regular files.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use perennial_core::progress::Progress;
use rustix::fs::{AtFlags, FileType, Mode, mkdirat, mknodat, renameat, symlinkat, unlinkat};
use rustix::io::Errno;

use super::behind::Behind;
use super::lists::Lists;
use super::lower::Upper;
use super::meta::{self, Overlay};
use super::remove::{remove_entry, remove_path, temporary_name};
use super::write::{Job, LinkState, Links, Place, Writer, link_to, same_special};
use super::{Existing, Removals, RestoreRequest, Restored};
use crate::durable::not_synced;
use crate::error::{Error, Result};
use crate::fsdir::{self, Dir, Stat};
use crate::memory::Work;
use crate::node::{Node, NodeKind};
use crate::reader::Reader;
use crate::removed::{Removal, Removed};
use crate::repository::Inner;
use crate::request::Counts;

/// Batches of jobs waiting for workers.
const QUEUE: usize = 64;
/// So many small files go to a worker at once, and no more after so many bytes; as in archiving.
const BATCH: usize = 16;
const BATCH_BYTES: u64 = 1 << 20;
const OPEN_DEPTH: usize = 64;
const MAX_WORKERS: usize = 16;
/// So many more workers than processors, because some wait for the disk.
const WAITING_WORKERS: usize = 2;

/// What the planner and the workers share.
pub(crate) struct Shared<'a> {
    pub(crate) inner: &'a Inner,
    pub(crate) reader: &'a Reader<'a>,
    pub(crate) progress: &'a Progress,
    pub(crate) links: Mutex<Links>,
    target: &'a Path,
    failure: Mutex<Option<Error>>,
    failed: AtomicBool,
    /// Whom new files belong to before they are given away.
    pub(crate) uid: u32,
    behind: Behind,
    pub(crate) done: Done,
}

/// Counts what really happened.
#[derive(Default)]
pub(crate) struct Done {
    pub(crate) files: AtomicU64,
    pub(crate) dirs: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) unchanged: AtomicU64,
    pub(crate) written: AtomicU64,
    pub(crate) removed: AtomicU64,
    pub(crate) whiteouts: AtomicU64,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared<'_> {
    pub(crate) fn check(&self) -> Result<()> {
        self.progress.check()?;
        if self.failed.load(Ordering::Acquire) { Err(Error::Cancelled) } else { Ok(()) }
    }

    fn fail(&self, error: Error) {
        lock(&self.failure).get_or_insert(error);
        self.failed.store(true, Ordering::Release);
    }

    pub(crate) fn error(&self, doing: &'static str, dir: &Dir, name: &[u8]) -> impl Fn(Errno) -> Error + use<> {
        let path = self.path(dir, name);
        move |errno| Error::io(doing, &path, errno)
    }

    fn path(&self, dir: &Dir, name: &[u8]) -> PathBuf {
        self.target.join(OsStr::from_bytes(dir.path())).join(OsStr::from_bytes(name))
    }

    /// Counts a finished entry.
    pub(crate) fn count(&self, node: &Node) {
        let mut counts = Counts::default();
        counts.add(node.kind, node.size);
        self.done.files.fetch_add(counts.files, Ordering::Relaxed);
        self.done.dirs.fetch_add(counts.dirs, Ordering::Relaxed);
        self.done.bytes.fetch_add(counts.bytes, Ordering::Relaxed);
        self.progress.add_files(counts.files);
    }
}

/// A directory whose entries are not all done; its metadata comes last.
pub(crate) struct Task {
    parent: Option<Arc<Task>>,
    pub(crate) dir: Dir,
    node: Node,
    overlay: Overlay,
    waits_for: AtomicUsize,
}

/// As in archiving: a chain of parents is not dropped recursively.
impl Drop for Task {
    fn drop(&mut self) {
        let mut next = self.parent.take();
        while let Some(parent) = next {
            next = Arc::into_inner(parent).and_then(|mut parent| parent.parent.take());
        }
    }
}

impl Task {
    /// How overlay attributes of the entries that are no directories are treated: those are never opaque.
    pub(crate) fn overlay_of_entries(&self) -> Overlay {
        match self.overlay {
            Overlay::None => Overlay::None,
            Overlay::Upper { .. } => Overlay::Upper { opaque: false },
        }
    }

    pub(crate) fn wait_for_one_more(&self) {
        self.waits_for.fetch_add(1, Ordering::Relaxed);
    }
}

/// Tells a directory that one of its entries is done, and finishes every directory that becomes complete by that.
pub(crate) fn complete(shared: &Shared<'_>, task: &Arc<Task>) -> Result<()> {
    let mut task = Arc::clone(task);
    loop {
        if task.waits_for.fetch_sub(1, Ordering::AcqRel) != 1 {
            return Ok(());
        }
        let error = shared.error("set metadata of", &task.dir, b"");
        let fd = task.dir.fd().map_err(&error)?;
        let stat = fsdir::stat_fd(&fd).map_err(&error)?;
        meta::apply(&fd, &stat, &task.node, task.overlay).map_err(&error)?;
        task.dir.release();
        shared.count(&task.node);
        let Some(parent) = task.parent.as_ref().map(Arc::clone) else { return Ok(()) };
        task = parent;
    }
}

struct Frame {
    task: Arc<Task>,
    subdirs: Vec<Node>,
    /// We made it, so nothing is in it.
    fresh: bool,
    delete_extras: bool,
    /// Everything below goes, whatever the comparison with a lower layer says.
    whole: bool,
}

struct Planner<'a> {
    shared: &'a Shared<'a>,
    jobs: SyncSender<Vec<Job>>,
    /// Files of one directory that no worker was told of yet, and their size.
    batch: Vec<Job>,
    batch_bytes: u64,
    upper: bool,
    lists: Lists,
    /// What goes into an upper layer of a given lower one; none: everything.
    only: Option<Upper>,
}

/// Restores one directory. What it wrote is not durable yet; `sync` is the target, opened before anything was written.
pub(crate) fn run(
    (inner, reader): (&Inner, &Reader<'_>),
    request: &RestoreRequest,
    (root, mut list): (Node, Vec<Removed>),
    (target, sync): (Dir, &OwnedFd),
    progress: &Progress,
) -> Result<Restored> {
    let shared = Shared {
        inner,
        reader,
        progress,
        links: Mutex::default(),
        target: &request.target,
        failure: Mutex::default(),
        failed: AtomicBool::new(false),
        uid: rustix::process::geteuid().as_raw(),
        behind: Behind::new(),
        done: Done::default(),
    };
    if matches!(request.removals, Removals::Delete { .. }) {
        for entry in list.iter().filter(|e| e.how == Removal::Whiteout) {
            let removed = remove_path(&target, &entry.path).map_err(shared.error("delete", &target, &entry.path))?;
            shared.done.removed.fetch_add(u64::from(removed), Ordering::Relaxed);
        }
    }
    let only = match &request.against_lower {
        None => None,
        Some(lower) => {
            let mut only = super::lower::compare(inner, &root, lower, &|| shared.check())?;
            list = std::mem::take(&mut only.removed);
            Some(only)
        }
    };
    let marked = matches!(request.removals, Removals::Whiteouts { .. } | Removals::WhiteoutsBelow { .. });
    let upper = only.is_some() || marked;
    let (jobs, receiver) = sync_channel::<Vec<Job>>(QUEUE);
    let receiver = Mutex::new(receiver);
    let effort = shared.inner.effort();
    let workers = effort.workers(Work::Restore, WAITING_WORKERS, MAX_WORKERS);
    // Everything is durable only after the last call, but the disk need not be idle until then.
    let (written, due) = sync_channel::<()>(1);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let failed = |errno| shared.fail(not_synced(&request.target, errno));
            shared.behind.run(due, &shared.done.written, || rustix::fs::syncfs(sync), failed);
        });
        for _ in 0..workers {
            let written = written.clone();
            let (receiver, shared) = (&receiver, &shared);
            scope.spawn(move || {
                effort.begin();
                let mut writer = Writer::default();
                loop {
                    let jobs = lock(receiver).recv();
                    let Ok(jobs) = jobs else { return };
                    for job in jobs {
                        // After a failure the queue is only emptied, so that the planner never waits for it.
                        if !shared.failed.load(Ordering::Acquire)
                            && let Err(error) = writer.run(shared, job)
                        {
                            shared.fail(error);
                        }
                    }
                    if shared.behind.is_due(shared.done.written.load(Ordering::Relaxed)) {
                        // One is under way already when this fails.
                        let _ = written.try_send(());
                    }
                }
            });
        }
        drop(written);
        let planner =
            Planner { shared: &shared, jobs, batch: Vec::new(), batch_bytes: 0, upper, lists: Lists::new(list), only };
        if let Err(error) = planner.run(request, root, target) {
            shared.fail(error);
        }
    });
    if let Some(error) = lock(&shared.failure).take() {
        return Err(error);
    }
    let read = |n: &AtomicU64| n.load(Ordering::Relaxed);
    let done = &shared.done;
    Ok(Restored {
        counts: Counts { files: read(&done.files), dirs: read(&done.dirs), bytes: read(&done.bytes) },
        unchanged_files: read(&done.unchanged),
        written_bytes: read(&done.written),
        removed_entries: read(&done.removed),
        whiteouts: read(&done.whiteouts),
    })
}

impl Planner<'_> {
    fn run(mut self, request: &RestoreRequest, root: Node, target: Dir) -> Result<()> {
        let mut stack = Vec::new();
        let result = self.walk(request, root, target, &mut stack);
        // From the deepest up, so that no chain of parents hangs on the last one.
        while stack.pop().is_some() {}
        result
    }

    fn walk(&mut self, request: &RestoreRequest, root: Node, target: Dir, stack: &mut Vec<Frame>) -> Result<()> {
        let fresh = request.existing == Existing::MustBeEmpty;
        let replace = request.existing == Existing::Replace;
        let whole = self.only.is_none();
        stack.push(self.enter(None, target, root, (fresh, replace, whole))?);
        while let Some(frame) = stack.last_mut() {
            self.shared.check()?;
            let Some(node) = frame.subdirs.pop() else {
                if let Some(done) = stack.pop() {
                    // Its files may take a while; it gets its descriptor back when the last is done.
                    if done.task.waits_for.load(Ordering::Acquire) > 1 {
                        done.task.dir.release();
                    }
                    complete(self.shared, &done.task)?;
                }
                continue;
            };
            let next = self.descend(frame, node)?;
            stack.push(next);
            if let Some(far) = stack.len().checked_sub(OPEN_DEPTH).and_then(|i| stack.get(i)) {
                far.task.dir.release();
            }
        }
        if let Some((dir, _)) = self.lists.whiteouts.first_key_value().filter(|_| self.upper) {
            let dir = String::from_utf8_lossy(dir).into_owned();
            return Err(Error::invalid("the removed list", format!("the snapshot has no directory {dir:?}")));
        }
        Ok(())
    }

    fn descend(&mut self, frame: &Frame, node: Node) -> Result<Frame> {
        let dir = &frame.task.dir;
        let error = self.shared.error("make directory", dir, &node.name);
        let fd = dir.fd().map_err(&error)?;
        let mut fresh = frame.fresh;
        if !fresh {
            match fsdir::stat_at(&fd, &node.name) {
                Ok(stat) if stat.kind() == Some(NodeKind::Dir) => {}
                Ok(_) => {
                    self.remove(dir, &fd, &node.name)?;
                    fresh = true;
                }
                Err(Errno::NOENT) => fresh = true,
                Err(e) => return Err(error(e)),
            }
        }
        if fresh {
            mkdirat(&*fd, &node.name, Mode::RWXU).map_err(&error)?;
        }
        let child = dir.open_dir(&node.name).map_err(&error)?;
        let whole = frame.whole || self.only.as_ref().is_some_and(|only| only.whole.contains(child.path()));
        self.enter(Some(Arc::clone(&frame.task)), child, node, (fresh, frame.delete_extras, whole))
    }

    fn remove(&self, dir: &Dir, fd: &OwnedFd, name: &[u8]) -> Result<()> {
        remove_entry(dir, fd, name).map_err(self.shared.error("delete", dir, name))?;
        self.shared.done.removed.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Brings a directory's entries into place, subdirectories excepted.
    fn enter(
        &mut self,
        parent: Option<Arc<Task>>,
        dir: Dir,
        node: Node,
        (fresh, delete_extras, whole): (bool, bool, bool),
    ) -> Result<Frame> {
        let opaque = self.lists.opaque.contains(dir.path());
        let place = self.shared.path(&dir, b"");
        let subtree = node.subtree.ok_or_else(|| Error::invalid(place.display(), "not a directory"))?;
        let mut nodes = self.shared.reader.load_tree(subtree, &place.display().to_string())?;
        if let Some(only) = self.only.as_ref().filter(|_| !whole) {
            nodes.retain(|node| only.some.contains(&super::lower::child(dir.path(), &node.name)));
        }
        let whiteouts = if self.upper { self.lists.whiteouts.remove(dir.path()) } else { None }.unwrap_or_default();
        if let Some(parent) = &parent {
            parent.wait_for_one_more();
        }
        let overlay = if self.upper { Overlay::Upper { opaque } } else { Overlay::None };
        // What an opaque directory holds of the lower layer is hidden, however deep.
        let delete_extras = delete_extras || (opaque && !self.upper);
        let task = Arc::new(Task { parent, dir, node, overlay, waits_for: AtomicUsize::new(1) });
        let mut frame = Frame { task, subdirs: Vec::new(), fresh, delete_extras, whole };
        let fd = frame.task.dir.fd().map_err(self.shared.error("open", &frame.task.dir, b""))?;
        if !fresh && delete_extras {
            let names = fsdir::list_names(&fd).map_err(self.shared.error("list", &frame.task.dir, b""))?;
            for name in names {
                let wanted = nodes.binary_search_by(|n| n.name.cmp(&name)).is_ok() || whiteouts.contains(&name);
                if !wanted {
                    self.remove(&frame.task.dir, &fd, &name)?;
                }
            }
        }
        for name in whiteouts {
            if nodes.binary_search_by(|n| n.name.cmp(&name)).is_ok() {
                return Err(Error::invalid("the removed list", "it names an entry that the tree has"));
            }
            self.whiteout(&frame, &fd, &name)?;
        }
        for node in nodes {
            self.place(&mut frame, &fd, node)?;
        }
        self.send()?;
        frame.subdirs.reverse();
        Ok(frame)
    }

    fn whiteout(&self, frame: &Frame, fd: &OwnedFd, name: &[u8]) -> Result<()> {
        let error = self.shared.error("make whiteout", &frame.task.dir, name);
        if !frame.fresh {
            match fsdir::stat_at(fd, name) {
                Ok(stat) if stat.kind() == Some(NodeKind::CharDevice) && stat.rdev == 0 => {
                    self.shared.done.whiteouts.fetch_add(1, Ordering::Relaxed);
                    return Ok(());
                }
                Ok(_) => self.remove(&frame.task.dir, fd, name)?,
                Err(Errno::NOENT) => {}
                Err(e) => return Err(error(e)),
            }
        }
        mknodat(fd, name, FileType::CharacterDevice, Mode::empty(), 0).map_err(&error)?;
        self.shared.done.whiteouts.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn place(&mut self, frame: &mut Frame, fd: &Arc<OwnedFd>, node: Node) -> Result<()> {
        let dir = &frame.task.dir;
        if node.kind == NodeKind::Dir {
            frame.subdirs.push(node);
            return Ok(());
        }
        let existing = if frame.fresh {
            None
        } else {
            match fsdir::stat_at(fd, &node.name) {
                Ok(stat) => Some(stat),
                Err(Errno::NOENT) => None,
                Err(e) => return Err(self.shared.error("look at", dir, &node.name)(e)),
            }
        };
        if node.kind == NodeKind::Socket {
            return Ok(());
        }
        if self.upper && node.kind == NodeKind::CharDevice && node.device == 0 {
            let path = self.shared.path(dir, &node.name);
            return Err(Error::invalid(path.display(), "a device 0/0 would become a deletion in an overlay"));
        }
        let place = || Place { task: Arc::clone(&frame.task), name: node.name.clone(), existing };
        if let Some(key) = node.link_key() {
            let state = lock(&self.shared.links).meet(key, || {
                frame.task.wait_for_one_more();
                place()
            });
            match state {
                LinkState::First => {}
                LinkState::Waiting => return Ok(()),
                LinkState::Known(source) => {
                    link_to(self.shared, &source, &place())?;
                    self.shared.count(&node);
                    return Ok(());
                }
            }
        }
        if node.kind == NodeKind::File {
            frame.task.wait_for_one_more();
            let job = Job { place: place(), fd: Arc::clone(fd), node };
            self.batch_bytes = self.batch_bytes.saturating_add(job.node.size);
            self.batch.push(job);
            let full = self.batch.len() >= BATCH || self.batch_bytes >= BATCH_BYTES;
            return if full { self.send() } else { Ok(()) };
        }
        let inode = self.special(frame, fd, &node, existing)?;
        if let Some(key) = node.link_key() {
            // Nobody can be waiting: special files are made by this thread alone, at once.
            drop(lock(&self.shared.links).resolve(key, place(), inode));
        }
        self.shared.count(&node);
        Ok(())
    }

    /// Hands over what was gathered.
    fn send(&mut self) -> Result<()> {
        self.batch_bytes = 0;
        let batch = std::mem::take(&mut self.batch);
        // Fails only when the workers are gone, and they go after us.
        if batch.is_empty() { Ok(()) } else { self.jobs.send(batch).map_err(|_| Error::Cancelled) }
    }

    /// Makes a link, device or pipe, or finds it as it must be; returns its inode number.
    fn special(&self, frame: &Frame, fd: &OwnedFd, node: &Node, existing: Option<Stat>) -> Result<u64> {
        let dir = &frame.task.dir;
        let error = self.shared.error("make", dir, &node.name);
        let overlay = if self.upper { Overlay::Upper { opaque: false } } else { Overlay::None };
        if let Some(stat) = existing {
            if same_special(fd, node, &stat).map_err(&error)? {
                let entry = fsdir::open_path(fd, &node.name).map_err(&error)?;
                let stat = fsdir::stat_fd(&entry).map_err(&error)?;
                if stat.kind() == Some(node.kind) {
                    meta::apply(&entry, &stat, node, overlay).map_err(&error)?;
                    return Ok(stat.ino);
                }
            }
            if stat.kind() == Some(NodeKind::Dir) {
                self.remove(dir, fd, &node.name)?;
            }
        }
        let temporary = existing.map(|_| temporary_name());
        let name = temporary.as_deref().unwrap_or(&node.name);
        let make = |file_type| mknodat(fd, name, file_type, Mode::RUSR | Mode::WUSR, node.device);
        match node.kind {
            NodeKind::Symlink => symlinkat(node.link_target.as_slice(), fd, name),
            NodeKind::Fifo => make(FileType::Fifo),
            NodeKind::CharDevice => make(FileType::CharacterDevice),
            _ => make(FileType::BlockDevice),
        }
        .map_err(&error)?;
        let entry = fsdir::open_path(fd, name).map_err(&error)?;
        let stat = fsdir::stat_fd(&entry).map_err(&error)?;
        if stat.kind() != Some(node.kind) {
            return Err(error(Errno::STALE));
        }
        meta::apply(&entry, &stat, node, overlay).map_err(&error)?;
        if let Some(temporary) = &temporary
            && let Err(e) = renameat(fd, temporary.as_slice(), fd, &node.name)
        {
            let _ = unlinkat(fd, temporary.as_slice(), AtFlags::empty());
            return Err(error(e));
        }
        Ok(stat.ino)
    }
}
