//! Containers: making, starting, stopping, freezing, removing.

use std::time::{Duration, Instant};

use perennial_core::engine::{ContainerState, Effect, EngineError};
use perennial_core::permit::DeletePermit;
use perennial_core::spec::{Backend, Resources};

use super::subject::Subject;
use super::{Checked, Fixture, check, check_refused};

pub(super) async fn container_is_ensured_once(fixture: &Fixture) -> Checked {
    let subject = Subject::complete(fixture).await?;
    let wanted = subject.container()?;
    let (first, effect) = subject.engine().container_ensure(&wanted).await?;
    check!(effect == Effect::Created, "ensuring said {effect:?}");
    let (second, effect) = subject.engine().container_ensure(&wanted).await?;
    check!(effect == Effect::Unchanged, "ensuring again said {effect:?}");
    check!(first == second, "there are two containers, {first} and {second}");
    Ok(())
}

pub(super) async fn differing_container_is_a_conflict(fixture: &Fixture) -> Checked {
    let mut subject = Subject::complete(fixture).await?;
    let second = subject.add_set();
    subject.prepare(second).await?;
    let id = subject.create().await?;
    let mut changed = subject.container()?;
    changed.spec_generation += 1;
    changed.spec.env.insert("NEW".to_owned(), "1".to_owned());
    let answer = subject.engine().container_ensure(&changed).await;
    check_refused!(answer, EngineError::Conflict { .. }, "another specification");
    let mut moved = subject.container()?;
    moved.set = subject.set(second)?;
    let answer = subject.engine().container_ensure(&moved).await;
    check_refused!(answer, EngineError::Conflict { .. }, "another set");
    let observed = subject.observe_container().await?;
    check!(observed.id == id, "the container was replaced by {}", observed.id);
    check!(observed.set == 1 && observed.spec_generation == 1, "the container changed: {observed:?}");
    Ok(())
}

pub(super) async fn life_of_a_container_is_observed(fixture: &Fixture) -> Checked {
    let mut subject = Subject::complete(fixture).await?;
    check!(subject.observe().await?.container.is_none(), "a container that nobody made is observed");
    let id = subject.create().await?;
    let observed = subject.observe_container().await?;
    check!(observed.id == id, "the id is {} instead of {id}", observed.id);
    check!(observed.state == ContainerState::Created, "a new container is {:?}", observed.state);
    check!(observed.started_at.is_none(), "a new container began at {:?}", observed.started_at);
    check!((observed.set, observed.spec_generation) == (1, 1), "its labels say {observed:?}");
    subject.start(&id).await?;
    let observed = subject.observe_container().await?;
    check!(observed.state == ContainerState::Running, "a started container is {:?}", observed.state);
    check!(observed.started_at.is_some(), "nobody knows when it began");
    subject.stop(&id).await?;
    let stopped = subject.observe_container().await?;
    check!(matches!(stopped.state, ContainerState::Exited { .. }), "a stopped container is {:?}", stopped.state);
    check!(stopped.stamp() == observed.stamp(), "stopping changed the stamp to {:?}", stopped.stamp());
    Ok(())
}

pub(super) async fn every_run_has_its_own_stamp(fixture: &Fixture) -> Checked {
    let (mut subject, id) = Subject::running(fixture).await?;
    let first = subject.observe_container().await?.stamp();
    subject.stop(&id).await?;
    subject.start(&id).await?;
    let second = subject.observe_container().await?.stamp();
    check!(first.container == second.container, "a start made another container");
    check!(first != second, "two runs share the stamp {first:?}");
    Ok(())
}

pub(super) async fn start_and_stop_are_safe_to_repeat(fixture: &Fixture) -> Checked {
    let (subject, id) = Subject::running(fixture).await?;
    let stamp = subject.observe_container().await?.stamp();
    let generation = subject.pod.data_generation;
    let effect = subject.engine().container_start(&id, &subject.set(1)?, generation).await?;
    check!(effect == Effect::Unchanged, "starting again said {effect:?}");
    check!(subject.observe_container().await?.stamp() == stamp, "starting again began another run");
    let effect = subject.engine().container_stop(&id, 2).await?;
    check!(effect == Effect::Updated, "stopping said {effect:?}");
    let effect = subject.engine().container_stop(&id, 2).await?;
    check!(effect == Effect::Unchanged, "stopping again said {effect:?}");
    Ok(())
}

pub(super) async fn unknown_runtime_is_rejected(fixture: &Fixture) -> Checked {
    let subject = Subject::complete(fixture).await?;
    let mut wanted = subject.container()?;
    wanted.spec.runtime = Some("no-such-runtime".to_owned());
    let answer = subject.engine().container_ensure(&wanted).await;
    check_refused!(answer, EngineError::Rejected { .. }, "an unknown runtime");
    check!(subject.observe().await?.container.is_none(), "a refused container was made");
    Ok(())
}

pub(super) async fn missing_image_is_no_container(fixture: &Fixture) -> Checked {
    let subject = Subject::complete(fixture).await?;
    let mut wanted = subject.container()?;
    wanted.set.image = format!("sha256:{}", "0".repeat(64));
    let answer = subject.engine().container_ensure(&wanted).await;
    let refused = matches!(
        answer,
        Err(EngineError::NotFound { .. } | EngineError::Rejected { .. } | EngineError::Conflict { .. })
    );
    check!(refused, "a container without its image: {answer:?}");
    check!(subject.observe().await?.container.is_none(), "a refused container was made");
    Ok(())
}

pub(super) async fn limits_change_and_none_is_taken_away(fixture: &Fixture) -> Checked {
    let mut subject = Subject::complete(fixture).await?;
    let limits = |memory: u64, pids| Resources { memory: Some(memory << 20), pids, ..Resources::default() };
    subject.pod.spec.resources = limits(256, Some(100));
    let id = subject.create().await?;
    let engine = subject.engine();
    let effect = engine.container_limit(&id, &limits(256, Some(100))).await?;
    check!(effect == Effect::Unchanged, "the limits it has are {effect:?}");
    let effect = engine.container_limit(&id, &limits(512, Some(200))).await?;
    check!(effect == Effect::Updated, "more, before it ran: {effect:?}");
    subject.start(&id).await?;
    let running = subject.observe_container().await?;
    let engine = subject.engine();
    // A runtime may be unable to; then it keeps what it has, and runs on.
    let mut has = limits(512, Some(200));
    for wanted in [limits(768, Some(300)), limits(384, Some(150))] {
        match engine.container_limit(&id, &wanted).await {
            Ok(effect) => {
                check!(effect == Effect::Updated, "other limits, while it runs: {effect:?}");
                has = wanted;
            }
            Err(EngineError::Conflict { .. }) => {}
            Err(other) => return Err(other.into()),
        }
        let effect = engine.container_limit(&id, &has).await?;
        check!(effect == Effect::Unchanged, "it should have {has:?}, which was {effect:?}");
    }
    let gone = Resources { memory: None, ..has };
    let answer = engine.container_limit(&id, &gone).await;
    check_refused!(answer, EngineError::Conflict { .. }, "a limit that goes");
    let absurd = Resources { nano_cpus: Some(1_000_000_000_000), ..has };
    let answer = engine.container_limit(&id, &absurd).await;
    check_refused!(answer, EngineError::Rejected { .. }, "a thousand processors");
    let effect = engine.container_limit(&id, &has).await?;
    check!(effect == Effect::Unchanged, "a refusal changed something");
    check!(subject.observe_container().await?.stamp() == running.stamp(), "other limits began another run");
    subject.stop(&id).await?;
    let engine = subject.engine();
    let effect = engine.container_limit(&id, &limits(640, Some(90))).await?;
    check!(effect == Effect::Updated, "other limits, after it ran: {effect:?}");
    let answer = engine.container_limit("no-such-container", &has).await;
    check_refused!(answer, EngineError::NotFound { .. }, "no container");
    Ok(())
}

pub(super) async fn missing_container_is_not_found(fixture: &Fixture) -> Checked {
    let subject = Subject::complete(fixture).await?;
    let (id, set) = ("0".repeat(64), subject.set(1)?);
    let engine = subject.engine();
    let not_found = "a container that does not exist";
    check_refused!(engine.container_start(&id, &set, 1).await, EngineError::NotFound { .. }, not_found);
    check_refused!(engine.container_stop(&id, 1).await, EngineError::NotFound { .. }, not_found);
    check_refused!(engine.container_freeze(&id).await, EngineError::NotFound { .. }, not_found);
    check_refused!(engine.layer_access(&id).await, EngineError::NotFound { .. }, not_found);
    Ok(())
}

pub(super) async fn stubborn_container_is_killed_after_its_grace(fixture: &Fixture) -> Checked {
    let mut subject = Subject::new(fixture).await?;
    subject.pod.spec.command = Some(fixture.stubborn.clone());
    subject.prepare(1).await?;
    let id = subject.create().await?;
    subject.start(&id).await?;
    if let Some(sign) = &fixture.stubborn_sign {
        // Each look runs a program in the container, which takes its time.
        let mut looks = 0;
        while fixture.hands.read(&id, sign).await?.is_none() {
            looks += 1;
            check!(looks < 1000, "{sign} does not appear");
        }
    }
    let began = Instant::now();
    subject.engine().container_stop(&id, 1).await?;
    let took = began.elapsed();
    check!(took < Duration::from_secs(15), "the stop took {took:?}");
    let state = subject.observe_container().await?.state;
    let killed = matches!(state, ContainerState::Exited { code: Some(137), oom: false });
    check!(killed, "a killed container is {state:?}");
    Ok(())
}

pub(super) async fn container_freezes_and_goes_on(fixture: &Fixture) -> Checked {
    let (subject, id) = Subject::running(fixture).await?;
    let stamp = subject.observe_container().await?.stamp();
    let engine = subject.engine();
    let effect = engine.container_freeze(&id).await?;
    check!(effect == Effect::Updated, "freezing said {effect:?}");
    let observed = subject.observe_container().await?;
    check!(observed.state == ContainerState::Frozen && observed.is_live(), "frozen is {:?}", observed.state);
    let effect = engine.container_freeze(&id).await?;
    check!(effect == Effect::Unchanged, "freezing again said {effect:?}");
    engine.container_unfreeze(&id).await?;
    let observed = subject.observe_container().await?;
    check!(observed.state == ContainerState::Running, "unfrozen is {:?}", observed.state);
    check!(observed.stamp() == stamp, "freezing changed the stamp to {:?}", observed.stamp());
    let effect = engine.container_unfreeze(&id).await?;
    check!(effect == Effect::Unchanged, "unfreezing again said {effect:?}");
    subject.write(&id, "/srv/thawed", "thawed").await?;
    subject.sees(&id, "/srv/thawed", "thawed").await?;
    subject.stop(&id).await?;
    check_refused!(engine.container_freeze(&id).await, EngineError::Conflict { .. }, "freezing what does not run");
    Ok(())
}

pub(super) async fn frozen_container_stops(fixture: &Fixture) -> Checked {
    let (subject, id) = Subject::running(fixture).await?;
    subject.engine().container_freeze(&id).await?;
    subject.stop(&id).await?;
    let state = subject.observe_container().await?.state;
    check!(matches!(state, ContainerState::Exited { .. }), "a stopped container is {state:?}");
    Ok(())
}

pub(super) async fn container_is_removed_with_its_permit_only(fixture: &Fixture) -> Checked {
    let subject = Subject::complete(fixture).await?;
    let other = Subject::complete(fixture).await?;
    let (id, other_id) = (subject.create().await?, other.create().await?);
    let wrong = [
        other.container_permit().await?,
        DeletePermit::scratch(id.clone()),
        DeletePermit::never_started_set(&subject.pod, 1, &subject.observe().await?)?,
    ];
    for permit in wrong {
        let answer = subject.engine().container_remove(&id, &permit).await;
        check!(answer.is_err(), "a permit for something else removed the container");
        subject.observe_container().await?;
    }
    let permit = subject.container_permit().await?;
    let effect = subject.engine().container_remove(&id, &permit).await?;
    check!(effect == Effect::Removed, "removing said {effect:?}");
    let effect = subject.engine().container_remove(&id, &permit).await?;
    check!(effect == Effect::Unchanged, "removing again said {effect:?}");
    let kept = other.observe_container().await?;
    check!(kept.id == other_id, "the other container is {}", kept.id);
    Ok(())
}

pub(super) async fn stale_permit_does_not_remove_a_running_container(fixture: &Fixture) -> Checked {
    let mut subject = Subject::complete(fixture).await?;
    let id = subject.create().await?;
    let permit = subject.container_permit().await?;
    subject.start(&id).await?;
    let answer = subject.engine().container_remove(&id, &permit).await;
    check_refused!(answer, EngineError::Conflict { .. }, "removing a running container");
    let observed = subject.observe_container().await?;
    check!(observed.state == ContainerState::Running, "the refused removal left it {:?}", observed.state);
    Ok(())
}

pub(super) async fn generation_is_written_beside_the_data(fixture: &Fixture) -> Checked {
    let mut subject = Subject::complete(fixture).await?;
    let id = subject.create().await?;
    for run in 1..=2_u64 {
        subject.start(&id).await?;
        subject.stop(&id).await?;
        let observed = subject.observe().await?;
        let generation = observed.set(1).and_then(|s| s.generation);
        let wanted = (fixture.backend == Backend::Overlay).then_some(run);
        let good = generation == wanted || (wanted.is_none() && generation == Some(run));
        check!(good, "after run {run} the data says generation {generation:?}");
    }
    subject.remove(&id).await?;
    let generation = subject.observe().await?.set(1).and_then(|s| s.generation);
    check!(generation.is_none_or(|g| g == 2), "without its container the data says generation {generation:?}");
    Ok(())
}

pub(super) async fn older_generation_does_not_start(fixture: &Fixture) -> Checked {
    let mut subject = Subject::complete(fixture).await?;
    let id = subject.create().await?;
    for _ in 0..2 {
        subject.start(&id).await?;
        subject.stop(&id).await?;
    }
    let answer = subject.engine().container_start(&id, &subject.set(1)?, 1).await;
    check_refused!(answer, EngineError::Conflict { .. }, "starting with an older generation");
    check!(!subject.observe_container().await?.is_live(), "it runs all the same");
    Ok(())
}
