//! Captures that read from a copy which was made while writers were held: what is in them, and what is not silently missing.
#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs, reason = "tests")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::support::*;
use perennial_core::progress::Progress;
use perennial_snapshots::*;

/// Writers whose directories are copied, and who write in the originals as soon as they go on.
struct Copied<'a> {
    /// Makes the copies.
    copy: &'a (dyn Fn() -> Vec<(PathBuf, PathBuf)> + Sync),
    later: &'a (dyn Fn() + Sync),
    keep: Arc<()>,
    /// Somebody let them go on too early.
    broken: bool,
    released: AtomicBool,
    /// How often the copies were held when the writers went on.
    kept: Mutex<usize>,
}

impl<'a> Copied<'a> {
    fn new(copy: &'a (dyn Fn() -> Vec<(PathBuf, PathBuf)> + Sync), later: &'a (dyn Fn() + Sync)) -> Self {
        let (released, kept) = (AtomicBool::new(false), Mutex::default());
        Self { copy, later, keep: Arc::new(()), broken: false, released, kept }
    }
}

impl Writers for Copied<'_> {
    fn hold(&self) -> Result<()> {
        Ok(())
    }

    fn copies(&self) -> Option<Copies> {
        assert!(!self.released.load(Ordering::SeqCst));
        Some(Copies { places: (self.copy)(), keep: Box::new(Arc::clone(&self.keep)) })
    }

    fn release(&self) -> Result<()> {
        self.released.store(true, Ordering::SeqCst);
        *self.kept.lock().unwrap() = Arc::strong_count(&self.keep) - 1;
        (self.later)();
        if self.broken { Err(Error::NotHeld { problem: "somebody let them go".into() }) } else { Ok(()) }
    }
}

fn held<'a>(writers: &'a Copied<'_>) -> Held<'a> {
    Held { writers, spool: SpoolLimits { memory: 64 << 20, directory: None } }
}

/// Waits until the files made so far are old enough to be told from later changes: their times are the kernel's.
fn settle(path: &Path) {
    let probe = path.join(".probe");
    let start = std::time::Instant::now();
    while start.elapsed() < std::time::Duration::from_millis(45) {
        fs::write(&probe, b"").unwrap();
    }
    fs::remove_file(&probe).unwrap();
}

fn run(command: &str, arguments: &[&Path]) {
    let words: Vec<&str> = command.split(' ').collect();
    assert!(Command::new(words[0]).args(&words[1..]).args(arguments).status().unwrap().success(), "{command}");
}

#[test]
fn what_was_copied_is_read_after_the_writers_went_on_and_the_rest_before() {
    let dir = scratch();
    let (home, layer, copy) = (dir.path().join("home"), dir.path().join("layer"), dir.path().join("copy"));
    corpus::make(&home);
    for n in 0..50 {
        fs::create_dir_all(layer.join(n.to_string())).unwrap();
        fs::write(layer.join(format!("{n}/file")), n.to_string()).unwrap();
    }
    let request = ArchiveRequest {
        roots: vec![root("/volumes/home", &home, Layout::Plain), root("/system", &layer, Layout::Plain)],
        ..request(&home)
    };
    let copies = || {
        run("cp -a", &[&home, &copy]);
        vec![(home.clone(), copy.clone())]
    };
    let later = || {
        fs::write(home.join("later"), "later").unwrap();
        fs::remove_file(home.join("large")).unwrap();
        fs::write(layer.join("later"), "later").unwrap();
    };
    let before = (compare::snapshot(&home), compare::snapshot(&layer));
    let writers = Copied::new(&copies, &later);
    let (_, repo) = memory();
    let archived = repo.archive_held(&request, &held(&writers), &Progress::default()).unwrap();
    assert_eq!((*writers.kept.lock().unwrap(), Arc::strong_count(&writers.keep)), (1, 1));
    let snapshot = archived.snapshot.unwrap();
    assert_eq!(verify_all(&repo, snapshot).counts, archived.counts);
    for (at, before) in [("/volumes/home", before.0), ("/system", before.1)] {
        let target = dir.path().join(at.replace('/', "-"));
        let request = RestoreRequest {
            subtree: at.to_owned(),
            target: target.clone(),
            existing: Existing::Keep,
            removals: Removals::Ignore,
            against_lower: None,
        };
        fs::create_dir(&target).unwrap();
        repo.restore(snapshot, &request, &Progress::default()).unwrap();
        compare::assert_same(&before, &compare::snapshot(&target));
    }
}

#[test]
fn a_copy_of_no_instant_or_one_that_went_away_makes_no_snapshot() {
    let dir = scratch();
    let (home, copy) = (dir.path().join("home"), dir.path().join("copy"));
    corpus::make(&home);
    let (_, repo) = memory();
    let copies = || {
        run("cp -a", &[&home, &copy]);
        vec![(home.clone(), copy.clone())]
    };
    let writers = Copied { broken: true, ..Copied::new(&copies, &|| ()) };
    let refused = repo.archive_held(&request(&home), &held(&writers), &Progress::default());
    assert!(matches!(refused, Err(Error::NotHeld { .. })), "{refused:?}");
    let gone = || vec![(home.clone(), dir.path().join("gone"))];
    let writers = Copied::new(&gone, &|| ());
    assert!(repo.archive_held(&request(&home), &held(&writers), &Progress::default()).is_err());
    assert!(repo.find(&[]).unwrap().is_empty());
    assert_eq!(Arc::strong_count(&writers.keep), 1);
}

/// A btrfs of its own; unmounted when dropped.
struct Btrfs(PathBuf, PathBuf);

impl Btrfs {
    fn mount(at: PathBuf) -> Option<Self> {
        let Some(script) = std::env::var_os("PERENNIAL_TEST_LOOPFS_SCRIPT").map(PathBuf::from) else {
            assert!(std::env::var_os("PERENNIAL_TEST_REQUIRE").is_none(), "PERENNIAL_TEST_LOOPFS_SCRIPT: ./dev env");
            eprintln!("skipped: PERENNIAL_TEST_LOOPFS_SCRIPT is not set");
            return None;
        };
        assert!(Command::new(&script).args(["mount", "btrfs"]).arg(&at).status().unwrap().success());
        Some(Self(script, at))
    }
}

impl Drop for Btrfs {
    fn drop(&mut self) {
        let _ = Command::new(&self.0).arg("umount").arg(&self.1).status();
    }
}

/// What a snapshot of btrfs keeps vouches for a file, and what it does not keep makes none look changed; a subvolume that is not in
/// it is a loss and no empty directory.
#[test]
fn a_snapshot_of_btrfs_reads_what_changed_and_misses_nothing_in_silence() {
    let dir = scratch();
    let Some(disk) = Btrfs::mount(dir.path().join("disk")) else { return };
    let (set, copy) = (disk.1.join("set"), disk.1.join("copy"));
    run("btrfs -q subvolume create", &[&set]);
    let home = set.join("home");
    corpus::make(&home);
    for n in 0..50 {
        fs::create_dir_all(home.join(format!("linked/{n}"))).unwrap();
        fs::write(home.join(format!("linked/{n}/a")), format!("{n}")).unwrap();
        fs::hard_link(home.join(format!("linked/{n}/a")), home.join(format!("linked/{n}/b"))).unwrap();
    }
    settle(&home);
    let (_, repo) = memory();
    let live = repo.archive(&ArchiveRequest { pass: Pass::Live, ..request(&home) }, &Progress::default()).unwrap();
    let copies = || {
        run("btrfs -q subvolume snapshot -r", &[&set, &copy]);
        vec![(home.clone(), copy.join("home"))]
    };
    let again = |parent: Parent| {
        let writers = Copied::new(&copies, &|| ());
        let request = ArchiveRequest { parents: vec![parent], ..request(&home) };
        let archived = repo.archive_held(&request, &held(&writers), &Progress::default());
        run("btrfs -q subvolume delete", &[&copy]);
        archived
    };
    let first = again(Parent::Tree(live.tree)).unwrap();
    assert_eq!(first.read_bytes, 0, "what did not change was read again");
    // Of each copy the device number is another, and nothing else.
    let same = again(Parent::Snapshot(first.snapshot.unwrap())).unwrap();
    assert_eq!((same.read_bytes, same.tree), (0, first.tree), "what did not change is another tree");
    // Same size, and the modification time put back: only the change time tells.
    let victim = home.join("large");
    fs::write(&victim, corpus::noise(5 << 20, 9)).unwrap();
    corpus::set_mtime(&victim, 1_234_567_890, 123_456_789);
    let second = again(Parent::Snapshot(same.snapshot.unwrap())).unwrap();
    assert_eq!(second.read_bytes, 5 << 20);
    let target = dir.path().join("target");
    restore(&repo, second.snapshot.unwrap(), &target);
    compare::assert_same(&compare::snapshot(&home), &compare::snapshot(&target));
    let nested = home.join("linked/7/nested");
    run("btrfs -q subvolume create", &[&nested]);
    fs::write(nested.join("file"), "x").unwrap();
    let Err(Error::Incomplete { losses }) = again(Parent::Snapshot(second.snapshot.unwrap())) else {
        panic!("it is not complete")
    };
    assert_eq!(losses, [Loss { path: "/volumes/home/linked/7/nested".into(), reason: LossReason::Subvolume }]);
}
