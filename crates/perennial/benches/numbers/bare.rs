//! The same steps with nothing but calls of the engine's API: what a short script would do.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bollard::Docker;
use bollard::models::{
    ContainerCreateBody, EndpointSettings, HostConfig, Mount, MountType, MountVolumeOptions, NetworkingConfig,
    VolumeCreateRequest,
};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, InspectContainerOptions, RemoveContainerOptionsBuilder, RemoveVolumeOptions,
    StartContainerOptions, StopContainerOptionsBuilder,
};

use super::installation::VOLUMES;

/// An engine, and a container of Perennial's that bare ones are made like.
pub struct Bare {
    docker: Docker,
    runtime: tokio::runtime::Runtime,
    label: (String, String),
}

/// What a bare container is made like: everything but its volumes.
#[derive(Clone)]
pub struct Model {
    body: ContainerCreateBody,
}

/// A container that was made.
pub struct Made {
    id: String,
    volumes: Vec<String>,
}

impl Bare {
    pub fn connect(host: &str, label: (String, String)) -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let docker =
            runtime.block_on(async { Docker::connect_with_host(host).unwrap().negotiate_version().await.unwrap() });
        Self { docker, runtime, label }
    }

    /// Takes image, command, network, limits and security settings over from a container.
    pub fn model(&self, container: &str) -> Model {
        let seen = self.runtime.block_on(self.docker.inspect_container(container, None::<InspectContainerOptions>));
        let seen = seen.unwrap();
        let (config, host) = (seen.config.unwrap(), seen.host_config.unwrap());
        let network = host.network_mode.clone().unwrap();
        let mounts = host.mounts.unwrap_or_default().into_iter().filter(|m| m.typ == Some(MountType::TMPFS));
        Model {
            body: ContainerCreateBody {
                image: config.image,
                cmd: config.cmd,
                entrypoint: config.entrypoint,
                env: config.env,
                labels: Some(HashMap::from([self.label.clone()])),
                host_config: Some(HostConfig { mounts: Some(mounts.collect()), binds: None, ..host }),
                networking_config: Some(NetworkingConfig {
                    endpoints_config: Some(HashMap::from([(network, EndpointSettings::default())])),
                }),
                ..ContainerCreateBody::default()
            },
        }
    }

    /// Makes the volumes, then a container that copies the image's files into them, and starts it.
    pub fn create(&self, model: &Model, name: &str, volumes: usize) -> (Made, Duration) {
        let names: Vec<String> = (0..volumes).map(|n| format!("{name}-{n}")).collect();
        let mut body = model.body.clone();
        let mounts = body.host_config.as_mut().and_then(|h| h.mounts.as_mut()).unwrap();
        mounts.extend(names.iter().zip(VOLUMES).map(|(name, target)| Mount {
            target: Some(target.to_owned()),
            source: Some(name.clone()),
            typ: Some(MountType::VOLUME),
            volume_options: Some(MountVolumeOptions { no_copy: Some(false), ..MountVolumeOptions::default() }),
            ..Mount::default()
        }));
        let label = HashMap::from([self.label.clone()]);
        let began = Instant::now();
        let id = self.runtime.block_on(async {
            for name in &names {
                let request = VolumeCreateRequest {
                    name: Some(name.clone()),
                    driver: Some("local".to_owned()),
                    labels: Some(label.clone()),
                    ..VolumeCreateRequest::default()
                };
                self.docker.create_volume(request).await.unwrap();
            }
            let options = CreateContainerOptionsBuilder::default().name(name).build();
            let id = self.docker.create_container(Some(options), body).await.unwrap().id;
            self.docker.start_container(&id, None::<StartContainerOptions>).await.unwrap();
            id
        });
        (Made { id, volumes: names }, began.elapsed())
    }

    pub fn stop(&self, made: &Made) -> Duration {
        let options = StopContainerOptionsBuilder::default().t(10).build();
        let began = Instant::now();
        self.runtime.block_on(self.docker.stop_container(&made.id, Some(options))).unwrap();
        began.elapsed()
    }

    pub fn start(&self, made: &Made) -> Duration {
        let began = Instant::now();
        self.runtime.block_on(self.docker.start_container(&made.id, None::<StartContainerOptions>)).unwrap();
        began.elapsed()
    }

    pub fn remove(&self, made: Made) {
        self.runtime.block_on(async {
            let options = RemoveContainerOptionsBuilder::default().force(true).build();
            self.docker.remove_container(&made.id, Some(options)).await.unwrap();
            for volume in &made.volumes {
                self.docker.remove_volume(volume, None::<RemoveVolumeOptions>).await.unwrap();
            }
        });
    }
}
