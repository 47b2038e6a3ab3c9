//! `[keys]`: the installation key that the keys of repositories are kept wrapped with.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use super::{ConfigError, ServeArgs, is_open_to_others, value};
use crate::keys::{InstallationKey, Keyring};

/// The variable that holds the installation key itself.
const VARIABLE: &str = "PERENNIAL_INSTALLATION_KEY";
const FORM: &str = "an installation key is 32 random bytes in hexadecimal digits or base64: openssl rand -hex 32";

/// `[keys]` of the file.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileKeys {
    file: Option<PathBuf>,
    command: Option<Vec<String>>,
    previous_file: Option<PathBuf>,
}

/// Where the installation key comes from: one of a file, a command and the environment, or nowhere.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct KeysSection {
    /// A file that holds it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// A program with its arguments that prints it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// A file with the one before, which keys may still be wrapped with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous_file: Option<PathBuf>,
}

impl KeysSection {
    /// Whether there is nothing to show.
    pub(super) const fn is_empty(&self) -> bool {
        self.file.is_none() && self.command.is_empty() && self.previous_file.is_none()
    }

    /// Puts environment and flags over the file; the key itself is not looked at yet.
    pub(super) fn load(args: &ServeArgs, file: FileKeys) -> Result<Self, ConfigError> {
        let section = Self {
            file: args.installation_key_file.clone().or(file.file),
            command: file.command.unwrap_or_default(),
            previous_file: file.previous_file,
        };
        if section.file.is_some() && !section.command.is_empty() {
            return Err(value("keys.command", "a file is named as well", "keep one of keys.file and keys.command"));
        }
        Ok(section)
    }

    /// The keys of a data directory, with the installation key at hand. Blocks, for as long as the command runs.
    ///
    /// # Errors
    /// [`ConfigError::Value`] naming what cannot be read or is no key.
    pub fn keyring(&self, data_dir: &Path) -> Result<Keyring, ConfigError> {
        let wrapping = match (&self.file, self.command.split_first()) {
            (Some(path), _) => Some(from_file("keys.file", path)?),
            (None, Some((program, arguments))) => Some(from_command(program, arguments)?),
            (None, None) => match std::env::var(VARIABLE) {
                Ok(text) if !text.is_empty() => Some(parse(VARIABLE, &text)?),
                _ => None,
            },
        };
        let previous = self.previous_file.as_ref().map(|path| from_file("keys.previous_file", path)).transpose()?;
        Ok(Keyring::new(data_dir, wrapping, previous))
    }
}

fn parse(key: &'static str, text: &str) -> Result<InstallationKey, ConfigError> {
    InstallationKey::parse(text).ok_or_else(|| value(key, "is no installation key", FORM))
}

fn from_file(key: &'static str, path: &Path) -> Result<InstallationKey, ConfigError> {
    let wrong = |problem: String, hint| value(key, format!("{}: {problem}", path.display()), hint);
    let unreadable = |e: std::io::Error| wrong(e.to_string(), "name a file that the server can read");
    if is_open_to_others(path).map_err(unreadable)? {
        return Err(wrong("others can read it".to_owned(), "close it to others: chmod go= FILE"));
    }
    parse(key, &std::fs::read_to_string(path).map_err(unreadable)?)
}

fn from_command(program: &str, arguments: &[String]) -> Result<InstallationKey, ConfigError> {
    const KEY: &str = "keys.command";
    let hint = "it has to print the key and nothing else, and to end with exit code 0";
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.map_err(|error| value(KEY, format!("run {program}: {error}"), hint))?;
    if !output.status.success() {
        return Err(value(KEY, format!("{program} failed ({})", output.status), hint));
    }
    parse(KEY, &String::from_utf8_lossy(&output.stdout))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

    fn command(words: &[&str]) -> KeysSection {
        KeysSection { command: words.iter().map(|w| (*w).to_owned()).collect(), ..KeysSection::default() }
    }

    #[test]
    fn a_command_prints_the_key_and_its_failure_is_told() {
        let data = Path::new("/nowhere");
        command(&["echo", KEY]).keyring(data).expect("a key");
        for (words, problem) in [
            (&["echo", "hunter2"][..], "is no installation key"),
            (&["false"], "failed"),
            (&["/nowhere/kms"], "run /nowhere/kms"),
        ] {
            let error = command(words).keyring(data).expect_err("no key").to_string();
            assert!(error.starts_with("keys.command") && error.contains(problem), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
