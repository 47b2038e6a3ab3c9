//! What the simulated engine promises beyond the conformance suite: its records, its faults, its memory.

use std::sync::{Arc, Mutex};

use futures::FutureExt;
use perennial_core::engine::{
    ChangeSink, ContainerSpec, ContainerState, Effect, Engine, EngineError, Fill, Presence, SetSpec,
};
use perennial_core::fault::{Moment, Tap, Verdict};
use perennial_core::id::{OperationId, PodId};
use perennial_core::permit::{DeletePermit, Ground};
use perennial_core::pod::Pod;
use perennial_core::progress::Progress;
use perennial_core::spec::{Backend, PodName, PodSpec, TenantId};
use perennial_core::volume::{Origin, SetState, VolumeSet, layout};
use perennial_drivers::sim::{
    Cause, Deleted, Faults, HandError, ImagePolicy, SimEngine, SimImage, SimOptions, VirtualClock,
};
use perennial_drivers::tapped::Tapped;

struct World {
    root: tempfile::TempDir,
    clock: Arc<VirtualClock>,
    engine: SimEngine,
}

impl World {
    fn new() -> Self {
        Self::with(SimOptions::default())
    }

    fn with(options: SimOptions) -> Self {
        let root = tempfile::tempdir().expect("a directory");
        let clock = Arc::new(VirtualClock::default());
        let engine = SimEngine::open(root.path(), clock.clone(), options).expect("an engine");
        engine.add_image("standard:1", &SimImage::standard()).expect("an image");
        Self { root, clock, engine }
    }

    async fn pod(&self, n: u8, backend: Backend) -> Subject {
        let image = self.engine.image_resolve("standard:1").await.expect("an answer").expect("an image");
        let tenant = TenantId::default_tenant();
        let name = PodName::parse("dev").expect("a name");
        let (id, operation) = (PodId::from_parts(1, [n; 10]), OperationId::from_parts(1, [n; 10]));
        let now = jiff::Timestamp::UNIX_EPOCH;
        let mut pod = Pod::new(id, tenant, name, PodSpec::new("standard:1"), operation, now);
        let volumes = layout(&pod.spec.profile, backend, &image.layout);
        pod.sets.push(VolumeSet {
            number: 1,
            backend,
            origin: Origin::Image,
            state: SetState::Complete,
            attached: None,
            marked: None,
            proof: None,
            volumes: volumes.clone(),
        });
        let set = SetSpec { pod: id, tenant: pod.tenant.clone(), number: 1, backend, image: image.id, volumes };
        Subject { pod, set }
    }

    async fn running(&self, n: u8, backend: Backend) -> (Subject, String) {
        let subject = self.pod(n, backend).await;
        self.engine.set_prepare(&subject.set, Fill::Image).await.expect("prepared");
        self.engine.set_complete(&subject.set).await.expect("complete");
        let (id, _) = self.engine.container_ensure(&subject.container()).await.expect("made");
        self.engine.container_start(&id, &subject.set, 1).await.expect("started");
        (subject, id)
    }
}

struct Subject {
    pod: Pod,
    set: SetSpec,
}

impl Subject {
    fn container(&self) -> ContainerSpec {
        ContainerSpec {
            pod: self.pod.id,
            tenant: self.pod.tenant.clone(),
            name: self.pod.name.clone(),
            set: self.set.clone(),
            spec: self.pod.spec.clone(),
            spec_generation: 1,
        }
    }
}

#[tokio::test]
async fn broken_preconditions_and_deletions_are_recorded() {
    let world = World::new();
    let engine = &world.engine;
    let subject = world.pod(1, Backend::Overlay).await;
    let unseen = engine.observe(subject.pod.id, std::slice::from_ref(&subject.set)).await.expect("seen");
    let permit = DeletePermit::never_started_set(&subject.pod, 1, &unseen).expect("a permit");
    let (subject, id) = world.running(1, Backend::Overlay).await;
    assert_eq!(engine.violations(), Vec::<String>::new());

    // The permit was true once; the set has run since.
    engine.kill_container_outside(subject.pod.id).expect("killed");
    let answer = engine.set_delete(&subject.set, &permit).await;
    assert!(matches!(answer, Err(EngineError::Rejected { .. })), "{answer:?}");
    assert!(engine.set_prepare(&subject.set, Fill::Image).await.is_err());
    let answer = engine.container_remove(&id, &DeletePermit::scratch("x")).await;
    assert!(matches!(answer, Err(EngineError::Rejected { .. })), "{answer:?}");
    assert_eq!(engine.violations().len(), 3, "{:?}", engine.violations());
    assert!(engine.deletions().is_empty());

    let fresh = world.pod(2, Backend::Overlay).await;
    engine.set_prepare(&fresh.set, Fill::Image).await.expect("prepared");
    let permit = DeletePermit::never_started_set(&fresh.pod, 1, &Default::default()).expect("a permit");
    engine.set_delete(&fresh.set, &permit).await.expect("deleted");
    let deletions = engine.deletions();
    assert_eq!(deletions.len(), 1);
    assert_eq!((deletions[0].pod, &deletions[0].what), (fresh.pod.id, &Deleted::Set(1)));
    assert_eq!((deletions[0].generation, deletions[0].permit.ground()), (None, &Ground::NeverStarted));
}

#[tokio::test]
async fn a_reopened_engine_remembers_everything() {
    let world = World::new();
    let (subject, id) = world.running(1, Backend::Engine).await;
    world.engine.write(subject.pod.id, "/srv/a", "bytes").expect("written");
    world.engine.write(subject.pod.id, "/newdir/a", "layer").expect("written");
    let sets = [subject.set.clone()];
    let before = world.engine.observe(subject.pod.id, &sets).await.expect("seen");
    let World { root, clock, engine } = world;
    drop(engine);
    let engine = SimEngine::open(root.path(), clock, SimOptions::default()).expect("an engine");
    assert_eq!(engine.observe(subject.pod.id, &sets).await.expect("seen"), before);
    assert_eq!(engine.container_ensure(&subject.container()).await, Ok((id, Effect::Unchanged)));
    assert_eq!(engine.read(subject.pod.id, "/srv/a").expect("read"), Some(b"bytes".to_vec()));
    assert_eq!(engine.read(subject.pod.id, "/newdir/a").expect("read"), Some(b"layer".to_vec()));
    assert!(engine.image_resolve("standard:1").await.expect("an answer").is_some());
}

#[tokio::test]
async fn an_exported_image_lives_on_after_everything_was_lost() {
    let world = World::new();
    let (subject, _) = world.running(1, Backend::Overlay).await;
    let file = world.root.path().join("image");
    let progress = Progress::default();
    world.engine.image_export(&subject.set.image, &file, &progress).await.expect("exported");
    world.engine.wipe().expect("wiped");
    assert_eq!(world.engine.image_resolve(&subject.set.image).await, Ok(None));
    assert_eq!(world.engine.list_owned().await, Ok(Vec::new()));
    world.engine.image_import(&file, &progress).await.expect("imported");
    assert!(world.engine.image_resolve(&subject.set.image).await.expect("an answer").is_some());

    world.engine.set_faults(Faults { halfway: 1.0, ..Faults::default() });
    let answer = world.engine.image_export(&subject.set.image, &file, &progress).await;
    assert!(matches!(answer, Err(EngineError::OutcomeUnknown { .. })), "{answer:?}");
    let answer = world.engine.image_import(&file, &progress).await;
    assert!(matches!(answer, Err(EngineError::Rejected { .. })), "{answer:?}");
}

#[tokio::test]
async fn faults_strike_where_they_should() {
    let world = World::new();
    let engine = &world.engine;
    let subject = world.pod(1, Backend::Engine).await;
    let sets = [subject.set.clone()];
    let presence = async || {
        engine.set_faults(Faults::default());
        engine.observe(subject.pod.id, &sets).await.expect("seen").sets[0].presence.clone()
    };

    engine.set_faults(Faults { before: 1.0, ..Faults::default() });
    let answer = engine.set_prepare(&subject.set, Fill::Image).await;
    assert!(matches!(answer, Err(EngineError::Transient { .. })), "{answer:?}");
    assert_eq!(presence().await, Presence::Absent);

    engine.set_faults(Faults { halfway: 1.0, ..Faults::default() });
    let answer = engine.set_prepare(&subject.set, Fill::Image).await;
    assert!(matches!(answer, Err(EngineError::OutcomeUnknown { .. })), "{answer:?}");
    assert!(matches!(presence().await, Presence::Partial { .. }));

    engine.set_faults(Faults { disk_full: 1.0, ..Faults::default() });
    let answer = engine.set_prepare(&subject.set, Fill::Image).await;
    assert!(matches!(answer, Err(EngineError::Rejected { .. })), "{answer:?}");

    engine.set_faults(Faults::default());
    engine.set_prepare(&subject.set, Fill::Image).await.expect("prepared");
    engine.set_faults(Faults { after: 1.0, ..Faults::default() });
    let answer = engine.set_complete(&subject.set).await;
    assert!(matches!(answer, Err(EngineError::OutcomeUnknown { .. })), "{answer:?}");
    assert_eq!(presence().await, Presence::Whole);

    engine.node_vanishes();
    let answer = engine.observe(subject.pod.id, &[]).await;
    assert!(matches!(answer, Err(EngineError::Transient { .. })), "{answer:?}");
    engine.node_returns();
    assert_eq!(presence().await, Presence::Whole);
}

#[tokio::test]
async fn the_same_seed_is_the_same_history() {
    let history = async |seed| {
        let world = World::with(SimOptions { seed, ..SimOptions::default() });
        world.engine.set_faults(Faults { before: 0.3, after: 0.3, ..Faults::default() });
        let mut seen = Vec::new();
        for _ in 0..50 {
            seen.push(world.engine.list_owned().await.is_ok());
        }
        seen
    };
    assert_eq!(history(7).await, history(7).await);
    assert_ne!(history(7).await, history(8).await);
}

#[tokio::test]
async fn pods_see_image_and_changes_as_one() {
    let world = World::new();
    for backend in [Backend::Overlay, Backend::Engine] {
        let (subject, _) = world.running(if backend == Backend::Overlay { 1 } else { 2 }, backend).await;
        let (engine, pod) = (&world.engine, subject.pod.id);
        let before = engine.files(pod).expect("files");
        assert!(before.contains_key("/etc/motd") && before.contains_key("/usr/lib/data"), "{before:?}");
        engine.write(pod, "/etc/motd", "mine").expect("written");
        engine.remove(pod, "/var/lib/seed").expect("removed");
        engine.write(pod, "/var/lib/seed/c", "new").expect("written");
        engine.remove(pod, "/usr/lib/data").expect("removed");
        let after = engine.files(pod).expect("files");
        assert_eq!(after.get("/etc/motd").map(Vec::as_slice), Some(&b"mine"[..]));
        let seed: Vec<&String> = after.keys().filter(|p| p.starts_with("/var/lib/seed")).collect();
        assert_eq!(seed, ["/var/lib/seed/c"]);
        assert!(!after.contains_key("/usr/lib/data"));
        for (path, bytes) in &after {
            assert_eq!(engine.read(pod, path).expect("read").as_ref(), Some(bytes), "{path}");
        }
        assert!(matches!(engine.write(pod, "/tmp/x", "x"), Err(HandError::NeverPersisted(_))));
        assert!(engine.remove(pod, "/srv").is_err());
        engine.crash(pod, 1, Cause::OutOfMemory).expect("crashed");
        assert!(matches!(engine.write(pod, "/srv/x", "x"), Err(HandError::NotRunning)));
        let state = engine.observe(pod, &[]).await.expect("seen").container.expect("a container").state;
        assert_eq!(state, ContainerState::Exited { code: Some(1), oom: true });
    }
}

#[derive(Default)]
struct Sink(Mutex<Vec<PodId>>);

impl ChangeSink for Sink {
    fn pod_changed(&self, pod: PodId) {
        self.0.lock().expect("no test panicked").push(pod);
    }
}

#[tokio::test]
async fn a_restart_of_the_engine_ends_runs_and_watches() {
    let world = World::new();
    let (subject, id) = world.running(1, Backend::Overlay).await;
    let sink = Sink::default();
    let mut watch = Box::pin(world.engine.watch(&sink));
    assert!(watch.as_mut().now_or_never().is_none());
    world.engine.restart_engine().expect("restarted");
    assert!(matches!(watch.await, Err(EngineError::Transient { .. })));
    assert_eq!(*sink.0.lock().expect("no test panicked"), [subject.pod.id]);
    let container = world.engine.observe(subject.pod.id, &[]).await.expect("seen").container.expect("a container");
    assert_eq!((container.id, container.state), (id, ContainerState::Exited { code: Some(137), oom: false }));
}

/// Gives one verdict at one point.
struct At(&'static str, Moment, Verdict);

impl Tap for At {
    fn at(&self, site: &str, moment: Moment) -> Verdict {
        if (site, moment) == (self.0, self.1) { self.2 } else { Verdict::Go }
    }
}

#[tokio::test]
async fn a_tap_fails_before_or_loses_the_answer_after() {
    let world = World::new();
    let subject = world.pod(1, Backend::Overlay).await;
    let tapped = |moment, verdict| {
        Tapped::new(Arc::new(world.engine.clone()), Arc::new(At("engine.set_prepare", moment, verdict)))
    };
    let exists = async || world.engine.list_owned().await.expect("listed").len() == 1;

    let answer = tapped(Moment::Before, Verdict::Fail).set_prepare(&subject.set, Fill::Image).await;
    assert!(matches!(answer, Err(EngineError::Transient { .. })), "{answer:?}");
    let engine = tapped(Moment::Before, Verdict::Die);
    assert!(engine.set_prepare(&subject.set, Fill::Image).now_or_never().is_none());
    assert!(!exists().await);

    let engine = tapped(Moment::After, Verdict::Die);
    assert!(engine.set_prepare(&subject.set, Fill::Image).now_or_never().is_none());
    assert!(exists().await);
    let answer = tapped(Moment::After, Verdict::Fail).set_prepare(&subject.set, Fill::Image).await;
    assert!(matches!(answer, Err(EngineError::OutcomeUnknown { .. })), "{answer:?}");
    let dynamic: Arc<dyn Engine> = Arc::new(world.engine.clone());
    let engine = Tapped::new(dynamic, Arc::new(perennial_core::fault::NoTap));
    assert_eq!(engine.set_complete(&subject.set).await, Ok(Effect::Updated));
}

#[tokio::test]
async fn any_name_is_an_image_where_that_is_wanted() {
    let world = World::with(SimOptions { images: ImagePolicy::AcceptAny, ..SimOptions::default() });
    let image = world.engine.image_resolve("whatever:latest").await.expect("an answer").expect("an image");
    assert_eq!(image.id, SimImage::minimal().id());
    assert_eq!(world.engine.image_pull("whatever:latest", &Progress::default()).await, Ok(()));
    world.engine.wipe().expect("wiped");
    assert_eq!(world.engine.image_resolve(&image.id).await, Ok(None));
}
