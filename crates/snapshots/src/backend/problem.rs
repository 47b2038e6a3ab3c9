//! What an object store said, in words that hold no secret.

use std::error::Error as StdError;
use std::fmt;
use std::io;

use object_store::Error as StoreError;
use object_store::client::{HttpError, HttpErrorKind};

/// Longer messages are cut, in characters.
const LONGEST: usize = 600;

/// A text that is never shown by `Debug`, and is taken out of every error.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes a text as it is.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// An error of a store as an error of the system: its kind says what it means, and never that something is absent.
pub(super) fn describe(name: &str, error: &StoreError, secrets: &[Secret]) -> io::Error {
    let kind = match error {
        StoreError::PermissionDenied { .. } | StoreError::Unauthenticated { .. } => io::ErrorKind::PermissionDenied,
        StoreError::AlreadyExists { .. } => io::ErrorKind::AlreadyExists,
        StoreError::NotSupported { .. } | StoreError::NotImplemented { .. } => io::ErrorKind::Unsupported,
        _ => transport(error).or_else(|| refused(error)).unwrap_or(io::ErrorKind::Other),
    };
    io::Error::new(kind, format!("{name}: {}", text(error, secrets)))
}

fn causes<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    let mut next = Some(error);
    std::iter::from_fn(move || {
        let error = next?;
        next = error.source();
        Some(error)
    })
}

/// What went wrong on the way to the store, if the way was the trouble.
fn transport(error: &StoreError) -> Option<io::ErrorKind> {
    let http = causes(error).find_map(|cause| cause.downcast_ref::<HttpError>())?;
    Some(match http.kind() {
        HttpErrorKind::Timeout => io::ErrorKind::TimedOut,
        HttpErrorKind::Connect => io::ErrorKind::NotConnected,
        HttpErrorKind::Interrupted | HttpErrorKind::Request => io::ErrorKind::ConnectionAborted,
        _ => io::ErrorKind::Other,
    })
}

/// Whether the store does not let us, which the library keeps only in its words when it happens in a listing.
fn refused(error: &StoreError) -> Option<io::ErrorKind> {
    let text = error.to_string();
    let (_, status) = text.split_once("status code: ")?;
    matches!(status.get(..3), Some("401" | "403")).then_some(io::ErrorKind::PermissionDenied)
}

/// The store's answer on one line: of a document, its code and message; of a broken connection, its last cause.
fn text(error: &StoreError, secrets: &[Secret]) -> String {
    let mut text = error.to_string();
    if let Some(document) = text.find("<?xml").or_else(|| text.find("<Error")) {
        let said = ["Code", "Message"].iter().filter_map(|name| element(&text[document..], name)).collect::<Vec<_>>();
        let said = said.join(": ");
        text.truncate(document);
        text.push_str(&said);
    }
    if let Some(last) = causes(error).last().map(ToString::to_string)
        && !text.contains(&last)
        && !last.contains("<Error")
    {
        text = format!("{text}: {last}");
    }
    // An empty one would be found everywhere.
    for secret in secrets.iter().filter(|secret| !secret.0.is_empty()) {
        text = text.replace(secret.reveal(), "…");
    }
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    // An answer without words leaves the colon before them.
    let text = text.trim_end_matches([':', ' ']);
    match text.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

fn element<'a>(document: &'a str, name: &str) -> Option<&'a str> {
    let begin = document.find(&format!("<{name}>"))? + name.len() + 2;
    let end = document[begin..].find(&format!("</{name}>"))?;
    Some(document[begin..begin + end].trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generic(text: &str) -> StoreError {
        StoreError::Generic { store: "S3", source: text.into() }
    }

    #[test]
    fn an_error_names_code_and_message_and_no_secret() {
        let answer =
            "403: <?xml version=\"1.0\"?><Error><Code>Denied</Code><Message>not with hunter2</Message></Error>";
        let error = StoreError::PermissionDenied { path: "p".into(), source: answer.into() };
        let error = describe("s3:host/b", &error, &[Secret::new("hunter2"), Secret::new("")]);
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        let text = error.to_string();
        assert!(text.starts_with("s3:host/b: ") && text.ends_with("Denied: not with …"), "{text}");
    }

    #[test]
    fn nothing_a_store_calls_not_found_becomes_a_proof() {
        let error = StoreError::NotFound { path: "p".into(), source: "404".into() };
        assert_eq!(describe("s", &error, &[]).kind(), io::ErrorKind::Other);
        assert!(describe("s", &generic(&"x".repeat(5000)), &[]).to_string().len() < 700);
    }

    #[test]
    fn a_time_out_is_one() {
        let late = HttpError::new(HttpErrorKind::Timeout, io::Error::other("late"));
        let error = StoreError::Generic { store: "S3", source: Box::new(late) };
        assert_eq!(describe("s", &error, &[]).kind(), io::ErrorKind::TimedOut);
    }
}
