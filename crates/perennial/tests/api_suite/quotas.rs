//! Quotas of tenants over the API.

use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::server::Server;

const ACME: &str = "/api/v1/tenants/acme";

#[tokio::test]
async fn a_quota_is_set_shown_and_held() {
    let server = Server::start().await;
    server.user("ann", "user", &["acme"]).await;
    let (_, ann) = server.token("ann", &["read", "operate"]).await;
    let set = async |quota: Value| server.patch(ACME, None, json!({ "quota": quota })).await;
    let answer = set(json!({"pods": 3, "cpus": 2.0, "memory": "3Gi"})).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    let quota = json!({"pods": 3, "cpus": 2.0, "memory": 3_u64 << 30, "disk": null});
    assert_eq!(answer.json()["quota"], quota);
    assert_eq!(server.get("/api/v1/tenants").await.json()["items"][0]["quota"], quota);

    let make = async |name: &str, resources: Value| {
        server.post_as(&ann, "/api/v1/pods", json!({"name": name, "image": "debian:12", "resources": resources})).await
    };
    let first = make("one", json!({"cpus": 1.0, "memory": "2Gi"})).await;
    assert_eq!(first.status, StatusCode::ACCEPTED, "{first:?}");
    for (resources, what) in [
        (json!({"cpus": 1.0, "memory": "2Gi"}), "may have 3Gi of memory together, have 2Gi, and would have 4Gi"),
        (json!({"cpus": 1.5, "memory": "1Gi"}), "may have 2 of CPU time together, have 1, and would have 2.5"),
        (json!({"memory": "1Gi"}), "has no limit of its own"),
    ] {
        let refused = make("two", resources).await;
        assert_eq!((refused.status, refused.problem().0.as_str()), (StatusCode::CONFLICT, "quota-exceeded"));
        assert!(refused.text.contains(what), "{what}: {}", refused.text);
    }
    assert_eq!(make("two", json!({"cpus": 1.0, "memory": "1Gi"})).await.status, StatusCode::ACCEPTED);
    let usage = server.get_as(&ann, ACME).await.json()["usage"].clone();
    assert_eq!(usage, json!({"pods": 2, "cpus": 2.0, "memory": 3_u64 << 30, "disk": 0, "unlimited": 2}));

    // One that grows, and one that comes back.
    let one = format!("/api/v1/pods/{}", first.json()["pod"]["id"].as_str().unwrap());
    let grow = server.patch_as(&ann, &one, json!({"resources": {"cpus": 1.0, "memory": "3Gi"}})).await;
    assert_eq!(grow.problem().0, "quota-exceeded");
    let deleted = server.delete_as(&ann, &one).await;
    assert_eq!(deleted.status, StatusCode::ACCEPTED, "{deleted:?}");
    assert_eq!(make("three", json!({"cpus": 0.5, "memory": "2Gi"})).await.status, StatusCode::ACCEPTED);
    let back = server.post_as(&ann, &format!("{one}/undelete"), json!({})).await;
    assert_eq!(back.problem().0, "quota-exceeded", "{back:?}");
    assert_eq!(set(Value::Null).await.json()["quota"]["pods"], Value::Null);
    let back = server.post_as(&ann, &format!("{one}/undelete"), json!({})).await;
    assert_eq!(back.status, StatusCode::ACCEPTED, "{back:?}");
}

#[tokio::test]
async fn a_reached_quota_is_told_once_a_day() {
    let server = Server::start().await;
    server.user("ann", "user", &["acme"]).await;
    let (_, ann) = server.token("ann", &["read", "operate"]).await;
    let set = server.patch(ACME, None, json!({"quota": {"pods": 0}})).await;
    assert_eq!(set.status, StatusCode::OK, "{set:?}");
    let told = async || {
        let events = server.get_as(&ann, "/api/v1/events?limit=1000").await.json();
        let all = events["items"].as_array().unwrap().clone();
        all.into_iter().filter(|event| event["type"] == "quota.reached").collect::<Vec<_>>()
    };
    let make = async || {
        let refused = server.post_as(&ann, "/api/v1/pods", json!({"name": "one", "image": "debian:12"})).await;
        assert_eq!(refused.problem().0, "quota-exceeded");
    };
    for days in 1..3 {
        for _ in 0..3 {
            make().await;
        }
        assert_eq!(told().await.len(), days);
        server.clock.advance(jiff::SignedDuration::from_hours(24));
    }
    let message = told().await[0]["message"].as_str().unwrap().to_owned();
    assert!(message.starts_with("refused: ") && message.contains("and has 0"), "{message}");
    // What is allowed tells nobody of anything.
    assert_eq!(server.patch(ACME, None, json!({"quota": null})).await.status, StatusCode::OK);
    let made = server.post_as(&ann, "/api/v1/pods", json!({"name": "one", "image": "debian:12"})).await;
    assert_eq!((made.status, told().await.len()), (StatusCode::ACCEPTED, 2));
}

#[tokio::test]
async fn a_quota_is_the_administrators_and_a_bad_one_changes_nothing() {
    let server = Server::start().await;
    server.user("ann", "user", &["acme"]).await;
    let (_, ann) = server.token("ann", &["read", "operate"]).await;
    let mine = server.patch_as(&ann, ACME, json!({"quota": {"pods": 99}})).await;
    assert_eq!(mine.status, StatusCode::FORBIDDEN, "{mine:?}");
    for bad in [
        json!({"quota": {"pods": -1}}),
        json!({"quota": {"pods": 1_000_001}}),
        json!({"quota": [null, null]}),
        json!({"quota": {"gpus": 1}}),
        json!({"pods": 1}),
        json!([]),
    ] {
        assert_eq!(server.patch(ACME, None, bad.clone()).await.status, StatusCode::BAD_REQUEST, "{bad}");
    }
    assert_eq!(
        server.patch("/api/v1/tenants/nosuch", None, json!({"quota": null})).await.status,
        StatusCode::NOT_FOUND
    );
    assert_eq!(server.patch(ACME, None, json!({})).await.json()["quota"]["pods"], Value::Null, "nothing was asked for");
}
