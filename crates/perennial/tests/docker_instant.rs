//! Snapshots of running pods on a real Docker Engine: all volumes, and what no volume holds, at one instant.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod installation;

use installation::steps::{assert_one_instant, while_counting};
use installation::{BUSYBOX, Installation};
use serde_json::json;

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
