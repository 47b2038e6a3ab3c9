//! What destroys: forget and prune. Both say what they do, and have a dry run.

use perennial_snapshots::{Mode, PruneReason, PruneReport};
use serde::Serialize;

use super::args::{ForgetArgs, PruneArgs};
use super::open::{Desk, failure};
use super::read::{Snapshot, pick, short};
use super::write::OF_A_SERVER;
use crate::cli::failure::{Exit, Failure};
use crate::cli::human::size;
use crate::cli::out::clean;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Forgotten {
    dry_run: bool,
    snapshots: Vec<Snapshot>,
}

pub(super) fn forget(desk: &mut Desk<'_>, args: &ForgetArgs) -> Result<(), Failure> {
    let (place, repository) = desk.open(&args.place)?;
    let all = repository.find(&[]).map_err(|e| failure(&e, &place.name))?;
    let mut chosen: Vec<&_> = Vec::new();
    for text in &args.snapshots {
        let info = pick(&all, text)?;
        if let Some(tag) = info.tags.iter().find(|tag| OF_A_SERVER.iter().any(|of| tag.starts_with(of))) {
            let message =
                format!("snapshot {} belongs to a server ({tag}): nothing was done", short(&info.id.to_string()));
            let hint = "delete it where the server knows of it: perennial snapshot rm";
            return Err(Failure::new(Exit::Conflict, message, hint));
        }
        if !chosen.iter().any(|other: &&perennial_snapshots::SnapshotInfo| other.id == info.id) {
            chosen.push(info);
        }
    }
    let answer =
        Forgotten { dry_run: args.dry_run, snapshots: chosen.iter().map(|info| Snapshot::from(*info)).collect() };
    let list = || answer.snapshots.iter().map(|s| format!("  {}", clean(&s.brief()))).collect::<Vec<_>>().join("\n");
    if !args.dry_run {
        if !args.yes {
            confirm(desk, &format!("These snapshots will be gone for good, with what they alone hold:\n{}", list()))?;
        }
        let ids: Vec<_> = chosen.iter().map(|info| info.id).collect();
        desk.work(&place, "forget", |_| repository.forget(&ids))?;
    }
    let text = list();
    desk.show(&answer, |answer, _| {
        if answer.dry_run {
            format!("would be forgotten:\n{text}\nThis was a dry run: nothing was done.")
        } else {
            format!("forgotten:\n{text}\nThe space they alone took up comes back with: perennial repository prune")
        }
    })
}

fn confirm(desk: &mut Desk<'_>, text: &str) -> Result<(), Failure> {
    if !desk.out.is_interactive() {
        let message = "forget needs a confirmation, and there is no terminal to ask on: nothing was done";
        return Err(Failure::usage(message, "see what it does with --dry-run, then confirm with --yes"));
    }
    desk.out.note(text);
    match desk.out.ask("\nType yes to go on: ") {
        Some(answer) if answer == "yes" => Ok(()),
        _ => Err(Failure::usage("not confirmed: nothing was done", "")),
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Pruned {
    dry_run: bool,
    /// Snapshots that everything is kept for.
    snapshots: u64,
    packs_kept: u64,
    packs_deleted: u64,
    /// Of those that are deleted: left by interrupted uploads.
    packs_of_interrupted_uploads: u64,
    /// Bytes that move to new packs, because the rest of theirs goes.
    bytes_moved: u64,
    bytes_freed: u64,
    indexes_replaced: u64,
}

impl Pruned {
    fn new(report: &PruneReport, dry_run: bool) -> Self {
        Self {
            dry_run,
            snapshots: report.snapshots,
            packs_kept: report.packs_kept,
            packs_deleted: report.doomed.len() as u64,
            packs_of_interrupted_uploads: report.doomed.iter().filter(|p| p.reason == PruneReason::NotIndexed).count()
                as u64,
            bytes_moved: report.doomed.iter().map(|pack| pack.moved).sum(),
            bytes_freed: report.freed_bytes,
            indexes_replaced: report.indexes_replaced,
        }
    }
}

pub(super) fn prune(desk: &mut Desk<'_>, args: &PruneArgs) -> Result<(), Failure> {
    let (place, repository) = desk.open(&args.place)?;
    let mode = if args.dry_run { Mode::DryRun } else { Mode::Execute };
    let report = desk.work(&place, "prune", |progress| repository.prune(mode, progress))?;
    desk.show(&Pruned::new(&report, args.dry_run), |pruned, _| {
        let would = if pruned.dry_run { "would be " } else { "" };
        let mut text = format!(
            "{would}deleted: {} packs, of which {} of interrupted uploads; {would}freed: {}; kept: {} packs, and {} \
             moved to new ones, for {} snapshots",
            pruned.packs_deleted,
            pruned.packs_of_interrupted_uploads,
            size(pruned.bytes_freed),
            pruned.packs_kept,
            size(pruned.bytes_moved),
            pruned.snapshots
        );
        if pruned.dry_run {
            text.push_str("\nThis was a dry run: nothing was done.");
        }
        text
    })
}
