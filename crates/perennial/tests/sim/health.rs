//! Health checks: who is asked, what is counted, what is done about it, and who is told.

use jiff::SignedDuration;
use perennial_core::engine::{ContainerState, Engine as _};
use perennial_core::health::{HealthCheck, HealthState, Probe, RESTARTS_MAX, Verdict};
use perennial_core::id::PodId;
use perennial_core::pod::{ConditionKind, Phase};
use perennial_core::snapshot::WriterStamp;
use perennial_core::spec::{Backend, PodSpec, TenantId};
use perennial_drivers::sim::{Ailment, Cause};

use crate::world::{Server, World, small_spec};

/// Seconds between two questions.
const INTERVAL: u32 = 30;

/// A pod whose program serves a page.
pub fn serving() -> PodSpec {
    let command = ["httpd", "-f", "-p", "8080"].map(str::to_owned).to_vec();
    let page = Probe::Http { port: 8080, path: "/healthz".to_owned() };
    let health = HealthCheck { interval: INTERVAL, start_period: 0, ..HealthCheck::of(page) };
    PodSpec { command: Some(command), health: Some(health), ..small_spec(Backend::Overlay) }
}

/// Lets the time of one question pass, asks whoever is due, and lets what follows be done.
async fn turn(world: &World, server: &Server, pod: PodId) {
    world.clock.advance(SignedDuration::from_secs(INTERVAL.into()));
    server.work(pod).await;
    for due in server.reconciler.health_due() {
        server.reconciler.health_ask(due).await;
    }
    server.work(pod).await;
}

pub async fn turns(world: &World, server: &Server, pod: PodId, times: u32) {
    for _ in 0..times {
        turn(world, server, pod).await;
    }
}

async fn run(world: &World, pod: PodId) -> WriterStamp {
    let container = world.engine.observe(pod, &[]).await.unwrap().container.unwrap();
    assert_eq!(container.state, ContainerState::Running);
    container.stamp()
}

async fn events(server: &Server, pod: PodId, kind: &str) -> usize {
    let filter = perennial::store::EventFilter { pod: Some(pod), ..Default::default() };
    let events = server.app.store.event_list(0, &filter, 1000).await.unwrap();
    events.iter().filter(|event| event.line.kind == kind).count()
}

async fn is_shown(server: &Server, pod: PodId, kind: ConditionKind) -> bool {
    server.pod(pod).await.conditions.iter().any(|condition| condition.kind == kind)
}

#[tokio::test]
async fn sim_an_unhealthy_pod_is_restarted_and_told_of_once() {
    let world = World::new(1);
    let server = world.server().await;
    let pod = server.running("web", serving()).await;
    world.engine.write(pod, "/srv/data", "precious").unwrap();
    assert_eq!(server.pod(pod).await.health_state(), Some(HealthState::Starting));
    turn(&world, &server, pod).await;
    assert_eq!(server.pod(pod).await.health_state(), Some(HealthState::Healthy));

    world.engine.set_ailment(pod, Some(Ailment::Unhealthy));
    let before = run(&world, pod).await;
    turns(&world, &server, pod, 2).await;
    assert_eq!(run(&world, pod).await, before, "two failures are not three");
    assert!(!is_shown(&server, pod, ConditionKind::Unhealthy).await);
    turn(&world, &server, pod).await;
    let ill = server.pod(pod).await;
    assert_eq!((ill.health_state(), ill.crash.count), (Some(HealthState::Unhealthy), 1));
    assert_eq!(ill.health.unwrap().problem.as_deref(), Some("the simulated pod is ill"));
    assert!(is_shown(&server, pod, ConditionKind::Unhealthy).await);
    assert_ne!(run(&world, pod).await, before, "it was started again");
    assert_eq!(world.engine.read(pod, "/srv/data").unwrap().unwrap(), b"precious");
    assert_eq!((events(&server, pod, "pod.unhealthy").await, events(&server, pod, "pod.crashed").await), (1, 0));

    // The next run fails as well: tried once more, and nobody is told again.
    let second = run(&world, pod).await;
    turns(&world, &server, pod, 4).await;
    assert_ne!(run(&world, pod).await, second);
    assert_eq!(events(&server, pod, "pod.unhealthy").await, 1);
    assert_eq!(server.pod(pod).await.crash.count, 2);
    assert!(world.engine.violations().is_empty());
}

#[tokio::test]
async fn sim_a_pod_that_answers_again_is_healthy_again() {
    let world = World::new(2);
    let server = world.server().await;
    let pod = server.running("web", serving()).await;
    world.engine.set_ailment(pod, Some(Ailment::Unhealthy));
    turns(&world, &server, pod, 3).await;
    assert!(is_shown(&server, pod, ConditionKind::Unhealthy).await);
    let since = server.pod(pod).await.health.unwrap().since;

    world.engine.set_ailment(pod, None);
    turns(&world, &server, pod, 2).await;
    assert_eq!(server.pod(pod).await.health_state(), Some(HealthState::Unhealthy), "as sure as of the other");
    turn(&world, &server, pod).await;
    let well = server.pod(pod).await;
    assert_eq!(well.health_state(), Some(HealthState::Healthy));
    assert!(well.health.unwrap().since > since);
    assert!(!is_shown(&server, pod, ConditionKind::Unhealthy).await);
    assert_eq!(events(&server, pod, "pod.healthy").await, 1);

    // Another time is another episode.
    world.engine.set_ailment(pod, Some(Ailment::Unhealthy));
    turns(&world, &server, pod, 3).await;
    assert_eq!(events(&server, pod, "pod.unhealthy").await, 2);
}

#[tokio::test]
async fn sim_a_pod_that_no_restart_helps_is_left_as_it_is() {
    let world = World::new(3);
    let server = world.server().await;
    let pod = server.running("web", serving()).await;
    world.engine.set_ailment(pod, Some(Ailment::Unhealthy));
    // Longer than it takes until crashes are forgotten, many times.
    turns(&world, &server, pod, 100).await;
    let left = server.pod(pod).await;
    assert_eq!((left.crash.count, left.phase), (RESTARTS_MAX, Phase::Running));
    assert_eq!(left.health.unwrap().verdict, Verdict::GivenUp);
    assert!(is_shown(&server, pod, ConditionKind::Unhealthy).await);
    assert_eq!(events(&server, pod, "pod.unhealthy").await, 1);
    let last = run(&world, pod).await;
    turns(&world, &server, pod, 50).await;
    assert_eq!(run(&world, pod).await, last, "it is not restarted any more");

    // That nobody reaches it for a while makes it neither well nor stable.
    world.engine.set_ailment(pod, Some(Ailment::OutOfReach));
    turns(&world, &server, pod, 50).await;
    let left = server.pod(pod).await;
    assert_eq!((left.health.unwrap().verdict, left.crash.count), (Verdict::GivenUp, RESTARTS_MAX));

    // It gets well by itself, which is trusted after a while only.
    world.engine.set_ailment(pod, None);
    turns(&world, &server, pod, 3).await;
    let well = server.pod(pod).await;
    assert_eq!((well.health_state(), well.crash.count), (Some(HealthState::Healthy), RESTARTS_MAX));
    turns(&world, &server, pod, 30).await;
    assert_eq!(server.pod(pod).await.crash.count, 0, "forgotten after a while");
}

#[tokio::test]
async fn sim_who_restarts_a_pod_that_was_left_as_it_is_has_it_tried_again() {
    let world = World::new(17);
    let server = world.server().await;
    let pod = server.running("web", serving()).await;
    world.engine.set_ailment(pod, Some(Ailment::Unhealthy));
    turns(&world, &server, pod, 100).await;
    assert_eq!(server.pod(pod).await.health.unwrap().verdict, Verdict::GivenUp);
    server.succeed(server.restart(pod).await).await;
    turns(&world, &server, pod, 4).await;
    let tried = server.pod(pod).await;
    assert_eq!((tried.health.unwrap().verdict, tried.crash.count), (Verdict::Unhealthy, 1));
}

#[tokio::test]
async fn sim_who_does_not_run_or_is_worked_on_is_not_asked() {
    let world = World::new(4);
    let server = world.server().await;
    let pod = server.running("web", serving()).await;
    turn(&world, &server, pod).await;
    let asked = world.engine.probed(pod);
    assert!(asked > 0);

    // Frozen by somebody: no question is put, and nothing is counted.
    world.clock.advance(SignedDuration::from_secs(INTERVAL.into()));
    let due = server.reconciler.health_due();
    assert_eq!(due, [pod]);
    let id = run(&world, pod).await.container;
    world.engine.container_freeze(&id).await.unwrap();
    assert!(!server.reconciler.health_ask(pod).await);
    assert_eq!(world.engine.probed(pod), asked);
    world.engine.container_unfreeze(&id).await.unwrap();

    // An operation is open.
    world.clock.advance(SignedDuration::from_secs(INTERVAL.into()));
    let snapshot = server.snapshot(pod).await.unwrap();
    for due in server.reconciler.health_due() {
        server.reconciler.health_ask(due).await;
    }
    assert_eq!(world.engine.probed(pod), asked);
    server.succeed(Ok(snapshot)).await;

    for stops in [false, true] {
        let outcome = if stops { server.stop(pod).await } else { server.pause(pod).await };
        server.succeed(outcome).await;
        turns(&world, &server, pod, 3).await;
        assert_eq!(world.engine.probed(pod), asked);
        assert_eq!(server.pod(pod).await.health_state(), Some(HealthState::Unknown));
    }
    server.succeed(server.start(pod).await).await;
    turn(&world, &server, pod).await;
    assert_eq!(server.pod(pod).await.health_state(), Some(HealthState::Healthy));
}

#[tokio::test]
async fn sim_a_server_that_was_started_again_goes_on_asking() {
    let world = World::new(5);
    let server = world.server().await;
    let pod = server.running("web", serving()).await;
    world.engine.set_ailment(pod, Some(Ailment::Unhealthy));
    turns(&world, &server, pod, 3).await;
    assert_eq!(events(&server, pod, "pod.unhealthy").await, 1);
    drop(server);

    let server = world.server().await;
    assert_eq!(server.pod(pod).await.health_state(), Some(HealthState::Unhealthy));
    turns(&world, &server, pod, 4).await;
    assert_eq!(server.pod(pod).await.crash.count, 2, "the new one found it out again");
    assert_eq!(events(&server, pod, "pod.unhealthy").await, 1, "and told nobody twice");
}

#[tokio::test]
async fn sim_a_run_that_was_ended_for_its_health_is_no_crash_when_the_server_dies_then() {
    use crate::world::taps::{Blow, Striker};
    let world = World::new(6);
    let server = world.server().await;
    let pod = server.running("web", serving()).await;
    drop(server);
    world.engine.set_ailment(pod, Some(Ailment::Unhealthy));
    let tap = std::sync::Arc::new(Striker::at_site(Blow::KillAfter, "engine.container_stop"));
    let dying = world.server_with(std::sync::Arc::clone(&tap) as _).await;
    tokio::select! {
        () = turns(&world, &dying, pod, 3) => panic!("it did not die"),
        () = tap.death() => {}
    }
    drop(dying);

    let server = world.server().await;
    server.settle(pod).await;
    let again = server.pod(pod).await;
    assert_eq!((again.phase, again.crash.count), (Phase::Running, 1));
    assert_eq!(events(&server, pod, "pod.crashed").await, 0);
    assert!(world.engine.violations().is_empty());
}

#[tokio::test]
async fn sim_a_pod_that_says_nothing_holds_up_no_other() {
    let world = World::new(7);
    let server = world.server().await;
    let silent = server.running("silent", serving()).await;
    let other = server.running("other", serving()).await;
    world.engine.set_ailment(silent, Some(Ailment::Silent));
    assert_eq!(server.reconciler.health_due().len(), 2);
    let meanwhile = async {
        server.reconciler.health_ask(other).await;
        assert_eq!(server.pod(other).await.health_state(), Some(HealthState::Healthy));
        // Nor is the pod itself kept from what its owner wants.
        server.succeed(server.pause(silent).await).await;
        world.clock.advance(SignedDuration::from_secs(INTERVAL.into()));
    };
    let (news, ()) = tokio::join!(server.reconciler.health_ask(silent), meanwhile);
    assert!(!news);
    assert_eq!(server.pod(silent).await.phase, Phase::Paused);
}

#[tokio::test]
async fn sim_what_cannot_be_asked_is_said_and_is_no_failure() {
    let world = World::new(8);
    let server = world.server().await;
    let pod = server.running("web", serving()).await;
    world.engine.set_ailment(pod, Some(Ailment::OutOfReach));
    let before = run(&world, pod).await;
    turns(&world, &server, pod, 10).await;
    assert_eq!(run(&world, pod).await, before);
    assert!(is_shown(&server, pod, ConditionKind::HealthUnknown).await);
    assert_eq!(server.pod(pod).await.health_state(), Some(HealthState::Unknown));
    // An engine that does not answer says nothing about the pod either.
    world.engine.set_ailment(pod, None);
    turn(&world, &server, pod).await;
    assert!(!is_shown(&server, pod, ConditionKind::HealthUnknown).await);
    world.engine.node_vanishes();
    for _ in 0..10 {
        world.clock.advance(SignedDuration::from_secs(INTERVAL.into()));
        for due in server.reconciler.health_due() {
            assert!(!server.reconciler.health_ask(due).await);
        }
    }
    world.engine.node_returns();
    assert_eq!(server.pod(pod).await.health_state(), Some(HealthState::Healthy));
    assert_eq!(run(&world, pod).await, before);
}

#[tokio::test]
async fn sim_a_pod_that_another_server_works_on_is_not_asked_and_nobody_waits_for_who_asks() {
    let mut world = World::new(9);
    let server = world.server().await;
    let pod = server.running("web", serving()).await;
    world.holder = "another".to_owned();
    let another = world.server().await;
    another.work(pod).await;
    let asked = world.engine.probed(pod);
    assert_eq!(another.reconciler.health_due(), [pod]);
    another.reconciler.health_ask(pod).await;
    assert_eq!(world.engine.probed(pod), asked, "the first one has its lease");
    assert_eq!(server.reconciler.health_due(), [pod]);
    server.reconciler.health_ask(pod).await;
    assert_eq!(world.engine.probed(pod), asked + 1);
    // What is asked again and again stays free for who has something to do.
    turns(&world, &server, pod, 6).await;
    let until = world.clock_now() + SignedDuration::from_mins(1);
    let taken = server.app.store.lease_acquire(pod, "a third", world.clock_now(), until).await.unwrap().unwrap();
    world.engine.set_ailment(pod, Some(Ailment::Unhealthy));
    let asked = world.engine.probed(pod);
    turn(&world, &server, pod).await;
    assert_eq!(world.engine.probed(pod), asked);
    server.app.store.lease_release(&taken).await.unwrap();
    turns(&world, &server, pod, 3).await;
    assert!(is_shown(&server, pod, ConditionKind::Unhealthy).await);
}

/// Of two servers one reaches the pod: what it says stands.
#[tokio::test]
async fn sim_a_server_that_does_not_reach_a_pod_leaves_what_another_found() {
    let mut world = World::new(12);
    let server = world.server().await;
    let pod = server.running("web", serving()).await;
    turn(&world, &server, pod).await;
    let version = server.pod(pod).await.version;
    world.holder = "another".to_owned();
    let another = world.server().await;
    world.clock.advance(SignedDuration::from_mins(2));
    another.work(pod).await;
    world.engine.set_ailment(pod, Some(Ailment::OutOfReach));
    turns(&world, &another, pod, 3).await;
    assert_eq!(server.pod(pod).await.health_state(), Some(HealthState::Healthy));
    assert_eq!(server.pod(pod).await.version, version, "nothing is written");
}

/// A bad answer of a pod that something was done with meanwhile does not count; one of a pod that was left alone does.
#[tokio::test]
async fn sim_a_bad_answer_counts_only_where_nothing_was_done_meanwhile() {
    for disturbed in [false, true] {
        let world = World::new(13);
        let server = world.server().await;
        let check = HealthCheck { retries: 1, ..serving().health.unwrap() };
        let pod = server.running("web", PodSpec { health: Some(check), ..serving() }).await;
        turn(&world, &server, pod).await;
        world.engine.set_ailment(pod, Some(Ailment::Silent));
        world.clock.advance(SignedDuration::from_secs(INTERVAL.into()));
        assert_eq!(server.reconciler.health_due(), [pod]);
        let meanwhile = async {
            while world.engine.probed(pod) < 2 {
                tokio::task::yield_now().await;
            }
            if disturbed {
                server.work(pod).await;
            }
            world.clock.advance(SignedDuration::from_secs(INTERVAL.into()));
        };
        let (news, ()) = tokio::join!(server.reconciler.health_ask(pod), meanwhile);
        assert_eq!(news, !disturbed);
    }
}

/// What was found out long ago ends no run: perhaps nobody was there to act, and it is well by now.
#[tokio::test]
async fn sim_a_finding_that_nobody_acted_on_is_found_again_first() {
    let world = World::new(14);
    let server = world.server().await;
    let pod = server.running("web", serving()).await;
    world.engine.set_ailment(pod, Some(Ailment::Unhealthy));
    let before = run(&world, pod).await;
    for _ in 0..3 {
        world.clock.advance(SignedDuration::from_secs(INTERVAL.into()));
        for due in server.reconciler.health_due() {
            server.reconciler.health_ask(due).await;
        }
    }
    assert_eq!(server.pod(pod).await.health.unwrap().verdict, Verdict::Unhealthy);
    drop(server);
    world.engine.set_ailment(pod, None);
    world.clock.advance(SignedDuration::from_hours(2));
    let server = world.server().await;
    turns(&world, &server, pod, 3).await;
    assert_eq!(run(&world, pod).await, before, "it got well by itself");
    assert_eq!(server.pod(pod).await.health_state(), Some(HealthState::Healthy));

    world.engine.set_ailment(pod, Some(Ailment::Unhealthy));
    turns(&world, &server, pod, 3).await;
    server.settle(pod).await;
    assert_ne!(run(&world, pod).await, before);
}

/// Pods that say nothing keep places, and no others: neither of their tenant more than its share, nor of runs that ended.
#[tokio::test]
async fn sim_places_of_those_who_are_asked_are_few_and_come_back() {
    let world = World::new(15);
    let server = world.server().await;
    let mut pods = Vec::new();
    for n in 0..18 {
        pods.push(server.running(&format!("web{n}"), serving()).await);
    }
    world.clock.advance(SignedDuration::from_secs(INTERVAL.into()));
    let first = server.reconciler.health_due();
    assert_eq!(first.len(), 16, "of one tenant");
    assert_eq!(server.reconciler.health_due(), []);
    // A run that ends while it is asked keeps its place until the question has ended.
    server.succeed(server.pause(first[0]).await).await;
    assert_eq!(server.reconciler.health_due(), []);
    for pod in &first {
        server.reconciler.health_ask(*pod).await;
    }
    let rest = server.reconciler.health_due();
    assert_eq!(rest.len(), 2);
    assert!(rest.iter().all(|pod| !first.contains(pod)));
}

#[tokio::test]
async fn sim_no_more_than_sixty_four_are_asked_at_once_however_many_tenants_there_are() {
    let world = World::new(18);
    let server = world.server().await;
    let mut pods = 0;
    for tenant in 0..5 {
        for name in 0..14 {
            let tenant = TenantId::parse(&format!("tenant-{tenant}")).unwrap();
            let made = server.create_of(Some(tenant), &format!("web{name}"), serving()).await.unwrap();
            server.settle(made.pod.id).await;
            pods += 1;
        }
    }
    world.clock.advance(SignedDuration::from_secs(INTERVAL.into()));
    let first = server.reconciler.health_due();
    assert_eq!((first.len(), server.reconciler.health_due()), (64, Vec::new()));
    server.reconciler.health_ask(first[0]).await;
    let next = server.reconciler.health_due();
    assert_eq!(next.len(), 1, "one place, one pod");
    for pod in &first[1..] {
        server.reconciler.health_ask(*pod).await;
    }
    assert_eq!(server.reconciler.health_due().len(), pods - 65);
}

#[tokio::test]
async fn sim_a_clock_that_is_set_back_keeps_no_pod_from_being_asked() {
    let world = World::new(16);
    let server = world.server().await;
    let pod = server.running("web", serving()).await;
    turn(&world, &server, pod).await;
    let before = world.clock_now();
    world.clock.set(before - SignedDuration::from_hours(24 * 30));
    assert_eq!(server.reconciler.health_due(), [pod]);
    server.reconciler.health_ask(pod).await;
    assert_eq!(server.reconciler.health_due(), []);
}

#[tokio::test]
async fn sim_another_health_check_needs_no_restart() {
    let world = World::new(10);
    let server = world.server().await;
    let pod = server.running("web", serving()).await;
    world.engine.set_ailment(pod, Some(Ailment::Unhealthy));
    turns(&world, &server, pod, 3).await;
    let before = run(&world, pod).await;
    let caller = perennial::service::Caller::admin();
    let none = |spec: &PodSpec| Ok(PodSpec { health: None, ..spec.clone() });
    server.app.patch(&caller, pod, None, none).await.unwrap();
    turns(&world, &server, pod, 3).await;
    let changed = server.pod(pod).await;
    assert_eq!((changed.health_state(), changed.conditions), (None, Vec::new()));
    assert_eq!(run(&world, pod).await, before);
}

#[tokio::test]
async fn sim_a_pod_killed_for_lack_of_memory_says_so() {
    let world = World::new(11);
    let server = world.server().await;
    let pod = server.running("dev", small_spec(Backend::Overlay)).await;
    for _ in 0..3 {
        world.engine.crash(pod, 137, Cause::OutOfMemory).unwrap();
        server.settle(pod).await;
    }
    let crashed = server.pod(pod).await;
    assert!(crashed.crash.oom);
    let looping = crashed.conditions.iter().find(|c| c.kind == ConditionKind::CrashLoop).unwrap();
    assert_eq!(looping.reason, "out-of-memory");
    let filter = perennial::store::EventFilter { pod: Some(pod), ..Default::default() };
    let events = server.app.store.event_list(0, &filter, 1000).await.unwrap();
    let told = |message: &str| message.contains("for lack of memory");
    assert_eq!(events.iter().filter(|e| e.line.kind == "pod.crashed" && told(&e.line.message)).count(), 3);
}
