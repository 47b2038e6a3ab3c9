//! The database against the engine, as administrators see it.

use std::sync::Arc;

use crate::world::taps::{Blow, Striker};
use crate::world::{Server, World, small_spec};
use jiff::SignedDuration;
use perennial::service::{Caller, CleanedUp, Cleanup};
use perennial::store::{EventFilter, Store};
use perennial_core::Error;
use perennial_core::cleanup::Step;
use perennial_core::engine::{Engine, Owned};
use perennial_core::fault::NoTap;
use perennial_core::id::PodId;
use perennial_core::orphans::pod_of;
use perennial_core::spec::Backend;
use perennial_core::volume::SetState;
use perennial_drivers::sim::Cause;

#[tokio::test]
async fn sim_the_debug_view_tells_what_differs_and_touches_nothing() {
    let world = World::new(711);
    let server = world.server().await;
    let pod = server.running("dev", small_spec(Backend::Overlay)).await;
    world.engine.write(pod, "/srv/mine", "what matters").unwrap();
    let admin = Caller::admin();
    let found = server.app.admin_debug(&admin).await.unwrap();
    assert_eq!((found.pods.len(), &found.comparison.pods[0].differences), (1, &Vec::new()));
    assert_eq!(found.usage, [None], "nothing was captured yet");
    server.succeed(server.snapshot(pod).await).await;
    let found = server.app.admin_debug(&admin).await.unwrap();
    let usage = found.usage[0].unwrap();
    assert_eq!(usage.at, world.clock_now());
    assert!(usage.bytes >= "what matters".len() as u64, "{usage:?}");
    let disk = found.file_systems.iter().find(|disk| disk.uses.contains(&"pods")).unwrap();
    assert!(disk.space.as_ref().is_ok_and(|space| space.free <= space.total && space.total > 0), "{disk:?}");
    assert_eq!(found.comparison.pods[0].sets.len(), 1);
    assert_eq!(found.comparison.pods[0].sets[0].recorded, Some(SetState::Complete));
    assert!(found.comparison.orphans.is_empty());
    world.engine.kill_container_outside(pod).unwrap();
    let found = server.app.admin_debug(&admin).await.unwrap();
    let told = found.comparison.pods[0].differences.join("; ");
    assert!(told.contains("is recorded, and not on the engine"), "{told}");
    server.settle(pod).await;
    assert_eq!(server.app.admin_debug(&admin).await.unwrap().comparison.pods[0].differences, Vec::<String>::new());
}

/// The database was lost: everything that lives looks like nobody's. It is told, with a suspicion, and nothing else is done.
#[tokio::test]
async fn p17_sim_after_the_loss_of_the_database_what_lives_is_told_as_nobodys_and_left_alone() {
    let world = World::new(712);
    let server = world.server().await;
    let mut pods = Vec::new();
    for name in ["one", "two", "three"] {
        let pod = server.running(name, small_spec(Backend::Overlay)).await;
        world.engine.write(pod, "/srv/mine", name).unwrap();
        pods.push(pod);
    }
    let other = Lost::server(&world).await;
    let found = other.app.admin_debug(&Caller::admin()).await.unwrap();
    let sets = found.comparison.orphans.iter().filter(|orphan| matches!(orphan.what, Owned::Set { .. })).count();
    assert_eq!((sets, found.comparison.orphans.len()), (3, 6));
    assert!(found.comparison.suspicion.is_some());
    other.housekeeper().run_due().await;
    for (pod, name) in pods.iter().zip(["one", "two", "three"]) {
        assert_eq!(world.engine.read(*pod, "/srv/mine").unwrap().unwrap(), name.as_bytes());
    }
}

/// An engine that does not answer shows nothing, which is not the same as nothing being there.
#[tokio::test]
async fn p17_sim_an_engine_that_does_not_answer_makes_nothing_look_lost() {
    let world = World::new(713);
    let server = world.server().await;
    server.running("dev", small_spec(Backend::Overlay)).await;
    let striker = Arc::new(Striker::at_site(Blow::FailBefore, "engine.list_owned"));
    let broken = world.server_with(striker).await;
    let refused = broken.app.admin_debug(&Caller::admin()).await.unwrap_err();
    assert!(matches!(refused, Error::Unavailable { .. }), "{refused:?}");
}

/// Pods that another database made, and a server that knows none of them. The first of the pods was paused.
struct Lost {
    world: World,
    other: Server,
    pods: Vec<PodId>,
}

impl Lost {
    async fn new(seed: u64, pods: usize) -> Self {
        let world = World::new(seed);
        let server = world.server().await;
        let mut made = Vec::new();
        for n in 0..pods {
            let pod = server.running(&format!("pod{n}"), small_spec(Backend::Overlay)).await;
            world.engine.write(pod, "/srv/mine", "the only copy").unwrap();
            made.push(pod);
        }
        server.succeed(server.pause(made[0]).await).await;
        drop(server);
        let other = Self::server(&world).await;
        Self { world, other, pods: made }
    }

    /// A server with a database of its own.
    async fn server(world: &World) -> Server {
        let store = Store::open("sqlite::memory:", Arc::new(NoTap)).await;
        world.server_on(store.unwrap(), Arc::new(NoTap))
    }

    async fn asked(&self, pods: &[PodId], plan: Option<&str>) -> Result<CleanedUp, Error> {
        let asked = Cleanup { pods: pods.to_vec(), plan: plan.map(str::to_owned) };
        self.other.app.cleanup_orphaned(&Caller::admin(), &asked).await
    }

    /// What is done about the first pod, once this is asked for and carried out.
    async fn cleaned(&self) -> (Step, Result<(), String>) {
        let told = self.asked(&self.pods[..1], None).await.unwrap();
        assert!(told.results.is_none());
        let done = self.asked(&self.pods[..1], Some(&told.hash)).await.unwrap();
        (done.plan.items[0].step, done.results.unwrap().remove(0))
    }

    async fn days(&self, days: u32) {
        for _ in 0..days {
            self.world.clock.advance(SignedDuration::from_hours(24));
            self.other.housekeeper().run_due().await;
        }
    }

    /// What the trail says of orphans.
    async fn told(&self) -> Vec<String> {
        let events = self.other.app.events(&Caller::admin(), 0, &EventFilter::default(), 100).await.unwrap();
        events.into_iter().map(|event| event.line.kind).filter(|kind| kind.starts_with("orphan")).collect()
    }

    async fn is_there(&self, pod: PodId) -> bool {
        self.world.engine.list_owned().await.unwrap().iter().any(|owned| pod_of(owned) == pod)
    }
}

#[tokio::test]
async fn p18_sim_an_orphan_goes_only_after_a_day_a_consent_a_week_and_a_second_consent() {
    let lost = Lost::new(714, 1).await;
    lost.other.housekeeper().run_due().await;
    assert_eq!(lost.cleaned().await, (Step::Keep, Ok(())));
    lost.days(1).await;
    let first = lost.asked(&[], None).await.unwrap();
    assert_eq!(first.plan.items[0].step, Step::Quarantine);
    let refused = lost.asked(&[], Some("another plan")).await.unwrap_err();
    assert!(matches!(refused, Error::Conflict { code: "plan-changed", .. }), "{refused:?}");
    assert_eq!(lost.cleaned().await, (Step::Quarantine, Ok(())));
    // What was told then is done already.
    let refused = lost.asked(&[], Some(&first.hash)).await.unwrap_err();
    assert!(matches!(refused, Error::Conflict { code: "plan-changed", .. }), "{refused:?}");
    lost.days(6).await;
    assert_eq!(lost.cleaned().await, (Step::Keep, Ok(())));
    lost.days(30).await;
    assert!(lost.is_there(lost.pods[0]).await, "nothing goes by itself");
    assert_eq!(lost.world.engine.files(lost.pods[0]).unwrap()["/srv/mine"], b"the only copy");
    assert_eq!(lost.cleaned().await, (Step::Delete, Ok(())));
    assert!(!lost.is_there(lost.pods[0]).await);
    assert_eq!(lost.other.app.store.orphans().await.unwrap(), []);
    assert_eq!(lost.told().await, ["orphan.quarantined", "orphan.ending", "orphan.deleted"]);
}

/// Volumes in use are nobody's to clean up, however old they are and whoever asks.
#[tokio::test]
async fn p16_sim_what_runs_is_kept_whoever_asks() {
    let lost = Lost::new(715, 1).await;
    lost.other.housekeeper().run_due().await;
    lost.days(2).await;
    assert_eq!(lost.cleaned().await, (Step::Quarantine, Ok(())));
    lost.days(8).await;
    let plan = lost.asked(&[], None).await.unwrap();
    assert_eq!(plan.plan.items[0].step, Step::Delete);
    lost.world.engine.start_outside(lost.pods[0]).unwrap();
    let refused = lost.asked(&[], Some(&plan.hash)).await.unwrap_err();
    assert!(matches!(refused, Error::Conflict { code: "plan-changed", .. }), "{refused:?}");
    assert_eq!(lost.cleaned().await, (Step::Keep, Ok(())));
    lost.world.engine.crash(lost.pods[0], 0, Cause::Itself).unwrap();
    // Somebody else uses its volumes now.
    let other = lost.world.engine.foreign_container(lost.pods[0], 1);
    assert_eq!(lost.cleaned().await, (Step::Keep, Ok(())));
    lost.world.engine.foreign_remove(&other);
    assert_eq!(lost.cleaned().await, (Step::Delete, Ok(())));
}

#[tokio::test]
async fn p17_sim_many_orphans_are_not_cleaned_up_unless_they_are_named() {
    let lost = Lost::new(716, 4).await;
    lost.other.housekeeper().run_due().await;
    lost.days(2).await;
    let told = lost.asked(&[], None).await.unwrap();
    assert!(told.plan.halted.as_ref().is_some_and(|why| why.contains("4 of 4 pods")), "{told:?}");
    let refused = lost.asked(&[], Some(&told.hash)).await.unwrap_err();
    assert!(matches!(refused, Error::Conflict { code: "cleanup-halted", .. }), "{refused:?}");
    assert_eq!(lost.cleaned().await, (Step::Quarantine, Ok(())));
    let unknown = PodId::from_parts(1, [1; 10]);
    let refused = lost.asked(&[lost.pods[0], unknown], None).await.unwrap_err();
    assert!(matches!(&refused, Error::InvalidInput { field, .. } if field == "pods[1]"), "{refused:?}");
}

/// Whatever happens to a clean-up at any of its calls and commits, the next one finishes it; nothing goes before its time.
#[tokio::test]
async fn sim_sweep_a_clean_up_of_orphans_is_finished_by_the_next() {
    for (step, days) in [(Step::Quarantine, 1), (Step::Delete, 7)] {
        let prepared = async || {
            let lost = Lost::new(720, 1).await;
            lost.other.housekeeper().run_due().await;
            lost.days(1).await;
            if step == Step::Delete {
                assert_eq!(lost.cleaned().await, (Step::Quarantine, Ok(())));
                lost.days(days).await;
            }
            lost
        };
        // Asks once, of a server that this happens to.
        let struck = async |blow, at| {
            let mut lost = prepared().await;
            let store = lost.other.app.store.clone();
            let striker = Arc::new(Striker::new(blow, at));
            lost.other = lost.world.server_on(store.with_tap(Arc::clone(&striker) as _), Arc::clone(&striker) as _);
            let life = async {
                if let Ok(told) = lost.asked(&lost.pods[..1], None).await {
                    let _ = lost.asked(&lost.pods[..1], Some(&told.hash)).await;
                }
            };
            tokio::select! {
                () = life => {}
                () = striker.death() => {}
            }
            lost.other = lost.world.server_on(store, Arc::new(NoTap));
            (lost, striker.passed())
        };
        let (_, sites) = struck(Blow::Count, usize::MAX - 1).await;
        assert!(sites.len() >= if step == Step::Delete { 4 } else { 1 }, "{sites:?}");
        for (at, site) in sites.iter().enumerate() {
            for blow in [Blow::KillBefore, Blow::KillAfter, Blow::FailBefore, Blow::LoseAnswer] {
                let (lost, _) = struck(blow, at).await;
                let case = format!("{step:?}: {blow:?} at {at} ({site})");
                lost.other.housekeeper().run_due().await;
                let mut expected = vec!["orphan.quarantined"];
                if step == Step::Quarantine {
                    let (next, done) = lost.cleaned().await;
                    assert!(matches!(next, Step::Quarantine | Step::Keep) && done.is_ok(), "{case}: {next:?} {done:?}");
                    assert_eq!(lost.world.engine.files(lost.pods[0]).unwrap()["/srv/mine"], b"the only copy", "{case}");
                } else {
                    if lost.is_there(lost.pods[0]).await {
                        assert_eq!(lost.cleaned().await, (Step::Delete, Ok(())), "{case}");
                    }
                    assert!(!lost.is_there(lost.pods[0]).await, "{case}");
                    assert_eq!(lost.other.app.store.orphans().await.unwrap(), [], "{case}");
                    expected.extend(["orphan.ending", "orphan.deleted"]);
                }
                let mut told = lost.told().await;
                // The end of one that was interrupted begins once more.
                told.dedup();
                assert_eq!(told, expected, "{case}");
                assert_eq!(lost.world.engine.violations(), Vec::<String>::new(), "{case}");
            }
        }
    }
}
