//! Routes of subscriptions.
//!
//! What is asked of one twice is done once, so that these answers are not recorded under idempotency keys; those of its pod are.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use perennial_core::Error;
use perennial_core::id::SubscriptionId;
use perennial_core::planned::PlanPath;
use perennial_core::service::PlanName;
use perennial_core::spec::{PodName, TenantId};
use perennial_core::subscription::{PodGone, Resume, SubscriptionState as Holds};
use serde::Deserialize;
use utoipa::IntoParams;

use super::action::Action;
use super::auth::Caller;
use super::extract::{Id, Json, Query, cursor, cut, page};
use super::pods::confirming;
use super::problem::ApiError;
use super::wire::{
    ChangePlan, ConfirmRequest, CreateSubscription, List, Nothing, PodOperation, Problem, RenewSubscription,
    Subscription, SubscriptionOperation, SubscriptionState,
};
use super::{ApiState, convert};
use crate::service::{Subscribe, Subscribed, Until};
use crate::store::SubscriptionFilter;

/// Selects subscriptions.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct SubscriptionQuery {
    /// Only this tenant's.
    tenant: Option<String>,
    /// Only of this name.
    name: Option<String>,
    /// Only in this state.
    #[param(inline)]
    state: Option<SubscriptionState>,
    /// The `next` of the page before.
    after: Option<String>,
    /// Most items of the page, 1 to 1000; 100 when left out.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
}

const fn state_of(state: SubscriptionState) -> Holds {
    match state {
        SubscriptionState::Active => Holds::Active,
        SubscriptionState::Expired => Holds::Expired,
        SubscriptionState::Cancelled => Holds::Cancelled,
    }
}

pub(super) const fn state_shown(state: Holds) -> SubscriptionState {
    match state {
        Holds::Active => SubscriptionState::Active,
        Holds::Expired => SubscriptionState::Expired,
        Holds::Cancelled => SubscriptionState::Cancelled,
    }
}

fn shown(subscribed: &Subscribed) -> Subscription {
    let Subscribed { subscription, pod, .. } = subscribed;
    let (standing, resets) = (&subscription.standing, pod.as_ref().map(|pod| pod.resets).unwrap_or_default());
    Subscription {
        id: subscription.id.to_string(),
        name: subscription.name.to_string(),
        tenant: subscription.tenant.to_string(),
        plan: format!("{}/{}", subscription.service, standing.plan),
        state: state_shown(standing.state),
        pod: pod.as_ref().map(|pod| pod.id.to_string()),
        pod_phase: pod.as_ref().map(|pod| pod.phase.into()),
        expires_at: standing.expires_at,
        ended_at: standing.end.map(|end| end.at),
        starts_again: standing.end.map(|end| end.resume == Resume::Start),
        trash_at: standing.end.map(|end| end.trash_at),
        warnings: standing.end.map_or(0, |end| end.warned),
        purge_at: standing.end.and_then(|end| end.purge_at),
        reset_count: resets.count,
        last_reset_at: resets.last_at,
        last_reset_snapshot: resets.kept_in.map(|id| id.to_string()),
        created_at: subscription.created_at,
    }
}

fn answer(subscribed: &Subscribed) -> axum::Json<SubscriptionOperation> {
    let operation = subscribed.operation.as_ref().map(convert::operation);
    axum::Json(SubscriptionOperation { subscription: shown(subscribed), operation })
}

/// Subscribes to a plan: a pod of it is made and started. An active subscription of this name and plan is the answer.
#[utoipa::path(post, path = "/api/v1/subscriptions", operation_id = "subscription_create", tag = "subscriptions",
    request_body = CreateSubscription,
    responses((status = 200, body = SubscriptionOperation, description = "It was there already."),
        (status = 202, body = SubscriptionOperation), (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn create(State(state): State<ApiState>, body: Json<CreateSubscription>) -> Result<Response, ApiError> {
    body.is_there()?;
    let Json { value, caller, .. } = body;
    let wanted = Subscribe {
        name: PodName::parse(&value.name)?,
        plan: PlanPath::parse(&value.plan)?,
        tenant: value.tenant.as_deref().map(TenantId::parse).transpose()?,
        expires_at: value.expires_at,
    };
    let done = state.app.subscribe(&caller, &wanted).await?;
    let status = if done.operation.is_some() { StatusCode::ACCEPTED } else { StatusCode::OK };
    Ok((status, answer(&done)).into_response())
}

/// Lists subscriptions, oldest first.
#[utoipa::path(get, path = "/api/v1/subscriptions", operation_id = "subscription_list", tag = "subscriptions",
    params(SubscriptionQuery), responses((status = 200, body = List<Subscription>), (status = "4XX", body = Problem),
        (status = "5XX", body = Problem)))]
pub async fn list(
    State(state): State<ApiState>,
    Caller(caller): Caller,
    Query(query): Query<SubscriptionQuery>,
) -> Result<axum::Json<List<Subscription>>, ApiError> {
    let (page, wanted) = page(cursor::<SubscriptionId>(query.after)?, query.limit)?;
    let filter = SubscriptionFilter {
        tenant: query.tenant.as_deref().map(TenantId::parse).transpose()?,
        name: query.name.as_deref().map(PodName::parse).transpose()?,
        state: query.state.map(state_of),
        within: None,
    };
    let mut found = state.app.subscriptions(&caller, filter, &page).await?;
    let next = cut(&mut found, wanted, |one| one.subscription.id.to_string());
    Ok(axum::Json(List { items: found.iter().map(shown).collect(), next }))
}

/// Reads a subscription.
#[utoipa::path(get, path = "/api/v1/subscriptions/{id}", operation_id = "subscription_show", tag = "subscriptions",
    params(("id" = String, Path, description = "The subscription's id.")),
    responses((status = 200, body = Subscription), (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn show(
    State(state): State<ApiState>,
    Caller(caller): Caller,
    Id(id): Id<SubscriptionId>,
) -> Result<axum::Json<Subscription>, ApiError> {
    Ok(axum::Json(shown(&state.app.subscription(&caller, id).await?)))
}

/// Ends a subscription: its pod is paused at once, and kept for 60 days.
#[utoipa::path(post, path = "/api/v1/subscriptions/{id}/cancel", operation_id = "subscription_cancel",
    tag = "subscriptions", request_body(content = Option<Nothing>),
    params(("id" = String, Path, description = "The subscription's id.")),
    responses((status = 202, body = SubscriptionOperation), (status = "4XX", body = Problem),
        (status = "5XX", body = Problem)))]
pub async fn cancel(
    State(state): State<ApiState>,
    Id(id): Id<SubscriptionId>,
    body: Json<Nothing>,
) -> Result<Response, ApiError> {
    let done = state.app.subscription_cancel(&body.caller, id).await?;
    Ok((StatusCode::ACCEPTED, answer(&done)).into_response())
}

/// Ends a subscription as if its time were over.
#[utoipa::path(post, path = "/api/v1/subscriptions/{id}/expire", operation_id = "subscription_expire",
    tag = "subscriptions", request_body(content = Option<Nothing>),
    params(("id" = String, Path, description = "The subscription's id.")),
    responses((status = 202, body = SubscriptionOperation), (status = "4XX", body = Problem),
        (status = "5XX", body = Problem)))]
pub async fn expire(
    State(state): State<ApiState>,
    Id(id): Id<SubscriptionId>,
    body: Json<Nothing>,
) -> Result<Response, ApiError> {
    let done = state.app.subscription_expire(&body.caller, id).await?;
    Ok((StatusCode::ACCEPTED, answer(&done)).into_response())
}

/// Brings a subscription back that has ended, with its pod as it was, or says until when an active one lasts.
#[utoipa::path(post, path = "/api/v1/subscriptions/{id}/renew", operation_id = "subscription_renew",
    tag = "subscriptions", request_body(content = Option<RenewSubscription>),
    params(("id" = String, Path, description = "The subscription's id.")),
    responses((status = 202, body = SubscriptionOperation), (status = "4XX", body = Problem),
        (status = "5XX", body = Problem)))]
pub async fn renew(
    State(state): State<ApiState>,
    Id(id): Id<SubscriptionId>,
    body: Json<RenewSubscription>,
) -> Result<Response, ApiError> {
    let RenewSubscription { expires_at, new_pod } = body.value;
    let until = expires_at.map_or(Until::AsBefore, Until::Now);
    let gone = if new_pod { PodGone::MakeNew } else { PodGone::Refuse };
    let done = state.app.subscription_renew(&body.caller, id, until, gone).await?;
    Ok((StatusCode::ACCEPTED, answer(&done)).into_response())
}

/// Makes the pod one of another plan of the same service; its data stays.
#[utoipa::path(post, path = "/api/v1/subscriptions/{id}/change-plan", operation_id = "subscription_change_plan",
    tag = "subscriptions", request_body = ChangePlan,
    params(("id" = String, Path, description = "The subscription's id.")),
    responses((status = 202, body = SubscriptionOperation), (status = "4XX", body = Problem),
        (status = "5XX", body = Problem)))]
pub async fn change_plan(
    State(state): State<ApiState>,
    Id(id): Id<SubscriptionId>,
    body: Json<ChangePlan>,
) -> Result<Response, ApiError> {
    body.is_there()?;
    let plan = PlanName::parse(&body.value.plan).map_err(|error| match error {
        Error::InvalidInput { .. } => {
            let hint = "write the name of a plan of the same service, such as pro; perennial service show lists them";
            Error::invalid("plan", "is not the name of a plan", hint)
        }
        other => other,
    })?;
    let done = state.app.subscription_change_plan(&body.caller, id, &plan).await?;
    Ok((StatusCode::ACCEPTED, answer(&done)).into_response())
}

/// Restarts the pod of a subscription, or starts it; its data stays.
#[utoipa::path(post, path = "/api/v1/subscriptions/{id}/restart-pod", operation_id = "subscription_restart_pod",
    tag = "subscriptions", request_body(content = Option<Nothing>),
    params(("id" = String, Path, description = "The subscription's id."),
        ("Idempotency-Key" = Option<String>, Header, description = "Makes the request repeatable.")),
    responses((status = 202, body = PodOperation), (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn restart_pod(
    State(state): State<ApiState>,
    Id(id): Id<SubscriptionId>,
    action: Action<Nothing>,
) -> Result<Response, ApiError> {
    if let Some(answer) = action.replay(&state).await? {
        return Ok(answer);
    }
    let done = state.app.subscription_restart(action.request(), id).await;
    action.answer(&state, done).await
}

/// Replaces the data of a subscription's pod by what its image holds, after a safety snapshot.
#[utoipa::path(post, path = "/api/v1/subscriptions/{id}/reset-pod", operation_id = "subscription_reset_pod",
    tag = "subscriptions", request_body = ConfirmRequest,
    params(("id" = String, Path, description = "The subscription's id."),
        ("Idempotency-Key" = Option<String>, Header, description = "Makes the request repeatable.")),
    responses((status = 202, body = PodOperation), (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn reset_pod(
    State(state): State<ApiState>,
    Id(id): Id<SubscriptionId>,
    action: Action<ConfirmRequest>,
) -> Result<Response, ApiError> {
    if let Some(answer) = action.replay(&state).await? {
        return Ok(answer);
    }
    let done = state.app.subscription_reset(action.request(), id, &confirming(&action.body)).await;
    action.answer(&state, done).await
}
