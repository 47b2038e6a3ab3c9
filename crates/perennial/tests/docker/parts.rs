//! Restores of parts, and clones, on a real Docker Engine: nothing but what was chosen changes, down to times and links.

use std::collections::BTreeMap;

use crate::installation::{BUSYBOX, DEBIAN, Installation, Pod, fill, tree};
use reqwest::Method;
use serde_json::{Value, json};

/// A pod that was filled, a snapshot of it, and a later present.
fn past_and_present(installation: &Installation, pod: &Pod) -> Value {
    fill(installation, pod);
    // The file that a tree needs is made, so that directories have their times.
    let _ = tree(installation, pod);
    let taken = installation.snapshot(pod);
    installation.sh(
        pod,
        "set -e; rm -r /srv/made; echo later >/home/later; rm /home/made/plain; echo changed >/opt/made/large
        rm -r /data/made; mkdir /data/made; echo now >/data/made/plain; echo now >/data/now; echo now >/var/now
        rm -rf /etc/made; echo 'a file now' >/etc/made; echo now >/etc/group",
    );
    taken
}

fn parts_are_put_back(image: &str, backend: &str) {
    let installation = Installation::new();
    let pod = installation.pod_with("dev", image, "runc", json!({"backend": backend}));
    let taken = past_and_present(&installation, &pod);
    let then = {
        // What the snapshot has, as a pod sees it.
        let answer = installation.post(
            "/api/v1/pods",
            &json!({"name": "then", "fromSnapshot": taken["id"], "runtime": "runc", "backend": backend}),
        );
        installation.succeeded(answer["operation"]["id"].as_str().unwrap());
        let other = Pod { id: answer["pod"]["id"].as_str().unwrap().to_owned(), name: "then".to_owned() };
        tree(&installation, &other)
    };
    let now = tree(&installation, &pod);
    let chosen = ["/home", "/srv/made", "/opt/made/large", "/data/made", "/etc/made", "/etc/group"];
    let body = json!({
        "snapshotId": taken["id"], "confirm": "dev", "volumes": ["home"], "paths": &chosen[1..],
    });
    let mut dry = body.clone();
    dry["dryRun"] = json!(true);
    let preview = installation.post(&format!("/api/v1/pods/{}/restore", pod.id), &dry);
    assert_eq!((&preview["dryRun"], &preview["comparedWith"]), (&json!(true), &taken["id"]), "{preview:#}");
    installation.do_with(&pod, "restore", &body);
    installation.assert_phase(&pod, "running");
    let is_chosen = |path: &str| chosen.iter().any(|c| path == *c || path.starts_with(&format!("{c}/")));
    let mut expected = now;
    expected.retain(|path, _| !is_chosen(path));
    expected.extend(then.into_iter().filter(|(path, _)| is_chosen(path)));
    crate::installation::assert_same(&expected, &tree(&installation, &pod));
    // Once more out of the repository: it is the pod's data like any other.
    installation.run(&pod, "stop");
    installation.run(&pod, "start");
    crate::installation::assert_same(&expected, &tree(&installation, &pod));
}

#[test]
fn p25_runc_chosen_parts_are_put_back_and_nothing_else_changes() {
    parts_are_put_back(DEBIAN, "overlay");
}

#[test]
fn p25_runc_chosen_parts_are_put_back_on_engine_volumes() {
    parts_are_put_back(BUSYBOX, "docker");
}

#[test]
fn p27_runc_a_clone_of_a_running_pod_is_another_machine_with_the_same_data() {
    let installation = Installation::new();
    let pod = installation.pod_with("dev", DEBIAN, "runc", json!({"backend": "overlay"}));
    fill(&installation, &pod);
    let id = "0123456789abcdef0123456789abcdef";
    installation.sh(
        &pod,
        &format!(
            "set -e; echo {id} >/etc/machine-id; mkdir -p /etc/ssh; cd /etc/ssh; echo old >ssh_host_ed25519_key
            chmod 600 ssh_host_ed25519_key; echo old >ssh_host_rsa_key; echo 'Port 22' >sshd_config"
        ),
    );
    let before = tree(&installation, &pod);
    let answer = installation.post(&format!("/api/v1/pods/{}/clone", pod.id), &json!({"name": "copy"}));
    installation.succeeded(answer["operation"]["id"].as_str().unwrap());
    let copy = Pod { id: answer["pod"]["id"].as_str().unwrap().to_owned(), name: "copy".to_owned() };
    installation.assert_phase(&copy, "running");
    let is_identity = |path: &String| path == "/etc/machine-id" || path.starts_with("/etc/ssh");
    let without = |tree: crate::installation::Tree| -> crate::installation::Tree {
        tree.into_iter().filter(|(path, _)| !is_identity(path)).collect()
    };
    crate::installation::assert_same(&without(before.clone()), &without(tree(&installation, &copy)));
    crate::installation::assert_same(&before, &tree(&installation, &pod));
    let new = installation.sh(&copy, "cat /etc/machine-id");
    assert!(new.trim().len() == 32 && new.trim() != id, "{new}");
    assert!(installation.sh(&copy, "cat /etc/ssh/ssh_host_ed25519_key").contains("OPENSSH PRIVATE KEY"));
    assert_eq!(installation.sh(&copy, "stat -c %a /etc/ssh/ssh_host_ed25519_key").trim(), "600");
    assert!(!installation.try_sh(&copy, "[ -e /etc/ssh/ssh_host_rsa_key ]").1, "it cannot be made, so it goes");
    assert_ne!(installation.sh(&copy, "hostname"), installation.sh(&pod, "hostname"));
    // Neither sees what the other writes.
    installation.sh(&copy, "echo copy >/srv/mine");
    assert!(!installation.try_sh(&pod, "[ -e /srv/mine ]").1);
}

/// What differs between a snapshot and its pod as it is: each path with what happened to it.
fn live_differences(installation: &Installation, snapshot: &Value) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut after = String::new();
    loop {
        let id = snapshot["id"].as_str().unwrap();
        // Several pages, so that the look has to be kept.
        let page = installation.get(&format!("/api/v1/snapshots/{id}/diff/live?limit=7{after}"));
        assert_eq!(page["notCompared"], json!([]), "{page:#}");
        for item in page["items"].as_array().unwrap() {
            let text = |field: &str| item[field].as_str().unwrap().to_owned();
            found.insert(text("path"), text("change"));
        }
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => return found,
        }
    }
}

/// The judge is the pod's own find, stat and sha256sum. The pod runs, and writes where nobody looks.
fn a_live_pod_is_compared(image: &str, backend: &str) {
    let installation = Installation::new();
    let pod = installation.pod_with("dev", image, "runc", json!({"backend": backend}));
    fill(&installation, &pod);
    let then = tree(&installation, &pod);
    let taken = installation.snapshot(&pod);
    assert_eq!(live_differences(&installation, &taken), BTreeMap::new());
    installation.sh(
        &pod,
        "set -e; rm -r /srv/made; echo later >/home/later; chmod 600 /opt/made/setuid; chown 7 /root/made/empty
        touch -r /usr/local/made/large /tmp/time; printf x | dd of=/usr/local/made/large bs=1 seek=70000 conv=notrunc 2>/dev/null
        touch -r /tmp/time /usr/local/made/large; rm -r /data/made/void; echo now >/data/now; echo now >/var/now
        rm /workspace/made/soft; ln -s elsewhere /workspace/made/soft; rm -rf /etc/made; echo 'a file now' >/etc/made
        rm /etc/passwd; echo again >/etc/passwd; cp /bin/sh /opt/made/sh; rm /opt/made/sh",
    );
    let found = live_differences(&installation, &taken);
    let now = tree(&installation, &pod);
    let mut expected: BTreeMap<String, &str> = BTreeMap::new();
    // Debian's stat quotes names that are not UTF-8; the judge's other programs have them as they are.
    for path in then.keys().chain(now.keys()).filter(|path| !path.contains("'$'")) {
        let change = match (then.get(path), now.get(path)) {
            (None, Some(_)) => "added",
            (Some(_), None) => "removed",
            (a, b) if a != b => "other",
            _ => continue,
        };
        expected.insert(path.clone(), change);
    }
    // Of /etc itself the judge does not see the time.
    let seen: BTreeMap<String, &str> = found
        .iter()
        .filter(|(path, _)| path.as_str() != "/etc")
        .map(|(path, change)| match change.as_str() {
            "content" | "metadata" => (path.clone(), "other"),
            change => (path.clone(), change),
        })
        .collect();
    assert_eq!(seen, expected);
    assert_eq!((found["/usr/local/made/large"].as_str(), found["/opt/made/setuid"].as_str()), ("content", "metadata"));
    assert!(expected.len() > 20, "{expected:?}");
    // Stopped, there is nothing to look at, and it is said what to compare with instead.
    installation.run(&pod, "stop");
    let path = format!("/api/v1/snapshots/{}/diff/live", taken["id"].as_str().unwrap());
    let (status, refused) = installation.request(Method::GET, &path, None);
    assert_eq!((status.as_u16(), &refused["code"]), (409, &json!("nothing-on-host")));
    let last = installation.snapshots(&pod)[0].clone();
    assert!(refused["hint"].as_str().unwrap().contains(last["id"].as_str().unwrap()), "{refused}");
    // Started again, every file is a new one, and none differs.
    installation.run(&pod, "start");
    let mut after = live_differences(&installation, &last);
    after.remove("/etc");
    assert_eq!(after, BTreeMap::new());
}

#[test]
fn runc_a_live_pod_on_overlay_volumes_is_compared_with_its_snapshot() {
    a_live_pod_is_compared(DEBIAN, "overlay");
}

#[test]
fn runc_a_live_pod_on_engine_volumes_is_compared_with_its_snapshot() {
    a_live_pod_is_compared(BUSYBOX, "docker");
}
