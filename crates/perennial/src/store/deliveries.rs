//! What people are told: messages on their way.
//!
//! They follow from the trail: each event is looked at once, by whichever server moves the counter `told` past it, in the transaction that
//! makes its messages. A message is sent by whoever counts its tries up; when that server dies, it is tried again when the next try is due.

use jiff::{SignedDuration, Timestamp};
use perennial_core::id::{DeliveryId, PodId};
use perennial_core::spec::TenantId;
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Row as _};

use super::read::{Page, Select};
use super::rows::{corrupt, parse, parse_tenant, parse_time, time};
use super::{Store, StoreError};

const COLUMNS: &str = "SELECT id, event, kind, tenant, pod, target, created_at, state, tries, next_at, ended_at, problem \
     FROM deliveries";

/// A message to one place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// Which.
    pub id: DeliveryId,
    /// The number of the event that it tells of.
    pub event: i64,
    /// The event's kind.
    pub kind: String,
    /// Whose.
    pub tenant: TenantId,
    /// Which pod.
    pub pod: Option<PodId>,
    /// Where it goes: `mail:ADDRESS` or `webhook:NAME`.
    pub target: String,
    /// Since when it is on its way.
    pub created_at: Timestamp,
    /// How far it is.
    pub state: DeliveryState,
    /// How often it was tried.
    pub tries: u32,
    /// When it is tried next; `None` when it has ended.
    pub next_at: Option<Timestamp>,
    /// When it ended; `None` while it is on its way.
    pub ended_at: Option<Timestamp>,
    /// Why the last try failed.
    pub problem: Option<String>,
}

/// How far a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeliveryState {
    /// On its way.
    Pending,
    /// Its receiver took it.
    Sent,
    /// It was given up.
    Failed,
}

impl DeliveryState {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::Pending, Self::Sent, Self::Failed];

    /// The name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Sent => "sent",
            Self::Failed => "failed",
        }
    }
}

/// How a try ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tried {
    /// Its receiver took it.
    Sent,
    /// It is tried again then.
    Again(Timestamp, String),
    /// It is given up.
    GivenUp(String),
}

impl Store {
    /// The number of the newest event that was looked at for messages.
    ///
    /// # Errors
    /// Why it could not be read.
    pub async fn told(&self) -> Result<i64, StoreError> {
        let row = self.row(Select::new("SELECT value FROM counters WHERE name = 'told'")).await?;
        row.map_or(Ok(0), |row| Ok(row.try_get(0)?))
    }

    /// Adds the messages that events `from + 1` to `to` lead to; nothing, and `false`, when somebody else did so meanwhile.
    ///
    /// # Errors
    /// Why they are not there, or that nobody knows.
    pub async fn deliveries_add(&self, (from, to): (i64, i64), deliveries: &[Delivery]) -> Result<bool, StoreError> {
        let mut held = self.write.acquire().await?;
        let mut tx = held.begin().await?;
        let moved =
            sqlx::query("UPDATE counters SET value = $2 WHERE name = 'told' AND value = $1").bind(from).bind(to);
        if moved.execute(&mut *tx).await?.rows_affected() != 1 {
            tx.rollback().await?;
            held.done();
            return Ok(false);
        }
        for delivery in deliveries {
            insert(&mut tx, delivery).await?;
        }
        tx.commit().await.map_err(|error| StoreError::OutcomeUnknown(Some(error)))?;
        held.done();
        Ok(true)
    }

    /// Whether the same was told of the same pod, in the same place, at this time or later.
    ///
    /// # Errors
    /// Why it could not be read.
    pub async fn delivery_is_known(&self, like: &Delivery, since: Timestamp) -> Result<bool, StoreError> {
        let mut select = Select::new("SELECT 1 FROM deliveries");
        select.text(" WHERE target = $", like.target.as_str()).text(" AND kind = $", like.kind.as_str());
        select.text(" AND pod = $", like.pod.map(|pod| pod.to_string()).unwrap_or_default());
        select.text(" AND created_at >= $", time(since)).limit(1);
        Ok(self.row(select).await?.is_some())
    }

    /// Counts the messages that wait for a receiver.
    ///
    /// # Errors
    /// Why they could not be counted.
    pub async fn deliveries_waiting(&self, target: &str) -> Result<u64, StoreError> {
        let mut select = Select::new("SELECT COUNT(*) FROM deliveries WHERE state = 'pending'");
        select.text(" AND target = $", target);
        let row = self.row(select).await?;
        let count: i64 = row.map_or(Ok(0), |row| row.try_get(0))?;
        Ok(u64::try_from(count).unwrap_or_default())
    }

    /// Counts the messages that were given up at this time or later.
    ///
    /// # Errors
    /// Why they could not be counted.
    pub async fn deliveries_failed(&self, since: Timestamp) -> Result<u64, StoreError> {
        let mut select = Select::new("SELECT COUNT(*) FROM deliveries WHERE state = 'failed'");
        select.text(" AND ended_at >= $", time(since));
        let row = self.row(select).await?;
        let count: i64 = row.map_or(Ok(0), |row| row.try_get(0))?;
        Ok(u64::try_from(count).unwrap_or_default())
    }

    /// Lists messages for a receiver that are to be sent now, the longest overdue first; `KIND:` is all receivers of a kind.
    ///
    /// # Errors
    /// Why they could not be read.
    pub async fn deliveries_due(&self, target: &str, now: Timestamp, limit: u32) -> Result<Vec<Delivery>, StoreError> {
        let mut select = Select::new(COLUMNS);
        select.text(" WHERE state = 'pending' AND next_at <= $", time(now));
        match target.strip_suffix(':') {
            // All of a kind; names of kinds have no characters that mean something here.
            Some(kind) => select.text(" AND target LIKE $", format!("{kind}:%")),
            None => select.text(" AND target = $", target),
        };
        select.raw(" ORDER BY next_at, id").limit(limit);
        self.rows(select).await?.iter().map(from_row).collect()
    }

    /// Takes a message to be sent: `false` when somebody else did. Who takes it has `patience` to say how it ended, and is taken
    /// for dead then.
    ///
    /// # Errors
    /// Why it could not be taken.
    pub async fn delivery_take(
        &self,
        delivery: &Delivery,
        now: Timestamp,
        patience: SignedDuration,
    ) -> Result<bool, StoreError> {
        let until = now.checked_add(patience).unwrap_or(Timestamp::MAX);
        let sql =
            "UPDATE deliveries SET tries = tries + 1, next_at = $3 WHERE id = $1 AND tries = $2 AND state = 'pending'";
        let query = sqlx::query(sql).bind(delivery.id.to_string()).bind(i64::from(delivery.tries)).bind(time(until));
        Ok(query.execute(&self.write).await?.rows_affected() == 1)
    }

    /// Records how a try ended.
    ///
    /// # Errors
    /// Why it could not be recorded.
    pub async fn delivery_tried(&self, id: DeliveryId, at: Timestamp, tried: &Tried) -> Result<(), StoreError> {
        let (state, next, ended, problem) = match tried {
            Tried::Sent => (DeliveryState::Sent, String::new(), time(at), ""),
            Tried::Again(next, problem) => (DeliveryState::Pending, time(*next), String::new(), problem.as_str()),
            Tried::GivenUp(problem) => (DeliveryState::Failed, String::new(), time(at), problem.as_str()),
        };
        let sql = "UPDATE deliveries SET state = $2, next_at = $3, ended_at = $4, problem = $5 \
                   WHERE id = $1 AND state = 'pending'";
        let query = sqlx::query(sql).bind(id.to_string()).bind(state.as_str()).bind(next).bind(ended);
        query.bind(problem.to_owned()).execute(&self.write).await?;
        Ok(())
    }

    /// Lists messages, oldest first.
    ///
    /// # Errors
    /// Why they could not be read.
    pub async fn delivery_list(&self, state: Option<DeliveryState>, page: &Page) -> Result<Vec<Delivery>, StoreError> {
        let mut select = Select::new(COLUMNS);
        select.text(" WHERE id > $", page.after.clone().unwrap_or_default());
        if let Some(state) = state {
            select.text(" AND state = $", state.as_str());
        }
        select.raw(" ORDER BY id").limit(page.limit);
        self.rows(select).await?.iter().map(from_row).collect()
    }

    /// Forgets messages that ended before.
    ///
    /// # Errors
    /// Why the database did not do it.
    pub async fn deliveries_prune(&self, before: Timestamp) -> Result<(), StoreError> {
        let sql = "DELETE FROM deliveries WHERE state <> 'pending' AND ended_at < $1";
        sqlx::query(sql).bind(time(before)).execute(&self.write).await?;
        Ok(())
    }

    /// The addresses of a tenant's members who may be written to.
    ///
    /// # Errors
    /// Why they could not be read.
    pub async fn addresses_of(&self, tenant: &TenantId) -> Result<Vec<String>, StoreError> {
        let mut select = Select::new(
            "SELECT u.email FROM memberships m JOIN users u ON u.name = m.user_name \
             WHERE u.removed_at = '' AND u.disabled = 0 AND u.email <> ''",
        );
        select.text(" AND m.tenant = $", tenant.as_str()).raw(" ORDER BY u.name");
        self.rows(select).await?.iter().map(|row| Ok(row.try_get(0)?)).collect()
    }
}

async fn insert(tx: &mut AnyConnection, delivery: &Delivery) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO deliveries (id, event, kind, tenant, pod, target, created_at, state, tries, next_at, ended_at, problem) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, 'pending', 0, $8, '', '')",
    )
    .bind(delivery.id.to_string())
    .bind(delivery.event)
    .bind(delivery.kind.clone())
    .bind(delivery.tenant.as_str().to_owned())
    .bind(delivery.pod.map(|pod| pod.to_string()).unwrap_or_default())
    .bind(delivery.target.clone())
    .bind(time(delivery.created_at))
    .bind(time(delivery.created_at))
    .execute(tx)
    .await?;
    Ok(())
}

/// Takes the messages of a tenant away that is erased.
pub(super) async fn tenant_gone(tx: &mut AnyConnection, tenant: &TenantId) -> Result<(), StoreError> {
    let query = sqlx::query("DELETE FROM deliveries WHERE tenant = $1").bind(tenant.as_str().to_owned());
    query.execute(tx).await?;
    Ok(())
}

fn from_row(row: &AnyRow) -> Result<Delivery, StoreError> {
    let what = "delivery";
    let state: &str = row.try_get(7)?;
    let state = DeliveryState::ALL.into_iter().find(|known| known.as_str() == state);
    let when = |text: &str| if text.is_empty() { Ok(None) } else { parse_time(what, text).map(Some) };
    let pod: &str = row.try_get(4)?;
    let problem: String = row.try_get(11)?;
    Ok(Delivery {
        id: parse(what, row.try_get(0)?)?,
        event: row.try_get(1)?,
        kind: row.try_get(2)?,
        tenant: parse_tenant(what, row.try_get(3)?)?,
        pod: if pod.is_empty() { None } else { Some(parse(what, pod)?) },
        target: row.try_get(5)?,
        created_at: parse_time(what, row.try_get(6)?)?,
        state: state.ok_or_else(|| corrupt(what, "its state is unknown"))?,
        tries: u32::try_from(row.try_get::<i64, _>(8)?).map_err(|error| corrupt(what, error))?,
        next_at: when(row.try_get(9)?)?,
        ended_at: when(row.try_get(10)?)?,
        problem: Some(problem).filter(|problem| !problem.is_empty()),
    })
}
