//! What is listed is what the pod saw: the simulator's own view is the judge.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::http::StatusCode;
use perennial_core::snapshot::SnapshotState;
use perennial_core::spec::Backend;
use perennial_drivers::sim::SimImage;
use serde_json::Value;

use super::desk::{Desk, encoded};
use crate::world::taps::{Blow, Striker};
use crate::world::{World, declared_spec, files, small_spec, universal_spec};

/// An image with a directory that the pod replaces.
fn image() -> SimImage {
    SimImage::standard().file("/home/old/a", "from the image\n").file("/home/old/b", "from the image\n")
}

#[tokio::test]
async fn sim_a_snapshot_shows_what_the_pod_saw() {
    for backend in [Backend::Overlay, Backend::Engine] {
        let world = World::with(1, &image());
        let desk = Desk::new(&world).await;
        let pod = desk.server.running("dev", universal_spec(backend)).await;
        let engine = &world.engine;
        for path in ["/home/user/new", "/etc/motd", "/usr/lib/extra/x", "/usr/local/y", "/tools/z", "/srv/w"] {
            engine.write(pod, path, format!("changed {path}")).unwrap();
        }
        for path in ["/var/lib/seed/a", "/usr/lib/data", "/home/old", "/bin"] {
            // A directory that is a mount cannot be removed as such.
            assert!(engine.remove(pod, path).is_ok_and(|gone| gone) || path == "/bin", "{path}");
        }
        // Made anew: what the image has there must not come back.
        engine.write(pod, "/home/old/c", "mine").unwrap();
        let expected = files(&world, pod);
        let snapshot = desk.snapshot(pod).await;

        let found = desk.walk(snapshot, "").await;
        let regular: Vec<&String> = found.iter().filter(|(_, e)| e["kind"] == "file").map(|(path, _)| path).collect();
        assert_eq!(regular, expected.keys().collect::<Vec<_>>(), "{backend:?}");
        assert!(!found.contains_key("/home/old/a") && found.contains_key("/home/old/c"));
        for (path, bytes) in &expected {
            let answer = desk.content(snapshot, path.as_bytes()).await;
            assert_eq!(answer.status, StatusCode::OK, "{path}");
            assert!(answer.bytes() == bytes, "{backend:?} {path}");
            assert_eq!(found[path]["size"], bytes.len());
        }
        let origin = |path: &str| {
            let entry = &found[path];
            (entry["origin"].as_str().unwrap().to_owned(), entry["volume"].as_str().map(ToOwned::to_owned))
        };
        assert_eq!(origin("/tools/z"), ("system".into(), None));
        assert_eq!(origin("/home/old/c"), ("volume".into(), Some("home".into())));
        let whole = backend == Backend::Engine;
        let seeded = if whole { ("volume".into(), Some("var".into())) } else { ("image".into(), None) };
        assert_eq!(origin("/var/lib/seed/b"), seeded);

        // The changes alone: on overlays nothing of the image is among them.
        let changes = desk.walk(snapshot, "&changes=true").await;
        assert!(changes.values().all(|e| e["origin"] != "image"));
        assert!(changes.contains_key("/etc/motd") && changes.contains_key("/tools/z"));
        assert_eq!(changes.contains_key("/var/lib/seed/b"), whole);
        assert_eq!(world.engine.violations(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn sim_a_pod_of_declared_volumes_is_shown_with_the_rest_of_its_image() {
    let world = World::new(2);
    let desk = Desk::new(&world).await;
    let pod = desk.server.running("dev", declared_spec(Backend::Overlay)).await;
    world.engine.write(pod, "/srv/a", "mine").unwrap();
    let snapshot = desk.snapshot(pod).await;
    let found = desk.walk(snapshot, "").await;
    assert_eq!(found["/srv/a"]["volume"], "data");
    assert_eq!(found["/etc/motd"]["origin"], "image");
    assert_eq!(desk.content(snapshot, b"/etc/motd").await.bytes(), b"from the image\n");
    let changes = desk.walk(snapshot, "&changes=true").await;
    assert_eq!(changes.keys().collect::<Vec<_>>(), ["/srv", "/srv/a"]);
}

#[tokio::test]
async fn sim_what_an_engine_mounts_over_is_never_shown_as_the_pods() {
    let world = World::with(3, &SimImage::standard().file("/run/from-image", "x").file("/tmp/from-image", "x"));
    let desk = Desk::new(&world).await;
    let pod = desk.server.running("dev", universal_spec(Backend::Overlay)).await;
    let snapshot = desk.snapshot(pod).await;
    let found = desk.walk(snapshot, "").await;
    assert!(found.contains_key("/run") && !found.contains_key("/run/from-image"), "{:?}", found.keys());
    assert!(found.contains_key("/tmp") && !found.contains_key("/tmp/from-image"));
}

#[tokio::test]
async fn sim_a_file_is_described_and_what_is_wrong_is_said() {
    let world = World::new(4);
    let desk = Desk::new(&world).await;
    let pod = desk.server.running("dev", small_spec(Backend::Overlay)).await;
    world.engine.write(pod, "/srv/a", "1").unwrap();
    let id = desk.snapshot(pod).await;
    let files = |query: &str| format!("snapshots/{id}/files{query}");
    let one = desk.get(&files("?path=/srv/a")).await.json();
    assert_eq!((&one["entry"]["name"], &one["items"]), (&"a".into(), &Value::Array(Vec::new())));
    assert_eq!(one["entry"]["size"], 1);
    assert_eq!(desk.get(&files("")).await.json()["entry"]["kind"], "dir");

    for (query, code, field) in [
        ("?path=/srv/none", "not-found", None),
        ("?path=/srv/a/b", "not-found", None),
        ("?path=srv", "invalid-input", Some("path")),
        ("?path=/srv/../etc", "invalid-input", Some("path")),
        ("?path=/srv/%2e%2e", "invalid-input", Some("path")),
        ("?path=/a%00b", "invalid-input", Some("path")),
        ("?path=", "invalid-input", Some("path")),
        ("?path=/&path=/srv", "invalid-input", None),
        ("?after=zz", "invalid-input", Some("after")),
        ("?limit=0", "invalid-input", Some("limit")),
        ("?colour=red", "invalid-input", Some("colour")),
    ] {
        let answer = desk.get(&files(query)).await;
        assert_eq!(answer.problem(), code, "{query}");
        if let Some(field) = field {
            assert_eq!(answer.json()["field"], field, "{query}");
        }
    }
    // The image's /etc is a link: it is said where it leads, and not followed.
    let linked = desk.get(&files("?path=/etc/x")).await;
    assert_eq!(linked.problem(), "not-found");
    assert!(linked.json()["detail"].as_str().unwrap().contains("/etc is a link to srv"), "{}", linked.json());
    let directory = desk.get(&files("/content?path=/srv")).await;
    assert_eq!((directory.problem().as_str(), &directory.json()["field"]), ("invalid-input", &"path".into()));
    assert!(directory.json()["hint"].as_str().unwrap().contains("archive"));
    assert_eq!(desk.get(&files("/content")).await.problem(), "invalid-input");
    for route in ["files", "files/content?path=/x", "archive"] {
        let missing = desk.get(&format!("snapshots/00000000000000000000000000/{route}")).await;
        assert_eq!(missing.problem(), "not-found", "{route}");
    }

    // Only what is complete in the repository can be looked into.
    let row = desk.server.snapshots(pod).await.remove(0);
    for (state, code) in [(SnapshotState::Pending, "snapshot-not-ready"), (SnapshotState::Failed, "snapshot-failed")] {
        desk.change(perennial_core::snapshot::Snapshot { state, error: Some("why".into()), ..row.clone() }).await;
        for route in ["files", "files/content?path=/srv/a", "archive"] {
            let answer = desk.get(&format!("snapshots/{id}/{route}")).await;
            assert_eq!((answer.status, answer.problem().as_str()), (StatusCode::CONFLICT, code), "{route}");
        }
    }
    // One whose image is nowhere can still be asked for its changes.
    let image = Some("sha256:gone".to_owned());
    desk.change(perennial_core::snapshot::Snapshot { image, ..row.clone() }).await;
    assert_eq!(desk.get(&files("?path=/srv")).await.problem(), "image-unreadable");
    assert_eq!(desk.list(id, b"/srv", "&changes=true").await.len(), 1);
    // And one that the repository does not have is not taken for an empty one.
    let repository_id = Some("0".repeat(64));
    desk.change(perennial_core::snapshot::Snapshot { repository_id, ..row }).await;
    assert_eq!(desk.get(&files("?changes=true")).await.problem(), "repository-snapshot-missing");
}

#[tokio::test]
async fn sim_pages_of_a_large_directory_read_the_repository_once() {
    const ENTRIES: usize = 100_000;
    let world = World::new(5);
    let home = tempfile::tempdir_in(world.directory.path()).unwrap();
    for n in 0..ENTRIES {
        std::fs::write(home.path().join(format!("{n:06}")), b"").unwrap();
    }
    let tap = Arc::new(Striker::new(Blow::Count, usize::MAX - 1));
    let desk = Desk::with(&world, Arc::clone(&tap) as _).await;
    let id = desk.by_hand(&world, home.path()).await;
    let first = desk.get(&format!("snapshots/{id}/files?path=/home&limit=1")).await.json();
    let before = tap.passed().len();
    let items = desk.list(id, b"/home", "").await;
    assert_eq!(tap.passed().len(), before, "later pages read the repository again");
    assert_eq!(first["items"][0], items[0]);
    let names: Vec<&str> = items.iter().map(|i| i["name"].as_str().unwrap()).collect();
    assert_eq!(names, (0..ENTRIES).map(|n| format!("{n:06}")).collect::<Vec<_>>());
}

#[tokio::test]
async fn sim_names_are_bytes() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;
    let world = World::new(6);
    let home = tempfile::tempdir_in(world.directory.path()).unwrap();
    let names: [&[u8]; 9] = [
        b"not\xffutf8\xc3",
        b"not\xfeutf8\xc3",
        b"%ff",
        b"a+b c&d=e#f?g",
        b"line\nend\t\x1b[2J",
        b"\"q\\",
        b" ",
        b"...",
        &[b'n'; 255],
    ];
    for name in names {
        std::fs::create_dir(home.path().join(OsStr::from_bytes(name))).unwrap();
        std::fs::write(home.path().join(OsStr::from_bytes(name)).join("x"), name).unwrap();
    }
    std::os::unix::fs::symlink(OsStr::from_bytes(b"to\xff"), home.path().join("link")).unwrap();
    let desk = Desk::new(&world).await;
    let id = desk.by_hand(&world, home.path()).await;
    let found: BTreeMap<Vec<u8>, Value> = desk
        .list(id, b"/home", "")
        .await
        .into_iter()
        .map(|item| (bytes_of(&item, "name", "nameBytes"), item))
        .collect();
    for name in names {
        assert!(found.contains_key(name), "{name:?}");
        let path = [b"/home/", name, b"/x"].concat();
        assert_eq!(desk.content(id, &path).await.bytes(), name, "{}", encoded(name));
    }
    assert_eq!(found.len(), names.len() + 1);
    assert_eq!(bytes_of(&found[&b"link"[..]], "target", "targetBytes"), b"to\xff");
    assert_eq!(found[&b"%ff"[..]]["nameBytes"], Value::Null);
    // Two names that look the same as text are two.
    let page = desk.get(&format!("snapshots/{id}/files?path=/home&limit=1&after={}", "6e6f74fe757466")).await;
    assert!(page.json()["next"].is_string());
}

/// The bytes of a name or a target.
fn bytes_of(item: &Value, text: &str, bytes: &str) -> Vec<u8> {
    use base64::Engine as _;
    match item[bytes].as_str() {
        Some(encoded) => base64::engine::general_purpose::STANDARD.decode(encoded).unwrap(),
        None => item[text].as_str().unwrap().as_bytes().to_vec(),
    }
}
