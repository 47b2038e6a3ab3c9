//! Snapshots that are due, and rules that let older ones go.
//!
//! Both look at every pod and decide nothing by memory: what is due follows from the pod's row, and what may go from the
//! snapshots that are there. What they remember is which rows need not be read again. A tick begins only so much, so that after a long night not everything begins at once.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use jiff::{SignedDuration, Timestamp};
use perennial_core::id::PodId;
use perennial_core::schedule::{self, Due};

use super::Housekeeper;
use crate::service::Scheduled;
use crate::store::{HeadedPod, Page, PodFilter, PodHead, StoreError, Visibility};

/// Snapshots that one tick begins at most.
const TAKEN_AT_ONCE: usize = 16;
/// Pods whose rules one tick applies at most.
const APPLIED_AT_ONCE: usize = 64;
/// Rows read at a time.
const PAGE: u32 = 50;
/// How often rules are applied to a pod at which nothing happens.
const EVERY: SignedDuration = SignedDuration::from_hours(24);

/// What a pod looked like when its rules were applied last, and when that was. Only saves work.
#[derive(Debug, Default)]
pub(super) struct Applied(HashMap<PodId, (Seen, Timestamp)>);

#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Fingerprint(u64),
    /// Whatever it looks like: what its rules would let go could not go.
    Anything,
}

impl Applied {
    fn is_due(&self, head: &PodHead, now: Timestamp) -> bool {
        let Some((seen, at)) = self.0.get(&head.id) else { return true };
        let is_same = *seen == Seen::Anything || *seen == Seen::Fingerprint(fingerprint(head));
        !is_same || now.duration_since(*at).abs() >= EVERY
    }

    /// Lets the rules of a pod rest for a day.
    pub(super) fn rest(&mut self, pod: PodId, now: Timestamp) {
        self.0.insert(pod, (Seen::Anything, now));
    }
}

/// Pods whose schedules want nothing for a while, by the version of their rows; `None`: for as long as the row stays as
/// it is. Only saves work.
#[derive(Debug, Default)]
pub(super) struct Resting {
    looked_at: Option<Timestamp>,
    pods: HashMap<PodId, (i64, Option<Timestamp>)>,
}

impl Resting {
    /// Begins a look at this time. A clock that was set back may have been wrong when the pods were looked at.
    fn begin(&mut self, now: Timestamp) {
        if self.looked_at.is_some_and(|at| now < at) {
            self.pods.clear();
        }
        self.looked_at = Some(now);
    }

    fn rests(&self, head: &PodHead, now: Timestamp) -> bool {
        let known = self.pods.get(&head.id);
        known.is_some_and(|(version, until)| *version == head.version && until.is_none_or(|at| now < at))
    }

    /// Nothing is wanted of this pod before its next time; one that is overdue is looked at again.
    fn note(&mut self, head: &PodHead, next: Option<Timestamp>) {
        self.pods.insert(head.id, (head.version, next));
    }
}

fn fingerprint(head: &PodHead) -> u64 {
    let mut hash = DefaultHasher::new();
    (head.version, &head.latest).hash(&mut hash);
    hash.finish()
}

impl Housekeeper {
    /// Asks for the snapshots that schedules want now; the longest overdue first.
    pub(super) async fn take_scheduled(&mut self) {
        let due = match self.due_pods().await {
            Ok(due) => due,
            Err(error) => return tracing::warn!(%error, "look for scheduled snapshots"),
        };
        let mut taken = 0;
        for (_, pod) in due {
            if taken >= TAKEN_AT_ONCE {
                return;
            }
            match self.app.snapshot_scheduled(pod).await {
                Ok(Scheduled::Taken) => taken += 1,
                Ok(Scheduled::Nothing | Scheduled::Passed) => {}
                Err(error) => tracing::warn!(%pod, %error, "take a scheduled snapshot"),
            }
        }
    }

    async fn due_pods(&mut self) -> Result<Vec<(Option<Timestamp>, PodId)>, StoreError> {
        let now = self.app.clock.now();
        self.resting.begin(now);
        let mut known = HashSet::new();
        let mut due = Vec::new();
        let mut page = Page::first(PAGE);
        loop {
            let heads = self.app.store.pod_heads(&PodFilter::default(), &page).await?;
            known.extend(heads.iter().map(|head| head.id));
            let awake = heads.iter().filter(|head| !self.resting.rests(head, now));
            let awake: Vec<PodId> = awake.map(|head| head.id).collect();
            for HeadedPod { head, pod, .. } in self.app.store.pods_fetch_with_latest(&awake).await? {
                let rules = self.app.settings.snapshot_rules(&pod);
                let next = schedule::next_at(&pod, rules.schedule.as_ref());
                // Whether anything has changed since the newest snapshot is looked at with the pod in hand.
                match schedule::due(&pod, rules.schedule.as_ref(), None, now) {
                    Due::NotYet => self.resting.note(&head, next),
                    Due::Take(_) | Due::Pass(_) => due.push((next, pod.id)),
                }
            }
            match heads.last() {
                Some(last) if heads.len() == PAGE as usize => page.after = Some(last.id.to_string()),
                _ => break,
            }
            tokio::task::yield_now().await;
        }
        self.resting.pods.retain(|pod, _| known.contains(pod));
        due.sort_unstable();
        Ok(due)
    }

    /// Applies rules where a pod or its snapshots changed, and to every pod once a day.
    pub(super) async fn apply_rules(&mut self) {
        let heads = match self.all_heads().await {
            Ok(heads) => heads,
            Err(error) => return tracing::warn!(%error, "look for snapshots that may go"),
        };
        let now = self.app.clock.now();
        let known: HashSet<PodId> = heads.iter().map(|(head, _)| head.id).collect();
        self.applied.0.retain(|pod, _| known.contains(pod));
        for head in heads.into_iter().filter_map(|(head, is_due)| is_due.then_some(head)).take(APPLIED_AT_ONCE) {
            match self.app.retention_apply(head.id).await {
                Ok(begun) => {
                    if !begun.is_empty() {
                        tracing::info!(pod = %head.id, count = begun.len(), "snapshots go by rule");
                    }
                    self.open.extend(begun);
                    self.applied.0.insert(head.id, (Seen::Fingerprint(fingerprint(&head)), now));
                }
                Err(error) => tracing::warn!(pod = %head.id, %error, "apply rules of snapshots"),
            }
        }
    }

    async fn all_heads(&self) -> Result<Vec<(PodHead, bool)>, StoreError> {
        let filter = PodFilter { visibility: Visibility::All, ..PodFilter::default() };
        let now = self.app.clock.now();
        let mut found = Vec::new();
        let mut page = Page::first(PAGE);
        loop {
            let heads = self.app.store.pod_heads(&filter, &page).await?;
            let is_last = heads.len() < PAGE as usize;
            page.after = heads.last().map(|head| head.id.to_string());
            // What is not due is not kept: a head holds a whole snapshot.
            found.extend(heads.into_iter().map(|head| {
                let is_due = self.applied.is_due(&head, now);
                let latest = if is_due { head.latest } else { String::new() };
                (PodHead { latest, ..head }, is_due)
            }));
            if is_last {
                return Ok(found);
            }
            tokio::task::yield_now().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_rests_until_its_time_a_change_of_its_row_or_a_clock_set_back() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let head = |version| PodHead { id: PodId::from_parts(1, [1; 10]), version, latest: String::new() };
        let mut resting = Resting::default();
        resting.begin(at(100));
        assert!(!resting.rests(&head(1), at(100)), "it was never looked at");
        resting.note(&head(1), Some(at(160)));
        assert!(resting.rests(&head(1), at(159)));
        assert!(!resting.rests(&head(1), at(160)), "its time has come");
        assert!(!resting.rests(&head(2), at(159)), "its row has changed");
        resting.note(&head(2), None);
        assert!(resting.rests(&head(2), at(1_000_000)), "nothing can become due before its row changes");
        resting.begin(at(99));
        assert!(!resting.rests(&head(2), at(99)), "the clock may have been wrong");
    }
}
