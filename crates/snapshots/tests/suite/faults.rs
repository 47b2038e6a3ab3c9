//! Stores that die, fail, lie and rot; and housekeeping that must not make it worse.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::support::faulty::{Fault, FaultyBackend};
use crate::support::*;
use perennial_core::progress::Progress;
use perennial_snapshots::*;

fn small_tree(path: &Path) {
    fs::create_dir_all(path.join("sub")).unwrap();
    fs::write(path.join("a"), corpus::noise(3000, 1)).unwrap();
    fs::write(path.join("sub/b"), corpus::noise(700_000, 2)).unwrap();
    fs::write(path.join("sub/c"), "text ".repeat(10_000)).unwrap();
}

fn open(backend: Arc<dyn Backend>) -> Repository {
    Repository::open(backend, &password()).unwrap()
}

fn assert_clean(repo: &Repository) {
    let report = repo.check(Depth::Data, &Progress::default()).unwrap();
    assert!(report.problems.is_empty(), "{:?}", report.problems);
}

/// A lock left by a process that died: its host is this one and its id is ours, so it would count as alive.
fn clear_locks(backend: &MemoryBackend) {
    for lock in backend.list(FileKind::Lock).unwrap() {
        backend.remove(FileKind::Lock, lock.id).unwrap();
    }
}

#[test]
fn a_crash_at_any_write_loses_nothing() {
    let dir = scratch();
    let source = dir.path().join("source");
    small_tree(&source);
    let (backend, repo) = memory();
    let first = archive(&repo, &source).snapshot.unwrap();
    fs::write(source.join("sub/new"), corpus::noise(2 << 20, 3)).unwrap();
    let mut k = 0;
    loop {
        let state = backend.snapshot();
        let faulty = FaultyBackend::new(Arc::new(state.clone()), Fault::Error, true);
        let dying = open(faulty.clone());
        faulty.bad_change.store(k, Ordering::SeqCst);
        let result = dying.archive(&request(&source), &Progress::default());
        let died = faulty.changes.load(Ordering::SeqCst) as i64 > k;
        drop(dying);
        clear_locks(&state);
        let repo = open(Arc::new(state.clone()));
        assert_clean(&repo);
        verify_all(&repo, first);
        let count = repo.find(&[]).unwrap().len();
        assert_eq!(count, if result.is_ok() { 2 } else { count.min(2) });
        let again = archive(&repo, &source);
        verify_all(&repo, again.snapshot.unwrap());
        if !died {
            assert!(k > 4, "only {k} writes");
            break;
        }
        k += 1;
    }
}

#[test]
fn a_crash_at_any_step_of_a_prune_loses_nothing() {
    let dir = scratch();
    let source = dir.path().join("source");
    small_tree(&source);
    let (backend, repo) = memory();
    let old = archive(&repo, &source).snapshot.unwrap();
    fs::write(source.join("sub/b"), corpus::noise(700_000, 7)).unwrap();
    let kept = archive(&repo, &source).snapshot.unwrap();
    repo.forget(&[old]).unwrap();
    let mut k = 0;
    loop {
        let state = backend.snapshot();
        let faulty = FaultyBackend::new(Arc::new(state.clone()), Fault::ErrorAfter, true);
        let dying = open(faulty.clone());
        faulty.bad_change.store(k, Ordering::SeqCst);
        let result = dying.prune(Mode::Execute, &Progress::default());
        let died = faulty.changes.load(Ordering::SeqCst) as i64 > k;
        drop(dying);
        clear_locks(&state);
        let repo = open(Arc::new(state.clone()));
        assert_clean(&repo);
        verify_all(&repo, kept);
        repo.prune(Mode::Execute, &Progress::default()).unwrap();
        assert_clean(&repo);
        verify_all(&repo, kept);
        let rest = repo.prune(Mode::DryRun, &Progress::default()).unwrap();
        assert_eq!((rest.doomed.len(), rest.indexes_replaced), (0, 0), "{rest:?}");
        if !died {
            result.unwrap();
            assert!(k > 4, "only {k} changes");
            break;
        }
        k += 1;
    }
}

#[test]
fn no_fault_of_a_store_leads_to_a_verified_snapshot_that_is_not_good() {
    let dir = scratch();
    let source = dir.path().join("source");
    small_tree(&source);
    let before = compare::snapshot(&source);
    for fault in [Fault::Error, Fault::ErrorAfter, Fault::Lie, Fault::Truncate, Fault::Corrupt] {
        for k in 0.. {
            let state = MemoryBackend::new();
            Repository::init(Arc::new(state.clone()), &password(), KeyCost::Test).unwrap();
            let faulty = FaultyBackend::new(Arc::new(state.clone()), fault, false);
            let repo = open(faulty.clone());
            faulty.bad_change.store(k, Ordering::SeqCst);
            let result = repo.archive(&request(&source), &Progress::default()).and_then(|archived| {
                let snapshot = archived.snapshot.unwrap();
                let packs = archived.written_packs;
                repo.verify(snapshot, &Verify::Written { packs }, &Progress::default()).map(|_| snapshot)
            });
            if let Ok(snapshot) = result {
                clear_locks(&state);
                let fresh = open(Arc::new(state.clone()));
                let target = dir.path().join(format!("{fault:?}{k}"));
                restore(&fresh, snapshot, &target);
                compare::assert_same(&before, &compare::snapshot(&target));
            }
            if faulty.changes.load(Ordering::SeqCst) as i64 <= k {
                assert!(k > 4);
                break;
            }
        }
    }
}

#[test]
fn wrong_reads_never_pass_a_verification_or_a_restore() {
    let dir = scratch();
    let source = dir.path().join("source");
    small_tree(&source);
    let before = compare::snapshot(&source);
    let (backend, repo) = memory();
    let snapshot = archive(&repo, &source).snapshot.unwrap();
    for fault in [Fault::Error, Fault::Truncate, Fault::Corrupt, Fault::Lie] {
        for k in 0.. {
            let faulty = FaultyBackend::new(Arc::new(backend.snapshot()), fault, false);
            let repo = open(faulty.clone());
            let start = faulty.reads.load(Ordering::SeqCst) as i64;
            faulty.bad_read.store(start + k, Ordering::SeqCst);
            let verified = repo.verify(snapshot, &Verify::Everything, &Progress::default());
            let hit = faulty.reads.load(Ordering::SeqCst) as i64 > start + k;
            // A lock file read wrongly is the one thing that need not matter.
            assert!(!hit || verified.is_err(), "{fault:?} at read {k}: {verified:?}");
            let start = faulty.reads.load(Ordering::SeqCst) as i64;
            faulty.bad_read.store(start + k, Ordering::SeqCst);
            let target = dir.path().join(format!("{fault:?}{k}"));
            if repo.restore(snapshot, &restore_request(&target), &Progress::default()).is_ok() {
                compare::assert_same(&before, &compare::snapshot(&target));
            }
            if !hit {
                assert!(k > 4);
                break;
            }
        }
    }
}

#[test]
fn a_flipped_bit_anywhere_is_found_and_its_file_is_named() {
    let dir = scratch();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("a"), corpus::noise(300, 1)).unwrap();
    fs::write(source.join("b"), "text ".repeat(100)).unwrap();
    let (backend, repo) = memory();
    let snapshot = archive(&repo, &source).snapshot.unwrap();
    for kind in FileKind::ALL {
        for info in backend.list(kind).unwrap() {
            let data = backend.read(kind, info.id).unwrap();
            for byte in (0..data.len()).step_by(data.len() / 25 + 1).chain([data.len() - 1]) {
                let rotten = backend.snapshot();
                let mut bad = data.clone();
                bad[byte] ^= 1 << (byte % 8);
                rotten.remove(kind, info.id).unwrap();
                rotten.write(kind, info.id, &bad).unwrap();
                let names =
                    |error: &Error| matches!(error, Error::Damaged { kind: k, id, .. } if (*k, *id) == (kind, info.id));
                match Repository::open(Arc::new(rotten), &password()) {
                    Err(e) => assert!(matches!(kind, FileKind::Config | FileKind::Key) && names(&e), "{kind}: {e}"),
                    Ok(repo) => {
                        let report = repo.check(Depth::Data, &Progress::default()).unwrap();
                        let named = report.problems.iter().any(|problem| names(&problem.error));
                        assert!(named, "{kind} {} at byte {byte}: {:?}", info.id, report.problems);
                        assert!(repo.verify(snapshot, &Verify::Everything, &Progress::default()).is_err());
                    }
                }
            }
        }
    }
}

#[test]
fn p32_later_snapshots_heal_what_was_lost() {
    for (n, largest) in [true, false, true, false].into_iter().enumerate() {
        let dir = scratch();
        let source = dir.path().join("source");
        small_tree(&source);
        let (backend, repo) = memory();
        let first = archive(&repo, &source);
        let snapshot = first.snapshot.unwrap();
        // A pack (the largest holds data, the smallest trees) vanishes or is cut short while the repository is open.
        let mut packs = backend.list(FileKind::Pack).unwrap();
        packs.sort_by_key(|p| p.size);
        let victim = if largest { packs.last() } else { packs.first() }.unwrap().id;
        if n < 2 {
            backend.remove(FileKind::Pack, victim).unwrap();
        } else {
            let short = backend.read(FileKind::Pack, victim).unwrap()[..100].to_vec();
            backend.write(FileKind::Pack, victim, &short).unwrap();
        }
        let damage = repo.verify(snapshot, &Verify::Everything, &Progress::default()).unwrap_err();
        assert!(matches!(damage, Error::MissingBlob { .. }), "{damage}");
        assert!(!repo.check(Depth::Structure, &Progress::default()).unwrap().problems.is_empty());
        let refused = repo.prune(Mode::Execute, &Progress::default());
        assert!(refused.is_err(), "a damaged repository is no reason to delete more");
        let parents = vec![Parent::Snapshot(snapshot), Parent::Tree(first.tree)];
        let second = repo.archive(&ArchiveRequest { parents, ..request(&source) }, &Progress::default()).unwrap();
        let second = second.snapshot.unwrap();
        verify_all(&repo, second);
        if largest {
            verify_all(&repo, snapshot);
        } else {
            // The old trees carried other change times, so they are lost for good; nothing else is.
            repo.forget(&[snapshot]).unwrap();
        }
        // A prune puts the index right.
        repo.prune(Mode::Execute, &Progress::default()).unwrap();
        assert_clean(&repo);
        restore(&repo, second, &dir.path().join("target"));
        compare::assert_same(&compare::snapshot(&source), &compare::snapshot(&dir.path().join("target")));
    }
}

#[test]
fn p32_what_somebody_elses_prune_removed_is_uploaded_again() {
    let dir = scratch();
    let source = dir.path().join("source");
    small_tree(&source);
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let (path, repo) = local(dir.path());
    archive(&repo, &empty);
    let gone = archive(&repo, &source);
    restic(&path, &["forget", "--prune", &gone.snapshot.unwrap().to_string()]);
    // Our repository was open all the time and still has the blobs in its index.
    let parents = vec![Parent::Tree(gone.tree)];
    let done = repo.archive(&ArchiveRequest { parents, ..request(&source) }, &Progress::default()).unwrap();
    verify_all(&repo, done.snapshot.unwrap());
    restic(&path, &["check", "--read-data"]);
}

#[test]
fn restic_agrees_with_our_prune() {
    let dir = scratch();
    let source = dir.path().join("source");
    small_tree(&source);
    let (path, repo) = local(dir.path());
    let mut last = None;
    for round in 0..12 {
        fs::write(source.join("round"), corpus::noise(50_000, round)).unwrap();
        let next = archive(&repo, &source).snapshot.unwrap();
        if let Some(old) = last.replace(next)
            && round % 2 == 0
        {
            repo.forget(&[old]).unwrap();
        }
    }
    let plan = repo.prune(Mode::DryRun, &Progress::default()).unwrap();
    let report = repo.prune(Mode::Execute, &Progress::default()).unwrap();
    assert_eq!(plan.doomed.len(), report.doomed.len());
    assert!(report.doomed.iter().any(|p| p.reason == PruneReason::Unused), "{report:?}");
    assert!(report.doomed.iter().any(|p| p.reason == PruneReason::Small), "{report:?}");
    assert_clean(&repo);
    for snapshot in repo.find(&[]).unwrap() {
        verify_all(&repo, snapshot.id);
    }
    let text = restic(&path, &["check", "--read-data"]);
    assert!(text.contains("no errors were found"), "{text}");
    let text = restic(&path, &["check", "--read-data"]);
    assert!(!text.contains("not referenced"), "{text}");
}

#[test]
fn opening_tells_wrong_password_absence_and_damage_apart() {
    let backend = MemoryBackend::new();
    assert!(!Repository::exists(&backend).unwrap());
    assert!(matches!(Repository::open(Arc::new(backend.clone()), &password()), Err(Error::NoRepository)));
    Repository::init(Arc::new(backend.clone()), &password(), KeyCost::Test).unwrap();
    assert!(Repository::exists(&backend).unwrap());
    let wrong = Repository::open(Arc::new(backend.clone()), &Password::new("wrong"));
    assert!(matches!(wrong, Err(Error::WrongPassword)));
    let again = Repository::init(Arc::new(backend.clone()), &password(), KeyCost::Test);
    assert!(matches!(again, Err(Error::AlreadyInitialized)));
    backend.remove(FileKind::Config, FileKind::CONFIG_ID).unwrap();
    assert!(!Repository::exists(&backend).unwrap(), "a key alone is what an interrupted init leaves");
    backend.write(FileKind::Index, Id::of(b"index"), b"index").unwrap();
    assert!(Repository::exists(&backend).is_err(), "an index without a config is damage");
}

#[test]
fn of_two_that_make_a_repository_at_the_same_time_one_does_and_the_other_says_so() {
    let dir = scratch();
    for round in 0..4 {
        let path = dir.path().join(format!("repo{round}"));
        let init = || Repository::init(Arc::new(LocalBackend::new(&path)), &password(), KeyCost::Test);
        let made: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(init)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(made.iter().filter(|made| made.is_ok()).count(), 1);
        assert!(made.iter().flat_map(|made| made.as_ref().err()).all(|e| matches!(e, Error::AlreadyInitialized)));
        Repository::open(Arc::new(LocalBackend::new(&path)), &password()).unwrap();
        let text = restic(&path, &["check"]);
        assert!(text.contains("no errors were found"), "{text}");
    }
}

#[test]
fn a_key_of_an_interrupted_init_keeps_nobody_out() {
    let backend = MemoryBackend::new();
    Repository::init(Arc::new(backend.clone()), &password(), KeyCost::Test).unwrap();
    for _ in 0..8 {
        let stray = MemoryBackend::new();
        Repository::init(Arc::new(stray.clone()), &password(), KeyCost::Test).unwrap();
        for key in stray.list(FileKind::Key).unwrap() {
            backend.write(FileKind::Key, key.id, &stray.read(FileKind::Key, key.id).unwrap()).unwrap();
        }
    }
    let repo = Repository::open(Arc::new(backend.clone()), &password()).unwrap();
    repo.add_password(&Password::new("another"), KeyCost::Test).unwrap();
    Repository::open(Arc::new(backend.clone()), &Password::new("another")).unwrap();
    // A config that no key opens is what is wrong, and no password.
    backend.remove(FileKind::Config, FileKind::CONFIG_ID).unwrap();
    backend.write(FileKind::Config, FileKind::CONFIG_ID, b"nonsense").unwrap();
    let damaged = Repository::open(Arc::new(backend), &password());
    assert!(matches!(&damaged, Err(Error::Damaged { .. })), "{:?}", damaged.err());
}

#[test]
fn an_unmounted_disk_is_unknown_and_not_absent() {
    let dir = scratch();
    let path = dir.path().join("repo");
    let backend = LocalBackend::new(&path);
    let repo = Repository::init(Arc::new(backend.clone()), &password(), KeyCost::Interactive).unwrap();
    let id = Id::of(b"x");
    assert_eq!(backend.size(FileKind::Pack, id).unwrap(), None);
    backend.remove(FileKind::Pack, id).unwrap();
    assert!(backend.read(FileKind::Pack, id).unwrap_err().is_not_found());
    fs::rename(&path, dir.path().join("elsewhere")).unwrap();
    fs::create_dir(&path).unwrap();
    for kind in [FileKind::Pack, FileKind::Snapshot, FileKind::Index] {
        assert!(backend.list(kind).is_err());
        assert!(backend.size(kind, id).is_err());
        assert!(!backend.read(kind, id).unwrap_err().is_not_found());
        assert!(backend.write(kind, id, b"x").unwrap_err().is_retryable());
        assert!(backend.remove(kind, id).is_err());
    }
    assert!(repo.find(&[]).is_err());
    assert_eq!(fs::read_dir(&path).unwrap().count(), 0, "nothing is made where the disk should be");
}

#[test]
fn archives_and_prunes_at_the_same_time_leave_a_clean_repository() {
    let dir = scratch();
    let (backend, repo) = memory();
    let mut threads = Vec::new();
    for n in 0..3_u64 {
        let (repo, source) = (repo.clone(), dir.path().join(format!("source{n}")));
        small_tree(&source);
        threads.push(std::thread::spawn(move || {
            let mut made = Vec::new();
            let mut round = 0;
            while made.len() < 8 {
                round += 1;
                fs::write(source.join("changing"), corpus::noise(40_000, n * 1000 + round)).unwrap();
                match repo.archive(&request(&source), &Progress::default()) {
                    Ok(archived) => made.push(archived.snapshot.unwrap()),
                    Err(Error::Locked { .. }) => std::thread::yield_now(),
                    Err(e) => panic!("{e}"),
                }
            }
            made
        }));
    }
    // Somebody with another view of the same repository cleans up all the time.
    let other = open(Arc::new(backend));
    let mut pruned = 0;
    while threads.iter().any(|t| !t.is_finished()) {
        let found = match other.find(&[]) {
            Ok(found) => found,
            Err(e) => panic!("{e}"),
        };
        let old: Vec<_> = found.iter().take(found.len().saturating_sub(6)).map(|s| s.id).collect();
        let cleaned = other.forget(&old).and_then(|()| other.prune(Mode::Execute, &Progress::default()));
        match cleaned {
            Ok(_) => pruned += 1,
            Err(Error::Locked { .. }) => std::thread::yield_now(),
            Err(e) => panic!("{e}"),
        }
    }
    for thread in threads {
        thread.join().unwrap();
    }
    other.prune(Mode::Execute, &Progress::default()).unwrap();
    assert_clean(&repo);
    let left = repo.find(&[]).unwrap();
    assert!(left.len() >= 6, "{} left after {pruned} prunes", left.len());
    for snapshot in left {
        verify_all(&repo, snapshot.id);
    }
}
