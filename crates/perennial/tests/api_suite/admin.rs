//! What administrators see and do.

use axum::http::StatusCode;
use serde_json::json;

use crate::server::Server;

#[tokio::test]
async fn administrators_see_all_pods_with_their_plans_and_subscriptions() {
    let server = Server::start().await;
    server.user("ann", "user", &["acme"]).await;
    server.pod_of("default", "plain").await;
    let subscription = server.subscription_of("acme", "wf").await;
    let all = server.get("/api/v1/admin/pods").await.json();
    let items = all["items"].as_array().unwrap();
    assert_eq!(items.len(), 2, "{all}");
    let wf = items.iter().find(|pod| pod["name"] == "wf").unwrap();
    assert_eq!(
        (&wf["tenant"], &wf["plan"], &wf["subscription"], &wf["subscriptionState"], &wf["disk"]),
        (&json!("acme"), &json!("n8n/plus"), &json!(subscription), &json!("active"), &json!(500 << 20))
    );
    let plain = items.iter().find(|pod| pod["name"] == "plain").unwrap();
    assert_eq!((&plain["plan"], &plain["subscription"]), (&json!(null), &json!(null)));
    assert_eq!(server.get("/api/v1/admin/pods?tenant=acme").await.json()["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn the_debug_view_shows_every_pod_of_the_database() {
    let server = Server::start().await;
    let pod = server.running("dev").await;
    let report = server.get("/api/v1/admin/pods/debug").await;
    assert_eq!(report.status, StatusCode::OK, "{report:?}");
    let report = report.json();
    assert_eq!(report["pods"][0]["id"], pod.to_string());
    // Nobody made it on this engine.
    assert!(!report["pods"][0]["differences"].as_array().unwrap().is_empty(), "{report}");
    assert_eq!((&report["orphans"], &report["suspicion"]), (&json!([]), &json!(null)));
    assert_eq!((&report["pods"][0]["usedBytes"], &report["pods"][0]["disk"]), (&json!(null), &json!(null)));
    let disks = report["fileSystems"].as_array().unwrap();
    let uses: Vec<&str> =
        disks.iter().flat_map(|disk| disk["uses"].as_array().unwrap()).map(|w| w.as_str().unwrap()).collect();
    assert!(uses.contains(&"data") && disks[0]["freeBytes"].as_u64() <= disks[0]["totalBytes"].as_u64(), "{disks:?}");
}

#[tokio::test]
async fn administrators_act_on_somebodys_pod_and_confirm_what_destroys() {
    let server = Server::start().await;
    server.user("ann", "user", &["acme"]).await;
    let pod = server.pod_of("acme", "dev").await;
    server.runs(pod).await;
    let path = format!("/api/v1/admin/pods/{pod}");
    let act = async |body| server.post(&format!("{path}/action"), body).await;
    for action in ["reset", "delete"] {
        let refused = act(json!({"action": action})).await;
        assert_eq!((refused.status, refused.problem().1.as_deref()), (StatusCode::BAD_REQUEST, Some("confirm")));
    }
    let refused = server.post(&format!("{path}/reset"), json!({"confirm": "no"})).await;
    assert_eq!(refused.problem().1.as_deref(), Some("confirm"));
    let unknown = act(json!({"action": "explode"})).await;
    assert_eq!((unknown.status, unknown.problem().1.as_deref()), (StatusCode::BAD_REQUEST, Some("action")));
    for (body, kind) in [
        (json!({"action": "restart"}), "restart"),
        (json!({"action": "reset", "confirm": "dev"}), "reset"),
        (json!({"action": "stop"}), "stop"),
        (json!({"action": "start"}), "start"),
        (json!({"action": "delete", "confirm": "dev"}), "delete"),
    ] {
        let done = act(body).await;
        assert_eq!((done.status, &done.json()["operation"]["kind"]), (StatusCode::ACCEPTED, &json!(kind)), "{done:?}");
    }
    assert_eq!(server.get("/api/v1/admin/deliveries").await.json()["items"], json!([]));
}

#[tokio::test]
async fn a_clean_up_tells_its_plan_and_takes_only_that() {
    let server = Server::start().await;
    let path = "/api/v1/admin/pods/cleanup-orphaned";
    let told = server.post(path, json!({})).await;
    assert_eq!(told.status, StatusCode::OK, "{told:?}");
    let told = told.json();
    assert_eq!((&told["items"], &told["done"], &told["halted"]), (&json!([]), &json!(false), &json!(null)));
    let done = server.post(path, json!({"plan": told["plan"]})).await.json();
    assert_eq!((&done["done"], &done["plan"]), (&json!(true), &told["plan"]));
    let changed = server.post(path, json!({"plan": "0"})).await;
    assert_eq!((changed.status, changed.problem().0.as_str()), (StatusCode::CONFLICT, "plan-changed"));
    for (body, field) in [
        (json!({"pods": ["x"]}), "pods[0]"),
        (json!({"pods": [perennial_core::id::PodId::from_parts(1, [1; 10]).to_string()]}), "pods[0]"),
        (json!({"all": true}), "all"),
    ] {
        let refused = server.post(path, body).await;
        assert_eq!((refused.status, refused.problem().1.as_deref()), (StatusCode::BAD_REQUEST, Some(field)));
    }
}
