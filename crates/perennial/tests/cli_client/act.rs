//! Actions: what is sent, how waiting looks, how it ends.

use std::sync::Arc;

use perennial::api::wire::{
    List, OperationKind, OperationState, PatchPod, PodOperation, Problem, SnapshotKind, SnapshotOperation,
    SnapshotState,
};
use perennial::cli::{Exit, Interrupt};
use serde_json::json;
use tokio::sync::Notify;

use super::fake::{
    Fake, OP, OTHER, POD, Reply, SNAPSHOT, begun, condition, created, failed, operation, pod, problem, session,
    snapshot, stopped, time, with_action,
};

const OPERATION: &str = "GET /api/v1/operations/01kefake0p0000000000000000";

#[tokio::test]
async fn create_sends_everything_and_waits() {
    let fake = with_action("POST /api/v1/pods", OperationKind::Create, &pod("dev"));
    let line = "pod create dev --image debian:12 --cpus 1.5 --memory 512Mi --memory-swap 0 --pids 100 --disk 20Gi --runtime runsc \
                --backend docker -e A=1 --env B=2 --env C= --volume data:/data:250Mi --volume conf:/conf -p 8080:80 --port 443 \
                --user 1000 --workdir /srv --stop-signal SIGINT --stop-timeout 1m --on-stop pause \
                --allow-privilege-escalation --tenant acme -- sleep infinity";
    let ran = fake.run(&line.split_whitespace().collect::<Vec<_>>()).await;
    assert_eq!((ran.exit, ran.stdout.as_str()), (Exit::Done, "pod dev is running\n"), "{}", ran.stderr);
    assert_eq!(ran.stderr, "step done\n");
    let sent = &fake.asked_for("POST")[0];
    created(sent.body.as_ref().unwrap());
    assert_eq!(
        *sent.body.as_ref().unwrap(),
        json!({
            "name": "dev", "image": "debian:12", "command": ["sleep", "infinity"], "runtime": "runsc",
            "resources": {"cpus": 1.5, "memory": 536_870_912, "memorySwap": 0, "memoryReservation": null, "pids": 100,
                          "disk": 21_474_836_480_u64},
            "env": {"A": "1", "B": "2", "C": ""}, "workingDir": "/srv", "user": "1000",
            "volumes": [{"name": "data", "mountPath": "/data", "size": 262_144_000},
                        {"name": "conf", "mountPath": "/conf", "size": null}],
            "ports": [{"container": 80, "host": 8080}, {"container": 443, "host": null}],
            "stopSignal": "SIGINT", "stopTimeout": 60, "onStop": "pause", "backend": "docker",
            "privilegeEscalation": "allowed", "tenant": "acme"
        })
    );
}

#[tokio::test]
async fn what_is_not_given_is_not_sent() {
    let fake = with_action("POST /api/v1/pods", OperationKind::Create, &pod("dev"));
    fake.run(&["pod", "create", "dev", "--image", "a"]).await;
    fake.run(&["pod", "create", "dev", "--image", "a", "--no-volumes"]).await;
    fake.run(&["pod", "create", "dev", "--from-snapshot", SNAPSHOT]).await;
    fake.run(&["pod", "create", "dev", "--plan", "n8n/plus", "-e", "A=1"]).await;
    let bodies: Vec<_> = fake.asked_for("POST").into_iter().filter_map(|asked| asked.body).collect();
    assert_eq!(
        bodies,
        [
            json!({"name": "dev", "image": "a"}),
            json!({"name": "dev", "image": "a", "volumes": []}),
            json!({"name": "dev", "fromSnapshot": SNAPSHOT}),
            json!({"name": "dev", "plan": "n8n/plus", "env": {"A": "1"}})
        ]
    );
}

#[tokio::test]
async fn steps_are_lines_and_the_result_is_data() {
    let fake = Fake::default();
    let mut retried = operation(OperationKind::Stop, OperationState::Running, "final pass");
    retried.error = Some(Problem { detail: "the disk\n is full".to_owned(), ..Problem::default() });
    fake.pods(&[pod("dev")])
        .on(&format!("POST /api/v1/pods/{POD}/stop"), [begun(pod("dev"), OperationKind::Stop)])
        .on(
            OPERATION,
            [
                operation(OperationKind::Stop, OperationState::Running, "first pass"),
                operation(OperationKind::Stop, OperationState::Running, "first pass"),
                retried.clone(),
                retried,
                operation(OperationKind::Stop, OperationState::Running, "verify"),
                operation(OperationKind::Stop, OperationState::Succeeded, "verify"),
            ],
        )
        .on(&format!("GET /api/v1/pods/{POD}"), [stopped("dev")]);
    let ran = fake.run(&["pod", "stop", "dev"]).await;
    assert_eq!(ran.stderr, "step first pass\nstep final pass\ntrying again: the disk\\n is full\nstep verify\n");
    assert_eq!(ran.stdout, format!("pod dev is stopped; snapshot {SNAPSHOT} is verified (12.3 MiB, 2.0 KiB new)\n"));
    assert_eq!(ran.exit, Exit::Done);
    assert!(fake.asked_for("GET /api/v1/operations").iter().all(|asked| asked.what.ends_with("?wait=1s")));
}

#[tokio::test]
async fn every_plain_action_goes_to_its_route() {
    let table = [
        ("start", "start", OperationKind::Start, "living"),
        ("stop", "stop", OperationKind::Stop, "living"),
        ("pause", "pause", OperationKind::Pause, "living"),
        ("restart", "restart", OperationKind::Restart, "living"),
        ("archive", "archive", OperationKind::Archive, "living"),
        ("undelete", "undelete", OperationKind::Undelete, "hidden"),
    ];
    for (command, route, kind, visibility) in table {
        let post = format!("POST /api/v1/pods/{POD}/{route}");
        let fake = with_action(&post, kind, &pod("dev"));
        let ran = fake.run(&["pod", command, "dev"]).await;
        assert_eq!(ran.exit, Exit::Done, "{command}: {}", ran.stderr);
        let asked = fake.asked();
        assert_eq!(asked[0].what, format!("GET /api/v1/pods?name=dev&visibility={visibility}&limit=500"));
        assert_eq!((asked[1].what.clone(), asked[1].body.clone()), (post, None));
        assert_eq!(asked[1].headers["idempotency-key"].len(), 32);
    }
}

#[tokio::test]
async fn an_id_is_taken_as_it_is_and_a_name_that_looks_like_one_is_found() {
    let post = format!("POST /api/v1/pods/{POD}/start");
    let fake = with_action(&post, OperationKind::Start, &pod("dev"));
    assert_eq!(fake.run(&["pod", "start", POD]).await.exit, Exit::Done);
    assert!(fake.asked_for("GET /api/v1/pods?").is_empty());

    let named_like_an_id = Fake::default();
    named_like_an_id
        .pods(&[pod(OTHER)])
        .on(&post, [begun(pod(OTHER), OperationKind::Start)])
        .on(OPERATION, [operation(OperationKind::Start, OperationState::Succeeded, "")])
        .on(&format!("GET /api/v1/pods/{POD}"), [pod(OTHER)]);
    let ran = named_like_an_id.run(&["pod", "start", OTHER]).await;
    assert_eq!((ran.exit, ran.stdout), (Exit::Done, format!("pod {OTHER} is running\n")));
}

#[tokio::test]
async fn no_wait_returns_what_was_recorded() {
    let fake = with_action(&format!("POST /api/v1/pods/{POD}/stop"), OperationKind::Stop, &stopped("dev"));
    let ran = fake.run(&["pod", "stop", "dev", "--no-wait"]).await;
    assert_eq!((ran.exit, ran.stdout), (Exit::Done, format!("stop of pod dev was begun: perennial op wait {OP}\n")));
    assert!(fake.asked_for("GET /api/v1/operations").is_empty());

    let ran = fake.run(&["pod", "stop", "dev", "--no-wait", "--output", "json"]).await;
    assert_eq!(ran.json()["operation"]["state"], "pending");
    assert_eq!(ran.json()["pod"]["phase"], "running");
}

#[tokio::test]
async fn a_failed_operation_is_told_and_its_json_is_printed() {
    let failing = Fake::default();
    failing
        .pods(&[pod("dev")])
        .on(&format!("POST /api/v1/pods/{POD}/stop"), [begun(pod("dev"), OperationKind::Stop)])
        .on(OPERATION, [failed(OperationKind::Stop)])
        .on(&format!("GET /api/v1/pods/{POD}"), [pod("dev")]);
    let ran = failing.run(&["pod", "stop", "dev"]).await;
    assert_eq!((ran.exit, ran.stdout.as_str()), (Exit::Failed, ""));
    assert_eq!(
        ran.stderr,
        "step final pass\nerror: stop of pod dev failed: the repository's disk is full\n\n\
         hint: make space; the data is still on the host\n"
    );
    let ran = failing.run(&["pod", "stop", "dev", "-o", "json"]).await;
    assert_eq!(ran.exit, Exit::Failed);
    assert_eq!(ran.json()["operation"]["error"]["code"], "repository-full");
    let told: serde_json::Value = serde_json::from_str(ran.stderr.lines().last().unwrap()).unwrap();
    assert_eq!(
        (&told["code"], &told["detail"]),
        (&"repository-full".into(), &"stop of pod dev failed: the repository's disk is full".into())
    );
}

#[tokio::test]
async fn a_cancelled_operation_is_a_failure() {
    let fake = Fake::default();
    fake.on(OPERATION, [operation(OperationKind::Stop, OperationState::Cancelled, "")]);
    let ran = fake.run(&["op", "wait", OP]).await;
    assert_eq!(ran.exit, Exit::Failed);
    assert_eq!(ran.stderr, format!("error: stop (operation {OP}) was cancelled\n"));
}

#[tokio::test]
async fn the_end_of_patience_is_not_the_end_of_the_work() {
    let fake = Fake::default();
    fake.on(OPERATION, [operation(OperationKind::Stop, OperationState::Running, "verify")]);
    let ran = fake.run(&["op", "wait", OP, "--timeout", "0"]).await;
    assert_eq!(ran.exit, Exit::Timeout);
    assert_eq!(
        ran.stderr,
        format!(
            "step verify\nerror: the time is over: stop (operation {OP}) goes on (operation {OP}, verify)\n\n\
             hint: follow it: perennial op wait {OP}; cancel it: perennial op cancel {OP}\n"
        )
    );
}

#[tokio::test]
async fn ctrl_c_ends_the_waiting_and_says_so() {
    let fake = Fake::default();
    fake.pods(&[pod("dev")])
        .on(&format!("POST /api/v1/pods/{POD}/stop"), [begun(pod("dev"), OperationKind::Stop)])
        .on(OPERATION, [operation(OperationKind::Stop, OperationState::Running, "verify")]);
    let (mut session, ctrl_c) = (session(), Arc::new(Notify::new()));
    session.interrupt = Interrupt::Notify(Arc::clone(&ctrl_c));
    ctrl_c.notify_one();
    let ran = fake.run_with(&["pod", "stop", "dev"], None, session).await;
    assert_eq!((ran.exit, ran.exit.code()), (Exit::Interrupted, 130));
    assert_eq!(
        ran.stderr,
        format!(
            "error: interrupted: stop of pod dev goes on (operation {OP})\n\n\
             hint: follow it: perennial op wait {OP}; cancel it: perennial op cancel {OP}\n"
        )
    );
}

#[tokio::test]
async fn waiting_outlives_a_restart_of_the_server() {
    let fake = Fake::default();
    let running = operation(OperationKind::Stop, OperationState::Running, "verify");
    fake.on(OPERATION, [&running])
        .reply(OPERATION, [Reply::Break, Reply::Json(503, problem(503, "unavailable", "shutting down"))])
        .on(OPERATION, [operation(OperationKind::Stop, OperationState::Succeeded, "verify")]);
    let ran = fake.run(&["op", "wait", OP]).await;
    assert_eq!(ran.exit, Exit::Done, "{}", ran.stderr);
    assert_eq!(ran.stdout, format!("stop (operation {OP}) succeeded\n"));
    assert_eq!(ran.stderr, "step verify\nshutting down; trying again\n");
}

#[tokio::test]
async fn a_server_that_stays_away_ends_the_waiting() {
    let fake = Fake::default();
    let running = operation(OperationKind::Stop, OperationState::Running, "verify");
    fake.on(OPERATION, [&running]).reply(OPERATION, [Reply::Json(503, problem(503, "unavailable", "shutting down"))]);
    let ran = fake.run(&["op", "wait", OP]).await;
    assert_eq!(ran.exit, Exit::Unavailable);
    assert_eq!(
        ran.stderr,
        format!(
            "step verify\nshutting down; trying again\nerror: shutting down\noperation {OP} goes on when the server \
             runs\n\nhint: follow it: perennial op wait {OP}; cancel it: perennial op cancel {OP}\n"
        )
    );
    assert_eq!(fake.asked().len(), 1 + 4);
}

#[tokio::test]
async fn a_broken_connection_repeats_the_request_with_the_same_key() {
    let post = format!("POST /api/v1/pods/{POD}/start");
    let fake = Fake::default();
    fake.pods(&[pod("dev")])
        .reply(&post, [Reply::Break, Reply::Break])
        .on(&post, [begun(pod("dev"), OperationKind::Start)]);
    let ran = fake.run(&["pod", "start", "dev", "--no-wait"]).await;
    assert_eq!(ran.exit, Exit::Done, "{}", ran.stderr);
    let keys: Vec<String> =
        fake.asked_for("POST").iter().map(|asked| asked.headers["idempotency-key"].clone()).collect();
    assert_eq!(keys.len(), 3);
    assert!(keys.iter().all(|key| *key == keys[0]));

    fake.run(&["pod", "start", "dev", "--no-wait"]).await;
    assert_ne!(fake.asked_for("POST")[3].headers["idempotency-key"], keys[0]);
}

#[tokio::test]
async fn a_purged_pod_is_gone() {
    let fake = Fake::default();
    fake.pods(&[stopped("dev")])
        .on(&format!("POST /api/v1/pods/{POD}/purge"), [begun(stopped("dev"), OperationKind::Purge)])
        .on(OPERATION, [operation(OperationKind::Purge, OperationState::Succeeded, "")]);
    let ran = fake.run(&["pod", "purge", "dev", "--yes"]).await;
    assert_eq!((ran.exit, ran.stdout.as_str()), (Exit::Done, "pod dev is gone\n"));
    assert_eq!(fake.asked_for("POST")[0].body, Some(json!({"confirm": "dev"})));
    let ran = fake.run(&["pod", "purge", "dev", "--yes", "-o", "json"]).await;
    assert_eq!(ran.json()["pod"], json!(null));
}

#[tokio::test]
async fn a_deleted_pod_says_until_when_it_can_come_back() {
    let mut after = stopped("dev");
    after.phase = perennial::api::wire::Phase::Deleted;
    after.purge_at = Some(time("2026-01-17T12:00:00Z"));
    let fake = with_action(&format!("DELETE /api/v1/pods/{POD}"), OperationKind::Delete, &after);
    let ran = fake.run(&["pod", "rm", "dev", "--yes"]).await;
    assert_eq!(
        ran.stdout,
        format!(
            "pod dev is deleted; snapshot {SNAPSHOT} is verified (12.3 MiB, 2.0 KiB new); perennial pod undelete dev \
             brings it back until 2026-01-17T12:00:00Z\n"
        )
    );
    assert_eq!(fake.asked_for("DELETE")[0].body, None);
    assert_eq!(fake.asked_for("DELETE")[0].headers["idempotency-key"].len(), 32);
}

#[tokio::test]
async fn set_changes_what_is_named_and_keeps_the_rest() {
    let tagged = |pod: &perennial::api::wire::Pod, tag| Reply::Tagged(serde_json::to_string(pod).unwrap(), tag);
    let one = format!("GET /api/v1/pods/{POD}");
    let patch = format!("PATCH /api/v1/pods/{POD}");
    let mut theirs = pod("dev");
    theirs.spec.env.insert("THEIRS".to_owned(), "1".to_owned());
    let mut after = theirs.clone();
    (after.spec_generation, after.conditions) = (3, vec![condition()]);
    let fake = Fake::default();
    fake.pods(&[pod("dev")])
        // Somebody else is faster once: the change is put on top of theirs.
        .reply(&one, [tagged(&pod("dev"), "\"1\""), tagged(&theirs, "\"2\""), tagged(&theirs, "\"2\"")])
        .reply(&patch, [Reply::Json(412, problem(412, "changed-meanwhile", "the pod was changed"))])
        .on(&patch, [after]);
    let line = "pod set dev --memory 1Gi --disk 20Gi --env B=2 --unset-env A --unset command --stop-timeout 5";
    let ran = fake.run(&line.split_whitespace().collect::<Vec<_>>()).await;
    assert_eq!(ran.stdout, "pod dev is changed (specification 3)\nDataLost: the data of volume home is gone\n");
    let sent = fake.asked_for("PATCH");
    assert_eq!([&sent[0].headers["if-match"], &sent[1].headers["if-match"]], ["\"1\"", "\"2\""]);
    let last = sent[1].body.clone().unwrap();
    serde_json::from_value::<PatchPod>(last.clone()).unwrap();
    assert_eq!(
        last,
        json!({
            "command": null, "stopTimeout": 5, "env": {"B": "2", "THEIRS": "1"},
            "resources": {"cpus": null, "memory": 1_073_741_824, "memorySwap": null, "memoryReservation": null,
                          "pids": null, "disk": 21_474_836_480_u64}
        })
    );
}

#[tokio::test]
async fn set_does_not_repeat_a_conflict_that_is_none_of_merging() {
    let fake = Fake::default();
    fake.pods(&[pod("dev")])
        .on(&format!("GET /api/v1/pods/{POD}"), [pod("dev")])
        .reply(&format!("PATCH /api/v1/pods/{POD}"), [Reply::Json(409, problem(409, "busy", "not now"))]);
    assert_eq!(fake.run(&["pod", "set", "dev", "--user", "root"]).await.exit, Exit::Conflict);
    assert_eq!(fake.asked_for("PATCH").len(), 1);
    assert_eq!(fake.run(&["pod", "set", "dev"]).await.exit, Exit::Usage);
    assert_eq!(fake.run(&["pod", "set", "dev", "--memory", "512Mi"]).await.exit, Exit::Usage);
}

#[tokio::test]
async fn snapshots_are_taken_and_deleted() {
    let mut taken = snapshot();
    (taken.kind, taken.state, taken.bytes) = (SnapshotKind::Manual, SnapshotState::Pending, None);
    let answer =
        |kind, snapshot| SnapshotOperation { snapshot, operation: operation(kind, OperationState::Pending, "") };
    let fake = Fake::default();
    fake.pods(&[pod("dev")])
        .on(&format!("POST /api/v1/pods/{POD}/snapshots"), [answer(OperationKind::Snapshot, taken)])
        .on(OPERATION, [operation(OperationKind::Snapshot, OperationState::Succeeded, "verify")])
        .on(&format!("GET /api/v1/snapshots/{SNAPSHOT}"), [snapshot()]);
    let ran = fake.run(&["snapshot", "create", "dev"]).await;
    assert_eq!(ran.stdout, format!("snapshot {SNAPSHOT} is verified (12.3 MiB, 2.0 KiB new)\n"));

    let fake = Fake::default();
    fake.on(&format!("GET /api/v1/snapshots/{SNAPSHOT}"), [snapshot()])
        .reply(&format!("GET /api/v1/snapshots/{SNAPSHOT}"), [Reply::Json(404, problem(404, "not-found", "gone"))])
        .on(&format!("DELETE /api/v1/snapshots/{SNAPSHOT}"), [answer(OperationKind::SnapshotDelete, snapshot())])
        .on(OPERATION, [operation(OperationKind::SnapshotDelete, OperationState::Succeeded, "")]);
    let ran = fake.run(&["snapshot", "rm", SNAPSHOT, "--yes"]).await;
    assert_eq!((ran.exit, ran.stdout), (Exit::Done, format!("snapshot {SNAPSHOT} is gone\n")), "{}", ran.stderr);
}

#[tokio::test]
async fn everything_of_everybody_is_collected_from_pages() {
    let mut other = pod("other");
    other.id = OTHER.to_owned();
    let page = |pods, next: Option<&str>| List { items: pods, next: next.map(str::to_owned) };
    let stop = operation(OperationKind::Stop, OperationState::Running, "final pass");
    let fake = Fake::default();
    fake.on("GET /api/v1/pods", [page(vec![pod("dev")], Some(POD)), page(vec![other], None)])
        .on(&format!("GET /api/v1/pods/{POD}/operations"), [List { items: vec![stop.clone()], next: None }]);
    let ran = fake.run(&["op", "ls", "-o", "json"]).await;
    // The second pod was purged in between: its 404 is no failure of the list.
    assert_eq!(ran.json().as_array().unwrap().len(), 1, "{}", ran.stderr);
    let asked = fake.asked_for("GET /api/v1/pods?");
    assert_eq!(asked[0].what, "GET /api/v1/pods?visibility=all&limit=500");
    assert_eq!(asked[1].what, format!("GET /api/v1/pods?visibility=all&limit=500&after={POD}"));
}

#[tokio::test]
async fn cancelling_an_operation() {
    let fake = Fake::default();
    let cancelled = PodOperation {
        pod: pod("dev"),
        operation: operation(OperationKind::Stop, OperationState::Cancelled, "first pass"),
    };
    fake.on(&format!("POST /api/v1/operations/{OP}/cancel"), [cancelled]);
    let ran = fake.run(&["op", "cancel", OP]).await;
    assert_eq!(ran.exit, Exit::Done);
    assert!(ran.stdout.contains("State         cancelled\n"), "{}", ran.stdout);
}
