//! The table, and what was promised.

use crate::measure::Samples;

/// Bytes of repositories, restic's and ours.
pub struct Sizes {
    /// After the first snapshot.
    pub first: [u64; 2],
    /// What the changes added.
    pub new: [u64; 2],
}

const STEPS: [&str; 5] = ["full", "unchanged", "changed", "restore", "in place"];
const TOOLS: [&str; 5] = ["restic", "restic, not on the disk", "perennial", VERIFIED, "tar | zstd"];
const VERIFIED: &str = "perennial, verified";
/// What peak memory at 100,000 files may be.
const MEGABYTES: f64 = 300.0;

/// Prints everything and answers what was not kept.
pub fn print(samples: &Samples, sizes: &[Sizes]) -> Vec<String> {
    println!(
        "\n{:<32} {:>8} {:>15} {:>8} {:>8} {:>8} {:>9}",
        "medians", "wall s", "least-most", "CPU s", "MB", "× restic", "read back"
    );
    for step in STEPS {
        let restic = samples.median(step, "restic").map_or(0.0, |s| s.wall);
        for tool in TOOLS {
            let Some(s) = samples.median(step, tool) else { continue };
            let (least, most) = samples.range(step, tool);
            let range = format!("{least:.2}-{most:.2}");
            let (name, ratio) = (format!("{step}: {tool}"), s.wall / restic);
            // What of its time the proof takes, where there is one.
            let proof = match samples.median(step, "perennial").filter(|_| tool == VERIFIED) {
                Some(without) => format!("{:.0} %", 100.0 * (1.0 - without.wall / s.wall)),
                None => String::new(),
            };
            println!("{name:<32} {:>8.2} {range:>15} {:>8.2} {:>8.0} {ratio:>8.2} {proof:>9}", s.wall, s.cpu, s.memory);
        }
    }
    let megabytes = |n: u64| n as f64 / 1e6;
    let median = |of: &dyn Fn(&Sizes) -> u64| {
        let mut all: Vec<u64> = sizes.iter().map(of).collect();
        all.sort_unstable();
        megabytes(all[all.len() / 2])
    };
    let [theirs, ours] = [0, 1].map(|i| median(&|s| s.first[i]));
    let [their_new, our_new] = [0, 1].map(|i| median(&|s| s.new[i]));
    println!("\nrepository: restic {theirs:.1} MB, perennial {ours:.1} MB");
    println!("new bytes of the changes: restic {their_new:.1} MB, perennial {our_new:.1} MB");
    let wall = |step, tool| samples.median(step, tool).map_or(f64::MAX, |s| s.wall);
    let ratio = |step, tool, peer| wall(step, tool) / wall(step, peer);
    let memory = STEPS
        .iter()
        .filter_map(|step| samples.median(step, "perennial"))
        .chain(STEPS.iter().filter_map(|step| samples.median(step, VERIFIED)));
    let limits = [
        ("full × restic", ratio("full", "perennial", "restic"), 1.0 / 3.0),
        ("full × tar | zstd -1 -T2", ratio("full", "perennial", "tar | zstd"), 1.0),
        ("full, read back × restic", ratio("full", VERIFIED, "restic"), 0.5),
        // With the proof that they are complete, as they are made.
        ("unchanged, proven × restic", ratio("unchanged", VERIFIED, "restic"), 1.0 / 6.0),
        ("changed, read back × restic", ratio("changed", VERIFIED, "restic"), 0.25),
        ("new bytes × restic", our_new / their_new, 0.5),
        ("restore × restic", ratio("restore", "perennial", "restic"), 1.0 / 3.0),
        ("restore in place × restic", ratio("in place", "perennial", "restic"), 0.25),
        ("repository × restic", ours / theirs, 1.03),
        ("peak memory, MB", memory.map(|s| s.memory).fold(0.0, f64::max), MEGABYTES),
    ];
    println!("\n{:<28} {:>9} {:>9}  kept", "", "measured", "at most");
    for (what, value, most) in &limits {
        println!("{what:<28} {value:>9.3} {most:>9.3}  {}", if value <= most { "yes" } else { "NO" });
    }
    let missed = limits.iter().filter(|(_, value, most)| value > most);
    missed.map(|(what, value, most)| format!("{what}: {value:.3}, at most {most:.3}")).collect()
}
