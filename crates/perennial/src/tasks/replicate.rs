//! Every verified snapshot comes to the replica of its tenant's repository, and what was deleted goes from there later.
//!
//! A turn looks at one tenant: what should be in the replica (the database says so), what is recorded of it, and what is
//! in it. What is missing is copied, images first, then the newest snapshots; each is read back there before it counts,
//! and recorded as soon as it does. So a turn that was interrupted anywhere is gone on with by the next one. What a turn
//! could not do is shown (`problem`, `replicaProblem`) until one can.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use perennial_core::id::SnapshotId;
use perennial_core::operation::{NewEvent, Problem};
use perennial_core::progress::Progress;
use perennial_core::replication::{Copying, Delays, Noted, Part, Plan, Wanted, plan};
use perennial_core::snapshot::{Care, Snapshot};
use perennial_core::spec::TenantId;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{mpsc, watch};

use crate::causes::describe;
use crate::reconcile::repositories::Repositories;
use crate::reconcile::{LOCKED, Reconciler, SeenReplica};
use crate::service::App;
use crate::store::{Change, NoteChange, Page, PodFilter, Replica, ReplicaNote, StoreError, Visibility};

/// How often what is missing is looked for, and the pause in which others get a repository for themselves.
const EVERY: Duration = Duration::from_secs(60);
/// What was committed is looked at after this long: others may follow.
const SOON: Duration = Duration::from_secs(2);
/// A replica that lacks nothing, as far as the database says, is looked at this often.
const WHOLE_EVERY: SignedDuration = SignedDuration::from_mins(15);
/// A turn begins no other snapshot after this long.
const TURN: Duration = Duration::from_secs(600);
/// What could not be copied is tried again after this long: all of it is read each time.
const AGAIN_AFTER: SignedDuration = SignedDuration::from_hours(1);
/// How often a replica is pruned.
const PRUNE_EVERY: SignedDuration = SignedDuration::from_hours(24);
/// Longest pause after failures.
const PAUSE_MAX: Duration = Duration::from_secs(3600);
/// Another server goes on after this long, when the one that was at work is gone. One that is not only does some of it twice.
const CLAIM: SignedDuration = SignedDuration::from_mins(30);
/// Rows read at a time.
const PAGE: u32 = 200;
/// Who forgets what was deleted.
const ACTOR: &str = "replication";

/// Where copies go.
#[derive(Clone)]
pub struct Replicas {
    /// The replicas, one for each tenant.
    pub repositories: Repositories,
    /// How long what was deleted stays there.
    pub forget_after: SignedDuration,
}

pub(super) struct Replicator {
    app: App,
    reconciler: Arc<Reconciler>,
    replicas: Option<Replicas>,
    progress: Progress,
    /// Replicas whose last turns failed: how often, and when the next try is.
    failed: Mutex<HashMap<TenantId, (u32, Timestamp)>>,
    /// When each replica was looked at last.
    looked: Mutex<HashMap<TenantId, Timestamp>>,
}

/// How a turn ended that met with nothing wrong.
#[derive(PartialEq, Eq)]
pub(super) enum Ended {
    /// Everything was looked at.
    Whole,
    /// There is more to be copied.
    Early,
}

/// Why a turn did not get to its end.
enum Stopped {
    /// A repository, or the database.
    Problem(Problem),
    /// Somebody else works on a repository; the next look tries again.
    Busy,
}

impl From<StoreError> for Stopped {
    fn from(error: StoreError) -> Self {
        let (code, hint) = ("database-unavailable".to_owned(), String::new());
        Self::Problem(Problem { code, message: describe(&error), hint })
    }
}

impl From<Problem> for Stopped {
    fn from(problem: Problem) -> Self {
        if problem.code == LOCKED { Self::Busy } else { Self::Problem(problem) }
    }
}

impl Replicator {
    pub(super) fn new(app: App, reconciler: Arc<Reconciler>, replicas: Option<Replicas>) -> Self {
        Self {
            app,
            reconciler,
            replicas,
            progress: Progress::default(),
            failed: Mutex::default(),
            looked: Mutex::default(),
        }
    }

    /// Runs until `stopped` says so; a copy in work is interrupted, which is safe at any moment.
    pub(super) async fn run(self, mut stopped: watch::Receiver<bool>) {
        if self.replicas.is_none() {
            return;
        }
        let progress = self.progress.clone();
        let mut told = stopped.clone();
        let mut commits = self.app.store.subscribe();
        let work = async {
            while !*stopped.borrow() {
                let ended = self.replicate_due().await;
                let something_new = async {
                    loop {
                        match commits.recv().await {
                            Ok(commit) if commit.operations.is_empty() => {}
                            Ok(_) | Err(RecvError::Lagged(_)) if ended == Ended::Whole => break,
                            Ok(_) | Err(RecvError::Lagged(_)) => {}
                            Err(RecvError::Closed) => std::future::pending().await,
                        }
                    }
                    tokio::time::sleep(SOON).await;
                };
                tokio::select! {
                    () = something_new => {}
                    () = tokio::time::sleep(EVERY) => {}
                    _ = stopped.changed() => {}
                }
            }
        };
        let interrupt = async {
            let _ = told.wait_for(|stop| *stop).await;
            progress.cancel();
        };
        tokio::join!(work, interrupt);
    }

    /// A turn for each tenant that is not waiting after a failure.
    pub(super) async fn replicate_due(&self) -> Ended {
        let mut all = Ended::Whole;
        let Some(replicas) = &self.replicas else { return all };
        let tenants = match self.app.store.replica_tenants().await {
            Ok(tenants) => tenants,
            Err(error) => {
                tracing::warn!(%error, "look for what is to be replicated");
                return all;
            }
        };
        for tenant in tenants {
            let now = self.app.clock.now();
            if self.stops() || self.failed().get(&tenant).is_some_and(|(_, next)| now < *next) {
                continue;
            }
            match self.attend(replicas, &tenant).await {
                Ok(Ended::Whole) => {}
                Ok(Ended::Early) => all = Ended::Early,
                Err(error) => tracing::warn!(%tenant, %error, "record how far a replica is"),
            }
        }
        all
    }

    /// Whether something is missing, or nobody has looked for long.
    async fn is_due(&self, tenant: &TenantId, now: Timestamp) -> Result<bool, StoreError> {
        let looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner).get(tenant).copied();
        let lately = looked.is_some_and(|at| at <= now && now.duration_since(at) < WHOLE_EVERY);
        if !lately {
            return Ok(true);
        }
        let replica = self.app.store.replica_fetch(tenant).await?.and_then(|replica| replica.id).unwrap_or_default();
        let since = now.checked_sub(AGAIN_AFTER).unwrap_or(Timestamp::MIN);
        self.app.store.replica_lacks(tenant, &replica, (since, now)).await
    }

    /// Has one turn, and records what came of it.
    async fn attend(&self, replicas: &Replicas, tenant: &TenantId) -> Result<Ended, StoreError> {
        let now = self.app.clock.now();
        if !self.is_due(tenant, now).await? {
            return Ok(Ended::Whole);
        }
        let until = now.checked_add(CLAIM).unwrap_or(Timestamp::MAX);
        if !self.app.store.replica_claim(tenant, self.reconciler.holder(), (now, until)).await? {
            return Ok(Ended::Whole);
        }
        let fresh = || Replica { tenant: tenant.clone(), id: None, looked_at: None, pruned_at: None, problem: None };
        let mut replica = self.app.store.replica_fetch(tenant).await?.unwrap_or_else(fresh);
        let mut ended = Ended::Whole;
        match self.turn(replicas, &mut replica).await {
            Ok(so) => {
                ended = so;
                self.failed().remove(tenant);
                self.looked.lock().unwrap_or_else(PoisonError::into_inner).insert(tenant.clone(), now);
                replica.problem = None;
            }
            // What was shown before is as true as it was.
            Err(Stopped::Busy) => tracing::debug!(%tenant, "the repository or its replica is in use"),
            // The server stops.
            Err(Stopped::Problem(_)) if self.stops() => {}
            Err(Stopped::Problem(problem)) => {
                let next = self.postpone(tenant.clone(), now);
                tracing::warn!(%tenant, problem = problem.message, %next, "replicate a repository");
                replica.problem = Some(problem.message);
            }
        }
        self.app.store.replica_save(&replica).await?;
        Ok(ended)
    }

    async fn turn(&self, replicas: &Replicas, replica: &mut Replica) -> Result<Ended, Stopped> {
        let (store, now, tenant) = (&self.app.store, self.app.clock.now(), &replica.tenant.clone());
        let seen = self.reconciler.replica_look(&replicas.repositories, tenant).await?;
        if replica.id.as_ref() != Some(&seen.id) {
            if replica.id.is_some() {
                tracing::warn!(%tenant, replica = seen.id, "another replica than before: everything is copied to it");
            }
            (replica.id, replica.pruned_at) = (Some(seen.id.clone()), Some(now));
        }
        let mut noted = store.replicated(tenant, &seen.id).await?;
        if self.doubt_images(&seen, tenant, &noted, now).await? {
            noted = store.replicated(tenant, &seen.id).await?;
        }
        let (wanted, rows) = self.wanted(tenant, &noted).await?;
        let delays = Delays { forget_after: replicas.forget_after, again_after: AGAIN_AFTER };
        let mut plan = plan(&wanted, &noted, &seen.names, now, delays);
        let mut desk =
            Desk { replicator: self, tenant, replica: &seen.id, images: HashMap::new(), failed: failures(&noted) };
        desk.mark(&plan, &noted, now).await?;
        desk.doubt(&plan, rows).await?;
        let (images, others): (Vec<Wanted>, Vec<Wanted>) =
            std::mem::take(&mut plan.copy).into_iter().partition(|one| one.part == Part::Image);
        if desk.copy(replicas, &images).await? == Ended::Early {
            return Ok(Ended::Early);
        }
        desk.images = lacking(&wanted, &store.replicated(tenant, &seen.id).await?);
        if desk.copy(replicas, &others).await? == Ended::Early {
            return Ok(Ended::Early);
        }
        desk.forget(replicas, &plan, &noted).await?;
        replica.looked_at = Some(now);
        if replica.pruned_at.is_none_or(|at| at > now || now.duration_since(at) >= PRUNE_EVERY) {
            let pruned = self.reconciler.replica_prune(&replicas.repositories, tenant, &self.progress).await?;
            tracing::info!(
                %tenant, marked = pruned.waiting, deleted = pruned.expired.len(), freed = pruned.freed_bytes,
                "pruned a replica"
            );
            replica.pruned_at = Some(now);
        }
        Ok(Ended::Whole)
    }

    /// Takes back what is said of snapshots whose images were in the replica and are not any more; tells whether there are any.
    async fn doubt_images(
        &self,
        seen: &SeenReplica,
        tenant: &TenantId,
        noted: &[Noted],
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let copies = |part| noted.iter().filter(move |note| note.wanted.part == part).filter_map(copied);
        let there: HashSet<&str> = copies(Part::Image)
            .filter(|(_, copy)| seen.names.contains(*copy))
            .map(|(note, _)| note.wanted.name.as_str())
            .collect();
        let lost: HashSet<&str> = copies(Part::Image)
            .map(|(note, _)| note.wanted.name.as_str())
            .filter(|name| !there.contains(name))
            .collect();
        if lost.is_empty() {
            return Ok(false);
        }
        let of: HashMap<SnapshotId, &Noted> = copies(Part::Snapshot)
            .filter_map(|(note, _)| Some((note.wanted.name.as_str().parse().ok()?, note)))
            .collect();
        let ids: Vec<SnapshotId> = of.keys().copied().collect();
        let (mut replica_notes, mut cares) = (Vec::new(), Vec::new());
        for ids in ids.chunks(PAGE as usize) {
            for row in self.app.store.snapshots_fetch(ids).await? {
                let (Some(note), Some(image)) = (of.get(&row.id), row.image.as_deref()) else { continue };
                if !lost.contains(image) {
                    continue;
                }
                let why = format!("its image {image} was in the replica, and is not any more; it is copied again");
                cares.push((row.id, Care::NotReplicated(Some(why.clone()))));
                // It counts again as soon as the image does: nothing has to wait for that.
                let at = now.checked_sub(AGAIN_AFTER).unwrap_or(Timestamp::MIN);
                let known = Noted { copying: Copying::Failed(why), at, ..(*note).clone() };
                let change = NoteChange::Known(known);
                replica_notes.push(ReplicaNote { tenant: tenant.clone(), replica: seen.id.clone(), change });
            }
        }
        if cares.is_empty() {
            return Ok(false);
        }
        tracing::error!(%tenant, snapshots = cares.len(), "images are gone from a replica");
        self.app.store.commit(Change { replica_notes, cares, ..Change::default() }).await?;
        Ok(true)
    }

    /// What should be in a tenant's replica, and the rows of those snapshots of which nothing good is known yet.
    async fn wanted(
        &self,
        tenant: &TenantId,
        noted: &[Noted],
    ) -> Result<(Vec<Wanted>, HashMap<String, Snapshot>), StoreError> {
        let store = &self.app.store;
        let of_image = |image: crate::store::StoredImage| Wanted {
            part: Part::Image,
            name: image.image,
            original: image.repository_id,
        };
        let mut wanted: Vec<Wanted> = store.images_of(tenant).await?.into_iter().map(of_image).collect();
        let snapshots = noted.iter().filter(|note| note.wanted.part == Part::Snapshot);
        let known: HashMap<&str, &Noted> = snapshots.map(|note| (note.wanted.name.as_str(), note)).collect();
        let mut unknown: Vec<SnapshotId> = Vec::new();
        for (id, verified) in store.snapshot_ids_of(tenant).await? {
            match known.get(id.to_string().as_str()) {
                // As long as there is a row, in whatever state, its copy stays.
                Some(note) => {
                    wanted.push(note.wanted.clone());
                    if !matches!(note.copying, Copying::Copied(_)) {
                        unknown.push(id);
                    }
                }
                None if verified => unknown.push(id),
                None => {}
            }
        }
        let mut rows = HashMap::new();
        for ids in unknown.chunks(PAGE as usize) {
            for row in store.snapshots_fetch(ids).await? {
                let (name, Some(original)) = (row.id.to_string(), row.repository_id.clone()) else { continue };
                if !known.contains_key(name.as_str()) {
                    wanted.push(Wanted { part: Part::Snapshot, name: name.clone(), original });
                }
                rows.insert(name, row);
            }
        }
        let filter = PodFilter { tenant: Some(tenant.clone()), visibility: Visibility::All, ..PodFilter::default() };
        let mut page = Page::first(PAGE);
        loop {
            let pods = store.pod_list(&filter, &page).await?;
            wanted.extend(pods.iter().filter_map(|pod| {
                let original = pod.layer.as_ref()?.repository_id.clone()?;
                Some(Wanted { part: Part::Layer, name: pod.id.to_string(), original })
            }));
            match pods.last() {
                Some(last) if pods.len() == PAGE as usize => page.after = Some(last.id.to_string()),
                _ => return Ok((wanted, rows)),
            }
        }
    }

    fn stops(&self) -> bool {
        self.progress.check().is_err()
    }

    /// Notes a failure; the next try is twice as far away each time.
    fn postpone(&self, tenant: TenantId, now: Timestamp) -> Timestamp {
        let mut failed = self.failed();
        let (count, next) = failed.entry(tenant).or_insert((0, now));
        let pause = EVERY.saturating_mul(1 << (*count).min(12)).min(PAUSE_MAX);
        *count += 1;
        *next = now.checked_add(pause).unwrap_or(now);
        *next
    }

    fn failed(&self) -> std::sync::MutexGuard<'_, HashMap<TenantId, (u32, Timestamp)>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Something that was copied, and what it is called in the replica.
fn copied(note: &Noted) -> Option<(&Noted, &str)> {
    match &note.copying {
        Copying::Copied(copy) => Some((note, copy)),
        Copying::Failed(_) => None,
    }
}

/// What is written in one turn.
struct Desk<'a> {
    replicator: &'a Replicator,
    tenant: &'a TenantId,
    /// The id of the replica.
    replica: &'a str,
    /// Images that are not in it, and why.
    images: HashMap<String, String>,
    /// Why things could not be copied before, by what they are called in the first repository.
    failed: HashMap<String, String>,
}

/// What could not be copied, and why.
fn failures(noted: &[Noted]) -> HashMap<String, String> {
    let failure = |note: &Noted| match &note.copying {
        Copying::Failed(why) => Some((note.wanted.original.clone(), why.clone())),
        Copying::Copied(_) => None,
    };
    noted.iter().filter_map(failure).collect()
}

/// Images that should be in a replica and are not, and why.
fn lacking(wanted: &[Wanted], noted: &[Noted]) -> HashMap<String, String> {
    let mut lacking: HashMap<String, String> = HashMap::new();
    for image in wanted.iter().filter(|one| one.part == Part::Image) {
        lacking.insert(image.name.clone(), "it was not copied yet".to_owned());
    }
    let images = || noted.iter().filter(|note| note.wanted.part == Part::Image);
    for note in images() {
        if let (Copying::Failed(why), Some(reason)) = (&note.copying, lacking.get_mut(&note.wanted.name)) {
            reason.clone_from(why);
        }
    }
    for note in images().filter(|note| matches!(note.copying, Copying::Copied(_))) {
        lacking.remove(&note.wanted.name);
    }
    lacking
}

impl Desk<'_> {
    fn note(&self, change: NoteChange) -> ReplicaNote {
        ReplicaNote { tenant: self.tenant.clone(), replica: self.replica.to_owned(), change }
    }

    async fn commit(&self, change: Change) -> Result<(), StoreError> {
        self.replicator.app.store.commit(change).await
    }

    fn event(&self, kind: &str, message: String) -> NewEvent {
        NewEvent {
            at: self.replicator.app.clock.now(),
            actor: ACTOR.to_owned(),
            tenant: self.tenant.clone(),
            pod: None,
            operation: None,
            kind: kind.to_owned(),
            message,
        }
    }

    /// Records what was seen before anything is done.
    async fn mark(&self, plan: &Plan, noted: &[Noted], now: Timestamp) -> Result<(), StoreError> {
        let gone = plan.gone.iter().map(|original| NoteChange::Gone(original.clone(), Some(now)));
        let back = plan.back.iter().map(|original| NoteChange::Gone(original.clone(), None));
        let dropped = plan.drop.iter().chain(&plan.lost).map(|original| NoteChange::Dropped(original.clone()));
        let replica_notes: Vec<ReplicaNote> = gone.chain(back).chain(dropped).map(|change| self.note(change)).collect();
        if replica_notes.is_empty() {
            return Ok(());
        }
        let lost: HashSet<&str> = plan.lost.iter().map(String::as_str).collect();
        let why = "it was in the replica, and is not any more; it is copied again";
        let is_lost =
            |note: &&Noted| note.wanted.part == Part::Snapshot && lost.contains(note.wanted.original.as_str());
        let cares: Vec<(SnapshotId, Care)> = noted
            .iter()
            .filter(is_lost)
            .filter_map(|note| Some((note.wanted.name.parse().ok()?, Care::NotReplicated(Some(why.to_owned())))))
            .collect();
        let mut events = Vec::new();
        if !plan.lost.is_empty() {
            tracing::error!(tenant = %self.tenant, count = plan.lost.len(), "copies are gone from a replica");
            let message = format!("{} copies are gone from the replica, and are copied again", plan.lost.len());
            events.push(self.event("replica.lost", message));
        }
        self.commit(Change { replica_notes, cares, events, ..Change::default() }).await
    }

    /// Takes back what is said of snapshots that are not in this replica: another one took its place.
    async fn doubt(&self, plan: &Plan, rows: HashMap<String, Snapshot>) -> Result<(), StoreError> {
        let wanted = plan.copy.iter().filter_map(|one| rows.get(&one.name));
        let doubtful = wanted.filter(|row| row.replicated_at.is_some());
        let cares: Vec<(SnapshotId, Care)> = doubtful.map(|row| (row.id, Care::NotReplicated(None))).collect();
        if cares.is_empty() { Ok(()) } else { self.commit(Change { cares, ..Change::default() }).await }
    }

    /// Copies, and records what became of each as soon as that is known.
    async fn copy(&self, replicas: &Replicas, wanted: &[Wanted]) -> Result<Ended, Stopped> {
        if wanted.is_empty() {
            return Ok(Ended::Whole);
        }
        let of: HashMap<&str, &Wanted> = wanted.iter().map(|one| (one.original.as_str(), one)).collect();
        let originals: Vec<String> = wanted.iter().map(|one| one.original.clone()).collect();
        let (told, mut hear) = mpsc::unbounded_channel();
        let replicator = self.replicator;
        let work = replicator.reconciler.replicate(
            (&replicas.repositories, self.tenant),
            &originals,
            (&replicator.progress, TURN),
            told,
        );
        let record = async move {
            let mut count = 0;
            while let Some((original, copying)) = hear.recv().await {
                let Some(wanted) = of.get(original.as_str()) else { continue };
                // With an error the hearing ends: nothing more is copied whose copy is not written down.
                self.record(wanted, copying).await?;
                count += 1;
            }
            Ok::<usize, StoreError>(count)
        };
        let (worked, recorded) = tokio::join!(work, record);
        let count = recorded?;
        worked?;
        Ok(if count == wanted.len() { Ended::Whole } else { Ended::Early })
    }

    async fn record(&self, wanted: &Wanted, copying: Copying) -> Result<(), StoreError> {
        let store = &self.replicator.app.store;
        let (mut copying, at) = (copying, self.replicator.app.clock.now());
        let (mut cares, mut events) = (Vec::new(), Vec::new());
        if wanted.part == Part::Snapshot
            && let Ok(id) = wanted.name.parse::<SnapshotId>()
        {
            if matches!(copying, Copying::Copied(_))
                && let Some(row) = store.snapshot_fetch(id).await?
                && let Some(why) = self.without_image(&row)
            {
                copying = Copying::Failed(why);
            }
            let care = match &copying {
                Copying::Copied(_) => Care::Replicated(at),
                Copying::Failed(why) => Care::NotReplicated(Some(why.clone())),
            };
            cares.push((id, care));
        }
        // Said once: it is tried again every hour.
        if let Copying::Failed(why) = &copying
            && self.failed.get(&wanted.original) != Some(why)
        {
            tracing::error!(tenant = %self.tenant, what = wanted.name, problem = why, "something cannot be replicated");
            let message = format!("{} cannot be copied to the replica: {why}", wanted.name);
            events.push(self.event("replica.failed", message));
        }
        let noted = Noted { wanted: wanted.clone(), copying, at, gone_at: None };
        let replica_notes = vec![self.note(NoteChange::Known(noted))];
        self.commit(Change { replica_notes, cares, events, ..Change::default() }).await
    }

    /// Why a snapshot is of no use in the replica yet: without its image nothing can be started from it.
    fn without_image(&self, row: &Snapshot) -> Option<String> {
        let image = row.image.as_ref()?;
        let why = self.images.get(image)?;
        Some(format!("its data is in the replica, and its image {image} is not: {why}"))
    }

    /// Forgets what is superseded, and then what was deleted long enough ago.
    async fn forget(&self, replicas: &Replicas, plan: &Plan, noted: &[Noted]) -> Result<(), Stopped> {
        if !plan.superseded.is_empty() {
            let found = self.forget_copies(replicas, &plan.superseded, noted).await?;
            tracing::debug!(tenant = %self.tenant, found, "forgot captures of layers in a replica");
            self.dropped(&plan.superseded, Vec::new()).await?;
        }
        if plan.forget.is_empty() {
            return Ok(());
        }
        let found = self.forget_copies(replicas, &plan.forget, noted).await?;
        let (count, hours) = (plan.forget.len(), replicas.forget_after.as_hours());
        tracing::info!(tenant = %self.tenant, count, found, "forgot in a replica what was deleted");
        let message =
            format!("{found} copies were forgotten in the replica, of {count} originals deleted {hours} h before");
        Ok(self.dropped(&plan.forget, vec![self.event("replica.forgotten", message)]).await?)
    }

    async fn dropped(&self, originals: &[String], events: Vec<NewEvent>) -> Result<(), StoreError> {
        let replica_notes = originals.iter().map(|original| self.note(NoteChange::Dropped(original.clone()))).collect();
        self.commit(Change { replica_notes, events, ..Change::default() }).await
    }

    async fn forget_copies(
        &self,
        replicas: &Replicas,
        originals: &[String],
        noted: &[Noted],
    ) -> Result<usize, Stopped> {
        let going: HashSet<&str> = originals.iter().map(String::as_str).collect();
        let mut names = originals.to_vec();
        for note in noted.iter().filter(|note| going.contains(note.wanted.original.as_str())) {
            // What cannot be read there any more does not say whose copy it is.
            if let Copying::Copied(copy) = &note.copying {
                names.push(copy.clone());
            }
        }
        Ok(self.replicator.reconciler.replica_forget(&replicas.repositories, self.tenant, &names).await?)
    }
}
