//! The simulated engine: no processes, but real bytes, and stricter than Docker.
//!
//! Volumes, image trees and container layers are real directories below one root, so that snapshots and restores move
//! real files; deletions in an overlay are real whiteouts (that needs root). What has no process has hands instead:
//! tests write, crash and sabotage through the methods in `hands`. Everything is seeded and reads the clock it was
//! given, so a history repeats exactly.
//!
//! Stricter than Docker: a call whose precondition does not hold is refused, and a precondition that only a defect of
//! the caller can break is also recorded in [`SimEngine::violations`]; every deletion is recorded with its permit in
//! [`SimEngine::deletions`]. What the trait leaves open is decided here as the least convenient answer.
//!
//! Truth about volumes is on disk only: directories and one marker per set. Containers are remembered on disk too, so
//! that `perennial serve --engine sim` finds them after a restart. Nothing is synced: the simulator has to survive the
//! death of the server, not of the host.
//!
//! | file | role |
//! |---|---|
//! | `clock` | a clock that moves only when told |
//! | `images` | images as values, materialised once per id; export and import |
//! | `sets` | volume sets: directories, markers, presence |
//! | `stills` | sets as they were at one instant, for snapshots |
//! | `container` | what a container is |
//! | `containers` | what is done with one |
//! | `calls` | the [`Engine`](perennial_core::engine::Engine) trait |
//! | `tree` | the merged view of an overlay |
//! | `faults` | seeded misfortune |
//! | `mover` | a thread in a mover's place |
//! | `programs` | what is run in a container beside its own program |
//! | `health` | whether its own program works |
//! | `output` | what its own program says |
//! | `records` | violations and deletions |
//! | `hands` | what a pod, an administrator and fate do from outside |

mod calls;
mod clock;
mod container;
mod containers;
mod faults;
mod hands;
mod health;
mod images;
mod mover;
mod output;
mod programs;
mod records;
mod sets;
mod stills;
mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use perennial_core::clock::Clock;
use perennial_core::engine::{Copying, EngineError, RuntimeInfo};
use perennial_core::id::PodId;
use perennial_core::spec::Backend;
use perennial_core::volume::SetNumber;
use tokio::sync::mpsc::UnboundedSender;

pub use clock::VirtualClock;
pub use faults::{Delay, Faults};
pub use hands::{Cause, HandError};
pub use health::Ailment;
pub use images::SimImage;
pub use mover::SimMover;
pub use records::{Deleted, Deletion};

use container::{Container, Foreign};
use faults::Dice;
use images::Image;

/// Whether names nobody added are images too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ImagePolicy {
    /// Only what was added, imported or pulled exists.
    #[default]
    OnlyAdded,
    /// Every reference names the built-in image.
    AcceptAny,
}

/// How a simulated engine behaves.
#[derive(Debug, Clone)]
pub struct SimOptions {
    /// Decides container ids and faults.
    pub seed: u64,
    /// Whether unknown references are images.
    pub images: ImagePolicy,
    /// Runtimes it offers; the first is the default.
    pub runtimes: Vec<RuntimeInfo>,
    /// Backends it offers, best first.
    pub backends: Vec<Backend>,
    /// How overlay sets are copied beside themselves; `None`: only by a snapshot in a repository.
    pub copying: Option<Copying>,
    /// What reaches engine volumes; `None` when the server does it itself.
    pub mover: Option<SimMover>,
}

impl Default for SimOptions {
    fn default() -> Self {
        let runtime = |name: &str, root_changes| RuntimeInfo {
            name: name.to_owned(),
            overlay_volumes: true,
            root_changes,
            freeze: true,
        };
        Self {
            seed: 0,
            images: ImagePolicy::OnlyAdded,
            // As gVisor does by default, the second keeps changes outside volumes where the host cannot see them.
            runtimes: vec![runtime("runc", true), runtime("runsc", false)],
            backends: vec![Backend::Overlay, Backend::Engine],
            copying: Some(Copying::Instant),
            mover: None,
        }
    }
}

/// The simulated engine; clones are the same engine.
#[derive(Clone)]
pub struct SimEngine {
    shared: Arc<Shared>,
}

struct Shared {
    root: PathBuf,
    clock: Arc<dyn Clock>,
    options: SimOptions,
    state: Mutex<State>,
}

/// Everything that is not a tree on disk.
#[derive(Default)]
struct State {
    images: BTreeMap<String, Image>,
    references: BTreeMap<String, String>,
    registry: BTreeMap<String, SimImage>,
    containers: BTreeMap<String, Container>,
    by_pod: BTreeMap<PodId, String>,
    foreign: BTreeMap<PodId, Vec<Foreign>>,
    lost_definitions: BTreeSet<(PodId, SetNumber)>,
    limits: BTreeMap<(PodId, SetNumber), u64>,
    movers: Vec<mover::Running>,
    stills: Vec<stills::Read>,
    programs: Vec<(PodId, Vec<String>)>,
    going: Vec<programs::Going>,
    begun: u64,
    said: output::Said,
    quiesced: BTreeSet<PodId>,
    ailments: BTreeMap<PodId, health::Ailment>,
    probed: BTreeMap<PodId, usize>,
    watchers: Vec<UnboundedSender<PodId>>,
    faults: Faults,
    dice: Dice,
    unreachable: bool,
    hangs: bool,
    made: u64,
    calls: u64,
    violations: Vec<String>,
    deletions: Vec<Deletion>,
}

impl SimEngine {
    /// Opens the engine whose state lies below `root`, or makes it.
    ///
    /// # Errors
    /// What the file system said.
    pub fn open(root: impl Into<PathBuf>, clock: Arc<dyn Clock>, options: SimOptions) -> io::Result<Self> {
        let root = root.into();
        for directory in ["images/empty", "pods", "volumes", "containers", "stills", "trash"] {
            fs::create_dir_all(root.join(directory))?;
        }
        let mut state = State { dice: Dice::new(options.seed), ..State::default() };
        images::load(&root, &mut state)?;
        container::load(&root, &mut state)?;
        Ok(Self { shared: Arc::new(Shared { root, clock, options, state: Mutex::new(state) }) })
    }

    /// The directory everything lies below.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.shared.root
    }

    /// How many engine calls were made.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.lock().calls
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.lock()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while the lock is held is a failed test's; the others go on.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever looks sees what happened by itself meanwhile.
        self.programs_go_on(&mut state);
        state
    }
}

impl State {
    /// Tells every watcher, and forgets those that no longer listen.
    fn changed(&mut self, pod: PodId) {
        self.watchers.retain(|w| w.send(pod).is_ok());
    }
}

/// Overwrites a small JSON file in one write, padded so that nothing of a longer one is left.
///
/// A rename over the old file would be the usual way, and is what ext4 answers with a flush of the new one: it made
/// half of the cost of a pod. A killed server cannot interrupt a single small write.
fn overwrite(path: &Path, json: &[u8]) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
    let before = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
    let mut bytes = json.to_vec();
    bytes.resize(before.max(json.len()), b' ');
    file.write_all(&bytes)
}

/// The host's file system failed the simulator itself.
fn broken(verb: &str, error: &io::Error) -> EngineError {
    let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    let problem = format!("simulator: {verb}: {error}");
    if full { EngineError::Rejected { problem } } else { EngineError::Transient { problem } }
}

fn conflict(problem: impl Into<String>) -> EngineError {
    EngineError::Conflict { problem: problem.into() }
}

fn rejected(problem: impl Into<String>) -> EngineError {
    EngineError::Rejected { problem: problem.into() }
}

fn not_found(what: impl Into<String>) -> EngineError {
    EngineError::NotFound { what: what.into() }
}

/// Identifiers as text in the simulator's own files.
mod text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<T: Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(super) fn deserialize<'de, T, D>(deserializer: D) -> Result<T, D::Error>
    where
        T: FromStr,
        T::Err: Display,
        D: Deserializer<'de>,
    {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}
