//! Looking into a repository: snapshots, ls, check, and which snapshot is meant.

use jiff::Timestamp;
use perennial_snapshots::{Counts, Depth, Entry, NodeKind, Repository, SnapshotInfo};
use serde::Serialize;

use super::args::{CheckArgs, LsArgs, SnapshotsArgs};
use super::open::{Desk, failure};
use crate::cli::failure::{Exit, Failure};
use crate::cli::human::{instant, maybe_size, size};
use crate::cli::table::{Facts, Rows};

/// Digits of an id that are shown; a repository has to hold very many snapshots before they mean two.
const SHORT: usize = 8;

/// A snapshot as it is printed.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Snapshot {
    id: String,
    time: Timestamp,
    hostname: String,
    tags: Vec<String>,
    paths: Vec<String>,
    /// Null when restic wrote it and did not say.
    files: Option<u64>,
    dirs: Option<u64>,
    bytes: Option<u64>,
}

impl From<&SnapshotInfo> for Snapshot {
    fn from(info: &SnapshotInfo) -> Self {
        let of = |count: fn(&Counts) -> u64| info.counts.as_ref().map(count);
        Self {
            id: info.id.to_string(),
            time: info.time,
            hostname: info.hostname.clone(),
            tags: info.tags.clone(),
            paths: info.paths.clone(),
            files: of(|c| c.files),
            dirs: of(|c| c.dirs),
            bytes: of(|c| c.bytes),
        }
    }
}

impl Snapshot {
    /// On one line.
    pub(super) fn brief(&self) -> String {
        let (id, time) = (short(&self.id), instant(self.time));
        format!("{id} of {} from {time} on {}", self.paths.join(" "), self.hostname)
    }
}

pub(super) fn short(id: &str) -> &str {
    id.get(..SHORT).unwrap_or(id)
}

/// The one snapshot that is meant, out of all there are, oldest first.
pub(super) fn pick<'a>(all: &'a [SnapshotInfo], text: &str) -> Result<&'a SnapshotInfo, Failure> {
    let hint = "perennial repository snapshots lists them";
    if text == "latest" {
        return all.last().ok_or_else(|| Failure::new(Exit::NotFound, "there is no snapshot yet", hint));
    }
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
        let message = format!("{text:?} is neither the beginning of a snapshot's id nor latest");
        return Err(Failure::new(Exit::Invalid, message, hint));
    }
    let mut found = all.iter().filter(|info| info.id.to_string().starts_with(text));
    match (found.next(), found.next()) {
        (Some(info), None) => Ok(info),
        (Some(_), Some(_)) => {
            Err(Failure::new(Exit::Invalid, format!("several snapshots begin with {text}"), "write more of its id"))
        }
        (None, _) => Err(Failure::new(Exit::NotFound, format!("no snapshot begins with {text}"), hint)),
    }
}

pub(super) fn find(repository: &Repository, place: &str, text: &str) -> Result<SnapshotInfo, Failure> {
    let all = repository.find(&[]).map_err(|e| failure(&e, place))?;
    pick(&all, text).cloned()
}

pub(super) fn snapshots(desk: &mut Desk<'_>, args: &SnapshotsArgs) -> Result<(), Failure> {
    let (place, repository) = desk.open(&args.place)?;
    let tags: Vec<&str> = args.tags.iter().map(String::as_str).collect();
    let found = repository.find(&tags).map_err(|e| failure(&e, &place.name))?;
    let found: Vec<Snapshot> = found.iter().map(Snapshot::from).collect();
    desk.show(&found, |found, out| {
        let mut rows = Rows::new(&["ID", "TIME", "HOST", "SIZE", "TAGS", "PATHS"]);
        for snapshot in found {
            let (tags, paths) = (snapshot.tags.join(","), snapshot.paths.join(" "));
            let (id, time) = (short(&snapshot.id).to_owned(), instant(snapshot.time));
            rows.row(None, [id, time, snapshot.hostname.clone(), maybe_size(snapshot.bytes), tags, paths]);
        }
        rows.render(out)
    })
}

/// An entry of a directory as it is printed.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    /// What is not Unicode in it is replaced.
    name: String,
    kind: &'static str,
    /// Permission bits.
    mode: u32,
    uid: u32,
    gid: u32,
    size: u64,
    modified: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
}

impl From<Entry> for Listed {
    fn from(entry: Entry) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self {
            name: text(&entry.name),
            kind: match entry.kind {
                NodeKind::File => "file",
                NodeKind::Dir => "dir",
                NodeKind::Symlink => "symlink",
                NodeKind::BlockDevice => "blockDevice",
                NodeKind::CharDevice => "charDevice",
                NodeKind::Fifo => "fifo",
                NodeKind::Socket => "socket",
            },
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            size: entry.size,
            modified: entry.mtime.to_timestamp(),
            target: (entry.kind == NodeKind::Symlink).then(|| text(&entry.link_target)),
        }
    }
}

pub(super) fn ls(desk: &mut Desk<'_>, args: &LsArgs) -> Result<(), Failure> {
    let (place, repository) = desk.open(&args.place)?;
    let snapshot = find(&repository, &place.name, &args.snapshot)?;
    let entries = repository.ls(snapshot.id, &args.path).map_err(|e| failure(&e, &place.name))?;
    let entries: Vec<Listed> = entries.into_iter().map(Listed::from).collect();
    desk.show(&entries, |entries, out| {
        let mut rows = Rows::new(&["MODE", "OWNER", "SIZE", "MODIFIED", "NAME"]);
        for entry in entries {
            let sign = match entry.kind {
                "file" => '-',
                "dir" => 'd',
                "symlink" => 'l',
                "blockDevice" => 'b',
                "charDevice" => 'c',
                "fifo" => 'p',
                _ => 's',
            };
            let name = match &entry.target {
                Some(target) => format!("{} -> {target}", entry.name),
                None => entry.name.clone(),
            };
            let time = entry.modified.map(instant).unwrap_or_default();
            let mode = format!("{sign}{:04o}", entry.mode & 0o7777);
            rows.row(None, [mode, format!("{}:{}", entry.uid, entry.gid), size(entry.size), time, name]);
        }
        rows.render(out)
    })
}

/// What a check found.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Checked {
    problems: Vec<String>,
    /// Of snapshots that have very many.
    problems_not_listed: u64,
    snapshots: u64,
    packs: u64,
    packs_not_indexed: u64,
    packs_read: u64,
}

pub(super) fn check(desk: &mut Desk<'_>, args: &CheckArgs) -> Result<(), Failure> {
    let (place, repository) = desk.open(&args.place)?;
    let depth = if args.read_data { Depth::Data } else { Depth::Structure };
    let report = desk.work(&place, "check", |progress| repository.check(depth, progress))?;
    let checked = Checked {
        problems: report.problems.iter().map(ToString::to_string).collect(),
        problems_not_listed: report.problems_not_listed,
        snapshots: report.snapshots,
        packs: report.packs,
        packs_not_indexed: report.packs_not_indexed,
        packs_read: report.packs_read,
    };
    desk.show(&checked, |checked, out| {
        let mut facts = Facts::default();
        for problem in &checked.problems {
            facts.fact("problem", problem);
        }
        if checked.problems_not_listed > 0 {
            facts.fact("not listed", format!("{} more problems of the same snapshots", checked.problems_not_listed));
        }
        facts.fact("snapshots", checked.snapshots.to_string());
        facts.fact("packs", format!("{}, {} of them read", checked.packs, checked.packs_read));
        if checked.packs_not_indexed > 0 {
            let text = format!("{} of interrupted uploads: harmless, a prune removes them", checked.packs_not_indexed);
            facts.fact("leftovers", text);
        }
        if checked.problems.is_empty() {
            facts.fact("result", "no damage was found");
        }
        facts.render(out)
    })?;
    match checked.problems.len() {
        0 => Ok(()),
        n => {
            let hint = "perennial repository repair salvages what can be; then a new backup of the same directories \
                        replaces what is missing";
            Err(Failure::new(Exit::Failed, format!("{}: {n} problems were found", place.name), hint))
        }
    }
}
