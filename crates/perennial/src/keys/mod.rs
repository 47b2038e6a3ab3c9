//! The keys of the tenants' repositories: a file each, beside the data directory's other secrets.
//!
//! A file holds the password of the tenant's repository, as it is, or wrapped with the installation key when the
//! configuration names one (`[keys]`): then a copy of the data directory opens nothing.
//!
//! | file in `keys/` | what it says |
//! |---|---|
//! | `TENANT` | the password in use |
//! | `TENANT.next`, `TENANT.old` | a change of the password is on its way, see [`change`] |
//! | `TENANT.erased` | the tenant was erased: there is no key, and none is made again, see [`erase`] |
//! | `TENANT.made` | the repository was made once: none is begun anew in its place |
//!
//! `replica-keys/` holds the same for the replicas, whose keys are others.

pub mod change;
pub mod erase;
mod installation;

use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use perennial_core::spec::TenantId;
use perennial_snapshots::Password;

pub use installation::{InstallationKey, Unwrapped};

/// Why a key cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file system refused.
    #[error("{doing} {}: {source}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// With which file.
        path: PathBuf,
        /// The answer.
        source: std::io::Error,
    },
    /// Nothing is in it.
    #[error("the key file {} is empty", .0.display())]
    Empty(PathBuf),
    /// It is wrapped with an installation key that is not here.
    #[error("the key file {} is wrapped with the installation key {wrapped_with}, and {have}", path.display())]
    OtherKey {
        /// The file.
        path: PathBuf,
        /// The fingerprint of the key it takes.
        wrapped_with: String,
        /// What there is instead.
        have: String,
    },
    /// It is no key, or somebody changed it.
    #[error("the key file {} is damaged, or belongs to another tenant", .0.display())]
    Damaged(PathBuf),
    /// It was to be destroyed, and is not the one that was named.
    #[error("the key file {} is not the one that was there when the erasure was asked for", .0.display())]
    Unknown(PathBuf),
}

impl KeyError {
    /// How to go on.
    #[must_use]
    pub const fn hint(&self) -> &'static str {
        match self {
            Self::Io { .. } => "mend the data directory, or the permissions in it",
            Self::Unknown(_) => {
                "it may belong to another installation's tenant of this name: is this the right database? When nobody needs \
                 it, remove it by hand"
            }
            Self::Empty(_) | Self::Damaged(_) => "bring it back from a copy or from the recovery kit",
            Self::OtherKey { .. } => {
                "name that installation key in [keys]; when it is lost, the passwords in the recovery kit open the \
                 repositories"
            }
        }
    }
}

/// Where the keys of replicas are, in the data directory.
pub const REPLICA_KEYS: &str = "replica-keys";

/// The keys of an installation; cheap to clone.
#[derive(Debug, Clone)]
pub struct Keyring {
    directory: PathBuf,
    wrapping: Option<Arc<InstallationKey>>,
    previous: Option<Arc<InstallationKey>>,
}

impl Keyring {
    /// The keys of a data directory; `wrapping` is what they are kept wrapped with, `previous` what they may still be.
    #[must_use]
    pub fn new(data_dir: &Path, wrapping: Option<InstallationKey>, previous: Option<InstallationKey>) -> Self {
        let directory = data_dir.join("keys");
        Self { directory, wrapping: wrapping.map(Arc::new), previous: previous.map(Arc::new) }
    }

    /// The keys of replicas, kept like those of the repositories, in `replica-keys/` beside them.
    #[must_use]
    pub fn of_replicas(&self) -> Self {
        let directory = self.directory.with_file_name(REPLICA_KEYS);
        Self { directory, ..self.clone() }
    }

    /// Has the keys of repositories and those of replicas change places, all at once. Nobody else may use them meanwhile.
    /// Blocks.
    ///
    /// # Errors
    /// [`KeyError::Io`]: then nothing was changed, unless it is the disk that failed.
    pub fn exchange_with_replicas(&self) -> Result<(), KeyError> {
        let other = self.of_replicas().directory;
        let failed = |source: std::io::Error| KeyError::Io { doing: "exchange", path: other.clone(), source };
        rustix::fs::renameat_with(
            rustix::fs::CWD,
            &self.directory,
            rustix::fs::CWD,
            &other,
            rustix::fs::RenameFlags::EXCHANGE,
        )
        .map_err(|errno| failed(errno.into()))?;
        let parent = self.directory.parent().unwrap_or_else(|| Path::new("."));
        std::fs::File::open(parent).and_then(|parent| parent.sync_all()).map_err(failed)
    }

    /// Where the password of a tenant's repository is.
    #[must_use]
    pub fn path(&self, tenant: &TenantId) -> PathBuf {
        self.directory.join(tenant.as_str())
    }

    /// What says that a tenant's repository was made: beside its key, because the repository's disk may be another one.
    pub(crate) fn made_path(&self, tenant: &TenantId) -> PathBuf {
        self.directory.join(format!("{tenant}.made"))
    }

    /// Whether a tenant's repository was made, and is not known to be gone. Blocks.
    ///
    /// # Errors
    /// [`KeyError::Io`]: nobody knows.
    pub fn is_made(&self, tenant: &TenantId) -> Result<bool, KeyError> {
        let path = self.made_path(tenant);
        path.try_exists().map_err(|source| KeyError::Io { doing: "look for", path, source })
    }

    /// Remembers that the tenant's repository was made. Blocks.
    ///
    /// # Errors
    /// [`KeyError::Io`].
    pub(crate) fn remember_made(&self, tenant: &TenantId) -> Result<(), KeyError> {
        if self.is_made(tenant)? {
            return Ok(());
        }
        let path = self.made_path(tenant);
        write_secret(&path, b"the repository of this tenant was made").map_err(|source| KeyError::Io {
            doing: "write",
            path,
            source,
        })
    }

    /// The password of a tenant's repository; `None` when it has none yet. Blocks.
    ///
    /// # Errors
    /// [`KeyError`]; what cannot be read is never taken for absent.
    pub fn read(&self, tenant: &TenantId) -> Result<Option<Password>, KeyError> {
        Ok(self.read_file(&self.path(tenant), tenant)?.map(|found| found.password))
    }

    /// Makes a password durable. Blocks.
    ///
    /// # Errors
    /// [`KeyError::Io`].
    pub fn write(&self, tenant: &TenantId, password: &Password) -> Result<(), KeyError> {
        self.write_file(&self.path(tenant), tenant, password)
    }

    /// The passwords of every tenant's repository, by tenant. Blocks.
    ///
    /// # Errors
    /// [`KeyError`]; no key at all is no error.
    pub fn all(&self) -> Result<Vec<(TenantId, Password)>, KeyError> {
        let mut all = Vec::new();
        for tenant in self.tenants()? {
            // One that went since the listing.
            if let Some(password) = self.read(&tenant)? {
                all.push((tenant, password));
            }
        }
        Ok(all)
    }

    /// Has every key wrapped with the present installation key, and tells how many were not. Blocks.
    ///
    /// # Errors
    /// [`KeyError`] for the first that cannot be read or written; those before it are done, and it can be repeated.
    pub fn rewrap(&self) -> Result<usize, KeyError> {
        let mut changed = 0;
        for tenant in self.tenants()? {
            for path in [self.path(&tenant), self.next_path(&tenant), self.old_path(&tenant)] {
                self.remove_unfinished(&path)?;
                let Some(found) = self.read_file(&path, &tenant)? else { continue };
                if found.wrapped_with.as_deref() != self.wrapping.as_ref().map(|key| key.fingerprint()) {
                    self.write_file(&path, &tenant, &found.password)?;
                    changed += 1;
                }
            }
        }
        Ok(changed)
    }

    /// Removes what a write left that was interrupted: it may hold a password that is not wrapped.
    fn remove_unfinished(&self, path: &Path) -> Result<(), KeyError> {
        let path = temporary(path);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(KeyError::Io { doing: "remove", path, source })
            }
            _ => Ok(()),
        }
    }

    fn tenants(&self) -> Result<Vec<TenantId>, KeyError> {
        let failed = |source| KeyError::Io { doing: "list", path: self.directory.clone(), source };
        let entries = match std::fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut tenants = Vec::new();
        for entry in entries {
            // Other files lie beside the keys; their names are no tenant's.
            if let Some(tenant) =
                entry.map_err(failed)?.file_name().to_str().and_then(|name| TenantId::parse(name).ok())
            {
                tenants.push(tenant);
            }
        }
        tenants.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        Ok(tenants)
    }

    fn next_path(&self, tenant: &TenantId) -> PathBuf {
        self.directory.join(format!("{tenant}.next"))
    }

    fn old_path(&self, tenant: &TenantId) -> PathBuf {
        self.directory.join(format!("{tenant}.old"))
    }

    fn read_file(&self, path: &Path, tenant: &TenantId) -> Result<Option<Unwrapped>, KeyError> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(KeyError::Io { doing: "read the key", path: path.to_owned(), source }),
        };
        let text = text.trim();
        if text.is_empty() {
            return Err(KeyError::Empty(path.to_owned()));
        }
        let Some(wrapped_with) = installation::wrapped_with(text) else {
            return Ok(Some(Unwrapped { password: Password::new(text), wrapped_with: None }));
        };
        let known = self.wrapping.iter().chain(&self.previous).find(|key| key.fingerprint() == wrapped_with);
        let Some(key) = known else {
            let have = match &self.wrapping {
                Some(key) => format!("the configuration names {}", key.fingerprint()),
                None => "the configuration names none".to_owned(),
            };
            return Err(KeyError::OtherKey { path: path.to_owned(), wrapped_with: wrapped_with.to_owned(), have });
        };
        let password = key.unwrap(text, tenant).ok_or_else(|| KeyError::Damaged(path.to_owned()))?;
        Ok(Some(Unwrapped { password, wrapped_with: Some(wrapped_with.to_owned()) }))
    }

    fn write_file(&self, path: &Path, tenant: &TenantId, password: &Password) -> Result<(), KeyError> {
        let wrapped = match &self.wrapping {
            None => None,
            Some(key) => Some(key.wrap(password, tenant).ok_or_else(|| KeyError::Damaged(path.to_owned()))?),
        };
        let secret = wrapped.as_ref().map_or(password.reveal(), |text| text.as_bytes());
        write_secret(path, secret).map_err(|source| KeyError::Io {
            doing: "write the key",
            path: path.to_owned(),
            source,
        })
    }
}

/// Where a file is written before it takes its place.
fn temporary(path: &Path) -> PathBuf {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    temporary.into()
}

/// Writes a secret atomically and durably, readable by its owner only.
///
/// # Errors
/// Whatever the file system answers.
pub fn write_secret(path: &Path, secret: &[u8]) -> std::io::Result<()> {
    let directory = path.parent().unwrap_or_else(|| Path::new("."));
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let temporary = temporary(path);
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(secret)?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    std::fs::File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests;
