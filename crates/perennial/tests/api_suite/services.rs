//! The catalogue over the API.

use axum::http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::server::{Answer, Server};

const N8N: &str = "/api/v1/services/n8n";

/// A service that is good.
fn definition() -> Value {
    json!({"name": "n8n", "title": "Ours", "plans": [{"name": "tiny", "image": "n8n:1", "profile": "declared",
        "volumes": [{"name": "data", "mountPath": "/data", "size": "64Mi"}],
        "env": {"PORT": "5678", "KEY": {"generate": {"length": 32}}}}]})
}

async fn put(server: &Server, path: &str, etag: Option<&str>, body: &Value) -> Answer {
    let mut headers = vec![("content-type", "application/json")];
    headers.extend(etag.map(|tag| ("if-match", tag)));
    server.ask(Method::PUT, path, &headers, body.to_string()).await
}

async fn events(server: &Server) -> Vec<(String, String, String)> {
    let text = |event: &Value, key: &str| event[key].as_str().unwrap().to_owned();
    let all = server.get("/api/v1/events").await.json();
    all["items"].as_array().unwrap().iter().map(|e| (text(e, "actor"), text(e, "type"), text(e, "message"))).collect()
}

#[tokio::test]
async fn what_is_shipped_is_listed_with_sizes_as_they_are_written() {
    let server = Server::start().await;
    let list = server.get("/api/v1/services").await;
    assert_eq!(list.status, StatusCode::OK);
    let list = list.json();
    let names: Vec<&str> = list["items"].as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["dev", "ghost", "n8n", "spreadsheet", "vscode", "wordpress"]);
    assert_eq!(list["conditions"], json!([]));
    let shown = server.get(N8N).await;
    let etag = shown.headers["etag"].to_str().unwrap().to_owned();
    let n8n = shown.json();
    assert_eq!(etag, format!("{:?}", n8n["revision"].as_str().unwrap()));
    assert_eq!((&n8n["source"], &n8n["changedAt"], &n8n["conditions"]), (&json!("shipped"), &Value::Null, &json!([])));
    let volume = &n8n["plans"][0]["volumes"][0];
    assert_eq!(
        *volume,
        json!({"name": "n8n-data", "mountPath": "/home/node/.n8n", "size": "250Mi", "sizeBytes": 262_144_000,
        "storageClass": "local-path", "accessMode": "ReadWriteOnce"})
    );
    assert_eq!((&n8n["plans"][0]["profile"], &n8n["plans"][0]["disk"]), (&json!("declared"), &json!(262_144_000)));
    // What is shown can be sent.
    assert_eq!(put(&server, N8N, Some(&etag), &n8n["definition"]).await.json()["revision"], n8n["revision"]);
    assert_eq!(server.get("/api/v1/services/none").await.problem().0, "not-found");
    assert_eq!(server.get("/api/v1/services/NONE").await.problem().0, "not-found");
}

#[tokio::test]
async fn what_is_put_wins_over_a_file_until_it_is_removed() {
    let server = Server::start().await;
    let before = server.get(N8N).await.json()["revision"].clone();
    let done = put(&server, N8N, None, &definition()).await;
    assert_eq!(done.status, StatusCode::OK, "{done:?}");
    let service = done.json();
    assert_eq!(
        (&service["source"], &service["title"], &service["changedBy"]),
        (&json!("database"), &json!("Ours"), &json!("admin"))
    );
    assert_eq!(service["conditions"][0]["type"], "OverridesFile");
    assert_eq!(
        service["definition"]["plans"][0]["env"]["KEY"],
        json!({"generate": {"length": 32, "alphabet": "alphanumeric"}})
    );
    assert_eq!(done.headers["etag"].to_str().unwrap(), format!("{:?}", service["revision"].as_str().unwrap()));
    assert_eq!(server.get(N8N).await.json(), service);
    // One that no file describes.
    let mine = json!({"name": "mine", "plans": [{"name": "a", "image": "debian:12"}]});
    assert_eq!(put(&server, "/api/v1/services/mine", None, &mine).await.json()["conditions"], json!([]));

    let removed = server.delete(N8N).await.json();
    assert_eq!((&removed["name"], &removed["service"]["revision"]), (&json!("n8n"), &before));
    let removed = server.delete("/api/v1/services/mine").await.json();
    assert_eq!(removed, json!({"name": "mine", "service": null}));
    let refused = server.delete(N8N).await;
    assert_eq!((refused.status, refused.problem().0.as_str()), (StatusCode::CONFLICT, "service-from-file"));
    assert_eq!(server.delete("/api/v1/services/mine").await.problem().0, "not-found");
    let told: Vec<(String, String)> = events(&server).await.into_iter().map(|(actor, kind, _)| (actor, kind)).collect();
    let by_admin = |kind: &str| ("admin".to_owned(), kind.to_owned());
    let [changed, removed] = ["service.changed", "service.removed"].map(by_admin);
    assert_eq!(told, [changed.clone(), changed, removed.clone(), removed]);
}

#[tokio::test]
async fn toml_is_taken_as_well() {
    let server = Server::start().await;
    let toml = "name = \"n8n\"\n[[plans]]\nname = \"a\"\nimage = \"debian:12\"\n";
    let send =
        async |media: &str, body: &str| server.ask(Method::PUT, N8N, &[("content-type", media)], body.to_owned()).await;
    let done = send("application/toml; charset=utf-8", toml).await;
    assert_eq!((done.status, &done.json()["plans"][0]["image"]), (StatusCode::OK, &json!("debian:12")));
    let bad = send("application/toml", "name = \"n8n\"\ncolour = 1\n[[plans]]\nimage = 7\n").await;
    assert_eq!(bad.problem(), ("invalid-service".to_owned(), Some("colour".to_owned())));
    let mistakes = bad.json()["mistakes"].clone();
    let place = |n: usize| (mistakes[n]["line"].clone(), mistakes[n]["column"].clone(), mistakes[n]["field"].clone());
    assert_eq!(place(0), (json!(2), json!(1), json!("colour")));
    assert_eq!(place(1), (json!(3), json!(1), json!("plans[0].name")));
    assert_eq!(place(2), (json!(4), json!(9), json!("plans[0].image")));
    assert_eq!(mistakes.as_array().unwrap().len(), 3);
    for media in ["text/plain", ""] {
        let refused = send(media, toml).await;
        assert_eq!(
            (refused.status, refused.problem().0.as_str()),
            (StatusCode::UNSUPPORTED_MEDIA_TYPE, "not-a-definition")
        );
    }
    let bytes = server.ask(Method::PUT, N8N, &[("content-type", "application/toml")], vec![0xff_u8, 0xfe]).await;
    assert_eq!(bytes.problem().0, "malformed-toml");
}

#[tokio::test]
async fn every_mistake_is_told_at_once_and_nothing_is_written() {
    let server = Server::start().await;
    let before = (server.get("/api/v1/services").await.json(), server.footprint().await);
    let mut bad = definition();
    bad["plans"][0]["memory"] = json!("1Gi");
    bad["plans"][0]["volumes"][0]["mountPath"] = json!("data");
    bad["plans"][0]["env"]["DB_PASSWORD"] = json!("hunter2");
    let refused = put(&server, N8N, None, &bad).await;
    assert_eq!((refused.status, refused.problem().0.as_str()), (StatusCode::BAD_REQUEST, "invalid-service"));
    assert!(!refused.text.contains("hunter2"), "{}", refused.text);
    let body = refused.json();
    let mistakes = body["mistakes"].as_array().unwrap();
    let told: Vec<(&str, &str)> =
        mistakes.iter().map(|m| (m["kind"].as_str().unwrap(), m["field"].as_str().unwrap())).collect();
    assert_eq!(told.len(), 3, "{told:?}");
    for one in [
        ("unknown-key", "plans[0].memory"),
        ("invalid-value", "plans[0].volumes[0].mountPath"),
        ("invalid-value", "plans[0].env.DB_PASSWORD"),
    ] {
        assert!(told.contains(&one), "{one:?}: {told:?}");
    }
    assert!(mistakes.iter().all(|m| m["line"].is_null() && m["hint"].is_string()), "{mistakes:?}");
    // Other failures say nothing of mistakes.
    assert!(server.get("/api/v1/services/none").await.json().get("mistakes").is_none());

    let other = put(&server, "/api/v1/services/ghost", None, &definition()).await;
    assert_eq!(other.problem(), ("invalid-input".to_owned(), Some("name".to_owned())));
    for body in ["", "{", "null", "[]"] {
        let refused = server.ask(Method::PUT, N8N, &[("content-type", "application/json")], body).await;
        assert_eq!(refused.problem().0, "invalid-service", "{body}");
    }
    assert_eq!((server.get("/api/v1/services").await.json(), server.footprint().await), before);
}

#[tokio::test]
async fn who_changes_a_service_that_changed_meanwhile_is_refused() {
    let server = Server::start().await;
    let shipped = server.get(N8N).await.headers["etag"].to_str().unwrap().to_owned();
    let mut body = definition();
    let first = put(&server, N8N, Some(&shipped), &body).await;
    assert_eq!(first.status, StatusCode::OK, "a service of a file has a revision as well");
    let first = first.headers["etag"].to_str().unwrap().to_owned();
    body["title"] = json!("Mine");
    let late = put(&server, N8N, Some(&shipped), &body).await;
    assert_eq!((late.status, late.problem().0.as_str()), (StatusCode::PRECONDITION_FAILED, "version-mismatch"));
    let late = server.ask(Method::DELETE, N8N, &[("if-match", shipped.as_str())], "").await;
    assert_eq!(late.status, StatusCode::PRECONDITION_FAILED);
    assert_eq!(put(&server, N8N, Some("x"), &body).await.problem().1.as_deref(), Some("If-Match"));
    for tag in [first.as_str(), "*"] {
        assert_eq!(put(&server, N8N, Some(tag), &body).await.status, StatusCode::OK, "{tag}");
    }
    let unknown = put(
        &server,
        "/api/v1/services/new",
        Some("\"abc\""),
        &json!({"name": "new", "plans": [{"name": "a",
        "image": "a"}]}),
    )
    .await;
    assert_eq!(unknown.status, StatusCode::PRECONDITION_FAILED);
}

/// Two servers see the same, and a definition that this version does not understand is told and not guessed.
#[tokio::test]
async fn a_definition_that_cannot_be_read_is_not_offered_and_not_replaced_by_a_file() {
    use perennial::store::{Change, Expected, ServiceBecomes, ServiceChange, StoredService};
    let server = Server::start().await;
    let row = StoredService {
        name: perennial_core::service::ServiceName::parse("n8n").unwrap(),
        revision: "future".to_owned(),
        definition: "{\"name\":\"n8n\",\"hologram\":true,\"plans\":[]}".to_owned(),
        actor: "admin".to_owned(),
        changed_at: "2026-01-01T00:00:00Z".parse().unwrap(),
    };
    let change = ServiceChange { expected: Expected::Absent, becomes: ServiceBecomes::Stored(row) };
    server.store.commit(Change { service: Some(change), ..Change::default() }).await.unwrap();
    let list = server.get("/api/v1/services").await.json();
    assert!(list["items"].as_array().unwrap().iter().all(|service| service["name"] != "n8n"));
    assert_eq!(list["conditions"][0]["type"], "DefinitionUnreadable");
    let one = server.get(N8N).await;
    assert_eq!((one.status, one.problem().0.as_str()), (StatusCode::CONFLICT, "service-unreadable"));
    assert_eq!(put(&server, N8N, None, &definition()).await.status, StatusCode::OK, "it can be mended");
}
