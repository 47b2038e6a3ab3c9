//! That a tenant reached its quota: told once a day, however often it is.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::{SignedDuration, Timestamp};
use perennial_core::quota::Exceeded;
use perennial_core::spec::TenantId;

use super::{App, Caller};
use crate::store::Change;

/// The event that tells of it.
pub(crate) const QUOTA_REACHED: &str = "quota.reached";
/// So long it is not told again.
const SELDOM: SignedDuration = SignedDuration::from_hours(24);

/// Whom this server told of it, and when; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct QuotaNews(Arc<Mutex<HashMap<TenantId, Timestamp>>>);

impl QuotaNews {
    /// Whether it is told now, which counts as told.
    fn is_due(&self, tenant: &TenantId, now: Timestamp) -> bool {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.retain(|_, at| (SignedDuration::ZERO..SELDOM).contains(&now.duration_since(*at)));
        let is_due = !told.contains_key(tenant);
        told.entry(tenant.clone()).or_insert(now);
        is_due
    }

    fn forget(&self, tenant: &TenantId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(tenant);
    }
}

impl App {
    /// Tells the trail, and by it the tenant's members, that something was refused.
    pub(super) async fn quota_reached(&self, caller: &Caller, tenant: &TenantId, exceeded: &Exceeded) {
        let now = self.now();
        if !self.quota_news.is_due(tenant, now) {
            return;
        }
        let message = format!("refused: {}", exceeded.problem);
        let event = self.line_of(&caller.actor, tenant.clone(), (QUOTA_REACHED, message));
        if let Err(error) = self.store.commit(Change { events: vec![event], ..Change::default() }).await {
            self.quota_news.forget(tenant);
            tracing::warn!(%tenant, %error, "tell that a quota is reached");
        }
    }
}
