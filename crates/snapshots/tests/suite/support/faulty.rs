//! Backends that count, stop, hang, and lie.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use perennial_core::progress::Progress;
use perennial_snapshots::*;

/// What a faulty store does to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Fails before the effect.
    Error,
    /// Fails after the effect.
    ErrorAfter,
    /// Reports success without doing it; leaves one file out of a listing; says that a file is not there.
    Lie,
    /// Writes or returns only the first half.
    Truncate,
    /// Writes or returns other bytes, and other sizes.
    Corrupt,
    /// Says nothing until somebody cancels the work, and fails then.
    Hang,
    /// Does what it should, and the work is cancelled meanwhile.
    Cancelled,
}

/// Where a call hangs.
#[derive(Debug, Default)]
pub struct Gate {
    /// Whether a call hangs, and whether it may go on.
    state: Mutex<(bool, bool)>,
    changed: Condvar,
}

impl Gate {
    fn hang(&self) {
        let mut state = self.state.lock().unwrap();
        state.0 = true;
        self.changed.notify_all();
        drop(self.changed.wait_while(state, |(_, open)| !*open).unwrap());
    }

    /// Runs work, cancels it when a call hangs, and lets the call fail then; returns what `calls` said at that moment, if one did.
    pub fn cancel_when_it_hangs<T>(
        &self,
        progress: &Progress,
        calls: &AtomicU64,
        work: impl FnOnce() -> T,
    ) -> (T, Option<u64>) {
        std::thread::scope(|scope| {
            let canceller = scope.spawn(|| {
                let state = self.state.lock().unwrap();
                let mut state = self.changed.wait_while(state, |(hangs, open)| !*hangs && !*open).unwrap();
                let before = calls.load(Ordering::SeqCst);
                progress.cancel();
                state.1 = true;
                self.changed.notify_all();
                state.0.then_some(before)
            });
            let done = work();
            self.state.lock().unwrap().1 = true;
            self.changed.notify_all();
            (done, canceller.join().unwrap())
        })
    }
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
    /// Counts calls of every kind, and names them.
    pub calls: AtomicU64,
    pub trace: Mutex<Vec<&'static str>>,
    /// The call that goes wrong, whatever kind it is of; negative: none.
    pub bad_call: AtomicI64,
    /// Which file of a listing is hit.
    pub victim: AtomicUsize,
    pub gate: Gate,
    /// What a call cancels.
    pub work: Mutex<Progress>,
    /// Files that are there, and in no listing.
    pub hidden: Mutex<Vec<Id>>,
    /// Listings lack what is written, and show what is removed, from now on.
    pub lags: AtomicBool,
    removed: Mutex<Vec<(FileKind, FileInfo)>>,
    /// Removals say that they are done, and do nothing.
    pub keeps: AtomicBool,
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
            calls: AtomicU64::new(0),
            trace: Mutex::default(),
            bad_call: AtomicI64::new(-1),
            victim: AtomicUsize::new(0),
            gate: Gate::default(),
            work: Mutex::default(),
            hidden: Mutex::default(),
            lags: AtomicBool::new(false),
            removed: Mutex::default(),
            keeps: AtomicBool::new(false),
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

    /// Counts a call; what goes wrong with it. Whatever hung fails.
    fn called(&self, what: &'static str) -> Option<Fault> {
        self.trace.lock().unwrap().push(what);
        let n = self.calls.fetch_add(1, Ordering::SeqCst) as i64;
        let fault = (n == self.bad_call.load(Ordering::SeqCst)).then_some(self.fault)?;
        match fault {
            Fault::Hang => {
                self.gate.hang();
                Some(Fault::Error)
            }
            Fault::Cancelled => {
                self.work.lock().unwrap().cancel();
                None
            }
            fault => Some(fault),
        }
    }

    fn change(&self, what: &'static str) -> Option<Fault> {
        let fault = self.called(what);
        let n = self.changes.fetch_add(1, Ordering::SeqCst) as i64;
        fault.or((n == self.bad_change.load(Ordering::SeqCst)).then_some(self.fault))
    }

    fn listed(
        &self,
        what: &'static str,
        kind: FileKind,
        list: impl FnOnce() -> Result<Vec<FileInfo>, BackendError>,
    ) -> Result<Vec<FileInfo>, BackendError> {
        let fault = self.called(what);
        let shown = |files: Vec<FileInfo>| {
            let hidden = self.hidden.lock().unwrap();
            let removed = self.removed.lock().unwrap();
            let removed = removed.iter().filter(|(of, _)| *of == kind && what == "list").map(|(_, file)| *file);
            files.into_iter().filter(|file| !hidden.contains(&file.id)).chain(removed).collect::<Vec<_>>()
        };
        let list = || list().map(shown);
        let Some(fault) = fault else { return list() };
        if matches!(fault, Fault::Error | Fault::ErrorAfter | Fault::Hang | Fault::Cancelled) {
            return Err(Self::error(what, kind, None));
        }
        let mut files = list()?;
        let victim = self.victim.load(Ordering::SeqCst) % files.len().max(1);
        match fault {
            Fault::Truncate => files.truncate(files.len() / 2),
            Fault::Lie if !files.is_empty() => drop(files.remove(victim)),
            _ => files.iter_mut().skip(victim).take(1).for_each(|file| file.size ^= 0x10),
        }
        Ok(files)
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
        let fault = self.called("read");
        let n = self.reads.fetch_add(1, Ordering::SeqCst) as i64;
        let fault = fault.or((n == self.bad_read.load(Ordering::SeqCst)).then_some(self.fault));
        match fault {
            None => read(),
            Some(Fault::Error | Fault::ErrorAfter | Fault::Hang | Fault::Cancelled) => {
                Err(Self::error("read", kind, Some(id)))
            }
            Some(Fault::Lie) => Ok(vec![0; read()?.len()]),
            Some(Fault::Truncate | Fault::Corrupt) => Ok(self.damage(read()?)),
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
        self.listed("list", kind, || self.inner.list(kind))
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
        let fault = self.change("write");
        if fault.is_none() && self.dead() {
            return Err(Self::error("write", kind, Some(id)));
        }
        if self.lags.load(Ordering::SeqCst) {
            self.hidden.lock().unwrap().push(id);
        }
        match fault {
            None => self.inner.write(kind, id, data),
            Some(Fault::Error | Fault::Hang | Fault::Cancelled) => Err(Self::error("write", kind, Some(id))),
            Some(Fault::ErrorAfter) => {
                self.inner.write(kind, id, data)?;
                Err(Self::error("write", kind, Some(id)))
            }
            Some(Fault::Lie) => Ok(()),
            Some(Fault::Truncate | Fault::Corrupt) => self.inner.write(kind, id, &self.damage(data.to_vec())),
        }
    }

    fn remove(&self, kind: FileKind, id: Id) -> Result<(), BackendError> {
        let fault = self.change("remove");
        if fault.is_none() && self.dead() {
            return Err(Self::error("remove", kind, Some(id)));
        }
        if self.keeps.load(Ordering::SeqCst) {
            return Ok(());
        }
        if self.lags.load(Ordering::SeqCst)
            && let Some(size) = self.inner.size(kind, id)?
        {
            self.removed.lock().unwrap().push((kind, FileInfo { id, size }));
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
        match self.called("size") {
            None => self.inner.size(kind, id),
            Some(Fault::Error | Fault::ErrorAfter | Fault::Hang | Fault::Cancelled) => {
                Err(Self::error("stat", kind, Some(id)))
            }
            Some(Fault::Lie) => Ok(None),
            Some(Fault::Truncate) => Ok(self.inner.size(kind, id)?.map(|size| size / 2)),
            Some(Fault::Corrupt) => Ok(self.inner.size(kind, id)?.map(|size| size ^ 0x10)),
        }
    }

    fn set_aside(&self, kind: FileKind, id: Id) -> Result<(), BackendError> {
        let fault = self.change("set aside");
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
        self.listed("list aside", kind, || self.inner.list_aside(kind))
    }

    fn drop_caches(&self, kind: FileKind, id: Id) -> Result<(), BackendError> {
        match self.called("drop caches") {
            None => self.inner.drop_caches(kind, id),
            Some(_) => Err(Self::error("stat", kind, Some(id))),
        }
    }
}

/// Calls a hook after each write, or before each listing and read.
pub struct HookedBackend<F> {
    inner: Arc<dyn Backend>,
    hook: F,
    before_reads: bool,
}

impl<F> std::fmt::Debug for HookedBackend<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.inner.fmt(f)
    }
}

impl<F: Fn(FileKind) + Send + Sync> HookedBackend<F> {
    pub fn new(inner: Arc<dyn Backend>, hook: F) -> Arc<Self> {
        Arc::new(Self { inner, hook, before_reads: false })
    }

    pub fn before_reads(inner: Arc<dyn Backend>, hook: F) -> Arc<Self> {
        Arc::new(Self { inner, hook, before_reads: true })
    }

    fn reads(&self, kind: FileKind) {
        if self.before_reads {
            (self.hook)(kind);
        }
    }
}

impl<F: Fn(FileKind) + Send + Sync> Backend for HookedBackend<F> {
    fn prepare(&self) -> Result<(), BackendError> {
        self.inner.prepare()
    }

    fn list(&self, kind: FileKind) -> Result<Vec<FileInfo>, BackendError> {
        self.reads(kind);
        self.inner.list(kind)
    }

    fn read(&self, kind: FileKind, id: Id) -> Result<Vec<u8>, BackendError> {
        self.reads(kind);
        self.inner.read(kind, id)
    }

    fn read_range(&self, kind: FileKind, id: Id, offset: u64, len: usize) -> Result<Vec<u8>, BackendError> {
        self.reads(kind);
        self.inner.read_range(kind, id, offset, len)
    }

    fn write(&self, kind: FileKind, id: Id, data: &[u8]) -> Result<(), BackendError> {
        self.inner.write(kind, id, data)?;
        if !self.before_reads {
            (self.hook)(kind);
        }
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
