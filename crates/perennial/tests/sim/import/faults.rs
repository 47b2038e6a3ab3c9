//! Crashes, cancellations and lost bodies: what was received becomes a snapshot, or goes.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{Method, Request};
use perennial_core::operation::OperationState;
use perennial_core::snapshot::SnapshotState;
use perennial_core::spec::Backend;
use tower::ServiceExt as _;

use super::send::{Tar, is_clean, send, taken};
use crate::browse::desk::{Desk, TOKEN};
use crate::world::taps::{Blow, Striker};
use crate::world::{World, files, small_spec};

/// Runs an import that is hit at one point, and lets another life of the server finish it.
async fn struck(blow: Blow, at: usize) -> usize {
    let world = World::new(at as u64);
    let pod = {
        let desk = Desk::new(&world).await;
        let pod = desk.server.running("dev", small_spec(Backend::Overlay)).await;
        desk.snapshot(pod).await;
        pod
    };
    let before = files(&world, pod);
    let archive = Tar::new().file("a", &[7; 100_000]).file("b", b"2").done();
    let striker = Arc::new(Striker::new(blow, at));
    {
        let desk = Desk::with(&world, Arc::clone(&striker) as _).await;
        let history = async {
            let answer = send(&desk, pod, "?into=/srv", &archive).await;
            desk.server.settle(pod).await;
            answer.status
        };
        tokio::select! { _ = history => {}, () = striker.death() => {} }
    }
    let desk = Desk::new(&world).await;
    desk.server.app.imports_sweep().await;
    desk.server.settle(pod).await;
    desk.server.app.imports_sweep().await;
    assert!(is_clean(&world), "{blow:?} at {at}");
    assert_eq!(files(&world, pod), before, "{blow:?} at {at}");
    for row in desk.server.snapshots(pod).await {
        // Whatever was recorded came to its end: nothing waits for ever.
        assert_eq!(row.state, SnapshotState::Verified, "{blow:?} at {at}: {row:?}");
    }
    assert!(desk.server.pod(pod).await.tasks.is_empty());
    // One snapshot in the repository for each row: what a try left is forgotten by the next.
    let rows = desk.server.snapshots(pod).await.len();
    assert_eq!(world.snapshots_in_repository("snapshot:"), rows, "{blow:?} at {at}");
    assert!(world.check_repository().unwrap().problems.is_empty());
    striker.passed().len()
}

async fn sweep(blow: Blow) {
    let points = struck(Blow::Count, usize::MAX - 1).await;
    assert!(points > 8, "{points}");
    for at in 0..points {
        struck(blow, at).await;
    }
}

#[tokio::test]
async fn sim_sweep_an_import_killed_before_any_step_is_finished_or_gone() {
    sweep(Blow::KillBefore).await;
}

#[tokio::test]
async fn sim_sweep_an_import_killed_after_any_step_is_finished_or_gone() {
    sweep(Blow::KillAfter).await;
}

#[tokio::test]
async fn sim_sweep_an_import_failed_at_any_step_is_finished_or_gone() {
    sweep(Blow::FailBefore).await;
    sweep(Blow::LoseAnswer).await;
}

#[tokio::test]
async fn sim_a_cancelled_import_is_no_snapshot_and_its_archive_goes() {
    let world = World::new(1);
    let desk = Desk::new(&world).await;
    let pod = desk.server.running("dev", small_spec(Backend::Overlay)).await;
    let (snapshot, operation) = taken(&desk, pod, "?into=/srv", &Tar::new().file("a", b"1").done()).await;
    assert!(!is_clean(&world), "the archive waits for its operation");
    desk.server.app.imports_sweep().await;
    assert!(!is_clean(&world), "and nobody takes it away");
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("/api/v1/operations/{operation}/cancel"))
        .header("authorization", format!("Bearer {TOKEN}"));
    let answer = desk.router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(answer.status(), 202);
    desk.server.settle(pod).await;
    assert_eq!(desk.server.operation(operation).await.state, OperationState::Cancelled);
    desk.server.housekeeper().run_due().await;
    assert!(is_clean(&world));
    let row = desk.server.app.store.snapshot_fetch(snapshot).await.unwrap().unwrap();
    assert_eq!(row.state, SnapshotState::Failed);
}

#[tokio::test]
async fn sim_an_archive_that_is_lost_after_it_was_received_fails_its_operation_and_says_so() {
    let world = World::new(2);
    let desk = Desk::new(&world).await;
    let pod = desk.server.running("dev", small_spec(Backend::Overlay)).await;
    let (_, operation) = taken(&desk, pod, "?into=/srv", &Tar::new().file("a", b"1").done()).await;
    for entry in std::fs::read_dir(world.directory.path().join("imports")).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    desk.server.settle(pod).await;
    let operation = desk.server.operation(operation).await;
    assert_eq!(operation.state, OperationState::Failed);
    assert_eq!(operation.error.unwrap().code, "import-body-missing");
}

#[tokio::test]
async fn sim_archives_become_snapshots_one_after_the_other() {
    let world = World::new(4);
    let desk = Desk::new(&world).await;
    let pod = desk.server.running("dev", small_spec(Backend::Overlay)).await;
    let turn = desk.server.app.imports.making().unwrap();
    let (snapshot, operation) = taken(&desk, pod, "?into=/srv", &Tar::new().file("a", b"1").done()).await;
    desk.server.work(pod).await;
    let waits = desk.server.operation(operation).await;
    assert_eq!((waits.state, waits.error.unwrap().code.as_str()), (OperationState::Running, "import-busy"));
    assert!(!is_clean(&world), "its archive waits with it");
    drop(turn);
    desk.server.settle(pod).await;
    assert_eq!(desk.server.operation(operation).await.state, OperationState::Succeeded);
    let row = desk.server.app.store.snapshot_fetch(snapshot).await.unwrap().unwrap();
    assert_eq!(row.state, SnapshotState::Verified);
    assert!(is_clean(&world) && desk.server.app.imports.making().is_some());
}

#[tokio::test]
async fn sim_an_import_needs_nothing_of_a_pod_in_trouble_and_proves_nothing_about_it() {
    let world = World::new(3);
    let desk = Desk::new(&world).await;
    let pod = desk.server.running("dev", small_spec(Backend::Overlay)).await;
    desk.snapshot(pod).await;
    world.engine.remove_set_outside(pod, 1).unwrap();
    desk.server.settle(pod).await;
    let archive = Tar::new().file("a", b"1").done();
    let snapshot = super::send::imported(&desk, pod, "?into=/srv", &archive).await;
    let row = desk.server.app.store.snapshot_fetch(snapshot).await.unwrap().unwrap();
    // No set, no generation, no writer: no permit can be made out of it.
    assert_eq!((row.set, row.generation, row.grade, row.writer), (None, 0, None, None));
}
