//! What happens to a container behind Perennial's back is noticed because the engine tells of it, not by looking around.

use std::sync::Arc;
use std::time::Duration;

use crate::world::{Server, World, small_spec};
use perennial::reconcile::Controller;
use perennial::reconcile::controller::Waker;
use perennial::store::EventFilter;
use perennial_core::id::PodId;
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
