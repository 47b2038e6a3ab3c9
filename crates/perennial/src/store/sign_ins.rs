//! Tries to sign in: counted before the password is looked at, so that many at once are not more than one after the other.

use jiff::{SignedDuration, Timestamp};
use perennial_core::access::{Role, UserName};
use sqlx::{AnyConnection, Row as _};

use super::read::Select;
use super::rows::{parse_time, time};
use super::{Store, StoreError};

/// Tries in a row that cost nothing.
const FREE: i64 = 5;
/// Longest time in which nobody gets in.
const LONGEST: SignedDuration = SignedDuration::from_mins(15);

/// So long after that the tries before are forgotten.
const FORGOTTEN: SignedDuration = SignedDuration::from_hours(24);

/// What a password is compared with.
#[derive(Clone, PartialEq, Eq)]
pub struct StoredPassword {
    /// The hash, in PHC string format.
    pub hash: String,
    /// What its user is to the installation.
    pub role: Role,
}

/// Whether a password is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt {
    /// It is.
    Counted,
    /// It is not before that.
    Locked(Timestamp),
}

/// After so many tries in a row nobody gets in for this long.
fn delay(tries: i64) -> SignedDuration {
    let Ok(beyond @ 0..=20) = u32::try_from(tries - FREE - 1) else {
        return if tries <= FREE { SignedDuration::ZERO } else { LONGEST };
    };
    SignedDuration::from_secs(30 << beyond).min(LONGEST)
}

impl Store {
    /// The password of a user who is there, is not disabled, and has one.
    ///
    /// # Errors
    /// Why it could not be read.
    pub async fn password_of(&self, name: &UserName) -> Result<Option<StoredPassword>, StoreError> {
        let mut select = Select::new("SELECT password, role FROM users WHERE removed_at = '' AND disabled = 0");
        select.text(" AND password <> '' AND name = $", name.as_str());
        let Some(row) = self.row(select).await? else { return Ok(None) };
        let role = if row.try_get::<&str, _>(1)? == "admin" { Role::Admin } else { Role::User };
        Ok(Some(StoredPassword { hash: row.try_get(0)?, role }))
    }

    /// Counts a try of a user; `None` is nobody, who is never locked out.
    ///
    /// # Errors
    /// Why it could not be counted: the password is not to be looked at then.
    pub async fn sign_in_tried(&self, name: Option<&UserName>, now: Timestamp) -> Result<Attempt, StoreError> {
        let key = name.map(|name| name.as_str().to_owned()).unwrap_or_default();
        let mut held = self.write.acquire().await?;
        let mut tx = held.begin().await?;
        // The row is taken, so that others wait.
        let sql = "INSERT INTO sign_ins (user_name, tries, locked_until) VALUES ($1, 1, '') \
                   ON CONFLICT (user_name) DO UPDATE SET tries = sign_ins.tries + 1 RETURNING tries, locked_until";
        let row = sqlx::query(sql).bind(key.clone()).fetch_one(&mut *tx).await?;
        let (tries, locked): (i64, &str) = (row.try_get(0)?, row.try_get(1)?);
        let locked = if locked.is_empty() { None } else { Some(parse_time("sign-in", locked)?) };
        let (attempt, tries, until) = match locked.filter(|_| name.is_some()) {
            // What is not looked at does not count. It is written all the same, or the time would tell who is locked out.
            Some(until) if until > now => (Attempt::Locked(until), tries - 1, time(until)),
            known => {
                let is_old = known.is_some_and(|until| now.duration_since(until) >= FORGOTTEN);
                let tries = if is_old { 1 } else { tries };
                let until = now.checked_add(delay(tries)).unwrap_or(Timestamp::MAX);
                (Attempt::Counted, tries, if until > now { time(until) } else { String::new() })
            }
        };
        let sql = "UPDATE sign_ins SET tries = $2, locked_until = $3 WHERE user_name = $1";
        sqlx::query(sql).bind(key).bind(tries).bind(until).execute(&mut *tx).await?;
        tx.commit().await.map_err(|error| StoreError::OutcomeUnknown(Some(error)))?;
        held.done();
        Ok(attempt)
    }

    /// Forgets the tries of a user who got in.
    ///
    /// # Errors
    /// Why the database did not do it.
    pub async fn sign_in_done(&self, name: &UserName) -> Result<(), StoreError> {
        let query = sqlx::query("DELETE FROM sign_ins WHERE user_name = $1").bind(name.as_str().to_owned());
        query.execute(&self.write).await?;
        Ok(())
    }
}

/// Forgets the tries of a user whose password changed, or who is gone.
pub(super) async fn forget(tx: &mut AnyConnection, name: &UserName) -> Result<(), StoreError> {
    let query = sqlx::query("DELETE FROM sign_ins WHERE user_name = $1").bind(name.as_str().to_owned());
    query.execute(tx).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_in_a_row_cost_more_and_more() {
        let seconds: Vec<i64> = (1..=12).map(|tries| delay(tries).as_secs()).collect();
        assert_eq!(seconds, [0, 0, 0, 0, 0, 30, 60, 120, 240, 480, 900, 900]);
        assert_eq!(delay(i64::MAX), LONGEST);
    }
}
