//! A clock that moves only when told.

use std::sync::{Arc, Mutex, PoisonError};

use jiff::{SignedDuration, Timestamp};
use perennial_core::clock::Clock;

/// A settable clock; clones show the same time.
#[derive(Debug, Clone)]
pub struct VirtualClock {
    now: Arc<Mutex<Timestamp>>,
}

impl VirtualClock {
    /// A clock that shows `now` until told otherwise.
    #[must_use]
    pub fn new(now: Timestamp) -> Self {
        Self { now: Arc::new(Mutex::new(now)) }
    }

    /// Sets the time, backwards too: real clocks are set back as well.
    pub fn set(&self, now: Timestamp) {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }

    /// Moves the time on, at most to the end of what a timestamp can show.
    pub fn advance(&self, by: SignedDuration) {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        *now = now.checked_add(by).unwrap_or(Timestamp::MAX);
    }
}

impl Default for VirtualClock {
    /// Noon of 1 January 2026, UTC.
    fn default() -> Self {
        Self::new(Timestamp::from_second(1_767_268_800).unwrap_or(Timestamp::UNIX_EPOCH))
    }
}

impl Clock for VirtualClock {
    fn now(&self) -> Timestamp {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
