//! Every verified snapshot comes to the replica of its tenant's repository, and what was deleted goes from there later.
//!
//! A turn looks at one tenant: what should be in the replica (the database says so), what is recorded of it, and what is
//! in it. What is missing is copied, images first, then the newest snapshots; each is read back there before it counts,
//! and recorded as soon as it does ([`desk`]). So a turn that was interrupted anywhere is gone on with by the next one. What a turn
//! could not do is shown (`problem`, `replicaProblem`) until one can.

mod desk;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use perennial_core::id::SnapshotId;
use perennial_core::operation::Problem;
use perennial_core::progress::Progress;
use perennial_core::replication::{Copying, Delays, Noted, Part, Plan, Wanted, plan};
use perennial_core::snapshot::{Care, Snapshot};
use perennial_core::spec::TenantId;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;

use self::desk::{Desk, lacking};
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
    /// What failed when it was tried last.
    failed: Mutex<HashMap<(TenantId, Work), Failure>>,
    /// What a turn stumbled over, by what it is called in the first repository: it comes last.
    stumbled: Mutex<HashSet<(TenantId, String)>>,
    /// When each replica was looked at last.
    looked: Mutex<HashMap<TenantId, Timestamp>>,
}

/// What is waited for after a failure, each by itself: what cannot be deleted keeps no copy waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Work {
    Copies,
    Room,
}

/// What failed.
struct Failure {
    /// How often.
    count: u32,
    /// When the next try is.
    next: Timestamp,
    /// Why, the last time.
    problem: String,
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
            stumbled: Mutex::default(),
            looked: Mutex::default(),
        }
    }

    /// Runs until `stopped` says so; a copy in work is interrupted, which is safe at any moment.
    pub(super) async fn run(&self, mut stopped: watch::Receiver<bool>) {
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
            if self.stops() || self.waits(&tenant, Work::Copies, now).is_some() {
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
                self.failed().remove(&(tenant.clone(), Work::Copies));
                self.looked.lock().unwrap_or_else(PoisonError::into_inner).insert(tenant.clone(), now);
            }
            // What was shown before is as true as it was.
            Err(Stopped::Busy) => tracing::debug!(%tenant, "the repository or its replica is in use"),
            // The server stops.
            Err(Stopped::Problem(_)) if self.stops() => {}
            Err(Stopped::Problem(problem)) => {
                let next = self.postpone((tenant, Work::Copies), now, &problem.message);
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
        let mut desk = Desk::new(self, (tenant, &seen.id), &noted);
        desk.mark(&plan, (&noted, replicas.forget_after), now).await?;
        desk.doubt(&plan, rows).await?;
        let (images, others): (Vec<Wanted>, Vec<Wanted>) =
            std::mem::take(&mut plan.copy).into_iter().partition(|one| one.part == Part::Image);
        let mut ended = desk.copy(replicas, images).await?;
        if ended == Ended::Whole {
            desk.images = lacking(&wanted, &store.replicated(tenant, &seen.id).await?);
            ended = desk.copy(replicas, others).await?;
        }
        // Some were left out, which others may have come after.
        if desk.settle().await? == Ended::Early || ended == Ended::Early {
            replica.problem = None;
            return Ok(Ended::Early);
        }
        replica.looked_at = Some(now);
        replica.problem = match self.waits(tenant, Work::Room, now) {
            Some(problem) => Some(problem),
            None => {
                let made = self.make_room(&desk, (replicas, &plan, &noted), replica, now).await;
                self.room_made(tenant, made, now)
            }
        };
        Ok(Ended::Whole)
    }

    /// Lets go what may go, and prunes a replica that is due.
    async fn make_room(
        &self,
        desk: &Desk<'_>,
        (replicas, plan, noted): (&Replicas, &Plan, &[Noted]),
        replica: &mut Replica,
        now: Timestamp,
    ) -> Result<(), Stopped> {
        if self.app.store.held_until(now).await?.is_some() {
            tracing::debug!("nothing goes from a replica yet: nobody looked for long");
            return Ok(());
        }
        desk.forget(replicas, plan, noted).await?;
        if replica.pruned_at.is_none_or(|at| at > now || now.duration_since(at) >= PRUNE_EVERY) {
            let tenant = &replica.tenant;
            let pruned = self.reconciler.replica_prune(&replicas.repositories, tenant, &self.progress).await?;
            tracing::info!(
                %tenant, marked = pruned.waiting, deleted = pruned.expired.len(), freed = pruned.freed_bytes,
                "pruned a replica"
            );
            replica.pruned_at = Some(now);
        }
        Ok(())
    }

    /// What is to be shown of that.
    fn room_made(&self, tenant: &TenantId, made: Result<(), Stopped>, now: Timestamp) -> Option<String> {
        match made {
            Ok(()) => {
                self.failed().remove(&(tenant.clone(), Work::Room));
                None
            }
            Err(Stopped::Busy) => {
                tracing::debug!(%tenant, "a replica is in use, and is pruned later");
                None
            }
            Err(Stopped::Problem(_)) if self.stops() => None,
            Err(Stopped::Problem(problem)) => {
                let problem = format!("copies go on, and nothing goes from the replica: {}", problem.message);
                let next = self.postpone((tenant, Work::Room), now, &problem);
                tracing::warn!(%tenant, problem, %next, "make room in a replica");
                Some(problem)
            }
        }
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
    fn postpone(&self, (tenant, work): (&TenantId, Work), now: Timestamp, problem: &str) -> Timestamp {
        let mut failed = self.failed();
        let fresh = || Failure { count: 0, next: now, problem: String::new() };
        let failure = failed.entry((tenant.clone(), work)).or_insert_with(fresh);
        let pause = EVERY.saturating_mul(1 << failure.count.min(12)).min(PAUSE_MAX);
        failure.count += 1;
        failure.next = now.checked_add(pause).unwrap_or(now);
        problem.clone_into(&mut failure.problem);
        failure.next
    }

    /// Why something is not tried now.
    fn waits(&self, tenant: &TenantId, work: Work, now: Timestamp) -> Option<String> {
        let failed = self.failed();
        failed.get(&(tenant.clone(), work)).filter(|failure| now < failure.next).map(|failure| failure.problem.clone())
    }

    fn stumbled(&self) -> std::sync::MutexGuard<'_, HashSet<(TenantId, String)>> {
        self.stumbled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self) -> std::sync::MutexGuard<'_, HashMap<(TenantId, Work), Failure>> {
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
