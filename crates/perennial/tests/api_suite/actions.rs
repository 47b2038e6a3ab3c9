//! Every route does what it says, once.

use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, StatusCode};
use jiff::Timestamp;
use perennial::store::Change;
use perennial_core::operation::OperationState;
use perennial_core::pod::{Condition, ConditionKind, Desired, Phase, Pod, ReadyContainer};
use perennial_core::snapshot::Care;
use perennial_core::spec::Backend;
use perennial_core::volume::{Origin, SetState, Volume, VolumeSet};
use serde_json::{Value, json};

use crate::server::{Answer, Server};

/// Checks the shape of every action's answer; returns the operation.
fn accepted(answer: &Answer) -> Value {
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{answer:?}");
    let body = answer.json();
    assert!(body["pod"]["id"].is_string() && body["operation"]["id"].is_string(), "{body}");
    body["operation"].clone()
}

#[tokio::test]
async fn the_status_of_a_pod_in_error_shows_no_container_that_is_gone() {
    let server = Server::start().await;
    let id = server.running("dev").await;
    let ready = ReadyContainer { id: "c0ffee".to_owned(), set: 1, spec_generation: 1, limits: None, refused: None };
    let container = async |phase: Phase| {
        let ready = Some(ready.clone());
        server.settle(id, |pod| (pod.phase, pod.container) = (phase, ready)).await;
        server.get(&format!("/api/v1/pods/{id}/status")).await.json()["container"]["id"].clone()
    };
    assert_eq!(container(Phase::Running).await, "c0ffee");
    assert_eq!(container(Phase::Error).await, Value::Null);
    // An engine that does not answer proves nothing, and one that says nothing does not keep the answer waiting.
    server.engine.node_vanishes();
    assert_eq!(container(Phase::Error).await, "c0ffee");
    server.engine.node_returns();
    server.engine.node_hangs();
    let shown = tokio::time::timeout(Duration::from_secs(60), container(Phase::Error)).await;
    assert_eq!(shown.expect("the status hangs with the engine"), "c0ffee");
}

#[tokio::test]
async fn a_pod_is_shown_as_the_contract_says() {
    let server = Server::start().await;
    let request = json!({
        "name": "dev", "image": "debian-local:12", "command": ["sleep", "infinity"], "runtime": "runc",
        "resources": {"cpus": 1.5, "memory": "512Mi"}, "env": {"A": "1"}, "volumes": null, "tenant": "default",
    });
    let answer = server.post("/api/v1/pods", request).await;
    let operation = accepted(&answer);
    let pod = answer.json()["pod"].clone();
    for key in [
        "id",
        "name",
        "tenant",
        "desired",
        "phase",
        "specGeneration",
        "dataGeneration",
        "systemLayerCapturedAt",
        "image",
        "imageDigest",
        "runtime",
        "container",
        "volumes",
        "conditions",
        "latestSnapshot",
        "createdAt",
        "updatedAt",
    ] {
        assert!(pod.get(key).is_some(), "{key}");
    }
    assert_eq!((&pod["desired"], &pod["phase"]), (&json!("running"), &json!("creating")));
    assert_eq!(
        pod["spec"]["resources"],
        json!({
        "cpus": 1.5, "memory": 536_870_912, "memorySwap": null, "memoryReservation": null, "pids": null, "disk": null})
    );
    assert_eq!(pod["volumes"].as_array().unwrap().len(), 8);
    assert_eq!(
        pod["volumes"][0],
        json!({
        "name": "workspace", "mountPath": "/workspace", "engineName": null, "state": "absent"})
    );
    for key in ["id", "podId", "kind", "state", "progress", "error", "createdAt", "finishedAt"] {
        assert!(operation.get(key).is_some(), "{key}");
    }
    assert_eq!((&operation["kind"], &operation["state"]), (&json!("create"), &json!("pending")));
    assert_eq!(
        operation["progress"],
        json!({
            "step": "", "bytesDone": 0, "bytesTotal": 0, "filesDone": 0, "bytesPerSecond": null, "secondsLeft": null
        })
    );
    let id = pod["id"].as_str().unwrap();
    assert_eq!(server.get(&format!("/api/v1/pods/{id}")).await.json(), pod);
    assert_eq!(server.asked.woken.lock().unwrap().len(), 1);
    let none = server.post("/api/v1/pods", json!({"name": "bare", "image": "a", "volumes": []})).await;
    assert_eq!(none.json()["pod"]["spec"]["volumes"], json!([]));
}

/// Of a set that is being made, one that is there, one of which volumes are missing, and none.
#[tokio::test]
async fn s2_08_to_s2_11_a_volume_is_told_with_its_names_its_path_and_whether_its_data_is_there() {
    let server = Server::start().await;
    let id = server.running("dev").await;
    let set = |state| VolumeSet {
        number: 1,
        backend: Backend::Engine,
        origin: Origin::Image,
        state,
        attached: Some(1),
        marked: Some(1),
        proof: None,
        volumes: vec![Volume { name: "data".to_owned(), mount_path: "/data".to_owned() }],
    };
    let lacks = |kind| Condition { kind, reason: String::new(), message: String::new(), since: Timestamp::UNIX_EPOCH };
    for (state, missing, told) in [
        (SetState::Preparing, None, "seeding"),
        (SetState::Complete, None, "complete"),
        (SetState::Complete, Some(ConditionKind::DataPartial), "partial"),
        (SetState::Complete, Some(ConditionKind::DataLost), "lost"),
        (SetState::Retired, None, "absent"),
    ] {
        let now = |pod: &mut Pod| {
            pod.sets = vec![set(state)];
            pod.current = (state != SetState::Preparing).then_some(1);
            pod.conditions = missing.map(lacks).into_iter().collect();
        };
        server.settle(id, now).await;
        let shown = server.get(&format!("/api/v1/pods/{id}/volumes")).await.json();
        let volume = &shown["items"][0];
        assert_eq!((&volume["name"], &volume["mountPath"]), (&json!("data"), &json!("/data")));
        assert_eq!(volume["engineName"], format!("perennial-vol-{id}-data"), "{shown}");
        assert_eq!(volume["state"], told, "{shown}");
        assert!(volume.get("usedBytes").is_some(), "{shown}");
    }
}

#[tokio::test]
async fn a_clone_is_recorded_with_what_it_is_made_from() {
    let server = Server::start().await;
    let (id, snapshot) = server.stopped("dev").await;
    server.asked.woken.lock().unwrap().clear();
    let answer = server.post(&format!("/api/v1/pods/{id}/clone"), json!({"name": "copy"})).await;
    let operation = accepted(&answer);
    assert_eq!((&operation["kind"], &answer.json()["pod"]["name"]), (&json!("clone"), &json!("copy")));
    let copy = answer.json()["pod"]["id"].as_str().unwrap().parse().unwrap();
    assert_eq!(*server.asked.woken.lock().unwrap(), [copy, id]);
    let record = server.store.pod_fetch(copy).await.unwrap().unwrap();
    assert_eq!(record.source, Some(perennial_core::volume::Origin::Snapshot(snapshot)));
    assert!(record.fork.is_some() && record.current.is_none());
    // Until it has its own, the snapshot it is made from is needed.
    let refused = server.ask(Method::DELETE, &format!("/api/v1/snapshots/{snapshot}"), &[], Body::empty()).await;
    assert_eq!(refused.problem().0, "snapshot-in-use");
}

#[tokio::test]
async fn every_verb_is_recorded_and_wakes_the_reconciler() {
    let server = Server::start().await;
    let cases = [
        ("start", "stopped", json!({}), "start"),
        ("stop", "running", json!({}), "stop"),
        ("stop", "running", json!({"acceptLoss": ["/volumes/home/x"], "confirm": "NAME"}), "stop"),
        ("pause", "running", json!({}), "pause"),
        ("restart", "running", json!({}), "restart"),
        ("reset", "running", json!({"confirm": "NAME"}), "reset"),
        ("restore", "running", json!({"confirm": "NAME", "snapshotId": "SNAPSHOT"}), "restore"),
        ("restore", "running", json!({"confirm": "NAME", "snapshotId": "SNAPSHOT", "volumes": ["system"]}), "restore"),
        ("archive", "running", json!({}), "archive"),
        ("undelete", "archived", json!({}), "undelete"),
        ("purge", "running", json!({"confirm": "NAME"}), "purge"),
    ];
    for (n, (verb, state, body, kind)) in cases.into_iter().enumerate() {
        let name = format!("pod-{n}");
        let (id, snapshot) = match state {
            "stopped" => server.stopped(&name).await,
            _ => {
                let id = server.running(&name).await;
                (id, server.snapshot(id, 1).await)
            }
        };
        if state == "archived" {
            server.settle(id, |pod| pod.desired = Desired::Archived).await;
        }
        let body = body.to_string().replace("NAME", &name).replace("SNAPSHOT", &snapshot.to_string());
        server.asked.woken.lock().unwrap().clear();
        let path = format!("/api/v1/pods/{id}/{verb}");
        let answer = server.post(&path, serde_json::from_str(&body).unwrap()).await;
        let operation = accepted(&answer);
        assert_eq!(operation["kind"], kind);
        assert_eq!(*server.asked.woken.lock().unwrap(), [id], "{verb}");
        let operations = server.get(&format!("/api/v1/pods/{id}/operations")).await.json();
        assert_eq!(operations["items"][0]["id"], operation["id"], "{verb}");
        let events = server.get(&format!("/api/v1/pods/{id}/events")).await.json();
        let last = events["items"].as_array().unwrap().last().unwrap().clone();
        assert_eq!((&last["type"], &last["operationId"]), (&json!("operation.requested"), &operation["id"]), "{verb}");
        let status = server.get(&format!("/api/v1/pods/{id}/status")).await.json();
        assert_eq!(status["operations"][0]["id"], operation["id"], "{verb}");
    }
}

#[tokio::test]
async fn bodies_may_be_left_out_where_nothing_has_to_be_said() {
    let server = Server::start().await;
    let id = server.running("dev").await;
    let answer = server.ask(Method::POST, &format!("/api/v1/pods/{id}/pause"), &[], Body::empty()).await;
    accepted(&answer);
    let answer = server.delete(&format!("/api/v1/pods/{id}")).await;
    assert_eq!(accepted(&answer)["kind"], "delete");
    assert_eq!(answer.json()["pod"]["purgeAt"], "2026-01-08T00:00:00Z");
}

#[tokio::test]
async fn what_is_so_already_succeeds_at_once() {
    let server = Server::start().await;
    let id = server.running("dev").await;
    let operation = accepted(&server.post(&format!("/api/v1/pods/{id}/start"), json!({})).await);
    assert_eq!(operation["state"], "succeeded");
    assert!(operation["finishedAt"].is_string());
}

#[tokio::test]
async fn the_same_wish_twice_is_one_operation_and_another_one_takes_over() {
    let server = Server::start().await;
    let id = server.running("dev").await;
    let path = |verb| format!("/api/v1/pods/{id}/{verb}");
    let first = accepted(&server.post(&path("stop"), json!({})).await);
    let second = accepted(&server.post(&path("stop"), json!({})).await);
    assert_eq!(first["id"], second["id"]);
    let start = accepted(&server.post(&path("start"), json!({})).await);
    assert_ne!(start["id"], first["id"]);
    let stop = server.get(&format!("/api/v1/operations/{}", first["id"].as_str().unwrap())).await.json();
    assert_eq!((&stop["state"], &stop["error"]["code"]), (&json!("cancelled"), &json!("superseded")));
}

#[tokio::test]
async fn contradictions_are_conflicts_with_a_hint() {
    let server = Server::start().await;
    let (stopped, snapshot) = server.stopped("stopped").await;
    let running = server.running("running").await;
    let cases = [
        (format!("/api/v1/pods/{stopped}/pause"), json!({}), "pod-stopped"),
        (format!("/api/v1/pods/{stopped}/restart"), json!({}), "pod-not-running"),
        (format!("/api/v1/pods/{stopped}/snapshots"), json!({}), "pod-released"),
        (format!("/api/v1/pods/{running}/undelete"), json!({}), "pod-not-deleted"),
    ];
    for (path, body, code) in cases {
        let answer = server.post(&path, body).await;
        assert_eq!(answer.status, StatusCode::CONFLICT, "{path}: {answer:?}");
        assert_eq!(answer.problem().0, code);
    }
    // D37: the copy a stopped pod lives from.
    let answer = server.delete(&format!("/api/v1/snapshots/{snapshot}")).await;
    assert_eq!((answer.status, answer.problem().0.as_str()), (StatusCode::CONFLICT, "snapshot-in-use"));
    assert!(server.asked.removed.lock().unwrap().is_empty());
}

#[tokio::test]
async fn snapshots_are_taken_listed_and_deleted() {
    let server = Server::start().await;
    let id = server.running("dev").await;
    let answer = server.post(&format!("/api/v1/pods/{id}/snapshots"), json!({})).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{answer:?}");
    let body = answer.json();
    assert_eq!((&body["snapshot"]["state"], &body["snapshot"]["kind"]), (&json!("pending"), &json!("manual")));
    assert_eq!((&body["snapshot"]["bytes"], &body["operation"]["kind"]), (&Value::Null, &json!("snapshot")));
    let taken = body["snapshot"]["id"].as_str().unwrap();
    assert_eq!(server.get(&format!("/api/v1/snapshots/{taken}")).await.json(), body["snapshot"]);
    // While it is taken it cannot be deleted.
    assert_eq!(server.delete(&format!("/api/v1/snapshots/{taken}")).await.problem().0, "snapshot-in-use");

    let done = server.snapshot(id, 1).await;
    let pod = server.get(&format!("/api/v1/pods/{id}")).await.json();
    assert_eq!(pod["latestSnapshot"]["id"], done.to_string());
    // It is the only one that the pod could be brought back from.
    let path = format!("/api/v1/snapshots/{done}");
    let refused = server.delete(&path).await;
    assert_eq!((refused.status, &refused.problem().0[..]), (StatusCode::CONFLICT, "last-verified-snapshot"));
    let hint = refused.json()["hint"].as_str().unwrap().to_owned();
    assert!(hint.contains("snapshot create dev") && hint.contains("--last"), "{hint}");
    let confirmed = |name: &str| Body::from(json!({"confirm": name}).to_string());
    let json = [("content-type", "application/json")];
    let wrong = server.ask(Method::DELETE, &path, &json, confirmed("other")).await;
    assert_eq!(wrong.problem().1.as_deref(), Some("confirm"), "{wrong:?}");
    assert!(server.asked.removed.lock().unwrap().is_empty());
    let answer = server.ask(Method::DELETE, &path, &json, confirmed("dev")).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{answer:?}");
    assert_eq!(answer.json()["operation"]["kind"], "snapshot-delete");
    assert_eq!(server.asked.removed.lock().unwrap().len(), 1);
    // Asked again, it is the same operation; and nobody can build on it any more.
    let again = server.delete(&format!("/api/v1/snapshots/{done}")).await;
    assert_eq!(again.json()["operation"]["id"], answer.json()["operation"]["id"]);
    let body = json!({"confirm": "dev", "snapshotId": done.to_string()});
    let restore = server.post(&format!("/api/v1/pods/{id}/restore"), body).await;
    assert_eq!(restore.problem().0, "snapshot-being-deleted");
}

#[tokio::test]
async fn of_two_snapshots_only_the_first_goes_without_a_confirmation() {
    let server = Server::start().await;
    let id = server.running("dev").await;
    let (one, two) = (server.snapshot(id, 1).await, server.snapshot(id, 2).await);
    assert_eq!(server.delete(&format!("/api/v1/snapshots/{two}")).await.status, StatusCode::ACCEPTED);
    // The other one is going, though it is there still.
    let refused = server.delete(&format!("/api/v1/snapshots/{one}")).await;
    assert_eq!(refused.problem().0, "last-verified-snapshot");
}

#[tokio::test]
async fn a_snapshot_that_a_drill_found_damaged_replaces_no_other() {
    let server = Server::start().await;
    let id = server.running("dev").await;
    let (good, damaged) = (server.snapshot(id, 1).await, server.snapshot(id, 2).await);
    let care = Care::Damaged(Timestamp::UNIX_EPOCH, "a pack is damaged".to_owned());
    server.store.commit(Change { cares: vec![(damaged, care)], ..Change::default() }).await.unwrap();
    let path = format!("/api/v1/snapshots/{good}");
    assert_eq!(server.delete(&path).await.problem().0, "last-verified-snapshot");
    assert_eq!(server.delete(&format!("/api/v1/snapshots/{damaged}")).await.status, StatusCode::ACCEPTED);
    assert_eq!(server.delete(&path).await.problem().0, "last-verified-snapshot");
}

#[tokio::test]
async fn a_new_pod_from_a_snapshot_takes_over_image_and_spec() {
    let server = Server::start().await;
    let create = json!({"name": "origin", "image": "debian:12", "env": {"A": "1"}, "stopTimeout": 33});
    let origin = server.post("/api/v1/pods", create).await.json()["pod"]["id"].as_str().unwrap().parse().unwrap();
    let snapshot = server.snapshot(origin, 1).await.to_string();
    let answer =
        server.post("/api/v1/pods", json!({"name": "copy", "fromSnapshot": snapshot, "env": {"B": "2"}})).await;
    assert_eq!(accepted(&answer)["snapshotId"], snapshot.as_str());
    let pod = answer.json()["pod"].clone();
    assert_eq!((&pod["image"], &pod["spec"]["stopTimeout"]), (&json!("debian:12"), &json!(33)));
    assert_eq!(pod["spec"]["env"], json!({"B": "2"}));
    for body in [
        json!({"name": "other", "fromSnapshot": snapshot, "image": "debian:13"}),
        json!({"name": "other", "fromSnapshot": snapshot, "volumes": []}),
    ] {
        let answer = server.post("/api/v1/pods", body).await;
        assert_eq!(answer.problem().1.as_deref(), Some("fromSnapshot"), "{answer:?}");
    }
    // The copy lives from it until it runs, so neither it nor its pod can go.
    assert_eq!(server.delete(&format!("/api/v1/snapshots/{snapshot}")).await.problem().0, "snapshot-in-use");
    let purge = server.post(&format!("/api/v1/pods/{origin}/purge"), json!({"confirm": "origin"})).await;
    assert_eq!(purge.problem().0, "snapshot-in-use");
}

#[tokio::test]
async fn a_repeated_request_is_answered_alike_and_done_once() {
    let server = Server::start().await;
    let headers = [("content-type", "application/json"), ("idempotency-key", "k-1")];
    let body = json!({"name": "dev", "image": "debian:12"}).to_string();
    let first = server.ask(Method::POST, "/api/v1/pods", &headers, body.clone()).await;
    let before = server.footprint().await;
    let second = server.ask(Method::POST, "/api/v1/pods", &headers, body.clone()).await;
    assert_eq!((first.status, &first.text), (second.status, &second.text));
    assert_eq!(second.headers["idempotency-replayed"], "true");
    assert_eq!(server.footprint().await, before);
    let other = server.ask(Method::POST, "/api/v1/pods", &headers, body.replace("dev", "other")).await;
    assert_eq!(other.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(other.problem().0, "idempotency-key-reused");
    let id = first.json()["pod"]["id"].as_str().unwrap().to_owned();
    let other = server.ask(Method::POST, &format!("/api/v1/pods/{id}/stop"), &headers, body).await;
    assert!(other.status.is_client_error(), "the key belongs to another route");
    // A refusal is not recorded: the same request may succeed later.
    let headers = [("content-type", "application/json"), ("idempotency-key", "k-2")];
    let restart = format!("/api/v1/pods/{id}/pause");
    server.settle(id.parse().unwrap(), |pod| pod.desired = Desired::Deleted).await;
    assert_eq!(server.ask(Method::POST, &restart, &headers, "{}").await.status, StatusCode::CONFLICT);
    server.settle(id.parse().unwrap(), |pod| pod.desired = Desired::Running).await;
    assert_eq!(server.ask(Method::POST, &restart, &headers, "{}").await.status, StatusCode::ACCEPTED);
    let empty = [("content-type", "application/json"), ("idempotency-key", "")];
    let answer = server.ask(Method::POST, &restart, &empty, "{}").await;
    assert_eq!(answer.problem().1.as_deref(), Some("Idempotency-Key"));
}

#[tokio::test]
async fn the_same_request_at_once_is_done_once() {
    let server = std::sync::Arc::new(Server::start().await);
    let id = server.running("dev").await;
    let restarts = (0..8).map(|_| {
        let server = std::sync::Arc::clone(&server);
        tokio::spawn(async move {
            let headers = [("content-type", "application/json"), ("idempotency-key", "same")];
            server.ask(Method::POST, &format!("/api/v1/pods/{id}/restart"), &headers, "{}").await
        })
    });
    let mut operations = Vec::new();
    for restart in restarts.collect::<Vec<_>>() {
        operations.push(accepted(&restart.await.unwrap())["id"].clone());
    }
    operations.dedup();
    assert_eq!(operations.len(), 1);
    assert_eq!(server.store.pod_fetch(id).await.unwrap().unwrap().tasks.len(), 1);
}

#[tokio::test]
async fn a_patch_is_checked_against_the_version_that_was_read() {
    let server = Server::start().await;
    let id = server.running("dev").await;
    let path = format!("/api/v1/pods/{id}");
    let tag = |answer: &Answer| answer.headers["etag"].to_str().unwrap().to_owned();
    let read = tag(&server.get(&path).await);
    let first = server.patch(&path, Some(&read), json!({"env": {"A": "1"}, "stopTimeout": 30})).await;
    assert_eq!(first.status, StatusCode::OK, "{first:?}");
    assert_eq!((&first.json()["specGeneration"], &first.json()["spec"]["env"]["A"]), (&json!(2), &json!("1")));
    let late = server.patch(&path, Some(&read), json!({"env": {}})).await;
    assert_eq!((late.status, late.problem().0.as_str()), (StatusCode::PRECONDITION_FAILED, "version-mismatch"));
    assert_eq!(tag(&first), tag(&server.get(&path).await));
    let any = server.patch(&path, Some("*"), json!({"stopTimeout": null})).await;
    assert_eq!((&any.json()["spec"]["stopTimeout"], &any.json()["spec"]["env"]["A"]), (&json!(10), &json!("1")));
    let same = server.patch(&path, None, json!({"stopTimeout": 10})).await;
    assert_eq!((tag(&same), &same.json()["specGeneration"]), (tag(&any), &json!(3)), "nothing changed");
    let weak = server.patch(&path, Some("W/\"1\""), json!({})).await;
    assert_eq!(weak.problem().1.as_deref(), Some("If-Match"));
}

#[tokio::test]
async fn lists_are_read_page_by_page() {
    let server = Server::start().await;
    for n in 0..5 {
        server.running(&format!("pod-{n}")).await;
    }
    let (archived, _) = server.stopped("gone").await;
    server.settle(archived, |pod| pod.desired = Desired::Archived).await;
    let mut names = Vec::new();
    let mut next = String::new();
    loop {
        let page = server.get(&format!("/api/v1/pods?limit=2{next}")).await.json();
        names.extend(page["items"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap().to_owned()));
        let Some(cursor) = page["next"].as_str() else { break };
        next = format!("&after={cursor}");
    }
    assert_eq!(names, ["pod-0", "pod-1", "pod-2", "pod-3", "pod-4"]);
    let count = async |query: &str| {
        server.get(&format!("/api/v1/pods?{query}")).await.json()["items"].as_array().unwrap().len()
    };
    assert_eq!(count("visibility=all").await, 6);
    assert_eq!(count("visibility=hidden").await, 1);
    assert_eq!(count("name=pod-3").await, 1);
    assert_eq!(count("phase=running").await, 5);
    assert_eq!(count("phase=stopped").await, 0);
    assert_eq!(count("tenant=other").await, 0);
    let first = server.get("/api/v1/events?limit=3").await.json();
    assert_eq!((first["items"].as_array().unwrap().len(), &first["next"]), (3, &json!("3")));
    let rest = server.get("/api/v1/events?after=3").await.json();
    assert_eq!((&rest["items"][0]["id"], &rest["next"]), (&json!(4), &Value::Null));
}

#[tokio::test]
async fn a_wait_ends_with_the_operation() {
    let server = std::sync::Arc::new(Server::start().await);
    let id = server.pod("dev").await;
    let operation = server.get(&format!("/api/v1/pods/{id}/operations")).await.json()["items"][0]["id"].clone();
    let path = format!("/api/v1/operations/{}", operation.as_str().unwrap());
    let early = server.get(&format!("{path}?wait=10ms")).await.json();
    assert_eq!(early["state"], "pending", "the time was over");
    let waiting = tokio::spawn({
        let (server, path) = (std::sync::Arc::clone(&server), path.clone());
        async move { server.get(&format!("{path}?wait=30s")).await.json() }
    });
    // Whether this comes before the wait or during it, the answer is the same.
    tokio::task::yield_now().await;
    server.settle(id, |pod| pod.phase = Phase::Running).await;
    let ended = tokio::time::timeout(Duration::from_secs(5), waiting).await.unwrap().unwrap();
    assert_eq!(ended["state"], "succeeded");
    assert_eq!(server.get(&format!("{path}?wait=soon")).await.problem().1.as_deref(), Some("wait"));
}

#[tokio::test]
async fn a_wait_ends_when_the_server_stops() {
    let server = std::sync::Arc::new(Server::start().await);
    let id = server.pod("dev").await;
    let operation = server.get(&format!("/api/v1/pods/{id}/operations")).await.json()["items"][0]["id"].clone();
    let waiting = tokio::spawn({
        let server = std::sync::Arc::clone(&server);
        async move { server.get(&format!("/api/v1/operations/{}?wait=60s", operation.as_str().unwrap())).await }
    });
    server.stop.send(true).unwrap();
    let answer = tokio::time::timeout(Duration::from_secs(5), waiting).await.unwrap().unwrap();
    assert_eq!(answer.json()["state"], "pending");
}

#[tokio::test]
async fn an_operation_is_cancelled_until_its_point_of_no_return() {
    let server = Server::start().await;
    let id = server.running("dev").await;
    let operation = accepted(&server.post(&format!("/api/v1/pods/{id}/stop"), json!({})).await);
    let path = format!("/api/v1/operations/{}/cancel", operation["id"].as_str().unwrap());
    let answer = server.post(&path, json!({})).await;
    assert_eq!(accepted(&answer)["state"], "cancelled");
    assert_eq!(answer.json()["pod"]["desired"], "running");
    assert_eq!(server.post(&path, json!({})).await.problem().0, "operation-ended");

    let snapshot = server.post(&format!("/api/v1/pods/{id}/snapshots"), json!({})).await.json();
    let path = format!("/api/v1/operations/{}/cancel", snapshot["operation"]["id"].as_str().unwrap());
    accepted(&server.post(&path, json!({})).await);
    let row = server.get(&format!("/api/v1/snapshots/{}", snapshot["snapshot"]["id"].as_str().unwrap())).await.json();
    assert_eq!(row["state"], "failed");

    let purge = accepted(&server.post(&format!("/api/v1/pods/{id}/purge"), json!({"confirm": "dev"})).await);
    let path = format!("/api/v1/operations/{}/cancel", purge["id"].as_str().unwrap());
    assert_eq!(server.post(&path, json!({})).await.problem().0, "operation-committed");
}

#[tokio::test]
async fn a_failed_operation_says_why() {
    let server = Server::start().await;
    let id = server.pod("dev").await;
    let mut operation = server.store.operations_unfinished(id).await.unwrap().remove(0);
    operation.state = OperationState::Failed;
    operation.error = Some(perennial_core::operation::Problem {
        code: "image-missing".into(),
        message: "there is no such image".into(),
        hint: "load it".into(),
    });
    server.store.commit(Change { operations: vec![operation.clone()], ..Change::default() }).await.unwrap();
    let shown = server.get(&format!("/api/v1/operations/{}", operation.id)).await.json();
    assert_eq!((&shown["state"], &shown["error"]["code"]), (&json!("failed"), &json!("image-missing")));
    assert_eq!(
        (&shown["error"]["detail"], &shown["error"]["hint"]),
        (&json!("there is no such image"), &json!("load it"))
    );
}
