//! The document of a snapshot.

use jiff::Timestamp;
use perennial_core::hook::{HookReport, HookRun};
use perennial_core::id::{PodId, SnapshotId};
use perennial_core::snapshot::{Grade, Loss, Snapshot, SnapshotKind, SnapshotState, SnapshotVolume, WriterStamp};
use perennial_core::spec::{Backend, TenantId};
use serde::{Deserialize, Serialize};

use super::{DOCUMENT_VERSION, RowError, Stored, check_version, corrupt, read, stored_enum, stored_struct, write};
use crate::store::StoreError;

stored_enum!(KindRow = SnapshotKind {
    Manual = "manual",
    Scheduled = "scheduled",
    Final = "final",
    Safety = "safety",
    Composed = "composed",
    Imported = "imported",
});
stored_enum!(StateRow = SnapshotState {
    Pending = "pending",
    Uploaded = "uploaded",
    Verified = "verified",
    Failed = "failed",
});
/// The text of a state, for a filter.
pub(in crate::store) fn snapshot_state_text(state: SnapshotState) -> &'static str {
    state.to_row().as_str()
}

stored_enum!(GradeRow = Grade { Stopped = "stopped", Frozen = "frozen", Hooked = "hooked" });
stored_struct!(WriterStampRow = WriterStamp { container: String, started_at: Option<Timestamp> });
stored_struct!(LossRow = Loss { path: String, reason: String });
stored_struct!(VolumeRow = SnapshotVolume {
    name: String,
    mount_path: String,
    files: Option<u64>,
    bytes: Option<u64>,
});
stored_struct!(HookRunRow = HookRun { exit: Option<i64>, millis: u64, problem: Option<String> });
stored_struct!(HookReportRow = HookReport { before: Option<HookRun>, after: Option<HookRun> });
stored_struct!(SnapshotRow = Snapshot {
    id: SnapshotId,
    pod: PodId,
    tenant: TenantId,
    kind: SnapshotKind,
    state: SnapshotState,
    set: Option<u32>,
    generation: u64,
    backend: Option<Backend>,
    grade: Option<Grade>,
    writer: Option<WriterStamp>,
    created_at: Timestamp,
    captured_at: Option<Timestamp>,
    /// Missing from rows of before migration 4.
    #[serde(default)]
    frozen_millis: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hooks: Option<HookReport>,
    bytes: Option<u64>,
    new_bytes: Option<u64>,
    files: Option<u64>,
    volumes: Vec<SnapshotVolume>,
    image: Option<String>,
    losses: Vec<Loss>,
    repository_id: Option<String>,
    error: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    proven_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    drilled_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    damage: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    replicated_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    replica_problem: Option<String>,
});

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    v: u32,
    snapshot: SnapshotRow,
}

/// Writes the `state` and `body` columns.
pub(in crate::store) fn snapshot_to_body(snapshot: &Snapshot) -> Result<(&'static str, String), StoreError> {
    let row = snapshot.to_row();
    let state = row.state.as_str();
    Ok((state, write("snapshot", &Document { v: DOCUMENT_VERSION, snapshot: row })?))
}

/// Reads the `body` column.
pub(in crate::store) fn snapshot_from_body(body: &str) -> Result<Snapshot, StoreError> {
    let document: Document = read("snapshot", body)?;
    check_version("snapshot", document.v)?;
    Snapshot::from_row(document.snapshot).map_err(|e| corrupt("snapshot", e))
}
