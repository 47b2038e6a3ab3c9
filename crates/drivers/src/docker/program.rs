//! A program in a pod's container, by `exec`: bounded in time and output, and ended when its time is over.
//!
//! The engine has no call that ends an `exec`, so it is done from this host where the process is one of it and its control group
//! says that it is of the container, and else from inside: what was started carries a mark in its environment, and a shell
//! of the pod, if it has one, kills what carries it. gVisor's processes are ended only in the second way: the one on the host is
//! a stand-in, whose end ends nothing. Whether it worked is what the engine says afterwards, never an assumption.
//!
//! A server that died while one ran finds it again by its words: the engine lists what goes on in a container, and does not tell an
//! environment. Somebody's own `exec` of the very same words is taken for it, and is waited for or ended with it.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::time::{Duration, Instant};

use bollard::exec::{CreateExecOptions, StartExecOptions, StartExecResults};
use bollard::models::{ContainerStateStatusEnum, ExecInspectResponse};
use futures::{Stream, StreamExt};
use perennial_core::engine::{EngineError, OUTPUT_MAX, Program, ProgramEnd, Ran, Remains};
use perennial_core::progress::Progress;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process_group};

use super::DockerEngine;
use super::client::{blocking, conflict, fail, found, look, rejected, unknown};
use super::container::Seen;

/// How often it is looked at whether a program has ended, or has to be.
const LOOK: Duration = Duration::from_millis(200);
/// How long one that was asked to end gets before it is killed, and how long that may take to show.
const GRACE: Duration = Duration::from_secs(2);
/// How often a shell of the pod is asked to end a program.
const KILLS: u32 = 3;
/// How long the shell that ends a program may take.
const SHELL: Duration = Duration::from_secs(5);
/// How long the rest of the output of one that has ended is waited for.
const REST: Duration = Duration::from_millis(500);
/// The mark, in the environment.
const MARK: &str = "PERENNIAL_HOOK";
/// Kills every process that carries the mark `$0`, until there is none; uses nothing but the shell itself.
const KILL: &str = r#"tries=0; found=1
while [ $found = 1 ] && [ $tries -lt 20 ]; do
    found=0; tries=$((tries+1))
    for p in /proc/[0-9]*; do
        { while IFS= read -r e || [ -n "$e" ]; do case "$e" in *"$0"*) found=1; kill -9 "${p#/proc/}";; esac; done < "$p/environ"; } 2>/dev/null
    done
done
[ $found = 0 ]"#;

/// The end of a text, bounded in bytes.
#[derive(Default)]
struct Tail(VecDeque<u8>);

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        let bytes = bytes.get(bytes.len().saturating_sub(OUTPUT_MAX)..).unwrap_or_default();
        let over = (self.0.len() + bytes.len()).saturating_sub(OUTPUT_MAX);
        self.0.drain(..over);
        self.0.extend(bytes);
    }

    fn text(self) -> String {
        String::from_utf8_lossy(&self.0.into_iter().collect::<Vec<u8>>()).into_owned()
    }
}

/// Why a program is not waited for any longer.
enum Waited {
    Ended(Option<i64>),
    TimeIsOver,
    Cancelled,
}

impl DockerEngine {
    pub(super) async fn run_program(
        &self,
        id: &str,
        program: &Program,
        progress: &Progress,
    ) -> Result<Ran, EngineError> {
        let seen = self.running(id).await?;
        let mark = format!("{MARK}={}", program.mark);
        let began = Instant::now();
        let exec = self.exec_create(&seen.id, &program.command, program.user.as_deref(), Some(&mark)).await?;
        let mut output = match self.exec_start(&exec).await {
            // A container that is just ending answers as one in which there is no such program.
            Err(EngineError::Rejected { .. }) if !self.still_runs(&seen).await? => {
                return Ok(Ran { end: ProgramEnd::ContainerEnded, output: String::new(), lasted: began.elapsed() });
            }
            started => started?,
        };
        let mut tail = Tail::default();
        let waited = self.wait_for(&exec, &mut output, &mut tail, (began + program.within, progress)).await?;
        let lasted = began.elapsed();
        if matches!(waited, Waited::Ended(_)) {
            self.drain(&mut output, &mut tail).await;
        }
        let end = self.end_of(waited, (&seen, &exec), program).await?;
        let output = tail.text();
        // Some engines answer to a program that is not there with a status and these words in its output.
        if matches!(end, ProgramEnd::Exited(126 | 127)) && output.starts_with("OCI runtime exec failed") {
            return Err(rejected(output.trim().to_owned()));
        }
        Ok(Ran { end, output, lasted })
    }

    /// Waits for what an earlier call began in the container, and ends it when its time is over.
    pub(super) async fn rejoin_program(
        &self,
        id: &str,
        program: &Program,
        progress: &Progress,
    ) -> Result<Option<Ran>, EngineError> {
        let seen = self.running(id).await?;
        let began = Instant::now();
        let mut last = None;
        for exec in seen.inspected.exec_ids.iter().flatten() {
            let found = found("look at a program of the container", self.docker.inspect_exec(exec).await)?;
            if !found.is_some_and(|found| goes_on(&found, program)) {
                continue;
            }
            let mut silent = futures::stream::empty();
            let until = (began + program.within, progress);
            let waited = self.wait_for(exec, &mut silent, &mut Tail::default(), until).await?;
            let end = self.end_of(waited, (&seen, exec), program).await?;
            // Of several, one that may go on counts.
            if !last.is_some_and(ProgramEnd::may_go_on) {
                last = Some(end);
            }
        }
        Ok(last.map(|end| Ran { end, output: String::new(), lasted: began.elapsed() }))
    }

    pub(super) async fn running(&self, id: &str) -> Result<Seen, EngineError> {
        let seen = self.ours(id).await?;
        if seen.status == ContainerStateStatusEnum::RUNNING {
            return Ok(seen);
        }
        Err(conflict(format!("container {id} does not run, or is frozen")))
    }

    /// How a program ended that is waited for no longer; ends it when it has not.
    async fn end_of(
        &self,
        waited: Waited,
        (seen, exec): (&Seen, &str),
        program: &Program,
    ) -> Result<ProgramEnd, EngineError> {
        Ok(match waited {
            Waited::Ended(_) if !self.still_runs(seen).await? => ProgramEnd::ContainerEnded,
            Waited::Ended(code) => {
                ProgramEnd::Exited(code.ok_or_else(|| unknown("the engine does not know how the program ended"))?)
            }
            Waited::TimeIsOver => ProgramEnd::TimedOut(self.end_program(&seen.id, exec, program).await),
            Waited::Cancelled => ProgramEnd::Cancelled(self.end_program(&seen.id, exec, program).await),
        })
    }

    async fn exec_create(
        &self,
        container: &str,
        command: &[String],
        user: Option<&str>,
        mark: Option<&str>,
    ) -> Result<String, EngineError> {
        let options = CreateExecOptions {
            cmd: Some(command.iter().map(String::as_str).collect()),
            user,
            env: mark.map(|mark| vec![mark]),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            ..CreateExecOptions::default()
        };
        let made = self.docker.create_exec(container, options).await;
        // Nothing runs yet, whatever became of the answer.
        Ok(made.map_err(|e| look("prepare a program in the container", e))?.id)
    }

    async fn exec_start(
        &self,
        exec: &str,
    ) -> Result<impl Stream<Item = Result<bollard::container::LogOutput, bollard::errors::Error>> + Unpin, EngineError>
    {
        let started = self.docker.start_exec(exec, None::<StartExecOptions>).await;
        match started.map_err(not_started)? {
            StartExecResults::Attached { output, .. } => Ok(output),
            StartExecResults::Detached => Err(unknown("the engine started the program and does not tell what it says")),
        }
    }

    /// Follows a program until it has ended or has to be. One may end and leave others behind that keep its output open.
    async fn wait_for(
        &self,
        exec: &str,
        output: &mut (impl Stream<Item = Result<bollard::container::LogOutput, bollard::errors::Error>> + Unpin),
        tail: &mut Tail,
        (until, progress): (Instant, &Progress),
    ) -> Result<Waited, EngineError> {
        let mut open = true;
        let mut looks = tokio::time::interval(LOOK);
        loop {
            let look_now = tokio::select! {
                said = output.next(), if open => match said {
                    Some(Ok(said)) => {
                        tail.push(&said.into_bytes());
                        false
                    }
                    Some(Err(_)) | None => {
                        open = false;
                        true
                    }
                },
                _ = looks.tick() => true,
            };
            // What never stops talking must not keep its time from being over.
            if look_now || Instant::now() >= until {
                match self.exec_ended(exec).await {
                    Ok(Some(ended)) => return Ok(Waited::Ended(ended.exit_code)),
                    Ok(None) => {}
                    // An engine that does not answer for a moment does not end what it runs. When its time is over it has to be
                    // ended all the same: the one that is asked to may answer by then, and whether it ended is asked again.
                    Err(error) => tracing::debug!(%error, "look at a program again"),
                }
                if progress.check().is_err() {
                    return Ok(Waited::Cancelled);
                }
                if Instant::now() >= until {
                    return Ok(Waited::TimeIsOver);
                }
            }
        }
    }

    /// What the engine knows of a program that has ended; `None` while it goes on.
    async fn exec_ended(&self, exec: &str) -> Result<Option<ExecInspectResponse>, EngineError> {
        match found("look at the program", self.docker.inspect_exec(exec).await) {
            Ok(Some(seen)) => Ok(Some(seen).filter(|seen| seen.running == Some(false))),
            // The engine forgets it with its container.
            Ok(None) | Err(EngineError::Conflict { .. }) => Ok(Some(ExecInspectResponse::default())),
            Err(error) => Err(unknown(error.to_string())),
        }
    }

    /// Whether the container is in the very run in which it was seen.
    async fn still_runs(&self, before: &Seen) -> Result<bool, EngineError> {
        let seen = self.look_at(&before.id).await.map_err(|e| unknown(e.to_string()))?;
        Ok(seen.is_some_and(|seen| is_same_run(before, &seen)))
    }

    /// Reads what is left of the output of a program that has ended.
    async fn drain(
        &self,
        output: &mut (impl Stream<Item = Result<bollard::container::LogOutput, bollard::errors::Error>> + Unpin),
        tail: &mut Tail,
    ) {
        let rest = async {
            while let Some(Ok(said)) = output.next().await {
                tail.push(&said.into_bytes());
            }
        };
        // Others may keep it open.
        let _ = tokio::time::timeout(REST, rest).await;
    }

    /// Ends a program whose time is over, as far as that can be done, and tells what the engine says then.
    async fn end_program(&self, container: &str, exec: &str, program: &Program) -> Remains {
        for signal in [Signal::TERM, Signal::KILL] {
            match self.docker.inspect_exec(exec).await.map(|seen| seen.pid) {
                Ok(Some(pid)) if signal_group(container, pid, signal).await => {}
                _ => break,
            }
            if self.ends_within(exec, GRACE).await {
                return Remains::Nothing;
            }
        }
        // One that was only just begun may not be there yet when the shell looks.
        for _ in 0..KILLS {
            if let Err(error) = self.kill_inside(container, program).await {
                tracing::warn!(container, %error, "end a program in the container");
            }
            if self.ends_within(exec, GRACE).await {
                return Remains::Nothing;
            }
        }
        Remains::Perhaps
    }

    async fn kill_inside(&self, container: &str, program: &Program) -> Result<(), EngineError> {
        let mark = format!("{MARK}={}", program.mark);
        let command = ["sh", "-c", KILL, &mark].map(str::to_owned);
        let exec = self.exec_create(container, &command, program.user.as_deref(), None).await?;
        let mut output = self.exec_start(&exec).await?;
        let until = Instant::now() + SHELL;
        self.wait_for(&exec, &mut output, &mut Tail::default(), (until, &Progress::default())).await?;
        Ok(())
    }

    async fn ends_within(&self, exec: &str, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        loop {
            if matches!(self.exec_ended(exec).await, Ok(Some(_))) {
                return true;
            }
            if Instant::now() >= until {
                return false;
            }
            tokio::time::sleep(LOOK / 4).await;
        }
    }
}

fn is_same_run(before: &Seen, now: &Seen) -> bool {
    let live = [ContainerStateStatusEnum::RUNNING, ContainerStateStatusEnum::PAUSED];
    let began = |seen: &Seen| seen.inspected.state.as_ref().and_then(|state| state.started_at.clone());
    live.contains(&now.status) && began(before) == began(now)
}

/// Whether this is the program, and it has not ended.
fn goes_on(seen: &ExecInspectResponse, program: &Program) -> bool {
    let words = seen.process_config.as_ref().is_some_and(|config| {
        let first = config.entrypoint.iter();
        first.chain(config.arguments.iter().flatten()).eq(&program.command)
    });
    // One that was made and never started does not run either: whoever made it is dead.
    seen.running == Some(true) && words
}

/// Signals the group of a process of this host that is the container's own; answers whether it was one.
async fn signal_group(container: &str, pid: i64, signal: Signal) -> bool {
    let container = container.to_owned();
    // The runtime makes what it starts the leader of a group.
    let signalled = blocking(move || {
        let process = of_this_host(&container, pid).ok().flatten();
        Ok(process.is_some_and(|pid| kill_process_group(pid, signal).is_ok()))
    });
    signalled.await.unwrap_or(false)
}

/// Whether a process of a container is seen on this host.
pub(super) async fn is_of_this_host(container: &str, pid: i64) -> Result<bool, EngineError> {
    let container = container.to_owned();
    blocking(move || match of_this_host(&container, pid) {
        Ok(found) => Ok(found.is_some()),
        Err(error) => Err(EngineError::Transient { problem: format!("look at process {pid}: {error}") }),
    })
    .await
}

/// The process of this host that is the container's own; `None` when there is none of this number. The engine may be another
/// host's, whose numbers mean something else here.
fn of_this_host(container: &str, pid: i64) -> std::io::Result<Option<Pid>> {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
    match std::fs::read_to_string(format!("/proc/{}/cgroup", pid.as_raw_nonzero())) {
        Ok(groups) => Ok(groups.contains(container).then_some(pid)),
        // The second when it ended while its file was open.
        Err(error)
            if error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// A program or a user that is not there is the hook's fault; engines answer with different numbers to that.
fn not_started(error: bollard::errors::Error) -> EngineError {
    if let bollard::errors::Error::DockerResponseServerError { message, .. } = &error
        && is_not_there(message)
    {
        return rejected(message.trim().to_owned());
    }
    fail("start a program in the container", error)
}

/// Whether an engine says with these words that a program or a user is not in the container, or may not be used.
pub(super) fn is_not_there(message: &str) -> bool {
    let lower = message.to_ascii_lowercase();
    ["executable file not found", "no such file or directory", "unable to find user", "permission denied"]
        .iter()
        .any(|words| lower.contains(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_that_was_started_again_is_another_run() {
        let seen = |status, started: &str| Seen {
            id: "c".into(),
            labels: Default::default(),
            status,
            inspected: bollard::models::ContainerInspectResponse {
                state: Some(bollard::models::ContainerState { started_at: Some(started.into()), ..Default::default() }),
                ..Default::default()
            },
        };
        let (running, paused) = (ContainerStateStatusEnum::RUNNING, ContainerStateStatusEnum::PAUSED);
        let before = seen(running, "2026-01-01T00:00:00Z");
        assert!(is_same_run(&before, &seen(running, "2026-01-01T00:00:00Z")));
        assert!(is_same_run(&before, &seen(paused, "2026-01-01T00:00:00Z")));
        assert!(!is_same_run(&before, &seen(running, "2026-01-01T00:00:09Z")));
        assert!(!is_same_run(&before, &seen(ContainerStateStatusEnum::EXITED, "2026-01-01T00:00:00Z")));
    }

    #[test]
    fn a_program_is_known_by_its_words_while_it_goes_on() {
        let words = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        let (command, within) = (words(&["sh", "-c", "a b"]), Duration::from_secs(1));
        let program = Program { mark: "m".into(), command, user: None, within };
        let seen = |running, entrypoint: &str, arguments: &[&str]| ExecInspectResponse {
            running,
            process_config: Some(bollard::models::ProcessConfig {
                entrypoint: Some(entrypoint.into()),
                arguments: Some(words(arguments)),
                ..Default::default()
            }),
            ..Default::default()
        };
        assert!(goes_on(&seen(Some(true), "sh", &["-c", "a b"]), &program));
        assert!(!goes_on(&seen(Some(false), "sh", &["-c", "a b"]), &program));
        assert!(!goes_on(&seen(None, "sh", &["-c", "a b"]), &program));
        assert!(!goes_on(&seen(Some(true), "sh", &["-c", "a"]), &program));
        assert!(!goes_on(&seen(Some(true), "sh", &["-c", "a b", "c"]), &program));
        assert!(!goes_on(&ExecInspectResponse { running: Some(true), ..Default::default() }, &program));
    }

    #[test]
    fn only_the_end_of_what_a_program_says_is_kept() {
        let mut tail = Tail::default();
        tail.push(b"begin ");
        tail.push(&vec![b'x'; 3 * OUTPUT_MAX]);
        tail.push(b" end");
        let text = tail.text();
        assert_eq!(text.len(), OUTPUT_MAX);
        assert!(text.ends_with("x end") && !text.contains("begin"));
    }
}
