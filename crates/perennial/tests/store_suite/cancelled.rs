//! Work on the database whose asker goes away: at every point at which it waits.

use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use perennial::store::{Change, Store};
use perennial_core::fault::NoTap;
use perennial_core::id::PodId;
use perennial_core::operation::NewEvent;
use perennial_core::spec::TenantId;

use crate::databases::Cluster;

/// More than a store has connections.
const LEASES: u8 = 40;

/// Looks at a future so many times and drops it then, unless it has ended.
async fn at_most<T>(looks: usize, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    let mut left = looks;
    std::future::poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        future.as_mut().poll(context).map(Some)
    })
    .await
}

fn change(n: usize) -> Change {
    let event = NewEvent {
        at: jiff::Timestamp::UNIX_EPOCH,
        actor: "test".to_owned(),
        tenant: TenantId::default_tenant(),
        pod: None,
        operation: None,
        kind: "test".to_owned(),
        message: format!("number {n}"),
    };
    Change { events: vec![event], ..Change::default() }
}

/// What comes next on the same connections is written, and keeps nobody waiting.
#[tokio::test]
async fn whoever_goes_away_leaves_no_transaction_on_postgres() {
    let cluster = Cluster::start();
    let database = cluster.database("cancelled").await;
    let store = database.open().await;
    let other = Store::open(&database.url, Arc::new(NoTap)).await.unwrap();
    let (now, until) = (jiff::Timestamp::UNIX_EPOCH, jiff::Timestamp::from_second(60).unwrap());
    let mut ended = 0;
    for looks in 0.. {
        if at_most(looks, store.commit(change(looks))).await.is_some() {
            ended += 1;
        }
        let pod = |n: u8| PodId::from_parts(1 + looks as u64, [n; 10]);
        let round = async {
            let taken = (0..LEASES).map(|n| store.lease_acquire(pod(n), "a", now, until));
            for taken in futures::future::join_all(taken).await {
                assert!(taken.unwrap().is_some());
            }
            for n in 0..LEASES {
                let seen = other.lease_acquire(pod(n), "b", now, until).await.unwrap();
                assert_eq!(seen, None, "a lease that nobody else sees, after {looks} looks");
            }
            // It takes the row that every commit takes.
            other.commit(change(1000)).await.unwrap();
        };
        let in_time = tokio::time::timeout(std::time::Duration::from_secs(20), round).await;
        assert!(in_time.is_ok(), "somebody holds a row after {looks} looks");
        if ended == 5 {
            return;
        }
    }
}
