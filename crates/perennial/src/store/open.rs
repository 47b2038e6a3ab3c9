//! Opening a database: connections, pragmas, migrations.

use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::Arc;

use jiff::Timestamp;
use perennial_core::fault::{NoTap, Tap};
use perennial_core::id::InstallationId;
use perennial_core::spec::TenantId;
use rand::RngExt as _;
use sqlx::any::{AnyConnectOptions, AnyPoolOptions};
use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::{AnyConnection, Executor as _, Row as _, SqlStr};
use tokio::sync::{broadcast, watch};

use super::connections::{Connections, Local, WAIT};
use super::rows::{parse, time};
use super::{BACKLOG, Store, StoreError};

/// Every migration, in order: version, description, statements. Named here one by one, because the macro that reads the
/// directory would build both database drivers a second time, for the compiler.
const MIGRATIONS: [(i64, &str, &str); 18] = [
    (1, "first", include_str!("../../migrations/0001_first.sql")),
    (2, "recovery kit", include_str!("../../migrations/0002_recovery_kit.sql")),
    (3, "retention", include_str!("../../migrations/0003_retention.sql")),
    (4, "freeze", include_str!("../../migrations/0004_freeze.sql")),
    (5, "care", include_str!("../../migrations/0005_care.sql")),
    (6, "replicas", include_str!("../../migrations/0006_replicas.sql")),
    (7, "hooks", include_str!("../../migrations/0007_hooks.sql")),
    (8, "erasures", include_str!("../../migrations/0008_erasures.sql")),
    (9, "access", include_str!("../../migrations/0009_access.sql")),
    (10, "services", include_str!("../../migrations/0010_services.sql")),
    (11, "audit", include_str!("../../migrations/0011_audit.sql")),
    (12, "planned", include_str!("../../migrations/0012_planned.sql")),
    (13, "quotas", include_str!("../../migrations/0013_quotas.sql")),
    (14, "subscriptions", include_str!("../../migrations/0014_subscriptions.sql")),
    (15, "deliveries", include_str!("../../migrations/0015_deliveries.sql")),
    (16, "sign-ins", include_str!("../../migrations/0016_sign_ins.sql")),
    (17, "identities", include_str!("../../migrations/0017_identities.sql")),
    (18, "orphans", include_str!("../../migrations/0018_orphans.sql")),
];

/// Readers beside the one writer of a SQLite file.
const SQLITE_READERS: u32 = 4;
/// Connections to Postgres.
const POSTGRES_CONNECTIONS: u32 = 16;
/// Loses nothing on a power cut (`synchronous=FULL`), lets readers go on while one writes (WAL), and waits as long for
/// another process's lock as for a connection.
const SQLITE_SETUP: &str = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; \
     PRAGMA busy_timeout = 10000; PRAGMA trusted_schema = OFF;";

/// A database in memory, of its one connection. SQLite's cache that connections share, which is the usual for these, is discouraged by its authors
/// and of use only to several connections.
const MEMORY: &str = "sqlite::memory:?cache=private";

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

async fn sqlite(url: &str, connections: u32) -> Result<Connections, StoreError> {
    let options: AnyConnectOptions = url.parse()?;
    Ok(Connections::Local(Local::open(options, SQLITE_SETUP, connections).await?))
}

async fn server(url: &str, connections: u32) -> Result<Connections, StoreError> {
    let options = AnyPoolOptions::new().max_connections(connections).acquire_timeout(WAIT);
    let options = options.after_connect(|connection, _| Box::pin(async move { bounded(connection).await }));
    Ok(Connections::Pool(options.max_lifetime(None).idle_timeout(None).connect(url).await?))
}

/// Has the server see soon that nobody is there any more, and undo what was begun: rows are locked until then.
async fn bounded(connection: &mut AnyConnection) -> sqlx::Result<()> {
    connection.execute("SET idle_in_transaction_session_timeout = '60s'").await?;
    // Without, it notices a connection that was closed when its statement ends. Not before PostgreSQL 14 (undefined_object), and not on
    // every system (invalid_parameter_value).
    match connection.execute("SET client_connection_check_interval = '5s'").await {
        Err(sqlx::Error::Database(error)) if matches!(error.code().as_deref(), Some("42704" | "22023")) => Ok(()),
        other => other.map(drop),
    }
}

fn file_url(path: &str) -> String {
    format!("sqlite://{}", path.replace('%', "%25").replace('?', "%3F").replace('#', "%23"))
}

impl Store {
    /// Opens a database to look at it, whether a server uses it or not: nothing is made, and nothing migrated.
    ///
    /// # Errors
    /// When there is none, or it is not one of ours.
    pub async fn look_at(url: &str) -> Result<Self, StoreError> {
        sqlx::any::install_default_drivers();
        let read = match place(url) {
            Place::Memory => sqlite(MEMORY, 1).await?,
            Place::File(path) => sqlite(&file_url(path), 1).await?,
            Place::Server => server(url, 1).await?,
        };
        let row = sqlx::query("SELECT id FROM installation ORDER BY id LIMIT 1").fetch_one(&read).await?;
        let installation = parse("installation", row.try_get(0)?)?;
        let (write, tap) = (read.clone(), Arc::new(NoTap));
        let (committed, access) = (broadcast::channel(1).0, watch::Sender::new(0));
        Ok(Self { write, read, tap, committed, access, installation })
    }

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
                let one = sqlite(MEMORY, 1).await?;
                (one.clone(), one)
            }
            Place::File(path) => {
                std::fs::OpenOptions::new()
                    .create(true)
                    .append(true)
                    .mode(0o600)
                    .open(path)
                    .map_err(|source| StoreError::File { path: path.to_owned(), source })?;
                // SQLite gives its -wal and -shm files the mode of the database.
                let url = file_url(path);
                (sqlite(&url, 1).await?, sqlite(&url, SQLITE_READERS).await?)
            }
            Place::Server => {
                let pool = server(url, POSTGRES_CONNECTIONS).await?;
                (pool.clone(), pool)
            }
        };
        let mut held = write.acquire().await?;
        migrate(held.connection()?).await?;
        let installation = installation(held.connection()?).await?;
        first_tenant(held.connection()?).await?;
        held.done();
        let committed = broadcast::channel(BACKLOG).0;
        Ok(Self { write, read, tap, committed, access: watch::Sender::new(0), installation })
    }
}

async fn migrate(connection: &mut AnyConnection) -> Result<(), StoreError> {
    let migration = |(version, description, sql): (i64, &'static str, &'static str)| {
        Migration::new(version, description.into(), MigrationType::Simple, SqlStr::from_static(sql), false)
    };
    match Migrator::with_migrations(MIGRATIONS.map(migration).into()).run(connection).await {
        Ok(()) => Ok(()),
        Err(MigrateError::VersionMissing(found)) => {
            let known = MIGRATIONS.iter().map(|(version, ..)| *version).max().unwrap_or_default();
            Err(StoreError::NewerDatabase { found, known })
        }
        Err(other) => Err(StoreError::Migration(other)),
    }
}

/// Makes the tenant that every installation starts with, unless it was erased.
async fn first_tenant(connection: &mut AnyConnection) -> Result<(), StoreError> {
    let name = TenantId::default_tenant();
    let sql = "INSERT INTO tenants (name, created_at) SELECT $1, $2 WHERE NOT EXISTS (SELECT 1 FROM erasures WHERE tenant = $3) \
               ON CONFLICT (name) DO NOTHING";
    let query = sqlx::query(sql).bind(name.as_str().to_owned()).bind(time(Timestamp::now()));
    query.bind(name.as_str().to_owned()).execute(connection).await?;
    Ok(())
}

/// Reads the installation's id, or makes it. Two servers that start at once on one Postgres agree on the first.
async fn installation(connection: &mut AnyConnection) -> Result<InstallationId, StoreError> {
    let now = Timestamp::now();
    let fresh = InstallationId::from_parts(
        u64::try_from(now.as_millisecond()).unwrap_or_default(),
        rand::rng().random::<[u8; 10]>(),
    );
    let made = "INSERT INTO installation (id, created_at) SELECT $1, $2 WHERE NOT EXISTS (SELECT 1 FROM installation)";
    sqlx::query(made).bind(fresh.to_string()).bind(time(now)).execute(&mut *connection).await?;
    let row = sqlx::query("SELECT id FROM installation ORDER BY id LIMIT 1").fetch_one(connection).await?;
    parse("installation", row.try_get(0)?)
}
