//! Makes what a restore or a copy wrote durable: all files, directories and names, with one call for each file system.
//!
//! A file system reports a failure to write once to everybody who had it open at the time, and never to who opens it later. So
//! directories are opened before anything is written in them, and synced by these descriptors.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::error::{Error, Result};

/// Directories that something is about to be written in.
#[derive(Debug)]
pub struct Unsynced(Vec<(PathBuf, OwnedFd)>);

impl Unsynced {
    /// Opens the directories; nothing was written in them yet that matters.
    ///
    /// # Errors
    /// [`Error::Io`] for one that cannot be opened.
    pub fn open<'a>(directories: impl IntoIterator<Item = &'a Path>) -> Result<Self> {
        let open = |path: &'a Path| {
            let dir = std::fs::File::open(path).map_err(|e| Error::io("open", path, e))?;
            Ok((path.to_owned(), OwnedFd::from(dir)))
        };
        directories.into_iter().map(open).collect::<Result<_>>().map(Self)
    }

    /// Makes everything durable that was written in them, and hears of all that could not be written since they were opened.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn sync(&self) -> Result<()> {
        let targets: Vec<_> = self.0.iter().map(|(path, fd)| (path.as_path(), fd)).collect();
        sync_once(&targets, |fd| rustix::fs::syncfs(fd))
    }
}

/// Syncs the file systems of these directories, each once, by the first of its directories: it hears of everything.
pub(crate) fn sync_once(targets: &[(&Path, &OwnedFd)], sync: impl Fn(&OwnedFd) -> Result<(), Errno>) -> Result<()> {
    let mut synced = Vec::new();
    for (path, fd) in targets {
        let device = rustix::fs::fstat(fd).map_err(|errno| not_synced(path, errno))?.st_dev;
        if !synced.contains(&device) {
            sync(fd).map_err(|errno| not_synced(path, errno))?;
            synced.push(device);
        }
    }
    Ok(())
}

pub(crate) fn not_synced(target: &Path, errno: Errno) -> Error {
    Error::io("sync the file system of", target, errno)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::os::fd::AsRawFd as _;

    use super::*;

    #[test]
    fn every_file_system_is_synced_once_and_a_failure_is_told() {
        let directory = tempfile::tempdir().expect("a directory");
        let open = |path: &Path| OwnedFd::from(std::fs::File::open(path).expect("a directory"));
        // /proc is another file system wherever this runs.
        let paths = [directory.path(), Path::new("/proc"), directory.path()];
        let opened = paths.map(open);
        let targets: Vec<_> = paths.into_iter().zip(&opened).collect();
        let synced = RefCell::new(Vec::new());
        sync_once(&targets, |fd| {
            synced.borrow_mut().push(fd.as_raw_fd());
            Ok(())
        })
        .expect("synced");
        assert_eq!(synced.into_inner(), [targets[0].1.as_raw_fd(), targets[1].1.as_raw_fd()]);
        let failed = sync_once(&targets, |_| Err(Errno::IO));
        assert!(matches!(failed, Err(Error::Io { .. })), "{failed:?}");
        Unsynced::open([directory.path()]).expect("opened").sync().expect("synced");
        let missing = directory.path().join("missing");
        assert!(matches!(Unsynced::open([missing.as_path()]), Err(Error::Io { .. })));
    }
}
