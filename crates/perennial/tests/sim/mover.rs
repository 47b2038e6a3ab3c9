//! Volumes that only a mover reaches, and pods that move from one volume backend to the other, on the simulator.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::world::{Server, World, files, universal_spec};
use perennial_core::engine::Engine;
use perennial_core::id::PodId;
use perennial_core::operation::OperationState;
use perennial_core::pod::Phase;
use perennial_core::snapshot::SnapshotState;
use perennial_core::spec::Backend;
use perennial_drivers::sim::SimMover;

const BOTH: [Backend; 2] = [Backend::Overlay, Backend::Engine];

fn write(world: &World, pod: PodId, mark: &str) {
    for path in
        ["/workspace/a", "/home/b", "/root/c", "/etc/d", "/usr/local/e", "/opt/f", "/var/g", "/srv/h/i", "/new/j"]
    {
        world.engine.write(pod, path, format!("{mark} {path}")).unwrap();
    }
}

#[tokio::test]
async fn sim_a_mover_does_everything_that_the_server_would() {
    let world = World::with_mover(1, perennial::mover::simulated());
    let server = world.server().await;
    let pod = server.running("dev", universal_spec(Backend::Engine)).await;
    write(&world, pod, "one");
    assert!(world.engine.remove(pod, "/etc/motd").unwrap());
    let first = files(&world, pod);
    server.succeed(server.snapshot(pod).await).await;
    let taken = server.snapshots(pod).await.pop().unwrap();
    assert_eq!(taken.state, SnapshotState::Verified);
    assert!(taken.files.unwrap() >= 9 && taken.volumes.iter().all(|v| v.files.is_some()), "{taken:?}");
    write(&world, pod, "two");
    assert!(world.engine.remove(pod, "/srv/h").unwrap());
    let second = files(&world, pod);
    for _ in 0..2 {
        server.succeed(server.stop(pod).await).await;
        assert!(world.engine.list_owned().await.unwrap().is_empty());
        server.succeed(server.start(pod).await).await;
        assert_eq!(files(&world, pod), second);
    }
    server.succeed(server.restore(pod, taken.id).await).await;
    assert_eq!(files(&world, pod), first);
    server.succeed(server.delete(pod).await).await;
    server.succeed(server.undelete(pod).await).await;
    server.succeed(server.start(pod).await).await;
    assert_eq!(files(&world, pod), first);
    assert_eq!(world.engine.violations(), Vec::<String>::new());
}

/// Lets a mover read so many bytes of what the server says, and then die.
struct Mortal {
    inner: UnixStream,
    left: usize,
}

impl Read for Mortal {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = buffer.len().min(self.left);
        let read = self.inner.read(&mut buffer[..count])?;
        self.left -= read;
        Ok(read)
    }
}

#[tokio::test]
async fn sim_movers_that_die_cost_tries_and_nothing_else() {
    let opened = Arc::new(AtomicUsize::new(0));
    let mover = SimMover::new({
        let opened = Arc::clone(&opened);
        move |input, output| {
            let before = opened.fetch_add(1, Ordering::SeqCst);
            // Two of three die, each a bit later than the one before.
            let left = if before % 3 == 2 { usize::MAX } else { before * 150 };
            // How it ends is the server's to notice.
            let _ = perennial_snapshots::remote::serve(Mortal { inner: input, left }, output, |_| true);
        }
    });
    let world = World::with_mover(1, mover);
    let server = world.server().await;
    let pod = server.running("dev", universal_spec(Backend::Engine)).await;
    for round in 0..6 {
        write(&world, pod, &format!("round {round}"));
        let before = files(&world, pod);
        server.succeed(server.stop(pod).await).await;
        server.succeed(server.start(pod).await).await;
        assert_eq!(files(&world, pod), before, "round {round}");
    }
    assert!(opened.load(Ordering::SeqCst) > 24, "{opened:?} movers");
    assert_eq!(world.engine.violations(), Vec::<String>::new());
}

// ---- from one backend to the other ---------------------------------------------------------------------------------

fn other(backend: Backend) -> Backend {
    if backend == Backend::Overlay { Backend::Engine } else { Backend::Overlay }
}

/// What a pod may do to directories that are volumes on one backend and system layer on the other.
fn change(world: &World, pod: PodId) {
    write(world, pod, "moved");
    for path in ["/usr/bin/tool", "/usr/lib/tool/data", "/bin/tool", "/tools/tool"] {
        world.engine.write(pod, path, path).unwrap();
    }
    for path in ["/usr/lib/data", "/etc/skel", "/var/lib/seed/a"] {
        assert!(world.engine.remove(pod, path).unwrap(), "{path}");
    }
}

async fn keeps(world: &World, server: &Server, pod: PodId, expected: &BTreeMap<String, Vec<u8>>, when: &str) {
    assert_eq!(&files(world, pod), expected, "{when}");
    // The layer put back is the pod's own from here on: a lost container comes back with it.
    world.engine.kill_container_outside(pod).unwrap();
    server.settle(pod).await;
    assert_eq!(server.pod(pod).await.phase, Phase::Running, "{when}");
    assert_eq!(&files(world, pod), expected, "{when}, after its container was lost");
    server.succeed(server.stop(pod).await).await;
    server.succeed(server.start(pod).await).await;
    assert_eq!(&files(world, pod), expected, "{when}, after stop and start");
}

async fn moves(world: &World, from: Backend) {
    let server = world.server().await;
    let pod = server.running("first", universal_spec(from)).await;
    change(world, pod);
    let expected = files(world, pod);
    server.succeed(server.snapshot(pod).await).await;
    let mut snapshot = server.snapshots(pod).await.pop().unwrap().id;
    let mut backend = from;
    // There, back, and there again.
    for name in ["second", "third", "fourth"] {
        backend = other(backend);
        let outcome = server.clone_to(name, snapshot, backend).await.unwrap();
        let copy = outcome.pod.id;
        server.succeed(Ok(outcome)).await;
        let record = server.pod(copy).await;
        assert_eq!(record.current_set().unwrap().backend, backend);
        keeps(world, &server, copy, &expected, &format!("{name}, on {backend:?}")).await;
        assert!(world.engine.remove(copy, "/usr/lib/tool/data").unwrap());
        world.engine.write(copy, "/usr/lib/tool/data", "/usr/lib/tool/data").unwrap();
        server.succeed(server.snapshot(copy).await).await;
        snapshot = server.snapshots(copy).await.into_iter().find(|s| s.is_restorable()).unwrap().id;
    }
    assert_eq!(world.engine.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn sim_a_pod_moves_from_one_backend_to_the_other_and_back() {
    for backend in BOTH {
        moves(&World::new(1), backend).await;
    }
}

#[tokio::test]
async fn sim_a_pod_moves_between_backends_by_mover() {
    for backend in BOTH {
        moves(&World::with_mover(1, perennial::mover::simulated()), backend).await;
    }
}

/// What is no directory in the snapshot cannot be a volume: that is refused, and nothing is made.
#[tokio::test]
async fn sim_a_directory_that_became_something_else_does_not_move() {
    let world = World::new(1);
    let server = world.server().await;
    let pod = server.running("first", universal_spec(Backend::Engine)).await;
    assert!(world.engine.remove(pod, "/usr/lib").unwrap());
    assert!(world.engine.remove(pod, "/bin").unwrap());
    world.engine.write(pod, "/bin", "a file").unwrap();
    server.succeed(server.snapshot(pod).await).await;
    let snapshot = server.snapshots(pod).await.pop().unwrap().id;
    let outcome = server.clone_to("second", snapshot, Backend::Overlay).await.unwrap();
    server.work(outcome.pod.id).await;
    let operation = server.operation(outcome.operation.id).await;
    assert_eq!(operation.state, OperationState::Failed);
    assert_eq!(operation.error.unwrap().code, "volume-unplaced");
    assert_eq!(world.engine.violations(), Vec::<String>::new());
}
