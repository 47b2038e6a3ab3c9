//! Passes that compare with earlier ones, losses, and what a restore does to existing entries.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use crate::support::*;
use perennial_core::progress::Progress;
use perennial_snapshots::*;

fn again(repo: &Repository, path: &Path, parents: Vec<Parent>, pass: Pass) -> Archived {
    repo.archive(&ArchiveRequest { parents, pass, ..request(path) }, &Progress::default()).unwrap()
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

#[test]
fn unchanged_files_are_not_read_again_and_changed_ones_are() {
    let dir = scratch();
    let source = dir.path().join("source");
    corpus::make(&source);
    settle(&source);
    let (_, repo) = memory();
    let live = again(&repo, &source, vec![], Pass::Live);
    assert_eq!(live.snapshot, None);
    assert!(repo.find(&[]).unwrap().is_empty());
    // Same size, and the modification time put back: only the change time tells.
    let victim = source.join("large");
    fs::write(&victim, corpus::noise(5 << 20, 9)).unwrap();
    corpus::set_mtime(&victim, 1_234_567_890, 123_456_789);
    let done = again(&repo, &source, vec![Parent::Tree(live.tree)], Pass::Commit);
    assert_eq!(done.read_bytes, 5 << 20);
    let snapshot = done.snapshot.unwrap();
    let packs = [live.written_packs, done.written_packs].concat();
    let verified = repo.verify(snapshot, &Verify::Written { packs }, &Progress::default()).unwrap();
    assert_eq!(verified.counts, done.counts);
    let target = dir.path().join("target");
    restore(&repo, snapshot, &target);
    compare::assert_same(&compare::snapshot(&source), &compare::snapshot(&target));
    settle(&source);
    let third = again(&repo, &source, vec![Parent::Snapshot(snapshot)], Pass::Commit);
    let fourth = again(&repo, &source, vec![Parent::Snapshot(third.snapshot.unwrap())], Pass::Commit);
    assert_eq!(fourth.read_bytes, 0);
    assert_eq!(
        repo.ls(third.snapshot.unwrap(), "/volumes/home").unwrap(),
        repo.ls(fourth.snapshot.unwrap(), "/volumes/home").unwrap()
    );
}

/// Writes over pages all over a file, which keeps its size.
fn scatter(path: &Path, seed: u64) {
    use std::os::unix::fs::FileExt;
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    for page in 0..8 {
        file.write_all_at(&corpus::noise(4096, seed + page), (page * 250 + 3) * 4096).unwrap();
    }
}

#[test]
fn scattered_pages_of_databases_and_of_files_changed_in_place_cost_little() {
    let dir = scratch();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    let (database, image) = (source.join("state.db"), source.join("disk.img"));
    fs::write(&database, [b"SQLite format 3\0", &corpus::noise(8 << 20, 1)[..]].concat()).unwrap();
    fs::write(&image, corpus::noise(8 << 20, 2)).unwrap();
    let (_, repo) = memory();
    let mut parents = vec![];
    // Eight changed pages make as many chunks of 32 KiB, and a little for lists and trees.
    let little = 8 * (32 << 10) + (128 << 10);
    for round in 0..3 {
        settle(&source);
        let done = again(&repo, &source, parents, Pass::Commit);
        parents = vec![Parent::Snapshot(done.snapshot.unwrap())];
        // The image is only known to change in place once it was seen to.
        let most = match round {
            0 => u64::MAX,
            1 => (8 << 20) + 2 * little,
            _ => 2 * little,
        };
        assert!(done.new_bytes <= most, "round {round}: {} bytes", done.new_bytes);
        let target = dir.path().join(format!("target{round}"));
        restore(&repo, done.snapshot.unwrap(), &target);
        compare::assert_same(&compare::snapshot(&source), &compare::snapshot(&target));
        scatter(&database, 100 + round * 20);
        scatter(&image, 200 + round * 20);
    }
}

#[test]
fn a_change_within_the_clocks_granularity_is_found() {
    let dir = scratch();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    let (_, repo) = memory();
    let mut parents = vec![];
    for round in 0..30_u8 {
        // Same length each time, so that only the times could tell.
        fs::write(source.join("f"), [round; 100]).unwrap();
        let done = again(&repo, &source, parents, Pass::Commit);
        fs::write(source.join("f"), [round + 100; 100]).unwrap();
        let next = again(&repo, &source, vec![Parent::Tree(done.tree)], Pass::Commit);
        let read = repo.read_file(next.snapshot.unwrap(), "/volumes/home/f").unwrap();
        assert_eq!(read, [round + 100; 100]);
        parents = vec![Parent::Tree(next.tree)];
    }
}

#[test]
fn p14_a_partial_snapshot_is_never_listed() {
    // ext4 has no such large files.
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let source = dir.path().join("source");
    fs::create_dir_all(source.join("keep")).unwrap();
    fs::write(source.join("keep/file"), b"kept").unwrap();
    // Too large to be stored: the one loss that root cannot avoid.
    fs::File::create(source.join("huge")).unwrap().set_len(17 << 40).unwrap();
    let (_, repo) = memory();
    let mut request = request(&source);
    let Err(Error::Incomplete { losses }) = repo.archive(&request, &Progress::default()) else { panic!("complete") };
    assert_eq!(losses, [Loss { path: "/volumes/home/huge".into(), reason: LossReason::TooLarge }]);
    assert!(repo.find(&[]).unwrap().is_empty(), "what is incomplete is no snapshot");
    // An acceptance is for exactly this path and reason.
    request.accept_losses = vec![Loss { path: "/volumes/home/huge".into(), reason: LossReason::Vanished }];
    assert!(repo.archive(&request, &Progress::default()).is_err());
    request.accept_losses = losses.clone();
    let archived = repo.archive(&request, &Progress::default()).unwrap();
    assert_eq!(archived.losses, losses);
    verify_all(&repo, archived.snapshot.unwrap());
    restore(&repo, archived.snapshot.unwrap(), &dir.path().join("target"));
    assert_eq!(fs::read(dir.path().join("target/keep/file")).unwrap(), b"kept");
}

#[test]
fn p15_a_missing_source_is_an_error_and_never_an_empty_snapshot() {
    let dir = scratch();
    let (_, repo) = memory();
    fs::write(dir.path().join("file"), b"not a directory").unwrap();
    fs::create_dir(dir.path().join("real")).unwrap();
    symlink("real", dir.path().join("link")).unwrap();
    for missing in ["nowhere", "file", "link"] {
        let result = repo.archive(&request(&dir.path().join(missing)), &Progress::default());
        assert!(matches!(result, Err(Error::Io { .. })), "{missing}: {result:?}");
    }
    assert!(repo.find(&[]).unwrap().is_empty());
}

#[test]
fn p24_nothing_is_restored_into_a_full_directory_unless_asked() {
    let dir = scratch();
    let (source, target) = (dir.path().join("source"), dir.path().join("target"));
    corpus::make(&source);
    let (_, repo) = memory();
    let snapshot = archive(&repo, &source).snapshot.unwrap();
    fs::create_dir(&target).unwrap();
    fs::write(target.join("stale"), b"old").unwrap();
    let request = restore_request(&target);
    let refused = repo.restore(snapshot, &request, &Progress::default());
    assert!(matches!(refused, Err(Error::TargetNotEmpty { .. })), "{refused:?}");
    assert_eq!(compare::snapshot(&target).len(), 2, "nothing was touched");
    // Keep adds beside what is there.
    let keep = RestoreRequest { existing: Existing::Keep, ..request.clone() };
    repo.restore(snapshot, &keep, &Progress::default()).unwrap();
    assert_eq!(fs::read(target.join("stale")).unwrap(), b"old");
    // Replace makes it exactly the snapshot, whatever was there.
    let replace = RestoreRequest { existing: Existing::Replace, ..request };
    spoil(&target);
    let done = repo.restore(snapshot, &replace, &Progress::default()).unwrap();
    assert!(done.unchanged_files > 3 && done.removed_entries > 0, "{done:?}");
    compare::assert_same(&compare::snapshot(&source), &compare::snapshot(&target));
    let idle = repo.restore(snapshot, &replace, &Progress::default()).unwrap();
    assert_eq!((idle.written_bytes, idle.removed_entries), (0, 0));
    compare::assert_same(&compare::snapshot(&source), &compare::snapshot(&target));
}

/// Changes a restored corpus in every way.
fn spoil(target: &Path) {
    let at = |p: &str| target.join(p);
    fs::write(at("small"), b"SMALL FILE\n").unwrap();
    fs::set_permissions(at("text"), fs::Permissions::from_mode(0o777)).unwrap();
    fs::remove_file(at("hard2")).unwrap();
    fs::write(at("hard2"), b"no more a link").unwrap();
    fs::remove_file(at("link")).unwrap();
    symlink("elsewhere", at("link")).unwrap();
    fs::remove_file(at("fifo")).unwrap();
    fs::create_dir(at("fifo")).unwrap();
    fs::write(at("fifo/inside"), b"x").unwrap();
    fs::remove_dir_all(at("a/b/c")).unwrap();
    fs::write(at("a/b/c"), b"was a directory").unwrap();
    fs::create_dir_all(at("extra/deep/tree")).unwrap();
    fs::hard_link(at("zeros"), at("extra/link to zeros")).unwrap();
    corpus::xattr(&at("dir"), "trusted.new", b"new");
}

#[test]
fn deep_trees_need_neither_stack_nor_descriptors() {
    let dir = scratch();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    let mut fd = rustix::fs::open(&source, rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
    for _ in 0..3000 {
        rustix::fs::mkdirat(&fd, "d", rustix::fs::Mode::RWXU).unwrap();
        fd = rustix::fs::openat(&fd, "d", rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
    }
    let (_, repo) = memory();
    let archived = archive(&repo, &source);
    assert_eq!(archived.per_root[0].counts.dirs, 3001);
    let snapshot = archived.snapshot.unwrap();
    let target = dir.path().join("target");
    assert_eq!(restore(&repo, snapshot, &target).counts.dirs, 3001);
    // And gone again, through the removal of extra entries.
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let nothing = archive(&repo, &empty).snapshot.unwrap();
    let replace = RestoreRequest { existing: Existing::Replace, ..restore_request(&target) };
    repo.restore(nothing, &replace, &Progress::default()).unwrap();
    assert_eq!(fs::read_dir(&target).unwrap().count(), 0);
    repo.restore(nothing, &RestoreRequest { target: source, ..replace }, &Progress::default()).unwrap();
}

#[test]
fn two_roots_excludes_and_bad_requests() {
    let dir = scratch();
    let source = dir.path().join("source");
    corpus::make(&source);
    let (_, repo) = memory();
    let mut good = request(&source);
    good.roots.push(Root {
        at: "/volumes/etc".into(),
        source: Source::Directory {
            path: source.clone(),
            layout: Layout::Plain,
            exclude: vec!["a/b".into(), "large".into(), "dir/".into()],
        },
    });
    let archived = repo.archive(&good, &Progress::default()).unwrap();
    let names: Vec<_> =
        repo.ls(archived.snapshot.unwrap(), "/volumes/etc").unwrap().into_iter().map(|e| e.name).collect();
    assert!(!names.contains(&b"large".to_vec()) && !names.contains(&b"dir".to_vec()) && names.contains(&b"a".to_vec()));
    assert!(repo.ls(archived.snapshot.unwrap(), "/volumes/etc/a").unwrap().is_empty());
    for at in ["volumes/x", "/", "/a/../b", "/a//b", "", "/volumes/home", "/volumes", "/volumes/home/x"] {
        let mut bad = request(&source);
        bad.roots.push(Root { at: at.into(), source: Source::Bytes { data: vec![], mode: 0 } });
        assert!(matches!(repo.archive(&bad, &Progress::default()), Err(Error::InvalidRequest(_))), "{at}");
    }
    let bad = ArchiveRequest { tags: vec!["a,b".into()], ..request(&source) };
    assert!(repo.archive(&bad, &Progress::default()).is_err());
}

#[test]
fn cancellation_leaves_no_snapshot_and_no_lock() {
    let dir = scratch();
    let source = dir.path().join("source");
    corpus::make(&source);
    let (backend, repo) = memory();
    let progress = Progress::default();
    progress.cancel();
    assert!(matches!(repo.archive(&request(&source), &progress), Err(Error::Cancelled)));
    let snapshot = archive(&repo, &source).snapshot.unwrap();
    assert!(matches!(repo.verify(snapshot, &Verify::Everything, &progress), Err(Error::Cancelled)));
    let target = dir.path().join("target");
    assert!(matches!(repo.restore(snapshot, &restore_request(&target), &progress), Err(Error::Cancelled)));
    assert!(!target.exists());
    assert!(backend.list(FileKind::Lock).unwrap().is_empty());
}

#[test]
fn a_part_of_a_snapshot_lives_on_in_another_when_the_first_is_gone() {
    let dir = scratch();
    let source = dir.path().join("source");
    corpus::make(&source);
    let (_, repo) = memory();
    let first = archive(&repo, &source).snapshot.unwrap();
    let stored = |path: &str, at: &str| Root {
        at: at.to_owned(),
        source: Source::Stored { snapshot: first, path: path.to_owned() },
    };
    let roots = vec![stored("/volumes/home", "/system"), stored("/volumes/home/large", "/copies/large")];
    let part = repo.archive(&ArchiveRequest { roots, ..request(&source) }, &Progress::default()).unwrap();
    assert_eq!(part.read_bytes, 0);
    let part = part.snapshot.unwrap();
    let expected = compare::snapshot(&source);
    repo.forget(&[first]).unwrap();
    repo.prune(Mode::Execute, &Progress::default()).unwrap();
    verify_all(&repo, part);
    let target = dir.path().join("target");
    let wanted = RestoreRequest { subtree: "/system".to_owned(), ..restore_request(&target) };
    repo.restore(part, &wanted, &Progress::default()).unwrap();
    compare::assert_same(&expected, &compare::snapshot(&target));
    assert_eq!(repo.read_file(part, "/copies/large").unwrap(), fs::read(source.join("large")).unwrap());
    let gone = ArchiveRequest { roots: vec![stored("/volumes/home", "/system")], ..request(&source) };
    assert!(matches!(repo.archive(&gone, &Progress::default()), Err(Error::NotFound { .. })));
}

#[test]
fn a_directory_of_a_snapshot_gets_other_entries_in_the_next() {
    let dir = scratch();
    let source = dir.path().join("source");
    fs::create_dir_all(source.join("kept/deep")).unwrap();
    fs::create_dir_all(source.join("omitted")).unwrap();
    fs::write(source.join("kept/deep/file"), "kept").unwrap();
    fs::write(source.join("replaced"), "before").unwrap();
    fs::write(source.join("omitted/file"), "omitted").unwrap();
    let other = dir.path().join("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("file"), "other").unwrap();
    let (_, repo) = memory();
    let roots = vec![root("/system", &source, Layout::Plain), root("/volumes/usr", &other, Layout::Plain)];
    let first = repo.archive(&ArchiveRequest { roots, ..request(&source) }, &Progress::default()).unwrap();
    let rearranged = |directory: &str| Root {
        at: "/system".into(),
        source: Source::Rearranged {
            snapshot: first.snapshot.unwrap(),
            directory: directory.into(),
            omit: vec!["omitted".into(), "never-there".into()],
            add: vec![("usr".into(), "/volumes/usr".into()), ("replaced".into(), "/volumes/usr/file".into())],
        },
    };
    let make = |directory| {
        let request = ArchiveRequest { roots: vec![rearranged(directory)], ..request(&source) };
        let made = repo.archive(&request, &Progress::default()).unwrap();
        assert_eq!(made.read_bytes, 0);
        verify_all(&repo, made.snapshot.unwrap());
        made
    };
    let made = make("/system").snapshot.unwrap();
    let names = |path: &str| -> Vec<String> {
        let entries = repo.ls(made, path).unwrap();
        entries.into_iter().map(|e| String::from_utf8(e.name).unwrap()).collect()
    };
    assert_eq!(
        (names("/system"), names("/system/usr")),
        (vec!["kept".into(), "replaced".into(), "usr".into()], vec!["file".to_owned()])
    );
    assert_eq!(repo.read_file(made, "/system/replaced").unwrap(), b"other");
    assert_eq!(repo.read_file(made, "/system/kept/deep/file").unwrap(), b"kept");
    // Where there is no such directory, the additions are all there is.
    assert_eq!(make("/none").per_root[0].counts.files, 2);
}
