//! Copies to another repository: complete, only what is missing, and never counted before they were proven (S1.46).
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::support::faulty::{Fault, FaultyBackend, HookedBackend};
use crate::support::*;
use perennial_core::progress::Progress;
use perennial_snapshots::*;

fn copy(to: &Repository, from: &Repository) -> Copied {
    let copied = to.copy_from(from, &[], &Progress::default()).unwrap();
    assert!(copied.failed.is_empty(), "{copied:?}");
    copied
}

fn open(backend: Arc<dyn Backend>) -> Repository {
    Repository::open(backend, &password()).unwrap()
}

fn assert_clean(repo: &Repository) {
    let report = repo.check(Depth::Data, &Progress::default()).unwrap();
    assert!(report.problems.is_empty(), "{:?}", report.problems);
}

fn clear_locks(backend: &MemoryBackend) {
    for lock in backend.list(FileKind::Lock).unwrap() {
        backend.remove(FileKind::Lock, lock.id).unwrap();
    }
}

fn small_tree(path: &Path) {
    fs::create_dir_all(path.join("sub")).unwrap();
    fs::write(path.join("a"), corpus::noise(3000, 1)).unwrap();
    fs::write(path.join("sub/b"), corpus::noise(700_000, 2)).unwrap();
    fs::write(path.join("sub/c"), "text ".repeat(10_000)).unwrap();
}

#[test]
fn a_copy_restores_the_same_and_says_what_it_is_a_copy_of() {
    let dir = scratch();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    corpus::make(&source);
    let (_, from) = memory();
    let first = archive(&from, &source).snapshot.unwrap();
    fs::write(source.join("more"), "more").unwrap();
    let parents = vec![Parent::Snapshot(first)];
    let second = from.archive(&ArchiveRequest { parents, ..request(&source) }, &Progress::default()).unwrap();
    let second = second.snapshot.unwrap();
    let before = compare::snapshot(&source);

    let to = memory().1;
    assert_ne!(to.id(), from.id());
    let one = to.copy_from(&from, &[second], &Progress::default()).unwrap();
    assert_eq!((one.snapshots.len(), one.already.len()), (1, 0));
    let (original, copied) = one.snapshots[0];
    assert_eq!(original, second);
    let info = to.snapshot(copied).unwrap();
    assert_eq!((info.original, info.tree), (Some(second), from.snapshot(second).unwrap().tree));
    assert_eq!(info.tags, from.snapshot(second).unwrap().tags);
    assert_eq!(info.counts, from.snapshot(second).unwrap().counts);
    verify_all(&to, copied);
    restore(&to, copied, &dir.path().join("target"));
    compare::assert_same(&before, &compare::snapshot(&dir.path().join("target")));

    // The other one shares nearly everything.
    let rest = copy(&to, &from);
    assert_eq!((rest.snapshots.len(), &rest.already[..]), (1, &[(second, copied)][..]));
    assert!(rest.read_bytes < 100_000, "{rest:?}");
    let none = copy(&to, &from);
    assert_eq!(
        (none.snapshots.len(), none.already.len(), none.blobs, none.read_bytes, none.new_bytes),
        (0, 2, 0, 0, 0)
    );
    assert_clean(&to);

    // And back, to where everything was lost: it is still the same snapshot.
    let home = memory().1;
    let back = copy(&home, &to);
    assert_eq!(back.snapshots.len(), 2);
    assert!(home.find(&[]).unwrap().iter().any(|info| info.original == Some(second)));
    assert_eq!(copy(&home, &from).snapshots.len(), 0);
    assert!(matches!(to.copy_from(&to, &[], &Progress::default()), Err(Error::InvalidRequest(_))));
    let unknown = to.copy_from(&from, &[SnapshotFileId(Id::of(b"x"))], &Progress::default());
    assert!(matches!(unknown, Err(Error::NotFound { .. })), "{unknown:?}");
}

#[test]
fn what_is_there_is_neither_read_nor_sent_again() {
    let dir = scratch();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    for n in 0..40 {
        fs::write(source.join(format!("f{n}")), corpus::noise(200_000, n)).unwrap();
    }
    let (backend, from) = memory();
    let first = archive(&from, &source).snapshot.unwrap();
    let to = memory().1;
    let all = copy(&to, &from);
    assert!(all.read_bytes > 8_000_000, "{all:?}");
    fs::write(source.join("f7"), corpus::noise(200_000, 777)).unwrap();
    let parents = vec![Parent::Snapshot(first)];
    from.archive(&ArchiveRequest { parents, ..request(&source) }, &Progress::default()).unwrap();
    let counting = FaultyBackend::new(Arc::new(backend), Fault::Error, false);
    let from = open(counting.clone());
    let before = counting.reads.load(Ordering::SeqCst);
    let next = copy(&to, &from);
    assert_eq!(next.snapshots.len(), 1);
    assert!(next.read_bytes < 300_000 && next.new_bytes < 300_000, "{next:?}");
    assert!(counting.reads.load(Ordering::SeqCst) - before < 20, "few reads");
}

#[test]
fn a_copy_that_was_interrupted_anywhere_goes_on_with_what_had_arrived() {
    let dir = scratch();
    let source = dir.path().join("source");
    small_tree(&source);
    let (_, from) = memory();
    archive(&from, &source);
    fs::write(source.join("sub/new"), corpus::noise(300_000, 3)).unwrap();
    archive(&from, &source);
    let empty = memory().0;
    let before = compare::snapshot(&source);
    for fault in [Fault::Error, Fault::ErrorAfter] {
        for k in 0.. {
            let state = empty.snapshot();
            let faulty = FaultyBackend::new(Arc::new(state.clone()), fault, true);
            let dying = open(faulty.clone());
            faulty.bad_change.store(k, Ordering::SeqCst);
            let result = dying.copy_from(&from, &[], &Progress::default());
            let died = faulty.changes.load(Ordering::SeqCst) as i64 > k;
            drop(dying);
            clear_locks(&state);
            let to = open(Arc::new(state.clone()));
            assert_clean(&to);
            // Whatever is listed is complete.
            for info in to.find(&[]).unwrap() {
                verify_all(&to, info.id);
            }
            let packs = state.list(FileKind::Pack).unwrap().len();
            let indexed = to.check(Depth::Structure, &Progress::default()).unwrap().packs_not_indexed;
            let rest = copy(&to, &from);
            assert_eq!(rest.snapshots.len() + rest.already.len(), 2, "{fault:?} at {k}");
            if indexed == 0 && packs > 0 {
                assert!(rest.read_bytes < 1_100_000, "{fault:?} at {k}: {rest:?}");
            }
            assert_clean(&to);
            let newest = to.find(&[]).unwrap().pop().unwrap().id;
            verify_all(&to, newest);
            if !died {
                assert_eq!(result.unwrap().snapshots.len(), 2);
                assert!(k > 8, "only {k} writes");
                let target = dir.path().join(format!("{fault:?}"));
                restore(&to, newest, &target);
                assert!(before.len() >= compare::snapshot(&target).len());
                break;
            }
        }
    }
}

#[test]
fn a_copy_counts_on_nothing_that_was_not_read_back_when_an_earlier_one_died() {
    let dir = scratch();
    let source = dir.path().join("source");
    small_tree(&source);
    let (_, from) = memory();
    archive(&from, &source);
    let empty = memory().0;
    let mut died = 0;
    for (bad, dies) in (0..8).flat_map(|bad| (bad + 1..12).map(move |dies| (bad, dies))) {
        let state = empty.snapshot();
        // One change goes wrong and nobody is told; some changes later the process dies.
        let lying = FaultyBackend::new(Arc::new(state.clone()), Fault::Corrupt, false);
        let dying = FaultyBackend::new(lying.clone(), Fault::Error, true);
        let to = open(dying.clone());
        lying.bad_change.store(bad, Ordering::SeqCst);
        dying.bad_change.store(dies, Ordering::SeqCst);
        died += u64::from(to.copy_from(&from, &[], &Progress::default()).is_err());
        drop(to);
        clear_locks(&state);
        let to = open(Arc::new(state));
        // A pack that nobody could send rightly stays where it is, and no index names it.
        let copied = copy(&to, &from);
        let id = copied.snapshots.iter().chain(&copied.already).map(|(_, id)| *id).next().unwrap();
        verify_all(&to, id);
    }
    assert!(died > 20, "{died}");
}

#[test]
fn a_copy_that_lost_something_is_whole_again_after_the_next() {
    let dir = scratch();
    let source = dir.path().join("source");
    small_tree(&source);
    let (origin, from) = memory();
    archive(&from, &source);
    let (far, to) = memory();
    let id = copy(&to, &from).snapshots[0].1;
    for pack in far.list(FileKind::Pack).unwrap() {
        let hurt = far.snapshot();
        let mut bad = far.read(FileKind::Pack, pack.id).unwrap();
        bad[20] ^= 1;
        hurt.write(FileKind::Pack, pack.id, &bad).unwrap();
        let to = open(Arc::new(hurt));
        let now = "2026-01-02T12:00:00Z".parse().unwrap();
        to.repair(&RepairRequest { mode: Mode::Execute, now }, &Progress::default()).unwrap();
        assert!(to.verify(id, &Verify::Everything, &Progress::default()).is_err());
        let next = copy(&to, &from);
        assert_eq!((next.already.len(), next.healed.len(), next.snapshots.len()), (1, 1, 0), "{next:?}");
        assert!(next.blobs > 0);
        verify_all(&to, id);
        let none = copy(&to, &from);
        assert_eq!((none.already.len(), none.healed.len(), none.blobs), (1, 0, 0), "{none:?}");
    }
    // What the source lost since is no failure of a copy that is whole.
    for pack in origin.list(FileKind::Pack).unwrap() {
        origin.remove(FileKind::Pack, pack.id).unwrap();
    }
    let from = open(Arc::new(origin));
    let next = copy(&open(Arc::new(far)), &from);
    assert_eq!((next.already.len(), next.healed.len()), (1, 0), "{next:?}");
}

#[test]
fn no_fault_of_either_store_leads_to_a_copy_that_is_not_good() {
    let dir = scratch();
    let source = dir.path().join("source");
    small_tree(&source);
    let before = compare::snapshot(&source);
    let (origin, from) = memory();
    archive(&from, &source);
    let empty = memory().0;
    let mut good = 0;
    for fault in [Fault::Error, Fault::ErrorAfter, Fault::Lie, Fault::Truncate, Fault::Corrupt] {
        for k in 0.. {
            let state = empty.snapshot();
            let faulty = FaultyBackend::new(Arc::new(state.clone()), fault, false);
            let to = open(faulty.clone());
            faulty.bad_change.store(k, Ordering::SeqCst);
            let result = to.copy_from(&from, &[], &Progress::default());
            let hit = faulty.changes.load(Ordering::SeqCst) as i64 > k;
            drop(to);
            clear_locks(&state);
            let fresh = open(Arc::new(state));
            if let Ok(copied) = result {
                assert!(copied.failed.is_empty(), "the source is good: {copied:?}");
                good += 1;
                let target = dir.path().join(format!("to{fault:?}{k}"));
                restore(&fresh, copied.snapshots[0].1, &target);
                compare::assert_same(&before, &compare::snapshot(&target));
            }
            if !hit {
                break;
            }
        }
        for k in 0.. {
            let faulty = FaultyBackend::new(Arc::new(origin.snapshot()), fault, false);
            let lying = open(faulty.clone());
            let start = faulty.reads.load(Ordering::SeqCst) as i64;
            faulty.bad_read.store(start + k, Ordering::SeqCst);
            let state = empty.snapshot();
            let to = open(Arc::new(state.clone()));
            if let Ok(copied) = to.copy_from(&lying, &[], &Progress::default())
                && let Some((_, id)) = copied.snapshots.first()
            {
                let target = dir.path().join(format!("from{fault:?}{k}"));
                restore(&open(Arc::new(state)), *id, &target);
                compare::assert_same(&before, &compare::snapshot(&target));
            }
            if faulty.reads.load(Ordering::SeqCst) as i64 <= start + k {
                break;
            }
        }
    }
    assert!(good >= 5, "{good}");
}

#[test]
fn what_the_source_has_lost_fails_its_snapshot_and_no_other() {
    let dir = scratch();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    small_tree(&one);
    fs::create_dir(&two).unwrap();
    fs::write(two.join("other"), corpus::noise(5000, 9)).unwrap();
    let (backend, from) = memory();
    let hurt = archive(&from, &one);
    let whole = archive(&from, &two).snapshot.unwrap();
    let victim = hurt.written_packs.iter().max_by_key(|id| backend.size(FileKind::Pack, **id).unwrap()).unwrap();
    let mut bad = backend.read(FileKind::Pack, *victim).unwrap();
    bad[1000] ^= 1;
    backend.write(FileKind::Pack, *victim, &bad).unwrap();
    let to = memory().1;
    let copied = to.copy_from(&from, &[], &Progress::default()).unwrap();
    assert_eq!(copied.snapshots.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [whole]);
    assert_eq!(copied.failed.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [hurt.snapshot.unwrap()]);
    assert!(matches!(copied.failed[0].1, Error::Damaged { .. }), "{:?}", copied.failed);
    assert_clean(&to);
    assert_eq!(to.find(&[]).unwrap().len(), 1);
}

#[test]
fn both_sides_are_locked_while_something_is_copied() {
    let dir = scratch();
    let source = dir.path().join("source");
    small_tree(&source);
    let (origin, from) = memory();
    archive(&from, &source);
    let target = memory().0;
    let seen = Arc::new(AtomicU64::new(0));
    let hook = {
        let (origin, target, seen) = (origin.clone(), target.clone(), Arc::clone(&seen));
        move |kind| {
            if kind == FileKind::Pack {
                let locks = [&origin, &target].map(|side| side.list(FileKind::Lock).unwrap().len());
                assert_eq!(locks, [1, 1]);
                seen.fetch_add(1, Ordering::SeqCst);
            }
        }
    };
    let to = open(HookedBackend::new(Arc::new(target.clone()), hook));
    copy(&to, &from);
    assert!(seen.load(Ordering::SeqCst) > 0);
    for side in [&origin, &target] {
        assert_eq!(side.list(FileKind::Lock).unwrap(), []);
    }
    // While somebody prunes one of them, nothing is copied.
    fs::write(source.join("a"), "other").unwrap();
    let old = from.find(&[]).unwrap()[0].id;
    archive(&from, &source);
    from.forget(&[old]).unwrap();
    let answer = Arc::new(Mutex::new(None));
    let hook = {
        let (origin, target, answer) = (origin.clone(), target.clone(), Arc::clone(&answer));
        move |kind| {
            if kind == FileKind::Index {
                let (from, to) = (open(Arc::new(origin.clone())), open(Arc::new(target.clone())));
                *answer.lock().unwrap() = Some(to.copy_from(&from, &[], &Progress::default()));
            }
        }
    };
    let pruning = open(HookedBackend::new(Arc::new(origin), hook));
    pruning.prune(Mode::Execute, &Progress::default()).unwrap();
    let answer = answer.lock().unwrap().take().unwrap();
    assert!(matches!(answer, Err(Error::Locked { .. })), "{answer:?}");
}

#[test]
fn a_cancelled_copy_leaves_no_lock_and_no_snapshot() {
    let dir = scratch();
    let source = dir.path().join("source");
    small_tree(&source);
    let (origin, from) = memory();
    archive(&from, &source);
    let target = memory().0;
    let progress = Progress::default();
    let hook = {
        let progress = progress.clone();
        move |kind| {
            if kind == FileKind::Pack {
                progress.cancel();
            }
        }
    };
    let to = open(HookedBackend::new(Arc::new(target.clone()), hook));
    assert!(matches!(to.copy_from(&from, &[], &progress), Err(Error::Cancelled)));
    for side in [&origin, &target] {
        assert_eq!(side.list(FileKind::Lock).unwrap(), []);
    }
    assert_eq!(target.list(FileKind::Snapshot).unwrap(), []);
    assert_eq!(copy(&open(Arc::new(target)), &from).snapshots.len(), 1);
}

#[test]
fn restic_reads_a_copy_and_finds_nothing_left_to_copy() {
    let dir = scratch();
    let source = dir.path().join("source");
    small_tree(&source);
    let (path, from) = local(dir.path());
    archive(&from, &source);
    fs::create_dir(dir.path().join("far")).unwrap();
    let (far, to) = local(&dir.path().join("far"));
    let copied = copy(&to, &from);
    let text = restic(&far, &["check", "--read-data"]);
    assert!(text.contains("no errors were found"), "{text}");
    let target = dir.path().join("theirs");
    restic(&far, &["restore", &copied.snapshots[0].1.to_string(), "--target", target.to_str().unwrap()]);
    compare::assert_same(&compare::snapshot(&source), &compare::snapshot(&target.join("volumes/home")));
    let password = dir.path().join("password");
    fs::write(&password, "correct horse").unwrap();
    let from_there = ["--from-repo", path.to_str().unwrap(), "--from-password-file", password.to_str().unwrap()];
    let text = restic(&far, &[&["copy"], &from_there[..]].concat());
    assert!(text.contains("was already copied"), "{text}");
    // And what restic copied, ours finds.
    fs::write(source.join("a"), "newer").unwrap();
    archive(&from, &source);
    restic(&far, &[&["copy"], &from_there[..]].concat());
    let again = copy(&to, &from);
    assert_eq!((again.snapshots.len(), again.already.len()), (0, 2), "{again:?}");
}

#[test]
fn whoever_knows_an_original_by_name_finds_its_copy_where_that_took_its_place() {
    let dir = scratch();
    let source = dir.path().join("source");
    small_tree(&source);
    let (_, from) = memory();
    let first = archive(&from, &source).snapshot.unwrap();
    let to = memory().1;
    assert!(matches!(to.snapshot(first), Err(Error::NotFound { .. })));
    let copied = copy(&to, &from).snapshots[0].1;
    assert_ne!(first, copied);
    assert_eq!(to.snapshot(first).unwrap().id, copied);
    verify_all(&to, first);
    restore(&to, first, &dir.path().join("target"));
    // An archive builds on it, and a forget means it.
    let parents = vec![Parent::Snapshot(first)];
    let next = to.archive(&ArchiveRequest { parents, ..request(&source) }, &Progress::default()).unwrap();
    assert!(next.read_bytes < 1_000_000, "{next:?}");
    // A forget means what is called so here: the same call again must not take a copy, too.
    to.forget(&[first]).unwrap();
    assert_eq!(to.snapshot(first).unwrap().id, copied);
    to.forget(&[copied]).unwrap();
    assert!(matches!(to.snapshot(first), Err(Error::NotFound { .. })));
    assert_eq!(to.find(&[]).unwrap().iter().map(|info| info.id).collect::<Vec<_>>(), [next.snapshot.unwrap()]);
}

#[test]
fn of_several_copies_the_same_is_found_every_time() {
    let dir = scratch();
    let source = dir.path().join("source");
    small_tree(&source);
    let (_, from) = memory();
    let first = archive(&from, &source).snapshot.unwrap();
    // The same one, by two ways.
    let (one, two) = (memory().1, memory().1);
    let (backend, to) = memory();
    copy(&one, &from);
    copy(&two, &from);
    let mut copies = vec![copy(&to, &one).snapshots[0].1];
    let file = backend.read(FileKind::Snapshot, copies[0].0).unwrap();
    backend.remove(FileKind::Snapshot, copies[0].0).unwrap();
    copies.push(copy(&to, &two).snapshots[0].1);
    backend.write(FileKind::Snapshot, copies[0].0, &file).unwrap();
    copies.sort();
    for _ in 0..20 {
        let to = open(Arc::new(backend.clone()));
        assert_eq!(to.snapshot(first).unwrap().id, copies[0]);
    }
    to.forget(&copies[..1]).unwrap();
    assert_eq!(to.snapshot(first).unwrap().id, copies[1]);
}

#[test]
fn each_copy_is_told_as_soon_as_it_is_there_and_none_keeps_the_others_back() {
    let dir = scratch();
    let source = dir.path().join("source");
    small_tree(&source);
    let (backend, from) = memory();
    let first = archive(&from, &source).snapshot.unwrap();
    fs::write(source.join("sub/new"), corpus::noise(300_000, 3)).unwrap();
    let second = archive(&from, &source).snapshot.unwrap();
    fs::write(source.join("sub/newer"), corpus::noise(300_000, 4)).unwrap();
    let third = archive(&from, &source).snapshot.unwrap();
    // One that nobody has, and one whose own pack is gone.
    let absent = SnapshotFileId(Id::of(b"absent"));
    let packs_before: Vec<_> = backend.list(FileKind::Pack).unwrap();
    fs::write(source.join("sub/lost"), corpus::noise(300_000, 5)).unwrap();
    let lost = archive(&from, &source).snapshot.unwrap();
    for pack in backend.list(FileKind::Pack).unwrap() {
        if !packs_before.contains(&pack) {
            backend.remove(FileKind::Pack, pack.id).unwrap();
        }
    }
    let (there, to) = memory();
    let mut told = Vec::new();
    let wanted = [absent, third, lost, first, second];
    let (mut now, mut sent) = (None, Vec::new());
    to.copy_each(&from, &wanted, &Progress::default(), &mut |id, step| {
        let outcome = match step {
            CopyStep::Begun(progress) => {
                now = Some((id, progress));
                return std::ops::ControlFlow::Continue(());
            }
            CopyStep::Ended(outcome) => outcome,
        };
        let (begun, progress) = now.take().unwrap();
        assert_eq!(begun, id);
        sent.push(progress.read());
        let good = match outcome {
            CopyOutcome::Copied(copy) => {
                // It counts now, and not at the end.
                assert!(there.list(FileKind::Snapshot).unwrap().iter().any(|info| info.id == copy.0));
                Some(copy)
            }
            CopyOutcome::There(_) => panic!("{id} was not there"),
            CopyOutcome::Failed(_) => None,
        };
        told.push((id, good.is_some()));
        if id == first { std::ops::ControlFlow::Break(()) } else { std::ops::ControlFlow::Continue(()) }
    })
    .unwrap();
    assert_eq!(told, [(absent, false), (third, true), (lost, false), (first, true)]);
    // Each counts for itself, and what was sent with an earlier one is not sent again.
    let [none, whole, _, rest] = sent[..] else { panic!("{sent:?}") };
    assert_eq!((none.bytes_done, none.bytes_total), (0, 0));
    assert!(whole.bytes_done > 0 && whole.bytes_done == whole.bytes_total, "{whole:?}");
    assert!(rest.bytes_done < whole.bytes_done && rest.bytes_done == rest.bytes_total, "{rest:?}");
    assert_eq!(to.snapshot_names().unwrap().len(), 2);
    for info in to.find(&[]).unwrap() {
        verify_all(&to, info.id);
    }
    let mut again = Vec::new();
    to.copy_each(&from, &[third, second], &Progress::default(), &mut |id, step| {
        if let CopyStep::Ended(outcome) = step {
            again.push((id, matches!(outcome, CopyOutcome::There(_))));
        }
        std::ops::ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(again, [(third, true), (second, false)]);
}

#[test]
fn what_a_repository_lost_comes_back_from_its_copy() {
    let dir = scratch();
    let source = dir.path().join("source");
    small_tree(&source);
    let (origin, first) = memory();
    let id = archive(&first, &source).snapshot.unwrap();
    let far = memory().1;
    copy(&far, &first);
    for pack in origin.list(FileKind::Pack).unwrap() {
        let hurt = origin.snapshot();
        hurt.remove(FileKind::Pack, pack.id).unwrap();
        let first = open(Arc::new(hurt));
        let now = "2026-01-02T12:00:00Z".parse().unwrap();
        first.repair(&RepairRequest { mode: Mode::Execute, now }, &Progress::default()).unwrap();
        assert!(first.verify(id, &Verify::Everything, &Progress::default()).is_err());
        let back = copy(&first, &far);
        assert_eq!((back.already.len(), back.healed.len(), back.snapshots.len()), (1, 1, 0), "{back:?}");
        verify_all(&first, id);
    }
}
