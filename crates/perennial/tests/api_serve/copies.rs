//! The repositories are lost for good, and a copy in a real S3 takes their place.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use perennial::config::{Config, EngineKind, ServeArgs};
use perennial::serve::Running;
use serde_json::json;

use crate::s3::{CREDENTIALS, S3};
use crate::{Client, config};

fn write_closed(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

fn repository(words: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_perennial")).arg("repository").args(words).output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{words:?}: {text}");
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_takes_the_place_of_a_repository_that_is_lost() {
    let Some(service) = S3::start() else { return };
    let home = tempfile::tempdir().unwrap();
    let (data, env_file) = (home.path().join("data"), home.path().join("far.env"));
    let password = home.path().join("far-password");
    write_closed(&password, "of the far one");
    let credentials = CREDENTIALS.map(|(name, value)| format!("{name}={value}\n")).concat();
    write_closed(&env_file, &credentials);
    let location = format!("{}/far", service.address);
    let far = format!("{location}/default");

    let server = Running::start(&config(&data)).await.unwrap();
    let client = Client::of(&server);
    let created = client.post("pods", json!({"name": "dev", "image": "debian:12"})).await;
    client.done(&created).await;
    let pod = created["pod"]["id"].as_str().unwrap().to_owned();
    let upper = |set: u32| data.join(format!("storage/sim/pods/{pod}/s{set}/etc/upper"));
    let note = || (1..20).map(|set| upper(set).join("note")).find(|note| note.exists()).unwrap();
    std::fs::write(upper(1).join("note"), "first").unwrap();
    client.done(&client.post(&format!("pods/{pod}/snapshots"), json!({})).await).await;
    let first = client.get(&format!("pods/{pod}")).await["latestSnapshot"]["id"].clone();
    std::fs::write(upper(1).join("note"), "last").unwrap();
    client.done(&client.post(&format!("pods/{pod}/stop"), json!({})).await).await;

    // While the server runs: init once, then a copy as often as one likes.
    let near = data.join("repositories/default");
    let (near, key) = (near.to_str().unwrap(), data.join("keys/default"));
    let mut init = Command::new(env!("CARGO_BIN_EXE_perennial"));
    init.args(["repository", "init", "--repo", &far, "--password-file", password.to_str().unwrap()]);
    assert!(init.envs(CREDENTIALS).output().unwrap().status.success());
    let to = ["--to", &far, "--to-password-file", password.to_str().unwrap(), "--to-env-file"];
    let from = ["copy", "--repo", near, "--password-file", key.to_str().unwrap()];
    let copy = [&from[..], &to, &[env_file.to_str().unwrap()]].concat();
    assert!(repository(&copy).contains("0 were there"));
    assert!(repository(&copy).contains("0 snapshots copied"));
    server.stop().await;

    std::fs::remove_dir_all(data.join("repositories")).unwrap();
    std::fs::copy(&password, &key).unwrap();
    let args = ServeArgs {
        listen: Some(([127, 0, 0, 1], 0).into()),
        engine: Some(EngineKind::Sim),
        repository: Some(location),
        repository_env_file: Some(env_file),
        ..ServeArgs::default()
    };
    let elsewhere = Config::load(&args, Some(&data)).unwrap();
    let server = Running::start(&elsewhere).await.unwrap();
    let client = Client::of(&server);
    client.done(&client.post(&format!("pods/{pod}/start"), json!({})).await).await;
    assert_eq!(std::fs::read_to_string(note()).unwrap(), "last");
    std::fs::write(note(), "newer").unwrap();
    client.done(&client.post(&format!("pods/{pod}/stop"), json!({})).await).await;
    client.done(&client.post(&format!("pods/{pod}/start"), json!({})).await).await;
    assert_eq!(std::fs::read_to_string(note()).unwrap(), "newer");
    // A drill proves the older one there, and a restore brings it back.
    let first = first.as_str().unwrap();
    client.done(&client.post(&format!("snapshots/{first}/drill"), json!({})).await).await;
    assert!(client.get(&format!("snapshots/{first}")).await["provenAt"].is_string());
    assert!(client.get(&format!("pods/{pod}")).await["provenAt"].is_string());
    let restore = json!({"snapshotId": first, "confirm": "dev"});
    client.done(&client.post(&format!("pods/{pod}/restore"), restore).await).await;
    assert_eq!(std::fs::read_to_string(note()).unwrap(), "first");
    server.stop().await;
}
