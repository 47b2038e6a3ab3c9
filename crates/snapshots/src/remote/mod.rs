//! A repository used from the far end of a byte channel: where the directories are, and the repository is not.
//!
//! The far end runs the very same archive and restore, on a [`Backend`](crate::Backend) whose every call goes through
//! the channel ([`far`]). It gets the master key with the greeting, and needs neither network nor configuration. It may
//! read, and it may add packs and index files; what it adds has to hash to its name, and an index file may only speak
//! of packs that came through the same channel. It cannot remove anything, and it cannot make a snapshot: the near
//! end ([`near`]) takes the tree that a [`Pass::Detached`](crate::Pass::Detached) returns into a snapshot of its own
//! ([`Source::Passed`](crate::Source::Passed)), holds the lock for both, and verifies what came as if it had written it
//! itself.
//!
//! Whatever the far end says is bounded in size and otherwise believed as little as possible; when it falls silent,
//! dies or talks nonsense, the job fails with an error that says so, and the same job can be tried again.

mod far;
mod frame;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod job;
mod message;
mod near;

pub use far::serve;
pub use near::Session;
