//! The connections that statements run on.
//!
//! A server elsewhere gets a pool, which replaces connections that broke. A database of this process gets connections of
//! its own: there is no network to break them, so the round trip by which the pool asks a connection after each use
//! whether it still lives would be most of what a small statement costs. It is asked only when its last use did not end
//! well.
//!
//! A connection to a server on which a transaction was begun and not brought to its end is closed, and never given to the next one: sqlx
//! (0.9) does not undo a `BEGIN` whose sender went away before it was answered, so whatever came next on it would never be committed.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use sqlx::any::{AnyConnectOptions, AnyQueryResult, AnyRow, AnyStatement, AnyTypeInfo};
use sqlx::pool::PoolConnection;
use sqlx::{
    Any, AnyConnection, AnyPool, ConnectOptions as _, Connection as _, Either, Execute, Executor, SqlStr, Transaction,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How long a statement waits for a connection.
pub(super) const WAIT: Duration = Duration::from_secs(10);

/// Where connections come from.
#[derive(Clone)]
pub(super) enum Connections {
    /// To a server.
    Pool(AnyPool),
    /// To a database of this process.
    Local(Arc<Local>),
}

/// A fixed number of connections to a database of this process.
pub(super) struct Local {
    options: AnyConnectOptions,
    /// Run on every new connection.
    setup: &'static str,
    idle: Mutex<Vec<Idle>>,
    free: Arc<Semaphore>,
    count: u32,
}

struct Idle {
    connection: AnyConnection,
    /// Its last use failed or was given up, so it may be broken.
    doubtful: bool,
}

impl Local {
    /// Opens `count` connections.
    pub(super) async fn open(options: AnyConnectOptions, setup: &'static str, count: u32) -> sqlx::Result<Arc<Self>> {
        let mut idle = Vec::new();
        for _ in 0..count {
            idle.push(Idle { connection: connect(&options, setup).await?, doubtful: false });
        }
        let free = Arc::new(Semaphore::new(idle.len()));
        Ok(Arc::new(Self { options, setup, idle: Mutex::new(idle), free, count }))
    }

    async fn permit(&self) -> sqlx::Result<OwnedSemaphorePermit> {
        if let Ok(permit) = Arc::clone(&self.free).try_acquire_owned() {
            return Ok(permit);
        }
        let permit = tokio::time::timeout(WAIT, Arc::clone(&self.free).acquire_owned()).await;
        permit.map_err(|_| sqlx::Error::PoolTimedOut)?.map_err(|_| sqlx::Error::PoolClosed)
    }

    fn take(&self) -> Option<Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    async fn acquire(self: &Arc<Self>) -> sqlx::Result<Borrowed> {
        let permit = self.permit().await?;
        let mut borrowed = Borrowed { idle: self.take(), home: Arc::clone(self), _permit: permit };
        if let Some(Idle { connection, doubtful: true }) = &mut borrowed.idle
            && connection.ping().await.is_err()
        {
            borrowed.idle = None;
        }
        if borrowed.idle.is_none() {
            let connection = connect(&self.options, self.setup).await?;
            borrowed.idle = Some(Idle { connection, doubtful: true });
        }
        if let Some(idle) = &mut borrowed.idle {
            idle.doubtful = true;
        }
        Ok(borrowed)
    }

    async fn close(&self) {
        // Whoever uses one now gives it back first.
        let all = self.free.acquire_many(self.count).await;
        self.free.close();
        drop(all);
        while let Some(idle) = self.take() {
            if let Err(error) = idle.connection.close().await {
                tracing::warn!(%error, "close the database");
            }
        }
    }
}

async fn connect(options: &AnyConnectOptions, setup: &'static str) -> sqlx::Result<AnyConnection> {
    let mut connection: AnyConnection = options.connect().await?;
    connection.execute(setup).await?;
    Ok(connection)
}

impl Connections {
    /// Waits for a connection.
    pub(super) async fn acquire(&self) -> sqlx::Result<Held> {
        Ok(match self {
            Self::Pool(pool) => Held::Pooled(Pooled { connection: Some(pool.acquire().await?), begun: false }),
            Self::Local(local) => Held::Local(local.acquire().await?),
        })
    }

    /// Closes every connection; on SQLite the last one merges the write-ahead log into the database.
    pub(super) async fn close(&self) {
        match self {
            Self::Pool(pool) => pool.close().await,
            Self::Local(local) => local.close().await,
        }
    }
}

/// A connection in use. Whoever is through with it says so by [`Held::done`]; dropped without, it is not trusted.
pub(super) enum Held {
    Pooled(Pooled),
    Local(Borrowed),
}

/// A connection to a server in use.
pub(super) struct Pooled {
    /// `None` only once it was given back.
    connection: Option<PoolConnection<Any>>,
    /// Whether a transaction was begun on it.
    begun: bool,
}

impl Drop for Pooled {
    fn drop(&mut self) {
        if self.begun
            && let Some(connection) = self.connection.take()
        {
            // The server undoes what was begun when it sees that nobody is there any more.
            drop(connection.detach());
        }
    }
}

/// A local connection in use.
pub(super) struct Borrowed {
    /// `None` only while a broken one is replaced.
    idle: Option<Idle>,
    home: Arc<Local>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        // Before the permit, which is dropped after this.
        self.home.idle.lock().unwrap_or_else(PoisonError::into_inner).extend(self.idle.take());
    }
}

impl Held {
    pub(super) fn connection(&mut self) -> sqlx::Result<&mut AnyConnection> {
        match self {
            Self::Pooled(Pooled { connection, .. }) => connection.as_deref_mut().ok_or(sqlx::Error::PoolClosed),
            Self::Local(borrowed) => {
                borrowed.idle.as_mut().map(|idle| &mut idle.connection).ok_or(sqlx::Error::WorkerCrashed)
            }
        }
    }

    /// Begins a transaction. Whatever becomes of it, [`done`](Self::done) is called after its end or the connection is not used again.
    pub(super) async fn begin(&mut self) -> sqlx::Result<Transaction<'_, Any>> {
        if let Self::Pooled(pooled) = self {
            pooled.begun = true;
        }
        self.connection()?.begin().await
    }

    /// Gives it back after everything on it succeeded, or was undone.
    pub(super) fn done(mut self) {
        match &mut self {
            Self::Pooled(pooled) => pooled.begun = false,
            Self::Local(Borrowed { idle: Some(idle), .. }) => idle.doubtful = false,
            Self::Local(_) => {}
        }
    }
}

/// Runs one statement on a connection of its own.
impl<'c> Executor<'c> for &'c Connections {
    type Database = Any;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, sqlx::Result<Either<AnyQueryResult, AnyRow>>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Any>,
    {
        let all = async move {
            let mut held = self.acquire().await?;
            let steps: Vec<_> = held.connection()?.fetch_many(query).try_collect().await?;
            held.done();
            Ok::<_, sqlx::Error>(futures::stream::iter(steps.into_iter().map(Ok)))
        };
        futures::stream::once(all).try_flatten().boxed()
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, sqlx::Result<Option<AnyRow>>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Any>,
    {
        Box::pin(async move {
            let mut held = self.acquire().await?;
            let row = held.connection()?.fetch_optional(query).await?;
            held.done();
            Ok(row)
        })
    }

    fn prepare_with<'e>(self, sql: SqlStr, parameters: &'e [AnyTypeInfo]) -> BoxFuture<'e, sqlx::Result<AnyStatement>>
    where
        'c: 'e,
    {
        Box::pin(async move { self.acquire().await?.connection()?.prepare_with(sql, parameters).await })
    }
}

impl std::fmt::Debug for Connections {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connections").finish_non_exhaustive()
    }
}
