//! Schedules, rules and pruning from end to end: simulated engine, virtual clock, real store and repository format.

use std::sync::Arc;

use crate::world::taps::{Blow, Striker};
use crate::world::{Server, World, files, small_spec};
use jiff::SignedDuration;
use perennial::service::{Caller, Forget, Scheduled};
use perennial::store::Page;
use perennial_core::id::PodId;
use perennial_core::operation::{OperationKind, OperationState};
use perennial_core::parts::{Extra, Parts};
use perennial_core::pod::{ConditionKind, Phase};
use perennial_core::retention::{Keep, Manual};
use perennial_core::schedule::SnapshotRules;
use perennial_core::snapshot::{Snapshot, SnapshotKind, SnapshotState};
use perennial_core::spec::{Backend, PodSpec};

fn hourly(keep: Keep) -> PodSpec {
    let snapshots = SnapshotRules { schedule: Some("0 * * * *".to_owned()), time_zone: None, keep: Some(keep) };
    PodSpec { snapshots, ..small_spec(Backend::Overlay) }
}

const HOUR: SignedDuration = SignedDuration::from_hours(1);

/// A world between two times of the schedule, however late a pod's own times are.
fn at_half_past(seed: u64) -> World {
    let world = World::new(seed);
    world.clock.advance(SignedDuration::from_mins(30));
    world
}

/// An hour passes: what is due is taken, what may go goes.
async fn an_hour(world: &World, server: &Server, pod: PodId) {
    world.clock.advance(HOUR);
    let mut housekeeper = server.housekeeper();
    housekeeper.run_due().await;
    server.settle(pod).await;
    housekeeper.run_due().await;
}

async fn scheduled(server: &Server, pod: PodId) -> Vec<Snapshot> {
    let mut rows = server.snapshots(pod).await;
    rows.retain(|s| s.kind == SnapshotKind::Scheduled);
    rows
}

#[tokio::test]
async fn sim_snapshots_are_taken_by_the_clock_and_rotate() {
    let world = at_half_past(1);
    let server = world.server().await;
    let pod = server.running("dev", hourly(Keep { last: 3, ..Keep::default() })).await;
    server.succeed(server.snapshot(pod).await).await;
    for n in 0..8 {
        world.engine.write(pod, "/srv/n", n.to_string()).unwrap();
        an_hour(&world, &server, pod).await;
    }
    let rows = server.snapshots(pod).await;
    let kinds: Vec<SnapshotKind> = rows.iter().map(|s| s.kind).collect();
    assert_eq!(
        kinds,
        [SnapshotKind::Scheduled, SnapshotKind::Scheduled, SnapshotKind::Scheduled, SnapshotKind::Manual]
    );
    assert!(rows.iter().all(|s| s.state == SnapshotState::Verified));
    assert_eq!(world.snapshots_in_repository("snapshot:"), rows.len());
    let next = server.app.settings.next_snapshot_at(&server.pod(pod).await).unwrap();
    let left = next.duration_since(world.clock_now());
    assert!(left <= HOUR && left.is_positive(), "{left}");
    assert!(server.app.store.operations_unfinished(pod).await.unwrap().is_empty());
}

/// What people who host themselves wish for most: all volumes, without anybody asking, and every copy brings them back.
#[tokio::test]
async fn p28_sim_volumes_are_backed_up_by_the_clock_and_every_copy_brings_them_back() {
    let world = at_half_past(28);
    let server = world.server().await;
    let pod = server.running("dev", hourly(Keep { last: 3, ..Keep::default() })).await;
    let mut held = Vec::new();
    for n in 0..5 {
        world.engine.write(pod, "/srv/n", n.to_string()).unwrap();
        held.push(files(&world, pod));
        an_hour(&world, &server, pod).await;
    }
    let rows = scheduled(&server, pod).await;
    assert_eq!(rows.len(), 3);
    for (row, held) in rows.iter().zip(held.iter().rev()) {
        server.succeed(server.restore(pod, row.id).await).await;
        assert_eq!(files(&world, pod), *held);
    }
}

#[tokio::test]
async fn sim_a_night_without_a_server_is_made_up_by_one_snapshot() {
    let world = at_half_past(2);
    let server = world.server().await;
    let pod = server.running("dev", hourly(Keep::default())).await;
    drop(server);
    world.clock.advance(HOUR * 48);
    let server = world.server().await;
    let mut housekeeper = server.housekeeper();
    for _ in 0..5 {
        housekeeper.run_due().await;
        server.settle(pod).await;
        world.clock.advance(SignedDuration::from_secs(15));
    }
    assert_eq!(scheduled(&server, pod).await.len(), 1);
}

#[tokio::test]
async fn sim_two_servers_take_one_snapshot() {
    let world = at_half_past(3);
    let (one, two) = (world.server().await, world.server().await);
    let pod = one.running("dev", hourly(Keep::default())).await;
    for hour in 1..6 {
        world.clock.advance(HOUR);
        let (a, b) = tokio::join!(one.app.snapshot_scheduled(pod), two.app.snapshot_scheduled(pod));
        let taken = [a.unwrap(), b.unwrap()].into_iter().filter(|s| *s == Scheduled::Taken).count();
        assert_eq!(taken, 1);
        // Still in work: nobody queues a second one.
        assert_eq!(two.app.snapshot_scheduled(pod).await.unwrap(), Scheduled::Nothing);
        one.settle(pod).await;
        assert_eq!(scheduled(&one, pod).await.len(), hour);
    }
}

#[tokio::test]
async fn sim_a_pod_at_which_nothing_changed_is_passed_over() {
    let world = at_half_past(4);
    let server = world.server().await;
    let pod = server.running("dev", hourly(Keep::default())).await;
    server.succeed(server.pause(pod).await).await;
    an_hour(&world, &server, pod).await;
    assert_eq!(scheduled(&server, pod).await.len(), 1, "paused with data that no snapshot holds yet");
    for _ in 0..5 {
        an_hour(&world, &server, pod).await;
    }
    assert_eq!(scheduled(&server, pod).await.len(), 1, "and nothing changed since");
    server.succeed(server.start(pod).await).await;
    an_hour(&world, &server, pod).await;
    assert_eq!(scheduled(&server, pod).await.len(), 2);
    server.succeed(server.stop(pod).await).await;
    for _ in 0..5 {
        an_hour(&world, &server, pod).await;
    }
    server.succeed(server.start(pod).await).await;
    server.housekeeper().run_due().await;
    server.settle(pod).await;
    assert_eq!(scheduled(&server, pod).await.len(), 2, "what passed while it was stopped is not made up");
}

#[tokio::test]
async fn sim_a_scheduled_snapshot_that_fails_is_shown_and_tried_again_at_the_next_time() {
    let world = at_half_past(5);
    let server = world.server().await;
    let pod = server.running("dev", hourly(Keep::default())).await;
    let asked = server.app.snapshot_scheduled(pod);
    assert_eq!(asked.await.unwrap(), Scheduled::Nothing);
    world.clock.advance(HOUR);
    assert_eq!(server.app.snapshot_scheduled(pod).await.unwrap(), Scheduled::Taken);
    // It ends as one does that cannot be taken.
    let mut row = scheduled(&server, pod).await.remove(0);
    row.state = SnapshotState::Failed;
    row.error = Some("the disk is broken".to_owned());
    let change = perennial::store::Change { snapshots: vec![row], ..Default::default() };
    server.app.store.commit(change).await.unwrap();
    server.settle(pod).await;
    let shown = |pod: &perennial_core::pod::Pod| {
        pod.conditions.iter().find(|c| c.kind == ConditionKind::SnapshotFailed).map(|c| c.message.clone())
    };
    assert_eq!(shown(&server.pod(pod).await).as_deref(), Some("the disk is broken"));
    assert_eq!(server.pod(pod).await.phase, Phase::Running);
    an_hour(&world, &server, pod).await;
    assert_eq!(scheduled(&server, pod).await[0].state, SnapshotState::Verified);
    assert_eq!(shown(&server.pod(pod).await), None);
}

#[tokio::test]
async fn sim_what_replaced_a_snapshot_goes_by_hand_and_the_rule_gives_way() {
    let world = at_half_past(6);
    let server = world.server().await;
    let keep = Keep { last: 1, manual: Manual::Rotated, ..Keep::default() };
    let pod = server
        .running(
            "dev",
            PodSpec {
                snapshots: SnapshotRules { keep: Some(keep), ..Default::default() },
                ..small_spec(Backend::Overlay)
            },
        )
        .await;
    for n in 0..2 {
        world.engine.write(pod, "/srv/n", n.to_string()).unwrap();
        server.succeed(server.snapshot(pod).await).await;
        world.clock.advance(HOUR);
    }
    let begun = server.app.retention_apply(pod).await.unwrap();
    assert_eq!(begun.len(), 1);
    // Before anybody gets to it, its owner deletes the newer one.
    let newest = server.snapshots(pod).await[0].id;
    let caller = Caller::admin();
    server.app.snapshot_delete(perennial::service::Request::new(&caller), newest, Some("dev")).await.unwrap();
    world.clock.advance(HOUR);
    let mut housekeeper = server.housekeeper();
    housekeeper.run_due().await;
    let rows = server.snapshots(pod).await;
    assert_eq!(rows.len(), 1);
    assert_eq!(server.operation(begun[0]).await.state, OperationState::Failed);
}

#[tokio::test]
async fn sim_nothing_goes_by_rule_that_a_repository_brought_back_from_an_older_copy_does_not_replace() {
    let world = at_half_past(8);
    let server = world.server().await;
    let keep = Keep { last: 1, manual: Manual::Rotated, ..Keep::default() };
    let rules = SnapshotRules { keep: Some(keep), ..SnapshotRules::default() };
    let pod = server.running("dev", PodSpec { snapshots: rules, ..small_spec(Backend::Overlay) }).await;
    for n in 0..2 {
        world.engine.write(pod, "/srv/n", n.to_string()).unwrap();
        server.succeed(server.snapshot(pod).await).await;
        world.clock.advance(HOUR);
    }
    let rows = server.snapshots(pod).await;
    world.forget_outside(&format!("snapshot:{}", rows[0].id));
    let mut housekeeper = server.housekeeper();
    housekeeper.run_due().await;
    world.clock.advance(HOUR);
    housekeeper.run_due().await;
    assert_eq!(server.snapshots(pod).await.len(), 2);
    assert_eq!(world.snapshots_in_repository("snapshot:"), 1, "the only one that is really there");
    let deletions = async || {
        let all = server.app.store.operation_list(pod, &Page::first(100)).await.unwrap();
        all.into_iter().filter(|o| o.kind == OperationKind::SnapshotDelete).collect::<Vec<_>>()
    };
    let failed = deletions().await;
    assert_eq!(failed.len(), 1, "not begun again at every look: {failed:?}");
    assert_eq!(failed[0].error.as_ref().unwrap().code, "snapshot-not-replaced");

    // A newer one that is there replaces it.
    world.engine.write(pod, "/srv/n", "2").unwrap();
    server.succeed(server.snapshot(pod).await).await;
    world.clock.advance(HOUR * 24);
    housekeeper.run_due().await;
    housekeeper.run_due().await;
    assert_eq!(world.snapshots_in_repository("snapshot:"), 1);
    assert_eq!(server.snapshots(pod).await.len(), 1);
}

#[tokio::test]
async fn sim_the_space_comes_back_after_the_grace_time() {
    let world = at_half_past(7);
    let server = world.server().await;
    let keep = Keep { last: 1, manual: Manual::Rotated, ..Keep::default() };
    let pod = server.running("dev", small_spec(Backend::Overlay)).await;
    for n in 0..4 {
        world.engine.write(pod, "/srv/n", vec![n; 300_000]).unwrap();
        server.succeed(server.snapshot(pod).await).await;
        world.clock.advance(HOUR);
    }
    let ask = Forget { keep: Some(keep), confirm: Some("dev".to_owned()), dry_run: false };
    let begun = server.app.snapshots_forget(&Caller::admin(), pod, &ask).await.unwrap();
    assert_eq!(begun.operations.len(), 3);
    let packs = world.packs();
    world.clock.advance(HOUR);
    server.housekeeper().run_due().await;
    assert_eq!(server.snapshots(pod).await.len(), 1);
    server.housekeeper().prune_due().await;
    assert!(world.packs() >= packs, "what nothing needs is only marked");
    world.clock.advance(HOUR * 25);
    server.housekeeper().prune_due().await;
    assert!(world.packs() < packs, "{} of {packs} are left", world.packs());
    let kept = server.snapshots(pod).await[0].id;
    server.succeed(server.restore(pod, kept).await).await;
    assert_eq!(world.engine.read(pod, "/srv/n").unwrap().unwrap(), vec![3; 300_000]);
}

/// A pod with four snapshots of which a rule keeps one.
async fn prepare(world: &World) -> PodId {
    let server = world.server().await;
    let pod = server.running("dev", hourly(Keep { last: 1, manual: Manual::Rotated, ..Keep::default() })).await;
    for n in 0..4 {
        world.engine.write(pod, "/srv/n", n.to_string()).unwrap();
        server.succeed(server.snapshot(pod).await).await;
    }
    pod
}

/// A day of housekeeping: a scheduled snapshot is asked for, rules are applied, snapshots forgotten, and both phases of
/// a prune done. How a snapshot is taken is swept elsewhere, so a server in good health does that in between.
async fn a_day(world: &World, server: &Server, striker: &Striker, pod: PodId) {
    world.clock.advance(HOUR);
    let life = async {
        server.housekeeper().run_due().await;
        world.server().await.settle(pod).await;
        server.housekeeper().run_due().await;
        server.housekeeper().prune_due().await;
        world.clock.advance(HOUR * 25);
        server.housekeeper().prune_due().await;
    };
    tokio::select! {
        () = life => {}
        () = striker.death() => {}
    }
}

/// Waits for the threads of a dead server: a process that was killed has none, so they must not hold locks any more.
fn has_ended(striker: &Arc<Striker>) {
    while Arc::strong_count(striker) > 1 {
        std::thread::yield_now();
    }
}

/// A new server goes on; nothing is lost, nothing is left over, nothing is taken twice.
async fn check(world: &World, pod: PodId) -> Result<(), String> {
    let server = world.server().await;
    for _ in 0..3 {
        world.clock.advance(SignedDuration::from_mins(3));
        server.housekeeper().run_due().await;
        server.settle(pod).await;
    }
    for _ in 0..3 {
        server.housekeeper().prune_due().await;
        world.clock.advance(HOUR * 25);
    }
    let unfinished = server.app.store.operations_unfinished(pod).await.unwrap();
    if !unfinished.is_empty() {
        return Err(format!("unfinished: {unfinished:?}"));
    }
    let rows = server.snapshots(pod).await;
    let [only] = rows.as_slice() else { return Err(format!("{} snapshots are left: {rows:?}", rows.len())) };
    if only.kind != SnapshotKind::Scheduled || only.state != SnapshotState::Verified {
        return Err(format!("what is left is {only:?}"));
    }
    let stored = world.snapshots_in_repository("snapshot:");
    if stored != 1 {
        return Err(format!("{stored} snapshots are in the repository"));
    }
    let report = world.check_repository().map_err(|e| e.to_string())?;
    if !report.problems.is_empty() || report.packs_not_indexed + report.packs_waiting > 0 {
        return Err(format!("{report:?}"));
    }
    let id = only.id;
    world.engine.write(pod, "/srv/n", "later").unwrap();
    server.succeed(server.restore(pod, id).await).await;
    let bytes = world.engine.read(pod, "/srv/n").unwrap().unwrap();
    if bytes == b"3" { Ok(()) } else { Err(format!("{bytes:?} was restored")) }
}

#[tokio::test]
async fn sim_sweep_schedule_forget_and_prune() {
    let count = {
        let world = at_half_past(8);
        let pod = prepare(&world).await;
        let striker = Arc::new(Striker::new(Blow::Count, usize::MAX - 1));
        let server = world.server_with(Arc::clone(&striker) as _).await;
        a_day(&world, &server, &striker, pod).await;
        check(&world, pod).await.unwrap();
        striker.passed().len()
    };
    let mut violations = Vec::new();
    let blows = [Blow::KillBefore, Blow::KillAfter, Blow::FailBefore, Blow::LoseAnswer];
    for at in 0..count {
        for blow in blows {
            let world = at_half_past(8);
            let pod = prepare(&world).await;
            let striker = Arc::new(Striker::new(blow, at));
            let server = world.server_with(Arc::clone(&striker) as _).await;
            a_day(&world, &server, &striker, pod).await;
            drop(server);
            has_ended(&striker);
            if let Err(violation) = check(&world, pod).await {
                let site = striker.passed().get(at).cloned().unwrap_or_default();
                violations.push(format!("{blow:?} at {at} ({site}): {violation}"));
            }
        }
    }
    println!("schedule, forget and prune: {} points swept, {} violations", count * blows.len(), violations.len());
    assert!(count > 20 && violations.is_empty(), "{count} points\n{}", violations.join("\n"));
}

#[tokio::test]
async fn sim_a_restore_of_parts_into_a_stopped_pod_lets_nothing_go() {
    let world = at_half_past(10);
    let server = world.server().await;
    let keep = Keep { last: 1, manual: Manual::Rotated, ..Keep::default() };
    let rules = SnapshotRules { keep: Some(keep), ..SnapshotRules::default() };
    let pod = server.running("dev", PodSpec { snapshots: rules, ..small_spec(Backend::Overlay) }).await;
    world.engine.write(pod, "/srv/a", "then").unwrap();
    let then = server.snapshot_of(pod).await;
    world.clock.advance(HOUR);
    world.engine.write(pod, "/srv/b", "now").unwrap();
    server.succeed(server.stop(pod).await).await;
    world.clock.advance(HOUR);
    let parts = Parts::new(Vec::new(), vec!["/srv/a".to_owned()], Extra::Remove).unwrap().unwrap();
    server.succeed(server.restore_parts(pod, then, parts).await).await;
    let mut housekeeper = server.housekeeper();
    for _ in 0..3 {
        world.clock.advance(HOUR);
        housekeeper.run_due().await;
    }
    let kinds = async || {
        let mut kinds: Vec<SnapshotKind> = server.snapshots(pod).await.iter().map(|s| s.kind).collect();
        kinds.sort_unstable_by_key(|kind| format!("{kind:?}"));
        kinds
    };
    let deletions = async || {
        let all = server.app.store.operation_list(pod, &Page::first(100)).await.unwrap();
        all.into_iter().filter(|o| o.kind == OperationKind::SnapshotDelete && o.state == OperationState::Failed).count()
    };
    let kept = kinds().await;
    assert!(kept.contains(&SnapshotKind::Composed) && kept.contains(&SnapshotKind::Final), "{kept:?}");
    assert_eq!(deletions().await, 0, "what cannot go was let go");
    // A newer capture replaces both.
    server.succeed(server.start(pod).await).await;
    world.engine.write(pod, "/srv/c", "later").unwrap();
    world.clock.advance(HOUR);
    server.succeed(server.stop(pod).await).await;
    world.clock.advance(HOUR * 24);
    housekeeper.run_due().await;
    housekeeper.run_due().await;
    assert!(!kinds().await.contains(&SnapshotKind::Composed), "{:?}", kinds().await);
    assert_eq!(server.snapshots(pod).await[0].kind, SnapshotKind::Final);
    server.succeed(server.start(pod).await).await;
    for (path, bytes) in [("/srv/a", "then"), ("/srv/b", "now"), ("/srv/c", "later")] {
        assert_eq!(world.engine.read(pod, path).unwrap().unwrap(), bytes.as_bytes(), "{path}");
    }
}
