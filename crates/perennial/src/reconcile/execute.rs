//! Carries out one action of the plan. Every step may be repeated from its beginning.

use perennial_core::engine::{ContainerSpec, ContainerState, Effect, EngineError, ObservedContainer};
use perennial_core::id::SnapshotId;
use perennial_core::permit::DeletePermit;
use perennial_core::plan::{Action, Next};
use perennial_core::pod::{PinnedImage, ReadyContainer, RefusedLimits, Work};
use perennial_core::progress::Progress;
use perennial_core::record::Record;
use perennial_core::snapshot::{Snapshot, SnapshotKind};
use perennial_core::spec::{Backend, Resources};
use perennial_core::volume::{self, Origin, SetNumber, SetState, VolumeSet};

use super::step::{StepError, definite, problem, retry};
use super::worker::{Reconciler, View, current_operation, set_spec, step_name, unknown_set};
use crate::store::Change;

impl Reconciler {
    pub(super) async fn execute(&self, mut view: View, action: Action) -> Result<(), StepError> {
        let operation = current_operation(&view.pod);
        let progress = match &action {
            // Written in no time: people go on seeing the step before.
            Action::Record(_) => Progress::default(),
            _ => self.board.begin(operation, step_name(&action)),
        };
        tracing::debug!(pod = %view.pod.id, ?action, "step");
        match action {
            Action::Record(fact) => self.record(&mut view, fact).await,
            Action::PinImage => self.pin_image(&mut view, &progress).await,
            Action::AllocateSet { origin } => self.allocate_set(&mut view, origin).await,
            Action::FillSet { set } => self.fill_set(&mut view, set, &progress).await,
            Action::MakeContainer { set } => self.make_container(&mut view, set, &progress).await,
            Action::Launch { container, set } => self.launch(&mut view, &container, set).await,
            Action::LimitSet { set, bytes } => {
                let recorded = view.pod.set(set).ok_or_else(unknown_set)?;
                self.engine.set_limit(&set_spec(&view.pod, recorded), bytes).await?;
                Ok(())
            }
            Action::LimitContainer { container, limits } => self.limit_container(&mut view, &container, limits).await,
            Action::Stop { container } => {
                let stamp = view.observed.container.as_ref().map(ObservedContainer::stamp);
                self.engine.container_stop(&container, view.pod.spec.stop_timeout).await?;
                if let Some(seen) = &mut view.observed.container {
                    // The call returns once it has ended.
                    seen.state = ContainerState::Exited { code: None, oom: false };
                }
                match stamp {
                    Some(stamp) => self.record(&mut view, Record::StoppedRun(stamp)).await,
                    None => Ok(()),
                }
            }
            Action::Unfreeze { container } => {
                self.engine.container_unfreeze(&container).await?;
                Ok(())
            }
            Action::Import { snapshot } => self.import(&mut view, snapshot, &progress).await,
            Action::RunHook { container } => self.run_hook(&mut view, &container).await,
            Action::LivePass { snapshot, set } => self.live_pass(&view, snapshot, set, &progress).await,
            Action::Capture { snapshot, set, grade, accepted } => {
                self.capture(&mut view, (snapshot, set), grade, &accepted, &progress).await
            }
            Action::Verify { snapshot } => self.verify(&mut view, snapshot, &progress).await,
            Action::CaptureLayer { container } => self.capture_layer(&mut view, &container, &progress).await,
            Action::RemoveContainer { container, permit } => self.remove_container(view, &container, permit).await,
            Action::DeleteSet { set, permit } => self.delete_set(view, set, permit).await,
            Action::BeginCapture { kind } => self.begin_capture(&mut view, kind).await,
            Action::BeginCompose { base } => self.begin_compose(&mut view, base).await,
            Action::Compose { snapshot, recipe } => self.compose(&mut view, snapshot, recipe, &progress).await,
            Action::PurgeEverything { permit } => self.purge_everything(&view, &permit, &progress).await,
        }
    }

    async fn limit_container(&self, view: &mut View, container: &str, limits: Resources) -> Result<(), StepError> {
        if view.pod.container.as_ref().is_some_and(|ready| ready.limits.is_some()) {
            self.record(view, Record::Limiting).await?;
        }
        let live = view.observed.container.as_ref().is_some_and(ObservedContainer::is_live);
        let refused = |problem, anew| {
            Record::LimitsRefused(RefusedLimits { wanted: limits, problem, at: self.now(), live, anew })
        };
        let fact = match self.engine.container_limit(container, &limits).await {
            Ok(effect) => Record::Limited { limits, changed: effect != Effect::Unchanged },
            Err(EngineError::Conflict { problem }) => refused(problem, true),
            Err(EngineError::Rejected { problem }) => refused(problem, false),
            Err(other) => return Err(other.into()),
        };
        self.record(view, fact).await
    }

    async fn pin_image(&self, view: &mut View, progress: &Progress) -> Result<(), StepError> {
        let reference = view.pod.spec.image.clone();
        self.check_runtime(view).await?;
        let image = match self.engine.image_resolve(&reference).await? {
            Some(image) => image,
            None => {
                self.engine.image_pull(&reference, progress).await.map_err(|e| pull_failed(&reference, e))?;
                self.engine.image_resolve(&reference).await?.ok_or_else(|| image_missing(&reference))?
            }
        };
        self.record(view, Record::ImagePinned(image)).await
    }

    async fn check_runtime(&self, view: &View) -> Result<(), StepError> {
        let capabilities = self.engine.capabilities().await?;
        let asked = view.pod.spec.runtime.as_deref();
        if capabilities.runtime(asked).is_some() {
            return Ok(());
        }
        let known: Vec<&str> = capabilities.runtimes.iter().map(|r| r.name.as_str()).collect();
        Err(definite(
            "runtime-unknown",
            format!("the engine offers no runtime {}", asked.unwrap_or(&capabilities.default_runtime)),
            &format!("use one of: {}", known.join(", ")),
        ))
    }

    async fn allocate_set(&self, view: &mut View, origin: Origin) -> Result<(), StepError> {
        self.check_runtime(view).await?;
        let capabilities = self.engine.capabilities().await?;
        let spec = &view.pod.spec;
        let backend = capabilities
            .runtime(spec.runtime.as_deref())
            .and_then(|runtime| capabilities.backend(spec.backend, runtime))
            .ok_or_else(|| {
                let asked = spec.backend.map_or("any", Backend::as_str);
                definite(
                    "backend-unavailable",
                    format!(
                        "volume backend {asked} does not work with this engine and runtime: {}",
                        capabilities.notes.join("; ")
                    ),
                    "choose another backend or runtime; perennial doctor tells what works",
                )
            })?;
        let image = view.pod.image.as_ref().ok_or_else(|| retry("image-unpinned", "the image is not pinned"))?;
        let set = VolumeSet {
            number: view.pod.last_set + 1,
            backend,
            origin,
            state: SetState::Preparing,
            attached: None,
            marked: None,
            proof: None,
            volumes: volume::layout(&spec.profile, backend, &image.layout),
        };
        self.record(view, Record::SetAllocated(set)).await
    }

    async fn make_container(&self, view: &mut View, set: SetNumber, progress: &Progress) -> Result<(), StepError> {
        self.ensure_image(view, progress).await?;
        let (id, _) = self.engine.container_ensure(&container_spec(view, set)?).await?;
        self.put_layer_back(view, &id, progress).await?;
        let ready = ReadyContainer {
            id,
            set,
            spec_generation: view.pod.spec_generation,
            limits: Some(view.pod.spec.resources.of_container()),
            refused: None,
        };
        self.record(view, Record::ContainerReady(ready)).await
    }

    /// Commits that a writer is about to exist, then starts it (D29).
    async fn launch(&self, view: &mut View, container: &str, set: SetNumber) -> Result<(), StepError> {
        let before = view.pod.set(set).ok_or_else(unknown_set)?.clone();
        self.record(view, Record::Attached { set }).await?;
        let attached = view.pod.set(set).ok_or_else(unknown_set)?;
        let spec = set_spec(&view.pod, attached);
        let generation = view.pod.data_generation;
        let mut started = self.engine.container_start(container, &spec, generation).await;
        if let Err(EngineError::Conflict { problem }) = &started {
            // Definitions of volumes are derived: what somebody removed is made again.
            tracing::info!(pod = %view.pod.id, problem, "start again after a look at the container's volumes");
            self.engine.container_ensure(&container_spec(view, set)?).await?;
            started = self.engine.container_start(container, &spec, generation).await;
        }
        if let Err(error) = started {
            // A refused start of a set that never ran leaves it as it was: nobody wrote.
            if matches!(error, EngineError::Rejected { .. }) && before.attached.is_none() {
                let looked = self.look(view.pod.clone()).await?;
                if looked.observed.container.as_ref().is_some_and(|c| c.started_at.is_none()) {
                    *view = View { lease: view.lease.clone(), ..looked };
                    self.record(view, Record::LaunchRefused { set, origin: before.origin }).await?;
                }
            }
            return Err(error.into());
        }
        let looked = self.look(view.pod.clone()).await?;
        *view = View { lease: view.lease.clone(), ..looked };
        self.record(view, Record::Started { set }).await
    }

    async fn begin_capture(&self, view: &mut View, kind: SnapshotKind) -> Result<(), StepError> {
        let now = self.now();
        let millis = u64::try_from(now.as_millisecond()).unwrap_or_default();
        let id = SnapshotId::from_parts(millis, self.ids.random());
        let row = Snapshot::pending(id, view.pod.id, view.pod.tenant.clone(), kind, now);
        let opening = self.repositories.opening();
        self.memory().began.insert(id, opening);
        let fact = if kind == SnapshotKind::Final {
            Record::ReleaseCaptureBegun(row)
        } else {
            Record::SafetyCaptureBegun(row)
        };
        self.record(view, fact).await
    }

    // ---- deletions ---------------------------------------------------------------------------------------------

    /// Commits the intent, then looks and decides again: only a plan that still says the same deletes.
    ///
    /// The commit fences out every other server and everybody who changed the pod meanwhile; the fresh look finds a
    /// writer that came up since.
    async fn confirm(&self, view: View, action: &Action, permit: &DeletePermit) -> Result<View, StepError> {
        let lease = view.lease.clone();
        let what = match action {
            Action::DeleteSet { set, .. } => format!("deleting the volumes of set {set}"),
            _ => "removing the container".to_owned(),
        };
        let operation = current_operation(&view.pod);
        let event = self.event(&view.pod, operation, "pod.deleting", format!("{what}: {permit}"));
        tracing::info!(pod = %view.pod.id, ground = %permit, "{what}");
        let mut pod = view.pod;
        let change = Change { pod: Some(pod.clone()), lease: lease.clone(), events: vec![event], ..Change::default() };
        self.store.commit(change).await?;
        pod.version += 1;
        let looked = self.look(pod).await?;
        let again = self.plan(&looked).next;
        if again == Next::Act(action.clone()) { Ok(View { lease, ..looked }) } else { Err(StepError::Overtaken) }
    }

    async fn remove_container(&self, view: View, container: &str, permit: DeletePermit) -> Result<(), StepError> {
        let action = Action::RemoveContainer { container: container.to_owned(), permit: permit.clone() };
        let mut view = self.confirm(view, &action, &permit).await?;
        self.engine.container_remove(container, &permit).await?;
        if let Some(container) = &view.observed.container {
            // It is gone: what follows must not see it.
            debug_assert!(permit.covers_container(&container.id));
            view.observed.container = None;
        }
        self.record(&mut view, Record::ContainerGone).await
    }

    async fn delete_set(&self, view: View, set: SetNumber, permit: DeletePermit) -> Result<(), StepError> {
        let action = Action::DeleteSet { set, permit: permit.clone() };
        let mut view = self.confirm(view, &action, &permit).await?;
        let recorded = view.pod.set(set).ok_or_else(unknown_set)?;
        self.engine.set_delete(&set_spec(&view.pod, recorded), &permit).await?;
        self.record(&mut view, Record::SetGone(set)).await
    }

    async fn purge_everything(&self, view: &View, permit: &DeletePermit, progress: &Progress) -> Result<(), StepError> {
        if !permit.covers_snapshots(view.pod.id) {
            return Err(StepError::Definite(problem("purge-denied", "the permit is for another pod", "")));
        }
        self.forget_everything(view, progress).await?;
        let now = self.now();
        let mut change = Change { pod_gone: Some(view.pod.id), lease: view.lease.clone(), ..Change::default() };
        change.snapshots_gone = self.all_snapshots(view).await?;
        let operation = current_operation(&view.pod);
        let waiting = view.pod.tasks.iter().map(|t| t.operation).chain(view.pod.goal.iter().map(|g| g.operation));
        for id in waiting {
            if let Some(mut row) = self.store.operation_fetch(id).await? {
                use perennial_core::operation::OperationState;
                row.state = if Some(id) == operation { OperationState::Succeeded } else { OperationState::Cancelled };
                row.error = None;
                row.finished_at = Some(now);
                change.events.push(self.news(&view.pod, &row));
                change.operations.push(row);
            }
        }
        let actor = match view.pod.tasks.first().map(|t| &t.work) {
            Some(Work::Purge { actor, .. }) => actor.clone(),
            _ => "system".to_owned(),
        };
        let mut event = self.event(
            &view.pod,
            operation,
            "pod.purged",
            format!("everything of pod {} was destroyed", view.pod.name),
        );
        event.actor = actor;
        change.events.push(event);
        self.store.commit(change).await?;
        if let Some(operation) = operation {
            self.board.end(operation);
        }
        Ok(())
    }

    pub(super) fn pinned<'a>(&self, view: &'a View) -> Result<&'a PinnedImage, StepError> {
        view.pod.image.as_ref().ok_or_else(|| retry("image-unpinned", "the image is not pinned"))
    }
}

/// The container as the engine has to make it.
fn container_spec(view: &View, set: SetNumber) -> Result<ContainerSpec, StepError> {
    let recorded = view.pod.set(set).ok_or_else(unknown_set)?;
    Ok(ContainerSpec {
        pod: view.pod.id,
        tenant: view.pod.tenant.clone(),
        name: view.pod.name.clone(),
        set: set_spec(&view.pod, recorded),
        spec: view.pod.spec.clone(),
        spec_generation: view.pod.spec_generation,
    })
}

fn image_missing(reference: &str) -> StepError {
    definite(
        "image-not-found",
        format!("image {reference} does not exist"),
        "check the name, or import it into the engine",
    )
}

fn pull_failed(reference: &str, error: EngineError) -> StepError {
    match error {
        EngineError::NotFound { .. } => image_missing(reference),
        EngineError::Rejected { problem } => definite(
            "image-not-found",
            format!("image {reference} could not be pulled: {problem}"),
            "check the name and the access to its registry, or import it into the engine",
        ),
        EngineError::Transient { problem } => retry(
            "image-pull-failed",
            format!("image {reference} is not on the engine, and pulling it failed: {problem}"),
        ),
        other => other.into(),
    }
}
