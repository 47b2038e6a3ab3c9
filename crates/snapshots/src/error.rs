//! What can go wrong, in terms of what the caller can do about it.

use std::io;
use std::path::PathBuf;

use perennial_core::progress::Cancelled;

use crate::backend::{BackendError, FileKind};
use crate::id::Id;
use crate::request::Loss;

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation on a repository or a directory did not succeed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The store failed; what it holds is unknown (never: absent), unless the source says that a file is missing.
    #[error("access the repository")]
    Backend(#[from] BackendError),
    /// A file or directory outside the repository could not be read or written.
    #[error("{doing} {}", path.display())]
    Io {
        /// What was tried, as a verb phrase.
        doing: &'static str,
        /// Where.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// No key of the repository opens with this password.
    #[error("no key of the repository opens with this password")]
    WrongPassword,
    /// There is no repository at this place: the config file is proven absent.
    #[error("there is no repository here")]
    NoRepository,
    /// A repository that is to be taken away has this, and did not when it was looked at: it is another one, or somebody else goes
    /// on with it.
    #[error("it is not what was looked at: {kind} {id} was not there then")]
    NotSeen {
        /// What kind of file.
        kind: FileKind,
        /// Which file.
        id: Id,
    },
    /// [`init`](crate::Repository::init) found files already there.
    #[error("there is a repository, or part of one, here already")]
    AlreadyInitialized,
    /// The repository has a format this crate neither reads nor writes.
    #[error(
        "repository format version {version} is not supported, only 2 is; `restic migrate upgrade_repo_v2` makes that of 1"
    )]
    UnsupportedVersion {
        /// The version the config file states.
        version: u32,
    },
    /// Somebody else holds a lock that excludes this operation; try again later.
    #[error("the repository is locked by {by} since {since}")]
    Locked {
        /// Who: user, host and process id as the lock file states them.
        by: String,
        /// When the lock was written or last refreshed.
        since: jiff::Timestamp,
    },
    /// Our own lock could not be kept fresh, or somebody removed it, so nothing that needed it may be finished.
    #[error("the lock on the repository was lost")]
    LockLost,
    /// The source could not be captured completely and the losses were not all accepted; no snapshot was written.
    #[error("the snapshot would be incomplete: {} (of {} losses)", first_loss(losses), losses.len())]
    Incomplete {
        /// Everything that is missing or in doubt.
        losses: Vec<Loss>,
    },
    /// The writers could not be held still, or not for as long as it took: what was read is of no single instant.
    #[error("the writers were not held still: {problem}")]
    NotHeld {
        /// What came in between.
        problem: String,
    },
    /// A file of the repository is not what it must be.
    #[error("{kind} {id} of the repository is damaged: {reason}")]
    Damaged {
        /// What kind of file.
        kind: FileKind,
        /// Which file.
        id: Id,
        /// What is wrong with it.
        reason: String,
    },
    /// A file of the repository was read, and was not the same as before: that is no proof of anything about it.
    #[error("{kind} {id} of the repository {how}")]
    Unsteady {
        /// What kind of file.
        kind: FileKind,
        /// Which file.
        id: Id,
        /// What differed, as the rest of the sentence.
        how: &'static str,
    },
    /// A blob that something needs is in no index, or its pack is not there.
    #[error("blob {blob}, needed by {needed_by}, is missing from the repository")]
    MissingBlob {
        /// The blob.
        blob: Id,
        /// Path or object that needs it.
        needed_by: String,
    },
    /// A tree object or another structure inside an intact file makes no sense or is unsafe to follow.
    #[error("invalid content in {place}: {reason}")]
    InvalidContent {
        /// Where it was found.
        place: String,
        /// What is wrong.
        reason: String,
    },
    /// Counts or bytes differ between two records of the same thing.
    #[error("{what}: expected {expected}, found {found}")]
    Mismatch {
        /// What was counted.
        what: String,
        /// What the first record says.
        expected: u64,
        /// What was found.
        found: u64,
    },
    /// The snapshot has no such path, or no such snapshot exists (proven by a listing).
    #[error("{what} does not exist in the repository")]
    NotFound {
        /// What was looked for.
        what: String,
    },
    /// What a drill restored is not what the snapshot holds.
    #[error("{} was not restored as it is in the snapshot: {what}", path.display())]
    Differs {
        /// The path in the snapshot.
        path: PathBuf,
        /// What differs.
        what: String,
    },
    /// There is no room for what was to be done, which was not begun.
    #[error("{} has {free} {of} free, and {needed} are needed", path.display())]
    NoSpace {
        /// Where.
        path: PathBuf,
        /// Of what: "bytes" or "inodes".
        of: &'static str,
        /// So many are needed.
        needed: u64,
        /// So many are free.
        free: u64,
    },
    /// The restore's target has content and the request demands an empty one.
    #[error("{} is not empty", path.display())]
    TargetNotEmpty {
        /// The target.
        path: PathBuf,
    },
    /// The source holds an overlayfs attribute that cannot be captured faithfully.
    #[error("{} carries {attribute}, which a snapshot cannot keep", path.display())]
    UnknownOverlayAttribute {
        /// The path as it would be in the snapshot.
        path: PathBuf,
        /// The extended attribute's name.
        attribute: String,
    },
    /// Parts of two snapshots do not fit together.
    #[error("{path:?} {reason}")]
    NotComposable {
        /// The path in the tree, lossy where it is not UTF-8.
        path: String,
        /// Why, as the rest of the sentence.
        reason: String,
    },
    /// The request contradicts itself.
    #[error("invalid request: {0}")]
    InvalidRequest(String),
    /// The caller's [`Progress`](perennial_core::progress::Progress) was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// The other end of a channel could not do its part, or is gone.
    #[error("the mover: {problem}")]
    Remote {
        /// What it said, or how it was lost.
        problem: String,
        /// Whether the same may work later.
        retryable: bool,
    },
    /// The system could not do something that has nothing to do with files (threads, compression, randomness).
    #[error("{doing}")]
    System {
        /// What was tried.
        doing: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

fn first_loss(losses: &[Loss]) -> String {
    losses.first().map_or_else(|| "nothing".to_owned(), ToString::to_string)
}

impl Error {
    /// Reports whether the same call can succeed later without anybody changing the request or repairing data.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Backend(e) => e.is_retryable(),
            Self::Remote { retryable, .. } => *retryable,
            Self::Locked { .. }
            | Self::LockLost
            | Self::Unsteady { .. }
            | Self::NoSpace { .. }
            | Self::NotHeld { .. }
            | Self::Incomplete { .. }
            | Self::System { .. } => true,
            Self::Io { source, .. } => matches!(
                source.kind(),
                io::ErrorKind::Interrupted
                    | io::ErrorKind::WouldBlock
                    | io::ErrorKind::TimedOut
                    | io::ErrorKind::StorageFull
                    | io::ErrorKind::QuotaExceeded
                    | io::ErrorKind::ResourceBusy
                    | io::ErrorKind::OutOfMemory
            ),
            Self::WrongPassword
            | Self::NoRepository
            | Self::NotSeen { .. }
            | Self::AlreadyInitialized
            | Self::UnsupportedVersion { .. }
            | Self::Damaged { .. }
            | Self::MissingBlob { .. }
            | Self::InvalidContent { .. }
            | Self::Mismatch { .. }
            | Self::Differs { .. }
            | Self::NotFound { .. }
            | Self::TargetNotEmpty { .. }
            | Self::UnknownOverlayAttribute { .. }
            | Self::InvalidRequest(_)
            | Self::NotComposable { .. }
            | Self::Cancelled => false,
        }
    }

    /// Reports whether this says that what a snapshot needs is lost or wrong; all other errors leave that open.
    #[must_use]
    pub const fn is_damage(&self) -> bool {
        matches!(
            self,
            Self::Damaged { .. }
                | Self::MissingBlob { .. }
                | Self::InvalidContent { .. }
                | Self::Mismatch { .. }
                | Self::Differs { .. }
                | Self::NotFound { .. }
        )
    }

    pub(crate) fn io(doing: &'static str, path: impl Into<PathBuf>, source: impl Into<io::Error>) -> Self {
        Self::Io { doing, path: path.into(), source: source.into() }
    }

    pub(crate) fn invalid(place: impl ToString, reason: impl Into<String>) -> Self {
        Self::InvalidContent { place: place.to_string(), reason: reason.into() }
    }

    pub(crate) fn damaged(kind: FileKind, id: Id, reason: impl Into<String>) -> Self {
        Self::Damaged { kind, id, reason: reason.into() }
    }
}

impl From<Cancelled> for Error {
    fn from(_: Cancelled) -> Self {
        Self::Cancelled
    }
}
