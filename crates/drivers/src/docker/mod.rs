//! The Docker Engine (20.10 and later), by its API: a local socket, TCP, or a socket that `ssh` forwards.
//!
//! | file | what it is about |
//! |---|---|
//! | `client` | the connection, and what an answer or its absence means |
//! | `ssh`, `tunnel` | an engine on another host: its address, and the one `ssh` that forwards its socket |
//! | `labels` | ownership |
//! | `storage`, `spare`, `tree`, `untar` | Perennial's own directory on this host |
//! | `trees` | image trees that nobody needs any more |
//! | `image` | resolve, pull, export, import, flatten |
//! | `btrfs` | sets that are subvolumes |
//! | `overlay`, `volumes` | the two backends of volume sets |
//! | `copying` | overlay sets copied beside themselves |
//! | `still` | overlay sets as they were at one instant, for snapshots |
//! | `within` | what a copy of a set's subvolume has of its volumes |
//! | `writers` | who else has a set |
//! | `spec`, `container` | a pod's container |
//! | `limits` | what it is limited to, changed while it runs |
//! | `program` | what is run in it beside its own program |
//! | `health` | whether its own program works |
//! | `logs` | what its own program wrote |
//! | `network`, `firewall` | tenants apart from each other and from the host |
//! | `observe`, `watch`, `layer` | what is seen |
//! | `probe` | what works here, tried and remembered; `posix`: what databases count on |
//! | `scratch`, `tiny`, `mover` | helper containers and the images they run |

mod btrfs;
mod client;
mod container;
mod copying;
mod firewall;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod health;
mod image;
mod labels;
mod layer;
mod limits;
mod logs;
mod mover;
mod network;
mod observe;
mod overlay;
mod posix;
mod probe;
mod program;
mod quota;
mod scratch;
mod spare;
mod spec;
mod ssh;
mod still;
mod storage;
mod tiny;
mod tree;
mod trees;
mod tunnel;
mod untar;
mod volumes;
mod watch;
mod within;
mod writers;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bollard::Docker;
use perennial_core::engine::{
    Capabilities, ChangeSink, ContainerSpec, Copying, Effect, Engine, EngineError, Fill, LayerAccess, LogRange,
    LogReader, MoverChannel, ObservedPod, Owned, Program, Ran, SetAccess, SetSpec, Still, VolumeUsage,
};
use perennial_core::health::{Answer, Probe};
use perennial_core::id::{InstallationId, PodId};
use perennial_core::permit::DeletePermit;
use perennial_core::pod::PinnedImage;
use perennial_core::progress::Progress;
use perennial_core::spec::{Backend, Resources};
use tokio::sync::{Mutex, OnceCell};

pub use network::Subnet;

use client::{blocking, look, rejected};
use image::FlattenLocks;
use quota::Limits;
use storage::Storage;
use tunnel::Tunnel;

/// How to reach an engine, and what may be used of it.
#[derive(Debug, Clone)]
pub struct DockerConfig {
    /// Whose things they are; a label of everything that is made.
    pub installation: InstallationId,
    /// Directory of image trees and overlay volumes, on this host.
    pub storage_root: PathBuf,
    /// File elsewhere that keeps the identity of the storage root, so that the place of a disk that is not mounted is
    /// never taken for a new root; `None` keeps none.
    pub storage_record: Option<PathBuf>,
    /// Prefix of volume names.
    pub volume_prefix: String,
    /// Addresses that the tenants' networks are cut from.
    pub subnet_pool: Subnet,
    /// Runtimes that pods may ask for; `None` allows all that the engine has.
    pub allowed_runtimes: Option<Vec<String>>,
    /// The runtime of a pod that names none; `None` takes the engine's.
    pub default_runtime: Option<String>,
    /// Address of the engine; `None` takes `DOCKER_HOST`, else the local socket.
    pub docker_host: Option<String>,
    /// Options for `ssh` (`NAME=VALUE`) when the address is one of SSH.
    pub ssh_options: Vec<String>,
    /// Backends that may be used.
    pub backends: Vec<Backend>,
    /// A static `perennial` executable for helper containers; without it volumes are only reached as directories.
    pub mover_binary: Option<PathBuf>,
    /// How the engine's own volumes are reached.
    pub volume_access: VolumeAccess,
}

impl DockerConfig {
    /// A configuration with every default.
    ///
    /// # Errors
    /// None: the default pool is valid.
    pub fn new(installation: InstallationId, storage_root: impl Into<PathBuf>) -> Result<Self, EngineError> {
        Ok(Self {
            installation,
            storage_root: storage_root.into(),
            storage_record: None,
            volume_prefix: "perennial-vol-".to_owned(),
            subnet_pool: Subnet::parse("10.214.0.0/16")?,
            allowed_runtimes: None,
            default_runtime: None,
            docker_host: None,
            ssh_options: Vec::new(),
            backends: vec![Backend::Overlay, Backend::Engine],
            mover_binary: None,
            volume_access: VolumeAccess::Auto,
        })
    }
}

/// How volumes of the engine are reached. Overlay volumes are always directories of this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum VolumeAccess {
    /// As directories where they are in reach, else by a mover.
    #[default]
    Auto,
    /// As directories only.
    Direct,
    /// By a mover only.
    Mover,
}

/// What the engine said about itself when it was connected to.
#[derive(Debug, Clone)]
struct EngineInfo {
    version: String,
    /// Processors of its host.
    cpus: Option<u32>,
    /// The engine's own id: a reinstalled engine has another one.
    id: String,
    kernel: String,
    live_restore: bool,
    /// Containers' users are not the host's (userns-remap, rootless).
    remapped: bool,
    /// Whether it runs as an ordinary user, in a network namespace of its own.
    rootless: bool,
    logging: Option<String>,
    default_runtime: String,
    /// Runtimes and how each is called.
    runtimes: BTreeMap<String, String>,
}

/// What was seen of a volume of the engine's own.
#[derive(Debug)]
struct OwnVolumes {
    /// Whether its directory is one of this host.
    shared: bool,
    /// Whether databases are safe on it.
    trial: posix::Trial,
}

/// A Docker Engine.
#[derive(Debug)]
pub struct DockerEngine {
    docker: Docker,
    /// What every connection goes through when the engine is behind SSH.
    _tunnel: Option<Tunnel>,
    config: DockerConfig,
    storage: Storage,
    info: EngineInfo,
    flattening: FlattenLocks,
    /// Held while a network is made or removed, and while a container is made that needs one.
    networks: Mutex<()>,
    capabilities: OnceCell<Capabilities>,
    own_volumes: OnceCell<OwnVolumes>,
    firewall: OnceCell<Result<(), String>>,
    /// The movers' image, once it was made.
    mover_image: Mutex<Option<String>>,
    limits: Arc<Limits>,
}

impl DockerEngine {
    /// Connects, claims the storage root, and removes what an earlier run left in trash and scratch.
    ///
    /// # Errors
    /// [`EngineError::Transient`] when the engine does not answer, or when the storage root is on record and not there;
    /// [`EngineError::Rejected`] when the engine is too old or the storage root cannot be used.
    pub async fn connect(config: DockerConfig) -> Result<Self, EngineError> {
        let (docker, tunnel) = client::connect(config.docker_host.as_deref(), &config.ssh_options).await?;
        let info = ask(&docker).await?;
        let (root, record, installation) =
            (config.storage_root.clone(), config.storage_record.clone(), config.installation);
        let storage = blocking(move || {
            let storage = Storage::open(&root, installation, record.as_deref())?;
            storage.burn_all()?;
            sweep(&storage);
            if let Err(error) = storage.sweep_stills() {
                tracing::warn!(%error, "delete what snapshots were read from");
            }
            Ok(storage)
        })
        .await?;
        let engine = Self {
            docker,
            _tunnel: tunnel,
            config,
            storage,
            info,
            flattening: FlattenLocks::default(),
            networks: Mutex::new(()),
            capabilities: OnceCell::new(),
            own_volumes: OnceCell::new(),
            firewall: OnceCell::new(),
            mover_image: Mutex::default(),
            limits: Arc::default(),
        };
        engine.scratch_sweep().await?;
        Ok(engine)
    }

    /// Works with limits where it may block.
    async fn with_limits<T: Send + 'static>(
        &self,
        set: &SetSpec,
        work: impl FnOnce(&Limits, &Storage, &SetSpec) -> Result<T, EngineError> + Send + 'static,
    ) -> Result<T, EngineError> {
        let (limits, storage, set) = (Arc::clone(&self.limits), self.storage.clone(), set.clone());
        blocking(move || work(&limits, &storage, &set)).await
    }

    async fn capabilities_probed(&self) -> Result<&Capabilities, EngineError> {
        self.capabilities.get_or_try_init(|| self.probe()).await
    }
}

/// Deletes image trees that nobody needs; whatever keeps it from that is no reason to do nothing else.
fn sweep(storage: &Storage) {
    if let Err(error) = storage.sweep_trees() {
        tracing::warn!(%error, "delete image trees that nobody needs");
    }
}

async fn ask(docker: &Docker) -> Result<EngineInfo, EngineError> {
    let info = docker.info().await.map_err(|e| look("ask the engine about itself", e))?;
    let security = info.security_options.unwrap_or_default();
    let has = |name: &str| security.iter().any(|s| s.contains(&format!("name={name}")));
    if info.os_type.as_deref().is_some_and(|os| os != "linux") {
        return Err(rejected("the engine does not run Linux containers"));
    }
    let runtimes = info.runtimes.unwrap_or_default();
    let call = |r: &bollard::models::Runtime| {
        format!("{} {}", r.path.as_deref().unwrap_or_default(), r.runtime_args.clone().unwrap_or_default().join(" "))
    };
    Ok(EngineInfo {
        version: info.server_version.unwrap_or_default(),
        cpus: info.ncpu.and_then(|cpus| u32::try_from(cpus).ok()).filter(|cpus| *cpus > 0),
        id: info.id.unwrap_or_default(),
        kernel: info.kernel_version.unwrap_or_default(),
        live_restore: info.live_restore_enabled.unwrap_or(false),
        remapped: has("userns") || has("rootless"),
        rootless: has("rootless"),
        logging: info.logging_driver,
        default_runtime: info.default_runtime.unwrap_or_else(|| "runc".to_owned()),
        // The engine lists its shims beside the runtimes; they are not names that a container asks for.
        runtimes: runtimes
            .iter()
            .filter(|(name, _)| !name.starts_with("io.containerd."))
            .map(|(name, r)| (name.clone(), call(r)))
            .collect(),
    })
}

#[async_trait]
impl Engine for DockerEngine {
    async fn capabilities(&self) -> Result<Capabilities, EngineError> {
        let mut capabilities = self.capabilities_probed().await?.clone();
        capabilities.notes.extend(firewall::problem(self).map(|p| format!("pods are not kept from the host: {p}")));
        Ok(capabilities)
    }

    async fn image_resolve(&self, reference: &str) -> Result<Option<PinnedImage>, EngineError> {
        self.resolve(reference).await
    }

    async fn image_offered(&self, reference: &str) -> Result<(), EngineError> {
        self.offered(reference).await
    }

    async fn image_pull(&self, reference: &str, progress: &Progress) -> Result<(), EngineError> {
        self.pull(reference, progress).await
    }

    async fn image_export(&self, image: &str, into: &Path, progress: &Progress) -> Result<(), EngineError> {
        self.export(image, into, progress).await
    }

    async fn image_import(&self, from: &Path, progress: &Progress) -> Result<(), EngineError> {
        self.import(from, progress).await
    }

    async fn observe(&self, pod: PodId, sets: &[SetSpec]) -> Result<ObservedPod, EngineError> {
        self.observe_pod(pod, sets).await
    }

    async fn lingering(&self, sets: &[SetSpec]) -> Result<Vec<String>, EngineError> {
        for set in sets {
            self.end_movers(set).await?;
        }
        self.mounted_sets(sets).await
    }

    async fn set_prepare(&self, set: &SetSpec, fill: Fill) -> Result<Effect, EngineError> {
        match set.backend {
            Backend::Overlay => self.overlay_prepare(set).await,
            Backend::Engine => self.volumes_prepare(set, fill).await,
        }
    }

    async fn set_copying(&self, set: &SetSpec) -> Result<Option<Copying>, EngineError> {
        self.copying(set).await
    }

    async fn set_snapshot(&self, from: &SetSpec, to: &SetSpec) -> Result<Effect, EngineError> {
        self.snapshot(from, to).await
    }

    async fn set_still(&self, set: &SetSpec) -> Result<Still, EngineError> {
        self.still(set).await
    }

    async fn stills_sweep(&self) -> Result<Effect, EngineError> {
        self.sweep_stills().await
    }

    async fn set_complete(&self, set: &SetSpec) -> Result<Effect, EngineError> {
        match set.backend {
            Backend::Overlay => self.overlay_complete(set).await,
            Backend::Engine => self.volumes_complete(set).await,
        }
    }

    async fn set_access(&self, set: &SetSpec) -> Result<SetAccess, EngineError> {
        match set.backend {
            Backend::Overlay => Ok(SetAccess::Local(self.overlay_access(set).await?)),
            Backend::Engine => self.volumes_access(set).await,
        }
    }

    async fn set_usage(&self, set: &SetSpec) -> Result<Vec<VolumeUsage>, EngineError> {
        self.usage(set).await
    }

    async fn set_limit(&self, set: &SetSpec, bytes: Option<u64>) -> Result<Effect, EngineError> {
        match set.backend {
            Backend::Overlay => {
                self.with_limits(set, move |limits, storage, set| limits.set(storage, set, bytes)).await
            }
            // Advice, which `observe` says.
            Backend::Engine => Ok(Effect::Unchanged),
        }
    }

    async fn set_delete(&self, set: &SetSpec, permit: &DeletePermit) -> Result<Effect, EngineError> {
        if !permit.covers_set(set.pod, set.number) {
            return Err(rejected(format!(
                "the permit ({permit}) does not cover set {} of pod {}",
                set.number, set.pod
            )));
        }
        let effect = match set.backend {
            Backend::Overlay => self.overlay_delete(set).await?,
            Backend::Engine => self.volumes_delete(set).await?,
        };
        if set.backend == Backend::Overlay {
            self.with_limits(set, |limits, storage, set| {
                limits.forget(storage, set);
                sweep(storage);
                Ok(())
            })
            .await?;
        }
        if effect == Effect::Removed {
            // The container may have been removed by somebody else, who left the tenant's network.
            self.tidy_network(set.tenant.as_str()).await;
        }
        Ok(effect)
    }

    async fn container_ensure(&self, container: &ContainerSpec) -> Result<(String, Effect), EngineError> {
        self.ensure(container).await
    }

    async fn container_limit(&self, id: &str, limits: &Resources) -> Result<Effect, EngineError> {
        self.limit(id, limits).await
    }

    async fn container_remove(&self, id: &str, permit: &DeletePermit) -> Result<Effect, EngineError> {
        self.remove(id, permit).await
    }

    async fn container_start(&self, id: &str, set: &SetSpec, generation: u64) -> Result<Effect, EngineError> {
        self.start(id, set, generation).await
    }

    async fn container_stop(&self, id: &str, grace_seconds: u32) -> Result<Effect, EngineError> {
        self.stop(id, grace_seconds).await
    }

    async fn container_freeze(&self, id: &str) -> Result<Effect, EngineError> {
        self.freeze(id).await
    }

    async fn container_unfreeze(&self, id: &str) -> Result<Effect, EngineError> {
        self.unfreeze(id).await
    }

    async fn container_run(&self, id: &str, program: &Program, progress: &Progress) -> Result<Ran, EngineError> {
        self.run_program(id, program, progress).await
    }

    async fn container_rejoin(
        &self,
        id: &str,
        program: &Program,
        progress: &Progress,
    ) -> Result<Option<Ran>, EngineError> {
        self.rejoin_program(id, program, progress).await
    }

    async fn container_probe(&self, id: &str, probe: &Probe, within: Duration) -> Result<Answer, EngineError> {
        self.health_probe(id, probe, within).await
    }

    async fn container_logs(&self, id: &str, range: LogRange) -> Result<Box<dyn LogReader>, EngineError> {
        self.logs(id, range).await
    }

    async fn layer_access(&self, id: &str) -> Result<LayerAccess, EngineError> {
        self.layer(id).await
    }

    async fn mover_open(&self, set: &SetSpec) -> Result<MoverChannel, EngineError> {
        self.mover(set).await
    }

    async fn list_owned(&self) -> Result<Vec<Owned>, EngineError> {
        self.owned().await
    }

    async fn watch(&self, sink: &dyn ChangeSink) -> Result<(), EngineError> {
        self.follow(sink).await
    }
}
