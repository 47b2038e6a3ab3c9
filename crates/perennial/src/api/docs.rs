//! The OpenAPI document and a page that shows it, without anything from the network.

use axum::extract::State;
use axum::http::header;
use axum::response::{Html, IntoResponse as _, Response};

use super::ApiState;
use super::auth::Caller;
use super::wire::Problem;

/// The page: reads the document and lists every route.
const PAGE: &str = include_str!("docs.html");

/// The OpenAPI 3.1 document of this server.
#[utoipa::path(get, path = "/openapi.json", operation_id = "openapi", tag = "system",
    responses((status = 200, body = serde_json::Value), (status = "4XX", body = Problem)))]
pub async fn openapi(State(state): State<ApiState>, _: Caller) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], state.openapi.to_string()).into_response()
}

/// The documentation of the API as a page. A browser asks for the token: any user name, the token as password.
#[utoipa::path(get, path = "/docs", operation_id = "docs", tag = "system",
    responses((status = 200, body = String, content_type = "text/html"), (status = "4XX", body = Problem)))]
pub async fn docs(_: Caller) -> Html<&'static str> {
    Html(PAGE)
}
