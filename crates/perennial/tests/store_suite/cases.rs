//! The cases.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use perennial::store::{
    Change, EventFilter, IdempotencyRecord, Page, PodFilter, SnapshotScope, Store, StoreError, Visibility,
};
use perennial_core::fault::{Moment, Tap, Verdict};
use perennial_core::operation::{Operation, OperationState};
use perennial_core::pod::{Desired, Pod, Trash};
use perennial_core::snapshot::{Snapshot, SnapshotState};
use perennial_core::spec::TenantId;
use perennial_core::volume::Origin;

use crate::any::Any;
pub use crate::audit::{
    the_audit_has_a_row_exactly_when_the_change_was_committed, the_audit_of_two_servers_is_one_chain,
    the_audit_tells_every_change_with_what_it_changed, what_a_program_said_to_a_health_check_is_in_no_audit,
    whatever_is_done_to_the_audit_is_found,
};
use crate::databases::Database;
pub use crate::fences::{
    a_tenant_is_erased_or_gets_a_pod, of_two_at_the_same_moment_one_is_refused,
    what_is_erased_is_remembered_and_asked_for_once, who_comes_second_to_a_snapshot_is_refused,
};
pub use crate::quotas::{a_quota_holds_whoever_asks_at_the_same_moment, what_a_pod_takes_counts_while_it_lives};
use crate::repositories::image;
pub use crate::repositories::{
    exported_keys_are_remembered_per_tenant, images_are_remembered_per_tenant, repositories_to_prune_are_found,
    unfinished_work_on_snapshots_is_found, what_drills_found_is_kept_and_brings_nothing_back,
    what_replicas_hold_is_remembered_per_tenant_and_replica, what_replicas_lack_is_found_by_an_index,
};
pub use crate::rights::{
    a_token_is_revoked_before_or_after_it_makes_another, an_erased_tenant_has_no_members_and_is_not_made_again,
    tenants_of_before_are_there_after_the_upgrade, the_audit_tells_what_became_of_users_tenants_and_tokens,
    users_tenants_and_tokens_are_remembered, what_is_not_there_or_taken_is_refused, who_lost_rights_gives_none,
};
pub use crate::services::{
    services_are_remembered_and_changed_by_whoever_read_them,
    the_audit_tells_which_plans_of_a_service_changed_without_their_secrets,
};
pub use crate::subscriptions::{
    a_message_is_made_once_and_sent_by_one, a_pod_goes_no_way_that_its_subscription_forbids,
    after_a_gap_nothing_is_destroyed_for_a_day, subscriptions_are_remembered_and_written_by_whoever_read_them,
};

pub fn now() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

pub fn after(seconds: i64) -> Timestamp {
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
        owner: "default".into(),
        about: Some(TenantId::default_tenant()),
        key: key.into(),
        request_hash: "h".into(),
        status: 202,
        body: "{\"a\":1}".into(),
        at: now(),
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
    assert_eq!(store.idempotency_fetch("default", "k").await.unwrap(), Some(record("k")));
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
    assert_eq!(ids(0, EventFilter { pod: Some(pod.id), ..EventFilter::default() }, 100).await, of_pod);
    let nobody = TenantId::parse("nobody").unwrap();
    assert_eq!(ids(0, EventFilter { tenant: Some(nobody), ..EventFilter::default() }, 100).await, Vec::<i64>::new());
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
    let other = IdempotencyRecord { owner: "user:ann".into(), ..record("a") };
    store.commit(Change { idempotency: Some(other), ..Change::default() }).await.unwrap();
    assert_eq!(store.idempotency_prune(now()).await.unwrap(), 0);
    assert_eq!(store.idempotency_prune(after(1)).await.unwrap(), 2);
    assert_eq!(store.idempotency_fetch("default", "a").await.unwrap(), None);
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
