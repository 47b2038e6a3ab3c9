//! Subscriptions over the API.

use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::server::{Answer, Server};

const ALL: &str = "/api/v1/subscriptions";

/// A server with Ann, a member of a tenant, and her token.
async fn with_ann() -> (Server, String) {
    let server = Server::start().await;
    server.user("ann", "user", &["acme"]).await;
    let (_, ann) = server.token("ann", &["read", "operate"]).await;
    (server, ann)
}

/// Ann's subscription to n8n/plus, whose pod runs: its path and its pod's id.
async fn subscribed(server: &Server, ann: &str) -> (String, String) {
    let answer = server.post_as(ann, ALL, json!({"name": "wf", "plan": "n8n/plus"})).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{answer:?}");
    let made = answer.json();
    assert_eq!(made["operation"]["kind"], "create");
    let of = |name: &str| made["subscription"][name].as_str().unwrap().to_owned();
    server.runs(of("pod").parse().unwrap()).await;
    (format!("{ALL}/{}", of("id")), of("pod"))
}

fn refused(answer: &Answer, status: StatusCode, code: &str) {
    assert_eq!((answer.status, answer.problem().0.as_str()), (status, code), "{answer:?}");
}

#[tokio::test]
async fn a_subscription_makes_its_pod_once_and_shows_its_clocks() {
    let (server, ann) = with_ann().await;
    let (path, pod) = subscribed(&server, &ann).await;
    let again = server.post_as(&ann, ALL, json!({"name": "wf", "plan": "n8n/plus"})).await;
    assert_eq!((again.status, &again.json()["operation"]), (StatusCode::OK, &Value::Null));
    refused(
        &server.post_as(&ann, ALL, json!({"name": "wf", "plan": "n8n/pro"})).await,
        StatusCode::CONFLICT,
        "subscription-active",
    );
    refused(
        &server.post_as(&ann, ALL, json!({"name": "wf", "plan": "ghost/basic"})).await,
        StatusCode::CONFLICT,
        "subscription-name-taken",
    );
    let shown = server.get_as(&ann, &path).await.json();
    let expected = json!({"name": "wf", "tenant": "acme", "plan": "n8n/plus", "state": "active", "pod": pod,
        "podPhase": "running", "expiresAt": null, "endedAt": null, "startsAgain": null, "trashAt": null, "warnings": 0,
        "purgeAt": null, "resetCount": 0, "lastResetAt": null, "lastResetSnapshot": null});
    for (field, value) in expected.as_object().unwrap() {
        assert_eq!(&shown[field], value, "{field}");
    }
    assert_eq!(server.get_as(&ann, &format!("{ALL}?name=wf&state=active")).await.json()["items"], json!([shown]));
    assert_eq!(server.get_as(&ann, &format!("{ALL}?state=expired")).await.json()["items"], json!([]));
    assert_eq!(server.get_as(&ann, "/api/v1/pods").await.json()["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_cancelled_subscription_rests_until_its_owner_renews_it() {
    let (server, ann) = with_ann().await;
    let (path, pod) = subscribed(&server, &ann).await;
    let cancelled = server.post_as(&ann, &format!("{path}/cancel"), json!({})).await;
    assert_eq!((cancelled.status, &cancelled.json()["operation"]["kind"]), (StatusCode::ACCEPTED, &json!("pause")));
    let shown = cancelled.json()["subscription"].clone();
    assert_eq!((&shown["state"], &shown["startsAgain"]), (&json!("cancelled"), &json!(true)));
    let time = |name: &str| shown[name].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    assert_eq!(time("trashAt").duration_since(time("endedAt")).as_hours(), 60 * 24);
    for (verb, body) in [
        (format!("/api/v1/pods/{pod}/start"), json!({})),
        (format!("{path}/restart-pod"), json!({})),
        (format!("{path}/reset-pod"), json!({"confirm": "wf"})),
        (format!("{path}/change-plan"), json!({"plan": "pro"})),
    ] {
        refused(&server.post_as(&ann, &verb, body).await, StatusCode::CONFLICT, "subscription-ended");
    }
    let again = server.post_as(&ann, &format!("{path}/cancel"), json!({})).await;
    assert_eq!((again.status, &again.json()["operation"]), (StatusCode::ACCEPTED, &Value::Null));
    let back = server.post_as(&ann, &format!("{path}/renew"), json!({})).await;
    assert_eq!(
        (&back.json()["subscription"]["state"], &back.json()["operation"]["kind"]),
        (&json!("active"), &json!("start"))
    );
}

#[tokio::test]
async fn until_when_is_said_by_administrators_alone() {
    let (server, ann) = with_ann().await;
    let (path, _) = subscribed(&server, &ann).await;
    for (verb, body) in [
        (ALL.to_owned(), json!({"name": "other", "plan": "n8n/plus", "expiresAt": "2090-01-01T00:00:00Z"})),
        (format!("{path}/renew"), json!({"expiresAt": "2090-01-01T00:00:00Z"})),
        (format!("{path}/renew"), json!({"expiresAt": null})),
        (format!("{path}/expire"), json!({})),
    ] {
        refused(&server.post_as(&ann, &verb, body).await, StatusCode::FORBIDDEN, "forbidden");
    }
    let renew = async |body: Value| server.post(&format!("{path}/renew"), body).await;
    let set = renew(json!({"expiresAt": "2090-01-01T00:00:00Z"})).await;
    assert_eq!(set.json()["subscription"]["expiresAt"], "2090-01-01T00:00:00Z", "{set:?}");
    let past = renew(json!({"expiresAt": "2020-01-01T00:00:00Z"})).await;
    assert_eq!((past.status, past.problem().1.as_deref()), (StatusCode::BAD_REQUEST, Some("expiresAt")), "{past:?}");
    let over = server.post(&format!("{path}/expire"), json!({})).await;
    assert_eq!(over.json()["subscription"]["state"], "expired", "{over:?}");
    // What she had left was taken with it, and a cancellation does not bring it back.
    let mine = async |verb: &str| server.post_as(&ann, &format!("{path}/{verb}"), json!({})).await;
    refused(&mine("renew").await, StatusCode::CONFLICT, "subscription-over");
    assert_eq!(mine("cancel").await.status, StatusCode::ACCEPTED);
    refused(&mine("renew").await, StatusCode::CONFLICT, "subscription-over");
    let until = renew(json!({"expiresAt": "2091-01-01T00:00:00Z"})).await;
    assert_eq!(until.json()["subscription"]["state"], "active", "{until:?}");
    let other = json!({"name": "wf", "plan": "n8n/plus", "tenant": "acme", "expiresAt": "2092-01-01T00:00:00Z"});
    refused(&server.post(ALL, other).await, StatusCode::CONFLICT, "subscription-active");
}

#[tokio::test]
async fn nobody_goes_on_with_the_data_of_an_ended_subscription_in_another_pod() {
    let (server, ann) = with_ann().await;
    let (path, pod) = subscribed(&server, &ann).await;
    let snapshot = server.snapshot(pod.parse().unwrap(), 7).await;
    let clone = format!("/api/v1/pods/{pod}/clone");
    let from = json!({"name": "copy", "fromSnapshot": snapshot.to_string()});
    assert_eq!(server.post_as(&ann, &format!("{path}/cancel"), json!({})).await.status, StatusCode::ACCEPTED);
    refused(&server.post_as(&ann, &clone, json!({"name": "copy"})).await, StatusCode::CONFLICT, "subscription-ended");
    refused(&server.post_as(&ann, "/api/v1/pods", from).await, StatusCode::CONFLICT, "subscription-ended");
    let read = server.get_as(&ann, &format!("/api/v1/snapshots/{snapshot}")).await;
    assert_eq!(read.status, StatusCode::OK, "looking at it is another matter");
    let named = json!({"name": "wf", "image": "debian:12"});
    refused(&server.post_as(&ann, "/api/v1/pods", named).await, StatusCode::CONFLICT, "pod-name-taken");
}

#[tokio::test]
async fn a_reset_of_a_subscriptions_pod_takes_its_name_and_a_restart_nothing() {
    let (server, ann) = with_ann().await;
    let (path, _) = subscribed(&server, &ann).await;
    let reset = format!("{path}/reset-pod");
    let unconfirmed = server.post_as(&ann, &reset, json!({"confirm": "yes"})).await;
    assert_eq!((unconfirmed.status, unconfirmed.problem().1.as_deref()), (StatusCode::BAD_REQUEST, Some("confirm")));
    let key = [("idempotency-key", "once"), ("content-type", "application/json")];
    let once = async || {
        let body = json!({"confirm": "wf"}).to_string();
        server.ask_as(&ann, axum::http::Method::POST, &reset, &key, body).await
    };
    let (first, second) = (once().await, once().await);
    assert_eq!((first.status, &first.json()["operation"]["kind"]), (StatusCode::ACCEPTED, &json!("reset")));
    assert_eq!(first.json()["operation"]["id"], second.json()["operation"]["id"], "the same request is one reset");
    let restart = server.post_as(&ann, &format!("{path}/restart-pod"), json!({})).await;
    assert_eq!(restart.json()["operation"]["kind"], "restart", "{restart:?}");
}

#[tokio::test]
async fn bad_subscriptions_are_refused_and_make_nothing() {
    let (server, ann) = with_ann().await;
    let before = server.footprint().await;
    for (body, field) in [
        (json!({"plan": "n8n/plus"}), "name"),
        (json!({"name": "No", "plan": "n8n/plus"}), "name"),
        (json!({"name": "wf", "plan": "n8n"}), "plan"),
        (json!({"name": "wf"}), "plan"),
        (json!({"name": "wf", "plan": "n8n/plus", "days": 3}), "days"),
        (json!({"name": "wf", "plan": "n8n/plus", "expiresAt": "soon"}), "expiresAt"),
    ] {
        let answer = server.post_as(&ann, ALL, body.clone()).await;
        let found = (answer.status, answer.problem().1);
        assert_eq!(found, (StatusCode::BAD_REQUEST, Some(field.to_owned())), "{body}: {answer:?}");
    }
    for body in [
        json!({"name": "wf", "plan": "n8n/nosuch"}),
        json!({"name": "wf", "plan": "nosuch/plus"}),
        json!({"name": "wf", "plan": "n8n/plus", "tenant": "other"}),
    ] {
        refused(&server.post_as(&ann, ALL, body).await, StatusCode::NOT_FOUND, "not-found");
    }
    assert_eq!(server.footprint().await, before);
    let (path, _) = subscribed(&server, &ann).await;
    let odd = server.post_as(&ann, &format!("{path}/change-plan"), json!({"plan": "n8n/pro"})).await;
    assert_eq!(odd.problem().1.as_deref(), Some("plan"), "{odd:?}");
}
