//! Which token is whose, and what it is good for now.
//!
//! What was read of a token is remembered, and its rights are worked out anew each time. It is forgotten when this process commits a
//! change of rights, before whoever asked for that is answered; and when the number of such changes in the database is another one,
//! which is looked at no less than once a second while anybody asks for anything. So a request costs no look into the database, and
//! a token that another server revoked is good here for about a second more. When the database does not answer, nothing remembered
//! counts; the administrator's token needs none.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::SignedDuration;
use perennial_core::Error;
use perennial_core::access::Holder;
use perennial_core::clock::Clock;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tokio::sync::watch;

use super::caller::{Caller, Credential};
use crate::store::{Store, StoreError, TokenHash};

/// How old what is remembered may be, as far as changes by other servers go.
const PAUSE: Duration = Duration::from_secs(1);
/// How long a database may take to say whether somebody still has the rights that a stream was begun with.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most tokens that are remembered; beyond that all are forgotten.
const MOST: usize = 10_000;
/// How exact the time of a token's last use is.
const ROUGHLY: SignedDuration = SignedDuration::from_mins(10);

/// Knows tokens; cheap to clone.
#[derive(Clone)]
pub struct Access(Arc<Inner>);

struct Inner {
    admin: TokenHash,
    store: Store,
    clock: Arc<dyn Clock>,
    pause: Duration,
    patience: Duration,
    /// Tells of changes of rights that this process commits.
    changes: watch::Receiver<u64>,
    /// Held by the one that looks at the number of changes in the database.
    looking: tokio::sync::Mutex<()>,
    memory: Mutex<Memory>,
}

#[derive(Default)]
struct Memory {
    known: HashMap<TokenHash, Holder>,
    /// What it is as of.
    as_of: AsOf,
    /// When the number in the database was asked for last.
    looked: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct AsOf {
    /// The changes of this process.
    own: u64,
    /// The changes in the database.
    epoch: i64,
}

impl Memory {
    fn move_to(&mut self, as_of: AsOf) {
        if self.as_of != as_of {
            self.known.clear();
            self.as_of = as_of;
        }
    }
}

/// Hashes a token as it is stored and compared.
#[must_use]
pub fn token_hash(token: &str) -> TokenHash {
    TokenHash(Sha256::digest(token.as_bytes()).into())
}

fn is_same(one: TokenHash, other: TokenHash) -> bool {
    one.0.ct_eq(&other.0).into()
}

impl Access {
    /// Knows the administrator's token, and those in the database.
    #[must_use]
    pub fn new(store: Store, clock: Arc<dyn Clock>, admin_token: &str) -> Self {
        Self::with_pause(store, clock, admin_token, PAUSE)
    }

    /// The same, looking for changes by other servers whenever it did not for so long.
    #[must_use]
    pub fn with_pause(store: Store, clock: Arc<dyn Clock>, admin_token: &str, pause: Duration) -> Self {
        Self::with_times(store, clock, admin_token, (pause, PATIENCE))
    }

    /// The same, with a database that may take so long to say whether somebody still has the rights that a stream was begun with.
    #[must_use]
    pub fn with_times(
        store: Store,
        clock: Arc<dyn Clock>,
        admin_token: &str,
        (pause, patience): (Duration, Duration),
    ) -> Self {
        let (changes, admin) = (store.access_changes(), token_hash(admin_token));
        let (looking, memory) = (tokio::sync::Mutex::default(), Mutex::default());
        Self(Arc::new(Inner { admin, store, clock, pause, patience, changes, looking, memory }))
    }

    /// Tells whose a token is; `None` for one that is good for nothing.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when that cannot be told.
    pub async fn caller(&self, token: &str) -> Result<Option<Caller>, Error> {
        let hash = token_hash(token);
        if is_same(hash, self.0.admin) {
            return Ok(Some(Caller::admin()));
        }
        Ok(self.of_token(hash).await?)
    }

    /// Asks again for who was let in before: their rights as they are now.
    ///
    /// # Errors
    /// [`Error::Unauthorized`] when they have none any more, [`Error::Unavailable`] when that cannot be told.
    pub async fn again(&self, caller: &Caller) -> Result<Caller, Error> {
        let Credential::Token { hash, .. } = caller.credential else { return Ok(caller.clone()) };
        let gone = || Error::Unauthorized { problem: "the token is not good any more".to_owned() };
        self.of_token(hash).await?.ok_or_else(gone)
    }

    /// Waits until the caller has less rights than they came with, or nobody can tell.
    pub async fn lost(&self, caller: &Caller) {
        let mut changes = self.0.changes.clone();
        changes.mark_unchanged();
        loop {
            match tokio::time::timeout(self.0.patience, self.again(caller)).await {
                Ok(Ok(now)) if now.rights.covers(&caller.rights) => {}
                Ok(Ok(_) | Err(_)) | Err(_) => return,
            }
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(self.0.pause.max(Duration::from_millis(1))) => {}
            }
        }
    }

    async fn of_token(&self, hash: TokenHash) -> Result<Option<Caller>, StoreError> {
        let Some(holder) = self.holder(hash).await? else { return Ok(None) };
        let now = self.0.clock.now();
        let Some(rights) = holder.rights(now) else { return Ok(None) };
        let last = holder.token.last_used_at;
        if last.is_none_or(|last| now.duration_since(last) >= ROUGHLY) {
            self.used(hash, &holder, now).await;
        }
        let Holder { user, token, .. } = holder;
        Ok(Some(Caller {
            actor: format!("user:{} token:{}", user.name, token.id),
            user: Some(user.name),
            rights,
            credential: Credential::Token { id: token.id, hash },
        }))
    }

    /// Remembers that a token was used; that this fails keeps nobody out.
    async fn used(&self, hash: TokenHash, holder: &Holder, now: jiff::Timestamp) {
        if let Some(known) = self.memory().known.get_mut(&hash) {
            known.token.last_used_at = Some(now);
        }
        if let Err(error) = self.0.store.token_used(holder.token.id, now).await {
            tracing::debug!(token = %holder.token.id, %error, "remember that a token was used");
        }
    }

    async fn holder(&self, hash: TokenHash) -> Result<Option<Holder>, StoreError> {
        self.look().await?;
        let as_of = {
            let own = *self.0.changes.borrow();
            let mut memory = self.memory();
            let epoch = memory.as_of.epoch;
            memory.move_to(AsOf { own, epoch });
            if let Some((_, holder)) = memory.known.get_key_value(&hash).filter(|(known, _)| is_same(**known, hash)) {
                return Ok(Some(holder.clone()));
            }
            memory.as_of
        };
        let found = self.0.store.token_holder(hash).await?;
        let mut memory = self.memory();
        // What was read before somebody changed rights says nothing of the time after it.
        let is_current = memory.as_of == as_of && *self.0.changes.borrow() == as_of.own;
        if let Some(holder) = found.as_ref().filter(|_| is_current) {
            if memory.known.len() >= MOST {
                memory.known.clear();
            }
            memory.known.insert(hash, holder.clone());
        }
        Ok(found)
    }

    /// Looks for changes by other servers, when that was not done for a while.
    async fn look(&self) -> Result<(), StoreError> {
        let is_due = || self.memory().looked.is_none_or(|at| at.elapsed() >= self.0.pause);
        if !is_due() {
            return Ok(());
        }
        let _one = self.0.looking.lock().await;
        if !is_due() {
            return Ok(());
        }
        let begun = Instant::now();
        let epoch = self.0.store.access_epoch().await?;
        let mut memory = self.memory();
        let own = memory.as_of.own;
        memory.move_to(AsOf { own, epoch });
        memory.looked = Some(begun);
        Ok(())
    }

    fn memory(&self) -> std::sync::MutexGuard<'_, Memory> {
        self.0.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access").finish_non_exhaustive()
    }
}
