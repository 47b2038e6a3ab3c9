//! Writes the tar stream of an exported container as a tree: owners, modes, times, attributes, links, devices.
//!
//! The stream is an image author's, so every name is resolved below the root without links. The `tar` crate's own
//! `unpack` follows links that the archive made and does not restore devices.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{self, AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use tar::{Archive, Entry, EntryType};

use super::tree;

/// The prefix of extended attributes in PAX records.
const XATTR: &str = "SCHILY.xattr.";

/// Owner, mode, times and attributes of one entry.
struct Metadata {
    uid: Uid,
    gid: Gid,
    mode: Mode,
    times: Timestamps,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Extracts the whole stream below `root`, which exists and is empty. Nothing is durable when it returns.
pub(super) fn extract(stream: impl Read, root: &Path) -> io::Result<()> {
    let root = tree::open_dir(root)?;
    // A directory's time and mode are set last: files are still made in it.
    let mut directories: Vec<(PathBuf, Metadata)> = Vec::new();
    let mut archive = Archive::new(stream);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = inner_path(&entry.path_bytes())?;
        let metadata = metadata_of(&mut entry)?;
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::Directory) {
            make_directory(&root, &path)?;
            directories.push((path, metadata));
            continue;
        }
        let (Some(name), Some(parent)) = (path.file_name(), path.parent()) else {
            return Err(invalid("an entry that is not a directory names the root"));
        };
        make_directory(&root, parent)?;
        let parent = tree::open_beneath(&root, parent, OFlags::DIRECTORY)?;
        write_entry(&root, &parent, name, &mut entry, &metadata)?;
    }
    for (path, metadata) in directories.iter().rev() {
        let dir = tree::open_beneath(&root, path, OFlags::DIRECTORY)?;
        apply(&dir, metadata)?;
    }
    Ok(())
}

fn write_entry(
    root: &OwnedFd,
    parent: &OwnedFd,
    name: &OsStr,
    entry: &mut Entry<'_, impl Read>,
    metadata: &Metadata,
) -> io::Result<()> {
    // The same name twice: the later one counts, as in every tar.
    match fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(e) => return Err(e.into()),
    }
    let special = |kind| -> io::Result<()> {
        let device = match (entry.header().device_major()?, entry.header().device_minor()?) {
            (Some(major), Some(minor)) => fs::makedev(major, minor),
            _ => 0,
        };
        fs::mknodat(parent, name, kind, metadata.mode, device)?;
        apply_by_name(parent, name, metadata)?;
        Ok(fs::chmodat(parent, name, metadata.mode, AtFlags::empty())?)
    };
    match entry.header().entry_type() {
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mut file = File::from(fs::openat(parent, name, flags, Mode::RUSR | Mode::WUSR)?);
            io::copy(entry, &mut file)?;
            apply(&file.into(), metadata)
        }
        EntryType::Symlink => {
            let target = entry.link_name_bytes().ok_or_else(|| invalid("a link without a target"))?;
            fs::symlinkat(OsStr::from_bytes(&target), parent, name)?;
            apply_by_name(parent, name, metadata)
        }
        EntryType::Link => {
            let target = entry.link_name_bytes().ok_or_else(|| invalid("a link without a target"))?;
            let target = inner_path(&target)?;
            let (Some(old), Some(old_parent)) = (target.file_name(), target.parent()) else {
                return Err(invalid("a hard link to the root"));
            };
            let old_parent = tree::open_beneath(root, old_parent, OFlags::PATH | OFlags::DIRECTORY)?;
            Ok(fs::linkat(&old_parent, old, parent, name, AtFlags::empty())?)
        }
        EntryType::Char => special(FileType::CharacterDevice),
        EntryType::Block => special(FileType::BlockDevice),
        EntryType::Fifo => special(FileType::Fifo),
        EntryType::XGlobalHeader => Ok(()),
        other => Err(invalid(format!("an entry of unknown type {other:?}"))),
    }
}

/// The path of an entry below the root; anything that would leave it is refused.
fn inner_path(bytes: &[u8]) -> io::Result<PathBuf> {
    let mut path = PathBuf::new();
    for part in Path::new(OsStr::from_bytes(bytes)).components() {
        match part {
            Component::Normal(name) => path.push(name),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => return Err(invalid("a name with ..")),
        }
    }
    Ok(path)
}

fn make_directory(root: &OwnedFd, path: &Path) -> io::Result<()> {
    if tree::open_beneath(root, path, OFlags::PATH | OFlags::DIRECTORY).is_ok() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        make_directory(root, parent)?;
        let parent = tree::open_beneath(root, parent, OFlags::DIRECTORY)?;
        if let Some(name) = path.file_name() {
            match fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
    // A link or a file in its place is refused here.
    tree::open_beneath(root, path, OFlags::PATH | OFlags::DIRECTORY)?;
    Ok(())
}

fn metadata_of(entry: &mut Entry<'_, impl Read>) -> io::Result<Metadata> {
    let mut xattrs = Vec::new();
    let mut mtime = Timespec { tv_sec: i64::try_from(entry.header().mtime()?).unwrap_or(0), tv_nsec: 0 };
    if let Some(records) = entry.pax_extensions()? {
        for record in records {
            let record = record?;
            match record.key() {
                Ok("mtime") => mtime = precise_time(record.value().unwrap_or_default()).unwrap_or(mtime),
                Ok(key) if key.starts_with(XATTR) => {
                    xattrs.push((key.as_bytes()[XATTR.len()..].to_vec(), record.value_bytes().to_vec()));
                }
                _ => {}
            }
        }
    }
    let header = entry.header();
    let id = |raw: u64| u32::try_from(raw).map_err(|_| invalid("an owner beyond 32 bits"));
    Ok(Metadata {
        uid: Uid::from_raw(id(header.uid()?)?),
        gid: Gid::from_raw(id(header.gid()?)?),
        mode: Mode::from_raw_mode(header.mode()? & 0o7777),
        times: Timestamps { last_access: mtime, last_modification: mtime },
        xattrs,
    })
}

/// Seconds and fraction of a PAX time such as `1700000000.123`.
fn precise_time(text: &str) -> Option<Timespec> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let nanos = format!("{fraction:0<9}");
    Some(Timespec { tv_sec: seconds.parse().ok()?, tv_nsec: nanos.get(..9)?.parse().ok()? })
}

/// Applies everything to an open file; the mode after the owner, because a change of owner clears set-id bits.
fn apply(file: &OwnedFd, metadata: &Metadata) -> io::Result<()> {
    fs::fchown(file, Some(metadata.uid), Some(metadata.gid))?;
    fs::fchmod(file, metadata.mode)?;
    for (name, value) in &metadata.xattrs {
        fs::fsetxattr(file, OsStr::from_bytes(name), value, XattrFlags::empty())?;
    }
    Ok(fs::futimens(file, &metadata.times)?)
}

/// Applies owner and times to something that must not be opened.
fn apply_by_name(parent: &OwnedFd, name: &OsStr, metadata: &Metadata) -> io::Result<()> {
    fs::chownat(parent, name, Some(metadata.uid), Some(metadata.gid), AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(fs::utimensat(parent, name, &metadata.times, AtFlags::SYMLINK_NOFOLLOW)?)
}

fn invalid(problem: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tar::{Builder, Header};

    fn header(kind: EntryType, size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o640);
        header.set_mtime(1_600_000_000);
        header.set_uid(rustix::process::getuid().as_raw().into());
        header.set_gid(rustix::process::getgid().as_raw().into());
        header
    }

    fn extracted(archive: Vec<u8>) -> (tempfile::TempDir, io::Result<()>) {
        let temp = tempfile::tempdir().expect("temp");
        let root = temp.path().join("root");
        std::fs::create_dir(&root).expect("root");
        let result = extract(archive.as_slice(), &root);
        (temp, result)
    }

    #[test]
    fn a_name_behind_a_link_is_refused() {
        let mut builder = Builder::new(Vec::new());
        builder.append_link(&mut header(EntryType::Symlink, 0), "etc", "/tmp").expect("link");
        builder.append_data(&mut header(EntryType::Regular, 1), "etc/evil", &b"x"[..]).expect("file");
        let (_temp, result) = extracted(builder.into_inner().expect("tar"));
        assert!(result.is_err());
        assert!(!Path::new("/tmp/evil").exists());
    }

    #[test]
    fn hard_links_stay_one_file_and_times_and_modes_are_kept() {
        use std::os::unix::fs::MetadataExt;
        let mut builder = Builder::new(Vec::new());
        builder.append_data(&mut header(EntryType::Directory, 0), "d/", &b""[..]).expect("dir");
        builder.append_data(&mut header(EntryType::Regular, 3), "d/a", &b"abc"[..]).expect("file");
        builder.append_link(&mut header(EntryType::Link, 0), "b", "d/a").expect("link");
        let (temp, result) = extracted(builder.into_inner().expect("tar"));
        result.expect("extract");
        let root = temp.path().join("root");
        let (a, b) = (std::fs::metadata(root.join("d/a")).expect("a"), std::fs::metadata(root.join("b")).expect("b"));
        assert_eq!((a.ino(), a.mode() & 0o7777, a.mtime()), (b.ino(), 0o640, 1_600_000_000));
        assert_eq!(std::fs::metadata(root.join("d")).expect("d").mtime(), 1_600_000_000);
    }

    #[test]
    fn pax_times_have_nanoseconds() {
        let time = precise_time("12.5").expect("time");
        assert_eq!((time.tv_sec, time.tv_nsec), (12, 500_000_000));
        assert_eq!(precise_time("12").map(|t| t.tv_nsec), Some(0));
    }
}
