//! A repository, two snapshots of a directory, and what was in the first brought back.

use std::sync::Arc;

use perennial_core::progress::Progress;
use perennial_snapshots::{
    ArchiveRequest, Existing, KeyCost, Layout, LocalBackend, Parent, Pass, Password, Removals, Repository,
    RestoreRequest, Root, Source, Verify,
};

/// Everything in a directory that is gone afterwards.
pub fn main() -> Result<(), Box<dyn std::error::Error>> {
    let scratch = tempfile::tempdir()?;
    let scratch = scratch.path();
    std::fs::create_dir(scratch.join("home"))?;
    std::fs::write(scratch.join("home/notes"), "mine\n")?;

    let password = Password::new("correct horse");
    let store = Arc::new(LocalBackend::new(scratch.join("repository")));
    let cost = KeyCost::Interactive;
    let repository = Repository::init(store, &password, cost)?;

    // A snapshot of a directory. It counts once what it wrote was read back.
    let progress = Progress::default();
    let source = Source::Directory { path: scratch.join("home"), layout: Layout::Plain, exclude: Vec::new() };
    let mut request = ArchiveRequest {
        time: jiff::Timestamp::now(),
        hostname: "here".to_owned(),
        tags: vec!["first".to_owned()],
        parents: Vec::new(),
        roots: vec![Root { at: "/home".to_owned(), source }],
        pass: Pass::Commit,
        accept_losses: Vec::new(),
    };
    let first = repository.archive(&request, &progress)?;
    let snapshot = first.snapshot.ok_or("a commit pass makes one")?;
    repository.verify(snapshot, &Verify::Written { packs: first.written_packs }, &progress)?;

    // The next one reads only what changed.
    request.parents = vec![Parent::Snapshot(snapshot)];
    let second = repository.archive(&request, &progress)?;
    assert_eq!(second.counts, first.counts);

    let restore = RestoreRequest {
        subtree: "/home".to_owned(),
        target: scratch.join("restored"),
        existing: Existing::MustBeEmpty,
        removals: Removals::Ignore,
        against_lower: None,
    };
    repository.restore(snapshot, &restore, &progress)?;
    assert_eq!(std::fs::read(scratch.join("restored/notes"))?, b"mine\n");
    Ok(())
}
