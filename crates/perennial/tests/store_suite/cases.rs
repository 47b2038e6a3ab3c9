//! The cases.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use perennial::store::{
    Change, EventFilter, ExportOf, IdempotencyRecord, Page, PodFilter, RecoveryExport, SnapshotScope, Store,
    StoreError, StoredImage, Visibility,
};
use perennial_core::fault::{Moment, Tap, Verdict};
use perennial_core::id::SnapshotId;
use perennial_core::operation::{Operation, OperationState};
use perennial_core::pod::{Desired, Pod, Trash};
use perennial_core::snapshot::{Snapshot, SnapshotState};
use perennial_core::spec::TenantId;
use perennial_core::volume::Origin;
use sqlx::Row as _;

use crate::any::Any;
use crate::databases::Database;
pub use crate::fences::{of_two_at_the_same_moment_one_is_refused, who_comes_second_to_a_snapshot_is_refused};

pub fn now() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

fn after(seconds: i64) -> Timestamp {
    now() + SignedDuration::from_secs(seconds)
}

pub fn with_pod(pod: &Pod) -> Change {
    Change { pod: Some(pod.clone()), ..Change::default() }
}

/// The pod as the store gives it back after its first commit.
pub fn stored(pod: &Pod) -> Pod {
    Pod { version: pod.version + 1, ..pod.clone() }
}

pub async fn inserted(store: &Store, any: &mut Any, name: &str) -> Pod {
    let pod = any.living(name);
    store.commit(with_pod(&pod)).await.unwrap();
    stored(&pod)
}

fn record(key: &str) -> IdempotencyRecord {
    IdempotencyRecord {
        tenant: TenantId::default_tenant(),
        key: key.into(),
        request_hash: "h".into(),
        status: 202,
        body: "{\"a\":1}".into(),
        at: now(),
    }
}

fn image(tenant: &str, id: &str) -> StoredImage {
    StoredImage {
        tenant: TenantId::parse(tenant).unwrap(),
        image: "sha256:1".into(),
        repository_id: id.into(),
        stored_at: now(),
    }
}

pub async fn a_change_is_written_whole(db: &Database) {
    let (store, mut any) = (db.open().await, Any::new(1));
    let pod = any.living("dev");
    let (snapshot, operation) = (any.snapshot(&pod), any.operation(&pod));
    let events = vec![any.event(&pod), any.event(&pod)];
    let change = Change {
        snapshots: vec![snapshot.clone()],
        operations: vec![operation.clone()],
        events: events.clone(),
        images: vec![image("default", "r")],
        idempotency: Some(record("k")),
        ..with_pod(&pod)
    };
    store.commit(change).await.unwrap();
    assert_eq!(store.pod_fetch(pod.id).await.unwrap(), Some(stored(&pod)));
    assert_eq!(store.snapshot_fetch(snapshot.id).await.unwrap(), Some(snapshot));
    assert_eq!(store.operation_fetch(operation.id).await.unwrap(), Some(operation));
    let found = store.event_list(0, &EventFilter::default(), 10).await.unwrap();
    assert_eq!(found.into_iter().map(|e| e.line).collect::<Vec<_>>(), events);
    assert_eq!(store.image_fetch(&pod.tenant, "sha256:1").await.unwrap(), Some(image("default", "r")));
    assert_eq!(store.idempotency_fetch(&pod.tenant, "k").await.unwrap(), Some(record("k")));
}

pub async fn a_change_that_fails_leaves_nothing(db: &Database) {
    let (store, mut any) = (db.open().await, Any::new(2));
    store.commit(Change { idempotency: Some(record("used")), ..Change::default() }).await.unwrap();
    let pod = any.living("dev");
    let (snapshot, operation) = (any.snapshot(&pod), any.operation(&pod));
    // The idempotency key is refused after pod, snapshot and operation were written.
    let change = Change {
        snapshots: vec![snapshot.clone()],
        operations: vec![operation.clone()],
        events: vec![any.event(&pod)],
        images: vec![image("default", "r")],
        idempotency: Some(record("used")),
        ..with_pod(&pod)
    };
    assert!(matches!(store.commit(change).await, Err(StoreError::IdempotencyTaken)));
    assert_eq!(store.pod_fetch(pod.id).await.unwrap(), None);
    assert_eq!(store.snapshot_fetch(snapshot.id).await.unwrap(), None);
    assert_eq!(store.operation_fetch(operation.id).await.unwrap(), None);
    assert_eq!(store.event_list(0, &EventFilter::default(), 10).await.unwrap(), []);
    assert_eq!(store.image_fetch(&pod.tenant, "sha256:1").await.unwrap(), None);
}

pub async fn a_stale_pod_is_refused(db: &Database) {
    let (store, mut any) = (db.open().await, Any::new(3));
    let pod = inserted(&store, &mut any, "dev").await;
    let mut other = pod.clone();
    other.last_set = 7;
    store.commit(with_pod(&other)).await.unwrap();
    let operation = any.operation(&pod);
    let late = Change { operations: vec![operation.clone()], ..with_pod(&pod) };
    assert!(matches!(store.commit(late).await, Err(StoreError::Stale)));
    assert_eq!(store.pod_fetch(pod.id).await.unwrap(), Some(stored(&other)));
    assert_eq!(store.operation_fetch(operation.id).await.unwrap(), None);
    let never = Pod { version: 5, ..any.living("never") };
    assert!(matches!(store.commit(with_pod(&never)).await, Err(StoreError::Stale)));
}

pub async fn an_insert_is_done_once(db: &Database) {
    let (store, mut any) = (db.open().await, Any::new(4));
    let pod = any.living("dev");
    store.commit(with_pod(&pod)).await.unwrap();
    // The repetition of an insert whose answer was lost is told apart from a taken name.
    assert!(matches!(store.commit(with_pod(&pod)).await, Err(StoreError::Stale)));
}

pub async fn names_are_unique_among_living_pods(db: &Database) {
    let (store, mut any) = (db.open().await, Any::new(5));
    let first = inserted(&store, &mut any, "dev").await;
    let second = any.living("dev");
    assert!(matches!(store.commit(with_pod(&second)).await, Err(StoreError::NameTaken)));
    let elsewhere = Pod { tenant: TenantId::parse("acme").unwrap(), ..any.living("dev") };
    store.commit(with_pod(&elsewhere)).await.unwrap();
    // A deleted pod leaves its name to others, and gets it back only when it is free.
    let deleted = Pod { desired: Desired::Deleted, ..first.clone() };
    store.commit(with_pod(&deleted)).await.unwrap();
    store.commit(with_pod(&second)).await.unwrap();
    let back = Pod { desired: Desired::Stopped, ..stored(&deleted) };
    assert!(matches!(store.commit(with_pod(&back)).await, Err(StoreError::NameTaken)));
    let fetch = async |visibility| {
        let found = store.pod_fetch_by_name(&first.tenant, &first.name, visibility).await.unwrap();
        found.map(|p| p.id)
    };
    assert_eq!(fetch(Visibility::Living).await, Some(second.id));
    assert_eq!(fetch(Visibility::Hidden).await, Some(first.id));
    assert_eq!(fetch(Visibility::All).await, Some(second.id));
}

pub async fn leases_are_exclusive_and_fenced(db: &Database) {
    let (store, pod) = (db.open().await, Any::new(6).pod_id());
    let take = async |holder: &str, at: i64| {
        let lease = store.lease_acquire(pod, holder, after(at), after(at + 60)).await.unwrap();
        lease.map(|l| l.epoch)
    };
    assert_eq!(take("a", 0).await, Some(1));
    assert_eq!(take("b", 59).await, None, "it is held");
    assert_eq!(take("a", 59).await, Some(1), "it is prolonged under the same epoch");
    assert_eq!(take("b", 118).await, None, "and was prolonged");
    assert_eq!(take("b", 119).await, Some(2), "it ended");
    assert_eq!(take("a", 120).await, None);
    let lease = store.lease_acquire(pod, "b", after(120), after(180)).await.unwrap().unwrap();
    store.lease_release(&lease).await.unwrap();
    assert_eq!(take("a", 121).await, Some(3), "free, and the epoch went on");
    store.lease_release(&lease).await.unwrap();
    assert_eq!(take("c", 122).await, None, "a late release frees nobody else's lease");
}

pub async fn a_lost_lease_writes_nothing(db: &Database) {
    let (store, mut any) = (db.open().await, Any::new(7));
    let pod = inserted(&store, &mut any, "dev").await;
    let lease = store.lease_acquire(pod.id, "a", now(), after(60)).await.unwrap().unwrap();
    store.commit(Change { lease: Some(lease.clone()), ..with_pod(&pod) }).await.unwrap();
    assert!(store.lease_holds(&lease).await.unwrap());
    let pod = stored(&pod);
    store.lease_acquire(pod.id, "b", after(60), after(120)).await.unwrap().unwrap();
    let change = Change { lease: Some(lease.clone()), ..with_pod(&pod) };
    assert!(matches!(store.commit(change).await, Err(StoreError::LeaseLost)));
    assert!(!store.lease_holds(&lease).await.unwrap());
    // The same holder again, under another epoch: the old lease stays lost.
    store.lease_acquire(pod.id, "a", after(120), after(180)).await.unwrap().unwrap();
    let change = Change { lease: Some(lease), ..with_pod(&pod) };
    assert!(matches!(store.commit(change).await, Err(StoreError::LeaseLost)));
    assert_eq!(store.pod_fetch(pod.id).await.unwrap(), Some(pod));
}

pub async fn documents_round_trip(db: &Database) {
    let store = db.open().await;
    for seed in 0..300 {
        let mut any = Any::new(seed);
        let pod = any.pod();
        let (snapshot, operation) = (any.snapshot(&pod), any.operation(&pod));
        let change =
            Change { snapshots: vec![snapshot.clone()], operations: vec![operation.clone()], ..with_pod(&pod) };
        store.commit(change).await.unwrap();
        assert_eq!(store.pod_fetch(pod.id).await.unwrap(), Some(stored(&pod)), "seed {seed}");
        assert_eq!(store.snapshot_fetch(snapshot.id).await.unwrap(), Some(snapshot), "seed {seed}");
        assert_eq!(store.operation_fetch(operation.id).await.unwrap(), Some(operation), "seed {seed}");
        // And once more through an update.
        let other = any.pod();
        let next = Pod { id: pod.id, tenant: pod.tenant, created_at: pod.created_at, version: 1, ..other };
        store.commit(with_pod(&next)).await.unwrap();
        assert_eq!(store.pod_fetch(pod.id).await.unwrap(), Some(stored(&next)), "seed {seed}");
    }
}

pub async fn events_are_numbered_in_commit_order(db: &Database) {
    let (store, mut any) = (db.open().await, Any::new(8));
    let pod = any.pod();
    assert_eq!(store.event_last().await.unwrap(), 0);
    for count in [1, 3, 2] {
        let events = (0..count).map(|_| any.event(&pod)).collect();
        store.commit(Change { events, ..Change::default() }).await.unwrap();
    }
    assert_eq!(store.event_last().await.unwrap(), 6);
    let ids = async |after, filter: EventFilter, limit| {
        let found = store.event_list(after, &filter, limit).await.unwrap();
        found.into_iter().map(|e| e.id).collect::<Vec<_>>()
    };
    assert_eq!(ids(0, EventFilter::default(), 100).await, [1, 2, 3, 4, 5, 6]);
    assert_eq!(ids(2, EventFilter::default(), 3).await, [3, 4, 5], "a reader resumes");
    let all = store.event_list(0, &EventFilter::default(), 100).await.unwrap();
    let of_pod: Vec<i64> = all.iter().filter(|e| e.line.pod == Some(pod.id)).map(|e| e.id).collect();
    assert_eq!(ids(0, EventFilter { pod: Some(pod.id), tenant: None }, 100).await, of_pod);
    let nobody = TenantId::parse("nobody").unwrap();
    assert_eq!(ids(0, EventFilter { pod: None, tenant: Some(nobody) }, 100).await, Vec::<i64>::new());
}

/// Whoever has seen event n never misses an earlier one that is committed later.
pub async fn events_of_concurrent_commits_are_never_missed(db: &Database) {
    const WRITERS: i64 = 8;
    const EACH: i64 = 20;
    let store = db.open().await;
    let done = Arc::new(AtomicBool::new(false));
    let reader = tokio::spawn({
        let (store, done) = (store.clone(), Arc::clone(&done));
        async move {
            let mut seen: Vec<i64> = Vec::new();
            loop {
                let last = done.load(Ordering::SeqCst);
                let after = seen.last().copied().unwrap_or_default();
                let found = store.event_list(after, &EventFilter::default(), 7).await.unwrap();
                seen.extend(found.iter().map(|e| e.id));
                if last && found.is_empty() {
                    return seen;
                }
            }
        }
    });
    let writers = (0..WRITERS).map(|seed| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut any = Any::new(u64::try_from(seed).unwrap());
            let pod = any.pod();
            for _ in 0..EACH {
                store.commit(Change { events: vec![any.event(&pod)], ..Change::default() }).await.unwrap();
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    done.store(true, Ordering::SeqCst);
    assert_eq!(reader.await.unwrap(), (1..=WRITERS * EACH).collect::<Vec<_>>());
}

pub async fn an_ended_operation_stays_ended(db: &Database) {
    let (store, mut any) = (db.open().await, Any::new(9));
    let pod = any.pod();
    let commit = async |state| {
        let operation = Operation { state, id: Any::new(1).operation_id(), ..Any::new(9).operation(&pod) };
        store.commit(Change { operations: vec![operation.clone()], ..Change::default() }).await.unwrap();
        store.operation_fetch(operation.id).await.unwrap().unwrap().state
    };
    assert_eq!(commit(OperationState::Pending).await, OperationState::Pending);
    assert_eq!(commit(OperationState::Running).await, OperationState::Running);
    assert_eq!(commit(OperationState::Cancelled).await, OperationState::Cancelled);
    assert_eq!(commit(OperationState::Running).await, OperationState::Cancelled, "a late report revives nothing");
    assert_eq!(store.operations_unfinished(pod.id).await.unwrap(), []);
    let _ = any.u64();
}

pub async fn lists_are_filtered_and_paged(db: &Database) {
    let (store, mut any) = (db.open().await, Any::new(10));
    let mut ids = Vec::new();
    for n in 0..7 {
        ids.push(inserted(&store, &mut any, &format!("p{n}")).await.id);
    }
    ids.sort_unstable();
    let hidden = Pod { desired: Desired::Archived, ..any.living("hidden") };
    store.commit(with_pod(&hidden)).await.unwrap();
    let mut seen = Vec::new();
    let mut page = Page::first(3);
    loop {
        let found = store.pod_list(&PodFilter::default(), &page).await.unwrap();
        let Some(last) = found.last() else { break };
        page.after = Some(last.id.to_string());
        seen.extend(found.into_iter().map(|p| p.id));
    }
    assert_eq!(seen, ids);
    let count = async |filter: PodFilter| store.pod_list(&filter, &Page::first(100)).await.unwrap().len();
    assert_eq!(count(PodFilter { visibility: Visibility::All, ..PodFilter::default() }).await, 8);
    assert_eq!(count(PodFilter { visibility: Visibility::Hidden, ..PodFilter::default() }).await, 1);
    assert_eq!(count(PodFilter { tenant: TenantId::parse("x").ok(), ..PodFilter::default() }).await, 0);
    let third = store.pod_fetch(ids[2]).await.unwrap().unwrap();
    assert_eq!(count(PodFilter { name: Some(third.name.clone()), ..PodFilter::default() }).await, 1);
    let same = store.pod_list(&PodFilter::default(), &Page::first(100)).await.unwrap();
    let phase = same.iter().filter(|p| p.phase == third.phase).count();
    assert_eq!(count(PodFilter { phase: Some(third.phase), ..PodFilter::default() }).await, phase);
    assert_eq!(store.pod_ids().await.unwrap().len(), 8);

    let mut snapshots: Vec<Snapshot> = (0..5).map(|_| any.snapshot(&third)).collect();
    let mut operations: Vec<Operation> = (0..5).map(|_| any.operation(&third)).collect();
    let change = Change { snapshots: snapshots.clone(), operations: operations.clone(), ..Change::default() };
    store.commit(change).await.unwrap();
    snapshots.sort_by_key(|s| std::cmp::Reverse(s.id));
    operations.sort_by_key(|o| std::cmp::Reverse(o.id));
    let of_pod = SnapshotScope::Pod(third.id);
    assert_eq!(store.snapshot_list(&of_pod, &Page::first(2)).await.unwrap(), snapshots[..2]);
    let rest = Page { after: Some(snapshots[1].id.to_string()), limit: 100 };
    assert_eq!(store.snapshot_list(&of_pod, &rest).await.unwrap(), snapshots[2..]);
    let of_tenant = SnapshotScope::Tenant(third.tenant.clone());
    assert_eq!(store.snapshot_list(&of_tenant, &Page::first(100)).await.unwrap(), snapshots);
    assert_eq!(store.operation_list(third.id, &Page::first(100)).await.unwrap(), operations);
    let open: Vec<_> = operations.iter().rev().filter(|o| !o.state.is_terminal()).cloned().collect();
    assert_eq!(store.operations_unfinished(third.id).await.unwrap(), open);
}

pub async fn the_newest_verified_snapshot_comes_along(db: &Database) {
    let (store, mut any) = (db.open().await, Any::new(11));
    let pod = inserted(&store, &mut any, "dev").await;
    let latest = async || {
        let one = store.pod_fetch_with_latest(pod.id).await.unwrap().unwrap().1.map(|s| s.id);
        let heads = store.pod_heads(&PodFilter::default(), &Page::first(9)).await.unwrap();
        let listed = store.pods_fetch_with_latest(&[pod.id]).await.unwrap();
        assert_eq!(listed.iter().map(|p| &p.head).collect::<Vec<_>>(), heads.iter().collect::<Vec<_>>());
        assert_eq!(heads[0].latest.is_empty(), one.is_none());
        assert_eq!(listed[0].latest.as_ref().map(|s| s.id), one);
        one
    };
    assert_eq!(latest().await, None);
    let mut rows: Vec<Snapshot> = (0..3).map(|_| any.snapshot(&pod)).collect();
    rows.sort_by_key(|s| s.id);
    for (row, state) in rows.iter_mut().zip([SnapshotState::Verified, SnapshotState::Verified, SnapshotState::Uploaded])
    {
        row.state = state;
    }
    store.commit(Change { snapshots: rows.clone(), ..Change::default() }).await.unwrap();
    assert_eq!(latest().await, Some(rows[1].id));
}

pub async fn what_depends_on_a_snapshot_is_found(db: &Database) {
    let (store, mut any) = (db.open().await, Any::new(12));
    let origin = inserted(&store, &mut any, "origin").await;
    let snapshot = any.snapshot(&origin);
    store.commit(Change { snapshots: vec![snapshot.clone()], ..Change::default() }).await.unwrap();
    let copy = Pod { source: Some(Origin::Snapshot(snapshot.id)), ..any.living("copy") };
    let mut operation = any.operation(&copy);
    operation.snapshot = Some(snapshot.id);
    operation.state = OperationState::Pending;
    store.commit(Change { operations: vec![operation.clone()], ..with_pod(&copy) }).await.unwrap();
    assert_eq!(store.pod_ids_from_snapshot(snapshot.id).await.unwrap(), [copy.id]);
    assert_eq!(store.pod_ids_depending_on(origin.id).await.unwrap(), [copy.id]);
    assert_eq!(store.pod_ids_depending_on(copy.id).await.unwrap(), []);
    assert_eq!(store.operations_of_snapshot(snapshot.id).await.unwrap(), [operation.clone()]);
    // Once it runs, it lives by itself.
    let runs = Pod { source: None, ..stored(&copy) };
    operation.state = OperationState::Succeeded;
    store.commit(Change { operations: vec![operation], ..with_pod(&runs) }).await.unwrap();
    assert_eq!(store.pod_ids_from_snapshot(snapshot.id).await.unwrap(), []);
    assert_eq!(store.operations_of_snapshot(snapshot.id).await.unwrap(), []);
}

pub async fn a_purged_pod_takes_its_snapshots_along(db: &Database) {
    let (store, mut any) = (db.open().await, Any::new(13));
    let pod = inserted(&store, &mut any, "dev").await;
    let (snapshot, operation) = (any.snapshot(&pod), any.operation(&pod));
    let change = Change {
        snapshots: vec![snapshot.clone()],
        operations: vec![operation.clone()],
        events: vec![any.event(&pod)],
        ..Change::default()
    };
    store.commit(change).await.unwrap();
    let forgetful = Change { pod_gone: Some(pod.id), ..Change::default() };
    assert!(store.commit(forgetful.clone()).await.is_err(), "a snapshot without its pod is nobody's");
    assert!(store.pod_fetch(pod.id).await.unwrap().is_some());
    store.commit(Change { snapshots_gone: vec![snapshot.id], ..forgetful.clone() }).await.unwrap();
    assert_eq!(store.pod_fetch(pod.id).await.unwrap(), None);
    assert_eq!(store.snapshot_fetch(snapshot.id).await.unwrap(), None);
    // The trail stays, and so does the operation somebody waits for.
    assert_eq!(store.operation_fetch(operation.id).await.unwrap(), Some(operation));
    assert_eq!(store.event_last().await.unwrap(), 1);
    store.commit(forgetful).await.unwrap();
}

pub async fn pods_due_for_purge_are_found(db: &Database) {
    let (store, mut any) = (db.open().await, Any::new(14));
    let trash = |at| Trash { deleted_at: now(), purge_at: at, actor: "a".into() };
    let deleted =
        |any: &mut Any, name: &str, at| Pod { desired: Desired::Deleted, trash: Some(trash(at)), ..any.living(name) };
    let early = deleted(&mut any, "early", Some(after(10)));
    for pod in [&early, &deleted(&mut any, "late", Some(after(20))), &deleted(&mut any, "kept", None)] {
        store.commit(with_pod(pod)).await.unwrap();
    }
    assert_eq!(store.pod_ids_to_purge(after(9)).await.unwrap(), []);
    assert_eq!(store.pod_ids_to_purge(after(10)).await.unwrap(), [early.id]);
    assert_eq!(store.pod_ids_to_purge(after(20)).await.unwrap().len(), 2);
}

pub async fn idempotency_keys_are_used_once(db: &Database) {
    let store = db.open().await;
    let change = |key| Change { idempotency: Some(record(key)), ..Change::default() };
    store.commit(change("a")).await.unwrap();
    assert!(matches!(store.commit(change("a")).await, Err(StoreError::IdempotencyTaken)));
    let other = IdempotencyRecord { tenant: TenantId::parse("acme").unwrap(), ..record("a") };
    store.commit(Change { idempotency: Some(other), ..Change::default() }).await.unwrap();
    assert_eq!(store.idempotency_prune(now()).await.unwrap(), 0);
    assert_eq!(store.idempotency_prune(after(1)).await.unwrap(), 2);
    assert_eq!(store.idempotency_fetch(&TenantId::default_tenant(), "a").await.unwrap(), None);
}

pub async fn exported_keys_are_remembered_per_tenant(database: &Database) {
    let store = database.open().await;
    assert_eq!(store.recovery_exports().await.unwrap(), []);
    let export = |tenant: &str, fingerprint: &str| RecoveryExport {
        of: ExportOf::Repository,
        tenant: TenantId::parse(tenant).unwrap(),
        fingerprint: fingerprint.to_owned(),
        actor: "admin".to_owned(),
        at: Any::new(7).time(),
    };
    let (acme, old, new) = (export("acme", "1"), export("default", "1"), export("default", "2"));
    let change = |exports: &[&RecoveryExport]| Change {
        recovery_exports: exports.iter().map(|e| (*e).clone()).collect(),
        ..Change::default()
    };
    store.commit(change(&[&old, &acme])).await.unwrap();
    store.commit(change(&[&new])).await.unwrap();
    assert_eq!(store.recovery_exports().await.unwrap(), [acme, new]);
}

pub async fn what_replicas_hold_is_remembered_per_tenant_and_replica(db: &Database) {
    use perennial::store::{Backlog, NoteChange, Replica, ReplicaNote};
    use perennial_core::replication::{Copying, Noted, Part, Wanted};
    let store = db.open().await;
    let mut any = Any::new(81);
    let pod = inserted(&store, &mut any, "one").await;
    let tenant = pod.tenant.clone();
    let rows: Vec<Snapshot> =
        (0..3).map(|_| Snapshot { state: SnapshotState::Verified, ..any.snapshot(&pod) }).collect();
    let pending = Snapshot { state: SnapshotState::Pending, ..any.snapshot(&pod) };
    let snapshots = rows.iter().cloned().chain([pending.clone()]).collect();
    store.commit(Change { snapshots, ..Change::default() }).await.unwrap();
    assert_eq!(store.replica_tenants().await.unwrap(), std::slice::from_ref(&tenant));
    assert_eq!(store.replica_fetch(&tenant).await.unwrap(), None);
    // One server at a time, and the same one again whenever it likes.
    assert!(store.replica_claim(&tenant, "a", (now(), after(10))).await.unwrap());
    assert!(!store.replica_claim(&tenant, "b", (after(9), after(20))).await.unwrap());
    assert!(store.replica_claim(&tenant, "a", (after(9), after(10))).await.unwrap());
    assert!(store.replica_claim(&tenant, "b", (after(10), after(20))).await.unwrap());
    let replica = Replica {
        tenant: tenant.clone(),
        id: Some("r1".to_owned()),
        looked_at: Some(after(1)),
        pruned_at: None,
        problem: Some("away".to_owned()),
    };
    store.replica_save(&replica).await.unwrap();
    assert_eq!(store.replica_fetch(&tenant).await.unwrap(), Some(replica));
    assert!(store.replica_claim(&tenant, "a", (after(11), after(20))).await.unwrap(), "it was given back");

    let mut ids: Vec<_> = rows.iter().map(|row| row.id).collect();
    ids.sort();
    let all = store.snapshot_ids_of(&tenant).await.unwrap();
    assert_eq!(all.iter().filter(|(_, verified)| *verified).map(|(id, _)| *id).collect::<Vec<_>>(), ids);
    assert!(all.contains(&(pending.id, false)));
    let noted = |n: usize, copying| Noted {
        wanted: Wanted { part: Part::Snapshot, name: ids[n].to_string(), original: format!("o{n}") },
        copying,
        at: after(2),
        gone_at: None,
    };
    let note = async |replica: &str, change| {
        let replica_notes = vec![ReplicaNote { tenant: tenant.clone(), replica: replica.to_owned(), change }];
        store.commit(Change { replica_notes, ..Change::default() }).await.unwrap();
    };
    let copied = noted(0, Copying::Copied("c0".to_owned()));
    let failed = noted(1, Copying::Failed("damaged".to_owned()));
    note("r1", NoteChange::Known(copied.clone())).await;
    note("r1", NoteChange::Known(failed.clone())).await;
    assert_eq!(store.replicated(&tenant, "r1").await.unwrap(), [copied.clone(), failed]);
    assert_eq!(store.replicated(&tenant, "r2").await.unwrap(), []);
    let backlog = |count, n: usize| Backlog { count, oldest: Some(ids[n]) };
    assert_eq!(store.replica_backlog(&tenant, "r1").await.unwrap(), backlog(2, 1));
    assert_eq!(store.replica_backlog(&tenant, "r2").await.unwrap(), backlog(3, 0));
    let lacks = async |replica: &str, since, now| store.replica_lacks(&tenant, replica, (since, now)).await.unwrap();
    // One was never tried; then there is only one that failed, after 2.
    assert!(lacks("r1", after(1), after(3)).await);
    note("r1", NoteChange::Known(noted(2, Copying::Copied("c2".to_owned())))).await;
    assert!(!lacks("r1", after(1), after(3)).await);
    assert!(lacks("r1", after(2), after(3)).await, "it is tried again");
    assert!(lacks("r1", after(0), after(1)).await, "the clock was set back");
    assert!(lacks("r2", after(1), after(3)).await);
    note("r1", NoteChange::Dropped("o2".to_owned())).await;
    note("r1", NoteChange::Gone("o0".to_owned(), Some(after(3)))).await;
    note("r1", NoteChange::Dropped("o1".to_owned())).await;
    assert_eq!(store.replicated(&tenant, "r1").await.unwrap(), [Noted { gone_at: Some(after(3)), ..copied.clone() }]);
    note("r1", NoteChange::Gone("o0".to_owned(), None)).await;
    assert_eq!(store.replicated(&tenant, "r1").await.unwrap(), [copied]);
}

pub async fn what_replicas_lack_is_found_by_an_index(db: &Database) {
    db.open().await.close().await;
    let pool = sqlx::AnyPool::connect(&db.raw_url()).await.unwrap();
    let (explain, rarely) = if db.url.starts_with("sqlite:") {
        ("EXPLAIN QUERY PLAN", "")
    } else {
        ("EXPLAIN", "SET enable_seqscan = off")
    };
    let asked = format!(
        "{explain} SELECT 1 FROM snapshots s WHERE s.tenant = 'a' AND s.state = 'verified' AND NOT EXISTS (SELECT 1 FROM \
         replicated r WHERE r.tenant = s.tenant AND r.replica = 'b' AND r.part = 'snapshot' AND r.name = s.id AND r.copy <> '')"
    );
    let mut one = pool.acquire().await.unwrap();
    if !rarely.is_empty() {
        // An empty table is read whole, whatever there is.
        sqlx::query(rarely).execute(&mut *one).await.unwrap();
    }
    let rows = sqlx::query(sqlx::AssertSqlSafe(asked)).fetch_all(&mut *one).await.unwrap();
    let text = |row: &sqlx::any::AnyRow| row.try_get::<String, _>(row.len() - 1).unwrap();
    let plan: Vec<String> = rows.iter().map(text).collect();
    assert!(plan.iter().any(|line| line.contains("replicated_by_name")), "{plan:?}");
}

pub async fn images_are_remembered_per_tenant(db: &Database) {
    let store = db.open().await;
    let commit = async |image| store.commit(Change { images: vec![image], ..Change::default() }).await.unwrap();
    commit(image("default", "one")).await;
    commit(image("default", "two")).await;
    let fetch = async |tenant: &str| {
        let found = store.image_fetch(&TenantId::parse(tenant).unwrap(), "sha256:1").await.unwrap();
        found.map(|i| i.repository_id)
    };
    assert_eq!(fetch("default").await.as_deref(), Some("two"));
    assert_eq!(fetch("acme").await, None);
}

/// Answers once with a verdict.
struct Once(Moment, Verdict, AtomicBool);

impl Tap for Once {
    fn at(&self, site: &str, moment: Moment) -> Verdict {
        let hit = site == perennial::store::COMMIT_SITE && moment == self.0 && !self.2.swap(true, Ordering::SeqCst);
        if hit { self.1 } else { Verdict::Go }
    }
}

pub async fn taps_stop_lose_and_kill_commits(db: &Database) {
    let mut any = Any::new(15);
    let cases = [
        (Moment::Before, Verdict::Fail, false),
        (Moment::After, Verdict::Fail, true),
        (Moment::Before, Verdict::Die, false),
        (Moment::After, Verdict::Die, true),
    ];
    for (n, (moment, verdict, written)) in cases.into_iter().enumerate() {
        let store = db.open_with(Arc::new(Once(moment, verdict, AtomicBool::new(false)))).await.unwrap();
        let pod = any.living(&format!("p{n}"));
        let commit = tokio::time::timeout(Duration::from_millis(500), store.commit(with_pod(&pod))).await;
        match (verdict, moment, commit) {
            (Verdict::Fail, Moment::Before, Ok(Err(StoreError::Unavailable(_))))
            | (Verdict::Fail, Moment::After, Ok(Err(StoreError::OutcomeUnknown(_))))
            | (Verdict::Die, _, Err(_)) => {}
            other => panic!("{other:?}"),
        }
        assert_eq!(store.pod_fetch(pod.id).await.unwrap().is_some(), written, "{moment:?} {verdict:?}");
        // The store itself is alive.
        store.commit(with_pod(&any.living(&format!("q{n}")))).await.unwrap();
    }
}

pub async fn commits_are_announced(db: &Database) {
    let (store, mut any) = (db.open().await, Any::new(16));
    let mut commits = store.subscribe();
    let pod = any.living("dev");
    let operation = any.operation(&pod);
    let change = Change { operations: vec![operation.clone()], events: vec![any.event(&pod)], ..with_pod(&pod) };
    store.commit(change).await.unwrap();
    let committed = commits.recv().await.unwrap();
    assert_eq!(committed.pod, Some(pod.id));
    assert_eq!(committed.operations, [operation.id]);
    assert_eq!(committed.event, Some(1));
    assert!(store.commit(with_pod(&pod)).await.is_err());
    assert!(commits.try_recv().is_err(), "what was not written is not announced");
}

pub async fn opening_again_keeps_everything(db: &Database) {
    let store = db.open().await;
    let pod = inserted(&store, &mut Any::new(17), "dev").await;
    let installation = store.installation();
    store.close().await;
    let store = db.open().await;
    assert_eq!(store.installation(), installation);
    assert_eq!(store.pod_fetch(pod.id).await.unwrap(), Some(pod));
    store.ping().await.unwrap();
}

pub async fn a_newer_database_is_refused(db: &Database) {
    db.open().await.close().await;
    let pool = sqlx::AnyPool::connect(&db.raw_url()).await.unwrap();
    let newer = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                 SELECT 9999, 'newer', success, checksum, execution_time FROM _sqlx_migrations WHERE version = 1";
    sqlx::query(newer).execute(&pool).await.unwrap();
    pool.close().await;
    match db.open_with(Arc::new(perennial_core::fault::NoTap)).await {
        Err(StoreError::NewerDatabase { found: 9999, known }) => assert!(known < 9999),
        other => panic!("{other:?}"),
    }
}

pub async fn repositories_to_prune_are_found(db: &Database) {
    let store = db.open().await;
    let mut any = Any::new(77);
    let pod = inserted(&store, &mut any, "one").await;
    let hour = 3600;
    let due = async |at: i64| {
        let due = store.prunes_due((after(at - 24 * hour), after(at - hour), after(at))).await.unwrap();
        due.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert!(due(0).await.is_empty(), "a tenant without snapshots has nothing to prune");
    let begun = |at: i64| SnapshotId::from_parts(u64::try_from(after(at).as_millisecond()).unwrap(), [1; 10]);
    let row = Snapshot { id: begun(-hour), state: SnapshotState::Pending, ..any.snapshot(&pod) };
    let tenant = row.tenant.clone();
    let name = vec![tenant.to_string()];
    for state in [SnapshotState::Pending, SnapshotState::Uploaded] {
        let row = Snapshot { state, ..row.clone() };
        store.commit(Change { snapshots: vec![row], ..Change::default() }).await.unwrap();
        assert!(due(0).await.is_empty(), "what is on its way is needed by nothing yet");
        assert_eq!(due(24 * hour).await, name, "nobody waits for ever for a snapshot that is stuck");
    }
    let row = Snapshot { state: SnapshotState::Verified, ..row };
    store.commit(Change { snapshots: vec![row], ..Change::default() }).await.unwrap();
    assert_eq!(due(0).await, name, "never pruned");
    store.prune_done(&tenant, after(0)).await.unwrap();
    assert!(due(23 * hour).await.is_empty());
    assert_eq!(due(24 * hour).await, name, "once a day");
    let wanted = |at| Change { prunes_wanted: vec![(tenant.clone(), after(at))], ..Change::default() };
    store.commit(wanted(10)).await.unwrap();
    assert!(due(20).await.is_empty(), "not again at once");
    assert_eq!(due(hour).await, name);
    store.prune_done(&tenant, after(hour)).await.unwrap();
    assert!(due(3 * hour).await.is_empty());
    // Forgotten in the very moment in which a prune began: it may have been too late for it.
    store.commit(wanted(hour)).await.unwrap();
    assert_eq!(due(2 * hour).await, name);
    // A clock that was ahead when the last one began does not keep it waiting for years.
    store.prune_done(&tenant, after(1000 * 24 * hour)).await.unwrap();
    assert_eq!(due(2 * hour).await, name);
}

pub async fn unfinished_work_on_snapshots_is_found(db: &Database) {
    let store = db.open().await;
    let mut any = Any::new(78);
    let pod = inserted(&store, &mut any, "one").await;
    let row = any.snapshot(&pod);
    let make = |any: &mut Any, snapshot, state| Operation { snapshot, state, ..any.operation(&pod) };
    let running = make(&mut any, Some(row.id), OperationState::Running);
    let ended = make(&mut any, Some(row.id), OperationState::Succeeded);
    let other = make(&mut any, None, OperationState::Pending);
    let operations = vec![running.clone(), ended, other];
    store.commit(Change { operations, ..Change::default() }).await.unwrap();
    let found: Vec<_> = store.operations_of_snapshots().await.unwrap().iter().map(|o| o.id).collect();
    assert_eq!(found, [running.id]);
}

pub async fn what_drills_found_is_kept_and_brings_nothing_back(db: &Database) {
    use perennial_core::snapshot::Care;
    let store = db.open().await;
    let mut any = Any::new(79);
    let pod = inserted(&store, &mut any, "one").await;
    let mut verified = || Snapshot { state: SnapshotState::Verified, proven_at: None, ..any.snapshot(&pod) };
    let (first, second) = (verified(), verified());
    let snapshots = vec![first.clone(), second.clone()];
    store.commit(Change { snapshots, ..Change::default() }).await.unwrap();
    assert_eq!(store.proof_fetch(pod.id).await.unwrap(), None);
    let note = async |id, care| store.commit(Change { cares: vec![(id, care)], ..Change::default() }).await.unwrap();
    let proof = async || {
        let found = store.proof_fetch(pod.id).await.unwrap();
        found.map(|proof| (proof.drilled_at, proof.proven))
    };
    note(first.id, Care::Proven(after(1))).await;
    let shown = store.snapshot_fetch(first.id).await.unwrap().unwrap();
    assert_eq!(
        shown,
        Snapshot { proven_at: Some(after(1)), drilled_at: Some(after(1)), damage: None, ..first.clone() }
    );
    assert_eq!(proof().await, Some((after(1), Some((first.id, after(1))))));
    // What is wrong with another says nothing against the proof.
    note(second.id, Care::Damaged(after(2), "bits".to_owned())).await;
    assert_eq!(store.snapshot_fetch(second.id).await.unwrap().unwrap().damage.as_deref(), Some("bits"));
    assert_eq!(proof().await, Some((after(2), Some((first.id, after(1))))));
    note(first.id, Care::Damaged(after(3), "bits".to_owned())).await;
    assert_eq!(proof().await, Some((after(3), None)));
    note(second.id, Care::Proven(after(4))).await;
    assert_eq!(proof().await, Some((after(4), Some((second.id, after(4))))));
    // One that was deleted meanwhile does not come back; its proof was one.
    store.commit(Change { snapshots_gone: vec![first.id, second.id], ..Change::default() }).await.unwrap();
    note(second.id, Care::Proven(after(5))).await;
    assert_eq!(store.snapshot_fetch(second.id).await.unwrap(), None);
    assert_eq!(proof().await, Some((after(4), Some((second.id, after(4))))));
    assert!(store.drill_tries().await.unwrap().is_empty());
    for n in [1, 2] {
        store.commit(Change { drill_tries: vec![(pod.id, after(n))], ..Change::default() }).await.unwrap();
    }
    assert_eq!(store.drill_tries().await.unwrap().into_iter().collect::<Vec<_>>(), [(pod.id, after(2))]);
    store.commit(Change { pod_gone: Some(pod.id), ..Change::default() }).await.unwrap();
    assert_eq!(proof().await, None);
    assert!(store.drill_tries().await.unwrap().is_empty());

    assert_eq!(store.drill_turn().await.unwrap(), None);
    for turn in 0..3 {
        assert!(store.drill_turn_begin(turn, after(turn)).await.unwrap());
        assert!(!store.drill_turn_begin(turn, after(99)).await.unwrap(), "another server was faster");
    }
    assert_eq!(store.drill_turn().await.unwrap(), Some((3, after(2))));
}
