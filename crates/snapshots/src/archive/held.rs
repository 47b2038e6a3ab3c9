//! Writers that are held still while directories are read.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::fsdir::{self, Dir, Stat};
use crate::spool::SpoolLimits;

/// Inode number of what a btrfs snapshot has in the place of a subvolume (`BTRFS_EMPTY_SUBVOL_DIR_OBJECTID` of linux/btrfs_tree.h).
const EMPTY_SUBVOLUME: u64 = 2;
/// `BTRFS_SUPER_MAGIC` of linux/magic.h.
const BTRFS: rustix::fs::FsWord = 0x9123_683e;

/// Those who write in the directories that are captured.
pub trait Writers: Send + Sync {
    /// Makes them wait. Everything that can be done while they write has been done by then.
    ///
    /// # Errors
    /// Then they go on writing, and nothing is captured.
    fn hold(&self) -> Result<()>;

    /// Tells, while they wait, what is read once they go on, because it was copied just now. Everything else is read while they
    /// wait; `None` when nothing was copied. Called at most once after each successful [`hold`](Self::hold).
    fn copies(&self) -> Option<Copies> {
        None
    }

    /// Lets them go on. Called once after each successful [`hold`](Self::hold), whatever happened in between, and as
    /// soon as nothing more has to be read of what they write in.
    ///
    /// # Errors
    /// When they did not wait all the time: what was read is of no single instant.
    fn release(&self) -> Result<()>;
}

/// Directories as they were while their writers waited: nobody writes in these.
///
/// A copy has everything that the directory had, with the inode numbers and change times it had, as a snapshot of a file system
/// does; where they differ, a file is read again.
pub struct Copies {
    /// Each directory that was copied, and its copy.
    pub places: Vec<(PathBuf, PathBuf)>,
    /// Dropped when everything in them was read.
    pub keep: Box<dyn Send + Sync>,
}

impl Copies {
    /// The copy of a directory.
    pub(crate) fn of(&self, directory: &Path) -> Option<&Path> {
        self.places.iter().find(|(original, _)| original == directory).map(|(_, copy)| copy.as_path())
    }
}

impl fmt::Debug for Copies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Copies").field("places", &self.places).finish_non_exhaustive()
    }
}

/// A copy of a directory, as far as it differs from that.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CopyOf {
    /// Its device number, and that of the original: entries are known by the latter, as those of any other pass are.
    devices: (u64, u64),
    /// Whether it is on btrfs.
    on_btrfs: bool,
}

impl CopyOf {
    /// Looks at the copy of a directory that is on this device.
    pub(crate) fn at(root: &Dir, original: u64) -> rustix::io::Result<Self> {
        let fd = root.fd()?;
        let on_btrfs = rustix::fs::fstatfs(&*fd)?.f_type == BTRFS;
        Ok(Self { devices: (fsdir::stat_fd(&fd)?.dev, original), on_btrfs })
    }

    /// The state of an entry as the original has it.
    pub(crate) fn original(self, stat: Stat) -> Stat {
        if stat.dev == self.devices.0 { Stat { dev: self.devices.1, ..stat } } else { stat }
    }

    /// Whether the original has here what the copy does not: a subvolume is an empty directory in a snapshot of the one above.
    pub(crate) const fn lacks(self, stat: &Stat) -> bool {
        self.on_btrfs && stat.ino == EMPTY_SUBVOLUME
    }
}

/// How a capture of one instant is made.
pub struct Held<'a> {
    /// Who has to wait.
    pub writers: &'a dyn Writers,
    /// Where what was read meanwhile waits for the store.
    pub spool: SpoolLimits,
}

/// Lets the writers go on, even when a capture ends by a panic.
pub(crate) struct Release<'a>(Option<&'a dyn Writers>);

impl<'a> Release<'a> {
    pub(crate) fn after_hold(writers: &'a dyn Writers) -> Result<Self> {
        writers.hold()?;
        Ok(Self(Some(writers)))
    }

    pub(crate) fn now(mut self) -> Result<()> {
        self.0.take().map_or(Ok(()), Writers::release)
    }
}

impl Drop for Release<'_> {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.0.take().map(Writers::release) {
            tracing::warn!(error = &error as &dyn std::error::Error, "release writers after a failed capture");
        }
    }
}
