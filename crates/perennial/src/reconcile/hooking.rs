//! A hook that takes a while, and the people who cannot wait for it.

use std::time::Duration;

use perennial_core::id::PodId;
use perennial_core::pod::Work;
use perennial_core::progress::Progress;

use super::worker::Reconciler;

/// How often it is looked whether somebody still wants what runs. The database is asked, because another server may have
/// been told.
const LOOK: Duration = Duration::from_millis(500);

/// What makes a hook one that nobody wants any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// The pod is another version than this: whatever was asked of it (a stop, a deletion, another specification), what is being
    /// captured can no longer be recorded.
    Changed(i64),
    /// The pod is to be destroyed.
    Purged,
}

impl Reconciler {
    /// Waits for a hook, and cancels it once nobody wants it any more.
    pub(super) async fn while_wanted<T>(
        &self,
        (pod, until): (PodId, Until),
        progress: &Progress,
        hook: impl Future<Output = T>,
    ) -> T {
        let mut hook = std::pin::pin!(hook);
        let mut looks = tokio::time::interval(LOOK);
        loop {
            tokio::select! {
                ended = &mut hook => return ended,
                _ = looks.tick() => {
                    if self.is_over(pod, until).await {
                        progress.cancel();
                    }
                }
            }
        }
    }

    async fn is_over(&self, pod: PodId, until: Until) -> bool {
        match self.store.pod_fetch(pod).await {
            Ok(Some(pod)) => match until {
                Until::Changed(version) => pod.version != version,
                Until::Purged => pod.tasks.first().is_some_and(|task| matches!(task.work, Work::Purge { .. })),
            },
            Ok(None) => true,
            // A database that is silent for a moment asked for nothing.
            Err(_) => false,
        }
    }
}
