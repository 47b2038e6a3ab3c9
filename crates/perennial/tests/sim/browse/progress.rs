//! How far a snapshot is, as the API tells it while it is taken.

use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use perennial_core::fault::{Moment, Tap, Verdict};
use perennial_core::spec::Backend;
use serde_json::Value;

use super::desk::Desk;
use crate::world::{World, small_spec};

/// A store that keeps whoever writes waiting, once a number of writes passed since it was armed.
#[derive(Debug, Default)]
struct Gate {
    closed: Mutex<bool>,
    opened: Condvar,
    written: AtomicUsize,
}

/// The first write is that of the lock.
const LET_THROUGH: usize = 1;

impl Gate {
    fn set(&self, closed: bool) {
        *self.closed.lock().unwrap() = closed;
        self.written.store(0, Ordering::SeqCst);
        self.opened.notify_all();
    }
}

impl Tap for Gate {
    fn at(&self, site: &str, moment: Moment) -> Verdict {
        if site == "repository.write" && moment == Moment::Before {
            let passed = self.written.fetch_add(1, Ordering::SeqCst);
            let closed = self.closed.lock().unwrap();
            let _open = self.opened.wait_while(closed, |closed| *closed && passed >= LET_THROUGH).unwrap();
        }
        Verdict::Go
    }
}

#[tokio::test]
async fn sim_a_snapshot_tells_in_its_middle_how_far_it_is_and_how_long_it_takes() {
    let world = World::new(1);
    let gate = Arc::new(Gate::default());
    let desk = Desk::with(&world, Arc::clone(&gate) as _).await;
    let pod = desk.server.running("dev", small_spec(Backend::Overlay)).await;
    let noise = |seed: u64| {
        (0..1 << 17_u64).flat_map(move |n: u64| (n ^ seed).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes())
    };
    world.engine.write(pod, "/srv/kept", noise(1).collect::<Vec<_>>()).unwrap();
    world.engine.write(pod, "/srv/goes", vec![7; 4 << 20]).unwrap();
    let first = desk.snapshot(pod).await;
    let all = desk.get(&format!("snapshots/{first}")).await.json()["bytes"].as_u64().unwrap();

    // What goes leaves the estimate higher than what there is, so that something is left whatever was read.
    world.engine.remove(pod, "/srv/goes").unwrap();
    world.engine.write(pod, "/srv/new", noise(2).collect::<Vec<_>>()).unwrap();
    gate.set(true);
    let operation = desk.server.snapshot(pod).await.unwrap().operation.id;
    let shown = {
        let mut work = pin!(desk.server.settle(pod));
        let told = async {
            loop {
                let shown = desk.get(&format!("operations/{operation}")).await.json()["progress"].clone();
                if shown["secondsLeft"] != Value::Null {
                    return shown;
                }
                tokio::task::yield_now().await;
            }
        };
        let shown = tokio::select! {
            _ = &mut work => panic!("it ended before it told"),
            shown = told => shown,
        };
        gate.set(false);
        work.await;
        shown
    };
    let number = |field: &str| shown[field].as_u64().unwrap_or_else(|| panic!("{field}: {shown}"));
    assert_eq!(number("bytesTotal"), all, "{shown}");
    // The file that is kept is not read again, and counts all the same.
    assert!((1 << 20..all).contains(&number("bytesDone")) && number("filesDone") > 0, "{shown}");
    let (rate, left) = (number("bytesPerSecond"), number("secondsLeft"));
    assert!(rate > 0 && left > 0, "{shown}");
    assert_eq!(desk.get(&format!("operations/{operation}")).await.json()["state"], "succeeded");
}
