//! Peak memory with very many files: what is kept for each of them is what counts, so they are as small as can be.

use std::fs;
use std::path::Path;

use crate::child;
use crate::measure::run;

/// What peak memory with [`FILES`] may be.
const MEGABYTES: f64 = 1000.0;
/// So many files the promise is about; fewer may take their share, and what a process takes without any.
const FILES: f64 = 5_000_000.0;
const WITHOUT: f64 = 200.0;

/// Prints what each step took at most, and answers what was not kept.
pub fn measure(scratch: &Path, count: u64) -> Vec<String> {
    let (source, repository) = (scratch.join("source"), scratch.join("repository"));
    let target = scratch.join("restored");
    tiny(&source, count);
    let most = WITHOUT + (MEGABYTES - WITHOUT) * (count as f64 / FILES);
    println!("\npeak memory with {count} files, {most:.0} MB at most\n");
    println!("{:<12} {:>8} {:>8} {:>8}", "", "MB", "wall s", "CPU s");
    let mut missed = Vec::new();
    let steps = [("backup", &source), ("unchanged", &source), ("restore", &target), ("prune", &source)];
    for (step, path) in steps {
        let what = if step == "unchanged" { "backup" } else { step };
        rustix::fs::sync();
        let (sample, _) = run(child::command().arg(what).arg(&repository).arg(path));
        println!("{step:<12} {:>8.0} {:>8.2} {:>8.2}", sample.memory, sample.wall, sample.cpu);
        if sample.memory > most {
            missed.push(format!("{step}: {:.0} MB, at most {most:.0}", sample.memory));
        }
    }
    missed
}

/// Makes so many files of a few bytes, each of its own content, a hundred in a directory.
pub fn tiny(root: &Path, count: u64) {
    for hundred in 0..count.div_ceil(100) {
        let dir = root.join(format!("{:03}/{:03}", hundred / 1000, hundred % 1000));
        fs::create_dir_all(&dir).unwrap();
        for n in (hundred * 100..count).take(100) {
            fs::write(dir.join(n.to_string()), n.to_string()).unwrap();
        }
    }
}
