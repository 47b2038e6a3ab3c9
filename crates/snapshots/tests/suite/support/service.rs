//! Throw-away services of a real S3 and a real Azure Blob.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use perennial_snapshots::backend::{ConnectOptions, Location, Patience};
use perennial_snapshots::*;

/// What is tested on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    S3,
    Azurite,
}

/// A service that is stopped and deleted with this value.
pub struct Service {
    kind: Kind,
    script: PathBuf,
    directory: PathBuf,
    /// What `start` printed: the bucket's address, or the endpoint.
    pub address: String,
    _parent: tempfile::TempDir,
}

pub const S3_CREDENTIALS: [(&str, &str); 2] =
    [("AWS_ACCESS_KEY_ID", "perennial"), ("AWS_SECRET_ACCESS_KEY", "perennial-secret")];
const AZURITE_ACCOUNT: &str = "devstoreaccount1";
/// The well-known key of every Azurite.
const AZURITE_KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

impl Service {
    /// Starts one; none when the environment does not say how, which is a failure where everything is required.
    pub fn start(kind: Kind) -> Option<Self> {
        let variable = match kind {
            Kind::S3 => "PERENNIAL_TEST_S3_SCRIPT",
            Kind::Azurite => "PERENNIAL_TEST_AZURITE_SCRIPT",
        };
        let Some(script) = std::env::var_os(variable).filter(|s| !s.is_empty()).map(PathBuf::from) else {
            assert!(std::env::var_os("PERENNIAL_TEST_REQUIRE").is_none(), "{variable} is not set: ./dev env");
            eprintln!("skipped: {variable} is not set");
            return None;
        };
        let parent = tempfile::Builder::new().prefix("service-").tempdir().unwrap();
        let directory = parent.path().join("service");
        let mut service = Self { kind, script, directory, address: String::new(), _parent: parent };
        service.address = service.run("start");
        Some(service)
    }

    fn run(&self, what: &str) -> String {
        let output = Command::new(&self.script).arg(what).arg(&self.directory).output().unwrap();
        assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Ends it without warning; what it was told stays.
    pub fn kill(&self) {
        self.run("kill");
    }

    /// Starts it again on the same port.
    pub fn restart(&self) {
        assert_eq!(self.run("restart"), self.address);
    }

    /// The directory in which the S3 keeps the objects of its bucket, as files.
    pub fn objects(&self) -> PathBuf {
        self.directory.join("data/bucket")
    }

    /// The address of a repository as restic writes it.
    pub fn repository(&self, prefix: &str) -> String {
        match self.kind {
            Kind::S3 => format!("{}/{prefix}", self.address),
            Kind::Azurite => format!("azure:container:/{prefix}"),
        }
    }

    fn variable(&self, name: &str) -> Option<String> {
        let mut all = S3_CREDENTIALS.to_vec();
        all.extend([
            ("AZURE_ACCOUNT_NAME", AZURITE_ACCOUNT),
            ("AZURE_ACCOUNT_KEY", AZURITE_KEY),
            ("AZURE_STORAGE_ENDPOINT", self.address.as_str()),
        ]);
        all.into_iter().find(|(n, _)| *n == name).map(|(_, value)| value.to_owned())
    }

    /// A place in the service.
    pub fn location(&self, prefix: &str) -> Location {
        Location::parse(&self.repository(prefix), |name| self.variable(name)).unwrap()
    }

    /// A backend of a place in the service, which does not wait long for one that is gone.
    pub fn backend(&self, prefix: &str) -> Arc<dyn Backend> {
        self.location(prefix).connect(&impatient()).unwrap()
    }
}

/// Passing trouble is not waited for.
pub fn impatient() -> ConnectOptions {
    let patience = Patience {
        retries: 1,
        retry_for: Duration::from_millis(300),
        connect: Duration::from_secs(5),
        ..Patience::default()
    };
    ConnectOptions { patience, ..ConnectOptions::default() }
}

impl Drop for Service {
    fn drop(&mut self) {
        // What cannot be stopped is left to whoever looks at the machine.
        let _ = Command::new(&self.script).arg("stop").arg(&self.directory).status();
    }
}
