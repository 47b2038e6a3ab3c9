//! What databases count on, tried on the file system that volumes are on.
//!
//! SQLite's WAL is a memory map that several processes share, and its locks are those of POSIX; PostgreSQL counts on
//! `fsync`, `rename` and hard links. File systems that come over a wire, or out of a program of somebody's, promise some
//! of this and lose databases: two were lost within three days to a WAL on gVisor's 9p, others to a bucket that was mounted
//! as a directory. Their kinds are refused by name, because what fails there (maps above all, which cannot be tried without
//! touching memory that is somebody else's) fails rarely and not while it is tried; everything else is tried.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rustix::fs::{FlockOperation, FsWord, XattrFlags, fcntl_lock, flock, fsetxattr};
use rustix::io::Errno;

/// Kinds that are no local file system, by their numbers in linux/magic.h (CIFS and SMB 2: fs/smb; FUSE, CephFS, AFS: theirs).
const NOT_LOCAL: [(FsWord, &str); 8] = [
    (0x6969, "NFS"),
    (0xFF53_4D42, "CIFS (SMB)"),
    (0xFE53_4D42, "SMB"),
    (0x517B, "SMB"),
    (0x0102_1997, "9p"),
    (0x6573_5546, "FUSE"),
    (0x00C3_6400, "CephFS"),
    (0x5346_414F, "AFS"),
];

/// Why databases are not safe on a kind of file system; none when its kind says nothing.
pub(super) fn not_local(path: &Path) -> Option<String> {
    let kind = rustix::fs::statfs(path).ok()?.f_type;
    let (_, name) = NOT_LOCAL.iter().find(|(magic, _)| *magic == kind)?;
    Some(format!("{} is on {name}, where databases are damaged sooner or later", path.display()))
}

/// What became of the trial of a file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trial {
    /// It does everything that databases count on.
    Kept,
    /// It does not; why.
    Broken(String),
    /// It could not be tried (a full disk, an error of the disk), which says nothing about it; why.
    Untried(String),
}

/// Errors by which a file system says that it does not do something at all.
const NOT_DONE: [Errno; 6] = [Errno::NOSYS, Errno::OPNOTSUPP, Errno::INVAL, Errno::PERM, Errno::NOLCK, Errno::MLINK];

/// Tries whether a directory's file system does what databases count on. What was tried is removed again.
pub(super) fn tried(directory: &Path) -> Trial {
    if let Some(why) = not_local(directory) {
        return Trial::Broken(why);
    }
    let scratch = match tempfile::Builder::new().prefix("posix-").tempdir_in(directory) {
        Ok(scratch) => scratch,
        Err(error) => return Trial::Untried(format!("nothing can be made in {}: {error}", directory.display())),
    };
    let mut untried = None;
    for (what, kept) in PROMISES {
        let lacks = format!("the file system of {} does not keep {what}", directory.display());
        match kept(scratch.path()) {
            Ok(true) => {}
            Ok(false) => return Trial::Broken(lacks),
            Err(error) if is_not_done(&error) => return Trial::Broken(format!("{lacks}: {error}")),
            Err(error) => {
                untried.get_or_insert(format!("{what} could not be tried in {}: {error}", directory.display()));
            }
        }
    }
    untried.map_or(Trial::Kept, Trial::Untried)
}

fn is_not_done(error: &io::Error) -> bool {
    NOT_DONE.iter().any(|not_done| error.raw_os_error() == Some(not_done.raw_os_error()))
}

/// Tries something in an empty directory of its own; answers whether it is as it has to be.
type Promise = fn(&Path) -> io::Result<bool>;

const PROMISES: [(&str, Promise); 6] = [
    ("files that are made once only (O_EXCL)", made_once),
    ("what was synced (fsync)", synced),
    ("the place of a file that is renamed (rename)", renamed),
    ("several names of a file (hard links)", linked),
    ("locks between processes (fcntl, flock)", locked),
    ("attributes of files (xattr)", attributes),
];

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
}

fn made_once(dir: &Path) -> io::Result<bool> {
    let path = dir.join("once");
    File::create_new(&path)?;
    Ok(File::create_new(&path).is_err_and(|e| e.kind() == io::ErrorKind::AlreadyExists))
}

fn synced(dir: &Path) -> io::Result<bool> {
    let file = open(&dir.join("synced"))?;
    file.write_all_at(b"synced", 0)?;
    file.sync_all()?;
    file.sync_data()?;
    File::open(dir)?.sync_all()?;
    Ok(true)
}

fn renamed(dir: &Path) -> io::Result<bool> {
    let (old, new) = (dir.join("renamed-old"), dir.join("renamed-new"));
    fs::write(&old, "new")?;
    fs::write(&new, "old")?;
    // Whoever has the old one open goes on with it.
    let before = File::open(&new)?;
    fs::rename(&old, &new)?;
    let mut kept = [0; 3];
    before.read_exact_at(&mut kept, 0)?;
    Ok(fs::read(&new)? == b"new" && kept == *b"old" && !old.try_exists()?)
}

fn linked(dir: &Path) -> io::Result<bool> {
    let (one, other) = (dir.join("linked"), dir.join("linked-too"));
    fs::write(&one, "x")?;
    fs::hard_link(&one, &other)?;
    let (a, b) = (fs::metadata(&one)?, fs::metadata(&other)?);
    Ok((a.ino(), a.nlink()) == (b.ino(), 2) && a.nlink() == 2)
}

/// A lock keeps others away until it is given back. Locks of fcntl are a process' own, so of them it is only tried that there
/// are any.
fn locked(dir: &Path) -> io::Result<bool> {
    let path = dir.join("locked");
    let (one, other) = (open(&path)?, open(&path)?);
    let exclusive = FlockOperation::NonBlockingLockExclusive;
    fcntl_lock(&one, exclusive)?;
    fcntl_lock(&one, FlockOperation::NonBlockingUnlock)?;
    flock(&one, exclusive)?;
    let refused = flock(&other, exclusive) == Err(Errno::WOULDBLOCK);
    flock(&one, FlockOperation::Unlock)?;
    Ok(refused && flock(&other, exclusive).is_ok())
}

/// Those that overlays are made of: a user's own are missing on file systems where everything else works.
fn attributes(dir: &Path) -> io::Result<bool> {
    let file = open(&dir.join("attributes"))?;
    fsetxattr(&file, "trusted.perennial", b"value", XattrFlags::empty())?;
    let mut value = [0; 5];
    let length = rustix::fs::fgetxattr(&file, "trusted.perennial", &mut value)?;
    Ok(length == 5 && value == *b"value")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The test above on a real FUSE and on real disks is in tests/docker/storage.rs.
    #[test]
    fn p23_every_promise_that_is_broken_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        for (what, kept) in PROMISES {
            let path = dir.path().join(what.split(' ').next_back().expect("a word"));
            // Where nothing can be made, none of them is taken for kept.
            assert!(kept(&path).is_err(), "{what}");
        }
        // That nothing can be made there says nothing about its file system.
        let Trial::Untried(why) = tried(&dir.path().join("gone")) else { panic!("a verdict on what is not there") };
        assert!(why.contains("nothing can be made"), "{why}");
        assert_eq!(tried(dir.path()), Trial::Kept);
        assert!(is_not_done(&Errno::OPNOTSUPP.into()) && !is_not_done(&Errno::NOSPC.into()));
    }
}
