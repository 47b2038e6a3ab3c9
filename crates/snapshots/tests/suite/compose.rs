//! Trees composed of parts of several snapshots. The kernel's own overlay says what an upper layer shows; mounting needs
//! root.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs, reason = "tests")]

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use crate::support::*;
use perennial_core::progress::Progress;
use perennial_snapshots::*;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

const ROOT: &str = "/volumes/home";

/// An overlay as Perennial mounts it; unmounted when dropped.
struct Overlay(PathBuf);

impl Overlay {
    fn mount(lower: &Path, dir: &Path, name: &str) -> Self {
        let [upper, work, merged] = ["upper", "work", "merged"].map(|part| dir.join(format!("{name}-{part}")));
        for path in [&upper, &work, &merged] {
            fs::create_dir_all(path).unwrap();
        }
        let options = format!(
            "lowerdir={},upperdir={},workdir={},redirect_dir=nofollow,metacopy=off,index=off",
            lower.display(),
            upper.display(),
            work.display()
        );
        let options = std::ffi::CString::new(options).unwrap();
        let flags = rustix::mount::MountFlags::NODEV;
        rustix::mount::mount("overlay", &merged, "overlay", flags, options.as_c_str()).unwrap();
        Self(merged)
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

/// A directory as the layer below.
#[derive(Debug)]
struct Below(PathBuf);

impl Below {
    fn at(&self, path: &[u8]) -> PathBuf {
        if path.is_empty() { self.0.clone() } else { self.0.join(OsStr::from_bytes(path)) }
    }
}

impl Lower for Below {
    fn entry(&self, path: &[u8]) -> Option<Node> {
        let meta = fs::symlink_metadata(self.at(path)).ok()?;
        let kind = match () {
            () if meta.is_dir() => NodeKind::Dir,
            () if meta.is_symlink() => NodeKind::Symlink,
            () => NodeKind::File,
        };
        let name = path.rsplit(|b| *b == b'/').next().unwrap_or_default();
        let mut node = Node::new(name, kind);
        node.mode = meta.mode() & 0o7777;
        (node.uid, node.gid) = (meta.uid(), meta.gid());
        node.mtime = Time { seconds: meta.mtime(), nanoseconds: u32::try_from(meta.mtime_nsec()).unwrap() };
        Some(node)
    }

    fn names(&self, path: &[u8]) -> Vec<Vec<u8>> {
        let Ok(entries) = fs::read_dir(self.at(path)) else { return Vec::new() };
        entries.map(|e| e.unwrap().file_name().as_bytes().to_vec()).collect()
    }
}

/// What is compared: kinds, modes, owners, contents, link targets.
fn shown(path: &Path) -> Vec<(PathBuf, String)> {
    let items = compare::snapshot(path);
    let shown = |(path, item): (PathBuf, compare::Item)| {
        let what = format!("{} {:o} {:?} {:?} {:?}", item.kind, item.mode, item.owner, item.target, item.content);
        (path, what)
    };
    items.into_iter().map(shown).collect()
}

fn snapshot(repo: &Repository, path: &Path, layout: Layout) -> SnapshotFileId {
    let mut request = request(path);
    request.roots = vec![root(ROOT, path, layout)];
    repo.archive(&request, &Progress::default()).unwrap().snapshot.unwrap()
}

fn compose(repo: &Repository, of: Composition) -> Result<SnapshotFileId> {
    let mut request = request(Path::new("/nowhere"));
    request.roots = vec![Root { at: of.root.clone(), source: Source::Composed(of) }];
    let archived = repo.archive(&request, &Progress::default())?;
    let snapshot = archived.snapshot.unwrap();
    repo.verify(snapshot, &Verify::Written { packs: archived.written_packs }, &Progress::default())?;
    Ok(snapshot)
}

fn composition(base: SnapshotFileId, layout: Layout, lower: Option<&Path>, grafts: Vec<Graft>) -> Composition {
    let lower = lower.map(|path| Arc::new(Below(path.to_owned())) as _);
    Composition { base, root: ROOT.into(), layout, lower, grafts, salt: [7; 16] }
}

fn taken(path: &str, snapshot: SnapshotFileId, extra: Extra) -> Graft {
    Graft { path: path.as_bytes().to_vec(), with: With::Taken { snapshot, extra } }
}

fn copy(from: &Path, to: &Path) {
    let done = Command::new("cp").args(["-a", "--no-target-directory"]).args([from, to]).status().unwrap();
    assert!(done.success(), "cp {} {}", from.display(), to.display());
}

fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

fn delete(path: &Path) {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path).unwrap(),
        Ok(_) => fs::remove_file(path).unwrap(),
        Err(_) => {}
    }
}

/// The same by hand: `into` becomes what `wanted` is at a path. `None` when something above is no directory.
fn exchange(into: &Path, wanted: &Path, path: &str, extra: Extra) -> Option<()> {
    let mut at = (into.to_owned(), wanted.to_owned());
    let parts: Vec<&str> = path.split('/').collect();
    for part in &parts[..parts.len() - 1] {
        at = (at.0.join(part), at.1.join(part));
        if !exists(&at.0) {
            fs::create_dir(&at.0).unwrap();
            like(&at.0, &at.1);
        }
        if !fs::symlink_metadata(&at.0).unwrap().is_dir() {
            return None;
        }
    }
    let (to, from) = (at.0.join(parts[parts.len() - 1]), at.1.join(parts[parts.len() - 1]));
    match extra {
        Extra::Removed => {
            delete(&to);
            copy(&from, &to);
        }
        Extra::Kept => lay_over(&from, &to),
    }
    Some(())
}

fn like(to: &Path, from: &Path) {
    fs::set_permissions(to, fs::metadata(from).unwrap().permissions()).unwrap();
}

fn lay_over(from: &Path, to: &Path) {
    let is_dir = |path: &Path| fs::symlink_metadata(path).is_ok_and(|m| m.is_dir());
    if !(is_dir(from) && is_dir(to)) {
        delete(to);
        copy(from, to);
        return;
    }
    like(to, from);
    for entry in fs::read_dir(from).unwrap() {
        let name = entry.unwrap().file_name();
        lay_over(&from.join(&name), &to.join(&name));
    }
}

const NAMES: [&str; 4] = ["a", "b", "c", "d\u{fffd}"];

fn any_path(random: &mut StdRng) -> String {
    let depth = random.random_range(1..=4);
    let names: Vec<&str> = (0..depth).map(|_| NAMES[random.random_range(0..NAMES.len())]).collect();
    names.join("/")
}

/// What somebody does in a directory.
fn disturb(random: &mut StdRng, root: &Path, times: usize) {
    for _ in 0..times {
        let path = any_path(random);
        let path = root.join(&path);
        let parent = path.parent().unwrap();
        match random.random_range(0..6) {
            0 => delete(&path),
            1 if exists(&path) && !fs::symlink_metadata(&path).unwrap().is_symlink() => {
                let mode = [0o700, 0o750, 0o644, 0o777][random.random_range(0..4)];
                fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            }
            2 => {
                delete(&path);
                let _ = fs::create_dir_all(&path);
            }
            3 if fs::create_dir_all(parent).is_ok() => {
                delete(&path);
                symlink("elsewhere", &path).unwrap();
            }
            _ if fs::create_dir_all(parent).is_ok() => {
                delete(&path);
                fs::write(&path, random.random::<u64>().to_string()).unwrap();
            }
            _ => {}
        }
    }
}

/// Random images, random histories, random selections: the kernel shows what a copy by hand has.
#[test]
fn composed_upper_layers_show_what_a_copy_by_hand_shows() {
    let seed: u64 = std::env::var("PERENNIAL_TEST_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(2);
    let (mut composed, mut refused) = (0, 0);
    for turn in 0..200 {
        let random = &mut StdRng::seed_from_u64(seed * 1000 + turn);
        let dir = scratch();
        let low = dir.path().join("lower");
        fs::create_dir(&low).unwrap();
        disturb(random, &low, 25);
        let [now, wanted] = ["now", "wanted"].map(|name| Overlay::mount(&low, dir.path(), name));
        let some = random.random_range(0..12);
        disturb(random, &now.0, some);
        let some = random.random_range(0..12);
        disturb(random, &wanted.0, some);
        let (_, repo) = memory();
        let [base, other] =
            ["now-upper", "wanted-upper"].map(|upper| snapshot(&repo, &dir.path().join(upper), Layout::OverlayUpper));
        let extra = if random.random() { Extra::Removed } else { Extra::Kept };
        let chosen: BTreeSet<String> =
            (0..random.random_range(1..4)).map(|_| any_path(random)).filter(|p| exists(&wanted.0.join(p))).collect();
        let nested = |path: &String| chosen.iter().any(|above| path.starts_with(&format!("{above}/")));
        let chosen: Vec<&String> = chosen.iter().filter(|path| !nested(path)).collect();
        if chosen.is_empty() {
            continue;
        }
        let told = format!("turn {turn} of seed {seed}: {chosen:?} {extra:?}");
        let expected = dir.path().join("expected");
        copy(&now.0, &expected);
        let possible = chosen.iter().try_for_each(|path| exchange(&expected, &wanted.0, path, extra)).is_some();
        let grafts = chosen.iter().map(|path| taken(path, other, extra)).collect();
        let made = compose(&repo, composition(base, Layout::OverlayUpper, Some(&low), grafts));
        if !possible {
            assert!(matches!(made, Err(Error::NotComposable { .. })), "{told}: {made:?}");
            refused += 1;
            continue;
        }
        let made = made.unwrap_or_else(|e| panic!("{told}: {e}"));
        let request = RestoreRequest {
            removals: Removals::Whiteouts { list: "/removed/home".into() },
            existing: Existing::Replace,
            ..restore_request(&dir.path().join("made-upper"))
        };
        repo.restore(made, &request, &Progress::default()).unwrap_or_else(|e| panic!("{told}: {e}"));
        let made = Overlay::mount(&low, dir.path(), "made");
        assert_same(&shown(&made.0), &shown(&expected), &told);
        composed += 1;
    }
    println!("{composed} composed, {refused} refused");
    assert!(composed > 50 && refused > 0, "{composed} composed, {refused} refused");
}

fn assert_same(found: &[(PathBuf, String)], expected: &[(PathBuf, String)], told: &str) {
    let (found, expected): (BTreeSet<_>, BTreeSet<_>) = (found.iter().collect(), expected.iter().collect());
    let wrong: Vec<_> = found.difference(&expected).collect();
    let missing: Vec<_> = expected.difference(&found).collect();
    assert!(wrong.is_empty() && missing.is_empty(), "{told}\nfound: {wrong:#?}\nexpected: {missing:#?}");
}

/// A directory that was made anew hides the image's, also where only a directory in it is chosen; and one that did no
/// longer hides what is chosen.
#[test]
fn what_hides_the_layer_below_is_carried_over_both_ways() {
    let dir = scratch();
    let low = dir.path().join("lower");
    fs::create_dir_all(low.join("a/b")).unwrap();
    for file in ["a/b/x", "a/y"] {
        fs::write(low.join(file), "image").unwrap();
    }
    let [_plain, anew] = ["plain", "anew"].map(|name| Overlay::mount(&low, dir.path(), name));
    fs::remove_dir_all(anew.0.join("a")).unwrap();
    fs::create_dir_all(anew.0.join("a/b")).unwrap();
    fs::write(anew.0.join("a/b/new"), "new").unwrap();
    let (_, repo) = memory();
    let of = |name: &str| snapshot(&repo, &dir.path().join(format!("{name}-upper")), Layout::OverlayUpper);
    let (plain, anew) = (of("plain"), of("anew"));
    for (name, base, other, expected) in
        [("hides", plain, anew, ["a", "a/b", "a/b/new", "a/y"]), ("shows", anew, plain, ["a", "a/b", "a/b/x", ""])]
    {
        let grafts = vec![taken("a/b", other, Extra::Removed)];
        let made = compose(&repo, composition(base, Layout::OverlayUpper, Some(&low), grafts)).unwrap();
        let request = RestoreRequest {
            removals: Removals::Whiteouts { list: "/removed/home".into() },
            existing: Existing::Replace,
            ..restore_request(&dir.path().join(format!("{name}-upper")))
        };
        repo.restore(made, &request, &Progress::default()).unwrap();
        let overlay = Overlay::mount(&low, dir.path(), name);
        let found: BTreeSet<PathBuf> = compare::snapshot(&overlay.0).into_keys().collect();
        let root = PathBuf::new();
        let expected: BTreeSet<PathBuf> = expected.iter().map(PathBuf::from).chain([root]).collect();
        assert_eq!(found, expected, "{name}");
    }
}

/// Whole trees, restored as they are.
fn whole(now: &Path, wanted: &Path, grafts: impl Fn(SnapshotFileId) -> Vec<Graft>) -> tempfile::TempDir {
    let (_, repo) = memory();
    let (base, other) = (snapshot(&repo, now, Layout::Plain), snapshot(&repo, wanted, Layout::Plain));
    let made = compose(&repo, composition(base, Layout::Plain, None, grafts(other))).unwrap();
    let target = scratch();
    restore(&repo, made, target.path());
    target
}

#[test]
fn hard_links_are_kept_within_what_was_chosen_and_never_made_across() {
    let dir = scratch();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("a"), "old").unwrap();
    for name in ["b", "c", "d"] {
        fs::hard_link(tree.join("a"), tree.join(name)).unwrap();
    }
    let (_, repo) = memory();
    let old = snapshot(&repo, &tree, Layout::Plain);
    // The same inode has another content now.
    fs::write(tree.join("a"), "new").unwrap();
    let new = snapshot(&repo, &tree, Layout::Plain);
    let grafts = vec![taken("a", old, Extra::Removed), taken("b", old, Extra::Removed)];
    let made = compose(&repo, composition(new, Layout::Plain, None, grafts)).unwrap();
    let target = dir.path().join("target");
    restore(&repo, made, &target);
    let read = |name: &str| fs::read_to_string(target.join(name)).unwrap();
    assert_eq!(["a", "b", "c", "d"].map(read), ["old", "old", "new", "new"]);
    let inode = |name: &str| fs::metadata(target.join(name)).unwrap().ino();
    assert_eq!(inode("a"), inode("b"));
    assert_eq!(inode("c"), inode("d"));
    assert_ne!(inode("a"), inode("c"));
}

#[test]
fn links_deep_in_a_chosen_directory_are_kept_apart_too() {
    let dir = scratch();
    let tree = dir.path().join("tree");
    fs::create_dir_all(tree.join("x/y/z")).unwrap();
    fs::write(tree.join("x/y/z/deep"), "old").unwrap();
    fs::write(tree.join("x/alone"), "old").unwrap();
    fs::hard_link(tree.join("x/y/z/deep"), tree.join("outside")).unwrap();
    let (_, repo) = memory();
    let old = snapshot(&repo, &tree, Layout::Plain);
    fs::write(tree.join("outside"), "new").unwrap();
    let new = snapshot(&repo, &tree, Layout::Plain);
    let made = compose(&repo, composition(new, Layout::Plain, None, vec![taken("x", old, Extra::Removed)])).unwrap();
    let target = dir.path().join("target");
    restore(&repo, made, &target);
    assert_eq!(fs::read_to_string(target.join("x/y/z/deep")).unwrap(), "old");
    assert_eq!(fs::read_to_string(target.join("outside")).unwrap(), "new");
}

#[test]
fn restic_reads_what_was_composed() {
    let dir = scratch();
    let tree = dir.path().join("tree");
    fs::create_dir_all(tree.join("x")).unwrap();
    for (file, text) in [("x/a", "old"), ("kept", "kept")] {
        fs::write(tree.join(file), text).unwrap();
    }
    fs::hard_link(tree.join("x/a"), tree.join("x/b")).unwrap();
    let (path, repo) = local(dir.path());
    let old = snapshot(&repo, &tree, Layout::Plain);
    fs::write(tree.join("x/a"), "new").unwrap();
    fs::write(tree.join("kept"), "kept, and changed").unwrap();
    let new = snapshot(&repo, &tree, Layout::Plain);
    let made = compose(&repo, composition(new, Layout::Plain, None, vec![taken("x", old, Extra::Removed)])).unwrap();
    restic(&path, &["check", "--read-data"]);
    let target = dir.path().join("restic");
    restic(&path, &["restore", &made.to_string(), "--target", target.to_str().unwrap()]);
    let read = |name: &str| fs::read_to_string(target.join("volumes/home").join(name)).unwrap();
    assert_eq!(["x/a", "x/b", "kept"].map(read), ["old", "old", "kept, and changed"]);
    let inode = |name: &str| fs::metadata(target.join("volumes/home/x").join(name)).unwrap().ino();
    assert_eq!(inode("a"), inode("b"));
}

#[test]
fn names_that_are_no_text_and_directories_that_became_files_are_exchanged() {
    let dir = scratch();
    let [now, wanted] = ["now", "wanted"].map(|name| dir.path().join(name));
    let odd = OsStr::from_bytes(b"odd\xff\n");
    for tree in [&now, &wanted] {
        fs::create_dir_all(tree.join("kept")).unwrap();
    }
    fs::create_dir_all(now.join(odd)).unwrap();
    fs::write(now.join(odd).join("inside"), "1").unwrap();
    fs::write(now.join("was-dir"), "a file now").unwrap();
    fs::write(wanted.join(odd), "a file then").unwrap();
    fs::create_dir(wanted.join("was-dir")).unwrap();
    fs::write(wanted.join("was-dir/x"), "x").unwrap();
    fs::write(wanted.join("kept/not-chosen"), "2").unwrap();
    let target = whole(&now, &wanted, |other| {
        let with = || With::Taken { snapshot: other, extra: Extra::Removed };
        vec![Graft { path: odd.as_bytes().to_vec(), with: with() }, Graft { path: b"was-dir".to_vec(), with: with() }]
    });
    assert_eq!(fs::read(target.path().join(odd)).unwrap(), b"a file then");
    assert_eq!(fs::read(target.path().join("was-dir/x")).unwrap(), b"x");
    assert!(!target.path().join("kept/not-chosen").exists());
}

#[test]
fn a_whole_tree_is_exchanged_or_laid_over() {
    let dir = scratch();
    let [now, wanted] = ["now", "wanted"].map(|name| dir.path().join(name));
    for (tree, name) in [(&now, "later"), (&wanted, "earlier")] {
        fs::create_dir_all(tree.join("both")).unwrap();
        fs::write(tree.join("both").join(name), name).unwrap();
        fs::write(tree.join("same"), name).unwrap();
        fs::hard_link(tree.join("same"), tree.join("both/linked")).unwrap();
    }
    let replaced = whole(&now, &wanted, |other| vec![taken("", other, Extra::Removed)]);
    assert_eq!(shown(replaced.path()), shown(&wanted));
    let kept = whole(&now, &wanted, |other| vec![taken("", other, Extra::Kept)]);
    assert_eq!(fs::read_to_string(kept.path().join("same")).unwrap(), "earlier");
    let names: BTreeSet<_> = fs::read_dir(kept.path().join("both")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["earlier", "later", "linked"].map(Into::into).into());
    let inode = |path: &Path| fs::metadata(path).unwrap().ino();
    for made in [replaced.path(), kept.path()] {
        assert_eq!(fs::read_to_string(made.join("both/linked")).unwrap(), "earlier");
        assert_eq!(inode(&made.join("same")), inode(&made.join("both/linked")));
    }
}

#[test]
fn a_file_gets_new_content_and_keeps_what_else_it_is() {
    let dir = scratch();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("id"), "original").unwrap();
    fs::hard_link(tree.join("id"), tree.join("other-name")).unwrap();
    fs::set_permissions(tree.join("id"), fs::Permissions::from_mode(0o440)).unwrap();
    fs::write(tree.join("gone"), "original").unwrap();
    symlink("id", tree.join("link")).unwrap();
    let (_, repo) = memory();
    let base = snapshot(&repo, &tree, Layout::Plain);
    let content = |path: &str| Graft { path: path.into(), with: With::Content(b"new".to_vec()) };
    let grafts = vec![content("id"), Graft { path: b"gone".to_vec(), with: With::Nothing }];
    let made = compose(&repo, composition(base, Layout::Plain, None, grafts)).unwrap();
    let target = dir.path().join("target");
    restore(&repo, made, &target);
    assert_eq!(fs::read_to_string(target.join("id")).unwrap(), "new");
    assert_eq!(fs::metadata(target.join("id")).unwrap().mode() & 0o7777, 0o440);
    assert_eq!(fs::read_to_string(target.join("other-name")).unwrap(), "original");
    assert!(!target.join("gone").exists());
    for path in ["link", "absent", "gone/below", "../id", ""] {
        let made = compose(&repo, composition(base, Layout::Plain, None, vec![content(path)]));
        assert!(matches!(made, Err(Error::NotComposable { .. })), "{path}: {made:?}");
    }
}
