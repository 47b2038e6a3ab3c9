//! What others do behind Perennial's back, and how it is seen.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use perennial_core::engine::{ChangeSink, ContainerState, Effect, EngineError, Owned, Presence};
use perennial_core::id::PodId;
use perennial_core::permit::DeletePermit;
use tokio::sync::Notify;

use super::subject::{Subject, purge_task};
use super::{Checked, Fixture, check, check_refused};

/// Longest time until a watch tells; far more than it takes.
const PATIENCE: Duration = Duration::from_secs(60);
/// When a watch that has told nothing is taken for one that had not begun.
const RETRY: Duration = Duration::from_secs(2);

pub(super) async fn killed_container_is_gone_and_its_data_is_not(fixture: &Fixture) -> Checked {
    let (mut subject, id) = Subject::running(fixture).await?;
    subject.write(&id, "/srv/kept", "kept").await?;
    fixture.hands.kill_outside(&id).await?;
    let observed = subject.ended().await?;
    check!(observed.container.is_none(), "the container is still observed: {:?}", observed.container);
    let presence = subject.presence(1).await?;
    check!(presence == Presence::Whole, "the set is {presence:?}");
    let again = subject.create().await?;
    subject.start(&again).await?;
    subject.sees(&again, "/srv/kept", "kept").await
}

pub(super) async fn crash_is_observed(fixture: &Fixture) -> Checked {
    let (mut subject, id) = Subject::running(fixture).await?;
    let stamp = subject.observe_container().await?.stamp();
    subject.write(&id, "/srv/kept", "kept").await?;
    fixture.hands.crash(&id).await?;
    subject.ended().await?;
    let observed = subject.observe_container().await?;
    let killed = matches!(observed.state, ContainerState::Exited { code: Some(137), .. });
    check!(killed, "a killed container is {:?}", observed.state);
    check!(observed.stamp() == stamp, "the crash changed the stamp to {:?}", observed.stamp());
    subject.start(&id).await?;
    subject.sees(&id, "/srv/kept", "kept").await
}

pub(super) async fn lost_definition_is_made_again(fixture: &Fixture) -> Checked {
    let (mut subject, id) = Subject::running(fixture).await?;
    let set = subject.set(1)?;
    for volume in &set.volumes {
        subject.write(&id, &format!("{}/kept", volume.mount_path), &volume.name).await?;
    }
    subject.remove(&id).await?;
    for volume in &set.volumes {
        fixture.hands.definition_remove(&set, &volume.name).await?;
    }
    let presence = subject.presence(1).await?;
    check!(presence == Presence::Whole, "without definitions the set is {presence:?}");
    let id = subject.create().await?;
    subject.start(&id).await?;
    for volume in &set.volumes {
        subject.sees(&id, &format!("{}/kept", volume.mount_path), &volume.name).await?;
    }
    Ok(())
}

/// Fails if the pod can be made to run.
async fn does_not_start(subject: &mut Subject<'_>) -> Checked {
    let answer = match subject.engine().container_ensure(&subject.container()?).await {
        Ok((id, _)) => {
            let generation = subject.next_generation();
            subject.engine().container_start(&id, &subject.set(1)?, generation).await
        }
        Err(error) => Err(error),
    };
    check!(answer.is_err(), "it started without its data");
    let live = subject.observe().await?.container.is_some_and(|c| c.is_live());
    check!(!live, "it runs without its data");
    Ok(())
}

pub(super) async fn lost_volume_is_partial_and_does_not_start(fixture: &Fixture) -> Checked {
    let (mut subject, id) = Subject::running(fixture).await?;
    subject.write(&id, "/srv/lost", "lost").await?;
    subject.remove(&id).await?;
    fixture.hands.data_remove(&subject.set(1)?, "srv").await?;
    match subject.presence(1).await? {
        Presence::Partial { missing } => check!(missing.iter().any(|m| m == "srv"), "missing are {missing:?}"),
        other => check!(false, "a set without one volume is {other:?}"),
    }
    does_not_start(&mut subject).await?;
    let presence = subject.presence(1).await?;
    check!(matches!(presence, Presence::Partial { .. }), "trying to start made the set {presence:?}");
    Ok(())
}

pub(super) async fn lost_set_does_not_start(fixture: &Fixture) -> Checked {
    let (mut subject, id) = Subject::running(fixture).await?;
    subject.remove(&id).await?;
    let set = subject.set(1)?;
    for volume in &set.volumes {
        fixture.hands.data_remove(&set, &volume.name).await?;
    }
    let presence = subject.presence(1).await?;
    check!(presence != Presence::Whole, "a set without volumes is whole");
    does_not_start(&mut subject).await?;
    let presence = subject.presence(1).await?;
    check!(presence != Presence::Whole, "trying to start made empty volumes");
    Ok(())
}

pub(super) async fn foreign_container_is_seen(fixture: &Fixture) -> Checked {
    let subject = Subject::complete(fixture).await?;
    let other = Subject::complete(fixture).await?;
    let foreign = fixture.hands.foreign_make(&subject.set(1)?).await?;
    fixture.track_foreign(&foreign);
    let observed = subject.observe().await?;
    check!(observed.foreign == [foreign.clone()], "foreign are {:?} instead of {foreign}", observed.foreign);
    check!(observed.container.is_none(), "somebody else's container counts as the pod's");
    let observed = other.observe().await?;
    check!(observed.foreign.is_empty(), "another pod has foreign containers {:?}", observed.foreign);
    fixture.hands.foreign_remove(&foreign).await?;
    let observed = subject.observe().await?;
    check!(observed.foreign.is_empty(), "foreign are still {:?}", observed.foreign);
    Ok(())
}

pub(super) async fn foreign_container_keeps_the_set_from_use(fixture: &Fixture) -> Checked {
    let mut subject = Subject::complete(fixture).await?;
    let set = subject.set(1)?;
    let permit = DeletePermit::never_started_set(&subject.pod, 1, &subject.observe().await?)?;
    let foreign = fixture.hands.foreign_make(&set).await?;
    fixture.track_foreign(&foreign);
    let answer = subject.engine().set_delete(&set, &permit).await;
    check_refused!(answer, EngineError::Conflict { .. }, "deleting a set that somebody else uses");
    let id = subject.create().await?;
    let generation = subject.next_generation();
    let answer = subject.engine().container_start(&id, &set, generation).await;
    check_refused!(answer, EngineError::Conflict { .. }, "starting while somebody else uses the set");
    fixture.hands.foreign_remove(&foreign).await?;
    let effect = subject.engine().container_start(&id, &set, generation).await?;
    check!(effect == Effect::Updated, "starting said {effect:?}");
    Ok(())
}

pub(super) async fn lingering_process_keeps_the_set_from_use(fixture: &Fixture) -> Checked {
    let (mut subject, id) = Subject::running(fixture).await?;
    let other = Subject::complete(fixture).await?;
    let (set, engine) = (subject.set(1)?, &fixture.engine);
    let process = fixture.hands.linger(&set).await?;
    fixture.track_lingering(&process);
    subject.stop(&id).await?;
    let observed = subject.observe().await?;
    check!(observed.foreign.is_empty(), "the engine lists a process that it does not know: {:?}", observed.foreign);
    let found = engine.lingering(std::slice::from_ref(&set)).await?;
    check!(found.len() == 1 && found[0].starts_with(&process), "{found:?} linger instead of {process}");
    let found = engine.lingering(&[other.set(1)?]).await?;
    check!(found.is_empty(), "on another pod's set linger {found:?}");
    let generation = subject.next_generation();
    let answer = engine.container_start(&id, &set, generation).await;
    check_refused!(answer, EngineError::Conflict { .. }, "starting beside a process that has the set");
    let permit = subject.container_permit().await?;
    engine.container_remove(&id, &permit).await?;
    subject.pod.tasks = vec![purge_task()];
    let permit = DeletePermit::purged_set(&subject.pod, 1)?;
    let answer = engine.set_delete(&set, &permit).await;
    check_refused!(answer, EngineError::Conflict { .. }, "deleting what a process has mounted");
    let presence = subject.presence(1).await?;
    check!(presence == Presence::Whole, "the refused deletion left the set {presence:?}");
    fixture.hands.linger_end(&process).await?;
    let found = engine.lingering(std::slice::from_ref(&set)).await?;
    check!(found.is_empty(), "{found:?} linger after the end");
    let effect = engine.set_delete(&set, &permit).await?;
    check!(effect == Effect::Removed, "deleting said {effect:?}");
    Ok(())
}

#[derive(Default)]
struct Seen {
    pods: Mutex<Vec<PodId>>,
    more: Notify,
}

impl Seen {
    fn take(&self, pod: PodId) -> bool {
        let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        let found = pods.contains(&pod);
        pods.clear();
        found
    }

    /// Waits for news of this pod. How soon they come is measured by `./dev bench docker`, not here.
    async fn wait(&self, pod: PodId, at_most: Duration) -> bool {
        let news = async {
            while !self.take(pod) {
                self.more.notified().await;
            }
        };
        tokio::time::timeout(at_most, news).await.is_ok()
    }
}

impl ChangeSink for Seen {
    fn pod_changed(&self, pod: PodId) {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).push(pod);
        self.more.notify_one();
    }
}

pub(super) async fn watch_tells_of_ends(fixture: &Fixture) -> Checked {
    let (mut subject, id) = Subject::running(fixture).await?;
    let pod = subject.pod.id;
    let seen = Arc::new(Seen::default());
    let (engine, sink) = (Arc::clone(&fixture.engine), Arc::clone(&seen));
    let watch = tokio::spawn(async move { engine.watch(sink.as_ref()).await });
    let told = async {
        // Nothing says when a watch has begun: it gets a moment, and the first end may be missed all the same.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let mut tries = 0;
        loop {
            fixture.hands.crash(&id).await?;
            subject.ended().await?;
            if seen.wait(pod, RETRY).await {
                break;
            }
            tries += 1;
            check!(tries < 20, "nobody was told of a crash");
            subject.start(&id).await?;
        }
        seen.take(pod);
        subject.start(&id).await?;
        check!(seen.wait(pod, PATIENCE).await, "nobody was told of a start");
        // What is told comes in the order it happened in: with the other's beginning there is nothing left to tell of this one's.
        let (other, _) = Subject::running(fixture).await?;
        check!(seen.wait(other.pod.id, PATIENCE).await, "nobody was told of another pod");
        fixture.hands.kill_outside(&id).await?;
        check!(seen.wait(pod, PATIENCE).await, "nobody was told of a removal");
        check!(!watch.is_finished(), "the watch ended");
        Ok(())
    };
    let told = told.await;
    watch.abort();
    told
}

pub(super) async fn owned_things_are_listed(fixture: &Fixture) -> Checked {
    let subject = Subject::complete(fixture).await?;
    let id = subject.create().await?;
    let foreign = fixture.hands.foreign_make(&subject.set(1)?).await?;
    fixture.track_foreign(&foreign);
    let pod = subject.pod.id;
    let mine = |owned: &Owned| match owned {
        Owned::Container { pod: of, .. } | Owned::Set { pod: of, .. } => *of == pod,
    };
    let listed: Vec<Owned> = fixture.engine.list_owned().await?.into_iter().filter(mine).collect();
    let container = Owned::Container { pod, id: id.clone() };
    let set = Owned::Set { pod, number: 1, backend: fixture.backend };
    check!(listed.len() == 2, "listed are {listed:?}");
    check!(listed.contains(&container) && listed.contains(&set), "listed are {listed:?}");
    fixture.hands.foreign_remove(&foreign).await?;
    subject.remove(&id).await?;
    let listed: Vec<Owned> = fixture.engine.list_owned().await?.into_iter().filter(mine).collect();
    check!(listed == [set], "after the removal listed are {listed:?}");
    Ok(())
}
