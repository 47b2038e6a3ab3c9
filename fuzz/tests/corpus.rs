//! Seeds teach a target something only when it takes them; and what once broke one must not break it again.

use std::collections::BTreeSet;
use std::path::Path;

/// Every seed is taken, and every target has one.
#[test]
fn every_target_takes_its_seeds() {
    let mut seeded = BTreeSet::new();
    for (name, bytes) in perennial_fuzz::seeds().unwrap() {
        let target = perennial_fuzz::target(name).unwrap();
        assert!(target(&bytes), "{name}: {:?}", String::from_utf8_lossy(&bytes));
        seeded.insert(name);
    }
    let all: BTreeSet<_> = perennial_fuzz::TARGETS.iter().map(|(name, _)| *name).collect();
    assert_eq!(seeded, all);
}

#[test]
fn what_once_broke_a_target_does_so_no_longer() {
    let all = Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions");
    for directory in std::fs::read_dir(all).unwrap() {
        let directory = directory.unwrap();
        let target = perennial_fuzz::target(directory.file_name().to_str().unwrap()).unwrap();
        for input in std::fs::read_dir(directory.path()).unwrap() {
            let _ = target(&std::fs::read(input.unwrap().path()).unwrap());
        }
    }
}
