//! Hooks that are owed after everything else has ended.

use super::*;

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
    let striker = Arc::new(Striker::at_site(Blow::KillAfter, "engine.container_run"));
    let server = world.server_with(Arc::clone(&striker) as _).await;
    let asked = server.snapshot(pod).await.unwrap();
    tokio::select! {
        _ = server.settle(pod) => panic!("no server died in a hook"),
        () = striker.death() => {}
    }
    assert!(world.engine.is_quiesced(pod));
    (pod, asked)
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
