//! What a pod wrote, from servers that do not say so.

use std::os::unix::process::ExitStatusExt as _;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::fake::{Fake, POD, Reply, pod};

/// Longest time for anything.
const PATIENCE: Duration = Duration::from_secs(60);

fn log() -> String {
    format!("GET /api/v1/pods/{POD}/logs")
}

#[tokio::test]
async fn a_log_that_does_not_begin_can_be_interrupted() {
    for (signal, more) in [(Signal::INT, None), (Signal::TERM, Some("--follow"))] {
        let fake = Fake::default();
        fake.pods(&[pod("dev")]).reply(&log(), [Reply::Silence]);
        let server = fake.serve().await;
        let child = tokio::process::Command::new(env!("CARGO_BIN_EXE_perennial"))
            .args(["--server", &server, "pod", "logs", "dev"])
            .args(more)
            .env("PERENNIAL_TOKEN", "secret")
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let asked = async {
            while fake.asked_for(&log()).is_empty() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, asked).await.expect("the log is not asked for");
        let pid = Pid::from_raw(child.id().unwrap().try_into().unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
        let ended = tokio::time::timeout(PATIENCE, child.wait_with_output()).await;
        let ended = ended.unwrap_or_else(|_| panic!("{signal:?} does not end it")).unwrap();
        assert_eq!(ended.status.signal(), Some(signal.as_raw()), "{ended:?}");
    }
}
