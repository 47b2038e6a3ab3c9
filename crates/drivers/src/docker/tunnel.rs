//! One `ssh` per engine behind SSH, which forwards the engine's socket to one of this host.
//!
//! One login carries every connection: an SSH server lets in few that have not yet said who they are. While `ssh` is down
//! nobody listens at the local socket, so that a connection is refused and nothing happened (law 5). Its directory is
//! locked as long as the tunnel lives: a server that was killed leaves an `ssh` behind, and the next one ends it.

use std::fs::File;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use perennial_core::engine::EngineError;
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::UnixStream;
use tokio::process::{Child, ChildStderr, Command};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::client::{blocking, io, rejected, transient};
use super::ssh::Address;

/// Longest time from the start of `ssh` until the socket is there; it gives up a connection earlier by itself.
const LOGIN: Duration = Duration::from_secs(30);
/// How often the socket is looked for meanwhile.
const LOOK: Duration = Duration::from_millis(20);
/// How long an `ssh` that ended may keep its last words.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Before `ssh` is started again; doubled every time it fails, up to the longest.
const AGAIN: Duration = Duration::from_millis(500);
/// Longest wait, and how long a tunnel has to hold for the next wait to be short.
const AGAIN_LONGEST: Duration = Duration::from_secs(10);
/// How much is remembered of what `ssh` says.
const SAID_LINES: usize = 20;
/// How the directories of tunnels are called.
const PREFIX: &str = "perennial-ssh-";
/// The socket in such a directory.
const SOCKET: &str = "docker.sock";

/// A socket of this host behind which the engine is, as long as this lives.
#[derive(Debug)]
pub(super) struct Tunnel {
    supervisor: JoinHandle<()>,
    said: Said,
    place: Place,
}

impl Tunnel {
    /// Logs in, and returns once the socket takes connections.
    ///
    /// # Errors
    /// [`EngineError::Rejected`] when trying again would not help: a host that is not known, a key that is not taken, no
    /// `ssh`; else [`EngineError::Transient`].
    pub(super) async fn open(address: &Address, options: &[String]) -> Result<Self, EngineError> {
        let place = blocking(Place::make).await?;
        let call = Call {
            arguments: address.arguments(&place.socket(), options)?,
            socket: place.socket(),
            destination: address.destination(),
            trial: address.trial(),
            said: Said::default(),
        };
        let said = call.said.clone();
        let ssh = call.start().await?;
        Ok(Self { supervisor: tokio::spawn(supervise(call, ssh)), said, place })
    }

    /// Where to connect to.
    pub(super) fn socket(&self) -> PathBuf {
        self.place.socket()
    }

    /// The last that `ssh` said, if anything.
    pub(super) fn said(&self) -> String {
        self.said.text()
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        // Takes `ssh` with it.
        self.supervisor.abort();
    }
}

/// Starts `ssh` again whenever it ends.
async fn supervise(call: Call, mut ssh: Ssh) {
    let mut wait = AGAIN;
    loop {
        let began = Instant::now();
        let ended = ssh.ended().await;
        tracing::warn!(to = %call.destination, %ended, said = %call.said.text(), "the tunnel to the engine is down");
        if began.elapsed() >= AGAIN_LONGEST {
            wait = AGAIN;
        }
        ssh = loop {
            sleep(wait).await;
            wait = (wait * 2).min(AGAIN_LONGEST);
            match call.start().await {
                Ok(ssh) => break ssh,
                Err(error) => tracing::warn!(%error, "the tunnel to the engine stays down"),
            }
        };
        tracing::info!(to = %call.destination, "the tunnel to the engine is there again");
    }
}

/// How `ssh` is started.
struct Call {
    arguments: Vec<String>,
    socket: PathBuf,
    destination: String,
    trial: String,
    said: Said,
}

impl Call {
    /// Starts it, and waits until it listens, which it does once it is logged in.
    async fn start(&self) -> Result<Ssh, EngineError> {
        self.said.forget();
        let mut command = Command::new("ssh");
        // Ctrl-C at a terminal is for the server, which needs the engine while it ends.
        command.args(&self.arguments).kill_on_drop(true).process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => {
                rejected("ssh to the engine: there is no ssh on this host; install openssh-client")
            }
            _ => transient(format!("ssh to the engine: start ssh: {e}")),
        })?;
        let listener = child.stderr.take().map(|stderr| tokio::spawn(self.said.clone().listen(stderr)));
        let mut ssh = Ssh { child, listener };
        let listens = async {
            while UnixStream::connect(&self.socket).await.is_err() {
                sleep(LOOK).await;
            }
        };
        let ended = tokio::select! {
            ended = ssh.ended() => ended,
            listening = timeout(LOGIN, listens) => match listening {
                Ok(()) => return Ok(ssh),
                Err(_) => format!("not there after {} s", LOGIN.as_secs()),
            },
        };
        Err(self.failed(&ended))
    }

    /// What it means that `ssh` did not get there. It ends with the same code whatever happened; its words tell.
    fn failed(&self, ended: &str) -> EngineError {
        let said = self.said.text();
        let final_words =
            ["host key verification failed", "permission denied", "bad configuration option", "bad owner"];
        let lower = said.to_ascii_lowercase();
        let (ours, trial) = (&self.destination, &self.trial);
        if final_words.iter().any(|words| lower.contains(words)) {
            rejected(format!(
                "ssh to the engine ({ours}) is refused: {said}; the host's key has to be in known_hosts and a key of the \
                 server's user accepted without a question, which `{trial}` tries"
            ))
        } else if said.is_empty() {
            transient(format!("ssh to the engine ({ours}) fails without a word ({ended})"))
        } else {
            transient(format!("ssh to the engine ({ours}) fails: {said}"))
        }
    }
}

/// An `ssh` that runs, and is killed when this is dropped.
struct Ssh {
    child: Child,
    listener: Option<JoinHandle<()>>,
}

impl Ssh {
    /// Waits for its end, and until what it said has been read; answers how it ended, for people.
    async fn ended(&mut self) -> String {
        let status = self.child.wait().await;
        if let Some(listener) = self.listener.take() {
            // A program that it started may keep the pipe open.
            let _ = timeout(LAST_WORDS, listener).await;
        }
        status.map_or_else(|e| e.to_string(), |status| status.to_string())
    }
}

/// The last lines that `ssh` wrote to its standard error.
#[derive(Debug, Clone, Default)]
struct Said(Arc<Mutex<Vec<String>>>);

impl Said {
    fn lines(&self) -> std::sync::MutexGuard<'_, Vec<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget(&self) {
        self.lines().clear();
    }

    /// In one line.
    fn text(&self) -> String {
        self.lines().join(" ")
    }

    async fn listen(self, stderr: ChildStderr) {
        let mut lines = BufReader::new(stderr).split(b'\n');
        while let Ok(Some(line)) = lines.next_segment().await {
            let line = String::from_utf8_lossy(&line).trim().to_owned();
            // The box around its warnings says nothing.
            if line.chars().all(|c| c == '@') || line.is_empty() {
                continue;
            }
            tracing::debug!(%line, "ssh to the engine");
            let mut kept = self.lines();
            if kept.len() == SAID_LINES {
                kept.remove(0);
            }
            kept.push(line);
        }
    }
}

/// A private directory for the socket, locked and removed with this value.
#[derive(Debug)]
struct Place {
    directory: tempfile::TempDir,
    _lock: File,
}

impl Place {
    /// Makes one, and clears away those of servers that were killed.
    fn make() -> Result<Self, EngineError> {
        let base = std::env::temp_dir();
        sweep(&base);
        let private = std::fs::Permissions::from_mode(0o700);
        let made = tempfile::Builder::new().prefix(PREFIX).permissions(private).tempdir_in(base);
        let directory = made.map_err(io("make a directory for ssh"))?;
        let lock = lock(directory.path()).map_err(io("lock the directory for ssh"))?;
        Ok(Self { directory, _lock: lock })
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join(SOCKET)
    }
}

fn lock(directory: &Path) -> std::io::Result<File> {
    let file = File::open(directory)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    Ok(file)
}

/// Removes directories that nobody has locked, and ends the `ssh` of each. What fails is tried again at the next start.
fn sweep(base: &Path) {
    let Ok(entries) = std::fs::read_dir(base) else { return };
    let us = rustix::process::geteuid().as_raw();
    for entry in entries.flatten() {
        // Everybody may put something with such a name there.
        let ours = entry.metadata().is_ok_and(|m| m.is_dir() && m.uid() == us);
        if !ours || !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let Ok(_lock) = lock(&entry.path()) else { continue };
        end_left(&entry.path().join(SOCKET));
        if let Err(error) = std::fs::remove_dir_all(entry.path()) {
            tracing::warn!(%error, directory = %entry.path().display(), "remove what an earlier server left");
        }
    }
}

/// Ends the `ssh` that forwards this socket, whose random name no other process has in its arguments.
fn end_left(socket: &Path) {
    let forwards = format!("{}:", socket.display());
    let is_it = |process: &Path| {
        let arguments = std::fs::read(process.join("cmdline")).unwrap_or_default();
        arguments.split(|b| *b == 0).any(|argument| argument.starts_with(forwards.as_bytes()))
    };
    let Ok(processes) = std::fs::read_dir("/proc") else { return };
    for process in processes.flatten() {
        let pid = process.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
        let Some(pid) = pid.filter(|_| is_it(&process.path())) else { continue };
        // Looked at again once it is held: a number may be another process by now.
        if let Ok(held) = pidfd_open(pid, PidfdFlags::empty())
            && is_it(&process.path())
        {
            tracing::info!(pid = pid.as_raw_nonzero().get(), "ending the ssh of a server that was killed");
            let _ = pidfd_send_signal(held, Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(said: &str) -> Call {
        let call = Call {
            arguments: Vec::new(),
            socket: PathBuf::from("/nowhere"),
            destination: "root@host".to_owned(),
            trial: "ssh root@host true".to_owned(),
            said: Said::default(),
        };
        call.said.lines().extend(said.lines().map(str::to_owned));
        call
    }

    #[test]
    fn ssh_words_tell_what_may_pass_and_what_does_not() {
        for lasting in ["Host key verification failed.", "root@host: Permission denied (publickey)."] {
            let error = call(lasting).failed("exit status: 255");
            let told = |p: &str| p.contains(lasting) && p.contains("known_hosts") && p.contains("ssh root@host true");
            assert!(matches!(&error, EngineError::Rejected { problem } if told(problem)), "{error:?}");
        }
        for passing in ["ssh: connect to host host port 22: Connection refused", ""] {
            let error = call(passing).failed("exit status: 255");
            assert!(matches!(&error, EngineError::Transient { problem } if problem.contains(passing)), "{error:?}");
        }
    }

    #[test]
    fn what_a_killed_server_left_of_ssh_is_ended_and_a_locked_place_is_not() {
        let base = tempfile::tempdir().expect("make a directory");
        let made = |name: &str| {
            let path = base.path().join(format!("{PREFIX}{name}"));
            std::fs::create_dir(&path).expect("make a directory");
            path
        };
        // Stands for an ssh: a shell with such an argument, which waits for its input to end. It says that it is there, because
        // a process that has just been started has no arguments yet that others see.
        let process = |place: &Path| {
            let argument = format!("{}:/remote", place.join(SOCKET).display());
            let mut command = std::process::Command::new("sh");
            let mut shell = command
                .args(["-c", "echo there; read x; exit 0", "sh", &argument])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .expect("start a shell");
            let mut there = [0; 6];
            std::io::Read::read_exact(shell.stdout.as_mut().expect("its output"), &mut there).expect("a word of it");
            shell
        };
        let (left, used) = (made("left"), made("used"));
        let (mut orphan, mut other) = (process(&left), process(&used));
        let held = lock(&used).expect("lock");
        sweep(base.path());
        assert!(!left.exists() && used.exists());
        assert_eq!(orphan.wait().expect("wait").code(), None, "it is killed");
        drop(other.stdin.take());
        assert_eq!(other.wait().expect("wait").code(), Some(0), "it ends by itself");
        drop(held);
    }
}
