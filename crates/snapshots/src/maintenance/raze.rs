//! Taking a whole repository away: the end of a tenant.
//!
//! The files in `keys/` go first. Each is a copy of the master key, closed with a password, and every blob is encrypted with a
//! key that only they hold: without them nobody reads anything in this place again, not even with the password. The rest is
//! space. The config goes last, and can be left for a time of its own ([`Raze::AllButConfig`]), so that whoever finds a config finds a repository that was
//! not taken away to the end.
//!
//! Nothing is opened: it works without a password, which is destroyed before. What is taken away is therefore told by what was
//! [`Seen`] while the password still opened it, and that is proven again and again while it goes: a disk may be exchanged at any
//! moment, and somebody else may have begun to use what was the tenant's.

use std::collections::BTreeSet;

use perennial_core::progress::Progress;

use crate::backend::{Backend, FileInfo, FileKind};
use crate::error::{Error, Result};
use crate::id::Id;
use crate::lock::{LockGuard, LockMode};
use crate::repository::Repository;

/// What of a repository is taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Raze {
    /// The copies of the master key.
    Keys,
    /// Everything but the config, the keys first.
    AllButConfig,
    /// Everything, and the place: the config at the end.
    All,
}

impl Raze {
    /// What is listed and removed. What says where things are goes before what it says it of: a raze that ends early leaves no
    /// snapshot that looks whole.
    const fn kinds(self) -> &'static [FileKind] {
        match self {
            Self::Keys => &[FileKind::Key],
            Self::AllButConfig | Self::All => {
                &[FileKind::Key, FileKind::Snapshot, FileKind::Index, FileKind::Pack, FileKind::Lock]
            }
        }
    }
}

/// Turns until what comes up again and again counts as a store that does not do what it says.
const MOST_TURNS: u32 = 8;

/// What a raze took away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Razed {
    /// Files.
    pub files: u64,
    /// Bytes in them.
    pub bytes: u64,
}

/// What was in a place when it was looked at. Nothing is taken away from a place where it is something else by then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The hash of the config as it is stored: it is sealed with a nonce of its own when the repository is made, and never
    /// written again.
    pub config: Id,
    /// The key files: another one is a password that somebody made since.
    pub keys: BTreeSet<Id>,
    /// The snapshot files: another one is somebody's who goes on with the repository.
    pub snapshots: BTreeSet<Id>,
}

impl Seen {
    /// Looks; `None` when the config is proven absent.
    ///
    /// # Errors
    /// Store errors: nobody knows.
    pub fn of(backend: &dyn Backend) -> Result<Option<Self>> {
        let Some(config) = config_of(backend)? else { return Ok(None) };
        let listed = |kind| Ok::<_, Error>(backend.list(kind)?.into_iter().map(|file| file.id).collect());
        Ok(Some(Self { config, keys: listed(FileKind::Key)?, snapshots: listed(FileKind::Snapshot)? }))
    }

    /// Proves that it is still this repository.
    fn still(&self, backend: &dyn Backend) -> Result<()> {
        match config_of(backend)? {
            None => Err(Error::NoRepository),
            Some(config) if config == self.config => Ok(()),
            Some(_) => Err(Error::NotSeen { kind: FileKind::Config, id: FileKind::CONFIG_ID }),
        }
    }

    /// Lists files of the repository, and of no other: what has another name than any that was there is told, and nothing else
    /// has the names of these.
    fn list(&self, backend: &dyn Backend, kind: FileKind) -> Result<Vec<FileInfo>> {
        let files = backend.list(kind)?;
        self.still(backend)?;
        let seen = match kind {
            FileKind::Key => &self.keys,
            FileKind::Snapshot => &self.snapshots,
            _ => return Ok(files),
        };
        match files.iter().find(|file| !seen.contains(&file.id)) {
            Some(file) => Err(Error::NotSeen { kind, id: file.id }),
            None => Ok(files),
        }
    }
}

fn config_of(backend: &dyn Backend) -> Result<Option<Id>> {
    match backend.read(FileKind::Config, FileKind::CONFIG_ID) {
        Ok(config) => Ok(Some(Id::of(&config))),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Takes a repository, or a part of it, away. Safe to repeat, and to be done by two at once; it takes no lock.
///
/// Every removal is of a file that was listed before it was proven once more whose it is. Files are named by what is in them, so
/// that a repository which takes the place in between has none of these.
///
/// # Errors
/// [`Error::NoRepository`] when it is not there (any more); [`Error::NotSeen`] when something is there that was not; then what was
/// listed before is gone, and nothing else was touched; [`Error::Unsteady`] for what stays listed however often it is removed;
/// [`Error::Cancelled`]; store errors. The same call again goes on.
pub fn raze(backend: &dyn Backend, seen: &Seen, what: Raze, progress: &Progress) -> Result<Razed> {
    let mut razed = Razed::default();
    progress.check().map_err(|_| Error::Cancelled)?;
    seen.still(backend)?;
    // A place that went when this was interrupted, or that a restore left out, lists as unknown: it is empty.
    backend.prepare()?;
    // Before anything goes: whoever uses it has all of it.
    for kind in [FileKind::Key, FileKind::Snapshot] {
        seen.list(backend, kind)?;
    }
    // Somebody may have been writing while it was listed, and a listing may leave something out: two turns that find nothing are
    // the end.
    let (mut clean, mut turns) = (0, 0);
    while clean < 2 {
        turns += 1;
        let before = razed.files;
        for kind in what.kinds() {
            let files = seen.list(backend, *kind)?;
            backend.remove_unfinished(*kind)?;
            progress.expect_more(files.iter().map(|file| file.size).sum());
            for file in files {
                if turns > MOST_TURNS {
                    return Err(Error::Unsteady {
                        kind: *kind,
                        id: file.id,
                        how: "is still listed after it was removed",
                    });
                }
                progress.check().map_err(|_| Error::Cancelled)?;
                backend.remove(*kind, file.id)?;
                progress.add_bytes(file.size);
                progress.add_files(1);
                razed.files += 1;
                razed.bytes += file.size;
            }
        }
        clean = if razed.files == before { clean + 1 } else { 0 };
    }
    // Also what no listing showed: each of them opens everything.
    seen.still(backend)?;
    for key in &seen.keys {
        backend.remove(FileKind::Key, *key)?;
    }
    seen.still(backend)?;
    if what == Raze::All {
        // Where the files were goes while the config still proves whose it is; then there is nothing but an empty place.
        backend.remove_place()?;
        seen.still(backend)?;
        backend.remove(FileKind::Config, FileKind::CONFIG_ID)?;
        backend.remove_place()?;
    }
    Ok(razed)
}

impl Repository {
    /// Proves that nobody works on the repository at this moment.
    ///
    /// # Errors
    /// [`Error::Locked`] while somebody does; store errors.
    pub fn ensure_idle(&self) -> Result<()> {
        LockGuard::acquire(&self.inner, LockMode::Exclusive).map(drop)
    }
}

#[cfg(test)]
mod tests;
