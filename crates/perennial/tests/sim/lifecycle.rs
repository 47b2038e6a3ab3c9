//! Every row of product.md's table, on the simulator: what each action does to the data.

use crate::world::{Ended, World, declared_spec, files, small_spec, universal_spec};
use jiff::SignedDuration;
use perennial_core::operation::OperationState;
use perennial_core::pod::{ConditionKind, Phase};
use perennial_core::snapshot::{Grade, SnapshotKind, SnapshotState};
use perennial_core::spec::Backend;

const BACKENDS: [Backend; 2] = [Backend::Overlay, Backend::Engine];

#[tokio::test]
async fn sim_stop_releases_the_host_and_start_brings_everything_back() {
    for backend in BACKENDS {
        let world = World::new(1);
        let server = world.server().await;
        let pod = server.running("dev", universal_spec(backend)).await;
        for path in
            ["/workspace/a", "/home/b", "/root/c", "/etc/d", "/usr/local/e", "/opt/f", "/var/g", "/srv/h", "/new/i"]
        {
            world.engine.write(pod, path, path).unwrap();
        }
        let before = files(&world, pod);
        server.succeed(server.stop(pod).await).await;
        let record = server.pod(pod).await;
        assert_eq!(record.phase, Phase::Stopped, "{record:?}");
        assert!(record.sets.is_empty() && record.current.is_none());
        assert_eq!(world.engine.container_of(pod), None);
        assert!(!world.directory.path().join(format!("engine/pods/{pod}")).exists() || is_empty(&world, pod));
        let snapshots = server.snapshots(pod).await;
        assert_eq!(snapshots.len(), 1);
        assert_eq!(snapshots[0].state, SnapshotState::Verified);
        assert_eq!(snapshots[0].kind, SnapshotKind::Final);
        assert_eq!(snapshots[0].grade, Some(Grade::Stopped));
        server.succeed(server.start(pod).await).await;
        assert_eq!(files(&world, pod), before, "{backend:?}");
        assert_eq!(world.engine.violations(), Vec::<String>::new());
    }
}

fn is_empty(world: &World, pod: perennial_core::id::PodId) -> bool {
    let directory = world.directory.path().join(format!("engine/pods/{pod}"));
    std::fs::read_dir(directory).is_ok_and(|mut d| d.next().is_none())
}

#[tokio::test]
async fn sim_p12_three_stop_start_cycles_with_additions_and_deletions_lose_nothing() {
    for backend in BACKENDS {
        let world = World::new(2);
        let server = world.server().await;
        let pod = server.running("dev", universal_spec(backend)).await;
        for cycle in 0..3 {
            world.engine.write(pod, &format!("/srv/{cycle}"), "volume").unwrap();
            world.engine.write(pod, &format!("/tools/{cycle}"), "layer").unwrap();
            if cycle > 0 {
                assert!(world.engine.remove(pod, &format!("/srv/{}", cycle - 1)).unwrap());
                assert!(world.engine.remove(pod, &format!("/tools/{}", cycle - 1)).unwrap());
            }
            let before = files(&world, pod);
            server.succeed(server.stop(pod).await).await;
            server.succeed(server.start(pod).await).await;
            assert_eq!(files(&world, pod), before, "{backend:?} cycle {cycle}");
        }
        assert_eq!(world.engine.violations(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn sim_pause_keeps_everything_on_the_host() {
    let world = World::new(3);
    let server = world.server().await;
    let pod = server.running("dev", small_spec(Backend::Overlay)).await;
    world.engine.write(pod, "/srv/a", "1").unwrap();
    let container = world.engine.container_of(pod);
    server.succeed(server.pause(pod).await).await;
    assert_eq!(server.pod(pod).await.phase, Phase::Paused);
    assert_eq!(server.snapshots(pod).await.len(), 0);
    server.succeed(server.start(pod).await).await;
    assert_eq!(world.engine.container_of(pod), container);
    assert_eq!(world.engine.read(pod, "/srv/a").unwrap().unwrap(), b"1");
}

#[tokio::test]
async fn sim_a_crashed_container_comes_back_by_itself_and_a_loop_backs_off() {
    let world = World::new(4);
    let server = world.server().await;
    let pod = server.running("dev", small_spec(Backend::Overlay)).await;
    world.engine.write(pod, "/srv/a", "1").unwrap();
    for _ in 0..4 {
        world.engine.crash(pod, 1, perennial_drivers::sim::Cause::Itself).unwrap();
        server.settle(pod).await;
        assert_eq!(server.pod(pod).await.phase, Phase::Running);
    }
    let record = server.pod(pod).await;
    assert_eq!(record.crash.count, 4);
    assert!(record.conditions.iter().any(|c| c.kind == ConditionKind::CrashLoop), "{:?}", record.conditions);
    assert_eq!(world.engine.read(pod, "/srv/a").unwrap().unwrap(), b"1");
}

#[tokio::test]
async fn sim_a_container_removed_from_outside_is_made_again_with_its_volumes() {
    for backend in BACKENDS {
        let world = World::new(5);
        let server = world.server().await;
        let pod = server.running("dev", universal_spec(backend)).await;
        world.engine.write(pod, "/home/a", "1").unwrap();
        world.engine.kill_container_outside(pod).unwrap();
        server.settle(pod).await;
        assert_eq!(world.engine.read(pod, "/home/a").unwrap().unwrap(), b"1");
        let record = server.pod(pod).await;
        assert_eq!(record.phase, Phase::Running);
        assert!(record.conditions.iter().any(|c| c.kind == ConditionKind::SystemLayerStale));
    }
}

#[tokio::test]
async fn sim_restart_keeps_the_container_unless_the_specification_changed() {
    let world = World::new(6);
    let server = world.server().await;
    let pod = server.running("dev", universal_spec(Backend::Engine)).await;
    world.engine.write(pod, "/tools/x", "layer").unwrap();
    let container = world.engine.container_of(pod);
    server.succeed(server.restart(pod).await).await;
    assert_eq!(world.engine.container_of(pod), container);
    let caller = perennial::service::Caller::admin();
    let change = |spec: &perennial_core::spec::PodSpec| {
        let mut spec = spec.clone();
        spec.env.insert("A".to_owned(), "1".to_owned());
        Ok(spec)
    };
    server.app.patch(&caller, pod, None, change).await.unwrap();
    server.settle(pod).await;
    assert!(server.pod(pod).await.conditions.iter().any(|c| c.kind == ConditionKind::RestartRequired));
    server.succeed(server.restart(pod).await).await;
    assert_ne!(world.engine.container_of(pod), container);
    assert_eq!(world.engine.read(pod, "/tools/x").unwrap().unwrap(), b"layer");
    assert_eq!(world.engine.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn sim_d13_a_disk_limit_is_applied_to_a_running_pod_and_told_where_it_is_advice() {
    let caller = perennial::service::Caller::admin();
    let limited = |bytes: Option<u64>| {
        move |spec: &perennial_core::spec::PodSpec| {
            let mut spec = spec.clone();
            spec.resources.disk = bytes;
            Ok(spec)
        }
    };
    for backend in BACKENDS {
        let world = World::new(30);
        let server = world.server().await;
        let pod = server.running("dev", universal_spec(backend)).await;
        let container = world.engine.container_of(pod);
        for bytes in [Some(1 << 30), Some(2 << 30), None] {
            server.app.patch(&caller, pod, None, limited(bytes)).await.unwrap();
            server.settle(pod).await;
            assert_eq!(world.engine.limit_of(pod), bytes.filter(|_| backend == Backend::Overlay));
            let conditions: Vec<_> = server.pod(pod).await.conditions.iter().map(|c| c.kind).collect();
            let is_advice = backend == Backend::Engine && bytes.is_some();
            let expected = if is_advice { vec![ConditionKind::DiskLimitAdvisory] } else { Vec::new() };
            assert_eq!(conditions, expected, "{backend:?} {bytes:?}");
        }
        assert_eq!(world.engine.container_of(pod), container, "nothing was restarted");
        // What a start lifts is set again, also after the container was lost, and after a stop in a new set.
        server.app.patch(&caller, pod, None, limited(Some(1 << 30))).await.unwrap();
        server.settle(pod).await;
        let expected = (backend == Backend::Overlay).then_some(1 << 30);
        world.engine.kill_container_outside(pod).unwrap();
        server.settle(pod).await;
        assert_eq!(world.engine.limit_of(pod), expected, "{backend:?} after a loss");
        server.succeed(server.stop(pod).await).await;
        server.succeed(server.start(pod).await).await;
        assert_eq!(world.engine.limit_of(pod), expected, "{backend:?} after a stop");
        assert_eq!(world.engine.violations(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn sim_reset_starts_fresh_and_its_safety_snapshot_brings_everything_back() {
    for backend in BACKENDS {
        let world = World::new(7);
        let server = world.server().await;
        let pod = server.running("dev", universal_spec(backend)).await;
        let fresh = files(&world, pod);
        world.engine.write(pod, "/home/a", "1").unwrap();
        world.engine.write(pod, "/tools/x", "layer").unwrap();
        let before = files(&world, pod);
        server.succeed(server.reset(pod).await).await;
        assert_eq!(files(&world, pod), fresh, "{backend:?}");
        let safety = server.snapshots(pod).await.pop().unwrap();
        assert_eq!(safety.kind, SnapshotKind::Safety);
        server.succeed(server.restore(pod, safety.id).await).await;
        assert_eq!(files(&world, pod), before, "{backend:?}");
        assert_eq!(server.pod(pod).await.sets.len(), 1);
        assert_eq!(world.engine.violations(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn sim_a_manual_snapshot_of_a_running_pod_is_frozen_and_restorable() {
    let world = World::new(8);
    let server = world.server().await;
    let pod = server.running("dev", universal_spec(Backend::Overlay)).await;
    world.engine.write(pod, "/home/a", "1").unwrap();
    let at_snapshot = files(&world, pod);
    server.succeed(server.snapshot(pod).await).await;
    let taken = server.snapshots(pod).await.pop().unwrap();
    assert_eq!((taken.state, taken.grade), (SnapshotState::Verified, Some(Grade::Frozen)));
    world.engine.write(pod, "/home/a", "2").unwrap();
    world.engine.write(pod, "/home/b", "2").unwrap();
    server.succeed(server.restore(pod, taken.id).await).await;
    assert_eq!(files(&world, pod), at_snapshot);
}

#[tokio::test]
async fn sim_delete_undelete_and_purge() {
    let world = World::new(9);
    let server = world.server().await;
    let pod = server.running("dev", small_spec(Backend::Overlay)).await;
    world.engine.write(pod, "/srv/a", "1").unwrap();
    server.succeed(server.delete(pod).await).await;
    let record = server.pod(pod).await;
    assert_eq!(record.phase, Phase::Deleted);
    assert!(record.trash.as_ref().unwrap().purge_at.is_some());
    server.succeed(server.undelete(pod).await).await;
    assert_eq!(server.pod(pod).await.phase, Phase::Stopped);
    server.succeed(server.start(pod).await).await;
    assert_eq!(world.engine.read(pod, "/srv/a").unwrap().unwrap(), b"1");
    let outcome = server.purge(pod).await.unwrap();
    assert_eq!(server.settle(pod).await, crate::world::Ended::Gone);
    assert_eq!(server.operation(outcome.operation.id).await.state, OperationState::Succeeded);
    assert_eq!(server.snapshots(pod).await.len(), 0);
    assert_eq!(world.engine.container_of(pod), None);
}

#[tokio::test]
async fn sim_archive_hides_and_undelete_brings_back() {
    let world = World::new(10);
    let server = world.server().await;
    let pod = server.running("dev", small_spec(Backend::Engine)).await;
    world.engine.write(pod, "/srv/a", "1").unwrap();
    server.succeed(server.archive(pod).await).await;
    assert_eq!(server.pod(pod).await.phase, Phase::Archived);
    assert_eq!(server.pod(pod).await.trash.unwrap().purge_at, None);
    server.succeed(server.undelete(pod).await).await;
    server.succeed(server.start(pod).await).await;
    assert_eq!(world.engine.read(pod, "/srv/a").unwrap().unwrap(), b"1");
}

#[tokio::test]
async fn sim_failed_provisioning_leaves_nothing_and_can_be_tried_again() {
    let world = World::new(11);
    let server = world.server().await;
    let mut spec = small_spec(Backend::Overlay);
    spec.image = "missing:1".to_owned();
    // An engine that cannot be asked refuses nothing.
    world.engine.node_vanishes();
    let created = server.create("dev", spec).await;
    world.engine.node_returns();
    let operation = server.done(created).await;
    assert_eq!(operation.state, OperationState::Failed);
    assert_eq!(operation.error.as_ref().unwrap().code, "image-not-found");
    let record = server.pod(operation.pod).await;
    assert_eq!(record.phase, Phase::Error);
    assert!(record.sets.is_empty());
    world.engine.add_image("missing:1", &perennial_drivers::sim::SimImage::standard()).unwrap();
    server.succeed(server.start(operation.pod).await).await;
    assert_eq!(server.pod(operation.pod).await.phase, Phase::Running);
}

#[tokio::test]
async fn sim_volumes_lost_while_not_stopped_refuse_the_start_until_they_are_back() {
    for backend in BACKENDS {
        let world = World::new(12);
        let server = world.server().await;
        let pod = server.running("dev", small_spec(backend)).await;
        world.engine.write(pod, "/srv/a", "1").unwrap();
        server.succeed(server.snapshot(pod).await).await;
        let taken = server.snapshots(pod).await.pop().unwrap();
        server.succeed(server.pause(pod).await).await;
        world.engine.remove_set_outside(pod, 1).unwrap();
        let operation = server.done(server.start(pod).await).await;
        assert_eq!(operation.state, OperationState::Failed, "{operation:?}");
        assert_eq!(operation.error.unwrap().code, "volume-data-lost");
        let record = server.pod(pod).await;
        assert_eq!(record.phase, Phase::Error);
        assert!(record.conditions.iter().any(|c| c.kind == ConditionKind::DataLost));
        server.succeed(server.restore(pod, taken.id).await).await;
        server.succeed(server.start(pod).await).await;
        assert_eq!(world.engine.read(pod, "/srv/a").unwrap().unwrap(), b"1");
    }
}

#[tokio::test]
async fn sim_one_lost_volume_of_a_set_is_a_repair_state_not_a_start() {
    let world = World::new(13);
    let server = world.server().await;
    let pod = server.running("dev", small_spec(Backend::Overlay)).await;
    server.succeed(server.pause(pod).await).await;
    world.engine.remove_volume_data_outside(pod, 1, "home").unwrap();
    let operation = server.done(server.start(pod).await).await;
    assert_eq!(operation.error.unwrap().code, "volume-data-partial");
}

#[tokio::test]
async fn sim_a_start_after_the_engine_lost_everything_comes_from_the_repository() {
    for backend in BACKENDS {
        let world = World::new(14);
        let server = world.server().await;
        let pod = server.running("dev", universal_spec(backend)).await;
        world.engine.write(pod, "/home/a", "1").unwrap();
        world.engine.write(pod, "/tools/x", "2").unwrap();
        let before = files(&world, pod);
        server.succeed(server.stop(pod).await).await;
        world.engine.wipe().unwrap();
        server.succeed(server.start(pod).await).await;
        assert_eq!(files(&world, pod), before, "{backend:?}");
    }
}

#[tokio::test]
async fn sim_a_start_cancels_a_stop_before_its_commit() {
    let world = World::new(15);
    let server = world.server().await;
    let pod = server.running("dev", small_spec(Backend::Overlay)).await;
    world.engine.write(pod, "/srv/a", "1").unwrap();
    let stop = server.stop(pod).await.unwrap();
    server.reconciler.pass(pod).await;
    server.reconciler.pass(pod).await;
    server.succeed(server.start(pod).await).await;
    assert_eq!(server.operation(stop.operation.id).await.state, OperationState::Cancelled);
    assert_eq!(server.pod(pod).await.phase, Phase::Running);
    assert_eq!(world.engine.read(pod, "/srv/a").unwrap().unwrap(), b"1");
}

#[tokio::test]
async fn sim_the_end_of_the_undelete_window_purges_and_not_before() {
    let world = World::new(16);
    let server = world.server().await;
    let pod = server.running("dev", small_spec(Backend::Overlay)).await;
    world.engine.write(pod, "/srv/a", "1").unwrap();
    server.succeed(server.delete(pod).await).await;
    let mut housekeeper = server.housekeeper();
    for hour in 1..7 * 24 {
        world.clock.advance(jiff::SignedDuration::from_hours(1));
        housekeeper.run_due().await;
        assert_eq!(server.pod(pod).await.phase, Phase::Deleted, "hour {hour}");
    }
    world.clock.advance(jiff::SignedDuration::from_hours(2));
    housekeeper.run_due().await;
    assert_eq!(server.settle(pod).await, crate::world::Ended::Gone);
    assert_eq!(server.snapshots(pod).await.len(), 0);
}

#[tokio::test]
async fn sim_a_changed_layer_is_captured_every_few_minutes_and_put_back_after_a_loss() {
    let world = World::new(17);
    let server = world.server().await;
    let pod = server.running("dev", universal_spec(Backend::Engine)).await;
    world.engine.write(pod, "/tools/x", "layer").unwrap();
    world.clock.advance(jiff::SignedDuration::from_mins(6));
    server.settle(pod).await;
    let captured = server.pod(pod).await.layer.unwrap();
    assert!(captured.repository_id.is_some() && !captured.after_stop);
    world.engine.kill_container_outside(pod).unwrap();
    server.settle(pod).await;
    assert_eq!(world.engine.read(pod, "/tools/x").unwrap().unwrap(), b"layer");
}

#[tokio::test]
async fn sim_a_runtime_that_hides_the_layer_is_flagged_and_still_stops_and_starts() {
    let world = World::new(18);
    let server = world.server().await;
    let mut spec = universal_spec(Backend::Overlay);
    spec.runtime = Some("runsc".to_owned());
    let pod = server.running("dev", spec).await;
    world.engine.write(pod, "/home/a", "1").unwrap();
    let flagged = server.pod(pod).await.conditions.iter().any(|c| c.kind == ConditionKind::SystemLayerNotCaptured);
    assert!(flagged, "what would be lost is said before it is lost");
    server.succeed(server.stop(pod).await).await;
    server.succeed(server.start(pod).await).await;
    assert_eq!(world.engine.read(pod, "/home/a").unwrap().unwrap(), b"1");
}

#[tokio::test]
async fn sim_a_snapshot_of_another_image_is_not_restored_over_this_one() {
    let world = World::new(19);
    let server = world.server().await;
    let theirs = server.running("theirs", small_spec(Backend::Overlay)).await;
    server.succeed(server.snapshot(theirs).await).await;
    let taken = server.snapshots(theirs).await.pop().unwrap();
    world.engine.add_image("sim:2", &perennial_drivers::sim::SimImage::minimal()).unwrap();
    let mut spec = small_spec(Backend::Overlay);
    spec.image = "sim:2".to_owned();
    let ours = server.running("ours", spec).await;
    let refused = server.restore(ours, taken.id).await.unwrap_err();
    assert!(refused.to_string().contains("of image"), "{refused}");
}

#[tokio::test]
async fn sim_a_pod_of_a_plan_persists_its_volumes_and_nothing_else() {
    for backend in BACKENDS {
        let world = World::new(20);
        let server = world.server().await;
        let pod = server.running("dev", declared_spec(backend)).await;
        world.engine.write(pod, "/srv/kept", "1").unwrap();
        world.engine.write(pod, "/opt/layer", "1").unwrap();
        world.clock.advance(SignedDuration::from_mins(10));
        server.work(pod).await;
        world.engine.kill_container_outside(pod).unwrap();
        server.settle(pod).await;
        assert_eq!(world.engine.read(pod, "/opt/layer").unwrap(), None);
        world.engine.write(pod, "/opt/layer", "2").unwrap();
        server.succeed(server.stop(pod).await).await;
        server.succeed(server.start(pod).await).await;
        assert_eq!(world.engine.read(pod, "/srv/kept").unwrap().unwrap(), b"1");
        assert_eq!(world.engine.read(pod, "/opt/layer").unwrap(), None);
        let record = server.pod(pod).await;
        assert_eq!((record.layer, record.layer_gap), (None, None));
        assert_eq!(world.snapshots_in_repository("layer:"), 0);
    }
}

#[tokio::test]
async fn sim_every_snapshot_is_also_a_capture_of_the_layer_and_may_be_deleted_all_the_same() {
    let world = World::new(21);
    let server = world.server().await;
    let pod = server.running("dev", small_spec(Backend::Engine)).await;
    world.engine.write(pod, "/tools/x", "1").unwrap();
    server.succeed(server.snapshot(pod).await).await;
    let taken = server.snapshots(pod).await.pop().unwrap();
    let layer = server.pod(pod).await.layer.unwrap();
    assert_eq!(Some(layer.captured_at), taken.captured_at);
    let going = perennial::reconcile::Going { snapshot: taken.id, replaced_by: None };
    server.reconciler.forget_snapshots(&taken.tenant, vec![going]).await.unwrap();
    assert_eq!(world.snapshots_in_repository("snapshot:"), 0);
    world.engine.kill_container_outside(pod).unwrap();
    server.settle(pod).await;
    assert_eq!(world.engine.read(pod, "/tools/x").unwrap().unwrap(), b"1");
}

#[tokio::test]
async fn sim_a_pod_keeps_one_capture_of_its_layer_and_none_when_it_is_stopped() {
    let world = World::new(22);
    let server = world.server().await;
    let pod = server.running("dev", small_spec(Backend::Engine)).await;
    for round in 0..3 {
        world.engine.write(pod, "/tools/x", format!("{round}")).unwrap();
        world.clock.advance(SignedDuration::from_mins(6));
        server.work(pod).await;
        assert_eq!(world.snapshots_in_repository("layer:"), 1, "round {round}");
    }
    // Files have the kernel's times: one that is too fresh to be told from a later change is captured once more.
    let written = std::time::Instant::now();
    while written.elapsed() < std::time::Duration::from_millis(50) {
        std::thread::yield_now();
    }
    let mut before = None;
    for _ in 0..2 {
        before = server.pod(pod).await.layer;
        world.clock.advance(SignedDuration::from_mins(6));
        server.work(pod).await;
    }
    assert_eq!(server.pod(pod).await.layer, before, "nothing changed, so nothing is captured");
    server.succeed(server.stop(pod).await).await;
    assert_eq!(world.snapshots_in_repository("layer:"), 0);
    server.succeed(server.start(pod).await).await;
    assert_eq!(world.snapshots_in_repository("layer:"), 1);
    assert_eq!(world.engine.read(pod, "/tools/x").unwrap().unwrap(), b"2");
}

#[tokio::test]
async fn sim_a_clone_needs_nothing_of_the_pod_it_was_made_from() {
    for backend in BACKENDS {
        let world = World::new(23);
        let server = world.server().await;
        let pod = server.running("dev", small_spec(backend)).await;
        world.engine.write(pod, "/srv/a", "1").unwrap();
        world.engine.write(pod, "/tools/x", "1").unwrap();
        server.succeed(server.stop(pod).await).await;
        let taken = server.snapshots(pod).await.pop().unwrap();
        let clone = server.clone_of("clone", taken.id, small_spec(backend)).await;
        server.succeed(server.delete(pod).await).await;
        server.purge(pod).await.unwrap();
        assert_eq!(server.settle(pod).await, Ended::Gone);
        world.engine.kill_container_outside(clone).unwrap();
        server.settle(clone).await;
        for path in ["/srv/a", "/tools/x"] {
            assert_eq!(world.engine.read(clone, path).unwrap().unwrap(), b"1", "{backend:?}");
        }
    }
}

#[test]
fn sim_every_step_of_a_pods_life_on_postgresql() {
    let all: &[fn()] = &[
        sim_stop_releases_the_host_and_start_brings_everything_back,
        sim_p12_three_stop_start_cycles_with_additions_and_deletions_lose_nothing,
        sim_pause_keeps_everything_on_the_host,
        sim_a_crashed_container_comes_back_by_itself_and_a_loop_backs_off,
        sim_a_container_removed_from_outside_is_made_again_with_its_volumes,
        sim_restart_keeps_the_container_unless_the_specification_changed,
        sim_d13_a_disk_limit_is_applied_to_a_running_pod_and_told_where_it_is_advice,
        sim_reset_starts_fresh_and_its_safety_snapshot_brings_everything_back,
        sim_a_manual_snapshot_of_a_running_pod_is_frozen_and_restorable,
        sim_delete_undelete_and_purge,
        sim_archive_hides_and_undelete_brings_back,
        sim_failed_provisioning_leaves_nothing_and_can_be_tried_again,
        sim_volumes_lost_while_not_stopped_refuse_the_start_until_they_are_back,
        sim_one_lost_volume_of_a_set_is_a_repair_state_not_a_start,
        sim_a_start_after_the_engine_lost_everything_comes_from_the_repository,
        sim_a_start_cancels_a_stop_before_its_commit,
        sim_the_end_of_the_undelete_window_purges_and_not_before,
        sim_a_changed_layer_is_captured_every_few_minutes_and_put_back_after_a_loss,
        sim_a_runtime_that_hides_the_layer_is_flagged_and_still_stops_and_starts,
        sim_a_snapshot_of_another_image_is_not_restored_over_this_one,
        sim_a_pod_of_a_plan_persists_its_volumes_and_nothing_else,
        sim_every_snapshot_is_also_a_capture_of_the_layer_and_may_be_deleted_all_the_same,
        sim_a_pod_keeps_one_capture_of_its_layer_and_none_when_it_is_stopped,
        sim_a_clone_needs_nothing_of_the_pod_it_was_made_from,
    ];
    crate::postgres::on_postgresql(include_str!("lifecycle.rs"), all);
}
