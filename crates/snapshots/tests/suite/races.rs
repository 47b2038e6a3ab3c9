//! Somebody hostile rearranges directories while they are captured, restored or deleted. Nothing outside is ever read
//! or changed.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::support::*;
use perennial_core::progress::Progress;
use perennial_snapshots::*;

const SECRET: &[u8] = b"outside: never to be seen in a snapshot";

struct Attack {
    stop: Arc<AtomicBool>,
    swaps: Arc<AtomicU64>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Attack {
    /// Swaps an entry for a link to `outside` (and a file for a link or a pipe) and back, as fast as it can.
    fn start(victim: PathBuf, outside: PathBuf) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let swaps = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&swaps);
        let thread = std::thread::spawn(move || {
            let aside = victim.with_extension("aside");
            let file = victim.join("file");
            while !stopped.load(Ordering::Relaxed) {
                let _ = fs::rename(&victim, &aside);
                let _ = symlink(&outside, &victim);
                std::thread::yield_now();
                let _ = fs::remove_file(&victim);
                let _ = fs::rename(&aside, &victim);
                let _ = fs::remove_file(&file);
                let _ = symlink(outside.join("file"), &file);
                std::thread::yield_now();
                let _ = fs::remove_file(&file);
                let _ =
                    rustix::fs::mknodat(rustix::fs::CWD, &file, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0);
                std::thread::yield_now();
                let _ = fs::remove_file(&file);
                let _ = fs::write(&file, b"changed");
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { stop, swaps, thread: Some(thread) }
    }

    fn stop(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

fn outside(dir: &Path) -> PathBuf {
    let outside = dir.join("outside");
    fs::create_dir_all(outside.join("sub")).unwrap();
    fs::write(outside.join("file"), SECRET).unwrap();
    fs::write(outside.join("sub/canary"), SECRET).unwrap();
    corpus::set_mtime(&outside.join("file"), 1, 0);
    corpus::set_mtime(&outside.join("sub"), 1, 0);
    corpus::set_mtime(&outside, 1, 0);
    outside
}

fn volume(path: &Path) {
    for n in 0..20 {
        fs::create_dir_all(path.join(format!("d{n:02}/sub"))).unwrap();
        fs::write(path.join(format!("d{n:02}/file")), b"inside").unwrap();
        fs::write(path.join(format!("d{n:02}/sub/canary")), b"inside").unwrap();
    }
}

/// Goes on until both sides had many turns, however slow the machine is; both counts are bounded.
fn while_attacked(attack: &Attack, mut step: impl FnMut(u32)) {
    let mut rounds = 0;
    while rounds < 20 || attack.swaps.load(Ordering::Relaxed) < 200 {
        step(rounds);
        rounds += 1;
        assert!(rounds < 100_000, "the attacker does not get on");
        std::thread::yield_now();
    }
}

#[test]
fn a_capture_never_reads_outside() {
    let dir = scratch();
    let outside = outside(dir.path());
    let source = dir.path().join("source");
    volume(&source);
    let before = compare::snapshot(&outside);
    let (_, repo) = memory();
    let attack = Attack::start(source.join("d10"), outside.clone());
    let (mut complete, mut refused) = (0, 0);
    while_attacked(&attack, |round| {
        let pass = if round % 2 == 0 { Pass::Live } else { Pass::Commit };
        match repo.archive(&ArchiveRequest { pass, ..request(&source) }, &Progress::default()) {
            Ok(_) => complete += 1,
            Err(Error::Incomplete { .. }) => refused += 1,
            Err(e) => panic!("{e}: {:?}", std::error::Error::source(&e)),
        }
    });
    attack.stop();
    assert!(complete + refused >= 20, "{complete} complete, {refused} refused");
    for snapshot in repo.find(&[]).unwrap() {
        for n in 0..20 {
            for file in ["file", "sub/canary"] {
                let path = format!("/volumes/home/d{n:02}/{file}");
                if let Ok(data) = repo.read_file(snapshot.id, &path) {
                    assert_ne!(data, SECRET, "{path}");
                }
            }
        }
    }
    compare::assert_same(&before, &compare::snapshot(&outside));
}

/// The hash of what is outside would tell whoever may only look at the pod whether he guessed it.
#[test]
fn a_look_never_reads_outside() {
    let dir = scratch();
    let outside = outside(dir.path());
    let source = dir.path().join("source");
    volume(&source);
    let before = compare::snapshot(&outside);
    let (_, repo) = memory();
    let snapshot = archive(&repo, &source).snapshot.unwrap();
    let attack = Attack::start(source.join("d10"), outside.clone());
    while_attacked(&attack, |_| {
        let sketch = repo.sketch(dir.path(), u64::MAX).unwrap();
        let parents = vec![Parent::Snapshot(snapshot)];
        let live = ArchiveRequest { pass: Pass::Live, parents, ..request(&source) };
        let tree = sketch.archive(&live, &Progress::default()).unwrap().tree;
        for n in 0..20 {
            for file in ["file", "sub/canary"] {
                let path = format!("/volumes/home/d{n:02}/{file}");
                if let Ok(found) = sketch.entry(tree, path.as_bytes()) {
                    assert_ne!(found.content, [Id::of(SECRET)], "{path}");
                }
            }
        }
    });
    attack.stop();
    compare::assert_same(&before, &compare::snapshot(&outside));
}

#[test]
fn a_restore_never_writes_outside() {
    let dir = scratch();
    let outside = outside(dir.path());
    let (source, target) = (dir.path().join("source"), dir.path().join("target"));
    volume(&source);
    let (_, repo) = memory();
    let snapshot = archive(&repo, &source).snapshot.unwrap();
    let before = compare::snapshot(&outside);
    volume(&target);
    let attack = Attack::start(target.join("d10"), outside.clone());
    let (mut done, mut failed) = (0, 0);
    while_attacked(&attack, |round| {
        // Something to write, something to delete, and other owners, each time.
        // Only in directories that are not attacked, for this test's own calls would follow the link.
        fs::write(target.join(format!("d0{}/extra", round % 10)), b"x").unwrap();
        let _ = fs::remove_file(target.join(format!("d1{}/sub/canary", 1 + round % 9)));
        let request = RestoreRequest { existing: Existing::Replace, ..restore_request(&target) };
        match repo.restore(snapshot, &request, &Progress::default()) {
            Ok(_) => done += 1,
            Err(Error::Io { .. }) => failed += 1,
            Err(e) => panic!("{e}"),
        }
    });
    attack.stop();
    assert!(done + failed >= 20, "{done} done, {failed} failed");
    compare::assert_same(&before, &compare::snapshot(&outside));
    // When the attack is over, the same restore repairs everything.
    let request = RestoreRequest { existing: Existing::Replace, ..restore_request(&target) };
    repo.restore(snapshot, &request, &Progress::default()).unwrap();
    compare::assert_same(&compare::snapshot(&source), &compare::snapshot(&target));
}

#[test]
fn a_removal_never_deletes_outside() {
    let dir = scratch();
    let outside = outside(dir.path());
    let (empty, target) = (dir.path().join("empty"), dir.path().join("target"));
    fs::create_dir(&empty).unwrap();
    let (_, repo) = memory();
    let snapshot = archive(&repo, &empty).snapshot.unwrap();
    let before = compare::snapshot(&outside);
    fs::create_dir(&target).unwrap();
    let attack = Attack::start(target.join("d10"), outside.clone());
    while_attacked(&attack, |_| {
        let _ = fs::create_dir_all(target.join("d10/sub/deeper"));
        let _ = fs::write(target.join("d10/sub/f"), b"x");
        let request = RestoreRequest { existing: Existing::Replace, ..restore_request(&target) };
        let _ = repo.restore(snapshot, &request, &Progress::default());
    });
    attack.stop();
    let after = compare::snapshot(&outside);
    // The test's own `create_dir_all` follows links; what was there before must still be there.
    for (path, item) in before.iter().filter(|(_, item)| item.kind == 'f') {
        assert_eq!(Some(&item.content), after.get(path).map(|i| &i.content), "{}", path.display());
    }
}

/// Writes the file anew whenever a pack is written, and a file this large fills one each time it is read.
fn change_at_each_pack(busy: PathBuf, times: u64) -> impl Fn(FileKind) + Send + Sync {
    let round = std::sync::atomic::AtomicU64::new(1);
    move |kind| {
        if kind == FileKind::Pack && round.load(Ordering::SeqCst) <= times {
            fs::write(&busy, corpus::noise(36 << 20, round.fetch_add(1, Ordering::SeqCst))).unwrap();
        }
    }
}

#[test]
fn a_file_that_changes_while_it_is_read_is_read_again_or_a_loss_and_pipes_never_block() {
    let dir = scratch();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    let busy = source.join("busy");
    fs::write(&busy, corpus::noise(36 << 20, 0)).unwrap();
    let mode = rustix::fs::Mode::RUSR;
    rustix::fs::mknodat(rustix::fs::CWD, source.join("pipe"), rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let over = |backend: Arc<dyn Backend>, times: u64, pass: Pass| {
        let hooked = faulty::HookedBackend::new(backend, change_at_each_pack(busy.clone(), times));
        let repo = Repository::open(hooked, &password()).unwrap();
        let result = repo.archive(&ArchiveRequest { pass, ..request(&source) }, &Progress::default());
        (repo, result)
    };
    let run = |times: u64, pass: Pass| over(Arc::new(memory().0), times, pass);
    // Each time: a live pass takes what it gets, a commit gives up.
    assert_eq!(run(u64::MAX, Pass::Live).1.unwrap().losses, vec![]);
    let (repo, result) = run(u64::MAX, Pass::Commit);
    let Err(Error::Incomplete { losses }) = result else { panic!("{result:?}") };
    assert_eq!(losses, [Loss { path: "/volumes/home/busy".into(), reason: LossReason::Changed }]);
    assert!(repo.find(&[]).unwrap().is_empty());
    // Once: it is read again, and restic finds nothing wrong with that.
    let (path, _) = local(dir.path());
    let (repo, result) = over(Arc::new(LocalBackend::new(&path)), 1, Pass::Commit);
    let target = dir.path().join("target");
    restore(&repo, result.unwrap().snapshot.unwrap(), &target);
    compare::assert_same(&compare::snapshot(&source), &compare::snapshot(&target));
    let text = restic(&path, &["check", "--read-data"]);
    assert!(text.contains("no errors were found"), "{text}");
    let theirs = dir.path().join("theirs");
    restic(&path, &["restore", "latest", "--target", theirs.to_str().unwrap()]);
    assert!(fs::read(theirs.join("volumes/home/busy")).unwrap() == fs::read(&busy).unwrap());
}

#[test]
fn a_mount_inside_is_a_loss() {
    let dir = scratch();
    let source = dir.path().join("source");
    fs::create_dir_all(source.join("mnt")).unwrap();
    let flags = rustix::mount::MountFlags::NODEV;
    rustix::mount::mount("none", source.join("mnt"), "tmpfs", flags, None).unwrap();
    fs::write(source.join("mnt/file"), SECRET).unwrap();
    let (_, repo) = memory();
    let result = repo.archive(&request(&source), &Progress::default());
    rustix::mount::unmount(source.join("mnt"), rustix::mount::UnmountFlags::DETACH).unwrap();
    let Err(Error::Incomplete { losses }) = result else { panic!("{result:?}") };
    assert_eq!(losses, [Loss { path: "/volumes/home/mnt".into(), reason: LossReason::Mount }]);
}
