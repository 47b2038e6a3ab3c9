//! Programs that are run in a pod's container beside its own.

use std::time::Duration;

use perennial_core::engine::{EngineError, OUTPUT_MAX, Program, ProgramEnd, Ran, Remains};
use perennial_core::progress::Progress;

use super::subject::Subject;
use super::{Checked, Failure, Fixture, check, check_refused};

/// More than it takes to see the end of what ends at once.
const SOON: Duration = Duration::from_secs(10);
/// Far more than anything here takes.
const LONG: Duration = Duration::from_secs(60);

fn program(command: &[String], within: Duration) -> Program {
    Program { mark: "conformance".to_owned(), command: command.to_vec(), user: None, within }
}

async fn ran(subject: &Subject<'_>, id: &str, command: &[String]) -> Checked<Ran> {
    Ok(subject.engine().container_run(id, &program(command, LONG), &Progress::default()).await?)
}

pub(super) async fn program_does_its_work_in_the_container(fixture: &Fixture) -> Checked {
    let (subject, id) = Subject::running(fixture).await?;
    let done = ran(&subject, &id, &fixture.programs.writes).await?;
    check!(done.end == ProgramEnd::Exited(0), "writing ended so: {done:?}");
    subject.sees(&id, "/srv/ran", "yes").await
}

pub(super) async fn program_that_fails_tells_its_status_and_its_last_words(fixture: &Fixture) -> Checked {
    let (subject, id) = Subject::running(fixture).await?;
    let failed = ran(&subject, &id, &fixture.programs.fails).await?;
    check!(failed.end == ProgramEnd::Exited(3), "failing ended so: {:?}", failed.end);
    let output = failed.output.trim_end();
    check!(output.ends_with("the last words"), "it said at last {:?}", output.get(output.len().saturating_sub(40)..));
    check!(failed.output.len() <= OUTPUT_MAX, "{} bytes were kept", failed.output.len());
    Ok(())
}

pub(super) async fn program_is_ended_when_its_time_is_over(fixture: &Fixture) -> Checked {
    let (subject, id) = Subject::running(fixture).await?;
    let hanging = program(&fixture.programs.hangs, Duration::from_millis(700));
    let ended = subject.engine().container_run(&id, &hanging, &Progress::default()).await?;
    check!(ended.end == ProgramEnd::TimedOut(Remains::Nothing), "hanging ended so: {ended:?}");
    let gone = ran(&subject, &id, &fixture.programs.is_gone).await?;
    check!(gone.end == ProgramEnd::Exited(0), "it is still there: {gone:?}");
    Ok(())
}

/// Ends when the one that hangs has begun.
async fn hangs(fixture: &Fixture, subject: &Subject<'_>, id: &str) -> Checked {
    while ran(subject, id, &fixture.programs.is_gone).await?.end == ProgramEnd::Exited(0) {
        tokio::task::yield_now().await;
    }
    Ok(())
}

pub(super) async fn program_is_ended_when_it_is_cancelled(fixture: &Fixture) -> Checked {
    let (subject, id) = Subject::running(fixture).await?;
    let progress = Progress::default();
    let hanging = program(&fixture.programs.hangs, LONG);
    let cancels = async {
        hangs(fixture, &subject, &id).await?;
        progress.cancel();
        Ok::<_, Failure>(())
    };
    let (ended, cancelled) = tokio::join!(subject.engine().container_run(&id, &hanging, &progress), cancels);
    cancelled?;
    let ended = ended?;
    check!(ended.end == ProgramEnd::Cancelled(Remains::Nothing), "it ended so: {ended:?}");
    check!(ended.lasted < LONG, "it took {:?}", ended.lasted);
    let gone = ran(&subject, &id, &fixture.programs.is_gone).await?;
    check!(gone.end == ProgramEnd::Exited(0), "it is still there: {gone:?}");
    Ok(())
}

pub(super) async fn program_that_nobody_waits_for_is_found_again(fixture: &Fixture) -> Checked {
    let (subject, id) = Subject::running(fixture).await?;
    let (engine, progress) = (subject.engine(), Progress::default());
    let hanging = program(&fixture.programs.hangs, LONG);
    check!(engine.container_rejoin(&id, &hanging, &progress).await?.is_none(), "it goes on and was never begun");
    // As when the server dies: nobody waits for it any more.
    tokio::select! {
        ended = engine.container_run(&id, &hanging, &progress) => check!(false, "it ended by itself: {ended:?}"),
        begun = hangs(fixture, &subject, &id) => begun?,
    }
    let at_once = program(&fixture.programs.hangs, Duration::ZERO);
    let ended = engine.container_rejoin(&id, &at_once, &progress).await?;
    let end = ended.map(|ran| ran.end);
    check!(end == Some(ProgramEnd::TimedOut(Remains::Nothing)), "it ended so: {end:?}");
    let gone = ran(&subject, &id, &fixture.programs.is_gone).await?;
    check!(gone.end == ProgramEnd::Exited(0), "it is still there: {gone:?}");
    check!(engine.container_rejoin(&id, &hanging, &progress).await?.is_none(), "it goes on after its end");
    Ok(())
}

pub(super) async fn program_that_leaves_others_behind_has_ended(fixture: &Fixture) -> Checked {
    let (subject, id) = Subject::running(fixture).await?;
    let left = ran(&subject, &id, &fixture.programs.leaves).await?;
    check!(left.end == ProgramEnd::Exited(0), "it ended so: {left:?}");
    // What it leaves behind goes on for longer than any program here may take.
    check!(left.lasted < SOON, "it took {:?}", left.lasted);
    Ok(())
}

pub(super) async fn program_that_cannot_be_started_is_rejected(fixture: &Fixture) -> Checked {
    let (subject, id) = Subject::running(fixture).await?;
    let absent = program(&fixture.programs.absent, LONG);
    let answer = subject.engine().container_run(&id, &absent, &Progress::default()).await;
    check_refused!(answer, EngineError::Rejected { .. }, "a program that is not there");
    Ok(())
}

pub(super) async fn program_needs_a_container_that_runs(fixture: &Fixture) -> Checked {
    let (subject, id) = Subject::running(fixture).await?;
    let engine = subject.engine();
    let (writes, progress) = (program(&fixture.programs.writes, LONG), Progress::default());
    let capabilities = engine.capabilities().await?;
    if capabilities.runtime(fixture.runtime.as_deref()).is_some_and(|r| r.freeze) {
        engine.container_freeze(&id).await?;
        let answer = engine.container_run(&id, &writes, &progress).await;
        check_refused!(answer, EngineError::Conflict { .. }, "a program in a frozen container");
        engine.container_unfreeze(&id).await?;
    }
    subject.stop(&id).await?;
    let answer = engine.container_run(&id, &writes, &progress).await;
    check_refused!(answer, EngineError::Conflict { .. }, "a program in a container that does not run");
    let answer = engine.container_run("no-such-container", &writes, &progress).await;
    check_refused!(answer, EngineError::NotFound { .. }, "a program in no container");
    Ok(())
}
