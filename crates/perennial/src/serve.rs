//! `perennial serve`: puts the parts together, listens, and stops in order.
//!
//! Start: data directory, lock, token, database, engine, reconciler, listener, ready line. Stop (SIGTERM, SIGINT):
//! waiting requests are answered, running ones drained, passes in work finished, leases given back. kill -9 is
//! equally fine: nothing here has to be undone.

mod directory;
mod files;
mod tls;

use std::future::{Future, IntoFuture as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use perennial_core::clock::{Clock, IdSource};
use perennial_core::engine::{Engine, EngineError};
use perennial_core::fault::{NoTap, Tap};
use perennial_core::id::InstallationId;
use perennial_core::plan::Policy;
use perennial_core::spec::TenantId;
use perennial_drivers::docker::{DockerConfig, DockerEngine, Subnet, VolumeAccess as DockerAccess};
use perennial_drivers::sim::{ImagePolicy, SimEngine, SimOptions};
use perennial_drivers::tapped::Tapped;
use rustix::net::sockopt;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::api;
use crate::catalogue::Catalogue;
use crate::config::{Config, ConfigError, EngineKind, RepositorySection, VolumeAccess};
use crate::fault::process_tap;
use crate::import::Spool;
use crate::keys::{KeyError, Keyring};
use crate::library::Library;
use crate::notify::{Notifier, NotifyError};
use crate::oidc::Provider;
use crate::reconcile::controller::{RESYNC, Waker};
use crate::reconcile::progress::ProgressBoard;
use crate::reconcile::repositories::Repositories;
use crate::reconcile::{Controller, ControllerHandle, Reconciler, Settings};
use crate::service::{Access, App, AppSettings, Occasion, Places, QuotaNews};
use crate::store::{Store, StoreError};
use crate::tasks::{self, Housekeeper, Replicas};

pub use directory::{DataDir, DirectoryError};
pub use tls::{Certificate, Reread, TlsError};

/// Stack of the threads that reconcile, in bytes. A pass is one deep future, and an unoptimised build keeps a slot for
/// every step of it: more than half of the usual 2 MiB was seen in use.
pub const STACK: usize = 16 << 20;
/// How long requests may go on after the server was asked to stop.
const DRAIN: Duration = Duration::from_secs(10);
/// How long what nobody waits for may go on then. Work that can be interrupted ends in a moment; a store that hangs, never.
const KEEPING: Duration = Duration::from_secs(20);
/// How long threads may go on after the server has stopped.
pub const THREADS: Duration = Duration::from_secs(5);
/// How long a connection is silent before its client is asked whether it is there.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);
/// Pause between two such questions.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(15);
/// How many in a row stay without an answer before the connection is given up.
const KEEPALIVE_TRIES: u32 = 3;
/// How long the server waits for an engine that does not answer yet, such as one that starts with the machine.
const ENGINE_PATIENCE: Duration = Duration::from_secs(15);
/// Pause between two tries.
const ENGINE_AGAIN: Duration = Duration::from_millis(500);

/// Why the server did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The data directory cannot be used.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// A key of a repository cannot be used.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// The database cannot be used.
    #[error("open the database")]
    Store(#[from] StoreError),
    /// The engine cannot be used.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The simulated engine's directory cannot be used.
    #[error("open the simulated engine")]
    Simulator(#[source] std::io::Error),
    /// Certificate or key cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Somebody is to be told of events, and cannot be.
    #[error(transparent)]
    Notify(#[from] NotifyError),
    /// Nobody decided who may ask for a route: a defect of this program.
    #[error(transparent)]
    Routes(#[from] api::Undecided),
    /// Nothing can be listened on.
    #[error("listen on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
}

impl ServeError {
    /// How to go on.
    #[must_use]
    pub fn hint(&self) -> &str {
        match self {
            Self::Config(error) => error.hint(),
            Self::Directory(error) => error.hint(),
            Self::Keys(error) => error.hint(),
            Self::Store(StoreError::NewerDatabase { .. }) => "run the newer version of perennial again",
            Self::Store(_) => "check the path or the URL of the database; `perennial config show` prints it",
            Self::Engine(error) if error.to_string().starts_with("the storage root") => {
                "mount the disk of the storage root; everything on it is taken for unknown until then, and for nothing else"
            }
            Self::Engine(error) if error.to_string().starts_with("ssh to the engine") => {
                "log in once by hand as the user of the server; `docker_ssh_options` names a key or a file of hosts that are not \
                 the usual ones"
            }
            Self::Engine(_) => "start Docker, or set DOCKER_HOST to where it listens; --engine sim needs none",
            Self::Simulator(_) => "check --storage-root",
            Self::Tls(error) => error.hint(),
            Self::Notify(_) => "mend [mail] or [[webhooks]] in perennial.toml; `perennial config show` prints it",
            Self::Routes(_) => "this program must not be used: run another version",
            Self::Listen { .. } => "another server may run already; choose another --listen address",
        }
    }
}

/// Real time.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}

/// Randomness of the operating system.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemIds;

impl IdSource for SystemIds {
    fn random(&self) -> [u8; 10] {
        rand::random()
    }
}

/// A server that was started.
pub struct Running {
    /// Where it listens.
    pub address: SocketAddr,
    /// The data directory; locked as long as this lives.
    pub directory: DataDir,
    /// What is shown to clients; `None` for plain HTTP.
    pub certificate: Option<Arc<Certificate>>,
    store: Store,
    stop: watch::Sender<bool>,
    http: tokio::task::JoinHandle<std::io::Result<()>>,
    controller: ControllerHandle,
    housekeeper: tokio::task::JoinHandle<()>,
}

impl Running {
    /// Starts a server: when this returns, it answers.
    ///
    /// # Errors
    /// [`ServeError`] saying what could not be used; nothing is left behind that the next start does not take over.
    pub async fn start(config: &Config) -> Result<Self, ServeError> {
        let window = config.undelete_window()?;
        // What is missing for it is told now and not at the first stop.
        config.repository.connect(&TenantId::default_tenant())?;
        let forget_after = match &config.replication {
            Some(replication) => {
                replication.repository.connect(&TenantId::default_tenant())?;
                replication.forget_after()?
            }
            None => SignedDuration::ZERO,
        };
        let snapshots = config.snapshots.rules()?;
        let drills = config.drills.rules()?;
        let certificate = match &config.server.tls {
            Some(files) => Some(Arc::new(Certificate::load(files.clone())?)),
            None => None,
        };
        let provider = Provider::new(&config.oidc)?.map(Arc::new);
        let keys = config.keys.keyring(&config.data_dir)?;
        let directory = DataDir::open(&config.data_dir)?;
        let mut wrapped = keys.rewrap()?;
        match keys.of_replicas().rewrap() {
            Ok(count) => wrapped += count,
            // Pods need none of them; copies wait, and doctor says so.
            Err(error) => tracing::error!(%error, hint = error.hint(), "wrap the keys of replicas"),
        }
        if wrapped > 0 {
            tracing::info!(keys = wrapped, "wrapped keys of repositories with the installation key");
        }
        let tap = process_tap();
        let store = Store::open(&config.database, Arc::clone(&tap)).await?;
        let listener = listen(config.listen).await?;
        let address = listener.local_addr().map_err(|source| ServeError::Listen { address: config.listen, source })?;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let ids: Arc<dyn IdSource> = Arc::new(SystemIds);
        let engine = engine(config, store.installation(), &clock, Arc::clone(&tap)).await?;
        // A key that is there came with a repository from elsewhere, which is not to be begun anew.
        let is_erased = store.erasure_fetch(&TenantId::default_tenant()).await?.is_some();
        if directory.is_new() && !is_erased && !keys.path(&TenantId::default_tenant()).exists() {
            first_repository(keys.clone(), &config.repository).await;
        }
        let board = ProgressBoard::default();
        let waker = Waker::default();
        let (deletions, inbox) = tasks::deletions();
        let effort = config.limits.effort();
        let replicas = config.replication.as_ref().map(|replication| {
            let keys = keys.of_replicas();
            let repositories =
                Repositories::configured(keys, &replication.repository, Arc::clone(&tap)).with_effort(effort);
            Replicas { repositories, forget_after }
        });
        let repositories = Repositories::configured(keys.clone(), &config.repository, tap).with_effort(effort);
        let imports = Spool::new(directory.path(), config.imports.limits());
        let reconciler = Arc::new(Reconciler::new(
            store.clone(),
            Arc::clone(&engine),
            repositories.clone(),
            (Arc::clone(&clock), Arc::clone(&ids)),
            board.clone(),
            Settings {
                policy: Policy::default(),
                pods_at_once: config.limits.pods_at_once(),
                resync: RESYNC,
                scratch: directory.path().join("scratch"),
                imports: imports.clone(),
                holder: directory.server_id().to_owned(),
                installation: store.installation().to_string(),
            },
        ));
        let app = App {
            access: Access::new(store.clone(), Arc::clone(&clock), directory.admin_token()),
            store: store.clone(),
            engine,
            clock,
            ids,
            waker: Arc::new({
                let waker = waker.clone();
                move |pod| waker.wake(pod)
            }),
            remover: Arc::new(deletions),
            places: Places {
                repositories: repositories.clone(),
                replicas: replicas.as_ref().map(|replicas| replicas.repositories.clone()),
            },
            library: Library::new(repositories, &directory.path().join("scratch")),
            catalogue: Catalogue::new(config.catalogue.place(directory.path())),
            imports,
            provider,
            quota_news: QuotaNews::default(),
            settings: Arc::new(AppSettings {
                undelete_window: window,
                data_dir: directory.path().to_owned(),
                storage_root: config.storage_root.clone(),
                repository: config.repository.clone(),
                replication: config.replication.clone(),
                keys,
                volume_prefix: config.volume_prefix.clone(),
                runtimes: config.runtimes.clone(),
                snapshots,
            }),
        };
        let notifier = Notifier::new(
            store.clone(),
            (Arc::clone(&app.clock), Arc::clone(&app.ids)),
            &config.mail,
            &config.webhooks,
        )?;
        app.catalogue_look(Occasion::Start).await;
        let (stop, stopping) = watch::channel(false);
        tokio::spawn(files::look_when_asked(app.clone(), stopping.clone()));
        let housekeeper =
            Housekeeper::new(app.clone(), Arc::clone(&reconciler)).with_drills(drills).with_replicas(replicas);
        let housekeeper = housekeeper.start(inbox, stopping.clone());
        let router = api::router(app, board, stopping.clone())?;
        tokio::spawn(notifier.run(stopping.clone()));
        let controller = Controller::start(reconciler, waker);
        let http = match &certificate {
            Some(certificate) => {
                let listener = certificate.listener(listener)?;
                tokio::spawn(Arc::clone(certificate).keep_fresh(stopping.clone()));
                tokio::spawn(
                    axum::serve(listener, router).with_graceful_shutdown(asked_to_stop(stopping)).into_future(),
                )
            }
            None => tokio::spawn(
                axum::serve(listener, router).with_graceful_shutdown(asked_to_stop(stopping)).into_future(),
            ),
        };
        Ok(Self { address, directory, certificate, store, stop, http, controller, housekeeper })
    }

    /// The server's address as clients write it.
    #[must_use]
    pub fn url(&self) -> String {
        let scheme = if self.certificate.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// Stops in order: requests first, then the passes in work, then the database.
    pub async fn stop(self) {
        let Self { stop, mut http, controller, housekeeper, store, directory, .. } = self;
        let _ = stop.send(true);
        if tokio::time::timeout(DRAIN, &mut http).await.is_err() {
            tracing::warn!("some requests did not end in time");
            http.abort();
        }
        controller.shutdown().await;
        let housekeeping = housekeeper.abort_handle();
        match tokio::time::timeout(KEEPING, housekeeper).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the housekeeper ended abnormally"),
            Err(_) => {
                tracing::warn!(
                    "a repository or a replica does not answer; the next start goes on with what was at work"
                );
                housekeeping.abort();
            }
        }
        store.close().await;
        drop(directory);
    }
}

/// Makes the default tenant's repository and its key. Whoever cannot write it now is told, and again when it is used.
async fn first_repository(keys: Keyring, section: &RepositorySection) {
    let repositories = Repositories::configured(keys, section, Arc::new(NoTap));
    let made = tokio::task::spawn_blocking(move || repositories.prepare(&TenantId::default_tenant())).await;
    if let Err(problem) = made.map_err(|error| error.to_string()).and_then(|made| made) {
        tracing::warn!(%problem, "make the first repository");
    }
}

async fn asked_to_stop(mut stopping: watch::Receiver<bool>) {
    let _ = stopping.wait_for(|stop| *stop).await;
}

async fn listen(address: SocketAddr) -> Result<TcpListener, ServeError> {
    let listener = TcpListener::bind(address).await.and_then(|listener| {
        // Linux hands these on to every connection that is accepted. Who follows a pod that says nothing is never written to,
        // so nothing else would tell that the client is gone.
        sockopt::set_socket_keepalive(&listener, true)?;
        sockopt::set_tcp_keepidle(&listener, KEEPALIVE_AFTER)?;
        sockopt::set_tcp_keepintvl(&listener, KEEPALIVE_EVERY)?;
        sockopt::set_tcp_keepcnt(&listener, KEEPALIVE_TRIES)?;
        Ok(listener)
    });
    listener.map_err(|source| ServeError::Listen { address, source })
}

async fn engine(
    config: &Config,
    installation: InstallationId,
    clock: &Arc<dyn Clock>,
    tap: Arc<dyn Tap>,
) -> Result<Arc<dyn Engine>, ServeError> {
    match config.engine {
        EngineKind::Sim => {
            let mover = (config.volume_access == VolumeAccess::Mover).then(crate::mover::simulated);
            let options = SimOptions { images: ImagePolicy::AcceptAny, mover, ..SimOptions::default() };
            let root: PathBuf = config.storage_root.join("sim");
            let engine = SimEngine::open(root, Arc::clone(clock), options).map_err(ServeError::Simulator)?;
            Ok(Arc::new(Tapped::new(Arc::new(engine), tap)))
        }
        EngineKind::Docker => {
            let engine = docker(config, installation).await?;
            Ok(Arc::new(Tapped::new(Arc::new(engine), tap)))
        }
    }
}

/// The file that keeps the identity of the storage root. Whoever gives a root up for good removes it.
#[must_use]
pub fn storage_record(data_dir: &Path) -> PathBuf {
    data_dir.join("storage-root")
}

/// Connects, with patience for an engine that is only starting.
async fn docker(config: &Config, installation: InstallationId) -> Result<DockerEngine, EngineError> {
    let docker = DockerConfig {
        storage_record: Some(storage_record(&config.data_dir)),
        volume_prefix: config.volume_prefix.clone(),
        subnet_pool: Subnet::parse(&config.subnet_pool)?,
        allowed_runtimes: Some(config.runtimes.clone()).filter(|r| !r.is_empty()),
        default_runtime: config.default_runtime.clone(),
        docker_host: config.docker_host.clone(),
        ssh_options: config.docker_ssh_options.clone(),
        // This very program, even when another version has taken its place on the disk.
        mover_binary: Some(PathBuf::from("/proc/self/exe")),
        volume_access: match config.volume_access {
            VolumeAccess::Auto => DockerAccess::Auto,
            VolumeAccess::Direct => DockerAccess::Direct,
            VolumeAccess::Mover => DockerAccess::Mover,
        },
        ..DockerConfig::new(installation, &config.storage_root)?
    };
    let give_up = tokio::time::Instant::now() + ENGINE_PATIENCE;
    loop {
        match DockerEngine::connect(docker.clone()).await {
            Err(error @ (EngineError::Transient { .. } | EngineError::OutcomeUnknown { .. }))
                if tokio::time::Instant::now() < give_up =>
            {
                tracing::warn!(%error, "the engine does not answer yet");
                tokio::time::sleep(ENGINE_AGAIN).await;
            }
            other => return other,
        }
    }
}

/// Runs a server until it is asked to stop; `ready` is told where it listens.
///
/// # Errors
/// [`ServeError`] when it could not start.
pub async fn run(config: &Config, ready: impl FnOnce(&str)) -> Result<(), ServeError> {
    // Before anything else, so that a signal during a slow start is not lost.
    let stop = stop_signal();
    let running = Running::start(config).await?;
    tracing::info!(address = %running.url(), data = %config.data_dir.display(), "ready");
    if running.directory.is_new() {
        tracing::warn!(
            "first start: snapshots are encrypted with the keys in {keys}; without them nobody can read them, so keep a \
             copy off this host: `perennial recovery-kit` writes it",
            keys = running.directory.path().join("keys").display()
        );
    }
    ready(&running.url());
    stop.await;
    tracing::info!("stopping");
    running.stop().await;
    Ok(())
}

/// Ends with the first SIGTERM or SIGINT. The handlers are in place when this returns.
fn stop_signal() -> impl Future<Output = ()> {
    use tokio::signal::unix::{SignalKind, signal};
    let listeners = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    async move {
        match listeners {
            (Ok(mut terminate), Ok(mut interrupt)) => {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
            }
            (Err(error), _) | (_, Err(error)) => {
                tracing::error!(%error, "signals cannot be handled; only SIGKILL ends this server");
                std::future::pending().await
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn a_client_that_vanished_is_found_out() {
        let listener = listen(([127, 0, 0, 1], 0).into()).await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        assert!(sockopt::socket_keepalive(&accepted).unwrap());
        assert_eq!(sockopt::tcp_keepidle(&accepted).unwrap(), KEEPALIVE_AFTER);
        assert_eq!(sockopt::tcp_keepintvl(&accepted).unwrap(), KEEPALIVE_EVERY);
        assert_eq!(sockopt::tcp_keepcnt(&accepted).unwrap(), KEEPALIVE_TRIES);
        drop(client);
    }
}
