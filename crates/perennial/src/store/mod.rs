//! The only SQL: pods, snapshots, operations, events, leases.
//!
//! A struct, not a trait: a real SQLite in a temporary directory, or in memory, is its own test double. The same
//! statements run on SQLite and on Postgres (`sqlx::Any`; TEXT and BIGINT only).
//!
//! - `change`: everything that is written, as one value and one transaction; `fence`: what has to hold for that;
//! - `read`: everything that is looked up; `heads`: lists of pods that are mostly known;
//! - `access`: tenants, users, memberships and tokens;
//! - `audit`: who changed what, in a chain of hashes;
//! - `deliveries`: what people are told;
//! - `erasures`: tenants that are gone for good;
//! - `keeping`: the breaker before what ends by itself is destroyed;
//! - `lease`: who may work on a pod; `recovery`: which keys were exported; `prunes`: which repositories to prune;
//! - `connections`: what statements run on; `renew`: databases in memory that are used again;
//! - `sign_ins`: tries to sign in;
//! - `subscriptions`: rights to pods of plans;
//! - `services`: services of the catalogue that were changed over the API;
//! - `rows`: how domain types are written.
//!
//! Rejected: an in-memory imitation of the store (it would drift), a database type per dialect (two sets of queries).

mod access;
mod audit;
mod care;
mod change;
mod connections;
mod deliveries;
mod erasures;
mod fence;
mod heads;
mod keeping;
mod lease;
mod open;
mod orphans;
mod prunes;
mod quotas;
mod read;
mod recovery;
mod renew;
mod replicas;
mod rows;
mod services;
mod sign_ins;
mod subscriptions;

use std::sync::Arc;

use perennial_core::Error;
use perennial_core::fault::Tap;
use perennial_core::id::{InstallationId, OperationId, PodId, SnapshotId};
use perennial_core::quota::Exceeded;
use perennial_core::spec::TenantId;
use tokio::sync::{broadcast, watch};

use connections::Connections;

pub use access::{AccessChange, AccessRequest, Asker, Shown, Tenant, TokenFilter, TokenHash, UserPatch};
pub use audit::AuditFilter;
pub use care::Proof;
pub use change::{Change, IdempotencyRecord, StoredImage};
pub use deliveries::{Delivery, DeliveryState, Tried};
pub use erasures::{Asked, Became, Erasure, ErasureChange, FoundPlace, FoundPlaces, ServerKeys, Which};
pub use heads::{HeadedPod, PodHead, SnapshotBody};
pub use lease::Lease;
pub use orphans::OrphanChange;
pub use read::{EventFilter, Page, PodFilter, SnapshotFilter, SnapshotScope, Visibility};
pub use recovery::{ExportOf, RecoveryExport};
pub use replicas::{Backlog, NoteChange, Replica, ReplicaNote};
pub use services::{Expected, ServiceBecomes, ServiceChange, StoredService};
pub use sign_ins::{Attempt, StoredPassword};
pub use subscriptions::SubscriptionFilter;

/// The name of the fault point around every commit.
pub const COMMIT_SITE: &str = "store.commit";
/// Commits that a slow subscriber may lag behind before it is told to look for itself.
const BACKLOG: usize = 1024;

/// Why the store did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database does not answer; nothing was written.
    #[error("the database is not available")]
    Unavailable(#[source] Option<sqlx::Error>),
    /// Nobody knows whether the transaction was committed (law 5): read again before deciding anything.
    #[error("nobody knows whether the change was committed")]
    OutcomeUnknown(#[source] Option<sqlx::Error>),
    /// Somebody else changed the pod since it was read; nothing was written.
    #[error("the pod changed meanwhile")]
    Stale,
    /// Another living pod of the tenant has this name; nothing was written.
    #[error("the name is taken")]
    NameTaken,
    /// The lease is no longer ours; nothing was written.
    #[error("the lease was lost")]
    LeaseLost,
    /// Something was to be built on a snapshot that is gone, or whose deletion has begun; nothing was written.
    #[error("snapshot {0} is being deleted")]
    SnapshotGoing(SnapshotId),
    /// A snapshot was to be deleted that somebody has begun to need; nothing was written.
    #[error("{0}")]
    SnapshotNeeded(String),
    /// A pod was to be made in a tenant that is erased; nothing was written.
    #[error("tenant {0} was erased")]
    TenantErased(TenantId),
    /// A tenant was to be erased that is in use, for this reason; nothing was written.
    #[error("tenant {0} cannot be erased: {1}")]
    TenantInUse(TenantId, String),
    /// Who asked has no longer the rights that this takes; nothing was written.
    #[error("the rights of who asks were taken away meanwhile")]
    RightsLost,
    /// More was asked for than the tenant may have; nothing was written.
    #[error("{}", .0.problem)]
    Quota(Exceeded),
    /// The pod's subscription forbids what was asked for; nothing was written.
    #[error("{0}")]
    Subscribed(Error),
    /// Something that has to be there is not; nothing was written.
    #[error("{0} not found")]
    Missing(String),
    /// Something of this name is there, or was; nothing was written.
    #[error("{0} is there already")]
    Taken(String),
    /// A service of the catalogue is not what it was expected to be; nothing was written.
    #[error("the service changed meanwhile")]
    ServiceChanged,
    /// A request with this idempotency key was recorded meanwhile; nothing was written.
    #[error("the idempotency key is used")]
    IdempotencyTaken,
    /// The database was written by a newer program.
    #[error("the database has schema version {found}, this program knows up to {known}")]
    NewerDatabase {
        /// Newest version found.
        found: i64,
        /// Newest version known.
        known: i64,
    },
    /// A migration failed, or one that was applied has changed.
    #[error("the database could not be migrated")]
    Migration(#[source] sqlx::migrate::MigrateError),
    /// A row cannot be read.
    #[error("{what} cannot be read: {problem}")]
    Corrupt {
        /// Which row.
        what: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The database refused a statement: a defect of the caller.
    #[error("the database refused the statement")]
    Rejected(#[source] sqlx::Error),
    /// The database's file could not be made or opened.
    #[error("{path} cannot be opened")]
    File {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        match error {
            sqlx::Error::Database(ref database) if !is_busy(database.as_ref()) => Self::Rejected(error),
            sqlx::Error::ColumnDecode { ref index, ref source } => {
                Self::Corrupt { what: format!("column {index}"), problem: source.to_string() }
            }
            other => Self::Unavailable(Some(other)),
        }
    }
}

/// Whether the database only says "not now": SQLite's BUSY, LOCKED, FULL and I/O errors; Postgres' classes 08, 40, 53, 57.
fn is_busy(error: &dyn sqlx::error::DatabaseError) -> bool {
    let Some(code) = error.code() else { return false };
    // SQLite gives an extended result code as a number; its low byte is the primary one.
    if let Ok(number) = code.parse::<u32>()
        && code.len() < 5
    {
        return matches!(number & 0xff, 5 | 6 | 10 | 13);
    }
    ["08", "40", "53", "57"].iter().any(|class| code.starts_with(class))
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable(_) => Self::Unavailable { problem: error.to_string() },
            StoreError::OutcomeUnknown(_) => Self::Unavailable { problem: error.to_string() },
            StoreError::Stale => Self::conflict("pod-changed", "the pod changed meanwhile", "read it again"),
            StoreError::NameTaken => Self::conflict(
                "pod-name-taken",
                "another pod of the tenant has this name",
                "choose another name, or remove the other pod first: perennial pod rm, or purge when it is deleted already",
            ),
            StoreError::LeaseLost => Self::Unavailable { problem: "another server works on this pod".to_owned() },
            StoreError::SnapshotGoing(_) => {
                Self::conflict("snapshot-being-deleted", error.to_string(), "choose another: perennial snapshot ls")
            }
            StoreError::SnapshotNeeded(_) => Self::conflict(
                "snapshot-in-use",
                error.to_string(),
                "start or purge that pod, or wait for the operation, and try again",
            ),
            StoreError::TenantErased(_) => Self::conflict(
                "tenant-erased",
                error.to_string(),
                "its name is not used again: name another tenant (perennial tenant erasure says when it was erased, and by whom)",
            ),
            StoreError::TenantInUse(..) => Self::conflict(
                "tenant-in-use",
                error.to_string(),
                "purge every pod of it, archived and deleted ones too, wait for what is being done, and try again",
            ),
            StoreError::RightsLost => Self::Unauthorized { problem: error.to_string() },
            StoreError::Quota(Exceeded { problem, hint }) => Self::conflict("quota-exceeded", problem, hint),
            StoreError::Subscribed(error) => error,
            StoreError::Missing(what) => Self::not_found(what),
            StoreError::Taken(_) => Self::conflict(
                "name-taken",
                error.to_string(),
                "choose another; the name of a user that was removed is not given away again",
            ),
            StoreError::ServiceChanged => {
                Self::conflict("version-mismatch", error.to_string(), "read it again, and send its ETag as If-Match")
            }
            StoreError::IdempotencyTaken => Self::conflict(
                "idempotency-key-used",
                "a request with this Idempotency-Key was accepted meanwhile",
                "send the same request again to get its answer",
            ),
            StoreError::NewerDatabase { .. }
            | StoreError::Migration(_)
            | StoreError::Corrupt { .. }
            | StoreError::Rejected(_)
            | StoreError::File { .. } => Self::Internal { problem: error.to_string() },
        }
    }
}

/// What a commit touched: a hint to look again, never the news itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// The pod it was about.
    pub pod: Option<PodId>,
    /// Operations it wrote.
    pub operations: Vec<OperationId>,
    /// The newest event it wrote; `None` when it wrote none.
    pub event: Option<i64>,
}

/// Everything Perennial remembers; cheap to clone.
#[derive(Clone)]
pub struct Store {
    /// One connection on SQLite, so that writers queue here and never meet `SQLITE_BUSY`.
    write: Connections,
    read: Connections,
    tap: Arc<dyn Tap>,
    committed: broadcast::Sender<Arc<Committed>>,
    access: watch::Sender<u64>,
    installation: InstallationId,
}

impl Store {
    /// The same open database, with another tap around its commits: what a server that takes over sees.
    #[must_use]
    pub fn with_tap(&self, tap: Arc<dyn Tap>) -> Self {
        Self { tap, ..self.clone() }
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("installation", &self.installation).finish_non_exhaustive()
    }
}

impl Store {
    /// The installation this database belongs to; made when it was opened for the first time.
    #[must_use]
    pub const fn installation(&self) -> InstallationId {
        self.installation
    }

    /// Tells of every commit of this process from now on. Subscribe first, then read, then wait.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Committed>> {
        self.committed.subscribe()
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn ping(&self) -> Result<(), StoreError> {
        sqlx::query("SELECT id FROM installation").fetch_one(&self.read).await?;
        Ok(())
    }

    /// Closes every connection; on SQLite the write-ahead log is merged into the database.
    pub async fn close(&self) {
        self.read.close().await;
        self.write.close().await;
    }
}
