//! A repository in memory: for the simulator and for tests. Clones share their content.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Backend, BackendError, FileInfo, FileKind};
use crate::id::Id;

type Files = BTreeMap<(FileKind, Id), Arc<Vec<u8>>>;

/// Keeps all files in memory; as strict as a real store, and gone with its last clone.
#[derive(Clone, Default)]
pub struct MemoryBackend(Arc<Mutex<Files>>, Arc<Mutex<Files>>);

impl std::fmt::Debug for MemoryBackend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MemoryBackend({} files)", self.files().len())
    }
}

impl MemoryBackend {
    /// Makes an empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn files(&self) -> MutexGuard<'_, Files> {
        // The map is never left half changed, so a panic elsewhere does not make it wrong.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn aside(&self) -> MutexGuard<'_, Files> {
        self.1.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was set aside, by its id.
    #[must_use]
    pub fn set_aside_files(&self) -> Vec<(FileKind, Id)> {
        self.aside().keys().copied().collect()
    }

    /// Deletes what was set aside, as a person would.
    pub fn delete_aside(&self, kind: FileKind, id: Id) {
        self.aside().remove(&(kind, id));
    }

    fn get(&self, doing: &'static str, kind: FileKind, id: Id) -> Result<Arc<Vec<u8>>, BackendError> {
        self.files().get(&(kind, id)).cloned().ok_or_else(|| BackendError {
            doing,
            kind,
            id: Some(id),
            source: io::ErrorKind::NotFound.into(),
        })
    }

    /// Copies everything into a store of its own: the state a crash at this moment would leave.
    #[must_use]
    pub fn snapshot(&self) -> Self {
        Self(Arc::new(Mutex::new(self.files().clone())), Arc::new(Mutex::new(self.aside().clone())))
    }
}

impl Backend for MemoryBackend {
    fn prepare(&self) -> Result<(), BackendError> {
        Ok(())
    }

    fn list(&self, kind: FileKind) -> Result<Vec<FileInfo>, BackendError> {
        Ok(self
            .files()
            .range((kind, Id([0; 32]))..=(kind, Id([255; 32])))
            .map(|((_, id), data)| FileInfo { id: *id, size: data.len() as u64 })
            .collect())
    }

    fn read(&self, kind: FileKind, id: Id) -> Result<Vec<u8>, BackendError> {
        Ok(self.get("read", kind, id)?.to_vec())
    }

    fn read_range(&self, kind: FileKind, id: Id, offset: u64, len: usize) -> Result<Vec<u8>, BackendError> {
        let data = self.get("read", kind, id)?;
        let part = usize::try_from(offset).ok().and_then(|start| data.get(start..start.checked_add(len)?)).ok_or_else(
            || BackendError {
                doing: "read",
                kind,
                id: Some(id),
                source: io::Error::new(io::ErrorKind::UnexpectedEof, "the file is shorter than it must be"),
            },
        )?;
        Ok(part.to_vec())
    }

    fn write(&self, kind: FileKind, id: Id, data: &[u8]) -> Result<(), BackendError> {
        let mut files = self.files();
        if kind == FileKind::Config && files.contains_key(&(kind, id)) {
            return Err(BackendError {
                doing: "write",
                kind,
                id: Some(id),
                source: io::ErrorKind::AlreadyExists.into(),
            });
        }
        files.insert((kind, id), Arc::new(data.to_vec()));
        Ok(())
    }

    fn remove(&self, kind: FileKind, id: Id) -> Result<(), BackendError> {
        self.files().remove(&(kind, id));
        Ok(())
    }

    fn size(&self, kind: FileKind, id: Id) -> Result<Option<u64>, BackendError> {
        Ok(self.files().get(&(kind, id)).map(|data| data.len() as u64))
    }

    fn set_aside(&self, kind: FileKind, id: Id) -> Result<(), BackendError> {
        let moved = self.files().remove(&(kind, id));
        if let Some(data) = moved {
            self.aside().insert((kind, id), data);
        }
        Ok(())
    }

    fn list_aside(&self, kind: FileKind) -> Result<Vec<FileInfo>, BackendError> {
        let aside = self.aside();
        let of_kind = aside.iter().filter(|((other, _), _)| *other == kind);
        Ok(of_kind.map(|((_, id), data)| FileInfo { id: *id, size: data.len() as u64 }).collect())
    }

    fn drop_caches(&self, kind: FileKind, id: Id) -> Result<(), BackendError> {
        self.get("stat", kind, id).map(drop)
    }
}
