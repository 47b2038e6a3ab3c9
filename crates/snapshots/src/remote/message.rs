//! What the two ends say to each other. Both are the same program, so there is one version of everything.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::frame::invalid;
use super::job::{ArchiveJob, ArchivedWire, LossWire, RestoreJob, RestoredWire};
use crate::backend::{FileInfo, FileKind};
use crate::error::Error;
use crate::id::Id;
use crate::wire::MasterKey;

/// Changes whenever a message does: an end that says another number is refused.
pub(super) const PROTOCOL: u32 = 2;

/// From the end that has the repository.
#[derive(Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "camelCase", deny_unknown_fields)]
pub(super) enum ToFar {
    /// First of all.
    Hello { protocol: u32, key: MasterKey },
    /// Something to do; one at a time.
    Job { job: Job },
    /// Stop what is being done.
    Cancel,
    /// Answers [`ToNear::Prepared`]: the writers are held still.
    Held,
    /// Answers a [`Call`]; what was read is the body.
    Answer { call: u64, failure: Option<Failure> },
}

/// From the end that has the directories.
#[derive(Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "camelCase", deny_unknown_fields)]
pub(super) enum ToNear {
    /// Answers the greeting.
    Hello { protocol: u32 },
    /// Something wanted of the repository; what is to be written is the body.
    Call { call: u64, what: Call },
    /// How far the job is; also says that this end is alive.
    Progress { bytes: u64, files: u64, total: u64 },
    /// Everything is done that needs no writers to be held still.
    Prepared,
    /// Everything is read: the writers may go on. What is not in the repository yet follows.
    Captured,
    /// The job's end.
    Done { outcome: Outcome },
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) enum Job {
    /// Which of these are directories?
    Look {
        paths: Vec<Bytes>,
    },
    Archive(ArchiveJob),
    Restore(RestoreJob),
    /// Make everything in these directories durable.
    Sync {
        paths: Vec<Bytes>,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) enum Outcome {
    Looked { there: Vec<bool> },
    Archived(ArchivedWire),
    Restored(RestoredWire),
    Synced,
    Failed(FailedJob),
}

/// What the far end may ask of the repository: to read, and to add.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) enum Call {
    List { kind: Place },
    Read { kind: Place, id: Id },
    ReadRange { kind: Place, id: Id, offset: u64, length: u32 },
    Write { kind: Place, id: Id },
    Size { kind: Place, id: Id },
}

/// The kinds of files that concern the far end.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Place {
    Pack,
    Index,
    Snapshot,
}

impl Place {
    pub(super) fn of(kind: FileKind) -> io::Result<Self> {
        match kind {
            FileKind::Pack => Ok(Self::Pack),
            FileKind::Index => Ok(Self::Index),
            FileKind::Snapshot => Ok(Self::Snapshot),
            FileKind::Config | FileKind::Key | FileKind::Lock => Err(io::ErrorKind::PermissionDenied.into()),
        }
    }

    pub(super) fn kind(self) -> FileKind {
        match self {
            Self::Pack => FileKind::Pack,
            Self::Index => FileKind::Index,
            Self::Snapshot => FileKind::Snapshot,
        }
    }
}

/// A path or another text of bytes, in hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bytes(pub(super) Vec<u8>);

impl Bytes {
    pub(super) fn path(&self) -> PathBuf {
        PathBuf::from(OsString::from_vec(self.0.clone()))
    }
}

impl From<&Path> for Bytes {
    fn from(path: &Path) -> Self {
        Self(path.as_os_str().as_bytes().to_vec())
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        hex::decode(text.as_bytes()).map(Self).map_err(serde::de::Error::custom)
    }
}

// ---- errors ------------------------------------------------------------------------------------------------------

/// Why a job did not succeed, as far as the difference matters to who asked.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) enum FailedJob {
    Cancelled,
    Incomplete {
        losses: Vec<LossWire>,
    },
    Attribute {
        path: Bytes,
        attribute: String,
    },
    NotEmpty {
        path: Bytes,
    },
    Missing {
        what: String,
    },
    /// What the repository holds is wrong.
    Content {
        problem: String,
    },
    /// The repository could not be reached: the end that has it knows more.
    Repository {
        problem: String,
        retryable: bool,
    },
    Other {
        problem: String,
        retryable: bool,
    },
}

impl FailedJob {
    pub(super) fn new(error: Error) -> Self {
        let retryable = error.is_retryable();
        match error {
            Error::Cancelled => Self::Cancelled,
            Error::Incomplete { losses } => Self::Incomplete { losses: losses.iter().map(Into::into).collect() },
            Error::UnknownOverlayAttribute { path, attribute } => {
                Self::Attribute { path: path.as_path().into(), attribute }
            }
            Error::TargetNotEmpty { path } => Self::NotEmpty { path: path.as_path().into() },
            Error::NotFound { what } => Self::Missing { what },
            error @ (Error::Damaged { .. }
            | Error::MissingBlob { .. }
            | Error::InvalidContent { .. }
            | Error::Mismatch { .. }) => Self::Content { problem: in_words(&error) },
            error @ Error::Backend(_) => Self::Repository { problem: in_words(&error), retryable },
            error => Self::Other { problem: in_words(&error), retryable },
        }
    }

    /// The error as this end's own work would have given it; `backend` is what the repository really answered.
    pub(super) fn error(self, backend: Option<crate::BackendError>) -> Error {
        match self {
            Self::Cancelled => Error::Cancelled,
            Self::Incomplete { losses } => Error::Incomplete { losses: losses.into_iter().map(Into::into).collect() },
            Self::Attribute { path, attribute } => Error::UnknownOverlayAttribute { path: path.path(), attribute },
            Self::NotEmpty { path } => Error::TargetNotEmpty { path: path.path() },
            Self::Missing { what } => Error::NotFound { what },
            Self::Content { problem } => Error::invalid("the repository", problem),
            Self::Repository { problem, retryable } => {
                backend.map_or(Error::Remote { problem, retryable }, Error::Backend)
            }
            Self::Other { problem, retryable } => Error::Remote { problem, retryable },
        }
    }
}

fn in_words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

/// Why the repository did not answer a [`Call`]. "Absent" stays a proof, and everything else "unknown".
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Failure {
    absent: bool,
    errno: Option<i32>,
    retryable: bool,
    problem: String,
}

impl Failure {
    pub(super) fn new(error: &crate::BackendError) -> Self {
        Self {
            absent: error.is_not_found(),
            errno: error.source.raw_os_error(),
            retryable: error.is_retryable(),
            problem: error.source.to_string(),
        }
    }

    pub(super) fn error(self) -> io::Error {
        match self.errno.map(io::Error::from_raw_os_error) {
            Some(error) if (error.kind() == io::ErrorKind::NotFound) == self.absent => error,
            _ if self.absent => io::Error::new(io::ErrorKind::NotFound, self.problem),
            _ if self.retryable => io::Error::other(self.problem),
            _ => invalid(self.problem),
        }
    }
}

// ---- listings ----------------------------------------------------------------------------------------------------

/// Bytes of one file in a listing: its id, and its size.
const LISTED: usize = 40;

pub(super) fn encode_listing(files: &[FileInfo]) -> Vec<u8> {
    files.iter().flat_map(|f| f.id.0.into_iter().chain(f.size.to_le_bytes())).collect()
}

pub(super) fn decode_listing(body: &[u8]) -> io::Result<Vec<FileInfo>> {
    let mut files = Vec::with_capacity(body.len() / LISTED);
    for file in body.chunks(LISTED) {
        let split = file.split_first_chunk::<32>();
        let parsed = split.and_then(|(id, size)| Some((*id, u64::from_le_bytes(size.try_into().ok()?))));
        let (id, size) = parsed.ok_or_else(|| invalid("a listing that makes no sense"))?;
        files.push(FileInfo { id: Id(id), size });
    }
    Ok(files)
}
