//! What a pod wrote, over HTTP and on the command line.

use axum::http::StatusCode;
use jiff::Timestamp;
use perennial::cli::Exit;
use perennial_core::spec::{Backend, PodSpec};

use crate::desk::Desk;
use crate::shell::Shell;
use crate::world::{World, small_spec};

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

    let ends = async {
        world.engine.say(pod, "said meanwhile").unwrap();
        desk.server.succeed(desk.server.pause(pod).await).await;
    };
    let (followed, ()) = tokio::join!(shell.run(&["pod", "logs", "-f", "dev"]), ends);
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
