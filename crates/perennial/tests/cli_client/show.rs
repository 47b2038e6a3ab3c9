//! How answers look.

use std::os::unix::fs::PermissionsExt as _;

use perennial::api::wire::{
    Backend, Check, CheckStatus, EngineInfo, List, Loss, MeasuredVolume, OperationKind, OperationState, Phase, Pod,
    PodStatus, ReplicaCopying, ReplicaPart, ReplicaStatus, Replication, Runtime, Snapshot, SnapshotState, System,
    VolumeState,
};
use perennial::cli::{Exit, Out, run_from};

use super::fake::{
    Buffer, Fake, OP, OTHER, POD, SNAPSHOT, condition, failed, now, operation, pod, run_raw, session, snapshot,
    stopped, time,
};

fn list<T>(items: Vec<T>) -> [List<T>; 1] {
    [List { items, next: None }]
}

#[tokio::test]
async fn pods_as_a_table() {
    let mut broken = pod("broken");
    (broken.phase, broken.conditions, broken.latest_snapshot) = (Phase::Error, vec![condition()], None);
    let fake = Fake::default();
    fake.pods(&[pod("dev"), broken.clone()]);
    assert_eq!(
        fake.run(&["pod", "ls"]).await.stdout,
        "\
NAME    PHASE             IMAGE      SNAPSHOT  CREATED  ID
dev     running           debian:12  2 h ago   2 d ago  01kefakep0d000000000000000
broken  error (DataLost)  debian:12  -         2 d ago  01kefakep0d000000000000000
"
    );
    assert_eq!(fake.asked()[0].what, "GET /api/v1/pods?limit=500");

    broken.tenant = "other".to_owned();
    let fake = Fake::default();
    fake.pods(&[pod("dev"), broken]);
    let ran = fake.run(&["pod", "ls", "--all", "--tenant", "x"]).await;
    assert!(ran.stdout.starts_with("NAME    TENANT   PHASE"), "{}", ran.stdout);
    assert_eq!(fake.asked()[0].what, "GET /api/v1/pods?visibility=all&tenant=x&limit=500");
}

#[tokio::test]
async fn what_is_being_copied_to_a_replica_has_a_bar_on_a_terminal() {
    let copying = ReplicaCopying {
        part: ReplicaPart::Snapshot,
        id: SNAPSHOT.to_owned(),
        snapshot_id: Some(SNAPSHOT.to_owned()),
        bytes_done: 1 << 30,
        bytes_total: 4 << 30,
        bytes_per_second: Some(10 << 20),
        seconds_left: Some(308),
    };
    let status = ReplicaStatus {
        tenant: "default".to_owned(),
        location: "/far/default".to_owned(),
        looked_at: Some(now()),
        problem: None,
        copied: 3,
        going: 0,
        missing: 1,
        missing_since: Some(now()),
        copying: Some(copying),
        failed: Vec::new(),
    };
    let fake = Fake::default();
    let replication = Replication { forget_after: Some("30d".to_owned()), replicas: vec![status] };
    fake.on("GET /api/v1/replication", [replication]);
    let words = format!("copying snapshot {SNAPSHOT}, 1.0 GiB of 4.0 GiB, 10.0 MiB/s, 5 minutes left");
    let plain = fake.run(&["replication"]).await.stdout;
    assert!(plain.contains(&format!("\ndefault: {words}\n")), "{plain}");
    let json: serde_json::Value = serde_json::from_str(&fake.run(&["replication", "-o", "json"]).await.stdout).unwrap();
    assert_eq!(json["replicas"][0]["copying"]["snapshotId"], SNAPSHOT);
    assert_eq!(json["replicas"][0]["copying"]["secondsLeft"], 308);
    let (server, stdout, stderr) = (fake.serve().await, Buffer::default(), Buffer::default());
    let mut out = Out::captured(Box::new(stdout.clone()), Box::new(stderr), None).coloured();
    run_from(&["perennial", "--server", &server, "replication"], session(), &mut out).await;
    assert!(stdout.text().contains(&format!("default: [=====               ] {words}")), "{}", stdout.text());
}

#[tokio::test]
async fn no_pods() {
    let fake = Fake::default();
    fake.pods(&[]);
    assert_eq!(fake.run(&["pod", "ls"]).await.stdout, "no pods\n");
    assert_eq!(fake.run(&["pod", "ls", "-o", "json"]).await.stdout, "[]\n");
    assert_eq!(fake.run(&["pod", "ls", "-q"]).await.stdout, "");
    assert_eq!(fake.run(&["-o", "yaml", "pod", "ls"]).await.stdout, "[]\n");
}

#[tokio::test]
async fn one_pod() {
    let mut shown = pod("dev");
    (shown.desired, shown.conditions) = (perennial::api::wire::Desired::Paused, vec![condition()]);
    shown.volumes[0].state = VolumeState::Lost;
    let fake = Fake::default();
    fake.pods(&[shown]);
    assert_eq!(
        fake.run(&["pod", "show", "dev"]).await.stdout,
        format!(
            "\
Name             dev
Id               {POD}
Tenant           default
Phase            running, asked for: paused
Image            debian:12
Image digest     sha256:abc
Runtime          default
Container        c0ffee
Command          sleep infinity
Limits           memory 512.0 MiB
Data             generation 3
System layer     captured 5 min ago
Latest snapshot  {SNAPSHOT} (final, verified, 12.3 MiB, 2 h ago)
Proven           restorable 1 h ago
Created          2026-01-08T12:00:00Z (2 d ago)

VOLUME  PATH   STATE     ON THE ENGINE
home    /home  lost      perennial-vol-{POD}-home
etc     /etc   complete  perennial-vol-{POD}-etc

CONDITION  SINCE     WHY
DataLost   30 s ago  the data of volume home is gone (volume-missing)
"
        )
    );
}

#[tokio::test]
async fn json_and_yaml_are_the_api_s_own_words() {
    let fake = Fake::default();
    fake.pods(&[pod("dev")]);
    let json = fake.run(&["pod", "show", "dev", "--output", "json"]).await.stdout;
    assert_eq!(serde_json::from_str::<Pod>(&json).unwrap(), pod("dev"));
    let yaml = fake.run(&["pod", "show", "dev", "--output", "yaml"]).await.stdout;
    assert_eq!(serde_yaml_ng::from_str::<Pod>(&yaml).unwrap(), pod("dev"));

    fake.on(
        &format!("GET /api/v1/operations/{OP}"),
        [operation(OperationKind::Stop, OperationState::Running, "verify")],
    );
    assert_eq!(
        fake.run(&["op", "show", OP, "-o", "json"]).await.stdout,
        r#"{
  "id": "01kefake0p0000000000000000",
  "podId": "01kefakep0d000000000000000",
  "kind": "stop",
  "state": "running",
  "progress": {
    "step": "verify",
    "bytesDone": 0,
    "bytesTotal": 0,
    "filesDone": 0,
    "bytesPerSecond": null,
    "secondsLeft": null
  },
  "snapshotId": null,
  "error": null,
  "actor": "admin",
  "createdAt": "2026-01-10T11:59:00Z",
  "finishedAt": null
}
"#
    );
    assert_eq!(
        fake.run(&["op", "show", OP, "-o", "yaml"]).await.stdout,
        "\
id: 01kefake0p0000000000000000
podId: 01kefakep0d000000000000000
kind: stop
state: running
progress:
  step: verify
  bytesDone: 0
  bytesTotal: 0
  filesDone: 0
  bytesPerSecond: null
  secondsLeft: null
snapshotId: null
error: null
actor: admin
createdAt: 2026-01-10T11:59:00Z
finishedAt: null
"
    );
}

#[tokio::test]
async fn how_a_pod_stands() {
    let mut running = operation(OperationKind::Stop, OperationState::Running, "final pass");
    running.progress = perennial::api::wire::Progress {
        bytes_done: 1 << 20,
        bytes_total: 3 << 20,
        files_done: 12,
        bytes_per_second: Some(1 << 19),
        seconds_left: Some(4),
        ..running.progress
    };
    let status = PodStatus {
        health: None,
        desired: perennial::api::wire::Desired::Stopped,
        phase: Phase::Stopping,
        conditions: vec![condition()],
        container: None,
        operations: vec![running],
        crashes: 2,
        exit_code: Some(137),
        out_of_memory: true,
        next_try_at: Some(time("2026-01-10T12:00:08Z")),
        failed_tries: 1,
        data_seen_at: Some(time("2026-01-10T11:59:00Z")),
        system_layer_captured_at: None,
    };
    let fake = Fake::default();
    fake.pods(&[pod("dev")]).on(&format!("GET /api/v1/pods/{POD}/status"), [status]);
    assert_eq!(
        fake.run(&["pod", "status", "dev"]).await.stdout,
        format!(
            "\
Phase         stopping
Asked for     stopped
Container     -
Data seen     1 min ago
System layer  -
Crashes       2 in a row, exit code 137, out of memory
Failed tries  1
Next try      in 8 s

ID                          KIND  STATE    STEP                                                                   CREATED    POD
{OP}  stop  running  final pass, 1.0 MiB of 3.0 MiB, 12 files, 512.0 KiB/s, 4 seconds left  1 min ago  dev

CONDITION  SINCE     WHY
DataLost   30 s ago  the data of volume home is gone (volume-missing)
"
        )
    );
}

#[tokio::test]
async fn volumes_snapshots_and_operations() {
    let mut bad = snapshot();
    (bad.state, bad.bytes, bad.new_bytes, bad.files) = (SnapshotState::Failed, None, None, None);
    bad.error = Some("unreadable".to_owned());
    let fake = Fake::default();
    let used = [Some(12_900_000), None].into_iter();
    let volumes: Vec<MeasuredVolume> = std::iter::zip(pod("dev").volumes, used)
        .map(|(volume, used_bytes)| MeasuredVolume { volume, used_bytes })
        .collect();
    fake.pods(&[stopped("dev")])
        .on(&format!("GET /api/v1/pods/{POD}/volumes"), list(volumes))
        .on("GET /api/v1/snapshots", list(vec![snapshot(), Snapshot { pod_id: OTHER.to_owned(), ..bad.clone() }]))
        .on(&format!("GET /api/v1/snapshots/{SNAPSHOT}"), [bad])
        .on(&format!("GET /api/v1/operations/{OP}"), [failed(OperationKind::Stop)])
        .on(&format!("GET /api/v1/pods/{POD}/operations"), list(vec![failed(OperationKind::Stop)]));
    assert_eq!(
        fake.run(&["pod", "volumes", "dev"]).await.stdout,
        format!(
            "\
VOLUME  PATH   STATE     USED      ON THE ENGINE
home    /home  complete  12.3 MiB  perennial-vol-{POD}-home
etc     /etc   complete  -         perennial-vol-{POD}-etc
"
        )
    );
    assert_eq!(
        fake.run(&["snapshot", "ls", "dev"]).await.stdout,
        format!(
            "\
ID                          KIND   STATE     SIZE      NEW      FILES  CREATED  POD
{SNAPSHOT}  final  verified  12.3 MiB  2.0 KiB  42     2 h ago  dev
{SNAPSHOT}  final  failed    -         -        -      2 h ago  {OTHER}
"
        )
    );
    let asked = fake.asked_for("GET /api/v1/snapshots?");
    assert_eq!(asked.last().unwrap().what, format!("GET /api/v1/snapshots?pod={POD}&limit=500"));
    let all = fake.run(&["snapshot", "ls", "--state", "failed", "--kind", "final", "-o", "json"]).await;
    assert_eq!(all.json()[1]["podId"], OTHER);
    let asked = fake.asked_for("GET /api/v1/snapshots?");
    assert_eq!(asked.last().unwrap().what, "GET /api/v1/snapshots?state=failed&kind=final&limit=500");
    assert_eq!(
        fake.run(&["op", "ls"]).await.stdout,
        format!(
            "\
ID                          KIND  STATE   STEP        CREATED    POD
{OP}  stop  failed  final pass  1 min ago  dev
"
        )
    );
    for (list, ids) in [
        (&["pod", "ls", "-q"][..], format!("{POD}\n")),
        (&["snapshot", "ls", "dev", "--quiet"], format!("{SNAPSHOT}\n{SNAPSHOT}\n")),
        (&["op", "ls", "dev", "-q"], format!("{OP}\n")),
        (&["pod", "ls", "-q", "-o", "json"], format!("[\n  \"{POD}\"\n]\n")),
    ] {
        assert_eq!(fake.run(list).await.stdout, ids, "{list:?}");
    }
    assert_eq!(
        fake.run(&["snapshot", "show", SNAPSHOT]).await.stdout,
        format!(
            "\
Id                 {SNAPSHOT}
Pod                {POD}
Kind               final
State              failed
Error              unreadable
Generation         3
Shows              2026-01-10T10:00:01Z (1 h ago), stopped
Size               -
New in repository  -
Files              -

VOLUME  PATH   SIZE  FILES
home    /home  -     42
"
        )
    );
    assert_eq!(
        fake.run(&["op", "show", OP]).await.stdout,
        format!(
            "\
Id            {OP}
Kind          stop
State         failed
Pod           {POD}
Step          final pass
Asked for by  admin
Created       2026-01-10T11:59:00Z (1 min ago)
Finished      2026-01-10T11:59:59Z (1 s ago)
Error         the repository's disk is full (repository-full)
Hint          make space; the data is still on the host
"
        )
    );
    assert_eq!(fake.run(&["op", "ls", "dev", "--unfinished"]).await.stdout, "no operations\n");
}

#[tokio::test]
async fn the_newest_snapshot_tells_when_it_is_not_whole() {
    let mut flawed = snapshot();
    flawed.consistency.losses = vec![Loss { path: "/volumes/home/x".to_owned(), reason: "unreadable".to_owned() }];
    flawed.damage = Some("a pack is gone".to_owned());
    let mut dev = pod("dev");
    dev.latest_snapshot = Some(flawed.clone());
    let fake = Fake::default();
    fake.pods(&[dev, pod("whole")]);
    fake.on(&format!("GET /api/v1/snapshots/{SNAPSHOT}"), [flawed]);

    let newest = format!("newest of pod dev: {SNAPSHOT} (final, verified, 1 lost, damaged, 12.3 MiB, 2 h ago)\n");
    let warning =
        format!("snapshot {SNAPSHOT} is not whole (1 lost, damaged): perennial snapshot show {SNAPSHOT} tells more\n");
    let ran = fake.run(&["snapshot", "show", "dev@latest"]).await;
    assert_eq!((ran.exit, ran.stderr), (Exit::Done, format!("{newest}{warning}")));
    // Whoever reads JSON asked for nothing beside it; this they have to know.
    let ran = fake.run(&["snapshot", "show", "dev", "-o", "json"]).await;
    assert_eq!((ran.exit, ran.stderr), (Exit::Done, warning));
    let ran = fake.run(&["snapshot", "show", "whole", "-o", "json"]).await;
    assert_eq!((ran.exit, ran.stderr.as_str()), (Exit::Done, ""));
}

#[tokio::test]
async fn a_hostile_name_does_not_reach_the_terminal() {
    let mut hostile = pod("dev");
    hostile.image = "\x1b]0;owned\x07".to_owned();
    let fake = Fake::default();
    fake.pods(&[hostile]);
    let ran = fake.run(&["pod", "ls"]).await;
    assert!(ran.stdout.contains("\\u{1b}]0;owned\\u{7}") && !ran.stdout.contains('\x1b'), "{:?}", ran.stdout);
}

#[tokio::test]
async fn colours_only_where_they_are_wanted() {
    let (stdout, stderr) = (Buffer::default(), Buffer::default());
    let mut out = Out::captured(Box::new(stdout.clone()), Box::new(stderr.clone()), None).coloured();
    let arguments = ["perennial", "--server", "http://127.0.0.1:1", "pod", "ls"];
    run_from(&arguments, session(), &mut out).await;
    assert!(stderr.text().starts_with("\x1b[31merror:\x1b[0m "), "{:?}", stderr.text());
}

fn system() -> System {
    let check = |name: &str, status, message: &str, hint: Option<&str>| Check {
        name: name.to_owned(),
        status,
        message: message.to_owned(),
        hint: hint.map(str::to_owned),
    };
    System {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        installation: "01kefake".to_owned(),
        data_dir: "/var/lib/perennial".to_owned(),
        time: now(),
        engine: Some(EngineInfo {
            version: "Docker 28".to_owned(),
            default_runtime: "runc".to_owned(),
            runtimes: vec![Runtime {
                name: "runc".to_owned(),
                overlay_volumes: true,
                root_changes: true,
                freeze: true,
            }],
            backends: vec![Backend::Overlay],
            notes: vec!["runsc is not installed".to_owned()],
        }),
        checks: vec![
            check("database", CheckStatus::Ok, "answers", None),
            check("engine", CheckStatus::Warning, "runsc is not installed", None),
            check("disk space", CheckStatus::Warning, "7 % free", Some("make space")),
        ],
        recovery_kit: None,
    }
}

#[tokio::test]
async fn doctor_is_content() {
    let fake = Fake::default();
    fake.on("GET /api/v1/system", [system()]);
    let ran = fake.run(&["doctor"]).await;
    assert_eq!((ran.exit, ran.stderr.as_str()), (Exit::Done, ""));
    let (head, tail) = ran.stdout.split_once("answers\n").unwrap();
    assert!(
        head.starts_with(
            "Perennial 0.1.0, installation 01kefake, data in /var/lib/perennial\nPods run on Docker 28, runtimes: runc \
         (default)\n\nok       token         is taken from PERENNIAL_TOKEN\nok       server"
        ),
        "{head}"
    );
    assert_eq!(
        tail,
        "\
ok       version       client and server are 0.1.0
ok       client clock  agrees with the server's
ok       database      answers
warning  engine        runsc is not installed
warning  disk space    7 % free
                       hint: make space
"
    );
}

#[tokio::test]
async fn doctor_says_what_is_broken() {
    let mut sick = system();
    sick.checks[0].status = CheckStatus::Failed;
    sick.checks[0].hint = Some("see the log".to_owned());
    sick.version = "9.9.9".to_owned();
    sick.time = time("2026-01-10T11:00:00Z");
    let fake = Fake::default();
    fake.on("GET /api/v1/system", [sick]);
    let directory = tempfile::tempdir().unwrap();
    let token = directory.path().join("token");
    std::fs::write(&token, "secret").unwrap();
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o644)).unwrap();
    let ran = fake.run(&["doctor", "--token-file", token.to_str().unwrap()]).await;
    assert_eq!((ran.exit, ran.stderr.as_str()), (Exit::Failed, "error: 1 broken\n"));
    for line in [
        "can be read by others (mode 644)",
        "hint: chmod 600 ",
        "warning  version       this client is 0.1.0, the server is 9.9.9",
        "warning  client clock  is 3600 s away from the server's",
        "BROKEN   database      answers\n                       hint: see the log",
    ] {
        assert!(ran.stdout.contains(line), "{line}\n{}", ran.stdout);
    }
    let ran = fake.run(&["doctor", "-o", "json"]).await;
    assert_eq!((ran.exit, ran.stderr.as_str()), (Exit::Failed, ""));
    assert_eq!(ran.json()["healthy"], false);
    assert_eq!(ran.json()["server"]["checks"][0]["status"], "failed");
}

#[tokio::test]
async fn doctor_works_without_a_server() {
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let server = format!("http://{address}");
    let ran = run_raw(&["perennial", "--server", &server, "doctor"], None, session()).await;
    assert_eq!(ran.exit, Exit::Failed);
    assert!(ran.stdout.contains("BROKEN   server  cannot connect to"), "{}", ran.stdout);
    assert!(ran.stdout.contains("hint: is the server running? start it with: perennial serve"), "{}", ran.stdout);
}
