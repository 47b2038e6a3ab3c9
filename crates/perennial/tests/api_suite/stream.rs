//! The event stream: live, resumable, without gaps.

use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::http::Request;
use futures::StreamExt as _;
use serde_json::{Value, json};

use crate::server::{Server, TOKEN};

struct Stream {
    body: BodyDataStream,
    text: String,
}

impl Stream {
    async fn open(server: &Server, query: &str, last: Option<&str>) -> Self {
        let mut request = Request::builder()
            .uri(format!("/api/v1/events/stream{query}"))
            .header("authorization", format!("Bearer {TOKEN}"));
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let response = server.send(request.body(Body::empty()).unwrap()).await;
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { body: response.into_body().into_data_stream(), text: String::new() }
    }

    /// The next event's id line and data; `None` when the stream ended.
    async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            if let Some((block, rest)) = self.text.split_once("\n\n") {
                let block = block.to_owned();
                self.text = rest.to_owned();
                let line = |name: &str| block.lines().find_map(|l| l.strip_prefix(name)).map(|l| l.trim().to_owned());
                if let (Some(id), Some(data)) = (line("id:"), line("data:")) {
                    return Some((id, serde_json::from_str(&data).unwrap()));
                }
                continue;
            }
            let chunk = tokio::time::timeout(Duration::from_secs(5), self.body.next()).await.unwrap()?;
            self.text.push_str(std::str::from_utf8(&chunk.unwrap()).unwrap());
        }
    }
}

#[tokio::test]
async fn a_stream_shows_what_happens_from_now_on() {
    let server = Server::start().await;
    server.pod("before").await;
    let mut stream = Stream::open(&server, "", None).await;
    let id = server.pod("after").await;
    let (number, event) = stream.next().await.unwrap();
    assert_eq!(number, "2");
    assert_eq!((&event["id"], &event["podId"]), (&json!(2), &json!(id.to_string())));
    assert_eq!(event["type"], "operation.requested");
}

#[tokio::test]
async fn a_stream_resumes_after_the_last_event_that_was_seen() {
    let server = Server::start().await;
    for n in 0..5 {
        server.pod(&format!("p{n}")).await;
    }
    let mut stream = Stream::open(&server, "", Some("2")).await;
    for expected in ["3", "4", "5"] {
        assert_eq!(stream.next().await.unwrap().0, expected);
    }
    server.pod("live").await;
    assert_eq!(stream.next().await.unwrap().0, "6");
    let mut stream = Stream::open(&server, "?after=4", None).await;
    assert_eq!(stream.next().await.unwrap().0, "5");
    // What the browser remembers wins over what the page once asked for.
    let mut stream = Stream::open(&server, "?after=1", Some("5")).await;
    assert_eq!(stream.next().await.unwrap().0, "6");
}

#[tokio::test]
async fn a_stream_of_one_pod_shows_only_that_pod() {
    let server = Server::start().await;
    let id = server.running("mine").await;
    server.pod("other").await;
    let mut stream = Stream::open(&server, &format!("?after=0&pod={id}"), None).await;
    assert_eq!(stream.next().await.unwrap().1["podId"], id.to_string());
    server.pod("third").await;
    server.post(&format!("/api/v1/pods/{id}/stop"), json!({})).await;
    assert_eq!(stream.next().await.unwrap().1["message"], "stop requested");
}

#[tokio::test]
async fn many_events_at_once_arrive_in_order() {
    let server = Server::start().await;
    let id = server.running("dev").await;
    let mut stream = Stream::open(&server, "?after=0", None).await;
    for _ in 0..50 {
        server.post(&format!("/api/v1/pods/{id}/start"), json!({})).await;
    }
    let last = server.store.event_last().await.unwrap();
    for expected in 1..=last {
        assert_eq!(stream.next().await.unwrap().0, expected.to_string());
    }
}

#[tokio::test]
async fn a_stream_ends_when_the_server_stops() {
    let server = Server::start().await;
    let mut stream = Stream::open(&server, "", None).await;
    server.stop.send(true).unwrap();
    assert!(stream.next().await.is_none());
}
