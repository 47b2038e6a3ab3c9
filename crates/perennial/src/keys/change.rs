//! Changing the password of a tenant's repository, so that a crash at any point leaves one that opens it.
//!
//! `TENANT.next` is written; the repository opens with it, too; `TENANT.old` keeps the present password; `next` becomes
//! the password in use; the repository no longer opens with the old one; `old` is deleted. The file in use opens the
//! repository at every moment, and whatever was interrupted is gone on with by the next change.

use std::path::Path;

use perennial_core::spec::TenantId;
use perennial_snapshots::{KeyCost, Password, Repository};

use super::{KeyError, Keyring};

/// Why a password was not changed; the one in use opens the repository all the same.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// A key file.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The repository.
    #[error("change the password of the repository")]
    Repository(#[from] perennial_snapshots::Error),
    /// The tenant has no key.
    #[error("tenant {0} has no repository yet")]
    NoKey(TenantId),
}

impl Keyring {
    /// Gives a repository a new password and takes the old one away. Nobody else may change keys meanwhile. Blocks.
    ///
    /// `open` opens the tenant's repository with a password.
    ///
    /// # Errors
    /// [`ChangeError`]; it can be repeated and goes on where it was.
    pub fn change(
        &self,
        tenant: &TenantId,
        cost: KeyCost,
        open: impl Fn(&Password) -> Result<Repository, perennial_snapshots::Error>,
    ) -> Result<(), ChangeError> {
        let (next_path, old_path) = (self.next_path(tenant), self.old_path(tenant));
        let present = self.read(tenant)?.ok_or_else(|| ChangeError::NoKey(tenant.clone()))?;
        let repository = open(&present)?;
        // An earlier change got as far as the new password being in use.
        if let Some(old) = self.read_file(&old_path, tenant)?
            && old.password.reveal() != present.reveal()
        {
            repository.remove_password(&old.password, &present)?;
            remove(&next_path)?;
            return Ok(remove(&old_path)?);
        }
        let next = match self.read_file(&next_path, tenant)? {
            Some(begun) => begun.password,
            None => {
                let next = Password::random();
                self.write_file(&next_path, tenant, &next)?;
                next
            }
        };
        repository.add_password(&next, cost)?;
        self.write_file(&old_path, tenant, &present)?;
        self.write(tenant, &next)?;
        repository.remove_password(&present, &next)?;
        remove(&next_path)?;
        Ok(remove(&old_path)?)
    }
}

fn remove(path: &Path) -> Result<(), KeyError> {
    let failed = |source| KeyError::Io { doing: "remove", path: path.to_owned(), source };
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let directory = path.parent().unwrap_or_else(|| Path::new("."));
    std::fs::File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed)
}
