//! Hooks around the freeze of a snapshot (incident P21): what a pod flushes on its hook is in the snapshot, and what a hook
//! began is ended, whatever happens in between.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod world;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

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
use world::taps::{Blow, Striker};
use world::{Server, World, files, hooks, small_spec};

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

/// Ends once an owed hook is waited for that was begun before: what goes on of the one before it was looked for first.
async fn it_is_waited_for(seen: &Striker) {
    while seen.passed().iter().filter(|site| *site == "engine.container_rejoin").count() < 2 {
        tokio::task::yield_now().await;
    }
}

/// Asks for something while the n-th program of the pod goes on, which the clock never ends; the pod comes to rest all the same.
async fn asked_in_a_hook(server: &Server, world: &World, pod: PodId, n: usize, ask: impl Future<Output = ()>) {
    let asks = async {
        while world.engine.programs(pod).len() < n || world.engine.program_due(pod).is_none() {
            tokio::task::yield_now().await;
        }
        ask.await;
    };
    let settles = async {
        server.settle(pod).await;
    };
    let both = async { tokio::join!(settles, asks) };
    tokio::time::timeout(Duration::from_secs(60), both).await.expect("it waits for the hook");
}

#[tokio::test]
async fn sim_p21_whoever_wants_the_pod_does_not_wait_for_the_hook_before() {
    for (phase, last) in [(Phase::Paused, "resume"), (Phase::Stopped, "resume"), (Phase::Deleted, "resume")] {
        let world = World::new(1);
        let server = world.server().await;
        let slow = hooks(&["slow", "20", "quiesce"], &["resume"]);
        let pod = server.running("dev", hooked(Backend::Overlay, slow)).await;
        let began = world.clock_now();
        server.snapshot(pod).await.unwrap();
        asked_in_a_hook(&server, &world, pod, 1, async {
            let asked = match phase {
                Phase::Paused => server.pause(pod).await,
                Phase::Stopped => server.stop(pod).await,
                _ => server.delete(pod).await,
            };
            asked.unwrap();
        })
        .await;
        assert_eq!(server.pod(pod).await.phase, phase);
        assert_eq!(world.engine.programs(pod)[1..], [[last]]);
        assert!(world.clock_now().duration_since(began) < SignedDuration::from_secs(20), "{phase:?}");
    }
}

#[tokio::test]
async fn sim_p21_a_snapshot_that_is_cancelled_in_its_hook_ends_it_and_lets_the_pod_go_on() {
    let world = World::new(1);
    let server = world.server().await;
    let pod = server.running("dev", hooked(Backend::Overlay, hooks(&["slow", "20", "quiesce"], &["resume"]))).await;
    let asked = server.snapshot(pod).await.unwrap();
    asked_in_a_hook(&server, &world, pod, 1, async {
        server.app.cancel(Request::new(&Caller::admin()), asked.operation.id).await.unwrap();
    })
    .await;
    let row = server.app.store.snapshot_fetch(asked.snapshot.unwrap().id).await.unwrap().unwrap();
    assert_eq!(row.state, SnapshotState::Failed);
    assert!(report(&row).before.as_ref().unwrap().problem.as_ref().unwrap().contains("was cancelled"));
    assert_eq!(report(&row).after.as_ref().unwrap().exit, Some(0));
    world.clock.advance(SignedDuration::from_secs(60));
    assert!(!world.engine.is_quiesced(pod));
    assert_eq!((server.pod(pod).await.hook, server.pod(pod).await.phase), (None, Phase::Running));
}

#[tokio::test]
async fn sim_p21_only_a_purge_cuts_the_hook_after_short() {
    let world = World::new(1);
    let server = world.server().await;
    let pod = server.running("dev", hooked(Backend::Overlay, hooks(&["quiesce"], &["slow", "20", "resume"]))).await;
    server.snapshot(pod).await.unwrap();
    asked_in_a_hook(&server, &world, pod, 2, async {
        server.purge(pod).await.unwrap();
    })
    .await;
    assert!(server.app.store.pod_fetch(pod).await.unwrap().is_none());
    // A stop waits for it.
    let world = World::new(1);
    let server = world.server().await;
    let pod = server.running("dev", hooked(Backend::Overlay, hooks(&["quiesce"], &["slow", "20", "resume"]))).await;
    server.snapshot(pod).await.unwrap();
    asked_in_a_hook(&server, &world, pod, 2, async {
        server.stop(pod).await.unwrap();
        let due = world.engine.program_due(pod).unwrap();
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
        assert_eq!(world.engine.program_due(pod), Some(due), "it was ended");
        world.clock.set(due);
    })
    .await;
    assert!(!world.engine.is_quiesced(pod));
    assert_eq!(server.pod(pod).await.phase, Phase::Stopped);
    assert_eq!(world.engine.programs(pod).len(), 2);
}

#[tokio::test]
async fn sim_p21_a_hook_that_ended_is_not_run_again_because_the_pod_was_changed_meanwhile() {
    let world = World::new(1);
    let (pod, asked) = {
        let server = world.server().await;
        let slow = hooks(&["slow", "20", "quiesce"], &["slow", "20", "resume"]);
        let pod = server.running("dev", hooked(Backend::Overlay, slow)).await;
        let asked = server.snapshot(pod).await.unwrap();
        tokio::select! {
            _ = server.settle(pod) => panic!("it ended"),
            () = a_program_goes_on(&world, pod) => {}
        }
        (pod, asked)
    };
    let server = world.server().await;
    server.app.cancel(Request::new(&Caller::admin()), asked.operation.id).await.unwrap();
    asked_in_a_hook(&server, &world, pod, 2, async {
        server.stop(pod).await.unwrap();
        world.clock.set(world.engine.program_due(pod).unwrap());
    })
    .await;
    assert_eq!(world.engine.programs(pod).len(), 2, "{:?}", world.engine.programs(pod));
    assert_eq!(server.pod(pod).await.phase, Phase::Stopped);
    assert!(!world.engine.is_quiesced(pod));
}

/// An engine that freezes nothing.
#[derive(Debug)]
struct FreezesNothing;

impl Tap for FreezesNothing {
    fn at(&self, site: &str, moment: Moment) -> Verdict {
        let asked = site == "engine.container_freeze" && moment == Moment::Before;
        if asked { Verdict::Fail } else { Verdict::Go }
    }
}

#[tokio::test]
async fn sim_p21_what_goes_wrong_again_and_again_ends_the_snapshot_and_not_the_pods_peace() {
    let world = World::new(1);
    let server = world.server_with(Arc::new(FreezesNothing)).await;
    let pod = server.running("dev", hooked(Backend::Overlay, hooks(&["quiesce"], &["resume"]))).await;
    let (operation, row) = taken(&server, pod).await;
    let problem = operation.error.unwrap();
    assert_eq!((operation.state, row.state), (OperationState::Failed, SnapshotState::Failed), "{problem:?}");
    assert!(problem.code == "engine-unavailable" && problem.message.contains("5 times"), "{problem:?}");
    assert_eq!(world.engine.programs(pod).len(), 10);
    assert!(!world.engine.is_quiesced(pod));
}

#[tokio::test]
async fn sim_p21_a_long_hook_after_keeps_no_snapshot_from_being_recorded() {
    let world = World::new(1);
    let seen = Arc::new(Striker::new(Blow::Count, usize::MAX - 1));
    let server = world.server_with(Arc::clone(&seen) as _).await;
    let pod = server.running("dev", hooked(Backend::Overlay, hooks(&["quiesce"], &["slow", "20", "resume"]))).await;
    let asked = server.snapshot(pod).await.unwrap().snapshot.unwrap().id;
    asked_in_a_hook(&server, &world, pod, 2, async {
        let state = async || server.app.store.snapshot_fetch(asked).await.unwrap().unwrap().state;
        while state().await == SnapshotState::Pending {
            tokio::task::yield_now().await;
        }
        assert_eq!(state().await, SnapshotState::Uploaded);
        it_is_waited_for(&seen).await;
        world.clock.set(world.engine.program_due(pod).expect("it goes on"));
    })
    .await;
    let row = server.app.store.snapshot_fetch(asked).await.unwrap().unwrap();
    assert_eq!((row.state, row.grade), (SnapshotState::Verified, Some(Grade::Hooked)));
    assert_eq!(report(&row).after.as_ref().unwrap().exit, Some(0));
    assert_eq!(world.engine.programs(pod).len(), 2, "it was waited for");
    assert_eq!(server.pod(pod).await.hook, None);
}

#[tokio::test]
async fn sim_p21_a_snapshot_is_of_the_moment_after_its_hook() {
    let world = World::new(1);
    let server = world.server().await;
    let pod = server.running("dev", hooked(Backend::Overlay, hooks(&["slow", "20", "quiesce"], &["resume"]))).await;
    let (began, asked) = (world.clock_now(), server.snapshot(pod).await.unwrap().snapshot.unwrap().id);
    asked_in_a_hook(&server, &world, pod, 1, async {
        world.clock.set(world.engine.program_due(pod).unwrap());
    })
    .await;
    let row = server.app.store.snapshot_fetch(asked).await.unwrap().unwrap();
    let captured_at = row.captured_at.unwrap();
    assert_eq!((row.grade, captured_at.duration_since(began).as_secs()), (Some(Grade::Hooked), 20));
    let file: serde_json::Value = serde_json::from_slice(&world.file_in_repository(asked, "/pod.json")).unwrap();
    assert_eq!(file["capturedAt"], captured_at.to_string(), "{file}");
}

#[tokio::test]
async fn sim_p21_a_snapshot_with_parts_of_another_is_not_hooked() {
    let world = World::new(1);
    let server = world.server().await;
    let spec = hooked(Backend::Overlay, hooks(&["quiesce"], &["resume"]));
    let pod = server.running("dev", spec).await;
    world.engine.write(pod, "/srv/file", "1").unwrap();
    let (wanted, base) = (server.snapshot_of(pod).await, server.snapshot_of(pod).await);
    server.succeed(server.stop(pod).await).await;
    server.succeed(server.restore(pod, base).await).await;
    let parts = Parts::new(vec!["srv".to_owned()], Vec::new(), Extra::Keep).unwrap().unwrap();
    server.succeed(server.restore_parts(pod, wanted, parts).await).await;
    let composed = server.snapshots(pod).await.into_iter().find(|row| row.kind == SnapshotKind::Composed).unwrap();
    assert_eq!(composed.grade, Some(Grade::Frozen));
    let file: serde_json::Value = serde_json::from_slice(&world.file_in_repository(composed.id, "/pod.json")).unwrap();
    assert_eq!((&file["grade"], &file["hook"]), (&"frozen".into(), &serde_json::Value::Null), "{file}");
}

/// A running pod of a tenant.
async fn running_of(server: &Server, tenant: &str, number: usize, spec: PodSpec) -> PodId {
    let (name, tenant) = (PodName::parse(&format!("{tenant}-{number}")).unwrap(), TenantId::parse(tenant).unwrap());
    let create = CreateRequest { name, tenant: Some(tenant), from_snapshot: None };
    let outcome = server.app.create(Request::new(&Caller::admin()), create, |_| Ok(spec.clone())).await.unwrap();
    let pod = outcome.pod.id;
    server.succeed(Ok(outcome)).await;
    pod
}

async fn soon(what: &str, is_so: impl AsyncFn() -> bool) {
    let waits = async {
        while !is_so().await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(120), waits).await.expect(what);
}

#[tokio::test]
async fn sim_p21_hooks_that_hang_stop_nobody_else_and_no_server() {
    let world = World::new(1);
    let server = world.server().await;
    let mut slow = hooked(Backend::Overlay, hooks(&["slow", "500", "quiesce"], &["resume"]));
    slow.hooks.before.as_mut().unwrap().timeout = TIMEOUT_MAX;
    let began = world.clock_now();
    let mut pods = Vec::new();
    for (tenant, count) in [("few-a", 3), ("few-b", 3), ("few-c", 3), ("many", 6)] {
        for number in 0..count {
            pods.push(running_of(&server, tenant, number, slow.clone()).await);
        }
    }
    let other = running_of(&server, "other", 0, small_spec(Backend::Overlay)).await;
    for pod in &pods {
        server.snapshot(*pod).await.unwrap();
    }
    let (waker, hanging) = (Waker::default(), |pods: &[PodId]| {
        pods.iter().filter(|pod| world.engine.program_due(**pod).is_some()).count()
    });
    let controller = Controller::start(Arc::clone(&server.reconciler), waker.clone());
    // More than passes are bounded to, and no more of one tenant than it may have.
    soon("hooks go on", async || {
        for pod in &pods {
            let retry = server.pod(*pod).await.retry;
            if let Some(at) = retry.not_before.filter(|at| *at > world.clock_now()) {
                // The first snapshots of a new tenant may be in each other's way: what fails then is tried again.
                world.clock.set(at);
                waker.wake(*pod);
            }
        }
        hanging(&pods) == 13
    })
    .await;
    let asked = server.snapshot(other).await.unwrap().operation.id;
    waker.wake(other);
    soon("the other goes on", async || server.operation(asked).await.state == OperationState::Succeeded).await;
    assert_eq!((hanging(&pods), hanging(&pods[9..])), (13, 4));
    // A server that stops cancels them, and lets their pods go on.
    tokio::time::timeout(Duration::from_secs(120), controller.shutdown()).await.expect("it stops");
    assert_eq!(hanging(&pods), 0);
    for pod in pods {
        assert_eq!(server.pod(pod).await.hook, None);
        assert!(!world.engine.is_quiesced(pod));
    }
    assert!(world.clock_now().duration_since(began) < SignedDuration::from_secs(500));
}

#[tokio::test]
async fn sim_p21_a_server_that_stops_leaves_a_long_hook_after_to_the_next() {
    let world = World::new(1);
    let server = world.server().await;
    let pod = server.running("dev", hooked(Backend::Overlay, hooks(&["quiesce"], &["slow", "20", "resume"]))).await;
    server.snapshot(pod).await.unwrap();
    let controller = Controller::start(Arc::clone(&server.reconciler), Waker::default());
    soon("it goes on", async || world.engine.program_due(pod).is_some()).await;
    tokio::time::timeout(Duration::from_secs(60), controller.shutdown()).await.expect("it stops");
    assert!(server.pod(pod).await.hook.is_some());
    let seen = Arc::new(Striker::new(Blow::Count, usize::MAX - 1));
    let server = world.server_with(Arc::clone(&seen) as _).await;
    asked_in_a_hook(&server, &world, pod, 2, async {
        it_is_waited_for(&seen).await;
        world.clock.set(world.engine.program_due(pod).unwrap());
    })
    .await;
    assert_eq!((server.pod(pod).await.hook, world.engine.is_quiesced(pod)), (None, false));
    assert_eq!(world.engine.programs(pod).len(), 2, "it was waited for");
}

/// An engine that starts nothing, and counts how often it was asked.
#[derive(Debug, Default)]
struct StartsNothing(AtomicUsize);

impl Tap for StartsNothing {
    fn at(&self, site: &str, moment: Moment) -> Verdict {
        if site != "engine.container_start" || moment != Moment::Before {
            return Verdict::Go;
        }
        self.0.fetch_add(1, Ordering::SeqCst);
        Verdict::Fail
    }
}

#[tokio::test]
async fn sim_p21_an_owed_hook_hurries_nothing_else() {
    let world = World::new(1);
    let (_, pod) = paused_after_its_hook_died(&world).await;
    let nothing = Arc::new(StartsNothing::default());
    let server = world.server_with(Arc::clone(&nothing) as _).await;
    server.start(pod).await.unwrap();
    while server.pod(pod).await.retry.count == 0 {
        server.reconciler.pass(pod).await;
    }
    let (asked, due) = (nothing.0.load(Ordering::SeqCst), server.pod(pod).await.retry.not_before);
    // As it is when a start that fails makes the engine tell of it, again and again.
    for _ in 0..5 {
        assert_eq!(server.reconciler.pass(pod).await, Passed::Wait(due));
    }
    world.engine.node_vanishes();
    assert_eq!(server.reconciler.pass(pod).await, Passed::Wait(due));
    world.engine.node_returns();
    assert_eq!(nothing.0.load(Ordering::SeqCst), asked, "it was not left in peace");
    let server = world.server().await;
    server.settle(pod).await;
    assert_eq!(world.engine.programs(pod), [["die"], ["resume"]]);
}

#[tokio::test]
async fn sim_p21_an_owed_hook_waits_for_what_still_starts_in_a_fresh_container() {
    let world = World::new(1);
    let server = world.server().await;
    let after = ["late", "20", "resume"];
    let pod = server.running("dev", hooked(Backend::Overlay, hooks(&["die"], &after))).await;
    let (operation, _) = taken(&server, pod).await;
    assert_eq!(operation.state, OperationState::Failed);
    server.settle(pod).await;
    let record = server.pod(pod).await;
    assert_eq!((record.hook, record.hook_failed, record.phase), (None, None, Phase::Running));
    assert!(world.engine.programs(pod).len() > 3, "it was never too early");
    // What never becomes ready is given up, with its own words.
    let world = World::new(1);
    let server = world.server().await;
    let pod = server.running("dev", hooked(Backend::Overlay, hooks(&["die"], &["exit", "5", "locked"]))).await;
    taken(&server, pod).await;
    server.settle(pod).await;
    let record = server.pod(pod).await;
    assert_eq!((record.hook, record.phase), (None, Phase::Running));
    let problem = record.hook_failed.unwrap();
    assert!(problem.message.contains("status 5"), "{}", problem.message);
    assert_eq!(world.engine.programs(pod).len(), 1 + TRIES_MAX as usize);
}

#[tokio::test]
async fn sim_p21_no_hook_runs_where_nothing_is_frozen() {
    let world = World::new(1);
    let server = world.server().await;
    let pod = server.running("dev", hooked(Backend::Overlay, hooks(&["quiesce"], &["resume"]))).await;
    server.succeed(server.stop(pod).await).await;
    let last = server.snapshots(pod).await.into_iter().next().unwrap();
    assert_eq!((last.grade, last.hooks), (Some(Grade::Stopped), None));
    server.succeed(server.start(pod).await).await;
    server.succeed(server.pause(pod).await).await;
    let (_, row) = taken(&server, pod).await;
    assert_eq!((row.grade, row.hooks), (Some(Grade::Stopped), None));
    assert_eq!(world.engine.programs(pod), [] as [Vec<String>; 0]);
}

/// A pod whose server died while its hook ran, and the snapshot that was being taken.
async fn quiesced_by_a_dead_server(world: &World) -> (PodId, Outcome) {
    let server = world.server().await;
    let pod = server.running("dev", hooked(Backend::Overlay, hooks(&["quiesce"], &["resume"]))).await;
    let counting = Arc::new(Striker::new(Blow::Count, usize::MAX - 1));
    let server = world.server_with(Arc::clone(&counting) as _).await;
    server.succeed(server.snapshot(pod).await).await;
    let first = counting.passed().iter().position(|s| s == "engine.container_run").unwrap();
    for at in first..first + 40 {
        let striker = Arc::new(Striker::new(Blow::KillAfter, at));
        let server = world.server_with(Arc::clone(&striker) as _).await;
        let asked = server.snapshot(pod).await.unwrap();
        tokio::select! {
            () = async { server.settle(pod).await; } => {}
            () = striker.death() => {}
        }
        if world.engine.is_quiesced(pod) && striker.passed().last().unwrap() == "engine.container_run" {
            return (pod, asked);
        }
        world.server().await.settle(pod).await;
    }
    panic!("no server died in a hook");
}

#[tokio::test]
async fn sim_p21_a_cancelled_snapshot_gets_its_hook_after() {
    let world = World::new(1);
    let (pod, asked) = quiesced_by_a_dead_server(&world).await;
    let server = world.server().await;
    server.app.cancel(Request::new(&Caller::admin()), asked.operation.id).await.unwrap();
    server.settle(pod).await;
    assert!(!world.engine.is_quiesced(pod));
    assert_eq!(server.pod(pod).await.hook, None);
    let row = server.app.store.snapshot_fetch(asked.snapshot.unwrap().id).await.unwrap().unwrap();
    assert_eq!(row.state, SnapshotState::Failed);
    assert_eq!(report(&row).after.as_ref().unwrap().exit, Some(0), "the row tells it");
}

#[tokio::test]
async fn sim_p21_a_stop_that_comes_between_waits_for_the_hook_after() {
    let world = World::new(1);
    let (pod, asked) = quiesced_by_a_dead_server(&world).await;
    let server = world.server().await;
    server.app.cancel(Request::new(&Caller::admin()), asked.operation.id).await.unwrap();
    let ran = world.engine.programs(pod).len();
    server.succeed(server.stop(pod).await).await;
    assert_eq!(world.engine.programs(pod)[ran..], [["resume"]]);
    assert!(!world.engine.is_quiesced(pod));
}
