//! The catalogue.

use std::str::FromStr;

use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use perennial_core::Error;
use perennial_core::access::Rights;
use perennial_core::service::{Plan, PlanVolume, Service, ServiceName};

use super::ApiState;
use super::auth::Caller;
use super::extract::{Id, unreadable};
use super::problem::ApiError;
use super::wire::{self, Problem, ServiceDefinition, ServiceList, ServiceRemoved};
use crate::catalogue::{Mistake, access_mode, definition, profile, read_json, read_toml};
use crate::service::{Entry, Remark, Source};

/// The media type of TOML.
const TOML: &str = "application/toml";

/// A service in a path; what cannot be one is as good as unknown.
#[derive(Debug)]
pub struct Named(ServiceName);

impl FromStr for Named {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        ServiceName::parse(text).map(Self)
    }
}

/// Lists the services that can be ordered, by name.
#[utoipa::path(get, path = "/api/v1/services", operation_id = "service_list", tag = "services",
    responses((status = 200, body = ServiceList), (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn list(State(state): State<ApiState>, Caller(caller): Caller) -> Result<axum::Json<ServiceList>, ApiError> {
    let services = state.app.services(&caller).await?;
    let items = services.entries.iter().map(|entry| wire::Service { definition: None, ..shown(entry, &caller.rights) });
    let conditions = services.remarks.iter().map(condition).collect();
    Ok(axum::Json(ServiceList { items: items.collect(), conditions }))
}

/// Reads a service. Its definition is for administrators.
#[utoipa::path(get, path = "/api/v1/services/{id}", operation_id = "service_show", tag = "services",
    params(("id" = String, Path, description = "The service's name.")),
    responses((status = 200, body = wire::Service,
            headers(("ETag" = String, description = "The revision, for If-Match."))),
        (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn show(
    State(state): State<ApiState>,
    Caller(caller): Caller,
    Id(Named(name)): Id<Named>,
) -> Result<Response, ApiError> {
    let entry = state.app.service(&caller, &name).await?;
    Ok(tagged(&entry, &caller.rights))
}

/// Describes a service anew, as JSON or as TOML. It is in force from now on, also where a file describes it; pods that exist stay as
/// they are. Whatever is wrong with it is told at once, in `mistakes`.
#[utoipa::path(put, path = "/api/v1/services/{id}", operation_id = "service_put", tag = "services",
    request_body(content((ServiceDefinition = "application/json"), (String = "application/toml"))),
    params(("id" = String, Path, description = "The service's name, as in the body."),
        ("If-Match" = Option<String>, Header, description = "The ETag that was read; 412 when the service changed since.")),
    responses((status = 200, body = wire::Service), (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn put(
    State(state): State<ApiState>,
    Caller(caller): Caller,
    Id(Named(name)): Id<Named>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    // The body may have taken long.
    let caller = state.app.access.again(&caller).await?;
    state.app.require_admin(&caller)?;
    let matching = if_match(&headers)?;
    let service = described(&headers, &body.map_err(|rejection| unreadable(&rejection))?)?;
    if service.name != name {
        let problem = format!("{:?} is not the name in the address", service.name.as_str());
        return Err(Error::invalid("name", problem, format!("write {:?} in both", name.as_str())).into());
    }
    let entry = state.app.service_put(&caller, &service, matching.as_deref()).await?;
    Ok(tagged(&entry, &caller.rights))
}

/// Removes what was described over the API; a file that describes the service is in force again. Pods that exist stay as they are.
#[utoipa::path(delete, path = "/api/v1/services/{id}", operation_id = "service_remove", tag = "services",
    params(("id" = String, Path, description = "The service's name."),
        ("If-Match" = Option<String>, Header, description = "The ETag that was read; 412 when the service changed since.")),
    responses((status = 200, body = ServiceRemoved), (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn remove(
    State(state): State<ApiState>,
    Caller(caller): Caller,
    Id(Named(name)): Id<Named>,
    headers: HeaderMap,
) -> Result<axum::Json<ServiceRemoved>, ApiError> {
    let matching = if_match(&headers)?;
    let entry = state.app.service_remove(&caller, &name, matching.as_deref()).await?;
    let service = entry.map(|entry| shown(&entry, &caller.rights));
    Ok(axum::Json(ServiceRemoved { name: name.to_string(), service }))
}

/// The service that a body describes.
fn described(headers: &HeaderMap, body: &[u8]) -> Result<Service, ApiError> {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let read = match essence.as_str() {
        "application/json" => read_json(body),
        TOML => match std::str::from_utf8(body) {
            Ok(text) => read_toml(text),
            Err(error) => {
                let detail = format!("the body is not UTF-8: {error}");
                return Err(ApiError::new(StatusCode::BAD_REQUEST, "malformed-toml", detail).hint("TOML is UTF-8"));
            }
        },
        _ => {
            let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
            return Err(ApiError::new(status, "not-a-definition", "the body is neither declared as JSON nor as TOML")
                .hint("send Content-Type: application/json or application/toml"));
        }
    };
    read.map_err(|mistakes| refused(&mistakes))
}

fn refused(mistakes: &[Mistake]) -> ApiError {
    let detail = match mistakes {
        [only] => only.to_string(),
        [first, rest @ ..] => format!("{first} (and {} more mistakes)", rest.len()),
        [] => "the definition is not good".to_owned(),
    };
    let error = ApiError::new(StatusCode::BAD_REQUEST, "invalid-service", detail);
    let first = mistakes.first();
    let error = error.hint(first.map(|mistake| mistake.hint.clone()).unwrap_or_default());
    let field = first.map(|mistake| mistake.field.clone()).filter(|field| !field.is_empty());
    let error = if let Some(field) = field { error.field(field) } else { error };
    error.mistakes(mistakes.iter().map(mistake).collect())
}

/// A mistake as it is told.
pub(crate) fn mistake(mistake: &Mistake) -> wire::Mistake {
    let whole = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    wire::Mistake {
        line: mistake.at.map(|(line, _)| whole(line)),
        column: mistake.at.map(|(_, column)| whole(column)),
        kind: mistake.kind.as_str().to_owned(),
        field: Some(mistake.field.clone()).filter(|field| !field.is_empty()),
        problem: mistake.problem.clone(),
        hint: Some(mistake.hint.clone()).filter(|hint| !hint.is_empty()),
    }
}

/// The revision in `If-Match`; `None` for `*` and for none at all.
fn if_match(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(value) = headers.get(header::IF_MATCH) else { return Ok(None) };
    let text = value.to_str().unwrap_or_default().trim();
    if text == "*" {
        return Ok(None);
    }
    let revision = text.strip_prefix('"').and_then(|t| t.strip_suffix('"')).filter(|t| !t.contains('"'));
    revision.map(|revision| Some(revision.to_owned())).ok_or_else(|| {
        Error::invalid("If-Match", "is not an ETag of a service", "send the ETag that GET answered, or *").into()
    })
}

fn tagged(entry: &Entry, rights: &Rights) -> Response {
    let mut response = axum::Json(shown(entry, rights)).into_response();
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{}\"", entry.revision)) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

/// A service as it is shown. Where it comes from, and values that it gives to every pod, are for administrators.
fn shown(entry: &Entry, rights: &Rights) -> wire::Service {
    let Entry { service, revision, source, remarks } = entry;
    let is_admin = rights.is_platform();
    let (source, file, changed) = match source {
        Source::Shipped => (wire::ServiceSource::Shipped, None, None),
        Source::File(file) => (wire::ServiceSource::File, Some(file.clone()), None),
        Source::Database(actor, at) => (wire::ServiceSource::Database, None, Some((actor.clone(), *at))),
    };
    let (changed_by, changed_at) = changed.unzip();
    wire::Service {
        name: service.name.to_string(),
        title: service.title.clone(),
        description: service.description.clone(),
        revision: revision.clone(),
        source,
        file: file.filter(|_| is_admin),
        changed_by: changed_by.filter(|_| is_admin),
        changed_at,
        plans: service.plans.iter().map(plan).collect(),
        conditions: remarks.iter().map(condition).collect(),
        definition: is_admin.then(|| definition(service)),
    }
}

fn plan(plan: &Plan) -> wire::Plan {
    let bytes = |size: &Option<perennial_core::service::Size>| size.as_ref().map(|size| size.bytes);
    wire::Plan {
        name: plan.name.to_string(),
        title: plan.title.clone(),
        description: plan.description.clone(),
        image: plan.image.clone(),
        profile: profile(plan),
        volumes: plan.volumes().iter().map(volume).collect(),
        cpus: plan.resources.nano_cpus.map(|nano| wire::Cpus { nano }),
        memory: bytes(&plan.resources.memory),
        memory_reservation: bytes(&plan.resources.memory_reservation),
        disk: plan.disk(),
    }
}

fn volume(volume: &PlanVolume) -> wire::PlanVolume {
    wire::PlanVolume {
        name: volume.name.clone(),
        mount_path: volume.mount_path.clone(),
        size: volume.size.as_ref().map(|size| size.written.clone()),
        size_bytes: volume.size.as_ref().map(|size| size.bytes),
        storage_class: volume.storage_class.clone(),
        access_mode: access_mode(volume.access_mode),
    }
}

fn condition(remark: &Remark) -> wire::Condition {
    let Remark { kind, reason, message, since } = remark;
    wire::Condition {
        kind: (*kind).to_owned(),
        status: true,
        reason: (*reason).to_owned(),
        message: message.clone(),
        since: *since,
    }
}
