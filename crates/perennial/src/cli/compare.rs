//! `perennial snapshot find|diff`: versions of a path, and what differs between two snapshots.

use std::ffi::OsStr;

use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use serde::de::DeserializeOwned;

use super::Output;
use super::client::Client;
use super::failure::{Exit, Failure};
use super::files::{PAGE, query};
use super::human::{UNKNOWN, instant, size};
use super::out::clean;
use super::session::Context;
use super::table::Rows;
use super::target::{self, Among};
use crate::api::wire::{FileChange, FileDifference, FileEntry, FileKind, FileVersion, List, LiveDiff};

/// Asks for all pages of a list whose query is encoded already.
async fn all<T: DeserializeOwned>(client: &Client, path: &[&str], query: &str) -> Result<Vec<T>, Failure> {
    let mut items = Vec::new();
    let mut after = String::new();
    loop {
        let page: List<T> = client.get_encoded(path, &format!("{query}&limit={PAGE}{after}")).await?;
        items.extend(page.items);
        match page.next.map(|next| format!("&after={next}")) {
            Some(next) if next != after => after = next,
            _ => return Ok(items),
        }
    }
}

/// Lists the versions of a path.
pub async fn find(
    context: &mut Context<'_>,
    pod: &str,
    (path, changes): (&OsStr, bool),
    every: bool,
) -> Result<(), Failure> {
    let pod = target::pod(&context.client, pod, Among::All).await?;
    let mut versions: Vec<FileVersion> =
        all(&context.client, &["pods", &pod.id, "files", "versions"], &query(path, changes)).await?;
    if versions.iter().all(|v| v.entry.is_none() && v.problem.is_none()) {
        let message = format!("no snapshot of pod {} has {}", pod.name, path.display());
        let hint = format!("perennial snapshot ls {} lists its snapshots", pod.name);
        return Err(Failure::new(Exit::NotFound, message, hint));
    }
    // A version ends where the next one begins: of several snapshots with the same, the oldest is when it came.
    let is_new = |v: &FileVersion| {
        v.change != Some(FileChange::Same) && !(v.change == Some(FileChange::First) && v.entry.is_none())
    };
    if !every {
        versions.retain(is_new);
    }
    context.show(&versions, |versions, out, _| {
        let mut rows = Rows::new(&["SNAPSHOT", "KIND", "TIME", "CHANGE", "MODE", "SIZE", "MODIFIED"]);
        for version in versions {
            let of = |show: fn(&FileEntry) -> String| version.entry.as_ref().map_or_else(|| UNKNOWN.to_owned(), show);
            let change = match (&version.problem, version.change) {
                (Some(problem), _) => problem.clone(),
                (None, change) => change.map_or(UNKNOWN, FileChange::as_str).to_owned(),
            };
            rows.row(
                None,
                [
                    version.snapshot_id.clone(),
                    version.snapshot_kind.to_string(),
                    version.captured_at.map_or_else(|| UNKNOWN.to_owned(), instant),
                    change,
                    of(|e| format!("{:04o}", e.mode & 0o7777)),
                    of(|e| if e.kind == FileKind::File { size(e.size) } else { e.kind.to_string() }),
                    of(|e| e.modified_at.map_or_else(|| UNKNOWN.to_owned(), instant)),
                ],
            );
        }
        rows.render(out)
    })
}

/// What is in the pod now, in the place of a snapshot.
pub const LIVE: &str = "live";

/// Lists what differs between two snapshots, or one and its pod, and says by the exit code whether anything does.
pub async fn diff(
    context: &mut Context<'_>,
    (before, after): (&str, &str),
    path: &OsStr,
    changes: bool,
) -> Result<(), Failure> {
    if after == LIVE {
        return with_pod(context, before, path, changes).await;
    }
    let with = percent_encode(after.as_bytes(), NON_ALPHANUMERIC);
    let query = format!("with={with}&{}", query(path, changes));
    let differences: Vec<FileDifference> = all(&context.client, &["snapshots", before, "diff"], &query).await?;
    if !differences.is_empty() || context.session.output != Output::Table {
        context.show(&differences, |differences, _, _| lines(differences))?;
    }
    differ(!differences.is_empty())
}

async fn with_pod(context: &mut Context<'_>, before: &str, path: &OsStr, changes: bool) -> Result<(), Failure> {
    let place = ["snapshots", before, "diff", "live"];
    let query = format!("{}&limit={PAGE}", query(path, changes));
    // With the first page comes the look at the pod, which takes as long as reading what changed there.
    let mut diff: LiveDiff = context.client.get_patiently(&place, &query).await?;
    while let Some(next) = diff.next.take() {
        let page: LiveDiff = context.client.get_encoded(&place, &format!("{query}&after={next}")).await?;
        diff.items.extend(page.items);
        diff.next = page.next.filter(|other| *other != next);
    }
    if !diff.items.is_empty() || context.session.output != Output::Table {
        context.show(&diff, |diff, _, _| lines(&diff.items))?;
    }
    for loss in &diff.not_compared {
        context.out.note(&format!("not compared: {}: {}", clean(&loss.path), clean(&loss.reason)));
    }
    // Who asks whether everything is as it was is not told so of what nobody saw.
    differ(!diff.items.is_empty() || !diff.not_compared.is_empty())
}

fn lines(differences: &[FileDifference]) -> String {
    differences.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// As diff does: nothing went wrong, and nothing is to be said.
fn differ(any: bool) -> Result<(), Failure> {
    if any { Err(Failure::new(Exit::Failed, "", "")) } else { Ok(()) }
}

pub fn line(difference: &FileDifference) -> String {
    let sign = match difference.change {
        FileChange::Added => '+',
        FileChange::Removed => '-',
        _ => 'M',
    };
    let is_directory = |entry: &Option<FileEntry>| entry.as_ref().is_some_and(|e| e.kind == FileKind::Dir);
    let slash = if is_directory(&difference.after) || is_directory(&difference.before) { "/" } else { "" };
    let slash = if difference.path.ends_with('/') { "" } else { slash };
    let what = match (difference.change, difference.metadata) {
        (FileChange::Content, true) => "  (content, metadata)",
        (FileChange::Content, false) => "  (content)",
        (FileChange::Metadata, _) => "  (metadata)",
        _ => "",
    };
    format!("{sign} {}{slash}{what}", clean(&difference.path))
}
