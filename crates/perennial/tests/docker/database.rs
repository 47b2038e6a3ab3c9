//! Databases under write load: what was acknowledged is there after everything that happens to their pod.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test that cannot go on fails; figures are shown")]

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::installation::{Installation, POSTGRES, Pod, eventually};
use serde_json::json;

/// A client in the pod that writes ascending numbers; outside it is recorded which of them were acknowledged.
struct Load {
    client: Child,
    acknowledged: Arc<AtomicU64>,
    reader: Option<JoinHandle<()>>,
}

impl Load {
    /// Starts writing after `from`; `client` turns numbers on its standard input into acknowledged ones.
    fn start(installation: &Installation, pod: &Pod, from: u64, client: &str) -> Self {
        let line = format!("seq {} 100000000 | {client}", from + 1);
        let mut client = installation
            .docker
            .command(&["exec", &installation.container(pod), "sh", "-c", &line])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(client.stdout.take().unwrap()).lines();
        let acknowledged = Arc::new(AtomicU64::new(from));
        let seen = Arc::clone(&acknowledged);
        let reader = std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if let Ok(number) = line.parse() {
                    seen.store(number, Ordering::SeqCst);
                }
            }
        });
        let load = Self { client, acknowledged, reader: Some(reader) };
        load.more(50);
        load
    }

    fn now(&self) -> u64 {
        self.acknowledged.load(Ordering::SeqCst)
    }

    /// Waits until so many more were acknowledged.
    fn more(&self, count: u64) {
        let until = self.now() + count;
        eventually("writes are acknowledged", || (self.now() >= until).then_some(()));
    }

    /// The last acknowledged number, once its database went away.
    fn end(mut self) -> u64 {
        // With gVisor the engine's command line may wait for ever for a container that was killed.
        let deadline = Instant::now() + Duration::from_secs(3);
        while self.client.try_wait().unwrap().is_none() {
            if Instant::now() > deadline {
                self.client.kill().unwrap();
                self.client.wait().unwrap();
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.reader.take().unwrap().join().unwrap();
        self.now()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.client.kill();
        let _ = self.client.wait();
    }
}

/// A database in a pod, seen from outside.
struct Database {
    command: &'static str,
    ready: &'static str,
    make: &'static str,
    client: &'static str,
    /// Prints the count and the largest number.
    count: &'static str,
    /// Succeeds when nothing is damaged.
    check: &'static str,
}

const POSTGRESQL: Database = Database {
    command: "D=/var/lib/postgresql/perennial; PATH=$PATH:/usr/lib/postgresql/15/bin
        [ -e $D/PG_VERSION ] || { install -d -o postgres -m 700 $D && runuser -u postgres -- initdb -A trust -D $D; }
        exec runuser -u postgres -- postgres -D $D -c listen_addresses= -c unix_socket_directories=/tmp",
    ready: "psql -qAt -h /tmp -U postgres -c 'select 1'",
    make: "psql -qAt -h /tmp -U postgres -c 'create table numbers (n bigint primary key, filler text)'",
    client: "sed 's/.*/insert into numbers values (&, repeat(md5(&::text), 8)) returning n;/' \
        | psql -qAt -v ON_ERROR_STOP=1 -h /tmp -U postgres",
    count: "psql -qAt -F ' ' -h /tmp -U postgres -c 'select count(*), max(n) from numbers'",
    check: "/usr/lib/postgresql/15/bin/pg_amcheck -h /tmp -U postgres --install-missing --heapallindexed postgres \
        && psql -qAt -h /tmp -U postgres -c 'select sum(length(filler)) from numbers'",
};

const SQLITE: Database = Database {
    command: "trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done",
    ready: "true",
    make: "sqlite3 /srv/db 'pragma journal_mode=wal; create table numbers (n integer primary key, filler text)'",
    client: "sed 's/.*/insert into numbers values (&, hex(randomblob(200))); select &;/' \
        | sed '1i pragma synchronous=full;' | stdbuf -oL sqlite3 -bail /srv/db",
    count: "sqlite3 -separator ' ' /srv/db 'select count(*), max(n) from numbers'",
    check: "[ \"$(sqlite3 /srv/db 'pragma integrity_check')\" = ok ] && [ \"$(sqlite3 /srv/db 'pragma journal_mode')\" = wal ]",
};

impl Database {
    /// Waits for it to answer, and makes sure that everything up to `acknowledged` is in it and nothing is damaged.
    fn verify(&self, installation: &Installation, pod: &Pod, acknowledged: u64, when: &str) -> u64 {
        eventually("the database answers", || installation.try_exec(pod, self.ready));
        let counted = installation.sh(pod, self.count);
        let (count, last) = counted.trim().split_once(' ').unwrap_or_else(|| panic!("{when}: {counted}"));
        let (count, last): (u64, u64) = (count.parse().unwrap(), last.parse().unwrap());
        assert!(last >= acknowledged, "{when}: {acknowledged} was acknowledged, {last} is there");
        // They were written in order, so a missing one in between would show here.
        assert_eq!(count, last, "{when}: {} rows are missing", last - count);
        installation.sh(pod, self.check);
        last
    }

    fn under_load(&self, runtime: &str) {
        let mut installation = Installation::new();
        let more = json!({"command": ["sh", "-c", self.command], "stopSignal": if self.ready == "true" { "SIGTERM" } else { "SIGINT" }});
        let pod = installation.pod_with("db", POSTGRES, runtime, more);
        eventually("the database answers", || installation.try_exec(&pod, self.ready));
        installation.sh(&pod, self.make);

        // Stopped and started.
        let load = Load::start(&installation, &pod, 0, self.client);
        installation.run(&pod, "stop");
        let acknowledged = load.end();
        installation.assert_released(&pod);
        installation.run(&pod, "start");
        let last = self.verify(&installation, &pod, acknowledged, "after stop and start");

        // A snapshot in full work, then killed by somebody, then the container removed.
        let load = Load::start(&installation, &pod, last, self.client);
        let at_snapshot = load.now();
        let taken = installation.snapshot(&pod);
        assert_eq!(taken["state"], "verified");
        load.more(20);
        let container = installation.container(&pod);
        installation.docker.run(&["kill", &container]);
        let acknowledged = load.end();
        let last = self.verify(&installation, &pod, acknowledged, "after docker kill");
        let load = Load::start(&installation, &pod, last, self.client);
        let container = installation.container(&pod);
        installation.docker.run(&["rm", "--force", &container]);
        let acknowledged = load.end();
        installation.replaced(&pod, &container);
        let last = self.verify(&installation, &pod, acknowledged, "after docker rm -f");

        // Stopped by a server that dies in the middle of it.
        let load = Load::start(&installation, &pod, last, self.client);
        installation.kill_server();
        installation.start_server_with_failpoint("engine.container_stop:after");
        let stop = installation.act(&pod, "stop", &json!({}));
        installation.wait_for_death("stop");
        let acknowledged = load.end();
        installation.start_server();
        installation.succeeded(&stop);
        installation.run(&pod, "start");
        self.verify(&installation, &pod, acknowledged, "after a stop whose server died");

        // And the snapshot from the middle of the work is a database too.
        installation.restore(&pod, &taken);
        let last = self.verify(&installation, &pod, at_snapshot, "after the restore");
        assert!(last < acknowledged);
    }
}

/// How long snapshots are taken one after the other.
const IN_FULL_WORK: Duration = Duration::from_secs(120);
/// From the end of one to the beginning of the next.
const EVERY: Duration = Duration::from_secs(8);
const PGBENCH: &str = "/usr/lib/postgresql/15/bin/pgbench -h /tmp -U postgres";
/// Every transaction of pgbench adds the same to an account, a teller and a branch, and notes it in the history.
const BALANCED: &str = "psql -qAt -h /tmp -U postgres -c 'select count(*) > 0
    and sum(delta) = (select sum(abalance) from pgbench_accounts) and sum(delta) = (select sum(tbalance) from pgbench_tellers)
    and sum(delta) = (select sum(bbalance) from pgbench_branches) from pgbench_history'";

/// Watches for how long the engine holds a container each time, by its own events as they come: it remembers few.
struct FreezeWatch {
    events: Child,
    reader: Option<JoinHandle<Vec<(u128, String)>>>,
}

impl FreezeWatch {
    fn start(installation: &Installation, container: &str) -> Self {
        let name = format!("container={container}");
        let pauses = ["--filter", "event=pause", "--filter", "event=unpause", "--format", "{{.TimeNano}} {{.Action}}"];
        let arguments = [&["events", "--since", "0", "--filter", &name][..], &pauses].concat();
        let mut events = installation.docker.command(&arguments).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(events.stdout.take().unwrap()).lines();
        let reader = std::thread::spawn(move || {
            let event = |line: String| {
                let (time, action) = line.split_once(' ').unwrap_or_else(|| panic!("{line}"));
                (time.parse().unwrap(), action.to_owned())
            };
            lines.map_while(Result::ok).map(event).collect()
        });
        Self { events, reader: Some(reader) }
    }

    /// The times in milliseconds.
    fn end(mut self) -> Vec<u128> {
        self.stop();
        let events = self.reader.take().unwrap().join().unwrap();
        let is_freeze = |w: &&[(u128, String)]| w[0].1 == "pause" && w[1].1 == "unpause";
        events.windows(2).filter(is_freeze).map(|w| (w[1].0 - w[0].0) / 1_000_000).collect()
    }

    fn stop(&mut self) {
        let _ = self.events.kill();
        let _ = self.events.wait();
    }
}

impl Drop for FreezeWatch {
    fn drop(&mut self) {
        self.stop();
    }
}

#[test]
fn runc_every_snapshot_of_postgresql_in_full_work_recovers_clean() {
    let installation = Installation::new();
    let more = json!({"command": ["sh", "-c", POSTGRESQL.command], "stopSignal": "SIGINT"});
    let pod = installation.pod_with("db", POSTGRES, "runc", more.clone());
    eventually("the database answers", || installation.try_exec(&pod, POSTGRESQL.ready));
    installation.sh(&pod, POSTGRESQL.make);
    installation.sh(&pod, &format!("{PGBENCH} -qi -s 2 postgres 2>/dev/null"));
    let container = installation.container(&pod);
    let freezes = FreezeWatch::start(&installation, &container);
    let line = format!("exec {PGBENCH} -c 4 -T 600 postgres");
    let mut bench = installation.docker.command(&["exec", &container, "sh", "-c", &line]);
    let mut bench = bench.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let load = Load::start(&installation, &pod, 0, POSTGRESQL.client);

    let mut all = Vec::new();
    let until = Instant::now() + IN_FULL_WORK;
    while Instant::now() < until {
        let acknowledged = load.now();
        let taken = installation.snapshot(&pod);
        assert_eq!(
            (&taken["state"], &taken["consistency"]["grade"]),
            (&json!("verified"), &json!("frozen")),
            "{taken}"
        );
        all.push((acknowledged, load.now(), taken));
        let (next, written) = (Instant::now() + EVERY, load.now() + 20);
        eventually("some seconds of writing", || (Instant::now() >= next && load.now() >= written).then_some(()));
    }
    installation.run(&pod, "stop");
    load.end();
    bench.wait().unwrap();
    let mut frozen = freezes.end();
    assert!(frozen.len() >= all.len(), "{frozen:?}");
    frozen.sort_unstable();
    eprintln!(
        "{} snapshots, frozen for {} ms (median), {:?} ms (longest)",
        all.len(),
        frozen[frozen.len() / 2],
        frozen.last()
    );

    for (n, (acknowledged, after, taken)) in all.iter().enumerate() {
        let mut more = more.clone();
        more["fromSnapshot"] = taken["id"].clone();
        let copy = installation.pod_with(&format!("copy-{n}"), POSTGRES, "runc", more);
        let when = format!("snapshot {n}");
        let last = POSTGRESQL.verify(&installation, &copy, *acknowledged, &when);
        // One instant of the past, and not of the present.
        assert!(last <= after + 1, "{when}: {last} is there, and {after} was acknowledged after it");
        assert_eq!(installation.sh(&copy, BALANCED).trim(), "t", "{when}");
        installation.do_with(&copy, "purge", &json!({"confirm": copy.name}));
    }
}

#[test]
fn runc_postgresql_loses_no_acknowledged_row() {
    POSTGRESQL.under_load("runc");
}

#[test]
fn runsc_postgresql_loses_no_acknowledged_row() {
    POSTGRESQL.under_load("runsc");
}

#[test]
fn p23_runc_sqlite_loses_no_acknowledged_row() {
    SQLITE.under_load("runc");
}

#[test]
fn p23_runsc_sqlite_loses_no_acknowledged_row() {
    SQLITE.under_load("runsc");
}
