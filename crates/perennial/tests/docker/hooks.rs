//! Hooks on a real engine (incident P21): what a database acknowledged and had not written yet is in the snapshot that its
//! hook was run for, and a hook that fails, hangs, or loses its server is told and undone.

use crate::installation::{Installation, POSTGRES, Pod, eventually};
use reqwest::Method;
use serde_json::{Value, json};

/// A database that acknowledges what it holds in memory only, and in which nobody writes that down unasked once
/// [`ASLEEP`] ran.
const LAZY: &str = "D=/var/lib/postgresql/perennial; PATH=$PATH:/usr/lib/postgresql/15/bin
    install -d -o postgres -m 700 $D; [ -e $D/PG_VERSION ] || runuser -u postgres -- initdb -A trust -D $D
    exec runuser -u postgres -- postgres -D $D -c listen_addresses= -c unix_socket_directories=/tmp \
        -c synchronous_commit=off -c wal_writer_delay=10s -c wal_buffers=64MB -c wal_level=minimal -c max_wal_senders=0 \
        -c autovacuum=off -c checkpoint_timeout=1h -c bgwriter_lru_maxpages=0";
/// Stops the process that would write it after ten seconds.
const ASLEEP: &str = "kill -STOP $(psql -qAt -h /tmp -U postgres \
    -c \"select pid from pg_stat_activity where backend_type = 'walwriter'\")";
const PSQL: [&str; 5] = ["psql", "-qAt", "-h", "/tmp", "-U"];
const ROWS: u32 = 500;

fn psql(statement: &str) -> Vec<String> {
    PSQL.into_iter().chain(["postgres", "-c", statement]).map(str::to_owned).collect()
}

fn query(installation: &Installation, pod: &Pod, statement: &str) -> String {
    let line = format!("psql -qAt -h /tmp -U postgres -c '{statement}'");
    eventually("the database answers", || installation.try_exec(pod, &line)).trim().to_owned()
}

/// Asks for other hooks; a restart is not needed for them.
fn set_hooks(installation: &Installation, pod: &Pod, hooks: &Value) {
    let path = format!("/api/v1/pods/{}", pod.id);
    let (status, answer) = installation.request(Method::PATCH, &path, Some(&json!({"hooks": hooks})));
    assert!(status.is_success(), "{status} {answer}");
    assert!(!installation.has_condition(pod, "RestartRequired"));
}

/// Takes a snapshot that fails; answers why, and the snapshot.
fn failing(installation: &Installation, pod: &Pod) -> (Value, Value) {
    let asked = installation.post(&format!("/api/v1/pods/{}/snapshots", pod.id), &json!({}));
    let operation = installation.ended(asked["operation"]["id"].as_str().unwrap());
    assert_eq!(operation["state"], "failed", "{operation}");
    let snapshot = installation.get(&format!("/api/v1/snapshots/{}", asked["snapshot"]["id"].as_str().unwrap()));
    assert_eq!(snapshot["state"], "failed", "{snapshot}");
    (operation["error"].clone(), snapshot)
}

fn the_whole_story(runtime: &str) {
    let mut installation = Installation::new();
    let undone = json!({"command": ["sh", "-c", "echo undone >> /srv/undone"]});
    let more = json!({"command": ["sh", "-c", LAZY], "stopSignal": "SIGINT"});
    let pod = installation.pod_with("db", POSTGRES, runtime, more.clone());
    let times_undone = |installation: &Installation| {
        installation.try_sh(&pod, "cat /srv/undone").0.lines().filter(|line| *line == "undone").count()
    };
    query(&installation, &pod, "create table numbers (n bigint primary key)");
    query(&installation, &pod, "checkpoint");

    // Acknowledged, and nowhere but in the database's memory.
    let insert = "sed 's/.*/insert into numbers values (&);/' | psql -qAt -v ON_ERROR_STOP=1 -h /tmp -U postgres";
    installation.sh(&pod, ASLEEP);
    installation.sh(&pod, &format!("seq {ROWS} | {insert}"));
    let count = "select count(*) from numbers";
    assert_eq!(query(&installation, &pod, count), ROWS.to_string());
    // An instant of the disk alone, even a perfect one, is not enough.
    let frozen = installation.snapshot(&pod);
    assert_eq!(frozen["consistency"]["grade"], "frozen", "{frozen}");
    let mut more = more;
    more["fromSnapshot"] = frozen["id"].clone();
    let copy = installation.pod_with("copy", POSTGRES, runtime, more);
    let there: u32 = query(&installation, &copy, count).parse().unwrap();
    assert!(there < ROWS, "nothing was held in memory only");
    installation.do_with(&copy, "purge", &json!({"confirm": copy.name}));

    let hooks = json!({"before": {"command": psql("checkpoint"), "timeout": 60}, "after": undone});
    set_hooks(&installation, &pod, &hooks);
    let taken = installation.snapshot(&pod);
    let consistency = &taken["consistency"];
    assert_eq!((&taken["state"], &consistency["grade"]), (&json!("verified"), &json!("hooked")), "{taken}");
    assert_eq!(
        (&consistency["hooks"]["before"]["exitCode"], &consistency["hooks"]["after"]["exitCode"]),
        (&json!(0), &json!(0))
    );
    assert_eq!(times_undone(&installation), 1);

    // A hook that fails is told with what it said, and one that hangs is ended.
    let fails = json!({"before": {"command": ["sh", "-c", "echo not now >&2; exit 4"]}, "after": undone});
    set_hooks(&installation, &pod, &fails);
    let (problem, snapshot) = failing(&installation, &pod);
    assert_eq!(problem["code"], "hook-failed", "{problem}");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("status 4") && !detail.contains("not now"), "{detail}");
    let before = &snapshot["consistency"]["hooks"]["before"];
    assert!(before["problem"].as_str().unwrap().contains("not now"), "{snapshot}");
    assert_eq!(before["exitCode"], 4, "{snapshot}");
    set_hooks(&installation, &pod, &json!({"before": {"command": ["sleep", "4321"], "timeout": 1}, "after": undone}));
    let (problem, _) = failing(&installation, &pod);
    assert_eq!(problem["code"], "hook-timed-out", "{problem}");
    let look = "! cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -q 'sleep [4]321' && echo gone";
    assert_eq!(installation.sh(&pod, look).trim(), "gone");
    set_hooks(&installation, &pod, &json!({"before": {"command": ["/no/such/program"]}, "onFailure": "continue"}));
    let lenient = installation.snapshot(&pod);
    assert_eq!(lenient["consistency"]["grade"], "frozen", "{lenient}");
    assert!(lenient["consistency"]["hooks"]["before"]["problem"].is_string(), "{lenient}");
    assert_eq!(times_undone(&installation), 3);

    // A server that dies between the two hooks: the next one runs the second.
    set_hooks(&installation, &pod, &json!({"before": {"command": ["true"]}, "after": undone}));
    installation.kill_server();
    installation.start_server_with_failpoint("engine.container_freeze:after");
    let asked = installation.post(&format!("/api/v1/pods/{}/snapshots", pod.id), &json!({}));
    installation.wait_for_death("a snapshot between its hooks");
    assert_eq!(times_undone_on_host(&installation, &pod), 3);
    installation.start_server();
    installation.succeeded(asked["operation"]["id"].as_str().unwrap());
    // Once for the one that died, and once for the one that came after.
    assert_eq!(times_undone(&installation), 5);
    assert!(!installation.has_condition(&pod, "HookFailed"));

    // All that was acknowledged before the hook is in its snapshot, as is nothing of what the other hook did.
    installation.restore(&pod, &taken);
    assert_eq!(query(&installation, &pod, "select count(*), max(n) from numbers"), format!("{ROWS}|{ROWS}"));
    assert_eq!(times_undone(&installation), 0);
}

/// The same while the pod is frozen.
fn times_undone_on_host(installation: &Installation, pod: &Pod) -> usize {
    let file = installation.set(pod).join("srv/upper/undone");
    std::fs::read_to_string(file).unwrap().lines().count()
}

#[test]
fn runc_p21_what_a_database_acknowledged_is_in_the_snapshot_of_its_hook() {
    the_whole_story("runc");
}

#[test]
fn runsc_p21_what_a_database_acknowledged_is_in_the_snapshot_of_its_hook() {
    the_whole_story("runsc");
}
