//! Routes of users, and of who asks.

use std::str::FromStr;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use perennial_core::Error;
use perennial_core::access::{self as domain, Reach};

use super::ApiState;
use super::auth::Caller;
use super::extract::{Id, Json, Query, cut, page};
use super::problem::ApiError;
use super::snapshots::PageQuery;
use super::wire::{CreateUser, List, Me, PatchUser, Problem, Role, Scope, User};
use crate::service::{NewUser, Person, UserChange};

/// A user in a path; what cannot be one is as good as unknown.
#[derive(Debug, Clone)]
pub struct UserName(pub domain::UserName);

impl FromStr for UserName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        domain::UserName::parse(text).map(Self)
    }
}

pub const fn role(role: domain::Role) -> Role {
    match role {
        domain::Role::User => Role::User,
        domain::Role::Admin => Role::Admin,
    }
}

const fn domain_role(role: Role) -> domain::Role {
    match role {
        Role::User => domain::Role::User,
        Role::Admin => domain::Role::Admin,
    }
}

pub const fn scope(scope: domain::Scope) -> Scope {
    match scope {
        domain::Scope::Read => Scope::Read,
        domain::Scope::Operate => Scope::Operate,
        domain::Scope::Admin => Scope::Admin,
    }
}

fn shown(person: Person) -> User {
    let Person { user, tenants } = person;
    User {
        name: user.name.to_string(),
        email: user.email,
        role: role(user.role),
        has_password: user.has_password,
        disabled: user.disabled,
        tenants: tenants.iter().map(ToString::to_string).collect(),
        created_at: user.created_at,
    }
}

/// Makes a user. They can do nothing before they are a member of a tenant and have a token.
#[utoipa::path(post, path = "/api/v1/users", operation_id = "user_create", tag = "users", request_body = CreateUser,
    responses((status = 201, body = User), (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn create(State(state): State<ApiState>, body: Json<CreateUser>) -> Result<Response, ApiError> {
    let Json { value, caller, .. } = body;
    let new = NewUser {
        name: domain::UserName::parse(&value.name)?,
        email: value.email,
        role: value.role.map_or(domain::Role::User, domain_role),
        password: value.password.map(|password| password.0),
    };
    let made = state.app.user_create(&caller, new).await?;
    Ok((StatusCode::CREATED, axum::Json(shown(made))).into_response())
}

/// Lists users by name.
#[utoipa::path(get, path = "/api/v1/users", operation_id = "user_list", tag = "users", params(PageQuery),
    responses((status = 200, body = List<User>), (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn list(
    State(state): State<ApiState>,
    Caller(caller): Caller,
    Query(query): Query<PageQuery>,
) -> Result<axum::Json<List<User>>, ApiError> {
    let (page, wanted) = page(query.after, query.limit)?;
    let mut found = state.app.users(&caller, &page).await?;
    let next = cut(&mut found, wanted, |person| person.user.name.to_string());
    Ok(axum::Json(List { items: found.into_iter().map(shown).collect(), next }))
}

/// Reads a user.
#[utoipa::path(get, path = "/api/v1/users/{id}", operation_id = "user_show", tag = "users",
    params(("id" = String, Path, description = "The user's name.")),
    responses((status = 200, body = User), (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn show(
    State(state): State<ApiState>,
    Caller(caller): Caller,
    Id(UserName(name)): Id<UserName>,
) -> Result<axum::Json<User>, ApiError> {
    Ok(axum::Json(shown(state.app.user(&caller, &name).await?)))
}

/// Changes what is known of a user. Whoever gives rights by it needs a token without bounds.
#[utoipa::path(patch, path = "/api/v1/users/{id}", operation_id = "user_patch", tag = "users", request_body = PatchUser,
    params(("id" = String, Path, description = "The user's name.")),
    responses((status = 200, body = User), (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn patch(
    State(state): State<ApiState>,
    Id(UserName(name)): Id<UserName>,
    body: Json<PatchUser>,
) -> Result<axum::Json<User>, ApiError> {
    body.is_there()?;
    let Json { value, caller, .. } = body;
    let change = UserChange {
        email: value.email,
        role: value.role.map(domain_role),
        password: value.password.map(|password| password.map(|password| password.0)),
        disabled: value.disabled,
    };
    Ok(axum::Json(shown(state.app.user_change(&caller, &name, change).await?)))
}

/// Removes a user, with their memberships and tokens. The name is not given to anybody else.
#[utoipa::path(delete, path = "/api/v1/users/{id}", operation_id = "user_delete", tag = "users",
    params(("id" = String, Path, description = "The user's name.")),
    responses((status = 204), (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn delete(
    State(state): State<ApiState>,
    Caller(caller): Caller,
    Id(UserName(name)): Id<UserName>,
) -> Result<StatusCode, ApiError> {
    state.app.user_remove(&caller, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Tells who asks, and what they may do.
#[utoipa::path(get, path = "/api/v1/me", operation_id = "me", tag = "users",
    responses((status = 200, body = Me), (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn me(State(state): State<ApiState>, Caller(caller): Caller) -> Result<axum::Json<Me>, ApiError> {
    let identity = state.app.identity(&caller).await?;
    let tenants = match &identity.rights.reach {
        Reach::All => None,
        Reach::Only(tenants) => Some(tenants.iter().map(ToString::to_string).collect()),
    };
    Ok(axum::Json(Me {
        actor: identity.actor,
        user: caller.user.as_ref().map(ToString::to_string),
        role: role(identity.rights.role),
        scopes: identity.rights.scopes.iter().copied().map(scope).collect(),
        tenants,
        token: identity.token.as_ref().map(super::tokens::shown),
    }))
}
