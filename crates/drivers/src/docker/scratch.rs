//! Things the driver makes for itself and removes again, under [`DeletePermit::scratch`].

use std::time::{Duration, Instant};

use bollard::models::{ContainerCreateBody, HostConfig, HostConfigLogConfig, Mount};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, ListContainersOptionsBuilder, RemoveContainerOptionsBuilder,
};
use perennial_core::engine::EngineError;
use perennial_core::permit::DeletePermit;

use super::client::{fail, look, not_found, rejected, transient};
use super::{DockerEngine, labels};

/// How old a scratch container that does not run must be before a new process takes it for left behind.
const ABANDONED_SECONDS: i64 = 3600;
/// How long the engine may take to remove one.
const REMOVAL: Duration = Duration::from_secs(20);

/// A random part of a name.
pub(super) fn token() -> String {
    format!("{:016x}", rand::random::<u64>())
}

fn container_name(name: &str) -> String {
    format!("perennial-scratch-{name}")
}

impl DockerEngine {
    /// Makes a scratch container, not started, with no network; returns its id.
    pub(super) async fn scratch_create(
        &self,
        name: &str,
        image: &str,
        mounts: Vec<Mount>,
        run: Option<ScratchRun>,
    ) -> Result<String, EngineError> {
        let run = run.unwrap_or_else(|| ScratchRun {
            // Never started; an image without a command cannot be created without one.
            command: vec!["/perennial-scratch".to_owned()],
            runtime: None,
            stdin: Stdin::Closed,
            auto_remove: false,
        });
        let open = run.stdin == Stdin::Open;
        let body = ContainerCreateBody {
            image: Some(image.to_owned()),
            entrypoint: Some(run.command),
            cmd: Some(Vec::new()),
            user: Some("0:0".to_owned()),
            labels: Some(labels::of_scratch(self.config.installation, name)),
            open_stdin: Some(open),
            stdin_once: Some(open),
            attach_stdin: Some(open),
            attach_stdout: Some(true),
            network_disabled: Some(true),
            host_config: Some(HostConfig {
                mounts: Some(mounts),
                runtime: run.runtime,
                auto_remove: Some(run.auto_remove),
                // What goes through a channel is no log.
                log_config: open
                    .then(|| HostConfigLogConfig { typ: Some("none".to_owned()), ..HostConfigLogConfig::default() }),
                network_mode: Some("none".to_owned()),
                ..HostConfig::default()
            }),
            ..ContainerCreateBody::default()
        };
        let options = CreateContainerOptionsBuilder::default().name(&container_name(name)).build();
        let made = self.docker.create_container(Some(options), body).await;
        Ok(made.map_err(|e| fail("make a scratch container", e))?.id)
    }

    /// Ends and removes a scratch container and the anonymous volumes that came with it.
    pub(super) async fn scratch_remove(&self, name: &str) -> Result<(), EngineError> {
        self.scratch_remove_as(name, &container_name(name), &DeletePermit::scratch(name)).await
    }

    /// The same, and returns once the engine has forgotten it. One that ended by itself may be on its way out already.
    pub(super) async fn scratch_end(&self, name: &str) -> Result<(), EngineError> {
        let give_up = Instant::now() + REMOVAL;
        while self.look_at(&container_name(name)).await?.is_some() {
            match self.scratch_remove(name).await {
                Ok(()) | Err(EngineError::Conflict { .. }) => {}
                Err(e) => return Err(e),
            }
            if Instant::now() > give_up {
                return Err(transient(format!("helper container {name} does not go")));
            }
            tokio::time::sleep(REMOVAL / 400).await;
        }
        Ok(())
    }

    async fn scratch_remove_as(&self, name: &str, id: &str, permit: &DeletePermit) -> Result<(), EngineError> {
        if !permit.covers_scratch(name) {
            return Err(rejected(format!("no permit to remove scratch {name}")));
        }
        let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
        match self.docker.remove_container(id, Some(options)).await {
            Ok(()) => Ok(()),
            Err(e) if not_found(&e) => Ok(()),
            Err(e) => Err(fail("remove a scratch container", e)),
        }
    }

    /// Removes scratch that an earlier process left behind.
    pub(super) async fn scratch_sweep(&self) -> Result<(), EngineError> {
        let ours = self.config.installation.to_string();
        let filters = labels::filter(&[(labels::INSTALLATION, &ours)]);
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        let listed = self.docker.list_containers(Some(options)).await.map_err(|e| look("list scratch", e))?;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let before = i64::try_from(now.as_secs()).unwrap_or(0) - ABANDONED_SECONDS;
        for container in listed {
            let labels = container.labels.unwrap_or_default();
            let name = labels.get(labels::SCRATCH).filter(|name| !name.is_empty());
            let (Some(name), Some(id)) = (name, container.id) else { continue };
            let runs = container.state.is_some_and(|s| s.to_string() == "running");
            if labels::is_ours(&labels, self.config.installation) && !runs && container.created.unwrap_or(0) < before {
                self.scratch_remove_as(name, &id, &DeletePermit::scratch(name.clone())).await?;
            }
        }
        Ok(())
    }
}

/// How a scratch container runs.
#[derive(Debug, Clone)]
pub(super) struct ScratchRun {
    pub(super) command: Vec<String>,
    /// `None` takes the engine's default.
    pub(super) runtime: Option<String>,
    pub(super) stdin: Stdin,
    /// Whether the engine removes it as soon as it ended.
    pub(super) auto_remove: bool,
}

/// Whether a scratch container can be talked to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stdin {
    Closed,
    Open,
}
