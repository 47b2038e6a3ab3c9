//! Hooks around the freeze of a snapshot: run here, and found again after a crash.
//!
//! Before the first of them may be started it is committed that the other one is owed. It is run as soon as the pod goes on,
//! while the work that read it still stores what it read; only then is it owed no more. Whatever keeps it from that (the server
//! died, the engine did not answer) leaves it owed, and the next pass over the pod runs it before it does anything else. So it
//! is run at least once, and perhaps twice.
//!
//! It is of no use while the first one goes on, which would leave the pod ready for a freeze for good. So where nobody saw the end of
//! that one, it is looked for and ended first; where even that is not proven, the hook is run and its failure is told all the same.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use perennial_core::engine::{Engine, EngineError, Program, ProgramEnd, Ran, Remains};
use perennial_core::hook::{Hook, HookReport, HookRun, Hooks, OnHookFailure, OwedHook, TRIES_MAX};
use perennial_core::id::SnapshotId;
use perennial_core::operation::Problem;
use perennial_core::pod::Pod;
use perennial_core::progress::Progress;
use perennial_core::record::{self, HookEnd, Record};
use perennial_core::snapshot::{Snapshot, WriterStamp};
use perennial_core::volume::SetNumber;

use super::hooking::Until;
use super::step::{StepError, definite, problem, retry};
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
/// What is told of an `after` that succeeded while its `before` may go on.
const GOES_ON: &str = "the after hook was run, but the before hook could not be ended and may go on in the pod, \
                       which it then makes ready for a freeze once more";

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
    /// Whether `after` was tried since; what did not come of it is a step of its own.
    tried: bool,
    /// When that ended: right before the freeze.
    ready_at: Option<Timestamp>,
    /// What went wrong with it, without its words.
    wrong: Option<String>,
    /// Whether nobody saw the end of that `before`.
    unseen: bool,
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

    /// When the pod was ready for its freeze; `None` while it is not, and when it had no hook.
    pub(super) fn ready_at(&self) -> Option<Timestamp> {
        self.state().ready_at
    }

    /// Whether `before` may have been started.
    pub(super) fn has_run(&self) -> bool {
        let state = self.state();
        state.begun || state.report.before.is_some()
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
    pub(super) reconciler: &'a Reconciler,
    /// The pod, as it has to stay for the capture to be recorded.
    pub(super) pod: &'a Pod,
    pub(super) container: &'a str,
    pub(super) snapshot: SnapshotId,
    pub(super) progress: &'a Progress,
    pub(super) told: Arc<Told>,
}

impl Around<'_> {
    /// Makes the pod ready for the freeze; an error when there is to be none.
    pub(super) async fn before(&self) -> Result<(), StepError> {
        let Some(hook) = &self.pod.spec.hooks.before else { return Ok(()) };
        {
            let mut state = self.told.state();
            *state = State { begun: true, unseen: true, owes: state.owes, ..State::default() };
        }
        let which = Which::Before(self.snapshot);
        let running = run(&*self.reconciler.engine, self.container, (which, hook), self.progress);
        let until = Until::Changed(self.pod.version);
        let _waiting = self.reconciler.hooking.wait();
        let ran = self.reconciler.while_wanted((self.pod.id, until), self.progress, running).await;
        let (run, ended) = ran.ok_or(StepError::Cancelled)??;
        {
            let mut state = self.told.state();
            state.report.before = Some(run);
            state.unseen = ended.may_go_on;
            state.wrong.clone_from(&ended.wrong);
            state.ready_at = Some(self.reconciler.now());
        }
        let Some(found) = ended.wrong else { return Ok(()) };
        let found = format!("{found}; what it said is with the snapshot");
        match ended.how {
            How::Cancelled => Err(StepError::Cancelled),
            // There is nothing left that could be frozen.
            How::ContainerGone => Err(failed(FAILED, found)),
            How::Badly(code) if self.pod.spec.hooks.on_failure == OnHookFailure::Fail => Err(failed(code, found)),
            How::Badly(_) | How::Well => {
                tracing::warn!(problem = found, "the snapshot is taken without its hook");
                Ok(())
            }
        }
    }

    /// Ends what [`before`](Self::before) began, if it did.
    pub(super) async fn after(&self) {
        {
            let mut state = self.told.state();
            if !state.begun || std::mem::replace(&mut state.tried, true) {
                return;
            }
        }
        let unseen = self.told.state().unseen;
        let proven = match &self.pod.spec.hooks.before {
            Some(before) if unseen => {
                end_of_before(&*self.reconciler.engine, self.container, (self.snapshot, before)).await
            }
            _ => Ok(true),
        };
        let proven = match proven {
            Ok(proven) => proven,
            Err(error) => {
                return tracing::warn!(%error, "look for what goes on of the before hook; the after hook stays owed");
            }
        };
        let Some(hook) = &self.pod.spec.hooks.after else {
            self.told.state().begun = false;
            return;
        };
        // Not cancelled with the snapshot: the pod waits for it.
        let (which, progress) = (Which::After(self.snapshot), Progress::default());
        let running = run(&*self.reconciler.engine, self.container, (which, hook), &progress);
        match self.reconciler.while_wanted((self.pod.id, Until::Purged), &progress, running).await {
            None => tracing::info!("the after hook stays owed: the server stops"),
            Some(Ok((run, ended))) => {
                let mut state = self.told.state();
                // A container that is gone did not get what it was owed: its next run does.
                state.begun = matches!(ended.how, How::ContainerGone);
                state.failed = ended.failure(proven);
                state.report.after = Some(run);
            }
            Some(Err(error)) => tracing::warn!(%error, "run the after hook; it stays owed"),
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

fn with_report(row: Snapshot, change: impl Fn(HookReport) -> HookReport) -> Snapshot {
    let report = change(row.hooks.clone().unwrap_or_default());
    Snapshot { hooks: Some(report), ..row }
}

/// Whether what the pod owes was begun for this snapshot.
fn owed_by(pod: &Pod, snapshot: SnapshotId) -> bool {
    pod.hook.as_ref().is_some_and(|owed| owed.snapshot == snapshot)
}

/// Which hook of which snapshot.
#[derive(Debug, Clone, Copy)]
enum Which {
    Before(SnapshotId),
    After(SnapshotId),
}

impl Which {
    const fn name(self) -> &'static str {
        match self {
            Self::Before(_) => "before",
            Self::After(_) => "after",
        }
    }

    fn program(self, hook: &Hook) -> Program {
        let (Self::Before(snapshot) | Self::After(snapshot)) = self;
        Program {
            mark: format!("{snapshot}.{}", self.name()),
            command: hook.command.clone(),
            user: hook.user.clone(),
            within: Duration::from_secs(hook.timeout.into()),
        }
    }
}

/// How a hook ended, as far as it matters for what is done next.
struct Ended {
    how: How,
    /// What went wrong, without what the hook said: that may be anything, and belongs to the snapshot and goes with it, while
    /// events, operations and conditions stay.
    wrong: Option<String>,
    /// Whether nothing proves that it has ended.
    may_go_on: bool,
}

enum How {
    Well,
    Badly(&'static str),
    Cancelled,
    ContainerGone,
}

impl Ended {
    /// Why an `after` that ended so leaves the pod in doubt; `proven` says that its `before` is known to have ended.
    fn failure(&self, proven: bool) -> Option<Problem> {
        let code = if let How::Badly(code) = self.how { code } else { FAILED };
        match &self.wrong {
            Some(message) => Some(problem(code, message.clone(), "")),
            None if proven => None,
            None => Some(problem(FAILED, GOES_ON, "")),
        }
    }
}

/// Ends what goes on of a `before` whose end nobody saw; answers whether its end is proven.
async fn end_of_before(
    engine: &dyn Engine,
    container: &str,
    (snapshot, hook): (SnapshotId, &Hook),
) -> Result<bool, EngineError> {
    let program = Program { within: Duration::ZERO, ..Which::Before(snapshot).program(hook) };
    let found = answered(ANSWER, engine.container_rejoin(container, &program, &Progress::default())).await?;
    if let Some(ran) = &found {
        tracing::info!(%snapshot, end = ?ran.end, "a before hook went on whose snapshot nobody takes any more");
    }
    Ok(!found.is_some_and(|ran| ran.end.may_go_on()))
}

/// Runs one hook; an error when the engine does not say what became of it.
async fn run(
    engine: &dyn Engine,
    container: &str,
    (which, hook): (Which, &Hook),
    progress: &Progress,
) -> Result<(HookRun, Ended), EngineError> {
    let (name, program) = (which.name(), which.program(hook));
    let ran = answered(program.within + ANSWER, engine.container_run(container, &program, progress)).await;
    match ran {
        Ok(ran) => Ok(described(name, hook, &ran)),
        Err(EngineError::Rejected { problem }) => {
            let message = format!("the {name} hook could not be started: {}", shown(&problem));
            let ended = Ended { how: How::Badly(FAILED), wrong: Some(message.clone()), may_go_on: false };
            Ok((HookRun { exit: None, millis: 0, problem: Some(message) }, ended))
        }
        Err(other) => Err(other),
    }
}

/// An engine that does not answer in time has not said what became of it.
async fn answered<T>(limit: Duration, call: impl Future<Output = Result<T, EngineError>>) -> Result<T, EngineError> {
    let late = || EngineError::OutcomeUnknown { problem: "the engine does not say how the hook ended".to_owned() };
    tokio::time::timeout(limit, call).await.unwrap_or_else(|_| Err(late()))
}

fn described(name: &str, hook: &Hook, ran: &Ran) -> (HookRun, Ended) {
    let millis = u64::try_from(ran.lasted.as_millis()).unwrap_or(u64::MAX);
    let exit = if let ProgramEnd::Exited(code) = ran.end { Some(code) } else { None };
    let goes_on = |remains| match remains {
        Remains::Nothing => "",
        Remains::Perhaps => "; it could not be ended and may go on in the pod",
    };
    let may_go_on = ran.end.may_go_on();
    let (what, how) = match ran.end {
        ProgramEnd::Exited(0) => {
            return (HookRun { exit, millis, problem: None }, Ended { how: How::Well, wrong: None, may_go_on });
        }
        ProgramEnd::Exited(code) => (format!("ended with status {code} after {millis} ms"), How::Badly(FAILED)),
        ProgramEnd::TimedOut(remains) => {
            (format!("took longer than {} s{}", hook.timeout, goes_on(remains)), How::Badly(TIMED_OUT))
        }
        ProgramEnd::Cancelled(remains) => (format!("was cancelled{}", goes_on(remains)), How::Cancelled),
        ProgramEnd::ContainerEnded => ("was running when the container ended".to_owned(), How::ContainerGone),
    };
    let output = shown(&ran.output);
    let said = if output.is_empty() { String::new() } else { format!("; it said: {output}") };
    let wrong = format!("the {name} hook {what}");
    let problem = Some(format!("{wrong}{said}"));
    (HookRun { exit, millis, problem }, Ended { how, wrong: Some(wrong), may_go_on })
}

/// Characters that show nothing, or change the order in which others are shown.
const fn is_unseen(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// The end of a text in one line without control characters, and without those that are not seen.
fn shown(text: &str) -> String {
    let words: Vec<&str> =
        text.split(|c: char| c.is_whitespace() || c.is_control() || is_unseen(c)).filter(|w| !w.is_empty()).collect();
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
        run: Option<&WriterStamp>,
        told: &Told,
    ) -> Result<(), StepError> {
        match (&view.pod.spec.hooks, run.cloned()) {
            (Hooks { before: Some(before), after: Some(after), .. }, Some(run)) => {
                let (before, after) = (before.clone(), after.clone());
                let owed = OwedHook { snapshot, set, run, before, after, tries: 0 };
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
        if let Some(problem) = told.state().wrong.clone() {
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

    /// Records what became of the hooks of a capture that failed, or could not be recorded; what cannot be recorded stays owed.
    pub(super) async fn settle_hooks(&self, view: &View, snapshot: SnapshotId, told: &Told) {
        let report = told.report();
        let told_so = |_| report.clone();
        let change = |row| if report.before.is_some() { with_report(row, told_so) } else { row };
        if let Err(error) = self.settle(view, snapshot, change, told.end()).await {
            tracing::warn!(error = %crate::causes::describe(&error), "record what hooks did");
        }
    }

    /// Commits what hooks of a snapshot did, whatever else of the pod was changed meanwhile: the snapshot may have been cancelled, or
    /// a stop asked for, and nothing of that makes them undone.
    async fn settle(
        &self,
        view: &View,
        snapshot: SnapshotId,
        change: impl Fn(Snapshot) -> Snapshot,
        end: Option<HookEnd>,
    ) -> Result<(), StoreError> {
        let mut last = Ok(());
        for _ in 0..COMMITS {
            last = self.try_to_settle(view, snapshot, &change, end.clone()).await;
            if !matches!(last, Err(StoreError::Stale)) {
                break;
            }
        }
        last
    }

    async fn try_to_settle(
        &self,
        view: &View,
        snapshot: SnapshotId,
        change_row: &impl Fn(Snapshot) -> Snapshot,
        end: Option<HookEnd>,
    ) -> Result<(), StoreError> {
        let Some(mut pod) = self.store.pod_fetch(view.pod.id).await? else { return Ok(()) };
        let rows = self.store.snapshots_fetch(&[snapshot]).await?;
        let mut change = Change { lease: view.lease.clone(), ..Change::default() };
        change.snapshots = rows.into_iter().map(change_row).collect();
        if let Some(end) = end.filter(|_| owed_by(&pod, snapshot)) {
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
        let proven = end_of_before(&*self.engine, container, (owed.snapshot, &owed.before)).await?;
        let progress = Progress::default();
        let running = self.run_after(container, &owed, &progress);
        let _waiting = self.hooking.wait();
        let ran = self.while_wanted((view.pod.id, Until::Purged), &progress, running).await;
        // The next server waits for it.
        let (run, ended) = ran.ok_or(StepError::Cancelled)??;
        if matches!(ended.how, How::ContainerGone) {
            // The next run of the container gets it.
            return Ok(());
        }
        let fresh = view.observed.container.as_ref().is_some_and(|c| c.stamp() != owed.run);
        if let (How::Badly(code), Some(message)) = (&ended.how, &ended.wrong)
            && fresh
            && owed.tries < TRIES_MAX
        {
            // What it speaks to may still be starting.
            return Err(retry(code, message.clone()));
        }
        let end = ended.failure(proven).map_or(HookEnd::Done, HookEnd::Failed);
        let change = |row| with_report(row, |report| HookReport { after: Some(run.clone()), ..report });
        Ok(self.settle(view, owed.snapshot, change, Some(end)).await?)
    }

    /// Runs an owed `after`, or waits for one that was begun and goes on.
    async fn run_after(
        &self,
        container: &str,
        owed: &OwedHook,
        progress: &Progress,
    ) -> Result<(HookRun, Ended), EngineError> {
        let which = Which::After(owed.snapshot);
        let program = which.program(&owed.after);
        let call = self.engine.container_rejoin(container, &program, progress);
        match answered(program.within + ANSWER, call).await? {
            Some(ran) => Ok(described(which.name(), &owed.after, &ran)),
            None => run(&*self.engine, container, (which, &owed.after), progress).await,
        }
    }
}
