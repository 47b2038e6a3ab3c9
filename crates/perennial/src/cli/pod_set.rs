//! `perennial pod set`: changes some of a specification and leaves the rest.
//!
//! The API replaces whole fields (the environment, the limits), so what is there is read first and the change is put on
//! top of it, guarded by `If-Match`: when somebody else changed the pod in between, it is read and merged again.

use std::collections::BTreeMap;

use clap::{Args, ValueEnum};

use super::args::SpecArgs;
use super::client::Versioned;
use super::failure::{Exit, Failure};
use super::out::clean;
use super::session::Context;
use super::target::{self, Among};
use crate::api::wire::HealthCheck;
use crate::api::wire::{Hooks, PatchPod, Pod, PrivilegeEscalation, Resources, SnapshotRules};

/// How often a change is merged again because somebody else was faster.
const MERGES: u32 = 5;

/// Changes to a pod's specification.
#[derive(Debug, Clone, Args)]
#[group(required = false)]
pub struct SetArgs {
    /// The pod's name or id.
    pub pod: String,
    /// What changes.
    #[command(flatten)]
    pub spec: SpecArgs,
    /// Environment variables to remove
    #[arg(long, num_args = 1.., value_name = "NAME")]
    pub unset_env: Vec<String>,
    /// Ask no more whether the pod works
    #[arg(long, conflicts_with = "probe", help_heading = "Health")]
    pub no_health: bool,
    /// Take back to its default
    #[arg(long, num_args = 1.., value_enum, value_name = "FIELD")]
    pub unset: Vec<Field>,
}

/// What can be taken back to its default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Field {
    /// The image's own.
    Command,
    /// The image's own.
    Entrypoint,
    /// The installation's default.
    Runtime,
    /// No limit.
    Cpus,
    /// No limit.
    Memory,
    /// No limit.
    MemorySwap,
    /// No soft limit.
    MemoryReservation,
    /// No limit.
    Pids,
    /// No limit.
    Disk,
    /// The image's only.
    Env,
    /// The image's own.
    Workdir,
    /// The image's own.
    User,
    /// None published.
    Ports,
    /// The image's own, else SIGTERM.
    StopSignal,
    /// Ten seconds.
    StopTimeout,
    /// Release.
    OnStop,
    /// Denied.
    PrivilegeEscalation,
    /// The installation's.
    Schedule,
    /// The installation's.
    TimeZone,
    /// The installation's.
    Keep,
    /// None.
    Hooks,
    /// None.
    HookAfter,
}

/// Runs `pod set`.
pub async fn run(context: &mut Context<'_>, args: SetArgs) -> Result<(), Failure> {
    let found = target::pod(&context.client, &args.pod, Among::Living).await?;
    let mut merges = 0;
    let pod: Pod = loop {
        let Versioned { value: pod, etag } = context.client.get_versioned::<Pod>(&["pods", &found.id], &[]).await?;
        let patch = args.patch(&pod)?;
        if patch == PatchPod::default() {
            return Err(Failure::usage("nothing to change", "perennial pod set --help lists what can be changed"));
        }
        match context.client.patch(&["pods", &pod.id], etag, &patch).await {
            Err(failure) if failure.exit == Exit::Conflict && merges < MERGES => {
                merges += 1;
                // Only a pod that really changed can be merged again; every other conflict is final.
                let now: Pod = context.client.get(&["pods", &found.id], &[]).await?;
                if now.spec == pod.spec {
                    return Err(failure);
                }
            }
            result => break result?,
        }
    };
    context.show(&pod, |pod, _, _| {
        let mut text = format!("pod {} is changed (specification {})", clean(&pod.name), pod.spec_generation);
        for condition in &pod.conditions {
            text = format!("{text}\n{}: {}", clean(&condition.kind), clean(&condition.message));
        }
        text
    })
}

impl SetArgs {
    fn unsets(&self, field: Field) -> bool {
        self.unset.contains(&field)
    }

    /// The new value of a field: given, or back to the default; `None` leaves it as it is.
    fn change<T>(&self, field: Field, given: Option<T>) -> Option<Option<T>> {
        match given {
            Some(value) => Some(Some(value)),
            None => self.unsets(field).then_some(None),
        }
    }

    /// The change on top of what is there.
    fn patch(&self, pod: &Pod) -> Result<PatchPod, Failure> {
        Ok(PatchPod {
            command: self.change(Field::Command, words(&self.spec.command)),
            entrypoint: self.change(Field::Entrypoint, self.spec.entrypoint.clone().map(|program| vec![program])),
            runtime: self.change(Field::Runtime, self.spec.runtime.clone()),
            resources: self.resources(&pod.spec.resources),
            env: self.environment(&pod.spec.env),
            working_dir: self.change(Field::Workdir, self.spec.workdir.clone()),
            user: self.change(Field::User, self.spec.user.clone()),
            ports: self.change(Field::Ports, words(&self.spec.ports)),
            stop_signal: self.change(Field::StopSignal, self.spec.stop_signal.clone()),
            stop_timeout: self.change(Field::StopTimeout, self.spec.stop_timeout),
            on_stop: self.change(Field::OnStop, self.spec.on_stop),
            privilege_escalation: self.change(
                Field::PrivilegeEscalation,
                self.spec.allow_privilege_escalation.then_some(PrivilegeEscalation::Allowed),
            ),
            snapshots: self.snapshots(&pod.spec.snapshots),
            hooks: self.hooks(&pod.spec.hooks)?,
            health: self.health(pod.spec.health.as_ref())?,
        })
    }

    fn resources(&self, present: &Resources) -> Option<Option<Resources>> {
        let limits = &self.spec.limits;
        let merged = Resources {
            cpus: self.change(Field::Cpus, limits.cpus).unwrap_or(present.cpus),
            memory: self.change(Field::Memory, limits.memory).unwrap_or(present.memory),
            memory_swap: self.change(Field::MemorySwap, limits.memory_swap).unwrap_or(present.memory_swap),
            memory_reservation: self
                .change(Field::MemoryReservation, limits.memory_reservation)
                .unwrap_or(present.memory_reservation),
            pids: self.change(Field::Pids, limits.pids).unwrap_or(present.pids),
            disk: self.change(Field::Disk, limits.disk).unwrap_or(present.disk),
        };
        let fields =
            [Field::Cpus, Field::Memory, Field::MemorySwap, Field::MemoryReservation, Field::Pids, Field::Disk];
        let named = fields.iter().any(|field| self.unsets(*field));
        (named || merged != *present).then_some(Some(merged))
    }

    fn snapshots(&self, present: &SnapshotRules) -> Option<Option<SnapshotRules>> {
        let base = SnapshotRules {
            schedule: present.schedule.clone().filter(|_| !self.unsets(Field::Schedule)),
            time_zone: present.time_zone.clone().filter(|_| !self.unsets(Field::TimeZone)),
            keep: present.keep.filter(|_| !self.unsets(Field::Keep)),
        };
        let merged = self.spec.snapshots.over(&base).unwrap_or(base);
        (merged != *present).then_some(Some(merged))
    }

    fn hooks(&self, present: &Hooks) -> Result<Option<Option<Hooks>>, Failure> {
        let base = if self.unsets(Field::Hooks) { Hooks::default() } else { present.clone() };
        let base = Hooks { after: base.after.filter(|_| !self.unsets(Field::HookAfter)), ..base };
        let merged = self.spec.hooks.over(&base)?.unwrap_or(base);
        Ok((merged != *present).then_some(Some(merged)))
    }

    fn health(&self, present: Option<&HealthCheck>) -> Result<Option<Option<HealthCheck>>, Failure> {
        if self.no_health {
            return Ok(present.is_some().then_some(None));
        }
        let merged = self.spec.health.over(present)?;
        Ok(merged.filter(|merged| Some(merged) != present).map(Some))
    }

    fn environment(&self, present: &BTreeMap<String, String>) -> Option<Option<BTreeMap<String, String>>> {
        if self.spec.env.is_empty() && self.unset_env.is_empty() {
            return self.unsets(Field::Env).then_some(None);
        }
        let mut merged = if self.unsets(Field::Env) { BTreeMap::new() } else { present.clone() };
        merged.retain(|name, _| !self.unset_env.contains(name));
        merged.extend(self.spec.env.iter().cloned());
        Some(Some(merged))
    }
}

fn words<T: Clone>(given: &[T]) -> Option<Vec<T>> {
    (!given.is_empty()).then(|| given.to_vec())
}
