//! A server that copies to a real S3 by itself, and goes on with the copies when its repositories are lost for good.

use std::io::BufRead as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use perennial::config::{Config, EngineKind, ServeArgs};
use perennial::serve::Running;
use perennial_snapshots::{LocalBackend, Password, Repository};
use serde_json::{Value, json};

use crate::s3::{CREDENTIALS, S3};
use crate::{Client, command};

fn write_closed(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

fn load(home: &Path, tables: &str) -> Config {
    let file = home.join("perennial.toml");
    let data = home.join("data");
    std::fs::write(&file, format!("data_dir = {:?}\nlisten = \"127.0.0.1:0\"\n{tables}", data.display().to_string()))
        .unwrap();
    let args = ServeArgs { config: Some(file), engine: Some(EngineKind::Sim), ..ServeArgs::default() };
    Config::load(&args, None).unwrap()
}

/// The real program with this configuration.
fn perennial(home: &Path, words: &[&str]) -> Output {
    let mut program = Command::new(env!("CARGO_BIN_EXE_perennial"));
    program.env_clear().env("PERENNIAL_CONFIG", home.join("perennial.toml")).args(words).output().unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Asks until the answer is good; the server works meanwhile.
async fn until(client: &Client, path: &str, good: impl Fn(&Value) -> bool) -> Value {
    let began = Instant::now();
    loop {
        let answer = client.get(path).await;
        if good(&answer) {
            return answer;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "{path}: {answer}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_in_s3_follow_and_take_the_place_of_repositories_that_are_lost() {
    let Some(service) = S3::start() else { return };
    let home = tempfile::tempdir().unwrap();
    let (data, env_file) = (home.path().join("data"), home.path().join("far.env"));
    write_closed(&env_file, &CREDENTIALS.map(|(name, value)| format!("{name}={value}\n")).concat());
    let place = format!("location = \"{}/far\"\nenv_file = {:?}\n", service.address, env_file.display().to_string());
    let server = Running::start(&load(home.path(), &format!("[replication]\n{place}"))).await.unwrap();
    let client = Client::of(&server);
    let created = client.post("pods", json!({"name": "dev", "image": "debian:12"})).await;
    client.done(&created).await;
    let pod = created["pod"]["id"].as_str().unwrap().to_owned();
    let note = |set: u32| data.join(format!("storage/sim/pods/{pod}/s{set}/etc/upper/note"));
    std::fs::write(note(1), "last").unwrap();
    client.done(&client.post(&format!("pods/{pod}/stop"), json!({})).await).await;
    let last = client.get(&format!("pods/{pod}")).await["latestSnapshot"]["id"].as_str().unwrap().to_owned();
    until(&client, &format!("snapshots/{last}"), |row| row["replicatedAt"].is_string()).await;
    let status = until(&client, "replication", |status| status["replicas"][0]["missing"] == 0).await;
    assert_eq!((&status["replicas"][0]["copied"], &status["forgetAfter"]), (&json!(1), &json!("30d")));
    assert_eq!(status["replicas"][0].get("copying"), Some(&json!(null)), "{status}");
    let (_, shown) = command(&server.url(), &data, &["replication"], None).await;
    assert!(shown.contains("/far/default") && shown.contains("after 30d"), "{shown}");
    let system = client.get("system").await;
    let checks = system["checks"].as_array().unwrap();
    let replica = checks.iter().find(|check| check["name"] == "replica").unwrap();
    assert_eq!(replica["status"], "ok", "{replica}");
    // The kit has the key of the replica, too, and it is another one.
    let kit = client.post("recovery-kit", json!(null)).await;
    let of =
        |replica: bool| kit["repositories"].as_array().unwrap().iter().find(|one| one["replica"] == replica).unwrap();
    assert_ne!(of(false)["password"], of(true)["password"]);
    assert!(of(true)["location"].as_str().unwrap().ends_with("/far/default"));

    // While it runs nothing changes places.
    let refused = perennial(home.path(), &["repository", "use-replica", "--yes"]);
    assert!(!refused.status.success() && text(&refused).contains("another server"), "{}", text(&refused));
    server.stop().await;
    std::fs::remove_dir_all(data.join("repositories")).unwrap();
    let dry = perennial(home.path(), &["repository", "use-replica"]);
    assert!(dry.status.success() && text(&dry).contains("default: 2 snapshots"), "{}", text(&dry));
    assert!(text(&dry).contains("Nothing was changed"));
    let key = |directory: &str| std::fs::read_to_string(data.join(directory).join("default")).unwrap();
    let before = (key("keys"), key("replica-keys"));
    let done = perennial(home.path(), &["repository", "use-replica", "--yes"]);
    assert!(done.status.success() && text(&done).contains("[repository]"), "{}", text(&done));
    assert_eq!((key("replica-keys"), key("keys")), before);

    // The old place is given to the new replica, which begins anew there.
    std::fs::remove_file(data.join("replica-keys/default.made")).unwrap();
    let near = data.join("repositories").display().to_string();
    let tables = format!("[repository]\n{place}\n[replication]\nlocation = {near:?}\n");
    let server = Running::start(&load(home.path(), &tables)).await.unwrap();
    let client = Client::of(&server);
    client.done(&client.post(&format!("pods/{pod}/start"), json!({})).await).await;
    let set = (1..20).find(|set| note(*set).exists()).unwrap();
    assert_eq!(std::fs::read_to_string(note(set)).unwrap(), "last");
    let status = until(&client, "replication", |status| {
        status["replicas"][0]["missing"] == 0 && status["replicas"][0]["copied"] == 1
    })
    .await;
    assert_eq!(status["replicas"][0]["location"], json!(format!("{near}/default")));
    assert!(data.join("repositories/default/snapshots").read_dir().unwrap().count() > 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_is_not_there_is_told_by_doctor_and_in_nobodys_way() {
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join("data");
    let place = home.path().join("disk/replica");
    let config = load(home.path(), &format!("[replication]\nlocation = {:?}\n", place.display().to_string()));
    // A file where the directory should be.
    std::fs::write(home.path().join("disk"), "not a disk").unwrap();
    let server = Running::start(&config).await.unwrap();
    let client = Client::of(&server);
    let created = client.post("pods", json!({"name": "dev", "image": "debian:12"})).await;
    client.done(&created).await;
    let pod = created["pod"]["id"].as_str().unwrap().to_owned();
    client.done(&client.post(&format!("pods/{pod}/stop"), json!({})).await).await;
    let status = until(&client, "replication", |status| status["replicas"][0]["problem"].is_string()).await;
    assert_eq!(status["replicas"][0]["missing"], 1);
    let system = client.get("system").await;
    let checks = system["checks"].as_array().unwrap();
    let replica = checks.iter().find(|check| check["name"] == "replica").unwrap();
    assert_eq!(replica["status"], "failed", "{replica}");
    server.stop().await;
    // One that is nowhere cannot take the place of anything.
    let refused = perennial(home.path(), &["repository", "use-replica", "--yes"]);
    assert!(!refused.status.success(), "{}", text(&refused));
    assert!(data.join("keys/default").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_hangs_keeps_no_request_and_no_stop() {
    let home = tempfile::tempdir().unwrap();
    let (data, place) = (home.path().join("data"), home.path().join("replica"));
    load(home.path(), &format!("[replication]\nlocation = {:?}\n", place.display().to_string()));
    // Whoever opens it waits for somebody who writes, and then for what is written: like a mount whose server is gone.
    let (config, key) = (place.join("default/config"), data.join("replica-keys/default"));
    for file in [&config, &key] {
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    }
    write_closed(&key, "secret");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &config,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
    let mut program = Command::new(env!("CARGO_BIN_EXE_perennial"));
    program.env_clear().env("PERENNIAL_CONFIG", home.path().join("perennial.toml")).args(["serve", "--engine", "sim"]);
    let mut server = program.stdout(Stdio::piped()).spawn().unwrap();
    let mut ready = String::new();
    std::io::BufReader::new(server.stdout.take().unwrap()).read_line(&mut ready).unwrap();
    let ready: Value = serde_json::from_str(&ready).unwrap();
    let client = Client::at(ready["listening"].as_str().unwrap(), &data);
    let created = client.post("pods", json!({"name": "dev", "image": "debian:12"})).await;
    client.done(&created).await;
    let pod = created["pod"]["id"].as_str().unwrap().to_owned();
    client.done(&client.post(&format!("pods/{pod}/stop"), json!({})).await).await;
    let nonblocking = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap();
    let began = Instant::now();
    // It opens only when somebody reads: the server hangs from here on.
    let hanging = loop {
        match std::fs::OpenOptions::new().write(true).custom_flags(nonblocking).open(&config) {
            Ok(file) => break file,
            Err(error) => assert!(began.elapsed() < Duration::from_secs(60), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert!(client.get("system").await["checks"].is_array());
    client.done(&client.post(&format!("pods/{pod}/start"), json!({})).await).await;
    let asked = Instant::now();
    rustix::process::kill_process(rustix::process::Pid::from_child(&server), rustix::process::Signal::TERM).unwrap();
    let ended = loop {
        if let Some(status) = server.try_wait().unwrap() {
            break status;
        }
        if asked.elapsed() > Duration::from_secs(50) {
            server.kill().unwrap();
            panic!("it did not stop");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert!(ended.success(), "{ended}");
    drop(hanging);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_key_of_a_replica_is_told_by_doctor_and_keeps_no_server_from_starting() {
    let home = tempfile::tempdir().unwrap();
    let (data, place) = (home.path().join("data"), home.path().join("replica"));
    let config = load(home.path(), &format!("[replication]\nlocation = {:?}\n", place.display().to_string()));
    let key = data.join("replica-keys/default");
    std::fs::create_dir_all(key.parent().unwrap()).unwrap();
    write_closed(&key, "");
    let server = Running::start(&config).await.unwrap();
    let client = Client::of(&server);
    let created = client.post("pods", json!({"name": "dev", "image": "debian:12"})).await;
    client.done(&created).await;
    let pod = created["pod"]["id"].as_str().unwrap().to_owned();
    client.done(&client.post(&format!("pods/{pod}/stop"), json!({})).await).await;
    until(&client, "replication", |status| status["replicas"][0]["problem"].is_string()).await;
    let system = client.get("system").await;
    for name in ["replica", "recovery kit"] {
        let check = system["checks"].as_array().unwrap().iter().find(|check| check["name"] == name).unwrap();
        assert_ne!(check["status"], "ok", "{check}");
        assert!(check["message"].as_str().unwrap().contains("replica-keys/default"), "{check}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_said_of_a_replica_that_nobody_keeps_any_more() {
    let home = tempfile::tempdir().unwrap();
    let place = home.path().join("replica").display().to_string();
    let server = Running::start(&load(home.path(), &format!("[replication]\nlocation = {place:?}\n"))).await.unwrap();
    let client = Client::of(&server);
    let created = client.post("pods", json!({"name": "dev", "image": "debian:12"})).await;
    client.done(&created).await;
    let pod = created["pod"]["id"].as_str().unwrap().to_owned();
    client.done(&client.post(&format!("pods/{pod}/stop"), json!({})).await).await;
    let last = client.get(&format!("pods/{pod}")).await["latestSnapshot"]["id"].as_str().unwrap().to_owned();
    until(&client, &format!("snapshots/{last}"), |row| row["replicatedAt"].is_string()).await;
    server.stop().await;
    let server = Running::start(&load(home.path(), "")).await.unwrap();
    let client = Client::of(&server);
    let listed = client.get(&format!("pods/{pod}/snapshots")).await["items"][0].clone();
    for row in [client.get(&format!("snapshots/{last}")).await, listed] {
        assert_eq!((&row["id"], &row["replicatedAt"]), (&json!(last), &json!(null)), "{row}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_cannot_be_read_keeps_no_other_back() {
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join("data");
    let server = Running::start(&load(home.path(), "")).await.unwrap();
    let client = Client::of(&server);
    let created = client.post("pods", json!({"name": "dev", "image": "debian:12"})).await;
    client.done(&created).await;
    let pod = created["pod"]["id"].as_str().unwrap().to_owned();
    let taken = client.post(&format!("pods/{pod}/snapshots"), json!({})).await;
    client.done(&taken).await;
    let good = taken["snapshot"]["id"].as_str().unwrap().to_owned();
    client.done(&client.post(&format!("pods/{pod}/stop"), json!({})).await).await;
    let bad = client.get(&format!("pods/{pod}")).await["latestSnapshot"]["id"].as_str().unwrap().to_owned();
    assert_ne!(good, bad);
    server.stop().await;
    // The disk cannot read the newest one, which would be copied first: that is an error, and no proof of damage.
    let directory = data.join("repositories/default");
    let key = std::fs::read_to_string(data.join("keys/default")).unwrap();
    let repository = Repository::open(std::sync::Arc::new(LocalBackend::new(&directory)), &Password::new(key.trim()));
    let found = repository.unwrap().find(&[&format!("snapshot:{bad}")]).unwrap();
    let file = directory.join("snapshots").join(found[0].id.to_string());
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    let place = home.path().join("replica").display().to_string();
    let server = Running::start(&load(home.path(), &format!("[replication]\nlocation = {place:?}\n"))).await.unwrap();
    let client = Client::of(&server);
    until(&client, &format!("snapshots/{good}"), |row| row["replicatedAt"].is_string()).await;
    let row = until(&client, &format!("snapshots/{bad}"), |row| row["replicaProblem"].is_string()).await;
    assert_eq!(row["replicatedAt"], json!(null), "{row}");
    let status = until(&client, "replication", |status| status["replicas"][0]["lookedAt"].is_string()).await;
    assert_eq!(status["replicas"][0]["problem"], json!(null), "{status}");
    assert_eq!(status["replicas"][0]["failed"][0]["id"], json!(bad), "{status}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_take_the_place_of_repositories_of_tenants_that_have_one() {
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join("data");
    let replicated = format!("[replication]\nlocation = {:?}\n", home.path().join("replica").display().to_string());
    let server = Running::start(&load(home.path(), &replicated)).await.unwrap();
    let client = Client::of(&server);
    let created = client.post("pods", json!({"name": "dev", "image": "debian:12"})).await;
    client.done(&created).await;
    let pod = created["pod"]["id"].as_str().unwrap().to_owned();
    client.done(&client.post(&format!("pods/{pod}/stop"), json!({})).await).await;
    until(&client, "replication", |status| status["replicas"][0]["copied"] == 1).await;
    let kit = home.path().join("kit");
    command(&server.url(), &data, &["recovery-kit", "--file"], Some(&kit)).await;
    let kit = std::fs::read_to_string(&kit).unwrap();
    assert!(kit.contains("perennial repository change-password TENANT --data-dir NEW"), "{kit}");
    server.stop().await;
    // What comes while nothing is replicated: another snapshot, and another tenant.
    let server = Running::start(&load(home.path(), "")).await.unwrap();
    let client = Client::of(&server);
    client.done(&client.post(&format!("pods/{pod}/start"), json!({})).await).await;
    let taken = client.post(&format!("pods/{pod}/snapshots"), json!({})).await;
    client.done(&taken).await;
    let missing = taken["snapshot"]["id"].as_str().unwrap();
    let created = client.post("pods", json!({"name": "other", "image": "debian:12", "tenant": "acme"})).await;
    client.done(&created).await;
    let other = created["pod"]["id"].as_str().unwrap().to_owned();
    client.done(&client.post(&format!("pods/{other}/stop"), json!({})).await).await;
    server.stop().await;
    load(home.path(), &replicated);

    let key = |directory: &str| std::fs::read_to_string(data.join(directory).join("default")).unwrap();
    let before = (key("keys"), key("replica-keys"));
    let dry = text(&perennial(home.path(), &["repository", "use-replica"]));
    assert!(dry.contains(&format!("1 verified snapshots are not, the oldest of them {missing}")), "{dry}");
    assert!(dry.contains("acme: has no replica") && dry.contains("Nothing was changed"), "{dry}");
    let refused = perennial(home.path(), &["repository", "use-replica", "--yes"]);
    assert!(!refused.status.success() && text(&refused).contains("snapshots: acme"), "{}", text(&refused));
    assert_eq!((key("keys"), key("replica-keys")), before);
    let done = perennial(home.path(), &["repository", "use-replica", "--without", "acme", "--yes"]);
    assert!(done.status.success(), "{}", text(&done));
    assert_eq!((key("replica-keys"), key("keys")), before);

    // The old server, should it come back, opens nothing any more.
    let place = home.path().join("replica");
    let opens = |password: &str| {
        let backend = std::sync::Arc::new(LocalBackend::new(place.join("default")));
        Repository::open(backend, &Password::new(password.trim())).is_ok()
    };
    load(home.path(), &format!("[repository]\nlocation = {:?}\n", place.display().to_string()));
    let changed = perennial(home.path(), &["repository", "change-password"]);
    assert!(changed.status.success(), "{}", text(&changed));
    assert!(opens(&key("keys")) && !opens(&before.1));
}
