//! The crash sweep: for every engine call, commit and repository access of a scenario, the server is killed before it,
//! killed after it, refused, or robbed of its answer. Whatever happens, everything converges and no byte is lost.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::world::taps::{Blow, Striker};
use crate::world::{IMAGE, Server, World, files, hooks, small_spec};
use perennial::service::Outcome;
use perennial_core::Error;
use perennial_core::engine::{Copying, Engine, Owned};
use perennial_core::id::{PodId, SnapshotId};
use perennial_core::parts::{Extra, Parts};
use perennial_core::pod::Phase;
use perennial_core::snapshot::SnapshotState;
use perennial_core::spec::{Backend, DeclaredVolume, PodSpec, Profile};

macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err(format!($($message)+));
        }
    };
}

const BLOWS: [Blow; 4] = [Blow::KillBefore, Blow::KillAfter, Blow::FailBefore, Blow::LoseAnswer];

/// What is asked for, after a running pod with data and one snapshot was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scenario {
    Create,
    Pause,
    Stop,
    StartAfterPause,
    StartAfterStop,
    Restart,
    Snapshot,
    /// Of a pod that waits from one hook to the other.
    HookedSnapshot,
    Reset,
    Restore,
    RestoreParts,
    RestorePartsOfStopped,
    Clone,
    CloneOfPaused,
    CloneOfSnapshot,
    /// Of a pod that has a machine-id.
    CloneOfMachine,
    Delete,
    Purge,
}

/// Where a pod keeps which machine it is.
const MACHINE_ID: &str = "/etc/machine-id";

/// A pod with one volume, which holds its identity.
fn machine_spec(backend: Backend) -> PodSpec {
    let volume = DeclaredVolume { name: "etc".into(), mount_path: "/etc".into(), size: None };
    PodSpec { profile: Profile::Declared(vec![volume]), backend: Some(backend), ..PodSpec::new(IMAGE) }
}

/// What the world looked like before the scenario.
struct Before {
    pod: Option<PodId>,
    snapshot: Option<SnapshotId>,
    at_snapshot: BTreeMap<String, Vec<u8>>,
    bytes: BTreeMap<String, Vec<u8>>,
}

async fn prepare(world: &World, scenario: Scenario, backend: Backend) -> Before {
    let server = world.server().await;
    if scenario == Scenario::Create {
        return Before { pod: None, snapshot: None, at_snapshot: BTreeMap::new(), bytes: BTreeMap::new() };
    }
    if scenario == Scenario::CloneOfMachine {
        let pod = server.running("dev", machine_spec(backend)).await;
        world.engine.write(pod, MACHINE_ID, "0123456789abcdef0123456789abcdef\n").unwrap();
        let bytes = files(world, pod);
        return Before { pod: Some(pod), snapshot: None, at_snapshot: BTreeMap::new(), bytes };
    }
    let spec = match scenario {
        Scenario::HookedSnapshot => PodSpec { hooks: hooks(&["quiesce"], &["resume"]), ..small_spec(backend) },
        _ => small_spec(backend),
    };
    let pod = server.running("dev", spec).await;
    world.engine.write(pod, "/srv/kept", "1").unwrap();
    world.engine.write(pod, "/tools/layer", "1").unwrap();
    let at_snapshot = files(world, pod);
    server.succeed(server.snapshot(pod).await).await;
    let snapshot = server.snapshots(pod).await.pop().map(|s| s.id);
    world.engine.write(pod, "/srv/later", "2").unwrap();
    world.engine.write(pod, "/tools/later", "2").unwrap();
    world.engine.remove(pod, "/srv/kept").unwrap();
    let bytes = files(world, pod);
    match scenario {
        Scenario::StartAfterPause | Scenario::CloneOfPaused => server.succeed(server.pause(pod).await).await,
        Scenario::StartAfterStop | Scenario::RestorePartsOfStopped => server.succeed(server.stop(pod).await).await,
        _ => {}
    }
    Before { pod: Some(pod), snapshot, at_snapshot, bytes }
}

async fn ask(server: &Server, scenario: Scenario, before: &Before, backend: Backend) -> Result<Outcome, Error> {
    let Some(pod) = before.pod else { return server.create("dev", small_spec(backend)).await };
    match scenario {
        Scenario::Create => unreachable!("it has no pod yet"),
        Scenario::Pause => server.pause(pod).await,
        Scenario::Stop => server.stop(pod).await,
        Scenario::StartAfterPause | Scenario::StartAfterStop => server.start(pod).await,
        Scenario::Restart => server.restart(pod).await,
        Scenario::Snapshot | Scenario::HookedSnapshot => server.snapshot(pod).await,
        Scenario::Reset => server.reset(pod).await,
        Scenario::Restore => server.restore(pod, before.snapshot.unwrap()).await,
        Scenario::RestoreParts | Scenario::RestorePartsOfStopped => {
            server.restore_parts(pod, before.snapshot.unwrap(), parts()).await
        }
        Scenario::Clone | Scenario::CloneOfPaused | Scenario::CloneOfMachine => server.fork("copy", pod, None).await,
        Scenario::CloneOfSnapshot => server.fork("copy", pod, before.snapshot).await,
        Scenario::Delete => server.delete(pod).await,
        Scenario::Purge => server.purge(pod).await,
    }
}

/// What is put back: a file of a volume, and a part of the system layer.
fn parts() -> Parts {
    Parts::new(Vec::new(), vec!["/srv/kept".into(), "/tools".into()], Extra::Remove).unwrap().unwrap()
}

/// The bytes after that: the rest stays as it was.
fn with_parts(before: &Before) -> BTreeMap<String, Vec<u8>> {
    let mut files = before.bytes.clone();
    files.retain(|path, _| !path.starts_with("/tools/"));
    let chosen = before.at_snapshot.iter().filter(|(path, _)| path.starts_with("/tools/") || *path == "/srv/kept");
    files.extend(chosen.map(|(path, bytes)| (path.clone(), bytes.clone())));
    files
}

/// Asks and works until everything rests or the server is dead.
async fn live(server: &Server, striker: &Striker, scenario: Scenario, before: &Before, backend: Backend) {
    let life = async {
        if let Ok(outcome) = ask(server, scenario, before, backend).await {
            match before.pod {
                Some(source) if source != outcome.pod.id => server.settle_both(source, outcome.pod.id).await,
                _ => {
                    server.settle(outcome.pod.id).await;
                }
            }
        }
    };
    tokio::select! {
        () = life => {}
        () = striker.death() => {}
    }
}

/// A new server on what is left: it has to bring everything to where it was asked to go.
async fn converge(world: &World, scenario: Scenario, before: &Before, backend: Backend) -> Result<(), String> {
    world.nobody_reads().await;
    let server = world.server().await;
    let known = server.app.store.pod_ids().await.unwrap();
    let is_clone = kind_of(scenario) == "clone";
    // A clone waits for its source.
    for pod in known.iter().chain(known.iter().filter(|_| is_clone)) {
        server.settle(*pod).await;
    }
    if is_clone {
        return converge_clone(world, &server, scenario, before, backend).await;
    }
    let pod = match before.pod.or_else(|| known.first().copied()) {
        Some(pod) => pod,
        // The request itself was lost: nobody was told that it was accepted, so it is asked again.
        None => {
            let outcome = ask(&server, scenario, before, backend).await.map_err(|e| e.to_string())?;
            server.settle(outcome.pod.id).await;
            outcome.pod.id
        }
    };
    let asked = match server.app.store.pod_fetch(pod).await.unwrap() {
        None => scenario == Scenario::Purge,
        Some(_) => server
            .app
            .store
            .operation_list(pod, &perennial::store::Page { after: None, limit: 1 })
            .await
            .unwrap()
            .first()
            .is_some_and(|o| o.kind.as_str() == kind_of(scenario)),
    };
    if !asked && scenario != Scenario::Create {
        let outcome = ask(&server, scenario, before, backend).await.map_err(|e| e.to_string())?;
        server.settle(outcome.pod.id).await;
    }
    check(world, &server, scenario, before, pod).await
}

fn kind_of(scenario: Scenario) -> &'static str {
    match scenario {
        Scenario::Create => "create",
        Scenario::Pause => "pause",
        Scenario::Stop => "stop",
        Scenario::StartAfterPause | Scenario::StartAfterStop => "start",
        Scenario::Restart => "restart",
        Scenario::Snapshot | Scenario::HookedSnapshot => "snapshot",
        Scenario::Reset => "reset",
        Scenario::Restore | Scenario::RestoreParts | Scenario::RestorePartsOfStopped => "restore",
        Scenario::Clone | Scenario::CloneOfPaused | Scenario::CloneOfSnapshot | Scenario::CloneOfMachine => "clone",
        Scenario::Delete => "delete",
        Scenario::Purge => "purge",
    }
}

/// A clone that was asked for is there, whole and with an identity of its own; its source is as it was.
async fn converge_clone(
    world: &World,
    server: &Server,
    scenario: Scenario,
    before: &Before,
    backend: Backend,
) -> Result<(), String> {
    let source = before.pod.unwrap();
    let known = server.app.store.pod_ids().await.unwrap();
    let copy = match known.into_iter().find(|pod| *pod != source) {
        Some(copy) => copy,
        // The request itself was lost: nobody was told that it was accepted, so it is asked again.
        None => {
            let outcome = ask(server, scenario, before, backend).await.map_err(|e| e.to_string())?;
            server.settle_both(source, outcome.pod.id).await;
            outcome.pod.id
        }
    };
    let expected = if scenario == Scenario::CloneOfSnapshot { &before.at_snapshot } else { &before.bytes };
    for (pod, expected) in [(copy, expected), (source, &before.bytes)] {
        check_at_rest(world, server, pod).await?;
        let record = server.pod(pod).await;
        let paused = scenario == Scenario::CloneOfPaused && pod == source;
        let phase = if paused { Phase::Paused } else { Phase::Running };
        ensure!(record.phase == phase, "phase {:?}: {record:?}", record.phase);
        let mut now = files(world, pod);
        if let (Some(id), true) = (now.get_mut(MACHINE_ID), pod == copy) {
            let original = &before.bytes[MACHINE_ID];
            ensure!(id != original && id.len() == original.len(), "the clone is its original: {id:?}");
            id.clone_from(original);
        }
        ensure!(now == *expected, "bytes of {} differ: {:?} instead of {:?}", record.name, now.keys(), expected.keys());
    }
    let owned = world.engine.list_owned().await.unwrap();
    ensure!(owned.len() == 4, "two containers and two sets are more: {owned:?}");
    Ok(())
}

/// Nothing is broken, unfinished, or pending for ever.
async fn check_at_rest(world: &World, server: &Server, pod: PodId) -> Result<(), String> {
    let violations = world.engine.violations();
    ensure!(violations.is_empty(), "violations: {violations:?}");
    let unfinished = server.app.store.operations_unfinished(pod).await.unwrap();
    ensure!(unfinished.is_empty(), "unfinished: {unfinished:?}");
    let open =
        |s: &perennial_core::snapshot::Snapshot| matches!(s.state, SnapshotState::Pending | SnapshotState::Uploaded);
    let pending = server.snapshots(pod).await.into_iter().find(open);
    ensure!(pending.is_none(), "a snapshot is pending for ever: {pending:?}");
    server.succeed(server.snapshot(pod).await).await;
    ensure!(world.engine.stills() == (0, 0), "a still is left: {:?}", world.engine.stills());
    let rows = server.snapshots(pod).await.into_iter().filter(|s| s.repository_id.is_some()).count();
    let layers = server.pod(pod).await.layers().len();
    let stored = world.snapshots_in_repository(&format!("pod:{pod}"));
    ensure!(stored == rows + layers, "{stored} snapshots are in the repository, {rows} and {layers} layers are known");
    Ok(())
}

/// Bytes equal, no orphan, every operation terminal, no law broken.
async fn check(world: &World, server: &Server, scenario: Scenario, before: &Before, pod: PodId) -> Result<(), String> {
    let violations = world.engine.violations();
    ensure!(violations.is_empty(), "violations: {violations:?}");
    let unfinished = server.app.store.operations_unfinished(pod).await.unwrap();
    ensure!(unfinished.is_empty(), "unfinished: {unfinished:?}");
    let owned = world.engine.list_owned().await.unwrap();
    if scenario == Scenario::Purge {
        ensure!(owned.is_empty(), "left after the purge: {owned:?}");
        ensure!(server.app.store.pod_fetch(pod).await.unwrap().is_none(), "the purged pod is still there");
        let left = world.snapshots_in_repository(&format!("pod:{pod}"));
        ensure!(left == 0, "{left} snapshots are left in the repository after the purge");
        ensure!(world.engine.stills() == (0, 0), "a still is left after the purge: {:?}", world.engine.stills());
        return Ok(());
    }
    let record = server.pod(pod).await;
    let is_settled = record.hook.is_none() && record.hook_failed.is_none() && !world.engine.is_quiesced(pod);
    ensure!(is_settled, "the pod waits for its hook: {record:?}");
    let phase = match scenario {
        Scenario::Pause => Phase::Paused,
        Scenario::Stop | Scenario::RestorePartsOfStopped => Phase::Stopped,
        Scenario::Delete => Phase::Deleted,
        _ => Phase::Running,
    };
    ensure!(record.phase == phase, "phase {:?} instead of {phase:?}: {record:?}", record.phase);
    for thing in &owned {
        let known = match thing {
            Owned::Container { id, .. } => record.container.as_ref().is_some_and(|c| &c.id == id),
            Owned::Set { number, .. } => record.current == Some(*number),
        };
        ensure!(known, "orphan {thing:?}: {record:?}");
    }
    if matches!(scenario, Scenario::Stop | Scenario::Delete) {
        ensure!(owned.is_empty(), "left on the host: {owned:?}");
        server
            .succeed(if scenario == Scenario::Delete { server.undelete(pod).await } else { server.start(pod).await })
            .await;
    }
    if matches!(scenario, Scenario::Pause | Scenario::Delete | Scenario::RestorePartsOfStopped) {
        server.succeed(server.start(pod).await).await;
    }
    let now = files(world, pod);
    let expected = match scenario {
        Scenario::Create => now.clone(),
        Scenario::Restore => before.at_snapshot.clone(),
        Scenario::RestoreParts | Scenario::RestorePartsOfStopped => with_parts(before),
        Scenario::Reset => {
            let kept = now.keys().any(|k| k.starts_with("/srv/later") || k.starts_with("/tools"));
            ensure!(!kept, "the reset kept {now:?}");
            let safety = server.snapshots(pod).await.into_iter().find(|s| s.state == SnapshotState::Verified).unwrap();
            server.succeed(server.restore(pod, safety.id).await).await;
            before.bytes.clone()
        }
        _ => before.bytes.clone(),
    };
    let now = files(world, pod);
    ensure!(now == expected, "bytes differ: {:?} instead of {:?}", now.keys(), expected.keys());
    let pending = server.snapshots(pod).await.into_iter().find(|s| s.state == SnapshotState::Pending);
    ensure!(pending.is_none(), "a snapshot is pending for ever: {pending:?}");
    // What a crash left in the repository goes with the next capture at the latest.
    server.succeed(server.snapshot(pod).await).await;
    ensure!(world.engine.stills() == (0, 0), "a still is left: {:?}", world.engine.stills());
    let record = server.pod(pod).await;
    let (kept, needed) = (world.snapshots_in_repository(&format!("layer:{pod}")), record.layers().len());
    ensure!(kept == needed, "{kept} captures of the layer are in the repository, {needed} are needed");
    let rows = server.snapshots(pod).await.into_iter().filter(|s| s.repository_id.is_some()).count();
    let stored = world.snapshots_in_repository(&format!("pod:{pod}"));
    ensure!(stored == rows + kept, "{stored} snapshots are in the repository, {rows} and {kept} layers are known");
    Ok(())
}

/// Where the volumes are, and who reaches them.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Overlay,
    Engine,
    /// The engine's own volumes, reached by a mover only.
    Mover,
    /// Overlay volumes on a storage that copies no set at one instant.
    Plain,
}

impl Kind {
    const fn backend(self) -> Backend {
        match self {
            Self::Overlay | Self::Plain => Backend::Overlay,
            Self::Engine | Self::Mover => Backend::Engine,
        }
    }

    fn world(self) -> World {
        match self {
            Self::Overlay | Self::Engine => World::new(1),
            Self::Mover => World::with_mover(1, perennial::mover::simulated()),
            Self::Plain => World::with_copying(1, Some(Copying::Bytes)),
        }
    }
}

async fn sweep(scenario: Scenario, kind: Kind) {
    let backend = kind.backend();
    let count = {
        let world = kind.world();
        let before = prepare(&world, scenario, backend).await;
        let striker = Arc::new(Striker::new(Blow::Count, usize::MAX - 1));
        let server = world.server_with(Arc::clone(&striker) as _).await;
        live(&server, &striker, scenario, &before, backend).await;
        converge(&world, scenario, &before, backend).await.unwrap();
        striker.passed().len()
    };
    let mut violations = Vec::new();
    for at in 0..count {
        for blow in BLOWS {
            let world = kind.world();
            let before = prepare(&world, scenario, backend).await;
            let striker = Arc::new(Striker::new(blow, at));
            let server = world.server_with(Arc::clone(&striker) as _).await;
            live(&server, &striker, scenario, &before, backend).await;
            drop(server);
            if let Err(violation) = converge(&world, scenario, &before, backend).await {
                let site = striker.passed().get(at).cloned().unwrap_or_default();
                violations.push(format!("{blow:?} at {at} ({site}): {violation}"));
            }
        }
    }
    println!("{scenario:?} on {kind:?}: {} points swept, {} violations", count * BLOWS.len(), violations.len());
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}

macro_rules! sweeps {
    ($($name:ident: $scenario:ident on $kind:ident;)+) => {
        $(
            #[tokio::test]
            async fn $name() {
                sweep(Scenario::$scenario, Kind::$kind).await;
            }
        )+
    };
}

sweeps! {
    sim_sweep_create: Create on Overlay;
    sim_sweep_pause: Pause on Overlay;
    sim_sweep_stop: Stop on Overlay;
    sim_sweep_start_after_pause: StartAfterPause on Overlay;
    sim_sweep_start_after_stop: StartAfterStop on Overlay;
    sim_sweep_restart: Restart on Overlay;
    sim_sweep_snapshot_from_a_still: Snapshot on Overlay;
    sim_sweep_snapshot: Snapshot on Plain;
    sim_sweep_p21_the_hook_after_is_run_in_the_end: HookedSnapshot on Overlay;
    sim_sweep_reset: Reset on Overlay;
    sim_sweep_restore: Restore on Overlay;
    sim_sweep_restore_of_parts: RestoreParts on Overlay;
    sim_sweep_restore_of_parts_of_a_stopped_pod: RestorePartsOfStopped on Overlay;
    sim_sweep_restore_of_parts_on_engine_volumes: RestoreParts on Engine;
    sim_sweep_clone: Clone on Overlay;
    sim_sweep_clone_file_by_file: Clone on Plain;
    sim_sweep_clone_of_a_paused_pod: CloneOfPaused on Overlay;
    sim_sweep_clone_on_engine_volumes: Clone on Engine;
    sim_sweep_clone_of_a_snapshot: CloneOfSnapshot on Overlay;
    sim_sweep_clone_never_has_the_identity_of_its_source: CloneOfMachine on Overlay;
    sim_sweep_clone_by_a_snapshot_never_has_the_identity_of_its_source: CloneOfMachine on Engine;
    sim_sweep_delete: Delete on Overlay;
    sim_sweep_purge: Purge on Overlay;
    sim_sweep_stop_on_engine_volumes: Stop on Engine;
    sim_sweep_start_on_engine_volumes: StartAfterStop on Engine;
    sim_sweep_restore_on_engine_volumes: Restore on Engine;
    sim_sweep_stop_by_mover: Stop on Mover;
    sim_sweep_start_by_mover: StartAfterStop on Mover;
    sim_sweep_snapshot_by_mover: Snapshot on Mover;
    sim_sweep_restore_by_mover: Restore on Mover;
}
