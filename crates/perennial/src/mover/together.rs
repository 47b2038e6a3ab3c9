//! Writers that are held once for several captures at the same time: from when the last is prepared until the last has
//! read everything.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use perennial_snapshots::{Error, Writers};

/// What the captures share.
pub(super) struct Together<'a> {
    writers: &'a dyn Writers,
    members: usize,
    meeting: Mutex<Meeting>,
    changed: Condvar,
}

#[derive(Default)]
struct Meeting {
    prepared: usize,
    done: usize,
    /// Whether the writers are held; none before it was tried.
    held: Option<bool>,
    /// A member ended before it was prepared.
    broken: bool,
    /// The last was done: the writers go on.
    over: bool,
}

/// One capture's part. One that ends early keeps nobody waiting.
pub(super) struct Member<'a> {
    together: &'a Together<'a>,
    stage: Mutex<Stage>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Preparing,
    Reading,
    Done,
}

fn other_failed() -> Error {
    Error::NotHeld { problem: "another part of the capture failed".to_owned() }
}

impl<'a> Together<'a> {
    pub(super) fn new(writers: &'a dyn Writers, members: usize) -> Self {
        Self { writers, members, meeting: Mutex::default(), changed: Condvar::new() }
    }

    pub(super) fn join(&'a self) -> Member<'a> {
        Member { together: self, stage: Mutex::new(Stage::Preparing) }
    }

    fn meeting(&self) -> MutexGuard<'_, Meeting> {
        self.meeting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hold(&self) -> Result<(), Error> {
        let mut meeting = self.meeting();
        meeting.prepared += 1;
        if meeting.prepared == self.members && !meeting.broken {
            let result = self.writers.hold();
            meeting.held = Some(result.is_ok());
            self.changed.notify_all();
            return result;
        }
        while meeting.held.is_none() && !meeting.broken {
            meeting = self.changed.wait(meeting).unwrap_or_else(PoisonError::into_inner);
        }
        if meeting.held == Some(true) { Ok(()) } else { Err(other_failed()) }
    }

    fn release(&self) -> Result<(), Error> {
        let mut meeting = self.meeting();
        meeting.done += 1;
        if meeting.done == self.members {
            let result = self.writers.release();
            meeting.over = true;
            self.changed.notify_all();
            return result;
        }
        // What comes after must not take the processors from one who still reads.
        while !meeting.over {
            meeting = self.changed.wait(meeting).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }
}

impl Member<'_> {
    fn stage(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Writers for Member<'_> {
    fn hold(&self) -> Result<(), Error> {
        let result = self.together.hold();
        *self.stage() = if result.is_ok() { Stage::Reading } else { Stage::Done };
        result
    }

    fn release(&self) -> Result<(), Error> {
        *self.stage() = Stage::Done;
        self.together.release()
    }
}

impl Drop for Member<'_> {
    fn drop(&mut self) {
        let stage = *self.stage();
        match stage {
            Stage::Preparing => {
                self.together.meeting().broken = true;
                self.together.changed.notify_all();
            }
            // Its failure is known; whether they were held all the time no longer matters.
            Stage::Reading => drop(self.together.release()),
            Stage::Done => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[derive(Default)]
    struct Count {
        holds: AtomicU32,
        releases: AtomicU32,
        refuses: bool,
    }

    impl Writers for Count {
        fn hold(&self) -> Result<(), Error> {
            self.holds.fetch_add(1, Ordering::SeqCst);
            if self.refuses { Err(Error::Cancelled) } else { Ok(()) }
        }

        fn release(&self) -> Result<(), Error> {
            self.releases.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }
    }

    fn both(
        count: &Count,
        first: impl FnOnce(Member<'_>) + Send,
        second: impl FnOnce(Member<'_>) + Send,
    ) -> (u32, u32) {
        let together = Together::new(count, 2);
        let (one, two) = (together.join(), together.join());
        std::thread::scope(|scope| {
            scope.spawn(|| first(one));
            scope.spawn(|| second(two));
        });
        (count.holds.load(Ordering::SeqCst), count.releases.load(Ordering::SeqCst))
    }

    fn whole(count: &Count) -> impl FnOnce(Member<'_>) + Send {
        move |member| {
            member.hold().expect("held");
            assert_eq!(count.releases.load(Ordering::SeqCst), 0, "they went on too early");
            member.release().expect("released");
        }
    }

    #[test]
    fn writers_are_held_once_for_all_and_nobody_waits_for_one_who_ended() {
        let count = Count::default();
        assert_eq!(both(&count, whole(&count), whole(&count)), (1, 1));
        // One ends before it is prepared: the other is told, and nobody was held.
        let count = Count::default();
        let told = |member: Member<'_>| assert!(member.hold().is_err());
        assert_eq!(both(&count, told, |member| drop(member)), (0, 0));
        // One ends while it reads.
        let count = Count::default();
        let ends = |member: Member<'_>| member.hold().expect("held");
        assert_eq!(both(&count, whole(&count), ends), (1, 1));
        // They could not be held.
        let count = Count { refuses: true, ..Count::default() };
        assert_eq!(both(&count, told, told), (1, 0));
    }
}
