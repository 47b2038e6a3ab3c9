//! What btrfs can do with a set: its program, and how its subvolumes are known.

use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Command, Output};

use perennial_core::engine::EngineError;

use super::client::{rejected, transient};

/// `BTRFS_SUPER_MAGIC` of linux/magic.h.
const MAGIC: rustix::fs::FsWord = 0x9123_683e;
/// Inode number of the root of every subvolume (`BTRFS_FIRST_FREE_OBJECTID` of linux/btrfs_tree.h).
pub(super) const SUBVOLUME: u64 = 256;

/// Whether this is on btrfs.
pub(super) fn is_btrfs(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|s| s.f_type == MAGIC)
}

/// Whether this is the root of a subvolume.
pub(super) fn is_subvolume(path: &Path) -> bool {
    is_btrfs(path) && path.symlink_metadata().is_ok_and(|m| m.is_dir() && m.ino() == SUBVOLUME)
}

/// Runs the program on a path; what it complains about is the error.
pub(super) fn btrfs(words: &[&str], path: &Path) -> Result<Output, String> {
    let words = words.iter().map(OsStr::new).chain([path.as_os_str()]);
    let output = Command::new("btrfs").args(words).env("LC_ALL", "C").output().map_err(|e| format!("btrfs: {e}"))?;
    if output.status.success() {
        return Ok(output);
    }
    Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
}

/// Deletes a subvolume at once; where that does not work the tree is removed like any other.
pub(super) fn delete_subvolume(path: &Path) {
    if is_subvolume(path)
        && let Err(problem) = btrfs(&["subvolume", "delete"], path)
    {
        tracing::debug!(problem, path = %path.display(), "no subvolume to delete");
    }
}

/// What a complaint of the program means: a full disk is no outage that passes.
pub(super) fn failed(doing: &str, complaint: &str) -> EngineError {
    // What strerror says of ENOSPC and EDQUOT.
    if ["No space left on device", "Disk quota exceeded"].iter().any(|full| complaint.contains(full)) {
        return rejected(format!("there is no room to {doing}: {complaint}"));
    }
    transient(format!("{doing}: {complaint}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_from_what_may_pass() {
        let full = "ERROR: Could not create subvolume: No space left on device";
        let limited = "ERROR: cannot snapshot '/a': Disk quota exceeded";
        for complaint in [full, limited] {
            let error = failed("copy", complaint);
            assert!(matches!(&error, EngineError::Rejected { problem } if problem.contains(complaint)), "{error:?}");
        }
        for complaint in
            ["btrfs: No such file or directory (os error 2)", "ERROR: cannot snapshot: Read-only file system"]
        {
            let error = failed("copy", complaint);
            assert!(matches!(&error, EngineError::Transient { problem } if problem.contains(complaint)), "{error:?}");
        }
    }

    #[test]
    fn what_the_program_complains_about_is_told() {
        let temp = tempfile::tempdir().expect("temp");
        let refused = btrfs(&["subvolume", "show"], &temp.path().join("nothing")).expect_err("there is nothing");
        assert!(!refused.is_empty());
        assert!(!is_subvolume(&temp.path().join("nothing")));
    }
}
