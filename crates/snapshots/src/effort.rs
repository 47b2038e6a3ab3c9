//! How much of the machine the work on a repository takes.

use std::num::NonZeroUsize;

use rustix::process::{Pid, getpriority_process, setpriority_process};

/// Niceness of a thread that gets only what nobody else wants.
const NICE_MAX: u8 = 19;

/// A bound to what work on a repository takes from everything else on its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Effort {
    /// Threads of one piece of work; `None` takes a few more than there are processors, because some wait for disks and stores.
    pub threads: Option<NonZeroUsize>,
    /// How far its threads stand back behind others, as in nice(1): from 0 to 19. Where the disk's scheduler goes by it, so do
    /// their reads and writes (ioprio_set(2)). A running pod that is frozen for a snapshot is read with no such regard.
    pub nice: u8,
}

impl Effort {
    /// How many threads to begin, where so many more than there are processors would be waiting at a time.
    pub(crate) fn threads(self, waiting: usize, most: usize) -> usize {
        let many = || std::thread::available_parallelism().map_or(2, NonZeroUsize::get) + waiting;
        self.threads.map_or_else(many, NonZeroUsize::get).clamp(1, most.max(1))
    }

    /// Makes the thread that calls this one of the work; it must end with it, because it cannot be taken back.
    pub(crate) fn begin(self) {
        if self.nice == 0 {
            return;
        }
        let thread = Some(rustix::thread::gettid());
        let wanted = i32::from(self.nice.min(NICE_MAX));
        // A process that stands back further as a whole stays there: to come forward takes a privilege.
        if nice_of(thread).is_some_and(|now| now < wanted)
            && let Err(error) = setpriority_process(thread, wanted)
        {
            tracing::debug!(%error, "stand back behind others");
        }
    }
}

fn nice_of(thread: Option<Pid>) -> Option<i32> {
    getpriority_process(thread).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_as_many_as_was_said_and_never_none() {
        let of = |threads| Effort { threads: NonZeroUsize::new(threads), nice: 0 };
        assert_eq!((of(1).threads(2, 16), of(5).threads(2, 16), of(99).threads(2, 16)), (1, 5, 16));
        let processors = std::thread::available_parallelism().map_or(2, NonZeroUsize::get);
        assert_eq!(Effort::default().threads(2, 1000), processors + 2);
        assert_eq!(Effort::default().threads(0, 0), 1);
    }

    #[test]
    fn a_thread_stands_back_alone_and_never_comes_forward() {
        let before = nice_of(None);
        let in_thread = |efforts: &'static [u8]| {
            let work = move || {
                efforts.iter().for_each(|nice| Effort { threads: None, nice: *nice }.begin());
                nice_of(Some(rustix::thread::gettid()))
            };
            std::thread::spawn(work).join().expect("no panic")
        };
        assert_eq!(in_thread(&[0]), before);
        let least = before.unwrap_or_default();
        assert_eq!(in_thread(&[7]), Some(least.max(7)));
        assert_eq!(in_thread(&[9, 3]), Some(least.max(9)), "what stands back stays there");
        assert_eq!(in_thread(&[200]), Some(19));
        assert_eq!(nice_of(None), before, "the process is as it was");
    }
}
