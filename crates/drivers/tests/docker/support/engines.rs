//! Engines and file systems of one test alone.

use std::path::{Path, PathBuf};

use super::{host, storage_base};

/// Runs the rest of its arguments with an empty directory at `$1`. A copy of an overlay of a test beside this one would
/// have that test's data in use for as long as the engine runs.
const APART: &str = r#"
    awk '/ - overlay / { print $5 }' /proc/self/mountinfo | sort -r | while read -r target; do umount -l "$target"; done
    mount -t tmpfs apart "$1" && shift && exec bash "$@"
"#;

/// Another engine of the tests, which goes with this value.
pub struct OtherEngine {
    name: &'static str,
    /// Its socket.
    pub host: String,
}

impl OtherEngine {
    /// Starts it from nothing; the JSON is merged into its configuration.
    pub fn start(name: &'static str, config: &str) -> Self {
        Self::started(name, engine_script(&["start", name, config]))
    }

    /// The same in a mount namespace without the overlays of this host's engines, and in which this directory is an
    /// empty one: as if it were another host.
    pub fn start_apart(name: &'static str, config: &str, hidden: &Path) -> Self {
        let output = std::process::Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", APART, "sh"])
            .arg(hidden)
            .arg(script("engine.sh"))
            .args(["start", name, config])
            .output();
        Self::started(name, output.unwrap())
    }

    fn started(name: &'static str, output: std::process::Output) -> Self {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self { name, host: format!("unix://{}", String::from_utf8(output.stdout).unwrap().trim()) }
    }

    /// `start`, `stop`, `kill` or `crash`.
    pub fn again(&self, action: &str) {
        let output = engine_script(&[action, self.name]);
        assert!(output.status.success(), "{action}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Brings in images from the engine under test.
    pub fn load(&self, images: &[&str]) {
        let line = "a=$1 b=$2; shift 2; docker -H \"$a\" save \"$@\" | docker -H \"$b\" load -q";
        let output = std::process::Command::new("bash")
            .args(["-o", "pipefail", "-ec", line, "bash", &host(), &self.host])
            .args(images)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for OtherEngine {
    fn drop(&mut self) {
        engine_script(&["wipe", self.name]);
    }
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts").join(name)
}

fn engine_script(words: &[&str]) -> std::process::Output {
    std::process::Command::new("bash").arg(script("engine.sh")).args(words).output().expect("run the script")
}

/// A file system of its own kind, which goes with this value.
pub struct LoopFs(pub PathBuf);

impl LoopFs {
    pub fn mount(kind: &str) -> Self {
        let at = storage_base().join(format!("{kind}-{:08x}", rand::random::<u32>()));
        let fs = Self(at.clone());
        let output =
            std::process::Command::new("bash").arg(script("loopfs.sh")).args(["mount", kind]).arg(&at).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{kind}: {}", String::from_utf8_lossy(&output.stderr));
        fs
    }

    /// Takes it away as if the disk were pulled, or only unmounted; what is on it stays.
    pub fn unmount(&self) {
        assert!(std::process::Command::new("umount").arg(&self.0).status().unwrap().success());
    }

    pub fn mount_again(&self) {
        let image = format!("{}.img", self.0.display());
        assert!(
            std::process::Command::new("mount").args(["-o", "loop", &image]).arg(&self.0).status().unwrap().success()
        );
    }
}

impl Drop for LoopFs {
    fn drop(&mut self) {
        let _ = std::process::Command::new("bash").arg(script("loopfs.sh")).arg("umount").arg(&self.0).status();
    }
}
