use super::*;
use crate::hook::{Hook, TIMEOUT_DEFAULT};
use crate::retention::{COUNT_MAX, Keep};

fn size(bytes: u64) -> Option<Size> {
    Some(Size { bytes, written: bytes.to_string() })
}

fn volume(name: &str, path: &str) -> PlanVolume {
    PlanVolume {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        size: size(250 << 20),
        storage_class: None,
        access_mode: AccessMode::ReadWriteOnce,
    }
}

fn plan() -> Plan {
    Plan {
        name: PlanName::parse("basic").expect("a name"),
        title: "Basic".to_owned(),
        description: String::new(),
        image: "n8n:1".to_owned(),
        command: None,
        entrypoint: None,
        user: None,
        working_dir: None,
        runtime: None,
        profile: PlanProfile::Declared(vec![volume("data", "/data")]),
        resources: PlanResources::default(),
        env: BTreeMap::new(),
        ports: vec![5678],
        health: None,
        on_stop: OnStop::Release,
        stop_signal: None,
        stop_timeout: None,
        privilege_escalation: PrivilegeEscalation::Denied,
        snapshots: SnapshotRules::default(),
        hooks: Hooks::default(),
    }
}

fn service(plans: Vec<Plan>) -> Service {
    let name = ServiceName::parse("n8n").expect("a name");
    Service { name, title: "n8n".to_owned(), description: String::new(), plans }
}

/// The fields that are wrong once the good plan was changed.
fn fields(change: impl FnOnce(&mut Plan)) -> Vec<String> {
    let mut plan = plan();
    change(&mut plan);
    service(vec![plan]).mistakes().into_iter().map(|mistake| mistake.field).collect()
}

#[test]
fn a_plan_becomes_the_pod_it_describes() {
    let plan = Plan {
        command: Some(vec!["n8n".to_owned(), "start".to_owned()]),
        user: Some("node".to_owned()),
        working_dir: Some("/home/node".to_owned()),
        runtime: Some("runsc".to_owned()),
        resources: PlanResources {
            nano_cpus: Some(1_500_000_000),
            memory: size(1536 << 20),
            memory_reservation: size(384 << 20),
            pids: Some(512),
            ..PlanResources::default()
        },
        env: BTreeMap::from([
            ("PORT".to_owned(), EnvValue::Plain("5678".to_owned())),
            ("KEY".to_owned(), EnvValue::Generated(Secret { length: 32, alphabet: Alphabet::Hex })),
        ]),
        on_stop: OnStop::Pause,
        stop_signal: Some("SIGINT".to_owned()),
        stop_timeout: Some(30),
        privilege_escalation: PrivilegeEscalation::Allowed,
        snapshots: SnapshotRules { schedule: Some("0 3 * * *".to_owned()), ..SnapshotRules::default() },
        ..plan()
    };
    assert_eq!(service(vec![plan.clone()]).mistakes(), []);
    let spec = plan.pod_spec();
    assert_eq!(spec.validate(), Ok(()));
    let expected = PodSpec {
        command: plan.command.clone(),
        user: plan.user.clone(),
        working_dir: plan.working_dir.clone(),
        runtime: plan.runtime.clone(),
        resources: Resources {
            nano_cpus: Some(1_500_000_000),
            memory: Some(1536 << 20),
            memory_swap: None,
            memory_reservation: Some(384 << 20),
            pids: Some(512),
            disk: Some(250 << 20),
        },
        env: BTreeMap::from([("PORT".to_owned(), "5678".to_owned())]),
        profile: Profile::Declared(vec![DeclaredVolume {
            name: "data".to_owned(),
            mount_path: "/data".to_owned(),
            size: Some(250 << 20),
        }]),
        ports: vec![PortSpec { container: 5678, host: None }],
        on_stop: OnStop::Pause,
        stop_signal: Some("SIGINT".to_owned()),
        stop_timeout: 30,
        privilege_escalation: PrivilegeEscalation::Allowed,
        snapshots: plan.snapshots.clone(),
        ..PodSpec::new("n8n:1")
    };
    assert_eq!(spec, expected);
    // A generated value is nowhere: it is made for the pod.
    let secrets: Vec<_> = plan.secrets().collect();
    assert_eq!(secrets, [("KEY", Secret { length: 32, alphabet: Alphabet::Hex })]);
}

#[test]
fn the_quota_of_a_pod_is_one_number() {
    assert_eq!(plan().disk(), Some(250 << 20));
    let two = vec![volume("a", "/a"), volume("b", "/b")];
    let two = Plan { profile: PlanProfile::Declared(two), ..plan() };
    assert_eq!(two.disk(), Some(500 << 20), "the sum of what is declared");
    let unbounded = PlanVolume { size: None, ..volume("c", "/c") };
    let some = Plan { profile: PlanProfile::Declared(vec![volume("a", "/a"), unbounded]), ..plan() };
    assert_eq!(some.disk(), None);
    let said = PlanResources { disk: size(1 << 30), ..PlanResources::default() };
    let said = Plan { resources: said, ..two };
    assert_eq!((said.disk(), said.pod_spec().resources.disk), (Some(1 << 30), Some(1 << 30)), "what is said wins");
    for profile in [PlanProfile::Universal, PlanProfile::Declared(Vec::new())] {
        assert_eq!(Plan { profile, ..plan() }.disk(), None);
    }
}

#[test]
fn every_field_that_is_wrong_is_named() {
    let declared = |volumes: Vec<PlanVolume>| move |plan: &mut Plan| plan.profile = PlanProfile::Declared(volumes);
    let health = |probe| HealthCheck { probe, interval: 30, timeout: 10, retries: 3, start_period: 60 };
    let tcp = || health(Probe::Tcp { port: 1 });
    let hook = |words: &[&str]| Hook {
        command: words.iter().map(|w| (*w).to_owned()).collect(),
        user: None,
        timeout: TIMEOUT_DEFAULT,
    };
    let none: [&str; 0] = [];
    assert_eq!(fields(|_| {}), none);
    assert_eq!(fields(|p| p.title.clear()), ["plans[0].title"]);
    assert_eq!(fields(|p| p.title = "a\nb".to_owned()), ["plans[0].title"]);
    assert_eq!(fields(|p| p.description = "x".repeat(4001)), ["plans[0].description"]);
    assert_eq!(fields(|p| p.image = "a b".to_owned()), ["plans[0].image"]);
    assert_eq!(fields(|p| p.image = "perennial-internal/x".to_owned()), ["plans[0].image"]);
    assert_eq!(fields(|p| p.command = Some(Vec::new())), ["plans[0].command"]);
    assert_eq!(fields(|p| p.entrypoint = Some(Vec::new())), ["plans[0].entrypoint"]);
    assert_eq!(fields(|p| p.runtime = Some("A".to_owned())), ["plans[0].runtime"]);
    assert_eq!(fields(|p| p.user = Some("a b".to_owned())), ["plans[0].user"]);
    assert_eq!(fields(|p| p.working_dir = Some("data".to_owned())), ["plans[0].workingDir"]);
    assert_eq!(fields(|p| p.stop_signal = Some("SIGNONE".to_owned())), ["plans[0].stopSignal"]);
    assert_eq!(fields(|p| p.stop_timeout = Some(3601)), ["plans[0].stopTimeout"]);
    assert_eq!(fields(|p| p.resources.nano_cpus = Some(0)), ["plans[0].resources.cpus"]);
    assert_eq!(fields(|p| p.resources.memory = size(1)), ["plans[0].resources.memory"]);
    assert_eq!(fields(|p| p.resources.memory_swap = size(1 << 30)), ["plans[0].resources.memorySwap"]);
    let reserved = |p: &mut Plan| {
        p.resources.memory = size(1 << 29);
        p.resources.memory_reservation = size(1 << 30);
    };
    assert_eq!(fields(reserved), ["plans[0].resources.memoryReservation"]);
    assert_eq!(fields(|p| p.resources.pids = Some(1)), ["plans[0].resources.pids"]);
    assert_eq!(fields(|p| p.resources.disk = size(1 << 20)), ["plans[0].resources.disk"]);
    assert_eq!(fields(|p| p.resources.disk = size(100 << 20)), ["plans[0].resources.disk"]);
    assert_eq!(fields(declared(vec![volume("A", "/a")])), ["plans[0].volumes[0].name"]);
    assert_eq!(fields(declared(vec![volume("a", "/a"), volume("system", "/b")])), ["plans[0].volumes[1].name"]);
    assert_eq!(fields(declared(vec![volume("a", "/a"), volume("a", "/b")])), ["plans[0].volumes[1].name"]);
    assert_eq!(fields(declared(vec![volume("a", "/a"), volume("b", "b")])), ["plans[0].volumes[1].mountPath"]);
    assert_eq!(fields(declared(vec![volume("a", "/proc/x")])), ["plans[0].volumes[0].mountPath"]);
    for (one, other) in [("/a", "/a"), ("/a/b", "/a"), ("/a", "/a/b")] {
        let both = vec![volume("a", one), volume("b", other)];
        assert_eq!(fields(declared(both)), ["plans[0].volumes[1].mountPath"], "{one} and {other}");
    }
    assert_eq!(fields(declared(vec![volume("a", "/a"), volume("b", "/ab")])), none, "beside each other");
    let small = PlanVolume { size: size(1), ..volume("a", "/a") };
    assert_eq!(fields(declared(vec![small])), ["plans[0].volumes[0].size"]);
    let class = PlanVolume { storage_class: Some("Local Path".to_owned()), ..volume("a", "/a") };
    assert_eq!(fields(declared(vec![class])), ["plans[0].volumes[0].storageClass"]);
    assert_eq!(fields(|p| p.ports = vec![0]), ["plans[0].ports[0]"]);
    assert_eq!(fields(|p| p.ports = vec![80, 443, 80]), ["plans[0].ports[2]"]);
    assert_eq!(fields(|p| p.ports = (1..=65).collect()), ["plans[0].ports"]);
    let env = |name: &str, value: EnvValue| {
        let name = name.to_owned();
        move |p: &mut Plan| drop(p.env.insert(name, value))
    };
    assert_eq!(fields(env("A=B", EnvValue::Plain(String::new()))), ["plans[0].env.A=B"]);
    assert_eq!(fields(env("A", EnvValue::Plain("\0".to_owned()))), ["plans[0].env.A"]);
    for length in [15, 257] {
        let short = EnvValue::Generated(Secret { length, alphabet: Alphabet::Hex });
        assert_eq!(fields(env("A", short)), ["plans[0].env.A.generate.length"]);
    }
    let checked = |health: HealthCheck| fields(|p| p.health = Some(health));
    assert_eq!(checked(tcp()), none);
    assert_eq!(checked(health(Probe::Tcp { port: 0 })), ["plans[0].health.tcp.port"]);
    assert_eq!(checked(health(Probe::Http { port: 1, path: "x".to_owned() })), ["plans[0].health.http.path"]);
    assert_eq!(checked(health(Probe::Exec { command: Vec::new() })), ["plans[0].health.exec.command"]);
    assert_eq!(
        checked(HealthCheck { interval: 0, timeout: 0, ..tcp() }),
        ["plans[0].health.interval", "plans[0].health.timeout"]
    );
    assert_eq!(checked(HealthCheck { timeout: 31, ..tcp() }), ["plans[0].health.timeout"]);
    assert_eq!(checked(HealthCheck { retries: 0, ..tcp() }), ["plans[0].health.retries"]);
    assert_eq!(checked(HealthCheck { start_period: 3601, ..tcp() }), ["plans[0].health.startPeriod"]);
    assert_eq!(fields(|p| p.snapshots.schedule = Some("61 * * * *".to_owned())), ["plans[0].snapshots.schedule"]);
    assert_eq!(fields(|p| p.snapshots.time_zone = Some("Mars".to_owned())), ["plans[0].snapshots.timeZone"]);
    let many = COUNT_MAX + 1;
    let keep = Keep { last: many, daily: many, minimum: many, ..Keep::default() };
    assert_eq!(
        fields(|p| p.snapshots.keep = Some(keep)),
        ["plans[0].snapshots.keep.last", "plans[0].snapshots.keep.daily", "plans[0].snapshots.keep.minimum"]
    );
    assert_eq!(fields(|p| p.hooks.after = Some(hook(&["a"]))), ["plans[0].hooks.after"]);
    let both = Hooks {
        before: Some(Hook { timeout: 0, user: Some("a b".to_owned()), ..hook(&[]) }),
        after: Some(hook(&[])),
        ..Hooks::default()
    };
    assert_eq!(
        fields(|p| p.hooks = both),
        [
            "plans[0].hooks.before.command",
            "plans[0].hooks.before.user",
            "plans[0].hooks.before.timeout",
            "plans[0].hooks.after.command",
        ]
    );
}

#[test]
fn one_mistake_hides_no_other() {
    let mut bad = plan();
    bad.image = "a b".to_owned();
    bad.user = Some(String::new());
    bad.resources.pids = Some(0);
    bad.ports = vec![0, 7, 7];
    let second = Plan { title: String::new(), ..plan() };
    let mistakes = service(vec![bad, second]).mistakes();
    let fields: Vec<&str> = mistakes.iter().map(|mistake| mistake.field.as_str()).collect();
    let first = ["image", "user", "resources.pids", "ports[0]", "ports[2]"].map(|field| format!("plans[0].{field}"));
    let expected: Vec<String> =
        first.into_iter().chain(["plans[1].name".to_owned(), "plans[1].title".to_owned()]).collect();
    assert_eq!(fields, expected);
    for mistake in &mistakes {
        assert!(!mistake.problem.is_empty() && !mistake.hint.is_empty(), "{mistake:?}");
    }
}

#[test]
fn a_service_has_one_to_fifty_plans() {
    let named = |n: usize| Plan { name: PlanName::parse(&format!("p{n}")).expect("a name"), ..plan() };
    let with = |count: usize| service((0..count).map(named).collect()).mistakes();
    assert_eq!(with(0)[0].field, "plans");
    assert_eq!(with(PLANS_MAX), []);
    assert_eq!(with(PLANS_MAX + 1)[0].field, "plans");
}

#[test]
fn what_looks_like_a_secret() {
    for (name, value) in [
        ("DB_PASSWORD", "x"),
        ("password", "x"),
        ("N8N_ENCRYPTION_KEY", "x"),
        ("API_TOKEN2", "x"),
        ("AUTH_SECRET", "x"),
        ("database.password", "x"),
        ("DATABASE_URL", "postgres://me:secret@db/app"),
    ] {
        assert!(looks_secret(name, value), "{name}");
    }
    for (name, value) in [
        ("DB_PASSWORD", ""),
        ("PASSWORD_FILE", "/run/secrets/x"),
        ("KEYBOARD", "de"),
        ("TOKEN_LIFETIME", "1h"),
        ("URL", "https://example.org/a:b@c"),
        ("URL", "https://me@example.org"),
        ("PORT", "5678"),
    ] {
        assert!(!looks_secret(name, value), "{name}");
    }
}
