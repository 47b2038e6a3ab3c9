//! The command line sends files, and snapshots of repositories that Debian's restic made.

use std::path::Path;
use std::process::Command;

use perennial::cli::Exit;
use perennial_core::id::{PodId, SnapshotId};
use perennial_core::spec::Backend;

use super::send::{Tar, is_clean};
use crate::browse::desk::Desk;
use crate::browse::shell::{Ran, Shell};
use crate::world::{World, small_spec};

fn restic(repository: &Path, arguments: &[&str]) {
    let output = Command::new("restic")
        .args(arguments)
        .env("RESTIC_REPOSITORY", repository)
        .env("RESTIC_PASSWORD", "restics own")
        .env("RESTIC_CACHE_DIR", repository.with_extension("cache"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The snapshot that a command line began.
async fn snapshot_of(desk: &Desk, pod: PodId, ran: &Ran) -> SnapshotId {
    assert_eq!(ran.exit, Exit::Done, "{}", ran.stderr);
    desk.server.settle(pod).await;
    let newest = desk.server.snapshots(pod).await[0].clone();
    assert!(newest.is_restorable(), "{newest:?}");
    newest.id
}

#[tokio::test]
async fn sim_cli_sends_an_archive_and_says_what_is_wrong_with_one() {
    let world = World::new(1);
    let desk = Desk::new(&world).await;
    let pod = desk.server.running("dev", small_spec(Backend::Overlay)).await;
    let shell = Shell::new(&desk).await;
    let base = tempfile::tempdir().unwrap();
    let at = |name: &str| base.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(at("good"), Tar::new().file("a", b"1").done()).unwrap();
    std::fs::write(at("bad"), Tar::new().file("../a", b"1").done()).unwrap();
    let sent =
        shell.run(&["snapshot", "import", "dev", &at("good"), "--into", "/srv", "--comment", "a b", "--no-wait"]).await;
    let id = snapshot_of(&desk, pod, &sent).await;
    assert_eq!(desk.content(id, b"/srv/a").await.bytes(), b"1");
    for (arguments, exit, said) in [
        (vec![at("bad"), "--into".into(), "/srv".into()], Exit::Invalid, "out of the archive"),
        (vec![at("none"), "--into".into(), "/srv".into()], Exit::Invalid, "none"),
        (vec![base.path().to_str().unwrap().to_owned()], Exit::Usage, "is a directory"),
        (vec![at("good")], Exit::Invalid, "--into"),
        (vec![], Exit::Usage, "required"),
        (vec![at("good"), "--repo".into(), "x".into()], Exit::Usage, "cannot be used"),
    ] {
        let line: Vec<&str> =
            ["snapshot", "import", "dev"].into_iter().chain(arguments.iter().map(String::as_str)).collect();
        let ran = shell.run(&line).await;
        assert!(ran.exit == exit && ran.stderr.contains(said), "{arguments:?}: {:?} {}", ran.exit, ran.stderr);
        assert!(is_clean(&world));
    }
}

#[tokio::test]
async fn sim_a_snapshot_that_restic_made_becomes_one_of_a_pod() {
    let world = World::new(2);
    let base = tempfile::tempdir().unwrap();
    let (tree, repository) = (base.path().join("tree"), base.path().join("repository"));
    std::fs::create_dir(&tree).unwrap();
    crate::browse::corpus::make(&tree);
    restic(&repository, &["init"]);
    restic(&repository, &["backup", tree.to_str().unwrap()]);
    let password = base.path().join("password");
    std::fs::write(&password, "restics own\n").unwrap();
    let desk = Desk::new(&world).await;
    let pod = desk.server.running("dev", small_spec(Backend::Overlay)).await;
    let shell = Shell::new(&desk).await;
    let (repository, password) = (repository.to_str().unwrap(), password.to_str().unwrap());
    let of = ["snapshot", "import", "dev", "--repo", repository, "--password-file", password, "--snapshot", "latest"];
    let more = ["--path", tree.to_str().unwrap(), "--into", "/srv", "--allow-devices", "--no-wait"];
    let id = snapshot_of(&desk, pod, &shell.run(&[&of[..], &more].concat()).await).await;
    // The same directory, captured by us.
    let ours = desk.by_hand(&world, &tree).await;
    let export =
        async |id, path: &str| desk.get(&format!("snapshots/{id}/archive?path={path}&format=tar")).await.body.unwrap();
    assert!(export(id, "/srv").await == export(ours, "/home").await);

    let wrong = shell.run(&[&of[..], &["--path", "/nowhere", "--into", "/srv"]].concat()).await;
    assert_eq!(wrong.exit, Exit::NotFound, "{}", wrong.stderr);
    std::fs::write(password, "wrong").unwrap();
    let wrong = shell.run(&[&of[..], &["--into", "/srv"]].concat()).await;
    assert_eq!(wrong.exit, Exit::Forbidden, "{}", wrong.stderr);
}
