//! Snapshots in real object stores, from the first upload over a server that dies to the restore, and restic beside us.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::faulty::HookedBackend;
use crate::support::service::{Kind, S3_CREDENTIALS, Service};
use crate::support::*;
use perennial_core::progress::Progress;
use perennial_snapshots::*;

/// More than one index file is written of: eight packs of 16 MiB each, and some.
const FILES: u64 = 18;
const FILE: usize = 8 << 20;

fn large_tree(root: &Path) {
    fs::create_dir_all(root.join("sub")).unwrap();
    for n in 0..FILES {
        fs::write(root.join(format!("sub/{n}")), corpus::noise(FILE, n)).unwrap();
    }
    corpus::make(&root.join("corpus"));
}

fn there_and_back(kind: Kind) {
    let Some(service) = Service::start(kind) else { return };
    let dir = scratch();
    let source = dir.path().join("source");
    large_tree(&source);
    let store = service.backend("te nant/one");
    assert!(!Repository::exists(&*store).unwrap());
    Repository::init(Arc::clone(&store), &password(), KeyCost::Test).unwrap();
    assert!(matches!(Repository::init(Arc::clone(&store), &password(), KeyCost::Test), Err(Error::AlreadyInitialized)));

    // The server dies when the first index file is written: eight packs count by then, and others are on their way.
    let service = Arc::new(service);
    let dying = Arc::clone(&service);
    let died = Arc::new(AtomicBool::new(false));
    let once = Arc::clone(&died);
    let hooked = HookedBackend::new(Arc::clone(&store), move |kind| {
        if kind == FileKind::Index && !once.swap(true, Ordering::SeqCst) {
            dying.kill();
        }
    });
    let interrupted = Repository::open(hooked, &password()).unwrap();
    let error = interrupted.archive(&request(&source), &Progress::default()).unwrap_err();
    assert!(died.load(Ordering::SeqCst));
    assert!(error.is_retryable(), "{error:?}");
    drop(interrupted);
    let gone = Repository::open(Arc::clone(&store), &password()).unwrap_err();
    assert!(matches!(&gone, Error::Backend(e) if e.is_retryable()), "a dead server is not an empty one: {gone:?}");
    service.restart();

    let repo = Repository::open(Arc::clone(&store), &password()).unwrap();
    assert_eq!(repo.find(&[]).unwrap(), []);
    let before = compare::snapshot(&source);
    let archived = archive(&repo, &source);
    let (all, indexed) = (FILES * FILE as u64, 8 * (16_u64 << 20));
    assert!(archived.new_bytes < all - indexed + (20 << 20), "{} bytes again", archived.new_bytes);
    let snapshot = archived.snapshot.unwrap();
    let written = Verify::Written { packs: archived.written_packs.clone() };
    repo.verify(snapshot, &written, &Progress::default()).unwrap();
    assert_eq!(verify_all(&repo, snapshot).counts, archived.counts);

    // Nothing changed: next to nothing is read or uploaded.
    let parents = vec![Parent::Snapshot(snapshot)];
    let again = repo.archive(&ArchiveRequest { parents, ..request(&source) }, &Progress::default()).unwrap();
    assert!(again.new_bytes < 1 << 20, "{}", again.new_bytes);

    let target = dir.path().join("target");
    restore(&repo, snapshot, &target);
    compare::assert_same(&before, &compare::snapshot(&target));

    // What the interrupted upload left is cleaned up, and what is needed stays.
    repo.forget(&[snapshot]).unwrap();
    let plan = repo.prune(Mode::DryRun, &Progress::default()).unwrap();
    let report = repo.prune(Mode::Execute, &Progress::default()).unwrap();
    assert_eq!(plan.doomed.len(), report.doomed.len());
    let checked = repo.check(Depth::Structure, &Progress::default()).unwrap();
    assert!(checked.problems.is_empty(), "{:?}", checked.problems);
    assert_eq!((checked.packs_not_indexed, checked.snapshots), (0, 1));
    verify_all(&repo, again.snapshot.unwrap());
    assert_eq!(store.list(FileKind::Lock).unwrap(), []);
}

#[test]
fn an_upload_to_a_real_s3_that_dies_goes_on_where_it_was() {
    there_and_back(Kind::S3);
}

#[test]
fn an_upload_to_a_real_azurite_that_dies_goes_on_where_it_was() {
    there_and_back(Kind::Azurite);
}

#[test]
fn restic_and_we_share_a_repository_on_a_real_s3() {
    let Some(service) = Service::start(Kind::S3) else { return };
    let dir = scratch();
    let source = dir.path().join("source");
    corpus::make(&source);
    fs::remove_file(source.join("dangling")).unwrap();
    corpus::set_mtime(&source, 5, 5);
    let restic =
        |prefix: &str, args: &[&str]| restic_with(OsStr::new(&service.repository(prefix)), args, &S3_CREDENTIALS);

    // This S3 keeps objects as files. It takes restic's listing of packs, with a delimiter that is there and empty, for
    // one without them, so restic checks what it finds in the files.
    let check = |prefix: &str| {
        let text = crate::support::restic(&service.objects().join(prefix), &["check", "--read-data"]);
        assert!(text.contains("no errors were found"), "{text}");
    };

    // Ours: restic checks, lists, restores and extends it.
    let repo = Repository::init(service.backend("ours"), &password(), KeyCost::Test).unwrap();
    let archived = archive(&repo, &source);
    check("ours");
    assert!(restic("ours", &["snapshots"]).contains("pod:1"));
    let target = dir.path().join("theirs");
    restic("ours", &["restore", "latest", "--target", target.to_str().unwrap()]);
    assert_eq!(fs::read(target.join("volumes/home/large")).unwrap(), fs::read(source.join("large")).unwrap());
    restic("ours", &["backup", source.to_str().unwrap()]);
    verify_all(&repo, archived.snapshot.unwrap());
    assert_eq!(repo.find(&[]).unwrap().len(), 2);

    // Theirs: we verify, restore and extend it.
    restic("theirs", &["init", "--repository-version", "2"]);
    restic("theirs", &["backup", source.to_str().unwrap()]);
    let before = compare::snapshot(&source);
    let repo = Repository::open(service.backend("theirs"), &password()).unwrap();
    let theirs = repo.find(&[]).unwrap().remove(0);
    verify_all(&repo, theirs.id);
    let target = dir.path().join("ours");
    let request = RestoreRequest { subtree: source.to_str().unwrap().into(), ..restore_request(&target) };
    repo.restore(theirs.id, &request, &Progress::default()).unwrap();
    let (mut expected, mut found) = (before, compare::snapshot(&target));
    for map in [&mut expected, &mut found] {
        for item in map.values_mut() {
            item.atime = (0, 0);
            if item.kind == 'l' {
                item.xattrs.clear();
            }
        }
    }
    compare::assert_same(&expected, &found);
    archive(&repo, &source);
    check("theirs");
}

/// A whole repository goes, its keys first and its config last, and nothing beside it.
fn razed(kind: Kind) {
    let Some(service) = Service::start(kind) else { return };
    let dir = scratch();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), corpus::noise(100_000, 1)).unwrap();
    let made = |prefix: &str| {
        let store = service.backend(prefix);
        let repo = Repository::init(Arc::clone(&store), &password(), KeyCost::Test).unwrap();
        repo.add_password(&Password::new("another"), KeyCost::Test).unwrap();
        (store, archive(&repo, &source).snapshot.unwrap())
    };
    let (store, _) = made("tenant/one");
    // A name that begins the same.
    let (beside, kept) = made("tenant/one-more");
    let count = |store: &dyn Backend, kind| store.list(kind).unwrap().len();
    let seen = Seen::of(&*store).unwrap().unwrap();
    let progress = Progress::default();
    let raze = |store: &dyn Backend, what| raze(store, &seen, what, &progress);
    assert!(matches!(raze(&*beside, Raze::All), Err(Error::NotSeen { kind: FileKind::Config, .. })));
    assert_eq!(raze(&*store, Raze::Keys).unwrap().files, 2);
    assert_eq!((count(&*store, FileKind::Key), count(&*store, FileKind::Snapshot)), (0, 1));
    assert!(Repository::open(Arc::clone(&store), &password()).is_err());
    let rest = raze(&*store, Raze::AllButConfig).unwrap();
    assert!(rest.files >= 3 && rest.bytes > 100_000, "{rest:?}");
    assert_eq!(raze(&*store, Raze::AllButConfig).unwrap(), Razed::default(), "it is safe to repeat");
    for kind in [FileKind::Key, FileKind::Snapshot, FileKind::Index, FileKind::Pack, FileKind::Lock] {
        assert_eq!(count(&*store, kind), 0, "{kind}");
    }
    raze(&*store, Raze::All).unwrap();
    assert!(!Repository::exists(&*store).unwrap() && Seen::of(&*store).unwrap().is_none());
    assert!(matches!(raze(&*store, Raze::AllButConfig), Err(Error::NoRepository)));
    verify_all(&Repository::open(beside, &password()).unwrap(), kept);
}

#[test]
fn a_repository_in_a_real_s3_is_razed_and_nothing_beside_it() {
    razed(Kind::S3);
}

#[test]
fn a_repository_in_a_real_azurite_is_razed_and_nothing_beside_it() {
    razed(Kind::Azurite);
}
