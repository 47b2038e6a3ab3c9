//! `perennial snapshot ls|cat|export`: what is in snapshots.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use futures::TryStreamExt as _;
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use reqwest::Response;
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use serde::Serialize;

use super::args::{ExportArgs, SnapshotListArgs};
use super::failure::{Exit, Failure};
use super::human::{instant, size};
use super::out::{Out, clean};
use super::session::Context;
use super::table::Rows;
use super::unpack::{self, Unpacked};
use crate::api::wire::{ArchiveFormat, FileEntry, FileKind, FileList, FileOrigin};

/// Items of one page.
pub const PAGE: usize = 1000;

/// The query that names a path: bytes, for names of files are.
pub fn query(path: &OsStr, changes: bool) -> String {
    let path = percent_encode(path.as_bytes(), NON_ALPHANUMERIC);
    format!("path={path}{}", if changes { "&changes=true" } else { "" })
}

/// Lists a directory of a snapshot, or describes a file.
pub async fn list(context: &mut Context<'_>, snapshot: &str, args: &SnapshotListArgs) -> Result<(), Failure> {
    let query = query(args.path.as_deref().unwrap_or(OsStr::new("/")), args.changes);
    let mut all: Option<FileList> = None;
    loop {
        let after = all.as_ref().and_then(|l| l.next.clone()).map_or_else(String::new, |next| format!("&after={next}"));
        let page: FileList = context
            .client
            .get_encoded(&["snapshots", snapshot, "files"], &format!("{query}&limit={PAGE}{after}"))
            .await?;
        let more = page.next.is_some() && !page.items.is_empty();
        match &mut all {
            None => all = Some(page),
            Some(all) => {
                all.items.extend(page.items);
                all.next = page.next;
            }
        }
        if !more {
            break;
        }
    }
    let Some(list) = all else { return Ok(()) };
    let entries = if list.entry.kind == FileKind::Dir { list.items } else { vec![list.entry] };
    if entries.is_empty() && context.session.output == super::Output::Table {
        return Ok(());
    }
    context.show(&entries, |entries, out, _| if args.long { long(entries, out) } else { short(entries) })
}

/// Names alone, one on a line.
fn short(entries: &[FileEntry]) -> String {
    let line =
        |entry: &FileEntry| format!("{}{}", clean(&entry.name), if entry.kind == FileKind::Dir { "/" } else { "" });
    entries.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn long(entries: &[FileEntry], out: &Out) -> String {
    let mut rows = Rows::new(&["MODE", "OWNER", "SIZE", "MODIFIED", "FROM", "NAME"]);
    for entry in entries {
        let sign = match entry.kind {
            FileKind::File => '-',
            FileKind::Dir => 'd',
            FileKind::Symlink => 'l',
            FileKind::BlockDevice => 'b',
            FileKind::CharDevice => 'c',
            FileKind::Fifo => 'p',
            FileKind::Socket => 's',
        };
        let large = match entry.device {
            Some(device) => format!("{}, {}", device.major, device.minor),
            None if entry.kind == FileKind::File => size(entry.size),
            None => String::new(),
        };
        let from = match (&entry.volume, entry.origin) {
            (Some(volume), _) => volume.clone(),
            (None, FileOrigin::Image) => "image".to_owned(),
            (None, _) => "system".to_owned(),
        };
        let name = match &entry.target {
            Some(target) => format!("{} -> {target}", entry.name),
            None => entry.name.clone(),
        };
        let mode = format!("{sign}{:04o}", entry.mode & 0o7777);
        let time = entry.modified_at.map(instant).unwrap_or_default();
        rows.row(None, [mode, format!("{}:{}", entry.uid, entry.gid), large, time, from, name]);
    }
    rows.render(out)
}

/// Writes a file to standard output.
pub async fn cat(context: &mut Context<'_>, snapshot: &str, path: &OsStr, changes: bool) -> Result<(), Failure> {
    let path = query(path, changes);
    let mut response = context.client.download(&["snapshots", snapshot, "files", "content"], &path).await?;
    while let Some(piece) = response.chunk().await.map_err(|e| context.client.broken_off(&e))? {
        context.out.data(&piece)?;
    }
    Ok(())
}

/// What was written where.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Exported {
    target: String,
    #[serde(flatten)]
    unpacked: Option<Unpacked>,
    /// Of an archive.
    #[serde(skip_serializing_if = "Option::is_none")]
    archive_bytes: Option<u64>,
}

/// Copies what is at a path to this machine.
pub async fn export(context: &mut Context<'_>, args: &ExportArgs) -> Result<(), Failure> {
    let exported = match (&args.to, &args.tar) {
        (Some(directory), _) => {
            unpack::refuse_content(directory)?;
            let response = archive(context, args, ArchiveFormat::TarZst).await?;
            let unpacked = into_directory(context, response, (directory, args.devices)).await?;
            Exported { target: directory.display().to_string(), unpacked: Some(unpacked), archive_bytes: None }
        }
        (None, Some(file)) => {
            let format = format_of(file)?;
            if file.symlink_metadata().is_ok() {
                let message = format!("{} exists", file.display());
                return Err(Failure::new(Exit::Conflict, message, "choose another name, or remove it"));
            }
            let response = archive(context, args, format).await?;
            let bytes = into_file(context, response, file).await?;
            Exported { target: file.display().to_string(), unpacked: None, archive_bytes: Some(bytes) }
        }
        (None, None) => return Err(Failure::usage("no target", "write --to DIR or --tar FILE")),
    };
    for note in exported.unpacked.iter().flat_map(Unpacked::notes) {
        context.out.note(&note);
    }
    context.show(&exported, |exported, _, _| {
        let target = clean(&exported.target);
        match (&exported.unpacked, exported.archive_bytes) {
            (Some(it), _) => {
                format!("{target}: {} files and {} directories, {}", it.files, it.directories, size(it.bytes))
            }
            (None, bytes) => format!("{target}: {}", size(bytes.unwrap_or_default())),
        }
    })
}

async fn archive(context: &Context<'_>, args: &ExportArgs, format: ArchiveFormat) -> Result<Response, Failure> {
    let query = format!("{}&format={}", query(&args.path, args.changes), format.as_str());
    context.client.download(&["snapshots", &args.snapshot, "archive"], &query).await
}

fn format_of(file: &Path) -> Result<ArchiveFormat, Failure> {
    let name = file.file_name().unwrap_or_default().as_bytes();
    let ends = |endings: &[&str]| endings.iter().any(|e| name.ends_with(e.as_bytes()));
    if ends(&[".tar.zst", ".tzst"]) {
        Ok(ArchiveFormat::TarZst)
    } else if ends(&[".tar.gz", ".tgz"]) {
        Ok(ArchiveFormat::TarGz)
    } else if ends(&[".tar"]) {
        Ok(ArchiveFormat::Tar)
    } else {
        let message = format!("{} does not say which kind of archive it is", file.display());
        Err(Failure::usage(message, "call it something.tar.zst, something.tar.gz or something.tar"))
    }
}

/// Writes an archive; it has its name only when it is complete.
async fn into_file(context: &Context<'_>, mut response: Response, file: &Path) -> Result<u64, Failure> {
    use std::io::Write as _;
    let wrong = |e: std::io::Error| Failure::new(Exit::Failed, format!("write {}: {e}", file.display()), "");
    let parent = file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    remove_left_parts(parent);
    let mut interrupt = std::pin::pin!(context.session.interrupt.wait());
    let mut part = tempfile::Builder::new().prefix(PART).tempfile_in(parent).map_err(wrong)?;
    // Where there are no locks, nobody takes the file for one that was left behind either.
    let _ = flock(part.as_file(), FlockOperation::NonBlockingLockExclusive);
    let mut bytes = 0;
    loop {
        let piece = tokio::select! {
            biased;
            // The part goes with this function.
            () = &mut interrupt => {
                let message = format!("interrupted: {} was not written", file.display());
                return Err(Failure::new(Exit::Interrupted, message, ""));
            }
            piece = response.chunk() => piece,
        };
        let Some(piece) = piece.map_err(|e| context.client.broken_off(&e))? else { break };
        part.write_all(&piece).map_err(wrong)?;
        bytes += piece.len() as u64;
    }
    part.as_file().sync_all().map_err(wrong)?;
    part.persist_noclobber(file).map_err(|e| wrong(e.error))?;
    std::fs::File::open(parent).and_then(|p| p.sync_all()).map_err(wrong)?;
    Ok(bytes)
}

/// What the names of archives begin with that are not complete.
const PART: &str = ".perennial-export-";
/// One that is younger may not have its lock yet.
const YOUNG: std::time::Duration = std::time::Duration::from_secs(60);

/// Removes the beginnings of archives whose process was killed: those that nobody holds a lock of.
fn remove_left_parts(directory: &Path) {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_name().as_bytes().starts_with(PART.as_bytes())) {
        let is_left = || -> std::io::Result<bool> {
            let look = entry.metadata()?;
            let is_old = look.modified()?.elapsed().is_ok_and(|age| age > YOUNG);
            if !look.is_file() || !is_old {
                return Ok(false);
            }
            // Somebody may have put something else into its place.
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let file = rustix::fs::open(entry.path(), flags, Mode::empty())?;
            Ok(flock(file, FlockOperation::NonBlockingLockExclusive).is_ok())
        };
        if is_left().unwrap_or(false) {
            // Whoever may not remove it leaves it.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Unpacks an archive as it comes.
async fn into_directory(
    context: &Context<'_>,
    response: Response,
    (directory, devices): (&Path, bool),
) -> Result<Unpacked, Failure> {
    let stream = response.bytes_stream().map_err(std::io::Error::other);
    let reader = tokio_util::io::StreamReader::new(Box::pin(stream));
    let reader = tokio_util::io::SyncIoBridge::new(reader);
    let directory = directory.to_owned();
    let unpacked = tokio::task::spawn_blocking(move || unpack::unpack(reader, &directory, devices)).await;
    match unpacked.map_err(|e| Failure::internal(e.to_string()))? {
        Ok(unpacked) => Ok(unpacked),
        Err(unpack::Stopped::Read(error)) => Err(context.client.broken_off(&error)),
        Err(unpack::Stopped::Write(path, error)) => Err(Failure::new(
            Exit::Failed,
            format!("write {}: {error}", path.display()),
            "what was written is not complete",
        )),
    }
}
