//! What the two ends say to each other. Both are the same program, so there is one version of everything.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::backend::{FileInfo, FileKind};
use crate::error::Error;
use crate::id::{Id, SnapshotFileId, TreeId};
use crate::request::{
    ArchiveRequest, Archived, Counts, Layout, Loss, LossReason, Parent, Pass, Root, RootSummary, Source,
};
use crate::restore::{Existing, Removals, RestoreRequest, Restored};
use crate::wire::MasterKey;

use super::frame::invalid;

/// Changes whenever a message does: an end that says another number is refused.
pub(super) const PROTOCOL: u32 = 1;

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

// ---- archive -----------------------------------------------------------------------------------------------------

/// An [`ArchiveRequest`] without what only a snapshot needs.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ArchiveJob {
    time: Timestamp,
    parents: Vec<ParentWire>,
    roots: Vec<RootWire>,
    live: bool,
    accepted: Vec<LossWire>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
enum ParentWire {
    Tree(Id),
    Snapshot(Id),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RootWire {
    at: String,
    path: Bytes,
    upper: bool,
    exclude: Vec<Bytes>,
}

impl ArchiveJob {
    pub(super) fn new(request: &ArchiveRequest) -> Result<Self, Error> {
        let refuse = |what: &str| Err(Error::InvalidRequest(format!("{what} at the other end")));
        let mut roots = Vec::new();
        for root in &request.roots {
            let Source::Directory { path, layout, exclude } = &root.source else {
                return refuse("only directories are captured");
            };
            roots.push(RootWire {
                at: root.at.clone(),
                path: path.as_path().into(),
                upper: *layout == Layout::OverlayUpper,
                exclude: exclude.iter().map(|e| e.as_path().into()).collect(),
            });
        }
        let live = match request.pass {
            Pass::Live => true,
            Pass::Detached => false,
            Pass::Commit => return refuse("no snapshot is made"),
        };
        let parent = |parent: &Parent| match parent {
            Parent::Tree(id) => ParentWire::Tree(id.0),
            Parent::Snapshot(id) => ParentWire::Snapshot(id.0),
        };
        Ok(Self {
            time: request.time,
            parents: request.parents.iter().map(parent).collect(),
            roots,
            live,
            accepted: request.accept_losses.iter().map(Into::into).collect(),
        })
    }

    pub(super) fn paths(&self) -> impl Iterator<Item = PathBuf> {
        self.roots.iter().map(|r| r.path.path())
    }

    pub(super) fn request(self) -> ArchiveRequest {
        let root = |root: RootWire| Root {
            at: root.at,
            source: Source::Directory {
                path: root.path.path(),
                layout: if root.upper { Layout::OverlayUpper } else { Layout::Plain },
                exclude: root.exclude.iter().map(Bytes::path).collect(),
            },
        };
        let parent = |parent| match parent {
            ParentWire::Tree(id) => Parent::Tree(TreeId(id)),
            ParentWire::Snapshot(id) => Parent::Snapshot(SnapshotFileId(id)),
        };
        ArchiveRequest {
            time: self.time,
            hostname: String::new(),
            tags: Vec::new(),
            parents: self.parents.into_iter().map(parent).collect(),
            roots: self.roots.into_iter().map(root).collect(),
            pass: if self.live { Pass::Live } else { Pass::Detached },
            accept_losses: self.accepted.into_iter().map(Into::into).collect(),
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct LossWire {
    path: Bytes,
    reason: ReasonWire,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
enum ReasonWire {
    Unreadable(i32),
    Vanished,
    Changed,
    Mount,
    TooLarge,
    Unrepresentable,
}

impl From<&Loss> for LossWire {
    fn from(loss: &Loss) -> Self {
        let reason = match loss.reason {
            LossReason::Unreadable(errno) => ReasonWire::Unreadable(errno),
            LossReason::Vanished => ReasonWire::Vanished,
            LossReason::Changed => ReasonWire::Changed,
            LossReason::Mount => ReasonWire::Mount,
            LossReason::TooLarge => ReasonWire::TooLarge,
            LossReason::Unrepresentable => ReasonWire::Unrepresentable,
        };
        Self { path: loss.path.as_path().into(), reason }
    }
}

impl From<LossWire> for Loss {
    fn from(wire: LossWire) -> Self {
        let reason = match wire.reason {
            ReasonWire::Unreadable(errno) => LossReason::Unreadable(errno),
            ReasonWire::Vanished => LossReason::Vanished,
            ReasonWire::Changed => LossReason::Changed,
            ReasonWire::Mount => LossReason::Mount,
            ReasonWire::TooLarge => LossReason::TooLarge,
            ReasonWire::Unrepresentable => LossReason::Unrepresentable,
        };
        Self { path: wire.path.path(), reason }
    }
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct CountsWire {
    files: u64,
    dirs: u64,
    bytes: u64,
}

impl From<Counts> for CountsWire {
    fn from(counts: Counts) -> Self {
        Self { files: counts.files, dirs: counts.dirs, bytes: counts.bytes }
    }
}

impl From<CountsWire> for Counts {
    fn from(wire: CountsWire) -> Self {
        Self { files: wire.files, dirs: wire.dirs, bytes: wire.bytes }
    }
}

/// An [`Archived`]; which packs were written, the end that wrote them knows itself.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ArchivedWire {
    tree: Id,
    counts: CountsWire,
    new_bytes: u64,
    read_bytes: u64,
    losses: Vec<LossWire>,
    roots: Vec<(String, CountsWire)>,
}

impl From<Archived> for ArchivedWire {
    fn from(archived: Archived) -> Self {
        Self {
            tree: archived.tree.0,
            counts: archived.counts.into(),
            new_bytes: archived.new_bytes,
            read_bytes: archived.read_bytes,
            losses: archived.losses.iter().map(Into::into).collect(),
            roots: archived.per_root.into_iter().map(|r| (r.at, r.counts.into())).collect(),
        }
    }
}

impl ArchivedWire {
    pub(super) fn archived(self, written_packs: Vec<Id>) -> Archived {
        Archived {
            snapshot: None,
            tree: TreeId(self.tree),
            counts: self.counts.into(),
            new_bytes: self.new_bytes,
            read_bytes: self.read_bytes,
            losses: self.losses.into_iter().map(Into::into).collect(),
            per_root: self.roots.into_iter().map(|(at, counts)| RootSummary { at, counts: counts.into() }).collect(),
            written_packs,
        }
    }
}

// ---- restore -----------------------------------------------------------------------------------------------------

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RestoreJob {
    snapshot: Id,
    subtree: String,
    target: Bytes,
    existing: ExistingWire,
    removals: RemovalsWire,
    lower: Option<Bytes>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
enum ExistingWire {
    MustBeEmpty,
    Replace,
    Keep,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
enum RemovalsWire {
    Ignore,
    Whiteouts { list: String },
    WhiteoutsBelow { list: String, directory: String },
    Delete { list: String },
}

impl RestoreJob {
    pub(super) fn new(snapshot: SnapshotFileId, request: &RestoreRequest) -> Self {
        Self {
            snapshot: snapshot.0,
            subtree: request.subtree.clone(),
            target: request.target.as_path().into(),
            existing: match request.existing {
                Existing::MustBeEmpty => ExistingWire::MustBeEmpty,
                Existing::Replace => ExistingWire::Replace,
                Existing::Keep => ExistingWire::Keep,
            },
            removals: match &request.removals {
                Removals::Ignore => RemovalsWire::Ignore,
                Removals::Whiteouts { list } => RemovalsWire::Whiteouts { list: list.clone() },
                Removals::WhiteoutsBelow { list, directory } => {
                    RemovalsWire::WhiteoutsBelow { list: list.clone(), directory: directory.clone() }
                }
                Removals::Delete { list } => RemovalsWire::Delete { list: list.clone() },
            },
            lower: request.against_lower.as_deref().map(Into::into),
        }
    }

    pub(super) fn paths(&self) -> impl Iterator<Item = PathBuf> {
        std::iter::once(self.target.path()).chain(self.lower.as_ref().map(Bytes::path))
    }

    pub(super) fn request(self) -> (SnapshotFileId, RestoreRequest) {
        let request = RestoreRequest {
            subtree: self.subtree,
            target: self.target.path(),
            existing: match self.existing {
                ExistingWire::MustBeEmpty => Existing::MustBeEmpty,
                ExistingWire::Replace => Existing::Replace,
                ExistingWire::Keep => Existing::Keep,
            },
            removals: match self.removals {
                RemovalsWire::Ignore => Removals::Ignore,
                RemovalsWire::Whiteouts { list } => Removals::Whiteouts { list },
                RemovalsWire::WhiteoutsBelow { list, directory } => Removals::WhiteoutsBelow { list, directory },
                RemovalsWire::Delete { list } => Removals::Delete { list },
            },
            against_lower: self.lower.as_ref().map(Bytes::path),
        };
        (SnapshotFileId(self.snapshot), request)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RestoredWire {
    counts: CountsWire,
    unchanged: u64,
    written: u64,
    removed: u64,
    whiteouts: u64,
}

impl From<Restored> for RestoredWire {
    fn from(restored: Restored) -> Self {
        Self {
            counts: restored.counts.into(),
            unchanged: restored.unchanged_files,
            written: restored.written_bytes,
            removed: restored.removed_entries,
            whiteouts: restored.whiteouts,
        }
    }
}

impl From<RestoredWire> for Restored {
    fn from(wire: RestoredWire) -> Self {
        Self {
            counts: wire.counts.into(),
            unchanged_files: wire.unchanged,
            written_bytes: wire.written,
            removed_entries: wire.removed,
            whiteouts: wire.whiteouts,
        }
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
