//! What depends on the process: the real program, without a server.

use std::process::{Command, Output};

fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_perennial"));
    command.args(arguments).env_clear().envs(environment.iter().copied()).output().unwrap()
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
