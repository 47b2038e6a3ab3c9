//! Subscriptions.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::answer::Operation;
use super::names::{Phase, SubscriptionState};
use super::request::given;

/// Asks for a subscription: a pod of the plan is made and started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CreateSubscription {
    /// Its name, which its pod has too: a DNS label of at most 63 characters.
    #[schema(max_length = 63, pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
    pub name: String,
    /// The plan, such as `n8n/plus`.
    pub plan: String,
    /// Whose it is; needed only when the caller has several tenants.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Until when it lasts; for administrators. Left out: for good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires_at: Option<Timestamp>,
}

/// Says how a subscription goes on.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RenewSubscription {
    /// Until when it lasts from now on, null: for good; for administrators. Left out: as it was.
    #[serde(deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires_at: Option<Option<Timestamp>>,
    /// Make a new pod, which starts without the data of the old one, when that is gone for good.
    pub new_pod: bool,
}

/// Names another plan of the same service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ChangePlan {
    /// The plan, such as `pro`.
    pub plan: String,
}

/// A tenant's right to one pod of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Subscription {
    /// Its id, for ever.
    pub id: String,
    /// Its name, which its pod has too.
    pub name: String,
    /// Whose it is.
    pub tenant: String,
    /// Of which plan.
    pub plan: String,
    /// Whether it holds.
    pub state: SubscriptionState,
    /// Its pod; null when that is gone for good.
    pub pod: Option<String>,
    /// How the pod is seen; null when it is gone for good.
    pub pod_phase: Option<Phase>,
    /// When it ends by itself; null: never.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires_at: Option<Timestamp>,
    /// When it ended; null while it is active.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub ended_at: Option<Timestamp>,
    /// Whether a renewal starts the pod: it ran at the end. Null while it is active.
    pub starts_again: Option<bool>,
    /// When the pod is deleted; null while it is active.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub trash_at: Option<Timestamp>,
    /// How many of the three warnings before that were given.
    pub warnings: u8,
    /// When the deleted pod is destroyed; null while it is not deleted.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub purge_at: Option<Timestamp>,
    /// How often the pod's data was thrown away on request.
    pub reset_count: u32,
    /// When that was last; null: never.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub last_reset_at: Option<Timestamp>,
    /// The safety snapshot that was taken before; null when there was nothing to keep.
    pub last_reset_snapshot: Option<String>,
    /// Since when it is there.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
}

/// The answer to what is asked of a subscription.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SubscriptionOperation {
    /// The subscription as it stands now.
    pub subscription: Subscription,
    /// The work on its pod that was begun; null when there was nothing to do.
    pub operation: Option<Operation>,
}
