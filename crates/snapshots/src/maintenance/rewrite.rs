//! What prune and repair have in common: packs and index files that take the place of others, read back before those
//! go.

use crate::backend::FileKind;
use crate::error::{Error, Result};
use crate::id::Id;
use crate::pack::{PackBuilder, parse_header};
use crate::repository::Inner;
use crate::wire::{IndexBlob, IndexFile, IndexPack, MarkedPack};

/// Blobs in one index file: about 10 MiB of JSON.
const BLOBS_PER_INDEX: usize = 50_000;

/// Packs being filled with blobs of others, as they are sealed; data and trees apart.
pub(super) struct Rewriter([PackBuilder; 2]);

fn empty_pack(inner: &Inner) -> PackBuilder {
    PackBuilder::new(inner.shares().pack, (Vec::new(), inner.charge(0)))
}

impl Rewriter {
    pub(super) fn new(inner: &Inner) -> Self {
        Self([empty_pack(inner), empty_pack(inner)])
    }

    /// Adds a blob that was proven; `done` is told of a pack that became full and was written.
    pub(super) fn add(
        &mut self,
        inner: &Inner,
        sealed: &[u8],
        blob: IndexBlob,
        done: &mut Vec<IndexPack>,
    ) -> Result<()> {
        let builder = &mut self.0[blob.kind as usize];
        builder.copy_sealed(sealed, blob)?;
        if builder.is_full() {
            done.push(write_pack(inner, std::mem::replace(builder, empty_pack(inner)))?);
        }
        Ok(())
    }

    /// Writes what is left.
    pub(super) fn finish(self, inner: &Inner, done: &mut Vec<IndexPack>) -> Result<()> {
        for builder in self.0 {
            if !builder.is_empty() {
                done.push(write_pack(inner, builder)?);
            }
        }
        Ok(())
    }
}

/// Writes a pack and reads it back: what it replaces is about to go.
fn write_pack(inner: &Inner, builder: PackBuilder) -> Result<IndexPack> {
    let pack = builder.finish(&inner.key);
    inner.backend.write(FileKind::Pack, pack.id, &pack.data)?;
    inner.backend.drop_caches(FileKind::Pack, pack.id)?;
    let _read = inner.charge(2 * pack.data.len());
    let data = inner.backend.read(FileKind::Pack, pack.id)?;
    if Id::of(&data) != pack.id || parse_header(&inner.key, pack.id, &data)? != pack.blobs {
        return Err(Error::damaged(FileKind::Pack, pack.id, "it was not written as it was sent"));
    }
    Ok(IndexPack { id: pack.id, blobs: pack.blobs })
}

/// Writes index files that name exactly this, and reads them back.
pub(super) fn write_indexes(inner: &Inner, packs: Vec<IndexPack>, marks: Vec<MarkedPack>) -> Result<Vec<Id>> {
    let mut ids = Vec::new();
    let mut file = IndexFile::default();
    let mut blobs = 0;
    let mut write = |file: IndexFile| -> Result<()> {
        let id = inner.save_json(FileKind::Index, &file)?;
        inner.backend.drop_caches(FileKind::Index, id)?;
        inner.load_json::<IndexFile>(FileKind::Index, id)?;
        ids.push(id);
        Ok(())
    };
    for pack in packs {
        blobs += pack.blobs.len();
        file.packs.push(pack);
        if blobs >= BLOBS_PER_INDEX {
            write(std::mem::take(&mut file))?;
            blobs = 0;
        }
    }
    for pack in marks {
        blobs += pack.blobs.len().max(1);
        file.packs_to_delete.push(pack);
        if blobs >= BLOBS_PER_INDEX {
            write(std::mem::take(&mut file))?;
            blobs = 0;
        }
    }
    if !file.packs.is_empty() || !file.packs_to_delete.is_empty() {
        write(file)?;
    }
    Ok(ids)
}
