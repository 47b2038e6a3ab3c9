//! Limits of CPU time, memory and processes: changed while a pod runs, or honestly not (D18).

use std::sync::Arc;

use jiff::SignedDuration;
use perennial::service::Caller;
use perennial_core::Error;
use perennial_core::id::PodId;
use perennial_core::pod::{ConditionKind, Phase};
use perennial_core::spec::{Backend, PodSpec, Resources};
use perennial_drivers::sim::Cause;

use crate::world::taps::{Blow, Striker};
use crate::world::{Server, World, small_spec};

const MIB: u64 = 1 << 20;

fn memory(mebibytes: u64) -> Resources {
    Resources { memory: Some(mebibytes * MIB), pids: Some(100), ..Resources::default() }
}

fn limited(resources: Resources) -> PodSpec {
    PodSpec { resources, ..small_spec(Backend::Overlay) }
}

async fn ask(server: &Server, pod: PodId, resources: Resources) -> Result<(), Error> {
    let change = move |spec: &PodSpec| Ok(PodSpec { resources, ..spec.clone() });
    server.app.patch(&Caller::admin(), pod, None, change).await.map(|_| ())
}

async fn change(server: &Server, pod: PodId, resources: Resources) {
    ask(server, pod, resources).await.unwrap();
    server.settle(pod).await;
}

/// Why a restart is needed, when it is.
async fn waits(server: &Server, pod: PodId) -> Option<String> {
    let conditions = server.pod(pod).await.conditions;
    let found = conditions.into_iter().find(|c| c.kind == ConditionKind::RestartRequired);
    found.inspect(|c| assert_eq!(c.reason, "limits-refused")).map(|c| c.message)
}

async fn told(server: &Server, pod: PodId) -> Vec<String> {
    let filter = perennial::store::EventFilter { pod: Some(pod), ..Default::default() };
    let events = server.app.store.event_list(0, &filter, 1000).await.unwrap();
    events.into_iter().map(|event| event.line.kind).filter(|kind| kind.starts_with("pod.limits-")).collect()
}

#[tokio::test]
async fn sim_d18_limits_change_while_the_pod_runs() {
    let world = World::new(1);
    let server = world.server().await;
    let pod = server.running("dev", limited(memory(64))).await;
    let (container, run) = (world.engine.container_of(pod), server.pod(pod).await.current_set().unwrap().attached);
    for wanted in [memory(128), Resources { nano_cpus: Some(1_500_000_000), ..memory(32) }] {
        change(&server, pod, wanted).await;
        assert_eq!(world.engine.limits_of(pod), Some(wanted));
        assert_eq!(waits(&server, pod).await, None);
    }
    assert_eq!(world.engine.container_of(pod), container);
    assert_eq!(server.pod(pod).await.current_set().unwrap().attached, run, "it runs on");
    assert_eq!(told(&server, pod).await, ["pod.limits-changed"; 2]);
    // A paused pod has them when it starts, and a stopped one in its next container.
    server.succeed(server.pause(pod).await).await;
    let paused = Resources { nano_cpus: Some(1_000_000_000), ..memory(96) };
    change(&server, pod, paused).await;
    server.succeed(server.start(pod).await).await;
    assert_eq!((world.engine.limits_of(pod), world.engine.container_of(pod)), (Some(paused), container));
    server.succeed(server.stop(pod).await).await;
    change(&server, pod, memory(48)).await;
    server.succeed(server.start(pod).await).await;
    assert_eq!(world.engine.limits_of(pod), Some(memory(48)));
    assert_eq!(world.engine.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn sim_d18_less_memory_than_a_pod_uses_waits_until_it_uses_less() {
    let world = World::new(2);
    let server = world.server().await;
    let pod = server.running("dev", limited(memory(64))).await;
    world.engine.hold_memory(pod, 50 * MIB).unwrap();
    change(&server, pod, memory(32)).await;
    assert_eq!(world.engine.limits_of(pod), Some(memory(64)), "nothing is ended for it");
    let why = waits(&server, pod).await.unwrap();
    assert!(why.contains("52428800") && why.contains("restart"), "{why}");
    // Tried again, and told of once.
    world.clock.advance(SignedDuration::from_mins(11));
    server.settle(pod).await;
    assert!(waits(&server, pod).await.is_some());
    assert_eq!(told(&server, pod).await, ["pod.limits-refused"]);
    world.engine.hold_memory(pod, MIB).unwrap();
    server.settle(pod).await;
    assert_eq!(world.engine.limits_of(pod), Some(memory(64)), "not before its time");
    world.clock.advance(SignedDuration::from_mins(11));
    server.settle(pod).await;
    assert_eq!((world.engine.limits_of(pod), waits(&server, pod).await), (Some(memory(32)), None));
    // Other limits are tried at once, and those it has need nothing.
    world.engine.hold_memory(pod, 30 * MIB).unwrap();
    change(&server, pod, memory(16)).await;
    assert!(waits(&server, pod).await.is_some());
    change(&server, pod, memory(31)).await;
    assert_eq!((world.engine.limits_of(pod), waits(&server, pod).await), (Some(memory(31)), None));
    change(&server, pod, memory(16)).await;
    change(&server, pod, memory(31)).await;
    assert_eq!(waits(&server, pod).await, None, "it has what is wanted");
}

#[tokio::test]
async fn sim_d18_what_cannot_change_comes_with_a_restart_and_loses_nothing() {
    for hidden in [false, true] {
        let world = World::new(3);
        let server = world.server().await;
        let runtime = hidden.then(|| "runsc".to_owned());
        let pod = server.running("dev", PodSpec { runtime, ..limited(memory(64)) }).await;
        let container = world.engine.container_of(pod);
        world.engine.write(pod, "/srv/kept", "1").unwrap();
        if !hidden {
            world.engine.write(pod, "/tools/layer", "1").unwrap();
        }
        // The simulator, like Docker, takes no memory limit away; one of its runtimes, like gVisor, changes nothing at all.
        let wanted = if hidden { memory(128) } else { Resources { memory: None, ..memory(64) } };
        change(&server, pod, wanted).await;
        assert!(waits(&server, pod).await.is_some(), "hidden {hidden}");
        assert_eq!(world.engine.limits_of(pod), Some(memory(64)));
        server.succeed(server.restart(pod).await).await;
        assert_eq!((world.engine.limits_of(pod), waits(&server, pod).await), (Some(wanted), None), "hidden {hidden}");
        // A runtime has no say in what an ended container is started with: that one is kept.
        assert_eq!(world.engine.container_of(pod) == container, hidden);
        assert_eq!(world.engine.read(pod, "/srv/kept").unwrap().unwrap(), b"1");
        if !hidden {
            assert_eq!(world.engine.read(pod, "/tools/layer").unwrap().unwrap(), b"1");
        }
        assert_eq!(server.pod(pod).await.phase, Phase::Running);
        assert_eq!(world.engine.violations(), Vec::<String>::new());
    }
}

/// Nobody can have them: the pod goes on with what it has, also after a crash, and says so.
#[tokio::test]
async fn sim_d18_limits_that_no_container_can_have_cost_no_pod() {
    let world = World::new(5);
    let server = world.server().await;
    let pod = server.running("dev", limited(memory(64))).await;
    let container = world.engine.container_of(pod);
    world.engine.write(pod, "/tools/layer", "1").unwrap();
    // Asked for when the host had more of them.
    let mut record = server.pod(pod).await;
    record.spec.resources.nano_cpus = Some(1_000_000_000_000);
    let older = perennial::store::Change { pod: Some(record), ..Default::default() };
    server.app.store.commit(older).await.unwrap();
    server.settle(pod).await;
    for crashes in [false, true] {
        if crashes {
            world.engine.crash(pod, 1, Cause::Itself).unwrap();
            server.settle(pod).await;
        }
        let now = server.pod(pod).await;
        let is_told = now.conditions.iter().any(|c| c.kind == ConditionKind::LimitsRefused);
        assert_eq!((now.phase, is_told), (Phase::Running, true), "crashes {crashes}");
        assert_eq!(world.engine.container_of(pod), container, "crashes {crashes}");
        assert_eq!(waits(&server, pod).await, None, "a restart does not help");
    }
    assert_eq!(world.engine.read(pod, "/tools/layer").unwrap().unwrap(), b"1");
    change(&server, pod, memory(80)).await;
    assert_eq!(world.engine.limits_of(pod), Some(memory(80)));
    let conditions = server.pod(pod).await.conditions;
    assert!(!conditions.iter().any(|c| c.kind == ConditionKind::LimitsRefused), "{conditions:?}");
    assert_eq!(world.engine.violations(), Vec::<String>::new());
}

/// Less memory than it used is no reason for another container once it has ended.
#[tokio::test]
async fn sim_d18_what_was_refused_while_it_ran_is_taken_when_it_has_ended() {
    let world = World::new(6);
    let server = world.server().await;
    let pod = server.running("dev", limited(memory(64))).await;
    let container = world.engine.container_of(pod);
    world.engine.hold_memory(pod, 50 * MIB).unwrap();
    change(&server, pod, memory(32)).await;
    assert!(waits(&server, pod).await.is_some());
    world.engine.crash(pod, 137, Cause::OutOfMemory).unwrap();
    server.settle(pod).await;
    assert_eq!((world.engine.limits_of(pod), world.engine.container_of(pod)), (Some(memory(32)), container));
    assert_eq!((server.pod(pod).await.phase, waits(&server, pod).await), (Phase::Running, None));
}

#[tokio::test]
async fn sim_sweep_d18_limits_are_changed_whoever_dies_meanwhile() {
    let wanted = memory(128);
    // Asks once, of a server that this happens to.
    let struck = async |blow, at| {
        let world = World::new(4);
        let pod = world.server().await.running("dev", limited(memory(64))).await;
        let container = world.engine.container_of(pod);
        let striker = Arc::new(Striker::new(blow, at));
        let server = world.server_with(Arc::clone(&striker) as _).await;
        let life = async {
            // Who was not told that it is so asks again.
            let _ = ask(&server, pod, wanted).await;
            server.settle(pod).await;
        };
        tokio::select! {
            () = life => {}
            () = striker.death() => {}
        }
        (world, pod, container, striker.passed())
    };
    let (.., sites) = struck(Blow::Count, usize::MAX - 1).await;
    assert!(sites.len() >= 4, "{sites:?}");
    for (at, site) in sites.iter().enumerate() {
        for blow in [Blow::KillBefore, Blow::KillAfter, Blow::FailBefore, Blow::LoseAnswer] {
            // Asked for again, or taken back: either way the container has what its pod has.
            for wanted in [wanted, memory(64)] {
                let case = format!("{blow:?} at {at} ({site}), then {wanted:?}");
                let (world, pod, container, _) = struck(blow, at).await;
                let server = world.server().await;
                ask(&server, pod, wanted).await.unwrap();
                server.settle(pod).await;
                assert_eq!(world.engine.limits_of(pod), Some(wanted), "{case}");
                assert_eq!(world.engine.container_of(pod), container, "{case}");
                assert_eq!(waits(&server, pod).await, None, "{case}");
                assert_eq!(world.engine.violations(), Vec::<String>::new(), "{case}");
            }
        }
    }
}
