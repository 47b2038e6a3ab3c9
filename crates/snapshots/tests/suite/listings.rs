//! Listings that leave out what is there, or show what is gone: nothing is lost by that, and nothing looks lost for longer than it lasts.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use crate::support::faulty::{Fault, FaultyBackend, HookedBackend};
use crate::support::*;
use jiff::{SignedDuration, Timestamp};
use perennial_core::progress::Progress;
use perennial_snapshots::*;

const GRACE: SignedDuration = SignedDuration::from_hours(24);

fn lists_wrongly(state: &MemoryBackend) -> Arc<FaultyBackend> {
    FaultyBackend::new(Arc::new(state.clone()), Fault::Error, false)
}

fn open(backend: Arc<dyn Backend>) -> Repository {
    Repository::open(backend, &password()).unwrap()
}

fn snapshot_of(repo: &Repository, source: &Path, seed: u64) -> SnapshotFileId {
    fs::write(source.join("file"), corpus::noise(2000, seed)).unwrap();
    archive(repo, source).snapshot.unwrap()
}

fn packs(backend: &dyn Backend) -> Vec<Id> {
    backend.list(FileKind::Pack).unwrap().into_iter().map(|file| file.id).collect()
}

fn gently(repo: &Repository, day: i32) -> Result<PruneReport, Error> {
    let now = Timestamp::UNIX_EPOCH + GRACE * day;
    let request = PruneRequest { mode: Mode::Execute, grace: GRACE, now, rewrite_at_most: u64::MAX };
    repo.prune_with(&request, &Progress::default())
}

#[test]
fn a_prune_without_grace_ends_for_what_somebody_counts_on_and_no_listing_ever_showed() {
    let dir = scratch();
    let (state, repo) = memory();
    let kept = snapshot_of(&repo, dir.path(), 1);
    let other = snapshot_of(&repo, dir.path(), 2);
    let backend = lists_wrongly(&state);
    backend.hidden.lock().unwrap().push(kept.0);
    let fresh = open(backend.clone());
    fresh.expect([kept]);
    let refused = fresh.prune(Mode::Execute, &Progress::default());
    assert!(matches!(refused, Err(Error::Unsteady { kind: FileKind::Snapshot, id, .. }) if id == kept.0));
    verify_all(&open(Arc::new(state.clone())), kept);
    // So for one that the handle has written itself.
    let written = snapshot_of(&fresh, dir.path(), 3);
    *backend.hidden.lock().unwrap() = vec![written.0];
    let refused = fresh.prune(Mode::Execute, &Progress::default());
    assert!(matches!(refused, Err(Error::Unsteady { kind: FileKind::Snapshot, id, .. }) if id == written.0));
    // What was forgotten is not missed.
    fresh.forget(&[kept, written]).unwrap();
    fresh.prune(Mode::Execute, &Progress::default()).unwrap();
    verify_all(&fresh, other);
}

#[test]
fn packs_that_one_listing_left_out_are_there_again_with_the_next_however_many() {
    let dir = scratch();
    let (state, repo) = memory();
    let all: Vec<SnapshotFileId> = (0..40).map(|seed| snapshot_of(&repo, dir.path(), seed)).collect();
    assert!(packs(&state).len() > 70);
    let backend = lists_wrongly(&state);
    *backend.hidden.lock().unwrap() = packs(&state);
    let opened = open(backend.clone());
    backend.hidden.lock().unwrap().clear();
    for snapshot in all {
        verify_all(&opened, snapshot);
    }
}

#[test]
fn a_mark_stays_when_its_pack_is_left_out_of_a_listing() {
    let dir = scratch();
    let (state, repo) = memory();
    let first = snapshot_of(&repo, dir.path(), 1);
    let needed = packs(&state);
    let forgotten = state.read(FileKind::Snapshot, first.0).unwrap();
    let second = snapshot_of(&repo, dir.path(), 2);
    repo.forget(&[first]).unwrap();
    assert_eq!(gently(&repo, 1).unwrap().waiting, needed.len() as u64);
    // Something else for a new index, while the packs are in no listing.
    snapshot_of(&repo, dir.path(), 3);
    repo.forget(&[second]).unwrap();
    let backend = lists_wrongly(&state);
    *backend.hidden.lock().unwrap() = needed;
    gently(&open(backend), 1).unwrap();
    // The snapshot shows up late.
    state.write(FileKind::Snapshot, first.0, &forgotten).unwrap();
    let repo = open(Arc::new(state.clone()));
    assert!(gently(&repo, 1).unwrap().recovered > 0);
    verify_all(&repo, first);
}

#[test]
fn a_prune_that_takes_a_mark_back_and_does_not_see_it_ends() {
    let dir = scratch();
    let (state, repo) = memory();
    let first = snapshot_of(&repo, dir.path(), 1);
    let forgotten = state.read(FileKind::Snapshot, first.0).unwrap();
    snapshot_of(&repo, dir.path(), 2);
    repo.forget(&[first]).unwrap();
    gently(&repo, 1).unwrap();
    state.write(FileKind::Snapshot, first.0, &forgotten).unwrap();
    let backend = lists_wrongly(&state);
    let opened = open(backend.clone());
    backend.lags.store(true, Ordering::SeqCst);
    let before = state.list(FileKind::Index).unwrap().len();
    let ended = gently(&opened, 2);
    assert!(matches!(ended, Err(Error::Unsteady { kind: FileKind::Index, .. })), "{ended:?}");
    // One for each of its two packs, and no more.
    assert_eq!(state.list(FileKind::Index).unwrap().len(), before + 2);
    let repo = open(Arc::new(state.clone()));
    gently(&repo, 2).unwrap();
    verify_all(&repo, first);
}

#[test]
fn a_snapshot_that_cannot_be_read_is_not_replaced_by_what_names_it_as_its_original() {
    let dir = scratch();
    let (_, repo) = memory();
    let whole = snapshot_of(&repo, dir.path(), 1);
    let less = MemoryBackend::default();
    let other = Repository::init(Arc::new(less.clone()), &password(), KeyCost::Test).unwrap();
    other.copy_from(&repo, &[whole], &Progress::default()).unwrap();
    let copy = less.list(FileKind::Snapshot).unwrap()[0].id;
    let backend = lists_wrongly(&less);
    let opened = open(backend.clone());
    // Listed under the name that its copy calls the original, and not there.
    backend.lags.store(true, Ordering::SeqCst);
    less.write(FileKind::Snapshot, whole.0, b"gone in a moment").unwrap();
    backend.remove(FileKind::Snapshot, whole.0).unwrap();
    let refused = opened.prune(Mode::Execute, &Progress::default());
    assert!(
        matches!(refused, Err(Error::Unsteady { kind: FileKind::Snapshot, id, .. }) if id == whole.0),
        "{refused:?}"
    );
    verify_all(&opened, SnapshotFileId(copy));
}

#[test]
fn a_password_is_removed_on_a_store_whose_listings_lag_and_not_on_one_that_removes_nothing() {
    let (state, repo) = memory();
    let next = Password::new("next");
    repo.add_password(&next, KeyCost::Test).unwrap();
    let backend = lists_wrongly(&state);
    let opened = Repository::open(backend.clone(), &next).unwrap();
    backend.keeps.store(true, Ordering::SeqCst);
    let refused = opened.remove_password(&password(), &next);
    assert!(matches!(refused, Err(Error::Unsteady { kind: FileKind::Key, .. })), "{refused:?}");
    backend.keeps.store(false, Ordering::SeqCst);
    for lock in state.list(FileKind::Lock).unwrap() {
        state.remove(FileKind::Lock, lock.id).unwrap();
    }
    backend.lags.store(true, Ordering::SeqCst);
    opened.remove_password(&password(), &next).unwrap();
    assert!(matches!(Repository::open(Arc::new(state), &password()), Err(Error::WrongPassword)));
}

/// Prunes, and has others do something before the call so many after the first listing of snapshots. Says how many calls there
/// were from then on.
fn prune_beside(
    state: &MemoryBackend,
    mode: Mode,
    call: usize,
    others: impl Fn(&Repository) + Send + Sync + 'static,
) -> (Result<PruneReport, Error>, usize) {
    let (calls, handle) = (Arc::new(AtomicUsize::new(0)), Arc::new(OnceLock::<Repository>::new()));
    let hook = {
        let (calls, handle) = (Arc::clone(&calls), Arc::clone(&handle));
        move |kind| {
            if kind == FileKind::Snapshot || calls.load(Ordering::SeqCst) > 0 {
                let now = calls.fetch_add(1, Ordering::SeqCst);
                if let Some(handle) = handle.get().filter(|_| now == call) {
                    others(handle);
                }
            }
        }
    };
    // No listing shows the locks that are taken with this handle.
    let lags = lists_wrongly(state);
    let opened = open(HookedBackend::before_reads(lags.clone(), hook));
    lags.lags.store(true, Ordering::SeqCst);
    handle.set(opened.clone()).unwrap();
    let pruned = opened.prune(mode, &Progress::default());
    (pruned, calls.load(Ordering::SeqCst))
}

#[test]
fn a_prune_whose_lock_nobody_sees_takes_nothing_when_another_makes_its_index_load_anew() {
    let dir = scratch();
    let (state, repo) = memory();
    let [old, first, second] = [1, 2, 3].map(|seed| snapshot_of(&repo, dir.path(), seed));
    repo.forget(&[old]).unwrap();
    let (plan, calls) = prune_beside(&state.snapshot(), Mode::DryRun, usize::MAX, |_| ());
    assert_eq!(plan.unwrap().snapshots, 2);
    let mut lost_the_lock = 0;
    for call in 0..calls {
        let state = state.snapshot();
        let others = {
            let state = state.clone();
            move |handle: &Repository| {
                let other = lists_wrongly(&state);
                *other.hidden.lock().unwrap() =
                    state.list(FileKind::Lock).unwrap().iter().map(|lock| lock.id).collect();
                open(other).prune(Mode::Execute, &Progress::default()).unwrap();
                // The index files that this handle knows are gone, and it finds out while it counts what is needed.
                verify_all(handle, first);
            }
        };
        let (pruned, _) = prune_beside(&state, Mode::Execute, call, others);
        lost_the_lock += usize::from(matches!(pruned, Err(Error::LockLost)));
        let fresh = open(Arc::new(state));
        verify_all(&fresh, first);
        verify_all(&fresh, second);
    }
    assert!(lost_the_lock > 0, "in {calls} calls");
}

#[test]
fn of_two_prunes_that_no_lock_keeps_apart_one_ends() {
    let dir = scratch();
    let (state, repo) = memory();
    let [old, kept] = [1, 2].map(|seed| snapshot_of(&repo, dir.path(), seed));
    repo.forget(&[old]).unwrap();
    let inner = Arc::new(Mutex::new(None));
    let others = {
        let inner = Arc::clone(&inner);
        move |handle: &Repository| {
            *inner.lock().unwrap() = Some(handle.prune(Mode::Execute, &Progress::default()));
        }
    };
    let (pruned, calls) = prune_beside(&state, Mode::Execute, 3, others);
    let refused = inner.lock().unwrap().take();
    assert!(matches!(refused, Some(Err(Error::LockLost))), "{refused:?} in {calls} calls");
    assert!(!pruned.unwrap().doomed.is_empty());
    verify_all(&open(Arc::new(state)), kept);
}
