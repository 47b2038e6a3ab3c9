//! A whole installation on a real Docker Engine: the real binary, its data directory, its API. Everything it made is
//! cleaned up by label when it is dropped.
//!
//! A missing engine, runtime or image fails the test: nothing is skipped.

#![allow(
    dead_code,
    unused_imports,
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::missing_panics_doc,
    missing_docs,
    reason = "every test uses another part of it"
)]

pub mod disk;
mod engine;
pub mod steps;
mod tree;

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

pub use engine::{Docker, OwnEngine};
pub use tree::{Tree, allocated, assert_same, assert_same_when, but_for_the_images_times, fill, fill_xattrs, tree};

pub const BUSYBOX: &str = "perennial-test/busybox:1";
pub const DEBIAN: &str = "perennial-test/debian:12";
pub const POSTGRES: &str = "perennial-test/debian-postgres:15";
pub const DATASETTE: &str = "perennial-test/debian-datasette:1";
/// Only there after `./dev test --services`, as the one below.
pub const N8N: &str = "perennial-test/n8n:1";
pub const GHOST: &str = "perennial-test/ghost:1";

/// The paths of the eight volumes.
pub const VOLUMES: [&str; 8] = ["/workspace", "/home", "/root", "/etc", "/usr/local", "/opt", "/var", "/srv"];

/// Ends at once when it is asked to.
pub const IDLE: &str = "trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done";
/// What servers log: everything in tests, what is usual where times are measured.
const LOG: &str =
    if cfg!(debug_assertions) { "perennial=debug,perennial::api=info,bollard=trace,info" } else { "info" };
/// Longest wait for anything; far more than anything takes.
const PATIENCE: Duration = Duration::from_secs(100);

/// Polls an observed state until it is as expected.
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A directory on a file system that can be the upper side of an overlay mount.
fn base() -> PathBuf {
    let base = std::env::var_os("PERENNIAL_TEST_DIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
    std::fs::create_dir_all(&base).unwrap();
    base
}

/// An installation; its server may be stopped, killed and started again.
pub struct Installation {
    pub docker: Docker,
    pub directory: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
    client: reqwest::Client,
    server: Option<Server>,
    label: Option<String>,
    arguments: Vec<String>,
}

struct Server {
    child: Child,
    url: String,
}

/// A pod of an installation.
#[derive(Debug, Clone)]
pub struct Pod {
    pub id: String,
    pub name: String,
}

impl Installation {
    /// On the engine that the environment names, with its server running.
    pub fn new() -> Self {
        Self::on(Docker::shared(), &[])
    }

    /// On this engine, with these arguments for the server.
    pub fn on(docker: Docker, arguments: &[&str]) -> Self {
        let mut installation = Self::prepared(docker, arguments);
        installation.start_server();
        installation
    }

    /// Without a server yet.
    pub fn prepared(docker: Docker, arguments: &[&str]) -> Self {
        perennial::crypto::install();
        Self {
            docker,
            directory: tempfile::Builder::new().prefix("e2e-").tempdir_in(base()).unwrap(),
            runtime: tokio::runtime::Runtime::new().unwrap(),
            client: reqwest::Client::new(),
            server: None,
            label: None,
            arguments: arguments.iter().map(|a| (*a).to_owned()).collect(),
        }
    }

    pub fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    pub fn storage(&self) -> PathBuf {
        self.directory.path().join("storage")
    }

    pub fn repository(&self) -> PathBuf {
        self.data().join("repositories/default")
    }

    /// Where the pod's sets keep their volumes (overlay).
    pub fn sets(&self, pod: &Pod) -> Vec<PathBuf> {
        std::fs::read_dir(self.storage().join("pods").join(&pod.id))
            .unwrap()
            .map(|e| e.unwrap().path())
            .filter(|p| p.file_name().unwrap().to_string_lossy().starts_with('s'))
            .collect()
    }

    /// Where its only set is.
    pub fn set(&self, pod: &Pod) -> PathBuf {
        let mut sets = self.sets(pod);
        assert_eq!(sets.len(), 1, "{sets:?}");
        sets.remove(0)
    }

    // ---- the server --------------------------------------------------------------------------------------------

    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_perennial"));
        let log = File::options().create(true).append(true).open(self.log_path()).unwrap();
        // An argument given twice is refused.
        let given = |name: &str| self.arguments.iter().any(|a| a == name);
        let host = ["--docker-host", &self.docker.host];
        command
            .arg("serve")
            .args(if given("--engine") { &[][..] } else { &["--engine", "docker"] })
            .arg("--data-dir")
            .arg(self.data())
            .arg("--storage-root")
            .arg(self.storage())
            .args(if given("--docker-host") { &[][..] } else { &host })
            .args(if given("--listen") { &[][..] } else { &["--listen", "127.0.0.1:0"] })
            .args(&self.arguments)
            .env("RUST_LOG", LOG)
            .env_remove("PERENNIAL_FAILPOINT")
            .env_remove("PERENNIAL_DATABASE")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log);
        command
    }

    fn log_path(&self) -> PathBuf {
        self.directory.path().join("server.log")
    }

    /// What the servers wrote to their log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    pub fn start_server(&mut self) {
        let command = self.command();
        self.launch(command);
    }

    /// Starts a server that kills itself when it passes this point: `site:before`, `site:after`, then `#n` for the
    /// n-th time.
    pub fn start_server_with_failpoint(&mut self, point: &str) {
        if !cfg!(feature = "failpoints") {
            panic!("build with --features failpoints");
        }
        let mut command = self.command();
        command.env("PERENNIAL_FAILPOINT", point);
        self.launch(command);
    }

    fn launch(&mut self, mut command: Command) {
        assert!(self.server.is_none(), "a server runs already");
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready: Value = match serde_json::from_str(&line) {
            Ok(ready) => ready,
            Err(error) => {
                let _ = child.kill();
                let status = child.wait();
                panic!("the server is not ready: {line:?} {error} {status:?}\n{}", self.log());
            }
        };
        let url = ready["listening"].as_str().unwrap().replace("0.0.0.0", "127.0.0.1");
        self.server = Some(Server { child, url });
        // It stays what it is, and a server with a failpoint may die before it answers.
        if self.label.is_none() {
            let system = self.get("/api/v1/system");
            self.label = Some(format!("io.perennial.installation={}", system["installation"].as_str().unwrap()));
        }
    }

    /// Asks the server to stop, and waits until it has.
    pub fn stop_server(&mut self) {
        let mut server = self.server.take().unwrap();
        let pid = rustix::process::Pid::from_child(&server.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let status = server.child.wait().unwrap();
        assert!(status.success(), "{status}");
    }

    /// kill -9.
    pub fn kill_server(&mut self) {
        let mut server = self.server.take().unwrap();
        server.child.kill().unwrap();
        assert_eq!(server.child.wait().unwrap().signal(), Some(9));
    }

    /// Waits for the server to have killed itself at its failpoint.
    pub fn wait_for_death(&mut self, what: &str) {
        let mut server = self.server.take().unwrap();
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = server.child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > deadline {
                self.server = Some(server);
                panic!("{what}: never passed\n{}", tail(&self.log()));
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        assert_eq!(status.signal(), Some(9), "{what}: {status}");
    }

    /// Has the server kill itself at `point` of an action, starts another one, and waits until the action is done.
    pub fn dies_and_goes_on(&mut self, pod: &Pod, point: &str, action: &str, body: &Value) {
        let operations = |installation: &Self| -> Vec<String> {
            let list = installation.get(&format!("/api/v1/pods/{}/operations", pod.id));
            list["items"].as_array().unwrap().iter().map(|o| o["id"].as_str().unwrap().to_owned()).collect()
        };
        let before = operations(self);
        self.kill_server();
        self.start_server_with_failpoint(point);
        // The answer may be lost with the server.
        let _ = self.try_request(Method::POST, &format!("/api/v1/pods/{}/{action}", pod.id), Some(body));
        self.wait_for_death(&format!("{action}: {point}"));
        self.start_server();
        let new: Vec<String> = operations(self).into_iter().filter(|o| !before.contains(o)).collect();
        match new.as_slice() {
            [operation] => drop(self.succeeded(operation)),
            [] => self.do_with(pod, action, body),
            more => panic!("{action}: {point}: {more:?}"),
        }
    }

    /// What the next server is started with.
    pub fn set_arguments(&mut self, arguments: &[&str]) {
        self.arguments = arguments.iter().map(|a| (*a).to_owned()).collect();
    }

    /// How a server that must not start ends, and what it says.
    pub fn refused_server(&self) -> (ExitStatus, String) {
        let mut child = self.command().stderr(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (child.wait().unwrap(), said)
    }

    /// Says that the storage root is gone for good, as its owner would.
    pub fn claim_storage(&self, arguments: &[&str]) -> ExitStatus {
        let mut command = Command::new(env!("CARGO_BIN_EXE_perennial"));
        command.args(["storage", "claim", "--data-dir"]).arg(self.data()).args(arguments).status().unwrap()
    }

    pub fn url(&self) -> &str {
        &self.server.as_ref().unwrap().url
    }

    pub fn server_pid(&self) -> u32 {
        self.server.as_ref().unwrap().child.id()
    }

    /// The label of everything that this installation makes, `name=value`.
    pub fn label(&self) -> &str {
        self.label.as_ref().unwrap()
    }

    // ---- requests ----------------------------------------------------------------------------------------------

    pub fn try_request(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> reqwest::Result<(StatusCode, Value)> {
        let token = std::fs::read_to_string(self.data().join("admin-token")).unwrap();
        let request = self.client.request(method, format!("{}{path}", self.url())).bearer_auth(token.trim());
        self.send(request, body)
    }

    /// Asks anybody on this host, with those of these headers that have a value; answers the cookie that was set, too.
    pub fn ask_anybody(
        &self,
        method: Method,
        url: &str,
        headers: &[(&str, Option<&str>)],
        body: Option<&Value>,
    ) -> reqwest::Result<(StatusCode, Value, Option<String>)> {
        let mut request = self.client.request(method, url).timeout(Duration::from_secs(20));
        for (name, value) in headers {
            if let Some(value) = value {
                request = request.header(*name, *value);
            }
        }
        self.exchange(request, body)
    }

    fn send(&self, request: reqwest::RequestBuilder, body: Option<&Value>) -> reqwest::Result<(StatusCode, Value)> {
        self.exchange(request, body).map(|(status, answer, _)| (status, answer))
    }

    fn exchange(
        &self,
        mut request: reqwest::RequestBuilder,
        body: Option<&Value>,
    ) -> reqwest::Result<(StatusCode, Value, Option<String>)> {
        if let Some(body) = body {
            request = request.json(body);
        }
        self.runtime.block_on(async {
            let answer = request.send().await?;
            let status = answer.status();
            let set = answer.headers().get("set-cookie").and_then(|value| value.to_str().ok());
            let cookie = set.and_then(|value| value.split(';').next()).map(str::to_owned);
            let text = answer.text().await?;
            Ok((status, serde_json::from_str(&text).unwrap_or(Value::String(text)), cookie))
        })
    }

    pub fn request(&self, method: Method, path: &str, body: Option<&Value>) -> (StatusCode, Value) {
        self.try_request(method, path, body).unwrap()
    }

    pub fn get(&self, path: &str) -> Value {
        let (status, answer) = self.request(Method::GET, path, None);
        assert!(status.is_success(), "{path}: {status} {answer}");
        answer
    }

    pub fn post(&self, path: &str, body: &Value) -> Value {
        let (status, answer) = self.request(Method::POST, path, Some(body));
        assert!(status.is_success(), "{path}: {status} {answer}");
        answer
    }

    // ---- pods --------------------------------------------------------------------------------------------------

    /// Asks for a pod; fields of `more` replace those of a usual one. Answers it with its operation's id.
    pub fn ask(&self, name: &str, image: &str, runtime: &str, more: Value) -> (Pod, String) {
        let mut body = json!({"name": name, "image": image, "runtime": runtime, "command": ["sh", "-c", IDLE]});
        let Value::Object(more) = more else { panic!("not an object: {more}") };
        body.as_object_mut().unwrap().extend(more);
        let answer = self.post("/api/v1/pods", &body);
        let id = answer["pod"]["id"].as_str().unwrap().to_owned();
        (Pod { id, name: name.to_owned() }, answer["operation"]["id"].as_str().unwrap().to_owned())
    }

    /// A running pod.
    pub fn pod_with(&self, name: &str, image: &str, runtime: &str, more: Value) -> Pod {
        let (pod, operation) = self.ask(name, image, runtime, more);
        self.succeeded(&operation);
        self.assert_phase(&pod, "running");
        pod
    }

    /// A running pod of the usual kind.
    pub fn pod(&self, image: &str, runtime: &str) -> Pod {
        self.pod_with("dev", image, runtime, json!({}))
    }

    pub fn show(&self, pod: &Pod) -> Value {
        self.get(&format!("/api/v1/pods/{}", pod.id))
    }

    pub fn phase(&self, pod: &Pod) -> String {
        self.show(pod)["phase"].as_str().unwrap().to_owned()
    }

    pub fn assert_phase(&self, pod: &Pod, phase: &str) {
        let shown = self.show(pod);
        assert_eq!(shown["phase"], phase, "{shown:#}");
    }

    /// Whether the pod's conditions name this one.
    pub fn has_condition(&self, pod: &Pod, kind: &str) -> bool {
        self.show(pod)["conditions"].as_array().unwrap().iter().any(|c| c["type"] == kind)
    }

    /// Asks for an action; answers the operation's id.
    pub fn act(&self, pod: &Pod, action: &str, body: &Value) -> String {
        let answer = match action {
            "delete" => {
                let (status, answer) = self.request(Method::DELETE, &format!("/api/v1/pods/{}", pod.id), Some(body));
                assert!(status.is_success(), "delete: {status} {answer}");
                answer
            }
            _ => self.post(&format!("/api/v1/pods/{}/{action}", pod.id), body),
        };
        answer["operation"]["id"].as_str().unwrap().to_owned()
    }

    /// An action that has to succeed.
    pub fn do_with(&self, pod: &Pod, action: &str, body: &Value) {
        self.succeeded(&self.act(pod, action, body));
    }

    /// An action without more to say, or with the pod's name as its confirmation where it needs one.
    pub fn run(&self, pod: &Pod, action: &str) {
        let body = if matches!(action, "reset" | "purge") { json!({"confirm": pod.name}) } else { json!({}) };
        self.do_with(pod, action, &body);
    }

    pub fn operation(&self, id: &str) -> Value {
        self.get(&format!("/api/v1/operations/{id}"))
    }

    /// Waits for the end of an operation.
    pub fn ended(&self, id: &str) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let operation = self.get(&format!("/api/v1/operations/{id}?wait=10s"));
            if matches!(operation["state"].as_str().unwrap(), "succeeded" | "failed" | "cancelled") {
                return operation;
            }
            assert!(Instant::now() < deadline, "does not end: {operation:#}\n{}", tail(&self.log()));
        }
    }

    pub fn succeeded(&self, id: &str) -> Value {
        let operation = self.ended(id);
        assert_eq!(operation["state"], "succeeded", "{operation:#}\n{}", tail(&self.log()));
        operation
    }

    /// An action that has to fail; answers the problem's code.
    pub fn refused(&self, pod: &Pod, action: &str) -> String {
        let operation = self.ended(&self.act(pod, action, &json!({})));
        assert_eq!(operation["state"], "failed", "{operation:#}");
        operation["error"]["code"].as_str().unwrap().to_owned()
    }

    /// Takes a snapshot and answers it.
    pub fn snapshot(&self, pod: &Pod) -> Value {
        let answer = self.post(&format!("/api/v1/pods/{}/snapshots", pod.id), &json!({}));
        self.succeeded(answer["operation"]["id"].as_str().unwrap());
        self.get(&format!("/api/v1/snapshots/{}", answer["snapshot"]["id"].as_str().unwrap()))
    }

    pub fn snapshots(&self, pod: &Pod) -> Vec<Value> {
        self.get(&format!("/api/v1/pods/{}/snapshots", pod.id))["items"].as_array().unwrap().clone()
    }

    pub fn restore(&self, pod: &Pod, snapshot: &Value) {
        self.do_with(pod, "restore", &json!({"snapshotId": snapshot["id"], "confirm": pod.name}));
    }

    // ---- inside and beside the pod -----------------------------------------------------------------------------

    pub fn container(&self, pod: &Pod) -> String {
        let shown = self.show(pod);
        shown["container"]["id"].as_str().unwrap_or_else(|| panic!("no container: {shown:#}")).to_owned()
    }

    /// Waits for the pod to run in another container than this one.
    pub fn replaced(&self, pod: &Pod, lost: &str) -> String {
        eventually("the pod runs in another container", || {
            let shown = self.show(pod);
            let id = shown["container"]["id"].as_str()?;
            (id != lost && shown["phase"] == "running" && self.docker.is_running(id)).then(|| id.to_owned())
        })
    }

    /// Runs a shell line in the pod; answers what it wrote. It has to succeed.
    pub fn sh(&self, pod: &Pod, line: &str) -> String {
        let (text, ok) = self.try_sh(pod, line);
        assert!(ok, "{line}: {text}");
        text
    }

    pub fn try_sh(&self, pod: &Pod, line: &str) -> (String, bool) {
        self.docker.try_run(&["exec", &self.container(pod), "sh", "-c", line])
    }

    /// What a shell line in the pod wrote, when there is a container and it succeeded.
    pub fn try_exec(&self, pod: &Pod, line: &str) -> Option<String> {
        let id = self.show(pod)["container"]["id"].as_str()?.to_owned();
        let (text, ok) = self.docker.try_run(&["exec", &id, "sh", "-c", line]);
        ok.then_some(text)
    }

    /// What the engine has of a pod: containers and volumes.
    pub fn on_engine(&self, pod: &Pod) -> (Vec<String>, Vec<String>) {
        let label = format!("label=io.perennial.pod={}", pod.id);
        let containers = self.docker.list(&["ps", "--all", "--quiet", "--no-trunc", "--filter", &label]);
        (containers, self.docker.list(&["volume", "ls", "--quiet", "--filter", &label]))
    }

    /// Where the host sees a volume of a running pod.
    pub fn mountpoint(&self, pod: &Pod, volume: &str) -> PathBuf {
        let shown = self.show(pod);
        let named = |v: &&Value| v["name"] == volume;
        let name = shown["volumes"].as_array().unwrap().iter().find(named).unwrap()["engineName"].as_str().unwrap();
        self.docker.run(&["volume", "inspect", "--format", "{{.Mountpoint}}", name]).trim().into()
    }

    pub fn assert_released(&self, pod: &Pod) {
        assert_eq!(self.on_engine(pod), (Vec::new(), Vec::new()));
        let kept = self.storage().join("pods").join(&pod.id);
        let left = std::fs::read_dir(&kept).map_or(0, Iterator::count);
        assert_eq!(left, 0, "{} still holds data", kept.display());
    }
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}

impl Drop for Installation {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = server.child.kill();
            let _ = server.child.wait();
        }
        if std::thread::panicking() {
            eprintln!("{}", tail(&self.log()));
        }
        if let Some(label) = &self.label {
            self.docker.remove_labelled(label);
        }
    }
}
