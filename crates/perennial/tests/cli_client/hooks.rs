//! Hooks on the command line: typed, changed and shown.

use perennial::api::wire::{Hook, HookReport, HookRun, Hooks, OnHookFailure, OperationKind};
use perennial::cli::Exit;
use serde_json::{Value, json};

use super::fake::{Asked, Fake, POD, begun, created, pod, snapshot};

fn said(asked: &Asked) -> &Value {
    asked.body.as_ref().unwrap()
}

fn hook(words: &[&str], timeout: u32) -> Hook {
    Hook { command: words.iter().map(|w| (*w).to_owned()).collect(), user: None, timeout }
}

#[tokio::test]
async fn hooks_are_typed_at_create_and_changed_one_by_one() {
    let fake = Fake::default();
    fake.on("POST /api/v1/pods", [begun(pod("dev"), OperationKind::Create)]);
    let typed = ["--hook-before", "psql -c 'select 1'", "--hook-after", r#"["sh","-c","a b"]"#, "--hook-timeout", "2m"];
    let command = [&["pod", "create", "dev", "--image", "debian:12", "--no-wait"][..], &typed[..]].concat();
    let ran = fake.run(&command).await;
    assert_eq!(ran.exit, Exit::Done, "{}", ran.stderr);
    let hooks = Hooks {
        before: Some(hook(&["psql", "-c", "select 1"], 120)),
        after: Some(hook(&["sh", "-c", "a b"], 120)),
        on_failure: OnHookFailure::Fail,
    };
    assert_eq!(created(said(&fake.asked()[0])).hooks, Some(hooks.clone()));

    let mut with_hooks = pod("dev");
    with_hooks.spec.hooks = hooks.clone();
    let path = format!("/api/v1/pods/{POD}");
    let change = async |arguments: &[&str]| {
        let fake = Fake::default();
        fake.pods(&[with_hooks.clone()]).on(&format!("PATCH {path}"), [with_hooks.clone()]);
        fake.on(&format!("GET {path}"), [with_hooks.clone()]);
        let ran = fake.run(&[&["pod", "set", "dev"], arguments].concat()).await;
        assert_eq!(ran.exit, Exit::Done, "{}", ran.stderr);
        said(&fake.asked_for("PATCH")[0])["hooks"].clone()
    };
    let lenient = Hooks { on_failure: OnHookFailure::Continue, ..hooks.clone() };
    assert_eq!(change(&["--hook-on-failure", "continue"]).await, json!(lenient));
    assert_eq!(change(&["--unset", "hook-after"]).await, json!(Hooks { after: None, ..hooks.clone() }));
    let none: Value = change(&["--unset", "hooks"]).await;
    assert_eq!(none, json!(Hooks::default()));
    // A time of no hook is not swallowed.
    let fake = Fake::default();
    fake.pods(&[pod("dev")]).on(&format!("GET {path}"), [pod("dev")]);
    let ran = fake.run(&["pod", "set", "dev", "--hook-timeout", "5s"]).await;
    assert_eq!(ran.exit, Exit::Usage, "{}", ran.stderr);
    assert!(ran.stderr.contains("--hook-before"), "{}", ran.stderr);
}

#[tokio::test]
async fn what_hooks_did_is_shown() {
    let mut with_hooks = pod("dev");
    with_hooks.spec.hooks = Hooks { before: Some(hook(&["sh", "-c", "a b"], 30)), ..Hooks::default() };
    let fake = Fake::default();
    fake.pods(&[with_hooks.clone()]).on(&format!("GET /api/v1/pods/{POD}"), [with_hooks]);
    let ran = fake.run(&["pod", "show", "dev"]).await;
    assert!(ran.stdout.contains("sh -c 'a b' (at most 30 s)"), "{}", ran.stdout);

    let mut taken = snapshot();
    let run = |problem: Option<&str>| HookRun { exit_code: Some(0), millis: 12, problem: problem.map(str::to_owned) };
    taken.consistency.hooks =
        Some(HookReport { before: Some(run(None)), after: Some(run(Some("it \u{1b}[31mfailed"))) });
    let fake = Fake::default();
    fake.on(&format!("GET /api/v1/snapshots/{}", taken.id), [taken.clone()]);
    let ran = fake.run(&["snapshot", "show", &taken.id]).await;
    assert!(ran.stdout.contains("succeeded in 12 ms") && ran.stdout.contains("failed"), "{}", ran.stdout);
    assert!(!ran.stdout.contains('\u{1b}'));
}
