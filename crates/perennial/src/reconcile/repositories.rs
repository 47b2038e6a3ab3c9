//! The tenants' repositories: one each, its key beside the data directory's other secrets, kept open. How one ends: [`erase`].

mod erase;

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use perennial_core::fault::Tap;
use perennial_core::operation::Problem;
use perennial_core::spec::TenantId;
use perennial_snapshots::backend::{Backend, MemoryBackend};
use perennial_snapshots::{Effort, Error, KeyCost, Password, Repository};

use super::step::{StepError, definite, problem, retry};
use crate::causes::describe;
use crate::config::{ConfigError, RepositorySection};
use crate::fault::TappedBackend;
use crate::keys::{KeyError, Keyring};

pub use erase::{Contents, Holding};

/// Opens repositories on demand and keeps them open.
#[derive(Clone)]
pub struct Repositories {
    place: Place,
    tap: Arc<dyn Tap>,
    effort: Effort,
    open: Arc<Mutex<HashMap<TenantId, Repository>>>,
    /// Held by who opens a tenant's.
    being_opened: Arc<Mutex<HashMap<TenantId, Arc<Mutex<()>>>>>,
    closed: Arc<AtomicU64>,
}

/// Code of the problem that a tenant was erased.
pub(super) const ERASED: &str = "tenant-erased";

/// What becomes of a repository that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Missing {
    IsMade,
    IsWrong,
}

/// Where repositories live.
#[derive(Clone)]
enum Place {
    /// Where the configuration says, each below one place.
    Configured { keys: Keyring, section: Arc<RepositorySection> },
    /// In memory, for the simulator and tests; the map outlives the server that uses it. Without keys, all have one password.
    Memory(MemoryRepositories, Option<Keyring>),
}

impl Place {
    const fn keys(&self) -> Option<&Keyring> {
        match self {
            Self::Configured { keys, .. } => Some(keys),
            Self::Memory(_, keys) => keys.as_ref(),
        }
    }

    /// What the place is called, as restic writes it.
    fn of_tenant(&self, tenant: &TenantId) -> String {
        match self {
            Self::Configured { section, .. } => section.of_tenant(tenant),
            Self::Memory(..) => format!("memory:{tenant}"),
        }
    }

    /// What to ask oneself when a repository is not there that was.
    fn doubt(&self) -> &'static str {
        match self {
            Self::Configured { section, .. } if section.directory().is_none() => "is it the right place?",
            _ => "is its disk mounted?",
        }
    }

    fn backend(&self, tenant: &TenantId) -> Result<Arc<dyn Backend>, StepError> {
        match self {
            Self::Configured { section, .. } => section.connect(tenant).map_err(|error| misconfigured(&error)),
            Self::Memory(memory, _) => Ok(Arc::new(memory.backend(tenant))),
        }
    }
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
    /// Repositories where the configuration says.
    #[must_use]
    pub fn configured(keys: Keyring, section: &RepositorySection, tap: Arc<dyn Tap>) -> Self {
        let place = Place::Configured { keys, section: Arc::new(section.clone()) };
        Self::at(place, tap)
    }

    fn at(place: Place, tap: Arc<dyn Tap>) -> Self {
        let (open, being_opened, closed) = (Arc::default(), Arc::default(), Arc::default());
        Self { place, tap, effort: Effort::default(), open, being_opened, closed }
    }

    /// Bounds what work on them takes from the machine.
    #[must_use]
    pub fn with_effort(self, effort: Effort) -> Self {
        Self { effort, ..self }
    }

    /// Repositories in memory.
    #[must_use]
    pub fn in_memory(memory: MemoryRepositories, tap: Arc<dyn Tap>) -> Self {
        Self::at(Place::Memory(memory, None), tap)
    }

    /// The same, each with a key of its own as on disk.
    #[must_use]
    pub fn in_memory_with_keys(memory: MemoryRepositories, keys: Keyring, tap: Arc<dyn Tap>) -> Self {
        Self::at(Place::Memory(memory, Some(keys)), tap)
    }

    /// Makes the tenant's repository when it has none yet, so that its key can be exported from the first day. Blocks.
    ///
    /// # Errors
    /// What went wrong, in words; the first use tries again.
    pub fn prepare(&self, tenant: &TenantId) -> Result<(), String> {
        match self.open(tenant) {
            Ok(_) => Ok(()),
            Err(StepError::Retry(problem) | StepError::Definite(problem)) => Err(problem.message),
            Err(StepError::Overtaken | StepError::Occupied | StepError::Cancelled) => {
                Err("somebody else changed it".to_owned())
            }
        }
    }

    /// The tenant's repository for whoever only looks: a snapshot of the tenant is recorded, so there is one. Blocks.
    ///
    /// # Errors
    /// Why it cannot be opened now.
    pub(crate) fn read(&self, tenant: &TenantId) -> Result<Repository, Problem> {
        self.open_existing(tenant).map_err(|error| match error {
            StepError::Retry(problem) | StepError::Definite(problem) => problem,
            StepError::Overtaken | StepError::Occupied | StepError::Cancelled => {
                problem("repository-unavailable", "it is being changed", "")
            }
        })
    }

    /// The tenant's repository; made, key first, when there is none yet. Blocks.
    pub(super) fn open(&self, tenant: &TenantId) -> Result<Repository, StepError> {
        self.open_or(tenant, Missing::IsMade)
    }

    /// The same for whoever has nothing to put into it: one that is missing is not made. Blocks.
    pub(super) fn open_existing(&self, tenant: &TenantId) -> Result<Repository, StepError> {
        self.open_or(tenant, Missing::IsWrong)
    }

    fn open_or(&self, tenant: &TenantId, missing: Missing) -> Result<Repository, StepError> {
        if let Some(open) = self.open.lock().unwrap_or_else(PoisonError::into_inner).get(tenant) {
            return Ok(open.clone());
        }
        // One after the other: two that find none must not both make it.
        let opening = self.opening_of(tenant);
        let _alone = opening.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = self.open.lock().unwrap_or_else(PoisonError::into_inner).get(tenant) {
            return Ok(open.clone());
        }
        let repository = self.open_anew(tenant, missing)?;
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever erases the tenant closes the repository after the mark was made: none is kept that was opened before.
        self.refuse_erased(tenant)?;
        Ok(open.entry(tenant.clone()).or_insert(repository).clone())
    }

    fn opening_of(&self, tenant: &TenantId) -> Arc<Mutex<()>> {
        let mut all = self.being_opened.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(all.entry(tenant.clone()).or_default())
    }

    /// Forgets an open repository, so that the next use looks at the place anew.
    pub(super) fn close(&self, tenant: &TenantId) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(tenant);
        self.closed.fetch_add(1, Ordering::SeqCst);
    }

    /// Whether the tenant's is open.
    fn is_open(&self, tenant: &TenantId) -> bool {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).contains_key(tenant)
    }

    /// Changes whenever a repository was closed: an open one remembers what it wrote and nobody read back yet.
    pub(super) fn opening(&self) -> u64 {
        self.closed.load(Ordering::SeqCst)
    }

    fn open_anew(&self, tenant: &TenantId, missing: Missing) -> Result<Repository, StepError> {
        let name = self.place.of_tenant(tenant);
        self.refuse_erased(tenant)?;
        let backend = self.place.backend(tenant)?;
        let password = match self.place.keys() {
            None => Password::new(MEMORY_PASSWORD),
            Some(keys) => {
                if missing == Missing::IsWrong && !Repository::exists(&*backend)? {
                    return Err(retry("repository-missing", format!("the repository {name} is not there")));
                }
                ensure_key(keys, tenant, &*backend, &name)?
            }
        };
        let cost = match &self.place {
            Place::Configured { .. } => KeyCost::Interactive,
            Place::Memory(..) => KeyCost::Test,
        };
        let backend: Arc<dyn Backend> = Arc::new(TappedBackend::new(backend, Arc::clone(&self.tap)));
        if Repository::exists(&*backend)? {
            let repository = Repository::open(backend, &password)?.with_effort(self.effort);
            self.remember_made(tenant)?;
            return Ok(repository);
        }
        self.refuse_second(tenant)?;
        let repository = match Repository::init(Arc::clone(&backend), &password, cost) {
            // Another server was quicker.
            Err(Error::AlreadyInitialized) => Repository::open(backend, &password)?,
            made => made?,
        };
        let repository = repository.with_effort(self.effort);
        self.remember_made(tenant)?;
        Ok(repository)
    }

    /// A repository that was there and is not is a disk that is not mounted, or a loss: no empty one takes its place.
    fn refuse_second(&self, tenant: &TenantId) -> Result<(), StepError> {
        let Some(keys) = self.place.keys() else { return Ok(()) };
        let marker = keys.made_path(tenant);
        match marker.try_exists() {
            Ok(false) => Ok(()),
            Ok(true) => {
                let why = self.place.doubt();
                let message = format!(
                    "the repository {} is not there, but one was made before ({why}); bring it back, or move it to where \
                     the configuration says; if it is lost for good, remove {} to begin a new one",
                    self.place.of_tenant(tenant),
                    marker.display()
                );
                Err(retry("repository-missing", message))
            }
            Err(error) => Err(unreadable(&marker, &error)),
        }
    }

    /// No key is made for a tenant that was erased, and no repository.
    fn refuse_erased(&self, tenant: &TenantId) -> Result<(), StepError> {
        let Some(keys) = self.place.keys() else { return Ok(()) };
        if !keys.is_erased(tenant).map_err(|error| no_key(&error))? {
            return Ok(());
        }
        Err(erased(tenant))
    }

    fn remember_made(&self, tenant: &TenantId) -> Result<(), StepError> {
        let Some(keys) = self.place.keys() else { return Ok(()) };
        keys.remember_made(tenant).map_err(|error| no_key(&error))
    }
}

fn erased(tenant: &TenantId) -> StepError {
    let message = format!("tenant {tenant} was erased: the key of its repository was destroyed");
    definite(ERASED, message, "its name is not used again: name another tenant")
}

/// Reads the key, or makes it durable before the repository that it opens exists.
///
/// A repository without its key is a loss, so a missing key beside an existing repository is an error, not a new key.
fn ensure_key(keys: &Keyring, tenant: &TenantId, backend: &dyn Backend, name: &str) -> Result<Password, StepError> {
    if let Some(password) = keys.read(tenant).map_err(|error| no_key(&error))? {
        return Ok(password);
    }
    if Repository::exists(backend)? {
        let path = keys.path(tenant);
        let message = format!("the repository {name} exists, but its key {} does not", path.display());
        return Err(retry("repository-key-missing", message));
    }
    let password = Password::random();
    keys.write(tenant, &password).map_err(|error| no_key(&error))?;
    if keys.is_erased(tenant).map_err(|error| no_key(&error))? {
        // The mark was made meanwhile, and whoever made it did not see this key, which opens nothing yet.
        keys.take_back(tenant).map_err(|error| no_key(&error))?;
        return Err(erased(tenant));
    }
    Ok(password)
}

pub(super) fn no_key(error: &KeyError) -> StepError {
    let code = match error {
        KeyError::Empty(_) => "repository-key-missing",
        _ => "repository-key-unreadable",
    };
    retry(code, format!("{error}; {}", error.hint()))
}

fn misconfigured(error: &ConfigError) -> StepError {
    retry("repository-misconfigured", format!("{error}; {}", error.hint()))
}

fn unreadable(path: &Path, error: &std::io::Error) -> StepError {
    retry("repository-key-unreadable", format!("{}: {}", path.display(), describe(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_that_many_want_at_once_is_made_once() {
        let memory = MemoryRepositories::default();
        let repositories = Repositories::in_memory(memory.clone(), Arc::new(perennial_core::fault::NoTap));
        let tenant = TenantId::default_tenant();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| assert!(repositories.open(&tenant).is_ok()));
            }
        });
        let keys = memory.backend(&tenant).list(perennial_snapshots::FileKind::Key).expect("keys");
        assert_eq!(keys.len(), 1);
        assert!(Repositories::in_memory(memory, Arc::new(perennial_core::fault::NoTap)).open(&tenant).is_ok());
    }
}
