//! The files of the catalogue, on the real program: read at the start, and again on SIGHUP.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::Stdio;

use perennial::cli::Exit;
use serde_json::{Value, json};

use crate::tls::{Child, program};
use crate::{Client, command};

fn service(size: &str) -> String {
    format!(
        "name = \"mine\"\n[[plans]]\nname = \"a\"\nimage = \"debian:12\"\nprofile = \"declared\"\n\
         [[plans.volumes]]\nname = \"data\"\nmount_path = \"/data\"\nsize = \"{size}\"\n"
    )
}

/// What the services' list says: names with the size of their first volume, and conditions of all.
fn told(list: &Value) -> (Vec<(String, String)>, Vec<String>) {
    let items = list["items"].as_array().unwrap();
    let size = |s: &Value| s["plans"][0]["volumes"][0]["size"].as_str().unwrap_or("-").to_owned();
    let services = items.iter().map(|s| (s["name"].as_str().unwrap().to_owned(), size(s))).collect();
    let conditions = items.iter().flat_map(|s| s["conditions"].as_array().unwrap());
    let conditions = conditions.chain(list["conditions"].as_array().unwrap());
    (services, conditions.map(|c| c["message"].as_str().unwrap().to_owned()).collect())
}

#[test]
fn the_program_reads_files_at_the_start_and_on_sighup_and_broken_ones_change_nothing() {
    let parent = tempfile::tempdir().unwrap();
    let data = parent.path().join("data");
    let files = data.join("catalogue");
    std::fs::create_dir_all(&files).unwrap();
    let write = |file: &str, text: &str| std::fs::write(files.join(file), text).unwrap();
    write("mine.toml", &service("64Mi"));
    write("other.toml", "name = \"other\"\nplans = 7\n");
    let mut serve = program(&data, &["--listen", "127.0.0.1:0"]);
    serve.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = Child(serve.spawn().unwrap());
    let server = &mut running.0;
    let mut ready = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut ready).unwrap();
    let url = serde_json::from_str::<Value>(&ready).unwrap()["listening"].as_str().unwrap().to_owned();
    let mut lines = BufReader::new(server.stderr.take().unwrap()).lines();
    let mut logged =
        |word: &str| lines.by_ref().map(Result::unwrap).find(|line| line.contains(word)).unwrap_or_default();
    assert!(logged("refused").contains("other.toml"), "a broken file keeps no server from starting");
    let pid = rustix::process::Pid::from_raw(i32::try_from(server.id()).unwrap()).unwrap();
    let mut hang_up = || {
        rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
        assert!(logged("the catalogue was read again").contains("changed"));
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let list = || runtime.block_on(Client::at(&url, &data).get("services"));
    let mine = |size: &str| vec![("mine".to_owned(), size.to_owned())];

    let (services, conditions) = told(&list());
    assert_eq!(services, mine("64Mi"), "a directory takes the place of what is shipped");
    assert!(conditions.len() == 1 && conditions[0].starts_with("other.toml: 2:9: plans"), "{conditions:?}");

    write("mine.toml", &service("128Mi"));
    std::fs::remove_file(files.join("other.toml")).unwrap();
    hang_up();
    assert_eq!(told(&list()), (mine("128Mi"), Vec::new()));

    write("mine.toml", &service("lots"));
    hang_up();
    let (services, conditions) = told(&list());
    assert_eq!(services, mine("128Mi"), "the version before stays in force");
    assert!(conditions.len() == 1 && conditions[0].contains("mine.toml: 9:8: "), "{conditions:?}");
    let events = runtime.block_on(Client::at(&url, &data).get("events"));
    let kinds: Vec<&str> = events["items"].as_array().unwrap().iter().map(|e| e["type"].as_str().unwrap()).collect();
    let kinds: Vec<&str> = kinds.into_iter().filter(|kind| kind.starts_with("catalogue.")).collect();
    assert_eq!(kinds, ["catalogue.file-refused", "catalogue.changed", "catalogue.file-refused"]);

    let (exit, text) = runtime.block_on(command(&url, &data, &["service", "ls"], None));
    assert_eq!(exit, Exit::Done, "{text}");
    assert!(text.contains("mine") && text.contains("FileRefused: mine.toml: 9:8"), "{text}");
    // What was described over the API stays when the files are read again, and says that it hides one.
    let applied = parent.path().join("mine.toml");
    std::fs::write(&applied, service("256Mi")).unwrap();
    let (exit, text) = runtime.block_on(command(&url, &data, &["service", "apply"], Some(&applied)));
    assert_eq!(exit, Exit::Done, "{text}");
    hang_up();
    let (services, conditions) = told(&list());
    assert_eq!(services, mine("256Mi"));
    assert!(conditions[0].contains("database"), "{conditions:?}");
    round_trip(&runtime, &url, &data, &applied);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(server.wait().unwrap().success());
}

/// What `service show --toml` prints is a file that `service apply` takes, and changes nothing.
fn round_trip(runtime: &tokio::runtime::Runtime, url: &str, data: &Path, file: &Path) {
    let (exit, text) = runtime.block_on(command(url, data, &["service", "show", "mine", "--toml"], None));
    assert_eq!(exit, Exit::Done, "{text}");
    std::fs::write(file, &text).unwrap();
    let revision = || runtime.block_on(Client::at(url, data).get("services/mine"))["revision"].clone();
    let before = revision();
    let (exit, text) = runtime.block_on(command(url, data, &["service", "apply"], Some(file)));
    assert_eq!((exit, revision()), (Exit::Done, before), "{text}");
    let (exit, text) = runtime.block_on(command(url, data, &["service", "rm", "mine"], None));
    assert_eq!(exit, Exit::Done, "{text}");
    assert!(text.contains("mine.toml is in force again"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_was_named_is_read_and_one_that_is_away_is_told() {
    use perennial::config::{CatalogueSection, Config};
    use perennial::serve::Running;
    let parent = tempfile::tempdir().unwrap();
    let named = parent.path().join("services");
    let section = CatalogueSection { directory: Some(named.clone()) };
    let config = Config { catalogue: section, ..crate::config(&parent.path().join("data")) };
    let server = Running::start(&config).await.unwrap();
    let list = Client::of(&server).get("services").await;
    assert_eq!(list["items"].as_array().unwrap().len(), 6, "what is shipped");
    assert!(list["conditions"][0]["message"].as_str().unwrap().contains("cannot be read"), "{list}");
    server.stop().await;
    std::fs::create_dir(&named).unwrap();
    std::fs::write(named.join("mine.toml"), service("64Mi")).unwrap();
    let server = Running::start(&config).await.unwrap();
    let list = Client::of(&server).get("services").await;
    assert_eq!(told(&list), (vec![("mine".to_owned(), "64Mi".to_owned())], Vec::new()));
    assert_eq!((&list["items"][0]["source"], &list["items"][0]["file"]), (&json!("file"), &json!("mine.toml")));
    server.stop().await;
}
