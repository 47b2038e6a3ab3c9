//! Users, their tokens, and the rights that follow from them (law 10).
//!
//! Rights are worked out anew from what is stored whenever somebody asks for something: nothing that was decided once is kept. What
//! a token makes never exceeds it, which is what [`Rights::covers`] and [`bounded`] are for.

use std::collections::BTreeSet;

use jiff::Timestamp;

use crate::Error;
use crate::id::TokenId;
use crate::spec::TenantId;

/// Longest name of a user, in characters.
const NAME_MAX: usize = 64;
/// Longest address, in bytes (RFC 5321, 4.5.3.1.3, without its brackets).
const EMAIL_MAX: usize = 254;
/// Longest name of a token, in characters.
const LABEL_MAX: usize = 100;

/// A user's name: it never changes and is never given to somebody else, because the audit trail names people by it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserName(String);

impl UserName {
    /// Checks and wraps a name; an address may be one.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for `name`.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let good = !text.is_empty()
            && text.len() <= NAME_MAX
            && text.chars().all(|c| edge(c) || "-_.+@".contains(c))
            && text.starts_with(edge)
            && text.ends_with(edge);
        if good {
            return Ok(Self(text.to_owned()));
        }
        Err(Error::invalid(
            "name",
            "is not the name of a user",
            format!("use 1 to {NAME_MAX} lower-case letters, digits and inner - _ . + @"),
        ))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for UserName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Reads an address, checked as far as that can be done without writing to it; in lower case.
///
/// # Errors
/// [`Error::InvalidInput`] for `email`.
pub fn parse_email(text: &str) -> Result<String, Error> {
    let parts = text.split_once('@');
    let good = text.len() <= EMAIL_MAX
        && !text.chars().any(|c| c.is_whitespace() || c.is_control())
        && parts.is_some_and(|(local, domain)| !local.is_empty() && !domain.is_empty() && !domain.contains('@'));
    if good {
        // Two that differ in nothing else are one to everybody who delivers mail.
        Ok(text.to_ascii_lowercase())
    } else {
        Err(Error::invalid("email", "is not an address", "write NAME@DOMAIN"))
    }
}

/// Checks what a token is called.
///
/// # Errors
/// [`Error::InvalidInput`] for `name`.
pub fn check_label(text: &str) -> Result<(), Error> {
    let good = text.chars().count() <= LABEL_MAX && !text.chars().any(char::is_control);
    if good {
        return Ok(());
    }
    let problem = format!("is longer than {LABEL_MAX} characters, or more than a line");
    Err(Error::invalid("name", problem, "say in a few words what the token is for"))
}

/// What a user is to the installation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Works in the tenants they are a member of.
    User,
    /// Works in all of them, and on the installation.
    Admin,
}

/// What a token may be used for. None includes another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// To look.
    Read,
    /// To change pods, snapshots and one's own tokens.
    Operate,
    /// To work on the installation; of use to administrators only.
    Admin,
}

impl Scope {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::Read, Self::Operate, Self::Admin];

    /// The name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Operate => "operate",
            Self::Admin => "admin",
        }
    }
}

/// Some scopes.
pub type Scopes = BTreeSet<Scope>;

/// Whose things somebody may know of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reach {
    /// Everybody's.
    All,
    /// These tenants'.
    Only(BTreeSet<TenantId>),
}

impl Reach {
    /// Whether things of this tenant exist for who has this reach.
    #[must_use]
    pub fn may_see(&self, tenant: &TenantId) -> bool {
        match self {
            Self::All => true,
            Self::Only(tenants) => tenants.contains(tenant),
        }
    }

    fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::All, _) => true,
            (Self::Only(_), Self::All) => false,
            (Self::Only(own), Self::Only(others)) => own.is_superset(others),
        }
    }
}

/// Somebody who may have tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Who.
    pub name: UserName,
    /// Where they can be written to; `None`: nobody said.
    pub email: Option<String>,
    /// What they are to the installation.
    pub role: Role,
    /// Whether a password is stored, as a hash that is never read into this.
    pub has_password: bool,
    /// Whether nothing of theirs is good for now.
    pub disabled: bool,
    /// Since when.
    pub created_at: Timestamp,
}

/// A token, without its secret, which nobody keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// Which.
    pub id: TokenId,
    /// Whose.
    pub user: UserName,
    /// What it is for, in words; may be empty.
    pub label: String,
    /// What it may be used for.
    pub scopes: Scopes,
    /// The only tenant it is good in; `None`: all of its user's.
    pub tenant: Option<TenantId>,
    /// Who made it, as events say it.
    pub created_by: String,
    /// Since when.
    pub created_at: Timestamp,
    /// Until when; `None`: until it is revoked.
    pub expires_at: Option<Timestamp>,
    /// When it was used last, roughly; `None`: never.
    pub last_used_at: Option<Timestamp>,
    /// Since when it is good for nothing; `None`: it is not revoked.
    pub revoked_at: Option<Timestamp>,
}

/// Everything that a token's rights depend on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Whose token.
    pub user: User,
    /// The token.
    pub token: Token,
    /// The tenants the user is a member of.
    pub tenants: BTreeSet<TenantId>,
}

impl Holder {
    /// What the token is good for at this time; `None`: for nothing, and not even to know that it was.
    #[must_use]
    pub fn rights(&self, now: Timestamp) -> Option<Rights> {
        let Self { user, token, tenants } = self;
        let is_over = token.expires_at.is_some_and(|end| end <= now) || token.revoked_at.is_some();
        if user.disabled || is_over {
            return None;
        }
        let reach = match (user.role, &token.tenant) {
            (Role::Admin, None) => Reach::All,
            (Role::Admin, Some(only)) => Reach::Only(BTreeSet::from([only.clone()])),
            (Role::User, None) => Reach::Only(tenants.clone()),
            (Role::User, Some(only)) => Reach::Only(tenants.iter().filter(|tenant| *tenant == only).cloned().collect()),
        };
        let (role, ends) = (user.role, token.expires_at);
        Some(Rights { role, scopes: token.scopes.clone(), reach, tenant: token.tenant.clone(), ends })
    }
}

/// What somebody who asks may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rights {
    /// What they are to the installation.
    pub role: Role,
    /// What their credential may be used for.
    pub scopes: Scopes,
    /// Whose things exist for them.
    pub reach: Reach,
    /// The one tenant that their credential is confined to; `None`: it is not.
    pub tenant: Option<TenantId>,
    /// When their credential ends; `None`: not by itself.
    pub ends: Option<Timestamp>,
}

impl Rights {
    /// Everything, for ever.
    #[must_use]
    pub fn everything() -> Self {
        let scopes = BTreeSet::from(Scope::ALL);
        Self { role: Role::Admin, scopes, reach: Reach::All, tenant: None, ends: None }
    }

    /// Whether they extend to the installation itself.
    #[must_use]
    pub fn is_platform(&self) -> bool {
        self.role == Role::Admin && self.scopes.contains(&Scope::Admin) && self.reach == Reach::All
    }

    /// Whether they have no bounds: only these give rights that have none, such as a password.
    #[must_use]
    pub fn is_unbounded(&self) -> bool {
        self.covers(&Self::everything())
    }

    /// Whether they are at least the other ones.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        let lasts = match (self.ends, other.ends) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(own), Some(others)) => own >= others,
        };
        let is_free = self.tenant.is_none() || self.tenant == other.tenant;
        lasts
            && is_free
            && self.role >= other.role
            && self.scopes.is_superset(&other.scopes)
            && self.reach.covers(&other.reach)
    }
}

/// What somebody wants a new token to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// What it may be used for.
    pub scopes: Scopes,
    /// The only tenant it is good in; `None`: as its maker's.
    pub tenant: Option<TenantId>,
    /// Until when; `None`: as long as its maker's.
    pub expires_at: Option<Timestamp>,
}

/// Keeps a new token within the rights of who makes it; what was left out becomes what the maker has.
///
/// # Errors
/// [`Error::InvalidInput`] for what no token can be, [`Error::NotFound`] for a tenant that the maker cannot know of,
/// [`Error::Forbidden`] for what goes beyond the maker's.
pub fn bounded(maker: &Rights, wanted: Wanted, of: Role, now: Timestamp) -> Result<Wanted, Error> {
    let Wanted { scopes, tenant, expires_at } = wanted;
    if scopes.is_empty() {
        return Err(Error::invalid("scopes", "are missing", "name at least one of read, operate, admin"));
    }
    if let Some(beyond) = scopes.difference(&maker.scopes).next() {
        let problem = format!("scope {} is not one of the token that asks", beyond.as_str());
        return Err(Error::Forbidden { problem });
    }
    let tenant = match (tenant, &maker.tenant) {
        (Some(asked), _) if !maker.reach.may_see(&asked) => {
            return Err(Error::not_found(format!("tenant {asked}")));
        }
        (Some(asked), _) => Some(asked),
        (None, own) => own.clone(),
    };
    if scopes.contains(&Scope::Admin) && of != Role::Admin {
        return Err(Error::invalid("scopes", "admin is for administrators", "leave it out"));
    }
    if scopes.contains(&Scope::Admin) && tenant.is_some() {
        return Err(Error::invalid(
            "scopes",
            "admin is of the installation, and not of a tenant",
            "leave one of both out",
        ));
    }
    if expires_at.is_some_and(|end| end <= now) {
        return Err(Error::invalid("expiresAt", "is over", "name a time in the future"));
    }
    let expires_at = match (expires_at, maker.ends) {
        (Some(asked), Some(own)) if asked > own => {
            return Err(Error::Forbidden { problem: "a token cannot outlast the one that makes it".to_owned() });
        }
        (asked, own) => asked.or(own),
    };
    Ok(Wanted { scopes, tenant, expires_at })
}

#[cfg(test)]
mod tests;
