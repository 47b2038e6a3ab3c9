//! What destroys: forget and prune. Both say what they do, and have a dry run.

use std::collections::BTreeMap;

use perennial_core::retention::{self, Dated};
use perennial_core::schedule::SnapshotRules;
use perennial_snapshots::{Mode, PruneReason, PruneReport, SnapshotFileId, SnapshotInfo};
use serde::Serialize;

use super::args::{ForgetArgs, PruneArgs};
use super::open::{Desk, failure};
use super::read::{Snapshot, pick, short};
use super::write::OF_A_SERVER;
use crate::api::retention::domain_keep;
use crate::cli::failure::{Exit, Failure};
use crate::cli::human::size;
use crate::cli::out::clean;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Forgotten {
    dry_run: bool,
    snapshots: Vec<Snapshot>,
    /// What the rules keep, and why; empty when snapshots were named.
    kept: Vec<Kept>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Kept {
    snapshot: Snapshot,
    reasons: Vec<String>,
}

/// The snapshots that rules let go, and those they keep. Those of a server are none of ours: it knows what they are for.
fn by_rules(all: &[SnapshotInfo], args: &ForgetArgs) -> Result<(Vec<SnapshotInfo>, Vec<Kept>), Failure> {
    let typed = args.keep.over(None).map(|keep| domain_keep(&keep)).unwrap_or_default();
    // With nothing but one kind of snapshots, never fewer than so many are the last so many.
    let keep = retention::Keep { last: typed.last.max(typed.minimum), ..typed };
    let rules = SnapshotRules { time_zone: args.time_zone.clone(), keep: Some(keep), schedule: None };
    let invalid = |e: perennial_core::Error| match e {
        perennial_core::Error::InvalidInput { problem, hint, .. } => Failure::usage(problem, hint),
        other => Failure::usage(other.to_string(), ""),
    };
    rules.validate().map_err(invalid)?;
    let zone = rules.over(&SnapshotRules::default()).map_err(invalid)?.zone;
    if keep.is_empty() {
        let message = "these rules say nothing about what is kept: nothing was done";
        return Err(Failure::usage(message, "name at least one of --keep-last, --keep-daily, …, --keep-within"));
    }
    let mut groups: BTreeMap<(&str, &[String]), Vec<Dated<SnapshotFileId>>> = BTreeMap::new();
    for info in all.iter().filter(|info| of_a_server(info).is_none()) {
        let group = groups.entry((&info.hostname, &info.paths)).or_default();
        group.push(Dated { key: info.id, at: info.time });
    }
    let now = jiff::Timestamp::now();
    let mut reasons = BTreeMap::new();
    for group in groups.values() {
        reasons.append(&mut retention::kept(group, &keep, &zone, now));
    }
    let ours = all.iter().filter(|info| of_a_server(info).is_none());
    let (kept, going): (Vec<_>, Vec<_>) = ours.partition(|info| reasons.contains_key(&info.id));
    let kept = kept.into_iter().map(|info| Kept {
        snapshot: Snapshot::from(info),
        reasons: reasons.get(&info.id).cloned().unwrap_or_default(),
    });
    Ok((going.into_iter().cloned().collect(), kept.collect()))
}

/// The tag by which a snapshot belongs to a server; `None` when it is anybody's.
fn of_a_server(info: &SnapshotInfo) -> Option<&String> {
    info.tags.iter().find(|tag| OF_A_SERVER.iter().any(|of| tag.starts_with(of)))
}

pub(super) fn forget(desk: &mut Desk<'_>, args: &ForgetArgs) -> Result<(), Failure> {
    let (place, repository) = desk.open(&args.place)?;
    let all = repository.find(&[]).map_err(|e| failure(&e, &place.name))?;
    let (chosen, kept) =
        if args.snapshots.is_empty() { by_rules(&all, args)? } else { (named(&all, args)?, Vec::new()) };
    let snapshots = chosen.iter().map(Snapshot::from).collect();
    let answer = Forgotten { dry_run: args.dry_run, snapshots, kept };
    let list = || answer.snapshots.iter().map(|s| format!("  {}", clean(&s.brief()))).collect::<Vec<_>>().join("\n");
    if chosen.is_empty() {
        return desk.show(&answer, |answer, _| format!("{}nothing goes", kept_text(&answer.kept)));
    }
    if !args.dry_run {
        if !args.yes {
            confirm(
                desk,
                "forget",
                &format!("These snapshots will be gone for good, with what they alone hold:\n{}", list()),
            )?;
        }
        let ids: Vec<_> = chosen.iter().map(|info| info.id).collect();
        desk.work(&place, "forget", |_| repository.forget(&ids))?;
    }
    let text = list();
    desk.show(&answer, |answer, _| {
        let kept = kept_text(&answer.kept);
        if answer.dry_run {
            format!("{kept}would be forgotten:\n{text}\nThis was a dry run: nothing was done.")
        } else {
            format!(
                "{kept}forgotten:\n{text}\nThe space they alone took up comes back with: perennial repository prune"
            )
        }
    })
}

/// The snapshots that were named.
fn named(all: &[SnapshotInfo], args: &ForgetArgs) -> Result<Vec<SnapshotInfo>, Failure> {
    let mut chosen: Vec<SnapshotInfo> = Vec::new();
    for text in &args.snapshots {
        let info = pick(all, text)?;
        if let Some(tag) = of_a_server(info) {
            let message =
                format!("snapshot {} belongs to a server ({tag}): nothing was done", short(&info.id.to_string()));
            let hint = "delete it where the server knows of it: perennial snapshot rm";
            return Err(Failure::new(Exit::Conflict, message, hint));
        }
        if !chosen.iter().any(|other| other.id == info.id) {
            chosen.push(info.clone());
        }
    }
    Ok(chosen)
}

fn kept_text(kept: &[Kept]) -> String {
    let line = |kept: &Kept| format!("  {}: {}\n", clean(&kept.snapshot.brief()), kept.reasons.join("; "));
    if kept.is_empty() { String::new() } else { format!("kept:\n{}", kept.iter().map(line).collect::<String>()) }
}

/// Asks a person, who sees the text, whether to go on.
pub(super) fn confirm(desk: &mut Desk<'_>, action: &str, text: &str) -> Result<(), Failure> {
    if !desk.out.is_interactive() {
        let message = format!("{action} needs a confirmation, and there is no terminal to ask on: nothing was done");
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
            packs_deleted: (report.doomed.len() + report.expired.len()) as u64,
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
