//! Several who walk one tree together: who has nothing to do gets a directory that somebody else has not come to.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

struct State<T> {
    tasks: Vec<T>,
    working: usize,
    waiting: usize,
    over: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // One who panicked passes it on when it is joined; what is left in here is only given up.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What those who walk a tree share.
pub(crate) struct Pool<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
    /// Whether somebody waits for whom there is no task; a hint that needs no lock.
    hungry: AtomicBool,
}

impl<T> Pool<T> {
    /// A pool of so many, all at work.
    pub(crate) fn new(walkers: usize) -> Self {
        let state = Mutex::new(State { tasks: Vec::new(), working: walkers, waiting: 0, over: false });
        Self { state, changed: Condvar::new(), hungry: AtomicBool::new(false) }
    }

    pub(crate) fn is_hungry(&self) -> bool {
        self.hungry.load(Ordering::Relaxed)
    }

    fn hint(&self, state: &State<T>) {
        self.hungry.store(state.waiting > state.tasks.len(), Ordering::Relaxed);
    }

    pub(crate) fn give(&self, task: T) {
        let mut state = lock(&self.state);
        state.tasks.push(task);
        self.hint(&state);
        self.changed.notify_one();
    }

    /// The next task, from one who has nothing left; none when nobody has, or when the walk was given up.
    pub(crate) fn take(&self) -> Option<T> {
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
    pub(crate) fn give_up(&self) {
        lock(&self.state).over = true;
        self.changed.notify_all();
    }
}
