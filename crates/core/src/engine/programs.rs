//! Programs that are run beside a pod's own.

use std::time::Duration;

/// A program that is run in a pod's container beside the pod's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// What it is known by in its container, to a later server too: ASCII letters, digits, `-` and `.`.
    pub mark: String,
    /// The program and its arguments; no shell is involved.
    pub command: Vec<String>,
    /// Who runs it; `None` for the user of the container.
    pub user: Option<String>,
    /// How long it may take.
    pub within: Duration,
}

/// What became of such a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    /// How it ended.
    pub end: ProgramEnd,
    /// The end of what it wrote, errors included: at most [`OUTPUT_MAX`] bytes, lossy where it is not UTF-8.
    pub output: String,
    /// How long it took.
    pub lasted: Duration,
}

/// Bytes that are kept of what a program wrote.
pub const OUTPUT_MAX: usize = 4096;

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProgramEnd {
    /// By itself, with this status.
    Exited(i64),
    /// Its time was over.
    TimedOut(Remains),
    /// It was cancelled.
    Cancelled(Remains),
    /// The container ended while it ran.
    ContainerEnded,
}

impl ProgramEnd {
    /// Whether nothing proves that the program has ended.
    #[must_use]
    pub const fn may_go_on(self) -> bool {
        matches!(self, Self::TimedOut(Remains::Perhaps) | Self::Cancelled(Remains::Perhaps))
    }
}

/// Whether something of a program goes on that was ended before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remains {
    /// It is proven to have ended, but for what it started in a session of its own.
    Nothing,
    /// It may go on.
    Perhaps,
}
