//! Routes of snapshots.

use axum::extract::State;
use axum::response::Response;
use perennial_core::Error;
use perennial_core::id::{PodId, SnapshotId};
use perennial_core::spec::TenantId;
use serde::Deserialize;
use utoipa::IntoParams;

use super::action::Action;
use super::auth::Caller;
use super::extract::{Id, Query, cursor, cut, page};
use super::problem::ApiError;
use super::wire::{AcceptRequest, List, Nothing, Problem, Snapshot, SnapshotDeleteRequest, SnapshotOperation};
use super::{ApiState, convert, wire};
use crate::service::Consent;
use crate::store::SnapshotFilter;

/// Selects a part of a list.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct PageQuery {
    /// The `next` of the page before.
    pub after: Option<String>,
    /// Most items of the page, 1 to 1000; 100 when left out.
    #[param(minimum = 1, maximum = 1000)]
    pub limit: Option<u32>,
}

/// Selects snapshots of all pods.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct SnapshotQuery {
    /// Only of this pod, by its id.
    pod: Option<String>,
    /// Only in this state.
    #[param(inline)]
    state: Option<wire::SnapshotState>,
    /// Only of this kind.
    #[param(inline)]
    kind: Option<wire::SnapshotKind>,
    /// Only this tenant's.
    tenant: Option<String>,
    /// The `next` of the page before.
    after: Option<String>,
    /// Most items of the page, 1 to 1000; 100 when left out.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
}

/// Lists snapshots of all pods, newest first.
#[utoipa::path(get, path = "/api/v1/snapshots", operation_id = "snapshot_list", tag = "snapshots", params(SnapshotQuery),
    responses((status = 200, body = List<Snapshot>), (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn of_all(
    State(state): State<ApiState>,
    Caller(caller): Caller,
    Query(query): Query<SnapshotQuery>,
) -> Result<axum::Json<List<Snapshot>>, ApiError> {
    let (page, wanted) = page(cursor::<SnapshotId>(query.after)?, query.limit)?;
    let pod =
        query.pod.map(|pod| pod.parse::<PodId>().map_err(|e| Error::invalid("pod", e.to_string(), "perennial pod ls")));
    let filter = SnapshotFilter {
        tenant: query.tenant.as_deref().map(TenantId::parse).transpose()?,
        within: None,
        pod: pod.transpose()?,
        state: query.state.map(Into::into),
        kind: query.kind.map(Into::into),
    };
    let mut found = state.app.snapshots_of_all(&caller, filter, &page).await?;
    let next = cut(&mut found, wanted, |s| s.id.to_string());
    let items = found.iter().map(|one| convert::snapshot(one, &state.app.settings)).collect();
    Ok(axum::Json(List { items, next }))
}

/// Takes a snapshot.
#[utoipa::path(post, path = "/api/v1/pods/{id}/snapshots", operation_id = "snapshot_create", tag = "snapshots",
    request_body = Option<AcceptRequest>,
    params(("id" = String, Path, description = "The pod's id."),
        ("Idempotency-Key" = Option<String>, Header, description = "Makes the request repeatable.")),
    responses((status = 202, body = SnapshotOperation), (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn create(
    State(state): State<ApiState>,
    Id(id): Id<PodId>,
    action: Action<AcceptRequest>,
) -> Result<Response, ApiError> {
    if let Some(answer) = action.replay(&state).await? {
        return Ok(answer);
    }
    let consent = Consent { confirm: action.body.confirm.clone(), accept_loss: action.body.accept_loss.clone() };
    let done = state.app.snapshot_create(action.request(), id, &consent).await;
    action.answer(&state, done).await
}

/// Lists a pod's snapshots, newest first.
#[utoipa::path(get, path = "/api/v1/pods/{id}/snapshots", operation_id = "pod_snapshots", tag = "snapshots",
    params(("id" = String, Path, description = "The pod's id."), PageQuery),
    responses((status = 200, body = List<Snapshot>), (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn list(
    State(state): State<ApiState>,
    Caller(caller): Caller,
    Id(id): Id<PodId>,
    Query(query): Query<PageQuery>,
) -> Result<axum::Json<List<Snapshot>>, ApiError> {
    let (page, wanted) = page(cursor::<SnapshotId>(query.after)?, query.limit)?;
    let mut found = state.app.snapshots(&caller, id, &page).await?;
    let next = cut(&mut found, wanted, |s| s.id.to_string());
    let items = found.iter().map(|one| convert::snapshot(one, &state.app.settings)).collect();
    Ok(axum::Json(List { items, next }))
}

/// Reads a snapshot.
#[utoipa::path(get, path = "/api/v1/snapshots/{id}", operation_id = "snapshot_show", tag = "snapshots",
    params(("id" = String, Path, description = "The snapshot's id.")),
    responses((status = 200, body = Snapshot), (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn show(
    State(state): State<ApiState>,
    Caller(caller): Caller,
    Id(id): Id<SnapshotId>,
) -> Result<axum::Json<Snapshot>, ApiError> {
    Ok(axum::Json(convert::snapshot(&state.app.snapshot(&caller, id).await?, &state.app.settings)))
}

/// Deletes a snapshot nothing depends on; the last verified one of a pod only with the confirmation.
#[utoipa::path(delete, path = "/api/v1/snapshots/{id}", operation_id = "snapshot_delete", tag = "snapshots",
    request_body = Option<SnapshotDeleteRequest>,
    params(("id" = String, Path, description = "The snapshot's id."),
        ("Idempotency-Key" = Option<String>, Header, description = "Makes the request repeatable.")),
    responses((status = 202, body = SnapshotOperation), (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn delete(
    State(state): State<ApiState>,
    Id(id): Id<SnapshotId>,
    action: Action<SnapshotDeleteRequest>,
) -> Result<Response, ApiError> {
    if let Some(answer) = action.replay(&state).await? {
        return Ok(answer);
    }
    let done = state.app.snapshot_delete(action.request(), id, action.body.confirm.as_deref()).await;
    action.answer(&state, done).await
}

/// Proves a snapshot: restores it into scratch on the server's host and compares all of it.
#[utoipa::path(post, path = "/api/v1/snapshots/{id}/drill", operation_id = "snapshot_drill", tag = "snapshots",
    request_body = Option<Nothing>,
    params(("id" = String, Path, description = "The snapshot's id."),
        ("Idempotency-Key" = Option<String>, Header, description = "Makes the request repeatable.")),
    responses((status = 202, body = SnapshotOperation), (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn drill(
    State(state): State<ApiState>,
    Id(id): Id<SnapshotId>,
    action: Action<Nothing>,
) -> Result<Response, ApiError> {
    if let Some(answer) = action.replay(&state).await? {
        return Ok(answer);
    }
    let done = state.app.snapshot_drill(action.request(), id).await;
    action.answer(&state, done).await
}
