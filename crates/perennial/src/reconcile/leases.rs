//! The right to work on a pod: taken, kept while a step lasts, given back.

use jiff::SignedDuration;
use perennial_core::id::PodId;

use super::step::StepError;
use super::worker::Reconciler;
use crate::store::Lease;

/// How long a lease lasts without being renewed.
pub(super) const LEASE: SignedDuration = SignedDuration::from_secs(60);

impl Reconciler {
    /// The lease of a pod: ours for a while longer, or taken now; `None` when another server works on it.
    pub(super) async fn lease(&self, pod: PodId) -> Result<Option<Lease>, StepError> {
        let now = self.now();
        let half = now.checked_add(LEASE / 2).unwrap_or(now);
        if let Some((lease, until)) = self.memory().leases.get(&pod)
            && *until > half
        {
            return Ok(Some(lease.clone()));
        }
        let until = now.checked_add(LEASE).unwrap_or(now);
        let lease = self.store.lease_acquire(pod, &self.settings.holder, now, until).await?;
        let mut memory = self.memory();
        match &lease {
            Some(lease) => memory.leases.insert(pod, (lease.clone(), until)),
            None => memory.leases.remove(&pod),
        };
        Ok(lease)
    }

    /// Runs a step and renews the lease as long as it takes.
    pub(super) async fn with_lease_kept<T>(
        &self,
        pod: PodId,
        step: impl Future<Output = Result<T, StepError>>,
    ) -> Result<T, StepError> {
        let mut step = Box::pin(step);
        let third = std::time::Duration::try_from(LEASE / 3).unwrap_or(std::time::Duration::from_secs(20));
        loop {
            match tokio::time::timeout(third, &mut step).await {
                Ok(result) => return result,
                Err(_elapsed) => match self.lease(pod).await {
                    Ok(Some(_)) => {}
                    // Another server works on the pod: nothing more may be done here.
                    Ok(None) => return Err(StepError::Overtaken),
                    Err(error) => tracing::warn!(%pod, ?error, "renew the lease"),
                },
            }
        }
    }

    /// Gives all leases back, so that another server can go on at once.
    pub async fn release_leases(&self) {
        let leases: Vec<Lease> = self.memory().leases.drain().map(|(_, (lease, _))| lease).collect();
        for lease in leases {
            if let Err(error) = self.store.lease_release(&lease).await {
                tracing::debug!(%error, "release a lease");
            }
        }
    }
}
