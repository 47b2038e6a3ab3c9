//! A snapshot is either built on or deleted, whoever comes first.

use std::collections::BTreeMap;

use perennial::store::{
    Asked, Became, Change, Erasure, ErasureChange, FoundPlace, FoundPlaces, ServerKeys, Store, StoreError, Which,
};
use perennial_core::id::SnapshotId;
use perennial_core::operation::{Operation, OperationKind, OperationState};
use perennial_core::pod::{Pod, Task, Work};
use perennial_core::spec::TenantId;
use perennial_core::volume::Origin;
use perennial_snapshots::{Id, Seen};

use crate::any::Any;
use crate::cases::{inserted, now, stored, with_pod};
use crate::databases::Database;

fn work(any: &mut Any, pod: &Pod, kind: OperationKind, snapshot: SnapshotId) -> Operation {
    Operation { kind, state: OperationState::Pending, snapshot: Some(snapshot), ..any.operation(pod) }
}

/// A pod that starts from the snapshot, as `create` makes it.
fn build(any: &mut Any, name: &str, snapshot: SnapshotId) -> Change {
    let copy = Pod { source: Some(Origin::Snapshot(snapshot)), ..any.living(name) };
    let operation = work(any, &copy, OperationKind::Create, snapshot);
    Change { uses: vec![snapshot], operations: vec![operation], ..with_pod(&copy) }
}

fn delete(any: &mut Any, pod: &Pod, snapshot: SnapshotId) -> Change {
    let operation = work(any, pod, OperationKind::SnapshotDelete, snapshot);
    Change { forgets: vec![snapshot], operations: vec![operation], ..Change::default() }
}

fn purge(pod: &Pod) -> Change {
    let mut purged = pod.clone();
    let work = Work::Purge { actor: "root".into(), at: now() };
    purged.tasks = vec![Task { operation: perennial_core::id::OperationId::from_parts(9, [0; 10]), work }];
    Change { forgets_all_of: Some(pod.id), ..with_pod(&purged) }
}

async fn with_snapshot(store: &Store, any: &mut Any, name: &str) -> (Pod, SnapshotId) {
    let pod = Pod { tasks: Vec::new(), ..any.living(name) };
    store.commit(with_pod(&pod)).await.unwrap();
    let row = any.snapshot(&pod);
    store.commit(Change { snapshots: vec![row.clone()], ..Change::default() }).await.unwrap();
    (stored(&pod), row.id)
}

pub async fn who_comes_second_to_a_snapshot_is_refused(db: &Database) {
    let (store, mut any) = (db.open().await, Any::new(91));
    let (origin, built_on) = with_snapshot(&store, &mut any, "one").await;
    let copy = build(&mut any, "copy", built_on);
    let operation = copy.operations[0].clone();
    let made = stored(copy.pod.as_ref().unwrap());
    store.commit(copy).await.unwrap();
    let late = [delete(&mut any, &origin, built_on), purge(&origin)];
    for late in late.clone() {
        let refused = store.commit(late).await;
        assert!(matches!(&refused, Err(StoreError::SnapshotNeeded(_))), "{refused:?}");
    }
    // Once the work has ended, and while the pod still starts from it.
    let done = Operation { state: OperationState::Succeeded, ..operation };
    store.commit(Change { operations: vec![done], ..Change::default() }).await.unwrap();
    for late in late.clone() {
        assert!(matches!(store.commit(late).await, Err(StoreError::SnapshotNeeded(_))));
    }
    store.commit(with_pod(&Pod { source: None, ..made })).await.unwrap();
    let [deletion, purging] = late;
    store.commit(deletion).await.unwrap();
    let refused = store.commit(build(&mut any, "late", built_on)).await;
    assert!(matches!(&refused, Err(StoreError::SnapshotGoing(id)) if *id == built_on), "{refused:?}");
    store.commit(purging).await.unwrap();

    let (origin, of_purged) = with_snapshot(&store, &mut any, "two").await;
    store.commit(purge(&origin)).await.unwrap();
    let refused = store.commit(build(&mut any, "later", of_purged)).await;
    assert!(matches!(&refused, Err(StoreError::SnapshotGoing(id)) if *id == of_purged), "{refused:?}");
    let unknown = any.snapshot_id();
    assert!(matches!(store.commit(build(&mut any, "lost", unknown)).await, Err(StoreError::SnapshotGoing(_))));
    inserted(&store, &mut any, "later").await;
}

pub async fn of_two_at_the_same_moment_one_is_refused(db: &Database) {
    let (store, mut any) = (db.open().await, Any::new(92));
    for turn in 0..20 {
        let (origin, snapshot) = with_snapshot(&store, &mut any, &format!("origin-{turn}")).await;
        let copy = build(&mut any, &format!("copy-{turn}"), snapshot);
        let end = if turn % 2 == 0 { delete(&mut any, &origin, snapshot) } else { purge(&origin) };
        let (a, b) = (store.clone(), store.clone());
        let (built, ended) = tokio::join!(
            tokio::spawn(async move { a.commit(copy).await }),
            tokio::spawn(async move { b.commit(end).await })
        );
        let (built, ended) = (built.unwrap(), ended.unwrap());
        assert!(built.is_ok() != ended.is_ok(), "turn {turn}: {built:?}, {ended:?}");
    }
}

pub fn erasure(any: &mut Any, tenant: &str, delete_data: bool) -> Erasure {
    let place = |location: &str| FoundPlace {
        location: location.into(),
        seen: Some(Seen {
            config: Id::of(b"config"),
            keys: [Id::of(b"key")].into(),
            snapshots: [Id::of(b"one"), Id::of(b"two")].into(),
        }),
        prints: vec!["0b".into(), "0c".into()],
        snapshots: Some(3),
        bytes: None,
        became: None,
    };
    Erasure {
        id: any.operation_id(),
        tenant: TenantId::parse(tenant).unwrap(),
        actor: "root".into(),
        asked_at: now(),
        delete_data,
        found: FoundPlaces { repository: place("/r"), replica: Some(place("/far")) },
        servers: BTreeMap::new(),
        keys_at: None,
        done_at: None,
        problem: None,
    }
}

fn erases(change: ErasureChange) -> Change {
    Change { erasure: Some(change), ..Change::default() }
}

pub async fn what_is_erased_is_remembered_and_asked_for_once(db: &Database) {
    let (store, mut any) = (db.open().await, Any::new(93));
    let first = erasure(&mut any, "acme", false);
    let tenant = first.tenant.clone();
    assert!(!store.tenant_known(&tenant).await.unwrap());
    store.commit(erases(ErasureChange::Begun(Box::new(first.clone())))).await.unwrap();
    assert_eq!(store.erasure_list().await.unwrap(), std::slice::from_ref(&first));
    let fetched = async || store.erasure_fetch(&tenant).await.unwrap().unwrap();
    let stale = async |change| {
        let (before, refused) = (fetched().await, store.commit(erases(change)).await);
        assert!(matches!(refused, Err(StoreError::Stale)) && fetched().await == before, "{refused:?}");
    };
    // A server that has none of the keys destroyed none.
    let server = |name: &str, files, problem: Option<&str>| {
        let keys = ServerKeys { files, problem: problem.map(Into::into) };
        ErasureChange::Server(tenant.clone(), name.into(), keys, now())
    };
    store.commit(erases(server("b", 0, None))).await.unwrap();
    store.commit(erases(server("b", 1, Some("one stays")))).await.unwrap();
    assert_eq!(fetched().await.keys_at, None);
    store.commit(erases(server("a", 2, None))).await.unwrap();
    assert_eq!(fetched().await.keys_at, Some(now()));
    store.commit(erases(ErasureChange::Problem(tenant.clone(), Some("away".into())))).await.unwrap();
    assert_eq!(fetched().await.problems().as_deref(), Some("away; on server b: one stays"));
    // A place once, and only as far as it is asked for: somebody may have asked for more while it was dealt with.
    let became = |which, became, asked| ErasureChange::Became(tenant.clone(), which, became, asked);
    let done = |asked| ErasureChange::Done(tenant.clone(), now(), asked);
    stale(became(Which::Replica, Became::Emptied { files: 1, bytes: 2 }, Asked::KeysAndFiles)).await;
    store.commit(erases(became(Which::Replica, Became::KeysGone, Asked::Keys))).await.unwrap();
    stale(became(Which::Replica, Became::GivenUp, Asked::Keys)).await;
    stale(done(Asked::Keys)).await;
    store.commit(erases(became(Which::Repository, Became::KeysGone, Asked::Keys))).await.unwrap();
    stale(done(Asked::KeysAndFiles)).await;
    store.commit(erases(done(Asked::Keys))).await.unwrap();
    stale(done(Asked::Keys)).await;
    store.commit(erases(ErasureChange::Problem(tenant.clone(), Some("late".into())))).await.unwrap();
    // A key that stays is a problem also then, until the server itself says that it is none.
    let end = fetched().await;
    assert_eq!((end.problems().as_deref(), end.is_whole()), (Some("on server b: one stays"), false));
    store.commit(erases(server("b", 3, None))).await.unwrap();
    let end = fetched().await;
    assert!(end.is_whole() && end.servers["b"].files == 3, "{end:?}");
    // The same again changes nothing, and files that are deleted, too, are more to do: with no key in it any more.
    store.commit(erases(ErasureChange::Begun(Box::new(erasure(&mut any, "acme", false))))).await.unwrap();
    assert_eq!(fetched().await, end);
    store.commit(erases(ErasureChange::Begun(Box::new(erasure(&mut any, "acme", true))))).await.unwrap();
    let again = fetched().await;
    assert_eq!(again, end.clone().with_files());
    let seen = again.found.repository.seen.unwrap();
    assert!(again.done_at.is_none() && again.found.repository.became.is_none() && seen.keys.is_empty());
    assert_eq!(seen.snapshots.len(), 2);
    stale(done(Asked::Keys)).await;
    stale(done(Asked::KeysAndFiles)).await;
    store
        .commit(erases(became(Which::Replica, Became::Emptied { files: 1, bytes: 2 }, Asked::KeysAndFiles)))
        .await
        .unwrap();
    stale(ErasureChange::GivenUp(tenant.clone(), now(), Asked::Keys)).await;
    store.commit(erases(ErasureChange::GivenUp(tenant.clone(), now(), Asked::KeysAndFiles))).await.unwrap();
    store.commit(erases(done(Asked::KeysAndFiles))).await.unwrap();
    let end = fetched().await;
    assert_eq!(end.found.repository.became, Some(Became::GivenUp));
    let replica = end.found.replica.unwrap();
    assert_eq!((replica.became, replica.seen), (Some(Became::Emptied { files: 1, bytes: 2 }), None));
    assert!(store.tenant_known(&tenant).await.unwrap());
    // Nobody copies, or prunes, from then on.
    let until = now() + jiff::SignedDuration::from_hours(1);
    assert!(!store.replica_claim(&tenant, "one", (now(), until)).await.unwrap());
    let other = TenantId::parse("other").unwrap();
    assert!(store.replica_claim(&other, "one", (now(), until)).await.unwrap());
    let refused = store.commit(erases(ErasureChange::Begun(Box::new(erasure(&mut any, "other", true))))).await;
    assert!(matches!(&refused, Err(StoreError::TenantInUse(..))), "{refused:?}");
    store.prune_done(&tenant, now() - jiff::SignedDuration::from_hours(99)).await.unwrap();
    let before = (now(), now(), now());
    assert!(store.prunes_due(before).await.unwrap().is_empty());
}

pub async fn a_tenant_is_erased_or_gets_a_pod(db: &Database) {
    let (store, mut any) = (db.open().await, Any::new(94));
    for turn in 0..20 {
        let name = format!("tenant-{turn}");
        let erased = erasure(&mut any, &name, false);
        let pod = Pod { tenant: erased.tenant.clone(), ..any.living("dev") };
        let (a, b) = (store.clone(), store.clone());
        let (make, end) = (with_pod(&pod), erases(ErasureChange::Begun(Box::new(erased))));
        let (made, ended) = tokio::join!(
            tokio::spawn(async move { a.commit(make).await }),
            tokio::spawn(async move { b.commit(end).await })
        );
        let (made, ended) = (made.unwrap(), ended.unwrap());
        assert!(made.is_ok() != ended.is_ok(), "turn {turn}: {made:?}, {ended:?}");
        match (made, ended) {
            (Err(StoreError::TenantErased(_)), _) | (_, Err(StoreError::TenantInUse(..))) => {}
            other => panic!("turn {turn}: {other:?}"),
        }
    }
}
