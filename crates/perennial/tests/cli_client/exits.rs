//! Failures: messages, hints, exit codes.

use perennial::api::wire::Problem;
use perennial::cli::Exit;
use serde_json::{Value, json};

use super::fake::{Fake, POD, Reply, pod, problem, run_raw, session};

#[tokio::test]
async fn every_kind_of_problem_has_its_exit_code() {
    let table = [
        (400, "invalid-input", Exit::Invalid, 6),
        (422, "invalid-input", Exit::Invalid, 6),
        (401, "unauthenticated", Exit::Forbidden, 5),
        (403, "forbidden", Exit::Forbidden, 5),
        (404, "not-found", Exit::NotFound, 3),
        (409, "pod-name-taken", Exit::Conflict, 4),
        (412, "changed-meanwhile", Exit::Conflict, 4),
        (403, "quota-exceeded", Exit::Quota, 7),
        (429, "quota-exceeded", Exit::Quota, 7),
        (500, "internal", Exit::Failed, 1),
        (503, "unavailable", Exit::Unavailable, 8),
    ];
    for (status, code, exit, number) in table {
        let fake = Fake::default();
        fake.reply("GET /api/v1/pods", [Reply::Json(status, problem(status, code, "it is so"))]);
        let ran = fake.run(&["pod", "ls"]).await;
        assert_eq!((ran.exit, ran.exit.code()), (exit, number), "{status} {code}");
        assert!(ran.stderr.starts_with("error: it is so"), "{}", ran.stderr);
        assert_eq!(ran.stdout, "");
    }
}

#[tokio::test]
async fn a_problem_is_shown_with_field_and_hint() {
    let refused = Problem {
        status: 400,
        code: "invalid-input".to_owned(),
        detail: "is out of range".to_owned(),
        field: Some("resources.memory".to_owned()),
        hint: Some("use 6Mi to 16Ti".to_owned()),
        ..Problem::default()
    };
    let fake = Fake::default();
    fake.reply("POST /api/v1/pods", [Reply::Json(400, serde_json::to_string(&refused).unwrap())]);
    let ran = fake.run(&["pod", "create", "dev", "--image", "a", "--memory", "1"]).await;
    assert_eq!(ran.stderr, "error: resources.memory: is out of range\n\nhint: use 6Mi to 16Ti\n");
    assert_eq!(ran.exit, Exit::Invalid);
}

/// What a program reads at the end of standard error.
fn told(stderr: &str) -> Value {
    serde_json::from_str(stderr.lines().last().unwrap_or_default()).unwrap_or_else(|e| panic!("{e}: {stderr}"))
}

#[tokio::test]
async fn programs_are_told_problems_whoever_refused() {
    let refused = problem(409, "pod-name-taken", "there is one");
    let fake = Fake::default();
    fake.reply("GET /api/v1/pods", [Reply::Json(409, refused.clone())]);
    let ran = fake.run(&["pod", "ls", "-o", "json"]).await;
    assert_eq!((ran.exit, ran.stdout.as_str()), (Exit::Conflict, ""));
    assert_eq!(told(&ran.stderr), serde_json::from_str::<Value>(&refused).unwrap());
    let ran = fake.run(&["pod", "ls", "-o", "yaml"]).await;
    assert!(ran.stderr.contains("code: pod-name-taken\n"), "{}", ran.stderr);

    // Before any server is asked.
    let early = async |arguments: &[&str]| {
        let ran = run_raw(&[&["perennial"], arguments].concat(), None, session()).await;
        (ran.exit, told(&ran.stderr), ran.stdout)
    };
    let (exit, problem, stdout) = early(&["pod", "ls", "--server", "nonsense", "--output=json"]).await;
    assert_eq!((exit, stdout.as_str()), (Exit::Usage, ""));
    assert_eq!((&problem["code"], &problem["status"]), (&json!("usage"), &json!(400)));
    assert_eq!(problem["type"], "urn:perennial:problem:usage");
    let (exit, problem, _) = early(&["pod", "ls", "-ojson", "--token-file", "/nonexistent/token"]).await;
    assert_eq!((exit, &problem["code"]), (Exit::Forbidden, &json!("forbidden")));
    for wrong in
        [&["pod", "stpo", "-o", "json"][..], &["-o=json", "pod", "create"], &["pod", "ls", "--bad", "-o", "json"]]
    {
        let (exit, problem, _) = early(wrong).await;
        assert_eq!((exit, &problem["code"]), (Exit::Usage, &json!("usage")), "{wrong:?}");
        let detail = problem["detail"].as_str().unwrap();
        assert!(!detail.starts_with("error:") && !detail.contains("Usage:"), "{detail}");
        assert!(problem["hint"].as_str().unwrap().contains("Usage: perennial"), "{problem}");
    }
    // What is a pod's own command is no option of ours.
    let ran = run_raw(&["perennial", "pod", "creat", "--", "-o", "json"], None, session()).await;
    assert!(ran.stderr.starts_with("error: unrecognized subcommand"), "{}", ran.stderr);
}

#[tokio::test]
async fn an_internal_error_names_the_request() {
    let fake = Fake::default();
    fake.reply("GET /api/v1/pods", [Reply::Json(500, problem(500, "internal", "internal error"))]);
    assert_eq!(fake.run(&["pod", "ls"]).await.stderr, "error: internal error (request req-1)\n");
}

#[tokio::test]
async fn a_server_that_does_not_run_is_reported_at_once() {
    // A port that was just free: nobody listens on it.
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let server = format!("http://{address}");
    let ran = run_raw(&["perennial", "--server", &server, "pod", "ls"], None, session()).await;
    assert_eq!(ran.exit, Exit::Unavailable);
    assert!(ran.stderr.starts_with(&format!("error: cannot connect to {server}/: ")), "{}", ran.stderr);
    assert!(
        ran.stderr.ends_with("\n\nhint: is the server running? start it with: perennial serve\n"),
        "{}",
        ran.stderr
    );
}

#[tokio::test]
async fn an_answer_of_something_else_is_not_a_missing_pod() {
    let fake = Fake::default();
    fake.reply("GET /api/v1/pods", [Reply::Text(404, "text/html", "<h1>nginx</h1>".to_owned())]);
    let ran = fake.run(&["pod", "show", "dev"]).await;
    assert_eq!(ran.exit, Exit::Unavailable);
    assert!(ran.stderr.contains("is not an answer of Perennial's API"), "{}", ran.stderr);
}

#[tokio::test]
async fn an_answer_that_is_not_understood_says_where() {
    let fake = Fake::default();
    fake.reply("GET /api/v1/pods", [Reply::Json(200, r#"{"items":[{"id":7}],"next":null}"#.to_owned())]);
    let ran = fake.run(&["pod", "ls"]).await;
    assert_eq!(ran.exit, Exit::Failed);
    assert!(ran.stderr.contains("items[0].id: invalid type"), "{}", ran.stderr);
}

#[tokio::test]
async fn names_that_mean_nothing_or_too_much() {
    let fake = Fake::default();
    fake.pods(&[]);
    let ran = fake.run(&["pod", "stop", "dev"]).await;
    assert_eq!(ran.exit, Exit::NotFound);
    assert_eq!(
        ran.stderr,
        "error: pod \"dev\" not found\n\nhint: perennial pod ls --all also lists archived and deleted ones\n"
    );
    assert!(fake.asked_for("POST").is_empty());

    let mut theirs = pod("dev");
    theirs.tenant = "other".to_owned();
    let fake = Fake::default();
    fake.pods(&[pod("dev"), theirs]);
    let ran = fake.run(&["pod", "stop", "dev"]).await;
    assert_eq!(ran.exit, Exit::Conflict);
    assert!(ran.stderr.contains(&format!("{POD}  running, tenant other")), "{}", ran.stderr);
    assert!(fake.asked_for("POST").is_empty());
}

#[tokio::test]
async fn tokens() {
    let directory = tempfile::tempdir().unwrap();
    let data_dir = directory.path().to_str().unwrap();
    let mut without = session();
    without.token = None;
    let fake = Fake::default();
    let ran = fake.run_with(&["--data-dir", data_dir, "pod", "ls"], None, without).await;
    assert_eq!(ran.exit, Exit::Forbidden);
    assert!(ran.stderr.contains("cannot read the token in") && ran.stderr.contains("\n\nhint: "), "{}", ran.stderr);
    assert!(fake.asked().is_empty());

    std::fs::write(directory.path().join("admin-token"), "from-file\n").unwrap();
    fake.pods(&[]);
    let mut without = session();
    without.token = None;
    fake.run_with(&["--data-dir", data_dir, "pod", "ls"], None, without).await;
    fake.run(&["pod", "ls"]).await;
    let file = directory.path().join("admin-token");
    fake.run(&["--token-file", file.to_str().unwrap(), "pod", "ls"]).await;
    let sent: Vec<String> = fake.asked().iter().map(|asked| asked.headers["authorization"].clone()).collect();
    assert_eq!(sent, ["Bearer from-file", "Bearer secret", "Bearer from-file"]);
}

#[tokio::test]
async fn usage() {
    let ran = run_raw(&["perennial", "pood"], None, session()).await;
    assert_eq!(ran.exit, Exit::Usage);
    assert!(ran.stderr.starts_with("error: unrecognized subcommand 'pood'"), "{}", ran.stderr);
    assert!(ran.stderr.contains("'pod'"), "{}", ran.stderr);

    let ran = run_raw(&["perennial", "pod", "stpo", "dev"], None, session()).await;
    assert_eq!(ran.exit, Exit::Usage);
    assert!(ran.stderr.contains("'stop'"), "{}", ran.stderr);

    let ran = run_raw(&["perennial", "--help"], None, session()).await;
    assert_eq!((ran.exit, ran.stderr.as_str()), (Exit::Done, ""));
    for line in ["Exit codes:", "  130  interrupted", "doctor", "completions"] {
        assert!(ran.stdout.contains(line), "{line}");
    }

    for server in ["localhost:7117", "ftp://x", "nonsense"] {
        let ran = run_raw(&["perennial", "--server", server, "pod", "ls"], None, session()).await;
        assert_eq!(ran.exit, Exit::Usage, "{server}");
    }
    for wrong in [
        &["pod", "create", "dev"][..],
        &["pod", "create", "dev", "--image", "a", "--memory", "512MB"],
        &["pod", "create", "dev", "--image", "a", "--port", "0"],
        &["pod", "create", "dev", "--image", "a", "--env", "A"],
        &["pod", "stop", "dev", "--timeout", "soon"],
        &["pod", "stop", "dev", "--no-wait", "--timeout", "1s"],
        &["pod", "ls", "--output", "xml"],
    ] {
        let fake = Fake::default();
        assert_eq!(fake.run(wrong).await.exit, Exit::Usage, "{wrong:?}");
        assert!(fake.asked().is_empty());
    }
}

#[tokio::test]
async fn completions_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let ran = run_raw(&["perennial", "completions", shell], None, session()).await;
        assert_eq!(ran.exit, Exit::Done);
        assert!(ran.stdout.contains("undelete"), "{shell}");
    }
}
