//! The ways to a repository's objects: files, snapshots, the index, blobs, trees.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Inner, Locks, to_json};
use crate::backend::{Backend, FileInfo, FileKind};
use crate::effort::Effort;
use crate::error::{Error, Result};
use crate::id::{Id, SnapshotFileId};
use crate::index::{Found, IdMap, Index, Origin};
use crate::memory::{Charge, Shares};
use crate::node::{Node, NodeKind, decode_tree};
use crate::pack::{decompress, expected_size, open_blob};
use crate::wire::{BlobKind, IndexFile, SnapshotFile};

/// The largest file that is no pack, unpacked, in bytes: an index of ten million blobs is a third of it.
const MAX_UNPACKED: u64 = if cfg!(test) { 32 << 20 } else { 4 << 30 };

/// Files that are looked at one by one in one go because a listing lacks them: beyond, it is believed.
const MOST_LOOKS: usize = 64;

/// The largest content that is unpacked in one go, in bytes: making room for it costs less than a stream does.
const SMALL: u64 = 1 << 20;

/// Decompresses a file that is not a pack, as far as memory allows.
fn unpack(packed: &[u8]) -> std::io::Result<Vec<u8>> {
    use std::io::Read as _;
    let mut plain = Vec::new();
    let said = zstd::zstd_safe::get_frame_content_size(packed).ok().flatten().filter(|size| *size <= SMALL);
    if let Some(size) = said.and_then(|size| usize::try_from(size).ok()) {
        plain.reserve_exact(size);
        // More than it says is in it, or something is wrong with it: the stream tells.
        if decompress(packed, &mut plain).is_ok() {
            return Ok(plain);
        }
        plain.clear();
    }
    let read = zstd::stream::read::Decoder::with_buffer(packed)?.take(MAX_UNPACKED + 1).read_to_end(&mut plain)?;
    if read as u64 > MAX_UNPACKED { Err(std::io::Error::other("unreasonably large")) } else { Ok(plain) }
}

/// What is said of a file that is there, though a listing says otherwise.
pub(crate) const UNLISTED: &str = "is in its place, and in no listing";

impl Inner {
    pub(crate) fn effort(&self) -> Effort {
        self.effort.get().copied().unwrap_or_default()
    }

    /// What work may keep in memory.
    pub(crate) fn shares(&self) -> Shares {
        Shares::of(self.effort().memory)
    }

    /// Counts what is kept from now on, in bytes.
    pub(crate) fn charge(&self, bytes: usize) -> Charge {
        Charge::new(&self.account, bytes)
    }

    /// Reads a file that is not a pack: proves its name, decrypts and decompresses.
    pub(crate) fn load_unpacked(&self, kind: FileKind, id: Id) -> Result<Vec<u8>> {
        self.decode_unpacked(kind, id, &self.backend.read(kind, id)?)
    }

    /// The same for a file that is here already.
    pub(crate) fn decode_unpacked(&self, kind: FileKind, id: Id, data: &[u8]) -> Result<Vec<u8>> {
        let damaged = |reason: String| Error::damaged(kind, id, reason);
        if Id::of(data) != id {
            return Err(damaged("its hash is not its name".into()));
        }
        let plain = self.key.open(data).map_err(|e| damaged(e.to_string()))?;
        match plain.first() {
            Some(b'{' | b'[') => Ok(plain),
            Some(2) => unpack(&plain[1..]).map_err(|e| damaged(e.to_string())),
            _ => Err(damaged("unknown encoding".into())),
        }
    }

    pub(crate) fn load_json<T: DeserializeOwned>(&self, kind: FileKind, id: Id) -> Result<T> {
        let json = self.load_unpacked(kind, id)?;
        serde_json::from_slice(&json).map_err(|e| Error::damaged(kind, id, e.to_string()))
    }

    pub(crate) fn save_json(&self, kind: FileKind, value: &impl Serialize) -> Result<Id> {
        let json = to_json(value)?;
        let compressed =
            zstd::bulk::compress(&json, 3).map_err(|source| Error::System { doing: "compress", source })?;
        let mut plain = Vec::with_capacity(compressed.len() + 1);
        plain.push(2);
        plain.extend_from_slice(&compressed);
        let sealed = self.key.seal(&plain);
        let id = Id::of(&sealed);
        self.backend.write(kind, id, &sealed)?;
        Ok(id)
    }

    /// Writes a snapshot file; a listing that lacks it from now on leaves something out.
    pub(crate) fn save_snapshot(&self, value: &impl Serialize) -> Result<Id> {
        let id = self.save_json(FileKind::Snapshot, value)?;
        self.expect_snapshots([id]);
        Ok(id)
    }

    /// A listing that lacks one of these, which is there, leaves something out.
    pub(crate) fn expect_snapshots(&self, ids: impl IntoIterator<Item = Id>) {
        self.copies.lock().unwrap_or_else(PoisonError::into_inner).expected.extend(ids);
    }

    /// Loads a snapshot by what it is called here, or was called in the repository that it was copied from.
    pub(crate) fn load_snapshot(&self, id: SnapshotFileId) -> Result<SnapshotFile> {
        match self.load_json(FileKind::Snapshot, id.0) {
            Err(Error::Backend(e)) if e.is_not_found() => {
                let copy = self.copy_of(id)?.ok_or_else(|| Error::NotFound { what: format!("snapshot {id}") })?;
                self.load_json(FileKind::Snapshot, copy.0)
            }
            other => other,
        }
    }

    /// What a snapshot is called here: a copy has another name than its original, by which others may know it.
    pub(crate) fn name_here(&self, id: SnapshotFileId) -> Result<SnapshotFileId> {
        match self.backend.size(FileKind::Snapshot, id.0)? {
            Some(_) => Ok(id),
            None => Ok(self.copy_of(id)?.unwrap_or(id)),
        }
    }

    /// Finds the copy of a snapshot that is not here itself. What cannot be read is no copy that could be used.
    fn copy_of(&self, original: SnapshotFileId) -> Result<Option<SnapshotFileId>> {
        let listed = self.refresh_copies()?;
        let copies = self.copies.lock().unwrap_or_else(PoisonError::into_inner);
        // Of several that hold the same, it is the same one every time.
        let mut there =
            copies.by_original.get(&original.0).into_iter().flatten().filter(|(id, _)| listed.contains(*id));
        let Some((first, tree)) = there.next() else { return Ok(None) };
        if there.any(|(_, other)| other != tree) {
            let text = format!("different snapshots say that they are copies of {original}: name one of them");
            return Err(Error::InvalidRequest(text));
        }
        Ok(Some(SnapshotFileId(*first)))
    }

    /// What the copies of a snapshot are called here, as of the last [`Inner::refresh_copies`].
    pub(crate) fn copies_of(&self, original: Id) -> Vec<Id> {
        let copies = self.copies.lock().unwrap_or_else(PoisonError::into_inner);
        copies.by_original.get(&original).into_iter().flatten().map(|(id, _)| *id).collect()
    }

    /// Looks at the snapshot files that are new since the last time, and lists all there are.
    pub(crate) fn refresh_copies(&self) -> Result<HashSet<Id>> {
        let listed: HashSet<Id> = self.backend.list(FileKind::Snapshot)?.into_iter().map(|info| info.id).collect();
        let mut copies = self.copies.lock().unwrap_or_else(PoisonError::into_inner);
        for id in &listed {
            if copies.seen.contains(id) {
                continue;
            }
            match self.load_json::<SnapshotFile>(FileKind::Snapshot, *id) {
                Ok(file) => {
                    copies.seen.insert(*id);
                    if let Some(first) = file.original {
                        copies.by_original.entry(first).or_default().insert(*id, file.tree);
                    }
                }
                Err(Error::Damaged { .. }) => {}
                Err(Error::Backend(e)) if e.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(listed)
    }

    /// Lists what the snapshots are called, for somebody who takes away what they do not need.
    ///
    /// # Errors
    /// [`Error::Unsteady`] when the listing lacks one that was there before, or is expected, and is there.
    pub(crate) fn list_all_snapshots(&self) -> Result<HashSet<Id>> {
        let listed = self.refresh_copies()?;
        let mut copies = self.copies.lock().unwrap_or_else(PoisonError::into_inner);
        let unlisted: Vec<Id> =
            copies.seen.union(&copies.expected).filter(|id| !listed.contains(*id)).copied().collect();
        for id in unlisted {
            if self.backend.size(FileKind::Snapshot, id)?.is_some() {
                return Err(Error::Unsteady { kind: FileKind::Snapshot, id, how: UNLISTED });
            }
            copies.seen.remove(&id);
            copies.expected.remove(&id);
        }
        Ok(listed)
    }

    /// Looks at packs of which a listing does not say what an index does: a listing that leaves a file out must not make it
    /// look lost. `looks` counts them. Answers whether it came to all of them.
    ///
    /// # Errors
    /// Store errors: nobody knows.
    pub(crate) fn look_at_unlisted(
        &self,
        packs: impl Iterator<Item = (Id, u64)>,
        present: &mut IdMap<u64>,
        looks: &mut usize,
    ) -> Result<bool> {
        let mut all = true;
        for (id, size) in packs {
            if present.get(&id) == Some(&size) {
                continue;
            }
            if *looks == MOST_LOOKS {
                all = false;
            } else {
                *looks += 1;
                if let Some(size) = self.backend.size(FileKind::Pack, id)? {
                    present.insert(id, size);
                }
            }
        }
        Ok(all)
    }

    /// Lists the packs with their sizes.
    pub(crate) fn list_packs(&self) -> Result<IdMap<u64>> {
        Ok(self.backend.list(FileKind::Pack)?.into_iter().map(|info| (info.id, info.size)).collect())
    }

    /// A sketch of a repository, over a store that shows what is in this one.
    pub(crate) fn above(below: &Arc<Self>, backend: Arc<dyn Backend>) -> Self {
        Self {
            backend,
            key: below.key.clone(),
            hostname: below.hostname.clone(),
            index: RwLock::default(),
            refreshing: Mutex::default(),
            marks: Mutex::default(),
            unreadable_locks: Mutex::default(),
            unread: Mutex::default(),
            kept: Mutex::default(),
            repository_id: below.repository_id.clone(),
            copies: Mutex::default(),
            locks: Locks::Nobody,
            effort: below.effort.clone(),
            account: Arc::clone(&below.account),
            below: Some(Arc::clone(below)),
        }
    }

    /// Whether only hashes are kept of the contents of files.
    pub(crate) const fn is_sketch(&self) -> bool {
        self.below.is_some()
    }

    /// Brings the index in memory up to what the store holds now.
    pub(crate) fn refresh_index(&self) -> Result<()> {
        if let Some(below) = &self.below {
            // Of its own a sketch has only what it wrote.
            return below.refresh_index();
        }
        let _one = self.refreshing.lock().unwrap_or_else(PoisonError::into_inner);
        // Index files first: whatever they name was there before them, so it is in the listing of packs, unless it
        // is gone.
        let mut files = self.backend.list(FileKind::Index)?;
        let mut packs = self.list_packs()?;
        let mut looks = 0;
        let mut listed: HashSet<Id> = files.iter().map(|f| f.id).collect();
        let (known, relied_on): (Vec<Id>, Vec<(Id, u64)>) = {
            let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
            let unlisted = index.files.keys().filter(|id| !listed.contains(id)).take(MOST_LOOKS);
            (unlisted.copied().collect(), index.packs().filter(|(id, size)| packs.get(id) != Some(size)).collect())
        };
        for id in known {
            if let Some(size) = self.backend.size(FileKind::Index, id)? {
                files.push(FileInfo { id, size });
                listed.insert(id);
            }
        }
        self.look_at_unlisted(relied_on.into_iter(), &mut packs, &mut looks)?;
        let all_there = {
            let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
            index.files.keys().all(|known| listed.contains(known))
                && index.packs().all(|(id, size)| packs.get(&id) == Some(&size))
        };
        let mut fresh = None;
        let known = if all_there {
            self.index.read().unwrap_or_else(PoisonError::into_inner).files.clone()
        } else {
            // Something we relied on is gone: forget everything and load what there is.
            fresh = Some(Index::default());
            HashMap::new()
        };
        for file in files.iter().filter(|f| !known.contains_key(&f.id)) {
            let content = match self.load_json::<IndexFile>(FileKind::Index, file.id) {
                Ok(content) => content,
                Err(Error::Backend(e)) if e.is_not_found() => continue,
                // One damaged file must not keep everything else from being restored. What only it names counts as
                // absent: the next archive stores it again, a check lists the file, a prune replaces it.
                Err(error @ Error::Damaged { .. }) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "pass over a damaged index file");
                    continue;
                }
                Err(e) => return Err(e),
            };
            let named = content.packs.iter().map(|pack| (pack.id, expected_size(&pack.blobs)));
            let complete = self.look_at_unlisted(named, &mut packs, &mut looks)?;
            let take_in = |index: &mut Index| {
                index.add_present(&content, &packs);
                // One of which not everything was looked for is loaded again the next time.
                if complete {
                    index.files.insert(file.id, Origin::Store);
                }
            };
            match &mut fresh {
                Some(index) => take_in(index),
                None => take_in(&mut self.index.write().unwrap_or_else(PoisonError::into_inner)),
            }
        }
        if let Some(index) = fresh {
            *self.index.write().unwrap_or_else(PoisonError::into_inner) = index;
        }
        Ok(())
    }

    pub(crate) fn find_blob(&self, kind: BlobKind, id: Id) -> Option<Found> {
        let own = self.index.read().unwrap_or_else(PoisonError::into_inner).find(kind, id);
        own.or_else(|| self.below.as_ref()?.find_blob(kind, id))
    }

    /// The size of a pack, as the index states it.
    pub(crate) fn pack_size(&self, pack: Id) -> Option<u64> {
        let own = self.index.read().unwrap_or_else(PoisonError::into_inner).pack_size(pack);
        own.or_else(|| self.below.as_ref()?.pack_size(pack))
    }

    /// Reads one blob, proven by its hash.
    pub(crate) fn load_blob(&self, kind: BlobKind, id: Id, needed_by: &str) -> Result<Vec<u8>> {
        match self.find_blob(kind, id).map(|found| self.read_blob(&found)) {
            Some(Err(Error::Backend(e))) if e.is_not_found() => {}
            None => {}
            Some(other) => return other,
        }
        // Somebody may have added it, or moved it to another pack, since the index was loaded.
        self.refresh_index()?;
        let found = self.find_blob(kind, id);
        let missing = || Err(Error::MissingBlob { blob: id, needed_by: needed_by.to_owned() });
        found.map_or_else(missing, |found| self.read_blob(&found))
    }

    /// Reads one blob from where it is said to be, proven by its hash.
    pub(crate) fn read_blob(&self, found: &Found) -> Result<Vec<u8>> {
        let (offset, len) = (u64::from(found.blob.offset), found.blob.length as usize);
        let mut sealed = self.backend.read_range(FileKind::Pack, found.pack, offset, len)?;
        let mut plain = Vec::new();
        let content = open_blob(&self.key, found.pack, &found.blob, &mut sealed, &mut plain)?;
        // Most are compressed, and then this is where they are already.
        Ok(if found.blob.uncompressed_length == 0 { content.to_vec() } else { plain })
    }

    pub(crate) fn load_tree(&self, id: Id, path: &str) -> Result<Vec<Node>> {
        decode_tree(id, &self.load_blob(BlobKind::Tree, id, path)?)
    }

    /// Finds the node at a slash path below a tree; the path "/" gives a node for the tree itself.
    pub(crate) fn resolve(&self, tree: Id, path: &[u8]) -> Result<Node> {
        let mut node = Node::new(Vec::new(), NodeKind::Dir);
        node.mode = 0o755;
        node.subtree = Some(tree);
        let shown = || String::from_utf8_lossy(path).into_owned();
        for part in path.split(|b| *b == b'/').filter(|part| !part.is_empty()) {
            let missing = || Error::NotFound { what: format!("path {}", shown()) };
            let mut nodes = self.load_tree(node.subtree.ok_or_else(missing)?, &shown())?;
            let at = nodes.binary_search_by(|n| n.name.as_slice().cmp(part)).map_err(|_| missing())?;
            node = nodes.swap_remove(at);
        }
        Ok(node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::Key;
    use crate::repository::Repository;

    #[test]
    fn a_file_that_unpacks_to_more_than_memory_is_damaged() {
        let repository = Repository::at_far_end(Arc::new(crate::MemoryBackend::new()), Key::random());
        let opened = |size: u64| {
            let packed = zstd::encode_all(&vec![b' '; usize::try_from(size).expect("small")][..], 1).expect("packed");
            let sealed = repository.inner.key.seal(&[&[2][..], &packed].concat());
            repository.inner.decode_unpacked(FileKind::Index, Id::of(&sealed), &sealed)
        };
        assert!(opened(MAX_UNPACKED).is_ok());
        assert!(matches!(opened(MAX_UNPACKED + 1), Err(Error::Damaged { .. })));
    }

    #[test]
    fn a_file_is_unpacked_whether_or_not_it_says_how_much_is_in_it() {
        let plain = b"the same again and ".repeat(1000);
        let said = zstd::bulk::compress(&plain, 3).expect("packed");
        assert_eq!(unpack(&said).expect("says its size"), plain);
        let unsaid = zstd::encode_all(&plain[..], 3).expect("packed");
        assert_eq!(unpack(&unsaid).expect("says no size"), plain);
        let twice = [said.clone(), said.clone()].concat();
        assert_eq!(unpack(&twice).expect("says the size of its first half"), [&plain[..], &plain].concat());
        assert!(unpack(&said[..said.len() - 1]).is_err(), "cut off");
    }
}
