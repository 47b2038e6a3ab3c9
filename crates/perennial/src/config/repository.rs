//! `[repository]`: the place below which every tenant has its repository.

use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::ValueEnum;
use perennial_core::spec::TenantId;
use perennial_snapshots::Backend;
use perennial_snapshots::backend::{
    Addressing, Bandwidth, ConnectOptions, InvalidLocation, LimitedBackend, Location, Patience,
};
use serde::{Deserialize, Serialize};

use super::{ConfigError, ServeArgs, is_open_to_others, value};

/// What limits are counted in, in bytes.
const KIB: NonZeroU64 = match NonZeroU64::new(1024) {
    Some(kib) => kib,
    None => NonZeroU64::MIN,
};
/// How often a request is tried again before whoever waits is told why: some three seconds in all. What fails then is
/// tried again with longer pauses by the reconciler, which says so meanwhile.
const RETRIES: usize = 5;
/// Tells a missing credential from a bad address while only the address is looked at.
const PLACEHOLDER: &str = "placeholder";

/// Where S3 finds the bucket's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BucketLookup {
    /// As the service expects it.
    #[default]
    Auto,
    /// `https://host/bucket/key`.
    Path,
    /// `https://bucket.host/key`.
    Dns,
}

impl From<BucketLookup> for Addressing {
    fn from(lookup: BucketLookup) -> Self {
        match lookup {
            BucketLookup::Auto => Self::Auto,
            BucketLookup::Path => Self::Path,
            BucketLookup::Dns => Self::Host,
        }
    }
}

/// Bytes a second from KiB a second; none: as fast as it goes.
#[must_use]
pub fn bandwidth(upload: Option<NonZeroU64>, download: Option<NonZeroU64>) -> Bandwidth {
    let rate = |kib: Option<NonZeroU64>| kib.map(|kib| kib.saturating_mul(KIB));
    Bandwidth { up: rate(upload), down: rate(download) }
}

/// A backend that keeps to a rate; the same one when there is none to keep.
#[must_use]
pub fn limited(backend: Arc<dyn Backend>, bandwidth: Bandwidth) -> Arc<dyn Backend> {
    if bandwidth == Bandwidth::default() { backend } else { Arc::new(LimitedBackend::new(backend, bandwidth)) }
}

/// Which table of the file says where repositories are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Table {
    /// `[repository]`.
    #[default]
    Repository,
    /// `[replication]`.
    Replication,
}

impl Table {
    /// What a key of this table is called in errors.
    fn key(self, field: &'static str) -> &'static str {
        match (self, field) {
            (Self::Repository, "repository") => "repository.location",
            (Self::Repository, "env-file") => "repository.env_file",
            (Self::Repository, "ca-file") => "repository.ca_file",
            (Self::Repository, "bucket-lookup") => "repository.bucket_lookup",
            (Self::Replication, "repository") => "replication.location",
            (Self::Replication, "env-file") => "replication.env_file",
            (Self::Replication, "ca-file") => "replication.ca_file",
            (Self::Replication, "bucket-lookup") => "replication.bucket_lookup",
            // Variables have no key; they are in the environment, or in env_file.
            (_, variable) => variable,
        }
    }
}

/// `[repository]` of the file.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileRepository {
    pub(super) location: Option<String>,
    pub(super) env_file: Option<PathBuf>,
    pub(super) ca_file: Option<PathBuf>,
    pub(super) allow_http: Option<bool>,
    pub(super) bucket_lookup: Option<BucketLookup>,
    pub(super) limit_upload: Option<NonZeroU64>,
    pub(super) limit_download: Option<NonZeroU64>,
}

/// The place below which every tenant has its repository, and how to get there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RepositorySection {
    /// The place as restic writes it; without credentials.
    pub location: String,
    /// A file with the variables that hold the credentials; `None` for the server's environment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env_file: Option<PathBuf>,
    /// Authorities that are trusted for TLS, and no others; `None` for those of the system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// Whether http is spoken with other machines, too.
    pub allow_http: bool,
    /// Where S3 finds the bucket's name.
    pub bucket_lookup: BucketLookup,
    /// KiB a second to each tenant's repository; `None`: as fast as it goes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_upload: Option<NonZeroU64>,
    /// KiB a second from each tenant's repository.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_download: Option<NonZeroU64>,
    #[serde(skip)]
    table: Table,
}

impl RepositorySection {
    /// Repositories in a directory of this host, whose path is absolute.
    #[must_use]
    pub fn in_directory(directory: &Path) -> Self {
        Self {
            location: directory.display().to_string(),
            env_file: None,
            ca_file: None,
            allow_http: false,
            bucket_lookup: BucketLookup::Auto,
            limit_upload: None,
            limit_download: None,
            table: Table::Repository,
        }
    }

    /// Puts environment and flags over the file. The address is checked, credentials and files are not looked at yet.
    pub(super) fn load(args: &ServeArgs, file: FileRepository, data_dir: &Path) -> Result<Self, ConfigError> {
        let default = || data_dir.join("repositories").display().to_string();
        let location = args.repository.clone().or_else(|| file.location.clone()).unwrap_or_else(default);
        let file = FileRepository {
            env_file: args.repository_env_file.clone().or(file.env_file),
            ca_file: args.repository_ca_file.clone().or(file.ca_file),
            ..file
        };
        Self::checked(Table::Repository, location, file)
    }

    /// The repositories at a place, as a table of the file says how to get there.
    pub(super) fn checked(table: Table, location: String, file: FileRepository) -> Result<Self, ConfigError> {
        let absolute = |field: &'static str, path: Option<PathBuf>| {
            let absolute = path.map(std::path::absolute).transpose();
            absolute.map_err(|e| value(table.key(field), e.to_string(), "write the path of a file"))
        };
        let section = Self {
            location,
            env_file: absolute("env-file", file.env_file)?,
            ca_file: absolute("ca-file", file.ca_file)?,
            allow_http: file.allow_http.unwrap_or_default(),
            bucket_lookup: file.bucket_lookup.unwrap_or_default(),
            limit_upload: file.limit_upload,
            limit_download: file.limit_download,
            table,
        };
        match section.parse(&TenantId::default_tenant(), |_| Some(PLACEHOLDER.to_owned()))? {
            Location::Local(path) if path.is_relative() => {
                let problem = format!("{} is relative, and nobody can tell to what", path.display());
                Err(value(table.key("repository"), problem, "write the whole path of the directory"))
            }
            _ => Ok(section),
        }
    }

    /// The directory of this host that holds the repositories, when they are in one.
    #[must_use]
    pub fn directory(&self) -> Option<PathBuf> {
        match Location::parse(&self.location, |_| Some(PLACEHOLDER.to_owned())) {
            Ok(Location::Local(path)) => Some(path),
            _ => None,
        }
    }

    /// Where a tenant's repository is, as restic writes it; without credentials.
    #[must_use]
    pub fn of_tenant(&self, tenant: &TenantId) -> String {
        match self.directory() {
            Some(directory) => directory.join(tenant.as_str()).display().to_string(),
            None => format!("{}/{tenant}", self.location.trim_end_matches('/')),
        }
    }

    /// Makes the backend of a tenant's repository; the place itself is not asked yet. Credentials and authorities are
    /// read anew, so that new ones are used from the next opening on. Blocks.
    ///
    /// # Errors
    /// [`ConfigError::Value`] naming the variable or the file that is missing or cannot be used, and the remedy.
    pub fn connect(&self, tenant: &TenantId) -> Result<Arc<dyn Backend>, ConfigError> {
        let location = match &self.env_file {
            None => self.parse(tenant, |name| std::env::var(name).ok())?,
            Some(path) => {
                let variables = read_variables(self.table.key("env-file"), path)?;
                self.parse(tenant, |name| variables.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone()))?
            }
        };
        let options = ConnectOptions {
            ca_file: self.ca_file.clone(),
            allow_http: self.allow_http,
            addressing: self.bucket_lookup.into(),
            patience: Patience { retries: RETRIES, ..Patience::default() },
        };
        let backend = location.connect(&options).map_err(|error| self.invalid(&error))?;
        Ok(limited(backend, bandwidth(self.limit_upload, self.limit_download)))
    }

    fn parse(&self, tenant: &TenantId, variable: impl Fn(&str) -> Option<String>) -> Result<Location, ConfigError> {
        let location = Location::parse(&self.location, &variable).map_err(|error| self.invalid(&error))?;
        if matches!(location, Location::Local(_)) {
            return Ok(Location::Local(self.of_tenant(tenant).into()));
        }
        Location::parse(&self.of_tenant(tenant), variable).map_err(|error| self.invalid(&error))
    }

    fn invalid(&self, error: &InvalidLocation) -> ConfigError {
        value(self.table.key(error.field), error.problem.clone(), error.hint)
    }
}

/// Reads `NAME=value` lines; blank ones and those that begin with `#` mean nothing. A value is taken as it is, but for
/// one pair of quotes around it.
///
/// # Errors
/// [`ConfigError::Value`] that calls the file by `key`: it cannot be read, others can read it, or a line is none.
pub fn read_variables(key: &'static str, path: &Path) -> Result<Vec<(String, String)>, ConfigError> {
    let wrong = |problem: String, hint| value(key, format!("{}: {problem}", path.display()), hint);
    let unreadable = |e: std::io::Error| wrong(e.to_string(), "name a file that the server can read");
    if is_open_to_others(path).map_err(unreadable)? {
        return Err(wrong("others can read it".to_owned(), "close it to others: chmod go= FILE"));
    }
    let text = std::fs::read_to_string(path).map_err(unreadable)?;
    let mut variables = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let Some((name, text)) = line.split_once('=') else {
            return Err(wrong(format!("line {} has no =", number + 1), "write NAME=value, one to a line"));
        };
        let text = text.trim();
        let quoted = ['"', '\''].into_iter().find_map(|q| text.strip_prefix(q)?.strip_suffix(q));
        variables.push((name.trim().to_owned(), quoted.unwrap_or(text).to_owned()));
    }
    Ok(variables)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const S3: &str = "s3:http://127.0.0.1:9/bucket/all";

    fn section(location: &str, env_file: Option<PathBuf>) -> RepositorySection {
        RepositorySection {
            location: location.to_owned(),
            env_file,
            ..RepositorySection::in_directory(Path::new("/unused"))
        }
    }

    fn file(text: &str, mode: u32) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().expect("make a directory");
        let path = directory.path().join("repository.env");
        std::fs::write(&path, text).expect("write the file");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("set its mode");
        (directory, path)
    }

    #[test]
    fn every_tenant_has_a_place_below_the_one_of_all() {
        let acme = TenantId::parse("acme").expect("a tenant");
        for (location, place, directory) in [
            ("/r", "/r/acme", Some("/r")),
            ("local:/s3:x", "/s3:x/acme", Some("/s3:x")),
            (S3, "s3:http://127.0.0.1:9/bucket/all/acme", None),
            ("azure:container:/", "azure:container:/acme", None),
        ] {
            let section = section(location, None);
            assert_eq!(section.of_tenant(&acme), place);
            assert_eq!(section.directory().as_deref(), directory.map(Path::new), "{location}");
        }
    }

    #[test]
    fn credentials_come_from_a_file_that_nobody_else_reads() {
        let tenant = TenantId::default_tenant();
        let good = "# of the bucket\n\nAWS_ACCESS_KEY_ID = id\nAWS_SECRET_ACCESS_KEY=\"hun=ter2\"\n";
        let (_directory, path) = file(good, 0o600);
        section(S3, Some(path.clone())).connect(&tenant).expect("connect");
        let variables = read_variables("repository.env_file", &path).expect("read");
        assert_eq!(variables[1], ("AWS_SECRET_ACCESS_KEY".to_owned(), "hun=ter2".to_owned()));

        for (text, mode, words) in [
            (good, 0o640, "others can read it"),
            ("AWS_ACCESS_KEY_ID=id\nhunter2", 0o600, "line 2 has no ="),
            ("AWS_ACCESS_KEY_ID=id", 0o600, "AWS_SECRET_ACCESS_KEY"),
        ] {
            let (_directory, path) = file(text, mode);
            let error = section(S3, Some(path)).connect(&tenant).expect_err(text).to_string();
            assert!(error.contains(words) && !error.contains("hunter2"), "{error}");
        }
        let error = section(S3, Some("/nowhere".into())).connect(&tenant).expect_err("no file").to_string();
        assert!(error.starts_with("repository.env_file: /nowhere"), "{error}");
    }
}
