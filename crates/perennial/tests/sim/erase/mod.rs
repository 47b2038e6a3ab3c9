//! The end of a tenant: nothing of it can be read again, nothing begins anew in its place, and nothing is erased by mistake,
//! wherever the server dies (requirement: erasing a tenant destroys its key and says what that means).

mod doubts;
mod servers;

use std::path::PathBuf;
use std::sync::Arc;

use crate::world::taps::{Blow, Striker};
use crate::world::{Ended, Server, World, small_spec};
use jiff::SignedDuration;
use perennial::keys::Keyring;
use perennial::service::{Caller, Erase, Erasing};
use perennial::store::{Became, Erasure, EventFilter, Store};
use perennial::tasks::{Housekeeper, Replicas};
use perennial_core::Error;
use perennial_core::fault::{NoTap, Tap};
use perennial_core::spec::{Backend, TenantId};
use perennial_snapshots::{Backend as _, FileKind, Id, MemoryBackend, Password, Repository};

const BLOWS: [Blow; 4] = [Blow::KillBefore, Blow::KillAfter, Blow::FailBefore, Blow::LoseAnswer];

fn tenant() -> TenantId {
    TenantId::default_tenant()
}

fn keyed() -> World {
    let mut world = World::new(1);
    world.with_keys = true;
    world
}

fn housekeeper(server: &Server) -> Housekeeper {
    let replicas = Replicas { repositories: server.replicas.clone(), forget_after: SignedDuration::from_hours(720) };
    Housekeeper::new(server.app.clone(), Arc::clone(&server.reconciler)).with_replicas(Some(replicas))
}

/// The keys of the repository and of its replica.
fn rings(world: &World) -> [Keyring; 2] {
    let keys = Keyring::new(world.directory.path(), None, None);
    [keys.of_replicas(), keys]
}

fn backends(world: &World) -> [MemoryBackend; 2] {
    [world.replicas.backend(&tenant()), world.repositories.backend(&tenant())]
}

/// Every file in both directories of keys.
fn key_files(world: &World) -> Vec<String> {
    let mut files = Vec::new();
    for directory in ["keys", "replica-keys"] {
        for entry in std::fs::read_dir(world.directory.path().join(directory)).into_iter().flatten() {
            files.push(format!("{directory}/{}", entry.unwrap().file_name().to_string_lossy()));
        }
    }
    files.sort();
    files
}

fn files(backend: &MemoryBackend, kinds: &[FileKind]) -> usize {
    kinds.iter().map(|kind| backend.list(*kind).unwrap().len()).sum()
}

fn opens(backend: &MemoryBackend, password: &Password) -> bool {
    Repository::open(Arc::new(backend.clone()), password).is_ok()
}

/// A tenant with one pod, whose snapshots are in the repository and its replica.
async fn with_pod(world: &World) -> (Server, perennial_core::id::PodId) {
    let server = world.server().await;
    let pod = server.running("dev", small_spec(Backend::Overlay)).await;
    world.engine.write(pod, "/srv/note", "of acme").unwrap();
    server.snapshot_of(pod).await;
    housekeeper(&server).replicate_due().await;
    (server, pod)
}

/// The same when the pod is gone.
async fn without_pods(world: &World) -> Server {
    let (server, pod) = with_pod(world).await;
    server.purge(pod).await.unwrap();
    assert_eq!(server.settle(pod).await, Ended::Gone);
    server
}

async fn ask(server: &Server, ask: Erase) -> Result<Erasing, Error> {
    server.app.tenant_erase(&Caller::admin(), &tenant(), &ask).await
}

fn confirmed(delete_data: bool) -> Erase {
    Erase { confirm: Some("default".to_owned()), delete_data, ..Erase::default() }
}

/// The same, with all doubts accepted that there are now.
async fn accepted(server: &Server, delete_data: bool) -> Erase {
    let plan = ask(server, Erase { delete_data, ..dry() }).await.unwrap();
    Erase { accept_unknown: plan.accept(), ..confirmed(delete_data) }
}

fn dry() -> Erase {
    Erase { dry_run: true, ..Erase::default() }
}

fn code(refused: Result<Erasing, Error>) -> (&'static str, String) {
    match refused.unwrap_err() {
        Error::Conflict { code, problem, hint } => (code, format!("{problem}; {hint}")),
        other => panic!("{other:?}"),
    }
}

async fn kinds(server: &Server) -> Vec<String> {
    let all = server.app.store.event_list(0, &EventFilter::default(), 1000).await.unwrap();
    all.into_iter().map(|event| event.line.kind).filter(|kind| kind.starts_with("tenant.")).collect()
}

async fn row(server: &Server) -> Erasure {
    server.app.store.erasure_fetch(&tenant()).await.unwrap().unwrap()
}

async fn is_done(server: &Server) -> bool {
    server.app.store.erasure_fetch(&tenant()).await.unwrap().is_some_and(|row| row.done_at.is_some())
}

/// What is told of it afterwards.
async fn meaning(server: &Server) -> Vec<String> {
    server.app.erasure(&Caller::admin(), &tenant()).await.unwrap().meaning
}

#[tokio::test]
async fn sim_a_tenant_with_pods_is_not_erased() {
    let world = keyed();
    let (server, pod) = with_pod(&world).await;
    let before = key_files(&world);
    let plan = ask(&server, dry()).await.unwrap();
    assert_eq!(plan.blockers, [format!("pod dev ({pod}) is not purged")]);
    let (code_, text) = code(ask(&server, confirmed(false)).await);
    assert!(code_ == "tenant-in-use" && text.contains(&pod.to_string()) && text.contains("purge"), "{text}");
    // An archived or deleted one has data that somebody may want back.
    server.succeed(server.delete(pod).await).await;
    assert_eq!(code(ask(&server, confirmed(true)).await).0, "tenant-in-use");
    housekeeper(&server).erase_due().await;
    assert_eq!((key_files(&world), kinds(&server).await), (before, Vec::new()));
    server.succeed(server.undelete(pod).await).await;
    server.succeed(server.start(pod).await).await;
    assert_eq!(world.engine.files(pod).unwrap()["/srv/note"], b"of acme");
}

#[tokio::test]
async fn sim_an_erased_tenant_cannot_be_read_again_and_its_name_stays_taken() {
    let world = keyed();
    let server = without_pods(&world).await;
    let passwords = rings(&world).map(|keys| keys.read(&tenant()).unwrap().unwrap());
    let copies = backends(&world).map(|backend| backend.snapshot());
    let plan = ask(&server, dry()).await.unwrap();
    assert!(plan.blockers.is_empty() && plan.doubts.is_empty(), "{plan:?}");
    let (first, replica) = (&plan.found.repository, plan.found.replica.as_ref().unwrap());
    // The image stayed in the first; the replica keeps what was purged for a while.
    assert!(first.snapshots >= Some(1) && replica.snapshots >= Some(2) && replica.bytes > Some(0), "{plan:?}");
    let meaning = plan.meaning.join("\n");
    for words in ["no way back", "recovery kit", "copy of the repository", "--delete-data", "not used again"] {
        assert!(meaning.contains(words), "{words}: {meaning}");
    }
    for confirm in [None, Some("defaul".to_owned())] {
        let refused = ask(&server, Erase { confirm, ..Erase::default() }).await.unwrap_err();
        assert!(matches!(&refused, Error::InvalidInput { field, .. } if field == "confirm"), "{refused:?}");
    }
    assert_eq!(kinds(&server).await, Vec::<String>::new());

    ask(&server, confirmed(false)).await.unwrap();
    housekeeper(&server).erase_due().await;
    assert!(is_done(&server).await);
    assert_eq!(kinds(&server).await, ["tenant.erase-requested", "tenant.keys-destroyed", "tenant.erased"]);
    let left = key_files(&world);
    assert_eq!(
        left,
        ["keys/default.erased", "keys/default.made", "replica-keys/default.erased", "replica-keys/default.made"]
    );
    for ((backend, password), copy) in backends(&world).iter().zip(&passwords).zip(&copies) {
        // Not even with the password of a recovery kit; but what was copied before opens with it, as is said.
        assert!(!opens(backend, password) && opens(copy, password));
        assert_eq!(files(backend, &[FileKind::Key]), 0);
        assert!(files(backend, &[FileKind::Pack]) > 0, "the files stay");
    }
    // Neither this server, which had it open, nor the next makes anything there.
    for server in [&server, &world.server().await] {
        assert!(server.app.places.repositories.prepare(&tenant()).is_err());
        let refused = server.create("again", small_spec(Backend::Overlay)).await.unwrap_err();
        assert!(matches!(refused, Error::Conflict { code: "tenant-erased", .. }), "{refused:?}");
        let mut keeper = housekeeper(server);
        keeper.run_due().await;
        keeper.replicate_due().await;
        keeper.prune_due().await;
    }
    assert_eq!(key_files(&world), left);
    let store = &server.app.store;
    assert!(
        store.images_of(&tenant()).await.unwrap().is_empty() && store.replica_fetch(&tenant()).await.unwrap().is_none()
    );
    assert!(store.replica_tenants().await.unwrap().is_empty() && store.recovery_exports().await.unwrap().is_empty());

    // Asked again it is what it was, and the files can go later.
    let again = ask(&server, confirmed(false)).await.unwrap();
    assert!(again.erasure.is_some_and(|row| row.done_at.is_some()));
    ask(&server, confirmed(true)).await.unwrap();
    assert!(!is_done(&server).await);
    housekeeper(&server).erase_due().await;
    assert!(is_done(&server).await);
    // Where nothing is left, the mark alone refuses: neither a key nor a repository is made.
    let server = world.server().await;
    for place in [&server.app.places.repositories, server.app.places.replicas.as_ref().unwrap()] {
        let refused = place.prepare(&tenant()).unwrap_err();
        assert!(refused.contains("was erased"), "{refused}");
    }
    assert_eq!(key_files(&world), left);
    for backend in backends(&world) {
        assert_eq!(files(&backend, &FileKind::ALL), 0);
    }
}

#[tokio::test]
async fn sim_keys_that_a_backup_brings_back_go_again() {
    let world = keyed();
    let server = without_pods(&world).await;
    let keys: Vec<(PathBuf, Vec<u8>)> = rings(&world)
        .iter()
        .map(|ring| ring.path(&tenant()))
        .map(|path| (path.clone(), std::fs::read(path).unwrap()))
        .collect();
    ask(&server, confirmed(false)).await.unwrap();
    housekeeper(&server).erase_due().await;
    // The directory as it was before, without the mark: of a backup, or of another server that shares the database.
    for (path, text) in &keys {
        std::fs::write(path, text).unwrap();
        std::fs::remove_file(path.with_extension("erased")).unwrap();
    }
    let server = world.server().await;
    housekeeper(&server).erase_due().await;
    assert!(keys.iter().all(|(path, _)| !path.exists() && path.with_extension("erased").exists()));
    let trail = ["tenant.erase-requested", "tenant.keys-destroyed", "tenant.erased", "tenant.keys-destroyed"];
    assert_eq!(kinds(&server).await, trail, "and it is told");

    // A database from before it: the mark beside the keys is enough.
    let old = Store::open("sqlite::memory:", Arc::new(NoTap)).await.unwrap();
    let server = world.server_on(old, Arc::new(NoTap));
    let refused = server.create("again", small_spec(Backend::Overlay)).await.unwrap_err();
    assert!(matches!(refused, Error::Conflict { code: "tenant-erased", .. }), "{refused:?}");
    assert!(keys.iter().all(|(path, _)| !path.exists()));
}

#[tokio::test]
async fn sim_a_pod_that_an_old_database_knows_of_an_erased_tenant_can_be_purged() {
    let world = keyed();
    let (server, pod) = with_pod(&world).await;
    for ring in rings(&world) {
        let prints = ring.prints(&tenant()).unwrap();
        ring.erase(&tenant(), &prints, &NoTap).unwrap();
    }
    drop(server);
    let server = world.server().await;
    server.purge(pod).await.unwrap();
    assert_eq!(server.settle(pod).await, Ended::Gone);
    let request = accepted(&server, true).await;
    ask(&server, request).await.unwrap();
}

#[tokio::test]
async fn sim_what_the_database_does_not_know_is_not_erased_without_a_word() {
    let world = keyed();
    let (_, pod) = with_pod(&world).await;
    // The wrong database, or an old one, over the right repositories.
    let other = Store::open("sqlite::memory:", Arc::new(NoTap)).await.unwrap();
    let server = world.server_on(other, Arc::new(NoTap));
    let (code_, text) = code(ask(&server, confirmed(true)).await);
    assert!(code_ == "tenant-unclear" && text.contains("snapshots of 1 pods"), "{text}");
    // What was accepted before is not accepted for what comes to light now.
    let before = accepted(&server, false).await;
    let right = world.server().await;
    right.succeed(right.snapshot(pod).await).await;
    housekeeper(&right).replicate_due().await;
    let other = Erase { accept_unknown: Some("0123456789abcdef".to_owned()), ..confirmed(false) };
    assert_eq!(code(ask(&server, other).await).0, "tenant-unclear");
    let after = accepted(&server, false).await;
    assert!(
        before.accept_unknown.is_some() && after.accept_unknown != before.accept_unknown,
        "another snapshot is there"
    );
    assert_eq!(code(ask(&server, before).await).0, "tenant-unclear");
    ask(&server, after).await.unwrap();

    let unheard = server.app.tenant_erase(&Caller::admin(), &TenantId::parse("acme").unwrap(), &dry()).await;
    assert!(matches!(unheard, Err(Error::NotFound { .. })), "{unheard:?}");
}

#[tokio::test]
async fn sim_a_place_that_goes_keeps_no_key_and_is_emptied_when_it_is_back() {
    let mut world = keyed();
    let server = without_pods(&world).await;
    ask(&server, confirmed(true)).await.unwrap();
    drop(server);
    let there = std::mem::take(&mut world.repositories);
    let server = world.server().await;
    housekeeper(&server).erase_due().await;
    let shown = row(&server).await;
    assert!(shown.keys_at.is_some() && shown.done_at.is_none(), "{shown:?}");
    let problem = shown.problem.unwrap();
    assert!(problem.starts_with("server test: ") && problem.contains("is its disk mounted?"), "{problem}");
    // What is there was emptied, and that is remembered.
    assert_eq!(files(&world.replicas.backend(&tenant()), &FileKind::ALL), 0);
    assert!(matches!(shown.found.replica.unwrap().became, Some(Became::Emptied { files, .. }) if files > 0));
    // Nothing but a person says that it is gone for good.
    for ring in rings(&world) {
        std::fs::remove_file(ring.path(&tenant()).with_extension("made")).unwrap();
    }
    let server = world.server().await;
    housekeeper(&server).erase_due().await;
    assert!(!is_done(&server).await);
    world.repositories = there;
    let server = world.server().await;
    housekeeper(&server).erase_due().await;
    let shown = row(&server).await;
    assert!(shown.is_whole(), "{shown:?}");
    assert_eq!(files(&world.repositories.backend(&tenant()), &FileKind::ALL), 0);
    let told = meaning(&server).await;
    assert_eq!(told.iter().filter(|line| line.starts_with("All files in memory:default")).count(), 2, "{told:?}");
}

#[tokio::test]
async fn sim_a_copy_at_work_keeps_the_erasure_waiting_and_none_begins_after_it() {
    let world = keyed();
    let server = without_pods(&world).await;
    let (store, now) = (&server.app.store, world.clock_now());
    let until = now + SignedDuration::from_mins(30);
    assert!(store.replica_claim(&tenant(), "other", (now, until)).await.unwrap());
    let (code_, text) = code(ask(&server, confirmed(false)).await);
    assert!(code_ == "tenant-in-use" && text.contains("copies to its replica"), "{text}");
    world.clock.set(until);
    ask(&server, confirmed(false)).await.unwrap();
    let later = until + SignedDuration::from_hours(1);
    assert!(!store.replica_claim(&tenant(), "other", (until, later)).await.unwrap());
    housekeeper(&server).erase_due().await;
    assert!(!store.replica_claim(&tenant(), "other", (until, later)).await.unwrap());
}

/// Asks for the erasure and has it carried out, until it is done or the server is dead.
async fn erase(server: &Server, striker: &Striker, delete_data: bool) {
    let work = async {
        if ask(server, confirmed(delete_data)).await.is_ok() {
            housekeeper(server).erase_due().await;
        }
    };
    tokio::select! {
        () = work => {}
        () = striker.death() => {}
    }
}

/// What holds at every moment, and that what was begun is finished.
async fn converge(world: &World, passwords: &[Password; 2], delete_data: bool) -> Result<(), String> {
    for ring in rings(world) {
        let (key, is_erased) = (ring.path(&tenant()).exists(), ring.is_erased(&tenant()).unwrap());
        if !key && !is_erased {
            return Err("a key is gone, and nothing says that none is made again".to_owned());
        }
    }
    let server = world.server().await;
    let was_asked = server.app.store.erasure_fetch(&tenant()).await.unwrap().is_some();
    if was_asked {
        let made = server.create("again", small_spec(Backend::Overlay)).await;
        if !matches!(&made, Err(Error::Conflict { code: "tenant-erased", .. })) {
            return Err(format!("a tenant that is being erased does not refuse a pod so: {made:?}"));
        }
        // Nobody has to ask again.
        housekeeper(&server).erase_due().await;
    } else {
        if rings(world).iter().any(|ring| !ring.path(&tenant()).exists()) {
            return Err("a key was destroyed before that was recorded".to_owned());
        }
        ask(&server, confirmed(delete_data)).await.map_err(|error| error.to_string())?;
        housekeeper(&server).erase_due().await;
    }
    let end = row(&server).await;
    if !end.is_whole() {
        return Err(format!("not done: {end:?}"));
    }
    for (backend, password) in backends(world).iter().zip(passwords) {
        let left = files(backend, if delete_data { &FileKind::ALL } else { &[FileKind::Key] });
        if left > 0 || opens(backend, password) {
            return Err(format!("{left} files are left"));
        }
    }
    let left = key_files(world);
    if left.iter().any(|name| !name.ends_with(".erased") && !name.ends_with(".made")) {
        return Err(format!("key files are left: {left:?}"));
    }
    let kinds = kinds(&server).await;
    if kinds.iter().filter(|kind| *kind == "tenant.erased").count() != 1 || kinds[0] != "tenant.erase-requested" {
        return Err(format!("the trail is {kinds:?}"));
    }
    Ok(())
}

/// A tenant with nothing but files in both places: hundreds of them are made.
async fn with_files() -> World {
    let world = keyed();
    let places = world.server().await.app.places;
    for repositories in [&places.repositories, places.replicas.as_ref().unwrap()] {
        repositories.prepare(&tenant()).unwrap();
    }
    for backend in backends(&world) {
        for n in 0..2_u8 {
            backend.write(FileKind::Pack, Id::of(&[n]), &[n; 100]).unwrap();
        }
    }
    world
}

async fn sweep(delete_data: bool) {
    let run = async |blow, at| {
        let world = with_files().await;
        // A change of the password that a crash interrupted.
        let passwords = rings(&world).map(|ring| ring.read(&tenant()).unwrap().unwrap());
        for ring in rings(&world) {
            for name in ["next", "old", "next.new"] {
                std::fs::write(ring.path(&tenant()).with_extension(name), "secret").unwrap();
            }
        }
        let striker = Arc::new(Striker::new(blow, at));
        let server = world.server_with(Arc::clone(&striker) as Arc<dyn Tap>).await;
        erase(&server, &striker, delete_data).await;
        drop(server);
        let end = converge(&world, &passwords, delete_data).await;
        (striker.passed(), end)
    };
    let (passed, end) = run(Blow::Count, usize::MAX - 1).await;
    end.unwrap();
    for site in ["store.commit", "keys.write", "keys.remove", "repository.remove"] {
        assert!(passed.iter().any(|one| one == site), "{site} is not swept: {passed:?}");
    }
    let place = passed.iter().any(|one| one == "repository.remove_place");
    assert_eq!(place, delete_data, "{passed:?}");
    let mut violations = Vec::new();
    // Before that it is only looked at what there is.
    let first = passed.iter().position(|site| site == "store.commit").unwrap();
    for (at, site) in passed.iter().enumerate().skip(first) {
        for blow in BLOWS {
            if let (_, Err(violation)) = run(blow, at).await {
                violations.push(format!("{blow:?} at {at} ({site}): {violation}"));
            }
        }
    }
    println!("erasure: {} points swept, {} violations", (passed.len() - first) * BLOWS.len(), violations.len());
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}

#[tokio::test]
async fn sim_sweep_erasing_a_tenant() {
    sweep(false).await;
}

#[tokio::test]
async fn sim_sweep_erasing_a_tenant_and_its_files() {
    sweep(true).await;
}

#[tokio::test]
async fn sim_sweep_deleting_the_files_of_an_erased_tenant_later() {
    let run = async |blow, at| {
        let world = with_files().await;
        let server = world.server().await;
        ask(&server, confirmed(false)).await.unwrap();
        housekeeper(&server).erase_due().await;
        assert!(is_done(&server).await);
        drop(server);
        let striker = Arc::new(Striker::new(blow, at));
        let server = world.server_with(Arc::clone(&striker) as Arc<dyn Tap>).await;
        erase(&server, &striker, true).await;
        drop(server);
        let server = world.server().await;
        let row = server.app.store.erasure_fetch(&tenant()).await.unwrap().unwrap();
        if !row.delete_data {
            ask(&server, confirmed(true)).await.unwrap();
        }
        housekeeper(&server).erase_due().await;
        let left: usize = backends(&world).iter().map(|backend| files(backend, &FileKind::ALL)).sum();
        let keys = key_files(&world);
        let is_clean = left == 0 && keys.iter().all(|name| name.ends_with(".erased") || name.ends_with(".made"));
        let end = if is_done(&server).await && is_clean {
            Ok(())
        } else {
            Err(format!("{left} files and {keys:?} are left: {:?}", server.app.store.erasure_fetch(&tenant()).await))
        };
        (striker.passed(), end)
    };
    let (passed, end) = run(Blow::Count, usize::MAX - 1).await;
    end.unwrap();
    let mut violations = Vec::new();
    for (at, site) in passed.iter().enumerate() {
        for blow in BLOWS {
            if let (_, Err(violation)) = run(blow, at).await {
                violations.push(format!("{blow:?} at {at} ({site}): {violation}"));
            }
        }
    }
    println!("files deleted later: {} points swept, {} violations", passed.len() * BLOWS.len(), violations.len());
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}
