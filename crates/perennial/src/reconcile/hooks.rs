//! Hooks around the freeze of a snapshot: run here, and found again after a crash.
//!
//! Before the first of them may be started it is committed that the other one is owed. It is run as soon as the pod goes on,
//! while the work that read it still stores what it read; only then is it owed no more. Whatever keeps it from that (the server
//! died, the engine did not answer) leaves it owed, and the next pass over the pod runs it before it does anything else. So it
//! is run at least once, and perhaps twice.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use perennial_core::engine::{Engine, EngineError, Program, ProgramEnd, Ran, Remains};
use perennial_core::hook::{Hook, HookReport, HookRun, Hooks, OnHookFailure, OwedHook};
use perennial_core::id::SnapshotId;
use perennial_core::operation::Problem;
use perennial_core::pod::Pod;
use perennial_core::progress::Progress;
use perennial_core::record::{self, HookEnd, Record};
use perennial_core::snapshot::Snapshot;
use perennial_core::volume::SetNumber;

use super::step::{StepError, definite, problem};
use super::worker::{Reconciler, View};
use crate::store::{Change, StoreError};

/// How much longer than a hook may take the engine may take to say what became of it.
const ANSWER: Duration = Duration::from_secs(60);
/// Longest part of a hook's output in a message, in characters.
const SHOWN: usize = 400;
/// How often a change of the pod that came between is put up with.
const COMMITS: u32 = 4;
/// The code of the problem of a hook that ended with another status than 0, or could not be started.
const FAILED: &str = "hook-failed";
/// The code of the problem of a hook that was ended because its time was over.
const TIMED_OUT: &str = "hook-timed-out";

/// What is known of the hooks of one capture, shared with what writes its `pod.json`.
#[derive(Debug, Default)]
pub(super) struct Told(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    report: HookReport,
    /// Whether this capture committed that `after` is owed. One of a stopped container did not: what is owed then is another's.
    owes: bool,
    /// Whether `before` may have been started, and `after` has not ended since.
    begun: bool,
    /// Why the last `after` failed.
    failed: Option<Problem>,
}

impl Told {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn report(&self) -> HookReport {
        self.state().report.clone()
    }

    /// Whether the pod was made ready for the freeze that followed.
    pub(super) fn is_hooked(&self) -> bool {
        self.state().report.before.as_ref().is_some_and(|run| run.problem.is_none())
    }

    /// Why the `after` of this capture is owed no more; `None` while it is, and when none was.
    fn end(&self) -> Option<HookEnd> {
        let state = self.state();
        match (&state.report.after, &state.failed) {
            _ if state.begun || !state.owes => None,
            (None, _) => Some(HookEnd::NotNeeded),
            (Some(_), None) => Some(HookEnd::Done),
            (Some(_), Some(problem)) => Some(HookEnd::Failed(problem.clone())),
        }
    }
}

/// The hooks of one capture of a running pod.
pub(super) struct Around<'a> {
    pub(super) engine: &'a dyn Engine,
    pub(super) container: &'a str,
    pub(super) hooks: &'a Hooks,
    pub(super) progress: &'a Progress,
    pub(super) told: Arc<Told>,
}

impl Around<'_> {
    /// Makes the pod ready for the freeze; an error when there is to be none.
    pub(super) async fn before(&self) -> Result<(), StepError> {
        let Some(hook) = &self.hooks.before else { return Ok(()) };
        {
            let mut state = self.told.state();
            *state = State { begun: true, owes: state.owes, ..State::default() };
        }
        let (run, ended) = run(self.engine, self.container, ("before", hook), self.progress).await?;
        let found = run.problem.clone();
        self.told.state().report.before = Some(run);
        let Some(found) = found else { return Ok(()) };
        match ended {
            Ended::Cancelled => Err(StepError::Cancelled),
            // There is nothing left that could be frozen.
            Ended::ContainerGone => Err(failed(FAILED, found)),
            Ended::Badly(code) if self.hooks.on_failure == OnHookFailure::Fail => Err(failed(code, found)),
            Ended::Badly(_) | Ended::Well => {
                tracing::warn!(problem = found, "the snapshot is taken without its hook");
                Ok(())
            }
        }
    }

    /// Ends what [`before`](Self::before) began, if it did.
    pub(super) async fn after(&self) {
        if !self.told.state().begun {
            return;
        }
        let Some(hook) = &self.hooks.after else {
            self.told.state().begun = false;
            return;
        };
        // Not cancelled with the snapshot: the pod waits for it.
        match run(self.engine, self.container, ("after", hook), &Progress::default()).await {
            Ok((run, ended)) => {
                let mut state = self.told.state();
                // A container that is gone did not get what it was owed: its next run does.
                state.begun = matches!(ended, Ended::ContainerGone);
                state.failed = run.problem.clone().map(|message| problem(ended.code(), message, ""));
                state.report.after = Some(run);
            }
            Err(error) => tracing::warn!(%error, "run the after hook; it stays owed"),
        }
    }
}

fn failed(code: &str, message: String) -> StepError {
    definite(
        code,
        message,
        "mend the hook, or let snapshots go on without it: perennial pod set --hook-on-failure continue",
    )
}

/// Whether what the pod owes was begun for this snapshot.
fn owed_by(pod: &Pod, snapshot: SnapshotId) -> bool {
    pod.hook.as_ref().is_some_and(|owed| owed.snapshot == snapshot)
}

/// How a hook ended, as far as it matters for what is done next.
enum Ended {
    Well,
    Badly(&'static str),
    Cancelled,
    ContainerGone,
}

impl Ended {
    const fn code(&self) -> &'static str {
        match self {
            Self::Badly(code) => code,
            Self::Well | Self::Cancelled | Self::ContainerGone => FAILED,
        }
    }
}

/// Runs one hook; an error when the engine does not say what became of it.
async fn run(
    engine: &dyn Engine,
    container: &str,
    (name, hook): (&str, &Hook),
    progress: &Progress,
) -> Result<(HookRun, Ended), EngineError> {
    let within = Duration::from_secs(hook.timeout.into());
    let program = Program { command: hook.command.clone(), user: hook.user.clone(), within };
    let late = || EngineError::OutcomeUnknown { problem: format!("the engine does not say how the {name} hook ended") };
    let answered = tokio::time::timeout(within + ANSWER, engine.container_run(container, &program, progress)).await;
    match answered.unwrap_or_else(|_| Err(late())) {
        Ok(ran) => Ok(described(name, hook, &ran)),
        Err(EngineError::Rejected { problem }) => {
            let message = format!("the {name} hook could not be started: {}", shown(&problem));
            Ok((HookRun { exit: None, millis: 0, problem: Some(message) }, Ended::Badly(FAILED)))
        }
        Err(other) => Err(other),
    }
}

fn described(name: &str, hook: &Hook, ran: &Ran) -> (HookRun, Ended) {
    let millis = u64::try_from(ran.lasted.as_millis()).unwrap_or(u64::MAX);
    let exit = if let ProgramEnd::Exited(code) = ran.end { Some(code) } else { None };
    let goes_on = |remains| match remains {
        Remains::Nothing => "",
        Remains::Perhaps => "; it could not be ended and may go on in the pod",
    };
    let (what, ended) = match ran.end {
        ProgramEnd::Exited(0) => return (HookRun { exit, millis, problem: None }, Ended::Well),
        ProgramEnd::Exited(code) => (format!("ended with status {code} after {millis} ms"), Ended::Badly(FAILED)),
        ProgramEnd::TimedOut(remains) => {
            (format!("took longer than {} s{}", hook.timeout, goes_on(remains)), Ended::Badly(TIMED_OUT))
        }
        ProgramEnd::Cancelled(remains) => (format!("was cancelled{}", goes_on(remains)), Ended::Cancelled),
        ProgramEnd::ContainerEnded => ("was running when the container ended".to_owned(), Ended::ContainerGone),
    };
    let output = shown(&ran.output);
    let said = if output.is_empty() { String::new() } else { format!("; it said: {output}") };
    (HookRun { exit, millis, problem: Some(format!("the {name} hook {what}{said}")) }, ended)
}

/// The end of a text in one line without control characters.
fn shown(text: &str) -> String {
    let words: Vec<&str> =
        text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|w| !w.is_empty()).collect();
    let line = words.join(" ");
    let count = line.chars().count();
    if count <= SHOWN { line } else { format!("…{}", line.chars().skip(count - SHOWN).collect::<String>()) }
}

impl Reconciler {
    /// Commits that a hook may be begun which another has to end.
    pub(super) async fn owe_hook(
        &self,
        view: &mut View,
        (snapshot, set): (SnapshotId, SetNumber),
        told: &Told,
    ) -> Result<(), StepError> {
        match &view.pod.spec.hooks {
            Hooks { before: Some(_), after: Some(after), .. } => {
                let owed = OwedHook { snapshot, set, after: after.clone(), tries: 0 };
                self.record(view, Record::HookOwed(owed)).await?;
                told.state().owes = true;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Records a capture, and that its hook is owed no more when it is not.
    pub(super) async fn commit_hooked(
        &self,
        view: &mut View,
        row: Snapshot,
        event: perennial_core::operation::NewEvent,
        told: &Told,
    ) -> Result<(), StepError> {
        let report = told.report();
        let mut change = Change { events: vec![event], ..Change::default() };
        if let Some(problem) = report.before.as_ref().and_then(|run| run.problem.clone()) {
            let operation = super::worker::current_operation(&view.pod);
            change.events.push(self.event(&view.pod, operation, "snapshot.hook-failed", problem));
        }
        let (ran, id) = (report.before.is_some(), row.id);
        change.snapshots.push(Snapshot { hooks: ran.then_some(report), ..row });
        match told.end() {
            Some(end) if owed_by(&view.pod, id) => self.record_with(view, Record::HookSettled(end), change).await,
            _ => {
                change.pod = Some(view.pod.clone());
                change.lease.clone_from(&view.lease);
                Ok(self.store.commit(change).await?)
            }
        }
    }

    /// Records what became of the hooks of a capture that failed; what cannot be recorded stays owed.
    pub(super) async fn settle_hooks(&self, view: &View, snapshot: SnapshotId, told: &Told) {
        for _ in 0..COMMITS {
            match self.try_to_settle(view, snapshot, told).await {
                // Somebody changed the pod, perhaps because the snapshot was cancelled.
                Err(StoreError::Stale) => {}
                Err(error) => return tracing::warn!(error = %crate::causes::describe(&error), "record what hooks did"),
                Ok(()) => return,
            }
        }
    }

    async fn try_to_settle(&self, view: &View, snapshot: SnapshotId, told: &Told) -> Result<(), StoreError> {
        let Some(mut pod) = self.store.pod_fetch(view.pod.id).await? else { return Ok(()) };
        let report = told.report();
        let rows = self.store.snapshots_fetch(&[snapshot]).await?;
        let with_report = |row: Snapshot| Snapshot { hooks: Some(report.clone()), ..row };
        let mut change = Change { lease: view.lease.clone(), ..Change::default() };
        change.snapshots = rows.into_iter().filter(|_| report.before.is_some()).map(with_report).collect();
        if let Some(end) = told.end().filter(|_| owed_by(&pod, snapshot)) {
            change.events = self.settled(&mut pod, end);
        }
        change.pod = Some(pod);
        self.store.commit(change).await
    }

    fn settled(&self, pod: &mut Pod, end: HookEnd) -> Vec<perennial_core::operation::NewEvent> {
        let event = record::apply(pod, &Record::HookSettled(end), self.now()).event;
        event.into_iter().map(|(kind, message)| self.event(pod, None, kind, message)).collect()
    }

    /// Runs the hook that is owed, as a step of its own.
    pub(super) async fn run_hook(&self, view: &mut View, container: &str) -> Result<(), StepError> {
        self.record(view, Record::HookTried).await?;
        let owed = view.pod.hook.clone().ok_or(StepError::Overtaken)?;
        let (run, ended) = run(&*self.engine, container, ("after", &owed.after), &Progress::default()).await?;
        if matches!(ended, Ended::ContainerGone) {
            // The next run of the container gets it.
            return Ok(());
        }
        let end = match &run.problem {
            None => HookEnd::Done,
            Some(message) => HookEnd::Failed(problem(ended.code(), message.clone(), "")),
        };
        let row = view.snapshot(owed.snapshot).cloned();
        let with_run = |row: Snapshot| {
            let report = HookReport { after: Some(run), ..row.hooks.unwrap_or_default() };
            Snapshot { hooks: Some(report), ..row }
        };
        let change = Change { snapshots: row.map(with_run).into_iter().collect(), ..Change::default() };
        self.record_with(view, Record::HookSettled(end), change).await
    }
}
