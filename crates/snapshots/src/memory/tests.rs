use std::num::NonZeroUsize;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use perennial_core::progress::Progress;

use super::*;
use crate::{
    ArchiveRequest, Effort, Existing, Held, KeyCost, Layout, MemoryBackend, Mode, Parent, Pass, Password, Removals,
    Repository, RestoreRequest, Result, Root, Source, SpoolLimits, Verify, Writers,
};

const EVERY: [Work; 5] = [Work::Archive, Work::Restore, Work::Verify, Work::Copy, Work::Answer];

fn memory(mib: u64) -> Memory {
    Memory::new(mib << 20).expect("enough")
}

#[test]
fn what_each_work_may_keep_follows_from_one_number() {
    // MiB; of a pack, pieces of data and of trees; trees that are ready, trees that are kept and packs that wait; threads of
    // each work, in the order above.
    type Row = (u64, usize, [usize; 2], [usize; 3], [usize; 5]);
    let rows: [Row; 6] = [
        (128, 4, [8, 4], [8, 8, 8], [1, 4, 1, 1, 1]),
        (256, 8, [16, 8], [16, 16, 16], [2, 8, 3, 2, 3]),
        (512, 16, [32, 16], [32, 32, 32], [3, 17, 6, 3, 8]),
        (1024, 16, [32, 16], [64, 48, 64], [8, 37, 13, 6, 17]),
        (4096, 16, [32, 16], [128, 48, 256], [40, 155, 57, 29, 71]),
        (1 << 40, 16, [32, 16], [128, 48, 1 << 36], [0, 0, 0, 0, 0]),
    ];
    for (mib, pack, pieces, [ready, kept, spool], threads) in rows {
        let shares = Shares::of(Some(memory(mib)));
        assert_eq!(shares.pack, PackSize { bytes: pack << 20, blobs: pack << 12 }, "{mib}");
        assert_eq!(shares.pieces, pieces, "{mib}");
        let mib_of = |bytes: usize| bytes >> 20;
        assert_eq!((mib_of(shares.ready), mib_of(shares.kept)), (ready, kept), "{mib}");
        assert_eq!(mib_of(shares.spool(usize::MAX)), spool, "{mib}");
        assert_eq!(shares.spool(5), 5, "{mib}");
        if mib < 1 << 40 {
            assert_eq!(EVERY.map(|work| shares.workers(work)), threads, "{mib}");
        } else {
            assert!(EVERY.iter().all(|work| shares.workers(*work) > 1_000_000), "nothing overflows");
        }
    }
}

#[test]
fn no_bound_is_broken_by_what_is_derived_from_it_and_more_never_means_less() {
    let mut before = Shares::of(Some(Memory::LEAST));
    for mib in 128..3000 {
        let bytes = memory(mib);
        let shares = Shares::of(Some(bytes));
        for work in EVERY {
            let (all, each) = shares.cost(work, mib as usize * MIB);
            let most = all + shares.workers(work) * each;
            assert!(most as u64 <= bytes.bytes(), "{work:?} takes {most} of {mib} MiB");
            assert!(shares.spool(usize::MAX) >= before.spool(usize::MAX) && shares.ready >= before.ready);
        }
        let [_, trees] = shares.open_packs(Work::Archive);
        assert!(trees >= 1);
        before = shares;
    }
    // A prune has one thread: it reads a pack, fills two, and sends or reads back one of them.
    let (read, small) = (PackSize::default().most_bytes(), PackSize::of(0).most_bytes());
    assert!((read + 2 * CHUNK + 4 * small) as u64 <= Memory::LEAST.bytes());
}

#[test]
fn without_a_bound_nothing_is_as_it_was_not() {
    let shares = Shares::of(None);
    assert_eq!((shares.pack.bytes, shares.pack.blobs), (16 << 20, 1 << 16));
    assert_eq!((shares.pieces, shares.ready, shares.kept, shares.spool(64)), ([32, 16], 128 << 20, 48 << 20, 64));
    assert!(
        EVERY.iter().all(|work| shares.workers(*work) == usize::MAX && shares.open_packs(*work) == [usize::MAX; 2])
    );
    let effort = Effort { threads: NonZeroUsize::new(7), ..Effort::default() };
    assert_eq!(effort.workers(Work::Archive, 2, 16), 7);
    let bounded = Effort { memory: Some(Memory::LEAST), nice: 3, ..effort };
    assert_eq!((bounded.workers(Work::Archive, 2, 16), bounded.threads(2, 16)), (1, 7));
    assert_eq!(bounded.urgent(), Effort { threads: None, nice: 0, memory: Some(Memory::LEAST) });
}

#[test]
fn too_little_is_refused_with_the_least_that_works() {
    let error = Memory::new((128 << 20) - 1).expect_err("too little");
    assert_eq!(error.to_string(), "134217727 bytes are too little memory to work with");
    assert_eq!(error.hint(), format!("give {}Mi or more", Memory::LEAST.bytes() >> 20));
    assert_eq!(Memory::new(128 << 20), Ok(Memory::LEAST));
}

#[test]
fn an_account_knows_its_peak_and_ends_at_nothing() {
    let account = Arc::new(Account::default());
    let mut one = Charge::new(&account, 10);
    {
        let _two = Charge::new(&account, 5);
        one.set(7);
        assert_eq!((account.now(), account.peak()), (12, 15));
    }
    let mut nowhere = Charge::default();
    nowhere.set(1000);
    nowhere.begin(&account);
    nowhere.set(1);
    one.set(8);
    assert_eq!((account.now(), account.peak()), (9, 15));
    drop((one, nowhere));
    assert_eq!((account.now(), account.peak()), (0, 15));
}

#[test]
fn room_is_made_by_doubling_and_for_no_more_than_the_most() {
    let mut memory = Vec::new();
    make_room(&mut memory, 100, 1000);
    assert_eq!(memory.capacity(), 100);
    memory.resize(100, 0);
    make_room(&mut memory, 1, 1000);
    assert_eq!(memory.capacity(), 200);
    memory.resize(600, 0);
    make_room(&mut memory, 600, 1000);
    assert!(memory.capacity() >= 1200, "what is needed is there");
    let mut near_the_end = vec![0; 900];
    make_room(&mut near_the_end, 50, 1000);
    assert_eq!(near_the_end.capacity(), 1000);
}

struct NobodyWrites;

impl Writers for NobodyWrites {
    fn hold(&self) -> Result<()> {
        Ok(())
    }

    fn release(&self) -> Result<()> {
        Ok(())
    }
}

/// Files that make every buffer as large as it can be: what does not shrink, what does, holes, and many tiny ones.
fn fill(home: &Path) {
    let mut random = 7_u64;
    let mut noise = |length: usize| {
        let mut next = || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random
        };
        (0..length / 8).flat_map(|_| next().to_le_bytes()).collect::<Vec<u8>>()
    };
    for n in 0..3 {
        std::fs::write(home.join(format!("noise{n}")), noise(12 << 20)).expect("written");
        // The longest pieces there are: no cut is found in them.
        std::fs::write(home.join(format!("same{n}")), vec![n + 1; 24 << 20]).expect("written");
    }
    for dir in 0..20 {
        let dir = home.join(format!("d{dir}"));
        std::fs::create_dir(&dir).expect("made");
        for n in 0..100 {
            std::fs::write(dir.join(format!("{n}")), noise(48)).expect("written");
        }
    }
}

fn request(home: &Path, parents: Vec<Parent>) -> ArchiveRequest {
    let source = Source::Directory { path: home.into(), layout: Layout::Plain, exclude: vec![] };
    ArchiveRequest {
        time: jiff::Timestamp::UNIX_EPOCH,
        hostname: "test".into(),
        tags: vec![],
        parents,
        roots: vec![Root { at: "/data".into(), source }],
        pass: Pass::Commit,
        accept_losses: vec![],
    }
}

fn content(at: &Path) -> Vec<(String, u32, Vec<u8>)> {
    let mut found = Vec::new();
    let mut wanted = vec![at.to_path_buf()];
    while let Some(dir) = wanted.pop() {
        for entry in std::fs::read_dir(dir).expect("listed") {
            let path = entry.expect("an entry").path();
            let meta = std::fs::symlink_metadata(&path).expect("there");
            let name = path.strip_prefix(at).expect("below").to_string_lossy().into_owned();
            let bytes = if meta.is_dir() { Vec::new() } else { std::fs::read(&path).expect("read") };
            found.push((name, meta.permissions().mode(), bytes));
            if meta.is_dir() {
                wanted.push(path);
            }
        }
    }
    found.sort();
    found
}

#[test]
fn with_the_least_memory_everything_is_the_same_and_no_more_is_kept_in_flight() {
    let scratch = tempfile::tempdir().expect("a directory");
    let home = scratch.path().join("home");
    std::fs::create_dir(&home).expect("made");
    fill(&home);
    let progress = Progress::default();
    let effort = |memory, threads| Effort { threads: NonZeroUsize::new(threads), nice: 0, memory };
    let open = |backend: &MemoryBackend| {
        let repository = Repository::init(Arc::new(backend.clone()), &Password::new("p"), KeyCost::Test);
        repository.expect("a repository").with_effort(effort(Some(Memory::LEAST), 16))
    };
    let backend = MemoryBackend::new();
    let least = open(&backend);
    let within = |what: &str| {
        let peak = least.peak_in_flight();
        assert!(peak <= Memory::LEAST.bytes(), "{what}: {peak} bytes");
        peak
    };
    let first = least.archive(&request(&home, vec![]), &progress).expect("archived");
    let snapshot = first.snapshot.expect("a snapshot");
    // One thread at work has at least a piece of a file and a pack that is nearly full.
    assert!(within("archive") > (8 << 20) + (4 << 20));
    least.verify(snapshot, &Verify::Everything, &progress).expect("verified");
    within("verify");
    // Whoever has more finds every piece of every file there, in packs that are smaller.
    let free = Repository::open(Arc::new(backend.clone()), &Password::new("p")).expect("open");
    let free = free.with_effort(effort(None, 4));
    let again = free.archive(&request(&home, vec![]), &progress).expect("archived");
    assert_eq!(again.counts, first.counts);
    assert!(first.new_bytes > 36 << 20 && again.new_bytes < 1 << 20, "{} {}", first.new_bytes, again.new_bytes);
    assert!(
        first.written_packs.len() > 8
            && !first.written_packs.iter().any(|pack| free.inner.pack_size(*pack) > Some(12 << 20))
    );

    for n in 0..2 {
        std::fs::write(home.join(format!("noise{n}")), format!("changed {n}")).expect("written");
    }
    let held = Held { writers: &NobodyWrites, spool: SpoolLimits { memory: 1 << 30, directory: None } };
    let second =
        least.archive_held(&request(&home, vec![Parent::Snapshot(snapshot)]), &held, &progress).expect("archived");
    let snapshot = second.snapshot.expect("a snapshot");
    within("a frozen archive");
    least.verify(snapshot, &Verify::Written { packs: second.written_packs }, &progress).expect("verified");
    let target = scratch.path().join("restored");
    std::fs::create_dir(&target).expect("made");
    let restore = RestoreRequest {
        subtree: "/data".into(),
        target: target.clone(),
        existing: Existing::MustBeEmpty,
        removals: Removals::Ignore,
        against_lower: None,
    };
    least.restore(snapshot, &restore, &progress).expect("restored");
    within("restore");
    assert!(content(&target) == content(&home));

    let copies = open(&MemoryBackend::new());
    let copied = copies.copy_from(&least, &[snapshot], &progress).expect("copied");
    assert_eq!(copied.snapshots.len(), 1);
    // What is read and what is written is one piece of work on two handles.
    let both = copies.peak_in_flight() + least.peak_in_flight();
    assert!(copies.peak_in_flight() > 4 << 20 && both <= 2 * Memory::LEAST.bytes(), "{both}");

    least.forget(&[first.snapshot, again.snapshot].map(|snapshot| snapshot.expect("a snapshot"))).expect("forgotten");
    least.prune(Mode::Execute, &progress).expect("pruned");
    within("prune");
    least.verify(snapshot, &Verify::Everything, &progress).expect("verified");
    assert_eq!(least.inner.account.now(), 0, "nothing is kept when nothing is done");
}
