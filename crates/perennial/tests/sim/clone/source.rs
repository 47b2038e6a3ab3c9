//! While a source is in work, and whatever becomes of it.

use super::*;

/// Waits for something else to be done whenever it comes to a site, as long as there is something.
#[derive(Default)]
struct Between {
    site: &'static str,
    doing: Mutex<Vec<Box<dyn FnOnce() + Send>>>,
}

impl Between {
    fn at(site: &'static str) -> Arc<Self> {
        Arc::new(Self { site, ..Self::default() })
    }

    /// The last that is given is done first.
    fn give(&self, doing: impl AsyncFnOnce() + Send + 'static) {
        let runtime = tokio::runtime::Handle::current();
        self.doing.lock().unwrap().push(Box::new(move || runtime.block_on(doing())));
    }
}

impl Tap for Between {
    fn at(&self, site: &str, moment: Moment) -> Verdict {
        if site == self.site && moment == Moment::Before {
            let next = self.doing.lock().unwrap().pop();
            if let Some(next) = next {
                std::thread::spawn(next).join().unwrap();
            }
        }
        Verdict::Go
    }
}

/// A clone in whose set nothing is yet.
async fn allocated(server: &Server, name: &str, source: PodId) -> PodId {
    let copy = server.fork(name, source, None).await.unwrap().pod.id;
    while server.pod(copy).await.sets.is_empty() {
        assert_eq!(server.reconciler.pass(copy).await, Passed::Again);
    }
    copy
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sim_a_clone_whose_source_is_worked_on_does_not_keep_others_waiting() {
    let world = World::new(284);
    let between = Between::at("engine.observe");
    let server = world.server_with(Arc::clone(&between) as _).await;
    let source = machine(&world, &server, Backend::Overlay).await;
    let copy = allocated(&server, "copy", source).await;
    let reconciler = Arc::clone(&server.reconciler);
    let app = server.app.clone();
    between.give(async move || {
        assert!(matches!(reconciler.pass(copy).await, Passed::Wait(Some(_))));
        let record = app.store.pod_fetch(copy).await.unwrap().unwrap();
        assert_eq!((record.current, record.retry.count), (None, 0), "nothing failed");
    });
    server.reconciler.pass(source).await;
    assert!(between.doing.lock().unwrap().is_empty());
    server.settle(copy).await;
    assert_eq!(server.pod(copy).await.phase, Phase::Running);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sim_many_copies_leave_places_for_other_work() {
    let world = World::new(285);
    let between = Between::at("engine.set_copying");
    let server = world.server_with(Arc::clone(&between) as _).await;
    let mut copies = Vec::new();
    for n in 0..5 {
        let source = server.running(&format!("source-{n}"), declared_spec(Backend::Overlay)).await;
        copies.push(allocated(&server, &format!("copy-{n}"), source).await);
    }
    // Each is in work while the next begins.
    for copy in copies[1..].iter().rev().copied() {
        let reconciler = Arc::clone(&server.reconciler);
        between.give(async move || {
            reconciler.pass(copy).await;
        });
    }
    server.reconciler.pass(copies[0]).await;
    let mut made = Vec::new();
    for copy in &copies {
        made.push(server.pod(*copy).await.current.is_some());
    }
    assert_eq!(made, [true, true, true, true, false]);
    for copy in copies {
        server.settle(copy).await;
        assert_eq!(server.pod(copy).await.phase, Phase::Running);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sim_a_copy_gives_way_to_what_is_asked_of_its_source() {
    let world = World::with_copying(286, Some(Copying::Bytes));
    let between = Between::at("engine.set_prepare");
    let server = world.server_with(Arc::clone(&between) as _).await;
    let source = machine(&world, &server, Backend::Overlay).await;
    let expected = data(&world, source);
    let copy = allocated(&server, "copy", source).await;
    let app = server.app.clone();
    between.give(async move || {
        app.stop(Request::new(&Caller::admin()), source, &Consent::default()).await.unwrap();
    });
    assert!(matches!(server.reconciler.pass(copy).await, Passed::Wait(Some(_))));
    assert_eq!(server.pod(copy).await.current, None);
    // And does not begin before that is done.
    assert!(matches!(server.reconciler.pass(copy).await, Passed::Wait(Some(_))));
    server.settle_both(source, copy).await;
    assert_eq!(server.pod(source).await.phase, Phase::Stopped);
    assert_eq!(data(&world, copy), expected);
    assert_eq!(world.engine.violations(), [] as [String; 0]);
}

/// A schedule may ask for them more often than a long copy would be made.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sim_a_copy_gives_way_to_no_snapshot() {
    let world = World::with_copying(293, Some(Copying::Bytes));
    let between = Between::at("engine.set_prepare");
    let server = world.server_with(Arc::clone(&between) as _).await;
    let source = machine(&world, &server, Backend::Overlay).await;
    let copy = allocated(&server, "copy", source).await;
    let app = server.app.clone();
    between.give(async move || {
        app.snapshot_create(Request::new(&Caller::admin()), source, &Consent::default()).await.unwrap();
    });
    assert_eq!(server.reconciler.pass(copy).await, Passed::Again);
    assert!(server.pod(copy).await.current.is_some() && !server.pod(source).await.tasks.is_empty());
    server.settle(source).await;
    assert_eq!(server.snapshots(source).await.len(), 1);
}

#[tokio::test]
async fn sim_a_paused_source_that_somebody_still_writes_into_is_not_copied() {
    let world = World::new(279);
    let server = world.server().await;
    let source = machine(&world, &server, Backend::Overlay).await;
    server.succeed(server.pause(source).await).await;
    let process = world.engine.lingering_process(source, 1);
    let outcome = server.fork("copy", source, None).await.unwrap();
    for _ in 0..5 {
        server.reconciler.pass(outcome.pod.id).await;
    }
    assert_eq!(server.pod(outcome.pod.id).await.current, None);
    world.engine.write_lingering(&process, source, Backend::Overlay, ("srv", "late"), "2").unwrap();
    world.engine.foreign_remove(&process);
    server.settle(outcome.pod.id).await;
    assert_eq!(server.operation(outcome.operation.id).await.state, OperationState::Succeeded);
    let expected = data(&world, outcome.pod.id);
    assert!(expected.iter().any(|(path, _)| path == "/srv/late"), "{expected:?}");
    server.succeed(server.start(source).await).await;
    assert_eq!(data(&world, source), expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sim_a_paused_source_that_somebody_writes_into_meanwhile_is_copied_again() {
    let world = World::new(289);
    let between = Between::at("engine.set_snapshot");
    let server = world.server_with(Arc::clone(&between) as _).await;
    let source = machine(&world, &server, Backend::Overlay).await;
    server.succeed(server.pause(source).await).await;
    let copy = allocated(&server, "copy", source).await;
    let (engine, process) = (world.engine.clone(), Arc::new(Mutex::new(None)));
    let (writer, made) = (engine.clone(), Arc::clone(&process));
    between.give(async move || *made.lock().unwrap() = Some(writer.lingering_process(source, 1)));
    server.reconciler.pass(copy).await;
    let record = server.pod(copy).await;
    assert_eq!((record.current, record.retry.problem.map(|p| p.code)), (None, Some("clone-source-busy".to_owned())));
    let process = process.lock().unwrap().take().unwrap();
    engine.write_lingering(&process, source, Backend::Overlay, ("srv", "late"), "2").unwrap();
    engine.foreign_remove(&process);
    server.settle(copy).await;
    let made = data(&world, copy);
    assert!(made.iter().any(|(path, _)| path == "/srv/late"), "{made:?}");
    assert_eq!(engine.violations(), [] as [String; 0]);
}

#[tokio::test]
async fn sim_a_clone_tells_how_old_its_system_layer_is() {
    let world = World::new(290);
    let server = world.server().await;
    let source = machine(&world, &server, Backend::Overlay).await;
    server.snapshot_of(source).await;
    let made = async |name: &str| {
        let copy = allocated(&server, name, source).await;
        while server.pod(copy).await.current.is_none() {
            assert_eq!(server.reconciler.pass(copy).await, Passed::Again);
        }
        let (of_source, of_copy) = (server.pod(source).await, server.pod(copy).await);
        assert_eq!(of_copy.layer_gap, of_source.layer_gap, "{name}");
        (of_source, of_copy)
    };
    server.succeed(server.pause(source).await).await;
    world.engine.kill_container_outside(source).unwrap();
    world.clock.set(world.clock.now() + jiff::SignedDuration::from_hours(3));
    // From its newest capture, which is not of now.
    let (of_source, of_copy) = made("of-paused").await;
    assert_eq!(of_copy.layer.unwrap().captured_at, of_source.layer.unwrap().captured_at);
    // It runs again, and lacks what nobody captured: so does its copy.
    server.succeed(server.start(source).await).await;
    world.engine.kill_container_outside(source).unwrap();
    server.settle(source).await;
    let (of_source, _) = made("of-running").await;
    assert!(of_source.layer_gap.is_some());
}

/// Nothing else looks at a pod at rest for half a minute.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sim_a_source_of_which_a_snapshot_is_taken_after_all_is_woken() {
    let world = World::with_copying(291, None);
    let server = world.server().await;
    let source = machine(&world, &server, Backend::Overlay).await;
    let copy = server.fork("copy", source, None).await.unwrap().pod.id;
    let waker = Waker::default();
    let controller = Controller::start(Arc::clone(&server.reconciler), waker.clone());
    let taken = async {
        loop {
            let taken = server.snapshots(source).await;
            if taken.iter().any(|snapshot| snapshot.state == SnapshotState::Verified) {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    let taken = tokio::time::timeout(std::time::Duration::from_secs(20), taken).await;
    controller.shutdown().await;
    taken.unwrap();
    server.settle_both(source, copy).await;
    assert_eq!(server.pod(copy).await.phase, Phase::Running);
}

#[tokio::test]
async fn sim_a_clone_outlives_whatever_becomes_of_its_source() {
    for (seed, delete) in [(274, false), (275, true)] {
        let world = World::new(seed);
        let server = world.server().await;
        let source = machine(&world, &server, Backend::Overlay).await;
        let expected = data(&world, source);
        let outcome = server.fork("copy", source, None).await.unwrap();
        let copy = outcome.pod.id;
        // Before anything was copied.
        let gone = if delete { server.delete(source).await } else { server.stop(source).await };
        server.succeed(gone).await;
        server.settle(copy).await;
        assert_eq!(server.operation(outcome.operation.id).await.state, OperationState::Succeeded);
        assert_eq!(data(&world, copy), expected);
        assert_ne!(world.engine.read(copy, "/etc/machine-id").unwrap().unwrap(), MACHINE_ID.as_bytes());
        // And right after it.
        let again = cloned(&server, "again", copy, None).await;
        assert_eq!(server.settle(server.purge(copy).await.unwrap().pod.id).await, crate::world::Ended::Gone);
        assert_eq!(data(&world, again), expected);
        assert_eq!(world.engine.violations(), [] as [String; 0]);
    }
}

/// What its source's data is made to be after it was asked for is not its data.
#[tokio::test]
async fn sim_a_clone_has_the_data_of_when_it_was_asked_for_whatever_replaces_that() {
    for (seed, way) in [(281, "reset"), (282, "restore"), (283, "restore of what was stopped")] {
        let world = World::new(seed);
        let server = world.server().await;
        let source = machine(&world, &server, Backend::Overlay).await;
        let older = server.snapshot_of(source).await;
        world.engine.write(source, "/home/user/work", "asked for").unwrap();
        let expected = data(&world, source);
        let outcome = server.fork("copy", source, None).await.unwrap();
        let copy = outcome.pod.id;
        let replaced = match way {
            "reset" => server.reset(source).await,
            "restore" => server.restore(source, older).await,
            _ => {
                server.succeed(server.stop(source).await).await;
                server.restore(source, older).await
            }
        };
        server.succeed(replaced).await;
        server.settle(copy).await;
        let operation = server.operation(outcome.operation.id).await;
        assert_eq!(operation.state, OperationState::Succeeded, "{way}: {operation:?}");
        assert_eq!(data(&world, copy), expected, "{way}");
        assert_eq!(world.engine.violations(), [] as [String; 0], "{way}");
    }
}
