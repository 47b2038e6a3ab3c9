//! Which looks at pods go on at the same time, which are kept for their next page, and for how long.
//!
//! A look takes threads while it is made, and disk for as long as it is kept, and it shows what may be gone meanwhile. So
//! there are few, none of them for long, and no tenant has all of them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::{SignedDuration, Timestamp};
use perennial_core::id::PodId;
use perennial_core::spec::TenantId;
use perennial_core::volume::SetNumber;

use super::live::Sketch;
use super::{Failure, Library, Source};

/// Pods that are looked at at the same time; each has threads of its own that read. No tenant has more than one.
const AT_ONCE: usize = 2;
/// Looks that are kept at the same time.
const KEPT: usize = 4;
/// How many of them are one tenant's.
const KEPT_OF_TENANT: usize = 2;
/// How long a look waits for its next page.
const KEPT_FOR: SignedDuration = SignedDuration::from_mins(10);

/// Looks at pods.
#[derive(Default)]
pub(super) struct Looks {
    /// The tenants that have a pod looked at.
    turns: Mutex<Vec<TenantId>>,
    /// The one that was asked for last is the last.
    kept: Mutex<Vec<Kept>>,
}

struct Kept {
    sketch: Arc<Sketch>,
    until: Timestamp,
}

/// The turn of a tenant to have a pod looked at; it ends with this.
pub(super) struct Turn {
    looks: Arc<Looks>,
    tenant: TenantId,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.looks.turns().retain(|tenant| *tenant != self.tenant);
    }
}

impl Looks {
    fn turns(&self) -> MutexGuard<'_, Vec<TenantId>> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a turn, or refuses: a look takes as long as a pod is large, so nobody waits for somebody else's.
    pub(super) fn begin(self: &Arc<Self>, tenant: &TenantId) -> Result<Turn, Failure> {
        let mut turns = self.turns();
        if turns.contains(tenant) {
            return Err(Failure::Busy("a pod of this tenant is compared with a snapshot already; try again later"));
        }
        if turns.len() >= AT_ONCE {
            return Err(Failure::Busy("too many pods are compared with snapshots at the same time; try again later"));
        }
        turns.push(tenant.clone());
        Ok(Turn { looks: Arc::clone(self), tenant: tenant.clone() })
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_tenant_has_all_turns_and_nobody_waits() {
        let looks = Arc::new(Looks::default());
        let [a, b, c] = ["a", "b", "c"].map(|name| TenantId::parse(name).expect("a name"));
        let first = looks.begin(&a).expect("a turn");
        assert!(matches!(looks.begin(&a), Err(Failure::Busy(_))));
        let second = looks.begin(&b).expect("a turn of another tenant");
        assert!(matches!(looks.begin(&c), Err(Failure::Busy(_))));
        drop(first);
        let _third = looks.begin(&c).expect("a turn that is over");
        assert!(matches!(looks.begin(&a), Err(Failure::Busy(_))));
        drop(second);
        assert!(looks.begin(&a).is_ok());
    }
}
