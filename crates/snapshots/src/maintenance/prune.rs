//! Pruning: deletes what no snapshot needs, in an order in which a crash loses nothing.
//!
//! Everything is planned first, from indexes, packs and snapshots as the store lists them under an exclusive lock, so
//! that no upload of anybody is under way; a snapshot that cannot be read or lacks a blob stops it (P32: a damaged
//! repository is no reason to delete more). Then: needed blobs of partly used packs are written to new packs and read
//! back; a complete new index is written and read back; old index files are removed; packs are removed last.
//!
//! What a store leaves out of a listing must not count as absent. Snapshots are listed again before anything goes, and one
//! that shows up then ends the prune, as does one that an earlier prune of this handle saw and that is still in its place; index
//! files are held against those in memory; and a pack that an index names is looked at itself.
//!
//! What is needed is marked in the index in memory, and every mark is found again or nothing goes: a set of its own takes as
//! much memory as half the index, and grows by leaps.
//!
//! With a grace time there are two phases. What nothing needs is only marked in the index: from then on no upload
//! builds on it, and it is still there. A prune after the grace time deletes it, unless a snapshot needs it by then,
//! which takes the mark back. So an upload whose lock was lost, or a store that listed a snapshot late, costs nothing.

use std::collections::{HashMap, HashSet};
use std::sync::{PoisonError, RwLockWriteGuard, TryLockError};

use jiff::{SignedDuration, Timestamp};
use perennial_core::progress::Progress;

use super::Mode;
use super::rewrite::{Rewriter, write_indexes};
use crate::backend::{FileInfo, FileKind};
use crate::error::{Error, Result};
use crate::id::Id;
use crate::index::{IdMap, IdSet, Index, Origin};
use crate::lock::{LockGuard, LockMode};
use crate::pack::{expected_size, open_blob};
use crate::repository::{Inner, Repository};
use crate::wire::{BlobKind, IndexBlob, IndexFile, IndexPack, MarkedPack, SnapshotFile};

/// A pack is rewritten when this share of it is unused, in percent: rewriting costs more than some waste.
const REPACK_FROM_PERCENT: u64 = 10;
/// Packs below this are small; when there are [`MERGE_FROM`] of a kind, they are merged.
const SMALL: u64 = 4 << 20;
const MERGE_FROM: usize = 8;
/// A mark this far ahead of the clock says that a clock was wrong: its time begins anew.
const CLOCK_ERROR: SignedDuration = SignedDuration::from_hours(1);

/// How a prune goes about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PruneRequest {
    /// Whether anything is done.
    pub mode: Mode,
    /// How long packs that nothing needs are only marked; zero: they, and all that were marked before, go now.
    pub grace: SignedDuration,
    /// The present time, by the same clock from prune to prune.
    pub now: Timestamp,
    /// Bytes of packs to take apart at most; partly used packs beyond stay for the next prune.
    pub rewrite_at_most: u64,
}

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

/// A pack that nothing needs as it is.
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
    /// Packs that go: now, or with a grace time when it is over.
    pub doomed: Vec<DoomedPack>,
    /// Packs that an earlier prune marked and that go now.
    pub expired: Vec<Id>,
    /// Packs that are marked and stay until their grace time is over.
    pub waiting: u64,
    /// Packs that were marked, and that a snapshot needs after all.
    pub recovered: u64,
    /// Partly used packs that stay for the next prune, because this one does not take more apart.
    pub postponed: u64,
    /// Index files that are replaced by new ones.
    pub indexes_replaced: u64,
    /// Bytes freed now, rewritten ones taken off.
    pub freed_bytes: u64,
}

struct Plan {
    /// What was planned for.
    snapshots: HashSet<Id>,
    keep: Vec<IndexPack>,
    /// Packs to take blobs out of, with those blobs.
    repack: Vec<(Id, Vec<IndexBlob>)>,
    /// The marks of the new index.
    marks: Vec<MarkedPack>,
    /// What is deleted at the end.
    delete: Vec<Id>,
    old_indexes: Vec<Id>,
    report: PruneReport,
}

impl Repository {
    /// Deletes packs, blobs and index files that no snapshot needs, marked ones included, at once.
    ///
    /// # Errors
    /// As [`prune_with`](Self::prune_with).
    pub fn prune(&self, mode: Mode, progress: &Progress) -> Result<PruneReport> {
        let now = Timestamp::now();
        self.prune_with(&PruneRequest { mode, grace: SignedDuration::ZERO, now, rewrite_at_most: u64::MAX }, progress)
    }

    /// Marks packs that no snapshot needs, and deletes those whose grace time is over.
    ///
    /// # Errors
    /// [`Error::Locked`] while anybody else works on the repository; [`Error::MissingBlob`] or [`Error::Damaged`] when
    /// a snapshot is not complete, or was set aside, and then nothing is deleted; [`Error::Unsteady`] when a listing left something
    /// out; [`Error::LockLost`]; store errors. The same call again
    /// goes on where an interrupted one was.
    pub fn prune_with(&self, request: &PruneRequest, progress: &Progress) -> Result<PruneReport> {
        let inner = &*self.inner;
        progress.check()?;
        let guard = LockGuard::acquire(&self.inner, LockMode::Exclusive)?;
        refuse_beside_lost_snapshots(inner)?;
        inner.refresh_index()?;
        let mut recovered = HashSet::new();
        let mut plan = loop {
            match plan(inner, request, progress) {
                // One that is missing all the same is in no pack that can be told.
                Err(Error::MissingBlob { blob, needed_by })
                    if request.mode == Mode::Execute && recovered.insert(blob) =>
                {
                    recover(inner, blob, needed_by)?;
                }
                other => break other?,
            }
        };
        plan.report.recovered = recovered.len() as u64;
        if request.mode == Mode::Execute {
            inner.backend.remove_leftovers()?;
        }
        let new_marks = !request.grace.is_zero() && !plan.report.doomed.is_empty();
        let nothing_to_do = plan.delete.is_empty() && plan.report.indexes_replaced == 0 && !new_marks;
        if request.mode == Mode::DryRun || nothing_to_do {
            return Ok(plan.report);
        }
        let report = execute(inner, &guard, plan, progress)?;
        inner.refresh_index()?;
        Ok(report)
    }
}

/// Takes the mark back from a pack, because a snapshot needs this blob of it.
///
/// The index file that says so is added, and nothing is taken away: the next plan sees the pack as any other.
fn recover(inner: &Inner, blob: Id, needed_by: String) -> Result<()> {
    for info in inner.backend.list(FileKind::Index)? {
        let file = match inner.load_json::<IndexFile>(FileKind::Index, info.id) {
            Err(Error::Damaged { .. }) => continue,
            other => other?,
        };
        let home = file.packs_to_delete.into_iter().find(|pack| pack.blobs.iter().any(|b| b.id == blob));
        if let Some(MarkedPack { id, blobs, .. }) = home
            && inner.backend.size(FileKind::Pack, id)? == Some(expected_size(&blobs))
        {
            tracing::warn!(pack = %id, by = needed_by, "a pack that was to be deleted is needed after all");
            let file = IndexFile { packs: vec![IndexPack { id, blobs }], ..IndexFile::default() };
            let written = inner.save_json(FileKind::Index, &file)?;
            // Not by way of a listing, which may lack it: the next plan holds its own against this.
            inner.index.write().unwrap_or_else(PoisonError::into_inner).add_written(written, Origin::Store, &file);
            return Ok(());
        }
    }
    Err(Error::MissingBlob { blob, needed_by })
}

/// A snapshot file that a repair set aside may be read after all one day, and nobody can tell what it needs.
fn refuse_beside_lost_snapshots(inner: &Inner) -> Result<()> {
    let reason = "it was set aside, and what it needs is unknown: \
                  move it from damaged/snapshots/ back to snapshots/ when it can be read again, or delete it there";
    match inner.backend.list_aside(FileKind::Snapshot)?.first() {
        Some(file) => Err(Error::damaged(FileKind::Snapshot, file.id, reason)),
        None => Ok(()),
    }
}

/// Nobody makes a snapshot under an exclusive lock: one that was not there when this was planned was left out of a listing, or
/// somebody lost his lock.
fn refuse_unplanned_snapshots(inner: &Inner, planned: &HashSet<Id>) -> Result<()> {
    refuse_beside_lost_snapshots(inner)?;
    let listed = inner.backend.list(FileKind::Snapshot)?;
    match listed.into_iter().find(|file| !planned.contains(&file.id)) {
        Some(FileInfo { id, .. }) => {
            let how = "was in no listing when this was planned";
            Err(Error::Unsteady { kind: FileKind::Snapshot, id, how })
        }
        None => Ok(()),
    }
}

fn index(inner: &Inner) -> RwLockWriteGuard<'_, Index> {
    inner.index.write().unwrap_or_else(PoisonError::into_inner)
}

/// Marks every blob that any snapshot needs in the index; fails when one is not there. Returns the snapshots, and how many
/// blobs that are: so many marks must be found again, or some were lost.
fn mark_needed(inner: &Inner, progress: &Progress) -> Result<(HashSet<Id>, u64)> {
    index(inner).need_nothing();
    let mut needed = 0;
    let snapshots = inner.list_all_snapshots()?;
    for id in &snapshots {
        // By this name and no other: what names it as its original may need less.
        let file: SnapshotFile = match inner.load_json(FileKind::Snapshot, *id) {
            Err(Error::Backend(e)) if e.is_not_found() => {
                let how = "is in a listing, and not there when it is read";
                return Err(Error::Unsteady { kind: FileKind::Snapshot, id: *id, how });
            }
            other => other?,
        };
        let place = format!("snapshot {id}");
        let mut stack = vec![file.tree];
        while let Some(tree) = stack.pop() {
            // A tree met before was walked before, with everything below it.
            let new = index(inner).need(BlobKind::Tree, tree);
            if new == Some(false) {
                continue;
            }
            progress.check()?;
            let nodes = inner.load_tree(tree, &place)?;
            let mut index = index(inner);
            let missing = |blob| Error::MissingBlob { blob, needed_by: place.clone() };
            // An index file that was in no listing before may have come with it.
            let new = new.or_else(|| index.need(BlobKind::Tree, tree)).ok_or_else(|| missing(tree))?;
            needed += u64::from(new);
            for node in nodes {
                stack.extend(node.subtree);
                for blob in node.content {
                    needed += u64::from(index.need(BlobKind::Data, blob).ok_or_else(|| missing(blob))?);
                }
            }
        }
    }
    Ok((snapshots, needed))
}

fn plan(inner: &Inner, request: &PruneRequest, progress: &Progress) -> Result<Plan> {
    let _marks = match inner.marks.try_lock() {
        Ok(marks) => marks,
        Err(TryLockError::Poisoned(marks)) => marks.into_inner(),
        // Its lock should have kept this one away, or this one's that.
        Err(TryLockError::WouldBlock) => return Err(Error::LockLost),
    };
    let (snapshots, needed) = mark_needed(inner, progress)?;
    let count = snapshots.len() as u64;
    let mut report = PruneReport { snapshots: count, blobs_needed: needed, ..PruneReport::default() };
    let mut present = inner.list_packs()?;
    let mut looks = 0;
    let mut old_indexes = Vec::new();
    let mut indexed: IdMap<Vec<IndexBlob>> = IdMap::default();
    let mut marked: IdMap<MarkedPack> = IdMap::default();
    let mut stale_entries = false;
    for info in inner.backend.list(FileKind::Index)? {
        old_indexes.push(info.id);
        match inner.load_json::<IndexFile>(FileKind::Index, info.id) {
            Ok(file) => {
                let named = |id: &Id, blobs: &[IndexBlob]| (*id, expected_size(blobs));
                let packs = file.packs.iter().map(|pack| named(&pack.id, &pack.blobs));
                inner.look_at_unlisted(packs, &mut present, &mut looks)?;
                // A mark says what is in a pack that an upload left behind as well: nothing.
                let unlisted = file.packs_to_delete.iter().filter(|pack| !present.contains_key(&pack.id));
                let unlisted: Vec<_> = unlisted.map(|pack| named(&pack.id, &pack.blobs)).collect();
                let all = inner.look_at_unlisted(unlisted.into_iter(), &mut present, &mut looks)?;
                for pack in file.packs {
                    let intact = present.get(&pack.id) == Some(&expected_size(&pack.blobs));
                    let doubled = intact && indexed.insert(pack.id, pack.blobs).is_some();
                    stale_entries |= !intact || doubled;
                }
                for pack in file.packs_to_delete {
                    // Of two marks the later counts: to wait longer costs only space.
                    let earlier = marked.get(&pack.id).is_none_or(|other| other.time < pack.time);
                    // One that nobody looked for stays marked: without its mark nothing would tell what is in it.
                    if earlier && (present.contains_key(&pack.id) || !all) {
                        marked.insert(pack.id, pack);
                    }
                }
            }
            // All snapshots are complete without it.
            Err(Error::Damaged { .. }) => stale_entries = true,
            Err(e) => return Err(e),
        }
    }
    // An index file that is not replaced would go on to name packs that are gone.
    let unlisted = {
        let index = inner.index.read().unwrap_or_else(PoisonError::into_inner);
        index.files.keys().find(|id| !old_indexes.contains(id)).copied()
    };
    if let Some(id) = unlisted {
        return Err(Error::Unsteady { kind: FileKind::Index, id, how: "is in one listing, and not in the next" });
    }
    let mut small = HashMap::new();
    for (id, blobs) in &indexed {
        if let Some(blob) = blobs.first()
            && present.get(id).is_some_and(|size| *size < SMALL)
        {
            *small.entry(blob.kind).or_insert(0_usize) += 1;
        }
    }
    marked.retain(|id, _| !indexed.contains_key(id));
    let mut keep = Vec::new();
    let mut repack = Vec::new();
    let mut delete = Vec::new();
    let mut marks = Vec::new();
    let mut rewritten = 0_u64;
    let mut at_home = 0_u64;
    let doom = |id: Id, blobs: Vec<IndexBlob>, delete: &mut Vec<Id>, marks: &mut Vec<MarkedPack>| {
        if request.grace.is_zero() {
            delete.push(id);
        } else {
            marks.push(MarkedPack { id, blobs, time: Some(request.now) });
        }
    };
    let mut packs: Vec<_> = indexed.into_iter().collect();
    // Large packs first, so that of a blob that is there twice, the copy in the small pack goes.
    packs.sort_by_key(|(id, _)| (std::cmp::Reverse(present.get(id).copied()), *id));
    for (id, blobs) in packs {
        let size = present.get(&id).copied().unwrap_or(0);
        let used: Vec<IndexBlob> = {
            let mut index = index(inner);
            // Taken away when its home is found, so that a blob has one and what is left over has none.
            blobs.iter().filter(|b| index.take_needed(b.kind, b.id)).copied().collect()
        };
        at_home += used.len() as u64;
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
        if !used.is_empty() && rewritten.saturating_add(size) > request.rewrite_at_most {
            report.postponed += 1;
            report.packs_kept += 1;
            keep.push(IndexPack { id, blobs });
            continue;
        }
        report.freed_bytes += if request.grace.is_zero() { size - moved.min(size) } else { 0 };
        report.doomed.push(DoomedPack { id, size, moved, reason });
        if !used.is_empty() {
            rewritten += size;
            repack.push((id, used));
        }
        doom(id, blobs, &mut delete, &mut marks);
    }
    // What the index in memory knows and the index files do not would be deleted with packs that look abandoned.
    if let Some(blob) = index(inner).any_needed() {
        return Err(Error::MissingBlob { blob, needed_by: "a snapshot, according to the index files".into() });
    }
    // An index that was loaded anew meanwhile has lost its marks, and says of nothing that it is needed. What makes that
    // necessary is somebody else's prune, whom the lock did not keep away.
    if at_home != needed {
        return Err(Error::LockLost);
    }
    let known: IdSet = keep.iter().map(|p| p.id).chain(report.doomed.iter().map(|p| p.id)).collect();
    for (id, size) in present.iter().filter(|(id, _)| !known.contains(*id) && !marked.contains_key(*id)) {
        report.freed_bytes += if request.grace.is_zero() { *size } else { 0 };
        report.doomed.push(DoomedPack { id: *id, size: *size, moved: 0, reason: PruneReason::NotIndexed });
        doom(*id, Vec::new(), &mut delete, &mut marks);
    }
    let mut begun_anew = false;
    for (id, mut pack) in marked {
        let age = pack.time.map(|time| request.now.duration_since(time));
        if request.grace.is_zero() || age.is_some_and(|age| age >= request.grace) {
            report.freed_bytes += present.get(&id).copied().unwrap_or(0);
            report.expired.push(id);
            delete.push(id);
            continue;
        }
        if age.is_none_or(|age| age < -CLOCK_ERROR) {
            pack.time = Some(request.now);
            begun_anew = true;
        }
        marks.push(pack);
    }
    report.waiting = marks.len() as u64;
    // Packs that no index names and that go at once leave no trace in it.
    let leaves_trace = |pack: &DoomedPack| !request.grace.is_zero() || pack.reason != PruneReason::NotIndexed;
    if stale_entries || begun_anew || !report.expired.is_empty() || report.doomed.iter().any(leaves_trace) {
        report.indexes_replaced = old_indexes.len() as u64;
    }
    Ok(Plan { snapshots, keep, repack, marks, delete, old_indexes, report })
}

fn execute(inner: &Inner, guard: &LockGuard, plan: Plan, progress: &Progress) -> Result<PruneReport> {
    let Plan { snapshots, mut keep, repack, marks, delete, old_indexes, report } = plan;
    let mut rewriter = Rewriter::new(inner);
    let mut plain = Vec::new();
    let size = |blobs: &[IndexBlob]| blobs.iter().map(|blob| u64::from(blob.length)).sum::<u64>();
    progress.expect_more(repack.iter().map(|(_, blobs)| size(blobs)).sum());
    for (id, blobs) in repack {
        progress.check()?;
        let data = inner.backend.read(FileKind::Pack, id)?;
        let _read = inner.charge(data.len());
        let moved = size(&blobs);
        for blob in blobs {
            let sealed = data
                .get(blob.offset as usize..blob.offset as usize + blob.length as usize)
                .ok_or_else(|| Error::damaged(FileKind::Pack, id, "shorter than its index says"))?;
            // A damaged blob stops the prune here, while its old pack is still there to be rescued.
            open_blob(&inner.key, id, &blob, &mut sealed.to_vec(), &mut plain)?;
            rewriter.add(inner, sealed, blob, &mut keep)?;
        }
        progress.add_bytes(moved);
    }
    rewriter.finish(inner, &mut keep)?;
    guard.ensure()?;
    refuse_unplanned_snapshots(inner, &snapshots)?;
    // A repository that lost all its index files has none to replace, and still gets its marks.
    if report.indexes_replaced > 0 || !marks.is_empty() {
        let new_indexes = write_indexes(inner, keep, marks)?;
        for id in old_indexes.iter().filter(|id| !new_indexes.contains(id)) {
            guard.ensure()?;
            inner.backend.remove(FileKind::Index, *id)?;
        }
    }
    for pack in delete {
        guard.ensure()?;
        inner.backend.remove(FileKind::Pack, pack)?;
    }
    Ok(report)
}
