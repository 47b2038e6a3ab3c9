//! A repository in a local directory, laid out as restic lays it out.
//!
//! ```text
//! config   keys/<id>   data/<first two digits>/<id>   index/<id>   snapshots/<id>   locks/<id>
//! ```
//!
//! Directories are 0700 and files 0600. A write goes to a temporary name beside its place, is fsynced, renamed and the
//! directory fsynced. The directories are made once, by [`Backend::prepare`]: when one is missing later, the disk is
//! probably not mounted, and every answer is an error instead of "absent".

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Backend, BackendError, FileInfo, FileKind, uncached};
use crate::id::Id;

/// Where damaged files go.
pub(super) const ASIDE: &str = "damaged";
/// Who reads so much at once reads on, and does not come back.
const LARGE: usize = 256 << 10;
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Keeps the files of a repository in a directory.
#[derive(Debug, Clone)]
pub struct LocalBackend {
    root: PathBuf,
}

impl LocalBackend {
    /// Names the directory; nothing is touched before the first call.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The repository's directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.root
    }

    fn place(&self, kind: FileKind) -> PathBuf {
        match kind {
            FileKind::Config => self.root.clone(),
            FileKind::Key => self.root.join("keys"),
            FileKind::Pack => self.root.join("data"),
            FileKind::Index => self.root.join("index"),
            FileKind::Snapshot => self.root.join("snapshots"),
            FileKind::Lock => self.root.join("locks"),
        }
    }

    fn file(&self, kind: FileKind, id: Id) -> PathBuf {
        let name = id.to_string();
        match kind {
            FileKind::Config => self.root.join("config"),
            FileKind::Pack => self.root.join("data").join(&name[..2]).join(&name),
            _ => self.place(kind).join(&name),
        }
    }

    /// Where damaged files of a kind go.
    fn aside(&self, kind: FileKind) -> PathBuf {
        let place = self.place(kind);
        self.root.join(ASIDE).join(place.file_name().unwrap_or_default())
    }

    /// Opens a file for reading; "not found" is only passed on when the place it should be in is there.
    fn open(&self, kind: FileKind, id: Id) -> io::Result<File> {
        match File::open(self.file(kind, id)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(self.absent_or_unknown(kind, e)),
            other => other,
        }
    }

    fn absent_or_unknown(&self, kind: FileKind, error: io::Error) -> io::Error {
        // The config decides whether there is a repository at all: before `prepare` its directory need not exist.
        if kind == FileKind::Config {
            return match fs::symlink_metadata(&self.root) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => e,
                _ => error,
            };
        }
        match fs::symlink_metadata(self.place(kind)) {
            Ok(m) if m.is_dir() => error,
            _ => io::Error::other("the repository's directory is not there (is its disk mounted?)"),
        }
    }

    fn list_dir(dir: &Path, files: &mut Vec<FileInfo>) -> io::Result<()> {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let Some(id) = entry.file_name().to_str().and_then(|name| name.parse::<Id>().ok()) else { continue };
            match entry.metadata() {
                Ok(meta) => files.push(FileInfo { id, size: meta.len() }),
                // Removed since the directory was read: absent is the truth by now.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn write_file(&self, kind: FileKind, id: Id, data: &[u8]) -> io::Result<()> {
        let path = self.file(kind, id);
        let dir = path.parent().unwrap_or(&self.root);
        // restic and our listing both pass over names that are no ids.
        let temporary = dir.join(format!("{id}-tmp-{:016x}", rand::random::<u64>()));
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        let content = match kind {
            FileKind::Pack => uncached::write(&file, data),
            _ => file.write_all(data).and_then(|()| file.sync_all()),
        };
        let placed = content.and_then(|()| match kind {
            FileKind::Config => place_alone(&temporary, &path),
            _ => fs::rename(&temporary, &path),
        });
        let written = placed.and_then(|()| File::open(dir)?.sync_all());
        if written.is_err() {
            // Best effort: a leftover has no id as its name and so is never taken for a file of the repository.
            let _ = fs::remove_file(&temporary);
        }
        written
    }
}

/// Gives a file its name unless there is one already: of two that make a repository here at the same time one has to lose.
fn place_alone(temporary: &Path, path: &Path) -> io::Result<()> {
    match fs::hard_link(temporary, path) {
        Ok(()) => fs::remove_file(temporary),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Err(e),
        // A file system without links.
        Err(_) => fs::rename(temporary, path),
    }
}

/// Removes a directory that is empty; one that is not, the root of a mount, or a link, is somebody else's and stays.
fn remove_empty(directory: &Path) -> io::Result<()> {
    use io::ErrorKind::{DirectoryNotEmpty, NotADirectory, ResourceBusy};
    match fs::remove_dir(directory) {
        Err(e) if [DirectoryNotEmpty, NotADirectory, ResourceBusy].contains(&e.kind()) => Ok(()),
        other => absent_is_fine(other),
    }
}

/// The directories in one; none when it is not there.
fn directories_in(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut directories = Vec::new();
    let entries = match fs::read_dir(directory) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(directories),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            directories.push(entry.path());
        }
    }
    Ok(directories)
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn wrap(doing: &'static str, kind: FileKind, id: Option<Id>) -> impl FnOnce(io::Error) -> BackendError {
    move |source| BackendError { doing, kind, id, source }
}

impl Backend for LocalBackend {
    fn prepare(&self) -> Result<(), BackendError> {
        let make = |dir: &Path| DirBuilder::new().recursive(true).mode(0o700).create(dir);
        let run = || -> io::Result<()> {
            make(&self.root)?;
            for kind in FileKind::ALL {
                make(&self.place(kind))?;
            }
            for n in 0..=255_u8 {
                make(&self.root.join("data").join(format!("{n:02x}")))?;
            }
            File::open(self.root.join("data"))?.sync_all()?;
            File::open(&self.root)?.sync_all()?;
            if let Some(parent) = self.root.parent().filter(|p| !p.as_os_str().is_empty()) {
                File::open(parent)?.sync_all()?;
            }
            Ok(())
        };
        run().map_err(wrap("prepare", FileKind::Config, None))
    }

    fn list(&self, kind: FileKind) -> Result<Vec<FileInfo>, BackendError> {
        let mut files = Vec::new();
        let run = |files: &mut Vec<FileInfo>| -> io::Result<()> {
            match kind {
                FileKind::Config => {
                    match self.size(kind, FileKind::CONFIG_ID) {
                        Ok(Some(size)) => files.push(FileInfo { id: FileKind::CONFIG_ID, size }),
                        Ok(None) => {}
                        Err(e) => return Err(e.source),
                    }
                    Ok(())
                }
                FileKind::Pack => {
                    for entry in fs::read_dir(self.place(kind))? {
                        let entry = entry?;
                        if entry.file_type()?.is_dir() {
                            let before = files.len();
                            Self::list_dir(&entry.path(), files)?;
                            // What lies in another directory than its name says is found by nobody who looks for it.
                            let (name, all) = (entry.file_name(), files.split_off(before));
                            let is_found = |file: &FileInfo| name.as_bytes() == &file.id.to_string().as_bytes()[..2];
                            files.extend(all.into_iter().filter(is_found));
                        }
                    }
                    Ok(())
                }
                _ => Self::list_dir(&self.place(kind), files),
            }
        };
        // A missing directory is no empty listing: the prepared places are always there, so "not found" is "unknown".
        run(&mut files)
            .map_err(|e| match e.kind() {
                io::ErrorKind::NotFound => io::Error::other(format!("a directory of the repository is missing: {e}")),
                _ => e,
            })
            .map_err(wrap("list", kind, None))?;
        Ok(files)
    }

    fn read(&self, kind: FileKind, id: Id) -> Result<Vec<u8>, BackendError> {
        let run = || -> io::Result<Vec<u8>> {
            let mut file = self.open(kind, id)?;
            let size = usize::try_from(file.metadata()?.len()).unwrap_or(0);
            if kind == FileKind::Pack {
                return uncached::read(&file, 0, size);
            }
            let mut data = Vec::with_capacity(size);
            file.read_to_end(&mut data)?;
            Ok(data)
        };
        run().map_err(wrap("read", kind, Some(id)))
    }

    fn read_range(&self, kind: FileKind, id: Id, offset: u64, len: usize) -> Result<Vec<u8>, BackendError> {
        let run = || -> io::Result<Vec<u8>> {
            let file = self.open(kind, id)?;
            if len >= LARGE {
                return uncached::read(&file, offset, len);
            }
            let mut data = vec![0; len];
            file.read_exact_at(&mut data, offset)?;
            Ok(data)
        };
        run().map_err(wrap("read", kind, Some(id)))
    }

    fn write(&self, kind: FileKind, id: Id, data: &[u8]) -> Result<(), BackendError> {
        self.write_file(kind, id, data)
            .map_err(|e| match e.kind() {
                // A missing directory: see the module's documentation.
                io::ErrorKind::NotFound => io::Error::other(format!("a directory of the repository is missing: {e}")),
                _ => e,
            })
            .map_err(wrap("write", kind, Some(id)))
    }

    fn remove(&self, kind: FileKind, id: Id) -> Result<(), BackendError> {
        let path = self.file(kind, id);
        let run = || match fs::remove_file(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => match self.absent_or_unknown(kind, e) {
                e if e.kind() == io::ErrorKind::NotFound => Ok(()),
                e => Err(e),
            },
            other => other.and_then(|()| File::open(path.parent().unwrap_or(&self.root))?.sync_all()),
        };
        run().map_err(wrap("remove", kind, Some(id)))
    }

    fn size(&self, kind: FileKind, id: Id) -> Result<Option<u64>, BackendError> {
        match fs::metadata(self.file(kind, id)) {
            Ok(meta) => Ok(Some(meta.len())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => match self.absent_or_unknown(kind, e) {
                e if e.kind() == io::ErrorKind::NotFound => Ok(None),
                e => Err(wrap("stat", kind, Some(id))(e)),
            },
            Err(e) => Err(wrap("stat", kind, Some(id))(e)),
        }
    }

    fn remove_leftovers(&self) -> Result<u64, BackendError> {
        let mut places: Vec<PathBuf> = (0..=255_u8).map(|n| self.root.join("data").join(format!("{n:02x}"))).collect();
        places.extend([FileKind::Key, FileKind::Index, FileKind::Snapshot, FileKind::Lock].map(|k| self.place(k)));
        let mut removed = 0;
        let mut run = || -> io::Result<()> {
            for place in &places {
                for entry in fs::read_dir(place)? {
                    let entry = entry?;
                    let ours = entry.file_name().to_str().is_some_and(|name| name.contains("-tmp-"));
                    // A lock may be on its way this moment, exclusive lock or not; nothing takes a day to write.
                    let old =
                        |m: fs::Metadata| m.modified().ok().and_then(|t| t.elapsed().ok()).is_some_and(|t| t > DAY);
                    if ours && entry.metadata().is_ok_and(old) {
                        fs::remove_file(entry.path())?;
                        removed += 1;
                    }
                }
            }
            Ok(())
        };
        run().map_err(wrap("clean up", FileKind::Config, None))?;
        Ok(removed)
    }

    fn remove_unfinished(&self, kind: FileKind) -> Result<(), BackendError> {
        let run = || -> io::Result<()> {
            let mut places = vec![self.place(kind)];
            if kind == FileKind::Pack {
                places = directories_in(&places[0])?;
            }
            for place in places {
                let mut removed = false;
                for entry in fs::read_dir(&place)? {
                    let entry = entry?;
                    if entry.file_name().to_str().is_some_and(|name| name.contains("-tmp-")) {
                        absent_is_fine(fs::remove_file(entry.path()))?;
                        removed = true;
                    }
                }
                if removed {
                    File::open(&place)?.sync_all()?;
                }
            }
            Ok(())
        };
        run().map_err(wrap("remove unfinished", kind, None))
    }

    fn remove_place(&self) -> Result<(), BackendError> {
        let run = || -> io::Result<()> {
            // Without a config there may be somebody else's place by now.
            if self.file(FileKind::Config, FileKind::CONFIG_ID).try_exists()? {
                absent_is_fine(fs::remove_dir_all(self.root.join(ASIDE)))?;
                let data = self.place(FileKind::Pack);
                for place in directories_in(&data)? {
                    remove_empty(&place)?;
                }
                remove_empty(&data)?;
                for kind in [FileKind::Key, FileKind::Index, FileKind::Snapshot, FileKind::Lock] {
                    remove_empty(&self.place(kind))?;
                }
            }
            remove_empty(&self.root)?;
            match self.root.parent().filter(|p| !p.as_os_str().is_empty()) {
                Some(parent) => absent_is_fine(File::open(parent).and_then(|parent| parent.sync_all())),
                None => Ok(()),
            }
        };
        run().map_err(wrap("remove the place of", FileKind::Config, None))
    }

    fn set_aside(&self, kind: FileKind, id: Id) -> Result<(), BackendError> {
        let run = || -> io::Result<()> {
            let from = self.file(kind, id);
            match fs::symlink_metadata(&from) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    let e = self.absent_or_unknown(kind, e);
                    return if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) };
                }
                Ok(_) => {}
                Err(e) => return Err(e),
            }
            let aside = self.aside(kind);
            for dir in [&self.root.join(ASIDE), &aside] {
                match DirBuilder::new().mode(0o700).create(dir) {
                    Ok(()) => File::open(dir.parent().unwrap_or(&self.root))?.sync_all()?,
                    Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                    Err(e) => return Err(e),
                }
            }
            // A rename needs no read, so that it works where the medium is failing.
            fs::rename(&from, aside.join(id.to_string()))?;
            File::open(&aside)?.sync_all()?;
            File::open(from.parent().unwrap_or(&self.root))?.sync_all()
        };
        run().map_err(wrap("set aside", kind, Some(id)))
    }

    fn list_aside(&self, kind: FileKind) -> Result<Vec<FileInfo>, BackendError> {
        let mut files = Vec::new();
        match Self::list_dir(&self.aside(kind), &mut files) {
            // It is made for the first one; that the repository is there is seen by what is always there.
            Err(e) if e.kind() == io::ErrorKind::NotFound => match self.absent_or_unknown(kind, e) {
                e if e.kind() == io::ErrorKind::NotFound => Ok(files),
                e => Err(e),
            },
            other => other.map(|()| files),
        }
        .map_err(wrap("list what was set aside of", kind, None))
    }

    fn drop_caches(&self, kind: FileKind, id: Id) -> Result<(), BackendError> {
        let run = || -> io::Result<()> {
            let file = self.open(kind, id)?;
            // Only clean pages are dropped; files of a repository were fsynced when they were written.
            match rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed) {
                Ok(()) | Err(rustix::io::Errno::NOSYS | rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => {
                    Ok(())
                }
                Err(e) => Err(e.into()),
            }
        };
        run().map_err(wrap("stat", kind, Some(id)))
    }
}
