//! The end of a tenant in the API.

use axum::http::StatusCode;
use perennial_core::spec::TenantId;
use serde_json::{Value, json};

use super::server::Server;

const ERASE: &str = "/api/v1/tenants/acme/erase";
const ERASURE: &str = "/api/v1/tenants/acme/erasure";

/// A server with a tenant that has a repository and no pods.
async fn with_acme() -> Server {
    let server = Server::start().await;
    server.repositories.prepare(&TenantId::parse("acme").unwrap()).unwrap();
    server
}

#[tokio::test]
async fn an_erasure_explains_itself_and_needs_the_name() {
    let server = with_acme().await;
    let before = server.footprint().await;
    let dry = server.post(ERASE, json!({"dryRun": true})).await;
    assert_eq!(dry.status, StatusCode::OK, "{dry:?}");
    let plan = dry.json();
    assert_eq!((&plan["state"], &plan["blockers"], &plan["doubts"]), (&json!("planned"), &json!([]), &json!([])));
    assert_eq!(
        (&plan["repository"]["snapshots"], &plan["replica"], &plan["askedAt"]),
        (&json!(0), &Value::Null, &Value::Null)
    );
    assert_eq!((&plan["repository"]["became"], &plan["acceptUnknown"]), (&Value::Null, &Value::Null));
    assert!(plan["meaning"].as_array().unwrap().len() > 3, "{plan}");
    let early = server.post(ERASE, json!({"confirm": "acme", "giveUp": true})).await;
    assert_eq!(early.problem().1.as_deref(), Some("giveUp"));
    for body in [json!({}), json!({"confirm": "default"}), json!({"confirm": null, "deleteData": true})] {
        assert_eq!(server.post(ERASE, body).await.problem().1.as_deref(), Some("confirm"));
    }
    let wrong = server.post(ERASE, json!({"dryRun": true, "deleteDate": true})).await;
    assert_eq!(wrong.problem().1.as_deref(), Some("deleteDate"));
    assert_eq!(server.get(ERASURE).await.status, StatusCode::NOT_FOUND);
    assert_eq!(server.footprint().await, before);
    for unknown in ["nobody", "%2e%2e", "A", "a.made"] {
        let answer = server.post(&format!("/api/v1/tenants/{unknown}/erase"), json!({"dryRun": true})).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{unknown}: {answer:?}");
    }

    let begun = server.post(ERASE, json!({"confirm": "acme"})).await;
    assert_eq!(begun.status, StatusCode::ACCEPTED, "{begun:?}");
    let erasure = begun.json();
    assert_eq!((&erasure["state"], &erasure["actor"]), (&json!("destroyingKeys"), &json!("admin")));
    assert_eq!(server.get(ERASURE).await.json(), erasure);
    // The same again is the same, and begins nothing.
    let events = server.footprint().await;
    assert_eq!(server.post(ERASE, json!({"confirm": "acme"})).await.json(), erasure);
    assert_eq!(server.footprint().await, events);
    let given_up = server.post(ERASE, json!({"dryRun": true, "giveUp": true})).await.json();
    assert_eq!((&given_up["state"], &given_up["repository"]["became"]), (&json!("planned"), &json!("givenUp")));
    assert_eq!(server.get(ERASURE).await.json(), erasure);
    // That the files go as well is more than was asked for.
    let more = server.post(ERASE, json!({"dryRun": true, "deleteData": true})).await.json();
    assert_eq!((&more["state"], &more["deleteData"]), (&json!("planned"), &json!(true)));
    assert_eq!(server.post(ERASE, json!({"confirm": "acme", "deleteData": true})).await.json()["deleteData"], true);
    let given_up = server.post(ERASE, json!({"confirm": "acme", "giveUp": true})).await.json();
    assert_eq!((&given_up["state"], &given_up["repository"]["became"]), (&json!("emptying"), &json!("givenUp")));
}

#[tokio::test]
async fn doubts_are_accepted_as_they_were_told() {
    let server = with_acme().await;
    // A key that opens nothing any more: nobody can say what is there.
    std::fs::remove_file(server.directory.path().join("keys/acme")).unwrap();
    let plan = server.post(ERASE, json!({"dryRun": true})).await.json();
    assert_eq!((plan["doubts"].as_array().unwrap().len(), &plan["repository"]["became"]), (1, &json!("untouched")));
    for accepted in [Value::Null, json!(""), json!("0123456789abcdef")] {
        let refused = server.post(ERASE, json!({"confirm": "acme", "acceptUnknown": accepted})).await;
        assert_eq!(refused.problem().0, "tenant-unclear", "{accepted}");
    }
    let begun = server.post(ERASE, json!({"confirm": "acme", "acceptUnknown": plan["acceptUnknown"]})).await;
    assert_eq!(begun.status, StatusCode::ACCEPTED, "{begun:?}");
}

#[tokio::test]
async fn no_pod_is_made_in_a_tenant_that_is_erased() {
    let server = with_acme().await;
    let pod = |tenant: &str| json!({"name": "dev", "image": "debian:12", "tenant": tenant});
    let made = server.post("/api/v1/pods", pod("acme")).await;
    assert_eq!(made.status, StatusCode::ACCEPTED);
    let refused = server.post(ERASE, json!({"confirm": "acme"})).await;
    assert_eq!(refused.problem().0, "tenant-in-use");
    let id = made.json()["pod"]["id"].as_str().unwrap().to_owned();
    assert!(refused.text.contains(&id), "{refused:?}");

    let server = with_acme().await;
    server.post(ERASE, json!({"confirm": "acme"})).await;
    let refused = server.post("/api/v1/pods", pod("acme")).await;
    assert_eq!((refused.status, refused.problem().0.as_str()), (StatusCode::CONFLICT, "tenant-erased"));
    assert_eq!(server.post("/api/v1/pods", pod("other")).await.status, StatusCode::ACCEPTED);
}
