//! The recovery kit (D42): what is needed to read the repositories without this host, and whether anybody has it.

use jiff::Timestamp;
use perennial_core::Error;
use perennial_core::operation::NewEvent;
use perennial_core::spec::TenantId;
use perennial_snapshots::Password;
use sha2::{Digest as _, Sha256};

use super::{App, Caller};
use crate::store::{Change, ExportOf, RecoveryExport};

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
    /// Whether it is the repository or its replica.
    pub of: ExportOf,
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
    /// Tenants of whose repository or replica the key is in no kit.
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
        let export = |Key { of, tenant, password }: &Key| RecoveryExport {
            of: *of,
            tenant: tenant.clone(),
            fingerprint: fingerprint(password),
            actor: caller.actor.clone(),
            at,
        };
        let firsts = keys.iter().filter(|key| key.of == ExportOf::Repository);
        let tenants: Vec<&str> = firsts.map(|key| key.tenant.as_str()).collect();
        let event = NewEvent {
            at,
            actor: caller.actor.clone(),
            tenant: TenantId::default_tenant(),
            pod: None,
            operation: None,
            kind: "recovery-kit.exported".to_owned(),
            message: format!("recovery kit exported with the keys of tenants {}", tenants.join(", ")),
        };
        let exports = keys.iter().map(export).collect();
        let change = Change { recovery_exports: exports, events: vec![event], ..Change::default() };
        self.commit_for(caller, change).await?;
        let place = |of, tenant: &TenantId| match (of, &self.settings.replication) {
            (ExportOf::Replica, Some(replication)) => replication.repository.of_tenant(tenant),
            _ => self.settings.repository.of_tenant(tenant),
        };
        let entry =
            |Key { of, tenant, password }: Key| RecoveryEntry { of, location: place(of, &tenant), tenant, password };
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
        let is_exported = |key: &&Key| {
            let is_it = |e: &RecoveryExport| e.of == key.of && e.tenant == key.tenant;
            exports.iter().any(|e| is_it(e) && e.fingerprint == fingerprint(&key.password))
        };
        let mut missing: Vec<TenantId> =
            keys.iter().filter(|key| !is_exported(key)).map(|key| key.tenant.clone()).collect();
        missing.dedup();
        Ok(RecoveryState { exported_at: exports.iter().map(|e| e.at).max(), missing })
    }

    /// Every key: the repositories' by tenant, each followed by that of its replica while there is one.
    async fn keys(&self) -> Result<Vec<Key>, Error> {
        let keys = self.settings.keys.clone();
        let replicas = self.settings.replication.as_ref().map(|_| keys.of_replicas());
        let unreadable = |problem: String| Error::Unavailable { problem: format!("read the keys: {problem}") };
        let read = tokio::task::spawn_blocking(move || {
            let mut all = Vec::new();
            for (of, keys) in [(ExportOf::Repository, Some(keys)), (ExportOf::Replica, replicas)] {
                let Some(keys) = keys else { continue };
                all.extend(keys.all()?.into_iter().map(|(tenant, password)| Key { of, tenant, password }));
            }
            all.sort_by(|a: &Key, b: &Key| a.tenant.as_str().cmp(b.tenant.as_str()));
            Ok::<_, crate::keys::KeyError>(all)
        });
        read.await.map_err(|e| unreadable(e.to_string()))?.map_err(|e| unreadable(e.to_string()))
    }
}

/// What opens one repository.
struct Key {
    of: ExportOf,
    tenant: TenantId,
    password: Password,
}

/// Tells one key from another. A key has 256 bits of randomness, so that nobody finds it from its hash.
fn fingerprint(password: &Password) -> String {
    let mut hash = Sha256::new();
    hash.update(b"perennial recovery kit\n");
    hash.update(password.reveal());
    hex::encode(&hash.finalize()[..8])
}
