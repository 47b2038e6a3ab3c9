//! Programs without processes: what one does is read from its words.
//!
//! | words | what it does |
//! |---|---|
//! | `write PATH TEXT` | writes a file as the pod would |
//! | `quiesce`, `resume` | the pod waits for the second from the first on: see [`SimEngine::is_quiesced`] |
//! | `exit N [TEXT…]` | says the text and ends with that status |
//! | `late N WORDS…` | ends with 1 in the first N seconds of its container's run, and does the rest from then on |
//! | `slow N WORDS…` | does the rest once the clock went on by N seconds, whether or not somebody waits for it |
//! | `stubborn N WORDS…` | the same, and nothing ends it before |
//! | `hang` | goes on until it is ended; whoever waits for it does so for no longer than others have something to do |
//! | `hang for ever` | goes on even then |
//! | `gone` | ends with 0 when no other program goes on in its container, else with 1 |
//! | `die` | takes the container with it |
//! | `missing` | cannot be started |
//!
//! Any other does nothing and ends with 0. What goes on ends with the run of its container, and stands still while that is frozen.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use perennial_core::engine::{EngineError, OUTPUT_MAX, Program, ProgramEnd, Ran, Remains};
use perennial_core::id::PodId;
use perennial_core::progress::Progress;

use super::container::{KILLED, Life};
use super::hands::write_as_pod;
use super::{Shared, SimEngine, State, conflict, rejected};

/// How often it is looked whether the clock went on.
const LOOK: Duration = Duration::from_millis(1);
/// How often others get their turn before the time of what hangs is over.
const TURNS: u32 = 200;

/// A program that goes on.
#[derive(Debug)]
pub(super) struct Going {
    number: u64,
    pod: PodId,
    container: String,
    /// Which run of the container it belongs to.
    run: Option<Timestamp>,
    mark: String,
    /// What it does when it is due, and when that is; `None` for what hangs.
    then: Option<(Timestamp, Vec<String>)>,
    stubborn: bool,
    end: Option<(ProgramEnd, String)>,
}

/// A program that was begun.
pub(super) enum Begun {
    Ended(Ran),
    Goes(u64),
}

impl Shared {
    pub(super) fn program_begin(&self, state: &mut State, id: &str, program: &Program) -> Result<Begun, EngineError> {
        let container = state.container(id)?;
        if container.life != Life::Running {
            return Err(conflict(format!("container {id} does not run, or is frozen")));
        }
        let (pod, run) = (container.pod, container.started_at);
        let words: Vec<&str> = program.command.iter().map(String::as_str).collect();
        let going = match words.as_slice() {
            ["slow" | "stubborn", seconds, rest @ ..] => {
                let seconds = seconds.parse().map_err(|_| rejected("how many seconds?"))?;
                let due = self.clock.now().checked_add(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX);
                Some((Some((due, rest.iter().map(|w| (*w).to_owned()).collect())), words[0] == "stubborn"))
            }
            ["hang", rest @ ..] => Some((None, !rest.is_empty())),
            _ => None,
        };
        if let Some((then, stubborn)) = going {
            state.begun += 1;
            let (number, container, mark) = (state.begun, id.to_owned(), program.mark.clone());
            state.going.push(Going { number, pod, container, run, mark, then, stubborn, end: None });
            state.programs.push((pod, program.command.clone()));
            return Ok(Begun::Goes(number));
        }
        let (end, output) = self.program_act(state, (id, pod), &words)?;
        state.programs.push((pod, program.command.clone()));
        Ok(Begun::Ended(ran(end, &output, Duration::from_millis(1))))
    }

    /// Does what a program does.
    fn program_act(
        &self,
        state: &mut State,
        (id, pod): (&str, PodId),
        words: &[&str],
    ) -> Result<(ProgramEnd, String), EngineError> {
        let end = match words {
            ["late", seconds, rest @ ..] => {
                let seconds = seconds.parse().map_err(|_| rejected("how many seconds?"))?;
                let ready =
                    |at: Timestamp| at.checked_add(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX);
                if state.container(id)?.started_at.is_some_and(|at| self.clock.now() < ready(at)) {
                    return Ok((ProgramEnd::Exited(1), "it still starts".to_owned()));
                }
                return self.program_act(state, (id, pod), rest);
            }
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
            ["exit", code, text @ ..] => return Ok((ProgramEnd::Exited(code.parse().unwrap_or(1)), text.join(" "))),
            ["gone"] => {
                let goes = |going: &Going| going.container == id && going.end.is_none();
                ProgramEnd::Exited(state.going.iter().any(goes).into())
            }
            ["die"] => {
                state.change(self, id, |c| c.life = Life::Exited { code: KILLED, oom: false })?;
                ProgramEnd::ContainerEnded
            }
            _ => ProgramEnd::Exited(0),
        };
        Ok((end, String::new()))
    }

    /// Lets every program that is due by now do what it does, and ends those whose container's run is over.
    pub(super) fn programs_go_on(&self, state: &mut State) {
        let now = self.clock.now();
        for mut going in std::mem::take(&mut state.going) {
            let container = state.container(&going.container).ok();
            let runs = container.filter(|c| c.is_live() && c.started_at == going.run).map(|c| c.life);
            let due = going.then.clone().filter(|(due, _)| *due <= now);
            match (runs, due) {
                _ if going.end.is_some() => {}
                (None, _) => going.end = Some((ProgramEnd::ContainerEnded, String::new())),
                (Some(Life::Running), Some((_, words))) => {
                    let words: Vec<&str> = words.iter().map(String::as_str).collect();
                    let done = self.program_act(state, (&going.container, going.pod), &words);
                    going.end = Some(done.unwrap_or_else(|error| (ProgramEnd::Exited(1), error.to_string())));
                }
                _ => {}
            }
            state.going.push(going);
        }
    }
}

impl SimEngine {
    pub(super) async fn program_run(
        &self,
        id: &str,
        program: &Program,
        progress: &Progress,
    ) -> Result<Ran, EngineError> {
        let begun = self.call("container_run", |state, _| self.shared.program_begin(state, id, program)).await?;
        match begun {
            Begun::Ended(ran) => Ok(ran),
            Begun::Goes(number) => self.follow(number, program.within, progress).await,
        }
    }

    pub(super) async fn program_rejoin(
        &self,
        id: &str,
        program: &Program,
        progress: &Progress,
    ) -> Result<Option<Ran>, EngineError> {
        let found = self.call("container_rejoin", |state, _| {
            if state.container(id)?.life != Life::Running {
                return Err(conflict(format!("container {id} does not run, or is frozen")));
            }
            let same = |g: &&Going| g.container == id && g.mark == program.mark && g.end.is_none();
            Ok(state.going.iter().find(same).map(|g| g.number))
        });
        match found.await? {
            None => Ok(None),
            Some(number) => self.follow(number, program.within, progress).await.map(Some),
        }
    }

    /// Waits for the end of a program, until it is cancelled or its time is over.
    async fn follow(&self, number: u64, within: Duration, progress: &Progress) -> Result<Ran, EngineError> {
        let began = self.shared.clock.now();
        let until = began.checked_add(within).unwrap_or(Timestamp::MAX);
        let mut turns = 0;
        loop {
            let hangs = {
                let mut state = self.lock();
                if state.unreachable {
                    return Err(EngineError::OutcomeUnknown { problem: "the simulated node vanished".to_owned() });
                }
                let now = self.shared.clock.now();
                let lasted = Duration::try_from(now.duration_since(began)).unwrap_or_default();
                let Some(position) = state.going.iter().position(|g| g.number == number) else {
                    return Ok(ran(ProgramEnd::ContainerEnded, "", lasted));
                };
                if let Some((end, output)) = state.going[position].end.take() {
                    state.going.remove(position);
                    return Ok(ran(end, &output, lasted));
                }
                let hangs = state.going[position].then.is_none();
                let cancelled = progress.check().is_err();
                if cancelled || now >= until || (hangs && turns >= TURNS) {
                    let stubborn = state.going[position].stubborn;
                    if !stubborn {
                        state.going.remove(position);
                    }
                    let remains = if stubborn { Remains::Perhaps } else { Remains::Nothing };
                    return Ok(if cancelled {
                        ran(ProgramEnd::Cancelled(remains), "", lasted)
                    } else {
                        ran(ProgramEnd::TimedOut(remains), "", within)
                    });
                }
                hangs
            };
            turns += 1;
            if hangs { tokio::task::yield_now().await } else { tokio::time::sleep(LOOK).await }
        }
    }

    /// When the next program of a pod is due that goes on; `None` when none does but what hangs.
    #[must_use]
    pub fn program_due(&self, pod: PodId) -> Option<Timestamp> {
        let state = self.lock();
        let going = state.going.iter().filter(|g| g.pod == pod && g.end.is_none());
        going.filter_map(|g| g.then.as_ref().map(|(due, _)| *due)).min()
    }

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

fn ran(end: ProgramEnd, output: &str, lasted: Duration) -> Ran {
    let end_of_it = output.as_bytes().get(output.len().saturating_sub(OUTPUT_MAX)..).unwrap_or_default();
    Ran { end, output: String::from_utf8_lossy(end_of_it).into_owned(), lasted }
}
