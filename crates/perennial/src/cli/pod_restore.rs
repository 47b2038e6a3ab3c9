//! `perennial pod restore`, `perennial snapshot restore` and `perennial pod clone`.

use super::args::{CloneArgs, DestroyOptions, PartsArgs, RestoreArgs, SnapshotRestoreArgs};
use super::compare;
use super::confirm::{Consent, Consequences, Verdict};
use super::failure::Failure;
use super::human::instant;
use super::pod::{follow, losses, replaced, safety, some};
use super::session::Context;
use super::target::{self, Among};
use super::view;
use crate::api::wire::{CloneRequest, Extra, Pod, RestorePreview, RestoreRequest, Snapshot};

/// Differences that are shown before a person confirms.
const SHOWN_MAX: usize = 200;

/// Replaces a pod's data, or parts of it, by a snapshot.
pub async fn restore(context: &mut Context<'_>, args: RestoreArgs) -> Result<(), Failure> {
    let pod = target::pod(&context.client, &args.pod, Among::Living).await?;
    let snapshot = target::snapshot(&context.client, &pod, &args.snapshot).await?;
    replace(context, (&pod, &snapshot), args.parts, args.options).await
}

/// The same for a snapshot that is named alone: the pod is the one it is of.
pub async fn restore_of(context: &mut Context<'_>, args: SnapshotRestoreArgs) -> Result<(), Failure> {
    let id = target::any_snapshot(context, &args.snapshot).await?;
    let snapshot: Snapshot = context.client.get(&["snapshots", &id], &[]).await?;
    let pod = target::pod(&context.client, &snapshot.pod_id, Among::Living).await?;
    replace(context, (&pod, &snapshot), args.parts, args.options).await
}

async fn replace(
    context: &mut Context<'_>,
    (pod, snapshot): (&Pod, &Snapshot),
    chosen: PartsArgs,
    options: DestroyOptions,
) -> Result<(), Failure> {
    let consent = Consent::from_options(options.accept.yes, options.dry_run);
    let is_partial = !(chosen.volumes.is_empty() && chosen.paths.is_empty());
    let mut body = RestoreRequest {
        snapshot_id: snapshot.id.clone(),
        extra: (is_partial && chosen.keep_extra).then_some(Extra::Keep),
        volumes: some(chosen.volumes),
        paths: some(chosen.paths),
        ..RestoreRequest::default()
    };
    let mut plan = Consequences::new("restore", pod);
    let source = format!("snapshot {}", view::brief(snapshot, context.now()));
    if is_partial {
        partial(&mut plan, &body, &source);
        if consent != Consent::Given {
            preview(context, &mut plan, (pod, snapshot), &body).await?;
        }
    } else {
        replaced(&mut plan, pod, &source, "restore goes back to that point in time");
        for loss in &snapshot.consistency.losses {
            plan.effect(&loss.path, "will be missing", format!("the snapshot lacks it: {}", loss.reason));
        }
    }
    losses(&mut plan, &options.accept.accept_loss);
    safety(&mut plan, pod);
    if plan.confirm(consent, context)? == Verdict::Shown {
        return Ok(());
    }
    body.confirm = Some(pod.name.clone());
    body.accept_loss = some(options.accept.accept_loss);
    let answer = context.client.post(&["pods", &pod.id, "restore"], Some(&body)).await?;
    follow(context, answer, options.wait).await
}

/// The effects of a restore of parts.
fn partial(plan: &mut Consequences, body: &RestoreRequest, source: &str) {
    let extra = match body.extra {
        Some(Extra::Keep) => "put back; files that the snapshot lacks are kept",
        Some(Extra::Remove) | None => "put back; files in it that the snapshot lacks are removed",
    };
    for volume in body.volumes.iter().flatten() {
        let what = if volume == "system" { "the system layer".to_owned() } else { format!("volume {volume}") };
        plan.effect(what, format!("{extra}, from {source}"), "--volume names it");
    }
    for path in body.paths.iter().flatten() {
        plan.effect(path, format!("{extra}, from {source}"), "--path names it");
    }
    plan.effect("everything else", "stays as it is", "it is not named");
    plan.effect("the container", "stopped, removed and created again", "its volumes are replaced as one set");
}

/// Asks the server what would change.
async fn preview(
    context: &mut Context<'_>,
    plan: &mut Consequences,
    (pod, snapshot): (&Pod, &Snapshot),
    body: &RestoreRequest,
) -> Result<(), Failure> {
    let ask = RestoreRequest { dry_run: true, ..body.clone() };
    let found: RestorePreview = context.client.post(&["pods", &pod.id, "restore"], Some(&ask)).await?;
    let Some(with) = &found.compared_with else {
        plan.changes.push("(nobody can tell what would change: the pod has no verified snapshot yet)".to_owned());
        return Ok(());
    };
    let at = found.compared_at.map_or_else(String::new, |at| format!(" of {}", instant(at)));
    plan.changes.push(format!(
        "(from snapshot {with}{at}, the newest, to {}; what changed since then is not seen)",
        snapshot.id
    ));
    let shown = if context.session.output == super::Output::Table { SHOWN_MAX } else { usize::MAX };
    plan.changes.extend(found.changes.iter().take(shown).map(compare::line));
    if found.changes.len() > shown || !found.complete {
        plan.changes.push("(and more: perennial snapshot diff lists everything)".to_owned());
    }
    Ok(())
}

/// Makes a copy of a pod.
pub async fn clone(context: &mut Context<'_>, args: CloneArgs) -> Result<(), Failure> {
    let pod = target::pod(&context.client, &args.pod, Among::All).await?;
    let snapshot_id = match &args.snapshot {
        Some(text) => {
            let snapshot = target::snapshot(&context.client, &pod, text).await?;
            target::note_flaws(context, &snapshot);
            Some(snapshot.id)
        }
        None => None,
    };
    let body = CloneRequest { name: args.name, snapshot_id, keep_identity: args.keep_identity };
    let answer = context.client.post(&["pods", &pod.id, "clone"], Some(&body)).await?;
    follow(context, answer, args.wait).await
}
