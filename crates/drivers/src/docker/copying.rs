//! Sets of overlay volumes copied beside themselves.
//!
//! On btrfs a set is a subvolume, and a copy of it is one call, whatever is in it; a set with something outside of its subvolume is
//! copied file by file ([`Within`]). The snapshot begins in the scratch
//! directory, under the name of the set that it becomes: as long as it carries the marker of the set it was taken of, it must not
//! lie where a set is looked for. With a marker of its own it changes places with the directories that were prepared. What a crash
//! leaves goes with the next try, and with the set.

use std::path::Path;

use perennial_core::engine::{Copying, Effect, EngineError, SetSpec};
use perennial_core::spec::Backend;
use rustix::fs::{CWD, Mode, OFlags, RenameFlags, ioctl_ficlone, open, renameat_with};
use rustix::io::write;

use super::btrfs::{btrfs, failed, is_subvolume};
use super::client::{blocking, conflict, io, rejected, transient};
use super::storage::{MARKER, MarkerState, Storage};
use super::within::Within;
use super::{DockerEngine, spare, tree};

impl DockerEngine {
    /// Looks what the storage root can do with a set.
    pub(super) async fn copying(&self, set: &SetSpec) -> Result<Option<Copying>, EngineError> {
        if set.backend != Backend::Overlay {
            return Ok(None);
        }
        let (storage, set) = (self.storage.clone(), set.clone());
        blocking(move || {
            storage.check()?;
            let dir = storage.set(set.pod, set.number);
            if is_subvolume(&dir) {
                match Within::of(&dir, &set.volumes) {
                    Ok(_) => return Ok(Some(Copying::Instant)),
                    // Copied file by file it is all there, whatever kept the look from telling.
                    Err(error) => tracing::info!(%error, "a set is not copied at once"),
                }
            }
            Ok(Some(if shares(&storage.scratch())? { Copying::Shared } else { Copying::Bytes }))
        })
        .await
    }

    /// Makes a prepared set a snapshot of another.
    pub(super) async fn snapshot(&self, from: &SetSpec, to: &SetSpec) -> Result<Effect, EngineError> {
        if from.backend != Backend::Overlay || to.backend != Backend::Overlay {
            return Err(rejected("only a set of overlay volumes can be copied at one instant"));
        }
        let (storage, from, to) = (self.storage.clone(), from.clone(), to.clone());
        blocking(move || storage.snapshot_set(&from, &to)).await
    }
}

impl Storage {
    fn snapshot_set(&self, from: &SetSpec, to: &SetSpec) -> Result<Effect, EngineError> {
        let state = |set: &SetSpec| self.marker(set.pod, set.number).map(|m| m.map(|m| (m.state, m)));
        let what = |set: &SetSpec| format!("set {} of pod {}", set.number, set.pod);
        let Some((MarkerState::Complete, source)) = state(from)? else {
            return Err(conflict(format!("{} is not whole and is not copied", what(from))));
        };
        let Some((MarkerState::Preparing, own)) = state(to)? else {
            return Err(conflict(format!("{} is not being prepared", what(to))));
        };
        if source.volumes != own.volumes || source.image != own.image {
            return Err(rejected(format!("{} has other volumes than {}", what(to), what(from))));
        }
        let dir = self.set(from.pod, from.number);
        if !is_subvolume(&dir) {
            return Err(rejected(format!("{} is no subvolume of btrfs", what(from))));
        }
        let within = Within::of(&dir, &from.volumes)?;
        self.discard_copy(to.pod, to.number)?;
        let place = self.copy_place(to.pod, to.number);
        tree::make_private_dir(&place).map_err(io("make a place for the copy"))?;
        let made = self.snapshot_into((&dir, &within), &place, to, &own);
        // What changed places, or did not come to that.
        let cleared = self.burn(&place);
        made.and(cleared).map(|()| Effect::Created)
    }

    fn snapshot_into(
        &self,
        (from, within): (&Path, &Within),
        place: &Path,
        to: &SetSpec,
        marker: &super::storage::Marker,
    ) -> Result<(), EngineError> {
        let copy = place.join("set");
        let words = ["subvolume", "snapshot", from.to_str().unwrap_or_default()];
        btrfs(&words, &copy).map_err(|complaint| failed(&format!("copy {}", from.display()), &complaint))?;
        within.check_copy(&copy)?;
        // A source that is full would leave no room for the marker.
        super::quota::lift_inherited(self.root(), &copy)?;
        let text = serde_json::to_vec_pretty(marker).map_err(|e| rejected(format!("write a marker: {e}")))?;
        spare::write_durably(&copy, MARKER, &text).map_err(io("write the marker of the copy"))?;
        let target = self.set(to.pod, to.number);
        renameat_with(CWD, &copy, CWD, &target, RenameFlags::EXCHANGE)
            .map_err(|e| transient(format!("put the copy in the place of {}: {e}", target.display())))?;
        tree::sync_dir(&self.pod(to.pod)).map_err(io("sync the pod's directory"))
    }
}

/// Whether two files in this directory can share their contents.
fn shares(directory: &Path) -> Result<bool, EngineError> {
    let file = || open(directory, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR);
    let (Ok(from), Ok(to)) = (file(), file()) else { return Ok(false) };
    write(&from, b"shared").map_err(|e| transient(format!("write to {}: {e}", directory.display())))?;
    Ok(ioctl_ficlone(&to, &from).is_ok())
}
