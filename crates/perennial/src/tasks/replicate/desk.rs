//! What is written in one turn of a replication, and what is copied and forgotten in it.

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use jiff::{SignedDuration, Timestamp};
use perennial_core::id::SnapshotId;
use perennial_core::operation::{NewEvent, Problem};
use perennial_core::replication::{Copying, Noted, Part, Plan, Wanted};
use perennial_core::snapshot::{Care, Snapshot};
use perennial_core::spec::TenantId;
use tokio::sync::mpsc;

use super::{Ended, Replicas, Replicator, Stopped, TURN};
use crate::store::{Change, NoteChange, ReplicaNote, StoreError};

/// Who forgets what was deleted.
const ACTOR: &str = "replication";
/// So many copies one after the other may fail; a turn does not go on with that part then.
const TRIES: u32 = 3;

/// What is written in one turn.
pub(super) struct Desk<'a> {
    replicator: &'a Replicator,
    tenant: &'a TenantId,
    /// The id of the replica.
    replica: &'a str,
    /// When the turn began.
    began: Instant,
    /// Images that are not in it, and why.
    pub(super) images: HashMap<String, String>,
    /// Why things could not be copied before, by what they are called in the first repository.
    failed: HashMap<String, String>,
    /// What this turn stumbled over and went on behind.
    left_out: Vec<(Wanted, Problem)>,
    /// Whether anything was copied in this turn: then both places work.
    arrived: bool,
    /// Whether it was given up to go on.
    given_up: bool,
}

/// Says so when so many originals are gone at once that it may be a mistake, or an intruder's work (law 7).
fn many_gone(plan: &Plan, noted: &[Noted], until: Timestamp) -> Option<String> {
    let gone: HashSet<&str> = plan.gone.iter().map(String::as_str).collect();
    let snapshots = || noted.iter().filter(|note| note.wanted.part == Part::Snapshot && note.gone_at.is_none());
    let (all, going) =
        (snapshots().count(), snapshots().filter(|note| gone.contains(note.wanted.original.as_str())).count());
    (going > 3 && going * 20 > all).then(|| {
        format!(
            "{going} of {all} snapshots in the replica were deleted at once, and go from it after {until}: if nobody meant that, \
             raise forget_after in [replication] before, restart, and copy them back"
        )
    })
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
pub(super) fn lacking(wanted: &[Wanted], noted: &[Noted]) -> HashMap<String, String> {
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

impl<'a> Desk<'a> {
    /// A turn that begins now.
    pub(super) fn new(replicator: &'a Replicator, (tenant, replica): (&'a TenantId, &'a str), noted: &[Noted]) -> Self {
        Self {
            replicator,
            tenant,
            replica,
            began: Instant::now(),
            images: HashMap::new(),
            failed: failures(noted),
            left_out: Vec::new(),
            arrived: false,
            given_up: false,
        }
    }

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
    pub(super) async fn mark(
        &self,
        plan: &Plan,
        (noted, forget_after): (&[Noted], SignedDuration),
        now: Timestamp,
    ) -> Result<(), StoreError> {
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
        if let Some(message) = many_gone(plan, noted, now.checked_add(forget_after).unwrap_or(Timestamp::MAX)) {
            tracing::warn!(tenant = %self.tenant, message, "many originals were deleted at once");
            events.push(self.event("replica.many-gone", message));
        }
        self.commit(Change { replica_notes, cares, events, ..Change::default() }).await
    }

    /// Takes back what is said of snapshots that are not in this replica: another one took its place.
    pub(super) async fn doubt(&self, plan: &Plan, rows: HashMap<String, Snapshot>) -> Result<(), StoreError> {
        let wanted = plan.copy.iter().filter_map(|one| rows.get(&one.name));
        let doubtful = wanted.filter(|row| row.replicated_at.is_some());
        let cares: Vec<(SnapshotId, Care)> = doubtful.map(|row| (row.id, Care::NotReplicated(None))).collect();
        if cares.is_empty() { Ok(()) } else { self.commit(Change { cares, ..Change::default() }).await }
    }

    /// Copies, and records what became of each as soon as that is known. One that fails, as where a disk cannot read it, is left
    /// out and keeps the others back neither now nor in the next turn, where it comes last.
    pub(super) async fn copy(&mut self, replicas: &Replicas, wanted: Vec<Wanted>) -> Result<Ended, Stopped> {
        let of_tenant = |one: &Wanted| (self.tenant.clone(), one.original.clone());
        let (mut left, last): (Vec<Wanted>, Vec<Wanted>) = {
            let stumbled = self.replicator.stumbled();
            wanted.into_iter().partition(|one| !stumbled.contains(&of_tenant(one)))
        };
        left.extend(last);
        let mut missed = 0;
        while !left.is_empty() {
            let (count, worked) = self.copy_some(replicas, &left).await?;
            match worked {
                Ok(()) if count < left.len() => return Ok(Ended::Early),
                Ok(()) => break,
                Err(Stopped::Problem(problem)) if count < left.len() && !self.replicator.stops() => {
                    missed = if count == 0 { missed + 1 } else { 1 };
                    let Some(one) = left.drain(..=count).next_back() else { break };
                    tracing::warn!(tenant = %self.tenant, what = one.name, problem = problem.message, "stumbled over a copy");
                    self.replicator.stumbled().insert((self.tenant.clone(), one.original.clone()));
                    self.left_out.push((one, problem));
                    if missed == TRIES {
                        self.given_up = true;
                        break;
                    }
                }
                Err(stopped) => return Err(stopped),
            }
        }
        Ok(Ended::Whole)
    }

    /// Copies until something is wrong, and tells how many were done, and what was wrong.
    async fn copy_some(
        &mut self,
        replicas: &Replicas,
        wanted: &[Wanted],
    ) -> Result<(usize, Result<(), Stopped>), StoreError> {
        let of: HashMap<&str, &Wanted> = wanted.iter().map(|one| (one.original.as_str(), one)).collect();
        let (told, mut hear) = mpsc::unbounded_channel();
        let replicator = self.replicator;
        let work = replicator.reconciler.replicate(
            (&replicas.repositories, self.tenant),
            wanted,
            (&replicator.progress, TURN.saturating_sub(self.began.elapsed())),
            told,
        );
        let desk = &*self;
        let record = async move {
            let (mut count, mut copied) = (0, 0);
            while let Some((original, copying)) = hear.recv().await {
                let Some(wanted) = of.get(original.as_str()) else { continue };
                copied += usize::from(matches!(copying, Copying::Copied(_)));
                // With an error the hearing ends: nothing more is copied whose copy is not written down.
                desk.record(wanted, copying).await?;
                count += 1;
            }
            Ok::<(usize, usize), StoreError>((count, copied))
        };
        let (worked, recorded) = tokio::join!(work, record);
        let (count, copied) = recorded?;
        self.arrived |= copied > 0;
        Ok((count, worked.map_err(Stopped::from)))
    }

    /// Says what is wrong with what was left out: it is its own fault when others were copied, or when it was so before; else one of the
    /// places does not work.
    pub(super) async fn settle(&mut self) -> Result<Ended, Stopped> {
        for (one, problem) in std::mem::take(&mut self.left_out) {
            if !self.arrived && !self.failed.contains_key(&one.original) {
                return Err(Stopped::Problem(problem));
            }
            self.record(&one, Copying::Failed(problem.message)).await?;
        }
        Ok(if self.given_up { Ended::Early } else { Ended::Whole })
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
        if matches!(copying, Copying::Copied(_)) {
            self.replicator.stumbled().remove(&(self.tenant.clone(), wanted.original.clone()));
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
    pub(super) async fn forget(&self, replicas: &Replicas, plan: &Plan, noted: &[Noted]) -> Result<(), Stopped> {
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
