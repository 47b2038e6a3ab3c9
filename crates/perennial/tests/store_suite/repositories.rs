//! What is remembered of repositories: exported keys, images, replicas, prunes, drills.

use perennial::store::{Change, ExportOf, RecoveryExport, StoredImage};
use perennial_core::id::SnapshotId;
use perennial_core::operation::{Operation, OperationState};
use perennial_core::snapshot::{Snapshot, SnapshotState};
use perennial_core::spec::TenantId;
use sqlx::Row as _;

use crate::any::Any;
use crate::cases::{after, inserted, now};
use crate::databases::Database;

pub fn image(tenant: &str, id: &str) -> StoredImage {
    StoredImage {
        tenant: TenantId::parse(tenant).unwrap(),
        image: "sha256:1".into(),
        repository_id: id.into(),
        stored_at: now(),
    }
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
