//! One suite for every backend: what the crate relies on, asked of each of them in the same words.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::io;
use std::num::NonZeroU64;
use std::sync::Arc;

use crate::support::service::{Kind, Service};
use crate::support::*;
use object_store::ObjectStoreExt as _;
use object_store::memory::InMemory;
use perennial_snapshots::backend::{Bandwidth, LimitedBackend, ObjectBackend, Patience};
use perennial_snapshots::*;

/// Everything that a backend promises, on one that is empty and not prepared.
fn suite(backend: &dyn Backend) {
    assert_eq!(backend.size(FileKind::Config, FileKind::CONFIG_ID).unwrap(), None);
    backend.prepare().unwrap();
    backend.prepare().unwrap();
    absent_is_absent(backend);
    every_kind_is_a_place_of_its_own(backend);
    sizes_and_ranges(backend);
    overwriting_and_removing(backend);
    listings_are_complete(backend);
    many_threads_at_once(backend);
    what_is_set_aside_is_in_no_place(backend);
    for kind in FileKind::ALL {
        for file in backend.list(kind).unwrap() {
            backend.remove(kind, file.id).unwrap();
        }
        assert_eq!(backend.list(kind).unwrap(), [], "{kind}");
    }
    assert_eq!(backend.remove_leftovers().unwrap(), 0);
}

fn absent_is_absent(backend: &dyn Backend) {
    for kind in FileKind::ALL {
        let id = if kind == FileKind::Config { FileKind::CONFIG_ID } else { Id::of(b"nothing") };
        assert_eq!(backend.list(kind).unwrap(), [], "{kind}");
        assert_eq!(backend.size(kind, id).unwrap(), None, "{kind}");
        for error in [
            backend.read(kind, id).unwrap_err(),
            backend.read_range(kind, id, 0, 10).unwrap_err(),
            backend.read_range(kind, id, 0, 0).unwrap_err(),
            backend.drop_caches(kind, id).unwrap_err(),
        ] {
            assert!(error.is_not_found() && !error.is_retryable(), "{kind}: {error:?}");
            assert_eq!((error.kind, error.id), (kind, Some(id)));
        }
        backend.remove(kind, id).unwrap();
    }
}

fn every_kind_is_a_place_of_its_own(backend: &dyn Backend) {
    let id = FileKind::CONFIG_ID;
    for (n, kind) in FileKind::ALL.into_iter().enumerate() {
        backend.write(kind, id, &vec![1; n + 1]).unwrap();
    }
    for (n, kind) in FileKind::ALL.into_iter().enumerate() {
        let size = n as u64 + 1;
        assert_eq!(backend.list(kind).unwrap(), [FileInfo { id, size }], "{kind}");
        assert_eq!(backend.size(kind, id).unwrap(), Some(size));
        assert_eq!(backend.read(kind, id).unwrap(), vec![1; n + 1]);
        backend.drop_caches(kind, id).unwrap();
    }
    for kind in FileKind::ALL {
        backend.remove(kind, id).unwrap();
        backend.remove(kind, id).unwrap();
        assert_eq!(backend.size(kind, id).unwrap(), None);
    }
}

fn what_is_set_aside_is_in_no_place(backend: &dyn Backend) {
    let id = Id::of(b"aside");
    for kind in [FileKind::Pack, FileKind::Index, FileKind::Snapshot] {
        let before = backend.list(kind).unwrap();
        backend.write(kind, id, b"damaged").unwrap();
        backend.set_aside(kind, id).unwrap();
        backend.set_aside(kind, id).unwrap();
        assert_eq!(backend.size(kind, id).unwrap(), None);
        assert_eq!(backend.list(kind).unwrap(), before, "{kind}");
    }
    for kind in [FileKind::Pack, FileKind::Index, FileKind::Snapshot] {
        assert_eq!(backend.list_aside(kind).unwrap(), [FileInfo { id, size: 7 }], "{kind}");
    }
    assert_eq!(backend.list_aside(FileKind::Key).unwrap(), []);
}

fn sizes_and_ranges(backend: &dyn Backend) {
    // One goes in parts where a store has them, and its last part is a short one.
    for size in [0, 1, 4095, (20 << 20) + 7] {
        let data = corpus::noise(size, size as u64);
        let id = Id::of(&data);
        backend.write(FileKind::Pack, id, &data).unwrap();
        assert_eq!(backend.size(FileKind::Pack, id).unwrap(), Some(size as u64));
        assert!(backend.read(FileKind::Pack, id).unwrap() == data, "{size} bytes");
        let cut = |from: usize, to: usize| {
            let read = backend.read_range(FileKind::Pack, id, from as u64, to - from).unwrap();
            assert!(read == data[from..to], "{from}..{to} of {size}");
        };
        cut(0, size);
        cut(size / 2, size);
        cut(size / 3, size / 2);
        cut(size, size);
        for (offset, len) in [(0, size + 1), (size, 1), (size + 1, 1), (size / 2, size)] {
            if offset + len > size {
                let error = backend.read_range(FileKind::Pack, id, offset as u64, len).unwrap_err();
                assert_eq!(error.source.kind(), io::ErrorKind::UnexpectedEof, "{offset}+{len} of {size}: {error:?}");
            }
        }
        backend.remove(FileKind::Pack, id).unwrap();
    }
}

fn overwriting_and_removing(backend: &dyn Backend) {
    let id = Id::of(b"twice");
    for kind in [FileKind::Pack, FileKind::Index, FileKind::Snapshot, FileKind::Lock, FileKind::Key] {
        backend.write(kind, id, b"a damaged one").unwrap();
        backend.write(kind, id, b"twice").unwrap();
        assert_eq!(backend.read(kind, id).unwrap(), b"twice");
        assert_eq!(backend.list(kind).unwrap().len(), 1);
        backend.remove(kind, id).unwrap();
        assert!(backend.read(kind, id).unwrap_err().is_not_found());
    }
}

fn listings_are_complete(backend: &dyn Backend) {
    // Packs in most of their directories.
    let mut expected = Vec::new();
    for n in 0..300_u32 {
        let data = n.to_le_bytes();
        expected.push((Id::of(&data), u64::from(n % 5)));
    }
    std::thread::scope(|scope| {
        for part in expected.chunks(20) {
            scope.spawn(move || {
                for (id, size) in part {
                    backend.write(FileKind::Pack, *id, &b"some"[..*size as usize]).unwrap();
                }
            });
        }
    });
    let mut found: Vec<_> = backend.list(FileKind::Pack).unwrap().iter().map(|f| (f.id, f.size)).collect();
    expected.sort_unstable();
    found.sort_unstable();
    assert_eq!(found, expected);
    assert_eq!(backend.list(FileKind::Index).unwrap(), []);
}

fn many_threads_at_once(backend: &dyn Backend) {
    std::thread::scope(|scope| {
        for thread in 0..20_u64 {
            scope.spawn(move || {
                for n in 0..5 {
                    let data = corpus::noise(10_000, thread * 100 + n);
                    let id = Id::of(&data);
                    backend.write(FileKind::Index, id, &data).unwrap();
                    assert_eq!(backend.read(FileKind::Index, id).unwrap(), data);
                }
            });
        }
    });
    assert_eq!(backend.list(FileKind::Index).unwrap().len(), 100);
}

fn object_backend(store: Arc<dyn object_store::ObjectStore>, prefix: &str) -> ObjectBackend {
    ObjectBackend::new(store, prefix, "memory", &Patience::default(), vec![]).unwrap()
}

#[test]
fn a_local_directory_passes_the_suite() {
    let dir = scratch();
    suite(&LocalBackend::new(dir.path().join("repo")));
}

#[test]
fn memory_passes_the_suite() {
    suite(&MemoryBackend::new());
}

#[test]
fn objects_in_memory_pass_the_suite() {
    for prefix in ["", "a", "deep/er", "od d/ü%41+&=#?;'"] {
        let store: Arc<dyn object_store::ObjectStore> = Arc::new(InMemory::new());
        suite(&object_backend(Arc::clone(&store), prefix));
    }
}

#[test]
fn a_limited_backend_passes_the_suite() {
    let fast = NonZeroU64::new(u64::MAX);
    suite(&LimitedBackend::new(Arc::new(MemoryBackend::new()), Bandwidth { up: fast, down: fast }));
}

#[test]
fn a_real_s3_passes_the_suite() {
    let Some(service) = Service::start(Kind::S3) else { return };
    suite(&*service.backend("od d/ü+&='"));
}

#[test]
fn a_real_azurite_passes_the_suite() {
    let Some(service) = Service::start(Kind::Azurite) else { return };
    suite(&*service.backend("plain/pre-fix"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_backend_may_be_dropped_by_a_task_of_another_runtime() {
    let backend = object_backend(Arc::new(InMemory::new()), "");
    let backend = tokio::task::spawn_blocking(|| {
        suite(&backend);
        backend
    });
    drop(backend.await.unwrap());
}

#[test]
fn what_others_keep_beside_a_repository_is_not_listed() {
    let store: Arc<dyn object_store::ObjectStore> = Arc::new(InMemory::new());
    let backend = object_backend(Arc::clone(&store), "p");
    let (id, other) = (Id::of(b"ours"), Id::of(b"other"));
    backend.write(FileKind::Pack, id, b"ours").unwrap();
    let put = |key: String| {
        let path = object_store::path::Path::parse(key).unwrap();
        futures::executor::block_on(store.put(&path, "x".into())).unwrap();
    };
    put(format!("p/data/{other}"));
    put(format!("p/data/zz/{other}"));
    put(format!("p/data/{}/{other}/x", &other.to_string()[..2]));
    put("p/data/README".into());
    put(format!("q/data/{}/{other}", &other.to_string()[..2]));
    put("p/config.bak".into());
    assert_eq!(backend.list(FileKind::Pack).unwrap(), [FileInfo { id, size: 4 }]);
    assert_eq!(backend.list(FileKind::Config).unwrap(), []);
    assert_eq!(backend.list(FileKind::Index).unwrap(), []);
}

#[test]
fn of_two_that_make_a_repository_at_once_one_is_told() {
    let store: Arc<dyn object_store::ObjectStore> = Arc::new(InMemory::new());
    let (one, two) = (object_backend(Arc::clone(&store), "p"), object_backend(store, "p"));
    one.write(FileKind::Config, FileKind::CONFIG_ID, b"one").unwrap();
    // The same again is what a repeated request does.
    one.write(FileKind::Config, FileKind::CONFIG_ID, b"one").unwrap();
    let error = two.write(FileKind::Config, FileKind::CONFIG_ID, b"two").unwrap_err();
    assert_eq!(error.source.kind(), io::ErrorKind::AlreadyExists);
    assert!(!error.is_retryable());
    assert_eq!(two.read(FileKind::Config, FileKind::CONFIG_ID).unwrap(), b"one");
}

/// Whether writing is tried: this S3 makes a bucket that is missing, which no other does.
#[derive(PartialEq, Eq)]
enum Writes {
    Tried,
    Spared,
}

/// What a store answers that is out of reach, or is not the one that was meant.
fn never_absent(backend: &dyn Backend, retryable: bool, writes: Writes) {
    let id = Id::of(b"x");
    let mut errors = vec![backend.prepare().unwrap_err()];
    for kind in FileKind::ALL {
        errors.push(backend.list(kind).unwrap_err());
        errors.push(backend.size(kind, id).unwrap_err());
        errors.push(backend.read(kind, id).unwrap_err());
        errors.push(backend.read_range(kind, id, 0, 1).unwrap_err());
        if writes == Writes::Tried {
            errors.push(backend.write(kind, id, b"x").unwrap_err());
        }
        errors.push(backend.remove(kind, id).unwrap_err());
        errors.push(backend.set_aside(kind, id).unwrap_err());
        errors.push(backend.list_aside(kind).unwrap_err());
        errors.push(backend.drop_caches(kind, id).unwrap_err());
    }
    assert!(Repository::exists(backend).is_err());
    for error in errors {
        assert!(!error.is_not_found(), "{error:?}");
        assert_eq!(error.is_retryable(), retryable, "{error:?}");
        let text = format!("{error}: {} {error:?}", error.source);
        assert!(!text.contains("perennial-secret") && !text.contains("Eby8vdM02"), "{text}");
    }
}

fn unreachable_and_wrong(kind: Kind) {
    let Some(service) = Service::start(kind) else { return };
    // A bucket that does not exist is no empty one.
    let elsewhere = match service.location("p") {
        backend::Location::S3(at) => backend::Location::S3(backend::S3Location { bucket: "no-such".into(), ..at }),
        backend::Location::Azure(at) => {
            backend::Location::Azure(backend::AzureLocation { container: "no-such".into(), ..at })
        }
        other => other,
    };
    never_absent(&*elsewhere.connect(&service::impatient()).unwrap(), true, Writes::Spared);
    // A wrong key is told as what it is, and does not become right by trying again.
    let wrong = match service.location("p") {
        backend::Location::S3(at) => backend::Location::S3(backend::S3Location {
            secret_access_key: backend::Secret::new("perennial-secret-wrong"),
            ..at
        }),
        backend::Location::Azure(at) => backend::Location::Azure(backend::AzureLocation {
            credential: backend::AzureCredential::Key(backend::Secret::new("d3Jvbmc=")),
            ..at
        }),
        other => other,
    };
    never_absent(&*wrong.connect(&service::impatient()).unwrap(), false, Writes::Tried);
    let backend = service.backend("p");
    let id = Id::of(b"kept");
    backend.write(FileKind::Pack, id, b"kept").unwrap();
    service.kill();
    never_absent(&*backend, true, Writes::Tried);
    service.restart();
    assert_eq!(backend.read(FileKind::Pack, id).unwrap(), b"kept");
    assert_eq!(backend.list(FileKind::Pack).unwrap(), [FileInfo { id, size: 4 }]);
}

#[test]
fn a_real_s3_that_is_gone_or_wrong_is_never_an_absence() {
    unreachable_and_wrong(Kind::S3);
}

#[test]
fn a_real_azurite_that_is_gone_or_wrong_is_never_an_absence() {
    unreachable_and_wrong(Kind::Azurite);
}
