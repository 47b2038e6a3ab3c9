//! `[limits]`: what the server's own work takes from its machine, on which pods run as well.

use std::num::NonZeroUsize;

use perennial_snapshots::{Effort, Memory};
use serde::{Deserialize, Serialize};

use super::{ConfigError, value};
use crate::api::wire;

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
    /// The most bytes that one snapshot, restore or check keeps in flight; without it as much as its threads need. Not bounded by
    /// it: the index of the repository.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<wire::Size>,
    /// Pods that are worked on at the same time; without `memory` each may take some 200 MB for its snapshot or restore.
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
        if let Some(Err(error)) = self.memory.map(|size| Memory::new(size.0)) {
            return Err(value("limits.memory", error.to_string(), error.hint()));
        }
        match self.pods_at_once.map(NonZeroUsize::get).filter(|pods| *pods > PODS_MAX) {
            Some(pods) => Err(value("limits.pods_at_once", format!("{pods} is out of range"), "use 1 to 256")),
            None => Ok(()),
        }
    }

    /// What work on a repository may take.
    #[must_use]
    pub fn effort(&self) -> Effort {
        // Too little was refused when the configuration was read.
        let memory = self.memory.map(|size| Memory::new(size.0).unwrap_or(Memory::LEAST));
        Effort { threads: self.threads, nice: self.nice.unwrap_or_default(), memory }
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
        let all = section("threads = 2\nnice = 19\nmemory = \"128Mi\"\npods_at_once = 1");
        let effort = Effort { threads: NonZeroUsize::new(2), nice: 19, memory: Some(Memory::LEAST) };
        assert_eq!((all.effort(), all.pods_at_once()), (effort, 1));
        assert!(all.check().is_ok());
        let bytes = section("memory = 300000000");
        assert_eq!((bytes.effort().memory.map(Memory::bytes), bytes.check().is_ok()), (Some(300_000_000), true));
        for (text, field) in [
            ("nice = 20", "limits.nice"),
            ("pods_at_once = 1000", "limits.pods_at_once"),
            ("memory = 1", "limits.memory"),
        ] {
            let error = section(text).check().expect_err(text);
            assert!(error.to_string().contains(field), "{error}");
        }
        let error = section("memory = \"127Mi\"").check().expect_err("too little");
        assert!(error.hint().contains("128Mi"), "the least that works is named: {}", error.hint());
        for wrong in ["threads = 0", "pods_at_once = 0", "nice = -1", "memory = \"much\"", "ram = 1"] {
            assert!(toml::from_str::<LimitSection>(wrong).is_err(), "{wrong}");
        }
    }
}
