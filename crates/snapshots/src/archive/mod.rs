//! Archiving: from directories to a snapshot, in one or several passes.
//!
//! Scanners walk and decide what must be read ([`scan`]); a few workers read, hash, compress, encrypt and fill packs
//! ([`read`]). A directory's tree is written as soon as its last entry is known, by whoever finished that entry
//! ([`build`]), so memory holds the directories under way and not the whole tree. The order that makes a crash
//! harmless: packs, then index files, then the snapshot file, which is what makes a snapshot exist.
//!
//! Where writers can be held still ([`Held`]), they are for nothing but the scan and the reading of what changed. Lock,
//! index, sync and all trees to compare with come before; trees of changed directories, packs, index and snapshot file
//! after. Meanwhile the store is not asked for anything, so that one that hangs holds nobody. Directories that were copied in that
//! time ([`Copies`]) are scanned and read after it.

mod ahead;
mod build;
mod compose;
mod held;
mod known;
mod layers;
mod place;
mod read;
mod scan;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use perennial_core::progress::Progress;

use crate::effort::Effort;
use crate::error::{Error, Result};
use crate::id::{Id, SnapshotFileId, TreeId};
use crate::lock::{LockGuard, LockMode};
use crate::memory::Work;
use crate::node::{Node, NodeKind, Time, encode_tree};
use crate::pack::Sealer;
use crate::removed;
use crate::repository::{Inner, Repository};
use crate::request::{
    ArchiveRequest, Archived, Counts, Layout, Loss, LossReason, Parent, Pass, Root, RootSummary, Source,
};
use crate::spool::Spool;
use crate::uploader::Uploader;
use crate::verify::{check_file, walk_tree};
use crate::wire::{BlobKind, SnapshotFile, Summary};

use ahead::Ahead;
use build::{Links, Pending};
pub(crate) use held::Release;
pub use held::{Copies, Held, Writers};
pub(crate) use known::Kept;
use known::{Loaded, Trees};
use place::{Virtual, made_up};
use read::Job;
pub(crate) use read::ZEROS;

/// Batches of jobs waiting for workers; each holds a directory's descriptor, so this bounds descriptors, too.
const QUEUE: usize = 64;
const MAX_WORKERS: usize = 16;
const MAX_SCANNERS: usize = 8;
/// So many more workers than processors, because those that write a pack wait for the disk.
const WAITING_WORKERS: usize = 2;

/// What scanner and workers share.
pub(crate) struct Shared<'a> {
    pub(crate) inner: &'a Inner,
    pub(crate) uploader: &'a Uploader<'a>,
    pub(crate) progress: &'a Progress,
    pub(crate) pass: Pass,
    pub(crate) links: Mutex<Links>,
    losses: Mutex<Vec<Loss>>,
    failure: Mutex<Option<Error>>,
    failed: AtomicBool,
    pub(crate) read_bytes: AtomicU64,
    /// What progress had done before, and the sizes of all files met since: the total is no less.
    met: (u64, AtomicU64),
    /// Whether writers are held still: what can be done later is.
    pub(crate) held: AtomicBool,
    /// Directories whose trees are to be written once they are not.
    pub(crate) later: Mutex<Vec<Arc<Pending>>>,
    /// What the proof of the snapshot will look at.
    pub(crate) kept: Mutex<Kept>,
}

impl Shared<'_> {
    pub(crate) fn lose(&self, loss: Loss) {
        // Between two looks of a live pass entries come and go; only the final pass has to see everything.
        if self.pass == Pass::Live && loss.reason == LossReason::Vanished {
            return;
        }
        lock(&self.losses).push(loss);
    }

    /// Counts a file that was found: what its owner expected may be too little.
    pub(crate) fn meet(&self, size: u64) {
        let (before, met) = &self.met;
        self.progress.at_least(before + met.fetch_add(size, Ordering::Relaxed) + size);
    }

    /// Counts a file that need not be read, or another name of one that was.
    pub(crate) fn count_whole(&self, size: u64) {
        self.progress.add_bytes(size);
        self.progress.add_files(1);
    }

    /// Records the first failure and makes everybody stop.
    fn fail(&self, error: Error) {
        lock(&self.failure).get_or_insert(error);
        self.failed.store(true, Ordering::Release);
    }

    /// To be called between pieces: stops for a cancellation or somebody else's failure.
    pub(crate) fn check(&self) -> Result<()> {
        self.progress.check()?;
        if self.failed.load(Ordering::Acquire) { Err(Error::Cancelled) } else { Ok(()) }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Scoped threads pass a panic on, so what is left behind is never used.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Repository {
    /// Captures directories: stores what the repository lacks and, in a commit pass, writes a snapshot.
    ///
    /// Progress counts the bytes of all files, whether they have to be read or not. How many there are nobody knows
    /// beforehand: what the caller expected ([`Progress::estimate`]) is corrected when more are found.
    ///
    /// # Errors
    /// [`Error::Incomplete`] when a commit pass lost something that was not accepted beforehand (everything else is
    /// stored then, so that a second try is quick); [`Error::Locked`]; [`Error::Cancelled`];
    /// [`Error::UnknownOverlayAttribute`]; store errors. No snapshot file is written in any of these cases, except
    /// that a store may report a failure after the effect.
    pub fn archive(&self, request: &ArchiveRequest, progress: &Progress) -> Result<Archived> {
        self.archive_either(request, None, progress)
    }

    /// Captures directories as [`archive`](Self::archive) does, at one instant for all of them: meanwhile, and for no
    /// longer than it takes to look at every file and to read what changed, their writers are held still. What they copy in that
    /// time ([`Writers::copies`]) is looked at after it.
    ///
    /// # Errors
    /// As there, and those of [`Writers`].
    pub fn archive_held(&self, request: &ArchiveRequest, held: &Held<'_>, progress: &Progress) -> Result<Archived> {
        self.archive_either(request, Some(held), progress)
    }

    fn archive_either(
        &self,
        request: &ArchiveRequest,
        held: Option<&Held<'_>>,
        progress: &Progress,
    ) -> Result<Archived> {
        check_request(request)?;
        progress.check()?;
        let guard = LockGuard::acquire(&self.inner, LockMode::Shared)?;
        // Only what the repository holds now, with the lock in place, may be counted on: before, somebody could prune.
        self.inner.refresh_index()?;
        let uploader =
            Uploader::new(&self.inner).with_spool(held.map(|held| Spool::new(&held.spool, &self.inner.shares())));
        let result = self.archive_locked(request, held, progress, (&guard, &uploader));
        if result.is_err() {
            uploader.salvage();
        }
        result
    }

    fn archive_locked(
        &self,
        request: &ArchiveRequest,
        held: Option<&Held<'_>>,
        progress: &Progress,
        (guard, uploader): (&LockGuard, &Uploader<'_>),
    ) -> Result<Archived> {
        let parents = self.usable_parents(&request.parents)?;
        let shared = Shared {
            inner: &self.inner,
            uploader,
            progress,
            pass: request.pass,
            links: Mutex::default(),
            losses: Mutex::default(),
            failure: Mutex::default(),
            failed: AtomicBool::new(false),
            read_bytes: AtomicU64::new(0),
            met: (progress.read().bytes_done, AtomicU64::new(0)),
            held: AtomicBool::new(false),
            later: Mutex::default(),
            kept: Mutex::new(Kept::new(&self.inner)),
        };
        let mut layout = Virtual::default();
        let mut sealer = Sealer::new()?;
        let outcomes = capture_directories(&shared, request, held, &parents)?;
        let mut outcomes = outcomes.into_iter();
        let mut per_root = Vec::new();
        for root in &request.roots {
            let counts = capture_root(&shared, request, root, &mut outcomes, &mut layout, &mut sealer)?;
            per_root.push(RootSummary { at: root.at.clone(), counts });
        }
        let (tree, counts) = layout.save(uploader, &mut sealer, request.time.into())?;
        uploader.flush()?;
        let mut losses = std::mem::take(&mut *lock(&shared.losses));
        losses.sort_by(|a, b| a.path.cmp(&b.path));
        let mut archived = Archived {
            snapshot: None,
            tree: TreeId(tree),
            counts,
            new_bytes: uploader.new_bytes(),
            read_bytes: shared.read_bytes.load(Ordering::Relaxed),
            losses,
            per_root,
            written_packs: uploader.written_packs(),
        };
        if request.pass == Pass::Live {
            return Ok(archived);
        }
        if archived.losses.iter().any(|loss| !request.accept_losses.contains(loss)) {
            return Err(Error::Incomplete { losses: archived.losses });
        }
        progress.check()?;
        // Without a lock, somebody may have pruned what the snapshot relies on.
        guard.ensure()?;
        if request.pass == Pass::Detached {
            return Ok(archived);
        }
        let file = snapshot_file(request, &archived);
        let id = self.inner.save_snapshot(&file)?;
        archived.snapshot = Some(SnapshotFileId(id));
        *lock(&self.inner.kept) = Some((id, std::mem::take(&mut *lock(&shared.kept))));
        Ok(archived)
    }

    /// Resolves the trees to compare with; one that is gone only costs time.
    fn usable_parents(&self, parents: &[Parent]) -> Result<Vec<Id>> {
        let mut trees = Vec::new();
        for parent in parents {
            let tree = match parent {
                Parent::Tree(tree) => tree.0,
                Parent::Snapshot(id) => match self.inner.load_snapshot(*id) {
                    Ok(file) => file.tree,
                    Err(Error::NotFound { .. } | Error::Damaged { .. }) => continue,
                    Err(e) => return Err(e),
                },
            };
            if !trees.contains(&tree) {
                trees.push(tree);
            }
        }
        Ok(trees)
    }
}

fn snapshot_file(request: &ArchiveRequest, archived: &Archived) -> SnapshotFile {
    SnapshotFile {
        time: request.time,
        parent: request.parents.iter().find_map(|p| match p {
            Parent::Snapshot(id) => Some(id.0),
            Parent::Tree(_) => None,
        }),
        original: None,
        tree: archived.tree.0,
        paths: request.roots.iter().map(|root| root.at.clone()).collect(),
        hostname: request.hostname.clone(),
        username: "perennial".into(),
        tags: request.tags.clone(),
        program_version: concat!("perennial ", env!("CARGO_PKG_VERSION")).into(),
        summary: Some(Summary {
            data_added_packed: archived.new_bytes,
            total_files_processed: archived.counts.files,
            total_bytes_processed: archived.counts.bytes,
            perennial_dirs: Some(archived.counts.dirs),
        }),
    }
}

/// Captures the directories among the roots, in their order; while writers are held still, if they can be.
fn capture_directories(
    shared: &Shared<'_>,
    request: &ArchiveRequest,
    held: Option<&Held<'_>>,
    parents: &[Id],
) -> Result<Vec<scan::Outcome>> {
    let directories: Vec<_> = request.roots.iter().filter_map(|root| directory(root).map(|d| (root, d))).collect();
    let mut known = Vec::new();
    for (root, _) in &directories {
        let found = parents.iter().map(|parent| scan::known_root(shared.inner, *parent, &root.at));
        let mut found: Vec<Id> = found.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
        found.dedup();
        known.push(found);
    }
    let roots = || directories.iter().zip(&known);
    let Some(held) = held else {
        let mut outcomes = Vec::new();
        for ((root, (path, layout, exclude)), known) in roots() {
            let racy_from = scan::settled(path)?;
            let ahead = Ahead::new(shared.inner);
            let (asker, asked) = ahead.ends();
            let place = (*path, root.at.as_str());
            let trees = (known.as_slice(), Trees::Ahead(asker));
            let scan = scan::Scan::prepare(shared, place, (*layout, exclude), trees, racy_from)?;
            // The order in which new files are met is that in which they are stored: one scanner keeps it.
            let scanners = if known.is_empty() { 1 } else { scanners(shared.inner.effort()) };
            outcomes.push(run(shared, scan, scanners, || ahead.load(asked))?.finish()?);
        }
        return Ok(outcomes);
    };
    let mut loaded = Loaded::default();
    for tree in known.iter().flatten() {
        loaded.add(shared.inner, *tree, shared.progress)?;
    }
    let mut scans = Vec::new();
    for ((root, (path, layout, exclude)), known) in roots() {
        let racy_from = scan::settled(path)?;
        let place = (*path, root.at.as_str());
        let trees = (known.as_slice(), Trees::Loaded(&loaded));
        scans.push(scan::Scan::prepare(shared, place, (*layout, exclude), trees, racy_from)?);
    }
    shared.progress.check()?;
    let scanners = scanners(shared.inner.effort().urgent());
    shared.uploader.hold();
    shared.held.store(true, Ordering::Release);
    let release = Release::after_hold(held.writers)?;
    let copies = held.writers.copies();
    let scanned: Result<Vec<_>> = scans
        .into_iter()
        .map(|scan| match copies.as_ref().and_then(|copies| copies.of(scan.path())) {
            Some(copy) => scan.of_copy(copy).map(Stage::Later),
            None => run(shared, scan, scanners, || ()).map(Stage::Scanned),
        })
        .collect();
    let released = release.now();
    shared.held.store(false, Ordering::Release);
    shared.uploader.release();
    let scanned = scanned?;
    released?;
    write_what_waited(shared)?;
    let mut outcomes = Vec::new();
    for stage in scanned {
        let scanned = match stage {
            Stage::Scanned(scanned) => scanned,
            Stage::Later(scan) => {
                // Nobody waits for it, so it is made as any other pass is.
                let scanners = if scan.is_new() { 1 } else { self::scanners(shared.inner.effort()) };
                run(shared, scan, scanners, || ())?
            }
        };
        outcomes.push(scanned.finish()?);
    }
    drop(copies);
    Ok(outcomes)
}

/// How far a root has come when its writers go on.
enum Stage<'a> {
    /// Its files are read.
    Scanned(scan::Scanned),
    /// It was copied.
    Later(scan::Scan<'a>),
}

fn directory(root: &Root) -> Option<(&Path, Layout, &[PathBuf])> {
    match &root.source {
        Source::Directory { path, layout, exclude } => Some((path, *layout, exclude)),
        _ => None,
    }
}

/// Does what waited until the writers went on: trees, and packs.
fn write_what_waited(shared: &Shared<'_>) -> Result<()> {
    let effort = shared.inner.effort();
    let workers = effort.workers(Work::Archive, 0, MAX_WORKERS);
    let trees = || {
        effort.begin();
        build::write_later(shared, &mut Sealer::new()?)
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(trees)).collect();
        let drained = shared.uploader.drain(shared.progress);
        let ended = |thread: std::thread::ScopedJoinHandle<'_, Result<()>>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        workers.into_iter().map(ended).chain([drained]).collect()
    })
}

fn capture_root(
    shared: &Shared<'_>,
    request: &ArchiveRequest,
    root: &Root,
    outcomes: &mut impl Iterator<Item = scan::Outcome>,
    layout: &mut Virtual,
    sealer: &mut Sealer,
) -> Result<Counts> {
    match &root.source {
        Source::Bytes { data, mode } => place_bytes(shared, request, &root.at, (data, *mode), (layout, sealer)),
        Source::Late { data, mode } => place_bytes(shared, request, &root.at, (&data.now(), *mode), (layout, sealer)),
        Source::Stored { snapshot, path } => {
            let tree = shared.inner.load_snapshot(*snapshot)?.tree;
            take_in(shared, &root.at, (tree, path), layout)
        }
        Source::Passed { tree, path } => take_in(shared, &root.at, (tree.0, path), layout),
        Source::Rearranged { snapshot, directory, omit, add } => {
            let tree = shared.inner.load_snapshot(*snapshot)?.tree;
            let (node, counts) = rearrange(shared, &root.at, (tree, directory), (omit, add), sealer)?;
            layout.place(&root.at, node, Some(counts))
        }
        Source::Composed(of) => {
            let composed = compose::compose(shared, of, request.time.into(), sealer)?;
            // What was just written is looked up like everything else.
            shared.uploader.flush()?;
            if of.layout == Layout::OverlayUpper {
                place_list(shared, request, &root.at, composed.removed, (&mut *layout, &mut *sealer))?;
            }
            let counts = count(shared, &composed.node, &root.at)?;
            layout.place(&root.at, composed.node, Some(counts))
        }
        Source::Directory { layout: kind, .. } => {
            // There is one for each such root, in their order.
            let outcome = outcomes.next().ok_or(Error::Cancelled)?;
            if *kind == Layout::OverlayUpper {
                place_list(shared, request, &root.at, outcome.removed, (&mut *layout, &mut *sealer))?;
            }
            layout.place(&root.at, outcome.node, Some(outcome.counts))
        }
    }
}

/// Places the removed list of a root.
fn place_list(
    shared: &Shared<'_>,
    request: &ArchiveRequest,
    at: &str,
    list: Vec<removed::Removed>,
    (layout, sealer): (&mut Virtual, &mut Sealer),
) -> Result<()> {
    let list = removed::encode(list);
    place_bytes(shared, request, &removed::list_path(at), (&list, 0o600), (layout, sealer)).map(drop)
}

/// Places a small file that exists only in the snapshot.
fn place_bytes(
    shared: &Shared<'_>,
    request: &ArchiveRequest,
    at: &str,
    (data, mode): (&[u8], u32),
    (layout, sealer): (&mut Virtual, &mut Sealer),
) -> Result<Counts> {
    let mut node = Node::new(Vec::new(), NodeKind::File);
    node.content = read::save_bytes(shared, sealer, data)?;
    node.size = data.len() as u64;
    node.mode = mode & 0o7777;
    layout.place(at, made_up(node, request.time.into()), None)
}

/// Places what the repository holds already.
fn take_in(shared: &Shared<'_>, at: &str, (tree, path): (Id, &str), layout: &mut Virtual) -> Result<Counts> {
    let node = shared.inner.resolve(tree, path.as_bytes())?;
    let counts = count(shared, &node, at)?;
    layout.place(at, node, Some(counts))
}

/// Counts what the repository holds of an entry. Every blob is looked up: what is missing must not become part of
/// another snapshot.
fn count(shared: &Shared<'_>, node: &Node, at: &str) -> Result<Counts> {
    let Some(tree) = node.subtree else {
        check_file(shared.inner, node, || at.to_owned(), &mut |_| {})?;
        let mut counts = Counts::default();
        counts.add(node.kind, node.size);
        return Ok(counts);
    };
    let load = |tree, path: &str| shared.inner.load_tree(tree, path).map(Arc::new);
    walk_tree((shared.inner, &load), tree, at, shared.progress).map(|walked| walked.counts)
}

/// Makes a directory out of another one's entries and of some from elsewhere in the same snapshot.
fn rearrange(
    shared: &Shared<'_>,
    at: &str,
    (tree, directory): (Id, &str),
    (omit, add): (&[String], &[(String, String)]),
    sealer: &mut Sealer,
) -> Result<(Node, Counts)> {
    let mut entries = BTreeMap::new();
    let mut node = match shared.inner.resolve(tree, directory.as_bytes()) {
        Ok(node) => {
            let subtree = node.subtree.ok_or_else(|| Error::invalid(directory, "not a directory"))?;
            for entry in shared.inner.load_tree(subtree, directory)? {
                entries.insert(entry.name.clone(), entry);
            }
            node
        }
        Err(Error::NotFound { .. }) => {
            let mut node = made_up(Node::new(Vec::new(), NodeKind::Dir), Time::default());
            node.mode = 0o755;
            node
        }
        Err(error) => return Err(error),
    };
    for name in omit {
        entries.remove(name.as_bytes());
    }
    for (name, path) in add {
        crate::node::check_name(name.as_bytes()).map_err(|reason| Error::invalid(name, reason))?;
        let mut entry = shared.inner.resolve(tree, path.as_bytes())?;
        entry.name = name.as_bytes().to_vec();
        entries.insert(entry.name.clone(), entry);
    }
    let mut counts = Counts { dirs: 1, ..Counts::default() };
    for entry in entries.values() {
        counts.merge(count(shared, entry, at)?);
    }
    let entries: Vec<Node> = entries.into_values().collect();
    node.subtree = Some(shared.uploader.save(sealer, BlobKind::Tree, &encode_tree(&entries)?)?);
    Ok((node, counts))
}

/// As many as there are processors, because nobody scans and waits.
fn scanners(effort: Effort) -> usize {
    effort.threads(0, MAX_SCANNERS)
}

/// Scans one root with workers beside; its files are read when this returns.
fn run(
    shared: &Shared<'_>,
    scan: scan::Scan<'_>,
    scanners: usize,
    load_ahead: impl FnOnce() + Send,
) -> Result<scan::Scanned> {
    // Somebody stands still until this is done.
    let held = shared.held.load(Ordering::Acquire);
    let effort = if held { shared.inner.effort().urgent() } else { shared.inner.effort() };
    let workers = effort.workers(Work::Archive, WAITING_WORKERS, MAX_WORKERS);
    let (sender, receiver) = sync_channel::<Vec<Job>>(QUEUE);
    let receiver = Mutex::new(receiver);
    let outcome = std::thread::scope(|scope| {
        scope.spawn(load_ahead);
        for _ in 0..workers {
            scope.spawn(|| {
                effort.begin();
                let mut worker = read::Worker::new(shared).map_err(|error| shared.fail(error)).ok();
                loop {
                    let jobs = lock(&receiver).recv();
                    let Ok(jobs) = jobs else { return };
                    for job in jobs {
                        // After a failure the queue is only emptied, so that the scanner never waits for it.
                        if let Some(worker) = worker.as_mut().filter(|_| !shared.failed.load(Ordering::Acquire))
                            && let Err(error) = worker.run(job)
                        {
                            shared.fail(error);
                        }
                    }
                }
            });
        }
        let outcome = scan.run((scanners, effort), &sender);
        if let Err(error) = outcome {
            shared.fail(error);
            drop(sender);
            return None;
        }
        drop(sender);
        outcome.ok()
    });
    if let Some(error) = lock(&shared.failure).take() {
        return Err(error);
    }
    outcome.ok_or(Error::Cancelled)
}

fn check_request(request: &ArchiveRequest) -> Result<()> {
    let invalid = |text: String| Err(Error::InvalidRequest(text));
    if request.roots.is_empty() {
        return invalid("nothing to archive".into());
    }
    if let Some(tag) = request.tags.iter().find(|t| t.is_empty() || t.contains(',')) {
        return invalid(format!("the tag {tag:?} is empty or contains a comma"));
    }
    for root in &request.roots {
        let parts: Vec<&str> = root.at.split('/').collect();
        let good = parts.len() > 1 && parts[0].is_empty();
        if !good || parts[1..].iter().any(|p| crate::node::check_name(p.as_bytes()).is_err()) {
            return invalid(format!("{:?} is not an absolute path within a snapshot", root.at));
        }
    }
    Ok(())
}
