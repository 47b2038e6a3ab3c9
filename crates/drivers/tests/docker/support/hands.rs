//! What happens to a pod on a real Docker Engine other than through Perennial, and the conformance suite on it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bollard::Docker;
use bollard::models::{ContainerCreateBody, HostConfig, Mount, MountType};
use bollard::query_parameters::{
    CreateContainerOptions, KillContainerOptionsBuilder, RemoveContainerOptionsBuilder, RemoveVolumeOptions,
};
use perennial_core::clock::Clock;
use perennial_core::engine::SetSpec;
use perennial_core::spec::Backend;
use perennial_core::volume::engine_name;
use perennial_drivers::conformance::{
    Ability, Checked, Declaring, Failure, Fixture, Hands, Outcome, Programs, Tracked, run,
};
use perennial_drivers::docker::{DockerConfig, DockerEngine, VolumeAccess};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::{BUSYBOX, connect, exec, own_way};

/// A container's processes, the engine's command line, and a person with root on the host.
struct DockerHands {
    docker: Docker,
    storage: PathBuf,
    lingering: Mutex<HashMap<String, Child>>,
}

/// In a mount namespace of its own, with none of the overlays but those of the pod `$1`, and with `$2` bound to a place
/// where that is said: tells when it is so, and stays.
const LINGER: &str = r#"
    awk -v pod="$1" '/ - overlay / && !index($0, pod) { print $5 }' /proc/self/mountinfo | sort -r |
        while read -r target; do umount -l "$target"; done
    [ -z "$2" ] || mount --bind "$2" /mnt
    echo ready
    exec sleep 600
"#;

fn engine(error: impl std::fmt::Display) -> Failure {
    Failure(format!("hands: {error}"))
}

fn volume_name(set: &SetSpec, volume: &str) -> String {
    engine_name("perennial-vol-", set.pod, set.number, volume)
}

impl DockerHands {
    fn volume_dir(&self, set: &SetSpec, volume: &str) -> PathBuf {
        self.storage.join("pods").join(set.pod.to_string()).join(format!("s{}", set.number)).join(volume)
    }

    async fn sh(&self, container: &str, line: &str, words: &[&str]) -> Checked<(String, i64)> {
        let command = [&["sh", "-c", line, "sh"], words].concat();
        Ok(exec(&self.docker, container, &command).await)
    }
}

#[async_trait]
impl Hands for DockerHands {
    async fn write(&self, container: &str, path: &str, bytes: &[u8]) -> Checked {
        let text = std::str::from_utf8(bytes).map_err(engine)?;
        let line = r#"mkdir -p "${1%/*}" && printf %s "$2" > "$1" && sync"#;
        match self.sh(container, line, &[path, text]).await? {
            (_, 0) => Ok(()),
            (text, code) => Err(Failure(format!("write {path}: {code} {text}"))),
        }
    }

    async fn read(&self, container: &str, path: &str) -> Checked<Option<Vec<u8>>> {
        let line = r#"[ -e "$1" ] || exit 3; cat "$1""#;
        match self.sh(container, line, &[path]).await? {
            (text, 0) => Ok(Some(text.into_bytes())),
            (_, 3) => Ok(None),
            (text, code) => Err(Failure(format!("read {path}: {code} {text}"))),
        }
    }

    async fn is_of_this_host(&self, container: &str) -> Checked<bool> {
        let seen = self.docker.inspect_container(container, None).await.map_err(engine)?;
        let id = seen.id.ok_or_else(|| Failure("a container without an id".to_owned()))?;
        let pid = seen.state.and_then(|state| state.pid).ok_or_else(|| Failure("it does not run".to_owned()))?;
        Ok(std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?.contains(&id))
    }

    async fn remove(&self, container: &str, path: &str) -> Checked {
        match self.sh(container, r#"rm -rf "$1" && sync"#, &[path]).await? {
            (_, 0) => Ok(()),
            (text, code) => Err(Failure(format!("remove {path}: {code} {text}"))),
        }
    }

    async fn crash(&self, container: &str) -> Checked {
        let options = KillContainerOptionsBuilder::default().signal("KILL").build();
        self.docker.kill_container(container, Some(options)).await.map_err(engine)
    }

    async fn kill_outside(&self, container: &str) -> Checked {
        let options = RemoveContainerOptionsBuilder::default().force(true).build();
        self.docker.remove_container(container, Some(options)).await.map_err(engine)
    }

    async fn foreign_make(&self, set: &SetSpec) -> Checked<String> {
        let volume = &set.volumes.first().ok_or_else(|| Failure("a set without volumes".to_owned()))?.name;
        let mount = match set.backend {
            // The definition may not be made yet, so the data is mounted from where it lies.
            Backend::Overlay => Mount {
                source: Some(self.volume_dir(set, volume).join("upper").display().to_string()),
                typ: Some(MountType::BIND),
                target: Some("/foreign".to_owned()),
                ..Mount::default()
            },
            Backend::Engine => Mount {
                source: Some(volume_name(set, volume)),
                typ: Some(MountType::VOLUME),
                target: Some("/foreign".to_owned()),
                ..Mount::default()
            },
        };
        let body = ContainerCreateBody {
            image: Some(BUSYBOX.to_owned()),
            host_config: Some(HostConfig { mounts: Some(vec![mount]), ..HostConfig::default() }),
            ..ContainerCreateBody::default()
        };
        Ok(self.docker.create_container(None::<CreateContainerOptions>, body).await.map_err(engine)?.id)
    }

    async fn foreign_remove(&self, id: &str) -> Checked {
        let options = RemoveContainerOptionsBuilder::default().force(true).build();
        match self.docker.remove_container(id, Some(options)).await {
            Err(bollard::errors::Error::DockerResponseServerError { status_code: 404, .. }) => Ok(()),
            result => result.map_err(engine),
        }
    }

    async fn linger(&self, set: &SetSpec) -> Checked<String> {
        let first = &set.volumes.first().ok_or_else(|| Failure("a set without volumes".to_owned()))?.name;
        let bound = match set.backend {
            // The host's own mount of the volume goes with the container; a copy in another namespace does not.
            Backend::Overlay => String::new(),
            Backend::Engine => self.docker.inspect_volume(&volume_name(set, first)).await.map_err(engine)?.mountpoint,
        };
        let mut child = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", LINGER, "sh"])
            .args([set.pod.to_string(), bound])
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let id = format!("process {}", child.id().unwrap_or_default());
        let stdout = child.stdout.take().ok_or_else(|| Failure("no output of the process".to_owned()))?;
        let said = BufReader::new(stdout).lines().next_line().await?;
        if said.as_deref() != Some("ready") {
            return Err(Failure(format!("the process says {said:?}")));
        }
        self.lingering.lock().map_err(engine)?.insert(id.clone(), child);
        Ok(id)
    }

    async fn linger_end(&self, id: &str) -> Checked {
        let child = self.lingering.lock().map_err(engine)?.remove(id);
        if let Some(mut child) = child {
            child.kill().await?;
        }
        Ok(())
    }

    async fn definition_remove(&self, set: &SetSpec, volume: &str) -> Checked {
        let name = volume_name(set, volume);
        self.docker.remove_volume(&name, None::<RemoveVolumeOptions>).await.map_err(engine)
    }

    async fn data_remove(&self, set: &SetSpec, volume: &str) -> Checked {
        match set.backend {
            Backend::Overlay => Ok(std::fs::remove_dir_all(self.volume_dir(set, volume))?),
            Backend::Engine => self.definition_remove(set, volume).await,
        }
    }
}

#[derive(Debug)]
struct WallClock;

impl Clock for WallClock {
    fn now(&self) -> jiff::Timestamp {
        jiff::Timestamp::now()
    }
}

/// What Docker cannot do on this backend: known beforehand, so that an engine which loses an ability is not excused.
fn lacks(backend: Backend, runtime: &str, config: &DockerConfig) -> Vec<Ability> {
    let mut lacks = match backend {
        Backend::Overlay if kind_of_file_system(&config.storage_root) == "btrfs" => vec![Ability::Mover],
        Backend::Overlay => vec![Ability::Mover, Ability::InstantCopies],
        Backend::Engine => {
            let by_mover = matches!(config.volume_access, VolumeAccess::Mover);
            let reach = if by_mover { Ability::LocalVolumes } else { Ability::Mover };
            vec![reach, Ability::Definitions, Ability::InstantCopies, Ability::Generations]
        }
    };
    // scripts/engine.sh has it leave control groups alone.
    if runtime == "runsc" {
        lacks.push(Ability::OfThisHost);
    }
    lacks
}

fn kind_of_file_system(directory: &Path) -> String {
    // The engine makes the storage root itself.
    let there = directory.ancestors().find(|d| d.exists()).expect("the root of all directories");
    let output = std::process::Command::new("stat").args(["-f", "-c", "%T"]).arg(there).output().expect("run stat");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Runs one case of the suite on the engine and the storage root of this configuration.
#[expect(clippy::print_stderr, reason = "a test that was not run says so and why")]
pub async fn check(case: &str, backend: Backend, runtime: &str, config: DockerConfig) {
    let (storage, lacks) = (config.storage_root.clone(), lacks(backend, runtime, &config));
    let docker = connect(&own_way(&config)).await;
    let hands = DockerHands { docker, storage: storage.clone(), lingering: Mutex::default() };
    let engine = DockerEngine::connect(config).await.expect("connect");
    let shell = |line: &str| ["sh", "-c", line].map(str::to_owned).to_vec();
    let fixture = Fixture {
        engine: Arc::new(engine),
        hands: Arc::new(hands),
        clock: Arc::new(WallClock),
        salt: rand::random(),
        image: "perennial-test/layers:1".to_owned(),
        declaring: Declaring {
            image: "perennial-test/volume:1".to_owned(),
            path: "/data".to_owned(),
            seeded_file: "/data/seed".to_owned(),
        },
        runtime: Some(runtime.to_owned()),
        backend,
        lacks,
        command: shell("trap 'exit 0' TERM; while :; do sleep 0.1; done"),
        stubborn: shell("trap '' TERM; echo deaf >/srv/deaf; while :; do sleep 0.1; done"),
        stubborn_sign: Some("/srv/deaf".to_owned()),
        talking: shell("trap 'exit 0' TERM; echo one; echo two >&2; echo three; while :; do sleep 0.1; done"),
        programs: Programs {
            writes: shell("printf yes > /srv/ran"),
            fails: shell("{ seq 10000; echo the last words; } >&2; exit 3"),
            hangs: shell("trap '' TERM; sh -c 'sleep 3600; :'; :"),
            // Its own words must not be those it looks for.
            is_gone: shell("! cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -q 'sleep [3]600'"),
            leaves: shell("sleep 300 & :"),
            absent: vec!["/no/such/program".to_owned()],
        },
        serves: shell("echo hello > /tmp/motd; exec httpd -f -p 8080 -h /tmp"),
        seeded_file: "/opt/kept".to_owned(),
        seeded_directory: vec!["/srv/opaque/shown".to_owned()],
        scratch: storage.join("scratch"),
        tracked: Tracked::default(),
    };
    let outcome = run(&fixture, case).await.unwrap_or_else(|failure| panic!("{case}: {failure}"));
    if let Outcome::NotApplicable(missing) = outcome {
        missing.iter().for_each(|reason| eprintln!("not applicable on {backend:?}, {runtime}: {case}: {reason}"));
    }
}
