//! Bytes into a repository: init, backup.

use std::path::{Component, Path, PathBuf};

use jiff::Timestamp;
use perennial_snapshots::{
    ArchiveRequest, Counts, KeyCost, Layout, Parent, Pass, Repository, Root, SnapshotInfo, Source, Verify,
};
use serde::Serialize;

use super::args::{BackupArgs, PlaceArgs};
use super::open::{Desk, failure};
use super::read::short;
use crate::cli::failure::{Exit, Failure};
use crate::cli::human::size;
use crate::cli::out::clean;

/// What tags of snapshots begin with that belong to a server.
pub(super) const OF_A_SERVER: [&str; 5] = ["pod:", "snapshot:", "generation:", "layer:", "image:"];

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Made {
    repository: String,
    id: String,
}

pub(super) fn init(desk: &mut Desk<'_>, args: &PlaceArgs) -> Result<(), Failure> {
    let place = desk.place(args)?;
    let repository = desk.work(&place, "init", |_| {
        Repository::init(std::sync::Arc::clone(&place.backend), &place.password, KeyCost::Interactive)
    })?;
    let made = Made { repository: place.name, id: repository.id().to_owned() };
    desk.show(&made, |made, _| {
        format!(
            "repository {} was made at {}\nWithout its password nothing in it can ever be read: keep a copy elsewhere.",
            short(&made.id),
            clean(&made.repository)
        )
    })
}

/// What a backup did.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Taken {
    snapshot: String,
    /// The snapshot it was compared with.
    parent: Option<String>,
    files: u64,
    dirs: u64,
    bytes: u64,
    /// Bytes of files that were read; the rest was unchanged.
    read_bytes: u64,
    /// Bytes the repository grew by.
    new_bytes: u64,
    /// Bytes that were read back from the repository and compared.
    verified_bytes: u64,
}

pub(super) fn backup(desk: &mut Desk<'_>, args: &BackupArgs) -> Result<(), Failure> {
    for tag in &args.tags {
        if let Some(taken) = OF_A_SERVER.iter().find(|taken| tag.starts_with(*taken)) {
            let hint = "choose another tag";
            return Err(Failure::new(Exit::Invalid, format!("tag: {taken} marks snapshots of a server's pods"), hint));
        }
    }
    let roots = roots(&args.directories, &args.exclude)?;
    let (place, repository) = desk.open(&args.place)?;
    let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let all = repository.find(&[]).map_err(|e| failure(&e, &place.name))?;
    let parent = newest_of(&all, &roots, &hostname);
    let request = ArchiveRequest {
        time: Timestamp::now(),
        hostname,
        tags: args.tags.clone(),
        parents: parent.map(|info| Parent::Snapshot(info.id)).into_iter().collect(),
        roots,
        pass: Pass::Commit,
        accept_losses: Vec::new(),
    };
    // Most of it is as it was.
    let expected = parent.and_then(|info| info.counts).map_or(0, |counts| counts.bytes);
    let archived = desk.work(&place, "backup", |progress| {
        progress.estimate(expected);
        repository.archive(&request, progress)
    })?;
    let Some(snapshot) = archived.snapshot else {
        return Err(Failure::internal("the backup made no snapshot"));
    };
    // Nothing counts before it was read back.
    let written = Verify::Written { packs: archived.written_packs };
    let verified = desk.work(&place, "read back", |progress| repository.verify(snapshot, &written, progress)).map_err(
        |error| {
            let message = format!("snapshot {snapshot} was written, and not verified: {}", error.message);
            Failure::new(error.exit, message, "perennial repository check --read-data; then back up again")
        },
    )?;
    let Counts { files, dirs, bytes } = archived.counts;
    let taken = Taken {
        snapshot: snapshot.to_string(),
        parent: parent.map(|info| info.id.to_string()),
        files,
        dirs,
        bytes,
        read_bytes: archived.read_bytes,
        new_bytes: archived.new_bytes,
        verified_bytes: verified.bytes_read,
    };
    desk.show(&taken, |taken, _| {
        format!(
            "snapshot {}: {} files, {} directories, {}; {} read, {} new in the repository and read back",
            short(&taken.snapshot),
            taken.files,
            taken.dirs,
            size(taken.bytes),
            size(taken.read_bytes),
            size(taken.new_bytes)
        )
    })
}

/// The newest snapshot of the same paths on the same host.
fn newest_of<'a>(all: &'a [SnapshotInfo], roots: &[Root], hostname: &str) -> Option<&'a SnapshotInfo> {
    let sorted = |paths: &mut Vec<&str>| paths.sort_unstable();
    let mut wanted: Vec<&str> = roots.iter().map(|root| root.at.as_str()).collect();
    sorted(&mut wanted);
    all.iter().rev().find(|info| {
        let mut paths: Vec<&str> = info.paths.iter().map(String::as_str).collect();
        sorted(&mut paths);
        info.hostname == hostname && paths == wanted
    })
}

/// The directories, each at its own absolute path in the snapshot, without what is left out.
fn roots(directories: &[PathBuf], exclude: &[PathBuf]) -> Result<Vec<Root>, Failure> {
    let wrong = |field: &str, path: &Path, problem: String, hint: &str| {
        Failure::new(Exit::Invalid, format!("{field}: {}: {problem}", path.display()), hint)
    };
    let mut roots: Vec<(PathBuf, Vec<PathBuf>)> = Vec::new();
    for directory in directories {
        let path = directory.canonicalize().map_err(|error| wrong("DIR", directory, error.to_string(), ""))?;
        if !path.is_dir() {
            return Err(wrong("DIR", directory, "not a directory".to_owned(), "name the directory it is in"));
        }
        if path.parent().is_none() {
            let hint = "name the directories below it";
            return Err(wrong("DIR", directory, "the root directory cannot be taken whole".to_owned(), hint));
        }
        if let Some((other, _)) = roots.iter().find(|(other, _)| path.starts_with(other) || other.starts_with(&path)) {
            let problem = format!("it overlaps with {}", other.display());
            return Err(wrong("DIR", directory, problem, "name the upper one alone"));
        }
        roots.push((path, Vec::new()));
    }
    for path in exclude {
        let absolute = std::path::absolute(path).map_err(|error| wrong("exclude", path, error.to_string(), ""))?;
        // Its parent is resolved as the directories were; it may be a link itself, or not be there.
        let resolved = match (absolute.parent().map(Path::canonicalize), absolute.file_name()) {
            (Some(Ok(parent)), Some(name)) => parent.join(name),
            _ => absolute,
        };
        let below = roots.iter_mut().find_map(|(root, left_out)| {
            let relative = resolved.strip_prefix(&*root).ok()?.to_owned();
            Some((relative, left_out))
        });
        match below {
            Some((relative, left_out))
                if relative.components().next().is_some()
                    && relative.components().all(|part| matches!(part, Component::Normal(_))) =>
            {
                left_out.push(relative);
            }
            _ => {
                let hint = "name a path below one of the directories";
                return Err(wrong("exclude", path, "it is not below a directory that is backed up".to_owned(), hint));
            }
        }
    }
    let mut made = Vec::with_capacity(roots.len());
    for (path, exclude) in roots {
        let Some(at) = path.to_str().map(ToOwned::to_owned) else {
            return Err(wrong("DIR", &path, "its path is not Unicode".to_owned(), "name a directory above it"));
        };
        made.push(Root { at, source: Source::Directory { path, layout: Layout::Plain, exclude } });
    }
    Ok(made)
}
