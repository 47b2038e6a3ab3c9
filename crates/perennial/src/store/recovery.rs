//! Which keys are in a recovery kit that somebody exported.

use jiff::Timestamp;
use perennial_core::spec::TenantId;
use sqlx::{AnyConnection, Row as _};

use super::read::Select;
use super::rows::{parse_tenant, parse_time, time};
use super::{Store, StoreError};

/// What a key is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExportOf {
    /// The tenant's repository.
    Repository,
    /// Its replica.
    Replica,
}

impl ExportOf {
    const fn table(self) -> &'static str {
        match self {
            Self::Repository => "recovery_exports",
            Self::Replica => "replica_exports",
        }
    }
}

/// The newest export of the key of a tenant's repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveryExport {
    /// What it is the key of.
    pub of: ExportOf,
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
    /// Lists the exported keys by tenant, those of repositories first.
    ///
    /// # Errors
    /// Why they could not be read.
    pub async fn recovery_exports(&self) -> Result<Vec<RecoveryExport>, StoreError> {
        let what = "recovery export";
        let mut exports = Vec::new();
        for of in [ExportOf::Repository, ExportOf::Replica] {
            let sql = format!("SELECT tenant, fingerprint, actor, at FROM {} ORDER BY tenant", of.table());
            for row in self.rows(Select::new(sql)).await? {
                exports.push(RecoveryExport {
                    of,
                    tenant: parse_tenant(what, row.try_get(0)?)?,
                    fingerprint: row.try_get(1)?,
                    actor: row.try_get(2)?,
                    at: parse_time(what, row.try_get(3)?)?,
                });
            }
        }
        Ok(exports)
    }
}

pub(super) async fn export_upsert(tx: &mut AnyConnection, export: &RecoveryExport) -> Result<(), StoreError> {
    let sql = format!(
        "INSERT INTO {} (tenant, fingerprint, actor, at) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (tenant) DO UPDATE SET fingerprint = excluded.fingerprint, actor = excluded.actor, at = excluded.at",
        export.of.table()
    );
    // A name of a table out of a fixed few.
    sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(export.tenant.as_str())
        .bind(export.fingerprint.as_str())
        .bind(export.actor.as_str())
        .bind(time(export.at))
        .execute(tx)
        .await?;
    Ok(())
}
