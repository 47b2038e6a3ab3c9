//! Routes of pods.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use perennial_core::Error;
use perennial_core::id::{PodId, SnapshotId};
use perennial_core::planned::PlanPath;
use perennial_core::pod::Pod;
use perennial_core::snapshot::Snapshot;
use perennial_core::spec::{PodName, TenantId};
use serde::Deserialize;
use utoipa::IntoParams;

use super::action::Action;
use super::auth::Caller;
use super::extract::{Id, Json, Query, cursor, cut, page};
use super::problem::ApiError;
use super::wire::{
    AcceptRequest, ConfirmRequest, CreatePod, List, MeasuredVolume, PatchPod, PodOperation, PodSecrets, PodStatus,
    PodVolume, Problem, Secret,
};
use super::{ApiState, convert, shown, wire};
use crate::service::{Consent, CreateRequest};
use crate::store::{HeadedPod, PodFilter, Visibility};

/// Which pods a list shows.
#[derive(Debug, Clone, Copy, Default, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Shown {
    /// Living pods.
    #[default]
    Living,
    /// Archived and deleted pods.
    Hidden,
    /// All.
    All,
}

/// Selects pods.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct PodQuery {
    /// Only this tenant's.
    tenant: Option<String>,
    /// Only of this name.
    name: Option<String>,
    /// Only in this phase.
    #[param(inline)]
    phase: Option<wire::Phase>,
    /// Living pods, archived and deleted ones, or all.
    #[param(inline)]
    visibility: Option<Shown>,
    /// The `next` of the page before.
    after: Option<String>,
    /// Most items of the page, 1 to 1000; 100 when left out.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
}

/// Makes a pod and starts it.
#[utoipa::path(post, path = "/api/v1/pods", operation_id = "pod_create", tag = "pods", request_body = CreatePod,
    params(("Idempotency-Key" = Option<String>, Header, description = "Makes the request repeatable.")),
    responses((status = 202, body = PodOperation), (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn create(State(state): State<ApiState>, action: Action<CreatePod>) -> Result<Response, ApiError> {
    if let Some(answer) = action.replay(&state).await? {
        return Ok(answer);
    }
    let body = &action.body;
    let from = body.from_snapshot.as_ref().map(|id| {
        id.parse::<SnapshotId>().map_err(|e| Error::invalid("fromSnapshot", e.to_string(), "perennial snapshot ls"))
    });
    let request = CreateRequest {
        name: PodName::parse(&body.name)?,
        tenant: body.tenant.as_deref().map(TenantId::parse).transpose()?,
        plan: body.plan.as_deref().map(PlanPath::parse).transpose()?,
        from_snapshot: from.transpose()?,
    };
    let done = state.app.create(action.request(), request, |base| convert::new_spec(body, base)).await;
    action.answer(&state, done).await
}

/// Lists pods, oldest first.
#[utoipa::path(get, path = "/api/v1/pods", operation_id = "pod_list", tag = "pods", params(PodQuery),
    responses((status = 200, body = List<wire::Pod>), (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn list(
    State(state): State<ApiState>,
    Caller(caller): Caller,
    Query(query): Query<PodQuery>,
) -> Result<Response, ApiError> {
    let (page, wanted) = page(cursor::<PodId>(query.after)?, query.limit)?;
    let filter = PodFilter {
        tenant: query.tenant.as_deref().map(TenantId::parse).transpose()?,
        name: query.name.as_deref().map(PodName::parse).transpose()?,
        phase: query.phase.map(Into::into),
        within: None,
        visibility: match query.visibility.unwrap_or_default() {
            Shown::Living => Visibility::Living,
            Shown::Hidden => Visibility::Hidden,
            Shown::All => Visibility::All,
        },
    };
    let mut heads = state.app.pod_heads(&caller, filter, &page).await?;
    let next = cut(&mut heads, wanted, |head| head.id.to_string());
    let mut items = state.pods.find(&heads);
    let missing = heads.iter().zip(&items).filter(|(_, item)| item.is_none());
    let missing: Vec<PodId> = missing.map(|(head, _)| head.id).collect();
    if !missing.is_empty() {
        let found = state.app.pods(&caller, &missing).await?;
        for HeadedPod { head, pod, latest } in found {
            let json = serde_json::to_string(&convert::pod(&pod, latest.as_ref(), &state.app.settings));
            let json: Arc<str> = json.map_err(unwritable)?.into();
            if let Some(place) = heads.iter().position(|h| h.id == head.id) {
                items[place] = Some(Arc::clone(&json));
            }
            state.pods.remember(head, json);
        }
    }
    // One that was purged meanwhile is left out.
    let items: Vec<Arc<str>> = items.into_iter().flatten().collect();
    let page = shown::page(&items, next.as_deref()).map_err(unwritable)?;
    Ok(([(header::CONTENT_TYPE, "application/json")], page).into_response())
}

fn unwritable(error: serde_json::Error) -> Error {
    Error::Internal { problem: format!("write the list: {error}") }
}

/// A pod with its version as `ETag`.
fn shown(state: &ApiState, pod: &Pod, latest: Option<&Snapshot>) -> Response {
    tagged(convert::pod(pod, latest, &state.app.settings), pod)
}

fn tagged(shown: wire::Pod, pod: &Pod) -> Response {
    let mut response = axum::Json(shown).into_response();
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{}\"", pod.version)) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

/// Reads a pod.
#[utoipa::path(get, path = "/api/v1/pods/{id}", operation_id = "pod_show", tag = "pods",
    params(("id" = String, Path, description = "The pod's id.")),
    responses((status = 200, body = wire::Pod, headers(("ETag" = String, description = "The version, for If-Match."))),
        (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn show(
    State(state): State<ApiState>,
    Caller(caller): Caller,
    Id(id): Id<PodId>,
) -> Result<Response, ApiError> {
    let (pod, latest) = state.app.pod(&caller, id).await?;
    let proof = state.app.store.proof_fetch(id).await.map_err(Error::from)?;
    let mut shown = convert::pod(&pod, latest.as_ref(), &state.app.settings);
    shown.proven_at = proof.and_then(|proof| proof.proven).map(|(_, at)| at);
    Ok(tagged(shown, &pod))
}

/// Reads what was made for a pod alone.
#[utoipa::path(get, path = "/api/v1/pods/{id}/secrets", operation_id = "pod_secrets", tag = "pods",
    params(("id" = String, Path, description = "The pod's id.")),
    responses((status = 200, body = PodSecrets), (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn secrets(
    State(state): State<ApiState>,
    Caller(caller): Caller,
    Id(id): Id<PodId>,
) -> Result<Response, ApiError> {
    let secrets = state.app.pod_secrets(&caller, id).await?;
    let secrets = secrets.iter().map(|(name, value)| (name.clone(), Secret(value.reveal().to_owned()))).collect();
    Ok(([(header::CACHE_CONTROL, "no-store")], axum::Json(PodSecrets { secrets })).into_response())
}

/// Changes a pod's specification; a restart applies it.
#[utoipa::path(patch, path = "/api/v1/pods/{id}", operation_id = "pod_patch", tag = "pods", request_body = PatchPod,
    params(("id" = String, Path, description = "The pod's id."),
        ("If-Match" = Option<String>, Header, description = "The ETag that was read; 412 when the pod changed since.")),
    responses((status = 200, body = wire::Pod), (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn patch(
    State(state): State<ApiState>,
    Id(id): Id<PodId>,
    headers: HeaderMap,
    body: Json<PatchPod>,
) -> Result<Response, ApiError> {
    body.is_there()?;
    let version = if_match(&headers)?;
    let change = |spec: &_| convert::patched_spec(spec, &body.value);
    let (pod, latest) = state.app.patch(&body.caller, id, version, change).await?;
    Ok(shown(&state, &pod, latest.as_ref()))
}

/// The version in `If-Match`; `None` for `*` and for none at all.
fn if_match(headers: &HeaderMap) -> Result<Option<i64>, ApiError> {
    let Some(value) = headers.get(header::IF_MATCH) else { return Ok(None) };
    let text = value.to_str().unwrap_or_default().trim();
    if text == "*" {
        return Ok(None);
    }
    let version = text.strip_prefix('"').and_then(|t| t.strip_suffix('"')).and_then(|t| t.parse().ok());
    version.map(Some).ok_or_else(|| {
        Error::invalid("If-Match", "is not an ETag of a pod", "send the ETag that GET answered, or *").into()
    })
}

fn accepting(body: &AcceptRequest) -> Consent {
    Consent { confirm: body.confirm.clone(), accept_loss: body.accept_loss.clone() }
}

pub(super) fn confirming(body: &ConfirmRequest) -> Consent {
    Consent { confirm: Some(body.confirm.clone()), accept_loss: body.accept_loss.clone() }
}

/// Defines the route of a verb: replay, do, answer.
macro_rules! verb {
    ($(#[$doc:meta])* $method:ident $path:literal $id:literal $name:ident($body:ty => $shown:ty) |$state:ident, $pod:ident, $action:ident| $done:expr) => {
        $(#[$doc])*
        #[utoipa::path($method, path = $path, operation_id = $id, tag = "pods",
            request_body(content = $shown),
            params(("id" = String, Path, description = "The pod's id."),
                ("Idempotency-Key" = Option<String>, Header, description = "Makes the request repeatable.")),
            responses((status = 202, body = PodOperation), (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
        pub async fn $name(
            State($state): State<ApiState>,
            Id($pod): Id<PodId>,
            $action: Action<$body>,
        ) -> Result<Response, ApiError> {
            if let Some(answer) = $action.replay(&$state).await? {
                return Ok(answer);
            }
            let done = $done.await;
            $action.answer(&$state, done).await
        }
    };
}

verb! {
    /// Starts a paused or stopped pod.
    post "/api/v1/pods/{id}/start" "pod_start" start(wire::Nothing => Option<wire::Nothing>)
    |state, id, action| state.app.start(action.request(), id)
}
verb! {
    /// Stops the container and keeps everything on the host.
    post "/api/v1/pods/{id}/pause" "pod_pause" pause(wire::Nothing => Option<wire::Nothing>)
    |state, id, action| state.app.pause(action.request(), id)
}
verb! {
    /// Stops and starts the container; a changed specification is applied.
    post "/api/v1/pods/{id}/restart" "pod_restart" restart(wire::Nothing => Option<wire::Nothing>)
    |state, id, action| state.app.restart(action.request(), id)
}
verb! {
    /// Captures, verifies, then releases the host.
    post "/api/v1/pods/{id}/stop" "pod_stop" stop(AcceptRequest => Option<AcceptRequest>)
    |state, id, action| state.app.stop(action.request(), id, &accepting(&action.body))
}
verb! {
    /// Stops and hides the pod, kept without a clock.
    post "/api/v1/pods/{id}/archive" "pod_archive" archive(AcceptRequest => Option<AcceptRequest>)
    |state, id, action| state.app.archive(action.request(), id, &accepting(&action.body))
}
verb! {
    /// Stops and hides the pod; it can be brought back until the undelete window ends.
    delete "/api/v1/pods/{id}" "pod_delete" delete(AcceptRequest => Option<AcceptRequest>)
    |state, id, action| state.app.delete(action.request(), id, &accepting(&action.body))
}
verb! {
    /// Brings an archived or deleted pod back to stopped.
    post "/api/v1/pods/{id}/undelete" "pod_undelete" undelete(wire::Nothing => Option<wire::Nothing>)
    |state, id, action| state.app.undelete(action.request(), id)
}
verb! {
    /// Replaces the data set by a fresh one, after a safety snapshot.
    post "/api/v1/pods/{id}/reset" "pod_reset" reset(ConfirmRequest => ConfirmRequest)
    |state, id, action| state.app.reset(action.request(), id, &confirming(&action.body))
}
verb! {
    /// Destroys the pod, its data and its snapshots.
    post "/api/v1/pods/{id}/purge" "pod_purge" purge(wire::PurgeRequest => wire::PurgeRequest)
    |state, id, action| async {
        let consent = Consent { confirm: Some(action.body.confirm.clone()), accept_loss: None };
        state.app.purge(action.request(), id, &consent).await
    }
}
/// Tells how a pod stands, in detail.
#[utoipa::path(get, path = "/api/v1/pods/{id}/status", operation_id = "pod_status", tag = "pods",
    params(("id" = String, Path, description = "The pod's id.")),
    responses((status = 200, body = PodStatus), (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn status(
    State(state): State<ApiState>,
    Caller(caller): Caller,
    Id(id): Id<PodId>,
) -> Result<axum::Json<PodStatus>, ApiError> {
    let (pod, _) = state.app.pod(&caller, id).await?;
    let work = state.app.operations_unfinished(&pod).await?;
    Ok(axum::Json(PodStatus {
        desired: pod.desired.into(),
        phase: pod.phase.into(),
        conditions: convert::conditions(&pod),
        container: state.app.container_of(&pod).await.map(|id| wire::Container { id }),
        operations: work.iter().map(|o| state.shown(o)).collect(),
        health: super::health::known(&pod),
        crashes: pod.crash.count,
        exit_code: pod.crash.exit_code,
        out_of_memory: pod.crash.oom,
        next_try_at: pod.retry.not_before.max(pod.crash.not_before),
        failed_tries: pod.retry.count,
        data_seen_at: pod.data_seen_at,
        system_layer_captured_at: pod.layer.as_ref().map(|l| l.captured_at),
    }))
}

/// Lists a pod's volumes and what they take up on the host; looks at every file of theirs.
#[utoipa::path(get, path = "/api/v1/pods/{id}/volumes", operation_id = "pod_volumes", tag = "pods",
    params(("id" = String, Path, description = "The pod's id.")),
    responses((status = 200, body = List<MeasuredVolume>), (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn volumes(
    State(state): State<ApiState>,
    Caller(caller): Caller,
    Id(id): Id<PodId>,
) -> Result<axum::Json<List<MeasuredVolume>>, ApiError> {
    let (pod, _) = state.app.pod(&caller, id).await?;
    let usage = state.app.volume_usage(&pod).await;
    let measured = |volume: PodVolume| {
        let used_bytes = usage.iter().find(|u| u.name == volume.name).and_then(|u| u.bytes);
        MeasuredVolume { volume, used_bytes }
    };
    let items = convert::volumes(&pod, &state.app.settings).into_iter().map(measured).collect();
    Ok(axum::Json(List { items, next: None }))
}
