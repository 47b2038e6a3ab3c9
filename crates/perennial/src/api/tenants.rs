//! Routes of tenants and their members; how one ends is in `erase`.

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use perennial_core::Error;
use perennial_core::quota as domain;
use perennial_core::spec::TenantId;

use super::ApiState;
use super::auth::Caller;
use super::erase::Tenant as Name;
use super::extract::{Id, Json, Query, cut, page};
use super::problem::ApiError;
use super::snapshots::PageQuery;
use super::users::UserName;
use super::wire::{self, Cpus, CreateTenant, List, PatchTenant, Problem, Size, Tenant, TenantUsage};
use crate::service::Membership;

/// Most pods that a quota may speak of: more is a mistake.
const PODS_MAX: u32 = 1_000_000;

fn shown(membership: &Membership) -> Tenant {
    Tenant {
        name: membership.tenant.name.to_string(),
        members: Some(membership.members.iter().map(ToString::to_string).collect()),
        quota: quota(&membership.tenant.quota),
        usage: Some(usage(&membership.usage)),
        created_at: membership.tenant.created_at,
    }
}

/// Makes a tenant.
#[utoipa::path(post, path = "/api/v1/tenants", operation_id = "tenant_create", tag = "tenants",
    request_body = CreateTenant,
    responses((status = 201, body = Tenant), (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn create(State(state): State<ApiState>, body: Json<CreateTenant>) -> Result<Response, ApiError> {
    let Json { value, caller, .. } = body;
    let name = TenantId::parse(&value.name).map_err(|error| match error {
        Error::InvalidInput { problem, hint, .. } => Error::invalid("name", problem, hint),
        other => other,
    })?;
    let made = state.app.tenant_create(&caller, name).await?;
    Ok((StatusCode::CREATED, axum::Json(shown(&made))).into_response())
}

/// Lists the tenants that exist for who asks, by name.
#[utoipa::path(get, path = "/api/v1/tenants", operation_id = "tenant_list", tag = "tenants", params(PageQuery),
    responses((status = 200, body = List<Tenant>), (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn list(
    State(state): State<ApiState>,
    Caller(caller): Caller,
    Query(query): Query<PageQuery>,
) -> Result<axum::Json<List<Tenant>>, ApiError> {
    let (page, wanted) = page(query.after, query.limit)?;
    let mut found = state.app.tenants(&caller, &page).await?;
    let next = cut(&mut found, wanted, |tenant| tenant.name.to_string());
    let one = |tenant: &crate::store::Tenant| Tenant {
        name: tenant.name.to_string(),
        members: None,
        quota: quota(&tenant.quota),
        usage: None,
        created_at: tenant.created_at,
    };
    Ok(axum::Json(List { items: found.iter().map(one).collect(), next }))
}

/// Reads a tenant, with its members.
#[utoipa::path(get, path = "/api/v1/tenants/{id}", operation_id = "tenant_show", tag = "tenants",
    params(("id" = String, Path, description = "The tenant's name.")),
    responses((status = 200, body = Tenant), (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn show(
    State(state): State<ApiState>,
    Caller(caller): Caller,
    Id(Name(name)): Id<Name>,
) -> Result<axum::Json<Tenant>, ApiError> {
    Ok(axum::Json(shown(&state.app.tenant(&caller, &name).await?)))
}

/// Changes a tenant.
#[utoipa::path(patch, path = "/api/v1/tenants/{id}", operation_id = "tenant_patch", tag = "tenants",
    request_body = PatchTenant, params(("id" = String, Path, description = "The tenant's name.")),
    responses((status = 200, body = Tenant), (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn patch(
    State(state): State<ApiState>,
    Id(Name(name)): Id<Name>,
    body: Json<PatchTenant>,
) -> Result<axum::Json<Tenant>, ApiError> {
    body.is_there()?;
    let Json { value, caller, .. } = body;
    let Some(asked) = value.quota else { return Ok(axum::Json(shown(&state.app.tenant(&caller, &name).await?))) };
    let wire::Quota { pods, cpus, memory, disk } = asked.unwrap_or_default();
    if pods.is_some_and(|pods| pods > PODS_MAX) {
        let hint = format!("write 0 to {PODS_MAX}, or null for no bound");
        return Err(Error::invalid("quota.pods", "is more than there can be", hint).into());
    }
    let (nano_cpus, memory, disk) = (cpus.map(|cpus| cpus.nano), memory.map(|size| size.0), disk.map(|size| size.0));
    let bound = domain::Quota { pods, nano_cpus, memory, disk };
    Ok(axum::Json(shown(&state.app.tenant_bound(&caller, &name, bound).await?)))
}

fn quota(quota: &domain::Quota) -> wire::Quota {
    wire::Quota {
        pods: quota.pods,
        cpus: quota.nano_cpus.map(|nano| Cpus { nano }),
        memory: quota.memory.map(Size),
        disk: quota.disk.map(Size),
    }
}

fn usage(usage: &domain::Usage) -> TenantUsage {
    TenantUsage {
        pods: usage.pods,
        cpus: Cpus { nano: usage.nano_cpus.limited },
        memory: Size(usage.memory.limited),
        disk: Size(usage.disk.limited),
        unlimited: [usage.nano_cpus, usage.memory, usage.disk].map(|sum| sum.unlimited).into_iter().max().unwrap_or(0),
    }
}

/// The tenant and the user of a path; what cannot be one is as good as unknown.
fn names(path: Result<Path<(String, String)>, PathRejection>) -> Result<(TenantId, UserName), Error> {
    let Path((tenant, user)) = path.map_err(|_| Error::not_found("that"))?;
    let missing = |what: &str| {
        let shown: String = what.chars().take(40).collect();
        Error::not_found(format!("{shown:?}"))
    };
    let Name(of) = tenant.parse().map_err(|_| missing(&tenant))?;
    Ok((of, user.parse().map_err(|_| missing(&user))?))
}

/// Makes a user a member of a tenant, unless they are one. Whoever does needs a token without bounds.
#[utoipa::path(put, path = "/api/v1/tenants/{id}/members/{user}", operation_id = "tenant_member_add", tag = "tenants",
    params(("id" = String, Path, description = "The tenant's name."),
        ("user" = String, Path, description = "The user's name.")),
    responses((status = 200, body = Tenant), (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn member_add(
    State(state): State<ApiState>,
    Caller(caller): Caller,
    path: Result<Path<(String, String)>, PathRejection>,
) -> Result<axum::Json<Tenant>, ApiError> {
    let (tenant, UserName(user)) = names(path)?;
    Ok(axum::Json(shown(&state.app.member_add(&caller, &tenant, &user).await?)))
}

/// Ends a membership.
#[utoipa::path(delete, path = "/api/v1/tenants/{id}/members/{user}", operation_id = "tenant_member_remove",
    tag = "tenants", params(("id" = String, Path, description = "The tenant's name."),
        ("user" = String, Path, description = "The user's name.")),
    responses((status = 204), (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn member_remove(
    State(state): State<ApiState>,
    Caller(caller): Caller,
    path: Result<Path<(String, String)>, PathRejection>,
) -> Result<StatusCode, ApiError> {
    let (tenant, UserName(user)) = names(path)?;
    state.app.member_remove(&caller, &tenant, &user).await?;
    Ok(StatusCode::NO_CONTENT)
}
