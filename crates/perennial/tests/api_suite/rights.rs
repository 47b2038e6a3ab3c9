//! Users, tenants and tokens: what each may give, and what is told of secrets.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, StatusCode};
use jiff::SignedDuration;
use perennial::service::Access;
use perennial::store::Store;
use perennial_core::fault::NoTap;
use perennial_drivers::sim::VirtualClock;
use serde_json::{Value, json};

use crate::server::{Answer, Server, TOKEN};

/// Within the hour of the tests' clock.
const SOON: &str = "2026-01-01T00:30:00Z";
const LATER: &str = "2026-01-01T01:00:00Z";
const LATEST: &str = "2026-01-01T02:00:00Z";

fn secret(answer: &Answer) -> String {
    assert_eq!(answer.status, StatusCode::CREATED, "{answer:?}");
    answer.json()["secret"].as_str().unwrap().to_owned()
}

async fn made(server: &Server, body: Value) -> String {
    secret(&server.post("/api/v1/tokens", body).await)
}

async fn forbidden(answer: Answer) {
    assert_eq!((answer.status, answer.problem().0.as_str()), (StatusCode::FORBIDDEN, "forbidden"), "{answer:?}");
}

#[tokio::test]
async fn the_first_tenant_is_there_from_the_start() {
    let server = Server::start().await;
    let tenants = server.get("/api/v1/tenants").await.json();
    assert_eq!(tenants["items"][0]["name"], "default");
    let shown = server.get("/api/v1/tenants/default").await.json();
    assert_eq!(shown["members"], json!([]));
    let taken = server.post("/api/v1/tenants", json!({"name": "default"})).await;
    assert_eq!(taken.problem().0, "tenant-name-taken");
    let wrong = server.post("/api/v1/tenants", json!({"name": "Not A Name"})).await;
    assert_eq!(wrong.problem().1.as_deref(), Some("name"));
}

#[tokio::test]
async fn everybody_can_ask_who_they_are() {
    let server = Server::start().await;
    let admin = server.get("/api/v1/me").await.json();
    assert_eq!((&admin["actor"], &admin["user"], &admin["tenants"]), (&json!("admin"), &Value::Null, &Value::Null));
    server.user("ann", "user", &["acme"]).await;
    let (id, token) = server.token("ann", &["operate"]).await;
    let ann = server.get_as(&token, "/api/v1/me").await.json();
    assert_eq!(ann["actor"], format!("user:ann token:{id}"));
    assert_eq!((&ann["user"], &ann["role"]), (&json!("ann"), &json!("user")));
    assert_eq!((&ann["scopes"], &ann["tenants"]), (&json!(["operate"]), &json!(["acme"])));
    assert_eq!(ann["token"]["id"], id);
}

#[tokio::test]
async fn a_user_works_in_their_tenant_and_is_named_in_the_trail() {
    let server = Server::start().await;
    server.user("ann", "user", &["acme"]).await;
    let (id, token) = server.token("ann", &["read", "operate"]).await;
    let pod = server.post_as(&token, "/api/v1/pods", json!({"name": "dev", "image": "debian:12"})).await;
    assert_eq!((pod.status, &pod.json()["pod"]["tenant"]), (StatusCode::ACCEPTED, &json!("acme")), "{pod:?}");
    let events = server.get_as(&token, "/api/v1/events").await.json();
    let of_pod = events["items"].as_array().unwrap().iter().find(|event| event["type"] == "operation.requested");
    assert_eq!(of_pod.unwrap()["actor"], format!("user:ann token:{id}"));

    // Of several tenants one has to be named, and of none there is none to name.
    server.post("/api/v1/tenants", json!({"name": "beta"})).await;
    server.ask(Method::PUT, "/api/v1/tenants/beta/members/ann", &[], Body::empty()).await;
    let new = |name: &str, tenant: Option<&str>| json!({"name": name, "image": "debian:12", "tenant": tenant});
    let unclear = server.post_as(&token, "/api/v1/pods", new("two", None)).await;
    assert_eq!((unclear.status, unclear.problem().1.as_deref()), (StatusCode::BAD_REQUEST, Some("tenant")));
    let named = server.post_as(&token, "/api/v1/pods", new("two", Some("beta"))).await;
    assert_eq!(named.status, StatusCode::ACCEPTED, "{named:?}");
    let other = server.post_as(&token, "/api/v1/pods", new("two", Some("default"))).await;
    assert_eq!(other.status, StatusCode::NOT_FOUND);
    server.user("dan", "user", &[]).await;
    let (_, dan) = server.token("dan", &["read", "operate"]).await;
    forbidden(server.post_as(&dan, "/api/v1/pods", new("three", None)).await).await;
    assert_eq!(server.get_as(&dan, "/api/v1/pods").await.json()["items"], json!([]));
}

#[tokio::test]
async fn what_a_token_makes_does_not_exceed_it() {
    let server = Server::start().await;
    server.user("ann", "user", &["acme", "beta"]).await;
    let maker =
        made(&server, json!({"user": "ann", "scopes": ["read", "operate"], "tenant": "acme", "expiresAt": LATER}))
            .await;
    let make = async |body: Value| server.post_as(&maker, "/api/v1/tokens", body).await;
    forbidden(make(json!({"scopes": ["admin"]})).await).await;
    forbidden(make(json!({"scopes": ["read"], "expiresAt": LATEST})).await).await;
    for tenant in ["beta", "default", "nosuch"] {
        let elsewhere = make(json!({"scopes": ["read"], "tenant": tenant})).await;
        assert_eq!(elsewhere.status, StatusCode::NOT_FOUND, "{elsewhere:?}");
    }
    for user in ["bob", "nosuch"] {
        assert_eq!(make(json!({"scopes": ["read"], "user": user})).await.status, StatusCode::NOT_FOUND);
    }
    for (body, field) in [
        (json!({"scopes": []}), "scopes"),
        (json!({"scopes": ["read"], "expiresAt": "2025-01-01T00:00:00Z"}), "expiresAt"),
        (json!({"scopes": ["read"], "name": "a\nb"}), "name"),
        (json!({"scopes": ["write"]}), "scopes[0]"),
    ] {
        let refused = make(body.clone()).await;
        assert_eq!((refused.status, refused.problem().1.as_deref()), (StatusCode::BAD_REQUEST, Some(field)), "{body}");
    }
    let child = make(json!({"scopes": ["operate"]})).await;
    let token = child.json()["token"].clone();
    assert_eq!((&token["tenant"], &token["expiresAt"]), (&json!("acme"), &json!(LATER)));
    let child = secret(&child);
    forbidden(server.post_as(&child, "/api/v1/tokens", json!({"scopes": ["read"]})).await).await;
    // What is good in one tenant does not know of what is good elsewhere.
    let (other, _) = server.token("ann", &["read"]).await;
    assert_eq!(server.delete_as(&maker, &format!("/api/v1/tokens/{other}")).await.status, StatusCode::NOT_FOUND);
    let known = server.get_as(&maker, "/api/v1/tokens").await.json();
    assert_eq!(known["items"].as_array().unwrap().len(), 2, "{known}");
}

#[tokio::test]
async fn rights_without_end_are_given_only_by_rights_without_bounds() {
    let server = Server::start().await;
    server.user("root", "admin", &[]).await;
    server.user("bob", "user", &["other"]).await;
    server.patch("/api/v1/users/bob", None, json!({"disabled": true})).await;
    let all = json!(["read", "operate", "admin"]);
    let bounded = [
        json!({"user": "root", "scopes": all, "expiresAt": LATER}),
        json!({"user": "root", "scopes": ["admin"]}),
        json!({"user": "root", "scopes": ["operate", "admin"]}),
    ];
    for (n, body) in bounded.into_iter().enumerate() {
        let token = made(&server, body.clone()).await;
        let before = server.footprint().await;
        let new = |more: Value| {
            let mut new = json!({"name": format!("u{n}")});
            new.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            new
        };
        let password = "correct horse battery";
        for more in [json!({"role": "admin"}), json!({"password": password})] {
            forbidden(server.post_as(&token, "/api/v1/users", new(more)).await).await;
        }
        for change in [
            json!({"role": "admin"}),
            json!({"password": password}),
            json!({"disabled": false}),
            json!({"email": "mallory@example.org"}),
        ] {
            forbidden(server.patch_as(&token, "/api/v1/users/bob", change).await).await;
        }
        let member = "/api/v1/tenants/other/members/root";
        forbidden(server.ask_as(&token, Method::PUT, member, &[], Body::empty()).await).await;
        assert_eq!(server.footprint().await, before, "{body}");
        // What gives nothing, or takes, is theirs to do.
        assert_eq!(server.post_as(&token, "/api/v1/users", new(json!({}))).await.status, StatusCode::CREATED);
        let disabled = server.patch_as(&token, &format!("/api/v1/users/u{n}"), json!({"disabled": true})).await;
        assert_eq!(disabled.json()["disabled"], true);
        let removed = server.delete_as(&token, &format!("/api/v1/users/u{n}")).await;
        assert_eq!(removed.status, StatusCode::NO_CONTENT);
    }
    let token = made(&server, json!({"user": "root", "scopes": all})).await;
    let enabled = server.patch_as(&token, "/api/v1/users/bob", json!({"disabled": false, "role": "admin"})).await;
    assert_eq!((&enabled.json()["disabled"], &enabled.json()["role"]), (&json!(false), &json!("admin")));
}

#[tokio::test]
async fn a_token_that_expires_makes_no_endless_ones() {
    let server = Server::start().await;
    server.user("root", "admin", &[]).await;
    server.user("ann", "user", &["acme"]).await;
    let root = made(&server, json!({"user": "root", "scopes": ["read", "operate", "admin"], "expiresAt": LATER})).await;
    for user in ["root", "ann"] {
        let body = json!({"user": user, "scopes": ["read"], "expiresAt": LATEST});
        forbidden(server.post_as(&root, "/api/v1/tokens", body).await).await;
        let child = server.post_as(&root, "/api/v1/tokens", json!({"user": user, "scopes": ["read"]})).await;
        assert_eq!(child.json()["token"]["expiresAt"], LATER);
        let sooner = json!({"user": user, "scopes": ["read"], "expiresAt": SOON});
        let sooner = secret(&server.post_as(&root, "/api/v1/tokens", sooner).await);
        assert_eq!(server.get_as(&sooner, "/api/v1/pods").await.status, StatusCode::OK);
    }
    server.clock.advance(SignedDuration::from_hours(1));
    assert_eq!(server.get_as(&root, "/api/v1/me").await.problem().0, "unauthorized");
}

#[tokio::test]
async fn a_role_that_was_taken_away_takes_the_installation_along() {
    let server = Server::start().await;
    server.user("root", "admin", &[]).await;
    let (_, token) = server.token("root", &["read", "operate", "admin"]).await;
    let pod = server.pod("dev").await;
    let pod = format!("/api/v1/pods/{pod}");
    assert_eq!(server.get_as(&token, "/api/v1/system").await.status, StatusCode::OK);
    assert_eq!(server.get_as(&token, &pod).await.status, StatusCode::OK);
    server.patch("/api/v1/users/root", None, json!({"role": "user"})).await;
    forbidden(server.get_as(&token, "/api/v1/system").await).await;
    assert_eq!(server.get_as(&token, &pod).await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_users_name_is_not_given_to_somebody_else() {
    let server = Server::start().await;
    server.user("ann", "user", &["acme"]).await;
    let (id, token) = server.token("ann", &["read"]).await;
    assert_eq!(server.get_as(&token, "/api/v1/pods").await.status, StatusCode::OK);
    let again = server.post("/api/v1/users", json!({"name": "ann"})).await;
    assert_eq!((again.status, again.problem().0.as_str()), (StatusCode::CONFLICT, "name-taken"));
    assert_eq!(server.delete("/api/v1/users/ann").await.status, StatusCode::NO_CONTENT);
    assert_eq!(server.get_as(&token, "/api/v1/pods").await.problem().0, "unauthorized");
    assert_eq!(server.get("/api/v1/users/ann").await.status, StatusCode::NOT_FOUND);
    assert_eq!(server.get("/api/v1/users").await.json()["items"], json!([]));
    assert_eq!(server.get("/api/v1/tenants/acme").await.json()["members"], json!([]));
    assert_eq!(server.post("/api/v1/users", json!({"name": "ann"})).await.problem().0, "name-taken");
    let revoked = server.get("/api/v1/tokens?user=ann").await.json();
    assert_eq!(revoked["items"][0]["id"], id);
    assert!(revoked["items"][0]["revokedAt"].is_string(), "{revoked}");
    assert_eq!(server.delete("/api/v1/users/ann").await.status, StatusCode::NOT_FOUND);
    for strange in ["x/members/%ff", "%00/members/ann", "acme/members/A%20B"] {
        let answer = server.delete(&format!("/api/v1/tenants/{strange}")).await;
        assert_eq!((answer.status, answer.problem().0.as_str()), (StatusCode::NOT_FOUND, "not-found"), "{strange}");
    }
}

#[tokio::test]
async fn an_address_is_of_one_user() {
    let server = Server::start().await;
    let new = |name: &str| json!({"name": name, "email": "ann@example.org"});
    assert_eq!(server.post("/api/v1/users", new("ann")).await.status, StatusCode::CREATED);
    assert_eq!(server.post("/api/v1/users", new("bob")).await.problem().0, "name-taken");
    let wrong = server.post("/api/v1/users", json!({"name": "bob", "email": "nowhere"})).await;
    assert_eq!(wrong.problem().1.as_deref(), Some("email"));
    let none = server.patch("/api/v1/users/ann", None, json!({"email": null})).await;
    assert_eq!(none.json()["email"], Value::Null);
    assert_eq!(server.post("/api/v1/users", new("bob")).await.status, StatusCode::CREATED);
}

#[tokio::test]
async fn a_tenant_that_is_erased_takes_memberships_and_its_tokens_along() {
    let server = Server::start().await;
    server.user("ann", "user", &["acme", "beta"]).await;
    let confined = made(&server, json!({"user": "ann", "scopes": ["read"], "tenant": "acme"})).await;
    let (_, free) = server.token("ann", &["read"]).await;
    let dry = server.post("/api/v1/tenants/acme/erase", json!({"dryRun": true})).await.json();
    let meaning = dry["meaning"].to_string();
    assert!(meaning.contains("1 membership") && meaning.contains("1 token"), "{meaning}");
    let erased = server.post("/api/v1/tenants/acme/erase", json!({"confirm": "acme"})).await;
    assert_eq!(erased.status, StatusCode::ACCEPTED, "{erased:?}");
    assert_eq!(server.get_as(&confined, "/api/v1/me").await.problem().0, "unauthorized");
    assert_eq!(server.get_as(&free, "/api/v1/me").await.json()["tenants"], json!(["beta"]));
    assert_eq!(server.get("/api/v1/tenants/acme").await.status, StatusCode::NOT_FOUND);
    let again = server.post("/api/v1/tenants", json!({"name": "acme"})).await;
    assert_eq!((again.status, again.problem().0.as_str()), (StatusCode::CONFLICT, "tenant-erased"));
    let member = server.ask(Method::PUT, "/api/v1/tenants/acme/members/ann", &[], Body::empty()).await;
    assert_eq!(member.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_first_pod_makes_its_tenant_for_who_may_make_tenants_and_the_trail_tells() {
    let server = Server::start().await;
    server.user("root", "admin", &[]).await;
    let (_, operator) = server.token("root", &["read", "operate"]).await;
    let new = |name: &str| json!({"name": name, "image": "debian:12", "tenant": "beta"});
    let refused = server.post_as(&operator, "/api/v1/pods", new("one")).await;
    assert_eq!((refused.status, refused.problem().0.as_str()), (StatusCode::NOT_FOUND, "not-found"));
    assert_eq!(server.get("/api/v1/tenants/beta").await.status, StatusCode::NOT_FOUND);
    assert_eq!(server.post("/api/v1/pods", new("one")).await.status, StatusCode::ACCEPTED);
    assert_eq!(server.post_as(&operator, "/api/v1/pods", new("two")).await.status, StatusCode::ACCEPTED);
    let events = server.get("/api/v1/events?limit=1000").await.json();
    let made =
        events["items"].as_array().unwrap().iter().filter(|e| e["type"] == "tenant.created" && e["tenant"] == "beta");
    assert_eq!(made.count(), 1, "{events:#}");
}

#[tokio::test]
async fn a_repetition_is_answered_to_who_may_see_what_it_was_about() {
    let server = Server::start().await;
    server.user("ann", "user", &["acme"]).await;
    server.user("bob", "user", &["acme"]).await;
    let (_, ann) = server.token("ann", &["operate"]).await;
    let (_, bob) = server.token("bob", &["operate"]).await;
    let headers = [("content-type", "application/json"), ("idempotency-key", "k")];
    let make = async |token: &str, name: &str| {
        let body = json!({"name": name, "image": "debian:12", "tenant": "acme"}).to_string();
        server.ask_as(token, Method::POST, "/api/v1/pods", &headers, body).await
    };
    let first = make(&ann, "one").await;
    assert_eq!(first.status, StatusCode::ACCEPTED, "{first:?}");
    // Keys of different people do not meet.
    assert_eq!(make(&bob, "two").await.status, StatusCode::ACCEPTED);
    let again = make(&ann, "one").await;
    assert_eq!((again.text.as_str(), again.headers.contains_key("idempotency-replayed")), (first.text.as_str(), true));
    server.delete("/api/v1/tenants/acme/members/ann").await;
    assert_eq!(make(&ann, "one").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn secrets_are_shown_once() {
    let server = Server::start().await;
    let password = "correct horse battery";
    let user = server.post("/api/v1/users", json!({"name": "ann", "password": password})).await;
    assert_eq!(user.json()["hasPassword"], true);
    let changed = server.patch("/api/v1/users/ann", None, json!({"password": "another horse battery"})).await;
    let answer = server.post("/api/v1/tokens", json!({"user": "ann", "scopes": ["read"]})).await;
    assert_eq!(answer.headers["cache-control"], "no-store");
    let token = secret(&answer);
    assert!(token.starts_with("prn_") && token.len() == 47, "{token}");
    server.get_as(&token, "/api/v1/me").await;
    let mut told = vec![user.text, changed.text];
    for path in ["users", "users/ann", "tokens", "events?limit=1000", "me"] {
        told.push(server.get(&format!("/api/v1/{path}")).await.text);
    }
    for text in told {
        for hidden in [token.as_str(), &token[4..], password, "another horse", "argon2", TOKEN] {
            assert!(!text.contains(hidden), "{text}");
        }
    }
}

#[tokio::test]
async fn the_last_use_is_remembered_and_not_with_each_request() {
    let server = Server::start().await;
    server.user("ann", "user", &["acme"]).await;
    let (_, token) = server.token("ann", &["read"]).await;
    let used = async || {
        server.get_as(&token, "/api/v1/pods").await;
        server.get("/api/v1/tokens?user=ann").await.json()["items"][0]["lastUsedAt"].clone()
    };
    assert_eq!(server.get("/api/v1/tokens?user=ann").await.json()["items"][0]["lastUsedAt"], Value::Null);
    assert_eq!(used().await, "2026-01-01T00:00:00Z");
    server.clock.advance(SignedDuration::from_mins(9));
    assert_eq!(used().await, "2026-01-01T00:00:00Z");
    server.clock.advance(SignedDuration::from_mins(1));
    assert_eq!(used().await, "2026-01-01T00:10:00Z");
}

/// Two servers on one database: here SQLite, which two processes could not share, and which is asked in the same way.
#[tokio::test]
async fn what_one_server_revokes_is_not_good_on_another() {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", directory.path().join("p.db").display());
    let (one, two) =
        (Store::open(&url, Arc::new(NoTap)).await.unwrap(), Store::open(&url, Arc::new(NoTap)).await.unwrap());
    let server = Server::on(one).await;
    server.user("ann", "user", &["acme"]).await;
    let (id, token) = server.token("ann", &["read"]).await;
    let clock: Arc<VirtualClock> = Arc::clone(&server.clock);
    // It looks whenever it is asked; a real one looks once a second.
    let other = Access::with_pause(two, clock as _, TOKEN, Duration::ZERO);
    let caller = other.caller(&token).await.unwrap().unwrap();
    assert!(other.again(&caller).await.is_ok());
    server.delete(&format!("/api/v1/tokens/{id}")).await;
    assert_eq!(other.caller(&token).await.unwrap(), None);
    assert!(other.again(&caller).await.is_err());
    tokio::time::timeout(Duration::from_secs(10), other.lost(&caller)).await.unwrap();
}

#[tokio::test]
async fn without_a_database_only_the_administrators_token_is_good() {
    let server = Server::start().await;
    server.user("ann", "user", &["acme"]).await;
    let (_, token) = server.token("ann", &["read"]).await;
    let access = Access::with_pause(server.store.clone(), Arc::clone(&server.clock) as _, TOKEN, Duration::ZERO);
    assert!(access.caller(&token).await.unwrap().is_some());
    server.store.close().await;
    assert!(access.caller(&token).await.is_err(), "what cannot be told is not good");
    assert!(access.caller(TOKEN).await.unwrap().is_some());
}

/// Elsewhere, whoever was logged in could stop and back up anybody's pod, to and from any path of the host, and run the clean-up.
#[tokio::test]
async fn p40_being_signed_in_gives_no_right_to_others_pods_to_the_host_or_to_the_installation() {
    let server = Server::start().await;
    server.user("ann", "user", &["acme"]).await;
    server.user("eve", "user", &["evil"]).await;
    let (_, eve) = server.token("eve", &["read", "operate"]).await;
    let pod = server.running("dev").await;
    let snapshot = server.snapshot(pod, 1).await;
    let before = server.footprint().await;
    let body = json!({"confirm": "dev", "snapshot": snapshot.to_string()});
    for verb in ["stop", "restart", "reset", "restore", "archive", "purge", "snapshots"] {
        let body = if matches!(verb, "stop" | "restart" | "snapshots" | "archive") { json!({}) } else { body.clone() };
        let refused = server.post_as(&eve, &format!("/api/v1/pods/{pod}/{verb}"), body).await;
        assert!(refused.status.is_client_error() && refused.status != StatusCode::CONFLICT, "{verb}: {refused:?}");
    }
    for path in [format!("pods/{pod}"), format!("pods/{pod}/logs"), format!("snapshots/{snapshot}/archive")] {
        let hidden = server.get_as(&eve, &format!("/api/v1/{path}")).await;
        assert_eq!(hidden.status, StatusCode::NOT_FOUND, "{path}: {hidden:?}");
    }
    for path in ["system", "admin/pods/debug", "admin/audit", "users"] {
        forbidden(server.get_as(&eve, &format!("/api/v1/{path}")).await).await;
    }
    assert_eq!(server.footprint().await, before);
    // Nothing of a request names a place on the host.
    for body in [
        json!({"name": "own", "image": "debian:12", "mounts": ["/etc:/etc"]}),
        json!({"name": "own", "image": "debian:12", "volumes": [{"name": "a", "mountPath": "/a", "hostPath": "/etc"}]}),
        json!({"name": "own", "image": "debian:12", "privileged": true}),
        json!({"name": "own", "image": "debian:12", "runtime": "/bin/sh"}),
    ] {
        let refused = server.post_as(&eve, "/api/v1/pods", body.clone()).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{body}: {refused:?}");
    }
    assert_eq!(server.footprint().await, before);
}
