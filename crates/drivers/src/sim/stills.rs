//! Stills: copies of overlay sets, each with a marker beside it that says whose it is. Who reads one is known to the process,
//! as a lock that ends with it would be; a still that nobody reads waits to be swept.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use perennial_core::engine::{Copying, Effect, EngineError, Presence, SetSpec, Still};
use perennial_core::id::PodId;
use perennial_core::permit::DeletePermit;
use perennial_core::spec::Backend;
use perennial_core::volume::SetNumber;
use serde::{Deserialize, Serialize};

use super::faults::Fate;
use super::tree::{copy_layer, remove_any};
use super::{Deleted, Deletion, Shared, SimEngine, State, broken, conflict, rejected};

const MARKER: &str = "still.json";

/// Whose a still is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Marker {
    #[serde(with = "super::text")]
    pod: PodId,
    set: SetNumber,
}

/// A still that somebody may be reading.
pub(super) struct Read {
    name: String,
    reader: Weak<()>,
}

impl State {
    fn is_read(&self, name: &str) -> bool {
        self.stills.iter().any(|still| still.name == name && still.reader.strong_count() > 0)
    }
}

impl Shared {
    pub(super) fn stills(&self) -> PathBuf {
        self.root.join("stills")
    }

    pub(super) fn set_still(&self, state: &mut State, fate: Fate, set: &SetSpec) -> Result<Still, EngineError> {
        let what = format!("set {} of pod {}", set.number, set.pod);
        if self.options.copying != Some(Copying::Instant) || set.backend != Backend::Overlay {
            return Err(state.violation(rejected(format!("the storage does not copy {what} at one instant"))));
        }
        if self.observe_set(set)?.presence != Presence::Whole {
            return Err(conflict(format!("{what} is not whole")));
        }
        if state.is_written(set.pod) {
            return Err(
                state.violation(conflict(format!("a still of {what} would be of no instant: it is written to")))
            );
        }
        state.made += 1;
        let name = format!("still-{}", state.made);
        let place = self.stills().join(&name);
        fs::create_dir_all(&place).map_err(|e| broken("make a place for a still", &e))?;
        let marker = serde_json::to_vec(&Marker { pod: set.pod, set: set.number });
        let marker = marker.map_err(|e| rejected(format!("write marker: {e}")))?;
        fs::write(place.join(MARKER), marker).map_err(|e| broken("mark a still", &e))?;
        let stop_at = (fate.halfway || fate.disk_full).then_some(set.volumes.len() / 2);
        let source = self.set_directory(set.pod, set.backend, set.number);
        let mut volumes = Vec::new();
        for (i, volume) in set.volumes.iter().enumerate() {
            if stop_at == Some(i) {
                break;
            }
            let copy = place.join(&volume.name);
            fs::create_dir(&copy)
                .and_then(|()| copy_layer(&Self::tree_directory(&source, set.backend, &volume.name), &copy))
                .map_err(|e| broken("copy volume", &e))?;
            volumes.push((volume.name.clone(), copy));
        }
        if fate.disk_full {
            return Err(rejected(format!("no space left for a still of {what}")));
        }
        if fate.halfway {
            return Err(EngineError::OutcomeUnknown { problem: format!("the connection broke while copying {what}") });
        }
        let reader = Arc::new(());
        state.stills.push(Read { name, reader: Arc::downgrade(&reader) });
        Ok(Still { volumes, keep: Box::new(reader) })
    }

    pub(super) fn stills_sweep(&self, state: &mut State) -> Result<Effect, EngineError> {
        let mut effect = Effect::Unchanged;
        for (place, name, marker) in self.list_stills()? {
            if !state.is_read(&name) {
                self.delete_still(state, &place, &name, &marker)?;
                effect = Effect::Removed;
            }
        }
        Ok(effect)
    }

    /// Deletes the stills of one set; refuses while somebody reads one.
    pub(super) fn discard_stills(&self, state: &mut State, set: &SetSpec) -> Result<(), EngineError> {
        for (place, name, marker) in self.list_stills()? {
            if (marker.pod, marker.set) != (set.pod, set.number) || set.backend != Backend::Overlay {
                continue;
            }
            if state.is_read(&name) {
                return Err(conflict(format!(
                    "a snapshot of set {} of pod {} is still being read",
                    set.number, set.pod
                )));
            }
            self.delete_still(state, &place, &name, &marker)?;
        }
        Ok(())
    }

    fn delete_still(&self, state: &mut State, place: &Path, name: &str, marker: &Marker) -> Result<(), EngineError> {
        remove_any(place).map_err(|e| broken("delete a still", &e))?;
        state.stills.retain(|still| still.name != name);
        state.deletions.push(Deletion {
            at: self.clock.now(),
            pod: marker.pod,
            what: Deleted::Still(marker.set),
            generation: None,
            permit: DeletePermit::scratch(name),
        });
        Ok(())
    }

    fn list_stills(&self) -> Result<Vec<(PathBuf, String, Marker)>, EngineError> {
        let mut found = Vec::new();
        for place in fs::read_dir(self.stills()).map_err(|e| broken("list stills", &e))? {
            let place = place.map_err(|e| broken("list stills", &e))?;
            let (path, Ok(name)) = (place.path(), place.file_name().into_string()) else { continue };
            let marker = fs::read(path.join(MARKER)).map_err(|e| broken("read marker", &e))?;
            let marker = serde_json::from_slice(&marker).map_err(|e| rejected(format!("read marker: {e}")))?;
            found.push((path, name, marker));
        }
        Ok(found)
    }
}

impl SimEngine {
    /// How many stills there are, and how many of them somebody reads.
    ///
    /// # Panics
    /// When they cannot be listed.
    #[must_use]
    pub fn stills(&self) -> (usize, usize) {
        let state = self.lock();
        let all = self.shared.list_stills().unwrap_or_else(|error| panic!("list stills: {error}"));
        (all.len(), all.iter().filter(|(_, name, _)| state.is_read(name)).count())
    }
}
