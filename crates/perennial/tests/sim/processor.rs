//! On which processor a test runs.
//!
//! Each question to the database goes to a thread of its own and back. From one processor to another each of these ways costs more than
//! most questions do, above all where all processors are busy: a sweep that may go anywhere takes more than twice the time.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Keeps this thread, and what it starts from now on, on one of its processors: the one after so many.
pub fn stay_on(index: usize) {
    let Ok(allowed) = sched_getaffinity(None) else { return };
    let allowed: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)).collect();
    let Some(cpu) = allowed.get(index % allowed.len().max(1)) else { return };
    let mut one = CpuSet::new();
    one.set(*cpu);
    // Where that is not allowed, it takes longer.
    let _ = sched_setaffinity(None, &one);
}

/// The same where nextest says which of the tests that go on at once this one is.
pub fn stay() {
    if let Some(slot) = std::env::var("NEXTEST_TEST_GLOBAL_SLOT").ok().and_then(|slot| slot.parse().ok()) {
        stay_on(slot);
    }
}
