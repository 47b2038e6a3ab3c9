//! Repairing: what can be salvaged is, what is lost is said to be, and the next snapshot heals (incidents P32, P38).
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::collections::BTreeSet;
use std::fs;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::support::faulty::{Fault, FaultyBackend};
use crate::support::*;
use jiff::{SignedDuration, Timestamp};
use perennial_core::progress::Progress;
use perennial_snapshots::*;

fn noon() -> Timestamp {
    "2026-01-02T12:00:00Z".parse().unwrap()
}

fn try_repair(repo: &Repository, mode: Mode) -> Result<RepairReport> {
    repo.repair(&RepairRequest { mode, now: noon() }, &Progress::default())
}

fn repair(repo: &Repository) -> RepairReport {
    try_repair(repo, Mode::Execute).unwrap()
}

fn open(backend: &MemoryBackend) -> Repository {
    Repository::open(Arc::new(backend.clone()), &password()).unwrap()
}

fn ids(report: &RepairReport) -> BTreeSet<SnapshotFileId> {
    report.hurt.iter().map(|hurt| hurt.id).collect()
}

/// The snapshots that a check which reads everything complains about; it must complain about nothing else.
fn checked(repo: &Repository) -> BTreeSet<SnapshotFileId> {
    let report = repo.check(Depth::Data, &Progress::default()).unwrap();
    let of = |problem: &Problem| {
        assert!(matches!(problem.error, Error::MissingBlob { .. }), "{problem}");
        problem.snapshot.unwrap_or_else(|| panic!("{problem}"))
    };
    report.problems.iter().map(of).collect()
}

/// The snapshots that cannot be verified.
fn unverified(repo: &Repository, all: &[SnapshotFileId]) -> BTreeSet<SnapshotFileId> {
    let bad = |id: &&SnapshotFileId| repo.verify(**id, &Verify::Everything, &Progress::default()).is_err();
    all.iter().filter(bad).copied().collect()
}

/// Two snapshots that share most of what they hold, in packs and indexes of their own. By one thread, because as many
/// packs are begun as there are threads that store at the same time: what lies together is the same everywhere.
fn two(source: &Path) -> (MemoryBackend, [SnapshotFileId; 2]) {
    let (backend, repo) = memory();
    let repo = repo.with_effort(Effort { threads: NonZeroUsize::new(1), ..Effort::default() });
    fs::create_dir_all(source.join("sub")).unwrap();
    for n in 0..6 {
        fs::write(source.join(format!("f{n}")), corpus::noise(3000, n)).unwrap();
    }
    fs::write(source.join("sub/shared"), corpus::noise(700_000, 10)).unwrap();
    fs::write(source.join("sub/text"), "text ".repeat(10_000)).unwrap();
    fs::write(source.join("changing"), corpus::noise(200_000, 11)).unwrap();
    let first = archive(&repo, source);
    fs::write(source.join("changing"), corpus::noise(200_000, 12)).unwrap();
    let second = again(&repo, source, first.snapshot.unwrap());
    (backend, [first.snapshot.unwrap(), second])
}

/// A snapshot of what is there, compared with another.
fn again(repo: &Repository, source: &Path, parent: SnapshotFileId) -> SnapshotFileId {
    let request = ArchiveRequest { parents: vec![Parent::Snapshot(parent)], ..request(source) };
    repo.archive(&request, &Progress::default()).unwrap().snapshot.unwrap()
}

/// Every way in which a file goes bad.
fn damages(data: &[u8]) -> Vec<(String, Option<Vec<u8>>)> {
    let mut all = vec![("gone".to_owned(), None), ("empty".to_owned(), Some(Vec::new()))];
    for at in [0, data.len() / 2, data.len() - 50, data.len() - 1] {
        let mut bad = data.to_vec();
        bad[at] ^= 0x04;
        all.push((format!("bit of byte {at}"), Some(bad)));
    }
    all.push(("cut".to_owned(), Some(data[..data.len() / 2].to_vec())));
    let mut longer = data.to_vec();
    longer.extend_from_slice(b"more");
    all.push(("longer".to_owned(), Some(longer)));
    all
}

fn put(backend: &MemoryBackend, kind: FileKind, id: Id, data: Option<&Vec<u8>>) {
    match data {
        Some(data) => backend.write(kind, id, data).unwrap(),
        None => backend.remove(kind, id).unwrap(),
    }
}

fn names(backend: &MemoryBackend) -> BTreeSet<(FileKind, Id)> {
    let list = |kind| backend.list(kind).unwrap().into_iter().map(move |info| (kind, info.id));
    [FileKind::Pack, FileKind::Index, FileKind::Snapshot].into_iter().flat_map(list).collect()
}

/// Reads one file wrongly so many times, once the repository was opened.
#[derive(Debug)]
struct Lying {
    inner: MemoryBackend,
    file: (FileKind, Id),
    left: AtomicU64,
}

impl Backend for Lying {
    fn prepare(&self) -> Result<(), BackendError> {
        self.inner.prepare()
    }

    fn list(&self, kind: FileKind) -> Result<Vec<FileInfo>, BackendError> {
        self.inner.list(kind)
    }

    fn read(&self, kind: FileKind, id: Id) -> Result<Vec<u8>, BackendError> {
        let mut data = self.inner.read(kind, id)?;
        // Under the exclusive lock, as only a repair is.
        let repairing = !self.inner.list(FileKind::Lock)?.is_empty();
        if (kind, id) == self.file && repairing && self.left.load(Ordering::SeqCst) > 0 {
            self.left.fetch_sub(1, Ordering::SeqCst);
            data[0] ^= 1;
        }
        Ok(data)
    }

    fn read_range(&self, kind: FileKind, id: Id, offset: u64, len: usize) -> Result<Vec<u8>, BackendError> {
        self.inner.read_range(kind, id, offset, len)
    }

    fn write(&self, kind: FileKind, id: Id, data: &[u8]) -> Result<(), BackendError> {
        self.inner.write(kind, id, data)
    }

    fn remove(&self, kind: FileKind, id: Id) -> Result<(), BackendError> {
        self.inner.remove(kind, id)
    }

    fn size(&self, kind: FileKind, id: Id) -> Result<Option<u64>, BackendError> {
        self.inner.size(kind, id)
    }

    fn set_aside(&self, kind: FileKind, id: Id) -> Result<(), BackendError> {
        self.inner.set_aside(kind, id)
    }

    fn list_aside(&self, kind: FileKind) -> Result<Vec<FileInfo>, BackendError> {
        self.inner.list_aside(kind)
    }

    fn drop_caches(&self, kind: FileKind, id: Id) -> Result<(), BackendError> {
        self.inner.drop_caches(kind, id)
    }
}

fn clear_locks(backend: &MemoryBackend) {
    for lock in backend.list(FileKind::Lock).unwrap() {
        backend.remove(FileKind::Lock, lock.id).unwrap();
    }
}

#[test]
fn p32_damage_of_every_pack_and_index_is_repaired_as_far_as_can_be_and_the_next_snapshot_heals() {
    let dir = scratch();
    let source = dir.path().join("source");
    let (good, all) = two(&source);
    let before = compare::snapshot(&source);
    let (mut cases, mut healed, mut salvaged) = (0, 0, 0);
    for kind in [FileKind::Pack, FileKind::Index] {
        for info in good.list(kind).unwrap() {
            let data = good.read(kind, info.id).unwrap();
            for (how, bad) in damages(&data) {
                let what = format!("{kind} {}: {how}", info.id);
                let backend = good.snapshot();
                put(&backend, kind, info.id, bad.as_ref());
                let repo = open(&backend);
                let names_before = names(&backend);
                let dry = try_repair(&repo, Mode::DryRun).unwrap();
                assert_eq!(names(&backend), names_before, "{what}: a dry run changes nothing");
                let report = repair(&repo);
                assert_eq!(report, dry, "{what}");
                assert!(!report.is_nothing_to_do(), "{what}");
                assert_eq!(ids(&report), unverified(&repo, &all), "{what}");
                assert_eq!(checked(&repo), ids(&report), "{what}");
                assert!(kind == FileKind::Pack || report.hurt.is_empty(), "{what}: {report:?}");
                // What may still hold something is kept, whatever it is.
                for pack in &report.damaged_packs {
                    let aside = backend.set_aside_files().contains(&(FileKind::Pack, pack.id));
                    assert_eq!(aside, pack.fate == Fate::SetAside, "{what}");
                    assert_eq!(pack.lost > 0, !report.hurt.is_empty(), "{what}: {report:?}");
                    salvaged += pack.salvaged;
                }
                let next = repair(&repo);
                assert!(next.is_nothing_to_do() && next.hurt == report.hurt, "{what}: {next:?}");

                // Files that did not change since the parent are read again where their blobs are lost.
                let newest = again(&repo, &source, all[1]);
                verify_all(&repo, newest);
                let target = dir.path().join(format!("restored{cases}"));
                restore(&repo, newest, &target);
                compare::assert_same(&before, &compare::snapshot(&target));
                fs::remove_dir_all(&target).unwrap();
                let trees_whole = !report.hurt.iter().any(|hurt| hurt.paths.iter().any(|p| p.starts_with("directory")));
                if trees_whole {
                    // Whoever shared what was lost is whole again; only what no longer exists anywhere stays lost.
                    let still = checked(&repo);
                    assert!(!still.contains(&all[1]), "{what}: {still:?}");
                    let changed = |hurt: &HurtSnapshot| {
                        hurt.id == all[0] && hurt.paths.iter().any(|path| path.ends_with("/changing"))
                    };
                    assert_eq!(still.contains(&all[0]), report.hurt.iter().any(changed), "{what}");
                    healed += u64::from(!report.hurt.is_empty());
                }
                cases += 1;
            }
        }
    }
    assert!(cases >= 40 && healed >= 5 && salvaged >= 50, "{cases} cases, {healed} healed, {salvaged} blobs salvaged");
}

#[test]
fn a_failure_at_every_write_of_a_repair_leaves_the_repository_no_worse() {
    let dir = scratch();
    let (good, all) = two(&dir.path().join("source"));
    // Bits of the largest pack, and an index file that is gone.
    let packs = good.list(FileKind::Pack).unwrap();
    let victim = packs.iter().max_by_key(|pack| pack.size).unwrap().id;
    let mut data = good.read(FileKind::Pack, victim).unwrap();
    data[100_000] ^= 1;
    good.write(FileKind::Pack, victim, &data).unwrap();
    let index = good.list(FileKind::Index).unwrap()[0].id;
    let mut bad = good.read(FileKind::Index, index).unwrap();
    bad[40] ^= 1;
    good.write(FileKind::Index, index, &bad).unwrap();
    let before = unverified(&open(&good.snapshot()), &all);
    let expected = repair(&open(&good.snapshot()));
    assert!(!expected.hurt.is_empty() && expected.damaged_packs[0].salvaged > 0, "{expected:?}");
    for fault in [Fault::Error, Fault::ErrorAfter, Fault::Lie, Fault::Truncate, Fault::Corrupt] {
        for dead in [true, false] {
            for k in 0.. {
                let what = format!("{fault:?} at {k}, {dead}");
                let state = good.snapshot();
                let faulty = FaultyBackend::new(Arc::new(state.clone()), fault, dead);
                let dying = Repository::open(faulty.clone(), &password()).unwrap();
                faulty.bad_change.store(k, Ordering::SeqCst);
                let result = try_repair(&dying, Mode::Execute);
                let died = faulty.changes.load(Ordering::SeqCst) as i64 > k;
                drop(dying);
                clear_locks(&state);
                let repo = open(&state);
                assert!(unverified(&repo, &all).is_subset(&before), "{what}");
                let report = repair(&repo);
                assert_eq!(report.hurt, expected.hurt, "{what}");
                assert_eq!(checked(&repo), ids(&expected), "{what}");
                assert!(repair(&repo).is_nothing_to_do(), "{what}");
                // Wherever it is, what could not be salvaged is still there.
                let kept = names(&state).contains(&(FileKind::Pack, victim))
                    || state.set_aside_files().contains(&(FileKind::Pack, victim));
                assert!(kept, "{what}");
                if !died {
                    result.unwrap();
                    assert!(k > 6, "only {k} changes");
                    break;
                }
            }
        }
    }
}

#[test]
fn a_store_that_does_not_answer_or_reads_wrongly_is_not_taken_for_one_that_lost_something() {
    let dir = scratch();
    let (good, all) = two(&dir.path().join("source"));
    for fault in [Fault::Error, Fault::Truncate, Fault::Corrupt] {
        for k in 0.. {
            let state = good.snapshot();
            let faulty = FaultyBackend::new(Arc::new(state.clone()), fault, false);
            let repo = Repository::open(faulty.clone(), &password()).unwrap();
            let start = faulty.reads.load(Ordering::SeqCst) as i64;
            faulty.bad_read.store(start + k, Ordering::SeqCst);
            drop(try_repair(&repo, Mode::Execute));
            let hit = faulty.reads.load(Ordering::SeqCst) as i64 > start + k;
            drop(repo);
            clear_locks(&state);
            // Whatever it made of that one wrong answer: nothing was moved, and nothing is wrong.
            assert_eq!(state.set_aside_files(), [], "{fault:?} at {k}");
            assert_eq!(state.list(FileKind::Snapshot).unwrap(), good.list(FileKind::Snapshot).unwrap());
            let repo = open(&state);
            let report = repair(&repo);
            assert!(report.is_nothing_to_do() && report.hurt.is_empty(), "{fault:?} at {k}: {report:?}");
            assert!(unverified(&repo, &all).is_empty(), "{fault:?} at {k}");
            if !hit {
                assert!(k > 4);
                break;
            }
        }
    }
    let gone = FaultyBackend::new(Arc::new(good.snapshot()), Fault::Error, true);
    let repo = Repository::open(gone.clone(), &password()).unwrap();
    gone.bad_change.store(1, Ordering::SeqCst);
    gone.changes.store(2, Ordering::SeqCst);
    assert!(matches!(try_repair(&repo, Mode::Execute), Err(Error::Backend(e)) if !e.is_not_found()));
}

#[test]
fn a_pack_of_which_everything_was_salvaged_goes_a_day_later_and_one_that_held_more_stays() {
    let dir = scratch();
    let (good, all) = two(&dir.path().join("source"));
    let packs = good.list(FileKind::Pack).unwrap();
    let victim = packs.iter().max_by_key(|pack| pack.size).unwrap().id;
    let data = good.read(FileKind::Pack, victim).unwrap();
    let prune = |repo: &Repository, hours: i64| {
        let now = noon() + SignedDuration::from_hours(hours);
        let grace = SignedDuration::from_hours(24);
        repo.prune_with(
            &PruneRequest { mode: Mode::Execute, grace, now, rewrite_at_most: u64::MAX },
            &Progress::default(),
        )
        .unwrap()
    };
    // Only the header is damaged: the index knows where the blobs are.
    let backend = good.snapshot();
    let mut bad = data.clone();
    bad[data.len() - 30] ^= 1;
    backend.write(FileKind::Pack, victim, &bad).unwrap();
    let repo = open(&backend);
    let report = repair(&repo);
    assert_eq!((report.damaged_packs[0].fate, report.damaged_packs[0].lost), (Fate::Replaced, 0), "{report:?}");
    assert!(report.hurt.is_empty() && backend.set_aside_files().is_empty());
    assert_eq!(repo.check(Depth::Data, &Progress::default()).unwrap().packs_waiting, 1);
    assert!(prune(&repo, 23).expired.is_empty());
    assert_eq!(backend.read(FileKind::Pack, victim).unwrap(), bad);
    assert_eq!(prune(&repo, 24).expired, [victim]);
    assert!(unverified(&repo, &all).is_empty());

    // A blob is damaged: no prune ever takes the pack.
    let backend = good.snapshot();
    bad = data;
    bad[100] ^= 1;
    backend.write(FileKind::Pack, victim, &bad).unwrap();
    let repo = open(&backend);
    let report = repair(&repo);
    assert_eq!(report.damaged_packs[0].fate, Fate::SetAside, "{report:?}");
    repo.forget(&all).unwrap();
    repo.prune(Mode::Execute, &Progress::default()).unwrap();
    assert_eq!(backend.list(FileKind::Pack).unwrap(), []);
    assert_eq!(backend.set_aside_files(), [(FileKind::Pack, victim)]);
}

#[test]
fn a_lost_index_and_a_mark_on_what_is_needed_are_repaired_from_the_packs() {
    let dir = scratch();
    let source = dir.path().join("source");
    let (backend, all) = two(&source);
    let repo = open(&backend);
    let file = backend.read(FileKind::Snapshot, all[0].0).unwrap();
    repo.forget(&all[..1]).unwrap();
    let request = PruneRequest {
        mode: Mode::Execute,
        grace: SignedDuration::from_hours(24),
        now: noon(),
        rewrite_at_most: u64::MAX,
    };
    assert!(repo.prune_with(&request, &Progress::default()).unwrap().waiting > 0);
    assert!(repair(&repo).is_nothing_to_do(), "marks of what nothing needs stay");
    // The snapshot is there again: somebody needs what was marked.
    backend.write(FileKind::Snapshot, all[0].0, &file).unwrap();
    assert!(repair(&repo).packs_found > 0);
    assert!(unverified(&repo, &all).is_empty());

    for info in backend.list(FileKind::Index).unwrap() {
        backend.remove(FileKind::Index, info.id).unwrap();
    }
    let repo = open(&backend);
    assert_eq!(unverified(&repo, &all).len(), 2);
    let report = repair(&repo);
    assert!(report.packs_found > 0 && report.hurt.is_empty(), "{report:?}");
    assert!(unverified(&repo, &all).is_empty() && checked(&repo).is_empty());
}

#[test]
fn what_can_be_read_in_pieces_only_is_salvaged_piece_by_piece() {
    let dir = scratch();
    let (good, all) = two(&dir.path().join("source"));
    let victim = good.list(FileKind::Pack).unwrap().into_iter().max_by_key(|pack| pack.size).unwrap().id;
    let faulty = FaultyBackend::new(Arc::new(good.clone()), Fault::Error, false);
    let repo = Repository::open(faulty.clone(), &password()).unwrap();
    // When nothing can be read, it is the store that is gone, and not what is on it.
    faulty.medium_gone.store(true, Ordering::SeqCst);
    let before = names(&good);
    assert!(matches!(try_repair(&repo, Mode::Execute), Err(Error::Backend(e)) if e.is_medium()));
    assert_eq!(names(&good), before);
    faulty.medium_gone.store(false, Ordering::SeqCst);
    faulty.rotten.lock().unwrap().push((victim, 100_000..100_001));
    let report = repair(&repo);
    assert_eq!(report.damaged_packs.len(), 1, "{report:?}");
    let pack = &report.damaged_packs[0];
    assert!(pack.salvaged > 0 && pack.lost == 1 && pack.fate == Fate::SetAside, "{report:?}");
    assert_eq!(good.set_aside_files(), [(FileKind::Pack, victim)]);
    assert_eq!(unverified(&open(&good), &all), ids(&report));
}

#[test]
fn what_is_read_wrongly_twice_and_then_rightly_is_not_moved() {
    let dir = scratch();
    let (good, all) = two(&dir.path().join("source"));
    for kind in [FileKind::Pack, FileKind::Index, FileKind::Snapshot] {
        for info in good.list(kind).unwrap() {
            let state = good.snapshot();
            let lying = Lying { inner: state.clone(), file: (kind, info.id), left: AtomicU64::new(2) };
            let before = names(&state);
            let repo = open(&state);
            let lying = Repository::open(Arc::new(lying), &password()).unwrap();
            let error = try_repair(&lying, Mode::Execute).unwrap_err();
            assert!(matches!(error, Error::Unsteady { .. }) && !error.is_damage(), "{kind}: {error:?}");
            assert!(names(&state).is_superset(&before) && state.set_aside_files().is_empty(), "{kind}");
            assert!(unverified(&repo, &all).is_empty() && repair(&repo).is_nothing_to_do(), "{kind}");
        }
    }
}

#[test]
fn a_snapshot_file_that_cannot_be_read_is_set_aside_and_the_others_can_be_listed_again() {
    let dir = scratch();
    let (backend, all) = two(&dir.path().join("source"));
    let mut bad = backend.read(FileKind::Snapshot, all[0].0).unwrap();
    bad[20] ^= 1;
    backend.write(FileKind::Snapshot, all[0].0, &bad).unwrap();
    let repo = open(&backend);
    assert!(repo.find(&[]).is_err());
    let report = repair(&repo);
    assert_eq!(report.damaged_snapshots, [all[0].0]);
    assert_eq!(backend.set_aside_files(), [(FileKind::Snapshot, all[0].0)]);
    assert_eq!(repo.find(&[]).unwrap().iter().map(|s| s.id).collect::<Vec<_>>(), [all[1]]);
    verify_all(&repo, all[1]);

    // What it needs stays for as long as somebody may want to read it.
    let before = names(&backend);
    let error = repo.prune(Mode::Execute, &Progress::default()).unwrap_err();
    assert!(matches!(error, Error::Damaged { id, .. } if id == all[0].0), "{error:?}");
    assert!(error.to_string().contains("damaged/snapshots"), "{error}");
    assert!(repo.prune(Mode::DryRun, &Progress::default()).is_err());
    assert_eq!(names(&backend), before);
    let kept = backend.snapshot();
    bad[20] ^= 1;
    kept.write(FileKind::Snapshot, all[0].0, &bad).unwrap();
    verify_all(&open(&kept), all[0]);
    // Given up, it holds nothing.
    backend.delete_aside(FileKind::Snapshot, all[0].0);
    assert!(repo.prune(Mode::Execute, &Progress::default()).unwrap().freed_bytes > 0);
    verify_all(&repo, all[1]);
}

#[test]
fn restic_agrees_after_a_repair_and_a_snapshot() {
    let dir = scratch();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    for n in 0..20 {
        fs::write(source.join(format!("f{n}")), corpus::noise(40_000, n)).unwrap();
    }
    let (path, repo) = local(dir.path());
    let first = archive(&repo, &source).snapshot.unwrap();
    let packs = fs::read_dir(path.join("data")).unwrap().flat_map(|d| fs::read_dir(d.unwrap().path()).unwrap());
    let victim = packs.map(|p| p.unwrap()).max_by_key(|p| p.metadata().unwrap().len()).unwrap().path();
    let mut data = fs::read(&victim).unwrap();
    data[100_000] ^= 1;
    fs::write(&victim, data).unwrap();
    let report = repair(&repo);
    assert_eq!(report.hurt.len(), 1, "{report:?}");
    assert_eq!(report.hurt[0].paths.len(), 1, "one file of twenty: {report:?}");
    assert!(!victim.exists() && path.join("damaged/data").join(victim.file_name().unwrap()).exists());
    assert!(report.damaged_packs[0].salvaged > 0, "{report:?}");
    again(&repo, &source, first);
    let text = restic(&path, &["check", "--read-data"]);
    assert!(text.contains("no errors were found"), "{text}");
    restic(&path, &["restore", &first.to_string(), "--target", dir.path().join("theirs").to_str().unwrap()]);
    compare::assert_same(&compare::snapshot(&source), &compare::snapshot(&dir.path().join("theirs/volumes/home")));
}

#[test]
fn shares_of_all_packs_come_round_and_each_finds_its_damage() {
    let dir = scratch();
    let (good, _) = two(&dir.path().join("source"));
    let of = std::num::NonZeroU64::new(3).unwrap();
    let repo = open(&good);
    let read = |repo: &Repository, turn| repo.check_share(turn, of, &Progress::default()).unwrap();
    let packs = good.list(FileKind::Pack).unwrap();
    let all: u64 = (7..10).map(|turn| read(&repo, turn).packs_read).sum();
    assert_eq!(all, packs.len() as u64);
    for pack in packs {
        let rotten = good.snapshot();
        let mut bad = good.read(FileKind::Pack, pack.id).unwrap();
        bad[50] ^= 1;
        rotten.write(FileKind::Pack, pack.id, &bad).unwrap();
        let repo = open(&rotten);
        let found: Vec<usize> = (0..3).map(|turn| read(&repo, turn).problems.len()).collect();
        assert_eq!(found.iter().sum::<usize>(), 1, "{found:?}");
        rotten.remove(FileKind::Pack, pack.id).unwrap();
        assert!((0..3).all(|turn| read(&repo, turn).problems.len() == 1), "what is missing shows every time");
    }
}

#[test]
fn a_check_names_the_packs_that_the_medium_does_not_give_and_reads_the_others() {
    let dir = scratch();
    let (good, _) = two(&dir.path().join("source"));
    let packs = good.list(FileKind::Pack).unwrap();
    let faulty = FaultyBackend::new(Arc::new(good), Fault::Error, false);
    let repo = Repository::open(faulty.clone(), &password()).unwrap();
    for pack in &packs {
        *faulty.rotten.lock().unwrap() = vec![(pack.id, 0..1)];
        let report = repo.check(Depth::Data, &Progress::default()).unwrap();
        assert_eq!(report.packs_read, packs.len() as u64);
        let named = |problem: &&Problem| matches!(problem.error, Error::Damaged { id, .. } if id == pack.id);
        assert_eq!(report.problems.iter().filter(named).count(), report.problems.len(), "{:?}", report.problems);
        assert!(report.problems.iter().any(|problem| problem.to_string().contains("cannot be read")));
    }
    faulty.medium_gone.store(true, Ordering::SeqCst);
    assert!(matches!(repo.check(Depth::Data, &Progress::default()), Err(Error::Backend(_))));
}

#[test]
fn a_crash_between_the_new_and_the_old_index_leaves_something_to_do() {
    let dir = scratch();
    let (good, all) = two(&dir.path().join("source"));
    let victim = good.list(FileKind::Pack).unwrap().into_iter().max_by_key(|pack| pack.size).unwrap().id;
    let mut data = good.read(FileKind::Pack, victim).unwrap();
    let at = data.len() - 30;
    data[at] ^= 1;
    good.write(FileKind::Pack, victim, &data).unwrap();
    let mut left_over = 0;
    for k in 0.. {
        let state = good.snapshot();
        let faulty = FaultyBackend::new(Arc::new(state.clone()), Fault::Error, true);
        let dying = Repository::open(faulty.clone(), &password()).unwrap();
        faulty.bad_change.store(k, Ordering::SeqCst);
        drop(try_repair(&dying, Mode::Execute));
        let died = faulty.changes.load(Ordering::SeqCst) as i64 > k;
        drop(dying);
        clear_locks(&state);
        let repo = open(&state);
        left_over += u64::from(!repair(&repo).is_nothing_to_do());
        // No index names it any more, so that no prune takes it for a home of its blobs.
        assert_eq!(repo.check(Depth::Data, &Progress::default()).unwrap().problems.len(), 0, "at {k}");
        assert!(unverified(&repo, &all).is_empty() && repair(&repo).is_nothing_to_do(), "at {k}");
        if !died {
            break;
        }
    }
    assert!(left_over >= 3, "{left_over}");
}
