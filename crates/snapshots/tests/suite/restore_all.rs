//! Several directories of a snapshot are restored in one call, all of them or none.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::*;
use perennial_core::progress::Progress;
use perennial_snapshots::*;

const NAMES: [&str; 3] = ["home", "srv", "var"];

/// A snapshot of three volumes, one of which changed the image below it.
fn volumes(repo: &Repository, dir: &Path) -> (SnapshotFileId, [PathBuf; 3]) {
    let sources = NAMES.map(|name| dir.join("source").join(name));
    for (n, source) in sources.iter().enumerate() {
        fs::create_dir_all(source.join("deep/er")).unwrap();
        fs::write(source.join("deep/er/own"), corpus::noise(100_000 * (n + 1), n as u64)).unwrap();
        fs::write(source.join("same in all"), corpus::noise(50_000, 9)).unwrap();
        fs::hard_link(source.join("same in all"), source.join("deep/again")).unwrap();
    }
    let roots =
        NAMES.iter().zip(&sources).map(|(name, source)| root(&format!("/volumes/{name}"), source, Layout::Plain));
    let request = ArchiveRequest { roots: roots.collect(), ..request(dir) };
    let snapshot = repo.archive(&request, &Progress::default()).unwrap().snapshot.unwrap();
    (snapshot, sources)
}

fn requests(dir: &Path) -> [RestoreRequest; 3] {
    let target = |name: &str| dir.join(format!("target-{name}"));
    NAMES.map(|name| RestoreRequest { subtree: format!("/volumes/{name}"), ..restore_request(&target(name)) })
}

#[test]
fn several_directories_come_back_as_each_would_alone() {
    let dir = scratch();
    let (backend, repo) = memory();
    let (snapshot, sources) = volumes(&repo, dir.path());
    let locks = Arc::new(AtomicUsize::new(0));
    let counted = faulty::HookedBackend::new(Arc::new(backend), {
        let locks = Arc::clone(&locks);
        move |kind| {
            locks.fetch_add(usize::from(kind == FileKind::Lock), Ordering::SeqCst);
        }
    });
    let opened = Repository::open(counted, &password()).unwrap();
    let progress = Progress::default();
    let wanted = requests(dir.path());
    let restored = opened.restore_all(snapshot, &wanted, &progress).unwrap();
    assert_eq!(locks.load(Ordering::SeqCst), 1, "each of them took a lock of its own");
    for (n, (request, source)) in wanted.iter().zip(&sources).enumerate() {
        compare::assert_same(&compare::snapshot(source), &compare::snapshot(&request.target));
        let alone = RestoreRequest { target: dir.path().join("alone").join(n.to_string()), ..request.clone() };
        fs::create_dir_all(alone.target.parent().unwrap()).unwrap();
        assert_eq!(restored[n], repo.restore(snapshot, &alone, &Progress::default()).unwrap());
    }
    let bytes: u64 = restored.iter().map(|restored| restored.counts.bytes).sum();
    assert_eq!(progress.read().bytes_total, bytes, "what is to be done is all of them");
    assert!(opened.restore_all(snapshot, &[], &progress).unwrap().is_empty());
}

/// Nobody may count on a part of them, so a part is not begun.
#[test]
fn nothing_is_touched_when_one_of_several_cannot_be_restored() {
    let dir = scratch();
    let (_, repo) = memory();
    let (snapshot, _) = volumes(&repo, dir.path());
    let [first, second, third] = requests(dir.path());
    let missing = RestoreRequest { subtree: "/volumes/none".into(), ..third.clone() };
    let failed = repo.restore_all(snapshot, &[first.clone(), second.clone(), missing], &Progress::default());
    assert!(matches!(failed, Err(Error::NotFound { .. })), "{failed:?}");
    assert!(!first.target.exists() && !second.target.exists());

    fs::create_dir(&third.target).unwrap();
    fs::write(third.target.join("somebody's"), b"1").unwrap();
    let failed = repo.restore_all(snapshot, &[first.clone(), second, third], &Progress::default());
    assert!(matches!(failed, Err(Error::TargetNotEmpty { .. })), "{failed:?}");
    assert_eq!(fs::read_dir(&first.target).unwrap().count(), 0);
}
