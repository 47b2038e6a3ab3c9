//! What is remembered of pods that are in no database, on both databases.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use perennial::store::{Change, OrphanChange, Store, StoreError};
use perennial_core::cleanup::{Quarantine, WINDOW};
use perennial_core::id::PodId;
use perennial_core::operation::NewEvent;
use perennial_core::pod::Pod;
use perennial_core::spec::{PodName, TenantId};

use crate::any::Any;
use crate::databases::{Cluster, Database};

fn pod(n: u8) -> PodId {
    PodId::from_parts(1, [n; 10])
}

fn at(hours: i64) -> Timestamp {
    // Second 0 stands for never.
    Timestamp::UNIX_EPOCH + SignedDuration::from_hours(500_000 + hours)
}

fn new_pod(id: PodId) -> Pod {
    Pod { id, version: 0, ..Any::new(7).pod() }
}

async fn change(store: &Store, orphans: Vec<OrphanChange>, pod: Option<Pod>) -> Result<(), StoreError> {
    // As in life, every such change is on the trail.
    let event = NewEvent {
        at: at(0),
        actor: "user:root".to_owned(),
        tenant: TenantId::default_tenant(),
        pod: None,
        operation: None,
        kind: "test".to_owned(),
        message: String::new(),
    };
    store.commit(Change { orphans, pod, events: vec![event], ..Change::default() }).await
}

fn quarantined(n: u8) -> OrphanChange {
    let quarantine = Quarantine { at: at(2), actor: "user:root".to_owned(), until: at(2) + WINDOW };
    OrphanChange::Quarantined(pod(n), quarantine)
}

async fn an_orphan_ends_or_is_taken_over(database: &Database) {
    let store = database.open().await;
    let seen = |pods: &[u8]| pods.iter().map(|n| pod(*n)).collect::<BTreeSet<_>>();
    let noted = async |pods: &[u8], hour| {
        let noted = store.orphans_note(&seen(pods), at(hour)).await.unwrap();
        noted.into_iter().map(|noted| (noted.pod, noted.first_seen_at)).collect::<Vec<_>>()
    };
    assert_eq!(noted(&[1, 2], 0).await, [(pod(1), at(0)), (pod(2), at(0))]);
    assert_eq!(noted(&[1, 2, 3], 1).await, [(pod(1), at(0)), (pod(2), at(0)), (pod(3), at(1))]);
    // One that came back is nobody's from then on.
    noted(&[1, 3], 2).await;
    assert_eq!(noted(&[1, 2, 3], 3).await[1], (pod(2), at(3)));

    let stale = |done: Result<(), StoreError>| matches!(done, Err(StoreError::Stale));
    assert!(stale(change(&store, vec![OrphanChange::Ending(pod(1), at(200))], None).await), "nobody consented");
    change(&store, vec![quarantined(1)], None).await.unwrap();
    assert!(stale(change(&store, vec![quarantined(1)], None).await), "once is enough");
    assert!(stale(change(&store, vec![quarantined(9)], None).await), "there is none");
    assert!(stale(change(&store, vec![OrphanChange::Gone(pod(1))], None).await), "its end has not begun");
    let kept = store.orphans().await.unwrap().remove(0);
    let consent = kept.quarantine.unwrap();
    assert_eq!((consent.actor.as_str(), consent.at, consent.until), ("user:root", at(2), at(2) + WINDOW));

    // Taken over, or at its end: whoever is first.
    change(&store, vec![quarantined(2)], None).await.unwrap();
    change(&store, vec![], Some(new_pod(pod(2)))).await.unwrap();
    assert!(stale(change(&store, vec![OrphanChange::Ending(pod(2), at(200))], None).await));
    change(&store, vec![OrphanChange::Ending(pod(1), at(200))], None).await.unwrap();
    assert!(stale(
        change(&store, vec![], Some(Pod { name: PodName::parse("other").unwrap(), ..new_pod(pod(1)) })).await
    ));
    assert!(store.pod_fetch(pod(1)).await.unwrap().is_none());
    // One that was interrupted begins once more.
    change(&store, vec![OrphanChange::Ending(pod(1), at(200))], None).await.unwrap();
    assert!(store.orphans().await.unwrap()[0].is_ending);
    change(&store, vec![OrphanChange::Gone(pod(1))], None).await.unwrap();
    assert_eq!(noted(&[], 4).await, []);

    // Somebody works on a pod of that id, perhaps to write it.
    noted(&[4], 5).await;
    change(&store, vec![quarantined(4)], None).await.unwrap();
    store.lease_acquire(pod(4), "another server", at(199), at(201)).await.unwrap().unwrap();
    assert!(stale(change(&store, vec![OrphanChange::Ending(pod(4), at(200))], None).await));
    change(&store, vec![OrphanChange::Ending(pod(4), at(201))], None).await.unwrap();
    change(&store, vec![OrphanChange::Gone(pod(4))], None).await.unwrap();

    // Both at once: never both.
    noted(&[5], 5).await;
    change(&store, vec![quarantined(5)], None).await.unwrap();
    let taken = Pod { name: PodName::parse("third").unwrap(), ..new_pod(pod(5)) };
    let (over, ending) = tokio::join!(
        change(&store, vec![], Some(taken)),
        change(&store, vec![OrphanChange::Ending(pod(5), at(200))], None)
    );
    assert!(over.is_ok() != ending.is_ok(), "{over:?} {ending:?}");
}

/// By a clock that was weeks behind at the consent, the week would be over as soon as the clock is put right.
async fn after_a_gap_an_orphan_is_kept_for_a_week_once_more(database: &Database) {
    let store = database.open().await;
    change(&store, vec![], Some(new_pod(pod(9)))).await.unwrap();
    let seen = [1, 2, 3].map(pod).into_iter().collect();
    store.orphans_note(&seen, at(0)).await.unwrap();
    store.keeping(at(0)).await.unwrap();
    change(&store, vec![quarantined(1), quarantined(2)], None).await.unwrap();
    change(&store, vec![OrphanChange::Ending(pod(2), at(200))], None).await.unwrap();
    let kept = async || {
        let noted = store.orphans().await.unwrap();
        noted.into_iter().map(|noted| noted.quarantine.map(|kept| kept.until)).collect::<Vec<_>>()
    };
    let first = Some(at(2) + WINDOW);
    for (looked, until) in [
        (30, first),
        (60, first),
        // Nobody looked for longer than 36 hours.
        (97, Some(at(97) + WINDOW)),
        (500, Some(at(500) + WINDOW)),
        // It was ahead and is set back: nothing is kept for longer than a week from now.
        (98, Some(at(98) + WINDOW)),
        (120, Some(at(98) + WINDOW)),
    ] {
        store.keeping(at(looked)).await.unwrap();
        // One whose end has begun is at its end; to one that nobody consented to, nothing happens at all.
        assert_eq!(kept().await, [until, first, None], "looked at {looked} h");
    }
}

#[tokio::test]
async fn an_orphan_ends_or_is_taken_over_on_sqlite() {
    an_orphan_ends_or_is_taken_over(&Database::sqlite()).await;
}

#[tokio::test]
async fn an_orphan_ends_or_is_taken_over_on_postgres() {
    let cluster = Cluster::start();
    an_orphan_ends_or_is_taken_over(&cluster.database("orphans").await).await;
}

#[tokio::test]
async fn after_a_gap_an_orphan_is_kept_for_a_week_once_more_on_sqlite() {
    after_a_gap_an_orphan_is_kept_for_a_week_once_more(&Database::sqlite()).await;
}

#[tokio::test]
async fn after_a_gap_an_orphan_is_kept_for_a_week_once_more_on_postgres() {
    let cluster = Cluster::start();
    after_a_gap_an_orphan_is_kept_for_a_week_once_more(&cluster.database("orphans").await).await;
}
