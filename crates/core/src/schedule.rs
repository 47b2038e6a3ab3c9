//! When scheduled snapshots are due, and what a pod says about its snapshots.
//!
//! Times are wall times of the pod's time zone, each of them once: one that a clock change skips comes when the clock
//! has changed, one that a clock change repeats comes the first time. What decides is the recorded time up to which
//! everything is done ([`Pod::scheduled_until`]), never what a server remembers: times missed while no server ran are
//! made up by one snapshot, and two servers on one database take one.

use chrono::{DateTime, Utc};
use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::tz::{AmbiguousOffset, TimeZone, TimeZoneDatabase};
use jiff::{SignedDuration, Timestamp, civil};

use crate::error::Error;
use crate::id::PodId;
use crate::pod::{Desired, Pod};
use crate::retention::Keep;
use crate::snapshot::{Grade, Snapshot};

/// Times of different pods that are due at once are spread over this long.
pub const SPREAD: SignedDuration = SignedDuration::from_mins(5);
/// A recorded time this far ahead of the clock says that the clock was wrong then; anything less is waited for.
const CLOCK_ERROR: SignedDuration = SignedDuration::from_hours(1);
/// Written instead of a schedule where the installation's is not wanted.
pub const OFF: &str = "off";
/// Longest schedule, in bytes.
const SCHEDULE_MAX: usize = 200;

/// What a pod says about its snapshots; what it leaves out is the installation's.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SnapshotRules {
    /// A cron expression of five fields, or [`OFF`].
    pub schedule: Option<String>,
    /// The time zone that schedule and retention count in, such as `Europe/Berlin`.
    pub time_zone: Option<String>,
    /// Which snapshots are kept.
    pub keep: Option<Keep>,
}

/// What holds for a pod: its own rules over the installation's.
#[derive(Debug, Clone)]
pub struct Effective {
    /// When snapshots are taken; `None`: only by hand.
    pub schedule: Option<Schedule>,
    /// The time zone that days, weeks and months are counted in.
    pub zone: TimeZone,
    /// Which snapshots are kept.
    pub keep: Keep,
}

impl SnapshotRules {
    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] naming the field below `snapshots`.
    pub fn validate(&self) -> Result<(), Error> {
        if let Some(keep) = &self.keep {
            keep.validate("snapshots.keep")?;
        }
        self.over(&Self::default()).map(drop)
    }

    /// These rules, and `defaults` where they say nothing.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] naming the field that cannot be used, of whichever of the two.
    pub fn over(&self, defaults: &Self) -> Result<Effective, Error> {
        let zone = zone(self.time_zone.as_ref().or(defaults.time_zone.as_ref()).map_or("UTC", String::as_str))?;
        let schedule = match self.schedule.as_ref().or(defaults.schedule.as_ref()) {
            Some(text) if text != OFF => Some(Schedule::parse(text, zone.clone())?),
            _ => None,
        };
        let keep = self.keep.or(defaults.keep).unwrap_or_default();
        Ok(Effective { schedule, zone, keep })
    }
}

fn zone(name: &str) -> Result<TimeZone, Error> {
    // The bundled database: what a name means must not depend on the host.
    TimeZoneDatabase::bundled().get(name).map_err(|_| {
        Error::invalid(
            "snapshots.timeZone",
            format!("{:?} is not a time zone", name.chars().take(60).collect::<String>()),
            "write a name of the IANA database, such as Europe/Berlin or UTC",
        )
    })
}

/// Times that come again and again.
#[derive(Debug, Clone)]
pub struct Schedule {
    cron: Cron,
    zone: TimeZone,
}

impl Schedule {
    /// Reads a cron expression: minute, hour, day of month, month, day of week; or `@daily` and the like.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for `snapshots.schedule`.
    pub fn parse(text: &str, zone: TimeZone) -> Result<Self, Error> {
        let hint = "write minute, hour, day of month, month, day of week, such as \"0 3 * * *\", or \"off\"";
        let wrong = |problem: String| Error::invalid("snapshots.schedule", problem, hint);
        let shown: String = text.chars().take(60).collect();
        if text.len() > SCHEDULE_MAX {
            return Err(wrong(format!("{shown:?}… is too long")));
        }
        let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        let cron = parser.parse(text).map_err(|e| wrong(format!("{shown:?} is no schedule: {e}")))?;
        let schedule = Self { cron, zone };
        // A day such as 31 February is well written and never comes.
        match schedule.next_after(Timestamp::UNIX_EPOCH) {
            Some(_) => Ok(schedule),
            None => Err(wrong(format!("{shown:?} never comes"))),
        }
    }

    /// The first time after `after`; `None` when there is none that a calendar can hold.
    #[must_use]
    pub fn next_after(&self, after: Timestamp) -> Option<Timestamp> {
        // Wall times are counted as if in UTC, which has no gaps: what they mean in the zone is decided in `instant`.
        let mut wall = to_chrono(self.zone.to_datetime(after))?;
        // A wall time below the present one may be due after it only where the clock is set forward meanwhile, and
        // there it comes at the change itself, which is the wall time after the gap.
        loop {
            wall = self.cron.find_next_occurrence(&wall, false).ok()?;
            let instant = self.instant(from_chrono(wall)?)?;
            if instant > after {
                return Some(instant);
            }
        }
    }

    /// When this wall time is: of two the first; one that is skipped, when the clock changes.
    fn instant(&self, wall: civil::DateTime) -> Option<Timestamp> {
        let ambiguous = self.zone.to_ambiguous_timestamp(wall);
        match ambiguous.offset() {
            AmbiguousOffset::Unambiguous { .. } | AmbiguousOffset::Fold { .. } => ambiguous.earlier().ok(),
            AmbiguousOffset::Gap { .. } => {
                let before = ambiguous.earlier().ok()?;
                self.zone.following(before).next().map(|change| change.timestamp())
            }
        }
    }
}

fn to_chrono(wall: civil::DateTime) -> Option<DateTime<Utc>> {
    let seconds = wall.to_zoned(TimeZone::UTC).ok()?.timestamp().as_second();
    DateTime::from_timestamp(seconds, 0)
}

fn from_chrono(wall: DateTime<Utc>) -> Option<civil::DateTime> {
    Some(TimeZone::UTC.to_datetime(Timestamp::from_second(wall.timestamp()).ok()?))
}

/// How much later than its schedule says a pod's snapshots are due: the same for ever, and another for each pod.
#[must_use]
pub fn delay(pod: PodId) -> SignedDuration {
    // FNV-1a: ids that were made one after the other lie far apart.
    let hash = pod
        .to_string()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let seconds = hash % SPREAD.as_secs().unsigned_abs();
    SignedDuration::from_secs(i64::try_from(seconds).unwrap_or_default())
}

/// When the pod's next scheduled snapshot is due, as its record says: in the past when it is overdue.
///
/// `None` without a schedule, before the first look at the pod, and while the pod is released: its final snapshot holds
/// all there is.
#[must_use]
pub fn next_at(pod: &Pod, schedule: Option<&Schedule>) -> Option<Timestamp> {
    if pod.desired.releases_host() {
        return None;
    }
    schedule?.next_after(pod.scheduled_until?)?.checked_add(delay(pod.id)).ok()
}

/// What a look at a pod's schedule says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Nothing now.
    NotYet,
    /// Take a snapshot, and record that everything up to this time is done.
    Take(Timestamp),
    /// Nothing has changed since the last one, or the clock was wrong: record only that everything up to this time is
    /// done.
    Pass(Timestamp),
}

/// Whether a snapshot is due now; `latest` is the pod's newest verified one.
#[must_use]
pub fn due(pod: &Pod, schedule: Option<&Schedule>, latest: Option<&Snapshot>, now: Timestamp) -> Due {
    let Some(schedule) = schedule else { return Due::NotYet };
    if pod.desired.releases_host() || !pod.ever_ran() {
        return Due::NotYet;
    }
    // Every pod lives by a clock that is late by its own delay.
    let Ok(clock) = now.checked_sub(delay(pod.id)) else { return Due::NotYet };
    let Some(until) = pod.scheduled_until else { return Due::Pass(clock) };
    if until.duration_since(clock) > CLOCK_ERROR {
        return Due::Pass(clock);
    }
    if schedule.next_after(until).is_none_or(|at| at > clock) {
        return Due::NotYet;
    }
    // Whoever works on it does so for a reason; the time is made up afterwards.
    if pod.goal.is_some() || !pod.tasks.is_empty() {
        return Due::NotYet;
    }
    if is_unchanged(pod, latest) { Due::Pass(clock) } else { Due::Take(clock) }
}

/// Whether nobody can have written since the snapshot: every writable attach begins a new data generation.
fn is_unchanged(pod: &Pod, latest: Option<&Snapshot>) -> bool {
    let (Some(set), Some(latest)) = (pod.current_set(), latest) else { return false };
    pod.desired == Desired::Paused
        && latest.is_restorable()
        && latest.losses.is_empty()
        && latest.set == Some(set.number)
        && Some(latest.generation) == set.attached
        && latest.grade == Some(Grade::Stopped)
}

#[cfg(test)]
mod tests;
