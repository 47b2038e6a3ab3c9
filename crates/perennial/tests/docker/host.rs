//! What a pod takes on its host, and what of it is not meant to last.

use std::path::{Path, PathBuf};

use crate::installation::{BUSYBOX, Installation, Pod, VOLUMES, allocated};
use serde_json::json;

on_both! {
    scratch_paths => runc_what_is_in_tmp_and_run_is_gone_after_a_start, runsc_what_is_in_tmp_and_run_is_gone_after_a_start;
}

const MB: u64 = 1_000_000;

fn pod(installation: &Installation, backend: &str) -> Pod {
    installation.pod_with(&format!("on-{backend}"), BUSYBOX, "runc", json!({"backend": backend}))
}

/// Writes, and removes, as the pod; every volume is looked at from the host.
fn grows_and_shrinks(installation: &Installation, pod: &Pod, workspace: &Path) {
    let empty = allocated(workspace);
    let grown = || allocated(workspace) - empty;
    installation.sh(pod, "head -c 8000000 /dev/urandom >/workspace/file && sync");
    assert!((8 * MB..9 * MB).contains(&grown()), "8 MB of random bytes take {}", grown());
    installation.sh(pod, "truncate -s 4G /workspace/sparse && printf x | dd of=/workspace/sparse bs=1 seek=3000000000 conv=notrunc 2>/dev/null && sync");
    assert_eq!(installation.sh(pod, "stat -c %s /workspace/sparse").trim(), "4294967296");
    assert!(grown() < 9 * MB, "a hole of 4 GiB takes no room: {}", grown());
    installation.sh(pod, "rm /workspace/file /workspace/sparse && sync");
    assert!(grown() < MB / 10, "what was removed takes room: {}", grown());
}

#[test]
fn runc_overlay_volumes_are_small_while_empty_and_grow_by_what_is_written() {
    let installation = Installation::new();
    let pod = pod(&installation, "overlay");
    let set = installation.set(&pod);
    let volumes: Vec<PathBuf> =
        std::fs::read_dir(&set).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()).collect();
    assert!(volumes.len() >= VOLUMES.len(), "{volumes:?}");
    let all = allocated(&set);
    assert!(all < MB, "all {} volumes of a new pod take {all} bytes", volumes.len());
    grows_and_shrinks(&installation, &pod, &set.join("workspace"));
}

#[test]
fn runc_engine_volumes_are_small_while_empty_and_grow_by_what_is_written() {
    let installation = Installation::new();
    let pod = pod(&installation, "docker");
    // Those for which the image has nothing; the others hold a copy of what it has.
    for volume in ["workspace", "srv", "opt"] {
        let bytes = allocated(&installation.mountpoint(&pod, volume));
        assert!(bytes < MB, "{volume} takes {bytes} bytes");
    }
    grows_and_shrinks(&installation, &pod, &installation.mountpoint(&pod, "workspace"));
}

fn scratch_paths(runtime: &str) {
    let installation = Installation::new();
    for backend in ["overlay", "docker"] {
        let pod = installation.pod_with(&format!("on-{backend}"), BUSYBOX, runtime, json!({"backend": backend}));
        for actions in [&["pause", "start"][..], &["restart"], &["stop", "start"]] {
            installation
                .sh(&pod, "echo 1 >/tmp/file; mkdir -p /run/directory; echo 1 >/run/directory/file; echo 1 >/srv/file");
            actions.iter().for_each(|action| installation.run(&pod, action));
            let left = installation.sh(&pod, "find /tmp /run -mindepth 1 ! -name '.*' | sort; cat /srv/file");
            assert_eq!(left, "1\n", "{runtime}, {backend}, after {actions:?}");
            let sticky = installation.sh(&pod, "stat -c %a /tmp");
            assert_eq!(sticky, "1777\n", "everybody may write to /tmp after {actions:?}");
        }
    }
}

#[test]
fn runc_what_volumes_take_up_is_shown() {
    let installation = Installation::new();
    for backend in ["overlay", "docker"] {
        let pod = pod(&installation, backend);
        installation.sh(&pod, "head -c 8000000 /dev/urandom >/workspace/file && sync");
        let volumes = installation.get(&format!("/api/v1/pods/{}/volumes", pod.id));
        let used = |name: &str| {
            let volume = volumes["items"].as_array().unwrap().iter().find(|v| v["name"] == name).unwrap();
            volume["usedBytes"].as_u64().unwrap()
        };
        assert!((8 * MB..9 * MB).contains(&used("workspace")), "{backend}: {volumes:#}");
        assert!(used("srv") < MB, "{backend}: {volumes:#}");
        installation.run(&pod, "stop");
        let volumes = installation.get(&format!("/api/v1/pods/{}/volumes", pod.id));
        assert!(volumes["items"].as_array().unwrap().iter().all(|v| v["usedBytes"].is_null()), "{volumes:#}");
    }
}
