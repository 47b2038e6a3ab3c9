//! Restores of everything and of parts, and clones.

use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use perennial_core::Error;
use perennial_core::id::{PodId, SnapshotId};
use perennial_core::parts::{Extra, Parts};
use perennial_core::pod::Identity;
use perennial_core::spec::PodName;

use super::ApiState;
use super::action::Action;
use super::compare::difference;
use super::extract::Id;
use super::problem::ApiError;
use super::wire::{self, CloneRequest, PodOperation, Problem, RestorePreview, RestoreRequest};
use crate::service::{self, Consent};

fn snapshot_id(text: &str) -> Result<SnapshotId, Error> {
    text.parse().map_err(|e: perennial_core::id::ParseIdError| {
        Error::invalid("snapshotId", e.to_string(), "list them: perennial snapshot ls")
    })
}

/// Replaces the pod's data, or the parts of it that are named, by a snapshot, after a safety snapshot.
#[utoipa::path(post, path = "/api/v1/pods/{id}/restore", operation_id = "pod_restore", tag = "pods",
    request_body = RestoreRequest,
    params(("id" = String, Path, description = "The pod's id."),
        ("Idempotency-Key" = Option<String>, Header, description = "Makes the request repeatable.")),
    responses((status = 200, body = RestorePreview, description = "A dry run: nothing was done."),
        (status = 202, body = PodOperation), (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn restore(
    State(state): State<ApiState>,
    Id(id): Id<PodId>,
    action: Action<RestoreRequest>,
) -> Result<Response, ApiError> {
    let body = &action.body;
    if !body.dry_run
        && let Some(answer) = action.replay(&state).await?
    {
        return Ok(answer);
    }
    let extra = match body.extra {
        Some(wire::Extra::Keep) => Extra::Keep,
        Some(wire::Extra::Remove) | None => Extra::Remove,
    };
    let parts = Parts::new(body.volumes.clone().unwrap_or_default(), body.paths.clone().unwrap_or_default(), extra)?;
    if body.extra.is_some() && parts.is_none() {
        let hint = "name volumes or paths, or leave it out";
        return Err(Error::invalid("extra", "is said of parts, and none are named", hint).into());
    }
    let wanted = (snapshot_id(&body.snapshot_id)?, parts);
    if body.dry_run {
        let preview = state.app.restore_preview(action.caller(), id, wanted).await?;
        let answer = RestorePreview {
            dry_run: true,
            snapshot_id: body.snapshot_id.clone(),
            compared_with: preview.compared_with.as_ref().map(|row| row.id.to_string()),
            compared_at: preview.compared_with.and_then(|row| row.captured_at),
            changes: preview.changes.iter().map(difference).collect(),
            complete: preview.complete,
        };
        return Ok(axum::Json(answer).into_response());
    }
    let consent = Consent { confirm: body.confirm.clone(), accept_loss: body.accept_loss.clone() };
    let done = state.app.restore(action.request(), id, wanted, &consent).await;
    action.answer(&state, done).await
}

/// Makes a pod that is a copy of this one, from a snapshot of it or as it is now, and starts it.
#[utoipa::path(post, path = "/api/v1/pods/{id}/clone", operation_id = "pod_clone", tag = "pods",
    request_body = CloneRequest,
    params(("id" = String, Path, description = "The pod's id."),
        ("Idempotency-Key" = Option<String>, Header, description = "Makes the request repeatable.")),
    responses((status = 202, body = PodOperation), (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn clone_pod(
    State(state): State<ApiState>,
    Id(id): Id<PodId>,
    action: Action<CloneRequest>,
) -> Result<Response, ApiError> {
    if let Some(answer) = action.replay(&state).await? {
        return Ok(answer);
    }
    let body = &action.body;
    let clone = service::CloneRequest {
        name: PodName::parse(&body.name)?,
        snapshot: body.snapshot_id.as_deref().map(snapshot_id).transpose()?,
        identity: if body.keep_identity { Identity::Kept } else { Identity::Renewed },
    };
    let done = state.app.clone_pod(action.request(), id, &clone).await;
    action.answer(&state, done).await
}
