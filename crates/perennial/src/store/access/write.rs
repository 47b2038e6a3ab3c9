//! What changes of who may do what.

use std::collections::BTreeSet;

use jiff::Timestamp;
use perennial_core::access::{Holder, Rights, Role, Token, User, UserName};
use perennial_core::id::TokenId;
use perennial_core::quota::Quota;
use perennial_core::spec::TenantId;
use sqlx::{AnyConnection, AssertSqlSafe, Row as _};
use tokio::sync::watch;

use super::{TOKEN_COLUMNS, TokenHash, holder_of, role_text, scopes_text, token, user};
use crate::store::change::Change;
use crate::store::rows::{parse_tenant, time};
use crate::store::{StoreError, deliveries, quotas, sign_ins, subscriptions};

/// A change, and for whom.
#[derive(Debug, Clone)]
pub struct AccessRequest {
    /// What.
    pub change: AccessChange,
    /// When.
    pub at: Timestamp,
}

/// A token that asks for a change, and the rights it had when it was decided that it may.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asker {
    /// Which.
    pub token: TokenId,
    /// Nothing is written when it has less than these now.
    pub rights: Rights,
    /// Now.
    pub at: Timestamp,
}

/// What changes.
#[derive(Debug, Clone)]
pub enum AccessChange {
    /// A tenant is made. Nothing is written when it is there, or was erased.
    TenantNew(TenantId),
    /// What the pods of a tenant may take together from now on.
    TenantQuota(TenantId, Quota),
    /// A user is made, with the hash of their password. Nothing is written when the name was ever used.
    UserNew(Box<User>, Option<String>),
    /// What is known of a user changes.
    User(UserName, UserPatch),
    /// A user is removed, and with them their memberships and tokens.
    UserGone(UserName),
    /// A user becomes a member of a tenant, unless they are one.
    MemberNew(UserName, TenantId),
    /// They are none any more.
    MemberGone(UserName, TenantId),
    /// A token is made.
    TokenNew(Box<Token>, TokenHash),
    /// A token is made for who signed in; nothing is written when what they showed is no longer theirs.
    SessionNew(Box<Token>, TokenHash, Shown),
    /// It is revoked; one that was revoked before stays so since then.
    TokenRevoked(TokenId),
}

/// What somebody showed to sign in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shown {
    /// A password of this hash.
    Password(String),
    /// What a provider calls them. It becomes theirs when they have none, and this is their address, in lower case.
    Identity {
        /// Who they are to the provider.
        identity: String,
        /// The address that the provider looked at.
        email: Option<String>,
    },
}

/// What changes of a user; `None` stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UserPatch {
    /// The address; empty: none.
    pub email: Option<String>,
    /// The role.
    pub role: Option<Role>,
    /// The hash of a password; empty: none.
    pub password: Option<String>,
    /// Whether nothing of theirs is good for now.
    pub disabled: Option<bool>,
}

/// Tells this process that rights may have changed, however the commit ends: also when whoever waited for it went away.
pub(in crate::store) struct Announcement(Option<watch::Sender<u64>>);

impl Announcement {
    /// One for a change that has something to do with rights; nothing is told for others.
    pub(in crate::store) fn of(change: &Change, sender: &watch::Sender<u64>) -> Self {
        let is_about = change.access.is_some() || change.erasure.is_some();
        Self(is_about.then(|| sender.clone()))
    }
}

impl Drop for Announcement {
    fn drop(&mut self) {
        if let Some(sender) = &self.0 {
            sender.send_modify(|count| *count = count.wrapping_add(1));
        }
    }
}

/// Takes the row of the event counter, which every change of rights takes: they are committed before this or after it.
pub(in crate::store) async fn others_wait(tx: &mut AnyConnection) -> Result<(), StoreError> {
    sqlx::query("UPDATE counters SET value = value WHERE name = 'event'").execute(tx).await?;
    Ok(())
}

/// Refuses a change of who lost rights since it was decided that they may ask for it.
pub(in crate::store) async fn check(tx: &mut AnyConnection, change: &Change) -> Result<(), StoreError> {
    let Some(Asker { token, rights, at }) = &change.asker else { return Ok(()) };
    others_wait(tx).await?;
    let now = holder(tx, *token).await?.and_then(|holder| holder.rights(*at));
    if now.is_some_and(|now| now.covers(rights)) { Ok(()) } else { Err(StoreError::RightsLost) }
}

/// Writes what a change says of rights.
pub(in crate::store) async fn apply(tx: &mut AnyConnection, change: &Change) -> Result<(), StoreError> {
    let Some(request) = &change.access else { return Ok(()) };
    others_wait(tx).await?;
    write(tx, &request.change, request.at).await?;
    counted(tx).await
}

async fn counted(tx: &mut AnyConnection) -> Result<(), StoreError> {
    sqlx::query("UPDATE counters SET value = value + 1 WHERE name = 'access'").execute(tx).await?;
    Ok(())
}

async fn holder(tx: &mut AnyConnection, id: TokenId) -> Result<Option<Holder>, StoreError> {
    let sql = format!("{} WHERE t.id = $1", holder_of());
    let row = sqlx::query(AssertSqlSafe(sql)).bind(id.to_string()).fetch_optional(&mut *tx).await?;
    let Some(row) = row else { return Ok(None) };
    let (token, user) = (token(&row)?, user(&row, TOKEN_COLUMNS)?);
    let sql = "SELECT tenant FROM memberships WHERE user_name = $1";
    let rows = sqlx::query(sql).bind(user.name.as_str().to_owned()).fetch_all(tx).await?;
    let tenants = rows.iter().map(|row| parse_tenant("membership", row.try_get(0)?));
    let tenants = tenants.collect::<Result<BTreeSet<_>, StoreError>>()?;
    Ok(Some(Holder { user, token, tenants }))
}

async fn write(tx: &mut AnyConnection, change: &AccessChange, at: Timestamp) -> Result<(), StoreError> {
    match change {
        AccessChange::TenantNew(tenant) => {
            if !tenant_ensure(tx, tenant, at).await? {
                return Err(StoreError::Taken(format!("tenant {tenant}")));
            }
            Ok(())
        }
        AccessChange::TenantQuota(tenant, quota) => {
            let query = sqlx::query("UPDATE tenants SET quota = $2 WHERE name = $1").bind(tenant.as_str().to_owned());
            let done = query.bind(quotas::to_text(quota)?).execute(tx).await?;
            changed(done.rows_affected(), || format!("tenant {tenant}"))
        }
        AccessChange::UserNew(user, password) => user_insert(tx, user, password.as_deref()).await,
        AccessChange::User(name, patch) => user_update(tx, name, patch, at).await,
        AccessChange::UserGone(name) => user_remove(tx, name, at).await,
        AccessChange::MemberNew(user, tenant) => member_insert(tx, user, tenant, at).await,
        AccessChange::MemberGone(user, tenant) => {
            let query = sqlx::query("DELETE FROM memberships WHERE user_name = $1 AND tenant = $2");
            let done = query.bind(user.as_str().to_owned()).bind(tenant.as_str().to_owned()).execute(tx).await?;
            changed(done.rows_affected(), || format!("member {user} of tenant {tenant}"))
        }
        AccessChange::TokenNew(token, hash) => token_insert(tx, token, *hash).await,
        AccessChange::SessionNew(token, hash, shown) => {
            if !is_of(tx, &token.user, shown).await? {
                return Err(StoreError::RightsLost);
            }
            token_insert(tx, token, *hash).await
        }
        AccessChange::TokenRevoked(id) => {
            let sql =
                "UPDATE tokens SET revoked_at = CASE WHEN revoked_at = '' THEN $2 ELSE revoked_at END WHERE id = $1";
            let done = sqlx::query(sql).bind(id.to_string()).bind(time(at)).execute(tx).await?;
            changed(done.rows_affected(), || format!("token {id}"))
        }
    }
}

/// Whether what was shown is this user's; an identity becomes theirs.
async fn is_of(tx: &mut AnyConnection, user: &UserName, shown: &Shown) -> Result<bool, StoreError> {
    let sql = "SELECT password, identity, email FROM users WHERE name = $1 AND disabled = 0 AND removed_at = ''";
    let row = sqlx::query(sql).bind(user.as_str().to_owned()).fetch_optional(&mut *tx).await?;
    let Some(row) = row else { return Ok(false) };
    let (password, known, address): (&str, &str, &str) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    match shown {
        Shown::Password(hash) => Ok(password == hash),
        Shown::Identity { identity, .. } if !known.is_empty() => Ok(known == identity),
        Shown::Identity { identity, email } => {
            let is_theirs = !address.is_empty() && email.as_ref().is_some_and(|email| email == address);
            // Somebody else may have got it since it was looked for.
            let sql = "SELECT 1 FROM users WHERE identity = $1";
            if !is_theirs || is_there(tx, sql, identity).await? {
                return Ok(false);
            }
            let query = sqlx::query("UPDATE users SET identity = $2 WHERE name = $1").bind(user.as_str().to_owned());
            query.bind(identity.clone()).execute(tx).await?;
            Ok(true)
        }
    }
}

fn changed(rows: u64, what: impl FnOnce() -> String) -> Result<(), StoreError> {
    if rows == 1 { Ok(()) } else { Err(StoreError::Missing(what())) }
}

async fn is_there(tx: &mut AnyConnection, sql: &'static str, name: &str) -> Result<bool, StoreError> {
    Ok(sqlx::query(sql).bind(name.to_owned()).fetch_optional(tx).await?.is_some())
}

async fn user_is_there(tx: &mut AnyConnection, name: &UserName) -> Result<(), StoreError> {
    let found = is_there(tx, "SELECT 1 FROM users WHERE name = $1 AND removed_at = ''", name.as_str()).await?;
    changed(u64::from(found), || format!("user {name}"))
}

async fn tenant_is_there(tx: &mut AnyConnection, name: &TenantId) -> Result<(), StoreError> {
    let found = is_there(tx, "SELECT 1 FROM tenants WHERE name = $1", name.as_str()).await?;
    changed(u64::from(found), || format!("tenant {name}"))
}

/// Makes a tenant; tells whether it was not there. The row of the event counter is taken already.
pub(in crate::store) async fn tenant_ensure(
    tx: &mut AnyConnection,
    tenant: &TenantId,
    at: Timestamp,
) -> Result<bool, StoreError> {
    if is_there(tx, "SELECT 1 FROM erasures WHERE tenant = $1", tenant.as_str()).await? {
        return Err(StoreError::TenantErased(tenant.clone()));
    }
    let sql = "INSERT INTO tenants (name, created_at) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING";
    let done = sqlx::query(sql).bind(tenant.as_str().to_owned()).bind(time(at)).execute(tx).await?;
    Ok(done.rows_affected() == 1)
}

/// Takes a tenant away that is being erased, its memberships, and the tokens that are good in it alone.
pub(in crate::store) async fn tenant_gone(
    tx: &mut AnyConnection,
    tenant: &TenantId,
    at: Timestamp,
) -> Result<(), StoreError> {
    let name = tenant.as_str();
    let sql = "UPDATE tokens SET revoked_at = $2 WHERE tenant = $1 AND revoked_at = ''";
    sqlx::query(sql).bind(name.to_owned()).bind(time(at)).execute(&mut *tx).await?;
    for sql in ["DELETE FROM memberships WHERE tenant = $1", "DELETE FROM tenants WHERE name = $1"] {
        sqlx::query(sql).bind(name.to_owned()).execute(&mut *tx).await?;
    }
    subscriptions::tenant_gone(tx, tenant).await?;
    deliveries::tenant_gone(tx, tenant).await?;
    counted(tx).await
}

async fn user_insert(tx: &mut AnyConnection, user: &User, password: Option<&str>) -> Result<(), StoreError> {
    if is_there(tx, "SELECT 1 FROM users WHERE name = $1", user.name.as_str()).await? {
        return Err(StoreError::Taken(format!("user {}", user.name)));
    }
    sqlx::query(
        "INSERT INTO users (name, email, role, password, disabled, created_at, removed_at) VALUES ($1, $2, $3, $4, $5, $6, '')",
    )
    .bind(user.name.as_str().to_owned())
    .bind(user.email.clone().unwrap_or_default())
    .bind(role_text(user.role))
    .bind(password.unwrap_or_default().to_owned())
    .bind(i64::from(user.disabled))
    .bind(time(user.created_at))
    .execute(tx)
    .await
    .map_err(email_taken)?;
    Ok(())
}

/// The only unique constraint beside the key, which is looked at before, is the address's.
fn email_taken(error: sqlx::Error) -> StoreError {
    match &error {
        sqlx::Error::Database(database) if database.is_unique_violation() => {
            StoreError::Taken("a user with this address".to_owned())
        }
        _ => error.into(),
    }
}

async fn user_update(
    tx: &mut AnyConnection,
    name: &UserName,
    patch: &UserPatch,
    at: Timestamp,
) -> Result<(), StoreError> {
    user_is_there(tx, name).await?;
    let sql = "SELECT 1 FROM users WHERE name = $1 AND email <> $2";
    let is_moved = match &patch.email {
        Some(email) => {
            let query = sqlx::query(sql).bind(name.as_str().to_owned()).bind(email.clone());
            query.fetch_optional(&mut *tx).await?.is_some()
        }
        None => false,
    };
    if patch.password.is_some() || is_moved {
        // Who came in with the old one, or as who has the old address. Only tokens of sessions have no other token as their maker.
        let sql = "UPDATE tokens SET revoked_at = $2 WHERE user_name = $1 AND created_by = $3 AND revoked_at = ''";
        let query = sqlx::query(sql).bind(name.as_str().to_owned()).bind(time(at));
        query.bind(format!("user:{name}")).execute(&mut *tx).await?;
    }
    if patch.password.is_some() || patch.disabled == Some(false) {
        sign_ins::forget(tx, name).await?;
    }
    let fields = [
        ("UPDATE users SET email = $2 WHERE name = $1", patch.email.clone()),
        // Who has the new address may be somebody else to the provider.
        ("UPDATE users SET identity = $2 WHERE name = $1", is_moved.then(String::new)),
        ("UPDATE users SET role = $2 WHERE name = $1", patch.role.map(|role| role_text(role).to_owned())),
        ("UPDATE users SET password = $2 WHERE name = $1", patch.password.clone()),
    ];
    for (sql, value) in fields {
        if let Some(value) = value {
            let query = sqlx::query(sql).bind(name.as_str().to_owned()).bind(value);
            query.execute(&mut *tx).await.map_err(email_taken)?;
        }
    }
    if let Some(disabled) = patch.disabled {
        let query = sqlx::query("UPDATE users SET disabled = $2 WHERE name = $1");
        query.bind(name.as_str().to_owned()).bind(i64::from(disabled)).execute(tx).await?;
    }
    Ok(())
}

async fn user_remove(tx: &mut AnyConnection, name: &UserName, at: Timestamp) -> Result<(), StoreError> {
    let sql = "UPDATE users SET removed_at = $2, email = '', identity = '', password = '', disabled = 1 WHERE name = $1 AND removed_at = ''";
    let done = sqlx::query(sql).bind(name.as_str().to_owned()).bind(time(at)).execute(&mut *tx).await?;
    changed(done.rows_affected(), || format!("user {name}"))?;
    let sql = "UPDATE tokens SET revoked_at = $2 WHERE user_name = $1 AND revoked_at = ''";
    sqlx::query(sql).bind(name.as_str().to_owned()).bind(time(at)).execute(&mut *tx).await?;
    let query = sqlx::query("DELETE FROM memberships WHERE user_name = $1").bind(name.as_str().to_owned());
    query.execute(&mut *tx).await?;
    sign_ins::forget(tx, name).await
}

async fn member_insert(
    tx: &mut AnyConnection,
    user: &UserName,
    tenant: &TenantId,
    at: Timestamp,
) -> Result<(), StoreError> {
    user_is_there(tx, user).await?;
    tenant_is_there(tx, tenant).await?;
    sqlx::query("INSERT INTO memberships (user_name, tenant, since) VALUES ($1, $2, $3) ON CONFLICT (user_name, tenant) DO NOTHING")
        .bind(user.as_str().to_owned())
        .bind(tenant.as_str().to_owned())
        .bind(time(at))
        .execute(tx)
        .await?;
    Ok(())
}

async fn token_insert(tx: &mut AnyConnection, token: &Token, hash: TokenHash) -> Result<(), StoreError> {
    user_is_there(tx, &token.user).await?;
    if let Some(tenant) = &token.tenant {
        tenant_is_there(tx, tenant).await?;
    }
    let when = |at: Option<Timestamp>| at.map(time).unwrap_or_default();
    sqlx::query(
        "INSERT INTO tokens (id, user_name, label, hash, scopes, tenant, created_by, created_at, expires_at, last_used_at, \
         revoked_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, '', '')",
    )
    .bind(token.id.to_string())
    .bind(token.user.as_str().to_owned())
    .bind(token.label.clone())
    .bind(hash.to_text())
    .bind(scopes_text(&token.scopes))
    .bind(token.tenant.as_ref().map(|tenant| tenant.as_str().to_owned()).unwrap_or_default())
    .bind(token.created_by.clone())
    .bind(time(token.created_at))
    .bind(when(token.expires_at))
    .execute(tx)
    .await?;
    Ok(())
}
