//! A throw-away service of a real S3.

use std::path::PathBuf;
use std::process::Command;

/// What the service lets in.
pub const CREDENTIALS: [(&str, &str); 2] =
    [("AWS_ACCESS_KEY_ID", "perennial"), ("AWS_SECRET_ACCESS_KEY", "perennial-secret")];

/// A service that is stopped and deleted with this value.
pub struct S3 {
    script: PathBuf,
    directory: tempfile::TempDir,
    /// Its bucket, as restic writes it; or what its script says.
    pub address: String,
}

impl S3 {
    /// Starts one; none when the environment does not say how, which is a failure where everything is required.
    pub fn start() -> Option<Self> {
        Self::start_by("PERENNIAL_TEST_S3_SCRIPT")
    }

    /// The same for another store, by the variable that names a script which knows the same words.
    pub fn start_by(variable: &str) -> Option<Self> {
        let Some(script) = std::env::var_os(variable).filter(|s| !s.is_empty()) else {
            assert!(std::env::var_os("PERENNIAL_TEST_REQUIRE").is_none(), "{variable}: ./dev env");
            return None;
        };
        let directory = tempfile::tempdir().unwrap();
        let mut service = Self { script: script.into(), directory, address: String::new() };
        service.address = service.run("start");
        Some(service)
    }

    /// `kill` ends it without warning, and what it holds stays; `restart` starts it again on the same port.
    pub fn run(&self, what: &str) -> String {
        let output = Command::new(&self.script).arg(what).arg(self.directory.path().join("s3")).output().unwrap();
        assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        // What cannot be stopped is left to whoever looks at the machine.
        let _ = Command::new(&self.script).arg("stop").arg(self.directory.path().join("s3")).status();
    }
}
