//! The database comes back from an older copy: what carries our labels is adopted or left alone, and nothing is destroyed.

use std::fs;
use std::path::Path;

use crate::installation::{BUSYBOX, Installation, eventually};
use reqwest::{Method, StatusCode};
use serde_json::json;

fn copy_database(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for name in ["perennial.db", "perennial.db-wal", "perennial.db-shm"] {
        drop(fs::remove_file(to.join(name)));
        if from.join(name).exists() {
            fs::copy(from.join(name), to.join(name)).unwrap();
        }
    }
}

#[test]
fn runc_after_an_older_database_came_back_everything_is_adopted_or_left_alone() {
    let mut installation = Installation::new();
    let untouched = installation.pod_with("untouched", BUSYBOX, "runc", json!({}));
    let moved_on = installation.pod_with("moved-on", BUSYBOX, "runc", json!({}));
    for pod in [&untouched, &moved_on] {
        installation.sh(pod, "echo first >/srv/kept");
    }
    installation.stop_server();
    let copies = tempfile::tempdir().unwrap();
    let (older, newest) = (copies.path().join("older"), copies.path().join("newest"));
    copy_database(&installation.data(), &older);

    installation.start_server();
    let lost = installation.container(&moved_on);
    installation.docker.run(&["rm", "-f", &lost]);
    let replacement = installation.replaced(&moved_on, &lost);
    installation.sh(&moved_on, "echo second >/srv/kept");
    let unknown = installation.pod_with("unknown", BUSYBOX, "runc", json!({}));
    installation.sh(&unknown, "echo only >/srv/kept");
    let (kept, strange) = (installation.container(&untouched), installation.container(&unknown));
    let started = |id: &str| installation.docker.run(&["inspect", "--format", "{{.State.StartedAt}}", id]);
    let before: Vec<String> = [&kept, &strange, &replacement].map(|id| started(id)).into();
    installation.stop_server();
    copy_database(&installation.data(), &newest);

    copy_database(&older, &installation.data());
    installation.start_server();
    eventually("the database is seen to be older", || {
        installation.has_condition(&moved_on, "GenerationMismatch").then_some(())
    });
    installation.assert_phase(&moved_on, "error");
    let (status, _) = installation.try_request(Method::GET, &format!("/api/v1/pods/{}", unknown.id), None).unwrap();
    assert_eq!(status, StatusCode::NOT_FOUND);
    installation.assert_phase(&untouched, "running");
    assert_eq!(installation.container(&untouched), kept);
    // A start of what the database does not know well enough is refused, and nothing is started beside it.
    assert_eq!(installation.refused(&moved_on, "restart"), "database-older-than-data");
    let started = |id: &str| installation.docker.run(&["inspect", "--format", "{{.State.StartedAt}}", id]);
    assert_eq!([&kept, &strange, &replacement].map(|id| started(id)).to_vec(), before);

    installation.stop_server();
    copy_database(&newest, &installation.data());
    installation.start_server();
    for (pod, content) in [(&untouched, "first\n"), (&moved_on, "second\n"), (&unknown, "only\n")] {
        eventually("the pod runs as before", || (installation.phase(pod) == "running").then_some(()));
        assert_eq!(installation.sh(pod, "cat /srv/kept"), content);
    }
    assert_eq!(installation.container(&moved_on), replacement);
}
