//! The server's own replication: every verified snapshot comes to a second repository, and nothing there goes by mistake
//! (requirements S1.46, S2.52).

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use crate::world::{Server, World, files, small_spec};
use jiff::SignedDuration;
use perennial::reconcile::progress::{ProgressBoard, ShownCopy};
use perennial::reconcile::repositories::{MEMORY_PASSWORD, MemoryRepositories};
use perennial::service::{Caller, CreateRequest, Request};
use perennial::store::EventFilter;
use perennial_core::fault::{Moment, NoTap, Tap, Verdict};
use perennial_core::id::{PodId, SnapshotId};
use perennial_core::progress::{Progress, ProgressReading};
use perennial_core::replication::Part;
use perennial_core::snapshot::Snapshot;
use perennial_core::spec::{Backend, PodName, TenantId};
use perennial_snapshots::{Backend as _, Depth, FileKind, Password, Repository};

fn acme() -> TenantId {
    TenantId::parse("acme").unwrap()
}

fn open(repositories: &MemoryRepositories, tenant: &TenantId) -> Repository {
    Repository::open(Arc::new(repositories.backend(tenant)), &Password::new(MEMORY_PASSWORD)).unwrap()
}

/// What is in a repository: the tags of its snapshots, all of them whole.
fn content(repositories: &MemoryRepositories, tenant: &TenantId) -> BTreeSet<String> {
    let repository = open(repositories, tenant);
    let check = repository.check(Depth::Data, &Progress::default()).unwrap();
    assert!(check.problems.is_empty(), "{:?}", check.problems);
    repository.find(&[]).unwrap().into_iter().map(|info| info.tags.join(" ")).collect()
}

fn clear_locks(world: &World) {
    for repositories in [&world.repositories, &world.replicas] {
        let backend = repositories.backend(&TenantId::default_tenant());
        for lock in backend.list(FileKind::Lock).unwrap() {
            backend.remove(FileKind::Lock, lock.id).unwrap();
        }
    }
}

async fn row(server: &Server, snapshot: SnapshotId) -> Snapshot {
    server.app.store.snapshot_fetch(snapshot).await.unwrap().unwrap()
}

async fn problem(server: &Server) -> Option<String> {
    server.app.store.replica_fetch(&TenantId::default_tenant()).await.unwrap().and_then(|replica| replica.problem)
}

async fn events(server: &Server, kind: &str) -> usize {
    let all = server.app.store.event_list(0, &EventFilter::default(), 1000).await.unwrap();
    all.iter().filter(|event| event.line.kind == kind).count()
}

async fn pod_with(world: &World, server: &Server, name: &str) -> (PodId, SnapshotId) {
    let pod = server.running(name, small_spec(Backend::Overlay)).await;
    world.engine.write(pod, "/srv/work", name).unwrap();
    world.engine.write(pod, "/srv/more", name.repeat(20_000)).unwrap();
    (pod, server.snapshot_of(pod).await)
}

async fn delete(world: &World, server: &Server, snapshot: SnapshotId) {
    let pod = server.app.store.snapshot_fetch(snapshot).await.unwrap().unwrap().pod;
    let name = server.app.store.pod_fetch(pod).await.unwrap().unwrap().name;
    let caller = Caller::admin();
    server.app.snapshot_delete(Request::new(&caller), snapshot, Some(name.as_str())).await.unwrap();
    hours(world, 1);
    server.housekeeper().run_due().await;
    assert_eq!(server.app.store.snapshot_fetch(snapshot).await.unwrap(), None);
}

fn hours(world: &World, hours: i64) {
    world.clock.set(world.clock_now() + SignedDuration::from_hours(hours));
}

/// A store that fails while it is switched on: reads, or writes.
#[derive(Debug)]
struct Away(&'static str, AtomicBool);

impl Tap for Away {
    fn at(&self, site: &str, _moment: Moment) -> Verdict {
        if site == self.0 && self.1.load(Ordering::SeqCst) { Verdict::Fail } else { Verdict::Go }
    }
}

#[tokio::test]
async fn every_verified_snapshot_comes_to_the_replica_of_its_tenant_with_its_image() {
    let world = World::new(460);
    let server = world.server().await;
    let (pod, first) = pod_with(&world, &server, "one").await;
    let create =
        CreateRequest { name: PodName::parse("two").unwrap(), tenant: Some(acme()), plan: None, from_snapshot: None };
    let admin = Caller::admin();
    let created = server.app.create(Request::new(&admin), create, |_| Ok(small_spec(Backend::Overlay))).await.unwrap();
    let other = created.pod.id;
    server.succeed(Ok(created)).await;
    world.engine.write(other, "/srv/work", "of another").unwrap();
    let second = server.snapshot_of(other).await;
    for snapshot in [first, second] {
        assert_eq!(row(&server, snapshot).await.replicated_at, None);
    }
    server.replicator().replicate_due().await;
    let now = world.clock_now();
    for (tenant, snapshot) in [(TenantId::default_tenant(), first), (acme(), second)] {
        let shown = row(&server, snapshot).await;
        assert_eq!((shown.replicated_at, shown.replica_problem), (Some(now), None));
        assert_eq!(content(&world.replicas, &tenant), content(&world.repositories, &tenant));
        let replica = server.app.store.replica_fetch(&tenant).await.unwrap().unwrap();
        assert_eq!((replica.looked_at, replica.problem), (Some(now), None));
        assert_eq!(server.app.store.replica_backlog(&tenant, &replica.id.unwrap()).await.unwrap().count, 0);
    }
    // A second turn moves nothing, and a new snapshot brings only what is new.
    let backend = world.replicas.backend(&TenantId::default_tenant());
    let (packs, names) = (backend.list(FileKind::Pack).unwrap(), backend.list(FileKind::Snapshot).unwrap());
    server.replicator().replicate_due().await;
    assert_eq!((backend.list(FileKind::Pack).unwrap(), backend.list(FileKind::Snapshot).unwrap()), (packs, names));
    world.engine.write(pod, "/srv/work", "newer").unwrap();
    server.succeed(server.stop(pod).await).await;
    let last = server.snapshots(pod).await[0].clone();
    assert_eq!(last.replicated_at, None);
    server.replicator().replicate_due().await;
    assert!(row(&server, last.id).await.replicated_at.is_some());
    assert_eq!(
        content(&world.replicas, &TenantId::default_tenant()),
        content(&world.repositories, &TenantId::default_tenant())
    );
}

#[tokio::test]
async fn law_1_a_stopped_pod_comes_back_from_the_replica_when_the_repository_is_gone() {
    let mut world = World::new(461);
    let server = world.server().await;
    let (pod, old) = pod_with(&world, &server, "one").await;
    world.engine.write(pod, "/srv/work", "last").unwrap();
    let before = files(&world, pod);
    server.succeed(server.stop(pod).await).await;
    server.replicator().replicate_due().await;
    let store = server.app.store.clone();
    drop(server);
    // The repositories are lost for good; the same database goes on with the replicas in their place.
    world.repositories = std::mem::take(&mut world.replicas);
    let server = world.server_on(store, Arc::new(NoTap));
    server.succeed(server.start(pod).await).await;
    assert_eq!(files(&world, pod), before);
    server.succeed(server.restore(pod, old).await).await;
    assert_eq!(files(&world, pod)["/srv/work"], b"one");
    world.engine.write(pod, "/srv/work", "newer").unwrap();
    server.succeed(server.stop(pod).await).await;
    // Nothing is said to be in the new replica before it is.
    let last = server.snapshots(pod).await[0].id;
    server.replicator().replicate_due().await;
    for snapshot in [last, old] {
        assert!(row(&server, snapshot).await.replicated_at.is_some());
    }
    server.succeed(server.start(pod).await).await;
    assert_eq!(files(&world, pod)["/srv/work"], b"newer");
    assert_eq!(
        content(&world.replicas, &TenantId::default_tenant()).len(),
        content(&world.repositories, &TenantId::default_tenant()).len()
    );
}

#[tokio::test]
async fn law_5_what_was_deleted_goes_from_the_replica_after_its_delay_and_nothing_else_ever() {
    let world = World::new(462);
    let server = world.server().await;
    let (pod, old) = pod_with(&world, &server, "one").await;
    world.engine.write(pod, "/srv/work", "two").unwrap();
    let kept = server.snapshot_of(pod).await;
    let tenant = TenantId::default_tenant();
    server.replicator().replicate_due().await;
    let all = content(&world.replicas, &tenant);
    // Behind everybody's back nothing is deleted: what the first repository lost is in the replica for good.
    world.forget_outside(&format!("snapshot:{kept}"));
    delete(&world, &server, old).await;
    server.replicator().replicate_due().await;
    hours(&world, 47);
    server.replicator().replicate_due().await;
    assert_eq!(content(&world.replicas, &tenant), all);
    hours(&world, 2);
    // The first repository cannot be opened: nothing is deleted from what may be the only copy.
    let backend = world.repositories.backend(&tenant);
    let config = backend.read(FileKind::Config, FileKind::CONFIG_ID).unwrap();
    backend.remove(FileKind::Config, FileKind::CONFIG_ID).unwrap();
    drop(server);
    let server = world.server().await;
    server.replicator().replicate_due().await;
    assert!(problem(&server).await.is_some());
    assert_eq!(content(&world.replicas, &tenant), all);
    backend.write(FileKind::Config, FileKind::CONFIG_ID, &config).unwrap();
    server.replicator().replicate_due().await;
    assert_eq!(problem(&server).await, None);
    let left = content(&world.replicas, &tenant);
    let gone: Vec<&String> = all.difference(&left).collect();
    assert!(gone.len() == 1 && gone[0].contains(&old.to_string()), "{gone:?}");
    assert_eq!(events(&server, "replica.forgotten").await, 1);
    // The bytes go later, in two phases; what is kept stays whole.
    let packs = |world: &World| world.replicas.backend(&tenant).list(FileKind::Pack).unwrap().len();
    let before = packs(&world);
    for _ in 0..4 {
        hours(&world, 25);
        server.replicator().replicate_due().await;
    }
    assert!(packs(&world) <= before);
    assert_eq!(content(&world.replicas, &tenant), left);
    assert!(left.iter().any(|tags| tags.contains(&kept.to_string())));
}

#[tokio::test]
async fn p13_a_replica_that_is_away_is_said_to_be_and_caught_up_with() {
    let world = World::new(463);
    let away = Arc::new(Away("repository.write", AtomicBool::new(false)));
    let server = world.server_with(away.clone()).await;
    let (_, snapshot) = pod_with(&world, &server, "one").await;
    away.1.store(true, Ordering::SeqCst);
    server.replicator().replicate_due().await;
    assert!(problem(&server).await.is_some());
    assert_eq!(row(&server, snapshot).await.replicated_at, None);
    let tenant = TenantId::default_tenant();
    let backlog = server.app.store.replica_backlog(&tenant, "").await.unwrap();
    assert_eq!((backlog.count, backlog.oldest), (1, Some(snapshot)));
    away.1.store(false, Ordering::SeqCst);
    server.replicator().replicate_due().await;
    assert_eq!(problem(&server).await, None);
    assert!(row(&server, snapshot).await.replicated_at.is_some());
    // A copy that somebody deleted from the replica is not said to be there any more, and comes again.
    let replica = open(&world.replicas, &tenant);
    let tag = format!("snapshot:{snapshot}");
    let copies: Vec<_> = replica.find(&[&tag]).unwrap().iter().map(|info| info.id).collect();
    replica.forget(&copies).unwrap();
    away.1.store(true, Ordering::SeqCst);
    server.replicator().replicate_due().await;
    let shown = row(&server, snapshot).await;
    assert!(shown.replicated_at.is_none() && shown.replica_problem.is_some(), "{shown:?}");
    assert_eq!(events(&server, "replica.lost").await, 1);
    away.1.store(false, Ordering::SeqCst);
    server.replicator().replicate_due().await;
    assert!(row(&server, snapshot).await.replicated_at.is_some());
    assert_eq!(open(&world.replicas, &tenant).find(&[&tag]).unwrap().len(), 1);
}

#[tokio::test]
async fn what_the_repository_has_lost_is_never_a_good_copy_and_keeps_no_other_back() {
    for of_image in [false, true] {
        let world = World::new(464);
        let server = world.server().await;
        let tenant = TenantId::default_tenant();
        let backend = world.repositories.backend(&tenant);
        let (pod, good) = pod_with(&world, &server, "one").await;
        let before = backend.list(FileKind::Pack).unwrap();
        world.engine.write(pod, "/srv/new", "y".repeat(50_000)).unwrap();
        let hurt = server.snapshot_of(pod).await;
        for pack in backend.list(FileKind::Pack).unwrap() {
            // Those of the first snapshot hold the image, too.
            if before.contains(&pack) == of_image {
                backend.remove(FileKind::Pack, pack.id).unwrap();
            }
        }
        server.replicator().replicate_due().await;
        let shown = row(&server, hurt).await;
        assert!(shown.replicated_at.is_none() && shown.replica_problem.is_some(), "{of_image}: {shown:?}");
        assert_eq!(row(&server, good).await.replicated_at.is_some(), !of_image);
        content(&world.replicas, &tenant);
        assert!(events(&server, "replica.failed").await > 0);
        // It is not read again all the time, and what is whole comes.
        let failures = events(&server, "replica.failed").await;
        server.replicator().replicate_due().await;
        assert_eq!(events(&server, "replica.failed").await, failures);
        hours(&world, 2);
        server.replicator().replicate_due().await;
        assert_eq!(events(&server, "replica.failed").await, failures, "the trail says it once");
        let request =
            perennial_snapshots::RepairRequest { mode: perennial_snapshots::Mode::Execute, now: world.clock_now() };
        open(&world.repositories, &tenant).repair(&request, &Progress::default()).unwrap();
        drop(server);
        let server = world.server().await;
        world.engine.write(pod, "/srv/newer", "z").unwrap();
        let last = server.snapshot_of(pod).await;
        hours(&world, 2);
        server.replicator().replicate_due().await;
        let shown = row(&server, last).await;
        assert!(shown.replicated_at.is_some(), "{of_image}: {shown:?}");
        content(&world.replicas, &tenant);
    }
}

/// The tags of everything in a replica, whole or not.
fn tags(repositories: &MemoryRepositories) -> BTreeSet<String> {
    let found = open(repositories, &TenantId::default_tenant()).find(&[]).unwrap();
    found.into_iter().flat_map(|info| info.tags).collect()
}

#[tokio::test]
async fn what_is_deleted_goes_from_a_first_repository_that_became_the_replica_too() {
    let mut world = World::new(468);
    let server = world.server().await;
    let (pod, old) = pod_with(&world, &server, "one").await;
    world.engine.write(pod, "/srv/work", "two").unwrap();
    let kept = server.snapshot_of(pod).await;
    server.replicator().replicate_due().await;
    let store = server.app.store.clone();
    drop(server);
    // The replica took the place of the first repository, which came back and is given to be the replica.
    std::mem::swap(&mut world.repositories, &mut world.replicas);
    let server = world.server_on(store, Arc::new(NoTap));
    server.replicator().replicate_due().await;
    assert!(row(&server, old).await.replicated_at.is_some());
    delete(&world, &server, old).await;
    server.replicator().replicate_due().await;
    hours(&world, 49);
    // A file that nobody can read keeps nothing there.
    let backend = world.replicas.backend(&TenantId::default_tenant());
    let junk = perennial_snapshots::Id::of(b"junk");
    backend.write(FileKind::Snapshot, junk, b"junk").unwrap();
    server.replicator().replicate_due().await;
    backend.remove(FileKind::Snapshot, junk).unwrap();
    let left = tags(&world.replicas);
    assert!(!left.contains(&format!("snapshot:{old}")), "{left:?}");
    assert!(left.contains(&format!("snapshot:{kept}")), "{left:?}");
    assert_eq!(
        forgotten(&server).await,
        ["1 copies were forgotten in the replica, of 1 originals deleted 48 h before"]
    );
}

async fn forgotten(server: &Server) -> Vec<String> {
    let all = server.app.store.event_list(0, &EventFilter::default(), 1000).await.unwrap();
    all.into_iter().filter(|e| e.line.kind == "replica.forgotten").map(|e| e.line.message).collect()
}

#[tokio::test]
async fn what_was_copied_without_its_image_goes_like_everything_else() {
    let world = World::new(469);
    let server = world.server().await;
    let (_, snapshot) = pod_with(&world, &server, "one").await;
    let image = tags(&world.repositories).into_iter().find(|tag| tag.starts_with("image:")).unwrap();
    world.forget_outside(&image);
    server.replicator().replicate_due().await;
    let shown = row(&server, snapshot).await;
    assert!(shown.replicated_at.is_none() && shown.replica_problem.is_some(), "{shown:?}");
    let tag = format!("snapshot:{snapshot}");
    assert!(tags(&world.replicas).contains(&tag));
    delete(&world, &server, snapshot).await;
    for hours_passed in [1, 47, 2] {
        assert!(tags(&world.replicas).contains(&tag), "{hours_passed}");
        hours(&world, hours_passed);
        server.replicator().replicate_due().await;
    }
    assert!(!tags(&world.replicas).contains(&tag));
    assert_eq!(
        forgotten(&server).await,
        ["1 copies were forgotten in the replica, of 1 originals deleted 48 h before"]
    );
}

#[tokio::test]
async fn a_layer_goes_from_the_replica_as_soon_as_the_next_one_is_there() {
    let world = World::new(470);
    let server = world.server().await;
    let pod = server.running("one", small_spec(Backend::Engine)).await;
    let layers = || {
        let found = open(&world.replicas, &TenantId::default_tenant()).find(&[&format!("layer:{pod}")]).unwrap();
        found.into_iter().map(|info| info.original.unwrap().to_string()).collect::<Vec<_>>()
    };
    for content in ["first", "second", "third"] {
        world.engine.write(pod, "/tools/x", content).unwrap();
        server.snapshot_of(pod).await;
        server.replicator().replicate_due().await;
        server.replicator().replicate_due().await;
        let newest = server.pod(pod).await.layer.unwrap().repository_id.unwrap();
        assert_eq!(layers(), [newest], "{content}");
    }
    assert_eq!(forgotten(&server).await, [""; 0]);
}

/// A store whose reads wait, while it is switched on, until the other end of the channel is gone.
#[derive(Debug)]
struct Slow(AtomicBool, Mutex<std::sync::mpsc::Receiver<()>>);

impl Tap for Slow {
    fn at(&self, site: &str, _moment: Moment) -> Verdict {
        if site == "repository.read" && self.0.load(Ordering::SeqCst) {
            let _ = self.1.lock().unwrap().recv();
        }
        Verdict::Go
    }
}

/// Looks at what is shown of the copies whenever a repository is written to.
#[derive(Default)]
struct Watching {
    board: OnceLock<ProgressBoard>,
    seen: Mutex<Vec<ShownCopy>>,
    fails: AtomicBool,
}

impl Tap for Watching {
    fn at(&self, site: &str, moment: Moment) -> Verdict {
        if site != "repository.write" || moment != Moment::Before {
            return Verdict::Go;
        }
        let shown = self.board.get().and_then(|board| board.copying(&TenantId::default_tenant()));
        self.seen.lock().unwrap().extend(shown);
        if self.fails.load(Ordering::SeqCst) { Verdict::Fail } else { Verdict::Go }
    }
}

#[tokio::test]
async fn what_is_being_copied_is_shown_with_how_far_it_is_and_nothing_afterwards() {
    let world = World::new(473);
    let watching = Arc::new(Watching::default());
    let server = world.server_with(Arc::clone(&watching) as _).await;
    let tenant = TenantId::default_tenant();
    let (pod, first) = pod_with(&world, &server, "one").await;
    world.engine.write(pod, "/srv/next", "next".repeat(9_000)).unwrap();
    let second = server.snapshot_of(pod).await;
    watching.board.set(server.board.clone()).unwrap();
    let take = || std::mem::take(&mut *watching.seen.lock().unwrap());

    // One that fails is not shown any longer either.
    watching.fails.store(true, Ordering::SeqCst);
    server.replicator().replicate_due().await;
    assert_eq!(server.board.copying(&tenant), None);
    watching.fails.store(false, Ordering::SeqCst);
    take();
    hours(&world, 2);
    server.replicator().replicate_due().await;
    assert_eq!(server.board.copying(&tenant), None);
    let seen = take();
    let of = |part: Part, name: &str| -> Vec<ProgressReading> {
        let copies = seen.iter().filter(|shown| shown.what.part == part && shown.what.name == name);
        copies.map(|shown| shown.reading).collect()
    };
    let image = row(&server, first).await.image.unwrap();
    for (part, name) in
        [(Part::Image, image), (Part::Snapshot, second.to_string()), (Part::Snapshot, first.to_string())]
    {
        let readings = of(part, &name);
        let last = readings.last().unwrap_or_else(|| panic!("{part:?} {name}: {seen:?}"));
        assert_eq!(last.bytes_done, last.bytes_total, "all of it was sent before the snapshot file: {readings:?}");
        assert!(readings.iter().all(|now| now.bytes_done <= now.bytes_total), "{readings:?}");
    }
    // Of the older one only what the newer did not bring is sent.
    let sent = |snapshot: SnapshotId| of(Part::Snapshot, &snapshot.to_string()).last().unwrap().bytes_done;
    assert!(sent(second) > 0 && sent(first) < sent(second), "{seen:?}");
    assert_eq!(content(&world.replicas, &tenant), content(&world.repositories, &tenant));
}

#[tokio::test]
async fn a_replica_that_somebody_else_works_on_stays_open() {
    let world = World::new(471);
    let server = world.server().await;
    let (pod, _) = pod_with(&world, &server, "one").await;
    server.replicator().replicate_due().await;
    let backend = world.replicas.backend(&TenantId::default_tenant());
    // Somebody prunes it, and takes his time.
    let (release, wait) = std::sync::mpsc::channel::<()>();
    let slow = Arc::new(Slow(AtomicBool::new(false), Mutex::new(wait)));
    let tapped = perennial::fault::TappedBackend::new(Arc::new(backend.clone()), slow.clone());
    let other = Repository::open(Arc::new(tapped), &Password::new(MEMORY_PASSWORD)).unwrap();
    slow.0.store(true, Ordering::SeqCst);
    let request = perennial_snapshots::PruneRequest {
        mode: perennial_snapshots::Mode::Execute,
        grace: SignedDuration::from_hours(24),
        now: world.clock_now(),
        rewrite_at_most: 0,
    };
    let pruning = std::thread::spawn(move || other.prune_with(&request, &Progress::default()).map(drop));
    while backend.list(FileKind::Lock).unwrap().is_empty() {
        std::thread::yield_now();
    }
    world.engine.write(pod, "/srv/work", "two").unwrap();
    let snapshot = server.snapshot_of(pod).await;
    server.replicator().replicate_due().await;
    assert_eq!((problem(&server).await, row(&server, snapshot).await.replicated_at), (None, None));
    drop(release);
    pruning.join().unwrap().unwrap();
    // Only who opens a repository reads this.
    let config = backend.read(FileKind::Config, FileKind::CONFIG_ID).unwrap();
    backend.remove(FileKind::Config, FileKind::CONFIG_ID).unwrap();
    server.replicator().replicate_due().await;
    assert_eq!(problem(&server).await, None);
    assert!(row(&server, snapshot).await.replicated_at.is_some());
    backend.write(FileKind::Config, FileKind::CONFIG_ID, &config).unwrap();
}

#[tokio::test]
async fn a_snapshot_whose_image_is_gone_from_the_replica_is_not_said_to_be_there() {
    let world = World::new(472);
    let away = Arc::new(Away("repository.write", AtomicBool::new(false)));
    let server = world.server_with(away.clone()).await;
    let (_, snapshot) = pod_with(&world, &server, "one").await;
    server.replicator().replicate_due().await;
    assert!(row(&server, snapshot).await.replicated_at.is_some());
    let replica = open(&world.replicas, &TenantId::default_tenant());
    let image = tags(&world.replicas).into_iter().find(|tag| tag.starts_with("image:")).unwrap();
    let copies: Vec<_> = replica.find(&[&image]).unwrap().iter().map(|info| info.id).collect();
    replica.forget(&copies).unwrap();
    away.1.store(true, Ordering::SeqCst);
    server.replicator().replicate_due().await;
    let shown = row(&server, snapshot).await;
    assert_eq!(shown.replicated_at, None);
    assert!(shown.replica_problem.unwrap().contains("image"));
    away.1.store(false, Ordering::SeqCst);
    server.replicator().replicate_due().await;
    let shown = row(&server, snapshot).await;
    assert_eq!((shown.replicated_at, shown.replica_problem), (Some(world.clock_now()), None));
    assert!(tags(&world.replicas).contains(&image));
}

#[tokio::test]
async fn what_cannot_go_from_a_replica_keeps_no_copy_waiting() {
    let world = World::new(473);
    let server = world.server().await;
    let (pod, _) = pod_with(&world, &server, "one").await;
    let keeper = server.replicator();
    keeper.replicate_due().await;
    // No prune can tell what a file needs that nobody can read.
    let backend = world.replicas.backend(&TenantId::default_tenant());
    let junk = perennial_snapshots::Id::of(b"junk");
    backend.write(FileKind::Snapshot, junk, b"junk").unwrap();
    hours(&world, 25);
    keeper.replicate_due().await;
    let told = problem(&server).await.unwrap();
    assert!(told.starts_with("copies go on"), "{told}");
    world.engine.write(pod, "/srv/work", "two").unwrap();
    let snapshot = server.snapshot_of(pod).await;
    keeper.replicate_due().await;
    assert!(row(&server, snapshot).await.replicated_at.is_some());
    assert_eq!(problem(&server).await, Some(told));
    backend.remove(FileKind::Snapshot, junk).unwrap();
    hours(&world, 1);
    keeper.replicate_due().await;
    assert_eq!(problem(&server).await, None);
}

#[tokio::test]
async fn law_7_many_deletions_at_once_are_told_while_the_copies_are_still_there() {
    let world = World::new(474);
    let server = world.server().await;
    let (pod, first) = pod_with(&world, &server, "one").await;
    let mut snapshots = vec![first];
    for n in 0..6 {
        world.engine.write(pod, "/srv/work", format!("{n}")).unwrap();
        snapshots.push(server.snapshot_of(pod).await);
    }
    server.replicator().replicate_due().await;
    delete(&world, &server, snapshots[0]).await;
    server.replicator().replicate_due().await;
    assert_eq!(events(&server, "replica.many-gone").await, 0);
    for snapshot in &snapshots[1..5] {
        delete(&world, &server, *snapshot).await;
    }
    for _ in 0..2 {
        server.replicator().replicate_due().await;
        assert_eq!(events(&server, "replica.many-gone").await, 1);
    }
    let there = tags(&world.replicas);
    assert!(snapshots.iter().all(|snapshot| there.contains(&format!("snapshot:{snapshot}"))), "{there:?}");
}

#[tokio::test]
async fn another_replica_holds_nothing_until_everything_was_copied_to_it() {
    let mut world = World::new(465);
    let server = world.server().await;
    let (_, snapshot) = pod_with(&world, &server, "one").await;
    server.replicator().replicate_due().await;
    assert!(row(&server, snapshot).await.replicated_at.is_some());
    let store = server.app.store.clone();
    drop(server);
    world.replicas = MemoryRepositories::default();
    // It can be made, and then nothing can be written to it.
    let full = Arc::new(Sweep::new(6, false));
    let server = world.server_on(store, full.clone());
    server.replicator().replicate_due().await;
    let shown = row(&server, snapshot).await;
    assert_eq!(shown.replicated_at, None, "{:?}", full.passed.load(Ordering::SeqCst));
    clear_locks(&world);
    let server = world.server().await;
    server.replicator().replicate_due().await;
    assert!(row(&server, snapshot).await.replicated_at.is_some());
    let tenant = TenantId::default_tenant();
    assert_eq!(content(&world.replicas, &tenant), content(&world.repositories, &tenant));
}

/// Dies at one of the calls that change something, before it or after it.
#[derive(Debug)]
struct Sweep {
    at: usize,
    after: bool,
    passed: AtomicUsize,
    dead: AtomicBool,
}

impl Sweep {
    fn new(at: usize, after: bool) -> Self {
        Self { at, after, passed: AtomicUsize::new(0), dead: AtomicBool::new(false) }
    }
}

impl Tap for Sweep {
    fn at(&self, site: &str, moment: Moment) -> Verdict {
        let fails = if site == perennial::store::COMMIT_SITE { Verdict::Fail } else { Verdict::Die };
        if self.dead.load(Ordering::SeqCst) {
            return fails;
        }
        if site == "repository.read" || moment == (if self.after { Moment::Before } else { Moment::After }) {
            return Verdict::Go;
        }
        if self.passed.fetch_add(1, Ordering::SeqCst) == self.at {
            self.dead.store(true, Ordering::SeqCst);
            return fails;
        }
        Verdict::Go
    }
}

#[tokio::test]
async fn law_9_a_replication_that_dies_anywhere_is_gone_on_with_and_says_nothing_that_is_not_so() {
    for after in [false, true] {
        let mut points = 0;
        for at in 0.. {
            let world = World::new(466);
            let server = world.server().await;
            let (pod, first) = pod_with(&world, &server, "one").await;
            world.engine.write(pod, "/srv/work", "two").unwrap();
            let second = server.snapshot_of(pod).await;
            server.replicator().replicate_due().await;
            // One has to be forgotten, another one comes.
            delete(&world, &server, first).await;
            server.replicator().replicate_due().await;
            hours(&world, 49);
            world.engine.write(pod, "/srv/work", "three").unwrap();
            let third = server.snapshot_of(pod).await;
            let store = server.app.store.clone();
            drop(server);
            let sweep = Arc::new(Sweep::new(at, after));
            let dying = world.server_on(store.with_tap(sweep.clone()), sweep.clone());
            dying.replicator().replicate_due().await;
            drop(dying);
            let died = sweep.dead.load(Ordering::SeqCst);
            clear_locks(&world);
            let tenant = TenantId::default_tenant();
            let server = world.server().await;
            // Whatever is said to be there is there, whole, at every moment.
            let there = content(&world.replicas, &tenant);
            for snapshot in [second, third] {
                let is_there = there.iter().any(|tags| tags.contains(&format!("snapshot:{snapshot}")));
                assert!(is_there || row(&server, snapshot).await.replicated_at.is_none(), "at {at}");
            }
            server.replicator().replicate_due().await;
            assert_eq!(problem(&server).await, None, "at {at}");
            for snapshot in [second, third] {
                assert!(row(&server, snapshot).await.replicated_at.is_some(), "at {at}");
            }
            assert_eq!(content(&world.replicas, &tenant), content(&world.repositories, &tenant), "at {at}");
            if !died {
                break;
            }
            points += 1;
        }
        println!("{points} points swept, after: {after}");
        assert!(points > 8, "{points}");
    }
}
