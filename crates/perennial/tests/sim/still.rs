//! Snapshots that are read from a still: the pod goes on meanwhile, what it writes then is not in them, and nothing stays behind.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;

use crate::world::taps::{Blow, Striker};
use crate::world::{Ended, Server, World, files, small_spec};
use jiff::SignedDuration;
use perennial::service::{Caller, Request};
use perennial_core::engine::{ContainerState, Engine};
use perennial_core::fault::{Moment, Tap, Verdict};
use perennial_core::id::{PodId, SnapshotId};
use perennial_core::operation::OperationState;
use perennial_core::permit::Ground;
use perennial_core::snapshot::{Grade, SnapshotState};
use perennial_core::spec::Backend;
use perennial_drivers::sim::{Deleted, Faults, SimEngine};

/// Writes as soon as the pod goes on, and notes how many stills there were and how many were read.
struct Later {
    engine: SimEngine,
    pod: Mutex<Option<PodId>>,
    seen: Mutex<Vec<(usize, usize)>>,
}

impl Later {
    fn new(world: &World) -> Arc<Self> {
        Arc::new(Self { engine: world.engine.clone(), pod: Mutex::default(), seen: Mutex::default() })
    }
}

impl Tap for Later {
    fn at(&self, site: &str, moment: Moment) -> Verdict {
        let pod = *self.pod.lock().unwrap();
        if let (Some(pod), "engine.container_unfreeze", Moment::After) = (pod, site, moment) {
            self.seen.lock().unwrap().push(self.engine.stills());
            self.engine.write(pod, "/srv/kept", "later").unwrap();
            self.engine.write(pod, "/srv/new", "later").unwrap();
            self.engine.write(pod, "/tools/layer", "later").unwrap();
            self.engine.remove(pod, "/srv/gone").unwrap();
        }
        Verdict::Go
    }
}

async fn with_data(world: &World, server: &Server) -> PodId {
    let pod = server.running("dev", small_spec(Backend::Overlay)).await;
    for (path, text) in [("/srv/kept", "1"), ("/srv/gone", "1"), ("/home/kept", "1"), ("/tools/layer", "1")] {
        world.engine.write(pod, path, text).unwrap();
    }
    pod
}

/// Takes a snapshot, which has to be of a running pod, and shows what a restore of it gives.
async fn taken(world: &World, server: &Server, pod: PodId) -> (SnapshotId, BTreeMap<String, Vec<u8>>) {
    let id = server.snapshot_of(pod).await;
    let row = server.snapshots(pod).await.into_iter().find(|s| s.id == id).unwrap();
    assert_eq!((row.state, row.grade), (SnapshotState::Verified, Some(Grade::Frozen)));
    assert!(row.frozen_millis.is_some());
    let copy = server.clone_of(&format!("copy-{}", world.engine.calls()), id, small_spec(Backend::Overlay)).await;
    (id, files(world, copy))
}

#[tokio::test]
async fn sim_what_a_pod_writes_after_the_thaw_is_not_in_the_snapshot_that_is_read_from_a_still() {
    let world = World::new(311);
    let pod = with_data(&world, &world.server().await).await;
    let later = Later::new(&world);
    *later.pod.lock().unwrap() = Some(pod);
    let before = files(&world, pod);
    let server = world.server_with(Arc::clone(&later) as _).await;
    let (_, stored) = taken(&world, &server, pod).await;
    assert_eq!(stored, before);
    // It was read when the pod wrote again.
    assert_eq!(*later.seen.lock().unwrap(), [(1, 1)]);
    assert_eq!(world.engine.stills(), (0, 0));
    let deleted: Vec<_> = world.engine.deletions().into_iter().filter(|d| d.what == Deleted::Still(1)).collect();
    assert!(deleted.len() == 1 && deleted[0].permit.ground() == &Ground::Scratch, "{deleted:?}");
    assert_eq!(world.engine.violations(), [] as [String; 0]);
    world.check_repository().unwrap();
}

/// Whatever becomes of the still: the snapshot is as good, and what was made of it goes.
#[tokio::test]
async fn sim_a_still_that_cannot_be_made_has_the_data_read_in_the_freeze() {
    for blow in [Blow::FailBefore, Blow::LoseAnswer, Blow::Hang] {
        let mut world = World::new(312);
        world.policy.freeze_limit = SignedDuration::from_secs(4);
        let pod = with_data(&world, &world.server().await).await;
        let before = files(&world, pod);
        let striker = Arc::new(Striker::at_site(blow, "engine.set_still"));
        let server = world.server_with(Arc::clone(&striker) as _).await;
        let (_, stored) = taken(&world, &server, pod).await;
        assert_eq!(stored, before, "{blow:?}");
        let asked = striker.passed();
        let times = |site: &str| asked.iter().filter(|s| *s == site).count();
        // At the first try.
        assert_eq!((times("engine.set_still"), times("engine.container_freeze")), (1, 1), "{blow:?}: {asked:?}");
        assert_eq!(world.engine.stills(), (0, 0), "{blow:?}");
    }
    for faults in [Faults { disk_full: 1.0, ..Faults::default() }, Faults { halfway: 1.0, ..Faults::default() }] {
        let world = World::new(313);
        let server = world.server().await;
        let pod = with_data(&world, &server).await;
        // Nothing else that is done for it can find the disk full: the image is stored.
        server.snapshot_of(pod).await;
        world.engine.write(pod, "/srv/kept", "2").unwrap();
        let before = files(&world, pod);
        world.engine.set_faults(faults.clone());
        let id = server.snapshot_of(pod).await;
        world.engine.set_faults(Faults::default());
        assert_eq!(world.engine.stills(), (0, 0), "{faults:?}");
        let copy = server.clone_of("copy", id, small_spec(Backend::Overlay)).await;
        assert_eq!(files(&world, copy), before, "{faults:?}");
        assert_eq!(world.engine.violations(), [] as [String; 0]);
    }
}

#[tokio::test]
async fn sim_a_still_that_does_not_go_costs_no_snapshot_and_goes_with_the_next() {
    for blow in [Blow::FailBefore, Blow::LoseAnswer, Blow::Hang] {
        let world = World::new(314);
        let pod = with_data(&world, &world.server().await).await;
        let server = world.server_with(Arc::new(Striker::at_site(blow, "engine.stills_sweep"))).await;
        server.snapshot_of(pod).await;
        let left = if blow == Blow::LoseAnswer { 0 } else { 1 };
        assert_eq!(world.engine.stills(), (left, 0), "{blow:?}");
        server.snapshot_of(pod).await;
        assert_eq!(world.engine.stills(), (0, 0), "{blow:?}");
    }
}

/// A still is data of its pod: it does not outlive the set that it is of.
#[tokio::test]
async fn sim_a_still_that_was_left_behind_goes_with_its_set() {
    for purged in [false, true] {
        let world = World::new(315);
        let pod = with_data(&world, &world.server().await).await;
        let server = world.server_with(Arc::new(Striker::at_site(Blow::FailBefore, "engine.stills_sweep"))).await;
        server.snapshot_of(pod).await;
        assert_eq!(world.engine.stills(), (1, 0));
        let server = world.server().await;
        if purged {
            assert_eq!(server.settle(server.purge(pod).await.unwrap().pod.id).await, Ended::Gone);
        } else {
            server.succeed(server.stop(pod).await).await;
        }
        assert_eq!(world.engine.stills(), (0, 0), "purged: {purged}");
        assert_eq!(world.engine.violations(), [] as [String; 0]);
    }
}

/// What stands still anyway is read where it is.
#[tokio::test]
async fn sim_no_still_is_made_of_a_pod_that_does_not_run() {
    let world = World::new(316);
    let counting = Arc::new(Striker::new(Blow::Count, usize::MAX - 1));
    let server = world.server_with(Arc::clone(&counting) as _).await;
    let pod = with_data(&world, &server).await;
    server.succeed(server.pause(pod).await).await;
    server.snapshot_of(pod).await;
    server.succeed(server.stop(pod).await).await;
    let asked = counting.passed();
    assert!(!asked.iter().any(|site| site.contains("still")), "{asked:?}");
}

/// A server that dies while a still is read leaves a pod that runs, and a still that the next snapshot takes with it, cancelled
/// or not.
#[tokio::test]
async fn sim_what_a_server_left_behind_that_died_while_it_read_a_still_goes_with_the_next_snapshot() {
    for cancelled in [false, true] {
        let world = World::new(317);
        let pod = with_data(&world, &world.server().await).await;
        let striker = Arc::new(Striker::at_site(Blow::KillAfter, "engine.container_unfreeze"));
        let server = world.server_with(Arc::clone(&striker) as _).await;
        let asked = server.snapshot(pod).await.unwrap();
        tokio::select! {
            _ = server.settle(pod) => panic!("nothing died"),
            () = striker.death() => {}
        }
        drop(server);
        world.nobody_reads().await;
        assert_eq!(world.engine.stills(), (1, 0));
        let server = world.server().await;
        let expected = if cancelled {
            server.app.cancel(Request::new(&Caller::admin()), asked.operation.id).await.unwrap();
            OperationState::Cancelled
        } else {
            OperationState::Succeeded
        };
        server.settle(pod).await;
        assert_eq!(server.operation(asked.operation.id).await.state, expected);
        assert_eq!(world.engine.observe(pod, &[]).await.unwrap().container.unwrap().state, ContainerState::Running);
        server.snapshot_of(pod).await;
        assert_eq!(world.engine.stills(), (0, 0));
        assert_eq!(world.engine.violations(), [] as [String; 0]);
    }
}
