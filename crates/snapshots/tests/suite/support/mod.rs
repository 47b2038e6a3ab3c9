//! Shared by the tests: corpora, an independent comparer, and backends that fail.
#![allow(missing_docs, clippy::print_stderr, reason = "helpers of tests")]

pub mod compare;
pub mod corpus;
pub mod faulty;
pub mod service;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use perennial_core::progress::Progress;
use perennial_snapshots::*;

/// A directory for a test, in memory where possible: trees are synced, and a shared disk makes that slow.
pub fn scratch() -> tempfile::TempDir {
    let shm = Path::new("/dev/shm");
    if shm.is_dir() && std::env::var_os("PERENNIAL_TEST_ON_DISK").is_none() {
        tempfile::tempdir_in(shm)
    } else {
        tempfile::tempdir()
    }
    .unwrap()
}

pub fn password() -> Password {
    Password::new("correct horse")
}

pub fn memory() -> (MemoryBackend, Repository) {
    let backend = MemoryBackend::new();
    let repo = Repository::init(Arc::new(backend.clone()), &password(), KeyCost::Test).unwrap();
    (backend, repo)
}

pub fn root(at: &str, path: &Path, layout: Layout) -> Root {
    Root { at: at.into(), source: Source::Directory { path: path.into(), layout, exclude: vec![] } }
}

pub fn request(path: &Path) -> ArchiveRequest {
    ArchiveRequest {
        time: "2026-01-02T03:04:05Z".parse().unwrap(),
        hostname: "test".into(),
        tags: vec!["pod:1".into(), "snapshot:1".into()],
        parents: vec![],
        roots: vec![
            root("/volumes/home", path, Layout::Plain),
            Root { at: "/pod.json".into(), source: Source::Bytes { data: b"{}".to_vec(), mode: 0o600 } },
        ],
        pass: Pass::Commit,
        accept_losses: vec![],
    }
}

pub fn overlay_request(path: &Path) -> ArchiveRequest {
    let mut request = request(path);
    request.roots = vec![root("/volumes/home", path, Layout::OverlayUpper)];
    request
}

pub fn archive(repo: &Repository, path: &Path) -> Archived {
    repo.archive(&request(path), &Progress::default()).unwrap()
}

pub fn restore_request(target: &Path) -> RestoreRequest {
    RestoreRequest {
        subtree: "/volumes/home".into(),
        target: target.into(),
        existing: Existing::MustBeEmpty,
        removals: Removals::Ignore,
        against_lower: None,
    }
}

pub fn restore(repo: &Repository, snapshot: SnapshotFileId, target: &Path) -> Restored {
    repo.restore(snapshot, &restore_request(target), &Progress::default()).unwrap()
}

pub fn verify_all(repo: &Repository, snapshot: SnapshotFileId) -> Verified {
    repo.verify(snapshot, &Verify::Everything, &Progress::default()).unwrap()
}

/// Runs restic on a local repository; it must succeed.
pub fn restic(repo: &Path, args: &[&str]) -> String {
    restic_with(repo.as_os_str(), args, &[])
}

/// The same on any repository, with more in its environment.
pub fn restic_with(repo: &std::ffi::OsStr, args: &[&str], environment: &[(&str, &str)]) -> String {
    let output = std::process::Command::new("restic")
        .args(["--no-cache", "-r"])
        .arg(repo)
        .args(args)
        .envs(environment.iter().copied())
        .env("RESTIC_PASSWORD", "correct horse")
        .env("HOME", "/nonexistent")
        .output()
        .expect("restic must be installed");
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "restic {args:?}: {text}");
    text
}

pub fn local(dir: &Path) -> (PathBuf, Repository) {
    let path = dir.join("repo");
    let repo = Repository::init(Arc::new(LocalBackend::new(&path)), &password(), KeyCost::Test).unwrap();
    (path, repo)
}
