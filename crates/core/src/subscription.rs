//! Subscriptions: a tenant's right to one pod of a plan, what ends it, and what becomes of the pod then. Pure transitions.
//!
//! A transition answers with the subscription as it is from now on and with what it asks for ([`Ask`]), to be committed as one; it
//! touches no pod itself. Clocks are explicit and set by the transition that starts them (D7): `expires_at`, then `trash_at` 60 days
//! after the end, then `purge_at`, the end of the undelete window.
//!
//! | request | none | active | expired | cancelled |
//! |---|---|---|---|---|
//! | create | active: create the pod | nothing; another plan: refused | refused | refused |
//! | expire | refused | expired: pause the pod | nothing | nothing |
//! | cancel | refused | cancelled: pause the pod | cancelled, the clocks go on | nothing |
//! | renew | refused | another `expires_at` | active: bring the pod back | refused |
//! | resubscribe | refused | another `expires_at` | active: bring the pod back, or make one | as from expired |
//! | change plan | refused | another plan: adapt the pod | refused | refused |
//! | tick | nothing | expired, when it is time | warn, delete | warn, delete |
//!
//! - What ran when the subscription ended is started again when it is brought back, and nothing else.
//! - A pod is deleted only after all three warnings, each about as long before as it says. Whoever slept through one is given it late,
//!   and `trash_at` moves: a server that was away, or a clock that jumped, deletes nothing without a warning.
//! - A clock that goes back undoes nothing. Every request may come twice: the second one asks for nothing.

#[cfg(test)]
mod tests;

use jiff::{SignedDuration, Timestamp};

use crate::error::Error;
use crate::service::PlanName;

/// How long the pod of a subscription that ended is kept.
pub const GRACE: SignedDuration = SignedDuration::from_hours(60 * 24);
/// Days before `trash_at` at which its owner is warned, in this order.
pub const WARNINGS: [u8; 3] = [14, 7, 1];
/// How much later than it should a warning may be given without `trash_at` being moved.
const LATE: SignedDuration = SignedDuration::from_hours(12);

/// Whether the right holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SubscriptionState {
    /// It holds.
    Active,
    /// Its time is over.
    Expired,
    /// Its owner ended it.
    Cancelled,
}

/// What is done when an ended subscription is brought back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resume {
    /// The pod is started: it ran at the end.
    Start,
    /// Nothing: it did not run at the end.
    Leave,
}

/// A tenant's right to one pod of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscription {
    /// Whether it holds.
    pub state: SubscriptionState,
    /// Of which plan the pod is.
    pub plan: PlanName,
    /// When it ends by itself; `None`: never.
    pub expires_at: Option<Timestamp>,
    /// What follows its end; `None` while it is active.
    pub end: Option<End>,
}

/// What follows the end of a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// When it ended.
    pub at: Timestamp,
    /// What is done when it is brought back.
    pub resume: Resume,
    /// When the pod is deleted. Moves when a warning came late.
    pub trash_at: Timestamp,
    /// How many of [`WARNINGS`] were given.
    pub warned: u8,
    /// When the deleted pod is destroyed; `None` while it is not deleted.
    pub purge_at: Option<Timestamp>,
    /// Whether that time has come: there is no pod any more.
    pub purged: bool,
}

/// What is asked of a subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// A new one.
    Create {
        /// Of this plan.
        plan: PlanName,
        /// Until then; `None`: for good.
        expires_at: Option<Timestamp>,
    },
    /// Its time is over now.
    Expire,
    /// Its owner ends it.
    Cancel,
    /// It goes on.
    Renew {
        /// Until then; `None`: for good.
        expires_at: Option<Timestamp>,
    },
    /// Its owner wants it back, also after a cancellation.
    Resubscribe {
        /// Until then; `None`: for good.
        expires_at: Option<Timestamp>,
    },
    /// The pod becomes one of another plan.
    ChangePlan {
        /// This one.
        plan: PlanName,
    },
    /// Time has passed.
    Tick,
}

/// What a transition has to know beside the subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Circumstances {
    /// The present time.
    pub now: Timestamp,
    /// Whether the pod is wanted running.
    pub pod: PodWish,
    /// How long a deleted pod can be brought back.
    pub undelete_window: SignedDuration,
}

/// What is wanted of the pod, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodWish {
    /// That it runs.
    Running,
    /// That it does not.
    Resting,
}

/// What a transition asks for, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// A pod of the plan is made.
    Create(PlanName),
    /// The pod stops and keeps everything on the host.
    Pause,
    /// A deleted pod comes back, stopped.
    Undelete,
    /// The pod starts.
    Start,
    /// The pod becomes one of this plan.
    Adapt(PlanName),
    /// The owner is told that the pod is deleted in so many days.
    Warn(u8),
    /// The pod is deleted as by its owner: with a final snapshot and an undelete window.
    Delete,
}

/// What a transition leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The subscription from now on; `None`: there is none.
    pub subscription: Option<Subscription>,
    /// What is asked for; nothing when nothing changed.
    pub asks: Vec<Ask>,
}

/// Decides what becomes of a subscription. Total: every request has an answer in every state, at any time.
///
/// # Errors
/// [`Error::NotFound`] without a subscription, [`Error::Conflict`] with the way to go on, [`Error::InvalidInput`] for `expiresAt`.
pub fn step(current: Option<&Subscription>, request: &Request, about: Circumstances) -> Result<Step, Error> {
    let Some(current) = current else {
        return match request {
            Request::Create { plan, expires_at } => created(plan, *expires_at, about.now),
            Request::Tick => Ok(Step { subscription: None, asks: Vec::new() }),
            _ => Err(Error::not_found("subscription")),
        };
    };
    let unchanged = || Ok(Step { subscription: Some(current.clone()), asks: Vec::new() });
    match (request, current.state) {
        (Request::Create { plan, .. }, SubscriptionState::Active) if *plan == current.plan => unchanged(),
        (Request::Create { .. }, SubscriptionState::Active) => {
            Err(conflict("subscription-active", "it is active with another plan", "change its plan"))
        }
        (Request::Create { .. }, _) => {
            Err(conflict("subscription-ended", "it has ended", "resubscribe: its pod comes back while it is kept"))
        }
        (Request::Expire, SubscriptionState::Active) => Ok(current.ended(SubscriptionState::Expired, about)),
        (Request::Expire, _) => unchanged(),
        (Request::Cancel, SubscriptionState::Active) => Ok(current.ended(SubscriptionState::Cancelled, about)),
        (Request::Cancel, _) => {
            let subscription = Subscription { state: SubscriptionState::Cancelled, ..current.clone() };
            Ok(Step { subscription: Some(subscription), asks: Vec::new() })
        }
        (Request::Renew { .. }, SubscriptionState::Cancelled) => {
            Err(conflict("subscription-cancelled", "its owner has cancelled it", "its owner can resubscribe"))
        }
        (Request::Renew { expires_at }, _) => match current.end {
            Some(End { purged: true, .. }) => Err(conflict(
                "subscription-pod-gone",
                "its pod was destroyed at the end of its time",
                "resubscribe: a new pod is made, without the old one's data",
            )),
            _ => current.revived(*expires_at, about.now),
        },
        (Request::Resubscribe { expires_at }, _) => current.revived(*expires_at, about.now),
        (Request::ChangePlan { plan }, SubscriptionState::Active) if *plan == current.plan => unchanged(),
        (Request::ChangePlan { plan }, SubscriptionState::Active) => {
            let subscription = Subscription { plan: plan.clone(), ..current.clone() };
            Ok(Step { subscription: Some(subscription), asks: vec![Ask::Adapt(plan.clone())] })
        }
        (Request::ChangePlan { .. }, _) => {
            Err(conflict("subscription-ended", "it has ended", "renew it or resubscribe first"))
        }
        (Request::Tick, _) => Ok(current.ticked(about)),
    }
}

fn conflict(code: &'static str, what: &str, hint: &str) -> Error {
    Error::conflict(code, format!("the subscription cannot do that: {what}"), hint)
}

fn created(plan: &PlanName, expires_at: Option<Timestamp>, now: Timestamp) -> Result<Step, Error> {
    check_expiry(expires_at, now)?;
    let (state, plan) = (SubscriptionState::Active, plan.clone());
    let asks = vec![Ask::Create(plan.clone())];
    Ok(Step { subscription: Some(Subscription { state, plan, expires_at, end: None }), asks })
}

/// An end in the past would end it at once, which nobody means.
fn check_expiry(expires_at: Option<Timestamp>, now: Timestamp) -> Result<(), Error> {
    if expires_at.is_some_and(|at| at <= now) {
        return Err(Error::invalid("expiresAt", "is not in the future", "write a later time, or leave it out"));
    }
    Ok(())
}

/// A time later than every calendar is the last one there is.
fn later(at: Timestamp, by: SignedDuration) -> Timestamp {
    at.checked_add(by).unwrap_or(Timestamp::MAX)
}

impl Subscription {
    fn ended(&self, state: SubscriptionState, about: Circumstances) -> Step {
        let (resume, asks) = match about.pod {
            PodWish::Running => (Resume::Start, vec![Ask::Pause]),
            PodWish::Resting => (Resume::Leave, Vec::new()),
        };
        let (at, trash_at) = (about.now, later(about.now, GRACE));
        let end = Some(End { at, resume, trash_at, warned: 0, purge_at: None, purged: false });
        Step { subscription: Some(Self { state, end, ..self.clone() }), asks }
    }

    /// Active again, or for another time. The same request twice is the same as once.
    fn revived(&self, expires_at: Option<Timestamp>, now: Timestamp) -> Result<Step, Error> {
        if self.state != SubscriptionState::Active || self.expires_at != expires_at {
            check_expiry(expires_at, now)?;
        }
        let asks = match self.end {
            None => Vec::new(),
            Some(End { purged: true, .. }) => vec![Ask::Create(self.plan.clone())],
            Some(end) => {
                let undelete = end.purge_at.map(|_| Ask::Undelete);
                let start = (end.resume == Resume::Start).then_some(Ask::Start);
                undelete.into_iter().chain(start).collect()
            }
        };
        let revived = Self { state: SubscriptionState::Active, expires_at, end: None, ..self.clone() };
        Ok(Step { subscription: Some(revived), asks })
    }

    /// At most one thing at a time: whoever looks again soon is told the next.
    fn ticked(&self, about: Circumstances) -> Step {
        let now = about.now;
        let Some(end) = self.end else {
            if self.expires_at.is_some_and(|at| at <= now) {
                return self.ended(SubscriptionState::Expired, about);
            }
            return Step { subscription: Some(self.clone()), asks: Vec::new() };
        };
        let (end, asks) = end.ticked(now, about.undelete_window);
        Step { subscription: Some(Self { end: Some(end), ..self.clone() }), asks }
    }
}

impl End {
    fn ticked(self, now: Timestamp, undelete_window: SignedDuration) -> (Self, Vec<Ask>) {
        if let Some(purge_at) = self.purge_at {
            return (Self { purged: self.purged || purge_at <= now, ..self }, Vec::new());
        }
        if let Some(days) = WARNINGS.get(usize::from(self.warned)).copied() {
            let before = SignedDuration::from_hours(24 * i64::from(days));
            let due = self.trash_at.checked_sub(before).unwrap_or(Timestamp::MIN);
            if now < due {
                return (self, Vec::new());
            }
            // What is announced holds: somebody who reads it has that long.
            let is_late = now > later(due, LATE);
            let trash_at = if is_late { later(now, before) } else { self.trash_at };
            return (Self { warned: self.warned + 1, trash_at, ..self }, vec![Ask::Warn(days)]);
        }
        if now < self.trash_at {
            return (self, Vec::new());
        }
        (Self { purge_at: Some(later(now, undelete_window)), ..self }, vec![Ask::Delete])
    }
}
