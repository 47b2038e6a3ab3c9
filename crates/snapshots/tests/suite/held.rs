//! Captures of one instant: what happens while writers are held still, and what does not.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use crate::support::*;
use perennial_core::progress::Progress;
use perennial_snapshots::remote::{Session, serve};
use perennial_snapshots::*;

/// Writers that note when they are held.
#[derive(Default)]
struct Noted {
    held: Arc<AtomicBool>,
    holds: AtomicU32,
    releases: AtomicU32,
    /// What they say when they are let go on.
    broken: bool,
    /// What happens while they are about to be held.
    last: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl Writers for Noted {
    fn hold(&self) -> Result<()> {
        if let Some(last) = self.last.lock().unwrap().take() {
            last();
        }
        self.holds.fetch_add(1, Ordering::SeqCst);
        self.held.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn release(&self) -> Result<()> {
        self.releases.fetch_add(1, Ordering::SeqCst);
        self.held.store(false, Ordering::SeqCst);
        if self.broken { Err(Error::NotHeld { problem: "somebody let them go".into() }) } else { Ok(()) }
    }
}

fn limits(memory: usize, directory: Option<&Path>) -> SpoolLimits {
    SpoolLimits { memory, directory: directory.map(PathBuf::from) }
}

/// A store that nobody may ask for anything while writers are held.
fn watched(held: &Arc<AtomicBool>) -> (MemoryBackend, Arc<Mutex<Vec<String>>>, Repository) {
    let backend = MemoryBackend::new();
    drop(Repository::init(Arc::new(backend.clone()), &password(), KeyCost::Test).unwrap());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let watched = Watched { inner: backend.clone(), held: Arc::clone(held), asked: Arc::clone(&asked) };
    (backend, asked, Repository::open(Arc::new(watched), &password()).unwrap())
}

/// See [`watched`].
#[derive(Debug)]
struct Watched {
    inner: MemoryBackend,
    held: Arc<AtomicBool>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Watched {
    fn note(&self, call: &str, kind: FileKind) -> &MemoryBackend {
        if self.held.load(Ordering::SeqCst) {
            self.asked.lock().unwrap().push(format!("{call} {kind}"));
        }
        &self.inner
    }
}

impl Backend for Watched {
    fn prepare(&self) -> Result<(), BackendError> {
        self.inner.prepare()
    }

    fn list(&self, kind: FileKind) -> Result<Vec<FileInfo>, BackendError> {
        self.note("list", kind).list(kind)
    }

    fn read(&self, kind: FileKind, id: Id) -> Result<Vec<u8>, BackendError> {
        self.note("read", kind).read(kind, id)
    }

    fn read_range(&self, kind: FileKind, id: Id, offset: u64, len: usize) -> Result<Vec<u8>, BackendError> {
        self.note("read", kind).read_range(kind, id, offset, len)
    }

    fn write(&self, kind: FileKind, id: Id, data: &[u8]) -> Result<(), BackendError> {
        self.note("write", kind).write(kind, id, data)
    }

    fn remove(&self, kind: FileKind, id: Id) -> Result<(), BackendError> {
        self.note("remove", kind).remove(kind, id)
    }

    fn size(&self, kind: FileKind, id: Id) -> Result<Option<u64>, BackendError> {
        self.note("stat", kind).size(kind, id)
    }

    fn drop_caches(&self, kind: FileKind, id: Id) -> Result<(), BackendError> {
        self.note("stat", kind).drop_caches(kind, id)
    }
}

#[test]
fn the_store_is_asked_for_nothing_while_writers_are_held() {
    let dir = scratch();
    let source = dir.path().join("source");
    corpus::make(&source);
    let writers = Noted::default();
    let (_, asked, repo) = watched(&writers.held);
    let live = repo.archive(&ArchiveRequest { pass: Pass::Live, ..request(&source) }, &Progress::default()).unwrap();
    fs::write(source.join("late"), corpus::noise(40 << 20, 7)).unwrap();
    // The last moment at which somebody writes counts.
    let last = source.join("last");
    *writers.last.lock().unwrap() = Some(Box::new(move || fs::write(last, "last").unwrap()));
    let parents = vec![Parent::Tree(live.tree)];
    // No memory at all: everything waits in the file.
    let held = Held { writers: &writers, spool: limits(0, Some(dir.path())) };
    let request = ArchiveRequest { parents, ..request(&source) };
    let archived = repo.archive_held(&request, &held, &Progress::default()).unwrap();
    assert_eq!(*asked.lock().unwrap(), Vec::<String>::new());
    assert_eq!((writers.holds.into_inner(), writers.releases.into_inner()), (1, 1));
    assert!(archived.read_bytes >= 40 << 20);
    let snapshot = archived.snapshot.unwrap();
    assert_eq!(verify_all(&repo, snapshot).counts, archived.counts);
    let target = dir.path().join("target");
    restore(&repo, snapshot, &target);
    compare::assert_same(&compare::snapshot(&source), &compare::snapshot(&target));
}

#[test]
fn several_scanners_make_the_very_tree_that_one_makes() {
    let dir = scratch();
    let source = dir.path().join("source");
    corpus::make(&source);
    for a in 0..20 {
        for b in 0..10 {
            let deep = source.join(format!("many/{a}/{b}/c"));
            fs::create_dir_all(&deep).unwrap();
            fs::write(deep.join("file"), format!("{a} {b}")).unwrap();
            fs::hard_link(deep.join("file"), source.join(format!("many/link-{a}-{b}"))).unwrap();
        }
    }
    let (_, repo) = memory();
    let alone = archive(&repo, &source);
    // Nothing is changed below, so everything that was looked at has the times it had.
    let writers = Noted::default();
    for parents in [vec![], vec![Parent::Tree(alone.tree)], vec![Parent::Snapshot(alone.snapshot.unwrap())]] {
        let held = Held { writers: &writers, spool: limits(64 << 20, None) };
        let request = ArchiveRequest { parents, ..request(&source) };
        let together = repo.archive_held(&request, &held, &Progress::default()).unwrap();
        assert_eq!(together.counts, alone.counts);
        let names = |tree: &Archived| {
            let mut all = BTreeSet::new();
            let mut left = vec!["/volumes/home".to_owned()];
            while let Some(path) = left.pop() {
                for entry in repo.ls(tree.snapshot.unwrap(), &path).unwrap() {
                    let at = format!("{path}/{}", String::from_utf8_lossy(&entry.name));
                    all.insert(format!("{at} {:?} {} {}", entry.kind, entry.size, entry.mode));
                    if entry.kind == NodeKind::Dir {
                        left.push(at);
                    }
                }
            }
            all
        };
        assert_eq!(names(&together), names(&alone));
        assert_eq!(verify_all(&repo, together.snapshot.unwrap()).counts, alone.counts);
    }
}

#[test]
fn writers_go_on_after_every_failure_and_a_broken_hold_makes_no_snapshot() {
    let dir = scratch();
    let source = dir.path().join("source");
    corpus::make(&source);
    let (_, repo) = memory();
    // They were not held all the time.
    let writers = Noted { broken: true, ..Noted::default() };
    let held = Held { writers: &writers, spool: limits(64 << 20, None) };
    let refused = repo.archive_held(&request(&source), &held, &Progress::default());
    assert!(matches!(refused, Err(Error::NotHeld { .. })), "{refused:?}");
    // Cancelled at the last moment before the scan.
    let (progress, writers) = (Progress::default(), Noted::default());
    let cancel = progress.clone();
    *writers.last.lock().unwrap() = Some(Box::new(move || cancel.cancel()));
    let held = Held { writers: &writers, spool: limits(64 << 20, None) };
    assert!(matches!(repo.archive_held(&request(&source), &held, &progress), Err(Error::Cancelled)));
    assert_eq!(writers.releases.load(Ordering::SeqCst), 1);
    // The root went away.
    let writers = Noted::default();
    let gone = source.join("directory-that-goes");
    fs::create_dir(&gone).unwrap();
    let going = gone.clone();
    *writers.last.lock().unwrap() = Some(Box::new(move || fs::remove_dir(going).unwrap()));
    let held = Held { writers: &writers, spool: limits(64 << 20, None) };
    drop(repo.archive_held(&request(&gone), &held, &Progress::default()));
    assert_eq!(writers.releases.load(Ordering::SeqCst), 1);
    assert!(repo.find(&[]).unwrap().is_empty());
}

#[test]
fn blobs_that_wait_are_no_part_of_the_repository_for_anybody_else() {
    let dir = scratch();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    for source in [&one, &two] {
        fs::create_dir(source).unwrap();
        fs::write(source.join("same"), corpus::noise(3 << 20, 1)).unwrap();
    }
    let (_, repo) = memory();
    let other = repo.clone();
    let writers = Noted { broken: true, ..Noted::default() };
    // The first fails after it was read; the second, which holds the same, has to bring everything itself.
    let held = Held { writers: &writers, spool: limits(64 << 20, None) };
    drop(repo.archive_held(&request(&one), &held, &Progress::default()));
    let second = other.archive(&request(&two), &Progress::default()).unwrap();
    assert!(second.new_bytes > 3 << 20, "{second:?}");
    verify_all(&repo, second.snapshot.unwrap());
}

#[test]
fn the_far_end_holds_writers_by_the_near_one_and_the_store_waits_there_too() {
    let dir = scratch();
    let source = dir.path().join("source");
    corpus::make(&source);
    let writers = Noted::default();
    let (_, asked, repo) = watched(&writers.held);
    let (to_far, writer) = std::io::pipe().unwrap();
    let (reader, from_far) = std::io::pipe().unwrap();
    let thread = std::thread::spawn(move || serve(to_far, from_far, |_| true));
    let mut session = Session::open(&repo, reader, writer).unwrap();
    let detached = |parents| ArchiveRequest {
        roots: vec![root("/volumes/home", &source, Layout::Plain)],
        pass: Pass::Detached,
        parents,
        ..request(&source)
    };
    let live = ArchiveRequest { pass: Pass::Live, ..detached(vec![]) };
    let live = session.archive(&live, &Progress::default()).unwrap();
    // More than the far end keeps: the rest waits at this one.
    fs::write(source.join("late"), corpus::noise(90 << 20, 7)).unwrap();
    let held = Held { writers: &writers, spool: limits(0, Some(dir.path())) };
    let parents = vec![Parent::Tree(live.tree)];
    let captured = session.archive_held(&detached(parents), &held, &Progress::default()).unwrap();
    assert_eq!(*asked.lock().unwrap(), Vec::<String>::new());
    assert_eq!((writers.holds.load(Ordering::SeqCst), writers.releases.load(Ordering::SeqCst)), (1, 1));
    let passed = Source::Passed { tree: captured.tree, path: "/volumes/home".into() };
    let whole = ArchiveRequest { roots: vec![Root { at: "/volumes/home".into(), source: passed }], ..request(&source) };
    let snapshot = repo.archive(&whole, &Progress::default()).unwrap().snapshot.unwrap();
    verify_all(&repo, snapshot);
    let target = dir.path().join("target");
    restore(&repo, snapshot, &target);
    compare::assert_same(&compare::snapshot(&source), &compare::snapshot(&target));

    let writers = Noted { broken: true, ..Noted::default() };
    let held = Held { writers: &writers, spool: limits(0, Some(dir.path())) };
    let refused = session.archive_held(&detached(vec![]), &held, &Progress::default());
    assert!(matches!(refused, Err(Error::NotHeld { .. })), "{refused:?}");
    session.archive(&detached(vec![]), &Progress::default()).unwrap();
    drop(session);
    thread.join().unwrap().unwrap();
}
