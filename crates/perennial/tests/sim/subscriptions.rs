//! Subscriptions by the clock: sixty days in no time, with deaths, jumps and two servers.

use std::sync::Arc;

use crate::world::taps::{Blow, Striker};
use crate::world::{IMAGE, Server, World, files};
use jiff::SignedDuration;
use perennial::catalogue::read_json;
use perennial::service::{Caller, Subscribe, Subscribed, Until};
use perennial::store::{EventFilter, Page};
use perennial_core::Error;
use perennial_core::fault::NoTap;
use perennial_core::id::{PodId, SubscriptionId};
use perennial_core::planned::PlanPath;
use perennial_core::pod::{Desired, Phase};
use perennial_core::service::PlanName;
use perennial_core::snapshot::{SnapshotKind, SnapshotState};
use perennial_core::spec::PodName;
use perennial_core::subscription::{PodGone, SubscriptionState};

const DAY: SignedDuration = SignedDuration::from_hours(24);

/// A service with two plans of the same data and one of other data.
async fn offered(server: &Server) {
    let plan = |name: &str, memory: &str, disk: &str, path: &str| {
        format!(
            r#"{{"name": "{name}", "image": "{IMAGE}", "profile": "declared", "resources": {{"memory": "{memory}"}},
            "volumes": [{{"name": "data", "mountPath": "{path}", "size": "{disk}"}}],
            "env": {{"PLAN": "{name}", "KEY": {{"generate": {{"length": 20}}}}}}}}"#
        )
    };
    let bare = plan("bare", "256Mi", "128Mi", "/data").replace(r#", "KEY": {"generate": {"length": 20}}"#, "");
    let plans = [
        bare,
        plan("basic", "256Mi", "64Mi", "/data"),
        plan("pro", "512Mi", "128Mi", "/data"),
        plan("odd", "1Gi", "1Gi", "/o"),
    ];
    let service = read_json(format!(r#"{{"name": "notes", "plans": [{}]}}"#, plans.join(",")).as_bytes()).unwrap();
    server.app.service_put(&Caller::admin(), &service, None).await.unwrap();
}

fn wanted(world: &World, days: Option<i32>) -> Subscribe {
    Subscribe {
        name: PodName::parse("wf").unwrap(),
        plan: PlanPath::parse("notes/basic").unwrap(),
        tenant: None,
        expires_at: days.map(|days| world.clock_now() + DAY * days),
    }
}

/// Lets what was begun with the pod end.
async fn ended(server: &Server, done: Result<Subscribed, Error>) -> Subscribed {
    let done = done.unwrap();
    server.settle(done.subscription.pod).await;
    seen(server, done.subscription.id).await
}

async fn seen(server: &Server, id: SubscriptionId) -> Subscribed {
    server.app.subscription(&Caller::admin(), id).await.unwrap()
}

/// A running pod of a subscription that lasts so many days, with a file of its owner's.
pub async fn subscribed(world: &World, server: &Server, days: Option<i32>) -> (SubscriptionId, PodId) {
    offered(server).await;
    let made = ended(server, server.app.subscribe(&Caller::admin(), &wanted(world, days)).await).await;
    let pod = made.subscription.pod;
    assert_eq!(server.pod(pod).await.phase, Phase::Running);
    world.engine.write(pod, "/data/mine", "what matters").unwrap();
    (made.subscription.id, pod)
}

/// A day passes: the housekeeper looks around before and after the reconciler.
pub async fn a_day(world: &World, server: &Server, pod: PodId) {
    world.clock.advance(DAY);
    for _ in 0..2 {
        server.housekeeper().run_due().await;
        server.settle(pod).await;
    }
}

async fn trail(server: &Server) -> Vec<String> {
    let events = server.app.store.event_list(0, &EventFilter::default(), 10_000).await.unwrap();
    let kinds = events.into_iter().map(|event| event.line.kind).filter(|kind| kind.starts_with("subscription."));
    kinds.map(|kind| kind.trim_start_matches("subscription.").to_owned()).collect()
}

async fn renewed(server: &Server, id: SubscriptionId, gone: PodGone) -> Result<Subscribed, Error> {
    server.app.subscription_renew(&Caller::admin(), id, Until::Now(None), gone).await
}

#[tokio::test]
async fn sim_a_subscription_lapses_and_is_renewed_on_the_last_day_with_everything_there() {
    let world = World::new(501);
    let server = world.server().await;
    let (id, pod) = subscribed(&world, &server, Some(30)).await;
    for _ in 0..29 {
        a_day(&world, &server, pod).await;
    }
    assert_eq!(server.pod(pod).await.phase, Phase::Running);
    let held = files(&world, pod);
    for _ in 0..2 {
        a_day(&world, &server, pod).await;
    }
    let over = seen(&server, id).await;
    assert_eq!(over.subscription.standing.state, SubscriptionState::Expired);
    assert_eq!(over.pod.unwrap().phase, Phase::Paused, "at once");
    assert_eq!(files(&world, pod), held, "on the host as it was");
    // Nobody starts it meanwhile.
    let refused = server.start(pod).await.unwrap_err();
    assert!(matches!(refused, Error::Conflict { code: "subscription-ended", .. }), "{refused:?}");
    for _ in 0..57 {
        a_day(&world, &server, pod).await;
    }
    assert_eq!(server.pod(pod).await.phase, Phase::Paused);
    let back = ended(&server, renewed(&server, id, PodGone::Refuse).await).await;
    assert_eq!(back.subscription.standing.state, SubscriptionState::Active);
    assert_eq!((server.pod(pod).await.phase, files(&world, pod)), (Phase::Running, held));
    let announced = "deletion-announced";
    assert_eq!(trail(&server).await, ["created", "expired", announced, announced, "renewed"]);
}

#[tokio::test]
async fn sim_sixty_days_after_its_end_the_pod_goes_the_way_of_delete() {
    let world = World::new(502);
    let server = world.server().await;
    let (id, pod) = subscribed(&world, &server, None).await;
    let held = files(&world, pod);
    ended(&server, server.app.subscription_cancel(&Caller::admin(), id).await).await;
    for _ in 0..60 {
        assert_eq!(server.pod(pod).await.desired, Desired::Paused);
        a_day(&world, &server, pod).await;
    }
    let deleted = server.pod(pod).await;
    assert_eq!((deleted.desired, deleted.phase), (Desired::Deleted, Phase::Deleted));
    let finals = server.snapshots(pod).await.into_iter().filter(|row| row.kind == SnapshotKind::Final);
    assert!(finals.into_iter().any(|row| row.state == SnapshotState::Verified));
    let refused = server.undelete(pod).await.unwrap_err();
    assert!(matches!(refused, Error::Conflict { code: "subscription-ended", .. }), "only a renewal: {refused:?}");
    // In its undelete window it comes back, running as before.
    ended(&server, renewed(&server, id, PodGone::Refuse).await).await;
    assert_eq!((server.pod(pod).await.phase, files(&world, pod)), (Phase::Running, held));
    // And the next time nobody comes.
    ended(&server, server.app.subscription_cancel(&Caller::admin(), id).await).await;
    for _ in 0..69 {
        if server.app.store.pod_fetch(pod).await.unwrap().is_some() {
            a_day(&world, &server, pod).await;
        }
    }
    let gone = seen(&server, id).await;
    assert!(gone.pod.is_none() && gone.subscription.standing.end.unwrap().purged);
    assert_eq!(world.snapshots_in_repository("snapshot:"), 0);
    let refused = renewed(&server, id, PodGone::Refuse).await.unwrap_err();
    assert!(matches!(refused, Error::Conflict { code: "subscription-pod-gone", .. }), "law 2: {refused:?}");
    let anew = ended(&server, renewed(&server, id, PodGone::MakeNew).await).await;
    assert_ne!(anew.subscription.pod, pod);
    assert_eq!(anew.pod.unwrap().phase, Phase::Running);
    let round = ["cancelled", "deletion-announced", "deletion-announced", "deletion-announced", "pod-deleted"];
    let told: Vec<&str> = ["created"].into_iter().chain(round).chain(["renewed"]).chain(round).collect();
    assert_eq!(trail(&server).await, [told, vec!["pod-gone", "renewed"]].concat());
}

#[tokio::test]
async fn sim_what_rested_at_the_end_is_left_at_rest_by_a_renewal() {
    let world = World::new(503);
    let server = world.server().await;
    let (id, pod) = subscribed(&world, &server, None).await;
    server.succeed(server.stop(pod).await).await;
    let cancelled = server.app.subscription_cancel(&Caller::admin(), id).await.unwrap();
    assert_eq!(cancelled.operation, None);
    let back = renewed(&server, id, PodGone::Refuse).await.unwrap();
    assert_eq!((back.operation, server.pod(pod).await.phase), (None, Phase::Stopped));
    server.succeed(server.start(pod).await).await;
}

#[tokio::test]
async fn sim_a_subscribed_pod_is_neither_archived_nor_deleted_nor_purged_while_it_is_paid_for() {
    let world = World::new(504);
    let server = world.server().await;
    let (id, pod) = subscribed(&world, &server, None).await;
    for refused in [
        server.archive(pod).await,
        server.delete(pod).await,
        server.app.purge(perennial::service::Request::new(&Caller::admin()), pod, &crate::world::confirmed("wf")).await,
    ] {
        let refused = refused.unwrap_err();
        assert!(matches!(refused, Error::Conflict { code: "pod-subscribed", .. }), "{refused:?}");
    }
    ended(&server, server.app.subscription_cancel(&Caller::admin(), id).await).await;
    // What is theirs they may throw away themselves.
    server.succeed(server.delete(pod).await).await;
    assert!(matches!(renewed(&server, id, PodGone::Refuse).await, Ok(back) if back.operation.is_some()));
}

#[tokio::test]
async fn sim_a_change_of_plan_keeps_the_data_the_secrets_and_what_was_added() {
    let world = World::new(505);
    let server = world.server().await;
    let (id, pod) = subscribed(&world, &server, None).await;
    let (held, before) = (files(&world, pod), server.pod(pod).await);
    let admin = Caller::admin();
    let change = async |plan: &str| {
        let plan = PlanName::parse(plan).unwrap();
        server.app.subscription_change_plan(&admin, id, &plan).await
    };
    ended(&server, change("pro").await).await;
    let after = server.pod(pod).await;
    assert_eq!((after.phase, files(&world, pod)), (Phase::Running, held));
    assert_eq!(after.spec.resources.memory, Some(512 << 20));
    assert_eq!((after.spec.env["PLAN"].as_str(), &after.spec.secrets), ("pro", &before.spec.secrets));
    assert_eq!(after.spec.plan.unwrap().path.to_string(), "notes/pro");
    assert_eq!(change("pro").await.unwrap().operation, None, "twice is once");
    let refused = change("odd").await.unwrap_err();
    assert!(matches!(refused, Error::Conflict { code: "plan-of-other-data", .. }), "{refused:?}");
    assert!(matches!(change("nosuch").await, Err(Error::NotFound { .. })));
    // What was encrypted with a secret can be read by nothing else.
    ended(&server, change("bare").await).await;
    assert_eq!(server.pod(pod).await.spec.secrets, before.spec.secrets);
    // Smaller is fine as long as everything fits.
    ended(&server, change("basic").await).await;
    ended(&server, change("pro").await).await;
    world.engine.write(pod, "/data/large", vec![7; 80 << 20]).unwrap();
    let refused = change("basic").await.unwrap_err();
    assert!(matches!(refused, Error::Conflict { code: "plan-too-small", .. }), "{refused:?}");
}

#[tokio::test]
async fn sim_a_reset_of_a_subscribed_pod_is_counted_and_can_be_taken_back() {
    let world = World::new(506);
    let server = world.server().await;
    let (id, pod) = subscribed(&world, &server, None).await;
    let held = files(&world, pod);
    let admin = Caller::admin();
    let request = perennial::service::Request::new(&admin);
    server.succeed(server.app.subscription_reset(request, id, &crate::world::confirmed("wf")).await).await;
    assert_ne!(files(&world, pod), held);
    let resets = server.pod(pod).await.resets;
    assert_eq!((resets.count, resets.last_at.is_some()), (1, true));
    server.succeed(server.restore(pod, resets.kept_in.unwrap()).await).await;
    assert_eq!((files(&world, pod), server.pod(pod).await.resets.count), (held.clone(), 1));
    // Of a stopped pod it is counted as well, and what brings it back is named.
    server.succeed(server.stop(pod).await).await;
    server.succeed(server.reset(pod).await).await;
    let resets = server.pod(pod).await.resets;
    assert_eq!(resets.count, 2);
    server.succeed(server.restore(pod, resets.kept_in.unwrap()).await).await;
    server.succeed(server.start(pod).await).await;
    assert_eq!(files(&world, pod), held);
}

/// Whatever is in work on a pod when its subscription ends leads to rest, whoever cancels it and however it fails.
#[tokio::test]
async fn sim_nothing_that_is_cancelled_starts_the_pod_of_an_ended_subscription() {
    for before in ["nothing", "stop", "restart", "snapshot"] {
        let world = World::new(510);
        let server = world.server().await;
        let (id, pod) = subscribed(&world, &server, None).await;
        let admin = Caller::admin();
        let request = perennial::service::Request::new(&admin);
        let first = match before {
            "stop" => Some(server.stop(pod).await.unwrap().operation.id),
            "restart" => Some(server.restart(pod).await.unwrap().operation.id),
            "snapshot" => Some(server.snapshot(pod).await.unwrap().operation.id),
            _ => None,
        };
        let ended = server.app.subscription_cancel(&admin, id).await.unwrap();
        for operation in first.into_iter().chain(ended.operation.map(|operation| operation.id)) {
            // Some have ended already, which is as good.
            let _ = server.app.cancel(request, operation).await;
        }
        server.settle(pod).await;
        let seen = server.pod(pod).await;
        assert!(matches!(seen.desired, Desired::Paused | Desired::Stopped), "{before}: {seen:?}");
        assert_ne!(seen.phase, Phase::Running, "{before}");
    }
}

#[tokio::test]
async fn sim_a_deletion_by_the_clock_is_not_cancelled_by_its_owner() {
    let world = World::new(511);
    let server = world.server().await;
    let (id, pod) = subscribed(&world, &server, None).await;
    ended(&server, server.app.subscription_cancel(&Caller::admin(), id).await).await;
    for _ in 0..59 {
        a_day(&world, &server, pod).await;
    }
    world.clock.advance(DAY);
    server.housekeeper().run_due().await;
    let goal = server.pod(pod).await.goal.expect("it is being deleted");
    let admin = Caller::admin();
    let refused = server.app.cancel(perennial::service::Request::new(&admin), goal.operation).await.unwrap_err();
    assert!(matches!(refused, Error::Conflict { code: "subscription-ended", .. }), "{refused:?}");
}

/// Of a start and an end at the same moment one sees the other.
#[tokio::test]
async fn sim_an_end_and_a_start_at_the_same_moment_leave_the_pod_at_rest() {
    for seed in 0..20 {
        let world = World::new(520 + seed);
        let (one, two) = (world.server().await, world.server().await);
        let (id, pod) = subscribed(&world, &one, None).await;
        one.succeed(one.pause(pod).await).await;
        let admin = Caller::admin();
        let (ended, _) = tokio::join!(one.app.subscription_cancel(&admin, id), two.start(pod));
        ended.unwrap();
        one.settle(pod).await;
        assert_eq!(one.pod(pod).await.phase, Phase::Paused, "seed {seed}");
    }
}

#[tokio::test]
async fn sim_who_throws_a_pod_away_can_subscribe_anew_at_once() {
    let world = World::new(512);
    let server = world.server().await;
    let (id, pod) = subscribed(&world, &server, None).await;
    ended(&server, server.app.subscription_cancel(&Caller::admin(), id).await).await;
    server.succeed(server.delete(pod).await).await;
    let other =
        server.create("wf", crate::world::small_spec(perennial_core::spec::Backend::Overlay)).await.unwrap_err();
    assert!(matches!(other, Error::Conflict { code: "pod-name-taken", .. }), "the name waits for a renewal: {other:?}");
    server.purge(pod).await.unwrap();
    server.settle(pod).await;
    let anew = ended(&server, server.app.subscribe(&Caller::admin(), &wanted(&world, None)).await).await;
    assert_ne!((anew.subscription.id, anew.subscription.pod), (id, pod));
    assert!(seen(&server, id).await.subscription.standing.end.unwrap().purged);
}

/// A year passes in one night, twice, and then the clock is set back.
#[tokio::test]
async fn sim_a_clock_that_jumps_deletes_nothing_without_its_warnings() {
    let world = World::new(507);
    let server = world.server().await;
    let (id, pod) = subscribed(&world, &server, Some(30)).await;
    for _ in 0..2 {
        world.clock.advance(DAY * 365);
        for _ in 0..20 {
            server.housekeeper().run_due().await;
            server.settle(pod).await;
        }
        assert_eq!(server.pod(pod).await.desired, Desired::Paused, "no day was waited for");
    }
    let standing = seen(&server, id).await.subscription.standing;
    let end = standing.end.unwrap();
    assert_eq!((end.warned, end.trash_at), (1, world.clock_now() + DAY * 14));
    world.clock.set(world.clock_now() - DAY * 700);
    server.housekeeper().run_due().await;
    assert_eq!(seen(&server, id).await.subscription.standing, standing, "a clock that goes back undoes nothing");
}

#[tokio::test]
async fn sim_two_servers_do_what_a_subscription_is_due_for_once() {
    let world = World::new(508);
    let (one, two) = (world.server().await, world.server().await);
    let (id, pod) = subscribed(&world, &one, Some(30)).await;
    for _ in 0..98 {
        world.clock.advance(DAY);
        let (mut first, mut second) = (one.housekeeper(), two.housekeeper());
        tokio::join!(first.run_due(), second.run_due());
        if one.app.store.pod_fetch(pod).await.unwrap().is_some() {
            one.settle(pod).await;
        }
    }
    one.housekeeper().run_due().await;
    assert!(seen(&one, id).await.subscription.standing.end.unwrap().purged);
    let announced = "deletion-announced";
    assert_eq!(trail(&one).await, ["created", "expired", announced, announced, announced, "pod-deleted", "pod-gone"]);
}

/// Everything that is asked of a subscription in its life, one after the other; what is done already is done again.
async fn life(world: &World, server: &Server, step: usize) {
    let admin = Caller::admin();
    let all = server.app.subscriptions(&admin, perennial::store::SubscriptionFilter::default(), &Page::first(10)).await;
    let Ok(all) = all else { return };
    let id = all.first().map(|one| one.subscription.id);
    let done = match (step, id) {
        (0, _) => server.app.subscribe(&admin, &wanted(world, None)).await,
        (1 | 4, Some(id)) => server.app.subscription_cancel(&admin, id).await,
        (2, Some(id)) => renewed(server, id, PodGone::Refuse).await,
        (3, Some(id)) => server.app.subscription_change_plan(&admin, id, &PlanName::parse("pro").unwrap()).await,
        (_, Some(id)) => {
            for _ in 0..2 {
                server.housekeeper().run_due().await;
                if let Some(pod) = server.app.store.pod_fetch(all[0].subscription.pod).await.ok().flatten() {
                    server.settle(pod.id).await;
                }
            }
            server.app.subscription(&admin, id).await
        }
        (_, None) => return,
    };
    if let Ok(done) = done {
        server.settle(done.subscription.pod).await;
    }
}

/// Steps of a life; after the fifth, days pass.
const STEPS: usize = 8;

/// At every commit of a whole life the server dies, before it or after it, is refused, or never hears the answer. Asked again, every step
/// leads to where it would have.
#[tokio::test]
async fn sim_sweep_subscriptions_survive_a_death_at_every_commit() {
    let mut swept = 0;
    for blow in [Blow::KillBefore, Blow::KillAfter, Blow::FailBefore, Blow::LoseAnswer] {
        for step in 0..STEPS {
            for at in 0.. {
                let world = World::new(509);
                let calm = world.server().await;
                offered(&calm).await;
                for before in 0..step {
                    pass_days(&world, before);
                    life(&world, &calm, before).await;
                }
                pass_days(&world, step);
                let striker = Arc::new(Striker::new(blow, at));
                let server = world.server_with(Arc::clone(&striker) as _).await;
                tokio::select! {
                    () = life(&world, &server, step) => {}
                    () = striker.death() => {}
                }
                if striker.passed().len() <= at {
                    break;
                }
                swept += 1;
                drop(server);
                world.nobody_reads().await;
                let again = world.server_on(calm.app.store.clone(), Arc::new(NoTap));
                for pod in again.app.store.pod_ids().await.unwrap() {
                    again.settle(pod).await;
                }
                for more in step..STEPS {
                    if more > step {
                        pass_days(&world, more);
                    }
                    life(&world, &again, more).await;
                }
                check_end(&again, &format!("{blow:?} at {at} of step {step}")).await;
            }
        }
    }
    println!("subscriptions: {swept} points swept, violations 0");
    assert!(swept > 100, "{swept}");
}

fn pass_days(world: &World, step: usize) {
    world.clock.advance(match step {
        0..5 => SignedDuration::from_mins(5),
        5 => DAY * 46,
        6 => DAY * 7,
        _ => DAY * 6,
    });
}

/// After all that there is one subscription, cancelled, warned of three times, and its pod is there with what its owner is to find.
async fn check_end(server: &Server, what: &str) {
    let filter = perennial::store::SubscriptionFilter::default();
    let all = server.app.subscriptions(&Caller::admin(), filter, &Page::first(10)).await.unwrap();
    assert_eq!(all.len(), 1, "{what}");
    let standing = &all[0].subscription.standing;
    let end = standing.end.unwrap();
    assert_eq!(
        (standing.state, standing.plan.as_str(), end.warned),
        (SubscriptionState::Cancelled, "pro", 3),
        "{what}"
    );
    let pod = all[0].pod.as_ref().unwrap_or_else(|| panic!("{what}: the pod is gone"));
    assert_eq!((pod.desired, pod.phase), (Desired::Paused, Phase::Paused), "{what}");
    assert_eq!(server.app.store.pod_ids().await.unwrap().len(), 1, "{what}: no second pod");
    let announced = trail(server).await.into_iter().filter(|kind| kind == "deletion-announced").count();
    assert_eq!(announced, 3, "{what}: each warning once");
}

#[test]
fn sim_every_step_of_a_subscription_on_postgresql() {
    let all: &[fn()] = &[
        sim_a_subscription_lapses_and_is_renewed_on_the_last_day_with_everything_there,
        sim_sixty_days_after_its_end_the_pod_goes_the_way_of_delete,
        sim_what_rested_at_the_end_is_left_at_rest_by_a_renewal,
        sim_a_subscribed_pod_is_neither_archived_nor_deleted_nor_purged_while_it_is_paid_for,
        sim_a_change_of_plan_keeps_the_data_the_secrets_and_what_was_added,
        sim_a_reset_of_a_subscribed_pod_is_counted_and_can_be_taken_back,
        sim_nothing_that_is_cancelled_starts_the_pod_of_an_ended_subscription,
        sim_a_deletion_by_the_clock_is_not_cancelled_by_its_owner,
        sim_an_end_and_a_start_at_the_same_moment_leave_the_pod_at_rest,
        sim_who_throws_a_pod_away_can_subscribe_anew_at_once,
        sim_a_clock_that_jumps_deletes_nothing_without_its_warnings,
        sim_two_servers_do_what_a_subscription_is_due_for_once,
    ];
    crate::postgres::on_postgresql(include_str!("subscriptions.rs"), all);
}
