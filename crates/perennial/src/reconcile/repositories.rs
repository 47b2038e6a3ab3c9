//! The tenants' repositories: one each, its key beside the data directory's other secrets, kept open.

use std::collections::HashMap;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use perennial_core::fault::Tap;
use perennial_core::spec::TenantId;
use perennial_snapshots::backend::{Backend, MemoryBackend};
use perennial_snapshots::{KeyCost, Password, Repository};

use super::step::{StepError, retry};
use crate::causes::describe;
use crate::config::{ConfigError, RepositorySection};
use crate::fault::TappedBackend;

/// Opens repositories on demand and keeps them open.
#[derive(Clone)]
pub struct Repositories {
    place: Place,
    tap: Arc<dyn Tap>,
    open: Arc<Mutex<HashMap<TenantId, Repository>>>,
    closed: Arc<AtomicU64>,
}

/// Where repositories live.
#[derive(Clone)]
enum Place {
    /// Where the configuration says, each below one place, with `<data>/keys/<tenant>`.
    Configured { data: PathBuf, section: Arc<RepositorySection> },
    /// In memory, for the simulator and tests; the map outlives the server that uses it.
    Memory(MemoryRepositories),
}

/// Repositories that live in memory.
#[derive(Clone, Default)]
pub struct MemoryRepositories(Arc<Mutex<HashMap<TenantId, MemoryBackend>>>);

impl MemoryRepositories {
    /// The backend of a tenant's repository, made on first use.
    #[must_use]
    pub fn backend(&self, tenant: &TenantId) -> MemoryBackend {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(tenant.clone()).or_default().clone()
    }
}

/// The password of every repository in memory: there is nothing to protect.
pub const MEMORY_PASSWORD: &str = "simulated";

impl Repositories {
    /// Repositories where the configuration says, their keys in the data directory.
    #[must_use]
    pub fn configured(data_dir: &Path, section: &RepositorySection, tap: Arc<dyn Tap>) -> Self {
        let place = Place::Configured { data: data_dir.to_owned(), section: Arc::new(section.clone()) };
        Self { place, tap, open: Arc::default(), closed: Arc::default() }
    }

    /// Repositories in memory.
    #[must_use]
    pub fn in_memory(memory: MemoryRepositories, tap: Arc<dyn Tap>) -> Self {
        Self { place: Place::Memory(memory), tap, open: Arc::default(), closed: Arc::default() }
    }

    /// Makes the tenant's repository when it has none yet, so that its key can be exported from the first day. Blocks.
    ///
    /// # Errors
    /// What went wrong, in words; the first use tries again.
    pub fn prepare(&self, tenant: &TenantId) -> Result<(), String> {
        match self.open(tenant) {
            Ok(_) => Ok(()),
            Err(StepError::Retry(problem) | StepError::Definite(problem)) => Err(problem.message),
            Err(StepError::Overtaken | StepError::Cancelled) => Err("somebody else changed it".to_owned()),
        }
    }

    /// The tenant's repository; made, key first, when there is none yet. Blocks.
    pub(super) fn open(&self, tenant: &TenantId) -> Result<Repository, StepError> {
        if let Some(open) = self.open.lock().unwrap_or_else(PoisonError::into_inner).get(tenant) {
            return Ok(open.clone());
        }
        let repository = self.open_anew(tenant)?;
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(open.entry(tenant.clone()).or_insert(repository).clone())
    }

    /// Forgets an open repository, so that the next use looks at the place anew.
    pub(super) fn close(&self, tenant: &TenantId) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(tenant);
        self.closed.fetch_add(1, Ordering::SeqCst);
    }

    /// Changes whenever a repository was closed: an open one remembers what it wrote and nobody read back yet.
    pub(super) fn opening(&self) -> u64 {
        self.closed.load(Ordering::SeqCst)
    }

    fn open_anew(&self, tenant: &TenantId) -> Result<Repository, StepError> {
        let (backend, password, cost): (Arc<dyn Backend>, Password, KeyCost) = match &self.place {
            Place::Memory(memory) => (Arc::new(memory.backend(tenant)), Password::new(MEMORY_PASSWORD), KeyCost::Test),
            Place::Configured { data, section } => {
                let backend = section.connect(tenant).map_err(|error| misconfigured(&error))?;
                let password = ensure_key(data, tenant, &*backend, &section.of_tenant(tenant))?;
                (backend, password, KeyCost::Interactive)
            }
        };
        let backend: Arc<dyn Backend> = Arc::new(TappedBackend::new(backend, Arc::clone(&self.tap)));
        if Repository::exists(&*backend)? {
            let repository = Repository::open(backend, &password)?;
            self.remember_made(tenant)?;
            return Ok(repository);
        }
        self.refuse_second(tenant)?;
        let repository = Repository::init(backend, &password, cost)?;
        self.remember_made(tenant)?;
        Ok(repository)
    }

    /// A repository that was there and is not is a disk that is not mounted, or a loss: no empty one takes its place.
    fn refuse_second(&self, tenant: &TenantId) -> Result<(), StepError> {
        let Place::Configured { data, section } = &self.place else { return Ok(()) };
        let marker = made_path(data, tenant);
        match marker.try_exists() {
            Ok(false) => Ok(()),
            Ok(true) => {
                let why = if section.directory().is_some() { "is its disk mounted?" } else { "is it the right place?" };
                let message = format!(
                    "the repository {} is not there, but one was made before ({why}); bring it back, or move it to where \
                     the configuration says; if it is lost for good, remove {} to begin a new one",
                    section.of_tenant(tenant),
                    marker.display()
                );
                Err(retry("repository-missing", message))
            }
            Err(error) => Err(unreadable(&marker, &error)),
        }
    }

    fn remember_made(&self, tenant: &TenantId) -> Result<(), StepError> {
        let Place::Configured { data, .. } = &self.place else { return Ok(()) };
        let marker = made_path(data, tenant);
        if marker.exists() {
            return Ok(());
        }
        write_secret(&marker, b"the repository of this tenant was made").map_err(|e| unreadable(&marker, &e))
    }
}

/// Where the password of a tenant's repository is: `<data>/keys/<tenant>`.
#[must_use]
pub fn key_path(data_dir: &Path, tenant: &TenantId) -> PathBuf {
    data_dir.join("keys").join(tenant.as_str())
}

/// The keys of every tenant's repository, by tenant. Blocks.
///
/// # Errors
/// Whatever the file system answers; no key at all is no error.
pub fn keys(data_dir: &Path) -> std::io::Result<Vec<(TenantId, Password)>> {
    let mut found = Vec::new();
    let entries = match std::fs::read_dir(data_dir.join("keys")) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(error),
    };
    for entry in entries {
        // Other files lie beside the keys; their names are no tenant's.
        if let Some(tenant) = entry?.file_name().to_str().and_then(|name| TenantId::parse(name).ok()) {
            let text = std::fs::read_to_string(key_path(data_dir, &tenant))?;
            found.push((tenant, Password::new(text.trim().as_bytes())));
        }
    }
    found.sort_by(|(a, _), (b, _)| a.as_str().cmp(b.as_str()));
    Ok(found)
}

/// What says that a tenant's repository was made: beside its key, because the repository's disk may be another one.
fn made_path(data_dir: &Path, tenant: &TenantId) -> PathBuf {
    data_dir.join("keys").join(format!("{tenant}.made"))
}

/// Reads the key, or makes it durable before the repository that it opens exists.
///
/// A repository without its key is a loss, so a missing key beside an existing repository is an error, not a new key.
fn ensure_key(data: &Path, tenant: &TenantId, backend: &dyn Backend, name: &str) -> Result<Password, StepError> {
    let path = key_path(data, tenant);
    match std::fs::read_to_string(&path) {
        Ok(text) if !text.trim().is_empty() => return Ok(Password::new(text.trim().as_bytes())),
        Ok(_) => return Err(retry("repository-key-missing", format!("the key file {} is empty", path.display()))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(unreadable(&path, &error)),
    }
    if Repository::exists(backend)? {
        let message = format!("the repository {name} exists, but its key {} does not", path.display());
        return Err(retry("repository-key-missing", message));
    }
    let password = Password::random();
    write_secret(&path, password.reveal()).map_err(|e| unreadable(&path, &e))?;
    Ok(password)
}

fn misconfigured(error: &ConfigError) -> StepError {
    retry("repository-misconfigured", format!("{error}; {}", error.hint()))
}

fn unreadable(path: &Path, error: &std::io::Error) -> StepError {
    retry("repository-key-unreadable", format!("{}: {}", path.display(), describe(error)))
}

/// Writes a secret atomically and durably, readable by its owner only.
///
/// # Errors
/// Whatever the file system answers.
pub fn write_secret(path: &Path, secret: &[u8]) -> std::io::Result<()> {
    let directory = path.parent().unwrap_or_else(|| Path::new("."));
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let temporary = path.with_extension("new");
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(secret)?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    std::fs::File::open(directory)?.sync_all()
}
