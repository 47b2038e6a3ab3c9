//! Reads the blobs of a whole tree: with few, large reads, because who needs one blob mostly needs its neighbours.
//!
//! Blobs lie in packs about in the order in which a tree is walked. So when a blob is asked for where the last read of
//! its pack ended, a good piece of the pack is read at once and kept for those that follow. A blob from anywhere else
//! (content that an earlier snapshot or another directory brought) is read alone. Trees are needed in an order of their
//! own and are small, so they are always read in pieces. What is kept is bounded, and sealed as it was read: each blob
//! is proven by its hash when it is taken out.

use std::sync::{Arc, Mutex, PoisonError};

use crate::backend::{BackendError, FileKind};
use crate::error::{Error, Result};
use crate::id::Id;
use crate::index::Found;
use crate::memory::Charge;
use crate::node::{Node, decode_tree};
use crate::pack::open_blob;
use crate::repository::Inner;
use crate::wire::BlobKind;

/// How much of a pack is read at once.
const PIECE: u64 = 1 << 20;
/// Larger blobs are not worth being kept with their neighbours.
const LARGE: u64 = PIECE / 4;
/// How far behind the last read a blob still counts as the next one: several threads ask, and not quite in order.
const NEAR: u64 = PIECE / 2;
/// Memory that an unusually large blob needed is not kept by whoever lends it.
pub(crate) const KEPT: usize = 4 << 20;

/// Reads from one repository, for as long as one operation takes. May be asked by many threads at once.
pub(crate) struct Reader<'a> {
    inner: &'a Inner,
    /// How many pieces are kept, for data and for trees: as many megabytes of memory.
    most: [usize; 2],
    /// The last used at the end.
    recent: [Mutex<Recent>; 2],
}

/// A pack, or one piece of a pack of trees.
type Key = (Id, u64);

type Recent = Vec<(Key, Arc<Mutex<Piece>>)>;

/// What is kept of a pack.
#[derive(Default)]
struct Piece {
    start: u64,
    data: Arc<Vec<u8>>,
    charge: Charge,
    /// Where the next piece is expected to begin; at first, where every pack begins.
    end: u64,
    /// Where the last blob ended that was read alone.
    alone: u64,
}

/// Memory that a caller lends for blobs, again and again.
#[derive(Default)]
pub(crate) struct Scratch {
    sealed: Vec<u8>,
    plain: Vec<u8>,
    charge: Charge,
}

impl Scratch {
    /// Gives back what an unusually large blob needed.
    pub(crate) fn trim(&mut self) {
        for memory in [&mut self.sealed, &mut self.plain] {
            if memory.capacity() > KEPT {
                *memory = Vec::new();
            }
        }
        self.charge.set(self.sealed.capacity() + self.plain.capacity());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // What is kept is proven when it is used, whatever happened to a thread meanwhile.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'a> Reader<'a> {
    pub(crate) fn new(inner: &'a Inner) -> Self {
        Self { inner, most: inner.shares().pieces, recent: Default::default() }
    }

    /// Reads one blob, proven by its hash.
    ///
    /// # Errors
    /// As [`Inner::load_blob`].
    pub(crate) fn load<'s>(
        &self,
        kind: BlobKind,
        id: Id,
        needed_by: &str,
        scratch: &'s mut Scratch,
    ) -> Result<&'s [u8]> {
        let Scratch { sealed, plain, charge } = scratch;
        let found = match self.inner.find_blob(kind, id) {
            Some(found) => match self.read(&found, sealed) {
                Ok(()) => Some(found),
                // Pruned or moved since the index was loaded.
                Err(e) if e.is_not_found() => None,
                Err(e) => return Err(Error::Backend(e)),
            },
            None => None,
        };
        match found {
            Some(found) => {
                let length = found.blob.uncompressed_length as usize;
                charge.begin(&self.inner.account);
                charge.set(sealed.capacity() + plain.capacity().max(length));
                open_blob(&self.inner.key, found.pack, &found.blob, sealed, plain)
            }
            None => {
                *plain = self.inner.load_blob(kind, id, needed_by)?;
                Ok(plain)
            }
        }
    }

    /// Reads one tree.
    ///
    /// # Errors
    /// As [`Inner::load_tree`].
    pub(crate) fn load_tree(&self, id: Id, path: &str) -> Result<Vec<Node>> {
        decode_tree(id, self.load(BlobKind::Tree, id, path, &mut Scratch::default())?)
    }

    /// Reads a blob as it is stored.
    fn read(&self, found: &Found, sealed: &mut Vec<u8>) -> Result<(), BackendError> {
        let (offset, len) = (u64::from(found.blob.offset), u64::from(found.blob.length));
        let from = match found.blob.kind {
            BlobKind::Data => 0,
            BlobKind::Tree => offset / PIECE,
        };
        let piece = self.piece(found.blob.kind, (found.pack, from));
        let (start, data) = {
            let mut piece = lock(&piece);
            if !piece.holds(offset, len) && !self.fill(&mut piece, found, (offset, len)) {
                piece.alone = offset + len;
                drop(piece);
                *sealed =
                    self.inner.backend.read_range(FileKind::Pack, found.pack, offset, found.blob.length as usize)?;
                return Ok(());
            }
            (piece.start, Arc::clone(&piece.data))
        };
        let at = usize::try_from(offset - start).unwrap_or(usize::MAX);
        sealed.clear();
        // It is held, so this is never empty.
        sealed.extend_from_slice(data.get(at..).and_then(|rest| rest.get(..found.blob.length as usize)).unwrap_or(&[]));
        Ok(())
    }

    /// Reads a piece that a blob is in, when that is worth it and possible.
    fn fill(&self, piece: &mut Piece, found: &Found, (offset, len): (u64, u64)) -> bool {
        let near = |end: u64| offset >= end && offset - end < NEAR;
        let (start, wanted) = match found.blob.kind {
            BlobKind::Data => (offset, len < LARGE && (near(piece.end) || near(piece.alone))),
            BlobKind::Tree => (offset / PIECE * PIECE, true),
        };
        let size = self.inner.pack_size(found.pack).unwrap_or(0);
        let end = size.min(start + PIECE);
        if !wanted || offset + len > end {
            return false;
        }
        let wanted = usize::try_from(end - start).unwrap_or(0);
        match self.inner.backend.read_range(FileKind::Pack, found.pack, start, wanted) {
            Ok(data) if data.len() == wanted => {
                let mut charge = std::mem::take(&mut piece.charge);
                charge.begin(&self.inner.account);
                charge.set(data.len());
                *piece = Piece { start, data: Arc::new(data), charge, end, alone: piece.alone };
                true
            }
            // The blob itself may be readable when a neighbour is not; reading it alone tells.
            _ => false,
        }
    }

    /// Finds what is kept under a key, or makes room for it.
    fn piece(&self, kind: BlobKind, key: Key) -> Arc<Mutex<Piece>> {
        let mut recent = lock(&self.recent[kind as usize]);
        let found = match recent.iter().rposition(|(other, _)| *other == key) {
            Some(at) => recent.remove(at).1,
            None => {
                if recent.len() >= self.most[kind as usize] {
                    recent.remove(0);
                }
                Arc::default()
            }
        };
        recent.push((key, Arc::clone(&found)));
        found
    }
}

impl Piece {
    fn holds(&self, offset: u64, len: u64) -> bool {
        offset >= self.start && offset + len <= self.start + self.data.len() as u64
    }
}
