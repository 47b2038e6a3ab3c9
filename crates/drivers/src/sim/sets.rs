//! Volume sets: directories and one marker, and nothing in memory.
//!
//! Overlay sets lie at `pods/<pod>/s<N>/<volume>/upper` above the image's tree, engine volumes whole at
//! `volumes/<pod>/s<N>/<volume>`. The marker is made first and says `preparing` until the set is complete; its generation is what
//! the last start wrote. For engine volumes it stands for what an engine knows itself, so its generation is not shown.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use perennial_core::engine::{
    Copying, Effect, EngineError, Fill, ObservedSet, Owned, Presence, SetAccess, SetLimit, SetSpec, VolumePath,
    VolumeUsage,
};
use perennial_core::id::PodId;
use perennial_core::permit::{DeletePermit, Ground};
use perennial_core::spec::{Backend, is_at_or_below};
use perennial_core::volume::{SetNumber, Volume};
use serde::{Deserialize, Serialize};

use super::faults::Fate;
use super::tree::{bytes, copy_content, copy_layer, look, remove_any, set_mtime};
use super::{Deleted, Deletion, Shared, State, broken, conflict, not_found, overwrite, rejected};

/// No volume can be called so: names have no dots.
const MARKER: &str = "marker.json";
/// How a missing marker is called among missing volumes.
const MARKER_NAME: &str = "marker";
/// Files of `/etc` that an engine makes.
pub(super) const ENGINE_FILES: [&str; 4] = ["hostname", "hosts", "mtab", "resolv.conf"];
const IMAGE_TIME: i64 = 1_577_836_800;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Progress {
    Preparing,
    Complete,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Marker {
    pub state: Progress,
    pub generation: Option<u64>,
}

impl Shared {
    fn backend_directory(&self, backend: Backend) -> PathBuf {
        self.root.join(match backend {
            Backend::Overlay => "pods",
            Backend::Engine => "volumes",
        })
    }

    pub(super) fn set_directory(&self, pod: PodId, backend: Backend, number: SetNumber) -> PathBuf {
        self.backend_directory(backend).join(pod.to_string()).join(format!("s{number}"))
    }

    /// The directory that holds a volume's bytes: the changes, or the whole tree.
    pub(super) fn tree_directory(set: &Path, backend: Backend, volume: &str) -> PathBuf {
        let directory = set.join(volume);
        match backend {
            Backend::Overlay => directory.join("upper"),
            Backend::Engine => directory,
        }
    }

    /// The image's directory below an overlay volume.
    pub(super) fn lower(&self, state: &State, image: &str, mount_path: &str) -> PathBuf {
        match state.images.get(image).and_then(|i| i.directory(mount_path)) {
            Some(_) => self.rootfs(image).join(mount_path.trim_start_matches('/')),
            None => self.empty_lower(),
        }
    }

    pub(super) fn marker(directory: &Path) -> Result<Option<Marker>, EngineError> {
        match fs::read(directory.join(MARKER)) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|e| rejected(format!("the marker in {} is unreadable: {e}", directory.display()))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(broken("read marker", &e)),
        }
    }

    pub(super) fn write_marker(directory: &Path, marker: &Marker) -> Result<(), EngineError> {
        let bytes = serde_json::to_vec(marker).map_err(|e| rejected(format!("write marker: {e}")))?;
        overwrite(&directory.join(MARKER), &bytes).map_err(|e| broken("write marker", &e))
    }

    /// What is there of a set; a marker that still says `preparing` is as good as none.
    pub(super) fn observe_set(&self, set: &SetSpec) -> Result<ObservedSet, EngineError> {
        let directory = self.set_directory(set.pod, set.backend, set.number);
        let marker = Self::marker(&directory)?;
        let mut missing = Vec::new();
        for volume in &set.volumes {
            let tree = Self::tree_directory(&directory, set.backend, &volume.name);
            if !look(&tree).map_err(|e| broken("look at volume", &e))?.is_some_and(|m| m.is_dir()) {
                missing.push(volume.name.clone());
            }
        }
        let nothing = missing.len() == set.volumes.len() && marker.is_none();
        if !marker.as_ref().is_some_and(|m| m.state == Progress::Complete) {
            missing.push(MARKER_NAME.to_owned());
        }
        let presence = match (nothing, missing.is_empty()) {
            (true, _) => Presence::Absent,
            (false, true) => Presence::Whole,
            (false, false) => Presence::Partial { missing },
        };
        let generation = marker.filter(|_| set.backend == Backend::Overlay).and_then(|m| m.generation);
        Ok(ObservedSet { number: set.number, presence, generation, limit: None })
    }

    /// What limits the set.
    pub(super) fn limit(state: &State, set: &SetSpec) -> Option<SetLimit> {
        let bytes = state.limits.get(&(set.pod, set.number)).copied();
        (set.backend == Backend::Overlay).then_some(SetLimit { bytes, enforced: bytes.is_some() })
    }

    /// Notes the limit; nobody is kept from writing more.
    pub(super) fn set_limit(
        &self,
        state: &mut State,
        set: &SetSpec,
        bytes: Option<u64>,
    ) -> Result<Effect, EngineError> {
        if self.observe_set(set)?.presence == Presence::Absent {
            return Err(not_found(format!("set {} of pod {}", set.number, set.pod)));
        }
        let before = match bytes.filter(|_| set.backend == Backend::Overlay) {
            Some(bytes) => state.limits.insert((set.pod, set.number), bytes),
            None => state.limits.remove(&(set.pod, set.number)),
        };
        Ok(if before == bytes { Effect::Unchanged } else { Effect::Updated })
    }

    pub(super) fn set_prepare(
        &self,
        state: &mut State,
        fate: Fate,
        set: &SetSpec,
        fill: Fill,
    ) -> Result<Effect, EngineError> {
        let directory = self.set_directory(set.pod, set.backend, set.number);
        let what = format!("set {} of pod {}", set.number, set.pod);
        let marker = Self::marker(&directory)?;
        if let Some(marker) = &marker
            && (marker.state == Progress::Complete || marker.generation.is_some())
        {
            return Err(state.violation(conflict(format!("{what} is complete and cannot be prepared again"))));
        }
        if state.refers(set.pod, set.number, set.backend) {
            return Err(state.violation(conflict(format!("a container refers to {what} while it is prepared"))));
        }
        if !self.options.backends.contains(&set.backend) {
            return Err(rejected(format!("the backend {} is not offered", set.backend.as_str())));
        }
        if !state.images.contains_key(&set.image) {
            return Err(not_found(format!("image {}", set.image)));
        }
        let before = look(&directory).map_err(|e| broken("look at set", &e))?.is_some();
        if before {
            remove_any(&directory).map_err(|e| broken("clear set", &e))?;
        }
        fs::create_dir_all(&directory).map_err(|e| broken("make set", &e))?;
        Self::write_marker(&directory, &Marker { state: Progress::Preparing, generation: None })?;
        let stop_at = (fate.halfway || fate.disk_full).then_some(set.volumes.len() / 2);
        for (i, volume) in set.volumes.iter().enumerate() {
            if stop_at == Some(i) {
                break;
            }
            self.make_volume(state, set, volume, &directory, fill).map_err(|e| broken("make volume", &e))?;
        }
        if fate.disk_full {
            return Err(rejected(format!("no space left for {what}")));
        }
        if fate.halfway {
            return Err(EngineError::OutcomeUnknown {
                problem: format!("the connection broke while preparing {what}"),
            });
        }
        Ok(if before { Effect::Updated } else { Effect::Created })
    }

    fn make_volume(
        &self,
        state: &State,
        set: &SetSpec,
        volume: &Volume,
        directory: &Path,
        fill: Fill,
    ) -> io::Result<()> {
        let (mode, owner) =
            state.images.get(&set.image).and_then(|i| i.directory(&volume.mount_path)).unwrap_or((0o755, 0));
        let tree = Self::tree_directory(directory, set.backend, &volume.name);
        if set.backend == Backend::Overlay {
            fs::create_dir(directory.join(&volume.name))?;
        }
        fs::DirBuilder::new().mode(mode).create(&tree)?;
        if mode & !0o755 != 0 {
            fs::set_permissions(&tree, fs::Permissions::from_mode(mode))?;
        }
        if owner != 0 {
            chown(&tree, Some(owner), Some(owner))?;
        }
        if set.backend == Backend::Engine && fill == Fill::Image {
            copy_content(&self.lower(state, &set.image, &volume.mount_path), &tree)?;
        }
        set_mtime(&tree, IMAGE_TIME, 0)
    }

    pub(super) fn set_snapshot(
        &self,
        state: &mut State,
        fate: Fate,
        from: &SetSpec,
        to: &SetSpec,
    ) -> Result<Effect, EngineError> {
        let what = format!("set {} of pod {}", to.number, to.pod);
        if self.options.copying != Some(Copying::Instant) || from.backend != Backend::Overlay {
            return Err(state.violation(rejected(format!("the storage does not copy {what} at one instant"))));
        }
        let directory = self.set_directory(to.pod, to.backend, to.number);
        if !Self::marker(&directory)?.is_some_and(|m| m.state == Progress::Preparing && m.generation.is_none()) {
            return Err(state.violation(conflict(format!("{what} is not being prepared"))));
        }
        if self.observe_set(from)?.presence != Presence::Whole {
            return Err(conflict(format!("set {} of pod {} is not whole", from.number, from.pod)));
        }
        if (&from.volumes, &from.image) != (&to.volumes, &to.image) {
            return Err(state.violation(rejected(format!("{what} has other volumes than what it is copied from"))));
        }
        if state.is_written(from.pod) {
            return Err(state.violation(conflict(format!("{what} would be of no instant: its source is written to"))));
        }
        let source = self.set_directory(from.pod, from.backend, from.number);
        let stop_at = (fate.halfway || fate.disk_full).then_some(to.volumes.len() / 2);
        for (i, volume) in to.volumes.iter().enumerate() {
            if stop_at == Some(i) {
                break;
            }
            let tree = |set: &Path| Self::tree_directory(set, to.backend, &volume.name);
            let (source, target) = (tree(&source), tree(&directory));
            copy_layer(&source, &target).map_err(|e| broken("copy volume", &e))?;
        }
        if fate.disk_full {
            return Err(rejected(format!("no space left for {what}")));
        }
        if fate.halfway {
            return Err(EngineError::OutcomeUnknown { problem: format!("the connection broke while copying {what}") });
        }
        Ok(Effect::Created)
    }

    pub(super) fn set_complete(&self, state: &mut State, set: &SetSpec) -> Result<Effect, EngineError> {
        let directory = self.set_directory(set.pod, set.backend, set.number);
        let what = format!("set {} of pod {}", set.number, set.pod);
        let Some(marker) = Self::marker(&directory)? else {
            return Err(not_found(what));
        };
        let observed = self.observe_set(set)?;
        if let Presence::Partial { missing } = &observed.presence
            && let Some(volume) = missing.iter().find(|m| *m != MARKER_NAME)
        {
            return Err(state.violation(conflict(format!("{what} lacks {volume} and cannot be complete"))));
        }
        if marker.state == Progress::Complete {
            return Ok(Effect::Unchanged);
        }
        Self::write_marker(&directory, &Marker { state: Progress::Complete, ..marker })?;
        Ok(Effect::Updated)
    }

    pub(super) fn set_access(&self, state: &State, set: &SetSpec) -> Result<SetAccess, EngineError> {
        if self.observe_set(set)?.presence == Presence::Absent {
            return Err(not_found(format!("set {} of pod {}", set.number, set.pod)));
        }
        if set.backend == Backend::Overlay && !state.images.contains_key(&set.image) {
            return Err(not_found(format!("image {}", set.image)));
        }
        let directory = self.set_directory(set.pod, set.backend, set.number);
        let mut paths = Vec::new();
        for volume in &set.volumes {
            let path = Self::tree_directory(&directory, set.backend, &volume.name);
            if look(&path).map_err(|e| broken("look at volume", &e))?.is_none() {
                continue;
            }
            paths.push(VolumePath {
                name: volume.name.clone(),
                mount_path: volume.mount_path.clone(),
                path,
                lower: (set.backend == Backend::Overlay).then(|| self.lower(state, &set.image, &volume.mount_path)),
                exclude: excluded(set, volume),
            });
        }
        Ok(if self.needs_mover(set.backend) { SetAccess::Mover(paths) } else { SetAccess::Local(paths) })
    }

    pub(super) fn set_usage(&self, set: &SetSpec) -> Result<Vec<VolumeUsage>, EngineError> {
        let directory = self.set_directory(set.pod, set.backend, set.number);
        let mut usage = Vec::new();
        for volume in &set.volumes {
            let tree = Self::tree_directory(&directory, set.backend, &volume.name);
            let there =
                look(&tree).map_err(|e| broken("look at volume", &e))?.is_some() && !self.needs_mover(set.backend);
            let bytes = if there { Some(bytes(&tree).map_err(|e| broken("count bytes", &e))?) } else { None };
            usage.push(VolumeUsage { name: volume.name.clone(), bytes });
        }
        Ok(usage)
    }

    pub(super) fn set_delete(
        &self,
        state: &mut State,
        fate: Fate,
        set: &SetSpec,
        permit: &DeletePermit,
    ) -> Result<Effect, EngineError> {
        let what = format!("set {} of pod {}", set.number, set.pod);
        if !permit.covers_set(set.pod, set.number) {
            return Err(state.violation(rejected(format!("the permit ({permit}) does not cover {what}"))));
        }
        if state.foreign_refers(set.pod, set.number) {
            return Err(conflict(format!("another container refers to {what}")));
        }
        if state.refers(set.pod, set.number, set.backend) {
            return Err(state.violation(conflict(format!("the pod's container refers to {what}"))));
        }
        self.discard_stills(state, set)?;
        let directory = self.set_directory(set.pod, set.backend, set.number);
        if look(&directory).map_err(|e| broken("look at set", &e))?.is_none() {
            return Ok(Effect::Unchanged);
        }
        state.limits.remove(&(set.pod, set.number));
        let generation = Self::marker(&directory)?.and_then(|m| m.generation);
        if generation.is_some() && matches!(permit.ground(), Ground::NeverStarted | Ground::Scratch) {
            return Err(state.violation(rejected(format!("{what} has run and is deleted as \"{permit}\""))));
        }
        if fate.halfway && set.backend == Backend::Engine {
            for volume in set.volumes.iter().take(set.volumes.len() / 2) {
                remove_any(&directory.join(&volume.name)).map_err(|e| broken("delete volume", &e))?;
            }
            return Err(EngineError::OutcomeUnknown { problem: format!("the connection broke while deleting {what}") });
        }
        self.bury(&directory).map_err(|e| broken("delete set", &e))?;
        state.lost_definitions.remove(&(set.pod, set.number));
        state.deletions.push(Deletion {
            at: self.clock.now(),
            pod: set.pod,
            what: Deleted::Set(set.number),
            generation,
            permit: permit.clone(),
        });
        Ok(Effect::Removed)
    }

    /// Moves a tree into the trash in one step, deletes it there, and the pod's directory with the last of its sets.
    pub(super) fn bury(&self, directory: &Path) -> io::Result<()> {
        let name = directory.components().rev().take(2).map(|c| c.as_os_str().to_string_lossy().into_owned());
        let grave = self.root.join("trash").join(name.collect::<Vec<_>>().join("-"));
        remove_any(&grave)?;
        fs::rename(directory, &grave)?;
        if let Some(parent) = directory.parent() {
            // Not empty while the pod has other sets.
            let _ = fs::remove_dir(parent);
        }
        fs::remove_dir_all(grave)
    }

    /// Every set on the disk; the trash is none.
    pub(super) fn list_sets(&self) -> io::Result<Vec<Owned>> {
        let mut found = Vec::new();
        for backend in [Backend::Overlay, Backend::Engine] {
            for pod in fs::read_dir(self.backend_directory(backend))? {
                let pod = pod?;
                let Some(id) = pod.file_name().to_str().and_then(|n| n.parse::<PodId>().ok()) else { continue };
                for set in fs::read_dir(pod.path())? {
                    let name = set?.file_name();
                    let number = name.to_str().and_then(|n| n.strip_prefix('s')).and_then(|n| n.parse().ok());
                    if let Some(number) = number {
                        found.push(Owned::Set { pod: id, number, backend });
                    }
                }
            }
        }
        Ok(found)
    }
}

/// What of a volume's tree is not the pod's: mount points of the set's other volumes, and the engine's files.
fn excluded(set: &SetSpec, volume: &Volume) -> Vec<String> {
    let below = |path: &str| {
        (path != volume.mount_path && is_at_or_below(path, &volume.mount_path))
            .then(|| path[volume.mount_path.len()..].trim_start_matches('/').to_owned())
    };
    let engine = ENGINE_FILES.iter().map(|f| format!("/etc/{f}"));
    set.volumes.iter().map(|v| v.mount_path.clone()).chain(engine).filter_map(|p| below(&p)).collect()
}
