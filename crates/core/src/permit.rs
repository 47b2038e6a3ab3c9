//! The proof without which nothing that may hold data is deleted (law 1).
//!
//! A [`DeletePermit`] has no public constructor but the checks below. It names what may go and on which ground; a
//! driver asks it whether it covers the thing at hand. There is no boolean and no default.

use std::fmt;

use crate::cleanup::{self, Noted};
use crate::engine::ObservedPod;
use crate::id::{PodId, SnapshotId};
use crate::pod::{Acceptance, LayerCapture, Pod, Trash, Work};
use crate::snapshot::{Grade, Snapshot, SnapshotState, WriterStamp};
use crate::volume::SetNumber;

/// Proof that something may be deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeletePermit {
    subject: Subject,
    ground: Ground,
}

/// What may be deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Subject {
    Set { pod: PodId, number: SetNumber },
    Container { pod: PodId, id: String },
    Scratch { name: String },
    Snapshots { pod: PodId },
}

/// Why it may be deleted: a closed set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ground {
    /// A verified, complete snapshot of the same data generation exists, taken after the last writer stopped.
    Captured {
        /// The snapshot; `None` when a capture of the system layer alone proves it (containers only).
        snapshot: Option<SnapshotId>,
    },
    /// The owner confirmed by name.
    ConfirmedPurge {
        /// Who.
        actor: String,
    },
    /// Made by this attempt, never run.
    NeverStarted,
    /// The pod declares its volumes, and nothing but them persists (containers only).
    NothingPersists,
    /// Made by us, for us.
    Scratch,
}

/// Why a permit was not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The snapshot is of another pod.
    #[error("the snapshot belongs to another pod")]
    OtherPod,
    /// The snapshot is not verified.
    #[error("the snapshot is not verified")]
    NotVerified,
    /// The snapshot lacks something.
    #[error("the snapshot has accepted losses")]
    HasLosses,
    /// The snapshot is of another set or another generation of it.
    #[error("the snapshot is of another generation of the data")]
    OtherGeneration,
    /// Somebody may have written after the capture began.
    #[error("a writer was alive during or after the capture")]
    WriterAlive,
    /// There is no such set or container.
    #[error("nothing of that name is recorded")]
    Unknown,
    /// It ran, so it may hold data.
    #[error("it has run and may hold data")]
    EverStarted,
    /// It is what the pod uses now.
    #[error("the pod uses it")]
    InUse,
    /// Nobody confirmed.
    #[error("nobody confirmed it")]
    NotConfirmed,
}

/// Checks that the snapshot proves everything that the last writer of `set` left.
///
/// # Errors
/// The first part of the proof that is missing.
pub fn check_captured(pod: &Pod, set: SetNumber, snapshot: &Snapshot, observed: &ObservedPod) -> Result<(), Denied> {
    if snapshot.pod != pod.id {
        return Err(Denied::OtherPod);
    }
    if snapshot.state != SnapshotState::Verified || snapshot.repository_id.is_none() {
        return Err(Denied::NotVerified);
    }
    if !snapshot.losses.is_empty() {
        return Err(Denied::HasLosses);
    }
    check_same_instant(pod, set, snapshot, observed)
}

/// Checks that the snapshot proves everything that the last writer of `set` left, but for the losses its owner accepted.
fn check_accepted(
    pod: &Pod,
    set: SetNumber,
    snapshot: &Snapshot,
    accepted: &Acceptance,
    observed: &ObservedPod,
) -> Result<(), Denied> {
    if snapshot.pod != pod.id {
        return Err(Denied::OtherPod);
    }
    if snapshot.state != SnapshotState::Verified {
        return Err(Denied::NotVerified);
    }
    if !snapshot.losses.iter().all(|l| accepted.paths.contains(&l.path)) {
        return Err(Denied::HasLosses);
    }
    check_same_instant(pod, set, snapshot, observed)
}

/// Checks that the snapshot is of this set after its last writer: the part of the proof that acceptance cannot replace.
///
/// # Errors
/// The first part of the proof that is missing.
pub fn check_same_instant(
    pod: &Pod,
    set: SetNumber,
    snapshot: &Snapshot,
    observed: &ObservedPod,
) -> Result<(), Denied> {
    let recorded = pod.set(set).ok_or(Denied::Unknown)?;
    if snapshot.set != Some(set) || Some(snapshot.generation) != recorded.attached {
        return Err(Denied::OtherGeneration);
    }
    if snapshot.grade != Some(Grade::Stopped) {
        return Err(Denied::WriterAlive);
    }
    check_writer(set, snapshot.writer.as_ref(), observed)
}

/// Whether no run other than the captured one, or none at all, had this set.
fn check_writer(set: SetNumber, captured: Option<&WriterStamp>, observed: &ObservedPod) -> Result<(), Denied> {
    if !observed.foreign.is_empty() {
        return Err(Denied::WriterAlive);
    }
    match &observed.container {
        Some(container) if container.set == set => {
            let another_run = container.started_at.is_some() && captured != Some(&container.stamp());
            if container.is_live() || another_run { Err(Denied::WriterAlive) } else { Ok(()) }
        }
        _ => Ok(()),
    }
}

impl DeletePermit {
    /// Permits deleting a set that `snapshot` captured whole, after its last writer stopped.
    ///
    /// # Errors
    /// The first part of the proof that is missing.
    pub fn captured_set(
        pod: &Pod,
        set: SetNumber,
        snapshot: &Snapshot,
        observed: &ObservedPod,
    ) -> Result<Self, Denied> {
        if pod.current == Some(set) {
            return Err(Denied::InUse);
        }
        check_captured(pod, set, snapshot, observed)?;
        Ok(Self::set(pod, set, Ground::Captured { snapshot: Some(snapshot.id) }))
    }

    /// Permits deleting a set whose owner accepted exactly the losses of its capture (D34).
    ///
    /// # Errors
    /// The first part of the proof that is missing.
    pub fn accepted_set(
        pod: &Pod,
        set: SetNumber,
        snapshot: &Snapshot,
        accepted: &Acceptance,
        observed: &ObservedPod,
    ) -> Result<Self, Denied> {
        if pod.current == Some(set) {
            return Err(Denied::InUse);
        }
        check_accepted(pod, set, snapshot, accepted, observed)?;
        Ok(Self::set(pod, set, Ground::ConfirmedPurge { actor: accepted.actor.clone() }))
    }

    /// Permits deleting a set that was never attached to a running container.
    ///
    /// # Errors
    /// [`Denied`] when it ran, is unknown, or holds a container that ran.
    pub fn never_started_set(pod: &Pod, set: SetNumber, observed: &ObservedPod) -> Result<Self, Denied> {
        let recorded = pod.set(set).ok_or(Denied::Unknown)?;
        if recorded.attached.is_some() {
            return Err(Denied::EverStarted);
        }
        if observed.container.as_ref().is_some_and(|c| c.set == set && c.started_at.is_some())
            || !observed.foreign.is_empty()
        {
            return Err(Denied::EverStarted);
        }
        Ok(Self::set(pod, set, Ground::NeverStarted))
    }

    /// Permits deleting any set of a pod whose purge was confirmed.
    ///
    /// # Errors
    /// [`Denied::NotConfirmed`] unless the purge is the task in work.
    pub fn purged_set(pod: &Pod, set: SetNumber) -> Result<Self, Denied> {
        let actor = purge_actor(pod)?;
        pod.set(set).ok_or(Denied::Unknown)?;
        Ok(Self::set(pod, set, Ground::ConfirmedPurge { actor }))
    }

    /// Permits removing the pod's container because `snapshot` captured everything it left, system layer included.
    ///
    /// # Errors
    /// The first part of the proof that is missing.
    pub fn captured_container(pod: &Pod, snapshot: &Snapshot, observed: &ObservedPod) -> Result<Self, Denied> {
        let container = observed.container.as_ref().ok_or(Denied::Unknown)?;
        check_captured(pod, container.set, snapshot, observed)?;
        Ok(Self::container(pod, &container.id, Ground::Captured { snapshot: Some(snapshot.id) }))
    }

    /// Permits removing the pod's container because its owner accepted exactly the losses of its capture (D34).
    ///
    /// # Errors
    /// The first part of the proof that is missing.
    pub fn accepted_container(
        pod: &Pod,
        snapshot: &Snapshot,
        accepted: &Acceptance,
        observed: &ObservedPod,
    ) -> Result<Self, Denied> {
        let container = observed.container.as_ref().ok_or(Denied::Unknown)?;
        check_accepted(pod, container.set, snapshot, accepted, observed)?;
        Ok(Self::container(pod, &container.id, Ground::ConfirmedPurge { actor: accepted.actor.clone() }))
    }

    /// Permits removing the pod's container because its system layer was captured after it stopped (D35).
    ///
    /// # Errors
    /// [`Denied::WriterAlive`] when it runs, or ran again since.
    pub fn layer_captured_container(pod: &Pod, layer: &LayerCapture, observed: &ObservedPod) -> Result<Self, Denied> {
        let container = observed.container.as_ref().ok_or(Denied::Unknown)?;
        if container.is_live() || !layer.after_stop || layer.writer.as_ref() != Some(&container.stamp()) {
            return Err(Denied::WriterAlive);
        }
        Ok(Self::container(pod, &container.id, Ground::Captured { snapshot: None }))
    }

    /// Permits removing a container that was made and never started.
    ///
    /// # Errors
    /// [`Denied::EverStarted`] when it ran.
    pub fn never_started_container(pod: &Pod, observed: &ObservedPod) -> Result<Self, Denied> {
        let container = observed.container.as_ref().ok_or(Denied::Unknown)?;
        if container.started_at.is_some() || container.is_live() {
            return Err(Denied::EverStarted);
        }
        Ok(Self::container(pod, &container.id, Ground::NeverStarted))
    }

    /// Permits removing the container of a pod that declares its volumes: nothing else of it persists.
    ///
    /// # Errors
    /// [`Denied::WriterAlive`] while it runs; [`Denied::EverStarted`] when the pod keeps what its container changed.
    pub fn container_without_data(pod: &Pod, observed: &ObservedPod) -> Result<Self, Denied> {
        let container = observed.container.as_ref().ok_or(Denied::Unknown)?;
        if container.is_live() {
            return Err(Denied::WriterAlive);
        }
        if pod.keeps_layer() {
            return Err(Denied::EverStarted);
        }
        Ok(Self::container(pod, &container.id, Ground::NothingPersists))
    }

    /// Permits removing the container of a pod whose purge was confirmed.
    ///
    /// # Errors
    /// [`Denied::NotConfirmed`] unless the purge is the task in work.
    pub fn purged_container(pod: &Pod, observed: &ObservedPod) -> Result<Self, Denied> {
        let actor = purge_actor(pod)?;
        let container = observed.container.as_ref().ok_or(Denied::Unknown)?;
        Ok(Self::container(pod, &container.id, Ground::ConfirmedPurge { actor }))
    }

    /// Permits forgetting every snapshot of a pod whose purge was confirmed.
    ///
    /// # Errors
    /// [`Denied::NotConfirmed`] unless the purge is the task in work.
    pub fn purged_snapshots(pod: &Pod) -> Result<Self, Denied> {
        let actor = purge_actor(pod)?;
        Ok(Self { subject: Subject::Snapshots { pod: pod.id }, ground: Ground::ConfirmedPurge { actor } })
    }

    /// Permits deleting a set whose pod is in no database, after the time is over that it was kept since somebody consented.
    ///
    /// # Errors
    /// [`Denied::NotConfirmed`] before that, or while it may still be taken over; [`Denied::WriterAlive`] while anything lives there.
    pub fn orphaned_set(
        orphan: &Noted,
        number: SetNumber,
        observed: &ObservedPod,
        now: jiff::Timestamp,
    ) -> Result<Self, Denied> {
        let ground = orphan_ground(orphan, observed, now)?;
        Ok(Self { subject: Subject::Set { pod: orphan.pod, number }, ground })
    }

    /// The same for a container.
    ///
    /// # Errors
    /// As [`DeletePermit::orphaned_set`] says.
    pub fn orphaned_container(
        orphan: &Noted,
        id: &str,
        observed: &ObservedPod,
        now: jiff::Timestamp,
    ) -> Result<Self, Denied> {
        let ground = orphan_ground(orphan, observed, now)?;
        Ok(Self { subject: Subject::Container { pod: orphan.pod, id: id.to_owned() }, ground })
    }

    /// Permits deleting something a driver made for itself, such as a probe's container; its name says so.
    #[must_use]
    pub fn scratch(name: impl Into<String>) -> Self {
        Self { subject: Subject::Scratch { name: name.into() }, ground: Ground::Scratch }
    }

    fn set(pod: &Pod, number: SetNumber, ground: Ground) -> Self {
        Self { subject: Subject::Set { pod: pod.id, number }, ground }
    }

    fn container(pod: &Pod, id: &str, ground: Ground) -> Self {
        Self { subject: Subject::Container { pod: pod.id, id: id.to_owned() }, ground }
    }

    /// Whether this permit is for that set.
    #[must_use]
    pub fn covers_set(&self, pod: PodId, number: SetNumber) -> bool {
        self.subject == Subject::Set { pod, number }
    }

    /// Whether this permit is for that container.
    #[must_use]
    pub fn covers_container(&self, id: &str) -> bool {
        matches!(&self.subject, Subject::Container { id: permitted, .. } if permitted == id)
    }

    /// Whether this permit is for that piece of scratch.
    #[must_use]
    pub fn covers_scratch(&self, name: &str) -> bool {
        matches!(&self.subject, Subject::Scratch { name: permitted } if permitted == name)
    }

    /// Whether this permit is for the snapshots of that pod.
    #[must_use]
    pub fn covers_snapshots(&self, pod: PodId) -> bool {
        self.subject == Subject::Snapshots { pod }
    }

    /// On which ground it was given.
    #[must_use]
    pub const fn ground(&self) -> &Ground {
        &self.ground
    }
}

impl fmt::Display for DeletePermit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.ground {
            Ground::Captured { snapshot: Some(snapshot) } => write!(f, "captured by snapshot {snapshot}"),
            Ground::Captured { snapshot: None } => f.write_str("system layer captured after the stop"),
            Ground::ConfirmedPurge { actor } => write!(f, "confirmed by {actor}"),
            Ground::NeverStarted => f.write_str("never started"),
            Ground::NothingPersists => f.write_str("the pod declares its volumes, and nothing else persists"),
            Ground::Scratch => f.write_str("scratch"),
        }
    }
}

/// Who confirmed the purge that is in work.
fn purge_actor(pod: &Pod) -> Result<String, Denied> {
    match pod.tasks.first().map(|t| &t.work) {
        Some(Work::Purge { actor, .. }) => Ok(actor.clone()),
        _ => Err(Denied::NotConfirmed),
    }
}

/// Who consented to the end of what nobody has.
fn orphan_ground(orphan: &Noted, observed: &ObservedPod, now: jiff::Timestamp) -> Result<Ground, Denied> {
    let consent = orphan.quarantine.as_ref().filter(|quarantine| orphan.is_ending && quarantine.until <= now);
    let consent = consent.ok_or(Denied::NotConfirmed)?;
    match cleanup::alive(observed) {
        Some(_) => Err(Denied::WriterAlive),
        None => Ok(Ground::ConfirmedPurge { actor: consent.actor.clone() }),
    }
}

/// Whether the undelete window of this pod has ended, which executes the consent given at delete.
#[must_use]
pub fn window_ended(trash: &Trash, now: jiff::Timestamp) -> bool {
    trash.purge_at.is_some_and(|at| at <= now)
}
