//! Asks running pods whether they work, and records what that finds out; what follows is decided like everything else.
//!
//! Which pods are asked is learned from every look at one ([`Reconciler::note_health`]), so a server that was started again
//! asks as soon as it has looked. A pod is left alone while anything is done with it, and an answer that is not good counts only if
//! nothing was done with it meanwhile: a pod that stood still for a snapshot was not ill. Of several servers the one that has the
//! pod's lease asks. Whoever waits for an answer holds nothing but its place among those who ask.

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

use super::controller::Waker;
use super::step::StepError;
use super::worker::{Memory, Reconciler, View};

/// Pods that are asked at the same time.
const AT_ONCE: usize = 64;
/// Pods of one tenant that are: those that do not answer keep nobody else's waiting.
const AT_ONCE_OF_TENANT: usize = 16;
/// How often it is looked who is to be asked.
const EVERY: Duration = Duration::from_secs(1);
/// What an engine gets beyond the time of a question, to end a program that takes too long.
const MARGIN: Duration = Duration::from_secs(15);
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
    asking: bool,
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
        if let Some(watched) = self.0.memory().health.get_mut(&self.1) {
            watched.asking = false;
        }
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
        let asking = memory.health.get(&pod.id).is_some_and(|known| known.asking);
        let (check, tenant, due) = (check.clone(), pod.tenant.clone(), self.now());
        let watched = Watched { run, began, check, tenant, tally: Tally::default(), due, asking, disturbed: 0 };
        memory.health.insert(pod.id, watched);
    }

    /// The pods that are to be asked now, as many as there are places for; each is given one, which [`Self::health_ask`]
    /// gives back.
    #[must_use]
    pub fn health_due(&self) -> Vec<PodId> {
        let now = self.now();
        let mut memory = self.memory();
        let mut due: Vec<(Timestamp, PodId)> = Vec::new();
        let mut asking = std::collections::HashMap::<TenantId, usize>::new();
        for (pod, watched) in &memory.health {
            if watched.asking {
                *asking.entry(watched.tenant.clone()).or_default() += 1;
            } else if watched.due <= now {
                due.push((watched.due, *pod));
            }
        }
        due.sort_unstable();
        let mut places = AT_ONCE.saturating_sub(asking.values().sum());
        let mut turns = Vec::new();
        for (_, pod) in due {
            let is_busy = memory.busy.contains(&pod);
            let Some(watched) = memory.health.get_mut(&pod) else { continue };
            if is_busy {
                watched.due = now.checked_add(LATER).unwrap_or(now);
                continue;
            }
            let of_tenant = asking.entry(watched.tenant.clone()).or_default();
            if places == 0 || *of_tenant == AT_ONCE_OF_TENANT {
                continue;
            }
            places -= 1;
            *of_tenant += 1;
            watched.asking = true;
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
            let times = (watched.began, now);
            // Whatever becomes of it, this was its turn.
            watched.due = watched.tally.next(&watched.check, times);
            Turn { run: watched.run.clone(), check: watched.check.clone(), disturbed: watched.disturbed }
        });
        let Some(turn) = turn else { return Ok(false) };
        let Some(pod) = self.store.pod_fetch(id).await? else {
            self.memory().health.remove(&id);
            return Ok(false);
        };
        if !is_asked(&pod, &turn) {
            return Ok(false);
        }
        if self.lease(id).await?.is_none() {
            // Another server works on it, and asks it: what was counted here is not in a row.
            if let Some(watched) = self.memory().watched(id, &turn) {
                watched.tally = Tally::default();
            }
            return Ok(false);
        }
        let Some(answer) = self.put(id, &turn).await else { return Ok(false) };
        let Some(found) = self.count(id, &turn, answer) else { return Ok(false) };
        if !Health::is_news(pod.health.as_ref(), &turn.run, &found) {
            return Ok(false);
        }
        self.record_health(id, &turn, found).await
    }

    /// Puts the question; `None` when it was not put, or nobody knows what became of it.
    async fn put(&self, id: PodId, turn: &Turn) -> Option<Answer> {
        let within = Duration::from_secs(turn.check.timeout.into());
        let asked = self.engine.container_probe(&turn.run.container, &turn.check.probe, within);
        match tokio::time::timeout(within + MARGIN, asked).await {
            Ok(Ok(answer)) => Some(answer),
            Ok(Err(error)) => {
                tracing::debug!(pod = %id, %error, "a pod could not be asked for its health");
                None
            }
            Err(_) => {
                tracing::debug!(pod = %id, "the engine does not say how a pod's health is");
                None
            }
        }
    }

    fn count(&self, id: PodId, turn: &Turn, answer: Answer) -> Option<Found> {
        let now = self.now();
        let mut memory = self.memory();
        let is_busy = memory.busy.contains(&id);
        let watched = memory.watched(id, turn)?;
        let was_disturbed = is_busy || watched.disturbed != turn.disturbed;
        if was_disturbed && matches!(answer, Answer::Bad(_)) {
            return None;
        }
        let times = (watched.began, now);
        let found = watched.tally.count(&watched.check, times, answer);
        watched.due = watched.tally.next(&watched.check, times);
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
        if !is_run || !Health::is_news(view.pod.health.as_ref(), &turn.run, &found) {
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
    while !*stopped.borrow() {
        for pod in reconciler.health_due() {
            let reconciler = Arc::clone(&reconciler);
            asked.spawn(async move { (pod, reconciler.health_ask(pod).await) });
        }
        tokio::select! {
            Some(joined) = asked.join_next() => match joined {
                Ok((pod, true)) => waker.wake(pod),
                Ok((_, false)) => {}
                Err(error) => tracing::error!(%error, "asking for a pod's health was aborted"),
            },
            () = tokio::time::sleep(EVERY) => {}
            _ = stopped.changed() => {}
        }
    }
    // What nobody waits for any more is asked again by the next server.
    asked.shutdown().await;
}
