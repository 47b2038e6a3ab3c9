//! Rules of snapshots into JSON and back, and the route that applies them.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use perennial_core::id::PodId;
use perennial_core::retention::{self, Manual};
use perennial_core::schedule;

use super::extract::{Id, Json};
use super::problem::ApiError;
use super::wire::{self, Age, ForgetRequest, Forgetting, Problem};
use super::{ApiState, convert};
use crate::service::Forget;

pub(crate) fn rules(rules: &schedule::SnapshotRules) -> wire::SnapshotRules {
    wire::SnapshotRules {
        schedule: rules.schedule.clone(),
        time_zone: rules.time_zone.clone(),
        keep: rules.keep.as_ref().map(keep),
    }
}

/// The rules of a request.
pub(crate) fn domain_rules(rules: &wire::SnapshotRules) -> schedule::SnapshotRules {
    schedule::SnapshotRules {
        schedule: rules.schedule.clone(),
        time_zone: rules.time_zone.clone(),
        keep: rules.keep.as_ref().map(domain_keep),
    }
}

fn keep(keep: &retention::Keep) -> wire::Keep {
    let retention::Keep { last, hourly, daily, weekly, monthly, yearly, within, minimum, manual } = *keep;
    let (within, manual) = (within.map(Age), manual == Manual::Rotated);
    wire::Keep { last, hourly, daily, weekly, monthly, yearly, within, minimum, manual }
}

/// The numbers of a request.
pub(crate) fn domain_keep(keep: &wire::Keep) -> retention::Keep {
    let wire::Keep { last, hourly, daily, weekly, monthly, yearly, within, minimum, manual } = *keep;
    let manual = if manual { Manual::Rotated } else { Manual::Kept };
    let within = within.map(|age| age.0);
    retention::Keep { last, hourly, daily, weekly, monthly, yearly, within, minimum, manual }
}

/// Says which of a pod's snapshots its rules keep, and lets the others go.
#[utoipa::path(post, path = "/api/v1/pods/{id}/snapshots/forget", operation_id = "pod_snapshots_forget",
    tag = "snapshots", request_body = ForgetRequest, params(("id" = String, Path, description = "The pod's id.")),
    responses((status = 200, body = Forgetting, description = "A dry run: nothing was done."),
        (status = 202, body = Forgetting, description = "The deletions were begun."),
        (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn forget(
    State(state): State<ApiState>,
    Id(id): Id<PodId>,
    Json { value: body, caller, .. }: Json<ForgetRequest>,
) -> Result<Response, ApiError> {
    let ask = Forget { keep: body.keep.as_ref().map(domain_keep), confirm: body.confirm, dry_run: body.dry_run };
    let done = state.app.snapshots_forget(&caller, id, &ask).await?;
    let decision = |(snapshot, decision): &(_, retention::Decision)| wire::Decision {
        snapshot: convert::snapshot(snapshot, &state.app.settings),
        action: match decision.fate {
            retention::Fate::Keep => wire::Fate::Keep,
            retention::Fate::Forget => wire::Fate::Forget,
        },
        reasons: decision.reasons.clone(),
    };
    let answer = Forgetting {
        dry_run: body.dry_run,
        keep: keep(&done.keep),
        time_zone: done.zone.iana_name().unwrap_or("UTC").to_owned(),
        decisions: done.decisions.iter().map(decision).collect(),
        operations: done.operations.iter().map(convert::operation).collect(),
    };
    let status = if body.dry_run { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok((status, axum::Json(answer)).into_response())
}
