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
/// Space that is left to the server itself, at least, in bytes.
const RESERVE: u64 = 256 << 20;
/// The same as a share of the disk: one part of so many.
const RESERVE_SHARE: u64 = 20;
/// What all archives that wait may take of the disk: one part of so many.
const ALL_SHARE: u64 = 2;
/// What those of one tenant may take: one part of so many.
const TENANT_SHARE: u64 = 4;
/// How often the space is looked at, in bytes.
const LOOK_EVERY: u64 = 16 << 20;

/// Where archives wait. Clones share everything.
#[derive(Debug, Clone)]
pub struct Spool {
    directory: PathBuf,
    limits: Limits,
    disk: fn(&Path) -> io::Result<Disk>,
    receiving: Arc<Mutex<HashSet<SnapshotId>>>,
    turns: Arc<Semaphore>,
    tenants: Arc<Mutex<HashSet<TenantId>>>,
    patience: Duration,
    making: Arc<Semaphore>,
}

/// The disk that archives are on, in bytes.
#[derive(Debug, Clone, Copy)]
struct Disk {
    size: u64,
    free: u64,
}

fn disk(directory: &Path) -> io::Result<Disk> {
    let stat = rustix::fs::statvfs(directory)?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    Ok(Disk { size: bytes(stat.f_blocks), free: bytes(stat.f_bavail) })
}

fn full(problem: &str) -> io::Error {
    io::Error::new(io::ErrorKind::StorageFull, problem)
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
            disk,
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

    /// Makes room for an archive of a tenant of whom `waiting` bytes are here. It is gone again unless it is kept.
    pub(crate) fn begin(&self, id: SnapshotId, waiting: u64) -> io::Result<Receiving> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        let most = ((self.disk)(&self.directory)?.size / TENANT_SHARE).saturating_sub(waiting);
        let path = self.path(id);
        // Both under the lock: whoever cleans up must never see the file without knowing that it is being received.
        let mut receiving = self.receiving.lock().unwrap_or_else(PoisonError::into_inner);
        let file = File::options().write(true).create_new(true).mode(0o600).open(&path)?;
        receiving.insert(id);
        drop(receiving);
        Ok(Receiving { spool: self.clone(), id, path, file, written: 0, most, kept: false })
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

    /// Bytes of an archive that is here.
    pub(crate) fn size(&self, id: SnapshotId) -> u64 {
        fs::metadata(self.path(id)).map_or(0, |found| found.len())
    }

    /// Checks that there is space for one more piece, on the disk and in its share for archives.
    fn check_space(&self) -> io::Result<()> {
        let Disk { size, free } = (self.disk)(&self.directory)?;
        if free < RESERVE.max(size / RESERVE_SHARE).saturating_add(LOOK_EVERY) {
            return Err(full("there is too little space below the data directory to receive the archive"));
        }
        let mut all = LOOK_EVERY;
        for entry in fs::read_dir(&self.directory)? {
            // One that went meanwhile takes no space.
            all = all.saturating_add(entry?.metadata().map_or(0, |found| found.len()));
        }
        if all > size / ALL_SHARE {
            return Err(full("too much waits to become snapshots to receive the archive"));
        }
        Ok(())
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
    /// What it may be, with what else of its tenant is here.
    most: u64,
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
        let after = self.written.saturating_add(bytes.len() as u64);
        if after > self.most {
            return Err(full("too much of the same tenant waits to become snapshots to receive the archive"));
        }
        if self.written / LOOK_EVERY != after / LOOK_EVERY || self.written == 0 {
            self.spool.check_space()?;
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
        let mut receiving = spool.begin(id, 0).expect("begun");
        receiving.write_all(b"archive").expect("written");
        assert!(spool.begin(id, 0).is_err());
        let other = SnapshotId::from_parts(1, [2; 10]);
        let second = spool.begin(other, 0).expect("begun");
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
    fn a_full_disk_is_refused_before_it_is_full_and_nobody_takes_all_of_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let written = |disk: fn(&Path) -> io::Result<Disk>, waiting: u64, piece: &[u8]| {
            let spool = Spool { disk, ..Spool::new(directory.path(), Limits::default()) };
            let mut receiving = spool.begin(SnapshotId::from_parts(1, [1; 10]), waiting).expect("begun");
            receiving.write_all(piece).map_err(|error| (error.kind(), error.to_string()))
        };
        let refused = |result: Result<(), (io::ErrorKind, String)>, said: &str| {
            let (kind, problem) = result.expect_err("no space");
            assert!(kind == io::ErrorKind::StorageFull && problem.contains(said), "{problem}");
        };
        // A large disk keeps a twentieth, a small one what the server needs.
        assert_eq!(written(|_| Ok(Disk { size: 100 << 30, free: 6 << 30 }), 0, b"x"), Ok(()));
        refused(written(|_| Ok(Disk { size: 100 << 30, free: 4 << 30 }), 0, b"x"), "too little space");
        assert_eq!(written(|_| Ok(Disk { size: 1 << 30, free: 300 << 20 }), 0, b"x"), Ok(()));
        refused(written(|_| Ok(Disk { size: 1 << 30, free: 200 << 20 }), 0, b"x"), "too little space");
        // A quarter of the disk is for one tenant, and half of it for all.
        let roomy = |_: &Path| Ok(Disk { size: 1 << 30, free: 1 << 30 });
        assert_eq!(written(roomy, (256 << 20) - 2, b"xx"), Ok(()));
        refused(written(roomy, (256 << 20) - 1, b"xx"), "same tenant");
        let other = File::create(directory.path().join("imports").join("another")).expect("a file");
        other.set_len((512 << 20) - LOOK_EVERY).expect("of a size");
        assert_eq!(written(roomy, 0, b"x"), Ok(()));
        other.set_len(512 << 20).expect("of a size");
        refused(written(roomy, 0, b"x"), "too much waits");
    }
}
