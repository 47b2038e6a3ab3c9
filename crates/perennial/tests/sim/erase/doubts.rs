//! What is not proven to be the tenant's is not touched, however it came to be there, and whoever says that it was erased says
//! what became of each place.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use perennial::reconcile::repositories::MemoryRepositories;
use perennial::service::{App, Caller};
use perennial::store::{Became, EventFilter, Store};
use perennial_core::fault::{Moment, NoTap, Tap, Verdict};
use perennial_snapshots::{Backend as _, FileKind, Id, KeyCost, MemoryBackend, Password, Repository};

use super::{
    accepted, ask, backends, code, confirmed, dry, files, housekeeper, is_done, keyed, meaning, rings, row, tenant,
    without_pods,
};
use crate::world::{Server, World};

async fn last_word(server: &Server) -> String {
    let all = server.app.store.event_list(0, &EventFilter::default(), 1000).await.unwrap();
    all.into_iter().rfind(|event| event.line.kind == "tenant.erased").unwrap().line.message
}

/// Goes on until nothing more is done, and returns why it is not done.
pub async fn problem(server: &Server) -> String {
    housekeeper(server).erase_due().await;
    let row = row(server).await;
    assert_eq!(row.done_at, None);
    row.problems().unwrap()
}

pub fn all_files(backend: &MemoryBackend) -> usize {
    files(backend, &FileKind::ALL)
}

pub fn remove(path: &Path) {
    std::fs::remove_file(path).unwrap();
}

fn made(world: &World) -> [std::path::PathBuf; 2] {
    rings(world).map(|ring| ring.path(&tenant()).with_extension("made"))
}

#[tokio::test]
async fn sim_a_place_that_could_not_be_looked_at_is_left_as_it_is_and_is_called_so() {
    let mut world = keyed();
    drop(without_pods(&world).await);
    let there = std::mem::take(&mut world.repositories);
    let server = world.server().await;
    let (code_, text) = code(ask(&server, confirmed(true)).await);
    assert!(code_ == "tenant-unclear" && text.contains("is its disk mounted?"), "{text}");
    let plan = ask(&server, dry()).await.unwrap();
    assert!(plan.meaning.iter().any(|line| line.contains("is not touched: whoever has a recovery kit")), "{plan:?}");
    let request = accepted(&server, true).await;
    ask(&server, request).await.unwrap();
    // It comes back, and somebody else may use it by then.
    world.repositories = there;
    let server = world.server().await;
    let before = all_files(&backends(&world)[1]);
    housekeeper(&server).erase_due().await;
    let shown = row(&server).await;
    assert!(shown.done_at.is_some() && !shown.is_whole(), "{shown:?}");
    assert_eq!(shown.found.repository.became, Some(Became::Untouched));
    assert_eq!(all_files(&backends(&world)[1]), before);
    assert_eq!(all_files(&backends(&world)[0]), 0);
    let told = meaning(&server).await;
    assert_eq!(told.iter().filter(|line| line.starts_with("memory:default is not touched")).count(), 1, "{told:?}");
    assert_eq!(told.iter().filter(|line| line.starts_with("All files in memory:default")).count(), 1, "{told:?}");
    // Not when it is asked for again either.
    ask(&server, confirmed(true)).await.unwrap();
    housekeeper(&server).erase_due().await;
    assert_eq!(all_files(&backends(&world)[1]), before);
}

#[tokio::test]
async fn sim_a_repository_whose_key_is_not_here_is_not_touched() {
    let world = keyed();
    let server = without_pods(&world).await;
    // As another installation finds it, whose configuration names this place: its tenant has the same name.
    let [replica, first] = rings(&world).map(|ring| ring.path(&tenant()));
    let password = std::fs::read(&first).unwrap();
    remove(&first);
    let [_, marker] = made(&world);
    remove(&marker);
    drop(server);
    let server = world.server().await;
    let (code_, text) = code(ask(&server, confirmed(true)).await);
    assert!(code_ == "tenant-unclear" && text.contains("nobody can say whose snapshots these are"), "{text}");
    let before = all_files(&backends(&world)[1]);
    let request = accepted(&server, true).await;
    ask(&server, request).await.unwrap();
    housekeeper(&server).erase_due().await;
    assert!(!replica.exists() && all_files(&backends(&world)[0]) == 0, "what is the tenant's goes");
    assert_eq!(all_files(&backends(&world)[1]), before);
    // Nobody says that it was deleted.
    assert!(is_done(&server).await && !row(&server).await.is_whole());
    let told = last_word(&server).await;
    assert!(told.contains("memory:default was not touched"), "{told}");
    let told = meaning(&server).await;
    assert_eq!(told.iter().filter(|line| line.starts_with("memory:default is not touched")).count(), 1, "{told:?}");
    let password = Password::new(String::from_utf8(password).unwrap().trim());
    assert!(Repository::open(Arc::new(backends(&world)[1].clone()), &password).is_ok(), "its owner still opens it");
}

#[tokio::test]
async fn sim_a_repository_that_the_key_does_not_open_is_somebody_elses() {
    let world = keyed();
    drop(without_pods(&world).await);
    std::fs::write(rings(&world)[1].path(&tenant()), "another password").unwrap();
    let server = world.server().await;
    for request in [confirmed(true), accepted(&server, true).await] {
        let (code_, text) = code(ask(&server, request).await);
        assert!(code_ == "tenant-in-use" && text.contains("somebody else's"), "{text}");
    }
    let plan = ask(&server, dry()).await.unwrap();
    assert_eq!((plan.blockers.len(), plan.found.repository.seen), (1, None));
}

#[tokio::test]
async fn sim_a_place_that_is_exchanged_after_it_was_asked_for_is_not_touched() {
    let mut world = keyed();
    let server = without_pods(&world).await;
    let password = rings(&world)[1].read(&tenant()).unwrap().unwrap();
    ask(&server, confirmed(true)).await.unwrap();
    drop(server);
    // The configuration names the place of somebody else, or the tenant's copy that is to be kept. The password is the same.
    let other = MemoryRepositories::default();
    Repository::init(Arc::new(other.backend(&tenant())), &password, KeyCost::Test).unwrap();
    let right = std::mem::replace(&mut world.repositories, other);
    let before = all_files(&backends(&world)[1]);
    let server = world.server().await;
    let why = problem(&server).await;
    assert!(why.contains("another repository is there"), "{why}");
    assert_eq!(all_files(&backends(&world)[1]), before);
    // One that lost its config proves nothing either.
    let hurt = backends(&world)[1].clone();
    hurt.write(FileKind::Pack, Id::of(b"pack"), b"pack").unwrap();
    hurt.remove(FileKind::Config, FileKind::CONFIG_ID).unwrap();
    assert!(problem(&server).await.contains("is not there"));
    assert_eq!(all_files(&hurt), before);
    world.repositories = right;
    let server = world.server().await;
    housekeeper(&server).erase_due().await;
    assert!(is_done(&server).await && all_files(&backends(&world)[1]) == 0);
}

#[tokio::test]
async fn sim_what_a_replica_holds_that_was_never_copied_there_is_a_doubt() {
    let mut world = keyed();
    drop(without_pods(&world).await);
    // The replica became the repository of another host, or all there is: this database has it copied nothing there.
    world.repositories = MemoryRepositories::default();
    let [_, marker] = made(&world);
    remove(&marker);
    let other = Store::open("sqlite::memory:", Arc::new(NoTap)).await.unwrap();
    let server = world.server_on(other, Arc::new(NoTap));
    server.app.places.repositories.prepare(&tenant()).unwrap();
    let (code_, text) = code(ask(&server, confirmed(true)).await);
    assert!(
        code_ == "tenant-unclear"
            && text.contains("snapshots that this server never copied there, and they would be destroyed"),
        "{text}"
    );
    assert!(all_files(&backends(&world)[0]) > 0);
}

/// Has the erasure asked for again, with the files, while the keys in a place go.
#[derive(Default)]
struct AsksAgain {
    app: Mutex<Option<App>>,
    did: AtomicBool,
}

impl Tap for AsksAgain {
    fn at(&self, site: &str, moment: Moment) -> Verdict {
        if site == "repository.remove"
            && moment == Moment::Before
            && let Some(app) = self.app.lock().unwrap().take()
        {
            // Places are dealt with on threads that may wait.
            tokio::runtime::Handle::current().block_on(async {
                app.tenant_erase(&Caller::admin(), &tenant(), &confirmed(true)).await.unwrap();
            });
            self.did.store(true, Ordering::SeqCst);
        }
        Verdict::Go
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sim_files_that_are_asked_for_while_the_keys_go_are_not_called_deleted_before_they_are() {
    let world = keyed();
    let server = without_pods(&world).await;
    ask(&server, confirmed(false)).await.unwrap();
    drop(server);
    let tap = Arc::new(AsksAgain::default());
    let server = world.server_with(Arc::clone(&tap) as Arc<dyn Tap>).await;
    *tap.app.lock().unwrap() = Some(server.app.clone());
    housekeeper(&server).erase_due().await;
    assert!(tap.did.load(Ordering::SeqCst) && !is_done(&server).await, "the keys alone are not all that is asked for");
    assert!(backends(&world).iter().all(|backend| all_files(backend) > 0));
    housekeeper(&server).erase_due().await;
    assert!(is_done(&server).await && backends(&world).iter().all(|backend| all_files(backend) == 0));
    assert!(last_word(&server).await.contains("all files in memory:default are deleted"));
}

#[tokio::test]
async fn sim_a_place_that_somebody_else_uses_since_is_not_touched() {
    // A takeover: first the other host writes snapshots there; or it has only changed the password so far.
    for changes_the_password in [false, true] {
        let world = keyed();
        let server = without_pods(&world).await;
        let [password, _] = rings(&world).map(|ring| ring.read(&tenant()).unwrap().unwrap());
        ask(&server, confirmed(true)).await.unwrap();
        let [replica, first] = backends(&world);
        let next = Password::new("of the other host");
        if changes_the_password {
            let repository = Repository::open(Arc::new(replica.clone()), &password).unwrap();
            let before = replica.list(FileKind::Key).unwrap();
            repository.add_password(&next, KeyCost::Test).unwrap();
            for key in before {
                replica.remove(FileKind::Key, key.id).unwrap();
            }
        } else {
            replica.write(FileKind::Snapshot, Id::of(b"new"), b"new").unwrap();
        }
        let before = all_files(&replica);
        let why = problem(&server).await;
        assert!(why.contains("somebody else goes on with it"), "{why}");
        assert_eq!((all_files(&replica), all_files(&first)), (before, 0));
        if changes_the_password {
            assert!(Repository::open(Arc::new(replica), &next).is_ok());
        }
        assert_eq!(row(&server).await.found.replica.unwrap().became, None);
    }
}

#[tokio::test]
async fn sim_keys_that_are_put_back_where_only_the_files_stayed_keep_them() {
    let world = keyed();
    let server = without_pods(&world).await;
    let [replica, _] = backends(&world);
    let [key] = replica.list(FileKind::Key).unwrap().try_into().unwrap();
    let text = replica.read(FileKind::Key, key.id).unwrap();
    ask(&server, confirmed(false)).await.unwrap();
    housekeeper(&server).erase_due().await;
    assert!(is_done(&server).await);
    // Out of a version that the bucket kept: somebody wants what is there.
    replica.write(FileKind::Key, key.id, &text).unwrap();
    let before = all_files(&replica);
    ask(&server, confirmed(true)).await.unwrap();
    let why = problem(&server).await;
    assert!(why.contains("somebody else goes on with it"), "{why}");
    assert_eq!(all_files(&replica), before);
}

#[tokio::test]
async fn sim_a_key_without_its_repository_is_not_called_empty() {
    let mut world = keyed();
    drop(without_pods(&world).await);
    // A host made from a recovery kit: the key is there, the disk not yet, and nothing was opened so far.
    for marker in made(&world) {
        remove(&marker);
    }
    let there = std::mem::take(&mut world.repositories);
    let server = world.server().await;
    let plan = ask(&server, dry()).await.unwrap();
    assert_eq!((plan.found.repository.snapshots, plan.found.repository.became), (None, Some(Became::Untouched)));
    assert_eq!(code(ask(&server, confirmed(true)).await).0, "tenant-unclear");
    let request = accepted(&server, true).await;
    ask(&server, request).await.unwrap();
    // Nobody saw that the key opens it, so that it stays, and is not called deleted.
    world.repositories = there;
    let server = world.server().await;
    housekeeper(&server).erase_due().await;
    assert!(is_done(&server).await && last_word(&server).await.contains("was not touched"));
    assert!(all_files(&backends(&world)[1]) > 0);
}
