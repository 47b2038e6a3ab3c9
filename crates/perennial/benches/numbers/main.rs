//! The numbers that Perennial promises, measured: `./dev bench [NAME…]` prints a table for each part.
//!
//! * `docker`: a pod's life on a real engine against the same steps done with bare calls of its API;
//! * `scale`: a server with ten thousand pods on the simulator;
//! * `sizes`: what pods take on the host;
//! * `clone`: how long a clone of a running pod takes on ext4, btrfs and XFS, beside `cp`;
//! * `freeze`: how long a running pod stands still for a snapshot, on ext4, btrfs and XFS;
//! * `stop-start`: stop and start of a pod of 100,000 files against `tar | gzip` in a helper container, restic and copying.
//!
//! Everything is asked of a real `perennial serve` process, over HTTP. A number beyond its limit fails the run.

#![allow(clippy::unwrap_used, reason = "a measurement that cannot go on ends")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the tables are what it is for")]

#[path = "../../tests/docker/installation/mod.rs"]
mod installation;

// The data set of the measurements of snapshots.
#[path = "../../../snapshots/benches/snapshots/data.rs"]
mod data;

mod bare;
mod clone;
mod disk;
mod docker;
mod freeze;
mod load;
mod process;
mod scale;
mod sizes;
mod stop_start;
mod table;

/// Measures, prints, and answers which numbers are beyond their limits.
type Part = fn() -> Vec<String>;

const PARTS: [(&str, Part); 6] = [
    ("docker", docker::run),
    ("scale", scale::run),
    ("sizes", sizes::run),
    ("freeze", freeze::run),
    ("clone", clone::run),
    ("stop-start", stop_start::run),
];

fn main() {
    // Cargo adds flags of its own, such as --bench.
    let asked: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    if let Some(unknown) = asked.iter().find(|a| PARTS.iter().all(|(name, _)| name != a)) {
        eprintln!("error: there is no part {unknown}; there are {}", PARTS.map(|(name, _)| name).join(", "));
        std::process::exit(2);
    }
    let mut missed = Vec::new();
    for (name, run) in PARTS {
        if asked.is_empty() || asked.iter().any(|a| a == name) {
            missed.extend(run());
        }
    }
    if !missed.is_empty() {
        println!("\nbeyond their limits:\n  {}", missed.join("\n  "));
        std::process::exit(1);
    }
}
