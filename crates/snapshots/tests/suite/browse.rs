//! Looking into snapshots: what restic lists and dumps is what we list and read, from any offset.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use crate::support::*;
use perennial_snapshots::backend::Backend;
use perennial_snapshots::*;

/// Every entry below a directory by its path.
fn walk(repo: &Repository, directory: &Node, path: &[u8], found: &mut BTreeMap<Vec<u8>, Node>) {
    for node in repo.entries(directory).unwrap() {
        let at = [path, b"/", &node.name].concat();
        if node.kind == NodeKind::Dir {
            walk(repo, &node, &at, found);
        }
        found.insert(at, node);
    }
}

fn content(repo: &Repository, node: &Node) -> Vec<u8> {
    let mut data = Vec::new();
    repo.open_file(node).unwrap().read_to_end(&mut data).unwrap();
    data
}

fn restic_bytes(repo: &Path, args: &[&OsStr]) -> Vec<u8> {
    let output = std::process::Command::new("restic")
        .args(["--no-cache", "--quiet", "-r"])
        .arg(repo)
        .args(args)
        .env("RESTIC_PASSWORD", "correct horse")
        .env("HOME", "/nonexistent")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[test]
fn restic_lists_and_dumps_the_same() {
    let dir = scratch();
    let source = dir.path().join("source");
    corpus::make(&source);
    let (path, repo) = local(dir.path());
    let snapshot = archive(&repo, &source).snapshot.unwrap();
    let tree = repo.snapshot(snapshot).unwrap().tree;
    let mut found = BTreeMap::new();
    walk(&repo, &repo.entry(tree, b"/").unwrap(), b"", &mut found);

    // One line for each entry: restic prints names raw, and one of ours has a line's end in it.
    let listed = restic_bytes(&path, &["ls", "latest"].map(OsStr::new));
    let mut expected: Vec<u8> = Vec::new();
    let mut paths: Vec<&Vec<u8>> = found.keys().collect();
    paths.sort_by_key(|p| p.split(|b| *b == b'/').map(<[u8]>::to_vec).collect::<Vec<_>>());
    for name in paths {
        expected.extend_from_slice(name);
        expected.push(b'\n');
    }
    let lines = |text: &[u8]| {
        let mut lines: Vec<Vec<u8>> = text.split(|b| *b == b'\n').map(<[u8]>::to_vec).collect();
        lines.sort();
        lines
    };
    assert_eq!(lines(&listed), lines(&expected));

    let mut files = 0;
    for (name, node) in found.iter().filter(|(_, node)| node.kind == NodeKind::File) {
        let data = content(&repo, node);
        assert_eq!(data.len() as u64, node.size);
        let dumped = restic_bytes(&path, &[OsStr::new("dump"), OsStr::new("latest"), OsStr::from_bytes(name)]);
        assert!(data == dumped, "{}", String::from_utf8_lossy(name));
        files += 1;
    }
    assert!(files > 10);
    let home = |name: &[u8]| &found[&[b"/volumes/home/", name].concat()];
    let sorted = |node: &Node| node.xattrs.iter().map(|x| x.name.clone()).collect::<Vec<_>>();
    assert_eq!(sorted(home(b"text")), ["security.capability"]);
    assert_eq!(home(b"hard1").link_key(), home(b"dir/hard3").link_key());
    assert!(home(b"hard1").link_key().is_some());
    assert_eq!(home(b"null").device, rustix::fs::makedev(1, 3));
    assert_eq!(repo.entry(tree, b"/volumes/home/not\xffutf8\xc3").unwrap().size, 5);
}

#[test]
fn contents_are_read_from_any_offset() {
    let dir = scratch();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    let data = corpus::noise(5 << 20, 9);
    fs::write(source.join("large"), &data).unwrap();
    let (_, repo) = memory();
    let snapshot = archive(&repo, &source).snapshot.unwrap();
    let node = repo.entry(repo.snapshot(snapshot).unwrap().tree, b"/volumes/home/large").unwrap();
    assert!(node.content.len() > 2);
    let mut reader = repo.open_file(&node).unwrap();
    assert_eq!(reader.size(), data.len() as u64);
    let ends = [0, 1, 4095, 1 << 20, (1 << 20) + 1, data.len() - 1, data.len(), data.len() + 5];
    for start in ends {
        for length in [0, 1, 70_000, 3 << 20] {
            let mut read = Vec::new();
            reader.seek(SeekFrom::Start(start as u64)).unwrap();
            reader.by_ref().take(length as u64).read_to_end(&mut read).unwrap();
            let from = start.min(data.len());
            assert!(read == data[from..(from + length).min(data.len())], "{start} {length}");
        }
    }
    assert_eq!(reader.seek(SeekFrom::End(-1)).unwrap(), data.len() as u64 - 1);
    assert!(reader.seek(SeekFrom::Current(-(data.len() as i64))).is_err());
}

#[test]
fn what_is_not_there_or_is_something_else_is_told_apart() {
    let dir = scratch();
    let source = dir.path().join("source");
    corpus::make(&source);
    let (_, repo) = memory();
    let tree = repo.snapshot(archive(&repo, &source).snapshot.unwrap()).unwrap().tree;
    for path in [&b"/volumes/home/none"[..], b"/volumes/home/small/x", b"/volumes/..", b"/volumes/home/link/x"] {
        let error = repo.entry(tree, path).unwrap_err();
        assert!(matches!(error, Error::NotFound { .. }), "{error:?}");
    }
    let file = repo.entry(tree, b"/volumes/home/small").unwrap();
    let directory = repo.entry(tree, b"/volumes/home").unwrap();
    assert!(matches!(repo.entries(&file), Err(Error::InvalidContent { .. })));
    assert!(matches!(repo.open_file(&directory), Err(Error::InvalidContent { .. })));
    let short = Node { size: file.size + 1, ..file };
    assert!(matches!(repo.open_file(&short), Err(Error::Mismatch { .. })));
}

#[test]
fn a_damaged_blob_is_an_error_and_never_a_short_or_wrong_read() {
    let dir = scratch();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    let data = corpus::noise(5 << 20, 3);
    fs::write(source.join("large"), &data).unwrap();
    let (backend, repo) = memory();
    let snapshot = archive(&repo, &source).snapshot.unwrap();
    let node = repo.entry(repo.snapshot(snapshot).unwrap().tree, b"/volumes/home/large").unwrap();
    let large = |p: &FileInfo| p.size > 1 << 20;
    for pack in backend.list(FileKind::Pack).unwrap().into_iter().filter(large) {
        let mut bytes = backend.read(FileKind::Pack, pack.id).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        backend.remove(FileKind::Pack, pack.id).unwrap();
        backend.write(FileKind::Pack, pack.id, &bytes).unwrap();
    }
    let mut read = Vec::new();
    let error = repo.open_file(&node).unwrap().read_to_end(&mut read).unwrap_err();
    assert!(error.to_string().contains("damaged"), "{error}");
    assert!(!read.is_empty() && read.len() < data.len() && read == data[..read.len()]);
    // One that is gone is known before the first byte.
    let packs = backend.list(FileKind::Pack).unwrap();
    packs.into_iter().filter(large).for_each(|p| backend.remove(FileKind::Pack, p.id).unwrap());
    let repo = Repository::open(Arc::new(backend), &password()).unwrap();
    assert!(matches!(repo.open_file(&node), Err(Error::MissingBlob { .. })));
}

#[test]
fn what_one_clone_read_is_not_fetched_again_for_the_next() {
    let dir = scratch();
    fs::write(dir.path().join("archive"), vec![7; 300_000]).unwrap();
    let (backend, repo) = memory();
    let snapshot = archive(&repo, dir.path()).snapshot.unwrap();
    let tree = repo.snapshot(snapshot).unwrap().tree;
    let node = repo.entry(tree, b"/volumes/home/archive").unwrap();
    let whole = repo.open_file(&node).unwrap();
    let slice = |mut reader: FileReader| {
        let mut read = [0; 100];
        reader.seek(SeekFrom::Start(1000)).unwrap();
        reader.read_exact(&mut read).map(|()| read)
    };
    assert_eq!(slice(whole.clone()).unwrap(), [7; 100]);
    for pack in backend.list(FileKind::Pack).unwrap() {
        backend.remove(FileKind::Pack, pack.id).unwrap();
    }
    assert_eq!(slice(whole.clone()).unwrap(), [7; 100], "the store has it no more, and the clones have");
    assert!(slice(repo.open_file(&node).unwrap()).is_err());
}
