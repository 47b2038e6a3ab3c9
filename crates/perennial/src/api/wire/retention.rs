//! When snapshots are taken, which are kept, and what a forget says about each.

use jiff::{SignedDuration, Span, SpanRelativeTo};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use super::answer::{Operation, Snapshot};

/// When a pod's snapshots are taken and which are kept; what is null is the installation's.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SnapshotRules {
    /// Cron expression: minute, hour, day of month, month, day of week; or `off`. A pod's time is up to five minutes
    /// later, so that not all begin at once.
    pub schedule: Option<String>,
    /// The time zone that the schedule, and the days and months of `keep`, are counted in; UTC when nobody says.
    pub time_zone: Option<String>,
    /// Which snapshots are kept; without any rule all are.
    pub keep: Option<Keep>,
}

/// How many snapshots are kept: of scheduled ones, and of those that stops, resets and restores took, each group by
/// itself. 0 or null is no rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Keep {
    /// The newest so many.
    pub last: u32,
    /// The newest of each of the last so many hours that have one.
    pub hourly: u32,
    /// The same of days.
    pub daily: u32,
    /// The same of weeks.
    pub weekly: u32,
    /// The same of months.
    pub monthly: u32,
    /// The same of years.
    pub yearly: u32,
    /// All that are at most this much older than the newest, such as "30d".
    pub within: Option<Age>,
    /// Never fewer verified snapshots than this.
    pub minimum: u32,
    /// Whether snapshots that somebody asked for rotate with the scheduled ones, instead of being kept until they are
    /// deleted by hand.
    pub manual: bool,
}

/// A length of time: "30d", "12h", "1w 2d"; days have 24 hours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Age(pub SignedDuration);

impl Age {
    /// Reads days and hours.
    ///
    /// # Errors
    /// One sentence that says what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = |_| "write days and hours, such as \"30d\" or \"12h\"".to_owned();
        let span: Span = text.parse().map_err(wrong)?;
        span.to_duration(SpanRelativeTo::days_are_24_hours()).map(Self).map_err(wrong)
    }
}

impl std::fmt::Display for Age {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let hours = self.0.as_hours();
        if self.0 == SignedDuration::from_hours(hours / 24 * 24) {
            write!(f, "{}d", hours / 24)
        } else if self.0 == SignedDuration::from_hours(hours) {
            write!(f, "{hours}h")
        } else {
            write!(f, "{:#}", self.0)
        }
    }
}

impl Serialize for Age {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Age {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

impl PartialSchema for Age {
    fn schema() -> RefOr<Schema> {
        let schema = ObjectBuilder::new().schema_type(Type::String);
        schema.description(Some("A length of time, such as 30d or 12h; days have 24 hours.")).into()
    }
}

impl ToSchema for Age {
    fn name() -> std::borrow::Cow<'static, str> {
        "Age".into()
    }
}

/// Asks which of a pod's snapshots may go, or lets them go.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ForgetRequest {
    /// Say what would go and why, and do nothing.
    pub dry_run: bool,
    /// Other rules than the pod's, for this once.
    pub keep: Option<Keep>,
    /// The pod's name; needed unless it is a dry run.
    pub confirm: Option<String>,
}

/// What becomes of every snapshot of a pod, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Forgetting {
    /// Whether nothing was done.
    pub dry_run: bool,
    /// The rules that were applied.
    pub keep: Keep,
    /// The time zone they count in.
    pub time_zone: String,
    /// Every snapshot, newest first.
    pub decisions: Vec<Decision>,
    /// The deletions that were begun, one for each snapshot that goes.
    pub operations: Vec<Operation>,
}

/// What becomes of one snapshot, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Decision {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// `keep` or `forget`.
    pub action: Fate,
    /// Why, in words.
    pub reasons: Vec<String>,
}

/// Whether a snapshot stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Fate {
    /// It stays.
    Keep,
    /// It may go.
    Forget,
}
