//! A store that fails, hangs or lies at any one of the calls that an operation makes: listings and looks at sizes among them.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::support::faulty::{Fault, FaultyBackend};
use crate::support::*;
use jiff::{SignedDuration, Timestamp};
use perennial_core::progress::Progress;
use perennial_snapshots::*;

const GRACE: SignedDuration = SignedDuration::from_hours(24);

type Tree = BTreeMap<PathBuf, compare::Item>;

/// A repository with two snapshots, packs that only a part of is needed, packs that nothing needs, and several index files.
struct World {
    dir: tempfile::TempDir,
    source: PathBuf,
    state: MemoryBackend,
    kept: Vec<(SnapshotFileId, Tree)>,
    forgotten: (SnapshotFileId, Vec<u8>),
}

impl World {
    fn new() -> Self {
        let dir = scratch();
        let source = dir.path().join("source");
        fs::create_dir_all(source.join("sub")).unwrap();
        let write = |file: &str, len, seed| fs::write(source.join(file), corpus::noise(len, seed)).unwrap();
        write("a", 3000, 1);
        write("sub/b", 30_000, 2);
        fs::write(source.join("sub/c"), "text ".repeat(1000)).unwrap();
        let (state, repo) = memory();
        let mut made = Vec::new();
        for seed in 0..3 {
            write("a", 3000, 10 + seed);
            write("sub/new", 9000, 20 + seed);
            made.push((archive(&repo, &source).snapshot.unwrap(), compare::snapshot(&source)));
        }
        let (gone, _) = made.remove(0);
        let forgotten = (gone, state.read(FileKind::Snapshot, gone.0).unwrap());
        repo.forget(&[gone]).unwrap();
        Self { dir, source, state, kept: made, forgotten }
    }

    /// Nothing that a listed snapshot needs is gone, whatever happened to the state.
    fn assert_kept(&self, state: &MemoryBackend, label: &str) -> Repository {
        clear_locks(state);
        let repo = open(Arc::new(state.clone()));
        for (snapshot, _) in &self.kept {
            let verified = repo.verify(*snapshot, &Verify::Everything, &Progress::default());
            verified.unwrap_or_else(|e| panic!("{label}: {e}: {:?}", std::error::Error::source(&e)));
        }
        repo
    }

    fn assert_restores(&self, repo: &Repository, snapshot: SnapshotFileId, expected: &Tree) {
        let target = self.dir.path().join("restored");
        restore(repo, snapshot, &target);
        compare::assert_same(expected, &compare::snapshot(&target));
        fs::remove_dir_all(&target).unwrap();
    }
}

fn open(backend: Arc<dyn Backend>) -> Repository {
    Repository::open(backend, &password()).unwrap()
}

fn clear_locks(backend: &MemoryBackend) {
    for lock in backend.list(FileKind::Lock).unwrap() {
        backend.remove(FileKind::Lock, lock.id).unwrap();
    }
}

/// What may go wrong with a call, each with the file of a listing that is hit.
fn faults(call: &str, longest_listing: usize) -> Vec<(Fault, usize)> {
    let alone = |faults: &[Fault]| faults.iter().map(|fault| (*fault, 0)).collect::<Vec<_>>();
    match call {
        "drop caches" => alone(&[Fault::Error, Fault::Hang]),
        "remove" | "set aside" => alone(&[Fault::Error, Fault::ErrorAfter, Fault::Lie, Fault::Hang]),
        "list" | "list aside" => {
            let each = (0..longest_listing).flat_map(|n| [(Fault::Lie, n), (Fault::Corrupt, n)]);
            alone(&[Fault::Error, Fault::Truncate, Fault::Hang]).into_iter().chain(each).collect()
        }
        _ => alone(&[Fault::Error, Fault::ErrorAfter, Fault::Lie, Fault::Truncate, Fault::Corrupt, Fault::Hang]),
    }
}

/// Lets every call of the work go wrong in every way, one at a time, each from the same state; `judge` sees what came of it.
fn sweep<T>(
    begin: &MemoryBackend,
    work: impl Fn(&Repository, &Progress) -> Result<T, Error>,
    mut judge: impl FnMut(&MemoryBackend, Result<T, Error>, &str),
) {
    // Of packs, whose names are random, a few stand for all.
    let longest = FileKind::ALL.iter().map(|kind| begin.list(*kind).unwrap().len()).max().unwrap().min(4);
    let trace = {
        let faulty = FaultyBackend::new(Arc::new(begin.snapshot()), Fault::Error, false);
        let repo = open(faulty.clone());
        let start = faulty.trace.lock().unwrap().len();
        work(&repo, &Progress::default()).map(drop).unwrap();
        faulty.trace.lock().unwrap().split_off(start)
    };
    assert!(trace.contains(&"list") && trace.len() > 5, "{trace:?}");
    for (k, call) in trace.iter().enumerate() {
        for (fault, victim) in faults(call, longest) {
            let label = format!("{fault:?} of file {victim} at call {k}, {call}");
            let state = begin.snapshot();
            let faulty = FaultyBackend::new(Arc::new(state.clone()), fault, false);
            let repo = open(faulty.clone());
            let bad = faulty.calls.load(Ordering::SeqCst) as i64 + k as i64;
            faulty.victim.store(victim, Ordering::SeqCst);
            faulty.bad_call.store(bad, Ordering::SeqCst);
            let progress = Progress::default();
            let (result, hung) = faulty.gate.cancel_when_it_hangs(&progress, &faulty.calls, || work(&repo, &progress));
            if let Some(before) = hung {
                // What is left to do is to note what arrived, and to give the lock back; two threads at most are on their way.
                let more = faulty.calls.load(Ordering::SeqCst) - before;
                assert!(more <= 12, "{label}: {more} more calls after the cancellation");
            }
            drop(repo);
            judge(&state, result, &label);
        }
    }
}

#[test]
fn no_fault_at_any_call_makes_a_bad_snapshot_count_as_verified() {
    let world = World::new();
    let parent = world.kept[1].0;
    let expected = compare::snapshot(&world.source);
    let work = |repo: &Repository, progress: &Progress| {
        let wanted = ArchiveRequest { parents: vec![Parent::Snapshot(parent)], ..request(&world.source) };
        let archived = repo.archive(&wanted, progress)?;
        let snapshot = archived.snapshot.unwrap();
        repo.verify(snapshot, &Verify::Written { packs: archived.written_packs }, progress).map(|_| snapshot)
    };
    let mut good = 0;
    sweep(&world.state, work, |state, result, label| {
        let repo = world.assert_kept(state, label);
        if let Ok(snapshot) = result {
            good += 1;
            world.assert_restores(&repo, snapshot, &expected);
        }
    });
    assert!(good > 0, "nothing went well");
}

#[test]
fn no_fault_at_any_call_makes_a_lost_pack_pass_a_verification_or_a_check() {
    let world = World::new();
    let snapshot = world.kept[1].0;
    let verify = |repo: &Repository, progress: &Progress| repo.verify(snapshot, &Verify::Everything, progress);
    // Nothing is called damaged that is not, because of one listing that leaves something out.
    sweep(&world.state, verify, |state, result, label| {
        let repo = world.assert_kept(state, label);
        let lists = label.starts_with("Lie") && label.ends_with("list");
        assert!(!lists || !matches!(result, Err(Error::MissingBlob { .. })), "{label}: {result:?}");
        drop(repo);
    });
    for pack in world.state.list(FileKind::Pack).unwrap() {
        let hurt = world.state.snapshot();
        hurt.remove(FileKind::Pack, pack.id).unwrap();
        if open(Arc::new(hurt.clone())).verify(snapshot, &Verify::Everything, &Progress::default()).is_ok() {
            continue;
        }
        let tried = |repo: &Repository, progress: &Progress| {
            let verified = repo.verify(snapshot, &Verify::Everything, progress).is_ok();
            let clean = repo.check(Depth::Structure, progress).is_ok_and(|report| report.problems.is_empty());
            Ok((verified, clean))
        };
        sweep(&hurt, tried, |_, result, label| {
            assert_eq!(result.unwrap(), (false, false), "{label}: {} is lost", pack.id);
        });
        break;
    }
}

#[test]
fn no_fault_at_any_call_spoils_a_restore_that_says_it_is_done() {
    let world = World::new();
    let (snapshot, expected) = &world.kept[1];
    let target = world.dir.path().join("target");
    let work = |repo: &Repository, progress: &Progress| {
        let _ = fs::remove_dir_all(&target);
        repo.restore(*snapshot, &restore_request(&target), progress)
    };
    sweep(&world.state, work, |state, result, label| {
        world.assert_kept(state, label);
        if result.is_ok() {
            compare::assert_same(expected, &compare::snapshot(&target));
        }
    });
}

fn gently(now: Timestamp) -> PruneRequest {
    PruneRequest { mode: Mode::Execute, grace: GRACE, now, rewrite_at_most: u64::MAX }
}

/// Afterwards the same work, on a store that does what it should, leaves everything in order.
fn assert_prunes(world: &World, state: &MemoryBackend, also: Option<SnapshotFileId>, label: &str) {
    let repo = world.assert_kept(state, label);
    for day in 2..5 {
        repo.prune_with(&gently(Timestamp::UNIX_EPOCH + GRACE * day), &Progress::default()).unwrap();
    }
    let report = repo.check(Depth::Structure, &Progress::default()).unwrap();
    assert!(report.problems.is_empty(), "{label}: {:?}", report.problems);
    assert_eq!((report.packs_waiting, report.packs_not_indexed), (0, 0), "{label}");
    world.assert_kept(state, label);
    if let Some(snapshot) = also {
        verify_all(&repo, snapshot);
    }
}

#[test]
fn no_fault_at_any_call_of_a_prune_takes_what_a_snapshot_needs() {
    let world = World::new();
    let at_once = |repo: &Repository, progress: &Progress| {
        repo.prune_with(&PruneRequest { grace: SignedDuration::ZERO, ..gently(Timestamp::UNIX_EPOCH) }, progress)
    };
    sweep(&world.state, at_once, |state, _, label| assert_prunes(&world, state, None, label));
}

#[test]
fn no_fault_at_any_call_of_either_phase_of_a_prune_takes_what_a_snapshot_needs() {
    let world = World::new();
    let day = |n: i64| Timestamp::UNIX_EPOCH + GRACE * i32::try_from(n).unwrap();
    let mark = |repo: &Repository, progress: &Progress| repo.prune_with(&gently(day(0)), progress);
    sweep(&world.state, mark, |state, _, label| assert_prunes(&world, state, None, label));
    // What was marked is needed again.
    let marked = world.state.snapshot();
    open(Arc::new(marked.clone())).prune_with(&gently(day(0)), &Progress::default()).unwrap();
    let (old, file) = &world.forgotten;
    marked.write(FileKind::Snapshot, old.0, file).unwrap();
    let expire = |repo: &Repository, progress: &Progress| repo.prune_with(&gently(day(1)), progress);
    sweep(&marked, expire, |state, _, label| assert_prunes(&world, state, Some(*old), label));
}

#[test]
fn a_snapshot_that_a_store_leaves_out_of_every_listing_ends_a_prune_of_whoever_saw_it() {
    let world = World::new();
    let state = world.state.snapshot();
    let faulty = FaultyBackend::new(Arc::new(state.clone()), Fault::Error, false);
    let repo = open(faulty.clone());
    let request = PruneRequest { mode: Mode::DryRun, grace: SignedDuration::ZERO, ..gently(Timestamp::UNIX_EPOCH) };
    repo.prune_with(&request, &Progress::default()).unwrap();
    faulty.hidden.lock().unwrap().push(world.kept[0].0.0);
    let refused = repo.prune_with(&PruneRequest { mode: Mode::Execute, ..request }, &Progress::default());
    assert!(matches!(&refused, Err(Error::Unsteady { kind: FileKind::Snapshot, id, .. }) if *id == world.kept[0].0.0));
    world.assert_kept(&state, "left out");
    // One that was forgotten is not there, and keeps nobody.
    faulty.hidden.lock().unwrap().clear();
    repo.forget(&[world.kept[0].0]).unwrap();
    repo.prune(Mode::Execute, &Progress::default()).unwrap();
}

#[test]
fn no_fault_at_any_call_of_a_check_changes_anything() {
    let world = World::new();
    let work = |repo: &Repository, progress: &Progress| repo.check(Depth::Data, progress);
    sweep(&world.state, work, |state, _, label| {
        world.assert_kept(state, label);
    });
}

#[test]
fn no_fault_at_any_call_of_a_repair_takes_what_a_snapshot_needs() {
    let world = World::new();
    // Something to do: an index file that cannot be read, and a pack that no index names.
    let hurt = world.state.snapshot();
    let index = hurt.list(FileKind::Index).unwrap()[0].id;
    hurt.write(FileKind::Index, index, b"nonsense").unwrap();
    let request = RepairRequest { mode: Mode::Execute, now: Timestamp::UNIX_EPOCH };
    let work = |repo: &Repository, progress: &Progress| repo.repair(&request, progress);
    sweep(&hurt, work, |state, _, label| {
        clear_locks(state);
        open(Arc::new(state.clone())).repair(&request, &Progress::default()).unwrap();
        world.assert_kept(state, label);
    });
}

#[test]
fn no_fault_at_any_call_of_either_store_makes_a_bad_copy_count() {
    let world = World::new();
    let (snapshot, expected) = &world.kept[1];
    let destination = std::cell::RefCell::new(MemoryBackend::new());
    let out = |repo: &Repository, progress: &Progress| {
        let (backend, to) = memory();
        destination.replace(backend);
        to.copy_from(repo, &[*snapshot], progress)
    };
    sweep(&world.state, out, |state, result, label| {
        world.assert_kept(state, label);
        for (_, copy) in result.into_iter().flat_map(|copied| copied.snapshots) {
            world.assert_restores(&open(Arc::new(destination.borrow().clone())), copy, expected);
        }
    });
    let (begin, _) = memory();
    let original = open(Arc::new(world.state.clone()));
    let into = |repo: &Repository, progress: &Progress| repo.copy_from(&original, &[*snapshot], progress);
    // A store in which there is something already.
    open(Arc::new(begin.clone())).copy_from(&original, &[world.kept[0].0], &Progress::default()).unwrap();
    sweep(&begin, into, |state, result, label| {
        clear_locks(state);
        let repo = open(Arc::new(state.clone()));
        for listed in repo.find(&[]).unwrap_or_default() {
            let verified = repo.verify(listed.id, &Verify::Everything, &Progress::default());
            assert!(verified.is_ok() || result.is_err(), "{label}: {verified:?}");
        }
        for (_, copy) in result.into_iter().flat_map(|copied| copied.snapshots) {
            world.assert_restores(&repo, copy, expected);
        }
    });
}

#[test]
fn no_fault_at_any_call_of_a_forget_takes_more_than_was_asked_for() {
    let world = World::new();
    let gone = world.kept[0].0;
    sweep(
        &world.state,
        |repo, _| repo.forget(&[gone]),
        |state, _, label| {
            clear_locks(state);
            let repo = open(Arc::new(state.clone()));
            verify_all(&repo, world.kept[1].0);
            let listed = repo.find(&[]).unwrap().len();
            assert!((1..=2).contains(&listed), "{label}: {listed}");
        },
    );
}

#[test]
fn no_fault_at_any_call_locks_the_owner_out_or_lets_a_removed_password_in() {
    let world = World::new();
    let new = Password::new("battery staple");
    let opens =
        |state: &MemoryBackend, password: &Password| Repository::open(Arc::new(state.clone()), password).is_ok();
    sweep(
        &world.state,
        |repo, _| repo.add_password(&new, KeyCost::Test),
        |state, result, label| {
            world.assert_kept(state, label);
            assert!(result.is_err() || opens(state, &new), "{label}: it was said to open");
        },
    );
    let both = world.state.snapshot();
    open(Arc::new(both.clone())).add_password(&new, KeyCost::Test).unwrap();
    sweep(
        &both,
        |repo, _| repo.remove_password(&password(), &new),
        |state, result, label| {
            clear_locks(state);
            assert!(opens(state, &new), "{label}: the one that is kept");
            // A store that only says that it removed a file is believed.
            let believed = label.starts_with("Lie") && label.ends_with("remove");
            assert!(result.is_err() || believed || !opens(state, &password()), "{label}: it opens still");
        },
    );
}

#[test]
fn no_fault_at_any_call_of_an_init_makes_half_a_repository_or_takes_another() {
    let world = World::new();
    for exists in [false, true] {
        for k in 0.. {
            let mut reached = false;
            for fault in [Fault::Error, Fault::ErrorAfter, Fault::Lie, Fault::Truncate, Fault::Corrupt, Fault::Hang] {
                let state = if exists { world.state.snapshot() } else { MemoryBackend::new() };
                let faulty = FaultyBackend::new(Arc::new(state.clone()), fault, false);
                faulty.bad_call.store(k, Ordering::SeqCst);
                let init = || Repository::init(faulty.clone(), &password(), KeyCost::Test);
                let (made, _) = faulty.gate.cancel_when_it_hangs(&Progress::default(), &faulty.calls, init);
                reached |= faulty.calls.load(Ordering::SeqCst) as i64 > k;
                let label = format!("{fault:?} at call {k}");
                if exists {
                    assert!(made.is_err(), "{label}");
                    world.assert_kept(&state, &label);
                } else if made.is_ok() {
                    let repo = open(Arc::new(state.clone()));
                    verify_all(&repo, archive(&repo, &world.source).snapshot.unwrap());
                }
            }
            if !reached {
                assert!(k > if exists { 0 } else { 8 }, "only {k} calls");
                break;
            }
        }
    }
}

#[test]
fn no_fault_at_any_call_of_a_raze_leaves_a_key_that_it_says_is_gone() {
    let world = World::new();
    let seen = Seen::of(&world.state).unwrap().unwrap();
    let faults = [Fault::Error, Fault::ErrorAfter, Fault::Lie, Fault::Truncate, Fault::Corrupt, Fault::Hang];
    for (what, gone) in [(Raze::Keys, &[FileKind::Key][..]), (Raze::AllButConfig, &FileKind::ALL[1..])] {
        for fault in faults {
            for k in 0.. {
                let state = world.state.snapshot();
                let faulty = FaultyBackend::new(Arc::new(state.clone()), fault, false);
                faulty.bad_call.store(k, Ordering::SeqCst);
                let progress = Progress::default();
                let (razed, _) = faulty
                    .gate
                    .cancel_when_it_hangs(&progress, &faulty.calls, || raze(&*faulty, &seen, what, &progress));
                let left: Vec<_> = gone.iter().flat_map(|kind| state.list(*kind).unwrap()).collect();
                assert!(razed.is_err() || left.is_empty(), "{what:?}, {fault:?} at call {k}: {left:?}");
                if faulty.calls.load(Ordering::SeqCst) as i64 <= k {
                    razed.unwrap();
                    assert!(k > 4, "only {k} calls");
                    break;
                }
            }
        }
    }
}

/// Cancels the work during each call that it makes, each time from the same state: what was cancelled leaves no lock and makes no
/// snapshot, and the same work succeeds afterwards, on the same handle.
fn cancel_anywhere<T>(name: &str, begin: &MemoryBackend, work: impl Fn(&Repository, &Progress) -> Result<T, Error>) {
    let listed = |state: &MemoryBackend| state.list(FileKind::Snapshot).unwrap().len();
    let mut cancelled = 0;
    for k in 0.. {
        let state = begin.snapshot();
        let faulty = FaultyBackend::new(Arc::new(state.clone()), Fault::Cancelled, false);
        let repo = open(faulty.clone());
        let bad = faulty.calls.load(Ordering::SeqCst) as i64 + k;
        faulty.bad_call.store(bad, Ordering::SeqCst);
        let progress = Progress::default();
        *faulty.work.lock().unwrap() = progress.clone();
        let result = work(&repo, &progress).map(drop);
        let reached = faulty.calls.load(Ordering::SeqCst) as i64 > bad;
        assert!(state.list(FileKind::Lock).unwrap().is_empty(), "{name}: a lock stays after call {k}");
        match result {
            Ok(()) => assert!(!reached || progress.check().is_err(), "{name}: call {k} cancelled nothing"),
            Err(Error::Cancelled) => {
                cancelled += 1;
                assert_eq!(listed(&state), listed(begin), "{name}: a snapshot of what was cancelled at call {k}");
            }
            Err(error) => panic!("{name}, cancelled at call {k}: {error}"),
        }
        work(&repo, &Progress::default()).map(drop).unwrap_or_else(|e| panic!("{name} again after call {k}: {e}"));
        if !reached {
            assert!(cancelled >= 3, "{name}: only {cancelled} of {k} calls cancelled it");
            break;
        }
    }
}

#[test]
fn what_is_cancelled_during_any_call_leaves_no_lock_and_no_snapshot_and_succeeds_afterwards() {
    let world = World::new();
    let newest = world.kept[1].0;
    let target = world.dir.path().join("target");
    cancel_anywhere("archive", &world.state, |repo, progress| {
        let wanted = ArchiveRequest { parents: vec![Parent::Snapshot(newest)], ..request(&world.source) };
        repo.archive(&wanted, progress)
    });
    cancel_anywhere("verify", &world.state, |repo, progress| repo.verify(newest, &Verify::Everything, progress));
    cancel_anywhere("restore", &world.state, |repo, progress| {
        let _ = fs::remove_dir_all(&target);
        repo.restore(newest, &restore_request(&target), progress)
    });
    cancel_anywhere("restore of several", &world.state, |repo, progress| {
        let _ = fs::remove_dir_all(&target);
        fs::create_dir(&target).unwrap();
        let one = restore_request(&target.join("one"));
        let other = RestoreRequest { target: target.join("other"), ..one.clone() };
        repo.restore_all(newest, &[one, other], progress)
    });
    cancel_anywhere("check", &world.state, |repo, progress| repo.check(Depth::Data, progress));
    let hurt = world.state.snapshot();
    let index = hurt.list(FileKind::Index).unwrap()[0].id;
    hurt.write(FileKind::Index, index, b"nonsense").unwrap();
    let repair = RepairRequest { mode: Mode::Execute, now: Timestamp::UNIX_EPOCH };
    cancel_anywhere("repair", &hurt, |repo, progress| repo.repair(&repair, progress));
    let prune = PruneRequest { grace: SignedDuration::ZERO, ..gently(Timestamp::UNIX_EPOCH) };
    cancel_anywhere("prune", &world.state, |repo, progress| repo.prune_with(&prune, progress));
    cancel_anywhere("copy out", &world.state, |repo, progress| memory().1.copy_from(repo, &[newest], progress));
    let original = open(Arc::new(world.state.clone()));
    cancel_anywhere("copy in", &memory().0, |repo, progress| repo.copy_from(&original, &[newest], progress));
}
