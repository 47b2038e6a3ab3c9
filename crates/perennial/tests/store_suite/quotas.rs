//! Quotas of tenants: what is asked for at the same moment does not take more than there may be.

use perennial::store::{AccessChange, AccessRequest, Change, Store, StoreError};
use perennial_core::pod::{Desired, Pod};
use perennial_core::quota::Quota;
use perennial_core::spec::{PodSpec, Resources, TenantId};

use crate::any::Any;
use crate::cases::now;
use crate::databases::Database;

const GIB: u64 = 1 << 30;

fn tenant() -> TenantId {
    TenantId::default_tenant()
}

fn asked(pod: Pod) -> Change {
    Change { bounded: Some(pod.tenant.clone()), pod: Some(pod), ..Change::default() }
}

async fn bound(store: &Store, quota: Quota) {
    let access = Some(AccessRequest { change: AccessChange::TenantQuota(tenant(), quota), at: now() });
    store.commit(Change { access, ..Change::default() }).await.unwrap();
}

fn sized(any: &mut Any, name: &str, gib: u64) -> Pod {
    let resources = Resources {
        nano_cpus: Some(gib * 1_000_000_000),
        memory: Some(gib * GIB),
        disk: Some(gib * GIB),
        ..Resources::default()
    };
    let pod = any.living(name);
    Pod { tenant: tenant(), spec: PodSpec { resources, ..pod.spec }, ..pod }
}

pub async fn a_quota_holds_whoever_asks_at_the_same_moment(db: &Database) {
    let (store, mut any) = (db.open().await, Any::new(120));
    let quota = Quota { memory: Some(3 * GIB), ..Quota::default() };
    bound(&store, quota).await;
    assert_eq!(store.tenant_fetch(&tenant()).await.unwrap().unwrap().quota, quota);
    for round in 0..10 {
        let pods: Vec<Pod> = (0..4).map(|n| sized(&mut any, &format!("p{round}-{n}"), 1)).collect();
        let commits = pods.iter().map(|pod| {
            let (store, change) = (store.clone(), asked(pod.clone()));
            tokio::spawn(async move { store.commit(change).await })
        });
        let mut refused = 0;
        for done in futures::future::join_all(commits).await {
            match done.unwrap() {
                Ok(()) => {}
                Err(StoreError::Quota(_)) => refused += 1,
                Err(other) => panic!("{other}"),
            }
        }
        assert_eq!(refused, 1, "three fit");
        let usage = store.tenant_usage(&tenant()).await.unwrap();
        assert_eq!((usage.pods, usage.memory.limited), (3, 3 * GIB));
        for pod in pods {
            if store.pod_fetch(pod.id).await.unwrap().is_some() {
                store.commit(Change { pod_gone: Some(pod.id), ..Change::default() }).await.unwrap();
            }
        }
    }
}

pub async fn what_a_pod_takes_counts_while_it_lives(db: &Database) {
    let (store, mut any) = (db.open().await, Any::new(121));
    bound(&store, Quota { pods: Some(2), memory: Some(4 * GIB), ..Quota::default() }).await;
    let commit = async |pod: Pod| {
        let id = pod.id;
        store.commit(asked(pod)).await.map(|()| id)
    };
    let first = commit(sized(&mut any, "first", 3)).await.unwrap();
    let second = commit(sized(&mut any, "second", 1)).await.unwrap();
    let now_of = async |id| store.pod_fetch(id).await.unwrap().unwrap();
    assert!(matches!(commit(sized(&mut any, "third", 1)).await, Err(StoreError::Quota(_))), "there are two");
    let grown = |pod: Pod, gib: u64| {
        let resources = Resources { memory: Some(gib * GIB), ..pod.spec.resources };
        Pod { spec: PodSpec { resources, ..pod.spec.clone() }, ..pod }
    };
    assert!(matches!(commit(grown(now_of(second).await, 2)).await, Err(StoreError::Quota(_))));
    commit(grown(now_of(first).await, 2)).await.unwrap();
    commit(grown(now_of(second).await, 2)).await.unwrap();
    // Less than is taken already: nothing is taken away, and nothing is added.
    bound(&store, Quota { pods: Some(1), memory: Some(GIB), ..Quota::default() }).await;
    assert!(matches!(commit(grown(now_of(first).await, 3)).await, Err(StoreError::Quota(_))));
    commit(grown(now_of(first).await, 2)).await.unwrap();
    commit(Pod { desired: Desired::Deleted, ..now_of(second).await }).await.unwrap();
    assert_eq!(store.tenant_usage(&tenant()).await.unwrap().pods, 1);
    let back = Pod { desired: Desired::Stopped, ..now_of(second).await };
    assert!(matches!(commit(back.clone()).await, Err(StoreError::Quota(_))), "it takes its share again");
    // What nobody asked for is never refused, and neither is another tenant's.
    let other = Pod { tenant: TenantId::parse("acme").unwrap(), ..sized(&mut any, "other", 9) };
    commit(other).await.unwrap();
    store.commit(Change { pod: Some(back), ..Change::default() }).await.unwrap();
    bound(&store, Quota::default()).await;
    commit(sized(&mut any, "fourth", 9)).await.unwrap();
}
