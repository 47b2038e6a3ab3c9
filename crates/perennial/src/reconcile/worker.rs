//! One pass over one pod: fetch, observe, plan, carry out one action, record.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use perennial_core::clock::{Clock, IdSource};
use perennial_core::engine::{ContainerState, Engine, ObservedPod, SetSpec};
use perennial_core::id::{OperationId, PodId, SnapshotId};
use perennial_core::plan::{self, Action, Finding, Input, Next, Plan, Policy};
use perennial_core::pod::{Condition, Desired, Pod, Retry, Work};
use perennial_core::record::{self, Record};
use perennial_core::snapshot::Snapshot;
use perennial_core::spec::TenantId;
use perennial_core::volume::{SetState, VolumeSet};
use perennial_snapshots::TreeId;
use tokio::sync::Semaphore;

use super::glance::AtRest;
use super::health::Watched;
use super::hooking::Hooking;
use super::leases::LEASE;
use super::progress::ProgressBoard;
use super::records::{Failure, RETRY_FIRST, RETRY_MAX};
use super::repositories::Repositories;
use super::step::{StepError, problem};
use crate::import::Spool;
use crate::store::{Change, Lease, Store};

/// When a pod is looked at again that waits for one that is worked on, or for a place.
const OCCUPIED_FOR: SignedDuration = SignedDuration::from_millis(200);
/// How often a blocked pod is looked at.
const BLOCKED_EVERY: SignedDuration = SignedDuration::from_secs(10);
/// How long a snapshot with hooks waits before it is looked whether its tenant has few enough of them in work.
const SEAT_AGAIN: SignedDuration = SignedDuration::from_secs(2);
/// How often the time at which data was last seen whole is recorded.
const SEEN_EVERY: SignedDuration = SignedDuration::from_hours(1);

/// Everything that is fixed for the life of a server.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Knobs of the lifecycle.
    pub policy: Policy,
    /// Pods that are worked on at the same time.
    pub pods_at_once: usize,
    /// How often every pod is looked at although nothing woke it.
    pub resync: Duration,
    /// Where images and layers are staged; emptied at start.
    pub scratch: PathBuf,
    /// Where archives wait that become snapshots.
    pub imports: Spool,
    /// This server's name in leases.
    pub holder: String,
    /// This installation's name in the repositories.
    pub installation: String,
}

/// What the controller does with a pod after a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passed {
    /// Something was done: look again at once.
    Again,
    /// Nothing to do until then; `None` until something changes.
    Wait(Option<Timestamp>),
    /// There is no such pod any more.
    Gone,
}

/// Brings pods to what was asked for.
pub struct Reconciler {
    pub(super) store: Store,
    pub(super) engine: Arc<dyn Engine>,
    pub(super) repositories: Repositories,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) ids: Arc<dyn IdSource>,
    pub(super) board: ProgressBoard,
    pub(super) settings: Settings,
    /// When this server began: captures asked for later were tried by nobody before it.
    pub(super) started_at: Timestamp,
    pub(super) hooking: Arc<Hooking>,
    memory: Mutex<Memory>,
    /// Places for copies that take as long as their data is large.
    pub(super) copies: Semaphore,
}

/// What only saves work and may be forgotten at any moment.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// Trees that live passes uploaded, with the bytes of their files.
    pub(super) live: HashMap<SnapshotId, (TreeId, u64)>,
    /// Captures that this process began, each with the opening of the repository it began under: only of those it is
    /// known which packs they wrote.
    pub(super) began: HashMap<SnapshotId, u64>,
    /// When system layers were looked at.
    pub(super) layers: HashMap<PodId, Timestamp>,
    pub(super) leases: HashMap<PodId, (Lease, Timestamp)>,
    /// Pods that this process works on: in a pass of their own, or in that of a clone that is copied from them.
    pub(super) busy: HashSet<PodId>,
    /// Pods that a pass of another one gave something to do.
    pub(super) woken: Vec<PodId>,
    /// Pods that were at rest when they were looked at last.
    pub(super) at_rest: HashMap<PodId, AtRest>,
    /// Runs that are asked for their health, with what was counted.
    pub(super) health: HashMap<PodId, Watched>,
    /// Pods that are being asked for it, and whose each is: also when a run ends meanwhile.
    pub(super) asked: HashMap<PodId, TenantId>,
    /// Pods that are known not to have been left frozen by a server that died.
    pub(super) thawed: HashSet<PodId>,
}

/// While this lives, nothing else in this process works on the pod.
pub(super) struct Alone<'a> {
    reconciler: &'a Reconciler,
    pod: PodId,
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        self.reconciler.memory().busy.remove(&self.pod);
    }
}

/// What one pass knows.
pub(super) struct View {
    pub(super) pod: Pod,
    pub(super) observed: ObservedPod,
    pub(super) snapshots: Vec<Snapshot>,
    pub(super) lease: Option<Lease>,
    /// Whether the recorded retry counter is out of date and has to be written.
    pub(super) retry_cleared: bool,
    /// Whether the pod's runtime hides changes outside volumes.
    pub(super) layer_hidden: bool,
}

impl View {
    pub(super) fn snapshot(&self, id: SnapshotId) -> Option<&Snapshot> {
        self.snapshots.iter().find(|s| s.id == id)
    }
}

impl Reconciler {
    /// A reconciler over these parts.
    #[must_use]
    pub fn new(
        store: Store,
        engine: Arc<dyn Engine>,
        repositories: Repositories,
        (clock, ids): (Arc<dyn Clock>, Arc<dyn IdSource>),
        board: ProgressBoard,
        settings: Settings,
    ) -> Self {
        let started_at = clock.now();
        let (hooking, memory) = (Arc::default(), Mutex::default());
        // The others' requests do not wait for copies, unless there is one place only.
        let copies = Semaphore::new((settings.pods_at_once / 2).max(1));
        Self { store, engine, repositories, clock, ids, board, settings, started_at, hooking, memory, copies }
    }

    /// Who this server is to others that share the database.
    #[must_use]
    pub fn holder(&self) -> &str {
        &self.settings.holder
    }

    pub(super) fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// The pods that were given something to do by passes of others since this was asked.
    pub(super) fn take_woken(&self) -> Vec<PodId> {
        std::mem::take(&mut self.memory().woken)
    }

    /// Has the pod to itself, unless something else in this process has.
    pub(super) fn take(&self, pod: PodId) -> Option<Alone<'_>> {
        let taken = {
            let mut memory = self.memory();
            if let Some(watched) = memory.health.get_mut(&pod) {
                watched.disturbed += 1;
            }
            memory.busy.insert(pod)
        };
        // Made only when it was taken: its end gives the pod back.
        taken.then(|| Alone { reconciler: self, pod })
    }

    /// Looks at one pod and does at most one thing.
    pub async fn pass(&self, id: PodId) -> Passed {
        let Some(_alone) = self.take(id) else { return Passed::Wait(self.after(OCCUPIED_FOR)) };
        let pod = match self.store.pod_fetch(id).await {
            Ok(Some(pod)) => pod,
            Ok(None) => return Passed::Gone,
            Err(error) => {
                tracing::warn!(pod = %id, error = %crate::causes::describe(&error), "read the pod");
                return Passed::Wait(self.after(RETRY_FIRST));
            }
        };
        let rests = pod.retry.not_before.is_some_and(|at| at > self.now());
        if rests && !has_untried_hook(&pod) && !self.was_left_frozen(id).await {
            return Passed::Wait(pod.retry.not_before);
        }
        match self.step(pod, rests).await {
            Ok(passed) => passed,
            Err(StepError::Overtaken | StepError::Cancelled) => Passed::Again,
            Err(StepError::Occupied) => Passed::Wait(self.after(OCCUPIED_FOR)),
            Err(StepError::Retry(problem)) => self.failed(id, problem, Failure::MayPass).await,
            Err(StepError::Definite(problem)) => self.failed(id, problem, Failure::Lasting).await,
        }
    }

    /// Whether a server that died left the pod frozen, which does not wait for what failed before. Asked once per pod and
    /// server: whoever freezes thaws.
    async fn was_left_frozen(&self, pod: PodId) -> bool {
        if self.memory().thawed.contains(&pod) {
            return false;
        }
        // A failed look is repeated by the next pass.
        let Ok(seen) = self.engine.observe(pod, &[]).await else { return false };
        let frozen = seen.container.is_some_and(|container| container.state == ContainerState::Frozen);
        if !frozen {
            self.memory().thawed.insert(pod);
        }
        frozen
    }

    /// A defect must not stop the other pods; this one is looked at again later.
    pub(super) fn after_panic(&self, pod: PodId) -> Passed {
        tracing::error!(%pod, "a pass panicked");
        Passed::Wait(self.after(RETRY_MAX))
    }

    /// Carries out the next step; while the pod rests after a failure, only one that does not wait for that.
    async fn step(&self, pod: Pod, rests: bool) -> Result<Passed, StepError> {
        let not_before = pod.retry.not_before;
        let looked = self.look(pod).await;
        if rests && looked.is_err() {
            // What waits for the end of a rest does not make it longer.
            return Ok(Passed::Wait(not_before));
        }
        let mut view = looked?;
        let mut plan = self.plan(&view);
        if rests && !is_urgent(&plan.next) {
            return Ok(Passed::Wait(not_before));
        }
        if matches!(plan.next, Next::Settled { .. } | Next::Wait { .. }) && view.pod.retry != Retry::default() {
            // What failed was done all the same, or is no longer wanted: nothing is being retried.
            view.pod.retry = Retry::default();
            view.retry_cleared = true;
            plan = self.plan(&view);
        }
        match &plan.next {
            Next::Settled { wake } => {
                self.show(&mut view, &plan).await?;
                Ok(Passed::Wait(*wake))
            }
            Next::Wait { until } => {
                self.show(&mut view, &plan).await?;
                Ok(Passed::Wait(Some(*until)))
            }
            Next::Blocked(_) => {
                self.show(&mut view, &plan).await?;
                Ok(Passed::Wait(self.after(BLOCKED_EVERY)))
            }
            Next::Act(action) => {
                let Ok(_seat) = self.seat(&view, action) else {
                    return Ok(Passed::Wait(self.after(SEAT_AGAIN)));
                };
                let Some(lease) = self.lease(view.pod.id).await? else {
                    return Ok(Passed::Wait(self.after(LEASE)));
                };
                view.lease = Some(lease);
                self.show(&mut view, &plan).await?;
                let (id, action) = (view.pod.id, action.clone());
                // On the heap: a pass that finds nothing to do has no use for its room.
                let executed = Box::pin(self.execute(view, action));
                self.with_lease_kept(id, executed).await?;
                Ok(Passed::Again)
            }
        }
    }

    /// Observes the pod and fetches what its plan may look at.
    pub(super) async fn look(&self, pod: Pod) -> Result<View, StepError> {
        let snapshots = self.store.snapshots_fetch(&plan::referenced_snapshots(&pod)).await?;
        self.look_with(pod, snapshots).await
    }

    /// Observes the pod; its plan may look at these snapshots.
    pub(super) async fn look_with(&self, pod: Pod, snapshots: Vec<Snapshot>) -> Result<View, StepError> {
        let mut observed = self.engine.observe(pod.id, &set_specs(&pod)).await?;
        let quiet: Vec<SetSpec> = quiet_sets(&pod, &observed).map(|s| set_spec(&pod, s)).collect();
        if !quiet.is_empty() {
            observed.foreign.extend(self.engine.lingering(&quiet).await?);
        }
        self.note_health(&pod, &observed);
        let layer_hidden = self.hides_layers(pod.spec.runtime.as_deref()).await?;
        Ok(View { pod, observed, snapshots, lease: None, retry_cleared: false, layer_hidden })
    }

    /// Whether the runtime hides changes outside volumes.
    pub(super) async fn hides_layers(&self, runtime: Option<&str>) -> Result<bool, StepError> {
        // Known without asking anybody: the engine probed its runtimes when it was connected.
        let capabilities = self.engine.capabilities().await?;
        Ok(capabilities.runtime(runtime).is_some_and(|r| !r.root_changes))
    }

    pub(super) fn plan(&self, view: &View) -> Plan {
        let memory = self.memory();
        let live_passed: Vec<SnapshotId> = memory.live.keys().copied().collect();
        plan::plan(Input {
            pod: &view.pod,
            observed: &view.observed,
            snapshots: &view.snapshots,
            live_passed: &live_passed,
            layer_checked: memory.layers.get(&view.pod.id).copied(),
            layer_hidden: view.layer_hidden,
            policy: &self.settings.policy,
            now: self.clock.now(),
        })
    }

    /// Writes phase and conditions when they changed; they are a cache for people.
    async fn show(&self, view: &mut View, plan: &Plan) -> Result<(), StepError> {
        let mut pod = view.pod.clone();
        let now = self.now();
        let mut changed = apply_status(&mut pod, plan, now);
        if matches!(plan.next, Next::Settled { .. }) && self.should_record_seen(&pod, view) {
            record::apply(&mut pod, &Record::DataSeen, now);
            changed = true;
        }
        // The retry counter was cleared in memory; its condition goes with it.
        changed |= view.retry_cleared;
        if changed {
            let change = Change { pod: Some(pod.clone()), lease: view.lease.clone(), ..Change::default() };
            self.store.commit(change).await?;
            pod.version += 1;
            view.pod = pod;
        }
        Ok(())
    }

    pub(super) fn should_record_seen(&self, pod: &Pod, view: &View) -> bool {
        let whole = |s: &VolumeSet| {
            view.observed.set(s.number).is_some_and(|o| o.presence == perennial_core::engine::Presence::Whole)
        };
        seen_due(pod).is_some_and(|due| due <= self.now()) && pod.current_set().is_some_and(whole)
    }

    pub(super) fn after(&self, delay: SignedDuration) -> Option<Timestamp> {
        self.now().checked_add(delay).ok()
    }
}

/// When it is next recorded that the pod's data was seen; `None` while the host holds none that a writer may have changed.
pub(super) fn seen_due(pod: &Pod) -> Option<Timestamp> {
    pod.current_set().filter(|set| set.attached.is_some())?;
    let next = |at: Timestamp| at.checked_add(SEEN_EVERY).unwrap_or(Timestamp::MAX);
    Some(pod.data_seen_at.map_or(Timestamp::MIN, next))
}

/// Whether an owed hook has to be run that nobody tried yet: it does not wait for what failed before, if that is the next step.
pub(super) fn has_untried_hook(pod: &Pod) -> bool {
    pod.hook.as_ref().is_some_and(|owed| owed.tries == 0)
}

/// Whether a step ends what the pod itself waits for: it is taken although something failed before.
pub(super) const fn is_urgent(next: &Next) -> bool {
    matches!(next, Next::Act(Action::RunHook { .. } | Action::Unfreeze { .. }))
}

/// The operation that is being worked on.
pub(super) fn current_operation(pod: &Pod) -> Option<OperationId> {
    let task = pod.tasks.first();
    match (&pod.goal, task) {
        (_, Some(task)) if matches!(task.work, Work::Replace { .. } | Work::Purge { .. }) => Some(task.operation),
        (Some(goal), _) => Some(goal.operation),
        (None, task) => task.map(|t| t.operation),
    }
}

/// The sets that ran, on which no container runs, and of which something is wanted: nobody may have them mounted, seen by
/// the engine or not.
pub(super) fn quiet_sets<'a>(pod: &'a Pod, observed: &ObservedPod) -> impl Iterator<Item = &'a VolumeSet> {
    let live = observed.container.as_ref().is_some_and(perennial_core::engine::ObservedContainer::is_live);
    let wanted = pod.goal.is_some() || !pod.tasks.is_empty() || pod.desired != Desired::Paused;
    let ran = |s: &&VolumeSet| s.attached.is_some() && s.state != SetState::Quarantined;
    pod.sets.iter().filter(ran).filter(move |_| wanted && !live)
}

/// All sets of the pod as the engine has to know them.
pub(super) fn set_specs(pod: &Pod) -> Vec<SetSpec> {
    pod.sets.iter().map(|set| set_spec(pod, set)).collect()
}

/// The set as the engine has to know it.
pub(crate) fn set_spec(pod: &Pod, set: &VolumeSet) -> SetSpec {
    SetSpec {
        pod: pod.id,
        tenant: pod.tenant.clone(),
        number: set.number,
        backend: set.backend,
        image: pod.image.as_ref().map(|i| i.id.clone()).unwrap_or_default(),
        volumes: set.volumes.clone(),
    }
}

/// The finding with its time, which stays while kind and reason do.
pub(super) fn condition(pod: &Pod, found: &Finding, now: Timestamp) -> Condition {
    let same = pod.conditions.iter().find(|c| c.kind == found.kind && c.reason == found.reason);
    Condition {
        kind: found.kind,
        reason: found.reason.to_owned(),
        message: found.message.clone(),
        since: same.map_or(now, |c| c.since),
    }
}

/// Takes phase and conditions over; reports whether anything people see has changed.
pub(super) fn apply_status(pod: &mut Pod, plan: &Plan, now: Timestamp) -> bool {
    let conditions: Vec<Condition> = plan.conditions.iter().map(|found| condition(pod, found, now)).collect();
    let changed = pod.phase != plan.phase || pod.conditions != conditions;
    if changed {
        pod.phase = plan.phase;
        pod.conditions = conditions;
        pod.updated_at = now;
    }
    changed
}

/// What an action is called while it is being done.
pub(super) const fn step_name(action: &Action) -> &'static str {
    match action {
        Action::PinImage => "resolve image",
        Action::AllocateSet { .. } => "plan volumes",
        Action::FillSet { .. } => "fill volumes",
        Action::MakeContainer { .. } => "create container",
        Action::Launch { .. } => "start container",
        Action::LimitSet { .. } => "limit volumes",
        Action::LimitContainer { .. } => "change limits",
        Action::Stop { .. } => "stop container",
        Action::Unfreeze { .. } => "unfreeze container",
        Action::RunHook { .. } => "run the hook that is owed",
        Action::LivePass { .. } => "live pass",
        Action::Capture { .. } => "final pass",
        Action::Import { .. } => "take the archive in",
        Action::Verify { .. } => "verify",
        Action::CaptureLayer { .. } => "capture system layer",
        Action::RemoveContainer { .. } => "remove container",
        Action::DeleteSet { .. } => "delete volumes",
        Action::BeginCapture { .. } => "begin capture",
        Action::BeginCompose { .. } => "begin composition",
        Action::Compose { .. } => "compose snapshot",
        Action::Record(_) => "record",
        Action::PurgeEverything { .. } => "purge snapshots",
    }
}

pub(super) fn unknown_set() -> StepError {
    StepError::Retry(problem("set-unknown", "the plan names a set that is not recorded", ""))
}
