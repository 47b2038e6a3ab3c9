//! Any tree comes back, and after any change an incremental snapshot is what a full one would be.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use crate::support::*;
use perennial_core::progress::Progress;
use perennial_snapshots::*;
use proptest::prelude::*;
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};

/// What a file holds.
#[derive(Debug, Clone)]
enum Content {
    Noise(usize, u64),
    Text(usize),
    /// A few bytes, a hole, and a few bytes.
    Hole(u64, u64),
    Database(usize, u64),
}

impl Content {
    fn write(&self, path: &Path) -> std::io::Result<()> {
        match self {
            Self::Noise(len, seed) => fs::write(path, corpus::noise(*len, *seed)),
            Self::Text(len) => fs::write(path, "words ".repeat(len / 6)),
            Self::Hole(len, seed) => {
                let file = fs::File::create(path)?;
                file.write_all_at(b"begin", 0)?;
                file.write_all_at(&corpus::noise(100, *seed), *len)
            }
            Self::Database(len, seed) => {
                fs::write(path, [b"SQLite format 3\0", corpus::noise(*len, *seed).as_slice()].concat())
            }
        }
    }
}

#[derive(Debug, Clone)]
struct Attributes {
    mode: u32,
    owner: (u32, u32),
    /// Before 1970 as well.
    mtime: (i64, i64),
    xattr: Option<Vec<u8>>,
}

/// What happens to a tree. A number chooses one of the entries that are there; what makes no sense then does not happen.
#[derive(Debug, Clone)]
enum Change {
    File(Vec<u8>, Content),
    Link(Vec<u8>, String),
    Dir(Vec<u8>),
    Fifo(Vec<u8>),
    HardLink(usize, Vec<u8>),
    Attributes(usize, Attributes),
    Delete(usize),
    Rename(usize, Vec<u8>),
    Truncate(usize, u64),
    WriteInPlace(usize, u64, usize, u64),
}

fn paths() -> impl Strategy<Value = Vec<u8>> {
    let name = prop_oneof![
        4 => "[a-c]{1,2}".prop_map(String::into_bytes),
        1 => proptest::collection::vec(1..=255_u8, 1..5)
            .prop_filter("a name", |n| !n.contains(&b'/') && n.as_slice() != b"." && n.as_slice() != b".."),
    ];
    proptest::collection::vec(name, 1..4).prop_map(|parts| parts.join(&b'/'))
}

fn changes(most: usize) -> impl Strategy<Value = Vec<Change>> {
    let size = prop_oneof![16 => 0..3_000_usize, 3 => 3_000..300_000_usize, 1 => 300_000..(3_usize << 20)];
    let content = prop_oneof![
        6 => (size.clone(), any::<u64>()).prop_map(|(len, seed)| Content::Noise(len, seed)),
        2 => size.prop_map(Content::Text),
        1 => (0..12_u64 << 20, any::<u64>()).prop_map(|(len, seed)| Content::Hole(len, seed)),
        1 => (200_000..600_000_usize, any::<u64>()).prop_map(|(len, seed)| Content::Database(len, seed)),
    ];
    let time = (-(1_i64 << 31)..1 << 33, 0..1_000_000_000_i64);
    let xattr = proptest::option::of(proptest::collection::vec(any::<u8>(), 0..40));
    let attributes = (0..0o10000_u32, (0..70_000_u32, 0..70_000_u32), time, xattr)
        .prop_map(|(mode, owner, mtime, xattr)| Attributes { mode, owner, mtime, xattr });
    let one = any::<usize>();
    let change = prop_oneof![
        8 => (paths(), content).prop_map(|(path, content)| Change::File(path, content)),
        1 => (paths(), "[a-z]{1,9}").prop_map(|(path, to)| Change::Link(path, to)),
        1 => paths().prop_map(Change::Dir),
        1 => paths().prop_map(Change::Fifo),
        2 => (one, paths()).prop_map(|(from, path)| Change::HardLink(from, path)),
        4 => (one, attributes).prop_map(|(at, attributes)| Change::Attributes(at, attributes)),
        2 => one.prop_map(Change::Delete),
        2 => (one, paths()).prop_map(|(from, path)| Change::Rename(from, path)),
        1 => (one, 0..4_000_u64).prop_map(|(at, len)| Change::Truncate(at, len)),
        2 => (one, 0..400_000_u64, 1..9_000_usize, any::<u64>())
            .prop_map(|(at, offset, len, seed)| Change::WriteInPlace(at, offset, len, seed)),
    ];
    proptest::collection::vec(change, 0..most)
}

/// Everything below, sorted; the directory itself is first.
fn entries(root: &Path) -> Vec<PathBuf> {
    let mut all = vec![root.to_owned()];
    let mut next = 0;
    while let Some(path) = all.get(next) {
        next += 1;
        if fs::symlink_metadata(path).unwrap().is_dir() {
            let below: Vec<_> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
            all.extend(below);
        }
    }
    all.sort();
    all
}

fn set_attributes(path: &Path, wanted: &Attributes) {
    let is_link = fs::symlink_metadata(path).unwrap().is_symlink();
    lchown(path, Some(wanted.owner.0), Some(wanted.owner.1)).unwrap();
    if !is_link {
        fs::set_permissions(path, fs::Permissions::from_mode(wanted.mode)).unwrap();
    }
    if let Some(value) = &wanted.xattr {
        rustix::fs::lsetxattr(path, "trusted.property", value, XattrFlags::empty()).unwrap();
    }
    let time = Timespec { tv_sec: wanted.mtime.0, tv_nsec: wanted.mtime.1 };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn apply(root: &Path, change: &Change) {
    let at = |path: &[u8]| {
        let path = root.join(OsStr::from_bytes(path));
        // A path below a file is none.
        fs::create_dir_all(path.parent().unwrap()).is_ok().then_some(path)
    };
    let make = |path: &[u8]| at(path).filter(|path| fs::symlink_metadata(path).is_err());
    let chosen = |n: usize| {
        let all = entries(root);
        all[n % all.len()].clone()
    };
    let file = |n: usize| Some(chosen(n)).filter(|path| fs::symlink_metadata(path).unwrap().is_file());
    match change {
        Change::File(path, content) => {
            // An existing file is written over, a link is not followed.
            let there = |path: &PathBuf| fs::symlink_metadata(path).map_or(true, |meta| meta.is_file());
            if let Some(path) = at(path).filter(there) {
                content.write(&path).unwrap();
            }
        }
        Change::Link(path, to) => make(path).into_iter().for_each(|path| symlink(to, path).unwrap()),
        Change::Dir(path) => make(path).into_iter().for_each(|path| fs::create_dir(path).unwrap()),
        Change::Fifo(path) => make(path).into_iter().for_each(|path| {
            rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o640), 0).unwrap();
        }),
        Change::HardLink(from, path) => {
            if let (Some(from), Some(path)) = (file(*from), make(path)) {
                fs::hard_link(from, path).unwrap();
            }
        }
        Change::Attributes(n, wanted) => set_attributes(&chosen(*n), wanted),
        Change::Delete(n) => {
            let path = chosen(*n);
            match fs::symlink_metadata(&path).unwrap().is_dir() {
                true if path == root => {}
                true => fs::remove_dir_all(path).unwrap(),
                false => fs::remove_file(path).unwrap(),
            }
        }
        Change::Rename(n, path) => {
            let from = chosen(*n);
            // A directory does not go below itself.
            if let Some(to) = at(path).filter(|to| from != root && !to.starts_with(&from) && !from.starts_with(to)) {
                let _ = fs::rename(from, to);
            }
        }
        Change::Truncate(n, len) => file(*n).into_iter().for_each(|path| {
            fs::OpenOptions::new().write(true).open(path).unwrap().set_len(*len).unwrap();
        }),
        Change::WriteInPlace(n, offset, len, seed) => file(*n).into_iter().for_each(|path| {
            let file = fs::OpenOptions::new().write(true).open(path).unwrap();
            let offset = offset % (file.metadata().unwrap().len() + 1);
            file.write_all_at(&corpus::noise(*len, *seed), offset).unwrap();
        }),
    }
}

/// What is on the disk of the regular files: holes stay holes, and zeros may become some.
fn assert_as_sparse(source: &Path, target: &Path) {
    for path in entries(source) {
        let (old, new) = (fs::symlink_metadata(&path).unwrap(), target.join(path.strip_prefix(source).unwrap()));
        let new = fs::symlink_metadata(new).unwrap();
        // In sectors of 512 bytes; a restore writes some zeros between two pieces.
        assert!(!old.is_file() || new.blocks() <= old.blocks() + 256, "{}: {new:?} of {old:?}", path.display());
    }
}

fn pass(repo: &Repository, path: &Path, parents: Vec<Parent>, pass: Pass) -> Archived {
    repo.archive(&ArchiveRequest { parents, pass, ..request(path) }, &Progress::default()).unwrap()
}

/// As many as `PROPTEST_CASES` says: `./dev soak` asks for very many.
fn cases(usually: u32) -> ProptestConfig {
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { ProptestConfig::default().cases } else { usually };
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn prop_any_tree_comes_back_and_after_any_change_incremental_equals_full(
        first in changes(24),
        generations in proptest::collection::vec(changes(10), 1..4),
    ) {
        let dir = scratch();
        let (source, target) = (dir.path().join("source"), dir.path().join("target"));
        fs::create_dir(&source).unwrap();
        first.iter().for_each(|change| apply(&source, change));
        let (_, repo) = memory();
        let live = pass(&repo, &source, vec![], Pass::Live);
        let mut parents = vec![Parent::Tree(live.tree)];
        let mut made = BTreeMap::new();
        for (n, changes) in generations.iter().enumerate() {
            changes.iter().for_each(|change| apply(&source, change));
            let incremental = pass(&repo, &source, parents, Pass::Commit);
            let snapshot = incremental.snapshot.unwrap();
            let (_, other) = memory();
            let full = pass(&other, &source, vec![], Pass::Commit);
            prop_assert_eq!(&incremental.per_root, &full.per_root);
            let expected = compare::snapshot(&source);
            let fresh = dir.path().join(format!("full{n}"));
            restore(&other, full.snapshot.unwrap(), &fresh);
            compare::assert_same(&expected, &compare::snapshot(&fresh));
            assert_as_sparse(&source, &fresh);
            // From one generation to the next in place.
            let replace = RestoreRequest { existing: Existing::Replace, ..restore_request(&target) };
            repo.restore(snapshot, &replace, &Progress::default()).unwrap();
            compare::assert_same(&expected, &compare::snapshot(&target));
            made.insert(n, (snapshot, expected));
            parents = vec![Parent::Snapshot(snapshot)];
        }
        // Later ones took nothing from earlier ones, and a tree that was changed by hand is put right.
        for (snapshot, expected) in made.values() {
            verify_all(&repo, *snapshot);
            first.iter().for_each(|change| apply(&target, change));
            let replace = RestoreRequest { existing: Existing::Replace, ..restore_request(&target) };
            repo.restore(*snapshot, &replace, &Progress::default()).unwrap();
            compare::assert_same(expected, &compare::snapshot(&target));
        }
    }
}

/// Gives a few bytes at a time.
struct Dribble<'a>(&'a [u8], usize);

impl Read for Dribble<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let most = buffer.len().min(self.1);
        self.0.read(&mut buffer[..most])
    }
}

proptest! {
    #![proptest_config(cases(16))]

    #[test]
    fn prop_a_content_is_cut_the_same_whatever_way_it_arrives(
        len in 0..(5_usize << 20),
        seed in any::<u64>(),
        piece in 1..200_000_usize,
    ) {
        let dir = scratch();
        let data = corpus::noise(len, seed);
        fs::write(dir.path().join("file"), &data).unwrap();
        let (_, repo) = memory();
        let archived = pass(&repo, dir.path(), vec![], Pass::Detached);
        let whole = repo.entry(archived.tree, b"/volumes/home/file").unwrap().content;
        let dribbled = repo
            .write_trees::<_, Error>(&Progress::default(), |writer| writer.file(&mut Dribble(&data, piece), len as u64))
            .unwrap();
        prop_assert_eq!(dribbled.value, whole);
    }
}
