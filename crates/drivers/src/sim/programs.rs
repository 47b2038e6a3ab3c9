//! Programs without processes: what one does is read from its words.
//!
//! | words | what it does |
//! |---|---|
//! | `write PATH TEXT` | writes a file as the pod would |
//! | `quiesce`, `resume` | the pod waits for the second from the first on: see [`SimEngine::is_quiesced`] |
//! | `exit N [TEXT…]` | says the text and ends with that status |
//! | `hang` | goes on until it is ended |
//! | `hang for ever` | goes on even then |
//! | `die` | takes the container with it |
//! | `missing` | cannot be started |
//!
//! Any other does nothing and ends with 0.

use std::time::Duration;

use perennial_core::engine::{EngineError, OUTPUT_MAX, Program, ProgramEnd, Ran, Remains};
use perennial_core::id::PodId;
use perennial_core::progress::Progress;

use super::containers::{KILLED, Life};
use super::hands::write_as_pod;
use super::{Shared, SimEngine, State, conflict, rejected};

impl Shared {
    pub(super) fn container_run(
        &self,
        state: &mut State,
        id: &str,
        program: &Program,
        progress: &Progress,
    ) -> Result<Ran, EngineError> {
        let container = state.container(id)?;
        if container.life != Life::Running {
            return Err(conflict(format!("container {id} does not run, or is frozen")));
        }
        let pod = container.pod;
        let words: Vec<&str> = program.command.iter().map(String::as_str).collect();
        let mut output = String::new();
        let mut lasted = Duration::from_millis(1);
        let end = match words.as_slice() {
            ["missing", ..] => return Err(rejected("there is no program missing")),
            ["write", path, text] => {
                write_as_pod(self, state, pod, path, text.as_bytes()).map_err(|e| rejected(e.to_string()))?;
                ProgramEnd::Exited(0)
            }
            ["quiesce"] => {
                state.quiesced.insert(pod);
                ProgramEnd::Exited(0)
            }
            ["resume"] => {
                state.quiesced.remove(&pod);
                ProgramEnd::Exited(0)
            }
            ["exit", code, text @ ..] => {
                output = text.join(" ");
                ProgramEnd::Exited(code.parse().unwrap_or(1))
            }
            ["hang", rest @ ..] => {
                let remains = if rest.is_empty() { Remains::Nothing } else { Remains::Perhaps };
                if progress.check().is_err() {
                    ProgramEnd::Cancelled(remains)
                } else {
                    lasted = program.within;
                    ProgramEnd::TimedOut(remains)
                }
            }
            ["die"] => {
                state.change(self, id, |c| c.life = Life::Exited { code: KILLED, oom: false })?;
                ProgramEnd::ContainerEnded
            }
            _ => ProgramEnd::Exited(0),
        };
        state.programs.push((pod, program.command.clone()));
        let end_of_it = output.as_bytes().get(output.len().saturating_sub(OUTPUT_MAX)..).unwrap_or_default();
        Ok(Ran { end, output: String::from_utf8_lossy(end_of_it).into_owned(), lasted })
    }
}

impl SimEngine {
    /// The programs that were run in a pod's containers, in their order.
    #[must_use]
    pub fn programs(&self, pod: PodId) -> Vec<Vec<String>> {
        self.lock().programs.iter().filter(|(of, _)| *of == pod).map(|(_, command)| command.clone()).collect()
    }

    /// Whether the pod waits for `resume`. The end of its container does not change that.
    #[must_use]
    pub fn is_quiesced(&self, pod: PodId) -> bool {
        self.lock().quiesced.contains(&pod)
    }
}
