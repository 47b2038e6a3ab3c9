//! The audit trail: once, as it grows, across broken connections.

use std::io::{self, ErrorKind, Write};
use std::sync::Arc;

use perennial::api::wire::{Event, List};
use perennial::cli::{Exit, Interrupt, Out, run_from};
use tokio::sync::Notify;

use super::fake::{Buffer, Fake, POD, Reply, event, pod, problem, session};

const STREAM: &str = "GET /api/v1/events/stream";

fn list(ids: std::ops::RangeInclusive<i64>) -> List<Event> {
    List { items: ids.map(|id| event(id, &format!("message {id}"))).collect(), next: None }
}

fn stream(ids: &[i64]) -> Reply {
    let frames = ids.iter().map(|id| {
        let data = serde_json::to_string(&event(*id, &format!("message {id}"))).unwrap();
        format!("id: {id}\nevent: pod.stopped\ndata: {data}\n\n")
    });
    Reply::Text(200, "text/event-stream", format!(": ready\n\n{}", frames.collect::<String>()))
}

/// Ends a stream for good.
fn end() -> Reply {
    Reply::Json(403, problem(403, "forbidden", "token revoked"))
}

#[tokio::test]
async fn the_last_events_in_every_form() {
    let fake = Fake::default();
    fake.on("GET /api/v1/events", [list(1..=5)]);
    let ran = fake.run(&["events", "-n", "2"]).await;
    assert_eq!(
        ran.stdout,
        format!(
            "2026-01-10T12:00:00Z       4  pod.stopped  message 4  by admin  pod {POD}\n\
             2026-01-10T12:00:00Z       5  pod.stopped  message 5  by admin  pod {POD}\n"
        )
    );
    assert_eq!(fake.asked()[0].what, "GET /api/v1/events?after=0&limit=500");
    let ran = fake.run(&["events", "-n", "1", "-o", "json"]).await;
    assert_eq!(ran.json(), serde_json::to_value([event(5, "message 5")]).unwrap());
}

#[tokio::test]
async fn following_resumes_after_the_last_event_that_was_shown() {
    let fake = Fake::default();
    fake.on("GET /api/v1/events", [list(1..=2)]);
    // The second connection repeats an event, as a server may after a resume.
    fake.reply(STREAM, [stream(&[3, 4]), Reply::Break, stream(&[4, 5]), end()]);
    let ran = fake.run(&["events", "--follow", "-o", "json"]).await;
    assert_eq!(ran.exit, Exit::Forbidden, "{}", ran.stderr);
    let shown: Vec<i64> = ran.stdout.lines().map(|line| serde_json::from_str::<Event>(line).unwrap().id).collect();
    assert_eq!(shown, [1, 2, 3, 4, 5]);
    let resumed: Vec<String> =
        fake.asked_for(STREAM).iter().map(|asked| asked.headers["last-event-id"].clone()).collect();
    assert_eq!(resumed, ["2", "4", "4", "5"]);
    assert!(ran.stderr.contains("the stream of events ended; connecting again\n"), "{}", ran.stderr);
}

#[tokio::test]
async fn following_one_pod_asks_for_its_events_only() {
    let fake = Fake::default();
    fake.pods(&[pod("dev")]).on(&format!("GET /api/v1/pods/{POD}/events"), [list(7..=7)]).reply(STREAM, [end()]);
    let ran = fake.run(&["pod", "events", "dev", "--follow"]).await;
    assert!(ran.stdout.contains("message 7"));
    assert_eq!(fake.asked_for(STREAM)[0].what, format!("{STREAM}?pod={POD}"));
    fake.run(&["events", "--pod", "dev", "--follow"]).await;
    assert_eq!(fake.asked_for(STREAM)[1].what, format!("{STREAM}?pod={POD}"));
}

#[tokio::test]
async fn a_server_that_stays_away_ends_following() {
    let fake = Fake::default();
    fake.on("GET /api/v1/events", [list(1..=1)]);
    fake.reply(STREAM, [Reply::Json(503, problem(503, "unavailable", "shutting down"))]);
    let ran = fake.run(&["events", "--follow"]).await;
    assert_eq!(ran.exit, Exit::Unavailable);
    assert_eq!(ran.stderr, "shutting down; connecting again\nerror: shutting down\n");
    assert_eq!(fake.asked_for(STREAM).len(), 1 + 3);
}

#[tokio::test]
async fn ctrl_c_ends_following_without_a_word() {
    let fake = Fake::default();
    fake.on("GET /api/v1/events", [list(1..=1)]).reply(STREAM, [stream(&[])]);
    let (mut session, ctrl_c) = (session(), Arc::new(Notify::new()));
    session.interrupt = Interrupt::Notify(Arc::clone(&ctrl_c));
    ctrl_c.notify_one();
    let ran = fake.run_with(&["events", "--follow"], None, session).await;
    assert_eq!((ran.exit, ran.stderr.as_str()), (Exit::Interrupted, ""));
}

/// A reader that went away.
struct Closed;

impl Write for Closed {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(ErrorKind::BrokenPipe.into())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_broken_pipe_ends_quietly() {
    let stderr = Buffer::default();
    let mut out = Out::captured(Box::new(Closed), Box::new(stderr.clone()), None);
    let exit = run_from(&["perennial", "completions", "bash"], session(), &mut out).await;
    assert_eq!((exit, stderr.text().as_str()), (Exit::Done, ""));
}
