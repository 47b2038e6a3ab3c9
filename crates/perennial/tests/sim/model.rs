//! The model: random histories of verbs, writes, faults and crashes against a map of the bytes that have to be there.
//!
//! `PERENNIAL_MODEL_HISTORIES` says how many, `PERENNIAL_MODEL_SEED` where to begin: a failure prints its seed and its
//! steps, and the same seed repeats it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::processor;
use crate::world::taps::{Blow, Striker};
use crate::world::{Ended, Server, World, files, small_spec};
use futures::FutureExt as _;
use futures::future::LocalBoxFuture;
use jiff::SignedDuration;
use perennial::service::{Caller, Outcome};
use perennial_core::Error;
use perennial_core::engine::{Engine, Owned};
use perennial_core::id::{OperationId, PodId, SnapshotId};
use perennial_core::operation::{OperationKind, OperationState};
use perennial_core::parts::{Extra, Parts};
use perennial_core::pod::{ConditionKind, Phase};
use perennial_core::retention::{Keep, Manual};
use perennial_core::schedule::SnapshotRules;
use perennial_core::snapshot::{Snapshot, SnapshotKind, SnapshotState};
use perennial_core::spec::{Backend, PodSpec};
use perennial_drivers::sim::Cause;
use perennial_snapshots::Effort;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

/// Histories when nobody says how many.
const HISTORIES: u64 = 1_000;
/// Steps of one history.
const STEPS: usize = 12;
/// Histories that share one installation.
const PER_WORLD: u64 = 5;

type Files = BTreeMap<String, Vec<u8>>;

/// One history: the real thing and what is known of it.
struct History<'a> {
    world: &'a World,
    rng: SmallRng,
    server: Server,
    pod: PodId,
    /// What the pod's files have to be.
    live: Files,
    /// What each snapshot has to hold.
    snapshots: BTreeMap<SnapshotId, Files>,
    /// What a fresh pod holds.
    fresh: Files,
    /// Operations whose end is not known.
    open: Vec<(OperationId, Effect)>,
    steps: Vec<String>,
    writes: u64,
}

/// What an operation does to the bytes when it succeeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    None,
    Reset,
    Restore(SnapshotId),
    /// What begins so comes from that snapshot; everything else stays.
    Parts(SnapshotId, &'static str),
    Snapshot(SnapshotId),
}

impl<'a> History<'a> {
    async fn begin(world: &'a World, seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let backend = if rng.random_bool(0.7) { Backend::Overlay } else { Backend::Engine };
        let server = world.server().await;
        // Every hour one, of which two are kept: most of what is taken goes again.
        let keep = Keep { last: 2, manual: Manual::Rotated, ..Keep::default() };
        let rules = SnapshotRules { schedule: Some("0 * * * *".to_owned()), time_zone: None, keep: Some(keep) };
        let snapshots = if rng.random_bool(0.5) { rules } else { SnapshotRules::default() };
        let pod = server.running(&format!("pod-{seed}"), PodSpec { snapshots, ..small_spec(backend) }).await;
        let fresh = files(world, pod);
        Self {
            world,
            rng,
            server,
            pod,
            live: fresh.clone(),
            snapshots: BTreeMap::new(),
            fresh,
            open: Vec::new(),
            steps: vec![format!("create on {backend:?}")],
            writes: 0,
        }
    }

    async fn run(&mut self) {
        for _ in 0..STEPS {
            self.step().await;
        }
        self.settle().await;
        if self.rng.random_bool(0.3) {
            self.purge().await;
            return;
        }
        self.bring_up().await;
        self.compare("at the end").await;
    }

    /// One of them, each on the heap: what is inside of it is looked at thousands of times, and a stack that holds all of them costs more
    /// each time than what is done.
    fn step(&mut self) -> LocalBoxFuture<'_, ()> {
        match self.rng.random_range(0..100) {
            0..=29 => self.write().boxed_local(),
            30..=39 => self.verb("stop").boxed_local(),
            40..=52 => self.verb("start").boxed_local(),
            53..=57 => self.verb("pause").boxed_local(),
            58..=61 => self.verb("restart").boxed_local(),
            62..=67 => self.snapshot().boxed_local(),
            68..=71 => self.replace(None).boxed_local(),
            72..=74 => self.restore().boxed_local(),
            75..=76 => self.restore_parts().boxed_local(),
            77..=79 => self.verb("delete").boxed_local(),
            80..=82 => self.verb("undelete").boxed_local(),
            83..=85 => self.verb("archive").boxed_local(),
            86..=89 => self.outside().boxed_local(),
            90 => async move { self.tick() }.boxed_local(),
            91 => self.limit().boxed_local(),
            92..=95 => self.housekeep().boxed_local(),
            _ => self.settle().boxed_local(),
        }
    }

    /// Works for a while: a few passes, perhaps under a server that dies or is lied to.
    async fn work(&mut self) {
        let passes = self.rng.random_range(0..8);
        if self.rng.random_bool(0.4) {
            for _ in 0..passes {
                self.server.pass(self.pod).await;
            }
            return;
        }
        let blows = [Blow::KillBefore, Blow::KillAfter, Blow::FailBefore, Blow::LoseAnswer];
        let blow = blows[self.rng.random_range(0..blows.len())];
        let at = self.rng.random_range(0..25);
        self.steps.push(format!("  {blow:?} at call {at} within {passes} passes"));
        let striker = Arc::new(Striker::new(blow, at));
        let server = self.world.server_with(Arc::clone(&striker) as _).await;
        let life = async {
            for _ in 0..passes {
                server.pass(self.pod).await;
            }
        };
        tokio::select! {
            () = life => {}
            () = striker.death() => {}
        }
        self.server = self.world.server().await;
    }

    async fn ask(&mut self, verb: &str) -> Result<Outcome, Error> {
        let (server, pod) = (&self.server, self.pod);
        match verb {
            "start" => server.start(pod).await,
            "stop" => server.stop(pod).await,
            "pause" => server.pause(pod).await,
            "restart" => server.restart(pod).await,
            "delete" => server.delete(pod).await,
            "undelete" => server.undelete(pod).await,
            "archive" => server.archive(pod).await,
            "snapshot" => server.snapshot(pod).await,
            "reset" => server.reset(pod).await,
            other => panic!("{other} is no verb"),
        }
    }

    fn note(&mut self, verb: &str, outcome: Result<Outcome, Error>, effect: impl Fn(&Outcome) -> Effect) {
        match outcome {
            Ok(outcome) => {
                self.steps.push(verb.to_owned());
                self.open.push((outcome.operation.id, effect(&outcome)));
            }
            Err(Error::Conflict { code, .. }) => self.steps.push(format!("{verb} refused: {code}")),
            Err(error) => panic!("{verb}: {error}\n{}", self.steps.join("\n")),
        }
    }

    async fn verb(&mut self, verb: &str) {
        let outcome = self.ask(verb).await;
        self.note(verb, outcome, |_| Effect::None);
        self.work().await;
    }

    async fn snapshot(&mut self) {
        self.settle().await;
        let outcome = self.ask("snapshot").await;
        self.note("snapshot", outcome, |o| o.snapshot.as_ref().map_or(Effect::None, |s| Effect::Snapshot(s.id)));
        self.work().await;
        self.settle().await;
    }

    async fn replace(&mut self, from: Option<SnapshotId>) {
        self.settle().await;
        let outcome = match from {
            None => self.ask("reset").await,
            Some(id) => self.server.restore(self.pod, id).await,
        };
        let effect = from.map_or(Effect::Reset, Effect::Restore);
        self.note(&format!("{effect:?}"), outcome, |_| effect);
        self.work().await;
        self.settle().await;
    }

    async fn restore(&mut self) {
        self.settle().await;
        let known: Vec<SnapshotId> = self.snapshots.keys().copied().collect();
        if !known.is_empty() {
            let chosen = known[self.rng.random_range(0..known.len())];
            self.replace(Some(chosen)).await;
        }
    }

    /// Puts a part of a snapshot back: a volume, the system layer, or a file.
    async fn restore_parts(&mut self) {
        self.settle().await;
        let known: Vec<SnapshotId> = self.snapshots.keys().copied().collect();
        if known.is_empty() {
            return;
        }
        let from = known[self.rng.random_range(0..known.len())];
        let choices = [("srv", "/srv/"), ("home", "/home/"), ("system", "/tools/"), ("", "/srv/1"), ("", "/home/seed")];
        let (volume, prefix) = choices[self.rng.random_range(0..choices.len())];
        if volume.is_empty() && !self.snapshots[&from].contains_key(prefix) {
            return;
        }
        let own = |chosen: bool, text: &str| if chosen { vec![text.to_owned()] } else { Vec::new() };
        let parts = Parts::new(own(!volume.is_empty(), volume), own(volume.is_empty(), prefix), Extra::Remove);
        let outcome = self.server.restore_parts(self.pod, from, parts.unwrap().unwrap()).await;
        let effect = Effect::Parts(from, prefix);
        self.note(&format!("{effect:?}"), outcome, |_| effect);
        self.work().await;
        self.settle().await;
    }

    /// Writes or removes as the pod, when it runs and nothing that replaces or captures is in work.
    async fn write(&mut self) {
        if !self.open.is_empty() {
            self.settle().await;
        }
        let directory = ["/srv", "/home", "/tools"][self.rng.random_range(0..3)];
        let path = format!("{directory}/{}", self.rng.random_range(0..4));
        self.writes += 1;
        if self.rng.random_bool(0.7) {
            let bytes = format!("{} of {}", self.writes, self.steps.len()).into_bytes();
            if self.world.engine.write(self.pod, &path, &bytes).is_ok() {
                self.steps.push(format!("write {path}"));
                self.live.insert(path, bytes);
            }
        } else if self.world.engine.remove(self.pod, &path).is_ok() {
            self.steps.push(format!("remove {path}"));
            self.live.remove(&path);
        }
    }

    /// What fate and administrators do.
    async fn outside(&mut self) {
        self.settle().await;
        match self.rng.random_range(0..4) {
            0 => {
                if self.world.engine.crash(self.pod, 1, Cause::Itself).is_ok() {
                    self.steps.push("crash".to_owned());
                }
            }
            1 => {
                self.steps.push("the engine restarts".to_owned());
                self.world.engine.restart_engine().unwrap();
            }
            2 => {
                // What no volume holds goes back to its newest capture: known exactly once it was captured.
                self.world.clock.advance(SignedDuration::from_mins(6));
                self.settle().await;
                if self.world.engine.kill_container_outside(self.pod).is_ok() {
                    self.steps.push("somebody removes the container".to_owned());
                }
            }
            _ => {
                let record = self.server.pod(self.pod).await;
                if let Some(set) = record.current_set().filter(|s| s.backend == Backend::Overlay) {
                    self.steps.push("somebody removes a volume's definition".to_owned());
                    let _ = self.world.engine.remove_definition_outside(self.pod, set.number, "srv");
                }
            }
        }
        self.work().await;
    }

    /// Other limits, which the engine may be unable to change: then the pod says so.
    async fn limit(&mut self) {
        self.settle().await;
        let memory = [None, Some(64 << 20), Some(128 << 20)][self.rng.random_range(0..3)];
        let change = move |spec: &PodSpec| {
            let mut spec = spec.clone();
            spec.resources.memory = memory;
            Ok(spec)
        };
        let changed = self.server.app.patch(&Caller::admin(), self.pod, None, change).await;
        match changed {
            Ok(_) => self.steps.push(format!("memory {memory:?}")),
            Err(Error::Conflict { code, .. }) => self.steps.push(format!("memory refused: {code}")),
            Err(error) => panic!("limit: {error}\n{}", self.steps.join("\n")),
        }
        self.work().await;
    }

    fn tick(&mut self) {
        self.steps.push("time passes".to_owned());
        let minutes = self.rng.random_range(1..120);
        self.world.clock.advance(SignedDuration::from_mins(minutes));
    }

    /// Hours pass: schedules and rules are looked at, perhaps by a server that dies. The newest copy never goes.
    async fn housekeep(&mut self) {
        self.settle().await;
        let verified = |rows: Vec<Snapshot>| rows.into_iter().filter(Snapshot::is_restorable).map(|s| s.id).max();
        let newest = verified(self.server.snapshots(self.pod).await);
        let hours = self.rng.random_range(1..30);
        self.world.clock.advance(SignedDuration::from_hours(hours));
        let blows = [Blow::Count, Blow::KillBefore, Blow::KillAfter, Blow::FailBefore, Blow::LoseAnswer];
        let (blow, at) = (blows[self.rng.random_range(0..blows.len())], self.rng.random_range(0..40));
        self.steps.push(format!("{hours} hours of housekeeping, {blow:?} at call {at}"));
        let striker = Arc::new(Striker::new(blow, at));
        let server = self.world.server_with(Arc::clone(&striker) as _).await;
        let life = async {
            server.housekeeper().run_due().await;
            for _ in 0..20 {
                server.reconciler.pass(self.pod).await;
            }
            server.housekeeper().run_due().await;
            server.housekeeper().prune_due().await;
        };
        tokio::select! {
            () = life => {}
            () = striker.death() => {}
        }
        self.server = self.world.server().await;
        self.server.settle(self.pod).await;
        // What was begun is taken over after some minutes.
        for _ in 0..3 {
            self.world.clock.advance(SignedDuration::from_mins(3));
            self.server.housekeeper().run_due().await;
            self.server.settle(self.pod).await;
        }
        self.server.housekeeper().prune_due().await;
        let rows = self.server.snapshots(self.pod).await;
        self.snapshots.retain(|id, _| rows.iter().any(|row| row.id == *id));
        let now = verified(rows);
        self.require(now >= newest, || format!("the newest verified snapshot was {newest:?} and is {now:?}"));
        self.settle().await;
    }

    /// Lets everything come to rest and checks what has to be true then.
    async fn settle(&mut self) {
        let ended = self.server.settle(self.pod).await;
        assert_eq!(ended, Ended::Settled, "the pod is gone\n{}", self.steps.join("\n"));
        let before = self.live.clone();
        for (id, effect) in std::mem::take(&mut self.open) {
            let operation = self.server.operation(id).await;
            self.require(operation.state.is_terminal(), || format!("{operation:?} has not ended"));
            let succeeded = operation.state == OperationState::Succeeded;
            let refusable = matches!(operation.kind, OperationKind::Snapshot | OperationKind::Restart);
            let cancelled = operation.state == OperationState::Cancelled;
            // After a reset of a stopped pod there is nothing that parts could be put into.
            let nothing = operation.error.as_ref().is_some_and(|problem| problem.code == "pod-never-ran");
            let refusable = refusable || matches!(effect, Effect::Parts(..)) && nothing;
            self.require(succeeded || refusable || cancelled, || format!("{operation:?} failed without a reason"));
            match effect {
                _ if !succeeded => {}
                Effect::None => {}
                Effect::Reset => self.live = self.fresh.clone(),
                Effect::Restore(from) => self.live = self.snapshots[&from].clone(),
                Effect::Parts(from, prefix) => {
                    let is_chosen =
                        |path: &String| path.starts_with(prefix) && (prefix.ends_with('/') || path == prefix);
                    self.live.retain(|path, _| !is_chosen(path));
                    let chosen = self.snapshots[&from].iter().filter(|(path, _)| is_chosen(path));
                    self.live.extend(chosen.map(|(path, bytes)| (path.clone(), bytes.clone())));
                }
                Effect::Snapshot(id) => {
                    self.snapshots.insert(id, self.live.clone());
                }
            }
        }
        for row in self.server.snapshots(self.pod).await {
            if row.state == SnapshotState::Verified && !self.snapshots.contains_key(&row.id) {
                let expected = if row.kind == SnapshotKind::Safety { &before } else { &self.live };
                self.snapshots.insert(row.id, expected.clone());
            }
        }
        self.check().await;
    }

    async fn check(&mut self) {
        let violations = self.world.engine.violations();
        self.require(violations.is_empty(), || format!("the engine saw {violations:?}"));
        let record = self.server.pod(self.pod).await;
        let unfinished = self.server.app.store.operations_unfinished(self.pod).await.unwrap();
        self.require(unfinished.is_empty(), || format!("never ends: {unfinished:?}\n{record:?}"));
        let known: BTreeSet<u32> = record.current.into_iter().collect();
        for owned in self.world.engine.list_owned().await.unwrap() {
            let (pod, right) = match &owned {
                Owned::Container { pod, id } => (*pod, record.container.as_ref().is_some_and(|c| &c.id == id)),
                Owned::Set { pod, number, .. } => (*pod, known.contains(number)),
            };
            self.require(pod != self.pod || right, || format!("{owned:?} is an orphan of {record:?}"));
        }
        if record.phase == Phase::Running {
            let limits = self.world.engine.limits_of(self.pod);
            let is_told = record.conditions.iter().any(|c| c.kind == ConditionKind::RestartRequired);
            let as_asked = limits == Some(record.spec.resources.of_container());
            self.require(as_asked != is_told, || format!("limited to {limits:?}: {record:?}"));
            self.compare("at rest").await;
        }
    }

    async fn compare(&self, when: &str) {
        let now = files(self.world, self.pod);
        self.require(now == self.live, || {
            let show = |files: &Files| {
                files.iter().map(|(k, v)| format!("{k}={}", String::from_utf8_lossy(v))).collect::<Vec<_>>().join(" ")
            };
            format!("{when} the bytes are\n  {}\nand have to be\n  {}", show(&now), show(&self.live))
        });
    }

    /// Whatever the pod is, it can be brought back to running.
    async fn bring_up(&mut self) {
        let record = self.server.pod(self.pod).await;
        if matches!(record.phase, Phase::Archived | Phase::Deleted) {
            self.server.succeed(self.server.undelete(self.pod).await).await;
        }
        self.server.succeed(self.server.start(self.pod).await).await;
        self.settle().await;
        let phase = self.server.pod(self.pod).await.phase;
        self.require(phase == Phase::Running, || format!("it is {phase:?}"));
    }

    async fn purge(&mut self) {
        self.steps.push("purge".to_owned());
        self.server.purge(self.pod).await.unwrap();
        self.work().await;
        let ended = self.server.settle(self.pod).await;
        self.require(ended == Ended::Gone, || "the purged pod is still there".to_owned());
        let owned = self.world.engine.list_owned().await.unwrap();
        let left = owned.iter().any(|o| match o {
            Owned::Container { pod, .. } | Owned::Set { pod, .. } => *pod == self.pod,
        });
        self.require(!left, || format!("the purge left {owned:?}"));
    }

    fn require(&self, held: bool, message: impl FnOnce() -> String) {
        assert!(held, "{}\nsteps:\n{}", message(), self.steps.join("\n"));
    }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

async fn histories(next: &AtomicU64, end: u64, until: Option<Instant>, played: &AtomicU64) {
    loop {
        let first = next.fetch_add(PER_WORLD, Ordering::Relaxed);
        if first >= end || until.is_some_and(|until| Instant::now() >= until) {
            return;
        }
        let mut world = World::new(first);
        if (first / PER_WORLD).is_multiple_of(10) {
            // As on real machines, where many threads save and restore at once.
            world.effort = Effort::default();
        }
        for seed in first..(first + PER_WORLD).min(end) {
            let guard = Announce(seed);
            let mut history = History::begin(&world, seed).await;
            history.run().await;
            played.fetch_add(1, Ordering::Relaxed);
            std::mem::forget(guard);
        }
    }
}

/// Says which seed failed.
struct Announce(u64);

impl Drop for Announce {
    fn drop(&mut self) {
        println!("failed: PERENNIAL_MODEL_SEED={} PERENNIAL_MODEL_HISTORIES=1", self.0);
    }
}

#[test]
fn sim_model_random_histories_lose_nothing() {
    if std::env::var_os("RUST_LOG").is_some() {
        tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    }
    let first = setting("PERENNIAL_MODEL_SEED", 0);
    let count = setting("PERENNIAL_MODEL_HISTORIES", HISTORIES);
    // A slow machine plays as many as it can in this time, and says how many.
    let seconds = setting("PERENNIAL_MODEL_SECONDS", 0);
    let until = (seconds > 0).then(|| Instant::now() + Duration::from_secs(seconds));
    let (next, played) = (AtomicU64::new(first), AtomicU64::new(0));
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for processor in 0..processors {
            let (next, played) = (&next, &played);
            let play = move || {
                processor::stay_on(processor);
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(histories(next, first + count, until, played));
            };
            std::thread::Builder::new().stack_size(perennial::serve::STACK).spawn_scoped(scope, play).unwrap();
        }
    });
    let played = played.into_inner();
    println!("{played} of {count} histories from seed {first}: 0 violations");
}
