//! Use cases: check who asks and what, write the intent in one transaction, wake the reconciler.
//!
//! Thin on purpose: what a verb means is in `perennial_core::verbs`, what follows from it in `perennial_core::plan`.
//!
//! - `caller`: who asks, and what they may see; `access`: which token is whose;
//! - `act`: the one way a verb is committed: load, decide, commit, wake, again when somebody was faster;
//! - `pods`, `snapshots`: the verbs;
//! - `admin`: what administrators see of all pods;
//! - `audit`: who changed what;
//! - `care`: drills;
//! - `catalogue`: the services of files and database, put together;
//! - `erase`: the end of a tenant;
//! - `library`: looking into snapshots; `live`: comparing one with its pod; `import`: archives that become some;
//! - `logs`: what a pod writes;
//! - `users`, `tenants`, `tokens`: who may ask, and for whose things; `quota_news`: that a tenant reached what it may have;
//! - `replication`: how far the replicas are;
//! - `recovery`: the recovery kit; `retention`: snapshots that a schedule takes, and those that rules let go;
//! - `sign_in`: a password for a token;
//! - `subscriptions`: rights to pods of plans, and what becomes of the pods;
//! - `system`: what works and what does not.

mod access;
mod act;
mod admin;
mod audit;
mod caller;
mod care;
mod catalogue;
mod clones;
mod erase;
mod import;
mod library;
mod live;
mod logs;
mod orphans;
mod parts;
mod pods;
mod quota_news;
mod recovery;
mod replication;
mod retention;
mod sign_in;
mod snapshots;
mod space;
mod subscriptions;
mod system;
mod tenants;
mod tokens;
mod users;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use perennial_core::Error;
use perennial_core::clock::{Clock, IdSource};
use perennial_core::engine::{Engine, VolumeUsage};
use perennial_core::id::{OperationId, PodId, SnapshotId};
use perennial_core::operation::{Event, NewEvent, Operation};
use perennial_core::pod::{Phase, Pod};
use perennial_core::retention::Keep;
use perennial_core::schedule::{self, Effective, SnapshotRules};
use perennial_core::snapshot::Snapshot;
use perennial_core::spec::TenantId;

use crate::catalogue::Catalogue;
use crate::config::{ReplicationSection, RepositorySection};
use crate::import::Spool;
use crate::keys::Keyring;
use crate::library::Library;
use crate::oidc::Provider;
use crate::reconcile::worker::set_spec;
use crate::store::{
    Change, EventFilter, HeadedPod, Page, PodFilter, PodHead, SnapshotFilter, SnapshotScope, Store, StoreError,
};

pub use access::{Access, token_hash};
pub(crate) use act::requested;
pub use act::{Once, Outcome, Request};
pub use admin::{Debugged, Usage};
pub use caller::{Caller, Credential};
pub use catalogue::{Entry, Occasion, Remark, Services, Source};
pub use clones::CloneRequest;
pub(crate) use erase::became as erasure_became;
pub use erase::{Erase, Erasing, Places};
pub use library::{Looked, Shown};
pub use live::{LiveDiff, LivePlace};
pub use orphans::{CleanedUp, Cleanup};
pub use parts::Preview;
pub use pods::{Consent, CreateRequest};
pub(crate) use quota_news::QUOTA_REACHED;
pub use quota_news::QuotaNews;
pub use recovery::{RecoveryEntry, RecoveryKit, RecoveryState};
pub use replication::ReplicaStatus;
pub(crate) use retention::RETENTION;
pub use retention::{Forget, Forgotten, Scheduled};
pub use space::{FileSystem, Space};
pub use subscriptions::{Subscribe, Subscribed, Until};
pub use system::{Check, CheckState, SystemReport};
pub use tenants::Membership;
pub use tokens::{MadeToken, NewToken};
pub use users::{Identity, NewUser, Person, UserChange};

/// How long an answer waits for what only the engine knows and what it can do without.
const GLANCE: Duration = Duration::from_secs(2);

/// Deletes a snapshot whose deletion was recorded.
///
/// Called after the commit, and again for every unfinished operation of kind `SnapshotDelete` after a crash, so it has
/// to look at what is left to do. It checks [`App::snapshot_dependents`] once more before the repository forgets it.
pub trait SnapshotRemover: Send + Sync {
    /// Begins the deletion in the background; never blocks.
    fn snapshot_remove(&self, operation: OperationId, snapshot: SnapshotId);
}

/// Has the reconciler look at a pod soon. Carries no data.
pub type Waker = Arc<dyn Fn(PodId) + Send + Sync>;

/// What the use cases need to know of the configuration.
#[derive(Debug, Clone)]
pub struct AppSettings {
    /// How long a deleted pod can be brought back.
    pub undelete_window: SignedDuration,
    /// Where all state lives.
    pub data_dir: PathBuf,
    /// Where volumes and image trees live.
    pub storage_root: PathBuf,
    /// Where the repositories are.
    pub repository: RepositorySection,
    /// Where every verified snapshot is copied to; `None`: nowhere.
    pub replication: Option<ReplicationSection>,
    /// Their keys.
    pub keys: Keyring,
    /// Prefix of volume names on the engine.
    pub volume_prefix: String,
    /// Runtimes that pods may ask for; empty: every runtime of the engine.
    pub runtimes: Vec<String>,
    /// When snapshots are taken and which are kept, where a pod says nothing.
    pub snapshots: SnapshotRules,
}

impl AppSettings {
    /// What holds for a pod; nothing is taken and everything kept where the rules cannot be read.
    #[must_use]
    pub fn snapshot_rules(&self, pod: &Pod) -> Effective {
        pod.spec.snapshots.over(&self.snapshots).unwrap_or_else(|error| {
            tracing::warn!(pod = %pod.id, %error, "rules of snapshots that were valid once");
            Effective { schedule: None, zone: TimeZone::UTC, keep: Keep::default() }
        })
    }

    /// When the pod's next scheduled snapshot is due.
    #[must_use]
    pub fn next_snapshot_at(&self, pod: &Pod) -> Option<Timestamp> {
        schedule::next_at(pod, self.snapshot_rules(pod).schedule.as_ref())
    }
}

/// Everything the use cases work with; cheap to clone.
#[derive(Clone)]
pub struct App {
    /// What is remembered.
    pub store: Store,
    /// Who may ask for what.
    pub access: Access,
    /// What runs containers.
    pub engine: Arc<dyn Engine>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Randomness for new ids.
    pub ids: Arc<dyn IdSource>,
    /// Wakes the reconciler.
    pub waker: Waker,
    /// Deletes snapshots.
    pub remover: Arc<dyn SnapshotRemover>,
    /// Where the snapshots of all tenants are.
    pub places: Places,
    /// Looks into snapshots.
    pub library: Library,
    /// The files that services come from.
    pub catalogue: Catalogue,
    /// Where archives wait that become snapshots.
    pub imports: Spool,
    /// Who vouches for people that sign in; `None`: nobody.
    pub provider: Option<Arc<Provider>>,
    /// Whom it was told that a quota is reached.
    pub quota_news: QuotaNews,
    /// The configuration.
    pub settings: Arc<AppSettings>,
}

impl std::fmt::Debug for App {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("App").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl App {
    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// The two parts of a new id.
    fn id_parts(&self) -> (u64, [u8; 10]) {
        (u64::try_from(self.now().as_millisecond()).unwrap_or_default(), self.ids.random())
    }

    fn operation_id(&self) -> OperationId {
        let (millis, random) = self.id_parts();
        OperationId::from_parts(millis, random)
    }

    fn pod_id(&self) -> PodId {
        let (millis, random) = self.id_parts();
        PodId::from_parts(millis, random)
    }

    fn snapshot_id(&self) -> SnapshotId {
        let (millis, random) = self.id_parts();
        SnapshotId::from_parts(millis, random)
    }

    /// A line of the trail, of now, that is about no pod.
    fn line_of(&self, actor: &str, tenant: TenantId, (kind, message): (&str, String)) -> NewEvent {
        NewEvent {
            at: self.now(),
            actor: actor.to_owned(),
            tenant,
            pod: None,
            operation: None,
            kind: kind.to_owned(),
            message,
        }
    }

    /// Refuses everybody but administrators.
    ///
    /// # Errors
    /// [`Error::Forbidden`].
    pub fn require_admin(&self, caller: &Caller) -> Result<(), Error> {
        if caller.rights.is_platform() {
            return Ok(());
        }
        Err(Error::Forbidden { problem: "this takes an administrator, and a token with the scope admin".to_owned() })
    }

    /// Commits what somebody asked for, unless they lost rights since they were let in.
    ///
    /// # Errors
    /// [`StoreError::RightsLost`] when they did, and whatever else [`Store::commit`] says.
    pub(super) async fn commit_for(&self, caller: &Caller, change: Change) -> Result<(), StoreError> {
        let bounded = change.bounded.clone();
        let done = self.store.commit(Change { asker: caller.asker(self.now()), ..change }).await;
        if let (Err(StoreError::Quota(exceeded)), Some(tenant)) = (&done, bounded) {
            self.quota_reached(caller, &tenant, exceeded).await;
        }
        done
    }

    /// Reads a pod and its newest verified snapshot.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none, or the caller may not know of it.
    pub async fn pod(&self, caller: &Caller, pod: PodId) -> Result<(Pod, Option<Snapshot>), Error> {
        let found = self.store.pod_fetch_with_latest(pod).await?;
        found.filter(|(p, _)| caller.may_see(&p.tenant)).ok_or_else(|| Error::not_found(format!("pod {pod}")))
    }

    /// Tells which container the pod has. Nothing is done to a pod in error that would find out that it is gone, so the engine
    /// is asked; while it does not answer, or not at once, the recorded one counts (law 5).
    pub async fn container_of(&self, pod: &Pod) -> Option<String> {
        let recorded = pod.container.as_ref()?.id.clone();
        if pod.phase != Phase::Error {
            return Some(recorded);
        }
        // Whoever asks is often looking for why nothing works: an engine that hangs must not take this answer along.
        match tokio::time::timeout(GLANCE, self.engine.observe(pod.id, &[])).await {
            Ok(Ok(observed)) => observed.container.map(|container| container.id),
            Ok(Err(error)) => {
                tracing::debug!(pod = %pod.id, %error, "look for the container");
                Some(recorded)
            }
            Err(_) => {
                tracing::debug!(pod = %pod.id, "look for the container: no answer in time");
                Some(recorded)
            }
        }
    }

    /// Tells what the pod's volumes take up on the host; nothing of what the engine cannot tell now.
    pub async fn volume_usage(&self, pod: &Pod) -> Vec<VolumeUsage> {
        let Some(set) = pod.current_set() else { return Vec::new() };
        match self.engine.set_usage(&set_spec(pod, set)).await {
            Ok(usage) => usage,
            Err(error) => {
                tracing::debug!(pod = %pod.id, %error, "measure volumes");
                Vec::new()
            }
        }
    }

    /// Lists the heads of pods the caller may see, oldest first.
    ///
    /// # Errors
    /// [`Error::NotFound`] for another's tenant.
    pub async fn pod_heads(&self, caller: &Caller, filter: PodFilter, page: &Page) -> Result<Vec<PodHead>, Error> {
        let filter = PodFilter { within: caller.within(filter.tenant.as_ref())?, ..filter };
        Ok(self.store.pod_heads(&filter, page).await?)
    }

    /// Reads those of these pods that still exist and that the caller may know of.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the database does not answer.
    pub async fn pods(&self, caller: &Caller, pods: &[PodId]) -> Result<Vec<HeadedPod>, Error> {
        let mut found = self.store.pods_fetch_with_latest(pods).await?;
        found.retain(|p| caller.may_see(&p.pod.tenant));
        Ok(found)
    }

    /// Reads an operation.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none, or the caller may not know of it.
    pub async fn operation(&self, caller: &Caller, operation: OperationId) -> Result<Operation, Error> {
        let found = self.store.operation_fetch(operation).await?;
        found.filter(|o| caller.may_see(&o.tenant)).ok_or_else(|| Error::not_found(format!("operation {operation}")))
    }

    /// Lists a pod's operations, newest first. A purged pod's can be read one by one only.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such pod for this caller.
    pub async fn operations(&self, caller: &Caller, pod: PodId, page: &Page) -> Result<Vec<Operation>, Error> {
        self.pod(caller, pod).await?;
        Ok(self.store.operation_list(pod, page).await?)
    }

    /// Lists a pod's operations that have not ended, oldest first.
    ///
    /// # Errors
    /// Why they could not be read.
    pub async fn operations_unfinished(&self, pod: &Pod) -> Result<Vec<Operation>, Error> {
        Ok(self.store.operations_unfinished(pod.id).await?)
    }

    /// Reads a snapshot.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none, or the caller may not know of it.
    pub async fn snapshot(&self, caller: &Caller, snapshot: SnapshotId) -> Result<Snapshot, Error> {
        let found = self.store.snapshot_fetch(snapshot).await?;
        found.filter(|s| caller.may_see(&s.tenant)).ok_or_else(|| Error::not_found(format!("snapshot {snapshot}")))
    }

    /// Lists a pod's snapshots, newest first.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such pod for this caller.
    pub async fn snapshots(&self, caller: &Caller, pod: PodId, page: &Page) -> Result<Vec<Snapshot>, Error> {
        self.pod(caller, pod).await?;
        Ok(self.store.snapshot_list(&SnapshotScope::Pod(pod), page).await?)
    }

    /// Lists snapshots of all pods the caller may see, newest first.
    ///
    /// # Errors
    /// [`Error::NotFound`] for another's tenant or pod.
    pub async fn snapshots_of_all(
        &self,
        caller: &Caller,
        filter: SnapshotFilter,
        page: &Page,
    ) -> Result<Vec<Snapshot>, Error> {
        if let Some(pod) = filter.pod {
            self.pod(caller, pod).await?;
        }
        let filter = SnapshotFilter { within: caller.within(filter.tenant.as_ref())?, ..filter };
        Ok(self.store.snapshot_search(&filter, page).await?)
    }

    /// Lists events after number `after`, oldest first.
    ///
    /// # Errors
    /// [`Error::NotFound`] for another's tenant or pod.
    pub async fn events(
        &self,
        caller: &Caller,
        after: i64,
        filter: &EventFilter,
        limit: u32,
    ) -> Result<Vec<Event>, Error> {
        let filter = EventFilter { within: caller.within(filter.tenant.as_ref())?, ..filter.clone() };
        Ok(self.store.event_list(after, &filter, limit).await?)
    }
}
