//! What works and what does not: the checks behind `perennial doctor`.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use jiff::{SignedDuration, Timestamp};
use perennial_core::Error;
use perennial_core::engine::{Capabilities, EngineError, RuntimeInfo};
use perennial_core::id::PodId;
use perennial_core::spec::TenantId;
use perennial_snapshots::Repository;

use super::space::{FileSystem, file_systems, places};
use super::{App, AppSettings, RecoveryState};
use crate::causes::describe;
use crate::config::RepositorySection;
use crate::keys::REPLICA_KEYS;
use crate::size::size;
use crate::store::EventFilter;

/// Free space below which snapshots and stops are in danger, in bytes: 2 GiB, room for a small pod's changes.
const SPACE_LOW: u64 = 2 << 30;
/// Free space below which they fail, in bytes.
const SPACE_OUT: u64 = 128 << 20;
/// Free inodes below which files can soon no longer be made.
const INODES_LOW: u64 = 10_000;
/// How far the clock may be behind the newest event before it is wrong.
const CLOCK_SLACK: SignedDuration = SignedDuration::from_secs(60);
/// A clock before this is wrong: 2026-01-01, in seconds since 1970.
const CLOCK_MIN: u64 = 1_767_225_600;

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckState {
    /// Good.
    Ok,
    /// Works, with a drawback.
    Warning,
    /// Does not work.
    Failed,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What was checked.
    pub name: &'static str,
    /// How it went.
    pub state: CheckState,
    /// What was found.
    pub message: String,
    /// How to mend it; empty when nothing is wrong.
    pub hint: String,
}

impl Check {
    pub(super) fn ok(name: &'static str, message: impl Into<String>) -> Self {
        Self { name, state: CheckState::Ok, message: message.into(), hint: String::new() }
    }

    pub(super) fn bad(
        name: &'static str,
        state: CheckState,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self { name, state, message: message.into(), hint: hint.into() }
    }
}

/// The installation, and every check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemReport {
    /// What the engine offers; `None` when it does not answer.
    pub engine: Option<Capabilities>,
    /// Every check.
    pub checks: Vec<Check>,
    /// Whether somebody has a recovery kit; `None` when that cannot be told.
    pub recovery: Option<RecoveryState>,
    /// The server's clock.
    pub time: Timestamp,
}

impl App {
    /// Whether requests can be served: the database and the engine answer.
    ///
    /// # Errors
    /// What does not answer.
    pub async fn ready(&self) -> Result<(), String> {
        self.store.ping().await.map_err(|e| e.to_string())?;
        self.engine_answers().await.map(drop).map_err(|e| format!("the engine does not answer: {e}"))
    }

    /// What the engine offers, after a question that only a living engine answers: what it offers is remembered.
    async fn engine_answers(&self) -> Result<Capabilities, EngineError> {
        self.engine.observe(PodId::from_parts(0, [0; 10]), &[]).await?;
        self.engine.capabilities().await
    }

    /// Checks everything the installation needs.
    pub async fn system(&self) -> SystemReport {
        let mut checks = Vec::new();
        let engine = match self.engine_answers().await {
            Ok(capabilities) => {
                checks.push(Check::ok("engine", format!("{} answers", capabilities.version)));
                checks.extend(runtimes(&capabilities));
                Some(capabilities)
            }
            Err(error) => {
                let hint = "start it (systemctl start docker), or set docker_host to where it listens (behind ssh, the log \
                            says what ssh said); pods run on meanwhile, and what was asked for is done when it answers";
                checks.push(Check::bad("engine", CheckState::Failed, error.to_string(), hint));
                None
            }
        };
        checks.push(self.database().await);
        let settings = self.settings.clone();
        let local = tokio::task::spawn_blocking(move || local_checks(&settings)).await;
        checks.extend(local.unwrap_or_default());
        checks.extend(self.replica_check().await);
        checks.extend(self.erasure_checks().await);
        checks.extend(self.keeping_check().await);
        checks.extend(self.deliveries_check().await);
        checks.push(self.server_clock().await);
        let recovery = self.recovery_state().await;
        checks.push(recovery_kit(&recovery));
        SystemReport { engine, checks, recovery: recovery.ok(), time: self.now() }
    }

    async fn database(&self) -> Check {
        match self.store.ping().await {
            Ok(()) => Check::ok("database", "answers"),
            Err(error) => {
                let hint = "is the disk full, or PostgreSQL away? `perennial config show` prints where it is";
                Check::bad("database", CheckState::Failed, error.to_string(), hint)
            }
        }
    }

    /// Ids and the undelete window depend on the wall clock, so the system's own is looked at, not the injected one.
    async fn server_clock(&self) -> Check {
        let hint = "set it: timedatectl set-ntp true";
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        if seconds < CLOCK_MIN {
            return Check::bad("clock", CheckState::Failed, "the clock is years behind", hint);
        }
        let last = match self.store.event_last().await {
            Ok(last) => self.store.event_list(last - 1, &EventFilter::default(), 1).await,
            Err(error) => Err(error),
        };
        let newest = last.ok().and_then(|events| events.first().map(|event| event.line.at));
        let behind = newest.map_or(SignedDuration::ZERO, |at| at.duration_since(self.now()));
        if behind > CLOCK_SLACK {
            let message = format!("the clock is {} s behind the newest event", behind.as_secs());
            return Check::bad("clock", CheckState::Warning, message, hint);
        }
        Check::ok("clock", "plausible, and not behind the newest event")
    }
}

fn runtimes(capabilities: &Capabilities) -> Vec<Check> {
    let mut checks = Vec::new();
    if capabilities.runtime(None).is_none() {
        checks.push(Check::bad(
            "runtimes",
            CheckState::Failed,
            format!("the default runtime {:?} is not there", capabilities.default_runtime),
            "install it, or set default_runtime in perennial.toml",
        ));
    }
    checks.extend(capabilities.runtimes.iter().map(runtime));
    let hint = "docs/operations.md, \"What it needs\", says what it takes";
    checks.extend(capabilities.notes.iter().map(|note| Check::bad("engine", CheckState::Warning, note.clone(), hint)));
    checks
}

fn runtime(runtime: &RuntimeInfo) -> Check {
    let (mut lacks, mut hints) = (Vec::new(), Vec::new());
    if !runtime.overlay_volumes {
        lacks.push("overlay volumes do not work on it, the engine's own are used");
        hints.push("nothing is lost by that; a newer version of the runtime may do");
    }
    if !runtime.root_changes {
        lacks.push("changes outside volumes cannot be captured, and end with the container");
        hints.push("for gVisor add --overlay2=none to its runtimeArgs in /etc/docker/daemon.json and restart Docker");
    }
    if !runtime.freeze {
        lacks.push("it cannot freeze a pod, snapshots of running pods stop it for a moment");
        hints.push("use runc for pods that must not stop for a moment");
    }
    if lacks.is_empty() {
        return Check::ok("runtime", format!("{}: everything works", runtime.name));
    }
    let message = format!("{}: {}", runtime.name, lacks.join("; "));
    Check::bad("runtime", CheckState::Warning, message, hints.join("; "))
}

fn local_checks(settings: &AppSettings) -> Vec<Check> {
    let directory = settings.repository.directory();
    let mut checks = vec![permissions(&settings.data_dir)];
    checks.push(match &directory {
        Some(directory) => repository_directory(directory),
        None => repository_elsewhere(&settings.repository),
    });
    checks.extend(repositories_there(settings));
    checks.extend(file_systems(&places(settings)).iter().map(disk));
    checks
}

/// Checks that nobody else can read what is secret: the directory, the token, the keys.
fn permissions(data_dir: &Path) -> Check {
    let mut secrets = vec![data_dir.to_owned(), data_dir.join("admin-token")];
    for keys in ["keys", REPLICA_KEYS].map(|name| data_dir.join(name)) {
        secrets.extend(std::fs::read_dir(&keys).into_iter().flatten().flatten().map(|entry| entry.path()));
        secrets.push(keys);
    }
    for path in secrets {
        let meta = match std::fs::metadata(&path) {
            Ok(meta) => meta,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && path != data_dir => continue,
            Err(error) => {
                let message = format!("{}: {error}", path.display());
                return Check::bad("permissions", CheckState::Failed, message, "mend the data directory, or restart");
            }
        };
        if meta.permissions().mode() & 0o077 != 0 {
            return Check::bad(
                "permissions",
                CheckState::Failed,
                format!("{} has mode {:03o}: others can read it", path.display(), meta.permissions().mode() & 0o7777),
                format!("chmod go= {}", path.display()),
            );
        }
    }
    Check::ok("permissions", format!("{}, its token and its keys are closed to others", data_dir.display()))
}

/// Writes a byte where repositories live and removes it again.
fn repository_directory(directory: &Path) -> Check {
    let tried = tempfile::Builder::new().prefix(".probe-").tempfile_in(directory).and_then(|mut probe| {
        std::io::Write::write_all(&mut probe, b"x")?;
        probe.as_file().sync_all()?;
        probe.close()
    });
    match tried {
        Ok(()) => Check::ok("repository", format!("{} can be written", directory.display())),
        Err(error) => Check::bad(
            "repository",
            CheckState::Failed,
            format!("{} cannot be written: {error}", directory.display()),
            "no stop can succeed: mount its disk, make space, or mend the permissions of the directory",
        ),
    }
}

/// Whether every repository that was made is there: none is begun anew in the place of one that is lost or not mounted.
fn repositories_there(settings: &AppSettings) -> Vec<Check> {
    let failed = |message: String, hint: &str| Check::bad("repository", CheckState::Failed, message, hint);
    let keys = match settings.keys.all() {
        Ok(keys) => keys,
        Err(error) => return vec![failed(error.to_string(), error.hint())],
    };
    let look = |tenant: &TenantId| -> Option<Check> {
        if !settings.keys.made_path(tenant).exists() {
            return None;
        }
        let place = settings.repository.of_tenant(tenant);
        let found = match settings.repository.connect(tenant) {
            Ok(backend) => Repository::exists(&*backend).map_err(|error| describe(&error)),
            Err(error) => Err(error.to_string()),
        };
        let problem = match found {
            Ok(true) => return None,
            Ok(false) => "is not there, but was made".to_owned(),
            Err(problem) => format!("cannot be looked at: {problem}"),
        };
        let hint = "pods that are stopped cannot start, and no stop can succeed: mount its disk, or bring it back";
        Some(failed(format!("the repository {place} of tenant {tenant} {problem}"), hint))
    };
    keys.iter().filter_map(|(tenant, _)| look(tenant)).collect()
}

/// Asks the store of the default tenant's repository whether it is there. What may be written is seen at the first stop
/// only: the store of a repository holds nothing that a probe could write without being in somebody's way.
fn repository_elsewhere(section: &RepositorySection) -> Check {
    let tenant = TenantId::default_tenant();
    let place = section.of_tenant(&tenant);
    let failed =
        |problem: String, hint: &str| Check::bad("repository", CheckState::Failed, format!("{place}: {problem}"), hint);
    let backend = match section.connect(&tenant) {
        Ok(backend) => backend,
        Err(error) => return failed(error.to_string(), error.hint()),
    };
    match Repository::exists(&*backend) {
        Ok(true) => Check::ok("repository", format!("{place} answers")),
        Ok(false) => Check::bad(
            "repository",
            CheckState::Warning,
            format!("{place} answers, and there is no repository yet"),
            "it is made when a tenant's first snapshot is",
        ),
        Err(error) => failed(
            describe(&error),
            "no stop can succeed: check the address, the credentials and the network (`perennial config show`)",
        ),
    }
}

/// Checks the space of a file system in use.
fn disk(found: &FileSystem) -> Check {
    let at = found.path.display();
    let space = match &found.space {
        Ok(space) => space,
        Err(problem) => {
            return Check::bad("disk", CheckState::Failed, format!("{at}: {problem}"), "is its disk mounted?");
        }
    };
    let message = format!("{} of {} free at {at} ({})", size(space.free), size(space.total), found.uses.join(", "));
    let hint = "make space: stop or purge pods, delete snapshots, or move to a larger disk";
    if let Some(files) = space.files.filter(|files| *files < INODES_LOW) {
        let message = format!("{message}, but only {files} more files can be made");
        return Check::bad("disk", CheckState::Warning, message, hint);
    }
    match space.free {
        SPACE_LOW.. => Check::ok("disk", message),
        SPACE_OUT.. => Check::bad("disk", CheckState::Warning, message, hint),
        _ => Check::bad("disk", CheckState::Failed, format!("{message}: stops and snapshots will fail"), hint),
    }
}

fn recovery_kit(state: &Result<RecoveryState, Error>) -> Check {
    let hint = "perennial recovery-kit writes it: keep the file off this host. Without the keys nobody can read the \
                snapshots once this host is lost";
    match state {
        Ok(RecoveryState { exported_at, missing }) if missing.is_empty() => Check::ok(
            "recovery kit",
            match exported_at {
                Some(at) => format!("exported on {}, with every key", at.strftime("%Y-%m-%d")),
                None => "not needed yet: there is no repository".to_owned(),
            },
        ),
        Ok(RecoveryState { exported_at: None, .. }) => {
            Check::bad("recovery kit", CheckState::Warning, "was never exported", hint)
        }
        Ok(RecoveryState { missing, .. }) => {
            let names: Vec<&str> = missing.iter().map(TenantId::as_str).collect();
            let message = format!("was exported without the keys of tenants {}", names.join(", "));
            Check::bad("recovery kit", CheckState::Warning, message, hint)
        }
        Err(error) => Check::bad("recovery kit", CheckState::Failed, error.to_string(), "look into the keys directory"),
    }
}
