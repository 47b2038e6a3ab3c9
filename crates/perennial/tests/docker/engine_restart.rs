//! The engine is killed, restarted, and wiped: pods come back with their data.
//!
//! These tests have engines of their own, because they end them.

use crate::installation::{
    BUSYBOX, DEBIAN, Installation, OwnEngine, Pod, Tree, assert_same, assert_same_when, but_for_the_images_times,
    eventually, fill, tree,
};
use serde_json::json;

/// Waits until the pod answers from a container that the engine runs.
fn answers(installation: &Installation, pod: &crate::installation::Pod) {
    eventually("the pod answers", || {
        let (status, shown) =
            installation.try_request(reqwest::Method::GET, &format!("/api/v1/pods/{}", pod.id), None).ok()?;
        let id = shown["container"]["id"].as_str().filter(|_| status.is_success() && shown["phase"] == "running")?;
        installation.docker.try_run(&["exec", id, "true"]).1.then_some(())
    });
}

fn crashed(name: &'static str, runtime: &str) {
    let own = OwnEngine::new(name);
    own.load(BUSYBOX);
    let installation = Installation::on(own.docker.clone(), &[]);
    let overlay = installation.pod_with("overlay", BUSYBOX, runtime, json!({"backend": "overlay"}));
    let docker = installation.pod_with("docker", BUSYBOX, runtime, json!({"backend": "docker"}));
    let paused = installation.pod_with("paused", BUSYBOX, runtime, json!({"volumes": []}));
    fill(&installation, &overlay);
    installation.sh(&docker, "echo kept >/srv/kept; echo layer >/layer; sync");
    installation.run(&paused, "pause");
    let before = tree(&installation, &overlay);
    // The daemon alone, then the host: everything that ran is gone, and its mounts with it.
    for ending in ["kill", "crash"] {
        own.engine(ending);
        own.engine("start");
        for pod in [&overlay, &docker] {
            answers(&installation, pod);
        }
        assert_same(&before, &tree(&installation, &overlay));
        assert_eq!(installation.sh(&docker, "cat /srv/kept /layer"), "kept\nlayer\n", "{ending}");
        installation.assert_phase(&paused, "paused");
    }
    // And a stop after all that still captures everything.
    installation.run(&overlay, "stop");
    installation.assert_released(&overlay);
    installation.run(&overlay, "start");
    assert_same(&before, &tree(&installation, &overlay));
    // The events are followed again: nobody waits for the next look at every pod, which may be half a minute away.
    let lost = installation.container(&overlay);
    let began = std::time::Instant::now();
    own.docker.run(&["rm", "--force", &lost]);
    installation.replaced(&overlay, &lost);
    assert!(began.elapsed() < std::time::Duration::from_secs(15), "noticed after {:?}", began.elapsed());
    installation.sh(&overlay, "test -s /srv/made/plain");
}

#[test]
fn runc_pods_come_back_after_the_engine_was_killed() {
    crashed("e2erc", "runc");
}

#[test]
fn runsc_pods_come_back_after_the_engine_was_killed() {
    crashed("e2ers", "runsc");
}

/// While the engine is away nothing is thought to be gone, and a stop waits for it.
#[test]
fn runc_an_engine_that_is_away_is_not_an_engine_without_pods() {
    let own = OwnEngine::new("e2eaway");
    own.load(BUSYBOX);
    let mut installation = Installation::on(own.docker.clone(), &[]);
    let pod = installation.pod(BUSYBOX, "runc");
    installation.sh(&pod, "echo kept >/srv/kept");
    own.engine("kill");
    let stop = installation.act(&pod, "stop", &json!({}));
    let problem = eventually("the operation says why", || {
        installation.operation(&stop)["error"]["code"].as_str().map(str::to_owned)
    });
    assert!(problem.starts_with("engine-"), "{problem}");
    assert!(installation.set(&pod).join("srv/upper/kept").exists());
    // The server goes down as well, and comes up before the engine does.
    installation.kill_server();
    own.engine("start");
    installation.start_server();
    installation.succeeded(&stop);
    installation.run(&pod, "start");
    assert_eq!(installation.sh(&pod, "cat /srv/kept"), "kept\n");
}

/// What of a tree is compared.
type Compared = dyn Fn(&Tree) -> Tree;

/// A pod of each backend, with a package, is all that is in the repository; then every other copy is destroyed.
fn wiped(name: &'static str, runtime: &str) {
    let own = OwnEngine::new(name);
    own.load(DEBIAN);
    let mut installation = Installation::on(own.docker.clone(), &[]);
    let backends = ["overlay", "docker"];
    let mut pods = Vec::new();
    for backend in backends {
        let pod = installation.pod_with(backend, DEBIAN, runtime, json!({"backend": backend}));
        fill(&installation, &pod);
        installation.sh(
            &pod,
            "dpkg --install /usr/share/perennial-test/perennial-hello_1.deb >/dev/null 2>&1; rm /usr/bin/tac",
        );
        let before = tree(&installation, &pod);
        installation.run(&pod, "stop");
        pods.push((pod, before));
    }
    installation.stop_server();
    own.engine("wipe");
    std::fs::remove_dir_all(installation.storage()).unwrap();
    own.engine("start");
    assert_eq!(own.docker.list(&["images", "--quiet"]), Vec::<String>::new());
    // An empty place is not taken for the storage root until its owner says that the old one is gone for good.
    let (status, said) = installation.refused_server();
    assert!(!status.success() && said.contains("is not mounted"), "{said}");
    assert!(!installation.storage().exists(), "something was made where the disk belongs");
    assert_eq!(installation.claim_storage(&[]).code(), Some(2));
    assert!(installation.claim_storage(&["--yes"]).success());
    installation.start_server();
    let works = |installation: &Installation, pod: &Pod, before: &Tree, compared: &Compared, when: &str| {
        assert_same_when(when, &compared(before), &compared(&tree(installation, pod)));
        let said =
            installation.sh(pod, "perennial-hello; dpkg --verify perennial-hello; ls /usr/bin/tac 2>/dev/null || true");
        assert_eq!(said, "hello 1 data 1\n", "{when}");
    };
    for ((pod, before), other) in pods.iter().zip(backends.into_iter().rev()) {
        // What the stop wrote becomes a pod on the other backend, too.
        let last = installation.show(pod)["latestSnapshot"]["id"].clone();
        let more = json!({"backend": other, "fromSnapshot": last});
        let copy = installation.pod_with(&format!("on-{other}"), DEBIAN, runtime, more);
        works(&installation, &copy, before, &but_for_the_images_times, &format!("moved to {other}"));
        installation.run(pod, "start");
        works(&installation, pod, before, &Tree::clone, "started");
        // And as complete pods: they can be stopped and started again.
        let both: [(&Pod, &Compared); 2] = [(pod, &Tree::clone), (&copy, &but_for_the_images_times)];
        for (pod, compared) in both {
            installation.run(pod, "stop");
            installation.run(pod, "start");
            works(&installation, pod, before, compared, "started again");
        }
    }
}

#[test]
fn runc_everything_comes_from_the_repository_after_the_engine_was_wiped() {
    wiped("e2ewrc", "runc");
}

#[test]
fn runsc_everything_comes_from_the_repository_after_the_engine_was_wiped() {
    wiped("e2ewrs", "runsc");
}
