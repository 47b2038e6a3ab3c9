//! Perennial's own directory on this host: image trees, sets of overlay volumes, trash.
//!
//! ```text
//! installation            whose root this is, and its identity; without it the disk is not mounted, and nothing is gone
//! images/<id>/rootfs      the image's tree, one for all pods; `complete` beside it says that it is whole
//! pods/<podId>/s<N>/      one set: set.json, and <volume>/{upper,work}
//! empty/                  the lower directory of a volume that the image does not have
//! scratch/                what is being tried; swept when it is old, a still when nobody reads it
//! trash/                  what was deleted with a permit, on its way out
//! probe.json              what was seen to work here
//! ```
//!
//! The identity is random, and a record of it is kept elsewhere (in the data directory): a directory that lacks it is the
//! empty place where a disk belongs, and is never taken for a new root.

use std::path::{Path, PathBuf};

use perennial_core::engine::{EngineError, Presence, SetSpec};
use perennial_core::id::{InstallationId, PodId};
use perennial_core::volume::{SetNumber, Volume};
use serde::{Deserialize, Serialize};

use super::btrfs::{btrfs, delete_subvolume, is_btrfs};
use super::client::{conflict, io, rejected, transient};
use super::{posix, spare, still, tree};

pub(super) const MARKER: &str = "set.json";
/// How old scratch must be to be taken for left behind.
const ABANDONED: std::time::Duration = std::time::Duration::from_secs(3600);
const OWNER: &str = "installation";

/// The storage root.
#[derive(Debug, Clone)]
pub(super) struct Storage {
    root: PathBuf,
    installation: InstallationId,
    /// What the file `installation` says as long as this root is mounted.
    owner: String,
}

/// How far a set has come, in its marker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum MarkerState {
    /// Being made; never taken for data.
    Preparing,
    /// Whole.
    Complete,
}

/// One volume in a marker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct MarkerVolume {
    pub(super) name: String,
    pub(super) mount_path: String,
}

/// What stands beside the data and tells what it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Marker {
    /// Version of this format.
    pub(super) format: u32,
    pub(super) installation: String,
    pub(super) pod: String,
    pub(super) set: SetNumber,
    /// The image whose directories are below.
    pub(super) image: String,
    pub(super) state: MarkerState,
    /// Data generation of the last start; absent while it never ran.
    pub(super) generation: Option<u64>,
    pub(super) volumes: Vec<MarkerVolume>,
}

impl Marker {
    pub(super) fn preparing(installation: InstallationId, set: &SetSpec) -> Self {
        let of = |v: &Volume| MarkerVolume { name: v.name.clone(), mount_path: v.mount_path.clone() };
        Self {
            format: 1,
            installation: installation.to_string(),
            pod: set.pod.to_string(),
            set: set.number,
            image: set.image.clone(),
            state: MarkerState::Preparing,
            generation: None,
            volumes: set.volumes.iter().map(of).collect(),
        }
    }
}

impl Storage {
    /// Opens the root. It is made and claimed when it is new, which a root that is on record never is.
    pub(super) fn open(root: &Path, installation: InstallationId, record: Option<&Path>) -> Result<Self, EngineError> {
        // Whatever writes into mount options must not meet their separators.
        let text = root.to_str().ok_or_else(|| rejected("the storage root is not valid UTF-8"))?;
        if !root.is_absolute() || text.contains([',', ':', '\\', '"']) || text.chars().any(char::is_whitespace) {
            return Err(rejected(format!(
                "{text} cannot be a storage root: overlay options need a plain absolute path"
            )));
        }
        let recorded = record.map(read_line).transpose()?.flatten();
        let found = read_line(&root.join(OWNER))?;
        if found.is_none()
            && recorded.is_none()
            && let Some(why) = root.ancestors().find(|dir| dir.exists()).and_then(posix::not_local)
        {
            return Err(rejected(format!(
                "{text} cannot be a storage root: {why}; choose a local disk (ext4, XFS, btrfs)"
            )));
        }
        let (owner, identity) = match found.as_deref().map(|f| f.split_once(' ').unwrap_or((f, ""))) {
            Some((owner, identity)) => (Some(owner), Some(identity).filter(|i| !i.is_empty())),
            None => (None, None),
        };
        if recorded.is_some() && recorded.as_deref() != identity {
            return Err(not_mounted(root, if owner.is_some() { "another one is" } else { "the directory is empty" }));
        }
        if owner.is_some_and(|o| o != installation.to_string()) {
            return Err(rejected(format!(
                "{text} belongs to installation {}, not to {installation}",
                owner.unwrap_or_default()
            )));
        }
        let identity = identity.map_or_else(|| format!("{:032x}", rand::random::<u128>()), str::to_owned);
        let owner = format!("{installation} {identity}");
        let storage = Self { root: root.to_owned(), installation, owner: owner.clone() };
        if found.as_deref() != Some(&owner) {
            tree::make_private_dir(root).map_err(io(format_args!("make {text}")))?;
            // Of two processes that find a new root at the same instant one gives it its identity, and the other takes that.
            let claiming = std::fs::File::open(root).map_err(io(format_args!("open {text}")))?;
            claiming.lock().map_err(io(format_args!("lock {text}")))?;
            if read_line(&root.join(OWNER))? != found {
                drop(claiming);
                return Self::open(root, installation, record);
            }
            tree::write_durably(root, OWNER, format!("{owner}\n").as_bytes()).map_err(io("claim the storage root"))?;
        }
        // Only after the root itself, so that a crash between the two leaves one that can be opened.
        if let Some(record) = record.filter(|_| recorded.is_none()) {
            let (dir, name) = (record.parent(), record.file_name().and_then(std::ffi::OsStr::to_str));
            let (Some(dir), Some(name)) = (dir, name) else { return Err(rejected("the record needs a file's name")) };
            tree::write_durably(dir, name, format!("{identity}\n").as_bytes())
                .map_err(io("record the storage root"))?;
        }
        for dir in ["images", "pods", "scratch", "trash", "empty"] {
            tree::make_private_dir(&root.join(dir)).map_err(io(format_args!("make {text}/{dir}")))?;
        }
        // The root of a volume whose directory the image lacks takes its mode from here.
        std::fs::set_permissions(root.join("empty"), std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .map_err(io("set the mode of the empty directory"))?;
        Ok(storage)
    }

    /// Fails when the root is not the one that was opened: then nothing below it proves anything.
    pub(super) fn check(&self) -> Result<(), EngineError> {
        match std::fs::read_to_string(self.root.join(OWNER)) {
            Ok(owner) if owner.trim() == self.owner => Ok(()),
            _ => Err(not_mounted(&self.root, "or another one is")),
        }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    pub(super) fn empty(&self) -> PathBuf {
        self.root.join("empty")
    }

    pub(super) fn trash(&self) -> PathBuf {
        self.root.join("trash")
    }

    pub(super) fn scratch(&self) -> PathBuf {
        self.root.join("scratch")
    }

    pub(super) fn pods(&self) -> PathBuf {
        self.root.join("pods")
    }

    pub(super) fn pod(&self, pod: PodId) -> PathBuf {
        self.pods().join(pod.to_string())
    }

    pub(super) fn set(&self, pod: PodId, number: SetNumber) -> PathBuf {
        self.pod(pod).join(format!("s{number}"))
    }

    pub(super) fn upper(&self, set: &SetSpec, volume: &str) -> PathBuf {
        self.set(set.pod, set.number).join(volume).join("upper")
    }

    pub(super) fn work(&self, set: &SetSpec, volume: &str) -> PathBuf {
        self.set(set.pod, set.number).join(volume).join("work")
    }

    pub(super) const fn installation(&self) -> InstallationId {
        self.installation
    }

    /// Reads a set's marker; `None` is a proven absence.
    pub(super) fn marker(&self, pod: PodId, number: SetNumber) -> Result<Option<Marker>, EngineError> {
        self.check()?;
        let path = self.set(pod, number).join(MARKER);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                // The root may have gone between the two looks.
                self.check()?;
                return Ok(None);
            }
            Err(e) => return Err(transient(format!("read {}: {e}", path.display()))),
        };
        let marker: Marker =
            serde_json::from_slice(&bytes).map_err(|e| transient(format!("{} cannot be read: {e}", path.display())))?;
        let ours = marker.installation == self.installation.to_string();
        if !ours || marker.pod != pod.to_string() || marker.set != number {
            return Err(conflict(format!("{} is the marker of another set", path.display())));
        }
        Ok(Some(marker))
    }

    /// Writes a set's marker durably, on a full disk as well.
    pub(super) fn write_marker(&self, pod: PodId, marker: &Marker) -> Result<(), EngineError> {
        let text = serde_json::to_vec_pretty(marker).map_err(|e| rejected(format!("write a marker: {e}")))?;
        spare::write_durably(&self.set(pod, marker.set), MARKER, &text).map_err(io("write the set's marker"))
    }

    /// Looks whether a set is there: directory, complete marker, and every upper directory (rule 3).
    pub(super) fn presence(&self, set: &SetSpec) -> Result<(Presence, Option<u64>), EngineError> {
        let dir = self.set(set.pod, set.number);
        let marker = self.marker(set.pod, set.number)?;
        if !is_there(&dir)? {
            self.check()?;
            return Ok((Presence::Absent, None));
        }
        let mut missing = Vec::new();
        if marker.as_ref().is_none_or(|m| m.state != MarkerState::Complete) {
            missing.push("marker".to_owned());
        }
        for volume in &set.volumes {
            if !is_there(&self.upper(set, &volume.name))? {
                missing.push(volume.name.clone());
            }
        }
        let generation = marker.and_then(|m| m.generation);
        self.check()?;
        let presence = if missing.is_empty() { Presence::Whole } else { Presence::Partial { missing } };
        Ok((presence, generation))
    }

    /// Where a copy is made that becomes this set.
    pub(super) fn copy_place(&self, pod: PodId, number: SetNumber) -> PathBuf {
        self.scratch().join(format!("copy-{pod}-s{number}"))
    }

    /// Deletes what is left of such a copy.
    pub(super) fn discard_copy(&self, pod: PodId, number: SetNumber) -> Result<(), EngineError> {
        let place = self.copy_place(pod, number);
        if is_there(&place)? { self.burn(&place) } else { Ok(()) }
    }

    /// Moves a set out of the way, durably, and returns where it went; `None` when there is none. What was copied for it, and of
    /// it, goes.
    pub(super) fn discard_set(&self, pod: PodId, number: SetNumber) -> Result<Option<PathBuf>, EngineError> {
        self.check()?;
        self.discard_copy(pod, number)?;
        self.discard_stills(pod, number)?;
        let dir = self.set(pod, number);
        if !is_there(&dir)? {
            return Ok(None);
        }
        let token = format!("{pod}-s{number}-{:016x}", rand::random::<u64>());
        let place = self.trash().join(token);
        // In one step: an empty place that waits for it is what another process that begins would delete.
        std::fs::rename(&dir, &place).map_err(io("move the set into the trash"))?;
        tree::sync_dir(&self.trash()).map_err(io("sync the trash"))?;
        tree::sync_dir(&self.pod(pod)).map_err(io("sync the pod's directory"))?;
        // Only an empty directory goes.
        if std::fs::remove_dir(self.pod(pod)).is_ok() {
            tree::sync_dir(&self.pods()).map_err(io("sync the pods' directory"))?;
        }
        Ok(Some(place))
    }

    /// Deletes one place in the trash.
    pub(super) fn burn(&self, place: &Path) -> Result<(), EngineError> {
        delete_subvolume(place);
        // As in places that earlier versions made, and where a copy is made.
        delete_subvolume(&place.join("set"));
        match tree::empty_trash(place) {
            // Another process was faster.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            emptied => emptied.map_err(io("empty the trash"))?,
        }
        match std::fs::remove_dir(place) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(transient(format!("empty the trash: {e}"))),
            _ => Ok(()),
        }
    }

    /// Deletes what an earlier run left in the trash, where each piece got with a permit, and old scratch.
    pub(super) fn burn_all(&self) -> Result<(), EngineError> {
        for entry in std::fs::read_dir(self.trash()).map_err(io("list the trash"))? {
            self.burn(&entry.map_err(io("list the trash"))?.path())?;
        }
        for entry in std::fs::read_dir(self.scratch()).map_err(io("list the scratch"))? {
            let entry = entry.map_err(io("list the scratch"))?;
            // Another process may be trying something right now.
            let age = entry.metadata().and_then(|m| m.modified()).map(|m| m.elapsed().unwrap_or_default());
            // What says of itself whether somebody reads it needs no guess.
            if age.is_ok_and(|age| age > ABANDONED)
                && !still::may_be_one(&entry.path())
                && let Err(error) = self.burn(&entry.path())
            {
                // It keeps nothing from starting; the next start tries again.
                tracing::warn!(place = %entry.path().display(), %error, "delete old scratch");
            }
        }
        Ok(())
    }

    /// Every set that has a marker of this installation.
    pub(super) fn list_sets(&self) -> Result<Vec<(PodId, SetNumber)>, EngineError> {
        self.check()?;
        let mut found = Vec::new();
        for pod in std::fs::read_dir(self.pods()).map_err(io("list the pods"))? {
            let pod = pod.map_err(io("list the pods"))?;
            let Some(id) = pod.file_name().to_str().and_then(|n| n.parse::<PodId>().ok()) else { continue };
            let sets = match std::fs::read_dir(pod.path()) {
                Ok(sets) => sets,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                Err(e) => return Err(transient(format!("list the sets of pod {id}: {e}"))),
            };
            for set in sets {
                let name = set.map_err(io("list the sets"))?.file_name();
                let number = name.to_str().and_then(|n| n.strip_prefix('s')).and_then(|n| n.parse().ok());
                if let Some(number) = number {
                    found.push((id, number));
                }
            }
        }
        Ok(found)
    }

    /// Makes the directory of a new set: a btrfs subvolume where that works, so that it can be copied in an instant.
    pub(super) fn make_set_dir(&self, pod: PodId, number: SetNumber) -> Result<PathBuf, EngineError> {
        self.check()?;
        let parent = self.pod(pod);
        tree::make_private_dir(&parent).map_err(io("make the pod's directory"))?;
        let dir = self.set(pod, number);
        if !(is_btrfs(&parent) && btrfs(&["subvolume", "create"], &dir).is_ok()) {
            tree::make_private_dir(&dir).map_err(io("make the set's directory"))?;
        }
        std::fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .map_err(io("set the mode of the set's directory"))?;
        tree::sync_dir(&parent).map_err(io("sync the pod's directory"))?;
        Ok(dir)
    }
}

/// The line in a small file; `None` when there is no such file, or no such directory.
fn read_line(path: &Path) -> Result<Option<String>, EngineError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(transient(format!("read {}: {e}", path.display()))),
    }
}

fn not_mounted(root: &Path, but: &str) -> EngineError {
    transient(format!(
        "the storage root {} is not mounted, {but}; mount it, or have `perennial storage claim` forget it if it is gone \
         for good",
        root.display()
    ))
}

/// Whether a directory exists; anything but a clear answer is an error.
pub(super) fn is_there(path: &Path) -> Result<bool, EngineError> {
    match std::fs::symlink_metadata(path) {
        Ok(found) => Ok(found.is_dir()),
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => Ok(false),
        Err(e) => Err(transient(format!("look at {}: {e}", path.display()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use perennial_core::spec::{Backend, TenantId};

    fn storage() -> (tempfile::TempDir, Storage, SetSpec) {
        let temp = tempfile::tempdir().expect("temp");
        let installation = InstallationId::from_parts(1, [1; 10]);
        let storage = Storage::open(&temp.path().join("root"), installation, None).expect("open");
        let set = SetSpec {
            pod: PodId::from_parts(1, [2; 10]),
            tenant: TenantId::default_tenant(),
            number: 1,
            backend: Backend::Overlay,
            image: "sha256:00".into(),
            volumes: vec![Volume { name: "home".into(), mount_path: "/home".into() }],
        };
        (temp, storage, set)
    }

    #[test]
    fn presence_needs_directory_complete_marker_and_uppers() {
        let (_temp, storage, set) = storage();
        let presence = || storage.presence(&set).expect("presence").0;
        assert_eq!(presence(), Presence::Absent);
        storage.make_set_dir(set.pod, 1).expect("dir");
        let partial = |names: &[&str]| Presence::Partial { missing: names.iter().map(|n| (*n).to_owned()).collect() };
        assert_eq!(presence(), partial(&["marker", "home"]));
        let mut marker = Marker::preparing(storage.installation, &set);
        storage.write_marker(set.pod, &marker).expect("marker");
        std::fs::create_dir_all(storage.upper(&set, "home")).expect("upper");
        assert_eq!(presence(), partial(&["marker"]));
        marker.state = MarkerState::Complete;
        marker.generation = Some(7);
        storage.write_marker(set.pod, &marker).expect("marker");
        assert_eq!(storage.presence(&set), Ok((Presence::Whole, Some(7))));
        assert_eq!(storage.list_sets(), Ok(vec![(set.pod, 1)]));
    }

    #[test]
    fn a_set_goes_while_another_process_empties_the_trash() {
        let (_temp, storage, set) = storage();
        let over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let other = scope.spawn(|| {
                while !over.load(std::sync::atomic::Ordering::Acquire) {
                    storage.burn_all().expect("emptied");
                }
            });
            let all = (1..=300).map(|number| {
                storage.make_set_dir(set.pod, number)?;
                std::fs::write(storage.set(set.pod, number).join("file"), "bytes").map_err(io("write"))?;
                let place = storage.discard_set(set.pod, number)?.ok_or_else(|| transient("there is no set"))?;
                storage.burn(&place)
            });
            let ended: Result<Vec<()>, EngineError> = all.collect();
            over.store(true, std::sync::atomic::Ordering::Release);
            other.join().expect("no panic");
            ended.expect("deleted");
        });
        assert_eq!(std::fs::read_dir(storage.trash()).expect("trash").count(), 0);
    }

    #[test]
    fn a_root_that_is_not_mounted_is_not_an_absence() {
        let (_temp, storage, set) = storage();
        std::fs::remove_file(storage.root().join(OWNER)).expect("unmount");
        assert!(matches!(storage.presence(&set), Err(EngineError::Transient { .. })));
        assert!(matches!(storage.list_sets(), Err(EngineError::Transient { .. })));
    }

    #[test]
    fn a_new_root_that_many_open_at_once_gets_one_identity() {
        let temp = tempfile::tempdir().expect("temp");
        let installation = InstallationId::from_parts(1, [1; 10]);
        for round in 0..50 {
            let root = temp.path().join(round.to_string());
            let together = std::sync::Barrier::new(4);
            std::thread::scope(|scope| {
                let open = || {
                    together.wait();
                    let opened = Storage::open(&root, installation, None);
                    together.wait();
                    opened.and_then(|storage| storage.check())
                };
                let all: Vec<_> = (0..4).map(|_| scope.spawn(open)).collect();
                for one in all {
                    assert_eq!(one.join().expect("joined"), Ok(()), "round {round}");
                }
            });
        }
    }

    #[test]
    fn a_root_of_another_installation_is_refused() {
        let (_temp, storage, _) = storage();
        let other = InstallationId::from_parts(1, [9; 10]);
        assert!(matches!(Storage::open(storage.root(), other, None), Err(EngineError::Rejected { .. })));
    }

    #[test]
    fn a_root_on_record_is_never_claimed_anew() {
        let temp = tempfile::tempdir().expect("temp");
        let (root, record) = (temp.path().join("root"), temp.path().join("record"));
        let installation = InstallationId::from_parts(1, [1; 10]);
        let open = || Storage::open(&root, installation, Some(&record));
        let first = open().expect("claim");
        assert_eq!(open().expect("open again").owner, first.owner);
        // The disk is away: its place is empty, or not even there, and stays so.
        let away = temp.path().join("away");
        std::fs::rename(&root, &away).expect("unmount");
        for there in [false, true] {
            if there {
                std::fs::create_dir(&root).expect("mount point");
            }
            assert!(matches!(open(), Err(EngineError::Transient { .. })));
            assert_eq!(root.exists(), there);
            assert!(!there || std::fs::read_dir(&root).expect("list").count() == 0);
        }
        // Another disk of the same installation is not this one.
        let other = temp.path().join("other");
        Storage::open(&other, installation, None).expect("claim");
        std::fs::remove_dir(&root).expect("mount point");
        std::fs::rename(&other, &root).expect("mount");
        assert!(matches!(open(), Err(EngineError::Transient { .. })));
        // Only without the record it is taken as it is.
        std::fs::remove_file(&record).expect("forget");
        assert_ne!(open().expect("taken over").owner, first.owner);
        std::fs::remove_dir_all(&root).expect("unmount");
        std::fs::rename(&away, &root).expect("mount");
        assert!(matches!(open(), Err(EngineError::Transient { .. })));
    }

    #[test]
    fn a_root_from_before_identities_gets_one() {
        let (_temp, storage, _) = storage();
        std::fs::write(storage.root().join(OWNER), format!("{}\n", storage.installation)).expect("old");
        let record = storage.root().parent().expect("parent").join("record");
        let again = Storage::open(storage.root(), storage.installation, Some(&record)).expect("open");
        assert_eq!(again.check(), Ok(()));
        let identity = std::fs::read_to_string(record).expect("record");
        assert!(again.owner.ends_with(identity.trim()) && identity.trim().len() == 32);
    }

    /// Nobody's data stays on the host because a server died while it was copied.
    #[test]
    fn what_a_crash_left_of_a_copy_goes_with_the_set_it_was_for() {
        let (_temp, storage, set) = storage();
        let place = storage.copy_place(set.pod, 1);
        std::fs::create_dir_all(place.join("set/home/upper/a")).expect("copy");
        std::fs::write(place.join("set/home/upper/a/file"), "of somebody else").expect("file");
        assert_eq!(storage.discard_set(set.pod, 2), Ok(None));
        assert!(place.exists(), "it is another set's");
        // Whether or not there is anything of the set itself.
        assert_eq!(storage.discard_set(set.pod, 1), Ok(None));
        assert!(!place.exists());
    }

    #[test]
    fn a_discarded_set_leaves_nothing() {
        let (_temp, storage, set) = storage();
        storage.make_set_dir(set.pod, 1).expect("dir");
        std::fs::create_dir_all(storage.upper(&set, "home").join("a/b")).expect("upper");
        let place = storage.discard_set(set.pod, 1).expect("discard").expect("was there");
        assert_eq!(storage.presence(&set).expect("presence").0, Presence::Absent);
        storage.burn(&place).expect("burn");
        assert!(!place.exists() && !storage.pod(set.pod).exists());
    }
}
