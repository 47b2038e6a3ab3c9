//! Directory trees of this host: resolved without links, copied with all attributes, removed without recursion.
//!
//! Everything below an `upper` is a tenant's. A path into it is only ever walked component by component from an open
//! directory, and a link is never followed.

use std::collections::HashSet;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use rustix::fs::{self, AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

/// Opens a directory by its own name, never through a link in the last component.
pub(super) fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    Ok(fs::open(path, OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?)
}

/// Opens what `relative` names below `dir`; refuses every link and every way out with `ELOOP` or `EXDEV`.
pub(super) fn open_beneath(dir: impl AsFd, relative: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let relative = if relative.as_os_str().is_empty() { Path::new(".") } else { relative };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    fs::openat2(dir, relative, flags | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty(), resolve)
}

/// Makes the directory durable: what was made, renamed or removed in it.
pub(super) fn sync_dir(path: &Path) -> io::Result<()> {
    Ok(fs::fsync(open_dir(path)?)?)
}

/// Waits until no other process holds this lock; it is held until the file is dropped.
pub(super) fn lock(path: &Path) -> io::Result<File> {
    let file = File::options().create(true).append(true).open(path)?;
    fs::flock(&file, fs::FlockOperation::LockExclusive)?;
    Ok(file)
}

/// Makes everything of the file system that holds `path` durable.
pub(super) fn sync_all(path: &Path) -> io::Result<()> {
    Ok(fs::syncfs(open_dir(path)?)?)
}

/// Numbers the calls of [`write_durably`].
static WRITES: AtomicU64 = AtomicU64::new(0);

/// Replaces `dir/name` durably: either the old or the new content is there after a crash.
pub(super) fn write_durably(dir: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    // A name of its own for every call: two that write at the same time must not take each other's file away.
    let call = WRITES.fetch_add(1, Ordering::Relaxed);
    let fresh = dir.join(format!("{name}.{}-{call}.new", std::process::id()));
    let written = File::create(&fresh)
        .and_then(|mut file| file.write_all(content).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&fresh, dir.join(name)));
    if written.is_err() {
        // On a full disk it takes room that others need.
        let _ = std::fs::remove_file(&fresh);
    }
    written?;
    sync_dir(dir)
}

/// Makes a directory that only root enters, and its missing parents, durably.
pub(super) fn make_private_dir(path: &Path) -> io::Result<()> {
    let mut missing = Vec::new();
    let mut at = path;
    while !at.is_dir() {
        missing.push(at);
        let Some(parent) = at.parent() else { break };
        at = parent;
    }
    for dir in missing.iter().rev() {
        match fs::mkdir(*dir, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(e.into()),
        }
        if let Some(parent) = dir.parent() {
            sync_dir(parent)?;
        }
    }
    Ok(())
}

/// Copies owner, mode, times and extended attributes (ACLs are such) from one directory to another.
pub(super) fn copy_attributes(from: impl AsFd, to: impl AsFd) -> io::Result<()> {
    let (from, to) = (from.as_fd(), to.as_fd());
    let stat = fs::fstat(from)?;
    fs::fchown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    fs::fchmod(to, Mode::from_raw_mode(stat.st_mode))?;
    for name in xattr_names(from)? {
        // Overlay's own marks say something about the layer they are in, not about the directory.
        if name.to_bytes().starts_with(b"trusted.overlay.") {
            continue;
        }
        let value = xattr_value(from, &name)?;
        fs::fsetxattr(to, name.as_c_str(), &value, XattrFlags::empty())?;
    }
    fs::futimens(to, &times_of(&stat))?;
    Ok(())
}

/// The access and modification time of a `stat`.
fn times_of(stat: &fs::Stat) -> Timestamps {
    let time = |sec: i64, nsec: u64| fs::Timespec { tv_sec: sec, tv_nsec: i64::try_from(nsec).unwrap_or(0) };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}

fn xattr_names(file: impl AsFd) -> io::Result<Vec<CString>> {
    let mut list = vec![0_u8; 64 << 10];
    let length = match fs::flistxattr(file, &mut list[..]) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => 0,
        Err(e) => return Err(e.into()),
    };
    let names = list[..length].split(|b| *b == 0).filter(|n| !n.is_empty());
    Ok(names.filter_map(|n| CString::new(n).ok()).collect())
}

fn xattr_value(file: impl AsFd, name: &CString) -> io::Result<Vec<u8>> {
    let mut value = vec![0_u8; 64 << 10];
    let length = fs::fgetxattr(file, name.as_c_str(), &mut value[..])?;
    value.truncate(length);
    Ok(value)
}

/// Bytes that everything below this directory takes up on the disk; what has several names counts once.
///
/// Whoever owns the tree may change it meanwhile: what vanishes is not counted. A tree deeper than a path can name is
/// an error.
pub(super) fn usage(dir: &Path) -> io::Result<u64> {
    /// Unit of `st_blocks`.
    const BLOCK: u64 = 512;
    let top = open_dir(dir)?;
    let mut bytes = 0;
    let mut linked = HashSet::new();
    let mut waiting = vec![PathBuf::new()];
    while let Some(path) = waiting.pop() {
        let at = match open_beneath(&top, &path, OFlags::DIRECTORY | OFlags::NONBLOCK) {
            Ok(at) => at,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
            Err(e) => return Err(e.into()),
        };
        for (name, _) in entries(&at)? {
            let stat = match fs::statat(&at, name.as_c_str(), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => continue,
                Err(e) => return Err(e.into()),
            };
            let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            if is_dir {
                waiting.push(path.join(OsStr::from_bytes(name.to_bytes())));
            }
            if is_dir || stat.st_nlink < 2 || linked.insert((stat.st_dev, stat.st_ino)) {
                bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * BLOCK;
            }
        }
    }
    Ok(bytes)
}

/// Removes everything below the trash directory, except entries for which `keep` is true.
///
/// A subdirectory is renamed to the top before it is emptied, so a tree of any depth needs neither stack nor long
/// paths, and a crash leaves nothing but more trash.
pub(super) fn empty_trash(trash: &Path) -> io::Result<()> {
    empty(&open_dir(trash)?, &AtomicU64::new(0))
}

/// Directories that are emptied at the same time. An unlink mostly waits: for the journal, or for a file system that gives
/// space back as it goes. One after the other, a hundred thousand files were seen to take minutes instead of seconds.
const WORKERS: usize = 16;

fn empty(top: &OwnedFd, serial: &AtomicU64) -> io::Result<()> {
    loop {
        let names = entries(top)?;
        if names.is_empty() {
            return Ok(());
        }
        let next = AtomicUsize::new(0);
        let work = || -> io::Result<()> {
            while let Some((name, kind)) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
                if *kind == FileType::Directory {
                    empty_one(top, name, serial)?;
                } else {
                    ignore_missing(fs::unlinkat(top, name.as_c_str(), AtFlags::empty()))?;
                }
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            // Those that cannot be made are done without: this thread does whatever is left.
            let other = |_| std::thread::Builder::new().name("trash".into()).spawn_scoped(scope, work).ok();
            let others: Vec<_> = (1..WORKERS.min(names.len())).filter_map(other).collect();
            let ours = work();
            let ended = |worker: std::thread::ScopedJoinHandle<'_, io::Result<()>>| {
                worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            others.into_iter().map(ended).chain([ours]).collect::<io::Result<()>>()
        })?;
    }
}

fn empty_one(top: &OwnedFd, name: &CString, serial: &AtomicU64) -> io::Result<()> {
    let dir =
        match fs::openat(top, name.as_c_str(), OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => return Ok(()),
            Err(e) => return Err(e.into()),
        };
    for (child, kind) in entries(&dir)? {
        if kind != FileType::Directory {
            ignore_missing(fs::unlinkat(&dir, child.as_c_str(), AtFlags::empty()))?;
            continue;
        }
        match fs::unlinkat(&dir, child.as_c_str(), AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => continue,
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            Err(e) => return Err(e.into()),
        }
        loop {
            let fresh = format!(".{}-{}", std::process::id(), serial.fetch_add(1, Ordering::Relaxed));
            let flags = fs::RenameFlags::NOREPLACE;
            match fs::renameat_with(&dir, child.as_c_str(), top, fresh.as_str(), flags) {
                Ok(()) | Err(Errno::NOENT) => break,
                Err(Errno::EXIST) => {}
                // A subvolume of btrfs lets nothing be renamed out of it: it is emptied in itself.
                Err(Errno::XDEV) => {
                    empty(&dir, serial)?;
                    break;
                }
                Err(e) => return Err(e.into()),
            }
        }
    }
    match fs::unlinkat(top, name.as_c_str(), AtFlags::REMOVEDIR) {
        // Two workers may empty the same trash.
        Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

fn ignore_missing(result: Result<(), Errno>) -> io::Result<()> {
    match result {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Lists a directory; the type comes from `fstatat` where the file system does not tell.
pub(super) fn entries(dir: &OwnedFd) -> io::Result<Vec<(CString, FileType)>> {
    let mut found = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::Unknown => FileType::from_raw_mode(fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?.st_mode),
            known => known,
        };
        found.push((name.to_owned(), kind));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, symlink};

    #[test]
    fn trash_is_emptied_without_following_links() {
        let temp = tempfile::tempdir().expect("temp");
        let outside = temp.path().join("outside");
        std::fs::create_dir(&outside).expect("dir");
        std::fs::write(outside.join("precious"), "x").expect("file");
        let trash = temp.path().join("trash");
        std::fs::create_dir_all(trash.join("set/a/b/c/d")).expect("dirs");
        symlink(&outside, trash.join("set/a/b/link")).expect("link");
        symlink("/", trash.join("root")).expect("link");
        std::fs::write(trash.join("set/a/b/c/d/file"), "x").expect("file");
        empty_trash(&trash).expect("empty");
        assert_eq!(std::fs::read_dir(&trash).expect("list").count(), 0);
        assert!(outside.join("precious").exists());
    }

    #[test]
    fn trash_is_emptied_by_many_at_once_and_by_two_who_do_not_know_of_each_other() {
        let temp = tempfile::tempdir().expect("temp");
        let trash = temp.path().join("trash");
        for n in 0..3000 {
            let dir = trash.join(format!("set/{}/{}/{}", n % 7, n % 61, n % 5));
            std::fs::create_dir_all(&dir).expect("dirs");
            std::fs::write(dir.join(n.to_string()), "x").expect("file");
        }
        std::thread::scope(|scope| {
            let other = scope.spawn(|| empty_trash(&trash));
            empty_trash(&trash).expect("empty");
            other.join().expect("no panic").expect("empty");
        });
        assert_eq!(std::fs::read_dir(&trash).expect("list").count(), 0);
    }

    #[test]
    fn a_tree_deeper_than_any_path_is_removed() {
        let temp = tempfile::tempdir().expect("temp");
        let trash = temp.path().join("trash");
        std::fs::create_dir_all(trash.join("deep")).expect("dir");
        let mut at = open_dir(&trash.join("deep")).expect("open");
        for _ in 0..3000 {
            fs::mkdirat(&at, "d", Mode::RWXU).expect("mkdir");
            at = fs::openat(&at, "d", OFlags::DIRECTORY, Mode::empty()).expect("open");
        }
        empty_trash(&trash).expect("empty");
        assert_eq!(std::fs::read_dir(&trash).expect("list").count(), 0);
    }

    #[test]
    fn links_are_refused_anywhere_in_a_path() {
        let temp = tempfile::tempdir().expect("temp");
        std::fs::create_dir(temp.path().join("real")).expect("dir");
        symlink("real", temp.path().join("link")).expect("link");
        let dir = open_dir(temp.path()).expect("open");
        let open = |p: &str| open_beneath(&dir, Path::new(p), OFlags::PATH | OFlags::DIRECTORY).err();
        assert_eq!(open("real"), None);
        assert!(open("link").is_some_and(|e| e == Errno::LOOP || e == Errno::NOTDIR));
        assert_eq!(open("link/x"), Some(Errno::LOOP));
        assert_eq!(open("../x"), Some(Errno::XDEV));
    }

    #[test]
    fn attributes_are_copied() {
        let temp = tempfile::tempdir().expect("temp");
        let (a, b) = (temp.path().join("a"), temp.path().join("b"));
        std::fs::create_dir(&a).expect("dir");
        std::fs::create_dir(&b).expect("dir");
        fs::chmod(&a, Mode::from_raw_mode(0o1757)).expect("chmod");
        xattr::set(&a, "user.colour", b"green").expect("xattr");
        copy_attributes(open_dir(&a).expect("a"), open_dir(&b).expect("b")).expect("copy");
        let (from, to) = (std::fs::metadata(&a).expect("a"), std::fs::metadata(&b).expect("b"));
        assert_eq!(from.mode(), to.mode());
        assert_eq!(from.mtime_nsec(), to.mtime_nsec());
        assert_eq!(xattr::get(&b, "user.colour").expect("get").as_deref(), Some(&b"green"[..]));
    }

    /// Swaps a directory, and a file in it, for links to what is outside and back, as fast as it can.
    fn attack(victim: &Path, outside: &Path, stop: &std::sync::atomic::AtomicBool, swaps: &AtomicU64) {
        let aside = victim.with_extension("aside");
        let file = victim.join("file");
        while !stop.load(Ordering::Relaxed) {
            // Whatever fails fails because of the one before, and the next turn puts it right.
            let _ = std::fs::rename(victim, &aside);
            let _ = symlink(outside, victim);
            std::thread::yield_now();
            let _ = std::fs::remove_file(victim);
            let _ = std::fs::rename(&aside, victim);
            let _ = std::fs::remove_file(&file);
            let _ = symlink(outside.join("file"), &file);
            std::thread::yield_now();
            let _ = std::fs::remove_file(&file);
            let _ = std::fs::write(&file, "inside");
            swaps.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_tree_that_is_rearranged_meanwhile_never_counts_what_is_outside() {
        const LARGE: u64 = 8 << 20;
        let temp = tempfile::tempdir().expect("temp");
        let (outside, volume) = (temp.path().join("outside"), temp.path().join("volume"));
        std::fs::create_dir_all(outside.join("sub")).expect("dirs");
        for file in ["file", "sub/file"] {
            std::fs::write(outside.join(file), vec![1; LARGE as usize]).expect("file");
        }
        sync_all(&outside).expect("sync");
        assert!(usage(&outside).expect("usage") >= 2 * LARGE);
        for n in 0..20 {
            std::fs::create_dir_all(volume.join(format!("d{n}/sub"))).expect("dirs");
            std::fs::write(volume.join(format!("d{n}/file")), "inside").expect("file");
            std::fs::write(volume.join(format!("d{n}/sub/file")), "inside").expect("file");
        }
        let (stop, swaps) = (std::sync::atomic::AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            let attacker = scope.spawn(|| attack(&volume.join("d10"), &outside, &stop, &swaps));
            let mut rounds = 0;
            let mut most = 0;
            while rounds < 200 || swaps.load(Ordering::Relaxed) < 200 {
                rounds += 1;
                most = most.max(usage(&volume).unwrap_or(u64::MAX));
                if most >= LARGE || rounds == 1_000_000 {
                    break;
                }
                std::thread::yield_now();
            }
            stop.store(true, Ordering::Relaxed);
            attacker.join().expect("no panic");
            assert!(most < LARGE, "{most} bytes were counted, or it could not be counted at all");
            assert!(swaps.load(Ordering::Relaxed) >= 200, "the attacker did not get on");
        });
    }
}
