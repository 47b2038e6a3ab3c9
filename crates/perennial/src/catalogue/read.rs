//! A document into a service, or everything that is wrong with it.

use std::collections::BTreeMap;

use perennial_core::Error;
use perennial_core::hook::{Hook, Hooks, OnHookFailure, TIMEOUT_DEFAULT};
use perennial_core::retention::{Keep, Manual};
use perennial_core::schedule::SnapshotRules;
use perennial_core::service::{
    AccessMode, EnvValue, HEALTH_INTERVAL, HEALTH_RETRIES, HEALTH_START_PERIOD, HEALTH_TIMEOUT, HealthCheck, Plan,
    PlanName, PlanProfile, PlanResources, PlanVolume, Probe, Secret, Service, ServiceName, looks_secret,
};
use perennial_core::spec::{OnStop, PrivilegeEscalation};

use super::fields::{Fields, Found, Reader};
use super::mistake::{MISTAKES_MAX, Mistake, MistakeKind, Style, line_and_column};
use super::tree::{Node, SyntaxError, Value, of_json, of_toml};

/// Longest document, in bytes.
pub const DOCUMENT_MAX: usize = 256 << 10;
/// Stands in for what could not be read while everything else is looked at.
const PLACEHOLDER: &str = "unknown";

/// Reads TOML: one service.
///
/// # Errors
/// Everything that is wrong with it, in the order of the document.
pub fn read_toml(text: &str) -> Result<Service, Vec<Mistake>> {
    if text.len() > DOCUMENT_MAX {
        return Err(vec![too_long()]);
    }
    let (root, errors) = of_toml(text);
    let lines: Vec<usize> = errors.iter().filter_map(|e| e.at).map(|at| line_and_column(text, at).0).collect();
    let syntax = |error: &SyntaxError| {
        let at = error.at.map(|at| line_and_column(text, at));
        Mistake {
            at,
            kind: MistakeKind::Syntax,
            field: String::new(),
            problem: error.problem.clone(),
            hint: toml_hint(),
        }
    };
    let mut mistakes: Vec<Mistake> = errors.iter().map(syntax).collect();
    let (service, found) = service(&root, Reader::new(Style::Toml, text));
    // What a broken line took along is not missing, and what is left of it means nothing.
    let is_broken = |m: &Mistake| m.at.is_some_and(|(line, _)| lines.contains(&line)) || m.kind == MistakeKind::Missing;
    mistakes.extend(found.into_iter().filter(|m| errors.is_empty() || !is_broken(m)));
    finish(service, mistakes)
}

/// Reads JSON: one service.
///
/// # Errors
/// Everything that is wrong with it.
pub fn read_json(text: &[u8]) -> Result<Service, Vec<Mistake>> {
    if text.len() > DOCUMENT_MAX {
        return Err(vec![too_long()]);
    }
    match of_json(text) {
        Ok(root) => {
            let (service, mistakes) = service(&root, Reader::new(Style::Json, ""));
            finish(service, mistakes)
        }
        Err(error) => {
            let (kind, hint) = (MistakeKind::Syntax, "send one JSON object".to_owned());
            Err(vec![Mistake { at: None, kind, field: String::new(), problem: error.problem, hint }])
        }
    }
}

fn toml_hint() -> String {
    "see https://toml.io for how TOML is written; texts stand in quotes".to_owned()
}

fn too_long() -> Mistake {
    let problem = format!("is longer than {} KiB", DOCUMENT_MAX >> 10);
    let hint = "describe one service in each document".to_owned();
    Mistake { at: None, kind: MistakeKind::InvalidValue, field: String::new(), problem, hint }
}

fn finish(service: Service, mut mistakes: Vec<Mistake>) -> Result<Service, Vec<Mistake>> {
    if mistakes.is_empty() {
        return Ok(service);
    }
    mistakes.sort_by_key(|mistake| mistake.at);
    if let Some(more) = mistakes.len().checked_sub(MISTAKES_MAX).filter(|more| *more > 0) {
        mistakes.truncate(MISTAKES_MAX);
        let (kind, field) = (MistakeKind::InvalidValue, String::new());
        mistakes.push(Mistake { at: None, kind, field, problem: format!("and {more} more"), hint: String::new() });
    }
    Err(mistakes)
}

/// Reads as much as can be read; what cannot is a mistake, and a placeholder in the service.
fn service(root: &Node, mut reader: Reader<'_>) -> (Service, Vec<Mistake>) {
    let top = Found { path: String::new(), node: root };
    let placeholder =
        Service { name: service_name(), title: PLACEHOLDER.to_owned(), description: String::new(), plans: Vec::new() };
    let Some(mut fields) = reader.table(&top, "describe one service") else {
        return (placeholder, reader.mistakes);
    };
    let name = name(&mut reader, &mut fields, "write a name such as \"n8n\"", ServiceName::parse);
    let title = reader.text(&mut fields, "title", "write what people call it");
    let description = reader.text(&mut fields, "description", "write a text").unwrap_or_default();
    let hint = "describe its plans, each below [[plans]]";
    let plans = reader.required(&mut fields, "plans", hint).and_then(|found| reader.items(&found, hint));
    let read = |(i, found): (usize, &Found<'_>)| plan(&mut reader, found, i);
    let plans: Vec<Plan> = plans.iter().flatten().enumerate().map(read).collect();
    reader.end(&fields);
    let name = name.unwrap_or_else(service_name);
    let title = title.unwrap_or_else(|| name.to_string());
    let service = Service { name, title, description, plans };
    let told: Vec<String> = reader.mistakes.iter().map(|mistake| mistake.field.clone()).collect();
    for mistake in service.mistakes() {
        if !told.contains(&reader.style.path(&mistake.field)) {
            reader.note_at_path(mistake);
        }
    }
    (service, reader.mistakes)
}

fn service_name() -> ServiceName {
    ServiceName::parse(PLACEHOLDER).expect("the placeholder is a name")
}

/// A name that has to be there.
fn name<T>(
    reader: &mut Reader<'_>,
    fields: &mut Fields<'_>,
    hint: &str,
    parse: impl FnOnce(&str) -> Result<T, Error>,
) -> Option<T> {
    let found = reader.required(fields, "name", hint)?;
    let text = reader.as_text(&found, hint)?;
    match parse(&text) {
        Ok(name) => Some(name),
        Err(Error::InvalidInput { problem, hint, .. }) => {
            reader.invalid(&found, problem, hint);
            None
        }
        Err(other) => {
            reader.invalid(&found, other.to_string(), hint);
            None
        }
    }
}

fn plan(reader: &mut Reader<'_>, found: &Found<'_>, number: usize) -> Plan {
    let Some(mut fields) = reader.table(found, "describe a plan below [[plans]]") else { return unknown_plan(number) };
    let f = &mut fields;
    let name = name(reader, f, "write a name such as \"basic\"", PlanName::parse);
    let title = reader.text(f, "title", "write what people call it");
    let description = reader.text(f, "description", "write a text").unwrap_or_default();
    let hint = "write a reference such as \"debian:12\"";
    let image = reader.required(f, "image", hint).and_then(|found| reader.as_text(&found, hint));
    let command = reader.words(f, "command");
    let entrypoint = reader.words(f, "entrypoint");
    let user = reader.text(f, "user", "write a name or a number in quotes, optionally :group");
    let working_dir = reader.text(f, "workingDir", "write an absolute path");
    let runtime = reader.text(f, "runtime", "write the name of a container runtime, such as \"runc\"");
    let profile = profile(reader, f);
    let resources = reader.field(f, "resources").map(|found| resources(reader, &found)).unwrap_or_default();
    let env = reader.field(f, "env").map(|found| env(reader, &found)).unwrap_or_default();
    let ports = reader.field(f, "ports").map(|found| ports(reader, &found)).unwrap_or_default();
    let health = reader.field(f, "health").and_then(|found| health(reader, &found));
    let on_stop = reader.choice(f, "onStop", &[("release", OnStop::Release), ("pause", OnStop::Pause)]);
    let stop_signal = reader.text(f, "stopSignal", "write the name of a signal, such as \"SIGTERM\"");
    let stop_timeout = reader.seconds(f, "stopTimeout");
    let gains = [("denied", PrivilegeEscalation::Denied), ("allowed", PrivilegeEscalation::Allowed)];
    let privilege_escalation = reader.choice(f, "privilegeEscalation", &gains).unwrap_or_default();
    let snapshots = reader.field(f, "snapshots").map(|found| snapshots(reader, &found)).unwrap_or_default();
    let hooks = reader.field(f, "hooks").map(|found| hooks(reader, &found)).unwrap_or_default();
    reader.end(&fields);
    let name = name.unwrap_or_else(|| plan_name(number));
    Plan {
        title: title.unwrap_or_else(|| name.to_string()),
        name,
        description,
        image: image.unwrap_or_else(|| PLACEHOLDER.to_owned()),
        command,
        entrypoint,
        user,
        working_dir,
        runtime,
        profile,
        resources,
        env,
        ports,
        health,
        on_stop: on_stop.unwrap_or_default(),
        stop_signal,
        stop_timeout,
        privilege_escalation,
        snapshots,
        hooks,
    }
}

/// A plan of which nothing can be read.
fn unknown_plan(number: usize) -> Plan {
    Plan {
        name: plan_name(number),
        title: PLACEHOLDER.to_owned(),
        description: String::new(),
        image: PLACEHOLDER.to_owned(),
        command: None,
        entrypoint: None,
        user: None,
        working_dir: None,
        runtime: None,
        profile: PlanProfile::Universal,
        resources: PlanResources::default(),
        env: BTreeMap::new(),
        ports: Vec::new(),
        health: None,
        on_stop: OnStop::default(),
        stop_signal: None,
        stop_timeout: None,
        privilege_escalation: PrivilegeEscalation::default(),
        snapshots: SnapshotRules::default(),
        hooks: Hooks::default(),
    }
}

/// The name of a plan whose own cannot be read; no two are alike.
fn plan_name(number: usize) -> PlanName {
    PlanName::parse(&format!("{PLACEHOLDER}-{number}")).expect("the placeholder is a name")
}

fn profile(reader: &mut Reader<'_>, fields: &mut Fields<'_>) -> PlanProfile {
    /// The two words.
    #[derive(Clone, Copy, PartialEq)]
    enum Word {
        Universal,
        Declared,
    }
    let is_said = fields.has("profile");
    let word = reader.choice(fields, "profile", &[("universal", Word::Universal), ("declared", Word::Declared)]);
    let hint = "describe every directory that persists, each below [[plans.volumes]]; none with volumes = []";
    if word == Some(Word::Declared) {
        let found = reader.required(fields, "volumes", hint);
        let items = found.and_then(|found| reader.items(&found, hint));
        return PlanProfile::Declared(
            items.iter().flatten().enumerate().map(|(i, item)| volume(reader, item, i)).collect(),
        );
    }
    if let Some(found) = reader.field(fields, "volumes")
        && (word.is_some() || !is_said)
    {
        let hint = "say profile = \"declared\" to persist these and nothing else, or leave them out";
        reader.invalid(&found, "the profile universal persists everything", hint);
    }
    PlanProfile::Universal
}

fn volume(reader: &mut Reader<'_>, found: &Found<'_>, number: usize) -> PlanVolume {
    let unknown = || (format!("{PLACEHOLDER}-{number}"), format!("/{PLACEHOLDER}-{number}"));
    let (mut name, mut mount_path) = unknown();
    let mut volume = PlanVolume {
        name: name.clone(),
        mount_path: mount_path.clone(),
        size: None,
        storage_class: None,
        access_mode: AccessMode::default(),
    };
    let Some(mut fields) = reader.table(found, "describe a volume below [[plans.volumes]]") else { return volume };
    let hint = "write a name such as \"n8n-data\"";
    if let Some(text) = reader.required(&mut fields, "name", hint).and_then(|found| reader.as_text(&found, hint)) {
        name = text;
    }
    let hint = "write the directory in the container, such as \"/data\"";
    if let Some(text) = reader.required(&mut fields, "mountPath", hint).and_then(|found| reader.as_text(&found, hint)) {
        mount_path = text;
    }
    volume.size = reader.size(&mut fields, "size");
    volume.storage_class = reader.text(&mut fields, "storageClass", "write the name of a storage class");
    volume.access_mode = access_mode(reader, &mut fields);
    reader.end(&fields);
    PlanVolume { name, mount_path, ..volume }
}

fn access_mode(reader: &mut Reader<'_>, fields: &mut Fields<'_>) -> AccessMode {
    const HINT: &str = "write ReadWriteOnce or ReadWriteOncePod";
    let Some(found) = reader.field(fields, "accessMode") else { return AccessMode::default() };
    match reader.as_text(&found, HINT).as_deref() {
        None | Some("ReadWriteOnce") => AccessMode::ReadWriteOnce,
        Some("ReadWriteOncePod") => AccessMode::ReadWriteOncePod,
        Some(mode @ ("ReadWriteMany" | "ReadOnlyMany")) => {
            reader.invalid(&found, format!("{mode} is not offered: a pod's data has one writer"), HINT);
            AccessMode::default()
        }
        Some(_) => {
            reader.invalid(&found, "is no access mode", HINT);
            AccessMode::default()
        }
    }
}

fn resources(reader: &mut Reader<'_>, found: &Found<'_>) -> PlanResources {
    let Some(mut fields) = reader.table(found, "write limits below [plans.resources]") else {
        return PlanResources::default();
    };
    let f = &mut fields;
    let memory = reader.size(f, "memory");
    let memory_swap = reader.size(f, "memorySwap");
    // A memory limit that cannot be read is there all the same.
    let memory_swap = if memory.is_none() && f.has("memory") { None } else { memory_swap };
    let read = PlanResources {
        nano_cpus: reader.cpus(f, "cpus"),
        memory_reservation: reader.size(f, "memoryReservation"),
        pids: reader.count(f, "pids", "write a whole number such as 512"),
        disk: reader.size(f, "disk"),
        memory,
        memory_swap,
    };
    reader.end(&fields);
    read
}

fn env(reader: &mut Reader<'_>, found: &Found<'_>) -> BTreeMap<String, EnvValue> {
    let Some(fields) = reader.table(found, "write variables below [plans.env]") else { return BTreeMap::new() };
    let entries = reader.entries(&fields);
    entries.into_iter().filter_map(|(name, found)| Some((name.clone(), env_value(reader, &name, &found)?))).collect()
}

fn env_value(reader: &mut Reader<'_>, name: &str, found: &Found<'_>) -> Option<EnvValue> {
    const PLAIN: &str = "write { generate = { length = 32 } } to have one made for every pod, or { value = \"…\", plain = true } \
        when every pod is to have this one and everybody may read it";
    let text = match &found.node.value {
        Value::Text(text) => text.clone(),
        Value::Table(_) => {
            let mut fields = reader.table(found, "")?;
            let secret = reader.field(&mut fields, "generate").and_then(|found| secret(reader, &found));
            let value = reader.text(&mut fields, "value", "write a text");
            // What cannot be read was told: it is not for this to guess what was meant.
            let is_plain = reader.boolean(&mut fields, "plain").or((!fields.has("plain")).then_some(false));
            reader.end(&fields);
            let text = match (fields.has("generate"), fields.has("value")) {
                (true, false) => return secret.map(EnvValue::Generated),
                (false, true) => value?,
                _ => {
                    reader.invalid(found, "has to have one of generate and value", PLAIN);
                    return None;
                }
            };
            if is_plain? {
                return Some(EnvValue::Plain(text));
            }
            text
        }
        _ => reader.as_text(found, "write a text in quotes, or { generate = { length = 32 } } for a secret")?,
    };
    if looks_secret(name, &text) {
        reader.invalid(found, "looks like a secret, and stands here in plain", PLAIN);
        return None;
    }
    Some(EnvValue::Plain(text))
}

fn secret(reader: &mut Reader<'_>, found: &Found<'_>) -> Option<Secret> {
    const LENGTH: &str = "write how many characters it has, such as 32";
    let mut fields = reader.table(found, "write { length = 32 }, with an alphabet if it matters")?;
    let length = reader.required(&mut fields, "length", LENGTH);
    let length = length.and_then(|found| reader.as_whole(&found, (0, u32::MAX), LENGTH));
    let alphabet = reader.choice(&mut fields, "alphabet", &super::ALPHABETS).unwrap_or_default();
    reader.end(&fields);
    Some(Secret { length: length?, alphabet })
}

fn ports(reader: &mut Reader<'_>, found: &Found<'_>) -> Vec<u16> {
    const HINT: &str = "write ports of the container, 1 to 65535, such as [8080]";
    let items = reader.items(found, HINT).unwrap_or_default();
    let port = |item: &Found<'_>| reader.as_whole(item, (1, 65535), HINT).and_then(|port| u16::try_from(port).ok());
    items.iter().filter_map(port).collect()
}

fn health(reader: &mut Reader<'_>, found: &Found<'_>) -> Option<HealthCheck> {
    const ONE: &str = "write one of http = { port, path }, tcp = { port } and exec = { command }";
    let mut fields = reader.table(found, ONE)?;
    let f = &mut fields;
    let http = reader.field(f, "http");
    let tcp = reader.field(f, "tcp");
    let exec = reader.field(f, "exec");
    let given = [&http, &tcp, &exec].into_iter().flatten().count();
    if given != 1 {
        let problem = if given == 0 { "does not say what is asked" } else { "asks more than one thing" };
        reader.invalid(found, problem, ONE);
    }
    let probe = if let Some(found) = http {
        probe_http(reader, &found)
    } else if let Some(found) = tcp {
        let mut fields = reader.table(&found, "write { port = 8080 }");
        fields.as_mut().and_then(|fields| {
            let port = port(reader, fields);
            reader.end(fields);
            Some(Probe::Tcp { port: port? })
        })
    } else if let Some(found) = exec {
        let mut fields = reader.table(&found, "write { command = [\"program\", \"argument\"] }");
        fields.as_mut().and_then(|fields| {
            let hint = "write the program and its arguments, such as [\"pg_isready\"]";
            let command = reader.required(fields, "command", hint).and_then(|found| reader.items(&found, hint));
            let words = command.map(|items| items.iter().filter_map(|item| reader.as_text(item, hint)).collect());
            reader.end(fields);
            Some(Probe::Exec { command: words? })
        })
    } else {
        None
    };
    let interval = reader.seconds(f, "interval").unwrap_or(HEALTH_INTERVAL);
    let timeout = reader.seconds(f, "timeout").unwrap_or_else(|| HEALTH_TIMEOUT.min(interval));
    let retries = reader.count(f, "retries", "write a whole number such as 3").unwrap_or(HEALTH_RETRIES);
    let start_period = reader.seconds(f, "startPeriod").unwrap_or(HEALTH_START_PERIOD);
    reader.end(&fields);
    Some(HealthCheck { probe: probe?, interval, timeout, retries, start_period })
}

fn probe_http(reader: &mut Reader<'_>, found: &Found<'_>) -> Option<Probe> {
    let mut fields = reader.table(found, "write { port = 8080, path = \"/healthz\" }")?;
    let port = port(reader, &mut fields);
    let path = reader.text(&mut fields, "path", "write a path such as \"/healthz\"");
    let path = path.unwrap_or_else(|| "/".to_owned());
    reader.end(&fields);
    Some(Probe::Http { port: port?, path })
}

fn port(reader: &mut Reader<'_>, fields: &mut Fields<'_>) -> Option<u16> {
    const HINT: &str = "write a port of the container, 1 to 65535";
    let found = reader.required(fields, "port", HINT)?;
    reader.as_whole(&found, (1, 65535), HINT).and_then(|port| u16::try_from(port).ok())
}

fn snapshots(reader: &mut Reader<'_>, found: &Found<'_>) -> SnapshotRules {
    let Some(mut fields) = reader.table(found, "write rules below [plans.snapshots]") else {
        return SnapshotRules::default();
    };
    let f = &mut fields;
    let rules = SnapshotRules {
        schedule: reader.text(f, "schedule", "write a cron expression such as \"0 3 * * *\", or \"off\""),
        time_zone: reader.text(f, "timeZone", "write a name such as \"Europe/Berlin\""),
        keep: reader.field(f, "keep").and_then(|found| keep(reader, &found)),
    };
    reader.end(&fields);
    rules
}

fn keep(reader: &mut Reader<'_>, found: &Found<'_>) -> Option<Keep> {
    let mut fields = reader.table(found, "write numbers below [plans.snapshots.keep]")?;
    let f = &mut fields;
    let mut count = |name| reader.count(f, name, "write a whole number such as 7").unwrap_or_default();
    let keep = Keep {
        last: count("last"),
        hourly: count("hourly"),
        daily: count("daily"),
        weekly: count("weekly"),
        monthly: count("monthly"),
        yearly: count("yearly"),
        minimum: count("minimum"),
        ..Keep::default()
    };
    let within = reader.age(f, "within");
    let manual = if reader.boolean(f, "manual").unwrap_or_default() { Manual::Rotated } else { Manual::Kept };
    reader.end(&fields);
    Some(Keep { within, manual, ..keep })
}

fn hooks(reader: &mut Reader<'_>, found: &Found<'_>) -> Hooks {
    let Some(mut fields) = reader.table(found, "write hooks below [plans.hooks]") else { return Hooks::default() };
    let f = &mut fields;
    let before = reader.field(f, "before").and_then(|found| hook(reader, &found));
    let after = reader.field(f, "after").and_then(|found| hook(reader, &found));
    let fate = [("fail", OnHookFailure::Fail), ("continue", OnHookFailure::Continue)];
    let on_failure = reader.choice(f, "onFailure", &fate).unwrap_or_default();
    // One that cannot be read is there all the same.
    let after = if before.is_none() && f.has("before") { None } else { after };
    reader.end(&fields);
    Hooks { before, after, on_failure }
}

fn hook(reader: &mut Reader<'_>, found: &Found<'_>) -> Option<Hook> {
    let mut fields = reader.table(found, "write { command = [\"program\", \"argument\"] }")?;
    let f = &mut fields;
    let hint = "write the program and its arguments";
    let command = reader.required(f, "command", hint).and_then(|found| reader.items(&found, hint));
    let command = command.map(|items| items.iter().filter_map(|item| reader.as_text(item, hint)).collect());
    let user = reader.text(f, "user", "write a name or a number in quotes");
    let timeout = reader.seconds(f, "timeout").unwrap_or(TIMEOUT_DEFAULT);
    reader.end(&fields);
    Some(Hook { command: command?, user, timeout })
}
