//! `perennial tenant`: what is said before and after, and what is asked for.

use perennial::api::wire::{ErasedPlace, Erasure, ErasureState, PlaceBecame};
use perennial::cli::Exit;
use serde_json::json;

use super::fake::{Fake, Reply, problem, time};

const ERASE: &str = "POST /api/v1/tenants/acme/erase";
const ERASURE: &str = "GET /api/v1/tenants/acme/erasure";

fn erasure(state: ErasureState) -> Erasure {
    let asked = (state != ErasureState::Planned).then(|| time("2026-01-01T00:00:00Z"));
    Erasure {
        tenant: "acme".to_owned(),
        state,
        delete_data: false,
        repository: ErasedPlace { location: "/r/acme".to_owned(), snapshots: Some(3), bytes: Some(2048), became: None },
        replica: Some(ErasedPlace { location: "/far/acme".to_owned(), snapshots: None, bytes: None, became: None }),
        blockers: Vec::new(),
        doubts: Vec::new(),
        accept_unknown: None,
        meaning: vec!["There is no way back.".to_owned()],
        actor: asked.map(|_| "admin".to_owned()),
        asked_at: asked,
        keys_destroyed_at: None,
        erased_at: None,
        problem: None,
        progress: None,
    }
}

#[tokio::test]
async fn a_dry_run_says_everything_and_asks_for_nothing() {
    let fake = Fake::default();
    let mut plan = Erasure {
        blockers: vec!["pod dev (01) is not purged".to_owned()],
        doubts: vec!["/far/acme cannot be looked at".to_owned()],
        accept_unknown: Some("abc".to_owned()),
        ..erasure(ErasureState::Planned)
    };
    plan.replica.as_mut().unwrap().became = Some(PlaceBecame::Untouched);
    fake.on(ERASE, [plan]);
    let ran = fake.run(&["tenant", "erase", "acme", "--dry-run", "--delete-data"]).await;
    assert_eq!(
        ran.stdout,
        "\
erasing tenant acme would mean:
  repository /r/acme: 3 snapshots, layers and images, 2.0 KiB
  replica /far/acme: could not be looked at; NOT TOUCHED
- There is no way back.
It would be refused now:
  pod dev (01) is not purged
It would be refused without --accept-unknown abc:
  /far/acme cannot be looked at
Nothing was done.
"
    );
    let asked = fake.asked_for("POST");
    assert_eq!(asked.len(), 1);
    let body = asked[0].body.as_ref().unwrap();
    let no = serde_json::Value::Null;
    assert_eq!(*body, json!({"dryRun": true, "confirm": no, "deleteData": true, "acceptUnknown": no, "giveUp": false}));
}

#[tokio::test]
async fn it_is_done_when_the_name_was_typed_and_waited_for() {
    let fake = Fake::default();
    fake.on(ERASE, [erasure(ErasureState::Planned)]);
    let ran = fake.run(&["tenant", "erase", "acme"]).await;
    assert!(ran.exit == Exit::Usage && ran.stderr.contains("--dry-run"), "{}", ran.stderr);
    for typed in ["other\n", "\n"] {
        let ran = fake.run_typing(&["tenant", "erase", "acme"], typed).await;
        assert!(ran.exit == Exit::Usage && ran.stderr.contains("nothing was done"), "{}", ran.stderr);
        assert!(ran.stderr.contains("There is no way back."), "{}", ran.stderr);
    }
    let dry = |asked: &super::fake::Asked| asked.body.as_ref().unwrap()["dryRun"] == true;
    assert!(fake.asked_for("POST").iter().all(dry));

    let fake = Fake::default();
    fake.on(ERASE, [erasure(ErasureState::Planned), erasure(ErasureState::DestroyingKeys)]);
    fake.on(ERASURE, [ErasureState::DestroyingKeys, ErasureState::Emptying, ErasureState::Erased].map(erasure));
    let ran = fake.run_typing(&["tenant", "erase", "acme"], "acme\n").await;
    assert!(
        ran.exit == Exit::Done && ran.stdout.starts_with("tenant acme is erased\n"),
        "{}{}",
        ran.stdout,
        ran.stderr
    );
    assert_eq!(fake.asked_for("POST")[1].body.as_ref().unwrap()["confirm"], "acme");
    assert_eq!(fake.asked_for("GET").len(), 3);
}

#[tokio::test]
async fn what_is_in_the_way_is_told() {
    let fake = Fake::default();
    fake.on(ERASE, [erasure(ErasureState::Planned)]);
    fake.reply(ERASE, [Reply::Json(409, problem(409, "tenant-in-use", "tenant acme cannot be erased: pod dev"))]);
    let ran = fake.run(&["tenant", "erase", "acme", "--yes"]).await;
    assert!(ran.exit == Exit::Conflict && ran.stderr.contains("pod dev"), "{}", ran.stderr);

    let fake = Fake::default();
    let stuck = Erasure { problem: Some("/r/acme is not there".to_owned()), ..erasure(ErasureState::Emptying) };
    fake.on(ERASE, [erasure(ErasureState::Planned), erasure(ErasureState::DestroyingKeys)]).on(ERASURE, [stuck]);
    let ran = fake.run(&["tenant", "erase", "acme", "--yes"]).await;
    assert!(ran.exit == Exit::Failed && ran.stderr.contains("tried again by itself"), "{}", ran.stderr);
    assert!(ran.stdout.contains("not done yet: /r/acme is not there"), "{}", ran.stdout);
    let ran = fake.run(&["tenant", "erasure", "acme", "-o", "json"]).await;
    assert_eq!(ran.json()["state"], "emptying");
}

#[tokio::test]
async fn the_doubts_that_were_told_are_accepted_and_only_with_a_word() {
    // Not what the plan of this moment says: nobody was shown it.
    for (words, sent) in [(vec!["--accept-unknown", "def"], json!("def")), (Vec::new(), serde_json::Value::Null)] {
        let fake = Fake::default();
        let doubts = vec!["/far/acme cannot be looked at".to_owned()];
        let plan = Erasure { doubts, accept_unknown: Some("abc".to_owned()), ..erasure(ErasureState::Planned) };
        fake.on(ERASE, [plan, erasure(ErasureState::Erased)]);
        fake.run(&[vec!["tenant", "erase", "acme", "--yes"], words].concat()).await;
        assert_eq!(fake.asked_for("POST")[1].body.as_ref().unwrap()["acceptUnknown"], sent);
    }
}

#[tokio::test]
async fn what_is_erased_but_not_everywhere_is_a_failure_also_when_it_is_asked_for_again() {
    let with_problem =
        Erasure { problem: Some("on server b: a key stays".to_owned()), ..erasure(ErasureState::Erased) };
    let mut untouched = erasure(ErasureState::Erased);
    untouched.replica.as_mut().unwrap().became = Some(PlaceBecame::Untouched);
    let mut given_up = erasure(ErasureState::Erased);
    given_up.repository.became = Some(PlaceBecame::GivenUp);
    for (end, word) in [(with_problem, "a key stays"), (untouched, "/far/acme"), (given_up, "/r/acme")] {
        let fake = Fake::default();
        fake.on(ERASE, [erasure(ErasureState::Planned), erasure(ErasureState::DestroyingKeys)])
            .on(ERASURE, [end.clone()]);
        let again = Fake::default();
        again.on(ERASE, [end]);
        for fake in [fake, again] {
            let ran = fake.run(&["tenant", "erase", "acme", "--yes"]).await;
            assert!(ran.exit == Exit::Failed && ran.stderr.contains(word), "{}", ran.stderr);
            assert!(ran.stdout.starts_with("tenant acme is erased, but not everywhere\n"), "{}", ran.stdout);
        }
    }
}

#[tokio::test]
async fn what_is_given_up_is_told_before_and_confirmed() {
    let fake = Fake::default();
    let stuck = Erasure { problem: Some("/r/acme is not there".to_owned()), ..erasure(ErasureState::Emptying) };
    fake.on(ERASE, [erasure(ErasureState::Planned), stuck.clone()]);
    let ran = fake.run_typing(&["tenant", "erase", "acme", "--give-up"], "other\n").await;
    assert!(ran.exit == Exit::Usage && fake.asked_for("POST").len() == 1, "{}", ran.stderr);
    fake.run_typing(&["tenant", "erase", "acme", "--give-up"], "acme\n").await;
    let asked = fake.asked_for("POST");
    assert!(asked.iter().all(|asked| asked.body.as_ref().unwrap()["giveUp"] == true));
    let ran = fake.run(&["tenant", "erase", "acme", "--give-up", "--delete-data"]).await;
    assert_eq!(ran.exit, Exit::Usage);
}
