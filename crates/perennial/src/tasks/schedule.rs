//! Snapshots that are due, and rules that let older ones go.
//!
//! Both look at every pod and decide nothing by memory: what is due follows from the pod's row, and what may go from the
//! snapshots that are there. A tick begins only so much, so that after a long night not everything begins at once.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use jiff::{SignedDuration, Timestamp};
use perennial_core::id::PodId;
use perennial_core::schedule::{self, Due};

use super::Housekeeper;
use crate::service::Scheduled;
use crate::store::{Page, PodFilter, PodHead, StoreError, Visibility};

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

fn fingerprint(head: &PodHead) -> u64 {
    let mut hash = DefaultHasher::new();
    (head.version, &head.latest).hash(&mut hash);
    hash.finish()
}

impl Housekeeper {
    /// Asks for the snapshots that schedules want now; the longest overdue first.
    pub(super) async fn take_scheduled(&self) {
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

    async fn due_pods(&self) -> Result<Vec<(Option<Timestamp>, PodId)>, StoreError> {
        let mut due = Vec::new();
        let mut page = Page::first(PAGE);
        loop {
            let pods = self.app.store.pod_list(&PodFilter::default(), &page).await?;
            for pod in &pods {
                let rules = self.app.settings.snapshot_rules(pod);
                // Whether anything has changed since the newest snapshot is looked at with the pod in hand.
                if schedule::due(pod, rules.schedule.as_ref(), None, self.app.clock.now()) != Due::NotYet {
                    due.push((schedule::next_at(pod, rules.schedule.as_ref()), pod.id));
                }
            }
            match pods.last() {
                Some(last) if pods.len() == PAGE as usize => page.after = Some(last.id.to_string()),
                _ => break,
            }
            tokio::task::yield_now().await;
        }
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
