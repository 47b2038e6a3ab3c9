//! Signing in with a password: a token of twelve hours, for browsers.
//!
//! A name that nobody has, a wrong password, a user without one and one who is locked out are answered alike, after as long: who guesses
//! learns nothing but that it was wrong.

use std::sync::LazyLock;

use argon2::password_hash::PasswordVerifier as _;
use argon2::password_hash::phc::PasswordHash;
use argon2::{Argon2, PasswordHasher as _};
use jiff::SignedDuration;
use perennial_core::Error;
use perennial_core::access::{Role, Scope, Scopes, Token, UserName};
use perennial_core::id::TokenId;
use perennial_core::operation::NewEvent;
use perennial_core::spec::TenantId;
use tokio::sync::{AcquireError, Semaphore, SemaphorePermit};

use super::tokens::{MadeToken, new_secret};
use super::{App, token_hash};
use crate::store::{AccessChange, AccessRequest, Attempt, Change, StoreError, StoredPassword};

/// How long a session lasts.
const LASTS: SignedDuration = SignedDuration::from_hours(12);
/// Who was not let in: whoever it was.
const ANYBODY: &str = "anybody";
/// The event that tells of it.
const REFUSED: &str = "user.sign-in-refused";
/// What its token is called.
const LABEL: &str = "signed in";
/// People who are let in at the same time: each takes 19 MiB, a processor, and the database's writer.
static AT_ONCE: Semaphore = Semaphore::const_new(2);
/// Beyond so many that wait for that nobody is asked to wait.
static WAITING: Semaphore = Semaphore::const_new(32);
/// What the password of nobody is compared with; `None` compares as nothing does.
static NOBODY: LazyLock<Option<String>> = LazyLock::new(|| {
    let hasher = Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, super::users::HASHING.ok()?);
    let hash: PasswordHash = hasher.hash_password(b"nobody has this one").ok()?;
    Some(hash.to_string())
});

fn refused() -> Error {
    let problem = "user and password do not fit, or there were too many tries: wait a few minutes after some in a row";
    Error::Unauthorized { problem: problem.to_owned() }
}

impl App {
    /// Signs a user in.
    ///
    /// # Errors
    /// [`Error::Unauthorized`] for whatever does not fit; [`Error::Unavailable`] when the database does not answer.
    pub async fn sign_in(&self, name: &UserName, password: String) -> Result<MadeToken, Error> {
        let too_many = |_| Error::Unavailable { problem: "too many people sign in at this moment".to_owned() };
        let _waits = WAITING.try_acquire().map_err(too_many)?;
        let closed = |error: AcquireError| Error::Internal { problem: format!("sign in: {error}") };
        let turn = AT_ONCE.acquire().await.map_err(closed)?;
        let stored = self.store.password_of(name).await?;
        let now = self.now();
        let attempt = self.store.sign_in_tried(stored.as_ref().map(|_| name), now).await?;
        let hash = stored.as_ref().map(|stored| stored.hash.clone()).or_else(|| NOBODY.clone());
        let (fits, _turn) = compared(password, hash, turn).await?;
        let StoredPassword { hash, role } = match (attempt, stored, fits) {
            (Attempt::Counted, Some(stored), true) => stored,
            (Attempt::Counted, Some(_), false) => {
                self.tell_refused(name);
                return Err(refused());
            }
            _ => return Err(refused()),
        };
        self.store.sign_in_done(name).await?;
        let secret = new_secret();
        let (millis, random) = self.id_parts();
        let token = Token {
            id: TokenId::from_parts(millis, random),
            user: name.clone(),
            label: LABEL.to_owned(),
            scopes: scopes(role),
            tenant: None,
            created_by: format!("user:{name}"),
            created_at: now,
            expires_at: now.checked_add(LASTS).ok(),
            last_used_at: None,
            revoked_at: None,
        };
        let change = AccessChange::SessionNew(Box::new(token.clone()), token_hash(&secret), hash);
        let event = self.event_of(
            &format!("user:{name}"),
            "user.signed-in",
            format!("user {name} signed in with token {}", token.id),
        );
        let access = Some(AccessRequest { change, at: now });
        match self.store.commit(Change { access, events: vec![event], ..Change::default() }).await {
            // Another password, or none, since this one was compared.
            Err(StoreError::RightsLost) => Err(refused()),
            other => {
                other?;
                Ok(MadeToken { token, secret })
            }
        }
    }

    fn event_of(&self, actor: &str, kind: &str, message: String) -> NewEvent {
        NewEvent {
            at: self.now(),
            actor: actor.to_owned(),
            tenant: TenantId::default_tenant(),
            pod: None,
            operation: None,
            kind: kind.to_owned(),
            message,
        }
    }

    /// Tells the trail; nobody waits for it, or the time would tell which names there are.
    fn tell_refused(&self, name: &UserName) {
        let event =
            self.event_of(ANYBODY, REFUSED, format!("somebody with a wrong password was not let in as user {name}"));
        let store = self.store.clone();
        tokio::spawn(async move {
            if let Err(error) = store.commit(Change { events: vec![event], ..Change::default() }).await {
                tracing::warn!(%error, "tell that somebody was not let in");
            }
        });
    }
}

/// All that somebody may do.
fn scopes(role: Role) -> Scopes {
    match role {
        Role::User => Scopes::from([Scope::Read, Scope::Operate]),
        Role::Admin => Scopes::from(Scope::ALL),
    }
}

/// Compares a password with a hash, on a thread of its own: it is meant to take long. The turn ends with that, also when whoever asked
/// hangs up meanwhile.
async fn compared(
    password: String,
    hash: Option<String>,
    turn: SemaphorePermit<'static>,
) -> Result<(bool, SemaphorePermit<'static>), Error> {
    let comparing = tokio::task::spawn_blocking(move || {
        let fits = || {
            let hash = hash?;
            let hash = PasswordHash::new(&hash).ok()?;
            Argon2::default().verify_password(password.as_bytes(), &hash).ok()
        };
        (fits().is_some(), turn)
    });
    comparing.await.map_err(|error| Error::Internal { problem: format!("compare a password: {error}") })
}
