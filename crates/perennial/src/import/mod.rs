//! Archives that somebody sends to become snapshots.
//!
//! A tar is read as what it is, a log of entries, and becomes a tree in memory ([`tree`]); contents go straight into the
//! repository. Nothing is unpacked: names of an archive never meet a file system, so none can lead out of anywhere, no
//! device is made and no owner is given away, and the server needs no rights for any of it (docs/adr/0022).
//!
//! - `packing`: what a stream is packed with, by its first bytes;
//! - `header`, `sparse`, `reader`: tar, in the dialects that are about (ustar, GNU, PAX);
//! - `attributes`: extended attributes that a restore could not set, or must not;
//! - `tree`: the rules that an archive has to keep;
//! - `spool`: what was received, until its snapshot is made;
//! - `receive`: a body on its way in, looked at while it comes;
//! - `compose`, `layer`, `merge`: from a tree to the volumes and the system layer of a pod.
//!
//! An archive is read three times: as it arrives, so that what is wrong with it is answered at once and nothing of it
//! counts; compared with the image, so that what the image has is not stored again; and to store it.

pub(crate) mod attributes;
pub(crate) mod compose;
pub(crate) mod header;
pub(crate) mod layer;
pub(crate) mod merge;
pub(crate) mod packing;
pub(crate) mod reader;
pub(crate) mod receive;
pub(crate) mod sparse;
pub(crate) mod spool;
pub(crate) mod tree;

use std::io;

use perennial_core::Error;

use crate::library::Failure;

pub use spool::Spool;

/// How much an archive may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Entries; each takes some 500 bytes of memory.
    pub entries: u64,
    /// Bytes of all contents, holes counted in.
    pub bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { entries: 1_000_000, bytes: 256 << 30 }
    }
}

/// Whether devices may be in an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Devices {
    /// Refused: the owner of a pod could reach hardware with one, or the pods of others.
    Refused,
    /// Taken as they are.
    Allowed,
}

/// Why an archive cannot be taken.
#[derive(Debug)]
pub enum Broken {
    /// Something in it, or about it.
    Refused {
        /// What, with the entry's name.
        problem: String,
        /// What to do about it; may be empty.
        hint: &'static str,
    },
    /// It could not be read to its end.
    Io(io::Error),
}

impl Broken {
    pub(crate) fn refused(problem: impl Into<String>) -> Self {
        Self::Refused { problem: problem.into(), hint: "" }
    }

    pub(crate) fn entry(path: &[u8], problem: impl std::fmt::Display) -> Self {
        Self::refused(format!("{}: {problem}", shown(path)))
    }

    pub(crate) fn hint(self, hint: &'static str) -> Self {
        match self {
            Self::Refused { problem, .. } => Self::Refused { problem, hint },
            io => io,
        }
    }
}

impl From<perennial_snapshots::Error> for Broken {
    fn from(error: perennial_snapshots::Error) -> Self {
        Self::Io(io::Error::other(error))
    }
}

impl From<Failure> for Broken {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Repository(error) => error.into(),
            other => Self::refused(Error::from(other).to_string()),
        }
    }
}

impl From<Broken> for Error {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Refused { problem, hint } => Self::invalid("archive", problem, hint),
            Broken::Io(error) => Self::Unavailable { problem: format!("the archive cannot be read: {error}") },
        }
    }
}

/// A name as people can read it, cut where it is endless.
pub(crate) fn shown(path: &[u8]) -> String {
    const MOST: usize = 300;
    let text = String::from_utf8_lossy(path);
    let clean = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    if text.chars().count() <= MOST {
        return text.chars().map(clean).collect();
    }
    text.chars().take(MOST).map(clean).chain("…".chars()).collect()
}
