//! The bytes of one file: shared, or copied with their holes.

use std::os::fd::OwnedFd;

use perennial_core::progress::Progress;
use rustix::fs::{SeekFrom, copy_file_range, ftruncate, ioctl_ficlone, seek};
use rustix::io::{Errno, pread, pwrite};

use crate::fsdir::Stat;

/// Smaller files take one read and one write; the kernel's own copy costs more to begin.
const BY_HAND: u64 = 128 << 10;
/// So much is copied between two looks at whether it is still wanted.
const PIECE: u64 = 16 << 20;
/// Unit of `st_blocks`.
const BLOCK: u64 = 512;

/// What became of an attempt to share.
pub(super) enum Shared {
    Yes,
    /// This file cannot; others may.
    NotThis,
    /// The file system cannot.
    Never,
    Failed(Errno),
}

/// Has the copy share the content of the file.
pub(super) fn share(from: &OwnedFd, to: &OwnedFd) -> Shared {
    match ioctl_ficlone(to, from) {
        Ok(()) => Shared::Yes,
        Err(Errno::INVAL | Errno::TXTBSY | Errno::PERM) => Shared::NotThis,
        Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::NOTTY | Errno::NOSYS) => Shared::Never,
        Err(e) => Shared::Failed(e),
    }
}

/// Why a content was not copied.
pub(super) enum Failed {
    Errno(Errno),
    Cancelled,
}

impl From<Errno> for Failed {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

/// Copies what is data, leaves holes, and gives the copy its size. A file that became shorter meanwhile ends there, which its
/// change time tells. Returns the bytes written.
pub(super) fn copy(from: &OwnedFd, to: &OwnedFd, stat: &Stat, progress: &Progress) -> Result<u64, Failed> {
    let (mut at, mut written) = (0, 0);
    let sparse = stat.blocks * BLOCK < stat.size;
    while at < stat.size {
        let (data, end) = if sparse {
            match seek(from, SeekFrom::Data(at)) {
                Ok(data) => match seek(from, SeekFrom::Hole(data)) {
                    Ok(hole) => (data, hole.min(stat.size)),
                    // It became shorter between the two.
                    Err(Errno::NXIO) => break,
                    Err(e) => return Err(e.into()),
                },
                // Nothing but a hole is left.
                Err(Errno::NXIO) => break,
                Err(e) => return Err(e.into()),
            }
        } else {
            (at, stat.size)
        };
        if data >= end {
            break;
        }
        let copied =
            if end - data < BY_HAND { by_hand(from, to, data, end)? } else { range(from, to, data, end, progress)? };
        written += copied;
        progress.add_bytes(copied);
        if copied < end - data {
            break;
        }
        at = end;
    }
    ftruncate(to, stat.size)?;
    Ok(written)
}

fn range(from: &OwnedFd, to: &OwnedFd, start: u64, end: u64, progress: &Progress) -> Result<u64, Failed> {
    let mut at = start;
    while at < end {
        progress.check().map_err(|_| Failed::Cancelled)?;
        let (mut read, mut write) = (at, at);
        let wanted = usize::try_from((end - at).min(PIECE)).unwrap_or(usize::MAX);
        match copy_file_range(from, Some(&mut read), to, Some(&mut write), wanted) {
            Ok(0) => break,
            Ok(copied) => at += copied as u64,
            Err(Errno::INVAL | Errno::XDEV | Errno::NOSYS | Errno::OPNOTSUPP) => {
                return Ok(at - start + by_hand(from, to, at, end)?);
            }
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(at - start)
}

fn by_hand(from: &OwnedFd, to: &OwnedFd, start: u64, end: u64) -> Result<u64, Failed> {
    let length = usize::try_from((end - start).min(BY_HAND)).unwrap_or(usize::MAX);
    let mut buffer = vec![0_u8; length];
    let mut at = start;
    while at < end {
        let wanted = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
        let read = match pread(from, &mut buffer[..wanted], at) {
            Ok(0) => break,
            Ok(read) => read,
            Err(Errno::INTR) => continue,
            Err(e) => return Err(e.into()),
        };
        let mut done = 0;
        while done < read {
            done += pwrite(to, &buffer[done..read], at + done as u64)?;
        }
        at += read as u64;
    }
    Ok(at - start)
}
