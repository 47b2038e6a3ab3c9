//! What a pod runs around the freeze of a snapshot, and what became of it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::names::OnHookFailure;

/// What a pod runs around the freeze of a snapshot. No hook runs for a stop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Hooks {
    /// Runs in the pod before the freeze, so that what it buffers is on disk then; null: nothing does.
    pub before: Option<Hook>,
    /// Runs once the pod goes on, whenever `before` may have been started, and perhaps twice; null: nothing does.
    pub after: Option<Hook>,
    /// What becomes of a snapshot whose `before` failed.
    pub on_failure: OnHookFailure,
}

impl Default for Hooks {
    fn default() -> Self {
        Self { before: None, after: None, on_failure: OnHookFailure::Fail }
    }
}

/// A program in the pod's container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Hook {
    /// The program and its arguments; no shell is involved.
    pub command: Vec<String>,
    /// Who runs it; null for the user of the container.
    #[serde(default)]
    pub user: Option<String>,
    /// Seconds it may take; then it is ended, and has failed. 30 when left out.
    #[serde(default = "timeout_default")]
    pub timeout: u32,
}

const fn timeout_default() -> u32 {
    perennial_core::hook::TIMEOUT_DEFAULT
}

/// What became of the hooks of one snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct HookReport {
    /// Null when it was not run.
    pub before: Option<HookRun>,
    /// Null when it was not run, or not yet.
    pub after: Option<HookRun>,
}

/// What became of one hook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct HookRun {
    /// Its exit status; null when it did not end by itself, or was never started.
    pub exit_code: Option<i64>,
    /// How long it took, in milliseconds.
    pub millis: u64,
    /// What went wrong; null when it ended with status 0 in time.
    pub problem: Option<String>,
}
