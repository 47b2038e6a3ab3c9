//! People and programs are told what concerns them: mail to the members of a tenant, webhooks for programs.
//!
//! What is told follows from the trail ([`Notifier::look`]), so that nothing is told that did not happen, and what happened is told also
//! when the server died right after it. Messages are sent at least once ([`Notifier::send`]); a receiver tells a second one by its id.
//!
//! - `mail`: texts and the mail server; `webhook`: signed requests.

mod mail;
mod webhook;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use perennial_core::Error;
use perennial_core::clock::{Clock, IdSource};
use perennial_core::id::DeliveryId;
use perennial_core::operation::{Event, OperationKind};
use perennial_core::record::POD_UNHEALTHY;
use tokio::sync::watch;

use crate::config::{ConfigError, MailSection, WebhookSection};
use crate::reconcile::SNAPSHOT_DELAYED;
use crate::service::QUOTA_REACHED;
use crate::store::{Delivery, DeliveryState, EventFilter, Store, Tried};

pub use mail::Mailer;
pub use webhook::Webhook;

/// How often it is looked for what to tell, when nothing is committed by this server.
const EVERY: Duration = Duration::from_secs(15);
/// Events that are looked at in one go.
const AT_ONCE: u32 = 200;
/// Messages that are sent in one go.
const SENT_AT_ONCE: u32 = 20;
/// How long a try may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// When a server that took a message is taken for dead.
const TAKEN: SignedDuration = SignedDuration::from_mins(2);
/// Minutes until a message is tried again, by the number of tries that failed; then it is given up.
const AGAIN: [i64; 8] = [1, 5, 15, 60, 180, 360, 720, 1440];
/// Events that are older are told to nobody: whoever is told of one was to do something in its time.
const NEWS: SignedDuration = SignedDuration::from_hours(24);
/// Most messages that wait for one webhook.
const WAITING_MOST: u64 = 10_000;
/// How often old messages are forgotten.
const PRUNED: SignedDuration = SignedDuration::from_hours(1);
/// How long ended messages are kept.
const KEPT: SignedDuration = SignedDuration::from_hours(24 * 90);
/// The same failure of the same pod is mailed no more often.
const SELDOM: SignedDuration = SignedDuration::from_hours(24);

/// Kinds of events that the members of a tenant are written to about.
const MAILED: [&str; 9] = [
    POD_UNHEALTHY,
    QUOTA_REACHED,
    "subscription.cancelled",
    "subscription.deletion-announced",
    "subscription.expired",
    "subscription.pod-deleted",
    "subscription.pod-gone",
    RESET_BY_ADMIN,
    SNAPSHOT_FAILED,
];
/// What a reset is called here that no member asked for; the trail calls it an operation that was requested.
const RESET_BY_ADMIN: &str = "pod.reset-by-admin";
/// What a failed snapshot is called here; the trail calls it a failed operation.
const SNAPSHOT_FAILED: &str = "snapshot.failed";

/// Tells people and programs.
pub struct Notifier {
    store: Store,
    clock: Arc<dyn Clock>,
    ids: Arc<dyn IdSource>,
    /// `None`: nobody is written to.
    mailer: Option<Mailer>,
    webhooks: Vec<Webhook>,
    /// When old messages were forgotten last.
    pruned: Mutex<Option<Timestamp>>,
}

/// What a notifier cannot work with.
#[derive(Debug, thiserror::Error)]
pub enum NotifyError {
    /// A file that is named in the configuration cannot be used.
    #[error("{key}: {path} cannot be read: {source}")]
    File {
        /// Where it is named.
        key: &'static str,
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// A file that holds a secret cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The mail server, the sender or a text cannot be used.
    #[error("mail: {0}")]
    Mail(String),
}

impl Notifier {
    /// One that tells as the configuration says.
    ///
    /// # Errors
    /// [`NotifyError`] when a file or a text cannot be used.
    pub fn new(
        store: Store,
        (clock, ids): (Arc<dyn Clock>, Arc<dyn IdSource>),
        mail: &MailSection,
        webhooks: &[WebhookSection],
    ) -> Result<Self, NotifyError> {
        let mailer = Mailer::new(mail)?;
        let webhooks = webhooks.iter().map(Webhook::new).collect::<Result<_, _>>()?;
        Ok(Self { store, clock, ids, mailer, webhooks, pruned: Mutex::default() })
    }

    /// Runs until `stopped` says so; ends at once when there is nobody to tell.
    pub async fn run(self, stopped: watch::Receiver<bool>) {
        let targets = self.targets();
        if targets.is_empty() {
            return;
        }
        // Each receiver for itself: one that is slow, or away, keeps nobody else waiting.
        let sending = targets.iter().map(|target| self.keep(Some(target), stopped.clone()));
        tokio::join!(self.keep(None, stopped.clone()), futures::future::join_all(sending));
    }

    /// Sends what there is for a receiver, or looks for what there is, whenever something was committed and every few seconds.
    async fn keep(&self, target: Option<&str>, mut stopped: watch::Receiver<bool>) {
        let mut committed = self.store.subscribe();
        while !*stopped.borrow() {
            match target {
                Some(target) => self.send_all(target).await,
                None => self.look_around().await,
            }
            tokio::select! {
                // However many commits there were: one look finds them all.
                _ = committed.recv() => {}
                () = tokio::time::sleep(EVERY) => {}
                _ = stopped.changed() => {}
            }
            committed = committed.resubscribe();
        }
    }

    async fn look_around(&self) {
        if let Err(error) = self.look().await {
            tracing::warn!(%error, "look for what to tell");
        }
        self.prune().await;
    }

    /// Tells everything that is to be told now.
    pub async fn tell(&self) {
        self.look_around().await;
        let targets = self.targets();
        futures::future::join_all(targets.iter().map(|target| self.send_all(target))).await;
    }

    /// Whom this server tells, as the beginnings of targets. Another server may tell others.
    fn targets(&self) -> Vec<String> {
        let webhooks = self.webhooks.iter().map(|webhook| format!("webhook:{}", webhook.name));
        self.mailer.iter().map(|_| "mail:".to_owned()).chain(webhooks).collect()
    }

    /// Forgets what nobody needs any more, once an hour.
    async fn prune(&self) {
        let now = self.clock.now();
        let is_due = {
            let mut last = self.pruned.lock().unwrap_or_else(PoisonError::into_inner);
            let is_due = last.is_none_or(|last| now.duration_since(last).abs() >= PRUNED);
            if is_due {
                *last = Some(now);
            }
            is_due
        };
        if is_due
            && let Ok(before) = now.checked_sub(KEPT)
            && let Err(error) = self.store.deliveries_prune(before).await
        {
            tracing::debug!(%error, "forget old messages");
        }
    }

    /// Makes the messages that new events lead to.
    async fn look(&self) -> Result<(), Error> {
        loop {
            let from = self.store.told().await?;
            let events = self.store.event_list(from, &EventFilter::default(), AT_ONCE).await?;
            let Some(last) = events.last().map(|event| event.id) else { return Ok(()) };
            let mut deliveries = Vec::new();
            // What is older is no news any more: somebody has only now begun to tell people.
            let news = self.clock.now().checked_sub(NEWS).unwrap_or(Timestamp::MIN);
            for event in events.iter().filter(|event| event.line.at >= news) {
                self.lead_to(event, &mut deliveries).await?;
            }
            // Whoever was faster made the same ones.
            self.store.deliveries_add((from, last), &deliveries).await?;
        }
    }

    async fn lead_to(&self, event: &Event, deliveries: &mut Vec<Delivery>) -> Result<(), Error> {
        let kind = self.kind(event).await?;
        let now = self.clock.now();
        let to = |target: String| Delivery {
            id: DeliveryId::from_parts(u64::try_from(now.as_millisecond()).unwrap_or_default(), self.ids.random()),
            event: event.id,
            kind: kind.to_owned(),
            tenant: event.line.tenant.clone(),
            pod: event.line.pod,
            target,
            created_at: now,
            state: DeliveryState::Pending,
            tries: 0,
            next_at: Some(now),
            ended_at: None,
            problem: None,
        };
        let wanted = self.webhooks.iter().filter(|webhook| webhook.wants(kind) || webhook.wants(&event.line.kind));
        for webhook in wanted {
            let target = format!("webhook:{}", webhook.name);
            if self.store.deliveries_waiting(&target).await? < WAITING_MOST {
                deliveries.push(to(target));
            } else {
                tracing::warn!(target, event = event.id, "too many messages wait for this receiver: one is left out");
            }
        }
        if self.mailer.is_none() || !MAILED.contains(&kind) {
            return Ok(());
        }
        for address in self.store.addresses_of(&event.line.tenant).await? {
            let delivery = to(format!("mail:{address}"));
            let is_seldom = [SNAPSHOT_FAILED, POD_UNHEALTHY].contains(&kind);
            let since = now.checked_sub(SELDOM).unwrap_or(Timestamp::MIN);
            let same = |other: &Delivery| {
                other.target == delivery.target && other.kind == delivery.kind && other.pod == delivery.pod
            };
            let is_known = deliveries.iter().any(same) || self.store.delivery_is_known(&delivery, since).await?;
            if !(is_seldom && is_known) {
                deliveries.push(delivery);
            }
        }
        Ok(())
    }

    /// What an event is called here.
    async fn kind<'a>(&self, event: &'a Event) -> Result<&'a str, Error> {
        let is = |kind: OperationKind, what: &str| {
            let rest = event.line.message.strip_prefix(kind.as_str());
            rest.is_some_and(|rest| rest.starts_with(what))
        };
        Ok(match event.line.kind.as_str() {
            "operation.failed" if is(OperationKind::Snapshot, " failed") => SNAPSHOT_FAILED,
            SNAPSHOT_DELAYED => SNAPSHOT_FAILED,
            "operation.requested" if is(OperationKind::Reset, " requested") => {
                // Who resets their own pod knows of it.
                let members = self.store.members_of(&event.line.tenant).await?;
                let actor = event.line.actor.strip_prefix("user:").and_then(|rest| rest.split(' ').next());
                let is_own = actor.is_some_and(|actor| members.iter().any(|member| member.as_str() == actor));
                if is_own { &event.line.kind } else { RESET_BY_ADMIN }
            }
            kind => kind,
        })
    }

    /// Sends everything that is due for one receiver, until it takes nothing.
    async fn send_all(&self, target: &str) {
        if let Err(error) = self.try_send_all(target).await {
            tracing::warn!(target, %error, "tell what there is to tell");
        }
    }

    async fn try_send_all(&self, target: &str) -> Result<(), Error> {
        loop {
            let due = self.store.deliveries_due(target, self.clock.now(), SENT_AT_ONCE).await?;
            let mut were_sent = !due.is_empty();
            for delivery in &due {
                were_sent &= self.send_one(delivery).await? != Some(false);
                if !were_sent {
                    break;
                }
            }
            if !were_sent {
                return Ok(());
            }
        }
    }

    /// Sends a message; tells whether its receiver answered, `None` when it is somebody else's.
    async fn send_one(&self, delivery: &Delivery) -> Result<Option<bool>, Error> {
        if !self.store.delivery_take(delivery, self.clock.now(), TAKEN).await? {
            return Ok(None);
        }
        let after = delivery.event - 1;
        let event = self.store.event_list(after, &EventFilter::default(), 1).await?;
        let sent = match event.first().filter(|event| event.id == delivery.event) {
            None => Err(Unsent::ForGood("the event that it tells of is gone".to_owned())),
            Some(event) => match tokio::time::timeout(PATIENCE, self.send_event(delivery, event)).await {
                Ok(sent) => sent,
                Err(_) => Err(Unsent::ForNow(format!("no answer in {} s", PATIENCE.as_secs()))),
            },
        };
        let now = self.clock.now();
        let tried = match sent {
            Ok(()) => Tried::Sent,
            Err(Unsent::ForGood(problem)) => Tried::GivenUp(problem),
            Err(Unsent::ForNow(problem)) => {
                let failed = usize::try_from(delivery.tries).unwrap_or(usize::MAX);
                match AGAIN.get(failed).map(|minutes| now.checked_add(SignedDuration::from_mins(*minutes))) {
                    Some(Ok(at)) => Tried::Again(at, problem),
                    Some(Err(_)) | None => Tried::GivenUp(problem),
                }
            }
        };
        if let Tried::Again(_, problem) | Tried::GivenUp(problem) = &tried {
            tracing::warn!(delivery = %delivery.id, target = delivery.target, problem, "tell somebody");
        }
        self.store.delivery_tried(delivery.id, now, &tried).await?;
        Ok(Some(!matches!(tried, Tried::Again(..))))
    }

    async fn send_event(&self, delivery: &Delivery, event: &Event) -> Result<(), Unsent> {
        let gone = || Unsent::ForGood("the configuration names it no longer".to_owned());
        match delivery.target.split_once(':') {
            Some(("mail", address)) => {
                // Whoever was a member when it happened may be none any more.
                let addresses = self.store.addresses_of(&delivery.tenant).await;
                let addresses = addresses.map_err(|error| Unsent::ForNow(error.to_string()))?;
                if !addresses.iter().any(|known| known == address) {
                    return Err(Unsent::ForGood("nobody of the tenant has this address now".to_owned()));
                }
                let pod = match event.line.pod {
                    Some(pod) => self.store.pod_fetch(pod).await.ok().flatten(),
                    None => None,
                };
                self.mailer.as_ref().ok_or_else(gone)?.send(address, delivery, event, pod.as_ref()).await
            }
            Some(("webhook", name)) => {
                let webhook = self.webhooks.iter().find(|webhook| webhook.name == name).ok_or_else(gone)?;
                webhook.send(delivery, event, self.clock.now()).await
            }
            _ => Err(Unsent::ForGood("it goes nowhere".to_owned())),
        }
    }
}

/// Why a message was not taken.
#[derive(Debug)]
enum Unsent {
    /// It may be taken later.
    ForNow(String),
    /// It never will.
    ForGood(String),
}
