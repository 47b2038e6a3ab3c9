//! What a pod's program writes.

use async_trait::async_trait;
use jiff::Timestamp;

use super::EngineError;

/// Which part of what a container's program wrote to its output and its error output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogRange {
    /// Only so many lines at its end; `None` is all that the engine keeps.
    pub tail: Option<u32>,
    /// Only what was written since then; engines look at whole seconds. `None` is from the beginning.
    pub since: Option<Timestamp>,
    /// Where it ends.
    pub until: LogEnd,
    /// What is before each line.
    pub stamps: LogStamps,
}

/// What is before each line that a container wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogStamps {
    /// Nothing.
    Without,
    /// When it was written, in RFC 3339, and a space.
    With,
}

/// Where reading what a container writes ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogEnd {
    /// With what was written already.
    Now,
    /// With the container's present run.
    Run,
}

/// Reads what a container wrote, oldest first; whoever drops it has read enough.
#[async_trait]
pub trait LogReader: Send {
    /// The next bytes; `None` at the end. What a pod writes is any bytes.
    async fn next(&mut self) -> Result<Option<Vec<u8>>, EngineError>;
}
