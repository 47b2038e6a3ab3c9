//! `[drills]`: when snapshots are proven by restoring them.

use std::num::NonZeroU8;

use perennial_core::schedule::SnapshotRules;
use serde::{Deserialize, Serialize};

use super::{ConfigError, value};
use crate::tasks::DrillRules;

/// The share when none is written, in percent.
const SHARE: NonZeroU8 = match NonZeroU8::new(10) {
    Some(share) => share,
    None => NonZeroU8::MIN,
};

/// `[drills]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DrillSection {
    /// Cron expression, or `off`; left out: off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
    /// The time zone that the schedule counts in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_zone: Option<String>,
    /// Percent of the pods that are drilled each time, at least one, and of all packs that are read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share: Option<NonZeroU8>,
}

impl DrillSection {
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The rules, checked; `None` when nothing is drilled by itself.
    ///
    /// # Errors
    /// [`ConfigError::Value`] naming the key.
    pub fn rules(&self) -> Result<Option<DrillRules>, ConfigError> {
        let share = self.share.unwrap_or(SHARE);
        if share.get() > 100 {
            return Err(value("drills.share", format!("{share} is more than everything"), "write percent, 1 to 100"));
        }
        let rules = SnapshotRules { schedule: self.schedule.clone(), time_zone: self.time_zone.clone(), keep: None };
        match rules.over(&SnapshotRules::default()) {
            Ok(rules) => Ok(rules.schedule.map(|schedule| DrillRules { schedule, share })),
            Err(perennial_core::Error::InvalidInput { field, problem, .. }) if field.ends_with("timeZone") => {
                Err(value("drills.time_zone", problem, "such as \"Europe/Berlin\""))
            }
            Err(error) => Err(value("drills.schedule", error.to_string(), "such as \"30 4 * * *\", or \"off\"")),
        }
    }
}
