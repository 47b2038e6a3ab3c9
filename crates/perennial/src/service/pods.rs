//! The verbs of a pod.

use std::collections::{BTreeMap, HashSet};

use jiff::Timestamp;
use perennial_core::Error;
use perennial_core::engine::{Capabilities, EngineError, Owned};
use perennial_core::id::{OperationId, PodId, SnapshotId};
use perennial_core::operation::{NewEvent, Operation, OperationKind, OperationState};
use perennial_core::permit::window_ended;
use perennial_core::planned::{PlanPath, SecretText};
use perennial_core::pod::{Acceptance, Desired, Pod};
use perennial_core::progress::ProgressReading;
use perennial_core::snapshot::Snapshot;
use perennial_core::spec::{PodName, PodSpec, TenantId};
use perennial_core::subscription::SubscriptionState;
use perennial_core::verbs::{self, Order};
use perennial_core::volume::Origin;

use super::act::{Outcome, Request, requested};
use super::{App, Caller};
use crate::reconcile::worker::set_spec;
use crate::store::{Change, StoreError};

/// Most paths an owner can accept the loss of in one request.
const LOSSES_MAX: usize = 1000;
/// How often a change is tried again because the pod changed meanwhile.
const ATTEMPTS: usize = 8;

/// A new pod, as the API understood it.
#[derive(Debug, Clone)]
pub struct CreateRequest {
    /// Its name.
    pub name: PodName,
    /// Whose; `None`: the caller's own tenant.
    pub tenant: Option<TenantId>,
    /// The plan it is made of.
    pub plan: Option<PlanPath>,
    /// The snapshot its data comes from; `None`: the image.
    pub from_snapshot: Option<SnapshotId>,
}

/// What a destructive request says beyond its verb.
#[derive(Debug, Clone, Default)]
pub struct Consent {
    /// The pod's name, typed by a person.
    pub confirm: Option<String>,
    /// Exactly the paths whose loss is accepted (D34).
    pub accept_loss: Option<Vec<String>>,
}

impl Consent {
    /// Checks the confirmation where it is needed.
    pub(super) fn check(&self, pod: &Pod, needed: Confirmation) -> Result<(), Error> {
        let needed = needed == Confirmation::Always || self.accept_loss.is_some();
        match &self.confirm {
            Some(name) if name == pod.name.as_str() => Ok(()),
            None if !needed => Ok(()),
            _ => Err(Error::invalid(
                "confirm",
                "is not the pod's name",
                format!("repeat the name to confirm: {:?}", pod.name.as_str()),
            )),
        }
    }

    fn acceptance(&self, actor: &str) -> Result<Option<Acceptance>, Error> {
        let Some(paths) = &self.accept_loss else { return Ok(None) };
        let good = |path: &String| path.starts_with('/') && path.len() <= 4096 && !path.contains('\0');
        if paths.is_empty() || paths.len() > LOSSES_MAX || !paths.iter().all(good) {
            return Err(Error::invalid(
                "acceptLoss",
                format!("is not a list of 1 to {LOSSES_MAX} paths of the snapshot"),
                "copy the paths from the failed operation, such as /volumes/home/broken",
            ));
        }
        Ok(Some(Acceptance { paths: paths.clone(), actor: actor.to_owned() }))
    }
}

/// Whether a verb needs the pod's name even when no loss is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Confirmation {
    Always,
    WithLosses,
}

/// What a plan brought may only be changed by whoever may change plans.
fn keep_to_plan(caller: &Caller, before: &PodSpec, after: &PodSpec) -> Result<(), Error> {
    match &before.plan {
        Some(plan) if !caller.rights.is_platform() => plan.check(before, after),
        _ => Ok(()),
    }
}

impl App {
    /// Makes a pod and starts it. `spec` gets the specification to start from: the plan's, the snapshot's pod's, or defaults.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] naming the field, [`Error::Conflict`] for a taken name; nothing is created then.
    pub async fn create(
        &self,
        request: Request<'_>,
        create: CreateRequest,
        spec: impl Fn(Option<&PodSpec>) -> Result<PodSpec, Error>,
    ) -> Result<Outcome, Error> {
        let (change, outcome) = self.creation(request.caller, create, spec).await?;
        Ok(self.write(request, change, outcome).await?)
    }

    /// What makes a pod and starts it, to be committed.
    pub(super) async fn creation(
        &self,
        caller: &Caller,
        create: CreateRequest,
        spec: impl Fn(Option<&PodSpec>) -> Result<PodSpec, Error>,
    ) -> Result<(Change, Outcome), Error> {
        let tenant = self.own_tenant(caller, create.tenant)?;
        if create.plan.is_some() && create.from_snapshot.is_some() {
            let problem = "comes with the snapshot's pod";
            return Err(Error::invalid("plan", problem, "leave it out, or leave out fromSnapshot (--from-snapshot)"));
        }
        let planned = match &create.plan {
            Some(path) => Some(self.planned(caller, path).await?),
            None => None,
        };
        let source = match create.from_snapshot {
            Some(id) => Some(self.source(caller, &tenant, id).await?),
            None => None,
        };
        let base = planned.as_ref().or(source.as_ref().map(|(_, pod)| &pod.spec));
        let spec = spec(base)?;
        if let Some(base) = base {
            keep_to_plan(caller, base, &spec)?;
        }
        spec.validate()?;
        self.refuse_erased(&tenant).await?;
        let made = self.tenant_made(caller, &tenant).await?;
        self.check_engine(&spec).await?;
        if source.is_none() {
            self.check_image(&spec.image).await?;
        }
        let now = self.now();
        let id = self.operation_id();
        let mut pod = Pod::new(self.pod_id(), tenant, create.name, spec, id, now);
        let mut operation = operation(&pod, id, OperationKind::Create, caller, now);
        if let Some((snapshot, origin)) = source {
            let fits = pod.spec.image == origin.spec.image && pod.spec.profile == origin.spec.profile;
            if !fits {
                return Err(Error::invalid(
                    "fromSnapshot",
                    "the snapshot is of another image or other volumes",
                    "leave out image and volumes: they come with the snapshot",
                ));
            }
            pod.source = Some(Origin::Snapshot(snapshot.id));
            pod.image = origin.image;
            operation.snapshot = Some(snapshot.id);
        }
        let change = Change {
            bounded: Some(pod.tenant.clone()),
            pod: Some(pod.clone()),
            uses: operation.snapshot.into_iter().collect(),
            operations: vec![operation.clone()],
            events: made.into_iter().chain([requested(&operation)]).collect(),
            ..Change::default()
        };
        let stored = Pod { version: 1, ..pod };
        Ok((change, Outcome { pod: stored, latest: None, operation, snapshot: None }))
    }

    /// The tenant of something new: the one that is named, or the caller's own.
    pub(super) fn own_tenant(&self, caller: &Caller, named: Option<TenantId>) -> Result<TenantId, Error> {
        let tenant = match named {
            Some(tenant) => tenant,
            None => caller.home()?,
        };
        if caller.may_see(&tenant) { Ok(tenant) } else { Err(Error::not_found(format!("tenant {tenant}"))) }
    }

    /// Reads what was made for a pod alone; that it was read is in the trail before it is answered.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such pod, or the caller may not know of it.
    pub async fn pod_secrets(&self, caller: &Caller, id: PodId) -> Result<BTreeMap<String, SecretText>, Error> {
        let (pod, _) = self.pod(caller, id).await?;
        if !pod.spec.secrets.is_empty() {
            let names: Vec<&str> = pod.spec.secrets.keys().map(String::as_str).collect();
            let event = NewEvent {
                at: self.now(),
                actor: caller.actor.clone(),
                tenant: pod.tenant.clone(),
                pod: Some(id),
                operation: None,
                kind: "pod.secrets-read".to_owned(),
                message: format!("secrets {} were read", names.join(", ")),
            };
            self.commit_for(caller, Change { events: vec![event], ..Change::default() }).await?;
        }
        Ok(pod.spec.secrets)
    }

    async fn source(&self, caller: &Caller, tenant: &TenantId, id: SnapshotId) -> Result<(Snapshot, Pod), Error> {
        let snapshot = self.snapshot(caller, id).await?;
        if snapshot.tenant != *tenant {
            return Err(Error::not_found(format!("snapshot {id}")));
        }
        if !snapshot.is_restorable() {
            return Err(verbs::not_restorable(&snapshot));
        }
        self.refuse_deleting(id).await?;
        self.refuse_lapsed(caller, snapshot.pod).await?;
        let pod = self.store.pod_fetch(snapshot.pod).await?;
        let pod = pod.ok_or_else(|| Error::not_found(format!("pod {}", snapshot.pod)))?;
        Ok((snapshot, pod))
    }

    /// Checks what only the engine knows; an engine that does not answer is asked again by the reconciler.
    pub(super) async fn check_engine(&self, spec: &PodSpec) -> Result<(), Error> {
        let allowed = &self.settings.runtimes;
        if let Some(runtime) = &spec.runtime
            && !allowed.is_empty()
            && !allowed.contains(runtime)
        {
            return Err(unknown_runtime(runtime, allowed));
        }
        match self.engine.capabilities().await {
            Ok(capabilities) => check_capabilities(spec, &capabilities),
            Err(error) => {
                tracing::warn!(%error, "ask the engine for its capabilities");
                Ok(())
            }
        }
    }

    /// Refuses an image that is nowhere. A registry that does not answer is asked again when the image is pulled.
    async fn check_image(&self, image: &str) -> Result<(), Error> {
        match self.engine.image_offered(image).await {
            Ok(()) => Ok(()),
            Err(EngineError::NotFound { what: problem } | EngineError::Rejected { problem }) => Err(Error::invalid(
                "image",
                format!("there is no {image}, neither on the engine nor in a registry that gives it out ({problem})"),
                "check the name and the access to its registry, or import it into the engine",
            )),
            Err(error) => {
                tracing::warn!(%error, image, "ask for the image");
                Ok(())
            }
        }
    }

    /// Starts a pod.
    ///
    /// # Errors
    /// See [`verbs::start`].
    pub async fn start(&self, request: Request<'_>, pod: PodId) -> Result<Outcome, Error> {
        self.act(request, pod, verbs::start).await
    }

    /// Pauses a pod.
    ///
    /// # Errors
    /// See [`verbs::pause`].
    pub async fn pause(&self, request: Request<'_>, pod: PodId) -> Result<Outcome, Error> {
        self.act(request, pod, verbs::pause).await
    }

    /// Restarts a pod.
    ///
    /// # Errors
    /// See [`verbs::restart`].
    pub async fn restart(&self, request: Request<'_>, pod: PodId) -> Result<Outcome, Error> {
        self.act(request, pod, verbs::restart).await
    }

    /// Stops a pod.
    ///
    /// # Errors
    /// See [`verbs::stop`].
    pub async fn stop(&self, request: Request<'_>, pod: PodId, consent: &Consent) -> Result<Outcome, Error> {
        self.consented(request, pod, (consent, Confirmation::WithLosses), verbs::stop).await
    }

    /// Archives a pod.
    ///
    /// # Errors
    /// See [`verbs::archive`].
    pub async fn archive(&self, request: Request<'_>, pod: PodId, consent: &Consent) -> Result<Outcome, Error> {
        self.consented(request, pod, (consent, Confirmation::WithLosses), verbs::archive).await
    }

    /// Deletes a pod; it can be brought back until the undelete window ends.
    ///
    /// # Errors
    /// See [`verbs::delete`].
    pub async fn delete(&self, request: Request<'_>, pod: PodId, consent: &Consent) -> Result<Outcome, Error> {
        let window = self.settings.undelete_window;
        self.consented(request, pod, (consent, Confirmation::WithLosses), |pod, accepted, order| {
            verbs::delete(pod, window, accepted, order)
        })
        .await
    }

    /// The same, and the pod's name has to be repeated: for somebody else's pod.
    ///
    /// # Errors
    /// As [`App::delete`] says; [`Error::InvalidInput`] without the confirmation.
    pub async fn delete_confirmed(
        &self,
        request: Request<'_>,
        pod: PodId,
        consent: &Consent,
    ) -> Result<Outcome, Error> {
        let window = self.settings.undelete_window;
        self.consented(request, pod, (consent, Confirmation::Always), |pod, accepted, order| {
            verbs::delete(pod, window, accepted, order)
        })
        .await
    }

    /// Brings an archived or deleted pod back to stopped.
    ///
    /// # Errors
    /// See [`verbs::undelete`]; [`Error::Conflict`] when the name is taken.
    pub async fn undelete(&self, request: Request<'_>, pod: PodId) -> Result<Outcome, Error> {
        self.act(request, pod, verbs::undelete).await
    }

    /// Replaces the data set by a fresh one.
    ///
    /// # Errors
    /// See [`verbs::reset`]; [`Error::InvalidInput`] without the confirmation.
    pub async fn reset(&self, request: Request<'_>, pod: PodId, consent: &Consent) -> Result<Outcome, Error> {
        self.consented(request, pod, (consent, Confirmation::Always), verbs::reset).await
    }

    /// Destroys a pod, its data and its snapshots.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] without the confirmation; [`Error::Conflict`] while another pod starts from one of its
    /// snapshots.
    pub async fn purge(&self, request: Request<'_>, pod: PodId, consent: &Consent) -> Result<Outcome, Error> {
        self.refuse_needed(request.caller, pod).await?;
        self.consented(request, pod, (consent, Confirmation::Always), |pod, _, order| verbs::purge(pod, order)).await
    }

    /// Destroys a pod whose undelete window has ended, which is the consent given when it was deleted. One that was brought back
    /// meanwhile stays.
    ///
    /// # Errors
    /// As [`App::purge`] says.
    pub(crate) async fn purge_ended(&self, pod: PodId, owned: &[Owned]) -> Result<(), Error> {
        let Some(record) = self.store.pod_fetch(pod).await? else { return Ok(()) };
        let Some(trash) = record.trash.as_ref().filter(|_| !verbs::is_being_purged(&record)) else { return Ok(()) };
        let caller = &Caller::server(trash.actor.clone());
        self.refuse_needed(caller, pod).await?;
        self.refuse_newer(&record, owned).await?;
        let done = self.act(Request::new(caller), pod, |pod, order| {
            let is_over = pod.trash.as_ref().is_some_and(|trash| window_ended(trash, order.now));
            if pod.desired == Desired::Deleted && is_over {
                return verbs::purge(pod, order);
            }
            Err(Error::conflict("pod-kept", "the pod was brought back, or its window has not ended", ""))
        });
        match done.await {
            Ok(_) | Err(Error::Conflict { code: "pod-kept", .. }) => Ok(()),
            Err(other) => Err(other),
        }
    }

    /// Refuses to destroy a pod of which the engine or its repository has what the database does not know: that was brought back from
    /// before (D15).
    async fn refuse_newer(&self, record: &Pod, owned: &[Owned]) -> Result<(), Error> {
        let unknown = |error: EngineError| Error::Unavailable { problem: format!("look at the pod's data: {error}") };
        let is_unknown = |one: &Owned| match one {
            Owned::Set { pod, number, backend } => {
                *pod == record.id && !record.sets.iter().any(|set| (set.number, set.backend) == (*number, *backend))
            }
            Owned::Container { .. } => false,
        };
        let sets: Vec<_> = record.sets.iter().map(|set| set_spec(record, set)).collect();
        let observed = self.engine.observe(record.id, &sets).await.map_err(unknown)?;
        let is_newer = observed.sets.iter().any(|set| set.generation.is_some_and(|seen| seen > record.data_generation));
        let problem = if is_newer || owned.iter().any(is_unknown) {
            "the engine has data of the pod that the database does not know: the database may be an old copy"
        } else if self.has_unknown_snapshots(record).await? {
            "the repository has snapshots of the pod that the database does not know: the database may be an old copy"
        } else {
            return Ok(());
        };
        let hint = "bring the newest database back; or purge the pod by name: perennial pod purge";
        Err(Error::conflict("database-older-than-data", problem, hint))
    }

    /// Whether the repository has a snapshot of the pod that the database knows nothing of.
    async fn has_unknown_snapshots(&self, record: &Pod) -> Result<bool, Error> {
        let known: HashSet<String> =
            self.all_snapshots(record.id).await?.into_iter().map(|row| format!("snapshot:{}", row.id)).collect();
        let tags = self.places.repositories.tags_of_pod(&record.tenant, record.id).await;
        let tags = tags.map_err(|problem| Error::Unavailable { problem: problem.message })?;
        Ok(tags.iter().any(|tag| tag.starts_with("snapshot:") && !known.contains(tag)))
    }

    /// Refuses to destroy a pod that others start from.
    async fn refuse_needed(&self, caller: &Caller, pod: PodId) -> Result<(), Error> {
        if let Some(other) = self.store.pod_ids_depending_on(pod).await?.first() {
            // Only who may know of the pod may know of what depends on it.
            self.pod(caller, pod).await?;
            return Err(Error::conflict(
                "snapshot-in-use",
                format!("pod {other} starts from a snapshot of this one"),
                "start that pod first, or delete it",
            ));
        }
        Ok(())
    }

    /// Refuses that somebody goes on with the data of a pod whose subscription has ended; looking at it is another matter.
    pub(super) async fn refuse_lapsed(&self, caller: &Caller, pod: PodId) -> Result<(), Error> {
        let found = if caller.rights.is_platform() { None } else { self.store.subscription_of(pod).await? };
        match found.filter(|found| found.standing.state != SubscriptionState::Active) {
            None => Ok(()),
            Some(_) => Err(Error::conflict(
                "subscription-ended",
                "the subscription that the data belongs to has ended",
                "renew it: perennial subscription renew; its snapshots can be read and downloaded meanwhile",
            )),
        }
    }

    pub(super) async fn consented(
        &self,
        request: Request<'_>,
        pod: PodId,
        (consent, needed): (&Consent, Confirmation),
        verb: impl Fn(&Pod, Option<Acceptance>, &Order) -> Result<verbs::Decision, Error>,
    ) -> Result<Outcome, Error> {
        let accepted = consent.acceptance(&request.caller.actor)?;
        self.act(request, pod, |pod, order| {
            consent.check(pod, needed)?;
            verb(pod, accepted.clone(), order)
        })
        .await
    }

    /// Changes a pod's specification; `version` is the one the caller saw, `None` when any will do.
    ///
    /// # Errors
    /// [`Error::Conflict`] with code `version-mismatch` when it changed since, else see [`verbs::patch`].
    pub async fn patch(
        &self,
        caller: &Caller,
        id: PodId,
        version: Option<i64>,
        change: impl Fn(&PodSpec) -> Result<PodSpec, Error>,
    ) -> Result<(Pod, Option<Snapshot>), Error> {
        for _ in 0..ATTEMPTS {
            let (pod, latest) = self.pod(caller, id).await?;
            if version.is_some_and(|v| v != pod.version) {
                return Err(Error::conflict(
                    "version-mismatch",
                    "the pod changed since it was read",
                    "read it again and repeat the change",
                ));
            }
            let spec = change(&pod.spec)?;
            keep_to_plan(caller, &pod.spec, &spec)?;
            let now = self.now();
            let Some(next) = verbs::patch(&pod, spec, now)? else { return Ok((pod, latest)) };
            self.check_engine(&next.spec).await?;
            let event = NewEvent {
                at: now,
                actor: caller.actor.clone(),
                tenant: next.tenant.clone(),
                pod: Some(next.id),
                operation: None,
                kind: "pod.updated".to_owned(),
                message: format!("specification changed to generation {}", next.spec_generation),
            };
            let bounded = Some(next.tenant.clone());
            let change = Change { pod: Some(next.clone()), bounded, events: vec![event], ..Change::default() };
            match self.commit_for(caller, change).await {
                Ok(()) => {
                    (self.waker)(id);
                    return Ok((Pod { version: next.version + 1, ..next }, latest));
                }
                Err(StoreError::Stale) => {}
                Err(other) => return Err(other.into()),
            }
        }
        Err(StoreError::Stale.into())
    }

    /// Cancels an operation that has not passed its point of no return.
    ///
    /// # Errors
    /// See [`verbs::cancel`].
    pub async fn cancel(&self, request: Request<'_>, id: OperationId) -> Result<Outcome, Error> {
        let caller = request.caller;
        for _ in 0..ATTEMPTS {
            let mut operation = self.operation(caller, id).await?;
            let (pod, latest) = self.pod(caller, operation.pod).await?;
            let now = self.now();
            // A drill is no work on the pod.
            let cancelled = match operation.kind {
                OperationKind::SnapshotDrill if !operation.state.is_terminal() => None,
                _ => Some(verbs::cancel(&pod, &operation, now)?),
            };
            operation.state = OperationState::Cancelled;
            operation.finished_at = Some(now);
            let (kind, message) = operation.news();
            let event = NewEvent {
                at: now,
                actor: caller.actor.clone(),
                tenant: pod.tenant.clone(),
                pod: Some(pod.id),
                operation: Some(id),
                kind: kind.to_owned(),
                message,
            };
            let mut change = Change { operations: vec![operation.clone()], events: vec![event], ..Change::default() };
            let stored = match cancelled {
                Some(cancelled) => {
                    change.moved_from = (pod.desired != cancelled.pod.desired).then_some(pod.desired);
                    change.pod = Some(cancelled.pod.clone());
                    change.snapshots = self.abandoned(&cancelled.dropped).await?;
                    Pod { version: cancelled.pod.version + 1, ..cancelled.pod }
                }
                None => pod,
            };
            let outcome = Outcome { pod: stored, latest, operation, snapshot: None };
            match self.write(request, change, outcome).await {
                Err(StoreError::Stale) => {}
                other => return Ok(other?),
            }
        }
        Err(StoreError::Stale.into())
    }
}

fn operation(pod: &Pod, id: OperationId, kind: OperationKind, caller: &Caller, now: Timestamp) -> Operation {
    Operation {
        id,
        tenant: pod.tenant.clone(),
        pod: pod.id,
        kind,
        state: OperationState::Pending,
        step: String::new(),
        progress: ProgressReading::default(),
        snapshot: None,
        error: None,
        actor: caller.actor.clone(),
        created_at: now,
        finished_at: None,
    }
}

fn unknown_runtime(runtime: &str, known: &[String]) -> Error {
    Error::invalid("runtime", format!("{runtime:?} is not offered"), format!("use one of {}", known.join(", ")))
}

fn check_capabilities(spec: &PodSpec, capabilities: &Capabilities) -> Result<(), Error> {
    let Some(runtime) = capabilities.runtime(spec.runtime.as_deref()) else {
        let known: Vec<String> = capabilities.runtimes.iter().map(|r| r.name.clone()).collect();
        return Err(unknown_runtime(spec.runtime.as_deref().unwrap_or(&capabilities.default_runtime), &known));
    };
    if let (Some(asked), Some(cpus)) = (spec.resources.nano_cpus, capabilities.cpus)
        && asked > u64::from(cpus) * 1_000_000_000
    {
        let problem = format!("is more than the {cpus} processors of the engine's host");
        return Err(Error::invalid("resources.cpus", problem, format!("use at most {cpus}")));
    }
    if capabilities.backend(spec.backend, runtime).is_none() {
        let backend = spec.backend.map_or("any", perennial_core::spec::Backend::as_str);
        return Err(Error::invalid(
            "backend",
            format!("{backend} does not work with runtime {:?} on this engine", runtime.name),
            "leave it out to take what works; perennial doctor says why",
        ));
    }
    Ok(())
}
