//! The end that has the directories.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender as Signal, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use perennial_core::progress::Progress;

use super::frame::{Frame, Sender, invalid, receive};
use super::message::{Bytes, Call, FailedJob, Failure, Job, Outcome, PROTOCOL, Place, ToFar, ToNear, decode_listing};
use crate::archive::{Held, Writers};
use crate::backend::{Backend, BackendError, FileInfo, FileKind};
use crate::error::{Error, Result};
use crate::id::Id;
use crate::repository::{Repository, key_of};
use crate::spool::SpoolLimits;

/// What was read while writers are held waits here up to so many bytes, and beyond that at the other end.
const SPOOL: usize = 64 << 20;
/// How often progress is reported; also the sign of life.
const REPORT: Duration = Duration::from_millis(500);

/// Does the jobs that come through the channel, until it is closed.
///
/// `reach` says which paths may be touched; a job that names another one fails.
///
/// # Errors
/// What kept it from talking; the end of the channel is none.
pub fn serve(
    mut reader: impl Read + Send + 'static,
    writer: impl Write + Send + 'static,
    reach: impl Fn(&Path) -> bool,
) -> io::Result<()> {
    let Some(frame) = receive(&mut reader)? else { return Ok(()) };
    let ToFar::Hello { protocol, key } = frame.head()? else { return Err(invalid("no greeting came first")) };
    let far = Arc::new(Far {
        sender: Sender::new(writer),
        calls: Mutex::default(),
        number: AtomicU64::new(0),
        holding: Mutex::default(),
    });
    // Said even to somebody who speaks another version, who then knows why this ends.
    far.sender.send(&ToNear::Hello { protocol: PROTOCOL }, &[])?;
    if protocol != PROTOCOL {
        return Err(invalid(format!(
            "the server speaks version {protocol} of the protocol, and this mover {PROTOCOL}"
        )));
    }
    let key = key_of(key).ok_or_else(|| invalid("a key of the wrong size"))?;
    let repository = Repository::at_far_end(Arc::new(FarBackend(Arc::clone(&far))), key);
    let now = Arc::new(Mutex::new(Progress::default()));
    let (arrived, jobs) = channel();
    let listening = {
        let (far, now) = (Arc::clone(&far), Arc::clone(&now));
        std::thread::Builder::new().name("mover-reader".into()).spawn(move || {
            let ended = listen(&mut reader, &far, &now, &arrived);
            far.end();
            far.held(false);
            // Nobody wants the result any more.
            current(&now).cancel();
            ended
        })?
    };
    for job in jobs {
        let progress = Progress::default();
        *current(&now) = progress.clone();
        let outcome = reported(&far, &progress, || run(&repository, &far, job, &progress, &reach));
        if far.sender.send(&ToNear::Done { outcome }, &[]).is_err() {
            break;
        }
    }
    listening.join().unwrap_or_else(|_| Err(io::Error::other("the thread that listens ended abnormally")))
}

fn current(now: &Mutex<Progress>) -> MutexGuard<'_, Progress> {
    now.lock().unwrap_or_else(PoisonError::into_inner)
}

fn listen(reader: &mut impl Read, far: &Far, now: &Mutex<Progress>, jobs: &Signal<Job>) -> io::Result<()> {
    while let Some(frame) = receive(reader)? {
        match frame.head()? {
            ToFar::Hello { .. } => return Err(invalid("a second greeting")),
            ToFar::Cancel => {
                current(now).cancel();
                far.held(false);
            }
            ToFar::Held => far.held(true),
            ToFar::Answer { call, failure } => far.answered(call, failure, frame),
            ToFar::Job { job } => {
                if jobs.send(job).is_err() {
                    return Ok(());
                }
            }
        }
    }
    Ok(())
}

/// Runs a job and says meanwhile how far it is.
fn reported(far: &Far, progress: &Progress, job: impl FnOnce() -> Result<Outcome>) -> Outcome {
    let report = || {
        let read = progress.read();
        let said = ToNear::Progress { bytes: read.bytes_done, files: read.files_done, total: read.bytes_total };
        far.sender.send(&said, &[]).is_ok()
    };
    let (done, waiting) = channel::<()>();
    let outcome = std::thread::scope(|scope| {
        scope.spawn(|| {
            let waiting = waiting;
            while waiting.recv_timeout(REPORT) == Err(RecvTimeoutError::Timeout) && report() {}
        });
        let outcome = job();
        drop(done);
        outcome
    });
    report();
    outcome.unwrap_or_else(|error| Outcome::Failed(FailedJob::new(error)))
}

fn run(
    repository: &Repository,
    far: &Far,
    job: Job,
    progress: &Progress,
    reach: &impl Fn(&Path) -> bool,
) -> Result<Outcome> {
    let within = |mut paths: Box<dyn Iterator<Item = PathBuf> + '_>| match paths.find(|path| !reach(path)) {
        Some(path) => Err(Error::InvalidRequest(format!("{} is none of the volumes", path.display()))),
        None => Ok(()),
    };
    match job {
        Job::Look { paths } => {
            within(Box::new(paths.iter().map(Bytes::path)))?;
            let is_directory = |p: &Bytes| std::fs::symlink_metadata(p.path()).is_ok_and(|m| m.is_dir());
            Ok(Outcome::Looked { there: paths.iter().map(is_directory).collect() })
        }
        Job::Sync { paths } => {
            within(Box::new(paths.iter().map(Bytes::path)))?;
            for path in paths.iter().map(Bytes::path) {
                let synced = std::fs::File::open(&path)
                    .and_then(|directory| rustix::fs::syncfs(directory.as_fd()).map_err(Into::into));
                synced.map_err(|e| Error::io("sync the file system of", path, e))?;
            }
            Ok(Outcome::Synced)
        }
        Job::Archive(job) => {
            within(Box::new(job.paths()))?;
            let (writers, spool) = (FarWriters { far, progress }, SpoolLimits { memory: SPOOL, directory: None });
            let archived = if job.is_held() {
                repository.archive_held(&job.request(), &Held { writers: &writers, spool }, progress)?
            } else {
                repository.archive(&job.request(), progress)?
            };
            Ok(Outcome::Archived(archived.into()))
        }
        Job::Restore(job) => {
            within(Box::new(job.paths()))?;
            let (snapshot, request) = job.request();
            Ok(Outcome::Restored(repository.restore(snapshot, &request, progress)?.into()))
        }
    }
}

/// What the threads of this end share.
struct Far {
    sender: Sender,
    calls: Mutex<Calls>,
    number: AtomicU64,
    /// Who waits for the writers to be held.
    holding: Mutex<Option<Signal<bool>>>,
}

/// Those whom the other end holds.
struct FarWriters<'a> {
    far: &'a Far,
    progress: &'a Progress,
}

impl Writers for FarWriters<'_> {
    fn hold(&self) -> Result<()> {
        let (signal, answer) = channel();
        *self.far.holding() = Some(signal);
        // A cancellation from before found nobody to tell.
        self.progress.check()?;
        self.far.say(&ToNear::Prepared)?;
        if answer.recv() == Ok(true) { Ok(()) } else { Err(Error::Cancelled) }
    }

    fn release(&self) -> Result<()> {
        self.far.say(&ToNear::Captured)
    }
}

/// Calls that wait for their answers.
#[derive(Default)]
struct Calls {
    waiting: HashMap<u64, Signal<io::Result<Vec<u8>>>>,
    ended: bool,
}

impl Far {
    fn holding(&self) -> MutexGuard<'_, Option<Signal<bool>>> {
        self.holding.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells whoever waits for it whether the writers are held.
    fn held(&self, held: bool) {
        if let Some(waiting) = self.holding().take() {
            // Who no longer waits needs no answer.
            let _ = waiting.send(held);
        }
    }

    fn say(&self, message: &ToNear) -> Result<()> {
        let gone = |source| Error::System { doing: "talk to the server", source };
        self.sender.send(message, &[]).map_err(gone)
    }

    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answered(&self, call: u64, failure: Option<Failure>, frame: Frame) {
        if let Some(waiting) = self.calls().waiting.remove(&call) {
            // Who no longer waits needs no answer.
            let _ = waiting.send(failure.map_or(Ok(frame.body), |failure| Err(failure.error())));
        }
    }

    /// From now on every call fails: the other end is gone.
    fn end(&self) {
        let mut calls = self.calls();
        calls.ended = true;
        calls.waiting.clear();
    }

    fn ask(&self, what: Call, body: &[u8]) -> io::Result<Vec<u8>> {
        let gone = || io::Error::new(io::ErrorKind::ConnectionAborted, "the server went away");
        let call = self.number.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = channel();
        {
            let mut calls = self.calls();
            if calls.ended {
                return Err(gone());
            }
            calls.waiting.insert(call, sender);
        }
        if let Err(error) = self.sender.send(&ToNear::Call { call, what }, body) {
            self.calls().waiting.remove(&call);
            return Err(error);
        }
        answer.recv().map_err(|_| gone())?
    }
}

/// The repository's store, at the other end of the channel.
struct FarBackend(Arc<Far>);

impl fmt::Debug for FarBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FarBackend")
    }
}

impl FarBackend {
    fn ask(
        &self,
        (doing, kind, id): (&'static str, FileKind, Option<Id>),
        what: impl FnOnce(Place) -> Call,
        body: &[u8],
    ) -> Result<Vec<u8>, BackendError> {
        let asked = Place::of(kind).and_then(|place| self.0.ask(what(place), body));
        asked.map_err(|source| BackendError { doing, kind, id, source })
    }
}

fn unsupported(doing: &'static str, kind: FileKind) -> BackendError {
    BackendError { doing, kind, id: None, source: io::ErrorKind::Unsupported.into() }
}

impl Backend for FarBackend {
    fn prepare(&self) -> Result<(), BackendError> {
        Err(unsupported("prepare", FileKind::Config))
    }

    fn list(&self, kind: FileKind) -> Result<Vec<FileInfo>, BackendError> {
        let body = self.ask(("list", kind, None), |kind| Call::List { kind }, &[])?;
        decode_listing(&body).map_err(|source| BackendError { doing: "list", kind, id: None, source })
    }

    fn read(&self, kind: FileKind, id: Id) -> Result<Vec<u8>, BackendError> {
        self.ask(("read", kind, Some(id)), |kind| Call::Read { kind, id }, &[])
    }

    fn read_range(&self, kind: FileKind, id: Id, offset: u64, len: usize) -> Result<Vec<u8>, BackendError> {
        let error = |source| BackendError { doing: "read", kind, id: Some(id), source };
        let length = u32::try_from(len).map_err(|_| error(invalid("too long a piece of a file")))?;
        let read = |kind| Call::ReadRange { kind, id, offset, length };
        let data = self.ask(("read", kind, Some(id)), read, &[])?;
        if data.len() == len { Ok(data) } else { Err(error(io::ErrorKind::UnexpectedEof.into())) }
    }

    fn write(&self, kind: FileKind, id: Id, data: &[u8]) -> Result<(), BackendError> {
        self.ask(("write", kind, Some(id)), |kind| Call::Write { kind, id }, data).map(drop)
    }

    fn remove(&self, kind: FileKind, _id: Id) -> Result<(), BackendError> {
        Err(unsupported("remove", kind))
    }

    fn size(&self, kind: FileKind, id: Id) -> Result<Option<u64>, BackendError> {
        let body = self.ask(("stat", kind, Some(id)), |kind| Call::Size { kind, id }, &[])?;
        if body.is_empty() {
            return Ok(None);
        }
        let size = body.as_slice().try_into().map_err(|_| invalid("a size that makes no sense"));
        size.map(u64::from_le_bytes).map(Some).map_err(|source| BackendError {
            doing: "stat",
            kind,
            id: Some(id),
            source,
        })
    }

    fn drop_caches(&self, kind: FileKind, _id: Id) -> Result<(), BackendError> {
        Err(unsupported("stat", kind))
    }
}
