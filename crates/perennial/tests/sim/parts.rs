//! Restores of chosen parts: what is chosen becomes what it was, and nothing else changes.

use std::collections::BTreeMap;

use crate::world::{Server, World, declared_spec, files, universal_spec};
use perennial::service::{Caller, Preview, Request};
use perennial_core::Error;
use perennial_core::id::{PodId, SnapshotId};
use perennial_core::operation::OperationState;
use perennial_core::parts::{Extra, Parts};
use perennial_core::pod::Phase;
use perennial_core::snapshot::{SnapshotKind, SnapshotState};
use perennial_core::spec::{Backend, DeclaredVolume, PodSpec, Profile};

const BACKENDS: [Backend; 2] = [Backend::Overlay, Backend::Engine];

fn chosen(volumes: &[&str], paths: &[&str], extra: Extra) -> Parts {
    let own = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
    Parts::new(own(volumes), own(paths), extra).unwrap().unwrap()
}

/// A pod with a past and a present, and the snapshot of its past.
struct History {
    world: World,
    pod: PodId,
    snapshot: SnapshotId,
    then: BTreeMap<String, Vec<u8>>,
    now: BTreeMap<String, Vec<u8>>,
}

async fn history(seed: u64, backend: Backend) -> (History, Server) {
    let world = World::new(seed);
    let server = world.server().await;
    let pod = server.running("dev", universal_spec(backend)).await;
    let write = |path: &str, text: &str| world.engine.write(pod, path, text).unwrap();
    for path in ["/home/user/file", "/home/user/dir/a", "/home/other", "/etc/nginx/nginx.conf", "/etc/hosts.allow"] {
        write(path, "then");
    }
    write("/usr/lib/then", "then");
    write("/tools/then", "then");
    write("/var/lib/seed/a", "then");
    let snapshot = server.snapshot_of(pod).await;
    let then = files(&world, pod);
    for path in ["/home/user/file", "/home/user/dir/later", "/home/other", "/etc/nginx/later.conf", "/etc/hosts.allow"]
    {
        write(path, "now");
    }
    write("/usr/lib/now", "now");
    write("/tools/now", "now");
    world.engine.remove(pod, "/home/user/dir/a").unwrap();
    world.engine.remove(pod, "/etc/motd").unwrap();
    world.engine.remove(pod, "/etc/skel").unwrap();
    world.engine.remove(pod, "/var/lib/seed").unwrap();
    write("/var/lib/seed", "a file now");
    let now = files(&world, pod);
    (History { world, pod, snapshot, then, now }, server)
}

impl History {
    /// What the pod has after these paths were put back and everything else stayed.
    fn expected(&self, chosen: &[&str], extra: Extra) -> BTreeMap<String, Vec<u8>> {
        let is_in = |path: &str| chosen.iter().any(|c| path == *c || path.starts_with(&format!("{c}/")));
        let mut files = self.now.clone();
        if extra == Extra::Remove {
            files.retain(|path, _| !is_in(path));
        }
        files.extend(self.then.iter().filter(|(path, _)| is_in(path)).map(|(p, b)| (p.clone(), b.clone())));
        files
    }

    async fn restored(&self, server: &Server, parts: Parts) -> BTreeMap<String, Vec<u8>> {
        server.succeed(server.restore_parts(self.pod, self.snapshot, parts).await).await;
        assert_eq!(server.pod(self.pod).await.phase, Phase::Running);
        files(&self.world, self.pod)
    }
}

fn assert_same(found: &BTreeMap<String, Vec<u8>>, expected: &BTreeMap<String, Vec<u8>>, told: &str) {
    let differs =
        |(path, bytes): &(&String, &Vec<u8>), other: &BTreeMap<String, Vec<u8>>| other.get(*path) != Some(*bytes);
    let wrong: Vec<_> = found.iter().filter(|e| differs(e, expected)).map(|(p, _)| p).collect();
    let missing: Vec<_> = expected.iter().filter(|e| differs(e, found)).map(|(p, _)| p).collect();
    assert!(wrong.is_empty() && missing.is_empty(), "{told}: wrong {wrong:?}, missing {missing:?}");
}

#[tokio::test]
async fn p25_sim_a_volume_a_directory_or_a_file_is_put_back_and_nothing_else_changes() {
    let cases: [(&[&str], &[&str], &[&str]); 6] = [
        (&["home"], &[], &["/home"]),
        (&[], &["/home/user/file"], &["/home/user/file"]),
        (&[], &["/etc/nginx", "/home/user/dir"], &["/etc/nginx", "/home/user/dir"]),
        // Deleted from the image, and replaced by a file, since.
        (&[], &["/etc/motd", "/etc/skel/profile"], &["/etc/motd", "/etc/skel/profile"]),
        (&[], &["/var/lib/seed"], &["/var/lib/seed"]),
        (&["system"], &["/usr"], &["/usr", "/tools"]),
    ];
    for backend in BACKENDS {
        for (volumes, paths, put_back) in cases {
            for extra in [Extra::Remove, Extra::Keep] {
                let (history, server) = history(25, backend).await;
                let found = history.restored(&server, chosen(volumes, paths, extra)).await;
                let expected = history.expected(put_back, extra);
                let mut expected = expected;
                // What is no directory any more cannot be kept beside what comes into its place.
                expected.retain(|path, _| !(path == "/var/lib/seed" && put_back.contains(&"/var/lib/seed")));
                assert_same(&found, &expected, &format!("{backend:?} {volumes:?} {paths:?} {extra:?}"));
            }
        }
    }
}

#[tokio::test]
async fn p24_sim_a_restore_into_a_running_pod_mixes_nothing_and_has_a_way_back() {
    for backend in BACKENDS {
        let (history, server) = history(24, backend).await;
        let (pod, parts) = (history.pod, chosen(&["home", "etc"], &[], Extra::Remove));
        let before = server.pod(pod).await.current;
        let found = history.restored(&server, parts).await;
        assert_same(&found, &history.expected(&["/home", "/etc"], Extra::Remove), "stale files");
        assert!(!found.contains_key("/home/user/dir/later"), "a file of later is mixed in");
        assert_ne!(server.pod(pod).await.current, before, "the set in use was written into");
        let safety = server.snapshots(pod).await.into_iter().find(|s| s.kind == SnapshotKind::Safety).unwrap();
        assert_eq!(safety.state, SnapshotState::Verified);
        let composed = server.snapshots(pod).await.into_iter().find(|s| s.kind == SnapshotKind::Composed).unwrap();
        assert!(composed.set.is_none() && composed.generation == 0, "it must never prove anything");
        server.succeed(server.restore(pod, safety.id).await).await;
        assert_same(&files(&history.world, pod), &history.now, "the way back");
        assert_eq!(history.world.engine.violations(), [] as [String; 0]);
        history.world.check_repository().unwrap();
    }
}

#[tokio::test]
async fn sim_parts_are_put_into_what_a_stopped_or_paused_pod_has() {
    for backend in BACKENDS {
        let (history, server) = history(26, backend).await;
        let pod = history.pod;
        server.succeed(server.pause(pod).await).await;
        let parts = || chosen(&[], &["/home/user/file", "/etc/skel"], Extra::Remove);
        server.succeed(server.restore_parts(pod, history.snapshot, parts()).await).await;
        assert_eq!(server.pod(pod).await.phase, Phase::Paused);
        server.succeed(server.start(pod).await).await;
        let expected = history.expected(&["/home/user/file", "/etc/skel"], Extra::Remove);
        assert_same(&files(&history.world, pod), &expected, "paused");

        history.world.engine.write(pod, "/home/user/file", "once more").unwrap();
        server.succeed(server.stop(pod).await).await;
        server.succeed(server.restore_parts(pod, history.snapshot, parts()).await).await;
        // Out of one that was composed already.
        let dir = chosen(&[], &["/home/user/dir"], Extra::Remove);
        server.succeed(server.restore_parts(pod, history.snapshot, dir).await).await;
        assert_eq!(server.pod(pod).await.phase, Phase::Stopped);
        server.succeed(server.start(pod).await).await;
        let expected = history.expected(&["/home/user/file", "/home/user/dir", "/etc/skel"], Extra::Remove);
        assert_same(&files(&history.world, pod), &expected, "stopped");
    }
}

#[tokio::test]
async fn sim_parts_that_cannot_be_put_back_are_refused_before_anything_is_touched() {
    let (history, server) = history(27, Backend::Overlay).await;
    let refused = async |volumes: &[&str], paths: &[&str]| {
        let parts = chosen(volumes, paths, Extra::Remove);
        match server.restore_parts(history.pod, history.snapshot, parts).await {
            Err(Error::InvalidInput { field, problem, .. }) => (field, problem),
            other => panic!("{volumes:?} {paths:?}: {other:?}"),
        }
    };
    assert_eq!(refused(&["nothing"], &[]).await.0, "volumes");
    for path in ["/home/user/nothing", "/etc/motd/below", "/nowhere"] {
        let (field, problem) = refused(&[], &[path]).await;
        assert_eq!(field, "paths", "{path}: {problem}");
    }
    assert_same(&files(&history.world, history.pod), &history.now, "refusals");
    assert_eq!(server.snapshots(history.pod).await.len(), 1);
}

#[tokio::test]
async fn sim_a_file_in_the_way_fails_the_restore_and_the_pod_goes_on_as_it_was() {
    let (history, server) = history(28, Backend::Overlay).await;
    // /var/lib/seed is a file now.
    let parts = chosen(&[], &["/var/lib/seed/a"], Extra::Remove);
    let operation = server.done(server.restore_parts(history.pod, history.snapshot, parts).await).await;
    assert_eq!(operation.state, OperationState::Failed);
    let problem = operation.error.unwrap();
    assert!(problem.code == "parts-not-composable" && problem.message.contains("lib/seed"), "{problem:?}");
    server.settle(history.pod).await;
    assert_eq!(server.pod(history.pod).await.phase, Phase::Running);
    assert_same(&files(&history.world, history.pod), &history.now, "a failed restore");
    let composed = server.snapshots(history.pod).await.into_iter().find(|s| s.kind == SnapshotKind::Composed).unwrap();
    assert_eq!(composed.state, SnapshotState::Failed);
}

#[tokio::test]
async fn sim_what_is_written_while_a_restore_of_parts_is_under_way_is_not_lost() {
    for backend in BACKENDS {
        let (history, server) = history(29, backend).await;
        let pod = history.pod;
        let outcome = server.restore_parts(pod, history.snapshot, chosen(&["etc"], &[], Extra::Remove)).await.unwrap();
        // Up to the moment before the switch.
        for _ in 0..200 {
            let record = server.pod(pod).await;
            let filled = record
                .sets
                .iter()
                .any(|s| Some(s.number) != record.current && s.state == perennial_core::volume::SetState::Complete);
            if filled {
                break;
            }
            server.reconciler.pass(pod).await;
        }
        history.world.engine.start_outside(pod).unwrap();
        history.world.engine.write(pod, "/home/user/written", "meanwhile").unwrap();
        server.succeed(Ok(outcome)).await;
        server.settle(pod).await;
        let found = history.world.engine.read(pod, "/home/user/written").unwrap();
        assert_eq!(found.as_deref(), Some(&b"meanwhile"[..]), "{backend:?}");
        assert_eq!(history.world.engine.read(pod, "/etc/motd").unwrap().as_deref(), Some(&b"from the image\n"[..]));
        let open = server.snapshots(pod).await.into_iter().find(|s| s.state == SnapshotState::Pending);
        assert_eq!(open, None);
    }
}

#[tokio::test]
async fn sim_parts_of_a_pod_that_declares_its_volumes_are_those_of_its_volumes() {
    for backend in BACKENDS {
        let world = World::new(30);
        let server = world.server().await;
        let pod = server.running("dev", declared_spec(backend)).await;
        world.engine.write(pod, "/srv/a", "then").unwrap();
        world.engine.write(pod, "/srv/b", "then").unwrap();
        let snapshot = server.snapshot_of(pod).await;
        world.engine.write(pod, "/srv/a", "now").unwrap();
        world.engine.write(pod, "/srv/b", "now").unwrap();
        let parts = chosen(&[], &["/srv/a"], Extra::Remove);
        server.succeed(server.restore_parts(pod, snapshot, parts).await).await;
        assert_eq!(world.engine.read(pod, "/srv/a").unwrap().unwrap(), b"then");
        assert_eq!(world.engine.read(pod, "/srv/b").unwrap().unwrap(), b"now");
        for (volumes, paths, field) in [(&["system"][..], &[][..], "volumes"), (&[], &["/etc/motd"], "paths")] {
            let parts = chosen(volumes, paths, Extra::Remove);
            let refused = server.restore_parts(pod, snapshot, parts).await;
            assert!(matches!(&refused, Err(Error::InvalidInput { field: f, .. }) if f == field), "{refused:?}");
        }
    }
}

#[tokio::test]
async fn sim_parts_are_put_back_where_only_a_mover_reaches_the_volumes() {
    let world = World::with_mover(32, perennial::mover::simulated());
    let server = world.server().await;
    let pod = server.running("dev", universal_spec(Backend::Engine)).await;
    world.engine.write(pod, "/home/user/a", "then").unwrap();
    let snapshot = server.snapshot_of(pod).await;
    for path in ["/home/user/a", "/home/user/b"] {
        world.engine.write(pod, path, "now").unwrap();
    }
    let parts = chosen(&[], &["/home/user/a"], Extra::Remove);
    server.succeed(server.restore_parts(pod, snapshot, parts).await).await;
    assert_eq!(world.engine.read(pod, "/home/user/a").unwrap().unwrap(), b"then");
    assert_eq!(world.engine.read(pod, "/home/user/b").unwrap().unwrap(), b"now");
}

#[tokio::test]
async fn sim_a_dry_run_lists_what_would_change_and_does_nothing() {
    for backend in BACKENDS {
        let (history, server) = history(31, backend).await;
        let latest = server.snapshot_of(history.pod).await;
        let preview = async |parts: Option<Parts>| -> Preview {
            server.app.restore_preview(&Caller::admin(), history.pod, (history.snapshot, parts)).await.unwrap()
        };
        let shown = |preview: &Preview| -> Vec<(String, bool)> {
            let path = |p: &[Vec<u8>]| format!("/{}", String::from_utf8_lossy(&p.join(&b'/')));
            preview.changes.iter().filter(|c| c.what.content).map(|c| (path(&c.path), c.after.is_none())).collect()
        };
        let found = preview(Some(chosen(&[], &["/home/user/dir", "/etc/motd"], Extra::Remove))).await;
        assert_eq!(found.compared_with.as_ref().map(|row| row.id), Some(latest));
        let wanted = [("/etc/motd", false), ("/home/user/dir/a", false), ("/home/user/dir/later", true)];
        assert_eq!(shown(&found), wanted.map(|(path, gone)| (path.to_owned(), gone)), "{backend:?}");
        assert!(found.complete);
        let kept = preview(Some(chosen(&[], &["/home/user/dir"], Extra::Keep))).await;
        assert_eq!(shown(&kept), [("/home/user/dir/a".to_owned(), false)]);
        let layer = preview(Some(chosen(&["system"], &[], Extra::Remove))).await;
        assert!(shown(&layer).contains(&("/tools/now".to_owned(), true)), "{:?}", shown(&layer));
        assert!(shown(&layer).iter().all(|(path, _)| !path.starts_with("/home")), "{:?}", shown(&layer));
        let whole = preview(None).await;
        assert!(shown(&whole).contains(&("/home/other".to_owned(), false)));
        assert!(server.pod(history.pod).await.tasks.is_empty());
        assert_same(&files(&history.world, history.pod), &history.now, "a dry run");
    }
}

#[tokio::test]
async fn sim_parts_of_a_pod_whose_volumes_are_elsewhere_are_refused_before_anything_is_touched() {
    let world = World::new(33);
    let server = world.server().await;
    let declared = |volumes: &[(&str, &str)]| {
        let volume = |(name, path): &(&str, &str)| DeclaredVolume {
            name: (*name).to_owned(),
            mount_path: (*path).to_owned(),
            size: None,
        };
        let profile = Profile::Declared(volumes.iter().map(volume).collect());
        PodSpec { profile, ..declared_spec(Backend::Overlay) }
    };
    let ours = server.running("ours", declared(&[("data", "/srv")])).await;
    world.engine.write(ours, "/srv/a", "ours").unwrap();
    let refused = async |pod: PodId, snapshot: SnapshotId, volumes: &[&str], paths: &[&str]| match server
        .restore_parts(pod, snapshot, chosen(volumes, paths, Extra::Remove))
        .await
    {
        Err(Error::Conflict { code, problem, .. }) => {
            assert_eq!(code, "snapshot-of-other-volumes", "{problem}");
        }
        other => panic!("{volumes:?} {paths:?}: {other:?}"),
    };
    // The same name at another place, and the same path in another volume.
    for (name, volumes) in [("moved", &[("data", "/opt")][..]), ("renamed", &[("files", "/srv")])] {
        let theirs = server.running(name, declared(volumes)).await;
        let at = volumes[0].1;
        world.engine.write(theirs, &format!("{at}/a"), "theirs").unwrap();
        let snapshot = server.snapshot_of(theirs).await;
        refused(ours, snapshot, &[volumes[0].0], &[]).await;
        refused(ours, snapshot, &[], &[&format!("{at}/a")]).await;
    }
    // All volumes alike, but what is outside of them is not kept.
    let machine = server.running("machine", universal_spec(Backend::Overlay)).await;
    world.engine.write(machine, "/tools/ours", "ours").unwrap();
    let record = server.pod(machine).await;
    let volumes: Vec<_> = record.current_set().unwrap().volumes.iter().map(|v| (&*v.name, &*v.mount_path)).collect();
    let theirs = server.running("without-layer", declared(&volumes)).await;
    let snapshot = server.snapshot_of(theirs).await;
    refused(machine, snapshot, &["home"], &[]).await;
    refused(machine, snapshot, &["system"], &[]).await;
    for (pod, path) in [(ours, "/srv/a"), (machine, "/tools/ours")] {
        assert_eq!(world.engine.read(pod, path).unwrap().unwrap(), b"ours");
        assert!(server.pod(pod).await.tasks.is_empty());
    }
}

#[tokio::test]
async fn sim_what_a_cancelled_restore_of_parts_put_together_is_nobodys_latest() {
    for backend in BACKENDS {
        let (history, server) = history(34, backend).await;
        let parts = chosen(&["home"], &[], Extra::Remove);
        let outcome = server.restore_parts(history.pod, history.snapshot, parts.clone()).await.unwrap();
        let composed = async || {
            let rows = server.snapshots(history.pod).await;
            rows.into_iter().find(|row| row.kind == SnapshotKind::Composed).map(|row| row.state)
        };
        while composed().await != Some(SnapshotState::Verified) {
            server.reconciler.pass(history.pod).await;
        }
        server.app.cancel(Request::new(&Caller::admin()), outcome.operation.id).await.unwrap();
        server.settle(history.pod).await;
        assert_eq!(composed().await, Some(SnapshotState::Failed), "{backend:?}");
        let (_, latest) = server.app.pod(&Caller::admin(), history.pod).await.unwrap();
        assert_eq!(latest.unwrap().kind, SnapshotKind::Safety, "{backend:?}");
        assert_same(&files(&history.world, history.pod), &history.now, "a cancelled restore");
        // One that was used stays, whatever is cancelled after it.
        server.succeed(server.restore_parts(history.pod, history.snapshot, parts).await).await;
        let (_, latest) = server.app.pod(&Caller::admin(), history.pod).await.unwrap();
        assert_eq!(latest.unwrap().kind, SnapshotKind::Composed, "{backend:?}");
    }
}
