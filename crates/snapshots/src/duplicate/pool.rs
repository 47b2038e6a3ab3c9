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
            let result = work(job);
            let mut state = self.lock();
            state.working -= 1;
            if let Err(error) = result {
                state.jobs.clear();
                state.failed.get_or_insert(error);
            }
            self.changed.notify_all();
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
