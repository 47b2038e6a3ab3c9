//! Opening a database: connections, pragmas, migrations.

use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use perennial_core::fault::Tap;
use perennial_core::id::InstallationId;
use rand::RngExt as _;
use sqlx::any::AnyPoolOptions;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::{AnyPool, Executor as _, Row as _};
use tokio::sync::broadcast;

use super::rows::{parse, time};
use super::{BACKLOG, Store, StoreError};

static MIGRATIONS: Migrator = sqlx::migrate!();

/// Readers beside the one writer of a SQLite file.
const SQLITE_READERS: u32 = 4;
/// Connections to Postgres.
const POSTGRES_CONNECTIONS: u32 = 16;
/// How long a statement waits for a connection, and for another process's lock on the database.
const WAIT: Duration = Duration::from_secs(10);

/// What a database URL names.
enum Place<'a> {
    Memory,
    File(&'a str),
    Server,
}

fn place(url: &str) -> Place<'_> {
    match url.strip_prefix("sqlite:") {
        None => Place::Server,
        Some(":memory:" | "//:memory:") => Place::Memory,
        Some(path) => Place::File(path.strip_prefix("//").unwrap_or(path)),
    }
}

/// Pool options that keep their connections: they are local, and an in-memory database lives in its one connection.
fn options(connections: u32) -> AnyPoolOptions {
    AnyPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(WAIT)
        .max_lifetime(None)
        .idle_timeout(None)
        .test_before_acquire(false)
}

/// Connections that lose nothing on a power cut (`synchronous=FULL`) and let readers go on while one writes (WAL).
fn sqlite(connections: u32) -> AnyPoolOptions {
    options(connections).after_connect(|connection, _| {
        Box::pin(async move {
            connection
                .execute(
                    "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; \
                     PRAGMA busy_timeout = 10000; PRAGMA trusted_schema = OFF;",
                )
                .await?;
            Ok(())
        })
    })
}

impl Store {
    /// Opens `sqlite:PATH`, `sqlite::memory:` or `postgres://…`, and migrates it.
    ///
    /// A SQLite file is made when it is missing, readable by its owner only.
    ///
    /// # Errors
    /// [`StoreError::NewerDatabase`] when a newer program wrote it, else why it could not be opened.
    pub async fn open(url: &str, tap: Arc<dyn Tap>) -> Result<Self, StoreError> {
        sqlx::any::install_default_drivers();
        let (write, read) = match place(url) {
            Place::Memory => {
                let pool = sqlite(1).min_connections(1).connect("sqlite::memory:").await?;
                (pool.clone(), pool)
            }
            Place::File(path) => {
                std::fs::OpenOptions::new()
                    .create(true)
                    .append(true)
                    .mode(0o600)
                    .open(path)
                    .map_err(|source| StoreError::File { path: path.to_owned(), source })?;
                // SQLite gives its -wal and -shm files the mode of the database.
                let url = format!("sqlite://{}", path.replace('%', "%25").replace('?', "%3F").replace('#', "%23"));
                (sqlite(1).connect(&url).await?, sqlite(SQLITE_READERS).connect(&url).await?)
            }
            Place::Server => {
                let pool = options(POSTGRES_CONNECTIONS).test_before_acquire(true).connect(url).await?;
                (pool.clone(), pool)
            }
        };
        migrate(&write).await?;
        let installation = installation(&write).await?;
        Ok(Self { write, read, tap, committed: broadcast::channel(BACKLOG).0, installation })
    }
}

async fn migrate(pool: &AnyPool) -> Result<(), StoreError> {
    match MIGRATIONS.run(pool).await {
        Ok(()) => Ok(()),
        Err(MigrateError::VersionMissing(found)) => {
            let known = MIGRATIONS.iter().map(|m| m.version).max().unwrap_or_default();
            Err(StoreError::NewerDatabase { found, known })
        }
        Err(other) => Err(StoreError::Migration(other)),
    }
}

/// Reads the installation's id, or makes it. Two servers that start at once on one Postgres agree on the first.
async fn installation(pool: &AnyPool) -> Result<InstallationId, StoreError> {
    let now = Timestamp::now();
    let fresh = InstallationId::from_parts(
        u64::try_from(now.as_millisecond()).unwrap_or_default(),
        rand::rng().random::<[u8; 10]>(),
    );
    let made = "INSERT INTO installation (id, created_at) SELECT $1, $2 WHERE NOT EXISTS (SELECT 1 FROM installation)";
    sqlx::query(made).bind(fresh.to_string()).bind(time(now)).execute(pool).await?;
    let row = sqlx::query("SELECT id FROM installation ORDER BY id LIMIT 1").fetch_one(pool).await?;
    parse("installation", row.try_get(0)?)
}
