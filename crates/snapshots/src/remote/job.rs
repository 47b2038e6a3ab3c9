//! Requests and results of jobs, as they go through the channel.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::message::Bytes;
use crate::error::Error;
use crate::id::{Id, SnapshotFileId, TreeId};
use crate::request::{
    ArchiveRequest, Archived, Counts, Layout, Loss, LossReason, Parent, Pass, Root, RootSummary, Source,
};
use crate::restore::{Existing, Removals, RestoreRequest, Restored};

// ---- archive -----------------------------------------------------------------------------------------------------

/// An [`ArchiveRequest`] without what only a snapshot needs.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ArchiveJob {
    time: Timestamp,
    parents: Vec<ParentWire>,
    roots: Vec<RootWire>,
    live: bool,
    /// Whether writers are held still meanwhile, by the other end.
    held: bool,
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
    pub(super) fn new(request: &ArchiveRequest, held: bool) -> Result<Self, Error> {
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
            held,
            accepted: request.accept_losses.iter().map(Into::into).collect(),
        })
    }

    pub(super) const fn is_held(&self) -> bool {
        self.held
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
    Subvolume,
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
            LossReason::Subvolume => ReasonWire::Subvolume,
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
            ReasonWire::Subvolume => LossReason::Subvolume,
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
