//! The database against the engine, as administrators see it.

use crate::world::{World, small_spec};
use perennial::service::Caller;
use perennial_core::Error;
use perennial_core::engine::Owned;
use perennial_core::spec::Backend;
use perennial_core::volume::SetState;

#[tokio::test]
async fn sim_the_debug_view_tells_what_differs_and_touches_nothing() {
    let world = World::new(711);
    let server = world.server().await;
    let pod = server.running("dev", small_spec(Backend::Overlay)).await;
    world.engine.write(pod, "/srv/mine", "what matters").unwrap();
    let admin = Caller::admin();
    let found = server.app.admin_debug(&admin).await.unwrap();
    assert_eq!((found.pods.len(), &found.comparison.pods[0].differences), (1, &Vec::new()));
    assert_eq!(found.comparison.pods[0].sets.len(), 1);
    assert_eq!(found.comparison.pods[0].sets[0].recorded, Some(SetState::Complete));
    assert!(found.comparison.orphans.is_empty());
    world.engine.kill_container_outside(pod).unwrap();
    let found = server.app.admin_debug(&admin).await.unwrap();
    let told = found.comparison.pods[0].differences.join("; ");
    assert!(told.contains("is recorded, and not on the engine"), "{told}");
    server.settle(pod).await;
    assert_eq!(server.app.admin_debug(&admin).await.unwrap().comparison.pods[0].differences, Vec::<String>::new());
}

/// The database was lost: everything that lives looks like nobody's. It is told, with a suspicion, and nothing else is done.
#[tokio::test]
async fn p17_sim_after_the_loss_of_the_database_what_lives_is_told_as_nobodys_and_left_alone() {
    let world = World::new(712);
    let server = world.server().await;
    let mut pods = Vec::new();
    for name in ["one", "two", "three"] {
        let pod = server.running(name, small_spec(Backend::Overlay)).await;
        world.engine.write(pod, "/srv/mine", name).unwrap();
        pods.push(pod);
    }
    let store = perennial::store::Store::open("sqlite::memory:", std::sync::Arc::new(perennial_core::fault::NoTap));
    let other = world.server_on(store.await.unwrap(), std::sync::Arc::new(perennial_core::fault::NoTap));
    let found = other.app.admin_debug(&Caller::admin()).await.unwrap();
    let sets = found.comparison.orphans.iter().filter(|orphan| matches!(orphan.what, Owned::Set { .. })).count();
    assert_eq!((sets, found.comparison.orphans.len()), (3, 6));
    assert!(found.comparison.suspicion.is_some());
    other.housekeeper().run_due().await;
    for (pod, name) in pods.iter().zip(["one", "two", "three"]) {
        assert_eq!(world.engine.read(*pod, "/srv/mine").unwrap().unwrap(), name.as_bytes());
    }
}

/// An engine that does not answer shows nothing, which is not the same as nothing being there.
#[tokio::test]
async fn p17_sim_an_engine_that_does_not_answer_makes_nothing_look_lost() {
    let world = World::new(713);
    let server = world.server().await;
    server.running("dev", small_spec(Backend::Overlay)).await;
    let striker = std::sync::Arc::new(crate::world::taps::Striker::at_site(
        crate::world::taps::Blow::FailBefore,
        "engine.list_owned",
    ));
    let broken = world.server_with(striker).await;
    let refused = broken.app.admin_debug(&Caller::admin()).await.unwrap_err();
    assert!(matches!(refused, Error::Unavailable { .. }), "{refused:?}");
}
