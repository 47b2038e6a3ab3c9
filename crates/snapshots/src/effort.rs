//! How much of the machine the work on a repository takes.

use std::num::NonZeroUsize;

use rustix::process::{Pid, getpriority_process, setpriority_process};

use crate::memory::{Memory, Shares, Work};

/// Niceness of a thread that gets only what nobody else wants.
const NICE_MAX: u8 = 19;

/// A bound to what work on a repository takes from everything else on its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Effort {
    /// Threads of one piece of work; `None` takes a few more than there are processors, because some wait for disks and stores.
    pub threads: Option<NonZeroUsize>,
    /// How far its threads stand back behind others, as in nice(1): from 0 to 19. Their reads and writes go last among those
    /// of all others from 1 on, and at 19 only when the disk has nothing else to do (ioprio_set(2)), where the disk's
    /// scheduler goes by that. Writers that are held still for an archive are read with no such regard.
    pub nice: u8,
    /// What one piece of work keeps in flight; there are fewer threads than asked for where it is too little for their buffers. `None`
    /// bounds it by nothing but the number of threads.
    pub memory: Option<Memory>,
}

impl Effort {
    /// How many threads to begin, where so many more than there are processors would be waiting at a time.
    pub(crate) fn threads(self, waiting: usize, most: usize) -> usize {
        let many = || std::thread::available_parallelism().map_or(2, NonZeroUsize::get) + waiting;
        self.threads.map_or_else(many, NonZeroUsize::get).clamp(1, most.max(1))
    }

    /// How many threads to begin that have buffers of their own.
    pub(crate) fn workers(self, work: Work, waiting: usize, most: usize) -> usize {
        self.threads(waiting, most.min(Shares::of(self.memory).workers(work)))
    }

    /// The same for work that somebody stands still for: it goes first, and has all processors.
    pub(crate) fn urgent(self) -> Self {
        Self { threads: None, nice: 0, ..self }
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
        let wanted = if self.nice >= NICE_MAX { IDLE } else { LAST };
        // What the kernel derives from the niceness alone is the middle of the usual class. Classes and their levels both
        // count from the front to the back.
        if io_priority().is_some_and(|now| now < wanted)
            && let Err(error) = set_io_priority(wanted)
        {
            tracing::debug!(%error, "stand back behind others at the disk");
        }
    }
}

/// The lowest level of the usual class (`IOPRIO_CLASS_BE`).
const LAST: libc::c_long = 2 << 13 | 7;
/// The class of what is served when nobody else wants anything (`IOPRIO_CLASS_IDLE`).
const IDLE: libc::c_long = 3 << 13;
/// `IOPRIO_WHO_PROCESS`; with 0 it means the thread that calls.
const THREAD: libc::c_long = 1;

#[expect(unsafe_code, reason = "no library has this call")]
fn io_priority() -> Option<libc::c_long> {
    // SAFETY: the call takes two numbers, and touches no memory of this process.
    let answer = unsafe { libc::syscall(libc::SYS_ioprio_get, THREAD, 0 as libc::c_long) };
    (answer >= 0).then_some(answer)
}

#[expect(unsafe_code, reason = "no library has this call")]
fn set_io_priority(priority: libc::c_long) -> std::io::Result<()> {
    // SAFETY: the call takes three numbers, and touches no memory of this process.
    let answer = unsafe { libc::syscall(libc::SYS_ioprio_set, THREAD, 0 as libc::c_long, priority) };
    if answer == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

fn nice_of(thread: Option<Pid>) -> Option<i32> {
    getpriority_process(thread).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_as_many_as_was_said_and_never_none() {
        let of = |threads| Effort { threads: NonZeroUsize::new(threads), ..Effort::default() };
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
                efforts.iter().for_each(|nice| Effort { nice: *nice, ..Effort::default() }.begin());
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

    #[test]
    fn a_thread_stands_back_at_the_disk_as_well() {
        let in_thread = |efforts: &'static [u8]| {
            let work = move || {
                efforts.iter().for_each(|nice| Effort { nice: *nice, ..Effort::default() }.begin());
                io_priority().expect("a kernel with priorities of reads and writes")
            };
            std::thread::spawn(work).join().expect("no panic")
        };
        let before = io_priority().expect("a kernel with priorities of reads and writes");
        assert_eq!(in_thread(&[0]), before);
        assert_eq!(in_thread(&[1]), before.max(LAST));
        // Whoever runs the tests may stand back as far already.
        assert_eq!(in_thread(&[19]), before.max(IDLE));
        assert_eq!(in_thread(&[19, 1]), before.max(IDLE), "what stands back stays there");
        assert_eq!(io_priority(), Some(before), "the process is as it was");
    }
}
