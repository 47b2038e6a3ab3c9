//! How other systems lost data, rebuilt on the simulator: here nothing is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::world::{World, accepting, files, small_spec};
use perennial_core::engine::Engine;
use perennial_core::fault::{Moment, Tap, Verdict};
use perennial_core::operation::OperationState;
use perennial_core::permit::DeletePermit;
use perennial_core::pod::{ConditionKind, Phase};
use perennial_core::snapshot::SnapshotState;
use perennial_core::spec::Backend;

/// A repository that refuses to take anything while it is switched on.
#[derive(Debug, Default)]
struct DiskFull(AtomicBool);

impl Tap for DiskFull {
    fn at(&self, site: &str, _moment: Moment) -> Verdict {
        if site == "repository.write" && self.0.load(Ordering::SeqCst) { Verdict::Fail } else { Verdict::Go }
    }
}

/// The repository's content, taken away and given back.
fn hide_snapshots(world: &World) -> Vec<(perennial_snapshots::Id, Vec<u8>)> {
    use perennial_snapshots::{Backend as _, FileKind};
    let backend = world.repositories.backend(&perennial_core::spec::TenantId::default_tenant());
    let files = backend.list(FileKind::Snapshot).unwrap();
    files
        .into_iter()
        .map(|file| {
            let bytes = backend.read(FileKind::Snapshot, file.id).unwrap();
            backend.remove(FileKind::Snapshot, file.id).unwrap();
            (file.id, bytes)
        })
        .collect()
}

fn give_back(world: &World, files: Vec<(perennial_snapshots::Id, Vec<u8>)>) {
    use perennial_snapshots::{Backend as _, FileKind};
    let backend = world.repositories.backend(&perennial_core::spec::TenantId::default_tenant());
    for (id, bytes) in files {
        backend.write(FileKind::Snapshot, id, &bytes).unwrap();
    }
}

#[tokio::test]
async fn p07_a_server_installed_anew_on_the_same_data_keeps_every_pod() {
    let world = World::new(107);
    let pod = {
        let server = world.server().await;
        let pod = server.running("dev", small_spec(Backend::Overlay)).await;
        world.engine.write(pod, "/srv/work", "1").unwrap();
        pod
    };
    let server = world.server().await;
    server.settle(pod).await;
    for round in 0..2 {
        server.succeed(server.stop(pod).await).await;
        server.succeed(server.start(pod).await).await;
        assert_eq!(world.engine.read(pod, "/srv/work").unwrap().unwrap(), b"1", "round {round}");
    }
}

#[tokio::test]
async fn p32_after_a_repair_the_next_snapshot_of_a_pod_stores_again_all_that_was_lost() {
    use perennial_snapshots::{Backend as _, FileKind, Mode, Password, RepairRequest, Repository};
    let world = World::new(132);
    let server = world.server().await;
    let pod = server.running("dev", small_spec(Backend::Overlay)).await;
    world.engine.write(pod, "/srv/work", "not changed since").unwrap();
    server.succeed(server.snapshot(pod).await).await;
    let tenant = perennial_core::spec::TenantId::default_tenant();
    let backend = world.repositories.backend(&tenant);
    for pack in backend.list(FileKind::Pack).unwrap() {
        backend.remove(FileKind::Pack, pack.id).unwrap();
    }
    // Somebody repairs it by hand, beside the server.
    let password = Password::new(perennial::reconcile::repositories::MEMORY_PASSWORD);
    let repository = Repository::open(Arc::new(backend), &password).unwrap();
    let request = RepairRequest { mode: Mode::Execute, now: world.clock_now() };
    let report = repository.repair(&request, &perennial_core::progress::Progress::default()).unwrap();
    assert_eq!(report.hurt.len() as u64, report.snapshots, "everything is lost: {report:?}");
    server.succeed(server.stop(pod).await).await;
    world.engine.remove_image(&server.pod(pod).await.image.unwrap().id).unwrap();
    server.succeed(server.start(pod).await).await;
    assert_eq!(world.engine.read(pod, "/srv/work").unwrap().unwrap(), b"not changed since");
}

#[tokio::test]
async fn p08_a_sleeping_pod_is_never_replaced_by_an_empty_one() {
    let world = World::new(108);
    let server = world.server().await;
    let pod = server.running("dev", small_spec(Backend::Overlay)).await;
    world.engine.write(pod, "/srv/work", "1").unwrap();
    server.succeed(server.stop(pod).await).await;
    let hidden = hide_snapshots(&world);
    let operation = server.done(server.start(pod).await).await;
    assert_eq!(operation.state, OperationState::Failed, "{operation:?}");
    assert_eq!(world.engine.container_of(pod), None, "nothing was started");
    assert_eq!(server.pod(pod).await.sets.len(), 0, "nothing was left behind");
    give_back(&world, hidden);
    server.succeed(server.start(pod).await).await;
    assert_eq!(world.engine.read(pod, "/srv/work").unwrap().unwrap(), b"1");
}

#[tokio::test]
async fn p09_a_stop_captures_from_whatever_state_the_pod_is_in() {
    let world = World::new(109);
    let server = world.server().await;
    let pod = server.running("dev", small_spec(Backend::Overlay)).await;
    world.engine.write(pod, "/srv/work", "1").unwrap();
    // Paused, and its container gone: no status text says "running".
    server.succeed(server.pause(pod).await).await;
    world.engine.kill_container_outside(pod).unwrap();
    server.settle(pod).await;
    server.succeed(server.stop(pod).await).await;
    assert_eq!(server.snapshots(pod).await[0].state, SnapshotState::Verified);
    server.succeed(server.start(pod).await).await;
    assert_eq!(world.engine.read(pod, "/srv/work").unwrap().unwrap(), b"1");
}

#[tokio::test]
async fn p11_a_start_fails_when_the_expected_snapshot_is_not_found() {
    let world = World::new(111);
    let server = world.server().await;
    let pod = server.running("dev", small_spec(Backend::Engine)).await;
    world.engine.write(pod, "/srv/work", "1").unwrap();
    server.succeed(server.stop(pod).await).await;
    let _hidden = hide_snapshots(&world);
    let operation = server.done(server.start(pod).await).await;
    assert_eq!(operation.state, OperationState::Failed);
    assert!(operation.error.unwrap().code.starts_with("repository-"));
    assert_eq!(server.pod(pod).await.phase, Phase::Stopped);
}

#[tokio::test]
async fn p13_a_stop_into_a_full_repository_says_so_and_succeeds_when_there_is_space() {
    let world = World::new(113);
    let full = Arc::new(DiskFull::default());
    let server = world.server_with(Arc::clone(&full) as _).await;
    let pod = server.running("dev", small_spec(Backend::Overlay)).await;
    world.engine.write(pod, "/srv/work", "1").unwrap();
    full.0.store(true, Ordering::SeqCst);
    let stop = server.stop(pod).await.unwrap();
    server.work(pod).await;
    let operation = server.operation(stop.operation.id).await;
    assert_eq!(operation.state, OperationState::Running, "{operation:?}");
    assert!(operation.error.is_some(), "it says why");
    assert_eq!(files(&world, pod)["/srv/work"], b"1");
    assert!(server.pod(pod).await.conditions.iter().any(|c| c.kind == ConditionKind::Retrying));
    full.0.store(false, Ordering::SeqCst);
    server.settle(pod).await;
    assert_eq!(server.operation(stop.operation.id).await.state, OperationState::Succeeded);
    server.succeed(server.start(pod).await).await;
    assert_eq!(world.engine.read(pod, "/srv/work").unwrap().unwrap(), b"1");
}

#[tokio::test]
async fn p15_a_missing_volume_fails_the_snapshot_unless_exactly_its_loss_is_accepted() {
    let world = World::new(115);
    let server = world.server().await;
    let pod = server.running("dev", small_spec(Backend::Overlay)).await;
    world.engine.write(pod, "/srv/work", "1").unwrap();
    server.succeed(server.pause(pod).await).await;
    world.engine.remove_volume_data_outside(pod, 1, "home").unwrap();
    let operation = server.done(server.stop(pod).await).await;
    assert_eq!(operation.state, OperationState::Failed);
    assert_eq!(server.pod(pod).await.sets.len(), 1, "the data stayed");
    let caller = perennial::service::Caller::admin();
    let request = perennial::service::Request::new(&caller);
    let consent = accepting("dev", &["/volumes/home"]);
    server.succeed(server.app.stop(request, pod, &consent).await).await;
    let taken = server.snapshots(pod).await.into_iter().find(|s| s.state == SnapshotState::Verified).unwrap();
    assert_eq!(taken.losses.len(), 1);
    server.succeed(server.start(pod).await).await;
    assert_eq!(world.engine.read(pod, "/srv/work").unwrap().unwrap(), b"1");
}

/// Overlay rule 5: what no container shows and still has the volumes mounted may write until it ends.
#[tokio::test]
async fn a_process_that_outlives_its_container_keeps_the_final_pass_waiting() {
    for (seed, backend) in [(150, Backend::Overlay), (151, Backend::Engine)] {
        let world = World::new(seed);
        let server = world.server().await;
        let pod = server.running("dev", small_spec(backend)).await;
        world.engine.write(pod, "/srv/work", "1").unwrap();
        let process = world.engine.lingering_process(pod, 1);
        let operation = server.done(server.stop(pod).await).await;
        let problem = operation.error.unwrap();
        assert_eq!(problem.code, "foreign-writer");
        assert!(problem.message.contains(&process), "{problem:?}");
        assert!(
            server.snapshots(pod).await.iter().all(|s| s.state != SnapshotState::Verified),
            "captured beside a writer"
        );
        world.engine.write_lingering(&process, pod, backend, ("srv", "late"), "2").unwrap();
        world.engine.foreign_remove(&process);
        // A stop that failed leaves the pod running, as soon as it may; and then it can be stopped.
        server.settle(pod).await;
        assert_eq!(server.pod(pod).await.phase, Phase::Running);
        server.succeed(server.stop(pod).await).await;
        server.succeed(server.start(pod).await).await;
        for (path, text) in [("/srv/work", "1"), ("/srv/late", "2")] {
            assert_eq!(world.engine.read(pod, path).unwrap().unwrap(), text.as_bytes(), "{path}");
        }
    }
}

/// Whatever of a set is missing, its owner can let go of exactly that, and of the rest nothing is lost.
#[tokio::test]
async fn p15_a_set_without_its_marker_or_without_anything_is_released_when_exactly_that_is_accepted() {
    for (seed, backend, parts) in [
        (152, Backend::Overlay, &["/marker"][..]),
        (153, Backend::Engine, &["/volumes/srv"]),
        (154, Backend::Overlay, &["/volumes/srv", "/marker"]),
        (155, Backend::Overlay, &[]),
        (156, Backend::Engine, &[]),
    ] {
        let world = World::new(seed);
        let server = world.server().await;
        let pod = server.running("dev", small_spec(backend)).await;
        world.engine.write(pod, "/srv/work", "1").unwrap();
        world.engine.write(pod, "/home/work", "2").unwrap();
        server.succeed(server.pause(pod).await).await;
        let names: Vec<String> = server.pod(pod).await.sets[0].volumes.iter().map(|v| v.name.clone()).collect();
        let mut lost: Vec<String> = parts.iter().map(|p| (*p).to_owned()).collect();
        for part in parts {
            match part.strip_prefix("/volumes/") {
                Some(volume) => world.engine.remove_volume_data_outside(pod, 1, volume).unwrap(),
                None => std::fs::remove_file(world.engine.root().join(format!("pods/{pod}/s1/marker.json"))).unwrap(),
            }
        }
        if parts.is_empty() {
            lost = names.iter().map(|n| format!("/volumes/{n}")).collect();
            world.engine.remove_set_outside(pod, 1).unwrap();
        }
        let caller = perennial::service::Caller::admin();
        let request = || perennial::service::Request::new(&caller);
        // One part less than is missing is refused, and the answer names what is missing.
        let refused = accepting("dev", &["/volumes/other"]);
        let operation = server.done(server.app.stop(request(), pod, &refused).await).await;
        let problem = operation.error.unwrap();
        assert_eq!(problem.code, "snapshot-incomplete", "{backend:?} {parts:?}");
        assert!(lost.iter().all(|l| problem.message.contains(l)), "{problem:?}");
        let paths: Vec<&str> = lost.iter().map(String::as_str).collect();
        server.succeed(server.app.delete(request(), pod, &accepting("dev", &paths)).await).await;
        let taken = server.snapshots(pod).await.into_iter().find(|s| s.state == SnapshotState::Verified).unwrap();
        let named: Vec<&str> = taken.losses.iter().map(|l| l.path.as_str()).collect();
        paths.iter().for_each(|p| assert!(named.contains(p), "{named:?}"));
        assert_eq!(named.len(), paths.len());
        assert_eq!(world.engine.list_owned().await.unwrap(), [], "{backend:?} {parts:?}");
        server.succeed(server.undelete(pod).await).await;
        server.succeed(server.start(pod).await).await;
        let kept = |volume: &str| !lost.contains(&format!("/volumes/{volume}"));
        assert_eq!(world.engine.read(pod, "/srv/work").unwrap().is_some(), kept("srv"), "{backend:?} {parts:?}");
        assert_eq!(world.engine.read(pod, "/home/work").unwrap().is_some(), kept("home"), "{backend:?} {parts:?}");
        server.succeed(server.purge(pod).await).await;
        assert!(world.engine.violations().is_empty(), "{:?}", world.engine.violations());
    }
}

#[tokio::test]
async fn p24_a_restore_never_mixes_old_and_new_files() {
    let world = World::new(124);
    let server = world.server().await;
    let pod = server.running("dev", small_spec(Backend::Engine)).await;
    world.engine.write(pod, "/srv/then", "1").unwrap();
    let then = files(&world, pod);
    server.succeed(server.snapshot(pod).await).await;
    let taken = server.snapshots(pod).await.pop().unwrap();
    world.engine.write(pod, "/srv/stale", "2").unwrap();
    world.engine.write(pod, "/srv/then", "2").unwrap();
    server.succeed(server.restore(pod, taken.id).await).await;
    assert_eq!(files(&world, pod), then);
}

#[tokio::test]
async fn p30_a_failed_stop_does_not_leave_the_service_stopped() {
    let world = World::new(130);
    let full = Arc::new(DiskFull::default());
    let server = world.server_with(Arc::clone(&full) as _).await;
    let pod = server.running("dev", small_spec(Backend::Overlay)).await;
    full.0.store(true, Ordering::SeqCst);
    let stop = server.stop(pod).await.unwrap();
    server.work(pod).await;
    // The live pass comes before the stop, so a repository that takes nothing costs the pod nothing.
    world.engine.write(pod, "/srv/still", "running").unwrap();
    let caller = perennial::service::Caller::admin();
    server.app.cancel(perennial::service::Request::new(&caller), stop.operation.id).await.unwrap();
    server.settle(pod).await;
    assert_eq!(server.pod(pod).await.phase, Phase::Running);
    assert_eq!(server.operation(stop.operation.id).await.state, OperationState::Cancelled);
}

#[tokio::test]
async fn p36_a_pod_in_error_recovers_when_its_data_is_back() {
    let world = World::new(136);
    let server = world.server().await;
    let pod = server.running("dev", small_spec(Backend::Overlay)).await;
    world.engine.write(pod, "/srv/work", "1").unwrap();
    server.succeed(server.pause(pod).await).await;
    let home = world.directory.path().join(format!("engine/pods/{pod}/s1"));
    let away = world.directory.path().join("away");
    std::fs::rename(&home, &away).unwrap();
    let operation = server.done(server.start(pod).await).await;
    assert_eq!(operation.state, OperationState::Failed);
    assert_eq!(server.pod(pod).await.phase, Phase::Error);
    std::fs::rename(&away, &home).unwrap();
    server.succeed(server.start(pod).await).await;
    assert_eq!(server.pod(pod).await.phase, Phase::Running);
    assert_eq!(world.engine.read(pod, "/srv/work").unwrap().unwrap(), b"1");
}

#[tokio::test]
async fn p39_volumes_are_not_deleted_while_anything_refers_to_them() {
    let world = World::new(139);
    let server = world.server().await;
    let pod = server.running("dev", small_spec(Backend::Overlay)).await;
    world.engine.write(pod, "/srv/work", "1").unwrap();
    let foreign = world.engine.foreign_container(pod, 1);
    let operation = server.done(server.stop(pod).await).await;
    assert_eq!(operation.state, OperationState::Failed, "{operation:?}");
    assert_eq!(operation.error.unwrap().code, "foreign-writer");
    assert!(DeletePermit::purged_set(&server.pod(pod).await, 1).is_err());
    assert_eq!(world.engine.list_owned().await.unwrap().len(), 2, "container and set are there");
    world.engine.foreign_remove(&foreign);
    server.succeed(server.stop(pod).await).await;
    server.succeed(server.start(pod).await).await;
    assert_eq!(world.engine.read(pod, "/srv/work").unwrap().unwrap(), b"1");
}

#[test]
fn sim_every_incident_on_postgresql() {
    let all: &[fn()] = &[
        p07_a_server_installed_anew_on_the_same_data_keeps_every_pod,
        p32_after_a_repair_the_next_snapshot_of_a_pod_stores_again_all_that_was_lost,
        p08_a_sleeping_pod_is_never_replaced_by_an_empty_one,
        p09_a_stop_captures_from_whatever_state_the_pod_is_in,
        p11_a_start_fails_when_the_expected_snapshot_is_not_found,
        p13_a_stop_into_a_full_repository_says_so_and_succeeds_when_there_is_space,
        p15_a_missing_volume_fails_the_snapshot_unless_exactly_its_loss_is_accepted,
        a_process_that_outlives_its_container_keeps_the_final_pass_waiting,
        p15_a_set_without_its_marker_or_without_anything_is_released_when_exactly_that_is_accepted,
        p24_a_restore_never_mixes_old_and_new_files,
        p30_a_failed_stop_does_not_leave_the_service_stopped,
        p36_a_pod_in_error_recovers_when_its_data_is_back,
        p39_volumes_are_not_deleted_while_anything_refers_to_them,
    ];
    crate::postgres::on_postgresql(include_str!("incidents.rs"), all);
}
