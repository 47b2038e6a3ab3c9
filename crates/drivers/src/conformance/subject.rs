//! A pod under test: its record, what the engine has to know of it, and permits that its record proves.

use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use perennial_core::engine::{
    ContainerSpec, Effect, Engine, Fill, ObservedContainer, ObservedPod, Presence, SetAccess, SetSpec, VolumePath,
};
use perennial_core::id::OperationId;
use perennial_core::permit::DeletePermit;
use perennial_core::pod::{LayerCapture, PinnedImage, Pod, Task, Work};
use perennial_core::spec::{PodName, PodSpec, TenantId};
use perennial_core::volume::{Origin, SetNumber, SetState, VolumeSet, layout};

use super::{Checked, Failure, Fixture, check};

/// Tries of something that another process has to do first.
const TRIES: u32 = 200;
/// Time between them.
const PAUSE: Duration = Duration::from_millis(50);

pub(super) struct Subject<'a> {
    pub fixture: &'a Fixture,
    pub pod: Pod,
    pub image: PinnedImage,
}

fn spec_of(pod: &Pod, image: &str, set: &VolumeSet) -> SetSpec {
    SetSpec {
        pod: pod.id,
        tenant: pod.tenant.clone(),
        number: set.number,
        backend: set.backend,
        image: image.to_owned(),
        volumes: set.volumes.clone(),
    }
}

/// What a pod's record says while its purge is in work.
pub(super) fn purge_task() -> Task {
    let operation = OperationId::from_parts(0, [0; 10]);
    Task { operation, work: Work::Purge { actor: "conformance".to_owned(), at: Timestamp::UNIX_EPOCH } }
}

/// Deletes whatever a pod left, with the permits of a confirmed purge.
pub(super) async fn purge(fixture: &Fixture, mut pod: Pod) -> Checked {
    let engine = &fixture.engine;
    pod.tasks = vec![purge_task()];
    let observed = engine.observe(pod.id, &[]).await?;
    if let Some(container) = &observed.container {
        if container.is_live() {
            engine.container_stop(&container.id, 0).await?;
        }
        let permit = DeletePermit::purged_container(&pod, &observed)?;
        engine.container_remove(&container.id, &permit).await?;
    }
    let image = pod.image.as_ref().map(|i| i.id.clone()).unwrap_or_default();
    for set in &pod.sets {
        let permit = DeletePermit::purged_set(&pod, set.number)?;
        engine.set_delete(&spec_of(&pod, &image, set), &permit).await?;
    }
    Ok(())
}

impl<'a> Subject<'a> {
    /// A pod of the fixture's image with one set, of which the engine knows nothing yet.
    pub(super) async fn new(fixture: &'a Fixture) -> Checked<Self> {
        Self::of_image(fixture, &fixture.image).await
    }

    pub(super) async fn of_image(fixture: &'a Fixture, reference: &str) -> Checked<Self> {
        let image = fixture.engine.image_resolve(reference).await?;
        let image = image.ok_or_else(|| Failure(format!("the engine has no image {reference}")))?;
        let mut spec = PodSpec::new(reference);
        spec.runtime.clone_from(&fixture.runtime);
        spec.backend = Some(fixture.backend);
        spec.command = Some(fixture.command.clone());
        spec.stop_timeout = 2;
        let name = PodName::parse("conformance").map_err(|e| Failure(e.to_string()))?;
        let operation = OperationId::from_parts(0, [0; 10]);
        // Of its own: processes that share an installation would take each other's network away, which no two servers do.
        let tenant = TenantId::parse(&format!("conformance-{:x}", fixture.salt)).map_err(|e| Failure(e.to_string()))?;
        let mut pod = Pod::new(fixture.pod_id(), tenant, name, spec, operation, fixture.clock.now());
        pod.image = Some(image.clone());
        let mut subject = Self { fixture, pod, image };
        subject.add_set();
        Ok(subject)
    }

    /// A pod whose set is complete.
    pub(super) async fn complete(fixture: &'a Fixture) -> Checked<Self> {
        let subject = Self::new(fixture).await?;
        subject.prepare(1).await?;
        Ok(subject)
    }

    /// A pod that runs, and its container.
    pub(super) async fn running(fixture: &'a Fixture) -> Checked<(Self, String)> {
        let mut subject = Self::complete(fixture).await?;
        let id = subject.create().await?;
        subject.start(&id).await?;
        Ok((subject, id))
    }

    pub(super) fn engine(&self) -> &dyn Engine {
        self.fixture.engine.as_ref()
    }

    /// Records another set and returns its number.
    pub(super) fn add_set(&mut self) -> SetNumber {
        let number = self.pod.last_set + 1;
        self.pod.last_set = number;
        self.pod.sets.push(VolumeSet {
            number,
            backend: self.fixture.backend,
            origin: Origin::Image,
            state: SetState::Preparing,
            attached: None,
            marked: None,
            proof: None,
            volumes: layout(&self.pod.spec.profile, self.fixture.backend, &self.image.layout),
        });
        self.fixture.track(&self.pod);
        number
    }

    pub(super) fn set(&self, number: SetNumber) -> Checked<SetSpec> {
        let set = self.pod.set(number).ok_or_else(|| Failure(format!("no set {number} is recorded")))?;
        Ok(spec_of(&self.pod, &self.image.id, set))
    }

    pub(super) async fn prepare(&self, number: SetNumber) -> Checked {
        let set = self.set(number)?;
        self.engine().set_prepare(&set, Fill::Image).await?;
        self.engine().set_complete(&set).await?;
        Ok(())
    }

    pub(super) fn container(&self) -> Checked<ContainerSpec> {
        Ok(ContainerSpec {
            pod: self.pod.id,
            tenant: self.pod.tenant.clone(),
            name: self.pod.name.clone(),
            set: self.set(1)?,
            spec: self.pod.spec.clone(),
            spec_generation: self.pod.spec_generation,
        })
    }

    /// Ensures the container and returns its id.
    pub(super) async fn create(&self) -> Checked<String> {
        Ok(self.engine().container_ensure(&self.container()?).await?.0)
    }

    /// Starts the container with the next generation.
    pub(super) async fn start(&mut self, id: &str) -> Checked<Effect> {
        let generation = self.next_generation();
        Ok(self.engine().container_start(id, &self.set(1)?, generation).await?)
    }

    /// Counts a writable attach, as a reconciler commits it before the start.
    pub(super) fn next_generation(&mut self) -> u64 {
        self.pod.data_generation += 1;
        let generation = self.pod.data_generation;
        if let Some(set) = self.pod.sets.iter_mut().find(|s| s.number == 1) {
            set.attached = Some(generation);
        }
        self.fixture.track(&self.pod);
        generation
    }

    pub(super) async fn stop(&self, id: &str) -> Checked {
        self.engine().container_stop(id, 2).await?;
        Ok(())
    }

    /// Looks at the pod and all its recorded sets.
    pub(super) async fn observe(&self) -> Checked<ObservedPod> {
        let numbers = self.pod.sets.iter().map(|s| s.number);
        let sets = numbers.map(|n| self.set(n)).collect::<Checked<Vec<_>>>()?;
        Ok(self.engine().observe(self.pod.id, &sets).await?)
    }

    pub(super) async fn observe_container(&self) -> Checked<ObservedContainer> {
        self.observe().await?.container.ok_or_else(|| Failure("no container is observed".to_owned()))
    }

    pub(super) async fn presence(&self, number: SetNumber) -> Checked<Presence> {
        let observed = self.observe().await?;
        let set = observed.set(number).ok_or_else(|| Failure(format!("set {number} was not observed")))?;
        Ok(set.presence.clone())
    }

    /// Looks until the container does not run any more.
    pub(super) async fn ended(&self) -> Checked<ObservedPod> {
        for _ in 0..TRIES {
            let observed = self.observe().await?;
            if observed.container.as_ref().is_none_or(|c| !c.is_live()) {
                return Ok(observed);
            }
            tokio::time::sleep(PAUSE).await;
        }
        Err(Failure("the container did not end".to_owned()))
    }

    /// The permit that the record of a stopped or never started container proves.
    pub(super) async fn container_permit(&self) -> Checked<DeletePermit> {
        let observed = self.observe().await?;
        let container = self.observe_container().await?;
        if container.started_at.is_none() {
            return Ok(DeletePermit::never_started_container(&self.pod, &observed)?);
        }
        let capture = LayerCapture {
            repository_id: None,
            captured_at: self.fixture.clock.now(),
            writer: Some(container.stamp()),
            after_stop: true,
        };
        Ok(DeletePermit::layer_captured_container(&self.pod, &capture, &observed)?)
    }

    /// Stops the container if need be, and removes it.
    pub(super) async fn remove(&self, id: &str) -> Checked {
        self.stop(id).await?;
        let permit = self.container_permit().await?;
        let effect = self.engine().container_remove(id, &permit).await?;
        check!(effect == Effect::Removed, "removing a container said {effect:?}");
        check!(self.observe().await?.container.is_none(), "a removed container is still observed");
        Ok(())
    }

    /// The volumes' directories; they are on this host.
    pub(super) async fn local(&self, number: SetNumber) -> Checked<Vec<VolumePath>> {
        match self.engine().set_access(&self.set(number)?).await? {
            SetAccess::Local(paths) => Ok(paths),
            SetAccess::Mover(_) => Err(Failure("the volumes are out of reach".to_owned())),
        }
    }

    /// Where a file of the pod is in the volumes' directories.
    pub(super) async fn on_host(&self, number: SetNumber, path: &str) -> Checked<PathBuf> {
        let paths = self.local(number).await?;
        let below = |v: &VolumePath| path.strip_prefix(&format!("{}/", v.mount_path)).map(str::to_owned);
        let found = paths.iter().filter_map(|v| below(v).map(|rel| (v, rel)));
        let innermost = found.max_by_key(|(v, _)| v.mount_path.len()).map(|(v, rel)| v.path.join(rel));
        innermost.ok_or_else(|| Failure(format!("{path} is in no volume")))
    }

    pub(super) async fn write(&self, id: &str, path: &str, text: &str) -> Checked {
        self.fixture.hands.write(id, path, text.as_bytes()).await
    }

    /// Fails unless the pod sees exactly this text there.
    pub(super) async fn sees(&self, id: &str, path: &str, text: &str) -> Checked {
        let seen = self.fixture.hands.read(id, path).await?;
        let seen = seen.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        check!(seen.as_deref() == Some(text), "{path} holds {seen:?} instead of {text:?}");
        Ok(())
    }

    /// Fails unless the pod sees nothing there.
    pub(super) async fn sees_nothing(&self, id: &str, path: &str) -> Checked {
        let seen = self.fixture.hands.read(id, path).await?;
        check!(seen.is_none(), "{path} is there again, {} bytes", seen.map_or(0, |b| b.len()));
        Ok(())
    }
}
