//! Directories that wait to be copied, and the threads that do it.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};
use crate::fsdir::Dir;

/// Directories that wait keep their descriptors up to this number; the others are found again by their paths.
const OPEN_MAX: usize = 128;

/// One directory to copy.
pub(super) struct Job {
    /// Index of the tree that it is in.
    pub(super) tree: usize,
    pub(super) from: Dir,
    pub(super) to: Dir,
    /// Whether the copy was made by this pass, so that there is nothing in it.
    pub(super) fresh: bool,
}

#[derive(Default)]
struct State {
    jobs: Vec<Job>,
    working: usize,
    failed: Option<Error>,
}

/// What the threads share. The newest directory is taken first, so few wait at a time.
pub(super) struct Pool {
    threads: usize,
    state: Mutex<State>,
    changed: Condvar,
}

/// A job in work. Whichever way that ends, the others learn of it: also when it panics, after which nothing counts.
struct Working<'a> {
    pool: &'a Pool,
    failed: Option<Error>,
}

impl Drop for Working<'_> {
    fn drop(&mut self) {
        let mut state = self.pool.lock();
        state.working -= 1;
        if let Some(error) = self.failed.take() {
            state.jobs.clear();
            state.failed.get_or_insert(error);
        }
        self.pool.changed.notify_all();
    }
}

impl Pool {
    pub(super) fn new(threads: usize) -> Self {
        Self { threads, state: Mutex::default(), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn give(&self, job: Job) {
        let mut state = self.lock();
        if state.jobs.len() >= OPEN_MAX {
            job.from.release();
            job.to.release();
        }
        state.jobs.push(job);
        self.changed.notify_one();
    }

    /// Does every job, and those that come up meanwhile, on all threads; the first failure ends all.
    pub(super) fn run(&self, work: impl Fn(Job) -> Result<()> + Sync) -> Result<()> {
        std::thread::scope(|scope| {
            for _ in 1..self.threads {
                let spawned =
                    std::thread::Builder::new().name("copy".to_owned()).spawn_scoped(scope, || self.help(&work));
                if spawned.is_err() {
                    // Fewer threads take longer.
                    break;
                }
            }
            self.help(&work);
        });
        self.lock().failed.take().map_or(Ok(()), Err)
    }

    fn help(&self, work: &(impl Fn(Job) -> Result<()> + Sync)) {
        while let Some(job) = self.take() {
            let mut working = Working { pool: self, failed: Some(Error::Cancelled) };
            working.failed = work(job).err();
        }
    }

    fn take(&self) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if state.failed.is_some() {
                return None;
            }
            if let Some(job) = state.jobs.pop() {
                state.working += 1;
                return Some(job);
            }
            if state.working == 0 {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_defect_in_one_job_ends_all_threads() {
        let temp = tempfile::tempdir().expect("temp");
        let open = || Dir::open_root(temp.path()).expect("open");
        let pool = Pool::new(3);
        pool.give(Job { tree: 0, from: open(), to: open(), fresh: true });
        // A thread that waits for the one that panicked would wait for ever.
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| pool.run(|_| panic!("a defect"))));
        assert!(ended.is_err());
    }
}
