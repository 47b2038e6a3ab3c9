//! Keeps the disk busy while a restore writes: what was written is sent to the disk now and then.
//!
//! Nothing is durable before the one call at the end; this only leaves it little to wait for.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Receiver;

use rustix::io::Errno;

/// So much is written before the disk is told to begin: enough to fill it, and little to wait for at the end.
const SYNC_EVERY: u64 = 128 << 20;

/// How many bytes are to be written before the file system is told to write them to the disk.
pub(crate) struct Behind(AtomicU64);

impl Behind {
    pub(crate) fn new() -> Self {
        Self(AtomicU64::new(SYNC_EVERY))
    }

    /// Reports whether so many bytes are enough for the next sync.
    pub(crate) fn is_due(&self, written: u64) -> bool {
        written >= self.0.load(Ordering::Relaxed)
    }

    /// Syncs each time it is asked to, until nobody can ask any more. What fails is reported and does not end it.
    pub(crate) fn run(
        &self,
        asked: Receiver<()>,
        written: &AtomicU64,
        sync: impl Fn() -> Result<(), Errno>,
        failed: impl Fn(Errno),
    ) {
        for () in asked {
            self.0.store(written.load(Ordering::Relaxed) + SYNC_EVERY, Ordering::Relaxed);
            if let Err(errno) = sync() {
                failed(errno);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::sync::mpsc::sync_channel;

    use super::*;

    #[test]
    fn a_sync_comes_after_so_many_bytes_and_its_failure_is_told() {
        let behind = Behind::new();
        assert!(!behind.is_due(SYNC_EVERY - 1));
        assert!(behind.is_due(SYNC_EVERY));
        let written = AtomicU64::new(SYNC_EVERY + 5);
        let (syncs, failures) = (Cell::new(0), RefCell::new(Vec::new()));
        let (ask, asked) = sync_channel(3);
        for _ in 0..3 {
            ask.send(()).expect("room");
        }
        drop(ask);
        let sync = || {
            syncs.set(syncs.get() + 1);
            if syncs.get() == 2 { Err(Errno::IO) } else { Ok(()) }
        };
        behind.run(asked, &written, sync, |errno| failures.borrow_mut().push(errno));
        assert_eq!((syncs.get(), failures.into_inner()), (3, vec![Errno::IO]));
        // Counted from what had been written when the last one began.
        assert!(!behind.is_due(2 * SYNC_EVERY + 4));
        assert!(behind.is_due(2 * SYNC_EVERY + 5));
    }
}
