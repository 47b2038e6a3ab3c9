//! What was received, until its snapshot is made.
//!
//! One file for each archive, named after its snapshot, in a directory of its own below the data directory. It is there,
//! whole and durable, before the operation is recorded, so a crash of the server costs no second upload; and it goes as
//! soon as no operation needs it: when its snapshot is uploaded, when its operation ends, and, whatever happened before, at
//! the next start and every few seconds.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use perennial_core::id::SnapshotId;
use perennial_core::spec::TenantId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Limits;

/// Archives that are received at the same time, each of another tenant; each holds a tree in memory.
const AT_ONCE: usize = 2;
/// Archives that become snapshots at the same time; each holds a tree and an image's in memory.
const MADE_AT_ONCE: usize = 1;
/// How long a body may bring nothing before its turn is another's.
const PATIENCE: Duration = Duration::from_secs(60);
/// Space that is left to the server itself, in bytes.
const RESERVE: u64 = 256 << 20;
/// How often the space is looked at, in bytes.
const LOOK_EVERY: u64 = 16 << 20;

/// Where archives wait. Clones share everything.
#[derive(Debug, Clone)]
pub struct Spool {
    directory: PathBuf,
    limits: Limits,
    reserve: u64,
    receiving: Arc<Mutex<HashSet<SnapshotId>>>,
    turns: Arc<Semaphore>,
    tenants: Arc<Mutex<HashSet<TenantId>>>,
    patience: Duration,
    making: Arc<Semaphore>,
}

/// The turn of a tenant to send an archive; it ends with this.
#[derive(Debug)]
pub(crate) struct Turn {
    _permit: OwnedSemaphorePermit,
    _tenant: TenantTurn,
}

#[derive(Debug)]
struct TenantTurn {
    tenants: Arc<Mutex<HashSet<TenantId>>>,
    tenant: TenantId,
}

impl Drop for TenantTurn {
    fn drop(&mut self) {
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.tenant);
    }
}

impl Spool {
    /// Below this data directory; archives may be this much.
    #[must_use]
    pub fn new(data_dir: &Path, limits: Limits) -> Self {
        Self {
            directory: data_dir.join("imports"),
            limits,
            reserve: RESERVE,
            receiving: Arc::default(),
            turns: Arc::new(Semaphore::new(AT_ONCE)),
            tenants: Arc::default(),
            patience: PATIENCE,
            making: Arc::new(Semaphore::new(MADE_AT_ONCE)),
        }
    }

    /// How much an archive may be.
    #[must_use]
    pub const fn limits(&self) -> Limits {
        self.limits
    }

    fn path(&self, id: SnapshotId) -> PathBuf {
        self.directory.join(id.to_string())
    }

    /// The turn of one more archive to become a snapshot, until it is dropped; `None` while others do.
    #[must_use]
    pub fn making(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.making).try_acquire_owned().ok()
    }

    #[cfg(test)]
    pub(crate) fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// How long a body may bring nothing.
    pub(crate) const fn patience(&self) -> Duration {
        self.patience
    }

    /// The turn of one more archive of this tenant; why there is none otherwise.
    pub(crate) fn turn(&self, tenant: &TenantId) -> Result<Turn, &'static str> {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        if tenants.contains(tenant) {
            return Err("another archive of the same tenant is being received");
        }
        let permit = Arc::clone(&self.turns).try_acquire_owned();
        let permit = permit.map_err(|_| "too many archives are received at the same time")?;
        tenants.insert(tenant.clone());
        let tenant = TenantTurn { tenants: Arc::clone(&self.tenants), tenant: tenant.clone() };
        Ok(Turn { _permit: permit, _tenant: tenant })
    }

    /// Makes room for an archive. It is gone again unless it is kept.
    pub(crate) fn begin(&self, id: SnapshotId) -> io::Result<Receiving> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        let path = self.path(id);
        // Both under the lock: whoever cleans up must never see the file without knowing that it is being received.
        let mut receiving = self.receiving.lock().unwrap_or_else(PoisonError::into_inner);
        let file = File::options().write(true).create_new(true).mode(0o600).open(&path)?;
        receiving.insert(id);
        drop(receiving);
        Ok(Receiving { spool: self.clone(), id, path, file, written: 0, kept: false })
    }

    /// Opens what was received; `None` when it is not here.
    pub(crate) fn open(&self, id: SnapshotId) -> io::Result<Option<File>> {
        match File::open(self.path(id)) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes what was received, if it is here.
    pub(crate) fn remove(&self, id: SnapshotId) {
        if let Err(error) = fs::remove_file(self.path(id))
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(snapshot = %id, %error, "remove a received archive; tried again later");
        }
    }

    /// What is here, and not being received just now.
    pub(crate) fn waiting(&self) -> io::Result<Vec<SnapshotId>> {
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let receiving = self.receiving.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = Vec::new();
        for entry in entries {
            found.extend(entry?.file_name().to_str().and_then(|name| name.parse::<SnapshotId>().ok()));
        }
        found.retain(|id| !receiving.contains(id));
        Ok(found)
    }
}

/// An archive on its way in.
pub(crate) struct Receiving {
    spool: Spool,
    id: SnapshotId,
    path: PathBuf,
    file: File,
    written: u64,
    kept: bool,
}

impl Receiving {
    /// Makes it durable. Until it is kept it still goes with this.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync_all()?;
        File::open(&self.spool.directory)?.sync_all()
    }

    /// From here on it stays, whatever becomes of this: an operation for it is being recorded.
    pub(crate) const fn keep(&mut self) {
        self.kept = true;
    }
}

impl Write for Receiving {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.written / LOOK_EVERY != (self.written + bytes.len() as u64) / LOOK_EVERY || self.written == 0 {
            let stat = rustix::fs::fstatvfs(&self.file)?;
            let free = stat.f_bavail.saturating_mul(stat.f_frsize);
            if free < self.spool.reserve.saturating_add(LOOK_EVERY) {
                let problem = "there is too little space below the data directory to receive the archive";
                return Err(io::Error::new(io::ErrorKind::StorageFull, problem));
            }
        }
        let written = self.file.write(bytes)?;
        self.written += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "remove a refused archive; tried again later");
        }
        self.spool.receiving.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_kept_is_gone_and_what_is_being_received_is_nobodys_garbage() {
        let directory = tempfile::tempdir().expect("a directory");
        let spool = Spool::new(directory.path(), Limits::default());
        let id = SnapshotId::from_parts(1, [1; 10]);
        let mut receiving = spool.begin(id).expect("begun");
        receiving.write_all(b"archive").expect("written");
        assert!(spool.begin(id).is_err());
        let other = SnapshotId::from_parts(1, [2; 10]);
        let second = spool.begin(other).expect("begun");
        assert_eq!(spool.waiting().expect("listed").iter().filter(|i| **i == other).count(), 0);
        drop(second);
        assert!(spool.open(other).expect("looked").is_none());
        receiving.keep();
        drop(receiving);
        assert_eq!(spool.waiting().expect("listed"), [id]);
        spool.remove(id);
        assert!(spool.waiting().expect("listed").is_empty());
    }

    #[test]
    fn a_tenant_has_one_turn_and_leaves_one_to_another() {
        let directory = tempfile::tempdir().expect("a directory");
        let spool = Spool::new(directory.path(), Limits::default());
        let tenant = |name: &str| TenantId::parse(name).expect("a tenant");
        let first = spool.turn(&tenant("a")).expect("a turn");
        assert!(spool.turn(&tenant("a")).is_err());
        let second = spool.turn(&tenant("b")).expect("a turn");
        assert!(spool.turn(&tenant("c")).is_err());
        drop(first);
        assert!(spool.turn(&tenant("b")).is_err());
        assert!(spool.turn(&tenant("c")).is_ok());
        drop(second);
        assert!(spool.turn(&tenant("b")).is_ok());
    }

    #[test]
    fn a_full_disk_is_refused_before_it_is_full() {
        let directory = tempfile::tempdir().expect("a directory");
        let spool = Spool { reserve: u64::MAX / 2, ..Spool::new(directory.path(), Limits::default()) };
        let mut receiving = spool.begin(SnapshotId::from_parts(1, [1; 10])).expect("begun");
        let error = receiving.write_all(b"x").expect_err("no space");
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}
