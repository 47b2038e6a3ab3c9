//! The engine as its own command line shows it, and engines that a test may restart and wipe.

use std::process::Command;

/// The command line of one engine.
#[derive(Debug, Clone)]
pub struct Docker {
    pub host: String,
}

impl Docker {
    /// The engine that tests share. A missing one fails the test.
    pub fn shared() -> Self {
        let named = |name: &str| std::env::var(name).ok().filter(|h| !h.is_empty());
        let host = named("PERENNIAL_TEST_DOCKER_HOST")
            .or_else(|| named("DOCKER_HOST"))
            .expect("set PERENNIAL_TEST_DOCKER_HOST or DOCKER_HOST to the engine under test (./dev engine up)");
        Self { host }
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command.env("DOCKER_HOST", &self.host).args(arguments);
        command
    }

    /// What the command wrote, errors included, and whether it succeeded.
    pub fn try_run(&self, arguments: &[&str]) -> (String, bool) {
        let output = self.command(arguments).output().unwrap();
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            text.push_str(&String::from_utf8_lossy(&output.stderr));
        }
        (text, output.status.success())
    }

    pub fn run(&self, arguments: &[&str]) -> String {
        let (text, ok) = self.try_run(arguments);
        assert!(ok, "docker {arguments:?}: {text}");
        text
    }

    pub fn list(&self, arguments: &[&str]) -> Vec<String> {
        self.run(arguments).lines().map(str::to_owned).collect()
    }

    pub fn is_running(&self, container: &str) -> bool {
        self.try_run(&["inspect", "--format", "{{.State.Running}}", container]).0.trim() == "true"
    }

    /// Removes what carries this label, whatever state it is in.
    pub fn remove_labelled(&self, label: &str) {
        let filter = format!("label={label}");
        let removals: [(&[&str], &[&str]); 4] = [
            (&["ps", "--all", "--quiet", "--filter", &filter], &["rm", "--force", "--volumes"]),
            (&["volume", "ls", "--quiet", "--filter", &filter], &["volume", "rm", "--force"]),
            (&["network", "ls", "--quiet", "--filter", &filter], &["network", "rm"]),
            (&["images", "--quiet", "--filter", &filter], &["rmi", "--force"]),
        ];
        for (list, remove) in removals {
            let (found, ok) = self.try_run(list);
            let found: Vec<&str> = found.lines().collect();
            if ok && !found.is_empty() {
                let (text, ok) = self.try_run(&[remove, &found[..]].concat());
                if !ok {
                    eprintln!("clean up: {text}");
                }
            }
        }
    }
}

/// An engine of one test alone, which may be killed and wiped; deleted when dropped.
pub struct OwnEngine {
    name: &'static str,
    pub docker: Docker,
}

impl OwnEngine {
    /// Starts it from nothing.
    pub fn new(name: &'static str) -> Self {
        script(&["wipe", name]);
        let socket = script(&["start", name]);
        Self { name, docker: Docker { host: format!("unix://{}", socket.trim()) } }
    }

    /// `start`, `stop`, `kill`, `crash` or `wipe`.
    pub fn engine(&self, action: &str) {
        script(&[action, self.name]);
    }

    /// Brings in an image from the engine that tests share.
    pub fn load(&self, image: &str) {
        let line = "docker -H \"$1\" save \"$3\" | docker -H \"$2\" load -q";
        let shared = Docker::shared();
        let output = Command::new("bash")
            .args(["-o", "pipefail", "-ec", line, "bash", &shared.host, &self.docker.host, image])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for OwnEngine {
    fn drop(&mut self) {
        let _ = Command::new(script_path()).args(["wipe", self.name]).status();
    }
}

fn script_path() -> std::path::PathBuf {
    std::env::var_os("PERENNIAL_TEST_ENGINE_SCRIPT")
        .map_or_else(|| std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/engine.sh"), Into::into)
}

fn script(arguments: &[&str]) -> String {
    let output = Command::new(script_path()).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
