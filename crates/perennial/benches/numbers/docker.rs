//! A pod's life on a real engine: Perennial and bare calls of the engine's API, one after the other in every round. And how
//! soon a container's end is noticed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::bare::{Bare, Made, Model};
use super::installation::{BUSYBOX, DEBIAN, Docker, Installation, Pod, eventually};
use super::table::{self, Limit, Samples};

/// Rounds on each runtime, after one that does not count.
const ROUNDS: [(&str, usize); 2] = [("runc", 15), ("runsc", 9)];
/// Lets a process that was just started set its signal handlers: one that has none ignores SIGTERM.
const SETTLE: Duration = Duration::from_millis(400);

/// Who runs the container, and on which volumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Variant {
    BareNone,
    BareEight,
    PerennialNone,
    PerennialEngine,
    PerennialOverlay,
}

use Variant::{BareEight, BareNone, PerennialEngine, PerennialNone, PerennialOverlay};

const VARIANTS: [Variant; 5] = [BareEight, PerennialOverlay, PerennialEngine, BareNone, PerennialNone];

impl Variant {
    const fn name(self) -> &'static str {
        match self {
            BareNone => "bare calls, no volume",
            BareEight => "bare calls, eight volumes",
            PerennialNone => "Perennial, no volume",
            PerennialEngine => "Perennial, eight volumes (docker)",
            PerennialOverlay => "Perennial, everything (overlay)",
        }
    }

    /// The fields of a request for such a pod; `None` for bare calls.
    fn request(self) -> Option<Value> {
        match self {
            BareNone | BareEight => None,
            PerennialNone => Some(json!({"volumes": [], "backend": "docker"})),
            PerennialEngine => Some(json!({"backend": "docker"})),
            PerennialOverlay => Some(json!({"backend": "overlay"})),
        }
    }

    /// What it is compared with.
    const fn against(self) -> Self {
        match self {
            BareNone | PerennialNone => BareNone,
            BareEight | PerennialEngine | PerennialOverlay => BareEight,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Create,
    Pause,
    Start,
}

const STEPS: [(Step, &str); 3] =
    [(Step::Create, "create → running"), (Step::Pause, "pause (stop)"), (Step::Start, "start after pause")];

type Measured = BTreeMap<(Step, Variant), Samples>;

struct Field<'a> {
    server: &'a Installation,
    bare: &'a Bare,
    runtime: &'static str,
    model: Model,
}

enum Subject {
    Bare(Made),
    Pod(Pod),
}

impl Field<'_> {
    fn create(&self, variant: Variant, name: &str) -> (Subject, Duration) {
        let Some(more) = variant.request() else {
            let volumes = if variant == BareEight { 8 } else { 0 };
            let (made, took) = self.bare.create(&self.model, name, volumes);
            return (Subject::Bare(made), took);
        };
        let began = Instant::now();
        let (pod, operation) = self.server.ask(name, DEBIAN, self.runtime, more);
        self.server.succeeded(&operation);
        (Subject::Pod(pod), began.elapsed())
    }

    fn act(&self, subject: &Subject, step: Step) -> Duration {
        match (subject, step) {
            (Subject::Bare(made), Step::Pause) => self.bare.stop(made),
            (Subject::Bare(made), _) => self.bare.start(made),
            (Subject::Pod(pod), _) => {
                let action = if step == Step::Pause { "pause" } else { "start" };
                let began = Instant::now();
                let operation = self.server.act(pod, action, &json!({}));
                self.server.succeeded(&operation);
                began.elapsed()
            }
        }
    }

    fn remove(&self, subject: Subject) {
        match subject {
            Subject::Bare(made) => self.bare.remove(made),
            Subject::Pod(pod) => self.server.run(&pod, "purge"),
        }
    }

    /// One life of each variant; who begins changes with the round.
    fn round(&self, round: usize, measured: &mut Measured) {
        for turn in 0..VARIANTS.len() {
            let variant = VARIANTS[(turn + round) % VARIANTS.len()];
            let mut note = |step, took| measured.entry((step, variant)).or_default().add(took);
            let (subject, took) = self.create(variant, &format!("bench-{}-{round}-{turn}", self.runtime));
            note(Step::Create, took);
            std::thread::sleep(SETTLE);
            note(Step::Pause, self.act(&subject, Step::Pause));
            note(Step::Start, self.act(&subject, Step::Start));
            std::thread::sleep(SETTLE);
            self.remove(subject);
        }
    }
}

pub fn run() -> Vec<String> {
    let docker = Docker::shared();
    let server = Installation::on(docker.clone(), &[]);
    let label = server.label().to_owned();
    let bare = Bare::connect(&docker.host, label.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned())).unwrap());
    let mut limits = Vec::new();
    for (runtime, rounds) in ROUNDS {
        // The image is flattened and stored once, before its first snapshot; that is not part of any pod's start.
        let first = server.pod_with(&format!("model-{runtime}"), DEBIAN, runtime, json!({"backend": "docker"}));
        server.snapshot(&first);
        let field = Field { server: &server, bare: &bare, runtime, model: bare.model(&server.container(&first)) };
        field.round(0, &mut Measured::new());
        let mut measured = Measured::new();
        for round in 1..=rounds {
            field.round(round, &mut measured);
        }
        server.run(&first, "purge");
        limits.extend(report(runtime, rounds, &measured));
    }
    limits.extend(notice(&server));
    table::limits("Docker: ratios of medians, and seconds", &limits)
}

/// What happens to a container behind the server's back.
#[derive(Debug, Clone, Copy)]
enum Way {
    Kill,
    Memory,
    Remove,
}

/// How it is called, and what is recorded of it.
const BEHIND: [(Way, &str, &str); 3] = [
    (Way::Kill, "kill -9 of its process", "pod.crashed"),
    (Way::Memory, "killed for its memory", "pod.crashed"),
    (Way::Remove, "docker rm --force, the command included", "pod.container-lost"),
];
/// Takes more memory than it may have as soon as it is told to.
const HUNGRY: &str = "while [ ! -e /srv/now ]; do sleep 0.05; done; exec tail /dev/zero";
/// Of each.
const TIMES: usize = 10;

/// How long it takes from the end of a container until it is recorded, as a client of the API sees it. The safety net
/// looks every 30 s; that the engine's events tell is what `sim_the_watch_alone_tells_of_crashes_memory_kills_and_removals` proves.
fn notice(server: &Installation) -> Vec<Limit> {
    let (mut rows, mut limits) = (Vec::new(), Vec::new());
    for (way, name, kind) in BEHIND {
        let mut samples = Samples::NONE;
        for n in 0..TIMES {
            let resources = json!({"memory": "32Mi", "memorySwap": 0});
            let more = json!({"backend": "overlay", "command": ["sh", "-c", HUNGRY], "resources": resources, "stopTimeout": 1});
            let pod = server.pod_with(&format!("behind-{n}"), BUSYBOX, "runc", more);
            std::thread::sleep(SETTLE);
            let container = server.container(&pod);
            let pid = server.docker.run(&["inspect", "--format", "{{.State.Pid}}", &container]);
            let pid = rustix::process::Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
            let mut began = Instant::now();
            match way {
                Way::Kill => rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap(),
                Way::Memory => {
                    server.sh(&pod, "touch /srv/now");
                    // The process takes its time until the kernel ends it.
                    eventually("out of memory", || rustix::process::test_kill_process(pid).is_err().then_some(()));
                    began = Instant::now();
                }
                Way::Remove => drop(server.docker.run(&["rm", "--force", &container])),
            }
            let path = format!("/api/v1/pods/{}/events?limit=1000", pod.id);
            eventually(kind, || {
                let events = server.get(&path);
                events["items"].as_array().unwrap().iter().any(|event| event["type"] == kind).then_some(())
            });
            samples.add(began.elapsed());
            server.run(&pod, "purge");
        }
        let [median, least, most] = samples.cells();
        rows.push(vec![name.to_owned(), median, least, most]);
        limits.push(Limit {
            what: format!("runc: recorded after {name}"),
            value: samples.median(),
            most: 1.0,
            unit: " s",
        });
    }
    let title = format!("runc: milliseconds until the end of a container is recorded, {TIMES} times each");
    table::print(&title, &["", "median", "min", "max"], &rows);
    limits
}

fn report(runtime: &str, rounds: usize, measured: &Measured) -> Vec<Limit> {
    let ratio = |step, variant: Variant, base| measured[&(step, variant)].median() / measured[&(step, base)].median();
    let mut rows = Vec::new();
    for (step, name) in STEPS {
        for variant in VARIANTS {
            let [median, least, most] = measured[&(step, variant)].cells();
            let against = format!("{:.2}", ratio(step, variant, variant.against()));
            let none = format!("{:.2}", ratio(step, variant, BareNone));
            rows.push(vec![format!("{name}: {}", variant.name()), median, least, most, against, none]);
        }
    }
    let title = format!("{runtime}: milliseconds, {rounds} rounds, variants in turn");
    table::print(&title, &["", "median", "min", "max", "× bare, same volumes", "× bare, no volume"], &rows);
    // What was promised is about the engine's usual runtime; the other's own start takes most of its time.
    let promised = [
        (Step::Create, PerennialOverlay, 0.9),
        (Step::Create, PerennialEngine, 1.15),
        (Step::Pause, PerennialOverlay, 1.15),
        (Step::Pause, PerennialEngine, 1.15),
        (Step::Start, PerennialOverlay, 1.15),
        (Step::Start, PerennialEngine, 1.15),
    ];
    let limit = |(step, variant, most): (Step, Variant, f64)| Limit {
        what: format!("{runtime}: {}, {}", STEPS.iter().find(|s| s.0 == step).unwrap().1, variant.name()),
        value: ratio(step, variant, BareEight),
        most,
        unit: "×",
    };
    promised.into_iter().map(limit).collect()
}
