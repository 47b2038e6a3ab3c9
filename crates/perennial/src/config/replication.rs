//! `[replication]`: a second place, to which the server copies every verified snapshot.

use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use jiff::SignedDuration;
use serde::{Deserialize, Serialize};

use super::repository::{FileRepository, Table};
use super::{BucketLookup, ConfigError, RepositorySection, days_and_hours, value};

/// How long the replica keeps what was deleted when nothing is written.
const FORGET_AFTER: &str = "30d";

/// `[replication]` of the file.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileReplication {
    location: Option<String>,
    env_file: Option<PathBuf>,
    ca_file: Option<PathBuf>,
    allow_http: Option<bool>,
    bucket_lookup: Option<BucketLookup>,
    limit_upload: Option<NonZeroU64>,
    limit_download: Option<NonZeroU64>,
    forget_after: Option<String>,
}

/// Where every verified snapshot is copied to, and how long what was deleted stays there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReplicationSection {
    /// The place below which every tenant has its replica, and how to get there.
    #[serde(flatten)]
    pub repository: RepositorySection,
    /// How long the replica keeps what was deleted, as written.
    pub forget_after: String,
}

impl ReplicationSection {
    /// Checks the table; credentials and files are not looked at yet.
    pub(super) fn load(file: FileReplication, first: &RepositorySection) -> Result<Self, ConfigError> {
        let Some(location) = file.location else {
            return Err(value("replication.location", "is missing", "write where the replica is, or remove the table"));
        };
        let how = FileRepository {
            location: None,
            env_file: file.env_file,
            ca_file: file.ca_file,
            allow_http: file.allow_http,
            bucket_lookup: file.bucket_lookup,
            limit_upload: file.limit_upload,
            limit_download: file.limit_download,
        };
        let section = Self {
            repository: RepositorySection::checked(Table::Replication, location, how)?,
            forget_after: file.forget_after.unwrap_or_else(|| FORGET_AFTER.to_owned()),
        };
        if meet(first, &section.repository) {
            let problem = format!("{} is where the repositories are, or within", section.repository.location);
            return Err(value(
                "replication.location",
                problem,
                "a replica has to be somewhere else: another disk or store",
            ));
        }
        section.forget_after()?;
        Ok(section)
    }

    /// How long the replica keeps what was deleted.
    ///
    /// # Errors
    /// [`ConfigError::Value`] when it is not a time, negative, or longer than ten years.
    pub fn forget_after(&self) -> Result<SignedDuration, ConfigError> {
        days_and_hours("replication.forget_after", &self.forget_after)
    }
}

/// Whether two places are the same, or one is in the other.
fn meet(first: &RepositorySection, second: &RepositorySection) -> bool {
    match (first.directory(), second.directory()) {
        (Some(first), Some(second)) => {
            let (first, second) = (resolved(&first), resolved(&second));
            first.starts_with(&second) || second.starts_with(&first)
        }
        (None, None) => {
            let below = |outer: &str, inner: &str| {
                inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            };
            let (first, second) = (first.location.trim_end_matches('/'), second.location.trim_end_matches('/'));
            below(first, second) || below(second, first)
        }
        _ => false,
    }
}

/// Where a path leads, as far as it exists.
fn resolved(path: &Path) -> PathBuf {
    for known in path.ancestors() {
        if let (Ok(real), Ok(rest)) = (known.canonicalize(), path.strip_prefix(known)) {
            return real.join(rest);
        }
    }
    path.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(first: &str, location: &str) -> Result<ReplicationSection, ConfigError> {
        let how = FileRepository::default();
        let first = RepositorySection::checked(Table::Repository, first.to_owned(), how).expect("a place");
        ReplicationSection::load(
            FileReplication { location: Some(location.to_owned()), ..FileReplication::default() },
            &first,
        )
    }

    #[test]
    fn a_replica_is_somewhere_else() {
        let home = tempfile::tempdir().expect("make a directory");
        let (real, link) = (home.path().join("real"), home.path().join("link"));
        std::fs::create_dir(&real).expect("make a directory");
        std::os::unix::fs::symlink(&real, &link).expect("make a link");
        let (real, link) = (real.display().to_string(), link.display().to_string());
        for (first, second) in [
            ("/r", "/r"),
            ("/r", "/r/"),
            ("/r", "local:/r/below"),
            ("/r/below", "/r"),
            (real.as_str(), link.as_str()),
            (real.as_str(), format!("{link}/not/there").as_str()),
            ("s3:https://h/bucket/all", "s3:https://h/bucket/all/"),
            ("s3:https://h/bucket", "s3:https://h/bucket/all"),
        ] {
            let error = load(first, second).expect_err(second).to_string();
            assert!(error.starts_with("replication.location: "), "{error}");
        }
        for (first, second) in [
            ("/r", "/replica"),
            (real.as_str(), "/elsewhere"),
            ("s3:https://h/bucket/all", "s3:https://h/bucket/allies"),
            ("/r", "s3:https://h/replica"),
        ] {
            load(first, second).expect(second);
        }
    }
}
