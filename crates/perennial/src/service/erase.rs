//! Erasing a tenant: who may ask for it, what stands against it, and what it means (`words`). It is carried out by `tasks`, `erase`.

mod words;

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use perennial_core::Error;
use perennial_core::operation::{NewEvent, Problem};
use perennial_core::pod::Pod;
use perennial_core::replication::Copying;
use perennial_core::spec::TenantId;
use sha2::{Digest as _, Sha256};

use super::system::{Check, CheckState};
use super::{App, Caller};
use crate::reconcile::repositories::{Holding, Repositories};
use crate::store::{
    Became, Change, Erasure, ErasureChange, FoundPlace, FoundPlaces, Page, PodFilter, StoreError, TokenFilter,
    Visibility, Which,
};
pub(crate) use words::became;
use words::{KITS, kits, meaning, shown, summary};

/// Pods that are named in a refusal.
const NAMED: usize = 20;
/// Pods that are looked at.
const PODS: u32 = 1000;
/// How long a place may take until it counts as one that does not answer. The places are looked at at the same time, and whoever asked
/// waits for it: the command line waits longer.
pub(crate) const LOOK: Duration = Duration::from_secs(60);

/// The repositories of all tenants, and their replicas where there are any.
#[derive(Clone)]
pub struct Places {
    /// The repositories.
    pub repositories: Repositories,
    /// The replicas; `None` where none are configured.
    pub replicas: Option<Repositories>,
}

/// What is asked of a tenant.
#[derive(Debug, Clone, Default)]
pub struct Erase {
    /// The tenant's name, typed by a person.
    pub confirm: Option<String>,
    /// Whether nothing is done.
    pub dry_run: bool,
    /// Whether the files of the repositories are deleted as well.
    pub delete_data: bool,
    /// Which doubts do not matter ([`Erasing::accept`]): that snapshots are destroyed which the database knows nothing of, and that
    /// places which cannot be looked at are left as they are.
    pub accept_unknown: Option<String>,
    /// Whether what was not dealt with so far is given up.
    pub give_up: bool,
}

/// A tenant that is erased, is being erased, or would be.
#[derive(Debug, Clone)]
pub struct Erasing {
    /// Whose.
    pub tenant: TenantId,
    /// What was recorded; `None`: nobody asked for it yet.
    pub erasure: Option<Erasure>,
    /// Whether the files are deleted as well.
    pub delete_data: bool,
    /// What there is, or was when it was asked for.
    pub found: FoundPlaces,
    /// What stands against it.
    pub blockers: Vec<String>,
    /// What stands against it unless it is accepted.
    pub doubts: Vec<Doubt>,
    /// What it means, in sentences.
    pub meaning: Vec<String>,
}

/// Why it cannot be told what all would be lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Doubt {
    /// What it is about, always in the same words: how long a store took to say no is of no concern.
    key: String,
    /// What a person is told.
    pub text: String,
}

impl Erasing {
    /// What has to be said to accept these doubts, and no others; `None`: there are none.
    #[must_use]
    pub fn accept(&self) -> Option<String> {
        let keys: Vec<&str> = self.doubts.iter().map(|doubt| doubt.key.as_str()).collect();
        (!keys.is_empty()).then(|| hex::encode(&Sha256::digest(keys.join("\n"))[..8]))
    }
}

impl App {
    /// Says what it means to erase a tenant, or begins to. One that is erased already can be erased again, to delete its files.
    ///
    /// # Errors
    /// [`Error::Forbidden`] for everybody but administrators; [`Error::NotFound`] for a tenant that nobody has heard of;
    /// [`Error::InvalidInput`] without the confirmation; [`Error::Conflict`] with everything that stands against it.
    pub async fn tenant_erase(&self, caller: &Caller, tenant: &TenantId, ask: &Erase) -> Result<Erasing, Error> {
        self.require_admin(caller)?;
        let before = self.store.erasure_fetch(tenant).await?;
        if ask.give_up {
            return self.give_up(caller, tenant, ask, before).await;
        }
        if let Some(erasure) = &before
            && (erasure.delete_data || !ask.delete_data)
        {
            self.confirmed(tenant, ask)?;
            if !ask.dry_run && erasure.problem.is_some() {
                // Whoever asks again may have mended it: it is tried at once.
                let solved = Some(ErasureChange::Problem(tenant.clone(), None));
                self.commit_for(caller, Change { erasure: solved, ..Change::default() }).await?;
            }
            return self.erasure(caller, tenant).await;
        }
        let plan = match before {
            // What was done stays done; what is planned is the rest.
            Some(erasure) => planned(erasure.with_files()),
            None => self.erasing(tenant, ask.delete_data).await?,
        };
        if ask.dry_run {
            return Ok(plan);
        }
        self.confirmed(tenant, ask)?;
        if !plan.blockers.is_empty() {
            let all = plan.blockers.join("; ");
            let hint = "perennial pod purge every pod of it, archived and deleted ones too, wait for what is being done, and try again";
            return Err(Error::conflict("tenant-in-use", format!("tenant {tenant} cannot be erased: {all}"), hint));
        }
        if plan.accept() != ask.accept_unknown.clone().filter(|_| !plan.doubts.is_empty()) {
            let doubts: Vec<&str> = plan.doubts.iter().map(|doubt| doubt.text.as_str()).collect();
            let problem = format!("it is not sure what would be lost: {}", doubts.join("; "));
            let hint = "is it the right database, and is every disk mounted? acceptUnknown (--accept-unknown) erases all the same, \
                        when it repeats what the dry run says of just these doubts";
            return Err(Error::conflict("tenant-unclear", problem, hint));
        }
        let erasure = Erasure {
            id: self.operation_id(),
            tenant: tenant.clone(),
            actor: caller.actor.clone(),
            asked_at: self.now(),
            delete_data: ask.delete_data,
            found: plan.found.clone(),
            servers: BTreeMap::new(),
            keys_at: None,
            done_at: None,
            problem: None,
        };
        let event = self.erasure_event(
            caller,
            tenant,
            ("tenant.erase-requested", format!("tenant {tenant} is to be erased: {}", summary(&erasure))),
        );
        let begun = ErasureChange::Begun(Box::new(erasure));
        self.commit_for(caller, Change { erasure: Some(begun), events: vec![event], ..Change::default() }).await?;
        self.erasure(caller, tenant).await
    }

    /// Gives up what was not dealt with: the word of a person, for what is gone for good.
    async fn give_up(
        &self,
        caller: &Caller,
        tenant: &TenantId,
        ask: &Erase,
        before: Option<Erasure>,
    ) -> Result<Erasing, Error> {
        let wrong = |problem, hint: &str| Err(Error::invalid("giveUp", problem, hint));
        let Some(mut after) = before else {
            return wrong("is for an erasure that was asked for", "ask for it without giveUp (--give-up) first");
        };
        if ask.delete_data && !after.delete_data {
            return wrong("is not for files that nobody tried to delete", "ask for them first, and give up what stays");
        }
        let now = self.now();
        let open = words::open(&after);
        if ask.dry_run {
            after.give_up(now);
            return Ok(planned(after));
        }
        self.confirmed(tenant, ask)?;
        if !open.is_empty() {
            let message = format!("of tenant {tenant} was given up: {}", open.join(", "));
            let event = self.erasure_event(caller, tenant, ("tenant.erase-given-up", message));
            let change = Some(ErasureChange::GivenUp(tenant.clone(), now, after.asked()));
            let change = Change { erasure: change, events: vec![event], ..Change::default() };
            let given_up = self.commit_for(caller, change).await;
            if matches!(given_up, Err(StoreError::Stale)) {
                let hint = "look at it once more, and give up what is left then";
                return Err(Error::conflict("erasure-changed", "the files were asked for meanwhile", hint));
            }
            given_up?;
        }
        self.erasure(caller, tenant).await
    }

    fn erasure_event(&self, caller: &Caller, tenant: &TenantId, news: (&str, String)) -> NewEvent {
        self.line_of(&caller.actor, tenant.clone(), news)
    }

    /// Tells how far the erasure of a tenant is.
    ///
    /// # Errors
    /// [`Error::Forbidden`] for everybody but administrators; [`Error::NotFound`] when nobody asked for one.
    pub async fn erasure(&self, caller: &Caller, tenant: &TenantId) -> Result<Erasing, Error> {
        self.require_admin(caller)?;
        let found = self.store.erasure_fetch(tenant).await?;
        found.map(recorded).ok_or_else(|| Error::not_found(format!("erasure of tenant {tenant}")))
    }

    /// Refuses a tenant that was erased here, also when the database is from before that.
    pub(super) async fn refuse_erased(&self, tenant: &TenantId) -> Result<(), Error> {
        let (keys, of) = (self.settings.keys.clone(), tenant.clone());
        let unknown = |problem: String| Error::Unavailable {
            problem: format!("look for the mark of an erased tenant: {problem}"),
        };
        let erased = tokio::task::spawn_blocking(move || keys.is_erased(&of));
        if !erased.await.map_err(|error| unknown(error.to_string()))?.map_err(|error| unknown(error.to_string()))? {
            return Ok(());
        }
        Err(StoreError::TenantErased(tenant.clone()).into())
    }

    fn confirmed(&self, tenant: &TenantId, ask: &Erase) -> Result<(), Error> {
        if ask.dry_run || ask.confirm.as_deref() == Some(tenant.as_str()) {
            return Ok(());
        }
        let (name, problem) =
            (tenant.as_str(), if ask.confirm.is_some() { "is not the tenant's name" } else { "is missing" });
        Err(Error::invalid(
            "confirm",
            problem,
            format!("repeat the name to confirm: {name:?}; see what goes with dryRun"),
        ))
    }

    /// What keeps tenants from being erased, or their keys from being gone.
    pub(super) async fn erasure_checks(&self) -> Vec<Check> {
        // A database that does not answer is told already.
        let all = self.store.erasure_list().await.unwrap_or_default();
        let told = |erasure: Erasure| {
            let message = format!("tenant {} is not erased everywhere: {}", erasure.tenant, erasure.problems()?);
            let hint = format!("perennial tenant erasure {} says what there is", erasure.tenant);
            Some(Check::bad("erasure", CheckState::Failed, message, hint))
        };
        all.into_iter().filter_map(told).collect()
    }

    /// What there is of a tenant, and what stands against its end.
    async fn erasing(&self, tenant: &TenantId, delete_data: bool) -> Result<Erasing, Error> {
        let (first, replica) = tokio::join!(looked(&self.places.repositories, tenant, Which::Repository), async {
            match &self.places.replicas {
                Some(replicas) => Some(looked(replicas, tenant, Which::Replica).await),
                None => self.replica_of_before(tenant),
            }
        });
        let has_replica = self.store.replica_fetch(tenant).await?.is_some();
        let has_repository = has_replica || !self.store.images_of(tenant).await?.is_empty();
        let first = not_empty(first, has_repository);
        let replica = match replica {
            None if has_replica => Some(not_empty(nothing(), has_replica)),
            other => other.map(|replica| not_empty(replica, has_replica)),
        };
        let all = [Some(&first), replica.as_ref()];
        let is_known = self.store.tenant_known(tenant).await?;
        if !is_known && !all.iter().flatten().any(|one| one.key || one.made) {
            return Err(Error::not_found(format!("tenant {tenant}")));
        }
        let filter = PodFilter { tenant: Some(tenant.clone()), visibility: Visibility::All, ..PodFilter::default() };
        let pods = self.store.pod_list(&filter, &Page::first(PODS)).await?;
        let mut blockers: Vec<String> = pods.iter().take(NAMED).map(named).collect();
        if pods.len() > NAMED {
            let more = pods.len() - NAMED;
            let at_least = if pods.len() == PODS as usize { "at least " } else { "" };
            blockers.push(format!("pods: {at_least}{more} more"));
        }
        blockers.extend(self.store.tenant_work(tenant, self.now()).await?);
        for place in all.into_iter().flatten() {
            let stands = place.in_work.iter().chain(&place.of_others);
            blockers.extend(stands.map(|why| format!("{}: {}", shown(&place.location), why.message)));
        }
        let mut doubts = doubts(&first, replica.as_ref(), &pods);
        if let Some(replica) = &replica {
            doubts.extend(self.unknown_in(tenant, replica).await?);
        }
        let exports = self.store.recovery_exports().await?;
        let found = FoundPlaces { repository: found(&first), replica: replica.as_ref().map(found) };
        let mut meaning = meaning(&found, delete_data, words::KEYS_GO, &kits(&exports, tenant));
        meaning.extend(self.rights_in(tenant).await?);
        Ok(Erasing { meaning, doubts, tenant: tenant.clone(), erasure: None, delete_data, found, blockers })
    }

    /// Whose rights end with the tenant, in words; `None`: nobody's.
    async fn rights_in(&self, tenant: &TenantId) -> Result<Option<String>, Error> {
        let members = self.store.members_of(tenant).await?.len();
        let filter = TokenFilter { user: None, tenant: Some(tenant.clone()) };
        let tokens = self.store.token_list(&filter, &Page::first(PODS)).await?;
        let tokens = tokens.iter().filter(|token| token.revoked_at.is_none()).count();
        Ok((members + tokens > 0).then(|| words::rights(members, tokens)))
    }

    /// What is left here of a replica that the configuration names no more; `None`: nothing.
    fn replica_of_before(&self, tenant: &TenantId) -> Option<Holding> {
        let keys = self.settings.keys.of_replicas();
        let is_left = !matches!(keys.read(tenant), Ok(None)) || !matches!(keys.is_made(tenant), Ok(false));
        is_left.then(|| {
            let message =
                format!("replica-keys/{tenant} is here, and the configuration does not say where its place is (name it again in \
                         [replication] first, if no other host uses it)");
            Holding {
                key: true,
                made: true,
                prints: keys.prints(tenant).unwrap_or_default(),
                problem: Some(Problem { code: "replica-not-configured".to_owned(), message, hint: String::new() }),
                ..Holding::default()
            }
        })
    }

    /// What is in a replica that this database never had copied there: after a takeover it may be somebody's only copy.
    async fn unknown_in(&self, tenant: &TenantId, replica: &Holding) -> Result<Option<Doubt>, Error> {
        let (Some(contents), Some(seen)) = (&replica.contents, &replica.seen) else { return Ok(None) };
        let noted = self.store.replicated(tenant, &contents.id).await?;
        let known: HashSet<String> = noted
            .into_iter()
            .filter_map(|note| match note.copying {
                Copying::Copied(name) => Some(name),
                Copying::Failed(_) => None,
            })
            .collect();
        let unknown = seen.snapshots.iter().filter(|name| !known.contains(&name.to_string())).count();
        let place = &replica.location;
        Ok((unknown > 0).then(|| Doubt {
            key: format!("{place} never copied {unknown}"),
            text: format!(
                "{place} holds {unknown} snapshots that this server never copied there, and they would be destroyed: after a takeover \
                 they may be another host's only ones"
            ),
        }))
    }
}

/// Looks at a place, for as long as that may take.
async fn looked(place: &Repositories, tenant: &TenantId, which: Which) -> Holding {
    let (there, of) = (place.clone(), tenant.clone());
    let looking = tokio::task::spawn_blocking(move || there.look(&of, which));
    let message = match tokio::time::timeout(LOOK, looking).await {
        Ok(Ok(holding)) => return holding,
        Ok(Err(error)) => format!("look at the repository: {error}"),
        Err(_) => format!("it did not answer within {} s", LOOK.as_secs()),
    };
    let problem = Problem { code: "repository-unavailable".to_owned(), message, hint: String::new() };
    Holding { problem: Some(problem), ..place.known(tenant) }
}

/// A place in which nothing is, and of which nothing is known here.
fn nothing() -> Holding {
    Holding { snapshots: Some(0), bytes: Some(0), ..Holding::default() }
}

/// What is neither there nor known here is not called empty when the database knows of something in it.
fn not_empty(mut holding: Holding, is_known: bool) -> Holding {
    let is_blank = holding.snapshots == Some(0) && holding.seen.is_none() && !holding.key && !holding.made;
    if is_known && is_blank && holding.problem.is_none() {
        let message = "the database knows of it, and neither it nor its key is here".to_owned();
        holding.problem = Some(Problem { code: "repository-missing".to_owned(), message, hint: String::new() });
    }
    holding
}

fn recorded(erasure: Erasure) -> Erasing {
    Erasing { erasure: Some(erasure.clone()), ..planned(erasure) }
}

/// What would be recorded.
fn planned(erasure: Erasure) -> Erasing {
    Erasing {
        meaning: meaning(&erasure.found, erasure.delete_data, &words::keys(&erasure), KITS),
        tenant: erasure.tenant,
        delete_data: erasure.delete_data,
        found: erasure.found,
        blockers: Vec::new(),
        doubts: Vec::new(),
        erasure: None,
    }
}

fn named(pod: &Pod) -> String {
    format!("pod {} ({}) is not purged", pod.name, pod.id)
}

fn found(holding: &Holding) -> FoundPlace {
    // What could not be looked at to the end is not called empty, nor counted, and never touched.
    let is_told = holding.problem.is_none() && holding.of_others.is_none();
    let became = match &holding.seen {
        _ if !is_told => Some(Became::Untouched),
        // One that somebody works on is looked at when they are done; nothing is recorded before.
        None if holding.in_work.is_none() => Some(Became::Absent),
        _ => None,
    };
    FoundPlace {
        location: holding.location.clone(),
        seen: holding.seen.clone().filter(|_| is_told),
        prints: holding.prints.clone(),
        snapshots: holding.snapshots.filter(|_| is_told),
        bytes: holding.bytes.filter(|_| is_told),
        became,
    }
}

/// What would be lost that nobody can have meant, because the database does not know of it, or nobody can look.
fn doubts(first: &Holding, replica: Option<&Holding>, pods: &[Pod]) -> Vec<Doubt> {
    let mut doubts = Vec::new();
    for place in [Some(first), replica].into_iter().flatten() {
        if let Some(problem) = &place.problem {
            let location = shown(&place.location);
            doubts.push(Doubt {
                key: format!("{location} not looked at"),
                text: format!("{location} cannot be looked at, and would be left as it is: {}", problem.message),
            });
        }
    }
    let known: HashSet<String> = pods.iter().map(|pod| pod.id.to_string()).collect();
    let held = first.contents.iter().flat_map(|contents| &contents.pods);
    let unknown = held.filter(|pod| !known.contains(*pod)).count();
    let place = &first.location;
    let mut lost = |count: usize, what: &str| {
        if count > 0 {
            let text = format!("{place} holds {what}, and they would be destroyed");
            doubts.push(Doubt { key: text.clone(), text });
        }
    };
    lost(unknown, &format!("snapshots of {unknown} pods that the database does not know"));
    let others = first.contents.as_ref().map_or(0, |contents| contents.others);
    lost(others, &format!("{others} snapshots that no server of this installation made"));
    doubts
}

#[cfg(test)]
mod tests;
