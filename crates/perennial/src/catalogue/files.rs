//! The files of the catalogue: read at the start and again when the server is asked to.
//!
//! A file with mistakes keeps the version in force that it had before, and a service of which there was none stays away: what
//! is wrong with it is said in the log, on the audit trail, and with the services. A server starts whatever its files hold.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use jiff::Timestamp;
use perennial_core::service::{Service, ServiceName};

use super::Place;
use super::mistake::{Mistake, MistakeKind};
use super::read::{DOCUMENT_MAX, read_toml};

/// The services that are in force where the server has no files of its own: the name of the file, and what it holds.
pub const SHIPPED: [(&str, &str); 6] = [
    ("dev.toml", include_str!("../../../../catalogue/dev.toml")),
    ("ghost.toml", include_str!("../../../../catalogue/ghost.toml")),
    ("n8n.toml", include_str!("../../../../catalogue/n8n.toml")),
    ("spreadsheet.toml", include_str!("../../../../catalogue/spreadsheet.toml")),
    ("vscode.toml", include_str!("../../../../catalogue/vscode.toml")),
    ("wordpress.toml", include_str!("../../../../catalogue/wordpress.toml")),
];

/// Where files come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Origin {
    /// They are shipped: the server has no directory of its own.
    #[default]
    Shipped,
    /// The server's directory.
    Directory,
}

/// A file that a service comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The service.
    pub service: Service,
    /// The name of the file.
    pub file: String,
    /// What is wrong with the file as it is now: then this is what it held before.
    pub refused: Option<Refused>,
}

/// What is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Since when that is known.
    pub since: Timestamp,
    /// Everything that is.
    pub mistakes: Vec<Mistake>,
}

/// All files, as they were looked at last.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Files {
    /// Where they come from.
    pub origin: Origin,
    /// Files that are in force.
    pub kept: BTreeMap<ServiceName, Kept>,
    /// Files that no service comes from, by name; the directory itself under its own.
    pub refused: BTreeMap<String, Refused>,
}

/// What a look at the files found to be different.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Looked {
    /// Services that are new or changed, and those that went.
    pub changed: Vec<String>,
    /// Files that are refused now and were not before, or for another reason, with what is wrong with each.
    pub refused: Vec<(String, Vec<Mistake>)>,
}

impl Files {
    /// The services that are shipped, which are read once.
    #[must_use]
    pub fn shipped() -> Arc<Self> {
        static FILES: LazyLock<Arc<Files>> = LazyLock::new(|| {
            let mut files = Files::default();
            for (file, text) in SHIPPED {
                if let Ok(service) = read_toml(text) {
                    files.kept.insert(service.name.clone(), Kept { service, file: file.to_owned(), refused: None });
                }
            }
            Arc::new(files)
        });
        Arc::clone(&FILES)
    }

    /// Looks at the files of a place; where the usual one is missing, those that are shipped are in force. Blocks.
    ///
    /// What was in force before stays so where it cannot be replaced by something good.
    #[must_use]
    pub fn look(&self, place: &Place, now: Timestamp) -> (Self, Looked) {
        let (Place::Usual(directory) | Place::Named(directory)) = place;
        let found = match (names(directory), place) {
            (Err(error), Place::Usual(_)) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            (found, _) => found.map(Some),
        };
        let next = match found {
            Ok(None) => Self::clone(&Self::shipped()),
            Ok(Some(names)) => self.read_all(directory, &names, now),
            Err(error) => {
                // Nobody knows what is in it: everything stays.
                let mut same = self.clone();
                let mistake = unreadable(&error);
                same.refused.insert(directory.display().to_string(), Refused { since: now, mistakes: vec![mistake] });
                same
            }
        };
        let next = self.with_first_times(next);
        let looked = self.compare(&next);
        (next, looked)
    }

    fn read_all(&self, directory: &Path, names: &[String], now: Timestamp) -> Self {
        let mut next = Self { origin: Origin::Directory, ..Self::default() };
        let mut broken = Vec::new();
        for file in names {
            match read_file(&directory.join(file)) {
                Ok(service) => match next.kept.get(&service.name) {
                    Some(other) => {
                        let problem = format!("service {} is in {} already", service.name, other.file);
                        broken.push((file, vec![of_file(problem, "describe every service in one file")]));
                    }
                    None => {
                        let (name, file) = (service.name.clone(), file.clone());
                        next.kept.insert(name, Kept { service, file, refused: None });
                    }
                },
                Err(mistakes) => broken.push((file, mistakes)),
            }
        }
        for (file, mistakes) in broken {
            let refused = Refused { since: now, mistakes };
            let before = self.kept.values().find(|kept| kept.file == *file && self.origin == Origin::Directory);
            // Another file may hold its service by now.
            match before.filter(|kept| !next.kept.contains_key(&kept.service.name)) {
                Some(kept) => {
                    let kept = Kept { refused: Some(refused), ..kept.clone() };
                    next.kept.insert(kept.service.name.clone(), kept);
                }
                None => drop(next.refused.insert(file.clone(), refused)),
            }
        }
        next
    }

    /// What was known to be wrong before is so since then.
    fn with_first_times(&self, mut next: Self) -> Self {
        for (file, refused) in next.every_refused_mut() {
            if let Some(before) = self.refusal(&file).filter(|before| before.mistakes == refused.mistakes) {
                refused.since = before.since;
            }
        }
        next
    }

    fn every_refused_mut(&mut self) -> impl Iterator<Item = (String, &mut Refused)> {
        let kept = self.kept.values_mut().filter_map(|kept| Some((kept.file.clone(), kept.refused.as_mut()?)));
        kept.chain(self.refused.iter_mut().map(|(file, refused)| (file.clone(), refused)))
    }

    fn every_refused(&self) -> impl Iterator<Item = (&str, &Refused)> {
        let kept = self.kept.values().filter_map(|kept| Some((kept.file.as_str(), kept.refused.as_ref()?)));
        kept.chain(self.refused.iter().map(|(file, refused)| (file.as_str(), refused)))
    }

    fn refusal(&self, file: &str) -> Option<&Refused> {
        self.every_refused().find(|(name, _)| *name == file).map(|(_, refused)| refused)
    }

    fn compare(&self, next: &Self) -> Looked {
        let names = self.kept.keys().chain(next.kept.keys().filter(|name| !self.kept.contains_key(name)));
        let service = |files: &Self, name: &ServiceName| files.kept.get(name).map(|kept| kept.service.clone());
        let changed =
            names.filter(|name| service(self, name) != service(next, name)).map(ToString::to_string).collect();
        let is_new = |file: &str, refused: &Refused| self.refusal(file).is_none_or(|b| b.mistakes != refused.mistakes);
        let refused = next.every_refused().filter(|(file, refused)| is_new(file, refused));
        let refused = refused.map(|(file, refused)| (file.to_owned(), refused.mistakes.clone())).collect();
        Looked { changed, refused }
    }
}

/// The names of the files that count, in order.
fn names(directory: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        // Editors leave hidden files while they write; a name that is no text is told with a sign for what it is.
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') && Path::new(&name).extension().is_some_and(|ext| ext == "toml") {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn of_file(problem: String, hint: &str) -> Mistake {
    Mistake { at: None, kind: MistakeKind::InvalidValue, field: String::new(), problem, hint: hint.to_owned() }
}

fn unreadable(error: &io::Error) -> Mistake {
    of_file(format!("cannot be read: {error}"), "the server's user has to be able to read it")
}

fn read_file(path: &Path) -> Result<Service, Vec<Mistake>> {
    use std::io::Read as _;
    let mut text = String::new();
    let limit = u64::try_from(DOCUMENT_MAX).unwrap_or(u64::MAX).saturating_add(1);
    let mut read = || {
        // What is opened must not keep the server waiting.
        if !std::fs::metadata(path)?.is_file() {
            return Err(io::Error::other("it is no file"));
        }
        std::fs::File::open(path)?.take(limit).read_to_string(&mut text)
    };
    read().map_err(|error| vec![unreadable(&error)])?;
    read_toml(&text)
}
