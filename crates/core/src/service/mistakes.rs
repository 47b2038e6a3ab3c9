//! Everything that is wrong with a service.

use super::{EnvValue, HealthCheck, PLANS_MAX, Plan, Secret, Service};
use crate::error::Error;
use crate::hook::{Hook, Hooks, TIMEOUT_DEFAULT};
use crate::retention::Keep;
use crate::schedule::SnapshotRules;
use crate::spec::{PodSpec, PortSpec, Profile, Resources, is_at_or_below, shown};

/// Longest title, in characters.
const TITLE_MAX: usize = 100;
/// Longest description, in characters.
const DESCRIPTION_MAX: usize = 4000;
/// Most environment variables of a plan.
const ENV_MAX: usize = 256;
/// Most ports of a plan.
const PORTS_MAX: usize = 64;
/// Lengths of a secret, in characters: with 16 digits nobody guesses it, and few programs take more than 256.
const SECRET_LENGTH: std::ops::RangeInclusive<u32> = 16..=256;
/// Last words of names of variables that hold secrets.
const SECRET_WORDS: [&str; 11] =
    ["PASSWORD", "PASSWD", "PASSPHRASE", "PASS", "PWD", "SECRET", "TOKEN", "KEY", "APIKEY", "CREDENTIALS", "SALT"];

/// Something that is wrong with a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Where, such as `plans[0].volumes[1].mountPath`.
    pub field: String,
    /// What.
    pub problem: String,
    /// What to write instead.
    pub hint: String,
}

impl Mistake {
    /// Something wrong with this field.
    pub fn new(field: impl Into<String>, problem: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { field: field.into(), problem: problem.into(), hint: hint.into() }
    }

    /// What was refused below this place.
    fn below(place: &str, error: Error) -> Self {
        match error {
            Error::InvalidInput { field, problem, hint } => Self::new(format!("{place}.{field}"), problem, hint),
            other => Self::new(place, other.to_string(), ""),
        }
    }
}

impl Service {
    /// Everything that is wrong with it; nothing, when every plan can become a pod.
    #[must_use]
    pub fn mistakes(&self) -> Vec<Mistake> {
        let mut found = Vec::new();
        texts(&mut found, "", &self.title, &self.description);
        if self.plans.is_empty() || self.plans.len() > PLANS_MAX {
            let hint = format!("describe 1 to {PLANS_MAX} plans");
            found.push(Mistake::new("plans", format!("a service with {} plans", self.plans.len()), hint));
        }
        for (i, plan) in self.plans.iter().enumerate() {
            if self.plans[..i].iter().any(|earlier| earlier.name == plan.name) {
                let problem = format!("{} is used twice", shown(plan.name.as_str()));
                found.push(Mistake::new(
                    format!("plans[{i}].name"),
                    problem,
                    "name every plan of a service differently",
                ));
            }
            Looking { plan, place: format!("plans[{i}]"), found: &mut found }.look();
        }
        found
    }
}

fn texts(found: &mut Vec<Mistake>, place: &str, title: &str, description: &str) {
    let dot = if place.is_empty() { "" } else { "." };
    if title.trim().is_empty() || title.chars().count() > TITLE_MAX || title.chars().any(char::is_control) {
        let hint = format!("write what people call it, in one line of at most {TITLE_MAX} characters");
        found.push(Mistake::new(format!("{place}{dot}title"), "is empty, too long, or not one line", hint));
    }
    let lines = |c: char| c.is_control() && c != '\n' && c != '\t';
    if description.chars().count() > DESCRIPTION_MAX || description.chars().any(lines) {
        let hint = format!("write at most {DESCRIPTION_MAX} characters of text");
        found.push(Mistake::new(format!("{place}{dot}description"), "is too long, or not text", hint));
    }
}

/// One plan that is looked at.
struct Looking<'a> {
    plan: &'a Plan,
    place: String,
    found: &'a mut Vec<Mistake>,
}

impl Looking<'_> {
    fn look(mut self) {
        let before = self.found.len();
        texts(self.found, &self.place, &self.plan.title, &self.plan.description);
        self.process();
        self.limits();
        self.volumes();
        self.ports();
        self.env();
        self.health();
        self.snapshots();
        self.hooks();
        // Whatever has no line of its own above is refused all the same.
        if self.found.len() == before
            && let Err(error) = self.plan.pod_spec().validate()
        {
            self.found.push(Mistake::below(&self.place, error));
        }
    }

    /// Tries one thing of the plan in a specification that is good otherwise.
    fn alone(&mut self, change: impl FnOnce(&mut PodSpec)) -> bool {
        let mut spec = PodSpec::new("image");
        change(&mut spec);
        match spec.validate() {
            Ok(()) => true,
            Err(error) => {
                self.found.push(Mistake::below(&self.place, error));
                false
            }
        }
    }

    fn wrong(&mut self, field: &str, problem: impl Into<String>, hint: impl Into<String>) {
        self.found.push(Mistake::new(format!("{}.{field}", self.place), problem, hint));
    }

    fn process(&mut self) {
        let plan = self.plan;
        self.alone(|spec| spec.image.clone_from(&plan.image));
        self.alone(|spec| spec.command.clone_from(&plan.command));
        self.alone(|spec| spec.entrypoint.clone_from(&plan.entrypoint));
        self.alone(|spec| spec.runtime.clone_from(&plan.runtime));
        self.alone(|spec| spec.user.clone_from(&plan.user));
        self.alone(|spec| spec.working_dir.clone_from(&plan.working_dir));
        self.alone(|spec| spec.stop_signal.clone_from(&plan.stop_signal));
        self.alone(|spec| spec.stop_timeout = plan.stop_timeout.unwrap_or(spec.stop_timeout));
    }

    fn limits(&mut self) {
        let limits = self.plan.resources.limits();
        let none = Resources::default();
        self.alone(|spec| spec.resources = Resources { nano_cpus: limits.nano_cpus, ..none });
        self.alone(|spec| spec.resources = Resources { pids: limits.pids, ..none });
        let disk_is_good = self.alone(|spec| spec.resources = Resources { disk: limits.disk, ..none });
        let memory = limits.memory;
        let good = self.alone(|spec| spec.resources = Resources { memory, ..none });
        // The others are compared with it, which says nothing where it is wrong itself.
        let memory = memory.filter(|_| good);
        let reservation = limits.memory_reservation;
        self.alone(|spec| spec.resources = Resources { memory, memory_reservation: reservation, ..none });
        if good {
            self.alone(|spec| spec.resources = Resources { memory, memory_swap: limits.memory_swap, ..none });
        }
        if let (Some(disk), Some(volumes)) = (&self.plan.resources.disk, self.plan.declared_bytes())
            && disk_is_good
            && disk.bytes < volumes
        {
            let hint = "make it at least their sum, or leave it out: then it is";
            self.wrong("resources.disk", format!("{} is less than its volumes together", disk.written), hint);
        }
    }

    fn volumes(&mut self) {
        let volumes = self.plan.volumes();
        for (i, volume) in volumes.iter().enumerate() {
            let declared = |n: usize| volumes[n].declared();
            let field = format!("volumes[{i}]");
            self.numbered(&field, "volumes[0]", |spec| spec.profile = Profile::Declared(vec![declared(i)]));
            if let Some(class) = &volume.storage_class
                && !is_dns_name(class)
            {
                let hint = "write the name of a storage class, such as local-path";
                self.wrong(&format!("{field}.storageClass"), format!("{} is no name of one", shown(class)), hint);
            }
            for (j, earlier) in volumes.iter().enumerate().take(i) {
                let (one, other) = (&volume.mount_path, &earlier.mount_path);
                if volume.name == earlier.name {
                    let problem = format!("{} is used twice", shown(&volume.name));
                    self.wrong(&format!("{field}.name"), problem, "name every volume differently");
                }
                if is_at_or_below(one, other) || is_at_or_below(other, one) {
                    let problem = format!("{} overlaps {} of volumes[{j}]", shown(one), shown(other));
                    self.wrong(&format!("{field}.mountPath"), problem, "mount every volume beside the others");
                }
            }
        }
        if volumes.len() > 64 {
            self.wrong("volumes", format!("{} are too many", volumes.len()), "declare at most 64");
        }
    }

    fn ports(&mut self) {
        let ports = &self.plan.ports;
        if ports.len() > PORTS_MAX {
            self.wrong("ports", format!("{} are too many", ports.len()), format!("publish at most {PORTS_MAX}"));
            return;
        }
        for (i, port) in ports.iter().enumerate() {
            let one = PortSpec { container: *port, host: None };
            let field = format!("ports[{i}]");
            self.numbered(&field, "ports[0]", |spec| spec.ports = vec![one]);
            if ports[..i].contains(port) {
                self.wrong(&field, format!("{port} is published twice"), "publish every port once");
            }
        }
    }

    /// Tries one item of a list, and names it by its place in the plan.
    fn numbered(&mut self, field: &str, tried: &str, change: impl FnOnce(&mut PodSpec)) {
        let before = self.found.len();
        self.alone(change);
        for mistake in &mut self.found[before..] {
            if let Some((head, rest)) = mistake.field.split_once(tried) {
                mistake.field = format!("{head}{field}{rest}");
            }
        }
    }

    fn env(&mut self) {
        let plan = self.plan;
        if plan.env.len() > ENV_MAX {
            self.wrong("env", format!("{} variables are too many", plan.env.len()), format!("set at most {ENV_MAX}"));
        }
        for (name, value) in &plan.env {
            let field = format!("env.{name}");
            let text = match value {
                EnvValue::Plain(text) => text.clone(),
                EnvValue::Generated(_) => String::new(),
            };
            let before = self.found.len();
            self.alone(|spec| drop(spec.env.insert(name.clone(), text)));
            for mistake in &mut self.found[before..] {
                mistake.field = format!("{}.{field}", self.place);
            }
            if let EnvValue::Generated(Secret { length, .. }) = value
                && !SECRET_LENGTH.contains(length)
            {
                let (least, most) = SECRET_LENGTH.into_inner();
                let problem = format!("a secret of {length} characters");
                self.wrong(&format!("{field}.generate.length"), problem, format!("use {least} to {most}"));
            }
        }
    }

    fn health(&mut self) {
        for unfit in self.plan.health.iter().flat_map(HealthCheck::mistakes) {
            self.wrong(&unfit.field, unfit.problem, unfit.hint);
        }
    }

    fn snapshots(&mut self) {
        let plan = self.plan;
        let SnapshotRules { schedule, time_zone, keep } = &plan.snapshots;
        let none = SnapshotRules::default;
        self.alone(|spec| spec.snapshots = SnapshotRules { schedule: schedule.clone(), ..none() });
        self.alone(|spec| spec.snapshots = SnapshotRules { time_zone: time_zone.clone(), ..none() });
        for keep in keep.iter().flat_map(one_rule_each) {
            self.alone(|spec| spec.snapshots = SnapshotRules { keep: Some(keep), ..none() });
        }
    }

    fn hooks(&mut self) {
        let Hooks { before, after, .. } = &self.plan.hooks;
        let good = Hook { command: vec!["sync".to_owned()], user: None, timeout: TIMEOUT_DEFAULT };
        for hook in before.iter().flat_map(|hook| one_field_each(hook, &good)) {
            self.alone(|spec| spec.hooks.before = Some(hook));
        }
        for hook in after.iter().flat_map(|hook| one_field_each(hook, &good)) {
            self.alone(|spec| {
                spec.hooks = Hooks { before: Some(good.clone()), after: Some(hook), ..spec.hooks.clone() }
            });
        }
        if before.is_none() {
            self.alone(|spec| spec.hooks.after = after.as_ref().map(|_| good));
        }
    }
}

/// The rules, one at a time.
fn one_rule_each(keep: &Keep) -> [Keep; 8] {
    let none = Keep::default();
    [
        Keep { last: keep.last, ..none },
        Keep { hourly: keep.hourly, ..none },
        Keep { daily: keep.daily, ..none },
        Keep { weekly: keep.weekly, ..none },
        Keep { monthly: keep.monthly, ..none },
        Keep { yearly: keep.yearly, ..none },
        Keep { within: keep.within, ..none },
        Keep { minimum: keep.minimum, ..none },
    ]
}

/// The hook's fields, each in a hook that is good otherwise.
fn one_field_each(hook: &Hook, good: &Hook) -> [Hook; 3] {
    [
        Hook { command: hook.command.clone(), ..good.clone() },
        Hook { user: hook.user.clone(), ..good.clone() },
        Hook { timeout: hook.timeout, ..good.clone() },
    ]
}

/// Whether a variable of this name and value holds a secret, as far as one can tell.
#[must_use]
pub fn looks_secret(name: &str, value: &str) -> bool {
    let last = name.rsplit(['_', '-', '.']).next().unwrap_or(name).trim_end_matches(|c: char| c.is_ascii_digit());
    let word = last.to_ascii_uppercase();
    let named = SECRET_WORDS.contains(&word.as_str());
    // scheme://user:password@host
    let address = value.split_once("://").and_then(|(_, rest)| rest.split(['/', '?', '#']).next()?.rsplit_once('@'));
    let with_password = address.is_some_and(|(user, _)| user.split_once(':').is_some_and(|(_, word)| !word.is_empty()));
    (named && !value.is_empty()) || with_password
}

/// Whether this is a DNS name: labels of lower-case letters, digits and inner hyphens, with dots between.
fn is_dns_name(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let label = |l: &str| !l.is_empty() && l.chars().all(inner) && !l.starts_with('-') && !l.ends_with('-');
    text.len() <= 253 && text.split('.').all(label)
}
