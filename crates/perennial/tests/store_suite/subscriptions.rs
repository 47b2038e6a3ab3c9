//! Subscriptions, messages, and the breaker before what ends by itself.

use jiff::SignedDuration;
use perennial::store::{
    Change, Delivery, DeliveryState, EventFilter, Page, Store, StoreError, SubscriptionFilter, Tried,
};
use perennial_core::id::{DeliveryId, SubscriptionId};
use perennial_core::pod::{Desired, Pod};
use perennial_core::service::{PlanName, ServiceName};
use perennial_core::spec::PodName;
use perennial_core::subscription::{End, Resume, Standing, Subscription, SubscriptionState};
use serde_json::json;

use crate::any::Any;
use crate::audit::newest;
use crate::cases::{after, now, stored};
use crate::databases::Database;

fn of(pod: &Pod, n: u8) -> Subscription {
    Subscription {
        id: SubscriptionId::from_parts(u64::from(n), [n; 10]),
        tenant: pod.tenant.clone(),
        name: pod.name.clone(),
        service: ServiceName::parse("n8n").unwrap(),
        pod: pod.id,
        standing: Standing {
            state: SubscriptionState::Active,
            plan: PlanName::parse("plus").unwrap(),
            expires_at: Some(after(100)),
            end: None,
        },
        created_at: now(),
        version: 0,
    }
}

fn end() -> End {
    let (at, trash_at) = (after(100), after(200));
    End { at, resume: Resume::Start, trash_at, warned: 2, purge_at: Some(after(300)), purged: false }
}

fn with(pod: &Pod, subscription: &Subscription) -> Change {
    Change { pod: Some(pod.clone()), subscription: Some(subscription.clone()), ..Change::default() }
}

async fn list(store: &Store, filter: SubscriptionFilter) -> Vec<SubscriptionId> {
    let found = store.subscription_list(&filter, &Page::first(100)).await.unwrap();
    found.into_iter().map(|one| one.id).collect()
}

pub async fn subscriptions_are_remembered_and_written_by_whoever_read_them(db: &Database) {
    let (store, mut any) = (db.open().await, Any::new(140));
    let pod = any.living("wf");
    let made = of(&pod, 1);
    store.commit(with(&pod, &made)).await.unwrap();
    let made = Subscription { version: 1, ..made };
    assert_eq!(store.subscription_fetch(made.id).await.unwrap(), Some(made.clone()));
    assert_eq!(store.subscription_of(pod.id).await.unwrap(), Some(made.clone()));
    let ended = Standing { state: SubscriptionState::Cancelled, end: Some(end()), ..made.standing.clone() };
    let ended = Subscription { standing: ended, ..made.clone() };
    let write = async |subscription: &Subscription| {
        store.commit(Change { subscription: Some(subscription.clone()), ..Change::default() }).await
    };
    write(&ended).await.unwrap();
    assert!(matches!(write(&ended).await, Err(StoreError::Stale)), "it was written since it was read");
    let (kind, was, is) = newest(&store).await;
    assert_eq!(
        (kind.as_str(), &was),
        ("subscription.changed", &json!({"subscription": {"state": "active", "warned": 0}}))
    );
    let is = &is["subscription"];
    assert_eq!((&is["state"], &is["resume"], &is["warned"]), (&json!("cancelled"), &json!("start"), &json!(2)));
    assert!(is["endedAt"].is_string() && is["trashAt"].is_string() && is["purgeAt"].is_string(), "{is}");
    assert!(is.get("plan").is_none() && is.get("pod").is_none(), "{is}");
    let ended = Subscription { version: 2, ..ended };
    assert_eq!(store.subscription_fetch(made.id).await.unwrap(), Some(ended.clone()));

    // A second one of the name has to wait until the pod of the first is gone for good.
    let other = any.living("wf2");
    let second = Subscription { name: made.name.clone(), ..of(&other, 2) };
    assert!(matches!(store.commit(with(&other, &second)).await, Err(StoreError::Taken(_))));
    let gone = Standing { end: Some(End { purged: true, ..end() }), ..ended.standing.clone() };
    write(&Subscription { standing: gone, ..ended }).await.unwrap();
    store.commit(with(&other, &second)).await.unwrap();

    let of_state = |state| SubscriptionFilter { state: Some(state), ..SubscriptionFilter::default() };
    assert_eq!(list(&store, SubscriptionFilter::default()).await, [made.id, second.id]);
    assert_eq!(list(&store, of_state(SubscriptionState::Active)).await, [second.id]);
    assert_eq!(list(&store, of_state(SubscriptionState::Expired)).await, []);
    let nobody = SubscriptionFilter { within: Some([].into()), ..SubscriptionFilter::default() };
    assert_eq!(list(&store, nobody).await, []);
    let due = async |at| store.subscriptions_due(at, &Page::first(10)).await.unwrap();
    assert_eq!(due(after(99)).await, [], "one is over and done with, of the other it is not time");
    assert_eq!(due(after(100)).await, [second.id]);
}

pub async fn a_pod_goes_no_way_that_its_subscription_forbids(db: &Database) {
    let (store, mut any) = (db.open().await, Any::new(141));
    let pod = Pod { desired: Desired::Running, ..any.living("wf") };
    let made = of(&pod, 3);
    store.commit(with(&pod, &made)).await.unwrap();
    let pod = stored(&pod);
    let moved = async |from: &Pod, to| {
        let change = Change {
            pod: Some(Pod { desired: to, ..from.clone() }),
            moved_from: Some(from.desired),
            ..Change::default()
        };
        store.commit(change).await
    };
    assert!(matches!(moved(&pod, Desired::Deleted).await, Err(StoreError::Subscribed(_))));
    let purge = Change { pod: Some(pod.clone()), forgets_all_of: Some(pod.id), ..Change::default() };
    assert!(matches!(store.commit(purge).await, Err(StoreError::Subscribed(_))));
    // Its end and what becomes of the pod are one.
    let standing = Standing { state: SubscriptionState::Expired, end: Some(end()), ..made.standing.clone() };
    let ended = Subscription { standing, version: 1, ..made };
    let rests = Pod { desired: Desired::Paused, ..pod.clone() };
    let change = Change { moved_from: Some(Desired::Running), ..with(&rests, &ended) };
    store.commit(change).await.unwrap();
    let rests = stored(&rests);
    assert!(matches!(moved(&rests, Desired::Running).await, Err(StoreError::Subscribed(_))));
    moved(&rests, Desired::Deleted).await.unwrap();
    let deleted = stored(&Pod { desired: Desired::Deleted, ..rests });
    assert!(matches!(moved(&deleted, Desired::Stopped).await, Err(StoreError::Subscribed(_))));
    // And its name waits for it.
    let named = Pod { name: PodName::parse("wf").unwrap(), tenant: deleted.tenant.clone(), ..any.living("other") };
    let insert = Change { pod: Some(named), ..Change::default() };
    assert!(matches!(store.commit(insert).await, Err(StoreError::NameTaken)));
}

pub async fn a_message_is_made_once_and_sent_by_one(db: &Database) {
    let (store, mut any) = (db.open().await, Any::new(142));
    let pod = any.living("wf");
    store.commit(Change { events: vec![any.event(&pod)], ..crate::cases::with_pod(&pod) }).await.unwrap();
    let events = store.event_list(store.told().await.unwrap(), &EventFilter::default(), 10).await.unwrap();
    let message = Delivery {
        id: DeliveryId::from_parts(1, [1; 10]),
        event: events[0].id,
        kind: "pod.crashed".to_owned(),
        tenant: pod.tenant.clone(),
        pod: Some(pod.id),
        target: "mail:ann@example.org".to_owned(),
        created_at: now(),
        state: DeliveryState::Pending,
        tries: 0,
        next_at: Some(now()),
        ended_at: None,
        problem: None,
    };
    let range = (store.told().await.unwrap(), events[0].id);
    assert!(store.deliveries_add(range, std::slice::from_ref(&message)).await.unwrap());
    assert!(!store.deliveries_add(range, std::slice::from_ref(&message)).await.unwrap(), "somebody was faster");
    assert_eq!(store.delivery_list(None, &Page::first(10)).await.unwrap(), std::slice::from_ref(&message));
    assert!(store.delivery_is_known(&message, now()).await.unwrap());
    assert!(!store.delivery_is_known(&message, after(1)).await.unwrap());
    let patience = SignedDuration::from_mins(2);
    assert!(store.delivery_take(&message, now(), patience).await.unwrap());
    assert!(!store.delivery_take(&message, now(), patience).await.unwrap(), "one has it");
    assert_eq!(store.deliveries_due("mail:", after(119), 10).await.unwrap(), []);
    let again = store.deliveries_due("mail:", after(120), 10).await.unwrap();
    assert_eq!((again.len(), again[0].tries), (1, 1), "who has it is taken for dead");
    store.delivery_tried(message.id, after(120), &Tried::Again(after(500), "away".to_owned())).await.unwrap();
    assert_eq!(store.deliveries_due(&message.target, after(499), 10).await.unwrap(), []);
    store.delivery_tried(message.id, after(501), &Tried::Sent).await.unwrap();
    store.delivery_tried(message.id, after(502), &Tried::GivenUp("late".to_owned())).await.unwrap();
    let sent = store.delivery_list(Some(DeliveryState::Sent), &Page::first(10)).await.unwrap();
    assert_eq!((sent.len(), sent[0].ended_at), (1, Some(after(501))), "what has ended stays as it ended");
    store.deliveries_prune(after(501)).await.unwrap();
    assert_eq!(store.delivery_list(None, &Page::first(10)).await.unwrap().len(), 1);
    store.deliveries_prune(after(502)).await.unwrap();
    assert_eq!(store.delivery_list(None, &Page::first(10)).await.unwrap(), []);
}

pub async fn after_a_gap_nothing_is_destroyed_for_a_day(db: &Database) {
    let store = db.open().await;
    let hours = |hours: i64| now() + SignedDuration::from_hours(hours);
    assert_eq!(store.keeping(hours(0)).await.unwrap(), None, "nobody ever looked");
    assert_eq!(store.keeping(hours(36)).await.unwrap(), None);
    assert_eq!(store.keeping(hours(73)).await.unwrap(), Some(hours(97)));
    assert_eq!(store.held_until(hours(80)).await.unwrap(), Some(hours(97)));
    assert_eq!(store.keeping(hours(96)).await.unwrap(), Some(hours(97)));
    assert_eq!(store.keeping(hours(97)).await.unwrap(), None);
    // The clock was years ahead, and is set back.
    assert!(store.keeping(hours(50_000)).await.unwrap().is_some());
    assert_eq!(store.keeping(hours(98)).await.unwrap(), Some(hours(122)));
    assert_eq!(store.keeping(hours(122)).await.unwrap(), None);
}
