//! From what a person typed to a pod or a snapshot: names and ids are both accepted.

use perennial_core::id::{PodId, SnapshotId};

use super::args::Output;
use super::client::Client;
use super::failure::{Exit, Failure};
use super::out::clean;
use super::session::Context;
use super::view;
use crate::api::wire::{Pod, Snapshot};

/// Which pods a name can mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Among {
    /// Living pods.
    Living,
    /// Archived and deleted pods.
    Hidden,
    /// A living pod first, else a hidden one.
    All,
}

/// Finds a pod by its name or its id.
pub async fn pod(client: &Client, text: &str, among: Among) -> Result<Pod, Failure> {
    // A name may look like an id, so a name is tried when there is no such id.
    if text.parse::<PodId>().is_ok() {
        match client.get(&["pods", text], &[]).await {
            Err(failure) if failure.exit == Exit::NotFound => {}
            result => return result,
        }
    }
    let visibility = match among {
        Among::Living => "living",
        Among::Hidden => "hidden",
        Among::All => "all",
    };
    let mut found: Vec<Pod> = client.list(&["pods"], &[("name", text), ("visibility", visibility)]).await?;
    found.retain(|pod| pod.name == text);
    if among == Among::All && found.iter().any(|pod| pod.deleted_at.is_none()) {
        found.retain(|pod| pod.deleted_at.is_none());
    }
    match found.len() {
        0 => Err(not_found(text, among)),
        1 => Ok(found.swap_remove(0)),
        several => {
            let ids: Vec<String> =
                found.iter().map(|pod| format!("  {}  {}, tenant {}", pod.id, pod.phase, clean(&pod.tenant))).collect();
            Err(Failure::new(
                Exit::Conflict,
                format!("{several} pods are named {}:\n{}", clean(text), ids.join("\n")),
                "use the id of the one you mean",
            ))
        }
    }
}

fn not_found(text: &str, among: Among) -> Failure {
    let (what, hint) = match among {
        Among::Living => ("pod", "perennial pod ls --all also lists archived and deleted ones"),
        Among::Hidden => ("archived or deleted pod", "perennial pod ls --all lists them"),
        Among::All => ("pod", "perennial pod ls --all lists them"),
    };
    Failure::new(Exit::NotFound, format!("{what} {text:?} not found"), hint)
}

/// The word for a pod's newest verified snapshot.
pub const LATEST: &str = "latest";

/// Finds a pod's snapshot by its id, or the newest verified one by `latest`.
pub async fn snapshot(client: &Client, pod: &Pod, text: &str) -> Result<Snapshot, Failure> {
    if text == LATEST {
        return newest(pod).cloned();
    }
    client.get(&["snapshots", text], &[]).await
}

fn newest(pod: &Pod) -> Result<&Snapshot, Failure> {
    pod.latest_snapshot.as_ref().ok_or_else(|| {
        Failure::new(
            Exit::NotFound,
            format!("pod {:?} has no verified snapshot", pod.name),
            format!("perennial snapshot ls {} lists what there is", pod.name),
        )
    })
}

/// The id of the snapshot that somebody means who names no pod beside it: by its id, or by POD or POD@latest for the newest
/// verified one of a pod, which is then said.
pub async fn any_snapshot(context: &mut Context<'_>, text: &str) -> Result<String, Failure> {
    if text.parse::<SnapshotId>().is_ok() {
        return Ok(text.to_owned());
    }
    if text == LATEST {
        return Err(Failure::usage(
            "the newest snapshot of which pod?",
            "write the pod's name, or POD@latest; perennial snapshot ls lists the snapshots of all pods",
        ));
    }
    let (name, which) = text.split_once('@').unwrap_or((text, LATEST));
    if which != LATEST {
        let hint = "after the name of a pod and @ comes latest; a snapshot's id stands alone";
        return Err(Failure::usage(format!("{text:?} is not a snapshot"), hint));
    }
    let pod = pod(&context.client, name, Among::All).await.map_err(|failure| match failure.exit {
        Exit::NotFound => Failure::new(
            Exit::NotFound,
            format!("{text:?} is neither a snapshot nor a pod"),
            "perennial snapshot ls lists the snapshots of all pods; POD or POD@latest is the newest of one",
        ),
        _ => failure,
    })?;
    let latest = newest(&pod)?;
    if context.session.output == Output::Table {
        let brief = view::brief(latest, context.now());
        context.out.note(&format!("newest of pod {}: {brief}", clean(&pod.name)));
    }
    note_flaws(context, latest);
    Ok(latest.id.clone())
}

/// Says, in every form of output, that a snapshot is not whole: what is made from it will lack something, or fail.
pub fn note_flaws(context: &mut Context<'_>, snapshot: &Snapshot) {
    let flaws = view::flaws(snapshot);
    if !flaws.is_empty() {
        let id = &snapshot.id;
        context.out.note(&format!("snapshot {id} is not whole ({flaws}): perennial snapshot show {id} tells more"));
    }
}
