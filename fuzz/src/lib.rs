//! Fuzz targets for everything that reads bytes which somebody else wrote: repositories, channels of movers, archives,
//! images, paths.
//!
//! A target must neither panic nor hang nor take memory that its input does not pay for, and what it takes has to keep the
//! rules that it asserts. The targets are functions of the crates they test, behind the feature `fuzzing`; here they get
//! names, seeds out of real data, and every input that once broke one.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// A target: reads an input, and tells whether it was taken.
pub type Target = fn(&[u8]) -> bool;

/// All targets by name.
pub const TARGETS: [(&str, Target); 9] = [
    ("archive", perennial::fuzzing::archive),
    ("export", export),
    ("files", perennial_snapshots::fuzzing::files),
    ("frames", perennial_snapshots::fuzzing::frames),
    ("image", perennial::fuzzing::image),
    ("pack", perennial_snapshots::fuzzing::pack),
    ("small", small),
    ("tree", perennial_snapshots::fuzzing::tree),
    ("unpack", unpack),
];

/// What is too small to be a target of its own; the first byte of an input says which is meant.
const SMALL: [(&str, Target); 6] = [
    ("blob", perennial_snapshots::fuzzing::blob),
    ("names", perennial_snapshots::fuzzing::names),
    ("paths", perennial::fuzzing::paths),
    ("removed_list", perennial_snapshots::fuzzing::removed_list),
    ("pod_file", perennial::fuzzing::pod_file),
    ("service", perennial::fuzzing::service),
];

fn small(input: &[u8]) -> bool {
    input.split_first().is_some_and(|(which, rest)| SMALL[usize::from(*which) % SMALL.len()].1(rest))
}

fn export(input: &[u8]) -> bool {
    within(|target| perennial_drivers::docker::fuzzing::export(input, target))
}

fn unpack(input: &[u8]) -> bool {
    within(|target| perennial::fuzzing::unpack(input, target))
}

/// Lets something write below a directory, and asserts that it wrote nowhere beside it.
fn within(write: impl FnOnce(&Path) -> bool) -> bool {
    // Everything is synced: on a disk that would be most of the work.
    let memory = Path::new("/dev/shm");
    let base =
        if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.expect("a scratch directory");
    let (outside, target) = (base.path().join("outside"), base.path().join("target"));
    std::fs::write(&outside, "of somebody else").expect("a file beside the target");
    std::fs::create_dir(&target).expect("a target");
    let look = || {
        let meta = std::fs::symlink_metadata(&outside).expect("the file beside the target");
        let mut beside: Vec<_> =
            std::fs::read_dir(base.path()).expect("a list").map(|e| e.expect("an entry").file_name()).collect();
        beside.sort();
        // Links, modes, owners and contents of the file, and that there is nothing else.
        let content = std::fs::read(&outside).expect("its content");
        ((meta.nlink(), meta.mode(), meta.uid(), meta.ctime(), meta.ctime_nsec()), content, beside)
    };
    let before = look();
    let taken = write(&target);
    assert_eq!(look(), before, "something was written outside");
    taken
}

/// The target of this name.
#[must_use]
pub fn target(name: &str) -> Option<Target> {
    TARGETS.into_iter().find(|(known, _)| *known == name).map(|(_, target)| target)
}

/// Inputs to begin with, made from real data: the target's name, and the bytes.
///
/// # Errors
/// What the system says.
pub fn seeds() -> std::io::Result<Vec<(&'static str, Vec<u8>)>> {
    let scratch = tempfile::tempdir()?;
    let mut seeds = perennial_snapshots::fuzzing::seeds(scratch.path())?;
    seeds.extend(perennial::fuzzing::seeds()?);
    seeds.extend(perennial_drivers::docker::fuzzing::seeds()?);
    for (name, bytes) in &mut seeds {
        if let Some(which) = (0_u8..).zip(SMALL).find_map(|(n, (small, _))| (small == *name).then_some(n)) {
            bytes.insert(0, which);
            *name = "small";
        }
    }
    Ok(seeds)
}

/// Writes the seeds: a directory for each target.
///
/// # Errors
/// What the system says.
pub fn write_seeds(into: &std::path::Path) -> std::io::Result<()> {
    for (number, (name, bytes)) in seeds()?.into_iter().enumerate() {
        let directory = into.join(name);
        std::fs::create_dir_all(&directory)?;
        std::fs::write(directory.join(format!("seed-{number:03}")), bytes)?;
    }
    Ok(())
}
