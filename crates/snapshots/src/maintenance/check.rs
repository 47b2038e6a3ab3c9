//! Checking a whole repository: everything that is wrong is listed, not only the first thing.

use std::fmt;
use std::num::NonZeroU64;

use perennial_core::progress::Progress;

use super::hurt::Walk;
use crate::backend::FileKind;
use crate::error::{Error, Result};
use crate::id::{Id, SnapshotFileId};
use crate::index::{IdMap, IdSet};
use crate::lock::{LockGuard, LockMode};
use crate::pack::expected_size;
use crate::repository::{Inner, Repository};
use crate::verify::read_pack;
use crate::wire::{BlobKind, IndexFile, LockFile};

/// Problems of one snapshot that are listed.
const LISTED: u64 = 1000;

/// One thing that is wrong with a repository.
#[derive(Debug)]
pub struct Problem {
    /// What is wrong, with the file or path it is wrong with.
    pub error: Error,
    /// The snapshot that suffers; none when the problem is not about one.
    pub snapshot: Option<SnapshotFileId>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.snapshot {
            Some(snapshot) => write!(f, "snapshot {snapshot}: {}", self.error),
            None => self.error.fmt(f),
        }
    }
}

/// What a check found.
#[derive(Debug, Default)]
pub struct CheckReport {
    /// Everything that is wrong; empty when the repository is fine.
    pub problems: Vec<Problem>,
    /// Problems of snapshots that have very many: those beyond the first thousand of each.
    pub problems_not_listed: u64,
    /// Snapshots looked at.
    pub snapshots: u64,
    /// Packs in the indexes.
    pub packs: u64,
    /// Packs that no index names: left by interrupted uploads, harmless, removed by a prune.
    pub packs_not_indexed: u64,
    /// Packs that nothing needed when a prune looked, and that go with a later one.
    pub packs_waiting: u64,
    /// Packs that were read.
    pub packs_read: u64,
}

/// How thorough a check is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// All small files and all trees; of packs, existence and size.
    Structure,
    /// Every byte.
    Data,
}

impl CheckReport {
    /// Records damage; what only means "unknown" ends the check.
    fn note(&mut self, error: Error, snapshot: Option<SnapshotFileId>) -> Result<()> {
        match error {
            Error::Backend(ref e) if !e.is_not_found() => Err(error),
            Error::Cancelled => Err(error),
            error => {
                self.problems.push(Problem { error, snapshot });
                Ok(())
            }
        }
    }
}

impl Repository {
    /// Reads one share of all packs, so that after `of` turns all of them were read; looks at every index file, too.
    ///
    /// # Errors
    /// Only when it could not be done; what is wrong with the repository is in the report.
    pub fn check_share(&self, turn: u64, of: NonZeroU64, progress: &Progress) -> Result<CheckReport> {
        let inner = &*self.inner;
        progress.check()?;
        let _guard = LockGuard::acquire(&self.inner, LockMode::Shared)?;
        let mut report = CheckReport::default();
        check_indexes(inner, &mut report)?;
        inner.refresh_index()?;
        // By its name, which is a hash: what is added or goes moves no other pack to another turn.
        let share = |id: &Id| {
            let first = id.0.first_chunk::<8>().map_or(0, |bytes| u64::from_be_bytes(*bytes));
            first % of.get() == turn % of.get()
        };
        let packs = packs_where(inner, share);
        read_all(inner, packs, &mut report, progress)?;
        Ok(report)
    }

    /// Checks everything in the repository.
    ///
    /// # Errors
    /// Only when the check could not be done; what is wrong with the repository is in the report.
    pub fn check(&self, depth: Depth, progress: &Progress) -> Result<CheckReport> {
        let inner = &*self.inner;
        progress.check()?;
        let _guard = LockGuard::acquire(&self.inner, LockMode::Shared)?;
        let mut report = CheckReport::default();
        check_small_files(inner, &mut report)?;
        check_indexes(inner, &mut report)?;
        inner.refresh_index()?;
        check_snapshots(inner, &mut report, progress)?;
        if depth == Depth::Data {
            let packs = packs_where(inner, |_| true);
            read_all(inner, packs, &mut report, progress)?;
        }
        Ok(report)
    }
}

/// The packs of the index that are chosen.
fn packs_where(inner: &Inner, chosen: impl Fn(&Id) -> bool) -> Vec<Id> {
    let index = inner.index.read().unwrap_or_else(std::sync::PoisonError::into_inner);
    index.packs().map(|(id, _)| id).filter(chosen).collect()
}

fn read_all(inner: &Inner, packs: Vec<Id>, report: &mut CheckReport, progress: &Progress) -> Result<()> {
    {
        let index = inner.index.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        progress.expect_more(packs.iter().filter_map(|pack| index.pack_size(*pack)).sum());
    }
    let mut plain = Vec::new();
    for pack in packs {
        progress.check()?;
        report.packs_read += 1;
        match read_pack(inner, pack, &mut plain).map_err(|error| inner.judged(error)) {
            Ok(read) => progress.add_bytes(read.bytes),
            Err(e) => report.note(e, None)?,
        }
    }
    Ok(())
}

fn check_small_files(inner: &Inner, report: &mut CheckReport) -> Result<()> {
    let config = inner.backend.read(FileKind::Config, FileKind::CONFIG_ID);
    match config.map(|data| inner.key.open(&data)) {
        Ok(Ok(_)) => {}
        Ok(Err(e)) => report.note(Error::damaged(FileKind::Config, FileKind::CONFIG_ID, e.to_string()), None)?,
        Err(e) => report.note(e.into(), None)?,
    }
    for info in inner.backend.list(FileKind::Key)? {
        let data = inner.backend.read(FileKind::Key, info.id)?;
        if Id::of(&data) != info.id {
            report.note(Error::damaged(FileKind::Key, info.id, "its hash is not its name"), None)?;
        }
    }
    for info in inner.backend.list(FileKind::Lock)? {
        match inner.load_json::<LockFile>(FileKind::Lock, info.id) {
            Ok(_) => {}
            Err(Error::Backend(e)) if e.is_not_found() => {}
            Err(e) => report.note(e, None)?,
        }
    }
    Ok(())
}

fn check_indexes(inner: &Inner, report: &mut CheckReport) -> Result<()> {
    let files = inner.backend.list(FileKind::Index)?;
    let present = inner.list_packs()?;
    let mut indexed: IdMap<bool> = IdMap::default();
    let mut waiting = IdSet::default();
    for info in files {
        inner.backend.drop_caches(FileKind::Index, info.id)?;
        let file = match inner.load_json::<IndexFile>(FileKind::Index, info.id) {
            Ok(file) => file,
            Err(e) => {
                report.note(e, None)?;
                continue;
            }
        };
        waiting.extend(file.packs_to_delete.iter().map(|pack| pack.id).filter(|id| present.contains_key(id)));
        for pack in file.packs {
            let expected = expected_size(&pack.blobs);
            let wrong = match present.get(&pack.id) {
                None => Some("missing".to_owned()),
                Some(size) if *size != expected => Some(format!("{size} bytes long instead of {expected}")),
                Some(_) => None,
            };
            // The same pack in two index files is one problem.
            if let (None, Some(reason)) = (indexed.insert(pack.id, true), wrong) {
                report.note(Error::damaged(FileKind::Pack, pack.id, reason), None)?;
            }
        }
    }
    report.packs = indexed.len() as u64;
    waiting.retain(|id| !indexed.contains_key(id));
    report.packs_waiting = waiting.len() as u64;
    let unknown = present.keys().filter(|id| !indexed.contains_key(*id) && !waiting.contains(*id));
    report.packs_not_indexed = unknown.count() as u64;
    Ok(())
}

fn check_snapshots(inner: &Inner, report: &mut CheckReport, progress: &Progress) -> Result<()> {
    let mut walk = Walk::default();
    for info in inner.backend.list(FileKind::Snapshot)? {
        report.snapshots += 1;
        let id = SnapshotFileId(info.id);
        inner.backend.drop_caches(FileKind::Snapshot, info.id)?;
        let file = match inner.load_snapshot(id) {
            Ok(file) => file,
            Err(e) => {
                report.note(e, Some(id))?;
                continue;
            }
        };
        let load = |tree, path: &str| inner.load_tree(tree, path).map_err(|error| inner.judged(error));
        let find = |blob| inner.find_blob(BlobKind::Data, blob);
        let mut listed = 0;
        walk.snapshot((&load, &find), file.tree, progress, &mut |error| {
            listed += 1;
            if listed <= LISTED {
                return report.note(error, Some(id));
            }
            report.problems_not_listed += 1;
            Ok(())
        })?;
    }
    Ok(())
}
