//! Routes that compare snapshots: versions of a path, and what differs between two, or between one and its pod.

use axum::extract::State;
use perennial_core::Error;
use perennial_core::id::{PodId, SnapshotId};
use serde::Deserialize;
use utoipa::IntoParams;

use super::ApiState;
use super::auth::Caller;
use super::extract::{Id, PathQuery, RawPath, cursor, cut, page};
use super::files::{entry, path_of, shown, text};
use super::problem::ApiError;
use super::wire::{FileChange, FileDifference, FileVersion, List, LiveDiff, Loss, Problem};
use crate::library::{Difference, Differs, Version};
use crate::service::LivePlace;

/// Selects the other snapshot, and what is compared.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DiffQuery {
    /// The later snapshot, by its id: what it has more was added.
    with: String,
    /// The path as the pod sees it; bytes that are not UTF-8 are percent-encoded as they are. `/` when left out.
    #[param(value_type = Option<String>)]
    path: Option<RawPath>,
    /// Only what the snapshots themselves hold: what the pod changed, without the image.
    #[serde(default)]
    changes: bool,
    /// The `next` of the page before.
    after: Option<String>,
    /// Most items of the page, 1 to 1000; 100 when left out.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
}

/// Selects a path and a part of its versions.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct VersionsQuery {
    /// The path as the pod sees it; bytes that are not UTF-8 are percent-encoded as they are.
    #[param(value_type = String)]
    path: RawPath,
    /// Only what the snapshots themselves hold: what the pod changed, without the image.
    #[serde(default)]
    changes: bool,
    /// The `next` of the page before.
    after: Option<String>,
    /// Most items of the page, 1 to 1000; 100 when left out.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
}

/// Names on the way to a path, as a cursor and back: hexadecimal, because names are bytes.
fn path_cursor(path: &[Vec<u8>]) -> String {
    hex::encode([b"/", &path.join(&b'/')[..]].concat())
}

fn path_after(after: Option<String>) -> Result<Option<Vec<Vec<u8>>>, Error> {
    let wrong = || Error::invalid("after", "is not a cursor of this list", "pass the `next` of the page before");
    let Some(after) = after else { return Ok(None) };
    let bytes = hex::decode(after).map_err(|_| wrong())?;
    let rest = bytes.strip_prefix(b"/").ok_or_else(wrong)?;
    Ok(Some(rest.split(|b| *b == b'/').filter(|n| !n.is_empty()).map(<[u8]>::to_vec).collect()))
}

fn change(differs: Differs, before: bool, after: bool) -> FileChange {
    match (before, after) {
        (false, true) => FileChange::Added,
        (true, false) => FileChange::Removed,
        _ if differs.content => FileChange::Content,
        _ if differs.metadata => FileChange::Metadata,
        _ => FileChange::Same,
    }
}

pub(super) fn difference(found: &Difference) -> FileDifference {
    let (path, path_bytes) = text(&[b"/", &found.path.join(&b'/')[..]].concat());
    FileDifference {
        path,
        path_bytes,
        change: change(found.what, found.before.is_some(), found.after.is_some()),
        metadata: found.what.metadata,
        before: found.before.as_ref().map(entry),
        after: found.after.as_ref().map(entry),
    }
}

/// Lists what differs between two snapshots, in the order of paths.
#[utoipa::path(get, path = "/api/v1/snapshots/{id}/diff", operation_id = "snapshot_diff", tag = "snapshots",
    params(("id" = String, Path, description = "The id of the earlier snapshot."), DiffQuery),
    responses((status = 200, body = List<FileDifference>), (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn diff(
    State(state): State<ApiState>,
    Caller(caller): Caller,
    Id(id): Id<SnapshotId>,
    PathQuery(query): PathQuery<DiffQuery>,
) -> Result<axum::Json<List<FileDifference>>, ApiError> {
    let (_, wanted) = page(None, query.limit)?;
    let after = path_after(query.after)?;
    let path = path_of(query.path)?;
    let with = query.with.parse::<SnapshotId>();
    let with = with.map_err(|e| Error::invalid("with", e.to_string(), "perennial snapshot ls"))?;
    let shown = shown(query.changes);
    let sources =
        (state.app.snapshot_source(&caller, id, shown).await?, state.app.snapshot_source(&caller, with, shown).await?);
    let mut found = state.app.library.diff(sources, path, after, wanted + 1).await.map_err(Error::from)?;
    let next = cut(&mut found, wanted, |difference| path_cursor(&difference.path));
    Ok(axum::Json(List { items: found.iter().map(difference).collect(), next }))
}

/// Selects what of a snapshot is compared with its pod.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct LiveDiffQuery {
    /// The path as the pod sees it; bytes that are not UTF-8 are percent-encoded as they are. `/` when left out.
    #[param(value_type = Option<String>)]
    path: Option<RawPath>,
    /// Only what the pod changed, without the image.
    #[serde(default)]
    changes: bool,
    /// The `next` of the page before. It goes on with the same look at the pod, which is kept for a while.
    after: Option<String>,
    /// Most items of the page, 1 to 1000; 100 when left out.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
}

/// A look and a path as a cursor, and back.
fn live_after(after: Option<String>) -> Result<Option<LivePlace>, Error> {
    let wrong = || Error::invalid("after", "is not a cursor of this list", "pass the `next` of the page before");
    let Some(after) = after else { return Ok(None) };
    let (look, path) = after.split_once('-').ok_or_else(wrong)?;
    Ok(path_after(Some(path.to_owned()))?.map(|path| (look.to_owned(), path)))
}

/// Lists what differs between a snapshot and what is in its pod now, in the order of paths.
///
/// The pod may run, and is not held up. A file whose size, times and inode are those of the snapshot counts as unchanged;
/// any other is read, and its content compared by its hashes. Nothing is stored.
#[utoipa::path(get, path = "/api/v1/snapshots/{id}/diff/live", operation_id = "snapshot_diff_live", tag = "snapshots",
    params(("id" = String, Path, description = "The snapshot's id."), LiveDiffQuery),
    responses((status = 200, body = LiveDiff), (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn live(
    State(state): State<ApiState>,
    Caller(caller): Caller,
    Id(id): Id<SnapshotId>,
    PathQuery(query): PathQuery<LiveDiffQuery>,
) -> Result<axum::Json<LiveDiff>, ApiError> {
    let (_, wanted) = page(None, query.limit)?;
    let place = live_after(query.after)?;
    let path = path_of(query.path)?;
    let mut diff = state.app.live_diff(&caller, (id, shown(query.changes)), path, place, wanted).await?;
    let look = diff.look;
    let next = cut(&mut diff.found, wanted, |difference| format!("{look}-{}", path_cursor(&difference.path)));
    let unseen = diff.unseen.into_iter().map(|loss| Loss { path: loss.path, reason: loss.reason });
    Ok(axum::Json(LiveDiff {
        items: diff.found.iter().map(difference).collect(),
        next,
        looked_at: diff.looked_at,
        not_compared: unseen.collect(),
    }))
}

/// Lists what a pod's snapshots have at a path, newest first.
#[utoipa::path(get, path = "/api/v1/pods/{id}/files/versions", operation_id = "pod_file_versions", tag = "snapshots",
    params(("id" = String, Path, description = "The pod's id."), VersionsQuery),
    responses((status = 200, body = List<FileVersion>), (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn versions(
    State(state): State<ApiState>,
    Caller(caller): Caller,
    Id(id): Id<PodId>,
    PathQuery(query): PathQuery<VersionsQuery>,
) -> Result<axum::Json<List<FileVersion>>, ApiError> {
    // One more than asked for is also what the last of this page is compared with.
    let (page, wanted) = page(cursor::<SnapshotId>(query.after)?, query.limit)?;
    let RawPath(path) = query.path;
    let rows = state.app.snapshots(&caller, id, &page).await?;
    let looked = state.app.file_versions(&rows, path, shown(query.changes)).await?;
    let next = rows.get(wanted).and(rows.get(wanted - 1)).map(|row| row.id.to_string());
    let items = rows.iter().zip(looked).take(wanted).filter_map(|(row, looked)| {
        let (entry_, change, problem) = match looked? {
            Ok(Version { item, differs, existed }) => {
                let change = differs.map_or(FileChange::First, |d| change(d, existed, item.is_some()));
                (item.as_ref().map(entry), Some(change), None)
            }
            Err(failure) => (None, None, Some(failure.to_string())),
        };
        Some(FileVersion {
            snapshot_id: row.id.to_string(),
            snapshot_kind: row.kind.into(),
            captured_at: row.captured_at,
            entry: entry_,
            change,
            problem,
        })
    });
    Ok(axum::Json(List { items: items.collect(), next }))
}
