//! The contract of the first release (the end of the design's architecture.md): every route of a pod, field by field.

use std::collections::BTreeSet;

use axum::http::StatusCode;
use perennial::store::Change;
use perennial_core::operation::{OperationState, Problem};
use perennial_core::pod::{Condition, ConditionKind};
use perennial_core::snapshot::{SnapshotKind, SnapshotState};
use serde_json::{Value, json};

use crate::server::Server;

const POD: &str = "id name tenant desired phase specGeneration dataGeneration systemLayerCapturedAt image imageDigest \
    runtime container volumes conditions latestSnapshot createdAt updatedAt";
const VOLUME: &str = "name mountPath engineName state";
const CONDITION: &str = "type status reason message since";
const OPERATION: &str = "id podId kind state progress error createdAt finishedAt";
const PROGRESS: &str = "step bytesDone bytesTotal filesDone bytesPerSecond secondsLeft";
const SNAPSHOT: &str = "id podId state kind generation createdAt bytes newBytes files volumes consistency error";
const PROBLEM: &str = "type title status code detail field hint requestId";
const EVENT: &str = "id at actor tenant podId operationId type message";
const STATUS: &str = "desired phase conditions container operations crashes exitCode outOfMemory nextTryAt failedTries \
    dataSeenAt systemLayerCapturedAt";

/// Every field is there, be it null: a client need not ask whether a key exists.
fn has(what: &str, value: &Value, fields: &str) {
    let found = value.as_object().unwrap_or_else(|| panic!("{what}: {value}"));
    for field in fields.split_whitespace() {
        assert!(found.contains_key(field), "{what} lacks {field}: {value}");
    }
}

fn pod(value: &Value) {
    has("pod", value, POD);
    assert!(!value["volumes"].as_array().unwrap().is_empty());
    for volume in value["volumes"].as_array().unwrap() {
        has("volume", volume, VOLUME);
    }
    for condition in value["conditions"].as_array().unwrap() {
        has("condition", condition, CONDITION);
        assert_eq!(condition["status"], true);
    }
}

fn operation(value: &Value) {
    has("operation", value, OPERATION);
    has("progress", &value["progress"], PROGRESS);
    if !value["error"].is_null() {
        has("problem", &value["error"], PROBLEM);
    }
}

#[tokio::test]
async fn every_route_of_a_pod_answers_with_every_field_of_the_contract() {
    let server = Server::start().await;
    let (id, snapshot) = server.stopped("dev").await;
    server
        .settle(id, |pod| {
            let message = "it failed".to_owned();
            let (kind, since) = (ConditionKind::Failed, pod.created_at);
            pod.conditions = vec![Condition { kind, reason: "operation-failed".to_owned(), message, since }];
        })
        .await;
    let base = format!("/api/v1/pods/{id}");

    let shown = server.get(&base).await.json();
    pod(&shown);
    has("snapshot", &shown["latestSnapshot"], SNAPSHOT);
    assert_eq!(shown["conditions"].as_array().unwrap().len(), 1);
    pod(&server.get("/api/v1/pods").await.json()["items"][0]);

    let started = server.post(&format!("{base}/start"), json!({})).await;
    assert_eq!(started.status, StatusCode::ACCEPTED);
    pod(&started.json()["pod"]);
    operation(&started.json()["operation"]);
    let status = server.get(&format!("{base}/status")).await.json();
    has("status", &status, STATUS);
    operation(&status["operations"][0]);
    has("condition", &status["conditions"][0], CONDITION);
    for volume in server.get(&format!("{base}/volumes")).await.json()["items"].as_array().unwrap() {
        has("volume", volume, VOLUME);
    }
    let events = server.get(&format!("{base}/events")).await.json();
    has("event", &events["items"][0], EVENT);
    assert_eq!(events["items"][0]["type"], "operation.requested");

    // An operation that failed carries a problem like every other.
    let mut failed = server.store.operations_unfinished(id).await.unwrap().remove(0);
    failed.state = OperationState::Failed;
    failed.error = Some(Problem { code: "it".to_owned(), message: "failed".to_owned(), hint: String::new() });
    let one = format!("/api/v1/operations/{}", failed.id);
    server.store.commit(Change { operations: vec![failed], ..Change::default() }).await.unwrap();
    let operations = server.get(&format!("{base}/operations")).await.json();
    assert_eq!(operations["items"].as_array().unwrap().len(), 2);
    operations["items"].as_array().unwrap().iter().for_each(operation);
    operation(&server.get(&one).await.json());
    assert_eq!(server.get(&one).await.json()["error"]["code"], "it");

    for list in [format!("{base}/snapshots"), "/api/v1/snapshots".to_owned()] {
        let snapshots = server.get(&list).await.json();
        has("snapshot", &snapshots["items"][0], SNAPSHOT);
        assert_eq!(snapshots["items"][0]["id"], snapshot.to_string());
    }
    has("snapshot", &server.get(&format!("/api/v1/snapshots/{snapshot}")).await.json(), SNAPSHOT);
    let missing = server.get("/api/v1/pods/00000000000000000000000000").await;
    assert_eq!(missing.problem().0, "not-found");
    has("problem", &missing.json(), PROBLEM);
}

#[tokio::test]
async fn snapshots_of_all_pods_are_filtered_and_paged() {
    let server = Server::start().await;
    let (one, two) = (server.running("one").await, server.running("two").await);
    let mut ids = Vec::new();
    for n in 1..=9_u8 {
        let id = server.snapshot(if n % 3 == 0 { one } else { two }, n).await;
        let mut row = server.store.snapshot_fetch(id).await.unwrap().unwrap();
        row.kind = if n % 2 == 0 { SnapshotKind::Manual } else { SnapshotKind::Final };
        row.state = if n == 9 { SnapshotState::Failed } else { SnapshotState::Verified };
        server.store.commit(Change { snapshots: vec![row], ..Change::default() }).await.unwrap();
        ids.push(id.to_string());
    }
    let list = async |query: &str| -> (Vec<usize>, Option<String>) {
        let page = server.get(&format!("/api/v1/snapshots?{query}")).await;
        assert_eq!(page.status, StatusCode::OK, "{page:?}");
        let page = page.json();
        let number = |item: &Value| ids.iter().position(|id| item["id"] == id.as_str()).unwrap() + 1;
        let found = page["items"].as_array().unwrap().iter().map(number).collect();
        (found, page["next"].as_str().map(ToOwned::to_owned))
    };
    assert_eq!(list("").await, (vec![9, 8, 7, 6, 5, 4, 3, 2, 1], None));
    assert_eq!(list(&format!("pod={one}")).await.0, [9, 6, 3]);
    assert_eq!(list("state=failed").await.0, [9]);
    assert_eq!(list("kind=manual").await.0, [8, 6, 4, 2]);
    assert_eq!(list(&format!("kind=final&state=verified&pod={two}&tenant=default")).await.0, [7, 5, 1]);
    assert_eq!(list("tenant=acme").await.0, Vec::<usize>::new());
    // Pages are whole although the kind is looked for among others.
    let (mut seen, mut after) = (Vec::new(), String::new());
    loop {
        let (page, next) = list(&format!("kind=final&limit=2{after}")).await;
        assert!(page.len() <= 2);
        seen.extend(page);
        let Some(next) = next else { break };
        after = format!("&after={next}");
    }
    assert_eq!(seen, [9, 7, 5, 3, 1]);
    assert_eq!(seen.iter().collect::<BTreeSet<_>>().len(), 5);

    for (query, field) in [
        ("state=good", "state"),
        ("kind=weekly", "kind"),
        ("pod=dev", "pod"),
        ("tenant=A", "tenant"),
        ("limit=abc", "limit"),
        ("after=x", "after"),
        ("colour=red", "colour"),
    ] {
        let refused = server.get(&format!("/api/v1/snapshots?{query}")).await;
        assert_eq!(refused.problem(), ("invalid-input".to_owned(), Some(field.to_owned())), "{query}");
        assert!(refused.json()["hint"].is_string(), "{query}: {refused:?}");
    }
    assert_eq!(server.get("/api/v1/snapshots?pod=00000000000000000000000000").await.problem().0, "not-found");
}

#[tokio::test]
async fn an_undelete_is_refused_while_the_name_is_taken() {
    let server = Server::start().await;
    let (old, _) = server.stopped("dev").await;
    assert_eq!(server.delete(&format!("/api/v1/pods/{old}")).await.status, StatusCode::ACCEPTED);
    server.settle(old, |_| {}).await;
    let new = server.pod("dev").await;
    let before = server.footprint().await;
    let refused = server.post(&format!("/api/v1/pods/{old}/undelete"), json!({})).await;
    assert_eq!((refused.status, refused.problem().0.as_str()), (StatusCode::CONFLICT, "pod-name-taken"));
    assert!(refused.json()["hint"].as_str().unwrap().contains("delete"), "{refused:?}");
    assert_eq!(server.footprint().await, before, "nothing was recorded");
    assert_eq!(server.get(&format!("/api/v1/pods/{old}")).await.json()["desired"], "deleted");

    // Once the name is free, it works.
    server.settle(new, |_| {}).await;
    assert_eq!(server.delete(&format!("/api/v1/pods/{new}")).await.status, StatusCode::ACCEPTED);
    let back = server.post(&format!("/api/v1/pods/{old}/undelete"), json!({})).await;
    assert_eq!((back.status, &back.json()["pod"]["desired"]), (StatusCode::ACCEPTED, &json!("stopped")));
}

/// The names of the contract, as clients that are generated from the document will send and expect them.
#[test]
fn the_document_tells_the_names_that_are_sent() {
    let document: Value = serde_json::from_str(&perennial::api::openapi()).unwrap();
    let names = |schema: &str| -> Vec<String> {
        let names = document.pointer(&format!("/components/schemas/{schema}/enum")).unwrap().as_array().unwrap();
        names.iter().map(|n| n.as_str().unwrap().to_owned()).collect()
    };
    for (schema, contract) in [
        ("Desired", "running paused stopped archived deleted"),
        (
            "Phase",
            "creating starting running pausing paused stopping stopped restoring resetting archived deleting deleted error",
        ),
        ("OperationState", "pending running succeeded failed cancelled"),
        ("SnapshotState", "pending uploaded verified failed"),
        ("SnapshotKind", "manual scheduled final safety composed imported"),
        ("VolumeState", "absent seeding complete lost partial"),
        ("FileKind", "file dir symlink blockDevice charDevice fifo socket"),
        ("FileOrigin", "image volume system"),
        ("FileChange", "first same added removed content metadata"),
    ] {
        assert_eq!(names(schema), contract.split(' ').collect::<Vec<_>>(), "{schema}");
    }
}
