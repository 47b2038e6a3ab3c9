//! What an export wrote comes back: every kind of entry, whole pods, both volume backends, and restores of it.

use std::collections::BTreeMap;

use perennial_core::id::{PodId, SnapshotId};
use perennial_core::spec::Backend;
use perennial_drivers::sim::SimImage;
use serde_json::Value;

use super::send::{imported, is_clean};
use crate::browse::corpus;
use crate::browse::desk::Desk;
use crate::world::{World, declared_spec, files, small_spec, universal_spec};

async fn export(desk: &Desk, snapshot: SnapshotId, path: &str, format: &str) -> Vec<u8> {
    let answer = desk.get(&format!("snapshots/{snapshot}/archive?path={path}&format={format}")).await;
    answer.body.unwrap()
}

/// Everything that can be seen of a snapshot, without where it comes from.
async fn seen(desk: &Desk, snapshot: SnapshotId) -> BTreeMap<String, Value> {
    let mut found = desk.walk(snapshot, "").await;
    for entry in found.values_mut() {
        // How many directories a directory has, no archive says.
        let links = if entry["kind"] == "dir" { "links" } else { "origin" };
        for key in ["origin", "volume", links] {
            entry.as_object_mut().unwrap().remove(key);
        }
    }
    found
}

#[tokio::test]
async fn sim_every_kind_of_entry_comes_back_as_it_was_exported_and_is_restored() {
    let world = World::new(1);
    let base = tempfile::tempdir().unwrap();
    let home = base.path().join("home");
    std::fs::create_dir(&home).unwrap();
    corpus::make(&home);
    let desk = Desk::new(&world).await;
    let origin = desk.by_hand(&world, &home).await;
    for (backend, format) in [(Backend::Overlay, "tar"), (Backend::Engine, "tar.gz"), (Backend::Engine, "tar.zst")] {
        let name = format!("to-{}-{}", backend.as_str(), format.replace('.', "-"));
        let pod = desk.server.running(&name, small_spec(backend)).await;
        let archive = export(&desk, origin, "/home", format).await;
        let snapshot = imported(&desk, pod, "?into=/srv&allowDevices=true", &archive).await;
        // The archive says everything there is, so the same archive is the same tree: to the byte.
        let expected = export(&desk, origin, "/home", "tar").await;
        assert!(export(&desk, snapshot, "/srv", "tar").await == expected, "{name}: imported");
        // And once more after the way through a real directory.
        desk.server.succeed(desk.server.restore(pod, snapshot).await).await;
        let again = desk.snapshot(pod).await;
        assert!(export(&desk, again, "/srv", "tar").await == expected, "{name}: restored");
        assert!(is_clean(&world));
    }
    assert!(world.check_repository().unwrap().problems.is_empty());
}

#[tokio::test]
async fn sim_a_name_that_is_cut_at_a_slash_in_its_header_is_a_file_all_the_same() {
    let world = World::new(7);
    let desk = Desk::new(&world).await;
    let pod = desk.server.running("dev", small_spec(Backend::Overlay)).await;
    let base = tempfile::tempdir().unwrap();
    // The first hundred bytes of a name, which is what fits into a header, end with a slash, whatever stands before it.
    let directories: Vec<String> = (90..100).map(|length| "x".repeat(length)).collect();
    for directory in &directories {
        std::fs::create_dir(base.path().join(directory)).unwrap();
        for (name, content) in [("file", "content"), ("empty", "")] {
            std::fs::write(base.path().join(directory).join(name), content).unwrap();
        }
    }
    let is_there = async |snapshot: SnapshotId| {
        let found = desk.walk(snapshot, "").await;
        for (directory, (name, size)) in directories.iter().flat_map(|d| [("file", 7), ("empty", 0)].map(|f| (d, f))) {
            let entry = &found[&format!("/srv/{directory}/{name}")];
            assert_eq!((&entry["kind"], &entry["size"]), (&"file".into(), &size.into()), "{directory}/{name}");
        }
    };
    let mut exported = Vec::new();
    for format in ["gnu", "posix", "ustar"] {
        let mut tar = std::process::Command::new("tar");
        tar.arg("-C").arg(base.path()).args(["-c", "--format", format, "."]);
        let archive = tar.output().unwrap();
        assert!(archive.status.success(), "{archive:?}");
        let snapshot = imported(&desk, pod, "?into=/srv", &archive.stdout).await;
        is_there(snapshot).await;
        exported = export(&desk, snapshot, "/srv", "tar").await;
    }
    is_there(imported(&desk, pod, "?into=/srv", &exported).await).await;
    // Nobody says anything of it before, so it is a directory as there were before types.
    let snapshot = imported(&desk, pod, "?into=/srv", &super::send::Tar::new().file("old/", b"").done()).await;
    assert_eq!(desk.walk(snapshot, "").await["/srv/old"]["kind"], "dir");
}

#[tokio::test]
async fn sim_directories_that_an_archive_of_a_whole_pod_leaves_out_are_as_in_the_image() {
    let image = SimImage::standard().directory_of("/opt/tool", 0o700, 33);
    let world = World::with(8, &image);
    let desk = Desk::new(&world).await;
    let pod = desk.server.running("dev", universal_spec(Backend::Overlay)).await;
    let source = desk.snapshot(pod).await;
    let mut tar = super::send::Tar::new().file("home/user/mine", b"x").file("opt/tool/mine", b"x");
    let rows = desk.server.snapshots(pod).await;
    for volume in &rows.iter().find(|row| row.id == source).unwrap().volumes {
        tar = tar.file(&format!("{}/mine", volume.mount_path.trim_start_matches('/')), b"x");
    }
    let snapshot = imported(&desk, pod, "", &tar.done()).await;
    let found = desk.walk(snapshot, "").await;
    for (path, mode, owner) in [("/home", 0o755, 0), ("/home/user", 0o750, 1000), ("/opt/tool", 0o700, 33)] {
        let entry = &found[path];
        assert_eq!(
            (&entry["mode"], &entry["uid"], &entry["gid"]),
            (&mode.into(), &owner.into(), &owner.into()),
            "{path}"
        );
    }
}

#[tokio::test]
async fn sim_what_is_proven_of_one_name_is_not_taken_for_another() {
    // Two files that differ in nothing but their content.
    let world = World::with(9, &SimImage::standard().file("/usr/a", "aaaa").file("/usr/b", "bbbb"));
    let desk = Desk::new(&world).await;
    let pod = desk.server.running("dev", universal_spec(Backend::Overlay)).await;
    let source = desk.snapshot(pod).await;
    let found = desk.walk(source, "").await;
    assert_eq!(found["/usr/a"]["modifiedAt"], found["/usr/b"]["modifiedAt"], "{:?}", found["/usr/a"]);
    let exported = export(&desk, source, "/", "tar").await;
    let mut archive = tar::Builder::new(Vec::new());
    for entry in tar::Archive::new(&exported[..]).entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().into_owned();
        let pax: Vec<(String, Vec<u8>)> = (entry.pax_extensions().unwrap().into_iter().flatten())
            .map(|record| record.unwrap())
            .map(|record| (record.key().unwrap().to_owned(), record.value_bytes().to_vec()))
            .collect();
        if !pax.is_empty() {
            archive.append_pax_extensions(pax.iter().map(|(k, v)| (k.as_str(), v.as_slice()))).unwrap();
        }
        let header = entry.header().clone();
        if path.ends_with("usr/b") {
            // `b` becomes another name of `a`, and `a` something else: `aaaa` has only the name `b` now.
            let mut link = super::send::header(tar::EntryType::Link, "usr/b", 0);
            link.set_link_name("usr/a").unwrap();
            link.set_cksum();
            archive.append(&link, std::io::empty()).unwrap();
            archive.append(&super::send::header(tar::EntryType::Regular, "usr/a", 3), &b"new"[..]).unwrap();
        } else {
            archive.append(&header, &mut entry).unwrap();
        }
    }
    let snapshot = imported(&desk, pod, "", &archive.into_inner().unwrap()).await;
    for (path, content) in [("/usr/a", &b"new"[..]), ("/usr/b", b"aaaa")] {
        let answer = desk.get(&format!("snapshots/{snapshot}/files/content?path={path}")).await;
        assert_eq!(answer.body.unwrap(), content, "{path}");
    }
    assert!(!desk.walk(snapshot, "&changes=true").await.contains_key("/usr/lib/data"));
}

fn change(world: &World, pod: PodId) {
    for path in ["/home/user/new", "/etc/motd", "/usr/lib/extra/x", "/usr/local/y", "/tools/z", "/srv/w"] {
        world.engine.write(pod, path, format!("changed {path}")).unwrap();
    }
    for path in ["/var/lib/seed/a", "/usr/lib/data", "/home/old"] {
        assert!(world.engine.remove(pod, path).unwrap(), "{path}");
    }
    world.engine.write(pod, "/home/old/c", "mine").unwrap();
}

#[tokio::test]
async fn sim_a_whole_pod_comes_back_on_any_volume_backend() {
    use Backend::{Engine, Overlay};
    for (from, to) in [(Overlay, Overlay), (Overlay, Engine), (Engine, Overlay), (Engine, Engine)] {
        let world = World::with(2, &SimImage::standard().file("/home/old/a", "x").file("/home/old/b", "x"));
        let desk = Desk::new(&world).await;
        let origin = desk.server.running("origin", universal_spec(from)).await;
        change(&world, origin);
        let expected = files(&world, origin);
        let source = desk.snapshot(origin).await;
        let archive = export(&desk, source, "/", "tar.zst").await;

        let pod = desk.server.running("copy", universal_spec(to)).await;
        world.engine.write(pod, "/srv/mine", "stays until the restore").unwrap();
        let before = files(&world, pod);
        let (record, snapshot) = (desk.server.pod(pod).await, imported(&desk, pod, "", &archive).await);
        assert_eq!(seen(&desk, snapshot).await, seen(&desk, source).await, "{from:?} to {to:?}");
        assert_eq!(files(&world, pod), before, "an import alone changes nothing");
        let after = desk.server.pod(pod).await;
        assert_eq!(
            (after.sets, after.current, after.layer, after.source),
            (record.sets, record.current, record.layer, record.source)
        );

        desk.server.succeed(desk.server.restore(pod, snapshot).await).await;
        assert_eq!(files(&world, pod), expected, "{from:?} to {to:?}");
        // What the image has is not stored again, neither in volumes that were exported as they were.
        let row = desk.server.app.store.snapshot_fetch(snapshot).await.unwrap().unwrap();
        let changes = desk.walk(snapshot, "&changes=true").await;
        assert!(!changes.contains_key("/bin/sh"), "{changes:?}");
        assert!(changes.contains_key("/tools/z") && row.losses.is_empty());
        // Stop and start carry on from it.
        desk.server.succeed(desk.server.stop(pod).await).await;
        desk.server.succeed(desk.server.start(pod).await).await;
        assert_eq!(files(&world, pod), expected);
        assert_eq!(world.engine.violations(), Vec::<String>::new());
        assert!(is_clean(&world));
    }
}

#[tokio::test]
async fn sim_a_stopped_pod_and_one_of_declared_volumes_take_archives_as_well() {
    let world = World::new(3);
    let desk = Desk::new(&world).await;
    let pod = desk.server.running("dev", declared_spec(Backend::Overlay)).await;
    world.engine.write(pod, "/srv/a", "mine").unwrap();
    let source = desk.snapshot(pod).await;
    let archive = export(&desk, source, "/", "tar").await;
    world.engine.write(pod, "/srv/a", "changed").unwrap();
    desk.server.succeed(desk.server.stop(pod).await).await;
    let stopped = desk.server.pod(pod).await;
    let snapshot = imported(&desk, pod, "", &archive).await;
    assert_eq!(desk.server.pod(pod).await.phase, stopped.phase);
    assert_eq!(seen(&desk, snapshot).await, seen(&desk, source).await);
    desk.server.succeed(desk.server.restore(pod, snapshot).await).await;
    desk.server.succeed(desk.server.start(pod).await).await;
    assert_eq!(world.engine.read(pod, "/srv/a").unwrap().as_deref(), Some(&b"mine"[..]));
}

#[tokio::test]
async fn p28_a_backup_of_anything_is_brought_into_a_pod() {
    // The standing wish: files from elsewhere, below one path, and everything else as it is.
    for backend in [Backend::Overlay, Backend::Engine] {
        let world = World::with(4, &SimImage::standard().file("/home/old/a", "x").file("/home/old/b", "x"));
        let desk = Desk::new(&world).await;
        let pod = desk.server.running("dev", universal_spec(backend)).await;
        change(&world, pod);
        world.engine.remove(pod, "/home/old").unwrap();
        let mut expected = files(&world, pod);
        desk.snapshot(pod).await;
        world.engine.write(pod, "/srv/later", "not in the newest snapshot").unwrap();

        let archive = super::send::Tar::new()
            .file("user/new", b"replaced")
            .file("old/d", b"in a directory that the pod had deleted")
            .file("deep/er/file", b"added")
            .done();
        let snapshot = imported(&desk, pod, "?into=/home&comment=from%20the%20old%20server", &archive).await;
        expected.insert("/home/user/new".into(), b"replaced".to_vec());
        expected.insert("/home/old/d".into(), b"in a directory that the pod had deleted".to_vec());
        expected.insert("/home/deep/er/file".into(), b"added".to_vec());
        let found = desk.walk(snapshot, "").await;
        let regular: Vec<&String> = found.iter().filter(|(_, e)| e["kind"] == "file").map(|(path, _)| path).collect();
        assert_eq!(regular, expected.keys().collect::<Vec<_>>(), "{backend:?}");
        // What only the image has keeps its owner and mode, though the archive says nothing of it.
        assert_eq!((&found["/home/user"]["mode"], &found["/home/user"]["uid"]), (&0o750.into(), &1000.into()));
        desk.server.succeed(desk.server.restore(pod, snapshot).await).await;
        assert_eq!(files(&world, pod), expected, "{backend:?}");

        // Outside volumes it is the system layer's.
        desk.snapshot(pod).await;
        let archive = super::send::Tar::new().file("share/doc/x", b"x").done();
        let snapshot = imported(&desk, pod, "?into=/usr", &archive).await;
        expected.insert("/usr/share/doc/x".into(), b"x".to_vec());
        let archive = super::send::Tar::new().file("tool", b"t").done();
        // The newest verified snapshot is the import before it.
        let snapshot = imported(&desk, pod, "?into=/new/place", &archive).await.max(snapshot);
        expected.insert("/new/place/tool".into(), b"t".to_vec());
        desk.server.succeed(desk.server.restore(pod, snapshot).await).await;
        assert_eq!(files(&world, pod), expected, "{backend:?}");
        assert_eq!(world.engine.violations(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn sim_without_a_snapshot_everything_else_is_as_the_image_has_it() {
    for backend in [Backend::Overlay, Backend::Engine] {
        let world = World::new(5);
        let desk = Desk::new(&world).await;
        let pod = desk.server.running("dev", universal_spec(backend)).await;
        let mut expected = files(&world, pod);
        world.engine.write(pod, "/home/user/other", "not in any snapshot").unwrap();
        let archive = super::send::Tar::new().file("a", b"1").done();
        let snapshot = imported(&desk, pod, "?into=/home/user", &archive).await;
        expected.insert("/home/user/a".into(), b"1".to_vec());
        desk.server.succeed(desk.server.restore(pod, snapshot).await).await;
        assert_eq!(files(&world, pod), expected, "{backend:?}");
        let found = desk.walk(snapshot, "").await;
        assert_eq!((&found["/home/user"]["mode"], &found["/home/user"]["uid"]), (&0o750.into(), &1000.into()));
    }
}
