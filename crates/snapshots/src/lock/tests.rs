#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::backend::{LocalBackend, MemoryBackend};
use crate::password::{KeyCost, Password};
use crate::repository::Repository;

fn repo() -> Repository {
    Repository::init(Arc::new(MemoryBackend::new()), &Password::new("x"), KeyCost::Test).unwrap()
}

fn foreign(exclusive: bool) -> LockFile {
    LockFile {
        time: Timestamp::now(),
        exclusive,
        hostname: "elsewhere".into(),
        username: "somebody".into(),
        pid: 1,
        uid: 0,
        gid: 0,
    }
}

fn write(repo: &Repository, lock: &LockFile) -> Id {
    repo.inner.save_json(FileKind::Lock, lock).unwrap()
}

fn mine(guard: &LockGuard) -> &Mutex<Held> {
    guard.held.as_ref().unwrap()
}

fn locks(repo: &Repository) -> usize {
    repo.inner.backend.list(FileKind::Lock).unwrap().len()
}

fn acquire(repo: &Repository, mode: LockMode) -> Result<LockGuard> {
    LockGuard::acquire(&repo.inner, mode)
}

#[test]
fn shared_locks_go_together_and_exclusive_ones_do_not() {
    let repo = repo();
    let first = acquire(&repo, LockMode::Shared).unwrap();
    let second = acquire(&repo, LockMode::Shared).unwrap();
    first.ensure().unwrap();
    let refused = acquire(&repo, LockMode::Exclusive).map(drop).unwrap_err();
    assert!(matches!(refused, Error::Locked { .. }) && refused.is_retryable(), "{refused}");
    assert_eq!(locks(&repo), 2);
    drop((first, second));
    let alone = acquire(&repo, LockMode::Exclusive).unwrap();
    assert!(acquire(&repo, LockMode::Shared).is_err());
    drop(alone);
    assert_eq!(locks(&repo), 0);
}

#[test]
fn a_living_foreign_lock_is_respected() {
    let repo = repo();
    write(&repo, &foreign(false));
    drop(acquire(&repo, LockMode::Shared).unwrap());
    assert!(acquire(&repo, LockMode::Exclusive).is_err());
    write(&repo, &foreign(true));
    let Err(Error::Locked { by, .. }) = acquire(&repo, LockMode::Shared).map(drop) else { panic!("not locked") };
    assert_eq!(by, "somebody@elsewhere (process 1)");
}

#[test]
fn p31_stale_locks_never_stop_anything() {
    let repo = repo();
    let old = LockFile { time: Timestamp::now() - SignedDuration::from_mins(31), ..foreign(true) };
    write(&repo, &old);
    // The process id of a child that has ended and was waited for.
    let mut child = std::process::Command::new("true").spawn().unwrap();
    let pid = i64::from(child.id());
    child.wait().unwrap();
    let dead = LockFile { hostname: repo.inner.hostname.clone(), pid, ..foreign(true) };
    write(&repo, &dead);
    drop(acquire(&repo, LockMode::Exclusive).unwrap());
    assert_eq!(locks(&repo), 0, "stale locks are removed");
}

#[test]
fn p31_the_lock_of_a_predecessor_with_our_process_id_is_stale() {
    let repo = repo();
    drop(acquire(&repo, LockMode::Shared).unwrap());
    let own = LockFile { hostname: repo.inner.hostname.clone(), pid: i64::from(std::process::id()), ..foreign(true) };
    write(&repo, &LockFile { time: *STARTED - SignedDuration::from_secs(1), ..own.clone() });
    drop(acquire(&repo, LockMode::Shared).unwrap());
    // One that nobody of ours stands for was left behind by a removal that failed.
    write(&repo, &own);
    drop(acquire(&repo, LockMode::Shared).unwrap());
    let _working = acquire(&repo, LockMode::Exclusive).unwrap();
    assert!(acquire(&repo, LockMode::Shared).is_err(), "another thread of ours works");
}

#[test]
fn p31_an_unreadable_lock_counts_but_not_for_ever() {
    let repo = repo();
    let id = Id::of(b"half written");
    repo.inner.backend.write(FileKind::Lock, id, b"").unwrap();
    assert!(matches!(acquire(&repo, LockMode::Shared).map(drop), Err(Error::Locked { .. })));
    let long_ago = Timestamp::now() - SignedDuration::from_mins(31);
    repo.inner.unreadable_locks.lock().unwrap().insert(id, long_ago);
    drop(acquire(&repo, LockMode::Shared).unwrap());
}

#[test]
fn a_lost_or_expired_lock_is_noticed() {
    let repo = repo();
    let guard = acquire(&repo, LockMode::Shared).unwrap();
    let id = mine(&guard).lock().unwrap().id;
    guard.ensure().unwrap();
    refresh(&repo.inner, LockMode::Shared, mine(&guard)).unwrap();
    let renewed = mine(&guard).lock().unwrap().id;
    assert_ne!(renewed, id);
    guard.ensure().unwrap();
    assert_eq!(locks(&repo), 1, "the old file goes when the new one is there");
    mine(&guard).lock().unwrap().refreshed = Timestamp::now() - SignedDuration::from_mins(23);
    assert!(matches!(guard.ensure(), Err(Error::LockLost)), "a computer that slept must not go on");
    mine(&guard).lock().unwrap().refreshed = Timestamp::now();
    repo.inner.backend.remove(FileKind::Lock, renewed).unwrap();
    assert!(matches!(guard.ensure(), Err(Error::LockLost)));
    assert!(refresh(&repo.inner, LockMode::Shared, mine(&guard)).is_err(), "a removed lock is not made anew");
}

#[test]
fn restic_respects_our_locks() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("repo");
    let repo = Repository::init(Arc::new(LocalBackend::new(&path)), &Password::new("x"), KeyCost::Test).unwrap();
    let prune = || {
        std::process::Command::new("restic")
            .args(["--no-cache", "-r", path.to_str().unwrap(), "prune"])
            .env("RESTIC_PASSWORD", "x")
            .output()
            .expect("restic must be installed")
    };
    let guard = acquire(&repo, LockMode::Shared).unwrap();
    let output = prune();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("already locked"), "{output:?}");
    drop(guard);
    assert!(prune().status.success());
}
