//! Volume sets: which directories of a pod persist, and which incarnation of them is meant.
//!
//! A pod's volumes are made, replaced and deleted as one **set**. A set has a number that is never reused, so a late
//! deletion can only ever hit the set it was meant for (D32).

use crate::id::{PodId, SnapshotId};
use crate::spec::{Backend, Profile, is_at_or_below};

/// The eight volumes of the universal profile, name and mount path.
pub const UNIVERSAL: [(&str, &str); 8] = [
    ("workspace", "/workspace"),
    ("home", "/home"),
    ("root", "/root"),
    ("etc", "/etc"),
    ("usr-local", "/usr/local"),
    ("opt", "/opt"),
    ("var", "/var"),
    ("srv", "/srv"),
];

/// Top-level directories that never persist: virtual, temporary, or made by the engine.
pub const NEVER_PERSISTED: [&str; 5] = ["proc", "sys", "dev", "tmp", "run"];

/// Number of a volume set of one pod, counted from 1 and never reused.
pub type SetNumber = u32;

/// One persistent directory of a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Name, unique in the pod.
    pub name: String,
    /// Absolute path in the container.
    pub mount_path: String,
}

/// Where a new set's content comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// As the image seeds it.
    Image,
    /// Restored from this snapshot.
    Snapshot(SnapshotId),
    /// Copied from a data set on the same host.
    Pod {
        /// Whose.
        pod: PodId,
        /// Which of them: what becomes the pod's data later is not what was asked for.
        set: SetNumber,
    },
}

/// How far a set has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetState {
    /// Being made; never taken for data (D33).
    Preparing,
    /// Whole: may be attached.
    Complete,
    /// No longer the pod's data, waiting to be deleted with a permit.
    Retired,
    /// No longer the pod's data and without proof of a copy: kept until its owner decides.
    Quarantined,
}

/// One incarnation of all volumes of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeSet {
    /// Its number.
    pub number: SetNumber,
    /// Where it lives.
    pub backend: Backend,
    /// Where its content came from.
    pub origin: Origin,
    /// How far it has come.
    pub state: SetState,
    /// Data generation of its last writable attach; `None` while it never ran.
    pub attached: Option<u64>,
    /// Data generation known to be written beside the data; a lower one found there means old data came back.
    pub marked: Option<u64>,
    /// The snapshot that captured it after its last writer; needed to delete a retired set that ran.
    pub proof: Option<SnapshotId>,
    /// Its volumes.
    pub volumes: Vec<Volume>,
}

/// What of an image decides the layout of a set.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImageLayout {
    /// Top-level entries that are real directories, without the slash.
    pub directories: Vec<String>,
    /// Top-level entries that are symbolic links: they get no volume (overlay rule 2).
    pub links: Vec<String>,
    /// Paths the image declares as `VOLUME`.
    pub declared: Vec<String>,
}

/// Decides which volumes a new set has.
///
/// Universal volumes come first; on overlay every other real top-level directory of the image follows, and then every
/// path the image declares as `VOLUME` where no volume is mounted yet.
#[must_use]
pub fn layout(profile: &Profile, backend: Backend, image: &ImageLayout) -> Vec<Volume> {
    let mut volumes: Vec<Volume> = Vec::new();
    let is_link = |path: &str| {
        let top = path.trim_start_matches('/').split('/').next().unwrap_or_default();
        image.links.iter().any(|l| l == top)
    };
    match profile {
        Profile::Universal => {
            for (name, path) in UNIVERSAL {
                if !is_link(path) {
                    volumes.push(Volume { name: name.to_owned(), mount_path: path.to_owned() });
                }
            }
            if backend == Backend::Overlay {
                for directory in &image.directories {
                    let path = format!("/{directory}");
                    let known = volumes.iter().any(|v| v.mount_path == path);
                    if !known && !NEVER_PERSISTED.contains(&directory.as_str()) {
                        volumes.push(Volume { name: unique_name(&volumes, directory), mount_path: path });
                    }
                }
            }
        }
        Profile::Declared(declared) => {
            volumes.extend(declared.iter().map(|d| Volume { name: d.name.clone(), mount_path: d.mount_path.clone() }));
        }
    }
    for path in &image.declared {
        let path = normal(path);
        let never = NEVER_PERSISTED.iter().any(|n| is_at_or_below(&path, &format!("/{n}")));
        // Docker mounts something there whatever we do: an anonymous volume, unless it is one of the pod's. That the
        // path lies below another volume does not help.
        let held = volumes.iter().any(|v| v.mount_path == path);
        if !never && !held && path != "/" && !is_link(&path) {
            volumes.push(Volume { name: unique_name(&volumes, &path), mount_path: path });
        }
    }
    volumes
}

/// Drops doubled and trailing slashes of an image's own path.
fn normal(path: &str) -> String {
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty() && *p != "." && *p != "..").collect();
    format!("/{}", parts.join("/"))
}

/// The name of the system layer beside the volumes in a snapshot; no volume has it.
pub const SYSTEM_NAME: &str = "system";

/// Makes a volume name out of a path that no other volume of the set has.
fn unique_name(taken: &[Volume], path: &str) -> String {
    let safe = |c: char| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' };
    let base: String = path.trim_matches('/').to_ascii_lowercase().chars().map(safe).take(30).collect();
    let base = base.trim_matches('-');
    let base = if base.is_empty() { "volume" } else { base };
    let mut name = base.to_owned();
    let mut n = 1;
    while name == SYSTEM_NAME || taken.iter().any(|v| v.name == name) {
        n += 1;
        name = format!("{base}-{n}");
    }
    name
}

/// The engine's name of a volume: `{prefix}{podId}-{volume}`, with `-s{N}` from the second set on (D32).
///
/// Names are for people; ownership is decided by labels.
#[must_use]
pub fn engine_name(prefix: &str, pod: PodId, set: SetNumber, volume: &str) -> String {
    if set <= 1 { format!("{prefix}{pod}-{volume}") } else { format!("{prefix}{pod}-{volume}-s{set}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::DeclaredVolume;

    fn image(directories: &[&str], links: &[&str], declared: &[&str]) -> ImageLayout {
        let own = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
        ImageLayout { directories: own(directories), links: own(links), declared: own(declared) }
    }

    #[test]
    fn universal_on_engine_volumes_is_the_eight() {
        let volumes = layout(&Profile::Universal, Backend::Engine, &image(&["usr", "etc", "bin"], &[], &[]));
        assert_eq!(volumes.len(), 8);
    }

    #[test]
    fn universal_on_overlay_adds_real_directories_and_skips_links_and_virtual_ones() {
        let layout = layout(
            &Profile::Universal,
            Backend::Overlay,
            &image(&["usr", "etc", "proc", "tmp", "data"], &["bin", "opt"], &[]),
        );
        let paths: Vec<&str> = layout.iter().map(|v| v.mount_path.as_str()).collect();
        assert!(paths.contains(&"/usr") && paths.contains(&"/data"));
        for absent in ["/bin", "/opt", "/proc", "/tmp"] {
            assert!(!paths.contains(&absent), "{absent}");
        }
    }

    #[test]
    fn paths_the_image_declares_get_volumes_of_the_pod_even_below_others() {
        let declared =
            Profile::Declared(vec![DeclaredVolume { name: "data".into(), mount_path: "/data".into(), size: None }]);
        let volumes = layout(&declared, Backend::Engine, &image(&[], &[], &["/data/sub", "/cache/", "/tmp/x"]));
        let paths: Vec<&str> = volumes.iter().map(|v| v.mount_path.as_str()).collect();
        assert_eq!(paths, ["/data", "/data/sub", "/cache"]);
    }

    #[test]
    fn engine_names_carry_the_set_from_the_second_on() {
        let pod = PodId::from_parts(0, [0; 10]);
        assert_eq!(engine_name("perennial-vol-", pod, 1, "home"), format!("perennial-vol-{pod}-home"));
        assert_eq!(engine_name("perennial-vol-", pod, 2, "home"), format!("perennial-vol-{pod}-home-s2"));
    }
}
