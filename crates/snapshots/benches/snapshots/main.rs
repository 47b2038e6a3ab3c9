//! Snapshots against restic, measured: `./dev bench snapshots` prints a table and fails when a number is beyond its limit.
//!
//! Everything is done by processes of their own, one after another, restic and Perennial taking turns on the same data
//! set: times and memory are what the system counts for whole processes, the opening of the repository included. The
//! page cache is warm, and what earlier steps wrote is on the disk before the next begins. No tree is deleted before
//! the end, because ext4 avoids inodes that were freed a moment ago, and whoever comes next pays for that.
//!
//! `PERENNIAL_BENCH_SHARE` (1) scales the data set, `PERENNIAL_BENCH_ROUNDS` (3) says how often, and
//! `PERENNIAL_BENCH_DIR` where (15 GB for each round). With `PERENNIAL_BENCH_TINY_FILES` it is only peak memory that is
//! measured, with so many files of a few bytes ([`memory`]).

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a measurement that cannot go on ends")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the tables are what it is for")]

mod child;
mod data;
mod measure;
mod memory;
mod report;

use std::path::{Path, PathBuf};
use std::process::Command;

use measure::{Samples, parse, run};

/// A setting of the run.
fn setting<T: std::str::FromStr>(name: &str, default: T) -> T {
    std::env::var(name).ok().map_or(default, |text| text.parse().ok().unwrap_or_else(|| panic!("{name}={text}")))
}

fn main() {
    // Cargo adds flags of its own, such as --bench.
    let asked: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    if !asked.is_empty() {
        child::main(&asked);
        return;
    }
    let scratch: PathBuf = setting("PERENNIAL_BENCH_DIR", std::env::temp_dir());
    std::fs::create_dir_all(&scratch).unwrap();
    let scratch = tempfile::Builder::new().prefix("perennial-bench-").tempdir_in(scratch).unwrap();
    let tiny: u64 = setting("PERENNIAL_BENCH_TINY_FILES", 0);
    if tiny > 0 {
        let missed = memory::measure(scratch.path(), tiny);
        return end(scratch, &missed);
    }
    let share: f64 = setting("PERENNIAL_BENCH_SHARE", 1.0);
    let rounds: u64 = setting("PERENNIAL_BENCH_ROUNDS", 3);
    let source = scratch.path().join("source");
    data::generate(&source, share).unwrap();
    let (files, bytes) = data::files(&source).unwrap();
    println!("\nsnapshots: {} files, {:.2} GB, {rounds} rounds", files.len(), bytes as f64 / 1e9);
    let mut bench = Bench { scratch: scratch.path(), source: &source, samples: Samples::default() };
    let sizes: Vec<report::Sizes> = (0..rounds).map(|round| bench.round(round)).collect();
    let missed = report::print(&bench.samples, &sizes);
    end(scratch, &missed);
}

/// Removes what was made, and fails when a number was beyond its limit.
fn end(scratch: tempfile::TempDir, missed: &[String]) {
    if !missed.is_empty() {
        println!("\nbeyond their limits:\n  {}", missed.join("\n  "));
        drop(scratch);
        std::process::exit(1);
    }
}

struct Bench<'a> {
    scratch: &'a Path,
    source: &'a Path,
    samples: Samples,
}

/// Where one tool keeps its things in one round.
struct Place {
    repository: PathBuf,
    target: PathBuf,
}

impl Bench<'_> {
    fn round(&mut self, round: u64) -> report::Sizes {
        let place = |who: &str| Place {
            repository: self.scratch.join(format!("{who}-{round}")),
            target: self.scratch.join(format!("{who}-{round}-restored")),
        };
        let (restic, ours) = (place("restic"), place("perennial"));
        // Who begins changes with the round.
        let turns = |bench: &mut Self, step: &mut dyn FnMut(&mut Self, bool)| {
            for turn in 0..2 {
                settle();
                step(bench, (round + turn).is_multiple_of(2));
            }
        };
        settle();
        // Durable like the others.
        let archive = self.scratch.join("tar.zst");
        let pipe =
            format!("tar -C {0} -c . | zstd -q -1 -T2 -f -o {1} && sync {1}", self.source.display(), archive.display());
        self.samples.add("full", "tar | zstd", run(Command::new("sh").arg("-c").arg(pipe)).0);
        std::fs::remove_file(archive).unwrap();
        run(self.restic(&restic).arg("init"));
        turns(self, &mut |bench, is_restic| bench.backup("full", is_restic, &restic, &ours));
        turns(self, &mut |bench, is_restic| bench.backup("unchanged", is_restic, &restic, &ours));
        let before = [size(&restic.repository), size(&ours.repository)];
        data::change(self.source, 100 + round).unwrap();
        turns(self, &mut |bench, is_restic| bench.backup("changed", is_restic, &restic, &ours));
        let after = [size(&restic.repository), size(&ours.repository)];
        turns(self, &mut |bench, is_restic| bench.restore("restore", is_restic, &restic, &ours));
        for target in [&restic.target, &ours.target] {
            data::change(&self.tree(target), 200 + round).unwrap();
        }
        turns(self, &mut |bench, is_restic| bench.restore("in place", is_restic, &restic, &ours));
        report::Sizes { first: before, new: [0, 1].map(|i| after[i] - before[i]) }
    }

    /// restic restores absolute paths below its target, Perennial the directory itself.
    fn tree(&self, target: &Path) -> PathBuf {
        let below = target.join(self.source.strip_prefix("/").unwrap());
        if below.exists() { below } else { target.to_owned() }
    }

    fn restic(&self, place: &Place) -> Command {
        let mut command = Command::new("restic");
        command.env("RESTIC_PASSWORD", child::PASSWORD).env("RESTIC_CACHE_DIR", self.scratch.join("restic-cache"));
        command.arg("-q").arg("-r").arg(&place.repository);
        command
    }

    fn backup(&mut self, what: &'static str, is_restic: bool, restic: &Place, ours: &Place) {
        if is_restic {
            let sample = run(self.restic(restic).arg("backup").arg(self.source)).0;
            self.samples.add(what, "restic", sample);
            return;
        }
        let mut command = child::command();
        command.arg("backup").arg(&ours.repository).arg(self.source);
        let (whole, text) = run(&mut command);
        let verify = parse(&text, "verify").unwrap();
        let mut sample = parse(&text, "backup").unwrap();
        // What the laps do not cover (start and end of the process, opening the repository) counts as well.
        sample.wall = whole.wall - verify.wall;
        sample.cpu = whole.cpu - verify.cpu;
        self.samples.add(what, "perennial", sample);
        self.samples.add(what, "perennial, verified", whole);
    }

    fn restore(&mut self, what: &'static str, is_restic: bool, restic: &Place, ours: &Place) {
        let sample = if is_restic {
            let mut command = self.restic(restic);
            command.arg("restore").arg("latest").arg("--target").arg(&restic.target);
            let (mut sample, _) = run(&mut command);
            // Ours is durable when it ends; restic leaves that to somebody else.
            let sync = run(Command::new("sync").arg("--file-system").arg(&restic.target)).0;
            self.samples.add(what, "restic, not on the disk", sample);
            sample.wall += sync.wall;
            sample.cpu += sync.cpu;
            sample
        } else {
            let (sample, _) = run(child::command().arg("restore").arg(&ours.repository).arg(&ours.target));
            assert!(same_tree(self.source, &ours.target), "what was restored is not what was there");
            sample
        };
        self.samples.add(what, if is_restic { "restic" } else { "perennial" }, sample);
    }
}

/// Waits until everything that was written is on the disk.
fn settle() {
    rustix::fs::sync();
}

fn size(repository: &Path) -> u64 {
    data::files(repository).unwrap().1
}

fn same_tree(left: &Path, right: &Path) -> bool {
    Command::new("diff").arg("-rq").arg(left).arg(right).status().unwrap().success()
}
