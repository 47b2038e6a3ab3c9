//! Fault injection of this process: taps around repository writes, and the failpoints of the fault build.

use std::fmt;
use std::sync::Arc;

use perennial_core::fault::{Moment, Tap, Verdict};
use perennial_snapshots::{Backend, BackendError, FileInfo, FileKind, Id};

/// A repository backend that asks a tap around every change.
pub struct TappedBackend {
    inner: Arc<dyn Backend>,
    tap: Arc<dyn Tap>,
}

impl fmt::Debug for TappedBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl TappedBackend {
    /// Wraps a backend.
    #[must_use]
    pub fn new(inner: Arc<dyn Backend>, tap: Arc<dyn Tap>) -> Self {
        Self { inner, tap }
    }

    fn tapped<T>(
        &self,
        (site, doing): (&str, &'static str),
        (kind, id): (FileKind, Option<Id>),
        call: impl FnOnce() -> Result<T, BackendError>,
    ) -> Result<T, BackendError> {
        let injected = || BackendError { doing, kind, id, source: std::io::Error::other("injected fault") };
        if self.tap.at(site, Moment::Before) != Verdict::Go {
            return Err(injected());
        }
        let answer = call();
        if self.tap.at(site, Moment::After) != Verdict::Go {
            return Err(injected());
        }
        answer
    }
}

impl Backend for TappedBackend {
    fn prepare(&self) -> Result<(), BackendError> {
        self.tapped(("repository.prepare", "prepare"), (FileKind::Config, None), || self.inner.prepare())
    }

    fn list(&self, kind: FileKind) -> Result<Vec<FileInfo>, BackendError> {
        self.inner.list(kind)
    }

    fn read(&self, kind: FileKind, id: Id) -> Result<Vec<u8>, BackendError> {
        self.tapped(("repository.read", "read"), (kind, Some(id)), || self.inner.read(kind, id))
    }

    fn read_range(&self, kind: FileKind, id: Id, offset: u64, len: usize) -> Result<Vec<u8>, BackendError> {
        self.tapped(("repository.read", "read"), (kind, Some(id)), || self.inner.read_range(kind, id, offset, len))
    }

    fn write(&self, kind: FileKind, id: Id, data: &[u8]) -> Result<(), BackendError> {
        self.tapped(("repository.write", "write"), (kind, Some(id)), || self.inner.write(kind, id, data))
    }

    fn remove(&self, kind: FileKind, id: Id) -> Result<(), BackendError> {
        self.tapped(("repository.remove", "remove"), (kind, Some(id)), || self.inner.remove(kind, id))
    }

    fn remove_unfinished(&self, kind: FileKind) -> Result<(), BackendError> {
        self.tapped(("repository.remove_unfinished", "remove unfinished"), (kind, None), || {
            self.inner.remove_unfinished(kind)
        })
    }

    fn remove_place(&self) -> Result<(), BackendError> {
        self.tapped(("repository.remove_place", "remove the place of"), (FileKind::Config, None), || {
            self.inner.remove_place()
        })
    }

    fn set_aside(&self, kind: FileKind, id: Id) -> Result<(), BackendError> {
        self.tapped(("repository.set_aside", "set aside"), (kind, Some(id)), || self.inner.set_aside(kind, id))
    }

    fn list_aside(&self, kind: FileKind) -> Result<Vec<FileInfo>, BackendError> {
        self.inner.list_aside(kind)
    }

    fn size(&self, kind: FileKind, id: Id) -> Result<Option<u64>, BackendError> {
        self.inner.size(kind, id)
    }

    fn drop_caches(&self, kind: FileKind, id: Id) -> Result<(), BackendError> {
        self.inner.drop_caches(kind, id)
    }
}

/// The tap a server runs with: none, unless this is the fault build and the environment names a point.
#[must_use]
pub fn process_tap() -> Arc<dyn Tap> {
    #[cfg(feature = "failpoints")]
    if let Ok(text) = std::env::var("PERENNIAL_FAILPOINT") {
        return Arc::new(KillAt::parse(&text));
    }
    Arc::new(perennial_core::fault::NoTap)
}

/// The tap of the fault build: ends this process with SIGKILL at a named point.
///
/// `site:before` or `site:after`, such as `engine.container_stop:after`, optionally followed by `#n` for the n-th time
/// the point is passed.
#[cfg(feature = "failpoints")]
#[derive(Debug)]
struct KillAt {
    point: String,
    left: std::sync::atomic::AtomicU32,
}

#[cfg(feature = "failpoints")]
impl KillAt {
    fn parse(text: &str) -> Self {
        let (point, count) = text.split_once('#').unwrap_or((text, "1"));
        let left = std::sync::atomic::AtomicU32::new(count.parse().unwrap_or(1));
        Self { point: point.to_owned(), left }
    }
}

#[cfg(feature = "failpoints")]
impl Tap for KillAt {
    fn at(&self, site: &str, moment: Moment) -> Verdict {
        use std::sync::atomic::Ordering;
        let moment = if moment == Moment::Before { "before" } else { "after" };
        if self.point.strip_prefix(site).and_then(|rest| rest.strip_prefix(':')) == Some(moment)
            && self.left.fetch_sub(1, Ordering::SeqCst) == 1
        {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        }
        Verdict::Go
    }
}
