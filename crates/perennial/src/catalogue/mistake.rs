//! What is wrong with a description of a service, for whoever wrote it.

use std::fmt;

use perennial_core::service;

/// Most mistakes of one document that are told; a file of another kind altogether would have thousands.
pub const MISTAKES_MAX: usize = 100;

/// Something that is wrong with a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Line and column, counted from 1; `None` in JSON, and where nobody knows.
    pub at: Option<(usize, usize)>,
    /// Of what kind.
    pub kind: MistakeKind,
    /// Which field, as it is written in this document; empty for the document itself.
    pub field: String,
    /// What.
    pub problem: String,
    /// What to write instead; empty when the problem says it all.
    pub hint: String,
}

/// Kinds of mistakes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MistakeKind {
    /// It is no TOML, or no JSON.
    Syntax,
    /// There is no such key.
    UnknownKey,
    /// A key is missing.
    Missing,
    /// A value of another kind, such as a number for a text.
    WrongKind,
    /// A value that cannot be accepted.
    InvalidValue,
}

impl MistakeKind {
    /// The name in answers.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Syntax => "syntax",
            Self::UnknownKey => "unknown-key",
            Self::Missing => "missing",
            Self::WrongKind => "wrong-kind",
            Self::InvalidValue => "invalid-value",
        }
    }
}

impl fmt::Display for Mistake {
    /// `12:3: plans[0].image: is missing`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((line, column)) = self.at {
            write!(f, "{line}:{column}: ")?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.problem)
    }
}

/// How keys are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// `mount_path`, as in every TOML file of Perennial.
    Toml,
    /// `mountPath`, as everywhere in the API.
    Json,
}

impl Style {
    /// The key as it is written in such a document; domain types name fields in camelCase.
    #[must_use]
    pub fn key(self, name: &str) -> String {
        match self {
            Self::Json => name.to_owned(),
            Self::Toml => name.chars().fold(String::new(), |mut key, c| {
                if c.is_ascii_uppercase() {
                    key.push('_');
                }
                key.push(c.to_ascii_lowercase());
                key
            }),
        }
    }

    /// The same for a whole path. What follows `env` are names that people chose.
    #[must_use]
    pub fn path(self, path: &str) -> String {
        match path.split_once(".env.") {
            Some((before, name)) => format!("{}.env.{name}", self.key(before)),
            None => self.key(path),
        }
    }
}

/// Line and column of a byte, counted from 1; columns are characters.
#[must_use]
pub fn line_and_column(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
    let start = before.rfind('\n').map_or(0, |end| end + 1);
    (line, before[start..].chars().count() + 1)
}

/// The one of these keys that whoever wrote `key` may have meant.
#[must_use]
pub fn nearest<'a>(key: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let key = key.to_ascii_lowercase();
    let distance = |known: &&str| strsim::damerau_levenshtein(&key, known);
    let nearest = known.into_iter().min_by_key(distance)?;
    (distance(&nearest) <= (nearest.len() / 3).max(1)).then_some(nearest)
}

impl From<service::Mistake> for Mistake {
    fn from(mistake: service::Mistake) -> Self {
        let service::Mistake { field, problem, hint } = mistake;
        Self { at: None, kind: MistakeKind::InvalidValue, field, problem, hint }
    }
}
