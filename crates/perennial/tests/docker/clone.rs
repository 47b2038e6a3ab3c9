//! Clones of running pods on a real Docker Engine, on every file system that a storage root may be on: the same data, of one
//! instant, on another machine, and the source goes on.

use crate::installation::disk::{Disk, move_elsewhere, subvolumes};
use crate::installation::steps::{assert_one_instant, is_of_counting, while_counting};
use crate::installation::{BUSYBOX, DEBIAN, Docker, Installation, Pod, assert_same, fill, fill_xattrs, tree};
use serde_json::{Value, json};

const MACHINE_ID: &str = "0123456789abcdef0123456789abcdef";

/// Two volumes.
const COUNTED: [&str; 2] = ["/srv", "/home"];

/// What the trail says of the copy.
fn copied(installation: &Installation, pod: &Pod) -> String {
    let trail = installation.get(&format!("/api/v1/events?pod={}&limit=200", pod.id));
    let items = trail["items"].as_array().unwrap();
    let line = items.iter().find(|e: &&Value| e["type"] == "pod.copied");
    line.unwrap_or_else(|| panic!("nothing was copied: {trail:#}"))["message"].as_str().unwrap().to_owned()
}

fn number_before(said: &str, word: &str) -> u64 {
    let before = said.split(word).next().unwrap();
    before.rsplit(' ').find(|text| !text.is_empty()).unwrap().parse().unwrap_or_else(|_| panic!("{said}"))
}

fn shared(said: &str) -> u64 {
    number_before(said, " bytes shared")
}

fn written(said: &str) -> u64 {
    number_before(said, " written")
}

fn a_running_pod_is_cloned_on(kind: &str) {
    let mut installation = Installation::prepared(Docker::shared(), &[]);
    let disk = Disk::mount(kind, installation.storage());
    installation.start_server();
    let pod = installation.pod_with("dev", DEBIAN, "runc", json!({"backend": "overlay"}));
    fill(&installation, &pod);
    fill_xattrs(&installation, &pod);
    installation.sh(
        &pod,
        &format!(
            "set -e; echo {MACHINE_ID} >/etc/machine-id; mkdir -p /etc/ssh /data; echo old >/etc/ssh/ssh_host_rsa_key
            rm -r /usr/share/doc; mkdir /usr/share/doc; mv /etc/group /etc/moved; truncate -s 64M /srv/hole
            echo layer >/data/layer; dd if=/dev/urandom of=/srv/large bs=1M count=20 2>/dev/null"
        ),
    );
    let before = tree(&installation, &pod);
    let copy = while_counting(&installation, &pod, &COUNTED, || {
        let answer = installation.post(&format!("/api/v1/pods/{}/clone", pod.id), &json!({"name": "copy"}));
        let ended = installation.ended(answer["operation"]["id"].as_str().unwrap());
        assert_eq!(ended["state"], "succeeded", "{ended:#}");
        Pod { id: answer["pod"]["id"].as_str().unwrap().to_owned(), name: "copy".to_owned() }
    });
    installation.assert_phase(&copy, "running");
    let said = copied(&installation, &copy);
    assert!(said.contains("it stood still for"), "{said}");
    match kind {
        "btrfs" => assert!(said.contains("at once") && subvolumes(&disk.0) == 2, "{said}"),
        // What no volume holds is on another file system.
        "xfs" => assert!(shared(&said) > 20 << 20 && written(&said) < 1 << 20, "{said}"),
        _ => assert!(written(&said) > 20 << 20, "{said}"),
    }
    assert_one_instant(&installation, &copy, &COUNTED);
    let is_kept =
        |path: &String| path != "/etc/machine-id" && !path.starts_with("/etc/ssh") && !is_of_counting(path, &COUNTED);
    let without = |tree: crate::installation::Tree| -> crate::installation::Tree {
        tree.into_iter().filter(|(p, _)| is_kept(p)).collect()
    };
    assert_same(&without(before.clone()), &without(tree(&installation, &copy)));
    assert_same(&without(before.clone()), &without(tree(&installation, &pod)));
    let id = installation.sh(&copy, "cat /etc/machine-id");
    assert!(id.trim().len() == 32 && id.trim() != MACHINE_ID, "{id}");
    assert_eq!(
        installation.sh(&copy, "test ! -e /etc/ssh/ssh_host_rsa_key; echo $?; ls -A /usr/share/doc").trim(),
        "0"
    );
    // It is as much of a pod as any other: its data outlives its source, and a stop.
    installation.run(&pod, "delete");
    installation.run(&pod, "purge");
    installation.run(&copy, "stop");
    installation.assert_released(&copy);
    installation.run(&copy, "start");
    assert_same(&without(before), &without(tree(&installation, &copy)));
    installation.run(&copy, "purge");
    let left = std::fs::read_dir(disk.0.join("scratch")).unwrap().count();
    assert_eq!((left, std::fs::read_dir(disk.0.join("trash")).unwrap().count()), (0, 0));
    if kind == "btrfs" {
        assert_eq!(subvolumes(&disk.0), 0);
    }
    installation.stop_server();
    // Nothing may use the disk when it is unmounted.
    installation.docker.remove_labelled(installation.label());
}

#[test]
fn p27_runc_a_running_pod_is_cloned_on_ext4() {
    a_running_pod_is_cloned_on("ext4");
}

#[test]
fn p27_runc_a_running_pod_is_cloned_on_btrfs_at_once() {
    a_running_pod_is_cloned_on("btrfs");
}

#[test]
fn p27_runc_a_running_pod_is_cloned_on_xfs_sharing_its_blocks() {
    a_running_pod_is_cloned_on("xfs");
}

/// D13: a pod that has filled what it may take is cloned; the clone runs, is as full, and neither may take more.
#[test]
fn d13_runc_a_pod_that_filled_its_quota_is_cloned() {
    let mut installation = Installation::prepared(Docker::shared(), &[]);
    let _disk = Disk::mount("btrfs", installation.storage());
    installation.start_server();
    let limits = json!({"backend": "overlay", "resources": {"disk": "32Mi"}});
    let pod = installation.pod_with("full", DEBIAN, "runc", limits);
    let fill = "dd if=/dev/urandom of=/home/big bs=64k count=1000 conv=fsync 2>&1; sync";
    let (said, _) = installation.try_sh(&pod, fill);
    assert!(said.contains("quota exceeded"), "{said}");
    let before = tree(&installation, &pod);
    let answer = installation.post(&format!("/api/v1/pods/{}/clone", pod.id), &json!({"name": "copy"}));
    let ended = installation.ended(answer["operation"]["id"].as_str().unwrap());
    assert_eq!(ended["state"], "succeeded", "{ended:#}");
    let copy = Pod { id: answer["pod"]["id"].as_str().unwrap().to_owned(), name: "copy".to_owned() };
    installation.assert_phase(&copy, "running");
    // At the first try: what is full has no room for the copy's marker as long as the copy has its limit.
    let trail = installation.get(&format!("/api/v1/pods/{}/events?limit=200", copy.id));
    let messages: Vec<&str> = trail["items"].as_array().unwrap().iter().filter_map(|e| e["message"].as_str()).collect();
    assert_eq!(messages.iter().filter(|m| m.contains(" ms, at once")).count(), 1, "{messages:#?}");
    assert!(!installation.log().contains("a step failed"), "{}", installation.log());
    assert_same(&before, &tree(&installation, &copy));
    assert_same(&before, &tree(&installation, &pod));
    for full in [&pod, &copy] {
        crate::installation::eventually("it is limited", || {
            (!installation.try_sh(full, "mkdir /srv/more").1).then_some(())
        });
        installation.run(full, "purge");
    }
    installation.stop_server();
    // Nothing may use the disk when it is unmounted.
    installation.docker.remove_labelled(installation.label());
}

/// Law 6: a volume that an administrator has moved to another place is copied as well, and not shared.
#[test]
fn law_6_runc_a_clone_on_btrfs_shares_no_volume_that_lies_elsewhere() {
    let mut installation = Installation::prepared(Docker::shared(), &[]);
    let disk = Disk::mount("btrfs", installation.storage());
    installation.start_server();
    let pod = installation.pod_with("dev", BUSYBOX, "runc", json!({"backend": "overlay"}));
    installation.sh(&pod, "echo mine >/srv/mine; echo mine >/home/mine; sync");
    installation.run(&pod, "pause");
    move_elsewhere(&installation.set(&pod).join("srv"), &disk.0.join("elsewhere"));
    installation.run(&pod, "start");
    installation.sh(&pod, "cat /srv/mine");
    let answer = installation.post(&format!("/api/v1/pods/{}/clone", pod.id), &json!({"name": "copy"}));
    let ended = installation.ended(answer["operation"]["id"].as_str().unwrap());
    assert_eq!(ended["state"], "succeeded", "{ended:#}");
    let copy = Pod { id: answer["pod"]["id"].as_str().unwrap().to_owned(), name: "copy".to_owned() };
    assert!(!copied(&installation, &copy).contains("at once"));
    assert_eq!(
        installation.sh(&copy, "cat /srv/mine /home/mine; echo other >/srv/mine; echo other >/srv/other"),
        "mine\nmine\n"
    );
    assert_eq!(installation.sh(&pod, "cat /srv/mine; ls /srv"), "mine\nmine\n");
    for each in [&pod, &copy] {
        installation.run(each, "purge");
    }
    installation.stop_server();
    installation.docker.remove_labelled(installation.label());
}
