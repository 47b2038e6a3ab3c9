//! The route that takes archives in.

use axum::body::Body;
use axum::extract::{Request as HttpRequest, State};
use axum::response::Response;
use perennial_core::id::PodId;
use perennial_core::pod::Import;
use serde::Deserialize;
use utoipa::IntoParams;

use super::ApiState;
use super::action::Action;
use super::extract::{Id, Query};
use super::problem::ApiError;
use super::wire::{Problem, SnapshotOperation};

/// Says what becomes of an archive.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ImportQuery {
    /// The path of the pod that the archive belongs below, everything else being as in the pod's newest verified snapshot.
    /// When left out, the archive is of the whole pod, as an export of `/` is.
    into: Option<String>,
    /// Take devices, which are refused otherwise.
    #[serde(default)]
    allow_devices: bool,
    /// What is said about the snapshot; one line.
    #[serde(default)]
    comment: String,
}

/// Makes a verified snapshot of a pod out of an archive: tar, tar.gz or tar.zst, recognised by its content.
///
/// The body is looked at while it comes. An archive that is refused leaves nothing behind. Nothing of the pod changes; a
/// restore of the snapshot is a step of its own.
#[utoipa::path(post, path = "/api/v1/pods/{id}/snapshots/import", operation_id = "snapshot_import", tag = "snapshots",
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    params(("id" = String, Path, description = "The pod's id."), ImportQuery,
        ("Idempotency-Key" = Option<String>, Header, description = "Makes the request repeatable; the archive is not \
            compared.")),
    responses((status = 202, body = SnapshotOperation), (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn import(
    State(state): State<ApiState>,
    Id(id): Id<PodId>,
    Query(query): Query<ImportQuery>,
    request: HttpRequest,
) -> Result<Response, ApiError> {
    let (mut parts, body) = request.into_parts();
    let ImportQuery { into, allow_devices, comment } = query;
    let action = Action::of_stream(&mut parts, &state, Import { into, allow_devices, comment }).await?;
    if let Some(answer) = action.replay(&state).await? {
        return Ok(answer);
    }
    let stream = Body::into_data_stream(body);
    let done = state.app.snapshot_import(action.request(), id, action.body.clone(), stream).await;
    action.answer(&state, done).await
}
