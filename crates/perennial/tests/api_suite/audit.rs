//! The audit in the API: changes and refusals, pages and filters.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use perennial::api::wire::AuditPage;
use perennial::audit::{Checker, Numbered};
use perennial::store::Store;
use perennial_core::fault::NoTap;
use serde_json::{Value, json};
use sqlx::Connection as _;

use super::server::{Server, TOKEN};

const AUDIT: &str = "/api/v1/admin/audit";

async fn items(server: &Server, query: &str) -> Vec<Value> {
    let answer = server.get(&format!("{AUDIT}{query}")).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    answer.json()["items"].as_array().unwrap().clone()
}

#[tokio::test]
async fn changes_and_refusals_are_in_the_audit_with_their_requests_and_without_secrets() {
    let server = Server::start().await;
    let body =
        json!({"name": "dev", "image": "debian:12", "env": {"TOKEN": "hunter2"}, "command": ["run", "--pw=tuna"]});
    let made = server.post("/api/v1/pods", body).await;
    let pod = made.json()["pod"]["id"].as_str().unwrap().to_owned();
    let wrong = json!({"name": "BAD NAME hunter2", "image": "debian:12", "env": {"TOKEN": "swordfish"}});
    let refused = server.post("/api/v1/pods", wrong).await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    let missing = server.post("/api/v1/pods/01kefakep0d000000000000000/start", json!({})).await;
    assert_eq!(missing.status, StatusCode::NOT_FOUND);
    let named = [("x-request-id", "mine"), ("content-type", "application/json")];
    let reset = server.ask(Method::POST, &format!("/api/v1/pods/{pod}/reset"), &named, "{}").await;
    assert!(reset.status.is_client_error(), "{reset:?}");
    // Who only reads changes nothing, and who has no token is nobody.
    assert_eq!(server.get("/api/v1/pods/01kefakep0d000000000000000").await.status, StatusCode::NOT_FOUND);
    let stranger = axum::http::Request::post("/api/v1/pods").header("authorization", format!("Bearer {TOKEN}x"));
    assert_eq!(server.send(stranger.body(Body::empty()).unwrap()).await.status(), StatusCode::UNAUTHORIZED);

    let all = items(&server, "").await;
    let told: Vec<_> = all.iter().map(|row| (row["result"].as_str().unwrap(), row["code"].clone())).collect();
    assert_eq!(told[0], ("done", Value::Null));
    let refusals: Vec<&Value> = all.iter().filter(|row| row["result"] == "refused").collect();
    let codes: Vec<&str> = refusals.iter().map(|row| row["code"].as_str().unwrap()).collect();
    assert_eq!(codes, ["invalid-input", "not-found", &reset.problem().0], "{all:?}");
    assert!(refusals.iter().all(|row| row["actor"] == "admin" && row["tenant"].is_null() && row["after"].is_null()));
    let id = |answer: &super::server::Answer| json!(answer.headers["x-request-id"].to_str().unwrap());
    assert_eq!((&all[0]["requestId"], &refusals[0]["requestId"]), (&id(&made), &id(&refused)));
    assert_eq!((&refusals[2]["requestId"], &refusals[2]["podId"]), (&json!("mine"), &json!(pod)));
    assert_eq!(refusals[2]["action"], format!("POST /api/v1/pods/{pod}/reset"));
    assert_eq!((&all[0]["podId"], &all[0]["after"]["env"]), (&json!(pod), &json!(["TOKEN"])));
    assert_eq!((&all[0]["after"]["command"], &all[0]["before"]), (&json!("2 words"), &Value::Null));
    let text = server.get(AUDIT).await.text;
    for secret in ["hunter2", "swordfish", "tuna", TOKEN] {
        assert!(!text.contains(secret), "{secret}: {text}");
    }

    // A change of a variable's value alone is told by its name.
    let tag = server.get(&format!("/api/v1/pods/{pod}")).await.headers["etag"].to_str().unwrap().to_owned();
    let patched =
        server.patch(&format!("/api/v1/pods/{pod}"), Some(&tag), json!({"env": {"TOKEN": "correct horse"}})).await;
    assert!(patched.status.is_success(), "{patched:?}");
    let last = items(&server, &format!("?pod={pod}")).await.pop().unwrap();
    assert_eq!((&last["after"], &last["before"]), (&json!({"changed": ["env.TOKEN"]}), &json!({})), "{last}");
}

#[tokio::test]
async fn who_was_refused_for_want_of_rights_and_who_got_them_is_in_the_audit() {
    let server = Server::start().await;
    server.user("ann", "user", &["acme"]).await;
    let (id, token) = server.token("ann", &["read"]).await;
    let body = json!({"name": "dev", "image": "debian:12"});
    assert_eq!(server.post_as(&token, "/api/v1/pods", body).await.status, StatusCode::FORBIDDEN);
    assert_eq!(server.get_as(&token, AUDIT).await.status, StatusCode::FORBIDDEN);

    let all = items(&server, "").await;
    let of =
        |action: &str| all.iter().find(|row| row["action"] == action).unwrap_or_else(|| panic!("{action}: {all:?}"));
    let refused = of("POST /api/v1/pods");
    assert_eq!((&refused["result"], &refused["code"]), (&json!("refused"), &json!("forbidden")));
    assert_eq!((&refused["actor"], &refused["tenant"]), (&json!(format!("user:ann token:{id}")), &json!("acme")));
    for action in ["user.created", "tenant.member-added", "token.created"] {
        assert_eq!((&of(action)["actor"], &of(action)["result"]), (&json!("admin"), &json!("done")));
    }
    assert!(!server.get(AUDIT).await.text.contains(&token));
}

/// The database is held, so that whoever asks hangs up while the refusal waits to be written.
#[tokio::test]
async fn who_hangs_up_before_the_refusal_is_written_is_in_the_audit_all_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", directory.path().join("p.db").display());
    let server = Server::on(Store::open(&url, Arc::new(NoTap)).await.unwrap()).await;
    let mut holder = sqlx::AnyConnection::connect(&url).await.unwrap();
    sqlx::query("BEGIN IMMEDIATE").execute(&mut holder).await.unwrap();
    let request = Request::builder().method("POST").uri("/api/v1/pods");
    let request = request.header("authorization", format!("Bearer {TOKEN}")).header("content-type", "application/json");
    {
        let mut asked = std::pin::pin!(server.send(request.body(Body::from(r#"{"name": "BAD"}"#)).unwrap()));
        // Nothing before the audit waits for anything but its turn.
        for _ in 0..1000 {
            assert!(futures::poll!(&mut asked).is_pending(), "it waits for the audit");
            tokio::task::yield_now().await;
        }
    }
    sqlx::query("ROLLBACK").execute(&mut holder).await.unwrap();
    // Comes to the database after what waits for it.
    assert_eq!(server.post("/api/v1/tenants", json!({"name": "acme"})).await.status, StatusCode::CREATED);
    let refused = items(&server, "?limit=1000").await.into_iter().filter(|row| row["result"] == "refused").count();
    assert_eq!(refused, 1);
}

#[tokio::test]
async fn nobody_fills_the_audit_with_refusals() {
    let server = Server::start().await;
    server.user("ann", "user", &["acme"]).await;
    let (_, one) = server.token("ann", &["operate"]).await;
    let (_, other) = server.token("ann", &["operate"]).await;
    for _ in 0..40 {
        for token in [&one, &other] {
            let refused = server.post_as(token, "/api/v1/pods", json!({"name": "BAD"})).await;
            assert!(refused.status.is_client_error(), "{refused:?}");
        }
    }
    let all = items(&server, "?limit=1000").await;
    let of = |action: &str| all.iter().filter(|row| row["action"] == action).count();
    assert_eq!((of("POST /api/v1/pods"), of("refusals.left-out")), (60, 1));
    // Who else is refused meanwhile is in it.
    assert!(server.post("/api/v1/pods", json!({"name": "BAD"})).await.status.is_client_error());
    let last = items(&server, "?limit=1000").await.pop().unwrap();
    assert_eq!((&last["action"], &last["actor"]), (&json!("POST /api/v1/pods"), &json!("admin")));
}

#[tokio::test]
async fn the_audit_is_paged_filtered_and_verified_by_whoever_reads_it() {
    let server = Server::start().await;
    for name in ["a", "b", "c"] {
        server.running(name).await;
    }
    let mut checker = Checker::new(None);
    let mut after = "0".to_owned();
    let head = loop {
        let page: AuditPage =
            serde_json::from_str(&server.get(&format!("{AUDIT}?limit=1&after={after}")).await.text).unwrap();
        let next = page.next.clone();
        for row in page.items {
            checker.next(&Numbered::try_from(row).unwrap()).unwrap();
        }
        match next {
            Some(next) => after = next,
            None => break page.head,
        }
    };
    assert!(head.number >= 3);
    let found = checker.end(head.clone().try_into().unwrap()).unwrap();
    assert_eq!(found.link.to_string(), head.hash);

    let all = items(&server, "").await;
    let pod = all[0]["podId"].as_str().unwrap();
    let of_pod = items(&server, &format!("?pod={pod}")).await;
    assert!(!of_pod.is_empty() && of_pod.iter().all(|row| row["podId"] == pod) && of_pod.len() < all.len());
    assert_eq!(items(&server, "?tenant=acme").await, Vec::<Value>::new());
    assert_eq!(items(&server, "?actor=nobody").await, Vec::<Value>::new());
    assert_eq!(items(&server, "?tenant=default&actor=admin&since=2025-12-31T23:59:59Z").await.len(), 3);
    assert_eq!(items(&server, "?since=2999-01-01T00:00:00Z").await, Vec::<Value>::new());
    for (query, field) in [
        ("since=then", "since"),
        ("after=-1", "after"),
        ("limit=0", "limit"),
        ("pod=x", "pod"),
        ("colour=red", "colour"),
    ] {
        let refused = server.get(&format!("{AUDIT}?{query}")).await;
        assert_eq!((refused.status, refused.problem().1.as_deref()), (StatusCode::BAD_REQUEST, Some(field)), "{query}");
    }
}
