//! The document of an operation.

use jiff::Timestamp;
use perennial_core::id::{OperationId, PodId, SnapshotId};
use perennial_core::operation::{Operation, OperationKind, OperationState, Problem};
use perennial_core::progress::ProgressReading;
use perennial_core::spec::TenantId;
use serde::{Deserialize, Serialize};

use super::{DOCUMENT_VERSION, RowError, Stored, check_version, corrupt, read, stored_enum, stored_struct, write};
use crate::store::StoreError;

stored_enum!(KindRow = OperationKind {
    Create = "create",
    Clone = "clone",
    Start = "start",
    Stop = "stop",
    Pause = "pause",
    Restart = "restart",
    Reset = "reset",
    Restore = "restore",
    Snapshot = "snapshot",
    SnapshotImport = "snapshot-import",
    SnapshotDelete = "snapshot-delete",
    SnapshotDrill = "snapshot-drill",
    Archive = "archive",
    Delete = "delete",
    Undelete = "undelete",
    Purge = "purge",
});
stored_enum!(StateRow = OperationState {
    Pending = "pending",
    Running = "running",
    Succeeded = "succeeded",
    Failed = "failed",
    Cancelled = "cancelled",
});
stored_struct!(ProblemRow = Problem { code: String, message: String, hint: String });
stored_struct!(ProgressRow = ProgressReading { bytes_done: u64, bytes_total: u64, files_done: u64 });
stored_struct!(OperationRow = Operation {
    id: OperationId,
    tenant: TenantId,
    pod: PodId,
    kind: OperationKind,
    state: OperationState,
    step: String,
    progress: ProgressReading,
    snapshot: Option<SnapshotId>,
    error: Option<Problem>,
    actor: String,
    created_at: Timestamp,
    finished_at: Option<Timestamp>,
});

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    v: u32,
    operation: OperationRow,
}

/// Writes the `state` and `body` columns.
pub(in crate::store) fn operation_to_body(operation: &Operation) -> Result<(&'static str, String), StoreError> {
    let row = operation.to_row();
    let state = row.state.as_str();
    Ok((state, write("operation", &Document { v: DOCUMENT_VERSION, operation: row })?))
}

/// Reads the `body` column.
pub(in crate::store) fn operation_from_row(body: &str) -> Result<Operation, StoreError> {
    let document: Document = read("operation", body)?;
    check_version("operation", document.v)?;
    Operation::from_row(document.operation).map_err(|e| corrupt("operation", e))
}
