//! The repository and its data path, with restic, GNU tar and the kernel as judges.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod backend_suite;
mod browse;
mod compose;
mod copies;
mod copy;
mod drill;
mod duplicate;
mod faults;
mod faulty_store;
#[path = "../../examples/first.rs"]
mod first;
mod held;
mod hot_path;
mod incremental;
mod listings;
mod object_answers;
mod object_store;
mod overlay;
mod passwords;
mod properties;
mod prune_phases;
mod races;
mod remote;
mod repair;
mod restore_all;
mod round_trip;
mod sketch;
mod support;

#[test]
fn the_example_works() {
    first::main().unwrap();
}
