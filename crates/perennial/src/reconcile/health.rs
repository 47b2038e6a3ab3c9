//! Asks running pods whether they work, and records what that finds out; what follows is decided like everything else.
//!
//! Which pods are asked is learned from every look at one ([`Reconciler::note_health`]), so a server that was started again
//! asks as soon as it has looked. A pod is left alone while anything is done with it, and an answer that is not good counts only if
//! nothing was done with it meanwhile: a pod that stood still for a snapshot was not ill. A pod that another server has the lease of is
//! left alone too; asking takes none, so it is written down nowhere and keeps nobody waiting. Whoever waits for an answer holds nothing
//! but its place among those who ask.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use perennial_core::engine::{ContainerState, ObservedPod};
use perennial_core::health::{Answer, Found, Health, HealthCheck, Tally};
use perennial_core::id::PodId;
use perennial_core::pod::{Desired, Pod};
use perennial_core::record::Record;
use perennial_core::snapshot::WriterStamp;
use perennial_core::spec::TenantId;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::controller::Waker;
use super::step::StepError;
use super::worker::{Memory, Reconciler, View};

/// Pods that are asked at the same time.
const AT_ONCE: usize = 64;
/// Pods of one tenant that are: those that do not answer keep nobody else's waiting.
const AT_ONCE_OF_TENANT: usize = 16;
/// How often it is looked who is to be asked.
const EVERY: Duration = Duration::from_secs(1);
/// What an engine gets beyond the time of a question, to end a program that takes too long: longer than any driver tries to.
const MARGIN: Duration = Duration::from_secs(40);
/// When a pod is asked that something was done with when it was its turn.
const LATER: SignedDuration = SignedDuration::from_secs(1);

/// A run that is asked for its health.
#[derive(Debug)]
pub(super) struct Watched {
    run: WriterStamp,
    began: Timestamp,
    check: HealthCheck,
    tenant: TenantId,
    tally: Tally,
    due: Timestamp,
    /// Grows whenever something in this process takes the pod to itself.
    pub(super) disturbed: u64,
}

/// What is asked.
struct Turn {
    run: WriterStamp,
    check: HealthCheck,
    disturbed: u64,
}

/// While this lives, the pod is being asked.
struct Place<'a>(&'a Reconciler, PodId);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.memory().asked.remove(&self.1);
    }
}

impl Memory {
    fn watched(&mut self, pod: PodId, turn: &Turn) -> Option<&mut Watched> {
        self.health.get_mut(&pod).filter(|watched| watched.run == turn.run && watched.check == turn.check)
    }
}

impl Reconciler {
    /// Learns from a look whether the pod is to be asked, and from which run on.
    pub(super) fn note_health(&self, pod: &Pod, observed: &ObservedPod) {
        let container = observed.container.as_ref();
        // It goes on in a moment, and what was counted stays so.
        if container.is_some_and(|container| container.state == ContainerState::Frozen) {
            return;
        }
        let running = container.filter(|c| c.state == ContainerState::Running && pod.desired == Desired::Running);
        let mut memory = self.memory();
        let (Some(check), Some(container), Some(began)) =
            (&pod.spec.health, running, running.and_then(|container| container.started_at))
        else {
            memory.health.remove(&pod.id);
            return;
        };
        let run = container.stamp();
        if memory.health.get(&pod.id).is_some_and(|known| known.run == run && known.check == *check) {
            return;
        }
        let (check, tenant, due) = (check.clone(), pod.tenant.clone(), self.now());
        let watched = Watched { run, began, check, tenant, tally: Tally::default(), due, disturbed: 0 };
        memory.health.insert(pod.id, watched);
    }

    /// The pods that are to be asked now, as many as there are places for; each is given one, which [`Self::health_ask`]
    /// gives back.
    #[must_use]
    pub fn health_due(&self) -> Vec<PodId> {
        let now = self.now();
        let mut guard = self.memory();
        let memory = &mut *guard;
        let is_due = |(pod, watched): &(&PodId, &Watched)| {
            !memory.asked.contains_key(pod) && watched.check.is_due(watched.due, now)
        };
        let mut due: Vec<(Timestamp, PodId)> =
            memory.health.iter().filter(is_due).map(|(pod, watched)| (watched.due, *pod)).collect();
        due.sort_unstable();
        let mut of_tenants = HashMap::<TenantId, usize>::new();
        for tenant in memory.asked.values() {
            *of_tenants.entry(tenant.clone()).or_default() += 1;
        }
        let mut turns = Vec::new();
        for (_, pod) in due {
            let Some(watched) = memory.health.get_mut(&pod) else { continue };
            if memory.busy.contains(&pod) {
                watched.due = now.checked_add(LATER).unwrap_or(now);
                continue;
            }
            let of_tenant = of_tenants.entry(watched.tenant.clone()).or_default();
            if memory.asked.len() == AT_ONCE || *of_tenant == AT_ONCE_OF_TENANT {
                continue;
            }
            *of_tenant += 1;
            memory.asked.insert(pod, watched.tenant.clone());
            turns.push(pod);
        }
        turns
    }

    /// Asks a pod; tells whether something new was recorded, so that it has to be looked at.
    pub async fn health_ask(&self, pod: PodId) -> bool {
        let _place = Place(self, pod);
        self.ask(pod).await.unwrap_or_else(|error| {
            tracing::debug!(%pod, ?error, "ask for a pod's health");
            false
        })
    }

    async fn ask(&self, id: PodId) -> Result<bool, StepError> {
        let now = self.now();
        let turn = self.memory().health.get_mut(&id).map(|watched| {
            watched.tally.see(&watched.check, (watched.began, now));
            // Whatever becomes of it, this was its turn.
            watched.due = watched.tally.next(&watched.check, now);
            Turn { run: watched.run.clone(), check: watched.check.clone(), disturbed: watched.disturbed }
        });
        let Some(turn) = turn else { return Ok(false) };
        let Some(pod) = self.store.pod_fetch(id).await? else {
            self.memory().health.remove(&id);
            return Ok(false);
        };
        if !is_asked(&pod, &turn) {
            self.interrupted(id, &turn);
            return Ok(false);
        }
        if self.is_elsewhere(id, &turn).await? {
            return Ok(false);
        }
        let answer = self.put(id, &turn).await;
        // Another server may have begun to work on it meanwhile, in its own way: a good answer is good all the same.
        if !matches!(answer, Answer::Good) && self.is_elsewhere(id, &turn).await? {
            return Ok(false);
        }
        let is_ill = pod.health.as_ref().is_some_and(|health| health.verdict.is_ill());
        let Some(found) = self.count(id, &turn, is_ill, answer) else { return Ok(false) };
        if !Health::is_news(pod.health.as_ref(), &turn.run, &found, self.now()) {
            return Ok(false);
        }
        self.record_health(id, &turn, found).await
    }

    /// Whether another server works on the pod: then it is not asked, and what was counted is not in a row.
    async fn is_elsewhere(&self, id: PodId, turn: &Turn) -> Result<bool, StepError> {
        let is_elsewhere = self.store.lease_is_elsewhere(id, &self.settings.holder, self.now()).await?;
        if is_elsewhere {
            self.interrupted(id, turn);
        }
        Ok(is_elsewhere)
    }

    fn interrupted(&self, id: PodId, turn: &Turn) {
        if let Some(watched) = self.memory().watched(id, turn) {
            watched.tally.interrupted();
        }
    }

    /// Puts the question.
    async fn put(&self, id: PodId, turn: &Turn) -> Answer {
        let within = Duration::from_secs(turn.check.timeout.into());
        let asked = self.engine.container_probe(&turn.run.container, &turn.check.probe, within);
        let answer = match tokio::time::timeout(within + MARGIN, asked).await {
            Ok(asked) => asked.unwrap_or_else(|error| Answer::Failed(error.to_string())),
            Err(_) => Answer::Failed("the engine does not say how it is".to_owned()),
        };
        if let Answer::Failed(why) = &answer {
            tracing::debug!(pod = %id, why, "a pod could not be asked for its health");
        }
        answer
    }

    fn count(&self, id: PodId, turn: &Turn, is_ill: bool, answer: Answer) -> Option<Found> {
        let now = self.now();
        let mut memory = self.memory();
        let is_busy = memory.busy.contains(&id);
        let watched = memory.watched(id, turn)?;
        let was_disturbed = is_busy || watched.disturbed != turn.disturbed;
        if was_disturbed && !matches!(answer, Answer::Good) {
            watched.tally.interrupted();
            return None;
        }
        watched.tally.see(&watched.check, (watched.began, now));
        let found = watched.tally.count(&watched.check, is_ill, answer);
        watched.due = watched.tally.next(&watched.check, now);
        found
    }

    /// Records what was found out about a run, unless the pod is another by now.
    async fn record_health(&self, id: PodId, turn: &Turn, found: Found) -> Result<bool, StepError> {
        // Where something is being done with it, the next answer will say the same.
        let Some(_alone) = self.take(id) else { return Ok(false) };
        let Some(pod) = self.store.pod_fetch(id).await?.filter(|pod| is_asked(pod, turn)) else { return Ok(false) };
        let Some(lease) = self.lease(id).await? else { return Ok(false) };
        let mut view = View { lease: Some(lease), ..self.look(pod).await? };
        let container = view.observed.container.as_ref();
        let is_run = container.is_some_and(|c| c.state == ContainerState::Running && c.stamp() == turn.run);
        if !is_run || !Health::is_news(view.pod.health.as_ref(), &turn.run, &found, self.now()) {
            return Ok(false);
        }
        self.record(&mut view, Record::Health { run: turn.run.clone(), found }).await?;
        Ok(true)
    }
}

fn is_asked(pod: &Pod, turn: &Turn) -> bool {
    pod.may_be_asked() && pod.spec.health.as_ref() == Some(&turn.check)
}

/// Asks pods for as long as the server runs.
pub(super) async fn supervise(reconciler: Arc<Reconciler>, waker: Waker, mut stopped: watch::Receiver<bool>) {
    let mut asked: JoinSet<(PodId, bool)> = JoinSet::new();
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !*stopped.borrow() {
        tokio::select! {
            _ = ticks.tick() => {
                for pod in reconciler.health_due() {
                    let reconciler = Arc::clone(&reconciler);
                    asked.spawn(async move { (pod, reconciler.health_ask(pod).await) });
                }
            }
            Some(joined) = asked.join_next() => match joined {
                Ok((pod, true)) => waker.wake(pod),
                Ok((_, false)) => {}
                Err(error) => tracing::error!(%error, "asking for a pod's health was aborted"),
            },
            _ = stopped.changed() => {}
        }
    }
    // What nobody waits for any more is asked again by the next server.
    asked.shutdown().await;
}
