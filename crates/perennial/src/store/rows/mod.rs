//! How domain types are written as JSON documents and text columns.
//!
//! Domain types carry no serde. Each has a row type of the same shape here, made by [`stored_struct`] and
//! [`stored_enum`] so that a field added to the domain type does not compile until it is stored. Documents carry their
//! format version; unknown fields are refused, so an older program never drops what a newer one wrote.

mod erasure;
mod operation;
mod pod;
mod snapshot;
mod spec;

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use perennial_core::id::{OperationId, PodId, SnapshotId};
use perennial_core::spec::{PodName, TenantId};

use super::StoreError;

pub(super) use erasure::{found_from_text, found_to_text};
pub(super) use operation::{operation_from_row, operation_to_body};
pub(super) use pod::{desired_text, phase_text, pod_from_row, source_snapshot, spec_to_text, state_to_text};
pub(super) use snapshot::{snapshot_from_body, snapshot_state_text, snapshot_to_body};

/// Version of every document's format.
const DOCUMENT_VERSION: u32 = 1;

/// A value in a row that this program cannot read.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct RowError(String);

/// A domain type that can be stored.
trait Stored: Sized {
    /// What is written.
    type Row: serde::Serialize + serde::de::DeserializeOwned;
    /// Converts for writing.
    fn to_row(&self) -> Self::Row;
    /// Converts back, checking what the type checks.
    fn from_row(row: Self::Row) -> Result<Self, RowError>;
}

macro_rules! stored_as_is {
    ($($type:ty),*) => { $(
        impl Stored for $type {
            type Row = $type;
            fn to_row(&self) -> $type {
                self.clone()
            }
            fn from_row(row: $type) -> Result<Self, RowError> {
                Ok(row)
            }
        }
    )* };
}
stored_as_is!(bool, u16, u32, u64, i64, String, Timestamp, SignedDuration, BTreeMap<String, String>, BTreeSet<String>);

macro_rules! stored_as_text {
    ($($type:ty: $parse:expr),*) => { $(
        impl Stored for $type {
            type Row = String;
            fn to_row(&self) -> String {
                self.to_string()
            }
            fn from_row(row: String) -> Result<Self, RowError> {
                $parse(&row).map_err(|e| RowError(format!("{row:?}: {e}")))
            }
        }
    )* };
}
stored_as_text!(
    PodId: str::parse::<PodId>,
    SnapshotId: str::parse::<SnapshotId>,
    OperationId: str::parse::<OperationId>,
    TenantId: TenantId::parse,
    PodName: PodName::parse
);

impl<T: Stored> Stored for Option<T> {
    type Row = Option<T::Row>;
    fn to_row(&self) -> Self::Row {
        self.as_ref().map(T::to_row)
    }
    fn from_row(row: Self::Row) -> Result<Self, RowError> {
        row.map(T::from_row).transpose()
    }
}

impl<T: Stored> Stored for Vec<T> {
    type Row = Vec<T::Row>;
    fn to_row(&self) -> Self::Row {
        self.iter().map(T::to_row).collect()
    }
    fn from_row(row: Self::Row) -> Result<Self, RowError> {
        row.into_iter().map(T::from_row).collect()
    }
}

/// Stores a struct as a JSON object with the same fields. Attributes are the row's: a field that documents of released
/// versions lack says there what it was then.
macro_rules! stored_struct {
    ($row:ident = $type:ty { $($(#[$attribute:meta])* $field:ident: $ty:ty),* $(,)? }) => {
        #[derive(serde::Serialize, serde::Deserialize)]
        #[serde(deny_unknown_fields, rename_all = "camelCase")]
        pub(super) struct $row { $($(#[$attribute])* $field: <$ty as Stored>::Row),* }

        impl Stored for $type {
            type Row = $row;
            fn to_row(&self) -> $row {
                let Self { $($field),* } = self;
                $row { $($field: Stored::to_row($field)),* }
            }
            fn from_row(row: $row) -> Result<Self, RowError> {
                Ok(Self { $($field: <$ty as Stored>::from_row(row.$field)?),* })
            }
        }
    };
}

/// Stores an enum without data as a text.
macro_rules! stored_enum {
    ($row:ident = $type:ty { $($variant:ident = $text:literal),* $(,)? }) => {
        #[derive(Clone, Copy, serde::Serialize, serde::Deserialize)]
        pub(super) enum $row { $(#[serde(rename = $text)] $variant),* }

        impl $row {
            /// The text in a column.
            #[allow(dead_code, reason = "only some enums have a column")]
            pub(super) const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }
            /// Reads the text of a column.
            #[allow(dead_code, reason = "only some enums have a column")]
            pub(super) fn parse(text: &str) -> Result<Self, RowError> {
                match text { $($text => Ok(Self::$variant),)* _ => Err(RowError(format!("unknown value {text:?}"))) }
            }
        }

        impl Stored for $type {
            type Row = $row;
            fn to_row(&self) -> $row {
                match self { $(<$type>::$variant => $row::$variant),* }
            }
            fn from_row(row: $row) -> Result<Self, RowError> {
                Ok(match row { $($row::$variant => <$type>::$variant),* })
            }
        }
    };
}

use {stored_enum, stored_struct};

/// Writes a document.
fn write<R: serde::Serialize>(what: &'static str, row: &R) -> Result<String, StoreError> {
    serde_json::to_string(row).map_err(|e| StoreError::Corrupt { what: what.to_owned(), problem: e.to_string() })
}

/// Reads a document.
fn read<R: serde::de::DeserializeOwned>(what: &str, text: &str) -> Result<R, StoreError> {
    serde_json::from_str(text).map_err(|e| corrupt(what, e))
}

/// Refuses a document of a newer format by number, before its fields are looked at.
fn check_version(what: &str, version: u32) -> Result<(), StoreError> {
    if version == DOCUMENT_VERSION {
        return Ok(());
    }
    Err(corrupt(what, format!("document version {version}, this program knows {DOCUMENT_VERSION}")))
}

pub(super) fn corrupt(what: &str, problem: impl std::fmt::Display) -> StoreError {
    StoreError::Corrupt { what: what.to_owned(), problem: problem.to_string() }
}

/// A time as a column: fixed width, so that it sorts as text.
pub(super) fn time(at: Timestamp) -> String {
    format!("{at:.9}")
}

/// Reads a time column.
pub(super) fn parse_time(what: &str, text: &str) -> Result<Timestamp, StoreError> {
    text.parse().map_err(|e| corrupt(what, e))
}

/// Reads an id or a checked name of a column.
pub(super) fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(what: &str, text: &str) -> Result<T, StoreError> {
    text.parse().map_err(|e| corrupt(what, e))
}

/// Reads a tenant column.
pub(super) fn parse_tenant(what: &str, text: &str) -> Result<TenantId, StoreError> {
    TenantId::parse(text).map_err(|e| corrupt(what, e))
}
