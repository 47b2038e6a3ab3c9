//! File systems of their own for storage roots.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A file system of its own; unmounted when dropped.
pub struct Disk(pub PathBuf);

impl Disk {
    pub fn mount(kind: &str, at: PathBuf) -> Self {
        assert!(Command::new(script()).args(["mount", kind]).arg(&at).status().unwrap().success(), "mount a {kind}");
        Self(at)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new(script()).arg("umount").arg(&self.0).status();
    }
}

fn script() -> String {
    std::env::var("PERENNIAL_TEST_LOOPFS_SCRIPT").expect("PERENNIAL_TEST_LOOPFS_SCRIPT: ./dev env")
}

/// How many subvolumes a btrfs has beside the one at its top.
pub fn subvolumes(at: &Path) -> usize {
    let output = Command::new("btrfs").args(["subvolume", "list"]).arg(at).output().unwrap();
    assert!(output.status.success());
    String::from_utf8_lossy(&output.stdout).lines().count()
}

/// Runs `btrfs subvolume create`.
pub fn make_subvolume(at: &Path) {
    assert!(Command::new("btrfs").args(["-q", "subvolume", "create"]).arg(at).status().unwrap().success());
}

/// Moves a directory as an administrator does who wants it on another disk: a link is left in its place.
pub fn move_elsewhere(directory: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").args([directory, to]).status().unwrap().success());
    std::fs::remove_dir_all(directory).unwrap();
    std::os::unix::fs::symlink(to, directory).unwrap();
}
