//! Which looks at pods are kept for their next page, and for how long.
//!
//! A look takes up disk for as long as it is kept, and shows what may be gone meanwhile. So there are few, none of them for
//! long, and no tenant has all of them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::{SignedDuration, Timestamp};
use perennial_core::id::PodId;
use perennial_core::volume::SetNumber;

use super::live::Sketch;
use super::{Library, Source};

/// Looks that are kept at the same time.
const KEPT: usize = 4;
/// How many of them are one tenant's.
const KEPT_OF_TENANT: usize = 2;
/// How long a look waits for its next page.
const KEPT_FOR: SignedDuration = SignedDuration::from_mins(10);

/// Looks at pods.
#[derive(Default)]
pub(super) struct Looks {
    /// The one that was asked for last is the last.
    kept: Mutex<Vec<Kept>>,
}

struct Kept {
    sketch: Arc<Sketch>,
    until: Timestamp,
}

impl Looks {
    fn kept(&self) -> MutexGuard<'_, Vec<Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Library {
    /// Keeps a look for its next page, in the place of any other at the same pod.
    pub fn keep_sketch(&self, sketch: &Arc<Sketch>, now: Timestamp) {
        let mut kept = self.pods.kept();
        kept.retain(|other| other.sketch.pod() != sketch.pod());
        let is_of_tenant = |other: &Kept| other.sketch.tenant() == sketch.tenant();
        if kept.iter().filter(|other| is_of_tenant(other)).count() >= KEPT_OF_TENANT
            && let Some(oldest) = kept.iter().position(is_of_tenant)
        {
            kept.remove(oldest);
        }
        if kept.len() >= KEPT {
            kept.remove(0);
        }
        let until = now.saturating_add(KEPT_FOR).unwrap_or(now);
        kept.push(Kept { sketch: Arc::clone(sketch), until });
    }

    /// The look at a pod that was kept under this name to be compared with this snapshot.
    #[must_use]
    pub fn kept_sketch(&self, pod: PodId, before: &Source, name: &str, now: Timestamp) -> Option<Arc<Sketch>> {
        let is_it = |Kept { sketch, until }: &&Kept| {
            sketch.pod() == pod && sketch.is_beside(before) && sketch.name() == name && *until > now
        };
        self.pods.kept().iter().find(is_it).map(|kept| Arc::clone(&kept.sketch))
    }

    /// Drops a look that nobody needs any more.
    pub fn drop_sketch(&self, sketch: &Arc<Sketch>) {
        self.pods.kept().retain(|kept| !Arc::ptr_eq(&kept.sketch, sketch));
    }

    /// Drops the looks whose time is over.
    pub fn expire_sketches(&self, now: Timestamp) {
        self.pods.kept().retain(|kept| kept.until > now);
    }

    /// The pods at which looks are kept, and which of their sets was looked at.
    #[must_use]
    pub fn sketched(&self) -> Vec<(PodId, SetNumber)> {
        self.pods.kept().iter().map(|kept| (kept.sketch.pod(), kept.sketch.set())).collect()
    }

    /// Drops looks at this set of a pod.
    pub fn drop_sketches_of(&self, pod: PodId, set: SetNumber) {
        self.pods.kept().retain(|kept| (kept.sketch.pod(), kept.sketch.set()) != (pod, set));
    }
}
