//! Clones that cannot be made, or not at once.

use super::*;

#[tokio::test]
async fn sim_a_clone_of_a_pod_that_was_purged_meanwhile_fails_and_leaves_nothing() {
    let world = World::new(276);
    let server = world.server().await;
    let source = machine(&world, &server, Backend::Overlay).await;
    let outcome = server.fork("copy", source, None).await.unwrap();
    assert_eq!(server.settle(server.purge(source).await.unwrap().pod.id).await, crate::world::Ended::Gone);
    server.settle(outcome.pod.id).await;
    let operation = server.operation(outcome.operation.id).await;
    assert_eq!(operation.error.map(|e| e.code), Some("clone-source-failed".to_owned()));
    assert_eq!(world.engine.list_owned().await.unwrap(), []);
}

#[tokio::test]
async fn sim_a_clone_without_room_leaves_nothing_and_its_source_goes_on() {
    for copying in [Some(Copying::Instant), Some(Copying::Bytes)] {
        let world = World::with_copying(277, copying);
        let server = world.server().await;
        let source = machine(&world, &server, Backend::Overlay).await;
        let before = (files(&world, source), world.engine.list_owned().await.unwrap());
        let outcome = server.fork("copy", source, None).await.unwrap();
        world.engine.set_faults(perennial_drivers::sim::Faults { disk_full: 1.0, ..Default::default() });
        server.settle(outcome.pod.id).await;
        assert_eq!(server.operation(outcome.operation.id).await.state, OperationState::Failed, "{copying:?}");
        world.engine.set_faults(perennial_drivers::sim::Faults::default());
        server.settle_both(source, outcome.pod.id).await;
        assert_eq!((files(&world, source), world.engine.list_owned().await.unwrap()), before, "{copying:?}");
        let seen = world.engine.observe(source, &[]).await.unwrap().container.unwrap();
        assert_eq!(seen.state, perennial_core::engine::ContainerState::Running, "{copying:?}");
        // With room it is made by a later start.
        server.succeed(server.start(outcome.pod.id).await).await;
        assert_eq!(data(&world, outcome.pod.id), data(&world, source), "{copying:?}");
    }
}

/// Refuses copies at one instant, and the first writes to a repository after one.
#[derive(Debug, Default)]
struct Refusing {
    copies: bool,
    writes: AtomicU32,
    tried: AtomicU32,
}

impl Tap for Refusing {
    fn at(&self, site: &str, moment: Moment) -> Verdict {
        let copied = self.tried.load(Ordering::SeqCst) > 0;
        let refused = match (site, moment) {
            ("engine.set_snapshot", Moment::Before) => {
                self.tried.fetch_add(1, Ordering::SeqCst);
                self.copies
            }
            ("repository.write", Moment::Before) if copied => {
                let less = |left: u32| left.checked_sub(1);
                self.writes.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_ok()
            }
            _ => false,
        };
        if refused { Verdict::Fail } else { Verdict::Go }
    }
}

#[tokio::test]
async fn sim_a_storage_that_does_not_copy_at_once_after_all_is_copied_file_by_file() {
    let world = World::new(287);
    let refusing = Arc::new(Refusing { copies: true, ..Refusing::default() });
    let server = world.server_with(Arc::clone(&refusing) as _).await;
    let source = machine(&world, &server, Backend::Overlay).await;
    let copy = cloned(&server, "copy", source, None).await;
    assert_eq!(refusing.tried.load(Ordering::SeqCst), 2);
    assert_eq!(data(&world, copy), data(&world, source));
    assert_eq!(server.snapshots(source).await.len(), 0);
    assert_eq!(world.engine.violations(), [] as [String; 0]);
}

#[tokio::test]
async fn sim_a_copy_is_not_made_again_because_its_layer_was_not_stored_at_once() {
    let world = World::new(288);
    let refusing = Arc::new(Refusing { writes: AtomicU32::new(2), ..Refusing::default() });
    let server = world.server_with(Arc::clone(&refusing) as _).await;
    let source = machine(&world, &server, Backend::Overlay).await;
    let copy = cloned(&server, "copy", source, None).await;
    let left = (refusing.writes.load(Ordering::SeqCst), refusing.tried.load(Ordering::SeqCst));
    assert_eq!(left, (0, 1));
    assert_eq!(data(&world, copy), data(&world, source));
    world.check_repository().unwrap();
}

#[tokio::test]
async fn sim_clones_that_cannot_be_are_refused_and_leave_nothing() {
    let world = World::new(265);
    let server = world.server().await;
    let source = machine(&world, &server, Backend::Overlay).await;
    let other = server.running("other", declared_spec(Backend::Overlay)).await;
    let of_other = server.snapshot_of(other).await;
    let code = |result: Result<_, Error>| match result {
        Err(Error::Conflict { code, .. }) => code.to_owned(),
        Err(Error::InvalidInput { field, .. }) => field,
        other => panic!("{other:?}"),
    };
    assert_eq!(code(server.fork("other", source, None).await.map(drop)), "pod-name-taken");
    assert!(server.pod(source).await.tasks.is_empty(), "a refused clone left work behind");
    assert_eq!(code(server.fork("copy", source, Some(of_other)).await.map(drop)), "snapshotId");
    let never = server.create("never", universal_spec(Backend::Overlay)).await.unwrap().pod.id;
    assert_eq!(code(server.fork("copy", never, None).await.map(drop)), "pod-never-ran");
    server.settle(never).await;
    server.succeed(server.delete(source).await).await;
    assert_eq!(code(server.fork("copy", source, None).await.map(drop)), "pod-deleted");
    assert_eq!(server.app.store.pod_ids().await.unwrap().len(), 3);
}

#[tokio::test]
async fn sim_a_clone_whose_snapshot_fails_says_so_and_never_starts() {
    let world = World::new(266);
    let server = world.server().await;
    let source = machine(&world, &server, Backend::Engine).await;
    let outcome = server.fork("copy", source, None).await.unwrap();
    // The stop takes the place of the snapshot that the clone waits for.
    server.succeed(server.stop(source).await).await;
    let copy = outcome.pod.id;
    server.settle(copy).await;
    let operation = server.operation(outcome.operation.id).await;
    assert_eq!(operation.state, OperationState::Failed, "{operation:?}");
    assert_eq!(operation.error.unwrap().code, "clone-source-failed");
    let record = server.pod(copy).await;
    assert!(record.sets.is_empty() && record.container.is_none(), "{record:?}");
    server.succeed(server.delete(copy).await).await;
}

/// A repository that takes nothing for as long as this is set.
#[derive(Debug, Default)]
struct Full(AtomicBool);

impl Tap for Full {
    fn at(&self, site: &str, moment: Moment) -> Verdict {
        let refuses = site == "repository.write" && moment == Moment::Before && self.0.load(Ordering::SeqCst);
        if refuses { Verdict::Fail } else { Verdict::Go }
    }
}

#[tokio::test]
async fn sim_a_clone_that_failed_is_made_by_a_later_start() {
    let world = World::new(267);
    let full = Arc::new(Full::default());
    let server = world.server_with(Arc::clone(&full) as _).await;
    let source = machine(&world, &server, Backend::Overlay).await;
    let expected = data(&world, source);
    server.succeed(server.stop(source).await).await;
    let outcome = server.fork("copy", source, None).await.unwrap();
    let copy = outcome.pod.id;
    full.0.store(true, Ordering::SeqCst);
    server.settle(copy).await;
    assert_eq!(server.operation(outcome.operation.id).await.state, OperationState::Failed);
    let states = async || server.snapshots(copy).await.into_iter().map(|s| s.state).collect::<Vec<_>>();
    assert_eq!(states().await, [SnapshotState::Failed]);
    full.0.store(false, Ordering::SeqCst);
    server.succeed(server.start(copy).await).await;
    assert_eq!(data(&world, copy), expected);
    assert_ne!(world.engine.read(copy, "/etc/machine-id").unwrap().unwrap(), MACHINE_ID.as_bytes());
}

#[tokio::test]
async fn sim_a_cancelled_clone_leaves_nothing_pending_and_is_made_by_a_later_start() {
    let world = World::new(268);
    let server = world.server().await;
    let source = machine(&world, &server, Backend::Overlay).await;
    let expected = data(&world, source);
    server.succeed(server.stop(source).await).await;
    let outcome = server.fork("copy", source, None).await.unwrap();
    let copy = outcome.pod.id;
    while server.snapshots(copy).await.is_empty() {
        server.reconciler.pass(copy).await;
    }
    server.app.cancel(Request::new(&Caller::admin()), outcome.operation.id).await.unwrap();
    server.settle(copy).await;
    let states: Vec<_> = server.snapshots(copy).await.into_iter().map(|s| s.state).collect();
    assert_eq!(states, [SnapshotState::Failed]);
    server.succeed(server.start(copy).await).await;
    assert_eq!(data(&world, copy), expected);
}

#[tokio::test]
async fn sim_a_clone_of_a_machine_with_too_many_host_keys_fails_and_names_one() {
    let world = World::new(269);
    let server = world.server().await;
    let source = machine(&world, &server, Backend::Overlay).await;
    // The machine has three files of host keys already.
    let write = |n: usize| world.engine.write(source, &format!("/etc/ssh/ssh_host_{n:02}_key"), "x").unwrap();
    (3..64).for_each(write);
    cloned(&server, "copy", source, None).await;
    write(64);
    let outcome = server.fork("another", source, None).await.unwrap();
    server.settle_both(source, outcome.pod.id).await;
    let operation = server.operation(outcome.operation.id).await;
    let problem = operation.error.unwrap();
    assert!(problem.code == "identity-too-large" && problem.message.contains("/etc/ssh/ssh_host_"), "{problem:?}");
    assert!(problem.hint.contains("--keep-identity"), "{problem:?}");
}
