//! Several servers, each with its own keys and places, and what only a person can say of them.

use std::sync::Arc;

use perennial::service::Erase;
use perennial::store::{Became, EventFilter};
use perennial_core::Error;
use perennial_core::fault::{Moment, NoTap, Tap, Verdict};
use perennial_snapshots::Password;

use super::doubts::{all_files, problem, remove};
use super::{
    accepted, ask, backends, code, confirmed, dry, housekeeper, is_done, keyed, kinds, meaning, rings, row, tenant,
    without_pods,
};
use crate::world::{Server, World};

fn giving_up() -> Erase {
    Erase { give_up: true, ..confirmed(false) }
}

/// Another host, whose servers share the database: with places of its own, and without keys.
fn other() -> World {
    let mut world = keyed();
    world.holder = "other".to_owned();
    world
}

fn on(world: &World, server: &Server) -> Server {
    world.server_on(server.app.store.clone(), Arc::new(NoTap))
}

#[tokio::test]
async fn sim_keys_that_are_not_those_of_the_erasure_stay_and_are_shown() {
    let world = keyed();
    let server = without_pods(&world).await;
    let [_, ring] = rings(&world);
    let path = ring.path(&tenant());
    let own = std::fs::read(&path).unwrap();
    ask(&server, confirmed(true)).await.unwrap();
    // The data directory of another installation, under the database of this one.
    std::fs::write(&path, "of production").unwrap();
    let before = all_files(&backends(&world)[1]);
    housekeeper(&server).erase_due().await;
    let told = row(&server).await;
    assert!(told.problems().unwrap().contains("is this the right database?") && told.keys_at.is_none());
    assert_eq!(std::fs::read(&path).unwrap(), b"of production");
    assert!(!ring.is_erased(&tenant()).unwrap(), "its owner goes on with it");
    assert_eq!(all_files(&backends(&world)[1]), before);
    std::fs::write(&path, &own).unwrap();
    housekeeper(&server).erase_due().await;
    assert!(is_done(&server).await && !path.exists() && row(&server).await.is_whole());

    // One that comes after it was done: it is shown as long as it is there.
    std::fs::write(&path, "of a tenant of another installation").unwrap();
    let server = world.server().await;
    housekeeper(&server).erase_due().await;
    let told = row(&server).await;
    assert!(told.done_at.is_some() && told.problems().unwrap().starts_with("on server test: "));
    assert!(path.exists());
    // Asking again hides nothing.
    let again = ask(&server, confirmed(true)).await.unwrap().erasure.unwrap();
    assert_eq!(again.problems(), told.problems());
    remove(&path);
    housekeeper(&server).erase_due().await;
    assert_eq!(row(&server).await.problems(), None);
}

#[tokio::test]
async fn sim_whoever_asks_again_has_it_tried_again() {
    let mut world = keyed();
    let server = without_pods(&world).await;
    ask(&server, confirmed(true)).await.unwrap();
    drop(server);
    let there = std::mem::take(&mut world.repositories);
    let server = world.server().await;
    problem(&server).await;
    let again = ask(&server, confirmed(true)).await.unwrap();
    assert_eq!(again.erasure.unwrap().problem, None);
    world.repositories = there;
    let server = world.server().await;
    housekeeper(&server).erase_due().await;
    assert!(is_done(&server).await);
}

#[tokio::test]
async fn sim_each_server_destroys_its_own_keys_and_one_whose_place_is_away_ends_it_for_nobody() {
    let world = keyed();
    let server = without_pods(&world).await;
    // A second server on the same database, with copies of the keys and without the disks.
    let mut other_world = other();
    for (from, to) in rings(&world).iter().zip(rings(&other_world)) {
        to.write(&tenant(), &from.read(&tenant()).unwrap().unwrap()).unwrap();
    }
    let other = on(&other_world, &server);
    ask(&server, confirmed(true)).await.unwrap();
    let why = problem(&other).await;
    assert!(why.starts_with("server other: ") && why.contains("is not there"), "{why}");
    assert!(
        rings(&other_world).iter().all(|ring| !ring.path(&tenant()).exists() && ring.is_erased(&tenant()).unwrap())
    );
    assert!(rings(&world).iter().all(|ring| ring.path(&tenant()).exists()), "each server has its own");
    housekeeper(&server).erase_due().await;
    assert!(row(&server).await.is_whole());
    assert!(rings(&world).iter().all(|ring| !ring.path(&tenant()).exists()));
    assert!(backends(&world).iter().all(|backend| all_files(backend) == 0));
    let told = meaning(&server).await;
    assert!(told[0].contains("server other (2 files) and server test (2 files)"), "{told:?}");

    // One that was down, with the disks: its keys go when it starts, though all is done.
    other_world.repositories = world.repositories.clone();
    for ring in rings(&other_world) {
        remove(&ring.path(&tenant()).with_extension("erased"));
    }
    let [_, key] = rings(&other_world);
    key.write(&tenant(), &Password::new("another")).unwrap();
    let other = on(&other_world, &server);
    housekeeper(&other).erase_due().await;
    assert!(rings(&other_world)[0].is_erased(&tenant()).unwrap() && key.path(&tenant()).exists());
    let checks = other.app.system().await.checks;
    let told = checks.iter().find(|check| check.name == "erasure").unwrap();
    assert!(told.message.contains("tenant default is not erased everywhere: on server other: "), "{told:?}");
}

#[tokio::test]
async fn sim_a_server_without_the_place_does_not_end_the_deletion_of_files_that_is_asked_for_later() {
    for has_a_replica in [true, false] {
        let world = keyed();
        let server = without_pods(&world).await;
        ask(&server, confirmed(false)).await.unwrap();
        housekeeper(&server).erase_due().await;
        assert!(is_done(&server).await);
        // It was down, or is new: it makes its mark when all is done.
        let other_world = other();
        let mut other = on(&other_world, &server);
        if !has_a_replica {
            other.app.places.replicas = None;
        }
        housekeeper(&other).erase_due().await;
        ask(&server, confirmed(true)).await.unwrap();
        let why = problem(&other).await;
        assert!(why.contains("is not there"), "{why}");
        assert!(backends(&world).iter().all(|backend| all_files(backend) > 0));
        housekeeper(&server).erase_due().await;
        assert!(row(&server).await.is_whole() && backends(&world).iter().all(|backend| all_files(backend) == 0));
    }
}

#[tokio::test]
async fn sim_keys_are_not_called_destroyed_by_a_server_that_has_none() {
    let world = keyed();
    let server = without_pods(&world).await;
    ask(&server, confirmed(false)).await.unwrap();
    let other_world = other();
    for _ in 0..2 {
        // Its own mark of the first time is no key.
        let other = on(&other_world, &server);
        let why = problem(&other).await;
        assert!(why.starts_with("server other: none of the tenant's keys is here"), "{why}");
        assert!(row(&other).await.keys_at.is_none());
        assert_eq!(kinds(&other).await, ["tenant.erase-requested"]);
    }
    assert!(rings(&world).iter().all(|ring| ring.path(&tenant()).exists()));
    housekeeper(&server).erase_due().await;
    let other = on(&other_world, &server);
    housekeeper(&other).erase_due().await;
    assert!(row(&server).await.is_whole(), "{:?}", row(&server).await);
    assert_eq!(kinds(&server).await, ["tenant.erase-requested", "tenant.keys-destroyed", "tenant.erased"]);
}

#[tokio::test]
async fn sim_what_is_gone_for_good_is_given_up_by_a_person() {
    let mut world = keyed();
    let server = without_pods(&world).await;
    let early = ask(&server, giving_up()).await.unwrap_err();
    assert!(matches!(&early, Error::InvalidInput { field, .. } if field == "giveUp"), "{early:?}");
    ask(&server, confirmed(false)).await.unwrap();
    drop(server);
    let there = std::mem::take(&mut world.repositories);
    let server = world.server().await;
    problem(&server).await;
    let files = ask(&server, Erase { delete_data: true, ..giving_up() }).await.unwrap_err();
    assert!(matches!(&files, Error::InvalidInput { field, .. } if field == "giveUp"), "{files:?}");
    let unconfirmed = ask(&server, Erase { confirm: None, ..giving_up() }).await.unwrap_err();
    assert!(matches!(&unconfirmed, Error::InvalidInput { field, .. } if field == "confirm"), "{unconfirmed:?}");
    let plan = ask(&server, Erase { give_up: true, ..dry() }).await.unwrap();
    assert!(plan.meaning.iter().any(|line| line.contains("is given up: nobody knows")), "{plan:?}");
    assert_eq!(row(&server).await.found.repository.became, None, "a dry run does nothing");
    ask(&server, giving_up()).await.unwrap();
    housekeeper(&server).erase_due().await;
    let end = row(&server).await;
    assert!(end.done_at.is_some() && !end.is_whole());
    assert_eq!(end.found.repository.became, Some(Became::GivenUp));
    assert_eq!(end.found.replica.unwrap().became, Some(Became::KeysGone));
    assert!(kinds(&server).await.contains(&"tenant.erase-given-up".to_owned()));
    // It comes back all the same, and the files are asked for: it is what it was called.
    world.repositories = there;
    let server = world.server().await;
    ask(&server, confirmed(true)).await.unwrap();
    housekeeper(&server).erase_due().await;
    assert!(is_done(&server).await && all_files(&backends(&world)[1]) > 0 && all_files(&backends(&world)[0]) == 0);
    let told = meaning(&server).await;
    assert!(told.iter().any(|line| line.contains("is given up: nobody knows")), "{told:?}");
}

/// A place in which everything can be removed but the last directories.
#[derive(Debug)]
struct NoLastDirectory;

impl Tap for NoLastDirectory {
    fn at(&self, site: &str, _: Moment) -> Verdict {
        if site == "repository.remove_place" { Verdict::Fail } else { Verdict::Go }
    }
}

#[tokio::test]
async fn sim_what_fails_after_everything_else_went_can_be_given_up() {
    let world = keyed();
    drop(without_pods(&world).await);
    let server = world.server_with(Arc::new(NoLastDirectory)).await;
    ask(&server, confirmed(true)).await.unwrap();
    let why = problem(&server).await;
    assert!(why.contains("--give-up"), "{why}");
    assert!(row(&server).await.found.all().all(|place| matches!(place.became, Some(Became::Emptied { .. }))));
    ask(&server, giving_up()).await.unwrap();
    let all = server.app.store.event_list(0, &EventFilter::default(), 1000).await.unwrap();
    let given_up = all.into_iter().find(|event| event.line.kind == "tenant.erase-given-up").unwrap().line.message;
    assert!(given_up.contains("the config of memory:default"), "{given_up}");
    housekeeper(&server).erase_due().await;
    assert!(is_done(&server).await);
    // There was nothing in it but what says that it was a repository.
    assert_eq!(backends(&world).map(|backend| all_files(&backend)), [1, 1]);
}

#[tokio::test]
async fn sim_keys_that_no_server_has_any_more_are_given_up_and_not_called_destroyed() {
    let world = keyed();
    let server = without_pods(&world).await;
    ask(&server, confirmed(true)).await.unwrap();
    // The host that has them burns.
    let other_world = other();
    let other = on(&other_world, &server);
    problem(&other).await;
    ask(&other, giving_up()).await.unwrap();
    housekeeper(&other).erase_due().await;
    assert!(is_done(&other).await && !row(&other).await.is_whole());
    let told = meaning(&other).await;
    assert!(told[0].contains("keys were given up"), "{told:?}");
    assert!(!kinds(&other).await.contains(&"tenant.keys-destroyed".to_owned()));
    assert!(rings(&world).iter().all(|ring| ring.path(&tenant()).exists()));
    // It did not, and starts once more: they go, and that is told.
    housekeeper(&server).erase_due().await;
    assert!(rings(&world).iter().all(|ring| !ring.path(&tenant()).exists()));
    assert!(meaning(&other).await[0].contains("server test (2 files)"));
    assert!(kinds(&other).await.contains(&"tenant.keys-destroyed".to_owned()));
}

#[tokio::test]
async fn sim_a_replica_that_is_not_configured_any_more_is_not_called_erased() {
    let world = keyed();
    let mut server = without_pods(&world).await;
    ask(&server, confirmed(true)).await.unwrap();
    server.app.places.replicas = None;
    let why = problem(&server).await;
    assert!(
        why.contains("server test: its configuration does not name memory:default") && why.contains("--give-up"),
        "{why}"
    );
    assert!(all_files(&backends(&world)[0]) > 0 && all_files(&backends(&world)[1]) == 0);
    // Another server that has it deals with it.
    let server = world.server().await;
    housekeeper(&server).erase_due().await;
    assert!(row(&server).await.is_whole() && all_files(&backends(&world)[0]) == 0);

    // Already when it is asked for.
    let world = keyed();
    let mut server = without_pods(&world).await;
    server.app.places.replicas = None;
    let plan = ask(&server, dry()).await.unwrap();
    assert_eq!(plan.found.replica.as_ref().unwrap().became, Some(Became::Untouched));
    assert!(plan.doubts.iter().any(|doubt| doubt.text.contains("replica-keys/default")), "{plan:?}");
    assert_eq!(code(ask(&server, confirmed(true)).await).0, "tenant-unclear");
    let request = accepted(&server, true).await;
    ask(&server, request).await.unwrap();
    // Named again it may be the repository of another host by now: nobody looked.
    let server = world.server().await;
    let before = all_files(&backends(&world)[0]);
    housekeeper(&server).erase_due().await;
    assert!(is_done(&server).await && !row(&server).await.is_whole());
    assert_eq!((all_files(&backends(&world)[0]), all_files(&backends(&world)[1])), (before, 0));
}

#[tokio::test]
async fn sim_what_the_database_knows_of_and_nothing_is_here_of_is_not_called_empty() {
    let world = keyed();
    let server = without_pods(&world).await;
    // Another server of the same database, with an empty data directory and no disk; or without a replica at all.
    let other_world = other();
    for has_a_replica in [true, false] {
        let mut other = on(&other_world, &server);
        if !has_a_replica {
            other.app.places.replicas = None;
        }
        let plan = ask(&other, dry()).await.unwrap();
        let became: Vec<_> = plan.found.all().map(|place| place.became).collect();
        assert_eq!(became, [Some(Became::Untouched); 2], "{plan:?}");
        assert_eq!(plan.doubts.len(), 2, "{plan:?}");
        assert_eq!(code(ask(&other, confirmed(true)).await).0, "tenant-unclear");
    }
}
