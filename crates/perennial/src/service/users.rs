//! Users: who they are, and their passwords.
//!
//! Rights that do not end by themselves are given only by somebody whose own have no bounds: otherwise a token that expires, or is
//! good for some things only, could leave behind what is good for ever and for everything.

use argon2::password_hash::PasswordHasher as _;
use argon2::password_hash::phc::PasswordHash;
use argon2::{Algorithm, Argon2, Params, Version};
use perennial_core::Error;
use perennial_core::access::{Rights, Role, Scope, Token, User, UserName, parse_email};
use perennial_core::spec::TenantId;

use super::{App, Caller};
use crate::store::{AccessChange, AccessRequest, Change, Page, StoreError, UserPatch};

/// Shortest password, in characters.
const PASSWORD_MIN: usize = 12;
/// Longest password, in bytes: hashing takes the longer the more there are.
const PASSWORD_MAX: usize = 1024;

/// How passwords are hashed: Argon2id with 19 MiB, two passes and one lane, the first recommendation of the OWASP Password Storage
/// Cheat Sheet, and RFC 9106 for the algorithm. <https://cheatsheetseries.owasp.org/cheatsheets/Password_Storage_Cheat_Sheet.html>
pub(super) const HASHING: Result<Params, argon2::Error> = Params::new(19 * 1024, 2, 1, None);

/// A user that is to be made.
#[derive(Clone)]
pub struct NewUser {
    /// The name.
    pub name: UserName,
    /// The address; `None`: none.
    pub email: Option<String>,
    /// The role.
    pub role: Role,
    /// The password; `None`: none.
    pub password: Option<String>,
}

/// What is to change of a user; `None` stays as it is.
#[derive(Clone, Default)]
pub struct UserChange {
    /// The address; `Some(None)`: none.
    pub email: Option<Option<String>>,
    /// The role.
    pub role: Option<Role>,
    /// The password; `Some(None)`: none.
    pub password: Option<Option<String>>,
    /// Whether nothing of theirs is good for now.
    pub disabled: Option<bool>,
}

/// A user and where they are a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Person {
    /// Who.
    pub user: User,
    /// The tenants, by name.
    pub tenants: Vec<TenantId>,
}

/// Who asks, and as what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The name in events.
    pub actor: String,
    /// The user; `None` for the administrator's token.
    pub user: Option<User>,
    /// The token; `None` for the administrator's.
    pub token: Option<Token>,
    /// What they may do.
    pub rights: Rights,
}

impl App {
    /// Refuses whoever's own rights have bounds.
    pub(super) fn require_unbounded(&self, caller: &Caller, what: &str) -> Result<(), Error> {
        if caller.rights.is_unbounded() {
            return Ok(());
        }
        let scopes = Scope::ALL.map(Scope::as_str).join(", ");
        let problem = format!("{what} takes a token that does not expire and has the scopes {scopes}, for all tenants");
        Err(Error::Forbidden { problem })
    }

    /// Commits a change of rights and its line in the trail.
    pub(super) async fn access_commit(
        &self,
        caller: &Caller,
        change: AccessChange,
        (tenant, kind, message): (TenantId, &str, String),
    ) -> Result<(), StoreError> {
        let event = self.line_of(&caller.actor, tenant, (kind, message));
        let at = event.at;
        let access = Some(AccessRequest { change, at });
        self.commit_for(caller, Change { access, events: vec![event], ..Change::default() }).await
    }

    /// Makes a user.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] naming the field; [`Error::Conflict`] for a name or an address that is taken; [`Error::Forbidden`]
    /// for everybody but administrators, and for rights that the caller cannot give.
    pub async fn user_create(&self, caller: &Caller, new: NewUser) -> Result<Person, Error> {
        self.require_admin(caller)?;
        if new.role == Role::Admin {
            self.require_unbounded(caller, "making an administrator")?;
        }
        if new.password.is_some() {
            self.require_unbounded(caller, "setting a password")?;
        }
        if new.email.is_some() {
            self.require_unbounded(caller, "setting an address")?;
        }
        let email = new.email.as_deref().map(parse_email).transpose()?;
        let password = match new.password {
            Some(password) => Some(hashed(password).await?),
            None => None,
        };
        let user = User {
            name: new.name,
            email,
            role: new.role,
            has_password: password.is_some(),
            disabled: false,
            created_at: self.now(),
        };
        let message = format!("user {} made, with the role {}", user.name, role_name(user.role));
        let change = AccessChange::UserNew(Box::new(user.clone()), password);
        self.access_commit(caller, change, (TenantId::default_tenant(), "user.created", message)).await?;
        Ok(Person { user, tenants: Vec::new() })
    }

    /// Changes what is known of a user.
    ///
    /// # Errors
    /// As for making one; [`Error::NotFound`] when there is none.
    pub async fn user_change(&self, caller: &Caller, name: &UserName, wanted: UserChange) -> Result<Person, Error> {
        self.require_admin(caller)?;
        self.person(name).await?;
        let gives = [
            ("changing an address", matches!(wanted.email, Some(Some(_)))),
            ("making an administrator", wanted.role == Some(Role::Admin)),
            ("setting a password", matches!(wanted.password, Some(Some(_)))),
            ("enabling a user", wanted.disabled == Some(false)),
        ];
        for (what, _) in gives.into_iter().filter(|(_, is_asked)| *is_asked) {
            self.require_unbounded(caller, what)?;
        }
        let email = match &wanted.email {
            Some(Some(email)) => Some(parse_email(email)?),
            Some(None) => Some(String::new()),
            None => None,
        };
        let password = match wanted.password {
            Some(Some(password)) => Some(hashed(password).await?),
            Some(None) => Some(String::new()),
            None => None,
        };
        let patch = UserPatch { email, role: wanted.role, password, disabled: wanted.disabled };
        let message = format!("user {name} changed: {}", told(&patch));
        let change = AccessChange::User(name.clone(), patch);
        self.access_commit(caller, change, (TenantId::default_tenant(), "user.changed", message)).await?;
        self.person(name).await
    }

    /// Removes a user, with their memberships and tokens. The name is not given to anybody else.
    ///
    /// # Errors
    /// [`Error::Forbidden`] for everybody but administrators; [`Error::NotFound`] when there is none.
    pub async fn user_remove(&self, caller: &Caller, name: &UserName) -> Result<(), Error> {
        self.require_admin(caller)?;
        let event = (TenantId::default_tenant(), "user.removed", format!("user {name} removed, with all tokens"));
        Ok(self.access_commit(caller, AccessChange::UserGone(name.clone()), event).await?)
    }

    /// Reads a user.
    ///
    /// # Errors
    /// [`Error::Forbidden`] for everybody but administrators; [`Error::NotFound`] when there is none.
    pub async fn user(&self, caller: &Caller, name: &UserName) -> Result<Person, Error> {
        self.require_admin(caller)?;
        self.person(name).await
    }

    async fn person(&self, name: &UserName) -> Result<Person, Error> {
        let user = self.store.user_fetch(name).await?.ok_or_else(|| Error::not_found(format!("user {name}")))?;
        self.with_tenants(user).await
    }

    async fn with_tenants(&self, user: User) -> Result<Person, Error> {
        let tenants = self.store.tenants_of(&user.name).await?.into_iter().collect();
        Ok(Person { user, tenants })
    }

    /// Lists users by name.
    ///
    /// # Errors
    /// [`Error::Forbidden`] for everybody but administrators.
    pub async fn users(&self, caller: &Caller, page: &Page) -> Result<Vec<Person>, Error> {
        self.require_admin(caller)?;
        let mut people = Vec::new();
        for user in self.store.user_list(page).await? {
            people.push(self.with_tenants(user).await?);
        }
        Ok(people)
    }

    /// Tells who asks.
    ///
    /// # Errors
    /// Why it could not be read.
    pub async fn identity(&self, caller: &Caller) -> Result<Identity, Error> {
        let user = match &caller.user {
            Some(name) => self.store.user_fetch(name).await?,
            None => None,
        };
        let token = match caller.token() {
            Some(id) => self.store.token_fetch(id).await?,
            None => None,
        };
        Ok(Identity { actor: caller.actor.clone(), user, token, rights: caller.rights.clone() })
    }
}

/// What changes, in words, and nothing of a password but that there is one.
fn told(patch: &UserPatch) -> String {
    let words = [
        patch.email.as_ref().map(|_| "address".to_owned()),
        patch.role.map(|role| format!("role {}", role_name(role))),
        patch.password.as_ref().map(|hash| if hash.is_empty() { "no password" } else { "password" }.to_owned()),
        patch.disabled.map(|disabled| if disabled { "disabled" } else { "enabled" }.to_owned()),
    ];
    let words: Vec<String> = words.into_iter().flatten().collect();
    if words.is_empty() { "nothing".to_owned() } else { words.join(", ") }
}

pub(super) const fn role_name(role: Role) -> &'static str {
    match role {
        Role::User => "user",
        Role::Admin => "admin",
    }
}

/// Hashes a password, on a thread of its own: it is meant to take long.
async fn hashed(password: String) -> Result<String, Error> {
    if password.chars().count() < PASSWORD_MIN || password.len() > PASSWORD_MAX {
        let problem = format!("has not {PASSWORD_MIN} characters to {PASSWORD_MAX} bytes");
        return Err(Error::invalid("password", problem, "a few words that nobody would guess are easy to remember"));
    }
    let failed = |problem: String| Error::Internal { problem: format!("hash a password: {problem}") };
    let hash = tokio::task::spawn_blocking(move || {
        let hasher = Argon2::new(Algorithm::Argon2id, Version::V0x13, HASHING?);
        let hash: PasswordHash =
            hasher.hash_password(password.as_bytes()).map_err(|_| argon2::Error::OutputTooShort)?;
        Ok::<_, argon2::Error>(hash.to_string())
    });
    hash.await.map_err(|error| failed(error.to_string()))?.map_err(|error| failed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use argon2::PasswordVerifier as _;

    use super::*;

    #[tokio::test]
    async fn passwords_are_hashed_with_argon2id_and_a_salt_of_their_own() {
        let password = "correct horse battery";
        let one = hashed(password.to_owned()).await.unwrap();
        let other = hashed(password.to_owned()).await.unwrap();
        assert!(one.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{one}");
        assert_ne!(one, other);
        let parsed = PasswordHash::new(&one).unwrap();
        assert!(Argon2::default().verify_password(password.as_bytes(), &parsed).is_ok());
        assert!(Argon2::default().verify_password(b"correct horse batterz", &parsed).is_err());
    }

    #[tokio::test]
    async fn passwords_that_are_none_are_refused() {
        for bad in ["", "short", &"x".repeat(1025)] {
            let refused = hashed(bad.to_owned()).await;
            assert!(matches!(refused, Err(Error::InvalidInput { field, .. }) if field == "password"), "{bad}");
        }
    }
}
