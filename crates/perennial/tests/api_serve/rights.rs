//! Users and tokens on the real program: the command line makes and uses them, and nothing that is kept has a secret in it.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::Stdio;

use perennial::cli::Exit;
use serde_json::{Value, json};

use crate::tls::{Child, program};
use crate::{Client, command};

const PASSWORD: &str = "correct horse battery staple";

/// Every file below a directory.
fn files(directory: &Path) -> Vec<std::path::PathBuf> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(files(&path));
        } else {
            all.push(path);
        }
    }
    all
}

fn holds(path: &Path, secret: &str) -> bool {
    let bytes = std::fs::read(path).unwrap_or_default();
    bytes.windows(secret.len()).any(|window| window == secret.as_bytes())
}

#[test]
fn secrets_are_in_no_log_and_no_file() {
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join("data");
    let mut starts = program(&data, &["--listen", "127.0.0.1:0", "--log", "json"]);
    starts.env("RUST_LOG", "trace");
    let mut running = Child(starts.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let server = &mut running.0;
    let mut ready = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut ready).unwrap();
    let mut errors = server.stderr.take().unwrap();
    // Read all the while: a full pipe would hold the server up.
    let log = std::thread::spawn(move || {
        let mut log = String::new();
        errors.read_to_string(&mut log).unwrap();
        log
    });
    let ready: Value = serde_json::from_str(&ready).unwrap();
    let url = ready["listening"].as_str().unwrap().to_owned();
    let admin = Client::at(&url, &data);
    let password = home.path().join("password");
    std::fs::write(&password, format!("{PASSWORD}\n")).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let token = runtime.block_on(async {
        let run = async |words: &[&str]| {
            let (exit, text) = command(&url, &data, words, None).await;
            assert_eq!(exit, Exit::Done, "{words:?}: {text}");
            text
        };
        let password = password.to_str().unwrap();
        let made = run(&["user", "create", "ann", "--email", "ann@example.org", "--password-file", password]).await;
        assert!(made.contains("ann@example.org") && made.contains("set"), "{made}");
        run(&["tenant", "create", "acme"]).await;
        assert_eq!(run(&["tenant", "add", "acme", "ann"]).await, "ann\n");
        let tenants = run(&["tenant", "ls"]).await;
        assert!(tenants.contains("acme") && tenants.contains("default"), "{tenants}");
        let printed = run(&["token", "create", "what CI uses", "--user", "ann", "--expires", "12h"]).await;
        let token = printed.lines().last().unwrap().to_owned();
        assert!(token.starts_with("prn_"), "{printed}");

        let ann = Client { token: token.clone(), ..Client::at(&url, &data) };
        let me = ann.get("me").await;
        assert_eq!((&me["user"], &me["tenants"]), (&json!("ann"), &json!(["acme"])), "{me}");
        ann.done(&ann.post("pods", json!({"name": "dev", "image": "debian:12"})).await).await;
        assert_eq!(ann.get("system").await["code"], "forbidden");
        // A token that is wrong is not written down either.
        let guess = Client { token: format!("{token}x"), ..Client::at(&url, &data) };
        assert_eq!(guess.get("me").await["code"], "unauthorized");

        let listed = run(&["token", "ls", "--user", "ann"]).await;
        assert!(listed.contains("what CI uses") && listed.contains("read,operate"), "{listed}");
        let id = me["token"]["id"].as_str().unwrap();
        assert!(run(&["token", "revoke", id]).await.contains("is revoked"));
        assert_eq!(ann.get("me").await["code"], "unauthorized");
        assert!(run(&["whoami"]).await.contains("the administrator's token"));
        assert!(run(&["user", "disable", "ann"]).await.contains("disabled"));
        assert!(run(&["user", "enable", "ann"]).await.contains("enabled"));
        assert!(run(&["tenant", "members", "acme"]).await.contains("ann"));
        assert!(run(&["tenant", "remove", "acme", "ann"]).await.contains("no member"));
        assert!(run(&["user", "ls"]).await.contains("ann"));
        assert!(run(&["user", "rm", "ann"]).await.contains("removed"));
        let gone = command(&url, &data, &["user", "show", "ann"], None).await;
        assert_eq!(gone.0, Exit::NotFound, "{}", gone.1);
        token
    });
    let pid = rustix::process::Pid::from_raw(i32::try_from(server.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let log = log.join().unwrap();
    assert!(log.contains("let in") && log.contains("token:"), "the log tells who asked");
    let all = files(&data);
    assert!(all.iter().any(|path| holds(path, "ann@example.org")), "the search finds what is there");
    for secret in [&token[..], &token[4..], PASSWORD, &admin.token] {
        assert!(!log.contains(secret), "a secret is in the log");
        for path in all.iter().filter(|path| !path.ends_with("admin-token")) {
            assert!(!holds(path, secret), "a secret is in {}", path.display());
        }
    }
}
