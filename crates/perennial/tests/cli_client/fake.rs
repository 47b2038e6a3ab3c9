//! A scripted server, and things for it to answer with.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Method, Response, Uri};
use futures::StreamExt as _;
use jiff::Timestamp;
use perennial::api::wire::{
    Condition, Consistency, Container, CreatePod, Desired, Event, Grade, Hooks, List, OnStop, Operation, OperationKind,
    OperationState, Phase, Pod, PodOperation, PodSpec, PodVolume, PrivilegeEscalation, Problem, Progress, Resources,
    Size, Snapshot, SnapshotKind, SnapshotRules, SnapshotState, SnapshotVolume, VolumeState,
};
use perennial::cli::{Exit, Interrupt, Out, Output, Session, run_from};
use serde::Serialize;
use serde_json::Value;
use tokio::sync::Notify;

pub const POD: &str = "01kefakep0d000000000000000";
pub const OTHER: &str = "01kefakep0d000000000000001";
pub const OP: &str = "01kefake0p0000000000000000";
pub const SNAPSHOT: &str = "01kefakesnap00000000000000";

/// One answer of the script.
#[derive(Clone)]
pub enum Reply {
    /// A document.
    Json(u16, String),
    /// A document with an `ETag`.
    Tagged(String, &'static str),
    /// Something that is not JSON.
    Text(u16, &'static str, String),
    /// The request is taken and the connection breaks.
    Break,
    /// A document, once somebody lets it go.
    Held(String, Arc<Notify>),
    /// The request is taken, and never answered.
    Silence,
    /// A beginning, and never the rest.
    Stalls(&'static str),
}

/// A request that arrived.
#[derive(Debug, Clone)]
pub struct Asked {
    pub what: String,
    pub headers: HashMap<String, String>,
    pub body: Option<Value>,
}

/// A server that answers from a script: for each "METHOD /path" a queue whose last reply is repeated.
#[derive(Clone, Default)]
pub struct Fake {
    script: Arc<Mutex<BTreeMap<String, VecDeque<Reply>>>>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

/// What a run of the command line left behind.
pub struct Ran {
    pub exit: Exit,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {}", self.stdout))
    }
}

#[derive(Clone, Default)]
pub struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Buffer {
    pub fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Fake {
    /// Adds documents to answer a request with, one after the other.
    pub fn on<T: Serialize>(&self, what: &str, answers: impl IntoIterator<Item = T>) -> &Self {
        let replies = answers.into_iter().map(|answer| Reply::Json(200, serde_json::to_string(&answer).unwrap()));
        self.reply(what, replies)
    }

    pub fn reply(&self, what: &str, replies: impl IntoIterator<Item = Reply>) -> &Self {
        self.script.lock().unwrap().entry(what.to_owned()).or_default().extend(replies);
        self
    }

    /// Answers `pod ls` and the search for names.
    pub fn pods(&self, pods: &[Pod]) -> &Self {
        self.on("GET /api/v1/pods", [List { items: pods.to_vec(), next: None }])
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// Requests of this kind.
    pub fn asked_for(&self, prefix: &str) -> Vec<Asked> {
        self.asked().into_iter().filter(|asked| asked.what.starts_with(prefix)).collect()
    }

    async fn answer(&self, method: &Method, uri: &Uri, headers: &HeaderMap, body: &[u8]) -> Response<Body> {
        let text = |value: &axum::http::HeaderValue| value.to_str().unwrap().to_owned();
        self.asked.lock().unwrap().push(Asked {
            what: format!("{method} {uri}"),
            headers: headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect(),
            // What is no JSON is kept as it came.
            body: (!body.is_empty()).then(|| {
                serde_json::from_slice(body).unwrap_or_else(|_| String::from_utf8(body.to_vec()).unwrap().into())
            }),
        });
        let reply = {
            let mut script = self.script.lock().unwrap();
            match script.get_mut(&format!("{method} {}", uri.path())) {
                Some(queue) if queue.len() > 1 => queue.pop_front(),
                Some(queue) => queue.front().cloned(),
                None => None,
            }
        };
        let (status, kind, tag, body) = match reply {
            None => (404, "application/problem+json", None, problem(404, "not-found", "nothing there").into()),
            Some(Reply::Json(status, body)) => (status, "application/json", None, body.into()),
            Some(Reply::Tagged(body, tag)) => (200, "application/json", Some(tag), body.into()),
            Some(Reply::Text(status, kind, body)) => (status, kind, None, body.into()),
            Some(Reply::Held(body, go)) => {
                go.notified().await;
                (200, "application/json", None, body.into())
            }
            Some(Reply::Stalls(begin)) => {
                let begin = futures::stream::iter([Ok::<_, io::Error>(Bytes::from_static(begin.as_bytes()))]);
                let stream = begin.chain(futures::stream::pending());
                (200, "application/octet-stream", None, Body::from_stream(stream))
            }
            Some(Reply::Silence) => std::future::pending().await,
            Some(Reply::Break) => {
                let broken = futures::stream::iter([Err::<Bytes, _>(io::Error::other("scripted"))]);
                (200, "application/json", None, Body::from_stream(broken))
            }
        };
        let mut response = Response::builder().status(status).header("content-type", kind);
        if let Some(tag) = tag {
            response = response.header("etag", tag);
        }
        response.body(body).unwrap()
    }

    pub async fn serve(&self) -> String {
        let fake = self.clone();
        let app = Router::new().fallback(move |method: Method, uri: Uri, headers: HeaderMap, body: Bytes| async move {
            fake.answer(&method, &uri, &headers, &body).await
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        format!("http://{address}")
    }

    /// Runs a command line without a terminal.
    pub async fn run(&self, arguments: &[&str]) -> Ran {
        self.run_with(arguments, None, session()).await
    }

    /// Runs a command line on a terminal where somebody types.
    pub async fn run_typing(&self, arguments: &[&str], typed: &'static str) -> Ran {
        self.run_with(arguments, Some(typed), session()).await
    }

    pub async fn run_with(&self, arguments: &[&str], typed: Option<&'static str>, session: Session) -> Ran {
        let server = self.serve().await;
        let arguments = [&["perennial", "--server", &server], arguments].concat();
        run_raw(&arguments, typed, session).await
    }
}

pub async fn run_raw(arguments: &[&str], typed: Option<&'static str>, session: Session) -> Ran {
    let (stdout, stderr) = (Buffer::default(), Buffer::default());
    let mut out = Out::captured(Box::new(stdout.clone()), Box::new(stderr.clone()), typed);
    let exit = run_from(arguments, session, &mut out).await;
    Ran { exit, stdout: stdout.text(), stderr: stderr.text() }
}

pub fn now() -> Timestamp {
    time("2026-01-10T12:00:00Z")
}

pub fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

pub fn session() -> Session {
    Session {
        output: Output::Table,
        now,
        token: Some("secret".to_owned()),
        pause: Duration::ZERO,
        silence: Duration::from_secs(90),
        tries: 3,
        interrupt: Interrupt::Notify(Arc::new(Notify::new())),
    }
}

pub fn problem(status: u16, code: &str, detail: &str) -> String {
    let problem = Problem {
        kind: format!("urn:perennial:problem:{code}"),
        title: "Title".to_owned(),
        status,
        code: code.to_owned(),
        detail: detail.to_owned(),
        request_id: Some("req-1".to_owned()),
        ..Problem::default()
    };
    serde_json::to_string(&problem).unwrap()
}

pub fn pod(name: &str) -> Pod {
    let volume = |name: &str| PodVolume {
        name: name.to_owned(),
        mount_path: format!("/{name}"),
        engine_name: Some(format!("perennial-vol-{POD}-{name}")),
        state: VolumeState::Complete,
    };
    Pod {
        id: POD.to_owned(),
        name: name.to_owned(),
        tenant: "default".to_owned(),
        desired: Desired::Running,
        phase: Phase::Running,
        spec_generation: 1,
        data_generation: 3,
        system_layer_captured_at: Some(time("2026-01-10T11:55:00Z")),
        image: "debian:12".to_owned(),
        image_digest: Some("sha256:abc".to_owned()),
        runtime: None,
        container: Some(Container { id: "c0ffee".to_owned() }),
        volumes: vec![volume("home"), volume("etc")],
        conditions: Vec::new(),
        latest_snapshot: Some(snapshot()),
        proven_at: Some(time("2026-01-10T11:00:00Z")),
        next_snapshot_at: None,
        spec: PodSpec {
            command: Some(vec!["sleep".to_owned(), "infinity".to_owned()]),
            entrypoint: None,
            resources: Resources { memory: Some(Size(512 << 20)), ..Resources::default() },
            env: BTreeMap::from([("A".to_owned(), "1".to_owned())]),
            secrets: Vec::new(),
            plan: None,
            working_dir: None,
            user: None,
            volumes: None,
            ports: Vec::new(),
            stop_signal: None,
            stop_timeout: 10,
            on_stop: OnStop::Release,
            backend: None,
            privilege_escalation: PrivilegeEscalation::Denied,
            snapshots: SnapshotRules::default(),
            hooks: Hooks::default(),
            health: None,
        },
        health: None,
        deleted_at: None,
        purge_at: None,
        reset_count: 0,
        last_reset_at: None,
        last_reset_snapshot: None,
        created_at: time("2026-01-08T12:00:00Z"),
        updated_at: time("2026-01-10T11:00:00Z"),
    }
}

pub fn stopped(name: &str) -> Pod {
    let mut pod = pod(name);
    (pod.desired, pod.phase, pod.container) = (Desired::Stopped, Phase::Stopped, None);
    for volume in &mut pod.volumes {
        (volume.state, volume.engine_name) = (VolumeState::Absent, None);
    }
    pod
}

pub fn condition() -> Condition {
    Condition {
        kind: "DataLost".to_owned(),
        status: true,
        reason: "volume-missing".to_owned(),
        message: "the data of volume home is gone".to_owned(),
        since: time("2026-01-10T11:59:30Z"),
    }
}

pub fn snapshot() -> Snapshot {
    Snapshot {
        id: SNAPSHOT.to_owned(),
        pod_id: POD.to_owned(),
        state: SnapshotState::Verified,
        kind: SnapshotKind::Final,
        generation: 3,
        created_at: time("2026-01-10T10:00:00Z"),
        bytes: Some(12_900_000),
        new_bytes: Some(2048),
        files: Some(42),
        volumes: vec![SnapshotVolume {
            name: "home".to_owned(),
            mount_path: "/home".to_owned(),
            files: Some(42),
            bytes: None,
        }],
        consistency: Consistency {
            grade: Some(Grade::Stopped),
            frozen_millis: None,
            hooks: None,
            captured_at: Some(time("2026-01-10T10:00:01Z")),
            losses: Vec::new(),
        },
        error: None,
        proven_at: None,
        damage: None,
        replicated_at: None,
        replica_problem: None,
    }
}

pub fn operation(kind: OperationKind, state: OperationState, step: &str) -> Operation {
    Operation {
        id: OP.to_owned(),
        pod_id: POD.to_owned(),
        kind,
        state,
        progress: Progress {
            step: step.to_owned(),
            bytes_done: 0,
            bytes_total: 0,
            files_done: 0,
            bytes_per_second: None,
            seconds_left: None,
        },
        snapshot_id: None,
        error: None,
        actor: "admin".to_owned(),
        created_at: time("2026-01-10T11:59:00Z"),
        finished_at: state.is_terminal().then(|| time("2026-01-10T11:59:59Z")),
    }
}

pub fn failed(kind: OperationKind) -> Operation {
    let error = Problem {
        code: "repository-full".to_owned(),
        detail: "the repository's disk is full".to_owned(),
        hint: Some("make space; the data is still on the host".to_owned()),
        ..Problem::default()
    };
    Operation { error: Some(error), ..operation(kind, OperationState::Failed, "final pass") }
}

/// The answer to an action that was just recorded.
pub fn begun(pod: Pod, kind: OperationKind) -> PodOperation {
    PodOperation { pod, operation: operation(kind, OperationState::Pending, "") }
}

/// A server with one running pod and an action that succeeds at once.
pub fn with_action(what: &str, kind: OperationKind, after: &Pod) -> Fake {
    let fake = Fake::default();
    fake.pods(&[pod("dev")])
        .on(what, [begun(pod("dev"), kind)])
        .on(&format!("GET /api/v1/operations/{OP}"), [operation(kind, OperationState::Succeeded, "done")])
        .on(&format!("GET /api/v1/pods/{POD}"), [after]);
    fake
}

pub fn event(id: i64, message: &str) -> Event {
    Event {
        id,
        at: now(),
        actor: "admin".to_owned(),
        tenant: "default".to_owned(),
        pod_id: Some(POD.to_owned()),
        operation_id: None,
        kind: "pod.stopped".to_owned(),
        message: message.to_owned(),
    }
}

/// What a request for a new pod says, checked against the wire type: unknown fields would not pass.
pub fn created(body: &Value) -> CreatePod {
    serde_json::from_value(body.clone()).unwrap()
}
