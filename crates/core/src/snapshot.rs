//! Snapshots as Perennial records them; the bytes are the repository's business.

use jiff::Timestamp;

use crate::hook::HookReport;
use crate::id::{PodId, SnapshotId};
use crate::spec::{Backend, TenantId};
use crate::volume::SetNumber;

/// Why a snapshot was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotKind {
    /// Somebody asked.
    Manual,
    /// A schedule asked.
    Scheduled,
    /// The capture that a stop, archive or delete depends on.
    Final,
    /// The capture of what a reset or restore replaces.
    Safety,
    /// Put together out of others for a restore of parts or a clone: nobody's instant, and never a proof.
    Composed,
    /// No capture: made of an archive that somebody sent. It proves nothing about the pod's own data.
    Imported,
}

/// How far a snapshot has come: `pending → uploaded → verified`, or `failed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotState {
    /// Not complete in the repository.
    Pending,
    /// Complete in the repository, not yet read back.
    Uploaded,
    /// Read back and checked.
    Verified,
    /// Not usable; `error` says why.
    Failed,
}

/// How consistent the captured instant is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grade {
    /// The last writer had stopped.
    Stopped,
    /// All writers were frozen.
    Frozen,
    /// All writers were frozen, after the pod's own hook had made them ready for it.
    Hooked,
}

/// Identifies one run of one container: a different run may have written again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriterStamp {
    /// The engine's container id.
    pub container: String,
    /// When that run began, as the engine tells it; `None` when it never ran.
    pub started_at: Option<Timestamp>,
}

/// Something that could not be captured.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Loss {
    /// Path in the snapshot, such as `/volumes/home/x`, lossy where it is not UTF-8.
    pub path: String,
    /// What went wrong.
    pub reason: String,
}

/// One volume's share of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotVolume {
    /// Volume name; its tree is `/volumes/<name>`.
    pub name: String,
    /// Mount path in the container.
    pub mount_path: String,
    /// Regular files; `None` when unknown.
    pub files: Option<u64>,
    /// Bytes of content; `None` when unknown.
    pub bytes: Option<u64>,
}

/// A point-in-time copy of a whole data set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Its id; the tag `snapshot:<id>` finds it in the repository.
    pub id: SnapshotId,
    /// Whose data.
    pub pod: PodId,
    /// Whose repository.
    pub tenant: TenantId,
    /// Why.
    pub kind: SnapshotKind,
    /// How far.
    pub state: SnapshotState,
    /// Which set was captured; `None` until the capture began.
    pub set: Option<SetNumber>,
    /// Data generation captured.
    pub generation: u64,
    /// How the trees are stored: overlay changes, or whole trees.
    pub backend: Option<Backend>,
    /// Consistency; `None` until captured.
    pub grade: Option<Grade>,
    /// The last writer seen before the final pass; `None` when there was no container.
    pub writer: Option<WriterStamp>,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When the captured instant was; `None` until captured.
    pub captured_at: Option<Timestamp>,
    /// How long the pod stood still for it, in milliseconds; `None` when it did not.
    pub frozen_millis: Option<u64>,
    /// What the pod's hooks did; `None` when it has none, or stood still for no snapshot.
    pub hooks: Option<HookReport>,
    /// Bytes of content; `None` when unknown (D19).
    pub bytes: Option<u64>,
    /// Bytes added to the repository; `None` when unknown.
    pub new_bytes: Option<u64>,
    /// Regular files; `None` when unknown.
    pub files: Option<u64>,
    /// The volumes it holds.
    pub volumes: Vec<SnapshotVolume>,
    /// Image the trees are relative to (the engine's image id).
    pub image: Option<String>,
    /// Losses its owner accepted; not empty means it proves nothing (D34).
    pub losses: Vec<Loss>,
    /// The repository's own id of it; `None` until uploaded.
    pub repository_id: Option<String>,
    /// Why it failed; `None` otherwise.
    pub error: Option<String>,
    /// When a drill proved it last; `None`: never, or the last one found damage.
    pub proven_at: Option<Timestamp>,
    /// When a drill had a result last.
    pub drilled_at: Option<Timestamp>,
    /// What the last drill found wrong with it.
    pub damage: Option<String>,
    /// When it was proven to be in the replica, with its image; `None`: it is not, as far as is known.
    pub replicated_at: Option<Timestamp>,
    /// Why it could not be copied to the replica.
    pub replica_problem: Option<String>,
}

/// What was found out about a verified snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Care {
    /// A drill restored all of it and found it as it should be.
    Proven(Timestamp),
    /// A drill found damage.
    Damaged(Timestamp, String),
    /// It is in the replica, proven, with everything it needs.
    Replicated(Timestamp),
    /// It is not in the replica, for this reason when there is one.
    NotReplicated(Option<String>),
}

impl Snapshot {
    /// A snapshot that was just asked for.
    #[must_use]
    pub fn pending(id: SnapshotId, pod: PodId, tenant: TenantId, kind: SnapshotKind, now: Timestamp) -> Self {
        Self {
            id,
            pod,
            tenant,
            kind,
            state: SnapshotState::Pending,
            set: None,
            generation: 0,
            backend: None,
            grade: None,
            writer: None,
            created_at: now,
            captured_at: None,
            frozen_millis: None,
            hooks: None,
            bytes: None,
            new_bytes: None,
            files: None,
            volumes: Vec::new(),
            image: None,
            losses: Vec::new(),
            repository_id: None,
            error: None,
            proven_at: None,
            drilled_at: None,
            damage: None,
            replicated_at: None,
            replica_problem: None,
        }
    }

    /// Notes what was found out about it.
    pub fn note(&mut self, care: Care) {
        match care {
            Care::Proven(at) => (self.proven_at, self.drilled_at, self.damage) = (Some(at), Some(at), None),
            Care::Damaged(at, what) => (self.proven_at, self.drilled_at, self.damage) = (None, Some(at), Some(what)),
            Care::Replicated(at) => (self.replicated_at, self.replica_problem) = (Some(at), None),
            Care::NotReplicated(why) => (self.replicated_at, self.replica_problem) = (None, why),
        }
    }

    /// Whether it is of the pod's own data at an instant, neither put together nor of an archive from elsewhere.
    #[must_use]
    pub const fn is_capture(&self) -> bool {
        !matches!(self.kind, SnapshotKind::Composed | SnapshotKind::Imported)
    }

    /// Whether data can be brought back from it.
    #[must_use]
    pub const fn is_restorable(&self) -> bool {
        matches!(self.state, SnapshotState::Verified) && self.repository_id.is_some()
    }
}
