//! Confirmations, dry runs, accepted losses.

use perennial::api::wire::{List, Loss, OperationKind};
use perennial::cli::Exit;
use serde_json::json;

use super::fake::{Fake, POD, Ran, SNAPSHOT, pod, snapshot, stopped, with_action};

/// Every command that destroys, and the request it would send.
fn destroyers() -> [(Vec<&'static str>, String, OperationKind); 4] {
    let post = |verb| format!("POST /api/v1/pods/{POD}/{verb}");
    [
        (vec!["pod", "reset", "dev"], post("reset"), OperationKind::Reset),
        (vec!["pod", "restore", "dev", "latest"], post("restore"), OperationKind::Restore),
        (vec!["pod", "rm", "dev"], format!("DELETE /api/v1/pods/{POD}"), OperationKind::Delete),
        (vec!["pod", "purge", "dev"], post("purge"), OperationKind::Purge),
    ]
}

fn fake(request: &str, kind: OperationKind) -> Fake {
    let fake = with_action(request, kind, &pod("dev"));
    fake.on(&format!("GET /api/v1/pods/{POD}/snapshots"), [List { items: vec![snapshot()], next: None }]);
    fake
}

fn nothing_was_done(fake: &Fake) {
    assert!(fake.asked().iter().all(|asked| asked.what.starts_with("GET ")));
}

#[tokio::test]
async fn without_a_terminal_nothing_is_destroyed() {
    for (command, request, kind) in destroyers() {
        let fake = fake(&request, kind);
        let ran = fake.run(&command).await;
        assert_eq!(ran.exit, Exit::Usage, "{command:?}");
        let message = "needs a confirmation, and there is no terminal to ask on: nothing was done\n\nhint: ";
        assert!(ran.stderr.contains(message) && ran.stderr.contains("--yes"), "{}", ran.stderr);
        nothing_was_done(&fake);
    }
}

#[tokio::test]
async fn on_a_terminal_only_the_name_confirms() {
    for (command, request, kind) in destroyers() {
        for typed in ["\n", "y\n", "yes\n", "Dev\n", ""] {
            let fake = fake(&request, kind);
            let ran = fake.run_typing(&command, typed).await;
            assert_eq!(ran.exit, Exit::Usage);
            assert!(ran.stderr.ends_with("error: not confirmed: nothing was done\n"), "{}", ran.stderr);
            nothing_was_done(&fake);
        }
        let fake = fake(&request, kind);
        let ran = fake.run_typing(&command, "dev\n").await;
        assert_eq!(ran.exit, Exit::Done, "{}", ran.stderr);
        assert!(ran.stderr.contains("Type the pod's name (dev) to go on: "), "{}", ran.stderr);
        assert!(fake.asked().iter().any(|asked| asked.what == request), "{command:?}");
    }
}

#[tokio::test]
async fn a_dry_run_does_nothing_even_with_yes() {
    for (mut command, request, kind) in destroyers() {
        command.extend(["--dry-run", "--yes"]);
        let fake = fake(&request, kind);
        let ran = fake.run(&command).await;
        assert_eq!((ran.exit, ran.stderr.as_str()), (Exit::Done, ""), "{command:?}");
        assert!(ran.stdout.ends_with("This was a dry run: nothing was done.\n"), "{}", ran.stdout);
        nothing_was_done(&fake);
    }
}

async fn dry(command: &[&str], fake: &Fake) -> Ran {
    fake.run(&[command, &["--dry-run"]].concat()).await
}

#[tokio::test]
async fn what_a_reset_does() {
    let fake = fake("-", OperationKind::Reset);
    assert_eq!(
        dry(&["pod", "reset", "dev"], &fake).await.stdout,
        format!(
            "reset of pod dev ({POD}):
  container c0ffee: removed and created again
      because its volumes are replaced
  volumes home, etc: replaced by what image debian:12 holds
      because reset makes the pod new
  changes outside volumes (system layer): replaced as well
      because a data set is atomic
Where the data is afterwards: in the repository of tenant default: a safety snapshot, taken and verified first; \
             if that fails, nothing is replaced
Way back: perennial pod restore dev SNAPSHOT; perennial snapshot ls dev lists the safety snapshot
This was a dry run: nothing was done.
"
        )
    );
}

#[tokio::test]
async fn what_a_restore_does_names_what_will_be_missing() {
    let mut damaged = snapshot();
    damaged.consistency.losses = vec![Loss { path: "/volumes/home/x".to_owned(), reason: "unreadable".to_owned() }];
    let fake = fake("-", OperationKind::Restore);
    fake.on(&format!("GET /api/v1/snapshots/{SNAPSHOT}"), [damaged]);
    let ran = dry(&["pod", "restore", "dev", SNAPSHOT], &fake).await;
    assert!(
        ran.stdout.contains(&format!(
            "  volumes home, etc: replaced by snapshot {SNAPSHOT} (final, verified, 1 lost, 12.3 MiB, 2 h ago)\n"
        )),
        "{}",
        ran.stdout
    );
    assert!(
        ran.stdout.contains("  /volumes/home/x: will be missing\n      because the snapshot lacks it: unreadable\n"),
        "{}",
        ran.stdout
    );
}

fn preview() -> serde_json::Value {
    let entry = |name: &str| {
        json!({"name": name, "nameBytes": null, "kind": "file", "mode": 420, "uid": 0, "gid": 0, "size": 1,
               "modifiedAt": null, "target": null, "targetBytes": null, "links": 1, "device": null,
               "xattrs": [], "origin": "volume", "volume": "home"})
    };
    let change = |path: &str, change: &str, before: bool, after: bool| {
        json!({"path": path, "pathBytes": null, "change": change, "metadata": false,
               "before": before.then(|| entry("x")), "after": after.then(|| entry("x"))})
    };
    json!({"dryRun": true, "snapshotId": SNAPSHOT, "comparedWith": SNAPSHOT, "comparedAt": null, "complete": true,
           "changes": [change("/home/a", "content", true, true), change("/home/new\u{1b}", "removed", true, false)]})
}

#[tokio::test]
async fn what_a_restore_of_parts_does_names_every_file() {
    let request = format!("POST /api/v1/pods/{POD}/restore");
    let fake = fake("-", OperationKind::Restore);
    fake.on(&request, [preview()]);
    let command = ["pod", "restore", "dev", "latest", "--volume", "home", "--path", "/etc/nginx", "--keep-extra"];
    let ran = dry(&command, &fake).await;
    assert_eq!(ran.exit, Exit::Done, "{}", ran.stderr);
    for part in [
        "  volume home: put back; files that the snapshot lacks are kept, from snapshot",
        "  /etc/nginx: put back;",
        "  everything else: stays as it is\n",
        "What would change:\n",
        "  M /home/a  (content)\n",
        "  - /home/new",
        "This was a dry run: nothing was done.\n",
    ] {
        assert!(ran.stdout.contains(part), "{part:?} in {}", ran.stdout);
    }
    assert!(!ran.stdout.contains('\u{1b}'), "a name of a file reached the terminal");
    let asked = fake.asked();
    let bodies: Vec<_> =
        asked.iter().filter(|asked| asked.what == request).filter_map(|asked| asked.body.clone()).collect();
    assert_eq!(bodies.len(), 1);
    let body = &bodies[0];
    assert_eq!((&body["volumes"], &body["paths"]), (&json!(["home"]), &json!(["/etc/nginx"])));
    assert_eq!((&body["extra"], &body["dryRun"]), (&json!("keep"), &json!(true)));
}

#[tokio::test]
async fn a_clone_is_asked_for_with_its_name_and_what_it_is_made_from() {
    let request = format!("POST /api/v1/pods/{POD}/clone");
    let fake = fake(&request, OperationKind::Clone);
    let ran = fake.run(&["pod", "clone", "dev", "copy", "--snapshot", "latest", "--keep-identity"]).await;
    assert_eq!(ran.exit, Exit::Done, "{}", ran.stderr);
    let asked = fake.asked();
    let body = &asked.iter().find(|asked| asked.what == request).unwrap().body;
    assert_eq!(*body, Some(json!({"name": "copy", "snapshotId": SNAPSHOT, "keepIdentity": true})));
}

#[tokio::test]
async fn what_a_purge_does_as_json() {
    let fake = fake("-", OperationKind::Purge);
    let plan = dry(&["pod", "purge", "dev", "-o", "json"], &fake).await.json();
    let why = "purge destroys everything of the pod";
    assert_eq!(
        plan,
        json!({
            "action": "purge", "podId": POD, "pod": "dev",
            "effects": [
                {"what": "container c0ffee", "effect": "removed", "why": why},
                {"what": "volumes home, etc", "effect": "deleted from the host, without a snapshot", "why": why},
                {"what": "all 1 snapshots (1 verified, 12.3 MiB of content)",
                 "effect": "forgotten and pruned from the repository", "why": why},
                {"what": "pod dev", "effect": "gone", "why": why},
            ],
            "copy": "nowhere: no copy is left", "wayBack": "none",
        })
    );
}

#[tokio::test]
async fn deleting_a_stopped_pod_names_the_snapshot_that_holds_the_data() {
    let fake = Fake::default();
    fake.pods(&[stopped("dev")]);
    let ran = dry(&["pod", "rm", "dev"], &fake).await;
    let copy = format!("in the repository of tenant default: snapshot {SNAPSHOT} (final, verified, 12.3 MiB, 2 h ago)");
    assert!(ran.stdout.contains(&copy), "{}", ran.stdout);
    assert!(!ran.stdout.contains("volumes home"), "{}", ran.stdout);
}

#[tokio::test]
async fn accepted_losses_need_a_confirmation_and_are_sent_exactly() {
    let table = [
        (vec!["pod", "stop", "dev"], format!("POST /api/v1/pods/{POD}/stop"), OperationKind::Stop),
        (vec!["pod", "archive", "dev"], format!("POST /api/v1/pods/{POD}/archive"), OperationKind::Archive),
        (vec!["pod", "reset", "dev"], format!("POST /api/v1/pods/{POD}/reset"), OperationKind::Reset),
        (vec!["pod", "rm", "dev"], format!("DELETE /api/v1/pods/{POD}"), OperationKind::Delete),
    ];
    for (command, request, kind) in table {
        let command = [command, vec!["--accept-loss", "/volumes/home/a", "/volumes/etc/b"]].concat();
        let refused = fake(&request, kind);
        assert_eq!(refused.run(&command).await.exit, Exit::Usage, "{command:?}");
        nothing_was_done(&refused);

        let asked = fake(&request, kind);
        let ran = asked.run_typing(&command, "dev\n").await;
        assert!(
            ran.stderr.contains("  /volumes/home/a: may be missing from the snapshot, and then is lost\n"),
            "{}",
            ran.stderr
        );
        let body = asked.asked().into_iter().find(|asked| asked.what == request).unwrap().body;
        assert_eq!(
            body,
            Some(json!({"acceptLoss": ["/volumes/home/a", "/volumes/etc/b"], "confirm": "dev"})),
            "{command:?}"
        );
    }
}
