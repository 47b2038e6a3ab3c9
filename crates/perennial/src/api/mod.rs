//! The HTTP API: routes, wire types, problem+json, SSE. No SQL and no engines here.
//!
//! - `wire`: the JSON; `convert`: domain types into it and back;
//! - `auth`: one layer before every route, `access`: the table it goes by, `guard`: bodies that end with their sender's rights; `extract`, `action`: reading requests; `problem`: failures as answers;
//! - `refusals`: the layer that adds what was refused to the audit;
//! - `shown`: pods as they were last written out;
//! - `pods`, `snapshots`, `retention`, `files` (of snapshots), `compare` (them), `import` (archives), `logs`, `operations`, `events`, `system`, `docs`,
//!   `users`, `sessions`, `oidc`, `tenants`, `tokens`, `services` (the catalogue), `subscriptions`, `admin`, `erase` (tenants): the routes.
//!
//! A route is added to [`routes`] and to the table in `access`, and nowhere else: the OpenAPI document, the golden file and the test that asks every
//! route without a token all come from there.

pub mod wire;

mod access;
mod action;
mod admin;
mod audit;
mod auth;
mod compare;
mod convert;
mod docs;
mod erase;
mod events;
mod extract;
mod files;
mod guard;
mod health;
mod hooks;
mod import;
mod logs;
mod oidc;
mod operations;
mod pods;
mod problem;
mod refusals;
mod replication;
mod restore;
pub(crate) mod retention;
pub(crate) mod services;
mod sessions;
mod shown;
mod snapshots;
mod subscriptions;
mod system;
mod tenants;
mod tokens;
mod users;

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use perennial_core::operation::Operation;
use tokio::sync::watch;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::OpenApi as _;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub use access::Undecided;

use crate::reconcile::progress::ProgressBoard;
use crate::service::App;
use problem::ApiError;

/// Largest body of a request, in bytes.
const BODY_MAX: usize = 1 << 20;
/// The header that names a request.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What every handler gets.
#[derive(Clone)]
pub struct ApiState {
    /// The use cases.
    pub app: App,
    /// How far running operations are.
    board: ProgressBoard,
    pods: shown::ShownPods,
    openapi: Arc<str>,
    stopping: watch::Receiver<bool>,
}

impl ApiState {
    /// An operation as it is shown: what is being worked on, and how far it is, is known to this process only.
    pub(crate) fn shown(&self, operation: &Operation) -> wire::Operation {
        let mut shown = convert::operation(operation);
        if let Some(now) = self.board.read(operation.id).filter(|_| !operation.state.is_terminal()) {
            shown.state = wire::OperationState::Running;
            shown.progress = wire::Progress {
                bytes_per_second: now.reading.rate(now.elapsed),
                seconds_left: now.reading.left(now.elapsed).map(|left| left.as_secs()),
                ..convert::progress(now.step, now.reading)
            };
        }
        shown
    }

    /// Whether the server is stopping: nothing waits any longer.
    pub(crate) fn stopping(&self) -> bool {
        *self.stopping.borrow()
    }

    /// Waits until the server stops.
    pub(crate) async fn stopped(&self) {
        let mut stopping = self.stopping.clone();
        if stopping.wait_for(|stop| *stop).await.is_err() {
            // Nobody can ask for the stop any more.
            std::future::pending::<()>().await;
        }
    }
}

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Perennial",
        description = "Pods whose data outlives everything they run on.\n\nTimes are RFC 3339 UTC, sizes bytes as numbers \
                       (requests also take \"512Mi\"), ids strings. Failures are application/problem+json with a stable \
                       `code`. Every action on a pod answers with the pod and an operation to wait for.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    tags(
        (name = "pods", description = "Pods and what can be asked of them."),
        (name = "snapshots", description = "Point-in-time copies."),
        (name = "operations", description = "Durable work."),
        (name = "services", description = "The catalogue: what can be ordered."),
        (name = "subscriptions", description = "Rights to pods of plans."),
        (name = "tenants", description = "Whose everything is."),
        (name = "users", description = "Who may ask for what."),
        (name = "events", description = "The audit trail."),
        (name = "system", description = "The installation."),
    ),
    security(("bearer" = [])),
)]
struct Document;

/// Every route there is.
fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(pods::create, pods::list))
        .routes(routes!(pods::show, pods::patch, pods::delete))
        .routes(routes!(pods::start))
        .routes(routes!(pods::stop))
        .routes(routes!(pods::pause))
        .routes(routes!(pods::restart))
        .routes(routes!(pods::reset))
        .routes(routes!(restore::restore))
        .routes(routes!(restore::clone_pod))
        .routes(routes!(pods::archive))
        .routes(routes!(pods::undelete))
        .routes(routes!(pods::purge))
        .routes(routes!(pods::status))
        .routes(routes!(pods::secrets))
        .routes(routes!(pods::volumes))
        .routes(routes!(logs::logs))
        .routes(routes!(events::of_pod))
        .routes(routes!(operations::list))
        .routes(routes!(snapshots::create, snapshots::list))
        .routes(routes!(import::import))
        .routes(routes!(retention::forget))
        .routes(routes!(snapshots::of_all))
        .routes(routes!(snapshots::show, snapshots::delete))
        .routes(routes!(snapshots::drill))
        .routes(routes!(files::list))
        .routes(routes!(files::content))
        .routes(routes!(files::archive))
        .routes(routes!(compare::diff))
        .routes(routes!(compare::live))
        .routes(routes!(compare::versions))
        .routes(routes!(operations::show))
        .routes(routes!(operations::cancel))
        .routes(routes!(events::list))
        .routes(routes!(events::stream))
        .routes(routes!(system::show))
        .routes(routes!(replication::show))
        .routes(routes!(sessions::create, sessions::end))
        .routes(routes!(oidc::begin))
        .routes(routes!(oidc::finish))
        .routes(routes!(users::me))
        .routes(routes!(users::create, users::list))
        .routes(routes!(users::show, users::patch, users::delete))
        .routes(routes!(tokens::create, tokens::list))
        .routes(routes!(tokens::revoke))
        .routes(routes!(tenants::create, tenants::list))
        .routes(routes!(tenants::show, tenants::patch))
        .routes(routes!(tenants::member_add, tenants::member_remove))
        .routes(routes!(services::list))
        .routes(routes!(services::show, services::put, services::remove))
        .routes(routes!(subscriptions::create, subscriptions::list))
        .routes(routes!(subscriptions::show))
        .routes(routes!(subscriptions::cancel))
        .routes(routes!(subscriptions::expire))
        .routes(routes!(subscriptions::renew))
        .routes(routes!(subscriptions::change_plan))
        .routes(routes!(subscriptions::restart_pod))
        .routes(routes!(subscriptions::reset_pod))
        .routes(routes!(admin::pods))
        .routes(routes!(admin::debug))
        .routes(routes!(admin::cleanup))
        .routes(routes!(admin::reset))
        .routes(routes!(admin::act))
        .routes(routes!(admin::deliveries))
        .routes(routes!(audit::list))
        .routes(routes!(erase::erase))
        .routes(routes!(erase::show))
        .routes(routes!(system::recovery_kit))
        .routes(routes!(system::healthz))
        .routes(routes!(system::readyz))
        .routes(routes!(docs::openapi))
        .routes(routes!(docs::docs))
}

/// The OpenAPI 3.1 document.
fn described() -> utoipa::openapi::OpenApi {
    routes().split_for_parts().1
}

/// The OpenAPI 3.1 document, as pretty JSON.
#[must_use]
pub fn openapi() -> String {
    let mut document = described();
    problem::declare(&mut document);
    let bearer = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
    document.components.get_or_insert_default().add_security_scheme("bearer", bearer);
    let mut text = document.to_pretty_json().unwrap_or_default();
    text.push('\n');
    text
}

/// Builds the router. Handlers that wait end when `stopping` becomes true.
///
/// # Errors
/// [`Undecided`] when somebody forgot to decide who may ask for a route.
pub fn router(app: App, board: ProgressBoard, stopping: watch::Receiver<bool>) -> Result<Router, Undecided> {
    let tokens = app.access.clone();
    let audited = refusals::Audited::new(app.clone());
    let state = ApiState { app, board, pods: shown::ShownPods::default(), openapi: openapi().into(), stopping };
    let (router, document) = routes().split_for_parts();
    access::check(&document)?;
    let router = router
        .fallback(unknown_route)
        .with_state(state)
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn_with_state(tokens, auth::authenticate))
        .layer(from_fn_with_state(audited, refusals::audit))
        .layer(from_fn(identify));
    Ok(router)
}

async fn unknown_route() -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "no-such-route", "there is no such route").hint("GET /openapi.json lists them")
}

fn panicked(cause: Box<dyn std::any::Any + Send>) -> Response {
    let text = cause.downcast_ref::<&str>().map(|t| (*t).to_owned());
    let text = text.or_else(|| cause.downcast_ref::<String>().cloned()).unwrap_or_default();
    tracing::error!(panic = %text, "a handler panicked");
    problem::internal().into_response()
}

/// Names every request, and puts the name into its answer, its failures and its lines in the log.
async fn identify(request: Request, next: Next) -> Response {
    use tracing::Instrument as _;
    let given = request.headers().get(&REQUEST_ID).and_then(|v| v.to_str().ok());
    let good = |id: &&str| {
        (1..=64).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    let id = match given.filter(good) {
        Some(id) => id.to_owned(),
        None => hex::encode(rand::random::<[u8; 8]>()),
    };
    // Queries are left out.
    let path = crate::audit::path_without_secrets(request.uri().path());
    let span = tracing::info_span!("request", id = %id, method = %request.method(), path = %path);
    let response = async {
        let response = crate::audit::in_request(id.clone(), next.run(request)).await;
        tracing::debug!(status = response.status().as_u16(), "answered");
        response
    }
    .instrument(span)
    .await;
    let mut response = problem::finish(response, &id);
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}
