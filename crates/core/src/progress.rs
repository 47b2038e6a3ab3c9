//! Progress of long work, and its cancellation: shared by engines, snapshots and operations.
//!
//! The one who works reports plain numbers; the one who watches decides how often to look and how to show them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Counts what a piece of long work has done so far; cheap to clone and to update from many threads.
#[derive(Debug, Clone, Default)]
pub struct Progress(Arc<Counters>);

#[derive(Debug, Default)]
struct Counters {
    bytes_done: AtomicU64,
    bytes_total: AtomicU64,
    files_done: AtomicU64,
    cancelled: AtomicBool,
}

/// What [`Progress`] showed at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ProgressReading {
    /// Bytes finished so far.
    pub bytes_done: u64,
    /// Bytes in all; zero while nobody knows.
    pub bytes_total: u64,
    /// Files finished so far.
    pub files_done: u64,
}

/// The work was cancelled by its owner before it ended; nothing it did counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cancelled")]
pub struct Cancelled;

impl Progress {
    /// Adds finished bytes.
    pub fn add_bytes(&self, bytes: u64) {
        self.0.bytes_done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Adds finished files.
    pub fn add_files(&self, files: u64) {
        self.0.files_done.fetch_add(files, Ordering::Relaxed);
    }

    /// Sets the expected total in bytes.
    pub fn set_total(&self, bytes: u64) {
        self.0.bytes_total.store(bytes, Ordering::Relaxed);
    }

    /// Reads the counters.
    #[must_use]
    pub fn read(&self) -> ProgressReading {
        ProgressReading {
            bytes_done: self.0.bytes_done.load(Ordering::Relaxed),
            bytes_total: self.0.bytes_total.load(Ordering::Relaxed),
            files_done: self.0.files_done.load(Ordering::Relaxed),
        }
    }

    /// Asks the work to stop at its next safe point.
    pub fn cancel(&self) {
        self.0.cancelled.store(true, Ordering::Relaxed);
    }

    /// Reports whether somebody asked for the end; workers call this between pieces.
    ///
    /// # Errors
    /// [`Cancelled`] once [`Progress::cancel`] was called.
    pub fn check(&self) -> Result<(), Cancelled> {
        if self.0.cancelled.load(Ordering::Relaxed) { Err(Cancelled) } else { Ok(()) }
    }
}
