use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::*;
use crate::backend::{BackendError, LocalBackend, MemoryBackend};
use crate::password::{KeyCost, Password};

fn made(password: &str) -> MemoryBackend {
    let backend = MemoryBackend::default();
    Repository::init(Arc::new(backend.clone()), &Password::new(password), KeyCost::Test).expect("init");
    for kind in [FileKind::Pack, FileKind::Index, FileKind::Snapshot, FileKind::Lock] {
        backend.write(kind, Id::of(password.as_bytes()), b"content").expect("write");
    }
    backend
}

fn seen(backend: &dyn Backend) -> Seen {
    Seen::of(backend).expect("read").expect("there is one")
}

fn count(backend: &dyn Backend) -> usize {
    FileKind::ALL.iter().map(|kind| backend.list(*kind).expect("list").len()).sum()
}

const ALL: [Raze; 3] = [Raze::Keys, Raze::AllButConfig, Raze::All];

#[test]
fn what_is_not_the_repository_that_was_seen_is_not_razed() {
    let progress = Progress::default();
    let ours = made("ours");
    let seen = seen(&ours);
    for what in ALL {
        let other = made("ours");
        let refused = raze(&other, &seen, what, &progress);
        assert!(
            matches!(refused, Err(Error::NotSeen { kind: FileKind::Config, .. })),
            "the same password: {refused:?}"
        );
        assert_eq!(count(&other), count(&ours));
        let refused = raze(&MemoryBackend::default(), &seen, what, &progress);
        assert!(matches!(refused, Err(Error::NoRepository)), "{refused:?}");
    }
    assert_eq!(Seen::of(&MemoryBackend::default()).expect("read"), None);
}

#[test]
fn what_somebody_goes_on_with_since_it_was_seen_is_not_razed() {
    for what in ALL {
        let ours = made("ours");
        let before = seen(&ours);
        ours.write(FileKind::Snapshot, Id::of(b"new"), b"of another host").expect("write");
        let all = count(&ours);
        let refused = raze(&ours, &before, what, &Progress::default());
        assert!(matches!(refused, Err(Error::NotSeen { kind: FileKind::Snapshot, .. })), "{refused:?}");
        assert_eq!(count(&ours), all, "{what:?}");

        // A takeover of which nothing is seen yet but that the password was changed: the config stays what it is.
        let ours = MemoryBackend::default();
        Repository::init(Arc::new(ours.clone()), &Password::new("ours"), KeyCost::Test).expect("init");
        let before = seen(&ours);
        let repository = Repository::open(Arc::new(ours.clone()), &Password::new("ours")).expect("open");
        repository.add_password(&Password::new("next"), KeyCost::Test).expect("add");
        for key in &before.keys {
            ours.remove(FileKind::Key, *key).expect("remove");
        }
        let all = count(&ours);
        let refused = raze(&ours, &before, what, &Progress::default());
        assert!(matches!(refused, Err(Error::NotSeen { kind: FileKind::Key, .. })), "{refused:?}");
        assert_eq!(count(&ours), all, "{what:?}");
    }
}

/// A place whose disk is exchanged for another one after so many changes.
struct Exchanged<E> {
    place: Mutex<Arc<dyn Backend>>,
    exchange: E,
    left: AtomicUsize,
}

impl<E> std::fmt::Debug for Exchanged<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.place().fmt(f)
    }
}

impl<E> Exchanged<E> {
    fn place(&self) -> Arc<dyn Backend> {
        Arc::clone(&self.place.lock().expect("no panic"))
    }
}

impl<E: Fn(&mut Arc<dyn Backend>)> Exchanged<E> {
    fn changed(&self, change: impl FnOnce(&Arc<dyn Backend>) -> Result<(), BackendError>) -> Result<(), BackendError> {
        let mut place = self.place.lock().expect("no panic");
        change(&place)?;
        if self.left.fetch_sub(1, Ordering::SeqCst) == 1 {
            (self.exchange)(&mut place);
        }
        Ok(())
    }
}

impl<E: Fn(&mut Arc<dyn Backend>) + Send + Sync> Backend for Exchanged<E> {
    fn prepare(&self) -> Result<(), BackendError> {
        self.changed(|place| place.prepare())
    }

    fn list(&self, kind: FileKind) -> Result<Vec<FileInfo>, BackendError> {
        self.place().list(kind)
    }

    fn read(&self, kind: FileKind, id: Id) -> Result<Vec<u8>, BackendError> {
        self.place().read(kind, id)
    }

    fn read_range(&self, kind: FileKind, id: Id, offset: u64, len: usize) -> Result<Vec<u8>, BackendError> {
        self.place().read_range(kind, id, offset, len)
    }

    fn write(&self, kind: FileKind, id: Id, data: &[u8]) -> Result<(), BackendError> {
        self.place().write(kind, id, data)
    }

    fn remove(&self, kind: FileKind, id: Id) -> Result<(), BackendError> {
        self.changed(|place| place.remove(kind, id))
    }

    fn remove_unfinished(&self, kind: FileKind) -> Result<(), BackendError> {
        self.changed(|place| place.remove_unfinished(kind))
    }

    fn remove_place(&self) -> Result<(), BackendError> {
        self.changed(|place| place.remove_place())
    }

    fn size(&self, kind: FileKind, id: Id) -> Result<Option<u64>, BackendError> {
        self.place().size(kind, id)
    }

    fn set_aside(&self, kind: FileKind, id: Id) -> Result<(), BackendError> {
        self.place().set_aside(kind, id)
    }

    fn list_aside(&self, kind: FileKind) -> Result<Vec<FileInfo>, BackendError> {
        self.place().list_aside(kind)
    }

    fn drop_caches(&self, kind: FileKind, id: Id) -> Result<(), BackendError> {
        self.place().drop_caches(kind, id)
    }
}

#[test]
fn a_repository_that_takes_the_place_while_it_is_razed_keeps_every_file() {
    for what in ALL {
        let mut refused = 0;
        for after in 1.. {
            let (ours, other) = (made("ours"), made("another"));
            let all = count(&other);
            let before = seen(&ours);
            let exchange = |place: &mut Arc<dyn Backend>| *place = Arc::new(other.clone());
            let (place, left) = (Mutex::new(Arc::new(ours.clone()) as _), AtomicUsize::new(after));
            let razed = raze(&Exchanged { place, exchange, left }, &before, what, &Progress::default());
            assert_eq!(count(&other), all, "{what:?}, exchanged after {after} changes");
            match razed {
                Err(Error::NotSeen { .. }) => refused += 1,
                Err(error) => panic!("{error:?}"),
                // All that was to go went before.
                Ok(razed) => {
                    assert!(razed.files > 0 && ours.list(FileKind::Key).expect("list").is_empty());
                    assert!(what != Raze::All || count(&ours) == 0, "{what:?}, exchanged after {after} changes");
                    break;
                }
            }
        }
        assert!(refused > 2, "{what:?}");
    }
}

#[test]
fn a_directory_that_takes_the_place_while_it_is_razed_keeps_every_file() {
    let home = tempfile::tempdir().expect("a directory");
    let init = |name: &str| {
        let backend = LocalBackend::new(home.path().join(name));
        Repository::init(Arc::new(backend.clone()), &Password::new(name), KeyCost::Test).expect("init");
        for pack in ["one", "two"].map(|pack| format!("{pack} of {name}")) {
            backend.write(FileKind::Pack, Id::of(pack.as_bytes()), pack.as_bytes()).expect("write");
        }
        backend
    };
    let other = init("other");
    // After the key went, and after the first pack.
    for (n, after) in [3, 7].into_iter().enumerate() {
        let ours = init("place");
        let before = seen(&ours);
        let (gone, place) = (home.path().join(format!("gone-{n}")), ours.path().to_owned());
        let exchange = |_: &mut Arc<dyn Backend>| {
            std::fs::rename(&place, &gone).expect("unmount");
            std::fs::rename(other.path(), &place).expect("mount");
        };
        let (now, left) = (Mutex::new(Arc::new(ours.clone()) as _), AtomicUsize::new(after));
        let refused = raze(&Exchanged { place: now, exchange, left }, &before, Raze::All, &Progress::default());
        assert!(matches!(refused, Err(Error::NotSeen { kind: FileKind::Config, .. })), "{refused:?}");
        assert_eq!(count(&ours), 4, "exchanged after {after} changes");
        assert!(Repository::open(Arc::new(ours), &Password::new("other")).is_ok());
        std::fs::rename(&place, other.path()).expect("take it away");
    }
}

#[test]
fn it_goes_in_parts_and_the_config_is_the_last() {
    let backend = made("ours");
    let seen = seen(&backend);
    let progress = Progress::default();
    let left = count(&backend);
    assert_eq!(raze(&backend, &seen, Raze::Keys, &progress).expect("raze").files, 1);
    assert!(Repository::open(Arc::new(backend.clone()), &Password::new("ours")).is_err());
    assert_eq!(count(&backend), left - 1);
    raze(&backend, &seen, Raze::AllButConfig, &progress).expect("raze");
    assert_eq!(count(&backend), 1, "it can be repeated");
    raze(&backend, &seen, Raze::AllButConfig, &progress).expect("raze");
    raze(&backend, &seen, Raze::All, &progress).expect("raze");
    assert_eq!(count(&backend), 0);
    // What is not there any more, such as below a disk that went, is not called razed.
    for what in ALL {
        let refused = raze(&backend, &seen, what, &progress);
        assert!(matches!(refused, Err(Error::NoRepository)), "{refused:?}");
    }
}

#[test]
fn on_a_disk_no_copy_of_the_master_key_is_left_and_an_interrupted_end_goes_on() {
    let home = tempfile::tempdir().expect("a directory");
    let backend = LocalBackend::new(home.path().join("place"));
    Repository::init(Arc::new(backend.clone()), &Password::new("ours"), KeyCost::Test).expect("init");
    let seen = seen(&backend);
    let progress = Progress::default();
    let unfinished = ["keys", "data/ab"].map(|place| backend.path().join(place).join("abc-tmp-0"));
    for file in &unfinished {
        std::fs::write(file, "a copy of the master key, or a pack").expect("write");
    }
    raze(&backend, &seen, Raze::Keys, &progress).expect("raze");
    assert!(!unfinished[0].exists() && unfinished[1].exists());
    assert!(backend.list(FileKind::Key).expect("list").is_empty());
    // A crash when the directories were gone and the config was not.
    raze(&backend, &seen, Raze::AllButConfig, &progress).expect("raze");
    backend.remove_place().expect("remove");
    assert!(backend.path().join("config").exists() && !backend.path().join("keys").exists());
    raze(&backend, &seen, Raze::AllButConfig, &progress).expect("raze");
    raze(&backend, &seen, Raze::All, &progress).expect("raze");
    assert!(!backend.path().exists());
}

#[test]
fn what_somebody_else_keeps_in_the_place_stays() {
    let home = tempfile::tempdir().expect("a directory");
    let backend = LocalBackend::new(home.path().join("place"));
    Repository::init(Arc::new(backend.clone()), &Password::new("ours"), KeyCost::Test).expect("init");
    let seen = seen(&backend);
    let kept = ["note", "data/note", "data/ab/note", "keys/note"].map(|name| backend.path().join(name));
    for file in &kept {
        std::fs::write(file, "of somebody").expect("write");
    }
    raze(&backend, &seen, Raze::All, &Progress::default()).expect("raze");
    assert!(kept.iter().all(|file| file.exists()) && !backend.path().join("config").exists());
    assert!(!backend.path().join("data/ac").exists());
    // A place that has no config any more is not looked into.
    backend.prepare().expect("prepare");
    backend.remove_place().expect("remove");
    assert!(backend.path().join("data/ac").exists());
}

/// A store that does not do what it says.
#[derive(Debug)]
struct Liar {
    place: MemoryBackend,
    hides: Option<FileKind>,
    keeps: Option<FileKind>,
}

impl Backend for Liar {
    fn prepare(&self) -> Result<(), BackendError> {
        self.place.prepare()
    }

    fn list(&self, kind: FileKind) -> Result<Vec<FileInfo>, BackendError> {
        if self.hides == Some(kind) { Ok(Vec::new()) } else { self.place.list(kind) }
    }

    fn read(&self, kind: FileKind, id: Id) -> Result<Vec<u8>, BackendError> {
        self.place.read(kind, id)
    }

    fn read_range(&self, kind: FileKind, id: Id, offset: u64, len: usize) -> Result<Vec<u8>, BackendError> {
        self.place.read_range(kind, id, offset, len)
    }

    fn write(&self, kind: FileKind, id: Id, data: &[u8]) -> Result<(), BackendError> {
        self.place.write(kind, id, data)
    }

    fn remove(&self, kind: FileKind, id: Id) -> Result<(), BackendError> {
        if self.keeps == Some(kind) { Ok(()) } else { self.place.remove(kind, id) }
    }

    fn size(&self, kind: FileKind, id: Id) -> Result<Option<u64>, BackendError> {
        self.place.size(kind, id)
    }

    fn set_aside(&self, kind: FileKind, id: Id) -> Result<(), BackendError> {
        self.place.set_aside(kind, id)
    }

    fn list_aside(&self, kind: FileKind) -> Result<Vec<FileInfo>, BackendError> {
        self.place.list_aside(kind)
    }

    fn drop_caches(&self, kind: FileKind, id: Id) -> Result<(), BackendError> {
        self.place.drop_caches(kind, id)
    }
}

#[test]
fn a_key_that_no_listing_shows_any_more_goes_by_its_name() {
    for what in ALL {
        let ours = made("ours");
        let seen = seen(&ours);
        let liar = Liar { place: ours.clone(), hides: Some(FileKind::Key), keeps: None };
        raze(&liar, &seen, what, &Progress::default()).expect("raze");
        assert!(ours.list(FileKind::Key).expect("list").is_empty(), "{what:?}");
    }
}

#[test]
fn what_stays_listed_however_often_it_is_removed_ends_it() {
    for (what, kind) in [(Raze::Keys, FileKind::Key), (Raze::AllButConfig, FileKind::Pack), (Raze::All, FileKind::Pack)]
    {
        let ours = made("ours");
        let seen = seen(&ours);
        let liar = Liar { place: ours.clone(), hides: None, keeps: Some(kind) };
        let ended = raze(&liar, &seen, what, &Progress::default());
        assert!(matches!(&ended, Err(Error::Unsteady { kind: of, .. }) if *of == kind), "{ended:?}");
        assert!(Seen::of(&ours).expect("read").is_some(), "the config stays: {what:?}");
    }
}

#[test]
fn a_place_behind_a_link_is_emptied_and_the_link_stays() {
    let home = tempfile::tempdir().expect("a directory");
    std::fs::create_dir_all(home.path().join("large/data")).expect("make");
    let backend = LocalBackend::new(home.path().join("place"));
    std::os::unix::fs::symlink(home.path().join("large"), backend.path()).expect("link");
    Repository::init(Arc::new(backend.clone()), &Password::new("ours"), KeyCost::Test).expect("init");
    let seen = seen(&backend);
    // Of a name that is looked for elsewhere: no pack of the repository, and nothing to wait for.
    let stray = Id::of(b"stray");
    let wrong = if stray.to_string().starts_with("00") { "01" } else { "00" };
    let stray = backend.path().join("data").join(wrong).join(stray.to_string());
    std::fs::write(&stray, "copied back by hand").expect("write");
    raze(&backend, &seen, Raze::All, &Progress::default()).expect("raze");
    assert!(stray.exists() && backend.path().is_symlink());
    assert!(!backend.path().join("config").exists() && !backend.path().join("keys").exists());
}
