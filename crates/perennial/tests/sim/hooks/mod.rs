//! Hooks around the freeze of a snapshot (incident P21): what a pod flushes on its hook is in the snapshot, and what a hook
//! began is ended, whatever happens in between.

mod owed;
mod waiting;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::world::taps::{Blow, Striker};
use crate::world::{Server, World, files, hooks, small_spec};
use jiff::SignedDuration;
use perennial::reconcile::controller::{Controller, Waker};
use perennial::reconcile::worker::Passed;
use perennial::service::{Caller, CreateRequest, Outcome, Request};
use perennial_core::fault::{Moment, Tap, Verdict};
use perennial_core::hook::{HookReport, Hooks, OnHookFailure, TIMEOUT_MAX, TRIES_MAX};
use perennial_core::id::PodId;
use perennial_core::operation::{Operation, OperationState};
use perennial_core::parts::{Extra, Parts};
use perennial_core::pod::{ConditionKind, Phase};
use perennial_core::snapshot::{Grade, Snapshot, SnapshotKind, SnapshotState};
use perennial_core::spec::{Backend, PodName, PodSpec, TenantId};

fn hooked(backend: Backend, hooks: Hooks) -> PodSpec {
    PodSpec { hooks, ..small_spec(backend) }
}

/// Takes a snapshot; answers how its operation ended, and its row.
async fn taken(server: &Server, pod: PodId) -> (Operation, Snapshot) {
    let operation = server.done(server.snapshot(pod).await).await;
    let row = server.snapshots(pod).await.into_iter().next().unwrap();
    (operation, row)
}

fn report(row: &Snapshot) -> &HookReport {
    row.hooks.as_ref().unwrap()
}

async fn has_condition(server: &Server, pod: PodId, kind: ConditionKind) -> bool {
    server.pod(pod).await.conditions.iter().any(|c| c.kind == kind)
}

async fn event_kinds(server: &Server, pod: PodId) -> Vec<String> {
    let filter = perennial::store::EventFilter { pod: Some(pod), ..Default::default() };
    let events = server.app.store.event_list(0, &filter, 1000).await.unwrap();
    events.into_iter().map(|event| event.line.kind).collect()
}

/// What a hook wrote is there after a restore, and what the other one wrote is not.
async fn flushed_is_captured(world: World, backend: Backend) {
    let server = world.server().await;
    let spec = hooked(backend, hooks(&["write", "/srv/flushed", "all of it"], &["write", "/srv/after", "later"]));
    let pod = server.running("dev", spec).await;
    let (operation, row) = taken(&server, pod).await;
    assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
    assert_eq!((row.state, row.grade), (SnapshotState::Verified, Some(Grade::Hooked)));
    assert!(row.frozen_millis.is_some());
    let (before, after) = (report(&row).before.clone().unwrap(), report(&row).after.clone().unwrap());
    assert_eq!((before.exit, before.problem, after.exit, after.problem), (Some(0), None, Some(0), None));
    assert_eq!(
        world.engine.programs(pod).iter().map(|p| p[1].as_str()).collect::<Vec<_>>(),
        ["/srv/flushed", "/srv/after"]
    );
    let file: serde_json::Value = serde_json::from_slice(&world.file_in_repository(row.id, "/pod.json")).unwrap();
    assert_eq!((&file["grade"], &file["hook"]["exitCode"]), (&"hooked".into(), &0.into()), "{file}");
    server.succeed(server.restore(pod, row.id).await).await;
    let files = files(&world, pod);
    assert_eq!(files.get("/srv/flushed").map(Vec::as_slice), Some(&b"all of it"[..]));
    assert!(!files.contains_key("/srv/after"));
    let record = server.pod(pod).await;
    assert_eq!((record.hook, record.hook_failed), (None, None));
    assert_eq!(world.engine.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn sim_p21_what_a_hook_flushes_is_in_the_snapshot() {
    flushed_is_captured(World::new(1), Backend::Overlay).await;
}

#[tokio::test]
async fn sim_p21_what_a_hook_flushes_is_in_the_snapshot_by_mover() {
    flushed_is_captured(World::with_mover(1, perennial::mover::simulated()), Backend::Engine).await;
}

#[tokio::test]
async fn sim_p21_a_hook_that_fails_fails_the_snapshot_and_is_undone() {
    let long = "x".repeat(10_000);
    let cases: [(&[&str], &str, &[&str]); 5] = [
        (
            &["exit", "3", "no", "space", "\u{1b}[31m\u{202e}", "left"],
            "hook-failed",
            &["status 3", "it said: no space [31m left"],
        ),
        (&["exit", "1", &long], "hook-failed", &["status 1", "…xxx"]),
        (&["hang"], "hook-timed-out", &["took longer than 30 s"]),
        (&["hang", "for", "ever"], "hook-timed-out", &["took longer than 30 s", "it may go on"]),
        (&["missing"], "hook-failed", &["could not be started"]),
    ];
    for (before, code, words) in cases {
        let words: Vec<&str> =
            words.iter().map(|w| if *w == "it may go on" { "may go on in the pod" } else { w }).collect();
        let world = World::new(1);
        let server = world.server().await;
        let pod = server.running("dev", hooked(Backend::Overlay, hooks(before, &["resume"]))).await;
        let (operation, row) = taken(&server, pod).await;
        let problem = operation.error.unwrap();
        assert_eq!((operation.state, problem.code.as_str()), (OperationState::Failed, code), "{before:?}");
        let told = report(&row).before.clone().unwrap().problem.unwrap();
        assert!(words.iter().all(|w| told.contains(w)), "{told}");
        assert!(told.len() < 1000 && !told.contains(['\u{1b}', '\u{202e}']), "{told}");
        // What it said may be anything, and goes with the snapshot.
        let kept = format!("{problem:?} {:?}", server.pod(pod).await);
        assert!(problem.message.contains(words[0]) && !kept.contains("it said:"), "{kept}");
        assert_eq!((row.state, row.grade), (SnapshotState::Failed, None), "{before:?}");
        assert_eq!(report(&row).after.as_ref().unwrap().exit, Some(0));
        assert_eq!(world.engine.programs(pod).last().unwrap(), &["resume"]);
        assert!(has_condition(&server, pod, ConditionKind::SnapshotFailed).await);
        assert_eq!(server.pod(pod).await.phase, Phase::Running);
    }
}

#[tokio::test]
async fn sim_p21_a_snapshot_that_goes_on_without_its_hook_is_never_hooked() {
    for before in [&["exit", "3", "busy"][..], &["hang"], &["missing"]] {
        let world = World::new(1);
        let server = world.server().await;
        let lenient = Hooks { on_failure: OnHookFailure::Continue, ..hooks(before, &["resume"]) };
        let pod = server.running("dev", hooked(Backend::Overlay, lenient)).await;
        let (operation, row) = taken(&server, pod).await;
        assert_eq!(operation.state, OperationState::Succeeded, "{before:?}");
        assert_eq!((row.state, row.grade), (SnapshotState::Verified, Some(Grade::Frozen)), "{before:?}");
        assert!(report(&row).before.as_ref().unwrap().problem.is_some());
        let file: serde_json::Value = serde_json::from_slice(&world.file_in_repository(row.id, "/pod.json")).unwrap();
        assert_eq!(file["grade"], "frozen", "{file}");
        assert!(file["hook"]["problem"].is_string(), "{file}");
        assert!(event_kinds(&server, pod).await.contains(&"snapshot.hook-failed".to_owned()));
        assert_eq!(world.engine.programs(pod).last().unwrap(), &["resume"]);
    }
}

#[tokio::test]
async fn sim_p21_a_hook_after_that_fails_is_told_and_the_snapshot_stays_good() {
    let world = World::new(1);
    let server = world.server().await;
    let pod = server.running("dev", hooked(Backend::Overlay, hooks(&["quiesce"], &["exit", "5", "locked"]))).await;
    let (operation, row) = taken(&server, pod).await;
    assert_eq!(operation.state, OperationState::Succeeded);
    assert_eq!((row.state, row.grade), (SnapshotState::Verified, Some(Grade::Hooked)));
    let problem = report(&row).after.as_ref().unwrap().problem.clone().unwrap();
    assert!(problem.contains("status 5") && problem.contains("locked"), "{problem}");
    assert!(has_condition(&server, pod, ConditionKind::HookFailed).await);
    assert!(event_kinds(&server, pod).await.contains(&"pod.hook-failed".to_owned()));
    assert!(!format!("{:?}", server.pod(pod).await.hook_failed).contains("locked"));
    // It is not run again and again, and the next one that succeeds ends the warning. No restart is needed for another hook.
    assert_eq!(world.engine.programs(pod).len(), 2);
    let generation = server.pod(pod).await.spec_generation;
    let mended = hooks(&["quiesce"], &["resume"]);
    let change = |spec: &PodSpec| Ok(PodSpec { hooks: mended.clone(), ..spec.clone() });
    server.app.patch(&Caller::admin(), pod, None, change).await.unwrap();
    server.succeed(server.snapshot(pod).await).await;
    assert!(!has_condition(&server, pod, ConditionKind::HookFailed).await);
    assert!(!world.engine.is_quiesced(pod));
    assert_eq!(server.pod(pod).await.spec_generation, generation);
}

#[tokio::test]
async fn sim_p21_a_container_that_dies_in_its_hook_comes_back_and_gets_the_other() {
    let world = World::new(1);
    let server = world.server().await;
    let pod = server.running("dev", hooked(Backend::Overlay, hooks(&["die"], &["resume"]))).await;
    let (operation, row) = taken(&server, pod).await;
    assert_eq!((operation.state, row.state), (OperationState::Failed, SnapshotState::Failed), "{operation:?}");
    server.settle(pod).await;
    assert_eq!(server.pod(pod).await.phase, Phase::Running);
    assert_eq!(world.engine.programs(pod), [["die"], ["resume"]]);
    assert_eq!(server.pod(pod).await.hook, None);
}

/// A paused pod whose container died in the hook before its snapshot.
async fn paused_after_its_hook_died(world: &World) -> (Server, PodId) {
    let server = world.server().await;
    let pod = server.running("dev", hooked(Backend::Overlay, hooks(&["die"], &["resume"]))).await;
    server.snapshot(pod).await.unwrap();
    while world.engine.programs(pod).is_empty() {
        server.reconciler.pass(pod).await;
    }
    server.succeed(server.pause(pod).await).await;
    assert!(server.pod(pod).await.hook.is_some());
    (server, pod)
}

#[tokio::test]
async fn sim_p21_a_snapshot_of_a_stopped_container_takes_no_hook_back() {
    let world = World::new(1);
    let (server, pod) = paused_after_its_hook_died(&world).await;
    let (_, row) = taken(&server, pod).await;
    assert_eq!((row.state, row.grade, &row.hooks), (SnapshotState::Verified, Some(Grade::Stopped), &None));
    assert!(server.pod(pod).await.hook.is_some(), "nobody ran it");
    server.succeed(server.start(pod).await).await;
    server.settle(pod).await;
    assert_eq!(world.engine.programs(pod), [["die"], ["resume"]]);
    assert_eq!(server.pod(pod).await.hook, None);
}

#[tokio::test]
async fn sim_p21_a_stop_that_leaves_a_hook_owed_says_so() {
    let world = World::new(1);
    let (server, pod) = paused_after_its_hook_died(&world).await;
    server.succeed(server.stop(pod).await).await;
    server.settle(pod).await;
    assert!(has_condition(&server, pod, ConditionKind::HookFailed).await);
    assert_eq!(server.pod(pod).await.hook, None);
    assert_eq!(world.engine.programs(pod), [["die"]]);
}

/// Ends once a program of the pod goes on that the clock has to end.
async fn a_program_goes_on(world: &World, pod: PodId) {
    while world.engine.program_due(pod).is_none() {
        tokio::task::yield_now().await;
    }
}

/// A pod whose server died while the hook before its snapshot went on.
async fn died_in_its_hook(world: &World, before: &[&str]) -> (PodId, Outcome) {
    let server = world.server().await;
    let pod = server.running("dev", hooked(Backend::Overlay, hooks(before, &["resume"]))).await;
    let asked = server.snapshot(pod).await.unwrap();
    tokio::select! {
        _ = server.settle(pod) => panic!("it ended"),
        () = a_program_goes_on(world, pod) => {}
    }
    (pod, asked)
}

#[tokio::test]
async fn sim_p21_what_a_dead_server_began_does_not_outlive_the_hook_that_ends_it() {
    let world = World::new(1);
    let (pod, asked) = died_in_its_hook(&world, &["slow", "20", "quiesce"]).await;
    let server = world.server().await;
    server.app.cancel(Request::new(&Caller::admin()), asked.operation.id).await.unwrap();
    server.settle(pod).await;
    assert_eq!(world.engine.programs(pod).last().unwrap(), &["resume"]);
    world.clock.advance(SignedDuration::from_secs(60));
    assert!(!world.engine.is_quiesced(pod), "it was ended after the hook that ends it");
    let record = server.pod(pod).await;
    assert_eq!((record.hook, record.hook_failed), (None, None));
}

#[tokio::test]
async fn sim_p21_what_cannot_be_ended_is_told_although_the_other_hook_succeeds() {
    let world = World::new(1);
    let (pod, asked) = died_in_its_hook(&world, &["stubborn", "20", "quiesce"]).await;
    let server = world.server().await;
    server.app.cancel(Request::new(&Caller::admin()), asked.operation.id).await.unwrap();
    server.settle(pod).await;
    assert_eq!(world.engine.programs(pod).last().unwrap(), &["resume"]);
    let failed = server.pod(pod).await.hook_failed.unwrap();
    assert!(failed.message.contains("may go on in the pod"), "{}", failed.message);
    assert!(has_condition(&server, pod, ConditionKind::HookFailed).await);
    // The same without a dead server in between.
    let world = World::new(1);
    let server = world.server().await;
    let pod = server.running("dev", hooked(Backend::Overlay, hooks(&["hang", "for", "ever"], &["resume"]))).await;
    let (operation, _) = taken(&server, pod).await;
    assert_eq!(operation.state, OperationState::Failed);
    assert_eq!(world.engine.programs(pod).last().unwrap(), &["resume"]);
    assert!(has_condition(&server, pod, ConditionKind::HookFailed).await);
}

#[tokio::test]
async fn sim_p21_an_engine_that_vanishes_in_a_hook_leaves_it_owed() {
    let world = World::new(1);
    let server = world.server().await;
    let pod = server.running("dev", hooked(Backend::Overlay, hooks(&["slow", "20", "quiesce"], &["resume"]))).await;
    let asked = server.snapshot(pod).await.unwrap();
    let vanishes = async {
        a_program_goes_on(&world, pod).await;
        world.engine.node_vanishes();
    };
    let passes = async { while server.reconciler.pass(pod).await == Passed::Again {} };
    tokio::join!(passes, vanishes);
    assert_eq!(world.engine.programs(pod).len(), 1, "nobody knows whether the first has ended");
    server.app.cancel(Request::new(&Caller::admin()), asked.operation.id).await.unwrap();
    world.engine.node_returns();
    server.settle(pod).await;
    world.clock.advance(SignedDuration::from_secs(60));
    assert!(!world.engine.is_quiesced(pod));
    assert_eq!(world.engine.programs(pod).last().unwrap(), &["resume"]);
}
