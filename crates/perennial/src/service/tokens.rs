//! Tokens: made, listed, revoked. Their secrets are in the answer that makes them and nowhere else.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use perennial_core::Error;
use perennial_core::access::{Role, Scope, Token, User, UserName, Wanted, bounded, check_label};
use perennial_core::id::TokenId;
use perennial_core::spec::TenantId;

use super::{App, Caller, token_hash};
use crate::store::{AccessChange, Page, StoreError, TokenFilter};

/// What every token begins with, so that a scanner that finds one knows what it is.
const PREFIX: &str = "prn_";
/// Bytes of randomness in a token: 256 bits.
const SECRET: usize = 32;

/// A token that is to be made.
#[derive(Debug, Clone)]
pub struct NewToken {
    /// Whose; `None`: of who asks.
    pub user: Option<UserName>,
    /// What it is for.
    pub label: String,
    /// What it is to be.
    pub wanted: Wanted,
}

/// A token that was made.
pub struct MadeToken {
    /// What is kept of it.
    pub token: Token,
    /// The whole of it; nobody can tell it again.
    pub secret: String,
}

impl App {
    /// Makes a token, which never exceeds the one that asks.
    ///
    /// # Errors
    /// As [`bounded`]; [`Error::NotFound`] for another user, unless an administrator asks.
    pub async fn token_create(&self, caller: &Caller, new: NewToken) -> Result<MadeToken, Error> {
        let NewToken { user, label, wanted } = new;
        check_label(&label)?;
        let owner = self.owner_of(caller, user).await?;
        let now = self.now();
        let Wanted { scopes, tenant, expires_at } = bounded(&caller.rights, wanted, owner.role, now)?;
        if let Some(tenant) = &tenant {
            self.good_in(&owner, tenant).await?;
        }
        let secret = new_secret();
        let (millis, random) = self.id_parts();
        let token = Token {
            id: TokenId::from_parts(millis, random),
            user: owner.name,
            label,
            scopes,
            tenant,
            created_by: caller.actor.clone(),
            created_at: now,
            expires_at,
            last_used_at: None,
            revoked_at: None,
        };
        let change = AccessChange::TokenNew(Box::new(token.clone()), token_hash(&secret));
        let event = (TenantId::default_tenant(), "token.created", made(&token));
        match self.access_commit(caller, change, event).await {
            Ok(()) => {}
            // Written or not: the row tells (law 5).
            Err(StoreError::OutcomeUnknown(_)) if matches!(self.store.token_fetch(token.id).await, Ok(Some(_))) => {}
            Err(other) => return Err(other.into()),
        }
        Ok(MadeToken { token, secret })
    }

    /// Lists tokens, oldest first: the caller's own; everybody's, or one user's, for administrators.
    ///
    /// # Errors
    /// [`Error::NotFound`] for another user, unless an administrator asks.
    pub async fn tokens(&self, caller: &Caller, user: Option<UserName>, page: &Page) -> Result<Vec<Token>, Error> {
        let is_platform = caller.rights.is_platform();
        let user = match (user, &caller.user) {
            (user, _) if is_platform => user,
            (None, Some(own)) => Some(own.clone()),
            (Some(asked), Some(own)) if asked == *own => Some(asked),
            (asked, _) => return Err(missing_user(asked.as_ref())),
        };
        let filter = TokenFilter { user, tenant: caller.rights.tenant.clone() };
        Ok(self.store.token_list(&filter, page).await?)
    }

    /// Revokes a token; one that is revoked stays so.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none that the caller may know of.
    pub async fn token_revoke(&self, caller: &Caller, id: TokenId) -> Result<Token, Error> {
        let missing = || Error::not_found(format!("token {id}"));
        let token = self.store.token_fetch(id).await?.filter(|token| is_own(caller, token)).ok_or_else(missing)?;
        let message = format!("token {id} of user {} revoked", token.user);
        let event = (TenantId::default_tenant(), "token.revoked", message);
        self.access_commit(caller, AccessChange::TokenRevoked(id), event).await?;
        self.store.token_fetch(id).await?.ok_or_else(missing)
    }

    /// Whose a new token is.
    async fn owner_of(&self, caller: &Caller, asked: Option<UserName>) -> Result<User, Error> {
        let is_own = caller.user.is_some() && (asked.is_none() || asked == caller.user);
        let name = match asked.or_else(|| caller.user.clone()) {
            Some(name) if is_own || caller.rights.is_platform() => name,
            Some(other) => return Err(missing_user(Some(&other))),
            None => {
                let hint = "the administrator's token is no user's: name one, or make one with perennial user create";
                return Err(Error::invalid("user", "is missing", hint));
            }
        };
        self.store.user_fetch(&name).await?.ok_or_else(|| missing_user(Some(&name)))
    }

    /// Refuses a token for a tenant in which it would be good for nothing.
    async fn good_in(&self, owner: &User, tenant: &TenantId) -> Result<(), Error> {
        if self.store.tenant_fetch(tenant).await?.is_none() {
            return Err(Error::not_found(format!("tenant {tenant}")));
        }
        if owner.role == Role::Admin || self.store.tenants_of(&owner.name).await?.contains(tenant) {
            return Ok(());
        }
        let problem = format!("user {} is no member of it", owner.name);
        Err(Error::invalid("tenant", problem, format!("perennial tenant add {tenant} {}", owner.name)))
    }
}

/// The secret of a new token.
pub(super) fn new_secret() -> String {
    format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(rand::random::<[u8; SECRET]>()))
}

fn missing_user(name: Option<&UserName>) -> Error {
    Error::not_found(name.map_or_else(|| "user".to_owned(), |name| format!("user {name}")))
}

/// Whether a token exists for who asks.
fn is_own(caller: &Caller, token: &Token) -> bool {
    let is_of_user = caller.user.as_ref() == Some(&token.user);
    let is_within = caller.rights.tenant.is_none() || caller.rights.tenant == token.tenant;
    caller.rights.is_platform() || (is_of_user && is_within)
}

fn made(token: &Token) -> String {
    let scopes: Vec<&str> = token.scopes.iter().copied().map(Scope::as_str).collect();
    let tenant = token.tenant.as_ref().map(|tenant| format!(" for tenant {tenant} only")).unwrap_or_default();
    let until = token.expires_at.map(|end: Timestamp| format!(", until {end}")).unwrap_or_default();
    format!("token {} made for user {}, to {}{tenant}{until}", token.id, token.user, scopes.join(", "))
}
