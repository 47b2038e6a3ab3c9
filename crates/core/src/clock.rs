//! The clock seam: real time in the server, virtual time in the simulator and in tests.

use jiff::Timestamp;

/// Tells the time. Decisions receive a `Timestamp`; only executors hold a clock.
pub trait Clock: Send + Sync {
    /// The current time, UTC.
    fn now(&self) -> Timestamp;
}

/// Makes identifiers, so that tests can make them repeatable.
pub trait IdSource: Send + Sync {
    /// Ten random bytes for the next identifier.
    fn random(&self) -> [u8; 10];
}
