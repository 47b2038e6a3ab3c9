//! Deleting a tree that somebody hostile may be rearranging: by descriptors, without recursion, within one mount.

use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, renameat, unlinkat};
use rustix::io::Errno;

use crate::fsdir::{self, Dir, list_names};

/// Deeper than this, directories are first moved up, so that neither descriptors nor paths grow with the depth.
const MAX_DEPTH: usize = 32;

/// A name that no tree of a snapshot has, for things on their way in or out.
pub(crate) fn temporary_name() -> Vec<u8> {
    format!(".perennial-restore-{:016x}", rand::random::<u64>()).into_bytes()
}

/// Deletes an entry with everything below it; one that is gone already is a success.
pub(crate) fn remove_entry(dir: &Dir, fd: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
    match unlinkat(fd, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        // Linux says EISDIR, POSIX EPERM.
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(e) => return Err(e),
    }
    // Directories that were moved up are siblings of the first one.
    let mut tops = vec![name.to_vec()];
    while let Some(top) = tops.pop() {
        remove_dir(dir, fd, &top, &mut tops)?;
    }
    Ok(())
}

struct Level {
    dir: Dir,
    name: Vec<u8>,
    subdirs: Vec<Vec<u8>>,
}

fn remove_dir(parent: &Dir, parent_fd: &OwnedFd, name: &[u8], tops: &mut Vec<Vec<u8>>) -> Result<(), Errno> {
    let enter = |dir: Dir, name: Vec<u8>| -> Result<Level, Errno> {
        let fd = dir.fd()?;
        let mut subdirs = Vec::new();
        for entry in list_names(&fd)? {
            match unlinkat(&*fd, &entry, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::ISDIR | Errno::PERM) => subdirs.push(entry),
                Err(e) => return Err(e),
            }
        }
        Ok(Level { dir, name, subdirs })
    };
    let first = match parent.open_dir(name) {
        Ok(dir) => dir,
        Err(Errno::NOENT) => return Ok(()),
        Err(e) => return Err(e),
    };
    let mut levels = vec![enter(first, name.to_vec())?];
    while let Some(level) = levels.last_mut() {
        if let Some(sub) = level.subdirs.pop() {
            let fd = level.dir.fd()?;
            if levels.len() >= MAX_DEPTH {
                let moved = temporary_name();
                match renameat(&*fd, &sub, parent_fd, &moved) {
                    Ok(()) => tops.push(moved),
                    Err(Errno::NOENT) => {}
                    Err(e) => return Err(e),
                }
                continue;
            }
            let next = match levels.last().map(|level| level.dir.open_dir(&sub)) {
                Some(Ok(dir)) => enter(dir, sub)?,
                Some(Err(Errno::NOENT)) | None => continue,
                Some(Err(e)) => return Err(e),
            };
            levels.push(next);
            continue;
        }
        let Some(done) = levels.pop() else { break };
        let result = match levels.last() {
            Some(level) => unlinkat(&*level.dir.fd()?, &done.name, AtFlags::REMOVEDIR),
            None => unlinkat(parent_fd, &done.name, AtFlags::REMOVEDIR),
        };
        match result {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Deletes the entry at a relative path; a path that does not lead anywhere (any more) is a success.
pub(crate) fn remove_path(root: &Dir, path: &[u8]) -> Result<bool, Errno> {
    let mut parts: Vec<&[u8]> = path.split(|b| *b == b'/').collect();
    let Some(name) = parts.pop() else { return Ok(false) };
    let mut dir = None;
    for part in parts {
        match dir.as_ref().unwrap_or(root).open_dir(part) {
            Ok(next) => dir = Some(next),
            // A link or a file stands where the list means a directory: nothing of the lower layer shows through it.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(false),
            Err(e) => return Err(e),
        }
    }
    let dir = dir.as_ref().unwrap_or(root);
    let fd = dir.fd()?;
    if fsdir::stat_at(&fd, name) == Err(Errno::NOENT) {
        return Ok(false);
    }
    remove_entry(dir, &fd, name)?;
    Ok(true)
}
