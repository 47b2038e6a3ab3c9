//! A whole installation in one process: simulated engine, virtual clock, real store, real repository format.
//!
//! The engine, the database and the repository outlive the "server", which can be dropped at any point and made anew:
//! that is what a kill -9 leaves.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod spare;
pub mod taps;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::LocalBoxFuture;
use jiff::{SignedDuration, Timestamp};
use perennial::catalogue::{Catalogue, Place};
use perennial::config::RepositorySection;
use perennial::import::{Limits, Spool};
use perennial::keys::Keyring;
use perennial::library::Library;
use perennial::reconcile::controller::RESYNC;
use perennial::reconcile::progress::ProgressBoard;
use perennial::reconcile::repositories::{MEMORY_PASSWORD, MemoryRepositories, Repositories};
use perennial::reconcile::worker::Passed;
use perennial::reconcile::{Reconciler, Settings};
use perennial::service::{
    Access, App, AppSettings, Caller, CloneRequest, Consent, CreateRequest, Outcome, Places, QuotaNews, Request,
    SnapshotRemover,
};
use perennial::store::Store;
use perennial_core::Error;
use perennial_core::clock::{Clock, IdSource};
use perennial_core::engine::{Copying, Engine};
use perennial_core::fault::{NoTap, Tap};
use perennial_core::hook::{Hook, Hooks, OnHookFailure};
use perennial_core::id::{OperationId, PodId, SnapshotId};
use perennial_core::operation::{Operation, OperationState};
use perennial_core::parts::Parts;
use perennial_core::plan::Policy;
use perennial_core::pod::{Identity, Phase, Pod};
use perennial_core::schedule::SnapshotRules;
use perennial_core::snapshot::Snapshot;
use perennial_core::spec::{Backend, DeclaredVolume, PodName, PodSpec, Profile, TenantId};
use perennial_drivers::sim::{SimEngine, SimImage, SimMover, SimOptions, VirtualClock};
use perennial_drivers::tapped::Tapped;
use perennial_snapshots::Effort;

/// The image of personal VMs.
pub const IMAGE: &str = "sim:1";
/// The image of small pods: see [`small_spec`].
const SMALL_IMAGE: &str = "sim:small";
/// More passes than any honest history needs.
const PASSES_MAX: usize = 400;

/// Repeatable identifiers.
#[derive(Debug, Default)]
pub struct CountingIds(AtomicU64);

impl IdSource for CountingIds {
    fn random(&self) -> [u8; 10] {
        let n = self.0.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        let mut random = [0; 10];
        random[2..].copy_from_slice(&n);
        random
    }
}

struct NoRemover;

impl SnapshotRemover for NoRemover {
    fn snapshot_remove(&self, _operation: OperationId, _snapshot: SnapshotId) {}
}

/// What outlives a server.
pub struct World {
    pub clock: Arc<VirtualClock>,
    pub ids: Arc<CountingIds>,
    pub engine: SimEngine,
    pub repositories: MemoryRepositories,
    pub replicas: MemoryRepositories,
    pub directory: tempfile::TempDir,
    pub database: String,
    /// How much an archive may be.
    pub import_limits: Limits,
    /// Of servers that are started from now on.
    pub policy: Policy,
    /// How often their controllers look at pods that nothing woke.
    pub resync: Duration,
    /// Who its servers are to others that share the database.
    pub holder: String,
    /// What its servers take for the work on repositories.
    pub effort: Effort,
    /// Whether each repository has a key of its own, in files as on disk.
    pub with_keys: bool,
    store: Opened,
}

/// The database of a world. One in memory is left to the next world of its thread.
#[derive(Default)]
struct Opened(tokio::sync::OnceCell<Store>);

impl Drop for Opened {
    fn drop(&mut self) {
        if let Some(store) = self.0.take() {
            spare::leave(store);
        }
    }
}

/// Where the database is, unless a test says something else.
const MEMORY: &str = "sqlite::memory:";

/// One life of the server.
pub struct Server {
    pub app: App,
    pub reconciler: Arc<Reconciler>,
    pub board: ProgressBoard,
    pub replicas: Repositories,
    clock: Arc<VirtualClock>,
}

/// How a history went on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// Nothing to do until then.
    Settled,
    /// The pod is gone.
    Gone,
}

impl World {
    /// A world whose image has the eight directories and a few files.
    pub fn new(seed: u64) -> Self {
        Self::with(seed, &SimImage::standard())
    }

    pub fn with(seed: u64, image: &SimImage) -> Self {
        Self::of(image, SimOptions { seed, ..SimOptions::default() })
    }

    /// The same, on a storage that copies sets so.
    pub fn with_copying(seed: u64, copying: Option<Copying>) -> Self {
        Self::of(&SimImage::standard(), SimOptions { seed, copying, ..SimOptions::default() })
    }

    /// The same, where only this mover reaches the engine's own volumes.
    pub fn with_mover(seed: u64, mover: SimMover) -> Self {
        Self::of(&SimImage::standard(), SimOptions { seed, mover: Some(mover), ..SimOptions::default() })
    }

    fn of(image: &SimImage, options: SimOptions) -> Self {
        crate::processor::stay();
        let base = std::env::var_os("PERENNIAL_TEST_TMPFS").map_or_else(shm, Into::into);
        let directory = tempfile::Builder::new().prefix("perennial-world-").tempdir_in(base).unwrap();
        let clock = Arc::new(VirtualClock::new("2026-01-01T00:00:00Z".parse::<Timestamp>().unwrap()));
        let engine = SimEngine::open(directory.path().join("engine"), Arc::clone(&clock) as _, options).unwrap();
        engine.add_image(IMAGE, image).unwrap();
        engine.add_image(SMALL_IMAGE, &small_image()).unwrap();
        let database = MEMORY.to_owned();
        Self {
            import_limits: Limits { entries: 10_000, bytes: 1 << 30 },
            policy: Policy::default(),
            resync: RESYNC,
            // The same server again: its leases are its own.
            holder: "test".to_owned(),
            // What is saved here is a few files: threads to share them would take longer to begin than all of the work.
            effort: Effort { threads: NonZeroUsize::new(1), ..Effort::default() },
            with_keys: false,
            clock,
            ids: Arc::default(),
            engine,
            repositories: MemoryRepositories::default(),
            replicas: MemoryRepositories::default(),
            directory,
            database,
            store: Opened::default(),
        }
    }

    /// Starts a server without faults.
    pub async fn server(&self) -> Server {
        self.server_with(Arc::new(NoTap)).await
    }

    /// Starts a server whose every engine call, commit and repository write asks the tap.
    pub async fn server_with(&self, tap: Arc<dyn Tap>) -> Server {
        // The database is another thing than the server: it stays open when a server dies, and what the server had
        // not committed is gone with it.
        let opened = self.store.0.get_or_init(async || {
            let in_cluster = if self.database == MEMORY { crate::postgres::database_of_world().await } else { None };
            match in_cluster {
                Some(url) => Store::open(&url, Arc::new(NoTap)).await.unwrap(),
                None if self.database == MEMORY => spare::store().await,
                None => Store::open(&self.database, Arc::new(NoTap)).await.unwrap(),
            }
        });
        let opened = opened.await;
        self.server_on(opened.with_tap(Arc::clone(&tap)), tap)
    }

    /// How many snapshots of the repository carry a tag that begins so.
    pub fn snapshots_in_repository(&self, tag: &str) -> usize {
        let all = self.open_repository().unwrap().find(&[]).unwrap();
        all.iter().filter(|s| s.tags.iter().any(|t| t.starts_with(tag))).count()
    }

    /// Forgets the snapshots of this tag behind the servers' backs.
    pub fn forget_outside(&self, tag: &str) {
        let repository = self.open_repository().unwrap();
        let ids: Vec<_> = repository.find(&[tag]).unwrap().into_iter().map(|s| s.id).collect();
        assert!(!ids.is_empty(), "no snapshot is tagged {tag}");
        repository.forget(&ids).unwrap();
    }

    /// A file of a snapshot as the repository holds it.
    pub fn file_in_repository(&self, snapshot: SnapshotId, path: &str) -> Vec<u8> {
        let repository = self.open_repository().unwrap();
        let found = repository.find(&[&format!("snapshot:{snapshot}")]).unwrap();
        repository.read_file(found[0].id, path).unwrap()
    }

    fn open_repository(&self) -> perennial_snapshots::Result<perennial_snapshots::Repository> {
        let backend = Arc::new(self.repositories.backend(&TenantId::default_tenant()));
        let password = perennial_snapshots::Password::new(MEMORY_PASSWORD);
        perennial_snapshots::Repository::open(backend, &password)
    }

    /// Where servers put what they need for a while.
    pub fn scratch(&self) -> std::path::PathBuf {
        self.directory.path().join("scratch")
    }

    /// The time of this world.
    pub fn clock_now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Waits until nothing reads a still any more: the threads of a server that died end a little later than it.
    pub async fn nobody_reads(&self) {
        while self.engine.stills().1 > 0 {
            tokio::task::yield_now().await;
        }
    }

    /// How many packs the repository has.
    pub fn packs(&self) -> usize {
        use perennial_snapshots::backend::Backend as _;
        let backend = self.repositories.backend(&TenantId::default_tenant());
        backend.list(perennial_snapshots::FileKind::Pack).unwrap().len()
    }

    /// Reads everything in the repository.
    pub fn check_repository(&self) -> perennial_snapshots::Result<perennial_snapshots::CheckReport> {
        self.open_repository()?.check(perennial_snapshots::Depth::Data, &perennial_core::progress::Progress::default())
    }

    pub fn server_on(&self, store: Store, tap: Arc<dyn Tap>) -> Server {
        let engine: Arc<dyn Engine> = Arc::new(Tapped::new(Arc::new(self.engine.clone()), Arc::clone(&tap)));
        let clock = Arc::clone(&self.clock) as Arc<dyn Clock>;
        let ids = Arc::clone(&self.ids) as Arc<dyn IdSource>;
        let keys = Keyring::new(self.directory.path(), None, None);
        let (first, second) = (self.repositories.clone(), self.replicas.clone());
        let (repositories, replicas) = if self.with_keys {
            let second = Repositories::in_memory_with_keys(second, keys.of_replicas(), Arc::clone(&tap));
            (Repositories::in_memory_with_keys(first, keys, tap), second)
        } else {
            (Repositories::in_memory(first, Arc::clone(&tap)), Repositories::in_memory(second, tap))
        };
        let (repositories, replicas) = (repositories.with_effort(self.effort), replicas.with_effort(self.effort));
        let imports = Spool::new(self.directory.path(), self.import_limits);
        let board = ProgressBoard::default();
        let reconciler = Reconciler::new(
            store.clone(),
            Arc::clone(&engine),
            repositories.clone(),
            (Arc::clone(&clock), Arc::clone(&ids)),
            board.clone(),
            Settings {
                pods_at_once: 8,
                resync: self.resync,
                policy: self.policy.clone(),
                scratch: self.directory.path().join("scratch"),
                imports: imports.clone(),
                holder: self.holder.clone(),
                installation: "test".to_owned(),
            },
        );
        let app = App {
            access: Access::new(store.clone(), Arc::clone(&clock), "the-token"),
            store,
            engine,
            clock,
            ids,
            waker: Arc::new(|_| {}),
            remover: Arc::new(NoRemover),
            places: Places { repositories: repositories.clone(), replicas: Some(replicas.clone()) },
            library: Library::new(repositories, &self.directory.path().join("scratch")),
            catalogue: Catalogue::new(Place::Usual(self.directory.path().join("catalogue"))),
            imports,
            provider: None,
            quota_news: QuotaNews::default(),
            settings: Arc::new(AppSettings {
                undelete_window: SignedDuration::from_hours(7 * 24),
                data_dir: self.directory.path().to_owned(),
                storage_root: self.directory.path().to_owned(),
                repository: RepositorySection::in_directory(&self.directory.path().join("repositories")),
                replication: None,
                keys: Keyring::new(self.directory.path(), None, None),
                volume_prefix: "perennial-vol-".to_owned(),
                runtimes: Vec::new(),
                snapshots: SnapshotRules::default(),
            }),
        };
        Server { app, reconciler: Arc::new(reconciler), board, replicas, clock: Arc::clone(&self.clock) }
    }
}

/// A directory in memory where there is one: histories write many small files.
fn shm() -> std::path::PathBuf {
    let shm = std::path::Path::new("/dev/shm");
    if shm.is_dir() { shm.to_owned() } else { std::env::temp_dir() }
}

/// An image in which all but two of the eight paths are links, so that its pods have two volumes.
fn small_image() -> SimImage {
    let links = ["/workspace", "/root", "/etc", "/usr", "/opt", "/var"];
    let image = SimImage::new().directory("/srv").file("/home/seed", "from the image\n");
    links.into_iter().fold(image, |image, path| image.link(path, "srv"))
}

/// Hooks whose programs the simulated engine knows.
pub fn hooks(before: &[&str], after: &[&str]) -> Hooks {
    let hook = |words: &[&str]| {
        let command: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        (!command.is_empty()).then_some(Hook { command, user: None, timeout: 30 })
    };
    Hooks { before: hook(before), after: hook(after), on_failure: OnHookFailure::Fail }
}

/// A personal VM with two volumes, `srv` and `home`, and a system layer: cheap enough for thousands of histories.
pub fn small_spec(backend: Backend) -> PodSpec {
    PodSpec { backend: Some(backend), ..PodSpec::new(SMALL_IMAGE) }
}

/// A pod of a plan: one declared volume at `/srv`, and nothing else persists.
pub fn declared_spec(backend: Backend) -> PodSpec {
    let volume = DeclaredVolume { name: "data".into(), mount_path: "/srv".into(), size: None };
    PodSpec { profile: Profile::Declared(vec![volume]), backend: Some(backend), ..PodSpec::new(IMAGE) }
}

/// A personal VM.
pub fn universal_spec(backend: Backend) -> PodSpec {
    PodSpec { backend: Some(backend), ..PodSpec::new(IMAGE) }
}

pub fn confirmed(name: &str) -> Consent {
    Consent { confirm: Some(name.to_owned()), accept_loss: None }
}

pub fn accepting(name: &str, paths: &[&str]) -> Consent {
    let accept_loss = Some(paths.iter().map(|p| (*p).to_owned()).collect());
    Consent { confirm: Some(name.to_owned()), accept_loss }
}

impl Server {
    pub async fn create(&self, name: &str, spec: PodSpec) -> Result<Outcome, Error> {
        self.create_of(None, name, spec).await
    }

    /// Asks for a pod of this tenant, or of the default one.
    pub async fn create_of(&self, tenant: Option<TenantId>, name: &str, spec: PodSpec) -> Result<Outcome, Error> {
        let create = CreateRequest { name: PodName::parse(name).unwrap(), tenant, plan: None, from_snapshot: None };
        self.app.create(Request::new(&Caller::admin()), create, |_| Ok(spec.clone())).await
    }

    /// Makes a pod out of a snapshot, with another volume backend.
    pub async fn clone_to(&self, name: &str, snapshot: SnapshotId, backend: Backend) -> Result<Outcome, Error> {
        let name = PodName::parse(name).unwrap();
        let create = CreateRequest { name, tenant: None, plan: None, from_snapshot: Some(snapshot) };
        let spec = |source: Option<&PodSpec>| Ok(PodSpec { backend: Some(backend), ..source.unwrap().clone() });
        self.app.create(Request::new(&Caller::admin()), create, spec).await
    }

    /// Creates a pod and brings it to rest.
    pub async fn running(&self, name: &str, spec: PodSpec) -> PodId {
        let outcome = self.create(name, spec).await.unwrap();
        let pod = outcome.pod.id;
        self.settle(pod).await;
        let operation = self.operation(outcome.operation.id).await;
        assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
        assert_eq!(self.pod(pod).await.phase, Phase::Running);
        pod
    }

    /// One pass of the reconciler, on the heap: its future is larger than a thread's usual stack likes.
    pub fn pass(&self, pod: PodId) -> LocalBoxFuture<'_, Passed> {
        self.reconciler.pass(pod).boxed_local()
    }

    /// Lets the reconciler work until the pod rests; delays pass in no time.
    pub async fn settle(&self, pod: PodId) -> Ended {
        for _ in 0..PASSES_MAX {
            match self.pass(pod).await {
                Passed::Again => {}
                Passed::Gone => return Ended::Gone,
                Passed::Wait(until) => {
                    let record = self.app.store.pod_fetch(pod).await.unwrap();
                    let Some(record) = record else { return Ended::Gone };
                    let due = until.filter(|_| record.retry.not_before.is_some() || record.crash.not_before == until);
                    match due {
                        Some(at) if at > self.clock.now() => self.clock.set(at),
                        _ => return Ended::Settled,
                    }
                }
            }
        }
        panic!("pod {pod} does not come to rest: {:?}", self.app.store.pod_fetch(pod).await.unwrap());
    }

    /// Passes without letting time go on, until there is nothing to do now.
    pub async fn work(&self, pod: PodId) {
        for _ in 0..PASSES_MAX {
            if self.pass(pod).await != Passed::Again {
                return;
            }
        }
        panic!("pod {pod} spins");
    }

    /// Creates a pod from a snapshot of another and brings it to rest.
    pub async fn clone_of(&self, name: &str, snapshot: SnapshotId, spec: PodSpec) -> PodId {
        let from_snapshot = Some(snapshot);
        let create = CreateRequest { name: PodName::parse(name).unwrap(), tenant: None, plan: None, from_snapshot };
        let outcome = self.app.create(Request::new(&Caller::admin()), create, |_| Ok(spec.clone())).await.unwrap();
        let pod = outcome.pod.id;
        self.succeed(Ok(outcome)).await;
        pod
    }

    pub fn housekeeper(&self) -> perennial::tasks::Housekeeper {
        perennial::tasks::Housekeeper::new(self.app.clone(), Arc::clone(&self.reconciler))
    }

    /// A housekeeper that copies to the world's replicas, where what was deleted stays for two days.
    pub fn replicator(&self) -> perennial::tasks::Housekeeper {
        let forget_after = SignedDuration::from_hours(48);
        let replicas = perennial::tasks::Replicas { repositories: self.replicas.clone(), forget_after };
        self.housekeeper().with_replicas(Some(replicas))
    }

    /// Does what was asked and lets it end.
    pub async fn done(&self, outcome: Result<Outcome, Error>) -> Operation {
        let outcome = outcome.unwrap();
        self.settle(outcome.pod.id).await;
        self.operation(outcome.operation.id).await
    }

    /// As [`Server::done`], and it has to have succeeded.
    pub async fn succeed(&self, outcome: Result<Outcome, Error>) {
        let operation = self.done(outcome).await;
        assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
    }

    pub async fn pod(&self, pod: PodId) -> Pod {
        self.app.store.pod_fetch(pod).await.unwrap().unwrap()
    }

    pub async fn operation(&self, operation: OperationId) -> Operation {
        self.app.store.operation_fetch(operation).await.unwrap().unwrap()
    }

    pub async fn snapshots(&self, pod: PodId) -> Vec<Snapshot> {
        let scope = perennial::store::SnapshotScope::Pod(pod);
        let page = perennial::store::Page { after: None, limit: 100 };
        self.app.store.snapshot_list(&scope, &page).await.unwrap()
    }

    pub async fn start(&self, pod: PodId) -> Result<Outcome, Error> {
        self.app.start(Request::new(&Caller::admin()), pod).await
    }

    pub async fn pause(&self, pod: PodId) -> Result<Outcome, Error> {
        self.app.pause(Request::new(&Caller::admin()), pod).await
    }

    pub async fn stop(&self, pod: PodId) -> Result<Outcome, Error> {
        self.app.stop(Request::new(&Caller::admin()), pod, &Consent::default()).await
    }

    pub async fn restart(&self, pod: PodId) -> Result<Outcome, Error> {
        self.app.restart(Request::new(&Caller::admin()), pod).await
    }

    pub async fn reset(&self, pod: PodId) -> Result<Outcome, Error> {
        let name = self.pod(pod).await.name.to_string();
        self.app.reset(Request::new(&Caller::admin()), pod, &confirmed(&name)).await
    }

    pub async fn restore(&self, pod: PodId, snapshot: SnapshotId) -> Result<Outcome, Error> {
        let name = self.pod(pod).await.name.to_string();
        self.app.restore(Request::new(&Caller::admin()), pod, (snapshot, None), &confirmed(&name)).await
    }

    pub async fn restore_parts(&self, pod: PodId, snapshot: SnapshotId, parts: Parts) -> Result<Outcome, Error> {
        let name = self.pod(pod).await.name.to_string();
        self.app.restore(Request::new(&Caller::admin()), pod, (snapshot, Some(parts)), &confirmed(&name)).await
    }

    /// Asks for a copy of a pod, from a snapshot of it or as it is now.
    pub async fn fork(&self, name: &str, pod: PodId, snapshot: Option<SnapshotId>) -> Result<Outcome, Error> {
        let clone = CloneRequest { name: PodName::parse(name).unwrap(), snapshot, identity: Identity::Renewed };
        self.app.clone_pod(Request::new(&Caller::admin()), pod, &clone).await
    }

    /// Lets the pods work until both rest.
    pub async fn settle_both(&self, source: PodId, copy: PodId) {
        // The copy waits for the source's snapshot, and the source for nothing of the copy.
        self.settle(copy).await;
        self.settle(source).await;
        self.settle(copy).await;
    }

    /// Takes a snapshot and brings it to its end.
    pub async fn snapshot_of(&self, pod: PodId) -> SnapshotId {
        let outcome = self.snapshot(pod).await.unwrap();
        let id = outcome.snapshot.clone().unwrap().id;
        self.succeed(Ok(outcome)).await;
        id
    }

    pub async fn snapshot(&self, pod: PodId) -> Result<Outcome, Error> {
        self.app.snapshot_create(Request::new(&Caller::admin()), pod, &Consent::default()).await
    }

    pub async fn archive(&self, pod: PodId) -> Result<Outcome, Error> {
        self.app.archive(Request::new(&Caller::admin()), pod, &Consent::default()).await
    }

    pub async fn delete(&self, pod: PodId) -> Result<Outcome, Error> {
        self.app.delete(Request::new(&Caller::admin()), pod, &Consent::default()).await
    }

    pub async fn undelete(&self, pod: PodId) -> Result<Outcome, Error> {
        self.app.undelete(Request::new(&Caller::admin()), pod).await
    }

    pub async fn purge(&self, pod: PodId) -> Result<Outcome, Error> {
        let name = self.pod(pod).await.name.to_string();
        self.app.purge(Request::new(&Caller::admin()), pod, &confirmed(&name)).await
    }
}

/// Every regular file as the pod sees it.
pub fn files(world: &World, pod: PodId) -> BTreeMap<String, Vec<u8>> {
    world.engine.files(pod).unwrap()
}
