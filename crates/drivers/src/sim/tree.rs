//! The merged view of an overlay: a directory of changes above a directory of the image.
//!
//! Deletions are what the kernel's overlay file system makes: a character device 0/0 hides a name, and the extended
//! attribute `trusted.overlay.opaque` hides everything below a directory. Without a lower directory it is a plain tree.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps};

const OPAQUE: &str = "trusted.overlay.opaque";

/// Two directories, seen as one.
pub(super) struct View {
    pub upper: PathBuf,
    pub lower: Option<PathBuf>,
}

/// What both sides have at one name.
struct Place {
    /// In the changes; a whiteout is none.
    upper: Option<(PathBuf, Metadata)>,
    /// In the image, unless something above hides it.
    lower: Option<PathBuf>,
    /// Whether the changes hide exactly this name.
    whiteout: bool,
}

/// The metadata of `path` itself; `None` when there is nothing.
pub(super) fn look(path: &Path) -> io::Result<Option<Metadata>> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(e),
    }
}

fn is_whiteout(metadata: &Metadata) -> bool {
    metadata.file_type().is_char_device() && metadata.rdev() == 0
}

fn is_opaque(directory: &Path) -> bool {
    matches!(xattr::get(directory, OPAQUE), Ok(Some(value)) if value == b"y")
}

/// Removes whatever is at `path`, without following links.
pub(super) fn remove_any(path: &Path) -> io::Result<()> {
    match look(path)? {
        None => Ok(()),
        Some(m) if m.is_dir() => fs::remove_dir_all(path),
        Some(_) => fs::remove_file(path),
    }
}

/// What a tree takes up on the disk.
pub(super) fn bytes(directory: &Path) -> io::Result<u64> {
    /// Unit of `st_blocks`.
    const BLOCK: u64 = 512;
    let mut total = 0;
    for entry in fs::read_dir(directory)? {
        let (path, metadata) = entry.and_then(|e| Ok((e.path(), e.metadata()?)))?;
        total += metadata.blocks() * BLOCK;
        if metadata.is_dir() {
            total += bytes(&path)?;
        }
    }
    Ok(total)
}

impl View {
    /// Walks to `rel`, which has neither a leading slash nor `..`.
    fn place(&self, rel: &str) -> io::Result<Place> {
        let mut upper = self.upper.clone();
        let mut lower = self.lower.clone().filter(|_| !is_opaque(&self.upper));
        let mut in_upper = true;
        let mut parts = rel.split('/').filter(|p| !p.is_empty()).peekable();
        if parts.peek().is_none() {
            let metadata = look(&upper)?;
            return Ok(Place { upper: metadata.map(|m| (upper, m)), lower, whiteout: false });
        }
        while let Some(part) = parts.next() {
            let last = parts.peek().is_none();
            upper.push(part);
            lower = match lower {
                Some(directory) => {
                    let path = directory.join(part);
                    let kept = look(&path)?.is_some_and(|m| last || m.is_dir());
                    kept.then_some(path)
                }
                None => None,
            };
            let found = if in_upper { look(&upper)? } else { None };
            match found {
                None => in_upper = false,
                Some(m) if is_whiteout(&m) => {
                    return Ok(Place { upper: None, lower: lower.filter(|_| last), whiteout: true });
                }
                Some(m) if last => return Ok(Place { upper: Some((upper, m)), lower, whiteout: false }),
                Some(m) if m.is_dir() => lower = lower.filter(|_| !is_opaque(&upper)),
                Some(_) => return Ok(Place { upper: None, lower: None, whiteout: true }),
            }
        }
        Ok(Place { upper: None, lower, whiteout: false })
    }

    /// The content of a regular file; `None` when there is none.
    pub(super) fn read(&self, rel: &str) -> io::Result<Option<Vec<u8>>> {
        let place = self.place(rel)?;
        let (path, metadata) = match (place.upper, place.lower) {
            (Some(found), _) => found,
            (None, Some(path)) if !place.whiteout => match look(&path)? {
                Some(metadata) => (path, metadata),
                None => return Ok(None),
            },
            _ => return Ok(None),
        };
        if metadata.is_file() { fs::read(path).map(Some) } else { Ok(None) }
    }

    /// Makes the directory in the changes, copying up what the image has of it.
    pub(super) fn make_directory(&self, rel: &str) -> io::Result<()> {
        let mut done = String::new();
        for part in rel.split('/').filter(|p| !p.is_empty()) {
            done = if done.is_empty() { part.to_owned() } else { format!("{done}/{part}") };
            let place = self.place(&done)?;
            let path = self.upper.join(&done);
            match place.upper {
                Some((_, m)) if m.is_dir() => continue,
                Some(_) => return Err(io::Error::from(io::ErrorKind::NotADirectory)),
                None => {}
            }
            let below = match &place.lower {
                Some(lower) if !place.whiteout => look(lower)?,
                _ => None,
            };
            match below {
                Some(m) if !m.is_dir() => return Err(io::Error::from(io::ErrorKind::NotADirectory)),
                Some(m) => {
                    fs::create_dir(&path)?;
                    fs::set_permissions(&path, m.permissions())?;
                    std::os::unix::fs::chown(&path, Some(m.uid()), Some(m.gid()))?;
                }
                None => {
                    if place.whiteout {
                        fs::remove_file(&path)?;
                    }
                    fs::create_dir(&path)?;
                    if place.whiteout && place.lower.is_some() {
                        xattr::set(&path, OPAQUE, b"y")?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Writes a regular file; directories above it are made.
    pub(super) fn write(&self, rel: &str, bytes: &[u8]) -> io::Result<()> {
        if let Some((parent, _)) = rel.rsplit_once('/') {
            self.make_directory(parent)?;
        }
        let place = self.place(rel)?;
        let path = self.upper.join(rel);
        match place.upper {
            Some((_, m)) if m.is_file() => return fs::write(path, bytes),
            Some((_, m)) if m.is_dir() => return Err(io::Error::from(io::ErrorKind::IsADirectory)),
            // A link a pod made may point anywhere; the simulator never follows one.
            Some(_) => fs::remove_file(&path)?,
            None if place.whiteout => fs::remove_file(&path)?,
            None => {}
        }
        let below = match &place.lower {
            Some(lower) if !place.whiteout => look(lower)?,
            _ => None,
        };
        fs::write(&path, bytes)?;
        if let Some(m) = below.filter(Metadata::is_file) {
            fs::set_permissions(&path, m.permissions())?;
            std::os::unix::fs::chown(&path, Some(m.uid()), Some(m.gid()))?;
        }
        Ok(())
    }

    /// Removes a file or a whole directory; tells whether there was one.
    pub(super) fn remove(&self, rel: &str) -> io::Result<bool> {
        let place = self.place(rel)?;
        if place.whiteout {
            return Ok(false);
        }
        let there = place.upper.is_some() || place.lower.is_some();
        if let Some((path, _)) = &place.upper {
            remove_any(path)?;
        }
        if place.lower.is_some() {
            if let Some((parent, _)) = rel.rsplit_once('/') {
                self.make_directory(parent)?;
            }
            rustix::fs::mknodat(CWD, self.upper.join(rel), FileType::CharacterDevice, Mode::empty(), 0)?;
        }
        Ok(there)
    }

    /// Adds every regular file to `out`, named `prefix` and its path; `hidden` names are left out with all they hold.
    pub(super) fn files(
        &self,
        prefix: &str,
        hidden: &dyn Fn(&str) -> bool,
        out: &mut BTreeMap<String, Vec<u8>>,
    ) -> io::Result<()> {
        let mut names = BTreeMap::new();
        let opaque = is_opaque(&self.upper);
        if let Some(lower) = self.lower.as_deref().filter(|l| !opaque && l.is_dir()) {
            for entry in fs::read_dir(lower)? {
                names.insert(entry?.file_name(), ());
            }
        }
        if self.upper.is_dir() {
            for entry in fs::read_dir(&self.upper)? {
                names.insert(entry?.file_name(), ());
            }
        }
        for name in names.into_keys() {
            let Some(name) = name.to_str() else { continue };
            let path = format!("{}/{name}", prefix.trim_end_matches('/'));
            if hidden(&path) {
                continue;
            }
            let place = self.place(name)?;
            if place.whiteout {
                continue;
            }
            let shown = match (&place.upper, &place.lower) {
                (Some((_, m)), _) => Some(m.clone()),
                (None, Some(lower)) => look(lower)?,
                (None, None) => None,
            };
            match shown {
                Some(m) if m.is_dir() => {
                    let below = Self { upper: self.upper.join(name), lower: place.lower };
                    below.files(&path, hidden, out)?;
                }
                Some(m) if m.is_file() => {
                    if let Some(bytes) = self.read(name)? {
                        out.insert(path, bytes);
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Sets the modification time of `path` itself.
pub(super) fn set_mtime(path: &Path, seconds: i64, nanoseconds: i64) -> io::Result<()> {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(())
}

/// Copies the content of a directory into another, with owners, modes and times.
pub(super) fn copy_content(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let metadata = fs::symlink_metadata(&source)?;
        if metadata.is_dir() {
            fs::create_dir(&target)?;
            copy_content(&source, &target)?;
        } else if metadata.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(&source)?, &target)?;
        } else {
            fs::copy(&source, &target)?;
        }
        like(&metadata, &target)?;
    }
    Ok(())
}

/// Copies the changes of an overlay, with what they delete; `to` is there.
pub(super) fn copy_layer(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let metadata = fs::symlink_metadata(&source)?;
        if is_whiteout(&metadata) {
            rustix::fs::mknodat(CWD, &target, FileType::CharacterDevice, Mode::empty(), 0)?;
        } else if metadata.is_dir() {
            fs::create_dir(&target)?;
            copy_layer(&source, &target)?;
        } else if metadata.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(&source)?, &target)?;
        } else {
            fs::copy(&source, &target)?;
        }
        if !is_whiteout(&metadata) {
            like(&metadata, &target)?;
        }
    }
    if is_opaque(from) {
        xattr::set(to, OPAQUE, b"y")?;
    }
    like(&fs::symlink_metadata(from)?, to)
}

/// Gives `path` the owner, mode and time of something else.
pub(super) fn like(metadata: &Metadata, path: &Path) -> io::Result<()> {
    std::os::unix::fs::lchown(path, Some(metadata.uid()), Some(metadata.gid()))?;
    if !metadata.is_symlink() {
        fs::set_permissions(path, fs::Permissions::from_mode(metadata.mode() & 0o7777))?;
    }
    set_mtime(path, metadata.mtime(), metadata.mtime_nsec())
}
