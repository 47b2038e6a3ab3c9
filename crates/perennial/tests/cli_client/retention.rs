//! Schedules and rules as they are typed, and what a forget prints.

use perennial::api::wire::{Age, Decision, Fate, Forgetting, Keep, OperationKind, OperationState, SnapshotRules};
use perennial::cli::Exit;
use serde_json::{Value, json};

use super::fake::{Asked, Fake, POD, begun, created, operation, pod, snapshot};

fn answer(dry_run: bool) -> Forgetting {
    let decision = |action, id: &str, reason: &str| {
        let mut snapshot = snapshot();
        snapshot.id = id.to_owned();
        Decision { snapshot, action, reasons: vec![reason.to_owned()] }
    };
    let deletion = operation(OperationKind::SnapshotDelete, OperationState::Pending, "");
    Forgetting {
        dry_run,
        keep: Keep { daily: 7, ..Keep::default() },
        time_zone: "Europe/Berlin".to_owned(),
        decisions: vec![
            decision(Fate::Keep, "01b", "the newest verified snapshot always stays"),
            decision(Fate::Forget, "01a", "no rule keeps it"),
        ],
        operations: if dry_run { Vec::new() } else { vec![deletion] },
    }
}

fn said(asked: &Asked) -> &Value {
    asked.body.as_ref().unwrap()
}

const FORGET: &str = "POST /api/v1/pods/01kefakep0d000000000000000/snapshots/forget";

#[tokio::test]
async fn a_forget_shows_why_and_does_nothing_in_a_dry_run() {
    let fake = Fake::default();
    fake.pods(&[pod("dev")]).on(FORGET, [answer(true)]);
    let ran = fake.run(&["snapshot", "forget", "dev", "--dry-run", "--keep-daily", "7"]).await;
    assert_eq!(
        ran.stdout,
        "\
ID   KIND   STATE     SIZE      CREATED  ACTION  WHY
01b  final  verified  12.3 MiB  2 h ago  keep    the newest verified snapshot always stays
01a  final  verified  12.3 MiB  2 h ago  forget  no rule keeps it

keep 7 daily (Europe/Berlin): 1 would go. Nothing was done.
"
    );
    let asked = fake.asked_for("POST");
    assert_eq!(asked.len(), 1);
    assert_eq!((&said(&asked[0])["dryRun"], &said(&asked[0])["keep"]["daily"]), (&json!(true), &json!(7)));
}

#[tokio::test]
async fn a_forget_needs_a_confirmation_and_repeats_the_rules() {
    let fake = Fake::default();
    fake.pods(&[pod("dev")]).on(FORGET, [answer(true)]);
    let ran = fake.run(&["snapshot", "forget", "dev"]).await;
    assert_eq!(ran.exit, Exit::Usage, "{}", ran.stderr);
    assert!(ran.stderr.contains("--dry-run"), "{}", ran.stderr);
    assert_eq!(fake.asked_for("POST").len(), 1, "only the dry run was asked for");

    let fake = Fake::default();
    fake.pods(&[pod("dev")]).on(FORGET, [answer(true), answer(false)]);
    let ran = fake.run(&["snapshot", "forget", "dev", "--yes", "--keep-within", "30d"]).await;
    assert!(ran.stdout.ends_with("1 are being deleted\n"), "{}", ran.stdout);
    let asked = fake.asked_for("POST");
    assert_eq!((&said(&asked[1])["confirm"], &said(&asked[1])["dryRun"]), (&json!("dev"), &json!(false)));
    assert_eq!(said(&asked[0])["keep"], said(&asked[1])["keep"]);
    assert_eq!(said(&asked[1])["keep"]["within"], "30d");
}

#[tokio::test]
async fn rules_are_typed_at_create_and_changed_one_by_one() {
    let fake = Fake::default();
    fake.on("POST /api/v1/pods", [begun(pod("dev"), OperationKind::Create)]);
    let typed =
        ["--schedule", "0 3 * * *", "--time-zone", "Europe/Berlin", "--keep-daily", "7", "--keep-manual", "rotate"];
    let command = [&["pod", "create", "dev", "--image", "debian:12", "--no-wait"][..], &typed[..]].concat();
    let ran = fake.run(&command).await;
    assert_eq!(ran.exit, Exit::Done, "{}", ran.stderr);
    let keep = Keep { daily: 7, manual: true, ..Keep::default() };
    let rules = SnapshotRules {
        schedule: Some("0 3 * * *".to_owned()),
        time_zone: Some("Europe/Berlin".to_owned()),
        keep: Some(keep),
    };
    assert_eq!(created(said(&fake.asked()[0])).snapshots, Some(rules.clone()));

    let mut with_rules = pod("dev");
    with_rules.spec.snapshots = rules.clone();
    let path = format!("/api/v1/pods/{POD}");
    let change = async |arguments: &[&str]| {
        let fake = Fake::default();
        fake.pods(&[with_rules.clone()]).on(&format!("PATCH {path}"), [with_rules.clone()]);
        fake.on(&format!("GET {path}"), [with_rules.clone()]);
        let ran = fake.run(&[&["pod", "set", "dev"], arguments].concat()).await;
        assert_eq!(ran.exit, Exit::Done, "{}", ran.stderr);
        said(&fake.asked_for("PATCH")[0])["snapshots"].clone()
    };
    let changed = change(&["--keep-weekly", "4", "--unset", "schedule"]).await;
    let keep = Keep { weekly: 4, ..keep };
    assert_eq!(changed, json!(SnapshotRules { schedule: None, keep: Some(keep), ..rules.clone() }));
    assert_eq!(change(&["--unset", "keep"]).await, json!(SnapshotRules { keep: None, ..rules }));
}

#[test]
fn ages_are_read_and_written_alike() {
    for (text, shown) in [("30d", "30d"), ("12h", "12h"), ("24h", "1d"), ("1w 1d", "8d"), ("90m", "1h 30m")] {
        let age = Age::parse(text).unwrap();
        assert_eq!(age.to_string(), shown);
        assert_eq!(Age::parse(shown), Ok(age));
    }
    assert!(Age::parse("soon").is_err() && Age::parse("2 months").is_err());
}
