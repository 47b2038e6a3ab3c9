//! Failures as answers: `application/problem+json` (RFC 9457).
//!
//! A handler returns [`ApiError`]; the outermost layer adds the request's id and writes the body. Internal causes are
//! logged here, once, and never shown.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use perennial_core::Error;
use perennial_core::operation;
use utoipa::openapi::path::Operation;
use utoipa::openapi::{Content, OpenApi, PathItem, RefOr, Schema};

use super::wire::{Mistake, Problem};

/// The media type of every failure.
const MEDIA: &str = "application/problem+json";
/// What routes are described with, as JSON.
const JSON: &str = "application/json";

/// A failure on its way to the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError(Box<Problem>);

impl ApiError {
    /// A failure of this status; `code` is stable.
    pub fn new(status: StatusCode, code: &str, detail: impl Into<String>) -> Self {
        Self(Box::new(Problem {
            kind: format!("urn:perennial:problem:{code}"),
            title: status.canonical_reason().unwrap_or("Failure").to_owned(),
            status: status.as_u16(),
            code: code.to_owned(),
            detail: detail.into(),
            field: None,
            hint: None,
            mistakes: Vec::new(),
            request_id: None,
        }))
    }

    /// The HTTP status.
    pub fn status(&self) -> u16 {
        self.0.status
    }

    /// The stable reason.
    pub fn code(&self) -> &str {
        &self.0.code
    }

    /// Adds how to go on.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into()).filter(|h: &String| !h.is_empty());
        self
    }

    /// Adds everything that is wrong with what was sent.
    #[must_use]
    pub fn mistakes(mut self, mistakes: Vec<Mistake>) -> Self {
        self.0.mistakes = mistakes;
        self
    }

    /// Adds the field it is about.
    #[must_use]
    pub fn field(mut self, field: impl Into<String>) -> Self {
        self.0.field = Some(field.into());
        self
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        match error {
            Error::NotFound { .. } => Self::new(StatusCode::NOT_FOUND, "not-found", text)
                .hint("see what there is: perennial pod ls, perennial snapshot ls POD, perennial op ls"),
            Error::InvalidInput { field, problem, hint } => {
                Self::new(StatusCode::BAD_REQUEST, "invalid-input", format!("{field}: {problem}"))
                    .field(field)
                    .hint(hint)
            }
            Error::Conflict { code: code @ "version-mismatch", problem, hint } => {
                Self::new(StatusCode::PRECONDITION_FAILED, code, problem).hint(hint)
            }
            Error::Conflict { code, problem, hint } => Self::new(StatusCode::CONFLICT, code, problem).hint(hint),
            Error::Unauthorized { .. } => Self::new(StatusCode::UNAUTHORIZED, "unauthorized", text)
                .hint("perennial token create makes one; the administrator's is in the file admin-token of the server's data directory"),
            Error::Forbidden { .. } => Self::new(StatusCode::FORBIDDEN, "forbidden", text),
            Error::QuotaExceeded { .. } => Self::new(StatusCode::FORBIDDEN, "quota-exceeded", text),
            Error::Unavailable { .. } => Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", text)
                .hint("try again; with the same Idempotency-Key nothing is done twice"),
            Error::Internal { .. } => {
                tracing::error!(error = %text, "a request failed");
                internal()
            }
        }
    }
}

/// A defect: the log knows more, under the request's id.
pub fn internal() -> ApiError {
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "internal error")
        .hint("the server's log says more under this request id")
}

/// A stored failure of an operation, in the form of every other failure.
pub fn of_operation(problem: &operation::Problem) -> Problem {
    let error = ApiError::new(StatusCode::CONFLICT, &problem.code, problem.message.clone()).hint(problem.hint.clone());
    Problem { title: "Operation failed".to_owned(), ..*error.0 }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// Writes the body of a failure, now that the request's id is known.
pub fn finish(mut response: Response, request_id: &str) -> Response {
    let Some(ApiError(mut problem)) = response.extensions_mut().remove::<ApiError>() else { return response };
    problem.request_id = Some(request_id.to_owned());
    let body = serde_json::to_vec(&problem).unwrap_or_default();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA));
    response.headers_mut().remove(header::CONTENT_LENGTH);
    *response.body_mut() = body.into();
    response
}

/// Tells of every failure in the document that it is sent as [`finish`] sends it: routes name the type alone.
pub fn declare(document: &mut OpenApi) {
    for response in
        document.paths.paths.values_mut().flat_map(operations).flat_map(|o| o.responses.responses.values_mut())
    {
        let RefOr::T(response) = response else { continue };
        if let Some(content) = response.content.get(JSON).filter(|content| is_problem(content)).cloned() {
            response.content.clear();
            response.content.insert(MEDIA.to_owned(), content);
        }
    }
}

fn is_problem(content: &RefOr<Content>) -> bool {
    let RefOr::T(content) = content else { return false };
    let schema: Option<&RefOr<Schema>> = content.schema.as_ref();
    matches!(schema, Some(RefOr::Ref(schema)) if schema.ref_location == "#/components/schemas/Problem")
}

fn operations(path: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    let PathItem { get, put, post, delete, patch, .. } = path;
    [get, put, post, delete, patch].into_iter().filter_map(Option::as_mut)
}
