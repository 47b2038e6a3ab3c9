//! What happens to snapshots after they were verified: drills prove them, or find what is wrong (incident P38).

use std::num::NonZeroU8;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use crate::world::{Server, World, small_spec};
use jiff::SignedDuration;
use jiff::tz::TimeZone;
use perennial::service::{Caller, Request};
use perennial::tasks::DrillRules;
use perennial_core::fault::{Moment, Tap, Verdict};
use perennial_core::id::{PodId, SnapshotId};
use perennial_core::operation::{Operation, OperationState};
use perennial_core::schedule::Schedule;
use perennial_core::snapshot::Snapshot;
use perennial_core::spec::{Backend, TenantId};
use perennial_snapshots::{Backend as _, FileKind};

/// A store that does not answer reads while it is switched on.
#[derive(Debug, Default)]
struct Silent(AtomicBool);

impl Tap for Silent {
    fn at(&self, site: &str, _moment: Moment) -> Verdict {
        if site == "repository.read" && self.0.load(Ordering::SeqCst) { Verdict::Fail } else { Verdict::Go }
    }
}

async fn asked(server: &Server, snapshot: SnapshotId) -> Operation {
    server.app.snapshot_drill(Request::new(&Caller::admin()), snapshot).await.unwrap().operation
}

async fn drilled(server: &Server, snapshot: SnapshotId) -> Operation {
    let operation = asked(server, snapshot).await;
    server.housekeeper().drill_due().await;
    server.operation(operation.id).await
}

async fn row(server: &Server, snapshot: SnapshotId) -> Snapshot {
    server.app.store.snapshot_fetch(snapshot).await.unwrap().unwrap()
}

async fn pod_with_snapshot(world: &World, server: &Server) -> (PodId, SnapshotId) {
    let pod = server.running("dev", small_spec(Backend::Overlay)).await;
    world.engine.write(pod, "/srv/work", "one").unwrap();
    world.engine.write(pod, "/srv/more", "x".repeat(100_000)).unwrap();
    world.engine.remove(pod, "/home/seed").unwrap();
    server.succeed(server.snapshot(pod).await).await;
    (pod, server.snapshots(pod).await[0].id)
}

async fn event_kinds(server: &Server, pod: PodId) -> Vec<String> {
    let filter = perennial::store::EventFilter { pod: Some(pod), ..Default::default() };
    let events = server.app.store.event_list(0, &filter, 1000).await.unwrap();
    events.into_iter().map(|event| event.line.kind).collect()
}

/// Flips a bit in the middle of every pack, or takes every pack away.
fn damage(world: &World, gone: bool) {
    let backend = world.repositories.backend(&TenantId::default_tenant());
    for pack in backend.list(FileKind::Pack).unwrap() {
        let mut data = backend.read(FileKind::Pack, pack.id).unwrap();
        let middle = data.len() / 3;
        data[middle] ^= 1;
        if gone {
            backend.remove(FileKind::Pack, pack.id).unwrap();
        } else {
            backend.write(FileKind::Pack, pack.id, &data).unwrap();
        }
    }
}

/// Repairs the repository by hand, beside the server.
fn repair(world: &World) -> perennial_snapshots::RepairReport {
    use perennial_snapshots::{Mode, Password, RepairRequest, Repository};
    let backend = Arc::new(world.repositories.backend(&TenantId::default_tenant()));
    let password = Password::new(perennial::reconcile::repositories::MEMORY_PASSWORD);
    let request = RepairRequest { mode: Mode::Execute, now: world.clock_now() };
    let progress = perennial_core::progress::Progress::default();
    Repository::open(backend, &password).unwrap().repair(&request, &progress).unwrap()
}

#[tokio::test]
async fn p38_a_drill_proves_a_snapshot_and_says_when() {
    let world = World::new(381);
    let server = world.server().await;
    let (pod, snapshot) = pod_with_snapshot(&world, &server).await;
    assert_eq!(server.app.store.proof_fetch(pod).await.unwrap(), None);
    let operation = drilled(&server, snapshot).await;
    assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
    let now = world.clock_now();
    let shown = row(&server, snapshot).await;
    assert_eq!((shown.proven_at, shown.drilled_at, shown.damage), (Some(now), Some(now), None));
    let proof = server.app.store.proof_fetch(pod).await.unwrap().unwrap();
    assert_eq!(proof.proven, Some((snapshot, now)));
    assert!(event_kinds(&server, pod).await.contains(&"snapshot.proven".to_owned()));
    // A newer snapshot is not proven by it, and the pod's proof stays.
    server.succeed(server.stop(pod).await).await;
    let newest = server.snapshots(pod).await[0].clone();
    assert_eq!(newest.proven_at, None);
    assert!(server.app.store.proof_fetch(pod).await.unwrap().unwrap().proven.is_some());
    // Also of a stopped pod, whose data is nowhere else.
    let operation = drilled(&server, newest.id).await;
    assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
}

#[tokio::test]
async fn p38_a_drill_finds_damage_and_says_so_until_it_is_healed() {
    for gone in [false, true] {
        let world = World::new(382);
        let server = world.server().await;
        let (pod, snapshot) = pod_with_snapshot(&world, &server).await;
        assert_eq!(drilled(&server, snapshot).await.state, OperationState::Succeeded);
        damage(&world, gone);
        let operation = drilled(&server, snapshot).await;
        assert_eq!(operation.state, OperationState::Failed, "{operation:?}");
        let problem = operation.error.unwrap();
        assert_eq!(problem.code, "snapshot-damaged");
        assert!(problem.hint.contains("repository repair"), "{problem:?}");
        let shown = row(&server, snapshot).await;
        assert!(shown.proven_at.is_none() && shown.damage.is_some(), "{shown:?}");
        assert_eq!(server.app.store.proof_fetch(pod).await.unwrap().unwrap().proven, None);
        assert!(event_kinds(&server, pod).await.contains(&"snapshot.damaged".to_owned()));
        // Nothing was moved meanwhile. After a repair by hand the next snapshot is whole, and proven.
        assert!(!repair(&world).hurt.is_empty());
        server.succeed(server.snapshot(pod).await).await;
        let newest = server.snapshots(pod).await[0].id;
        assert_eq!(drilled(&server, newest).await.state, OperationState::Succeeded);
        assert!(server.app.store.proof_fetch(pod).await.unwrap().unwrap().proven.is_some());
    }
}

#[tokio::test]
async fn p38_a_drill_that_could_not_run_is_neither_proof_nor_failure_of_the_snapshot() {
    let world = World::new(383);
    let silent = Arc::new(Silent::default());
    let server = world.server_with(silent.clone()).await;
    let (pod, snapshot) = pod_with_snapshot(&world, &server).await;
    silent.0.store(true, Ordering::SeqCst);
    let operation = drilled(&server, snapshot).await;
    assert_eq!((operation.state, operation.error.unwrap().code.as_str()), (OperationState::Failed, "drill-not-run"));
    silent.0.store(false, Ordering::SeqCst);
    // No place to restore to.
    let scratch = world.scratch();
    let _ = std::fs::remove_dir_all(&scratch);
    std::fs::write(&scratch, "in the way").unwrap();
    let operation = drilled(&server, snapshot).await;
    assert_eq!(operation.error.unwrap().code, "drill-not-run");
    std::fs::remove_file(&scratch).unwrap();
    let shown = row(&server, snapshot).await;
    assert_eq!((shown.proven_at, shown.drilled_at, shown.damage), (None, None, None));
    assert_eq!(server.app.store.proof_fetch(pod).await.unwrap(), None);
    assert_eq!(drilled(&server, snapshot).await.state, OperationState::Succeeded);
}

#[tokio::test]
async fn a_drill_is_asked_for_once_can_be_cancelled_and_holds_its_snapshot() {
    let world = World::new(384);
    let server = world.server().await;
    let (_, snapshot) = pod_with_snapshot(&world, &server).await;
    let (admin, first) = (Caller::admin(), asked(&server, snapshot).await);
    assert_eq!(asked(&server, snapshot).await.id, first.id);
    let refused = server.app.snapshot_delete(Request::new(&admin), snapshot, None).await.unwrap_err();
    assert!(refused.to_string().contains("snapshot-drill"), "{refused}");
    server.app.cancel(Request::new(&admin), first.id).await.unwrap();
    server.housekeeper().drill_due().await;
    assert_eq!(server.operation(first.id).await.state, OperationState::Cancelled);
    assert_eq!(row(&server, snapshot).await.drilled_at, None);
    assert!(server.app.cancel(Request::new(&admin), first.id).await.is_err());
    // What was asked for before a crash is done by the server that comes back, and what was left behind goes.
    let asked_before = asked(&server, snapshot).await;
    let left = world.scratch().join("drill-left");
    std::fs::create_dir_all(left.join("part")).unwrap();
    drop(server);
    let server = world.server().await;
    server.reconciler.drills_clean_up();
    assert!(!left.exists());
    server.housekeeper().drill_due().await;
    assert_eq!(server.operation(asked_before.id).await.state, OperationState::Succeeded);
    assert_eq!(std::fs::read_dir(world.scratch()).unwrap().count(), 0);
}

/// Holds the first read of the repository until it is opened.
#[derive(Debug, Default)]
struct Gate {
    closed: AtomicBool,
    reached: tokio::sync::Notify,
    open: (Mutex<bool>, Condvar),
}

impl Tap for Gate {
    fn at(&self, site: &str, _moment: Moment) -> Verdict {
        if site == "repository.read" && self.closed.swap(false, Ordering::SeqCst) {
            self.reached.notify_one();
            drop(self.open.1.wait_while(self.open.0.lock().unwrap(), |open| !*open).unwrap());
        }
        Verdict::Go
    }
}

#[tokio::test]
async fn a_drill_that_is_cancelled_while_another_is_in_work_is_not_begun() {
    let world = World::new(389);
    let gate = Arc::new(Gate::default());
    let server = world.server_with(gate.clone()).await;
    let (pod, first) = pod_with_snapshot(&world, &server).await;
    world.engine.write(pod, "/srv/work", "two").unwrap();
    server.succeed(server.snapshot(pod).await).await;
    let second = server.snapshots(pod).await.into_iter().find(|row| row.id != first).unwrap().id;
    let (in_work, waiting) = (asked(&server, first).await, asked(&server, second).await);
    gate.closed.store(true, Ordering::SeqCst);
    let housekeeper = server.housekeeper();
    tokio::join!(housekeeper.drill_due(), async {
        gate.reached.notified().await;
        server.app.cancel(Request::new(&Caller::admin()), waiting.id).await.unwrap();
        *gate.open.0.lock().unwrap() = true;
        gate.open.1.notify_all();
    });
    assert_eq!(server.operation(in_work.id).await.state, OperationState::Succeeded);
    assert_eq!(server.operation(waiting.id).await.state, OperationState::Cancelled);
    assert!(row(&server, first).await.drilled_at.is_some());
    assert_eq!(row(&server, second).await.drilled_at, None);
}

#[tokio::test]
async fn a_snapshot_that_is_not_verified_is_not_drilled() {
    let world = World::new(385);
    let server = world.server().await;
    let pod = server.running("dev", small_spec(Backend::Overlay)).await;
    server.snapshot(pod).await.unwrap();
    let pending = server.snapshots(pod).await[0].id;
    let refused = server.app.snapshot_drill(Request::new(&Caller::admin()), pending).await.unwrap_err();
    assert!(refused.to_string().contains("not verified"), "{refused}");
}

#[tokio::test]
async fn p38_the_schedule_drills_the_longest_unproven_first_and_once_a_turn() {
    let world = World::new(386);
    let server = world.server().await;
    let mut pods = Vec::new();
    for name in ["one", "two", "three"] {
        let pod = server.running(name, small_spec(Backend::Overlay)).await;
        world.engine.write(pod, "/srv/work", name).unwrap();
        server.succeed(server.snapshot(pod).await).await;
        pods.push(pod);
    }
    let rules = DrillRules {
        schedule: Schedule::parse("0 4 * * *", TimeZone::UTC).unwrap(),
        share: NonZeroU8::new(50).unwrap(),
    };
    let proven = async || {
        let mut found = Vec::new();
        for pod in &pods {
            found.push(server.app.store.proof_fetch(*pod).await.unwrap().and_then(|proof| proof.proven.map(|p| p.1)));
        }
        found
    };
    let day = |n: i64| world.clock_now() + SignedDuration::from_hours(24 * n);
    let due = async || server.housekeeper().with_drills(Some(rules.clone())).drill_due().await;
    // By hand, one of them.
    let second = server.snapshots(pods[1]).await[0].id;
    assert_eq!(drilled(&server, second).await.state, OperationState::Succeeded);
    let by_hand = world.clock_now();
    due().await;
    assert_eq!(proven().await, [None, Some(by_hand), None], "the first turn is the schedule's, not the start's");
    world.clock.set(day(1));
    let first_turn = world.clock_now();
    due().await;
    due().await;
    assert_eq!(proven().await, [Some(first_turn), Some(by_hand), Some(first_turn)]);
    world.clock.set(day(1));
    due().await;
    let after = proven().await;
    assert_eq!(after[1], Some(world.clock_now()), "the one that was proven longest ago is next: {after:?}");
    assert_eq!(after.iter().filter(|at| **at == Some(first_turn)).count(), 1);
    // Without a schedule nothing comes by itself, and one that is deleted meanwhile is passed over.
    world.clock.set(day(5));
    server.housekeeper().drill_due().await;
    assert_eq!(proven().await, after);
}

#[tokio::test]
async fn p38_a_pod_whose_drills_prove_nothing_does_not_keep_the_others_waiting() {
    let world = World::new(388);
    let server = world.server().await;
    let mut pods = Vec::new();
    for name in ["one", "two", "three"] {
        let pod = server.running(name, small_spec(Backend::Overlay)).await;
        world.engine.write(pod, "/srv/work", name.repeat(1000)).unwrap();
        pods.push(pod);
    }
    // The one that comes first of those that were never drilled is the last to be stored, so that nobody shares its packs.
    pods.sort();
    let backend = world.repositories.backend(&TenantId::default_tenant());
    let mut before = Vec::new();
    for pod in pods.iter().rev() {
        before = backend.list(FileKind::Pack).unwrap();
        server.succeed(server.snapshot(*pod).await).await;
    }
    for pack in backend.list(FileKind::Pack).unwrap().into_iter().filter(|pack| !before.contains(pack)) {
        backend.remove(FileKind::Pack, pack.id).unwrap();
    }
    let rules = DrillRules {
        schedule: Schedule::parse("0 4 * * *", TimeZone::UTC).unwrap(),
        share: NonZeroU8::new(1).unwrap(),
    };
    for _ in 0..4 {
        server.housekeeper().with_drills(Some(rules.clone())).drill_due().await;
        world.clock.set(world.clock_now() + SignedDuration::from_hours(24));
    }
    let mut proven = Vec::new();
    for pod in &pods {
        proven.push(server.app.store.proof_fetch(*pod).await.unwrap().unwrap().proven.is_some());
    }
    assert_eq!(proven, [false, true, true]);
}

#[tokio::test]
async fn p38_the_schedule_reads_packs_that_no_drill_restores() {
    let world = World::new(387);
    let server = world.server().await;
    let (pod, old) = pod_with_snapshot(&world, &server).await;
    let tenant = TenantId::default_tenant();
    let backend = world.repositories.backend(&tenant);
    let packs_of_old: Vec<_> = backend.list(FileKind::Pack).unwrap().iter().map(|pack| pack.id).collect();
    world.engine.write(pod, "/srv/more", "y".repeat(100_000)).unwrap();
    server.succeed(server.snapshot(pod).await).await;
    let rules = DrillRules {
        schedule: Schedule::parse("0 4 * * *", TimeZone::UTC).unwrap(),
        share: NonZeroU8::new(100).unwrap(),
    };
    server.housekeeper().with_drills(Some(rules.clone())).drill_due().await;
    // A header is read by no restore, and by nobody else who trusts the index.
    for id in packs_of_old {
        let mut data = backend.read(FileKind::Pack, id).unwrap();
        let at = data.len() - 30;
        data[at] ^= 1;
        backend.write(FileKind::Pack, id, &data).unwrap();
    }
    world.clock.set(world.clock_now() + SignedDuration::from_hours(24));
    server.housekeeper().with_drills(Some(rules)).drill_due().await;
    let events = server.app.store.event_list(0, &Default::default(), 1000).await.unwrap();
    let kinds: Vec<&str> = events.iter().map(|event| event.line.kind.as_str()).collect();
    assert!(kinds.contains(&"repository.damaged"), "{kinds:?}");
    assert!(backend.set_aside_files().is_empty(), "nothing is moved while nobody looks");
    assert!(!repair(&world).is_nothing_to_do());
    assert!(world.check_repository().unwrap().problems.is_empty());
    assert_eq!(drilled(&server, old).await.state, OperationState::Succeeded);
}
