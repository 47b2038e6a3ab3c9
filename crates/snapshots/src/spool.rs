//! Packs that wait until the writers go on: in memory, and beyond that in a file without a name.
//!
//! Packs are sealed before they come here, so the file holds nothing that the repository would not. It has no name: the
//! system frees it when this process ends, however it ends. What there is no room for goes to the store at once, which
//! keeps the writers waiting for the store; that is what the limits are chosen for.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::id::Id;
use crate::memory::{Account, Charge, Shares};
use crate::wire::IndexBlob;

/// How much may wait, and where.
#[derive(Debug, Clone)]
pub struct SpoolLimits {
    /// Bytes in memory.
    pub memory: usize,
    /// The directory of the file that takes what memory does not; `None`: there is none.
    pub directory: Option<PathBuf>,
}

/// The part of the free space of its file system that the file takes at most is one in so many.
const SHARE_OF_FREE: u64 = 2;

/// A pack that waits.
pub(crate) struct Waiting {
    pub(crate) id: Id,
    pub(crate) data: Vec<u8>,
    /// What it holds; empty where somebody else keeps the index.
    pub(crate) blobs: Vec<IndexBlob>,
    /// For all of it.
    pub(crate) charge: Charge,
}

enum Place {
    Memory(Vec<u8>, Charge),
    File { offset: u64, length: usize },
}

#[derive(Default)]
struct State {
    packs: VecDeque<(Id, Vec<IndexBlob>, Place)>,
    in_memory: usize,
    in_file: u64,
}

/// Packs that wait, first come first.
pub(crate) struct Spool {
    memory: usize,
    /// The file and how long it may become.
    file: Option<(File, u64)>,
    state: Mutex<State>,
}

impl Spool {
    /// Makes everything ready, so that nothing has to be made while the writers wait. No more is in memory than `shares` allow.
    pub(crate) fn new(limits: &SpoolLimits, shares: &Shares) -> Self {
        let file = limits.directory.as_ref().and_then(|directory| {
            let free = rustix::fs::statvfs(directory).map(|found| found.f_bavail.saturating_mul(found.f_frsize));
            let made = tempfile::tempfile_in(directory).and_then(|file| Ok((file, free? / SHARE_OF_FREE)));
            // Without it there is the memory, and then the store.
            made.inspect_err(|error| tracing::warn!(%error, directory = %directory.display(), "make a spool file")).ok()
        });
        Self { memory: shares.spool(limits.memory), file, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a pack in, or gives it back when there is no room for it.
    pub(crate) fn put(&self, pack: Waiting) -> Option<Waiting> {
        let mut state = self.state();
        if state.in_memory + pack.data.capacity() <= self.memory {
            state.in_memory += pack.data.capacity();
            state.packs.push_back((pack.id, pack.blobs, Place::Memory(pack.data, pack.charge)));
            return None;
        }
        let Some((file, most)) = &self.file else { return Some(pack) };
        let (offset, length) = (state.in_file, pack.data.len());
        if offset + length as u64 > *most {
            return Some(pack);
        }
        state.in_file += length as u64;
        drop(state);
        // A full disk is no reason to fail: the store may still take it.
        if file.write_all_at(&pack.data, offset).is_err() {
            return Some(pack);
        }
        self.state().packs.push_back((pack.id, pack.blobs, Place::File { offset, length }));
        None
    }

    /// Gives the next one out, on somebody's account.
    ///
    /// # Errors
    /// When it cannot be read back from the file; what was read wrongly shows when the pack is verified.
    pub(crate) fn take(&self, account: &Arc<Account>) -> std::io::Result<Option<Waiting>> {
        let Some((id, blobs, place)) = self.state().packs.pop_front() else { return Ok(None) };
        let (data, charge) = match place {
            Place::Memory(data, charge) => {
                self.state().in_memory -= data.capacity();
                (data, charge)
            }
            Place::File { offset, length } => {
                let charge = Charge::new(account, length);
                let mut data = vec![0; length];
                if let Some((file, _)) = &self.file {
                    file.read_exact_at(&mut data, offset)?;
                }
                (data, charge)
            }
        };
        Ok(Some(Waiting { id, data, blobs, charge }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pack(n: u8, length: usize) -> Waiting {
        let data = vec![n; length];
        Waiting { id: Id::of(&data), data, blobs: Vec::new(), charge: Charge::default() }
    }

    #[test]
    fn memory_comes_first_then_the_file_and_what_has_no_room_comes_back() {
        let directory = tempfile::tempdir().expect("a directory");
        let limits = SpoolLimits { memory: 100, directory: Some(directory.path().into()) };
        let (shares, account) = (Shares::of(None), Arc::default());
        let spool = Spool::new(&limits, &shares);
        for n in 0..4 {
            assert!(spool.put(pack(n, 60)).is_none());
        }
        let names = std::fs::read_dir(directory.path()).expect("listed").count();
        assert_eq!(names, 0, "a crash would leave the file behind");
        for n in 0..4 {
            let taken = spool.take(&account).expect("read").expect("there");
            assert!(taken.id == Id::of(&taken.data) && taken.data == [n; 60], "pack {n}");
        }
        assert!(spool.take(&account).expect("read").is_none());

        let none = Spool::new(&SpoolLimits { memory: 100, directory: None }, &shares);
        assert!(none.put(pack(1, 100)).is_none());
        assert_eq!(none.put(pack(2, 1)).map(|p| p.data), Some(vec![2]));
        none.take(&account).expect("read");
        assert!(none.put(pack(3, 100)).is_none(), "room that is free again");
    }
}
