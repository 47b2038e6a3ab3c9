//! What administrators see of all pods, and what they do with somebody's.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use perennial_core::Error;
use perennial_core::id::PodId;
use perennial_core::orphans::{self, Comparison};
use perennial_core::pod::Pod;
use perennial_core::snapshot::Snapshot;
use perennial_core::subscription::Subscription;
use tokio::sync::Semaphore;

use super::space::{FileSystem, file_systems, places};
use super::system::{Check, CheckState};
use super::{App, Caller};
use crate::store::{Delivery, DeliveryState, Page, PodFilter, Visibility};

/// How long it is told that a message was given up.
const LATELY: SignedDuration = SignedDuration::from_hours(7 * 24);
/// How long disks may take to say what is free on them.
const LOOK: Duration = Duration::from_secs(5);
/// Rows read at a time.
const PAGE: u32 = 500;

/// The database against the engine.
#[derive(Debug, Clone)]
pub struct Debugged {
    /// Every pod of the database.
    pub pods: Vec<Pod>,
    /// The same pods in the same order, as the engine has them, and what belongs to none.
    pub comparison: Comparison,
    /// What the data of each of them took up, in the same order; `None` where no snapshot tells.
    pub usage: Vec<Option<Usage>>,
    /// The file systems that the server uses on its host.
    pub file_systems: Vec<FileSystem>,
}

/// What the data of a pod took up when it was captured last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of content in its volumes.
    pub bytes: u64,
    /// As of when.
    pub at: Timestamp,
}

impl Usage {
    /// What a snapshot tells; `None` when it does not know all of it.
    fn of(snapshot: &Snapshot) -> Option<Self> {
        let bytes =
            snapshot.volumes.iter().map(|volume| volume.bytes).try_fold(0_u64, |all, one| all.checked_add(one?))?;
        Some(Self { bytes, at: snapshot.captured_at? })
    }
}

/// Looks at the disks; one that does not answer keeps one thread, however often it is asked, and nobody who asks.
async fn look_at(places: Vec<(&'static str, PathBuf)>) -> Vec<FileSystem> {
    static ONE: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(1)));
    let looked = places.clone();
    let looking = async {
        let turn = Arc::clone(&ONE).acquire_owned().await.map_err(|error| error.to_string())?;
        let look = tokio::task::spawn_blocking(move || {
            let found = file_systems(&looked);
            drop(turn);
            found
        });
        look.await.map_err(|error| error.to_string())
    };
    let problem = match tokio::time::timeout(LOOK, looking).await {
        Ok(Ok(found)) => return found,
        Ok(Err(problem)) => problem,
        Err(_) => format!("the disks did not answer within {} s", LOOK.as_secs()),
    };
    let unknown = |(what, path)| FileSystem { uses: vec![what], path, space: Err(problem.clone()) };
    places.into_iter().map(unknown).collect()
}

impl App {
    /// Compares the database with the engine. Nothing is done about what differs.
    ///
    /// # Errors
    /// [`Error::Forbidden`] for everybody but administrators; [`Error::Unavailable`] when one of both does not answer: what cannot be
    /// seen is not missing (law 5).
    pub async fn admin_debug(&self, caller: &Caller) -> Result<Debugged, Error> {
        let (pods, comparison) = self.compared(caller).await?;
        let mut usage = Vec::with_capacity(pods.len());
        for page in pods.chunks(PAGE as usize) {
            let ids: Vec<PodId> = page.iter().map(|pod| pod.id).collect();
            let latest = self.store.pods_fetch_with_latest(&ids).await?.into_iter();
            let known: HashMap<PodId, Usage> =
                latest.filter_map(|pod| Some((pod.pod.id, Usage::of(pod.latest.as_ref()?)?))).collect();
            usage.extend(ids.iter().map(|id| known.get(id).copied()));
        }
        let file_systems = look_at(places(&self.settings)).await;
        Ok(Debugged { pods, comparison, usage, file_systems })
    }

    /// Every pod of the database, and the engine beside it.
    ///
    /// # Errors
    /// As [`Self::admin_debug`].
    pub(super) async fn compared(&self, caller: &Caller) -> Result<(Vec<Pod>, Comparison), Error> {
        self.require_admin(caller)?;
        // Before the pods: of what is made meanwhile the pod is known then.
        let owned = self.owned().await?;
        let filter = PodFilter { visibility: Visibility::All, ..PodFilter::default() };
        let mut pods: Vec<Pod> = Vec::new();
        loop {
            let after = pods.last().map(|pod| pod.id.to_string());
            let page = self.store.pod_list(&filter, &Page { after, limit: PAGE }).await?;
            let is_last = page.len() < PAGE as usize;
            pods.extend(page);
            if is_last {
                break;
            }
        }
        let mut comparison = orphans::compare(&pods, &owned);
        if !comparison.orphans.is_empty() {
            // What went with its pod meanwhile belongs to nobody only in the list.
            let now = self.owned().await?;
            comparison.orphans.retain(|orphan| now.contains(&orphan.what));
        }
        Ok((pods, comparison))
    }

    /// Lists pods of all tenants, archived and deleted ones too, with the subscriptions that they belong to.
    ///
    /// # Errors
    /// [`Error::Forbidden`] for everybody but administrators.
    pub async fn admin_pods(
        &self,
        caller: &Caller,
        filter: PodFilter,
        page: &Page,
    ) -> Result<Vec<(Pod, Option<Subscription>)>, Error> {
        self.require_admin(caller)?;
        let mut found = Vec::new();
        for pod in self.store.pod_list(&filter, page).await? {
            let subscription = match pod.spec.plan {
                Some(_) => self.store.subscription_of(pod.id).await?,
                None => None,
            };
            found.push((pod, subscription));
        }
        Ok(found)
    }

    /// That somebody was to be told of something and was not; `None` when everybody was, lately.
    pub(super) async fn deliveries_check(&self) -> Option<Check> {
        let since = self.now().checked_sub(LATELY).unwrap_or(Timestamp::MIN);
        let failed = self.store.deliveries_failed(since).await.ok().filter(|failed| *failed > 0)?;
        let message = format!("{failed} messages were given up in the last week");
        let hint = "perennial admin deliveries --state failed says which, and why";
        Some(Check::bad("notifications", CheckState::Warning, message, hint))
    }

    /// That nothing is destroyed for now, because nobody looked for long; `None` otherwise.
    pub(super) async fn keeping_check(&self) -> Option<Check> {
        // A database that does not answer is told already.
        let until = self.store.held_until(self.now()).await.ok().flatten()?;
        let message = format!(
            "nobody looked for more than a day and a half, or the clock jumped: pods whose undelete window ended are kept until {until}"
        );
        let hint = "check the clock and that this is the newest database; perennial pod ls --all shows them, perennial pod undelete \
                    brings one back";
        Some(Check::bad("undelete windows", CheckState::Warning, message, hint))
    }

    /// Lists what people and programs were told, oldest first.
    ///
    /// # Errors
    /// [`Error::Forbidden`] for everybody but administrators.
    pub async fn deliveries(
        &self,
        caller: &Caller,
        state: Option<DeliveryState>,
        page: &Page,
    ) -> Result<Vec<Delivery>, Error> {
        self.require_admin(caller)?;
        Ok(self.store.delivery_list(state, page).await?)
    }
}
