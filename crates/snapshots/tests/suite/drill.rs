//! Drills: whatever is wrong with a snapshot, or with the way back from it, is found; nothing else is (P38).
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use crate::support::faulty::{Fault, FaultyBackend};
use crate::support::*;
use perennial_core::progress::Progress;
use perennial_snapshots::*;

/// Keeps packs once they were read, until it is told to drop them.
#[derive(Debug)]
struct Cached {
    medium: MemoryBackend,
    pages: Mutex<HashMap<Id, Vec<u8>>>,
}

impl Backend for Cached {
    fn prepare(&self) -> Result<(), BackendError> {
        self.medium.prepare()
    }

    fn list(&self, kind: FileKind) -> Result<Vec<FileInfo>, BackendError> {
        self.medium.list(kind)
    }

    fn read(&self, kind: FileKind, id: Id) -> Result<Vec<u8>, BackendError> {
        let mut pages = self.pages.lock().unwrap();
        if kind != FileKind::Pack {
            return self.medium.read(kind, id);
        }
        if let Some(page) = pages.get(&id) {
            return Ok(page.clone());
        }
        let data = self.medium.read(kind, id)?;
        pages.insert(id, data.clone());
        Ok(data)
    }

    fn read_range(&self, kind: FileKind, id: Id, offset: u64, len: usize) -> Result<Vec<u8>, BackendError> {
        let start = usize::try_from(offset).unwrap();
        Ok(self.read(kind, id)?[start..start + len].to_vec())
    }

    fn write(&self, kind: FileKind, id: Id, data: &[u8]) -> Result<(), BackendError> {
        self.medium.write(kind, id, data)
    }

    fn remove(&self, kind: FileKind, id: Id) -> Result<(), BackendError> {
        self.medium.remove(kind, id)
    }

    fn size(&self, kind: FileKind, id: Id) -> Result<Option<u64>, BackendError> {
        self.medium.size(kind, id)
    }

    fn drop_caches(&self, kind: FileKind, id: Id) -> Result<(), BackendError> {
        self.pages.lock().unwrap().remove(&id);
        self.medium.drop_caches(kind, id)
    }
}

/// What is restored one by one, though it is in one directory.
const APART: &[&str] = &["volumes"];
const ROOM: Room = Room { bytes: u64::MAX, inodes: u64::MAX };

fn drill_in(repo: &Repository, snapshot: SnapshotFileId, scratch: &Path, free: Room) -> Result<Drilled> {
    let result = repo.drill(snapshot, APART, scratch, &|_| Ok(free), &Progress::default());
    assert_eq!(fs::read_dir(scratch).unwrap().count(), 0, "what was restored is removed");
    result
}

fn drill(repo: &Repository, snapshot: SnapshotFileId) -> Result<Drilled> {
    drill_in(repo, snapshot, scratch().path(), ROOM)
}

/// One of everything, and an overlay's upper layer with deletions.
fn all_of_it(dir: &Path) -> (MemoryBackend, Repository, Archived) {
    let (plain, upper) = (dir.join("plain"), dir.join("upper"));
    fs::create_dir(&plain).unwrap();
    corpus::make(&plain);
    fs::create_dir_all(upper.join("opaque/in it")).unwrap();
    fs::write(upper.join("opaque/file"), "x").unwrap();
    corpus::xattr(&upper.join("opaque"), "trusted.overlay.opaque", b"y");
    for gone in ["gone", "opaque/gone too"] {
        let mode = rustix::fs::Mode::from_raw_mode(0);
        rustix::fs::mknodat(rustix::fs::CWD, upper.join(gone), rustix::fs::FileType::CharacterDevice, mode, 0).unwrap();
    }
    let (backend, repo) = memory();
    let mut request = request(&plain);
    request.roots.push(root("/volumes/srv", &upper, Layout::OverlayUpper));
    let archived = repo.archive(&request, &Progress::default()).unwrap();
    (backend, repo, archived)
}

#[test]
fn p38_a_drill_proves_everything_that_a_snapshot_holds() {
    let dir = scratch();
    let (_, repo, archived) = all_of_it(dir.path());
    let snapshot = archived.snapshot.unwrap();
    let drilled = drill(&repo, snapshot).unwrap();
    // The made-up directories above the roots are in no part.
    let Counts { files, dirs, bytes } = archived.counts;
    assert_eq!(drilled.counts.files, files, "{drilled:?} {:?}", archived.counts);
    assert!(drilled.counts.dirs + 3 >= dirs && drilled.counts.bytes == bytes, "{drilled:?} {:?}", archived.counts);
    assert!(drilled.bytes_compared >= 5 << 20);
    assert_eq!(drilled.removals, 2);
}

#[test]
fn p38_a_drill_finds_a_flipped_bit_and_a_missing_file_anywhere() {
    let dir = scratch();
    let (backend, _, archived) = all_of_it(dir.path());
    let snapshot = archived.snapshot.unwrap();
    for pack in backend.list(FileKind::Pack).unwrap() {
        let data = backend.read(FileKind::Pack, pack.id).unwrap();
        let header = 40_usize.min(data.len() / 2);
        let mut places: Vec<Option<usize>> = (0..8).map(|n| Some((data.len() - header) * n / 8)).collect();
        places.push(None);
        for place in places {
            let rotten = backend.snapshot();
            match place {
                None => rotten.remove(FileKind::Pack, pack.id).unwrap(),
                Some(at) => {
                    let mut bad = data.clone();
                    bad[at] ^= 1;
                    rotten.write(FileKind::Pack, pack.id, &bad).unwrap();
                }
            }
            let repo = Repository::open(Arc::new(rotten), &password()).unwrap();
            match drill(&repo, snapshot) {
                Err(error) => assert!(error.is_damage(), "{place:?} of {}: {error:?}", data.len()),
                // Its header: what the index says is enough to restore everything.
                Ok(_) => assert!(repo.verify(snapshot, &Verify::Everything, &Progress::default()).is_err()),
            }
        }
    }
}

#[test]
fn p38_a_drill_finds_a_restore_that_wrote_anything_wrong() {
    type Wrong = (&'static str, fn(&Path));
    let wrongs: [Wrong; 13] = [
        ("content differs", |at| {
            let mut data = fs::read(at.join("large")).unwrap();
            data[3_000_000] ^= 1;
            let time = fs::metadata(at.join("large")).unwrap().modified().unwrap();
            fs::write(at.join("large"), data).unwrap();
            fs::File::open(at.join("large")).unwrap().set_modified(time).unwrap();
        }),
        ("size differs", |at| {
            let file = fs::OpenOptions::new().write(true).open(at.join("text")).unwrap();
            let time = file.metadata().unwrap().modified().unwrap();
            file.set_len(100).unwrap();
            corpus::xattr(&at.join("text"), "security.capability", &{
                [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
            });
            file.set_modified(time).unwrap();
        }),
        ("missing", |at| fs::remove_file(at.join("dir/hard3")).unwrap()),
        ("not in the snapshot", |at| fs::write(at.join("a/b/c/more"), "").unwrap()),
        ("mode", |at| fs::set_permissions(at.join("small"), fs::Permissions::from_mode(0o644)).unwrap()),
        ("owner", |at| std::os::unix::fs::lchown(at.join("link"), Some(7), Some(7)).unwrap()),
        ("last change", |at| corpus::set_mtime(&at.join("large"), 5, 5)),
        ("attributes", |at| corpus::xattr(&at.join("dir/empty"), "trusted.binary", b"other")),
        ("attributes", |at| rustix::fs::removexattr(at.join("large"), "system.posix_acl_access").unwrap()),
        ("points elsewhere", |at| {
            fs::remove_file(at.join("link")).unwrap();
            std::os::unix::fs::symlink("smell", at.join("link")).unwrap();
        }),
        ("two files", |at| {
            fs::remove_file(at.join("hard2")).unwrap();
            fs::copy(at.join("hard1"), at.join("hard2")).unwrap();
        }),
        ("something else", |at| {
            fs::remove_file(at.join("fifo")).unwrap();
            fs::write(at.join("fifo"), "").unwrap();
        }),
        ("another device", |at| {
            fs::remove_file(at.join("null")).unwrap();
            let mode = rustix::fs::Mode::from_raw_mode(0o666);
            let device = rustix::fs::makedev(1, 5);
            rustix::fs::mknodat(rustix::fs::CWD, at.join("null"), rustix::fs::FileType::CharacterDevice, mode, device)
                .unwrap();
        }),
    ];
    let dir = scratch();
    let (_, repo, archived) = all_of_it(dir.path());
    let snapshot = archived.snapshot.unwrap();
    let parts = repo.drill_parts(snapshot, APART, &Progress::default()).unwrap();
    let compare = |part: &str, name: &str, wrong: &dyn Fn(&Path)| {
        let part = parts.iter().find(|p| p.path == part).unwrap();
        let target = dir.path().join(name);
        repo.drill_restore(snapshot, part, &target, &Progress::default()).unwrap();
        repo.drill_compare(snapshot, part, &target, &Progress::default()).unwrap();
        // The change alone is to be found, not that of the directory's time.
        let inside = ["", "dir", "dir/empty", "a/b/c", "opaque"].map(|at| target.join(at));
        let times = inside.map(|at| fs::metadata(&at).ok().map(|meta| (at, meta.modified().unwrap())));
        wrong(&target);
        for (at, time) in times.into_iter().flatten() {
            fs::File::open(at).unwrap().set_modified(time).unwrap();
        }
        repo.drill_compare(snapshot, part, &target, &Progress::default()).unwrap_err()
    };
    for (n, (words, wrong)) in wrongs.iter().enumerate() {
        let error = compare("/volumes/home", &format!("plain{n}"), wrong);
        let text = error.to_string();
        assert!(matches!(error, Error::Differs { .. }) && text.contains(words), "{n}, {words}: {text}");
    }
    let overlay: [Wrong; 3] = [
        ("deleted from the image", |at| fs::remove_file(at.join("opaque/gone too")).unwrap()),
        ("hides the image", |at| rustix::fs::removexattr(at.join("opaque"), "trusted.overlay.opaque").unwrap()),
        ("hides the image", |at| corpus::xattr(&at.join("opaque/in it"), "trusted.overlay.opaque", b"y")),
    ];
    for (n, (words, wrong)) in overlay.iter().enumerate() {
        let error = compare("/volumes/srv", &format!("upper{n}"), wrong);
        assert!(matches!(error, Error::Differs { .. }) && error.to_string().contains(words), "{words}: {error}");
    }
}

/// The pack with a bit of its first blob flipped; `None` when the snapshot does not need that blob: two threads that meet with
/// the same content both store it, and one of the two is needed by nothing.
fn needed_and_broken(backend: &MemoryBackend, snapshot: SnapshotFileId, pack: Id) -> Option<Vec<u8>> {
    let broken = backend.snapshot();
    let mut bad = broken.read(FileKind::Pack, pack).unwrap();
    bad[5] ^= 1;
    broken.write(FileKind::Pack, pack, &bad).unwrap();
    drill(&Repository::open(Arc::new(broken), &password()).unwrap(), snapshot).is_err().then_some(bad)
}

#[test]
fn p38_a_drill_reads_the_medium_and_not_what_is_cached_of_it() {
    let dir = scratch();
    let (backend, _, archived) = all_of_it(dir.path());
    let snapshot = archived.snapshot.unwrap();
    let mut hurt = 0;
    for pack in backend.list(FileKind::Pack).unwrap() {
        let Some(bad) = needed_and_broken(&backend, snapshot, pack.id) else { continue };
        hurt += 1;
        let medium = backend.snapshot();
        let cached = Arc::new(Cached { medium: medium.clone(), pages: Mutex::default() });
        let repo = Repository::open(cached, &password()).unwrap();
        drill(&repo, snapshot).unwrap();
        medium.write(FileKind::Pack, pack.id, &bad).unwrap();
        assert!(drill(&repo, snapshot).unwrap_err().is_damage());
    }
    assert!(hurt > 0);
}

#[test]
fn p38_what_the_medium_does_not_give_is_damage_and_a_medium_that_is_gone_is_none() {
    let dir = scratch();
    let (backend, _, archived) = all_of_it(dir.path());
    let snapshot = archived.snapshot.unwrap();
    let mut packs = backend.list(FileKind::Pack).unwrap();
    packs.retain(|pack| needed_and_broken(&backend, snapshot, pack.id).is_some());
    assert!(!packs.is_empty());
    let faulty = FaultyBackend::new(Arc::new(backend), Fault::Error, false);
    let repo = Repository::open(faulty.clone(), &password()).unwrap();
    for pack in packs {
        *faulty.rotten.lock().unwrap() = vec![(pack.id, 0..10)];
        let error = drill(&repo, snapshot).unwrap_err();
        assert!(error.is_damage() && error.to_string().contains(&pack.id.to_string()), "{error:?}");
        let error = repo.verify(snapshot, &Verify::Everything, &Progress::default()).unwrap_err();
        assert!(error.is_damage(), "{error:?}");
    }
    faulty.medium_gone.store(true, Ordering::SeqCst);
    assert!(!drill(&repo, snapshot).unwrap_err().is_damage());
    assert!(!repo.verify(snapshot, &Verify::Everything, &Progress::default()).unwrap_err().is_damage());
}

#[test]
fn p38_a_drill_that_could_not_run_says_nothing_about_the_snapshot() {
    let dir = scratch();
    let (backend, repo, archived) = all_of_it(dir.path());
    let snapshot = archived.snapshot.unwrap();
    let parts = repo.drill_parts(snapshot, APART, &Progress::default()).unwrap();
    let most = |of: fn(Room) -> u64| parts.iter().map(|part| of(part.needs)).max().unwrap();
    let (bytes, inodes) = (most(|room| room.bytes), most(|room| room.inodes));
    // Holes take up no room: 64 MiB of the corpus are one.
    assert!((5 << 20..30 << 20).contains(&bytes), "{bytes}");
    let archived = archived.counts;
    assert!(inodes > 10 && inodes <= archived.files + archived.dirs + 20, "{inodes} {archived:?}");
    let error = drill_in(&repo, snapshot, scratch().path(), Room { bytes, inodes: inodes - 1 }).unwrap_err();
    assert!(error.to_string().contains("inodes free"), "{error}");
    let error = drill_in(&repo, snapshot, scratch().path(), Room { bytes: bytes - 1, inodes }).unwrap_err();
    assert!(error.to_string().contains("bytes free"), "{error}");
    assert!(matches!(error, Error::NoSpace { .. }) && !error.is_damage() && error.is_retryable(), "{error:?}");
    drill_in(&repo, snapshot, scratch().path(), Room { bytes, inodes }).unwrap();
    // A full disk, and a store that fails.
    let full = |_: &Path| Err(Error::NoSpace { path: "/".into(), of: "bytes", needed: 1, free: 0 });
    assert!(!repo.drill(snapshot, APART, scratch().path(), &full, &Progress::default()).unwrap_err().is_damage());
    for k in 0..40 {
        let faulty = FaultyBackend::new(Arc::new(backend.snapshot()), Fault::Error, false);
        let failing = Repository::open(faulty.clone(), &password()).unwrap();
        let start = faulty.reads.load(Ordering::SeqCst) as i64;
        faulty.bad_read.store(start + k, Ordering::SeqCst);
        if let Err(error) = drill(&failing, snapshot) {
            assert!(!error.is_damage(), "{error:?}");
        }
    }
    let cancelled = Progress::default();
    cancelled.cancel();
    let error = repo.drill(snapshot, APART, scratch().path(), &|_| Ok(ROOM), &cancelled).unwrap_err();
    assert!(matches!(error, Error::Cancelled), "{error:?}");
}
