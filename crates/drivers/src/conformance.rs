//! One suite that every engine passes, the simulator included, so that it cannot drift.
//!
//! A case is an async function of a [`Fixture`]; it fails with a sentence. [`for_each_case`](crate::for_each_case) hands the list to a macro of
//! the test file, so that every case is a test of its own on every engine; [`run`] runs one and tidies up after it.
//! What only a process, an administrator or an accident can do is asked of [`Hands`].
//!
//! A case asserts what the trait promises and nothing about how an engine does it. Where engines may differ, the
//! fixture says what to expect: the backend, the runtime, what the image holds, and what the engine lacks. A case that needs what
//! is lacking is not run and answers so ([`Outcome::NotApplicable`]); none of them returns early by itself.
//!
//! | file | what it is about |
//! |---|---|
//! | `subject` | a pod under test, and permits from its record |
//! | `abilities` | what not every engine can do, and which cases need it |
//! | `images` | resolving, exporting, declared volumes |
//! | `sets` | preparing, completing, deleting volume sets |
//! | `containers` | making, starting, stopping, freezing, removing |
//! | `programs` | what is run in them beside their own program |
//! | `logs` | what their own program wrote |
//! | `data` | bytes that have to survive |
//! | `outside` | what others do behind Perennial's back, and how it is seen |

mod abilities;
mod containers;
mod data;
mod health;
mod images;
mod logs;
mod outside;
mod programs;
mod sets;
mod subject;

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use perennial_core::clock::Clock;
use perennial_core::engine::{Engine, EngineError, SetSpec};
use perennial_core::id::PodId;
use perennial_core::permit::Denied;
use perennial_core::pod::Pod;
use perennial_core::spec::Backend;

/// Why a case failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Failure(pub String);

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        Self(format!("engine: {error:?}"))
    }
}

impl From<Denied> for Failure {
    fn from(error: Denied) -> Self {
        Self(format!("permit: {error}"))
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self(format!("file: {error}"))
    }
}

pub use abilities::{Ability, Outcome, needs, not_applicable};

/// Result of a case and of its steps.
pub type Checked<T = ()> = Result<T, Failure>;

/// What happens to a pod other than through its engine.
#[async_trait]
pub trait Hands: Send + Sync {
    /// Writes a file as the pod would, with the directories above it; durable for a reader on the host.
    async fn write(&self, container: &str, path: &str, bytes: &[u8]) -> Checked;

    /// Reads a file as the pod sees it; `None` when it has none there.
    async fn read(&self, container: &str, path: &str) -> Checked<Option<Vec<u8>>>;

    /// Whether a running container's process is seen on this host, by its control group.
    async fn is_of_this_host(&self, container: &str) -> Checked<bool>;

    /// Removes a file or directory as the pod would.
    async fn remove(&self, container: &str, path: &str) -> Checked;

    /// Ends the container's processes as SIGKILL does.
    async fn crash(&self, container: &str) -> Checked;

    /// Removes the container by force.
    async fn kill_outside(&self, container: &str) -> Checked;

    /// Makes a container of somebody else's that mounts a volume of the set; returns its id.
    async fn foreign_make(&self, set: &SetSpec) -> Checked<String>;

    /// Removes such a container.
    async fn foreign_remove(&self, id: &str) -> Checked;

    /// Lets a process have the set mounted that outlives the pod's container, which runs; returns how it is called.
    async fn linger(&self, set: &SetSpec) -> Checked<String>;

    /// Ends such a process; one that has ended is no failure.
    async fn linger_end(&self, id: &str) -> Checked;

    /// Removes the engine's definition of a volume whose data lies elsewhere; asked on overlay only.
    async fn definition_remove(&self, set: &SetSpec, volume: &str) -> Checked;

    /// Deletes one volume's data; nothing refers to it.
    async fn data_remove(&self, set: &SetSpec, volume: &str) -> Checked;
}

/// One engine as the suite sees it.
pub struct Fixture {
    /// The engine.
    pub engine: Arc<dyn Engine>,
    /// What happens from outside.
    pub hands: Arc<dyn Hands>,
    /// Makes identifiers that sort.
    pub clock: Arc<dyn Clock>,
    /// Makes identifiers that differ from those of every other fixture on the same engine.
    pub salt: u64,
    /// An image that the engine has, with the content named below.
    pub image: String,
    /// Another one, which declares a `VOLUME` at a path no standard volume holds.
    pub declaring: Declaring,
    /// The runtime; `None` for the default.
    pub runtime: Option<String>,
    /// The backend.
    pub backend: Backend,
    /// What the engine cannot do with this runtime and this backend.
    pub lacks: Vec<Ability>,
    /// A command that runs until it is asked to stop.
    pub command: Vec<String>,
    /// A command that runs until it is killed.
    pub stubborn: Vec<String>,
    /// A file which that command makes once it is deaf; `None` where it is deaf from its first instant.
    pub stubborn_sign: Option<String>,
    /// A command that says `one`, `two` on its error output, and `three`, a line each, and runs until it is asked to stop.
    pub talking: Vec<String>,
    /// What is run in a container beside its own program.
    pub programs: Programs,
    /// A command that serves a page `/motd` at port 8080, and runs until it is killed.
    pub serves: Vec<String>,
    /// A file of the image in a standard volume.
    pub seeded_file: String,
    /// Every file of some directory of the image in a standard volume.
    pub seeded_directory: Vec<String>,
    /// A directory for files of the suite.
    pub scratch: PathBuf,
    /// Pods made so far.
    pub tracked: Tracked,
}

/// Programs that the suite runs in a container.
#[derive(Debug, Clone)]
pub struct Programs {
    /// Writes `yes` to `/srv/ran`.
    pub writes: Vec<String>,
    /// Says more than is kept, then `the last words`, and ends with status 3.
    pub fails: Vec<String>,
    /// Never ends, does not listen to SIGTERM, and has a child that does not either.
    pub hangs: Vec<String>,
    /// Ends with status 0 when nothing of the one that hangs is left.
    pub is_gone: Vec<String>,
    /// Ends at once, and leaves one behind that keeps its output open.
    pub leaves: Vec<String>,
    /// Is not there.
    pub absent: Vec<String>,
}

/// An image that declares a volume.
#[derive(Debug, Clone)]
pub struct Declaring {
    /// Its reference.
    pub image: String,
    /// The declared path.
    pub path: String,
    /// A file of the image in it.
    pub seeded_file: String,
}

/// The pods a fixture made, to be tidied up.
#[derive(Debug, Default)]
pub struct Tracked {
    pods: Mutex<Vec<Pod>>,
    foreign: Mutex<Vec<String>>,
    lingering: Mutex<Vec<String>>,
    made: AtomicU32,
}

impl Fixture {
    fn lacks(&self, ability: Ability) -> bool {
        self.lacks.contains(&ability)
    }

    fn pod_id(&self) -> PodId {
        let millis = u64::try_from(self.clock.now().as_millisecond()).unwrap_or_default();
        let mut random = [0; 10];
        random[..6].copy_from_slice(&self.salt.to_be_bytes()[2..]);
        random[6..].copy_from_slice(&self.tracked.made.fetch_add(1, Ordering::Relaxed).to_be_bytes());
        PodId::from_parts(millis, random)
    }

    /// Remembers a pod as it is now; of one with the same id only the last is kept.
    fn track(&self, pod: &Pod) {
        let mut pods = self.tracked.pods.lock().unwrap_or_else(PoisonError::into_inner);
        pods.retain(|p| p.id != pod.id);
        pods.push(pod.clone());
    }

    fn track_foreign(&self, id: &str) {
        self.tracked.foreign.lock().unwrap_or_else(PoisonError::into_inner).push(id.to_owned());
    }

    fn track_lingering(&self, id: &str) {
        self.tracked.lingering.lock().unwrap_or_else(PoisonError::into_inner).push(id.to_owned());
    }
}

/// A case: a name and what it does.
pub struct Case {
    /// Its name, unique in the suite.
    pub name: &'static str,
    run: for<'a> fn(&'a Fixture) -> Pin<Box<dyn Future<Output = Checked> + Send + 'a>>,
}

/// Hands the names of all cases, grouped by file, to a macro: `callback! { images: a b; sets: c d; … }`.
#[macro_export]
macro_rules! for_each_case {
    ($callback:ident) => {
        $callback! {
            abilities:
                abilities_are_as_declared;
            images:
                image_resolves_by_reference_and_by_id
                absent_image_is_none
                image_is_exported_and_imported
                declared_volume_is_one_of_the_pods;
            sets:
                set_becomes_whole
                set_calls_are_safe_to_repeat
                complete_set_is_not_prepared_again
                half_prepared_set_begins_from_nothing
                set_access_names_every_volume
                set_access_leaves_out_what_is_missing
                what_volumes_take_up_is_told
                how_sets_are_copied_is_told
                set_is_copied_at_one_instant
                still_is_of_one_instant_until_nobody_reads_it
                a_limit_is_shown_until_it_changes_or_the_pod_starts
                empty_fill_holds_what_was_put_in
                sets_of_a_pod_are_apart
                set_is_deleted_with_its_permit_only
                set_of_which_only_the_labels_are_known_is_deleted
                set_in_use_is_not_deleted
                absent_set_is_deleted_already
                set_of_a_missing_image_is_refused
                mover_left_behind_is_ended;
            containers:
                container_is_ensured_once
                differing_container_is_a_conflict
                life_of_a_container_is_observed
                every_run_has_its_own_stamp
                start_and_stop_are_safe_to_repeat
                unknown_runtime_is_rejected
                missing_image_is_no_container
                missing_container_is_not_found
                limits_change_and_none_is_taken_away
                stubborn_container_is_killed_after_its_grace
                container_freezes_and_goes_on
                frozen_container_stops
                container_is_removed_with_its_permit_only
                stale_permit_does_not_remove_a_running_container
                generation_is_written_beside_the_data
                older_generation_does_not_start;
            programs:
                program_does_its_work_in_the_container
                program_that_fails_tells_its_status_and_its_last_words
                program_is_ended_when_its_time_is_over
                program_is_ended_when_it_is_cancelled
                program_that_nobody_waits_for_is_found_again
                program_that_leaves_others_behind_has_ended
                program_that_cannot_be_started_is_rejected
                program_needs_a_container_that_runs;
            health:
                program_tells_whether_a_pod_works
                page_and_port_tell_whether_a_pod_works
                container_that_does_not_run_is_not_asked;
            logs:
                logs_hold_what_the_container_wrote
                logs_are_followed_until_the_run_ends
                logs_of_no_container_are_not_found;
            data:
                every_volume_keeps_its_bytes
                written_bytes_are_where_access_says
                deleted_file_of_the_image_stays_deleted
                emptied_directory_stays_empty
                hidden_layer_is_out_of_reach_with_a_reason
                layer_is_reached_and_put_back;
            outside:
                killed_container_is_gone_and_its_data_is_not
                crash_is_observed
                lost_definition_is_made_again
                lost_volume_is_partial_and_does_not_start
                lost_set_does_not_start
                foreign_container_is_seen
                foreign_container_keeps_the_set_from_use
                lingering_process_keeps_the_set_from_use
                watch_tells_of_ends
                owned_things_are_listed;
        }
    };
}

macro_rules! list {
    ($($module:ident: $($name:ident)*;)*) => {
        vec![$($(Case { name: stringify!($name), run: |fixture| Box::pin($module::$name(fixture)) },)*)*]
    };
}

/// Every case of the suite.
#[must_use]
pub fn cases() -> Vec<Case> {
    for_each_case!(list)
}

/// Runs one case by name and tidies up after it, whether it passed or not; one that needs what the engine lacks is not run.
///
/// # Errors
/// The case's failure, or else that of the tidying.
pub async fn run(fixture: &Fixture, name: &str) -> Checked<Outcome> {
    let Some(case) = cases().into_iter().find(|c| c.name == name) else {
        return Err(Failure(format!("there is no case {name}")));
    };
    let missing: Vec<Ability> = needs(name).iter().copied().filter(|a| fixture.lacks(*a)).collect();
    if !missing.is_empty() {
        return Ok(Outcome::NotApplicable(missing));
    }
    let result = (case.run)(fixture).await;
    let foreign = std::mem::take(&mut *fixture.tracked.foreign.lock().unwrap_or_else(PoisonError::into_inner));
    for id in foreign {
        fixture.hands.foreign_remove(&id).await?;
    }
    let lingering = std::mem::take(&mut *fixture.tracked.lingering.lock().unwrap_or_else(PoisonError::into_inner));
    for id in lingering {
        fixture.hands.linger_end(&id).await?;
    }
    let pods = std::mem::take(&mut *fixture.tracked.pods.lock().unwrap_or_else(PoisonError::into_inner));
    let mut tidied = Ok(());
    for pod in pods {
        if let Err(error) = subject::purge(fixture, pod).await {
            tidied = Err(Failure(format!("tidying: {error}")));
        }
    }
    result.and(tidied).map(|()| Outcome::Passed)
}

/// Fails unless the condition holds.
macro_rules! check {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err($crate::conformance::Failure(format!($($message)+)));
        }
    };
}

/// Fails unless the call answered with one of these errors.
macro_rules! check_refused {
    ($answer:expr, $pattern:pat, $what:expr) => {
        match $answer {
            Err($pattern) => {}
            other => {
                return Err($crate::conformance::Failure(format!("{}: not refused as it should be: {other:?}", $what)));
            }
        }
    };
}

use {check, check_refused};
