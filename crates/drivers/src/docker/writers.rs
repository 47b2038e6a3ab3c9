//! Who has a pod's data: containers that refer to it, and mounts of its directories in any namespace (rule 5).

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bollard::models::{ContainerSummary, Volume as EngineVolume};
use bollard::query_parameters::{ListContainersOptionsBuilder, ListVolumesOptionsBuilder};
use perennial_core::engine::{EngineError, SetSpec};
use perennial_core::id::PodId;
use perennial_core::spec::Backend;
use perennial_core::volume::engine_name;

use super::client::{blocking, conflict, look, transient};
use super::{DockerEngine, labels};

/// How long a mount that is on its way out may take.
const MOMENT: Duration = Duration::from_secs(2);
/// Between two looks at one: a container's mounts are usually gone some milliseconds after its end.
const BLINK: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(100));

impl DockerEngine {
    /// Every container of the engine, with its mounts.
    pub(super) async fn all_containers(&self) -> Result<Vec<ContainerSummary>, EngineError> {
        let options = ListContainersOptionsBuilder::default().all(true).build();
        self.docker.list_containers(Some(options)).await.map_err(|e| look("list the containers", e))
    }

    /// Whether a container refers to one of these sets, by volume name or by a path of the pod.
    pub(super) fn refers(&self, container: &ContainerSummary, pod: PodId, names: &HashSet<String>) -> bool {
        let dir = self.storage.pod(pod);
        container.mounts.iter().flatten().any(|mount| {
            let by_name = mount.name.as_ref().is_some_and(|n| names.contains(n));
            let by_path = mount.source.as_ref().is_some_and(|s| Path::new(s).starts_with(&dir));
            by_name || by_path
        })
    }

    /// The name of a helper container of this installation.
    pub(super) fn scratch_of(&self, container: &ContainerSummary) -> Option<String> {
        let labels = container.labels.as_ref().filter(|l| labels::is_ours(l, self.config.installation))?;
        labels.get(labels::SCRATCH).filter(|name| !name.is_empty()).cloned()
    }

    /// The engine's names of a set's volumes.
    pub(super) fn names(&self, set: &SetSpec) -> impl Iterator<Item = String> {
        let prefix = &self.config.volume_prefix;
        set.volumes.iter().map(move |v| engine_name(prefix, set.pod, set.number, &v.name))
    }

    /// The engine's volumes that carry exactly this set's labels.
    pub(super) async fn set_volumes(&self, set: &SetSpec) -> Result<Vec<EngineVolume>, EngineError> {
        let (ours, pod, number) = (self.config.installation.to_string(), set.pod.to_string(), set.number.to_string());
        let filters = labels::filter(&[(labels::INSTALLATION, &ours), (labels::POD, &pod), (labels::SET, &number)]);
        let options = ListVolumesOptionsBuilder::default().filters(&filters).build();
        let listed = self.docker.list_volumes(Some(options)).await.map_err(|e| look("list the volumes", e))?;
        let mut volumes = listed.volumes.unwrap_or_default();
        // The filter is the engine's; ownership is decided here.
        volumes.retain(|v| {
            labels::pod_of(&v.labels, self.config.installation) == Some(set.pod)
                && labels::set_of(&v.labels) == Some(set.number)
        });
        Ok(volumes)
    }

    /// Refuses while any container refers to the set, or any namespace has one of its directories mounted.
    pub(super) async fn check_unused(&self, set: &SetSpec) -> Result<(), EngineError> {
        self.check_only(set, None).await
    }

    /// The same, but `except` may refer to it, and must not have it mounted either.
    pub(super) async fn check_only(&self, set: &SetSpec, except: Option<&str>) -> Result<(), EngineError> {
        let mut names: HashSet<String> = self.names(set).collect();
        let (volumes, containers) = futures::try_join!(self.set_volumes(set), self.all_containers())?;
        names.extend(volumes.into_iter().map(|v| v.name));
        let set_dir = self.storage.set(set.pod, set.number);
        for container in containers {
            let id = container.id.clone().unwrap_or_default();
            if Some(id.as_str()) == except {
                continue;
            }
            // Another set of the same pod is another matter, so the path is the set's and not the pod's.
            let by_path = container
                .mounts
                .iter()
                .flatten()
                .any(|m| m.source.as_ref().is_some_and(|s| Path::new(s).starts_with(&set_dir)));
            let by_name = container.mounts.iter().flatten().any(|m| m.name.as_ref().is_some_and(|n| names.contains(n)));
            if !by_path && !by_name {
                continue;
            }
            // What an earlier life of this server left behind.
            if let Some(scratch) = self.scratch_of(&container) {
                self.scratch_end(&scratch).await?;
            } else {
                return Err(conflict(format!("container {id} refers to set {} of pod {}", set.number, set.pod)));
            }
        }
        match self.mounted_sets(std::slice::from_ref(set)).await?.first() {
            Some(user) => Err(conflict(format!("{user} uses set {} of pod {}", set.number, set.pod))),
            None => Ok(()),
        }
    }

    /// Processes that have one of these sets mounted, in words. A runtime that is just ending, and a container of
    /// somebody else that is just beginning and still has the host's mounts, get a moment.
    pub(super) async fn mounted_sets(&self, sets: &[SetSpec]) -> Result<Vec<String>, EngineError> {
        let mut dirs = Vec::new();
        for set in sets {
            match set.backend {
                Backend::Overlay => dirs.push(self.storage.set(set.pod, set.number)),
                // The processes of another host are out of sight.
                Backend::Engine if !self.shares_files().await? => {}
                Backend::Engine => {
                    let volumes = self.set_volumes(set).await?;
                    dirs.extend(volumes.into_iter().map(|v| PathBuf::from(v.mountpoint)));
                }
            }
        }
        if dirs.is_empty() {
            return Ok(Vec::new());
        }
        let dirs: Arc<[PathBuf]> = dirs.into();
        let patience = Instant::now() + MOMENT;
        let mut blink = BLINK.0;
        loop {
            let looked_for = Arc::clone(&dirs);
            let users = blocking(move || users(&looked_for)).await?;
            if users.is_empty() || Instant::now() >= patience {
                return Ok(users);
            }
            tokio::time::sleep(blink).await;
            blink = (blink * 2).min(BLINK.1);
        }
    }
}

/// One line of a mountinfo file, as far as it matters.
struct MountLine<'a> {
    /// Major and minor number of the file system.
    device: &'a str,
    /// What of the file system is mounted.
    root: &'a str,
    target: &'a str,
    options: &'a str,
}

/// Takes a mountinfo line apart. Format: proc_pid_mountinfo(5).
fn parse(line: &str) -> Option<MountLine<'_>> {
    let (before, after) = line.split_once(" - ")?;
    let mut fields = before.split(' ').skip(2);
    let (device, root, target) = (fields.next()?, fields.next()?, fields.next()?);
    Some(MountLine { device, root, target, options: after.splitn(3, ' ').nth(2)? })
}

/// Undoes the octal escapes of mountinfo, and overlay's own escapes of option separators.
fn plain(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let bytes = text.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        let octal = bytes.get(i + 1..i + 4).filter(|_| bytes[i] == b'\\');
        let code = octal.and_then(|o| std::str::from_utf8(o).ok()).and_then(|o| u8::from_str_radix(o, 8).ok());
        if let Some(code) = code {
            out.push(code);
            i += 4;
        } else {
            out.push(bytes[i]);
            i += 1;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Calls `see` with every mount of every mount namespace, and with the number of a process that is in it.
fn each_mount(mut see: impl FnMut(&MountLine<'_>, &str) -> Result<(), EngineError>) -> Result<(), EngineError> {
    let mut seen = HashSet::new();
    let processes = std::fs::read_dir("/proc").map_err(|e| transient(format!("list the processes: {e}")))?;
    for process in processes.flatten() {
        let name = process.file_name();
        let Some(number) = name.to_str().filter(|n| n.bytes().all(|b| b.is_ascii_digit())) else { continue };
        let dir = process.path();
        // One look for each namespace. Which one it is needs more rights than what is mounted in it: where the kernel
        // does not tell, the table is read once more than needed.
        let namespace = std::fs::read_link(dir.join("ns/mnt")).ok();
        if namespace.as_ref().is_some_and(|n| seen.contains(n)) {
            continue;
        }
        let bytes = match std::fs::read(dir.join("mountinfo")) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
                return Err(transient(format!("look at the mounts of {}: {e}", dir.display())));
            }
            // A process that ended meanwhile has none any more.
            Err(_) => continue,
        };
        // Names are bytes, so a line need not be UTF-8.
        let text = String::from_utf8_lossy(&bytes);
        // A process that is ending shows an empty table; another one of its namespace tells more.
        if text.is_empty() {
            continue;
        }
        seen.extend(namespace);
        for line in text.lines().filter_map(parse) {
            see(&line, number)?;
        }
    }
    Ok(())
}

/// A directory as mounts name it: the file system, and the path in it.
struct Place {
    device: String,
    root: PathBuf,
}

/// Where these directories are, by this process's own mounts.
fn places(dirs: &[PathBuf]) -> Result<Vec<Place>, EngineError> {
    let text = std::fs::read("/proc/self/mountinfo").map_err(|e| transient(format!("look at the mounts: {e}")))?;
    let text = String::from_utf8_lossy(&text);
    let mounts: Vec<(PathBuf, MountLine<'_>)> =
        text.lines().filter_map(parse).map(|m| (PathBuf::from(plain(m.target)), m)).collect();
    let place = |dir: &PathBuf| {
        // Of several at one place the last covers the others.
        let (target, mount) =
            mounts.iter().filter(|(t, _)| dir.starts_with(t)).max_by_key(|(t, _)| t.components().count())?;
        let root = Path::new(&plain(mount.root)).join(dir.strip_prefix(target).ok()?);
        Some(Place { device: mount.device.to_owned(), root })
    };
    Ok(dirs.iter().filter_map(place).collect())
}

/// Who has one of these directories, or something in it, mounted: as the upper of an overlay, or as it is.
fn users(dirs: &[PathBuf]) -> Result<Vec<String>, EngineError> {
    let places = places(dirs)?;
    let mut users: Vec<String> = Vec::new();
    let mut last = String::new();
    each_mount(|mount, process| {
        let upper = mount.options.split(',').find_map(|o| o.strip_prefix("upperdir=")).map(plain);
        let above = upper.is_some_and(|u| dirs.iter().any(|d| Path::new(&u).starts_with(d)));
        let root = plain(mount.root);
        let bound = places.iter().any(|p| p.device == mount.device && Path::new(&root).starts_with(&p.root));
        if (above || bound) && last != process {
            process.clone_into(&mut last);
            users.push(format!("process {process} (mounted at {})", plain(mount.target)));
        }
        Ok(())
    })?;
    Ok(users)
}

/// Whether any namespace has an overlay with something in this directory below it.
pub(super) fn is_lower(dir: &Path) -> Result<bool, EngineError> {
    let mut found = false;
    each_mount(|mount, _| {
        let lowers = mount.options.split(',').find_map(|o| o.strip_prefix("lowerdir=")).map(plain).unwrap_or_default();
        found |= lowers.split(':').any(|lower| Path::new(lower).starts_with(dir));
        Ok(())
    })?;
    Ok(found)
}

/// The first path below a directory, or the directory itself, where this process sees something mounted.
pub(super) fn first_mount_below(dir: &Path) -> Result<Option<PathBuf>, EngineError> {
    let table = std::fs::read("/proc/self/mountinfo").map_err(|e| transient(format!("list the mounts: {e}")))?;
    let table = String::from_utf8_lossy(&table);
    let mut targets = table.lines().filter_map(parse).map(|mount| PathBuf::from(plain(mount.target)));
    Ok(targets.find(|target| target.starts_with(dir)))
}

/// Refuses when anything is mounted at this path in any namespace.
pub(super) fn check_unmounted(target: &Path) -> Result<(), EngineError> {
    each_mount(|mount, process| {
        if Path::new(&plain(mount.target)) == target {
            let at = target.display();
            return Err(conflict(format!("{at} is still mounted, as process {process} sees it")));
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str =
        "36 35 98:0 / /mnt/with\\040space rw,nodev master:1 - overlay overlay rw,lowerdir=/l,upperdir=/u\\134x";

    #[test]
    fn mountinfo_lines_are_taken_apart() {
        let line = parse(LINE).expect("line");
        assert_eq!((line.device, line.root, plain(line.target).as_str()), ("98:0", "/", "/mnt/with space"));
        assert_eq!(line.options, "rw,lowerdir=/l,upperdir=/u\\134x");
        assert_eq!(plain("/u\\134x"), "/u\\x");
        assert!(parse("nonsense").is_none());
    }

    #[test]
    fn a_mounted_directory_has_users_and_another_has_none() {
        assert!(!users(&[PathBuf::from("/proc")]).expect("users").is_empty());
        let temp = tempfile::tempdir().expect("temp");
        assert_eq!(users(&[temp.path().to_owned()]), Ok(Vec::new()));
    }

    #[test]
    fn a_mounted_path_is_seen_and_another_is_not() {
        assert!(check_unmounted(Path::new("/proc")).is_err());
        assert!(check_unmounted(Path::new("/perennial-nowhere")).is_ok());
    }
}
