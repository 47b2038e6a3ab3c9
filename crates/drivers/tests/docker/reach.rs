//! Engines by other ways than a socket beside us, what their events tell and how soon, and what runtimes were seen to do.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::hands::check;
use crate::support::{BUSYBOX, Bench, OtherEngine, REACH_CASES, free_port, shared_config, storage_base};
use bollard::Docker;
use bollard::query_parameters::{KillContainerOptionsBuilder, RemoveContainerOptionsBuilder};
use perennial_core::engine::{ChangeSink, Engine, EngineError, LayerAccess, SetAccess};
use perennial_core::id::PodId;
use perennial_core::spec::Backend;
use perennial_drivers::docker::DockerEngine;
use tokio::sync::mpsc;

// ---- events ----------------------------------------------------------------------------------------------------

/// When a watch that has told nothing is taken for one that had not begun.
const RETRY: Duration = Duration::from_secs(2);
/// Longest time for anything. How soon events are told is measured by `./dev bench docker`.
const PATIENCE: Duration = Duration::from_secs(60);

struct Sink(mpsc::UnboundedSender<PodId>);

impl ChangeSink for Sink {
    fn pod_changed(&self, pod: PodId) {
        let _ = self.0.send(pod);
    }
}

struct Watch {
    news: mpsc::UnboundedReceiver<PodId>,
    ended: tokio::task::JoinHandle<Result<(), EngineError>>,
}

impl Watch {
    /// Watches, and waits until the watch has begun: until it tells of something that is done to this container.
    async fn begin(engine: Arc<DockerEngine>, docker: &Docker, container: &str) -> Self {
        let (sender, news) = mpsc::unbounded_channel();
        let ended = tokio::spawn(async move { engine.watch(&Sink(sender)).await });
        let mut watch = Self { news, ended };
        let deadline = Instant::now() + PATIENCE;
        loop {
            docker.pause_container(container).await.unwrap();
            docker.unpause_container(container).await.unwrap();
            if tokio::time::timeout(RETRY, watch.news.recv()).await.is_ok() {
                return watch;
            }
            assert!(Instant::now() < deadline, "the watch does not begin");
        }
    }

    /// Waits until somebody is told of this pod: by the watch, since nobody looks here.
    async fn told(&mut self, pod: PodId) {
        let told = async { while self.news.recv().await.expect("the watch goes on") != pod {} };
        tokio::time::timeout(PATIENCE, told).await.expect("nobody was told");
    }

    /// Waits until everything that has happened was told, and forgets it. What is told comes in the order it happened in, so the making
    /// of a container that nobody was told of yet comes last.
    async fn settle(&mut self, bench: &Bench) {
        let marker = PodId::from_parts(1, rand::random());
        bench.mark(marker).await;
        self.told(marker).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn crashes_and_removals_are_told_by_the_watch_alone() {
    for runtime in ["runc", "runsc"] {
        let bench = Bench::with(&[runtime], |_| {}).await;
        let (_quiet, anchor) = bench.running(BUSYBOX, Backend::Overlay).await;
        let mut watch = Watch::begin(Arc::new(bench.reconnect(&[runtime]).await), &bench.docker, &anchor).await;
        let (mut pod, id) = bench.running(BUSYBOX, Backend::Overlay).await;
        watch.settle(&bench).await;
        let options = KillContainerOptionsBuilder::default().signal("KILL").build();
        bench.docker.kill_container(&id, Some(options)).await.unwrap();
        watch.told(pod.id()).await;

        bench.start(&mut pod, &id).await.unwrap();
        watch.settle(&bench).await;
        let force = RemoveContainerOptionsBuilder::default().force(true).build();
        bench.docker.remove_container(&id, Some(force)).await.unwrap();
        watch.told(pod.id()).await;
        assert!(bench.observe(&pod).await.container.is_none());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_that_is_under_way_is_waited_for() {
    let bench = Bench::new().await;
    let (_quiet, anchor) = bench.running(BUSYBOX, Backend::Overlay).await;
    let mut watch = Watch::begin(Arc::new(bench.reconnect(&["runc"]).await), &bench.docker, &anchor).await;
    let (pod, id) = bench.running(BUSYBOX, Backend::Overlay).await;
    // A layer that takes the engine a while to remove.
    let line = "mkdir /many && cd /many && i=0; while [ $i -lt 20000 ]; do : >$i; i=$((i+1)); done";
    assert_eq!(bench.sh(&id, line).await, (String::new(), 0));
    watch.settle(&bench).await;
    let removal = {
        let docker = bench.docker.clone();
        let force = RemoveContainerOptionsBuilder::default().force(true).build();
        tokio::spawn(async move { docker.remove_container(&id, Some(force)).await })
    };
    // Its end is told before it is gone: neither a crash nor a look that failed.
    watch.told(pod.id()).await;
    let observed = bench.observe(&pod).await;
    assert!(observed.container.is_none() && observed.foreign.is_empty(), "{observed:?}");
    removal.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_kills_are_told_by_the_watch_alone() {
    let bench = Bench::new().await;
    let (_quiet, anchor) = bench.running(BUSYBOX, Backend::Overlay).await;
    let mut watch = Watch::begin(Arc::new(bench.reconnect(&["runc"]).await), &bench.docker, &anchor).await;
    let mut hungry = bench
        .pod_with(BUSYBOX, Backend::Overlay, |s| {
            s.resources.memory = Some(32 << 20);
            s.resources.memory_swap = Some(0);
            let line = "while [ ! -e /srv/now ]; do sleep 0.05; done; exec tail /dev/zero";
            s.command = Some(["sh", "-c", line].map(str::to_owned).to_vec());
        })
        .await;
    let id = bench.run(&mut hungry).await;
    watch.settle(&bench).await;
    bench.sh(&id, "touch /srv/now").await;
    watch.told(hungry.id()).await;
    // It may be told of the kill before it is told of the end.
    while bench.observe(&hungry).await.container.is_some_and(|c| c.is_live()) {
        watch.told(hungry.id()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_ends_with_its_engine_and_another_tells_again() {
    let own = OtherEngine::start("watched", "{}");
    own.load(&[BUSYBOX]);
    let bench = Bench::with(&["runc"], |c| c.docker_host = Some(own.host.clone())).await;
    let (mut pod, id) = bench.running(BUSYBOX, Backend::Overlay).await;
    let engine = Arc::new(bench.reconnect(&["runc"]).await);
    for ending in ["stop", "kill"] {
        let watch = Watch::begin(Arc::clone(&engine), &bench.docker, &id).await;
        own.again(ending);
        let ended = tokio::time::timeout(PATIENCE, watch.ended).await.expect("a watch outlives its engine").unwrap();
        assert!(matches!(ended, Err(EngineError::Transient { .. })), "{ended:?}");
        let refused = engine.observe(pod.id(), &[]).await;
        assert!(matches!(refused, Err(EngineError::Transient { .. })), "{refused:?}");
        own.again("start");
        bench.start(&mut pod, &id).await.unwrap();
    }
    let mut watch = Watch::begin(engine, &bench.docker, &id).await;
    watch.settle(&bench).await;
    let force = RemoveContainerOptionsBuilder::default().force(true).build();
    bench.docker.remove_container(&id, Some(force)).await.unwrap();
    watch.told(pod.id()).await;
}

// ---- by TCP, and on another host --------------------------------------------------------------------------------

const IMAGES: [&str; 3] = [BUSYBOX, "perennial-test/layers:1", "perennial-test/volume:1"];

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_behind_tcp_conforms_and_shares_files_when_it_is_proven() {
    let address = format!("tcp://127.0.0.1:{}", free_port());
    let own = OtherEngine::start("tcp", &format!(r#"{{"hosts": ["{address}"], "tls": false}}"#));
    own.load(&IMAGES);
    let root = tempfile::tempdir_in(storage_base()).unwrap();
    let config = || {
        let mut config = shared_config(&["runc"]);
        config.docker_host = Some(address.clone());
        config.storage_root = root.path().join("root");
        config
    };
    let engine = DockerEngine::connect(config()).await.unwrap();
    // It is this host all the same, which the probe proved by what came out on its disk.
    assert_eq!(engine.capabilities().await.unwrap().backends, [Backend::Overlay, Backend::Engine]);
    for backend in [Backend::Overlay, Backend::Engine] {
        for case in REACH_CASES {
            check(case, backend, "runc", config()).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_shares_no_files_gets_no_overlay_volumes() {
    let address = format!("tcp://127.0.0.1:{}", free_port());
    let hidden = storage_base();
    let data = hidden.join("apart").display().to_string();
    let config = format!(r#"{{"hosts": ["{address}"], "tls": false, "data-root": "{data}"}}"#);
    let own = OtherEngine::start_apart("apart", &config, &hidden);
    own.load(&[BUSYBOX]);
    // By its own socket, which tells nothing of where it is, and by its address.
    for host in [own.host.clone(), address] {
        let bench = Bench::with(&["runc"], |c| c.docker_host = Some(host)).await;
        let capabilities = bench.engine.capabilities().await.unwrap();
        assert_eq!(capabilities.backends, [Backend::Engine]);
        assert!(capabilities.notes.iter().any(|n| n.contains("overlay volumes are not offered")), "{capabilities:?}");
        let runc = capabilities.runtime(Some("runc")).unwrap();
        assert!(!runc.overlay_volumes && !runc.root_changes, "{runc:?}");
        assert_eq!(capabilities.backend(None, runc), Some(Backend::Engine));
        let (pod, id) = bench.running(BUSYBOX, Backend::Engine).await;
        assert_eq!(bench.sh(&id, "echo mine > /srv/mine; cat /srv/mine /etc/motd").await.0, "mine\nfrom the image");
        let reached = bench.engine.set_access(&pod.spec.set).await;
        assert!(!matches!(reached, Ok(SetAccess::Local(_))), "{reached:?}");
        assert!(matches!(bench.engine.layer_access(&id).await, Ok(LayerAccess::Unreachable { .. })));
        assert!(bench.engine.set_usage(&pod.spec.set).await.unwrap().iter().all(|v| v.bytes.is_none()));
        bench.remove_container(&pod, &id).await;
        assert_eq!(bench.engine.lingering(std::slice::from_ref(&pod.spec.set)).await, Ok(Vec::new()));
        bench.engine.set_delete(&pod.spec.set, &pod.set_permit()).await.unwrap();
    }
}

// ---- runtimes --------------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn what_runtimes_cannot_do_is_flagged_and_avoided() {
    let names = ["runc", "runsc", "runsc-2022", "runsc-overlay"];
    let bench = Bench::with(&names, |_| {}).await;
    let capabilities = bench.engine.capabilities().await.unwrap();
    let seen = |name: &str| {
        let runtime = capabilities.runtime(Some(name)).unwrap_or_else(|| panic!("{name}: {:?}", capabilities.notes));
        (runtime.overlay_volumes, runtime.root_changes)
    };
    assert_eq!(seen("runc"), (true, true));
    assert_eq!(seen("runsc"), (true, true));
    // Most programs cannot look at directories on it (EINVAL to `statx`), on overlay volumes or elsewhere.
    assert!(!seen("runsc-2022").0);
    let noted = |name: &str| {
        capabilities.notes.iter().any(|n| n.contains(&format!("runtime {name} ")) && n.contains("programs"))
    };
    assert_eq!(names.map(noted), [false, false, true, false], "{:?}", capabilities.notes);
    // It keeps changes of the root to itself.
    assert!(!seen("runsc-overlay").1);
    let chosen = |name: &str| capabilities.backend(None, capabilities.runtime(Some(name)).unwrap());
    assert_eq!(chosen("runsc"), Some(Backend::Overlay));
    assert_eq!(chosen("runsc-2022"), Some(Backend::Engine));
    let asked = capabilities.backend(Some(Backend::Overlay), capabilities.runtime(Some("runsc-2022")).unwrap());
    assert_eq!(asked, None);

    // What runs on it all the same has its data on the backend that is chosen for it.
    let mut pod = bench.pod_with(BUSYBOX, Backend::Engine, |s| s.runtime = Some("runsc-2022".to_owned())).await;
    let id = bench.run(&mut pod).await;
    let line =
        "ls -l /etc >/srv/list && stat /etc/motd >/srv/stat && rm /etc/motd && mv /srv/stat /srv/moved && ls /srv";
    assert_eq!(bench.sh(&id, line).await, ("list\nmoved".to_owned(), 0));

    // What would be lost is not reached in silence.
    let mut pod = bench.pod_with(BUSYBOX, Backend::Engine, |s| s.runtime = Some("runsc-overlay".to_owned())).await;
    let id = bench.run(&mut pod).await;
    let LayerAccess::Unreachable { reason } = bench.engine.layer_access(&id).await.unwrap() else {
        panic!("a hidden layer is reached");
    };
    assert!(reason.contains("to itself"), "{reason}");
}
