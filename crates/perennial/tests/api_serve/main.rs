//! A whole server on the simulated engine, asked over a socket.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod catalogue;
mod copies;
mod erase;
mod keys;
mod log;
mod recovery;
mod remote;
mod replicas;
mod rights;
#[path = "../s3/mod.rs"]
mod s3;
mod tls;

use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use perennial::cli::{Exit, Out, Session, run_from};
use perennial::config::{Config, EngineKind, ServeArgs};
use perennial::serve::{DirectoryError, Running, ServeError};
use serde_json::{Value, json};

fn config(data: &Path) -> Config {
    let args =
        ServeArgs { listen: Some(([127, 0, 0, 1], 0).into()), engine: Some(EngineKind::Sim), ..ServeArgs::default() };
    Config::load(&args, Some(data)).unwrap()
}

#[derive(Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Runs `perennial` with these words and a path against a server, and tells everything it printed.
async fn command(url: &str, data: &Path, words: &[&str], path: Option<&Path>) -> (Exit, String) {
    let token = data.join("admin-token");
    let mut all = vec!["perennial", "--server", url, "--token-file", token.to_str().unwrap()];
    all.extend(words);
    all.extend(path.map(|path| path.to_str().unwrap()));
    let printed = Buffer::default();
    let mut out = Out::captured(Box::new(printed.clone()), Box::new(printed.clone()), None);
    let exit = run_from(&all, Session { token: None, ..Session::process() }, &mut out).await;
    drop(out);
    let text = String::from_utf8(printed.0.lock().unwrap().clone()).unwrap();
    (exit, text)
}

struct Client {
    http: reqwest::Client,
    base: String,
    token: String,
}

impl Client {
    fn of(server: &Running) -> Self {
        Self::at(&server.url(), server.directory.path())
    }

    fn at(url: &str, data: &Path) -> Self {
        perennial::crypto::install();
        let token = std::fs::read_to_string(data.join("admin-token")).unwrap();
        Self { http: reqwest::Client::new(), base: format!("{url}/api/v1"), token: token.trim().to_owned() }
    }

    async fn get(&self, path: &str) -> Value {
        let request = self.http.get(format!("{}/{path}", self.base)).bearer_auth(&self.token);
        request.send().await.unwrap().json().await.unwrap()
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        let request = self.http.post(format!("{}/{path}", self.base)).bearer_auth(&self.token).json(&body);
        request.send().await.unwrap().json().await.unwrap()
    }

    /// Waits for the operation of an answer to succeed.
    async fn done(&self, answer: &Value) {
        let id = answer["operation"]["id"].as_str().unwrap_or_else(|| panic!("{answer}"));
        let operation = self.get(&format!("operations/{id}?wait=30s")).await;
        assert_eq!(operation["state"], "succeeded", "{operation}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_serves_refuses_a_second_one_and_comes_back() {
    let directory = tempfile::tempdir().unwrap();
    let config = config(&directory.path().join("data"));
    let server = Running::start(&config).await.unwrap();
    assert!(server.directory.is_new());
    let client = Client::of(&server);
    let created = client.post("pods", json!({"name": "dev", "image": "debian:12"})).await;
    client.done(&created).await;
    let id = created["pod"]["id"].as_str().unwrap();
    assert_eq!(client.get(&format!("pods/{id}")).await["phase"], "running");

    match Running::start(&config).await {
        Err(ServeError::Directory(DirectoryError::Locked(_))) => {}
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("a second server started"),
    }

    client.done(&client.post(&format!("pods/{id}/stop"), json!({})).await).await;
    server.stop().await;

    let server = Running::start(&config).await.unwrap();
    assert!(!server.directory.is_new());
    let again = Client::of(&server);
    assert_eq!(again.token, client.token);
    let pod = again.get(&format!("pods/{id}")).await;
    assert_eq!((&pod["phase"], &pod["latestSnapshot"]["state"]), (&json!("stopped"), &json!("verified")));
    again.done(&again.post(&format!("pods/{id}/start"), json!({})).await).await;
    assert_eq!(again.get(&format!("pods/{id}")).await["phase"], "running");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_right_after_the_start_does_not_wait_for_the_next_look_at_all_pods() {
    let directory = tempfile::tempdir().unwrap();
    let config = config(directory.path());
    let server = Running::start(&config).await.unwrap();
    let client = Client::of(&server);
    // Several, so that the stop comes while they are looked at.
    for n in 0..20 {
        client.done(&client.post("pods", json!({"name": format!("p{n}"), "image": "debian:12"})).await).await;
    }
    server.stop().await;
    for _ in 0..5 {
        let server = Running::start(&config).await.unwrap();
        tokio::time::timeout(Duration::from_secs(20), server.stop()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_does_not_wait_for_those_who_wait() {
    let directory = tempfile::tempdir().unwrap();
    let server = Running::start(&config(directory.path())).await.unwrap();
    let client = Client::of(&server);
    let stream =
        client.http.get(format!("{}/events/stream", client.base)).bearer_auth(&client.token).send().await.unwrap();
    assert!(stream.status().is_success());
    tokio::time::timeout(Duration::from_secs(8), server.stop()).await.unwrap();
    drop(stream);
}
