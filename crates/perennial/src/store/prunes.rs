//! Which repositories have something to be pruned, and when each was pruned last.

use jiff::Timestamp;
use perennial_core::id::SnapshotId;
use perennial_core::spec::TenantId;
use sqlx::{AnyConnection, Row as _};

use super::read::Select;
use super::rows::{parse_tenant, time};
use super::{Store, StoreError};

impl Store {
    /// Lists tenants whose repositories are to be pruned now: where something was forgotten since the last prune began
    /// and that was before `recent`; where the last one began before `long_ago`, or in the future of a wrong clock; and
    /// those with snapshots where none began yet. Not those with a snapshot that is on its way and was begun after
    /// `long_ago`: what its live pass stored is needed by nothing yet.
    ///
    /// # Errors
    /// Why they could not be read.
    pub async fn prunes_due(
        &self,
        (long_ago, recent, now): (Timestamp, Timestamp, Timestamp),
    ) -> Result<Vec<TenantId>, StoreError> {
        // Ids begin with the time.
        let millis = u64::try_from(long_ago.as_millisecond()).unwrap_or_default();
        let begun_after = SnapshotId::from_parts(millis, [0; 10]);
        let mut select = Select::new("SELECT d.tenant FROM (SELECT tenant FROM prunes WHERE");
        select
            .text(" (wanted_at >= began_at AND began_at <= $)", time(recent))
            .text(" OR began_at <= $", time(long_ago))
            .text(" OR began_at > $", time(now))
            .raw(" UNION SELECT DISTINCT s.tenant FROM snapshots s WHERE NOT EXISTS")
            .raw(" (SELECT 1 FROM prunes p WHERE p.tenant = s.tenant)) AS d WHERE NOT EXISTS")
            .raw(" (SELECT 1 FROM snapshots u WHERE u.tenant = d.tenant AND u.state IN ('pending', 'uploaded')")
            .text(" AND u.id > $)", begun_after.to_string())
            .raw(" AND NOT EXISTS (SELECT 1 FROM erasures e WHERE e.tenant = d.tenant) ORDER BY d.tenant");
        self.rows(select).await?.iter().map(|row| parse_tenant("tenant to prune", row.try_get(0)?)).collect()
    }

    /// Records that a prune which began at this time has ended well: what was forgotten later wants another.
    ///
    /// # Errors
    /// Why it could not be written; the prune is then done again.
    pub async fn prune_done(&self, tenant: &TenantId, began: Timestamp) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO prunes (tenant, wanted_at, began_at) VALUES ($1, '', $2) \
             ON CONFLICT (tenant) DO UPDATE SET began_at = excluded.began_at",
        )
        .bind(tenant.as_str())
        .bind(time(began))
        .execute(&self.write)
        .await?;
        Ok(())
    }
}

pub(super) async fn prune_wanted_upsert(
    tx: &mut AnyConnection,
    tenant: &TenantId,
    at: Timestamp,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO prunes (tenant, wanted_at, began_at) VALUES ($1, $2, '') \
         ON CONFLICT (tenant) DO UPDATE SET wanted_at = excluded.wanted_at",
    )
    .bind(tenant.as_str())
    .bind(time(at))
    .execute(tx)
    .await?;
    Ok(())
}
