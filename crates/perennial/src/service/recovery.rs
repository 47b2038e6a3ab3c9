//! The recovery kit (D42): what is needed to read the repositories without this host, and whether anybody has it.

use jiff::Timestamp;
use perennial_core::Error;
use perennial_core::operation::NewEvent;
use perennial_core::spec::TenantId;
use perennial_snapshots::Password;
use sha2::{Digest as _, Sha256};

use super::{App, Caller};
use crate::store::{Change, RecoveryExport};

/// Everything that is needed to read the repositories without this host.
#[derive(Debug, Clone)]
pub struct RecoveryKit {
    /// This host's name.
    pub host: String,
    /// When the kit was made.
    pub made_at: Timestamp,
    /// The repositories.
    pub repositories: Vec<RecoveryEntry>,
}

/// One repository and what opens it.
#[derive(Debug, Clone)]
pub struct RecoveryEntry {
    /// Whose.
    pub tenant: TenantId,
    /// Where it is, as restic writes it.
    pub location: String,
    /// What opens it.
    pub password: Password,
}

/// Whether somebody has a recovery kit with every key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveryState {
    /// When the newest kit was exported; `None`: never.
    pub exported_at: Option<Timestamp>,
    /// Tenants whose repository's key is in no kit.
    pub missing: Vec<TenantId>,
}

impl App {
    /// Exports the recovery kit. The export is recorded, and on the audit trail, before anybody sees a password.
    ///
    /// # Errors
    /// [`Error::Forbidden`] for everybody but administrators, [`Error::Conflict`] when there is no repository yet,
    /// [`Error::Unavailable`] when the keys cannot be read.
    pub async fn recovery_kit(&self, caller: &Caller) -> Result<RecoveryKit, Error> {
        self.require_admin(caller)?;
        let keys = self.keys().await?;
        if keys.is_empty() {
            let hint = "a repository is made with the first pod; try again then";
            return Err(Error::conflict("no-repository", "there is no repository yet, and so no key", hint));
        }
        let at = self.now();
        let export = |(tenant, password): &(TenantId, Password)| RecoveryExport {
            tenant: tenant.clone(),
            fingerprint: fingerprint(password),
            actor: caller.actor.clone(),
            at,
        };
        let tenants: Vec<&str> = keys.iter().map(|(tenant, _)| tenant.as_str()).collect();
        let event = NewEvent {
            at,
            actor: caller.actor.clone(),
            tenant: caller.home(),
            pod: None,
            operation: None,
            kind: "recovery-kit.exported".to_owned(),
            message: format!("recovery kit exported with the keys of tenants {}", tenants.join(", ")),
        };
        let exports = keys.iter().map(export).collect();
        self.store.commit(Change { recovery_exports: exports, events: vec![event], ..Change::default() }).await?;
        let section = &self.settings.repository;
        let entry = |(tenant, password)| RecoveryEntry { location: section.of_tenant(&tenant), tenant, password };
        Ok(RecoveryKit {
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            made_at: at,
            repositories: keys.into_iter().map(entry).collect(),
        })
    }

    /// Tells whether somebody has a recovery kit with every key.
    ///
    /// # Errors
    /// Why the keys or the record of exports cannot be read.
    pub async fn recovery_state(&self) -> Result<RecoveryState, Error> {
        let keys = self.keys().await?;
        let exports = self.store.recovery_exports().await?;
        let is_exported = |(tenant, password): &&(TenantId, Password)| {
            exports.iter().any(|e| e.tenant == *tenant && e.fingerprint == fingerprint(password))
        };
        Ok(RecoveryState {
            exported_at: exports.iter().map(|e| e.at).max(),
            missing: keys.iter().filter(|key| !is_exported(key)).map(|(tenant, _)| tenant.clone()).collect(),
        })
    }

    async fn keys(&self) -> Result<Vec<(TenantId, Password)>, Error> {
        let keys = self.settings.keys.clone();
        let unreadable = |problem: String| Error::Unavailable { problem: format!("read the keys: {problem}") };
        let read = tokio::task::spawn_blocking(move || keys.all()).await;
        read.map_err(|e| unreadable(e.to_string()))?.map_err(|e| unreadable(e.to_string()))
    }
}

/// Tells one key from another. A key has 256 bits of randomness, so that nobody finds it from its hash.
fn fingerprint(password: &Password) -> String {
    let mut hash = Sha256::new();
    hash.update(b"perennial recovery kit\n");
    hash.update(password.reveal());
    hex::encode(&hash.finalize()[..8])
}
