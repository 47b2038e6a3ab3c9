//! Comparing a snapshot with what is in its pod now.

use jiff::Timestamp;
use perennial_core::Error;
use perennial_core::engine::{EngineError, LayerAccess, ObservedPod, Presence, SetAccess};
use perennial_core::id::SnapshotId;
use perennial_core::pod::Pod;
use perennial_core::progress::Progress;
use perennial_core::snapshot::{Loss, SnapshotVolume};
use perennial_core::volume::{Origin, SetNumber, SetState};

use super::{App, Caller, Shown};
use crate::library::{Difference, Failure, PodPath, Present};
use crate::reconcile::worker::set_spec;
use crate::reconcile::{layer_root, volume_roots};

/// Where a list of differences goes on: the look it is of, and the last path of the page before.
pub type LivePlace = (String, Vec<Vec<u8>>);

/// What differs between a snapshot and what is in its pod.
#[derive(Debug)]
pub struct LiveDiff {
    /// Each path, in their order.
    pub found: Vec<Difference>,
    /// Names the look for the next page.
    pub look: String,
    /// When the pod was looked at.
    pub looked_at: Timestamp,
    /// What of the path was not compared, and why.
    pub unseen: Vec<Loss>,
}

/// Ends work whose asker went away.
struct CancelledWithAsker(Progress);

impl Drop for CancelledWithAsker {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl App {
    /// Lists what differs between a snapshot and what is in its pod now, at most so many and one more when there are more.
    /// It changes nothing, and neither stops nor freezes the pod.
    ///
    /// # Errors
    /// As for [`App::snapshot_source`]; [`Error::Conflict`] when the pod has nothing on the host, or what it has is not whole
    /// or out of the server's reach.
    pub async fn live_diff(
        &self,
        caller: &Caller,
        (id, shown): (SnapshotId, Shown),
        path: PodPath,
        place: Option<LivePlace>,
        wanted: usize,
    ) -> Result<LiveDiff, Error> {
        let row = self.snapshot(caller, id).await?;
        let before = self.source_of(&row, shown).await?;
        let (pod, _) = self.pod(caller, row.pod).await?;
        let (sketch, seen) = match place {
            Some((name, seen)) => {
                (self.library.kept_sketch(pod.id, &before, &name, self.now()).ok_or_else(over)?, Some(seen))
            }
            None => {
                let asked = CancelledWithAsker(Progress::default());
                let (present, layer) = self.present(&pod).await?;
                let sketch = self.library.sketch(&before, present, asked.0.clone()).await;
                // Also where the look failed: that what it read went away may be why.
                self.refuse_replaced(caller, &pod, layer.as_deref()).await?;
                (sketch?, None)
            }
        };
        // The snapshot's image is the pod's, unless the snapshot is older than a change of it. Where only the changes of
        // one are seen, the other is beside them without an image, too.
        let image = match (&pod.image, &before.image) {
            (Some(image), Some(_)) => Some(self.stored_image(&row, &image.id).await?),
            _ => None,
        };
        let goes_on = seen.is_some();
        let found = self.library.diff_with((before, sketch.clone()), image, path.clone(), seen, wanted + 1).await;
        let found = match found {
            // A prune took trees that the look had in common with snapshots that were deleted meanwhile. Where something
            // is damaged, the next look says so.
            Err(Failure::Repository(error)) if goes_on && error.is_damage() => {
                self.library.drop_sketch(&sketch);
                return Err(over());
            }
            found => found?,
        };
        if found.len() > wanted {
            self.library.keep_sketch(&sketch, self.now())
        } else {
            self.library.drop_sketch(&sketch)
        }
        Ok(LiveDiff { found, look: sketch.name(), looked_at: sketch.looked_at(), unseen: sketch.unseen(&path) })
    }

    /// Drops looks whose next page nobody asked for, and those at data that is no longer a pod's.
    pub async fn looks_sweep(&self) {
        self.library.expire_sketches(self.now());
        for (pod, set) in self.library.sketched() {
            match self.store.pod_fetch(pod).await {
                Ok(found) if found.as_ref().and_then(|pod| pod.current) == Some(set) => {}
                Ok(_) => self.library.drop_sketches_of(pod, set),
                Err(error) => tracing::warn!(%pod, %error, "look up a pod that was looked at"),
            }
        }
    }

    /// Where the pod's data is on this host, what of it is out of reach, and the container whose system layer is among it.
    async fn present(&self, pod: &Pod) -> Result<(Present, Option<String>), Error> {
        let set = pod.current_set().ok_or_else(|| nothing_here(pod))?;
        if set.state != SetState::Complete {
            return Err(Error::conflict(
                "data-incomplete",
                format!("the volumes of pod {} are being made", pod.name),
                "wait for its operation and try again",
            ));
        }
        let spec = set_spec(pod, set);
        let observed = self.engine.observe(pod.id, std::slice::from_ref(&spec)).await.map_err(unanswered)?;
        let whole = is_whole(&observed, set.number);
        let SetAccess::Local(paths) = self.engine.set_access(&spec).await.map_err(unanswered)? else {
            return Err(Error::conflict(
                "live-out-of-reach",
                format!("the volumes of pod {} are reached by a mover only", pod.name),
                "take a snapshot (perennial snapshot create) and compare with that one",
            ));
        };
        if !whole || paths.len() != set.volumes.len() {
            return Err(Error::conflict(
                "data-incomplete",
                format!("not all volumes of pod {} are there", pod.name),
                "perennial pod show names what is missing",
            ));
        }
        let mut roots = volume_roots(&paths);
        let (mut layer, mut unreached) = (None, None);
        if pod.keeps_layer() {
            let ready = |id: &str| pod.container.as_ref().is_some_and(|ready| ready.id == id);
            let container = observed.container.filter(|c| c.set == set.number);
            let container = container.filter(|c| c.started_at.is_some() || ready(&c.id)).map(|c| c.id);
            let access = match &container {
                Some(container) => self.engine.layer_access(container).await.map_err(unanswered)?,
                None => LayerAccess::Unreachable { reason: "there is no container that holds it".to_owned() },
            };
            match access {
                LayerAccess::Local { path, exclude } => {
                    roots.push(layer_root(path, exclude));
                    layer = container;
                }
                LayerAccess::Unreachable { reason } => {
                    unreached = Some(Loss { path: "everything outside volumes".to_owned(), reason });
                }
            }
        }
        let row = |v: &perennial_core::engine::VolumePath| SnapshotVolume {
            name: v.name.clone(),
            mount_path: v.mount_path.clone(),
            files: None,
            bytes: None,
        };
        let volumes = paths.iter().map(row).collect();
        Ok((Present { pod: pod.id, set: set.number, volumes, roots, unreached, looked_at: self.now() }, layer))
    }

    /// Refuses what was seen of a pod whose data was replaced or went away meanwhile: it may be of both. The layer of a
    /// container that is removed is gone piece by piece, and what is gone of it would show as the image has it.
    async fn refuse_replaced(&self, caller: &Caller, before: &Pod, layer: Option<&str>) -> Result<(), Error> {
        let (pod, _) = self.pod(caller, before.id).await?;
        let is_same = (pod.current, pod.data_generation) == (before.current, before.data_generation);
        if let Some(set) = pod.current_set().filter(|_| is_same) {
            let observed = self.engine.observe(pod.id, &[set_spec(&pod, set)]).await.map_err(unanswered)?;
            let has_layer = layer.is_none() || observed.container.as_ref().map(|c| c.id.as_str()) == layer;
            if has_layer && is_whole(&observed, set.number) {
                return Ok(());
            }
        }
        Err(Error::conflict(
            "data-replaced",
            format!("the data of pod {} was replaced while it was looked at", pod.name),
            "ask again",
        ))
    }
}

fn unanswered(error: EngineError) -> Error {
    Error::Unavailable { problem: error.to_string() }
}

fn is_whole(observed: &ObservedPod, set: SetNumber) -> bool {
    observed.set(set).is_some_and(|seen| seen.presence == Presence::Whole)
}

fn over() -> Error {
    Error::conflict(
        "look-over",
        "what was found in the pod is no longer kept for another page",
        "ask again without `after`; a larger `limit` needs fewer pages",
    )
}

fn nothing_here(pod: &Pod) -> Error {
    let (problem, hint) = match pod.source {
        Some(Origin::Snapshot(id)) => (
            format!("pod {} has nothing on the host: its data is snapshot {id}", pod.name),
            format!("compare with that one: perennial snapshot diff SNAPSHOT {id}"),
        ),
        _ => (format!("pod {} has nothing on the host", pod.name), "start it and try again".to_owned()),
    };
    Error::conflict("nothing-on-host", problem, hint)
}
