//! Writers that are held still while directories are read.

use crate::error::Result;
use crate::spool::SpoolLimits;

/// Those who write in the directories that are captured.
pub trait Writers: Send + Sync {
    /// Makes them wait. Everything that can be done while they write has been done by then.
    ///
    /// # Errors
    /// Then they go on writing, and nothing is captured.
    fn hold(&self) -> Result<()>;

    /// Lets them go on. Called once after each successful [`hold`](Self::hold), whatever happened in between, and as
    /// soon as nothing more has to be read.
    ///
    /// # Errors
    /// When they did not wait all the time: what was read is of no single instant.
    fn release(&self) -> Result<()>;
}

/// How a capture of one instant is made.
pub struct Held<'a> {
    /// Who has to wait.
    pub writers: &'a dyn Writers,
    /// Where what was read meanwhile waits for the store.
    pub spool: SpoolLimits,
}

/// Lets the writers go on, even when a capture ends by a panic.
pub(crate) struct Release<'a>(Option<&'a dyn Writers>);

impl<'a> Release<'a> {
    pub(crate) fn after_hold(writers: &'a dyn Writers) -> Result<Self> {
        writers.hold()?;
        Ok(Self(Some(writers)))
    }

    pub(crate) fn now(mut self) -> Result<()> {
        self.0.take().map_or(Ok(()), Writers::release)
    }
}

impl Drop for Release<'_> {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.0.take().map(Writers::release) {
            tracing::warn!(error = &error as &dyn std::error::Error, "release writers after a failed capture");
        }
    }
}
