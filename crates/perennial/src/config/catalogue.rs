//! `[catalogue]`: where the services come from that can be ordered.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::catalogue::Place;

/// `[catalogue]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CatalogueSection {
    /// The directory of the files; `None`: `catalogue` in the data directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub directory: Option<PathBuf>,
}

impl CatalogueSection {
    pub(super) const fn is_empty(&self) -> bool {
        self.directory.is_none()
    }

    /// Where the files are.
    #[must_use]
    pub fn place(&self, data_dir: &Path) -> Place {
        match &self.directory {
            // A relative one is below the data directory, wherever the server was started.
            Some(directory) => Place::Named(data_dir.join(directory)),
            None => Place::Usual(data_dir.join("catalogue")),
        }
    }
}
