//! What a child process took, as the system counts it.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// One measured piece of work.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sample {
    pub wall: f64,
    /// User and system time of the process and of those it waited for.
    pub cpu: f64,
    /// Peak resident memory in megabytes; zero for pipelines.
    pub memory: f64,
}

/// All samples, by what was done and by whom.
#[derive(Default)]
pub struct Samples(BTreeMap<(&'static str, &'static str), Vec<Sample>>);

impl Samples {
    pub fn add(&mut self, what: &'static str, who: &'static str, sample: Sample) {
        self.0.entry((what, who)).or_default().push(sample);
    }

    /// The median of each figure; none when nothing was measured.
    pub fn median(&self, what: &'static str, who: &'static str) -> Option<Sample> {
        let samples = self.0.get(&(what, who))?;
        let of = |figure: fn(&Sample) -> f64| {
            let mut all: Vec<f64> = samples.iter().map(figure).collect();
            all.sort_unstable_by(f64::total_cmp);
            all[all.len() / 2]
        };
        Some(Sample { wall: of(|s| s.wall), cpu: of(|s| s.cpu), memory: of(|s| s.memory) })
    }

    /// Least and greatest wall time.
    pub fn range(&self, what: &'static str, who: &'static str) -> (f64, f64) {
        let all = self.0.get(&(what, who)).into_iter().flatten().map(|s| s.wall);
        all.fold((f64::MAX, 0.0), |(least, most), wall| (least.min(wall), most.max(wall)))
    }
}

/// The first number after a label in one of the system's files.
fn number(path: &str, label: &str) -> f64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(label)).unwrap_or_default();
    line.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or_default()
}

fn peak(pid: &str) -> f64 {
    number(&format!("/proc/{pid}/status"), "VmHWM:") / 1024.0
}

/// Fields 14 to 17 of `stat`: own user and system time, then that of children; in ticks of 10 ms.
fn ticks(children: bool) -> f64 {
    let text = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = text.rsplit(") ").next().unwrap_or_default().split(' ');
    let skip = if children { 13 } else { 11 };
    fields.skip(skip).take(2).filter_map(|n| n.parse::<f64>().ok()).sum::<f64>() / 100.0
}

/// Runs a program to its end; its failure is ours. Returns what it printed.
pub fn run(command: &mut Command) -> (Sample, String) {
    let (began, before) = (Instant::now(), ticks(true));
    let mut child = command.stdout(Stdio::piped()).spawn().expect("start a program");
    let pid = child.id().to_string();
    let output = child.stdout.take().expect("its output");
    let watcher = std::thread::spawn(move || {
        // The system forgets a process' memory when it ends, so it is looked at until then; the peak only grows.
        let mut most = 0.0_f64;
        loop {
            let now = peak(&pid);
            if now == 0.0 {
                return most;
            }
            most = most.max(now);
            std::thread::sleep(Duration::from_millis(25));
        }
    });
    let text = std::io::read_to_string(output).expect("read its output");
    let status = child.wait().expect("wait for it");
    let wall = began.elapsed().as_secs_f64();
    assert!(status.success(), "{command:?}: {status}\n{text}");
    let memory = watcher.join().expect("watch its memory");
    (Sample { wall, cpu: ticks(true) - before, memory }, text)
}

/// What this process did since it started or since the last call.
pub struct Stopwatch(Instant, f64);

impl Stopwatch {
    pub fn start() -> Self {
        Self(Instant::now(), ticks(false))
    }

    /// Prints a line that [`parse`] understands, and starts again.
    pub fn lap(&mut self, what: &str) {
        let (wall, cpu) = (self.0.elapsed().as_secs_f64(), ticks(false) - self.1);
        println!("{what} {wall} {cpu} {}", peak("self"));
        *self = Self::start();
    }
}

/// Reads what a child's [`Stopwatch`] printed.
pub fn parse(text: &str, what: &str) -> Option<Sample> {
    let line = text.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(' '))?;
    let mut numbers = line.split(' ').filter_map(|n| n.parse().ok());
    Some(Sample { wall: numbers.next()?, cpu: numbers.next()?, memory: numbers.next()? })
}
