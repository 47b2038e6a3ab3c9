//! Which keys are in a recovery kit that somebody exported.

use jiff::Timestamp;
use perennial_core::spec::TenantId;
use sqlx::{AnyConnection, Row as _};

use super::rows::{parse_tenant, parse_time, time};
use super::{Store, StoreError};

/// The newest export of the key of a tenant's repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveryExport {
    /// Whose repository.
    pub tenant: TenantId,
    /// Tells one key from another, and nothing else about it.
    pub fingerprint: String,
    /// Who exported it.
    pub actor: String,
    /// When.
    pub at: Timestamp,
}

impl Store {
    /// Lists the exported keys by tenant.
    ///
    /// # Errors
    /// Why they could not be read.
    pub async fn recovery_exports(&self) -> Result<Vec<RecoveryExport>, StoreError> {
        let rows = sqlx::query("SELECT tenant, fingerprint, actor, at FROM recovery_exports ORDER BY tenant")
            .fetch_all(&self.read)
            .await?;
        let what = "recovery export";
        rows.iter()
            .map(|row| {
                Ok(RecoveryExport {
                    tenant: parse_tenant(what, row.try_get(0)?)?,
                    fingerprint: row.try_get(1)?,
                    actor: row.try_get(2)?,
                    at: parse_time(what, row.try_get(3)?)?,
                })
            })
            .collect()
    }
}

pub(super) async fn export_upsert(tx: &mut AnyConnection, export: &RecoveryExport) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO recovery_exports (tenant, fingerprint, actor, at) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (tenant) DO UPDATE SET fingerprint = excluded.fingerprint, actor = excluded.actor, at = excluded.at",
    )
    .bind(export.tenant.as_str())
    .bind(export.fingerprint.as_str())
    .bind(export.actor.as_str())
    .bind(time(export.at))
    .execute(tx)
    .await?;
    Ok(())
}
