//! Image trees that nobody needs any more: found, proven to be nobody's, and deleted as scratch.
//!
//! A tree goes when no set's marker names its image, no mount in any namespace has it below, nobody is about to use it
//! (its lock), and nobody has used it for a day: a pod that was stopped has no set, and its next start is quicker with
//! the tree. A set without a readable marker may stand on any tree, so then none goes. What was deleted by mistake would
//! be made again from the image.

use std::collections::HashSet;
use std::fs::File;
use std::path::Path;
use std::time::{Duration, SystemTime};

use perennial_core::engine::EngineError;
use perennial_core::permit::DeletePermit;
use rustix::fs::{self, FlockOperation};

use super::client::{io, rejected};
use super::storage::Storage;
use super::{scratch, tree, writers};

/// What says that a tree is whole; its time is that of the last use.
pub(super) const COMPLETE: &str = "complete";
/// How long a tree is kept that no set needs.
const UNUSED: Duration = Duration::from_secs(24 * 3600);
/// How exact the time of the last use is.
const EXACT: Duration = Duration::from_secs(3600);

/// The image as its tree is called: the digits of its id.
pub(super) fn tree_name(image: &str) -> &str {
    image.strip_prefix("sha256:").unwrap_or(image)
}

fn age(file: &Path) -> Option<Duration> {
    let modified = std::fs::metadata(file).and_then(|m| m.modified()).ok()?;
    Some(SystemTime::now().duration_since(modified).unwrap_or_default())
}

/// Notes that a tree is used now.
pub(super) fn note_use(complete: &Path) {
    let noted = match age(complete) {
        Some(age) if age > EXACT => {
            File::options().append(true).open(complete).and_then(|f| f.set_modified(SystemTime::now()))
        }
        _ => Ok(()),
    };
    if let Err(e) = noted {
        tracing::debug!(tree = %complete.display(), error = %e, "note the use of an image's tree");
    }
}

impl Storage {
    /// Keeps others from making or deleting an image's tree as long as the file lives.
    pub(super) fn lock_tree(&self, image: &str) -> Result<File, EngineError> {
        tree::lock(&self.images().join(format!("{}.lock", tree_name(image)))).map_err(io("lock the image's tree"))
    }

    /// Deletes the trees that nobody needs; returns the names of those that went.
    pub(super) fn sweep_trees(&self) -> Result<Vec<String>, EngineError> {
        self.check()?;
        let mut gone = Vec::new();
        for entry in std::fs::read_dir(self.images()).map_err(io("list the images"))? {
            let entry = entry.map_err(io("list the images"))?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let is_tree = entry.file_type().is_ok_and(|t| t.is_dir()) && name.bytes().all(|b| b.is_ascii_hexdigit());
            // One that is only half made is made again by whoever needs it; until then it looks like an old one.
            let old = age(&entry.path().join(COMPLETE)).or_else(|| age(&entry.path())).is_some_and(|a| a > UNUSED);
            if is_tree && old && self.delete_tree(&name, &DeletePermit::scratch(name.clone()))? {
                gone.push(name);
            }
        }
        Ok(gone)
    }

    /// Deletes one tree if it is proven to be nobody's.
    fn delete_tree(&self, name: &str, permit: &DeletePermit) -> Result<bool, EngineError> {
        if !permit.covers_scratch(name) {
            return Err(rejected(format!("the permit ({permit}) does not cover the image tree {name}")));
        }
        let lock = File::options().create(true).append(true).open(self.images().join(format!("{name}.lock")));
        let lock = lock.map_err(io("lock the image's tree"))?;
        if fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Ok(false);
        }
        // Looked at under the lock: a set is marked under it, too.
        let Some(needed) = self.needed_trees()? else { return Ok(false) };
        let dir = self.images().join(name);
        if needed.contains(name) || writers::is_lower(&dir)? {
            return Ok(false);
        }
        let complete = dir.join(COMPLETE);
        if age(&complete).is_some_and(|a| a <= UNUSED) {
            return Ok(false);
        }
        // From here on it is none, whatever happens to the rest.
        match std::fs::remove_file(&complete) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(io("unmark an image's tree")(e)),
            _ => tree::sync_dir(&dir).map_err(io("sync an image's tree"))?,
        }
        self.discard_tree(&dir)?;
        tracing::info!(tree = name, "image tree deleted: nothing needs it");
        Ok(true)
    }

    /// Moves a tree into the trash and deletes it there.
    pub(super) fn discard_tree(&self, dir: &Path) -> Result<(), EngineError> {
        let place = self.trash().join(format!("image-{}", scratch::token()));
        std::fs::rename(dir, &place).map_err(io("remove an image tree"))?;
        self.burn(&place)
    }

    /// Names of the trees that sets stand on; `None` when one does not tell.
    fn needed_trees(&self) -> Result<Option<HashSet<String>>, EngineError> {
        let mut needed = HashSet::new();
        for (pod, number) in self.list_sets()? {
            match self.marker(pod, number) {
                Ok(Some(marker)) => needed.insert(tree_name(&marker.image).to_owned()),
                Ok(None) | Err(EngineError::Conflict { .. } | EngineError::Transient { .. }) => return Ok(None),
                Err(e) => return Err(e),
            };
        }
        Ok(Some(needed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::docker::storage::Marker;
    use perennial_core::engine::SetSpec;
    use perennial_core::id::{InstallationId, PodId};
    use perennial_core::spec::{Backend, TenantId};

    const NAME: &str = "00ff";

    fn set() -> SetSpec {
        SetSpec {
            pod: PodId::from_parts(1, [2; 10]),
            tenant: TenantId::default_tenant(),
            number: 1,
            backend: Backend::Overlay,
            image: format!("sha256:{NAME}"),
            volumes: Vec::new(),
        }
    }

    fn storage() -> (tempfile::TempDir, Storage) {
        let temp = tempfile::tempdir().expect("temp");
        let installation = InstallationId::from_parts(1, [1; 10]);
        let storage = Storage::open(&temp.path().join("root"), installation, None).expect("open");
        std::fs::create_dir_all(storage.images().join(NAME).join("rootfs/etc")).expect("tree");
        std::fs::write(storage.images().join(NAME).join(COMPLETE), "").expect("complete");
        (temp, storage)
    }

    fn grow_old(storage: &Storage) {
        let file = File::options().append(true).open(storage.images().join(NAME).join(COMPLETE)).expect("complete");
        file.set_modified(SystemTime::now() - 2 * UNUSED).expect("time");
    }

    #[test]
    fn a_tree_goes_when_it_is_old_and_nobody_needs_it() {
        let (_temp, storage) = storage();
        assert_eq!(storage.sweep_trees(), Ok(Vec::new()), "it was used a moment ago");
        grow_old(&storage);
        note_use(&storage.images().join(NAME).join(COMPLETE));
        assert_eq!(storage.sweep_trees(), Ok(Vec::new()), "it is used again");
        grow_old(&storage);
        assert_eq!(storage.sweep_trees(), Ok(vec![NAME.to_owned()]));
        assert!(!storage.images().join(NAME).exists());
        assert_eq!(std::fs::read_dir(storage.trash()).expect("trash").count(), 0);
    }

    #[test]
    fn a_tree_stays_while_a_set_or_somebody_at_work_may_need_it() {
        let (_temp, storage) = storage();
        grow_old(&storage);
        let set = set();
        let dir = storage.make_set_dir(set.pod, set.number).expect("set");
        assert_eq!(storage.sweep_trees(), Ok(Vec::new()), "a set without a marker may stand on it");
        storage
            .write_marker(set.pod, &Marker::preparing(InstallationId::from_parts(1, [1; 10]), &set))
            .expect("marker");
        assert_eq!(storage.sweep_trees(), Ok(Vec::new()), "a set stands on it");
        std::fs::remove_dir_all(dir).expect("remove");
        let held = storage.lock_tree(&set.image).expect("lock");
        assert_eq!(storage.sweep_trees(), Ok(Vec::new()), "somebody is about to use it");
        drop(held);
        assert_eq!(storage.sweep_trees(), Ok(vec![NAME.to_owned()]));
    }

    #[test]
    fn a_permit_for_something_else_deletes_no_tree() {
        let (_temp, storage) = storage();
        grow_old(&storage);
        let refused = storage.delete_tree(NAME, &DeletePermit::scratch("other"));
        assert!(matches!(refused, Err(EngineError::Rejected { .. })), "{refused:?}");
        assert!(storage.images().join(NAME).exists());
    }
}
