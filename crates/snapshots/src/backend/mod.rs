//! The only way bytes reach a store.
//!
//! A [`Backend`] keeps immutable files in six kinds of places. Everything above relies on three promises: a write is
//! atomic and durable when it returns; an answer of "absent" is a proof, and everything else is an error; a listing
//! that returns is complete. Decorators around a backend inject faults in tests and may retry in production.

mod connect;
mod limited;
mod local;
mod location;
mod memory;
mod object;
mod problem;
mod uncached;

use std::fmt;
use std::io;

pub use connect::{Addressing, ConnectOptions};
pub use limited::{Bandwidth, LimitedBackend};
pub use local::LocalBackend;
pub use location::{AzureCredential, AzureLocation, InvalidLocation, Location, S3Location};
pub use memory::MemoryBackend;
pub use object::{ObjectBackend, Patience};
pub use problem::Secret;

use crate::id::Id;

/// The kinds of files in a repository, each in its own name space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FileKind {
    /// The one file that makes a directory a repository; it has no id ([`FileKind::CONFIG_ID`] stands for it).
    Config,
    /// A password-protected copy of the master key.
    Key,
    /// Blobs, bundled.
    Pack,
    /// Which blob is where.
    Index,
    /// One snapshot.
    Snapshot,
    /// Somebody is working.
    Lock,
}

impl FileKind {
    /// The id that stands for the config file, which has none.
    pub const CONFIG_ID: Id = Id([0; 32]);

    /// All kinds.
    pub const ALL: [Self; 6] = [Self::Config, Self::Key, Self::Pack, Self::Index, Self::Snapshot, Self::Lock];
}

impl fmt::Display for FileKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Config => "config",
            Self::Key => "key",
            Self::Pack => "pack",
            Self::Index => "index",
            Self::Snapshot => "snapshot",
            Self::Lock => "lock",
        })
    }
}

/// One file of a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileInfo {
    /// The file's id; by the format the SHA-256 of its bytes.
    pub id: Id,
    /// Its size in bytes.
    pub size: u64,
}

/// A store did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[error("{doing} {kind} {}", .id.map_or_else(|| "files".to_owned(), |id| id.to_string()))]
pub struct BackendError {
    /// What was tried: "read", "write", "list", "remove", "stat".
    pub doing: &'static str,
    /// On which kind of file.
    pub kind: FileKind,
    /// On which file; none when it was about all of the kind.
    pub id: Option<Id>,
    /// The cause. `NotFound` is a proof of absence; every other kind means "unknown".
    #[source]
    pub source: io::Error,
}

impl BackendError {
    /// Reports whether the store proved that the file is absent.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }

    /// Reports whether the system says that the medium itself cannot give what is on it. A store that is out of reach may
    /// look the same, so that alone proves no damage.
    #[must_use]
    pub fn is_medium(&self) -> bool {
        use rustix::io::Errno;
        let codes = [Errno::IO, Errno::UCLEAN, Errno::BADMSG].map(Errno::raw_os_error);
        self.source.raw_os_error().is_some_and(|code| codes.contains(&code))
    }

    /// Reports whether the same call may succeed later. A store out of reach comes back; a missing file does not.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        !matches!(
            self.source.kind(),
            io::ErrorKind::NotFound
                | io::ErrorKind::PermissionDenied
                | io::ErrorKind::InvalidInput
                | io::ErrorKind::InvalidData
                | io::ErrorKind::ReadOnlyFilesystem
                | io::ErrorKind::AlreadyExists
                | io::ErrorKind::Unsupported
        )
    }
}

/// A place that keeps the files of one repository.
///
/// All methods may be called from many threads at once.
pub trait Backend: Send + Sync + fmt::Debug {
    /// Makes the places that files go to. Called once, when a repository is created: later, a missing place is an
    /// error (perhaps a disk that is not mounted) and never silently made anew.
    ///
    /// # Errors
    /// When the places cannot be made.
    fn prepare(&self) -> Result<(), BackendError>;

    /// Lists all files of a kind; files with names that are no ids are left out.
    ///
    /// # Errors
    /// When the listing may be incomplete.
    fn list(&self, kind: FileKind) -> Result<Vec<FileInfo>, BackendError>;

    /// Reads a whole file.
    ///
    /// # Errors
    /// [`BackendError::is_not_found`] when it is proven absent.
    fn read(&self, kind: FileKind, id: Id) -> Result<Vec<u8>, BackendError>;

    /// Reads exactly `len` bytes from `offset`; a shorter file is an error.
    ///
    /// # Errors
    /// As for [`read`](Self::read).
    fn read_range(&self, kind: FileKind, id: Id, offset: u64, len: usize) -> Result<Vec<u8>, BackendError>;

    /// Writes a file: atomic (nobody ever sees a part of it) and durable (it survives a power cut) on return. A config is
    /// never written over another: of two that make a repository at the same time one has to lose.
    ///
    /// # Errors
    /// When either cannot be promised; the file may or may not exist then. `AlreadyExists` when there is another config.
    fn write(&self, kind: FileKind, id: Id, data: &[u8]) -> Result<(), BackendError>;

    /// Removes a file; one that is proven absent already is a success.
    ///
    /// # Errors
    /// When the file may still be there.
    fn remove(&self, kind: FileKind, id: Id) -> Result<(), BackendError>;

    /// Returns a file's size, or `None` when it is proven absent.
    ///
    /// # Errors
    /// When the store cannot tell.
    fn size(&self, kind: FileKind, id: Id) -> Result<Option<u64>, BackendError>;

    /// Removes what interrupted writes left under temporary names; returns how many. Called under an exclusive lock.
    ///
    /// # Errors
    /// When the places cannot be listed.
    fn remove_leftovers(&self) -> Result<u64, BackendError> {
        Ok(0)
    }

    /// Moves a file out of the repository to where nothing reads or removes it: below `damaged/`, as it was below the
    /// repository. One that is proven absent already is a success.
    ///
    /// # Errors
    /// When the file may still be in its place; it is in one of both places then, or in both. `Unsupported` when the
    /// store cannot do it.
    fn set_aside(&self, kind: FileKind, id: Id) -> Result<(), BackendError> {
        Err(BackendError { doing: "set aside", kind, id: Some(id), source: io::ErrorKind::Unsupported.into() })
    }

    /// Lists the files of a kind that were set aside and that nobody took away since.
    ///
    /// # Errors
    /// When the listing may be incomplete. `Unsupported` when the store cannot do it.
    fn list_aside(&self, kind: FileKind) -> Result<Vec<FileInfo>, BackendError> {
        Err(BackendError {
            doing: "list what was set aside of",
            kind,
            id: None,
            source: io::ErrorKind::Unsupported.into(),
        })
    }

    /// Removes what interrupted writes left of a kind under temporary names, however new: of a key file each may be a whole copy of
    /// the master key. Called when the repository is taken away, and nobody writes to it any more.
    ///
    /// # Errors
    /// When something may be left.
    fn remove_unfinished(&self, _kind: FileKind) -> Result<(), BackendError> {
        Ok(())
    }

    /// Removes the places that [`prepare`](Self::prepare) made, those that are empty, and what was set aside. Called when nothing
    /// but the config is left of the repository, and again when that went: then only the place of the whole is removed. Places that
    /// are gone already, and those that somebody else keeps something in, are a success.
    ///
    /// # Errors
    /// When something may be left.
    fn remove_place(&self) -> Result<(), BackendError> {
        Ok(())
    }

    /// Makes the next read of a file come from the medium instead of a cache, where the system allows that.
    ///
    /// # Errors
    /// When the file cannot be reached.
    fn drop_caches(&self, kind: FileKind, id: Id) -> Result<(), BackendError>;
}
