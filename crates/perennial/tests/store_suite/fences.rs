//! A snapshot is either built on or deleted, whoever comes first.

use perennial::store::{Change, Store, StoreError};
use perennial_core::id::SnapshotId;
use perennial_core::operation::{Operation, OperationKind, OperationState};
use perennial_core::pod::{Pod, Task, Work};
use perennial_core::volume::Origin;

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
