//! Who may work on a pod: one holder at a time, fenced by an epoch (law 6).

use jiff::Timestamp;
use perennial_core::id::PodId;
use sqlx::Row as _;

use super::read::Select;
use super::rows::time;
use super::{Store, StoreError};

/// The right to work on a pod until it ends or is taken over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Which pod.
    pub pod: PodId,
    /// Who holds it: one running server.
    pub holder: String,
    /// Grows with every change of holder; a commit under an older epoch is refused.
    pub epoch: i64,
}

impl Store {
    /// Takes the pod's lease, or prolongs it; `None` while another holder's has not ended.
    ///
    /// # Errors
    /// Why the database did not answer.
    pub async fn lease_acquire(
        &self,
        pod: PodId,
        holder: &str,
        now: Timestamp,
        until: Timestamp,
    ) -> Result<Option<Lease>, StoreError> {
        let row = sqlx::query(
            "INSERT INTO leases (pod, holder, epoch, expires_at) VALUES ($1, $2, 1, $4) \
             ON CONFLICT (pod) DO UPDATE SET holder = excluded.holder, expires_at = excluded.expires_at, \
             epoch = CASE WHEN leases.holder = excluded.holder THEN leases.epoch ELSE leases.epoch + 1 END \
             WHERE leases.holder = excluded.holder OR leases.expires_at <= $3 RETURNING epoch",
        )
        .bind(pod.to_string())
        .bind(holder)
        .bind(time(now))
        .bind(time(until))
        .fetch_optional(&self.write)
        .await?;
        let Some(row) = row else { return Ok(None) };
        Ok(Some(Lease { pod, holder: holder.to_owned(), epoch: row.try_get(0)? }))
    }

    /// Whether another holder's lease of the pod has not ended.
    ///
    /// # Errors
    /// Why the database did not answer.
    pub async fn lease_is_elsewhere(&self, pod: PodId, holder: &str, now: Timestamp) -> Result<bool, StoreError> {
        let mut select = Select::new("SELECT 1 FROM leases");
        select.text(" WHERE pod = $", pod.to_string()).text(" AND holder <> $", holder.to_owned());
        // One that was given back has no time.
        select.text(" AND expires_at > $", time(now));
        Ok(self.row(select).await?.is_some())
    }

    /// Whether nobody else has worked on the pod since this lease was taken.
    ///
    /// # Errors
    /// Why the database did not answer.
    pub async fn lease_holds(&self, lease: &Lease) -> Result<bool, StoreError> {
        let row = sqlx::query("SELECT epoch FROM leases WHERE pod = $1 AND holder = $2 AND epoch = $3")
            .bind(lease.pod.to_string())
            .bind(lease.holder.as_str())
            .bind(lease.epoch)
            .fetch_optional(&self.write)
            .await?;
        Ok(row.is_some())
    }

    /// Gives the lease back; one that was lost meanwhile stays with its new holder.
    ///
    /// # Errors
    /// Why the database did not answer.
    pub async fn lease_release(&self, lease: &Lease) -> Result<(), StoreError> {
        // The row stays, so that the epoch never starts again.
        sqlx::query("UPDATE leases SET holder = '', expires_at = '' WHERE pod = $1 AND holder = $2 AND epoch = $3")
            .bind(lease.pod.to_string())
            .bind(lease.holder.as_str())
            .bind(lease.epoch)
            .execute(&self.write)
            .await?;
        Ok(())
    }
}
