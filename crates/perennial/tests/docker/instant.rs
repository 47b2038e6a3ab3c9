//! Snapshots of running pods on a real Docker Engine: all volumes, and what no volume holds, at one instant.

use crate::installation::disk::{Disk, make_subvolume, move_elsewhere, subvolumes};
use crate::installation::steps::{assert_one_instant, while_counting};
use crate::installation::{BUSYBOX, Docker, Installation, Pod, eventually};
use serde_json::{Value, json};

/// What a server says when it reads in the freeze what it could have read later.
const NO_STILL: &str = "no still of the data";

/// Two volumes, and between them what no volume holds.
const COUNTED: [&str; 3] = ["/srv", "/data", "/home"];

fn everything_is_of_one_instant(runtime: &str, backend: &str) {
    let installation = Installation::new();
    let pod = installation.pod_with("dev", BUSYBOX, runtime, json!({"backend": backend}));
    installation.sh(&pod, "mkdir -p /data; for n in $(seq 400); do echo $n >/srv/file-$n; done");
    let taken = while_counting(&installation, &pod, &COUNTED, || installation.snapshot(&pod));
    assert_eq!((&taken["state"], &taken["consistency"]["grade"]), (&json!("verified"), &json!("frozen")), "{taken:#}");
    let copy =
        installation.pod_with("copy", BUSYBOX, runtime, json!({"backend": backend, "fromSnapshot": taken["id"]}));
    assert_one_instant(&installation, &copy, &COUNTED);
}

#[test]
fn runc_a_snapshot_of_overlay_volumes_and_the_layer_is_of_one_instant() {
    everything_is_of_one_instant("runc", "overlay");
}

#[test]
fn runc_a_snapshot_of_engine_volumes_and_the_layer_is_of_one_instant() {
    everything_is_of_one_instant("runc", "docker");
}

#[test]
fn runsc_a_snapshot_of_engine_volumes_and_the_layer_is_of_one_instant() {
    everything_is_of_one_instant("runsc", "docker");
}

/// An installation on btrfs, and a running pod.
fn on_btrfs(runtime: &str, more: &Value) -> (Installation, Disk, Pod) {
    let mut installation = Installation::prepared(Docker::shared(), &[]);
    let disk = Disk::mount("btrfs", installation.storage());
    installation.start_server();
    let mut spec = json!({"backend": "overlay"});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let pod = installation.pod_with("dev", BUSYBOX, runtime, spec);
    (installation, disk, pod)
}

/// Purges the pods, and sees that nothing is left on the disk.
fn leave(mut installation: Installation, disk: &Disk, pods: &[&Pod]) {
    for pod in pods {
        installation.run(pod, "purge");
    }
    assert_eq!(subvolumes(&disk.0), 0);
    for place in ["scratch", "trash"] {
        assert_eq!(std::fs::read_dir(disk.0.join(place)).unwrap().count(), 0, "{place}");
    }
    installation.stop_server();
    // Nothing may use the disk when it is unmounted.
    installation.docker.remove_labelled(installation.label());
}

fn stills_that_were_not_made(installation: &Installation) -> usize {
    installation.log().matches(NO_STILL).count()
}

fn restored(installation: &Installation, name: &str, runtime: &str, snapshot: &Value) -> Pod {
    installation.pod_with(name, BUSYBOX, runtime, json!({"backend": "overlay", "fromSnapshot": snapshot["id"]}))
}

/// The pod writes all the time: after the thaw, too, while the snapshot is read.
fn a_snapshot_on_btrfs_is_read_from_a_still(runtime: &str) {
    let (installation, disk, pod) = on_btrfs(runtime, &json!({}));
    installation.sh(
        &pod,
        "mkdir -p /data /home/links; for n in $(seq 400); do echo $n >/srv/file-$n; mkdir /home/links/$n
        echo $n >/home/links/$n/a; ln /home/links/$n/a /home/links/$n/b; done; sync",
    );
    let taken = while_counting(&installation, &pod, &COUNTED, || installation.snapshot(&pod));
    assert_eq!((&taken["state"], &taken["consistency"]["grade"]), (&json!("verified"), &json!("frozen")), "{taken:#}");
    assert_eq!((stills_that_were_not_made(&installation), subvolumes(&disk.0)), (0, 1), "{}", installation.log());
    let copy = restored(&installation, "copy", runtime, &taken);
    assert_one_instant(&installation, &copy, &COUNTED);
    // What did not change is what it was, although it is read from another subvolume each time: not even a tree is new.
    let sums = "cd /home/links && find . -type f | sort | xargs md5sum | md5sum; find . -links 2 -type f | wc -l";
    assert_eq!(installation.sh(&copy, sums), installation.sh(&pod, sums));
    installation.snapshot(&pod);
    let again = installation.snapshot(&pod);
    assert!(again["newBytes"].as_u64().unwrap() < 16 << 10, "{again:#}");
    assert_eq!(again["files"], installation.snapshot(&pod)["files"]);
    leave(installation, &disk, &[&pod, &copy]);
}

#[test]
fn runc_a_snapshot_on_btrfs_is_of_one_instant_and_read_from_a_still() {
    a_snapshot_on_btrfs_is_read_from_a_still("runc");
}

#[test]
fn runsc_a_snapshot_on_btrfs_is_of_one_instant_and_read_from_a_still() {
    a_snapshot_on_btrfs_is_read_from_a_still("runsc");
}

/// What the still would lack is read where it is, and the log says why.
#[test]
fn law_4_runc_what_is_outside_of_a_sets_subvolume_is_in_the_snapshot() {
    let (installation, disk, pod) = on_btrfs("runc", &json!({}));
    let whole = |why: &str, last: usize| {
        let taken = installation.snapshot(&pod);
        assert_eq!(taken["state"], "verified", "{taken:#}");
        assert_eq!(stills_that_were_not_made(&installation), last, "{why}");
        restored(&installation, &why.replace(' ', "-"), "runc", &taken)
    };
    installation.sh(&pod, "echo mine >/srv/mine; mkdir -p /home/deep; sync");
    let plain = whole("everything", 0);
    assert_eq!(installation.sh(&plain, "cat /srv/mine"), "mine\n");
    // A subvolume below, as somebody makes it on the host.
    let nested = installation.set(&pod).join("home/upper/deep/nested");
    make_subvolume(&nested);
    std::fs::write(nested.join("file"), "nested\n").unwrap();
    let with_nested = whole("a subvolume", 0);
    assert_eq!(installation.sh(&with_nested, "cat /home/deep/nested/file"), "nested\n");
    assert!(installation.log().contains("it is a subvolume of its own"), "{}", installation.log());
    // A volume that was moved to another disk.
    installation.run(&pod, "pause");
    move_elsewhere(&installation.set(&pod).join("srv"), &disk.0.join("elsewhere"));
    installation.run(&pod, "start");
    let with_link = whole("a link", 0);
    assert_eq!(installation.sh(&with_link, "cat /srv/mine /home/deep/nested/file"), "mine\nnested\n");
    assert!(installation.log().contains("a symbolic link"), "{}", installation.log());
    leave(installation, &disk, &[&pod, &plain, &with_nested, &with_link]);
}

/// D13: what a still keeps is not the pod's: one that is full is read from a still, and has the room that it had.
#[test]
fn d13_runc_a_pod_that_filled_its_quota_is_read_from_a_still() {
    let (installation, disk, pod) = on_btrfs("runc", &json!({"resources": {"disk": "32Mi"}}));
    let (said, _) =
        installation.try_sh(&pod, "dd if=/dev/urandom of=/home/big bs=64k count=1000 conv=fsync 2>&1; sync");
    assert!(said.contains("quota exceeded"), "{said}");
    let sum = installation.sh(&pod, "md5sum /home/big");
    let taken = installation.snapshot(&pod);
    assert_eq!((&taken["state"], stills_that_were_not_made(&installation)), (&json!("verified"), 0), "{taken:#}");
    assert!(!installation.try_sh(&pod, "mkdir /srv/more").1, "it is as full as it was");
    let copy = restored(&installation, "copy", "runc", &taken);
    assert_eq!(installation.sh(&copy, "md5sum /home/big"), sum);
    leave(installation, &disk, &[&pod, &copy]);
}

/// A server that dies between the still and the thaw leaves a frozen pod and a still: the next one lets the pod go on at once and
/// deletes what it was to be read from.
#[test]
fn runc_a_still_that_a_dead_server_left_goes_with_the_next_server() {
    let (mut installation, disk, pod) = on_btrfs("runc", &json!({}));
    installation.sh(&pod, "echo mine >/srv/mine; sync");
    let container = installation.container(&pod);
    installation.kill_server();
    installation.start_server_with_failpoint("engine.set_still:after");
    let _ = installation.try_request(
        reqwest::Method::POST,
        &format!("/api/v1/pods/{}/snapshots", pod.id),
        Some(&json!({})),
    );
    installation.wait_for_death("a snapshot");
    assert_eq!(subvolumes(&disk.0), 2);
    let left: Vec<_> = std::fs::read_dir(disk.0.join("scratch")).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(left.len(), 1, "{left:?}");
    let state =
        |docker: &Docker| docker.run(&["inspect", "--format", "{{.State.Status}}", &container]).trim().to_owned();
    assert_eq!(state(&installation.docker), "paused");
    installation.start_server();
    // Another one may be there by now.
    assert!(!left[0].exists());
    eventually("the pod goes on", || (state(&installation.docker) == "running").then_some(()));
    let taken = installation.snapshot(&pod);
    assert_eq!(taken["state"], "verified", "{taken:#}");
    let copy = restored(&installation, "copy", "runc", &taken);
    assert_eq!(installation.sh(&copy, "cat /srv/mine"), "mine\n");
    leave(installation, &disk, &[&pod, &copy]);
}
