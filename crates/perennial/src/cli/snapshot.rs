//! `perennial snapshot …`.

use futures::{StreamExt as _, TryStreamExt as _};
use perennial_core::id::SnapshotId;
use serde::de::DeserializeOwned;

use super::args::{AcceptArgs, Connection, SnapshotCommand, SnapshotListArgs, WaitArgs};
use super::client::Client;
use super::confirm::{Consent, Consequences, Verdict};
use super::failure::{Exit, Failure};
use super::human::maybe_size;
use super::session::Context;
use super::target::{self, Among};
use super::{Output, compare, files, import, pod, pod_restore, retention, view, wait};
use crate::api::wire::{OperationKind, OperationState, Pod, Snapshot, SnapshotDeleteRequest, SnapshotOperation};

/// How many pods are asked at the same time when everybody's things are listed.
const AT_ONCE: usize = 8;

/// Runs a command on snapshots.
pub async fn run(context: &mut Context<'_>, connection: &Connection, command: SnapshotCommand) -> Result<(), Failure> {
    match command {
        SnapshotCommand::Create(args) => create(context, args).await,
        SnapshotCommand::Ls(args) => list(context, &args).await,
        SnapshotCommand::Cat { snapshot, path, changes } => {
            let snapshot = target::any_snapshot(context, &snapshot).await?;
            files::cat(context, &snapshot, &path, changes).await
        }
        SnapshotCommand::Find { pod, path, all, changes } => compare::find(context, &pod, (&path, changes), all).await,
        SnapshotCommand::Diff { before, after, path, changes } => {
            let before = target::any_snapshot(context, &before).await?;
            let after = match after.as_str() {
                compare::LIVE => after,
                after => target::any_snapshot(context, after).await?,
            };
            compare::diff(context, (&before, &after), &path, changes).await
        }
        SnapshotCommand::Import(args) => import::run(context, connection, *args).await,
        SnapshotCommand::Export(mut args) => {
            args.snapshot = target::any_snapshot(context, &args.snapshot).await?;
            files::export(context, &args).await
        }
        SnapshotCommand::Show { snapshot } => {
            let snapshot = target::any_snapshot(context, &snapshot).await?;
            let snapshot: Snapshot = context.client.get(&["snapshots", &snapshot], &[]).await?;
            context.show(&snapshot, view::snapshot)
        }
        SnapshotCommand::Drill { snapshot, wait } => {
            let snapshot = target::any_snapshot(context, &snapshot).await?;
            let answer = context.client.post(&["snapshots", &snapshot, "drill"], None::<&()>).await?;
            follow(context, answer, wait, &format!("drill of snapshot {snapshot}")).await
        }
        SnapshotCommand::Restore(args) => pod_restore::restore_of(context, args).await,
        SnapshotCommand::Forget(args) => retention::forget(context, &args).await,
        SnapshotCommand::Rm { snapshot, yes, last, dry_run, wait } => {
            remove(context, &snapshot, (Consent::from_options(yes, dry_run), last), wait).await
        }
    }
}

async fn list(context: &mut Context<'_>, args: &SnapshotListArgs) -> Result<(), Failure> {
    if args.path.is_some() || args.long || args.changes {
        let Some(snapshot) = &args.pod else {
            let hint = "name its id, or a pod for its newest one";
            return Err(Failure::usage("--long and --changes are about the files of a snapshot", hint));
        };
        let snapshot = target::any_snapshot(context, snapshot).await?;
        return files::list(context, &snapshot, args).await;
    }
    // Only a snapshot is written so: a pod alone stands for the list of its snapshots.
    if let Some(text) = args.pod.as_deref().filter(|text| text.contains('@') || *text == target::LATEST) {
        let snapshot = target::any_snapshot(context, text).await?;
        return files::list(context, &snapshot, args).await;
    }
    let pods = match (pods(&context.client, args.pod.as_deref()).await, &args.pod) {
        // No pod is called that, and it can be a snapshot.
        (Err(failure), Some(text)) if failure.exit == Exit::NotFound && text.parse::<SnapshotId>().is_ok() => {
            return files::list(context, text, args).await;
        }
        (pods, _) => pods?,
    };
    let mut query = Vec::new();
    if args.pod.is_some() {
        query.extend(pods.iter().map(|pod| ("pod", pod.id.as_str())));
    }
    query.extend(args.state.as_deref().map(|state| ("state", state)));
    query.extend(args.kind.as_deref().map(|kind| ("kind", kind)));
    query.extend(args.tenant.as_deref().map(|tenant| ("tenant", tenant)));
    let snapshots: Vec<Snapshot> = context.client.list(&["snapshots"], &query).await?;
    if args.quiet {
        return context.show_ids(snapshots.iter().map(|snapshot| snapshot.id.as_str()));
    }
    let names = names(&pods);
    context.show(&snapshots, |snapshots, out, now| view::snapshots(snapshots, &names, out, now))
}

/// One pod, or all there are.
pub async fn pods(client: &Client, pod: Option<&str>) -> Result<Vec<Pod>, Failure> {
    match pod {
        Some(text) => Ok(vec![target::pod(client, text, Among::All).await?]),
        None => client.list(&["pods"], &[("visibility", "all")]).await,
    }
}

/// The names of these pods.
pub fn names(pods: &[Pod]) -> view::PodNames {
    pods.iter().map(|pod| (pod.id.clone(), pod.name.clone())).collect()
}

/// Lists what these pods have of a kind.
pub async fn of_pods<T: DeserializeOwned>(
    client: &Client,
    pods: &[Pod],
    kind: &'static str,
) -> Result<Vec<T>, Failure> {
    let lists = futures::stream::iter(pods).map(|pod| async move {
        match client.list::<T>(&["pods", &pod.id, kind], &[]).await {
            // It was purged since the list was made.
            Err(failure) if failure.exit == Exit::NotFound => Ok(Vec::new()),
            result => result,
        }
    });
    let lists: Vec<Vec<T>> = lists.buffered(AT_ONCE).try_collect().await?;
    Ok(lists.into_iter().flatten().collect())
}

async fn create(context: &mut Context<'_>, args: AcceptArgs) -> Result<(), Failure> {
    let pod = target::pod(&context.client, &args.pod, Among::Living).await?;
    let body = pod::accept(context, &pod, "snapshot", &args)?;
    let answer = context.client.post(&["pods", &pod.id, "snapshots"], body.as_ref()).await?;
    follow(context, answer, args.wait, &format!("snapshot of pod {}", pod.name)).await
}

async fn remove(
    context: &mut Context<'_>,
    id: &str,
    (consent, last): (Consent, bool),
    args: WaitArgs,
) -> Result<(), Failure> {
    let snapshot: Snapshot = context.client.get(&["snapshots", id], &[]).await?;
    let mut body = SnapshotDeleteRequest::default();
    if consent != Consent::Given || last {
        let pod = target::pod(&context.client, &snapshot.pod_id, Among::All).await?;
        // Who typed the name was shown what is left; who did not has to say that it may be the last.
        body.confirm = Some(pod.name.clone());
        let mut plan = Consequences::new("deletion of a snapshot", &pod);
        plan.effect(
            format!("snapshot {}", view::brief(&snapshot, context.now())),
            "forgotten; what it alone held is pruned about a day later",
            "snapshot rm destroys it",
        );
        plan.copy = match &pod.latest_snapshot {
            Some(latest) if latest.id != snapshot.id => {
                format!("the pod's other snapshots stay; the newest is {}", view::brief(latest, context.now()))
            }
            _ if pod.container.is_some() => {
                "on the host, in the pod's volumes; no other snapshot is as new as this one".to_owned()
            }
            _ => "see perennial snapshot ls; the server refuses to delete what a pod depends on".to_owned(),
        };
        "none".clone_into(&mut plan.way_back);
        if plan.confirm(consent, context)? == Verdict::Shown {
            return Ok(());
        }
    }
    let body = body.confirm.is_some().then_some(&body);
    let answer = context.client.delete(&["snapshots", &snapshot.id], body).await?;
    follow(context, answer, args, &format!("deletion of snapshot {}", snapshot.id)).await
}

/// Waits, shows what came of it, and fails when it failed.
pub async fn follow(
    context: &mut Context<'_>,
    answer: SnapshotOperation,
    args: WaitArgs,
    what: &str,
) -> Result<(), Failure> {
    let SnapshotOperation { mut snapshot, operation } = answer;
    let operation = wait::wait(context, operation, args, what).await?;
    let mut is_gone = false;
    if !args.no_wait {
        match context.client.get(&["snapshots", &snapshot.id], &[]).await {
            Ok(newer) => snapshot = newer,
            Err(failure) if failure.exit == Exit::NotFound => is_gone = true,
            Err(failure) => return Err(failure),
        }
    }
    let failed = wait::outcome(&operation, what);
    if failed.is_ok() || context.session.output != Output::Table {
        let answer = SnapshotOperation { snapshot, operation };
        context.show(&answer, |SnapshotOperation { snapshot, operation }, _, _| {
            if operation.state != OperationState::Succeeded {
                format!("{what} was begun: perennial op wait {}", operation.id)
            } else if is_gone {
                format!("snapshot {} is gone", snapshot.id)
            } else if operation.kind == OperationKind::SnapshotDrill {
                format!("snapshot {} is proven: all of it was restored and compared", snapshot.id)
            } else {
                let (all, new) = (maybe_size(snapshot.bytes), maybe_size(snapshot.new_bytes));
                format!("snapshot {} is {} ({all}, {new} new)", snapshot.id, snapshot.state)
            }
        })?;
    }
    failed
}
