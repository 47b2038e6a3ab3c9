//! The whole life of a pod and of its subscription, with PostgreSQL behind the store.

use crate::databases::Cluster;
use crate::world::{Ended, World, files, small_spec};
use perennial::service::Caller;
use perennial_core::pod::{Desired, Phase};
use perennial_core::spec::Backend;

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
