//! How far the replicas are: what is not in them yet, and why.

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use perennial_core::Error;
use perennial_core::replication::{Copying, Noted, Part};
use perennial_core::snapshot::Snapshot;
use perennial_core::spec::TenantId;
use tokio::sync::Semaphore;

use super::system::{Check, CheckState};
use super::{App, Caller};

/// Snapshots that are not in the replica after so long are told by `doctor`, whatever the reason.
const LATE: SignedDuration = SignedDuration::from_hours(2);
/// How long a file system may take to say which one it is.
const PATIENCE: Duration = Duration::from_secs(5);
/// As many of what could not be copied are listed by name.
const LISTED: usize = 100;
const NAME: &str = "replica";
const MEND: &str = "perennial replication lists everything; `perennial config show` prints where replicas are";

/// One tenant's replica.
#[derive(Debug, Clone)]
pub struct ReplicaStatus {
    /// Whose.
    pub tenant: TenantId,
    /// Where it is; without credentials.
    pub location: String,
    /// When everything was looked at last; `None`: never.
    pub looked_at: Option<Timestamp>,
    /// Why the last turn did not get to its end.
    pub problem: Option<String>,
    /// Snapshots that are in it, proven, with their images.
    pub copied: u64,
    /// Copies whose originals were deleted, and which go later.
    pub going: u64,
    /// Verified snapshots that are not in it.
    pub missing: u64,
    /// The oldest of them.
    pub oldest_missing: Option<Snapshot>,
    /// What could not be copied, the first so many.
    pub failed: Vec<Noted>,
}

impl App {
    /// Tells how far every replica is; `None` when none is configured.
    ///
    /// # Errors
    /// [`Error::Forbidden`] for everybody but administrators, [`Error::Unavailable`] when the database does not answer.
    pub async fn replication(&self, caller: &Caller) -> Result<Option<Vec<ReplicaStatus>>, Error> {
        self.require_admin(caller)?;
        self.replica_states().await
    }

    async fn replica_states(&self) -> Result<Option<Vec<ReplicaStatus>>, Error> {
        let Some(replication) = &self.settings.replication else { return Ok(None) };
        let mut states = Vec::new();
        for tenant in self.store.replica_tenants().await? {
            let replica = self.store.replica_fetch(&tenant).await?;
            let id = replica.as_ref().and_then(|replica| replica.id.clone()).unwrap_or_default();
            let backlog = self.store.replica_backlog(&tenant, &id).await?;
            let oldest_missing = match backlog.oldest {
                Some(snapshot) => self.store.snapshot_fetch(snapshot).await?,
                None => None,
            };
            let noted = self.store.replicated(&tenant, &id).await?;
            let (copied, going, failed) = counted(&noted);
            states.push(ReplicaStatus {
                location: replication.repository.of_tenant(&tenant),
                looked_at: replica.as_ref().and_then(|replica| replica.looked_at),
                problem: replica.and_then(|replica| replica.problem),
                copied,
                going,
                missing: backlog.count,
                oldest_missing,
                failed,
                tenant,
            });
        }
        Ok(Some(states))
    }

    /// Checks that every snapshot is in its replica soon; `None` when none is configured.
    pub(super) async fn replica_check(&self) -> Option<Check> {
        let states = match self.replica_states().await {
            Ok(states) => states?,
            Err(error) => return Some(Check::bad(NAME, CheckState::Failed, error.to_string(), MEND)),
        };
        if let Some(bad) = judged(&states, self.now()) {
            return Some(bad);
        }
        if let Some(shared) = self.shares_disk().await {
            return Some(shared);
        }
        let copied: u64 = states.iter().map(|state| state.copied).sum();
        let missing: u64 = states.iter().map(|state| state.missing).sum();
        Some(Check::ok(NAME, format!("{copied} snapshots are in the replicas, {missing} on their way")))
    }

    /// Says so when replicas and repositories are on one file system, or one of them does not answer.
    async fn shares_disk(&self) -> Option<Check> {
        let first = self.settings.repository.directory()?;
        let second = self.settings.replication.as_ref()?.repository.directory()?;
        match on_one_device((first, second.clone()), device, PATIENCE).await {
            Some(true) => {
                let shared = format!("{} is on the same file system as the repositories", second.display());
                let hint = "it is lost together with them: put it on another disk, or better on another machine";
                Some(Check::bad(NAME, CheckState::Warning, shared, hint))
            }
            Some(false) => None,
            None => {
                let message = format!("{}, or the place of the repositories, does not answer", second.display());
                let hint = "is it a mount whose server is gone? what is at work there goes on when it answers";
                Some(Check::bad(NAME, CheckState::Failed, message, hint))
            }
        }
    }
}

/// How many snapshots are in a replica, how many go from it later, and what could not be copied, the first so many.
fn counted(noted: &[Noted]) -> (u64, u64, Vec<Noted>) {
    let snapshots = || noted.iter().filter(|note| note.wanted.part == Part::Snapshot);
    let is_copied = |note: &Noted| matches!(note.copying, Copying::Copied(_));
    let copied = snapshots().filter(|note| is_copied(note) && note.gone_at.is_none()).count();
    // One of which only the data came goes like the others, and is nobody's failure any more.
    let going = snapshots().filter(|note| note.gone_at.is_some()).count();
    let failed = noted.iter().filter(|note| !is_copied(note) && note.gone_at.is_none());
    (copied as u64, going as u64, failed.take(LISTED).cloned().collect())
}

/// What is wrong with the replicas, by what was seen of them last.
fn judged(states: &[ReplicaStatus], now: Timestamp) -> Option<Check> {
    if let Some((state, problem)) = states.iter().find_map(|state| Some((state, state.problem.as_ref()?))) {
        let message = format!("{}: {problem}", state.location);
        let hint = "check address, credentials, network and space; it is tried again by itself";
        return Some(Check::bad(NAME, CheckState::Failed, message, hint));
    }
    let failed = states.iter().flat_map(|state| &state.failed);
    if let Some(first) = failed.clone().next() {
        let why = match &first.copying {
            Copying::Failed(why) => why.as_str(),
            Copying::Copied(_) => "",
        };
        let message = format!("{} cannot be copied, {} among them: {why}", failed.count(), first.wanted.name);
        let hint = "perennial repository repair salvages what is damaged; what is lost comes with the next snapshot";
        return Some(Check::bad(NAME, CheckState::Failed, message, hint));
    }
    let missing: u64 = states.iter().map(|state| state.missing).sum();
    let oldest = states.iter().filter_map(|state| state.oldest_missing.as_ref()).map(|row| row.created_at).min();
    let age = oldest.map_or(SignedDuration::ZERO, |at| now.duration_since(at));
    if age > LATE {
        let message = format!("{missing} snapshots are not copied yet, the oldest for {} h", age.as_hours());
        return Some(Check::bad(NAME, CheckState::Warning, message, MEND));
    }
    // A turn that hangs ends with no problem, and neither does one that others never let begin.
    let stale = |at: Timestamp| now.duration_since(at) > LATE;
    let looked = states.iter().filter_map(|state| Some((state, state.looked_at.filter(|at| stale(*at))?)));
    let (state, at) = looked.min_by_key(|(_, at)| *at)?;
    let message = format!("{} was not gone through for {} h", state.location, now.duration_since(at).as_hours());
    let hint = "does the place hang, does somebody keep a lock on it, or is a large copy on its way? the log says more";
    Some(Check::bad(NAME, CheckState::Warning, message, hint))
}

/// The device that a path is on; `None` while it is not there.
fn device(path: &Path) -> Option<u64> {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata(path).ok().map(|meta| meta.dev())
}

/// Whether two paths are on one device; `None` when that is not known in time, as on a mount whose server is gone.
async fn on_one_device(
    (first, second): (PathBuf, PathBuf),
    device: fn(&Path) -> Option<u64>,
    patience: Duration,
) -> Option<bool> {
    // The thread of a question that is never answered is lost: however often it is asked, it is only one.
    static ASKING: Semaphore = Semaphore::const_new(1);
    let ask = async {
        let asking = ASKING.acquire().await.ok()?;
        let asked = tokio::task::spawn_blocking(move || {
            let same = device(&first).is_some_and(|one| device(&second) == Some(one));
            drop(asking);
            same
        });
        asked.await.ok()
    };
    tokio::time::timeout(patience, ask).await.ok().flatten()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Condvar, Mutex};

    use super::*;

    #[test]
    fn what_was_deleted_is_no_failure() {
        let note = |copying: Copying, gone_at| Noted {
            wanted: perennial_core::replication::Wanted {
                part: Part::Snapshot,
                name: "1".to_owned(),
                original: "o".to_owned(),
            },
            copying,
            at: Timestamp::UNIX_EPOCH,
            gone_at,
        };
        let (copied, failed) = (Copying::Copied("c".to_owned()), Copying::Failed("damaged".to_owned()));
        let gone = Some(Timestamp::UNIX_EPOCH);
        let all =
            [note(copied.clone(), None), note(copied, gone), note(failed.clone(), gone), note(failed.clone(), None)];
        assert_eq!(counted(&all), (1, 2, vec![note(failed, None)]));
    }

    #[test]
    fn a_replica_that_nobody_looked_at_for_long_is_told() {
        let now = Timestamp::UNIX_EPOCH + SignedDuration::from_hours(100);
        let state = |looked_at| ReplicaStatus {
            tenant: TenantId::default_tenant(),
            location: "/far/default".to_owned(),
            looked_at,
            problem: None,
            copied: 3,
            going: 0,
            missing: 0,
            oldest_missing: None,
            failed: Vec::new(),
        };
        let hours = |hours| Some(now - SignedDuration::from_hours(hours));
        assert_eq!(judged(&[state(hours(1)), state(hours(2)), state(None)], now), None);
        let told = judged(&[state(hours(1)), state(hours(5))], now).expect("a warning");
        assert_eq!(
            (told.state, told.message.as_str()),
            (CheckState::Warning, "/far/default was not gone through for 5 h")
        );
        let away = ReplicaStatus { problem: Some("away".to_owned()), ..state(hours(5)) };
        assert_eq!(judged(&[away], now).map(|check| check.state), Some(CheckState::Failed));
    }

    #[tokio::test]
    async fn a_place_that_never_answers_keeps_nobody_and_one_thread() {
        static ASKED: AtomicUsize = AtomicUsize::new(0);
        static HANGS: (Mutex<bool>, Condvar) = (Mutex::new(true), Condvar::new());
        let hang = |_: &Path| {
            ASKED.fetch_add(1, Ordering::SeqCst);
            drop(HANGS.1.wait_while(HANGS.0.lock().expect("lock"), |hangs| *hangs));
            Some(1)
        };
        let places = || (PathBuf::from("/a"), PathBuf::from("/b"));
        for _ in 0..3 {
            assert_eq!(on_one_device(places(), hang, Duration::from_millis(20)).await, None);
        }
        assert_eq!(ASKED.load(Ordering::SeqCst), 1);
        *HANGS.0.lock().expect("lock") = false;
        HANGS.1.notify_all();
        assert_eq!(on_one_device(places(), hang, PATIENCE).await, Some(true));
        assert_eq!(on_one_device(places(), |path| Some(path.as_os_str().len() as u64), PATIENCE).await, Some(true));
        assert_eq!(on_one_device(places(), |path| (path == Path::new("/a")).then_some(1), PATIENCE).await, Some(false));
        assert_eq!(on_one_device(places(), |_| None, PATIENCE).await, Some(false));
    }
}
