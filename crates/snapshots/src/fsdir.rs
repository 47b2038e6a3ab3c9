//! Directories that a hostile tenant may rearrange while we are in them.
//!
//! Everything happens relative to descriptors of directories that were opened one component at a time with
//! `openat2(BENEATH, NO_SYMLINKS, NO_MAGICLINKS, NO_XDEV)`: a directory swapped for a link to `/etc` makes an error,
//! never a visit. Entries are first opened with `O_PATH`, which has no side effects on devices and pipes, then looked
//! at by descriptor, and only what proves to be a regular file is opened for reading, through that descriptor.
//!
//! The number of descriptors must not grow with the depth of a tree, so a [`Dir`] can give its own up and get it back
//! later: it walks from the root again and checks that it arrived at the same inode.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, Statx, StatxFlags, openat, openat2, statx};
use rustix::io::Errno;

use crate::node::{Node, NodeKind, Time, Xattr};

const RESOLVE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);
const DIR_FLAGS: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);
/// The system refuses longer path arguments than 4096 bytes, so long ways are walked in pieces.
const PIECE: usize = 4000;

/// What the system says about an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) dev: u64,
    pub(crate) ino: u64,
    pub(crate) nlink: u64,
    pub(crate) size: u64,
    pub(crate) blocks: u64,
    pub(crate) rdev: u64,
    pub(crate) atime: Time,
    pub(crate) mtime: Time,
    pub(crate) ctime: Time,
}

impl From<Statx> for Stat {
    fn from(s: Statx) -> Self {
        let time = |t: rustix::fs::StatxTimestamp| Time { seconds: t.tv_sec, nanoseconds: t.tv_nsec };
        Self {
            mode: u32::from(s.stx_mode),
            uid: s.stx_uid,
            gid: s.stx_gid,
            dev: rustix::fs::makedev(s.stx_dev_major, s.stx_dev_minor),
            ino: s.stx_ino,
            nlink: u64::from(s.stx_nlink),
            size: s.stx_size,
            blocks: s.stx_blocks,
            rdev: rustix::fs::makedev(s.stx_rdev_major, s.stx_rdev_minor),
            atime: time(s.stx_atime),
            mtime: time(s.stx_mtime),
            ctime: time(s.stx_ctime),
        }
    }
}

impl Stat {
    pub(crate) fn kind(&self) -> Option<NodeKind> {
        NodeKind::from_unix_mode(self.mode)
    }

    /// Reports whether content or metadata changed between two looks; reading alone changes nothing here.
    pub(crate) fn same_state(&self, other: &Self) -> bool {
        (self.ino, self.dev, self.size, self.mtime, self.ctime, self.mode)
            == (other.ino, other.dev, other.size, other.mtime, other.ctime, other.mode)
    }

    /// Whether a file's node says everything that this does; name, content and extended attributes are not looked at.
    pub(crate) fn is_all_of(&self, node: &Node) -> bool {
        let device_id = if self.nlink > 1 { self.dev } else { 0 };
        (node.kind, node.mode, node.uid, node.gid) == (NodeKind::File, self.mode & 0o7777, self.uid, self.gid)
            && (node.inode, node.device_id, node.size, node.links) == (self.ino, device_id, self.size, self.nlink)
            && (node.mtime, node.atime, node.ctime)
                == (self.mtime.clamped(), self.atime.clamped(), self.ctime.clamped())
    }

    /// Makes the node that all but content, link target and extended attributes come from.
    pub(crate) fn to_node(self, name: &[u8], kind: NodeKind) -> Node {
        let is_device = matches!(kind, NodeKind::BlockDevice | NodeKind::CharDevice);
        Node {
            mode: self.mode & 0o7777,
            mtime: self.mtime.clamped(),
            atime: self.atime.clamped(),
            ctime: self.ctime.clamped(),
            uid: self.uid,
            gid: self.gid,
            inode: self.ino,
            device_id: if self.nlink > 1 && kind != NodeKind::Dir { self.dev } else { 0 },
            size: if kind == NodeKind::File { self.size } else { 0 },
            links: self.nlink,
            device: if is_device { self.rdev } else { 0 },
            ..Node::new(name, kind)
        }
    }
}

/// Looks at an entry of a directory without following it.
pub(crate) fn stat_at(dir: &OwnedFd, name: &[u8]) -> rustix::io::Result<Stat> {
    statx(dir, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT, StatxFlags::BASIC_STATS).map(Stat::from)
}

/// Looks at what a descriptor refers to.
pub(crate) fn stat_fd(fd: &OwnedFd) -> rustix::io::Result<Stat> {
    statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS).map(Stat::from)
}

/// The path by which calls without a descriptor form reach what a descriptor refers to. The kernel jumps straight to
/// that inode: nothing is resolved, so nothing can be swapped, and a link itself is meant, not its target.
pub(crate) fn proc_path(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// Opens an entry without side effects and without following it.
pub(crate) fn open_path(dir: &OwnedFd, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    openat2(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty(), RESOLVE)
}

/// Opens what an `O_PATH` descriptor refers to for reading; the caller has made sure that it is a regular file.
pub(crate) fn open_readable(path_fd: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let path = proc_path(path_fd);
    match openat(CWD, &path, flags | OFlags::NOATIME, Mode::empty()) {
        Err(Errno::PERM) => openat(CWD, &path, flags, Mode::empty()),
        other => other,
    }
}

/// Lists the names in an open directory, sorted; reads it from the start each time.
pub(crate) fn list_names(dir: &OwnedFd) -> rustix::io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    // A description of our own: the offset of a shared one would be moved by others.
    // Looking must not change the access time: it is part of what is captured.
    let own = match openat2(dir, c".", DIR_FLAGS | OFlags::NOATIME, Mode::empty(), RESOLVE) {
        Err(Errno::PERM) => openat2(dir, c".", DIR_FLAGS, Mode::empty(), RESOLVE)?,
        other => other?,
    };
    for entry in rustix::fs::Dir::new(own)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Why extended attributes could not be read.
#[derive(Debug)]
pub(crate) enum XattrError {
    Errno(Errno),
    /// The name is not Unicode, which the format cannot say.
    Name,
}

/// Reads all extended attributes of what a descriptor (also an `O_PATH` one) refers to, sorted by name.
pub(crate) fn read_xattrs(fd: &OwnedFd) -> Result<Vec<Xattr>, XattrError> {
    // An O_PATH descriptor has to be reached by its path, which costs more; most are not, and have no attributes.
    let list = |names: &mut [u8]| match rustix::fs::flistxattr(fd, &mut *names) {
        Err(Errno::BADF) => rustix::fs::listxattr(proc_path(fd), names),
        other => other,
    };
    let mut first = [0_u8; 1024];
    let mut larger = Vec::new();
    let names = match list(&mut first) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Ok(len) => &first[..len],
        Err(Errno::RANGE) => {
            // The system's limits for both the list and a value.
            larger.resize(64 << 10, 0);
            let len = list(&mut larger).map_err(XattrError::Errno)?;
            &larger[..len]
        }
        Err(e) => return Err(XattrError::Errno(e)),
    };
    let path = proc_path(fd);
    let mut xattrs = Vec::new();
    for name in names.split(|b| *b == 0).filter(|name| !name.is_empty()) {
        let name = std::str::from_utf8(name).map_err(|_| XattrError::Name)?;
        let mut value = vec![0_u8; 512];
        let len = match rustix::fs::getxattr(&path, name, &mut value[..]) {
            Err(Errno::RANGE) => {
                value.resize(64 << 10, 0);
                rustix::fs::getxattr(&path, name, &mut value[..])
            }
            other => other,
        };
        match len {
            Ok(len) => {
                value.truncate(len);
                value.shrink_to_fit();
                xattrs.push(Xattr { name: name.to_owned(), value });
            }
            // Removed since it was listed.
            Err(Errno::NODATA) => {}
            Err(e) => return Err(XattrError::Errno(e)),
        }
    }
    xattrs.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(xattrs)
}

/// A directory below a fixed root, reachable by its path for as long as nobody moves it.
#[derive(Debug)]
pub(crate) struct Dir {
    root: Arc<OwnedFd>,
    /// Relative to the root; empty for the root itself.
    path: Vec<u8>,
    dev: u64,
    ino: u64,
    fd: Mutex<Option<Arc<OwnedFd>>>,
}

impl Dir {
    /// Opens a root: its path is trusted up to the last component, which must be a directory and no link.
    pub(crate) fn open_root(path: &Path) -> rustix::io::Result<Self> {
        Self::from_fd(openat(CWD, path, DIR_FLAGS, Mode::empty())?)
    }

    fn from_fd(fd: OwnedFd) -> rustix::io::Result<Self> {
        let stat = stat_fd(&fd)?;
        let fd = Arc::new(fd);
        Ok(Self { root: Arc::clone(&fd), path: Vec::new(), dev: stat.dev, ino: stat.ino, fd: Mutex::new(Some(fd)) })
    }

    /// Opens a subdirectory.
    pub(crate) fn open_dir(&self, name: &[u8]) -> rustix::io::Result<Self> {
        let parent = self.fd()?;
        let fd = openat2(&*parent, name, DIR_FLAGS, Mode::empty(), RESOLVE)?;
        let stat = stat_fd(&fd)?;
        let mut path = Vec::with_capacity(self.path.len() + name.len() + 1);
        path.extend_from_slice(&self.path);
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        Ok(Self {
            root: Arc::clone(&self.root),
            path,
            dev: stat.dev,
            ino: stat.ino,
            fd: Mutex::new(Some(Arc::new(fd))),
        })
    }

    /// The path relative to the root.
    pub(crate) fn path(&self) -> &[u8] {
        &self.path
    }

    /// The descriptor; opened again when it was released.
    pub(crate) fn fd(&self) -> rustix::io::Result<Arc<OwnedFd>> {
        let mut slot = self.fd.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(fd) = &*slot {
            return Ok(Arc::clone(fd));
        }
        let fd = Arc::new(self.walk()?);
        *slot = Some(Arc::clone(&fd));
        Ok(fd)
    }

    /// The descriptor, without keeping it open when it had been released.
    pub(crate) fn fd_once(&self) -> rustix::io::Result<Arc<OwnedFd>> {
        match &*self.fd.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(fd) => Ok(Arc::clone(fd)),
            None => self.walk().map(Arc::new),
        }
    }

    /// Gives the descriptor up; [`fd`](Self::fd) gets it back.
    pub(crate) fn release(&self) {
        if !self.path.is_empty() {
            self.fd.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
    }

    fn walk(&self) -> rustix::io::Result<OwnedFd> {
        let mut rest = self.path.as_slice();
        let mut at: Option<OwnedFd> = None;
        while !rest.is_empty() {
            let (piece, tail) = if rest.len() <= PIECE {
                (rest, &[][..])
            } else {
                // A single name is at most 255 bytes, so there is a slash in every piece.
                let cut = rest[..PIECE].iter().rposition(|b| *b == b'/').ok_or(Errno::NAMETOOLONG)?;
                (&rest[..cut], &rest[cut + 1..])
            };
            let from = at.as_ref().unwrap_or(&self.root);
            at = Some(openat2(from, piece, DIR_FLAGS, Mode::empty(), RESOLVE)?);
            rest = tail;
        }
        let fd = at.ok_or(Errno::STALE)?;
        let stat = stat_fd(&fd)?;
        // Another directory may have taken the place; what was planned for the old one must not happen to it.
        if (stat.dev, stat.ino) == (self.dev, self.ino) { Ok(fd) } else { Err(Errno::STALE) }
    }
}
