//! How pods, snapshots, operations and events look to people.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use indicatif::HumanDuration;
use jiff::Timestamp;
use perennial_core::progress::ProgressReading;

use super::human::{UNKNOWN, ago, instant, maybe_ago, maybe_size, size};
use super::out::{Colour, Out, clean};
use super::retention;
use super::table::{Facts, Rows};
use super::{health, hooks};
use crate::api::wire::{
    Backend, Condition, Event, MeasuredVolume, OnStop, Operation, OperationState, Phase, Pod, PodSecrets, PodStatus,
    PodVolume, PrivilegeEscalation, Resources, Snapshot, SnapshotState, VolumeState,
};

const fn phase_colour(phase: Phase) -> Option<Colour> {
    match phase {
        Phase::Error => Some(Colour::Red),
        Phase::Running | Phase::Paused | Phase::Stopped | Phase::Archived | Phase::Deleted => None,
        _ => Some(Colour::Yellow),
    }
}

/// A list of pods.
pub fn pods(pods: &[Pod], out: &Out, now: Timestamp) -> String {
    if pods.is_empty() {
        return "no pods".to_owned();
    }
    let tenants: BTreeSet<&str> = pods.iter().map(|pod| pod.tenant.as_str()).collect();
    let mut headings = vec!["NAME", "PHASE", "IMAGE", "SNAPSHOT", "CREATED", "ID"];
    if tenants.len() > 1 {
        headings.insert(1, "TENANT");
    }
    let mut rows = Rows::new(&headings);
    for pod in pods {
        let mut cells = vec![
            pod.name.clone(),
            phase(pod),
            pod.image.clone(),
            maybe_ago(pod.latest_snapshot.as_ref().map(|snapshot| snapshot.created_at), now),
            ago(pod.created_at, now),
            pod.id.clone(),
        ];
        if tenants.len() > 1 {
            cells.insert(1, pod.tenant.clone());
        }
        rows.row(phase_colour(pod.phase), cells);
    }
    rows.render(out)
}

/// Whether the pod never ran, so that it has no data of its own.
pub fn never_ran(pod: &Pod) -> bool {
    pod.data_generation == 0 && pod.latest_snapshot.is_none()
}

/// The phase, with the first thing that is wrong.
fn phase(pod: &Pod) -> String {
    match pod.conditions.first() {
        None if pod.phase == Phase::Stopped && never_ran(pod) => format!("{} (never ran)", pod.phase),
        Some(condition) => format!("{} ({})", pod.phase, condition.kind),
        None => pod.phase.to_string(),
    }
}

/// What was made for a pod alone, as variables are written.
pub fn secrets(secrets: &PodSecrets) -> String {
    if secrets.secrets.is_empty() {
        return "It has no secrets.\n".to_owned();
    }
    secrets.secrets.iter().map(|(name, value)| format!("{name}={}\n", value.0)).collect()
}

/// One pod.
pub fn pod(pod: &Pod, out: &Out, now: Timestamp) -> String {
    let mut facts = Facts::default();
    facts.fact("Name", &pod.name).fact("Id", &pod.id).fact("Tenant", &pod.tenant);
    facts.fact(
        "Phase",
        if pod.phase.as_str() == pod.desired.as_str() {
            pod.phase.to_string()
        } else {
            format!("{}, asked for: {}", pod.phase, pod.desired)
        },
    );
    facts
        .maybe("Plan", pod.spec.plan.as_ref().map(|of| format!("{}/{}", of.service, of.plan)))
        .fact("Image", &pod.image)
        .maybe("Image digest", pod.image_digest.as_ref())
        .fact("Runtime", pod.runtime.as_deref().unwrap_or("default"))
        .fact("Container", pod.container.as_ref().map_or(UNKNOWN, |container| short(&container.id)));
    facts.maybe("Command", pod.spec.command.as_ref().map(|words| words.join(" ")));
    facts.maybe("Secrets", (!pod.spec.secrets.is_empty()).then(|| pod.spec.secrets.join(", ")));
    facts.maybe("Limits", limits(&pod.spec.resources));
    facts.maybe("Ports", ports(pod));
    facts.maybe("Stop keeps data", (pod.spec.on_stop == OnStop::Pause).then_some("on the host"));
    facts.maybe("Backend", pod.spec.backend.map(backend));
    facts.maybe(
        "Privileges",
        (pod.spec.privilege_escalation == PrivilegeEscalation::Allowed).then_some("setuid programs work"),
    );
    facts
        .fact(
            "Data",
            match pod.data_generation {
                0 => "none of its own: it never ran".to_owned(),
                generation => format!("generation {generation}"),
            },
        )
        .maybe("System layer", pod.system_layer_captured_at.map(|at| format!("captured {}", ago(at, now))))
        .fact("Latest snapshot", pod.latest_snapshot.as_ref().map_or(UNKNOWN.to_owned(), |s| brief(s, now)))
        .maybe("Proven", pod.proven_at.map(|at| format!("restorable {}", ago(at, now))))
        .maybe("Next snapshot", pod.next_snapshot_at.map(|at| format!("{} ({})", instant(at), ago(at, now))))
        .maybe("Snapshots", retention::described(&pod.spec.snapshots))
        .maybe("Hook before", pod.spec.hooks.before.as_ref().map(hooks::described))
        .maybe("Hook after", pod.spec.hooks.after.as_ref().map(hooks::described))
        .maybe("Hook fails", hooks::on_failure(&pod.spec.hooks))
        .maybe("Health check", pod.spec.health.as_ref().map(health::described))
        .maybe("Health", pod.health.as_ref().map(|known| health::known(known, now)))
        .fact("Created", format!("{} ({})", instant(pod.created_at), ago(pod.created_at, now)))
        .maybe("Hidden since", pod.deleted_at.map(|at| ago(at, now)))
        .maybe("Destroyed", pod.purge_at.map(|at| format!("{} ({})", instant(at), ago(at, now))));
    let mut text = facts.render(out);
    if !pod.volumes.is_empty() {
        text = format!("{text}\n\n{}", volumes(&pod.volumes, out));
    }
    if !pod.conditions.is_empty() {
        text = format!("{text}\n\n{}", conditions(&pod.conditions, out, now));
    }
    text
}

/// An engine's id as its own tools shorten it.
pub fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

const fn backend(backend: Backend) -> &'static str {
    match backend {
        Backend::Overlay => "overlay",
        Backend::Docker => "docker",
    }
}

fn limits(resources: &Resources) -> Option<String> {
    let mut parts = Vec::new();
    if let Some(cpus) = resources.cpus {
        parts.push(format!("{cpus} CPUs"));
    }
    let sizes = [
        ("memory", resources.memory),
        ("swap", resources.memory_swap),
        ("soft memory", resources.memory_reservation),
        ("disk", resources.disk),
    ];
    parts.extend(sizes.iter().filter_map(|(name, bytes)| bytes.map(|bytes| format!("{name} {}", size(bytes.0)))));
    parts.extend(resources.pids.map(|pids| format!("{pids} processes")));
    (!parts.is_empty()).then(|| parts.join(", "))
}

fn ports(pod: &Pod) -> Option<String> {
    let text = pod.spec.ports.iter().map(|port| match port.host {
        Some(host) => format!("127.0.0.1:{host} to {}", port.container),
        None => format!("127.0.0.1:(any) to {}", port.container),
    });
    let text = text.collect::<Vec<_>>().join(", ");
    (!text.is_empty()).then_some(text)
}

/// A list of volumes and what they take up.
pub fn measured_volumes(volumes: &[MeasuredVolume], out: &Out) -> String {
    let with_size = |v: &MeasuredVolume| (v.volume.clone(), Some(maybe_size(v.used_bytes)));
    volume_table(&volumes.iter().map(with_size).collect::<Vec<_>>(), out)
}

fn volumes(volumes: &[PodVolume], out: &Out) -> String {
    volume_table(&volumes.iter().map(|v| (v.clone(), None)).collect::<Vec<_>>(), out)
}

/// With a column of sizes where there are any.
fn volume_table(volumes: &[(PodVolume, Option<String>)], out: &Out) -> String {
    let Some((_, used)) = volumes.first() else { return "no volumes".to_owned() };
    let used = used.as_ref().map(|_| "USED");
    let heads: Vec<&str> = ["VOLUME", "PATH", "STATE"].into_iter().chain(used).chain(["ON THE ENGINE"]).collect();
    let mut rows = Rows::new(&heads);
    for (volume, used) in volumes {
        let colour = match volume.state {
            VolumeState::Lost | VolumeState::Partial => Some(Colour::Red),
            VolumeState::Seeding => Some(Colour::Yellow),
            VolumeState::Absent | VolumeState::Complete => None,
        };
        let facts = [volume.name.clone(), volume.mount_path.clone(), volume.state.to_string()];
        let name = volume.engine_name.clone().unwrap_or_else(|| UNKNOWN.to_owned());
        rows.row(colour, facts.into_iter().chain(used.clone()).chain([name]));
    }
    rows.render(out)
}

fn conditions(conditions: &[Condition], out: &Out, now: Timestamp) -> String {
    let mut rows = Rows::new(&["CONDITION", "SINCE", "WHY"]);
    for condition in conditions {
        rows.row(
            Some(Colour::Yellow),
            [
                condition.kind.clone(),
                ago(condition.since, now),
                format!("{} ({})", condition.message, condition.reason),
            ],
        );
    }
    rows.render(out)
}

/// How a pod stands.
pub fn status(status: &PodStatus, names: &PodNames, out: &Out, now: Timestamp) -> String {
    let mut facts = Facts::default();
    facts
        .fact("Phase", status.phase.as_str())
        .fact("Asked for", status.desired.as_str())
        .fact("Container", status.container.as_ref().map_or(UNKNOWN, |container| short(&container.id)))
        .fact("Data seen", maybe_ago(status.data_seen_at, now))
        .fact("System layer", maybe_ago(status.system_layer_captured_at, now));
    if status.crashes > 0 {
        let memory = if status.out_of_memory { ", out of memory" } else { "" };
        let code = status.exit_code.map_or_else(|| "unknown".to_owned(), |code| code.to_string());
        facts.fact("Crashes", format!("{} in a row, exit code {code}{memory}", status.crashes));
    }
    if status.failed_tries > 0 {
        facts.fact("Failed tries", status.failed_tries.to_string());
    }
    facts.maybe("Next try", status.next_try_at.map(|at| ago(at, now)));
    let mut text = facts.render(out);
    if !status.operations.is_empty() {
        text = format!("{text}\n\n{}", operations(&status.operations, names, out, now));
    }
    if !status.conditions.is_empty() {
        text = format!("{text}\n\n{}", conditions(&status.conditions, out, now));
    }
    text
}

/// The names of pods by their ids.
pub type PodNames = BTreeMap<String, String>;

/// A pod's name; the id of one that is gone.
fn pod_name(names: &PodNames, id: &str) -> String {
    names.get(id).map_or_else(|| id.to_owned(), Clone::clone)
}

/// What is known to be missing from a snapshot, or wrong with it, in a few words; empty when nothing is.
pub fn flaws(snapshot: &Snapshot) -> String {
    let lost = match snapshot.consistency.losses.len() {
        0 => None,
        lost => Some(format!("{lost} lost")),
    };
    let damaged = snapshot.damage.as_ref().map(|_| "damaged".to_owned());
    lost.into_iter().chain(damaged).collect::<Vec<_>>().join(", ")
}

/// The state of a snapshot, with its flaws.
fn state(snapshot: &Snapshot) -> String {
    match flaws(snapshot) {
        flaws if flaws.is_empty() => snapshot.state.to_string(),
        flaws => format!("{}, {flaws}", snapshot.state),
    }
}

/// A snapshot in a few words.
pub fn brief(snapshot: &Snapshot, now: Timestamp) -> String {
    format!(
        "{} ({}, {}, {}, {})",
        snapshot.id,
        snapshot.kind,
        state(snapshot),
        maybe_size(snapshot.bytes),
        ago(snapshot.created_at, now)
    )
}

/// A list of snapshots.
pub fn snapshots(snapshots: &[Snapshot], names: &PodNames, out: &Out, now: Timestamp) -> String {
    if snapshots.is_empty() {
        return "no snapshots".to_owned();
    }
    let mut rows = Rows::new(&["ID", "KIND", "STATE", "SIZE", "NEW", "FILES", "CREATED", "POD"]);
    for snapshot in snapshots {
        rows.row(
            snapshot_colour(snapshot),
            [
                snapshot.id.clone(),
                snapshot.kind.to_string(),
                state(snapshot),
                maybe_size(snapshot.bytes),
                maybe_size(snapshot.new_bytes),
                snapshot.files.map_or_else(|| UNKNOWN.to_owned(), |files| files.to_string()),
                ago(snapshot.created_at, now),
                pod_name(names, &snapshot.pod_id),
            ],
        );
    }
    rows.render(out)
}

const fn snapshot_colour(snapshot: &Snapshot) -> Option<Colour> {
    match snapshot.state {
        SnapshotState::Verified => None,
        SnapshotState::Pending | SnapshotState::Uploaded => Some(Colour::Yellow),
        SnapshotState::Failed => Some(Colour::Red),
    }
}

/// One snapshot.
pub fn snapshot(snapshot: &Snapshot, out: &Out, now: Timestamp) -> String {
    let mut facts = Facts::default();
    let (before, after) = hooks::outcomes(snapshot.consistency.hooks.as_ref());
    facts
        .fact("Id", &snapshot.id)
        .fact("Pod", &snapshot.pod_id)
        .fact("Kind", snapshot.kind.as_str())
        .fact("State", snapshot.state.as_str())
        .maybe("Error", snapshot.error.as_ref())
        .maybe("Proven", snapshot.proven_at.map(|at| format!("restorable {}", ago(at, now))))
        .maybe("Damage", snapshot.damage.as_ref())
        .maybe("In the replica", snapshot.replicated_at.map(|at| format!("since {} ({})", instant(at), ago(at, now))))
        .maybe("Not in the replica", snapshot.replica_problem.as_ref())
        .fact("Generation", snapshot.generation.to_string())
        .fact(
            "Shows",
            match (snapshot.consistency.captured_at, snapshot.consistency.grade) {
                (Some(at), Some(grade)) => format!("{} ({}), {grade}", instant(at), ago(at, now)),
                (Some(at), None) => format!("{} ({})", instant(at), ago(at, now)),
                (None, _) => UNKNOWN.to_owned(),
            },
        )
        .maybe("Hook before", before)
        .maybe("Hook after", after)
        .maybe("Pod stood still", snapshot.consistency.frozen_millis.map(|millis| format!("{millis} ms")))
        .fact("Size", maybe_size(snapshot.bytes))
        .fact("New in repository", maybe_size(snapshot.new_bytes))
        .fact("Files", snapshot.files.map_or_else(|| UNKNOWN.to_owned(), |files| files.to_string()));
    let mut text = facts.render(out);
    if !snapshot.volumes.is_empty() {
        let mut rows = Rows::new(&["VOLUME", "PATH", "SIZE", "FILES"]);
        for volume in &snapshot.volumes {
            rows.row(
                None,
                [
                    volume.name.clone(),
                    volume.mount_path.clone(),
                    maybe_size(volume.bytes),
                    volume.files.map_or_else(|| UNKNOWN.to_owned(), |files| files.to_string()),
                ],
            );
        }
        text = format!("{text}\n\n{}", rows.render(out));
    }
    if !snapshot.consistency.losses.is_empty() {
        let mut rows = Rows::new(&["MISSING", "WHY"]);
        for loss in &snapshot.consistency.losses {
            rows.row(Some(Colour::Red), [loss.path.clone(), loss.reason.clone()]);
        }
        text = format!("{text}\n\n{}", rows.render(out));
    }
    text
}

/// A list of operations.
pub fn operations(operations: &[Operation], names: &PodNames, out: &Out, now: Timestamp) -> String {
    if operations.is_empty() {
        return "no operations".to_owned();
    }
    let mut rows = Rows::new(&["ID", "KIND", "STATE", "STEP", "CREATED", "POD"]);
    for operation in operations {
        let colour = match operation.state {
            OperationState::Pending | OperationState::Running => Some(Colour::Yellow),
            OperationState::Failed => Some(Colour::Red),
            OperationState::Succeeded | OperationState::Cancelled => None,
        };
        rows.row(
            colour,
            [
                operation.id.clone(),
                operation.kind.to_string(),
                operation.state.to_string(),
                step(operation).unwrap_or_else(|| UNKNOWN.to_owned()),
                ago(operation.created_at, now),
                pod_name(names, &operation.pod_id),
            ],
        );
    }
    rows.render(out)
}

/// One operation.
pub fn operation(operation: &Operation, out: &Out, now: Timestamp) -> String {
    let mut facts = Facts::default();
    facts
        .fact("Id", &operation.id)
        .fact("Kind", operation.kind.as_str())
        .fact("State", operation.state.as_str())
        .fact("Pod", &operation.pod_id)
        .maybe("Snapshot", operation.snapshot_id.as_ref())
        .maybe("Step", step(operation))
        .fact("Asked for by", &operation.actor)
        .fact("Created", format!("{} ({})", instant(operation.created_at), ago(operation.created_at, now)))
        .maybe("Finished", operation.finished_at.map(|at| format!("{} ({})", instant(at), ago(at, now))));
    if let Some(error) = &operation.error {
        let name = if operation.state.is_terminal() { "Error" } else { "Last failure" };
        facts.fact(name, format!("{} ({})", error.detail, error.code)).maybe("Hint", error.hint.as_ref());
    }
    facts.render(out)
}

/// The step an operation is at, and how far that is; `None` before the first.
pub fn step(operation: &Operation) -> Option<String> {
    let progress = &operation.progress;
    if progress.step.is_empty() {
        return None;
    }
    let reading = ProgressReading {
        bytes_done: progress.bytes_done,
        bytes_total: progress.bytes_total,
        files_done: progress.files_done,
    };
    let left = progress.seconds_left.map(Duration::from_secs);
    Some(how_far(clean(&progress.step), reading, progress.bytes_per_second, left))
}

/// What is done, how fast, and what is left, behind the name of the work; what nobody knows is left out.
pub fn how_far(name: String, reading: ProgressReading, rate: Option<u64>, left: Option<Duration>) -> String {
    let mut parts = vec![name];
    match (reading.bytes_done, reading.bytes_total) {
        (0, 0) => {}
        (done, 0) => parts.push(size(done)),
        (done, total) => parts.push(format!("{} of {}", size(done), size(total))),
    }
    if reading.files_done > 0 {
        parts.push(format!("{} files", reading.files_done));
    }
    parts.extend(rate.map(|rate| format!("{}/s", size(rate))));
    parts.extend(left.map(|left| format!("{} left", HumanDuration(left))));
    parts.join(", ")
}

/// One line of the audit trail.
pub fn event(event: &Event) -> String {
    let mut line = format!("{}  {:>6}  {}  {}", instant(event.at), event.id, clean(&event.kind), clean(&event.message));
    line.push_str(&format!("  by {}", clean(&event.actor)));
    if let Some(pod) = &event.pod_id {
        line.push_str(&format!("  pod {}", clean(pod)));
    }
    line
}
