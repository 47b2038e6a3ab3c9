//! The route of what a pod's program writes.

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use jiff::{SpanRelativeTo, Timestamp};
use perennial_core::Error;
use perennial_core::engine::{LogEnd, LogRange, LogReader, LogStamps};
use perennial_core::id::PodId;
use serde::Deserialize;
use utoipa::IntoParams;

use super::ApiState;
use super::auth::Caller;
use super::extract::{Id, Query};
use super::problem::ApiError;
use super::wire::Problem;

/// Selects what of it.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct LogQuery {
    /// Only so many lines at the end; all when left out.
    tail: Option<u32>,
    /// Only what was written since then: a time in RFC 3339, or how long ago, such as "10m" or "1h30m".
    since: Option<String>,
    /// Whether the answer goes on until the container ends.
    follow: Option<bool>,
    /// Whether each line begins with the time it was written, in RFC 3339, and a space.
    timestamps: Option<bool>,
}

fn range(query: &LogQuery, now: Timestamp) -> Result<LogRange, Error> {
    let until = if query.follow == Some(true) { LogEnd::Run } else { LogEnd::Now };
    let since = query.since.as_deref().map(|text| since(text, now)).transpose()?;
    let stamps = if query.timestamps == Some(true) { LogStamps::With } else { LogStamps::Without };
    Ok(LogRange { tail: query.tail, since, until, stamps })
}

/// A time, or how long before `now`.
fn since(text: &str, now: Timestamp) -> Result<Timestamp, Error> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    let span = text.parse::<jiff::Span>().and_then(|span| span.to_duration(SpanRelativeTo::days_are_24_hours()));
    let before = span.ok().filter(|ago| !ago.is_negative()).and_then(|ago| now.checked_sub(ago).ok());
    before.ok_or_else(|| {
        Error::invalid("since", "is neither a time nor how long ago", "write 2026-01-31T12:00:00Z, or 10m, 1h30m, 2d")
    })
}

/// Streams what the program of the pod's container wrote, output and error output in one, as it was written. Containers that
/// are gone took theirs with them. It breaks off where reading it fails, and when the server stops while it is followed.
#[utoipa::path(get, path = "/api/v1/pods/{id}/logs", operation_id = "pod_logs", tag = "pods",
    params(("id" = String, Path, description = "The pod's id."), LogQuery),
    responses((status = 200, body = String, content_type = "text/plain"),
        (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn logs(
    State(state): State<ApiState>,
    Caller(caller): Caller,
    Id(id): Id<PodId>,
    Query(query): Query<LogQuery>,
) -> Result<Response, ApiError> {
    let range = range(&query, state.app.clock.now())?;
    let reader = state.app.pod_logs(&caller, id, range).await?;
    let stream = futures::stream::unfold(Some((state, reader)), piece);
    let mut response = Body::from_stream(stream).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    // The bytes are whatever a pod wrote: a browser must not take them for a page.
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

type Reading = Option<(ApiState, Box<dyn LogReader>)>;

/// The next piece of the answer; after a failure there is none.
async fn piece(reading: Reading) -> Option<(std::io::Result<Bytes>, Reading)> {
    let (state, mut reader) = reading?;
    let next = tokio::select! {
        biased;
        () = state.stopped() => return Some((Err(std::io::Error::other("the server stops")), None)),
        next = reader.next() => next,
    };
    match next {
        Ok(Some(bytes)) => Some((Ok(bytes.into()), Some((state, reader)))),
        Ok(None) => None,
        Err(error) => {
            tracing::warn!(%error, "the log of a pod broke off");
            Some((Err(std::io::Error::other(error)), None))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_is_a_time_or_how_long_ago() {
        let now: Timestamp = "2026-01-10T12:00:00Z".parse().unwrap();
        for (text, expected) in [
            ("2026-01-10T11:00:00Z", "2026-01-10T11:00:00Z"),
            ("2026-01-10T12:00:00+02:00", "2026-01-10T10:00:00Z"),
            ("10m", "2026-01-10T11:50:00Z"),
            ("1h30m", "2026-01-10T10:30:00Z"),
            ("2d", "2026-01-08T12:00:00Z"),
            ("0s", "2026-01-10T12:00:00Z"),
        ] {
            assert_eq!(since(text, now), Ok(expected.parse().unwrap()), "{text}");
        }
        for text in ["", "yesterday", "10", "-5m", "2026-01-10", "99999999999d"] {
            assert!(since(text, now).is_err(), "{text}");
        }
    }
}
