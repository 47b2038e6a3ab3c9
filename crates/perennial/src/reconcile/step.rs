//! How a step can end badly, in terms of what the worker does next.

use perennial_core::engine::EngineError;
use perennial_core::operation::Problem;

use crate::causes::describe;
use crate::store::StoreError;

/// Why a step did not succeed.
#[derive(Debug)]
pub(super) enum StepError {
    /// It may work later: try again after a delay.
    Retry(Problem),
    /// Trying again does not help: the operation that waits for it ends.
    Definite(Problem),
    /// What it needs is in other hands for now: look again soon. Nothing failed.
    Occupied,
    /// Somebody else changed the record or took the lease: look anew.
    Overtaken,
    /// It was cancelled by its owner.
    Cancelled,
}

pub(super) fn problem(code: &str, message: impl Into<String>, hint: &str) -> Problem {
    Problem { code: code.to_owned(), message: message.into(), hint: hint.to_owned() }
}

pub(super) fn retry(code: &str, message: impl Into<String>) -> StepError {
    StepError::Retry(problem(code, message, ""))
}

pub(super) fn definite(code: &str, message: impl Into<String>, hint: &str) -> StepError {
    StepError::Definite(problem(code, message, hint))
}

impl From<EngineError> for StepError {
    fn from(error: EngineError) -> Self {
        let message = error.to_string();
        match error {
            EngineError::Rejected { .. } => {
                definite("engine-refused", message, "change what the engine refuses and try again")
            }
            EngineError::NotFound { .. } => retry("engine-not-found", message),
            EngineError::Conflict { .. } => retry("engine-conflict", message),
            EngineError::Transient { .. } => retry("engine-unavailable", message),
            EngineError::OutcomeUnknown { .. } => retry("engine-outcome-unknown", message),
        }
    }
}

impl From<StoreError> for StepError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Stale | StoreError::LeaseLost => Self::Overtaken,
            other => retry("database-unavailable", describe(&other)),
        }
    }
}

impl From<perennial_snapshots::Error> for StepError {
    fn from(error: perennial_snapshots::Error) -> Self {
        use perennial_snapshots::Error as E;
        let message = describe(&error);
        match error {
            E::Cancelled => Self::Cancelled,
            E::Incomplete { losses } => {
                let shown: Vec<String> = losses.iter().take(20).map(ToString::to_string).collect();
                let more = losses.len().saturating_sub(shown.len());
                let more = if more > 0 { format!(" and {more} more") } else { String::new() };
                definite(
                    "snapshot-incomplete",
                    format!("these could not be captured: {}{more}", shown.join("; ")),
                    "mend them, or accept exactly these paths with acceptLoss",
                )
            }
            E::Locked { .. } | E::LockLost => retry("repository-locked", message),
            E::Remote { .. } => retry("mover-failed", message),
            E::NotHeld { .. } => retry("freeze-broken", message),
            E::WrongPassword | E::NoRepository | E::NotSeen { .. } | E::UnsupportedVersion { .. } => {
                retry("repository-unreadable", message)
            }
            E::Damaged { .. } | E::MissingBlob { .. } | E::InvalidContent { .. } | E::Mismatch { .. } => {
                retry("repository-damaged", message)
            }
            E::NotFound { .. } => retry("repository-snapshot-missing", message),
            E::NotComposable { .. } => {
                definite("parts-not-composable", message, "choose other parts, or restore everything")
            }
            E::NoSpace { .. } => retry("no-space", message),
            E::UnknownOverlayAttribute { .. } => definite("snapshot-incomplete", message, "remove the attribute"),
            _ => retry("repository-unavailable", message),
        }
    }
}
