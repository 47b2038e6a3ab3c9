//! Repair: says what is damaged, what became of it, and which snapshots are hurt.

use jiff::Timestamp;
use perennial_snapshots::{Fate, Mode, RepairReport, RepairRequest};
use serde::Serialize;

use super::args::RepairArgs;
use super::open::Desk;
use super::read::short;
use crate::cli::failure::{Exit, Failure};
use crate::cli::table::Facts;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Repaired {
    dry_run: bool,
    snapshots: u64,
    packs_read: u64,
    damaged_packs: Vec<Pack>,
    /// Index files that cannot be read; what they said is in the packs.
    damaged_indexes: Vec<String>,
    /// Snapshot files that cannot be read: these snapshots are lost.
    damaged_snapshots: Vec<String>,
    /// Good packs that are in the index again.
    packs_found: u64,
    entries_corrected: u64,
    indexes_replaced: u64,
    /// Snapshots that need what is lost.
    hurt: Vec<Hurt>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Pack {
    id: String,
    reason: String,
    blobs_salvaged: u64,
    blobs_lost: u64,
    fate: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Hurt {
    snapshot: String,
    paths: Vec<String>,
    /// Paths beyond those that are named.
    more: u64,
}

impl Repaired {
    fn new(report: RepairReport, dry_run: bool) -> Self {
        let pack = |pack: perennial_snapshots::DamagedPack| Pack {
            id: pack.id.to_string(),
            reason: pack.reason,
            blobs_salvaged: pack.salvaged,
            blobs_lost: pack.lost,
            fate: match pack.fate {
                Fate::Gone => "gone",
                Fate::Replaced => "replaced",
                Fate::SetAside => "setAside",
            },
        };
        Self {
            dry_run,
            snapshots: report.snapshots,
            packs_read: report.packs,
            damaged_packs: report.damaged_packs.into_iter().map(pack).collect(),
            damaged_indexes: report.damaged_indexes.iter().map(ToString::to_string).collect(),
            damaged_snapshots: report.damaged_snapshots.iter().map(ToString::to_string).collect(),
            packs_found: report.packs_found,
            entries_corrected: report.entries_corrected,
            indexes_replaced: report.indexes_replaced,
            hurt: report
                .hurt
                .into_iter()
                .map(|hurt| Hurt { snapshot: hurt.id.to_string(), paths: hurt.paths, more: hurt.more })
                .collect(),
        }
    }

    fn facts(&self) -> Facts {
        let mut facts = Facts::default();
        let aside = "kept out of the way, below damaged/ of the repository";
        for pack in &self.damaged_packs {
            let fate = match pack.fate {
                "gone" => "it is gone",
                "replaced" => "all it held is elsewhere, and a prune deletes it",
                _ => aside,
            };
            let (id, counts) = (short(&pack.id), (pack.blobs_salvaged, pack.blobs_lost));
            let text = format!("{id}: {}; {} blobs salvaged, {} lost; {fate}", pack.reason, counts.0, counts.1);
            facts.fact("damaged pack", text);
        }
        for id in &self.damaged_indexes {
            facts.fact("damaged index", format!("{}: {aside}", short(id)));
        }
        for id in &self.damaged_snapshots {
            facts.fact("damaged snapshot", format!("{}: lost; {aside}", short(id)));
        }
        for hurt in &self.hurt {
            let more = if hurt.more > 0 { format!(", and {} more", hurt.more) } else { String::new() };
            facts.fact("hurt snapshot", format!("{}: {}{more}", short(&hurt.snapshot), hurt.paths.join(", ")));
        }
        if self.packs_found > 0 {
            facts.fact("found", format!("{} packs that the index had lost", self.packs_found));
        }
        if self.entries_corrected > 0 {
            facts.fact("corrected", format!("{} packs of which the index said something else", self.entries_corrected));
        }
        facts.fact("looked at", format!("{} snapshots, {} packs", self.snapshots, self.packs_read));
        let nothing = self.damaged_packs.is_empty() && self.indexes_replaced == 0 && self.damaged_snapshots.is_empty();
        facts.fact(
            "result",
            match (nothing, self.dry_run) {
                (true, _) => "there is nothing to repair",
                (false, true) => "this was a dry run: nothing was done",
                (false, false) => "the index names what is really there",
            },
        );
        facts
    }
}

pub(super) fn repair(desk: &mut Desk<'_>, args: &RepairArgs) -> Result<(), Failure> {
    let (place, repository) = desk.open(&args.place)?;
    let mode = if args.dry_run { Mode::DryRun } else { Mode::Execute };
    let request = RepairRequest { mode, now: Timestamp::now() };
    let report = desk.work(&place, "repair", |progress| repository.repair(&request, progress))?;
    let repaired = Repaired::new(report, args.dry_run);
    desk.show(&repaired, |repaired, out| repaired.facts().render(out))?;
    match repaired.hurt.len() + repaired.damaged_snapshots.len() {
        0 => Ok(()),
        n => {
            let hint = "back the same directories up again: what is still there makes these snapshots whole, too";
            Err(Failure::new(Exit::Failed, format!("{}: {n} snapshots are hurt", place.name), hint))
        }
    }
}
