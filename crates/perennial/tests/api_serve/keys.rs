//! Keys of repositories wrapped with an installation key, and changed: what opens a repository, and what does not.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use perennial::config::Config;
use perennial::keys::KeyError;
use perennial::serve::{Running, ServeError};
use serde_json::json;

use crate::{Client, config};

const FIRST: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
const SECOND: &str = "100102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

/// The real program on this data directory, without anything of ours around.
fn perennial(data: &Path, words: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_perennial"));
    command.env_clear().env("PERENNIAL_DATA_DIR", data).envs(variables.iter().copied()).args(words).output().unwrap()
}

fn printed(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap().trim().to_owned()
}

fn opens(repository: &Path, password: &str) -> bool {
    let mut restic = Command::new("restic");
    restic.args(["--no-cache", "snapshots", "-r"]).arg(repository).env("RESTIC_PASSWORD", password);
    restic.output().unwrap().status.success()
}

fn with_key(data: &Path, home: &Path, key: &str, previous: Option<&str>) -> Config {
    let write = |name: &str, key: &str| {
        let path = home.join(name);
        std::fs::write(&path, key).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path
    };
    let mut config = config(data);
    config.keys.file = Some(write("key", key));
    config.keys.previous_file = previous.map(|previous| write("previous", previous));
    config
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_the_data_directory_opens_nothing_without_the_installation_key() {
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join("data");
    // The first life has no installation key.
    let server = Running::start(&config(&data)).await.unwrap();
    let client = Client::of(&server);
    let created = client.post("pods", json!({"name": "dev", "image": "debian:12"})).await;
    client.done(&created).await;
    let pod = created["pod"]["id"].as_str().unwrap().to_owned();
    client.done(&client.post(&format!("pods/{pod}/stop"), json!({})).await).await;
    server.stop().await;
    let key_file = data.join("keys/default");
    let plain = std::fs::read_to_string(&key_file).unwrap().trim().to_owned();

    // The second wraps what it finds, and works with it.
    let server = Running::start(&with_key(&data, home.path(), FIRST, None)).await.unwrap();
    let client = Client::of(&server);
    client.done(&client.post(&format!("pods/{pod}/start"), json!({})).await).await;
    client.done(&client.post(&format!("pods/{pod}/stop"), json!({})).await).await;
    server.stop().await;
    let wrapped = std::fs::read_to_string(&key_file).unwrap();
    assert!(!wrapped.contains(&plain), "{wrapped}");

    // Without the key, or with another one, no server starts, and nothing is made anew.
    for config in [config(&data), with_key(&data, home.path(), SECOND, None)] {
        match Running::start(&config).await {
            Err(ServeError::Keys(KeyError::OtherKey { .. })) => {}
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("a server without the key started"),
        }
    }
    assert_eq!(std::fs::read_to_string(&key_file).unwrap(), wrapped);
    let refused = perennial(&data, &["repository", "password"], &[]);
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("wrapped with the installation key"));
    let variables = [("PERENNIAL_INSTALLATION_KEY", FIRST)];
    assert_eq!(printed(&perennial(&data, &["repository", "password"], &variables)), plain);

    // The installation key is changed by one start that knows both.
    let server = Running::start(&with_key(&data, home.path(), SECOND, Some(FIRST))).await.unwrap();
    server.stop().await;
    assert!(!perennial(&data, &["repository", "password"], &variables).status.success());
    let variables = [("PERENNIAL_INSTALLATION_KEY", SECOND)];
    assert_eq!(printed(&perennial(&data, &["repository", "password"], &variables)), plain);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_password_of_a_repository_is_changed_while_no_server_uses_it() {
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join("data");
    let repository = data.join("repositories/default");
    let server = Running::start(&config(&data)).await.unwrap();
    let old = std::fs::read_to_string(data.join("keys/default")).unwrap().trim().to_owned();
    let refused = perennial(&data, &["repository", "change-password"], &[]);
    assert_eq!(refused.status.code(), Some(4), "{}", String::from_utf8_lossy(&refused.stderr));
    assert!(opens(&repository, &old));
    server.stop().await;

    let told = printed(&perennial(&data, &["repository", "change-password"], &[]));
    assert!(told.contains("perennial recovery-kit"), "{told}");
    let new = printed(&perennial(&data, &["repository", "password"], &[]));
    assert!(new != old && opens(&repository, &new) && !opens(&repository, &old));
    let server = Running::start(&config(&data)).await.unwrap();
    let client = Client::of(&server);
    let created = client.post("pods", json!({"name": "dev", "image": "debian:12"})).await;
    client.done(&created).await;
    let stop = format!("pods/{}/stop", created["pod"]["id"].as_str().unwrap());
    client.done(&client.post(&stop, json!({})).await).await;
    server.stop().await;

    let missing = perennial(&data, &["repository", "change-password", "acme"], &[]);
    assert_eq!(missing.status.code(), Some(3), "{}", String::from_utf8_lossy(&missing.stderr));
}
