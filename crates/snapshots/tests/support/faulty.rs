//! Backends that count, stop, and lie.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use perennial_snapshots::*;

/// What a faulty store does to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Fails before the effect.
    Error,
    /// Fails after the effect.
    ErrorAfter,
    /// Reports success without doing it.
    Lie,
    /// Writes or returns only the first half.
    Truncate,
    /// Writes or returns other bytes.
    Corrupt,
}

#[derive(Debug)]
pub struct FaultyBackend {
    pub inner: Arc<dyn Backend>,
    /// Counts writes and removals.
    pub changes: AtomicU64,
    pub reads: AtomicU64,
    /// The change (counted from 0) that goes wrong; negative: none.
    pub bad_change: AtomicI64,
    /// From the bad change on, everything fails: the process died.
    pub then_dead: bool,
    pub bad_read: AtomicI64,
    /// Longer pieces of packs cannot be read.
    pub longest_piece: AtomicU64,
    /// These bytes of these packs cannot be read: a part of the medium is gone.
    pub rotten: Mutex<Vec<(Id, Range<u64>)>>,
    /// No pack can be read any more: all of the medium is gone.
    pub medium_gone: AtomicBool,
    pub fault: Fault,
}

impl FaultyBackend {
    pub fn new(inner: Arc<dyn Backend>, fault: Fault, then_dead: bool) -> Arc<Self> {
        Arc::new(Self {
            inner,
            changes: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            bad_change: AtomicI64::new(-1),
            then_dead,
            bad_read: AtomicI64::new(-1),
            longest_piece: AtomicU64::new(u64::MAX),
            rotten: Mutex::default(),
            medium_gone: AtomicBool::new(false),
            fault,
        })
    }

    fn error(doing: &'static str, kind: FileKind, id: Option<Id>) -> BackendError {
        BackendError { doing, kind, id, source: io::Error::other("injected") }
    }

    fn medium(&self, kind: FileKind, id: Id, wanted: Range<u64>) -> Result<(), BackendError> {
        let rotten = self.rotten.lock().unwrap();
        let hit = rotten.iter().any(|(pack, part)| *pack == id && part.start < wanted.end && wanted.start < part.end);
        if kind != FileKind::Pack || !(hit || self.medium_gone.load(Ordering::SeqCst)) {
            return Ok(());
        }
        let source = io::Error::from(rustix::io::Errno::IO);
        Err(BackendError { doing: "read", kind, id: Some(id), source })
    }

    fn dead(&self) -> bool {
        let bad = self.bad_change.load(Ordering::SeqCst);
        self.then_dead && bad >= 0 && self.changes.load(Ordering::SeqCst) as i64 > bad
    }

    fn change(&self) -> Option<Fault> {
        let n = self.changes.fetch_add(1, Ordering::SeqCst) as i64;
        (n == self.bad_change.load(Ordering::SeqCst)).then_some(self.fault)
    }

    fn damage(&self, mut data: Vec<u8>) -> Vec<u8> {
        match self.fault {
            Fault::Truncate => data.truncate(data.len() / 2),
            _ => {
                let middle = data.len() / 2;
                if let Some(byte) = data.get_mut(middle) {
                    *byte ^= 0x10;
                }
            }
        }
        data
    }

    fn after_read(
        &self,
        kind: FileKind,
        id: Id,
        read: impl FnOnce() -> Result<Vec<u8>, BackendError>,
    ) -> Result<Vec<u8>, BackendError> {
        if self.dead() {
            return Err(Self::error("read", kind, Some(id)));
        }
        let n = self.reads.fetch_add(1, Ordering::SeqCst) as i64;
        if n != self.bad_read.load(Ordering::SeqCst) {
            return read();
        }
        match self.fault {
            Fault::Error | Fault::ErrorAfter => Err(Self::error("read", kind, Some(id))),
            Fault::Lie => Ok(vec![0; read()?.len()]),
            Fault::Truncate | Fault::Corrupt => Ok(self.damage(read()?)),
        }
    }
}

impl Backend for FaultyBackend {
    fn prepare(&self) -> Result<(), BackendError> {
        self.inner.prepare()
    }

    fn list(&self, kind: FileKind) -> Result<Vec<FileInfo>, BackendError> {
        if self.dead() {
            return Err(Self::error("list", kind, None));
        }
        self.inner.list(kind)
    }

    fn read(&self, kind: FileKind, id: Id) -> Result<Vec<u8>, BackendError> {
        self.medium(kind, id, 0..u64::MAX)?;
        self.after_read(kind, id, || self.inner.read(kind, id))
    }

    fn read_range(&self, kind: FileKind, id: Id, offset: u64, len: usize) -> Result<Vec<u8>, BackendError> {
        if len as u64 > self.longest_piece.load(Ordering::SeqCst) {
            return Err(Self::error("read", kind, Some(id)));
        }
        self.medium(kind, id, offset..offset + len as u64)?;
        self.after_read(kind, id, || self.inner.read_range(kind, id, offset, len))
    }

    fn write(&self, kind: FileKind, id: Id, data: &[u8]) -> Result<(), BackendError> {
        let fault = self.change();
        if fault.is_none() && self.dead() {
            return Err(Self::error("write", kind, Some(id)));
        }
        match fault {
            None => self.inner.write(kind, id, data),
            Some(Fault::Error) => Err(Self::error("write", kind, Some(id))),
            Some(Fault::ErrorAfter) => {
                self.inner.write(kind, id, data)?;
                Err(Self::error("write", kind, Some(id)))
            }
            Some(Fault::Lie) => Ok(()),
            Some(Fault::Truncate | Fault::Corrupt) => self.inner.write(kind, id, &self.damage(data.to_vec())),
        }
    }

    fn remove(&self, kind: FileKind, id: Id) -> Result<(), BackendError> {
        let fault = self.change();
        if fault.is_none() && self.dead() {
            return Err(Self::error("remove", kind, Some(id)));
        }
        match fault {
            None => self.inner.remove(kind, id),
            Some(Fault::Lie) => Ok(()),
            Some(Fault::ErrorAfter) => {
                self.inner.remove(kind, id)?;
                Err(Self::error("remove", kind, Some(id)))
            }
            Some(_) => Err(Self::error("remove", kind, Some(id))),
        }
    }

    fn size(&self, kind: FileKind, id: Id) -> Result<Option<u64>, BackendError> {
        if self.dead() {
            return Err(Self::error("stat", kind, Some(id)));
        }
        self.inner.size(kind, id)
    }

    fn set_aside(&self, kind: FileKind, id: Id) -> Result<(), BackendError> {
        let fault = self.change();
        if fault.is_none() && self.dead() {
            return Err(Self::error("set aside", kind, Some(id)));
        }
        match fault {
            None => self.inner.set_aside(kind, id),
            Some(Fault::Lie) => Ok(()),
            Some(Fault::ErrorAfter) => {
                self.inner.set_aside(kind, id)?;
                Err(Self::error("set aside", kind, Some(id)))
            }
            Some(_) => Err(Self::error("set aside", kind, Some(id))),
        }
    }

    fn list_aside(&self, kind: FileKind) -> Result<Vec<FileInfo>, BackendError> {
        self.inner.list_aside(kind)
    }

    fn drop_caches(&self, kind: FileKind, id: Id) -> Result<(), BackendError> {
        self.inner.drop_caches(kind, id)
    }
}

/// Calls a hook after each write.
pub struct HookedBackend<F> {
    inner: Arc<dyn Backend>,
    hook: F,
}

impl<F> std::fmt::Debug for HookedBackend<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.inner.fmt(f)
    }
}

impl<F: Fn(FileKind) + Send + Sync> HookedBackend<F> {
    pub fn new(inner: Arc<dyn Backend>, hook: F) -> Arc<Self> {
        Arc::new(Self { inner, hook })
    }
}

impl<F: Fn(FileKind) + Send + Sync> Backend for HookedBackend<F> {
    fn prepare(&self) -> Result<(), BackendError> {
        self.inner.prepare()
    }

    fn list(&self, kind: FileKind) -> Result<Vec<FileInfo>, BackendError> {
        self.inner.list(kind)
    }

    fn read(&self, kind: FileKind, id: Id) -> Result<Vec<u8>, BackendError> {
        self.inner.read(kind, id)
    }

    fn read_range(&self, kind: FileKind, id: Id, offset: u64, len: usize) -> Result<Vec<u8>, BackendError> {
        self.inner.read_range(kind, id, offset, len)
    }

    fn write(&self, kind: FileKind, id: Id, data: &[u8]) -> Result<(), BackendError> {
        self.inner.write(kind, id, data)?;
        (self.hook)(kind);
        Ok(())
    }

    fn remove(&self, kind: FileKind, id: Id) -> Result<(), BackendError> {
        self.inner.remove(kind, id)
    }

    fn size(&self, kind: FileKind, id: Id) -> Result<Option<u64>, BackendError> {
        self.inner.size(kind, id)
    }

    fn list_aside(&self, kind: FileKind) -> Result<Vec<FileInfo>, BackendError> {
        self.inner.list_aside(kind)
    }

    fn drop_caches(&self, kind: FileKind, id: Id) -> Result<(), BackendError> {
        self.inner.drop_caches(kind, id)
    }
}
