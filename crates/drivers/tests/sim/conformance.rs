//! The conformance suite on the simulated engine: every case, both backends, both kinds of runtime.

use std::sync::Arc;

use async_trait::async_trait;
use perennial_core::engine::SetSpec;
use perennial_core::id::PodId;
use perennial_core::spec::Backend;
use perennial_drivers::conformance::{
    self, Ability, Checked, Declaring, Failure, Fixture, Hands, Outcome, Programs, Tracked,
};
use perennial_drivers::for_each_case;
use perennial_drivers::sim::{Cause, SimEngine, SimImage, SimMover, SimOptions, VirtualClock};

struct SimHands(SimEngine);

impl SimHands {
    fn pod(&self, container: &str) -> Checked<PodId> {
        self.0.pod_of(container).ok_or_else(|| Failure(format!("there is no container {container}")))
    }
}

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure(format!("hands: {error}"))
}

#[async_trait]
impl Hands for SimHands {
    async fn write(&self, container: &str, path: &str, bytes: &[u8]) -> Checked {
        self.0.write(self.pod(container)?, path, bytes).map_err(failed)
    }

    async fn read(&self, container: &str, path: &str) -> Checked<Option<Vec<u8>>> {
        self.0.read(self.pod(container)?, path).map_err(failed)
    }

    async fn is_of_this_host(&self, _container: &str) -> Checked<bool> {
        Ok(true)
    }

    async fn remove(&self, container: &str, path: &str) -> Checked {
        self.0.remove(self.pod(container)?, path).map(drop).map_err(failed)
    }

    async fn crash(&self, container: &str) -> Checked {
        self.0.crash(self.pod(container)?, 137, Cause::Itself).map_err(failed)
    }

    async fn kill_outside(&self, container: &str) -> Checked {
        self.0.kill_container_outside(self.pod(container)?).map_err(failed)
    }

    async fn foreign_make(&self, set: &SetSpec) -> Checked<String> {
        Ok(self.0.foreign_container(set.pod, set.number))
    }

    async fn foreign_remove(&self, id: &str) -> Checked {
        self.0.foreign_remove(id);
        Ok(())
    }

    async fn linger(&self, set: &SetSpec) -> Checked<String> {
        Ok(self.0.lingering_process(set.pod, set.number))
    }

    async fn linger_end(&self, id: &str) -> Checked {
        self.0.foreign_remove(id);
        Ok(())
    }

    async fn definition_remove(&self, set: &SetSpec, volume: &str) -> Checked {
        self.0.remove_definition_outside(set.pod, set.number, volume).map_err(failed)
    }

    async fn data_remove(&self, set: &SetSpec, volume: &str) -> Checked {
        self.0.remove_volume_data_outside(set.pod, set.number, volume).map_err(failed)
    }
}

/// What each kind of simulated engine lacks.
const OVERLAY: &[Ability] = &[Ability::Mover];
const HIDDEN_LAYER: &[Ability] = &[Ability::Mover, Ability::VisibleLayer];
const ENGINE_VOLUMES: &[Ability] =
    &[Ability::Mover, Ability::Definitions, Ability::InstantCopies, Ability::Generations];
const BY_MOVER: &[Ability] =
    &[Ability::LocalVolumes, Ability::Definitions, Ability::InstantCopies, Ability::Generations];

/// A case that the simulator is not asked on overlay volumes is asked on others: none is excused everywhere.
#[test]
fn every_case_runs_on_some_simulated_engine_and_overlay_lacks_only_the_mover() {
    let names = |lacks| -> Vec<&str> { conformance::not_applicable(lacks).into_iter().map(|(name, _)| name).collect() };
    assert_eq!(names(OVERLAY), ["mover_left_behind_is_ended"]);
    assert_eq!(names(HIDDEN_LAYER), ["mover_left_behind_is_ended", "layer_is_reached_and_put_back"]);
    for case in conformance::cases() {
        let engines = [OVERLAY, HIDDEN_LAYER, ENGINE_VOLUMES, BY_MOVER];
        assert!(engines.iter().any(|lacks| !names(lacks).contains(&case.name)), "{} runs nowhere", case.name);
    }
}

async fn run(backend: Backend, runtime: Option<&str>, name: &str) {
    let lacks = match (backend, runtime) {
        (Backend::Engine, _) => ENGINE_VOLUMES,
        (Backend::Overlay, None) => OVERLAY,
        (Backend::Overlay, Some(_)) => HIDDEN_LAYER,
    };
    run_with(SimOptions::default(), backend, runtime, lacks, name).await;
}

/// On an engine whose own volumes only a mover reaches; this one listens, and does nothing.
async fn run_with_mover(name: &str) {
    let mover = SimMover::new(|mut input, _output| {
        let _ = std::io::copy(&mut input, &mut std::io::sink());
    });
    let options = SimOptions { mover: Some(mover), ..SimOptions::default() };
    run_with(options, Backend::Engine, None, BY_MOVER, name).await;
}

#[expect(clippy::print_stderr, reason = "a test that was not run says so and why")]
async fn run_with(options: SimOptions, backend: Backend, runtime: Option<&str>, lacks: &[Ability], name: &str) {
    let root = tempfile::tempdir().expect("a temporary directory");
    let clock = Arc::new(VirtualClock::default());
    let engine = SimEngine::open(root.path().join("sim"), clock.clone(), options).expect("an engine");
    engine.add_image("standard:1", &SimImage::standard()).expect("an image");
    let declaring = SimImage::standard().file("/data/seed", "from the image\n").volume("/data").volume("/srv");
    engine.add_image("declaring:1", &declaring).expect("an image");
    let words = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
    let fixture = Fixture {
        engine: Arc::new(engine.clone()),
        hands: Arc::new(SimHands(engine.clone())),
        clock,
        salt: 0,
        image: "standard:1".to_owned(),
        declaring: Declaring {
            image: "declaring:1".to_owned(),
            path: "/data".to_owned(),
            seeded_file: "/data/seed".to_owned(),
        },
        runtime: runtime.map(str::to_owned),
        backend,
        lacks: lacks.to_vec(),
        command: words(&["sleep", "infinity"]),
        stubborn: words(&["sh", "-c", "trap '' TERM; while :; do sleep 1; done"]),
        stubborn_sign: None,
        talking: words(&["sh", "-c", "echo one; echo two >&2; echo three; sleep infinity"]),
        programs: Programs {
            writes: words(&["write", "/srv/ran", "yes"]),
            fails: words(&["exit", "3", &"x".repeat(5000), "the last words"]),
            hangs: words(&["hang"]),
            is_gone: words(&["gone"]),
            leaves: words(&["true"]),
            absent: words(&["missing"]),
        },
        serves: words(&["httpd", "-f", "-p", "8080"]),
        seeded_file: "/etc/motd".to_owned(),
        seeded_directory: words(&["/var/lib/seed/a", "/var/lib/seed/b"]),
        scratch: root.path().to_owned(),
        tracked: Tracked::default(),
    };
    let outcome = conformance::run(&fixture, name).await.unwrap_or_else(|failure| panic!("{name}: {failure}"));
    if let Outcome::NotApplicable(missing) = outcome {
        missing.iter().for_each(|reason| eprintln!("not applicable: {reason}"));
    }
}

macro_rules! tests {
    ($($module:ident: $($name:ident)*;)*) => {
        mod overlay {
            $($(#[tokio::test] async fn $name() {
                super::run(super::Backend::Overlay, None, stringify!($name)).await;
            })*)*
        }
        mod engine_volumes {
            $($(#[tokio::test] async fn $name() {
                super::run(super::Backend::Engine, None, stringify!($name)).await;
            })*)*
        }
        mod by_mover {
            $($(#[tokio::test] async fn $name() {
                super::run_with_mover(stringify!($name)).await;
            })*)*
        }
        mod hidden_layer {
            $($(#[tokio::test] async fn $name() {
                super::run(super::Backend::Overlay, Some("runsc"), stringify!($name)).await;
            })*)*
        }
    };
}

for_each_case!(tests);
