//! The document of what was found of a tenant that is erased, and what became of it.

use std::collections::{BTreeMap, BTreeSet};

use perennial_snapshots::{Id, Seen};
use serde::{Deserialize, Serialize};

use super::{DOCUMENT_VERSION, RowError, Stored, check_version, corrupt, read, stored_struct, write};
use crate::store::{Became, FoundPlace, FoundPlaces, ServerKeys, StoreError};

impl Stored for Id {
    type Row = Self;
    fn to_row(&self) -> Self {
        *self
    }
    fn from_row(row: Self) -> Result<Self, RowError> {
        Ok(row)
    }
}

impl Stored for BTreeSet<Id> {
    type Row = Self;
    fn to_row(&self) -> Self {
        self.clone()
    }
    fn from_row(row: Self) -> Result<Self, RowError> {
        Ok(row)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) enum BecameRow {
    Emptied { files: u64, bytes: u64 },
    KeysGone,
    Absent,
    GivenUp,
    Untouched,
}

impl Stored for Became {
    type Row = BecameRow;
    fn to_row(&self) -> BecameRow {
        match *self {
            Self::Emptied { files, bytes } => BecameRow::Emptied { files, bytes },
            Self::KeysGone => BecameRow::KeysGone,
            Self::Absent => BecameRow::Absent,
            Self::GivenUp => BecameRow::GivenUp,
            Self::Untouched => BecameRow::Untouched,
        }
    }
    fn from_row(row: BecameRow) -> Result<Self, RowError> {
        Ok(match row {
            BecameRow::Emptied { files, bytes } => Self::Emptied { files, bytes },
            BecameRow::KeysGone => Self::KeysGone,
            BecameRow::Absent => Self::Absent,
            BecameRow::GivenUp => Self::GivenUp,
            BecameRow::Untouched => Self::Untouched,
        })
    }
}

stored_struct!(SeenRow = Seen { config: Id, keys: BTreeSet<Id>, snapshots: BTreeSet<Id> });
stored_struct!(FoundPlaceRow = FoundPlace {
    location: String,
    seen: Option<Seen>,
    prints: Vec<String>,
    snapshots: Option<u64>,
    bytes: Option<u64>,
    became: Option<Became>,
});
stored_struct!(FoundPlacesRow = FoundPlaces { repository: FoundPlace, replica: Option<FoundPlace> });
stored_struct!(ServerKeysRow = ServerKeys { files: u64, problem: Option<String> });

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    v: u32,
    found: FoundPlacesRow,
    servers: BTreeMap<String, ServerKeysRow>,
}

/// Writes the `found` column.
pub(in crate::store) fn found_to_text(
    found: &FoundPlaces,
    servers: &BTreeMap<String, ServerKeys>,
) -> Result<String, StoreError> {
    let servers = servers.iter().map(|(server, keys)| (server.clone(), keys.to_row())).collect();
    write("erasure", &Document { v: DOCUMENT_VERSION, found: found.to_row(), servers })
}

/// Reads the `found` column.
pub(in crate::store) fn found_from_text(text: &str) -> Result<(FoundPlaces, BTreeMap<String, ServerKeys>), StoreError> {
    let document: Document = read("erasure", text)?;
    check_version("erasure", document.v)?;
    let wrong = |error: RowError| corrupt("erasure", error);
    let servers = document.servers.into_iter().map(|(server, keys)| Ok((server, ServerKeys::from_row(keys)?)));
    Ok((
        FoundPlaces::from_row(document.found).map_err(wrong)?,
        servers.collect::<Result<_, RowError>>().map_err(wrong)?,
    ))
}
