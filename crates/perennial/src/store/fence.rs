//! Snapshots between those who build on them and those who delete them.
//!
//! Both sides look before they decide, and a look is over when something is committed. So the commit that records the
//! intent looks again: it first takes the row of each snapshot it is about (on Postgres an update locks it until the commit;
//! SQLite has one writer), and then sees whatever the other side committed before.

use perennial_core::id::{PodId, SnapshotId};
use perennial_core::operation::{Operation, OperationKind};
use perennial_core::pod::{Pod, Work};
use sqlx::{AnyConnection, Row as _};

use super::StoreError;
use super::change::Change;
use super::read::POD_COLUMNS;
use super::rows::{operation_from_row, pod_from_row};

/// Checks what a change says about snapshots that it neither writes nor removes.
pub(super) async fn check(tx: &mut AnyConnection, change: &Change) -> Result<(), StoreError> {
    // In one order, so that two changes never wait for each other.
    let mut uses = change.uses.clone();
    uses.sort_unstable();
    for snapshot in uses {
        check_use(tx, snapshot).await?;
    }
    let mut forgets = change.forgets.clone();
    forgets.sort_unstable();
    for snapshot in forgets {
        check_forget(tx, snapshot).await?;
    }
    match change.forgets_all_of {
        Some(pod) => check_forget_all(tx, pod).await,
        None => Ok(()),
    }
}

/// A snapshot can be built on while it is there and neither it nor its pod is being destroyed.
async fn check_use(tx: &mut AnyConnection, snapshot: SnapshotId) -> Result<(), StoreError> {
    let held = sqlx::query("UPDATE snapshots SET state = state WHERE id = $1 RETURNING pod")
        .bind(snapshot.to_string())
        .fetch_optional(&mut *tx)
        .await?;
    let Some(held) = held else { return Err(StoreError::SnapshotGoing(snapshot)) };
    let work = unfinished(tx, snapshot).await?;
    let owner: String = held.try_get(0)?;
    let deleting = work.iter().any(|o| o.kind == OperationKind::SnapshotDelete);
    if deleting || is_purging(pod(tx, &owner).await?.as_ref()) {
        return Err(StoreError::SnapshotGoing(snapshot));
    }
    Ok(())
}

async fn check_forget(tx: &mut AnyConnection, snapshot: SnapshotId) -> Result<(), StoreError> {
    let id = snapshot.to_string();
    sqlx::query("UPDATE snapshots SET state = state WHERE id = $1").bind(id.as_str()).execute(&mut *tx).await?;
    let work = unfinished(tx, snapshot).await?;
    if let Some(user) = work.iter().find(|o| o.kind != OperationKind::SnapshotDelete) {
        return Err(StoreError::SnapshotNeeded(format!("{} {} is not finished", user.kind.as_str(), user.id)));
    }
    let pods = sqlx::query("SELECT id FROM pods WHERE source_snapshot = $1 ORDER BY id").bind(id).fetch_all(tx).await?;
    refuse_first(&pods, "starts from it")
}

async fn check_forget_all(tx: &mut AnyConnection, pod: PodId) -> Result<(), StoreError> {
    let pod = pod.to_string();
    sqlx::query("UPDATE snapshots SET state = state WHERE pod = $1").bind(pod.as_str()).execute(&mut *tx).await?;
    let others = sqlx::query(
        "SELECT p.id FROM pods p JOIN snapshots s ON s.id = p.source_snapshot WHERE s.pod = $1 AND p.id <> s.pod \
         ORDER BY p.id",
    )
    .bind(pod.as_str())
    .fetch_all(&mut *tx)
    .await?;
    refuse_first(&others, "starts from a snapshot of this one")?;
    let others = sqlx::query(
        "SELECT o.pod FROM operations o JOIN snapshots s ON s.id = o.snapshot WHERE s.pod = $1 AND o.pod <> s.pod \
         AND o.state IN ('pending', 'running') ORDER BY o.pod",
    )
    .bind(pod)
    .fetch_all(tx)
    .await?;
    refuse_first(&others, "is being filled from a snapshot of this one")
}

fn refuse_first(pods: &[sqlx::any::AnyRow], what: &str) -> Result<(), StoreError> {
    let Some(first) = pods.first() else { return Ok(()) };
    let pod: &str = first.try_get(0)?;
    Err(StoreError::SnapshotNeeded(format!("pod {pod} {what}")))
}

async fn unfinished(tx: &mut AnyConnection, snapshot: SnapshotId) -> Result<Vec<Operation>, StoreError> {
    let rows = sqlx::query("SELECT body FROM operations WHERE snapshot = $1 AND state IN ('pending', 'running')")
        .bind(snapshot.to_string())
        .fetch_all(tx)
        .await?;
    rows.iter().map(|row| operation_from_row(row.try_get(0)?)).collect()
}

async fn pod(tx: &mut AnyConnection, id: &str) -> Result<Option<Pod>, StoreError> {
    let select = format!("SELECT {POD_COLUMNS} FROM pods p WHERE p.id = $1");
    let row = sqlx::query(sqlx::AssertSqlSafe(select)).bind(id).fetch_optional(tx).await?;
    row.as_ref().map(pod_from_row).transpose()
}

fn is_purging(pod: Option<&Pod>) -> bool {
    // A snapshot outlives its pod only for as long as the purge takes.
    pod.is_none_or(|pod| pod.tasks.iter().any(|task| matches!(task.work, Work::Purge { .. })))
}
