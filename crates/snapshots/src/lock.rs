//! restic's locks: small files that say who works, so that nobody prunes what somebody else is counting on.
//!
//! Everything takes a shared lock, pruning and forgetting an exclusive one. A lock is written, then all locks are
//! looked at (again): of two that start at the same time at least one sees the other. A thread renews it every five
//! minutes. A lock is stale, and removed by whoever finds it, when it was not renewed for thirty minutes or when its
//! process on this host is gone; so a crash never stops work for longer than that (P31).

use std::collections::HashSet;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::backend::FileKind;
use crate::error::{Error, Result};
use crate::id::Id;
use crate::repository::{Inner, Locks};
use crate::wire::LockFile;

/// restic's number.
const STALE_AFTER: SignedDuration = SignedDuration::from_mins(30);
const REFRESH_EVERY: Duration = Duration::from_secs(5 * 60);
const RETRY_REFRESH_AFTER: Duration = Duration::from_secs(60);
/// We stop trusting our own lock before others call it stale; the margin absorbs clocks that differ.
const TRUSTED_FOR: SignedDuration = SignedDuration::from_mins(22);

/// When this process first dealt with locks; none of its own is older.
static STARTED: LazyLock<Timestamp> = LazyLock::new(Timestamp::now);

/// What a lock keeps others from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LockMode {
    Shared,
    Exclusive,
}

struct Held {
    id: Id,
    refreshed: Timestamp,
}

/// Holds a lock until it is dropped.
pub(crate) struct LockGuard {
    inner: Arc<Inner>,
    /// None: the other end of a channel holds it, or nobody has to.
    held: Option<Arc<Mutex<Held>>>,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl LockGuard {
    pub(crate) fn acquire(inner: &Arc<Inner>, mode: LockMode) -> Result<Self> {
        if inner.locks != Locks::Own {
            return match mode {
                LockMode::Shared => Ok(Self { inner: Arc::clone(inner), held: None, stop: None, thread: None }),
                LockMode::Exclusive => Err(Error::InvalidRequest(
                    "a shared lock of somebody else, or none, is not an exclusive one".into(),
                )),
            };
        }
        LazyLock::force(&STARTED);
        refuse_conflicts(inner, mode, None)?;
        let (id, refreshed) = write_lock(inner, mode)?;
        if let Err(e) = refuse_conflicts(inner, mode, Some(id)) {
            remove_lock(inner, id);
            return Err(e);
        }
        let held = Arc::new(Mutex::new(Held { id, refreshed }));
        let (stop, stopped) = channel();
        let for_thread = (Arc::clone(inner), Arc::clone(&held));
        let thread = std::thread::Builder::new().name("lock-refresh".into()).spawn(move || {
            let (inner, held) = for_thread;
            let mut wait = REFRESH_EVERY;
            while stopped.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
                wait = match refresh(&inner, mode, &held) {
                    Ok(()) => REFRESH_EVERY,
                    Err(error) => {
                        tracing::warn!(error = &error as &dyn std::error::Error, "refresh repository lock");
                        RETRY_REFRESH_AFTER
                    }
                };
            }
        });
        match thread {
            Ok(thread) => {
                Ok(Self { inner: Arc::clone(inner), held: Some(held), stop: Some(stop), thread: Some(thread) })
            }
            Err(source) => {
                remove_lock(inner, id);
                Err(Error::System { doing: "start the thread that renews a lock", source })
            }
        }
    }

    /// Proves that the lock is still ours and fresh: to be called before anything that others must not undo.
    pub(crate) fn ensure(&self) -> Result<()> {
        let Some(held) = &self.held else { return Ok(()) };
        let (id, refreshed) = {
            let held = held.lock().unwrap_or_else(PoisonError::into_inner);
            (held.id, held.refreshed)
        };
        if Timestamp::now().duration_since(refreshed) > TRUSTED_FOR {
            return Err(Error::LockLost);
        }
        match self.inner.backend.size(FileKind::Lock, id)? {
            Some(_) => Ok(()),
            // The refresh thread may just have replaced the file.
            None if held.lock().unwrap_or_else(PoisonError::into_inner).id != id => self.ensure(),
            None => Err(Error::LockLost),
        }
    }
}

impl Drop for LockGuard {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic of that thread was reported when it happened; the lock is removed all the same.
            let _ = thread.join();
        }
        if let Some(held) = &self.held {
            let id = held.lock().unwrap_or_else(PoisonError::into_inner).id;
            remove_lock(&self.inner, id);
        }
    }
}

/// The lock files that guards of this process stand for. A file of ours that is not among them was left behind by a
/// removal that failed, and holds nobody's work up (incident P31).
static HELD: LazyLock<Mutex<HashSet<Id>>> = LazyLock::new(Mutex::default);

fn held() -> MutexGuard<'static, HashSet<Id>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

fn remove_lock(inner: &Inner, id: Id) {
    held().remove(&id);
    if let Err(error) = inner.backend.remove(FileKind::Lock, id) {
        // It is stale already: whoever meets it next removes it.
        tracing::warn!(error = &error as &dyn std::error::Error, "remove repository lock");
    }
}

fn write_lock(inner: &Inner, mode: LockMode) -> Result<(Id, Timestamp)> {
    let now = Timestamp::now();
    let lock = LockFile {
        time: now,
        exclusive: mode == LockMode::Exclusive,
        hostname: inner.hostname.clone(),
        username: "perennial".into(),
        pid: i64::from(std::process::id()),
        uid: rustix::process::getuid().as_raw(),
        gid: rustix::process::getgid().as_raw(),
    };
    // Known before anybody can see it: written and noted in one go.
    let mut held = held();
    let id = inner.save_json(FileKind::Lock, &lock)?;
    held.insert(id);
    Ok((id, now))
}

/// New file first, then the old one goes: there is no moment without a lock.
fn refresh(inner: &Inner, mode: LockMode, mine: &Mutex<Held>) -> Result<()> {
    let old = mine.lock().unwrap_or_else(PoisonError::into_inner).id;
    if inner.backend.size(FileKind::Lock, old)?.is_none() {
        // Somebody removed it and may rely on that; writing a new one would hide it from `ensure`.
        return Err(Error::LockLost);
    }
    let (id, refreshed) = write_lock(inner, mode)?;
    *mine.lock().unwrap_or_else(PoisonError::into_inner) = Held { id, refreshed };
    remove_lock(inner, old);
    Ok(())
}

fn refuse_conflicts(inner: &Inner, mode: LockMode, own: Option<Id>) -> Result<()> {
    let locks = inner.backend.list(FileKind::Lock)?;
    {
        let mut unreadable = inner.unreadable_locks.lock().unwrap_or_else(PoisonError::into_inner);
        unreadable.retain(|id, _| locks.iter().any(|lock| lock.id == *id));
    }
    for info in locks {
        if Some(info.id) == own {
            continue;
        }
        let lock: LockFile = match inner.load_json(FileKind::Lock, info.id) {
            Ok(lock) => lock,
            // Released between the listing and now.
            Err(Error::Backend(e)) if e.is_not_found() => continue,
            Err(e @ Error::Backend(_)) => return Err(e),
            Err(_) => {
                refuse_unreadable(inner, info.id)?;
                continue;
            }
        };
        if is_stale(inner, info.id, &lock) {
            tracing::info!(lock = %info.id, host = lock.hostname, pid = lock.pid, "remove stale repository lock");
            inner.backend.remove(FileKind::Lock, info.id)?;
        } else if lock.exclusive || mode == LockMode::Exclusive {
            let by = format!("{}@{} (process {})", lock.username, lock.hostname, lock.pid);
            return Err(Error::Locked { by, since: lock.time });
        }
    }
    Ok(())
}

/// A lock that nobody can read may be anybody's exclusive one, so it counts; but not for longer than any other: it is
/// stale when it was there, unreadable, for the whole time since we first saw it.
fn refuse_unreadable(inner: &Inner, id: Id) -> Result<()> {
    let now = Timestamp::now();
    let since = {
        let mut unreadable = inner.unreadable_locks.lock().unwrap_or_else(PoisonError::into_inner);
        *unreadable.entry(id).or_insert(now)
    };
    if now.duration_since(since) > STALE_AFTER {
        inner.backend.remove(FileKind::Lock, id)?;
        return Ok(());
    }
    Err(Error::Locked { by: format!("an unreadable lock file {id}"), since })
}

fn is_stale(inner: &Inner, id: Id, lock: &LockFile) -> bool {
    if Timestamp::now().duration_since(lock.time) > STALE_AFTER {
        return true;
    }
    if lock.hostname != inner.hostname {
        return false;
    }
    if lock.pid == i64::from(std::process::id()) {
        // In a container every start has the same process id, so an older lock is our predecessor's.
        return lock.time < *STARTED || !held().contains(&id);
    }
    let pid = i32::try_from(lock.pid).ok().and_then(rustix::process::Pid::from_raw);
    // A number that is no process id says nothing, and "not permitted" says that the process exists.
    pid.is_some_and(|pid| rustix::process::test_kill_process(pid) == Err(rustix::io::Errno::SRCH))
}

#[cfg(test)]
mod tests;
