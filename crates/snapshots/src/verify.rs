//! Verification: a snapshot counts once what it needs was read back, and not before.
//!
//! Three things are proven. What was written arrived: packs, index files and the snapshot file are read again past
//! the page cache, decrypted and hashed. What is needed is there: every blob of every tree is in the index, in a pack
//! that exists with the right size. What was counted is there: files, directories and bytes equal the archive's.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use perennial_core::progress::Progress;

use crate::backend::FileKind;
use crate::error::{Error, Result};
use crate::id::{Id, SnapshotFileId};
use crate::index::{Found, IdSet, Origin};
use crate::lock::{LockGuard, LockMode};
use crate::node::{Node, NodeKind};
use crate::pack::{expected_size, parse_header, prove_blobs};
use crate::repository::{Inner, Repository};
use crate::request::Counts;
use crate::wire::{BlobKind, IndexBlob, IndexFile, SnapshotFile};

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
        let (verified, packs) = prove(inner, &file, verify, progress).map_err(|error| match verify {
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
    verify: &Verify,
    progress: &Progress,
) -> Result<(Verified, Vec<Id>)> {
    inner.reread_written_indexes()?;
    inner.refresh_index()?;
    let mut needed = IdSet::default();
    let load = |tree, path: &str| inner.load_tree(tree, path);
    let counts = walk_tree((inner, &load), file.tree, "", progress, &mut |found| {
        needed.insert(found.pack);
    })?;
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
pub(crate) type Trees<'a> = (&'a Inner, &'a dyn Fn(Id, &str) -> Result<Vec<Node>>);

/// Walks a tree, proves that every blob is known and that file sizes add up, and counts.
pub(crate) fn walk_tree(
    (inner, load): Trees<'_>,
    tree: Id,
    path: &str,
    progress: &Progress,
    found: &mut dyn FnMut(Found),
) -> Result<Counts> {
    let mut counts = Counts::default();
    let mut stack = vec![(tree, path.to_owned())];
    while let Some((tree, path)) = stack.pop() {
        progress.check()?;
        counts.add(NodeKind::Dir, 0);
        let nodes = load(tree, &format!("directory {path}/"))?;
        if let Some(place) = inner.find_blob(BlobKind::Tree, tree) {
            found(place);
        }
        for node in nodes {
            let at = || format!("{path}/{}", String::from_utf8_lossy(&node.name));
            if let Some(subtree) = node.subtree {
                stack.push((subtree, at()));
                continue;
            }
            counts.add(node.kind, node.size);
            check_file(inner, &node, &at(), found)?;
        }
    }
    Ok(counts)
}

/// Proves that every blob of a file is known and that their sizes add up.
pub(crate) fn check_file(inner: &Inner, node: &Node, at: &str, found: &mut dyn FnMut(Found)) -> Result<()> {
    let mut size = 0;
    for blob in &node.content {
        let Some(place) = inner.find_blob(BlobKind::Data, *blob) else {
            return Err(Error::MissingBlob { blob: *blob, needed_by: at.to_owned() });
        };
        size += plain_length(&place.blob);
        found(place);
    }
    if node.kind == NodeKind::File { same(&format!("bytes of {at}"), node.size, size) } else { Ok(()) }
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
    let workers = effort.threads(2, packs.len().min(16));
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
    let mut data = match read() {
        Err(e) if e.is_not_found() => return Err(damaged("it is missing".into())),
        other => other?,
    };
    if Id::of(&data) != id {
        return Err(damaged("its hash is not its name".into()));
    }
    let blobs = parse_header(&inner.key, id, &data)?;
    prove_blobs(&inner.key, id, &blobs, &mut data, plain)?;
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
