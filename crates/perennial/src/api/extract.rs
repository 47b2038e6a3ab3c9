//! Reading requests: bodies, paths, queries. Whatever is wrong is refused by name.

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection};
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use perennial_core::Error;
use serde::de::{DeserializeOwned, IgnoredAny};

use super::ApiState;
use super::auth::Caller;
use super::problem::ApiError;
use crate::library::PodPath;
use crate::service;
use crate::store::Page;

/// Items of a page when the request does not say.
const LIMIT_DEFAULT: u32 = 100;
/// Most items of a page.
const LIMIT_MAX: u32 = 1000;

/// A JSON body, its bytes, and who sent it; none at all is `{}`.
#[derive(Debug)]
pub struct Json<T> {
    /// What it says.
    pub value: T,
    /// What was sent, for the hash of an idempotent request.
    pub bytes: Bytes,
    /// Who sent it, with the rights they have now that it was read: a client may hold a body back for as long as it likes.
    pub caller: service::Caller,
}

impl<T: DeserializeOwned> FromRequest<ApiState> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &ApiState) -> Result<Self, ApiError> {
        let json = is_json(request.headers());
        let (mut parts, body) = request.into_parts();
        let Caller(caller) = Caller::from_request_parts(&mut parts, state).await?;
        let bytes = Bytes::from_request(Request::from_parts(parts, body), state).await;
        let caller = state.app.access.again(&caller).await?;
        let bytes = bytes.map_err(|e| unreadable(&e))?;
        if !bytes.is_empty() && !json {
            let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
            return Err(ApiError::new(status, "not-json", "the body is not declared as JSON")
                .hint("send Content-Type: application/json"));
        }
        // A body that may be left out may also be null.
        let text: &[u8] = if bytes.is_empty() || bytes == "null" { b"{}" } else { &bytes };
        Ok(Self { value: parse(text)?, bytes, caller })
    }
}

impl<T> Json<T> {
    /// Refuses a body that was left out or is no object, where the request says nothing without one. A list would be taken for the
    /// fields in their order.
    ///
    /// # Errors
    /// 400, saying so.
    pub fn is_there(&self) -> Result<(), ApiError> {
        if self.bytes.trim_ascii_start().starts_with(b"{") {
            return Ok(());
        }
        Err(ApiError::new(StatusCode::BAD_REQUEST, "missing-body", "the body is no JSON object")
            .hint("send a JSON object of what is to change"))
    }
}

pub(super) fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()) else { return false };
    let essence = value.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json")
}

pub(super) fn unreadable(rejection: &BytesRejection) -> ApiError {
    let status = rejection.status();
    if status == StatusCode::PAYLOAD_TOO_LARGE {
        return ApiError::new(status, "body-too-large", "the body is too large").hint("send at most 1 MiB");
    }
    ApiError::new(StatusCode::BAD_REQUEST, "unreadable-body", "the body could not be read")
}

/// Reads JSON and names the field of whatever is wrong.
fn parse<T: DeserializeOwned>(text: &[u8]) -> Result<T, ApiError> {
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        // A word where a list of names was expected is a fault of grammar to the reader, and of a value to people.
        let is_value = inner.is_data() || (inner.is_syntax() && serde_json::from_slice::<IgnoredAny>(text).is_ok());
        if is_value { field_error(&path, &inner.to_string()) } else { malformed(&inner) }
    })?;
    deserializer.end().map_err(|error| malformed(&error))?;
    Ok(value)
}

fn malformed(error: &serde_json::Error) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, "malformed-json", format!("the body is not JSON: {error}"))
        .hint("send one JSON object")
}

/// Turns serde's message into field, problem and hint.
fn field_error(path: &str, message: &str) -> ApiError {
    let message = message.split(" at line ").next().unwrap_or(message);
    let below = |name: &str| if path == "." { name.to_owned() } else { format!("{path}.{name}") };
    let quoted = |prefix: &str| message.strip_prefix(prefix)?.split('`').next().map(ToOwned::to_owned);
    if let Some(name) = quoted("unknown field `") {
        let known = message.split_once(", ").map(|(_, known)| known.replace('`', "")).unwrap_or_default();
        // The path already ends with the field that was not expected.
        let field = if path == name || path.ends_with(&format!(".{name}")) { path.to_owned() } else { below(&name) };
        let hint = fixed_field_hint(&name).map_or(known, ToOwned::to_owned);
        return Error::invalid(field, "is not a known field", hint).into();
    }
    if let Some(name) = quoted("missing field `") {
        let hint = if name == "name" { "write a name such as \"dev\"" } else { value_hint(&name) };
        return Error::invalid(below(&name), "is missing", hint).into();
    }
    let field = if path == "." { "body" } else { path };
    if let Some((name, known)) =
        message.strip_prefix("unknown variant `").and_then(|rest| rest.split_once("`, expected "))
    {
        let known = known.trim_start_matches("one of ").replace('`', "");
        return Error::invalid(field, format!("{name:?} is not known"), format!("use {known}")).into();
    }
    let last = field.rsplit('.').next().unwrap_or(field);
    let hint = if field.starts_with("env.") { value_hint("env") } else { value_hint(last) };
    Error::invalid(field, in_plain_words(message), hint).into()
}

/// Says in the words of JSON what was expected: a caller knows nothing of this program's types.
fn in_plain_words(message: &str) -> String {
    if message == "expected value" || message.starts_with("invalid digit") {
        return "is of another kind".to_owned();
    }
    let Some((found, expected)) = message.rsplit_once(", expected ") else { return message.to_owned() };
    let expected = match expected {
        "f64" => "a number",
        "u16" | "u32" | "u64" => "a whole number",
        "a sequence" => "a list",
        "a map" => "an object",
        "a string" => "a text",
        other if other.starts_with("struct ") => "an object",
        other => other,
    };
    format!("{found}, expected {expected}")
}

/// What to write into a field that held something of another kind.
fn value_hint(field: &str) -> &'static str {
    match field {
        "limit" => "use a number from 1 to 1000",
        "path" => "write a path as the pod sees it, such as /home/me",
        "changes" => "use true or false",
        "memory" | "memorySwap" | "memoryReservation" | "disk" | "size" => {
            "write bytes as a number, or a size such as \"512Mi\""
        }
        "cpus" => "write a number such as 1.5",
        "pids" => "write a whole number such as 512",
        "stopTimeout" => "write whole seconds, such as 10",
        "container" | "host" => "write a port number from 1 to 65535",
        "env" => "write an object of names and texts, such as {\"A\": \"1\"}",
        "privilegeEscalation" => "use denied or allowed",
        "onStop" => "use release or pause",
        "backend" => "use overlay or docker",
        "command" | "entrypoint" => "write a list of words, such as [\"sleep\", \"infinity\"]",
        "volumes" => "write null for everything, or a list of {\"name\", \"mountPath\"}",
        "acceptLoss" => "write a list of paths",
        "body" => "send a JSON object",
        _ => "",
    }
}

/// Fields that exist when a pod is made and cannot be changed later.
fn fixed_field_hint(name: &str) -> Option<&'static str> {
    match name {
        "image" | "volumes" | "backend" => Some("it is fixed while the pod has data: create another pod"),
        "name" | "tenant" => Some("it is fixed when the pod is made"),
        _ => None,
    }
}

/// The id in the path; one that cannot be an id is as good as unknown.
#[derive(Debug, Clone, Copy)]
pub struct Id<T>(pub T);

impl<T: std::str::FromStr, S: Send + Sync> FromRequestParts<S> for Id<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let missing = |what: &str| ApiError::from(Error::not_found(what));
        let path: Result<Path<String>, PathRejection> = Path::from_request_parts(parts, state).await;
        let Path(text) = path.map_err(|_| missing("that"))?;
        let shown: String = text.chars().take(40).collect();
        text.parse().map(Self).map_err(|_| missing(&format!("{shown:?}")))
    }
}

/// A query string; unknown parameters are refused by name.
#[derive(Debug)]
pub struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match axum::extract::Query::<T>::from_request_parts(parts, state).await {
            Ok(axum::extract::Query(value)) => Ok(Self(value)),
            Err(rejection) => {
                let text = rejection.body_text();
                let text = text.strip_prefix("Failed to deserialize query string: ").unwrap_or(&text);
                let (path, message) = text.split_once(": ").unwrap_or((".", text));
                Err(if text.starts_with("unknown field") || text.starts_with("missing field") {
                    field_error(".", text)
                } else {
                    field_error(path, message)
                })
            }
        }
    }
}

/// A path of a pod in the query: bytes, percent-encoded as in every URL, because names of files are bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawPath(pub PodPath);

impl<'de> serde::Deserialize<'de> for RawPath {
    /// Reads the hexadecimal form that [`PathQuery`] makes of it.
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error as _;
        let bytes = hex::decode(String::deserialize(deserializer)?).map_err(D::Error::custom)?;
        PodPath::parse(&bytes).map(Self).map_err(|error| match error {
            Error::InvalidInput { problem, .. } => D::Error::custom(problem),
            other => D::Error::custom(other),
        })
    }
}

/// A query string with a [`RawPath`] in `path`: the usual decoding would replace bytes that are not UTF-8.
#[derive(Debug)]
pub struct PathQuery<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for PathQuery<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let query = parts.uri.query().unwrap_or_default();
        let rewritten = query.split('&').map(|pair| match pair.strip_prefix("path=") {
            Some(value) => {
                let spaced = value.replace('+', " ");
                format!("path={}", hex::encode(percent_encoding::percent_decode_str(&spaced).collect::<Vec<u8>>()))
            }
            None => pair.to_owned(),
        });
        let rewritten = rewritten.collect::<Vec<_>>().join("&");
        let uri = axum::http::Uri::builder().path_and_query(format!("/?{rewritten}")).build();
        parts.uri =
            uri.map_err(|_| ApiError::new(StatusCode::BAD_REQUEST, "unreadable-query", "the query is no query"))?;
        Query::from_request_parts(parts, state).await.map(|Query(value)| Self(value))
    }
}

/// Checks `limit` and takes one item more than asked, so that it is known whether there is a next page.
pub fn page(after: Option<String>, limit: Option<u32>) -> Result<(Page, usize), ApiError> {
    let limit = limit.unwrap_or(LIMIT_DEFAULT);
    if !(1..=LIMIT_MAX).contains(&limit) {
        return Err(Error::invalid("limit", format!("{limit} is out of range"), format!("use 1 to {LIMIT_MAX}")).into());
    }
    let wanted = usize::try_from(limit).unwrap_or(usize::MAX);
    Ok((Page { after, limit: limit + 1 }, wanted))
}

/// Checks that a cursor is an id of this kind.
pub fn cursor<T: std::str::FromStr>(after: Option<String>) -> Result<Option<String>, ApiError> {
    match &after {
        Some(text) if text.parse::<T>().is_err() => {
            Err(Error::invalid("after", "is not a cursor of this list", "pass the `next` of the page before").into())
        }
        _ => Ok(after),
    }
}

/// Cuts the extra item off; returns the cursor of the next page.
pub fn cut<T>(items: &mut Vec<T>, wanted: usize, cursor: impl Fn(&T) -> String) -> Option<String> {
    if items.len() <= wanted {
        return None;
    }
    items.truncate(wanted);
    items.last().map(cursor)
}
