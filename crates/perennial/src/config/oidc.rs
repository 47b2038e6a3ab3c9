//! `[oidc]`: who vouches for people that sign in.

use std::path::PathBuf;

use reqwest::Url;
use serde::{Deserialize, Serialize};

use super::{ConfigError, value};

/// The OpenID provider whose people may sign in. Without an issuer there is none.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OidcSection {
    /// The provider, as it writes itself in what it signs, such as `https://accounts.example.org`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// What the provider calls this server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_id: Option<String>,
    /// The file whose first line is the secret that the provider gave; left out for a client without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_secret_file: Option<PathBuf>,
    /// How browsers reach this server, such as `https://pods.example.org`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_url: Option<String>,
}

const ISSUER_HINT: &str =
    "write https://HOST as the provider's discovery document has it; http only for this machine itself";
const PUBLIC_HINT: &str = "write https://HOST, without a path; http only for this machine itself";

impl OidcSection {
    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Checks what can be checked without the provider.
    ///
    /// # Errors
    /// [`ConfigError::Value`] naming the key.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if self.is_empty() {
            return Ok(());
        }
        web_address("oidc.issuer", self.issuer.as_deref(), ISSUER_HINT)?;
        let public = web_address("oidc.public_url", self.public_url.as_deref(), PUBLIC_HINT)?;
        if public.path() != "/" {
            return Err(value("oidc.public_url", format!("{public} has a path"), PUBLIC_HINT));
        }
        if self.client_id.as_deref().is_none_or(str::is_empty) {
            return Err(value("oidc.client_id", "is missing", "write what the provider calls this server"));
        }
        Ok(())
    }
}

/// Whether nobody between can read or change what is sent there.
pub(crate) fn is_private(url: &Url) -> bool {
    let is_here = matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
    url.scheme() == "https" || (url.scheme() == "http" && is_here)
}

fn web_address(key: &'static str, text: Option<&str>, hint: &'static str) -> Result<Url, ConfigError> {
    let text = text.ok_or_else(|| value(key, "is missing", hint))?;
    let url = Url::parse(text).map_err(|error| value(key, error.to_string(), hint))?;
    let is_plain = url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
    if is_private(&url) && is_plain && url.password().is_none() && url.host_str().is_some() {
        return Ok(url);
    }
    Err(value(key, format!("{text:?} cannot be used"), hint))
}
