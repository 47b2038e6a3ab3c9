//! Services of the catalogue that were changed over the API: documents, which are read where they are used.

use jiff::Timestamp;
use perennial_core::service::ServiceName;
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Row as _};

use super::read::Select;
use super::rows::{corrupt, parse_time, time};
use super::{Store, StoreError};

/// A service in the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredService {
    /// Its name.
    pub name: ServiceName,
    /// Names the definition.
    pub revision: String,
    /// The definition: a JSON document.
    pub definition: String,
    /// Who changed it last.
    pub actor: String,
    /// When.
    pub changed_at: Timestamp,
}

/// What changes in the catalogue of the database.
#[derive(Debug, Clone)]
pub struct ServiceChange {
    /// What has to be there for anything to be written.
    pub expected: Expected,
    /// What becomes of it.
    pub becomes: ServiceBecomes,
}

/// What somebody who changes a service knows of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// Nothing: it may be there or not.
    Anything,
    /// That it is not in the database.
    Absent,
    /// That its definition is this one.
    Revision(String),
}

/// What becomes of a service.
#[derive(Debug, Clone)]
pub enum ServiceBecomes {
    /// This.
    Stored(StoredService),
    /// It goes.
    Removed(ServiceName),
}

const COLUMNS: &str = "SELECT name, revision, definition, actor, changed_at FROM services";

impl Store {
    /// Lists the services of the database by name.
    ///
    /// # Errors
    /// Why they could not be read.
    pub async fn service_list(&self) -> Result<Vec<StoredService>, StoreError> {
        let rows = self.rows(Select::new(format!("{COLUMNS} ORDER BY name"))).await?;
        rows.iter().map(from_row).collect()
    }

    /// Reads a service; `None` when the database has none of this name.
    ///
    /// # Errors
    /// Why it could not be read.
    pub async fn service_fetch(&self, name: &ServiceName) -> Result<Option<StoredService>, StoreError> {
        let mut select = Select::new(COLUMNS);
        select.text(" WHERE name = $", name.as_str());
        self.row(select).await?.as_ref().map(from_row).transpose()
    }
}

fn from_row(row: &AnyRow) -> Result<StoredService, StoreError> {
    let name: &str = row.try_get(0)?;
    Ok(StoredService {
        name: ServiceName::parse(name).map_err(|error| corrupt("service", error.to_string()))?,
        revision: row.try_get(1)?,
        definition: row.try_get(2)?,
        actor: row.try_get(3)?,
        changed_at: parse_time("service", row.try_get(4)?)?,
    })
}

/// Writes a change; nothing when what was expected is not so.
pub(super) async fn apply(tx: &mut AnyConnection, change: &ServiceChange) -> Result<(), StoreError> {
    let done = match &change.becomes {
        ServiceBecomes::Stored(service) => {
            let (end, revision) = match &change.expected {
                Expected::Anything => (
                    "INSERT INTO services (name, revision, definition, actor, changed_at) VALUES ($1, $2, $3, $4, $5) \
                     ON CONFLICT (name) DO UPDATE SET revision = excluded.revision, definition = excluded.definition, \
                     actor = excluded.actor, changed_at = excluded.changed_at",
                    None,
                ),
                Expected::Absent => (
                    "INSERT INTO services (name, revision, definition, actor, changed_at) VALUES ($1, $2, $3, $4, $5) \
                     ON CONFLICT (name) DO NOTHING",
                    None,
                ),
                Expected::Revision(revision) => (
                    "UPDATE services SET revision = $2, definition = $3, actor = $4, changed_at = $5 \
                     WHERE name = $1 AND revision = $6",
                    Some(revision.as_str()),
                ),
            };
            let query = sqlx::query(end)
                .bind(service.name.as_str())
                .bind(service.revision.as_str())
                .bind(service.definition.as_str())
                .bind(service.actor.as_str())
                .bind(time(service.changed_at));
            match revision {
                Some(revision) => query.bind(revision).execute(tx).await?,
                None => query.execute(tx).await?,
            }
        }
        ServiceBecomes::Removed(name) => match &change.expected {
            Expected::Revision(revision) => {
                let query = sqlx::query("DELETE FROM services WHERE name = $1 AND revision = $2");
                query.bind(name.as_str()).bind(revision.as_str()).execute(tx).await?
            }
            Expected::Anything | Expected::Absent => {
                sqlx::query("DELETE FROM services WHERE name = $1").bind(name.as_str()).execute(tx).await?
            }
        },
    };
    if done.rows_affected() == 1 { Ok(()) } else { Err(StoreError::ServiceChanged) }
}
