//! Where the parts of a snapshot go in a set that has other volumes than the one it was taken of.
//!
//! On overlay volumes every top-level directory of the image is a volume; on the engine's own volumes those that are not
//! among the eight are the system layer's. Both are changes against the same image, so a directory moves from one to the
//! other as it is. Everything else has to have the same place in both.

use perennial_core::snapshot::Snapshot;
use perennial_core::spec::Backend;
use perennial_core::volume::VolumeSet;

use super::step::{StepError, definite};

/// Which top-level directories change places, by volume and directory name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Placement {
    /// Volumes of the set whose directory is in the snapshot's system layer.
    out_of_layer: Vec<(String, String)>,
    /// Volumes of the snapshot whose directory becomes the system layer's.
    into_layer: Vec<(String, String)>,
}

/// The one name of a path directly below the root.
fn top(mount_path: &str) -> Option<&str> {
    mount_path.strip_prefix('/').filter(|name| !name.is_empty() && !name.contains('/'))
}

impl Placement {
    /// Compares what the snapshot has with what the set has.
    pub(super) fn new(row: &Snapshot, set: &VolumeSet) -> Result<Self, StepError> {
        let from = row.backend.unwrap_or(set.backend);
        let mut into_layer = Vec::new();
        for volume in row.volumes.iter().filter(|v| set.volumes.iter().all(|s| s.name != v.name)) {
            match top(&volume.mount_path) {
                Some(directory) if from == Backend::Overlay && set.backend == Backend::Engine => {
                    into_layer.push((volume.name.clone(), directory.to_owned()));
                }
                _ => {
                    let message = format!("the snapshot holds volume {}, which the new set lacks", volume.name);
                    return Err(definite("volume-unplaced", message, "restore it to a pod of the same profile"));
                }
            }
        }
        let gained = set.volumes.iter().filter(|s| row.volumes.iter().all(|v| v.name != s.name));
        let gained = gained.filter(|_| set.backend == Backend::Overlay);
        let out_of_layer = gained.filter_map(|v| Some((v.name.clone(), top(&v.mount_path)?.to_owned()))).collect();
        Ok(Self { out_of_layer, into_layer })
    }

    /// The directory of the snapshot's system layer that this volume of the set becomes.
    pub(super) fn out_of_layer(&self, volume: &str) -> Option<&str> {
        self.out_of_layer.iter().find(|(name, _)| name == volume).map(|(_, directory)| directory.as_str())
    }

    /// Names at the top of the snapshot's system layer that the set's does not have.
    pub(super) fn omitted(&self) -> Vec<String> {
        self.out_of_layer.iter().map(|(_, directory)| directory.clone()).collect()
    }

    /// Volumes of the snapshot that are directories of the set's system layer, with the directory's name.
    pub(super) fn added(&self) -> &[(String, String)] {
        &self.into_layer
    }

    /// Whether the set's system layer is the snapshot's.
    pub(super) const fn is_same_layer(&self) -> bool {
        self.out_of_layer.is_empty() && self.into_layer.is_empty()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use perennial_core::id::{PodId, SnapshotId};
    use perennial_core::snapshot::{SnapshotKind, SnapshotVolume};
    use perennial_core::spec::TenantId;
    use perennial_core::volume::{Origin, SetState, Volume};

    use super::*;

    const EIGHT: [(&str, &str); 2] = [("home", "/home"), ("usr-local", "/usr/local")];
    const MORE: [(&str, &str); 2] = [("usr", "/usr"), ("bin", "/bin")];

    fn row(backend: Backend, volumes: &[(&str, &str)]) -> Snapshot {
        let id = SnapshotId::from_parts(0, [0; 10]);
        let (pod, at) = (PodId::from_parts(0, [0; 10]), jiff::Timestamp::UNIX_EPOCH);
        let volume = |(name, path): &(&str, &str)| SnapshotVolume {
            name: (*name).into(),
            mount_path: (*path).into(),
            files: None,
            bytes: None,
        };
        Snapshot {
            backend: Some(backend),
            volumes: volumes.iter().map(volume).collect(),
            ..Snapshot::pending(id, pod, TenantId::default_tenant(), SnapshotKind::Manual, at)
        }
    }

    fn set(backend: Backend, volumes: &[(&str, &str)]) -> VolumeSet {
        VolumeSet {
            number: 1,
            backend,
            origin: Origin::Image,
            state: SetState::Preparing,
            attached: None,
            marked: None,
            proof: None,
            volumes: volumes.iter().map(|(n, p)| Volume { name: (*n).into(), mount_path: (*p).into() }).collect(),
        }
    }

    #[test]
    fn top_level_directories_change_places_and_nothing_else_does() {
        use Backend::{Engine, Overlay};
        let all = [EIGHT, MORE].concat();
        let placement = |from, has: &[(&str, &str)], to, gets: &[(&str, &str)]| {
            Placement::new(&row(from, has), &set(to, gets)).ok()
        };
        for (backend, volumes) in [(Overlay, &all[..]), (Engine, &EIGHT[..])] {
            assert!(placement(backend, volumes, backend, volumes).unwrap().is_same_layer());
        }
        let to_engine = placement(Overlay, &all, Engine, &EIGHT).unwrap();
        let moved = [("usr".to_owned(), "usr".to_owned()), ("bin".to_owned(), "bin".to_owned())];
        assert_eq!((to_engine.added(), to_engine.omitted()), (&moved[..], Vec::new()));
        let to_overlay = placement(Engine, &EIGHT, Overlay, &all).unwrap();
        assert_eq!((to_overlay.added(), to_overlay.omitted()), (&[][..], vec!["usr".to_owned(), "bin".to_owned()]));
        assert_eq!((to_overlay.out_of_layer("usr"), to_overlay.out_of_layer("home")), (Some("usr"), None));
        // Whole trees, and what lies deeper, have no other place.
        assert_eq!(placement(Engine, &all, Engine, &EIGHT), None);
        assert_eq!(placement(Overlay, &[("data", "/srv/data")], Engine, &EIGHT), None);
        assert_eq!(placement(Overlay, &all, Overlay, &EIGHT), None);
    }
}
