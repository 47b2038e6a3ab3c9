//! `[snapshots]`: when snapshots are taken and which are kept, where a pod says nothing.

use perennial_core::Error;
use perennial_core::schedule::SnapshotRules;
use serde::{Deserialize, Serialize};

use super::ConfigError;
use crate::api::retention::domain_rules;
use crate::api::wire;

/// `[snapshots]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SnapshotSection {
    /// Cron expression, or `off`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
    /// The time zone that schedule and retention count in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_zone: Option<String>,
    /// How many are kept. Last, because it is a table in TOML.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep: Option<wire::Keep>,
}

impl SnapshotSection {
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The rules, checked.
    ///
    /// # Errors
    /// [`ConfigError::Value`] naming the key.
    pub fn rules(&self) -> Result<SnapshotRules, ConfigError> {
        let rules = domain_rules(&wire::SnapshotRules {
            schedule: self.schedule.clone(),
            time_zone: self.time_zone.clone(),
            keep: self.keep,
        });
        rules.validate().map(|()| rules).map_err(|error| {
            let (field, problem) = match &error {
                Error::InvalidInput { field, problem, hint } => (field.as_str(), format!("{problem}: {hint}")),
                other => ("", other.to_string()),
            };
            let (key, hint) = match field {
                "snapshots.schedule" => ("snapshots.schedule", "such as \"0 3 * * *\""),
                "snapshots.timeZone" => ("snapshots.time_zone", "such as \"Europe/Berlin\""),
                _ => ("snapshots.keep", "perennial.example.toml shows every key"),
            };
            super::value(key, problem, hint)
        })
    }
}
