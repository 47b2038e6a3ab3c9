//! The end of a tenant.

use std::str::FromStr;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use perennial_core::Error;
use perennial_core::spec::TenantId;

use super::auth::Caller;
use super::extract::{Id, Json};
use super::problem::ApiError;
use super::wire::{EraseRequest, ErasedPlace, Erasure, ErasureState, PlaceBecame, Problem};
use super::{ApiState, convert};
use crate::service::{Erase, Erasing};
use crate::store::{Became, Erasure as Row, FoundPlace};

/// A tenant in a path; what cannot be one is as good as unknown.
#[derive(Debug)]
pub struct Tenant(pub TenantId);

impl FromStr for Tenant {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        TenantId::parse(text).map(Self)
    }
}

/// Erases a tenant without pods: destroys the keys of its repository and replica, so that nothing in them can be read again.
#[utoipa::path(post, path = "/api/v1/tenants/{id}/erase", operation_id = "tenant_erase", tag = "tenants",
    request_body = EraseRequest, params(("id" = String, Path, description = "The tenant's name.")),
    responses((status = 200, body = Erasure, description = "A dry run: nothing was done."),
        (status = 202, body = Erasure, description = "It was recorded, or is done already."),
        (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn erase(
    State(state): State<ApiState>,
    Id(Tenant(tenant)): Id<Tenant>,
    Json { value: body, caller, .. }: Json<EraseRequest>,
) -> Result<Response, ApiError> {
    let EraseRequest { dry_run, confirm, delete_data, accept_unknown, give_up } = body;
    let ask = Erase { confirm, dry_run, delete_data, accept_unknown, give_up };
    let erasing = state.app.tenant_erase(&caller, &tenant, &ask).await?;
    let status = if dry_run { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok((status, axum::Json(shown(&state, erasing))).into_response())
}

/// Tells how far the erasure of a tenant is.
#[utoipa::path(get, path = "/api/v1/tenants/{id}/erasure", operation_id = "tenant_erasure", tag = "tenants",
    params(("id" = String, Path, description = "The tenant's name.")),
    responses((status = 200, body = Erasure), (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn show(
    State(state): State<ApiState>,
    Caller(caller): Caller,
    Id(Tenant(tenant)): Id<Tenant>,
) -> Result<axum::Json<Erasure>, ApiError> {
    Ok(axum::Json(shown(&state, state.app.erasure(&caller, &tenant).await?)))
}

fn shown(state: &ApiState, erasing: Erasing) -> Erasure {
    let row = erasing.erasure.as_ref();
    let is_at_work = row.filter(|row| row.done_at.is_none());
    let now = is_at_work.and_then(|row| state.board.read(row.id));
    Erasure {
        state: match row {
            None => ErasureState::Planned,
            Some(row) if row.keys_at.is_none() => ErasureState::DestroyingKeys,
            Some(row) if row.done_at.is_none() => ErasureState::Emptying,
            Some(_) => ErasureState::Erased,
        },
        delete_data: erasing.delete_data,
        repository: place(&erasing.found.repository),
        replica: erasing.found.replica.as_ref().map(place),
        actor: row.map(|row| row.actor.clone()),
        asked_at: row.map(|row| row.asked_at),
        keys_destroyed_at: row.and_then(|row| row.keys_at),
        erased_at: row.and_then(|row| row.done_at),
        problem: row.and_then(Row::problems),
        progress: now.map(|now| convert::progress(now.step, now.reading)),
        accept_unknown: erasing.accept(),
        tenant: erasing.tenant.to_string(),
        blockers: erasing.blockers,
        doubts: erasing.doubts.into_iter().map(|doubt| doubt.text).collect(),
        meaning: erasing.meaning,
    }
}

fn place(found: &FoundPlace) -> ErasedPlace {
    let became = found.became.map(|became| match became {
        Became::Emptied { .. } => PlaceBecame::Emptied,
        Became::KeysGone => PlaceBecame::KeysGone,
        Became::Absent => PlaceBecame::Absent,
        Became::GivenUp => PlaceBecame::GivenUp,
        Became::Untouched => PlaceBecame::Untouched,
    });
    ErasedPlace { location: found.location.clone(), snapshots: found.snapshots, bytes: found.bytes, became }
}
