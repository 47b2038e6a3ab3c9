//! Hooks in the API.

use serde_json::{Value, json};

use super::server::Server;

fn create(hooks: Value) -> Value {
    json!({"name": "dev", "image": "debian:12", "hooks": hooks})
}

#[tokio::test]
async fn hooks_are_taken_shown_and_changed() {
    let server = Server::start().await;
    let asked = json!({"before": {"command": ["sync"], "user": "db", "timeout": 60}, "after": {"command": ["true"]}});
    let made = server.post("/api/v1/pods", create(asked)).await.json();
    let pod = &made["pod"];
    let shown = json!({
        "before": {"command": ["sync"], "user": "db", "timeout": 60},
        "after": {"command": ["true"], "user": null, "timeout": 30},
        "onFailure": "fail",
    });
    assert_eq!(pod["spec"]["hooks"], shown);
    let path = format!("/api/v1/pods/{}", pod["id"].as_str().unwrap());
    let changed = json!({"hooks": {"before": {"command": ["sync"]}, "onFailure": "continue"}});
    let changed = server.patch(&path, None, changed).await.json();
    let hooks = &changed["spec"]["hooks"];
    assert_eq!((&hooks["after"], &hooks["onFailure"]), (&Value::Null, &json!("continue")));
    assert_eq!(changed["specGeneration"], pod["specGeneration"], "nothing has to be restarted for it");
    let none = server.patch(&path, None, json!({"hooks": null})).await.json();
    assert_eq!(none["spec"]["hooks"]["before"], Value::Null);
}

#[tokio::test]
async fn what_is_wrong_with_hooks_is_named() {
    let server = Server::start().await;
    let hook = json!({"command": ["sync"]});
    for (hooks, field) in [
        (json!({"before": {"command": []}}), "hooks.before.command"),
        (json!({"before": {"command": ["sync"], "timeout": 0}}), "hooks.before.timeout"),
        (json!({"before": {"command": ["sync"], "user": "a b"}}), "hooks.before.user"),
        (json!({"before": hook, "after": {"command": ["a\u{0}"]}}), "hooks.after.command"),
        (json!({"after": hook}), "hooks.after"),
        (json!({"before": hook, "onFailure": "perhaps"}), "hooks.onFailure"),
        (json!({"before": hook, "during": hook}), "hooks.during"),
    ] {
        let refused = server.post("/api/v1/pods", create(hooks.clone())).await;
        assert_eq!(refused.problem().1.as_deref(), Some(field), "{hooks}: {refused:?}");
    }
}
