//! Copying snapshots to another repository, which has another key and is somewhere else.
//!
//! A blob is called the same in both, after the hash of its content, so what the other repository has is neither read
//! nor sent. What it lacks is read in long pieces, proven, and sealed anew; it stays compressed as it is. The
//! order is that of an archive: packs, each of them read back; then the index that names them; then everything needed is
//! found; and only then the snapshot file is written. So a snapshot that is there was proven, and a copy
//! that was interrupted goes on with what had arrived. A snapshot that is there already is gone through like the others:
//! what the other repository lost of it, by a repair, is sent again.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use perennial_core::progress::Progress;
use serde_json::{Map, Value};

use crate::archive::Kept;
use crate::backend::FileKind;
use crate::crypto::opened_text;
use crate::error::{Error, Result};
use crate::id::{Id, SnapshotFileId};
use crate::index::{Found, IdSet};
use crate::lock::{LockGuard, LockMode};
use crate::memory::Work;
use crate::pack::open_blob;
use crate::reader::Reader;
use crate::repository::{Inner, Repository};
use crate::uploader::Uploader;
use crate::verify::{Verify, prove};
use crate::wire::{BlobKind, SnapshotFile};

/// Blobs that are looked for before they are copied; this many places are in memory.
pub(crate) const BATCH: usize = 16 << 10;
/// How much of a pack is read at once.
const PIECE: u64 = 4 << 20;
/// Bytes between two wanted blobs that are read along: a request costs more.
const GAP: u64 = 128 << 10;
const MAX_WORKERS: usize = 8;

/// What a copy did.
#[derive(Debug, Default)]
pub struct Copied {
    /// Snapshots that were copied, each with what it is called in the other repository.
    pub snapshots: Vec<(SnapshotFileId, SnapshotFileId)>,
    /// Snapshots that were there already, each with what it is called there.
    pub already: Vec<(SnapshotFileId, SnapshotFileId)>,
    /// Those of them that had lost something here, which was sent again.
    pub healed: Vec<(SnapshotFileId, SnapshotFileId)>,
    /// Snapshots that cannot be copied, because the source has lost a part of them.
    pub failed: Vec<(SnapshotFileId, Error)>,
    /// Blobs that were sent.
    pub blobs: u64,
    /// Bytes read from the source's packs, trees not counted.
    pub read_bytes: u64,
    /// Bytes of packs that were written.
    pub new_bytes: u64,
}

/// What became of one snapshot.
#[derive(Debug)]
pub enum CopyOutcome {
    /// It was copied, and is called so in the other repository.
    Copied(SnapshotFileId),
    /// It was there already, whole or made whole again, and is called so.
    There(SnapshotFileId),
    /// It cannot be copied: the source has lost it, or a part of it.
    Failed(Error),
}

/// How far [`Repository::copy_each`] is with one of the snapshots.
#[derive(Debug)]
pub enum CopyStep {
    /// It is begun. Its progress counts bytes as they are stored: the total is what the repository lacks at most, and exactly
    /// that once all directories were looked at.
    Begun(Progress),
    /// It ended so.
    Ended(CopyOutcome),
}

/// One snapshot of the source, as its file says.
struct Original {
    id: SnapshotFileId,
    file: SnapshotFile,
    /// All of the file: fields that others write must not get lost.
    json: Map<String, Value>,
}

impl Original {
    fn load(inner: &Inner, id: SnapshotFileId) -> Result<Self> {
        let json = match inner.load_unpacked(FileKind::Snapshot, id.0) {
            Err(Error::Backend(e)) if e.is_not_found() => {
                return Err(Error::NotFound { what: format!("snapshot {id}") });
            }
            other => other?,
        };
        let damaged = |e: serde_json::Error| Error::damaged(FileKind::Snapshot, id.0, e.to_string());
        let file = serde_json::from_slice(&json).map_err(damaged)?;
        Ok(Self { id, file, json: serde_json::from_slice(&json).map_err(damaged)? })
    }

    /// What this snapshot was called when it was made, wherever it was copied since.
    fn origin(&self) -> Id {
        self.file.original.unwrap_or(self.id.0)
    }

    /// Bytes of all its files; none when it does not say.
    fn held(&self) -> Option<u64> {
        self.file.summary.as_ref().map(|summary| summary.total_bytes_processed)
    }

    /// Reports whether a snapshot of the other repository is this one.
    fn is_copied_as(&self, other: &Self) -> bool {
        let same = |a: &SnapshotFile, b: &SnapshotFile| {
            (a.tree, a.time, &a.tags, &a.paths, &a.hostname) == (b.tree, b.time, &b.tags, &b.paths, &b.hostname)
        };
        self.origin() == other.origin() && same(&self.file, &other.file)
    }
}

impl Repository {
    /// Copies snapshots of another repository, with everything they need, as far as it is not here yet; all of
    /// them when none is named. Each is proven before it is written, and then counts like one that was made here.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a snapshot that is named and is not there; [`Error::InvalidRequest`] when both are the
    /// same repository; [`Error::Locked`] while somebody prunes either; store errors, [`Error::Cancelled`]. Snapshots
    /// that were finished before stay, and the same call goes on. Damage of the source is in the report: other
    /// snapshots are copied all the same.
    pub fn copy_from(&self, source: &Self, snapshots: &[SnapshotFileId], progress: &Progress) -> Result<Copied> {
        progress.check()?;
        let mut copied = Copied::default();
        let mut copy = Copy::begin(self, source, progress)?;
        let mut wanted = Vec::new();
        for id in named_or_all(&source.inner, snapshots)? {
            match Original::load(&source.inner, id) {
                Ok(original) => wanted.push(original),
                Err(error @ Error::Damaged { .. }) => copied.failed.push((id, error)),
                Err(error) => return Err(error),
            }
        }
        wanted.sort_by_key(|original| (original.file.time, original.id));
        progress.expect_more(copy.expected(&wanted));
        for original in wanted {
            match copy.one(&original, &mut copied)? {
                CopyOutcome::Copied(id) => copied.snapshots.push((original.id, id)),
                CopyOutcome::There(id) => copied.already.push((original.id, id)),
                CopyOutcome::Failed(error) => copied.failed.push((original.id, error)),
            }
        }
        Ok(copied)
    }

    /// Copies the snapshots that are named, in this order, tells when each is begun, and what became of it as soon as that is known;
    /// the answer to that says whether to go on. A name may be that of an original. A snapshot that is not there, or damaged, is told and keeps none of the others back.
    ///
    /// # Errors
    /// As [`Repository::copy_from`]; what was told before is so.
    pub fn copy_each(
        &self,
        source: &Self,
        snapshots: &[SnapshotFileId],
        progress: &Progress,
        tell: &mut dyn FnMut(SnapshotFileId, CopyStep) -> ControlFlow<()>,
    ) -> Result<()> {
        progress.check()?;
        let mut copied = Copied::default();
        let mut copy = Copy::begin(self, source, progress)?;
        let mut lacking = copy.lacking();
        for id in snapshots {
            let (one, before) = (progress.apart(), copied.read_bytes);
            copy.of_one(&one);
            if tell(*id, CopyStep::Begun(one)).is_break() {
                break;
            }
            let named = source.inner.name_here(*id).and_then(|name| Original::load(&source.inner, name));
            let outcome = match named {
                Ok(original) => {
                    copy.progress.estimate(original.held().map_or(lacking, |held| held.min(lacking)));
                    copy.one(&original, &mut copied)?
                }
                Err(error @ (Error::Damaged { .. } | Error::NotFound { .. })) => CopyOutcome::Failed(error),
                Err(error) => return Err(error),
            };
            lacking = lacking.saturating_sub(copied.read_bytes - before);
            if tell(*id, CopyStep::Ended(outcome)).is_break() {
                break;
            }
        }
        Ok(())
    }
}

/// Reports whether this says that the source lost something: what is not written rightly is told otherwise.
const fn is_of_source(error: &Error) -> bool {
    matches!(
        error,
        Error::Damaged { .. } | Error::MissingBlob { .. } | Error::InvalidContent { .. } | Error::Mismatch { .. }
    )
}

fn named_or_all(inner: &Inner, named: &[SnapshotFileId]) -> Result<Vec<SnapshotFileId>> {
    if named.is_empty() {
        return Ok(inner.backend.list(FileKind::Snapshot)?.into_iter().map(|info| SnapshotFileId(info.id)).collect());
    }
    let mut ids = named.to_vec();
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

struct Copy<'a> {
    from: &'a Inner,
    to: &'a std::sync::Arc<Inner>,
    reader: Reader<'a>,
    /// What the snapshots of the other repository are called.
    there: HashSet<Id>,
    /// Trees that were copied, or found to be there, with everything below them.
    walked: HashSet<Id>,
    _source_guard: LockGuard,
    guard: LockGuard,
    progress: Progress,
    counts: Counted,
}

/// What progress is told of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Counted {
    /// All snapshots together.
    Together,
    /// Each by itself.
    One,
}

impl<'a> Copy<'a> {
    /// Locks both against prunes, and looks at what is in them.
    fn begin(to: &'a Repository, source: &'a Repository, progress: &Progress) -> Result<Self> {
        if to.id() == source.id() {
            return Err(Error::InvalidRequest("a repository cannot be copied to itself".into()));
        }
        let source_guard = LockGuard::acquire(&source.inner, LockMode::Shared)?;
        let guard = LockGuard::acquire(&to.inner, LockMode::Shared)?;
        source.inner.refresh_index()?;
        to.inner.refresh_index()?;
        Ok(Self {
            from: &source.inner,
            to: &to.inner,
            reader: Reader::new(&source.inner),
            there: to.inner.refresh_copies()?,
            walked: HashSet::new(),
            _source_guard: source_guard,
            guard,
            progress: progress.clone(),
            counts: Counted::Together,
        })
    }

    /// From now on progress is that of one snapshot.
    fn of_one(&mut self, progress: &Progress) {
        (self.progress, self.counts) = (progress.clone(), Counted::One);
    }

    /// Bytes of packs of all that the other repository lacks.
    fn lacking(&self) -> u64 {
        let from = self.from.index.read().unwrap_or_else(PoisonError::into_inner);
        let to = self.to.index.read().unwrap_or_else(PoisonError::into_inner);
        from.lacking_in(&to)
    }

    /// Bytes that will be sent at most, as far as that can be told without looking at trees: what the other repository lacks,
    /// and no more than the snapshots hold.
    fn expected(&self, wanted: &[Original]) -> u64 {
        let lacking = self.lacking();
        wanted.iter().map(Original::held).sum::<Option<u64>>().map_or(lacking, |held| held.min(lacking))
    }

    /// Finds a snapshot of the other repository that is this one.
    fn same(&self, original: &Original) -> Result<Option<Original>> {
        // It may have been made there, and come back.
        let mut ids = self.to.copies_of(original.origin());
        ids.push(original.origin());
        for id in ids.into_iter().filter(|id| self.there.contains(id)) {
            match Original::load(self.to, SnapshotFileId(id)) {
                Ok(other) if original.is_copied_as(&other) => return Ok(Some(other)),
                // What cannot be read is no copy, and what is gone is none any more.
                Ok(_) | Err(Error::Damaged { .. } | Error::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Copies one snapshot, or what the other repository lost of it.
    ///
    /// # Errors
    /// What has nothing to do with this snapshot alone.
    fn one(&mut self, original: &Original, copied: &mut Copied) -> Result<CopyOutcome> {
        let same = self.same(original)?.map(|same| (same.id, same.file));
        let sent = copied.blobs;
        match self.send_snapshot(original, copied) {
            Ok(()) => {}
            // The source lost what this repository has.
            Err(error) if is_of_source(&error) && same.as_ref().is_some_and(|(_, file)| self.prove(file).is_ok()) => {}
            Err(error) if is_of_source(&error) => return Ok(CopyOutcome::Failed(error)),
            Err(error) => return Err(error),
        }
        let Some((id, file)) = same else { return Ok(CopyOutcome::Copied(self.finish(original)?)) };
        if copied.blobs > sent {
            self.prove(&file)?;
            copied.healed.push((original.id, id));
        }
        Ok(CopyOutcome::There(id))
    }

    fn send_snapshot(&mut self, original: &Original, copied: &mut Copied) -> Result<()> {
        let uploader = &Uploader::new(self.to).reading_back();
        let sent = self.everything(original, uploader, copied);
        if sent.is_err() {
            // What arrived is not sent again.
            uploader.salvage();
            // Nobody knows which of them were finished.
            self.walked.clear();
        }
        copied.new_bytes += uploader.new_bytes();
        sent
    }

    /// Proves that all of it is there. Every pack was read back before an index named it, except those of other work of this
    /// handle.
    fn prove(&self, file: &SnapshotFile) -> Result<()> {
        let (_, packs) =
            prove(self.to, file, (&Verify::Written { packs: Vec::new() }, &Kept::default()), &self.progress)?;
        self.guard.ensure()?;
        self.to.read_back(&packs);
        Ok(())
    }

    /// Proves that all of it arrived, and then makes it a snapshot.
    fn finish(&self, original: &Original) -> Result<SnapshotFileId> {
        self.prove(&original.file)?;
        let mut json = original.json.clone();
        // A parent is another snapshot's name in the other repository, and only a hint.
        json.remove("parent");
        json.insert("original".to_owned(), Value::String(original.origin().to_string()));
        let id = self.to.save_snapshot(&Value::Object(json))?;
        self.to.backend.drop_caches(FileKind::Snapshot, id)?;
        self.to.load_snapshot(SnapshotFileId(id))?;
        Ok(SnapshotFileId(id))
    }

    /// Sends what the other repository lacks of a snapshot.
    fn everything(&mut self, original: &Original, uploader: &Uploader<'_>, copied: &mut Copied) -> Result<()> {
        let mut batch = Vec::new();
        let mut in_batch = [IdSet::default(), IdSet::default()];
        let mut stack = vec![(original.file.tree, String::new())];
        while let Some((tree, path)) = stack.pop() {
            self.progress.check()?;
            if !self.walked.insert(tree) {
                continue;
            }
            let place = || format!("directory {path}/ of snapshot {}", original.id);
            let nodes = self.reader.load_tree(tree, &place())?;
            let mut want = |kind: BlobKind, id: Id, at: &dyn Fn() -> String| -> Result<()> {
                if uploader.has(kind, id) || !in_batch[kind as usize].insert(id) {
                    return Ok(());
                }
                let missing = || Error::MissingBlob { blob: id, needed_by: at() };
                batch.push(self.from.find_blob(kind, id).ok_or_else(missing)?);
                Ok(())
            };
            for node in nodes {
                let at = || format!("{path}/{}", String::from_utf8_lossy(&node.name));
                for blob in &node.content {
                    want(BlobKind::Data, *blob, &at)?;
                }
                stack.extend(node.subtree.map(|subtree| (subtree, at())));
            }
            want(BlobKind::Tree, tree, &place)?;
            if batch.len() >= BATCH && !stack.is_empty() {
                self.send(std::mem::take(&mut batch), uploader, copied)?;
                in_batch = Default::default();
            }
        }
        if self.counts == Counted::One {
            // Now all of it is known.
            self.progress.expect_more(batch.iter().map(|found| u64::from(found.blob.length)).sum());
        }
        self.send(batch, uploader, copied)?;
        uploader.flush()
    }

    /// Sends blobs, in the order in which they lie in the source's packs.
    fn send(&self, mut batch: Vec<Found>, uploader: &Uploader<'_>, copied: &mut Copied) -> Result<()> {
        batch.sort_unstable_by_key(|found| (found.pack, found.blob.offset));
        let pieces: Vec<&[Found]> = pieces(&batch);
        let next = AtomicUsize::new(0);
        let read = AtomicU64::new(0);
        let failure = Mutex::new(None);
        let work = || -> Result<()> {
            while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
                self.progress.check()?;
                read.fetch_add(self.send_piece(piece, uploader)?, Ordering::Relaxed);
            }
            Ok(())
        };
        let effort = self.from.effort();
        std::thread::scope(|scope| {
            for _ in 0..effort.workers(Work::Copy, 2, pieces.len().min(MAX_WORKERS)) {
                scope.spawn(|| {
                    effort.begin();
                    if let Err(error) = work() {
                        next.store(pieces.len(), Ordering::Relaxed);
                        failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                    }
                });
            }
        });
        copied.read_bytes += read.into_inner();
        if let Some(error) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(error);
        }
        copied.blobs += batch.len() as u64;
        Ok(())
    }

    fn send_piece(&self, piece: &[Found], uploader: &Uploader<'_>) -> Result<u64> {
        let (Some(first), Some(last)) = (piece.first(), piece.last()) else { return Ok(0) };
        let start = u64::from(first.blob.offset);
        let end = u64::from(last.blob.offset) + u64::from(last.blob.length);
        let len = usize::try_from(end - start).unwrap_or(usize::MAX);
        // When it fails, the blobs may be readable all the same: what lies between them need not be.
        let whole = self.from.backend.read_range(FileKind::Pack, first.pack, start, len).ok();
        let (mut sealed, mut plain, mut charge) = (Vec::new(), Vec::new(), self.from.charge(0));
        let mut read = whole.as_ref().map_or(0, |data| data.len() as u64);
        for found in piece {
            let (offset, len) = (u64::from(found.blob.offset), found.blob.length as usize);
            let at = usize::try_from(offset - start).unwrap_or(usize::MAX);
            match whole.as_ref().and_then(|data| data.get(at..)?.get(..len)) {
                Some(part) => {
                    sealed.clear();
                    sealed.extend_from_slice(part);
                }
                None => {
                    sealed = self.from.backend.read_range(FileKind::Pack, found.pack, offset, len)?;
                    read += sealed.len() as u64;
                }
            }
            open_blob(&self.from.key, found.pack, &found.blob, &mut sealed, &mut plain)?;
            charge.set(whole.as_ref().map_or(0, Vec::capacity) + sealed.capacity() + plain.capacity());
            uploader.save_stored(&found.blob, opened_text(&sealed))?;
            self.progress.add_bytes(u64::from(found.blob.length));
        }
        Ok(read)
    }
}

/// Cuts sorted blobs where they are of different packs or far from each other.
fn pieces(sorted: &[Found]) -> Vec<&[Found]> {
    let mut pieces = Vec::new();
    let mut rest = sorted;
    while let Some(first) = rest.first() {
        let start = u64::from(first.blob.offset);
        let mut end = start;
        let belongs = |found: &&Found| {
            let (offset, length) = (u64::from(found.blob.offset), u64::from(found.blob.length));
            let belongs = offset == start && end == start
                || found.pack == first.pack && offset >= end && offset - end <= GAP && offset + length - start <= PIECE;
            end = offset + length;
            belongs
        };
        let count = rest.iter().take_while(belongs).count().max(1);
        let (piece, others) = rest.split_at(count);
        pieces.push(piece);
        rest = others;
    }
    pieces
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::backend::MemoryBackend;
    use crate::password::{KeyCost, Password};

    #[test]
    fn a_name_of_different_copies_is_refused_and_is_no_damage() {
        let backend = Arc::new(MemoryBackend::new());
        let repository = Repository::init(backend, &Password::new("x"), KeyCost::Test).expect("a repository");
        let original = SnapshotFileId(Id::of(b"original"));
        let save = |tree: &[u8], hostname: &str| {
            let (original, tree) = (original.to_string(), Id::of(tree).to_string());
            let time = "2026-01-02T03:04:05Z";
            let file = serde_json::json!({"time": time, "tree": tree, "original": original, "hostname": hostname});
            repository.inner.save_json(FileKind::Snapshot, &file).expect("written")
        };
        // Tagged anew it holds the same; rewritten it does not.
        let same = [save(b"one", "a"), save(b"one", "b")];
        let found = repository.snapshot(original).expect("found").id;
        assert_eq!(Some(&found.0), same.iter().min());
        save(b"two", "a");
        let error = repository.snapshot(original).expect_err("refused");
        assert!(matches!(error, Error::InvalidRequest(_)) && !error.is_damage(), "{error:?}");
    }
}
