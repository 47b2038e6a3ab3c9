//! Pruning in two phases: marked first, deleted after a grace time, and only what is still not needed.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::support::faulty::{Fault, FaultyBackend};
use crate::support::*;
use jiff::{SignedDuration, Timestamp};
use perennial_core::progress::Progress;
use perennial_snapshots::*;

const GRACE: SignedDuration = SignedDuration::from_hours(24);

fn hour(n: i64) -> Timestamp {
    "2026-01-01T00:00:00Z".parse::<Timestamp>().unwrap() + SignedDuration::from_hours(n)
}

fn gently(now: Timestamp) -> PruneRequest {
    PruneRequest { mode: Mode::Execute, grace: GRACE, now, rewrite_at_most: u64::MAX }
}

fn prune(repo: &Repository, now: Timestamp) -> PruneReport {
    repo.prune_with(&gently(now), &Progress::default()).unwrap()
}

fn tree(path: &Path) {
    fs::create_dir_all(path).unwrap();
    fs::write(path.join("same"), corpus::noise(400_000, 1)).unwrap();
    fs::write(path.join("changing"), corpus::noise(700_000, 2)).unwrap();
}

fn packs(backend: &MemoryBackend) -> usize {
    backend.list(FileKind::Pack).unwrap().len()
}

fn clear_locks(backend: &MemoryBackend) {
    for lock in backend.list(FileKind::Lock).unwrap() {
        backend.remove(FileKind::Lock, lock.id).unwrap();
    }
}

fn assert_clean(repo: &Repository) -> CheckReport {
    let report = repo.check(Depth::Data, &Progress::default()).unwrap();
    assert!(report.problems.is_empty(), "{:?}", report.problems);
    report
}

/// A repository in which one of two snapshots was forgotten, with that one's file as it was.
fn forgotten_one(source: &Path) -> (MemoryBackend, Repository, SnapshotFileId, (SnapshotFileId, Vec<u8>)) {
    let (backend, repo) = memory();
    tree(source);
    let old = archive(&repo, source).snapshot.unwrap();
    fs::write(source.join("changing"), corpus::noise(700_000, 7)).unwrap();
    let kept = archive(&repo, source).snapshot.unwrap();
    let file = backend.read(FileKind::Snapshot, old.0).unwrap();
    repo.forget(&[old]).unwrap();
    (backend, repo, kept, (old, file))
}

#[test]
fn what_nothing_needs_is_marked_and_goes_after_the_grace_time() {
    let dir = scratch();
    let (backend, repo, kept, _) = forgotten_one(&dir.path().join("source"));
    let before = packs(&backend);
    let dry = repo.prune_with(&PruneRequest { mode: Mode::DryRun, ..gently(hour(0)) }, &Progress::default()).unwrap();
    let marked = prune(&repo, hour(0));
    assert_eq!(dry.doomed.len(), marked.doomed.len());
    assert!(!marked.doomed.is_empty() && marked.expired.is_empty() && marked.freed_bytes == 0, "{marked:?}");
    assert!(packs(&backend) >= before, "nothing is deleted yet");
    let check = assert_clean(&repo);
    assert_eq!((check.packs_waiting, check.packs_not_indexed), (marked.waiting, 0));
    let waiting = prune(&repo, hour(23));
    assert_eq!((waiting.doomed.len(), waiting.expired.len(), waiting.indexes_replaced), (0, 0, 0), "{waiting:?}");
    let done = prune(&repo, hour(24));
    assert_eq!((done.expired.len() as u64, done.waiting), (marked.waiting, 0));
    assert!(done.freed_bytes > 600_000, "{done:?}");
    let check = assert_clean(&repo);
    assert_eq!((check.packs_waiting, check.packs_not_indexed, check.packs as usize), (0, 0, packs(&backend)));
    verify_all(&repo, kept);
    let rest = prune(&repo, hour(48));
    assert_eq!((rest.doomed.len(), rest.indexes_replaced), (0, 0), "{rest:?}");
}

#[test]
fn p32_a_marked_pack_that_is_needed_after_all_comes_back() {
    let dir = scratch();
    let (backend, repo, kept, (old, file)) = forgotten_one(&dir.path().join("source"));
    prune(&repo, hour(0));
    // An upload that held no lock any more, or a store that listed a snapshot late.
    backend.write(FileKind::Snapshot, old.0, &file).unwrap();
    let dry = repo.prune_with(&PruneRequest { mode: Mode::DryRun, ..gently(hour(99)) }, &Progress::default());
    assert!(matches!(dry, Err(Error::MissingBlob { .. })), "{dry:?}");
    let report = prune(&repo, hour(99));
    assert!(report.recovered > 0 && report.expired.is_empty(), "{report:?}");
    assert_clean(&repo);
    verify_all(&repo, old);
    verify_all(&repo, kept);
}

#[test]
fn an_upload_after_the_mark_does_not_build_on_what_is_marked() {
    let dir = scratch();
    let source = dir.path().join("source");
    let (backend, repo, _, _) = forgotten_one(&source);
    // Another server, which opened the repository before.
    let other = Repository::open(Arc::new(backend), &password()).unwrap();
    prune(&repo, hour(0));
    fs::write(source.join("changing"), corpus::noise(700_000, 2)).unwrap();
    let again = archive(&other, &source).snapshot.unwrap();
    assert_eq!(prune(&repo, hour(24)).recovered, 0);
    assert_clean(&repo);
    verify_all(&repo, again);
}

#[test]
fn a_crash_at_any_step_of_either_phase_loses_nothing() {
    let dir = scratch();
    let (backend, repo, kept, (old, file)) = forgotten_one(&dir.path().join("source"));
    let fresh = backend.snapshot();
    prune(&repo, hour(0));
    let marked = backend.snapshot();
    let needed_again = backend.snapshot();
    needed_again.write(FileKind::Snapshot, old.0, &file).unwrap();
    for (begin, now, also) in [(fresh, hour(0), None), (marked, hour(24), None), (needed_again, hour(24), Some(old))] {
        for fault in [Fault::Error, Fault::ErrorAfter] {
            for k in 0.. {
                let state = begin.snapshot();
                let faulty = FaultyBackend::new(Arc::new(state.clone()), fault, true);
                let dying = Repository::open(faulty.clone(), &password()).unwrap();
                faulty.bad_change.store(k, Ordering::SeqCst);
                let result = dying.prune_with(&gently(now), &Progress::default());
                let died = faulty.changes.load(Ordering::SeqCst) as i64 > k;
                drop(dying);
                clear_locks(&state);
                let repo = Repository::open(Arc::new(state.clone()), &password()).unwrap();
                verify_all(&repo, kept);
                for day in 1..4 {
                    prune(&repo, now + GRACE * day);
                }
                let report = assert_clean(&repo);
                assert_eq!((report.packs_waiting, report.packs_not_indexed), (0, 0), "{fault:?} at {k}");
                verify_all(&repo, kept);
                if let Some(snapshot) = also {
                    verify_all(&repo, snapshot);
                }
                if !died {
                    result.unwrap();
                    assert!(k > 3, "only {k} changes");
                    break;
                }
            }
        }
    }
}

#[test]
fn a_prune_takes_only_so_much_apart_and_the_next_goes_on() {
    let dir = scratch();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    let (backend, repo) = memory();
    // Packs of which one half goes and the other stays.
    let mut kept = Vec::new();
    for n in 0..4 {
        fs::write(source.join("a"), corpus::noise(900_000, 2 * n)).unwrap();
        fs::write(source.join("b"), corpus::noise(900_000, 2 * n + 1)).unwrap();
        let both = archive(&repo, &source).snapshot.unwrap();
        fs::remove_file(source.join("a")).unwrap();
        kept.push(archive(&repo, &source).snapshot.unwrap());
        repo.forget(&[both]).unwrap();
    }
    let little = |now| PruneRequest { rewrite_at_most: 3 << 20, ..gently(now) };
    let mut rounds = 0;
    loop {
        let report = repo.prune_with(&little(hour(rounds)), &Progress::default()).unwrap();
        let moved: u64 = report.doomed.iter().filter(|p| p.moved > 0).map(|p| p.size).sum();
        assert!(moved <= 3 << 20, "{report:?}");
        rounds += 1;
        if report.postponed == 0 {
            break;
        }
    }
    assert!(rounds > 1, "one round did everything");
    prune(&repo, hour(100));
    assert_clean(&repo);
    for snapshot in kept {
        verify_all(&repo, snapshot);
    }
    let bytes: u64 = backend.list(FileKind::Pack).unwrap().iter().map(|p| p.size).sum();
    assert!(bytes < 5 * 900_000, "{bytes} bytes are left");
}

#[test]
fn a_mark_of_a_wrong_clock_waits_anew_instead_of_for_ever() {
    let dir = scratch();
    let (_, repo, _, _) = forgotten_one(&dir.path().join("source"));
    let marked = prune(&repo, hour(100_000)).waiting;
    assert_eq!(prune(&repo, hour(0)).expired.len(), 0);
    assert_eq!(prune(&repo, hour(23)).expired.len(), 0);
    assert_eq!(prune(&repo, hour(24)).expired.len() as u64, marked);
}

#[test]
fn restic_lives_with_marks_and_finishes_the_work() {
    let dir = scratch();
    let source = dir.path().join("source");
    tree(&source);
    let (path, repo) = local(dir.path());
    let old = archive(&repo, &source).snapshot.unwrap();
    fs::write(source.join("changing"), corpus::noise(700_000, 7)).unwrap();
    let kept = archive(&repo, &source).snapshot.unwrap();
    repo.forget(&[old]).unwrap();
    assert!(prune(&repo, hour(0)).waiting > 0);
    let text = restic(&path, &["check", "--read-data"]);
    assert!(text.contains("no errors were found"), "{text}");
    restic(&path, &["prune"]);
    assert_eq!(assert_clean(&repo).packs_waiting, 0);
    verify_all(&repo, kept);
    // And ours after theirs.
    assert_eq!(prune(&repo, hour(99)).expired.len(), 0);
    restic(&path, &["check", "--read-data"]);
}
