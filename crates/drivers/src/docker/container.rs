//! A pod's container: made, checked, started, stopped, removed.

use bollard::errors::Error as Bollard;
use bollard::models::{ContainerInspectResponse, ContainerStateStatusEnum, Volume as EngineVolume};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, InspectContainerOptions, RemoveContainerOptionsBuilder, StartContainerOptions,
    StopContainerOptionsBuilder,
};
use perennial_core::engine::{ContainerSpec, Effect, EngineError, SetSpec};
use perennial_core::id::PodId;
use perennial_core::permit::DeletePermit;
use perennial_core::spec::Backend;

use super::client::{REQUEST, blocking, conflict, fail, found, not_found, not_modified, rejected, transient};
use super::overlay::Definition;
use super::quota::Limits;
use super::spec::{self, Surroundings};
use super::storage::MarkerState;
use super::{DockerEngine, labels};

/// The name of a pod's container.
pub(super) fn container_name(pod: PodId) -> String {
    format!("perennial-pod-{pod}")
}

/// A container that was looked at, with what is always needed of it.
pub(super) struct Seen {
    pub(super) id: String,
    pub(super) labels: labels::Labels,
    pub(super) status: ContainerStateStatusEnum,
    pub(super) inspected: ContainerInspectResponse,
}

impl DockerEngine {
    /// Looks at a container by id or name; `None` is a proven absence.
    pub(super) async fn look_at(&self, id: &str) -> Result<Option<Seen>, EngineError> {
        let inspected = self.docker.inspect_container(id, None::<InspectContainerOptions>).await;
        let Some(inspected) = found("look at the container", inspected)? else { return Ok(None) };
        let id = inspected.id.clone().ok_or_else(|| transient("the engine's container has no id"))?;
        let labels = inspected.config.as_ref().and_then(|c| c.labels.clone()).unwrap_or_default();
        let status = inspected.state.as_ref().and_then(|s| s.status);
        let status = status.ok_or_else(|| transient("the engine's container has no state"))?;
        Ok(Some(Seen { id, labels, status, inspected }))
    }

    /// A container of this installation by id.
    pub(super) async fn ours(&self, id: &str) -> Result<Seen, EngineError> {
        let seen = self.look_at(id).await?.ok_or_else(|| EngineError::NotFound { what: format!("container {id}") })?;
        if labels::pod_of(&seen.labels, self.config.installation).is_none() {
            return Err(rejected(format!("container {id} does not belong to this installation")));
        }
        Ok(seen)
    }

    pub(super) async fn ensure(&self, wanted: &ContainerSpec) -> Result<(String, Effect), EngineError> {
        self.check_runtime(wanted.spec.runtime.as_deref())?;
        let name = container_name(wanted.pod);
        if let Some(seen) = self.look_at(&name).await? {
            return self.adopt(wanted, &seen).map(|id| (id, Effect::Unchanged));
        }
        self.check_set(&wanted.set).await?;
        let definitions = self.definitions(&wanted.set).await?;
        self.define_volumes(&definitions, &[]).await?;
        let declared = self.declared_volumes(&wanted.set.image).await?;
        // Nobody removes the network between making it and making the container that needs it.
        let _held = self.networks.lock().await;
        let network = self.ensure_network(&wanted.tenant).await?;
        let mut body = spec::body(
            wanted,
            &Surroundings {
                installation: self.config.installation,
                network: &network.name,
                volumes: &definitions,
                declared: &declared,
                logging: self.info.logging.as_deref(),
            },
        )?;
        if let Some(host) = &mut body.host_config
            && host.runtime.is_none()
        {
            host.runtime.clone_from(&self.config.default_runtime);
        }
        let options = CreateContainerOptionsBuilder::default().name(&name).build();
        let made = self.docker.create_container(Some(options), body).await;
        let id = made.map_err(|e| fail("make the container", e))?.id;
        if let Err(e) = self.check_made(&id, &wanted.set, &definitions).await {
            // Made a moment ago by this call and never started: there is nothing in it that anybody could miss.
            let options = RemoveContainerOptionsBuilder::default().v(true).build();
            if let Err(left) = self.docker.remove_container(&id, Some(options)).await {
                tracing::warn!(container = id, error = %left, "a container with wrong mounts is left behind");
            }
            return Err(e);
        }
        Ok((id, Effect::Created))
    }

    /// Takes the container that is there, if it is the one that is wanted.
    fn adopt(&self, wanted: &ContainerSpec, seen: &Seen) -> Result<String, EngineError> {
        if labels::pod_of(&seen.labels, self.config.installation) != Some(wanted.pod) {
            return Err(conflict(format!("the name of pod {} is taken by container {}", wanted.pod, seen.id)));
        }
        let same_set = labels::set_of(&seen.labels) == Some(wanted.set.number);
        let generation = wanted.spec_generation.to_string();
        if !same_set || seen.labels.get(labels::GENERATION) != Some(&generation) {
            return Err(conflict(format!("container {} is of another set or specification", seen.id)));
        }
        if seen.inspected.image.as_ref() != Some(&wanted.set.image) {
            return Err(conflict(format!("container {} is of another image", seen.id)));
        }
        if matches!(seen.status, ContainerStateStatusEnum::REMOVING | ContainerStateStatusEnum::DEAD) {
            return Err(transient(format!("container {} is being removed", seen.id)));
        }
        Ok(seen.id.clone())
    }

    /// Refuses a runtime that pods may not use here (D39).
    fn check_runtime(&self, runtime: Option<&str>) -> Result<(), EngineError> {
        let Some(runtime) = runtime.or(self.config.default_runtime.as_deref()) else { return Ok(()) };
        let allowed = self.config.allowed_runtimes.as_ref();
        if allowed.is_some_and(|list| !list.iter().any(|r| r == runtime)) {
            return Err(rejected(format!("the runtime {runtime} is not allowed here")));
        }
        if !self.info.runtimes.contains_key(runtime) {
            return Err(rejected(format!("the engine has no runtime {runtime}")));
        }
        Ok(())
    }

    /// Refuses a set that is not whole or not on this image (rule 3).
    async fn check_set(&self, set: &SetSpec) -> Result<(), EngineError> {
        use perennial_core::engine::Presence;
        let presence = match set.backend {
            Backend::Overlay => {
                let (storage, wanted) = (self.storage.clone(), set.clone());
                blocking(move || {
                    let marker = storage.marker(wanted.pod, wanted.number)?;
                    if marker.is_some_and(|m| m.image != wanted.image) {
                        return Err(conflict(format!(
                            "set {} of pod {} is of another image",
                            wanted.number, wanted.pod
                        )));
                    }
                    Ok(storage.presence(&wanted)?.0)
                })
                .await?
            }
            Backend::Engine => self.volumes_presence(set).await?,
        };
        match presence {
            Presence::Whole => Ok(()),
            // A declared profile may have no volume at all.
            Presence::Absent if set.volumes.is_empty() && set.backend == Backend::Engine => Ok(()),
            Presence::Absent => Err(conflict(format!("set {} of pod {} is not there", set.number, set.pod))),
            Presence::Partial { missing } => {
                Err(conflict(format!("set {} of pod {} lacks {}", set.number, set.pod, missing.join(", "))))
            }
        }
    }

    /// Reads back what the engine made of a container and its volumes.
    async fn check_made(&self, id: &str, set: &SetSpec, wanted: &[Definition]) -> Result<(), EngineError> {
        let (seen, present) = futures::try_join!(self.look_at(id), self.set_volumes(set))?;
        check_mounts(&seen.ok_or_else(|| transient("the container went away"))?, wanted, &present)
    }

    pub(super) async fn remove(&self, id: &str, permit: &DeletePermit) -> Result<Effect, EngineError> {
        let Some(seen) = self.look_at(id).await? else { return Ok(Effect::Unchanged) };
        if !permit.covers_container(&seen.id) {
            return Err(rejected(format!("the permit ({permit}) does not cover container {}", seen.id)));
        }
        let seen = self.ours(&seen.id).await?;
        // Not forced: a container that runs is not removed. Its volumes are named, so `v` would not touch them either.
        let options = RemoveContainerOptionsBuilder::default().v(false).build();
        match self.docker.remove_container(&seen.id, Some(options)).await {
            Ok(()) => {}
            Err(e) if not_found(&e) => {}
            Err(e) => return Err(fail("remove the container", e)),
        }
        if let Some(tenant) = seen.labels.get(labels::TENANT) {
            self.tidy_network(tenant).await;
        }
        Ok(Effect::Removed)
    }

    pub(super) async fn start(&self, id: &str, set: &SetSpec, generation: u64) -> Result<Effect, EngineError> {
        let seen = self.ours(id).await?;
        let same_pod = labels::pod_of(&seen.labels, self.config.installation) == Some(set.pod);
        if !same_pod || labels::set_of(&seen.labels) != Some(set.number) {
            return Err(conflict(format!("container {id} is not of set {} of pod {}", set.number, set.pod)));
        }
        if matches!(seen.status, ContainerStateStatusEnum::RUNNING | ContainerStateStatusEnum::PAUSED) {
            return Ok(Effect::Unchanged);
        }
        // Looks, none of which changes anything that another would see.
        let ((), (), definitions, mut present) = futures::try_join!(
            self.check_set(set),
            self.check_only(set, Some(&seen.id)),
            self.definitions(set),
            self.set_volumes(set)
        )?;
        if self.define_volumes(&definitions, &present).await? != Effect::Unchanged {
            present = self.set_volumes(set).await?;
        }
        check_mounts(&seen, &definitions, &present)?;
        if set.backend == Backend::Overlay {
            self.with_limits(set, Limits::lift).await?;
        }
        futures::try_join!(self.rejoin_network(&seen, &set.tenant), self.provide_mtab(set))?;
        if set.backend == Backend::Overlay {
            let (storage, set) = (self.storage.clone(), set.clone());
            blocking(move || {
                let marker = storage.marker(set.pod, set.number)?.filter(|m| m.state == MarkerState::Complete);
                let Some(mut marker) = marker else { return Err(conflict("the set is not complete")) };
                if marker.generation.is_some_and(|g| g > generation) {
                    return Err(conflict(format!(
                        "the data is of generation {}, newer than {generation}",
                        marker.generation.unwrap_or_default()
                    )));
                }
                marker.generation = Some(generation);
                storage.write_marker(set.pod, &marker)
            })
            .await?;
        }
        match self.docker.start_container(&seen.id, None::<StartContainerOptions>).await {
            Ok(()) => Ok(Effect::Updated),
            Err(e) if not_modified(&e) => Ok(Effect::Unchanged),
            Err(e) => Err(failed_start(e)),
        }
    }

    pub(super) async fn stop(&self, id: &str, grace_seconds: u32) -> Result<Effect, EngineError> {
        let seen = self.ours(id).await?;
        match seen.status {
            ContainerStateStatusEnum::RUNNING | ContainerStateStatusEnum::RESTARTING => {}
            // A frozen process cannot end by itself.
            ContainerStateStatusEnum::PAUSED => {
                self.unfreeze(&seen.id).await?;
            }
            _ => return Ok(Effect::Unchanged),
        }
        let grace = i32::try_from(grace_seconds).unwrap_or(i32::MAX);
        let options = StopContainerOptionsBuilder::default().t(grace).build();
        let docker = self.docker.clone().with_timeout(REQUEST + std::time::Duration::from_secs(grace_seconds.into()));
        match docker.stop_container(&seen.id, Some(options)).await {
            Ok(()) => {}
            Err(e) if not_modified(&e) => return Ok(Effect::Unchanged),
            Err(e) => return Err(fail("stop the container", e)),
        }
        let after = self.look_at(&seen.id).await?;
        match after.map(|s| s.status) {
            Some(ContainerStateStatusEnum::RUNNING | ContainerStateStatusEnum::PAUSED) => {
                Err(transient(format!("container {id} does not end")))
            }
            _ => Ok(Effect::Updated),
        }
    }

    pub(super) async fn freeze(&self, id: &str) -> Result<Effect, EngineError> {
        let seen = self.ours(id).await?;
        match seen.status {
            ContainerStateStatusEnum::PAUSED => Ok(Effect::Unchanged),
            ContainerStateStatusEnum::RUNNING => {
                self.docker.pause_container(&seen.id).await.map_err(|e| fail("freeze the container", e))?;
                Ok(Effect::Updated)
            }
            _ => Err(conflict(format!("container {id} does not run"))),
        }
    }

    pub(super) async fn unfreeze(&self, id: &str) -> Result<Effect, EngineError> {
        let seen = self.ours(id).await?;
        if seen.status != ContainerStateStatusEnum::PAUSED {
            return Ok(Effect::Unchanged);
        }
        self.docker.unpause_container(&seen.id).await.map_err(|e| fail("unfreeze the container", e))?;
        Ok(Effect::Updated)
    }
}

/// Compares what the engine made of the mounts with what was asked for (rule 4), and refuses one that is nobody's.
fn check_mounts(seen: &Seen, wanted: &[Definition], present: &[EngineVolume]) -> Result<(), EngineError> {
    let mounts = seen.inspected.mounts.as_deref().unwrap_or_default();
    for mount in mounts {
        let is_ours = wanted
            .iter()
            .any(|d| mount.name.as_ref() == Some(&d.name) && mount.destination.as_ref() == Some(&d.target));
        let kind = mount.typ.as_deref().unwrap_or_default();
        if !is_ours && kind != "tmpfs" {
            let at = mount.destination.as_deref().unwrap_or_default();
            return Err(rejected(format!("the container would have a mount at {at} that is none of the pod's")));
        }
    }
    for definition in wanted {
        if !mounts.iter().any(|m| m.name.as_ref() == Some(&definition.name) && m.rw == Some(true)) {
            return Err(conflict(format!("the container does not mount {}", definition.name)));
        }
        if !definition.is_among(present) {
            return Err(conflict(format!("the volume {} is not as it was asked for", definition.name)));
        }
    }
    Ok(())
}

/// A program that is not there or cannot be run, a user whom the image does not know, and a port that somebody has are the
/// specification's fault; the engine answers 404 or 500 for some of it.
fn failed_start(error: Bollard) -> EngineError {
    if let Bollard::DockerResponseServerError { message, .. } = &error {
        let lower = message.to_ascii_lowercase();
        let missing = lower.contains("executable file not found") || lower.contains("exec format error");
        // Whoever has the port may keep it for ever; a pod that is wanted running is tried again all the same.
        let taken = lower.contains("port is already allocated") || lower.contains("address already in use");
        let nobody = lower.contains("unable to find user") || lower.contains("unable to find group");
        if missing || nobody || taken || (lower.contains("oci runtime") && lower.contains("no such file or directory"))
        {
            return rejected(format!("start the container: {}", message.trim()));
        }
    }
    fail("start the container", error)
}
