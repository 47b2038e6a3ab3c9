//! Archives on a real engine: a whole pod is exported, imported to another and restored there, by the real program.

use std::path::Path;
use std::process::Command;

use crate::installation::{BUSYBOX, Installation, but_for_the_images_times, fill, tree};
use serde_json::{Value, json};

fn perennial(installation: &Installation, arguments: &[&str]) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_perennial"))
        .args(["--server", installation.url(), "--output", "json", "--data-dir"])
        .arg(installation.data())
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn moves(from: &str, to: &str) {
    let installation = Installation::new();
    let origin = installation.pod_with("origin", BUSYBOX, "runc", json!({"backend": from}));
    fill(&installation, &origin);
    // Each backend has its own copy of the image, and what the pod did not touch is as there.
    let seen = |pod| but_for_the_images_times(&tree(&installation, pod));
    let before = seen(&origin);
    let snapshot = installation.snapshot(&origin);
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    perennial(&installation, &["snapshot", "export", snapshot["id"].as_str().unwrap(), "--tar", &file("pod.tar.zst")]);
    let copy = installation.pod_with("copy", BUSYBOX, "runc", json!({"backend": to}));
    installation.sh(&copy, "echo mine >/srv/mine");
    let imported = perennial(&installation, &["snapshot", "import", "copy", &file("pod.tar.zst")]);
    assert_eq!(
        (&imported["snapshot"]["state"], &imported["snapshot"]["kind"]),
        (&json!("verified"), &json!("imported"))
    );
    assert_eq!(installation.sh(&copy, "cat /srv/mine"), "mine\n", "an import alone changes nothing");
    installation.restore(&copy, &imported["snapshot"]);
    crate::installation::assert_same(&before, &seen(&copy));
    assert!(!installation.try_sh(&copy, "[ -e /etc/motd ]").1, "/etc/motd was deleted");
    // It goes on like any other pod.
    installation.run(&copy, "stop");
    installation.run(&copy, "start");
    crate::installation::assert_same(&before, &seen(&copy));
    let left = std::fs::read_dir(Path::new(&installation.data()).join("imports")).unwrap().count();
    assert_eq!(left, 0, "nothing of the archive is left");
}

#[test]
fn docker_a_whole_pod_comes_from_an_archive_to_overlay_volumes() {
    moves("docker", "overlay");
}

#[test]
fn docker_a_whole_pod_comes_from_an_archive_to_engine_volumes() {
    moves("overlay", "docker");
}
