//! Upper layers of real overlay mounts: captured as a tree and a removed list, restored wherever they are wanted.
//!
//! These tests mount overlays and so need root.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::support::*;
use perennial_core::progress::Progress;
use perennial_snapshots::*;

/// An overlay as Perennial mounts it; unmounted when dropped.
struct Overlay {
    merged: PathBuf,
}

impl Overlay {
    fn mount(lower: &Path, upper: &Path, dir: &Path, name: &str) -> Self {
        let (work, merged) = (dir.join(format!("{name}-work")), dir.join(format!("{name}-merged")));
        for path in [upper, &work, &merged] {
            fs::create_dir_all(path).unwrap();
        }
        let options = format!(
            "lowerdir={},upperdir={},workdir={},redirect_dir=nofollow,metacopy=off,index=off",
            lower.display(),
            upper.display(),
            work.display()
        );
        let options = std::ffi::CString::new(options).unwrap();
        let flags = rustix::mount::MountFlags::NODEV;
        rustix::mount::mount("overlay", &merged, "overlay", flags, options.as_c_str()).unwrap();
        Self { merged }
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.merged, rustix::mount::UnmountFlags::DETACH);
    }
}

fn lower(path: &Path) {
    fs::create_dir_all(path.join("etc/conf.d")).unwrap();
    fs::create_dir_all(path.join("opaque/inner")).unwrap();
    fs::create_dir_all(path.join("gone/deep")).unwrap();
    for file in ["etc/passwd", "etc/conf.d/a", "etc/conf.d/b", "opaque/old", "opaque/inner/old", "gone/deep/x", "keep"]
    {
        fs::write(path.join(file), format!("lower {file}")).unwrap();
    }
    fs::write(path.join(".wh.real"), b"a file with an unlucky name").unwrap();
    fs::write(path.join("to dir"), b"file").unwrap();
    fs::create_dir(path.join("to file")).unwrap();
    fs::write(path.join("to file/x"), b"x").unwrap();
    symlink("keep", path.join("symlink")).unwrap();
}

/// What somebody does in a pod.
fn change(merged: &Path) {
    let at = |p: &str| merged.join(p);
    fs::write(at("etc/passwd"), b"changed").unwrap();
    fs::remove_file(at("etc/conf.d/a")).unwrap();
    fs::remove_dir_all(at("gone")).unwrap();
    fs::remove_dir_all(at("opaque")).unwrap();
    fs::create_dir_all(at("opaque/inner")).unwrap();
    fs::write(at("opaque/inner/new"), b"new").unwrap();
    fs::remove_file(at("to dir")).unwrap();
    fs::create_dir(at("to dir")).unwrap();
    fs::write(at("to dir/x"), b"now inside").unwrap();
    fs::remove_dir_all(at("to file")).unwrap();
    fs::write(at("to file"), b"now a file").unwrap();
    fs::write(at(".wh.mine"), b"still only a name").unwrap();
    fs::set_permissions(at("keep"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::remove_file(at("symlink")).unwrap();
    fs::create_dir(at("brand new")).unwrap();
    fs::write(at("brand new/f"), b"f").unwrap();
    fs::hard_link(at("brand new/f"), at("brand new/g")).unwrap();
}

struct World {
    dir: tempfile::TempDir,
    lower: PathBuf,
    upper: PathBuf,
    overlay: Overlay,
}

fn world() -> World {
    let dir = scratch();
    let (low, upper) = (dir.path().join("lower"), dir.path().join("upper"));
    fs::create_dir(&low).unwrap();
    lower(&low);
    let overlay = Overlay::mount(&low, &upper, dir.path(), "first");
    change(&overlay.merged);
    World { lower: low, upper, overlay, dir }
}

/// What counts when overlays are compared: not the number of links or access times, which an overlay makes up.
fn view(path: &Path) -> std::collections::BTreeMap<PathBuf, compare::Item> {
    let mut map = compare::snapshot(path);
    for item in map.values_mut() {
        item.atime = (0, 0);
        item.xattrs.retain(|name, _| !name.to_string_lossy().starts_with("trusted.overlay."));
    }
    map
}

const LIST: &str = "/removed/home";

#[test]
fn an_upper_layer_survives_as_an_upper_layer() {
    let world = world();
    let (path, repo) = local(world.dir.path());
    let archived = repo.archive(&overlay_request(&world.upper), &Progress::default()).unwrap();
    let snapshot = archived.snapshot.unwrap();
    verify_all(&repo, snapshot);
    let list = removed::decode(&repo.read_file(snapshot, LIST).unwrap()).unwrap();
    let names: Vec<String> = list
        .iter()
        .map(|r| {
            format!("{}{}", String::from_utf8_lossy(&r.path), if r.how == removed::Removal::Opaque { "/" } else { "" })
        })
        .collect();
    assert_eq!(names, ["etc/conf.d/a", "gone", "opaque/", "symlink", "to dir/"]);
    let listing = restic(&path, &["ls", "latest"]);
    assert!(!listing.contains("home/gone") && listing.contains(".wh.mine"), "{listing}");
    // Restored beside, mounted again: the same view.
    let upper = world.dir.path().join("upper2");
    let request = RestoreRequest { removals: Removals::Whiteouts { list: LIST.into() }, ..restore_request(&upper) };
    let done = repo.restore(snapshot, &request, &Progress::default()).unwrap();
    assert_eq!(done.whiteouts, 3);
    let expected = view(&world.overlay.merged);
    let second = Overlay::mount(&world.lower, &upper, world.dir.path(), "second");
    compare::assert_same(&expected, &view(&second.merged));
    drop(second);
    // In place over an upper that went on differently.
    let third = Overlay::mount(&world.lower, &upper, world.dir.path(), "third");
    fs::remove_dir_all(third.merged.join("etc")).unwrap();
    fs::write(third.merged.join("gone"), b"a file now").unwrap();
    fs::remove_file(third.merged.join("keep")).unwrap();
    drop(third);
    let replace = RestoreRequest { existing: Existing::Replace, ..request };
    repo.restore(snapshot, &replace, &Progress::default()).unwrap();
    let fourth = Overlay::mount(&world.lower, &upper, world.dir.path(), "fourth");
    compare::assert_same(&expected, &view(&fourth.merged));
}

#[test]
fn changes_are_merged_where_there_is_no_overlay() {
    let world = world();
    let (_, repo) = memory();
    let image = archive(&repo, &world.lower).snapshot.unwrap();
    let snapshot = repo.archive(&overlay_request(&world.upper), &Progress::default()).unwrap().snapshot.unwrap();
    let target = world.dir.path().join("target");
    restore(&repo, image, &target);
    let request = RestoreRequest {
        existing: Existing::Keep,
        removals: Removals::Delete { list: LIST.into() },
        ..restore_request(&target)
    };
    repo.restore(snapshot, &request, &Progress::default()).unwrap();
    compare::assert_same(&view(&world.overlay.merged), &view(&target));
}

#[test]
fn the_kernels_bookkeeping_is_left_out_and_anything_unknown_fails() {
    let world = world();
    let (_, repo) = memory();
    // What the kernel really set with these mount options is among what the module's documentation names.
    let mut todo = vec![world.upper.clone()];
    while let Some(path) = todo.pop() {
        for name in compare::xattrs(&path).keys() {
            let name = name.to_string_lossy();
            if let Some(name) = name.strip_prefix("trusted.overlay.") {
                assert!(["opaque", "origin", "impure", "uuid"].contains(&name), "{name} on {}", path.display());
            }
        }
        if fs::symlink_metadata(&path).unwrap().is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        }
    }
    let snapshot = repo.archive(&overlay_request(&world.upper), &Progress::default()).unwrap().snapshot.unwrap();
    let plain = world.dir.path().join("plain");
    restore(&repo, snapshot, &plain);
    let restored = compare::snapshot(&plain);
    assert!(restored.values().all(|item| item.xattrs.keys().all(|n| !n.to_string_lossy().contains("overlay"))));
    for (path, name, value) in [
        ("etc", "trusted.overlay.redirect", &b"/other"[..]),
        ("etc/passwd", "trusted.overlay.metacopy", b""),
        ("brand new", "trusted.overlay.opaque", b"x"),
    ] {
        corpus::xattr(&world.upper.join(path), name, value);
        let failed = repo.archive(&overlay_request(&world.upper), &Progress::default());
        let Err(Error::UnknownOverlayAttribute { path: found, attribute }) = failed else { panic!("{failed:?}") };
        assert_eq!((found, attribute.as_str()), (Path::new("/volumes/home").join(path), name));
        rustix::fs::lremovexattr(world.upper.join(path), name).unwrap();
    }
}

#[test]
fn a_device_0_0_outside_an_overlay_is_a_device() {
    let dir = scratch();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    let at = source.join("null null");
    rustix::fs::mknodat(rustix::fs::CWD, &at, rustix::fs::FileType::CharacterDevice, mode, 0).unwrap();
    let (_, repo) = memory();
    let snapshot = archive(&repo, &source).snapshot.unwrap();
    let target = dir.path().join("target");
    restore(&repo, snapshot, &target);
    let meta = fs::symlink_metadata(target.join("null null")).unwrap();
    assert!(meta.file_type().is_char_device() && meta.rdev() == 0);
    // But it never becomes a deletion.
    let empty_list = Root { at: LIST.into(), source: Source::Bytes { data: vec![], mode: 0o600 } };
    let mut with_list = request(&source);
    with_list.roots.push(empty_list);
    let snapshot = repo.archive(&with_list, &Progress::default()).unwrap().snapshot.unwrap();
    let request = RestoreRequest {
        removals: Removals::Whiteouts { list: LIST.into() },
        ..restore_request(&dir.path().join("upper"))
    };
    assert!(matches!(repo.restore(snapshot, &request, &Progress::default()), Err(Error::InvalidContent { .. })));
}

#[test]
fn a_full_tree_becomes_an_upper_layer_of_a_given_lower_one() {
    let world = world();
    fs::write(world.lower.join("hard a"), b"linked").unwrap();
    fs::hard_link(world.lower.join("hard a"), world.lower.join("hard b")).unwrap();
    // The lower layer as a plain tree, changed like the overlay.
    let full = world.dir.path().join("full");
    let (_, repo) = memory();
    let image = archive(&repo, &world.lower).snapshot.unwrap();
    restore(&repo, image, &full);
    change(&full);
    let snapshot = archive(&repo, &full).snapshot.unwrap();
    let upper = world.dir.path().join("upper3");
    let request = RestoreRequest { against_lower: Some(world.lower.clone()), ..restore_request(&upper) };
    repo.restore(snapshot, &request, &Progress::default()).unwrap();
    // Only what differs is there.
    for same in ["hard a", "hard b", ".wh.real", "etc/conf.d/b"] {
        assert!(!upper.join(same).exists(), "{same}");
    }
    let mounted = Overlay::mount(&world.lower, &upper, world.dir.path(), "converted");
    let (mut expected, mut found) = (view(&full), view(&mounted.merged));
    for map in [&mut expected, &mut found] {
        // An overlay shows the links of its lower layer under other inode numbers.
        map.values_mut().for_each(|item| item.link = None);
    }
    compare::assert_same(&expected, &found);
    drop(mounted);
    // The unchanged image needs nothing but an empty upper layer.
    let idle = world.dir.path().join("upper4");
    let done = repo.restore(image, &RestoreRequest { target: idle.clone(), ..request.clone() }, &Progress::default());
    assert_eq!(done.unwrap().counts, Counts { files: 0, dirs: 1, bytes: 0 });
    assert_eq!(fs::read_dir(&idle).unwrap().count(), 0);
    // In place over another upper layer.
    let replace = RestoreRequest { target: upper, existing: Existing::Replace, ..request };
    repo.restore(image, &replace, &Progress::default()).unwrap();
    assert_eq!(fs::read_dir(&replace.target).unwrap().count(), 0);
}
