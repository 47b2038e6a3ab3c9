//! Routes of the audit trail: pages, and a stream that can be resumed.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::IntoResponse as _;
use axum::response::Response;
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use perennial_core::Error;
use perennial_core::id::PodId;
use perennial_core::operation as domain;
use perennial_core::spec::TenantId;
use serde::Deserialize;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use utoipa::IntoParams;

use super::auth::Caller;
use super::extract::{Id, Query, cut, page};
use super::problem::ApiError;
use super::wire::{Event, List, Problem};
use super::{ApiState, convert};
use crate::service;
use crate::store::{Committed, EventFilter};

/// How often a stream says that it lives.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How often a stream looks although this process committed nothing: another server may have.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// Events read at once.
const BATCH: u32 = 256;

/// Selects events.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct EventQuery {
    /// Only after the event of this number.
    after: Option<String>,
    /// Most items of the page, 1 to 1000; 100 when left out.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
    /// Only of this pod.
    pod: Option<String>,
    /// Only this tenant's.
    tenant: Option<String>,
}

/// Selects events of one pod.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct StreamQuery {
    /// Only after the event of this number; left out, only what happens from now on.
    after: Option<String>,
    /// Only of this pod.
    pod: Option<String>,
    /// Only this tenant's.
    tenant: Option<String>,
}

fn number(field: &str, text: Option<&str>) -> Result<Option<i64>, Error> {
    let Some(text) = text else { return Ok(None) };
    let good = text.parse::<i64>().ok().filter(|n| *n >= 0);
    good.map(Some).ok_or_else(|| Error::invalid(field, "is not the number of an event", "use 0 for all"))
}

fn filter(pod: Option<&str>, tenant: Option<&str>) -> Result<EventFilter, Error> {
    let pod = pod.map(|p| p.parse::<PodId>().map_err(|e| Error::invalid("pod", e.to_string(), "perennial pod ls")));
    Ok(EventFilter { pod: pod.transpose()?, tenant: tenant.map(TenantId::parse).transpose()?, within: None })
}

async fn listed(
    state: &ApiState,
    caller: &service::Caller,
    filter: &EventFilter,
    (after, limit): (Option<String>, Option<u32>),
) -> Result<axum::Json<List<Event>>, ApiError> {
    let after = number("after", after.as_deref())?.unwrap_or_default();
    let (page, wanted) = page(None, limit)?;
    let mut found = state.app.events(caller, after, filter, page.limit).await?;
    let next = cut(&mut found, wanted, |e| e.id.to_string());
    Ok(axum::Json(List { items: found.iter().map(convert::event).collect(), next }))
}

/// Lists events, oldest first.
#[utoipa::path(get, path = "/api/v1/events", operation_id = "event_list", tag = "events", params(EventQuery),
    responses((status = 200, body = List<Event>), (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn list(
    State(state): State<ApiState>,
    Caller(caller): Caller,
    Query(query): Query<EventQuery>,
) -> Result<axum::Json<List<Event>>, ApiError> {
    let filter = filter(query.pod.as_deref(), query.tenant.as_deref())?;
    listed(&state, &caller, &filter, (query.after, query.limit)).await
}

/// Lists a pod's events, oldest first.
#[utoipa::path(get, path = "/api/v1/pods/{id}/events", operation_id = "pod_events", tag = "events",
    params(("id" = String, Path, description = "The pod's id."), super::snapshots::PageQuery),
    responses((status = 200, body = List<Event>), (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn of_pod(
    State(state): State<ApiState>,
    Caller(caller): Caller,
    Id(id): Id<PodId>,
    Query(query): Query<super::snapshots::PageQuery>,
) -> Result<axum::Json<List<Event>>, ApiError> {
    state.app.pod(&caller, id).await?;
    let filter = EventFilter { pod: Some(id), ..EventFilter::default() };
    listed(&state, &caller, &filter, (query.after, query.limit)).await
}

/// Streams events as they happen. `Last-Event-ID` resumes after that event without a gap.
#[utoipa::path(get, path = "/api/v1/events/stream", operation_id = "event_stream", tag = "events",
    params(StreamQuery, ("Last-Event-ID" = Option<String>, Header, description = "The last event that was seen.")),
    responses((status = 200, body = String, content_type = "text/event-stream"),
        (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn stream(
    State(state): State<ApiState>,
    Caller(caller): Caller,
    Query(query): Query<StreamQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let filter = filter(query.pod.as_deref(), query.tenant.as_deref())?;
    let resumed = headers.get("last-event-id").map(|v| v.to_str().unwrap_or_default());
    let after = match (number("Last-Event-ID", resumed)?, number("after", query.after.as_deref())?) {
        (Some(last), _) | (None, Some(last)) => last,
        (None, None) => state.app.store.event_last().await.map_err(Error::from)?,
    };
    // Refuses what the caller may not see before the stream begins.
    caller.within(filter.tenant.as_ref())?;
    let commits = state.app.store.subscribe();
    let tail = Tail { state, caller, filter, after, commits, ready: VecDeque::new() };
    let stream = futures::stream::unfold(tail, |mut tail| async move {
        let event = tail.next().await?;
        Some((Ok::<_, Infallible>(event), tail))
    });
    Ok(Sse::new(stream).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}

/// Follows the trail: reads what is there, then waits for a commit and reads again.
struct Tail {
    state: ApiState,
    caller: service::Caller,
    filter: EventFilter,
    after: i64,
    commits: broadcast::Receiver<std::sync::Arc<Committed>>,
    ready: VecDeque<domain::Event>,
}

impl Tail {
    /// The next event; `None` ends the stream, and the client resumes elsewhere.
    async fn next(&mut self) -> Option<SseEvent> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                self.after = event.id;
                let wire = convert::event(&event);
                let sse = SseEvent::default().id(event.id.to_string()).event(wire.kind.clone());
                return sse.json_data(&wire).ok();
            }
            match self.state.app.access.again(&self.caller).await {
                Ok(caller) => self.caller = caller,
                Err(_) => return None,
            }
            match self.state.app.events(&self.caller, self.after, &self.filter, BATCH).await {
                Ok(events) => self.ready.extend(events),
                Err(error) => {
                    tracing::warn!(%error, "read events for a stream");
                    return None;
                }
            }
            if self.ready.is_empty() && !self.wait().await {
                return None;
            }
        }
    }

    /// Waits until there may be more; `false` when the server stops.
    async fn wait(&mut self) -> bool {
        let look = tokio::time::Instant::now() + LOOK_AGAIN;
        loop {
            tokio::select! {
                commit = self.commits.recv() => match commit {
                    Ok(commit) if commit.event.is_some() => return true,
                    Ok(_) => {}
                    Err(RecvError::Lagged(_)) => return true,
                    Err(RecvError::Closed) => return false,
                },
                () = tokio::time::sleep_until(look) => return true,
                () = self.state.stopped() => return false,
            }
        }
    }
}
