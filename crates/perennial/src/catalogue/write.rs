//! A service as a document again: what is written reads back equal.

use perennial_core::hook::{Hook, Hooks};
use perennial_core::schedule::SnapshotRules;
use perennial_core::service::{
    AccessMode, EnvValue, HealthCheck, Plan, PlanProfile, PlanResources, PlanVolume, Probe, Service, Size, looks_secret,
};
use serde_json::Value;

use super::alphabet_of;
use super::mistake::Style;
use crate::api::retention;
use crate::api::wire;

/// A service as it is described.
#[must_use]
pub fn definition(service: &Service) -> wire::ServiceDefinition {
    wire::ServiceDefinition {
        name: service.name.to_string(),
        title: Some(service.title.clone()),
        description: some(&service.description),
        plans: service.plans.iter().map(plan).collect(),
    }
}

/// The same as a TOML file.
#[must_use]
pub fn toml(service: &Service) -> String {
    let value = serde_json::to_value(definition(service)).unwrap_or_default();
    toml::to_string_pretty(&in_toml_style(value, true)).unwrap_or_default()
}

/// Writes keys as TOML files have them, and leaves out what is null. Names of variables stay as they are.
fn in_toml_style(value: Value, keys: bool) -> Value {
    match value {
        Value::Object(entries) => {
            let entries = entries.into_iter().filter(|(_, value)| !value.is_null()).map(|(key, value)| {
                let value = in_toml_style(value, key != "env");
                (if keys { Style::Toml.key(&key) } else { key }, value)
            });
            Value::Object(entries.collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(|item| in_toml_style(item, true)).collect()),
        other => other,
    }
}

fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

fn seconds(seconds: u32) -> wire::TimeText {
    wire::TimeText(format!("{seconds}s"))
}

fn size(size: &Option<Size>) -> Option<wire::SizeText> {
    size.as_ref().map(|size| wire::SizeText(size.written.clone()))
}

fn plan(plan: &Plan) -> wire::PlanDefinition {
    let resources = resources(&plan.resources);
    wire::PlanDefinition {
        name: plan.name.to_string(),
        title: Some(plan.title.clone()),
        description: some(&plan.description),
        image: plan.image.clone(),
        command: plan.command.clone(),
        entrypoint: plan.entrypoint.clone(),
        user: plan.user.clone(),
        working_dir: plan.working_dir.clone(),
        runtime: plan.runtime.clone(),
        profile: Some(profile(plan)),
        ports: (!plan.ports.is_empty()).then(|| plan.ports.clone()),
        on_stop: Some(plan.on_stop.into()),
        stop_signal: plan.stop_signal.clone(),
        stop_timeout: plan.stop_timeout.map(seconds),
        privilege_escalation: Some(plan.privilege_escalation.into()),
        resources: (resources != wire::ResourcesDefinition::default()).then_some(resources),
        volumes: match &plan.profile {
            PlanProfile::Universal => None,
            PlanProfile::Declared(volumes) => Some(volumes.iter().map(volume).collect()),
        },
        env: (!plan.env.is_empty())
            .then(|| plan.env.iter().map(|(name, value)| (name.clone(), env(name, value))).collect()),
        health: plan.health.as_ref().map(health),
        snapshots: (plan.snapshots != SnapshotRules::default()).then(|| retention::rules(&plan.snapshots)),
        hooks: (plan.hooks != Hooks::default()).then(|| hooks(&plan.hooks)),
    }
}

/// What of a plan's pods persists.
pub(crate) const fn profile(plan: &Plan) -> wire::ServiceProfile {
    match plan.profile {
        PlanProfile::Universal => wire::ServiceProfile::Universal,
        PlanProfile::Declared(_) => wire::ServiceProfile::Declared,
    }
}

/// Who may mount a volume.
pub(crate) const fn access_mode(mode: AccessMode) -> wire::AccessMode {
    match mode {
        AccessMode::ReadWriteOnce => wire::AccessMode::ReadWriteOnce,
        AccessMode::ReadWriteOncePod => wire::AccessMode::ReadWriteOncePod,
    }
}

fn resources(resources: &PlanResources) -> wire::ResourcesDefinition {
    wire::ResourcesDefinition {
        cpus: resources.nano_cpus.map(|nano| wire::Cpus { nano }),
        memory: size(&resources.memory),
        memory_swap: size(&resources.memory_swap),
        memory_reservation: size(&resources.memory_reservation),
        pids: resources.pids,
        disk: size(&resources.disk),
    }
}

fn volume(volume: &PlanVolume) -> wire::VolumeDefinition {
    wire::VolumeDefinition {
        name: volume.name.clone(),
        mount_path: volume.mount_path.clone(),
        size: size(&volume.size),
        storage_class: volume.storage_class.clone(),
        access_mode: Some(access_mode(volume.access_mode)),
    }
}

fn env(name: &str, value: &EnvValue) -> wire::EnvDefinition {
    match value {
        EnvValue::Generated(secret) => {
            let (length, alphabet) = (secret.length, Some(alphabet_of(secret.alphabet)));
            let generate = wire::SecretDefinition { length, alphabet };
            wire::EnvDefinition::Generated(wire::GeneratedDefinition { generate })
        }
        EnvValue::Plain(text) if looks_secret(name, text) => {
            wire::EnvDefinition::Plain(wire::PlainDefinition { value: text.clone(), plain: true })
        }
        EnvValue::Plain(text) => wire::EnvDefinition::Text(text.clone()),
    }
}

fn health(health: &HealthCheck) -> wire::HealthDefinition {
    let common = wire::HealthDefinition {
        interval: Some(seconds(health.interval)),
        timeout: Some(seconds(health.timeout)),
        retries: Some(health.retries),
        start_period: Some(seconds(health.start_period)),
        ..wire::HealthDefinition::default()
    };
    match &health.probe {
        Probe::Http { port, path } => {
            let http = wire::HttpProbe { port: *port, path: Some(path.clone()) };
            wire::HealthDefinition { http: Some(http), ..common }
        }
        Probe::Tcp { port } => wire::HealthDefinition { tcp: Some(wire::TcpProbe { port: *port }), ..common },
        Probe::Exec { command } => {
            wire::HealthDefinition { exec: Some(wire::ExecProbe { command: command.clone() }), ..common }
        }
    }
}

fn hooks(hooks: &Hooks) -> wire::HooksDefinition {
    let one = |hook: &Hook| wire::HookDefinition {
        command: hook.command.clone(),
        user: hook.user.clone(),
        timeout: Some(seconds(hook.timeout)),
    };
    wire::HooksDefinition {
        before: hooks.before.as_ref().map(one),
        after: hooks.after.as_ref().map(one),
        on_failure: Some(hooks.on_failure.into()),
    }
}
