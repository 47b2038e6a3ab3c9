//! Storage roots on disks of their own: away and back, and on every kind of file system.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::support::fuse::Fuse;
use crate::support::hands::check;
use crate::support::{BUSYBOX, Bench, LoopFs, shared_config};
use bollard::query_parameters::RemoveVolumeOptions;
use perennial_core::engine::{Copying, Effect, Engine, EngineError, Fill, Presence, SetLimit};
use perennial_core::spec::Backend;
use perennial_drivers::docker::DockerEngine;

/// Inode number of the root of every btrfs subvolume.
const SUBVOLUME: u64 = 256;

fn entries(dir: &Path) -> usize {
    std::fs::read_dir(dir).unwrap().count()
}

/// A bucket, a phone or another host that is mounted as a directory is no disk. Nothing is made on it.
#[tokio::test(flavor = "multi_thread")]
async fn p23_a_storage_root_out_of_a_program_is_refused() {
    let base = tempfile::tempdir().unwrap();
    let at = base.path().join("bucket");
    let _bucket = Fuse::mount(&at);
    for root in [at.clone(), at.join("deep/root")] {
        let mut config = shared_config(&["runc"]);
        config.storage_root = root;
        match DockerEngine::connect(config).await.err() {
            Some(EngineError::Rejected { problem }) => {
                assert!(problem.contains("cannot be a storage root") && problem.contains("is on FUSE"), "{problem}");
            }
            found => panic!("{found:?}"),
        }
    }
}

/// What a file system does not keep is found by trying, and no volume of a pod is put there.
#[tokio::test(flavor = "multi_thread")]
async fn p23_a_storage_root_that_breaks_a_promise_is_offered_for_nothing() {
    let base = tempfile::tempdir().unwrap();
    let at = base.path().join("ram");
    std::fs::create_dir(&at).unwrap();
    // It has no attributes.
    rustix::mount::mount("none", &at, "ramfs", rustix::mount::MountFlags::NODEV, None).unwrap();
    let mut config = shared_config(&["runc"]);
    config.storage_root.clone_from(&at);
    let seen = DockerEngine::connect(config).await.unwrap().capabilities().await;
    rustix::mount::unmount(&at, rustix::mount::UnmountFlags::DETACH).unwrap();
    let seen = seen.unwrap();
    assert_eq!(seen.backends, [Backend::Engine]);
    assert!(
        seen.notes.iter().any(|n| n.contains("not offered") && n.contains("attributes of files")),
        "{:?}",
        seen.notes
    );
    assert!(!seen.notes.iter().any(|n| n.contains("not safe")), "{:?}", seen.notes);
}

/// A disk that is not mounted hides what is on it; its empty mount point proves nothing, and nothing is made there.
#[tokio::test(flavor = "multi_thread")]
async fn a_storage_root_that_is_not_mounted_is_unknown_until_it_is_back() {
    let disk = LoopFs::mount("ext4");
    let mut config = None;
    let bench = Bench::with(&["runc"], |c| {
        c.storage_record = Some(c.storage_root.parent().unwrap().join("record"));
        c.storage_root.clone_from(&disk.0);
        config = Some(c.clone());
    })
    .await;
    let config = config.unwrap();
    let (mut pod, id) = bench.running(BUSYBOX, Backend::Overlay).await;
    bench.sh(&id, "echo mine > /home/mine; sync").await;
    bench.engine.container_stop(&id, 5).await.unwrap();
    let other = bench.pod(BUSYBOX, Backend::Overlay).await;

    disk.unmount();
    let set = &pod.spec.set;
    let unknown = |what: &str, refused: Option<EngineError>| match refused {
        Some(EngineError::Transient { problem }) => {
            assert!(problem.contains("is not mounted") && problem.contains("perennial storage claim"), "{problem}");
        }
        found => panic!("{what}: {found:?}"),
    };
    let engine = &bench.engine;
    unknown("observe", engine.observe(pod.id(), std::slice::from_ref(set)).await.err());
    unknown("reach", engine.set_access(set).await.err());
    unknown("measure", engine.set_usage(set).await.err());
    unknown("delete", engine.set_delete(set, &pod.set_permit()).await.err());
    unknown("prepare", engine.set_prepare(&other.spec.set, Fill::Image).await.err());
    unknown("complete", engine.set_complete(&other.spec.set).await.err());
    unknown("start", engine.container_start(&id, set, 9).await.err());
    unknown("list", engine.list_owned().await.err());
    unknown("connect", DockerEngine::connect(config.clone()).await.err());
    assert_eq!(entries(&bench.storage()), 0, "something was made where the disk belongs");
    assert!(!engine.observe(pod.id(), &[]).await.unwrap().container.unwrap().is_live());

    disk.mount_again();
    let again = DockerEngine::connect(config).await.unwrap();
    let seen = again.observe(pod.id(), std::slice::from_ref(set)).await.unwrap();
    assert_eq!(seen.set(1).unwrap().presence, Presence::Whole);
    bench.start(&mut pod, &id).await.unwrap();
    assert_eq!(bench.sh(&id, "cat /home/mine").await, ("mine".to_owned(), 0));
    // What has the disk mounted goes before the disk does.
    bench.remove_container(&pod, &id).await;
    bench.engine.set_delete(&pod.spec.set, &pod.set_permit()).await.unwrap();
}

/// What of the suite depends on the file system below.
const CASES: [&str; 16] = [
    "set_becomes_whole",
    "complete_set_is_not_prepared_again",
    "half_prepared_set_begins_from_nothing",
    "set_access_leaves_out_what_is_missing",
    "what_volumes_take_up_is_told",
    "a_limit_is_shown_until_it_changes_or_the_pod_starts",
    "set_is_copied_at_one_instant",
    "still_is_of_one_instant_until_nobody_reads_it",
    "sets_of_a_pod_are_apart",
    "set_is_deleted_with_its_permit_only",
    "generation_is_written_beside_the_data",
    "every_volume_keeps_its_bytes",
    "deleted_file_of_the_image_stays_deleted",
    "emptied_directory_stays_empty",
    "lost_volume_is_partial_and_does_not_start",
    "lingering_process_keeps_the_set_from_use",
];

async fn conforms(kind: &str, runtime: &str) {
    let disk = LoopFs::mount(kind);
    for case in CASES {
        let mut config = shared_config(&[runtime]);
        config.storage_root = disk.0.join("root");
        check(case, Backend::Overlay, runtime, config).await;
    }
    assert_eq!(entries(&disk.0.join("root/pods")), 0, "every pod was purged");
    assert_eq!(entries(&disk.0.join("root/trash")), 0);
    assert_eq!(entries(&disk.0.join("root/scratch")), 0);
    if kind == "btrfs" {
        assert_eq!(subvolumes(&disk.0), Vec::<String>::new());
    }
}

fn subvolumes(at: &Path) -> Vec<String> {
    let output = std::process::Command::new("btrfs").args(["subvolume", "list"]).arg(at).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn overlay_volumes_on_btrfs_conform_on_runc() {
    conforms("btrfs", "runc").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn overlay_volumes_on_xfs_conform_on_runc() {
    conforms("xfs", "runc").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn overlay_volumes_on_btrfs_conform_on_runsc() {
    conforms("btrfs", "runsc").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_storage_can_copy_is_seen_on_every_file_system() {
    for (kind, can) in [("ext4", Copying::Bytes), ("xfs", Copying::Shared), ("btrfs", Copying::Instant)] {
        let disk = LoopFs::mount(kind);
        let bench = Bench::with(&["runc"], |c| c.storage_root.clone_from(&disk.0)).await;
        let pod = bench.pod(BUSYBOX, Backend::Overlay).await;
        bench.complete(&pod).await;
        assert_eq!(bench.engine.set_copying(&pod.spec.set).await, Ok(Some(can)), "{kind}");
        assert_eq!(entries(&bench.storage().join("scratch")), 0, "{kind}");
        if kind == "btrfs" {
            // A copy that ended half way is swept like all scratch, and is no set.
            let place = bench.storage().join("scratch/copy-half");
            std::fs::create_dir(&place).unwrap();
            let set = bench.storage().join(format!("pods/{}/s1", pod.id()));
            let made = std::process::Command::new("btrfs")
                .args(["subvolume", "snapshot"])
                .arg(set)
                .arg(place.join("set"))
                .output()
                .unwrap();
            assert!(made.status.success());
            let old = std::time::SystemTime::now() - std::time::Duration::from_secs(7200);
            std::fs::File::open(&place).unwrap().set_modified(old).unwrap();
            let _next = bench.reconnect(&["runc"]).await;
            assert_eq!((subvolumes(&disk.0).len(), entries(&bench.storage().join("scratch"))), (1, 0));
        }
        bench.engine.set_delete(&pod.spec.set, &pod.set_permit()).await.unwrap();
    }
}

/// Runs a command that has to succeed.
fn run(command: &str, arguments: &[&std::ffi::OsStr]) {
    assert!(std::process::Command::new(command).args(arguments).status().unwrap().success(), "{command} {arguments:?}");
}

/// Law 6: what is not in a set's subvolume is not in a copy of that, or is shared with it. So nothing is copied at once then.
#[tokio::test(flavor = "multi_thread")]
async fn law_6_a_set_with_something_outside_of_its_subvolume_is_copied_at_no_instant() {
    let disk = LoopFs::mount("btrfs");
    let bench = Bench::with(&["runc"], |c| c.storage_root = disk.0.join("root")).await;
    let (pod, copy) = (bench.pod(BUSYBOX, Backend::Overlay).await, bench.pod(BUSYBOX, Backend::Overlay).await);
    bench.complete(&pod).await;
    let (set, engine) = (&pod.spec.set, &bench.engine);
    let at = bench.storage().join(format!("pods/{}/s1", pod.id()));
    let elsewhere = disk.0.join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    let srv = at.join("srv");
    let link = |path: &Path| {
        // Another subvolume lets nothing be renamed into it: the top one is not the set's.
        let to = elsewhere.join(format!("{:08x}", rand::random::<u32>()));
        run("cp", &["-a".as_ref(), path.as_ref(), to.as_ref()]);
        std::fs::remove_dir_all(path).unwrap();
        std::os::unix::fs::symlink(&to, path).unwrap();
    };
    let whole = async || {
        assert_eq!(engine.set_copying(set).await, Ok(Some(Copying::Instant)));
        drop(engine.set_still(set).await.unwrap());
        engine.stills_sweep().await.unwrap();
    };
    let refused = async |what: &str, why: &str| {
        assert_eq!(engine.set_copying(set).await, Ok(Some(Copying::Shared)), "{what}");
        engine.set_prepare(&copy.spec.set, Fill::Image).await.unwrap();
        for answer in [engine.set_still(set).await.err(), engine.set_snapshot(set, &copy.spec.set).await.err()] {
            match answer {
                Some(EngineError::Conflict { problem }) => assert!(problem.contains(why), "{what}: {problem}"),
                other => panic!("{what}: {other:?}"),
            }
        }
        assert_eq!((entries(&bench.storage().join("scratch")), subvolumes(&disk.0).len() >= 2), (0, true), "{what}");
    };
    let restored = |path: &Path| {
        let to = std::fs::read_link(path).unwrap();
        std::fs::remove_file(path).unwrap();
        run("cp", &["-a".as_ref(), to.as_ref(), path.as_ref()]);
    };
    whole().await;
    for linked in [srv.clone(), srv.join("upper"), srv.join("work")] {
        link(&linked);
        refused(&linked.display().to_string(), "a symbolic link").await;
        restored(&linked);
    }
    whole().await;
    for mounted in [srv.join("upper"), srv.join("upper/deep/below")] {
        std::fs::create_dir_all(&mounted).unwrap();
        // Of the same file system, and of another one.
        run("mount", &["--bind".as_ref(), elsewhere.as_ref(), mounted.as_ref()]);
        let said = (mounted.display().to_string(), "mounted");
        refused(&said.0, said.1).await;
        run("umount", &[mounted.as_ref()]);
        run("mount", &["-t".as_ref(), "tmpfs".as_ref(), "none".as_ref(), mounted.as_ref()]);
        refused(&said.0, said.1).await;
        run("umount", &[mounted.as_ref()]);
    }
    whole().await;
    let nested = srv.join("upper/deep/nested");
    run("btrfs", &["-q".as_ref(), "subvolume".as_ref(), "create".as_ref(), nested.as_ref()]);
    refused("a subvolume below", "a subvolume of its own").await;
    run("btrfs", &["-q".as_ref(), "subvolume".as_ref(), "delete".as_ref(), nested.as_ref()]);
    let (upper, kept) = (srv.join("upper"), srv.join("kept"));
    std::fs::rename(&upper, &kept).unwrap();
    run("btrfs", &["-q".as_ref(), "subvolume".as_ref(), "create".as_ref(), upper.as_ref()]);
    refused("a volume that is a subvolume", "another subvolume").await;
    run("btrfs", &["-q".as_ref(), "subvolume".as_ref(), "delete".as_ref(), upper.as_ref()]);
    std::fs::rename(&kept, &upper).unwrap();
    whole().await;
    engine.set_delete(set, &pod.set_permit()).await.unwrap();
    engine.set_delete(&copy.spec.set, &copy.set_permit()).await.unwrap();
}

/// A still that is read is left alone by another process of the installation, and is swept by it once its reader is dead or done.
#[tokio::test(flavor = "multi_thread")]
async fn a_still_is_swept_by_the_next_server_unless_it_is_read() {
    let disk = LoopFs::mount("btrfs");
    let bench = Bench::with(&["runc"], |c| c.storage_root = disk.0.join("root")).await;
    let pod = bench.pod(BUSYBOX, Backend::Overlay).await;
    bench.complete(&pod).await;
    let scratch = bench.storage().join("scratch");
    let still = bench.engine.set_still(&pod.spec.set).await.unwrap();
    let (_, srv) = still.volumes.iter().find(|(name, _)| name == "srv").unwrap().clone();
    assert!(std::fs::write(srv.join("new"), "x").is_err(), "nobody writes into a still");
    // However old it is.
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(7200);
    std::fs::File::open(srv.ancestors().nth(3).unwrap()).unwrap().set_modified(old).unwrap();
    let _next = bench.reconnect(&["runc"]).await;
    assert_eq!((subvolumes(&disk.0).len(), entries(&scratch)), (2, 1));
    drop(still);
    let _next = bench.reconnect(&["runc"]).await;
    assert_eq!((subvolumes(&disk.0).len(), entries(&scratch)), (1, 0));
    bench.engine.set_delete(&pod.spec.set, &pod.set_permit()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_set_on_btrfs_is_one_subvolume_and_goes_with_it() {
    let disk = LoopFs::mount("btrfs");
    let bench = Bench::with(&["runc"], |c| c.storage_root.clone_from(&disk.0)).await;
    let set_dir = |pod: &crate::support::TestPod| bench.storage().join(format!("pods/{}/s1", pod.id()));
    let (pod, id) = bench.running(BUSYBOX, Backend::Overlay).await;
    assert_eq!(set_dir(&pod).metadata().unwrap().ino(), SUBVOLUME);
    assert_eq!(subvolumes(&disk.0).len(), 1);
    bench.sh(&id, "mkdir -p /srv/a/b; echo mine > /srv/a/b/c; sync").await;
    bench.remove_container(&pod, &id).await;

    // A deletion dies after it removed the definitions: it is repeated.
    for volume in &pod.spec.set.volumes {
        bench.docker.remove_volume(&Bench::volume_name(&pod, &volume.name), None::<RemoveVolumeOptions>).await.unwrap();
    }
    assert_eq!(bench.observe(&pod).await.set(1).unwrap().presence, Presence::Whole);
    assert_eq!(bench.engine.set_delete(&pod.spec.set, &pod.set_permit()).await, Ok(Effect::Removed));
    assert_eq!((subvolumes(&disk.0), entries(&bench.storage().join("trash"))), (Vec::new(), 0));

    // Another dies after it moved the set into the trash: the next start of the server ends it.
    let half = bench.pod(BUSYBOX, Backend::Overlay).await;
    bench.complete(&half).await;
    let place = bench.storage().join("trash/half");
    std::fs::create_dir(&place).unwrap();
    std::fs::rename(set_dir(&half), place.join("set")).unwrap();
    assert_eq!(bench.observe(&half).await.set(1).unwrap().presence, Presence::Absent);
    let _next = bench.reconnect(&["runc"]).await;
    assert_eq!((subvolumes(&disk.0), entries(&bench.storage().join("trash"))), (Vec::new(), 0));
    assert_eq!(bench.engine.set_delete(&half.spec.set, &half.set_permit()).await, Ok(Effect::Unchanged));

    // And a third in the middle of the trash: a subvolume that is a directory among others by then.
    let third = bench.pod(BUSYBOX, Backend::Overlay).await;
    bench.complete(&third).await;
    let place = bench.storage().join("trash/third");
    std::fs::create_dir(&place).unwrap();
    std::fs::rename(set_dir(&third), place.join(".1-1")).unwrap();
    let _next = bench.reconnect(&["runc"]).await;
    assert_eq!((subvolumes(&disk.0), entries(&bench.storage().join("trash"))), (Vec::new(), 0));
}

/// D13: what a pod's volumes take together is limited by btrfs; a full pod stops, starts and is enlarged while it runs.
#[tokio::test(flavor = "multi_thread")]
async fn d13_a_full_pod_on_btrfs_is_refused_more_and_starts_and_grows() {
    const LIMIT: u64 = 24 << 20;
    let disk = LoopFs::mount("btrfs");
    let quotas = |on: &str| std::process::Command::new("btrfs").args(["quota", on]).arg(&disk.0).status().unwrap();
    // As every file system begins: whoever wants the first limit turns quotas on.
    assert!(quotas("disable").success());
    let bench = Bench::with(&["runc"], |c| c.storage_root = disk.0.join("root")).await;
    let (mut pod, id) = bench.running(BUSYBOX, Backend::Overlay).await;
    let set = pod.spec.set.clone();
    let limit = async |engine: &DockerEngine| {
        engine.observe(set.pod, std::slice::from_ref(&set)).await.unwrap().set(1).unwrap().limit.unwrap()
    };
    assert_eq!(bench.engine.set_limit(&set, Some(LIMIT)).await, Ok(Effect::Updated));
    assert_eq!(limit(&bench.engine).await, SetLimit { bytes: Some(LIMIT), enforced: true });
    // Two volumes, one limit.
    let fill = "for d in home srv; do dd if=/dev/urandom of=/$d/big bs=64k count=250 conv=fsync 2>&1; done; sync";
    let (said, _) = bench.sh(&id, fill).await;
    assert!(said.contains("quota exceeded"), "{said}");
    let (_, code) = bench.sh(&id, "mkdir /opt/one").await;
    assert_ne!(code, 0, "it is full to the last directory");

    // Another server finds what is really so.
    let next = bench.reconnect(&["runc"]).await;
    assert_eq!(limit(&next).await, SetLimit { bytes: Some(LIMIT), enforced: true });

    // It starts all the same, with every mount writable, and is limited again afterwards.
    next.container_stop(&id, 2).await.unwrap();
    pod.generation += 1;
    next.container_start(&id, &set, pod.generation).await.unwrap();
    assert_eq!(limit(&next).await, SetLimit::default());
    assert_eq!(bench.sh(&id, "mkdir /opt/room && rmdir /opt/room").await.1, 0);
    next.set_limit(&set, Some(LIMIT)).await.unwrap();
    assert_ne!(bench.sh(&id, "mkdir /opt/one").await.1, 0);
    // While it runs.
    next.set_limit(&set, Some(3 * LIMIT)).await.unwrap();
    assert_eq!(
        bench.sh(&id, "mkdir /opt/one && dd if=/dev/urandom of=/opt/one/b bs=64k count=64 conv=fsync").await.1,
        0
    );
    next.set_limit(&set, None).await.unwrap();
    assert_eq!(limit(&next).await, SetLimit::default());
    bench.remove_container(&pod, &id).await;
    assert_eq!(bench.engine.set_delete(&set, &pod.set_permit()).await, Ok(Effect::Removed));
}

#[tokio::test(flavor = "multi_thread")]
async fn d13_where_nothing_enforces_a_limit_it_is_advice() {
    let disk = LoopFs::mount("ext4");
    let bench = Bench::with(&["runc"], |c| c.storage_root = disk.0.join("root")).await;
    let (pod, id) = bench.running(BUSYBOX, Backend::Overlay).await;
    bench.engine.set_limit(&pod.spec.set, Some(16 << 20)).await.unwrap();
    let advice = SetLimit { bytes: Some(16 << 20), enforced: false };
    assert_eq!(bench.observe(&pod).await.set(1).unwrap().limit, Some(advice));
    let (said, code) = bench.sh(&id, "dd if=/dev/zero of=/home/big bs=1M count=20 conv=fsync 2>&1").await;
    assert_eq!(code, 0, "{said}");
    bench.remove_container(&pod, &id).await;
}
