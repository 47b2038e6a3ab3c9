//! Directories are looked at as a snapshot of them would be, and nothing of that reaches the store.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::*;
use jiff::SignedDuration;
use perennial_core::progress::Progress;
use perennial_snapshots::*;

/// Every file of the store.
fn stored(backend: &MemoryBackend) -> Vec<(FileKind, Id, Vec<u8>)> {
    let kinds = [FileKind::Key, FileKind::Pack, FileKind::Index, FileKind::Snapshot, FileKind::Lock];
    let of = |kind| backend.list(kind).unwrap().into_iter().map(move |file| (kind, file.id));
    let mut all: Vec<_> =
        kinds.into_iter().flat_map(of).map(|(kind, id)| (kind, id, backend.read(kind, id).unwrap())).collect();
    all.sort_by_key(|(kind, id, _)| (kind.to_string(), *id));
    all
}

fn look(repo: &Repository, directory: &Path, path: &Path, parent: SnapshotFileId) -> (Repository, Archived) {
    let sketch = repo.sketch(directory, u64::MAX).unwrap();
    let request = ArchiveRequest { pass: Pass::Live, parents: vec![Parent::Snapshot(parent)], ..request(path) };
    let archived = sketch.archive(&request, &Progress::default()).unwrap();
    (sketch, archived)
}

fn content(repo: &Repository, tree: TreeId, path: &str) -> Vec<Id> {
    repo.entry(tree, path.as_bytes()).unwrap().content
}

#[test]
fn a_sketch_shows_what_a_snapshot_would_and_stores_nothing() {
    let dir = scratch();
    let source = dir.path().join("source");
    fs::create_dir_all(source.join("deep/er")).unwrap();
    for (name, size) in [("same", 3000), ("deep/changed", 300_000), ("deep/er/gone", 10)] {
        fs::write(source.join(name), corpus::noise(size, 1)).unwrap();
    }
    let (backend, repo) = memory();
    let first = archive(&repo, &source).snapshot.unwrap();
    fs::write(source.join("deep/changed"), corpus::noise(300_000, 2)).unwrap();
    fs::write(source.join("new"), corpus::noise(900_000, 3)).unwrap();
    fs::remove_file(source.join("deep/er/gone")).unwrap();
    let before = stored(&backend);
    let (sketch, found) = look(&repo, dir.path(), &source, first);
    assert!(found.losses.is_empty() && found.snapshot.is_none());
    assert_eq!(stored(&backend), before, "a look changed the store");
    let names = fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(names, 1, "a crash would leave a file behind");
    // What is not in the store is not in the repository either.
    assert!(repo.entry(found.tree, b"/volumes/home/new").is_err());

    let second = repo.archive(&request(&source), &Progress::default()).unwrap();
    for path in ["/volumes/home/same", "/volumes/home/deep/changed", "/volumes/home/new"] {
        assert_eq!(content(&sketch, found.tree, path), content(&repo, second.tree, path), "{path}");
    }
    assert_eq!(found.counts, second.counts);
    let gone = sketch.entry(found.tree, b"/volumes/home/deep/er/gone");
    assert!(matches!(gone, Err(Error::NotFound { .. })), "{gone:?}");
}

#[test]
fn of_contents_a_sketch_keeps_only_hashes() {
    let dir = scratch();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    let (_, repo) = memory();
    let first = archive(&repo, &source).snapshot.unwrap();
    fs::write(source.join("large"), corpus::noise(9_000_000, 1)).unwrap();
    let (sketch, found) = look(&repo, dir.path(), &source, first);
    assert_eq!(found.read_bytes, 9_000_000);
    assert!(found.new_bytes < 100_000, "{} bytes are kept of a look", found.new_bytes);
    let file = sketch.entry(found.tree, b"/volumes/home/large").unwrap();
    assert!(matches!(sketch.open_file(&file), Err(Error::MissingBlob { .. })));
}

/// A file that is touched, restored or written over with the same is cut as before, also when it looks as if it changed
/// in place, and one that did change in place shows.
#[test]
fn the_same_content_shows_as_the_same_however_a_file_was_cut() {
    let dir = scratch();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    let (plain, paged) = (source.join("plain"), source.join("paged"));
    fs::write(&plain, corpus::noise(2 << 20, 1)).unwrap();
    fs::write(&paged, corpus::noise(2 << 20, 2)).unwrap();
    let (_, repo) = memory();
    let parents = vec![Parent::Snapshot(archive(&repo, &source).snapshot.unwrap())];
    // Changed in place: from now on it is stored in pages.
    fs::File::options().write(true).open(&paged).unwrap().write_all_at(b"page", 1 << 20).unwrap();
    let again = ArchiveRequest { parents, ..request(&source) };
    let snapshot = repo.archive(&again, &Progress::default()).unwrap();
    let of =
        |tree, repo: &Repository| ["plain", "paged"].map(|name| content(repo, tree, &format!("/volumes/home/{name}")));
    let was = of(snapshot.tree, &repo);
    assert!(was[1].len() > 2 * was[0].len(), "the second file is not stored in pages");
    for path in [&plain, &paged] {
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1000);
        fs::File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
    }
    let (sketch, found) = look(&repo, dir.path(), &source, snapshot.snapshot.unwrap());
    assert_eq!(found.read_bytes, 4 << 20, "both had to be read");
    assert_eq!(of(found.tree, &sketch), was);
    fs::File::options().write(true).open(&plain).unwrap().write_all_at(b"other", 1 << 20).unwrap();
    let (sketch, found) = look(&repo, dir.path(), &source, snapshot.snapshot.unwrap());
    let is = of(found.tree, &sketch);
    assert!(is[0] != was[0] && is[1] == was[1]);
}

#[test]
fn a_sketch_waits_for_no_lock_and_a_cancelled_one_ends() {
    let dir = scratch();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("a"), b"1").unwrap();
    let (backend, repo) = memory();
    let unneeded = archive(&repo, &source).snapshot.unwrap();
    fs::write(source.join("a"), b"2").unwrap();
    let first = archive(&repo, &source).snapshot.unwrap();
    repo.forget(&[unneeded]).unwrap();
    // Somebody prunes, and has the repository for himself when the index is written anew.
    let looks = Arc::new(AtomicUsize::new(0));
    let pruned = faulty::HookedBackend::new(Arc::new(backend), {
        let (repo, dir, source, looks) = (repo.clone(), dir.path().to_owned(), source.clone(), Arc::clone(&looks));
        move |kind| {
            if kind == FileKind::Index {
                assert!(matches!(repo.archive(&request(&source), &Progress::default()), Err(Error::Locked { .. })));
                look(&repo, &dir, &source, first);
                looks.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    let now = "2026-01-02T03:04:05Z".parse().unwrap();
    let prune = PruneRequest { mode: Mode::Execute, grace: SignedDuration::ZERO, now, rewrite_at_most: u64::MAX };
    Repository::open(pruned, &password()).unwrap().prune_with(&prune, &Progress::default()).unwrap();
    assert!(looks.load(Ordering::SeqCst) > 0, "nobody looked meanwhile");
    let progress = Progress::default();
    progress.cancel();
    let request = ArchiveRequest { pass: Pass::Live, ..request(&source) };
    let cancelled = repo.sketch(dir.path(), u64::MAX).unwrap().archive(&request, &progress);
    assert!(matches!(cancelled, Err(Error::Cancelled)), "{cancelled:?}");
}

#[test]
fn a_sketch_that_is_full_says_so_and_changes_nothing() {
    let dir = scratch();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    for n in 0..2000 {
        fs::write(source.join(n.to_string()), b"1").unwrap();
    }
    let (backend, repo) = memory();
    let request = ArchiveRequest { pass: Pass::Live, ..request(&source) };
    let before = stored(&backend);
    let full = repo.sketch(dir.path(), 1_000).unwrap().archive(&request, &Progress::default());
    let Err(Error::Backend(error)) = full else { panic!("{full:?}") };
    assert_eq!(error.source.kind(), std::io::ErrorKind::StorageFull);
    assert_eq!(stored(&backend), before);
    repo.sketch(dir.path(), 1 << 20).unwrap().archive(&request, &Progress::default()).unwrap();
}
