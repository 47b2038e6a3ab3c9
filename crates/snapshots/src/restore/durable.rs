//! Makes what a restore wrote durable: all files, directories and names, with one call for each file system.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::io::Errno;

use crate::error::{Error, Result};

/// Syncs the file systems of these directories, each once, by the first of its directories.
///
/// They were opened before anything was written: a failure to write since then is reported to whoever had the file system
/// open at the time, so the first one hears of everything.
pub(super) fn sync_once(targets: &[(&Path, &OwnedFd)], sync: impl Fn(&OwnedFd) -> Result<(), Errno>) -> Result<()> {
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

pub(super) fn not_synced(target: &Path, errno: Errno) -> Error {
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
    }
}
