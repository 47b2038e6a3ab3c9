//! Pods that are made of plans.

use axum::http::{Method, StatusCode};
use perennial_core::id::PodId;
use serde_json::{Value, json};

use crate::server::Server;

const SERVICE: &str = "/api/v1/services/notes";

/// A server with a service of its own, a member of a tenant, and their token.
async fn with_service() -> (Server, String) {
    let server = Server::start().await;
    let definition = json!({"name": "notes", "plans": [{"name": "small", "image": "debian:12", "profile": "declared",
        "volumes": [{"name": "data", "mountPath": "/data", "size": "64Mi"}], "resources": {"memory": "256Mi"},
        "onStop": "pause",
        "env": {"PORT": "80", "KEY": {"generate": {"length": 40, "alphabet": "hex"}}, "PASS": {"generate": {"length": 24}}}}]});
    let put = server.ask(Method::PUT, SERVICE, &[("content-type", "application/json")], definition.to_string()).await;
    assert_eq!(put.status, StatusCode::OK, "{put:?}");
    server.user("ann", "user", &["acme"]).await;
    let (_, ann) = server.token("ann", &["read", "operate"]).await;
    (server, ann)
}

fn order(name: &str, more: &Value) -> Value {
    let mut body = json!({"name": name, "plan": "notes/small"});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

async fn ordered(server: &Server, token: &str, name: &str) -> String {
    let answer = server.post_as(token, "/api/v1/pods", order(name, &json!({"env": {"MORE": "1"}}))).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{answer:?}");
    answer.json()["pod"]["id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_pod_of_a_plan_has_what_the_plan_says_and_secrets_of_its_own() {
    let (server, ann) = with_service().await;
    let pod = ordered(&server, &ann, "one").await;
    let path = format!("/api/v1/pods/{pod}");
    let shown = server.get_as(&ann, &path).await;
    let spec = shown.json()["spec"].clone();
    let revision = server.get(SERVICE).await.json()["revision"].clone();
    assert_eq!(spec["plan"], json!({"service": "notes", "plan": "small", "revision": revision}));
    assert_eq!((&spec["env"], &spec["secrets"]), (&json!({"PORT": "80", "MORE": "1"}), &json!(["KEY", "PASS"])));
    assert_eq!((&spec["resources"]["memory"], &spec["onStop"]), (&json!(256 << 20), &json!("pause")));
    assert_eq!(spec["volumes"], json!([{"name": "data", "mountPath": "/data", "size": 64 << 20}]));
    assert_eq!(shown.json()["image"], "debian:12");

    let secrets = server.get_as(&ann, &format!("{path}/secrets")).await;
    assert_eq!(secrets.headers["cache-control"], "no-store");
    let of = |answer: &Value, name: &str| answer["secrets"][name].as_str().unwrap().to_owned();
    let (key, pass) = (of(&secrets.json(), "KEY"), of(&secrets.json(), "PASS"));
    assert!(key.len() == 40 && key.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)), "{key}");
    assert!(pass.len() == 24 && pass.bytes().all(|b| b.is_ascii_alphanumeric()), "{pass}");
    let other = ordered(&server, &ann, "two").await;
    let others = server.get_as(&ann, &format!("/api/v1/pods/{other}/secrets")).await.json();
    assert_ne!(of(&others, "KEY"), key);

    // They are where they are asked for by who may operate the pod, and nowhere else.
    let (_, reader) = server.token("ann", &["read"]).await;
    assert_eq!(server.get_as(&reader, &format!("{path}/secrets")).await.status, StatusCode::FORBIDDEN);
    server.user("bob", "user", &["beta"]).await;
    let (_, bob) = server.token("bob", &["read", "operate"]).await;
    assert_eq!(server.get_as(&bob, &format!("{path}/secrets")).await.status, StatusCode::NOT_FOUND);
    let mut told = vec![shown.text];
    for path in
        ["pods", "events?limit=1000", "admin/audit", &format!("pods/{pod}/operations"), &format!("pods/{pod}/status")]
    {
        told.push(server.get(&format!("/api/v1/{path}")).await.text);
    }
    for text in told {
        assert!(!text.contains(&key) && !text.contains(&pass), "{text}");
    }
}

#[tokio::test]
async fn what_comes_with_a_plan_is_changed_by_administrators_alone() {
    let (server, ann) = with_service().await;
    for (more, field) in [
        (json!({"image": "busybox:1"}), "image"),
        (json!({"resources": {"memory": "8Gi"}}), "resources"),
        (json!({"volumes": []}), "volumes"),
        (json!({"env": {"PORT": "81"}}), "env.\"PORT\""),
        (json!({"env": {"KEY": "mine"}}), "env.\"KEY\""),
        (json!({"onStop": "release"}), "onStop"),
        (json!({"fromSnapshot": "01kefakesnap00000000000000"}), "plan"),
        (json!({"plan": "notes"}), "plan"),
    ] {
        let refused = server.post_as(&ann, "/api/v1/pods", order("x", &more)).await;
        assert_eq!((refused.status, refused.problem().1.as_deref()), (StatusCode::BAD_REQUEST, Some(field)), "{more}");
    }
    for plan in ["notes/large", "other/small"] {
        let refused = server.post_as(&ann, "/api/v1/pods", order("x", &json!({"plan": plan}))).await;
        assert_eq!(refused.status, StatusCode::NOT_FOUND, "{plan}: {refused:?}");
    }
    let items = server.get("/api/v1/pods").await.json()["items"].clone();
    assert_eq!(items, json!([]), "nothing was made");

    let pod = ordered(&server, &ann, "one").await;
    let path = format!("/api/v1/pods/{pod}");
    let patch = async |token: &str, body: Value| {
        let headers = [("content-type", "application/json")];
        server.ask_as(token, Method::PATCH, &path, &headers, body.to_string()).await
    };
    let secrets = server.get_as(&ann, &format!("{path}/secrets")).await.text;
    let refused = patch(&ann, json!({"resources": {"memory": "8Gi"}})).await;
    assert_eq!(refused.problem().1.as_deref(), Some("resources"));
    let refused = patch(&ann, json!({"env": null})).await;
    assert_eq!(refused.problem().1.as_deref(), Some("env.\"PORT\""));
    let chosen = patch(&ann, json!({"env": {"PORT": "80", "MORE": "2"}})).await;
    assert_eq!((chosen.status, &chosen.json()["spec"]["env"]["MORE"]), (StatusCode::OK, &json!("2")));
    let larger = server.patch(&path, None, json!({"resources": {"memory": "8Gi"}})).await;
    assert_eq!(larger.json()["spec"]["resources"]["memory"], json!(8_u64 << 30));
    assert_eq!(server.get_as(&ann, &format!("{path}/secrets")).await.text, secrets, "they stay");
    let admins = server.post("/api/v1/pods", order("two", &json!({"image": "busybox:1", "tenant": "acme"}))).await;
    assert_eq!(admins.status, StatusCode::ACCEPTED, "{admins:?}");
}

#[tokio::test]
async fn what_is_made_from_a_pod_of_a_plan_has_its_plan_and_secrets() {
    let (server, ann) = with_service().await;
    let pod = ordered(&server, &ann, "one").await;
    let id: PodId = pod.parse().unwrap();
    server.runs(id).await;
    let secrets = async |pod: &Value| {
        let id = pod["pod"]["id"].as_str().unwrap().to_owned();
        server.get_as(&ann, &format!("/api/v1/pods/{id}/secrets")).await.text
    };
    let own = server.get_as(&ann, &format!("/api/v1/pods/{pod}/secrets")).await.text;
    let snapshot = server.snapshot(id, 1).await.to_string();
    let refused = json!({"name": "more", "fromSnapshot": snapshot, "resources": {"memory": "8Gi"}});
    let refused = server.post_as(&ann, "/api/v1/pods", refused).await;
    assert_eq!(refused.problem().1.as_deref(), Some("resources"), "{refused:?}");
    let made = server.post_as(&ann, "/api/v1/pods", json!({"name": "more", "fromSnapshot": snapshot})).await;
    assert_eq!(made.status, StatusCode::ACCEPTED, "{made:?}");
    assert_eq!(secrets(&made.json()).await, own, "its data is of no use without them");
    let copy = json!({"name": "copy", "snapshotId": snapshot});
    let copy = server.post_as(&ann, &format!("/api/v1/pods/{pod}/clone"), copy).await;
    assert_eq!(copy.status, StatusCode::ACCEPTED, "{copy:?}");
    assert_eq!(copy.json()["pod"]["spec"]["plan"]["plan"], "small");
    assert_eq!(secrets(&copy.json()).await, own);
}
