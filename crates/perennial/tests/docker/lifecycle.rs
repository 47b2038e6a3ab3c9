//! The life of pods on a real Docker Engine: whatever happens to the container, the data is the same afterwards.

use crate::installation::{BUSYBOX, DEBIAN, Installation, Pod, fill, tree};
use serde_json::json;

on_both! {
    stop_start => runc_stop_and_start_bring_everything_back, runsc_stop_and_start_bring_everything_back;
    stop_start_docker => runc_stop_and_start_on_engine_volumes, runsc_stop_and_start_on_engine_volumes;
    lost_container => runc_a_removed_container_comes_back, runsc_a_removed_container_comes_back;
    pause_restart => runc_pause_and_restart_keep_everything, runsc_pause_and_restart_keep_everything;
    reset_restore => runc_reset_and_its_safety_snapshot, runsc_reset_and_its_safety_snapshot;
    snapshot_running => runc_snapshot_of_a_running_pod, runsc_snapshot_of_a_running_pod;
    delete_undelete_purge => runc_delete_undelete_purge, runsc_delete_undelete_purge;
}

/// Stop releases the host, start brings back the same: kinds, modes, owners, times, links, holes, names, deletions.
fn stop_and_start(runtime: &str, image: &str, backend: &str) {
    let installation = Installation::new();
    let pod = installation.pod_with("dev", image, runtime, json!({"backend": backend}));
    fill(&installation, &pod);
    let attributes = image != BUSYBOX && crate::installation::fill_xattrs(&installation, &pod);
    assert!(attributes || image == BUSYBOX || runtime == "runsc", "no user attributes");
    let before = tree(&installation, &pod);
    for _ in 0..2 {
        installation.run(&pod, "stop");
        installation.assert_phase(&pod, "stopped");
        installation.assert_released(&pod);
        let shown = installation.show(&pod);
        assert_eq!(shown["container"], json!(null));
        let last = &shown["latestSnapshot"];
        assert_eq!((&last["state"], &last["kind"]), (&json!("verified"), &json!("final")), "{last:#}");
        installation.run(&pod, "start");
        installation.assert_phase(&pod, "running");
        let after = tree(&installation, &pod);
        crate::installation::assert_same(&before, &after);
        assert_eq!(before.values().flatten().any(|v| v.contains("user.perennial")), attributes);
        let sparse = installation.mountpoint(&pod, "srv").join("made/sparse");
        let blocks = std::os::unix::fs::MetadataExt::blocks(&sparse.metadata().unwrap());
        assert!(blocks < 1024, "a sparse file has {blocks} blocks");
        let gone = if image == BUSYBOX { "/etc/motd" } else { "/etc/debian_version" };
        assert!(!installation.try_sh(&pod, &format!("[ -e {gone} ]")).1, "{gone} was deleted");
    }
}

fn stop_start(runtime: &str) {
    stop_and_start(runtime, DEBIAN, "overlay");
}

fn stop_start_docker(runtime: &str) {
    stop_and_start(runtime, BUSYBOX, "docker");
}

fn lost_container(runtime: &str) {
    let installation = Installation::new();
    let pod = installation.pod(BUSYBOX, runtime);
    fill(&installation, &pod);
    // What no volume holds comes from its newest capture: a restart that makes a new container takes one.
    patch_env(&installation, &pod, "green");
    installation.run(&pod, "restart");
    let before = tree(&installation, &pod);
    for _ in 0..2 {
        let lost = installation.container(&pod);
        installation.docker.run(&["rm", "--force", &lost]);
        let began = std::time::Instant::now();
        installation.replaced(&pod, &lost);
        // The event watch finds it, not the resync of every thirty seconds.
        assert!(began.elapsed().as_secs() < 15, "{:?}", began.elapsed());
        crate::installation::assert_same(&before, &tree(&installation, &pod));
    }
    // Whoever removes a container by force kills it first; nothing of that is the pod's own end.
    let events = installation.get(&format!("/api/v1/pods/{}/events?limit=1000", pod.id));
    let kinds = events["items"].as_array().unwrap().iter().filter_map(|event| event["type"].as_str());
    let ends: Vec<&str> = kinds.filter(|kind| matches!(*kind, "pod.crashed" | "pod.container-lost")).collect();
    assert_eq!(ends, ["pod.container-lost"; 2]);
    // A crash of the pod's own process is no more than a restart.
    let container = installation.container(&pod);
    installation.docker.run(&["kill", &container]);
    crate::installation::eventually("it runs again", || {
        let shown = installation.show(&pod);
        (shown["phase"] == "running" && installation.docker.is_running(&container)).then_some(())
    });
    crate::installation::assert_same(&before, &tree(&installation, &pod));
}

fn patch_env(installation: &Installation, pod: &Pod, colour: &str) {
    let body = json!({"env": {"COLOUR": colour}});
    let path = format!("/api/v1/pods/{}", pod.id);
    let (status, answer) = installation.request(reqwest::Method::PATCH, &path, Some(&body));
    assert!(status.is_success(), "{status} {answer}");
}

fn pause_restart(runtime: &str) {
    let installation = Installation::new();
    let pod = installation.pod(BUSYBOX, runtime);
    fill(&installation, &pod);
    let before = tree(&installation, &pod);
    let container = installation.container(&pod);
    installation.run(&pod, "pause");
    installation.assert_phase(&pod, "paused");
    assert!(!installation.docker.is_running(&container));
    assert_eq!(installation.snapshots(&pod).len(), 0);
    installation.run(&pod, "start");
    assert_eq!(installation.container(&pod), container);
    crate::installation::assert_same(&before, &tree(&installation, &pod));
    installation.run(&pod, "restart");
    assert_eq!(installation.container(&pod), container);
    crate::installation::assert_same(&before, &tree(&installation, &pod));
    // A changed specification makes the restart make a new container, with the same data.
    patch_env(&installation, &pod, "green");
    installation.run(&pod, "restart");
    assert_ne!(installation.container(&pod), container);
    assert_eq!(installation.sh(&pod, "echo $COLOUR"), "green\n");
    crate::installation::assert_same(&before, &tree(&installation, &pod));
}

fn reset_restore(runtime: &str) {
    let installation = Installation::new();
    let pod = installation.pod(BUSYBOX, runtime);
    let fresh = tree(&installation, &pod);
    fill(&installation, &pod);
    let before = tree(&installation, &pod);
    installation.run(&pod, "reset");
    installation.assert_phase(&pod, "running");
    let now = tree(&installation, &pod);
    assert_eq!(now.keys().collect::<Vec<_>>(), fresh.keys().collect::<Vec<_>>());
    assert!(installation.sh(&pod, "ls /data /srv").find("made").is_none());
    let safety = installation.snapshots(&pod).into_iter().find(|s| s["kind"] == "safety").unwrap();
    assert_eq!(safety["state"], "verified");
    installation.restore(&pod, &safety);
    crate::installation::assert_same(&before, &tree(&installation, &pod));
}

fn snapshot_running(runtime: &str) {
    let installation = Installation::new();
    let pod = installation.pod(BUSYBOX, runtime);
    fill(&installation, &pod);
    let then = tree(&installation, &pod);
    let container = installation.container(&pod);
    let taken = installation.snapshot(&pod);
    assert_eq!((&taken["state"], &taken["kind"]), (&json!("verified"), &json!("manual")), "{taken:#}");
    assert_eq!(installation.container(&pod), container);
    assert!(installation.docker.is_running(&container));
    installation
        .sh(&pod, "rm -r /srv/made /data/made; echo later >/home/later; echo changed >/opt/made/plain; rm /etc/group");
    installation.restore(&pod, &taken);
    installation.assert_phase(&pod, "running");
    crate::installation::assert_same(&then, &tree(&installation, &pod));
    // Nothing but restic is needed to read it.
    let password = std::fs::read_to_string(installation.data().join("keys/default")).unwrap();
    let restic = |arguments: &[&str]| {
        let output = std::process::Command::new("restic")
            .arg("--repo")
            .arg(installation.repository())
            .args(["--no-cache", "--quiet"])
            .args(arguments)
            .env("RESTIC_PASSWORD", password.trim())
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    restic(&["check", "--read-data"]);
    let tag = format!("snapshot:{}", taken["id"].as_str().unwrap());
    let text = restic(&["dump", "--tag", &tag, "latest", "/volumes/srv/made/plain"]);
    assert_eq!(text, "written to /srv\n");
}

/// What a pod was restored from may be deleted afterwards, or its deletion is refused: a lost container still comes back.
#[test]
fn runc_a_deleted_snapshot_takes_nothing_along_that_a_pod_still_needs() {
    let installation = Installation::new();
    let pod = installation.pod(BUSYBOX, "runc");
    fill(&installation, &pod);
    let before = tree(&installation, &pod);
    let taken = installation.snapshot(&pod);
    installation.sh(&pod, "rm -r /data/made /srv/made");
    installation.restore(&pod, &taken);
    let path = format!("/api/v1/snapshots/{}", taken["id"].as_str().unwrap());
    let (status, answer) = installation.request(reqwest::Method::DELETE, &path, Some(&json!({})));
    if status == reqwest::StatusCode::CONFLICT {
        assert_eq!(answer["code"], "snapshot-in-use");
    } else {
        installation.succeeded(answer["operation"]["id"].as_str().unwrap());
    }
    let lost = installation.container(&pod);
    installation.docker.run(&["rm", "--force", &lost]);
    installation.replaced(&pod, &lost);
    crate::installation::assert_same(&before, &tree(&installation, &pod));
}

fn delete_undelete_purge(runtime: &str) {
    let installation = Installation::new();
    let pod = installation.pod(BUSYBOX, runtime);
    fill(&installation, &pod);
    let before = tree(&installation, &pod);
    installation.run(&pod, "delete");
    installation.assert_phase(&pod, "deleted");
    assert!(installation.show(&pod)["purgeAt"].is_string());
    installation.assert_released(&pod);
    installation.run(&pod, "undelete");
    installation.assert_phase(&pod, "stopped");
    installation.run(&pod, "start");
    crate::installation::assert_same(&before, &tree(&installation, &pod));
    installation.run(&pod, "archive");
    installation.assert_phase(&pod, "archived");
    installation.assert_released(&pod);
    installation.run(&pod, "undelete");
    installation.run(&pod, "purge");
    let (status, _) = installation.request(reqwest::Method::GET, &format!("/api/v1/pods/{}", pod.id), None);
    assert_eq!(status, reqwest::StatusCode::NOT_FOUND);
    installation.assert_released(&pod);
    assert!(!installation.storage().join("pods").join(&pod.id).exists());
}

/// P7, P8: the client or the server is installed anew; what sleeps is not replaced by something empty.
#[test]
fn p08_a_start_never_replaces_a_sleeping_pod_by_an_empty_one() {
    let mut installation = Installation::new();
    let pod = installation.pod(BUSYBOX, "runc");
    installation.sh(&pod, "echo work >/workspace/work");
    installation.run(&pod, "stop");
    installation.stop_server();
    // A new server, and nothing of the pod on the engine or in the storage root: everything from the repository.
    std::fs::remove_dir_all(installation.storage()).unwrap();
    assert!(installation.claim_storage(&["--yes"]).success());
    installation.start_server();
    installation.run(&pod, "start");
    assert_eq!(installation.sh(&pod, "cat /workspace/work"), "work\n");
    // The same name again is refused instead of taking its place.
    let body = json!({"name": "dev", "image": BUSYBOX});
    let (status, problem) = installation.request(reqwest::Method::POST, "/api/v1/pods", Some(&body));
    assert_eq!(status, reqwest::StatusCode::CONFLICT, "{problem}");
    assert_eq!(installation.sh(&pod, "cat /workspace/work"), "work\n");
}

#[test]
fn p07_the_first_stop_after_a_fresh_start_keeps_the_work() {
    let installation = Installation::new();
    let pod = installation.pod(BUSYBOX, "runc");
    for cycle in 0..3 {
        installation.sh(&pod, &format!("echo {cycle} >/workspace/{cycle}; echo {cycle} >/tools-{cycle}"));
        installation.run(&pod, "stop");
        installation.run(&pod, "start");
        let found = installation.sh(&pod, "cat /workspace/* /tools-*");
        let expected: String = (0..=cycle).map(|n| format!("{n}\n")).collect();
        assert_eq!(found, format!("{expected}{expected}"));
    }
}

/// P9: an old container in the way, or an odd state, never costs data, and stop always captures.
#[test]
fn p09_stop_captures_whatever_state_the_container_is_in() {
    let installation = Installation::new();
    let pod = installation.pod(BUSYBOX, "runc");
    for (n, outside) in ["kill", "stop", "pause", "rm"].into_iter().enumerate() {
        installation.sh(&pod, &format!("echo {n} >/srv/{n}"));
        let container = installation.container(&pod);
        let arguments: &[&str] = if outside == "rm" { &["rm", "--force", &container] } else { &[outside, &container] };
        // The server's own answer to it and the stop may come in any order.
        let act = std::thread::scope(|scope| {
            let outside = scope.spawn(|| installation.docker.try_run(arguments));
            let operation = installation.act(&pod, "stop", &json!({}));
            outside.join().unwrap();
            operation
        });
        installation.succeeded(&act);
        installation.assert_released(&pod);
        assert_eq!(installation.show(&pod)["latestSnapshot"]["kind"], "final");
        installation.run(&pod, "start");
        assert_eq!(installation.sh(&pod, &format!("cat /srv/{n}")), format!("{n}\n"), "{outside}");
    }
}
