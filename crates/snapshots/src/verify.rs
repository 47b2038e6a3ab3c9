//! Verification: a snapshot counts once what it needs was read back, and not before.
//!
//! Three things are proven. What was written arrived: packs, index files and the snapshot file are read again past
//! the page cache, decrypted and hashed. What is needed is there: every blob of every tree is in the index, in a pack
//! that exists with the right size. What was counted is there: files, directories and bytes equal the archive's.
//!
//! A tree that was in the repository before, and is in the snapshot as it is, was read and hashed by the archive a moment ago
//! ([`Kept`]). It is not read a second time; its pack and every blob in it are looked up like those of all others.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use perennial_core::progress::Progress;

use crate::archive::Kept;
use crate::backend::FileKind;
use crate::error::{Error, Result};
use crate::id::{Id, SnapshotFileId};
use crate::index::{Found, IdSet, Origin};
use crate::lock::{LockGuard, LockMode};
use crate::memory::Work;
use crate::node::{Node, NodeKind};
use crate::pack::{expected_size, parse_header, prove_blobs};
use crate::pool::Pool;
use crate::repository::{Inner, Repository};
use crate::request::Counts;
use crate::wire::{BlobKind, IndexBlob, IndexFile, SnapshotFile};

const MAX_WALKERS: usize = 8;

/// How much to read back.
#[derive(Debug, Clone)]
pub enum Verify {
    /// Every pack that the snapshot needs: the answer of a drill.
    Everything,
    /// The packs that this snapshot's passes wrote, and those it needs that earlier passes of this handle wrote and
    /// nobody read back; of all others, that they exist with the right size.
    Written {
        /// [`Archived::written_packs`](crate::Archived::written_packs) of all passes.
        packs: Vec<Id>,
    },
}

/// What was proven.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// What the snapshot's tree holds.
    pub counts: Counts,
    /// Packs the snapshot needs.
    pub packs_needed: u64,
    /// Packs that were read back.
    pub packs_read: u64,
    /// Bytes that were read back.
    pub bytes_read: u64,
    /// Blobs that were decrypted and hashed.
    pub blobs_read: u64,
}

impl Repository {
    /// Proves that a snapshot is complete and can be read.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::MissingBlob`] or [`Error::Mismatch`] name what is wrong; store errors mean that
    /// nothing is known.
    pub fn verify(&self, snapshot: SnapshotFileId, verify: &Verify, progress: &Progress) -> Result<Verified> {
        let inner = &*self.inner;
        progress.check()?;
        let guard = LockGuard::acquire(&self.inner, LockMode::Shared)?;
        let snapshot = inner.name_here(snapshot)?;
        match inner.backend.drop_caches(FileKind::Snapshot, snapshot.0) {
            Err(e) if e.is_not_found() => return Err(Error::NotFound { what: format!("snapshot {snapshot}") }),
            other => other?,
        }
        let file = inner.load_snapshot(snapshot)?;
        let kept = match verify {
            Verify::Everything => None,
            Verify::Written { .. } => {
                let mut kept = inner.kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.take_if(|(of, _)| *of == snapshot.0)
            }
        };
        let kept = kept.map(|(_, kept)| kept).unwrap_or_default();
        let (verified, packs) = prove(inner, &file, (verify, &kept), progress).map_err(|error| match verify {
            Verify::Everything => inner.judged(error),
            Verify::Written { .. } => error,
        })?;
        // Without the lock, what was there at the start may have been pruned since.
        guard.ensure()?;
        inner.read_back(&packs);
        Ok(verified)
    }
}

/// Proves that everything a snapshot needs is there, under a lock that the caller holds; returns the packs that were
/// read back, sorted.
pub(crate) fn prove(
    inner: &Inner,
    file: &SnapshotFile,
    (verify, kept): (&Verify, &Kept),
    progress: &Progress,
) -> Result<(Verified, Vec<Id>)> {
    inner.reread_written_indexes()?;
    inner.refresh_index()?;
    let load = |tree, path: &str| match kept.get(tree) {
        // Its pack is there still; what is in it is looked up as everywhere.
        Some(nodes) if inner.find_blob(BlobKind::Tree, tree).is_some() => Ok(nodes),
        _ => inner.load_tree(tree, path).map(Arc::new),
    };
    let Walked { counts, packs: needed } = walk_tree((inner, &load), file.tree, "", progress)?;
    if let Some(summary) = &file.summary
        && let Some(dirs) = summary.perennial_dirs
    {
        same("files of the snapshot", summary.total_files_processed, counts.files)?;
        same("bytes of the snapshot", summary.total_bytes_processed, counts.bytes)?;
        same("directories of the snapshot", dirs, counts.dirs)?;
    }
    // `walk_tree` found each pack in an index that holds only packs that were there with the right size when it was
    // refreshed, a moment ago and under the lock.
    let mut packs: Vec<Id> = match verify {
        Verify::Everything => needed.iter().copied().collect(),
        Verify::Written { packs } => {
            let unread = inner.unread.lock().unwrap_or_else(PoisonError::into_inner);
            packs.iter().chain(needed.intersection(&unread)).copied().collect()
        }
    };
    packs.sort_unstable();
    packs.dedup();
    let read = read_packs(inner, &packs, progress)?;
    let verified = Verified {
        counts,
        packs_needed: needed.len() as u64,
        packs_read: packs.len() as u64,
        bytes_read: read.bytes,
        blobs_read: read.blobs,
    };
    Ok((verified, packs))
}

fn same(what: &str, expected: u64, found: u64) -> Result<()> {
    if expected == found { Ok(()) } else { Err(Error::Mismatch { what: what.to_owned(), expected, found }) }
}

impl Inner {
    /// Notes that packs, sorted, were read back and are as they were sent.
    pub(crate) fn read_back(&self, packs: &[Id]) {
        self.unread.lock().unwrap_or_else(PoisonError::into_inner).retain(|id| packs.binary_search(id).is_err());
    }

    /// Reads index files that we wrote back from the store, once: memory knows what was meant to be written.
    fn reread_written_indexes(&self) -> Result<()> {
        let written: Vec<Id> = {
            let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
            index.files.iter().filter(|(_, origin)| **origin == Origin::Written).map(|(id, _)| *id).collect()
        };
        for id in written {
            match self.backend.drop_caches(FileKind::Index, id) {
                // Somebody pruned, and the refresh that follows loads what replaced it; or it was never written, and
                // then its blobs will be found missing.
                Err(e) if e.is_not_found() => continue,
                other => other?,
            }
            // The name is the hash of the content, so what can be read is what was written.
            self.load_json::<IndexFile>(FileKind::Index, id)?;
            self.index.write().unwrap_or_else(PoisonError::into_inner).files.insert(id, Origin::Store);
        }
        Ok(())
    }
}

/// A repository, and how its trees are read.
pub(crate) type Trees<'a> = (&'a Inner, &'a (dyn Fn(Id, &str) -> Result<Arc<Vec<Node>>> + Sync));

/// What a walk through a tree found.
#[derive(Default)]
pub(crate) struct Walked {
    pub(crate) counts: Counts,
    /// The packs that hold what is needed.
    pub(crate) packs: IdSet,
}

/// A tree to visit, and its path.
type Step = (Id, String);

/// Walks a tree, proves that every blob is known and that file sizes add up, and counts. Several threads do it together.
pub(crate) fn walk_tree(trees: Trees<'_>, tree: Id, path: &str, progress: &Progress) -> Result<Walked> {
    let (mut walked, mut steps) = (Walked::default(), VecDeque::new());
    progress.check()?;
    visit(trees, (tree, path.to_owned()), &mut walked, &mut steps)?;
    if steps.is_empty() {
        return Ok(walked);
    }
    let effort = trees.0.effort();
    let walkers = effort.threads(0, MAX_WALKERS);
    let pool = Pool::new(walkers);
    let failed = AtomicBool::new(false);
    let walk = |mut steps: VecDeque<Step>| -> Result<Walked> {
        let _end = End(&pool);
        let mut walked = Walked::default();
        while let Some(step) = steps.pop_back().or_else(|| pool.take()) {
            progress.check()?;
            if failed.load(Ordering::Relaxed) {
                return Err(Error::Cancelled);
            }
            visit(trees, step, &mut walked, &mut steps).inspect_err(|_| failed.store(true, Ordering::Relaxed))?;
            // The one it would come to last, because there is most below it.
            while pool.is_hungry()
                && steps.len() > 1
                && let Some(far) = steps.pop_front()
            {
                pool.give(far);
            }
        }
        Ok(walked)
    };
    let all: Vec<Result<Walked>> = std::thread::scope(|scope| {
        // A thread that cannot be started must not be waited for.
        let _end = End(&pool);
        let help = || {
            effort.begin();
            walk(VecDeque::new())
        };
        let others: Vec<_> = (1..walkers).map(|_| scope.spawn(help)).collect();
        let ours = walk(steps);
        let ended = |thread: std::thread::ScopedJoinHandle<'_, Result<Walked>>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        [ours].into_iter().chain(others.into_iter().map(ended)).collect()
    });
    let mut failure = None;
    for part in all {
        match part {
            Ok(part) => {
                walked.counts.merge(part.counts);
                walked.packs.extend(part.packs);
            }
            // The others end because one failed, and that one says why.
            Err(error) if matches!(failure, None | Some(Error::Cancelled)) => failure = Some(error),
            Err(_) => {}
        }
    }
    failure.map_or(Ok(walked), Err)
}

/// Nobody is waited for once one has ended: all are at their end, or it failed, or panicked.
struct End<'p>(&'p Pool<Step>);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.give_up();
    }
}

fn visit((inner, load): Trees<'_>, (tree, path): Step, walked: &mut Walked, steps: &mut VecDeque<Step>) -> Result<()> {
    walked.counts.add(NodeKind::Dir, 0);
    let nodes = load(tree, &format!("directory {path}/"))?;
    if let Some(place) = inner.find_blob(BlobKind::Tree, tree) {
        walked.packs.insert(place.pack);
    }
    for node in nodes.iter() {
        let at = || format!("{path}/{}", String::from_utf8_lossy(&node.name));
        if let Some(subtree) = node.subtree {
            steps.push_back((subtree, at()));
            continue;
        }
        walked.counts.add(node.kind, node.size);
        check_file(inner, node, at, &mut |found| {
            walked.packs.insert(found.pack);
        })?;
    }
    Ok(())
}

/// Proves that every blob of a file is known and that their sizes add up.
pub(crate) fn check_file(
    inner: &Inner,
    node: &Node,
    at: impl Fn() -> String,
    found: &mut dyn FnMut(Found),
) -> Result<()> {
    let mut size = 0;
    for blob in &node.content {
        let Some(place) = inner.find_blob(BlobKind::Data, *blob) else {
            return Err(Error::MissingBlob { blob: *blob, needed_by: at() });
        };
        size += plain_length(&place.blob);
        found(place);
    }
    if node.kind == NodeKind::File && node.size != size {
        return Err(Error::Mismatch { what: format!("bytes of {}", at()), expected: node.size, found: size });
    }
    Ok(())
}

/// The length of a blob's content, as the index states it.
pub(crate) fn plain_length(blob: &IndexBlob) -> u64 {
    match blob.uncompressed_length {
        0 => u64::from(blob.length).saturating_sub(crate::crypto::OVERHEAD as u64),
        length => u64::from(length),
    }
}

/// What reading packs covered.
#[derive(Default)]
pub(crate) struct PacksRead {
    pub(crate) bytes: u64,
    pub(crate) blobs: u64,
}

/// Reads packs back in parallel; stops at the first that is wrong.
fn read_packs(inner: &Inner, packs: &[Id], progress: &Progress) -> Result<PacksRead> {
    {
        let index = inner.index.read().unwrap_or_else(PoisonError::into_inner);
        progress.expect_more(packs.iter().filter_map(|pack| index.pack_size(*pack)).sum());
    }
    let next = AtomicUsize::new(0);
    let total = Mutex::new(PacksRead::default());
    let failure = Mutex::new(None);
    let work = || -> Result<()> {
        let mut plain = Vec::new();
        while let Some(pack) = packs.get(next.fetch_add(1, Ordering::Relaxed)) {
            progress.check()?;
            let read = read_pack(inner, *pack, &mut plain)?;
            progress.add_bytes(read.bytes);
            let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
            total.bytes += read.bytes;
            total.blobs += read.blobs;
        }
        Ok(())
    };
    // More than processors, because some wait for the disk.
    let effort = inner.effort();
    let workers = effort.workers(Work::Verify, 2, packs.len().min(16));
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                effort.begin();
                if let Err(error) = work() {
                    next.store(packs.len(), Ordering::Relaxed);
                    failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                }
            });
        }
    });
    match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(total.into_inner().unwrap_or_else(PoisonError::into_inner)),
    }
}

/// Reads one pack past the caches and proves its hash, its header, each blob, and that the index says the same.
///
/// The memory of `plain` is used again and again.
pub(crate) fn read_pack(inner: &Inner, id: Id, plain: &mut Vec<u8>) -> Result<PacksRead> {
    let damaged = |reason: String| Error::damaged(FileKind::Pack, id, reason);
    let read = || {
        inner.backend.drop_caches(FileKind::Pack, id)?;
        inner.backend.read(FileKind::Pack, id)
    };
    // A store's client may have what it received a second time.
    let mut read_charge = inner.charge(2 * usize::try_from(inner.pack_size(id).unwrap_or(0)).unwrap_or(0));
    let mut data = match read() {
        Err(e) if e.is_not_found() => return Err(damaged("it is missing".into())),
        other => other?,
    };
    if Id::of(&data) != id {
        return Err(damaged("its hash is not its name".into()));
    }
    let blobs = parse_header(&inner.key, id, &data)?;
    prove_blobs(&inner.key, id, &blobs, &mut data, plain)?;
    read_charge.set(data.capacity() + plain.capacity());
    let index = inner.index.read().unwrap_or_else(PoisonError::into_inner);
    for blob in &blobs {
        match index.find(blob.kind, blob.id) {
            None => return Err(damaged(format!("its blob {} is in no index", blob.id))),
            Some(found) if found.pack == id && found.blob != *blob => {
                return Err(damaged(format!("the index says something else about blob {}", blob.id)));
            }
            // The blob may be in other packs as well.
            Some(_) => {}
        }
    }
    match index.pack_size(id) {
        Some(size) if size == data.len() as u64 && size == expected_size(&blobs) => {}
        Some(_) => return Err(damaged("the index and its header list different blobs".into())),
        None => return Err(damaged("it is in no index".into())),
    }
    Ok(PacksRead { bytes: data.len() as u64, blobs: blobs.len() as u64 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::encode_tree;
    use crate::pack::Sealer;
    use crate::uploader::Uploader;
    use crate::{
        ArchiveRequest, Backend as _, Effort, KeyCost, Layout, MemoryBackend, Parent, Pass, Password, Root, Source,
    };
    use std::panic::{AssertUnwindSafe, catch_unwind};

    #[test]
    fn several_walk_a_tree_together_and_one_who_fails_or_panics_ends_it_for_all() {
        let backend = Arc::new(MemoryBackend::new());
        let repo = Repository::init(backend, &Password::new("p"), KeyCost::Test).expect("a repository");
        let repo = repo.with_effort(Effort { threads: std::num::NonZeroUsize::new(4), ..Effort::default() });
        let uploader = Uploader::new(&repo.inner);
        let mut sealer = Sealer::new().expect("a compressor");
        let mut save = |nodes: &[Node]| {
            uploader.save(&mut sealer, BlobKind::Tree, &encode_tree(nodes).expect("encoded")).expect("saved")
        };
        let level = |tree: Id| {
            let of = |n: u32| Node { subtree: Some(tree), ..Node::new(format!("{n:02}"), NodeKind::Dir) };
            (0..20).map(of).collect::<Vec<_>>()
        };
        let leaf = save(&[Node::new("pipe", NodeKind::Fifo)]);
        let middle = save(&level(leaf));
        let root = save(&level(middle));
        uploader.flush().expect("flushed");
        let (inner, progress) = (&*repo.inner, Progress::default());
        let visited = AtomicUsize::new(0);
        let load = |tree: Id, at: &str| {
            visited.fetch_add(1, Ordering::Relaxed);
            inner.load_tree(tree, at).map(Arc::new)
        };
        let walked = walk_tree((inner, &load), root, "", &progress).expect("walked");
        assert_eq!((walked.counts.dirs, walked.counts.files), (421, 400));
        assert_eq!((visited.load(Ordering::Relaxed), walked.packs.len()), (421, 1));
        let missing = |tree: Id, at: &str| match at {
            "directory /13/07/" => Err(Error::MissingBlob { blob: tree, needed_by: at.to_owned() }),
            _ => inner.load_tree(tree, at).map(Arc::new),
        };
        let error = walk_tree((inner, &missing), root, "", &progress).map(|walked| walked.counts);
        assert!(matches!(error, Err(Error::MissingBlob { .. })), "{error:?}");
        let panics = |tree: Id, at: &str| {
            if at == "directory /13/" { panic!("{at}") } else { inner.load_tree(tree, at).map(Arc::new) }
        };
        assert!(catch_unwind(AssertUnwindSafe(|| walk_tree((inner, &panics), root, "", &progress).is_ok())).is_err());
        let cancels = |tree: Id, at: &str| {
            progress.cancel();
            inner.load_tree(tree, at).map(Arc::new)
        };
        let error = walk_tree((inner, &cancels), root, "", &progress).map(|walked| walked.counts);
        assert!(matches!(error, Err(Error::Cancelled)), "{error:?}");
    }

    #[test]
    fn what_an_archive_found_as_it_is_is_not_read_again_and_its_packs_are_looked_for_all_the_same() {
        let backend = MemoryBackend::new();
        let repo =
            Repository::init(Arc::new(backend.clone()), &Password::new("p"), KeyCost::Test).expect("a repository");
        let home = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(home.path().join("below")).expect("made");
        // A file that was written a moment ago would be read again, and a look changes a link.
        let pipe = home.path().join("below/pipe");
        rustix::fs::mknodat(rustix::fs::CWD, pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
            .expect("made");
        let progress = Progress::default();
        let archive = |parent: Option<SnapshotFileId>| {
            let source = Source::Directory { path: home.path().into(), layout: Layout::Plain, exclude: vec![] };
            let request = ArchiveRequest {
                time: jiff::Timestamp::UNIX_EPOCH,
                hostname: "test".into(),
                tags: vec![],
                parents: parent.map(Parent::Snapshot).into_iter().collect(),
                roots: vec![Root { at: "/data".into(), source }],
                pass: Pass::Commit,
                accept_losses: vec![],
            };
            let archived = repo.archive(&request, &progress).expect("archived");
            (archived.snapshot.expect("a snapshot"), Verify::Written { packs: archived.written_packs })
        };
        let kept = || repo.inner.kept.lock().expect("no panic").as_ref().map(|(of, kept)| (*of, kept.len()));
        let (first, written) = archive(None);
        assert_eq!(kept(), Some((first.0, 0)), "all of it is new");
        let whole = repo.verify(first, &written, &progress).expect("verified");
        assert_eq!(kept(), None);

        let (second, written) = archive(Some(first));
        assert_eq!(kept(), Some((second.0, 2)), "what is in the volume; what is around it is made up anew");
        // Of another snapshot it says nothing, nor to whoever wants everything read.
        repo.verify(first, &Verify::Everything, &progress).expect("verified");
        repo.verify(second, &Verify::Everything, &progress).expect("verified");
        assert_eq!(kept(), Some((second.0, 2)));
        let again = repo.verify(second, &written, &progress).expect("verified");
        assert_eq!((again.counts, kept()), (whole.counts, None));

        let (third, written) = archive(Some(first));
        assert!(matches!(kept(), Some((of, 2)) if of == third.0));
        let trees = kept_packs(&repo);
        for pack in trees {
            backend.remove(FileKind::Pack, pack).expect("removed");
        }
        let missing = repo.verify(third, &written, &progress);
        assert!(matches!(missing, Err(Error::MissingBlob { .. })), "{missing:?}");
    }

    fn kept_packs(repo: &Repository) -> Vec<Id> {
        let kept = repo.inner.kept.lock().expect("no panic");
        let (_, kept) = kept.as_ref().expect("some are kept");
        kept.ids().filter_map(|id| repo.inner.find_blob(BlobKind::Tree, id)).map(|found| found.pack).collect()
    }
}
