//! `[mail]` and `[[webhooks]]`: how people and programs are told.

use std::path::PathBuf;

use lettre::message::Mailbox;
use reqwest::Url;
use serde::{Deserialize, Serialize};

use super::{ConfigError, value};

/// `[mail]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MailSection {
    /// The server: `smtps://HOST`, `smtp://HOST?tls=required` for STARTTLS, or `smtp://HOST` without encryption.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// Who writes, such as `Perennial <noreply@example.org>`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The account at the server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The file whose first line is the account's password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// The directory with texts that replace those that are shipped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub templates: Option<PathBuf>,
}

impl MailSection {
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Checks what can be checked without the server.
    ///
    /// # Errors
    /// [`ConfigError::Value`] naming the key.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if self.is_empty() {
            return Ok(());
        }
        let server = self.server.as_deref().ok_or_else(|| value("mail.server", "is missing", SERVER_HINT))?;
        let url = Url::parse(server).map_err(|error| value("mail.server", error.to_string(), SERVER_HINT))?;
        if !matches!(url.scheme(), "smtp" | "smtps") || url.host_str().is_none() {
            return Err(value("mail.server", format!("{server:?} is no mail server"), SERVER_HINT));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(value("mail.server", "holds credentials", "write mail.user and mail.password_file"));
        }
        let from = self.from.as_deref().ok_or_else(|| value("mail.from", "is missing", FROM_HINT))?;
        let _: Mailbox =
            from.parse().map_err(|error| value("mail.from", format!("{from:?} is no address: {error}"), FROM_HINT))?;
        match (&self.user, &self.password_file) {
            (Some(_), None) => {
                Err(value("mail.password_file", "is missing", "write the file with the password of mail.user"))
            }
            (None, Some(_)) => Err(value("mail.user", "is missing", "write whose password mail.password_file holds")),
            (Some(_), Some(_)) if url.scheme() == "smtp" && url.query().is_none_or(|query| query != "tls=required") => {
                let hint = "write smtps://HOST, or smtp://HOST?tls=required";
                Err(value("mail.server", "would be sent a password without encryption", hint))
            }
            _ => Ok(()),
        }
    }
}

const SERVER_HINT: &str = "write smtps://HOST, or smtp://HOST?tls=required for STARTTLS";
const FROM_HINT: &str = "such as \"Perennial <noreply@example.org>\"";

/// One of `[[webhooks]]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebhookSection {
    /// What it is called in the list of deliveries.
    pub name: String,
    /// Where events are sent to.
    pub url: String,
    /// The file whose first line signs what is sent.
    pub secret_file: PathBuf,
    /// Kinds of events, such as `subscription.*`; left out: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<String>,
    /// Whether addresses of private networks and of this machine may be asked, and plain HTTP be spoken.
    #[serde(default)]
    pub allow_private: bool,
}

impl WebhookSection {
    /// Checks what can be checked without asking it.
    ///
    /// # Errors
    /// [`ConfigError::Value`] naming the key.
    pub(super) fn check(&self, others: &[Self]) -> Result<(), ConfigError> {
        let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if self.name.is_empty() || self.name.len() > 40 || !self.name.chars().all(good) {
            let hint = "use 1 to 40 lower-case letters, digits and hyphens";
            return Err(value("webhooks.name", format!("{:?} is not a name", self.name), hint));
        }
        if others.iter().filter(|other| other.name == self.name).count() > 1 {
            return Err(value("webhooks.name", format!("{:?} is there twice", self.name), "give each its own name"));
        }
        let hint = "write https://HOST/PATH; http only with allow_private = true";
        let url = Url::parse(&self.url).map_err(|error| value("webhooks.url", error.to_string(), hint))?;
        let is_good = url.scheme() == "https" || (url.scheme() == "http" && self.allow_private);
        if !is_good || url.host_str().is_none() || !url.username().is_empty() || url.password().is_some() {
            return Err(value("webhooks.url", format!("cannot be used for {}", self.name), hint));
        }
        Ok(())
    }
}
