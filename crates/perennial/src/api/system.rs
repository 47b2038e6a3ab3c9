//! Health, and the checks behind `perennial doctor`.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};

use super::auth::Caller;
use super::problem::ApiError;
use super::wire::{Problem, RecoveryKit, System};
use super::{ApiState, convert};

/// Answers while the process lives.
#[utoipa::path(get, path = "/healthz", operation_id = "healthz", tag = "system", security(()),
    responses((status = 200, body = Value)))]
pub async fn healthz() -> axum::Json<Value> {
    axum::Json(json!({"status": "ok"}))
}

/// Answers 200 while requests can be served: the database and the engine answer.
#[utoipa::path(get, path = "/readyz", operation_id = "readyz", tag = "system", security(()),
    responses((status = 200, body = Value), (status = 503, body = Problem)))]
pub async fn readyz(State(state): State<ApiState>) -> Result<axum::Json<Value>, ApiError> {
    if state.stopping() {
        return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", "the server is stopping"));
    }
    match state.app.ready().await {
        Ok(()) => Ok(axum::Json(json!({"status": "ready"}))),
        Err(problem) => {
            // Anybody may ask, so the answer says that something does not answer, and the log says what.
            tracing::warn!(%problem, "not ready");
            Err(ApiError::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "not-ready",
                "something the server needs does not answer",
            )
            .hint("perennial doctor says what"))
        }
    }
}

/// Checks everything the installation needs.
#[utoipa::path(get, path = "/api/v1/system", operation_id = "system_show", tag = "system",
    responses((status = 200, body = System), (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn show(State(state): State<ApiState>, Caller(caller): Caller) -> Result<axum::Json<System>, ApiError> {
    state.app.require_admin(&caller)?;
    let report = state.app.system().await;
    Ok(axum::Json(System {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        installation: state.app.store.installation().to_string(),
        data_dir: state.app.settings.data_dir.display().to_string(),
        time: report.time,
        engine: report.engine.as_ref().map(convert::engine),
        checks: report.checks.iter().map(convert::check).collect(),
        recovery_kit: report.recovery.as_ref().map(convert::recovery_status),
    }))
}

/// Exports the recovery kit: the passwords of all repositories. It is recorded who did, and when.
#[utoipa::path(post, path = "/api/v1/recovery-kit", operation_id = "recovery_kit_export", tag = "system",
    responses((status = 200, body = RecoveryKit), (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn recovery_kit(State(state): State<ApiState>, Caller(caller): Caller) -> Result<Response, ApiError> {
    let kit = state.app.recovery_kit(&caller).await?;
    // No answer to a repetition is recorded, unlike for other POSTs: it would be a copy of the keys.
    let kit = axum::Json(RecoveryKit {
        installation: state.app.store.installation().to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        host: kit.host,
        data_dir: state.app.settings.data_dir.display().to_string(),
        made_at: kit.made_at,
        repositories: kit.repositories.iter().map(convert::recovery_entry).collect(),
    });
    Ok(([(header::CACHE_CONTROL, "no-store")], kit).into_response())
}
