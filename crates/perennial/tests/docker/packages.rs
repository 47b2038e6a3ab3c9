//! Packages that were installed in a pod work after everything that happens to its container.

use crate::installation::{DEBIAN, Installation, Pod};
use reqwest::Method;
use serde_json::json;

fn install(installation: &Installation, pod: &Pod, version: u8) {
    let debs = "/usr/share/perennial-test/perennial-hello";
    installation
        .sh(pod, &format!("dpkg --install {debs}_{version}.deb >/tmp/dpkg 2>&1 || {{ cat /tmp/dpkg; exit 1; }}"));
}

/// The program runs, the package manager knows it, and all its files are as it left them.
fn assert_installed(installation: &Installation, pod: &Pod, version: u8, when: &str) {
    let said = installation.sh(
        pod,
        "perennial-hello; dpkg-query -W -f '${Version} ${Status}\\n' perennial-hello; dpkg --verify perennial-hello
        cat /var/lib/perennial-hello/installed; ls /usr/lib/perennial-hello | xargs; dpkg --audit",
    );
    let files = if version == 1 { "data removed-in-2" } else { "data" };
    let expected = format!("hello {version} data {version}\n{version} install ok installed\n{version}\n{files}\n");
    assert_eq!(said, expected, "{when}");
}

fn lose_container(installation: &Installation, pod: &Pod) {
    let lost = installation.container(pod);
    installation.docker.run(&["rm", "--force", &lost]);
    installation.replaced(pod, &lost);
}

fn packages(runtime: &str, backend: &str) {
    let installation = Installation::new();
    let pod = installation.pod_with("dev", DEBIAN, runtime, json!({"backend": backend}));
    // An installed version, then its successor with a file less, then the first again: additions and deletions.
    for (cycle, version) in [1, 2, 1].into_iter().enumerate() {
        install(&installation, &pod, version);
        installation.sh(
            &pod,
            &format!("echo {cycle} >/usr/share/cycle-{cycle}; mkdir -p /tools; echo {cycle} >/tools/{cycle}"),
        );
        if cycle > 0 {
            installation.sh(&pod, &format!("rm /usr/share/cycle-{0} /tools/{0}", cycle - 1));
        } else {
            installation.sh(&pod, "rm /usr/bin/tac");
        }
        let check = |when: &str| {
            assert_installed(&installation, &pod, version, &format!("{when}, cycle {cycle}"));
            let left = installation.sh(&pod, "ls -d /usr/share/cycle-* /tools/* /usr/bin/tac 2>/dev/null || true");
            assert_eq!(left, format!("/tools/{cycle}\n/usr/share/cycle-{cycle}\n"), "{when}");
        };
        check("installed");
        installation.run(&pod, "stop");
        installation.run(&pod, "start");
        check("after stop and start");
        lose_container(&installation, &pod);
        check("after the container was removed");
    }
    installation.sh(&pod, "dpkg --purge perennial-hello >/dev/null 2>&1");
    installation.run(&pod, "stop");
    installation.run(&pod, "start");
    let (said, ok) = installation.try_sh(&pod, "command -v perennial-hello || dpkg -s perennial-hello");
    assert!(!ok, "a purged package came back: {said}");
}

#[test]
fn runc_packages_on_overlay_volumes() {
    packages("runc", "overlay");
}

#[test]
fn runsc_packages_on_overlay_volumes() {
    packages("runsc", "overlay");
}

/// On the engine's own volumes /usr is in the system layer.
#[test]
fn runc_packages_in_the_system_layer() {
    packages("runc", "docker");
}

#[test]
fn runsc_packages_in_the_system_layer() {
    packages("runsc", "docker");
}

/// Everything in the directories that are volumes on one backend and system layer on the other, and in some that are
/// neither: kind, mode, owner, size, target, time, and content of programs. Images keep whole seconds. Times of directories
/// are not compared: an engine that seeds its volumes sets them anew, and gVisor has its own until it ends.
fn look(installation: &Installation, pod: &Pod) -> Vec<String> {
    let text = installation.sh(
        pod,
        "find /usr /sbin /tools /etc /var/lib/dpkg -name hosts -o -name hostname -o -name resolv.conf -o -name mtab -o \
           -path /etc -o -type d -printf '%p %y %m %U %G\\n' -o -printf '%p %y %m %U %G %s %l at %T@\\n'
         find /usr/bin /usr/lib/perennial-hello /tools -type f | xargs sha256sum",
    );
    let whole_seconds = |line: &str| match line.rsplit_once(" at ") {
        Some((entry, time)) => format!("{entry} at {}", time.split('.').next().unwrap()),
        None => line.to_owned(),
    };
    let mut lines: Vec<String> = text.lines().map(whole_seconds).collect();
    lines.sort();
    assert!(lines.len() > 1000, "{text}");
    lines
}

fn assert_same_look(before: &[String], after: &[String], when: &str) {
    let lost: Vec<&String> = before.iter().filter(|l| after.binary_search(l).is_err()).take(10).collect();
    let new: Vec<&String> = after.iter().filter(|l| before.binary_search(l).is_err()).take(10).collect();
    assert!(lost.is_empty() && new.is_empty(), "{when}:\nbefore {lost:#?}\nafter {new:#?}");
}

/// `/usr` is volumes on one backend and the system layer on the other; a package does not care, and neither do deletions.
fn moves(runtime: &str, [from, to]: [&str; 2]) {
    let installation = Installation::new();
    let mut pod = installation.pod_with("first", DEBIAN, runtime, json!({"backend": from}));
    // A version with a file more first: its successor deletes it.
    install(&installation, &pod, 1);
    install(&installation, &pod, 2);
    installation
        .sh(&pod, "rm -r /usr/bin/tac /usr/share/doc; mkdir /usr/share/doc /tools; echo 1 >/tools/1; chmod 711 /usr");
    let before = look(&installation, &pod);
    for (name, backend) in [("second", to), ("third", from)] {
        let taken = installation.snapshot(&pod);
        let more = json!({"backend": backend, "fromSnapshot": taken["id"]});
        let copy = installation.pod_with(name, DEBIAN, runtime, more);
        let check = |when: &str| {
            assert_installed(&installation, &copy, 2, &format!("{when}, {backend}"));
            assert_same_look(&before, &look(&installation, &copy), &format!("{when}, {backend}"));
        };
        check("moved");
        lose_container(&installation, &copy);
        check("after the container was removed");
        installation.run(&copy, "stop");
        installation.run(&copy, "start");
        check("after stop and start");
        pod = copy;
    }
}

#[test]
fn runc_packages_move_from_overlay_volumes_to_the_system_layer_and_back() {
    moves("runc", ["overlay", "docker"]);
}

#[test]
fn runc_packages_move_from_the_system_layer_to_overlay_volumes_and_back() {
    moves("runc", ["docker", "overlay"]);
}

#[test]
fn runsc_packages_move_from_the_system_layer_to_overlay_volumes_and_back() {
    moves("runsc", ["docker", "overlay"]);
}

/// A changed specification makes a new container: what was installed since the last capture is captured first.
#[test]
fn runc_a_package_in_the_system_layer_survives_a_new_specification() {
    let installation = Installation::new();
    let pod = installation.pod_with("dev", DEBIAN, "runc", json!({"backend": "docker"}));
    install(&installation, &pod, 1);
    let path = format!("/api/v1/pods/{}", pod.id);
    let (status, answer) = installation.request(Method::PATCH, &path, Some(&json!({"env": {"A": "1"}})));
    assert!(status.is_success(), "{answer}");
    let before = installation.container(&pod);
    installation.run(&pod, "restart");
    assert_ne!(installation.container(&pod), before);
    assert_installed(&installation, &pod, 1, "after a restart with another specification");
}

/// A package that pulls files out of /bin and /usr where both are real directories.
#[test]
fn runc_packages_on_an_image_with_separate_bin_and_usr() {
    let installation = Installation::new();
    let pod = installation.pod("perennial-test/debian-split:12", "runc");
    install(&installation, &pod, 1);
    install(&installation, &pod, 2);
    installation.run(&pod, "stop");
    installation.run(&pod, "start");
    assert_installed(&installation, &pod, 2, "after stop and start");
}
