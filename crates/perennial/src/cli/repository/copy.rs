//! Copy: snapshots to another repository.

use perennial_snapshots::{Copied, SnapshotFileId, SnapshotInfo};
use serde::Serialize;

use super::args::CopyArgs;
use super::open::{Desk, failure};
use super::read::{pick, short};
use crate::causes::describe;
use crate::cli::failure::{Exit, Failure};
use crate::cli::human::size;
use crate::cli::out::clean;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    snapshots: Vec<Pair>,
    /// Snapshots that were there already.
    already: Vec<Pair>,
    /// Those of them that had lost something there, which was sent again.
    healed: Vec<Pair>,
    failed: Vec<Failed>,
    blobs: u64,
    /// Bytes read from packs of the first repository, trees not counted.
    read_bytes: u64,
    /// Bytes the other repository grew by.
    new_bytes: u64,
}

/// A snapshot, and what it is called in the repository it was copied to.
#[derive(Serialize)]
struct Pair {
    snapshot: String,
    copy: String,
}

#[derive(Serialize)]
struct Failed {
    snapshot: String,
    problem: String,
}

impl From<Copied> for Report {
    fn from(copied: Copied) -> Self {
        let pairs = |pairs: Vec<(SnapshotFileId, SnapshotFileId)>| {
            pairs.into_iter().map(|(id, copy)| Pair { snapshot: id.to_string(), copy: copy.to_string() }).collect()
        };
        let failed = |(id, error): &(SnapshotFileId, perennial_snapshots::Error)| Failed {
            snapshot: id.to_string(),
            problem: describe(error),
        };
        Self {
            failed: copied.failed.iter().map(failed).collect(),
            snapshots: pairs(copied.snapshots),
            already: pairs(copied.already),
            healed: pairs(copied.healed),
            blobs: copied.blobs,
            read_bytes: copied.read_bytes,
            new_bytes: copied.new_bytes,
        }
    }
}

pub(super) fn copy(desk: &mut Desk<'_>, args: &CopyArgs) -> Result<(), Failure> {
    // Everything that can be wrong with either is told before one of them is touched.
    let to = desk.place_to(args)?;
    let (place, from) = desk.open(&args.place)?;
    let repository = to.open()?;
    // A file that cannot be read must not keep the others from being copied when all are meant.
    let all = match args.snapshots.is_empty() {
        true => Vec::new(),
        false => from.find(&[]).map_err(|e| failure(&e, &place.name))?,
    };
    let chosen = args.snapshots.iter().map(|text| pick(&all, text)).collect::<Result<Vec<&SnapshotInfo>, _>>()?;
    let chosen: Vec<SnapshotFileId> = chosen.iter().map(|info| info.id).collect();
    let copied = desk.work(&to, "copy", |progress| repository.copy_from(&from, &chosen, progress))?;
    let report = Report::from(copied);
    desk.show(&report, |report, _| {
        let mut text = String::new();
        for pair in &report.snapshots {
            text.push_str(&format!("snapshot {} was copied as {}\n", short(&pair.snapshot), short(&pair.copy)));
        }
        for pair in &report.healed {
            text.push_str(&format!("copy {} had lost something, and is whole again\n", short(&pair.copy)));
        }
        for failed in &report.failed {
            let line = format!("snapshot {} cannot be copied: {}", short(&failed.snapshot), failed.problem);
            text.push_str(&format!("{}\n", clean(&line)));
        }
        let (copied, already) = (report.snapshots.len(), report.already.len());
        text.push_str(&format!("{copied} snapshots copied, {already} were there; {} new", size(report.new_bytes)));
        text
    })?;
    match report.failed.len() {
        0 => Ok(()),
        n => {
            let hint =
                "perennial repository repair salvages what can be, and names what is lost; see it with --dry-run";
            Err(Failure::new(Exit::Failed, format!("{}: {n} snapshots are damaged", place.name), hint))
        }
    }
}
