//! Looking at directories as a snapshot of them would be, without taking one.
//!
//! A sketch is a repository on top of another one. It shows what that one holds, and what is written to it goes to a file
//! without a name, which the system frees when the sketch is dropped or this process ends. An archive into it walks,
//! compares with its parents, reads and hashes as always; but of contents only the hashes are kept, so that what a sketch
//! takes up are the trees of changed directories. Nothing reaches the store, and nothing is locked there: what the other
//! trees need goes only when their snapshot does.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::backend::{Backend, BackendError, FileInfo, FileKind};
use crate::error::{Error, Result};
use crate::id::Id;
use crate::index::IdMap;
use crate::repository::{Inner, Repository};

/// This share of the file system is left to others.
const KEPT_FREE: u64 = 20;

impl Repository {
    /// Makes a sketch of this repository, which keeps its trees on the file system of this directory: at most so many bytes,
    /// and while that has room. What needs more fails with [`io::ErrorKind::StorageFull`].
    ///
    /// # Errors
    /// When no file can be made there.
    pub fn sketch(&self, directory: &Path, most: u64) -> Result<Self> {
        let file = tempfile::tempfile_in(directory).map_err(|source| Error::Io {
            doing: "make a file in",
            path: directory.to_owned(),
            source,
        })?;
        let above = Above { below: Arc::clone(&self.inner.backend), file, most, kept: Mutex::default() };
        Ok(Self { inner: Arc::new(Inner::above(&self.inner, Arc::new(above))) })
    }
}

/// Keeps what is written, and reads everything else from the store below.
#[derive(Debug)]
struct Above {
    below: Arc<dyn Backend>,
    file: File,
    /// What may be kept.
    most: u64,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    files: [IdMap<(u64, usize)>; 2],
    end: u64,
}

/// Where files of a kind are noted; `None` for kinds that an archive without a snapshot never writes.
const fn slot(kind: FileKind) -> Option<usize> {
    match kind {
        FileKind::Pack => Some(0),
        FileKind::Index => Some(1),
        FileKind::Config | FileKind::Key | FileKind::Snapshot | FileKind::Lock => None,
    }
}

/// Whether a disk of this size with so much free has enough left for others when this is written.
const fn leaves_enough(free: u64, size: u64, length: u64) -> bool {
    free.saturating_sub(length) >= size / KEPT_FREE
}

fn failed(doing: &'static str, kind: FileKind, id: Id, source: io::Error) -> BackendError {
    BackendError { doing, kind, id: Some(id), source }
}

impl Above {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_room(&self, length: u64) -> io::Result<bool> {
        let stat = rustix::fs::fstatvfs(&self.file)?;
        Ok(leaves_enough(
            stat.f_bavail.saturating_mul(stat.f_frsize),
            stat.f_blocks.saturating_mul(stat.f_frsize),
            length,
        ))
    }

    fn find(&self, kind: FileKind, id: Id) -> Option<(u64, usize)> {
        self.kept().files[slot(kind)?].get(&id).copied()
    }
}

impl Backend for Above {
    fn prepare(&self) -> Result<(), BackendError> {
        Ok(())
    }

    fn list(&self, kind: FileKind) -> Result<Vec<FileInfo>, BackendError> {
        let mut all = self.below.list(kind)?;
        if let Some(slot) = slot(kind) {
            all.extend(self.kept().files[slot].iter().map(|(id, (_, len))| FileInfo { id: *id, size: *len as u64 }));
        }
        Ok(all)
    }

    fn read(&self, kind: FileKind, id: Id) -> Result<Vec<u8>, BackendError> {
        match self.find(kind, id) {
            Some((_, len)) => self.read_range(kind, id, 0, len),
            None => self.below.read(kind, id),
        }
    }

    fn read_range(&self, kind: FileKind, id: Id, offset: u64, len: usize) -> Result<Vec<u8>, BackendError> {
        let Some((start, length)) = self.find(kind, id) else { return self.below.read_range(kind, id, offset, len) };
        if offset.saturating_add(len as u64) > length as u64 {
            return Err(failed("read", kind, id, io::ErrorKind::UnexpectedEof.into()));
        }
        let mut data = vec![0; len];
        self.file.read_exact_at(&mut data, start + offset).map_err(|e| failed("read", kind, id, e))?;
        Ok(data)
    }

    fn write(&self, kind: FileKind, id: Id, data: &[u8]) -> Result<(), BackendError> {
        let Some(slot) = slot(kind) else {
            return Err(failed("write", kind, id, io::ErrorKind::Unsupported.into()));
        };
        let start = {
            let mut kept = self.kept();
            let start = kept.end;
            let length = data.len() as u64;
            if start.saturating_add(length) > self.most
                || !self.has_room(length).map_err(|e| failed("write", kind, id, e))?
            {
                return Err(failed("write", kind, id, io::ErrorKind::StorageFull.into()));
            }
            kept.end += length;
            start
        };
        self.file.write_all_at(data, start).map_err(|e| failed("write", kind, id, e))?;
        self.kept().files[slot].insert(id, (start, data.len()));
        Ok(())
    }

    fn remove(&self, kind: FileKind, id: Id) -> Result<(), BackendError> {
        Err(failed("remove", kind, id, io::ErrorKind::Unsupported.into()))
    }

    fn size(&self, kind: FileKind, id: Id) -> Result<Option<u64>, BackendError> {
        match self.find(kind, id) {
            Some((_, len)) => Ok(Some(len as u64)),
            None => self.below.size(kind, id),
        }
    }

    fn drop_caches(&self, kind: FileKind, id: Id) -> Result<(), BackendError> {
        if self.find(kind, id).is_some() { Ok(()) } else { self.below.drop_caches(kind, id) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_leaves_a_disk_to_those_who_need_it() {
        let size = 1000 << 20;
        assert!(leaves_enough(51 << 20, size, 1 << 20));
        assert!(!leaves_enough(51 << 20, size, 2 << 20));
        assert!(!leaves_enough(1 << 20, size, 2 << 20));
    }
}
