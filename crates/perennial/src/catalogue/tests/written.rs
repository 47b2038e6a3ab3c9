//! What is written reads back equal, whatever it is.

use std::collections::BTreeMap;

use perennial_core::hook::{Hook, Hooks, OnHookFailure};
use perennial_core::retention::{Keep, Manual};
use perennial_core::schedule::SnapshotRules;
use perennial_core::service::{
    AccessMode, EnvValue, HealthCheck, Plan, PlanName, PlanProfile, PlanResources, PlanVolume, Probe, Secret,
    ServiceName, Size,
};
use perennial_core::spec::{OnStop, PrivilegeEscalation};
use proptest::prelude::*;

use super::super::*;
use super::GOOD;

fn text() -> impl Strategy<Value = String> {
    // Quotes, backslashes and what drives a terminal are in it, too.
    prop_oneof!["[a-zA-Z0-9 .,_/-]{1,20}", "[ -~]{1,20}", Just("\"'''\\ \u{e9}\u{4e16}".to_owned())]
        .prop_filter("a title is not blank", |text| !text.trim().is_empty())
}

fn words() -> impl Strategy<Value = Option<Vec<String>>> {
    proptest::option::of(proptest::collection::vec("[ -~]{1,10}", 1..4))
}

fn size(least: u64) -> impl Strategy<Value = Option<Size>> {
    let written = move |mebi: u64| Size { bytes: mebi << 20, written: format!("{mebi}Mi") };
    proptest::option::of((least..4096).prop_map(written))
}

fn profile_of() -> impl Strategy<Value = PlanProfile> {
    let mode = prop_oneof![Just(AccessMode::ReadWriteOnce), Just(AccessMode::ReadWriteOncePod)];
    let volume = (size(16), proptest::option::of("[a-z]{1,8}(\\.[a-z]{1,8})?"), mode);
    let declared = |parts: Vec<(Option<Size>, Option<String>, AccessMode)>| {
        let one = |(i, (size, storage_class, access_mode))| PlanVolume {
            name: format!("v{i}"),
            mount_path: format!("/mount {i}/\u{e9}\""),
            size,
            storage_class,
            access_mode,
        };
        PlanProfile::Declared(parts.into_iter().enumerate().map(one).collect())
    };
    prop_oneof![Just(PlanProfile::Universal), proptest::collection::vec(volume, 0..4).prop_map(declared)]
}

fn env_of() -> impl Strategy<Value = BTreeMap<String, EnvValue>> {
    let name = prop_oneof![
        "[A-Z_]{1,8}",
        "[a-z.-]{1,8}",
        Just("DB_PASSWORD".to_owned()),
        Just("a b.mountPath \"c\"".to_owned())
    ];
    let alphabet = (0..ALPHABETS.len()).prop_map(|n| ALPHABETS[n].1);
    let secret = (16_u32..=256, alphabet).prop_map(|(length, alphabet)| Secret { length, alphabet });
    let value = prop_oneof![
        "[ -~\n\u{e9}]{0,20}".prop_map(EnvValue::Plain),
        Just(EnvValue::Plain("mysql://a:b@c".to_owned())),
        secret.prop_map(EnvValue::Generated),
    ];
    proptest::collection::btree_map(name, value, 0..5)
}

fn health_of() -> impl Strategy<Value = Option<HealthCheck>> {
    let probe = prop_oneof![
        (1_u16.., "/[a-z?=&]{0,10}").prop_map(|(port, path)| Probe::Http { port, path }),
        (1_u16..).prop_map(|port| Probe::Tcp { port }),
        proptest::collection::vec("[ -~]{1,10}", 1..4).prop_map(|command| Probe::Exec { command }),
    ];
    let check =
        (probe, 5_u32..=86_400, 1_u32..=100, 0_u32..=3600).prop_flat_map(|(probe, interval, retries, start_period)| {
            let check = move |timeout| HealthCheck { probe: probe.clone(), interval, timeout, retries, start_period };
            (1..=interval.min(60)).prop_map(check)
        });
    proptest::option::of(check)
}

fn snapshots_of() -> impl Strategy<Value = SnapshotRules> {
    let within = proptest::option::of((1_i64..10_000).prop_map(jiff::SignedDuration::from_hours));
    let keep = (any::<[u8; 7]>(), within, any::<bool>()).prop_map(|(n, within, manual)| Keep {
        last: n[0].into(),
        hourly: n[1].into(),
        daily: n[2].into(),
        weekly: n[3].into(),
        monthly: n[4].into(),
        yearly: n[5].into(),
        minimum: n[6].into(),
        within,
        manual: if manual { Manual::Rotated } else { Manual::Kept },
    });
    let schedule = proptest::option::of(prop_oneof![Just("0 3 * * *".to_owned()), Just("off".to_owned())]);
    let zone = proptest::option::of(Just("Europe/Berlin".to_owned()));
    (schedule, zone, proptest::option::of(keep)).prop_map(|(schedule, time_zone, keep)| SnapshotRules {
        schedule,
        time_zone,
        keep,
    })
}

fn hooks_of() -> impl Strategy<Value = Hooks> {
    let user = proptest::option::of("[a-z]{1,8}");
    let hook = (proptest::collection::vec("[ -~]{1,10}", 1..4), user, 1_u32..=600)
        .prop_map(|(command, user, timeout)| Hook { command, user, timeout });
    let fate = prop_oneof![Just(OnHookFailure::Fail), Just(OnHookFailure::Continue)];
    (proptest::option::of((hook.clone(), proptest::option::of(hook))), fate).prop_map(|(hooks, on_failure)| {
        let (before, after) = hooks.unzip();
        Hooks { before, after: after.flatten(), on_failure }
    })
}

fn plan_of() -> impl Strategy<Value = Plan> {
    let process = (words(), words(), proptest::option::of("[a-z0-9]{1,8}"), proptest::option::of("/[a-z ]{1,8}"));
    let limits =
        (proptest::option::of(10_000_000_u64..1_024_000_000_000), size(64), proptest::option::of(2_u32..4_000_000));
    let ports = proptest::collection::btree_set(1_u16.., 0..4).prop_map(|ports| ports.into_iter().collect::<Vec<_>>());
    let stop = (
        prop_oneof![Just(OnStop::Release), Just(OnStop::Pause)],
        proptest::option::of(Just("SIGINT".to_owned())),
        proptest::option::of(0_u32..=3600),
        prop_oneof![Just(PrivilegeEscalation::Denied), Just(PrivilegeEscalation::Allowed)],
    );
    let more = (profile_of(), env_of(), health_of(), snapshots_of(), hooks_of());
    ((text(), "[ -~\n]{0,40}"), process, limits, ports, stop, more).prop_map(
        |((title, description), process, (nano_cpus, memory, pids), ports, stop, more)| {
            let (command, entrypoint, user, working_dir) = process;
            let (on_stop, stop_signal, stop_timeout, privilege_escalation) = stop;
            let (profile, env, health, snapshots, hooks) = more;
            let half =
                memory.as_ref().map(|size| Size { bytes: size.bytes / 2, written: (size.bytes / 2).to_string() });
            Plan {
                name: PlanName::parse("basic").expect("a name"),
                title,
                description,
                image: "n8n:1".to_owned(),
                command,
                entrypoint,
                user,
                working_dir,
                runtime: None,
                profile,
                resources: PlanResources {
                    nano_cpus,
                    memory_swap: memory.clone(),
                    memory_reservation: half,
                    memory,
                    pids,
                    disk: None,
                },
                env,
                ports,
                health,
                on_stop,
                stop_signal,
                stop_timeout,
                privilege_escalation,
                snapshots,
                hooks,
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_is_written_reads_back_equal(plan in plan_of(), title in text()) {
        let name = ServiceName::parse("n8n").expect("a name");
        let service = Service { name, title, description: String::new(), plans: vec![plan] };
        prop_assert_eq!(service.mistakes(), []);
        prop_assert_eq!(service.plans[0].pod_spec().validate(), Ok(()));
        let toml = write_toml(&service);
        prop_assert_eq!(read_toml(&toml), Ok(service.clone()), "{}", toml);
        let json = serde_json::to_string(&definition(&service)).expect("json");
        prop_assert_eq!(read_json(json.as_bytes()), Ok(service), "{}", json);
    }

    #[test]
    fn whatever_a_file_holds_is_told_with_places_inside_it(cut in 0..GOOD.len(), junk in "[ -~\n\u{e9}]{0,10}") {
        let text = format!("{}{junk}{}", &GOOD[..cut], &GOOD[cut..]);
        let lines = text.lines().count() + 1;
        for mistake in read_toml(&text).err().unwrap_or_default() {
            prop_assert!(mistake.at.is_none_or(|(line, column)| line >= 1 && line <= lines && column >= 1), "{mistake:?}");
        }
    }
}
