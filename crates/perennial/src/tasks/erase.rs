//! Tenants that are to be erased: keys first, then what is in their places.
//!
//! | step | what | a crash after it |
//! |---|---|---|
//! | 1 | the erasure is committed: no pod is made, nothing is pruned or copied any more | goes on with 2 |
//! | 2 | on each server: the mark `TENANT.erased`, the key files go, open repositories are closed | is done again: nothing is left to do |
//! | 3 | committed, with everything that the database knows of the repositories | goes on with 4 |
//! | 4 | in each place: the copies of the master key go, then, where that was asked, all files but the config | what is left goes |
//! | 5 | committed for that place | it is not touched again; goes on with 6 |
//! | 6 | where that was asked, the config of that place goes | – |
//! | 7 | committed when that is so of every place | – |
//!
//! Each step looks at what there is and can be repeated, so there is no other recovery than to do them again. Every server that
//! shares the database does step 2 with its own copies of the keys, at its start, soon after the commit, and with every later
//! look: keys that were brought back from a backup go, too. Keys that are not those which were there when the erasure was asked
//! for are somebody else's, and so is a place that is not what was seen in it then: they are shown, and not touched. What is not
//! there is never taken for dealt with: a person gives it up.
//!
//! Keys and places have a loop each: a place that hangs keeps no key alive.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use perennial_core::fault::NoTap;
use perennial_core::operation::{NewEvent, Problem};
use perennial_core::progress::Progress;
use perennial_core::spec::TenantId;
use perennial_snapshots::{Raze, Seen};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Notify, watch};

use crate::keys::erase::Destroyed;
use crate::reconcile::Reconciler;
use crate::reconcile::repositories::Repositories;
use crate::service::{App, erasure_became};
use crate::store::{Asked, Became, Change, Erasure, ErasureChange, FoundPlace, ServerKeys, StoreError, Which};

/// How often erasures of other servers, and those that failed, are looked for.
const EVERY: Duration = Duration::from_secs(15);
/// Longest pause after failures.
const PAUSE_MAX: Duration = Duration::from_secs(3600);

pub(super) struct Eraser {
    app: App,
    reconciler: Arc<Reconciler>,
    /// Cancelled when the server stops.
    stop: Progress,
    /// What is at work now.
    current: Mutex<Progress>,
    /// Woken when keys were destroyed.
    places: Notify,
    /// Tenants that have no key on this server any more: only of those it deals with places.
    keyless: Mutex<HashSet<TenantId>>,
    /// What failed: how often, and when the next try is.
    failed: Mutex<HashMap<TenantId, (u32, Timestamp)>>,
}

/// Whether a problem is shown instead of that of another server, which may know better.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Says {
    Always,
    WhenNobodyDoes,
}

/// How far a place is.
enum Dealt {
    /// It is dealt with.
    Done,
    /// This server has no such place: another one may.
    Elsewhere(String),
    /// It cannot be dealt with now; it is tried again.
    Problem(String),
}

impl Eraser {
    pub(super) fn new(app: App, reconciler: Arc<Reconciler>) -> Self {
        Self {
            app,
            reconciler,
            stop: Progress::default(),
            current: Mutex::default(),
            places: Notify::new(),
            keyless: Mutex::default(),
            failed: Mutex::default(),
        }
    }

    /// Runs until `stopped` says so; what is at work is interrupted, which is safe at any moment.
    pub(super) async fn run(self, stopped: watch::Receiver<bool>) {
        let mut told = stopped.clone();
        let interrupt = async {
            let _ = told.wait_for(|stop| *stop).await;
            self.stop.cancel();
            locked(&self.current).cancel();
        };
        tokio::join!(self.run_keys(stopped.clone()), self.run_places(stopped), interrupt);
    }

    async fn run_keys(&self, mut stopped: watch::Receiver<bool>) {
        let mut commits = self.app.store.subscribe();
        while !*stopped.borrow() {
            self.keys_due().await;
            self.places.notify_one();
            let asked = async {
                loop {
                    match commits.recv().await {
                        // One that is about no pod may be about a tenant.
                        Ok(commit) if commit.pod.is_some() => {}
                        Ok(_) | Err(RecvError::Lagged(_)) => break,
                        Err(RecvError::Closed) => std::future::pending().await,
                    }
                }
            };
            tokio::select! {
                () = asked => {}
                () = tokio::time::sleep(EVERY) => {}
                _ = stopped.changed() => {}
            }
        }
    }

    async fn run_places(&self, mut stopped: watch::Receiver<bool>) {
        while !*stopped.borrow() {
            tokio::select! {
                () = self.places.notified() => self.places_due().await,
                _ = stopped.changed() => {}
            }
        }
    }

    /// Gets every erasure as far as it goes now.
    pub(super) async fn erase_due(&self) {
        self.keys_due().await;
        self.places_due().await;
    }

    async fn listed(&self) -> Vec<Erasure> {
        self.app.store.erasure_list().await.unwrap_or_else(|error| {
            tracing::warn!(%error, "look for tenants to erase");
            Vec::new()
        })
    }

    /// Destroys the keys of all of them: one that cannot go keeps none of the others.
    async fn keys_due(&self) {
        for erasure in self.listed().await {
            let tenant = &erasure.tenant;
            let destroyed = self.destroy_keys(&erasure).await;
            if destroyed.is_ok() {
                locked(&self.keyless).insert(tenant.clone());
            } else {
                locked(&self.keyless).remove(tenant);
            }
            if let Err(error) = self.note_keys(&erasure, destroyed).await {
                tracing::warn!(%tenant, %error, "record what became of a tenant's keys; tried again");
            }
        }
    }

    /// Records what this server did with its keys, and why some stay; that is so also when everything else was done.
    async fn note_keys(&self, erasure: &Erasure, destroyed: Result<Destroyed, Problem>) -> Result<(), StoreError> {
        let (tenant, server) = (&erasure.tenant, self.reconciler.holder());
        let before = erasure.servers.get(server).cloned().unwrap_or_default();
        let now = match destroyed {
            Ok(Destroyed { had, gone }) => ServerKeys { files: had.max(before.files + gone), problem: None },
            Err(Problem { message, hint, .. }) => {
                ServerKeys { problem: Some(format!("{message}; {hint}")), ..before.clone() }
            }
        };
        let is_first = erasure.keys_at.is_none() && now.problem.is_none();
        if is_first && now.files == 0 && erasure.had_keys() {
            let problem = "none of the tenant's keys is here, and no server that has them has destroyed them yet; start it, or \
                           give it up (--give-up) when its disk is destroyed";
            return self.show(erasure, problem, Says::WhenNobodyDoes).await;
        }
        if now == before && !is_first {
            return Ok(());
        }
        if let Some(problem) = &now.problem {
            tracing::error!(%tenant, problem, "destroy the keys of an erased tenant");
        }
        let message = match now.files - before.files {
            0 => format!("no key of tenant {tenant} is known"),
            files => format!("the keys of tenant {tenant} on server {server} were destroyed ({files} files)"),
        };
        let is_news = is_first || now.files > before.files;
        let at = self.app.clock.now();
        let change = ErasureChange::Server(tenant.clone(), server.to_owned(), now, at);
        self.record(erasure, is_news.then_some(("tenant.keys-destroyed", message)), change).await
    }

    /// Takes away what is in the places of those whose keys are destroyed here.
    async fn places_due(&self) {
        for erasure in self.listed().await {
            let tenant = &erasure.tenant;
            if erasure.done_at.is_some() {
                continue;
            }
            let now = self.app.clock.now();
            // Without a problem nobody tried yet, or somebody asked again.
            if erasure.problem.is_some() && locked(&self.failed).get(tenant).is_some_and(|(_, next)| now < *next) {
                continue;
            }
            match self.attend(tenant).await {
                Ok(()) => {}
                // Asked for anew meanwhile, or done by another server.
                Err(StoreError::Stale) => {}
                Err(error) => tracing::warn!(%tenant, %error, "erase a tenant; tried again"),
            }
        }
    }

    async fn attend(&self, tenant: &TenantId) -> Result<(), StoreError> {
        // As it is asked for now: the list may be hours old.
        let Some(erasure) = self.app.store.erasure_fetch(tenant).await? else { return Ok(()) };
        if erasure.done_at.is_some() || erasure.keys_at.is_none() || !locked(&self.keyless).contains(tenant) {
            return Ok(());
        }
        let progress = self.reconciler.erasure_begin(erasure.id);
        *locked(&self.current) = progress.clone();
        if self.stop.check().is_err() {
            progress.cancel();
        }
        // One place that is away, or hangs, keeps nothing in the other.
        let (first, second) = tokio::join!(
            self.deal_with(&erasure, Which::Repository, &progress),
            self.deal_with(&erasure, Which::Replica, &progress)
        );
        self.reconciler.erasure_end(erasure.id);
        let (mut problems, mut elsewhere) = (Vec::new(), Vec::new());
        for dealt in [first?, second?] {
            match dealt {
                Dealt::Done => {}
                Dealt::Elsewhere(place) => elsewhere.push(place),
                Dealt::Problem(problem) => problems.push(problem),
            }
        }
        if !problems.is_empty() {
            return self.postpone(&erasure, problems.join("; ")).await;
        }
        locked(&self.failed).remove(tenant);
        if !elsewhere.is_empty() {
            return self.show(&erasure, &elsewhere.join("; "), Says::WhenNobodyDoes).await;
        }
        let Some(done) = self.app.store.erasure_fetch(tenant).await? else { return Ok(()) };
        let became: Vec<String> = done.found.all().map(erasure_became).collect();
        let message = format!("tenant {tenant} was erased: {}", became.join("; "));
        let change = ErasureChange::Done(tenant.clone(), self.app.clock.now(), erasure.asked());
        self.record(&erasure, Some(("tenant.erased", message)), change).await
    }

    /// Destroys what this server has of a tenant's keys, in files and in memory.
    async fn destroy_keys(&self, erasure: &Erasure) -> Result<Destroyed, Problem> {
        let (places, keys) = (self.app.places.clone(), self.app.settings.keys.of_replicas());
        let (tenant, found) = (erasure.tenant.clone(), erasure.found.clone());
        let of = tenant.clone();
        let destroyed = blocking(move || {
            let first = places.repositories.erase_key(&of, &found.repository.prints);
            let prints = found.replica.map(|found| found.prints).unwrap_or_default();
            let second = match &places.replicas {
                Some(replicas) => replicas.erase_key(&of, &prints),
                // Replicas of an earlier configuration: their keys are here still.
                None => keys.erase(&of, &prints, &NoTap).map_err(|error| {
                    let hint = error.hint().to_owned();
                    Problem { code: "repository-key-unreadable".to_owned(), message: error.to_string(), hint }
                }),
            };
            // One that cannot go keeps not the other.
            let (first, second) = (first?, second?);
            Ok(Destroyed { had: first.had + second.had, gone: first.gone + second.gone })
        });
        let result = destroyed.await;
        if result.is_ok() {
            self.app.library.close(&tenant);
        }
        result
    }

    /// Takes away what is in one place, and records it.
    async fn deal_with(&self, erasure: &Erasure, which: Which, progress: &Progress) -> Result<Dealt, StoreError> {
        let Some(found) = erasure.found.one(which) else { return Ok(Dealt::Done) };
        let FoundPlace { location, seen: Some(seen), became: None | Some(Became::Emptied { .. }), .. } = found else {
            return Ok(Dealt::Done);
        };
        let places = &self.app.places;
        let place = match which {
            Which::Repository => Some(&places.repositories),
            Which::Replica => places.replicas.as_ref(),
        };
        let Some(place) = place.filter(|place| place.location(&erasure.tenant) == *location) else {
            let problem = format!(
                "its configuration does not name {location}: a server that does deals with it; if none does, name it again, or give \
                 it up (--give-up)"
            );
            // Of a place that was emptied only the config may be left.
            return Ok(if found.became.is_some() { Dealt::Done } else { Dealt::Elsewhere(problem) });
        };
        let (place, tenant) = (place.clone(), erasure.tenant.clone());
        if found.became.is_none()
            && let Err(problem) = self.take_away(erasure, which, (&place, seen), progress).await?
        {
            return Ok(Dealt::Problem(problem.message));
        }
        if erasure.asked() == Asked::KeysAndFiles {
            let seen = seen.clone();
            if let Err(problem) = blocking(move || place.raze_rest(&tenant, &seen)).await {
                return Ok(Dealt::Problem(problem.message));
            }
        }
        Ok(Dealt::Done)
    }

    async fn take_away(
        &self,
        erasure: &Erasure,
        which: Which,
        (place, seen): (&Repositories, &Seen),
        progress: &Progress,
    ) -> Result<Result<(), Problem>, StoreError> {
        let asked = erasure.asked();
        let what = match asked {
            Asked::Keys => Raze::Keys,
            Asked::KeysAndFiles => Raze::AllButConfig,
        };
        let (place, tenant, seen, shown) = (place.clone(), erasure.tenant.clone(), seen.clone(), progress.clone());
        let razed = match blocking(move || place.raze(&tenant, &seen, what, &shown)).await {
            Ok(razed) => razed,
            Err(problem) => return Ok(Err(problem)),
        };
        let became = match asked {
            Asked::Keys => Became::KeysGone,
            Asked::KeysAndFiles => Became::Emptied { files: razed.files, bytes: razed.bytes },
        };
        let change = ErasureChange::Became(erasure.tenant.clone(), which, became, asked);
        self.record(erasure, None, change).await.map(Ok)
    }

    async fn record(
        &self,
        erasure: &Erasure,
        event: Option<(&str, String)>,
        change: ErasureChange,
    ) -> Result<(), StoreError> {
        let (tenant, actor) = (&erasure.tenant, &erasure.actor);
        let event = event.map(|(kind, message)| NewEvent {
            at: self.app.clock.now(),
            actor: actor.clone(),
            tenant: tenant.clone(),
            pod: None,
            operation: None,
            kind: kind.to_owned(),
            message,
        });
        let told = event.as_ref().map(|event| event.message.clone());
        let events = event.into_iter().collect();
        self.app.store.commit(Change { erasure: Some(change), events, ..Change::default() }).await?;
        if let Some(told) = told {
            tracing::info!(%tenant, actor, "{told}");
        }
        Ok(())
    }

    /// Shows a failure; the next try is twice as far away each time.
    async fn postpone(&self, erasure: &Erasure, problem: String) -> Result<(), StoreError> {
        if self.stop.check().is_err() {
            // The server stops; nothing is wrong.
            return Ok(());
        }
        let now = self.app.clock.now();
        let next = {
            let mut failed = locked(&self.failed);
            let (count, next) = failed.entry(erasure.tenant.clone()).or_insert((0, now));
            *count += 1;
            let pause = EVERY.saturating_mul(1 << (*count).min(12)).min(PAUSE_MAX);
            *next = now.checked_add(pause).unwrap_or(now);
            *next
        };
        tracing::warn!(tenant = %erasure.tenant, problem, %next, "erase a tenant");
        let problem = format!("{problem}; what is gone for good can be given up (--give-up)");
        self.show(erasure, &problem, Says::Always).await
    }

    /// Records what is in the way, as this server sees it.
    async fn show(&self, erasure: &Erasure, problem: &str, says: Says) -> Result<(), StoreError> {
        let own = format!("server {}: ", self.reconciler.holder());
        let told = format!("{own}{problem}");
        let is_told = erasure.problem.as_ref() == Some(&told);
        let is_others = erasure.problem.as_ref().is_some_and(|problem| !problem.starts_with(&own));
        if is_told || (is_others && says == Says::WhenNobodyDoes) {
            return Ok(());
        }
        self.record(erasure, None, ErasureChange::Problem(erasure.tenant.clone(), Some(told))).await
    }
}

fn locked<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Problem> + Send + 'static) -> Result<T, Problem> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        let message = format!("a worker thread ended: {error}");
        Err(Problem { code: "internal".to_owned(), message, hint: String::new() })
    })
}
