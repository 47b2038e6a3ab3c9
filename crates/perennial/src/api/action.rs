//! Requests that change something: their body, and `Idempotency-Key`.
//!
//! The repetition of a request with the same key gets the recorded answer and does nothing. The answer is recorded in
//! the transaction that does the work, so there is no moment at which a crash lets the work be done twice. Refusals
//! are not recorded: nothing was done, and the same request may succeed later.

use axum::extract::{FromRequest, FromRequestParts as _, Request as HttpRequest};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use perennial_core::Error;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

use super::auth::Caller;
use super::extract::Json;
use super::problem::ApiError;
use super::{ApiState, convert, wire};
use crate::service::{self, Once, Outcome, Request};

/// Longest key.
const KEY_MAX: usize = 255;

/// Renders an answer: status and body.
type Render = dyn Fn(&Outcome) -> (u16, String) + Send + Sync;

/// A request that changes something.
pub struct Action<T> {
    /// What it says.
    pub body: T,
    caller: service::Caller,
    key: Option<String>,
    request_hash: String,
    render: Box<Render>,
}

impl<T: DeserializeOwned> FromRequest<ApiState> for Action<T> {
    type Rejection = ApiError;

    async fn from_request(request: HttpRequest, state: &ApiState) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let key = key(&parts.headers)?;
        let (method, uri) = (parts.method.clone(), parts.uri.clone());
        let json = Json::<T>::from_request(HttpRequest::from_parts(parts, body), state).await?;
        let request_hash = hash(&[method.as_str().as_bytes(), uri.path().as_bytes(), &json.bytes]);
        let settings = state.app.settings.clone();
        let render = Box::new(move |outcome: &Outcome| (202, render(outcome, &settings)));
        Ok(Self { body: json.value, caller: json.caller, key, request_hash, render })
    }
}

impl<T> Action<T> {
    /// A request whose body is read as it comes, and is too large to be compared: the same key and address are the same
    /// request.
    pub async fn of_stream(parts: &mut Parts, state: &ApiState, says: T) -> Result<Self, ApiError> {
        let Caller(caller) = Caller::from_request_parts(parts, state).await?;
        let key = key(&parts.headers)?;
        let address = parts.uri.to_string();
        let request_hash = hash(&[parts.method.as_str().as_bytes(), address.as_bytes()]);
        let settings = state.app.settings.clone();
        let render = Box::new(move |outcome: &Outcome| (202, render(outcome, &settings)));
        Ok(Self { body: says, caller, key, request_hash, render })
    }
}

fn key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    let text = value.to_str().ok().filter(|t| !t.is_empty() && t.len() <= KEY_MAX);
    text.map(|t| Some(t.to_owned())).ok_or_else(|| {
        Error::invalid("Idempotency-Key", "is not a key", format!("use 1 to {KEY_MAX} visible characters")).into()
    })
}

/// Hash of a list of byte strings; each goes in with its length, so that no two lists look alike.
fn hash(parts: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        hash.update(part);
    }
    hex::encode(hash.finalize())
}

/// The body of the answer to an action.
fn render(outcome: &Outcome, settings: &service::AppSettings) -> String {
    let operation = convert::operation(&outcome.operation);
    let text = match &outcome.snapshot {
        Some(snapshot) => {
            let snapshot = convert::snapshot(snapshot, settings);
            serde_json::to_string(&wire::SnapshotOperation { snapshot, operation })
        }
        None => {
            let pod = convert::pod(&outcome.pod, outcome.latest.as_ref(), settings);
            serde_json::to_string(&wire::PodOperation { pod, operation })
        }
    };
    text.unwrap_or_default()
}

impl<T> Action<T> {
    /// Who asks.
    pub const fn caller(&self) -> &service::Caller {
        &self.caller
    }

    /// The request as the service takes it.
    pub fn request(&self) -> Request<'_> {
        let once = |key| Once { key, request_hash: &self.request_hash, render: &self.render };
        Request { caller: &self.caller, once: self.key.as_deref().map(once) }
    }

    /// The recorded answer, when this request was answered before.
    pub async fn replay(&self, state: &ApiState) -> Result<Option<Response>, ApiError> {
        let Some(key) = &self.key else { return Ok(None) };
        let recorded = state.app.store.idempotency_fetch(&self.caller.owner(), key).await.map_err(Error::from)?;
        // What the caller may not see any more is not shown again either: the request finds nothing.
        let recorded = recorded.filter(|record| record.about.as_ref().is_none_or(|tenant| self.caller.may_see(tenant)));
        let Some(record) = recorded else { return Ok(None) };
        if record.request_hash != self.request_hash {
            let status = StatusCode::UNPROCESSABLE_ENTITY;
            return Err(ApiError::new(status, "idempotency-key-reused", "the key was used for another request")
                .field("Idempotency-Key")
                .hint("use a new key for every request"));
        }
        let mut response = answer(record.status, record.body);
        response.headers_mut().insert("idempotency-replayed", HeaderValue::from_static("true"));
        Ok(Some(response))
    }

    /// Answers with what the service made of it.
    pub async fn answer(&self, state: &ApiState, done: Result<Outcome, Error>) -> Result<Response, ApiError> {
        match done {
            Ok(outcome) => {
                let (status, body) = (self.render)(&outcome);
                Ok(answer(status, body))
            }
            // The same request came twice at once, and the other one was faster.
            Err(Error::Conflict { code: "idempotency-key-used", problem, hint }) => match self.replay(state).await? {
                Some(response) => Ok(response),
                None => Err(Error::Conflict { code: "idempotency-key-used", problem, hint }.into()),
            },
            Err(error) => Err(error.into()),
        }
    }
}

fn answer(status: u16, body: String) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}
