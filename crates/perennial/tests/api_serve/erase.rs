//! The end of a tenant on a real disk, with restic as the judge of what is left.

use std::path::Path;
use std::process::Command;

use perennial::cli::Exit;
use perennial::config::RepositorySection;
use perennial::serve::Running;
use serde_json::{Value, json};

use crate::{Client, command, config};

fn opens(repository: &Path, password: &str) -> bool {
    let mut restic = Command::new("restic");
    restic.args(["--no-cache", "snapshots", "-r"]).arg(repository).env("RESTIC_PASSWORD", password);
    restic.output().unwrap().status.success()
}

/// Every file below a directory.
fn files(directory: &Path) -> usize {
    let count = |entry: std::io::Result<std::fs::DirEntry>| {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() { files(&entry.path()) } else { 1 }
    };
    std::fs::read_dir(directory).unwrap().map(count).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_is_erased_on_a_real_disk_and_restic_cannot_open_what_is_left() {
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join("data");
    let server = Running::start(&config(&data)).await.unwrap();
    let client = Client::of(&server);
    let created = client.post("pods", json!({"name": "dev", "image": "debian:12"})).await;
    client.done(&created).await;
    let pod = created["pod"]["id"].as_str().unwrap().to_owned();
    client.done(&client.post(&format!("pods/{pod}/stop"), json!({})).await).await;
    let run = async |words: &[&str]| command(&server.url(), &data, words, None).await;

    let (_, told) = run(&["tenant", "erase", "default", "--dry-run"]).await;
    assert!(told.contains("It would be refused now") && told.contains(&pod), "{told}");
    let (exit, told) = run(&["tenant", "erase", "default", "--yes"]).await;
    assert!(exit == Exit::Conflict && told.contains("perennial pod purge"), "{told}");
    client.done(&client.post(&format!("pods/{pod}/purge"), json!({"confirm": "dev"})).await).await;

    let repository = data.join("repositories/default");
    let password = std::fs::read_to_string(data.join("keys/default")).unwrap().trim().to_owned();
    let copy = home.path().join("copy");
    let copied = Command::new("cp").arg("-a").arg(&repository).arg(&copy).status().unwrap();
    assert!(copied.success() && opens(&repository, &password) && opens(&copy, &password));
    let (exit, told) = run(&["tenant", "erase", "default", "--yes"]).await;
    assert!(exit == Exit::Done && told.contains("tenant default is erased"), "{told}");
    assert!(!data.join("keys/default").exists());
    assert!(!opens(&repository, &password), "the password of a recovery kit opens nothing there any more");
    assert!(opens(&copy, &password), "a copy from before opens, as is said");
    assert!(files(&repository.join("data")) > 0);

    server.stop().await;
    // The configuration names a copy by now, of which the keys went as well, and which is to be kept.
    std::fs::remove_dir_all(copy.join("keys")).unwrap();
    std::fs::create_dir(copy.join("keys")).unwrap();
    let kept = home.path().join("kept");
    std::fs::create_dir(&kept).unwrap();
    std::fs::rename(&copy, kept.join("default")).unwrap();
    let before = files(&kept);
    let mut elsewhere = config(&data);
    elsewhere.repository = RepositorySection::in_directory(&kept);
    let server = Running::start(&elsewhere).await.unwrap();
    let (exit, told) =
        command(&server.url(), &data, &["tenant", "erase", "default", "--yes", "--delete-data"], None).await;
    assert!(exit == Exit::Failed && told.contains("does not name"), "{told}");
    assert_eq!(files(&kept), before);
    server.stop().await;

    let server = Running::start(&config(&data)).await.unwrap();
    let words = ["tenant", "erase", "default", "--yes", "--delete-data"];
    let (exit, told) = command(&server.url(), &data, &words, None).await;
    assert!(exit == Exit::Done && !repository.exists(), "{told}");
    server.stop().await;

    // Neither the next server, nor one whose data directory was lost, begins anything in its place.
    let database = data.join("perennial.db");
    let kept = std::fs::read(&database).unwrap();
    for turn in 0..2 {
        if turn == 1 {
            std::fs::remove_dir_all(&data).unwrap();
            std::fs::create_dir(&data).unwrap();
            std::fs::write(&database, &kept).unwrap();
        }
        let server = Running::start(&config(&data)).await.unwrap();
        let client = Client::of(&server);
        let refused = client.post("pods", json!({"name": "dev", "image": "debian:12"})).await;
        assert_eq!(refused["code"], "tenant-erased", "{refused}");
        let erasure = client.get("tenants/default/erasure").await;
        assert_eq!((&erasure["state"], &erasure["problem"]), (&json!("erased"), &Value::Null), "{erasure}");
        assert!(!data.join("keys/default").exists() && !repository.exists());
        let other = client.post("pods", json!({"name": "dev", "image": "debian:12", "tenant": "acme"})).await;
        client.done(&other).await;
        let purge = format!("pods/{}/purge", other["pod"]["id"].as_str().unwrap());
        client.done(&client.post(&purge, json!({"confirm": "dev"})).await).await;
        server.stop().await;
    }
}
