//! What may become of orphans (D14, law 7). Pure.
//!
//! ```text
//! listed ──a day old, a person asks──▶ quarantined ──window over, a person asks again──▶ deleted
//! ```
//!
//! Nothing happens by itself. What runs is nobody's to clean up, whoever it belongs to; and where the database may be the wrong one,
//! nothing is done at all.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};

use crate::engine::{ObservedPod, Owned};
use crate::id::PodId;
use crate::orphans::{Comparison, pod_of};
use crate::pod::{ConditionKind, Pod};

/// So long something has to have been nobody's before anything is done about it.
pub const MIN_AGE: SignedDuration = SignedDuration::from_hours(24);
/// So long it is kept after somebody asked for its end: as long as the undelete window when nobody sets that.
pub const WINDOW: SignedDuration = SignedDuration::from_hours(7 * 24);
/// More pods than this, and more than [`MANY_PERCENT`] of all, are not cleaned up without being named (law 7).
const MANY: usize = 3;
/// See [`MANY`].
const MANY_PERCENT: usize = 5;

/// What is remembered of a pod that is on the engine and in no database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Noted {
    /// Which, by its labels.
    pub pod: PodId,
    /// Since when it is known that nobody has it.
    pub first_seen_at: Timestamp,
    /// `None`: nobody asked for anything.
    pub quarantine: Option<Quarantine>,
    /// Whether its end has begun: it cannot be taken over any more.
    pub is_ending: bool,
}

/// Somebody's consent that something may go, and until when it is kept all the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantine {
    /// Since when.
    pub at: Timestamp,
    /// Who.
    pub actor: String,
    /// Nothing is deleted before that.
    pub until: Timestamp,
}

/// A pod that is on the engine and in no database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrphanedPod {
    /// What is remembered of it.
    pub noted: Noted,
    /// What of it is on the engine.
    pub things: Vec<Owned>,
    /// What lives there; `None`: nothing does.
    pub alive: Option<String>,
}

/// What is next for an orphaned pod when somebody asks for a clean-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// It stays as it is.
    Keep,
    /// From then on it is only kept until a time.
    Quarantine,
    /// It goes.
    Delete,
}

impl Step {
    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Quarantine => "quarantine",
            Self::Delete => "delete",
        }
    }
}

/// What a clean-up would do about one orphaned pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// The pod.
    pub orphan: OrphanedPod,
    /// What would be done.
    pub step: Step,
    /// Why, in one sentence.
    pub reason: String,
}

/// What a clean-up would do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CleanupPlan {
    /// Each orphaned pod that was asked for.
    pub items: Vec<Item>,
    /// Why nothing is done at all; `None`: nothing stands against it.
    pub halted: Option<String>,
}

impl CleanupPlan {
    /// What identifies the plan: what it does to what. Ages are not part of it.
    #[must_use]
    pub fn text(&self) -> String {
        let thing = |one: &Owned| match one {
            Owned::Container { id, .. } => format!("container {id}"),
            Owned::Set { number, backend, .. } => format!("set {number} {}", backend.as_str()),
        };
        let mut lines: Vec<String> = Vec::new();
        for item in self.items.iter().filter(|item| item.step != Step::Keep) {
            let mut things: Vec<String> = item.orphan.things.iter().map(thing).collect();
            things.sort();
            lines.push(format!("{} {}: {}\n", item.step.as_str(), item.orphan.noted.pod, things.join(", ")));
        }
        lines.sort();
        lines.concat()
    }
}

/// Says what lives of a pod that nobody has.
#[must_use]
pub fn alive(observed: &ObservedPod) -> Option<String> {
    let container = observed.container.as_ref().filter(|container| container.is_live());
    let own = container.map(|container| format!("its container {} runs", container.id));
    own.or_else(|| observed.foreign.first().map(|other| format!("{other} uses its volumes")))
}

/// Decides what is next for each of these orphans. `pods` are those of the database, which `comparison` is of. `named` are those that somebody asked for by their ids; when
/// there are none, all of them are meant.
///
/// `held`: until when nothing is destroyed because nobody looked for long (D15).
#[must_use]
pub fn plan(
    pods: &[Pod],
    comparison: &Comparison,
    orphans: Vec<OrphanedPod>,
    named: &BTreeSet<PodId>,
    held: Option<Timestamp>,
    now: Timestamp,
) -> CleanupPlan {
    let halted = doubt(pods, comparison).or_else(|| if named.is_empty() { too_many(comparison) } else { None });
    let meant = orphans.into_iter().filter(|orphan| named.is_empty() || named.contains(&orphan.noted.pod));
    let items = meant.map(|orphan| {
        let (step, reason) = step(&orphan, held, now);
        Item { orphan, step, reason }
    });
    CleanupPlan { items: items.collect(), halted }
}

fn step(orphan: &OrphanedPod, held: Option<Timestamp>, now: Timestamp) -> (Step, String) {
    if let Some(alive) = &orphan.alive {
        return (Step::Keep, format!("{alive}: what lives is nobody's to clean up"));
    }
    let Noted { first_seen_at, quarantine, .. } = &orphan.noted;
    let Some(Quarantine { at, actor, until }) = quarantine else {
        let old_enough = first_seen_at.checked_add(MIN_AGE).unwrap_or(Timestamp::MAX);
        if now < old_enough {
            return (Step::Keep, format!("it is nobody's since {first_seen_at}; nothing is done before {old_enough}"));
        }
        return (Step::Quarantine, format!("it is nobody's since {first_seen_at}"));
    };
    let consent = format!("{actor} consented at {at}");
    if now < *until {
        return (Step::Keep, format!("{consent}; it is kept until {until}"));
    }
    match held {
        Some(held) => (Step::Keep, format!("nobody looked for long, so nothing is destroyed before {held}")),
        None => (Step::Delete, consent),
    }
}

/// Why the database may be older than what is on the engine.
fn doubt(pods: &[Pod], comparison: &Comparison) -> Option<String> {
    let unknown_set = comparison.pods.iter().find(|pod| pod.sets.iter().any(|set| set.recorded.is_none()));
    // A pod that was only started since has the same sets, and its data says a later generation.
    let is_newer = |pod: &&Pod| pod.conditions.iter().any(|one| one.kind == ConditionKind::GenerationMismatch);
    let newer = unknown_set.map(|pod| pod.pod).or_else(|| pods.iter().find(is_newer).map(|pod| pod.id))?;
    Some(format!("pod {newer} has data on the engine that the database does not know: the database may be an old copy"))
}

/// Why there are more orphans than there should ever be.
fn too_many(comparison: &Comparison) -> Option<String> {
    let orphans: BTreeSet<PodId> = comparison.orphans.iter().map(|orphan| pod_of(&orphan.what)).collect();
    let known =
        comparison.pods.iter().filter(|pod| !pod.containers.is_empty() || pod.sets.iter().any(|set| set.is_there));
    let all = orphans.len() + known.count();
    let is_too_many = orphans.len() > MANY && orphans.len() * 100 > all * MANY_PERCENT;
    is_too_many.then(|| {
        format!(
            "{} of {all} pods on the engine are in no database: it may be another installation's, or an older copy",
            orphans.len()
        )
    })
}

#[cfg(test)]
mod tests;
