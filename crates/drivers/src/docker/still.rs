//! Stills: a set of overlay volumes as it was at one instant, for a snapshot to be read from while the pod goes on.
//!
//! A still is a read-only snapshot of the set's subvolume in a place of its own in the scratch directory. Beside it lies a marker
//! that says whose it is, and whoever reads the still holds the lock of that file. So a still that nobody reads, because its
//! reader is done or dead, is known by its marker and its free lock; neither a name nor an age is looked at. The marker is there,
//! and locked, before there is anything to delete.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use perennial_core::engine::{Effect, EngineError, SetSpec, Still};
use perennial_core::id::{InstallationId, PodId};
use perennial_core::permit::DeletePermit;
use perennial_core::spec::Backend;
use perennial_core::volume::SetNumber;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::btrfs::{btrfs, failed, is_subvolume};
use super::client::{blocking, conflict, io, rejected, transient};
use super::storage::{MarkerState, Storage};
use super::within::Within;
use super::{DockerEngine, scratch};

const MARKER: &str = "still.json";
/// The marker until it is locked.
const FRESH: &str = "still.json.new";

/// What lies beside a still and tells what it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Marker {
    /// Version of this format.
    format: u32,
    installation: String,
    pod: String,
    set: SetNumber,
    /// What a permit to delete it names.
    name: String,
}

impl Marker {
    fn is_of(&self, pod: PodId, number: SetNumber) -> bool {
        self.pod == pod.to_string() && self.set == number
    }

    fn is_ours(&self, installation: InstallationId) -> bool {
        self.format == 1 && self.installation == installation.to_string()
    }
}

/// The lock of a still that is read. It is given back even while a child of this process still has the file.
struct Reading(File);

impl Drop for Reading {
    fn drop(&mut self) {
        if let Err(error) = flock(&self.0, FlockOperation::Unlock) {
            tracing::warn!(%error, "unlock what a snapshot was read from");
        }
    }
}

impl DockerEngine {
    /// Makes a still of a set.
    pub(super) async fn still(&self, set: &SetSpec) -> Result<Still, EngineError> {
        if set.backend != Backend::Overlay {
            return Err(rejected("only a set of overlay volumes can be copied at one instant"));
        }
        let (storage, set) = (self.storage.clone(), set.clone());
        blocking(move || storage.make_still(&set)).await
    }

    /// Deletes stills that nobody reads.
    pub(super) async fn sweep_stills(&self) -> Result<Effect, EngineError> {
        let storage = self.storage.clone();
        blocking(move || storage.sweep_stills()).await
    }
}

/// Whether this is the place of a still, also of one whose marker says nothing that can be understood.
pub(super) fn may_be_one(place: &Path) -> bool {
    // Only what is known not to be there is not there.
    !matches!(place.join(MARKER).try_exists(), Ok(false))
}

/// Reads the marker in a place; `None` when there is none that can be read.
fn read(place: &Path) -> Result<Option<Marker>, EngineError> {
    match std::fs::read(place.join(MARKER)) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(transient(format!("read {}: {e}", place.join(MARKER).display()))),
    }
}

impl Storage {
    /// Whoever writes into the set stands still until this returns, so there is nothing here that can wait.
    fn make_still(&self, set: &SetSpec) -> Result<Still, EngineError> {
        let what = format!("set {} of pod {}", set.number, set.pod);
        let marker = self.marker(set.pod, set.number)?;
        if marker.is_none_or(|m| m.state != MarkerState::Complete) {
            return Err(conflict(format!("{what} is not whole and is not copied")));
        }
        let dir = self.set(set.pod, set.number);
        let within = Within::of(&dir, &set.volumes)?;
        let name = format!("still-{}", scratch::token());
        let place = self.scratch().join(&name);
        std::fs::create_dir(&place).map_err(io("make a place for the copy"))?;
        let marker = Marker {
            format: 1,
            installation: self.installation().to_string(),
            pod: set.pod.to_string(),
            set: set.number,
            name,
        };
        let reading = mark(&place, &marker).map_err(io("mark the place of the copy"))?;
        let copy = place.join("set");
        let words = ["subvolume", "snapshot", "-r", dir.to_str().unwrap_or_default()];
        btrfs(&words, &copy).map_err(|complaint| failed(&format!("copy {what}"), &complaint))?;
        within.check_copy(&copy)?;
        let volumes = set.volumes.iter().map(|v| (v.name.clone(), copy.join(&v.name).join("upper")));
        Ok(Still { volumes: volumes.collect(), keep: Box::new(reading) })
    }

    /// Deletes every still of this installation that nobody reads. One that does not go keeps no other.
    pub(super) fn sweep_stills(&self) -> Result<Effect, EngineError> {
        self.check()?;
        let (mut effect, mut failure) = (Effect::Unchanged, None);
        for entry in std::fs::read_dir(self.scratch()).map_err(io("list the scratch"))? {
            let place = entry.map_err(io("list the scratch"))?.path();
            match self.delete_still(&place, |_| true) {
                Ok(Gone::Deleted) => effect = Effect::Removed,
                Ok(Gone::Other | Gone::InUse) => {}
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        failure.map_or(Ok(effect), Err)
    }

    /// Deletes every still of one set; refuses while somebody reads one.
    pub(super) fn discard_stills(&self, pod: PodId, number: SetNumber) -> Result<(), EngineError> {
        for entry in std::fs::read_dir(self.scratch()).map_err(io("list the scratch"))? {
            let place = entry.map_err(io("list the scratch"))?.path();
            // A copy that nobody can tell the owner of is of no use to anybody, and keeps no set.
            if let Err(error) = read(&place) {
                tracing::warn!(place = %place.display(), %error, "look whose copy this is");
                continue;
            }
            if matches!(self.delete_still(&place, |marker| marker.is_of(pod, number))?, Gone::InUse) {
                return Err(conflict(format!("a snapshot of set {number} of pod {pod} is still being read")));
            }
        }
        Ok(())
    }

    /// Deletes what is in a place if it is a still of this installation that is wanted gone and that nobody reads.
    fn delete_still(&self, place: &Path, wanted: impl Fn(&Marker) -> bool) -> Result<Gone, EngineError> {
        let Some(marker) = read(place)?.filter(|m| m.is_ours(self.installation()) && wanted(m)) else {
            return Ok(Gone::Other);
        };
        let file = match File::open(place.join(MARKER)) {
            Ok(file) => file,
            // Another process was faster.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Gone::Other),
            Err(e) => return Err(transient(format!("open {}: {e}", place.join(MARKER).display()))),
        };
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Ok(Gone::InUse),
            Err(e) => return Err(transient(format!("lock {}: {e}", place.join(MARKER).display()))),
        }
        let _deleting = Reading(file);
        self.burn_still(place, &marker, &DeletePermit::scratch(marker.name.clone()))?;
        Ok(Gone::Deleted)
    }

    fn burn_still(&self, place: &Path, marker: &Marker, permit: &DeletePermit) -> Result<(), EngineError> {
        let is_here = place.file_name().is_some_and(|name| name == marker.name.as_str());
        if !is_here || !permit.covers_scratch(&marker.name) {
            return Err(rejected(format!("the permit ({permit}) does not cover {}", place.display())));
        }
        let copy = place.join("set");
        // Whoever moved the storage root by copying its files made a plain directory of it.
        if is_subvolume(&copy) {
            // Read-only as it is, it goes as a whole or not at all; until then its marker stays.
            btrfs(&["subvolume", "delete"], &copy)
                .map_err(|complaint| transient(format!("delete {}: {complaint}", copy.display())))?;
        }
        self.burn(place)
    }
}

/// What became of a place in the scratch directory.
#[derive(Debug, PartialEq, Eq)]
enum Gone {
    /// It was deleted.
    Deleted,
    /// Somebody reads it.
    InUse,
    /// It is nothing that was asked for.
    Other,
}

/// Writes the marker of a place; whoever sees it there sees it locked.
fn mark(place: &Path, marker: &Marker) -> std::io::Result<Reading> {
    let mut file = File::create_new(place.join(FRESH))?;
    file.write_all(&serde_json::to_vec_pretty(marker)?)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    std::fs::rename(place.join(FRESH), place.join(MARKER))?;
    // The copy is on the disk at once; what tells whose it is must not come later. With the file its name is, too.
    file.sync_all()?;
    Ok(Reading(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OTHER: u8 = 9;

    fn storage() -> (tempfile::TempDir, Storage) {
        let temp = tempfile::tempdir().expect("temp");
        let storage = Storage::open(&temp.path().join("root"), installation(1), None).expect("open");
        (temp, storage)
    }

    fn installation(n: u8) -> InstallationId {
        InstallationId::from_parts(1, [n; 10])
    }

    fn pod(n: u8) -> PodId {
        PodId::from_parts(1, [n; 10])
    }

    /// A place with a marker, and nothing in it that only btrfs can delete.
    fn still(storage: &Storage, name: &str, of: InstallationId, pod: PodId) -> Reading {
        let place = storage.scratch().join(name);
        std::fs::create_dir(&place).expect("place");
        let marker = Marker {
            format: 1,
            installation: of.to_string(),
            pod: pod.to_string(),
            set: 1,
            name: "still-a".to_owned(),
        };
        mark(&place, &marker).expect("marked")
    }

    #[test]
    fn a_still_goes_when_nobody_reads_it_and_is_known_by_its_marker_alone() {
        let (_temp, storage) = storage();
        let reading = still(&storage, "still-a", installation(1), pod(2));
        // None of ours, in a place that was named as ours are; and one without a marker.
        drop(still(&storage, "still-b", installation(OTHER), pod(2)));
        std::fs::create_dir(storage.scratch().join("still-c")).expect("place");
        assert_eq!(storage.sweep_stills(), Ok(Effect::Unchanged), "it is being read");
        drop(reading);
        assert_eq!(storage.sweep_stills(), Ok(Effect::Removed));
        let left = |name: &str| storage.scratch().join(name).exists();
        assert_eq!(["still-a", "still-b", "still-c"].map(left), [false, true, true]);
        assert_eq!(storage.sweep_stills(), Ok(Effect::Unchanged));
    }

    #[test]
    fn a_still_that_was_moved_with_its_root_as_plain_files_goes_too() {
        let (_temp, storage) = storage();
        drop(still(&storage, "still-a", installation(1), pod(2)));
        std::fs::create_dir_all(storage.scratch().join("still-a/set/home/upper")).expect("copied");
        assert_eq!(storage.discard_set(pod(2), 1), Ok(None));
        assert!(!storage.scratch().join("still-a").exists());
    }

    #[test]
    fn a_set_takes_its_stills_with_it_and_waits_for_whoever_reads_one() {
        let (_temp, storage) = storage();
        let reading = still(&storage, "still-a", installation(1), pod(2));
        assert_eq!(storage.discard_set(pod(3), 1), Ok(None), "it is of another pod");
        assert!(matches!(storage.discard_set(pod(2), 1), Err(EngineError::Conflict { .. })));
        drop(reading);
        assert_eq!(storage.discard_set(pod(2), 2), Ok(None), "it is of another set");
        assert!(storage.scratch().join("still-a").exists());
        assert_eq!(storage.discard_set(pod(2), 1), Ok(None));
        assert!(!storage.scratch().join("still-a").exists());
    }

    #[test]
    fn a_marker_that_cannot_be_read_keeps_its_place_and_no_set() {
        let (_temp, storage) = storage();
        let broken = storage.scratch().join("still-a");
        // Reading a directory fails, for root too.
        std::fs::create_dir_all(broken.join(MARKER)).expect("broken");
        let unclear = storage.scratch().join("still-b");
        std::fs::create_dir(&unclear).expect("place");
        std::fs::write(unclear.join(MARKER), "{").expect("marker");
        assert_eq!(storage.discard_set(pod(2), 1), Ok(None));
        let old = std::time::SystemTime::now() - std::time::Duration::from_secs(7200);
        for place in [&broken, &unclear] {
            File::open(place).expect("open").set_modified(old).expect("time");
        }
        storage.burn_all().expect("swept");
        assert!(broken.exists() && unclear.exists());
    }

    #[test]
    fn a_marker_in_a_place_of_another_name_deletes_nothing() {
        let (_temp, storage) = storage();
        drop(still(&storage, "somewhere", installation(1), pod(2)));
        assert!(matches!(storage.sweep_stills(), Err(EngineError::Rejected { .. })));
        assert!(storage.scratch().join("somewhere").exists());
    }

    #[test]
    fn a_still_that_is_read_for_hours_is_not_swept_for_its_age() {
        let (_temp, storage) = storage();
        let reading = still(&storage, "still-a", installation(1), pod(2));
        let place = storage.scratch().join("still-a");
        let old = std::time::SystemTime::now() - std::time::Duration::from_secs(7200);
        File::open(&place).expect("open").set_modified(old).expect("time");
        storage.burn_all().expect("swept");
        assert!(place.exists());
        drop(reading);
    }
}
