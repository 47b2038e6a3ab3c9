//! What opens a repository, and how that is changed.

use std::fmt;

use crate::backend::FileKind;
use crate::error::{Error, Result};
use crate::id::Id;
use crate::lock::{LockGuard, LockMode};
use crate::repository::{Repository, find_key, try_key, wrap_key};

/// Listings of keys after which a store does not do what it says.
const MOST_LISTINGS: usize = 8;

/// Opens a repository's keys. Never shown by `Debug`.
#[derive(Clone)]
pub struct Password(Vec<u8>);

impl Password {
    /// Takes a password as it is.
    #[must_use]
    pub fn new(password: impl Into<Vec<u8>>) -> Self {
        Self(password.into())
    }

    /// Draws a password of 256 bits, written in 64 hexadecimal digits.
    #[must_use]
    pub fn random() -> Self {
        Self(hex::encode(rand::random::<[u8; 32]>()).into_bytes())
    }

    /// The password itself, to be shown to its owner or handed to restic.
    #[must_use]
    pub fn reveal(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(…)")
    }
}

/// How much work each guess of a password costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyCost {
    /// A fraction of a second and 32 MiB.
    Interactive,
    /// Almost nothing; for tests.
    Test,
}

impl KeyCost {
    pub(crate) fn log_n(self) -> u8 {
        match self {
            Self::Interactive => 15,
            Self::Test => 4,
        }
    }
}

impl Repository {
    /// Makes a password open the repository, beside those that do already; one of them may be this one.
    ///
    /// # Errors
    /// [`Error::Locked`] while somebody prunes; store errors.
    pub fn add_password(&self, password: &Password, cost: KeyCost) -> Result<()> {
        let backend = &*self.inner.backend;
        let guard = LockGuard::acquire(&self.inner, LockMode::Shared)?;
        let config = backend.read(FileKind::Config, FileKind::CONFIG_ID)?;
        match find_key(backend, password, &config) {
            Ok(_) => return Ok(()),
            Err(Error::WrongPassword) => {}
            Err(error) => return Err(error),
        }
        let file = wrap_key(&self.inner.key, password, cost)?;
        guard.ensure()?;
        backend.write(FileKind::Key, Id::of(&file), &file)?;
        // Somebody will count on it alone: it has to open what is there, as read back.
        backend.drop_caches(FileKind::Key, Id::of(&file))?;
        find_key(backend, password, &config).map(drop)
    }

    /// Keeps a password from opening the repository; `kept` does so from then on. The master key stays the same: with a
    /// copy of the repository that was made before, the old password opens that copy.
    ///
    /// # Errors
    /// [`Error::WrongPassword`] when `kept` does not open the repository: nothing is removed then.
    /// [`Error::InvalidRequest`] when both are the same. [`Error::Locked`] while somebody prunes; store errors.
    pub fn remove_password(&self, password: &Password, kept: &Password) -> Result<()> {
        if password.reveal() == kept.reveal() {
            return Err(Error::InvalidRequest("the password to remove is the one to keep".into()));
        }
        let backend = &*self.inner.backend;
        let guard = LockGuard::acquire(&self.inner, LockMode::Shared)?;
        find_key(backend, kept, &backend.read(FileKind::Config, FileKind::CONFIG_ID)?)?;
        // Until two listings in turn have none: whoever takes a password away counts on that, and a listing may leave one out.
        let (mut clean, mut last) = (0, None);
        for _ in 0..MOST_LISTINGS {
            clean += 1;
            for info in backend.list(FileKind::Key)? {
                let opens = match try_key(backend, info.id, password) {
                    // A listing may be older than what was removed.
                    Err(Error::Backend(e)) if e.is_not_found() => false,
                    other => other?.is_some(),
                };
                if opens {
                    guard.ensure()?;
                    backend.remove(FileKind::Key, info.id)?;
                    (clean, last) = (0, Some(info.id));
                }
            }
            if clean == 2 {
                return Ok(());
            }
        }
        let how = "is still there, however often it is removed";
        Err(Error::Unsteady { kind: FileKind::Key, id: last.unwrap_or(FileKind::CONFIG_ID), how })
    }
}
