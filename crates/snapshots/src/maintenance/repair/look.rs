//! Reading every pack, and telling what in it is still what it was.
//!
//! One bad read is no damage: memory, a cable or a cache may be at fault. What seems damaged is read again past the caches,
//! and what either read proved is there. An error that is no proof of damage ends it all.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use perennial_core::progress::Progress;

use crate::backend::{BackendError, FileKind};
use crate::error::{Error, Result};
use crate::id::Id;
use crate::memory::Work;
use crate::pack::{open_blob, parse_header};
use crate::repository::Inner;
use crate::wire::{BlobKind, IndexBlob};

/// What is said of a file that was damaged a moment ago.
pub(super) const UNSTEADY: &str = "was damaged when it was read, and is not when it is read again; nothing was moved";

/// What was seen of a pack.
pub(super) struct Look {
    pub(super) id: Id,
    /// What is wrong with it; none: everything in it is as it was written.
    pub(super) wrong: Option<String>,
    /// Blobs that were read and are what they are called.
    pub(super) proven: Vec<IndexBlob>,
    /// Blobs that should be in it, and are not to be had.
    pub(super) lost: Vec<(BlobKind, Id)>,
    /// Why the pack cannot be read at once, only blob by blob.
    pub(super) unread: Option<BackendError>,
    /// Bytes that were read.
    bytes: u64,
}

/// Reads packs in parallel. `named` says what index files tell of one.
pub(super) fn look_at_all<'n>(
    inner: &Inner,
    packs: impl Iterator<Item = Id>,
    named: &(dyn Fn(&Id) -> &'n [IndexBlob] + Sync),
    progress: &Progress,
) -> Result<Vec<Look>> {
    let packs: Vec<Id> = packs.collect();
    let next = AtomicUsize::new(0);
    let looks = Mutex::new(Vec::with_capacity(packs.len()));
    let failure = Mutex::new(None);
    let work = || -> Result<()> {
        while let Some(pack) = packs.get(next.fetch_add(1, Ordering::Relaxed)) {
            progress.check()?;
            let look = look(inner, *pack, named(pack))?;
            progress.add_bytes(look.bytes);
            looks.lock().unwrap_or_else(PoisonError::into_inner).push(look);
        }
        Ok(())
    };
    let effort = inner.effort();
    let workers = effort.workers(Work::Verify, 0, packs.len().min(16));
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                effort.begin();
                if let Err(error) = work() {
                    // Nobody takes another one.
                    next.store(packs.len(), Ordering::Relaxed);
                    failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                }
            });
        }
    });
    if let Some(error) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    let mut looks = looks.into_inner().unwrap_or_else(PoisonError::into_inner);
    for first in looks.iter_mut().filter(|look| look.wrong.is_some()) {
        progress.check()?;
        let mut second = look(inner, first.id, named(&first.id))?;
        if second.wrong.is_some() {
            second.join(first);
        }
        if let Some(error) = second.unread.take_if(|error| inner.lost_by_medium(error).is_none()) {
            return Err(error.into());
        }
        *first = second;
    }
    Ok(looks)
}

/// Reads a pack that is about to leave its place once more.
///
/// # Errors
/// [`Error::Unsteady`] when nothing is wrong with it this time.
pub(super) fn confirm(inner: &Inner, id: Id) -> Result<()> {
    match look(inner, id, &[])?.wrong {
        Some(_) => Ok(()),
        None => Err(Error::Unsteady { kind: FileKind::Pack, id, how: UNSTEADY }),
    }
}

fn look(inner: &Inner, id: Id, named: &[IndexBlob]) -> Result<Look> {
    inner.backend.drop_caches(FileKind::Pack, id)?;
    match inner.backend.read(FileKind::Pack, id) {
        Ok(data) => Ok(look_into(inner, id, named, &data)),
        Err(error) if error.is_medium() => look_at_pieces(inner, id, named, error),
        Err(error) => Err(error.into()),
    }
}

fn look_into(inner: &Inner, id: Id, named: &[IndexBlob], data: &[u8]) -> Look {
    let header = parse_header(&inner.key, id, data);
    let mut wrong = match &header {
        _ if Id::of(data) != id => Some("its hash is not its name".to_owned()),
        Err(Error::Damaged { reason, .. }) => Some(reason.clone()),
        Err(error) => Some(error.to_string()),
        Ok(_) => None,
    };
    let mut candidates = header.unwrap_or_default();
    if wrong.is_some() {
        candidates.extend(named.iter().filter(|b| !candidates.contains(b)).copied().collect::<Vec<_>>());
    }
    let (mut sealed, mut plain) = (Vec::new(), Vec::new());
    let (mut proven, mut failed) = (Vec::new(), Vec::new());
    for blob in candidates {
        let (start, len) = (blob.offset as usize, blob.length as usize);
        sealed.clear();
        sealed.extend_from_slice(data.get(start..).and_then(|rest| rest.get(..len)).unwrap_or_default());
        match open_blob(&inner.key, id, &blob, &mut sealed, &mut plain) {
            Ok(_) => proven.push(blob),
            Err(error) => {
                wrong.get_or_insert_with(|| error.to_string());
                failed.push((blob.kind, blob.id));
            }
        }
    }
    Look { id, wrong, lost: without(failed, &proven), proven, unread: None, bytes: data.len() as u64 }
}

/// What of a pack can be read when all of it cannot: a part of the medium may be gone.
fn look_at_pieces(inner: &Inner, id: Id, named: &[IndexBlob], whole: BackendError) -> Result<Look> {
    let (mut proven, mut failed, mut plain) = (Vec::new(), Vec::new(), Vec::new());
    let size = inner.backend.size(FileKind::Pack, id)?.unwrap_or(0);
    let mut bytes = 0;
    for blob in named {
        let (offset, length) = (u64::from(blob.offset), blob.length);
        let sealed = match inner.backend.read_range(FileKind::Pack, id, offset, length as usize) {
            Ok(sealed) => Some(sealed),
            Err(error) if error.is_medium() || offset + u64::from(length) > size => None,
            Err(error) => return Err(error.into()),
        };
        bytes += sealed.as_ref().map_or(0, |sealed| sealed.len() as u64);
        if sealed.is_some_and(|mut sealed| open_blob(&inner.key, id, blob, &mut sealed, &mut plain).is_ok()) {
            proven.push(*blob);
        } else {
            failed.push((blob.kind, blob.id));
        }
    }
    let wrong = Some(format!("{whole}: {}", whole.source));
    Ok(Look { id, wrong, lost: without(failed, &proven), proven, unread: Some(whole), bytes })
}

impl Look {
    /// Adds what an earlier look at the same pack proved; what neither did is lost.
    fn join(&mut self, earlier: &mut Self) {
        let mut known: HashSet<(BlobKind, Id)> = self.proven.iter().map(|b| (b.kind, b.id)).collect();
        self.proven.extend(earlier.proven.drain(..).filter(|b| known.insert((b.kind, b.id))));
        // One that neither proved is lost once.
        self.lost.append(&mut earlier.lost);
        self.lost.retain(|blob| known.insert(*blob));
    }
}

/// Leaves out what was found at another place of the pack after all.
fn without(mut failed: Vec<(BlobKind, Id)>, proven: &[IndexBlob]) -> Vec<(BlobKind, Id)> {
    let proven: HashSet<(BlobKind, Id)> = proven.iter().map(|b| (b.kind, b.id)).collect();
    failed.retain(|blob| !proven.contains(blob));
    failed
}
