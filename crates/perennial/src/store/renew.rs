//! Databases in memory that are used again: the simulator makes thousands of worlds, and to migrate one takes as long as much of
//! what is tried in it.

use std::sync::Arc;

use perennial_core::fault::NoTap;
use sqlx::{AnyConnection, AssertSqlSafe, Executor as _, Row as _};
use tokio::sync::{broadcast, watch};

use super::connections::Connections;
use super::{BACKLOG, Store, StoreError};

const TABLES: &str =
    "SELECT name FROM main.sqlite_master WHERE type = 'table' AND name <> '_sqlx_migrations' ORDER BY name";
const REMEMBERED: &str =
    "SELECT substr(name, 5) FROM temp.sqlite_master WHERE type = 'table' AND name LIKE 'new %' ORDER BY name";

async fn names(connection: &mut AnyConnection, sql: &'static str) -> Result<Vec<String>, StoreError> {
    let rows = sqlx::query(sql).fetch_all(connection).await?;
    Ok(rows.iter().map(|row| row.try_get(0)).collect::<sqlx::Result<_>>()?)
}

impl Store {
    /// Remembers what is in this database in memory, for [`renewed`](Self::renewed).
    ///
    /// # Errors
    /// Why the database did not do it.
    pub async fn remember_new(&self) -> Result<(), StoreError> {
        let mut held = self.write.acquire().await?;
        for table in names(held.connection()?, TABLES).await? {
            let sql = format!("CREATE TEMP TABLE \"new {table}\" AS SELECT * FROM main.\"{table}\"");
            held.connection()?.execute(AssertSqlSafe(sql)).await?;
        }
        held.done();
        Ok(())
    }

    /// The same database with what was remembered in its tables and nothing else; `None` when somebody else still uses it, who
    /// could write into what comes next, or when nothing was remembered.
    ///
    /// # Errors
    /// Why the database did not do it.
    pub async fn renewed(self) -> Result<Option<Self>, StoreError> {
        let Connections::Local(local) = &self.write else { return Ok(None) };
        // One for those who read, one for those who write.
        if Arc::strong_count(local) > 2 {
            return Ok(None);
        }
        let mut held = self.write.acquire().await?;
        let tables = names(held.connection()?, REMEMBERED).await?;
        if tables.is_empty() {
            return Ok(None);
        }
        let mut sql = "BEGIN; PRAGMA defer_foreign_keys = ON;".to_owned();
        for table in tables {
            sql += &format!(
                "DELETE FROM main.\"{table}\"; INSERT INTO main.\"{table}\" SELECT * FROM temp.\"new {table}\";"
            );
        }
        held.connection()?.execute(AssertSqlSafe(sql + "COMMIT")).await?;
        held.done();
        Ok(Some(Self {
            tap: Arc::new(NoTap),
            committed: broadcast::channel(BACKLOG).0,
            access: watch::Sender::new(0),
            ..self
        }))
    }
}
