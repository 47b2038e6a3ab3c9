//! Sets of overlay volumes. Each rule of the backend is enforced in one place:
//!
//! 1. one flattened tree per image is below ([`DockerEngine::flatten`]), never the engine's own layers;
//! 2. a lower is resolved without links ([`lower_of`]);
//! 3. `upper` is made only by [`DockerEngine::overlay_prepare`]; lost means directory or marker missing
//!    (`Storage::presence`); definitions are made again at will ([`DockerEngine::define_volumes`]);
//! 4. definitions are read back and compared (`DockerEngine::check_mounts`);
//! 5. nobody else has it (`writers`);
//! 6. a definition goes only after its mount point is proven unmounted ([`DockerEngine::remove_definition`]), the data
//!    only into the trash;
//! 7. the options are fixed ([`options`]);
//! 8. separate mounts: what that means for programs is documented, nothing here hides it.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use bollard::models::VolumeCreateRequest;
use bollard::models::{Mount, MountType, MountVolumeOptions, MountVolumeOptionsDriverConfig, Volume as EngineVolume};
use bollard::query_parameters::RemoveVolumeOptions;
use perennial_core::engine::{Effect, EngineError, Presence, SetSpec, VolumePath};
use perennial_core::spec::{Backend, is_at_or_below};
use perennial_core::volume::{Volume, engine_name};
use rustix::fs::{self, Mode, OFlags};
use rustix::io::Errno;

use super::client::{blocking, conflict, fail, io, not_found, rejected, transient};
use super::storage::{Marker, MarkerState, Storage, is_there};
use super::{DockerEngine, image, labels, tree, writers};

/// What the engine makes in /etc; never captured.
const ENGINE_FILES: [&str; 4] = ["hosts", "hostname", "resolv.conf", "mtab"];

/// What is below one volume, resolved now.
#[derive(Debug, Clone)]
struct Lower {
    path: PathBuf,
    /// The image has no such directory.
    empty: bool,
}

/// Resolves a volume's directory in the image's tree without following any link (rule 2).
fn lower_of(storage: &Storage, rootfs: &Path, volume: &Volume) -> Result<Lower, EngineError> {
    let relative = Path::new(volume.mount_path.trim_start_matches('/'));
    let top = tree::open_dir(rootfs).map_err(io("open the image's tree"))?;
    match tree::open_beneath(&top, relative, OFlags::PATH | OFlags::DIRECTORY) {
        Ok(_) => {
            let path = rootfs.join(relative);
            if !path.to_str().is_some_and(|p| p.split('/').all(|part| part.chars().all(image::is_plain))) {
                return Err(rejected(format!("{} cannot be an overlay volume: its name", volume.mount_path)));
            }
            Ok(Lower { path, empty: false })
        }
        Err(Errno::NOENT) => Ok(Lower { path: storage.empty(), empty: true }),
        Err(Errno::LOOP) => Err(rejected(format!(
            "{} passes a symbolic link in the image: it would show something else of the host",
            volume.mount_path
        ))),
        Err(Errno::NOTDIR) => Err(rejected(format!("{} is not a directory in the image", volume.mount_path))),
        Err(e) => Err(transient(format!("resolve {} in the image: {e}", volume.mount_path))),
    }
}

/// The fixed options of a volume's mount (rule 7).
pub(super) fn options(lower: &Path, upper: &Path, work: &Path) -> HashMap<String, String> {
    let mount = format!(
        "lowerdir={},upperdir={},workdir={},redirect_dir=nofollow,metacopy=off,index=off,nodev",
        lower.display(),
        upper.display(),
        work.display()
    );
    let pairs = [("type", "overlay"), ("device", "overlay"), ("o", mount.as_str())];
    pairs.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

/// A volume of a set as the engine has to have it.
#[derive(Debug, Clone)]
pub(super) struct Definition {
    pub(super) name: String,
    pub(super) target: String,
    /// Empty for the engine's own volumes.
    pub(super) options: HashMap<String, String>,
    pub(super) labels: labels::Labels,
}

impl Definition {
    /// The mount of a container: everything spelled out, and never copied up (rule 4).
    pub(super) fn mount(&self) -> Mount {
        let driver = MountVolumeOptionsDriverConfig {
            name: Some("local".to_owned()),
            options: (!self.options.is_empty()).then(|| self.options.clone()),
        };
        Mount {
            target: Some(self.target.clone()),
            source: Some(self.name.clone()),
            typ: Some(MountType::VOLUME),
            volume_options: Some(MountVolumeOptions {
                no_copy: Some(true),
                labels: Some(self.labels.clone()),
                driver_config: Some(driver),
                ..MountVolumeOptions::default()
            }),
            ..Mount::default()
        }
    }

    /// Whether the engine's volume is this one.
    pub(super) fn matches(&self, volume: &EngineVolume) -> bool {
        volume.driver == "local" && volume.options == self.options && self.owns(volume)
    }

    /// Whether the engine has exactly this one.
    pub(super) fn is_among(&self, present: &[EngineVolume]) -> bool {
        present.iter().any(|v| v.name == self.name && self.matches(v))
    }

    /// Whether the engine's volume carries this one's labels.
    pub(super) fn owns(&self, volume: &EngineVolume) -> bool {
        self.labels.iter().all(|(k, v)| volume.labels.get(k) == Some(v))
    }
}

impl DockerEngine {
    /// The volume definitions of a set, derived anew from the set and the image's tree.
    pub(super) async fn definitions(&self, set: &SetSpec) -> Result<Vec<Definition>, EngineError> {
        let overlay = match set.backend {
            Backend::Overlay => Some(self.flatten(&set.image).await?),
            Backend::Engine => None,
        };
        let (storage, set) = (self.storage.clone(), set.clone());
        let base = labels::of_set(self.config.installation, &set.tenant, set.pod, set.number);
        let prefix = self.config.volume_prefix.clone();
        blocking(move || {
            let define = |volume: &Volume| {
                let mut labels = base.clone();
                labels.insert(labels::VOLUME.to_owned(), volume.name.clone());
                let options = match &overlay {
                    Some(rootfs) => {
                        let lower = lower_of(&storage, rootfs, volume)?;
                        options(&lower.path, &storage.upper(&set, &volume.name), &storage.work(&set, &volume.name))
                    }
                    None => HashMap::new(),
                };
                let name = engine_name(&prefix, set.pod, set.number, &volume.name);
                Ok(Definition { name, target: volume.mount_path.clone(), options, labels })
            };
            set.volumes.iter().map(define).collect()
        })
        .await
    }

    /// Makes the definitions that are not among those the engine has, and replaces an outdated one that nobody uses.
    pub(super) async fn define_volumes(
        &self,
        wanted: &[Definition],
        present: &[EngineVolume],
    ) -> Result<Effect, EngineError> {
        let missing: Vec<_> = wanted.iter().filter(|d| !d.is_among(present)).collect();
        let effect = if missing.is_empty() { Effect::Unchanged } else { Effect::Created };
        futures::future::try_join_all(missing.into_iter().map(|d| self.define_volume(d))).await?;
        Ok(effect)
    }

    async fn define_volume(&self, definition: &Definition) -> Result<(), EngineError> {
        let there = self.make_volume(definition).await?;
        if definition.matches(&there) {
            return Ok(());
        }
        if !definition.owns(&there) || there.options.is_empty() {
            return Err(conflict(format!("a volume {} exists that is not this pod's", definition.name)));
        }
        self.remove_definition(&there).await?;
        if definition.matches(&self.make_volume(definition).await?) {
            return Ok(());
        }
        Err(conflict(format!("the volume {} is not as it was asked for", definition.name)))
    }

    /// Asks for a volume. Where there is one of this name, the engine returns that, whatever it is like.
    async fn make_volume(&self, definition: &Definition) -> Result<EngineVolume, EngineError> {
        let request = VolumeCreateRequest {
            name: Some(definition.name.clone()),
            driver: Some("local".to_owned()),
            driver_opts: Some(definition.options.clone()),
            labels: Some(definition.labels.clone()),
            ..VolumeCreateRequest::default()
        };
        self.docker.create_volume(request).await.map_err(|e| fail("make the volume", e))
    }

    /// Removes the definition of an overlay volume, once its mount point is proven unmounted (rule 6).
    async fn remove_definition(&self, volume: &EngineVolume) -> Result<(), EngineError> {
        let mountpoint = PathBuf::from(&volume.mountpoint);
        blocking(move || writers::check_unmounted(&mountpoint)).await?;
        match self.docker.remove_volume(&volume.name, None::<RemoveVolumeOptions>).await {
            Ok(()) => Ok(()),
            Err(e) if not_found(&e) => Ok(()),
            Err(e) => Err(fail("remove the volume's definition", e)),
        }
    }

    /// Makes the set's directories anew; what an unfinished try left is removed first.
    pub(super) async fn overlay_prepare(&self, set: &SetSpec) -> Result<Effect, EngineError> {
        for volume in &set.volumes {
            let bad = |c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
            if volume.name.is_empty() || volume.name.contains(bad) {
                return Err(rejected(format!("{:?} cannot be the name of a volume", volume.name)));
            }
        }
        let rootfs = self.flatten(&set.image).await?;
        let marker = self.storage.marker(set.pod, set.number)?;
        if marker.as_ref().is_some_and(|m| m.state == MarkerState::Complete) {
            return Err(conflict(format!("set {} of pod {} is complete and is not made anew", set.number, set.pod)));
        }
        self.check_unused(set).await?;
        self.remove_definitions(set).await?;
        let (storage, set, installation) = (self.storage.clone(), set.clone(), self.config.installation);
        blocking(move || {
            if marker.is_none() {
                check_unmarked_leftover(&storage, &set)?;
            }
            // Until the set's marker names it, only the lock keeps the tree.
            let tree_lock = storage.lock_tree(&set.image)?;
            if !rootfs.is_dir() {
                return Err(transient("the image's tree was deleted a moment ago"));
            }
            if let Some(place) = storage.discard_set(set.pod, set.number)? {
                storage.burn(&place)?;
            }
            let dir = storage.make_set_dir(set.pod, set.number)?;
            storage.write_marker(set.pod, &Marker::preparing(installation, &set))?;
            drop(tree_lock);
            for volume in &set.volumes {
                let lower = lower_of(&storage, &rootfs, volume)?;
                make_upper(&storage, &set, volume, &lower)?;
            }
            tree::sync_all(&dir).map_err(io("sync the set"))?;
            Ok(Effect::Created)
        })
        .await
    }

    /// Marks the set complete.
    pub(super) async fn overlay_complete(&self, set: &SetSpec) -> Result<Effect, EngineError> {
        let (storage, set) = (self.storage.clone(), set.clone());
        blocking(move || {
            let Some(mut marker) = storage.marker(set.pod, set.number)? else {
                return Err(EngineError::NotFound { what: format!("set {} of pod {}", set.number, set.pod) });
            };
            if marker.state == MarkerState::Complete {
                return Ok(Effect::Unchanged);
            }
            // What was restored into it counts from here on, so it has to be on disk.
            tree::sync_all(&storage.set(set.pod, set.number)).map_err(io("sync the set"))?;
            marker.state = MarkerState::Complete;
            storage.write_marker(set.pod, &marker)?;
            Ok(Effect::Updated)
        })
        .await
    }

    /// Removes the set's definitions and moves its data into the trash; the caller holds the permit.
    pub(super) async fn overlay_delete(&self, set: &SetSpec) -> Result<Effect, EngineError> {
        self.storage.check()?;
        self.check_unused(set).await?;
        let definitions = self.remove_definitions(set).await?;
        let (storage, set) = (self.storage.clone(), set.clone());
        blocking(move || {
            let Some(place) = storage.discard_set(set.pod, set.number)? else { return Ok(definitions) };
            storage.burn(&place)?;
            Ok(Effect::Removed)
        })
        .await
    }

    /// Removes the definitions of a set, whatever the set's directory looks like.
    async fn remove_definitions(&self, set: &SetSpec) -> Result<Effect, EngineError> {
        let mut effect = Effect::Unchanged;
        for volume in self.set_volumes(set).await? {
            self.remove_definition(&volume).await?;
            effect = Effect::Removed;
        }
        Ok(effect)
    }

    /// The trees of a set on this host.
    pub(super) async fn overlay_access(&self, set: &SetSpec) -> Result<Vec<VolumePath>, EngineError> {
        let rootfs = self.flatten(&set.image).await?;
        let (storage, set) = (self.storage.clone(), set.clone());
        blocking(move || {
            // A marker may be lost like anything else: what is left of the data is reached all the same.
            if storage.presence(&set)?.0 == Presence::Absent {
                return Err(EngineError::NotFound { what: format!("set {} of pod {}", set.number, set.pod) });
            }
            let mut access = Vec::new();
            for volume in &set.volumes {
                let path = storage.upper(&set, &volume.name);
                if is_there(&path)? {
                    access.push(VolumePath {
                        name: volume.name.clone(),
                        mount_path: volume.mount_path.clone(),
                        path,
                        lower: Some(lower_of(&storage, &rootfs, volume)?.path),
                        exclude: excluded(&set, volume),
                    });
                }
            }
            storage.check()?;
            Ok(access)
        })
        .await
    }

    /// Provides /etc/mtab where neither the image nor the pod has one: the engine makes it only in its own layer.
    pub(super) async fn provide_mtab(&self, set: &SetSpec) -> Result<(), EngineError> {
        if set.backend != Backend::Overlay {
            return Ok(());
        }
        let access = self.overlay_access(set).await?;
        blocking(move || {
            let Some(etc) = access.iter().find(|v| v.mount_path == "/etc") else { return Ok(()) };
            let lower = etc.lower.as_ref().map(|l| l.join("mtab"));
            if lower.is_some_and(|l| l.symlink_metadata().is_ok()) {
                return Ok(());
            }
            let dir = tree::open_dir(&etc.path).map_err(io("open the upper of /etc"))?;
            match fs::symlinkat("/proc/mounts", &dir, "mtab") {
                Ok(()) | Err(Errno::EXIST) => Ok(()),
                Err(e) => Err(transient(format!("provide /etc/mtab: {e}"))),
            }
        })
        .await
    }
}

/// Paths in a volume's tree that the engine makes: its files in /etc, and mount points of other volumes.
pub(super) fn excluded(set: &SetSpec, volume: &Volume) -> Vec<String> {
    let mut paths = Vec::new();
    if volume.mount_path == "/etc" {
        paths.extend(ENGINE_FILES.map(str::to_owned));
    }
    for other in &set.volumes {
        if other.mount_path != volume.mount_path && is_at_or_below(&other.mount_path, &volume.mount_path) {
            paths.push(other.mount_path[volume.mount_path.len()..].trim_matches('/').to_owned());
        }
    }
    paths
}

/// A directory without a marker was left by a crash right after it was made; if it holds anything, it is data.
fn check_unmarked_leftover(storage: &Storage, set: &SetSpec) -> Result<(), EngineError> {
    let dir = storage.set(set.pod, set.number);
    match std::fs::read_dir(&dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(transient(format!("list {}: {e}", dir.display()))),
        Ok(entries) => {
            for entry in entries {
                let entry = entry.map_err(io("list the set"))?;
                if entry.file_name() != "set.json.new" {
                    return Err(conflict(format!("{} holds data without a marker", dir.display())));
                }
            }
            Ok(())
        }
    }
}

/// Makes `upper` and `work` of one volume; the upper's root looks like the image's directory (rule 3).
fn make_upper(storage: &Storage, set: &SetSpec, volume: &Volume, lower: &Lower) -> Result<(), EngineError> {
    let upper = storage.upper(set, &volume.name);
    let work = storage.work(set, &volume.name);
    for dir in [&upper, &work] {
        tree::make_private_dir(dir).map_err(io(format_args!("make {}", dir.display())))?;
    }
    let to = tree::open_dir(&upper).map_err(io("open the upper"))?;
    if lower.empty {
        return fs::fchmod(&to, Mode::from_raw_mode(0o755)).map_err(|e| transient(format!("set the mode: {e}")));
    }
    let from = tree::open_dir(&lower.path).map_err(io("open the lower"))?;
    tree::copy_attributes(from.as_fd(), to.as_fd())
        .map_err(io(format_args!("copy attributes of {}", volume.mount_path)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use perennial_core::id::{InstallationId, PodId};
    use perennial_core::spec::TenantId;

    #[test]
    fn nested_mount_points_and_engine_files_are_excluded() {
        let volume = |name: &str, path: &str| Volume { name: name.into(), mount_path: path.into() };
        let set = SetSpec {
            pod: PodId::from_parts(1, [2; 10]),
            tenant: TenantId::default_tenant(),
            number: 1,
            backend: Backend::Overlay,
            image: String::new(),
            volumes: vec![volume("usr", "/usr"), volume("usr-local", "/usr/local"), volume("etc", "/etc")],
        };
        assert_eq!(excluded(&set, &set.volumes[0]), ["local"]);
        assert!(excluded(&set, &set.volumes[1]).is_empty());
        assert_eq!(excluded(&set, &set.volumes[2]), ENGINE_FILES);
    }

    #[test]
    fn a_lower_behind_a_link_is_refused_and_a_missing_one_is_empty() {
        let temp = tempfile::tempdir().expect("temp");
        let storage =
            Storage::open(&temp.path().join("root"), InstallationId::from_parts(1, [1; 10]), None).expect("open");
        let rootfs = temp.path().join("rootfs");
        std::fs::create_dir_all(rootfs.join("usr/local")).expect("dirs");
        std::os::unix::fs::symlink("/", rootfs.join("opt")).expect("link");
        let lower = |path: &str| lower_of(&storage, &rootfs, &Volume { name: "v".into(), mount_path: path.into() });
        assert!(lower("/usr/local").is_ok_and(|l| !l.empty));
        assert!(lower("/workspace").is_ok_and(|l| l.empty));
        assert!(matches!(lower("/opt"), Err(EngineError::Rejected { .. })));
        assert!(matches!(lower("/opt/etc"), Err(EngineError::Rejected { .. })));
    }
}
