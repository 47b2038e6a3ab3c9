//! What a pod wrote, over HTTP and on the command line.

use std::sync::Arc;
use std::time::Duration;

use axum::body::BodyDataStream;
use axum::http::StatusCode;
use futures::StreamExt as _;
use jiff::Timestamp;
use perennial::cli::{Exit, Interrupt};
use perennial::service::{Caller, NewToken, NewUser};
use perennial_core::access::{Role, Scope, UserName, Wanted};
use perennial_core::id::PodId;
use perennial_core::spec::{Backend, PodSpec, TenantId};
use tokio::sync::Notify;

use super::desk::{Desk, TOKEN};
use super::shell::{Buffer, Shell};
use crate::world::{World, small_spec};

/// Longest time for anything.
async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("it takes too long")
}

fn talking() -> PodSpec {
    let words = ["sh", "-c", "echo first; echo second >&2; sleep infinity"];
    PodSpec { command: Some(words.map(str::to_owned).to_vec()), ..small_spec(Backend::Overlay) }
}

#[tokio::test]
async fn sim_logs_are_what_the_pod_wrote_and_no_more() {
    let world = World::new(1);
    let desk = Desk::new(&world).await;
    let pod = desk.server.running("dev", talking()).await;
    world.engine.say(pod, "third").unwrap();
    let logs = async |query: &str| {
        let answer = desk.get(&format!("pods/{pod}/logs{query}")).await;
        assert_eq!(answer.status, StatusCode::OK, "{query}");
        assert_eq!(answer.header("content-type"), "text/plain; charset=utf-8");
        assert_eq!(answer.header("x-content-type-options"), "nosniff");
        String::from_utf8(answer.body.unwrap()).unwrap()
    };
    assert_eq!(logs("").await, "first\nsecond\nthird\n");
    assert_eq!(logs("?tail=1").await, "third\n");
    assert_eq!(logs("?tail=0").await, "");
    assert_eq!(logs("?since=1h").await, "first\nsecond\nthird\n");
    assert_eq!(logs("?since=2999-01-01T00:00:00Z&follow=false").await, "");
    let stamped = logs("?tail=1&timestamps=true").await;
    let (at, text) = stamped.split_once(' ').unwrap();
    assert_eq!((at.parse::<Timestamp>().is_ok(), text), (true, "third\n"), "{at}");
    for query in ["timestamps=1", "since=soon", "tail=-1", "follow=perhaps", "since=-1h", "tial=1"] {
        let answer = desk.get(&format!("pods/{pod}/logs?{query}")).await;
        assert_eq!(answer.problem(), "invalid-input", "{query}");
    }
}

#[tokio::test]
async fn sim_logs_of_a_pod_without_a_container_are_refused_and_told_why() {
    let world = World::new(2);
    let desk = Desk::new(&world).await;
    let pod = desk.server.running("dev", talking()).await;
    desk.server.succeed(desk.server.stop(pod).await).await;
    for query in ["", "?follow=true"] {
        let answer = desk.get(&format!("pods/{pod}/logs{query}")).await;
        assert_eq!((answer.status, answer.problem().as_str()), (StatusCode::CONFLICT, "no-container"));
    }
    world.engine.node_vanishes();
    assert_eq!(desk.get(&format!("pods/{pod}/logs")).await.problem(), "unavailable");
}

/// A log that is followed, and what came of it so far.
struct Followed {
    body: BodyDataStream,
    text: String,
}

impl Followed {
    async fn open(desk: &Desk, pod: PodId) -> Self {
        Self::open_as(desk, TOKEN, pod).await
    }

    async fn open_as(desk: &Desk, token: &str, pod: PodId) -> Self {
        let (parts, body) = desk.open_as(token, &format!("pods/{pod}/logs?follow=true"), &[]).await;
        assert_eq!(parts.status, StatusCode::OK);
        Self { body, text: String::new() }
    }

    /// Reads until this has come.
    async fn until(&mut self, text: &str) {
        while !self.text.contains(text) {
            let piece = in_time(self.body.next()).await.expect("the log goes on").unwrap();
            self.text.push_str(std::str::from_utf8(&piece).unwrap());
        }
    }

    /// What comes next, which is no piece: the end, or why it broke off.
    async fn ending(mut self) -> Option<String> {
        in_time(self.body.next()).await.map(|piece| piece.expect_err("another piece").to_string())
    }
}

#[tokio::test]
async fn sim_a_log_is_followed_until_the_container_ends_or_the_server_stops() {
    let world = World::new(4);
    let desk = Desk::new(&world).await;
    let pod = desk.server.running("dev", talking()).await;
    let mut followed = Followed::open(&desk, pod).await;
    followed.until("second\n").await;
    world.engine.say(pod, "said meanwhile").unwrap();
    followed.until("said meanwhile\n").await;
    desk.server.succeed(desk.server.pause(pod).await).await;
    assert_eq!(followed.text, "first\nsecond\nsaid meanwhile\n");
    assert_eq!(followed.ending().await, None);

    desk.server.succeed(desk.server.start(pod).await).await;
    let mut followed = Followed::open(&desk, pod).await;
    followed.until("second\n").await;
    // Whoever stops the server waits for its requests, and this one would not end.
    desk.stop.send(true).unwrap();
    let why = followed.ending().await;
    assert!(why.as_ref().is_some_and(|why| why.contains("the server stops")), "{why:?}");
}

#[tokio::test]
async fn sim_a_log_that_is_followed_breaks_off_when_the_token_is_revoked() {
    let world = World::new(6);
    let desk = Desk::new(&world).await;
    let pod = desk.server.running("dev", talking()).await;
    let (app, admin) = (&desk.server.app, Caller::admin());
    let name = UserName::parse("ann").unwrap();
    let new = NewUser { name: name.clone(), email: None, role: Role::User, password: None };
    app.user_create(&admin, new).await.unwrap();
    app.member_add(&admin, &TenantId::default_tenant(), &name).await.unwrap();
    let wanted = Wanted { scopes: [Scope::Read].into(), tenant: None, expires_at: None };
    let new = NewToken { user: Some(name), label: String::new(), wanted };
    let made = app.token_create(&admin, new).await.unwrap();
    let mut followed = Followed::open_as(&desk, &made.secret, pod).await;
    followed.until("second\n").await;
    app.token_revoke(&admin, made.token.id).await.unwrap();
    let why = followed.ending().await;
    assert!(why.as_ref().is_some_and(|why| why.contains("has not the rights any more")), "{why:?}");
}

#[tokio::test]
async fn sim_cli_a_log_that_is_followed_can_be_interrupted() {
    let world = World::new(5);
    let desk = Desk::new(&world).await;
    desk.server.running("dev", talking()).await;
    let shell = Shell::new(&desk).await;
    let (interrupt, printed) = (Arc::new(Notify::new()), Buffer::default());
    let typed = async {
        printed.shows("second\n").await;
        interrupt.notify_one();
    };
    let follows = shell.run_with(&["pod", "logs", "-f", "dev"], Interrupt::Notify(Arc::clone(&interrupt)), &printed);
    let (followed, ()) = in_time(async { tokio::join!(follows, typed) }).await;
    assert_eq!((followed.exit, followed.text(), followed.stderr.as_str()), (Exit::Interrupted, "first\nsecond\n", ""));
}

#[tokio::test]
async fn sim_cli_follows_a_log_until_the_container_ends() {
    let world = World::new(3);
    let desk = Desk::new(&world).await;
    let pod = desk.server.running("dev", talking()).await;
    let shell = Shell::new(&desk).await;
    let shown = shell.run(&["pod", "logs", "dev", "--tail", "1"]).await;
    assert_eq!((shown.exit, shown.text()), (Exit::Done, "second\n"));

    let stamped = shell.run(&["pod", "logs", "dev", "--tail=1", "-t"]).await;
    assert!(stamped.text().ends_with("Z second\n"), "{}", stamped.text());

    let printed = Buffer::default();
    let ends = async {
        printed.shows("second\n").await;
        world.engine.say(pod, "said meanwhile").unwrap();
        printed.shows("said meanwhile\n").await;
        desk.server.succeed(desk.server.pause(pod).await).await;
    };
    let follows = shell.run_with(&["pod", "logs", "-f", "dev"], Interrupt::Notify(Arc::default()), &printed);
    let (followed, ()) = in_time(async { tokio::join!(follows, ends) }).await;
    assert_eq!(
        (followed.exit, followed.text()),
        (Exit::Done, "first\nsecond\nsaid meanwhile\n"),
        "{}",
        followed.stderr
    );
    // A paused pod still has its container.
    let paused = shell.run(&["pod", "logs", "dev", "-n", "1"]).await;
    assert_eq!(paused.text(), "said meanwhile\n");

    let wrong = shell.run(&["pod", "logs", "dev", "--since", "soon"]).await;
    assert_eq!(wrong.exit, Exit::Invalid);
    assert!(wrong.stderr.contains("since: is neither a time nor how long ago"), "{}", wrong.stderr);
    assert_eq!(shell.run(&["pod", "logs", "nobody"]).await.exit, Exit::NotFound);
}
