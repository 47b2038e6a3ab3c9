//! Schedules and rules of snapshots in the API.

use axum::http::StatusCode;
use perennial::store::Change;
use perennial_core::snapshot::SnapshotKind;
use serde_json::{Value, json};

use super::server::Server;

fn create(snapshots: Value) -> Value {
    json!({"name": "dev", "image": "debian:12", "snapshots": snapshots})
}

#[tokio::test]
async fn rules_are_taken_shown_and_changed() {
    let server = Server::start().await;
    let keep = json!({"last": 7, "hourly": 24, "daily": 7, "weekly": 4, "monthly": 12, "yearly": 0, "within": "30d", "minimum": 3});
    let rules = json!({"schedule": "0 3 * * *", "timeZone": "Europe/Berlin", "keep": keep});
    let made = server.post("/api/v1/pods", create(rules)).await.json();
    let pod = &made["pod"];
    let shown = &pod["spec"]["snapshots"];
    assert_eq!(
        (&shown["schedule"], &shown["keep"]["within"], &shown["keep"]["manual"]),
        (&json!("0 3 * * *"), &json!("30d"), &json!(false))
    );
    // Three in the morning in Berlin, and the pod's own delay.
    let next = pod["nextSnapshotAt"].as_str().unwrap();
    assert!(next.starts_with("2026-01-01T02:0"), "{next}");
    let path = format!("/api/v1/pods/{}", pod["id"].as_str().unwrap());
    let off = server.patch(&path, None, json!({"snapshots": {"schedule": "off"}})).await.json();
    assert_eq!((&off["nextSnapshotAt"], &off["spec"]["snapshots"]["keep"]), (&Value::Null, &Value::Null));
    assert_eq!(off["specGeneration"], pod["specGeneration"], "nothing has to be restarted for it");
    let default = server.patch(&path, None, json!({"snapshots": null})).await.json();
    assert_eq!(default["spec"]["snapshots"]["schedule"], Value::Null);
}

#[tokio::test]
async fn what_is_wrong_with_rules_is_named() {
    let server = Server::start().await;
    for (rules, field) in [
        (json!({"schedule": "61 * * * *"}), "snapshots.schedule"),
        (json!({"timeZone": "Mars/Olympus"}), "snapshots.timeZone"),
        (json!({"keep": {"daily": 1_000_000}}), "snapshots.keep.daily"),
        (json!({"keep": {"within": "-3d"}}), "snapshots.keep.within"),
        (json!({"keep": {"within": "soon"}}), "snapshots.keep.within"),
        (json!({"keep": {"dayly": 3}}), "snapshots.keep.dayly"),
    ] {
        let refused = server.post("/api/v1/pods", create(rules.clone())).await;
        assert_eq!(refused.problem().1.as_deref(), Some(field), "{rules}: {refused:?}");
    }
}

#[tokio::test]
async fn a_forget_explains_itself_and_does_what_it_said() {
    let server = Server::start().await;
    let pod = server.running("dev").await;
    let mut ids = Vec::new();
    for n in 1..5 {
        let id = server.snapshot(pod, n).await;
        let mut row = server.store.snapshot_fetch(id).await.unwrap().unwrap();
        row.kind = if n == 2 { SnapshotKind::Manual } else { SnapshotKind::Scheduled };
        server.store.commit(Change { snapshots: vec![row], ..Change::default() }).await.unwrap();
        ids.push(id.to_string());
    }
    let path = format!("/api/v1/pods/{pod}/snapshots/forget");
    let ask = |mut body: Value| {
        body["keep"] = json!({"last": 2});
        server.post(&path, body)
    };
    let before = server.footprint().await;
    let dry = ask(json!({"dryRun": true})).await;
    assert_eq!((dry.status, server.footprint().await), (StatusCode::OK, before));
    let actions = |answer: &Value| {
        let of =
            |d: &Value| (d["snapshot"]["id"].as_str().unwrap().to_owned(), d["action"].as_str().unwrap().to_owned());
        let mut all: Vec<_> = answer["decisions"].as_array().unwrap().iter().map(of).collect();
        all.sort();
        all.into_iter().map(|(_, action)| action).collect::<Vec<_>>()
    };
    assert_eq!(actions(&dry.json()), ["forget", "keep", "keep", "keep"], "{}", dry.text);
    assert!(dry.text.contains("manual: kept until it is deleted by hand"), "{}", dry.text);
    for body in [json!({}), json!({"confirm": "other"})] {
        assert_eq!(ask(body).await.problem().1.as_deref(), Some("confirm"));
    }
    assert_eq!(server.footprint().await, before);
    let done = ask(json!({"confirm": "dev"})).await;
    assert_eq!(done.status, StatusCode::ACCEPTED);
    let answer = done.json();
    assert_eq!(actions(&answer), actions(&dry.json()));
    assert_eq!(answer["operations"][0]["snapshotId"], ids[0]);
    assert_eq!(answer["operations"].as_array().unwrap().len(), 1);
    // What is being deleted is not decided on again.
    assert_eq!(ask(json!({"confirm": "dev"})).await.json()["operations"], json!([]));
    let wrong = server.post(&path, json!({"dryRun": true, "keep": {"last": 1_000_000}})).await;
    assert_eq!(wrong.problem().1.as_deref(), Some("keep.last"));
}
