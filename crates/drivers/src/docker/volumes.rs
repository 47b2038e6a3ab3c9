//! Sets of the engine's own volumes: made with labels, seeded from the image once, then mounted without copy-up.
//!
//! One more volume without content marks a set complete. It keeps a complete set from being made anew; that it is
//! missing proves nothing, because people prune volumes that no container uses.

use std::path::PathBuf;

use bollard::models::{Mount, MountType, MountVolumeOptions, Volume as EngineVolume, VolumeCreateRequest};
use bollard::query_parameters::RemoveVolumeOptions;
use perennial_core::engine::{Effect, EngineError, Fill, Presence, SetAccess, SetSpec, VolumePath, VolumeUsage};
use perennial_core::spec::Backend;
use perennial_core::volume::engine_name;

use super::client::{blocking, conflict, fail, found, io, not_found, rejected, transient};
use super::overlay::{Definition, excluded};
use super::{DockerEngine, OwnVolumes, VolumeAccess, labels, posix, scratch, tree};

impl DockerEngine {
    /// Makes the set's volumes anew and seeds them when asked to.
    pub(super) async fn volumes_prepare(&self, set: &SetSpec, fill: Fill) -> Result<Effect, EngineError> {
        let left = self.set_volumes(set).await?;
        if left.iter().any(is_marker) {
            return Err(conflict(format!("set {} of pod {} is complete and is not made anew", set.number, set.pod)));
        }
        self.check_unused(set).await?;
        for volume in left {
            self.remove_volume(&volume.name).await?;
        }
        let definitions = self.definitions(set).await?;
        self.define_volumes(&definitions, &[]).await?;
        if fill == Fill::Image {
            self.seed(set, &definitions).await?;
        }
        Ok(Effect::Created)
    }

    /// Lets the engine copy the image's directories into the new volumes: it does so when a container is made that
    /// mounts them, and leaves a volume empty whose directory the image lacks.
    async fn seed(&self, set: &SetSpec, definitions: &[Definition]) -> Result<(), EngineError> {
        let mount = |d: &Definition| Mount {
            target: Some(d.target.clone()),
            source: Some(d.name.clone()),
            typ: Some(MountType::VOLUME),
            volume_options: Some(MountVolumeOptions { no_copy: Some(false), ..MountVolumeOptions::default() }),
            ..Mount::default()
        };
        let name = format!("seed-{}", scratch::token());
        let made = self.scratch_create(&name, &set.image, definitions.iter().map(mount).collect(), None).await;
        self.scratch_remove(&name).await?;
        made?;
        // The engine does not sync what it copied.
        for path in self.local_mountpoints(set).await?.into_iter().flatten().flatten() {
            blocking(move || tree::sync_all(&path).map_err(io("sync a seeded volume"))).await?;
        }
        Ok(())
    }

    /// Marks the set complete.
    pub(super) async fn volumes_complete(&self, set: &SetSpec) -> Result<Effect, EngineError> {
        let present = self.set_volumes(set).await?;
        if present.iter().any(is_marker) {
            return Ok(Effect::Unchanged);
        }
        let missing = missing(self, set, &present);
        if !missing.is_empty() {
            return Err(conflict(format!("set {} of pod {} lacks {}", set.number, set.pod, missing.join(", "))));
        }
        let mut labels = labels::of_set(self.config.installation, &set.tenant, set.pod, set.number);
        labels.insert(labels::MARKER.to_owned(), "complete".to_owned());
        let request = VolumeCreateRequest {
            // A dot is in no volume's name, so this can be no volume of the pod.
            name: Some(format!("{}.complete", engine_name(&self.config.volume_prefix, set.pod, set.number, "set"))),
            driver: Some("local".to_owned()),
            labels: Some(labels),
            ..VolumeCreateRequest::default()
        };
        let made = self.docker.create_volume(request).await.map_err(|e| fail("mark the set complete", e))?;
        if !is_marker(&made) {
            return Err(conflict(format!("a volume {} exists that is not this set's marker", made.name)));
        }
        Ok(Effect::Updated)
    }

    /// Removes the set's volumes; the caller holds the permit.
    pub(super) async fn volumes_delete(&self, set: &SetSpec) -> Result<Effect, EngineError> {
        self.check_unused(set).await?;
        let mut volumes = self.set_volumes(set).await?;
        // The marker goes last: a set that is half deleted is not made anew by mistake.
        volumes.sort_by_key(is_marker);
        let effect = if volumes.is_empty() { Effect::Unchanged } else { Effect::Removed };
        for volume in volumes {
            self.remove_volume(&volume.name).await?;
        }
        Ok(effect)
    }

    async fn remove_volume(&self, name: &str) -> Result<(), EngineError> {
        match self.docker.remove_volume(name, None::<RemoveVolumeOptions>).await {
            Ok(()) => Ok(()),
            Err(e) if not_found(&e) => Ok(()),
            Err(e) => Err(fail("remove the volume", e)),
        }
    }

    /// Whether the set's volumes are there, by name and label.
    pub(super) async fn volumes_presence(&self, set: &SetSpec) -> Result<Presence, EngineError> {
        let present = self.set_volumes(set).await?;
        let missing = missing(self, set, &present);
        if missing.is_empty() && !set.volumes.is_empty() {
            return Ok(Presence::Whole);
        }
        // A set without volumes is there when its marker is.
        if set.volumes.is_empty() {
            return Ok(if present.iter().any(is_marker) { Presence::Whole } else { Presence::Absent });
        }
        if present.is_empty() { Ok(Presence::Absent) } else { Ok(Presence::Partial { missing }) }
    }

    /// How the bytes are reached: by the engine's own directories where they are ours to see.
    pub(super) async fn volumes_access(&self, set: &SetSpec) -> Result<SetAccess, EngineError> {
        if self.set_volumes(set).await?.is_empty() && !set.volumes.is_empty() {
            return Err(EngineError::NotFound { what: format!("set {} of pod {}", set.number, set.pod) });
        }
        let Some(mountpoints) = self.reachable_mountpoints(set).await? else { return self.mover_access(set).await };
        let access = set.volumes.iter().zip(mountpoints).filter_map(|(volume, path)| {
            Some(VolumePath {
                name: volume.name.clone(),
                mount_path: volume.mount_path.clone(),
                path: path?,
                lower: None,
                exclude: excluded(set, volume),
            })
        });
        Ok(SetAccess::Local(access.collect()))
    }

    /// What each volume takes up: of an overlay the pod's changes.
    pub(super) async fn usage(&self, set: &SetSpec) -> Result<Vec<VolumeUsage>, EngineError> {
        let paths = match set.backend {
            Backend::Overlay => {
                self.storage.check()?;
                set.volumes.iter().map(|v| Some(self.storage.upper(set, &v.name))).collect()
            }
            Backend::Engine => self.reachable_mountpoints(set).await?.unwrap_or_else(|| vec![None; set.volumes.len()]),
        };
        let names: Vec<String> = set.volumes.iter().map(|v| v.name.clone()).collect();
        let measure = |path: PathBuf| {
            // A number is a courtesy: what cannot be measured is unknown.
            tree::usage(&path).inspect_err(|e| tracing::debug!(path = %path.display(), error = %e, "measure")).ok()
        };
        blocking(move || {
            let measured = names.into_iter().zip(paths);
            Ok(measured.map(|(name, path)| VolumeUsage { name, bytes: path.and_then(measure) }).collect())
        })
        .await
    }

    /// Where the engine keeps the set's volumes, in their order, `None` for one that is missing; nothing when this
    /// process does not see them.
    async fn local_mountpoints(&self, set: &SetSpec) -> Result<Option<Vec<Option<PathBuf>>>, EngineError> {
        if !self.shares_files().await? {
            return Ok(None);
        }
        let mut paths = Vec::new();
        for definition in self.definitions(set).await? {
            let inspected = self.docker.inspect_volume(&definition.name).await;
            let volume = found("look at the volume", inspected)?.filter(|v| definition.matches(v));
            let path = volume.map(|v| PathBuf::from(v.mountpoint));
            if let Some(path) = path.as_ref().filter(|p| !p.is_dir()) {
                return Err(transient(format!("{} is not reachable", path.display())));
            }
            paths.push(path);
        }
        Ok(Some(paths))
    }

    /// The same, as far as the configuration lets this process use them.
    async fn reachable_mountpoints(&self, set: &SetSpec) -> Result<Option<Vec<Option<PathBuf>>>, EngineError> {
        match self.config.volume_access {
            VolumeAccess::Mover => Ok(None),
            // Owners on the host are not those that the pods see; in a mover they are.
            VolumeAccess::Auto if self.info.remapped => Ok(None),
            VolumeAccess::Auto => self.local_mountpoints(set).await,
            VolumeAccess::Direct => match self.local_mountpoints(set).await? {
                None => {
                    Err(rejected("the engine's volumes are not directories of this host, and movers are not allowed"))
                }
                reached => Ok(reached),
            },
        }
    }

    /// Whether this process sees the engine's files.
    pub(super) async fn shares_files(&self) -> Result<bool, EngineError> {
        Ok(self.own_volumes().await?.shared)
    }

    /// Whether databases are safe on the engine's own volumes; those that are not directories here are not tried.
    pub(super) async fn volumes_tried(&self) -> Result<posix::Trial, EngineError> {
        Ok(self.own_volumes().await?.trial.clone())
    }

    /// Tries one of the engine's own volumes: a new one with a random name.
    async fn own_volumes(&self) -> Result<&OwnVolumes, EngineError> {
        self.own_volumes
            .get_or_try_init(|| async {
                let name = format!("perennial-scratch-share-{}", scratch::token());
                let request = VolumeCreateRequest {
                    name: Some(name.clone()),
                    driver: Some("local".to_owned()),
                    labels: Some(labels::of_scratch(self.config.installation, &name)),
                    ..VolumeCreateRequest::default()
                };
                let made = self.docker.create_volume(request).await.map_err(|e| fail("make a scratch volume", e))?;
                let at = PathBuf::from(&made.mountpoint);
                let tried = blocking(move || {
                    let shared = at.is_dir();
                    let trial = if shared { posix::tried(&at) } else { posix::Trial::Kept };
                    Ok(OwnVolumes { shared, trial })
                });
                let tried = tried.await?;
                self.remove_volume(&name).await?;
                Ok(tried)
            })
            .await
    }
}

fn is_marker(volume: &EngineVolume) -> bool {
    volume.labels.contains_key(labels::MARKER)
}

/// Names of the set's volumes that are not among these.
fn missing(engine: &DockerEngine, set: &SetSpec, present: &[EngineVolume]) -> Vec<String> {
    let is_there = |name: &str, volume: &str| {
        present.iter().any(|v| v.name == name && v.labels.get(labels::VOLUME).is_some_and(|l| l == volume))
    };
    let pairs = set.volumes.iter().zip(engine.names(set));
    pairs.filter(|(v, name)| !is_there(name, &v.name)).map(|(v, _)| v.name.clone()).collect()
}
