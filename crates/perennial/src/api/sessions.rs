//! Sessions of browsers: a token in a cookie that no script can read and no other site can use.

use axum::Extension;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use perennial_core::Error;
use perennial_core::access::UserName;
use serde::Deserialize as _;

use super::ApiState;
use super::auth::{AskingPage, BySession, COOKIE, Caller, asking_page, cross_site};
use super::extract::is_json;
use super::problem::ApiError;
use super::wire::{Problem, Session, SignIn};
use crate::service::MadeToken;

/// Longest body of somebody who signs in, in bytes: nobody knows yet who sends it.
const BODY_MAX: usize = 4096;

/// Signs in with a password: the answer sets a cookie that lets a browser in for twelve hours.
#[utoipa::path(post, path = "/api/v1/sessions", operation_id = "session_create", tag = "users", security(()),
    request_body = SignIn,
    responses((status = 201, body = Session, headers(("Set-Cookie" = String, description = "Lets the browser in."))),
        (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn create(State(state): State<ApiState>, request: axum::extract::Request) -> Result<Response, ApiError> {
    // Somebody's browser could be made to sign in as somebody else, and work in their name.
    if asking_page(&request) == AskingPage::Foreign {
        return Err(cross_site());
    }
    if !is_json(request.headers()) {
        let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        let error = ApiError::new(status, "not-json", "the body is not declared as JSON");
        return Err(error.hint("send Content-Type: application/json"));
    }
    let body = axum::body::to_bytes(request.into_body(), BODY_MAX).await;
    let body =
        body.map_err(|_| ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body-too-large", "the body is too large"))?;
    let SignIn { user, password } = read(&body)?;
    let user = UserName::parse(&user).map_err(|error| match error {
        Error::InvalidInput { problem, hint, .. } => Error::invalid("user", problem, hint),
        other => other,
    })?;
    let made = state.app.sign_in(&user, password.0).await?;
    let shown = axum::Json(Session { user: made.token.user.to_string(), expires_at: made.token.expires_at });
    let headers =
        [(header::SET_COOKIE, session_cookie(&made)?), (header::CACHE_CONTROL, HeaderValue::from_static("no-store"))];
    Ok((StatusCode::CREATED, headers, shown).into_response())
}

fn read(body: &[u8]) -> Result<SignIn, ApiError> {
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    // What was sent may hold a password, so nothing of it is repeated. A list would be taken for the fields in their order.
    let read = SignIn::deserialize(&mut deserializer).and_then(|read| deserializer.end().map(|()| read));
    let read = read.ok().filter(|_| body.trim_ascii_start().starts_with(b"{"));
    read.ok_or_else(|| {
        let hint = "send {\"user\": …, \"password\": …} as JSON";
        ApiError::new(StatusCode::BAD_REQUEST, "malformed-json", "the body does not say who signs in").hint(hint)
    })
}

/// Ends the session: its token is good for nothing from now on.
#[utoipa::path(delete, path = "/api/v1/sessions", operation_id = "session_end", tag = "users",
    responses((status = 204), (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn end(
    State(state): State<ApiState>,
    Caller(caller): Caller,
    by_session: Option<Extension<BySession>>,
) -> Result<Response, ApiError> {
    let Some(token) = caller.token().filter(|_| by_session.is_some()) else {
        let hint = "a token is revoked by its id: DELETE /api/v1/tokens/{id}";
        return Err(Error::conflict("no-session", "a token lets in whoever asks, and no session", hint).into());
    };
    state.app.token_revoke(&caller, token).await?;
    Ok((StatusCode::NO_CONTENT, [(header::SET_COOKIE, cookie(COOKIE, "", 0)?)]).into_response())
}

/// What lets a browser in as long as its token is good.
pub(super) fn session_cookie(made: &MadeToken) -> Result<HeaderValue, ApiError> {
    let age = made.token.expires_at.map_or(0, |end| end.duration_since(made.token.created_at).as_secs());
    cookie(COOKIE, &made.secret, age)
}

/// No script reads it, no other site makes a browser send it with a request that changes something, and none sends it in the clear.
pub(super) fn cookie(name: &str, value: &str, age: i64) -> Result<HeaderValue, ApiError> {
    let text = format!("{name}={value}; Path=/; Max-Age={age}; HttpOnly; Secure; SameSite=Lax");
    HeaderValue::from_str(&text).map_err(|_| super::problem::internal())
}
