//! The end of a tenant's repository: what is in it, its key, its files.
//!
//! What is in a place is the tenant's when the key here opened it, and only then: every installation has a `default`, and places
//! move. So [`Repositories::look`] tells what was seen of what opened, and [`Repositories::raze`] touches nothing else.

use std::collections::HashSet;
use std::sync::Arc;

use perennial_core::operation::Problem;
use perennial_core::progress::Progress;
use perennial_core::spec::TenantId;
use perennial_snapshots::backend::Backend;
use perennial_snapshots::{Error, FileKind, Password, Raze, Razed, Repository, Seen, raze};

use super::{MEMORY_PASSWORD, Repositories, no_key, problem, retry};
use crate::fault::TappedBackend;
use crate::keys::erase::Destroyed;
use crate::reconcile::forget::shown;
use crate::reconcile::step::StepError;
use crate::store::Which;

/// What a place holds of a tenant, as far as that can be told without changing anything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holding {
    /// Where it is, as restic writes it.
    pub location: String,
    /// Whether there is a key file here, one that cannot be read included.
    pub key: bool,
    /// Whether a repository was made there once.
    pub made: bool,
    /// What the key files here are told by.
    pub prints: Vec<String>,
    /// What was there that the key here opens; `None`: it opened nothing.
    pub seen: Option<Seen>,
    /// Snapshots of pods, layers and images in it; `None`: that cannot be told.
    pub snapshots: Option<u64>,
    /// Bytes of ciphertext; `None`: that cannot be told.
    pub bytes: Option<u64>,
    /// What is in it; `None`: that cannot be told.
    pub contents: Option<Contents>,
    /// Why nobody may touch it now.
    pub in_work: Option<Problem>,
    /// Why it is somebody else's.
    pub of_others: Option<Problem>,
    /// Why something could not be told.
    pub problem: Option<Problem>,
}

/// What is in a repository that was opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    /// The id that it carries itself; empty where there is no repository.
    pub id: String,
    /// The pods that have snapshots; none are read of a replica.
    pub pods: HashSet<String>,
    /// How many snapshots are of no pod and no image; those of a replica are not read.
    pub others: usize,
}

impl Repositories {
    /// What is known here of a tenant's repository without looking at its place. Blocks.
    pub fn known(&self, tenant: &TenantId) -> Holding {
        let mut holding = Holding { location: self.place.of_tenant(tenant), ..Holding::default() };
        let Some(keys) = self.place.keys() else { return holding };
        holding.key = !matches!(keys.read(tenant), Ok(None));
        let mut read = || {
            holding.made = keys.is_made(tenant)?;
            holding.prints = keys.prints(tenant)?;
            Ok(())
        };
        if let Err(problem) = shown(read().map_err(|error| no_key(&error))) {
            holding.problem = Some(problem);
        }
        holding
    }

    /// Where the tenant's repository is.
    pub fn location(&self, tenant: &TenantId) -> String {
        self.place.of_tenant(tenant)
    }

    /// Looks what a place holds of a tenant. Nothing is changed but for a lock that is taken and given back. Blocks.
    pub fn look(&self, tenant: &TenantId, which: Which) -> Holding {
        let mut holding = self.known(tenant);
        if holding.problem.is_some() {
            return holding;
        }
        match shown(self.count(tenant, which, &mut holding)) {
            Ok(()) => {}
            Err(problem) if problem.code == "repository-locked" => holding.in_work = Some(problem),
            Err(problem) => holding.problem = Some(problem),
        }
        holding
    }

    fn count(&self, tenant: &TenantId, which: Which, holding: &mut Holding) -> Result<(), StepError> {
        let backend = self.tapped(tenant)?;
        if !Repository::exists(&*backend)? {
            // A key is made before its repository, so that one may have been made.
            if holding.made || holding.key {
                return Err(self.not_there(tenant));
            }
            holding.snapshots = Some(0);
            holding.bytes = Some(0);
            holding.contents = Some(Contents::default());
            return Ok(());
        }
        let listed = |kind| backend.list(kind).map_err(|error| StepError::from(Error::from(error)));
        let snapshots = listed(FileKind::Snapshot)?;
        holding.snapshots = Some(snapshots.len() as u64);
        let all = [listed(FileKind::Pack)?, listed(FileKind::Index)?, snapshots];
        holding.bytes = Some(all.iter().flatten().map(|file| file.size).sum());
        let password = match self.place.keys() {
            None => Password::new(MEMORY_PASSWORD),
            Some(keys) => match keys.read(tenant).map_err(|error| no_key(&error))? {
                Some(password) => password,
                None => return Err(nobody_knows_whose()),
            },
        };
        // Before it is opened, and once more at the end: it is the same that the key opens, and nobody goes on with it.
        let seen = Seen::of(&*backend)?;
        // Opened anew: one that is open already may be of a place that is gone.
        let repository = match Repository::open(Arc::clone(&backend), &password) {
            Err(Error::WrongPassword) => {
                let why = "the key here does not open the repository there: it is somebody else's";
                let hint = "name the tenant's own place in the configuration, or have none there";
                holding.of_others = Some(problem("repository-of-others", why, hint));
                return Ok(());
            }
            other => other?,
        };
        repository.ensure_idle()?;
        let mut contents = Contents { id: repository.id().to_owned(), ..Contents::default() };
        // A replica's are told by their names.
        if which == Which::Repository {
            for snapshot in repository.find(&[])? {
                let pods: Vec<&str> = snapshot.tags.iter().filter_map(|tag| tag.strip_prefix("pod:")).collect();
                let is_image = snapshot.tags.iter().any(|tag| tag.starts_with("image:"));
                contents.others += usize::from(pods.is_empty() && !is_image);
                contents.pods.extend(pods.into_iter().map(str::to_owned));
            }
        }
        holding.contents = Some(contents);
        if Seen::of(&*backend)? != seen {
            return Err(retry("repository-unsteady", "it changed while it was looked at"));
        }
        holding.seen = seen;
        Ok(())
    }

    fn tapped(&self, tenant: &TenantId) -> Result<Arc<dyn Backend>, StepError> {
        Ok(Arc::new(TappedBackend::new(self.place.backend(tenant)?, Arc::clone(&self.tap))))
    }

    /// Destroys the key of a tenant's repository and closes it: nobody opens it again, and none takes its place. Only keys that
    /// have one of the prints go. Safe to repeat. Blocks.
    ///
    /// # Errors
    /// A problem to be shown; the same call again goes on.
    pub fn erase_key(&self, tenant: &TenantId, prints: &[String]) -> Result<Destroyed, Problem> {
        let erased = match self.place.keys() {
            Some(keys) => keys.erase(tenant, prints, &*self.tap).map_err(|error| no_key(&error)),
            None => Ok(Destroyed::default()),
        };
        // Closing one is something that passes on others notice, and this is done again and again.
        if self.is_open(tenant) && self.place.keys().is_none_or(|keys| !matches!(keys.is_erased(tenant), Ok(false))) {
            self.close(tenant);
        }
        shown(erased)
    }

    /// Takes away what an erased tenant has left in the place, if it is what was seen there when the erasure was asked for. Safe to
    /// repeat. Blocks.
    ///
    /// # Errors
    /// A problem to be shown, such as a disk that is not mounted, or a place that somebody else uses by now; the same call again
    /// goes on.
    pub fn raze(&self, tenant: &TenantId, seen: &Seen, what: Raze, progress: &Progress) -> Result<Razed, Problem> {
        shown(self.tapped(tenant).and_then(|backend| match raze(&*backend, seen, what, progress) {
            Err(Error::NoRepository) => Err(self.not_there(tenant)),
            Err(Error::NotSeen { kind, id }) => {
                let place = self.place.of_tenant(tenant);
                let why = match kind {
                    FileKind::Config => "another repository is there".to_owned(),
                    kind => format!("{kind} {id} was not there then, so that somebody else goes on with it"),
                };
                let message = format!(
                    "{place} is not what it was when the erasure was asked for, and is left as it is: {why}; bring back the \
                     tenant's own place"
                );
                Err(retry(NOT_SEEN, message))
            }
            other => Ok(other?),
        }))
    }

    /// Takes away the config and the place when everything else was taken away and recorded: what has gone meanwhile, or belongs
    /// to somebody else, is fine. Safe to repeat. Blocks.
    ///
    /// # Errors
    /// A problem to be shown; the same call again goes on.
    pub fn raze_rest(&self, tenant: &TenantId, seen: &Seen) -> Result<(), Problem> {
        match self.raze(tenant, seen, Raze::All, &Progress::default()) {
            Err(problem) if ![NOT_THERE, NOT_SEEN].contains(&problem.code.as_str()) => Err(problem),
            _ => Ok(()),
        }
    }

    fn not_there(&self, tenant: &TenantId) -> StepError {
        let message = format!(
            "the repository {} is not there, but there was one, or may have been ({}); bring it back",
            self.place.of_tenant(tenant),
            self.place.doubt()
        );
        retry(NOT_THERE, message)
    }
}

/// Codes of problems.
const NOT_THERE: &str = "repository-missing";
const NOT_SEEN: &str = "repository-not-seen";

fn nobody_knows_whose() -> StepError {
    retry(
        "repository-key-missing",
        "it holds a repository whose key is not here: nobody can say whose snapshots these are",
    )
}
