//! Requests that take their time, and lose their rights meanwhile.

use std::time::Duration;

use axum::body::{Body, BodyDataStream, Bytes};
use axum::http::{Method, Request, StatusCode};
use futures::StreamExt as _;
use jiff::SignedDuration;
use perennial_core::pod::{Phase, PinnedImage};
use perennial_core::volume::ImageLayout;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

use crate::server::{Answer, Server, read};

/// What takes the rights away.
const ENDS: [&str; 5] = ["revoked", "expired", "disabled", "removed", "no member"];

struct Ann {
    server: Server,
    pod: String,
    id: String,
    token: String,
}

impl Ann {
    async fn new() -> Self {
        let server = Server::start().await;
        server.user("ann", "user", &["acme"]).await;
        let pod = server.pod_of("acme", "dev").await;
        server
            .settle(pod, |pod| {
                pod.phase = Phase::Running;
                pod.image = Some(PinnedImage { id: "sha256:00".into(), digest: None, layout: ImageLayout::default() });
            })
            .await;
        let made = server
            .post(
                "/api/v1/tokens",
                json!({"user": "ann", "scopes": ["read", "operate"], "expiresAt": "2026-01-01T01:00:00Z"}),
            )
            .await
            .json();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        Self { pod: pod.to_string(), id: text(&made["token"]["id"]), token: text(&made["secret"]), server }
    }

    async fn end(&self, how: &str) {
        let answer = match how {
            "revoked" => self.server.delete(&format!("/api/v1/tokens/{}", self.id)).await,
            "disabled" => self.server.patch("/api/v1/users/ann", None, json!({"disabled": true})).await,
            "removed" => self.server.delete("/api/v1/users/ann").await,
            "no member" => self.server.delete("/api/v1/tenants/acme/members/ann").await,
            _ => return self.server.clock.advance(SignedDuration::from_hours(2)),
        };
        assert!(answer.status.is_success(), "{how}: {answer:?}");
    }

    /// Sends a request and holds its body back; tells when somebody waits for it.
    async fn slow(&self, path: &str, kind: &str) -> (mpsc::Sender<Bytes>, tokio::task::JoinHandle<Answer>) {
        let (send, mut receive) = mpsc::channel::<Bytes>(1);
        let (waits, waited) = oneshot::channel();
        let mut waits = Some(waits);
        let body = futures::stream::poll_fn(move |context| {
            if let Some(waits) = waits.take() {
                let _ = waits.send(());
            }
            receive.poll_recv(context).map(|piece| piece.map(Ok::<_, std::io::Error>))
        });
        let request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .header("authorization", format!("Bearer {}", self.token))
            .header("content-type", kind)
            .body(Body::from_stream(body))
            .unwrap();
        let router = self.server.router.clone();
        let answer =
            tokio::spawn(async move { read(tower::ServiceExt::oneshot(router, request).await.unwrap()).await });
        waited.await.unwrap();
        (send, answer)
    }

    async fn open(&self, path: &str) -> BodyDataStream {
        let request = Request::get(path).header("authorization", format!("Bearer {}", self.token));
        let response = self.server.send(request.body(Body::empty()).unwrap()).await;
        assert_eq!(response.status(), StatusCode::OK);
        response.into_body().into_data_stream()
    }
}

async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), future).await.unwrap()
}

fn refused(how: &str) -> StatusCode {
    if how == "no member" { StatusCode::NOT_FOUND } else { StatusCode::UNAUTHORIZED }
}

#[tokio::test]
async fn a_body_that_is_held_back_does_nothing_once_the_rights_are_gone() {
    for how in ENDS {
        let ann = Ann::new().await;
        let (body, answer) = ann.slow(&format!("/api/v1/pods/{}/stop", ann.pod), "application/json").await;
        ann.end(how).await;
        let before = ann.server.footprint().await;
        let _ = body.send(Bytes::from_static(b"{}")).await;
        drop(body);
        let answer = in_time(answer).await.unwrap();
        // A membership takes the guard along while the body is read, and nothing is found after it.
        let is_refused =
            answer.status == refused(how) || (how == "no member" && answer.status == StatusCode::BAD_REQUEST);
        assert!(is_refused, "{how}: {answer:?}");
        assert_eq!(ann.server.footprint().await, before, "{how}");
    }
}

#[tokio::test]
async fn nobody_waits_for_the_body_of_who_has_no_rights_any_more() {
    for how in ENDS {
        let ann = Ann::new().await;
        let (body, answer) = ann.slow(&format!("/api/v1/pods/{}/stop", ann.pod), "application/json").await;
        ann.end(how).await;
        let answer = in_time(answer).await.unwrap();
        assert!(answer.status.is_client_error(), "{how}: {answer:?}");
        drop(body);
    }
}

#[tokio::test]
async fn an_import_that_loses_its_rights_leaves_nothing() {
    for how in ENDS {
        let ann = Ann::new().await;
        let path = format!("/api/v1/pods/{}/snapshots/import", ann.pod);
        let (body, answer) = ann.slow(&path, "application/octet-stream").await;
        ann.end(how).await;
        let before = ann.server.footprint().await;
        let answer = in_time(answer).await.unwrap();
        assert!(answer.status.is_client_error(), "{how}: {answer:?}");
        if how != "no member" {
            assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{how}: {answer:?}");
        }
        drop(body);
        assert_eq!(ann.server.footprint().await, before, "{how}");
        let left = std::fs::read_dir(ann.server.directory.path().join("imports"));
        assert_eq!(left.map(Iterator::count).unwrap_or_default(), 0, "{how}");
    }
}

#[tokio::test]
async fn a_long_wait_ends_with_the_rights() {
    for how in ENDS {
        let ann = Ann::new().await;
        let path = format!("/api/v1/pods/{}/stop", ann.pod);
        let operation = ann.server.post_as(&ann.token, &path, json!({})).await.json()["operation"]["id"].clone();
        let wait = format!("/api/v1/operations/{}?wait=60s", operation.as_str().unwrap());
        let (waiting, ()) = tokio::join!(ann.server.get_as(&ann.token, &wait), async {
            tokio::task::yield_now().await;
            ann.end(how).await;
        });
        assert_eq!(waiting.status, refused(how), "{how}: {waiting:?}");
    }
}

#[tokio::test]
async fn a_stream_of_events_ends_with_the_rights() {
    for how in ENDS {
        let ann = Ann::new().await;
        let mut stream = ann.open("/api/v1/events/stream").await;
        ann.end(how).await;
        // What comes before the end is of the tenant; the end itself is no proper one.
        in_time(async { while stream.next().await.is_some_and(|piece| piece.is_ok()) {} }).await;
    }
}

#[tokio::test]
async fn who_gets_more_rights_goes_on() {
    let ann = Ann::new().await;
    let (body, answer) = ann.slow(&format!("/api/v1/pods/{}/stop", ann.pod), "application/json").await;
    ann.server.post("/api/v1/tenants", json!({"name": "more"})).await;
    let path = "/api/v1/tenants/more/members/ann";
    assert_eq!(ann.server.ask(Method::PUT, path, &[], Body::empty()).await.status, StatusCode::OK);
    body.send(Bytes::from_static(b"{}")).await.unwrap();
    drop(body);
    assert_eq!(in_time(answer).await.unwrap().status, StatusCode::ACCEPTED);
}
