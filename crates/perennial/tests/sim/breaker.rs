//! What ends by itself is destroyed only by who looked all the time, and knows what there is (D15).

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use crate::world::{Ended, Server, World, files, small_spec};
use jiff::SignedDuration;
use perennial::store::Store;
use perennial_core::fault::NoTap;
use perennial_core::id::PodId;
use perennial_core::pod::Phase;
use perennial_core::spec::Backend;

const DAY: SignedDuration = SignedDuration::from_hours(24);

async fn deleted(world: &World, server: &Server) -> PodId {
    let pod = server.running("dev", small_spec(Backend::Overlay)).await;
    world.engine.write(pod, "/srv/mine", "what matters").unwrap();
    server.succeed(server.delete(pod).await).await;
    server.housekeeper().run_due().await;
    pod
}

/// The clock jumps by a year, or the server was away that long: nothing ends in the first hour after that.
#[tokio::test]
async fn sim_after_a_jump_of_the_clock_nothing_is_destroyed_for_a_day() {
    let world = World::new(701);
    let server = world.server().await;
    let pod = deleted(&world, &server).await;
    world.clock.advance(DAY * 365);
    for _ in 0..23 {
        server.housekeeper().run_due().await;
        server.settle(pod).await;
        world.clock.advance(SignedDuration::from_hours(1));
    }
    assert_eq!(server.pod(pod).await.phase, Phase::Deleted);
    assert!(server.app.store.held_until(world.clock_now()).await.unwrap().is_some(), "and doctor can tell");
    // Somebody who was told brings theirs back; what nobody wants goes then.
    server.succeed(server.undelete(pod).await).await;
    server.succeed(server.start(pod).await).await;
    assert_eq!(world.engine.read(pod, "/srv/mine").unwrap().unwrap(), b"what matters");
    server.succeed(server.delete(pod).await).await;
    for _ in 0..8 {
        world.clock.advance(DAY);
        server.housekeeper().run_due().await;
    }
    assert_eq!(server.settle(pod).await, Ended::Gone);
}

#[tokio::test]
async fn sim_a_clock_that_was_ahead_and_is_mended_holds_nothing_longer_than_a_day() {
    let world = World::new(702);
    let server = world.server().await;
    let pod = deleted(&world, &server).await;
    world.clock.advance(DAY * 365);
    server.housekeeper().run_due().await;
    world.clock.set(world.clock_now() - DAY * 365);
    server.housekeeper().run_due().await;
    let until = server.app.store.held_until(world.clock_now()).await.unwrap();
    assert!(until.is_none_or(|until| until <= world.clock_now() + DAY), "{until:?}");
    for _ in 0..9 {
        world.clock.advance(DAY);
        server.housekeeper().run_due().await;
    }
    assert_eq!(server.settle(pod).await, Ended::Gone);
}

/// A pod that was deleted, brought back and worked in, the database of the time when it was deleted, and the newest one.
struct Copied {
    world: World,
    pod: PodId,
    held: BTreeMap<String, Vec<u8>>,
    directory: tempfile::TempDir,
}

impl Copied {
    async fn new(seed: u64) -> Self {
        let mut world = World::new(seed);
        let directory = tempfile::tempdir().unwrap();
        world.database = url(directory.path(), "now");
        let server = world.server().await;
        let pod = deleted(&world, &server).await;
        let (now, old) = (directory.path().join("now.db"), directory.path().join("old.db"));
        let copied = Command::new("sqlite3").arg(now).arg(format!(".backup {}", old.display())).status().unwrap();
        assert!(copied.success());
        server.succeed(server.undelete(pod).await).await;
        server.succeed(server.start(pod).await).await;
        world.engine.write(pod, "/srv/mine", "what was done since").unwrap();
        let held = files(&world, pod);
        Self { world, pod, held, directory }
    }

    async fn server_on(&self, database: &str) -> Server {
        let store = Store::open(&url(self.directory.path(), database), Arc::new(NoTap)).await.unwrap();
        self.world.server_on(store, Arc::new(NoTap))
    }

    /// A month goes by with the database of before, in which the pod's window is over.
    async fn a_month_with_the_old_one(&self) {
        let server = self.server_on("old").await;
        for _ in 0..30 {
            self.world.clock.advance(DAY);
            server.housekeeper().run_due().await;
            server.settle(self.pod).await;
        }
        assert_eq!(server.pod(self.pod).await.phase, Phase::Deleted, "as that database has it, and not destroyed");
    }
}

fn url(directory: &Path, name: &str) -> String {
    format!("sqlite:{}", directory.join(format!("{name}.db")).display())
}

#[tokio::test]
async fn sim_a_database_from_an_old_copy_destroys_nothing_that_lives() {
    let copied = Copied::new(703).await;
    copied.a_month_with_the_old_one().await;
    let server = copied.server_on("now").await;
    server.settle(copied.pod).await;
    assert_eq!(server.pod(copied.pod).await.phase, Phase::Running);
    assert_eq!(files(&copied.world, copied.pod), copied.held);
}

/// The same, and what was done since is in a snapshot only, which the database of before does not know.
#[tokio::test]
async fn sim_a_database_from_an_old_copy_destroys_no_snapshot_that_it_does_not_know() {
    let copied = Copied::new(704).await;
    let server = copied.server_on("now").await;
    server.succeed(server.stop(copied.pod).await).await;
    drop(server);
    copied.a_month_with_the_old_one().await;
    let server = copied.server_on("now").await;
    server.succeed(server.start(copied.pod).await).await;
    assert_eq!(files(&copied.world, copied.pod), copied.held);
}
