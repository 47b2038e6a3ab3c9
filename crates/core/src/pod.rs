//! A pod as Perennial records it: what was asked for, what its data is, what is being done.
//!
//! Everything here is stored; what an engine shows is [`crate::engine::ObservedPod`] and never stored as truth.

use jiff::Timestamp;

use crate::health::{Health, HealthState, Verdict};
use crate::hook::OwedHook;
use crate::id::{OperationId, PodId, SnapshotId};
use crate::operation::{OperationKind, Problem};
use crate::parts::Parts;
use crate::snapshot::WriterStamp;
use crate::spec::{PodName, PodSpec, Profile, Resources, TenantId};
use crate::volume::{ImageLayout, Origin, SetNumber, VolumeSet};

/// What was asked for (D28).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Desired {
    /// The container runs.
    Running,
    /// The container is stopped, everything stays on the host.
    Paused,
    /// Captured, verified, released.
    Stopped,
    /// Stopped, hidden, kept without a clock.
    Archived,
    /// Stopped, hidden, purged when the undelete window ends.
    Deleted,
}

impl Desired {
    /// Whether the host is to be released.
    #[must_use]
    pub const fn releases_host(self) -> bool {
        matches!(self, Self::Stopped | Self::Archived | Self::Deleted)
    }
}

/// What is seen (contract in the API).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Being made for the first time.
    Creating,
    /// On its way to running.
    Starting,
    /// Running.
    Running,
    /// On its way to paused.
    Pausing,
    /// Stopped with everything on the host.
    Paused,
    /// On its way to stopped.
    Stopping,
    /// Released; the data is in the repository.
    Stopped,
    /// Data being replaced by a snapshot.
    Restoring,
    /// Data being replaced by a fresh set.
    Resetting,
    /// Released and hidden.
    Archived,
    /// On its way to deleted.
    Deleting,
    /// Released, waiting for the end of the undelete window.
    Deleted,
    /// Something needs a person; the conditions say what.
    Error,
}

/// The image a pod is bound to; only an explicit rebase changes it (D11).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PinnedImage {
    /// The engine's image id, `sha256:…` of its configuration: the same after `docker load` elsewhere.
    pub id: String,
    /// The registry's digest; `None` for an image made locally.
    pub digest: Option<String>,
    /// What decides the layout of volumes.
    pub layout: ImageLayout,
}

/// A capture of the system layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerCapture {
    /// Repository snapshot that holds it, and only it, below `/system`: the pod's own, whatever becomes of the
    /// snapshots that it was captured with or restored from. `None` when there was nothing in it.
    pub repository_id: Option<String>,
    /// When it was captured.
    pub captured_at: Timestamp,
    /// The run of the container it was captured from; `None` when it came out of a restored snapshot.
    pub writer: Option<WriterStamp>,
    /// Whether that writer had stopped; only then may the container go (D35).
    pub after_stop: bool,
}

/// A container was lost together with changes outside volumes that nobody had captured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerGap {
    /// When the layer that was put back had been captured; `None` when the image's own was used.
    pub captured_at: Option<Timestamp>,
    /// When the loss was seen: up to then the volumes may be newer.
    pub lost_at: Timestamp,
}

/// The container that is ready to run: created, its system layer put back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadyContainer {
    /// The engine's id.
    pub id: String,
    /// Set it is attached to.
    pub set: SetNumber,
    /// Specification it was made from.
    pub spec_generation: u64,
    /// What it is limited to, as [`Resources::of_container`] says; `None` when nobody knows: it was found and not made, or is
    /// being given others.
    pub limits: Option<Resources>,
    /// The limits that the engine did not give it, last.
    pub refused: Option<RefusedLimits>,
}

/// Limits that a container did not get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedLimits {
    /// Which.
    pub wanted: Resources,
    /// Why.
    pub problem: String,
    /// When it was tried.
    pub at: Timestamp,
    /// Whether it ran then: once it has ended, it may get them.
    pub live: bool,
    /// Whether a container that is made with them has them; else the engine makes none like that.
    pub anew: bool,
}

impl ReadyContainer {
    /// The limits of this specification, when the container has others or nobody knows which it has.
    #[must_use]
    pub fn lacks_limits(&self, spec: &PodSpec) -> Option<Resources> {
        let wanted = spec.resources.of_container();
        (self.limits != Some(wanted)).then_some(wanted)
    }

    /// That the engine did not give it these limits.
    #[must_use]
    pub fn refusal(&self, wanted: &Resources) -> Option<&RefusedLimits> {
        self.refused.as_ref().filter(|refused| refused.wanted == *wanted)
    }
}

/// What is known about containers that ended by themselves.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CrashLoop {
    /// Ends by itself since it last ran for a while.
    pub count: u32,
    /// The run that ended last; a run is counted once.
    pub last: Option<WriterStamp>,
    /// Exit code of that run; `None` when the engine does not know.
    pub exit_code: Option<i64>,
    /// Whether the kernel ended it for memory.
    pub oom: bool,
    /// No start before this time.
    pub not_before: Option<Timestamp>,
}

/// The undelete window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trash {
    /// When it was deleted.
    pub deleted_at: Timestamp,
    /// When it will be purged; `None` for archived pods, which have no clock.
    pub purge_at: Option<Timestamp>,
    /// Who consented to that.
    pub actor: String,
}

/// An owner's explicit word that these losses are acceptable (D34).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acceptance {
    /// The exact paths in the snapshot, such as `/volumes/home/broken`.
    pub paths: Vec<String>,
    /// Who said so.
    pub actor: String,
}

/// The desired state that is being worked towards, and the operation that waits for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Goal {
    /// The waiting operation.
    pub operation: OperationId,
    /// What it does.
    pub kind: OperationKind,
    /// Where a cancelled or failed goal goes back to.
    pub previous: Desired,
    /// Losses its owner accepted.
    pub accepted: Option<Acceptance>,
}

/// One-time work on a pod; only the first of the queue is worked on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// The waiting operation.
    pub operation: OperationId,
    /// What is to be done.
    pub work: Work,
}

/// What a task does, and how far it is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "a pod has few of them; boxing would only blur the patterns")]
pub enum Work {
    /// Stops the run `before` and starts another; `None` until the first pass saw which one runs.
    Restart {
        /// The run that has to end.
        before: Option<WriterStamp>,
    },
    /// Replaces the data set: reset (from the image) or restore (from a snapshot).
    Replace {
        /// Where the new content comes from.
        origin: Origin,
        /// What of `origin` is taken, the rest staying as it is; `None` for everything.
        parts: Option<Parts>,
        /// The snapshot that is put together for `parts`; `None` before it is begun.
        composed: Option<Composed>,
        /// The capture of what is replaced; `None` while none was begun, or when nothing whole is left to capture.
        safety: Option<SnapshotId>,
        /// The set being replaced; `None` when the host holds none.
        old: Option<SetNumber>,
        /// The set being made; `None` until allocated.
        new: Option<SetNumber>,
        /// The system layer that belongs to the new set; `None` until it is filled, and for the image's own.
        layer: Option<LayerCapture>,
        /// Whether the pod already uses the new set.
        switched: bool,
        /// Losses its owner accepted for the capture.
        accepted: Option<Acceptance>,
    },
    /// Takes a snapshot.
    Snapshot {
        /// Which.
        snapshot: SnapshotId,
        /// Losses its owner accepted.
        accepted: Option<Acceptance>,
    },
    /// Makes a snapshot of an archive that was received; nothing of the pod changes.
    Import {
        /// Which.
        snapshot: SnapshotId,
        /// What was asked for.
        import: Import,
    },
    /// Destroys everything.
    Purge {
        /// Who confirmed it by name.
        actor: String,
        /// When.
        at: Timestamp,
    },
}

/// A snapshot that is put together in the repository, out of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Composed {
    /// The new one.
    pub snapshot: SnapshotId,
    /// The one it is but for what is exchanged in it.
    pub base: SnapshotId,
}

/// What has to happen to the source of a clone before its first set is made from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fork {
    /// What becomes of the files that say which machine the source is (D12).
    pub identity: Identity,
    /// The clone's own snapshot, put together out of its source; `None` before it is begun.
    pub composed: Option<Composed>,
}

/// What becomes of a machine's identity: machine-id and ssh host keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Identity {
    /// The clone gets its own.
    #[default]
    Renewed,
    /// It stays that of the source.
    Kept,
}

/// What becomes of an archive.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Import {
    /// The path of the pod that it belongs below; `None` for an archive of the whole pod.
    pub into: Option<String>,
    /// Whether devices in it are taken.
    pub allow_devices: bool,
    /// What its owner says about it; may be empty.
    pub comment: String,
}

/// A statement about a pod that people and programs can act on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// What it is about, such as `DataLost`.
    pub kind: ConditionKind,
    /// Machine-readable cause, such as `volume-missing`.
    pub reason: String,
    /// One sentence for people.
    pub message: String,
    /// Since when; kept while kind and reason stay the same.
    pub since: Timestamp,
}

/// What a condition is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConditionKind {
    /// Data that should be on the host is not: nothing is started (law 2).
    DataLost,
    /// Some of the volumes are there and some are not (law 3).
    DataPartial,
    /// The data or the database is older than the other (D15).
    GenerationMismatch,
    /// The container ends by itself again and again.
    CrashLoop,
    /// The specification changed; a restart applies it.
    RestartRequired,
    /// The container was lost and its system layer is older than the volumes.
    SystemLayerStale,
    /// The runtime hides changes outside volumes: they would be lost.
    SystemLayerNotCaptured,
    /// The last try failed; it is repeated.
    Retrying,
    /// The last operation failed for good.
    Failed,
    /// Another container uses this pod's volumes.
    ForeignWriter,
    /// Sets are kept because nothing proves a copy of them.
    Quarantined,
    /// The newest snapshot that was asked for failed.
    SnapshotFailed,
    /// The disk limit is not enforced (D13).
    DiskLimitAdvisory,
    /// The hook that ends what another began failed.
    HookFailed,
    /// It runs and does not answer its health check.
    Unhealthy,
    /// Its health check cannot be asked.
    HealthUnknown,
    /// The engine gives no container the limits that are asked for.
    LimitsRefused,
}

impl ConditionKind {
    /// The name in the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::DataLost => "DataLost",
            Self::DataPartial => "DataPartial",
            Self::GenerationMismatch => "GenerationMismatch",
            Self::CrashLoop => "CrashLoop",
            Self::RestartRequired => "RestartRequired",
            Self::SystemLayerStale => "SystemLayerStale",
            Self::SystemLayerNotCaptured => "SystemLayerNotCaptured",
            Self::Retrying => "Retrying",
            Self::Failed => "Failed",
            Self::ForeignWriter => "ForeignWriter",
            Self::Quarantined => "Quarantined",
            Self::SnapshotFailed => "SnapshotFailed",
            Self::DiskLimitAdvisory => "DiskLimitAdvisory",
            Self::HookFailed => "HookFailed",
            Self::Unhealthy => "Unhealthy",
            Self::HealthUnknown => "HealthUnknown",
            Self::LimitsRefused => "LimitsRefused",
        }
    }
}

/// Everything Perennial knows about a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Its id, for ever.
    pub id: PodId,
    /// Its owner.
    pub tenant: TenantId,
    /// Its name.
    pub name: PodName,
    /// What was asked for.
    pub spec: PodSpec,
    /// Grows with every change of `spec` (D29).
    pub spec_generation: u64,
    /// Committed before every writable attach and before every restore; never reused (D29). Zero: never attached.
    pub data_generation: u64,
    /// What it should be.
    pub desired: Desired,
    /// The desired state in work; `None` once reached.
    pub goal: Option<Goal>,
    /// One-time work, first in line first.
    pub tasks: Vec<Task>,
    /// The image it is bound to; `None` until resolved.
    pub image: Option<PinnedImage>,
    /// Every set that may have left something on the engine.
    pub sets: Vec<VolumeSet>,
    /// The set that holds the data; `None` when the host holds none.
    pub current: Option<SetNumber>,
    /// Number of the newest set.
    pub last_set: SetNumber,
    /// What the next set is made from; `None` while `current` holds data that a writer may have changed.
    pub source: Option<Origin>,
    /// What a clone still lacks; `None` for other pods, and once its source is its own.
    pub fork: Option<Fork>,
    /// The capture a release is working on.
    pub capture: Option<SnapshotId>,
    /// The newest capture of the system layer; `None` when the image's own is what counts.
    pub layer: Option<LayerCapture>,
    /// Set when a container was lost whose layer was newer than its capture; cleared with the next data set.
    pub layer_gap: Option<LayerGap>,
    /// The container that is ready; `None` when one has to be made.
    pub container: Option<ReadyContainer>,
    /// Crashes.
    pub crash: CrashLoop,
    /// Archive and undelete window.
    pub trash: Option<Trash>,
    /// Failed tries of the present step, and when the next is due.
    pub retry: Retry,
    /// Why the last goal failed for good; cleared by the next.
    pub failed: Option<Problem>,
    /// Last time the data was seen whole; says since when data would be missing.
    pub data_seen_at: Option<Timestamp>,
    /// Scheduled snapshots up to this time are taken or not wanted; `None` before the first look at the schedule.
    pub scheduled_until: Option<Timestamp>,
    /// Why the newest snapshot that was asked for failed; cleared by the next that succeeds.
    pub snapshot_failed: Option<Problem>,
    /// The hook that has to be run before anything else is done; `None` when none is owed.
    pub hook: Option<OwedHook>,
    /// Why the pod may still be as its `before` hook left it; cleared by the next `after` that succeeds.
    pub hook_failed: Option<Problem>,
    /// What was found out about its health; `None`: nothing yet about a run that goes on.
    pub health: Option<Health>,
    /// How often its data was thrown away on request.
    pub resets: Resets,
    /// What is seen: a cache for people.
    pub phase: Phase,
    /// What is worth knowing: a cache for people.
    pub conditions: Vec<Condition>,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When this record changed last.
    pub updated_at: Timestamp,
    /// Row version: grows with every commit, checked by every commit.
    pub version: i64,
}

/// How often a pod's data was thrown away on request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Resets {
    /// So often.
    pub count: u32,
    /// When it was last; `None`: never.
    pub last_at: Option<Timestamp>,
    /// The safety snapshot of what was there then; `None` when there was nothing to keep.
    pub kept_in: Option<SnapshotId>,
}

/// Failed tries of the present step.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Retry {
    /// Tries that failed in a row.
    pub count: u32,
    /// No next try before this time.
    pub not_before: Option<Timestamp>,
    /// The last failure.
    pub problem: Option<Problem>,
}

impl Pod {
    /// A pod that was just asked for, to be run.
    #[must_use]
    pub fn new(
        id: PodId,
        tenant: TenantId,
        name: PodName,
        spec: PodSpec,
        operation: OperationId,
        now: Timestamp,
    ) -> Self {
        let goal = Goal { operation, kind: OperationKind::Create, previous: Desired::Running, accepted: None };
        Self {
            id,
            tenant,
            name,
            spec,
            spec_generation: 1,
            data_generation: 0,
            desired: Desired::Running,
            goal: Some(goal),
            tasks: Vec::new(),
            image: None,
            sets: Vec::new(),
            current: None,
            last_set: 0,
            source: Some(Origin::Image),
            fork: None,
            capture: None,
            layer: None,
            layer_gap: None,
            container: None,
            crash: CrashLoop::default(),
            trash: None,
            retry: Retry::default(),
            failed: None,
            data_seen_at: None,
            scheduled_until: Some(now),
            snapshot_failed: None,
            hook: None,
            hook_failed: None,
            health: None,
            resets: Resets::default(),
            phase: Phase::Creating,
            conditions: Vec::new(),
            created_at: now,
            updated_at: now,
            version: 0,
        }
    }

    /// How its health is shown; `None` when nobody asks for it.
    #[must_use]
    pub fn health_state(&self) -> Option<HealthState> {
        self.spec.health.as_ref()?;
        let runs = matches!(self.phase, Phase::Creating | Phase::Starting | Phase::Running);
        if self.desired != Desired::Running || !runs {
            return Some(HealthState::Unknown);
        }
        Some(match self.health.as_ref().map(|health| health.verdict) {
            None => HealthState::Starting,
            Some(Verdict::Healthy) => HealthState::Healthy,
            Some(Verdict::Unhealthy | Verdict::GivenUp) => HealthState::Unhealthy,
            Some(Verdict::Unasked) => HealthState::Unknown,
        })
    }

    /// Whether it may be asked for its health now: it is to run, and nothing else is done with it.
    #[must_use]
    pub fn may_be_asked(&self) -> bool {
        self.desired == Desired::Running && self.goal.is_none() && self.tasks.is_empty() && self.hook.is_none()
    }

    /// The set with this number.
    #[must_use]
    pub fn set(&self, number: SetNumber) -> Option<&VolumeSet> {
        self.sets.iter().find(|s| s.number == number)
    }

    /// The set that holds the data.
    #[must_use]
    pub fn current_set(&self) -> Option<&VolumeSet> {
        self.current.and_then(|n| self.set(n))
    }

    /// The replacement in work, and what its new data set is made from.
    ///
    /// A restore of parts is one of the snapshot that was put together for it.
    #[must_use]
    pub fn replacement(&self) -> Option<Origin> {
        match self.tasks.first().map(|task| &task.work) {
            Some(Work::Replace { composed: Some(composed), .. }) => Some(Origin::Snapshot(composed.snapshot)),
            Some(Work::Replace { origin, .. }) => Some(*origin),
            _ => None,
        }
    }

    /// The captures of system layers in the repository that this pod needs.
    #[must_use]
    pub fn layers(&self) -> Vec<&str> {
        let of_tasks = self.tasks.iter().filter_map(|task| match &task.work {
            Work::Replace { layer, .. } => layer.as_ref(),
            _ => None,
        });
        self.layer.iter().chain(of_tasks).filter_map(|l| l.repository_id.as_deref()).collect()
    }

    /// Whether what the pod changes outside its volumes persists.
    #[must_use]
    pub const fn keeps_layer(&self) -> bool {
        matches!(self.spec.profile, Profile::Universal)
    }

    /// Whether a writer ever had this pod's data.
    #[must_use]
    pub const fn ever_ran(&self) -> bool {
        self.data_generation > 0
    }
}
