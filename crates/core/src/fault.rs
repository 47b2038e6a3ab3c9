//! Named points where tests make the world fail: before an effect, or after it and before its record.
//!
//! Engine calls, commits and repository writes all ask a [`Tap`]. In production it is [`NoTap`]; the crash sweep, the
//! model test and the named failpoints of the fault build put their own in its place.

/// When, relative to the effect, a tap is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Moment {
    /// The effect has not happened.
    Before,
    /// The effect has happened; its answer has not been seen.
    After,
}

/// What happens at the point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing special.
    Go,
    /// Before: the call fails without effect. After: its answer is lost.
    Fail,
    /// The process is dead from here on: the call never answers.
    Die,
}

/// Decides at every named point.
pub trait Tap: Send + Sync {
    /// Asked at `site`, such as `engine.container_start` or `store.commit`.
    fn at(&self, site: &str, moment: Moment) -> Verdict;
}

/// Lets everything pass.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoTap;

impl Tap for NoTap {
    fn at(&self, _site: &str, _moment: Moment) -> Verdict {
        Verdict::Go
    }
}
