//! `[limits]`: what the server's own work takes from its machine, on which pods run as well.

use std::num::NonZeroUsize;

use perennial_snapshots::Effort;
use serde::{Deserialize, Serialize};

use super::{ConfigError, value};

/// Pods that are worked on at the same time, where nothing else is said.
const PODS_AT_ONCE: usize = 8;
/// More would be no limit.
const PODS_MAX: usize = 256;
/// The furthest that a thread can stand back (nice(1)).
const NICE_MAX: u8 = 19;

/// `[limits]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitSection {
    /// Threads of one snapshot, restore or check.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<NonZeroUsize>,
    /// How far these threads stand back behind others, 0 to 19.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nice: Option<u8>,
    /// Pods that are worked on at the same time; each may take some 200 MB of memory for its snapshot or restore.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pods_at_once: Option<NonZeroUsize>,
}

impl LimitSection {
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if let Some(nice) = self.nice.filter(|nice| *nice > NICE_MAX) {
            return Err(value("limits.nice", format!("{nice} is out of range"), "use 0 to 19"));
        }
        match self.pods_at_once.map(NonZeroUsize::get).filter(|pods| *pods > PODS_MAX) {
            Some(pods) => Err(value("limits.pods_at_once", format!("{pods} is out of range"), "use 1 to 256")),
            None => Ok(()),
        }
    }

    /// What work on a repository may take.
    #[must_use]
    pub fn effort(&self) -> Effort {
        Effort { threads: self.threads, nice: self.nice.unwrap_or_default() }
    }

    /// Pods that are worked on at the same time.
    #[must_use]
    pub fn pods_at_once(&self) -> usize {
        self.pods_at_once.map_or(PODS_AT_ONCE, NonZeroUsize::get)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_checked_by_name_and_have_defaults() {
        let section = |text: &str| toml::from_str::<LimitSection>(text).expect("a section");
        assert_eq!((section("").effort(), section("").pods_at_once()), (Effort::default(), 8));
        let all = section("threads = 2\nnice = 19\npods_at_once = 1");
        assert_eq!((all.effort(), all.pods_at_once()), (Effort { threads: NonZeroUsize::new(2), nice: 19 }, 1));
        assert!(all.check().is_ok());
        for (text, field) in [("nice = 20", "limits.nice"), ("pods_at_once = 1000", "limits.pods_at_once")] {
            let error = section(text).check().expect_err(text).to_string();
            assert!(error.contains(field), "{error}");
        }
        for wrong in ["threads = 0", "pods_at_once = 0", "nice = -1", "memory = 1"] {
            assert!(toml::from_str::<LimitSection>(wrong).is_err(), "{wrong}");
        }
    }
}
