//! The server dies, data and repository vanish, disks fill up: nothing is lost, and nothing starts empty.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::installation::{
    BUSYBOX, Docker, Installation, Pod, Tree, assert_same, assert_same_when, eventually, fill, tree,
};
use reqwest::Method;
use serde_json::{Value, json};

// ---- killed at named points ------------------------------------------------------------------------------------

/// Points on the way of a stop.
const STOP: [&str; 10] = [
    "store.commit:after#3",
    "repository.write:before",
    "engine.container_stop:before",
    "engine.container_stop:after",
    "repository.write:after#2",
    "engine.layer_access:after",
    "engine.container_remove:before",
    "engine.container_remove:after",
    "engine.set_delete:before",
    "engine.set_delete:after",
];

/// Points on the way of a start from the repository.
const START: [&str; 9] = [
    "store.commit:before#3",
    "engine.set_prepare:before",
    "engine.set_prepare:after",
    "repository.read:after#2",
    "engine.set_complete:before",
    "engine.container_ensure:before",
    "engine.container_ensure:after",
    "engine.container_start:before",
    "engine.container_start:after",
];

/// Points on the way of a restore of a running pod.
const RESTORE: [&str; 10] = [
    "store.commit:after#4",
    "repository.write:after#2",
    "engine.container_stop:after",
    "engine.set_prepare:after",
    "engine.set_complete:after",
    "engine.container_remove:before",
    "engine.container_remove:after",
    "engine.container_ensure:after",
    "engine.container_start:before",
    "engine.set_delete:after",
];

fn killed_during_stop(runtime: &str, points: &[&str]) {
    let mut installation = Installation::new();
    let pod = installation.pod(BUSYBOX, runtime);
    fill(&installation, &pod);
    for point in points {
        installation
            .sh(&pod, &format!("echo '{point}' >/srv/now; cp /srv/now /data/now; cp /srv/now \"/home/$(date +%N)\""));
        let before = tree(&installation, &pod);
        installation.dies_and_goes_on(&pod, point, "stop", &json!({}));
        installation.assert_phase(&pod, "stopped");
        installation.assert_released(&pod);
        installation.run(&pod, "start");
        assert_same_when(point, &before, &tree(&installation, &pod));
    }
}

fn killed_during_start(runtime: &str, points: &[&str]) {
    let mut installation = Installation::new();
    let pod = installation.pod(BUSYBOX, runtime);
    fill(&installation, &pod);
    for point in points {
        installation.sh(&pod, &format!("echo '{point}' >/srv/now; cp /srv/now /data/now"));
        let before = tree(&installation, &pod);
        installation.run(&pod, "stop");
        installation.dies_and_goes_on(&pod, point, "start", &json!({}));
        installation.assert_phase(&pod, "running");
        assert_same_when(point, &before, &tree(&installation, &pod));
    }
}

fn killed_during_restore(runtime: &str, points: &[&str]) {
    let mut installation = Installation::new();
    let pod = installation.pod(BUSYBOX, runtime);
    fill(&installation, &pod);
    let then = tree(&installation, &pod);
    let taken = installation.snapshot(&pod);
    let body = json!({"snapshotId": taken["id"], "confirm": pod.name});
    for point in points {
        installation
            .sh(&pod, &format!("rm -rf /opt/made; echo '{point}' >/srv/made/plain; echo '{point}' >/data/later"));
        installation.dies_and_goes_on(&pod, point, "restore", &body);
        installation.assert_phase(&pod, "running");
        assert_same_when(point, &then, &tree(&installation, &pod));
        let sets = eventually("one set is left", || {
            let sets = installation.sets(&pod);
            (sets.len() == 1).then_some(sets)
        });
        assert!(sets[0].is_dir());
        let safe =
            installation.snapshots(&pod).iter().filter(|s| s["kind"] == "safety" && s["state"] == "verified").count();
        assert!(safe > 0, "{point}: no safety snapshot");
    }
}

#[test]
fn runc_killed_at_every_point_of_a_stop() {
    killed_during_stop("runc", &STOP);
}

#[test]
fn runsc_killed_at_points_of_a_stop() {
    killed_during_stop("runsc", &[STOP[3], STOP[4], STOP[7], STOP[9]]);
}

#[test]
fn runc_killed_at_every_point_of_a_start() {
    killed_during_start("runc", &START);
}

#[test]
fn runsc_killed_at_points_of_a_start() {
    killed_during_start("runsc", &[START[2], START[6], START[7], START[8]]);
}

#[test]
fn runc_killed_at_every_point_of_a_restore() {
    killed_during_restore("runc", &RESTORE);
}

#[test]
fn runsc_killed_at_points_of_a_restore() {
    killed_during_restore("runsc", &[RESTORE[2], RESTORE[4], RESTORE[6], RESTORE[9]]);
}

// ---- removed from outside --------------------------------------------------------------------------------------

fn definitions_removed(runtime: &str) {
    let mut installation = Installation::new();
    let pod = installation.pod_with("dev", BUSYBOX, runtime, json!({"backend": "overlay"}));
    fill(&installation, &pod);
    let volumes_only = |mut tree: Tree| {
        tree.retain(|path, _| !path.starts_with("/data"));
        tree
    };
    let before = volumes_only(tree(&installation, &pod));
    installation.kill_server();
    let (containers, volumes) = installation.on_engine(&pod);
    assert_eq!((containers.len(), volumes.len() >= 8), (1, true));
    installation.docker.run(&["rm", "--force", &containers[0]]);
    for volume in &volumes {
        installation.docker.run(&["volume", "rm", volume]);
    }
    installation.start_server();
    installation.replaced(&pod, &containers[0]);
    assert_same(&before, &volumes_only(tree(&installation, &pod)));
}

#[test]
fn runc_removed_volume_definitions_are_made_again() {
    definitions_removed("runc");
}

#[test]
fn runsc_removed_volume_definitions_are_made_again() {
    definitions_removed("runsc");
}

fn data_removed(runtime: &str) {
    let installation = Installation::new();
    let pod = installation.pod_with("dev", BUSYBOX, runtime, json!({"backend": "overlay"}));
    fill(&installation, &pod);
    let before = tree(&installation, &pod);
    installation.run(&pod, "pause");
    let set = installation.set(&pod);
    let aside = installation.directory.path().join("aside");
    // Three of eight volumes there is a repair state, none is a loss, and neither starts.
    for (what, code, condition) in
        [(set.join("home"), "volume-data-partial", "DataPartial"), (set.clone(), "volume-data-lost", "DataLost")]
    {
        std::fs::rename(&what, &aside).unwrap();
        assert_eq!(installation.refused(&pod, "start"), code);
        installation.assert_phase(&pod, "error");
        assert!(installation.has_condition(&pod, condition));
        assert!(!what.exists(), "something was made in its place");
        std::fs::rename(&aside, &what).unwrap();
        installation.run(&pod, "start");
        assert_same(&before, &tree(&installation, &pod));
        installation.run(&pod, "pause");
    }
}

#[test]
fn p36_runc_removed_data_refuses_the_start_until_it_is_back() {
    data_removed("runc");
}

#[test]
fn p36_runsc_removed_data_refuses_the_start_until_it_is_back() {
    data_removed("runsc");
}

#[test]
fn p39_an_engine_volume_in_use_elsewhere_or_removed_outside_never_starts_empty() {
    let installation = Installation::new();
    let pod = installation.pod_with("dev", BUSYBOX, "runc", json!({"backend": "docker"}));
    installation.sh(&pod, "echo mine >/srv/mine");
    let taken = installation.snapshot(&pod);
    installation.run(&pod, "pause");
    let (containers, volumes) = installation.on_engine(&pod);
    installation.docker.run(&["rm", "--force", &containers[0]]);
    let srv = volumes.iter().find(|v| v.ends_with("srv") || v.contains("-srv")).unwrap();
    installation.docker.run(&["volume", "rm", srv]);
    assert_eq!(installation.refused(&pod, "start"), "volume-data-partial");
    assert_eq!(installation.on_engine(&pod).1.len(), volumes.len() - 1, "a missing volume was made anew");
    installation.restore(&pod, &taken);
    installation.run(&pod, "start");
    assert_eq!(installation.sh(&pod, "cat /srv/mine"), "mine\n");
}

/// Overlay rule 5: a process that outlives its container may go on writing, so the final pass waits for its end.
#[test]
fn runc_a_process_that_outlives_its_container_keeps_the_stop_waiting() {
    let installation = Installation::new();
    let pod = installation.pod_with("dev", BUSYBOX, "runc", json!({"backend": "overlay"}));
    fill(&installation, &pod);
    let container = installation.container(&pod);
    let pid = installation.docker.run(&["inspect", "--format", "{{.State.Pid}}", &container]);
    // In the container's mounts, and in nothing else of it.
    let mut process = Command::new("nsenter")
        .args(["--mount", &format!("--target={}", pid.trim()), "sh", "-c", "echo in; cat >/srv/late; echo written"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = std::io::BufRead::lines(std::io::BufReader::new(process.stdout.take().unwrap()));
    assert_eq!(said.next().unwrap().unwrap(), "in");
    let operation = installation.ended(&installation.act(&pod, "stop", &json!({})));
    assert_eq!(operation["error"]["code"], "foreign-writer", "{operation:#}");
    assert!(operation["error"].to_string().contains(&format!("process {}", process.id())), "{operation:#}");
    assert!(installation.has_condition(&pod, "ForeignWriter"));
    assert!(!installation.snapshots(&pod).iter().any(|s| s["state"] == "verified"), "captured beside a writer");
    assert!(installation.set(&pod).join("srv/upper").exists());
    std::io::Write::write_all(&mut process.stdin.take().unwrap(), b"late\n").unwrap();
    assert_eq!(said.next().unwrap().unwrap(), "written");
    assert!(process.wait().unwrap().success());
    // A stop that failed leaves the pod running, as soon as it may; and then it can be stopped.
    eventually("the pod runs again", || (installation.phase(&pod) == "running").then_some(()));
    installation.run(&pod, "stop");
    installation.assert_released(&pod);
    installation.run(&pod, "start");
    assert_eq!(installation.sh(&pod, "cat /srv/late /srv/made/plain >/dev/null; cat /srv/late"), "late\n");
}

/// D34: what is left of a damaged pod is captured and let go once its owner accepts exactly what is missing.
#[test]
fn p15_a_pod_without_some_of_its_volumes_or_its_marker_is_deleted_and_purged() {
    for (backend, lost) in
        [("overlay", &["/volumes/home", "/marker"][..]), ("docker", &["/volumes/home", "/volumes/srv"])]
    {
        let installation = Installation::new();
        let pod = installation.pod_with("dev", BUSYBOX, "runc", json!({"backend": backend}));
        installation.sh(&pod, "echo kept >/opt/kept; echo gone >/home/gone; sync");
        installation.run(&pod, "pause");
        if backend == "overlay" {
            std::fs::remove_dir_all(installation.set(&pod).join("home")).unwrap();
            std::fs::remove_file(installation.set(&pod).join("set.json")).unwrap();
        } else {
            let (containers, volumes) = installation.on_engine(&pod);
            installation.docker.run(&["rm", "--force", &containers[0]]);
            for volume in volumes.iter().filter(|v| v.ends_with("-home") || v.ends_with("-srv")) {
                installation.docker.run(&["volume", "rm", volume]);
            }
        }
        assert_eq!(installation.refused(&pod, "stop"), "volume-data-partial");
        let accept = |paths: &[&str]| json!({"acceptLoss": paths, "confirm": pod.name});
        let refused = installation.ended(&installation.act(&pod, "delete", &accept(&lost[..1])));
        assert_eq!(refused["error"]["code"], "snapshot-incomplete", "{refused:#}");
        assert!(refused["error"].to_string().contains(lost[1]), "{refused:#}");
        installation.do_with(&pod, "delete", &accept(lost));
        installation.assert_released(&pod);
        let kept = installation.snapshots(&pod);
        assert!(kept.iter().any(|s| s["state"] == "verified"), "{kept:#?}");
        installation.run(&pod, "undelete");
        installation.run(&pod, "start");
        assert_eq!(installation.sh(&pod, "cat /opt/kept; test ! -e /home/gone"), "kept\n");
        installation.run(&pod, "purge");
        installation.assert_released(&pod);
    }
}

/// A pod lives on file systems that copy in an instant as on any other; on btrfs its set is a subvolume that goes with it.
#[test]
fn runc_a_pod_lives_on_btrfs_and_on_xfs() {
    let script = std::env::var("PERENNIAL_TEST_LOOPFS_SCRIPT").expect("PERENNIAL_TEST_LOOPFS_SCRIPT: ./dev env");
    let subvolumes = |at: &Path| {
        let output = Command::new("btrfs").args(["subvolume", "list"]).arg(at).output().unwrap();
        assert!(output.status.success());
        String::from_utf8_lossy(&output.stdout).lines().count()
    };
    for kind in ["btrfs", "xfs"] {
        let mut installation = Installation::prepared(Docker::shared(), &[]);
        let disk = installation.storage();
        assert!(Command::new(&script).args(["mount", kind]).arg(&disk).status().unwrap().success());
        installation.start_server();
        let pod = installation.pod(BUSYBOX, "runc");
        fill(&installation, &pod);
        let before = tree(&installation, &pod);
        if kind == "btrfs" {
            assert_eq!(subvolumes(&disk), 1);
        }
        installation.run(&pod, "stop");
        installation.assert_released(&pod);
        if kind == "btrfs" {
            assert_eq!(subvolumes(&disk), 0);
        }
        installation.run(&pod, "start");
        assert_same(&before, &tree(&installation, &pod));
        installation.run(&pod, "delete");
        installation.run(&pod, "purge");
        installation.assert_released(&pod);
        if kind == "btrfs" {
            assert_eq!(subvolumes(&disk), 0);
        }
        installation.stop_server();
        assert!(Command::new(&script).arg("umount").arg(&disk).status().unwrap().success());
    }
}

/// D13: a pod that may take so much on btrfs fills it, is stopped whole, starts, and is given more while it runs.
#[test]
fn d13_runc_a_pod_that_filled_its_quota_is_captured_starts_and_grows() {
    let script = std::env::var("PERENNIAL_TEST_LOOPFS_SCRIPT").expect("PERENNIAL_TEST_LOOPFS_SCRIPT: ./dev env");
    let mut installation = Installation::prepared(Docker::shared(), &[]);
    let disk = installation.storage();
    assert!(Command::new(&script).args(["mount", "btrfs"]).arg(&disk).status().unwrap().success());
    installation.start_server();
    let pod = installation.pod_with("full", BUSYBOX, "runc", json!({"resources": {"disk": "32Mi"}}));
    let (said, _) =
        installation.try_sh(&pod, "dd if=/dev/urandom of=/home/big bs=64k count=1000 conv=fsync 2>&1; sync");
    assert!(said.contains("quota exceeded"), "{said}");
    let before = tree(&installation, &pod);
    assert!(before.contains_key("/home/big"));
    for action in ["restart", "stop", "start", "pause", "start"] {
        installation.run(&pod, action);
    }
    assert_same(&before, &tree(&installation, &pod));
    assert!(!installation.try_sh(&pod, "mkdir /srv/more").1, "it is as full as it was");
    let path = format!("/api/v1/pods/{}", pod.id);
    let (status, grown) = installation.request(Method::PATCH, &path, Some(&json!({"resources": {"disk": "200Mi"}})));
    assert!(status.is_success(), "{grown}");
    // While it runs: nothing was restarted.
    eventually("it was given more", || installation.try_sh(&pod, "mkdir -p /srv/more").1.then_some(()));
    let shown = installation.show(&pod);
    assert!(shown["conditions"].as_array().unwrap().is_empty(), "{shown:#}");
    installation.run(&pod, "delete");
    installation.run(&pod, "purge");
    installation.stop_server();
    assert!(Command::new(&script).arg("umount").arg(&disk).status().unwrap().success());
}

// ---- the repository --------------------------------------------------------------------------------------------

/// P11: a start whose backup is not found fails and says so; it never starts something else.
#[test]
fn p11_a_start_without_its_repository_fails_and_works_when_it_is_back() {
    let mut installation = Installation::new();
    let pod = installation.pod(BUSYBOX, "runc");
    fill(&installation, &pod);
    let before = tree(&installation, &pod);
    installation.run(&pod, "stop");
    let aside = installation.directory.path().join("aside");
    for restarted in [false, true] {
        std::fs::rename(installation.repository(), &aside).unwrap();
        if restarted {
            installation.kill_server();
            installation.start_server();
        }
        let operation = installation.ended(&installation.act(&pod, "start", &json!({})));
        assert_eq!(operation["state"], "failed", "{operation:#}");
        let code = operation["error"]["code"].as_str().unwrap();
        assert!(code.starts_with("repository-"), "{operation:#}");
        installation.assert_released(&pod);
        assert!(!installation.repository().join("config").exists(), "another repository was made in its place");
        std::fs::rename(&aside, installation.repository()).unwrap();
    }
    installation.run(&pod, "start");
    assert_same(&before, &tree(&installation, &pod));
}

/// P11: what the stop wrote is damaged afterwards: the start says so, and works when the bytes are back.
#[test]
fn p11_a_start_from_a_damaged_snapshot_fails_and_works_when_it_is_mended() {
    let installation = Installation::new();
    let pod = installation.pod(BUSYBOX, "runc");
    fill(&installation, &pod);
    let before = tree(&installation, &pod);
    installation.run(&pod, "stop");
    let aside = installation.directory.path().join("aside");
    let packs = installation.repository().join("data");
    std::fs::rename(&packs, &aside).unwrap();
    let operation = installation.ended(&installation.act(&pod, "start", &json!({})));
    assert_eq!(operation["state"], "failed", "{operation:#}");
    assert!(operation["error"]["code"].as_str().unwrap().starts_with("repository-"), "{operation:#}");
    assert_eq!(installation.on_engine(&pod).0, Vec::<String>::new());
    let _ = std::fs::remove_dir_all(&packs);
    std::fs::rename(&aside, &packs).unwrap();
    installation.run(&pod, "start");
    assert_same(&before, &tree(&installation, &pod));
}

/// A small file system in memory; unmounted when dropped.
struct Small(PathBuf);

impl Small {
    fn on(directory: &Path, size: &str) -> Self {
        std::fs::create_dir_all(directory).unwrap();
        Self::mount(&[
            "-t",
            "tmpfs",
            "-o",
            &format!("size={size},mode=700"),
            "tmpfs",
            &directory.display().to_string(),
        ]);
        Self(directory.to_owned())
    }

    fn grow(&self, size: &str) {
        Self::mount(&["-o", &format!("remount,size={size}"), &self.0.display().to_string()]);
    }

    fn mount(arguments: &[&str]) {
        assert!(Command::new("mount").args(arguments).status().unwrap().success(), "{arguments:?}");
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// An installation whose repository has little room, a running pod, and more data in it than fits.
fn little_room() -> (Installation, Small, Pod) {
    let mut installation = Installation::prepared(Docker::shared(), &[]);
    let small = Small::on(&installation.data().join("repositories"), "24m");
    installation.start_server();
    let pod = installation.pod(BUSYBOX, "runc");
    fill(&installation, &pod);
    installation.sh(&pod, "dd if=/dev/urandom of=/srv/big bs=1048576 count=40 2>/dev/null");
    (installation, small, pod)
}

/// P13: the stop is not called done while the repository is full: the data stays, the operation says why.
#[test]
fn p13_a_full_repository_keeps_the_data_and_the_stop_succeeds_when_there_is_room() {
    let (installation, small, pod) = little_room();
    let before = tree(&installation, &pod);
    let operation = installation.act(&pod, "stop", &json!({}));
    let problem = eventually("the operation says why", || {
        let shown = installation.operation(&operation);
        assert_eq!(shown["finishedAt"], json!(null), "{shown:#}");
        shown["error"]["detail"].as_str().or(shown["error"]["message"].as_str()).map(str::to_owned)
    });
    assert!(problem.to_lowercase().contains("space"), "{problem}");
    let verified = |s: &Value| s["state"] == "verified";
    assert!(!installation.snapshots(&pod).iter().any(verified));
    let (containers, volumes) = installation.on_engine(&pod);
    assert_eq!((containers.len(), volumes.len() >= 8), (1, true), "{containers:?} {volumes:?}");
    assert!(installation.set(&pod).join("srv/upper/big").exists());
    small.grow("300m");
    installation.succeeded(&operation);
    installation.assert_released(&pod);
    installation.run(&pod, "start");
    assert_same(&before, &tree(&installation, &pod));
}

/// P30: a snapshot that cannot be taken leaves the pod running.
#[test]
fn p30_a_failing_snapshot_leaves_the_pod_running() {
    let (installation, small, pod) = little_room();
    let container = installation.container(&pod);
    let answer = installation.post(&format!("/api/v1/pods/{}/snapshots", pod.id), &json!({}));
    let operation = answer["operation"]["id"].as_str().unwrap();
    eventually("the operation says why", || installation.operation(operation)["error"].as_object().cloned());
    // Not frozen, not stopped: it answers.
    assert_eq!(installation.sh(&pod, "echo alive"), "alive\n");
    assert_eq!(installation.container(&pod), container);
    small.grow("300m");
    let ended = installation.ended(operation);
    assert_eq!(installation.sh(&pod, "echo alive"), "alive\n");
    if ended["state"] == "failed" {
        assert_eq!(installation.snapshot(&pod)["state"], "verified");
    }
    installation.assert_phase(&pod, "running");
}

/// P35: a pod that filled its disk is captured, stopped and started all the same, and works on when there is room.
#[test]
fn p35_a_pod_that_filled_its_disk_is_captured_stopped_and_started_all_the_same() {
    let mut installation = Installation::prepared(Docker::shared(), &[]);
    let small = Small::on(&installation.storage(), "64m");
    installation.start_server();
    let pod = installation.pod(BUSYBOX, "runc");
    fill(&installation, &pod);
    let (said, wrote_all) = installation.try_sh(&pod, "dd if=/dev/urandom of=/srv/big bs=65536 count=2000 2>&1");
    assert!(!wrote_all && said.contains("No space left"), "{said}");
    let before = tree(&installation, &pod);
    assert_eq!(installation.snapshot(&pod)["state"], "verified");
    for action in ["restart", "pause", "start", "stop", "start"] {
        installation.run(&pod, action);
    }
    assert_same(&before, &tree(&installation, &pod));
    small.grow("128m");
    installation.sh(&pod, "dd if=/dev/urandom of=/srv/more bs=65536 count=100 2>/dev/null");
}

// ---- servers ---------------------------------------------------------------------------------------------------

#[test]
fn a_second_server_on_the_same_data_is_refused() {
    let installation = Installation::new();
    let pod = installation.pod(BUSYBOX, "runc");
    let (status, said) = installation.refused_server();
    assert!(!status.success());
    assert!(said.contains("another server uses"), "{said}");
    assert_eq!(installation.sh(&pod, "echo alive"), "alive\n");
}
