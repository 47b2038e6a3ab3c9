//! What replicas of the tenants' repositories hold, and how far behind they are.

use jiff::Timestamp;
use perennial_core::id::SnapshotId;
use perennial_core::replication::{Copying, Noted, Part, Wanted};
use perennial_core::snapshot::SnapshotState;
use perennial_core::spec::TenantId;
use sqlx::{AnyConnection, Row as _};

use super::read::Select;
use super::rows::{corrupt, parse, parse_tenant, parse_time, snapshot_state_text, time};
use super::{Store, StoreError, StoredImage};

/// A tenant's replica, as it was seen last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replica {
    /// Whose.
    pub tenant: TenantId,
    /// The id that it carries itself; `None`: it was never opened.
    pub id: Option<String>,
    /// When everything was looked at to the end last.
    pub looked_at: Option<Timestamp>,
    /// When it was pruned last.
    pub pruned_at: Option<Timestamp>,
    /// Why the last turn did not get to its end.
    pub problem: Option<String>,
}

/// What changes in the record of one thing in a replica.
#[derive(Debug, Clone)]
pub struct ReplicaNote {
    /// Whose.
    pub tenant: TenantId,
    /// The id of the replica.
    pub replica: String,
    /// What changes.
    pub change: NoteChange,
}

/// What changes in the record of one thing in a replica.
#[derive(Debug, Clone)]
pub enum NoteChange {
    /// This is known of it from now on.
    Known(Noted),
    /// Its original was deleted, seen at this time; or, without one, is there again.
    Gone(String, Option<Timestamp>),
    /// Nothing is known of it any more.
    Dropped(String),
}

/// How far a tenant's replica is behind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Verified snapshots that are not in it.
    pub count: u64,
    /// The oldest of them.
    pub oldest: Option<SnapshotId>,
}

impl Store {
    /// Lists the tenants that have something to be copied, or a replica.
    ///
    /// # Errors
    /// Why they could not be read.
    pub async fn replica_tenants(&self) -> Result<Vec<TenantId>, StoreError> {
        let mut select = Select::new("SELECT d.tenant FROM (SELECT DISTINCT tenant FROM snapshots WHERE");
        select
            .text(" state = $", snapshot_state_text(SnapshotState::Verified))
            .raw(" UNION SELECT tenant FROM replicas) AS d WHERE NOT EXISTS")
            .raw(" (SELECT 1 FROM erasures e WHERE e.tenant = d.tenant) ORDER BY d.tenant");
        self.rows(select).await?.iter().map(|row| parse_tenant("tenant to replicate", row.try_get(0)?)).collect()
    }

    /// Reads what is known of a tenant's replica; `None` before the first turn.
    ///
    /// # Errors
    /// Why it could not be read.
    pub async fn replica_fetch(&self, tenant: &TenantId) -> Result<Option<Replica>, StoreError> {
        let mut select = Select::new("SELECT replica, looked_at, pruned_at, problem FROM replicas");
        select.text(" WHERE tenant = $", tenant.as_str());
        let Some(row) = self.row(select).await? else { return Ok(None) };
        let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        let when = |text: &str| some(text).map(|text| parse_time("replica", &text)).transpose();
        Ok(Some(Replica {
            tenant: tenant.clone(),
            id: some(row.try_get(0)?),
            looked_at: when(row.try_get(1)?)?,
            pruned_at: when(row.try_get(2)?)?,
            problem: some(row.try_get(3)?),
        }))
    }

    /// Has this server alone work on a tenant's replica until then; `false` while another one does.
    ///
    /// # Errors
    /// Why the database did not answer.
    pub async fn replica_claim(
        &self,
        tenant: &TenantId,
        holder: &str,
        (now, until): (Timestamp, Timestamp),
    ) -> Result<bool, StoreError> {
        let done = sqlx::query(
            "INSERT INTO replicas (tenant, replica, holder, busy_until, looked_at, pruned_at, problem) \
             SELECT $1, '', $2, $4, '', '', '' WHERE NOT EXISTS (SELECT 1 FROM erasures WHERE tenant = $1) \
             ON CONFLICT (tenant) DO UPDATE SET holder = excluded.holder, busy_until = excluded.busy_until \
             WHERE replicas.holder = excluded.holder OR replicas.busy_until <= $3",
        )
        .bind(tenant.as_str())
        .bind(holder)
        .bind(time(now))
        .bind(time(until))
        .execute(&self.write)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Records what is known of a tenant's replica, and gives it back.
    ///
    /// # Errors
    /// Why the database did not answer.
    pub async fn replica_save(&self, replica: &Replica) -> Result<(), StoreError> {
        let when = |at: Option<Timestamp>| at.map(time).unwrap_or_default();
        sqlx::query(
            "UPDATE replicas SET replica = $2, looked_at = $3, pruned_at = $4, problem = $5, busy_until = '' \
             WHERE tenant = $1",
        )
        .bind(replica.tenant.as_str())
        .bind(replica.id.as_deref().unwrap_or_default())
        .bind(when(replica.looked_at))
        .bind(when(replica.pruned_at))
        .bind(replica.problem.as_deref().unwrap_or_default())
        .execute(&self.write)
        .await?;
        Ok(())
    }

    /// Lists what is known of everything in a tenant's replica.
    ///
    /// # Errors
    /// Why it could not be read.
    pub async fn replicated(&self, tenant: &TenantId, replica: &str) -> Result<Vec<Noted>, StoreError> {
        let mut select = Select::new("SELECT part, name, original, copy, problem, at, gone_at FROM replicated");
        select.text(" WHERE tenant = $", tenant.as_str()).text(" AND replica = $", replica).raw(" ORDER BY original");
        self.rows(select).await?.iter().map(noted).collect()
    }

    /// Lists the ids of all of a tenant's snapshots, each with whether it is verified.
    ///
    /// # Errors
    /// Why they could not be read.
    pub async fn snapshot_ids_of(&self, tenant: &TenantId) -> Result<Vec<(SnapshotId, bool)>, StoreError> {
        let mut select = Select::new("SELECT id, state FROM snapshots");
        select.text(" WHERE tenant = $", tenant.as_str()).raw(" ORDER BY id");
        let verified = snapshot_state_text(SnapshotState::Verified);
        let rows = self.rows(select).await?;
        rows.iter()
            .map(|row| Ok((parse("snapshot id", row.try_get(0)?)?, row.try_get::<&str, _>(1)? == verified)))
            .collect()
    }

    /// Lists the images that a tenant's repository holds.
    ///
    /// # Errors
    /// Why they could not be read.
    pub async fn images_of(&self, tenant: &TenantId) -> Result<Vec<StoredImage>, StoreError> {
        let mut select = Select::new("SELECT image, repository_id, stored_at FROM images");
        select.text(" WHERE tenant = $", tenant.as_str()).raw(" ORDER BY image");
        let image = |row: &sqlx::any::AnyRow| {
            Ok(StoredImage {
                tenant: tenant.clone(),
                image: row.try_get(0)?,
                repository_id: row.try_get(1)?,
                stored_at: parse_time("image", row.try_get(2)?)?,
            })
        };
        self.rows(select).await?.iter().map(image).collect()
    }

    /// Reports whether a verified snapshot is not in a tenant's replica of this id, those left out that failed within a time:
    /// they are not tried again yet.
    ///
    /// # Errors
    /// Why it could not be read.
    pub async fn replica_lacks(
        &self,
        tenant: &TenantId,
        replica: &str,
        (since, now): (Timestamp, Timestamp),
    ) -> Result<bool, StoreError> {
        let mut select = Select::new("SELECT 1 FROM snapshots s");
        select
            .text(" WHERE s.tenant = $", tenant.as_str())
            .text(" AND s.state = $", snapshot_state_text(SnapshotState::Verified))
            .text(" AND NOT EXISTS (SELECT 1 FROM replicated r WHERE r.tenant = s.tenant AND r.replica = $", replica)
            .text(" AND r.part = $", part_text(Part::Snapshot))
            .text(" AND r.name = s.id AND (r.copy <> '' OR (r.at > $", time(since))
            // A time in the future is a wrong clock's.
            .text(" AND r.at <= $))) LIMIT 1", time(now));
        Ok(self.row(select).await?.is_some())
    }

    /// Tells how far a tenant's replica of this id is behind.
    ///
    /// # Errors
    /// Why it could not be read.
    pub async fn replica_backlog(&self, tenant: &TenantId, replica: &str) -> Result<Backlog, StoreError> {
        let mut select = Select::new("SELECT COUNT(*), COALESCE(MIN(s.id), '') FROM snapshots s");
        select
            .text(" WHERE s.tenant = $", tenant.as_str())
            .text(" AND s.state = $", snapshot_state_text(SnapshotState::Verified))
            .text(" AND NOT EXISTS (SELECT 1 FROM replicated r WHERE r.tenant = s.tenant AND r.replica = $", replica)
            .text(" AND r.part = $", part_text(Part::Snapshot))
            .raw(" AND r.name = s.id AND r.copy <> '')");
        let Some(row) = self.row(select).await? else { return Ok(Backlog::default()) };
        let oldest: &str = row.try_get(1)?;
        Ok(Backlog {
            count: u64::try_from(row.try_get::<i64, _>(0)?).unwrap_or_default(),
            oldest: if oldest.is_empty() { None } else { Some(parse("snapshot id", oldest)?) },
        })
    }
}

const fn part_text(part: Part) -> &'static str {
    match part {
        Part::Image => "image",
        Part::Snapshot => "snapshot",
        Part::Layer => "layer",
    }
}

fn noted(row: &sqlx::any::AnyRow) -> Result<Noted, StoreError> {
    let what = "record of a replica";
    let part = match row.try_get(0)? {
        "image" => Part::Image,
        "snapshot" => Part::Snapshot,
        "layer" => Part::Layer,
        other => return Err(corrupt(what, format!("unknown part {other:?}"))),
    };
    let (copy, gone_at): (String, &str) = (row.try_get(3)?, row.try_get(6)?);
    Ok(Noted {
        wanted: Wanted { part, name: row.try_get(1)?, original: row.try_get(2)? },
        copying: if copy.is_empty() { Copying::Failed(row.try_get(4)?) } else { Copying::Copied(copy) },
        at: parse_time(what, row.try_get(5)?)?,
        gone_at: if gone_at.is_empty() { None } else { Some(parse_time(what, gone_at)?) },
    })
}

pub(super) async fn replica_note(tx: &mut AnyConnection, note: &ReplicaNote) -> Result<(), StoreError> {
    let (tenant, replica) = (note.tenant.as_str(), note.replica.as_str());
    match &note.change {
        NoteChange::Known(noted) => {
            let (copy, problem) = match &noted.copying {
                Copying::Copied(copy) => (copy.as_str(), ""),
                Copying::Failed(problem) => ("", problem.as_str()),
            };
            sqlx::query(
                "INSERT INTO replicated (tenant, replica, original, part, name, copy, at, problem, gone_at) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (tenant, replica, original) DO UPDATE SET \
                 part = excluded.part, name = excluded.name, copy = excluded.copy, at = excluded.at, \
                 problem = excluded.problem, gone_at = excluded.gone_at",
            )
            .bind(tenant)
            .bind(replica)
            .bind(noted.wanted.original.as_str())
            .bind(part_text(noted.wanted.part))
            .bind(noted.wanted.name.as_str())
            .bind(copy)
            .bind(time(noted.at))
            .bind(problem)
            .bind(noted.gone_at.map(time).unwrap_or_default())
            .execute(tx)
            .await?;
        }
        NoteChange::Gone(original, at) => {
            sqlx::query("UPDATE replicated SET gone_at = $4 WHERE tenant = $1 AND replica = $2 AND original = $3")
                .bind(tenant)
                .bind(replica)
                .bind(original.as_str())
                .bind(at.map(time).unwrap_or_default())
                .execute(tx)
                .await?;
        }
        NoteChange::Dropped(original) => {
            sqlx::query("DELETE FROM replicated WHERE tenant = $1 AND replica = $2 AND original = $3")
                .bind(tenant)
                .bind(replica)
                .bind(original.as_str())
                .execute(tx)
                .await?;
        }
    }
    Ok(())
}
