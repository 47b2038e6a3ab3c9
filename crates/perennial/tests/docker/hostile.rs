//! Pods that work against the server which captures and restores them: nothing outside their volumes is read or
//! changed, and nothing hangs.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::installation::{BUSYBOX, Installation};
use serde_json::json;

/// What nobody else on this machine has in a file.
const SECRET: &str = "canary-5d1f0c9b7a";

/// Everything that a write, chown, chmod or deletion would change.
fn look(path: &Path) -> Vec<String> {
    let mut seen: Vec<String> = std::fs::read_dir(path)
        .unwrap()
        .map(|e| e.unwrap().path())
        .chain([path.to_owned()])
        .map(|p| {
            let m = p.symlink_metadata().unwrap();
            let content = if m.is_file() { std::fs::read_to_string(&p).unwrap() } else { String::new() };
            format!("{} {:o} {}:{} {} {} {content}", p.display(), m.mode(), m.uid(), m.gid(), m.ctime(), m.ctime_nsec())
        })
        .collect();
    seen.sort();
    seen
}

fn hostile(runtime: &str) {
    let mut installation = Installation::new();
    let canary = installation.directory.path().join("canary");
    std::fs::create_dir(&canary).unwrap();
    for name in ["file", "passwd", "deep"] {
        std::fs::write(canary.join(name), SECRET).unwrap();
    }
    let before = look(&canary);
    // Directories become links to the canary, to the host's root and to each other, fifos, devices and sockets, as fast
    // as the pod can; a tree deep and wide enough that a scan is in it meanwhile.
    let churn = format!(
        "trap 'exit 0' TERM
        swap() {{
            cd $1; mkdir -p swap/deep/er; echo x >swap/file; echo y >swap/deep/file; ln -sf {0} link
            for n in 1 2 3 4 5 6 7 8 9; do mkdir -p tree$n/a/b/c; for m in 1 2 3 4 5 6 7 8 9; do echo $n >tree$n/a/$m; done; done
            while :; do
                mv swap away; ln -s {0} swap; rm swap; ln -s / swap; rm swap; ln -s ../../../../../../../../../.. swap; rm swap
                mkfifo swap; rm swap; mknod swap c 1 5; rm -f swap; mknod swap b 8 0; rm -f swap; mv away swap
                rm swap/file; mkfifo swap/file; rm swap/file; ln -s {0}/file swap/file; rm swap/file; echo x >swap/file
                mv tree1 gone; ln -s {0} tree1; rm tree1; mv gone tree1
            done
        }}
        (swap /srv) 2>/dev/null & (swap /home) 2>/dev/null & wait",
        canary.display()
    );
    let pod = installation.pod_with("dev", BUSYBOX, runtime, json!({"command": ["sh", "-c", churn], "stopTimeout": 1}));
    let mut good = None;
    for _ in 0..4 {
        // It may fail, for a file that changed; it may not hang, and may not follow.
        let answer = installation.post(&format!("/api/v1/pods/{}/snapshots", pod.id), &json!({}));
        let operation = installation.ended(answer["operation"]["id"].as_str().unwrap());
        if operation["state"] == "succeeded" {
            good = Some(answer["snapshot"].clone());
        } else {
            assert_eq!(operation["error"]["code"], "snapshot-incomplete", "{operation:#}");
        }
        assert_eq!(look(&canary), before);
    }
    installation.restore(&pod, &good.expect("no snapshot of a frozen pod succeeded"));
    assert_eq!(look(&canary), before);
    for _ in 0..2 {
        installation.run(&pod, "stop");
        installation.assert_released(&pod);
        installation.run(&pod, "start");
        assert_eq!(look(&canary), before);
    }
    installation.kill_server();
    installation.start_server();
    installation.run(&pod, "delete");
    assert_eq!(look(&canary), before);
    // Nothing of it is in any snapshot.
    let password = std::fs::read_to_string(installation.data().join("keys/default")).unwrap();
    let restic = |arguments: &[&str]| {
        let output = std::process::Command::new("restic")
            .arg("--repo")
            .arg(installation.repository())
            .arg("--no-cache")
            .args(arguments)
            .env("RESTIC_PASSWORD", password.trim())
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let all: serde_json::Value = serde_json::from_str(&restic(&["snapshots", "--json"])).unwrap();
    let tag = format!("pod:{}", pod.id);
    let mut searched = 0;
    for snapshot in all.as_array().unwrap() {
        if snapshot["tags"].as_array().is_some_and(|tags| tags.iter().any(|t| *t == json!(tag))) {
            let content = restic(&["dump", snapshot["id"].as_str().unwrap(), "/"]);
            assert!(content.contains("pod.json"), "nothing was read");
            assert!(!content.contains(SECRET), "the canary was captured");
            searched += 1;
        }
    }
    assert!(searched >= 3, "{searched} snapshots");
}

#[test]
fn runc_a_hostile_pod_reaches_nothing_outside_its_volumes() {
    hostile("runc");
}

#[test]
fn runsc_a_hostile_pod_reaches_nothing_outside_its_volumes() {
    hostile("runsc");
}
