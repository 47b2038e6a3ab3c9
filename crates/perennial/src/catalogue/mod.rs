//! The catalogue: what services there are, read from files and from what somebody sends.
//!
//! - `tree`: a TOML or JSON document as one tree with places; `fields`: reading it; `mistake`: what is wrong with it;
//! - `read`: a document into a service, or everything that is wrong; `write`: a service into a document;
//! - `files`: the files of a server, those that are shipped, and what became of them at the last look.
//!
//! What a service is, and what may be in one, is in `perennial_core::service`. Services that were changed over the API are in the
//! database and win over files: `service::catalogue` puts both together.

mod fields;
mod files;
mod mistake;
mod read;
#[cfg(test)]
mod tests;
mod tree;
mod write;

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use jiff::Timestamp;
use perennial_core::service::{Alphabet, Service};
use sha2::{Digest as _, Sha256};

use crate::api::wire;

pub use files::{Files, Kept, Looked, Origin, Refused, SHIPPED};
pub use mistake::{Mistake, MistakeKind};
pub use read::{DOCUMENT_MAX, read_json, read_toml};
pub(crate) use write::{access_mode, profile};
pub use write::{definition, toml as write_toml};

/// The names of alphabets in documents.
const ALPHABETS: [(&str, Alphabet); 4] = [
    ("alphanumeric", Alphabet::Alphanumeric),
    ("hex", Alphabet::Hex),
    ("lowercase", Alphabet::Lowercase),
    ("url-safe", Alphabet::UrlSafe),
];

const fn alphabet_of(alphabet: Alphabet) -> wire::Alphabet {
    match alphabet {
        Alphabet::Alphanumeric => wire::Alphabet::Alphanumeric,
        Alphabet::Hex => wire::Alphabet::Hex,
        Alphabet::Lowercase => wire::Alphabet::Lowercase,
        Alphabet::UrlSafe => wire::Alphabet::UrlSafe,
    }
}

/// Names a definition: another one has another. Comments and the order of keys in a file do not count.
#[must_use]
pub fn revision(service: &Service) -> String {
    let text = serde_json::to_vec(&definition(service)).unwrap_or_default();
    hex::encode(&Sha256::digest(text)[..8])
}

/// Where a server's files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The usual directory: where it is missing, what is shipped is in force.
    Usual(PathBuf),
    /// One that somebody named, and that has to be there.
    Named(PathBuf),
}

/// The files of a server; cheap to clone.
#[derive(Debug, Clone)]
pub struct Catalogue {
    place: Place,
    files: Arc<RwLock<Arc<Files>>>,
}

impl Catalogue {
    /// Files that were not looked at yet; what is shipped is in force until then.
    #[must_use]
    pub fn new(place: Place) -> Self {
        Self { place, files: Arc::new(RwLock::new(Files::shipped())) }
    }

    /// The files as they were looked at last.
    #[must_use]
    pub fn files(&self) -> Arc<Files> {
        Arc::clone(&self.files.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Looks at the files again; what can be used of them is in force when this returns. Blocks.
    pub fn look(&self, now: Timestamp) -> Looked {
        let (next, looked) = self.files().look(&self.place, now);
        *self.files.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
        looked
    }
}
