//! Which blob is in which pack: the union of all index files, held in memory.
//!
//! The index files are the truth; memory follows them by listing (see [`Repository`](crate::Repository)). When a file
//! vanishes, somebody has pruned, and everything is loaded anew: entries of vanished files must not be counted on.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

use crate::id::Id;
use crate::wire::{BlobKind, IndexBlob, IndexFile};

/// Hashes ids by taking their first eight bytes: they are hashes already.
#[derive(Default, Clone, Copy)]
pub(crate) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Some(first) = bytes.first_chunk::<8>() {
            self.0 = u64::from_le_bytes(*first);
        }
    }

    // The length prefix of a byte array says nothing.
    fn write_usize(&mut self, _: usize) {}
}

pub(crate) type IdMap<V> = HashMap<Id, V, BuildHasherDefault<IdHasher>>;
pub(crate) type IdSet = HashSet<Id, BuildHasherDefault<IdHasher>>;

/// In [`Location::pack`]: a prune that is under way found a snapshot that needs the blob. A set of its own of millions of ids
/// would take half as much memory again as the index.
const NEEDED: u32 = 1 << 31;

#[derive(Debug, Clone, Copy)]
struct Location {
    /// Its number, and perhaps [`NEEDED`].
    pack: u32,
    offset: u32,
    length: u32,
    uncompressed_length: u32,
}

/// Where a blob is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Found {
    pub(crate) pack: Id,
    pub(crate) blob: IndexBlob,
}

/// Where an index file's content in memory came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Read from the store.
    Store,
    /// We wrote it; nobody has looked yet whether it arrived.
    Written,
}

/// All blobs known.
#[derive(Default)]
pub(crate) struct Index {
    pub(crate) files: HashMap<Id, Origin>,
    packs: Vec<PackEntry>,
    pack_numbers: IdMap<u32>,
    data: IdMap<Location>,
    trees: IdMap<Location>,
}

#[derive(Debug, Clone, Copy)]
struct PackEntry {
    id: Id,
    /// What the entries add up to; more than the pack holds never.
    size: u64,
}

impl Index {
    /// Takes in what an index file names. Packs that are not there, or not with the size they must have, are left out: a blob
    /// that cannot be read does not count as present, so the next archive that meets it stores it again.
    pub(crate) fn add_present(&mut self, file: &IndexFile, present: &IdMap<u64>) {
        for pack in &file.packs {
            if present.get(&pack.id) == Some(&crate::pack::expected_size(&pack.blobs)) {
                self.add_pack(pack.id, &pack.blobs);
            }
        }
    }

    /// Takes in an index file that was just written, as were the packs it names.
    pub(crate) fn add_written(&mut self, id: Id, origin: Origin, file: &IndexFile) {
        self.files.insert(id, origin);
        for pack in &file.packs {
            self.add_pack(pack.id, &pack.blobs);
        }
    }

    pub(crate) fn add_pack(&mut self, id: Id, blobs: &[IndexBlob]) {
        // A pack named by two index files holds the same blobs in both, so the second brings nothing new.
        if self.pack_numbers.contains_key(&id) {
            return;
        }
        // Two billion packs are 32 PiB.
        let Some(number) = u32::try_from(self.packs.len()).ok().filter(|number| *number < NEEDED) else { return };
        self.pack_numbers.insert(id, number);
        self.packs.push(PackEntry { id, size: crate::pack::expected_size(blobs) });
        for blob in blobs {
            let location = Location {
                pack: number,
                offset: blob.offset,
                length: blob.length,
                uncompressed_length: blob.uncompressed_length,
            };
            if let Some(before) = self.map_mut(blob.kind).insert(blob.id, location)
                && before.pack & NEEDED != 0
            {
                self.need(blob.kind, blob.id);
            }
        }
    }

    fn map_mut(&mut self, kind: BlobKind) -> &mut IdMap<Location> {
        match kind {
            BlobKind::Data => &mut self.data,
            BlobKind::Tree => &mut self.trees,
        }
    }

    pub(crate) fn find(&self, kind: BlobKind, id: Id) -> Option<Found> {
        let map = match kind {
            BlobKind::Data => &self.data,
            BlobKind::Tree => &self.trees,
        };
        let l = map.get(&id)?;
        let pack = self.packs.get((l.pack & !NEEDED) as usize)?;
        let blob =
            IndexBlob { id, kind, offset: l.offset, length: l.length, uncompressed_length: l.uncompressed_length };
        Some(Found { pack: pack.id, blob })
    }

    /// Marks a blob as needed; tells whether that is new, and nothing when the blob is not known.
    pub(crate) fn need(&mut self, kind: BlobKind, id: Id) -> Option<bool> {
        let location = self.map_mut(kind).get_mut(&id)?;
        let new = location.pack & NEEDED == 0;
        location.pack |= NEEDED;
        Some(new)
    }

    /// Takes the mark of a needed blob away; tells whether there was one.
    pub(crate) fn take_needed(&mut self, kind: BlobKind, id: Id) -> bool {
        let Some(location) = self.map_mut(kind).get_mut(&id) else { return false };
        let needed = location.pack & NEEDED != 0;
        location.pack &= !NEEDED;
        needed
    }

    /// A blob that is still marked as needed.
    pub(crate) fn any_needed(&self) -> Option<Id> {
        let needed = |(id, location): (&Id, &Location)| (location.pack & NEEDED != 0).then_some(*id);
        self.data.iter().chain(&self.trees).find_map(needed)
    }

    /// Takes all marks away.
    pub(crate) fn need_nothing(&mut self) {
        self.data.values_mut().chain(self.trees.values_mut()).for_each(|location| location.pack &= !NEEDED);
    }

    /// The size a pack must have; none when no index names the pack.
    pub(crate) fn pack_size(&self, pack: Id) -> Option<u64> {
        self.packs.get(*self.pack_numbers.get(&pack)? as usize).map(|p| p.size)
    }

    /// Bytes in packs of the blobs that another index lacks.
    pub(crate) fn lacking_in(&self, other: &Self) -> u64 {
        let of = |ours: &IdMap<Location>, theirs: &IdMap<Location>| {
            let lacking = ours.iter().filter(|(id, _)| !theirs.contains_key(*id));
            lacking.map(|(_, location)| u64::from(location.length)).sum::<u64>()
        };
        of(&self.data, &other.data) + of(&self.trees, &other.trees)
    }

    /// All packs with the size each must have.
    pub(crate) fn packs(&self) -> impl Iterator<Item = (Id, u64)> + '_ {
        self.packs.iter().map(|p| (p.id, p.size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_taken_once_and_change_nothing_else() {
        let (pack, blob) =
            (Id([1; 32]), |kind, id| IndexBlob { id, kind, offset: 7, length: 40, uncompressed_length: 9 });
        let (id, other) = (Id([2; 32]), Id([3; 32]));
        let mut index = Index::default();
        index.add_pack(Id([9; 32]), &[]);
        index.add_pack(pack, &[blob(BlobKind::Data, id), blob(BlobKind::Tree, id), blob(BlobKind::Data, other)]);
        assert_eq!(index.need(BlobKind::Data, pack), None);
        assert_eq!((index.need(BlobKind::Data, id), index.need(BlobKind::Data, id)), (Some(true), Some(false)));
        assert_eq!(index.any_needed(), Some(id));
        let found = index.find(BlobKind::Data, id).expect("found");
        assert_eq!((found.pack, found.blob), (pack, blob(BlobKind::Data, id)));
        assert!(!index.take_needed(BlobKind::Tree, id) && !index.take_needed(BlobKind::Data, other));
        assert!(index.take_needed(BlobKind::Data, id) && !index.take_needed(BlobKind::Data, id));
        assert_eq!(index.any_needed(), None);
        // A blob that another pack holds as well is needed all the same.
        index.need(BlobKind::Data, other);
        index.add_pack(Id([4; 32]), &[blob(BlobKind::Data, other)]);
        assert_eq!(index.find(BlobKind::Data, other).map(|found| found.pack), Some(Id([4; 32])));
        assert!(index.take_needed(BlobKind::Data, other));
        index.need(BlobKind::Tree, id);
        index.need_nothing();
        assert_eq!(index.any_needed(), None);
    }
}
