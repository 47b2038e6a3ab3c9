//! What the tests on a real Docker Engine share: an installation of its own, pods, permits, and cleaning up by label.

#![allow(clippy::missing_panics_doc, missing_docs, reason = "helpers of tests")]

pub mod engines;
pub mod fuse;
pub mod hands;
pub mod sshd;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bollard::Docker;
use bollard::container::LogOutput;
use bollard::models::{ContainerCreateBody, ExecConfig};
use bollard::query_parameters::{
    CreateContainerOptions, ListContainersOptionsBuilder, ListNetworksOptionsBuilder, ListVolumesOptionsBuilder,
    RemoveContainerOptionsBuilder, RemoveVolumeOptionsBuilder,
};
use futures::StreamExt;
use perennial_core::engine::{ContainerSpec, Engine, EngineError, Fill, ObservedPod, SetAccess, SetSpec, VolumePath};
use perennial_core::id::{InstallationId, OperationId, PodId};
use perennial_core::permit::DeletePermit;
use perennial_core::pod::{Pod, Task, Work};
use perennial_core::spec::{Backend, PodName, PodSpec, TenantId};
use perennial_core::volume::{Origin, SetState, VolumeSet, layout};
use perennial_drivers::docker::{DockerConfig, DockerEngine};

pub use engines::{LoopFs, OtherEngine};
pub use sshd::{Sshd, free_port};

pub const BUSYBOX: &str = "perennial-test/busybox:1";

/// What of the suite depends on how the engine is reached.
pub const REACH_CASES: [&str; 10] = [
    "image_is_exported_and_imported",
    "set_becomes_whole",
    "set_is_deleted_with_its_permit_only",
    "life_of_a_container_is_observed",
    "container_freezes_and_goes_on",
    "stubborn_container_is_killed_after_its_grace",
    "every_volume_keeps_its_bytes",
    "layer_is_reached_and_put_back",
    "watch_tells_of_ends",
    "owned_things_are_listed",
];

/// One installation on the test engine; everything it made goes when it is dropped.
pub struct Bench {
    pub engine: DockerEngine,
    pub docker: Docker,
    config: DockerConfig,
    pub installation: InstallationId,
    pub root: tempfile::TempDir,
}

/// A static program in the mover's place: it listens until its input ends, and does nothing. Built once.
pub fn idle_mover() -> PathBuf {
    const PROGRAM: &str = "#include <unistd.h>\nint main(void) { char b[4096]; while (read(0, b, sizeof b) > 0) {} }\n";
    let built = storage_base().join("idle-mover");
    if !built.exists() {
        let dir = tempfile::tempdir_in(storage_base()).unwrap();
        let (source, binary) = (dir.path().join("mover.c"), dir.path().join("mover"));
        std::fs::write(&source, PROGRAM).unwrap();
        let cc = std::process::Command::new("cc").arg("-static").arg("-o").arg(&binary).arg(&source).status().unwrap();
        assert!(cc.success());
        std::fs::rename(binary, &built).unwrap();
    }
    built
}

/// The engine under test. A missing one fails the test: nothing is skipped.
pub fn host() -> String {
    let named = |name: &str| std::env::var(name).ok().filter(|h| !h.is_empty());
    named("PERENNIAL_TEST_DOCKER_HOST")
        .or_else(|| named("DOCKER_HOST"))
        .expect("set PERENNIAL_TEST_DOCKER_HOST or DOCKER_HOST to the engine under test (./dev engine up)")
}

/// How a test itself reaches the engine of a configuration: behind SSH it is the one under test, at its socket.
pub fn own_way(config: &DockerConfig) -> String {
    config.docker_host.clone().filter(|h| !h.starts_with("ssh://")).unwrap_or_else(host)
}

fn random() -> [u8; 10] {
    rand::random()
}

impl Bench {
    pub async fn new() -> Self {
        Self::with(&["runc"], |_| {}).await
    }

    pub async fn with(runtimes: &[&str], change: impl FnOnce(&mut DockerConfig)) -> Self {
        let installation = InstallationId::from_parts(1, random());
        let root = tempfile::Builder::new().prefix("docker-").tempdir_in(storage_base()).unwrap();
        let mut config = config(installation, root.path(), runtimes);
        change(&mut config);
        let docker = connect(&own_way(&config)).await;
        let engine = DockerEngine::connect(config.clone()).await.unwrap();
        Self { engine, docker, config, installation, root }
    }

    /// A second process of the same installation.
    pub async fn reconnect(&self, runtimes: &[&str]) -> DockerEngine {
        let mut config = self.config.clone();
        config.allowed_runtimes = Some(runtimes.iter().map(|r| (*r).to_owned()).collect());
        DockerEngine::connect(config).await.unwrap()
    }

    pub fn storage(&self) -> PathBuf {
        self.config.storage_root.clone()
    }

    pub async fn pod(&self, image: &str, backend: Backend) -> TestPod {
        self.pod_with(image, backend, |_| {}).await
    }

    pub async fn pod_with(&self, image: &str, backend: Backend, change: impl FnOnce(&mut PodSpec)) -> TestPod {
        let id = PodId::from_parts(1, random());
        let pinned = self.engine.image_resolve(image).await.unwrap().expect("test image: ./dev images");
        let mut spec = PodSpec::new(image);
        spec.command = Some(vec!["sh".into(), "-c".into(), "trap 'exit 7' TERM; while :; do sleep 0.1; done".into()]);
        change(&mut spec);
        let set = SetSpec {
            pod: id,
            tenant: TenantId::default_tenant(),
            number: 1,
            backend,
            image: pinned.id,
            volumes: layout(&spec.profile, backend, &pinned.layout),
        };
        let spec = ContainerSpec {
            pod: id,
            tenant: set.tenant.clone(),
            name: PodName::parse("testpod").unwrap(),
            set,
            spec,
            spec_generation: 1,
        };
        TestPod { spec, generation: 0 }
    }

    /// A pod whose set is prepared and complete, and its container made and started.
    pub async fn running(&self, image: &str, backend: Backend) -> (TestPod, String) {
        let mut pod = self.pod(image, backend).await;
        let id = self.run(&mut pod).await;
        (pod, id)
    }

    pub async fn complete(&self, pod: &TestPod) {
        self.engine.set_prepare(&pod.spec.set, Fill::Image).await.unwrap();
        self.engine.set_complete(&pod.spec.set).await.unwrap();
    }

    pub async fn run(&self, pod: &mut TestPod) -> String {
        self.complete(pod).await;
        let (id, _) = self.engine.container_ensure(&pod.spec).await.unwrap();
        self.start(pod, &id).await.unwrap();
        id
    }

    pub async fn start(&self, pod: &mut TestPod, id: &str) -> Result<(), EngineError> {
        pod.generation += 1;
        self.engine.container_start(id, &pod.spec.set, pod.generation).await.map(|_| ())
    }

    pub async fn observe(&self, pod: &TestPod) -> ObservedPod {
        self.engine.observe(pod.id(), std::slice::from_ref(&pod.spec.set)).await.unwrap()
    }

    /// Stops and removes the container like a purge does.
    pub async fn remove_container(&self, pod: &TestPod, id: &str) {
        self.engine.container_stop(id, 2).await.unwrap();
        let observed = self.observe(pod).await;
        let permit = DeletePermit::purged_container(&pod.purging(), &observed).unwrap();
        self.engine.container_remove(id, &permit).await.unwrap();
    }

    /// What a shell line in the container prints, and its exit code.
    pub async fn sh(&self, id: &str, line: &str) -> (String, i64) {
        let (text, code) = exec(&self.docker, id, &["sh", "-c", line]).await;
        (text.trim().to_owned(), code)
    }

    pub async fn access(&self, pod: &TestPod) -> Vec<VolumePath> {
        match self.engine.set_access(&pod.spec.set).await.unwrap() {
            SetAccess::Local(paths) => paths,
            SetAccess::Mover(_) => panic!("volumes are not local"),
        }
    }

    pub async fn volume(&self, pod: &TestPod, name: &str) -> VolumePath {
        self.access(pod).await.into_iter().find(|v| v.name == name).expect("volume")
    }

    pub fn upper(&self, pod: &TestPod, volume: &str) -> PathBuf {
        self.storage().join("pods").join(pod.id().to_string()).join("s1").join(volume).join("upper")
    }

    pub fn volume_name(pod: &TestPod, volume: &str) -> String {
        format!("perennial-vol-{}-{volume}", pod.id())
    }

    /// Makes a container that says it is this pod's and is never started: something for a watch to tell.
    pub async fn mark(&self, pod: PodId) {
        let labels = [("installation", self.installation.to_string()), ("pod", pod.to_string())];
        let body = ContainerCreateBody {
            image: Some(BUSYBOX.to_owned()),
            labels: Some(labels.map(|(name, value)| (format!("io.perennial.{name}"), value)).into()),
            ..ContainerCreateBody::default()
        };
        self.docker.create_container(None::<CreateContainerOptions>, body).await.unwrap();
    }

    fn filters(&self) -> HashMap<String, Vec<String>> {
        HashMap::from([("label".to_owned(), vec![format!("io.perennial.installation={}", self.installation)])])
    }
}

/// What a command in the container prints, and its exit code.
pub async fn exec(docker: &Docker, id: &str, command: &[&str]) -> (String, i64) {
    let exec = ExecConfig {
        cmd: Some(command.iter().map(|w| (*w).to_owned()).collect()),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        ..ExecConfig::default()
    };
    let exec = docker.create_exec(id, exec).await.unwrap().id;
    let mut text = String::new();
    if let bollard::exec::StartExecResults::Attached { mut output, .. } = docker.start_exec(&exec, None).await.unwrap()
    {
        while let Some(piece) = output.next().await {
            if let LogOutput::StdOut { message } | LogOutput::StdErr { message } = piece.unwrap() {
                text.push_str(&String::from_utf8_lossy(&message));
            }
        }
    }
    (text, docker.inspect_exec(&exec).await.unwrap().exit_code.unwrap_or(-1))
}

pub async fn connect(host: &str) -> Docker {
    Docker::connect_with_host(host).unwrap().negotiate_version().await.unwrap()
}

/// Where tests keep their data: a file system that can be the upper side of an overlay.
pub fn storage_base() -> PathBuf {
    let named = std::env::var_os("PERENNIAL_TEST_STORAGE").map(PathBuf::from);
    let base = named.unwrap_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")));
    std::fs::create_dir_all(&base).unwrap();
    base
}

/// An installation that all tests of a suite share, and the next run too: probes and image trees are made once.
pub fn shared_config(runtimes: &[&str]) -> DockerConfig {
    let installation = InstallationId::from_parts(1, *b"docker-all");
    let mut config = config(installation, &storage_base().join(format!("shared-{}", runtimes.join("-"))), runtimes);
    // Each engine is an installation of its own, as far as the storage root goes.
    let digest = host().bytes().fold(0_u64, |h, b| h.wrapping_mul(31).wrapping_add(b.into()));
    config.storage_root = config.storage_root.parent().unwrap().join(format!("{digest:016x}"));
    config
}

fn config(installation: InstallationId, root: &Path, runtimes: &[&str]) -> DockerConfig {
    let root = if root.ends_with("root") { root.to_owned() } else { root.join("root") };
    let mut config = DockerConfig::new(installation, root).unwrap();
    config.docker_host = Some(host());
    config.allowed_runtimes = Some(runtimes.iter().map(|r| (*r).to_owned()).collect());
    config
}

/// Waits until the condition holds, for a bounded time.
pub async fn eventually<F: AsyncFnMut() -> bool>(what: &str, mut holds: F) {
    let start = Instant::now();
    while !holds().await {
        assert!(start.elapsed() < Duration::from_secs(30), "{what} did not happen in 30 s");
        tokio::task::yield_now().await;
    }
}

pub struct TestPod {
    pub spec: ContainerSpec,
    pub generation: u64,
}

impl TestPod {
    pub fn id(&self) -> PodId {
        self.spec.pod
    }

    /// The record of this pod, as it is when its purge is in work.
    pub fn purging(&self) -> Pod {
        let mut pod = self.record();
        let now = jiff::Timestamp::UNIX_EPOCH;
        let operation = OperationId::from_parts(1, random());
        pod.tasks.push(Task { operation, work: Work::Purge { actor: "test".into(), at: now } });
        pod
    }

    pub fn record(&self) -> Pod {
        let set = &self.spec.set;
        let mut pod = Pod::new(
            set.pod,
            set.tenant.clone(),
            self.spec.name.clone(),
            self.spec.spec.clone(),
            OperationId::from_parts(1, random()),
            jiff::Timestamp::UNIX_EPOCH,
        );
        pod.sets.push(VolumeSet {
            number: set.number,
            backend: set.backend,
            origin: Origin::Image,
            state: SetState::Complete,
            attached: None,
            marked: None,
            proof: None,
            volumes: set.volumes.clone(),
        });
        pod
    }

    pub fn set_permit(&self) -> DeletePermit {
        DeletePermit::purged_set(&self.purging(), self.spec.set.number).unwrap()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let (docker, filters) = (self.docker.clone(), self.filters());
        let host = own_way(&self.config);
        let cleaned = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            // A connection belongs to the runtime that made it.
            drop(docker);
            runtime.block_on(async move {
                let docker = connect(&host).await;
                clean(&docker, &filters).await;
            });
        });
        if cleaned.join().is_err() && !std::thread::panicking() {
            panic!("cleaning up failed");
        }
    }
}

async fn clean(docker: &Docker, filters: &HashMap<String, Vec<String>>) {
    let options = ListContainersOptionsBuilder::default().all(true).filters(filters).build();
    for container in docker.list_containers(Some(options)).await.unwrap() {
        let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
        let _ = docker.remove_container(&container.id.unwrap(), Some(options)).await;
    }
    let options = ListVolumesOptionsBuilder::default().filters(filters).build();
    for volume in docker.list_volumes(Some(options)).await.unwrap().volumes.unwrap_or_default() {
        // A helper container that removes itself may still hold it.
        eventually("the removal of a volume", async || {
            let options = RemoveVolumeOptionsBuilder::default().build();
            docker.remove_volume(&volume.name, Some(options)).await.is_ok()
        })
        .await;
    }
    let options = ListNetworksOptionsBuilder::default().filters(filters).build();
    for network in docker.list_networks(Some(options)).await.unwrap() {
        let _ = docker.remove_network(&network.id.unwrap()).await;
    }
}
