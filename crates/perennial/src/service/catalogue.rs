//! The catalogue: services of the files and of the database, put together.
//!
//! An entry of the database wins over a file of the same name, and says so. Pods that exist are not touched by anything here.

use std::collections::BTreeMap;

use jiff::Timestamp;
use perennial_core::Error;
use perennial_core::operation::NewEvent;
use perennial_core::planned::{PlanOf, PlanPath, SecretText};
use perennial_core::service::{Plan, Secret, Service, ServiceName};
use perennial_core::spec::{PodSpec, TenantId};

use super::{App, Caller};
use crate::catalogue::{Files, Kept, Mistake, Origin, Refused, definition, read_json, revision};
use crate::store::{Change, Expected, ServiceBecomes, ServiceChange, StoredService};

/// Who reads files.
const READER: &str = "system:catalogue";

/// Makes a secret; every character is as likely as any other.
fn secret(how: Secret) -> SecretText {
    use rand::seq::IndexedRandom as _;
    let (characters, mut random) = (how.alphabet.characters().as_bytes(), rand::rng());
    let chosen = (0..how.length).filter_map(|_| characters.choose(&mut random).copied().map(char::from));
    SecretText::new(chosen.collect())
}

/// A service that is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub service: Service,
    /// Names this definition.
    pub revision: String,
    /// Where it comes from.
    pub source: Source,
    /// What people can act on.
    pub remarks: Vec<Remark>,
}

/// Where a service comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// It is shipped.
    Shipped,
    /// A file of this name.
    File(String),
    /// The database: who changed it last, and when.
    Database(String, Timestamp),
}

/// Something about the catalogue that people can act on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remark {
    /// What it is about.
    pub kind: &'static str,
    /// Machine-readable cause.
    pub reason: &'static str,
    /// One sentence.
    pub message: String,
    /// Since when.
    pub since: Timestamp,
}

/// All services, and what is wrong with files that none comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Services {
    /// By name.
    pub entries: Vec<Entry>,
    /// Of files and rows that no service comes from.
    pub remarks: Vec<Remark>,
}

/// When files are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occasion {
    /// The server starts.
    Start,
    /// Somebody asked for it.
    Asked,
}

impl App {
    /// Lists the services in force. Everybody with a token may order, so everybody may look; remarks are for administrators.
    ///
    /// # Errors
    /// Why the database could not tell.
    pub async fn services(&self, caller: &Caller) -> Result<Services, Error> {
        let files = self.catalogue.files();
        let mut all: BTreeMap<ServiceName, Entry> =
            files.kept.iter().map(|(name, kept)| (name.clone(), of_file(&files, kept))).collect();
        let mut remarks: Vec<Remark> = files.refused.iter().map(|(file, refused)| of_refused(file, refused)).collect();
        for row in self.store.service_list().await? {
            match of_row(&row, files.kept.get(&row.name)) {
                Ok(entry) => drop(all.insert(row.name, entry)),
                Err(remark) => {
                    all.remove(&row.name);
                    remarks.push(remark);
                }
            }
        }
        let mut services = Services { entries: all.into_values().collect(), remarks };
        if !caller.rights.is_platform() {
            services.remarks.clear();
            services.entries.iter_mut().for_each(|entry| entry.remarks.clear());
        }
        Ok(services)
    }

    /// Reads a service in force.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none, [`Error::Conflict`] when this version cannot read it.
    pub async fn service(&self, caller: &Caller, name: &ServiceName) -> Result<Entry, Error> {
        let services = self.services(caller).await?;
        match services.entries.into_iter().find(|entry| entry.service.name == *name) {
            Some(entry) => Ok(entry),
            None if self.store.service_fetch(name).await?.is_some() => Err(Error::conflict(
                "service-unreadable",
                format!("the definition of service {name} in the database is not understood by this version"),
                "send it again, or remove it: perennial service apply, perennial service rm",
            )),
            None => Err(not_found(name)),
        }
    }

    /// The specification of a new pod of a plan, with secrets of its own.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such plan, and as [`App::service`] says.
    pub(super) async fn planned(&self, caller: &Caller, path: &PlanPath) -> Result<PodSpec, Error> {
        let (plan, of) = self.plan(caller, path).await?;
        Ok(of.new_pod(&plan, secret))
    }

    /// The specification of a pod that becomes one of a plan.
    ///
    /// # Errors
    /// As [`App::planned`] says.
    pub(super) async fn adapted(&self, caller: &Caller, path: &PlanPath, before: &PodSpec) -> Result<PodSpec, Error> {
        let (plan, of) = self.plan(caller, path).await?;
        Ok(of.adapted(&plan, before, secret))
    }

    async fn plan(&self, caller: &Caller, path: &PlanPath) -> Result<(Plan, PlanOf), Error> {
        let Entry { service, revision, .. } = self.service(caller, &path.service).await?;
        let plan = service.plan(path.plan.as_str()).ok_or_else(|| Error::not_found(format!("plan {path}")))?;
        let of = PlanOf { path: path.clone(), revision, env: plan.env.keys().cloned().collect() };
        Ok((plan.clone(), of))
    }

    /// Puts a service into the database, where it wins over files from now on. Pods that exist stay as they are.
    ///
    /// `matching` is the revision that the caller has read.
    ///
    /// # Errors
    /// [`Error::Forbidden`] for users, [`Error::Conflict`] when the service is not as it was read.
    pub async fn service_put(
        &self,
        caller: &Caller,
        service: &Service,
        matching: Option<&str>,
    ) -> Result<Entry, Error> {
        self.require_admin(caller)?;
        let expected = self.expected(&service.name, matching).await?;
        let row = StoredService {
            name: service.name.clone(),
            revision: revision(service),
            definition: serde_json::to_string(&definition(service))
                .map_err(|error| Error::Internal { problem: format!("write the definition: {error}") })?,
            actor: caller.actor.clone(),
            changed_at: self.now(),
        };
        let message = format!("service {} changed", row.name);
        let becomes = ServiceBecomes::Stored(row);
        self.service_commit(caller, ServiceChange { expected, becomes }, "service.changed", message).await?;
        self.service(caller, &service.name).await
    }

    /// Takes a service out of the database; answers the one of a file that is in force again, when there is one.
    ///
    /// # Errors
    /// [`Error::Forbidden`] for users, [`Error::NotFound`] when there is none, [`Error::Conflict`] when it comes from a file or is
    /// not as it was read.
    pub async fn service_remove(
        &self,
        caller: &Caller,
        name: &ServiceName,
        matching: Option<&str>,
    ) -> Result<Option<Entry>, Error> {
        self.require_admin(caller)?;
        if self.store.service_fetch(name).await?.is_none() {
            let Some(kept) = self.catalogue.files().kept.get(name).cloned() else { return Err(not_found(name)) };
            return Err(Error::conflict(
                "service-from-file",
                format!("service {name} is not in the database, it comes from {}", kept.file),
                "take the file out of the catalogue's directory and send the server SIGHUP; with a directory of its own, nothing \
                 that is shipped is in force",
            ));
        }
        let expected = self.expected(name, matching).await?;
        let change = ServiceChange { expected, becomes: ServiceBecomes::Removed(name.clone()) };
        let message = format!("service {name} removed from the database");
        self.service_commit(caller, change, "service.removed", message).await?;
        match self.service(caller, name).await {
            Ok(entry) => Ok(Some(entry)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(other) => Err(other),
        }
    }

    /// What has to be in the database for a caller who has read this revision.
    async fn expected(&self, name: &ServiceName, matching: Option<&str>) -> Result<Expected, Error> {
        let Some(matching) = matching else { return Ok(Expected::Anything) };
        let stored = self.store.service_fetch(name).await?;
        let (found, expected) = match stored {
            Some(row) => (Some(row.revision.clone()), Expected::Revision(row.revision)),
            None => (self.catalogue.files().kept.get(name).map(|kept| revision(&kept.service)), Expected::Absent),
        };
        if found.as_deref() == Some(matching) {
            return Ok(expected);
        }
        Err(Error::conflict(
            "version-mismatch",
            format!("service {name} is not as it was read"),
            "read it again, and send its ETag as If-Match",
        ))
    }

    async fn service_commit(
        &self,
        caller: &Caller,
        change: ServiceChange,
        kind: &str,
        message: String,
    ) -> Result<(), Error> {
        let event = self.catalogue_event(&caller.actor, kind, message);
        let change = Change { service: Some(change), events: vec![event], ..Change::default() };
        Ok(self.commit_for(caller, change).await?)
    }

    fn catalogue_event(&self, actor: &str, kind: &str, message: String) -> NewEvent {
        self.line_of(actor, TenantId::default_tenant(), (kind, message))
    }

    /// Looks at the files, and tells the log and the audit trail what is wrong with them. What cannot be used changes nothing.
    pub async fn catalogue_look(&self, occasion: Occasion) {
        let (catalogue, now) = (self.catalogue.clone(), self.now());
        let looked = match tokio::task::spawn_blocking(move || catalogue.look(now)).await {
            Ok(looked) => looked,
            Err(error) => return tracing::error!(%error, "look at the files of the catalogue"),
        };
        let mut events = Vec::new();
        for (file, mistakes) in &looked.refused {
            let problem = told(mistakes);
            tracing::warn!(%file, %problem, "a file of the catalogue is refused; what was in force before stays");
            events.push(self.catalogue_event(READER, "catalogue.file-refused", format!("{file}: {problem}")));
        }
        let changed = looked.changed.join(", ");
        if occasion == Occasion::Asked && !changed.is_empty() {
            let message = format!("files changed services: {changed}");
            events.push(self.catalogue_event(READER, "catalogue.changed", message));
        }
        if !events.is_empty()
            && let Err(error) = self.store.commit(Change { events, ..Change::default() }).await
        {
            tracing::warn!(%error, "record what became of the catalogue");
        }
        if occasion == Occasion::Asked {
            tracing::info!(%changed, "the catalogue was read again");
        }
    }
}

fn not_found(name: &ServiceName) -> Error {
    Error::not_found(format!("service {:?}", name.as_str()))
}

/// The first mistake, and how many there are.
fn told(mistakes: &[Mistake]) -> String {
    let first = mistakes.first().map_or_else(String::new, ToString::to_string);
    match mistakes.len() {
        0 | 1 => first,
        many => format!("{first} (and {} more)", many - 1),
    }
}

fn of_file(files: &Files, kept: &Kept) -> Entry {
    let stays = |refused: &Refused| Remark {
        kind: "FileRefused",
        reason: "mistakes",
        message: format!("{}: {}; what the file held before stays in force", kept.file, told(&refused.mistakes)),
        since: refused.since,
    };
    Entry {
        service: kept.service.clone(),
        revision: revision(&kept.service),
        source: match files.origin {
            Origin::Shipped => Source::Shipped,
            Origin::Directory => Source::File(kept.file.clone()),
        },
        remarks: kept.refused.iter().map(stays).collect(),
    }
}

fn of_refused(file: &str, refused: &Refused) -> Remark {
    Remark {
        kind: "FileRefused",
        reason: "mistakes",
        message: format!("{file}: {}; no service comes from it", told(&refused.mistakes)),
        since: refused.since,
    }
}

fn of_row(row: &StoredService, hidden: Option<&Kept>) -> Result<Entry, Remark> {
    let StoredService { name, revision, definition, actor, changed_at } = row;
    let hides = |kept: &Kept| Remark {
        kind: "OverridesFile",
        reason: "changed-by-api",
        message: format!("the database's definition is in force, and not that of {}", kept.file),
        since: *changed_at,
    };
    match read_json(definition.as_bytes()) {
        Ok(service) => Ok(Entry {
            service,
            revision: revision.clone(),
            source: Source::Database(actor.clone(), *changed_at),
            remarks: hidden.map(hides).into_iter().collect(),
        }),
        Err(mistakes) => Err(Remark {
            kind: "DefinitionUnreadable",
            reason: "mistakes",
            message: format!("service {name} in the database cannot be used: {}", told(&mistakes)),
            since: *changed_at,
        }),
    }
}
