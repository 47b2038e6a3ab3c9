//! Servers that share a PostgreSQL: the whole life of a pod and of its subscription, and a server that dies in the middle of it.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::databases::Cluster;
use crate::world::taps::{Blow, Striker};
use crate::world::{Ended, Server, World, files, small_spec};
use jiff::SignedDuration;
use perennial::service::Caller;
use perennial::store::{EventFilter, Store};
use perennial_core::fault::{NoTap, Tap};
use perennial_core::id::PodId;
use perennial_core::operation::OperationState;
use perennial_core::pod::{Desired, Phase};
use perennial_core::spec::Backend;

thread_local! {
    /// Where the worlds of this thread keep their databases, when not in memory.
    static CLUSTER: RefCell<Option<Arc<Cluster>>> = const { RefCell::new(None) };
}

/// Runs tests once more, with PostgreSQL behind the store: all of a file, which is given as well, but for sweeps.
pub fn on_postgresql(source: &str, tests: &[fn()]) {
    let all = source.matches("#[tokio::test").count() - source.matches("async fn sim_sweep_").count();
    assert_eq!(tests.len(), all, "a test is not on the list");
    CLUSTER.set(Some(Arc::new(Cluster::start())));
    for (n, test) in tests.iter().enumerate() {
        println!("number {} of the list", n + 1);
        test();
    }
    CLUSTER.set(None);
}

/// An empty database for a world; none where it is in memory.
pub async fn database_of_world() -> Option<String> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let cluster = CLUSTER.with_borrow(Clone::clone)?;
    let n = COUNT.fetch_add(1, Ordering::Relaxed);
    Some(cluster.database(&format!("world{n}")).await.url)
}

/// A server with a name and connections of its own.
async fn server(world: &mut World, url: &str, name: &str, tap: Arc<dyn Tap>) -> Server {
    name.clone_into(&mut world.holder);
    let store = Store::open(url, Arc::clone(&tap)).await.unwrap();
    world.server_on(store, tap)
}

#[tokio::test]
async fn sim_a_pod_and_its_subscription_live_on_postgresql_as_on_sqlite() {
    let cluster = Cluster::start();
    let database = cluster.database("life").await;
    let mut world = World::new(801);
    world.database.clone_from(&database.url);
    let server = world.server().await;
    let pod = server.running("dev", small_spec(Backend::Overlay)).await;
    world.engine.write(pod, "/srv/mine", "what matters").unwrap();
    let held = files(&world, pod);
    let snapshot = server.snapshot_of(pod).await;
    server.succeed(server.stop(pod).await).await;
    server.succeed(server.start(pod).await).await;
    server.succeed(server.pause(pod).await).await;
    server.succeed(server.start(pod).await).await;
    server.succeed(server.restart(pod).await).await;
    assert_eq!(files(&world, pod), held);
    server.succeed(server.reset(pod).await).await;
    assert_ne!(files(&world, pod), held);
    server.succeed(server.restore(pod, snapshot).await).await;
    assert_eq!(files(&world, pod), held);
    server.succeed(server.delete(pod).await).await;
    server.succeed(server.undelete(pod).await).await;
    server.succeed(server.start(pod).await).await;
    assert_eq!(files(&world, pod), held);
    server.purge(pod).await.unwrap();
    assert_eq!(server.settle(pod).await, Ended::Gone);

    let (id, pod) = crate::subscriptions::subscribed(&world, &server, None).await;
    let done = server.app.subscription_cancel(&Caller::admin(), id).await.unwrap();
    server.settle(done.subscription.pod).await;
    assert_eq!(server.pod(pod).await.phase, Phase::Paused);
    for _ in 0..60 {
        crate::subscriptions::a_day(&world, &server, pod).await;
    }
    assert_eq!(server.pod(pod).await.desired, Desired::Deleted);
    assert_eq!(world.engine.violations(), Vec::<String>::new());
}

async fn work(server: &Server, pods: &[PodId]) {
    for pod in pods {
        server.work(*pod).await;
    }
}

/// Two servers, six pods, each asked for something at the same time: at every tenth of what one of both does it dies, and the other one ends
/// it. Nothing is done twice, and nothing is left undone.
#[tokio::test]
async fn sim_of_two_servers_on_one_postgresql_one_dies_and_the_other_ends_its_work() {
    let cluster = Cluster::start();
    let mut died = 0;
    for at in (0..120).step_by(15) {
        let database = cluster.database(&format!("two{at}")).await;
        let mut world = World::new(810 + u64::try_from(at).unwrap());
        let striker = Arc::new(Striker::new(Blow::KillAfter, at));
        let calm = server(&mut world, &database.url, "calm", Arc::new(NoTap)).await;
        let mut pods = Vec::new();
        for n in 0..6 {
            let pod = calm.running(&format!("pod{n}"), small_spec(Backend::Overlay)).await;
            world.engine.write(pod, "/srv/mine", format!("of {n}")).unwrap();
            pods.push(pod);
        }
        // What it held is free for others.
        world.clock.advance(SignedDuration::from_mins(2));
        let one = server(&mut world, &database.url, "one", Arc::clone(&striker) as _).await;
        let two = server(&mut world, &database.url, "two", Arc::new(NoTap)).await;
        let mut asked = Vec::new();
        for (n, pod) in pods.iter().enumerate() {
            let outcome = match n % 3 {
                0 => two.stop(*pod).await,
                1 => two.snapshot(*pod).await,
                _ => two.restart(*pod).await,
            };
            asked.push(outcome.unwrap().operation.id);
        }
        tokio::select! {
            () = async { tokio::join!(work(&one, &pods), work(&two, &pods)); } => {}
            () = striker.death() => died += 1,
        }
        drop(one);
        world.nobody_reads().await;
        world.clock.advance(SignedDuration::from_mins(2));
        for pod in &pods {
            two.settle(*pod).await;
        }
        for (n, (pod, operation)) in pods.iter().zip(asked).enumerate() {
            let operation = two.operation(operation).await;
            assert_eq!(operation.state, OperationState::Succeeded, "at {at}: {operation:?}");
            let events = EventFilter { pod: Some(*pod), ..EventFilter::default() };
            let events = two.app.store.event_list(0, &events, 1000).await.unwrap();
            let ends = events
                .iter()
                .filter(|event| event.line.operation == Some(operation.id) && event.line.kind == "operation.succeeded");
            assert_eq!(ends.count(), 1, "at {at}: told once");
            if n % 3 == 0 {
                assert_eq!(two.pod(*pod).await.phase, Phase::Stopped);
                two.succeed(two.start(*pod).await).await;
            }
            assert_eq!(world.engine.read(*pod, "/srv/mine").unwrap().unwrap(), format!("of {n}").as_bytes(), "at {at}");
        }
        assert_eq!(world.engine.violations(), Vec::<String>::new(), "at {at}");
    }
    assert!(died >= 3, "a server died {died} times");
}
