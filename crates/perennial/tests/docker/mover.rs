//! Volumes of a real engine that only a mover reaches: nothing is different, whoever dies.

use crate::installation::{
    BUSYBOX, DEBIAN, Docker, Installation, Pod, assert_same, assert_same_when, eventually, fill, tree,
};
use serde_json::{Value, json};

on_both! {
    stop_start => runc_stop_and_start_by_mover, runsc_stop_and_start_by_mover;
    snapshot_restore => runc_snapshot_and_restore_by_mover, runsc_snapshot_and_restore_by_mover;
}

/// An installation whose server may not touch the engine's volumes itself.
fn by_mover() -> Installation {
    Installation::on(Docker::shared(), &["--volume-access", "mover"])
}

fn pod(installation: &Installation, image: &str, runtime: &str) -> Pod {
    installation.pod_with("dev", image, runtime, json!({"backend": "docker"}))
}

/// The movers there are, running or not, by id.
fn movers(installation: &Installation, pod: &Pod) -> Vec<String> {
    let name = format!("name=perennial-scratch-mover-{}", pod.id);
    installation.docker.list(&["ps", "--all", "--quiet", "--no-trunc", "--filter", &name])
}

fn assert_no_mover(installation: &Installation, pod: &Pod) {
    eventually("no mover is left", || movers(installation, pod).is_empty().then_some(()));
}

fn stop_start(runtime: &str) {
    let installation = by_mover();
    let image = if runtime == "runc" { DEBIAN } else { BUSYBOX };
    let pod = pod(&installation, image, runtime);
    fill(&installation, &pod);
    if image == DEBIAN {
        assert!(crate::installation::fill_xattrs(&installation, &pod));
    }
    let before = tree(&installation, &pod);
    for _ in 0..2 {
        installation.run(&pod, "stop");
        installation.assert_released(&pod);
        assert_eq!(installation.show(&pod)["latestSnapshot"]["state"], "verified");
        installation.run(&pod, "start");
        assert_same(&before, &tree(&installation, &pod));
    }
    assert_no_mover(&installation, &pod);
}

fn snapshot_restore(runtime: &str) {
    let installation = by_mover();
    let pod = pod(&installation, BUSYBOX, runtime);
    fill(&installation, &pod);
    let then = tree(&installation, &pod);
    let container = installation.container(&pod);
    let taken = installation.snapshot(&pod);
    assert_eq!(taken["state"], "verified", "{taken:#}");
    assert_eq!(installation.container(&pod), container);
    assert!(installation.docker.is_running(&container));
    installation.sh(&pod, "rm -r /srv/made /data/made; echo later >/home/later; echo changed >/opt/made/plain");
    installation.restore(&pod, &taken);
    assert_same(&then, &tree(&installation, &pod));
    assert_no_mover(&installation, &pod);
    // The same snapshot without a mover: how it was taken makes no difference.
    let mut installation = installation;
    installation.stop_server();
    installation.set_arguments(&[]);
    installation.start_server();
    installation.sh(&pod, "rm -r /home/made");
    installation.restore(&pod, &taken);
    assert_same(&then, &tree(&installation, &pod));
}

/// Waits for a mover of this pod that was just started.
fn next_mover(installation: &Installation, pod: &Pod) -> String {
    eventually("a mover", || movers(installation, pod).into_iter().find(|id| installation.docker.is_running(id)))
}

/// Enough that a mover is at it for a while.
fn much(installation: &Installation, pod: &Pod) {
    installation.sh(pod, "dd if=/dev/urandom of=/srv/much bs=1048576 count=96 2>/dev/null");
}

#[test]
fn runc_a_mover_has_no_secret_in_its_arguments_or_its_environment() {
    let installation = by_mover();
    let pod = pod(&installation, BUSYBOX, "runc");
    much(&installation, &pod);
    let stop = installation.act(&pod, "stop", &json!({}));
    let mover = next_mover(&installation, &pod);
    let inspected = installation.docker.run(&["inspect", &mover]);
    let shown: Value = serde_json::from_str(&inspected).unwrap();
    let (config, host) = (&shown[0]["Config"], &shown[0]["HostConfig"]);
    // Exactly this and no more: there is no place for a secret.
    assert_eq!((&shown[0]["Path"], &shown[0]["Args"]), (&json!("/perennial"), &json!(["mover"])));
    assert_eq!((&config["Entrypoint"], &config["Cmd"]), (&json!(["/perennial", "mover"]), &json!([])));
    let path = json!(["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]);
    assert!(config["Env"] == path || config["Env"] == json!([]) || config["Env"].is_null(), "{}", config["Env"]);
    assert_eq!((&host["NetworkMode"], &host["LogConfig"]["Type"]), (&json!("none"), &json!("none")));
    assert!(host["Binds"].is_null() && host["Mounts"].as_array().unwrap().iter().all(|m| m["Type"] == "volume"));
    let password = std::fs::read_to_string(installation.data().join("keys/default")).unwrap();
    assert!(password.trim().len() >= 32 && !inspected.contains(password.trim()));
    // Its image is nothing but this program.
    let layers =
        installation.docker.run(&["inspect", "--format", "{{len .RootFS.Layers}}", config["Image"].as_str().unwrap()]);
    assert_eq!(layers.trim(), "1");
    installation.succeeded(&stop);
    assert_no_mover(&installation, &pod);
}

/// A mover that is killed costs a try; which one, the log says.
#[test]
fn runc_a_killed_mover_loses_nothing() {
    let installation = by_mover();
    let pod = pod(&installation, BUSYBOX, "runc");
    fill(&installation, &pod);
    much(&installation, &pod);
    let before = tree(&installation, &pod);
    for action in ["stop", "start"] {
        let failures = || installation.log().matches("mover-failed").count();
        let count = failures();
        let operation = installation.act(&pod, action, &json!({}));
        eventually("a mover dies in the middle", || {
            // One that ended by itself meanwhile is followed by another, or the action is done.
            for mover in movers(&installation, &pod) {
                installation.docker.try_run(&["kill", "--signal", "KILL", &mover]);
            }
            let ended = !installation.operation(&operation)["finishedAt"].is_null();
            assert!(!ended || failures() > count, "the {action} was done before a mover died");
            (failures() > count).then_some(())
        });
        installation.succeeded(&operation);
        if action == "stop" {
            installation.assert_released(&pod);
        }
    }
    assert_same(&before, &tree(&installation, &pod));
    assert_no_mover(&installation, &pod);
}

/// Points on the way of a stop, a start and a restore at which the server dies while its mover lives.
const POINTS: [(&str, &[&str]); 3] = [
    (
        "stop",
        &[
            "engine.mover_open:before",
            "engine.mover_open:after",
            "engine.mover_open:after#2",
            "repository.write:after#3",
        ],
    ),
    ("start", &["engine.mover_open:after", "repository.read:after#4"]),
    ("restore", &["engine.mover_open:after#3", "repository.write:after#4"]),
];

#[test]
fn runc_killed_servers_leave_no_movers_and_lose_nothing() {
    let mut installation = by_mover();
    let pod = pod(&installation, BUSYBOX, "runc");
    fill(&installation, &pod);
    let taken = installation.snapshot(&pod);
    let at_snapshot = tree(&installation, &pod);
    for (action, points) in POINTS {
        for point in points {
            installation.sh(&pod, &format!("echo '{action} {point}' >/srv/now; cp /srv/now /data/now"));
            let before = if action == "restore" { at_snapshot.clone() } else { tree(&installation, &pod) };
            if action == "start" {
                installation.run(&pod, "stop");
            }
            let body = match action {
                "restore" => json!({"snapshotId": taken["id"], "confirm": pod.name}),
                _ => json!({}),
            };
            installation.dies_and_goes_on(&pod, point, action, &body);
            if action == "stop" {
                installation.assert_released(&pod);
                installation.run(&pod, "start");
            }
            assert_same_when(&format!("{action} {point}"), &before, &tree(&installation, &pod));
            assert_no_mover(&installation, &pod);
        }
    }
}
