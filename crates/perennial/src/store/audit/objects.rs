//! What a change is about beside pods, as it is in its row.

use perennial_core::access::UserName;
use perennial_core::id::{SubscriptionId, TokenId};
use perennial_core::service::ServiceName;
use perennial_core::spec::TenantId;
use serde_json::Value;
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Row as _};

use crate::audit::View;
use crate::store::change::Change;
use crate::store::{AccessChange, ServiceBecomes, Shown, StoreError};

/// One row that a change writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Object {
    Tenant(TenantId),
    User(UserName),
    Member(UserName, TenantId),
    Token(TokenId),
    Service(ServiceName),
    Subscription(SubscriptionId),
    Erasure(TenantId),
}

impl Object {
    /// What a change may write.
    pub(super) fn all_of(change: &Change) -> Vec<Self> {
        let mut all = Vec::new();
        // The first pod of a tenant makes the tenant.
        let made = change.other_pod.iter().chain(&change.pod).filter(|pod| pod.version == 0);
        all.extend(made.map(|pod| Self::Tenant(pod.tenant.clone())).take(1));
        match change.access.as_ref().map(|request| &request.change) {
            None => {}
            Some(AccessChange::TenantNew(tenant) | AccessChange::TenantQuota(tenant, _)) => {
                all.push(Self::Tenant(tenant.clone()));
            }
            Some(AccessChange::UserNew(user, _)) => all.push(Self::User(user.name.clone())),
            Some(AccessChange::User(user, _) | AccessChange::UserGone(user)) => all.push(Self::User(user.clone())),
            Some(AccessChange::MemberNew(user, tenant) | AccessChange::MemberGone(user, tenant)) => {
                all.push(Self::Member(user.clone(), tenant.clone()));
            }
            Some(AccessChange::TokenNew(token, _)) => all.push(Self::Token(token.id)),
            Some(AccessChange::SessionNew(token, _, shown)) => {
                all.push(Self::Token(token.id));
                if matches!(shown, Shown::Identity { .. }) {
                    // The first time it becomes theirs.
                    all.push(Self::User(token.user.clone()));
                }
            }
            Some(AccessChange::TokenRevoked(token)) => all.push(Self::Token(*token)),
        }
        all.extend(change.service.as_ref().map(|service| match &service.becomes {
            ServiceBecomes::Stored(service) => Self::Service(service.name.clone()),
            ServiceBecomes::Removed(name) => Self::Service(name.clone()),
        }));
        all.extend(change.subscription.as_ref().map(|subscription| Self::Subscription(subscription.id)));
        if let Some(erasure) = &change.erasure {
            all.extend([Self::Erasure(erasure.tenant().clone()), Self::Tenant(erasure.tenant().clone())]);
        }
        all
    }

    /// Whether an event of this kind tells of it.
    pub(super) fn is_told_by(&self, kind: &str) -> bool {
        let (about, _) = kind.split_once('.').unwrap_or((kind, ""));
        match self {
            Self::Member(..) | Self::Erasure(_) => about == "tenant",
            Self::Token(_) => about == "token" || kind == "user.signed-in",
            _ => about == self.word(),
        }
    }

    /// What it is called in a row.
    pub(super) const fn word(&self) -> &'static str {
        match self {
            Self::Tenant(_) => "tenant",
            Self::User(_) => "user",
            Self::Member(..) => "member",
            Self::Token(_) => "token",
            Self::Service(_) => "service",
            Self::Subscription(_) => "subscription",
            Self::Erasure(_) => "erasure",
        }
    }

    /// Whose row tells of it when no event does.
    pub(super) const fn tenant(&self) -> Option<&TenantId> {
        match self {
            Self::Tenant(tenant) | Self::Member(_, tenant) | Self::Erasure(tenant) => Some(tenant),
            Self::User(_) | Self::Token(_) | Self::Service(_) | Self::Subscription(_) => None,
        }
    }

    /// Reads it; `None` when there is none.
    pub(super) async fn view(&self, tx: &mut AnyConnection) -> Result<Option<View>, StoreError> {
        let row = match self {
            Self::Tenant(tenant) => {
                let query = sqlx::query("SELECT name, quota FROM tenants WHERE name = $1");
                query.bind(tenant.as_str().to_owned()).fetch_optional(&mut *tx).await?
            }
            Self::User(user) => {
                let sql = "SELECT name, role, disabled, email, password, identity FROM users WHERE name = $1 AND removed_at = ''";
                sqlx::query(sql).bind(user.as_str().to_owned()).fetch_optional(&mut *tx).await?
            }
            Self::Member(user, tenant) => {
                let sql = "SELECT user_name, tenant FROM memberships WHERE user_name = $1 AND tenant = $2";
                let query = sqlx::query(sql).bind(user.as_str().to_owned()).bind(tenant.as_str().to_owned());
                query.fetch_optional(&mut *tx).await?
            }
            Self::Token(token) => {
                let sql = "SELECT user_name, label, scopes, tenant, created_by, expires_at, revoked_at FROM tokens WHERE id = $1";
                sqlx::query(sql).bind(token.to_string()).fetch_optional(&mut *tx).await?
            }
            Self::Service(service) => {
                let query = sqlx::query("SELECT name, definition FROM services WHERE name = $1");
                query.bind(service.as_str().to_owned()).fetch_optional(&mut *tx).await?
            }
            Self::Subscription(subscription) => {
                let sql = "SELECT name, tenant, service, plan, state, pod, expires_at, ended_at, resume, trash_at, purge_at, warned, \
                           purged FROM subscriptions WHERE id = $1";
                sqlx::query(sql).bind(subscription.to_string()).fetch_optional(&mut *tx).await?
            }
            Self::Erasure(tenant) => {
                let sql = "SELECT actor, asked_at, keys_at, done_at, delete_data, found, problem FROM erasures WHERE tenant = $1";
                sqlx::query(sql).bind(tenant.as_str().to_owned()).fetch_optional(&mut *tx).await?
            }
        };
        let Some(row) = row else { return Ok(None) };
        let mut view = self.shown(&row)?;
        // What goes with it.
        match self {
            Self::Tenant(tenant) => {
                let sql = "SELECT user_name FROM memberships WHERE tenant = $1 ORDER BY user_name";
                view.show("members", names(tx, sql, tenant.as_str()).await?);
            }
            Self::User(user) => {
                let sql = "SELECT tenant FROM memberships WHERE user_name = $1 ORDER BY tenant";
                view.show("tenants", names(tx, sql, user.as_str()).await?);
                let sql = "SELECT COUNT(*) FROM tokens WHERE user_name = $1 AND revoked_at = ''";
                let row = sqlx::query(sql).bind(user.as_str().to_owned()).fetch_one(tx).await?;
                view.show("tokens", row.try_get::<i64, _>(0)?);
            }
            _ => {}
        }
        Ok(Some(view))
    }

    fn shown(&self, row: &AnyRow) -> Result<View, StoreError> {
        let mut view = View::default();
        let text = |column: usize| row.try_get::<String, _>(column);
        let number = |column: usize| row.try_get::<i64, _>(column);
        let mut texts = |names: &[&str]| -> Result<(), StoreError> {
            for (column, name) in names.iter().enumerate() {
                view.show(name, text(column)?);
            }
            Ok(())
        };
        match self {
            Self::Tenant(_) => {
                texts(&["name"])?;
                match serde_json::from_str::<Value>(&text(1)?) {
                    Ok(quota) => view.show("quota", quota),
                    Err(_) => view.hide("quota", text(1)?),
                }
            }
            Self::User(_) => {
                texts(&["name", "role"])?;
                view.show("disabled", number(2)? != 0);
                for (column, name) in [(3, "email"), (4, "password"), (5, "identity")] {
                    view.hide(name, text(column)?);
                }
            }
            Self::Member(..) => texts(&["user", "tenant"])?,
            Self::Token(_) => {
                texts(&["user", "label", "scopes", "tenant", "createdBy", "expiresAt", "revokedAt"])?;
            }
            Self::Service(_) => {
                texts(&["name"])?;
                // What cannot be read shows nothing, and can be replaced and removed.
                view.hide("definition", text(1)?);
                if let Ok(definition) = serde_json::from_str(&text(1)?) {
                    show_parts(&mut view, definition);
                }
            }
            Self::Subscription(_) => {
                let names = [
                    "name",
                    "tenant",
                    "service",
                    "plan",
                    "state",
                    "pod",
                    "expiresAt",
                    "endedAt",
                    "resume",
                    "trashAt",
                    "purgeAt",
                ];
                texts(&names)?;
                view.show("warned", number(11)?);
                view.show("purged", number(12)? != 0);
            }
            Self::Erasure(_) => {
                texts(&["actor", "askedAt", "keysAt", "doneAt"])?;
                view.show("deleteData", number(4)? != 0);
                view.hide("found", text(5)?);
                view.hide("problem", text(6)?);
            }
        }
        Ok(view)
    }
}

/// The fields of a definition, and each of its plans as one of them: a row tells of the plans that changed.
fn show_parts(view: &mut View, definition: Value) {
    let Value::Object(fields) = definition else { return };
    for (field, value) in fields {
        match value {
            Value::Array(plans) if field == "plans" => {
                for (at, plan) in plans.into_iter().enumerate() {
                    let name = plan.get("name").and_then(Value::as_str).map_or_else(|| at.to_string(), str::to_owned);
                    view.show_document(&format!("plans.{name}"), "plan", plan);
                }
            }
            value => view.show_document(&field, &field, value),
        }
    }
}

async fn names(tx: &mut AnyConnection, sql: &'static str, of: &str) -> Result<Vec<String>, StoreError> {
    let rows = sqlx::query(sql).bind(of.to_owned()).fetch_all(tx).await?;
    Ok(rows.iter().map(|row| row.try_get(0)).collect::<sqlx::Result<_>>()?)
}
