//! What the audit trail says, and what it says of deletions: their ground.

use crate::world::{Ended, Server, World, small_spec, universal_spec};
use perennial::audit::Checker;
use perennial::store::{AuditFilter, EventFilter};
use perennial_core::id::{OperationId, PodId};
use perennial_core::operation::Event;
use perennial_core::pod::{ConditionKind, Phase};
use perennial_core::spec::{Backend, PodSpec};

async fn trail(server: &Server, pod: PodId) -> Vec<Event> {
    let filter = EventFilter { pod: Some(pod), ..EventFilter::default() };
    server.app.store.event_list(0, &filter, 1000).await.unwrap()
}

/// What the trail says of an operation: kinds and messages.
async fn of_operation(server: &Server, pod: PodId, operation: OperationId) -> Vec<(String, String)> {
    let all = trail(server, pod).await.into_iter().filter(|e| e.line.operation == Some(operation));
    all.filter(|e| e.line.kind.starts_with("operation.")).map(|e| (e.line.kind, e.line.message)).collect()
}

#[tokio::test]
async fn sim_every_kind_of_operation_is_on_the_trail_with_its_end() {
    let world = World::new(41);
    let server = world.server().await;
    let created = server.create("dev", small_spec(Backend::Overlay)).await;
    let pod = created.as_ref().unwrap().pod.id;
    let check = async |kind: &str, outcome: Result<perennial::service::Outcome, perennial_core::Error>| {
        let operation = outcome.as_ref().unwrap().operation.id;
        server.settle(pod).await;
        let said = of_operation(&server, pod, operation).await;
        let expected = ["requested", "succeeded"].map(|end| (format!("operation.{end}"), format!("{kind} {end}")));
        assert_eq!(said, expected, "{kind}");
    };
    check("create", created).await;
    check("pause", server.pause(pod).await).await;
    check("start", server.start(pod).await).await;
    check("restart", server.restart(pod).await).await;
    check("snapshot", server.snapshot(pod).await).await;
    let snapshot = server.snapshots(pod).await[0].id;
    check("reset", server.reset(pod).await).await;
    check("restore", server.restore(pod, snapshot).await).await;
    check("stop", server.stop(pod).await).await;
    check("archive", server.archive(pod).await).await;
    check("undelete", server.undelete(pod).await).await;
    check("delete", server.delete(pod).await).await;
    check("purge", server.purge(pod).await).await;
}

#[tokio::test]
async fn sim_the_audit_of_a_whole_life_is_a_good_chain_and_holds_no_secret() {
    let world = World::new(46);
    let server = world.server().await;
    let mut spec = small_spec(Backend::Overlay);
    spec.env = [("TOKEN".to_owned(), "hunter2".to_owned())].into();
    spec.command = Some(vec!["serve".to_owned(), "--password=swordfish".to_owned()]);
    let pod = server.running("dev", spec).await;
    server.succeed(server.pause(pod).await).await;
    server.succeed(server.start(pod).await).await;
    server.succeed(server.snapshot(pod).await).await;
    server.succeed(server.reset(pod).await).await;
    world.engine.crash(pod, 1, perennial_drivers::sim::Cause::Itself).unwrap();
    server.settle(pod).await;
    server.succeed(server.stop(pod).await).await;
    server.purge(pod).await.unwrap();
    assert_eq!(server.settle(pod).await, Ended::Gone);

    let store = &server.app.store;
    let rows = store.audit_list(0, &AuditFilter::default(), 10_000).await.unwrap();
    let mut checker = Checker::new(None);
    rows.iter().for_each(|row| checker.next(row).unwrap());
    checker.end(store.audit_head().await.unwrap()).unwrap();
    let of_pod = rows.iter().filter(|row| row.row.pod == Some(pod.to_string())).count();
    // Every event has its row, and each wish of a person what it changed.
    assert!(of_pod >= trail(&server, pod).await.len());
    let wishes: Vec<&str> =
        rows.iter().filter_map(|row| row.row.after.as_deref()).filter(|after| after.contains("desired")).collect();
    for desired in ["running", "paused", "stopped"] {
        assert!(
            wishes.iter().any(|after| after.contains(&format!("\"desired\":\"{desired}\""))),
            "{desired}: {wishes:?}"
        );
    }
    let all = format!("{rows:?}");
    assert!(all.contains("TOKEN") && all.contains("2 words"), "{all}");
    assert!(!all.contains("hunter2") && !all.contains("swordfish"), "{all}");
}

#[tokio::test]
async fn sim_deletions_are_on_the_trail_with_their_ground() {
    let world = World::new(42);
    let server = world.server().await;
    let pod = server.running("dev", universal_spec(Backend::Overlay)).await;
    let stop = server.stop(pod).await;
    let operation = stop.as_ref().unwrap().operation.id;
    server.succeed(stop).await;
    let snapshot = server.snapshots(pod).await[0].id;
    let deletions = async |after: i64| -> Vec<(String, String)> {
        let all = trail(&server, pod).await.into_iter().filter(|e| e.id > after);
        let kinds = ["pod.deleting", "pod.container-removed", "pod.set-deleted", "pod.purged"];
        let found = all.filter(|e| kinds.contains(&e.line.kind.as_str()));
        found.map(|e| (e.line.kind, e.line.message)).collect()
    };
    let line = |kind: &str, message: String| (kind.to_owned(), message);
    assert_eq!(
        deletions(0).await,
        [
            line("pod.deleting", format!("removing the container: captured by snapshot {snapshot}")),
            line("pod.container-removed", "container removed".to_owned()),
            line("pod.deleting", format!("deleting the volumes of set 1: captured by snapshot {snapshot}")),
            line("pod.set-deleted", "volumes of set 1 deleted".to_owned()),
        ]
    );
    let all = trail(&server, pod).await;
    assert!(all.iter().filter(|e| e.line.kind == "pod.deleting").all(|e| e.line.operation == Some(operation)));

    server.succeed(server.start(pod).await).await;
    let last = server.app.store.event_last().await.unwrap();
    let purge = server.purge(pod).await.unwrap();
    assert_eq!(server.settle(pod).await, Ended::Gone);
    let found = deletions(last).await;
    assert_eq!(found.iter().filter(|(_, text)| text.ends_with(": confirmed by admin")).count(), 2, "{found:?}");
    assert_eq!(found.last().unwrap().0, "pod.purged");
    assert_eq!(of_operation(&server, pod, purge.operation.id).await.last().unwrap().1, "purge succeeded");
}

#[tokio::test]
async fn sim_a_pod_that_never_ran_stops_without_a_snapshot() {
    let world = World::new(43);
    let server = world.server().await;
    let spec = PodSpec { backend: Some(Backend::Overlay), ..PodSpec::new("nowhere:1") };
    // An engine that cannot be asked refuses nothing.
    world.engine.node_vanishes();
    let created = server.create("dev", spec).await.unwrap();
    world.engine.node_returns();
    let pod = created.pod.id;
    server.work(pod).await;
    assert_ne!(server.pod(pod).await.phase, Phase::Running, "there is no such image");
    server.succeed(server.stop(pod).await).await;
    let record = server.pod(pod).await;
    assert_eq!((record.phase, record.data_generation), (Phase::Stopped, 0));
    assert!(record.sets.is_empty() && record.container.is_none());
    assert_eq!(server.snapshots(pod).await, []);
    assert!(server.operation(created.operation.id).await.state.is_terminal());
    assert_eq!(world.engine.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn sim_a_program_that_ends_without_an_error_is_told_from_one_that_fails() {
    let world = World::new(45);
    let server = world.server().await;
    let pod = server.running("dev", small_spec(Backend::Overlay)).await;
    let mut messages = Vec::new();
    for code in [0, 7] {
        for _ in 0..4 {
            world.engine.crash(pod, code, perennial_drivers::sim::Cause::Itself).unwrap();
            server.settle(pod).await;
        }
        let record = server.pod(pod).await;
        let found = record.conditions.iter().find(|c| c.kind == ConditionKind::CrashLoop).unwrap();
        messages.push(found.message.clone());
    }
    assert!(messages[0].contains("exit code 0: it finishes without an error"), "{messages:?}");
    assert!(messages[1].contains("exit code 7") && !messages[1].contains("without"), "{messages:?}");
}
