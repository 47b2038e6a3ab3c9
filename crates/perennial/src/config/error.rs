//! Why a configuration cannot be used.

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{path} cannot be read: {source}")]
    Unreadable {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The file holds something that is not known, or not what is expected.
    #[error("{path}: {problem}")]
    File {
        /// Which.
        path: String,
        /// What, with its place.
        problem: String,
    },
    /// A value cannot be used.
    #[error("{key}: {problem}")]
    Value {
        /// Which key.
        key: &'static str,
        /// What is wrong.
        problem: String,
        /// What to write instead.
        hint: &'static str,
    },
}

impl ConfigError {
    /// How to go on.
    #[must_use]
    pub fn hint(&self) -> &str {
        match self {
            Self::Unreadable { .. } => "check the path given by --config",
            Self::File { .. } => "perennial.example.toml shows every key",
            Self::Value { hint, .. } => hint,
        }
    }
}

/// The first line of a file that holds a secret. Blocks.
///
/// # Errors
/// [`ConfigError::Value`] naming the key.
pub(crate) fn secret_in(key: &'static str, path: &std::path::Path) -> Result<String, ConfigError> {
    let hint = "write the secret as the first line of that file, readable by the server";
    let text = std::fs::read_to_string(path);
    let text = text.map_err(|error| value(key, format!("{} cannot be read: {error}", path.display()), hint))?;
    match text.lines().next() {
        Some(line) if !line.is_empty() => Ok(line.to_owned()),
        _ => Err(value(key, format!("the first line of {} is empty", path.display()), hint)),
    }
}

pub(crate) fn value(key: &'static str, problem: impl Into<String>, hint: &'static str) -> ConfigError {
    ConfigError::Value { key, problem: problem.into(), hint }
}
