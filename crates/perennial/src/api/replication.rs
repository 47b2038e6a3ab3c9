//! How far the replicas are.

use axum::extract::State;
use perennial_core::replication::{Copying, Noted, Part};

use super::ApiState;
use super::auth::Caller;
use super::problem::ApiError;
use super::wire::{Problem, ReplicaCopying, ReplicaFailure, ReplicaPart, ReplicaStatus, Replication};
use crate::reconcile::progress::ShownCopy;
use crate::service;

/// Tells how far every replica is, and what could not be copied, and why.
#[utoipa::path(get, path = "/api/v1/replication", operation_id = "replication_show", tag = "system",
    responses((status = 200, body = Replication), (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn show(State(state): State<ApiState>, Caller(caller): Caller) -> Result<axum::Json<Replication>, ApiError> {
    let replicas = state.app.replication(&caller).await?;
    let forget_after = state.app.settings.replication.as_ref().map(|section| section.forget_after.clone());
    let shown = |status| replica(status, state.board.copying(&status.tenant));
    Ok(axum::Json(Replication { forget_after, replicas: replicas.iter().flatten().map(shown).collect() }))
}

fn replica(status: &service::ReplicaStatus, now: Option<ShownCopy>) -> ReplicaStatus {
    ReplicaStatus {
        tenant: status.tenant.to_string(),
        location: status.location.clone(),
        looked_at: status.looked_at,
        problem: status.problem.clone(),
        copied: status.copied,
        going: status.going,
        missing: status.missing,
        missing_since: status.oldest_missing.as_ref().map(|row| row.created_at),
        copying: now.map(|now| copying(&now)),
        failed: status.failed.iter().filter_map(failure).collect(),
    }
}

fn copying(now: &ShownCopy) -> ReplicaCopying {
    ReplicaCopying {
        part: part(now.what.part),
        id: now.what.name.clone(),
        snapshot_id: (now.what.part == Part::Snapshot).then(|| now.what.name.clone()),
        bytes_done: now.reading.bytes_done,
        bytes_total: now.reading.bytes_total,
        bytes_per_second: now.reading.rate(now.elapsed),
        seconds_left: now.reading.left(now.elapsed).map(|left| left.as_secs()),
    }
}

const fn part(part: Part) -> ReplicaPart {
    match part {
        Part::Image => ReplicaPart::Image,
        Part::Snapshot => ReplicaPart::Snapshot,
        Part::Layer => ReplicaPart::Layer,
    }
}

fn failure(noted: &Noted) -> Option<ReplicaFailure> {
    let Copying::Failed(problem) = &noted.copying else { return None };
    let part = part(noted.wanted.part);
    Some(ReplicaFailure { part, id: noted.wanted.name.clone(), problem: problem.clone(), at: noted.at })
}
