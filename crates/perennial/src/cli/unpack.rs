//! Unpacks an archive of a snapshot into a directory.
//!
//! The server says what is in it, and a pod chose the names: every name is resolved below the target without following
//! a link, and nothing that exists is written to. Programs that are setuid in a pod are so here as well, so the target is
//! closed to everybody but its owner; devices are made only for whoever asks for them.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{self as sys, AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid};
use serde::Serialize;
use tar::{Archive, Entry, EntryType};

use super::failure::{Exit, Failure};
use crate::library::Extensions;

/// What was unpacked, and what could not be kept.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Unpacked {
    /// Entries that are no directories.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Bytes of regular files.
    pub bytes: u64,
    /// Devices that were not made.
    pub devices_left_out: u64,
    /// Attributes that only root, or another file system, can keep.
    pub attributes_left_out: u64,
    /// Whether files belong to whom they belonged to.
    pub owners_kept: bool,
}

impl Unpacked {
    /// What whoever asked has to know.
    pub fn notes(&self) -> impl Iterator<Item = String> {
        let owners = (!self.owners_kept).then(|| "owners were not kept: that takes root".to_owned());
        let devices = (self.devices_left_out > 0)
            .then(|| format!("{} devices were left out: making them takes root and --devices", self.devices_left_out));
        let attributes = (self.attributes_left_out > 0)
            .then(|| format!("{} extended attributes could not be set", self.attributes_left_out));
        owners.into_iter().chain(devices).chain(attributes)
    }
}

/// Why unpacking stopped.
#[derive(Debug)]
pub enum Stopped {
    /// The archive ends too early or is damaged.
    Read(io::Error),
    /// Something could not be written.
    Write(PathBuf, io::Error),
}

/// Refuses a directory with something in it.
pub fn refuse_content(directory: &Path) -> Result<(), Failure> {
    match std::fs::read_dir(directory) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => {
                let message = format!("{} is not empty", directory.display());
                Err(Failure::new(Exit::Conflict, message, "choose a directory that does not exist yet, or is empty"))
            }
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Failure::new(Exit::Failed, format!("{}: {error}", directory.display()), "")),
    }
}

/// Owner, mode, time and attributes of an entry.
struct Metadata {
    uid: u32,
    gid: u32,
    mode: u32,
    times: Timestamps,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Which side of a copy failed.
enum Fault {
    Read(io::Error),
    Write(io::Error),
}

impl<E: Into<io::Error>> From<E> for Fault {
    fn from(error: E) -> Self {
        Self::Write(error.into())
    }
}

struct Target {
    root: OwnedFd,
    owners: bool,
    devices: bool,
    /// Names of devices that were not made, links to them among these.
    left_out: HashSet<Vec<u8>>,
    done: Unpacked,
}

/// Unpacks a tar that zstd packed. The directory is made when it is missing, and closed to others. Durable when it returns.
pub fn unpack(packed: impl Read, directory: &Path, devices: bool) -> Result<Unpacked, Stopped> {
    let at = |error: rustix::io::Errno| Stopped::Write(directory.to_owned(), error.into());
    match sys::mkdir(directory, Mode::RWXU) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(error) => return Err(at(error)),
    }
    let root = sys::open(directory, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(at)?;
    // Its owner could open it again, whatever its mode is then.
    if sys::fstat(&root).map_err(at)?.st_uid != rustix::process::geteuid().as_raw() {
        return Err(at(rustix::io::Errno::PERM));
    }
    sys::fchmod(&root, Mode::RWXU).map_err(at)?;
    let owners = rustix::process::geteuid().is_root();
    let done = Unpacked { owners_kept: owners, ..Unpacked::default() };
    let mut target = Target { root, owners, devices, left_out: HashSet::new(), done };
    let mut archive = Archive::new(zstd::stream::read::Decoder::new(packed).map_err(Stopped::Read)?);
    // A directory's mode and time come last: things are still made in it.
    let mut directories: Vec<(Vec<u8>, Metadata)> = Vec::new();
    let mut extensions = Extensions::default();
    for entry in archive.entries().map_err(Stopped::Read)?.raw(true) {
        let mut entry = entry.map_err(Stopped::Read)?;
        if extensions.take_in(&mut entry).map_err(Stopped::Read)? {
            continue;
        }
        let said = std::mem::take(&mut extensions);
        let path = relative(&said.path(&entry)).map_err(Stopped::Read)?;
        let metadata = metadata(&entry, &said).map_err(Stopped::Read)?;
        let shown = || directory.join(OsStr::from_bytes(&path));
        if entry.header().entry_type() == EntryType::Directory {
            target.directory(&path).map_err(|e| Stopped::Write(shown(), e))?;
            // The target itself is not the pod's.
            if !path.is_empty() {
                directories.push((path, metadata));
            }
        } else {
            let link = said.target(&entry);
            target.entry(&mut entry, (&path, &link), &metadata).map_err(|fault| match fault {
                Fault::Read(e) => Stopped::Read(e),
                Fault::Write(e) => Stopped::Write(shown(), e),
            })?;
        }
    }
    // What is behind the archive's end may still be an error.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(Stopped::Read)?;
    for (path, metadata) in directories.iter().rev() {
        let kept = target.open(path).and_then(|fd| target.describe(&fd, metadata));
        kept.map_err(|e| Stopped::Write(directory.join(OsStr::from_bytes(path)), e))?;
    }
    sys::syncfs(&target.root).map_err(at)?;
    Ok(target.done)
}

/// The path of an entry without what leads nowhere; one that leads out is refused.
fn relative(path: &[u8]) -> io::Result<Vec<u8>> {
    let names: Vec<&[u8]> = path.split(|b| *b == b'/').filter(|n| !n.is_empty() && *n != b".").collect();
    if path.starts_with(b"/") || names.contains(&&b".."[..]) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a name in the archive leads out of it"));
    }
    Ok(names.join(&b'/'))
}

fn metadata<R: Read>(entry: &Entry<'_, R>, said: &Extensions) -> io::Result<Metadata> {
    let (uid, gid) = said.owner(entry)?;
    let time = said.mtime(entry)?;
    let modified = Timespec { tv_sec: time.seconds, tv_nsec: time.nanoseconds.into() };
    let unchanged = Timespec { tv_sec: 0, tv_nsec: sys::UTIME_OMIT };
    Ok(Metadata {
        uid,
        gid,
        mode: entry.header().mode()? & 0o7777,
        times: Timestamps { last_access: unchanged, last_modification: modified },
        xattrs: said.xattrs().map(|(name, value)| (name.to_vec(), value.to_vec())).collect(),
    })
}

/// Copies a file's content, all of it. Zeros become holes: a file that is nearly all hole in the pod may be larger than
/// the disk here.
fn copy<R: Read>(entry: &mut Entry<'_, R>, file: &mut File) -> Result<(), Fault> {
    let (mut buffer, mut left) = (vec![0; 64 << 10], entry.size());
    while left > 0 {
        let read = entry.read(&mut buffer).map_err(Fault::Read)?;
        if read == 0 {
            return Err(Fault::Read(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive ends within a file")));
        }
        if buffer[..read].iter().all(|byte| *byte == 0) {
            file.seek(SeekFrom::Current(i64::try_from(read).unwrap_or_default()))?;
        } else {
            file.write_all(&buffer[..read])?;
        }
        left = left.saturating_sub(read as u64);
    }
    Ok(file.set_len(entry.size())?)
}

impl Target {
    /// Opens a directory below the target.
    fn open(&self, path: &[u8]) -> io::Result<OwnedFd> {
        let path = if path.is_empty() { OsStr::new(".") } else { OsStr::from_bytes(path) };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(sys::openat2(&self.root, path, flags, Mode::empty(), resolve)?)
    }

    /// The directory that holds a path, and the name in it.
    fn parent<'p>(&self, path: &'p [u8]) -> io::Result<(OwnedFd, &'p OsStr)> {
        let cut = path.iter().rposition(|b| *b == b'/');
        let (parent, name) = cut.map_or((&[][..], path), |at| (&path[..at], &path[at + 1..]));
        Ok((self.open(parent)?, OsStr::from_bytes(name)))
    }

    fn directory(&mut self, path: &[u8]) -> io::Result<()> {
        self.done.directories += 1;
        if path.is_empty() {
            return Ok(());
        }
        let (parent, name) = self.parent(path)?;
        Ok(sys::mkdirat(&parent, name, Mode::RWXU)?)
    }

    fn entry<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        (path, link): (&[u8], &[u8]),
        metadata: &Metadata,
    ) -> Result<(), Fault> {
        let (parent, name) = self.parent(path)?;
        let device = match (entry.header().device_major(), entry.header().device_minor()) {
            (Ok(Some(major)), Ok(Some(minor))) => sys::makedev(major, minor),
            _ => 0,
        };
        match entry.header().entry_type() {
            EntryType::Regular => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let mut file = File::from(sys::openat(&parent, name, flags, Mode::RUSR | Mode::WUSR)?);
                copy(entry, &mut file)?;
                self.done.bytes += entry.size();
                self.describe(&file.into(), metadata)?;
            }
            EntryType::Link => {
                let original = relative(link).map_err(Fault::Read)?;
                if self.left_out.contains(&original) {
                    self.leave_out(path);
                    return Ok(());
                }
                let (from, target) = self.parent(&original)?;
                sys::linkat(&from, target, &parent, name, AtFlags::empty())?;
            }
            EntryType::Symlink => {
                sys::symlinkat(OsStr::from_bytes(link), &parent, name)?;
                self.describe_name(&parent, name, metadata, false)?;
            }
            kind @ (EntryType::Fifo | EntryType::Char | EntryType::Block) => {
                let (file_type, number) = match kind {
                    EntryType::Fifo => (FileType::Fifo, 0),
                    EntryType::Char => (FileType::CharacterDevice, device),
                    _ => (FileType::BlockDevice, device),
                };
                if kind != EntryType::Fifo && !self.devices {
                    self.leave_out(path);
                    return Ok(());
                }
                sys::mknodat(&parent, name, file_type, Mode::RUSR, number)?;
                self.describe_name(&parent, name, metadata, true)?;
            }
            _ => {
                let unknown = io::Error::new(io::ErrorKind::InvalidData, "the archive holds something unknown");
                return Err(Fault::Read(unknown));
            }
        }
        self.done.files += 1;
        Ok(())
    }

    fn leave_out(&mut self, path: &[u8]) {
        self.done.devices_left_out += 1;
        self.left_out.insert(path.to_vec());
    }

    /// Owner first, for it takes set-user-id away; the time last. Without the owner it would be set-user-id of
    /// somebody else, so it is not.
    fn describe(&mut self, fd: &OwnedFd, metadata: &Metadata) -> io::Result<()> {
        if self.owners {
            sys::fchown(fd, Some(Uid::from_raw(metadata.uid)), Some(Gid::from_raw(metadata.gid)))?;
        }
        for (name, value) in &metadata.xattrs {
            if sys::fsetxattr(fd, OsStr::from_bytes(name), value, sys::XattrFlags::empty()).is_err() {
                self.done.attributes_left_out += 1;
            }
        }
        let mode = if self.owners { metadata.mode } else { metadata.mode & 0o1777 };
        sys::fchmod(fd, Mode::from_raw_mode(mode))?;
        Ok(sys::futimens(fd, &metadata.times)?)
    }

    /// The same for what cannot be opened.
    fn describe_name(&mut self, parent: &OwnedFd, name: &OsStr, metadata: &Metadata, mode: bool) -> io::Result<()> {
        self.done.attributes_left_out += metadata.xattrs.len() as u64;
        let here = AtFlags::SYMLINK_NOFOLLOW;
        if self.owners {
            sys::chownat(parent, name, Some(Uid::from_raw(metadata.uid)), Some(Gid::from_raw(metadata.gid)), here)?;
        }
        if mode {
            // Just made by us in a directory of ours, and no link.
            sys::chmodat(parent, name, Mode::from_raw_mode(metadata.mode), AtFlags::empty())?;
        }
        Ok(sys::utimensat(parent, name, &metadata.times, here)?)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use tar::{Builder, Header};

    use super::*;

    /// Names as they are: a library would refuse to write what is wanted here.
    fn header(kind: EntryType, name: &str, size: u64) -> Header {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(0o4755);
        header.set_uid(rustix::process::geteuid().as_raw().into());
        header.set_gid(rustix::process::getegid().as_raw().into());
        header.set_mtime(1_600_000_000);
        header.set_size(size);
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        header
    }

    struct Tar(Builder<Vec<u8>>);

    impl Tar {
        fn new() -> Self {
            Self(Builder::new(Vec::new()))
        }

        fn add(mut self, kind: EntryType, name: &str, target: &str, content: &[u8]) -> Self {
            let mut header = header(kind, name, content.len() as u64);
            header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
            header.set_cksum();
            self.0.append(&header, content).expect("in memory");
            self
        }

        fn file(self, name: &str) -> Self {
            self.add(EntryType::Regular, name, "", b"evil")
        }

        fn link(self, name: &str, target: &str) -> Self {
            self.add(EntryType::Symlink, name, target, b"")
        }

        fn hard(self, name: &str, target: &str) -> Self {
            self.add(EntryType::Link, name, target, b"")
        }

        fn dir(self, name: &str) -> Self {
            self.add(EntryType::Directory, name, "", b"")
        }

        fn done(self) -> Vec<u8> {
            self.0.into_inner().expect("in memory")
        }
    }

    #[test]
    fn hostile_archives_are_refused_and_change_nothing_outside() {
        let cut = |archive: Vec<u8>, at: usize| archive[..at].to_vec();
        let mut long = Tar::new();
        long.0.append_pax_extensions([("path", &b"../../outside/file"[..])]).expect("in memory");
        let refused = [
            ("absolute", Tar::new().file("/outside/file").done()),
            ("dot dot", Tar::new().dir("a").file("a/../../outside/file").done()),
            ("dot dot in a record", long.file("a").done()),
            ("through a link", Tar::new().link("way", "../outside").file("way/file").done()),
            ("through an absolute link", Tar::new().link("way", "/").file("way/tmp/file").done()),
            ("through a link within", Tar::new().dir("d").link("l", "d").file("l/x").done()),
            ("a directory through a link", Tar::new().link("way", "../outside").dir("way/made").done()),
            ("a directory over a link", Tar::new().link("way", "../outside").dir("way").done()),
            ("a file over a link", Tar::new().link("way", "../outside/file").file("way").done()),
            ("a file twice", Tar::new().file("a").file("a").done()),
            ("a file over the target", Tar::new().file("./").done()),
            ("a hard link outside", Tar::new().hard("a", "../outside/file").done()),
            ("an absolute hard link", Tar::new().hard("a", "/etc/passwd").done()),
            ("a hard link through a link", Tar::new().link("way", "../outside").hard("a", "way/file").done()),
            ("a hard link to a directory", Tar::new().dir("d").hard("a", "d").done()),
            ("an unknown type", Tar::new().add(EntryType::new(b'D'), "a", "", b"").done()),
            ("cut in a content", cut(Tar::new().file("a").done(), 514)),
            ("noise", vec![0xa5; 4096]),
        ];
        for (what, archive) in refused {
            let base = tempfile::tempdir().expect("a directory");
            let outside = base.path().join("outside");
            std::fs::create_dir(&outside).expect("a directory");
            std::fs::write(outside.join("file"), "precious").expect("a file");
            let look = || {
                let meta = |path: &Path| std::fs::metadata(path).expect("there").ctime_nsec();
                let names = |path: &Path| std::fs::read_dir(path).expect("there").count();
                let content = std::fs::read(outside.join("file")).expect("there");
                (content, meta(&outside), meta(&outside.join("file")), names(&outside), names(base.path()))
            };
            let target = base.path().join("target");
            std::fs::create_dir(&target).expect("a directory");
            let before = look();
            let packed = zstd::encode_all(&archive[..], 1).expect("in memory");
            assert!(unpack(&packed[..], &target, false).is_err(), "{what}");
            assert_eq!(look(), before, "{what}");
        }
    }

    #[test]
    fn what_leads_out_without_being_followed_is_kept_as_it_is() {
        let base = tempfile::tempdir().expect("a directory");
        let target = base.path().join("target");
        let archive = Tar::new()
            .link("way", "../outside")
            .hard("same", "way")
            .add(EntryType::Block, "disk", "", b"")
            .hard("other", "disk")
            .done();
        let done = unpack(&zstd::encode_all(&archive[..], 1).expect("in memory")[..], &target, false).expect("taken");
        assert_eq!((done.files, done.devices_left_out), (2, 2), "{done:?}");
        for name in ["way", "same"] {
            assert_eq!(std::fs::read_link(target.join(name)).expect("a link"), Path::new("../outside"));
        }
        assert_eq!(std::fs::read_dir(base.path()).expect("there").count(), 1);
    }
}
