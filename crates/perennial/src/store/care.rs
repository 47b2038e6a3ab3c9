//! What drills found out about snapshots, and when the next are due.

use std::collections::HashMap;

use jiff::Timestamp;
use perennial_core::id::{PodId, SnapshotId};
use perennial_core::snapshot::Care;
use sqlx::{AnyConnection, Row as _};

use super::read::Select;
use super::rows::{parse, parse_time, snapshot_from_body, snapshot_to_body, time};
use super::{Store, StoreError};

/// What drills say about a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// The pod.
    pub pod: PodId,
    /// When a drill of one of its snapshots had a result last.
    pub drilled_at: Timestamp,
    /// Which snapshot was proven last, and when; it may be gone since.
    pub proven: Option<(SnapshotId, Timestamp)>,
}

impl Store {
    /// When a drill of each pod was begun last, whatever became of it; pods without one are left out.
    ///
    /// # Errors
    /// Why they could not be read.
    pub async fn drill_tries(&self) -> Result<HashMap<PodId, Timestamp>, StoreError> {
        let what = "try of a drill";
        let rows = self.rows(Select::new("SELECT pod, tried_at FROM drill_tries")).await?;
        rows.iter().map(|row| Ok((parse(what, row.try_get(0)?)?, parse_time(what, row.try_get(1)?)?))).collect()
    }

    /// What drills say about a pod; `None` when no snapshot of it was drilled.
    ///
    /// # Errors
    /// Why it could not be read.
    pub async fn proof_fetch(&self, pod: PodId) -> Result<Option<Proof>, StoreError> {
        let mut select = Select::new("SELECT pod, drilled_at, snapshot, proven_at FROM proofs");
        select.text(" WHERE pod = $", pod.to_string());
        self.row(select).await?.as_ref().map(proof).transpose()
    }

    /// How often the schedule of drills was followed, and when last; `None`: never.
    ///
    /// # Errors
    /// Why it could not be read.
    pub async fn drill_turn(&self) -> Result<Option<(i64, Timestamp)>, StoreError> {
        let row = self.row(Select::new("SELECT turn, began_at FROM drill_turns WHERE id = 1")).await?;
        row.map(|row| Ok((row.try_get(0)?, parse_time("turn of drills", row.try_get(1)?)?))).transpose()
    }

    /// Begins the turn after this one (0: the first), at this time; `false` when another server was faster.
    ///
    /// # Errors
    /// Why it could not be written; it may have begun all the same.
    pub async fn drill_turn_begin(&self, turn: i64, at: Timestamp) -> Result<bool, StoreError> {
        let sql = match turn {
            0 => "INSERT INTO drill_turns (id, turn, began_at) VALUES (1, $1, $2) ON CONFLICT (id) DO NOTHING",
            _ => "UPDATE drill_turns SET turn = $1, began_at = $2 WHERE id = 1 AND turn = $1 - 1",
        };
        let done = sqlx::query(sql).bind(turn + 1).bind(time(at)).execute(&self.write).await?;
        Ok(done.rows_affected() == 1)
    }
}

fn proof(row: &sqlx::any::AnyRow) -> Result<Proof, StoreError> {
    let what = "proof";
    let proven: &str = row.try_get(3)?;
    let proven = match proven {
        "" => None,
        at => Some((parse(what, row.try_get(2)?)?, parse_time(what, at)?)),
    };
    Ok(Proof { pod: parse(what, row.try_get(0)?)?, drilled_at: parse_time(what, row.try_get(1)?)?, proven })
}

/// Records that a drill of a pod is begun.
pub(super) async fn drill_try_upsert(tx: &mut AnyConnection, pod: PodId, at: Timestamp) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO drill_tries (pod, tried_at) VALUES ($1, $2) \
         ON CONFLICT (pod) DO UPDATE SET tried_at = excluded.tried_at",
    )
    .bind(pod.to_string())
    .bind(time(at))
    .execute(tx)
    .await?;
    Ok(())
}

/// Changes what is known of a snapshot that is there, and nothing when it is not.
pub(super) async fn care_note(tx: &mut AnyConnection, id: SnapshotId, care: &Care) -> Result<(), StoreError> {
    // On Postgres this locks the row until the commit, so that two notes do not undo each other.
    let there =
        sqlx::query("UPDATE snapshots SET state = state WHERE id = $1").bind(id.to_string()).execute(&mut *tx).await?;
    if there.rows_affected() == 0 {
        return Ok(());
    }
    let row = sqlx::query("SELECT body FROM snapshots WHERE id = $1").bind(id.to_string()).fetch_one(&mut *tx).await?;
    let mut snapshot = snapshot_from_body(row.try_get(0)?)?;
    snapshot.note(care.clone());
    let (state, body) = snapshot_to_body(&snapshot)?;
    sqlx::query("UPDATE snapshots SET state = $2, body = $3 WHERE id = $1")
        .bind(id.to_string())
        .bind(state)
        .bind(body)
        .execute(&mut *tx)
        .await?;
    let (drilled_at, proven) = match care {
        Care::Proven(at) => (at, Some(at)),
        Care::Damaged(at, _) => (at, None),
        Care::Replicated(_) | Care::NotReplicated(_) => return Ok(()),
    };
    // An older proof of another snapshot is still one.
    sqlx::query(
        "INSERT INTO proofs (pod, drilled_at, snapshot, proven_at) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (pod) DO UPDATE SET drilled_at = excluded.drilled_at, \
         snapshot = CASE WHEN excluded.proven_at <> '' THEN excluded.snapshot ELSE proofs.snapshot END, \
         proven_at = CASE WHEN excluded.proven_at <> '' THEN excluded.proven_at \
         WHEN proofs.snapshot = excluded.snapshot THEN '' ELSE proofs.proven_at END",
    )
    .bind(snapshot.pod.to_string())
    .bind(time(*drilled_at))
    .bind(id.to_string())
    .bind(proven.map(|at| time(*at)).unwrap_or_default())
    .execute(tx)
    .await?;
    Ok(())
}
