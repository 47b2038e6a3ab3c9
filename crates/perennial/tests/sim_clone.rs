//! Clones: a copy of the data, with an identity of its own, that shares nothing with its source.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod world;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use perennial::reconcile::controller::{Controller, Waker};
use perennial::reconcile::worker::Passed;
use perennial::service::{Caller, CloneRequest, Consent, Request};
use perennial_core::Error;
use perennial_core::clock::Clock;
use perennial_core::engine::{Copying, Engine};
use perennial_core::fault::{Moment, Tap, Verdict};
use perennial_core::id::PodId;
use perennial_core::operation::OperationState;
use perennial_core::pod::{Identity, Phase};
use perennial_core::snapshot::{SnapshotKind, SnapshotState};
use perennial_core::spec::{Backend, PodName, PodSpec, PortSpec};
use perennial_core::volume::Origin;
use world::{Server, World, declared_spec, files, universal_spec};

const BACKENDS: [Backend; 2] = [Backend::Overlay, Backend::Engine];
const MACHINE_ID: &str = "0123456789abcdef0123456789abcdef\n";

/// A pod that was somebody's machine.
async fn machine(world: &World, server: &Server, backend: Backend) -> PodId {
    let pod = server.running("source", universal_spec(backend)).await;
    let write = |path: &str, text: &str| world.engine.write(pod, path, text).unwrap();
    write("/home/user/work", "1");
    write("/tools/layer", "1");
    write("/usr/lib/more", "1");
    world.engine.remove(pod, "/etc/motd").unwrap();
    write("/etc/machine-id", MACHINE_ID);
    write("/var/lib/dbus/machine-id", MACHINE_ID);
    write("/etc/ssh/ssh_host_ed25519_key", "of the source");
    write("/etc/ssh/ssh_host_ed25519_key.pub", "of the source");
    write("/etc/ssh/ssh_host_rsa_key", "of the source");
    write("/etc/ssh/sshd_config", "Port 22\n");
    pod
}

fn is_identity(path: &str) -> bool {
    path.ends_with("/machine-id") || path.contains("/ssh_host_")
}

/// Files that are no part of the identity.
fn data(world: &World, pod: PodId) -> Vec<(String, Vec<u8>)> {
    files(world, pod).into_iter().filter(|(path, _)| !is_identity(path)).collect()
}

async fn cloned(server: &Server, name: &str, source: PodId, snapshot: Option<perennial_core::id::SnapshotId>) -> PodId {
    let outcome = server.fork(name, source, snapshot).await.unwrap();
    let copy = outcome.pod.id;
    server.settle_both(source, copy).await;
    let operation = server.operation(outcome.operation.id).await;
    assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
    assert_eq!(server.pod(copy).await.phase, Phase::Running);
    copy
}

#[tokio::test]
async fn p27_sim_a_clone_has_the_data_and_another_identity() {
    for backend in BACKENDS {
        let world = World::new(270);
        let server = world.server().await;
        let source = machine(&world, &server, backend).await;
        let before = files(&world, source);
        let copy = cloned(&server, "copy", source, None).await;
        assert_eq!(data(&world, copy), data(&world, source), "{backend:?}");
        assert_eq!(files(&world, source), before, "the source changed");
        let read = |path: &str| world.engine.read(copy, path).unwrap();
        let id = read("/etc/machine-id").unwrap();
        assert!(id != MACHINE_ID.as_bytes() && id.len() == MACHINE_ID.len(), "{id:?}");
        assert_eq!(read("/var/lib/dbus/machine-id").unwrap(), id);
        let key = read("/etc/ssh/ssh_host_ed25519_key").unwrap();
        assert!(key.starts_with(b"-----BEGIN OPENSSH PRIVATE KEY-----"), "{key:?}");
        assert!(read("/etc/ssh/ssh_host_ed25519_key.pub").unwrap().starts_with(b"ssh-ed25519 "));
        assert_eq!(read("/etc/ssh/ssh_host_rsa_key"), None, "a key that cannot be made has to go");
        let page = perennial::store::EventFilter { pod: Some(copy), ..Default::default() };
        let trail = server.app.store.event_list(0, &page, 1000).await.unwrap();
        let made = if backend == Backend::Overlay { "pod.copied" } else { "snapshot.composed" };
        let said = trail.iter().find(|e| e.line.kind == made).unwrap();
        assert!(said.line.message.contains("removed") && said.line.message.contains("ssh_host_rsa_key"), "{said:?}");
        world.check_repository().unwrap();
    }
}

#[tokio::test]
async fn p26_sim_a_clone_shares_nothing_with_its_source() {
    for backend in BACKENDS {
        let world = World::new(260);
        let server = world.server().await;
        let source = machine(&world, &server, backend).await;
        let snapshot = server.snapshot_of(source).await;
        world.engine.write(source, "/home/user/work", "2").unwrap();
        let copy = cloned(&server, "copy", source, Some(snapshot)).await;
        assert_eq!(world.engine.read(copy, "/home/user/work").unwrap().unwrap(), b"1");
        world.engine.write(copy, "/home/user/work", "of the copy").unwrap();
        assert_eq!(world.engine.read(source, "/home/user/work").unwrap().unwrap(), b"2");
        // Not even in the repository.
        server.succeed(server.stop(copy).await).await;
        assert_eq!(server.settle(server.purge(source).await.unwrap().pod.id).await, world::Ended::Gone);
        server.succeed(server.start(copy).await).await;
        assert_eq!(world.engine.read(copy, "/home/user/work").unwrap().unwrap(), b"of the copy");
        world.check_repository().unwrap();
        assert_eq!(world.engine.violations(), [] as [String; 0]);
    }
}

#[tokio::test]
async fn sim_a_stopped_pod_is_cloned_from_its_final_snapshot_and_a_paused_one_from_a_new_one() {
    let world = World::new(261);
    let server = world.server().await;
    let source = machine(&world, &server, Backend::Overlay).await;
    let expected = data(&world, source);
    server.succeed(server.pause(source).await).await;
    let copy = cloned(&server, "of-paused", source, None).await;
    assert_eq!(data(&world, copy), expected);
    assert_eq!(server.pod(source).await.phase, Phase::Paused);
    server.succeed(server.stop(source).await).await;
    let known = server.snapshots(source).await.len();
    let copy = cloned(&server, "of-stopped", source, None).await;
    assert_eq!(data(&world, copy), expected);
    assert_eq!(server.snapshots(source).await.len(), known, "nothing had to be taken");
    // And a clone of a clone has yet another identity.
    let again = cloned(&server, "again", copy, None).await;
    let id = |pod| world.engine.read(pod, "/etc/machine-id").unwrap().unwrap();
    assert_ne!(id(again), id(copy));
    assert_eq!(data(&world, again), expected);
}

#[tokio::test]
async fn sim_what_of_an_identity_the_image_carries_stays_and_a_kept_one_is_kept() {
    use perennial_drivers::sim::SimImage;
    let image = SimImage::standard().file("/etc/machine-id", MACHINE_ID).file("/etc/ssh/ssh_host_rsa_key", "baked in");
    let world = World::with(262, &image);
    let server = world.server().await;
    let source = server.running("source", universal_spec(Backend::Overlay)).await;
    let copy = cloned(&server, "copy", source, None).await;
    assert_eq!(files(&world, copy), files(&world, source));
    let plain = World::new(263);
    let server = plain.server().await;
    let source = machine(&plain, &server, Backend::Overlay).await;
    let name = PodName::parse("twin").unwrap();
    let clone = CloneRequest { name, snapshot: None, identity: Identity::Kept };
    let twin = server.app.clone_pod(Request::new(&Caller::admin()), source, &clone).await.unwrap().pod.id;
    server.settle_both(source, twin).await;
    assert_eq!(files(&plain, twin), files(&plain, source));
}

#[tokio::test]
async fn sim_a_clone_takes_the_specification_over_but_for_ports_of_the_host() {
    let world = World::new(264);
    let server = world.server().await;
    let ports = vec![PortSpec { container: 80, host: Some(8080) }];
    let env = [("A".to_owned(), "1".to_owned())].into();
    let spec = PodSpec { ports, env, ..declared_spec(Backend::Overlay) };
    let source = server.running("source", spec.clone()).await;
    world.engine.write(source, "/srv/a", "1").unwrap();
    let copy = cloned(&server, "copy", source, None).await;
    let ports = vec![PortSpec { container: 80, host: None }];
    assert_eq!(server.pod(copy).await.spec, PodSpec { ports, ..spec });
    assert_eq!(world.engine.read(copy, "/srv/a").unwrap().unwrap(), b"1");
    // Nothing had to be taken for it.
    assert_eq!((server.snapshots(copy).await.len(), server.snapshots(source).await.len()), (0, 0));
}

#[tokio::test]
async fn d13_sim_a_clone_is_limited_as_its_source_is() {
    for copying in WAYS {
        let world = World::with_copying(292, copying);
        let server = world.server().await;
        let mut spec = universal_spec(Backend::Overlay);
        spec.resources.disk = Some(1 << 30);
        let source = server.running("source", spec).await;
        world.engine.write(source, "/home/user/work", "1").unwrap();
        let copy = cloned(&server, "copy", source, None).await;
        let limits = (world.engine.limit_of(source), world.engine.limit_of(copy));
        assert_eq!(limits, (Some(1 << 30), Some(1 << 30)), "{copying:?}");
        assert_eq!(data(&world, copy), data(&world, source), "{copying:?}");
    }
}

#[tokio::test]
async fn sim_a_clone_on_engine_volumes_is_put_together_in_the_repository() {
    let world = World::new(271);
    let server = world.server().await;
    let source = server.running("source", declared_spec(Backend::Engine)).await;
    world.engine.write(source, "/srv/a", "1").unwrap();
    let copy = cloned(&server, "copy", source, None).await;
    assert_eq!(world.engine.read(copy, "/srv/a").unwrap().unwrap(), b"1");
    let own = server.snapshots(copy).await;
    assert!(own.len() == 1 && own[0].kind == SnapshotKind::Composed, "{own:?}");
}

const WAYS: [Option<Copying>; 4] = [Some(Copying::Instant), Some(Copying::Shared), Some(Copying::Bytes), None];

#[tokio::test]
async fn p27_sim_a_clone_is_the_same_whichever_way_its_data_came() {
    for copying in WAYS {
        let world = World::with_copying(272, copying);
        let server = world.server().await;
        let source = machine(&world, &server, Backend::Overlay).await;
        let expected = data(&world, source);
        let copy = cloned(&server, "copy", source, None).await;
        assert_eq!(data(&world, copy), expected, "{copying:?}");
        assert_ne!(world.engine.read(copy, "/etc/machine-id").unwrap().unwrap(), MACHINE_ID.as_bytes());
        assert_eq!(world.engine.read(copy, "/etc/ssh/ssh_host_rsa_key").unwrap(), None);
        let taken = server.snapshots(source).await.len();
        assert_eq!(taken, usize::from(copying.is_none()), "{copying:?}");
        // What no snapshot holds is captured before it goes, and comes back.
        server.succeed(server.stop(copy).await).await;
        assert_eq!(server.settle(server.purge(source).await.unwrap().pod.id).await, world::Ended::Gone);
        server.succeed(server.start(copy).await).await;
        assert_eq!(data(&world, copy), expected, "{copying:?}");
        world.check_repository().unwrap();
        assert_eq!(world.engine.violations(), [] as [String; 0], "{copying:?}");
    }
}

/// Does something to the source at the moment it is told to stand still.
struct Meanwhile(Box<dyn Fn() + Send + Sync>);

impl std::fmt::Debug for Meanwhile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Meanwhile")
    }
}

impl Tap for Meanwhile {
    fn at(&self, site: &str, moment: Moment) -> Verdict {
        if site == "engine.container_freeze" && moment == Moment::Before {
            (self.0)();
        }
        Verdict::Go
    }
}

#[tokio::test]
async fn sim_a_clone_is_of_the_instant_at_which_its_source_stood_still() {
    for copying in WAYS {
        let world = World::with_copying(273, copying);
        let source = machine(&world, &world.server().await, Backend::Overlay).await;
        let engine = world.engine.clone();
        let change = move || {
            engine.write(source, "/home/user/work", "2").unwrap();
            engine.write(source, "/home/new/deep/file", "2").unwrap();
            engine.write(source, "/tools/later", "2").unwrap();
            engine.remove(source, "/usr/lib/more").unwrap();
        };
        let server = world.server_with(Arc::new(Meanwhile(Box::new(change)))).await;
        let copy = cloned(&server, "copy", source, None).await;
        assert_eq!(data(&world, copy), data(&world, source), "{copying:?}");
        let read = |path: &str| world.engine.read(copy, path).unwrap();
        assert_eq!(read("/home/user/work").unwrap(), b"2", "{copying:?}");
        assert_eq!((read("/usr/lib/more"), read("/tools/later").unwrap()), (None, b"2".to_vec()), "{copying:?}");
        assert_eq!(server.pod(source).await.phase, Phase::Running);
    }
}

#[tokio::test]
async fn p12_sim_a_clone_whose_source_would_stand_still_for_too_long_is_made_by_a_snapshot() {
    let mut world = World::with_copying(280, Some(Copying::Bytes));
    let limit = std::mem::take(&mut world.policy.freeze_limit);
    let server = world.server().await;
    let source = machine(&world, &server, Backend::Overlay).await;
    let outcome = server.fork("copy", source, None).await.unwrap();
    let copy = outcome.pod.id;
    server.settle(copy).await;
    assert!(matches!(server.pod(copy).await.source, Some(Origin::Snapshot(_))), "{:?}", server.pod(copy).await.failed);
    let seen = world.engine.observe(source, &[]).await.unwrap().container.unwrap();
    assert_eq!(seen.state, perennial_core::engine::ContainerState::Running);
    // It reads less in the freeze than the copy, and is given the time here.
    world.policy.freeze_limit = limit;
    let server = world.server().await;
    server.settle_both(source, copy).await;
    assert_eq!(server.operation(outcome.operation.id).await.state, OperationState::Succeeded);
    assert_eq!(data(&world, copy), data(&world, source));
    assert_eq!(world.engine.violations(), [] as [String; 0]);
}

/// Looks at the source again and again, as whatever wakes it does, until the clone runs.
#[tokio::test]
async fn sim_a_source_is_left_alone_while_it_is_copied() {
    for copying in [Copying::Instant, Copying::Bytes] {
        let world = World::with_copying(278, Some(copying));
        let server = world.server().await;
        let source = machine(&world, &server, Backend::Overlay).await;
        let outcome = server.fork("copy", source, None).await.unwrap();
        let copy = outcome.pod.id;
        let over = AtomicBool::new(false);
        let look = async {
            while !over.load(Ordering::SeqCst) {
                server.reconciler.pass(source).await;
                tokio::task::yield_now().await;
            }
        };
        let make = async {
            while !server.operation(outcome.operation.id).await.state.is_terminal() {
                server.settle(copy).await;
                tokio::task::yield_now().await;
            }
            over.store(true, Ordering::SeqCst);
        };
        tokio::join!(look, make);
        assert_eq!(server.operation(outcome.operation.id).await.state, OperationState::Succeeded, "{copying:?}");
        assert_eq!(data(&world, copy), data(&world, source), "{copying:?}");
        assert_eq!(server.pod(copy).await.retry.count, 0, "{copying:?}");
        assert_eq!(world.engine.violations(), [] as [String; 0], "{copying:?}");
    }
}

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
        assert_eq!(server.settle(server.purge(copy).await.unwrap().pod.id).await, world::Ended::Gone);
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

#[tokio::test]
async fn sim_a_clone_of_a_pod_that_was_purged_meanwhile_fails_and_leaves_nothing() {
    let world = World::new(276);
    let server = world.server().await;
    let source = machine(&world, &server, Backend::Overlay).await;
    let outcome = server.fork("copy", source, None).await.unwrap();
    assert_eq!(server.settle(server.purge(source).await.unwrap().pod.id).await, world::Ended::Gone);
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
