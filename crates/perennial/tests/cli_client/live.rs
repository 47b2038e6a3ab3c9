//! A snapshot compared with its pod as it is.

use std::sync::Arc;
use std::time::Duration;

use perennial::api::wire::{FileChange, FileDifference, LiveDiff, Loss};
use perennial::cli::{Exit, Session};
use tokio::sync::Notify;

use super::fake::{Fake, Reply, SNAPSHOT, now, session};

const DIFF: [&str; 4] = ["snapshot", "diff", SNAPSHOT, "live"];

fn place() -> String {
    format!("GET /api/v1/snapshots/{SNAPSHOT}/diff/live")
}

fn found(paths: &[&str], not_compared: &[&str]) -> LiveDiff {
    let difference = |path: &&str| FileDifference {
        path: (*path).to_owned(),
        path_bytes: None,
        change: FileChange::Removed,
        metadata: false,
        before: None,
        after: None,
    };
    let loss = |path: &&str| Loss { path: (*path).to_owned(), reason: "it is locked".to_owned() };
    LiveDiff {
        items: paths.iter().map(difference).collect(),
        next: None,
        looked_at: now(),
        not_compared: not_compared.iter().map(loss).collect(),
    }
}

#[tokio::test]
async fn a_look_at_a_pod_may_take_longer_than_a_server_may_be_silent() {
    let (fake, go) = (Fake::default(), Arc::new(Notify::new()));
    let answer = serde_json::to_string(&found(&["/srv/a"], &[])).unwrap();
    fake.reply(&place(), [Reply::Held(answer, Arc::clone(&go))]).reply("GET /api/v1/pods", [Reply::Silence]);
    let impatient = || Session { silence: Duration::from_millis(20), ..session() };
    let meanwhile = async {
        while fake.asked_for(&place()).is_empty() {
            tokio::task::yield_now().await;
        }
        // Asked later, and given up.
        let ran = fake.run_with(&["pod", "ls"], None, impatient()).await;
        assert_eq!(ran.exit, Exit::Unavailable, "{}", ran.stderr);
        assert!(ran.stderr.contains("no answer from"), "{}", ran.stderr);
        go.notify_one();
    };
    let (ran, ()) = tokio::join!(fake.run_with(&DIFF, None, impatient()), meanwhile);
    assert_eq!((ran.exit, ran.stdout.as_str(), ran.stderr.as_str()), (Exit::Failed, "- /srv/a\n", ""));
    assert_eq!(fake.asked_for(&place()).len(), 1);
}

/// The server would look at the pod again from the beginning.
#[tokio::test]
async fn a_look_whose_connection_broke_is_not_asked_for_again() {
    let fake = Fake::default();
    fake.reply(&place(), [Reply::Break]);
    let ran = fake.run(&DIFF).await;
    assert_eq!(ran.exit, Exit::Unavailable, "{}", ran.stderr);
    assert_eq!(fake.asked_for(&place()).len(), 1);
}
