//! The measured work of ours, in a process of its own.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use perennial_core::progress::Progress;
use perennial_snapshots::{
    ArchiveRequest, Existing, KeyCost, Layout, LocalBackend, Mode, Parent, Pass, Password, Removals, Repository,
    RestoreRequest, Root, Source, Verify,
};

use crate::measure::Stopwatch;

pub const PASSWORD: &str = "correct horse";

/// This program again, to be told what to do.
pub fn command() -> Command {
    Command::new(std::env::current_exe().unwrap())
}

pub fn main(arguments: &[String]) {
    let [what, repository, path] = arguments else { panic!("what, repository, path") };
    let backend = Arc::new(LocalBackend::new(repository));
    let password = Password::new(PASSWORD);
    if what == "generate" {
        // For profiles: a data set to keep.
        let share = repository.parse().unwrap();
        return crate::data::generate(Path::new(path), share).unwrap();
    }
    if what == "tiny" {
        return crate::memory::tiny(Path::new(path), repository.parse().unwrap());
    }
    let mut watch = Stopwatch::start();
    let repository = if Repository::exists(&*backend).unwrap() {
        Repository::open(backend, &password).unwrap()
    } else {
        Repository::init(backend, &password, KeyCost::Interactive).unwrap()
    };
    watch.lap("open");
    match what.as_str() {
        "backup" => backup(&repository, Path::new(path), &mut watch),
        "restore" => restore(&repository, Path::new(path), &mut watch),
        "prune" => {
            // What there is to delete does not matter: everything is looked at.
            repository.prune(Mode::Execute, &Progress::default()).unwrap();
            watch.lap("prune");
        }
        other => panic!("unknown: {other}"),
    }
}

fn backup(repository: &Repository, path: &Path, watch: &mut Stopwatch) {
    let last = repository.find(&[]).unwrap().pop();
    let source = Source::Directory { path: path.into(), layout: Layout::Plain, exclude: vec![] };
    let request = ArchiveRequest {
        time: jiff::Timestamp::now(),
        hostname: "bench".into(),
        tags: vec!["bench".into()],
        parents: last.into_iter().map(|snapshot| Parent::Snapshot(snapshot.id)).collect(),
        roots: vec![Root { at: "/volumes/data".into(), source }],
        pass: Pass::Commit,
        accept_losses: vec![],
    };
    let done = repository.archive(&request, &Progress::default()).unwrap();
    watch.lap("backup");
    let written = Verify::Written { packs: done.written_packs };
    repository.verify(done.snapshot.unwrap(), &written, &Progress::default()).unwrap();
    watch.lap("verify");
}

fn restore(repository: &Repository, target: &Path, watch: &mut Stopwatch) {
    let last = repository.find(&[]).unwrap().pop().unwrap();
    let existing = if target.exists() { Existing::Replace } else { Existing::MustBeEmpty };
    let request = RestoreRequest {
        subtree: "/volumes/data".into(),
        target: target.into(),
        existing,
        removals: Removals::Ignore,
        against_lower: None,
    };
    repository.restore(last.id, &request, &Progress::default()).unwrap();
    watch.lap("restore");
}
