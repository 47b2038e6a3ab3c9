//! What may be typed about subscriptions.

use clap::{Args, Subcommand};

use super::{DestroyOptions, WaitArgs};

/// A new subscription.
#[derive(Debug, Clone, Args)]
pub struct SubscribeArgs {
    /// The plan, such as n8n/plus: perennial service ls lists them.
    #[arg(value_name = "SERVICE/PLAN")]
    pub plan: String,
    /// Its name, which its pod has too: lower-case letters, digits and hyphens
    #[arg(long, short)]
    pub name: String,
    /// Whose it is; needed only by whoever has several tenants
    #[arg(long)]
    pub tenant: Option<String>,
    /// Until when it lasts, such as 30d or 2027-01-31T00:00:00Z; for administrators [default: for good]
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
    /// Waiting.
    #[command(flatten)]
    pub wait: WaitArgs,
}

/// What to do with a subscription.
#[derive(Debug, Clone, Subcommand)]
pub enum SubscriptionCommand {
    /// Lists subscriptions.
    #[command(visible_alias = "list")]
    Ls {
        /// Only this tenant's
        #[arg(long)]
        tenant: Option<String>,
    },
    /// Shows a subscription: how it stands, and its clocks.
    Show(SubscriptionArgs),
    /// Ends a subscription: its pod is paused at once and kept for 60 days.
    Cancel(SubscriptionWaitArgs),
    /// Ends a subscription as if its time were over.
    Expire(SubscriptionWaitArgs),
    /// Brings a subscription back that has ended, with its pod as it was.
    Renew(RenewArgs),
    /// Makes the pod one of another plan of the same service; its data stays.
    ChangePlan {
        /// The subscription's name or id.
        subscription: String,
        /// The plan, such as pro.
        plan: String,
        /// Waiting.
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Restarts the pod, or starts it; its data stays.
    RestartPod(SubscriptionWaitArgs),
    /// Replaces the pod's data by what its image holds, after a safety snapshot.
    ResetPod {
        /// The subscription's name or id.
        subscription: String,
        /// Shared options.
        #[command(flatten)]
        options: DestroyOptions,
    },
}

/// One subscription.
#[derive(Debug, Clone, Args)]
pub struct SubscriptionArgs {
    /// The subscription's name or id.
    pub subscription: String,
}

/// One subscription, and whether to wait for its pod.
#[derive(Debug, Clone, Args)]
pub struct SubscriptionWaitArgs {
    /// The subscription's name or id.
    pub subscription: String,
    /// Waiting.
    #[command(flatten)]
    pub wait: WaitArgs,
}

/// How a subscription goes on.
#[derive(Debug, Clone, Args)]
pub struct RenewArgs {
    /// The subscription's name or id.
    pub subscription: String,
    /// Until when it lasts, such as 30d or 2027-01-31T00:00:00Z; for administrators [default: as it was]
    #[arg(long, value_name = "TIME", conflicts_with = "for_good")]
    pub until: Option<String>,
    /// It does not end by itself; for administrators
    #[arg(long)]
    pub for_good: bool,
    /// Make a new pod, without the data of the old one, when that is gone for good
    #[arg(long)]
    pub new_pod: bool,
    /// Waiting.
    #[command(flatten)]
    pub wait: WaitArgs,
}
