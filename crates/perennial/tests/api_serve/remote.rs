//! A server whose repositories are in a real S3: what it cannot reach it waits for, and nothing is lost meanwhile.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use perennial::config::{Config, ConfigError, EngineKind, ServeArgs};
use perennial::serve::{Running, ServeError};
use serde_json::{Value, json};

use crate::s3::{CREDENTIALS, S3};
use crate::{Client, command};

fn config(data: &Path, location: &str, env_file: PathBuf) -> Config {
    let args = ServeArgs {
        listen: Some(([127, 0, 0, 1], 0).into()),
        engine: Some(EngineKind::Sim),
        repository: Some(location.to_owned()),
        repository_env_file: Some(env_file),
        ..ServeArgs::default()
    };
    Config::load(&args, Some(data)).unwrap()
}

fn write_credentials(path: &Path, secret: &str) {
    std::fs::write(path, format!("AWS_ACCESS_KEY_ID={}\nAWS_SECRET_ACCESS_KEY={secret}\n", CREDENTIALS[0].1)).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

async fn check(client: &Client) -> Value {
    let system = client.get("system").await;
    system["checks"].as_array().unwrap().iter().find(|c| c["name"] == "repository").unwrap().clone()
}

/// Waits until an unfinished operation is tried again, and tells why it is.
async fn trouble(client: &Client, pod: &str, answer: &Value) -> String {
    let operation = format!("operations/{}?wait=1s", answer["operation"]["id"].as_str().unwrap());
    loop {
        let conditions = client.get(&format!("pods/{pod}")).await["conditions"].clone();
        if let Some(found) = conditions.as_array().unwrap().iter().find(|c| c["type"] == "Retrying") {
            return found["message"].to_string();
        }
        let shown = client.get(&operation).await;
        assert!(matches!(shown["state"].as_str(), Some("pending" | "running")), "{shown}");
    }
}

fn restic(repository: &str, key: &str, words: &[&str]) -> String {
    let mut restic = Command::new("restic");
    restic.args(["--no-cache", "-r", repository]).args(words).env("RESTIC_PASSWORD", key).envs(CREDENTIALS);
    let output = restic.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_on_a_real_s3_stops_and_starts_pods_and_waits_for_a_store_that_is_gone() {
    let Some(service) = S3::start() else { return };
    let home = tempfile::tempdir().unwrap();
    let (data, env_file) = (home.path().join("data"), home.path().join("repository.env"));
    let location = format!("{}/all pods", service.address);

    // What is missing is told before anything is made.
    std::fs::write(&env_file, "").unwrap();
    std::fs::set_permissions(&env_file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let config = config(&data, &location, env_file.clone());
    match Running::start(&config).await {
        Err(ServeError::Config(ConfigError::Value { key: "AWS_ACCESS_KEY_ID", .. })) => {}
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("a server without credentials started"),
    }
    assert!(!data.exists());

    write_credentials(&env_file, CREDENTIALS[1].1);
    let server = Running::start(&config).await.unwrap();
    let client = Client::of(&server);
    let created = client.post("pods", json!({"name": "dev", "image": "debian:12"})).await;
    client.done(&created).await;
    let pod = created["pod"]["id"].as_str().unwrap();
    let upper = |set: u32| data.join(format!("storage/sim/pods/{pod}/s{set}/etc/upper"));
    std::fs::write(upper(1).join("note"), "kept").unwrap();
    assert_eq!(check(&client).await["status"], "ok");

    // The store is gone while the pod is to stop: the data stays, the operation says why, and ends when it is back.
    service.run("kill");
    let stopping = client.post(&format!("pods/{pod}/stop"), json!({})).await;
    let problem = trouble(&client, pod, &stopping).await;
    assert!(problem.contains("s3:") && !problem.contains(CREDENTIALS[1].1), "{problem}");
    assert_eq!(std::fs::read_to_string(upper(1).join("note")).unwrap(), "kept");
    let failed = check(&client).await;
    assert_eq!(failed["status"], "failed", "{failed}");
    service.run("restart");
    client.done(&stopping).await;
    assert!(!upper(1).exists());
    assert!(!data.join("repositories/default").exists(), "nothing of it lies on this host");

    // Any restic reads it there, and the kit says how.
    let (_, kit) = command(&server.url(), &data, &["recovery-kit", "--file", "-"], None).await;
    let repository = format!("{location}/default");
    assert!(kit.contains(&format!("RESTIC_REPOSITORY='{repository}'")), "{kit}");
    assert!(kit.contains(&format!("serve --data-dir NEW --repository '{location}'")), "{kit}");
    assert!(!kit.contains(CREDENTIALS[1].1) && !kit.contains("cp -a COPY/repositories"), "{kit}");
    let key = std::fs::read_to_string(data.join("keys/default")).unwrap();
    let listed = restic(&repository, key.trim(), &["ls", "--tag", &format!("pod:{pod}"), "latest", "/volumes/etc"]);
    assert!(listed.contains("/volumes/etc/note"), "{listed}");

    // Another server, with credentials that are wrong at first: it starts, says so, and goes on when they are right.
    server.stop().await;
    write_credentials(&env_file, "not-the-one");
    let server = Running::start(&config).await.unwrap();
    let client = Client::of(&server);
    let failed = check(&client).await;
    assert_eq!(failed["status"], "failed", "{failed}");
    assert!(!failed.to_string().contains("not-the-one"), "{failed}");
    let starting = client.post(&format!("pods/{pod}/start"), json!({})).await;
    write_credentials(&env_file, CREDENTIALS[1].1);
    client.done(&starting).await;
    let note = (1..9).map(|set| upper(set).join("note")).find(|note| note.exists()).unwrap();
    assert_eq!(std::fs::read_to_string(note).unwrap(), "kept");
    server.stop().await;

    // Pointed at another place by mistake, it does not begin anew there.
    let elsewhere = self::config(&data, &format!("{}/elsewhere", service.address), env_file);
    let server = Running::start(&elsewhere).await.unwrap();
    let client = Client::of(&server);
    let stopping = client.post(&format!("pods/{pod}/stop"), json!({})).await;
    let problem = trouble(&client, pod, &stopping).await;
    assert!(problem.contains("elsewhere/default is not there, but one was made before"), "{problem}");
    server.stop().await;
}
