//! The installation key: wraps the passwords of repositories.
//!
//! AES-256-GCM with a random nonce; the tenant's name is authenticated with it, so that one tenant's file is of no use
//! in the place of another's. Form: `perennial-key-v1 FINGERPRINT BASE64(nonce, ciphertext, tag)`.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use perennial_core::spec::TenantId;
use perennial_snapshots::Password;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use sha2::{Digest as _, Sha256};

/// What a wrapped key begins with. No password that is drawn here does.
const FORM: &str = "perennial-key-v1";
/// Bytes of an installation key.
const LEN: usize = 32;

/// A password, and which key its file was wrapped with.
#[derive(Debug)]
pub struct Unwrapped {
    /// The password.
    pub password: Password,
    /// The fingerprint; `None` when it was not wrapped.
    pub wrapped_with: Option<String>,
}

/// Wraps and unwraps passwords. Never shown by `Debug`.
pub struct InstallationKey {
    key: LessSafeKey,
    fingerprint: String,
}

impl fmt::Debug for InstallationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InstallationKey({})", self.fingerprint)
    }
}

impl InstallationKey {
    /// Reads a key: 32 bytes in 64 hexadecimal digits, or in base64. `None` when it is something else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let bytes = hex::decode(text).or_else(|_| STANDARD.decode(text)).ok().filter(|bytes| bytes.len() == LEN)?;
        let mut hash = Sha256::new();
        hash.update(b"perennial installation key\n");
        hash.update(&bytes);
        let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &bytes).ok()?);
        // The key has 256 bits of randomness, so that nobody finds it from its hash.
        Some(Self { key, fingerprint: hex::encode(&hash.finalize()[..8]) })
    }

    /// Tells keys apart, and says nothing of the key itself.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// A password in wrapped form, which was proven to unwrap again; `None` when it does not.
    pub(super) fn wrap(&self, password: &Password, tenant: &TenantId) -> Option<String> {
        // Random nonces of 96 bits are safe for far more than the number of passwords that are ever wrapped.
        let nonce: [u8; NONCE_LEN] = rand::random();
        let mut sealed = password.reveal().to_vec();
        let bound = Aad::from(bound_to(tenant));
        self.key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), bound, &mut sealed).ok()?;
        let text = format!("{FORM} {} {}", self.fingerprint, STANDARD.encode([nonce.as_slice(), &sealed].concat()));
        self.unwrap(&text, tenant).filter(|again| again.reveal() == password.reveal()).map(|_| text)
    }

    /// The password in a wrapped form; `None` when it is damaged, or of another tenant or key.
    pub(super) fn unwrap(&self, text: &str, tenant: &TenantId) -> Option<Password> {
        let mut bytes = STANDARD.decode(text.rsplit(' ').next()?).ok()?;
        let (nonce, sealed) = bytes.split_at_mut_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let plain = self.key.open_in_place(nonce, Aad::from(bound_to(tenant)), sealed).ok()?;
        Some(Password::new(&*plain))
    }
}

fn bound_to(tenant: &TenantId) -> String {
    format!("{FORM}:{tenant}")
}

/// The fingerprint of the key that a text is wrapped with; `None` when it is not wrapped.
pub(super) fn wrapped_with(text: &str) -> Option<&str> {
    text.strip_prefix(FORM)?.strip_prefix(' ')?.split(' ').next()
}
