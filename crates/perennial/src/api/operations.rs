//! Routes of operations; waiting for their end.

use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use perennial_core::Error;
use perennial_core::id::{OperationId, PodId};
use perennial_core::operation as domain;
use serde::Deserialize;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;
use utoipa::IntoParams;

use super::ApiState;
use super::action::Action;
use super::auth::Caller;
use super::extract::{Id, Query, cursor, cut, page};
use super::problem::ApiError;
use super::snapshots::PageQuery;
use super::wire::{List, Nothing, Operation, PodOperation, Problem};
use crate::service;

/// Longest wait, in seconds: below what proxies usually allow.
const WAIT_MAX: u64 = 60;
/// How often a waiting request looks although this process committed nothing: another server may have.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// How long to wait.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct WaitQuery {
    /// Waits so long for the end, such as `30s` or `500ms`; at most 60s.
    #[param(pattern = "^[0-9]+(ms|s|m)?$", example = "30s")]
    wait: Option<String>,
}

fn parse_wait(text: &str) -> Option<Duration> {
    let (number, unit) = match text.find(|c: char| !c.is_ascii_digit()) {
        Some(at) => text.split_at(at),
        None => (text, "s"),
    };
    let number: u64 = number.parse().ok()?;
    let wait = match unit {
        "ms" => Duration::from_millis(number),
        "s" => Duration::from_secs(number),
        "m" => Duration::from_secs(number.checked_mul(60)?),
        _ => return None,
    };
    Some(wait.min(Duration::from_secs(WAIT_MAX)))
}

/// Reads an operation; with `wait`, answers when it ends or the time is over.
#[utoipa::path(get, path = "/api/v1/operations/{id}", operation_id = "operation_show", tag = "operations",
    params(("id" = String, Path, description = "The operation's id."), WaitQuery),
    responses((status = 200, body = Operation), (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn show(
    State(state): State<ApiState>,
    Caller(caller): Caller,
    Id(id): Id<OperationId>,
    Query(query): Query<WaitQuery>,
) -> Result<axum::Json<Operation>, ApiError> {
    let wait = query.wait.as_deref().map(|text| {
        parse_wait(text).ok_or_else(|| Error::invalid("wait", "is not a time", "write seconds, such as 30s"))
    });
    let wait = wait.transpose()?.unwrap_or_default();
    let operation = ended(&state, &caller, id, Instant::now() + wait).await?;
    Ok(axum::Json(state.shown(&operation)))
}

/// The operation when it has ended, or as it stands when the time is over.
async fn ended(
    state: &ApiState,
    caller: &service::Caller,
    id: OperationId,
    until: Instant,
) -> Result<domain::Operation, ApiError> {
    // Subscribed before the first look, so that a commit between look and wait is not missed.
    let mut commits = state.app.store.subscribe();
    loop {
        let caller = state.app.access.again(caller).await?;
        let operation = state.app.operation(&caller, id).await?;
        if operation.state.is_terminal() || Instant::now() >= until || state.stopping() {
            return Ok(operation);
        }
        let look = until.min(Instant::now() + LOOK_AGAIN);
        loop {
            tokio::select! {
                commit = commits.recv() => match commit {
                    Ok(commit) if commit.operations.contains(&id) => break,
                    Ok(_) => {}
                    Err(RecvError::Lagged(_) | RecvError::Closed) => break,
                },
                () = tokio::time::sleep_until(look) => break,
                () = state.stopped() => break,
            }
        }
    }
}

/// Lists a pod's operations, newest first.
#[utoipa::path(get, path = "/api/v1/pods/{id}/operations", operation_id = "pod_operations", tag = "operations",
    params(("id" = String, Path, description = "The pod's id."), PageQuery),
    responses((status = 200, body = List<Operation>), (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn list(
    State(state): State<ApiState>,
    Caller(caller): Caller,
    Id(id): Id<PodId>,
    Query(query): Query<PageQuery>,
) -> Result<axum::Json<List<Operation>>, ApiError> {
    let (page, wanted) = page(cursor::<OperationId>(query.after)?, query.limit)?;
    let mut found = state.app.operations(&caller, id, &page).await?;
    let next = cut(&mut found, wanted, |o| o.id.to_string());
    Ok(axum::Json(List { items: found.iter().map(|o| state.shown(o)).collect(), next }))
}

/// Cancels an operation that has not passed its point of no return.
#[utoipa::path(post, path = "/api/v1/operations/{id}/cancel", operation_id = "operation_cancel", tag = "operations",
    request_body = Option<Nothing>,
    params(("id" = String, Path, description = "The operation's id.")),
    responses((status = 202, body = PodOperation), (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn cancel(
    State(state): State<ApiState>,
    Id(id): Id<OperationId>,
    action: Action<Nothing>,
) -> Result<Response, ApiError> {
    if let Some(answer) = action.replay(&state).await? {
        return Ok(answer);
    }
    let done = state.app.cancel(action.request(), id).await;
    if done.is_ok() {
        // It is cancelled by the record; this only ends the work in hand sooner.
        state.board.cancel(id);
    }
    action.answer(&state, done).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_as_people_write_them() {
        assert_eq!(parse_wait("30s"), Some(Duration::from_secs(30)));
        assert_eq!(parse_wait("30"), Some(Duration::from_secs(30)));
        assert_eq!(parse_wait("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(parse_wait("10m"), Some(Duration::from_secs(WAIT_MAX)));
        for text in ["", "s", "-1s", "1h", "99999999999999999999s", "1 s"] {
            assert_eq!(parse_wait(text), None, "{text}");
        }
    }
}
