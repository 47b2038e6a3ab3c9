//! Bad input: each a problem with the field, and nothing is created.

use axum::body::Body;
use axum::http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::server::Server;

/// A pod with one thing changed.
fn pod(change: Value) -> Value {
    let mut body = json!({"name": "dev", "image": "debian:12"});
    for (key, value) in change.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

fn volume(name: &str, path: &str) -> Value {
    json!({"volumes": [{"name": name, "mountPath": path}]})
}

#[tokio::test]
async fn every_bad_pod_is_refused_by_field() {
    let server = Server::start().await;
    let long = "x".repeat(64);
    let nowhere = format!("sha256:{}", "0".repeat(64));
    let cases = [
        (json!({"name": "dev"}), "image"),
        (json!({"image": "debian:12"}), "name"),
        (pod(json!({"colour": "red"})), "colour"),
        (pod(json!({"resources": {"memry": 1}})), "resources.memry"),
        (pod(json!({"volumes": [{"name": "a", "mountPath": "/a", "mode": 1}]})), "volumes[0].mode"),
        (pod(json!({"volumes": [{"name": "a"}]})), "volumes[0].mountPath"),
        (pod(json!({"name": ""})), "name"),
        (pod(json!({"name": long})), "name"),
        (pod(json!({"name": "../etc"})), "name"),
        (pod(json!({"name": "Dev"})), "name"),
        (pod(json!({"name": 7})), "name"),
        (pod(json!({"tenant": "../x"})), "tenant"),
        (pod(json!({"image": ""})), "image"),
        (pod(json!({"image": "a b"})), "image"),
        (pod(json!({"image": nowhere})), "image"),
        (pod(json!({"image": "perennial-internal/x"})), "image"),
        (pod(json!({"resources": {"memory": "512MB"}})), "resources.memory"),
        (pod(json!({"resources": {"memory": "lots"}})), "resources.memory"),
        (pod(json!({"resources": {"memory": -1}})), "resources.memory"),
        (pod(json!({"resources": {"memory": 1.5}})), "resources.memory"),
        (pod(json!({"resources": {"memory": 1}})), "resources.memory"),
        (pod(json!({"resources": {"memory": "900Pi"}})), "resources.memory"),
        (pod(json!({"resources": {"memory": "512Mi", "memoryReservation": "1Gi"}})), "resources.memoryReservation"),
        (pod(json!({"resources": {"memorySwap": "512Mi"}})), "resources.memorySwap"),
        (pod(json!({"resources": {"cpus": -1}})), "resources.cpus"),
        (pod(json!({"resources": {"cpus": 1e9}})), "resources.cpus"),
        (pod(json!({"resources": {"cpus": 0}})), "resources.cpus"),
        (pod(json!({"resources": {"cpus": 64.5}})), "resources.cpus"),
        (pod(json!({"resources": {"disk": "1Ki"}})), "resources.disk"),
        (pod(json!({"resources": {"disk": "a lot"}})), "resources.disk"),
        (pod(json!({"resources": {"cpus": "two"}})), "resources.cpus"),
        (pod(json!({"resources": {"pids": 1}})), "resources.pids"),
        (pod(json!({"resources": {"pids": 1e12}})), "resources.pids"),
        (pod(volume("a", "data")), "volumes[0].mountPath"),
        (pod(volume("a", "/data/../etc")), "volumes[0].mountPath"),
        (pod(volume("a", "/../../etc/shadow")), "volumes[0].mountPath"),
        (pod(volume("a", "/")), "volumes[0].mountPath"),
        (pod(volume("a", "/proc")), "volumes[0].mountPath"),
        (pod(volume("a", "/data:/host")), "volumes[0].mountPath"),
        (pod(volume("../a", "/data")), "volumes[0].name"),
        (
            pod(json!({"volumes": [{"name": "a", "mountPath": "/a"}, {"name": "a", "mountPath": "/b"}]})),
            "volumes[1].name",
        ),
        (pod(json!({"env": {"A=B": "1"}})), "env.\"A=B\""),
        (pod(json!({"env": {"A": 1}})), "env.A"),
        (pod(json!({"command": []})), "command"),
        (pod(json!({"command": "sleep 1"})), "command"),
        (pod(json!({"workingDir": "../x"})), "workingDir"),
        (pod(json!({"user": "root; rm"})), "user"),
        (pod(json!({"ports": [{"container": 0}]})), "ports[0]"),
        (pod(json!({"ports": [{"container": 70000}]})), "ports[0].container"),
        (pod(json!({"stopSignal": "SIGFOO"})), "stopSignal"),
        (pod(json!({"stopTimeout": 100_000})), "stopTimeout"),
        (pod(json!({"onStop": "explode"})), "onStop"),
        (pod(json!({"backend": "tape"})), "backend"),
        (pod(json!({"runtime": "kata"})), "runtime"),
        (pod(json!({"runtime": "../runc"})), "runtime"),
        (pod(json!({"fromSnapshot": "x"})), "fromSnapshot"),
    ];
    let before = server.footprint().await;
    for (body, field) in cases {
        let answer = server.post("/api/v1/pods", body.clone()).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{body}: {answer:?}");
        let (code, named) = answer.problem();
        assert_eq!((code.as_str(), named.as_deref()), ("invalid-input", Some(field)), "{body}: {answer:?}");
    }
    assert_eq!(server.footprint().await, before, "nothing was created");
    assert!(server.asked.woken.lock().unwrap().is_empty());
}

#[tokio::test]
async fn bodies_that_are_not_json_are_refused() {
    let server = Server::start().await;
    let json = [("content-type", "application/json")];
    for body in ["{", "[]", "null", "{\"name\":\"a\",\"image\":\"b\"} x", "{\"name\":\"a\",\"name\":\"b\"}", "\u{0}"] {
        let answer = server.ask(Method::POST, "/api/v1/pods", &json, body).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{body}: {answer:?}");
        answer.problem();
    }
    let text = server.ask(Method::POST, "/api/v1/pods", &[("content-type", "text/plain")], "{}").await;
    assert_eq!(text.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    text.problem();
    let large = format!("{{\"name\":\"{}\"}}", "x".repeat(2 << 20));
    let answer = server.ask(Method::POST, "/api/v1/pods", &json, large).await;
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
    answer.problem();
    assert_eq!(server.footprint().await, (0, 0));
}

#[tokio::test]
async fn a_name_is_taken_once() {
    let server = Server::start().await;
    server.pod("dev").await;
    let before = server.footprint().await;
    let answer = server.post("/api/v1/pods", pod(json!({}))).await;
    assert_eq!(answer.status, StatusCode::CONFLICT);
    assert_eq!(answer.problem().0, "pod-name-taken");
    assert_eq!(server.footprint().await, before);
}

#[tokio::test]
async fn bad_queries_are_refused_by_name() {
    let server = Server::start().await;
    let id = server.pod("dev").await;
    let cases = [
        ("/api/v1/pods?limit=0".to_owned(), "limit"),
        ("/api/v1/pods?limit=1001".to_owned(), "limit"),
        ("/api/v1/pods?limit=many".to_owned(), "limit"),
        ("/api/v1/pods?after=x".to_owned(), "after"),
        ("/api/v1/pods?colour=red".to_owned(), "colour"),
        ("/api/v1/pods?phase=sleeping".to_owned(), "phase"),
        ("/api/v1/pods?visibility=some".to_owned(), "visibility"),
        ("/api/v1/pods?name=../x".to_owned(), "name"),
        ("/api/v1/pods?tenant=../x".to_owned(), "tenant"),
        ("/api/v1/events?after=-1".to_owned(), "after"),
        ("/api/v1/events?after=x".to_owned(), "after"),
        ("/api/v1/events?pod=x".to_owned(), "pod"),
        ("/api/v1/events/stream?after=x".to_owned(), "after"),
        (format!("/api/v1/pods/{id}/snapshots?after=x"), "after"),
        (format!("/api/v1/pods/{id}/operations?limit=0"), "limit"),
    ];
    for (path, field) in cases {
        let answer = server.get(&path).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{path}: {answer:?}");
        assert_eq!(answer.problem().1.as_deref(), Some(field), "{path}: {answer:?}");
    }
    let answer = server.ask(Method::GET, "/api/v1/events/stream", &[("last-event-id", "x")], Body::empty()).await;
    assert_eq!(answer.problem().1.as_deref(), Some("Last-Event-ID"));
}

#[tokio::test]
async fn bad_parts_of_a_restore_are_refused_by_name() {
    let server = Server::start().await;
    let id = server.running("dev").await;
    let snapshot = server.snapshot(id, 1).await;
    let before = server.footprint().await;
    for (parts, field) in [
        (json!({"volumes": ["nothing"]}), "volumes"),
        (json!({"volumes": "home"}), "volumes"),
        (json!({"paths": ["home/me"]}), "paths"),
        (json!({"paths": ["/home/../etc"]}), "paths"),
        (json!({"paths": ["/"]}), "paths"),
        (json!({"paths": ["/proc/1"]}), "paths"),
        (json!({"paths": ["/tmp/x"]}), "paths"),
        (json!({"paths": ["/a\u{0}"]}), "paths"),
        (json!({"volumes": ["home"], "extra": "burn"}), "extra"),
        (json!({"extra": "keep"}), "extra"),
        (json!({"volumes": ["home"], "keepExtra": true}), "keepExtra"),
    ] {
        for dry_run in [true, false] {
            let mut body = parts.clone();
            (body["snapshotId"], body["dryRun"]) = (snapshot.to_string().into(), dry_run.into());
            body["confirm"] = "dev".into();
            let answer = server.post(&format!("/api/v1/pods/{id}/restore"), body).await;
            assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{parts}: {answer:?}");
            assert_eq!(answer.problem().1.as_deref(), Some(field), "{parts}: {answer:?}");
        }
    }
    assert_eq!(server.footprint().await, before);
}

#[tokio::test]
async fn bad_clones_are_refused_by_name() {
    let server = Server::start().await;
    let (id, _) = server.stopped("dev").await;
    server.running("taken").await;
    let before = server.footprint().await;
    for (body, field) in [
        (json!({}), "name"),
        (json!({"name": "Copy"}), "name"),
        (json!({"name": "copy", "snapshotId": "x"}), "snapshotId"),
        (json!({"name": "copy", "image": "other"}), "image"),
    ] {
        let answer = server.post(&format!("/api/v1/pods/{id}/clone"), body.clone()).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{body}: {answer:?}");
        assert_eq!(answer.problem().1.as_deref(), Some(field), "{body}: {answer:?}");
    }
    let answer = server.post(&format!("/api/v1/pods/{id}/clone"), json!({"name": "taken"})).await;
    assert_eq!((answer.status, answer.problem().0.as_str()), (StatusCode::CONFLICT, "pod-name-taken"));
    assert_eq!(server.footprint().await, before);
}

#[tokio::test]
async fn destructive_verbs_need_the_name_of_the_pod() {
    let server = Server::start().await;
    let id = server.running("dev").await;
    let snapshot = server.snapshot(id, 1).await;
    let before = server.footprint().await;
    for verb in ["reset", "restore", "purge"] {
        for confirm in [json!("Dev"), json!(""), json!("other"), Value::Null] {
            let mut body = json!({"confirm": confirm});
            if verb == "restore" {
                body["snapshotId"] = snapshot.to_string().into();
            }
            let answer = server.post(&format!("/api/v1/pods/{id}/{verb}"), body).await;
            assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{verb} {confirm}: {answer:?}");
            assert_eq!(answer.problem().1.as_deref(), Some("confirm"), "{verb}");
        }
        let answer = server.post(&format!("/api/v1/pods/{id}/{verb}"), json!({})).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{verb} without a word");
    }
    for (body, field) in [
        (json!({"acceptLoss": ["/volumes/home/x"]}), "confirm"),
        (json!({"acceptLoss": [], "confirm": "dev"}), "acceptLoss"),
        (json!({"acceptLoss": ["home"], "confirm": "dev"}), "acceptLoss"),
        (json!({"acceptLoss": "all", "confirm": "dev"}), "acceptLoss"),
        (json!({"force": true}), "force"),
    ] {
        let answer = server.post(&format!("/api/v1/pods/{id}/stop"), body.clone()).await;
        assert_eq!(answer.problem().1.as_deref(), Some(field), "{body}: {answer:?}");
    }
    assert_eq!(server.footprint().await, before);
}

#[tokio::test]
async fn what_is_fixed_cannot_be_patched() {
    let server = Server::start().await;
    let id = server.running("dev").await;
    let path = format!("/api/v1/pods/{id}");
    for (body, field) in [
        (json!({"image": "debian:13"}), "image"),
        (json!({"name": "other"}), "name"),
        (json!({"volumes": null}), "volumes"),
        (json!({"resources": {"memory": "1"}}), "resources.memory"),
        (json!({"runtime": "kata"}), "runtime"),
        (json!({"stopTimeout": "soon"}), "stopTimeout"),
    ] {
        let answer = server.patch(&path, None, body.clone()).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{body}: {answer:?}");
        assert_eq!(answer.problem().1.as_deref(), Some(field), "{body}: {answer:?}");
    }
    assert_eq!(server.get(&path).await.json()["specGeneration"], 1);
}

#[tokio::test]
async fn values_of_another_kind_are_refused_in_the_words_of_json_with_a_hint() {
    let server = Server::start().await;
    let before = server.footprint().await;
    for (name, value, field, words) in [
        ("resources", json!({"cpus": "two"}), "resources.cpus", "expected a number"),
        ("resources", json!({"pids": -1}), "resources.pids", "expected a whole number"),
        ("resources", json!({"memory": "512MB"}), "resources.memory", "is not a size"),
        ("stopTimeout", json!("10s"), "stopTimeout", "expected a whole number"),
        ("command", json!("sleep infinity"), "command", "expected a list"),
        ("volumes", json!("all"), "volumes", "expected a list"),
        ("env", json!(["A=1"]), "env", "expected an object"),
        ("env", json!({"A": 1}), "env.A", "expected a text"),
        ("privilegeEscalation", json!(true), "privilegeEscalation", "of another kind"),
        ("onStop", json!("destroy"), "onStop", "is not known"),
        ("ports", json!([{"container": 70000}]), "ports[0].container", "expected a whole number"),
    ] {
        let mut body = json!({"name": "dev", "image": "debian:12"});
        body[name] = value;
        let answer = server.post("/api/v1/pods", body.clone()).await;
        assert_eq!(answer.problem(), ("invalid-input".to_owned(), Some(field.to_owned())), "{body}");
        assert!(answer.json()["detail"].as_str().unwrap().contains(words), "{body}: {answer:?}");
        assert!(answer.json()["hint"].is_string(), "{body}: {answer:?}");
    }
    for body in [json!([]), json!("x"), json!({"image": "debian:12"})] {
        let answer = server.post("/api/v1/pods", body.clone()).await;
        assert_eq!(answer.problem().0, "invalid-input", "{body}");
        assert!(answer.json()["hint"].is_string() && !answer.text.contains("struct"), "{body}: {answer:?}");
    }
    let answer = server.get("/api/v1/pods?limit=abc").await;
    assert_eq!(answer.problem().1.as_deref(), Some("limit"));
    assert_eq!(answer.json()["hint"], "use a number from 1 to 1000");
    assert_eq!(server.footprint().await, before, "nothing was created");
}
