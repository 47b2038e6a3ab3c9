//! Pruning: deletes what no snapshot needs, in an order in which a crash loses nothing.
//!
//! Everything is planned first, from indexes, packs and snapshots as the store lists them under an exclusive lock;
//! a snapshot that cannot be read or lacks a blob stops it (P32: a damaged repository is no reason to delete more).
//! Then: needed blobs of partly used packs are written to new packs and read back; a complete new index is written
//! and read back; old index files are removed; packs are removed last.

use std::collections::{HashMap, HashSet};

use perennial_core::progress::Progress;

use super::Mode;
use crate::backend::FileKind;
use crate::error::{Error, Result};
use crate::id::{Id, SnapshotFileId};
use crate::index::{IdMap, IdSet};
use crate::lock::{LockGuard, LockMode};
use crate::pack::{PackBuilder, expected_size, open_blob, parse_header};
use crate::repository::{Inner, Repository};
use crate::wire::{BlobKind, IndexBlob, IndexFile, IndexPack};

/// A pack is rewritten when this share of it is unused, in percent: rewriting costs more than some waste.
const REPACK_FROM_PERCENT: u64 = 10;
/// Packs below this are small; when there are [`MERGE_FROM`] of a kind, they are merged.
const SMALL: u64 = 4 << 20;
const MERGE_FROM: usize = 8;
/// Blobs in one index file: about 10 MiB of JSON.
const BLOBS_PER_INDEX: usize = 50_000;

/// Why a pack goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PruneReason {
    /// No snapshot needs anything in it.
    Unused,
    /// No index names it: an upload was interrupted.
    NotIndexed,
    /// What is needed of it goes to a new pack, because too much of it is not needed.
    PartlyUsed,
    /// It is merged with other small ones.
    Small,
}

/// A pack that goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DoomedPack {
    /// The pack.
    pub id: Id,
    /// Its size in bytes.
    pub size: u64,
    /// Bytes of blobs in it that are needed and move to a new pack.
    pub moved: u64,
    /// Why it goes.
    pub reason: PruneReason,
}

/// What a prune did, or would do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PruneReport {
    /// Snapshots in the repository; everything they need stays.
    pub snapshots: u64,
    /// Blobs that are needed.
    pub blobs_needed: u64,
    /// Packs that stay as they are.
    pub packs_kept: u64,
    /// Packs that go.
    pub doomed: Vec<DoomedPack>,
    /// Index files that are replaced by new ones.
    pub indexes_replaced: u64,
    /// Bytes freed, rewritten ones taken off.
    pub freed_bytes: u64,
}

type BlobKey = (BlobKind, Id);

struct Plan {
    keep: Vec<IndexPack>,
    /// Packs to take blobs out of, with those blobs.
    repack: Vec<(Id, Vec<IndexBlob>)>,
    old_indexes: Vec<Id>,
    report: PruneReport,
}

impl Repository {
    /// Deletes packs, blobs and index files that no snapshot needs.
    ///
    /// # Errors
    /// [`Error::Locked`] while anybody else works on the repository; [`Error::MissingBlob`] or [`Error::Damaged`] when
    /// a snapshot is not complete, and then nothing is changed; [`Error::LockLost`]; store errors.
    pub fn prune(&self, mode: Mode, progress: &Progress) -> Result<PruneReport> {
        let inner = &*self.inner;
        progress.check()?;
        let guard = LockGuard::acquire(&self.inner, LockMode::Exclusive)?;
        inner.refresh_index()?;
        let plan = plan(inner, progress)?;
        if mode == Mode::Execute {
            inner.backend.remove_leftovers()?;
        }
        let nothing_to_do = plan.report.doomed.is_empty() && plan.report.indexes_replaced == 0;
        if mode == Mode::DryRun || nothing_to_do {
            return Ok(plan.report);
        }
        let report = execute(inner, &guard, plan, progress)?;
        inner.refresh_index()?;
        Ok(report)
    }
}

/// Every blob that any snapshot needs; fails when one is not there.
fn needed_blobs(inner: &Inner, progress: &Progress) -> Result<(u64, HashSet<BlobKey>)> {
    let mut needed = HashSet::new();
    let snapshots = inner.backend.list(FileKind::Snapshot)?;
    for info in &snapshots {
        let file = inner.load_snapshot(SnapshotFileId(info.id))?;
        let mut stack = vec![file.tree];
        while let Some(tree) = stack.pop() {
            // A tree met before was walked before, with everything below it.
            if !needed.insert((BlobKind::Tree, tree)) {
                continue;
            }
            progress.check()?;
            let place = format!("snapshot {}", info.id);
            for node in inner.load_tree(tree, &place)? {
                stack.extend(node.subtree);
                for blob in node.content {
                    if inner.find_blob(BlobKind::Data, blob).is_none() {
                        return Err(Error::MissingBlob { blob, needed_by: place });
                    }
                    needed.insert((BlobKind::Data, blob));
                }
            }
        }
    }
    Ok((snapshots.len() as u64, needed))
}

fn plan(inner: &Inner, progress: &Progress) -> Result<Plan> {
    let (snapshots, needed) = needed_blobs(inner, progress)?;
    let mut report = PruneReport { snapshots, blobs_needed: needed.len() as u64, ..PruneReport::default() };
    let present = inner.list_packs()?;
    let mut old_indexes = Vec::new();
    let mut indexed: IdMap<Vec<IndexBlob>> = IdMap::default();
    let mut stale_entries = false;
    for info in inner.backend.list(FileKind::Index)? {
        old_indexes.push(info.id);
        match inner.load_json::<IndexFile>(FileKind::Index, info.id) {
            Ok(file) => {
                for pack in file.packs {
                    let intact = present.get(&pack.id) == Some(&expected_size(&pack.blobs));
                    let doubled = intact && indexed.insert(pack.id, pack.blobs).is_some();
                    stale_entries |= !intact || doubled;
                }
            }
            // All snapshots are complete without it.
            Err(Error::Damaged { .. }) => stale_entries = true,
            Err(e) => return Err(e),
        }
    }
    let mut small = HashMap::new();
    for (id, blobs) in &indexed {
        if let Some(blob) = blobs.first()
            && present.get(id).is_some_and(|size| *size < SMALL)
        {
            *small.entry(blob.kind).or_insert(0_usize) += 1;
        }
    }
    let mut homes: HashSet<BlobKey> = HashSet::new();
    let mut keep = Vec::new();
    let mut repack = Vec::new();
    let mut packs: Vec<_> = indexed.into_iter().collect();
    // Large packs first, so that of a blob that is there twice, the copy in the small pack goes.
    packs.sort_by_key(|(id, _)| (std::cmp::Reverse(present.get(id).copied()), *id));
    for (id, blobs) in packs {
        let size = present.get(&id).copied().unwrap_or(0);
        let used: Vec<IndexBlob> = blobs
            .iter()
            .filter(|b| needed.contains(&(b.kind, b.id)) && homes.insert((b.kind, b.id)))
            .copied()
            .collect();
        let moved: u64 = used.iter().map(|b| u64::from(b.length)).sum();
        let all: u64 = blobs.iter().map(|b| u64::from(b.length)).sum();
        let mixed = blobs.windows(2).any(|pair| pair[0].kind != pair[1].kind);
        let is_small = size < SMALL && blobs.first().is_some_and(|b| small.get(&b.kind) >= Some(&MERGE_FROM));
        let reason = if used.is_empty() {
            PruneReason::Unused
        } else if mixed || (all - moved) * 100 >= all * REPACK_FROM_PERCENT {
            PruneReason::PartlyUsed
        } else if is_small {
            PruneReason::Small
        } else {
            report.packs_kept += 1;
            keep.push(IndexPack { id, blobs });
            continue;
        };
        report.freed_bytes += size - moved.min(size);
        report.doomed.push(DoomedPack { id, size, moved, reason });
        if !used.is_empty() {
            repack.push((id, used));
        }
    }
    // What the index in memory knows and the index files do not would be deleted with packs that look abandoned.
    if let Some((_, blob)) = needed.iter().find(|key| !homes.contains(*key)) {
        return Err(Error::MissingBlob { blob: *blob, needed_by: "a snapshot, according to the index files".into() });
    }
    let known: IdSet = keep.iter().map(|p| p.id).chain(report.doomed.iter().map(|p| p.id)).collect();
    for (id, size) in &present {
        if !known.contains(id) {
            report.freed_bytes += size;
            report.doomed.push(DoomedPack { id: *id, size: *size, moved: 0, reason: PruneReason::NotIndexed });
        }
    }
    if stale_entries || report.doomed.iter().any(|p| p.reason != PruneReason::NotIndexed) {
        report.indexes_replaced = old_indexes.len() as u64;
    }
    Ok(Plan { keep, repack, old_indexes, report })
}

fn execute(inner: &Inner, guard: &LockGuard, plan: Plan, progress: &Progress) -> Result<PruneReport> {
    let Plan { mut keep, repack, old_indexes, report } = plan;
    let mut builders: [PackBuilder; 2] = Default::default();
    let mut plain = Vec::new();
    for (id, blobs) in repack {
        progress.check()?;
        let data = inner.backend.read(FileKind::Pack, id)?;
        for blob in blobs {
            let sealed = data
                .get(blob.offset as usize..blob.offset as usize + blob.length as usize)
                .ok_or_else(|| Error::damaged(FileKind::Pack, id, "shorter than its index says"))?;
            // A damaged blob stops the prune here, while its old pack is still there to be rescued.
            open_blob(&inner.key, id, &blob, &mut sealed.to_vec(), &mut plain)?;
            let builder = &mut builders[blob.kind as usize];
            builder.copy_sealed(sealed, blob)?;
            if builder.is_full() {
                let full = std::mem::take(builder);
                keep.push(write_pack(inner, full)?);
            }
        }
    }
    for builder in builders {
        if !builder.is_empty() {
            keep.push(write_pack(inner, builder)?);
        }
    }
    if report.indexes_replaced > 0 {
        let new_indexes = write_indexes(inner, keep)?;
        for id in old_indexes.iter().filter(|id| !new_indexes.contains(id)) {
            guard.ensure()?;
            inner.backend.remove(FileKind::Index, *id)?;
        }
    }
    for pack in &report.doomed {
        guard.ensure()?;
        inner.backend.remove(FileKind::Pack, pack.id)?;
    }
    Ok(report)
}

/// Writes a pack and reads it back: what it replaces is about to be deleted.
fn write_pack(inner: &Inner, builder: PackBuilder) -> Result<IndexPack> {
    let pack = builder.finish(&inner.key);
    inner.backend.write(FileKind::Pack, pack.id, &pack.data)?;
    inner.backend.drop_caches(FileKind::Pack, pack.id)?;
    let data = inner.backend.read(FileKind::Pack, pack.id)?;
    if Id::of(&data) != pack.id || parse_header(&inner.key, pack.id, &data)? != pack.blobs {
        return Err(Error::damaged(FileKind::Pack, pack.id, "it was not written as it was sent"));
    }
    Ok(IndexPack { id: pack.id, blobs: pack.blobs })
}

fn write_indexes(inner: &Inner, packs: Vec<IndexPack>) -> Result<Vec<Id>> {
    let mut ids = Vec::new();
    let mut file = IndexFile::default();
    let mut blobs = 0;
    let write = |file: &IndexFile| -> Result<Id> {
        let id = inner.save_json(FileKind::Index, file)?;
        inner.backend.drop_caches(FileKind::Index, id)?;
        inner.load_json::<IndexFile>(FileKind::Index, id)?;
        Ok(id)
    };
    for pack in packs {
        blobs += pack.blobs.len();
        file.packs.push(pack);
        if blobs >= BLOBS_PER_INDEX {
            ids.push(write(&std::mem::take(&mut file))?);
            blobs = 0;
        }
    }
    if !file.packs.is_empty() {
        ids.push(write(&file)?);
    }
    Ok(ids)
}
