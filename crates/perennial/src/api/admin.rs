//! Routes of administrators.

use axum::extract::State;
use axum::response::Response;
use perennial_core::Error;
use perennial_core::cleanup::{Item, Step};
use perennial_core::engine::Owned;
use perennial_core::id::{DeliveryId, PodId};
use perennial_core::orphans::{Compared, ComparedSet};
use perennial_core::pod::Pod;
use perennial_core::spec::TenantId;
use perennial_core::subscription::Subscription;
use perennial_core::volume::SetState;
use serde::Deserialize;
use utoipa::IntoParams;

use super::ApiState;
use super::action::Action;
use super::auth::Caller;
use super::extract::{Id, Json, Query, cursor, cut, page};
use super::pods::confirming;
use super::problem::ApiError;
use super::subscriptions::state_shown;
use super::wire::{
    AdminAction, AdminActionRequest, AdminPod, CleanupItem, CleanupReport, CleanupRequest, CleanupStep, ConfirmRequest,
    DebugPod, DebugReport, DebugSet, Delivery, DeliveryState, FileSystem, List, OrphanKind, OrphanThing, PodOperation,
    Problem, SetRecord,
};
use crate::service::{self, Cleanup, Consent};
use crate::store::{self, PodFilter, Visibility};

/// Selects pods.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct AdminPodQuery {
    /// Only this tenant's.
    tenant: Option<String>,
    /// The `next` of the page before.
    after: Option<String>,
    /// Most items of the page, 1 to 1000; 100 when left out.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
}

/// Selects messages.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct DeliveryQuery {
    /// Only in this state.
    #[param(inline)]
    state: Option<DeliveryState>,
    /// The `next` of the page before.
    after: Option<String>,
    /// Most items of the page, 1 to 1000; 100 when left out.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
}

/// Lists pods of all tenants, archived and deleted ones too, oldest first.
#[utoipa::path(get, path = "/api/v1/admin/pods", operation_id = "admin_pods", tag = "system", params(AdminPodQuery),
    responses((status = 200, body = List<AdminPod>), (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn pods(
    State(state): State<ApiState>,
    Caller(caller): Caller,
    Query(query): Query<AdminPodQuery>,
) -> Result<axum::Json<List<AdminPod>>, ApiError> {
    let (page, wanted) = page(cursor::<PodId>(query.after)?, query.limit)?;
    let tenant = query.tenant.as_deref().map(TenantId::parse).transpose()?;
    let filter = PodFilter { tenant, visibility: Visibility::All, ..PodFilter::default() };
    let mut found = state.app.admin_pods(&caller, filter, &page).await?;
    let next = cut(&mut found, wanted, |(pod, _)| pod.id.to_string());
    Ok(axum::Json(List { items: found.iter().map(listed).collect(), next }))
}

fn listed((pod, subscription): &(Pod, Option<Subscription>)) -> AdminPod {
    AdminPod {
        id: pod.id.to_string(),
        name: pod.name.to_string(),
        tenant: pod.tenant.to_string(),
        desired: pod.desired.into(),
        phase: pod.phase.into(),
        plan: pod.spec.plan.as_ref().map(|plan| plan.path.to_string()),
        subscription: subscription.as_ref().map(|subscription| subscription.id.to_string()),
        subscription_state: subscription.as_ref().map(|subscription| state_shown(subscription.standing.state)),
        disk: pod.spec.resources.disk,
        created_at: pod.created_at,
        purge_at: pod.trash.as_ref().and_then(|trash| trash.purge_at),
    }
}

/// Compares the database with the engine: pods, containers, volume sets, and what belongs to no pod. Nothing is done about it.
#[utoipa::path(get, path = "/api/v1/admin/pods/debug", operation_id = "admin_debug", tag = "system",
    responses((status = 200, body = DebugReport), (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn debug(State(state): State<ApiState>, Caller(caller): Caller) -> Result<axum::Json<DebugReport>, ApiError> {
    let debugged = state.app.admin_debug(&caller).await?;
    let pods = debugged.pods.iter().zip(&debugged.comparison.pods).zip(&debugged.usage);
    let pods = pods.map(|((pod, compared), usage)| shown(pod, compared, usage.as_ref()));
    Ok(axum::Json(DebugReport {
        pods: pods.collect(),
        orphans: debugged.comparison.orphans.iter().map(|orphan| thing(&orphan.what)).collect(),
        suspicion: debugged.comparison.suspicion,
        file_systems: debugged.file_systems.iter().map(file_system).collect(),
    }))
}

fn file_system(found: &service::FileSystem) -> FileSystem {
    let space = found.space.as_ref().ok();
    FileSystem {
        uses: found.uses.iter().map(|what| (*what).to_owned()).collect(),
        path: found.path.display().to_string(),
        total_bytes: space.map(|space| space.total),
        free_bytes: space.map(|space| space.free),
        problem: found.space.as_ref().err().cloned(),
    }
}

fn shown(pod: &Pod, compared: &Compared, usage: Option<&service::Usage>) -> DebugPod {
    DebugPod {
        id: pod.id.to_string(),
        name: pod.name.to_string(),
        tenant: pod.tenant.to_string(),
        desired: pod.desired.into(),
        phase: pod.phase.into(),
        container: pod.container.as_ref().map(|container| container.id.clone()),
        containers_found: compared.containers.clone(),
        sets: compared.sets.iter().map(set).collect(),
        disk: pod.spec.resources.disk,
        used_bytes: usage.map(|usage| usage.bytes),
        used_at: usage.map(|usage| usage.at),
        differences: compared.differences.clone(),
    }
}

fn set(set: &ComparedSet) -> DebugSet {
    let recorded = |state| match state {
        SetState::Preparing => SetRecord::Preparing,
        SetState::Complete => SetRecord::Complete,
        SetState::Retired => SetRecord::Retired,
        SetState::Quarantined => SetRecord::Quarantined,
    };
    DebugSet {
        number: set.number,
        backend: set.backend.into(),
        recorded: set.recorded.map(recorded),
        found: set.is_there,
    }
}

fn thing(owned: &Owned) -> OrphanThing {
    match owned {
        Owned::Container { pod, id } => OrphanThing {
            kind: OrphanKind::Container,
            pod: pod.to_string(),
            container: Some(id.clone()),
            set: None,
            backend: None,
        },
        Owned::Set { pod, number, backend } => OrphanThing {
            kind: OrphanKind::Set,
            pod: pod.to_string(),
            container: None,
            set: Some(*number),
            backend: Some((*backend).into()),
        },
    }
}

/// Says what a clean-up of orphans would do, or carries out exactly that: first they are quarantined, and after a week they can be deleted.
#[utoipa::path(post, path = "/api/v1/admin/pods/cleanup-orphaned", operation_id = "admin_cleanup", tag = "system",
    request_body = Option<CleanupRequest>,
    responses((status = 200, body = CleanupReport), (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn cleanup(
    State(state): State<ApiState>,
    Json { value: request, caller, .. }: Json<CleanupRequest>,
) -> Result<axum::Json<CleanupReport>, ApiError> {
    let id = |(at, text): (usize, &String)| {
        let wrong = |_| {
            Error::invalid(format!("pods[{at}]"), format!("{text:?} is no id of a pod"), "give it as the plan lists it")
        };
        text.parse::<PodId>().map_err(wrong)
    };
    let pods = request.pods.iter().enumerate().map(id).collect::<Result<Vec<_>, _>>()?;
    let done = state.app.cleanup_orphaned(&caller, &Cleanup { pods, plan: request.plan }).await?;
    let mut results = done.results.iter().flatten();
    Ok(axum::Json(CleanupReport {
        plan: done.hash,
        halted: done.plan.halted,
        done: done.results.is_some(),
        items: done
            .plan
            .items
            .iter()
            .map(|one| item(one, results.next().and_then(|result| result.clone().err())))
            .collect(),
    }))
}

fn item(item: &Item, problem: Option<String>) -> CleanupItem {
    let Item { orphan, step, reason } = item;
    let quarantine = orphan.noted.quarantine.as_ref();
    CleanupItem {
        pod: orphan.noted.pod.to_string(),
        things: orphan.things.iter().map(thing).collect(),
        first_seen_at: orphan.noted.first_seen_at,
        quarantined_at: quarantine.map(|quarantine| quarantine.at),
        kept_until: quarantine.map(|quarantine| quarantine.until),
        step: match step {
            Step::Keep => CleanupStep::Keep,
            Step::Quarantine => CleanupStep::Quarantine,
            Step::Delete => CleanupStep::Delete,
        },
        reason: reason.clone(),
        problem,
    }
}

/// Resets somebody's pod, after a safety snapshot; its owners are written to.
#[utoipa::path(post, path = "/api/v1/admin/pods/{id}/reset", operation_id = "admin_pod_reset", tag = "system",
    request_body = ConfirmRequest,
    params(("id" = String, Path, description = "The pod's id."),
        ("Idempotency-Key" = Option<String>, Header, description = "Makes the request repeatable.")),
    responses((status = 202, body = PodOperation), (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn reset(
    State(state): State<ApiState>,
    Id(id): Id<PodId>,
    action: Action<ConfirmRequest>,
) -> Result<Response, ApiError> {
    state.app.require_admin(action.caller())?;
    if let Some(answer) = action.replay(&state).await? {
        return Ok(answer);
    }
    let done = state.app.reset(action.request(), id, &confirming(&action.body)).await;
    action.answer(&state, done).await
}

/// Does something with somebody's pod. What is deleted can be brought back until its undelete window ends.
#[utoipa::path(post, path = "/api/v1/admin/pods/{id}/action", operation_id = "admin_pod_action", tag = "system",
    request_body = AdminActionRequest,
    params(("id" = String, Path, description = "The pod's id."),
        ("Idempotency-Key" = Option<String>, Header, description = "Makes the request repeatable.")),
    responses((status = 202, body = PodOperation), (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn act(
    State(state): State<ApiState>,
    Id(id): Id<PodId>,
    action: Action<AdminActionRequest>,
) -> Result<Response, ApiError> {
    state.app.require_admin(action.caller())?;
    if let Some(answer) = action.replay(&state).await? {
        return Ok(answer);
    }
    let (app, request) = (&state.app, action.request());
    let consent = Consent { confirm: action.body.confirm.clone(), accept_loss: None };
    let done = match action.body.action {
        AdminAction::Restart => app.restart(request, id).await,
        AdminAction::Start => app.start(request, id).await,
        AdminAction::Stop => app.stop(request, id, &Consent::default()).await,
        AdminAction::Reset => app.reset(request, id, &consent).await,
        AdminAction::Delete => app.delete_confirmed(request, id, &consent).await,
    };
    action.answer(&state, done).await
}

/// Lists what people and programs were told, oldest first.
#[utoipa::path(get, path = "/api/v1/admin/deliveries", operation_id = "delivery_list", tag = "system",
    params(DeliveryQuery), responses((status = 200, body = List<Delivery>), (status = "4XX", body = Problem),
        (status = "5XX", body = Problem)))]
pub async fn deliveries(
    State(state): State<ApiState>,
    Caller(caller): Caller,
    Query(query): Query<DeliveryQuery>,
) -> Result<axum::Json<List<Delivery>>, ApiError> {
    let (page, wanted) = page(cursor::<DeliveryId>(query.after)?, query.limit)?;
    let of = query.state.map(|state| match state {
        DeliveryState::Pending => store::DeliveryState::Pending,
        DeliveryState::Sent => store::DeliveryState::Sent,
        DeliveryState::Failed => store::DeliveryState::Failed,
    });
    let mut found = state.app.deliveries(&caller, of, &page).await?;
    let next = cut(&mut found, wanted, |delivery| delivery.id.to_string());
    Ok(axum::Json(List { items: found.into_iter().map(delivery).collect(), next }))
}

fn delivery(row: store::Delivery) -> Delivery {
    Delivery {
        id: row.id.to_string(),
        event: row.event,
        kind: row.kind,
        tenant: row.tenant.to_string(),
        pod: row.pod.map(|pod| pod.to_string()),
        target: row.target,
        state: match row.state {
            store::DeliveryState::Pending => DeliveryState::Pending,
            store::DeliveryState::Sent => DeliveryState::Sent,
            store::DeliveryState::Failed => DeliveryState::Failed,
        },
        tries: row.tries,
        problem: row.problem,
        created_at: row.created_at,
        next_at: row.next_at,
        ended_at: row.ended_at,
    }
}
