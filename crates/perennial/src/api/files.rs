//! Routes of what is in snapshots.
//!
//! Paths are those the pod sees. Names of files are bytes: in `path` they are percent-encoded as they are, UTF-8 or not,
//! and answers carry them in base64 beside a text whenever the text is not exact.

use std::fmt::Write as _;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use perennial_core::Error;
use perennial_core::id::SnapshotId;
use serde::Deserialize;
use utoipa::IntoParams;

use super::ApiState;
use super::auth::Caller;
use super::extract::{Id, PathQuery, RawPath, page};
use super::problem::ApiError;
use super::wire::{ArchiveFormat, Device, FileEntry, FileKind, FileList, FileOrigin, Problem};
use crate::library::{Item, Origin, Packing, PodPath};
use crate::service::Shown;

/// Selects what is listed.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct FilesQuery {
    /// The path as the pod sees it; bytes that are not UTF-8 are percent-encoded as they are. `/` when left out.
    #[param(value_type = Option<String>)]
    path: Option<RawPath>,
    /// Only what the snapshot itself holds: what the pod changed, without the image.
    #[serde(default)]
    changes: bool,
    /// The `next` of the page before.
    after: Option<String>,
    /// Most items of the page, 1 to 1000; 100 when left out.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
}

/// Selects a file.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ContentQuery {
    /// The path as the pod sees it; bytes that are not UTF-8 are percent-encoded as they are.
    #[param(value_type = String)]
    path: RawPath,
    /// Only what the snapshot itself holds, without the image.
    #[serde(default)]
    changes: bool,
}

/// Selects what is packed, and how.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ArchiveQuery {
    /// The path as the pod sees it; bytes that are not UTF-8 are percent-encoded as they are. `/` when left out.
    #[param(value_type = Option<String>)]
    path: Option<RawPath>,
    /// Only what the snapshot itself holds: what the pod changed, without the image.
    #[serde(default)]
    changes: bool,
    /// How it is packed; `tar.zst` when left out.
    #[param(inline)]
    format: Option<ArchiveFormat>,
}

/// The path that is meant, `/` when none is named.
pub(super) fn path_of(path: Option<RawPath>) -> Result<PodPath, Error> {
    path.map_or_else(|| PodPath::parse(b"/"), |RawPath(path)| Ok(path))
}

pub(super) const fn shown(changes: bool) -> Shown {
    if changes { Shown::Changes } else { Shown::Everything }
}

/// A text, and the bytes when the text is not exact.
pub(super) fn text(bytes: &[u8]) -> (String, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (text.to_owned(), None),
        Err(_) => (String::from_utf8_lossy(bytes).into_owned(), Some(STANDARD.encode(bytes))),
    }
}

fn kind(kind: perennial_snapshots::NodeKind) -> FileKind {
    use perennial_snapshots::NodeKind as K;
    match kind {
        K::File => FileKind::File,
        K::Dir => FileKind::Dir,
        K::Symlink => FileKind::Symlink,
        K::BlockDevice => FileKind::BlockDevice,
        K::CharDevice => FileKind::CharDevice,
        K::Fifo => FileKind::Fifo,
        K::Socket => FileKind::Socket,
    }
}

pub(super) fn entry(item: &Item) -> FileEntry {
    let kind = kind(item.kind);
    let (name, name_bytes) = text(&item.name);
    let link = (kind == FileKind::Symlink).then(|| text(&item.link_target));
    let (target, target_bytes) = link.map_or((None, None), |(text, bytes)| (Some(text), bytes));
    let device = matches!(kind, FileKind::BlockDevice | FileKind::CharDevice)
        .then(|| Device { major: rustix::fs::major(item.device), minor: rustix::fs::minor(item.device) });
    let (origin, volume) = match &item.origin {
        Origin::Image => (FileOrigin::Image, None),
        Origin::System => (FileOrigin::System, None),
        Origin::Volume(name) => (FileOrigin::Volume, Some(name.to_string())),
    };
    FileEntry {
        name,
        name_bytes,
        kind,
        mode: item.mode,
        uid: item.uid,
        gid: item.gid,
        size: item.size,
        modified_at: item.mtime.to_timestamp(),
        target,
        target_bytes,
        links: item.links,
        device,
        xattrs: item.xattrs.clone(),
        origin,
        volume,
    }
}

/// Lists a directory of a snapshot, or describes one file.
#[utoipa::path(get, path = "/api/v1/snapshots/{id}/files", operation_id = "snapshot_files", tag = "snapshots",
    params(("id" = String, Path, description = "The snapshot's id."), FilesQuery),
    responses((status = 200, body = FileList), (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn list(
    State(state): State<ApiState>,
    Caller(caller): Caller,
    Id(id): Id<SnapshotId>,
    PathQuery(query): PathQuery<FilesQuery>,
) -> Result<axum::Json<FileList>, ApiError> {
    let (_, wanted) = page(None, query.limit)?;
    let after =
        query.after.map(hex::decode).transpose().map_err(|_| {
            Error::invalid("after", "is not a cursor of this list", "pass the `next` of the page before")
        })?;
    let path = path_of(query.path)?;
    let source = state.app.snapshot_source(&caller, id, shown(query.changes)).await?;
    let listing = state.app.library.list(source, path).await.map_err(Error::from)?;
    let from = after.map_or(0, |after| listing.items.partition_point(|item| item.name <= after));
    let rest = &listing.items[from..];
    let items = &rest[..rest.len().min(wanted)];
    let next = items.last().filter(|_| rest.len() > wanted).map(|item| hex::encode(&item.name));
    Ok(axum::Json(FileList { entry: entry(&listing.entry), items: items.iter().map(entry).collect(), next }))
}

/// Downloads a regular file of a snapshot. Takes one range, as `Range: bytes=…`.
#[utoipa::path(get, path = "/api/v1/snapshots/{id}/files/content", operation_id = "snapshot_file_content",
    tag = "snapshots",
    params(("id" = String, Path, description = "The snapshot's id."), ContentQuery,
        ("Range" = Option<String>, Header, description = "One range of bytes.")),
    responses((status = 200, body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 206, body = Vec<u8>, content_type = "application/octet-stream"),
        (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn content(
    State(state): State<ApiState>,
    Caller(caller): Caller,
    Id(id): Id<SnapshotId>,
    PathQuery(query): PathQuery<ContentQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let RawPath(path) = query.path;
    let source = state.app.snapshot_source(&caller, id, shown(query.changes)).await?;
    let file = state.app.library.open_file(source, path).await.map_err(Error::from)?;
    let size = file.item.size;
    let range = match range(headers.get(header::RANGE), size) {
        Asked::Everything => None,
        Asked::Part(start, end) => Some((start, end)),
        Asked::Nothing => {
            let error = ApiError::new(
                StatusCode::RANGE_NOT_SATISFIABLE,
                "range-not-satisfiable",
                format!("the file has {size} bytes, and none of them is in that range"),
            );
            let mut response = error.into_response();
            response.headers_mut().insert(header::CONTENT_RANGE, header_value(&format!("bytes */{size}")));
            return Ok(response);
        }
    };
    let name = file.item.name.clone();
    let (start, end) = range.unwrap_or((0, size));
    let download = file.download(start, end - start).await.map_err(Error::from)?;
    let mut response = attachment(Body::from_stream(download.into_stream()), &name, "application/octet-stream");
    let answer = response.headers_mut();
    answer.insert(header::CONTENT_LENGTH, HeaderValue::from(end - start));
    answer.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if range.is_some() {
        answer.insert(header::CONTENT_RANGE, header_value(&format!("bytes {start}-{}/{size}", end - 1)));
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    Ok(response)
}

/// Downloads a directory or a file of a snapshot as a tar.
#[utoipa::path(get, path = "/api/v1/snapshots/{id}/archive", operation_id = "snapshot_archive", tag = "snapshots",
    params(("id" = String, Path, description = "The snapshot's id."), ArchiveQuery),
    responses((status = 200, content((Vec<u8> = "application/zstd"), (Vec<u8> = "application/gzip"), (Vec<u8> = "application/x-tar"))),
        (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn archive(
    State(state): State<ApiState>,
    Caller(caller): Caller,
    Id(id): Id<SnapshotId>,
    PathQuery(query): PathQuery<ArchiveQuery>,
) -> Result<Response, ApiError> {
    let path = path_of(query.path)?;
    let source = state.app.snapshot_source(&caller, id, shown(query.changes)).await?;
    let format = query.format.unwrap_or(ArchiveFormat::TarZst);
    let (packing, kind) = match format {
        ArchiveFormat::TarZst => (Packing::Zstd, "application/zstd"),
        ArchiveFormat::TarGz => (Packing::Gzip, "application/gzip"),
        ArchiveFormat::Tar => (Packing::Plain, "application/x-tar"),
    };
    let (item, download) = state.app.library.archive(source, path, packing).await.map_err(Error::from)?;
    let name = if item.name.is_empty() { id.to_string().into_bytes() } else { item.name };
    let name = [&name[..], b".", format.as_str().as_bytes()].concat();
    Ok(attachment(Body::from_stream(download.into_stream()), &name, kind))
}

/// An answer that a browser saves and never shows: the bytes are whatever a pod wrote.
fn attachment(body: Body, name: &[u8], kind: &'static str) -> Response {
    let mut plain = String::new();
    let mut exact = String::new();
    for byte in name {
        let c = char::from(*byte);
        let safe = c.is_ascii_alphanumeric() || "-_.".contains(c);
        plain.push(if safe || c == ' ' { c } else { '_' });
        if safe {
            exact.push(c);
        } else {
            // Writing to a text cannot fail.
            let _ = write!(exact, "%{byte:02X}");
        }
    }
    let mut disposition = format!("attachment; filename=\"{plain}\"");
    if plain.as_bytes() != name && std::str::from_utf8(name).is_ok() {
        disposition.push_str("; filename*=UTF-8''");
        disposition.push_str(&exact);
    }
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CONTENT_DISPOSITION, header_value(&disposition));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

fn header_value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static("attachment"))
}

/// What a `Range` asks for.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    /// All of it; also when the header is not understood, or asks for several parts, as HTTP allows.
    Everything,
    /// From the first to behind the last byte.
    Part(u64, u64),
    /// Nothing that is there.
    Nothing,
}

fn range(header: Option<&HeaderValue>, size: u64) -> Asked {
    let parsed = || {
        let (first, last) = header?.to_str().ok()?.trim().strip_prefix("bytes=")?.split_once('-')?;
        let number = |text: &str| (!text.is_empty()).then(|| text.parse::<u64>());
        match (number(first.trim()), number(last.trim())) {
            (Some(Ok(first)), None) => Some((first, size)),
            (Some(Ok(first)), Some(Ok(last))) if first <= last => Some((first, size.min(last.saturating_add(1)))),
            (None, Some(Ok(last))) => Some((if last == 0 { size } else { size.saturating_sub(last) }, size)),
            _ => None,
        }
    };
    match parsed() {
        None => Asked::Everything,
        Some((start, end)) if start < end => Asked::Part(start, end),
        Some(_) => Asked::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        use Asked::{Everything, Nothing, Part};
        for (header, size, asked) in [
            ("bytes=0-0", 10, Part(0, 1)),
            ("bytes=5-", 10, Part(5, 10)),
            ("bytes=5-99", 10, Part(5, 10)),
            ("bytes=-3", 10, Part(7, 10)),
            ("bytes=-99", 10, Part(0, 10)),
            ("bytes=0-18446744073709551615", 10, Part(0, 10)),
            ("bytes=10-", 10, Nothing),
            ("bytes=-0", 10, Nothing),
            ("bytes=0-", 0, Nothing),
            ("bytes=0-1,3-4", 10, Everything),
            ("bytes=4-3", 10, Everything),
            ("bytes=a-b", 10, Everything),
            ("bytes=-", 10, Everything),
            ("lines=1-2", 10, Everything),
            ("", 10, Everything),
        ] {
            assert_eq!(range(Some(&HeaderValue::from_static(header)), size), asked, "{header}");
        }
        assert_eq!(range(None, 10), Everything);
    }

    #[test]
    fn names_of_downloads_cannot_break_out_of_their_header() {
        let disposition = |name: &[u8]| {
            let answer = attachment(Body::empty(), name, "application/octet-stream");
            answer.headers()[header::CONTENT_DISPOSITION].to_str().map(ToOwned::to_owned).ok()
        };
        for (name, expected) in [
            (&b"a b.txt"[..], "attachment; filename=\"a b.txt\""),
            (b"a\"\r\nX: y", "attachment; filename=\"a___X_ y\"; filename*=UTF-8''a%22%0D%0AX%3A%20y"),
            ("ü".as_bytes(), "attachment; filename=\"__\"; filename*=UTF-8''%C3%BC"),
            (b"x\xff", "attachment; filename=\"x_\""),
        ] {
            assert_eq!(disposition(name).as_deref(), Some(expected));
        }
    }
}
