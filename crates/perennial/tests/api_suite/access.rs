//! Who may ask what: every route of the OpenAPI document, and nothing beside it.

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use serde_json::Value;

use crate::server::{Server, TOKEN, read};

/// Who may ask for a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Anybody.
    Open,
    /// Whoever has a token.
    Any,
    /// Whoever has a token with this scope, for what is theirs.
    Own(&'static str),
    /// The same, for what is of a tenant they are a member of; it is not there for others.
    Tenant(&'static str),
    /// Administrators with the scope `admin`.
    Platform,
}

/// Every route there is. A route that is missing here fails the test, so that nobody forgets to decide; this is written by hand, and
/// not the table of the server, so that a slip in one of both is noticed.
pub const ROUTES: &[(&str, &str, Access)] = &[
    ("GET", "/healthz", Access::Open),
    ("GET", "/readyz", Access::Open),
    ("GET", "/docs", Access::Any),
    ("GET", "/openapi.json", Access::Any),
    ("POST", "/api/v1/pods", Access::Tenant("operate")),
    ("GET", "/api/v1/pods", Access::Own("read")),
    ("GET", "/api/v1/pods/{id}", Access::Tenant("read")),
    ("PATCH", "/api/v1/pods/{id}", Access::Tenant("operate")),
    ("DELETE", "/api/v1/pods/{id}", Access::Tenant("operate")),
    ("POST", "/api/v1/pods/{id}/start", Access::Tenant("operate")),
    ("POST", "/api/v1/pods/{id}/stop", Access::Tenant("operate")),
    ("POST", "/api/v1/pods/{id}/pause", Access::Tenant("operate")),
    ("POST", "/api/v1/pods/{id}/restart", Access::Tenant("operate")),
    ("POST", "/api/v1/pods/{id}/reset", Access::Tenant("operate")),
    ("POST", "/api/v1/pods/{id}/restore", Access::Tenant("operate")),
    ("POST", "/api/v1/pods/{id}/clone", Access::Tenant("operate")),
    ("POST", "/api/v1/pods/{id}/archive", Access::Tenant("operate")),
    ("POST", "/api/v1/pods/{id}/undelete", Access::Tenant("operate")),
    ("POST", "/api/v1/pods/{id}/purge", Access::Tenant("operate")),
    ("GET", "/api/v1/pods/{id}/status", Access::Tenant("read")),
    ("GET", "/api/v1/pods/{id}/secrets", Access::Tenant("operate")),
    ("GET", "/api/v1/pods/{id}/volumes", Access::Tenant("read")),
    ("GET", "/api/v1/pods/{id}/logs", Access::Tenant("read")),
    ("GET", "/api/v1/pods/{id}/events", Access::Tenant("read")),
    ("GET", "/api/v1/pods/{id}/operations", Access::Tenant("read")),
    ("GET", "/api/v1/pods/{id}/snapshots", Access::Tenant("read")),
    ("POST", "/api/v1/pods/{id}/snapshots", Access::Tenant("operate")),
    ("POST", "/api/v1/pods/{id}/snapshots/forget", Access::Tenant("operate")),
    ("POST", "/api/v1/pods/{id}/snapshots/import", Access::Tenant("operate")),
    ("GET", "/api/v1/pods/{id}/files/versions", Access::Tenant("read")),
    ("GET", "/api/v1/snapshots", Access::Own("read")),
    ("GET", "/api/v1/snapshots/{id}", Access::Tenant("read")),
    ("DELETE", "/api/v1/snapshots/{id}", Access::Tenant("operate")),
    ("POST", "/api/v1/snapshots/{id}/drill", Access::Tenant("operate")),
    ("GET", "/api/v1/snapshots/{id}/files", Access::Tenant("read")),
    ("GET", "/api/v1/snapshots/{id}/files/content", Access::Tenant("read")),
    ("GET", "/api/v1/snapshots/{id}/archive", Access::Tenant("read")),
    ("GET", "/api/v1/snapshots/{id}/diff", Access::Tenant("read")),
    ("GET", "/api/v1/snapshots/{id}/diff/live", Access::Tenant("read")),
    ("GET", "/api/v1/operations/{id}", Access::Tenant("read")),
    ("POST", "/api/v1/operations/{id}/cancel", Access::Tenant("operate")),
    ("GET", "/api/v1/events", Access::Own("read")),
    ("GET", "/api/v1/events/stream", Access::Own("read")),
    ("POST", "/api/v1/sessions", Access::Open),
    ("DELETE", "/api/v1/sessions", Access::Any),
    ("GET", "/api/v1/sessions/oidc", Access::Open),
    ("GET", "/api/v1/sessions/oidc/callback", Access::Open),
    ("GET", "/api/v1/me", Access::Any),
    ("GET", "/api/v1/tokens", Access::Own("read")),
    ("POST", "/api/v1/tokens", Access::Own("operate")),
    ("DELETE", "/api/v1/tokens/{id}", Access::Own("operate")),
    ("GET", "/api/v1/tenants", Access::Own("read")),
    ("POST", "/api/v1/tenants", Access::Platform),
    ("GET", "/api/v1/tenants/{id}", Access::Tenant("read")),
    ("PATCH", "/api/v1/tenants/{id}", Access::Platform),
    ("PUT", "/api/v1/tenants/{id}/members/{user}", Access::Platform),
    ("DELETE", "/api/v1/tenants/{id}/members/{user}", Access::Platform),
    ("POST", "/api/v1/tenants/{id}/erase", Access::Platform),
    ("GET", "/api/v1/tenants/{id}/erasure", Access::Platform),
    ("GET", "/api/v1/users", Access::Platform),
    ("POST", "/api/v1/users", Access::Platform),
    ("GET", "/api/v1/users/{id}", Access::Platform),
    ("PATCH", "/api/v1/users/{id}", Access::Platform),
    ("DELETE", "/api/v1/users/{id}", Access::Platform),
    ("GET", "/api/v1/system", Access::Platform),
    ("GET", "/api/v1/replication", Access::Platform),
    ("POST", "/api/v1/recovery-kit", Access::Platform),
    ("GET", "/api/v1/services", Access::Own("read")),
    ("GET", "/api/v1/services/{id}", Access::Own("read")),
    ("PUT", "/api/v1/services/{id}", Access::Platform),
    ("DELETE", "/api/v1/services/{id}", Access::Platform),
    ("POST", "/api/v1/subscriptions", Access::Tenant("operate")),
    ("GET", "/api/v1/subscriptions", Access::Own("read")),
    ("GET", "/api/v1/subscriptions/{id}", Access::Tenant("read")),
    ("POST", "/api/v1/subscriptions/{id}/cancel", Access::Tenant("operate")),
    ("POST", "/api/v1/subscriptions/{id}/expire", Access::Platform),
    ("POST", "/api/v1/subscriptions/{id}/renew", Access::Tenant("operate")),
    ("POST", "/api/v1/subscriptions/{id}/change-plan", Access::Tenant("operate")),
    ("POST", "/api/v1/subscriptions/{id}/restart-pod", Access::Tenant("operate")),
    ("POST", "/api/v1/subscriptions/{id}/reset-pod", Access::Tenant("operate")),
    ("GET", "/api/v1/admin/audit", Access::Platform),
    ("GET", "/api/v1/admin/pods", Access::Platform),
    ("GET", "/api/v1/admin/pods/debug", Access::Platform),
    ("POST", "/api/v1/admin/pods/cleanup-orphaned", Access::Platform),
    ("POST", "/api/v1/admin/pods/{id}/reset", Access::Platform),
    ("POST", "/api/v1/admin/pods/{id}/action", Access::Platform),
    ("GET", "/api/v1/admin/deliveries", Access::Platform),
];

fn document() -> Value {
    serde_json::from_str(&perennial::api::openapi()).unwrap()
}

#[test]
fn every_route_of_the_document_is_decided_on() {
    let document = document();
    let mut found: Vec<(String, String)> = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys() {
            found.push((method.to_uppercase(), path.clone()));
        }
    }
    let mut listed: Vec<(String, String)> = ROUTES.iter().map(|(m, p, _)| ((*m).into(), (*p).into())).collect();
    found.sort();
    listed.sort();
    assert_eq!(found, listed);
}

async fn status(server: &Server, method: &str, path: &str, authorization: Option<&str>) -> StatusCode {
    let path = path.replace("{id}", "00000000000000000000000000").replace("{user}", "nobody");
    let mut request = Request::builder().method(method).uri(path);
    if let Some(value) = authorization {
        request = request.header("authorization", value);
    }
    let response = server.send(request.body(Body::empty()).unwrap()).await;
    let status = response.status();
    if status == StatusCode::UNAUTHORIZED {
        let challenges = response.headers().get_all("www-authenticate");
        assert!(challenges.iter().any(|c| c == "Bearer"), "{challenges:?}");
        assert_eq!(read(response).await.problem().0, "unauthorized");
    }
    status
}

#[tokio::test]
async fn nothing_but_health_answers_without_a_good_token() {
    let server = Server::start().await;
    let good = format!("Bearer {TOKEN}");
    let bad = [
        None,
        Some("Bearer wrong".to_owned()),
        Some("Bearer ".to_owned()),
        Some(TOKEN.to_owned()),
        Some(format!("Bearer {TOKEN}x")),
        Some(format!("Basic {TOKEN}")),
        Some(format!("Token {TOKEN}")),
    ];
    for (method, path, access) in ROUTES {
        for value in &bad {
            let status = status(&server, method, path, value.as_deref()).await;
            let expected = *access != Access::Open;
            assert_eq!(status == StatusCode::UNAUTHORIZED, expected, "{method} {path} with {value:?}: {status}");
        }
        let status = status(&server, method, path, Some(&good)).await;
        assert_ne!(status, StatusCode::UNAUTHORIZED, "{method} {path}");
    }
    // What does not exist is not told apart from what does.
    assert_eq!(status(&server, "GET", "/api/v1/nonsense", None).await, StatusCode::UNAUTHORIZED);
    assert_eq!(status(&server, "POST", "/healthz/x", None).await, StatusCode::UNAUTHORIZED);
    assert_eq!(status(&server, "GET", "/api/v1/nonsense", Some(&good)).await, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_browser_sends_the_token_as_a_password_and_only_for_the_pages() {
    use base64::Engine as _;
    let server = Server::start().await;
    let encode = |text: &str| format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(text));
    let basic = encode(&format!("me:{TOKEN}"));
    assert_eq!(status(&server, "GET", "/docs", Some(&basic)).await, StatusCode::OK);
    assert_eq!(status(&server, "GET", "/openapi.json", Some(&basic)).await, StatusCode::OK);
    assert_eq!(status(&server, "GET", "/docs", Some(&encode("me:x"))).await, StatusCode::UNAUTHORIZED);
    assert_eq!(status(&server, "GET", "/api/v1/pods", Some(&basic)).await, StatusCode::UNAUTHORIZED);
    assert_eq!(status(&server, "POST", "/docs", Some(&basic)).await, StatusCode::UNAUTHORIZED);
    let asked = server.send(Request::get("/docs").body(Body::empty()).unwrap()).await;
    let challenges: Vec<_> = asked.headers().get_all("www-authenticate").iter().collect();
    assert_eq!(challenges, ["Basic realm=\"perennial\"", "Bearer"]);
}

#[tokio::test]
async fn what_nobody_has_is_not_found_everywhere() {
    let server = Server::start().await;
    for id in ["00000000000000000000000000", "x", "..%2f..%2fetc%2fpasswd", "%00"] {
        for path in [
            "pods/{}",
            "pods/{}/status",
            "pods/{}/volumes",
            "pods/{}/logs",
            "pods/{}/events",
            "pods/{}/operations",
            "pods/{}/snapshots",
            "snapshots/{}",
            "snapshots/{}/files",
            "snapshots/{}/files/content?path=/a",
            "snapshots/{}/archive",
            "snapshots/{}/diff?with=00000000000000000000000000",
            "snapshots/{}/diff/live",
            "pods/{}/files/versions?path=/a",
            "operations/{}",
            "tenants/{}/erasure",
        ] {
            let answer = server.get(&format!("/api/v1/{}", path.replace("{}", id))).await;
            assert_eq!(answer.status, StatusCode::NOT_FOUND, "{path} {id}: {answer:?}");
            answer.problem();
        }
    }
}

#[tokio::test]
async fn every_answer_names_its_request() {
    let server = Server::start().await;
    let given = server.ask(Method::GET, "/healthz", &[("x-request-id", "my-id.1")], Body::empty()).await;
    assert_eq!(given.headers["x-request-id"], "my-id.1");
    let long = "x".repeat(65);
    for bad in ["", "a b", "<script>", long.as_str()] {
        let answer = server.ask(Method::GET, "/nonsense", &[("x-request-id", bad)], Body::empty()).await;
        assert_ne!(answer.headers["x-request-id"], bad);
        answer.problem();
    }
}

#[tokio::test]
async fn wrong_methods_are_told_so() {
    let server = Server::start().await;
    let answer = server.ask(Method::PUT, "/api/v1/pods", &[], Body::empty()).await;
    assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(answer.problem().0, "method-not-allowed");
    assert_eq!(answer.headers["allow"], "POST,GET,HEAD");
}

/// `UPDATE=1 cargo test -p perennial --test api_suite` writes the file anew.
#[test]
fn the_golden_document_is_the_one_that_is_served() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../openapi.json");
    let served = perennial::api::openapi();
    if std::env::var_os("UPDATE").is_some_and(|v| !v.is_empty()) {
        std::fs::write(path, &served).unwrap();
    }
    let golden = std::fs::read_to_string(path).unwrap_or_default();
    assert!(golden == served, "openapi.json is not what the code says: run with UPDATE=1 and look at the difference");
}

#[test]
fn bodies_that_may_be_left_out_are_not_required() {
    let document = document();
    for (path, required) in [("stop", false), ("start", false), ("snapshots", false), ("reset", true), ("purge", true)]
    {
        let body = &document["paths"][format!("/api/v1/pods/{{id}}/{path}")]["post"]["requestBody"];
        assert_eq!(body["required"].as_bool().unwrap_or_default(), required, "{path}: {body}");
    }
}

/// As `sim_browse` sees them sent.
#[test]
fn the_media_types_of_archives_are_those_that_are_sent() {
    let document = document();
    let answer = &document["paths"]["/api/v1/snapshots/{id}/archive"]["get"]["responses"]["200"]["content"];
    let mut media: Vec<_> = answer.as_object().unwrap().keys().collect();
    media.sort_unstable();
    assert_eq!(media, ["application/gzip", "application/x-tar", "application/zstd"]);
}

#[test]
fn the_document_is_3_1_and_describes_every_field_and_failure() {
    let document = document();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1."));
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            assert!(operation["summary"].as_str().is_some_and(|s| !s.is_empty()), "{method} {path}");
            assert!(operation["operationId"].is_string(), "{method} {path}");
            let open = ROUTES
                .iter()
                .any(|(m, p, access)| m.eq_ignore_ascii_case(method) && p == path && *access == Access::Open);
            assert!(open || operation["responses"]["4XX"].is_object(), "{method} {path}");
            for (status, response) in operation["responses"].as_object().unwrap() {
                let failure = status.starts_with(['4', '5']);
                for (media, content) in response["content"].as_object().into_iter().flatten() {
                    assert_eq!(failure, media == "application/problem+json", "{method} {path} {status}");
                    let problem = content["schema"]["$ref"] == "#/components/schemas/Problem";
                    assert_eq!(failure, problem, "{method} {path} {status}: {content}");
                }
            }
        }
    }
    for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
        for (field, property) in schema["properties"].as_object().into_iter().flatten() {
            // A nullable reference carries its description inside.
            let inner = property["oneOf"].as_array().into_iter().flatten().any(|one| one["description"].is_string());
            let described = inner || property["description"].is_string() || property["$ref"].is_string();
            assert!(described || name.starts_with("List"), "{name}.{field}: {property}");
        }
    }
}

#[tokio::test]
async fn the_page_needs_nothing_from_elsewhere() {
    let server = Server::start().await;
    let page = server.get("/docs").await;
    assert!(page.headers["content-type"].to_str().unwrap().starts_with("text/html"));
    assert!(!page.text.contains("http://") && !page.text.contains("https://") && !page.text.contains("src="));
    let served = server.get("/openapi.json").await;
    assert_eq!(served.text, perennial::api::openapi());
}

#[tokio::test]
async fn readiness_ends_when_the_server_stops() {
    let server = Server::start().await;
    assert_eq!(server.get("/readyz").await.status, StatusCode::OK);
    server.stop.send(true).unwrap();
    assert_eq!(server.get("/readyz").await.problem().0, "stopping");
    assert_eq!(server.get("/healthz").await.status, StatusCode::OK);
}

#[tokio::test]
async fn the_doctor_has_something_to_look_at() {
    let server = Server::start().await;
    let system = server.get("/api/v1/system").await.json();
    let names: Vec<&str> = system["checks"].as_array().unwrap().iter().filter_map(|c| c["name"].as_str()).collect();
    for name in ["engine", "runtime", "database", "permissions", "repository", "disk", "clock", "recovery kit"] {
        assert!(names.contains(&name), "{name}: {names:?}");
    }
    assert_eq!(system["engine"]["defaultRuntime"], "runc");
}

/// The check of this name.
async fn check(server: &Server, name: &str) -> Value {
    let system = server.get("/api/v1/system").await.json();
    let checks = system["checks"].as_array().unwrap();
    checks.iter().find(|c| c["name"] == name).unwrap_or_else(|| panic!("{name}: {system}")).clone()
}

#[tokio::test]
async fn an_engine_that_went_away_is_noticed_although_it_answered_before() {
    let server = Server::start().await;
    assert_eq!(check(&server, "engine").await["status"], "ok");
    assert_eq!(server.get("/readyz").await.status, StatusCode::OK);
    server.engine.node_vanishes();
    assert_eq!(server.get("/readyz").await.problem().0, "not-ready");
    let engine = check(&server, "engine").await;
    assert_eq!(engine["status"], "failed");
    assert!(engine["hint"].as_str().unwrap().contains("systemctl start docker"), "{engine}");
    server.engine.node_returns();
    assert_eq!(server.get("/readyz").await.status, StatusCode::OK);
}

#[tokio::test]
async fn the_doctor_says_what_is_wrong_on_disk_and_how_to_mend_it() {
    use std::os::unix::fs::PermissionsExt as _;
    let server = Server::start().await;
    let data = server.directory.path();
    let mode = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(data, 0o700);
    for directory in ["keys", "repositories"] {
        std::fs::create_dir(data.join(directory)).unwrap();
        mode(&data.join(directory), 0o700);
    }
    for name in ["permissions", "repository", "disk"] {
        assert_eq!(check(&server, name).await["status"], "ok", "{name}");
    }
    let disk = check(&server, "disk").await["message"].as_str().unwrap().to_owned();
    assert!(disk.contains("iB of ") && disk.contains("(data, pods, repositories)"), "{disk}");

    let key = data.join("keys/default");
    std::fs::write(&key, "secret").unwrap();
    mode(&key, 0o640);
    let found = check(&server, "permissions").await;
    assert_eq!(found["status"], "failed");
    assert_eq!(found["hint"], format!("chmod go= {}", key.display()));
    mode(&key, 0o600);
    assert_eq!(check(&server, "permissions").await["status"], "ok");

    std::fs::remove_dir(data.join("repositories")).unwrap();
    let found = check(&server, "repository").await;
    assert_eq!(found["status"], "failed");
    assert!(found["hint"].as_str().unwrap().contains("mount its disk"), "{found}");
    assert!(!data.join("repositories").exists(), "an unmounted disk is not papered over");
}
