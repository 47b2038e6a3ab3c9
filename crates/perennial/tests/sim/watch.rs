//! What happens to a container behind Perennial's back is noticed because the engine tells of it, not by looking around.

use std::sync::Arc;
use std::time::Duration;

use crate::world::{Server, World, small_spec};
use perennial::reconcile::Controller;
use perennial::reconcile::controller::Waker;
use perennial::store::EventFilter;
use perennial_core::id::PodId;
use perennial_core::pod::{Phase, Pod};
use perennial_core::spec::Backend;
use perennial_drivers::sim::Cause;

/// Longer than any test: nobody looks at a pod that nothing woke.
const NEVER: Duration = Duration::from_secs(366 * 24 * 3600);

/// Waits until this is recorded of the pod. How soon it is, is measured by `./dev bench docker`.
async fn recorded(server: &Server, pod: PodId, kind: &str) {
    let filter = EventFilter { pod: Some(pod), ..EventFilter::default() };
    let waits = async {
        while server.app.store.event_list(0, &filter, 1000).await.unwrap().iter().all(|event| event.line.kind != kind) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(120), waits).await.unwrap_or_else(|_| panic!("{kind} is not recorded"));
}

/// Waits until this is true of the pod's row.
async fn shown(server: &Server, pod: PodId, is: impl Fn(&Pod) -> bool) {
    let waits = async {
        while !is(&server.app.store.pod_fetch(pod).await.unwrap().unwrap()) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(120), waits).await.expect("it is not noticed");
}

/// Waits until the engine was asked so many times more.
async fn asked(world: &World, times: u64) {
    let most = world.engine.calls() + times;
    while world.engine.calls() < most {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn sim_looks_alone_find_what_changed_about_pods_that_were_at_rest() {
    let mut world = World::new(1);
    world.resync = Duration::from_millis(1);
    let server = world.server().await;
    let rests = server.running("rests", small_spec(Backend::Overlay)).await;
    let asked_to_stop = server.running("stops", small_spec(Backend::Overlay)).await;
    let robbed = server.running("robbed", small_spec(Backend::Overlay)).await;
    let stopped = server.running("stopped", small_spec(Backend::Overlay)).await;
    server.stop(stopped).await.unwrap();
    server.settle(stopped).await;
    let controller = Controller::start(Arc::clone(&server.reconciler), Waker::default());
    // By then all were seen at rest, and then asked about a few times more.
    asked(&world, 30).await;
    let version = server.app.store.pod_fetch(rests).await.unwrap().unwrap().version;

    // Nothing tells of either.
    let set = server.app.store.pod_fetch(robbed).await.unwrap().unwrap().current.unwrap();
    world.engine.remove_set_outside(robbed, set).unwrap();
    shown(&server, robbed, |pod| !pod.conditions.is_empty()).await;
    server.stop(asked_to_stop).await.unwrap();
    shown(&server, asked_to_stop, |pod| pod.phase == Phase::Stopped).await;
    world.engine.lingering_process(rests, server.app.store.pod_fetch(rests).await.unwrap().unwrap().current.unwrap());
    server.stop(rests).await.unwrap();
    shown(&server, rests, |pod| pod.version > version).await;
    tokio::time::timeout(Duration::from_secs(60), controller.shutdown()).await.expect("it stops");
}

#[tokio::test]
async fn sim_the_watch_alone_tells_of_crashes_memory_kills_and_removals() {
    let mut world = World::new(1);
    world.resync = NEVER;
    let server = world.server().await;
    let mut pods = Vec::new();
    for name in ["first", "crashes", "hungry", "removed"] {
        pods.push(server.running(name, small_spec(Backend::Overlay)).await);
    }
    let &[first, crashes, hungry, removed] = pods.as_slice() else { panic!("{pods:?}") };
    let controller = Controller::start(Arc::clone(&server.reconciler), Waker::default());
    // Everything is looked at once in the beginning, which may be what notices this one. By then the watch has begun.
    world.engine.crash(first, 1, Cause::Itself).unwrap();
    recorded(&server, first, "pod.crashed").await;

    world.engine.crash(crashes, 137, Cause::Itself).unwrap();
    recorded(&server, crashes, "pod.crashed").await;
    world.engine.crash(hungry, 137, Cause::OutOfMemory).unwrap();
    recorded(&server, hungry, "pod.crashed").await;
    world.engine.kill_container_outside(removed).unwrap();
    recorded(&server, removed, "pod.container-lost").await;
    tokio::time::timeout(Duration::from_secs(60), controller.shutdown()).await.expect("it stops");
}
