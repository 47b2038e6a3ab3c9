//! Clean-up of what is on the engine and in no database: a person asks for the plan, and then for exactly this plan.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use perennial_core::Error;
use perennial_core::cleanup::{self, CleanupPlan, Item, Noted, OrphanedPod, Quarantine, Step, WINDOW};
use perennial_core::engine::{EngineError, Owned, SetSpec};
use perennial_core::id::PodId;
use perennial_core::orphans::pod_of;
use perennial_core::permit::{DeletePermit, Denied};
use perennial_core::spec::TenantId;
use sha2::{Digest as _, Sha256};

use super::{App, Caller};
use crate::store::{Change, OrphanChange, Page, PodFilter, StoreError, Visibility};

/// Pods whose ids are read at a time.
const PAGE: u32 = 1_000;

/// What is asked for.
#[derive(Debug, Clone, Default)]
pub struct Cleanup {
    /// Only these pods; empty: all that are orphaned.
    pub pods: Vec<PodId>,
    /// The plan that is carried out; `None`: none is, it is only told.
    pub plan: Option<String>,
}

/// A plan, and what became of it.
#[derive(Debug, Clone)]
pub struct CleanedUp {
    /// What would be done, or was.
    pub plan: CleanupPlan,
    /// What identifies it.
    pub hash: String,
    /// What became of each item, in their order; `None`: nothing was done. An error is one sentence.
    pub results: Option<Vec<Result<(), String>>>,
}

impl App {
    /// Everything of ours on the engine.
    pub(super) async fn owned(&self) -> Result<Vec<Owned>, Error> {
        self.engine.list_owned().await.map_err(|error| unseen("list what is on the engine", &error))
    }

    /// Notes which pods are on the engine and in no database: how long that is so decides what may be done about it.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when engine or database do not answer: nothing is noted then.
    pub(crate) async fn note_orphans(&self) -> Result<(), Error> {
        let mut unknown: BTreeSet<PodId> = self.owned().await?.iter().map(pod_of).collect();
        let filter = PodFilter { visibility: Visibility::All, ..PodFilter::default() };
        let mut page = Page::first(PAGE);
        loop {
            let known = self.store.pod_versions(&filter, &page).await?;
            for (pod, _) in &known {
                unknown.remove(pod);
            }
            match known.last() {
                Some((last, _)) if known.len() == PAGE as usize => page.after = Some(last.to_string()),
                _ => break,
            }
        }
        self.noted(&unknown, self.now()).await?;
        Ok(())
    }

    /// Notes these, and ends what a clean-up left off at its last word: nothing of it is on the engine any more.
    async fn noted(&self, seen: &BTreeSet<PodId>, now: Timestamp) -> Result<Vec<Noted>, Error> {
        let mut noted = self.store.orphans_note(seen, now).await?;
        for gone in noted.iter().filter(|noted| noted.is_ending && !seen.contains(&noted.pod)) {
            let actor = gone.quarantine.as_ref().map_or("server", |quarantine| quarantine.actor.as_str());
            self.end_orphan(&Caller::server(actor.to_owned()), gone.pod).await?;
        }
        noted.retain(|noted| seen.contains(&noted.pod));
        Ok(noted)
    }

    /// Says that nothing is left of an orphan, once.
    async fn end_orphan(&self, caller: &Caller, pod: PodId) -> Result<(), Error> {
        let news = ("orphan.deleted", format!("orphaned pod {pod} was deleted"));
        match self.note_orphan(caller, OrphanChange::Gone(pod), news).await {
            // Another server was faster.
            Ok(()) | Err(StoreError::Stale) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    async fn note_orphan(&self, caller: &Caller, change: OrphanChange, news: (&str, String)) -> Result<(), StoreError> {
        let event = self.line_of(&caller.actor, TenantId::default_tenant(), news);
        let change = Change { orphans: vec![change], events: vec![event], ..Change::default() };
        self.commit_for(caller, change).await
    }

    /// Tells what a clean-up would do, and does it when the plan is named that was told.
    ///
    /// # Errors
    /// [`Error::Forbidden`] for everybody but administrators; [`Error::InvalidInput`] for a pod that is not orphaned;
    /// [`Error::Conflict`] when the plan is another by now, or must not be carried out; [`Error::Unavailable`] when engine or database
    /// do not answer: what cannot be seen is not missing (law 5).
    pub async fn cleanup_orphaned(&self, caller: &Caller, asked: &Cleanup) -> Result<CleanedUp, Error> {
        let (pods, comparison) = self.compared(caller).await?;
        let mut things: BTreeMap<PodId, Vec<Owned>> = BTreeMap::new();
        for orphan in &comparison.orphans {
            things.entry(pod_of(&orphan.what)).or_default().push(orphan.what.clone());
        }
        if let Some(at) = asked.pods.iter().position(|pod| !things.contains_key(pod)) {
            let problem = format!("pod {} is not among the orphans", asked.pods[at]);
            return Err(Error::invalid(format!("pods[{at}]"), problem, "GET /api/v1/admin/pods/debug lists them"));
        }
        let now = self.now();
        let noted = self.noted(&things.keys().copied().collect(), now).await?;
        let held = self.store.keeping(now).await?;
        let mut orphans = Vec::new();
        for noted in noted {
            let Some(things) = things.remove(&noted.pod) else { continue };
            let observed =
                self.engine.observe(noted.pod, &[]).await.map_err(|error| unseen("look at an orphan", &error))?;
            orphans.push(OrphanedPod { alive: cleanup::alive(&observed), noted, things });
        }
        let plan = cleanup::plan(&pods, &comparison, orphans, &asked.pods.iter().copied().collect(), held, now);
        let hash = hex::encode(&Sha256::digest(plan.text())[..16]);
        let Some(wanted) = &asked.plan else { return Ok(CleanedUp { plan, hash, results: None }) };
        if let Some(halted) = &plan.halted {
            let hint = "bring the newest database back; where each pod is known to be nobody's, name them: pods";
            return Err(Error::conflict("cleanup-halted", halted.clone(), hint));
        }
        if *wanted != hash {
            let hint = "ask for the plan once more, and read it";
            return Err(Error::conflict("plan-changed", "what would be done is not what this plan says", hint));
        }
        let mut results = Vec::new();
        for item in &plan.items {
            let done = self.clean_up(caller, item, now).await;
            results.push(done.map_err(|error| error.to_string()));
        }
        Ok(CleanedUp { plan, hash, results: Some(results) })
    }

    async fn clean_up(&self, caller: &Caller, item: &Item, now: Timestamp) -> Result<(), Error> {
        let pod = item.orphan.noted.pod;
        let what = told(&item.orphan.things);
        match item.step {
            Step::Keep => Ok(()),
            Step::Quarantine => {
                let until = now.checked_add(WINDOW).unwrap_or(Timestamp::MAX);
                let message = format!("orphaned pod {pod} ({what}) is kept until {until}, then it may be deleted");
                let quarantine = Quarantine { at: now, actor: caller.actor.clone(), until };
                let news = ("orphan.quarantined", message);
                Ok(self.note_orphan(caller, OrphanChange::Quarantined(pod, quarantine), news).await?)
            }
            Step::Delete => {
                let message = format!("the end of orphaned pod {pod} ({what}) begins");
                self.note_orphan(caller, OrphanChange::Ending(pod, now), ("orphan.ending", message)).await?;
                self.delete_orphan(item, now).await?;
                self.end_orphan(caller, pod).await
            }
        }
    }

    /// Deletes the containers and then the sets, each with a permit of what is seen right before.
    async fn delete_orphan(&self, item: &Item, now: Timestamp) -> Result<(), Error> {
        let mut noted = item.orphan.noted.clone();
        noted.is_ending = true;
        let look = async || {
            let observed = self.engine.observe(noted.pod, &[]).await;
            observed.map_err(|error| unseen("look at an orphan", &error))
        };
        let failed = |error: EngineError| Error::Unavailable { problem: format!("delete an orphan: {error}") };
        for thing in &item.orphan.things {
            if let Owned::Container { id, .. } = thing {
                let permit = DeletePermit::orphaned_container(&noted, id, &look().await?, now).map_err(denied)?;
                self.engine.container_remove(id, &permit).await.map_err(failed)?;
            }
        }
        for thing in &item.orphan.things {
            if let Owned::Set { number, backend, .. } = thing {
                let permit = DeletePermit::orphaned_set(&noted, *number, &look().await?, now).map_err(denied)?;
                self.engine
                    .set_delete(&SetSpec::labelled(noted.pod, *number, *backend), &permit)
                    .await
                    .map_err(failed)?;
            }
        }
        Ok(())
    }
}

fn unseen(what: &str, error: &EngineError) -> Error {
    Error::Unavailable { problem: format!("{what}: {error}") }
}

fn denied(denied: Denied) -> Error {
    Error::conflict("not-permitted", denied.to_string(), "ask for the plan once more")
}

fn told(things: &[Owned]) -> String {
    let one = |thing: &Owned| match thing {
        Owned::Container { id, .. } => format!("container {id}"),
        Owned::Set { number, .. } => format!("volume set {number}"),
    };
    things.iter().map(one).collect::<Vec<_>>().join(", ")
}
