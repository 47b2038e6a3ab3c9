//! Who asks: one layer before every route, deny by default (law 10).
//!
//! Everything but the health checks needs a bearer token. Tokens are compared as hashes and in constant time, so that
//! neither their length nor a common prefix shows in the time an answer takes.

use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::problem::ApiError;
use crate::service;

/// Paths that answer without a token.
const OPEN: [&str; 2] = ["/healthz", "/readyz"];
/// Pages a browser opens by itself: it may send the token as the password of basic authentication.
const PAGES: [&str; 2] = ["/docs", "/openapi.json"];

/// The tokens the server knows.
#[derive(Clone)]
pub struct Tokens {
    admin: [u8; 32],
}

impl Tokens {
    /// Knows only the admin token.
    #[must_use]
    pub fn admin(token: &str) -> Self {
        Self { admin: hash(token) }
    }

    fn caller(&self, token: &str) -> Option<service::Caller> {
        bool::from(hash(token).ct_eq(&self.admin)).then(service::Caller::admin)
    }
}

fn hash(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

/// Who asks; a handler that takes it cannot be reached without a token.
#[derive(Debug, Clone)]
pub struct Caller(pub service::Caller);

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        parts.extensions.get::<Self>().cloned().ok_or_else(unauthorized)
    }
}

/// Lets a request pass when it needs no token or has a good one.
pub async fn authenticate(State(tokens): State<Tokens>, mut request: Request, next: Next) -> Response {
    let path = request.uri().path();
    if OPEN.contains(&path) {
        return next.run(request).await;
    }
    let page = PAGES.contains(&path) && request.method() == Method::GET;
    let token = token(request.headers(), page);
    let Some(caller) = token.and_then(|token| tokens.caller(&token)) else {
        let mut response = unauthorized().into_response();
        // One line for each: browsers take two in one line for neither.
        let challenges: &[&str] = if page { &["Basic realm=\"perennial\"", "Bearer"] } else { &["Bearer"] };
        for challenge in challenges {
            response.headers_mut().append(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        return response;
    };
    request.extensions_mut().insert(Caller(caller));
    next.run(request).await
}

fn token(headers: &HeaderMap, page: bool) -> Option<String> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, rest) = value.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.trim().to_owned());
    }
    // Only where a browser asks for a page: a browser sends basic credentials along with every later request to the
    // server, also with those another site makes it send.
    if page && scheme.eq_ignore_ascii_case("basic") {
        let decoded = base64::engine::general_purpose::STANDARD.decode(rest.trim()).ok()?;
        let text = String::from_utf8(decoded).ok()?;
        return text.split_once(':').map(|(_, password)| password.to_owned());
    }
    None
}

fn unauthorized() -> ApiError {
    ApiError::new(StatusCode::UNAUTHORIZED, "unauthorized", "a valid bearer token is needed")
        .hint("the admin token is in the file admin-token of the server's data directory")
}
