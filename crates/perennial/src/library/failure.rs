//! Why something cannot be looked at, in terms of what the caller can do.

use std::io;

use perennial_core::Error;
use perennial_core::operation::Problem;
use perennial_snapshots::Error as RepositoryError;

/// Why something in a snapshot cannot be shown.
#[derive(Debug)]
pub enum Failure {
    /// The repository cannot be opened.
    Closed(Problem),
    /// The repository failed, or what it holds is damaged.
    Repository(RepositoryError),
    /// There is no such path.
    NotFound {
        /// The path as the pod sees it.
        path: String,
        /// What is there instead: a link on the way, or a file where a directory would have to be; empty when nothing is.
        instead: String,
    },
    /// What is there is of another kind.
    WrongKind {
        /// What it is and is not.
        problem: String,
        /// How to get at it.
        hint: &'static str,
    },
    /// The image that the snapshot's changes are relative to cannot be read.
    ImageUnreadable(String),
    /// More changed in a pod than is noted of it.
    LookTooLarge,
    /// A download ended before its first byte, for a reason that is not the repository's.
    Broken(io::Error),
    /// Too much of this goes on, as it says.
    Busy(&'static str),
}

impl Failure {
    /// What a reader of contents said, which may be the repository's own error.
    pub(super) fn of_io(error: io::Error, other: impl FnOnce(io::Error) -> Self) -> Self {
        match error.downcast::<RepositoryError>() {
            Ok(error) => Self::Repository(error),
            Err(error) => other(error),
        }
    }
}

impl From<RepositoryError> for Failure {
    fn from(error: RepositoryError) -> Self {
        Self::Repository(error)
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Closed(problem) => Self::Unavailable { problem: problem.message },
            Failure::Repository(error) => repository(&error),
            Failure::NotFound { path, instead } if instead.is_empty() => {
                Self::not_found(format!("path {path} in the snapshot"))
            }
            Failure::NotFound { path, instead } => Self::not_found(format!("path {path} in the snapshot ({instead})")),
            Failure::WrongKind { problem, hint } => Self::invalid("path", problem, hint),
            Failure::ImageUnreadable(reason) => Self::conflict(
                "image-unreadable",
                format!("the image that the snapshot's changes are relative to cannot be read: {reason}"),
                "ask for the changes alone: changes=true, or --changes",
            ),
            Failure::LookTooLarge => Self::conflict(
                "look-too-large",
                "more changed in the pod than there is room to note below the server's data directory",
                "take a snapshot (perennial snapshot create) and compare with that one, or make room",
            ),
            Failure::Broken(error) => Self::Internal { problem: error.to_string() },
            Failure::Busy(problem) => Self::Unavailable { problem: problem.to_owned() },
        }
    }
}

fn repository(error: &RepositoryError) -> Error {
    use RepositoryError as E;
    let text = crate::causes::describe(error);
    match error {
        E::Damaged { .. } | E::MissingBlob { .. } | E::InvalidContent { .. } | E::Mismatch { .. } => Error::conflict(
            "repository-damaged",
            text,
            "perennial repository check names everything that is damaged; other snapshots may hold the same files",
        ),
        // The row is there and the repository has no such snapshot: a loss, or a repository of another time.
        E::NotFound { .. } => {
            Error::conflict("repository-snapshot-missing", text, "perennial repository snapshots lists what there is")
        }
        _ => Error::Unavailable { problem: text },
    }
}
