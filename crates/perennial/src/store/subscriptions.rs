//! Subscriptions: rows, and that a pod goes no way which its subscription forbids.
//!
//! Who starts a pod and who ends its subscription may ask at the same moment. Both commits look at the subscription after they took the
//! row of the event counter, so that the second sees what the first did.

use std::collections::BTreeSet;

use jiff::Timestamp;
use perennial_core::Error;
use perennial_core::id::{PodId, SubscriptionId};
use perennial_core::pod::Desired;
use perennial_core::service::{PlanName, ServiceName};
use perennial_core::spec::{PodName, TenantId};
use perennial_core::subscription::{End, Resume, Standing, Subscription, SubscriptionState, allows};
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Row as _};

use super::change::Change;
use super::read::{Page, Select};
use super::rows::{corrupt, parse, parse_tenant, parse_time, time};
use super::{Store, StoreError, access};

const COLUMNS: &str = "SELECT id, tenant, name, service, plan, pod, state, version, created_at, expires_at, ended_at, resume, \
     trash_at, warned, purge_at, purged FROM subscriptions";

/// Which subscriptions a list holds.
#[derive(Debug, Clone, Default)]
pub struct SubscriptionFilter {
    /// Only this tenant's.
    pub tenant: Option<TenantId>,
    /// Only of this name.
    pub name: Option<PodName>,
    /// Only in this state.
    pub state: Option<SubscriptionState>,
    /// Only those of these tenants; `None`: everybody's.
    pub within: Option<BTreeSet<TenantId>>,
}

impl Store {
    /// Reads a subscription.
    ///
    /// # Errors
    /// Why it could not be read.
    pub async fn subscription_fetch(&self, id: SubscriptionId) -> Result<Option<Subscription>, StoreError> {
        self.subscription(" WHERE id = $", &id.to_string()).await
    }

    /// Reads the subscription that a pod belongs to.
    ///
    /// # Errors
    /// Why it could not be read.
    pub async fn subscription_of(&self, pod: PodId) -> Result<Option<Subscription>, StoreError> {
        self.subscription(" WHERE pod = $", &pod.to_string()).await
    }

    async fn subscription(&self, condition: &'static str, value: &str) -> Result<Option<Subscription>, StoreError> {
        let mut select = Select::new(COLUMNS);
        select.text(condition, value);
        self.row(select).await?.as_ref().map(from_row).transpose()
    }

    /// Lists subscriptions, oldest first.
    ///
    /// # Errors
    /// Why they could not be read.
    pub async fn subscription_list(
        &self,
        filter: &SubscriptionFilter,
        page: &Page,
    ) -> Result<Vec<Subscription>, StoreError> {
        let mut select = Select::new(COLUMNS);
        select.text(" WHERE id > $", page.after.clone().unwrap_or_default());
        if let Some(tenant) = &filter.tenant {
            select.text(" AND tenant = $", tenant.as_str());
        }
        if let Some(name) = &filter.name {
            select.text(" AND name = $", name.as_str());
        }
        if let Some(state) = filter.state {
            select.text(" AND state = $", state.as_str());
        }
        select.among(" AND tenant IN (", filter.within.as_ref()).raw(" ORDER BY id").limit(page.limit);
        self.rows(select).await?.iter().map(from_row).collect()
    }

    /// Lists ids of subscriptions of which something is due.
    ///
    /// # Errors
    /// Why they could not be read.
    pub async fn subscriptions_due(&self, now: Timestamp, page: &Page) -> Result<Vec<SubscriptionId>, StoreError> {
        let mut select = Select::new("SELECT id FROM subscriptions");
        select.text(" WHERE id > $", page.after.clone().unwrap_or_default());
        select.text(" AND due_at <> '' AND due_at <= $", time(now)).raw(" ORDER BY id").limit(page.limit);
        self.rows(select).await?.iter().map(|row| parse("subscription", row.try_get(0)?)).collect()
    }
}

fn when(text: &str) -> Result<Option<Timestamp>, StoreError> {
    if text.is_empty() { Ok(None) } else { parse_time("subscription", text).map(Some) }
}

fn name<T>(read: Result<T, Error>) -> Result<T, StoreError> {
    read.map_err(|error| corrupt("subscription", error))
}

fn from_row(row: &AnyRow) -> Result<Subscription, StoreError> {
    let what = "subscription";
    let state: &str = row.try_get(6)?;
    let state = SubscriptionState::ALL.into_iter().find(|known| known.as_str() == state);
    let end = match when(row.try_get(10)?)? {
        None => None,
        Some(at) => Some(End {
            at,
            resume: match row.try_get::<&str, _>(11)? {
                "start" => Resume::Start,
                "leave" => Resume::Leave,
                other => return Err(corrupt(what, format!("resume {other:?}"))),
            },
            trash_at: parse_time(what, row.try_get(12)?)?,
            warned: u8::try_from(row.try_get::<i64, _>(13)?).map_err(|error| corrupt(what, error))?,
            purge_at: when(row.try_get(14)?)?,
            purged: row.try_get::<i64, _>(15)? != 0,
        }),
    };
    Ok(Subscription {
        id: parse(what, row.try_get(0)?)?,
        tenant: parse_tenant(what, row.try_get(1)?)?,
        name: name(PodName::parse(row.try_get(2)?))?,
        service: name(ServiceName::parse(row.try_get(3)?))?,
        pod: parse(what, row.try_get(5)?)?,
        standing: Standing {
            state: state.ok_or_else(|| corrupt(what, "its state is unknown"))?,
            plan: name(PlanName::parse(row.try_get(4)?))?,
            expires_at: when(row.try_get(9)?)?,
            end,
        },
        created_at: parse_time(what, row.try_get(8)?)?,
        version: row.try_get(7)?,
    })
}

/// Version 0 is inserted, any other replaces the row of exactly that version; stored with the next version.
pub(super) async fn apply(tx: &mut AnyConnection, subscription: &Subscription) -> Result<(), StoreError> {
    // Before the row, as whoever ends a tenant does.
    access::others_wait(tx).await?;
    let Subscription { id, tenant, name, service, pod, standing, created_at, version } = subscription;
    let text = |at: Option<Timestamp>| at.map(time).unwrap_or_default();
    let sql = if *version == 0 {
        "INSERT INTO subscriptions (id, version, pod, plan, state, expires_at, ended_at, resume, trash_at, warned, purge_at, \
         purged, due_at, tenant, name, service, created_at) \
         VALUES ($1, 1 + $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17) ON CONFLICT (id) DO NOTHING"
    } else {
        "UPDATE subscriptions SET version = version + 1, pod = $3, plan = $4, state = $5, expires_at = $6, ended_at = $7, \
         resume = $8, trash_at = $9, warned = $10, purge_at = $11, purged = $12, due_at = $13 WHERE id = $1 AND version = $2"
    };
    let end = standing.end;
    let resume = end.map(|end| match end.resume {
        Resume::Start => "start",
        Resume::Leave => "leave",
    });
    let query = sqlx::query(sql)
        .bind(id.to_string())
        .bind(*version)
        .bind(pod.to_string())
        .bind(standing.plan.as_str().to_owned())
        .bind(standing.state.as_str())
        .bind(text(standing.expires_at))
        .bind(text(end.map(|end| end.at)))
        .bind(resume.unwrap_or_default())
        .bind(text(end.map(|end| end.trash_at)))
        .bind(end.map_or(0, |end| i64::from(end.warned)))
        .bind(text(end.and_then(|end| end.purge_at)))
        .bind(i64::from(end.is_some_and(|end| end.purged)))
        .bind(text(standing.due_at()));
    let query = if *version == 0 {
        query
            .bind(tenant.as_str().to_owned())
            .bind(name.as_str().to_owned())
            .bind(service.as_str().to_owned())
            .bind(time(*created_at))
    } else {
        query
    };
    let done = query.execute(tx).await.map_err(|error| match &error {
        sqlx::Error::Database(database) if database.is_unique_violation() => {
            StoreError::Taken(format!("a subscription {name}"))
        }
        _ => error.into(),
    })?;
    if done.rows_affected() == 1 { Ok(()) } else { Err(StoreError::Stale) }
}

/// Refuses a pod's way that its subscription forbids, as both are now, and a pod with the name of another subscription's.
pub(super) async fn check(tx: &mut AnyConnection, change: &Change) -> Result<(), StoreError> {
    let Some(pod) = &change.pod else { return Ok(()) };
    let is_hidden = |desired| matches!(desired, Desired::Archived | Desired::Deleted);
    let moves = change.moved_from.map(|before| (before, pod.desired));
    let purges = change.forgets_all_of.map(|_| (pod.desired, Desired::Deleted));
    let appears = pod.version == 0 || (change.moved_from.is_some_and(is_hidden) && !is_hidden(pod.desired));
    if moves.is_none() && purges.is_none() && !appears {
        return Ok(());
    }
    access::others_wait(tx).await?;
    if appears {
        let sql = "SELECT 1 FROM subscriptions WHERE tenant = $1 AND name = $2 AND purged = 0 AND pod <> $3";
        let query = sqlx::query(sql).bind(pod.tenant.as_str().to_owned()).bind(pod.name.as_str().to_owned());
        if query.bind(pod.id.to_string()).fetch_optional(&mut *tx).await?.is_some() {
            return Err(StoreError::NameTaken);
        }
    }
    let query = sqlx::query("SELECT state FROM subscriptions WHERE pod = $1").bind(pod.id.to_string());
    let Some(row) = query.fetch_optional(tx).await? else { return Ok(()) };
    let state: &str = row.try_get(0)?;
    let state = SubscriptionState::ALL.into_iter().find(|known| known.as_str() == state);
    let state = state.ok_or_else(|| corrupt("subscription", "its state is unknown"))?;
    for (before, after) in moves.into_iter().chain(purges) {
        allows(state, before, after).map_err(StoreError::Subscribed)?;
    }
    Ok(())
}

/// Takes the subscriptions of a tenant away that is erased.
pub(super) async fn tenant_gone(tx: &mut AnyConnection, tenant: &TenantId) -> Result<(), StoreError> {
    let query = sqlx::query("DELETE FROM subscriptions WHERE tenant = $1").bind(tenant.as_str().to_owned());
    query.execute(tx).await?;
    Ok(())
}
