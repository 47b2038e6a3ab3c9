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

use crate::backend::FileKind;
use crate::crypto::{Key, OVERHEAD};
use crate::error::{Error, Result};
use crate::id::Id;
use crate::wire::{BlobKind, IndexBlob};

/// A pack is written once it holds this much: restic's default.
pub(crate) const TARGET_SIZE: usize = 16 << 20;
/// zstd at its fastest regular level: compression is the ceiling of a first snapshot.
const LEVEL: i32 = 1;
/// The next level costs small blobs little, and they gain more by it.
const LEVEL_OF_SMALL: i32 = 2;
const SMALL: usize = 64 << 10;
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
        key.seal_into(if smaller { &self.compressed } else { data }, &mut pack.data);
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

    fn compress(&mut self, data: &[u8]) -> Result<usize> {
        self.compressed.clear();
        self.compressed.reserve(zstd::zstd_safe::compress_bound(data.len()));
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

/// A pack being filled in memory.
#[derive(Default)]
pub(crate) struct PackBuilder {
    data: Vec<u8>,
    blobs: Vec<IndexBlob>,
}

/// A pack ready to be written.
pub(crate) struct FinishedPack {
    pub(crate) id: Id,
    pub(crate) data: Vec<u8>,
    pub(crate) blobs: Vec<IndexBlob>,
}

impl PackBuilder {
    /// Starts in memory that an earlier pack was in.
    pub(crate) fn reusing(mut data: Vec<u8>) -> Self {
        data.clear();
        Self { data, blobs: Vec::new() }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.data.len() >= TARGET_SIZE
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.blobs.is_empty()
    }

    /// Copies a sealed blob out of another pack as it is: blobs do not depend on their pack.
    pub(crate) fn copy_sealed(&mut self, sealed: &[u8], blob: IndexBlob) -> Result<()> {
        let offset = u32::try_from(self.data.len()).map_err(|_| Error::invalid("a pack", "too large"))?;
        self.data.extend_from_slice(sealed);
        self.blobs.push(IndexBlob { offset, ..blob });
        Ok(())
    }

    /// Adds a blob in its stored form, compressed or not as `blob` says, sealed with another key.
    pub(crate) fn add_stored(&mut self, key: &Key, stored: &[u8], blob: &IndexBlob) -> Result<()> {
        let offset = u32::try_from(self.data.len()).map_err(|_| Error::invalid("a pack", "too large"))?;
        key.seal_into(stored, &mut self.data);
        // Sealed it is as long as it was under the other key.
        self.blobs.push(IndexBlob { offset, ..*blob });
        Ok(())
    }

    pub(crate) fn finish(mut self, key: &Key) -> FinishedPack {
        let mut header = Vec::with_capacity(self.blobs.len() * 41);
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
        key.seal_into(&header, &mut self.data);
        // The header of a 16 MiB pack cannot reach 4 GiB.
        let length = u32::try_from(self.data.len() - start).unwrap_or(u32::MAX);
        self.data.extend_from_slice(&length.to_le_bytes());
        FinishedPack { id: Id::of(&self.data), data: self.data, blobs: self.blobs }
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
    let damaged = |reason: &str| Error::damaged(FileKind::Pack, pack, format!("blob {}: {reason}", blob.id));
    let stored = key.open_in_place(sealed).map_err(|_| damaged("authentication failed"))?;
    let content = if blob.uncompressed_length == 0 {
        stored
    } else {
        if blob.uncompressed_length > MAX_BLOB {
            return Err(damaged("unreasonably large"));
        }
        plain.clear();
        plain.reserve(blob.uncompressed_length as usize);
        decompress(stored, plain).map_err(|e| damaged(&format!("decompression failed: {e}")))?;
        plain
    };
    if Id::of(content) != blob.id {
        return Err(damaged("the content has another hash"));
    }
    Ok(content)
}

/// Decompresses into memory that was reserved.
fn decompress(stored: &[u8], plain: &mut Vec<u8>) -> io::Result<usize> {
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
