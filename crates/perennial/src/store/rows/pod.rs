//! The state document of a pod: everything of it that has no column.

use jiff::Timestamp;
use perennial_core::health::{Health, Verdict};
use perennial_core::hook::{Hook, OwedHook};
use perennial_core::id::{OperationId, PodId, SnapshotId};
use perennial_core::operation::{OperationKind, Problem};
use perennial_core::parts::{Extra, Parts};
use perennial_core::pod::{
    Acceptance, Composed, Condition, ConditionKind, CrashLoop, Desired, Fork, Goal, Identity, Import, LayerCapture,
    LayerGap, Phase, PinnedImage, Pod, ReadyContainer, RefusedLimits, Resets, Retry, Task, Trash, Work,
};
use perennial_core::snapshot::WriterStamp;
use perennial_core::spec::{Backend, PodName, PodSpec, Resources};
use perennial_core::volume::{ImageLayout, Origin, SetNumber, SetState, Volume, VolumeSet};
use serde::{Deserialize, Serialize};
use sqlx::Row as _;
use sqlx::any::AnyRow;

use super::spec::SpecRow;
use super::{
    DOCUMENT_VERSION, RowError, Stored, check_version, corrupt, parse, parse_tenant, parse_time, read, stored_enum,
    stored_struct, write,
};
use crate::store::StoreError;

stored_enum!(DesiredRow = Desired {
    Running = "running",
    Paused = "paused",
    Stopped = "stopped",
    Archived = "archived",
    Deleted = "deleted",
});
stored_enum!(PhaseRow = Phase {
    Creating = "creating",
    Starting = "starting",
    Running = "running",
    Pausing = "pausing",
    Paused = "paused",
    Stopping = "stopping",
    Stopped = "stopped",
    Restoring = "restoring",
    Resetting = "resetting",
    Archived = "archived",
    Deleting = "deleting",
    Deleted = "deleted",
    Error = "error",
});
stored_enum!(SetStateRow = SetState {
    Preparing = "preparing",
    Complete = "complete",
    Retired = "retired",
    Quarantined = "quarantined",
});
stored_enum!(ConditionKindRow = ConditionKind {
    DataLost = "DataLost",
    DataPartial = "DataPartial",
    GenerationMismatch = "GenerationMismatch",
    CrashLoop = "CrashLoop",
    RestartRequired = "RestartRequired",
    SystemLayerStale = "SystemLayerStale",
    SystemLayerNotCaptured = "SystemLayerNotCaptured",
    Retrying = "Retrying",
    Failed = "Failed",
    ForeignWriter = "ForeignWriter",
    Quarantined = "Quarantined",
    SnapshotFailed = "SnapshotFailed",
    DiskLimitAdvisory = "DiskLimitAdvisory",
    HookFailed = "HookFailed",
    Unhealthy = "Unhealthy",
    HealthUnknown = "HealthUnknown",
    LimitsRefused = "LimitsRefused",
});

stored_struct!(ImageLayoutRow = ImageLayout {
    directories: Vec<String>,
    links: Vec<String>,
    declared: Vec<String>,
});
stored_struct!(PinnedImageRow = PinnedImage { id: String, digest: Option<String>, layout: ImageLayout });
stored_struct!(VolumeRow = Volume { name: String, mount_path: String });
stored_struct!(VolumeSetRow = VolumeSet {
    number: u32,
    backend: Backend,
    origin: Origin,
    state: SetState,
    attached: Option<u64>,
    marked: Option<u64>,
    proof: Option<SnapshotId>,
    volumes: Vec<Volume>,
});
stored_struct!(LayerGapRow = LayerGap { captured_at: Option<Timestamp>, lost_at: Timestamp });
stored_struct!(LayerCaptureRow = LayerCapture {
    repository_id: Option<String>,
    captured_at: Timestamp,
    writer: Option<WriterStamp>,
    after_stop: bool,
});
stored_struct!(
    RefusedLimitsRow = RefusedLimits { wanted: Resources, problem: String, at: Timestamp, live: bool, anew: bool }
);
stored_struct!(ReadyContainerRow = ReadyContainer {
    id: String,
    set: u32,
    spec_generation: u64,
    // Rows from before limits changed while a pod runs have neither.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    limits: Option<Resources>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    refused: Option<RefusedLimits>,
});
stored_struct!(CrashLoopRow = CrashLoop {
    count: u32,
    last: Option<WriterStamp>,
    exit_code: Option<i64>,
    oom: bool,
    not_before: Option<Timestamp>,
});
stored_struct!(TrashRow = Trash { deleted_at: Timestamp, purge_at: Option<Timestamp>, actor: String });
stored_struct!(AcceptanceRow = Acceptance { paths: Vec<String>, actor: String });
stored_struct!(GoalRow = Goal {
    operation: OperationId,
    kind: OperationKind,
    previous: Desired,
    accepted: Option<Acceptance>,
});
stored_enum!(ExtraRow = Extra { Remove = "remove", Keep = "keep" });
stored_enum!(IdentityRow = Identity { Renewed = "renewed", Kept = "kept" });
stored_struct!(PartsRow = Parts { volumes: Vec<String>, paths: Vec<String>, extra: Extra });
stored_struct!(ComposedRow = Composed { snapshot: SnapshotId, base: SnapshotId });
stored_struct!(ForkRow = Fork { identity: Identity, composed: Option<Composed> });
stored_struct!(TaskRow = Task { operation: OperationId, work: Work });
stored_struct!(ConditionRow = Condition { kind: ConditionKind, reason: String, message: String, since: Timestamp });
stored_struct!(
    OwedHookRow = OwedHook { snapshot: SnapshotId, set: u32, run: WriterStamp, before: Hook, after: Hook, tries: u32 }
);
stored_enum!(VerdictRow = Verdict {
    Healthy = "healthy",
    Unhealthy = "unhealthy",
    GivenUp = "given-up",
    Unasked = "unasked",
});
stored_struct!(
    HealthRow = Health {
        verdict: Verdict,
        run: WriterStamp,
        found_at: Timestamp,
        since: Timestamp,
        problem: Option<String>,
    }
);
stored_struct!(ResetsRow = Resets { count: u32, last_at: Option<Timestamp>, kept_in: Option<SnapshotId> });
stored_struct!(RetryRow = Retry { count: u32, not_before: Option<Timestamp>, problem: Option<Problem> });

/// Where a set's content comes from.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum OriginRow {
    /// As the image seeds it.
    Image,
    /// From this snapshot.
    Snapshot(String),
    /// From this data set of this pod on the host.
    Pod { pod: String, set: SetNumber },
}

impl Stored for Origin {
    type Row = OriginRow;
    fn to_row(&self) -> OriginRow {
        match self {
            Self::Image => OriginRow::Image,
            Self::Snapshot(id) => OriginRow::Snapshot(id.to_row()),
            Self::Pod { pod, set } => OriginRow::Pod { pod: pod.to_string(), set: *set },
        }
    }
    fn from_row(row: OriginRow) -> Result<Self, RowError> {
        Ok(match row {
            OriginRow::Image => Self::Image,
            OriginRow::Snapshot(id) => Self::Snapshot(Stored::from_row(id)?),
            OriginRow::Pod { pod, set } => Self::Pod { pod: Stored::from_row(pod)?, set },
        })
    }
}

stored_struct!(ImportRow = Import { into: Option<String>, allow_devices: bool, comment: String });

/// What a task does.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
#[expect(clippy::large_enum_variant, reason = "it lives as long as a document is written or read")]
pub(super) enum WorkRow {
    /// Stops and starts.
    Restart { before: Option<<WriterStamp as Stored>::Row> },
    /// Replaces the data set.
    Replace {
        origin: OriginRow,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        parts: Option<PartsRow>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        composed: Option<ComposedRow>,
        safety: Option<String>,
        old: Option<u32>,
        new: Option<u32>,
        layer: Option<LayerCaptureRow>,
        switched: bool,
        accepted: Option<AcceptanceRow>,
    },
    /// Takes a snapshot.
    Snapshot { snapshot: String, accepted: Option<AcceptanceRow> },
    /// Makes a snapshot of an archive.
    Import { snapshot: String, import: ImportRow },
    /// Destroys everything.
    Purge { actor: String, at: Timestamp },
}

impl Stored for Work {
    type Row = WorkRow;
    fn to_row(&self) -> WorkRow {
        match self {
            Self::Restart { before } => WorkRow::Restart { before: before.to_row() },
            Self::Replace { origin, parts, composed, safety, old, new, layer, switched, accepted } => {
                WorkRow::Replace {
                    origin: origin.to_row(),
                    parts: parts.to_row(),
                    composed: composed.to_row(),
                    safety: safety.to_row(),
                    old: *old,
                    new: *new,
                    layer: layer.to_row(),
                    switched: *switched,
                    accepted: accepted.to_row(),
                }
            }
            Self::Snapshot { snapshot, accepted } => {
                WorkRow::Snapshot { snapshot: snapshot.to_row(), accepted: accepted.to_row() }
            }
            Self::Import { snapshot, import } => {
                WorkRow::Import { snapshot: snapshot.to_row(), import: import.to_row() }
            }
            Self::Purge { actor, at } => WorkRow::Purge { actor: actor.clone(), at: *at },
        }
    }
    fn from_row(row: WorkRow) -> Result<Self, RowError> {
        Ok(match row {
            WorkRow::Restart { before } => Self::Restart { before: Stored::from_row(before)? },
            WorkRow::Replace { origin, parts, composed, safety, old, new, layer, switched, accepted } => {
                Self::Replace {
                    origin: Stored::from_row(origin)?,
                    parts: Stored::from_row(parts)?,
                    composed: Stored::from_row(composed)?,
                    safety: Stored::from_row(safety)?,
                    old,
                    new,
                    layer: Stored::from_row(layer)?,
                    switched,
                    accepted: Stored::from_row(accepted)?,
                }
            }
            WorkRow::Snapshot { snapshot, accepted } => {
                Self::Snapshot { snapshot: Stored::from_row(snapshot)?, accepted: Stored::from_row(accepted)? }
            }
            WorkRow::Import { snapshot, import } => {
                Self::Import { snapshot: Stored::from_row(snapshot)?, import: Stored::from_row(import)? }
            }
            WorkRow::Purge { actor, at } => Self::Purge { actor, at },
        })
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SpecDocument {
    v: u32,
    spec: SpecRow,
}

/// Everything of a pod that has no column.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct StateDocument {
    v: u32,
    spec_generation: u64,
    data_generation: u64,
    goal: Option<GoalRow>,
    tasks: Vec<TaskRow>,
    image: Option<PinnedImageRow>,
    sets: Vec<VolumeSetRow>,
    current: Option<u32>,
    last_set: u32,
    source: Option<OriginRow>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fork: Option<ForkRow>,
    capture: Option<String>,
    layer: Option<LayerCaptureRow>,
    layer_gap: Option<LayerGapRow>,
    container: Option<ReadyContainerRow>,
    crash: CrashLoopRow,
    trash: Option<TrashRow>,
    retry: RetryRow,
    failed: Option<<Problem as Stored>::Row>,
    data_seen_at: Option<Timestamp>,
    scheduled_until: Option<Timestamp>,
    snapshot_failed: Option<<Problem as Stored>::Row>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hook: Option<OwedHookRow>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hook_failed: Option<<Problem as Stored>::Row>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    health: Option<HealthRow>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    resets: Option<ResetsRow>,
    conditions: Vec<ConditionRow>,
}

/// Writes the `spec` column.
pub(in crate::store) fn spec_to_text(spec: &PodSpec) -> Result<String, StoreError> {
    write("pod spec", &SpecDocument { v: DOCUMENT_VERSION, spec: spec.to_row() })
}

/// The text of the `desired` column.
pub(in crate::store) fn desired_text(desired: Desired) -> &'static str {
    desired.to_row().as_str()
}

/// Writes the `desired`, `phase` and `state` columns.
pub(in crate::store) fn state_to_text(pod: &Pod) -> Result<(&'static str, &'static str, String), StoreError> {
    // Destructured so that a new field of a pod cannot be forgotten here.
    let Pod {
        id: _,
        tenant: _,
        name: _,
        spec: _,
        spec_generation,
        data_generation,
        desired,
        goal,
        tasks,
        image,
        sets,
        current,
        last_set,
        source,
        fork,
        capture,
        layer,
        layer_gap,
        container,
        crash,
        trash,
        retry,
        failed,
        data_seen_at,
        scheduled_until,
        snapshot_failed,
        hook,
        hook_failed,
        health,
        resets,
        phase,
        conditions,
        created_at: _,
        updated_at: _,
        version: _,
    } = pod;
    let document = StateDocument {
        v: DOCUMENT_VERSION,
        spec_generation: *spec_generation,
        data_generation: *data_generation,
        goal: goal.to_row(),
        tasks: tasks.to_row(),
        image: image.to_row(),
        sets: sets.to_row(),
        current: *current,
        last_set: *last_set,
        source: source.to_row(),
        fork: fork.to_row(),
        capture: capture.to_row(),
        layer: layer.to_row(),
        layer_gap: layer_gap.to_row(),
        container: container.to_row(),
        crash: crash.to_row(),
        trash: trash.to_row(),
        retry: retry.to_row(),
        failed: failed.to_row(),
        data_seen_at: *data_seen_at,
        scheduled_until: *scheduled_until,
        snapshot_failed: snapshot_failed.to_row(),
        hook: hook.to_row(),
        hook_failed: hook_failed.to_row(),
        health: health.to_row(),
        resets: (*resets != Resets::default()).then(|| resets.to_row()),
        conditions: conditions.to_row(),
    };
    Ok((desired.to_row().as_str(), phase.to_row().as_str(), write("pod state", &document)?))
}

/// The snapshot a pod's data has to come from: the `source_snapshot` column.
pub(in crate::store) fn source_snapshot(pod: &Pod) -> Option<String> {
    match pod.source {
        Some(Origin::Snapshot(id)) => Some(id.to_string()),
        Some(Origin::Image | Origin::Pod { .. }) | None => None,
    }
}

/// Reads a row of `SELECT` [`super::super::read::POD_COLUMNS`].
pub(in crate::store) fn pod_from_row(row: &AnyRow) -> Result<Pod, StoreError> {
    let id: &str = row.try_get(0)?;
    let what = format!("pod {id}");
    let what = what.as_str();
    let name: &str = row.try_get(2)?;
    let spec: SpecDocument = read(what, row.try_get(8)?)?;
    check_version(what, spec.v)?;
    let state: StateDocument = read(what, row.try_get(9)?)?;
    check_version(what, state.v)?;
    let bad = |e: RowError| corrupt(what, e);
    Ok(Pod {
        id: parse::<PodId>(what, id)?,
        tenant: parse_tenant(what, row.try_get(1)?)?,
        name: PodName::parse(name).map_err(|e| corrupt(what, e))?,
        spec: Stored::from_row(spec.spec).map_err(bad)?,
        spec_generation: state.spec_generation,
        data_generation: state.data_generation,
        desired: Stored::from_row(DesiredRow::parse(row.try_get(3)?).map_err(bad)?).map_err(bad)?,
        goal: Stored::from_row(state.goal).map_err(bad)?,
        tasks: Stored::from_row(state.tasks).map_err(bad)?,
        image: Stored::from_row(state.image).map_err(bad)?,
        sets: Stored::from_row(state.sets).map_err(bad)?,
        current: state.current,
        last_set: state.last_set,
        source: Stored::from_row(state.source).map_err(bad)?,
        fork: Stored::from_row(state.fork).map_err(bad)?,
        capture: <Option<SnapshotId>>::from_row(state.capture).map_err(bad)?,
        layer: Stored::from_row(state.layer).map_err(bad)?,
        layer_gap: Stored::from_row(state.layer_gap).map_err(bad)?,
        container: Stored::from_row(state.container).map_err(bad)?,
        crash: Stored::from_row(state.crash).map_err(bad)?,
        trash: Stored::from_row(state.trash).map_err(bad)?,
        retry: Stored::from_row(state.retry).map_err(bad)?,
        failed: Stored::from_row(state.failed).map_err(bad)?,
        data_seen_at: state.data_seen_at,
        scheduled_until: state.scheduled_until,
        snapshot_failed: Stored::from_row(state.snapshot_failed).map_err(bad)?,
        hook: Stored::from_row(state.hook).map_err(bad)?,
        hook_failed: Stored::from_row(state.hook_failed).map_err(bad)?,
        health: Stored::from_row(state.health).map_err(bad)?,
        resets: <Option<Resets>>::from_row(state.resets).map_err(bad)?.unwrap_or_default(),
        phase: Stored::from_row(PhaseRow::parse(row.try_get(4)?).map_err(bad)?).map_err(bad)?,
        conditions: Stored::from_row(state.conditions).map_err(bad)?,
        created_at: parse_time(what, row.try_get(6)?)?,
        updated_at: parse_time(what, row.try_get(7)?)?,
        version: row.try_get(5)?,
    })
}

/// The text of a phase, for a filter.
pub(in crate::store) fn phase_text(phase: Phase) -> &'static str {
    phase.to_row().as_str()
}
