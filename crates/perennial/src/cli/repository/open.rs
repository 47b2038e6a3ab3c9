//! Opening a repository on the command line: place, password, progress, and what its errors mean here.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use perennial_core::progress::Progress;
use perennial_snapshots::backend::{Addressing, ConnectOptions, InvalidLocation, Location};
use perennial_snapshots::{Backend, Effort, Error, Password, Repository};
use serde::Serialize;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;

use super::args::{CopyArgs, PlaceArgs};
use crate::causes::describe;
use crate::cli::args::Connection;
use crate::cli::failure::{Exit, Failure};
use crate::cli::out::Out;
use crate::cli::session;
use crate::cli::view::how_far;
use crate::config::{bandwidth, limited, read_variables};

/// How often a live line is drawn.
const REDRAW: Duration = Duration::from_millis(150);

/// What every command works with.
pub(super) struct Desk<'a> {
    pub(super) connection: &'a Connection,
    pub(super) out: &'a mut Out,
}

/// A place that was not looked at yet.
pub(super) struct Place {
    pub(super) name: String,
    /// The directory it is in; `None` when it is on no disk of this machine.
    pub(super) directory: Option<PathBuf>,
    pub(super) backend: Arc<dyn Backend>,
    pub(super) password: Password,
    effort: Effort,
}

impl Place {
    pub(super) fn open(&self) -> Result<Repository, Failure> {
        let opened = Repository::open(Arc::clone(&self.backend), &self.password);
        Ok(opened.map_err(|e| failure(&e, &self.name))?.with_effort(self.effort))
    }
}

impl Desk<'_> {
    /// Everything that can be wrong with the arguments is found before the repository is touched.
    pub(super) fn place(&self, args: &PlaceArgs) -> Result<Place, Failure> {
        place(self.connection, args)
    }

    /// Where a copy goes; limits count for what the two do with the network, not twice.
    pub(super) fn place_to(&self, args: &CopyArgs) -> Result<Place, Failure> {
        let location = match &args.to_env_file {
            None => Location::from_env(&args.to).map_err(invalid)?,
            Some(path) => {
                let variables = read_variables("to-env-file", path)
                    .map_err(|error| Failure::new(Exit::Invalid, error.to_string(), error.hint()))?;
                let find = |name: &str| variables.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone());
                Location::parse(&args.to, find).map_err(invalid)?
            }
        };
        let of = ("to-password", args.to_password_file.as_deref(), args.to_password_command.as_deref());
        connect(self.connection, &location, args.to_bucket_lookup.into(), of, &args.place)
    }

    pub(super) fn open(&self, args: &PlaceArgs) -> Result<(Place, Repository), Failure> {
        open(self.connection, args)
    }

    /// Does work that takes long: with a live line on a terminal, and so that Ctrl-C ends it in good order.
    pub(super) fn work<T: Send>(
        &self,
        place: &Place,
        what: &str,
        work: impl FnOnce(&Progress) -> Result<T, Error>,
    ) -> Result<T, Failure> {
        let progress = Progress::default();
        let (done, ready) = (Notify::new(), Barrier::new(2));
        let live = self.out.is_live();
        let result = std::thread::scope(|scope| {
            scope.spawn(|| watch(&progress, &done, &ready, live.then_some(what)));
            // From here on Ctrl-C leaves no lock behind.
            ready.wait();
            let result = work(&progress);
            done.notify_one();
            result
        });
        result.map_err(|error| failure(&error, &place.name))
    }

    /// Prints an answer: exactly for JSON and YAML, by `table` for people.
    pub(super) fn show<T: Serialize>(
        &mut self,
        answer: &T,
        table: impl FnOnce(&T, &Out) -> String,
    ) -> Result<(), Failure> {
        session::show(self.connection.output, self.out, answer, table)
    }
}

fn place(connection: &Connection, args: &PlaceArgs) -> Result<Place, Failure> {
    let location = Location::from_env(&args.repo).map_err(invalid)?;
    let of = ("password", args.password_file.as_deref(), args.password_command.as_deref());
    connect(connection, &location, args.bucket_lookup.into(), of, args)
}

/// A place at this location, with what it shares with others: certificates, limits.
fn connect(
    connection: &Connection,
    location: &Location,
    addressing: Addressing,
    of: (&str, Option<&Path>, Option<&str>),
    args: &PlaceArgs,
) -> Result<Place, Failure> {
    let options = ConnectOptions {
        ca_file: connection.ca_file.clone(),
        allow_http: args.allow_http,
        addressing,
        ..ConnectOptions::default()
    };
    let password = password(of)?;
    let backend = location.connect(&options).map_err(invalid)?;
    let backend = limited(backend, bandwidth(args.limit_upload, args.limit_download));
    let effort = Effort { threads: args.threads, nice: args.nice, memory: args.memory };
    let directory = match location {
        Location::Local(path) => Some(path.clone()),
        Location::S3(_) | Location::Azure(_) => None,
    };
    Ok(Place { name: location.to_string(), directory, backend, password, effort })
}

/// Opens a repository.
pub(super) fn open(connection: &Connection, args: &PlaceArgs) -> Result<(Place, Repository), Failure> {
    let place = place(connection, args)?;
    let repository = place.open()?;
    Ok((place, repository))
}

fn invalid(error: InvalidLocation) -> Failure {
    Failure::new(Exit::Invalid, error.to_string(), error.hint)
}

fn password((name, file, command): (&str, Option<&Path>, Option<&str>)) -> Result<Password, Failure> {
    let wrong = |message: String| Failure::new(Exit::Invalid, message, "");
    let text = if let Some(file) = file {
        let text = std::fs::read_to_string(file)
            .map_err(|error| wrong(format!("{name}-file: read {}: {error}", file.display())))?;
        text.trim().to_owned()
    } else if let Some(command) = command {
        let output = Command::new("sh")
            .args(["-c", command])
            .stderr(Stdio::inherit())
            .output()
            .map_err(|error| wrong(format!("{name}-command: {error}")))?;
        if !output.status.success() {
            return Err(wrong(format!("{name}-command: it failed ({})", output.status)));
        }
        String::from_utf8(output.stdout)
            .map_err(|_| wrong(format!("{name}-command: what it printed is not Unicode")))?
            .trim()
            .to_owned()
    } else {
        std::env::var("RESTIC_PASSWORD").unwrap_or_default()
    };
    if text.is_empty() {
        let hint = format!("name a file with --{name}-file, or set RESTIC_PASSWORD");
        return Err(Failure::new(Exit::Usage, "no password, or an empty one, was given for the repository", hint));
    }
    Ok(Password::new(text))
}

/// Draws the line, and cancels the work on Ctrl-C or when the process is to end; a second time ends it at once.
fn watch(progress: &Progress, done: &Notify, ready: &Barrier, what: Option<&str>) {
    let prepared = prepare();
    ready.wait();
    // Without a runtime there is no line and no clean end, but the work goes on.
    let Some((runtime, mut interrupt, mut terminate)) = prepared else { return };
    let bar = what.map(bar);
    runtime.block_on(async {
        let mut ticks = tokio::time::interval(REDRAW);
        loop {
            tokio::select! {
                biased;
                () = done.notified() => break,
                _ = interrupt.recv() => cancel(progress),
                _ = terminate.recv() => cancel(progress),
                _ = ticks.tick() => if let (Some(bar), Some(what)) = (&bar, what) { draw(bar, what, progress) },
            }
        }
    });
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
}

fn prepare() -> Option<(Runtime, Signal, Signal)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    let entered = runtime.enter();
    let signals = (signal(SignalKind::interrupt()).ok()?, signal(SignalKind::terminate()).ok()?);
    drop(entered);
    Some((runtime, signals.0, signals.1))
}

fn cancel(progress: &Progress) {
    if progress.check().is_err() {
        std::process::exit(Exit::Interrupted.code().into());
    }
    progress.cancel();
}

fn bar(what: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg} {elapsed}") {
        bar.set_style(style);
    }
    bar.set_message(what.to_owned());
    bar
}

fn draw(bar: &ProgressBar, what: &str, progress: &Progress) {
    let (now, elapsed) = (progress.read(), bar.elapsed());
    bar.set_message(how_far(what.to_owned(), now, now.rate(elapsed), now.left(elapsed)));
    bar.tick();
}

/// What an error of the engine means on the command line.
pub(super) fn failure(error: &Error, place: &str) -> Failure {
    let (exit, hint) = match error {
        Error::NoRepository => (Exit::NotFound, "perennial repository init makes one; check --repo"),
        Error::NotFound { .. } => (Exit::NotFound, "perennial repository snapshots lists what there is"),
        Error::AlreadyInitialized => (Exit::Conflict, "use it as it is, or choose another place"),
        Error::Locked { .. } => (Exit::Conflict, "somebody works on it; try again when they are done"),
        Error::LockLost => (Exit::Conflict, "nothing was finished; try again"),
        Error::TargetNotEmpty { .. } => {
            (Exit::Conflict, "name an empty directory, or one that does not exist yet; --in-place writes what differs")
        }
        Error::WrongPassword => (Exit::Forbidden, "check --password-file, --password-command or RESTIC_PASSWORD"),
        Error::InvalidRequest(_) | Error::UnsupportedVersion { .. } => (Exit::Invalid, ""),
        Error::Cancelled => (Exit::Interrupted, "what was uploaded is not uploaded again"),
        Error::Backend(e) if e.source.kind() == io::ErrorKind::PermissionDenied => {
            (Exit::Forbidden, "check the credentials, and what they may do there")
        }
        Error::Backend(e) if e.is_retryable() => {
            (Exit::Unavailable, "try again when the store answers; what was uploaded is not uploaded again")
        }
        Error::Incomplete { .. } => (Exit::Failed, "mend it, or leave these paths out with --exclude"),
        Error::Damaged { .. } | Error::MissingBlob { .. } => (
            Exit::Failed,
            "perennial repository repair salvages what can be, and names what is lost; see it with --dry-run",
        ),
        _ => (Exit::Failed, ""),
    };
    let mut message = format!("{place}: {}", describe(error));
    if let Error::Incomplete { losses } = error {
        for loss in losses {
            message = format!("{message}\n  {loss}");
        }
    }
    Failure::new(exit, message, hint)
}
