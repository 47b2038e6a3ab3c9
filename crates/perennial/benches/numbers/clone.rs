//! How long a clone of a running pod takes, on the file systems that the storage root may be on, beside `cp`.
//!
//! The source's data set is that of `./dev bench snapshots`. The copy's time is that which the trail tells: until the clone's set is
//! complete and on the disk. `cp` copies the set's directory on the same file system, and what it wrote is synced. They take turns.
//! How long it is until the clone runs is shown beside it: that takes a container as well.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use super::data;
use super::disk::Disk;
use super::installation::{BUSYBOX, Docker, Installation, Pod};
use super::table::{self, Limit, Samples};

/// Seconds that the copy may take on btrfs.
const AT_ONCE: f64 = 0.3;
/// Beside `cp -a --reflink=always`.
const SHARED: f64 = 1.2;
/// Beside `cp -a`.
const BYTES: f64 = 1.0;

fn setting<T: std::str::FromStr>(name: &str, default: T) -> T {
    std::env::var(name).ok().map_or(default, |text| text.parse().ok().unwrap_or_else(|| panic!("{name}={text}")))
}

/// Copies a directory; `None` where the file system cannot do it so.
fn cp(reflink: &str, from: &Path, to: &Path) -> Option<Duration> {
    let began = Instant::now();
    let done = Command::new("cp").args(["-a", reflink]).arg(from).arg(to).output().unwrap();
    if done.status.success() {
        assert!(Command::new("sync").arg("-f").arg(to).status().unwrap().success());
    }
    let took = began.elapsed();
    std::fs::remove_dir_all(to).unwrap();
    done.status.success().then_some(took)
}

/// How long the copy took, by the clone's trail.
fn copied(server: &Installation, copy: &Pod) -> Duration {
    let trail = server.get(&format!("/api/v1/pods/{}/events?limit=200", copy.id));
    let lines = trail["items"].as_array().unwrap().iter();
    let line = lines.filter(|e| e["type"] == "pod.copied").find_map(|e| e["message"].as_str());
    let millis = line.and_then(|l| l.split_once("within ")?.1.split_once(" ms")?.0.parse().ok());
    Duration::from_millis(millis.unwrap_or_else(|| panic!("it was not copied on the host: {trail:#}")))
}

struct Measured {
    clone: Samples,
    running: Samples,
    whole: Samples,
    shared: Option<Samples>,
}

fn measure(kind: &str, share: f64, rounds: usize) -> Measured {
    let mut server = Installation::prepared(Docker::shared(), &[]);
    let disk = Disk::mount(kind, server.storage(), "16G");
    server.start_server();
    let pod = server.pod_with("source", BUSYBOX, "runc", json!({"backend": "overlay"}));
    server.run(&pod, "pause");
    data::generate(&server.set(&pod).join("workspace/upper/data"), share).unwrap();
    server.run(&pod, "start");
    let (mut clone, mut running) = (Samples::default(), Samples::default());
    let (mut whole, mut shared) = (Samples::default(), Some(Samples::default()));
    let beside = disk.at().join("beside");
    // The first round warms the caches up.
    for round in 0..=rounds {
        let counts = round > 0;
        let began = Instant::now();
        let answer = server.post(&format!("/api/v1/pods/{}/clone", pod.id), &json!({"name": format!("copy-{round}")}));
        server.succeeded(answer["operation"]["id"].as_str().unwrap());
        let runs = began.elapsed();
        let copy = Pod { id: answer["pod"]["id"].as_str().unwrap().to_owned(), name: format!("copy-{round}") };
        let took = copied(&server, &copy);
        let (files, _) = data::files(&server.set(&copy).join("workspace/upper/data")).unwrap();
        let (source, _) = data::files(&server.set(&pod).join("workspace/upper/data")).unwrap();
        assert_eq!(files.len(), source.len(), "the clone is not whole");
        server.do_with(&copy, "purge", &json!({"confirm": copy.name}));
        let bytes = cp("--reflink=never", &server.set(&pod), &beside).unwrap();
        let links = cp("--reflink=always", &server.set(&pod), &beside);
        if counts {
            clone.add(took);
            running.add(runs);
            whole.add(bytes);
            shared = shared.zip(links).map(|(mut all, one)| {
                all.add(one);
                all
            });
        } else if links.is_none() {
            shared = None;
        }
    }
    server.stop_server();
    // Nothing may use the disk when it is unmounted.
    server.docker.remove_labelled(server.label());
    drop(disk);
    Measured { clone, running, whole, shared }
}

pub fn run() -> Vec<String> {
    let share: f64 = setting("PERENNIAL_BENCH_SHARE", 1.0);
    let rounds: usize = setting("PERENNIAL_BENCH_ROUNDS", 3);
    let (mut rows, mut limits) = (Vec::new(), Vec::new());
    for kind in ["ext4", "btrfs", "xfs"] {
        let Measured { clone, running, whole, shared } = measure(kind, share, rounds);
        let of = |samples: &Samples| samples.cells()[0].clone();
        rows.push(vec![
            kind.to_owned(),
            of(&clone),
            of(&running),
            of(&whole),
            shared.as_ref().map_or_else(|| "–".to_owned(), of),
        ]);
        let (what, value, most, unit) = match (kind, &shared) {
            ("btrfs", _) => ("the copy", clone.median(), AT_ONCE, " s"),
            (_, Some(shared)) => ("the copy × cp -a --reflink=always", clone.median() / shared.median(), SHARED, ""),
            (_, None) => ("the copy × cp -a", clone.median() / whole.median(), BYTES, ""),
        };
        limits.push(Limit { what: format!("{kind}: {what}"), value, most, unit });
    }
    let head = ["storage root", "the copy", "until it runs", "cp -a", "cp -a --reflink=always"];
    table::print(&format!("Clone: milliseconds, medians of {rounds} rounds, {share} of the data set"), &head, &rows);
    table::limits("Clone", &limits)
}
