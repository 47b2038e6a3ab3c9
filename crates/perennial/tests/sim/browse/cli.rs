//! The command line against the API, over HTTP.

use perennial::cli::Exit;
use perennial_core::id::PodId;
use perennial_core::operation::OperationKind;
use perennial_core::spec::{Backend, TenantId};
use perennial_snapshots::FileKind;
use perennial_snapshots::backend::Backend as _;

use super::desk::Desk;
use super::shell::{Ran, Shell};
use crate::world::{World, universal_spec};

/// A pod `dev` with a file of its own, and a snapshot of it.
async fn with_notes(world: &World) -> (Desk, PodId, String) {
    let desk = Desk::new(world).await;
    let pod = desk.server.running("dev", universal_spec(Backend::Overlay)).await;
    world.engine.write(pod, "/home/user/notes.txt", "mine\n").unwrap();
    let id = desk.snapshot(pod).await.to_string();
    (desk, pod, id)
}

#[tokio::test]
async fn sim_cli_restores_the_pod_of_a_snapshot_and_keeps_its_last_one() {
    let world = World::new(1);
    let (desk, pod, id) = with_notes(&world).await;
    let shell = Shell::new(&desk).await;

    // Of the last one it has to be said.
    let refused = shell.run(&["snapshot", "rm", &id, "--yes"]).await;
    assert_eq!(refused.exit, Exit::Conflict, "{}", refused.stderr);
    assert!(refused.stderr.contains("last verified snapshot of pod dev") && refused.stderr.contains("--last"));
    let dry = shell.run(&["snapshot", "rm", &id, "--dry-run"]).await;
    assert!(dry.exit == Exit::Done && dry.text().contains("no other snapshot is as new"), "{}", dry.text());

    // The pod is the one that the snapshot is of, and everything else is as with pod restore.
    world.engine.write(pod, "/home/user/notes.txt", "another\n").unwrap();
    for (alone, beside) in [
        (vec!["snapshot", "restore", &id[..]], vec!["pod", "restore", "dev", &id[..]]),
        (vec!["snapshot", "restore", "dev@latest"], vec!["pod", "restore", "dev", "latest"]),
    ] {
        for options in
            [&[][..], &["--dry-run"], &["--path", "/home/user", "--dry-run"], &["--volume", "no", "--dry-run"]]
        {
            let (one, other) =
                (shell.run(&[&alone[..], options].concat()).await, shell.run(&[&beside[..], options].concat()).await);
            assert_eq!((one.exit, one.text()), (other.exit, other.text()), "{options:?}: {}", one.stderr);
            assert!(one.stderr.ends_with(&other.stderr), "{}{}", one.stderr, other.stderr);
        }
    }
    let unsure = shell.run(&["snapshot", "restore", &id]).await;
    assert_eq!(unsure.exit, Exit::Usage, "{}", unsure.stderr);
    let begun = shell.run(&["snapshot", "restore", &id, "--path", "/home/user", "--yes", "--no-wait"]).await;
    assert_eq!(begun.exit, Exit::Done, "{}", begun.stderr);
    let work = desk.server.app.store.operations_unfinished(pod).await.unwrap();
    assert!(work.iter().any(|o| o.kind == OperationKind::Restore), "{work:?}");
    desk.server.settle(pod).await;
    assert_eq!(world.engine.read(pod, "/home/user/notes.txt").unwrap().as_deref(), Some(&b"mine\n"[..]));

    let fresh = desk.snapshot(pod).await.to_string();
    let older = shell.run(&["snapshot", "rm", &id, "--yes", "--no-wait"]).await;
    assert_eq!(older.exit, Exit::Done, "{}", older.stderr);
    let newest = shell.run(&["snapshot", "rm", &fresh, "--yes", "--last", "--no-wait"]).await;
    assert_eq!(newest.exit, Exit::Done, "{}", newest.stderr);
}

#[tokio::test]
async fn sim_cli_lists_prints_and_exports_what_is_in_a_snapshot() {
    let world = World::new(1);
    let (desk, _, id) = with_notes(&world).await;
    let shell = Shell::new(&desk).await;

    let snapshots = shell.run(&["snapshot", "ls", "dev"]).await;
    assert!(snapshots.text().contains(&id), "{}", snapshots.text());
    let root = shell.run(&["snapshot", "ls", &id]).await;
    assert_eq!(root.exit, Exit::Done, "{}", root.stderr);
    assert_eq!(root.text(), "bin/\netc/\nhome/\nopt/\nroot/\nsrv/\ntmp/\nusr/\nvar/\nworkspace/\n");
    let listed = shell.run(&["snapshot", "ls", &id, "/home/user", "-l"]).await;
    let lines: Vec<Vec<&str>> = listed.text().lines().map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["MODE", "OWNER", "SIZE", "MODIFIED", "FROM", "NAME"]);
    assert_eq!((lines[1][0], lines[1][2], lines[1][3]), ("-0644", "5", "B"));
    assert_eq!(&lines[1][5..], ["home", "notes.txt"]);
    let changes = shell.run(&["snapshot", "ls", &id, "/etc", "--changes"]).await;
    assert_eq!((changes.exit, changes.text()), (Exit::Done, ""));
    let json = shell.run(&["snapshot", "ls", &id, "/home/user", "--output", "json"]).await;
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json[0]["name"], "notes.txt");

    // Nobody has to copy an id to get at the newest.
    for (arguments, expected) in [
        (&["snapshot", "ls", "dev", "/home/user"][..], "notes.txt\n"),
        (&["snapshot", "ls", "dev@latest", "/home/user"], "notes.txt\n"),
        (&["snapshot", "ls", "dev@latest"], root.text()),
        (&["snapshot", "cat", "dev", "/home/user/notes.txt"], "mine\n"),
        (&["snapshot", "diff", "dev@latest", "dev"], ""),
        (&["snapshot", "diff", "dev", "live"], ""),
    ] {
        let ran = shell.run(arguments).await;
        assert_eq!((ran.exit, ran.text()), (Exit::Done, expected), "{arguments:?}: {}", ran.stderr);
        assert!(ran.stderr.starts_with(&format!("newest of pod dev: {id}")), "{}", ran.stderr);
    }
    let shown = shell.run(&["snapshot", "show", "dev@latest", "-o", "json"]).await;
    assert_eq!((shown.stderr.as_str(), shown.text().contains(&id)), ("", true));
    for (name, exit, says) in [
        ("nobody", Exit::NotFound, "\"nobody\" is neither a snapshot nor a pod"),
        ("dev@first", Exit::Usage, "\"dev@first\" is not a snapshot"),
        ("latest", Exit::Usage, "the newest snapshot of which pod?"),
    ] {
        let ran = shell.run(&["snapshot", "ls", name, "/home"]).await;
        assert_eq!(ran.exit, exit, "{name}: {}", ran.stderr);
        assert!(ran.stderr.contains(says), "{}", ran.stderr);
    }
    assert_eq!(shell.run(&["snapshot", "ls", "latest"]).await.exit, Exit::Usage);
    let fresh = shell.run(&["snapshot", "rm", "dev@latest", "--yes"]).await;
    assert_ne!(fresh.exit, Exit::Done, "what is destroyed is named by its id");

    let cat = shell.run(&["snapshot", "cat", &id, "/home/user/notes.txt"]).await;
    assert_eq!((cat.exit, &cat.stdout[..]), (Exit::Done, &b"mine\n"[..]));
    let missing = shell.run(&["snapshot", "cat", &id, "/home/none"]).await;
    assert_eq!((missing.exit, missing.text()), (Exit::NotFound, ""));
    assert!(missing.stderr.contains("path /home/none"), "{}", missing.stderr);

    let base = tempfile::tempdir().unwrap();
    let at = |name: &str| base.path().join(name).to_str().unwrap().to_owned();
    let exported = shell.run(&["snapshot", "export", &id, "/home", "--to", &at("out")]).await;
    assert_eq!(exported.exit, Exit::Done, "{}", exported.stderr);
    assert!(exported.text().ends_with("out: 1 files and 2 directories, 5 B\n"), "{}", exported.text());
    assert_eq!(std::fs::read(at("out/user/notes.txt")).unwrap(), b"mine\n");
    let again = shell.run(&["snapshot", "export", &id, "/home", "--to", &at("out")]).await;
    assert_eq!(again.exit, Exit::Conflict);
    assert!(again.stderr.contains("is not empty"), "{}", again.stderr);

    for name in ["a.tar.zst", "a.tar.gz", "a.tar"] {
        let packed = shell.run(&["snapshot", "export", &id, "/home", "--tar", &at(name)]).await;
        assert_eq!(packed.exit, Exit::Done, "{}", packed.stderr);
        let before = std::fs::read(at(name)).unwrap();
        let again = shell.run(&["snapshot", "export", &id, "/home", "--tar", &at(name)]).await;
        assert_eq!(again.exit, Exit::Conflict);
        assert_eq!(std::fs::read(at(name)).unwrap(), before);
    }
    for wrong in [vec!["--tar", "x.zip"], vec![], vec!["--tar", "x.tar", "--to", "y"]] {
        let ran = shell.run(&[&["snapshot", "export", &id, "/home"], &wrong[..]].concat()).await;
        assert_eq!(ran.exit, Exit::Usage, "{wrong:?}: {}", ran.stderr);
    }
}

#[tokio::test]
async fn sim_cli_exports_everything_and_opens_it_to_nobody() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    let world = World::new(4);
    let base = tempfile::tempdir().unwrap();
    let home = base.path().join("home");
    super::content::make_under(&home);
    let desk = Desk::new(&world).await;
    let id = desk.by_hand(&world, &home).await.to_string();
    let shell = Shell::new(&desk).await;
    let at = |name: &str| base.path().join(name);
    let text = |name: &str| at(name).to_str().unwrap().to_owned();
    let ran = shell.run(&["snapshot", "export", &id, "/home", "--to", &text("all"), "--devices"]).await;
    assert_eq!((ran.exit, ran.stderr.as_str()), (Exit::Done, ""));
    assert_eq!(super::content::described_below(&at("all")), super::content::described_below(&home));
    assert_eq!(std::fs::metadata(at("all")).unwrap().permissions().mode() & 0o7777, 0o700);
    let mut value = [0; 16];
    let length = rustix::fs::lgetxattr(at("all/small"), "trusted.note", &mut value[..]).unwrap();
    assert_eq!(&value[..length], b"a\0b\n");
    assert_eq!(std::fs::metadata(at("all/null")).unwrap().rdev(), rustix::fs::makedev(1, 3));

    // Devices only for whoever asks; and a directory that others could enter is closed.
    std::fs::create_dir(at("open")).unwrap();
    let ran = shell.run(&["snapshot", "export", &id, "/home", "--to", &text("open")]).await;
    assert_eq!(ran.exit, Exit::Done);
    assert!(ran.stderr.contains("2 devices were left out"), "{}", ran.stderr);
    assert!(!at("open/null").exists() && !at("open/null too").exists() && at("open/fifo").exists());
    assert_eq!(std::fs::metadata(at("open")).unwrap().permissions().mode() & 0o7777, 0o700);
}

#[tokio::test]
async fn sim_cli_never_calls_a_broken_download_complete() {
    let world = World::new(2);
    let home = tempfile::tempdir_in(world.directory.path()).unwrap();
    let mut state = 1_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33).to_le_bytes()[0]
    };
    std::fs::write(home.path().join("large"), (0..6 << 20).map(|_| next()).collect::<Vec<u8>>()).unwrap();
    let desk = Desk::new(&world).await;
    let id = desk.by_hand(&world, home.path()).await.to_string();
    let backend = world.repositories.backend(&TenantId::default_tenant());
    for pack in backend.list(FileKind::Pack).unwrap().into_iter().filter(|p| p.size > 1 << 20) {
        let mut bytes = backend.read(FileKind::Pack, pack.id).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        backend.remove(FileKind::Pack, pack.id).unwrap();
        backend.write(FileKind::Pack, pack.id, &bytes).unwrap();
    }
    let shell = Shell::new(&desk).await;
    let base = tempfile::tempdir().unwrap();
    let at = |name: &str| base.path().join(name).to_str().unwrap().to_owned();
    let cat = shell.run(&["snapshot", "cat", &id, "/home/large"]).await;
    assert_eq!(cat.exit, Exit::Failed, "{}", cat.stderr);
    assert!(cat.stderr.contains("the download broke off"), "{}", cat.stderr);
    for name in ["a.tar.zst", "a.tar.gz", "a.tar"] {
        let ran = shell.run(&["snapshot", "export", &id, "--tar", &at(name)]).await;
        assert_eq!(ran.exit, Exit::Failed, "{}", ran.stderr);
    }
    let ran = shell.run(&["snapshot", "export", &id, "--to", &at("out")]).await;
    assert_eq!(ran.exit, Exit::Failed, "{}", ran.stderr);
    // No archive has its name, and nothing else is left lying about.
    let left: Vec<_> = std::fs::read_dir(base.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["out"]);
}

#[tokio::test]
async fn sim_cli_finds_versions_and_compares_snapshots() {
    let world = World::new(3);
    let desk = Desk::new(&world).await;
    let pod = desk.server.running("dev", universal_spec(Backend::Overlay)).await;
    world.engine.write(pod, "/srv/a", "1").unwrap();
    let first = desk.snapshot(pod).await.to_string();
    let second = desk.snapshot(pod).await.to_string();
    world.engine.write(pod, "/srv/a", "22").unwrap();
    world.engine.write(pod, "/srv/new/b", "1").unwrap();
    let third = desk.snapshot(pod).await.to_string();
    let shell = Shell::new(&desk).await;

    let found = shell.run(&["snapshot", "find", "dev", "/srv/a"]).await;
    assert_eq!(found.exit, Exit::Done, "{}", found.stderr);
    let column = |ran: &Ran, n: usize| -> Vec<String> {
        ran.text().lines().map(|l| l.split_whitespace().nth(n).unwrap().to_owned()).collect()
    };
    assert_eq!(column(&found, 0), ["SNAPSHOT", &third, &first]);
    assert_eq!(column(&found, 3), ["CHANGE", "content", "first"]);
    let all = shell.run(&["snapshot", "find", "dev", "/srv/a", "--all"]).await;
    assert_eq!(column(&all, 0), ["SNAPSHOT", &third, &second, &first]);
    let none = shell.run(&["snapshot", "find", "dev", "/srv/none"]).await;
    assert_eq!((none.exit, none.text()), (Exit::NotFound, ""));

    let same = shell.run(&["snapshot", "diff", &first, &second]).await;
    assert_eq!((same.exit, same.text(), same.stderr.as_str()), (Exit::Done, "", ""));
    let different = shell.run(&["snapshot", "diff", &first, &third, "/srv"]).await;
    assert_eq!((different.exit.code(), different.stderr.as_str()), (1, ""));
    let lines: Vec<&str> = different.text().lines().filter(|l| !l.contains("/srv/  ")).collect();
    assert_eq!(lines[1..], ["+ /srv/new/", "+ /srv/new/b"]);
    assert!(lines[0].starts_with("M /srv/a  (content"), "{}", lines[0]);
    let missing = shell.run(&["snapshot", "diff", &first, "nonsense"]).await;
    assert_eq!(missing.exit, Exit::NotFound, "{}", missing.stderr);
}
