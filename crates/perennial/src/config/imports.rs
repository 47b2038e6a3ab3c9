//! `[imports]`: how much an archive may be that becomes a snapshot.

use std::num::NonZeroU64;

use serde::{Deserialize, Serialize};

use crate::api::wire;
use crate::import::Limits;

/// `[imports]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ImportSection {
    /// Bytes of all contents of one archive, such as "256Gi".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<wire::Size>,
    /// Entries of one archive; each takes some 500 bytes of memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_entries: Option<NonZeroU64>,
}

impl ImportSection {
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The limits, defaults filled in.
    #[must_use]
    pub fn limits(&self) -> Limits {
        let default = Limits::default();
        Limits {
            bytes: self.max_bytes.map_or(default.bytes, |size| size.0),
            entries: self.max_entries.map_or(default.entries, NonZeroU64::get),
        }
    }
}
