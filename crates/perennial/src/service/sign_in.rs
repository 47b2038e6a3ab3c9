//! Signing in, with a password or by a provider that vouches: a token of twelve hours, for browsers.
//!
//! A name that nobody has, a wrong password, a user without one and one who is locked out are answered alike, after as long: who guesses
//! learns nothing but that it was wrong.

use std::sync::LazyLock;
use std::time::Duration;

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
use crate::oidc::{Kept, OidcError, Provider, Vouched};
use crate::store::{AccessChange, AccessRequest, Attempt, Change, Shown, StoreError, StoredPassword};

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
/// How long somebody waits for their turn.
const PATIENCE: Duration = Duration::from_secs(5);
/// Requests to the provider at the same time: nobody has shown yet who asks for them.
static PROVIDER: Semaphore = Semaphore::const_new(16);
/// What the password of nobody is compared with; `None` compares as nothing does.
static NOBODY: LazyLock<Option<String>> = LazyLock::new(|| {
    let hasher = Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, super::users::HASHING.ok()?);
    let hash: PasswordHash = hasher.hash_password(b"nobody has this one").ok()?;
    Some(hash.to_string())
});

fn too_many() -> Error {
    Error::Unavailable { problem: "too many people sign in at this moment".to_owned() }
}

/// A turn to ask the provider.
async fn turn() -> Result<SemaphorePermit<'static>, Error> {
    let turn = tokio::time::timeout(PATIENCE, PROVIDER.acquire()).await.map_err(|_| too_many())?;
    turn.map_err(|error| Error::Internal { problem: format!("ask the OpenID provider: {error}") })
}

/// Whoever is not let in learns nothing of what passed between the provider and this server.
fn not_vouched(error: OidcError) -> Error {
    match error {
        OidcError::Unavailable(_) => {
            tracing::warn!(%error, "sign in with OpenID");
            let problem = "the OpenID provider cannot be asked now: the server's log says why";
            Error::Unavailable { problem: problem.to_owned() }
        }
        OidcError::Refused(_) => {
            tracing::warn!(%error, "sign in with OpenID");
            let problem = "the OpenID provider does not vouch for who comes with this code: begin again";
            Error::Unauthorized { problem: problem.to_owned() }
        }
    }
}

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
        let _waits = WAITING.try_acquire().map_err(|_| too_many())?;
        let closed = |error: AcquireError| Error::Internal { problem: format!("sign in: {error}") };
        let turn = AT_ONCE.acquire().await.map_err(closed)?;
        let stored = self.store.password_of(name).await?;
        let attempt = self.store.sign_in_tried(stored.as_ref().map(|_| name), self.now()).await?;
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
        // Another password, or none, since this one was compared.
        self.session(name, role, Shown::Password(hash), "a password").await?.ok_or_else(refused)
    }

    fn provider(&self) -> Result<&Provider, Error> {
        self.provider.as_deref().ok_or_else(|| Error::not_found("an OpenID provider ([oidc] names none)"))
    }

    /// Where to send a browser to sign in with the OpenID provider, and what it has to bring back.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the configuration names none; [`Error::Unavailable`] when it does not answer.
    pub async fn oidc_begin(&self) -> Result<(String, Kept), Error> {
        let provider = self.provider()?;
        let _turn = turn().await?;
        provider.begin().await.map_err(not_vouched)
    }

    /// Signs in whom the provider vouches for, with the code that came back with their browser; `None`: with none.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the configuration names none; [`Error::Unavailable`] when it, or the database, does not answer;
    /// [`Error::Unauthorized`] when it vouches for nobody, or for somebody who is no user.
    pub async fn oidc_finish(
        &self,
        code: Option<String>,
        issuer: Option<&str>,
        kept: Kept,
    ) -> Result<MadeToken, Error> {
        let provider = self.provider()?;
        let nobody = |why: &str| Err(not_vouched(OidcError::Refused(why.to_owned())));
        if issuer.is_some_and(|issuer| issuer != provider.issuer()) {
            return nobody("the answer is another provider's");
        }
        let Some(code) = code else { return nobody("it sent back no code: was it cancelled there?") };
        let turn = turn().await?;
        let Vouched { identity, email } = provider.finish(code, kept).await.map_err(not_vouched)?;
        drop(turn);
        let user = self.store.user_of_identity(&identity, email.as_deref()).await?.filter(|(user, _)| !user.disabled);
        let made = match user {
            Some((user, is_known)) => {
                let shown = Shown::Identity { identity: identity.clone(), email };
                let by = match is_known {
                    true => "the OpenID provider".to_owned(),
                    // Who that is may be an address, which no row that stays for ever may hold.
                    false => {
                        tracing::info!(user = %user.name, %identity, "who a user is to the OpenID provider");
                        "the OpenID provider, which knows them from now on".to_owned()
                    }
                };
                self.session(&user.name, user.role, shown, &by).await?
            }
            None => None,
        };
        made.ok_or_else(|| {
            // Not in the trail, which anybody with an account there could make longer and longer.
            tracing::warn!(%identity, "nobody here is who the OpenID provider vouches for");
            let problem = "nobody here is who the OpenID provider says; an administrator makes a user with the address that the \
                           provider has looked at";
            Error::Unauthorized { problem: problem.to_owned() }
        })
    }

    /// Makes a token for who signed in; `None` when what they showed is not theirs.
    async fn session(&self, name: &UserName, role: Role, shown: Shown, by: &str) -> Result<Option<MadeToken>, Error> {
        let now = self.now();
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
        let change = AccessChange::SessionNew(Box::new(token.clone()), token_hash(&secret), shown);
        let event = self.event_of(
            &format!("user:{name}"),
            "user.signed-in",
            format!("user {name} signed in by {by}: token {}", token.id),
        );
        let access = Some(AccessRequest { change, at: now });
        match self.store.commit(Change { access, events: vec![event], ..Change::default() }).await {
            Err(StoreError::RightsLost) => Ok(None),
            other => {
                other?;
                Ok(Some(MadeToken { token, secret }))
            }
        }
    }

    fn event_of(&self, actor: &str, kind: &str, message: String) -> NewEvent {
        self.line_of(actor, TenantId::default_tenant(), (kind, message))
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
