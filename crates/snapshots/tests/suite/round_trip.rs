//! What goes in comes out: every file type, through this crate and through restic, both ways.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::ffi::{OsStr, OsString};
use std::fs;
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::support::faulty::HookedBackend;
use crate::support::*;
use perennial_core::progress::Progress;
use perennial_snapshots::*;

#[test]
fn every_file_type_survives() {
    let dir = scratch();
    let (source, target) = (dir.path().join("source"), dir.path().join("target"));
    corpus::make(&source);
    let (_, repo) = memory();
    let before = compare::snapshot(&source);
    let archived = archive(&repo, &source);
    assert_eq!(archived.losses, vec![]);
    let snapshot = archived.snapshot.unwrap();
    let verified = verify_all(&repo, snapshot);
    assert_eq!(verified.counts, archived.counts);
    let restored = restore(&repo, snapshot, &target);
    assert_eq!(restored.counts, archived.per_root[0].counts);
    compare::assert_same(&before, &compare::snapshot(&target));
    // Holes stay holes, and long ones were never read.
    assert!(fs::metadata(target.join("sparse")).unwrap().blocks() * 512 < 1 << 20);
    assert!(archived.read_bytes < 32 << 20, "{}", archived.read_bytes);
    assert_eq!(repo.read_file(snapshot, "/pod.json").unwrap(), b"{}");
    assert_eq!(repo.read_file(snapshot, "/volumes/home/small").unwrap(), b"small file\n");
    let names: Vec<_> = repo.ls(snapshot, "/").unwrap().into_iter().map(|e| e.name).collect();
    assert_eq!(names, [b"pod.json".to_vec(), b"volumes".to_vec()]);
    assert_eq!(repo.find(&["pod:1"]).unwrap().len(), 1);
    assert_eq!(repo.find(&["pod:1", "pod:2"]).unwrap().len(), 0);
}

#[test]
fn restic_accepts_lists_and_restores_what_we_write() {
    let dir = scratch();
    let (source, target) = (dir.path().join("source"), dir.path().join("target"));
    corpus::make(&source);
    let (path, repo) = local(dir.path());
    let before = compare::snapshot(&source);
    let archived = archive(&repo, &source);
    verify_all(&repo, archived.snapshot.unwrap());
    let text = restic(&path, &["check", "--read-data"]);
    assert!(text.contains("no errors were found"), "{text}");
    assert!(restic(&path, &["snapshots"]).contains("pod:1"));
    let listing = restic(&path, &["ls", "latest"]);
    assert!(listing.contains("/volumes/home/grüße 😀"), "{listing}");
    restic(&path, &["restore", "latest", "--target", target.to_str().unwrap()]);
    let mut found = compare::snapshot(&target.join("volumes/home"));
    // What restic 0.14 does not restore: targets that are not UTF-8, and attributes of links, which it sets on what
    // the link points to.
    found.get_mut(std::path::Path::new("small")).unwrap().xattrs.clear();
    let mut expected = before;
    for map in [&mut expected, &mut found] {
        map.remove(std::path::Path::new("dangling"));
        map.get_mut(std::path::Path::new("link")).unwrap().xattrs.clear();
        for item in map.values_mut() {
            item.atime = (0, 0);
        }
    }
    compare::assert_same(&expected, &found);
}

#[test]
fn we_restore_and_extend_what_restic_writes() {
    let dir = scratch();
    let (source, target) = (dir.path().join("source"), dir.path().join("target"));
    corpus::make(&source);
    let path = dir.path().join("repo");
    restic(&path, &["init", "--repository-version", "2"]);
    fs::remove_file(source.join("dangling")).unwrap();
    corpus::set_mtime(&source, 5, 5);
    restic(&path, &["backup", source.to_str().unwrap()]);
    let before = compare::snapshot(&source);
    let repo = Repository::open(std::sync::Arc::new(LocalBackend::new(&path)), &password()).unwrap();
    let theirs = repo.find(&[]).unwrap().remove(0);
    verify_all(&repo, theirs.id);
    let request = RestoreRequest { subtree: source.to_str().unwrap().into(), ..restore_request(&target) };
    repo.restore(theirs.id, &request, &Progress::default()).unwrap();
    let mut found = compare::snapshot(&target);
    let mut expected = before.clone();
    for map in [&mut expected, &mut found] {
        for item in map.values_mut() {
            item.atime = (0, 0);
            if item.kind == 'l' {
                item.xattrs.clear();
            }
        }
    }
    compare::assert_same(&expected, &found);
    // Ours beside theirs: small files are the same blobs, and restic can go on.
    let archived = archive(&repo, &source);
    verify_all(&repo, archived.snapshot.unwrap());
    restic(&path, &["backup", source.to_str().unwrap()]);
    restic(&path, &["check", "--read-data"]);
}

/// Names as long as a name can be, paths nearly as long as a path can be, and one directory with very many files.
fn make_extremes(root: &Path) -> u64 {
    fs::create_dir(root).unwrap();
    let long = [vec![b'n'; 255], [&b"\xff\xfe"[..], &[b'x'; 253]].concat(), "ü".repeat(127).into_bytes()];
    for name in &long {
        fs::write(root.join(OsStr::from_bytes(name)), b"long").unwrap();
    }
    let mut deep = root.to_owned();
    for level in 0..200 {
        deep.push(format!("level {level:03} down"));
        fs::create_dir(&deep).unwrap();
    }
    fs::write(deep.join("bottom"), b"deep").unwrap();
    assert!(deep.as_os_str().len() > 3000, "200 levels are to be a long path");
    let many = root.join("many");
    fs::create_dir(&many).unwrap();
    for n in 0..MANY {
        fs::write(many.join(format!("{n:06}")), format!("{}", n % 500)).unwrap();
    }
    // Directories and files; itself is one.
    1 + long.len() as u64 + 200 + 1 + 1 + MANY
}

const MANY: u64 = 100_000;

/// The many are compared by name and content, everything else by all there is.
fn assert_same_extremes(source: &Path, target: &Path) {
    let many = |root: &Path| -> Vec<(OsString, Vec<u8>)> {
        let read = |entry: std::io::Result<fs::DirEntry>| {
            let entry = entry.unwrap();
            (entry.file_name(), fs::read(entry.path()).unwrap())
        };
        let mut all: Vec<_> = fs::read_dir(root.join("many")).unwrap().map(read).collect();
        all.sort_unstable();
        all
    };
    let (expected, found) = (many(source), many(target));
    assert_eq!(found.len() as u64, MANY);
    assert!(expected == found, "the many differ");
    fs::remove_dir_all(target.join("many")).unwrap();
    let mut found = compare::snapshot(target);
    let rest = |path: &PathBuf| !path.starts_with("many") && !path.as_os_str().is_empty();
    let mut expected = compare::snapshot_of(source, &rest);
    found.retain(|path, _| rest(path));
    for item in expected.values_mut().chain(found.values_mut()) {
        item.atime = (0, 0);
    }
    compare::assert_same(&expected, &found);
}

#[test]
fn long_names_deep_trees_and_very_many_files_go_to_restic_and_come_from_it() {
    let dir = scratch();
    let source = dir.path().join("s");
    let entries = make_extremes(&source);
    let (path, repo) = local(dir.path());
    let archived = archive(&repo, &source);
    assert_eq!(archived.per_root[0].counts.files + archived.per_root[0].counts.dirs, entries);
    verify_all(&repo, archived.snapshot.unwrap());
    let text = restic(&path, &["check", "--read-data"]);
    assert!(text.contains("no errors were found"), "{text}");
    let target = dir.path().join("t");
    restic(&path, &["restore", "latest", "--target", target.to_str().unwrap()]);
    assert_same_extremes(&source, &target.join("volumes/home"));
    fs::remove_dir_all(&target).unwrap();
    // And theirs, by whatever name restic finds it below the root.
    let theirs = dir.path().join("theirs");
    restic(&theirs, &["init", "--repository-version", "2"]);
    restic(&theirs, &["backup", source.to_str().unwrap()]);
    let repo = Repository::open(Arc::new(LocalBackend::new(&theirs)), &password()).unwrap();
    let snapshot = repo.find(&[]).unwrap().remove(0).id;
    verify_all(&repo, snapshot);
    let request = RestoreRequest { subtree: source.to_str().unwrap().into(), ..restore_request(&target) };
    repo.restore(snapshot, &request, &Progress::default()).unwrap();
    assert_same_extremes(&source, &target);
}

#[test]
fn a_repository_of_format_1_is_refused_and_read_once_restic_has_upgraded_it() {
    let dir = scratch();
    let (source, target) = (dir.path().join("source"), dir.path().join("target"));
    fs::create_dir(&source).unwrap();
    fs::write(source.join("text"), "compressible ".repeat(10_000)).unwrap();
    let path = dir.path().join("repo");
    restic(&path, &["init", "--repository-version", "1"]);
    restic(&path, &["backup", source.to_str().unwrap()]);
    let open = || Repository::open(Arc::new(LocalBackend::new(&path)), &password());
    let refused = open().unwrap_err();
    assert!(matches!(refused, Error::UnsupportedVersion { version: 1 }), "{refused:?}");
    let text = refused.to_string();
    assert!(text.contains("version 1") && text.contains("restic migrate upgrade_repo_v2"), "{text}");
    restic(&path, &["migrate", "upgrade_repo_v2"]);
    let repo = open().unwrap();
    let snapshot = repo.find(&[]).unwrap().remove(0).id;
    verify_all(&repo, snapshot);
    let request = RestoreRequest { subtree: source.to_str().unwrap().into(), ..restore_request(&target) };
    repo.restore(snapshot, &request, &Progress::default()).unwrap();
    assert_eq!(fs::read(target.join("text")).unwrap(), fs::read(source.join("text")).unwrap());
}

/// The threads of bounded work stand back, are no more than were said, and do the same.
#[test]
fn bounded_work_stands_back_and_does_the_same() {
    let dir = scratch();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    for n in 0..40 {
        fs::write(source.join(n.to_string()), corpus::noise(1 << 20, n)).unwrap();
    }
    let nice_of_writers = Arc::new(Mutex::new(Vec::new()));
    let hook = {
        let seen = Arc::clone(&nice_of_writers);
        move |kind| {
            if kind == FileKind::Pack {
                seen.lock().unwrap().push(rustix::process::getpriority_process(None).unwrap());
            }
        }
    };
    let before = rustix::process::getpriority_process(None).unwrap();
    let backend = HookedBackend::new(Arc::new(MemoryBackend::new()), hook);
    let repo = Repository::init(backend, &password(), KeyCost::Test).unwrap();
    let repo = repo.with_effort(Effort { threads: NonZeroUsize::new(1), nice: 11, memory: None });
    let snapshot = archive(&repo, &source).snapshot.unwrap();
    let seen = nice_of_writers.lock().unwrap().clone();
    assert!(seen.contains(&before.max(11)), "{seen:?}");
    verify_all(&repo, snapshot);
    let target = dir.path().join("target");
    restore(&repo, snapshot, &target);
    for n in 0..40 {
        assert_eq!(fs::read(target.join(n.to_string())).unwrap(), corpus::noise(1 << 20, n));
    }
    assert_eq!(rustix::process::getpriority_process(None).unwrap(), before);
}
