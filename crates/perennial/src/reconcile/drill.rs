//! Carries out drills: a snapshot of a pod is restored into scratch and compared, and its image is read.

use std::path::Path;

use perennial_core::id::OperationId;
use perennial_core::operation::Problem;
use perennial_core::snapshot::Snapshot;
use perennial_snapshots::{Drilled, Error, Room, Verify};

use super::images::blocking;
use super::layer::parse_id;
use super::step::{StepError, problem, retry};
use super::worker::Reconciler;
use crate::causes::describe;

/// What directories of drills begin with, below the scratch directory.
const DRILL: &str = "drill-";
/// Directories of a snapshot whose entries are restored one by one, as a start does.
const APART: &[&str] = &["volumes"];
/// One part in so many of the scratch directory's file system stays free: pods and snapshots may be on it, too.
const KEPT_FREE: u64 = 20;

/// Why a drill did not prove a snapshot.
#[derive(Debug)]
pub enum Unproven {
    /// The snapshot, its image, or the way back from them is not good.
    Damaged(String),
    /// It could not be tried to the end, which says nothing about the snapshot.
    NotRun(Problem),
    /// Its operation was cancelled, or the server stops.
    Cancelled,
}

impl Reconciler {
    /// Proves a verified snapshot of a pod.
    ///
    /// # Errors
    /// [`Unproven`]: only `Damaged` says anything about the snapshot.
    pub async fn drill(&self, row: &Snapshot, operation: Option<OperationId>) -> Result<Drilled, Unproven> {
        let progress = self.board.begin(operation, "restore and compare");
        let result = self.drilled(row, progress).await;
        if let Some(operation) = operation {
            self.board.end(operation);
        }
        result
    }

    /// Asks a drill to end soon.
    pub fn drill_cancel(&self, operation: OperationId) {
        self.board.cancel(operation);
    }

    /// Removes what drills left behind that a crash interrupted. Called before the first one.
    pub fn drills_clean_up(&self) {
        let Ok(entries) = std::fs::read_dir(&self.settings.scratch) else { return };
        for entry in entries.flatten() {
            if entry.file_name().to_string_lossy().starts_with(DRILL)
                && let Err(error) = std::fs::remove_dir_all(entry.path())
            {
                tracing::warn!(path = %entry.path().display(), %error, "remove what a drill left behind");
            }
        }
    }

    async fn drilled(&self, row: &Snapshot, progress: perennial_core::progress::Progress) -> Result<Drilled, Unproven> {
        let stored = match &row.image {
            Some(image) => match self.store.image_fetch(&row.tenant, image).await {
                Ok(Some(stored)) => Some(stored.repository_id),
                Ok(None) => return Err(Unproven::Damaged(format!("its image {image} is not in the repository"))),
                Err(error) => return Err(StepError::from(error).into()),
            },
            None => None,
        };
        let (repositories, scratch, row) = (self.repositories.clone(), self.settings.scratch.clone(), row.clone());
        let result = blocking(move || {
            let repository = repositories.open_existing(&row.tenant)?;
            let id = parse_id(row.repository_id.as_deref().unwrap_or_default())?;
            let directory = std::fs::create_dir_all(&scratch)
                .and_then(|()| tempfile::Builder::new().prefix(DRILL).tempdir_in(&scratch))
                .map_err(|e| retry("scratch-unavailable", format!("make a scratch directory: {e}")))?;
            if let Some(image) = stored {
                let image = parse_id(&image)?;
                if let Err(error) = repository.verify(image, &Verify::Everything, &progress) {
                    let error = of_drill(error)?;
                    return Ok(Err(format!("its image cannot be read back: {error}")));
                }
            }
            match repository.drill(id, APART, directory.path(), &free_space, &progress) {
                Ok(drilled) => Ok(Ok(drilled)),
                Err(error) => Ok(Err(of_drill(error)?)),
            }
        });
        result.await?.map_err(Unproven::Damaged)
    }
}

/// What an error says about the snapshot, in words; an error again when it says nothing.
fn of_drill(error: Error) -> Result<String, StepError> {
    if error.is_damage() { Ok(describe(&error)) } else { Err(error.into()) }
}

/// What a drill may take up.
fn free_space(path: &Path) -> Result<Room, Error> {
    let stat = rustix::fs::statvfs(path).map_err(|source| Error::Io {
        doing: "look at the free space of",
        path: path.to_owned(),
        source: source.into(),
    })?;
    let left = |free: u64, all: u64| free.saturating_sub(all / KEPT_FREE);
    let bytes = left(stat.f_bavail, stat.f_blocks).saturating_mul(stat.f_frsize);
    // Of none at all the file system makes them as it needs them.
    let inodes = if stat.f_files == 0 { u64::MAX } else { left(stat.f_favail, stat.f_files) };
    Ok(Room { bytes, inodes })
}

impl From<StepError> for Unproven {
    fn from(error: StepError) -> Self {
        match error {
            StepError::Retry(problem) | StepError::Definite(problem) => Self::NotRun(problem),
            StepError::Overtaken | StepError::Occupied => {
                Self::NotRun(problem("interrupted", "it was interrupted", ""))
            }
            StepError::Cancelled => Self::Cancelled,
        }
    }
}
