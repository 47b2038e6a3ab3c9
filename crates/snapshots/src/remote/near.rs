//! The end that has the repository.

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use perennial_core::progress::Progress;

use super::frame::{Frame, Sender, receive};
use super::job::{ArchiveJob, RestoreJob};
use super::message::{Call, Failure, Job, Outcome, PROTOCOL, Place, ToFar, ToNear, encode_listing};
use crate::archive::{Held, Release};
use crate::backend::{BackendError, FileKind};
use crate::error::{Error, Result};
use crate::id::{Id, SnapshotFileId};
use crate::index::Origin;
use crate::lock::{LockGuard, LockMode};
use crate::memory::{Shares, Work};
use crate::repository::{Inner, Repository, master_key};
use crate::request::{ArchiveRequest, Archived};
use crate::restore::{RestoreRequest, Restored};
use crate::spool::{Spool, Waiting};
use crate::wire::IndexFile;

/// A far end that says nothing for so long is given up; it reports every half second.
const SILENCE: Duration = Duration::from_secs(60);
/// How long a job may go on after it was told to stop.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often cancellation is looked for while nothing comes.
const LOOK: Duration = Duration::from_millis(100);
/// Calls answered at the same time.
const WORKERS: usize = 4;
/// Frames that arrived and wait; each may be a whole pack.
const QUEUE: usize = 4;

/// A conversation with somebody who reaches directories that this process does not.
///
/// Jobs are done one at a time. Dropping it closes the channel, which ends the far end.
pub struct Session {
    near: Arc<Near>,
    frames: Receiver<io::Result<Frame>>,
    calls: SyncSender<(u64, Call, Vec<u8>)>,
}

/// What the session shares with the threads that answer.
struct Near {
    inner: Arc<Inner>,
    sender: Sender,
    noted: Mutex<Noted>,
}

/// What the repository was asked for in this session.
#[derive(Default)]
struct Noted {
    /// Where packs wait while writers are held still.
    spool: Option<Arc<Spool>>,
    /// Packs that came through the channel.
    packs: Vec<Id>,
    /// The first failure of the repository itself since the job began.
    failure: Option<BackendError>,
}

impl Near {
    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lost(problem: impl std::fmt::Display) -> Error {
    Error::Remote { problem: problem.to_string(), retryable: true }
}

impl Session {
    /// Greets the far end and hands it the repository's key.
    ///
    /// # Errors
    /// [`Error::Remote`] when it does not answer, or speaks another version.
    pub fn open(
        repository: &Repository,
        reader: impl Read + Send + 'static,
        writer: impl Write + Send + 'static,
    ) -> Result<Self> {
        let near = Arc::new(Near {
            inner: Arc::clone(&repository.inner),
            sender: Sender::new(writer),
            noted: Mutex::default(),
        });
        let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
            let thread = std::thread::Builder::new().name(name.into()).spawn(work);
            thread.map_err(|source| Error::System { doing: "start a thread that talks to a mover", source })
        };
        let effort = near.inner.effort();
        let workers =
            effort.memory.map_or(WORKERS, |memory| Shares::of(Some(memory)).workers(Work::Answer).min(WORKERS));
        // A bound counts two frames beside those that are answered: the next one, and the one after it.
        let queue = if effort.memory.is_some() { 0 } else { QUEUE };
        let (arrived, frames) = sync_channel(queue);
        spawn("mover-reader", Box::new(move || read_all(reader, &arrived)))?;
        let (calls, waiting) = sync_channel::<(u64, Call, Vec<u8>)>(queue);
        let waiting = Arc::new(Mutex::new(waiting));
        // Not scoped: a write into a channel that nobody empties must not keep the caller from giving up.
        for _ in 0..workers {
            let (near, waiting) = (Arc::clone(&near), Arc::clone(&waiting));
            spawn("mover-calls", Box::new(move || answer_all(&near, &waiting)))?;
        }
        let session = Self { near, frames, calls };
        let key = master_key(&session.near.inner.key);
        session.say(&ToFar::Hello { protocol: PROTOCOL, key })?;
        match session.next(&mut Watch::new(), &Progress::default())? {
            (ToNear::Hello { protocol: PROTOCOL }, _) => Ok(session),
            (ToNear::Hello { protocol }, _) => {
                Err(lost(format!("it speaks version {protocol} of the protocol, and this server {PROTOCOL}")))
            }
            _ => Err(lost("it did not answer the greeting")),
        }
    }

    /// Tells which of these paths are directories there.
    ///
    /// # Errors
    /// [`Error::Remote`].
    pub fn look(&mut self, paths: &[PathBuf]) -> Result<Vec<bool>> {
        let job = Job::Look { paths: paths.iter().map(|p| p.as_path().into()).collect() };
        match self.run(job, &Progress::default())? {
            Outcome::Looked { there } if there.len() == paths.len() => Ok(there),
            _ => Err(nonsense()),
        }
    }

    /// Makes everything below these directories durable.
    ///
    /// # Errors
    /// [`Error::Remote`].
    pub fn sync(&mut self, paths: &[PathBuf]) -> Result<()> {
        let job = Job::Sync { paths: paths.iter().map(|p| p.as_path().into()).collect() };
        match self.run(job, &Progress::default())? {
            Outcome::Synced => Ok(()),
            _ => Err(nonsense()),
        }
    }

    /// As [`Repository::archive`], of directories there, for a live or a detached pass.
    ///
    /// # Errors
    /// As there, and [`Error::Remote`].
    pub fn archive(&mut self, request: &ArchiveRequest, progress: &Progress) -> Result<Archived> {
        self.archive_either(request, None, progress)
    }

    /// As [`Repository::archive_held`], of directories there, for a detached pass.
    ///
    /// # Errors
    /// As there, and [`Error::Remote`].
    pub fn archive_held(&mut self, request: &ArchiveRequest, held: &Held<'_>, progress: &Progress) -> Result<Archived> {
        self.archive_either(request, Some(held), progress)
    }

    fn archive_either(
        &mut self,
        request: &ArchiveRequest,
        held: Option<&Held<'_>>,
        progress: &Progress,
    ) -> Result<Archived> {
        let job = Job::Archive(ArchiveJob::new(request, held.is_some())?);
        progress.check()?;
        let guard = LockGuard::acquire(&self.near.inner, LockMode::Shared)?;
        self.near.inner.refresh_index()?;
        let before = self.near.noted().packs.len();
        let outcome = match held {
            None => self.run(job, progress)?,
            Some(held) => {
                let mut hold = Hold::new(held, &self.near.inner.shares());
                let outcome = self.run_held(job, &mut hold, progress);
                self.near.noted().spool = None;
                let outcome = outcome?;
                // One that never asked for still writers captured no instant, whatever it says.
                if !matches!(hold, Hold::Never) {
                    return Err(nonsense());
                }
                outcome
            }
        };
        // Without the lock, what was there when the far end looked may have been pruned since.
        guard.ensure()?;
        let packs = self.near.noted().packs.get(before..).unwrap_or_default().to_vec();
        match outcome {
            Outcome::Archived(archived) => Ok(archived.archived(packs)),
            _ => Err(nonsense()),
        }
    }

    /// As [`Repository::restore`], to a directory there.
    ///
    /// # Errors
    /// As there, and [`Error::Remote`].
    pub fn restore(
        &mut self,
        snapshot: SnapshotFileId,
        request: &RestoreRequest,
        progress: &Progress,
    ) -> Result<Restored> {
        let job = Job::Restore(RestoreJob::new(snapshot, request));
        progress.check()?;
        let _guard = LockGuard::acquire(&self.near.inner, LockMode::Shared)?;
        match self.run(job, progress)? {
            Outcome::Restored(restored) => Ok(restored.into()),
            _ => Err(nonsense()),
        }
    }

    fn run(&mut self, job: Job, progress: &Progress) -> Result<Outcome> {
        self.run_held(job, &mut Hold::Never, progress)
    }

    fn run_held(&mut self, job: Job, hold: &mut Hold<'_>, progress: &Progress) -> Result<Outcome> {
        self.near.noted().failure = None;
        self.say(&ToFar::Job { job })?;
        let mut watch = Watch::new();
        let (mut bytes, mut files, mut total) = (0, 0, 0);
        let mut failed = None;
        loop {
            let (message, body) = self.next(&mut watch, progress)?;
            let stepped = match &message {
                ToNear::Prepared => hold.begin(&self.near).and_then(|()| self.say(&ToFar::Held)),
                ToNear::Captured => hold.end(&self.near, progress),
                _ => Ok(()),
            };
            if let Err(error) = stepped {
                // It ends the job in order, so that another can follow.
                self.say(&ToFar::Cancel)?;
                watch.told.get_or_insert_with(Instant::now);
                failed.get_or_insert(error);
            }
            match (message, body) {
                (ToNear::Prepared | ToNear::Captured, _) => {}
                (ToNear::Done { .. }, _) if failed.is_some() => return Err(failed.unwrap_or(Error::Cancelled)),
                (ToNear::Call { call, what }, body) => {
                    self.calls.send((call, what, body)).map_err(|_| lost("the threads that answer it ended"))?;
                }
                (ToNear::Progress { bytes: b, files: f, total: t }, _) => {
                    progress.add_bytes(b.saturating_sub(bytes));
                    progress.add_files(f.saturating_sub(files));
                    if t != total {
                        progress.set_total(t);
                    }
                    (bytes, files, total) = (bytes.max(b), files.max(f), t);
                }
                (ToNear::Done { outcome: Outcome::Failed(failed) }, _) => {
                    return Err(failed.error(self.near.noted().failure.take()));
                }
                (ToNear::Done { outcome }, _) => return Ok(outcome),
                (ToNear::Hello { .. }, _) => return Err(nonsense()),
            }
        }
    }

    fn say(&self, message: &ToFar) -> Result<()> {
        self.near.sender.send(message, &[]).map_err(|e| lost(format!("it does not listen: {e}")))
    }

    /// The next message; passes a cancellation on while it waits, and gives up on silence.
    fn next(&self, watch: &mut Watch, progress: &Progress) -> Result<(ToNear, Vec<u8>)> {
        loop {
            if watch.told.is_none() && progress.check().is_err() {
                self.say(&ToFar::Cancel)?;
                watch.told = Some(Instant::now());
            }
            if watch.told.is_some_and(|told| told.elapsed() > PATIENCE) {
                return Err(Error::Cancelled);
            }
            match self.frames.recv_timeout(LOOK) {
                Ok(Ok(frame)) => {
                    watch.heard = Instant::now();
                    return Ok((frame.head().map_err(lost)?, frame.body));
                }
                Ok(Err(error)) => return Err(lost(error)),
                Err(RecvTimeoutError::Timeout) if watch.heard.elapsed() > SILENCE => {
                    return Err(lost(format!("it said nothing for {} seconds", SILENCE.as_secs())));
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(lost("it ended before it was done")),
            }
        }
    }
}

/// The writers whom this end holds still for the far one.
enum Hold<'a> {
    /// None are to be.
    Never,
    /// They are to be when the far end is prepared.
    Before(&'a Held<'a>, Arc<Spool>),
    /// They are; they go on when this is dropped at the latest.
    Now(Release<'a>, Arc<Spool>),
}

impl<'a> Hold<'a> {
    fn new(held: &'a Held<'a>, shares: &Shares) -> Self {
        Self::Before(held, Arc::new(Spool::new(&held.spool, shares)))
    }

    fn begin(&mut self, near: &Near) -> Result<()> {
        match std::mem::replace(self, Self::Never) {
            Self::Before(held, spool) => {
                *self = Self::Now(Release::after_hold(held.writers)?, Arc::clone(&spool));
                near.noted().spool = Some(spool);
                Ok(())
            }
            _ => Err(nonsense()),
        }
    }

    /// Lets them go on, and writes what waited: the far end sends nothing that counts on it before this was said.
    fn end(&mut self, near: &Near, progress: &Progress) -> Result<()> {
        let Self::Now(release, spool) = std::mem::replace(self, Self::Never) else { return Err(nonsense()) };
        let released = release.now();
        near.noted().spool = None;
        released?;
        loop {
            progress.check()?;
            let taken = spool
                .take(&near.inner.account)
                .map_err(|source| Error::System { doing: "read a pack that waited", source })?;
            let Some(pack) = taken else { return Ok(()) };
            near.store(pack.id, &pack.data)?;
        }
    }
}

/// When the far end was last heard, and since when it is to stop.
struct Watch {
    heard: Instant,
    told: Option<Instant>,
}

impl Watch {
    fn new() -> Self {
        Self { heard: Instant::now(), told: None }
    }
}

fn nonsense() -> Error {
    lost("it answered something else than what it was asked")
}

fn read_all(mut reader: impl Read, arrived: &SyncSender<io::Result<Frame>>) {
    loop {
        let frame = match receive(&mut reader) {
            Ok(Some(frame)) => Ok(frame),
            Ok(None) => return,
            Err(error) => Err(error),
        };
        let last = frame.is_err();
        if arrived.send(frame).is_err() || last {
            return;
        }
    }
}

fn answer_all(near: &Near, waiting: &Mutex<Receiver<(u64, Call, Vec<u8>)>>) {
    loop {
        let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((call, what, body)) = next else { return };
        let (failure, body) = match near.answer(what, &body) {
            Ok(body) => (None, body),
            Err(error) => {
                let failure = Failure::new(&error);
                if !error.is_not_found() {
                    near.noted().failure.get_or_insert(error);
                }
                (Some(failure), Vec::new())
            }
        };
        // Who does not listen is noticed by the thread that waits for the job.
        if near.sender.send(&ToFar::Answer { call, failure }, &body).is_err() {
            return;
        }
    }
}

impl Near {
    /// Does what the far end asks of the repository, as far as that is its business.
    fn answer(&self, call: Call, body: &[u8]) -> Result<Vec<u8>, BackendError> {
        let backend = &self.inner.backend;
        match call {
            Call::List { kind } => Ok(encode_listing(&backend.list(kind.kind())?)),
            Call::Read { kind, id } => backend.read(kind.kind(), id),
            Call::ReadRange { kind, id, offset, length } => {
                backend.read_range(kind.kind(), id, offset, usize::try_from(length).unwrap_or(usize::MAX))
            }
            Call::Size { kind, id } => {
                Ok(backend.size(kind.kind(), id)?.map(|size| size.to_le_bytes().to_vec()).unwrap_or_default())
            }
            Call::Write { kind, id } => self.write(kind, id, body).map(|()| Vec::new()),
        }
    }

    fn store(&self, id: Id, data: &[u8]) -> Result<(), BackendError> {
        // As for packs of our own: from before the write on, nobody has read it back.
        self.inner.unread.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
        self.inner.backend.write(FileKind::Pack, id, data)?;
        self.noted().packs.push(id);
        Ok(())
    }

    fn write(&self, kind: Place, id: Id, data: &[u8]) -> Result<(), BackendError> {
        let refused = |problem: &str| BackendError {
            doing: "write",
            kind: kind.kind(),
            id: Some(id),
            source: io::Error::new(io::ErrorKind::InvalidData, problem),
        };
        if Id::of(data) != id {
            return Err(refused("the mover sent something else than the name says"));
        }
        match kind {
            Place::Pack => {
                let spool = self.noted().spool.clone();
                match spool {
                    None => self.store(id, data),
                    Some(spool) => {
                        let charge = self.inner.charge(data.len());
                        match spool.put(Waiting { id, data: data.to_vec(), blobs: Vec::new(), charge }) {
                            None => Ok(()),
                            Some(pack) => self.store(id, &pack.data),
                        }
                    }
                }
            }
            Place::Index => {
                let file = self.inner.decode_unpacked(FileKind::Index, id, data).ok();
                let file: Option<IndexFile> = file.and_then(|json| serde_json::from_slice(&json).ok());
                let file = file.ok_or_else(|| refused("the mover sent an index file that makes no sense"))?;
                {
                    let noted = self.noted();
                    if !file.packs.iter().all(|pack| noted.packs.contains(&pack.id)) {
                        return Err(refused("the mover sent an index file of packs that it did not send"));
                    }
                }
                self.inner.backend.write(FileKind::Index, id, data)?;
                self.inner.index.write().unwrap_or_else(PoisonError::into_inner).add_written(
                    id,
                    Origin::Written,
                    &file,
                );
                Ok(())
            }
            Place::Snapshot => Err(refused("a mover makes no snapshots")),
        }
    }
}
