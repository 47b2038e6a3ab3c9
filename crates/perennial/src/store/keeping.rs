//! When it was looked last for what has ended: the breaker of decision D15.
//!
//! A clock that jumps, a server that was away for long, and a database that was brought back from an old copy have one thing in common:
//! a lot ends at once that somebody may have brought back meanwhile, or still would. So after a gap nothing is destroyed for a day, in
//! which people are told.

use jiff::{SignedDuration, Timestamp};
use perennial_core::cleanup::WINDOW;
use sqlx::{AnyConnection, Row as _};

use super::read::Select;
use super::rows::{corrupt, time};
use super::{Store, StoreError};

/// So long nobody may have looked.
const GAP: SignedDuration = SignedDuration::from_hours(36);
/// How exact it is known when somebody looked, in seconds: it is not written down each time.
const FRESH: i64 = 60;
/// So long nothing is destroyed after a gap.
const HELD: SignedDuration = SignedDuration::from_hours(24);

impl Store {
    /// Records that it is looked now; tells until when nothing is destroyed, `None` when nothing stands against it.
    ///
    /// # Errors
    /// Why that cannot be told: nothing is destroyed then either.
    pub async fn keeping(&self, now: Timestamp) -> Result<Option<Timestamp>, StoreError> {
        let second = now.as_second();
        let row = self.row(Select::new(
            "SELECT k.value, h.value FROM counters k, counters h WHERE k.name = 'kept' AND h.name = 'held'",
        ));
        let row = row.await?.ok_or_else(|| corrupt("the counters", "kept and held are not there"))?;
        let (seen, until): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
        if (0..FRESH).contains(&second.saturating_sub(seen)) {
            return Ok(open(until, now));
        }
        let mut held = self.write.acquire().await?;
        let mut tx = held.begin().await?;
        // Taken first, so that a second server on the same database waits.
        let seen = sqlx::query("UPDATE counters SET value = value WHERE name = 'kept' RETURNING value");
        let seen: i64 = seen.fetch_one(&mut *tx).await?.try_get(0)?;
        let until = sqlx::query("SELECT value FROM counters WHERE name = 'held'").fetch_one(&mut *tx).await?;
        let mut until: i64 = until.try_get(0)?;
        // A database in which nobody ever looked is new, or from before anybody did.
        let is_gap = match seen {
            0 => sqlx::query("SELECT 1 FROM pods").fetch_optional(&mut *tx).await?.is_some(),
            _ => second.saturating_sub(seen) > GAP.as_secs(),
        };
        if is_gap {
            until = second.saturating_add(HELD.as_secs());
        }
        // A clock that was set back is not held for what it was ahead.
        until = until.min(second.saturating_add(HELD.as_secs()));
        keep_orphans(&mut tx, is_gap, now).await?;
        for (name, value) in [("kept", second), ("held", until)] {
            let query = sqlx::query("UPDATE counters SET value = $2 WHERE name = $1").bind(name).bind(value);
            query.execute(&mut *tx).await?;
        }
        tx.commit().await.map_err(|error| StoreError::OutcomeUnknown(Some(error)))?;
        held.done();
        Ok(open(until, now))
    }

    /// Until when nothing is destroyed by itself; `None` when nothing stands against it.
    ///
    /// # Errors
    /// Why it could not be read.
    pub async fn held_until(&self, now: Timestamp) -> Result<Option<Timestamp>, StoreError> {
        let row = self.row(Select::new("SELECT value FROM counters WHERE name = 'held'")).await?;
        Ok(open(row.map_or(Ok(0), |row| row.try_get(0))?, now))
    }
}

/// The week that orphans are kept after a consent begins anew after a gap, because by a clock that was behind it may be over at once; and it
/// is never longer than a week from now, because by one that was ahead it may never be over.
async fn keep_orphans(tx: &mut AnyConnection, is_gap: bool, now: Timestamp) -> Result<(), StoreError> {
    let kept_until = now.checked_add(WINDOW).unwrap_or(Timestamp::MAX);
    let sql = if is_gap {
        "UPDATE orphans SET kept_until = $1 WHERE quarantined_at <> '' AND ending = 0"
    } else {
        "UPDATE orphans SET kept_until = $1 WHERE quarantined_at <> '' AND ending = 0 AND kept_until > $1"
    };
    sqlx::query(sql).bind(time(kept_until)).execute(tx).await?;
    Ok(())
}

/// A time that is still to come.
fn open(until: i64, now: Timestamp) -> Option<Timestamp> {
    Timestamp::from_second(until).ok().filter(|until| *until > now)
}
