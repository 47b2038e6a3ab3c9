//! What goes in comes out: every file type, through this crate and through restic, both ways.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod support;

use std::fs;
use std::num::NonZeroUsize;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex};

use perennial_core::progress::Progress;
use perennial_snapshots::*;
use support::faulty::HookedBackend;
use support::*;

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
    let repo = repo.with_effort(Effort { threads: NonZeroUsize::new(1), nice: 11 });
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
