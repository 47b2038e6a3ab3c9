//! Trees copied on the host: everything a tree can hold, changes meanwhile, and links in the way.

#![allow(missing_docs, clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use crate::support::{compare, corpus, scratch};
use perennial_core::progress::Progress;
use perennial_snapshots::{Duplicate, Error, Replacement, Tree, file_names, read_file, replace_file};

fn trees(from: &Path, to: &Path) -> Vec<Tree> {
    fs::create_dir_all(to).unwrap();
    vec![Tree { from: from.to_owned(), to: to.to_owned(), exclude: Vec::new() }]
}

fn whiteout(path: &Path) {
    let kind = rustix::fs::FileType::CharacterDevice;
    rustix::fs::mknodat(rustix::fs::CWD, path, kind, rustix::fs::Mode::empty(), 0).unwrap();
}

/// A corpus with what only an overlay's changes have.
fn source(at: &Path) {
    corpus::make(at);
    whiteout(&at.join("deleted"));
    fs::hard_link(at.join("deleted"), at.join("deleted-too")).unwrap();
    fs::create_dir(at.join("hides")).unwrap();
    corpus::xattr(&at.join("hides"), "trusted.overlay.opaque", b"y");
    symlink("nowhere", at.join("link-a")).unwrap();
    fs::hard_link(at.join("link-a"), at.join("link-b")).unwrap();
    fs::create_dir_all(at.join("many")).unwrap();
    for n in 0..300 {
        fs::create_dir(at.join(format!("many/{n}"))).unwrap();
        fs::write(at.join(format!("many/{n}/file")), format!("{n}")).unwrap();
    }
}

/// Without what the copy of whiteouts need not keep.
fn seen(at: &Path) -> std::collections::BTreeMap<std::path::PathBuf, compare::Item> {
    let mut found = compare::snapshot(at);
    for item in found.values_mut().filter(|item| item.kind == 'c' && item.rdev == 0) {
        item.link = None;
    }
    found
}

#[test]
fn a_copy_is_the_same_down_to_links_holes_and_marks() {
    let temp = scratch();
    let (from, to) = (temp.path().join("from"), temp.path().join("to"));
    fs::create_dir(&from).unwrap();
    source(&from);
    let hole = fs::File::create(from.join("hole")).unwrap();
    hole.set_len(64 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&hole, b"middle", 32 << 20).unwrap();
    // What the kernel notes about the layer below means nothing in another place.
    corpus::xattr(&from.join("many"), "trusted.overlay.impure", b"y");
    let done = Duplicate::new(trees(&from, &to)).finish(&Progress::default()).unwrap();
    let mut expected = seen(&from);
    let many = expected.get_mut(Path::new("many")).unwrap();
    assert!(many.xattrs.remove(std::ffi::OsStr::new("trusted.overlay.impure")).is_some());
    compare::assert_same(&expected, &seen(&to));
    assert!(to.join("hole").metadata().unwrap().blocks() < 4096, "the hole was filled");
    assert!(done.entries > 600 && done.written + done.shared > 0, "{done:?}");
}

#[test]
fn what_changes_while_it_is_copied_is_copied_at_the_end() {
    let temp = scratch();
    let (from, to) = (temp.path().join("from"), temp.path().join("to"));
    fs::create_dir(&from).unwrap();
    source(&from);
    let mut copy = Duplicate::new(trees(&from, &to));
    copy.ahead(&Progress::default()).unwrap();
    fs::write(from.join("many/1/file"), "x").unwrap();
    // Of the same size and the same time of change of its content.
    let time = fs::metadata(from.join("many/2/file")).unwrap().modified().unwrap();
    fs::write(from.join("many/2/file"), "9").unwrap();
    fs::File::options().write(true).open(from.join("many/2/file")).unwrap().set_modified(time).unwrap();
    fs::remove_file(from.join("many/3/file")).unwrap();
    fs::remove_dir_all(from.join("many/4")).unwrap();
    fs::write(from.join("many/4"), "a file now").unwrap();
    fs::remove_file(from.join("many/5/file")).unwrap();
    fs::create_dir(from.join("many/5/file")).unwrap();
    fs::rename(from.join("many/6"), from.join("many/moved")).unwrap();
    fs::hard_link(from.join("many/7/file"), from.join("many/8/other")).unwrap();
    fs::remove_file(from.join("link-b")).unwrap();
    fs::remove_file(from.join("deleted")).unwrap();
    rustix::fs::chmod(from.join("many/9/file"), rustix::fs::Mode::from_raw_mode(0o4711)).unwrap();
    corpus::xattr(&from.join("many/10"), "user.new", b"1");
    rustix::fs::removexattr(from.join("hides"), "trusted.overlay.opaque").unwrap();
    copy.finish(&Progress::default()).unwrap();
    compare::assert_same(&seen(&from), &seen(&to));
}

/// Until the file's change time is old: one of now vouches for nothing.
fn let_time_pass(file: &Path) {
    let old = fs::metadata(file).unwrap();
    let passed = || {
        let probe = tempfile::tempfile_in(file.parent().unwrap().parent().unwrap()).unwrap().metadata().unwrap();
        (probe.ctime() - old.ctime()) * 1_000_000_000 + probe.ctime_nsec() - old.ctime_nsec() > 100_000_000
    };
    while !passed() {
        std::thread::yield_now();
    }
}

#[test]
fn what_did_not_change_is_not_copied_again() {
    let temp = scratch();
    let (from, to) = (temp.path().join("from"), temp.path().join("to"));
    fs::create_dir(&from).unwrap();
    fs::write(from.join("old"), vec![7; 100_000]).unwrap();
    let_time_pass(&from.join("old"));
    let mut copy = Duplicate::new(trees(&from, &to));
    copy.ahead(&Progress::default()).unwrap();
    let inode = fs::metadata(to.join("old")).unwrap().ino();
    fs::write(from.join("new"), "x").unwrap();
    let done = copy.finish(&Progress::default()).unwrap();
    assert_eq!(done.written + done.shared, 100_001);
    assert_eq!(fs::metadata(to.join("old")).unwrap().ino(), inode);
}

/// While nothing writes there is no time for files that did not change, however many names they have.
#[test]
fn files_of_several_names_and_whiteouts_that_did_not_change_are_not_copied_again() {
    let temp = scratch();
    let (from, to) = (temp.path().join("from"), temp.path().join("to"));
    fs::create_dir_all(from.join("here")).unwrap();
    for n in 0..4 {
        let name = |of: &str| from.join(format!("here/{of}{n}"));
        fs::write(name("file"), format!("of {n}")).unwrap();
        fs::hard_link(name("file"), name("same")).unwrap();
        fs::hard_link(name("file"), from.join(format!("elsewhere{n}"))).unwrap();
    }
    whiteout(&from.join("gone"));
    fs::hard_link(from.join("gone"), from.join("gone-too")).unwrap();
    let_time_pass(&from.join("gone"));
    let mut copy = Duplicate::new(trees(&from, &to));
    copy.ahead(&Progress::default()).unwrap();
    let inode = |path: &str| fs::symlink_metadata(to.join(path)).unwrap().ino();
    let before = (inode("here/file0"), inode("gone"), inode("gone-too"));
    // The whiteouts' inode gets one more name; one file another content, one loses a name, and one is found elsewhere.
    fs::hard_link(from.join("gone"), from.join("gone-now")).unwrap();
    fs::write(from.join("here/same1"), "changed").unwrap();
    fs::remove_file(from.join("elsewhere2")).unwrap();
    fs::create_dir(from.join("new")).unwrap();
    fs::rename(from.join("here/file3"), from.join("new/file3")).unwrap();
    let done = copy.finish(&Progress::default()).unwrap();
    compare::assert_same(&seen(&from), &seen(&to));
    assert_eq!((inode("here/file0"), inode("gone"), inode("gone-too")), before);
    assert_eq!(done.written + done.shared, 4 * 4 + "changed".len() as u64 + 4 + 4);
}

/// A directory that was moved takes the names in it along without a change of theirs.
#[test]
fn files_of_several_names_in_a_directory_that_moved_stay_one_file() {
    for moved in ["a", "z"] {
        let temp = scratch();
        let (from, to) = (temp.path().join("from"), temp.path().join("to"));
        fs::create_dir_all(from.join("m")).unwrap();
        fs::write(from.join("m/file"), "one").unwrap();
        fs::hard_link(from.join("m/file"), from.join("k")).unwrap();
        let_time_pass(&from.join("k"));
        let mut copy = Duplicate::new(trees(&from, &to));
        copy.ahead(&Progress::default()).unwrap();
        fs::rename(from.join("m"), from.join(moved)).unwrap();
        copy.finish(&Progress::default()).unwrap();
        compare::assert_same(&seen(&from), &seen(&to));
    }
}

/// Places of files with several names take no descriptors, however many there are.
#[test]
fn directories_with_files_of_several_names_do_not_stay_open() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let temp = scratch();
    let (from, to) = (temp.path().join("from"), temp.path().join("to"));
    for n in 0..1000 {
        let dir = from.join(format!("{n}"));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("one"), format!("{n}")).unwrap();
        fs::hard_link(dir.join("one"), dir.join("other")).unwrap();
    }
    let trees = trees(&from, &to);
    // Beside what waits to be copied (`pool::OPEN_MAX`, twice) and what the threads have open.
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(512), ..limit }).unwrap();
    let done = Duplicate::new(trees).finish(&Progress::default());
    setrlimit(Resource::Nofile, limit).unwrap();
    done.unwrap();
    compare::assert_same(&seen(&from), &seen(&to));
}

#[test]
fn what_is_left_out_is_not_there_and_nothing_outside_is_touched() {
    let temp = scratch();
    let (from, to, outside) = (temp.path().join("from"), temp.path().join("to"), temp.path().join("outside"));
    for dir in [&from, &outside, &from.join("sub")] {
        fs::create_dir(dir).unwrap();
    }
    fs::write(outside.join("secret"), "s").unwrap();
    fs::write(from.join("hosts"), "h").unwrap();
    fs::write(from.join("sub/hosts"), "h").unwrap();
    symlink(&outside, from.join("way-out")).unwrap();
    let mut trees = trees(&from, &to);
    trees[0].exclude = vec!["hosts".into()];
    Duplicate::new(trees).finish(&Progress::default()).unwrap();
    assert!(!to.join("hosts").exists() && to.join("sub/hosts").exists());
    assert!(to.join("way-out").symlink_metadata().unwrap().is_symlink());
    // A copy whose root is a link is none.
    let (real, link) = (temp.path().join("real"), temp.path().join("link"));
    fs::create_dir(&real).unwrap();
    symlink(&real, &link).unwrap();
    let copy = Duplicate::new(vec![Tree { from, to: link, exclude: Vec::new() }]).finish(&Progress::default());
    assert!(matches!(copy, Err(Error::Io { .. })), "{copy:?}");
    assert_eq!(fs::read_dir(&real).unwrap().count(), 0);
}

#[test]
fn a_cancelled_copy_ends_and_an_unknown_mark_fails_it() {
    let temp = scratch();
    let (from, to) = (temp.path().join("from"), temp.path().join("to"));
    fs::create_dir(&from).unwrap();
    fs::write(from.join("file"), "x").unwrap();
    let cancelled = Progress::default();
    cancelled.cancel();
    assert!(matches!(Duplicate::new(trees(&from, &to)).finish(&cancelled), Err(Error::Cancelled)));
    corpus::xattr(&from.join("file"), "trusted.overlay.metacopy", b"");
    let copy = Duplicate::new(trees(&from, &temp.path().join("other"))).finish(&Progress::default());
    assert!(matches!(copy, Err(Error::UnknownOverlayAttribute { .. })), "{copy:?}");
}

/// Directories that are swapped for links while they are copied lead nowhere.
#[test]
fn a_tree_that_is_rearranged_meanwhile_never_leads_out() {
    let temp = scratch();
    let (from, outside) = (temp.path().join("from"), temp.path().join("outside"));
    fs::create_dir_all(from.join("dir/below")).unwrap();
    fs::create_dir_all(outside.join("below")).unwrap();
    fs::write(outside.join("below/secret"), "s").unwrap();
    symlink(&outside, from.join("link")).unwrap();
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (dir, link) = (from.join("dir"), from.join("link"));
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                rustix::fs::renameat_with(rustix::fs::CWD, &dir, rustix::fs::CWD, &link, flags).unwrap();
            }
        });
        for n in 0..300 {
            let to = temp.path().join(format!("to-{n}"));
            let mut copy = Duplicate::new(trees(&from, &to));
            // It may fail, because nothing stands still.
            let _ = copy.ahead(&Progress::default()).and_then(|()| copy.finish(&Progress::default()).map(drop));
            let led_out = compare::snapshot(&to).keys().any(|path| path.ends_with("secret"));
            if led_out {
                over.store(true, std::sync::atomic::Ordering::Relaxed);
            }
            assert!(!led_out, "it was led out");
            fs::remove_dir_all(&to).unwrap();
        }
        over.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

#[test]
fn single_files_are_replaced_without_following_links() {
    let temp = scratch();
    let (root, outside) = (temp.path().join("root"), temp.path().join("outside"));
    fs::create_dir_all(root.join("ssh")).unwrap();
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("key"), "theirs").unwrap();
    fs::write(root.join("ssh/key"), "old").unwrap();
    rustix::fs::chmod(root.join("ssh/key"), rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
    symlink(&outside, root.join("way")).unwrap();
    symlink("ssh/key", root.join("alias")).unwrap();
    let read = |path: &str| read_file(&root, Path::new(path), 100).unwrap();
    assert_eq!(read("ssh/key"), Some(b"old".to_vec()));
    assert_eq!((read("way/key"), read("alias"), read("none/key"), read("ssh")), (None, None, None, None));
    assert_eq!(read_file(&root, Path::new("ssh/key"), 2).unwrap(), None, "it is too large");
    assert_eq!(file_names(&root, Path::new("ssh")).unwrap(), Some(vec![b"key".to_vec()]));
    assert_eq!(file_names(&root, Path::new("way")).unwrap(), None);
    let replace = |path: &str, with| replace_file(&root, Path::new(path), with);
    replace("ssh/key", Replacement::Content(b"new")).unwrap();
    assert_eq!(read("ssh/key"), Some(b"new".to_vec()));
    assert_eq!(fs::metadata(root.join("ssh/key")).unwrap().mode() & 0o7777, 0o600);
    assert!(replace("way/key", Replacement::Content(b"new")).is_err());
    assert_eq!(fs::read_to_string(outside.join("key")).unwrap(), "theirs");
    replace("ssh/key", Replacement::Whiteout).unwrap();
    let hidden = root.join("ssh/key").symlink_metadata().unwrap();
    assert!(std::os::unix::fs::FileTypeExt::is_char_device(&hidden.file_type()) && hidden.rdev() == 0);
    replace("ssh/key", Replacement::Removed).unwrap();
    assert_eq!(fs::read_dir(root.join("ssh")).unwrap().count(), 0, "nothing is left beside it");
}
