//! A backend that uses no more than so many bytes a second.
//!
//! Writing waits beforehand and reading afterwards, because only then the size is known: a rate is kept on average, over
//! times that are long beside those of single files.

use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Backend, BackendError, FileInfo, FileKind};
use crate::id::Id;

/// Bytes a second, each direction for itself; none: as fast as it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bandwidth {
    /// To the store.
    pub up: Option<NonZeroU64>,
    /// From the store.
    pub down: Option<NonZeroU64>,
}

/// Keeps a rate over everything that goes through another backend.
#[derive(Debug)]
pub struct LimitedBackend {
    inner: Arc<dyn Backend>,
    up: Option<Bucket>,
    down: Option<Bucket>,
}

impl LimitedBackend {
    /// Limits a backend.
    #[must_use]
    pub fn new(inner: Arc<dyn Backend>, bandwidth: Bandwidth) -> Self {
        Self { inner, up: bandwidth.up.map(Bucket::new), down: bandwidth.down.map(Bucket::new) }
    }

    fn paid(&self, data: Result<Vec<u8>, BackendError>) -> Result<Vec<u8>, BackendError> {
        if let (Some(bucket), Ok(data)) = (&self.down, &data) {
            bucket.wait(data.len() as u64);
        }
        data
    }
}

/// A token bucket: tokens are bytes, and up to a second's worth of them is saved up while nothing happens.
#[derive(Debug)]
struct Bucket {
    rate: NonZeroU64,
    /// When everything that was promised so far is paid for; before now when tokens are saved up.
    paid_at: Mutex<Option<Instant>>,
}

impl Bucket {
    fn new(rate: NonZeroU64) -> Self {
        Self { rate, paid_at: Mutex::new(None) }
    }

    /// Takes tokens that may not be there yet; returns how long to wait for them.
    fn take(&self, now: Instant, bytes: u64) -> Duration {
        let cost = Duration::try_from_secs_f64(bytes as f64 / self.rate.get() as f64).unwrap_or(Duration::MAX);
        let mut paid_at = self.paid_at.lock().unwrap_or_else(PoisonError::into_inner);
        let full = now.checked_sub(Duration::from_secs(1)).unwrap_or(now);
        let from = paid_at.map_or(full, |at| at.max(full));
        // A cost beyond the clock's reach is one that nobody waits for to its end.
        let until = from.checked_add(cost).unwrap_or_else(|| now + Duration::from_secs(u64::from(u32::MAX)));
        *paid_at = Some(until);
        until.saturating_duration_since(now)
    }

    fn wait(&self, bytes: u64) {
        let wait = self.take(Instant::now(), bytes);
        if !wait.is_zero() {
            std::thread::sleep(wait);
        }
    }
}

impl Backend for LimitedBackend {
    fn prepare(&self) -> Result<(), BackendError> {
        self.inner.prepare()
    }

    fn list(&self, kind: FileKind) -> Result<Vec<FileInfo>, BackendError> {
        self.inner.list(kind)
    }

    fn read(&self, kind: FileKind, id: Id) -> Result<Vec<u8>, BackendError> {
        self.paid(self.inner.read(kind, id))
    }

    fn read_range(&self, kind: FileKind, id: Id, offset: u64, len: usize) -> Result<Vec<u8>, BackendError> {
        self.paid(self.inner.read_range(kind, id, offset, len))
    }

    fn write(&self, kind: FileKind, id: Id, data: &[u8]) -> Result<(), BackendError> {
        // A lock that waited behind gigabytes would not be fresh any more.
        if let Some(bucket) = self.up.as_ref().filter(|_| kind != FileKind::Lock) {
            bucket.wait(data.len() as u64);
        }
        self.inner.write(kind, id, data)
    }

    fn remove(&self, kind: FileKind, id: Id) -> Result<(), BackendError> {
        self.inner.remove(kind, id)
    }

    fn size(&self, kind: FileKind, id: Id) -> Result<Option<u64>, BackendError> {
        self.inner.size(kind, id)
    }

    fn remove_leftovers(&self) -> Result<u64, BackendError> {
        self.inner.remove_leftovers()
    }

    fn remove_unfinished(&self, kind: FileKind) -> Result<(), BackendError> {
        self.inner.remove_unfinished(kind)
    }

    fn remove_place(&self) -> Result<(), BackendError> {
        self.inner.remove_place()
    }

    fn set_aside(&self, kind: FileKind, id: Id) -> Result<(), BackendError> {
        self.inner.set_aside(kind, id)
    }

    fn list_aside(&self, kind: FileKind) -> Result<Vec<FileInfo>, BackendError> {
        self.inner.list_aside(kind)
    }

    fn drop_caches(&self, kind: FileKind, id: Id) -> Result<(), BackendError> {
        self.inner.drop_caches(kind, id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_kept_on_average_and_a_second_is_saved_up() {
        let bucket = Bucket::new(NonZeroU64::new(1000).unwrap());
        let start = Instant::now() + Duration::from_secs(60);
        // A second's worth is there from the beginning; what is taken beyond it is waited for.
        assert_eq!(bucket.take(start, 1000), Duration::ZERO);
        assert_eq!(bucket.take(start, 500), Duration::from_millis(500));
        assert_eq!(bucket.take(start, 500), Duration::from_secs(1), "whoever comes later waits for those before");
        assert_eq!(bucket.take(start + Duration::from_secs(1), 0), Duration::ZERO);
        // However long nothing happens, no more than a second is saved up.
        let later = start + Duration::from_secs(3600);
        assert_eq!(bucket.take(later, 3000), Duration::from_secs(2));
        assert!(bucket.take(later, u64::MAX) > Duration::from_secs(3600));
    }
}
