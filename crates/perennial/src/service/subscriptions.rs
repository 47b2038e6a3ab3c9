//! Subscriptions: what is asked of one, or time has come for, together with what becomes of its pod, in one commit.
//!
//! What a request means is in [`perennial_core::subscription`]; here it is carried out. Until when a subscription lasts is said by who
//! runs the installation: whoever bought it cannot give themselves more.

use jiff::Timestamp;
use perennial_core::Error;
use perennial_core::engine::VolumeUsage;
use perennial_core::id::{PodId, SubscriptionId};
use perennial_core::operation::{NewEvent, Operation};
use perennial_core::planned::PlanPath;
use perennial_core::pod::{Desired, Pod};
use perennial_core::service::PlanName;
use perennial_core::spec::{PodName, PodSpec, TenantId};
use perennial_core::subscription::{
    self, Ask, Circumstances, PodGone, PodSeen, Request as Asked, Standing, Step, Subscription, SubscriptionState,
};
use perennial_core::verbs::{self, Adapted, Decision};

use super::act::{Outcome, Request};
use super::pods::{Consent, CreateRequest};
use super::{App, Caller};
use crate::store::{Change, Page, StoreError, SubscriptionFilter};

/// How often something is decided anew because the subscription or its pod changed meanwhile.
const ATTEMPTS: usize = 8;
/// Who acts when time has come.
const CLOCK: &str = "system:subscriptions";

/// A new subscription, as the API understood it.
#[derive(Debug, Clone)]
pub struct Subscribe {
    /// Its name, and its pod's.
    pub name: PodName,
    /// Of which plan.
    pub plan: PlanPath,
    /// Whose; `None`: the caller's own tenant.
    pub tenant: Option<TenantId>,
    /// Until when; `None`: for good.
    pub expires_at: Option<Timestamp>,
}

/// Until when a renewed subscription lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// As it was.
    AsBefore,
    /// Until then; `None`: for good.
    Now(Option<Timestamp>),
}

/// A subscription, and what was begun with its pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscribed {
    /// As it is now.
    pub subscription: Subscription,
    /// Its pod; `None` when there is none any more.
    pub pod: Option<Pod>,
    /// What to wait for; `None` when nothing had to be done.
    pub operation: Option<Operation>,
}

impl App {
    /// Reads a subscription, and its pod while there is one.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none, or the caller may not know of it.
    pub async fn subscription(&self, caller: &Caller, id: SubscriptionId) -> Result<Subscribed, Error> {
        let found = self.store.subscription_fetch(id).await?.filter(|found| caller.may_see(&found.tenant));
        let subscription = found.ok_or_else(|| Error::not_found(format!("subscription {id}")))?;
        let pod = self.store.pod_fetch(subscription.pod).await?;
        Ok(Subscribed { subscription, pod, operation: None })
    }

    /// Lists the subscriptions that exist for the caller, oldest first.
    ///
    /// # Errors
    /// [`Error::NotFound`] for another's tenant.
    pub async fn subscriptions(
        &self,
        caller: &Caller,
        filter: SubscriptionFilter,
        page: &Page,
    ) -> Result<Vec<Subscribed>, Error> {
        let filter = SubscriptionFilter { within: caller.within(filter.tenant.as_ref())?, ..filter };
        let found = self.store.subscription_list(&filter, page).await?;
        let ids: Vec<PodId> = found.iter().map(|subscription| subscription.pod).collect();
        let mut pods = self.store.pods_fetch_with_latest(&ids).await?;
        let with_pod = |subscription: Subscription| {
            let at = pods.iter().position(|pod| pod.pod.id == subscription.pod);
            let pod = at.map(|at| pods.swap_remove(at).pod);
            Subscribed { subscription, pod, operation: None }
        };
        Ok(found.into_iter().map(with_pod).collect())
    }

    /// Subscribes to a plan: its pod is made and started. One of this name and plan that is active already is the answer.
    ///
    /// # Errors
    /// [`Error::Conflict`] when a subscription of this name is of another plan, or has ended; as [`App::create`] says; and
    /// [`Error::Forbidden`] for a time that is not the caller's to say.
    pub async fn subscribe(&self, caller: &Caller, wanted: &Subscribe) -> Result<Subscribed, Error> {
        let tenant = self.own_tenant(caller, wanted.tenant.clone())?;
        if wanted.expires_at.is_some() {
            require_time(caller)?;
        }
        for _ in 0..ATTEMPTS {
            let present = self.subscription_named(&tenant, &wanted.name).await?;
            if let Some(present) = present.as_ref().filter(|present| present.service != wanted.plan.service) {
                return Err(Error::conflict(
                    "subscription-name-taken",
                    format!("subscription {} is to {}/{}", present.name, present.service, present.standing.plan),
                    "choose another name",
                ));
            }
            let (plan, expires_at) = (wanted.plan.plan.clone(), wanted.expires_at);
            let pod = match &present {
                Some(present) => self.store.pod_fetch(present.pod).await?,
                None => None,
            };
            if let Some(present) = present.as_ref().filter(|present| present.standing.end.is_some() && pod.is_none()) {
                // Its pod was destroyed, which nobody noted yet: it stands in nobody's way.
                self.subscription_tick(present.id).await?;
                continue;
            }
            let standing = present.as_ref().map(|present| &present.standing);
            let step =
                subscription::step(standing, &Asked::Create { plan, expires_at }, self.circumstances(pod.as_ref()))?;
            let (change, outcome) = match (present, step.standing) {
                (Some(subscription), _) => return Ok(Subscribed { subscription, pod, operation: None }),
                (None, Some(standing)) => self.first_pod(caller, &tenant, wanted, standing).await?,
                (None, None) => return Err(Error::Internal { problem: "a new subscription is none".to_owned() }),
            };
            match self.subscription_commit(caller, change, Some(outcome), None).await {
                // Somebody asked for the same at the same moment.
                Err(StoreError::Taken(_) | StoreError::Stale) => {}
                other => return Ok(other?),
            }
        }
        Err(StoreError::Stale.into())
    }

    async fn first_pod(
        &self,
        caller: &Caller,
        tenant: &TenantId,
        wanted: &Subscribe,
        standing: Standing,
    ) -> Result<(Change, Outcome), Error> {
        let (mut change, outcome) = self.pod_of_plan(caller, tenant, &wanted.name, &wanted.plan).await?;
        let (millis, random) = self.id_parts();
        let subscription = Subscription {
            id: SubscriptionId::from_parts(millis, random),
            tenant: tenant.clone(),
            name: wanted.name.clone(),
            service: wanted.plan.service.clone(),
            pod: outcome.pod.id,
            standing,
            created_at: self.now(),
            version: 0,
        };
        change.events.extend(self.news(caller, None, &subscription, &[]));
        change.subscription = Some(subscription);
        Ok((change, outcome))
    }

    async fn pod_of_plan(
        &self,
        caller: &Caller,
        tenant: &TenantId,
        name: &PodName,
        plan: &PlanPath,
    ) -> Result<(Change, Outcome), Error> {
        let create = CreateRequest {
            name: name.clone(),
            tenant: Some(tenant.clone()),
            plan: Some(plan.clone()),
            from_snapshot: None,
        };
        let unplanned = || Error::Internal { problem: "a pod of a plan without its specification".to_owned() };
        self.creation(caller, create, |base| base.cloned().ok_or_else(unplanned)).await
    }

    async fn subscription_named(&self, tenant: &TenantId, name: &PodName) -> Result<Option<Subscription>, Error> {
        let filter = SubscriptionFilter {
            tenant: Some(tenant.clone()),
            name: Some(name.clone()),
            ..SubscriptionFilter::default()
        };
        let is_gone = |found: &Subscription| found.standing.end.is_some_and(|end| end.purged);
        let found = self.store.subscription_list(&filter, &Page::first(u32::MAX)).await?;
        Ok(found.into_iter().find(|found| !is_gone(found)))
    }

    /// Ends a subscription: its pod is paused at once and kept for 60 days.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none for this caller.
    pub async fn subscription_cancel(&self, caller: &Caller, id: SubscriptionId) -> Result<Subscribed, Error> {
        self.transition(caller, id, |_| Ok(Asked::Cancel)).await
    }

    /// Ends a subscription as if its time were over.
    ///
    /// # Errors
    /// [`Error::Forbidden`] for everybody but administrators; [`Error::NotFound`] when there is none.
    pub async fn subscription_expire(&self, caller: &Caller, id: SubscriptionId) -> Result<Subscribed, Error> {
        self.require_admin(caller)?;
        self.transition(caller, id, |_| Ok(Asked::Expire)).await
    }

    /// Brings a subscription back that has ended, with its pod as it was, or lets it last for another time.
    ///
    /// # Errors
    /// [`Error::Conflict`] when its time is over and the caller has none to give, or its pod is gone and no new one is wanted;
    /// [`Error::Forbidden`] for a time that is not the caller's to say.
    pub async fn subscription_renew(
        &self,
        caller: &Caller,
        id: SubscriptionId,
        until: Until,
        gone: PodGone,
    ) -> Result<Subscribed, Error> {
        if matches!(until, Until::Now(_)) {
            require_time(caller)?;
        }
        let now = self.now();
        self.transition(caller, id, |subscription| {
            let expires_at = match until {
                Until::Now(at) => at,
                Until::AsBefore => subscription.standing.expires_at,
            };
            if until == Until::AsBefore && expires_at.is_some_and(|at| at <= now) && !caller.rights.is_platform() {
                return Err(Error::conflict(
                    "subscription-over",
                    "the time that it was for is over",
                    "ask who runs the installation to renew it: its pod is kept meanwhile, and its snapshots can be read",
                ));
            }
            Ok(Asked::Renew { expires_at, gone })
        })
        .await
    }

    /// Makes the pod one of another plan of the same service.
    ///
    /// # Errors
    /// [`Error::Conflict`] when the subscription has ended, or the pod's data does not fit the plan.
    pub async fn subscription_change_plan(
        &self,
        caller: &Caller,
        id: SubscriptionId,
        plan: &PlanName,
    ) -> Result<Subscribed, Error> {
        self.transition(caller, id, |_| Ok(Asked::ChangePlan { plan: plan.clone() })).await
    }

    /// Restarts the pod of a subscription, or starts it; the data stays.
    ///
    /// # Errors
    /// [`Error::Conflict`] when the subscription has ended.
    pub async fn subscription_restart(&self, request: Request<'_>, id: SubscriptionId) -> Result<Outcome, Error> {
        let pod = self.active_pod(request.caller, id).await?;
        let start_or_restart = |pod: &Pod, order: &verbs::Order| match pod.desired {
            Desired::Running => verbs::restart(pod, order),
            _ => verbs::start(pod, order),
        };
        self.act(request, pod, start_or_restart).await
    }

    /// Replaces the data of a subscription's pod by what its image holds, after a safety snapshot.
    ///
    /// # Errors
    /// [`Error::Conflict`] when the subscription has ended; as [`App::reset`] says.
    pub async fn subscription_reset(
        &self,
        request: Request<'_>,
        id: SubscriptionId,
        consent: &Consent,
    ) -> Result<Outcome, Error> {
        let pod = self.active_pod(request.caller, id).await?;
        self.reset(request, pod, consent).await
    }

    async fn active_pod(&self, caller: &Caller, id: SubscriptionId) -> Result<PodId, Error> {
        let Subscribed { subscription, .. } = self.subscription(caller, id).await?;
        match subscription.standing.state {
            SubscriptionState::Active => Ok(subscription.pod),
            SubscriptionState::Expired | SubscriptionState::Cancelled => {
                let hint = "renew it first: perennial subscription renew";
                Err(Error::conflict("subscription-ended", "the subscription has ended", hint))
            }
        }
    }

    /// Does what time has come for.
    ///
    /// # Errors
    /// Why it could not be done; it is due again then.
    pub(crate) async fn subscription_tick(&self, id: SubscriptionId) -> Result<(), Error> {
        self.transition(&Caller::server(CLOCK), id, |_| Ok(Asked::Tick)).await.map(drop)
    }

    fn circumstances(&self, pod: Option<&Pod>) -> Circumstances {
        Circumstances { now: self.now(), pod: PodSeen::of(pod), undelete_window: self.settings.undelete_window }
    }

    async fn transition(
        &self,
        caller: &Caller,
        id: SubscriptionId,
        ask: impl Fn(&Subscription) -> Result<Asked, Error>,
    ) -> Result<Subscribed, Error> {
        for _ in 0..ATTEMPTS {
            let present = self.subscription(caller, id).await?;
            let asked = ask(&present.subscription)?;
            let about = self.circumstances(present.pod.as_ref());
            let step = subscription::step(Some(&present.subscription.standing), &asked, about)?;
            match self.carry_out(caller, present, step).await {
                Err(Error::Conflict { code: "pod-changed", .. }) => {}
                other => return other,
            }
        }
        Err(StoreError::Stale.into())
    }

    /// Commits how a subscription stands from now on, with what becomes of its pod.
    async fn carry_out(&self, caller: &Caller, present: Subscribed, step: Step) -> Result<Subscribed, Error> {
        let Subscribed { subscription: before, pod, .. } = present;
        let Some(standing) = step.standing else { return Err(StoreError::Stale.into()) };
        if standing == before.standing && step.asks.is_empty() {
            return Ok(Subscribed { subscription: before, pod, operation: None });
        }
        let mut subscription = Subscription { standing, ..before.clone() };
        let (mut change, outcome) = match (step.asks.first(), &pod) {
            (Some(Ask::Create(plan)), _) => {
                let path = PlanPath { service: before.service.clone(), plan: plan.clone() };
                let (change, outcome) = self.pod_of_plan(caller, &before.tenant, &before.name, &path).await?;
                subscription.pod = outcome.pod.id;
                (change, Some(outcome))
            }
            (Some(Ask::Adapt(plan)), Some(pod)) => {
                let path = PlanPath { service: before.service.clone(), plan: plan.clone() };
                self.adapt(caller, pod, &path).await?
            }
            (_, Some(pod)) => self.moved(caller, pod, &step.asks).await?,
            (_, None) => (Change::default(), None),
        };
        if subscription.standing.state != before.standing.state {
            // Whatever somebody asked of the pod meanwhile is seen, also when nothing is asked of it here.
            change.pod = change.pod.or_else(|| pod.clone());
        }
        if subscription.standing.end.is_some() {
            change.pod = change.pod.map(verbs::to_rest);
        }
        change.events.extend(self.news(caller, Some(&before.standing), &subscription, &step.asks));
        change.subscription = Some(subscription);
        Ok(self.subscription_commit(caller, change, outcome, pod).await?)
    }

    /// What the verbs make of the pod that are asked for, one after the other.
    async fn moved(&self, caller: &Caller, pod: &Pod, asks: &[Ask]) -> Result<(Change, Option<Outcome>), Error> {
        let verb = |pod: &Pod, ask: &Ask| -> Result<Option<Decision>, Error> {
            let order = self.order(caller);
            match ask {
                Ask::Pause => verbs::pause(pod, &order).map(Some),
                Ask::Undelete => verbs::undelete(pod, &order).map(Some),
                Ask::Start => verbs::start(pod, &order).map(Some),
                Ask::Delete => verbs::delete(pod, self.settings.undelete_window, None, &order).map(Some),
                Ask::Create(_) | Ask::Adapt(_) | Ask::Warn(_) => Ok(None),
            }
        };
        let mut decided: Option<Decision> = None;
        for ask in asks {
            decided = match decided {
                None => verb(pod, ask)?,
                Some(first) => {
                    let nothing = || Error::Internal { problem: format!("{ask:?} after something else") };
                    Some(first.then(|pod| verb(pod, ask)?.ok_or_else(nothing))?)
                }
            };
        }
        let Some(decision) = decided else { return Ok((Change::default(), None)) };
        let (change, outcome) = self.change_of(pod, decision, None).await?;
        Ok((change, Some(outcome)))
    }

    async fn adapt(&self, caller: &Caller, pod: &Pod, path: &PlanPath) -> Result<(Change, Option<Outcome>), Error> {
        let spec = self.adapted(caller, path, &pod.spec).await?;
        self.check_engine(&spec).await?;
        self.check_fits(pod, &spec).await?;
        let bounded = Some(pod.tenant.clone());
        match verbs::adapt(pod, spec, &self.order(caller))? {
            None => Ok((Change::default(), None)),
            Some(Adapted::Already(next)) => Ok((Change { pod: Some(*next), bounded, ..Change::default() }, None)),
            Some(Adapted::Restarts(decision)) => {
                let (change, outcome) = self.change_of(pod, *decision, None).await?;
                Ok((Change { bounded, ..change }, Some(outcome)))
            }
        }
    }

    /// Refuses a disk limit below what the pod's data takes: it could write nothing any more.
    async fn check_fits(&self, pod: &Pod, spec: &PodSpec) -> Result<(), Error> {
        let Some(limit) = spec.resources.disk else { return Ok(()) };
        if pod.spec.resources.disk.is_some_and(|before| before <= limit) {
            return Ok(());
        }
        let used = if pod.current.is_some() {
            let usage = self.volume_usage(pod).await;
            let sum = |sum: u64, volume: &VolumeUsage| Some(sum.saturating_add(volume.bytes?));
            if usage.is_empty() { None } else { usage.iter().try_fold(0, sum) }
        } else if pod.ever_ran() {
            let latest = self.store.pod_fetch_with_latest(pod.id).await?.and_then(|(_, latest)| latest);
            latest.and_then(|latest| latest.bytes)
        } else {
            Some(0)
        };
        let used = used.ok_or_else(|| Error::Unavailable {
            problem: "nobody can tell now what the pod's volumes take, and the plan has less than they may".to_owned(),
        })?;
        if used <= limit {
            return Ok(());
        }
        Err(Error::conflict(
            "plan-too-small",
            format!("the pod's volumes take {used} bytes, and the plan has {limit}"),
            "delete what is not needed, or choose a larger plan",
        ))
    }

    async fn subscription_commit(
        &self,
        caller: &Caller,
        change: Change,
        outcome: Option<Outcome>,
        pod: Option<Pod>,
    ) -> Result<Subscribed, StoreError> {
        let Some(mut subscription) = change.subscription.clone() else { return Err(StoreError::Stale) };
        let written = change.pod.clone().map(|pod| Pod { version: pod.version + 1, ..pod });
        subscription.version += 1;
        match self.commit_for(caller, change).await {
            // Written or not: the row tells (law 5).
            Err(StoreError::OutcomeUnknown(source)) => {
                let found = self.store.subscription_fetch(subscription.id).await.ok().flatten();
                if found.as_ref() != Some(&subscription) {
                    return Err(StoreError::OutcomeUnknown(source));
                }
            }
            other => other?,
        }
        (self.waker)(subscription.pod);
        let (pod, operation) = match outcome {
            Some(outcome) => (Some(outcome.pod), Some(outcome.operation)),
            None => (written.or(pod), None),
        };
        Ok(Subscribed { subscription, pod, operation })
    }

    /// What the trail says of a change.
    fn news(&self, caller: &Caller, before: Option<&Standing>, after: &Subscription, asks: &[Ask]) -> Option<NewEvent> {
        let (kind, message) = told(before, after, asks)?;
        Some(NewEvent {
            at: self.now(),
            actor: caller.actor.clone(),
            tenant: after.tenant.clone(),
            pod: Some(after.pod),
            operation: None,
            kind: kind.to_owned(),
            message,
        })
    }
}

/// Refuses to let anybody but administrators say until when a subscription lasts.
fn require_time(caller: &Caller) -> Result<(), Error> {
    if caller.rights.is_platform() {
        return Ok(());
    }
    let problem = "until when a subscription lasts is said by administrators: leave expiresAt out".to_owned();
    Err(Error::Forbidden { problem })
}

/// A change in words: its kind, and a sentence.
fn told(before: Option<&Standing>, after: &Subscription, asks: &[Ask]) -> Option<(&'static str, String)> {
    let (name, standing) = (&after.name, &after.standing);
    let until = standing.expires_at.map_or_else(|| "for good".to_owned(), |at| format!("until {at:.0}"));
    let plan = format!("{}/{}", after.service, standing.plan);
    let Some(before) = before else {
        return Some(("subscription.created", format!("subscription {name} to {plan}, {until}")));
    };
    let was_deleted = before.end.is_some_and(|end| end.purge_at.is_some());
    match (standing.state, standing.end) {
        (SubscriptionState::Active, _) if before.state != SubscriptionState::Active => {
            let with = if matches!(asks.first(), Some(Ask::Create(_))) { ", with a new pod" } else { "" };
            Some(("subscription.renewed", format!("subscription {name} to {plan} is renewed, {until}{with}")))
        }
        (SubscriptionState::Active, _) if before.plan != standing.plan => {
            let message = format!("subscription {name} is to {plan} from now on, and no longer to {}", before.plan);
            Some(("subscription.plan-changed", message))
        }
        (SubscriptionState::Active, _) => Some(("subscription.renewed", format!("subscription {name} lasts {until}"))),
        (_, None) => None,
        (state, Some(end)) if state != before.state => {
            let (kind, what) = match state {
                SubscriptionState::Cancelled => ("subscription.cancelled", "is cancelled"),
                _ => ("subscription.expired", "is over"),
            };
            Some((kind, format!("subscription {name} {what}; its pod is kept until {:.0}", end.trash_at)))
        }
        (_, Some(end)) if end.purged => {
            Some(("subscription.pod-gone", format!("the pod of subscription {name} is gone for good")))
        }
        (_, Some(end)) => match asks.first() {
            Some(Ask::Warn(days)) => Some((
                "subscription.deletion-announced",
                format!(
                    "the pod of subscription {name} is deleted in {days} days, at {:.0}, unless it is renewed",
                    end.trash_at
                ),
            )),
            Some(Ask::Delete) => {
                let back =
                    end.purge_at.map(|at| format!("; until {at:.0} a renewal brings it back")).unwrap_or_default();
                Some(("subscription.pod-deleted", format!("the pod of subscription {name} is deleted{back}")))
            }
            _ if was_deleted && end.purge_at.is_none() => Some((
                "subscription.deletion-failed",
                format!("the pod of subscription {name} could not be deleted; tried again at {:.0}", end.trash_at),
            )),
            _ => None,
        },
    }
}
