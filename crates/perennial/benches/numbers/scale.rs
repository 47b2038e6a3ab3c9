//! A server with ten thousand pods on the simulator, SQLite on disk.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::json;

use super::installation::{Docker, Installation};
use super::table::{self, Limit};
use super::{load, process};

const PODS: usize = 10_000;
/// Requests on the way at once while pods are made.
const AHEAD: usize = 64;
/// How often a server looks at every pod although nothing woke it.
const RESYNC: Duration = Duration::from_secs(30);
/// How long a server that has just started may be at work.
const REST_MAX: Duration = Duration::from_secs(60);
/// Passes over all pods whose cost is measured.
const PASSES: u32 = 2;
const RATE: u32 = 1000;
const SECONDS: u32 = 30;

pub fn run() -> Vec<String> {
    let docker = Docker { host: "unix:///nonexistent".to_owned() };
    let mut server = Installation::prepared(docker, &["--engine", "sim"]);
    server.start_server();
    let began = Instant::now();
    fill(&server);
    let filled = began.elapsed();
    // A server that has just started, as after an update: nothing of how the pods were made is left in it.
    server.stop_server();
    server.start_server();
    let pid = server.server_pid();
    rest(pid);

    let before = process::cpu(pid);
    std::thread::sleep(RESYNC * PASSES);
    let pass = (process::cpu(pid) - before) / PASSES;

    let address = server.url().trim_start_matches("http://").to_owned();
    let token = std::fs::read_to_string(server.data().join("admin-token")).unwrap();
    let list = |seconds| load::get(&address, "/api/v1/pods", token.trim(), RATE, seconds);
    list(3);
    let cpu = process::cpu(pid);
    let (latencies, bytes) = list(SECONDS);
    let cpu = (process::cpu(pid) - cpu).as_secs_f64() / f64::from(SECONDS);
    let resident = process::resident(pid);

    let row = |what: &str, value: String| vec![what.to_owned(), value];
    table::print(
        &format!("{PODS} running pods on the simulator"),
        &["", ""],
        &[
            row("making one, all in all", format!("{:.1} ms", filled.as_secs_f64() * 1000.0 / PODS as f64)),
            row("one pass over all, nothing to do: CPU", format!("{:.2} s", pass.as_secs_f64())),
            row(&format!("GET /pods at {RATE}/s: bytes of a page"), bytes.to_string()),
            row("  median", format!("{} ms", table::millis(latencies.median()))),
            row("  p99", format!("{} ms", table::millis(latencies.quantile(0.99)))),
            row("  p99.9", format!("{} ms", table::millis(latencies.quantile(0.999)))),
            row("  longest", format!("{} ms", table::millis(latencies.quantile(1.0)))),
            row("  CPU of the server", format!("{:.0} % of one", cpu * 100.0)),
            row("resident memory after that", format!("{} MB", resident / 1_000_000)),
        ],
    );
    let limit = |what: &str, value, most, unit| Limit { what: what.to_owned(), value, most, unit };
    #[expect(clippy::cast_precision_loss, reason = "megabytes")]
    let limits = [
        limit("a pass over 10,000 pods that changes nothing, CPU", pass.as_secs_f64(), 1.0, " s"),
        limit("GET /pods at 1,000/s, p99", latencies.quantile(0.99) * 1000.0, 5.0, " ms"),
        limit("resident memory meanwhile", resident as f64 / 1e6, 150.0, " MB"),
    ];
    table::limits("Scale", &limits)
}

/// Makes the pods and waits until all of them run.
fn fill(server: &Installation) {
    let mut open: VecDeque<String> = VecDeque::new();
    for n in 0..PODS {
        let body = json!({"name": format!("pod-{n:05}"), "image": "any:1", "command": ["sleep", "infinity"]});
        let (status, answer) = server.request(Method::POST, "/api/v1/pods", Some(&body));
        assert!(status.is_success(), "{answer}");
        open.push_back(answer["operation"]["id"].as_str().unwrap().to_owned());
        if open.len() > AHEAD {
            server.succeeded(&open.pop_front().unwrap());
        }
    }
    for operation in open {
        server.succeeded(&operation);
    }
}

/// Waits until the process has nothing to do.
///
/// # Panics
/// When it does not come to rest: five minutes after they started, pods have their system layers looked at for good.
fn rest(pid: u32) {
    let quiet = Duration::from_millis(20);
    let began = Instant::now();
    let mut before = process::cpu(pid);
    loop {
        std::thread::sleep(Duration::from_secs(2));
        let now = process::cpu(pid);
        if now - before <= quiet {
            return;
        }
        before = now;
        assert!(began.elapsed() < REST_MAX, "the server found no rest for {REST_MAX:?}: this machine has other work");
    }
}
