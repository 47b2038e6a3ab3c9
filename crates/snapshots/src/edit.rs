//! Single small files in a directory tree that nobody writes into but us.
//!
//! The tree's content is a tenant's all the same: no link in it is followed.

use std::io::Read as _;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, mknodat, openat, renameat, unlinkat};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::fsdir::{self, Dir, list_names, open_path, read_xattrs, stat_fd};
use crate::node::NodeKind;
use crate::removed::PREFIX;
use crate::restore::{Overlay, apply, temporary_name};

/// What becomes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replacement<'a> {
    /// It gets this content; owner, mode and attributes stay.
    Content(&'a [u8]),
    /// It is removed.
    Removed,
    /// It is removed, and so is one of its name in the layer below the overlay.
    Whiteout,
}

/// Opens the directory that holds `path`; `None` when there is no such directory, or the way to it is no way of directories.
fn parent(root: &Path, path: &Path) -> Result<Option<Dir>> {
    let mut dir = Dir::open_root(root).map_err(|e| Error::io("open", root, e))?;
    let above = path.parent().unwrap_or_else(|| Path::new(""));
    for name in above.iter() {
        dir = match dir.open_dir(name.as_bytes()) {
            Ok(dir) => dir,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            Err(e) => return Err(Error::io("open", root.join(above), e)),
        };
    }
    Ok(Some(dir))
}

fn name(path: &Path) -> &[u8] {
    path.file_name().map_or(&[], OsStrExt::as_bytes)
}

/// Reads a regular file of at most `max` bytes; `None` for anything else that is there, and when nothing is.
///
/// # Errors
/// [`Error::Io`].
pub fn read_file(root: &Path, path: &Path, max: u64) -> Result<Option<Vec<u8>>> {
    let failed = |e| Error::io("read", root.join(path), e);
    let Some(dir) = parent(root, path)? else { return Ok(None) };
    let inode = match open_path(&*dir.fd().map_err(failed)?, name(path)) {
        Ok(inode) => inode,
        Err(Errno::NOENT) => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    let stat = stat_fd(&inode).map_err(failed)?;
    if stat.kind() != Some(NodeKind::File) || stat.size > max {
        return Ok(None);
    }
    let mut content = Vec::new();
    let file = std::fs::File::from(fsdir::open_readable(&inode).map_err(failed)?);
    file.take(max).read_to_end(&mut content).map_err(|e| Error::io("read", root.join(path), e))?;
    Ok(Some(content))
}

/// Lists the names in a directory; `None` when it is none.
///
/// # Errors
/// [`Error::Io`].
pub fn file_names(root: &Path, directory: &Path) -> Result<Option<Vec<Vec<u8>>>> {
    let failed = |e| Error::io("list", root.join(directory), e);
    let Some(dir) = parent(root, &directory.join("entry"))? else { return Ok(None) };
    let fd = dir.fd().map_err(failed)?;
    list_names(&fd).map(Some).map_err(failed)
}

/// Replaces a regular file that is there.
///
/// # Errors
/// [`Error::Io`]; the file is as it was then.
pub fn replace_file(root: &Path, path: &Path, with: Replacement<'_>) -> Result<()> {
    let failed = |e: Errno| Error::io("replace", root.join(path), e);
    let dir = parent(root, path)?.ok_or_else(|| failed(Errno::NOENT))?;
    let fd = dir.fd().map_err(failed)?;
    let content = match with {
        Replacement::Content(content) => content,
        Replacement::Removed => return unlinkat(&*fd, name(path), AtFlags::empty()).map_err(failed),
        Replacement::Whiteout => {
            let fresh = temporary_name();
            mknodat(&*fd, fresh.as_slice(), FileType::CharacterDevice, Mode::empty(), 0).map_err(failed)?;
            return renameat(&*fd, fresh.as_slice(), &*fd, name(path)).map_err(failed);
        }
    };
    let inode = open_path(&fd, name(path)).map_err(failed)?;
    let mut node = stat_fd(&inode).map_err(failed)?.to_node(b"", NodeKind::File);
    node.xattrs = read_xattrs(&inode).map_err(|_| failed(Errno::IO))?;
    node.xattrs.retain(|xattr| !xattr.name.starts_with(PREFIX));
    let fresh = temporary_name();
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(&*fd, fresh.as_slice(), flags, Mode::RUSR | Mode::WUSR).map_err(failed)?;
    let written = (|| {
        let mut done = 0;
        while done < content.len() {
            done += rustix::io::pwrite(&file, &content[done..], done as u64)?;
        }
        let now = stat_fd(&file)?;
        // A new content is of now.
        (node.mtime, node.atime) = (now.mtime, now.atime);
        apply(&file, &now, &node, Overlay::Upper { opaque: false })?;
        renameat(&*fd, fresh.as_slice(), &*fd, name(path))
    })();
    if written.is_err() {
        // It takes room that others need.
        let _ = unlinkat(&*fd, fresh.as_slice(), AtFlags::empty());
    }
    written.map_err(failed)
}
