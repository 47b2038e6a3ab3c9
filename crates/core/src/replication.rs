//! What a replica of a repository lacks, and what it may forget.
//!
//! A copy goes only because its original was deleted by an operation, which took its row, and only after a delay. What the
//! first repository holds, or whether it is there at all, is no reason: unknown is not gone (law 5).

use std::collections::{HashMap, HashSet};

use jiff::{SignedDuration, Timestamp};

/// What is copied. In this order: a snapshot is of no use without its image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// An image; its name is the engine's id of it.
    Image,
    /// A verified snapshot of a pod; its name is its id.
    Snapshot,
    /// The newest capture of a pod's system layer; its name is the pod's id.
    Layer,
}

/// One thing that the replica should hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// What it is.
    pub part: Part,
    /// Which.
    pub name: String,
    /// What it is called in the first repository.
    pub original: String,
}

/// What became of one thing that was to be copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Copying {
    /// It is in the replica, proven, and called so there.
    Copied(String),
    /// It could not be copied, and why.
    Failed(String),
}

/// What is recorded of one thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Noted {
    /// What it is.
    pub wanted: Wanted,
    /// What became of it.
    pub copying: Copying,
    /// When that was.
    pub at: Timestamp,
    /// Since when its original is known to be deleted; `None` while it is not.
    pub gone_at: Option<Timestamp>,
}

/// How long things wait.
#[derive(Debug, Clone, Copy)]
pub struct Delays {
    /// What was deleted goes from the replica after so long.
    pub forget_after: SignedDuration,
    /// What could not be copied is tried again after so long.
    pub again_after: SignedDuration,
}

/// What is to be done, all of it named by what it is called in the first repository.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// To be copied, in this order.
    pub copy: Vec<Wanted>,
    /// Copies that are recorded and are not in the replica any more.
    pub lost: Vec<String>,
    /// Copies whose originals were deleted, which is seen now.
    pub gone: Vec<String>,
    /// Copies whose originals are wanted again.
    pub back: Vec<String>,
    /// Copies to be forgotten: their originals were deleted long enough ago.
    pub forget: Vec<String>,
    /// Copies to be forgotten at once: captures of a layer of which a newer one is there.
    pub superseded: Vec<String>,
    /// Records that say nothing any more: of what is not there and not wanted.
    pub drop: Vec<String>,
}

/// Compares what should be in a replica with what is recorded of it, and with the names that are in it.
#[must_use]
pub fn plan(wanted: &[Wanted], noted: &[Noted], present: &HashSet<String>, now: Timestamp, delays: Delays) -> Plan {
    let mut plan = Plan::default();
    let of_original: HashMap<&str, &Noted> = noted.iter().map(|n| (n.wanted.original.as_str(), n)).collect();
    let is_there = |note: &Noted| matches!(&note.copying, Copying::Copied(copy) if present.contains(copy));
    // A snapshot fails also when its image does, and its data is there then.
    let may_be_there = |note: &Noted| {
        is_there(note) || (note.wanted.part == Part::Snapshot && matches!(note.copying, Copying::Failed(_)))
    };
    let mut names: HashMap<(Part, &str), bool> = HashMap::new();
    let mut originals: HashSet<&str> = HashSet::new();
    for one in wanted {
        let note = of_original.get(one.original.as_str());
        let copied = note.is_some_and(|note| is_there(note));
        names.insert((one.part, one.name.as_str()), copied);
        originals.insert(one.original.as_str());
        let waits = |note: &Noted| {
            // A time in the future is a wrong clock's.
            matches!(note.copying, Copying::Failed(_)) && note.at <= now && passed(note.at, delays.again_after) > now
        };
        if !copied && !note.is_some_and(|note| waits(note)) {
            plan.copy.push(one.clone());
        }
    }
    plan.copy.sort_by(|a, b| (a.part, &b.name).cmp(&(b.part, &a.name)));
    for note in noted {
        let original = note.wanted.original.clone();
        let is_wanted = originals.contains(original.as_str());
        match (is_wanted, may_be_there(note), note.gone_at) {
            (true, true, Some(_)) => plan.back.push(original),
            (true, false, _) if matches!(note.copying, Copying::Copied(_)) => plan.lost.push(original),
            (true, ..) => {}
            (false, false, _) => plan.drop.push(original),
            // The one that takes its place has to be there first.
            (false, true, _) if names.get(&(note.wanted.part, note.wanted.name.as_str())) == Some(&false) => {}
            // There is one every few minutes, and nobody ever goes back to it: snapshots hold their own.
            (false, true, _)
                if note.wanted.part == Part::Layer
                    && names.get(&(Part::Layer, note.wanted.name.as_str())) == Some(&true) =>
            {
                plan.superseded.push(original);
            }
            // No snapshot is of use without its image: it stays unless another copy of the same one is there.
            (false, true, _)
                if note.wanted.part == Part::Image
                    && !names.contains_key(&(Part::Image, note.wanted.name.as_str())) => {}
            (false, true, None) => plan.gone.push(original),
            (false, true, Some(since)) if passed(since, delays.forget_after) <= now => plan.forget.push(original),
            (false, true, Some(_)) => {}
        }
    }
    plan
}

fn passed(since: Timestamp, time: SignedDuration) -> Timestamp {
    since.checked_add(time).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DELAYS: Delays =
        Delays { forget_after: SignedDuration::from_hours(48), again_after: SignedDuration::from_hours(1) };

    fn at(hours: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + SignedDuration::from_hours(hours)
    }

    fn wanted(part: Part, name: &str, original: &str) -> Wanted {
        Wanted { part, name: name.to_owned(), original: original.to_owned() }
    }

    fn noted(wanted: &Wanted, gone_at: Option<i64>) -> Noted {
        let copying = Copying::Copied(format!("copy of {}", wanted.original));
        Noted { wanted: wanted.clone(), copying, at: at(0), gone_at: gone_at.map(at) }
    }

    fn failed(wanted: &Wanted) -> Noted {
        Noted { copying: Copying::Failed("damaged".to_owned()), ..noted(wanted, None) }
    }

    fn present(noted: &[Noted]) -> HashSet<String> {
        let name = |n: &Noted| match &n.copying {
            Copying::Copied(copy) => Some(copy.clone()),
            Copying::Failed(_) => None,
        };
        noted.iter().filter_map(name).collect()
    }

    #[test]
    fn images_come_first_and_then_the_newest_snapshots() {
        let all = [
            wanted(Part::Layer, "pod", "l"),
            wanted(Part::Snapshot, "1", "s1"),
            wanted(Part::Snapshot, "2", "s2"),
            wanted(Part::Image, "img", "i"),
        ];
        let plan = plan(&all, &[], &HashSet::new(), at(0), DELAYS);
        let order: Vec<&str> = plan.copy.iter().map(|one| one.original.as_str()).collect();
        assert_eq!(order, ["i", "s2", "s1", "l"]);
    }

    #[test]
    fn what_failed_waits_and_what_is_there_is_left_alone() {
        let (a, b) = (wanted(Part::Snapshot, "1", "a"), wanted(Part::Snapshot, "2", "b"));
        let notes = [noted(&a, None), failed(&b)];
        let all = [a, b.clone()];
        assert_eq!(plan(&all, &notes, &present(&notes), at(0), DELAYS), Plan::default());
        assert_eq!(plan(&all, &notes, &present(&notes), at(1), DELAYS).copy, std::slice::from_ref(&b));
        // A clock that was set back does not keep it waiting.
        assert_eq!(plan(&all, &notes, &present(&notes), at(-9), DELAYS).copy, [b]);
    }

    #[test]
    fn what_was_deleted_goes_after_the_delay_and_not_a_moment_earlier() {
        let a = wanted(Part::Snapshot, "1", "a");
        let (fresh, marked) = ([noted(&a, None)], [noted(&a, Some(10))]);
        let seen = plan(&[], &fresh, &present(&fresh), at(1000), DELAYS);
        assert_eq!((seen.gone, seen.forget.len()), (vec!["a".to_owned()], 0));
        assert_eq!(plan(&[], &marked, &present(&marked), at(57), DELAYS), Plan::default());
        assert_eq!(plan(&[], &marked, &present(&marked), at(58), DELAYS).forget, ["a"]);
        assert_eq!(plan(std::slice::from_ref(&a), &marked, &present(&marked), at(58), DELAYS).back, ["a"]);
        // What is not there any more has nothing to be forgotten.
        assert_eq!(plan(&[], &marked, &HashSet::new(), at(58), DELAYS).drop, ["a"]);
    }

    #[test]
    fn a_snapshot_that_was_copied_in_part_goes_like_a_copy() {
        let a = wanted(Part::Snapshot, "1", "a");
        let since = |gone_at: Option<i64>| [Noted { gone_at: gone_at.map(at), ..failed(&a) }];
        let seen = plan(&[], &since(None), &HashSet::new(), at(9), DELAYS);
        assert_eq!((seen.gone, seen.drop.len()), (vec!["a".to_owned()], 0));
        assert_eq!(plan(&[], &since(Some(10)), &HashSet::new(), at(57), DELAYS), Plan::default());
        assert_eq!(plan(&[], &since(Some(10)), &HashSet::new(), at(58), DELAYS).forget, ["a"]);
        // Nothing of an image comes to the replica that cannot all be copied.
        let notes = [failed(&wanted(Part::Image, "x", "i"))];
        assert_eq!(plan(&[], &notes, &HashSet::new(), at(9), DELAYS).drop, ["i"]);
    }

    #[test]
    fn a_copy_that_is_gone_from_the_replica_is_copied_again() {
        let a = wanted(Part::Snapshot, "1", "a");
        let notes = [noted(&a, None)];
        let plan = plan(std::slice::from_ref(&a), &notes, &HashSet::new(), at(0), DELAYS);
        assert_eq!((plan.copy, plan.lost), (vec![a], vec!["a".to_owned()]));
    }

    #[test]
    fn an_image_or_layer_stays_until_what_takes_its_place_is_there() {
        for part in [Part::Image, Part::Layer] {
            let (old, new) = (wanted(part, "x", "old"), wanted(part, "x", "new"));
            let before = [noted(&old, Some(0))];
            let all = [new.clone()];
            let waiting = plan(&all, &before, &present(&before), at(99), DELAYS);
            assert_eq!((waiting.copy, waiting.forget.len(), waiting.superseded.len()), (vec![new.clone()], 0, 0));
            let after = [noted(&old, Some(0)), noted(&new, None)];
            let done = plan(&all, &after, &present(&after), at(99), DELAYS);
            assert_eq!([done.forget, done.superseded].concat(), ["old"]);
        }
        // A layer that is superseded is not what somebody deleted: it goes as soon as the next one is there.
        let (old, new) = (wanted(Part::Layer, "x", "old"), wanted(Part::Layer, "x", "new"));
        let notes = [noted(&old, None), noted(&new, None)];
        let at_once = plan(&[new], &notes, &present(&notes), at(0), DELAYS);
        assert_eq!(at_once, Plan { superseded: vec!["old".to_owned()], ..Plan::default() });
        // An image that nobody recorded any more may still be what copied snapshots need.
        let image = wanted(Part::Image, "x", "i");
        let notes = [noted(&image, Some(0))];
        assert_eq!(plan(&[], &notes, &present(&notes), at(99), DELAYS), Plan::default());
        // The layer of a pod that is gone is of no use.
        let layer = wanted(Part::Layer, "pod", "l");
        let notes = [noted(&layer, Some(0))];
        assert_eq!(plan(&[], &notes, &present(&notes), at(99), DELAYS).forget, ["l"]);
    }
}
