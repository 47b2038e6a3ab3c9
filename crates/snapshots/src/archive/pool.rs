//! Several scanners of one root: who has nothing to do gets a directory that somebody else has not come to.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use super::build::{Known, Pending};
use super::lock;
use crate::fsdir::Dir;

/// A directory that another scanner opened and left to whoever comes.
pub(super) struct Task {
    pub(super) dir: Dir,
    /// Where its node goes.
    pub(super) parent: (Arc<Pending>, usize),
    pub(super) known: Vec<Known>,
    pub(super) name: Vec<u8>,
}

#[derive(Default)]
struct State {
    tasks: Vec<Task>,
    working: usize,
    waiting: usize,
    over: bool,
}

/// What the scanners of a root share.
pub(super) struct Pool {
    state: Mutex<State>,
    changed: Condvar,
    /// Whether somebody waits for whom there is no task; a hint that needs no lock.
    hungry: AtomicBool,
}

impl Pool {
    /// A pool of so many scanners, all at work.
    pub(super) fn new(scanners: usize) -> Self {
        let state = Mutex::new(State { working: scanners, ..State::default() });
        Self { state, changed: Condvar::new(), hungry: AtomicBool::new(false) }
    }

    pub(super) fn is_hungry(&self) -> bool {
        self.hungry.load(Ordering::Relaxed)
    }

    fn hint(&self, state: &State) {
        self.hungry.store(state.waiting > state.tasks.len(), Ordering::Relaxed);
    }

    pub(super) fn give(&self, task: Task) {
        let mut state = lock(&self.state);
        state.tasks.push(task);
        self.hint(&state);
        self.changed.notify_one();
    }

    /// The next task, from one who has nothing left; none when nobody has, or when the scan was given up.
    pub(super) fn take(&self) -> Option<Task> {
        let mut state = lock(&self.state);
        state.working -= 1;
        state.waiting += 1;
        loop {
            if state.working == 0 && state.tasks.is_empty() {
                state.over = true;
                self.changed.notify_all();
            }
            let task = if state.over { None } else { state.tasks.pop() };
            if task.is_some() || state.over {
                state.waiting -= 1;
                state.working += usize::from(task.is_some());
                self.hint(&state);
                return task;
            }
            self.hint(&state);
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Ends everybody's waiting after a failure.
    pub(super) fn give_up(&self) {
        lock(&self.state).over = true;
        self.changed.notify_all();
    }
}
