//! What a pod wrote, from servers that do not say so, and on terminals that it wants to drive.

use std::os::unix::process::ExitStatusExt as _;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use perennial::cli::{Exit, Interrupt, Out, Session, run_from};
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::Notify;

use super::fake::{Buffer, Fake, POD, Reply, pod, session};

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

#[tokio::test]
async fn the_colours_of_a_log_end_with_it() {
    let concealed = "\x1b[8mconcealed";
    let whole = Reply::Text(200, "text/plain", concealed.to_owned());
    for (reply, exit) in [(whole, Exit::Done), (Reply::Stalls(concealed), Exit::Interrupted)] {
        let fake = Fake::default();
        fake.pods(&[pod("dev")]).reply(&log(), [reply]);
        let server = fake.serve().await;
        let interrupt = Arc::new(Notify::new());
        let session = Session { interrupt: Interrupt::Notify(Arc::clone(&interrupt)), ..session() };
        let printed = Buffer::default();
        let mut out = Out::captured(Box::new(printed.clone()), Box::new(printed.clone()), None).coloured();
        let arguments = ["perennial", "--server", &server, "pod", "logs", "-f", "dev"];
        let shown = async {
            while !printed.text().contains("concealed") {
                tokio::task::yield_now().await;
            }
            if exit == Exit::Interrupted {
                interrupt.notify_one();
            }
        };
        let both = async { tokio::join!(run_from(&arguments, session, &mut out), shown) };
        let (ended, ()) = tokio::time::timeout(PATIENCE, both).await.unwrap();
        assert_eq!((ended, printed.text()), (exit, format!("{concealed}\x1b[0m")));
    }
}
