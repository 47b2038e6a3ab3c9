//! Reading every pack, and telling what in it is still what it was.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use perennial_core::progress::Progress;

use crate::backend::{BackendError, FileKind};
use crate::error::{Error, Result};
use crate::id::Id;
use crate::pack::{open_blob, parse_header};
use crate::repository::Inner;
use crate::wire::{BlobKind, IndexBlob};

/// What was seen of a pack.
pub(super) struct Look {
    pub(super) id: Id,
    /// What is wrong with it; none: everything in it is as it was written.
    pub(super) wrong: Option<String>,
    /// Blobs that were read and are what they are called.
    pub(super) proven: Vec<IndexBlob>,
    /// Blobs that should be in it, and are not to be had.
    pub(super) lost: Vec<(BlobKind, Id)>,
    /// The pack cannot be read at once, only blob by blob.
    pub(super) in_pieces: bool,
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
            let look = look(inner, *pack, named(pack), progress)?;
            looks.lock().unwrap_or_else(PoisonError::into_inner).push(look);
        }
        Ok(())
    };
    let workers = std::thread::available_parallelism().map_or(2, usize::from).min(packs.len()).clamp(1, 16);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                if let Err(error) = work() {
                    // Nobody takes another one.
                    next.store(packs.len(), Ordering::Relaxed);
                    failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                }
            });
        }
    });
    match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(looks.into_inner().unwrap_or_else(PoisonError::into_inner)),
    }
}

fn look(inner: &Inner, id: Id, named: &[IndexBlob], progress: &Progress) -> Result<Look> {
    inner.backend.drop_caches(FileKind::Pack, id)?;
    match inner.backend.read(FileKind::Pack, id) {
        Ok(data) => {
            progress.add_bytes(data.len() as u64);
            Ok(look_into(inner, id, named, &data))
        }
        Err(error) => look_at_pieces(inner, id, named, error),
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
    Look { id, wrong, lost: without(failed, &proven), proven, in_pieces: false }
}

/// What of a pack can be read when all of it cannot: a part of the medium may be gone. When nothing can be, that is no
/// damage but a store that does not answer.
fn look_at_pieces(inner: &Inner, id: Id, named: &[IndexBlob], whole: BackendError) -> Result<Look> {
    let (mut proven, mut failed, mut plain) = (Vec::new(), Vec::new(), Vec::new());
    for blob in named {
        let read = inner.backend.read_range(FileKind::Pack, id, u64::from(blob.offset), blob.length as usize);
        let opened = read.map(|mut sealed| open_blob(&inner.key, id, blob, &mut sealed, &mut plain).is_ok());
        if opened.unwrap_or(false) {
            proven.push(*blob);
        } else {
            failed.push((blob.kind, blob.id));
        }
    }
    if proven.is_empty() {
        return Err(whole.into());
    }
    let wrong = Some(format!("{whole}: {}", whole.source));
    Ok(Look { id, wrong, lost: without(failed, &proven), proven, in_pieces: true })
}

/// Leaves out what was found at another place of the pack after all.
fn without(mut failed: Vec<(BlobKind, Id)>, proven: &[IndexBlob]) -> Vec<(BlobKind, Id)> {
    let proven: HashSet<(BlobKind, Id)> = proven.iter().map(|b| (b.kind, b.id)).collect();
    failed.retain(|blob| !proven.contains(blob));
    failed
}
