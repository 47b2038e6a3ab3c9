//! Progress of long work, and its cancellation: shared by engines, snapshots and operations.
//!
//! The one who works reports plain numbers; the one who watches decides how often to look and how to show them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Counts what a piece of long work has done so far; cheap to clone and to update from many threads.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    counters: Arc<Counters>,
    wanted: Arc<Wanted>,
}

#[derive(Debug, Default)]
struct Counters {
    bytes_done: AtomicU64,
    bytes_total: AtomicU64,
    files_done: AtomicU64,
}

/// Whether work is wanted still: a part's is no longer when the whole's is not.
#[derive(Debug, Default)]
struct Wanted {
    cancelled: AtomicBool,
    whole: Option<Arc<Wanted>>,
}

impl Wanted {
    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed) || self.whole.as_ref().is_some_and(|whole| whole.is_cancelled())
    }
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

/// Shorter than that a rate says nothing.
const RATE_AFTER: Duration = Duration::from_secs(1);

impl ProgressReading {
    /// Bytes a second since the work began, `elapsed` ago; `None` in its first second and while no byte is done.
    #[must_use]
    pub fn rate(&self, elapsed: Duration) -> Option<u64> {
        let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        let per_second = u128::from(self.bytes_done) * 1000 / u128::from(millis.max(1));
        let rate = u64::try_from(per_second).unwrap_or(u64::MAX);
        (elapsed >= RATE_AFTER && rate > 0).then_some(rate)
    }

    /// How long the rest takes at that rate; `None` while the rate or the total is unknown, or when nothing is left.
    #[must_use]
    pub fn left(&self, elapsed: Duration) -> Option<Duration> {
        let rest = self.bytes_total.checked_sub(self.bytes_done).filter(|rest| *rest > 0)?;
        self.rate(elapsed).map(|rate| Duration::from_secs(rest.div_ceil(rate)))
    }
}

/// The work was cancelled by its owner before it ended; nothing it did counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cancelled")]
pub struct Cancelled;

impl Progress {
    /// Adds finished bytes.
    pub fn add_bytes(&self, bytes: u64) {
        self.counters.bytes_done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Adds finished files.
    pub fn add_files(&self, files: u64) {
        self.counters.files_done.fetch_add(files, Ordering::Relaxed);
    }

    /// Sets the expected total in bytes.
    pub fn set_total(&self, bytes: u64) {
        self.counters.bytes_total.store(bytes, Ordering::Relaxed);
    }

    /// Expects so many bytes beyond those that are done: what comes next in work that has several parts.
    pub fn expect_more(&self, bytes: u64) {
        self.set_total(self.read().bytes_done.saturating_add(bytes));
    }

    /// Expects about so many bytes beyond those that are done, by what something like it was before; zero: nobody knows.
    pub fn estimate(&self, bytes: u64) {
        if bytes == 0 { self.set_total(0) } else { self.expect_more(bytes) }
    }

    /// Corrects an estimate that turned out to be too low; where nothing was expected, nobody knows the total still.
    pub fn at_least(&self, bytes: u64) {
        let raise = |total: u64| (0 < total && total < bytes).then_some(bytes);
        // Nothing to correct is no failure.
        let _ = self.counters.bytes_total.fetch_update(Ordering::Relaxed, Ordering::Relaxed, raise);
    }

    /// Progress of a part: it counts for the whole, and can be cancelled alone.
    #[must_use]
    pub fn part(&self) -> Self {
        let wanted = Wanted { whole: Some(Arc::clone(&self.wanted)), ..Wanted::default() };
        Self { counters: Arc::clone(&self.counters), wanted: Arc::new(wanted) }
    }

    /// Progress of a part that counts for itself alone, and is cancelled with the whole.
    #[must_use]
    pub fn apart(&self) -> Self {
        Self { counters: Arc::default(), ..self.part() }
    }

    /// Reads the counters.
    #[must_use]
    pub fn read(&self) -> ProgressReading {
        ProgressReading {
            bytes_done: self.counters.bytes_done.load(Ordering::Relaxed),
            bytes_total: self.counters.bytes_total.load(Ordering::Relaxed),
            files_done: self.counters.files_done.load(Ordering::Relaxed),
        }
    }

    /// Asks the work to stop at its next safe point.
    pub fn cancel(&self) {
        self.wanted.cancelled.store(true, Ordering::Relaxed);
    }

    /// Reports whether somebody asked for the end; workers call this between pieces.
    ///
    /// # Errors
    /// [`Cancelled`] once [`Progress::cancel`] was called.
    pub fn check(&self) -> Result<(), Cancelled> {
        if self.wanted.is_cancelled() { Err(Cancelled) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_cancelled_alone_and_with_the_whole() {
        let whole = Progress::default();
        let (one, other) = (whole.part(), whole.part());
        one.add_files(1);
        one.cancel();
        assert_eq!((one.check(), other.check(), whole.check()), (Err(Cancelled), Ok(()), Ok(())));
        assert_eq!((whole.read().files_done, other.read().files_done), (1, 1));
        let apart = whole.apart();
        apart.add_files(5);
        assert_eq!((apart.read().files_done, whole.read().files_done), (5, 1));
        assert_eq!(apart.check(), Ok(()));
        whole.cancel();
        assert_eq!(apart.check(), Err(Cancelled));
        assert_eq!((other.check(), other.part().check()), (Err(Cancelled), Err(Cancelled)));
    }

    #[test]
    fn an_estimate_is_corrected_upwards_only() {
        let progress = Progress::default();
        progress.at_least(5);
        assert_eq!(progress.read().bytes_total, 0, "nobody expected anything");
        progress.add_bytes(3);
        progress.estimate(0);
        progress.at_least(5);
        assert_eq!(progress.read().bytes_total, 0, "that it is something is all that anybody knows");
        progress.estimate(10);
        for (at_least, total) in [(4, 13), (20, 20), (15, 20)] {
            progress.at_least(at_least);
            assert_eq!(progress.read().bytes_total, total);
        }
    }

    #[test]
    fn rate_and_time_left_are_told_once_they_mean_something() {
        let seconds = Duration::from_secs;
        let reading = |bytes_done, bytes_total| ProgressReading { bytes_done, bytes_total, files_done: 0 };
        assert_eq!(reading(500, 1000).rate(Duration::from_millis(999)), None);
        assert_eq!(
            (reading(500, 1000).rate(seconds(2)), reading(500, 1000).left(seconds(2))),
            (Some(250), Some(seconds(2)))
        );
        assert_eq!(reading(500, 1001).left(seconds(2)), Some(seconds(3)), "never less than it takes");
        for (now, why) in
            [(reading(0, 1000), "nothing done"), (reading(1000, 1000), "nothing left"), (reading(9, 0), "no total")]
        {
            assert_eq!(now.left(seconds(5)), None, "{why}");
        }
        // Files that grew: more was done than was expected.
        assert_eq!(reading(2000, 1000).left(seconds(5)), None);
        assert_eq!(reading(u64::MAX, u64::MAX).rate(seconds(1)), Some(u64::MAX));
        assert_eq!(reading(1, 2).rate(seconds(5)), None, "less than a byte a second");
    }
}
