//! Who waits for a hook, and who does not.

use super::*;

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
    let create = CreateRequest { name, tenant: Some(tenant), plan: None, from_snapshot: None };
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
