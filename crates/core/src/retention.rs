//! Which snapshots of a pod are kept and which may go: the rules people know from restic and borg, and the laws above
//! any rule.
//!
//! - Scheduled snapshots rotate, and so do those that stops, resets and restores took; the rules count each of these
//!   two groups by itself, so that many stops do not push the scheduled ones out. Manual ones are kept until they are
//!   deleted by hand, unless the policy says that they rotate, too: then they count with the scheduled ones.
//! - `hourly` to `yearly` keep the newest snapshot of each of the last so many hours, …, years **that have one**, in
//!   the pod's time zone. `within` counts back from the newest snapshot, not from now. So nothing goes only because
//!   time passes, or because a clock is wrong: what is forgotten was replaced by something newer.
//! - A safety snapshot is what was there before a reset or a restore, and often the only copy of it: it stays, and does
//!   not count, until the pod has a snapshot that is a week newer.
//! - What was put together for a restore of parts or a clone is nobody's instant: it neither counts nor replaces anything,
//!   and goes when it is in no use and a newer snapshot of the pod is there.
//! - A time that cannot be (before the pod was made, or in the future) comes from a clock that was wrong: such a snapshot
//!   stays, and neither counts nor replaces anything.
//! - Whatever the rules say, the newest verified snapshot stays, and what anything refers to, and what is not finished.
//! - A policy without a rule keeps everything.

use std::collections::{BTreeMap, BTreeSet};

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, Zoned};

use crate::error::Error;
use crate::id::SnapshotId;
use crate::snapshot::{Snapshot, SnapshotKind, SnapshotState};

/// Largest number in a rule: a typing mistake beyond this is refused by name.
pub const COUNT_MAX: u32 = 100_000;
/// How long what a reset or a restore replaced can be brought back, counted to the pod's newest snapshot.
const SAFETY: SignedDuration = SignedDuration::from_hours(24 * 7);
/// How far two clocks may differ, or one be set back, without anything being wrong.
const SLACK: SignedDuration = SignedDuration::from_hours(1);
/// Longest `within`: a century.
const WITHIN_MAX: SignedDuration = SignedDuration::from_hours(24 * 36_525);

/// How many snapshots are kept; 0 is no rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Keep {
    /// The newest so many.
    pub last: u32,
    /// The newest of each of the last so many hours that have one.
    pub hourly: u32,
    /// The same of days.
    pub daily: u32,
    /// The same of weeks, which begin on Monday.
    pub weekly: u32,
    /// The same of months.
    pub monthly: u32,
    /// The same of years.
    pub yearly: u32,
    /// All that are at most this much older than the newest.
    pub within: Option<SignedDuration>,
    /// Never fewer verified snapshots than this; a floor below the rules and not a rule itself.
    pub minimum: u32,
    /// Whether manual snapshots rotate like scheduled ones.
    pub manual: Manual,
}

/// What becomes of snapshots that somebody asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Manual {
    /// They are kept until they are deleted by hand.
    #[default]
    Kept,
    /// They count as scheduled ones.
    Rotated,
}

impl Keep {
    /// Checks every number; `field` is the place of the whole in a request.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] naming the number.
    pub fn validate(&self, field: &str) -> Result<(), Error> {
        let counts = self.buckets().into_iter().map(|(name, count, _)| (name, count));
        for (name, count) in counts.chain([("last", self.last), ("minimum", self.minimum)]) {
            if count > COUNT_MAX {
                let field = format!("{field}.{name}");
                return Err(Error::invalid(field, format!("{count} is too many"), format!("use 0 to {COUNT_MAX}")));
            }
        }
        match self.within {
            Some(within) if within.is_negative() || within > WITHIN_MAX => Err(Error::invalid(
                format!("{field}.within"),
                "is out of range",
                "write days and hours, such as \"30d\" or \"12h\", up to a century",
            )),
            _ => Ok(()),
        }
    }

    /// Whether no rule says what is kept: then everything is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.last == 0 && self.within.is_none() && self.buckets().iter().all(|(_, count, _)| *count == 0)
    }

    fn buckets(&self) -> [(&'static str, u32, Bucket); 5] {
        [
            ("hourly", self.hourly, local_hour),
            ("daily", self.daily, |t| (t.year().into(), t.day_of_year().into(), 0)),
            ("weekly", self.weekly, |t| {
                (t.date().iso_week_date().year().into(), t.date().iso_week_date().week().into(), 0)
            }),
            ("monthly", self.monthly, |t| (t.year().into(), t.month().into(), 0)),
            ("yearly", self.yearly, |t| (t.year().into(), 0, 0)),
        ]
    }
}

/// The period a time is in: equal for two times of the same one.
type Bucket = fn(&Zoned) -> (i64, i64, i64);

/// The hour of the wall clock; the two of a repeated hour differ in their offset.
fn local_hour(time: &Zoned) -> (i64, i64, i64) {
    let offset = i64::from(time.offset().seconds());
    ((time.timestamp().as_second() + offset).div_euclid(3600), offset, 0)
}

/// What becomes of one snapshot, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Which.
    pub snapshot: SnapshotId,
    /// Whether it stays.
    pub fate: Fate,
    /// Why, in words; never empty. One that is kept may have several reasons.
    pub reasons: Vec<String>,
}

/// Whether a snapshot stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It stays.
    Keep,
    /// It may go.
    Forget,
}

/// Something whose age is counted: a snapshot of a pod, or any in a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dated<K> {
    /// What it is.
    pub key: K,
    /// The instant it shows.
    pub at: Timestamp,
}

/// Which of these the rules keep, with the reasons of each; what is not in the answer is kept by no rule.
///
/// `now` only guards against a clock that is ahead: a snapshot of the future does not let `within` begin there.
#[must_use]
pub fn kept<K: Copy + Ord>(
    items: &[Dated<K>],
    keep: &Keep,
    zone: &TimeZone,
    now: Timestamp,
) -> BTreeMap<K, Vec<String>> {
    let mut newest_first: Vec<&Dated<K>> = items.iter().collect();
    newest_first.sort_unstable_by_key(|item| std::cmp::Reverse((item.at, item.key)));
    let mut reasons: BTreeMap<K, Vec<String>> = BTreeMap::new();
    let mut add = |key: K, reason: String| reasons.entry(key).or_default().push(reason);
    for (n, item) in newest_first.iter().enumerate().take(keep.last as usize) {
        add(item.key, format!("last: number {} of the newest {}", n + 1, keep.last));
    }
    for (name, count, bucket) in keep.buckets() {
        let mut seen = None;
        let mut left = count;
        for item in &newest_first {
            let period = bucket(&item.at.to_zoned(zone.clone()));
            if left > 0 && seen != Some(period) {
                add(item.key, format!("{name}: the newest of its period, number {} of {count}", count - left + 1));
                left -= 1;
            }
            seen = Some(period);
        }
    }
    if let (Some(within), Some(newest)) = (keep.within, newest_first.first()) {
        // A time before the calendar's beginning is before everything.
        let from = newest.at.min(now).checked_sub(within).unwrap_or(Timestamp::MIN);
        for item in newest_first.iter().filter(|item| item.at >= from) {
            add(item.key, format!("within: not older than {from}"));
        }
    }
    reasons
}

/// Between which times a pod's snapshots can have been taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetime {
    /// When the pod was asked for.
    pub born: Timestamp,
    /// The present.
    pub now: Timestamp,
}

impl Lifetime {
    fn has(self, snapshot: &Snapshot) -> bool {
        let at = instant(snapshot);
        at.checked_add(SLACK).is_ok_and(|at| at >= self.born) && is_not_ahead(at, self.now)
    }
}

/// Decides on every snapshot of one pod; the answers are in the order of `snapshots`.
///
/// `in_use` says of which snapshots something depends, and what. A snapshot whose deletion is under way counts as gone:
/// it must not be among `snapshots`.
#[must_use]
pub fn decide(
    snapshots: &[Snapshot],
    keep: &Keep,
    zone: &TimeZone,
    life: Lifetime,
    in_use: &BTreeMap<SnapshotId, String>,
) -> Vec<Decision> {
    let counted = || snapshots.iter().filter(|s| is_whole(s) && life.has(s));
    let whole: BTreeSet<(Timestamp, SnapshotId)> = counted().map(dated_key).collect();
    let newest_verified =
        snapshots.iter().filter(|s| s.is_restorable() && s.is_capture() && life.has(s)).map(dated_key).max();
    let safe_from = whole.last().map_or(life.now, |(at, _)| *at).checked_sub(SAFETY).unwrap_or(Timestamp::MIN);
    let is_safety = |s: &Snapshot| s.kind == SnapshotKind::Safety && instant(s) >= safe_from;
    let floor: BTreeSet<SnapshotId> = whole.iter().rev().take(keep.minimum as usize).map(|(_, id)| *id).collect();
    let group = |wanted: Group| {
        let members = counted().filter(|s| !is_safety(s) && Group::of(s.kind, keep.manual) == wanted);
        let members: Vec<Dated<SnapshotId>> = members.map(|s| Dated { key: s.id, at: instant(s) }).collect();
        kept(&members, keep, zone, life.now)
    };
    let mut by_rule = group(Group::Scheduled);
    by_rule.append(&mut group(Group::OfStops));
    let has_newer = |s: &Snapshot| whole.last().is_some_and(|(at, _)| *at >= instant(s));
    let decide = |snapshot: &Snapshot| {
        let id = snapshot.id;
        let mut reasons = Vec::new();
        if let Some(user) = in_use.get(&id) {
            reasons.push(format!("in use: {user}"));
        }
        if newest_verified == Some(dated_key(snapshot)) || whole.last().is_some_and(|(_, last)| *last == id) {
            reasons.push("the newest verified snapshot always stays".to_owned());
        }
        let of_state = match snapshot.state {
            SnapshotState::Pending | SnapshotState::Uploaded => Some("it is not finished"),
            // The row is all there is of it, and tells why it failed until something newer tells more.
            // What was put together is in others as well.
            SnapshotState::Failed if snapshot.repository_id.is_some() && snapshot.kind != SnapshotKind::Composed => {
                Some("it failed, and holds data: delete it by hand")
            }
            SnapshotState::Failed if !has_newer(snapshot) => Some("it failed, and nothing newer succeeded"),
            SnapshotState::Failed => None,
            SnapshotState::Verified if !snapshot.losses.is_empty() => {
                Some("its owner accepted losses: delete it by hand")
            }
            // A repair may save what is left of it.
            SnapshotState::Verified if snapshot.damage.is_some() => Some("a drill found damage: delete it by hand"),
            SnapshotState::Verified if snapshot.kind == SnapshotKind::Imported => {
                Some("imported: kept until it is deleted by hand")
            }
            SnapshotState::Verified if !life.has(snapshot) => Some("its time cannot be: a clock was wrong"),
            SnapshotState::Verified if snapshot.kind == SnapshotKind::Composed && !has_newer(snapshot) => {
                Some("composed: it stays until there is a newer snapshot of the pod")
            }
            SnapshotState::Verified if is_safety(snapshot) => {
                Some("safety: what was replaced stays until there is a snapshot a week newer")
            }
            SnapshotState::Verified if Group::of(snapshot.kind, keep.manual) == Group::ByHand => {
                Some("manual: kept until it is deleted by hand")
            }
            SnapshotState::Verified if keep.is_empty() => Some("no rule says what may go"),
            SnapshotState::Verified => None,
        };
        reasons.extend(of_state.map(str::to_owned));
        reasons.extend(by_rule.get(&id).cloned().unwrap_or_default());
        if floor.contains(&id) {
            reasons.push(format!("minimum: one of the newest {}", keep.minimum));
        }
        if !reasons.is_empty() {
            return Decision { snapshot: id, fate: Fate::Keep, reasons };
        }
        let reason = match snapshot.state {
            SnapshotState::Failed => "it failed and holds no data of its own, and a newer one succeeded",
            _ => "no rule keeps it",
        };
        Decision { snapshot: id, fate: Fate::Forget, reasons: vec![reason.to_owned()] }
    };
    snapshots.iter().map(decide).collect()
}

/// Whether another verified snapshot of one instant, without losses, is newer than this one, by its time and by its data: without one it
/// must not be forgotten by a rule.
#[must_use]
pub fn is_replaced(snapshot: &Snapshot, others: &[Snapshot], now: Timestamp) -> bool {
    let is_newer = |other: &Snapshot| {
        dated_key(other) > dated_key(snapshot)
            && other.generation >= snapshot.generation
            && is_not_ahead(instant(other), now)
    };
    others.iter().any(|other| is_whole(other) && is_newer(other))
}

fn is_not_ahead(at: Timestamp, now: Timestamp) -> bool {
    now.checked_add(SLACK).is_ok_and(|latest| at <= latest)
}

/// How a snapshot is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Group {
    Scheduled,
    OfStops,
    ByHand,
}

impl Group {
    const fn of(kind: SnapshotKind, manual: Manual) -> Self {
        match (kind, manual) {
            (SnapshotKind::Scheduled, _) | (SnapshotKind::Manual, Manual::Rotated) => Self::Scheduled,
            (SnapshotKind::Final | SnapshotKind::Safety | SnapshotKind::Composed, _) => Self::OfStops,
            (SnapshotKind::Manual, Manual::Kept) | (SnapshotKind::Imported, _) => Self::ByHand,
        }
    }
}

/// Whether it is of one instant of the pod, with nothing missing, and no drill found it damaged: only such a one replaces another.
#[must_use]
pub fn is_whole(snapshot: &Snapshot) -> bool {
    snapshot.is_restorable() && snapshot.is_capture() && snapshot.losses.is_empty() && snapshot.damage.is_none()
}

fn instant(snapshot: &Snapshot) -> Timestamp {
    snapshot.captured_at.unwrap_or(snapshot.created_at)
}

fn dated_key(snapshot: &Snapshot) -> (Timestamp, SnapshotId) {
    (instant(snapshot), snapshot.id)
}

#[cfg(test)]
mod tests;
