//! `perennial pod …`.

use jiff::Timestamp;
use serde::Serialize;

use super::args::{
    AcceptArgs, ActionArgs, CreateArgs, DestroyArgs, DestroyOptions, PodCommand, PodListArgs, PurgeArgs, WaitArgs,
};
use super::confirm::{Consent, Consequences, Verdict};
use super::events;
use super::failure::{Exit, Failure};
use super::human::{instant, maybe_size, size};
use super::out::clean;
use super::session::Context;
use super::snapshot;
use super::target::{self, Among};
use super::view;
use super::wait;
use crate::api::wire::{
    AcceptRequest, AdminAction, ConfirmRequest, CreatePod, Hooks, MeasuredVolume, Operation, OperationKind,
    OperationState, Pod, PodOperation, PodSecrets, PodStatus, PrivilegeEscalation, PurgeRequest, Resources, Snapshot,
    SnapshotRules, SnapshotState, VolumeState,
};

/// Where the data of a pod is that never ran.
const NO_DATA: &str = "there is none: the pod never ran, and has no data of its own";
/// No body at all.
const NOTHING: Option<&()> = None;

/// What came of an action.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Outcome {
    /// The pod afterwards; null when it is gone.
    pod: Option<Pod>,
    /// The work.
    operation: Operation,
}

/// Runs a command on pods.
pub async fn run(context: &mut Context<'_>, command: PodCommand) -> Result<(), Failure> {
    match command {
        PodCommand::Create(args) => create(context, *args).await,
        PodCommand::Ls(args) => list(context, &args).await,
        PodCommand::Show(args) => {
            let pod = target::pod(&context.client, &args.pod, Among::All).await?;
            context.show(&pod, view::pod)
        }
        PodCommand::Status(args) => {
            let pod = target::pod(&context.client, &args.pod, Among::All).await?;
            let status: PodStatus = context.client.get(&["pods", &pod.id, "status"], &[]).await?;
            let names = snapshot::names(std::slice::from_ref(&pod));
            context.show(&status, |status, out, now| view::status(status, &names, out, now))
        }
        PodCommand::Volumes(args) => {
            let pod = target::pod(&context.client, &args.pod, Among::All).await?;
            let volumes: Vec<MeasuredVolume> = context.client.list(&["pods", &pod.id, "volumes"], &[]).await?;
            context.show(&volumes, |volumes, out, _| view::measured_volumes(volumes, out))
        }
        PodCommand::Secrets(args) => {
            let pod = target::pod(&context.client, &args.pod, Among::All).await?;
            let secrets: PodSecrets = context.client.get(&["pods", &pod.id, "secrets"], &[]).await?;
            context.show(&secrets, |secrets, _, _| view::secrets(secrets))
        }
        PodCommand::Logs(args) => super::logs::show(context, &args).await,
        PodCommand::Events { pod, args } => {
            let pod = target::pod(&context.client, &pod, Among::All).await?;
            events::show(context, &args, Some(&pod.id)).await
        }
        PodCommand::Set(args) => super::pod_set::run(context, *args).await,
        PodCommand::Start(args) => act(context, &args, "start", Among::Living).await,
        PodCommand::Pause(args) => act(context, &args, "pause", Among::Living).await,
        PodCommand::Restart(args) => act(context, &args, "restart", Among::Living).await,
        PodCommand::Undelete(args) => act(context, &args, "undelete", Among::Hidden).await,
        PodCommand::Stop(args) => release(context, args, "stop").await,
        PodCommand::Archive(args) => release(context, args, "archive").await,
        PodCommand::Reset(args) => {
            let pod = target::pod(&context.client, &args.pod, Among::Living).await?;
            reset(context, &pod, args.options, &["pods", &pod.id, "reset"]).await
        }
        PodCommand::Restore(args) => super::pod_restore::restore(context, args).await,
        PodCommand::Clone(args) => super::pod_restore::clone(context, args).await,
        PodCommand::Rm(args) => remove(context, args).await,
        PodCommand::Purge(args) => purge(context, args).await,
    }
}

async fn create(context: &mut Context<'_>, args: CreateArgs) -> Result<(), Failure> {
    let spec = args.spec;
    let limits = spec.limits;
    let resources = Resources {
        cpus: limits.cpus,
        memory: limits.memory,
        memory_swap: limits.memory_swap,
        memory_reservation: limits.memory_reservation,
        pids: limits.pids,
        disk: limits.disk,
    };
    let from_snapshot = match &args.from_snapshot {
        Some(text) => Some(target::any_snapshot(context, text).await?),
        None => None,
    };
    let request = CreatePod {
        name: args.name,
        plan: args.plan,
        image: args.image,
        command: (!spec.command.is_empty()).then_some(spec.command),
        entrypoint: spec.entrypoint.map(|program| vec![program]),
        runtime: spec.runtime,
        resources: (resources != Resources::default()).then_some(resources),
        env: (!spec.env.is_empty()).then(|| spec.env.into_iter().collect()),
        working_dir: spec.workdir,
        user: spec.user,
        volumes: (args.no_volumes || !args.volumes.is_empty()).then_some(args.volumes),
        ports: (!spec.ports.is_empty()).then_some(spec.ports),
        stop_signal: spec.stop_signal,
        stop_timeout: spec.stop_timeout,
        on_stop: spec.on_stop,
        backend: args.backend,
        privilege_escalation: spec.allow_privilege_escalation.then_some(PrivilegeEscalation::Allowed),
        snapshots: spec.snapshots.over(&SnapshotRules::default()),
        hooks: spec.hooks.over(&Hooks::default())?,
        health: spec.health.over(None)?,
        tenant: args.tenant,
        from_snapshot,
    };
    let answer = context.client.post(&["pods"], Some(&request)).await?;
    follow(context, answer, args.wait).await
}

async fn list(context: &mut Context<'_>, args: &PodListArgs) -> Result<(), Failure> {
    let mut query = Vec::new();
    if args.all {
        query.push(("visibility", "all"));
    }
    query.extend(args.tenant.as_deref().map(|tenant| ("tenant", tenant)));
    let pods: Vec<Pod> = context.client.list(&["pods"], &query).await?;
    if args.quiet {
        return context.show_ids(pods.iter().map(|pod| pod.id.as_str()));
    }
    context.show(&pods, |pods, out, now| view::pods(pods, out, now))
}

async fn act(context: &mut Context<'_>, args: &ActionArgs, verb: &'static str, among: Among) -> Result<(), Failure> {
    let pod = target::pod(&context.client, &args.pod, among).await?;
    let answer = context.client.post(&["pods", &pod.id, verb], NOTHING).await?;
    follow(context, answer, args.wait).await
}

/// Stop and archive: nothing to confirm, unless losses are accepted.
async fn release(context: &mut Context<'_>, args: AcceptArgs, verb: &'static str) -> Result<(), Failure> {
    let pod = target::pod(&context.client, &args.pod, Among::Living).await?;
    let body = accept(context, &pod, verb, &args)?;
    let answer = context.client.post(&["pods", &pod.id, verb], body.as_ref()).await?;
    follow(context, answer, args.wait).await
}

/// The confirmed losses of a snapshot that is about to be taken; `None` when there are none.
pub fn accept(
    context: &mut Context<'_>,
    pod: &Pod,
    action: &'static str,
    args: &AcceptArgs,
) -> Result<Option<AcceptRequest>, Failure> {
    let paths = args.accept.accept_loss.clone();
    if paths.is_empty() {
        return Ok(None);
    }
    let mut plan = Consequences::new(action, pod);
    losses(&mut plan, &paths);
    if action == "snapshot" {
        "on the host as before, and without these paths in the snapshot".clone_into(&mut plan.copy);
    } else {
        plan.effect("container and volumes", "removed from the host", format!("that is what {action} does"));
        plan.copy = repository(pod, "a final snapshot without these paths");
    }
    "none for these paths; older snapshots may hold them".clone_into(&mut plan.way_back);
    plan.confirm(Consent::from_options(args.accept.yes, false), context)?;
    Ok(Some(AcceptRequest { accept_loss: Some(paths), confirm: Some(pod.name.clone()) }))
}

/// Resets a pod by the route at `path`, after a confirmation.
pub async fn reset(
    context: &mut Context<'_>,
    pod: &Pod,
    options: DestroyOptions,
    path: &[&str],
) -> Result<(), Failure> {
    let plan = reset_plan(pod, &options.accept.accept_loss);
    if plan.confirm(Consent::from_options(options.accept.yes, options.dry_run), context)? == Verdict::Shown {
        return Ok(());
    }
    let body = ConfirmRequest { confirm: pod.name.clone(), accept_loss: some(options.accept.accept_loss) };
    let answer = context.client.post(path, Some(&body)).await?;
    follow(context, answer, options.wait).await
}

async fn remove(context: &mut Context<'_>, args: DestroyArgs) -> Result<(), Failure> {
    let pod = target::pod(&context.client, &args.pod, Among::Living).await?;
    let options = args.options;
    let plan = delete_plan(&pod, &options.accept.accept_loss, context.now());
    if plan.confirm(Consent::from_options(options.accept.yes, options.dry_run), context)? == Verdict::Shown {
        return Ok(());
    }
    let body = some(options.accept.accept_loss)
        .map(|paths| AcceptRequest { accept_loss: Some(paths), confirm: Some(pod.name.clone()) });
    let answer = context.client.delete(&["pods", &pod.id], body.as_ref()).await?;
    follow(context, answer, options.wait).await
}

async fn purge(context: &mut Context<'_>, args: PurgeArgs) -> Result<(), Failure> {
    let pod = target::pod(&context.client, &args.pod, Among::All).await?;
    let consent = Consent::from_options(args.yes, args.dry_run);
    if consent != Consent::Given {
        let snapshots: Vec<Snapshot> = context.client.list(&["pods", &pod.id, "snapshots"], &[]).await?;
        if purge_plan(&pod, &snapshots).confirm(consent, context)? == Verdict::Shown {
            return Ok(());
        }
    }
    let body = PurgeRequest { confirm: pod.name.clone() };
    let answer = context.client.post(&["pods", &pod.id, "purge"], Some(&body)).await?;
    follow(context, answer, args.wait).await
}

/// What a reset or a deletion of somebody's pod means.
pub fn plan_of(context: &Context<'_>, pod: &Pod, action: AdminAction) -> Consequences {
    match action {
        AdminAction::Delete => delete_plan(pod, &[], context.now()),
        _ => reset_plan(pod, &[]),
    }
}

fn reset_plan(pod: &Pod, accepted: &[String]) -> Consequences {
    let mut plan = Consequences::new("reset", pod);
    replaced(&mut plan, pod, &format!("what image {} holds", pod.image), "reset makes the pod new");
    losses(&mut plan, accepted);
    safety(&mut plan, pod);
    plan
}

fn delete_plan(pod: &Pod, accepted: &[String], now: Timestamp) -> Consequences {
    let mut plan = Consequences::new("delete", pod);
    let verified = if view::never_ran(pod) {
        "the pod never ran, and has no data of its own"
    } else {
        "a verified final snapshot holds the data before this happens"
    };
    if let Some(container) = &pod.container {
        plan.effect(format!("container {}", view::short(&container.id)), "removed", verified);
    }
    if let Some(volumes) = on_host(pod) {
        plan.effect(volumes, "deleted from the host", verified);
    }
    plan.effect(
        format!("pod {}", pod.name),
        "hidden, and destroyed with all its snapshots when the undelete window ends (7 days, unless configured)",
        "delete means that",
    );
    losses(&mut plan, accepted);
    plan.copy = match (&pod.latest_snapshot, on_host(pod)) {
        (Some(latest), None) => repository(pod, &format!("snapshot {}", view::brief(latest, now))),
        _ if view::never_ran(pod) => NO_DATA.to_owned(),
        _ => repository(pod, "the final snapshot, taken and verified first; if that fails, everything stays"),
    };
    plan.way_back = format!("perennial pod undelete {}, until the window ends", pod.name);
    plan
}

fn purge_plan(pod: &Pod, snapshots: &[Snapshot]) -> Consequences {
    let why = "purge destroys everything of the pod";
    let mut plan = Consequences::new("purge", pod);
    if let Some(container) = &pod.container {
        plan.effect(format!("container {}", view::short(&container.id)), "removed", why);
    }
    if let Some(volumes) = on_host(pod) {
        plan.effect(volumes, "deleted from the host, without a snapshot", why);
    }
    if !snapshots.is_empty() {
        let verified = snapshots.iter().filter(|snapshot| snapshot.state == SnapshotState::Verified);
        let bytes: u64 = verified.clone().filter_map(|snapshot| snapshot.bytes).fold(0, u64::saturating_add);
        plan.effect(
            format!("all {} snapshots ({} verified, {} of content)", snapshots.len(), verified.count(), size(bytes)),
            "forgotten and pruned from the repository",
            why,
        );
    }
    plan.effect(format!("pod {}", pod.name), "gone", why);
    if view::never_ran(pod) { NO_DATA } else { "nowhere: no copy is left" }.clone_into(&mut plan.copy);
    "none".clone_into(&mut plan.way_back);
    plan
}

/// The effects of replacing a pod's data.
pub fn replaced(plan: &mut Consequences, pod: &Pod, source: &str, why: &str) {
    if let Some(container) = &pod.container {
        plan.effect(
            format!("container {}", view::short(&container.id)),
            "removed and created again",
            "its volumes are replaced",
        );
    }
    match on_host(pod) {
        Some(volumes) => plan.effect(volumes, format!("replaced by {source}"), why),
        None => plan.effect("the pod's data", format!("replaced by {source}"), why),
    }
    plan.effect("changes outside volumes (system layer)", "replaced as well", "a data set is atomic");
}

pub fn safety(plan: &mut Consequences, pod: &Pod) {
    plan.copy = match (&pod.latest_snapshot, on_host(pod)) {
        (Some(latest), None) => repository(pod, &format!("snapshot {} as before", latest.id)),
        _ if view::never_ran(pod) => NO_DATA.to_owned(),
        _ => repository(pod, "a safety snapshot, taken and verified first; if that fails, nothing is replaced"),
    };
    plan.way_back =
        format!("perennial pod restore {0} SNAPSHOT; perennial snapshot ls {0} lists the safety snapshot", pod.name);
}

pub fn losses(plan: &mut Consequences, paths: &[String]) {
    for path in paths {
        plan.effect(path, "may be missing from the snapshot, and then is lost", "--accept-loss names it");
    }
}

fn repository(pod: &Pod, what: &str) -> String {
    format!("in the repository of tenant {}: {what}", pod.tenant)
}

/// The volumes that hold data on the host, in words; `None` when there are none.
fn on_host(pod: &Pod) -> Option<String> {
    let names: Vec<&str> = pod
        .volumes
        .iter()
        .filter(|volume| volume.state != VolumeState::Absent)
        .map(|volume| volume.name.as_str())
        .collect();
    match names.as_slice() {
        [] => None,
        [one] => Some(format!("volume {one}")),
        several => Some(format!("volumes {}", several.join(", "))),
    }
}

pub fn some(paths: Vec<String>) -> Option<Vec<String>> {
    (!paths.is_empty()).then_some(paths)
}

/// Waits for an action, shows what came of it, and fails when it failed.
pub async fn follow(context: &mut Context<'_>, answer: PodOperation, args: WaitArgs) -> Result<(), Failure> {
    let PodOperation { pod, operation } = answer;
    let what = format!("{} of pod {}", operation.kind, clean(&pod.name));
    let name = pod.name.clone();
    let operation = wait::wait(context, operation, args, &what).await?;
    let pod = if args.no_wait { Some(pod) } else { refetch(context, &pod.id).await? };
    let failed = wait::outcome(&operation, &what);
    let outcome = Outcome { pod, operation };
    if failed.is_ok() || context.session.output != super::Output::Table {
        context.show(&outcome, |outcome, _, _| sentence(outcome, &name))?;
    }
    failed
}

/// The pod as it stands now; `None` when it is gone.
async fn refetch(context: &Context<'_>, id: &str) -> Result<Option<Pod>, Failure> {
    match context.client.get(&["pods", id], &[]).await {
        Ok(pod) => Ok(Some(pod)),
        Err(failure) if failure.exit == Exit::NotFound => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// What came of an action, for people.
fn sentence(outcome: &Outcome, name: &str) -> String {
    let (operation, name) = (&outcome.operation, clean(name));
    if operation.state != OperationState::Succeeded {
        return format!("{} of pod {name} was begun: perennial op wait {}", operation.kind, operation.id);
    }
    let Some(pod) = &outcome.pod else { return format!("pod {name} is gone") };
    let mut text = format!("pod {name} is {}", pod.phase);
    if let Some(snapshot) = pod.latest_snapshot.as_ref().filter(|_| {
        let kinds = [OperationKind::Stop, OperationKind::Archive, OperationKind::Delete];
        kinds.contains(&operation.kind) && pod.container.is_none()
    }) {
        text = format!("{text}; snapshot {} is {} ({}", snapshot.id, snapshot.state, maybe_size(snapshot.bytes));
        text = format!("{text}, {} new)", maybe_size(snapshot.new_bytes));
    }
    if let Some(at) = pod.purge_at {
        text = format!("{text}; perennial pod undelete {name} brings it back until {}", instant(at));
    }
    for condition in &pod.conditions {
        text = format!("{text}\n{}: {}", clean(&condition.kind), clean(&condition.message));
    }
    text
}
