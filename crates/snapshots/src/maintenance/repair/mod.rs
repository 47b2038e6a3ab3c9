//! Repairing: what still proves itself stays, everything else leaves the index, and nothing that may be of use is
//! destroyed.
//!
//! Under an exclusive lock every pack is read and every blob in it proven by its MAC and hash ([`look`]). Blobs that a
//! damaged pack still holds, and no other has, go to new packs, which are read back; a complete index of what is really
//! there is written and read back. Only then damaged files leave their places: a pack of which everything was
//! salvaged is marked, and goes with a prune a day later; one that held more is set aside, and so is an index or a
//! snapshot file that cannot be read. What is called damaged was read twice, and is read once more before it is moved.
//! Whatever is no proof of damage ends the repair. The same call again finishes what an interrupted one began.
//!
//! A repair invents nothing: snapshots that need what is lost are hurt, and said to be. But what the index does not
//! name any more, the next snapshot of the same files stores again, which makes older ones whole, too.

mod look;

use jiff::Timestamp;
use perennial_core::progress::Progress;
use serde::de::DeserializeOwned;

use super::Mode;
use super::hurt::Walk;
use super::rewrite::{Rewriter, write_indexes};
use crate::backend::FileKind;
use crate::error::{Error, Result};
use crate::id::{Id, SnapshotFileId};
use crate::index::{IdMap, IdSet, Index};
use crate::lock::{LockGuard, LockMode};
use crate::node::decode_tree;
use crate::pack::open_blob;
use crate::repository::{Inner, Repository, UNLISTED};
use crate::wire::{BlobKind, IndexBlob, IndexFile, IndexPack, MarkedPack, SnapshotFile};
use look::{Look, UNSTEADY, look_at_all};

/// Files of one hurt snapshot that are named.
const NAMED: usize = 100;

/// How a repair goes about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RepairRequest {
    /// Whether anything is done.
    pub mode: Mode,
    /// The present time, by the clock that prunes go by.
    pub now: Timestamp,
}

/// What becomes of a damaged pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It was gone already.
    Gone,
    /// All it held is elsewhere: a prune deletes it after its grace time.
    Replaced,
    /// It held, or may have held, what is nowhere else: it is kept, out of the way.
    SetAside,
}

/// A pack that is not what the index or its name says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamagedPack {
    /// The pack.
    pub id: Id,
    /// What is wrong with it.
    pub reason: String,
    /// Blobs that go to a new pack.
    pub salvaged: u64,
    /// Blobs that are nowhere any more, as far as is known of it.
    pub lost: u64,
    /// What becomes of it.
    pub fate: Fate,
}

/// A snapshot that needs what is lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HurtSnapshot {
    /// The snapshot.
    pub id: SnapshotFileId,
    /// Files and directories that are hurt, the first hundred of them.
    pub paths: Vec<String>,
    /// So many more are.
    pub more: u64,
}

/// What a repair found and did, or would do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RepairReport {
    /// Snapshots looked at.
    pub snapshots: u64,
    /// Packs read.
    pub packs: u64,
    /// Packs that are damaged or missing.
    pub damaged_packs: Vec<DamagedPack>,
    /// Index files that cannot be read; they are set aside, for packs themselves say what they hold.
    pub damaged_indexes: Vec<Id>,
    /// Snapshot files that cannot be read: what these snapshots were is lost. They are set aside.
    pub damaged_snapshots: Vec<Id>,
    /// Good packs that no index named, or that were to be deleted, and are in the index again.
    pub packs_found: u64,
    /// Packs whose entries in the index were wrong.
    pub entries_corrected: u64,
    /// Index files that are replaced by new ones.
    pub indexes_replaced: u64,
    /// Snapshots that are not complete after the repair.
    pub hurt: Vec<HurtSnapshot>,
}

impl RepairReport {
    /// Reports whether nothing has to be done. Snapshots may be hurt all the same.
    #[must_use]
    pub fn is_nothing_to_do(&self) -> bool {
        self.damaged_packs.is_empty()
            && self.damaged_indexes.is_empty()
            && self.damaged_snapshots.is_empty()
            && self.packs_found == 0
            && self.entries_corrected == 0
    }
}

/// What index files say, those that can be read.
#[derive(Default)]
struct Listed {
    files: Vec<Id>,
    damaged: Vec<Id>,
    packs: IdMap<Vec<IndexBlob>>,
    marks: IdMap<MarkedPack>,
}

struct Plan {
    keep: Vec<IndexPack>,
    marks: Vec<MarkedPack>,
    salvage: Vec<(Look, Vec<IndexBlob>)>,
    aside: Vec<Id>,
    listed: Listed,
    report: RepairReport,
}

impl Repository {
    /// Finds out what is damaged, salvages what can be, and makes the index say what is there.
    ///
    /// # Errors
    /// [`Error::Locked`] while anybody else works on the repository; [`Error::Unsteady`] when something is not read the same
    /// every time; store errors, which say nothing about what is there, and change nothing about it. The same call again goes on where an interrupted one was.
    pub fn repair(&self, request: &RepairRequest, progress: &Progress) -> Result<RepairReport> {
        let inner = &*self.inner;
        progress.check()?;
        let guard = LockGuard::acquire(&self.inner, LockMode::Exclusive)?;
        let plan = plan(inner, request.now, progress)?;
        if request.mode == Mode::DryRun || plan.report.is_nothing_to_do() {
            return Ok(plan.report);
        }
        let report = execute(inner, &guard, plan, progress)?;
        inner.refresh_index()?;
        Ok(report)
    }
}

fn read_indexes(inner: &Inner) -> Result<Listed> {
    let mut listed = Listed::default();
    for info in inner.backend.list(FileKind::Index)? {
        let file = match load_past_caches::<IndexFile>(inner, FileKind::Index, info.id, 2) {
            Ok(file) => file,
            Err(Error::Damaged { .. }) => {
                listed.damaged.push(info.id);
                continue;
            }
            Err(error) => return Err(error),
        };
        listed.files.push(info.id);
        for pack in file.packs {
            add_blobs(listed.packs.entry(pack.id).or_default(), pack.blobs);
        }
        for mark in file.packs_to_delete {
            listed.marks.insert(mark.id, mark);
        }
    }
    Ok(listed)
}

/// Reads a small file so many times, until it is not damaged.
fn load_past_caches<T: DeserializeOwned>(inner: &Inner, kind: FileKind, id: Id, times: u32) -> Result<T> {
    inner.backend.drop_caches(kind, id)?;
    match inner.load_json(kind, id) {
        Err(Error::Damaged { .. }) if times > 1 => load_past_caches(inner, kind, id, times - 1),
        other => other,
    }
}

/// Reads everything that is about to leave its place once more.
///
/// # Errors
/// [`Error::Unsteady`] when something is not damaged this time.
fn confirm(inner: &Inner, packs: &[Id], indexes: &[Id], snapshots: &[Id]) -> Result<()> {
    for pack in packs {
        look::confirm(inner, *pack)?;
    }
    let still = |kind, id, loaded: Result<()>| match loaded {
        Err(Error::Damaged { .. }) => Ok(()),
        Ok(()) => Err(Error::Unsteady { kind, id, how: UNSTEADY }),
        Err(error) => Err(error),
    };
    for id in indexes {
        let loaded = load_past_caches::<IndexFile>(inner, FileKind::Index, *id, 1);
        still(FileKind::Index, *id, loaded.map(drop))?;
    }
    for id in snapshots {
        let loaded = load_past_caches::<SnapshotFile>(inner, FileKind::Snapshot, *id, 1);
        still(FileKind::Snapshot, *id, loaded.map(drop))?;
    }
    Ok(())
}

/// Two index files may name the same pack, and need not say the same.
fn add_blobs(known: &mut Vec<IndexBlob>, more: Vec<IndexBlob>) {
    if known.is_empty() {
        *known = more;
    } else if *known != more {
        known.extend(more);
        known.sort_unstable_by_key(|b| (b.offset, b.length, b.id));
        known.dedup();
    }
}

fn plan(inner: &Inner, now: Timestamp, progress: &Progress) -> Result<Plan> {
    let mut listed = read_indexes(inner)?;
    let present = inner.list_packs()?;
    progress.set_total(present.values().sum());
    let mut report = RepairReport { damaged_indexes: listed.damaged.clone(), ..RepairReport::default() };
    let named = |id: &Id| {
        let marked = listed.marks.get(id).map(|mark| mark.blobs.as_slice());
        listed.packs.get(id).map(Vec::as_slice).or(marked).unwrap_or_default()
    };
    let mut looks = look_at_all(inner, present.keys().copied(), &named, progress)?;
    report.packs = looks.len() as u64;

    // What will be there, the better copy of a blob over the worse.
    let rank = |look: &Look| match () {
        () if look.wrong.is_some() => 0,
        () if listed.packs.contains_key(&look.id) => 3,
        () if listed.marks.contains_key(&look.id) => 1,
        () => 2,
    };
    looks.sort_by_key(|look| (rank(look), look.id));
    let mut index = Index::default();
    for look in &looks {
        index.add_pack(look.id, &look.proven);
    }
    let used = find_hurt(inner, &index, &mut report, progress)?;

    let mut plan = Plan {
        keep: Vec::new(),
        marks: Vec::new(),
        salvage: Vec::new(),
        aside: Vec::new(),
        listed: Listed::default(),
        report,
    };
    let lost_before = !inner.backend.list_aside(FileKind::Snapshot)?.is_empty();
    let anything_lost = lost_before || !plan.report.hurt.is_empty() || !plan.report.damaged_snapshots.is_empty();
    let generous = anything_lost || !listed.damaged.is_empty();
    for look in looks {
        let (is_listed, mark) = (listed.packs.contains_key(&look.id), listed.marks.remove(&look.id));
        if look.wrong.is_none() {
            let wrong_entry = listed.packs.get(&look.id).is_some_and(|named| !same_blobs(named, &look.proven));
            // What was lost may be below a tree that is lost, so nobody can tell whether it is needed.
            let found = !is_listed && (used.contains(&look.id) || (generous && mark.is_none()));
            plan.report.packs_found += u64::from(found);
            plan.report.entries_corrected += u64::from(wrong_entry);
            if is_listed || found {
                plan.keep.push(IndexPack { id: look.id, blobs: look.proven });
            } else {
                plan.marks.extend(mark);
            }
            continue;
        }
        // A mark counts only when no index names the pack any more: before, a crash may have left both.
        let settled = mark.is_some() && !is_listed;
        plan.damaged(look, (mark, settled), (&index, now, anything_lost));
    }
    let gone = listed.packs.iter().filter(|(id, _)| !present.contains_key(*id));
    for (id, _) in gone.clone() {
        if inner.backend.size(FileKind::Pack, *id)?.is_some() {
            return Err(Error::Unsteady { kind: FileKind::Pack, id: *id, how: UNLISTED });
        }
    }
    let mut gone: Vec<DamagedPack> = gone
        .map(|(id, blobs)| DamagedPack {
            id: *id,
            reason: "it is missing".to_owned(),
            salvaged: 0,
            lost: blobs.iter().filter(|b| index.find(b.kind, b.id).is_none()).count() as u64,
            fate: Fate::Gone,
        })
        .collect();
    plan.report.damaged_packs.append(&mut gone);
    plan.report.damaged_packs.sort_by_key(|pack| pack.id);
    if !plan.report.is_nothing_to_do() {
        plan.report.indexes_replaced = (listed.files.len() + listed.damaged.len()) as u64;
    }
    plan.listed = listed;
    Ok(plan)
}

impl Plan {
    /// Decides on a damaged pack, which may be marked already.
    fn damaged(
        &mut self,
        look: Look,
        (mark, settled): (Option<MarkedPack>, bool),
        (index, now, anything_lost): (&Index, Timestamp, bool),
    ) {
        let is_here = |b: &&IndexBlob| index.find(b.kind, b.id).is_some_and(|found| found.pack == look.id);
        let salvage: Vec<IndexBlob> = look.proven.iter().filter(is_here).copied().collect();
        let lost = look.lost.iter().filter(|(kind, id)| index.find(*kind, *id).is_none()).count() as u64;
        // Nothing is known of a pack without a header that no index names.
        let nothing_known = look.proven.is_empty() && look.lost.is_empty();
        let unneeded = settled && !anything_lost;
        if let Some(mark) =
            mark.filter(|m| settled && m.blobs.is_empty() && salvage.is_empty() && (lost == 0 || unneeded))
        {
            // An earlier repair, or a prune, is done with it.
            self.marks.push(mark);
            return;
        }
        let fate = if (lost == 0 && !nothing_known) || unneeded { Fate::Replaced } else { Fate::SetAside };
        match fate {
            // Without its blobs, so that no prune takes it for a place where one of them is.
            Fate::Replaced => self.marks.push(MarkedPack { id: look.id, blobs: Vec::new(), time: Some(now) }),
            _ => self.aside.push(look.id),
        }
        self.report.damaged_packs.push(DamagedPack {
            id: look.id,
            reason: look.wrong.clone().unwrap_or_default(),
            salvaged: salvage.len() as u64,
            lost,
            fate,
        });
        if !salvage.is_empty() {
            self.salvage.push((look, salvage));
        }
    }
}

fn same_blobs(named: &[IndexBlob], header: &[IndexBlob]) -> bool {
    let sorted = |blobs: &[IndexBlob]| {
        let mut blobs = blobs.to_vec();
        blobs.sort_unstable_by_key(|b| (b.offset, b.length, b.id));
        blobs
    };
    named == header || sorted(named) == sorted(header)
}

/// Looks at every snapshot as it will be; returns the packs that any of them needs.
fn find_hurt(inner: &Inner, index: &Index, report: &mut RepairReport, progress: &Progress) -> Result<IdSet> {
    let used = std::cell::RefCell::new(IdSet::default());
    let load = |tree: Id, path: &str| {
        let missing = || Error::MissingBlob { blob: tree, needed_by: path.to_owned() };
        let found = index.find(BlobKind::Tree, tree).ok_or_else(missing)?;
        used.borrow_mut().insert(found.pack);
        decode_tree(tree, &inner.read_blob(&found)?)
    };
    let find = |blob| {
        let found = index.find(BlobKind::Data, blob)?;
        used.borrow_mut().insert(found.pack);
        Some(found)
    };
    let mut walk = Walk::default();
    for info in inner.backend.list(FileKind::Snapshot)? {
        report.snapshots += 1;
        let file = match load_past_caches::<SnapshotFile>(inner, FileKind::Snapshot, info.id, 2) {
            Ok(file) => file,
            Err(Error::Damaged { .. }) => {
                report.damaged_snapshots.push(info.id);
                continue;
            }
            Err(error) => return Err(error),
        };
        let mut hurt = HurtSnapshot { id: SnapshotFileId(info.id), paths: Vec::new(), more: 0 };
        walk.snapshot((&load, &find), file.tree, progress, &mut |error| {
            let path = match error {
                Error::MissingBlob { needed_by, .. } => needed_by,
                Error::Mismatch { what, .. } => what,
                Error::InvalidContent { place, .. } => place,
                other => return Err(other),
            };
            if hurt.paths.last() == Some(&path) {
                // One more blob of the same file.
            } else if hurt.paths.len() < NAMED {
                hurt.paths.push(path);
            } else {
                hurt.more += 1;
            }
            Ok(())
        })?;
        if !hurt.paths.is_empty() {
            report.hurt.push(hurt);
        }
    }
    Ok(used.into_inner())
}

fn execute(inner: &Inner, guard: &LockGuard, plan: Plan, progress: &Progress) -> Result<RepairReport> {
    let Plan { mut keep, marks, salvage, aside, listed, report } = plan;
    let mut rewriter = Rewriter::new(inner);
    let mut plain = Vec::new();
    for (look, blobs) in salvage {
        progress.check()?;
        let data = if look.unread.is_some() { None } else { Some(inner.backend.read(FileKind::Pack, look.id)?) };
        for blob in blobs {
            let (offset, len) = (blob.offset as usize, blob.length as usize);
            let sealed = match &data {
                Some(data) => data
                    .get(offset..offset + len)
                    .map(<[u8]>::to_vec)
                    .ok_or_else(|| Error::damaged(FileKind::Pack, look.id, "it is shorter than it was a moment ago"))?,
                None => inner.backend.read_range(FileKind::Pack, look.id, u64::from(blob.offset), len)?,
            };
            // Proven once more: the medium may give something else every time.
            open_blob(&inner.key, look.id, &blob, &mut sealed.clone(), &mut plain)?;
            rewriter.add(inner, &sealed, blob, &mut keep)?;
        }
    }
    rewriter.finish(inner, &mut keep)?;
    confirm(inner, &aside, &listed.damaged, &report.damaged_snapshots)?;
    guard.ensure()?;
    let new_indexes = write_indexes(inner, keep, marks)?;
    // From here on everything that is good is in an index that can be read.
    for pack in aside {
        guard.ensure()?;
        inner.backend.set_aside(FileKind::Pack, pack)?;
    }
    for id in listed.files.iter().filter(|id| !new_indexes.contains(id)) {
        guard.ensure()?;
        inner.backend.remove(FileKind::Index, *id)?;
    }
    for (kind, ids) in [(FileKind::Index, &listed.damaged), (FileKind::Snapshot, &report.damaged_snapshots)] {
        for id in ids {
            guard.ensure()?;
            inner.backend.set_aside(kind, *id)?;
        }
    }
    Ok(report)
}
