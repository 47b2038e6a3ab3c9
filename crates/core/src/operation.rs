//! Operations and events: what was asked for, how it goes, and the trail it leaves.

use jiff::Timestamp;

use crate::id::{OperationId, PodId, SnapshotId};
use crate::progress::ProgressReading;
use crate::spec::TenantId;

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OperationKind {
    /// Makes a pod and starts it.
    Create,
    /// Makes a pod that is a copy of another and starts it.
    Clone,
    /// Starts a paused or stopped pod.
    Start,
    /// Captures, verifies, releases the host.
    Stop,
    /// Stops the container and keeps everything.
    Pause,
    /// Stops and starts.
    Restart,
    /// Replaces the data set by a fresh one.
    Reset,
    /// Replaces the data set by a snapshot.
    Restore,
    /// Takes a snapshot.
    Snapshot,
    /// Makes a snapshot of an archive.
    SnapshotImport,
    /// Deletes a snapshot.
    SnapshotDelete,
    /// Restores a snapshot into scratch and compares.
    SnapshotDrill,
    /// Stops and hides.
    Archive,
    /// Stops and starts the undelete window.
    Delete,
    /// Brings an archived or deleted pod back to stopped.
    Undelete,
    /// Destroys everything.
    Purge,
}

impl OperationKind {
    /// Whether it makes a pod.
    #[must_use]
    pub const fn makes_pod(self) -> bool {
        matches!(self, Self::Create | Self::Clone)
    }

    /// The name in the API and in events.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Clone => "clone",
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Pause => "pause",
            Self::Restart => "restart",
            Self::Reset => "reset",
            Self::Restore => "restore",
            Self::Snapshot => "snapshot",
            Self::SnapshotImport => "snapshot-import",
            Self::SnapshotDelete => "snapshot-delete",
            Self::SnapshotDrill => "snapshot-drill",
            Self::Archive => "archive",
            Self::Delete => "delete",
            Self::Undelete => "undelete",
            Self::Purge => "purge",
        }
    }
}

/// How an operation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OperationState {
    /// Recorded, not begun.
    Pending,
    /// Being worked on, or waiting for the next try; `error` then tells the last failure.
    Running,
    /// Done.
    Succeeded,
    /// Ended without success; `error` says why.
    Failed,
    /// Ended on request or superseded.
    Cancelled,
}

impl OperationState {
    /// Whether it has ended.
    #[must_use]
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

/// Why something failed, in the form that is stored and shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Stable machine-readable reason, such as `volume-data-lost`.
    pub code: String,
    /// One sentence for people.
    pub message: String,
    /// How to go on; empty when there is nothing to advise.
    pub hint: String,
}

/// A durable, awaitable piece of work on a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// Its id.
    pub id: OperationId,
    /// Whose.
    pub tenant: TenantId,
    /// On which pod.
    pub pod: PodId,
    /// What it does.
    pub kind: OperationKind,
    /// How it stands.
    pub state: OperationState,
    /// The step being worked on, such as `final pass`; empty before the first.
    pub step: String,
    /// How far that step is.
    pub progress: ProgressReading,
    /// The snapshot it takes, restores, deletes or proves.
    pub snapshot: Option<SnapshotId>,
    /// The failure that ended it, or the last one while it is retried.
    pub error: Option<Problem>,
    /// Who asked; `system` for housekeeping.
    pub actor: String,
    /// When it was recorded.
    pub created_at: Timestamp,
    /// When it ended; `None` before.
    pub finished_at: Option<Timestamp>,
}

impl Operation {
    /// What the audit trail says of it as it stands, as kind and message.
    #[must_use]
    pub fn news(&self) -> (&'static str, String) {
        let what = self.kind.as_str();
        let why = self.error.as_ref().map_or_else(String::new, |problem| format!(": {}", problem.message));
        match self.state {
            OperationState::Pending | OperationState::Running => ("operation.requested", format!("{what} requested")),
            OperationState::Succeeded => ("operation.succeeded", format!("{what} succeeded")),
            OperationState::Failed => ("operation.failed", format!("{what} failed{why}")),
            OperationState::Cancelled => ("operation.cancelled", format!("{what} cancelled{why}")),
        }
    }
}

/// One line of the audit trail, before it has a number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEvent {
    /// When.
    pub at: Timestamp,
    /// Who; `system` for housekeeping.
    pub actor: String,
    /// Whose.
    pub tenant: TenantId,
    /// Which pod; `None` for the installation itself.
    pub pod: Option<PodId>,
    /// Which operation it belongs to.
    pub operation: Option<OperationId>,
    /// What, as `subject.verb`, such as `pod.stopped`.
    pub kind: String,
    /// One sentence for people.
    pub message: String,
}

/// One line of the audit trail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Position in the trail, growing; SSE clients resume from it.
    pub id: i64,
    /// The line.
    pub line: NewEvent,
}
