//! Whether a set's subvolume holds everything that its pod uses.
//!
//! btrfs copies one subvolume at an instant. What is not in it is not in the copy, and nothing says so: a symbolic link goes on
//! leading to where it led, so that original and copy would share a directory (law 6); what is mounted below is the empty
//! directory that it hides; a subvolume below is an empty directory. So before a copy is made it is proven that there is none of
//! these, and afterwards that every directory is the same inode in the copy, and in no other subvolume.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use perennial_core::engine::EngineError;
use perennial_core::volume::Volume;
use rustix::fs::{self, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::btrfs::{SUBVOLUME, btrfs, is_btrfs};
use super::client::{conflict, io, transient};
use super::{tree, writers};

/// What an overlay uses of a volume's directory.
const PARTS: [&str; 2] = ["upper", "work"];

/// A subvolume, and the inode numbers of directories that are proven to be in it.
#[derive(Debug)]
pub(super) struct Within {
    /// Each subvolume has a device number of its own.
    device: u64,
    inodes: Vec<(PathBuf, u64)>,
}

impl Within {
    /// Looks at a set; what of it is outside of its subvolume is an [`EngineError::Conflict`].
    pub(super) fn of(set: &Path, volumes: &[Volume]) -> Result<Self, EngineError> {
        let (dir, device) = subvolume(set)?;
        let mut inodes = Vec::new();
        for volume in volumes {
            for part in PARTS {
                let path = Path::new(&volume.name).join(part);
                let inode = inode(&dir, device, &path).map_err(|why| outside(set, &path, &why))?;
                inodes.push((path, inode));
            }
        }
        if let Some(mount) = writers::first_mount_below(&real_path(&dir, set)?)? {
            return Err(outside(set, &mount, "something is mounted there"));
        }
        let nested = btrfs(&["subvolume", "list", "-o"], set)
            .map_err(|complaint| transient(format!("list the subvolumes below {}: {complaint}", set.display())))?;
        if let Some(line) = String::from_utf8_lossy(&nested.stdout).lines().next() {
            let path = line.split_once(" path ").map_or(line, |(_, path)| path);
            return Err(outside(set, Path::new(path), "it is a subvolume of its own"));
        }
        Ok(Self { device, inodes })
    }

    /// Fails when a copy of the subvolume has not every directory that was looked at.
    pub(super) fn check_copy(&self, copy: &Path) -> Result<(), EngineError> {
        let (dir, device) = subvolume(copy)?;
        if device == self.device {
            return Err(conflict(format!("{} is not a subvolume of its own", copy.display())));
        }
        for (path, original) in &self.inodes {
            let found = inode(&dir, device, path).map_err(|why| outside(copy, path, &why))?;
            if found != *original {
                return Err(outside(copy, path, "it is another directory than the pod uses"));
            }
        }
        Ok(())
    }
}

fn outside(set: &Path, path: &Path, why: &str) -> EngineError {
    conflict(format!("{} is not copied together with {}: {why}", path.display(), set.display()))
}

/// Opens the root of a subvolume; tells its device number, too.
fn subvolume(path: &Path) -> Result<(OwnedFd, u64), EngineError> {
    let dir = tree::open_dir(path).map_err(io(format_args!("open {}", path.display())))?;
    let stat = fs::fstat(&dir).map_err(|e| transient(format!("look at {}: {e}", path.display())))?;
    if !is_btrfs(path) || stat.st_ino != SUBVOLUME {
        return Err(conflict(format!("{} is no subvolume of btrfs", path.display())));
    }
    Ok((dir, stat.st_dev))
}

/// The inode number of a directory below; in words why it is not in this subvolume.
fn inode(dir: impl AsFd, device: u64, path: &Path) -> Result<u64, String> {
    let resolve =
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let found = fs::openat2(dir, path, flags, Mode::empty(), resolve).map_err(|e| match e {
        // A link at the end of the path is no directory.
        Errno::LOOP | Errno::NOTDIR => "there is a symbolic link, or no directory, on the way".to_owned(),
        Errno::XDEV => "something is mounted there".to_owned(),
        other => other.to_string(),
    })?;
    let stat = fs::fstat(&found).map_err(|e| e.to_string())?;
    if stat.st_dev != device {
        return Err("it is in another subvolume".to_owned());
    }
    Ok(stat.st_ino)
}

/// Where a directory is, as the tables of mounts say it.
fn real_path(dir: &OwnedFd, path: &Path) -> Result<PathBuf, EngineError> {
    use std::os::fd::AsRawFd as _;
    let link = format!("/proc/self/fd/{}", dir.as_raw_fd());
    std::fs::read_link(link).map_err(io(format_args!("look where {} is", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_subvolume_is_copied_at_no_instant() {
        let temp = tempfile::tempdir().expect("temp");
        std::fs::create_dir_all(temp.path().join("home/upper")).expect("dirs");
        let volume = Volume { name: "home".into(), mount_path: "/home".into() };
        let found = Within::of(temp.path(), &[volume]);
        assert!(
            matches!(&found, Err(EngineError::Conflict { problem }) if problem.contains("no subvolume")),
            "{found:?}"
        );
    }

    #[test]
    fn a_directory_behind_a_link_is_told_from_one_that_is_there() {
        let temp = tempfile::tempdir().expect("temp");
        std::fs::create_dir_all(temp.path().join("home/upper")).expect("dirs");
        std::os::unix::fs::symlink("home", temp.path().join("srv")).expect("link");
        let dir = tree::open_dir(temp.path()).expect("open");
        let device = fs::fstat(&dir).expect("look").st_dev;
        let look = |path: &str| inode(&dir, device, Path::new(path));
        assert!(look("home/upper").is_ok());
        assert!(look("srv/upper").is_err_and(|why| why.contains("link")));
        assert!(look("home/work").is_err());
        assert!(inode(&dir, device + 1, Path::new("home/upper")).is_err_and(|why| why.contains("another subvolume")));
    }
}
