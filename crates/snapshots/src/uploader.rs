//! Brings blobs into the repository: packs first, then the index that names them.
//!
//! Workers compress and encrypt on their own and share nothing but a pool of packs being filled: each takes one,
//! adds its blob and puts it back, or writes it when it is full. So there are never more open packs than workers, and
//! a small archive makes a single one. Where memory is bounded there may be fewer: then a worker waits for one.
//!
//! While writers are held still, finished packs wait in a [`Spool`]. Only what the store has taken is in the index:
//! another archive of the same repository must not count on blobs that may never get there.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use perennial_core::progress::Progress;

use crate::backend::FileKind;
use crate::error::{Error, Result};
use crate::id::Id;
use crate::index::{IdSet, Origin};
use crate::memory::{Charge, NAMED, Shares, Work};
use crate::pack::{PackBuilder, Sealer};
use crate::repository::Inner;
use crate::spool::{Spool, Waiting};
use crate::wire::{BlobKind, IndexBlob, IndexFile, IndexPack};

/// An index file is written after so many packs, so that a crash costs little work.
///
/// Or after as many blobs as a pack has at most: writing and reading it takes a few hundred bytes of memory for each.
const PACKS_PER_INDEX: usize = 8;
const SHARDS: usize = 16;
/// So many packs' memory is kept for those that come: as many as there are workers at most.
const SPARE: usize = 16;
/// So many packs are written at once of those that waited.
const DRAINS: usize = 4;

pub(crate) struct Uploader<'a> {
    inner: &'a Inner,
    /// Blobs this upload has taken on: in an open pack, being written, or written. Those that the index has got are no more in here.
    taken: [[Mutex<IdSet>; SHARDS]; 2],
    open: [Open; 2],
    /// Memory of packs that were written, for those that come: the system would have to clear as much for each.
    spare: Mutex<Vec<(Vec<u8>, Charge)>>,
    shares: Shares,
    unindexed: Mutex<Vec<IndexPack>>,
    written: Mutex<Vec<Id>>,
    new_bytes: AtomicU64,
    /// Whether a pack is read back before an index names it.
    reads_back: bool,
    /// Where finished packs wait while `holding`.
    spool: Option<Spool>,
    holding: AtomicBool,
    /// Ids are chosen by whoever writes the files: an unpredictable shard keeps them from meeting in one.
    hasher: RandomState,
}

/// Packs that are being filled.
struct Open {
    packs: Mutex<Packs>,
    /// One that somebody had is back, or another may be begun.
    back: Condvar,
    most: usize,
}

#[derive(Default)]
struct Packs {
    here: Vec<PackBuilder>,
    /// Somebody adds to them, or writes them.
    taken: usize,
}

impl Open {
    fn new(most: usize) -> Self {
        Self { packs: Mutex::default(), back: Condvar::new(), most }
    }

    /// Takes a pack to add to; none: a new one may be begun. Waits until either is so.
    fn take(&self) -> (Option<PackBuilder>, Taken<'_>) {
        let mut packs = lock(&self.packs);
        while packs.here.is_empty() && packs.taken >= self.most {
            packs = self.back.wait(packs).unwrap_or_else(PoisonError::into_inner);
        }
        packs.taken += 1;
        (packs.here.pop(), Taken(self))
    }
}

/// Somebody has a pack, until this is dropped.
struct Taken<'o>(&'o Open);

impl Taken<'_> {
    fn put_back(self, pack: PackBuilder) {
        lock(&self.0.packs).here.push(pack);
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        lock(&self.0.packs).taken -= 1;
        self.0.back.notify_one();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A worker that panicked makes the whole upload fail; what it left in here is not used for anything that counts.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'a> Uploader<'a> {
    /// Starts an upload. The index must be fresh as of after the lock was taken.
    pub(crate) fn new(inner: &'a Inner) -> Self {
        let shares = inner.shares();
        Self {
            inner,
            taken: Default::default(),
            open: shares.open_packs(Work::Archive).map(Open::new),
            shares,
            spare: Mutex::default(),
            unindexed: Mutex::default(),
            written: Mutex::default(),
            new_bytes: AtomicU64::new(0),
            reads_back: false,
            spool: None,
            holding: AtomicBool::new(false),
            hasher: RandomState::new(),
        }
    }

    /// The same with a place where packs can wait.
    pub(crate) fn with_spool(self, spool: Option<Spool>) -> Self {
        Self { spool, ..self }
    }

    /// The same, and no index names a pack that was not read back: whoever goes on after an interruption can count on all
    /// that is there.
    pub(crate) fn reading_back(self) -> Self {
        let open = self.shares.open_packs(Work::Copy).map(Open::new);
        Self { reads_back: true, open, ..self }
    }

    /// From now on finished packs wait, as far as there is room.
    pub(crate) fn hold(&self) {
        self.holding.store(true, Ordering::Release);
    }

    /// From now on packs are written when they are full. Nobody may be saving anything meanwhile.
    pub(crate) fn release(&self) {
        self.holding.store(false, Ordering::Release);
    }

    /// Writes what waited.
    pub(crate) fn drain(&self, progress: &Progress) -> Result<()> {
        let Some(spool) = &self.spool else { return Ok(()) };
        let drain = || -> Result<()> {
            loop {
                progress.check()?;
                let taken = spool
                    .take(&self.inner.account)
                    .map_err(|source| Error::System { doing: "read a pack that waited", source })?;
                let Some(pack) = taken else { return Ok(()) };
                self.store(pack)?;
            }
        };
        let drained: Vec<Result<()>> = std::thread::scope(|scope| {
            let drains = DRAINS.min(self.shares.workers(Work::Archive));
            let others: Vec<_> = (1..drains).map(|_| scope.spawn(drain)).collect();
            let ours = drain();
            let ended = |thread: std::thread::ScopedJoinHandle<'_, Result<()>>| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            others.into_iter().map(ended).chain([ours]).collect()
        });
        drained.into_iter().collect()
    }

    /// Reports whether a blob is in the repository or on its way.
    pub(crate) fn has(&self, kind: BlobKind, id: Id) -> bool {
        // In this order: what goes from here is in the index by then.
        lock(self.shard(kind, id)).contains(&id) || self.inner.find_blob(kind, id).is_some()
    }

    fn shard(&self, kind: BlobKind, id: Id) -> &Mutex<IdSet> {
        let shard = usize::try_from(self.hasher.hash_one(id) % SHARDS as u64).unwrap_or(0);
        &self.taken[kind as usize][shard]
    }

    /// Saves a blob unless it is there already.
    pub(crate) fn save(&self, sealer: &mut Sealer, kind: BlobKind, data: &[u8]) -> Result<Id> {
        let id = Id::of(data);
        self.save_as(sealer, kind, id, data)?;
        Ok(id)
    }

    /// Saves a piece of a file's content; a sketch keeps only its hash.
    pub(crate) fn save_content(&self, sealer: &mut Sealer, data: &[u8]) -> Result<Id> {
        if self.inner.is_sketch() { Ok(Id::of(data)) } else { self.save(sealer, BlobKind::Data, data) }
    }

    /// Saves a blob whose hash is known.
    pub(crate) fn save_as(&self, sealer: &mut Sealer, kind: BlobKind, id: Id, data: &[u8]) -> Result<()> {
        self.put(kind, id, |pack| sealer.add(pack, &self.inner.key, kind, id, data).map(drop))
    }

    /// Saves a blob of another repository in the form in which it is stored there; it was proven.
    pub(crate) fn save_stored(&self, blob: &IndexBlob, stored: &[u8]) -> Result<()> {
        self.put(blob.kind, blob.id, |pack| pack.add_stored(&self.inner.key, stored, blob))
    }

    fn put(&self, kind: BlobKind, id: Id, add: impl FnOnce(&mut PackBuilder) -> Result<()>) -> Result<()> {
        {
            let mut taken = lock(self.shard(kind, id));
            // With the shard locked: in between it could go from here to the index.
            if self.inner.find_blob(kind, id).is_some() || !taken.insert(id) {
                return Ok(());
            }
        }
        let (open, taken) = self.open[kind as usize].take();
        let mut pack = open.unwrap_or_else(|| {
            let spare = lock(&self.spare).pop();
            PackBuilder::new(self.shares.pack, spare.unwrap_or_else(|| (Vec::new(), self.inner.charge(0))))
        });
        add(&mut pack)?;
        if pack.is_full() {
            self.write(pack)?;
        } else {
            taken.put_back(pack);
        }
        Ok(())
    }

    fn write(&self, pack: PackBuilder) -> Result<()> {
        let pack = pack.finish(&self.inner.key);
        let pack = Waiting { id: pack.id, data: pack.data, blobs: pack.blobs, charge: pack.charge };
        let held = self.holding.load(Ordering::Acquire).then_some(self.spool.as_ref()).flatten();
        match held {
            Some(spool) => spool.put(pack).map_or(Ok(()), |pack| self.store(pack)),
            None => self.store(pack),
        }
    }

    fn store(&self, pack: Waiting) -> Result<()> {
        lock(&self.inner.unread).insert(pack.id);
        {
            // The client of an object store has what it sends a second time.
            let _sent = self.inner.charge(pack.data.len());
            self.inner.backend.write(FileKind::Pack, pack.id, &pack.data)?;
        }
        if self.reads_back {
            self.inner.backend.drop_caches(FileKind::Pack, pack.id)?;
            let _read = self.inner.charge(2 * pack.data.len());
            if Id::of(&self.inner.backend.read(FileKind::Pack, pack.id)?) != pack.id {
                return Err(Error::Unsteady { kind: FileKind::Pack, id: pack.id, how: "is not there as it was sent" });
            }
            self.inner.read_back(&[pack.id]);
        }
        self.new_bytes.fetch_add(pack.data.len() as u64, Ordering::Relaxed);
        lock(&self.written).push(pack.id);
        let ready = {
            let mut unindexed = lock(&self.unindexed);
            let mut spare = lock(&self.spare);
            // What comes out of a spool is more than can ever be used again.
            if spare.len() < SPARE.min(self.shares.workers(Work::Archive)) {
                spare.push((pack.data, pack.charge));
            }
            drop(spare);
            unindexed.push(IndexPack { id: pack.id, blobs: pack.blobs });
            let blobs = || unindexed.iter().map(|pack| pack.blobs.len()).sum::<usize>();
            let enough = unindexed.len() >= PACKS_PER_INDEX || blobs() >= self.shares.pack.blobs;
            let now = enough && !self.holding.load(Ordering::Acquire);
            now.then(|| std::mem::take(&mut *unindexed))
        };
        ready.map_or(Ok(()), |packs| self.write_index(packs))
    }

    fn write_index(&self, packs: Vec<IndexPack>) -> Result<()> {
        let _names = self.inner.charge(packs.iter().map(|pack| pack.blobs.len()).sum::<usize>() * NAMED);
        let file = IndexFile { packs, ..IndexFile::default() };
        let id = self.inner.save_json(FileKind::Index, &file)?;
        self.inner.index.write().unwrap_or_else(PoisonError::into_inner).add_written(id, Origin::Written, &file);
        for blob in file.packs.iter().flat_map(|pack| &pack.blobs) {
            lock(self.shard(blob.kind, blob.id)).remove(&blob.id);
        }
        Ok(())
    }

    /// Writes everything that is still open: after this, the repository holds every blob that was saved.
    pub(crate) fn flush(&self) -> Result<()> {
        for pool in &self.open {
            for pack in std::mem::take(&mut lock(&pool.packs).here) {
                if !pack.is_empty() {
                    self.write(pack)?;
                }
            }
        }
        let rest = std::mem::take(&mut *lock(&self.unindexed));
        if rest.is_empty() { Ok(()) } else { self.write_index(rest) }
    }

    /// Keeps finished packs from being uploaded again after a cancellation; failing at that costs only work.
    pub(crate) fn salvage(&self) {
        let rest = std::mem::take(&mut *lock(&self.unindexed));
        if !rest.is_empty() {
            drop(self.write_index(rest));
        }
    }

    pub(crate) fn new_bytes(&self) -> u64 {
        self.new_bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn written_packs(&self) -> Vec<Id> {
        lock(&self.written).clone()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::pack::{MOST_BLOBS, expected_size};
    use crate::{Backend as _, KeyCost, MemoryBackend, Password, Repository};

    #[test]
    fn many_tiny_blobs_fill_packs_and_index_files_by_their_number_and_are_kept_in_mind_once() {
        let backend = MemoryBackend::new();
        let repo =
            Repository::init(Arc::new(backend.clone()), &Password::new("p"), KeyCost::Test).expect("a repository");
        let inner = &*repo.inner;
        let uploader = Uploader::new(inner);
        let count = MOST_BLOBS as u64 * 5 / 2;
        let save = |from: u64| -> Result<()> {
            let mut sealer = Sealer::new()?;
            for n in (from..count).chain(0..from) {
                uploader.save(&mut sealer, BlobKind::Data, &n.to_le_bytes())?;
            }
            Ok(())
        };
        // Two bring the same, each its own half first: nothing of it is stored twice.
        std::thread::scope(|scope| {
            let other = scope.spawn(|| save(count / 2));
            save(0).expect("saved");
            other.join().expect("no panic").expect("saved");
        });
        assert!(uploader.has(BlobKind::Data, Id::of(&0_u64.to_le_bytes())));
        uploader.flush().expect("flushed");
        let taken: usize = uploader.taken.iter().flatten().map(|shard| lock(shard).len()).sum();
        assert_eq!(taken, 0, "the index has them");
        let files = backend.list(FileKind::Index).expect("listed");
        let files: Vec<IndexFile> =
            files.iter().map(|file| inner.load_json(FileKind::Index, file.id).expect("read")).collect();
        let packs: Vec<&IndexPack> = files.iter().flat_map(|file| &file.packs).collect();
        let blobs: IdSet = packs.iter().flat_map(|pack| &pack.blobs).map(|blob| blob.id).collect();
        assert_eq!(packs.iter().map(|pack| pack.blobs.len() as u64).sum::<u64>(), count);
        assert_eq!(blobs.len() as u64, count);
        assert!(packs.iter().all(|pack| pack.blobs.len() <= MOST_BLOBS && expected_size(&pack.blobs) < 16 << 20));
        let in_file = |file: &IndexFile| file.packs.iter().map(|pack| pack.blobs.len()).sum::<usize>();
        assert!(files.len() >= 2 && files.iter().all(|file| in_file(file) < 2 * MOST_BLOBS));
        assert!(uploader.has(BlobKind::Data, Id::of(&0_u64.to_le_bytes())));
        assert!(!uploader.has(BlobKind::Data, Id::of(b"what nobody brought")));
    }
}
