//! What differs between a snapshot and its pod as it is; the judges are the simulator's own view, and the snapshot taken next.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use axum::http::StatusCode;
use jiff::SignedDuration;
use perennial::cli::Exit;
use perennial_core::fault::{Moment, Tap, Verdict};
use perennial_core::id::{PodId, SnapshotId};
use perennial_core::progress::Progress;
use perennial_core::spec::Backend;
use perennial_drivers::sim::SimImage;
use perennial_snapshots::{Mode, PruneRequest, Time};
use serde_json::Value;

use super::compare::brief;
use super::desk::{Desk, repository};
use super::shell::Shell;
use crate::world::{World, declared_spec, files, small_spec, universal_spec};

const BOTH: [Backend; 2] = [Backend::Overlay, Backend::Engine];

impl Desk {
    /// One page of what differs between a snapshot and its pod.
    async fn live_page(&self, snapshot: SnapshotId, query: &str) -> Value {
        let page = self.get(&format!("snapshots/{snapshot}/diff/live?{query}")).await;
        assert_eq!(page.status, StatusCode::OK, "{:?}", page.body.map(String::from_utf8));
        page.json()
    }

    /// All pages of this size.
    async fn live(&self, snapshot: SnapshotId, path: &str, limit: usize) -> Vec<Value> {
        let (mut items, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = self.live_page(snapshot, &format!("path={path}&limit={limit}{cursor}")).await;
            assert_eq!(page["notCompared"], Value::Array(Vec::new()));
            items.extend(page["items"].as_array().unwrap().clone());
            match page["next"].as_str() {
                Some(next) => cursor = format!("&after={next}"),
                None => return items,
            }
        }
    }

    async fn refused(&self, snapshot: SnapshotId, query: &str) -> Value {
        let answer = self.get(&format!("snapshots/{snapshot}/diff/live{query}")).await;
        answer.problem();
        answer.json()
    }
}

/// A pod, a snapshot of it, what it held then, and changes of every kind since.
async fn changed(world: &World, desk: &Desk, backend: Backend) -> (PodId, SnapshotId, BTreeMap<String, Vec<u8>>) {
    let pod = desk.server.running("dev", universal_spec(backend)).await;
    let engine = &world.engine;
    for path in ["/srv/a", "/srv/b", "/srv/c/deep", "/tools/kept", "/tools/gone"] {
        engine.write(pod, path, "1").unwrap();
    }
    let (snapshot, was) = (desk.snapshot(pod).await, files(world, pod));
    for (path, text) in [("/srv/a", "2"), ("/etc/motd", "mine"), ("/tools/z", "1"), ("/opt/tool/y", "1")] {
        engine.write(pod, path, text).unwrap();
    }
    // Written again with the same: not changed.
    engine.write(pod, "/srv/c/deep", "1").unwrap();
    for path in ["/srv/b", "/home/old", "/var/lib/seed/a", "/tools/gone"] {
        assert!(engine.remove(pod, path).unwrap());
    }
    engine.write(pod, "/home/old/c", "1").unwrap();
    (pod, snapshot, was)
}

fn image() -> SimImage {
    SimImage::standard().file("/home/old/a", "1").file("/home/old/b", "1").file("/opt/tool/x", "1")
}

#[tokio::test]
async fn sim_a_diff_with_the_live_pod_names_what_it_changed_and_nothing_else() {
    for backend in BOTH {
        let world = World::with(1, &image());
        let desk = Desk::new(&world).await;
        let (pod, snapshot, was) = changed(&world, &desk, backend).await;
        let is = files(&world, pod);
        let stored = world.packs();
        let found = desk.live(snapshot, "/", 1000).await;
        let changes: BTreeMap<String, String> = brief(&found)
            .into_iter()
            .filter(|(path, change)| change != "metadata" && (was.contains_key(path) || is.contains_key(path)))
            .collect();
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
        assert!(changes.len() > 8, "{changes:?}");
        assert_eq!(world.packs(), stored, "a look stored something");

        // Pages of one are the same list, and a part of the tree is a part of it.
        assert_eq!(desk.live(snapshot, "/", 1).await, found);
        let below: Vec<Value> =
            found.iter().filter(|d| d["path"].as_str().unwrap().starts_with("/srv")).cloned().collect();
        assert_eq!(desk.live(snapshot, "/srv", 1000).await, below);

        // The snapshot taken next differs in the same, and the pod from that one in nothing.
        let next = desk.snapshot(pod).await;
        assert_eq!(brief(&desk.diff((snapshot, next), "/", 1000).await), brief(&found), "{backend:?}");
        assert_eq!(desk.live(next, "/", 1000).await, Vec::<Value>::new());
        assert_eq!(world.engine.violations(), Vec::<String>::new());
    }
}

/// A look goes on with what it found, whatever the pod does between its pages.
#[tokio::test]
async fn sim_pages_of_a_look_are_of_one_look() {
    let world = World::new(2);
    let desk = Desk::new(&world).await;
    let pod = desk.server.running("dev", small_spec(Backend::Engine)).await;
    let snapshot = desk.snapshot(pod).await;
    for name in ["a", "b", "c"] {
        world.engine.write(pod, &format!("/srv/{name}"), "1").unwrap();
    }
    let first = desk.live_page(snapshot, "limit=2").await;
    for name in ["b", "c"] {
        assert!(world.engine.remove(pod, &format!("/srv/{name}")).unwrap());
    }
    let next = first["next"].as_str().unwrap();
    let rest = desk.live_page(snapshot, &format!("after={next}")).await;
    let paths = |page: &Value| -> Vec<String> {
        page["items"].as_array().unwrap().iter().map(|d| d["path"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!([paths(&first), paths(&rest)].concat(), ["/srv", "/srv/a", "/srv/b", "/srv/c"]);
    assert_eq!((&rest["next"], &rest["lookedAt"]), (&Value::Null, &first["lookedAt"]));
    // It is over now, and the pages of another pod's are nobody else's.
    assert_eq!(desk.refused(snapshot, &format!("?after={next}")).await["code"], "look-over");
    let later = desk.snapshot(pod).await;
    let kept = desk.live_page(snapshot, "limit=1").await;
    // What was compared with one snapshot goes on with no other.
    let mixed = format!("?after={}", kept["next"].as_str().unwrap());
    assert_eq!(desk.refused(later, &mixed).await["code"], "look-over");
    let other = desk.server.running("other", small_spec(Backend::Engine)).await;
    let of_other = desk.snapshot(other).await;
    let stolen = format!("?after={}", kept["next"].as_str().unwrap());
    assert_eq!(desk.refused(of_other, &stolen).await["code"], "look-over");
    assert_eq!(desk.get(&format!("snapshots/{snapshot}/diff/live{mixed}")).await.status, StatusCode::OK);
    for (query, field) in [("?after=zz", "after"), ("?limit=0", "limit"), ("?path=srv", "path"), ("?with=x", "with")] {
        assert_eq!(desk.refused(snapshot, query).await["field"], field, "{query}");
    }
}

#[tokio::test]
async fn sim_what_cannot_be_compared_is_refused_or_said() {
    for backend in BOTH {
        let world = World::with(3, &image());
        let desk = Desk::new(&world).await;
        let (pod, snapshot, _) = changed(&world, &desk, backend).await;
        // Paused, all of it is still there.
        let running = brief(&desk.live(snapshot, "/", 1000).await);
        desk.server.succeed(desk.server.pause(pod).await).await;
        assert_eq!(brief(&desk.live(snapshot, "/", 1000).await), running, "{backend:?}");
        // Without its container nobody knows what no volume holds; that is said, and the rest is compared.
        world.engine.kill_container_outside(pod).unwrap();
        let page = desk.live_page(snapshot, "limit=1000").await;
        let said = &page["notCompared"][0];
        assert!(said["path"].as_str().unwrap().contains("outside volumes"), "{said}");
        let found = brief(page["items"].as_array().unwrap());
        assert!(found.iter().all(|(path, _)| !path.starts_with("/tools")), "{found:?}");
        assert!(found.iter().any(|(path, _)| path == "/srv/a"), "{found:?}");

        let set = desk.server.pod(pod).await.current.unwrap();
        world.engine.remove_volume_data_outside(pod, set, "home").unwrap();
        assert_eq!(desk.refused(snapshot, "").await["code"], "data-incomplete");
    }
}

#[tokio::test]
async fn sim_a_pod_without_data_on_the_host_says_what_to_compare_with() {
    let world = World::new(4);
    let desk = Desk::new(&world).await;
    let pod = desk.server.running("dev", declared_spec(Backend::Overlay)).await;
    let snapshot = desk.snapshot(pod).await;
    desk.server.succeed(desk.server.stop(pod).await).await;
    let last = desk.server.snapshots(pod).await[0].id;
    assert_ne!(last, snapshot);
    let refused = desk.refused(snapshot, "").await;
    assert_eq!(refused["code"], "nothing-on-host");
    assert!(refused["hint"].as_str().unwrap().contains(&last.to_string()), "{refused}");
    // Started from it, the pod is the same, though every file is a new one.
    desk.server.succeed(desk.server.start(pod).await).await;
    assert_eq!(desk.live(last, "/", 1000).await, Vec::<Value>::new());
}

#[tokio::test]
async fn sim_volumes_that_only_a_mover_reaches_are_not_compared() {
    let world = World::with_mover(5, perennial::mover::simulated());
    let desk = Desk::new(&world).await;
    let pod = desk.server.running("dev", universal_spec(Backend::Engine)).await;
    let snapshot = desk.snapshot(pod).await;
    assert_eq!(desk.refused(snapshot, "").await["code"], "live-out-of-reach");
}

/// The place on the host of the one entry with this name.
fn on_host(world: &World, name: &str) -> PathBuf {
    let mut directories = vec![world.engine.root().to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap().map(Result::unwrap) {
            if entry.file_name() == name {
                return entry.path();
            }
            if entry.file_type().unwrap().is_dir() {
                directories.push(entry.path());
            }
        }
    }
    panic!("{name} is nowhere");
}

#[tokio::test]
async fn sim_what_could_not_be_looked_at_is_neither_removed_nor_unchanged() {
    for backend in BOTH {
        let world = World::with(6, &image());
        let desk = Desk::new(&world).await;
        let pod = desk.server.running("dev", universal_spec(backend)).await;
        for path in ["/srv/lost-directory/a/b", "/srv/lost-file", "/srv/kept", "/tools/lost-tool"] {
            world.engine.write(pod, path, "1").unwrap();
        }
        let snapshot = desk.snapshot(pod).await;
        // A name that no tree can hold.
        for name in ["lost-directory", "lost-file", "lost-tool"] {
            let flags = rustix::fs::XattrFlags::empty();
            rustix::fs::setxattr(on_host(&world, name), &b"trusted.\xff"[..], b"", flags).unwrap();
        }
        world.engine.write(pod, "/srv/lost-directory/a/c", "1").unwrap();
        assert!(world.engine.remove(pod, "/srv/kept").unwrap());

        let page = desk.live_page(snapshot, "limit=1000").await;
        let found = brief(page["items"].as_array().unwrap());
        assert!(found.contains(&("/srv/kept".to_owned(), "removed".to_owned())), "{found:?}");
        assert!(!found.iter().any(|(path, _)| path.contains("lost")), "{found:?}");
        let not_compared = |page: &Value| -> Vec<String> {
            let all = page["notCompared"].as_array().unwrap().iter();
            let mut paths: Vec<String> = all.map(|loss| loss["path"].as_str().unwrap().to_owned()).collect();
            paths.sort();
            paths
        };
        assert_eq!(not_compared(&page), ["/srv/lost-directory", "/srv/lost-file", "/tools/lost-tool"]);
        // Of a part only what concerns it, be it above or below.
        let page = desk.live_page(snapshot, "path=/srv/lost-directory/a").await;
        assert_eq!(
            (brief(page["items"].as_array().unwrap()), not_compared(&page)),
            (vec![], vec!["/srv/lost-directory".to_owned()])
        );
        assert_eq!(not_compared(&desk.live_page(snapshot, "path=/home").await), Vec::<String>::new());

        let shell = Shell::new(&desk).await;
        let id = snapshot.to_string();
        let unknown = shell.run(&["snapshot", "diff", &id, "live", "/srv/lost-file"]).await;
        assert_eq!((unknown.exit.code(), unknown.text()), (1, ""));
        assert!(unknown.stderr.contains("not compared: /srv/lost-file: "), "{}", unknown.stderr);
        let same = shell.run(&["snapshot", "diff", &id, "live", "/home"]).await;
        assert_eq!((same.exit, same.text(), same.stderr.as_str()), (Exit::Done, "", ""));
    }
}

/// What happens to a pod while it is looked at.
type Mishap = Box<dyn Fn() + Send + Sync>;

/// Lets something happen at the first read of the repository after it was told so.
#[derive(Default)]
struct Meanwhile(Mutex<Option<Mishap>>);

impl fmt::Debug for Meanwhile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Meanwhile")
    }
}

impl Tap for Meanwhile {
    fn at(&self, site: &str, _: Moment) -> Verdict {
        if site == "repository.read" {
            let mishap = self.0.lock().unwrap().take();
            mishap.into_iter().for_each(|mishap| mishap());
        }
        Verdict::Go
    }
}

/// What is left of a layer or a set that is being removed would show as what the pod went back to.
#[tokio::test]
async fn sim_a_pod_that_is_replaced_while_it_is_looked_at_is_not_compared() {
    for backend in BOTH {
        let world = World::with(7, &image());
        let tap = Arc::new(Meanwhile::default());
        let desk = Desk::with(&world, Arc::clone(&tap) as _).await;
        let (pod, snapshot, _) = changed(&world, &desk, backend).await;
        let set = desk.server.pod(pod).await.current.unwrap();
        let (killed, gone) = (world.engine.clone(), world.engine.clone());
        let mishaps: [Mishap; 2] = [
            Box::new(move || killed.kill_container_outside(pod).unwrap()),
            Box::new(move || gone.remove_volume_data_outside(pod, set, "home").unwrap()),
        ];
        for mishap in mishaps {
            *tap.0.lock().unwrap() = Some(mishap);
            assert_eq!(desk.refused(snapshot, "").await["code"], "data-replaced", "{backend:?}");
            assert!(tap.0.lock().unwrap().is_none(), "nothing happened meanwhile");
        }
    }
}

/// How many files without a name the server has below its scratch directory.
fn nameless(world: &World) -> usize {
    let open = std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok());
    open.filter(|path| path.starts_with(world.scratch())).count()
}

#[tokio::test]
async fn sim_a_look_is_kept_for_a_while_and_once_for_each_pod() {
    let world = World::with(8, &image());
    let desk = Desk::new(&world).await;
    let (pod, snapshot, _) = changed(&world, &desk, Backend::Overlay).await;
    // Read to its end it is over, whatever was read out of the image.
    desk.live_page(snapshot, "limit=1000").await;
    assert_eq!(nameless(&world), 0);

    let first = desk.live_page(snapshot, "limit=1").await;
    assert_eq!(nameless(&world), 1);
    world.engine.write(pod, "/srv/later", "1").unwrap();
    let second = desk.live_page(snapshot, "limit=1").await;
    assert_eq!(nameless(&world), 1);
    let after = |page: &Value| format!("limit=1&after={}", page["next"].as_str().unwrap());
    assert_eq!(desk.refused(snapshot, &format!("?{}", after(&first))).await["code"], "look-over");

    // Who goes on asking keeps it.
    let mut page = second;
    for _ in 0..3 {
        world.clock.advance(SignedDuration::from_mins(9));
        desk.server.app.looks_sweep().await;
        page = desk.live_page(snapshot, &after(&page)).await;
    }
    world.clock.advance(SignedDuration::from_mins(11));
    assert_eq!(desk.refused(snapshot, &format!("?{}", after(&page))).await["code"], "look-over");
    desk.server.housekeeper().run_due().await;
    assert_eq!(nameless(&world), 0, "nobody goes on, and the disk is not free");
}

#[tokio::test]
async fn sim_a_look_goes_with_the_data_it_was_at() {
    let world = World::with(9, &image());
    let desk = Desk::new(&world).await;
    let (pod, snapshot, _) = changed(&world, &desk, Backend::Overlay).await;
    desk.live_page(snapshot, "limit=1").await;
    desk.server.housekeeper().run_due().await;
    assert_eq!(nameless(&world), 1);
    desk.server.succeed(desk.server.stop(pod).await).await;
    desk.server.housekeeper().run_due().await;
    assert_eq!(nameless(&world), 0);
}

/// A look does not hold what it shares with a snapshot that is deleted meanwhile. That is no damage.
#[tokio::test]
async fn sim_a_prune_between_pages_ends_the_look() {
    let world = World::new(10);
    let desk = Desk::new(&world).await;
    let pod = desk.server.running("dev", small_spec(Backend::Engine)).await;
    let snapshot = desk.snapshot(pod).await;
    for path in ["/srv/a/1", "/srv/b/1", "/srv/c/1"] {
        world.engine.write(pod, path, "1").unwrap();
    }
    // One that holds the very trees of the look: what was changed a moment ago is put into a tree otherwise.
    let shared = loop {
        let id = desk.snapshot(pod).await;
        let row = desk.server.snapshots(pod).await.remove(0);
        let (repository, file) = (repository(&world), row.repository_id.unwrap().parse().unwrap());
        let tree = repository.snapshot(file).unwrap().tree;
        if repository.entry(tree, b"/volumes/srv/c/1").unwrap().ctime != Time::default() {
            break id;
        }
    };
    let page = desk.live_page(snapshot, "limit=1").await;
    for row in desk.server.snapshots(pod).await.into_iter().filter(|row| row.id != snapshot) {
        world.forget_outside(&format!("snapshot:{}", row.id));
    }
    for day in 1..4 {
        let now = world.clock_now() + SignedDuration::from_hours(48 * day);
        let request = PruneRequest { mode: Mode::Execute, grace: SignedDuration::ZERO, now, rewrite_at_most: u64::MAX };
        repository(&world).prune_with(&request, &Progress::default()).unwrap();
    }
    assert_ne!(shared, snapshot);
    let next = format!("?limit=1000&after={}", page["next"].as_str().unwrap());
    assert_eq!(desk.refused(snapshot, &next).await["code"], "look-over");
    assert_eq!(nameless(&world), 0);
    // Looked at again, all of it is there.
    assert_eq!(brief(&desk.live(snapshot, "/srv/c/1", 10).await), [("/srv/c/1".to_owned(), "added".to_owned())]);
}

/// One of before images were recorded is shown as it is, and so is the pod beside it.
#[tokio::test]
async fn sim_a_snapshot_without_an_image_is_compared_with_the_changes_alone() {
    let world = World::with(11, &image());
    let desk = Desk::new(&world).await;
    let pod = desk.server.running("dev", universal_spec(Backend::Overlay)).await;
    world.engine.write(pod, "/home/old/c", "1").unwrap();
    let snapshot = desk.snapshot(pod).await;
    let mut row = desk.server.snapshots(pod).await.remove(0);
    assert!(row.image.take().is_some());
    desk.change(row).await;
    assert_eq!(desk.live(snapshot, "/", 1000).await, Vec::<Value>::new());
}

/// Looks take threads for as long as a pod is large.
#[tokio::test]
async fn sim_a_tenant_has_one_pod_looked_at_at_a_time() {
    let world = World::with(12, &image());
    let tap = Arc::new(Meanwhile::default());
    let desk = Arc::new(Desk::with(&world, Arc::clone(&tap) as _).await);
    let (_, snapshot, _) = changed(&world, &desk, Backend::Engine).await;
    let answer = Arc::new(Mutex::new(None));
    *tap.0.lock().unwrap() = Some(Box::new({
        let (handle, desk, answer) = (tokio::runtime::Handle::current(), Arc::clone(&desk), Arc::clone(&answer));
        move || *answer.lock().unwrap() = Some(handle.block_on(desk.get(&format!("snapshots/{snapshot}/diff/live"))))
    }));
    desk.live_page(snapshot, "").await;
    let refused = answer.lock().unwrap().take().unwrap();
    assert_eq!((refused.status, refused.problem().as_str()), (StatusCode::SERVICE_UNAVAILABLE, "unavailable"));
    assert!(refused.json()["detail"].as_str().unwrap().contains("a pod of this tenant"), "{}", refused.json());
    // It was refused and did not wait, and afterwards it is somebody's turn again.
    desk.live_page(snapshot, "").await;
}
