//! How long a running pod stands still for a snapshot, on the file systems that the storage root may be on.
//!
//! The pod has 100,000 files. From before a snapshot begins until it ends, a process in it saves every hundredth of them
//! anew, again and again, one in each directory: whenever the pod is frozen, all of these have changed since the live
//! pass, and no directory is as it was. The same is done again once the pod has 4 GiB more in a few files: how long it stands
//! still must not depend on how much there is.

use std::time::Duration;

use serde_json::json;

use super::disk::Disk;
use super::installation::{BUSYBOX, Docker, Installation, Pod};
use super::table::{self, Limit, Samples};

const ROUNDS: usize = 5;
const FILES: u64 = 100_000;
/// The file system of everything else on the machine.
const SHARED: &str = "ext4, shared";
/// Storage roots, and the seconds that a pod of this size may stand still there.
const KINDS: [(&str, f64); 3] = [(SHARED, 0.5), ("btrfs", 0.4), ("xfs", 0.4)];
/// 1,000 directories of 100 files of four kilobytes. Only `tee` writes so many files without a process for each.
const MAKE: &str = "x=$(head -c 3000 /dev/urandom | base64); cd /workspace; mkdir $(seq 100 1099); \
     for k in $(seq 1 10); do for j in $(seq 0 99); do echo \"$k $j $x\" | tee $(printf \"%s/f$j \" $k??) >/dev/null; done; done; sync";
/// Saves one file anew in each directory, until it is told that it is enough.
const CHANGE: &str = "x=$(head -c 3000 /dev/urandom | base64); cd /workspace; n=0; while [ ! -e /srv/enough ]; do \
     for k in $(seq 1 10); do echo \"$n $k $x\" | tee $k??/f7 >/dev/null; done; n=$((n+1)); echo $n >/srv/rounds; \
     done; rm /srv/enough";

/// Four GiB in eight files that are never changed.
const MORE: &str = "mkdir /workspace/more; for k in $(seq 1 8); do dd if=/dev/urandom of=/workspace/more/$k bs=1M count=512 2>/dev/null; done; sync";
/// What a pod has, in words.
const DATA: [&str; 2] = ["as it is", "4 GiB more"];
/// The median with more of it, to that without.
const APART: f64 = 1.2;

/// Lets the pod change files until the guard is dropped.
fn changing<T>(server: &Installation, pod: &Pod, meanwhile: impl FnOnce() -> T) -> T {
    std::thread::scope(|scope| {
        let changes = scope.spawn(|| server.sh(pod, CHANGE));
        super::installation::eventually("the pod changes its files", || {
            server.try_sh(pod, "test -e /srv/rounds").1.then_some(())
        });
        let result = meanwhile();
        server.sh(pod, "touch /srv/enough");
        changes.join().unwrap();
        result
    })
}

/// Times a pod stood still, and the snapshots took: with little data, and with much.
fn measure(kind: &'static str) -> [(Samples, Samples); 2] {
    let mut server = Installation::prepared(Docker::shared(), &[]);
    let disk = (kind != SHARED).then(|| Disk::mount(kind, server.storage(), "12G"));
    server.start_server();
    let pod = server.pod_with("freeze", BUSYBOX, "runc", json!({"backend": "overlay"}));
    server.sh(&pod, MAKE);
    let little = rounds(&server, &pod);
    server.sh(&pod, MORE);
    let much = rounds(&server, &pod);
    server.stop_server();
    // Nothing may use the disk when it is unmounted.
    server.docker.remove_labelled(server.label());
    drop(disk);
    [little, much]
}

fn rounds(server: &Installation, pod: &Pod) -> (Samples, Samples) {
    // The first stores everything; what the pod stands still for is what later ones read.
    server.snapshot(pod);
    let (mut frozen, mut whole) = (Samples::default(), Samples::default());
    for _ in 0..ROUNDS {
        server.sh(pod, "rm -f /srv/rounds");
        let (taken, took) = changing(server, pod, || {
            let began = std::time::Instant::now();
            (server.snapshot(pod), began.elapsed())
        });
        let millis = taken["consistency"]["frozenMillis"].as_u64().expect("a pod that was frozen");
        assert_eq!(taken["state"], "verified", "{taken:#}");
        assert!(taken["files"].as_u64().unwrap() >= FILES, "{taken:#}");
        // The trees of all 1,000 directories are new.
        assert!(taken["newBytes"].as_u64().unwrap() > 1 << 20, "{taken:#}");
        frozen.add(Duration::from_millis(millis));
        whole.add(took);
    }
    (frozen, whole)
}

pub fn run() -> Vec<String> {
    let (mut rows, mut limits) = (Vec::new(), Vec::new());
    for (kind, most) in KINDS {
        let measured = measure(kind);
        for ((frozen, whole), data) in measured.iter().zip(DATA) {
            let [median, least, longest] = frozen.cells();
            let [whole, ..] = whole.cells();
            rows.push(vec![kind.to_owned(), data.to_owned(), median, least, longest, whole]);
            limits.push(Limit {
                what: format!("{kind}, {data}: 100,000 files, one changed in each of 1,000 directories"),
                value: frozen.median(),
                most,
                unit: " s",
            });
        }
        let [(little, _), (much, _)] = &measured;
        limits.push(Limit {
            what: format!("{kind}: with 4 GiB more, to without"),
            value: much.median() / little.median(),
            most: APART,
            unit: " ×",
        });
    }
    let head = ["storage root", "data", "frozen, median", "min", "max", "the whole snapshot"];
    table::print(&format!("Freeze: milliseconds, {ROUNDS} rounds"), &head, &rows);
    table::limits("Freeze: medians", &limits)
}
