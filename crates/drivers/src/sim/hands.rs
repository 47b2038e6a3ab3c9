//! What the simulator has instead of processes, administrators and bad luck.
//!
//! None of this goes through the engine's calls, their faults, or their records.

use std::collections::BTreeMap;
use std::fs;
use std::io;

use perennial_core::engine::EngineError;
use perennial_core::id::PodId;
use perennial_core::spec::{Backend, Resources, is_at_or_below};
use perennial_core::volume::{NEVER_PERSISTED, SetNumber};

use super::container::{Container, Foreign, ForeignKind, KILLED, Life, Starter};
use super::sets::ENGINE_FILES;
use super::tree::{View, remove_any};
use super::{Shared, SimEngine, State};

/// Why hands could not do it.
#[derive(Debug, thiserror::Error)]
pub enum HandError {
    /// The pod has no container.
    #[error("the pod has no container")]
    NoContainer,
    /// Its container does not run, or is frozen.
    #[error("the container does not run")]
    NotRunning,
    /// Nothing there survives, so tests have no business with it.
    #[error("{0} never persists")]
    NeverPersisted(String),
    /// The file system of the pod said no.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The engine said no.
    #[error("{0}")]
    Engine(#[from] EngineError),
}

/// A path of the pod, resolved to a view and a path in it.
fn locate(shared: &Shared, state: &State, container: &Container, path: &str) -> Result<(View, String), HandError> {
    let mut path = format!("/{}", path.trim_matches('/'));
    let top = path[1..].split('/').next().unwrap_or_default().to_owned();
    if let Some(target) = state.images.get(&container.image).and_then(|i| i.link(&format!("/{top}"))) {
        let rest = path[1 + top.len()..].to_owned();
        path = format!("/{}{rest}", target.trim_start_matches('/'));
    }
    let engine_file = ENGINE_FILES.iter().any(|f| path == format!("/etc/{f}"));
    if engine_file || NEVER_PERSISTED.iter().any(|n| is_at_or_below(&path, &format!("/{n}"))) {
        return Err(HandError::NeverPersisted(path));
    }
    let holds = |base: &str| is_at_or_below(&path, base);
    let mount = container.mounts.iter().filter(|m| holds(&m.path)).max_by_key(|m| m.path.len());
    Ok(match mount {
        Some(mount) => {
            let rel = path[mount.path.len()..].trim_start_matches('/').to_owned();
            (volume_view(shared, state, container, &mount.volume, &mount.path), rel)
        }
        None => (layer_view(shared, container), path[1..].to_owned()),
    })
}

fn volume_view(shared: &Shared, state: &State, container: &Container, volume: &str, mount_path: &str) -> View {
    let backend = container.backend();
    let set = shared.set_directory(container.pod, backend, container.set);
    let lower = (backend == Backend::Overlay).then(|| shared.lower(state, &container.image, mount_path));
    View { upper: Shared::tree_directory(&set, backend, volume), lower }
}

fn layer_view(shared: &Shared, container: &Container) -> View {
    View { upper: shared.layer_directory(&container.id), lower: Some(shared.rootfs(&container.image)) }
}

fn own(state: &State, pod: PodId) -> Result<&Container, HandError> {
    state.by_pod.get(&pod).and_then(|id| state.containers.get(id)).ok_or(HandError::NoContainer)
}

fn running(state: &State, pod: PodId) -> Result<&Container, HandError> {
    let container = own(state, pod)?;
    if container.life == Life::Running { Ok(container) } else { Err(HandError::NotRunning) }
}

pub(super) fn write_as_pod(
    shared: &Shared,
    state: &State,
    pod: PodId,
    path: &str,
    bytes: &[u8],
) -> Result<(), HandError> {
    let (view, rel) = locate(shared, state, running(state, pod)?, path)?;
    Ok(view.write(&rel, bytes)?)
}

/// As the pod itself.
impl SimEngine {
    /// Writes a file at an absolute path of the pod, making the directories above it.
    ///
    /// # Errors
    /// [`HandError::NotRunning`] unless the container runs and is not frozen.
    pub fn write(&self, pod: PodId, path: &str, bytes: impl AsRef<[u8]>) -> Result<(), HandError> {
        write_as_pod(&self.shared, &self.lock(), pod, path, bytes.as_ref())
    }

    /// Makes a directory and those above it.
    ///
    /// # Errors
    /// As [`SimEngine::write`].
    pub fn make_directory(&self, pod: PodId, path: &str) -> Result<(), HandError> {
        let state = self.lock();
        let (view, rel) = locate(&self.shared, &state, running(&state, pod)?, path)?;
        Ok(view.make_directory(&rel)?)
    }

    /// Removes a file or a directory with everything in it; tells whether there was one.
    ///
    /// # Errors
    /// As [`SimEngine::write`]; a mount point itself is busy, as in Docker.
    pub fn remove(&self, pod: PodId, path: &str) -> Result<bool, HandError> {
        let state = self.lock();
        let (view, rel) = locate(&self.shared, &state, running(&state, pod)?, path)?;
        if rel.is_empty() {
            return Err(HandError::Io(io::Error::from(io::ErrorKind::ResourceBusy)));
        }
        Ok(view.remove(&rel)?)
    }

    /// Reads a file as the pod sees it, whether it runs or not; `None` when there is no such file.
    ///
    /// # Errors
    /// [`HandError::NoContainer`], because without one there is no view.
    pub fn read(&self, pod: PodId, path: &str) -> Result<Option<Vec<u8>>, HandError> {
        let state = self.lock();
        let (view, rel) = locate(&self.shared, &state, own(&state, pod)?, path)?;
        Ok(view.read(&rel)?)
    }

    /// Every regular file as the pod sees it, whether it runs or not, the image's included.
    ///
    /// # Errors
    /// As [`SimEngine::read`].
    pub fn files(&self, pod: PodId) -> Result<BTreeMap<String, Vec<u8>>, HandError> {
        let state = self.lock();
        let container = own(&state, pod)?;
        let engine = ENGINE_FILES.map(|f| format!("/etc/{f}"));
        let virtual_paths = NEVER_PERSISTED.map(|n| format!("/{n}"));
        let mut found = BTreeMap::new();
        let views = container.mounts.iter().map(|mount| {
            (mount.path.as_str(), volume_view(&self.shared, &state, container, &mount.volume, &mount.path))
        });
        for (base, view) in views.chain([("", layer_view(&self.shared, container))]) {
            let hidden = |path: &str| {
                container.mounts.iter().any(|m| m.path == path)
                    || virtual_paths.iter().any(|p| p == path)
                    || engine.iter().any(|p| p == path)
            };
            view.files(base, &hidden, &mut found)?;
        }
        Ok(found)
    }

    /// Says a line, as the pod's own program.
    ///
    /// # Errors
    /// As [`SimEngine::write`].
    pub fn say(&self, pod: PodId, line: &str) -> Result<(), HandError> {
        let mut state = self.lock();
        let id = running(&state, pod)?.id.clone();
        state.said.add(&id, self.shared.clock.now(), [line.to_owned()]);
        Ok(())
    }

    /// Holds so much memory from here on, until its next start.
    ///
    /// # Errors
    /// As [`SimEngine::write`].
    pub fn hold_memory(&self, pod: PodId, bytes: u64) -> Result<(), HandError> {
        let mut state = self.lock();
        let id = running(&state, pod)?.id.clone();
        Ok(state.change(&self.shared, &id, |container| container.holds = bytes)?)
    }

    /// Ends the pod's processes, as a crash would.
    ///
    /// # Errors
    /// [`HandError::NotRunning`] unless it is live.
    pub fn crash(&self, pod: PodId, code: i64, cause: Cause) -> Result<(), HandError> {
        let mut state = self.lock();
        let container = own(&state, pod)?;
        if !container.is_live() {
            return Err(HandError::NotRunning);
        }
        let id = container.id.clone();
        Ok(state.change(&self.shared, &id, |c| c.life = Life::Exited { code, oom: cause == Cause::OutOfMemory })?)
    }
}

/// Why a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// By itself.
    Itself,
    /// The kernel needed its memory.
    OutOfMemory,
}

/// As somebody with access to the host.
impl SimEngine {
    /// The id of the pod's container.
    #[must_use]
    pub fn container_of(&self, pod: PodId) -> Option<String> {
        self.lock().by_pod.get(&pod).cloned()
    }

    /// What the pod's container is limited to; `None` when there is none.
    #[must_use]
    pub fn limits_of(&self, pod: PodId) -> Option<Resources> {
        own(&self.lock(), pod).ok().map(|container| container.limits.resources())
    }

    /// Bytes that the pod's newest set is limited to.
    #[must_use]
    pub fn limit_of(&self, pod: PodId) -> Option<u64> {
        self.lock().limits.iter().rev().find(|((of, _), _)| *of == pod).map(|(_, bytes)| *bytes)
    }

    /// The pod of a container.
    #[must_use]
    pub fn pod_of(&self, container: &str) -> Option<PodId> {
        self.lock().containers.get(container).map(|c| c.pod)
    }

    /// Removes the container with its layer, as `docker rm -f` would.
    ///
    /// # Errors
    /// [`HandError::NoContainer`].
    pub fn kill_container_outside(&self, pod: PodId) -> Result<(), HandError> {
        let mut state = self.lock();
        let id = own(&state, pod)?.id.clone();
        Ok(state.forget(&self.shared, &id)?)
    }

    /// Starts the pod's container, as `docker start` would: without a generation.
    ///
    /// # Errors
    /// [`HandError::NoContainer`]; live ones stay as they are.
    pub fn start_outside(&self, pod: PodId) -> Result<(), HandError> {
        let mut state = self.lock();
        let container = own(&state, pod)?;
        if container.is_live() {
            return Ok(());
        }
        let id = container.id.clone();
        Ok(self.shared.begin(&mut state, &id, Starter::Outsider)?)
    }

    /// Makes a container of somebody else's that refers to a set of the pod; returns its id.
    pub fn foreign_container(&self, pod: PodId, set: SetNumber) -> String {
        let mut state = self.lock();
        state.made += 1;
        let id = format!("foreign-{}", state.made);
        state.foreign.entry(pod).or_default().push(Foreign { id: id.clone(), set, kind: ForeignKind::Container });
        state.changed(pod);
        id
    }

    /// Lets a process of the pod outlive its container, with the set still mounted; returns how it is called.
    pub fn lingering_process(&self, pod: PodId, set: SetNumber) -> String {
        let mut state = self.lock();
        state.made += 1;
        let id = format!("process {}", state.made);
        state.foreign.entry(pod).or_default().push(Foreign { id: id.clone(), set, kind: ForeignKind::Process });
        id
    }

    /// Writes a file into a volume as such a process.
    ///
    /// # Errors
    /// [`HandError::NotRunning`] when there is no such process, else what the file system said.
    pub fn write_lingering(
        &self,
        process: &str,
        pod: PodId,
        backend: Backend,
        (volume, path): (&str, &str),
        bytes: impl AsRef<[u8]>,
    ) -> Result<(), HandError> {
        let state = self.lock();
        let found = state.foreign.get(&pod).into_iter().flatten().find(|f| f.id == process);
        let set = found.ok_or(HandError::NotRunning)?.set;
        let directory = self.shared.set_directory(pod, backend, set);
        let view = View { upper: Shared::tree_directory(&directory, backend, volume), lower: None };
        Ok(view.write(path, bytes.as_ref())?)
    }

    /// Removes such a container, or ends such a process.
    pub fn foreign_remove(&self, id: &str) {
        let mut state = self.lock();
        for list in state.foreign.values_mut() {
            list.retain(|f| f.id != id);
        }
        state.foreign.retain(|_, list| !list.is_empty());
    }

    /// Deletes one volume's bytes and nothing else.
    ///
    /// # Errors
    /// What the file system said.
    pub fn remove_volume_data_outside(&self, pod: PodId, set: SetNumber, volume: &str) -> io::Result<()> {
        let _state = self.lock();
        for backend in [Backend::Overlay, Backend::Engine] {
            remove_any(&self.shared.set_directory(pod, backend, set).join(volume))?;
        }
        Ok(())
    }

    /// Deletes a whole set with its marker.
    ///
    /// # Errors
    /// What the file system said.
    pub fn remove_set_outside(&self, pod: PodId, set: SetNumber) -> io::Result<()> {
        let _state = self.lock();
        for backend in [Backend::Overlay, Backend::Engine] {
            remove_any(&self.shared.set_directory(pod, backend, set))?;
        }
        Ok(())
    }

    /// Removes the engine's definition of an overlay set's volumes; of an engine set the definition is the data.
    ///
    /// # Errors
    /// What the file system said.
    pub fn remove_definition_outside(&self, pod: PodId, set: SetNumber, volume: &str) -> io::Result<()> {
        let mut state = self.lock();
        state.lost_definitions.insert((pod, set));
        remove_any(&self.shared.set_directory(pod, Backend::Engine, set).join(volume))
    }

    /// Restarts the engine or its host: every live container has ended with 137, watches end.
    ///
    /// # Errors
    /// What the file system said.
    pub fn restart_engine(&self) -> Result<(), HandError> {
        let mut state = self.lock();
        let live: Vec<String> = state.containers.values().filter(|c| c.is_live()).map(|c| c.id.clone()).collect();
        for id in live {
            state.change(&self.shared, &id, |c| c.life = Life::Exited { code: KILLED, oom: false })?;
        }
        state.watchers.clear();
        Ok(())
    }

    /// Loses everything: containers, volumes, images. What the registry has stays.
    ///
    /// # Errors
    /// What the file system said.
    pub fn wipe(&self) -> io::Result<()> {
        let mut state = self.lock();
        state.images.clear();
        state.references.clear();
        state.containers.clear();
        state.by_pod.clear();
        state.foreign.clear();
        state.lost_definitions.clear();
        state.said.forget_all();
        state.watchers.clear();
        for directory in ["images", "pods", "volumes", "containers", "trash"] {
            remove_any(&self.shared.root.join(directory))?;
        }
        for directory in ["images/empty", "pods", "volumes", "containers", "trash"] {
            fs::create_dir_all(self.shared.root.join(directory))?;
        }
        Ok(())
    }
}
