//! Versions of a path, and what differs between two snapshots.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use perennial_core::snapshot::{Snapshot, SnapshotState};
use perennial_core::spec::Backend;
use perennial_drivers::sim::SimImage;
use serde_json::Value;

use super::desk::{Desk, until_settled};
use crate::world::taps::{Blow, Striker};
use crate::world::{World, files, universal_spec};

/// Path and change of each difference.
pub fn brief(found: &[Value]) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    found.iter().map(|d| (text(&d["path"]), text(&d["change"]))).collect()
}

#[tokio::test]
async fn sim_a_diff_names_what_the_pod_changed_and_nothing_else() {
    let image = SimImage::standard().file("/home/old/a", "1").file("/home/old/b", "1").file("/opt/tool/x", "1");
    for backend in [Backend::Overlay, Backend::Engine] {
        let world = World::with(1, &image);
        let desk = Desk::new(&world).await;
        let pod = desk.server.running("dev", universal_spec(backend)).await;
        let engine = &world.engine;
        engine.write(pod, "/srv/a", "1").unwrap();
        engine.write(pod, "/srv/b", "1").unwrap();
        let (first, was) = (desk.snapshot(pod).await, files(&world, pod));
        for (path, text) in [("/srv/a", "2"), ("/etc/motd", "mine"), ("/tools/z", "1"), ("/opt/tool/y", "1")] {
            engine.write(pod, path, text).unwrap();
        }
        for path in ["/srv/b", "/home/old", "/var/lib/seed/a"] {
            assert!(engine.remove(pod, path).unwrap());
        }
        engine.write(pod, "/home/old/c", "1").unwrap();
        let (second, is) = (desk.snapshot(pod).await, files(&world, pod));

        let found = desk.diff((first, second), "/", 1000).await;
        let regular = |d: &&Value| [&d["before"], &d["after"]].iter().any(|e| e["kind"] == "file");
        let changes: BTreeMap<String, String> =
            brief(&found.iter().filter(regular).cloned().collect::<Vec<_>>()).into_iter().collect();
        let mut expected = BTreeMap::new();
        for path in was.keys().chain(is.keys()) {
            let change = match (was.get(path), is.get(path)) {
                (None, Some(_)) => "added",
                (Some(_), None) => "removed",
                (a, b) if a != b => "content",
                _ => continue,
            };
            expected.insert(path.clone(), change.to_owned());
        }
        assert_eq!(changes, expected, "{backend:?}");
        assert!(changes.len() > 6);

        // The other way round, each is its opposite; and nothing differs from itself.
        let back = desk.diff((second, first), "/", 1000).await;
        let opposite = |(path, change): (String, String)| {
            let change = match change.as_str() {
                "added" => "removed",
                "removed" => "added",
                same => same,
            };
            (path, change.to_owned())
        };
        assert_eq!(brief(&back).into_iter().map(opposite).collect::<Vec<_>>(), brief(&found));
        assert_eq!(desk.diff((first, first), "/", 1000).await, Vec::<Value>::new());

        // Pages of one are the same list, and a part of the tree is a part of it.
        assert_eq!(desk.diff((first, second), "/", 1).await, found);
        let below = desk.diff((first, second), "/srv", 1000).await;
        let expected: Vec<Value> =
            found.iter().filter(|d| d["path"].as_str().unwrap().starts_with("/srv")).cloned().collect();
        assert_eq!(below, expected);
        let one = desk.diff((first, second), "/srv/a", 1000).await;
        assert_eq!(brief(&one), [("/srv/a".to_owned(), "content".to_owned())]);
    }
}

#[tokio::test]
async fn sim_a_diff_says_what_kind_of_difference_it_is() {
    let world = World::new(2);
    let home = tempfile::tempdir_in(world.directory.path()).unwrap();
    let at = |name: &str| home.path().join(name);
    for name in ["content", "mode", "time", "kind", "same"] {
        std::fs::write(at(name), "1").unwrap();
    }
    std::os::unix::fs::symlink("a", at("link")).unwrap();
    let desk = Desk::new(&world).await;
    let first = desk.by_hand_as(&world, home.path(), 1).await;
    let time = |name: &str, seconds| {
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
        std::fs::File::open(at(name)).unwrap().set_modified(time).unwrap();
    };
    let kept = std::fs::metadata(at("content")).unwrap().modified().unwrap();
    std::fs::write(at("content"), "2").unwrap();
    std::fs::File::open(at("content")).unwrap().set_modified(kept).unwrap();
    std::fs::set_permissions(at("mode"), std::fs::Permissions::from_mode(0o600)).unwrap();
    time("time", 1000);
    std::fs::remove_file(at("kind")).unwrap();
    std::fs::create_dir(at("kind")).unwrap();
    std::fs::write(at("kind/below"), "1").unwrap();
    std::fs::remove_file(at("link")).unwrap();
    std::os::unix::fs::symlink("b", at("link")).unwrap();
    let second = desk.by_hand_as(&world, home.path(), 2).await;
    let found = desk.diff((first, second), "/home", 1000).await;
    let shown: Vec<(String, String, bool)> = found
        .iter()
        .map(|d| (d["path"].as_str().unwrap().into(), d["change"].as_str().unwrap().into(), d["metadata"] == true))
        .filter(|(path, ..)| path != "/home")
        .collect();
    let expected = [
        ("/home/content", "content", false),
        ("/home/kind", "content", true),
        ("/home/kind/below", "added", true),
        ("/home/link", "content", true),
        ("/home/mode", "metadata", true),
        ("/home/time", "metadata", true),
    ];
    assert_eq!(shown, expected.map(|(path, change, metadata)| (path.to_owned(), change.to_owned(), metadata)));
    assert_eq!(found.iter().find(|d| d["path"] == "/home/mode").unwrap()["after"]["mode"], 0o600);
}

#[tokio::test]
async fn sim_a_diff_reads_only_what_differs() {
    let world = World::new(3);
    let home = tempfile::tempdir_in(world.directory.path()).unwrap();
    for n in 0..300 {
        std::fs::create_dir(home.path().join(n.to_string())).unwrap();
        std::fs::write(home.path().join(format!("{n}/file")), n.to_string()).unwrap();
    }
    let tap = Arc::new(Striker::new(Blow::Count, usize::MAX - 1));
    let desk = Desk::with(&world, Arc::clone(&tap) as _).await;
    until_settled(&world, home.path(), "299/file");
    let first = desk.by_hand_as(&world, home.path(), 1).await;
    std::fs::write(home.path().join("7/file"), "changed").unwrap();
    let second = desk.by_hand_as(&world, home.path(), 2).await;
    // Opens the repository.
    desk.diff((first, first), "/", 1000).await;
    let before = tap.passed().len();
    let found = desk.diff((first, second), "/", 1000).await;
    let read = tap.passed().len() - before;
    assert!(found.iter().any(|d| d["path"] == "/home/7/file"), "{found:?}");
    assert!(read < 40, "{read} reads for one changed file among 300 directories");
}

#[tokio::test]
async fn sim_versions_tell_when_a_path_changed() {
    for backend in [Backend::Overlay, Backend::Engine] {
        let world = World::new(4);
        let desk = Desk::new(&world).await;
        let pod = desk.server.running("dev", universal_spec(backend)).await;
        let engine = &world.engine;
        let mut ids = vec![desk.snapshot(pod).await];
        engine.write(pod, "/srv/a", "1").unwrap();
        ids.push(desk.snapshot(pod).await);
        ids.push(desk.snapshot(pod).await);
        engine.write(pod, "/srv/a", "22").unwrap();
        engine.write(pod, "/etc/motd", "mine").unwrap();
        ids.push(desk.snapshot(pod).await);
        assert!(engine.remove(pod, "/srv/a").unwrap());
        ids.push(desk.snapshot(pod).await);
        let versions = async |path: &str, more: &str| -> Vec<Value> {
            let list = desk.get(&format!("pods/{pod}/files/versions?path={path}{more}")).await.json();
            list["items"].as_array().unwrap_or_else(|| panic!("{list}")).clone()
        };
        let changes = |items: &[Value]| -> Vec<String> {
            items.iter().rev().map(|v| v["change"].as_str().unwrap().to_owned()).collect()
        };
        let found = versions("/srv/a", "").await;
        assert_eq!(changes(&found), ["first", "added", "same", "content", "removed"], "{backend:?}");
        let order: Vec<&str> = found.iter().rev().map(|v| v["snapshotId"].as_str().unwrap()).collect();
        assert_eq!(order, ids.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!((&found[1]["entry"]["size"], &found[0]["entry"]), (&2.into(), &Value::Null));
        assert_eq!(found[1]["snapshotKind"], "manual");
        assert!(found.iter().all(|v| v["capturedAt"].is_string() && v["problem"].is_null()));
        // A file of the image has versions as well, and a directory changes with what is in it.
        assert_eq!(changes(&versions("/etc/motd", "").await), ["first", "same", "same", "content", "same"]);
        assert_eq!(changes(&versions("/srv", "").await), ["first", "content", "same", "content", "content"]);
        assert_eq!(changes(&versions("/none", "").await), ["first", "same", "same", "same", "same"]);
        // The last of a page is compared with the first of the next.
        let page = desk.get(&format!("pods/{pod}/files/versions?path=/srv/a&limit=2")).await.json();
        assert_eq!(changes(page["items"].as_array().unwrap()), ["content", "removed"]);
        let next = page["next"].as_str().unwrap();
        assert_eq!(changes(&versions("/srv/a", &format!("&after={next}")).await), ["first", "added", "same"]);

        // One that cannot be looked into says so, and does not hide the others.
        let row = desk.server.snapshots(pod).await.into_iter().find(|s| s.id == ids[2]).unwrap();
        desk.change(Snapshot { repository_id: Some("0".repeat(64)), ..row.clone() }).await;
        let found = versions("/srv/a", "").await;
        assert!(found[2]["problem"].is_string() && found[2]["change"].is_null(), "{}", found[2]);
        assert_eq!(found[1]["change"], "content");
        // One that failed is no version.
        desk.change(Snapshot { state: SnapshotState::Failed, ..row }).await;
        assert_eq!(versions("/srv/a", "").await.len(), 4);
        for (query, field) in [("", "path"), ("?path=srv", "path"), ("?path=/a&limit=0", "limit")] {
            let refused = desk.get(&format!("pods/{pod}/files/versions{query}")).await;
            assert_eq!((refused.problem().as_str(), &refused.json()["field"]), ("invalid-input", &field.into()));
        }
        let refused = desk.get(&format!("snapshots/{}/diff?with=x", ids[0])).await;
        assert_eq!((refused.problem().as_str(), &refused.json()["field"]), ("invalid-input", &"with".into()));
    }
}
