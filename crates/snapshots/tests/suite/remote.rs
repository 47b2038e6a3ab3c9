//! A repository used from the far end of a channel: the same results, and nothing good from an end that lies or dies.

use std::fs;
use std::io::{self, PipeReader, PipeWriter, Read, Write, pipe};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use crate::support::faulty::{Fault, FaultyBackend, HookedBackend};
use crate::support::*;
use perennial_core::progress::Progress;
use perennial_snapshots::remote::{Session, serve};
use perennial_snapshots::*;

/// A far end in a thread of its own.
struct FarEnd {
    thread: JoinHandle<io::Result<()>>,
    reader: PipeReader,
    writer: PipeWriter,
}

fn far_end(reach: impl Fn(&Path) -> bool + Send + 'static) -> FarEnd {
    let (to_far, writer) = pipe().unwrap();
    let writer_end = writer;
    let (reader, from_far) = pipe().unwrap();
    let thread = std::thread::spawn(move || serve(to_far, from_far, reach));
    FarEnd { thread, reader, writer: writer_end }
}

/// A session with such an end, and the end's thread.
fn session(repository: &Repository) -> (Session, JoinHandle<io::Result<()>>) {
    let far = far_end(|_| true);
    (Session::open(repository, far.reader, far.writer).unwrap(), far.thread)
}

fn ended(session: Session, thread: JoinHandle<io::Result<()>>) {
    drop(session);
    thread.join().unwrap().unwrap();
}

fn detached(path: &Path) -> ArchiveRequest {
    ArchiveRequest { roots: vec![root("/volumes/home", path, Layout::Plain)], pass: Pass::Detached, ..request(path) }
}

/// The snapshot that takes in what the far end captured.
fn commit(repository: &Repository, tree: TreeId) -> Archived {
    let passed = |path: &str| Root { at: path.to_owned(), source: Source::Passed { tree, path: path.to_owned() } };
    let file = Root { at: "/pod.json".into(), source: Source::Bytes { data: b"{}".to_vec(), mode: 0o600 } };
    let roots = vec![passed("/volumes/home"), file];
    repository.archive(&ArchiveRequest { roots, ..request(Path::new("/")) }, &Progress::default()).unwrap()
}

#[test]
fn what_the_far_end_captures_is_what_this_one_would_have() {
    let dir = scratch();
    let source = dir.path().join("source");
    corpus::make(&source);
    let (_, here) = memory();
    let local = archive(&here, &source);

    let (_, repository) = memory();
    let (mut session, thread) = session(&repository);
    let progress = Progress::default();
    let live = session.archive(&ArchiveRequest { pass: Pass::Live, ..detached(&source) }, &progress).unwrap();
    assert!(live.snapshot.is_none() && live.new_bytes > 0);
    assert!(progress.read().files_done > 0, "{:?}", progress.read());
    let parents = vec![Parent::Tree(live.tree)];
    let captured = session.archive(&ArchiveRequest { parents, ..detached(&source) }, &Progress::default()).unwrap();
    assert!(captured.snapshot.is_none() && captured.losses.is_empty());
    assert!(repository.find(&[]).unwrap().is_empty(), "the far end made a snapshot");
    let committed = commit(&repository, captured.tree);
    assert_eq!(committed.counts, local.counts);
    assert_eq!(committed.read_bytes, 0);

    // Everything it wrote is read back, although this process did not write it.
    let written = Verify::Written { packs: Vec::new() };
    let verified = repository.verify(committed.snapshot.unwrap(), &written, &Progress::default()).unwrap();
    assert_eq!(verified.packs_read, verified.packs_needed);
    assert_eq!(live.written_packs.len() + captured.written_packs.len() + committed.written_packs.len(), {
        usize::try_from(verified.packs_read).unwrap()
    });

    let target = dir.path().join("target");
    let restored =
        session.restore(committed.snapshot.unwrap(), &restore_request(&target), &Progress::default()).unwrap();
    assert_eq!(restored.counts, verified_counts(&local));
    compare::assert_same(&compare::snapshot(&source), &compare::snapshot(&target));
    assert_eq!(session.look(&[target.clone(), dir.path().join("none")]).unwrap(), [true, false]);
    session.sync(&[target]).unwrap();
    ended(session, thread);
}

/// The counts of `/volumes/home` alone.
fn verified_counts(archived: &Archived) -> Counts {
    archived.per_root.iter().find(|r| r.at == "/volumes/home").unwrap().counts
}

#[test]
fn a_damaged_pack_from_the_far_end_is_found_when_it_is_read_back() {
    let dir = scratch();
    let source = dir.path().join("source");
    corpus::make(&source);
    let (backend, repository) = memory();
    let (mut session, thread) = session(&repository);
    let captured = session.archive(&detached(&source), &Progress::default()).unwrap();
    let pack = captured.written_packs[0];
    let committed = commit(&repository, captured.tree).snapshot.unwrap();
    let mut bytes = backend.read(FileKind::Pack, pack).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    backend.write(FileKind::Pack, pack, &bytes).unwrap();
    let verdict = repository.verify(committed, &Verify::Written { packs: Vec::new() }, &Progress::default());
    assert!(matches!(verdict, Err(Error::Damaged { .. })), "{verdict:?}");
    ended(session, thread);
}

#[test]
fn losses_and_refusals_come_back_as_they_are() {
    let dir = scratch();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("kept"), "kept").unwrap();
    let upper =
        ArchiveRequest { roots: vec![root("/volumes/home", &source, Layout::OverlayUpper)], ..detached(&source) };
    let (_, repository) = memory();
    let (mut session, thread) = session(&repository);
    xattr(&source.join("kept"), "trusted.overlay.metacopy");
    let error = session.archive(&upper, &Progress::default()).unwrap_err();
    assert!(matches!(&error, Error::UnknownOverlayAttribute { attribute, .. } if attribute.contains("metacopy")));
    let none = restore_request(&dir.path().join("target"));
    let absent = SnapshotFileId(Id::of(b"absent"));
    let error = session.restore(absent, &none, &Progress::default()).unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error}");
    let made = commit(&repository, session.archive(&detached(&source), &Progress::default()).unwrap().tree);
    let full = restore_request(&source);
    let error = session.restore(made.snapshot.unwrap(), &full, &Progress::default()).unwrap_err();
    assert!(matches!(&error, Error::TargetNotEmpty { path } if *path == source), "{error}");
    let snapshot = ArchiveRequest { pass: Pass::Commit, ..detached(&source) };
    assert!(matches!(session.archive(&snapshot, &Progress::default()), Err(Error::InvalidRequest(_))));
    ended(session, thread);
}

fn xattr(path: &Path, name: &str) {
    rustix::fs::setxattr(path, name, b"x", rustix::fs::XattrFlags::empty()).unwrap();
}

#[test]
fn only_what_is_in_reach_is_touched() {
    let dir = scratch();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    let (_, repository) = memory();
    let within = dir.path().join("volumes");
    let far = far_end(move |path| path.starts_with(&within));
    let mut session = Session::open(&repository, far.reader, far.writer).unwrap();
    let refused = [
        session.archive(&detached(&source), &Progress::default()).err(),
        session.restore(SnapshotFileId(Id::of(b"")), &restore_request(&source), &Progress::default()).err(),
        session.look(std::slice::from_ref(&source)).err(),
        session.sync(std::slice::from_ref(&source)).err(),
    ];
    for error in refused {
        let error = error.unwrap();
        assert!(!error.is_retryable() && error.to_string().contains("none of the volumes"), "{error}");
    }
    ended(session, far.thread);
}

#[test]
fn a_failure_of_the_repository_is_told_as_it_was_and_the_next_try_succeeds() {
    let dir = scratch();
    let source = dir.path().join("source");
    corpus::make(&source);
    let (backend, repository) = memory();
    drop(repository);
    for change in 0..6 {
        let faulty = FaultyBackend::new(Arc::new(backend.snapshot()), Fault::Error, false);
        let repository = Repository::open(Arc::clone(&faulty) as _, &password()).unwrap();
        faulty.bad_change.store(change, std::sync::atomic::Ordering::SeqCst);
        let (mut session, thread) = session(&repository);
        match session.archive(&detached(&source), &Progress::default()) {
            Ok(_) => {}
            Err(Error::Backend(error)) => assert!(error.is_retryable(), "{error}"),
            Err(error) => panic!("change {change}: {error:?}"),
        }
        drop(session);
        // The end of a session whose job failed is no trouble of the far end's.
        thread.join().unwrap().unwrap();
    }
}

#[test]
fn a_cancelled_job_ends_and_the_session_goes_on() {
    let dir = scratch();
    let source = dir.path().join("source");
    corpus::make(&source);
    let (backend, repository) = memory();
    drop(repository);
    let progress = Progress::default();
    let cancelled = progress.clone();
    // In the middle of it: when the first pack arrives.
    let hooked = HookedBackend::new(Arc::new(backend), move |kind| {
        if kind == FileKind::Pack {
            cancelled.cancel();
        }
    });
    let repository = Repository::open(hooked, &password()).unwrap();
    let (mut session, thread) = session(&repository);
    let error = session.archive(&detached(&source), &progress).unwrap_err();
    assert!(matches!(error, Error::Cancelled), "{error}");
    session.archive(&detached(&source), &Progress::default()).unwrap();
    ended(session, thread);
}

// ---- ends that lie or die ------------------------------------------------------------------------------------------

fn frame(head: &str, body: &[u8]) -> Vec<u8> {
    let length = |n: usize| u32::try_from(n).unwrap().to_le_bytes();
    [&length(head.len())[..], &length(body.len()), head.as_bytes(), body].concat()
}

const HELLO: &str = r#"{"say":"hello","protocol":2}"#;

/// A far end that reads whatever comes and says exactly this.
fn scripted(said: Vec<u8>) -> (PipeReader, PipeWriter) {
    let (mut to_far, writer) = pipe().unwrap();
    let (reader, mut from_far) = pipe().unwrap();
    std::thread::spawn(move || {
        // In pieces, so that what it says arrives while it is being asked; who hung up is not interested.
        let _ = from_far.write_all(&said);
        drop(from_far);
        let _ = io::copy(&mut to_far, &mut io::sink());
    });
    (reader, writer)
}

#[test]
fn a_far_end_that_lies_or_dies_never_gives_a_good_result() {
    let dir = scratch();
    let (backend, repository) = memory();
    let before = backend.snapshot();
    let hello = frame(HELLO, b"");
    let write = |kind: &str, id: Id, body: &[u8]| {
        frame(&format!(r#"{{"say":"call","call":1,"what":{{"write":{{"kind":"{kind}","id":"{id}"}}}}}}"#), body)
    };
    let scripts: Vec<(&str, Vec<u8>)> = vec![
        ("nothing at all", Vec::new()),
        ("another language", b"this build has no mover\n".to_vec()),
        ("another version", frame(r#"{"say":"hello","protocol":1}"#, b"")),
        ("no greeting", frame(r#"{"say":"progress","bytes":0,"files":0,"total":0}"#, b"")),
        ("only a greeting", hello.clone()),
        ("a torn message", [&hello[..], &frame(HELLO, b"")[..7]].concat()),
        ("a second greeting", [&hello[..], &hello].concat()),
        ("an endless message", [&hello[..], &u32::MAX.to_le_bytes(), &u32::MAX.to_le_bytes()].concat()),
        ("another answer", [&hello[..], &frame(r#"{"say":"done","outcome":"synced"}"#, b"")].concat()),
        (
            "unknown words",
            [&hello[..], &frame(r#"{"say":"done","outcome":{"archived":{"all":"good"}}}"#, b"")].concat(),
        ),
        ("a pack of another name", [&hello[..], &write("pack", Id::of(b"a"), b"b")].concat()),
        ("an index that is none", [&hello[..], &write("index", Id::of(b"x"), b"x")].concat()),
        ("a snapshot", [&hello[..], &write("snapshot", Id::of(b"x"), b"x")].concat()),
        ("a lock", [&hello[..], &write("lock", Id::of(b"x"), b"x")].concat()),
    ];
    for (what, said) in scripts {
        let (reader, writer) = scripted(said);
        let result = Session::open(&repository, reader, writer)
            .and_then(|mut session| session.archive(&detached(dir.path()), &Progress::default()).map(drop));
        let error = result.expect_err(what);
        assert!(matches!(error, Error::Remote { .. }) && error.is_retryable(), "{what}: {error:?}");
    }
    for kind in FileKind::ALL {
        assert_eq!(backend.list(kind).unwrap(), before.list(kind).unwrap(), "{kind} files were changed");
    }
}

#[test]
fn a_tree_that_was_never_sent_makes_no_snapshot() {
    let dir = scratch();
    let (_, repository) = memory();
    let invented = Id::of(b"invented");
    let done = format!(
        r#"{{"say":"done","outcome":{{"archived":{{"tree":"{invented}","counts":{{"files":1,"dirs":1,"bytes":1}},"newBytes":0,"readBytes":0,"losses":[],"roots":[]}}}}}}"#
    );
    let (reader, writer) = scripted([frame(HELLO, b""), frame(&done, b"")].concat());
    let mut session = Session::open(&repository, reader, writer).unwrap();
    let captured = session.archive(&detached(dir.path()), &Progress::default()).unwrap();
    let roots = vec![Root {
        at: "/volumes/home".into(),
        source: Source::Passed { tree: captured.tree, path: "/volumes/home".into() },
    }];
    let commit = repository.archive(&ArchiveRequest { roots, ..request(dir.path()) }, &Progress::default());
    assert!(matches!(commit, Err(Error::MissingBlob { .. })), "{commit:?}");
    assert!(repository.find(&[]).unwrap().is_empty());
}

/// Stops passing bytes on after so many: the end behind it dies.
struct Cut {
    inner: PipeReader,
    left: usize,
}

impl Read for Cut {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = buffer.len().min(self.left);
        let read = self.inner.read(&mut buffer[..count])?;
        self.left -= read;
        Ok(read)
    }
}

#[test]
fn an_end_that_dies_anywhere_leaves_nothing_that_the_next_try_minds() {
    let dir = scratch();
    let source = dir.path().join("source");
    corpus::make(&source);
    let (backend, repository) = memory();
    let mut left = 40;
    loop {
        let far = far_end(|_| true);
        let cut = Cut { inner: far.reader, left };
        let tried = Session::open(&repository, cut, far.writer)
            .and_then(|mut session| session.archive(&detached(&source), &Progress::default()));
        let _ = far.thread.join().unwrap();
        match tried {
            Ok(captured) => {
                let committed = commit(&repository, captured.tree).snapshot.unwrap();
                repository.verify(committed, &Verify::Written { packs: Vec::new() }, &Progress::default()).unwrap();
                verify_all(&repository, committed);
                break;
            }
            Err(error) => assert!(error.is_retryable(), "{left}: {error:?}"),
        }
        assert!(repository.find(&[]).unwrap().is_empty(), "{left}");
        assert!(backend.list(FileKind::Lock).unwrap().is_empty(), "{left}: a lock was left");
        left = left * 3 / 2;
    }
}

/// Counts how often writers are held and let go on.
#[derive(Default)]
struct Counted(std::sync::atomic::AtomicU32, std::sync::atomic::AtomicU32);

impl Writers for Counted {
    fn hold(&self) -> Result<()> {
        self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        Ok(())
    }

    fn release(&self) -> Result<()> {
        self.1.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        Ok(())
    }
}

#[test]
fn a_far_end_that_never_had_writers_held_captured_no_instant() {
    let dir = scratch();
    let (_, repository) = memory();
    let tree = Id::of(b"whatever");
    let done = format!(
        r#"{{"say":"done","outcome":{{"archived":{{"tree":"{tree}","counts":{{"files":1,"dirs":1,"bytes":1}},"newBytes":0,"readBytes":0,"losses":[],"roots":[]}}}}}}"#
    );
    let (hello, done) = (frame(HELLO, b""), frame(&done, b""));
    let (prepared, captured) = (frame(r#"{"say":"prepared"}"#, b""), frame(r#"{"say":"captured"}"#, b""));
    let scripts = [
        ("neither prepared nor captured", [&hello[..], &done].concat(), 0),
        ("never captured", [&hello[..], &prepared, &done].concat(), 1),
        ("captured before prepared", [&hello[..], &captured, &done].concat(), 0),
        ("prepared twice", [&hello[..], &prepared, &prepared, &done].concat(), 1),
    ];
    for (what, said, holds) in scripts {
        let (reader, writer) = scripted(said);
        let writers = Counted::default();
        let held = Held { writers: &writers, spool: SpoolLimits { memory: 1 << 20, directory: None } };
        let mut session = Session::open(&repository, reader, writer).unwrap();
        let result = session.archive_held(&detached(dir.path()), &held, &Progress::default());
        assert!(matches!(result, Err(Error::Remote { .. })), "{what}: {result:?}");
        assert_eq!((writers.0.into_inner(), writers.1.into_inner()), (holds, holds), "{what}");
    }
}
