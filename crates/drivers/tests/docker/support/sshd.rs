//! An SSH server of one test alone, in front of the engine under test. The tests of the server use it too.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::missing_panics_doc,
    missing_docs,
    reason = "every test uses another part of it"
)]

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Longest wait for anything; far more than anything takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A port of this host that nobody uses right now.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The server, with keys of its own; it ends with this value.
pub struct Sshd {
    pub port: u16,
    pub directory: tempfile::TempDir,
    listener: Option<Child>,
}

impl Sshd {
    /// Starts one that lets in one connection that has not yet logged in, and no more.
    pub fn start() -> Self {
        Self::start_with(1)
    }

    /// Starts one that lets in so many. It counts one that was given up until it notices, some moments later.
    pub fn start_with(startups: u32) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut sshd = Self { port: free_port(), directory, listener: None };
        for key in ["host", "user", "other"] {
            keygen(&sshd.path(key));
        }
        let known = |name: &str, key: &str| {
            let key = std::fs::read_to_string(sshd.path(&format!("{key}.pub"))).unwrap();
            std::fs::write(sshd.path(name), format!("[127.0.0.1]:{} {key}", sshd.port)).unwrap();
        };
        known("known", "host");
        known("known-otherwise", "other");
        std::fs::write(sshd.path("sshd_config"), sshd.config(startups)).unwrap();
        sshd.listen();
        sshd
    }

    fn config(&self, startups: u32) -> String {
        let shadow = std::fs::read_to_string("/etc/shadow").unwrap();
        // Without PAM an account whose password is locked is not let in by a key either.
        let pam = if shadow.lines().any(|line| line.starts_with("root:!")) { "yes" } else { "no" };
        let port = self.port;
        let (key, users) = (self.path("host").display().to_string(), self.path("user.pub").display().to_string());
        format!(
            "ListenAddress 127.0.0.1\nPort {port}\nHostKey {key}\nAuthorizedKeysFile {users}\nUsePAM {pam}\n\
             StrictModes no\nMaxStartups {startups}\nMaxSessions 1\nPidFile none\nPermitRootLogin prohibit-password\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\nLogLevel INFO\n"
        )
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Listens again after [`Self::refuse`].
    pub fn listen(&mut self) {
        // Its own directory to drop privileges in, which its service would make.
        std::fs::create_dir_all("/run/sshd").unwrap();
        let log = File::options().create(true).append(true).open(self.path("log")).unwrap();
        let before = self.said("Server listening");
        let mut command = Command::new("/usr/sbin/sshd");
        command.args(["-D", "-e", "-f"]).arg(self.path("sshd_config"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.listener = Some(command.spawn().expect("sshd: ./dev deps"));
        // Trying the port would count as a connection that has not yet logged in.
        eventually("sshd listens", || self.said("Server listening") > before);
    }

    /// Takes no more connections; those there are stay.
    pub fn refuse(&mut self) {
        let mut listener = self.listener.take().unwrap();
        listener.kill().unwrap();
        listener.wait().unwrap();
    }

    /// How many lines of its log have this in them.
    pub fn said(&self, what: &str) -> usize {
        let log = std::fs::read_to_string(self.path("log")).unwrap_or_default();
        log.lines().filter(|line| line.contains(what)).count()
    }

    /// The address of an engine whose socket is here.
    pub fn address(&self, engine: &str) -> String {
        format!("ssh://root@127.0.0.1:{}{}", self.port, engine.strip_prefix("unix://").unwrap())
    }

    /// What a client says to be let in.
    pub fn options(&self) -> Vec<String> {
        self.options_with("user", "known")
    }

    /// The same with another key, or other known hosts.
    pub fn options_with(&self, key: &str, known: &str) -> Vec<String> {
        let (key, known) = (self.path(key), self.path(known));
        vec![
            format!("IdentityFile={}", key.display()),
            "IdentitiesOnly=yes".to_owned(),
            format!("UserKnownHostsFile={}", known.display()),
            "GlobalKnownHostsFile=/dev/null".to_owned(),
        ]
    }

    /// The processes that are connected to this server with a socket of theirs: their ids, their parents' and the sockets.
    pub fn clients(&self) -> Vec<(u32, u32, PathBuf)> {
        let port = self.port.to_string();
        let client = |pid: u32| {
            let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let arguments: Vec<String> =
                arguments.split(|b| *b == 0).map(|a| String::from_utf8_lossy(a).into_owned()).collect();
            let after = |flag: &str| arguments.iter().position(|a| a == flag).map(|at| arguments[at + 1].clone());
            if arguments[0] != "ssh" || after("-p")? != port {
                return None;
            }
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let parent = stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()?;
            Some((pid, parent, PathBuf::from(after("-L")?.split_once(':')?.0)))
        };
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        processes.filter_map(|p| p.file_name().to_str()?.parse().ok()).filter_map(client).collect()
    }

    /// Kills the one client there is, and waits until it has ended.
    pub fn kill_client(&self) -> PathBuf {
        let clients = self.clients();
        let [(pid, _, socket)] = clients.as_slice() else { panic!("not one client: {clients:?}") };
        let pid = rustix::process::Pid::from_raw(i32::try_from(*pid).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        eventually("the client ends", || self.clients().is_empty());
        socket.clone()
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        if self.listener.is_some() {
            self.refuse();
        }
        if std::thread::panicking() {
            let log = File::open(self.path("log")).unwrap();
            for line in BufReader::new(log).lines().map_while(Result::ok) {
                eprintln!("sshd: {line}");
            }
        }
    }
}

fn keygen(at: &Path) {
    let output = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(at).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Polls an observed state until it is as expected.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::yield_now();
    }
}
