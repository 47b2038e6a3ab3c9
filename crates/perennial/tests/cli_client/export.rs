//! Archives that are written, and what is left of those that are not.

use std::fs::File;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use perennial::cli::Exit;
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};

use super::fake::{Fake, Reply, SNAPSHOT};

fn archive() -> String {
    format!("GET /api/v1/snapshots/{SNAPSHOT}/archive")
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn an_export_that_is_asked_to_end_leaves_nothing_behind() {
    let fake = Fake::default();
    fake.reply(&archive(), [Reply::Stalls("a beginning")]);
    let server = fake.serve().await;
    for signal in [Signal::TERM, Signal::INT] {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("a.tar");
        let mut child = tokio::process::Command::new(env!("CARGO_BIN_EXE_perennial"))
            .args(["--server", &server, "snapshot", "export", SNAPSHOT, "--tar", target.to_str().unwrap()])
            .env("PERENNIAL_TOKEN", "secret")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        while names(directory.path()).is_empty() {
            assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
            tokio::task::yield_now().await;
        }
        let pid = Pid::from_raw(child.id().unwrap().try_into().unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
        let ended = child.wait_with_output().await.unwrap();
        assert_eq!(ended.status.code(), Some(130), "{ended:?}");
        assert!(String::from_utf8_lossy(&ended.stderr).contains("a.tar was not written"), "{ended:?}");
        assert!(names(directory.path()).is_empty(), "{:?}", names(directory.path()));
    }
}

#[tokio::test]
async fn an_export_removes_what_killed_ones_left_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, age: u64| {
        let file = File::create(directory.path().join(name)).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
        file
    };
    file(".perennial-export-killed", 3600);
    file(".perennial-export-young", 0);
    file("mine", 3600);
    let held = file(".perennial-export-held", 3600);
    flock(&held, FlockOperation::NonBlockingLockExclusive).unwrap();
    std::os::unix::fs::symlink("mine", directory.path().join(".perennial-export-link")).unwrap();

    let fake = Fake::default();
    fake.reply(&archive(), [Reply::Text(200, "application/x-tar", "an archive".to_owned())]);
    let target = directory.path().join("a.tar");
    let ran = fake.run(&["snapshot", "export", SNAPSHOT, "--tar", target.to_str().unwrap()]).await;
    assert_eq!(ran.exit, Exit::Done, "{}", ran.stderr);
    assert_eq!(std::fs::read(&target).unwrap(), b"an archive");
    let left = [".perennial-export-held", ".perennial-export-link", ".perennial-export-young", "a.tar", "mine"];
    assert_eq!(names(directory.path()), left);
}
