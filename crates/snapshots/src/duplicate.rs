//! Directory trees copied on this host, with everything that a snapshot of them would keep.
//!
//! The source may be a tenant's who rearranges it meanwhile, so it is walked like any other ([`crate::fsdir`]); the copy is
//! ours alone until it is whole. Contents are shared where the file system can (`FICLONE`), else copied, holes staying holes.
//! An overlay's upper layer is copied as one: whiteouts and opaque marks stay, the kernel's bookkeeping about the layer below
//! does not.
//!
//! A copy is of one instant when nothing writes during [`Duplicate::finish`]. Where that takes long, [`Duplicate::ahead`]
//! copies while writers go on, and `finish` looks at every entry and copies what changed since. What vouches for a file is
//! its change time, as in a snapshot: one that is not older than the moment before a sync of the file system counts as changed.
//! A name more or less is a change too, so a file with several that did not change has the names that it had.

mod content;
mod mark;
mod pool;

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use perennial_core::progress::Progress;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, linkat, mkdirat, mknodat, openat, symlinkat};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::fsdir::{self, Dir, Stat, XattrError, list_names, open_path, read_xattrs, stat_at, stat_fd};
use crate::node::{Node, NodeKind, Time};
use crate::removed::{OverlayMark, classify};
use crate::restore::{Overlay, apply, remove_entry};
use mark::{Mark, Marks};
use pool::{Job, Pool};

/// Change times come from a clock that moves in steps of at most this much.
const GRANULARITY: std::time::Duration = std::time::Duration::from_millis(20);
/// More threads than this gain nothing: the file system's own locks are the limit.
const THREADS_MAX: usize = 8;

/// One directory and where its copy goes.
#[derive(Debug, Clone)]
pub struct Tree {
    /// The directory.
    pub from: PathBuf,
    /// An existing directory; it has nothing in it when the copy begins.
    pub to: PathBuf,
    /// Paths below `from` that are left out.
    pub exclude: Vec<PathBuf>,
}

/// What was copied, in all passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Duplicated {
    /// Entries that were made, directories included.
    pub entries: u64,
    /// Bytes of contents that the copies share with their sources.
    pub shared: u64,
    /// Bytes of contents that were written anew.
    pub written: u64,
}

/// A copy of several directories, in the making.
#[derive(Debug)]
pub struct Duplicate {
    trees: Vec<Tree>,
    marks: Marks,
    seen: HashSet<Mark>,
    /// Whether anything was copied already.
    begun: bool,
    done: Duplicated,
}

impl Duplicate {
    /// A copy of which nothing is made yet.
    #[must_use]
    pub fn new(trees: Vec<Tree>) -> Self {
        Self { trees, marks: Marks::new(), seen: HashSet::new(), begun: false, done: Duplicated::default() }
    }

    /// Copies while writers go on. What comes out is of no instant before [`Duplicate::finish`].
    ///
    /// # Errors
    /// [`Error::Io`] where a tree cannot be read or written; [`Error::Cancelled`].
    pub fn ahead(&mut self, progress: &Progress) -> Result<()> {
        let before = std::time::SystemTime::now().checked_sub(GRANULARITY);
        sync(self.trees.iter().map(|tree| tree.from.as_path()))?;
        let seen = self.pass(Some(barrier(before)), progress)?;
        self.seen = seen;
        Ok(())
    }

    /// Copies what is missing, and removes what is there no more, while nothing writes.
    ///
    /// # Errors
    /// [`Error::NotHeld`] when something changed all the same; otherwise as [`Duplicate::ahead`].
    pub fn finish(&mut self, progress: &Progress) -> Result<Duplicated> {
        self.pass(None, progress)?;
        Ok(self.done)
    }

    fn pass(&mut self, live: Option<Time>, progress: &Progress) -> Result<HashSet<Mark>> {
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(THREADS_MAX);
        let pass = Pass {
            trees: &self.trees,
            marks: self.marks,
            before: std::mem::take(&mut self.seen),
            again: self.begun,
            live,
            seen: Mutex::default(),
            links: Mutex::default(),
            shares: self.trees.iter().map(|_| AtomicBool::new(true)).collect(),
            made: AtomicU64::new(0),
            shared: AtomicU64::new(0),
            written: AtomicU64::new(0),
            progress,
        };
        self.begun = true;
        let pool = Pool::new(threads);
        for (index, tree) in self.trees.iter().enumerate() {
            let open = |path: &Path| Dir::open_root(path).map_err(|e| Error::io("open", path, e));
            pool.give(Job { tree: index, from: open(&tree.from)?, to: open(&tree.to)?, fresh: false });
        }
        pool.run(|job| pass.directory(&pool, job))?;
        let add = |total: &mut u64, more: &AtomicU64| *total += more.load(Ordering::Relaxed);
        add(&mut self.done.entries, &pass.made);
        add(&mut self.done.shared, &pass.shared);
        add(&mut self.done.written, &pass.written);
        Ok(pass.seen.into_inner().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Makes everything of the file systems durable that these directories are on.
///
/// # Errors
/// [`Error::Io`].
pub fn sync<'a>(directories: impl IntoIterator<Item = &'a Path>) -> Result<()> {
    let mut synced = HashSet::new();
    for path in directories {
        let dir = std::fs::File::open(path).map_err(|e| Error::io("open", path, e))?;
        let device = dir.metadata().map_err(|e| Error::io("look at", path, e))?.dev();
        if synced.insert(device) {
            rustix::fs::syncfs(&dir).map_err(|e| Error::io("sync", path, e))?;
        }
    }
    Ok(())
}

/// Change times from here on vouch for nothing.
fn barrier(before: Option<std::time::SystemTime>) -> Time {
    let since = before.and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok()).unwrap_or_default();
    Time { seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX), nanoseconds: since.subsec_nanos() }
}

/// The first name that an inode with several got in the copy.
struct Linked {
    dir: Arc<Dir>,
    name: Vec<u8>,
    /// The copy's inode number.
    copy: u64,
    /// The original as it was copied.
    state: Stat,
}

/// Several threads' way through all trees.
struct Pass<'a> {
    trees: &'a [Tree],
    marks: Marks,
    /// What the pass before copied, as it was then.
    before: HashSet<Mark>,
    /// Whether there may be something in the copy.
    again: bool,
    /// Set while writers go on: from when on change times vouch for nothing.
    live: Option<Time>,
    seen: Mutex<HashSet<Mark>>,
    links: Mutex<HashMap<(u64, u64), Linked>>,
    /// Of each tree, until its file systems say that they cannot.
    shares: Vec<AtomicBool>,
    made: AtomicU64,
    shared: AtomicU64,
    written: AtomicU64,
    progress: &'a Progress,
}

/// Where something is, for errors and tables.
struct At<'a> {
    tree: usize,
    path: Vec<u8>,
    root: &'a Path,
}

impl At<'_> {
    fn error(&self, doing: &'static str, errno: Errno) -> Error {
        Error::io(doing, self.root.join(std::ffi::OsStr::from_bytes(&self.path)), errno)
    }
}

/// Whether an entry was taken away, or made something else, between two looks.
const fn is_gone(errno: Errno) -> bool {
    matches!(errno, Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::STALE)
}

impl Pass<'_> {
    fn at(&self, tree: usize, dir: &Dir, name: &[u8]) -> At<'_> {
        let mut path = dir.path().to_vec();
        if !path.is_empty() && !name.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        At { tree, path, root: &self.trees[tree].from }
    }

    /// An entry that is not what it was a moment ago: of no concern while writers go on.
    fn changed(&self, at: &At<'_>) -> Result<()> {
        if self.live.is_some() {
            return Ok(());
        }
        let path = at.root.join(std::ffi::OsStr::from_bytes(&at.path));
        Err(Error::NotHeld { problem: format!("{} changed while it was copied", path.display()) })
    }

    fn directory(&self, pool: &Pool, job: Job) -> Result<()> {
        let Job { tree, from, to, fresh } = job;
        let here = self.at(tree, &from, b"");
        let (source, target) = match (from.fd(), to.fd()) {
            (Ok(source), Ok(target)) => (source, target),
            (Err(e), _) if is_gone(e) => return self.changed(&here),
            (Err(e), _) | (_, Err(e)) => return Err(here.error("open", e)),
        };
        let to = Arc::new(to);
        let done = self.entries(pool, &here, (&from, &source), (&to, &target), fresh);
        // Whoever remembers it as the place of a file with several names finds it again by its path.
        to.release();
        done
    }

    fn entries(
        &self,
        pool: &Pool,
        here: &At<'_>,
        (from, source): (&Dir, &OwnedFd),
        (to, target): (&Arc<Dir>, &OwnedFd),
        fresh: bool,
    ) -> Result<()> {
        let tree = here.tree;
        let look = || {
            let (stat, mut names) = (stat_fd(source)?, list_names(source)?);
            // One that is renamed meanwhile may be listed twice.
            names.dedup();
            Ok((stat, names))
        };
        let (stat, names) = look().map_err(|e: Errno| here.error("list", e))?;
        let mut extra: HashSet<Vec<u8>> = if self.again && !fresh {
            list_names(target).map_err(|e| here.error("list the copy of", e))?.into_iter().collect()
        } else {
            HashSet::new()
        };
        for name in names {
            self.progress.check()?;
            let at = self.at(tree, from, &name);
            if self.trees[tree].exclude.iter().any(|path| path.as_os_str().as_bytes() == at.path) {
                continue;
            }
            let there = extra.remove(&name);
            self.entry(pool, &at, (from, source), (to, target), (&name, there))?;
        }
        for name in extra {
            remove_entry(to, target, &name).map_err(|e| here.error("remove from the copy of", e))?;
        }
        let node = self.node(here, source, &stat, NodeKind::Dir)?;
        let now = stat_fd(target).map_err(|e| here.error("look at the copy of", e))?;
        apply(target, &now, &node.0, node.1).map_err(|e| here.error("copy the attributes of", e))?;
        if self.live.is_none() {
            let after = stat_fd(source).map_err(|e| here.error("look at", e))?;
            if !after.same_state(&stat) {
                return self.changed(here);
            }
        }
        Ok(())
    }

    fn entry(
        &self,
        pool: &Pool,
        at: &At<'_>,
        (from, source): (&Dir, &OwnedFd),
        (to, target): (&Arc<Dir>, &OwnedFd),
        (name, there): (&[u8], bool),
    ) -> Result<()> {
        let looked = stat_at(source, name);
        let stat = match looked {
            Ok(stat) => stat,
            Err(e) if is_gone(e) => return self.changed(at),
            Err(e) => return Err(at.error("look at", e)),
        };
        let Some(kind) = stat.kind() else { return Err(at.error("copy", Errno::OPNOTSUPP)) };
        if kind == NodeKind::Dir {
            return self.descend(pool, at, from, (to, target), (name, there));
        }
        let copied = || stat_at(target, name).map_err(|e| at.error("look at the copy of", e));
        if there && is_whiteout(&stat) && is_whiteout(&copied()?) {
            // Its inode is that of others, whose change time says nothing of this one.
            return Ok(());
        }
        let several = stat.nlink > 1;
        let unchanged = there && self.before.contains(&self.marks.of(at.tree, &at.path, &stat));
        if unchanged && (!several || self.is_linked(to, name, &stat, copied()?.ino)) {
            return Ok(());
        }
        if there {
            remove_entry(to, target, name).map_err(|e| at.error("remove the copy of", e))?;
        }
        let inode = match open_path(source, name) {
            Ok(inode) => inode,
            Err(e) if is_gone(e) => return self.changed(at),
            Err(e) => return Err(at.error("open", e)),
        };
        let stat = stat_fd(&inode).map_err(|e| at.error("look at", e))?;
        if stat.kind() != Some(kind) {
            return self.changed(at);
        }
        let several = stat.nlink > 1 && !is_whiteout(&stat);
        let begun = if several { self.link_or_begin(at, (&inode, &stat), kind, (to, target), name)? } else { None };
        let made = match begun {
            Some(Begun::Linked) => return Ok(()),
            Some(Begun::Made(made)) => made,
            None => self.begin(at, (&inode, &stat), kind, target, name)?,
        };
        if kind == NodeKind::File {
            self.content(at, (&inode, &stat), &made)?;
        }
        let node = self.node(at, &inode, &stat, kind)?;
        let now = stat_fd(&made).map_err(|e| at.error("look at the copy of", e))?;
        apply(&made, &now, &node.0, node.1).map_err(|e| at.error("copy the attributes of", e))?;
        self.made.fetch_add(1, Ordering::Relaxed);
        self.progress.add_files(1);
        let after = stat_fd(&inode).map_err(|e| at.error("look at", e))?;
        if !after.same_state(&stat) {
            return self.changed(at);
        }
        self.vouch(at, &stat);
        Ok(())
    }

    /// Remembers an entry whose copy is as it is now, when a later change would be seen.
    fn vouch(&self, at: &At<'_>, stat: &Stat) {
        if self.live.is_some_and(|barrier| stat.ctime < barrier) {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.insert(self.marks.of(at.tree, &at.path, stat));
        }
    }

    /// Whether this name's copy, which is as the original still is, is the one that the original's other names have, too.
    fn is_linked(&self, to: &Arc<Dir>, name: &[u8], stat: &Stat, copy: u64) -> bool {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        let first = || Linked { dir: Arc::clone(to), name: name.to_vec(), copy, state: *stat };
        links.entry((stat.dev, stat.ino)).or_insert_with(first).copy == copy
    }

    fn descend(
        &self,
        pool: &Pool,
        at: &At<'_>,
        from: &Dir,
        (to, target): (&Arc<Dir>, &OwnedFd),
        (name, there): (&[u8], bool),
    ) -> Result<()> {
        let below = match from.open_dir(name) {
            Ok(below) => below,
            Err(e) if is_gone(e) => return self.changed(at),
            Err(e) => return Err(at.error("open", e)),
        };
        let is_dir = there && stat_at(target, name).is_ok_and(|stat| stat.kind() == Some(NodeKind::Dir));
        if there && !is_dir {
            remove_entry(to, target, name).map_err(|e| at.error("remove the copy of", e))?;
        }
        if !is_dir {
            mkdirat(target, name, Mode::RWXU).map_err(|e| at.error("make the copy of", e))?;
            self.made.fetch_add(1, Ordering::Relaxed);
        }
        let copy = to.open_dir(name).map_err(|e| at.error("open the copy of", e))?;
        pool.give(Job { tree: at.tree, from: below, to: copy, fresh: !is_dir });
        Ok(())
    }

    /// Gives the inode's copy one more name, or makes it when this is its first: others ask for it only when it is there.
    fn link_or_begin(
        &self,
        at: &At<'_>,
        inode: (&OwnedFd, &Stat),
        kind: NodeKind,
        (to, target): (&Arc<Dir>, &OwnedFd),
        name: &[u8],
    ) -> Result<Option<Begun>> {
        let key = (inode.1.dev, inode.1.ino);
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(first) = links.get(&key) {
            let dir = first.dir.fd_once().map_err(|e| at.error("open the copy of", e))?;
            linkat(&*dir, first.name.as_slice(), target, name, AtFlags::empty())
                .map_err(|e| at.error("link the copy of", e))?;
            self.made.fetch_add(1, Ordering::Relaxed);
            if first.state.same_state(inode.1) {
                // Should its content be of later, its change time is so, too.
                self.vouch(at, inode.1);
            } else {
                self.changed(at)?;
            }
            return Ok(Some(Begun::Linked));
        }
        let made = self.begin(at, inode, kind, target, name)?;
        let copy = stat_fd(&made).map_err(|e| at.error("look at the copy of", e))?.ino;
        links.insert(key, Linked { dir: Arc::clone(to), name: name.to_vec(), copy, state: *inode.1 });
        Ok(Some(Begun::Made(made)))
    }

    /// Makes the entry, without its content and its attributes.
    fn begin(
        &self,
        at: &At<'_>,
        (inode, stat): (&OwnedFd, &Stat),
        kind: NodeKind,
        target: &OwnedFd,
        name: &[u8],
    ) -> Result<OwnedFd> {
        let failed = |e| at.error("make the copy of", e);
        let special = |kind: FileType, device: u64| mknodat(target, name, kind, Mode::RUSR, device).map_err(failed);
        match kind {
            NodeKind::File => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                return openat(target, name, flags, Mode::RUSR | Mode::WUSR).map_err(failed);
            }
            NodeKind::Symlink => {
                let link = rustix::fs::readlinkat(inode, c"", Vec::new()).map_err(|e| at.error("read the link", e))?;
                symlinkat(link.as_c_str(), target, name).map_err(failed)?;
            }
            NodeKind::CharDevice => special(FileType::CharacterDevice, stat.rdev)?,
            NodeKind::BlockDevice => special(FileType::BlockDevice, stat.rdev)?,
            NodeKind::Fifo => special(FileType::Fifo, 0)?,
            NodeKind::Socket => special(FileType::Socket, 0)?,
            NodeKind::Dir => return Err(failed(Errno::ISDIR)),
        }
        open_path(target, name).map_err(failed)
    }

    /// The entry's attributes, and what of them belongs to the overlay.
    fn node(&self, at: &At<'_>, inode: &OwnedFd, stat: &Stat, kind: NodeKind) -> Result<(Node, Overlay)> {
        let mut node = stat.to_node(b"", kind);
        let (mut xattrs, mut opaque) = (Vec::new(), false);
        let present = match read_xattrs(inode) {
            Ok(present) => present,
            Err(XattrError::Errno(e)) => return Err(at.error("read the attributes of", e)),
            Err(XattrError::Name) => return Err(at.error("read the attributes of", Errno::ILSEQ)),
        };
        for xattr in present {
            match classify(&xattr.name, &xattr.value) {
                OverlayMark::Ordinary => xattrs.push(xattr),
                OverlayMark::Opaque => opaque = true,
                OverlayMark::Bookkeeping => {}
                OverlayMark::Unknown => {
                    let path = at.root.join(std::ffi::OsStr::from_bytes(&at.path));
                    return Err(Error::UnknownOverlayAttribute { path, attribute: xattr.name });
                }
            }
        }
        node.xattrs = xattrs;
        Ok((node, Overlay::Upper { opaque }))
    }
}

/// What became of an inode that has several names.
enum Begun {
    /// Its copy has one more.
    Linked,
    /// This is the first name of its copy.
    Made(OwnedFd),
}

/// Overlayfs gives one inode the names of all its whiteouts, which says nothing.
fn is_whiteout(stat: &Stat) -> bool {
    stat.kind() == Some(NodeKind::CharDevice) && stat.rdev == 0
}

impl Pass<'_> {
    fn content(&self, at: &At<'_>, (inode, stat): (&OwnedFd, &Stat), to: &OwnedFd) -> Result<()> {
        if stat.size == 0 {
            return Ok(());
        }
        let from = fsdir::open_readable(inode).map_err(|e| at.error("open", e))?;
        let shares = &self.shares[at.tree];
        if shares.load(Ordering::Relaxed) {
            match content::share(&from, to) {
                content::Shared::Yes => {
                    self.shared.fetch_add(stat.size, Ordering::Relaxed);
                    self.progress.add_bytes(stat.size);
                    return Ok(());
                }
                content::Shared::NotThis => {}
                content::Shared::Never => shares.store(false, Ordering::Relaxed),
                content::Shared::Failed(e) => return Err(at.error("copy", e)),
            }
        }
        let written = content::copy(&from, to, stat, self.progress).map_err(|e| match e {
            content::Failed::Errno(e) => at.error("copy", e),
            content::Failed::Cancelled => Error::Cancelled,
        })?;
        self.written.fetch_add(written, Ordering::Relaxed);
        Ok(())
    }
}
