//! Owner, mode, times and attributes, always by descriptor.
//!
//! The order matters: changing the owner clears set-user-id bits and capabilities, so it comes first; times come last,
//! because everything else changes them. What a new entry inherits (a default ACL of its directory, for example) is
//! removed when the snapshot does not have it.

use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags, chownat, fchmod, utimensat};
use rustix::io::Errno;

use crate::fsdir::{Stat, XattrError, proc_path, read_xattrs};
use crate::node::{Node, NodeKind, Time};
use crate::removed::{OPAQUE, PREFIX};

/// Which of the entry's overlay attributes are ours to manage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Overlay {
    /// The target is an ordinary directory: attributes are what the snapshot says.
    None,
    /// The target is an upper layer: the kernel's bookkeeping stays, the opaque mark is set or removed.
    Upper { opaque: bool },
}

fn timespec(time: Time) -> Timespec {
    Timespec { tv_sec: time.seconds, tv_nsec: time.nanoseconds.into() }
}

/// Gives what a descriptor (also an `O_PATH` one) refers to the node's metadata; does nothing where nothing differs.
pub(crate) fn apply(fd: &OwnedFd, stat: &Stat, node: &Node, overlay: Overlay) -> Result<(), Errno> {
    let mut touched = false;
    if stat.uid != node.uid || stat.gid != node.gid {
        let (uid, gid) = (Uid::from_raw(node.uid), Gid::from_raw(node.gid));
        chownat(fd, c"", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
        touched = true;
    }
    if node.kind != NodeKind::Symlink && (touched || stat.mode & 0o7777 != node.mode) {
        set_mode(fd, node.mode)?;
        touched = true;
    }
    touched |= apply_xattrs(fd, node, overlay)?;
    if touched || stat.mtime != node.mtime || stat.atime != node.atime {
        let times = Timestamps { last_access: timespec(node.atime), last_modification: timespec(node.mtime) };
        utimensat(fd, c"", &times, AtFlags::EMPTY_PATH)?;
    }
    Ok(())
}

fn set_mode(fd: &OwnedFd, mode: u32) -> Result<(), Errno> {
    let mode = Mode::from_raw_mode(mode);
    match fchmod(fd, mode) {
        // An O_PATH descriptor.
        Err(Errno::BADF) => rustix::fs::chmod(proc_path(fd), mode),
        other => other,
    }
}

fn apply_xattrs(fd: &OwnedFd, node: &Node, overlay: Overlay) -> Result<bool, Errno> {
    let present = match read_xattrs(fd) {
        Ok(present) => present,
        Err(XattrError::Errno(e)) => return Err(e),
        Err(XattrError::Name) => return Err(Errno::ILSEQ),
    };
    if present.is_empty() && node.xattrs.is_empty() && overlay != (Overlay::Upper { opaque: true }) {
        return Ok(false);
    }
    let path = &proc_path(fd);
    let mut touched = false;
    for old in &present {
        let ours = match overlay {
            Overlay::Upper { opaque } if old.name.starts_with(PREFIX) => old.name == OPAQUE && !opaque,
            // Labels come from the host's policy; removing one is not permitted and would not last.
            _ => old.name != "security.selinux",
        };
        if ours && !node.xattrs.iter().any(|x| x.name == old.name) {
            match rustix::fs::removexattr(path, &old.name) {
                Ok(()) | Err(Errno::NODATA) => touched = true,
                Err(e) => return Err(e),
            }
        }
    }
    let mut set = |name: &str, value: &[u8]| -> Result<(), Errno> {
        if !present.iter().any(|old| old.name == name && old.value == value) {
            rustix::fs::setxattr(path, name, value, XattrFlags::empty())?;
            touched = true;
        }
        Ok(())
    };
    for xattr in &node.xattrs {
        set(&xattr.name, &xattr.value)?;
    }
    if overlay == (Overlay::Upper { opaque: true }) {
        set(OPAQUE, b"y")?;
    }
    // An ACL takes part in the mode, so a changed one may have changed it.
    if touched && node.kind != NodeKind::Symlink && crate::fsdir::stat_fd(fd)?.mode & 0o7777 != node.mode {
        set_mode(fd, node.mode)?;
    }
    Ok(touched)
}
