//! Domain types into wire types, and requests into specifications.

use perennial_core::Error;
use perennial_core::engine::Capabilities;
use perennial_core::health::HealthState;
use perennial_core::hook::OnHookFailure;
use perennial_core::operation::{Event, Operation, OperationKind, OperationState};
use perennial_core::pod::{ConditionKind, Desired, Phase, Pod};
use perennial_core::progress::ProgressReading;
use perennial_core::snapshot::{Grade, Snapshot, SnapshotKind, SnapshotState};
use perennial_core::spec::{
    Backend, DeclaredVolume, OnStop, PodSpec, PortSpec, PrivilegeEscalation, Profile, Resources,
};
use perennial_core::volume::{SetState, UNIVERSAL, engine_name};

use super::{health, hooks, problem, retention, wire};
use crate::service::{AppSettings, Check, CheckState, RecoveryEntry, RecoveryState};
use crate::store::ExportOf;

/// Converts between an enum of the domain and the same names on the wire.
macro_rules! same_names {
    ($($domain:ident { $($variant:ident),* $(,)? })*) => { $(
        impl From<$domain> for wire::$domain {
            fn from(value: $domain) -> Self {
                match value { $($domain::$variant => Self::$variant),* }
            }
        }
        impl From<wire::$domain> for $domain {
            fn from(value: wire::$domain) -> Self {
                match value { $(wire::$domain::$variant => Self::$variant),* }
            }
        }
    )* };
}

same_names! {
    Desired { Running, Paused, Stopped, Archived, Deleted }
    Phase {
        Creating, Starting, Running, Pausing, Paused, Stopping, Stopped, Restoring, Resetting, Archived, Deleting,
        Deleted, Error,
    }
    OperationKind {
        Create, Clone, Start, Stop, Pause, Restart, Reset, Restore, Snapshot, SnapshotImport, SnapshotDelete, SnapshotDrill,
        Archive,
        Delete, Undelete, Purge,
    }
    OperationState { Pending, Running, Succeeded, Failed, Cancelled }
    SnapshotState { Pending, Uploaded, Verified, Failed }
    SnapshotKind { Manual, Scheduled, Final, Safety, Composed, Imported }
    Grade { Stopped, Frozen, Hooked }
    OnHookFailure { Fail, Continue }
    HealthState { Starting, Healthy, Unhealthy, Unknown }
    OnStop { Release, Pause }
    PrivilegeEscalation { Denied, Allowed }
}

impl From<Backend> for wire::Backend {
    fn from(backend: Backend) -> Self {
        match backend {
            Backend::Overlay => Self::Overlay,
            Backend::Engine => Self::Docker,
        }
    }
}

impl From<wire::Backend> for Backend {
    fn from(backend: wire::Backend) -> Self {
        match backend {
            wire::Backend::Overlay => Self::Overlay,
            wire::Backend::Docker => Self::Engine,
        }
    }
}

/// A pod as it is shown.
pub fn pod(pod: &Pod, latest: Option<&Snapshot>, settings: &AppSettings) -> wire::Pod {
    wire::Pod {
        id: pod.id.to_string(),
        name: pod.name.to_string(),
        tenant: pod.tenant.to_string(),
        desired: pod.desired.into(),
        phase: pod.phase.into(),
        spec_generation: pod.spec_generation,
        data_generation: pod.data_generation,
        system_layer_captured_at: pod.layer.as_ref().map(|l| l.captured_at),
        image: pod.spec.image.clone(),
        image_digest: pod.image.as_ref().map(|i| i.digest.clone().unwrap_or_else(|| i.id.clone())),
        runtime: pod.spec.runtime.clone(),
        container: container(pod),
        volumes: volumes(pod, settings),
        health: health::known(pod),
        conditions: conditions(pod).into_iter().chain(latest.and_then(damaged)).collect(),
        latest_snapshot: latest.map(|latest| snapshot(latest, settings)),
        proven_at: latest.and_then(|snapshot| snapshot.proven_at),
        next_snapshot_at: settings.next_snapshot_at(pod),
        spec: spec(&pod.spec),
        deleted_at: pod.trash.as_ref().map(|t| t.deleted_at),
        purge_at: pod.trash.as_ref().and_then(|t| t.purge_at),
        reset_count: pod.resets.count,
        last_reset_at: pod.resets.last_at,
        last_reset_snapshot: pod.resets.kept_in.map(|id| id.to_string()),
        created_at: pod.created_at,
        updated_at: pod.updated_at,
    }
}

pub fn container(pod: &Pod) -> Option<wire::Container> {
    pod.container.as_ref().map(|c| wire::Container { id: c.id.clone() })
}

pub fn conditions(pod: &Pod) -> Vec<wire::Condition> {
    let one = |c: &perennial_core::pod::Condition| wire::Condition {
        kind: c.kind.as_str().to_owned(),
        status: true,
        reason: c.reason.clone(),
        message: c.message.clone(),
        since: c.since,
    };
    pod.conditions.iter().map(one).collect()
}

/// What a drill found wrong with a snapshot, as a condition of its pod.
fn damaged(snapshot: &Snapshot) -> Option<wire::Condition> {
    let (damage, since) = (snapshot.damage.as_ref()?, snapshot.drilled_at?);
    Some(wire::Condition {
        kind: "SnapshotDamaged".to_owned(),
        status: true,
        reason: "drill-failed".to_owned(),
        message: format!("a drill of snapshot {} found damage: {damage}", snapshot.id),
        since,
    })
}

/// The volumes of the set that holds the data; while there is none, those that the next set is known to have.
pub fn volumes(pod: &Pod, settings: &AppSettings) -> Vec<wire::PodVolume> {
    let preparing = || pod.sets.iter().rfind(|s| s.state == SetState::Preparing);
    let Some(set) = pod.current_set().or_else(preparing) else { return planned_volumes(pod) };
    let has = |kind: ConditionKind| pod.conditions.iter().any(|c| c.kind == kind);
    let state = match set.state {
        SetState::Preparing => wire::VolumeState::Seeding,
        _ if has(ConditionKind::DataLost) => wire::VolumeState::Lost,
        _ if has(ConditionKind::DataPartial) => wire::VolumeState::Partial,
        SetState::Complete => wire::VolumeState::Complete,
        SetState::Retired | SetState::Quarantined => wire::VolumeState::Absent,
    };
    let one = |volume: &perennial_core::volume::Volume| wire::PodVolume {
        name: volume.name.clone(),
        mount_path: volume.mount_path.clone(),
        engine_name: Some(engine_name(&settings.volume_prefix, pod.id, set.number, &volume.name)),
        state,
    };
    set.volumes.iter().map(one).collect()
}

fn planned_volumes(pod: &Pod) -> Vec<wire::PodVolume> {
    let absent = |name: &str, path: &str| wire::PodVolume {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        engine_name: None,
        state: wire::VolumeState::Absent,
    };
    match &pod.spec.profile {
        Profile::Universal => UNIVERSAL.iter().map(|(name, path)| absent(name, path)).collect(),
        Profile::Declared(volumes) => volumes.iter().map(|v| absent(&v.name, &v.mount_path)).collect(),
    }
}

fn spec(spec: &PodSpec) -> wire::PodSpec {
    let declared = |v: &DeclaredVolume| wire::VolumeDeclaration {
        name: v.name.clone(),
        mount_path: v.mount_path.clone(),
        size: v.size.map(wire::Size),
    };
    wire::PodSpec {
        command: spec.command.clone(),
        entrypoint: spec.entrypoint.clone(),
        resources: wire::Resources {
            cpus: spec.resources.nano_cpus.map(|nano| wire::Cpus { nano }),
            memory: spec.resources.memory.map(wire::Size),
            memory_swap: spec.resources.memory_swap.map(wire::Size),
            memory_reservation: spec.resources.memory_reservation.map(wire::Size),
            pids: spec.resources.pids,
            disk: spec.resources.disk.map(wire::Size),
        },
        env: spec.env.clone(),
        secrets: spec.secrets.keys().cloned().collect(),
        plan: spec.plan.as_ref().map(|of| wire::PlanOfPod {
            service: of.path.service.to_string(),
            plan: of.path.plan.to_string(),
            revision: of.revision.clone(),
        }),
        working_dir: spec.working_dir.clone(),
        user: spec.user.clone(),
        volumes: match &spec.profile {
            Profile::Universal => None,
            Profile::Declared(volumes) => Some(volumes.iter().map(declared).collect()),
        },
        ports: spec.ports.iter().map(|p| wire::Port { container: p.container, host: p.host }).collect(),
        stop_signal: spec.stop_signal.clone(),
        stop_timeout: spec.stop_timeout,
        on_stop: spec.on_stop.into(),
        backend: spec.backend.map(Into::into),
        privilege_escalation: spec.privilege_escalation.into(),
        snapshots: retention::rules(&spec.snapshots),
        hooks: hooks::hooks(&spec.hooks),
        health: spec.health.as_ref().map(health::check),
    }
}

/// How far something is, where nobody knows how fast.
pub fn progress(step: &str, reading: ProgressReading) -> wire::Progress {
    wire::Progress {
        step: step.to_owned(),
        bytes_done: reading.bytes_done,
        bytes_total: reading.bytes_total,
        files_done: reading.files_done,
        bytes_per_second: None,
        seconds_left: None,
    }
}

/// An operation as it is shown.
pub fn operation(operation: &Operation) -> wire::Operation {
    wire::Operation {
        id: operation.id.to_string(),
        pod_id: operation.pod.to_string(),
        kind: operation.kind.into(),
        state: operation.state.into(),
        progress: progress(&operation.step, operation.progress),
        snapshot_id: operation.snapshot.map(|s| s.to_string()),
        error: operation.error.as_ref().map(problem::of_operation),
        actor: operation.actor.clone(),
        created_at: operation.created_at,
        finished_at: operation.finished_at,
    }
}

/// A snapshot as it is shown.
pub fn snapshot(snapshot: &Snapshot, settings: &AppSettings) -> wire::Snapshot {
    let volume = |v: &perennial_core::snapshot::SnapshotVolume| wire::SnapshotVolume {
        name: v.name.clone(),
        mount_path: v.mount_path.clone(),
        files: v.files,
        bytes: v.bytes,
    };
    // What was said of a replica that nobody keeps any more is not so for long.
    let replicates = settings.replication.is_some();
    let loss = |l: &perennial_core::snapshot::Loss| wire::Loss { path: l.path.clone(), reason: l.reason.clone() };
    wire::Snapshot {
        id: snapshot.id.to_string(),
        pod_id: snapshot.pod.to_string(),
        state: snapshot.state.into(),
        kind: snapshot.kind.into(),
        generation: snapshot.generation,
        created_at: snapshot.created_at,
        bytes: snapshot.bytes,
        new_bytes: snapshot.new_bytes,
        files: snapshot.files,
        volumes: snapshot.volumes.iter().map(volume).collect(),
        consistency: wire::Consistency {
            grade: snapshot.grade.map(Into::into),
            captured_at: snapshot.captured_at,
            frozen_millis: snapshot.frozen_millis,
            hooks: snapshot.hooks.as_ref().map(hooks::report),
            losses: snapshot.losses.iter().map(loss).collect(),
        },
        error: snapshot.error.clone(),
        proven_at: snapshot.proven_at,
        damage: snapshot.damage.clone(),
        replicated_at: snapshot.replicated_at.filter(|_| replicates),
        replica_problem: snapshot.replica_problem.clone().filter(|_| replicates),
    }
}

/// An event as it is shown.
pub fn event(event: &Event) -> wire::Event {
    let line = &event.line;
    wire::Event {
        id: event.id,
        at: line.at,
        actor: line.actor.clone(),
        tenant: line.tenant.to_string(),
        pod_id: line.pod.map(|p| p.to_string()),
        operation_id: line.operation.map(|o| o.to_string()),
        kind: line.kind.clone(),
        message: line.message.clone(),
    }
}

/// What an engine offers, as it is shown.
pub fn engine(capabilities: &Capabilities) -> wire::EngineInfo {
    wire::EngineInfo {
        version: capabilities.version.clone(),
        default_runtime: capabilities.default_runtime.clone(),
        runtimes: capabilities
            .runtimes
            .iter()
            .map(|r| wire::Runtime {
                name: r.name.clone(),
                overlay_volumes: r.overlay_volumes,
                root_changes: r.root_changes,
                freeze: r.freeze,
            })
            .collect(),
        backends: capabilities.backends.iter().map(|b| (*b).into()).collect(),
        notes: capabilities.notes.clone(),
    }
}

/// Whether somebody has a recovery kit, as it is shown.
pub fn recovery_status(state: &RecoveryState) -> wire::RecoveryStatus {
    wire::RecoveryStatus {
        exported_at: state.exported_at,
        missing: state.missing.iter().map(ToString::to_string).collect(),
    }
}

/// One repository of a recovery kit, as it is shown.
pub fn recovery_entry(entry: &RecoveryEntry) -> wire::RecoveryRepository {
    wire::RecoveryRepository {
        tenant: entry.tenant.to_string(),
        location: entry.location.clone(),
        password: wire::Secret(String::from_utf8_lossy(entry.password.reveal()).into_owned()),
        replica: entry.of == ExportOf::Replica,
    }
}

/// A check as it is shown.
pub fn check(check: &Check) -> wire::Check {
    wire::Check {
        name: check.name.to_owned(),
        status: match check.state {
            CheckState::Ok => wire::CheckStatus::Ok,
            CheckState::Warning => wire::CheckStatus::Warning,
            CheckState::Failed => wire::CheckStatus::Failed,
        },
        message: check.message.clone(),
        hint: Some(check.hint.clone()).filter(|h| !h.is_empty()),
    }
}

fn resources(wire: wire::Resources) -> Resources {
    Resources {
        nano_cpus: wire.cpus.map(|c| c.nano),
        memory: wire.memory.map(|s| s.0),
        memory_swap: wire.memory_swap.map(|s| s.0),
        memory_reservation: wire.memory_reservation.map(|s| s.0),
        pids: wire.pids,
        disk: wire.disk.map(|s| s.0),
    }
}

fn ports(ports: &[wire::Port]) -> Vec<PortSpec> {
    ports.iter().map(|p| PortSpec { container: p.container, host: p.host }).collect()
}

/// The specification of a new pod: what the request says over what its plan has, or its snapshot's pod, or over the defaults.
///
/// # Errors
/// [`Error::InvalidInput`] when there is no image, or a health check does not ask exactly one thing.
pub fn new_spec(create: &wire::CreatePod, base: Option<&PodSpec>) -> Result<PodSpec, Error> {
    let mut spec = match (base, &create.image) {
        (Some(base), _) => base.clone(),
        (None, Some(image)) => PodSpec::new(image),
        (None, None) => return Err(Error::invalid("image", "is missing", "write a reference such as debian:12")),
    };
    fn set<T: Clone>(field: &mut T, given: Option<&T>) {
        if let Some(given) = given {
            field.clone_from(given);
        }
    }
    fn set_some<T: Clone>(field: &mut Option<T>, given: Option<&T>) {
        if let Some(given) = given {
            *field = Some(given.clone());
        }
    }
    set(&mut spec.image, create.image.as_ref());
    set_some(&mut spec.command, create.command.as_ref());
    set_some(&mut spec.entrypoint, create.entrypoint.as_ref());
    set_some(&mut spec.runtime, create.runtime.as_ref());
    set(&mut spec.resources, create.resources.map(resources).as_ref());
    match &create.env {
        // What is not of the plan comes to it.
        Some(more) if spec.plan.is_some() => spec.env.extend(more.clone()),
        given => set(&mut spec.env, given.as_ref()),
    }
    set_some(&mut spec.working_dir, create.working_dir.as_ref());
    set_some(&mut spec.user, create.user.as_ref());
    set(&mut spec.ports, create.ports.as_deref().map(ports).as_ref());
    set_some(&mut spec.stop_signal, create.stop_signal.as_ref());
    set(&mut spec.stop_timeout, create.stop_timeout.as_ref());
    set(&mut spec.on_stop, create.on_stop.map(Into::into).as_ref());
    set_some(&mut spec.backend, create.backend.map(Into::into).as_ref());
    set(&mut spec.privilege_escalation, create.privilege_escalation.map(Into::into).as_ref());
    set(&mut spec.snapshots, create.snapshots.as_ref().map(retention::domain_rules).as_ref());
    set_some(&mut spec.health, create.health.as_ref().map(health::domain_check).transpose()?.as_ref());
    set(&mut spec.hooks, create.hooks.as_ref().map(hooks::domain_hooks).as_ref());
    if let Some(volumes) = &create.volumes {
        let declared = |v: &wire::VolumeDeclaration| DeclaredVolume {
            name: v.name.clone(),
            mount_path: v.mount_path.clone(),
            size: v.size.map(|s| s.0),
        };
        spec.profile = Profile::Declared(volumes.iter().map(declared).collect());
    }
    Ok(spec)
}

/// Applies a change: a field left out stays, null goes back to the default.
///
/// # Errors
/// [`Error::InvalidInput`] when a health check does not ask exactly one thing.
pub fn patched_spec(spec: &PodSpec, patch: &wire::PatchPod) -> Result<PodSpec, Error> {
    let default = PodSpec::new("");
    let mut next = spec.clone();
    fn set<T: Clone>(field: &mut T, given: Option<Option<T>>, default: &T) {
        if let Some(given) = given {
            *field = given.unwrap_or_else(|| default.clone());
        }
    }
    fn set_option<T: Clone>(field: &mut Option<T>, given: Option<&Option<T>>) {
        if let Some(given) = given {
            field.clone_from(given);
        }
    }
    set_option(&mut next.command, patch.command.as_ref());
    set_option(&mut next.entrypoint, patch.entrypoint.as_ref());
    set_option(&mut next.runtime, patch.runtime.as_ref());
    set_option(&mut next.working_dir, patch.working_dir.as_ref());
    set_option(&mut next.user, patch.user.as_ref());
    set_option(&mut next.stop_signal, patch.stop_signal.as_ref());
    set(&mut next.resources, patch.resources.map(|r| r.map(resources)), &default.resources);
    set(&mut next.env, patch.env.clone(), &default.env);
    set(&mut next.ports, patch.ports.as_ref().map(|p| p.as_deref().map(ports)), &default.ports);
    set(&mut next.stop_timeout, patch.stop_timeout, &default.stop_timeout);
    set(&mut next.on_stop, patch.on_stop.map(|o| o.map(Into::into)), &default.on_stop);
    set(
        &mut next.privilege_escalation,
        patch.privilege_escalation.map(|p| p.map(Into::into)),
        &default.privilege_escalation,
    );
    let rules = patch.snapshots.as_ref().map(|r| r.as_ref().map(retention::domain_rules));
    set(&mut next.snapshots, rules, &default.snapshots);
    let asked = patch.hooks.as_ref().map(|h| h.as_ref().map(hooks::domain_hooks));
    set(&mut next.hooks, asked, &default.hooks);
    if let Some(asked) = &patch.health {
        next.health = asked.as_ref().map(health::domain_check).transpose()?;
    }
    Ok(next)
}
