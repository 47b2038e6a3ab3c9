//! Routes of tokens.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use perennial_core::Error;
use perennial_core::access::{self as domain, UserName, Wanted};
use perennial_core::id::TokenId;
use perennial_core::spec::TenantId;
use serde::Deserialize;
use utoipa::IntoParams;

use super::ApiState;
use super::auth::Caller;
use super::extract::{Id, Json, Query, cursor, cut, page};
use super::problem::ApiError;
use super::users::scope;
use super::wire::{CreateToken, CreatedToken, List, Problem, Scope, Secret, Token};
use crate::service::{MadeToken, NewToken};

/// Selects tokens.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct TokenQuery {
    /// The `next` of the page before.
    after: Option<String>,
    /// Most items of the page, 1 to 1000; 100 when left out.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
    /// Only this user's.
    user: Option<String>,
}

pub fn shown(token: &domain::Token) -> Token {
    Token {
        id: token.id.to_string(),
        name: token.label.clone(),
        user: token.user.to_string(),
        scopes: token.scopes.iter().copied().map(scope).collect(),
        tenant: token.tenant.as_ref().map(ToString::to_string),
        created_by: token.created_by.clone(),
        created_at: token.created_at,
        expires_at: token.expires_at,
        last_used_at: token.last_used_at,
        revoked_at: token.revoked_at,
    }
}

fn user(text: Option<&str>) -> Result<Option<UserName>, Error> {
    let named = |error| match error {
        Error::InvalidInput { problem, hint, .. } => Error::invalid("user", problem, hint),
        other => other,
    };
    text.map(UserName::parse).transpose().map_err(named)
}

/// Makes a token. It gets at most the scopes, the tenants and the time of the one that asks.
#[utoipa::path(post, path = "/api/v1/tokens", operation_id = "token_create", tag = "users", request_body = CreateToken,
    responses((status = 201, body = CreatedToken), (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn create(State(state): State<ApiState>, body: Json<CreateToken>) -> Result<Response, ApiError> {
    let Json { value, caller, .. } = body;
    let scopes = value.scopes.iter().map(|scope| match scope {
        Scope::Read => domain::Scope::Read,
        Scope::Operate => domain::Scope::Operate,
        Scope::Admin => domain::Scope::Admin,
    });
    let wanted = Wanted {
        scopes: scopes.collect(),
        tenant: value.tenant.as_deref().map(TenantId::parse).transpose()?,
        expires_at: value.expires_at,
    };
    let new = NewToken { user: user(value.user.as_deref())?, label: value.name, wanted };
    let MadeToken { token, secret } = state.app.token_create(&caller, new).await?;
    // No answer to a repetition is recorded, unlike for other POSTs: it would be a copy of the secret.
    let made = axum::Json(CreatedToken { token: shown(&token), secret: Secret(secret) });
    Ok((StatusCode::CREATED, [(header::CACHE_CONTROL, "no-store")], made).into_response())
}

/// Lists one's own tokens, oldest first, revoked and expired ones too. Administrators see everybody's.
#[utoipa::path(get, path = "/api/v1/tokens", operation_id = "token_list", tag = "users", params(TokenQuery),
    responses((status = 200, body = List<Token>), (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn list(
    State(state): State<ApiState>,
    Caller(caller): Caller,
    Query(query): Query<TokenQuery>,
) -> Result<axum::Json<List<Token>>, ApiError> {
    let (page, wanted) = page(cursor::<TokenId>(query.after)?, query.limit)?;
    let mut found = state.app.tokens(&caller, user(query.user.as_deref())?, &page).await?;
    let next = cut(&mut found, wanted, |token| token.id.to_string());
    Ok(axum::Json(List { items: found.iter().map(shown).collect(), next }))
}

/// Revokes a token: it is good for nothing from now on, also in requests that are under way. One that is revoked stays so.
#[utoipa::path(delete, path = "/api/v1/tokens/{id}", operation_id = "token_revoke", tag = "users",
    params(("id" = String, Path, description = "The token's id.")),
    responses((status = 200, body = Token), (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn revoke(
    State(state): State<ApiState>,
    Caller(caller): Caller,
    Id(id): Id<TokenId>,
) -> Result<axum::Json<Token>, ApiError> {
    Ok(axum::Json(shown(&state.app.token_revoke(&caller, id).await?)))
}
