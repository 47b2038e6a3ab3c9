//! `perennial service`: files that are looked at without a server, and what is sent and shown.

use std::path::Path;
use std::process::{Command, Output};

use perennial::api::wire::{
    Mistake, Plan, PlanVolume, Problem, Service, ServiceList, ServiceProfile, ServiceRemoved, ServiceSource,
};
use perennial::cli::Exit;
use serde_json::{Value, json};

use super::fake::{Fake, Reply, condition, time};

const GOOD: &str = "name = \"mine\"\n[[plans]]\nname = \"a\"\nimage = \"debian:12\"\n";
const BAD: &str = "name = \"mine\"\n[[plans]]\nname = \"a\"\nimag = \"debian:12\"\nports = [0]\n";

/// The real program, without a server, a token or a home.
fn validate(more: &[&str], files: &[&Path]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_perennial"));
    command.env_clear().args(["service", "validate"]).args(more).args(files).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn files_are_validated_without_a_server_with_all_their_mistakes() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let (good, bad, json_file, missing) = (path("good.toml"), path("bad.toml"), path("good.json"), path("none.toml"));
    std::fs::write(&good, GOOD).unwrap();
    std::fs::write(&bad, BAD).unwrap();
    std::fs::write(&json_file, "{\"name\":\"mine\",\"plans\":[{\"name\":\"a\",\"image\":\"b\"}]}").unwrap();
    for file in [&good, &json_file] {
        let ran = validate(&[], &[file]);
        assert_eq!(ran.status.code(), Some(0), "{ran:?}");
        assert_eq!(text(&ran.stdout), format!("{}: service mine is good (a)\n", file.display()));
    }
    let ran = validate(&[], &[&good, &bad]);
    assert_eq!(ran.status.code(), Some(6), "{ran:?}");
    let file = bad.display();
    let told = text(&ran.stdout);
    let mut lines = told.lines().filter(|line| !line.starts_with("    "));
    assert_eq!(lines.next(), Some(&*format!("{}: service mine is good (a)", good.display())));
    assert_eq!(lines.next(), Some(&*format!("{file}:2:1: plans[0].image: is missing")));
    assert_eq!(lines.next(), Some(&*format!("{file}:4:1: plans[0].imag: is not a known key")));
    assert_eq!(lines.next(), Some(&*format!("{file}:5:10: plans[0].ports[0]: 0 is out of range")));
    assert_eq!(lines.next(), None);
    assert!(told.contains("\n    did you mean image? "), "{told}");
    assert_eq!(text(&ran.stderr), "error: 1 of 2 files refused\n");

    let ran = validate(&["-o", "json"], &[&good, &bad]);
    assert_eq!((ran.status.code(), text(&ran.stderr)), (Some(6), ""));
    let reports: Value = serde_json::from_slice(&ran.stdout).unwrap();
    assert_eq!((&reports[0]["valid"], &reports[0]["plans"]), (&json!(true), &json!(["a"])));
    assert_eq!((&reports[1]["valid"], &reports[1]["service"]), (&json!(false), &Value::Null));
    let first = &reports[1]["mistakes"][0];
    assert_eq!((&first["line"], &first["column"], &first["kind"]), (&json!(2), &json!(1), &json!("missing")));
    assert_eq!(first["field"], "plans[0].image");

    // A file that is not there is told, and the others are looked at all the same.
    let ran = validate(&[], &[&missing, &good]);
    assert_eq!(ran.status.code(), Some(3), "{ran:?}");
    assert!(text(&ran.stderr).contains("none.toml") && text(&ran.stdout).contains("is good"), "{ran:?}");
    assert_eq!(validate(&[], &[&missing, &bad]).status.code(), Some(6));
    assert_eq!(validate(&[], &[directory.path()]).status.code(), Some(1));
    assert_eq!(validate(&[], &[]).status.code(), Some(2));
}

fn service(source: ServiceSource) -> Service {
    let volume = PlanVolume {
        name: "n8n-data".to_owned(),
        mount_path: "/home/node/.n8n".to_owned(),
        size: Some("250Mi".to_owned()),
        size_bytes: Some(250 << 20),
        storage_class: None,
        access_mode: perennial::api::wire::AccessMode::ReadWriteOnce,
    };
    let plan = Plan {
        name: "basic".to_owned(),
        title: "Basic".to_owned(),
        description: String::new(),
        image: "n8n:1".to_owned(),
        profile: ServiceProfile::Declared,
        volumes: vec![volume],
        cpus: None,
        memory: Some(512 << 20),
        memory_reservation: None,
        disk: Some(250 << 20),
    };
    let is_stored = source == ServiceSource::Database;
    Service {
        name: "n8n".to_owned(),
        title: "n8n".to_owned(),
        description: "Workflows.".to_owned(),
        revision: "0123456789abcdef".to_owned(),
        source,
        file: (source == ServiceSource::File).then(|| "n8n.toml".to_owned()),
        changed_by: is_stored.then(|| "admin".to_owned()),
        changed_at: is_stored.then(|| time("2026-01-01T00:00:00Z")),
        plans: vec![plan],
        conditions: Vec::new(),
        definition: None,
    }
}

#[tokio::test]
async fn services_are_listed_and_shown_in_every_form() {
    let fake = Fake::default();
    let list = ServiceList { items: vec![service(ServiceSource::Shipped)], conditions: vec![condition()] };
    fake.on("GET /api/v1/services", [list.clone()]);
    fake.on("GET /api/v1/services/n8n", [service(ServiceSource::Database)]);
    let ran = fake.run(&["service", "ls"]).await;
    let mut lines = ran.stdout.lines();
    assert_eq!(lines.next(), Some("SERVICE  TITLE  PLANS  SOURCE   REVISION"));
    assert_eq!(lines.next(), Some("n8n      n8n    basic  shipped  0123456789abcdef"));
    assert!(lines.next().is_some_and(|line| line.contains(&condition().message)), "{}", ran.stdout);
    let ran = fake.run(&["service", "ls", "-o", "json"]).await;
    assert_eq!(ran.json(), serde_json::to_value(&list).unwrap());
    let ran = fake.run(&["service", "show", "n8n"]).await;
    for part in ["changed by", "Workflows.", "/home/node/.n8n 250Mi", "512.0 MiB", "n8n:1"] {
        assert!(ran.stdout.contains(part), "{part}: {}", ran.stdout);
    }
    let ran = fake.run(&["service", "show", "n8n", "-o", "yaml"]).await;
    assert!(ran.stdout.contains("source: database\n"), "{}", ran.stdout);
    let ran = fake.run(&["service", "show", "n8n", "--toml"]).await;
    assert_eq!(ran.exit, Exit::Forbidden, "{}", ran.stderr);
    assert_eq!(fake.run(&["service", "show", "none"]).await.exit, Exit::NotFound);
}

#[tokio::test]
async fn files_are_sent_as_they_are_after_all_of_them_were_looked_at() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (good, bad) = (path("good.toml", GOOD), path("bad.toml", BAD));
    let fake = Fake::default();
    fake.on("PUT /api/v1/services/mine", [Service { name: "mine".to_owned(), ..service(ServiceSource::Database) }]);
    let ran = fake.run(&["service", "apply", &good, &bad]).await;
    assert_eq!(ran.exit, Exit::Invalid);
    assert!(ran.stderr.contains("nothing was sent") && ran.stderr.contains("bad.toml:2:1"), "{}", ran.stderr);
    assert!(fake.asked().is_empty());

    let ran = fake.run(&["service", "apply", &good, "--if-match", "abc"]).await;
    assert_eq!((ran.exit, ran.stdout.as_str()), (Exit::Done, "service mine is at revision 0123456789abcdef\n"));
    let asked = &fake.asked_for("PUT")[0];
    assert_eq!(
        (asked.headers["content-type"].as_str(), asked.headers["if-match"].as_str()),
        ("application/toml", "\"abc\"")
    );
    assert_eq!(asked.body, Some(json!(GOOD)), "comments and all");

    // What the server refuses is shown with everything it said.
    let refused = Fake::default();
    let mistake = Mistake {
        line: Some(4),
        column: Some(1),
        kind: "unknown-key".to_owned(),
        field: Some("plans[0].image".to_owned()),
        problem: "is not known".to_owned(),
        hint: None,
    };
    let problem = Problem {
        status: 400,
        code: "invalid-service".to_owned(),
        detail: "it is not good".to_owned(),
        mistakes: vec![mistake],
        ..Problem::default()
    };
    let text = serde_json::to_string(&problem).unwrap();
    refused.reply("PUT /api/v1/services/mine", [Reply::Json(400, text)]);
    let ran = refused.run(&["service", "apply", &good]).await;
    assert_eq!(ran.exit, Exit::Invalid);
    assert!(ran.stderr.contains("4:1: plans[0].image: is not known"), "{}", ran.stderr);
    let ran = refused.run(&["service", "apply", &good, "-o", "json"]).await;
    let told: Value = serde_json::from_str(&ran.stderr).unwrap();
    assert_eq!(told["mistakes"][0]["line"], 4);
}

#[tokio::test]
async fn a_removed_service_says_what_is_in_force_now() {
    let fake = Fake::default();
    let removed = |service: Option<Service>| ServiceRemoved { name: "n8n".to_owned(), service };
    let file = removed(Some(service(ServiceSource::File)));
    let shipped = removed(Some(service(ServiceSource::Shipped)));
    fake.on("DELETE /api/v1/services/n8n", [file, shipped, removed(None)]);
    let told = async || fake.run(&["service", "rm", "n8n", "--if-match", "abc"]).await.stdout;
    assert_eq!(told().await, "service n8n is removed from the database; n8n.toml is in force again\n");
    assert_eq!(told().await, "service n8n is removed from the database; what is shipped is in force again\n");
    assert_eq!(told().await, "service n8n is removed\n");
    assert!(fake.asked_for("DELETE").iter().all(|asked| asked.headers["if-match"] == "\"abc\""));
}
