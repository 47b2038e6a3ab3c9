//! Tenants, users, memberships and tokens.
//!
//! - this file: what is looked up;
//! - `write`: what one transaction changes, and that who asks for it may still do so;
//!
//! Every change of rights counts a number up, in its transaction. A server that remembers rights looks at that number, and is told
//! at once of changes that it commits itself ([`Store::access_changes`]).

mod write;

use std::collections::BTreeSet;

use jiff::Timestamp;
use perennial_core::access::{Holder, Role, Scope, Scopes, Token, User, UserName};
use perennial_core::id::TokenId;
use perennial_core::quota::Quota;
use perennial_core::spec::TenantId;
use sqlx::Row as _;
use sqlx::any::AnyRow;
use tokio::sync::watch;

use super::read::{Page, Select};
use super::rows::{corrupt, parse, parse_tenant, parse_time, time};
use super::{Store, StoreError, quotas};

pub use write::{AccessChange, AccessRequest, Asker, Shown, UserPatch};
pub(super) use write::{Announcement, apply, check, others_wait, tenant_ensure, tenant_gone};

/// SHA-256 of a token. Nobody gets in with it, and it is not shown all the same.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenHash(pub [u8; 32]);

impl TokenHash {
    fn to_text(self) -> String {
        hex::encode(self.0)
    }
}

impl std::fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TokenHash")
    }
}

/// A customer: owns pods and snapshots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant {
    /// Its name, which never changes.
    pub name: TenantId,
    /// What its living pods may take together.
    pub quota: Quota,
    /// Since when.
    pub created_at: Timestamp,
}

/// Which tokens a list holds.
#[derive(Debug, Clone, Default)]
pub struct TokenFilter {
    /// Only this user's; `None`: everybody's.
    pub user: Option<UserName>,
    /// Only those that are good in this tenant and no other.
    pub tenant: Option<TenantId>,
}

const USER: &str = "u.name, u.email, u.role, u.password, u.disabled, u.created_at";
const TOKEN: &str = "t.id, t.user_name, t.label, t.scopes, t.tenant, t.created_by, t.created_at, t.expires_at, t.last_used_at, \
     t.revoked_at";
/// Columns of a token before those of its user.
const TOKEN_COLUMNS: usize = 10;

fn holder_of() -> String {
    format!("SELECT {TOKEN}, {USER} FROM tokens t JOIN users u ON u.name = t.user_name AND u.removed_at = ''")
}

impl Store {
    /// The number of changes of rights that were committed, by any server.
    ///
    /// # Errors
    /// Why it could not be read.
    pub async fn access_epoch(&self) -> Result<i64, StoreError> {
        let row = self.row(Select::new("SELECT value FROM counters WHERE name = 'access'")).await?;
        row.map_or(Ok(0), |row| Ok(row.try_get(0)?))
    }

    /// Tells of every change of rights that this process may have committed.
    #[must_use]
    pub fn access_changes(&self) -> watch::Receiver<u64> {
        self.access.subscribe()
    }

    /// Reads everything that the rights of a token depend on; `None` for one that was never made, or whose user was removed.
    ///
    /// # Errors
    /// Why it could not be read.
    pub async fn token_holder(&self, hash: TokenHash) -> Result<Option<Holder>, StoreError> {
        let mut select = Select::new(holder_of());
        select.text(" WHERE t.hash = $", hash.to_text());
        let Some(row) = self.row(select).await? else { return Ok(None) };
        let (token, user) = (token(&row)?, user(&row, TOKEN_COLUMNS)?);
        let tenants = self.tenants_of(&user.name).await?;
        Ok(Some(Holder { user, token, tenants }))
    }

    /// Reads a token.
    ///
    /// # Errors
    /// Why it could not be read.
    pub async fn token_fetch(&self, id: TokenId) -> Result<Option<Token>, StoreError> {
        let mut select = Select::new(format!("SELECT {TOKEN} FROM tokens t"));
        select.text(" WHERE t.id = $", id.to_string());
        self.row(select).await?.as_ref().map(token).transpose()
    }

    /// Lists tokens, revoked and expired ones too, oldest first.
    ///
    /// # Errors
    /// Why they could not be read.
    pub async fn token_list(&self, filter: &TokenFilter, page: &Page) -> Result<Vec<Token>, StoreError> {
        let mut select = Select::new(format!("SELECT {TOKEN} FROM tokens t"));
        select.text(" WHERE t.id > $", page.after.clone().unwrap_or_default());
        if let Some(user) = &filter.user {
            select.text(" AND t.user_name = $", user.as_str());
        }
        if let Some(tenant) = &filter.tenant {
            select.text(" AND t.tenant = $", tenant.as_str());
        }
        select.raw(" ORDER BY t.id").limit(page.limit);
        self.rows(select).await?.iter().map(token).collect()
    }

    /// Remembers that a token was used.
    ///
    /// # Errors
    /// Why the database did not do it.
    pub async fn token_used(&self, id: TokenId, at: Timestamp) -> Result<(), StoreError> {
        sqlx::query("UPDATE tokens SET last_used_at = $2 WHERE id = $1 AND last_used_at < $2")
            .bind(id.to_string())
            .bind(time(at))
            .execute(&self.write)
            .await?;
        Ok(())
    }

    /// Whose an identity is at the provider: who has it, else who has the address and no identity yet; and whether they have it already.
    ///
    /// # Errors
    /// Why it could not be read.
    pub async fn user_of_identity(
        &self,
        identity: &str,
        email: Option<&str>,
    ) -> Result<Option<(User, bool)>, StoreError> {
        let those = || Select::new(format!("SELECT {USER} FROM users u WHERE u.removed_at = ''"));
        let mut select = those();
        select.text(" AND u.identity = $", identity);
        if let Some(row) = self.row(select).await? {
            return Ok(Some((user(&row, 0)?, true)));
        }
        // No address is what many have.
        let Some(email) = email.filter(|email| !email.is_empty()) else { return Ok(None) };
        let mut select = those();
        select.raw(" AND u.identity = ''").text(" AND u.email = $", email);
        let found = self.row(select).await?;
        found.map(|row| Ok((user(&row, 0)?, false))).transpose()
    }

    /// Reads a user; `None` for one that was removed, too.
    ///
    /// # Errors
    /// Why it could not be read.
    pub async fn user_fetch(&self, name: &UserName) -> Result<Option<User>, StoreError> {
        let mut select = Select::new(format!("SELECT {USER} FROM users u WHERE u.removed_at = ''"));
        select.text(" AND u.name = $", name.as_str());
        self.row(select).await?.as_ref().map(|row| user(row, 0)).transpose()
    }

    /// Lists users by name.
    ///
    /// # Errors
    /// Why they could not be read.
    pub async fn user_list(&self, page: &Page) -> Result<Vec<User>, StoreError> {
        let mut select = Select::new(format!("SELECT {USER} FROM users u WHERE u.removed_at = ''"));
        select.text(" AND u.name > $", page.after.clone().unwrap_or_default());
        select.raw(" ORDER BY u.name").limit(page.limit);
        self.rows(select).await?.iter().map(|row| user(row, 0)).collect()
    }

    /// The tenants that a user is a member of.
    ///
    /// # Errors
    /// Why they could not be read.
    pub async fn tenants_of(&self, name: &UserName) -> Result<BTreeSet<TenantId>, StoreError> {
        let mut select = Select::new("SELECT tenant FROM memberships");
        select.text(" WHERE user_name = $", name.as_str());
        self.rows(select).await?.iter().map(|row| parse_tenant("membership", row.try_get(0)?)).collect()
    }

    /// The members of a tenant by name.
    ///
    /// # Errors
    /// Why they could not be read.
    pub async fn members_of(&self, tenant: &TenantId) -> Result<Vec<UserName>, StoreError> {
        let mut select = Select::new("SELECT user_name FROM memberships");
        select.text(" WHERE tenant = $", tenant.as_str()).raw(" ORDER BY user_name");
        self.rows(select).await?.iter().map(|row| user_name("membership", row.try_get(0)?)).collect()
    }

    /// Reads a tenant; `None` for one that is erased, too.
    ///
    /// # Errors
    /// Why it could not be read.
    pub async fn tenant_fetch(&self, name: &TenantId) -> Result<Option<Tenant>, StoreError> {
        let mut select = Select::new("SELECT name, created_at, quota FROM tenants");
        select.text(" WHERE name = $", name.as_str());
        self.row(select).await?.as_ref().map(tenant).transpose()
    }

    /// Lists tenants by name, only those of `within` when there is such a set.
    ///
    /// # Errors
    /// Why they could not be read.
    pub async fn tenant_list(
        &self,
        within: Option<&BTreeSet<TenantId>>,
        page: &Page,
    ) -> Result<Vec<Tenant>, StoreError> {
        let mut select = Select::new("SELECT name, created_at, quota FROM tenants");
        select.text(" WHERE name > $", page.after.clone().unwrap_or_default());
        select.among(" AND name IN (", within).raw(" ORDER BY name").limit(page.limit);
        self.rows(select).await?.iter().map(tenant).collect()
    }
}

fn tenant(row: &AnyRow) -> Result<Tenant, StoreError> {
    let what = "tenant";
    Ok(Tenant {
        name: parse_tenant(what, row.try_get(0)?)?,
        created_at: parse_time(what, row.try_get(1)?)?,
        quota: quotas::from_text(row.try_get(2)?)?,
    })
}

fn user_name(what: &str, text: &str) -> Result<UserName, StoreError> {
    UserName::parse(text).map_err(|error| corrupt(what, error))
}

fn when(what: &str, text: &str) -> Result<Option<Timestamp>, StoreError> {
    if text.is_empty() { Ok(None) } else { parse_time(what, text).map(Some) }
}

fn user(row: &AnyRow, from: usize) -> Result<User, StoreError> {
    let what = "user";
    let email: String = row.try_get(from + 1)?;
    let role = match row.try_get::<&str, _>(from + 2)? {
        "admin" => Role::Admin,
        "user" => Role::User,
        other => return Err(corrupt(what, format!("role {other:?}"))),
    };
    Ok(User {
        name: user_name(what, row.try_get(from)?)?,
        email: Some(email).filter(|email| !email.is_empty()),
        role,
        has_password: !row.try_get::<&str, _>(from + 3)?.is_empty(),
        disabled: row.try_get::<i64, _>(from + 4)? != 0,
        created_at: parse_time(what, row.try_get(from + 5)?)?,
    })
}

const fn role_text(role: Role) -> &'static str {
    match role {
        Role::Admin => "admin",
        Role::User => "user",
    }
}

fn token(row: &AnyRow) -> Result<Token, StoreError> {
    let what = "token";
    let tenant: &str = row.try_get(4)?;
    let scopes = row.try_get::<&str, _>(3)?.split(',').filter(|name| !name.is_empty());
    let scope = |name: &str| {
        Scope::ALL
            .into_iter()
            .find(|scope| scope.as_str() == name)
            .ok_or_else(|| corrupt(what, format!("scope {name:?}")))
    };
    Ok(Token {
        id: parse(what, row.try_get(0)?)?,
        user: user_name(what, row.try_get(1)?)?,
        label: row.try_get(2)?,
        scopes: scopes.map(scope).collect::<Result<_, _>>()?,
        tenant: if tenant.is_empty() { None } else { Some(parse_tenant(what, tenant)?) },
        created_by: row.try_get(5)?,
        created_at: parse_time(what, row.try_get(6)?)?,
        expires_at: when(what, row.try_get(7)?)?,
        last_used_at: when(what, row.try_get(8)?)?,
        revoked_at: when(what, row.try_get(9)?)?,
    })
}

fn scopes_text(scopes: &Scopes) -> String {
    let names: Vec<&str> = scopes.iter().map(|scope| scope.as_str()).collect();
    names.join(",")
}
