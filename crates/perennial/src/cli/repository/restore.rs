//! Bytes out of a repository: restore, to an empty directory and in place.

use std::path::{Path, PathBuf};

use perennial_snapshots::{Counts, Existing, Lost, Removals, RestorePreview, RestoreRequest, WhyLost};
use serde::Serialize;

use super::args::RestoreArgs;
use super::clean::confirm;
use super::open::{Desk, Place};
use super::read::{find, short};
use crate::cli::failure::{Exit, Failure};
use crate::cli::human::size;
use crate::cli::out::clean;

/// So many of the paths whose content would be gone are shown.
const SHOWN: usize = 20;

/// What a restore did.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Restored {
    snapshot: String,
    target: PathBuf,
    files: u64,
    dirs: u64,
    bytes: u64,
    /// Files that were there already with the same content.
    unchanged_files: u64,
    written_bytes: u64,
    /// Entries that were removed, each with everything below it counting once.
    removed_entries: u64,
}

/// What a restore in place would do.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Previewed {
    dry_run: bool,
    snapshot: String,
    target: PathBuf,
    added: u64,
    replaced: u64,
    /// Everything below a directory that goes included.
    removed: u64,
    removed_bytes: u64,
    unchanged: u64,
    /// The first whose content would be gone.
    lost: Vec<LostPath>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct LostPath {
    /// Relative to the target.
    path: String,
    because: &'static str,
}

impl From<&Lost> for LostPath {
    fn from(lost: &Lost) -> Self {
        let because = match lost.why {
            WhyLost::Extra => "the snapshot does not have it",
            WhyLost::OtherKind => "the snapshot has something of another kind there",
            WhyLost::OtherContent => "the snapshot has another content there",
        };
        Self { path: lost.path.display().to_string(), because }
    }
}

impl Previewed {
    fn text(&self) -> String {
        let mut lines = vec![format!(
            "in {}: {} removed ({}), {} replaced, {} added, {} as they must be already",
            clean(&self.target.display().to_string()),
            self.removed,
            size(self.removed_bytes),
            self.replaced,
            self.added,
            self.unchanged
        )];
        lines.extend(self.lost.iter().map(|lost| format!("  {}: {}", clean(&lost.path), lost.because)));
        if self.lost.len() == SHOWN {
            lines.push("  (no more are shown)".to_owned());
        }
        lines.join("\n")
    }
}

/// What becomes of what the snapshot does not have, when `removed` of it were found: what comes into the directory after that was not
/// there to be asked about.
fn as_asked(existing: Existing, removed: u64) -> Existing {
    match existing {
        Existing::Replace if removed == 0 => Existing::Keep,
        other => other,
    }
}

pub(super) fn restore(desk: &mut Desk<'_>, args: &RestoreArgs) -> Result<(), Failure> {
    let existing = match (args.in_place, args.keep_extra) {
        (false, _) => Existing::MustBeEmpty,
        (true, false) => Existing::Replace,
        (true, true) => Existing::Keep,
    };
    let (place, repository) = desk.open(&args.place)?;
    if args.in_place {
        refuse_own_ground(args, &place)?;
    }
    let snapshot = find(&repository, &place.name, &args.snapshot)?;
    let mut request = RestoreRequest {
        subtree: args.path.clone().unwrap_or_else(|| "/".to_owned()),
        target: args.target.clone(),
        existing,
        removals: Removals::Ignore,
        against_lower: None,
    };
    if args.in_place && (args.dry_run || !args.yes) {
        let found = desk
            .work(&place, "compare", |progress| repository.restore_preview(snapshot.id, &request, SHOWN, progress))?;
        let loses_anything = found.loses_anything();
        let preview = previewed(snapshot.id.to_string(), args, &found);
        if args.dry_run {
            return desk
                .show(&preview, |preview, _| format!("{}\nThis was a dry run: nothing was done.", preview.text()));
        }
        request.existing = as_asked(existing, found.removed);
        if loses_anything {
            let what = "What is removed or replaced will be gone for good:";
            confirm(desk, "restore", &format!("{what}\n{}", preview.text()))?;
        }
    }
    let done = desk.work(&place, "restore", |progress| repository.restore(snapshot.id, &request, progress))?;
    let Counts { files, dirs, bytes } = done.counts;
    let restored = Restored {
        snapshot: snapshot.id.to_string(),
        target: args.target.clone(),
        files,
        dirs,
        bytes,
        unchanged_files: done.unchanged_files,
        written_bytes: done.written_bytes,
        removed_entries: done.removed_entries,
    };
    let in_place = args.in_place;
    desk.show(&restored, |restored, _| {
        let text = format!(
            "snapshot {} was restored to {}: {} files, {} directories, {}",
            short(&restored.snapshot),
            clean(&restored.target.display().to_string()),
            restored.files,
            restored.dirs,
            size(restored.bytes)
        );
        if !in_place {
            return text;
        }
        format!(
            "{text}; {} files were there already, {} written, {} removed",
            restored.unchanged_files,
            size(restored.written_bytes),
            restored.removed_entries
        )
    })
}

fn previewed(snapshot: String, args: &RestoreArgs, found: &RestorePreview) -> Previewed {
    Previewed {
        dry_run: args.dry_run,
        snapshot,
        target: args.target.clone(),
        added: found.added,
        replaced: found.replaced,
        removed: found.removed,
        removed_bytes: found.removed_bytes,
        unchanged: found.unchanged,
        lost: found.lost.iter().map(LostPath::from).collect(),
    }
}

/// What a restore in place would remove or overwrite must not be what it reads from, nor what opens that.
fn refuse_own_ground(args: &RestoreArgs, place: &Place) -> Result<(), Failure> {
    let Ok(target) = args.target.canonicalize() else { return Ok(()) };
    let inside =
        |path: Option<&Path>| path.and_then(|path| path.canonicalize().ok()).filter(|p| p.starts_with(&target));
    let wrong = |what: &str, path: &Path| {
        let message = format!("target: {what} ({}) is in the directory to restore to", path.display());
        let hint = "move it elsewhere, or restore to another directory: nothing was done";
        Failure::new(Exit::Invalid, message, hint)
    };
    if let Some(path) = inside(place.directory.as_deref()) {
        return Err(wrong("the repository", &path));
    }
    if let Some(path) = inside(args.place.password_file.as_deref()) {
        return Err(wrong("the password file", &path));
    }
    let repository = place.directory.as_deref().and_then(|path| path.canonicalize().ok());
    match repository.filter(|repository| target.starts_with(repository)) {
        Some(path) => Err(Failure::new(
            Exit::Invalid,
            format!("target: it is in the repository ({})", path.display()),
            "name a directory outside of it: nothing was done",
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_asked_when_nothing_is_to_be_removed_and_nothing_is_removed_then() {
        assert_eq!(as_asked(Existing::Replace, 0), Existing::Keep);
        assert_eq!(as_asked(Existing::Replace, 1), Existing::Replace);
        assert_eq!(as_asked(Existing::Keep, 1), Existing::Keep);
    }
}
