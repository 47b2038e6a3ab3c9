//! What a running pod feels of a snapshot: how it is frozen, for what, and that it always goes on.

use std::sync::{Arc, Mutex};

use crate::world::taps::{Blow, Striker};
use crate::world::{World, files, small_spec, universal_spec};
use jiff::SignedDuration;
use perennial::reconcile::worker::Passed;
use perennial::store::Change;
use perennial_core::engine::{ContainerState, Copying, Engine};
use perennial_core::fault::{Moment, Tap, Verdict};
use perennial_core::id::PodId;
use perennial_core::pod::Retry;
use perennial_core::snapshot::{Grade, SnapshotState};
use perennial_core::spec::Backend;

/// Notes everything that is asked of engine and repository.
#[derive(Debug, Default)]
struct Noting(Mutex<Vec<String>>);

impl Tap for Noting {
    fn at(&self, site: &str, moment: Moment) -> Verdict {
        if moment == Moment::Before {
            self.0.lock().unwrap().push(site.to_owned());
        }
        Verdict::Go
    }
}

impl Noting {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

async fn state(world: &World, pod: PodId) -> ContainerState {
    world.engine.observe(pod, &[]).await.unwrap().container.unwrap().state
}

/// A store that hangs cannot hold a pod that is thawed before anything is asked of the store.
async fn nothing_but_reading_happens_in_the_freeze(world: World, backend: Backend, meanwhile: &[&str]) {
    let noting = Arc::new(Noting::default());
    let server = world.server_with(Arc::clone(&noting) as _).await;
    let pod = server.running("dev", universal_spec(backend)).await;
    world.engine.write(pod, "/home/a", "1").unwrap();
    world.engine.write(pod, "/tools/layer", "1").unwrap();
    let bytes = files(&world, pod);
    for round in 0..2 {
        noting.take();
        server.succeed(server.snapshot(pod).await).await;
        let taken = server.snapshots(pod).await.into_iter().next().unwrap();
        assert_eq!((taken.state, taken.grade), (SnapshotState::Verified, Some(Grade::Frozen)), "round {round}");
        assert!(taken.frozen_millis.is_some());
        let asked = noting.take();
        let at = |site: &str| asked.iter().position(|s| s == site).unwrap();
        let (from, to) = (at("engine.container_freeze"), at("engine.container_unfreeze"));
        assert_eq!(asked[from + 1..to], *meanwhile, "round {round}: {asked:?}");
        assert_eq!(asked.iter().filter(|s| *s == "engine.container_freeze").count(), 1);
        let written = |part: &[String]| part.iter().any(|s| s == "repository.write");
        assert!(written(&asked[..from]) && written(&asked[to..]), "round {round}: {asked:?}");
        assert_eq!(state(&world, pod).await, ContainerState::Running);
    }
    let taken = server.snapshots(pod).await.into_iter().next().unwrap();
    world.engine.write(pod, "/home/a", "2").unwrap();
    server.succeed(server.restore(pod, taken.id).await).await;
    assert_eq!(files(&world, pod), bytes);
    assert_eq!(world.engine.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn sim_p12_a_store_that_hangs_keeps_no_pod_frozen() {
    let world = World::with_copying(1, Some(Copying::Shared));
    nothing_but_reading_happens_in_the_freeze(world, Backend::Overlay, &[]).await;
}

#[tokio::test]
async fn sim_p12_a_store_that_hangs_keeps_no_pod_frozen_that_is_read_from_a_still() {
    nothing_but_reading_happens_in_the_freeze(World::new(1), Backend::Overlay, &["engine.set_still"]).await;
}

#[tokio::test]
async fn sim_p12_a_store_that_hangs_keeps_no_pod_frozen_by_mover() {
    let world = World::with_mover(1, perennial::mover::simulated());
    nothing_but_reading_happens_in_the_freeze(world, Backend::Engine, &[]).await;
}

async fn a_pod_that_a_dead_server_left_frozen_goes_on_at_once(at: &'static str) {
    let world = World::new(1);
    let pod = {
        let server = world.server().await;
        server.running("dev", small_spec(Backend::Overlay)).await
    };
    // Killed right after the freeze, or in it.
    let striker = Arc::new(Striker::at_site(Blow::KillAfter, at));
    let server = world.server_with(Arc::clone(&striker) as _).await;
    let asked = server.snapshot(pod).await;
    tokio::select! {
        () = async { server.settle(asked.unwrap().pod.id).await; } => {}
        () = striker.death() => {}
    }
    assert_eq!(state(&world, pod).await, ContainerState::Frozen, "no server died in a freeze");
    // Something had failed before, so that the pod is not looked at for a while.
    let server = world.server().await;
    let mut record = server.pod(pod).await;
    let later = world.clock_now().checked_add(SignedDuration::from_mins(1)).unwrap();
    record.retry = Retry { count: 7, not_before: Some(later), problem: None };
    server.app.store.commit(Change { pod: Some(record), ..Change::default() }).await.unwrap();
    // The dead server's lease is this one's.
    assert_eq!(server.reconciler.pass(pod).await, Passed::Again);
    assert_eq!(state(&world, pod).await, ContainerState::Running);
    assert_eq!(server.reconciler.pass(pod).await, Passed::Wait(Some(later)));
    server.settle(pod).await;
    assert_eq!(server.snapshots(pod).await.iter().filter(|s| s.state == SnapshotState::Pending).count(), 0);
    // What it made to read from is gone as well.
    assert_eq!(world.engine.stills(), (0, 0));
}

#[tokio::test]
async fn sim_p12_a_pod_that_a_dead_server_left_frozen_goes_on_at_once() {
    a_pod_that_a_dead_server_left_frozen_goes_on_at_once("engine.container_freeze").await;
    a_pod_that_a_dead_server_left_frozen_goes_on_at_once("engine.set_still").await;
}
