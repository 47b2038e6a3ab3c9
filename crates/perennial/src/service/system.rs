//! What works and what does not: the checks behind `perennial doctor`.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use perennial_core::engine::Capabilities;

use super::App;

/// Free space below which snapshots and stops are in danger, in bytes: 2 GiB, room for a small pod's changes.
const SPACE_LOW: u64 = 2 << 30;
/// Free space below which they fail, in bytes.
const SPACE_OUT: u64 = 128 << 20;
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
    fn ok(name: &'static str, message: impl Into<String>) -> Self {
        Self { name, state: CheckState::Ok, message: message.into(), hint: String::new() }
    }

    fn bad(name: &'static str, state: CheckState, message: impl Into<String>, hint: impl Into<String>) -> Self {
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
        self.engine.capabilities().await.map(drop).map_err(|e| format!("the engine does not answer: {e}"))
    }

    /// Checks everything the installation needs.
    pub async fn system(&self) -> SystemReport {
        let mut checks = Vec::new();
        let engine = match self.engine.capabilities().await {
            Ok(capabilities) => {
                checks.push(Check::ok("engine", capabilities.version.clone()));
                checks.extend(runtimes(&capabilities));
                Some(capabilities)
            }
            Err(error) => {
                let hint = "start the engine, or set DOCKER_HOST to where it listens";
                checks.push(Check::bad("engine", CheckState::Failed, error.to_string(), hint));
                None
            }
        };
        checks.push(match self.store.ping().await {
            Ok(()) => Check::ok("database", "answers"),
            Err(error) => Check::bad("database", CheckState::Failed, error.to_string(), "look into the server's log"),
        });
        let data_dir = self.settings.data_dir.clone();
        let local = tokio::task::spawn_blocking(move || local_checks(&data_dir)).await;
        checks.extend(local.unwrap_or_default());
        checks.push(clock());
        SystemReport { engine, checks, time: self.now() }
    }
}

fn runtimes(capabilities: &Capabilities) -> Vec<Check> {
    let mut checks = Vec::new();
    if capabilities.runtime(None).is_none() {
        checks.push(Check::bad(
            "runtimes",
            CheckState::Failed,
            format!("the default runtime {:?} is not there", capabilities.default_runtime),
            "install it, or set `default-runtime` in perennial.toml",
        ));
    }
    for runtime in &capabilities.runtimes {
        let mut lacks = Vec::new();
        if !runtime.overlay_volumes {
            lacks.push("overlay volumes do not work, engine volumes are used");
        }
        if !runtime.root_changes {
            lacks.push("changes outside volumes cannot be captured");
        }
        if !runtime.freeze {
            lacks.push("it cannot freeze a pod, snapshots of running pods stop it for a moment");
        }
        checks.push(if lacks.is_empty() {
            Check::ok("runtime", format!("{}: everything works", runtime.name))
        } else {
            Check::bad("runtime", CheckState::Warning, format!("{}: {}", runtime.name, lacks.join("; ")), "")
        });
    }
    checks.extend(capabilities.notes.iter().map(|note| Check::bad("engine", CheckState::Warning, note.clone(), "")));
    checks
}

fn local_checks(data_dir: &Path) -> Vec<Check> {
    vec![permissions(data_dir), repository(data_dir), space(data_dir)]
}

fn permissions(data_dir: &Path) -> Check {
    match std::fs::metadata(data_dir) {
        Ok(meta) if meta.permissions().mode() & 0o077 == 0 => {
            Check::ok("permissions", format!("{} is closed to others", data_dir.display()))
        }
        Ok(meta) => Check::bad(
            "permissions",
            CheckState::Failed,
            format!("{} has mode {:o}: others can read it", data_dir.display(), meta.permissions().mode() & 0o7777),
            format!("chmod 700 {}", data_dir.display()),
        ),
        Err(error) => Check::bad("permissions", CheckState::Failed, error.to_string(), "check the data directory"),
    }
}

/// Writes a byte where repositories live and removes it again.
fn repository(data_dir: &Path) -> Check {
    let directory = data_dir.join("repositories");
    let probe = directory.join(".probe");
    let tried = std::fs::create_dir_all(&directory)
        .and_then(|()| std::fs::write(&probe, b"x"))
        .and_then(|()| std::fs::remove_file(&probe));
    match tried {
        Ok(()) => Check::ok("repository", format!("{} can be written", directory.display())),
        Err(error) => Check::bad(
            "repository",
            CheckState::Failed,
            format!("{} cannot be written: {error}", directory.display()),
            "no stop can succeed: make space, or mend the permissions of the directory",
        ),
    }
}

fn space(data_dir: &Path) -> Check {
    let free = match rustix::fs::statvfs(data_dir) {
        Ok(stat) => stat.f_bavail.saturating_mul(stat.f_frsize),
        Err(error) => return Check::bad("disk", CheckState::Failed, error.to_string(), "check the data directory"),
    };
    let message = format!("{} MiB free at {}", free >> 20, data_dir.display());
    match free {
        SPACE_LOW.. => Check::ok("disk", message),
        SPACE_OUT.. => Check::bad("disk", CheckState::Warning, message, "make space before snapshots fail"),
        _ => Check::bad("disk", CheckState::Failed, message, "make space: snapshots, and with them stops, will fail"),
    }
}

/// Ids and the undelete window depend on the wall clock, so the system's own is looked at, not the injected one.
fn clock() -> Check {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    if seconds >= CLOCK_MIN {
        return Check::ok("clock", "plausible");
    }
    Check::bad("clock", CheckState::Failed, "the clock is years behind", "set it: timedatectl set-ntp true")
}
