//! What depends on the process: the real program, without a server.

use std::process::{Command, Output};

use serde_json::{Value, json};

fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_perennial"));
    command.args(arguments).env_clear().envs(environment.iter().copied()).output().unwrap()
}

#[test]
fn the_configuration_is_shown_in_every_form_and_a_good_one_is_said_to_be() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().to_str().unwrap();
    let config = |words: &[&str]| run(&[&["config"], words, &["--data-dir", data]].concat(), &[]);
    let checked = config(&["check"]);
    assert_eq!(checked.status.code(), Some(0), "{checked:?}");
    let said = "there is no configuration file; the defaults, flags and environment are good";
    assert_eq!(text(&checked.stdout), format!("{said} (data in {data})\n"));

    let file = directory.path().join("perennial.toml");
    std::fs::write(&file, "listen = \"127.0.0.1:7118\"\ndatabase = \"postgres://me:secret@db/p\"\n").unwrap();
    assert_eq!(text(&config(&["check"]).stdout), format!("{} is good (data in {data})\n", file.display()));
    let checked: Value = serde_json::from_slice(&config(&["check", "-o", "json"]).stdout).unwrap();
    assert_eq!(checked, json!({"file": file, "dataDir": data}));

    assert!(text(&config(&["show"]).stdout).contains("listen = \"127.0.0.1:7118\"\n"));
    assert!(text(&config(&["show", "-o", "yaml"]).stdout).contains("listen: 127.0.0.1:7118\n"));
    let shown = config(&["show", "-o", "json"]).stdout;
    let shown: Value = serde_json::from_slice(&shown).unwrap();
    assert_eq!((&shown["listen"], &shown["database"]), (&json!("127.0.0.1:7118"), &json!("postgres://me:***@db/p")));

    std::fs::write(&file, "lisen = 1\n").unwrap();
    for command in ["check", "show"] {
        let refused = config(&[command, "-o", "json"]);
        assert_eq!((refused.status.code(), text(&refused.stdout)), (Some(6), ""));
        let problem: Value = serde_json::from_slice(&refused.stderr).unwrap();
        assert_eq!((&problem["code"], &problem["status"]), (&json!("invalid-input"), &json!(422)));
        assert!(problem["detail"].as_str().unwrap().contains("lisen"), "{problem}");
    }
}

#[test]
fn the_version_is_a_verb_as_well() {
    let version = format!("perennial {}\n", env!("CARGO_PKG_VERSION"));
    for word in ["version", "--version"] {
        assert_eq!(text(&run(&[word], &[]).stdout), version, "{word}");
    }
    let json: Value = serde_json::from_slice(&run(&["version", "-o", "json"], &[]).stdout).unwrap();
    assert_eq!(json, json!({"version": env!("CARGO_PKG_VERSION")}));
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn usage_names_no_option_that_the_environment_sets() {
    let environment = [
        ("PERENNIAL_SERVER", "http://127.0.0.1:1"),
        ("PERENNIAL_DATA_DIR", "/nonexistent"),
        ("PERENNIAL_CA_FILE", "/nonexistent"),
        ("PERENNIAL_LISTEN", "127.0.0.1:1"),
        ("RESTIC_REPOSITORY", "/nonexistent"),
    ];
    for (arguments, usage) in [
        (&["pod", "create"][..], "Usage: perennial pod create --image <IMAGE> <NAME> [-- <COMMAND>...]"),
        (&["pod", "clone", "dev"], "Usage: perennial pod clone <POD> <NAME>"),
        (&["serve", "--bad"], "Usage: perennial serve [OPTIONS]"),
    ] {
        let ran = run(arguments, &environment);
        assert_eq!(ran.status.code(), Some(2), "{arguments:?}");
        let stderr = text(&ran.stderr);
        assert_eq!(stderr.lines().find(|line| line.starts_with("Usage:")), Some(usage), "{stderr}");
    }
    // What is typed is named.
    let typed = run(&["pod", "clone", "--server", "http://h:1"], &environment);
    assert!(text(&typed.stderr).contains("Usage: perennial pod clone --server <URL> <POD> <NAME>"), "{typed:?}");
    // What the environment gives is not missing.
    let given = run(&["repository", "copy"], &environment);
    assert!(!text(&given.stderr).split("Usage:").next().unwrap().contains("--repo"), "{given:?}");
}
