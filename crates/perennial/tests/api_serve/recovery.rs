//! The recovery kit (D42): it alone opens every repository, and the server knows whether anybody has it.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use perennial::cli::Exit;
use perennial::serve::Running;
use serde_json::{Value, json};

use crate::{Client, command, config};

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).permissions().mode() & 0o777
}

/// A stopped pod with a note in /etc; its data is in the tenant's repository and nowhere else.
async fn stopped_pod(server: &Running, tenant: &str, note: &str) -> String {
    let client = Client::of(server);
    let body = json!({"name": "dev", "image": "debian:12", "tenant": tenant});
    let created = client.post("pods", body).await;
    client.done(&created).await;
    let id = created["pod"]["id"].as_str().unwrap().to_owned();
    let etc = server.directory.path().join(format!("storage/sim/pods/{id}/s1/etc/upper"));
    std::fs::write(etc.join("note"), note).unwrap();
    client.done(&client.post(&format!("pods/{id}/stop"), json!({})).await).await;
    assert!(!etc.exists());
    id
}

async fn recovery_check(client: &Client) -> (Value, Value) {
    let system = client.get("system").await;
    let check = system["checks"].as_array().unwrap().iter().find(|c| c["name"] == "recovery kit").unwrap().clone();
    (check, system["recoveryKit"].clone())
}

/// Writes the kit to a file and reads it.
async fn export(server: &Running, file: &Path) -> String {
    let (exit, text) = command(&server.url(), server.directory.path(), &["recovery-kit", "--file"], Some(file)).await;
    assert_eq!(exit, Exit::Done, "{text}");
    assert_eq!(mode(file), 0o600);
    std::fs::read_to_string(file).unwrap()
}

/// The commands of a part of the kit: its indented lines.
fn commands(kit: &str, heading: &str) -> String {
    let part = kit.split_once(heading).unwrap_or_else(|| panic!("{heading}: {kit}")).1;
    let part = part.split("\n\n\n").next().unwrap();
    part.lines().filter_map(|line| line.strip_prefix("    ")).map(|line| format!("{line}\n")).collect()
}

/// Runs commands as a person in a bad hour would: in a shell, with nothing of ours around.
fn shell(directory: &Path, script: &str) -> Result<String, String> {
    let mut shell = Command::new("sh");
    shell.args(["-e", "-c", script]).current_dir(directory).env_clear().env("HOME", directory);
    let done = shell.env("PATH", std::env::var_os("PATH").unwrap()).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    if done.status.success() { Ok(out.into_owned()) } else { Err(format!("{script}\n{out}{err}")) }
}

fn copy(from: &Path, to: &Path) {
    let done = Command::new("cp").arg("-a").args([from, to]).status().unwrap();
    assert!(done.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_recovery_kit_alone_opens_the_repository_with_restic() {
    let home = tempfile::tempdir().unwrap();
    let (data, kit_file) = (home.path().join("data"), home.path().join("kit"));
    let server = Running::start(&config(&data)).await.unwrap();
    let pod = stopped_pod(&server, "default", "kept").await;
    let kit = export(&server, &kit_file).await;
    server.stop().await;
    // The host is lost. What is left is the file, and a copy of the repository.
    let copied = home.path().join("a copy");
    copy(&data.join("repositories/default"), &copied);
    std::fs::remove_dir_all(&data).unwrap();

    let script = commands(&kit, "REPOSITORY OF TENANT default");
    let moved = script.replacen(&format!("'{}'", data.join("repositories/default").display()), "'a copy'", 1);
    assert_ne!(script, moved, "the first line says where the repository was");
    let list = moved.replace("restic snapshots\n", &format!("restic snapshots --json --tag pod:{pod}\n"));
    let listed: String = list.lines().take(3).map(|line| format!("{line}\n")).collect();
    let listed: Value = serde_json::from_str(&shell(home.path(), &listed).unwrap()).unwrap();
    let snapshot = listed[0]["short_id"].as_str().unwrap_or_else(|| panic!("{listed}"));
    shell(home.path(), &moved.replace("SNAPSHOT", snapshot)).unwrap();
    let restored = home.path().join("restored");
    assert_eq!(std::fs::read_to_string(restored.join("volumes/etc/note")).unwrap(), "kept");
    let about: Value = serde_json::from_slice(&std::fs::read(restored.join("pod.json")).unwrap()).unwrap();
    assert!(about.to_string().contains(&pod), "{about}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_recovery_kit_starts_perennial_on_another_host() {
    let home = tempfile::tempdir().unwrap();
    let (data, kit_file) = (home.path().join("data"), home.path().join("kit"));
    let server = Running::start(&config(&data)).await.unwrap();
    let pod = stopped_pod(&server, "default", "kept").await;
    let kit = export(&server, &kit_file).await;
    server.stop().await;
    let backup = home.path().join("COPY");
    std::fs::create_dir(&backup).unwrap();
    for name in ["perennial.db", "repositories"] {
        copy(&data.join(name), &backup);
    }
    std::fs::remove_dir_all(&data).unwrap();

    let script = commands(&kit, "GOING ON WITH PERENNIAL");
    let (prepare, serve) = script.trim_end().rsplit_once('\n').unwrap();
    assert_eq!(serve, "perennial serve --data-dir NEW");
    shell(home.path(), prepare).unwrap();
    let new = home.path().join("NEW");
    let server = Running::start(&config(&new)).await.unwrap();
    let client = Client::of(&server);
    client.done(&client.post(&format!("pods/{pod}/start"), json!({})).await).await;
    let note = std::fs::read_dir(new.join(format!("storage/sim/pods/{pod}"))).unwrap();
    let note = note.map(|set| set.unwrap().path().join("etc/upper/note")).find(|note| note.exists()).unwrap();
    assert_eq!(std::fs::read_to_string(note).unwrap(), "kept");
    assert_eq!(mode(&new.join("keys/default")), 0o600);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_doctor_nags_until_every_key_was_exported() {
    let home = tempfile::tempdir().unwrap();
    let config = config(&home.path().join("data"));
    let server = Running::start(&config).await.unwrap();
    let client = Client::of(&server);
    let (check, status) = recovery_check(&client).await;
    assert_eq!((&check["status"], &check["message"]), (&json!("warning"), &json!("was never exported")));
    assert!(check["hint"].as_str().unwrap().contains("perennial recovery-kit"), "{check}");
    assert_eq!(status, json!({"exportedAt": null, "missing": ["default"]}));

    // A file that is there is never written over, and what is refused is not taken for an export.
    let taken = home.path().join("taken");
    std::fs::write(&taken, "the only copy").unwrap();
    let data = server.directory.path().to_owned();
    let (exit, text) = command(&server.url(), &data, &["recovery-kit", "--file"], Some(&taken)).await;
    assert_eq!(exit, Exit::Conflict, "{text}");
    assert_eq!(std::fs::read_to_string(&taken).unwrap(), "the only copy");
    assert_eq!(recovery_check(&client).await.0["status"], "warning");

    let kit = export(&server, &home.path().join("kit")).await;
    let (check, status) = recovery_check(&client).await;
    assert_eq!((&check["status"], &status["missing"]), (&json!("ok"), &json!([])), "{check}");
    let events = client.get("events").await;
    let events = events["items"].as_array().unwrap();
    let exported = events.iter().find(|e| e["type"] == "recovery-kit.exported").unwrap();
    assert_eq!((&exported["actor"], &exported["podId"]), (&json!("admin"), &Value::Null));
    let key = std::fs::read_to_string(data.join("keys/default")).unwrap();
    assert!(kit.contains(key.trim()));

    // It is remembered, and the key is not: neither in the trail nor among recorded answers.
    server.stop().await;
    for entry in std::fs::read_dir(&data).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file()) {
        let bytes = std::fs::read(&entry).unwrap();
        let found = bytes.windows(key.trim().len()).any(|window| window == key.trim().as_bytes());
        assert!(!found, "{}", entry.display());
    }
    let server = Running::start(&config).await.unwrap();
    let client = Client::of(&server);
    assert_eq!(recovery_check(&client).await.0["status"], "ok");

    // A tenant's repository that was made later is missing from the kit.
    stopped_pod(&server, "acme", "theirs").await;
    let (check, status) = recovery_check(&client).await;
    assert_eq!((&check["status"], &status["missing"]), (&json!("warning"), &json!(["acme"])), "{check}");
    assert!(check["message"].as_str().unwrap().contains("acme"), "{check}");
    export(&server, &home.path().join("kit 2")).await;
    assert_eq!(recovery_check(&client).await.0["status"], "ok");

    // So is one that was begun anew, with another key.
    std::fs::write(data.join("keys/acme"), "another").unwrap();
    assert_eq!(recovery_check(&client).await.1["missing"], json!(["acme"]));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_tenants_have_two_repositories_and_two_keys() {
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join("data");
    let server = Running::start(&config(&data)).await.unwrap();
    for tenant in ["default", "acme"] {
        stopped_pod(&server, tenant, tenant).await;
    }
    server.stop().await;
    for directory in ["", "keys", "repositories"] {
        assert_eq!(mode(&data.join(directory)), 0o700, "{directory}");
    }
    let path = |directory: &str, tenant: &str| -> PathBuf { data.join(directory).join(tenant) };
    let key = |tenant: &str| std::fs::read_to_string(path("keys", tenant)).unwrap();
    assert_ne!(key("default"), key("acme"));
    for (tenant, other) in [("default", "acme"), ("acme", "default")] {
        assert_eq!(mode(&path("keys", tenant)), 0o600);
        let list = |key: &str| {
            let repository = path("repositories", tenant);
            shell(home.path(), &format!("RESTIC_PASSWORD={key} restic -r '{}' snapshots --json", repository.display()))
        };
        let snapshots: Value = serde_json::from_str(&list(key(tenant).trim()).unwrap()).unwrap();
        let of_pods = snapshots.as_array().unwrap().iter().filter(|s| s["tags"].to_string().contains("pod:"));
        assert_eq!(of_pods.count(), 1, "{snapshots}");
        let refused = list(key(other).trim()).unwrap_err();
        assert!(refused.contains("wrong password"), "{refused}");
    }
}
