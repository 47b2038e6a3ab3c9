//! What opens a repository.

use std::fmt;

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
            Self::Test => 8,
        }
    }
}
