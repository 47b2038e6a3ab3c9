//! Health checks in the API.

use serde_json::{Value, json};

use super::server::Server;

fn create(health: Value) -> Value {
    json!({"name": "dev", "image": "debian:12", "health": health})
}

#[tokio::test]
async fn a_health_check_is_taken_shown_and_changed() {
    let server = Server::start().await;
    let made = server.post("/api/v1/pods", create(json!({"http": {"port": 8080}, "interval": 5}))).await.json();
    let pod = &made["pod"];
    let shown = json!({
        "http": {"port": 8080, "path": "/"}, "interval": 5, "timeout": 5, "retries": 3, "startPeriod": 60,
    });
    assert_eq!(pod["spec"]["health"], shown);
    assert_eq!(pod["health"], json!({"state": "starting", "since": null, "lastProblem": null}));
    let path = format!("/api/v1/pods/{}", pod["id"].as_str().unwrap());
    let status = server.get(&format!("{path}/status")).await.json();
    assert!(status["health"]["state"].is_string(), "{status}");
    let changed = json!({"health": {"exec": {"command": ["true"]}, "retries": 1}});
    let changed = server.patch(&path, None, changed).await.json();
    assert_eq!(changed["spec"]["health"]["exec"], json!({"command": ["true"]}));
    assert_eq!(changed["specGeneration"], pod["specGeneration"], "nothing has to be restarted for it");
    let none = server.patch(&path, None, json!({"health": null})).await.json();
    assert_eq!((&none["spec"]["health"], &none["health"]), (&Value::Null, &Value::Null));
}

#[tokio::test]
async fn what_is_wrong_with_a_health_check_is_named() {
    let server = Server::start().await;
    let tcp = json!({"port": 80});
    for (health, field) in [
        (json!({}), "health"),
        (json!({"tcp": tcp, "http": tcp}), "health"),
        (json!({"tcp": {"port": 0}}), "health.tcp.port"),
        (json!({"http": {"port": 80, "path": "healthz"}}), "health.http.path"),
        (json!({"http": {"port": 80, "path": "/\r\nHost: other"}}), "health.http.path"),
        (json!({"exec": {"command": []}}), "health.exec.command"),
        (json!({"tcp": tcp, "interval": 0}), "health.interval"),
        (json!({"tcp": tcp, "timeout": 31}), "health.timeout"),
        (json!({"tcp": tcp, "retries": 0}), "health.retries"),
        (json!({"tcp": tcp, "startPeriod": 3601}), "health.startPeriod"),
        (json!({"tcp": tcp, "every": 1}), "health.every"),
    ] {
        let refused = server.post("/api/v1/pods", create(health.clone())).await;
        assert_eq!(refused.problem().1.as_deref(), Some(field), "{health}: {refused:?}");
    }
}
