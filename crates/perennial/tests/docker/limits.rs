//! Limits of CPU time, memory and processes on a real engine: changed while the pod runs, or not and said so (D18).

use crate::installation::{BUSYBOX, Installation, Pod, eventually};
use reqwest::Method;
use serde_json::{Value, json};

on_both! {
    change_while_running => runc_d18_limits_change_while_the_pod_runs, runsc_d18_limits_change_or_wait_for_a_restart;
}

const MIB: u64 = 1 << 20;
/// What the kernel enforces, as seen in a container: of the first version of control groups, or of the second.
const ENFORCED: &str = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; true";

/// Asks for other limits.
fn ask(installation: &Installation, pod: &Pod, resources: &Value) {
    let path = format!("/api/v1/pods/{}", pod.id);
    let (status, answer) = installation.request(Method::PATCH, &path, Some(&json!({"resources": resources})));
    assert!(status.is_success(), "{status} {answer}");
}

/// The engine's own word: memory, CPU time and processes of the container.
fn known(installation: &Installation, container: &str) -> String {
    let format = "{{.HostConfig.Memory}} {{.HostConfig.NanoCpus}} {{.HostConfig.PidsLimit}}";
    installation.docker.run(&["inspect", "--format", format, container]).trim().to_owned()
}

fn events(installation: &Installation, pod: &Pod, kind: &str) -> usize {
    let events = installation.get(&format!("/api/v1/pods/{}/events?limit=1000", pod.id));
    events["items"].as_array().unwrap().iter().filter(|event| event["type"] == kind).count()
}

fn change_while_running(runtime: &str) {
    let installation = Installation::new();
    let first = json!({"memory": 64 * MIB, "cpus": 0.5, "pids": 50});
    let pod = installation.pod_with("dev", BUSYBOX, runtime, json!({"resources": first}));
    let container = installation.container(&pod);
    installation.sh(&pod, "echo kept > /srv/kept; echo here > /tmp/here");
    assert_eq!(known(&installation, &container), format!("{} 500000000 50", 64 * MIB));

    ask(&installation, &pod, &json!({"memory": 128 * MIB, "cpus": 1, "pids": 70}));
    let wanted = format!("{} 1000000000 70", 128 * MIB);
    let settled = || {
        let (changed, waits) = ("pod.limits-changed", "pod.limits-refused");
        let count = |kind| events(&installation, &pod, kind);
        (count(changed) + count(waits) > 0).then(|| count(waits) > 0)
    };
    let waits = eventually("the limits are changed, or refused", settled);
    assert_eq!(installation.has_condition(&pod, "RestartRequired"), waits);
    assert_eq!(known(&installation, &container) == wanted, !waits);
    assert_eq!(installation.sh(&pod, "cat /tmp/here").trim(), "here", "it runs on");
    if runtime == "runc" {
        assert!(!waits, "{:#}", installation.show(&pod));
        assert_eq!(installation.sh(&pod, ENFORCED).trim(), (128 * MIB).to_string());

        // Less than it uses: it is left alone until it uses less, or asks for another amount.
        installation.sh(&pod, "head -c 41943040 /dev/zero > /tmp/held");
        ask(&installation, &pod, &json!({"memory": 32 * MIB, "cpus": 1, "pids": 70}));
        eventually("that is refused", || (events(&installation, &pod, "pod.limits-refused") > 0).then_some(()));
        assert!(installation.has_condition(&pod, "RestartRequired"));
        assert_eq!(installation.sh(&pod, ENFORCED).trim(), (128 * MIB).to_string());
        installation.sh(&pod, "rm /tmp/held");
        ask(&installation, &pod, &json!({"memory": 33 * MIB, "cpus": 1, "pids": 70}));
        let enforced = || (installation.sh(&pod, ENFORCED).trim() == (33 * MIB).to_string()).then_some(());
        eventually("less is enforced", enforced);
        assert_eq!(installation.container(&pod), container);
    }
    // The limit of processes goes at once, where the runtime can; that of processors only with another container.
    ask(&installation, &pod, &json!({"memory": 96 * MIB, "cpus": 1}));
    eventually("that is settled", || {
        let (shown, waits) = (known(&installation, &container), installation.has_condition(&pod, "RestartRequired"));
        (waits || shown.starts_with(&format!("{} 1000000000 ", 96 * MIB))).then_some(())
    });
    ask(&installation, &pod, &json!({"memory": 96 * MIB}));
    eventually("that waits", || installation.has_condition(&pod, "RestartRequired").then_some(()));
    installation.run(&pod, "restart");
    assert!(!installation.has_condition(&pod, "RestartRequired"));
    let other = installation.container(&pod);
    assert_ne!(other, container);
    let limits = known(&installation, &other);
    assert!(limits.starts_with(&format!("{} 0 ", 96 * MIB)) && !limits.ends_with(" 70"), "{limits}");
    assert_eq!(installation.sh(&pod, "cat /srv/kept").trim(), "kept");
}
