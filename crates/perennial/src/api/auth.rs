//! Who asks: one layer before every route, deny by default (law 10).
//!
//! What a route takes is in [`super::access`]. Tokens are looked up and compared as hashes, the comparison in constant time, so
//! that neither their length nor a common prefix shows in the time an answer takes.

use axum::body::HttpBody as _;
use axum::extract::{FromRequestParts, MatchedPath, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use perennial_core::Error;

use super::access::{self, Rule};
use super::guard::guarded;
use super::problem::ApiError;
use crate::service::{self, Access, Credential};

/// The cookie of a session. With this prefix browsers take it from this host alone, and not from its siblings.
pub(super) const COOKIE: &str = "__Host-perennial_session";

/// Marks a request that a cookie let in.
#[derive(Debug, Clone, Copy)]
pub(super) struct BySession;

/// Pages a browser opens by itself: it may send the token as the password of basic authentication.
const PAGES: [&str; 2] = ["/docs", "/openapi.json"];

/// Who asks; a handler that takes it cannot be reached without a token.
#[derive(Debug, Clone)]
pub struct Caller(pub service::Caller);

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        parts.extensions.get::<Self>().cloned().ok_or_else(unauthorized)
    }
}

/// Lets a request pass when it needs no token, or has a good one with the rights that its route takes.
pub async fn authenticate(State(access): State<Access>, request: Request, next: Next) -> Response {
    let path = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let rule = path.as_deref().map(|path| access::rule(request.method(), path));
    if rule == Some(Rule::Open) {
        return next.run(request).await;
    }
    let page = PAGES.contains(&request.uri().path()) && request.method() == Method::GET;
    let mut response = match let_in(&access, rule, path.as_deref(), page, request, next).await {
        Ok(response) => response,
        Err(error) => error.into_response(),
    };
    if response.status() == StatusCode::UNAUTHORIZED {
        // One line for each: browsers take two in one line for neither.
        let challenges: &[&str] = if page { &["Basic realm=\"perennial\"", "Bearer"] } else { &["Bearer"] };
        for challenge in challenges {
            response.headers_mut().append(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
    }
    response
}

async fn let_in(
    access: &Access,
    rule: Option<Rule>,
    path: Option<&str>,
    page: bool,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let token = match token(request.headers(), page) {
        Some(token) => token,
        None => {
            let token = only_cookie(request.headers(), COOKIE).ok_or_else(unauthorized)?;
            let is_safe = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
            if !is_safe && asking_page(&request) != AskingPage::Own {
                return Err(cross_site());
            }
            request.extensions_mut().insert(BySession);
            token
        }
    };
    let caller = access.caller(&token).await?.ok_or_else(unauthorized)?;
    let checked = match (rule, path) {
        (Some(Rule::Of(needs)), _) => needs.check(&caller.rights),
        // There is no such path, which the router says.
        (None, _) | (_, None) => return Ok(named(next.run(request).await, &caller)),
        (Some(Rule::OtherMethods | Rule::Open), Some(path)) => return Ok(named(wrong_method(path), &caller)),
    };
    if let Err(error) = checked {
        return Ok(named(error.into_response(), &caller));
    }
    tracing::debug!(actor = %caller.actor, "let in");
    request.extensions_mut().insert(Caller(caller.clone()));
    // Nothing takes rights from the administrator's token.
    if !matches!(caller.credential, Credential::Token { .. }) {
        return Ok(named(next.run(request).await, &caller));
    }
    let request = request.map(|body| if body.is_end_stream() { body } else { guarded(body, access, &caller) });
    let response = named(next.run(request).await, &caller);
    // An answer whose length is known is in memory already.
    let is_here = response.body().size_hint().exact().is_some();
    Ok(response.map(|body| if is_here { body } else { guarded(body, access, &caller) }))
}

/// Says in the answer who asked, for the audit.
fn named(mut response: Response, caller: &service::Caller) -> Response {
    response.extensions_mut().insert(Caller(caller.clone()));
    response
}

fn wrong_method(path: &str) -> Response {
    let status = StatusCode::METHOD_NOT_ALLOWED;
    let error = ApiError::new(status, "method-not-allowed", "this route does not take that method")
        .hint("GET /openapi.json lists them");
    let mut response = error.into_response();
    if let Ok(allowed) = HeaderValue::from_str(&access::allowed(path)) {
        response.headers_mut().insert(header::ALLOW, allowed);
    }
    response
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

/// A cookie; `None` also when there are several of that name, of which somebody else may have set one.
pub(super) fn only_cookie(headers: &HeaderMap, name: &str) -> Option<String> {
    let all = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let named = |pair: &str| pair.trim().strip_prefix(name)?.strip_prefix('=').map(str::to_owned);
    let mut found = all.flat_map(|value| value.split(';')).filter_map(named);
    found.next().filter(|_| found.next().is_none())
}

/// Whose page asks, as the browser says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AskingPage {
    /// One of this server.
    Own,
    /// One of another site.
    Foreign,
    /// None: it is no browser, which would say so of whatever changes something.
    Nobodys,
}

/// Whose page asks.
pub(super) fn asking_page(request: &Request) -> AskingPage {
    let text = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
    if let Some(site) = text("sec-fetch-site") {
        return if site == "same-origin" { AskingPage::Own } else { AskingPage::Foreign };
    }
    // With HTTP/2 it is in the address.
    let host = text("host").or_else(|| request.uri().authority().map(|authority| authority.as_str()));
    match request.headers().get("origin") {
        None => AskingPage::Nobodys,
        Some(_) => {
            let origin = text("origin").and_then(|origin| origin.split_once("://")).map(|(_, host)| host);
            if origin.is_some() && origin == host { AskingPage::Own } else { AskingPage::Foreign }
        }
    }
}

/// What another site asks for.
pub(super) fn cross_site() -> ApiError {
    ApiError::new(StatusCode::FORBIDDEN, "cross-site", "another site asked for this")
        .hint("a session is good for pages of this server; programs send a token: Authorization: Bearer")
}

fn unauthorized() -> ApiError {
    Error::Unauthorized { problem: "a valid bearer token is needed".to_owned() }.into()
}
