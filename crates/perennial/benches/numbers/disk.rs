//! A file system of its own for the storage root.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Unmounted when dropped.
pub struct Disk(PathBuf);

fn script() -> Command {
    Command::new(std::env::var("PERENNIAL_TEST_LOOPFS_SCRIPT").expect("PERENNIAL_TEST_LOOPFS_SCRIPT: ./dev env"))
}

impl Disk {
    /// Makes one of this kind and size, and mounts it.
    pub fn mount(kind: &str, at: PathBuf, size: &str) -> Self {
        let made = script().args(["mount", kind]).arg(&at).arg(size).status().unwrap();
        assert!(made.success(), "a {kind} could not be mounted");
        Self(at)
    }

    pub fn at(&self) -> &Path {
        &self.0
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // What stays mounted is seen by whoever cleans the directory up.
        let _ = script().arg("umount").arg(&self.0).status();
    }
}
