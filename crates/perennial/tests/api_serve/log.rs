//! What the server writes to its log.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::Stdio;

use serde_json::{Value, json};

use crate::Client;
use crate::tls::{Child, program};

#[test]
fn deletions_are_in_the_log_with_their_ground() {
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join("data");
    let mut command = program(&data, &["--listen", "127.0.0.1:0", "--log", "json"]);
    let mut running = Child(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let server = &mut running.0;
    let mut ready = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut ready).unwrap();
    let ready: Value = serde_json::from_str(&ready).unwrap();
    let client = Client::at(ready["listening"].as_str().unwrap(), &data);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (pod, snapshot) = runtime.block_on(async {
        let created = client.post("pods", json!({"name": "dev", "image": "debian:12"})).await;
        client.done(&created).await;
        let id = created["pod"]["id"].as_str().unwrap().to_owned();
        client.done(&client.post(&format!("pods/{id}/stop"), json!({})).await).await;
        let snapshot = client.get(&format!("pods/{id}")).await["latestSnapshot"]["id"].as_str().unwrap().to_owned();
        (id, snapshot)
    });
    let pid = rustix::process::Pid::from_raw(i32::try_from(server.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let mut log = String::new();
    server.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for what in ["removing the container", "deleting the volumes of set 1"] {
        let line = lines.iter().find(|line| line["message"] == what).unwrap_or_else(|| panic!("{what}: {log}"));
        assert_eq!(line["pod"], pod, "{line}");
        assert_eq!(line["ground"], format!("captured by snapshot {snapshot}"), "{line}");
    }
}
