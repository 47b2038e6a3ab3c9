//! Pack files: blobs in a row, then an encrypted header that lists them, then the header's length.
//!
//! ```text
//! sealed blob … sealed blob   sealed header   u32 LE length of the sealed header
//! header entry: type (0 data, 1 tree, 2 compressed data, 3 compressed tree), u32 LE sealed length,
//!               u32 LE plain length (types 2 and 3 only), 32 bytes id
//! ```
//! Data and trees go to different packs, so that reading all trees does not mean reading all data.

use std::cell::RefCell;
use std::io;
use std::ops::Range;

use zstd::zstd_safe::WriteBuf;

use crate::backend::FileKind;
use crate::chunker;
use crate::crypto::{Key, OVERHEAD, opened_text};
use crate::error::{Error, Result};
use crate::id::Id;
use crate::memory::{Charge, make_room};
use crate::wire::{BlobKind, IndexBlob};

/// A pack is written once it holds this much: restic's default.
pub(crate) const TARGET_SIZE: usize = 16 << 20;
/// A pack is written once it holds so many blobs, however small they are: its header is 2.7 MB then, and restic reads none of more
/// than 16 MiB. What names them in an index is kept in memory meanwhile.
pub(crate) const MOST_BLOBS: usize = 1 << 16;
/// zstd at its fastest regular level: compression is the ceiling of a first snapshot.
const LEVEL: i32 = 1;
/// The next level costs small blobs little, and they gain more by it.
const LEVEL_OF_SMALL: i32 = 2;
const SMALL: usize = 64 << 10;
/// The longest entry of a header.
const HEADER_ENTRY: usize = 41;
/// Blobs from this size on are only compressed when a part of them shrinks.
const SAMPLE_FROM: usize = 64 << 10;
const SAMPLE: usize = 4 << 10;
/// No single blob comes near this; a larger claim is an error and not a reason to allocate.
const MAX_BLOB: u32 = 512 << 20;

/// Compresses and encrypts blobs; each worker has its own.
pub(crate) struct Sealer {
    compressor: zstd::bulk::Compressor<'static>,
    compressed: Vec<u8>,
}

impl Sealer {
    pub(crate) fn new() -> Result<Self> {
        let compressor = zstd::bulk::Compressor::new(LEVEL)
            .map_err(|source| Error::System { doing: "start compression", source })?;
        Ok(Self { compressor, compressed: Vec::new() })
    }

    /// Appends a blob to a pack and returns how many bytes it took.
    pub(crate) fn add(
        &mut self,
        pack: &mut PackBuilder,
        key: &Key,
        kind: BlobKind,
        id: Id,
        data: &[u8],
    ) -> Result<u64> {
        let offset = pack.data.len();
        // What does not shrink is kept as it is: the format marks each blob.
        let smaller = self.may_shrink(data)? && self.compress(data)? < data.len();
        let stored = if smaller { &self.compressed } else { data };
        pack.make_room(stored.len());
        key.seal_into(stored, &mut pack.data);
        let too_large = || Error::invalid(format!("blob {id}"), "too large for a pack");
        let blob = IndexBlob {
            id,
            kind,
            offset: u32::try_from(offset).map_err(|_| too_large())?,
            length: u32::try_from(pack.data.len() - offset).map_err(|_| too_large())?,
            uncompressed_length: if smaller { u32::try_from(data.len()).map_err(|_| too_large())? } else { 0 },
        };
        pack.blobs.push(blob);
        Ok(u64::from(blob.length))
    }

    /// Memory that it keeps for the next blob, in bytes.
    pub(crate) fn memory(&self) -> usize {
        self.compressed.capacity()
    }

    fn compress(&mut self, data: &[u8]) -> Result<usize> {
        self.compressed.clear();
        make_room(&mut self.compressed, zstd::zstd_safe::compress_bound(data.len()), chunker::MAX);
        self.compressor
            .set_compression_level(if data.len() <= SMALL { LEVEL_OF_SMALL } else { LEVEL })
            .and_then(|()| self.compressor.compress_to_buffer(data, &mut self.compressed))
            .map_err(|source| Error::System { doing: "compress", source })
    }

    /// Media and archives do not shrink, which a few pages of them show at a fraction of the cost.
    fn may_shrink(&mut self, data: &[u8]) -> Result<bool> {
        if data.len() < SAMPLE_FROM {
            return Ok(true);
        }
        for part in 1..4 {
            let start = data.len() / 4 * part;
            if self.compress(&data[start..start + SAMPLE])? < SAMPLE - SAMPLE / 32 {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// When a pack is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PackSize {
    /// Bytes of its blobs.
    pub(crate) bytes: usize,
    /// Their number.
    pub(crate) blobs: usize,
}

impl Default for PackSize {
    fn default() -> Self {
        Self { bytes: TARGET_SIZE, blobs: MOST_BLOBS }
    }
}

impl PackSize {
    /// The name of a blob while its pack is not in an index file yet.
    pub(crate) const MEMORY_OF_BLOB: usize = size_of::<IndexBlob>();

    /// A pack of so many bytes, within what is reasonable: restic makes none below 4 MiB.
    pub(crate) fn of(bytes: usize) -> Self {
        let bytes = bytes.clamp(TARGET_SIZE / 4, TARGET_SIZE);
        Self { bytes, blobs: bytes / (TARGET_SIZE / MOST_BLOBS) }
    }

    /// The most that such a pack takes: with one large blob after it was nearly full, and its header.
    pub(crate) const fn most_bytes(self) -> usize {
        self.bytes + chunker::MAX + OVERHEAD + self.blobs * HEADER_ENTRY + OVERHEAD + 4
    }
}

/// A pack being filled in memory.
#[derive(Default)]
pub(crate) struct PackBuilder {
    data: Vec<u8>,
    blobs: Vec<IndexBlob>,
    size: PackSize,
    charge: Charge,
}

/// A pack ready to be written.
pub(crate) struct FinishedPack {
    pub(crate) id: Id,
    pub(crate) data: Vec<u8>,
    pub(crate) blobs: Vec<IndexBlob>,
    /// For all of it.
    pub(crate) charge: Charge,
}

impl PackBuilder {
    /// Starts one of such a size, in memory that an earlier pack was in.
    pub(crate) fn new(size: PackSize, (mut data, mut charge): (Vec<u8>, Charge)) -> Self {
        data.clear();
        charge.set(data.capacity());
        Self { data, blobs: Vec::new(), size, charge }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.data.len() >= self.size.bytes || self.blobs.len() >= self.size.blobs
    }

    /// Makes room for a blob of so many bytes.
    fn make_room(&mut self, length: usize) {
        make_room(&mut self.data, length + OVERHEAD, self.size.most_bytes());
        self.charge.set(self.data.capacity() + self.blobs.capacity() * PackSize::MEMORY_OF_BLOB);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.blobs.is_empty()
    }

    /// Copies a sealed blob out of another pack as it is: blobs do not depend on their pack.
    pub(crate) fn copy_sealed(&mut self, sealed: &[u8], blob: IndexBlob) -> Result<()> {
        let offset = u32::try_from(self.data.len()).map_err(|_| Error::invalid("a pack", "too large"))?;
        self.make_room(sealed.len());
        self.data.extend_from_slice(sealed);
        self.blobs.push(IndexBlob { offset, ..blob });
        Ok(())
    }

    /// Adds a blob in its stored form, compressed or not as `blob` says, sealed with another key.
    pub(crate) fn add_stored(&mut self, key: &Key, stored: &[u8], blob: &IndexBlob) -> Result<()> {
        let offset = u32::try_from(self.data.len()).map_err(|_| Error::invalid("a pack", "too large"))?;
        self.make_room(stored.len());
        key.seal_into(stored, &mut self.data);
        // Sealed it is as long as it was under the other key.
        self.blobs.push(IndexBlob { offset, ..*blob });
        Ok(())
    }

    pub(crate) fn finish(mut self, key: &Key) -> FinishedPack {
        let mut header = Vec::with_capacity(self.blobs.len() * HEADER_ENTRY);
        for blob in &self.blobs {
            let base = u8::from(blob.kind == BlobKind::Tree);
            if blob.uncompressed_length == 0 {
                header.push(base);
                header.extend_from_slice(&blob.length.to_le_bytes());
            } else {
                header.push(base + 2);
                header.extend_from_slice(&blob.length.to_le_bytes());
                header.extend_from_slice(&blob.uncompressed_length.to_le_bytes());
            }
            header.extend_from_slice(blob.id.as_bytes());
        }
        let start = self.data.len();
        self.make_room(header.len() + 4);
        key.seal_into(&header, &mut self.data);
        // The header of a 16 MiB pack cannot reach 4 GiB.
        let length = u32::try_from(self.data.len() - start).unwrap_or(u32::MAX);
        self.data.extend_from_slice(&length.to_le_bytes());
        self.charge.set(self.data.capacity() + self.blobs.capacity() * PackSize::MEMORY_OF_BLOB);
        FinishedPack { id: Id::of(&self.data), data: self.data, blobs: self.blobs, charge: self.charge }
    }
}

/// Computes the size a pack must have from what the index says about it.
pub(crate) fn expected_size<'a>(blobs: impl IntoIterator<Item = &'a IndexBlob>) -> u64 {
    let mut size = 4 + OVERHEAD as u64;
    for blob in blobs {
        size += u64::from(blob.length) + if blob.uncompressed_length == 0 { 37 } else { 41 };
    }
    size
}

/// Parses the header of a complete pack.
pub(crate) fn parse_header(key: &Key, id: Id, pack: &[u8]) -> Result<Vec<IndexBlob>> {
    let damaged = |reason: &str| Error::damaged(FileKind::Pack, id, reason);
    let (rest, length) = pack.split_last_chunk::<4>().ok_or_else(|| damaged("shorter than a header's length"))?;
    let length = u32::from_le_bytes(*length) as usize;
    let start = rest.len().checked_sub(length).ok_or_else(|| damaged("the header is longer than the pack"))?;
    let header = key.open(&rest[start..]).map_err(|_| damaged("the header fails authentication"))?;
    let mut blobs = Vec::new();
    let mut offset = 0_u32;
    let mut rest = header.as_slice();
    while let Some((&kind, tail)) = rest.split_first() {
        let short = || damaged("the header ends within an entry");
        let (length, tail) = tail.split_first_chunk::<4>().ok_or_else(short)?;
        let length = u32::from_le_bytes(*length);
        let (plain, tail) = match kind {
            0 | 1 => (0, tail),
            2 | 3 => tail.split_first_chunk::<4>().map(|(n, t)| (u32::from_le_bytes(*n), t)).ok_or_else(short)?,
            _ => return Err(damaged("unknown type of blob")),
        };
        let (blob, tail) = tail.split_first_chunk::<32>().ok_or_else(short)?;
        let kind = if kind & 1 == 0 { BlobKind::Data } else { BlobKind::Tree };
        blobs.push(IndexBlob { id: Id(*blob), kind, offset, length, uncompressed_length: plain });
        offset = offset.checked_add(length).ok_or_else(|| damaged("blobs add up to more than a pack"))?;
        rest = tail;
    }
    if offset as usize != start {
        return Err(damaged("the blobs do not fill the pack"));
    }
    Ok(blobs)
}

thread_local! {
    /// Making one costs more than opening a small blob with it.
    static DECOMPRESSOR: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
}

/// Decrypts and decompresses a blob and proves by its hash that it is the right one.
///
/// The blob is decrypted where it lies; the result is there or, for a compressed blob, in `plain`, whose memory is used
/// again.
pub(crate) fn open_blob<'b>(
    key: &Key,
    pack: Id,
    blob: &IndexBlob,
    sealed: &'b mut [u8],
    plain: &'b mut Vec<u8>,
) -> Result<&'b [u8]> {
    let stored = open_stored(key, pack, blob, sealed)?;
    let content = if blob.uncompressed_length == 0 {
        stored
    } else {
        plain.clear();
        plain.reserve(blob.uncompressed_length as usize);
        decompress(stored, plain).map_err(|e| damaged(pack, blob, &format!("decompression failed: {e}")))?;
        plain
    };
    if Id::of(content) != blob.id {
        return Err(damaged(pack, blob, "the content has another hash"));
    }
    Ok(content)
}

/// So much content of blobs that were opened waits for its hashes: as much as stays in a processor's cache.
const TOGETHER: usize = 256 << 10;

/// Opens blobs of a pack as [`open_blob`] does, and proves each by its hash. Nothing is left of them but the proof.
///
/// `pack` is a whole pack, and the blobs, which do not overlap, are decrypted where they lie. The memory of `plain` is used
/// again and again.
pub(crate) fn prove_blobs(
    key: &Key,
    id: Id,
    mut blobs: &[IndexBlob],
    pack: &mut [u8],
    plain: &mut Vec<u8>,
) -> Result<()> {
    let place = |blob: &IndexBlob| blob.offset as usize..blob.offset as usize + blob.length as usize;
    while !blobs.is_empty() {
        // Where the content of each is in `plain`; none: it is not compressed, and lies in the pack.
        let mut opened = Vec::new();
        let (mut used, mut waiting) = (0, 0);
        for blob in blobs {
            let sealed = pack.get_mut(place(blob)).ok_or_else(|| damaged(id, blob, "it lies outside of the pack"))?;
            let stored = open_stored(key, id, blob, sealed)?;
            let length = blob.uncompressed_length as usize;
            let content = if length == 0 {
                waiting += stored.len();
                None
            } else {
                if plain.len() < used + length {
                    plain.resize(used + length, 0);
                }
                let into = &mut plain[used..used + length];
                let got =
                    decompress(stored, into).map_err(|e| damaged(id, blob, &format!("decompression failed: {e}")))?;
                let content = used..used + got;
                used += length;
                waiting += length;
                Some(content)
            };
            opened.push(content);
            // A large one is worth a second beside it.
            if waiting >= TOGETHER && opened.len() > 1 || waiting >= TARGET_SIZE {
                break;
            }
        }
        let (together, rest) = blobs.split_at(opened.len());
        let content = |(blob, content): (&IndexBlob, &Option<Range<usize>>)| match content {
            Some(content) => &plain[content.clone()],
            None => opened_text(&pack[place(blob)]),
        };
        let contents: Vec<&[u8]> = together.iter().zip(&opened).map(content).collect();
        if let Some((blob, _)) = together.iter().zip(Id::of_each(&contents)).find(|(blob, found)| blob.id != *found) {
            return Err(damaged(id, blob, "the content has another hash"));
        }
        blobs = rest;
    }
    Ok(())
}

fn damaged(pack: Id, blob: &IndexBlob, reason: &str) -> Error {
    Error::damaged(FileKind::Pack, pack, format!("blob {}: {reason}", blob.id))
}

/// Authenticates a blob and decrypts it where it lies; what it claims to unpack to is no more than can be.
fn open_stored<'b>(key: &Key, pack: Id, blob: &IndexBlob, sealed: &'b mut [u8]) -> Result<&'b [u8]> {
    let stored = key.open_in_place(sealed).map_err(|_| damaged(pack, blob, "authentication failed"))?;
    if blob.uncompressed_length > MAX_BLOB { Err(damaged(pack, blob, "unreasonably large")) } else { Ok(stored) }
}

/// Decompresses into memory that is large enough; returns how much it is.
pub(crate) fn decompress<M: WriteBuf + ?Sized>(stored: &[u8], plain: &mut M) -> io::Result<usize> {
    DECOMPRESSOR.with_borrow_mut(|slot| {
        let decompressor = match slot {
            Some(decompressor) => decompressor,
            None => slot.insert(zstd::bulk::Decompressor::new()?),
        };
        decompressor.decompress_to_buffer(stored, plain)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_blob_of_a_pack_is_proven_however_many_are_opened_together() {
        let key = Key::random();
        let (mut sealer, mut pack) = (Sealer::new().expect("a compressor"), PackBuilder::default());
        let noise = |of: u64| (0..of).flat_map(|i| *Id::of(&i.to_le_bytes()).as_bytes()).collect::<Vec<u8>>();
        let text = |times: usize| b"the same again and ".repeat(times);
        // More than fit together, alone and in a row, packed and not.
        let contents = [text(3), noise(9_000), text(20_000), noise(20), vec![], noise(12_000), noise(1), text(40_000)];
        for content in &contents {
            sealer.add(&mut pack, &key, BlobKind::Data, Id::of(content), content).expect("sealed");
        }
        let finished = pack.finish(&key);
        let blobs = parse_header(&key, finished.id, &finished.data).expect("a header");
        let prove =
            |blobs: &[IndexBlob], mut data: Vec<u8>| prove_blobs(&key, finished.id, blobs, &mut data, &mut Vec::new());
        prove(&blobs, finished.data.clone()).expect("as it was written");
        for at in 0..blobs.len() {
            // Authentic, and another content than its name says.
            let mut wrong = blobs.clone();
            wrong[at].id = Id([7; 32]);
            let error = prove(&wrong, finished.data.clone()).expect_err("another hash").to_string();
            assert!(error.contains(&Id([7; 32]).to_string()) && error.contains("another hash"), "{error}");
            let mut damaged = finished.data.clone();
            damaged[blobs[at].offset as usize + 20] ^= 1;
            let error = prove(&blobs, damaged).expect_err("damaged").to_string();
            assert!(error.contains(&blobs[at].id.to_string()), "{error}");
        }
    }

    #[test]
    fn what_does_not_shrink_is_stored_as_it_is_and_comes_back_like_the_rest() {
        let noise: Vec<u8> = (0_u64..16_384).flat_map(|i| *Id::of(&i.to_le_bytes()).as_bytes()).collect();
        let text = b"the same again and ".repeat(20_000);
        // Only one of the three parts that are looked at shrinks.
        let mixed = [&noise[..], &text[..], &noise[..]].concat();
        let key = Key::random();
        let (mut sealer, mut pack) = (Sealer::new().expect("a compressor"), PackBuilder::default());
        let contents = [&noise[..], &text, &mixed, b"short", b""];
        for content in contents {
            sealer.add(&mut pack, &key, BlobKind::Data, Id::of(content), content).expect("sealed");
        }
        let mut finished = pack.finish(&key);
        let blobs = parse_header(&key, finished.id, &finished.data).expect("a header");
        assert_eq!(
            blobs.iter().map(|b| b.uncompressed_length != 0).collect::<Vec<_>>(),
            [false, true, true, false, false]
        );
        let mut plain = Vec::new();
        for (blob, content) in blobs.iter().zip(contents) {
            let sealed = &mut finished.data[blob.offset as usize..][..blob.length as usize];
            let opened = open_blob(&key, finished.id, blob, sealed, &mut plain).expect("opened");
            assert!(opened == content);
        }
    }
}
