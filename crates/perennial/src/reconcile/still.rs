//! Stills: whole volume sets as they were at one instant, from which snapshots are read while their pods go on.
//!
//! A still is worth having and never needed: whatever keeps one from being made, or makes it take too long, has the data read
//! while the pod stands still. It is deleted when the snapshot is recorded; one that does not go then is left to the next sweep.

use std::time::Duration;

use perennial_core::engine::{Copying, Engine, SetSpec, Still, VolumePath};
use perennial_snapshots::Copies;

use super::worker::Reconciler;

/// How long a snapshot that is recorded waits for its still to be deleted.
const SWEEP: Duration = Duration::from_secs(2);

/// A set that a still can be made of, and its volumes as they are read otherwise.
pub(super) struct StillOf<'a> {
    pub(super) set: &'a SetSpec,
    pub(super) volumes: &'a [VolumePath],
}

impl StillOf<'_> {
    /// Makes it, while whoever writes into the set stands still.
    pub(super) async fn make(&self, engine: &dyn Engine, within: Duration) -> Option<Copies> {
        let made = self.try_make(engine, within).await;
        made.inspect_err(|why| {
            tracing::warn!(pod = %self.set.pod, why, "no still of the data: it is read while the pod stands still");
        })
        .ok()
    }

    async fn try_make(&self, engine: &dyn Engine, within: Duration) -> Result<Copies, String> {
        let Ok(made) = tokio::time::timeout(within, engine.set_still(self.set)).await else {
            return Err(format!("it was not made within {} s", within.as_secs_f32()));
        };
        let Still { volumes: copied, keep } = made.map_err(|error| error.to_string())?;
        let mut places = Vec::new();
        for volume in self.volumes {
            let copy = copied.iter().find(|(name, _)| *name == volume.name);
            let (_, copy) = copy.ok_or_else(|| format!("volume {} is not in it", volume.name))?;
            places.push((volume.path.clone(), copy.clone()));
        }
        Ok(Copies { places, keep })
    }
}

impl Reconciler {
    /// Whether a still can be made of a set, as far as can be known beforehand.
    pub(super) async fn makes_stills(&self, set: &SetSpec) -> bool {
        match self.engine.set_copying(set).await {
            Ok(copying) => copying == Some(Copying::Instant),
            Err(error) => {
                tracing::warn!(pod = %set.pod, %error, "ask how the data is copied");
                false
            }
        }
    }

    /// Deletes the still that a snapshot was read from, and whatever others left behind.
    pub(super) async fn sweep_stills(&self) {
        match tokio::time::timeout(SWEEP, self.engine.stills_sweep()).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(%error, "delete what snapshots were read from: the next one tries again"),
            Err(_) => tracing::warn!("deleting what a snapshot was read from takes long and is not waited for"),
        }
    }
}
