//! Subscriptions: a tenant's right to one pod of a plan, what ends it, and what becomes of the pod then. Pure transitions.
//!
//! A transition answers with how the subscription stands from now on and with what it asks for ([`Ask`]), to be committed as one; it
//! touches no pod itself. Clocks are explicit and set by the transition that starts them (D7): `expires_at`, then `trash_at` 60 days
//! after the end, then `purge_at`, the end of the undelete window.
//!
//! | request | none | active | expired, cancelled | and its pod is gone |
//! |---|---|---|---|---|
//! | create | active: create the pod | nothing; another plan: refused | refused | refused |
//! | expire | refused | expired: pause the pod | nothing | nothing |
//! | cancel | refused | cancelled: pause the pod | cancelled, the clocks go on | cancelled |
//! | renew | refused | another `expires_at` | active: bring the pod back | refused, or a new pod where that was said |
//! | change plan | refused | another plan: adapt the pod | refused | refused |
//! | tick | nothing | expired, when it is time | warn, delete | nothing |
//!
//! - What ran when the subscription ended is started again when it is brought back, and nothing else.
//! - A pod is deleted only after all three warnings, each about as long before as it says. Whoever slept through one is given it late,
//!   and `trash_at` moves: a server that was away, or a clock that jumped, deletes nothing without a warning.
//! - A clock that goes back undoes nothing. Every request may come twice: the second one asks for nothing.
//! - While it is active its pod is not hidden, and after its end it neither runs nor comes back, whoever asks for it ([`allows`]).

#[cfg(test)]
mod tests;

use jiff::{SignedDuration, Timestamp};

use crate::error::Error;
use crate::id::{PodId, SubscriptionId};
use crate::pod::{Desired, Pod};
use crate::service::{PlanName, ServiceName};
use crate::spec::{PodName, TenantId};

/// How long the pod of a subscription that ended is kept.
pub const GRACE: SignedDuration = SignedDuration::from_hours(60 * 24);
/// Days before `trash_at` at which its owner is warned, in this order.
pub const WARNINGS: [u8; 3] = [14, 7, 1];
/// How much later than it should a warning may be given without `trash_at` being moved.
const LATE: SignedDuration = SignedDuration::from_hours(12);
/// When a deletion that failed is tried again.
const AGAIN: SignedDuration = SignedDuration::from_hours(24);

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

impl SubscriptionState {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::Active, Self::Expired, Self::Cancelled];

    /// The name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
        }
    }
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
    /// Its id, for ever.
    pub id: SubscriptionId,
    /// Whose.
    pub tenant: TenantId,
    /// Its name, which its pod has too; unique among the tenant's subscriptions that have a pod.
    pub name: PodName,
    /// Of which service the plan is.
    pub service: ServiceName,
    /// The pod; another one after a renewal that made one.
    pub pod: PodId,
    /// How it stands.
    pub standing: Standing,
    /// Since when it is there.
    pub created_at: Timestamp,
    /// Row version: grows with every commit, checked by every commit.
    pub version: i64,
}

/// How a subscription stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Whether the right holds.
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
        /// What is done when there is nothing to go on with.
        gone: PodGone,
    },
    /// The pod becomes one of another plan.
    ChangePlan {
        /// This one.
        plan: PlanName,
    },
    /// Time has passed.
    Tick,
}

/// What a renewal means when the pod was destroyed meanwhile: a new one starts empty, which nobody gets by accident (law 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodGone {
    /// Nothing.
    Refuse,
    /// A new pod.
    MakeNew,
}

/// What a transition has to know beside the subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Circumstances {
    /// The present time.
    pub now: Timestamp,
    /// How the pod is.
    pub pod: PodSeen,
    /// How long a deleted pod can be brought back.
    pub undelete_window: SignedDuration,
}

/// How a pod is, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodSeen {
    /// It is to run.
    Running,
    /// It is paused or stopped, or to be.
    Resting,
    /// It is archived.
    Archived,
    /// It is deleted, and destroyed then.
    Deleted(Timestamp),
    /// There is none any more.
    Gone,
}

impl PodSeen {
    /// Looks at a pod; `None` for one that is not there.
    #[must_use]
    pub fn of(pod: Option<&Pod>) -> Self {
        let Some(pod) = pod else { return Self::Gone };
        match pod.desired {
            Desired::Running => Self::Running,
            Desired::Paused | Desired::Stopped => Self::Resting,
            Desired::Archived => Self::Archived,
            // Without a time nothing is purged.
            Desired::Deleted => {
                Self::Deleted(pod.trash.as_ref().and_then(|trash| trash.purge_at).unwrap_or(Timestamp::MAX))
            }
        }
    }
}

/// What a transition asks for, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// A pod of the plan is made.
    Create(PlanName),
    /// The pod stops and keeps everything on the host.
    Pause,
    /// A hidden pod comes back, stopped.
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
    /// How it stands from now on; `None`: there is none.
    pub standing: Option<Standing>,
    /// What is asked for; nothing when nothing changed.
    pub asks: Vec<Ask>,
}

/// Decides what becomes of a subscription. Total: every request has an answer in every state, at any time.
///
/// # Errors
/// [`Error::NotFound`] without a subscription, [`Error::Conflict`] with the way to go on, [`Error::InvalidInput`] for `expiresAt`.
pub fn step(current: Option<&Standing>, request: &Request, about: Circumstances) -> Result<Step, Error> {
    let Some(current) = current else {
        return match request {
            Request::Create { plan, expires_at } => created(plan, *expires_at, about.now),
            Request::Tick => Ok(Step { standing: None, asks: Vec::new() }),
            _ => Err(Error::not_found("subscription")),
        };
    };
    let current = current.seeing(about);
    match (request, current.state) {
        (Request::Create { expires_at: Some(at), .. }, SubscriptionState::Active)
            if current.expires_at != Some(*at) =>
        {
            Err(conflict("subscription-active", "it is active until another time", "renew it until then"))
        }
        (Request::Create { plan, .. }, SubscriptionState::Active) if *plan == current.plan => Ok(current.rests()),
        (Request::Create { .. }, SubscriptionState::Active) => {
            Err(conflict("subscription-active", "it is active with another plan", "change its plan"))
        }
        (Request::Create { .. }, _) => {
            Err(conflict("subscription-ended", "it has ended", "renew it: its pod comes back while it is kept"))
        }
        (Request::Expire, SubscriptionState::Active) => {
            // What its owner had left is taken away with it.
            let expires_at = Some(current.expires_at.map_or(about.now, |at| at.min(about.now)));
            Ok(Standing { expires_at, ..current }.ended(SubscriptionState::Expired, about))
        }
        (Request::Expire, _) => Ok(current.rests()),
        (Request::Cancel, SubscriptionState::Active) => Ok(current.ended(SubscriptionState::Cancelled, about)),
        (Request::Cancel, _) => Ok(Standing { state: SubscriptionState::Cancelled, ..current }.rests()),
        (Request::Renew { expires_at, gone }, _) => current.revived(*expires_at, *gone, about),
        (Request::ChangePlan { plan }, SubscriptionState::Active) if *plan == current.plan => Ok(current.rests()),
        (Request::ChangePlan { plan }, SubscriptionState::Active) => {
            let asks = vec![Ask::Adapt(plan.clone())];
            Ok(Step { standing: Some(Standing { plan: plan.clone(), ..current }), asks })
        }
        (Request::ChangePlan { .. }, _) => Err(conflict("subscription-ended", "it has ended", "renew it first")),
        (Request::Tick, _) => Ok(current.ticked(about)),
    }
}

/// Whether the pod of a subscription may go from one desired state to another.
///
/// # Errors
/// [`Error::Conflict`] when the subscription forbids it.
pub fn allows(state: SubscriptionState, before: Desired, after: Desired) -> Result<(), Error> {
    let is_hidden = |desired| matches!(desired, Desired::Archived | Desired::Deleted);
    match state {
        SubscriptionState::Active if is_hidden(after) => Err(Error::conflict(
            "pod-subscribed",
            "the pod belongs to a subscription, which is active",
            "cancel it first: perennial subscription cancel",
        )),
        SubscriptionState::Expired | SubscriptionState::Cancelled
            if after == Desired::Running || (is_hidden(before) && !is_hidden(after)) =>
        {
            Err(Error::conflict(
                "subscription-ended",
                "the subscription that the pod belongs to has ended",
                "renew it: perennial subscription renew; its data is kept, and its snapshots can be read",
            ))
        }
        _ => Ok(()),
    }
}

fn conflict(code: &'static str, what: &str, hint: &str) -> Error {
    Error::conflict(code, format!("the subscription cannot do that: {what}"), hint)
}

fn created(plan: &PlanName, expires_at: Option<Timestamp>, now: Timestamp) -> Result<Step, Error> {
    check_expiry(expires_at, now)?;
    let (state, plan) = (SubscriptionState::Active, plan.clone());
    let asks = vec![Ask::Create(plan.clone())];
    Ok(Step { standing: Some(Standing { state, plan, expires_at, end: None }), asks })
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

impl Standing {
    /// When something is due by itself; `None`: never.
    #[must_use]
    pub fn due_at(&self) -> Option<Timestamp> {
        match self.end {
            None => self.expires_at,
            Some(end) => end.due_at(),
        }
    }

    /// The same, with what became of the pod meanwhile.
    fn seeing(&self, about: Circumstances) -> Self {
        let Some(end) = self.end else { return self.clone() };
        let end = match about.pod {
            PodSeen::Gone => End { purged: true, ..end },
            PodSeen::Deleted(at) => End { purge_at: Some(at), purged: false, ..end },
            // What is not deleted although it was: that failed, and whoever is responsible has a day to see why.
            _ if end.purge_at.is_some() => {
                End { purge_at: None, purged: false, trash_at: later(about.now, AGAIN).max(end.trash_at), ..end }
            }
            PodSeen::Running | PodSeen::Resting | PodSeen::Archived => end,
        };
        Self { end: Some(end), ..self.clone() }
    }

    const fn rests(self) -> Step {
        Step { standing: Some(self), asks: Vec::new() }
    }

    fn ended(&self, state: SubscriptionState, about: Circumstances) -> Step {
        let (resume, asks) = match about.pod {
            PodSeen::Running => (Resume::Start, vec![Ask::Pause]),
            _ => (Resume::Leave, Vec::new()),
        };
        let (at, trash_at) = (about.now, later(about.now, GRACE));
        let end = End { at, resume, trash_at, warned: 0, purge_at: None, purged: about.pod == PodSeen::Gone };
        Step { standing: Some(Self { state, end: Some(end), ..self.clone() }), asks }
    }

    /// Active again, or for another time. The same request twice is the same as once.
    fn revived(&self, expires_at: Option<Timestamp>, gone: PodGone, about: Circumstances) -> Result<Step, Error> {
        if self.state != SubscriptionState::Active || self.expires_at != expires_at {
            check_expiry(expires_at, about.now)?;
        }
        let asks = match (self.end, about.pod, gone) {
            (None, ..) => Vec::new(),
            (Some(_), PodSeen::Gone, PodGone::MakeNew) => vec![Ask::Create(self.plan.clone())],
            (Some(_), PodSeen::Gone, PodGone::Refuse) => {
                return Err(conflict(
                    "subscription-pod-gone",
                    "its pod was destroyed at the end of its time",
                    "say that a new pod is to be made, which has nothing of the old one's data: newPod (--new-pod)",
                ));
            }
            (Some(end), pod, _) => {
                let is_hidden = matches!(pod, PodSeen::Archived | PodSeen::Deleted(_));
                let start = (end.resume == Resume::Start).then_some(Ask::Start);
                is_hidden.then_some(Ask::Undelete).into_iter().chain(start).collect()
            }
        };
        let revived = Self { state: SubscriptionState::Active, expires_at, end: None, ..self.clone() };
        Ok(Step { standing: Some(revived), asks })
    }

    /// At most one thing at a time: whoever looks again soon is told the next.
    fn ticked(self, about: Circumstances) -> Step {
        let now = about.now;
        let Some(end) = self.end else {
            if self.expires_at.is_some_and(|at| at <= now) {
                return self.ended(SubscriptionState::Expired, about);
            }
            return self.rests();
        };
        if about.pod == PodSeen::Running {
            // Nothing lets it run, so something went wrong.
            return Step { standing: Some(self), asks: vec![Ask::Pause] };
        }
        let (end, asks) = end.ticked(now, about.undelete_window);
        Step { standing: Some(Self { end: Some(end), ..self }), asks }
    }
}

impl End {
    fn due_at(&self) -> Option<Timestamp> {
        match (self.purged, self.purge_at, self.next_warning()) {
            (true, ..) => None,
            (false, Some(at), _) | (false, None, Some((_, at))) => Some(at),
            (false, None, None) => Some(self.trash_at),
        }
    }

    /// The next warning and when it is due; `None` when all were given.
    fn next_warning(&self) -> Option<(u8, Timestamp)> {
        let days = WARNINGS.get(usize::from(self.warned)).copied()?;
        Some((days, self.trash_at.checked_sub(days_of(days)).unwrap_or(Timestamp::MIN)))
    }

    fn ticked(self, now: Timestamp, undelete_window: SignedDuration) -> (Self, Vec<Ask>) {
        if self.purged || self.purge_at.is_some() {
            return (self, Vec::new());
        }
        if let Some((days, due)) = self.next_warning() {
            if now < due {
                return (self, Vec::new());
            }
            // What is announced holds: somebody who reads it has that long.
            let is_late = now > later(due, LATE);
            let trash_at = if is_late { later(now, days_of(days)) } else { self.trash_at };
            return (Self { warned: self.warned + 1, trash_at, ..self }, vec![Ask::Warn(days)]);
        }
        if now < self.trash_at {
            return (self, Vec::new());
        }
        (Self { purge_at: Some(later(now, undelete_window)), ..self }, vec![Ask::Delete])
    }
}

fn days_of(days: u8) -> SignedDuration {
    SignedDuration::from_hours(24 * i64::from(days))
}
