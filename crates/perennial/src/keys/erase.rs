//! Destroying the keys of a tenant that is erased, so that a crash at any point leaves none that is used again.
//!
//! First `TENANT.erased` is made durable: from then on no key of that tenant is read, written, or made. Then every file that
//! holds one goes, those of changes and of writes that were interrupted with it. Nothing is written over the old content:
//! on copy-on-write file systems and on flash that reaches other blocks than those which held it. What protects
//! what a medium still remembers is the installation key, where there is one.
//!
//! A key is told by its prints, which were recorded when the erasure was asked for: the data directory may be another one than
//! that of the database (a restored one, one of another installation with a tenant of the same name), and a key that nobody
//! named is not destroyed.

use std::path::{Path, PathBuf};

use perennial_core::fault::{Moment, NoTap, Tap, Verdict};
use perennial_core::spec::TenantId;

use sha2::{Digest as _, Sha256};

use super::{KeyError, Keyring, temporary, write_secret};

/// The names of the fault points around every change.
const WRITE_SITE: &str = "keys.write";
const REMOVE_SITE: &str = "keys.remove";
/// What the mark says to whoever finds it, and before how many key files there were when it was made.
const MARK: &str = "this tenant was erased: its keys were destroyed, and none is made again";
const HAD: &str = "key files: ";

/// What became of the keys in one directory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Destroyed {
    /// Key files that were here when the mark was made.
    pub had: u64,
    /// Files that went now.
    pub gone: u64,
}

impl Keyring {
    /// Where it is written that a tenant was erased.
    pub(crate) fn erased_path(&self, tenant: &TenantId) -> PathBuf {
        self.directory.join(format!("{tenant}.erased"))
    }

    /// Whether a tenant was erased here. Blocks.
    ///
    /// # Errors
    /// [`KeyError::Io`]: nobody knows.
    pub fn is_erased(&self, tenant: &TenantId) -> Result<bool, KeyError> {
        let path = self.erased_path(tenant);
        path.try_exists().map_err(|source| KeyError::Io { doing: "look for", path, source })
    }

    /// What a tenant's keys are told by: a hash of each file, and of the password in it where that can be read. A password has
    /// 256 bits of randomness, so that nobody finds it from its hash. Blocks.
    ///
    /// # Errors
    /// [`KeyError::Io`]: nobody knows.
    pub fn prints(&self, tenant: &TenantId) -> Result<Vec<String>, KeyError> {
        let mut all = Vec::new();
        for path in self.files_of(tenant) {
            all.extend(self.prints_of(&path, tenant)?);
        }
        Ok(all)
    }

    fn files_of(&self, tenant: &TenantId) -> [PathBuf; 3] {
        [self.path(tenant), self.next_path(tenant), self.old_path(tenant)]
    }

    /// Those of one file; none when it is not there, or holds nothing.
    fn prints_of(&self, path: &Path, tenant: &TenantId) -> Result<Vec<String>, KeyError> {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(KeyError::Io { doing: "read the key", path: path.to_owned(), source }),
        };
        if text.trim_ascii().is_empty() {
            return Ok(Vec::new());
        }
        let mut prints = vec![print("file", &text)];
        // One that is wrapped with a key which is not here has only the first.
        if let Ok(Some(found)) = self.read_file(path, tenant) {
            prints.push(print("password", found.password.reveal()));
        }
        Ok(prints)
    }

    /// Destroys every key of a tenant, and tells how many files went. Nothing is done when there is one that has none of the
    /// prints that are known. Safe to repeat. Blocks.
    ///
    /// # Errors
    /// [`KeyError::Unknown`] for a key that has none of the prints; [`KeyError::Io`]: the same call again goes on, and what could
    /// go is gone.
    pub fn erase(&self, tenant: &TenantId, known: &[String], tap: &dyn Tap) -> Result<Destroyed, KeyError> {
        let mut here = 0;
        for path in self.files_of(tenant) {
            let prints = self.prints_of(&path, tenant)?;
            here += u64::from(!prints.is_empty());
            if !prints.is_empty() && !prints.iter().any(|print| known.contains(print)) {
                return Err(KeyError::Unknown(path));
            }
        }
        let mark = self.erased_path(tenant);
        let had = match std::fs::read_to_string(&mark) {
            // Whoever made it may have died before it removed any.
            Ok(text) => text.lines().find_map(|line| line.strip_prefix(HAD)?.parse().ok()).unwrap_or(0),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let text = format!("{MARK}\n{HAD}{here}");
                tapped(tap, WRITE_SITE, &mark, || write_secret(&mark, text.as_bytes()))?;
                here
            }
            Err(source) => return Err(KeyError::Io { doing: "read", path: mark, source }),
        };
        let (mut gone, mut failed) = (0, None);
        for path in self.files_of(tenant) {
            let went = [remove(&path, tap), remove(&temporary(&path), tap)];
            gone += u64::from(matches!(went[0], Ok(true)));
            // One that cannot go keeps none of the others.
            failed = went.into_iter().fold(failed, |failed, one| failed.or(one.err()));
        }
        // Also when all were gone: whoever removed them may have died before the directory was durable.
        sync(&self.directory)?;
        failed.map_or(Ok(Destroyed { had, gone }), Err)
    }

    /// Removes the key that was written a moment ago, when the mark was made meanwhile. Blocks.
    ///
    /// # Errors
    /// [`KeyError::Io`].
    pub(crate) fn take_back(&self, tenant: &TenantId) -> Result<(), KeyError> {
        remove(&self.path(tenant), &NoTap)?;
        sync(&self.directory)
    }
}

fn print(of: &str, bytes: &[u8]) -> String {
    let mut hash = Sha256::new();
    hash.update(b"perennial key ");
    hash.update(of);
    hash.update(b"\n");
    hash.update(bytes);
    hex::encode(&hash.finalize()[..16])
}

fn remove(path: &Path, tap: &dyn Tap) -> Result<bool, KeyError> {
    match path.symlink_metadata() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        // What cannot be looked at is not taken for absent.
        _ => {}
    }
    tapped(tap, REMOVE_SITE, path, || match std::fs::remove_file(path) {
        // Somebody else was faster.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        other => other.map(|()| true),
    })
}

fn sync(directory: &Path) -> Result<(), KeyError> {
    std::fs::File::open(directory).and_then(|directory| directory.sync_all()).map_err(|source| KeyError::Io {
        doing: "make durable",
        path: directory.to_owned(),
        source,
    })
}

fn tapped<T>(
    tap: &dyn Tap,
    site: &str,
    path: &Path,
    change: impl FnOnce() -> std::io::Result<T>,
) -> Result<T, KeyError> {
    let failed = |source| KeyError::Io { doing: "change", path: path.to_owned(), source };
    let injected = || failed(std::io::Error::other("injected fault"));
    if tap.at(site, Moment::Before) != Verdict::Go {
        return Err(injected());
    }
    let answer = change();
    if tap.at(site, Moment::After) != Verdict::Go {
        return Err(injected());
    }
    answer.map_err(failed)
}
