//! Signing in with the OpenID provider: a browser goes there, and comes back with a code.

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use perennial_core::Error;
use serde::Deserialize;
use subtle::ConstantTimeEq as _;
use utoipa::IntoParams;

use super::ApiState;
use super::auth::only_cookie;
use super::extract::Query;
use super::problem::ApiError;
use super::sessions::{cookie, session_cookie};
use super::wire::Problem;
use crate::oidc::Kept;

/// What the browser keeps meanwhile.
const KEPT: &str = "__Host-perennial_oidc";
/// So long somebody may take at the provider, in seconds.
const AGE: i64 = 600;
/// Longest path that is gone on to, in bytes.
const PATH_MAX: usize = 1024;
/// Where to go on when nobody said it.
const HOME: &str = "/docs";

/// Where to go on.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct BeginQuery {
    /// The page to go on to, as a path of this server; `/docs` when left out.
    #[param(max_length = 1024)]
    return_to: Option<String>,
}

/// What a provider says of who comes back. It may say more.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct CallbackQuery {
    /// What can be exchanged for a token.
    code: Option<String>,
    /// What the browser was sent with.
    state: Option<String>,
    /// Why there is no code.
    error: Option<String>,
    /// Who the provider is (RFC 9207).
    iss: Option<String>,
}

/// Sends a browser to the OpenID provider, to sign in there.
#[utoipa::path(get, path = "/api/v1/sessions/oidc", operation_id = "session_oidc_begin", tag = "users", security(()),
    params(BeginQuery),
    responses((status = 303, description = "Go to the provider.", headers(("Location" = String), ("Set-Cookie" = String))),
        (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn begin(State(state): State<ApiState>, Query(query): Query<BeginQuery>) -> Result<Response, ApiError> {
    let path = query.return_to.unwrap_or_else(|| HOME.to_owned());
    if !is_own_path(&path) {
        let hint = "name a page of this server, such as /docs";
        return Err(Error::invalid("returnTo", "is no path of this server", hint).into());
    }
    let (url, kept) = state.app.oidc_begin().await?;
    let kept = [&kept.state, &kept.nonce, &kept.verifier, &URL_SAFE_NO_PAD.encode(path)].map(String::as_str).join(".");
    see_other(&url, &[cookie(KEPT, &kept, AGE)?])
}

/// Lets a browser in that comes back from the provider: the answer sets the cookie of a session.
#[utoipa::path(get, path = "/api/v1/sessions/oidc/callback", operation_id = "session_oidc_finish", tag = "users", security(()),
    params(CallbackQuery),
    responses((status = 303, description = "Signed in.", headers(("Location" = String), ("Set-Cookie" = String))),
        (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn finish(
    State(state): State<ApiState>,
    headers: HeaderMap,
    Query(query): Query<CallbackQuery>,
) -> Result<Response, ApiError> {
    let kept = only_cookie(&headers, KEPT).and_then(|text| read(&text));
    let fits = |kept: &(Kept, String)| {
        query.state.as_ref().is_some_and(|state| bool::from(state.as_bytes().ct_eq(kept.0.state.as_bytes())))
    };
    let Some((kept, path)) = kept.filter(fits) else {
        let error = ApiError::new(
            StatusCode::BAD_REQUEST,
            "sign-in-not-begun",
            "this browser did not begin to sign in, or long ago",
        );
        return Err(error.hint("begin at /api/v1/sessions/oidc, and allow cookies"));
    };
    let code = query.code.filter(|_| query.error.is_none());
    let made = state.app.oidc_finish(code, query.iss.as_deref(), kept).await?;
    see_other(&path, &[session_cookie(&made)?, cookie(KEPT, "", 0)?])
}

/// Whether a browser that is sent there stays on this server.
fn is_own_path(path: &str) -> bool {
    let mut bytes = path.bytes();
    bytes.next() == Some(b'/')
        && !matches!(bytes.next(), Some(b'/' | b'\\'))
        && path.len() <= PATH_MAX
        && path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\')
}

fn read(text: &str) -> Option<(Kept, String)> {
    let mut parts = text.split('.').map(str::to_owned);
    let (state, nonce, verifier, path) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let path = String::from_utf8(URL_SAFE_NO_PAD.decode(path).ok()?).ok()?;
    let is_good = !state.is_empty() && parts.next().is_none() && is_own_path(&path);
    is_good.then_some((Kept { state, nonce, verifier }, path))
}

fn see_other(to: &str, cookies: &[HeaderValue]) -> Result<Response, ApiError> {
    let to = HeaderValue::from_str(to).map_err(|_| super::problem::internal())?;
    let mut answer = StatusCode::SEE_OTHER.into_response();
    let headers = answer.headers_mut();
    headers.insert(header::LOCATION, to);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // The address that a browser comes from holds the code.
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    for cookie in cookies {
        headers.append(header::SET_COOKIE, cookie.clone());
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_sent_to_another_site() {
        for path in ["/", "/docs", "/pods/x?tab=logs#end"] {
            assert!(is_own_path(path), "{path}");
        }
        let long = format!("/{}", "x".repeat(PATH_MAX));
        for path in
            ["", "docs", "//evil.example", "/\\evil.example", "https://evil.example", "/a\nb", "/a\\b", "/ä", &long]
        {
            assert!(!is_own_path(path), "{path:?}");
        }
    }
}
