//! The eight rules of overlay volumes (design of the backend), one test for each, on runc and on gVisor.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use crate::support::{BUSYBOX, Bench, OtherEngine, TestPod};
use bollard::models::{ContainerCreateBody, HostConfig, Mount, MountType, VolumeCreateRequest};
use bollard::query_parameters::{CreateContainerOptions, RemoveContainerOptionsBuilder, RemoveVolumeOptions};
use perennial_core::engine::{Effect, Engine, EngineError, Fill, Presence};
use perennial_core::permit::DeletePermit;
use perennial_core::spec::Backend;

const RUNTIMES: [&str; 2] = ["runc", "runsc"];

/// A pod that runs on this runtime.
async fn running(bench: &Bench, image: &str, runtime: &str) -> (TestPod, String) {
    let mut pod = bench.pod_with(image, Backend::Overlay, |s| s.runtime = Some(runtime.to_owned())).await;
    let id = bench.run(&mut pod).await;
    (pod, id)
}

fn is_whiteout(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|m| m.file_type().is_char_device() && m.rdev() == 0)
}

#[tokio::test(flavor = "multi_thread")]
async fn overlay_rule_1_lower_is_one_flattened_tree() {
    let bench = Bench::with(&RUNTIMES, |_| {}).await;
    for runtime in RUNTIMES {
        // Three layers with whiteouts in the middle one: chains of the engine's layers get this wrong.
        let (pod, id) = running(&bench, "perennial-test/layers:1", runtime).await;
        let (text, code) = bench.sh(&id, "ls /opt; cat /opt/back; ls /srv/opaque").await;
        assert_eq!((text.as_str(), code), ("back\nkept\nthird layer\nshown", 0), "{runtime}");
        let lower = bench.volume(&pod, "opt").await.lower.unwrap();
        assert!(lower.starts_with(bench.storage().join("images")), "{}", lower.display());
        let tree = lower.parent().unwrap().parent().unwrap();
        assert!(tree.join("complete").exists());
        // All pods of the image share it.
        let (other, _) = running(&bench, "perennial-test/layers:1", runtime).await;
        assert_eq!(bench.volume(&other, "opt").await.lower.unwrap(), lower);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn overlay_rule_1_half_tree_is_made_again() {
    let bench = Bench::new().await;
    let pod = bench.pod(BUSYBOX, Backend::Overlay).await;
    bench.complete(&pod).await;
    let lower = bench.volume(&pod, "etc").await.lower.unwrap();
    let image = lower.parent().unwrap().parent().unwrap();
    std::fs::remove_file(image.join("complete")).unwrap();
    std::fs::remove_dir_all(image.join("rootfs/etc")).unwrap();
    let (first, second) = tokio::join!(bench.engine.set_access(&pod.spec.set), bench.engine.set_access(&pod.spec.set));
    assert!(first.is_ok() && second.is_ok());
    assert!(lower.join("motd").exists() && image.join("complete").exists());
}

/// What a tree of an image is kept for ends with the last pod that stands on it; a mount keeps it all the same.
#[tokio::test(flavor = "multi_thread")]
async fn overlay_rule_1_tree_goes_when_nobody_needs_it() {
    let bench = Bench::new().await;
    let pod = bench.pod(BUSYBOX, Backend::Overlay).await;
    bench.complete(&pod).await;
    let volume = bench.volume(&pod, "etc").await;
    let lower = volume.lower.unwrap();
    let tree = lower.parent().unwrap().parent().unwrap().to_owned();
    let grow_old = || {
        let complete = std::fs::File::options().append(true).open(tree.join("complete")).unwrap();
        complete.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(48 * 3600)).unwrap();
    };
    grow_old();
    let _other = bench.reconnect(&["runc"]).await;
    assert!(lower.join("motd").exists(), "a set stands on it");
    // Somebody has it mounted, whatever for.
    let place = bench.storage().join("elsewhere");
    std::fs::create_dir(&place).unwrap();
    let options = format!("lowerdir={}:{}", lower.display(), place.display());
    let mount = ["-t", "overlay", "overlay", "-o", &options];
    assert!(std::process::Command::new("mount").args(mount).arg(&place).status().unwrap().success());
    let deleted = bench.engine.set_delete(&pod.spec.set, &pod.set_permit()).await;
    let kept = lower.join("motd").exists();
    assert!(std::process::Command::new("umount").arg(&place).status().unwrap().success());
    assert_eq!((deleted, kept), (Ok(Effect::Removed), true));
    let _other = bench.reconnect(&["runc"]).await;
    assert!(!tree.exists(), "nobody needs it");
    assert_eq!(std::fs::read_dir(bench.storage().join("trash")).unwrap().count(), 0);
    // And whoever needs it has it made again.
    let again = bench.pod(BUSYBOX, Backend::Overlay).await;
    bench.complete(&again).await;
    assert!(lower.join("motd").exists());
    bench.engine.set_delete(&again.spec.set, &again.set_permit()).await.unwrap();
    assert!(lower.join("motd").exists(), "a pod of the image may start again soon");
}

#[tokio::test(flavor = "multi_thread")]
async fn overlay_rule_2_links_of_the_image_never_show_the_host() {
    let bench = Bench::with(&RUNTIMES, |_| {}).await;
    let marker = bench.storage().join("only-on-the-host");
    std::fs::write(&marker, "secret").unwrap();
    for runtime in RUNTIMES {
        // /opt -> /
        let (pod, id) = running(&bench, "perennial-test/opt-link:1", runtime).await;
        assert!(pod.spec.set.volumes.iter().all(|v| v.mount_path != "/opt"));
        let (_, code) = bench.sh(&id, &format!("cat /opt{0} || cat {0}", marker.display())).await;
        assert_ne!(code, 0, "{runtime}: the host is visible");
    }
    // A declared volume behind the link is refused before anything is mounted.
    let mut pod = bench.pod("perennial-test/opt-link:1", Backend::Overlay).await;
    pod.spec.set.volumes[0].mount_path = "/opt/etc".to_owned();
    let refused = bench.engine.set_prepare(&pod.spec.set, Fill::Image).await;
    assert!(matches!(refused, Err(EngineError::Rejected { .. })), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn overlay_rule_3_upper_root_has_the_attributes_of_the_image() {
    let bench = Bench::new().await;
    let pod = bench.pod(BUSYBOX, Backend::Overlay).await;
    bench.complete(&pod).await;
    for volume in bench.access(&pod).await {
        let lower = volume.lower.unwrap();
        if lower == bench.storage().join("empty") {
            assert_eq!(volume.path.metadata().unwrap().mode() & 0o7777, 0o755, "{}", volume.name);
            continue;
        }
        let (upper, lower) = (volume.path.metadata().unwrap(), lower.metadata().unwrap());
        assert_eq!(upper.mode(), lower.mode(), "{}", volume.name);
        assert_eq!((upper.uid(), upper.gid(), upper.mtime()), (lower.uid(), lower.gid(), lower.mtime()));
    }
    assert_eq!(bench.upper(&pod, "root").metadata().unwrap().mode() & 0o7777, 0o700);
}

#[tokio::test(flavor = "multi_thread")]
async fn overlay_rule_3_lost_is_lost_and_a_definition_is_not() {
    let bench = Bench::with(&RUNTIMES, |_| {}).await;
    for runtime in RUNTIMES {
        let (mut pod, id) = running(&bench, BUSYBOX, runtime).await;
        bench.sh(&id, "echo mine > /home/mine; sync").await;
        bench.remove_container(&pod, &id).await;
        // Definitions go: nothing is lost.
        for volume in &pod.spec.set.volumes {
            let name = Bench::volume_name(&pod, &volume.name);
            bench.docker.remove_volume(&name, None::<RemoveVolumeOptions>).await.unwrap();
        }
        assert_eq!(bench.observe(&pod).await.set(1).unwrap().presence, Presence::Whole);
        let (id, _) = bench.engine.container_ensure(&pod.spec).await.unwrap();
        bench.start(&mut pod, &id).await.unwrap();
        assert_eq!(bench.sh(&id, "cat /home/mine").await, ("mine".to_owned(), 0), "{runtime}");
        bench.remove_container(&pod, &id).await;

        // An upper goes: nothing is made anew, nothing starts.
        let (upper, aside) = (bench.upper(&pod, "home"), bench.storage().join("aside"));
        std::fs::rename(&upper, &aside).unwrap();
        let missing = |names: &[&str]| Presence::Partial { missing: names.iter().map(|n| (*n).to_owned()).collect() };
        assert_eq!(bench.observe(&pod).await.set(1).unwrap().presence, missing(&["home"]));
        let refused = bench.engine.container_ensure(&pod.spec).await;
        assert!(matches!(refused, Err(EngineError::Conflict { .. })), "{refused:?}");
        assert!(!upper.exists());
        std::fs::rename(&aside, &upper).unwrap();

        // The marker goes.
        let marker = upper.parent().unwrap().parent().unwrap().join("set.json");
        let text = std::fs::read(&marker).unwrap();
        std::fs::remove_file(&marker).unwrap();
        assert_eq!(bench.observe(&pod).await.set(1).unwrap().presence, missing(&["marker"]));
        assert!(bench.engine.container_ensure(&pod.spec).await.is_err());
        // What has data and no marker is never made anew either.
        let refused = bench.engine.set_prepare(&pod.spec.set, Fill::Image).await;
        assert!(matches!(refused, Err(EngineError::Conflict { .. })), "{refused:?}");
        std::fs::write(&marker, text).unwrap();
        assert_eq!(bench.observe(&pod).await.set(1).unwrap().presence, Presence::Whole);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn overlay_rule_4_wrong_definition_is_no_start() {
    let bench = Bench::new().await;
    let (mut pod, id) = bench.running(BUSYBOX, Backend::Overlay).await;
    bench.sh(&id, "echo mine > /home/mine; rm /etc/motd").await;
    bench.remove_container(&pod, &id).await;
    // Somebody put an empty plain volume of the same name there.
    let name = Bench::volume_name(&pod, "home");
    bench.docker.remove_volume(&name, None::<RemoveVolumeOptions>).await.unwrap();
    let plain = VolumeCreateRequest { name: Some(name.clone()), ..VolumeCreateRequest::default() };
    bench.docker.create_volume(plain).await.unwrap();
    let refused = bench.engine.container_ensure(&pod.spec).await;
    assert!(matches!(refused, Err(EngineError::Conflict { .. })), "{refused:?}");
    assert!(bench.observe(&pod).await.container.is_none());
    bench.docker.remove_volume(&name, None::<RemoveVolumeOptions>).await.unwrap();

    let (id, _) = bench.engine.container_ensure(&pod.spec).await.unwrap();
    let inspected = bench.docker.inspect_container(&id, None).await.unwrap();
    for mount in inspected.host_config.unwrap().mounts.unwrap() {
        let options = mount.volume_options.unwrap();
        assert_eq!(options.no_copy, Some(true));
        assert!(options.driver_config.unwrap().options.unwrap()["o"].contains("lowerdir="));
    }
    bench.start(&mut pod, &id).await.unwrap();
    // Copy-up would have brought the file back.
    assert_eq!(bench.sh(&id, "cat /home/mine; test ! -e /etc/motd").await, ("mine".to_owned(), 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn overlay_rule_5_one_writer() {
    let bench = Bench::new().await;
    let (mut pod, id) = bench.running(BUSYBOX, Backend::Overlay).await;
    bench.engine.container_stop(&id, 5).await.unwrap();

    // Another container refers to a volume.
    let body = ContainerCreateBody {
        image: Some(BUSYBOX.to_owned()),
        labels: Some([("io.perennial.installation".to_owned(), bench.installation.to_string())].into()),
        host_config: Some(HostConfig {
            mounts: Some(vec![Mount {
                source: Some(Bench::volume_name(&pod, "home")),
                target: Some("/other".to_owned()),
                typ: Some(MountType::VOLUME),
                ..Mount::default()
            }]),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    };
    let other = bench.docker.create_container(None::<CreateContainerOptions>, body).await.unwrap().id;
    assert_eq!(bench.observe(&pod).await.foreign, std::slice::from_ref(&other));
    assert!(matches!(bench.start(&mut pod, &id).await, Err(EngineError::Conflict { .. })));
    let force = RemoveContainerOptionsBuilder::default().force(true).build();
    bench.docker.remove_container(&other, Some(force)).await.unwrap();

    // Somebody has the upper mounted, in whatever namespace.
    let home = bench.volume(&pod, "home").await;
    let place = bench.storage().join("elsewhere");
    std::fs::create_dir(&place).unwrap();
    let work = home.path.parent().unwrap().join("work");
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        home.lower.unwrap().display(),
        home.path.display(),
        work.display()
    );
    let mounted = std::process::Command::new("mount")
        .args(["-t", "overlay", "overlay", "-o", &options])
        .arg(&place)
        .status()
        .unwrap();
    assert!(mounted.success());
    let lingering = bench.engine.lingering(std::slice::from_ref(&pod.spec.set)).await.unwrap();
    assert!(lingering.iter().any(|p| p.starts_with("process ") && p.contains("elsewhere")), "{lingering:?}");
    let refused = bench.start(&mut pod, &id).await;
    let not_deleted = bench.engine.set_delete(&pod.spec.set, &pod.set_permit()).await;
    assert!(std::process::Command::new("umount").arg(&place).status().unwrap().success());
    assert!(matches!(refused, Err(EngineError::Conflict { .. })), "{refused:?}");
    assert!(matches!(not_deleted, Err(EngineError::Conflict { .. })), "{not_deleted:?}");
    bench.start(&mut pod, &id).await.unwrap();
}

/// A look at every mount of this host has to stay cheap: it is part of every stop.
#[tokio::test(flavor = "multi_thread")]
async fn overlay_rule_5_a_look_at_all_mounts_is_quick() {
    let bench = Bench::new().await;
    let (pod, id) = bench.running(BUSYBOX, Backend::Overlay).await;
    bench.engine.container_stop(&id, 5).await.unwrap();
    let sets = std::slice::from_ref(&pod.spec.set);
    let mut best = std::time::Duration::MAX;
    for _ in 0..20 {
        let began = std::time::Instant::now();
        assert_eq!(bench.engine.lingering(sets).await, Ok(Vec::new()));
        best = best.min(began.elapsed());
    }
    eprintln!("a look at all mounts took {best:?}");
    assert!(best < std::time::Duration::from_millis(250), "{best:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn overlay_rule_6_data_goes_with_a_permit_and_only_unmounted() {
    let bench = Bench::with(&RUNTIMES, |_| {}).await;
    for runtime in RUNTIMES {
        let (mut pod, id) = running(&bench, BUSYBOX, runtime).await;
        bench.sh(&id, "echo mine > /home/mine; sync").await;
        let file = bench.upper(&pod, "home").join("mine");

        let wrong = bench.engine.set_delete(&pod.spec.set, &DeletePermit::scratch("s1")).await;
        assert!(matches!(wrong, Err(EngineError::Rejected { .. })), "{wrong:?}");
        let running = bench.engine.set_delete(&pod.spec.set, &pod.set_permit()).await;
        assert!(matches!(running, Err(EngineError::Conflict { .. })), "{running:?}");
        bench.remove_container(&pod, &id).await;

        // Something is stacked on the volume's mount point: removing the definition would delete through it. That it is
        // the data itself is seen at once; anything else is seen at the mount point.
        let name = Bench::volume_name(&pod, "home");
        let data = bench.docker.inspect_volume(&name).await.unwrap().mountpoint;
        for stacked in [bench.upper(&pod, "home"), bench.storage().join("empty")] {
            let bind = std::process::Command::new("mount").arg("--bind").arg(&stacked).arg(&data).status().unwrap();
            assert!(bind.success());
            let refused = bench.engine.set_delete(&pod.spec.set, &pod.set_permit()).await;
            assert!(std::process::Command::new("umount").arg(&data).status().unwrap().success());
            assert!(matches!(refused, Err(EngineError::Conflict { .. })), "{refused:?}");
            assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine\n");
        }
        // And nothing was lost by the refusal.
        let (id, _) = bench.engine.container_ensure(&pod.spec).await.unwrap();
        bench.start(&mut pod, &id).await.unwrap();
        assert_eq!(bench.sh(&id, "cat /home/mine").await, ("mine".to_owned(), 0));
        bench.remove_container(&pod, &id).await;

        assert_eq!(bench.engine.set_delete(&pod.spec.set, &pod.set_permit()).await.unwrap(), Effect::Removed);
        assert!(!bench.storage().join("pods").join(pod.id().to_string()).exists());
        assert_eq!(std::fs::read_dir(bench.storage().join("trash")).unwrap().count(), 0);
        assert!(bench.docker.inspect_volume(&name).await.is_err());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn overlay_rule_6_trash_of_a_crashed_process_is_emptied() {
    let bench = Bench::new().await;
    let left = bench.storage().join("trash/left/set/home/upper");
    std::fs::create_dir_all(&left).unwrap();
    std::fs::write(left.join("file"), "x").unwrap();
    let _again = bench.reconnect(&["runc"]).await;
    assert_eq!(std::fs::read_dir(bench.storage().join("trash")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn overlay_rule_7_options_are_fixed_and_the_engines_files_excluded() {
    let bench = Bench::with(&RUNTIMES, |_| {}).await;
    for runtime in RUNTIMES {
        let (pod, id) = running(&bench, BUSYBOX, runtime).await;
        let volume = bench.docker.inspect_volume(&Bench::volume_name(&pod, "etc")).await.unwrap();
        let options = &volume.options["o"];
        for option in ["redirect_dir=nofollow", "metacopy=off", "index=off", "nodev"] {
            assert!(options.split(',').any(|o| o == option), "{options}");
        }
        let etc = bench.volume(&pod, "etc").await;
        for file in ["hosts", "hostname", "resolv.conf", "mtab"] {
            assert!(etc.exclude.iter().any(|e| e == file), "{:?}", etc.exclude);
        }
        let usr = bench.volume(&pod, "usr").await;
        assert!(usr.exclude.iter().any(|e| e == "local"), "{:?}", usr.exclude);
        assert_eq!(bench.sh(&id, "test -s /etc/hosts && readlink /etc/mtab").await, ("/proc/mounts".to_owned(), 0));
        // Neither a device nor a whiteout can be made by the pod.
        let (_, code) = bench.sh(&id, "mknod /srv/white c 0 0").await;
        assert_ne!(code, 0, "{runtime}: a pod made a whiteout");
        assert!(!is_whiteout(&bench.upper(&pod, "srv").join("white")));
        bench.sh(&id, "mknod /srv/null c 1 3; chmod 666 /srv/null").await;
        assert_ne!(bench.sh(&id, "echo x > /srv/null && test -c /srv/null").await.1, 0, "{runtime}: a device works");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn overlay_rule_8_separate_mounts_nest_and_packages_work() {
    let bench = Bench::with(&RUNTIMES, |_| {}).await;
    for (image, runtime) in [
        ("perennial-test/debian:12", "runc"),
        ("perennial-test/debian-split:12", "runc"),
        ("perennial-test/debian:12", "runsc"),
    ] {
        let (mut pod, id) = running(&bench, image, runtime).await;
        let install = "dpkg -i /usr/share/perennial-test/perennial-hello_1.deb && perennial-hello";
        let (text, code) = bench.sh(&id, install).await;
        assert_eq!(code, 0, "{image} {runtime}: {text}");
        // Nested: what goes to /usr/local is not in the volume of /usr.
        bench.sh(&id, "echo deep > /usr/local/deep; sync").await;
        assert!(bench.upper(&pod, "usr-local").join("deep").exists());
        assert!(!bench.upper(&pod, "usr").join("local/deep").exists());
        bench.remove_container(&pod, &id).await;
        let (id, _) = bench.engine.container_ensure(&pod.spec).await.unwrap();
        bench.start(&mut pod, &id).await.unwrap();
        let upgrade = "perennial-hello && cat /usr/local/deep && \
            dpkg -i /usr/share/perennial-test/perennial-hello_2.deb && \
            test ! -e /usr/lib/perennial-hello/removed-in-2 && perennial-hello";
        let (text, code) = bench.sh(&id, upgrade).await;
        assert_eq!(code, 0, "{image} {runtime}: {text}");
        assert!(text.contains("hello 2 data 2"), "{text}");
        // What separate mounts do not allow fails as it does on any two file systems.
        let (_, code) = bench.sh(&id, "echo x > /srv/a && ln /srv/a /opt/a").await;
        assert_ne!(code, 0, "{runtime}: a hard link across mounts");
        let (_, code) = bench.sh(&id, "rm -rf /srv 2>/dev/null; test ! -d /srv").await;
        assert_ne!(code, 0, "{runtime}: a mount point was removed");
        bench.remove_container(&pod, &id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn overlay_rule_5_backend_is_not_offered_with_live_restore() {
    let engine = OtherEngine::start("liverest", r#"{"live-restore": true}"#);
    let bench = Bench::with(&["runc"], |c| c.docker_host = Some(engine.host.clone())).await;
    let capabilities = bench.engine.capabilities().await.unwrap();
    assert_eq!(capabilities.backends, [Backend::Engine]);
    assert!(capabilities.notes.iter().any(|n| n.contains("live-restore")), "{:?}", capabilities.notes);
    // The runtime itself is fine.
    assert!(capabilities.runtime(Some("runc")).unwrap().overlay_volumes);
}
