//! Clones: a copy of the data, with an identity of its own, that shares nothing with its source.

mod failures;
mod source;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use crate::world::{Server, World, declared_spec, files, universal_spec};
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
        assert_eq!(server.settle(server.purge(source).await.unwrap().pod.id).await, crate::world::Ended::Gone);
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
        assert_eq!(server.settle(server.purge(source).await.unwrap().pod.id).await, crate::world::Ended::Gone);
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
