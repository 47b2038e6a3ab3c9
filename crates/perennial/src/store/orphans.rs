//! Pods on the engine that are in no database: since when that is known, and what somebody decided.

use std::collections::BTreeSet;

use jiff::Timestamp;
use perennial_core::cleanup::{Noted, Quarantine};
use perennial_core::id::PodId;
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Row as _};

use super::change::Change;
use super::read::Select;
use super::rows::{parse, parse_time, time};
use super::{Store, StoreError};

/// What becomes of an orphaned pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OrphanChange {
    /// Somebody consented to its end; nothing happens before the time that is in it.
    Quarantined(PodId, Quarantine),
    /// Its end begins at this time: from now on no pod of this id is written.
    Ending(PodId, Timestamp),
    /// Nothing of it is left.
    Gone(PodId),
}

impl Store {
    /// Records which pods are on the engine and in no database; what is not among them any more is forgotten.
    ///
    /// # Errors
    /// Why it could not be recorded.
    pub async fn orphans_note(&self, seen: &BTreeSet<PodId>, now: Timestamp) -> Result<Vec<Noted>, StoreError> {
        let known = self.orphans().await?;
        let is_known = |pod: &PodId| known.iter().any(|noted| noted.pod == *pod);
        if known.iter().all(|noted| noted.is_ending || seen.contains(&noted.pod)) && seen.iter().all(is_known) {
            return Ok(known);
        }
        let mut held = self.write.acquire().await?;
        let mut tx = held.begin().await?;
        for noted in known.iter().filter(|noted| !seen.contains(&noted.pod)) {
            // The end of one that has begun is written by who began it, with its line of the trail.
            let query = sqlx::query("DELETE FROM orphans WHERE pod = $1 AND ending = 0").bind(noted.pod.to_string());
            query.execute(&mut *tx).await?;
        }
        for pod in seen {
            let sql = "INSERT INTO orphans (pod, first_seen_at) VALUES ($1, $2) ON CONFLICT (pod) DO NOTHING";
            sqlx::query(sql).bind(pod.to_string()).bind(time(now)).execute(&mut *tx).await?;
        }
        tx.commit().await.map_err(|error| StoreError::OutcomeUnknown(Some(error)))?;
        held.done();
        self.orphans().await
    }

    /// Lists what is remembered, by pod.
    ///
    /// # Errors
    /// Why it could not be read.
    pub async fn orphans(&self) -> Result<Vec<Noted>, StoreError> {
        let columns =
            "SELECT pod, first_seen_at, quarantined_at, quarantined_by, kept_until, ending FROM orphans ORDER BY pod";
        self.rows(Select::new(columns)).await?.iter().map(noted).collect()
    }
}

fn noted(row: &AnyRow) -> Result<Noted, StoreError> {
    let at: &str = row.try_get(2)?;
    let quarantine = match at {
        "" => None,
        at => Some(Quarantine {
            at: parse_time("quarantine", at)?,
            actor: row.try_get(3)?,
            until: parse_time("quarantine", row.try_get(4)?)?,
        }),
    };
    Ok(Noted {
        pod: parse("pod id", row.try_get(0)?)?,
        first_seen_at: parse_time("orphan", row.try_get(1)?)?,
        quarantine,
        is_ending: row.try_get::<i64, _>(5)? == 1,
    })
}

/// Writes what becomes of orphaned pods. Runs with the counter's row locked, so that a pod of the same id is written before or after.
pub(super) async fn apply(tx: &mut AnyConnection, change: &Change) -> Result<(), StoreError> {
    let taken_over = change.pod.iter().chain(&change.other_pod).filter(|pod| pod.version == 0);
    for pod in taken_over {
        let sql = "SELECT 1 FROM orphans WHERE pod = $1 AND ending = 1";
        if sqlx::query(sql).bind(pod.id.to_string()).fetch_optional(&mut *tx).await?.is_some() {
            return Err(StoreError::Stale);
        }
    }
    for orphan in &change.orphans {
        let done = match orphan {
            OrphanChange::Quarantined(pod, Quarantine { at, actor, until }) => {
                let sql = "UPDATE orphans SET quarantined_at = $2, quarantined_by = $3, kept_until = $4 \
                           WHERE pod = $1 AND quarantined_at = ''";
                sqlx::query(sql)
                    .bind(pod.to_string())
                    .bind(time(*at))
                    .bind(actor.clone())
                    .bind(time(*until))
                    .execute(&mut *tx)
                    .await?
            }
            OrphanChange::Ending(pod, now) => {
                let sql = "UPDATE orphans SET ending = 1 WHERE pod = $1 AND quarantined_at <> '' \
                           AND NOT EXISTS (SELECT 1 FROM pods WHERE id = $1) \
                           AND NOT EXISTS (SELECT 1 FROM leases WHERE pod = $1 AND expires_at > $2)";
                sqlx::query(sql).bind(pod.to_string()).bind(time(*now)).execute(&mut *tx).await?
            }
            OrphanChange::Gone(pod) => {
                let query = sqlx::query("DELETE FROM orphans WHERE pod = $1 AND ending = 1").bind(pod.to_string());
                query.execute(&mut *tx).await?
            }
        };
        // It is somebody's by now, or another server was faster.
        if done.rows_affected() != 1 {
            return Err(StoreError::Stale);
        }
    }
    Ok(())
}
