//! Where a repository is, written as restic writes it, and how to get there.
//!
//! ```text
//! /path   ./path   local:/path
//! s3:https://host[:port]/bucket[/prefix]   s3:host/bucket[/prefix]   s3:http://127.0.0.1:9000/bucket
//! azure:container:/[prefix]
//! ```
//!
//! Credentials come from the environment and never from the address, which ends up in logs and process lists.

use std::fmt;
use std::path::PathBuf;

use super::problem::Secret;
use reqwest::Url;

/// What is wrong with an address, and how to mend it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct InvalidLocation {
    /// What has to be changed: `repository`, or the name of an environment variable or option.
    pub field: &'static str,
    /// What is wrong with it.
    pub problem: String,
    /// How to mend it.
    pub hint: &'static str,
}

impl InvalidLocation {
    pub(super) fn new(field: &'static str, problem: impl Into<String>, hint: &'static str) -> Self {
        Self { field, problem: problem.into(), hint }
    }
}

/// Where a repository is. `Display` shows it without credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// A directory.
    Local(PathBuf),
    /// A bucket of an S3 service.
    S3(S3Location),
    /// A container of Azure Blob Storage.
    Azure(AzureLocation),
}

/// A place in a bucket, and the credentials for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Location {
    /// The service, with scheme and port, without a path.
    pub endpoint: Url,
    /// The bucket.
    pub bucket: String,
    /// What all keys begin with; without slashes at its ends.
    pub prefix: String,
    /// The region that requests are signed for.
    pub region: String,
    /// The public half of the credentials.
    pub access_key_id: String,
    /// The secret half.
    pub secret_access_key: Secret,
    /// Of temporary credentials.
    pub session_token: Option<Secret>,
}

/// A place in a container, and the credentials for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AzureLocation {
    /// The blob service of the account; of Azurite with the account as its path.
    pub endpoint: Url,
    /// The storage account.
    pub account: String,
    /// The container.
    pub container: String,
    /// What all names begin with; without slashes at its ends.
    pub prefix: String,
    /// The account's key, or a shared access signature.
    pub credential: AzureCredential,
}

/// What opens a storage account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AzureCredential {
    /// The key of the account, in base64.
    Key(Secret),
    /// A shared access signature: the query string of a signed address.
    Signature(Secret),
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(path) => write!(f, "{}", path.display()),
            Self::S3(at) => {
                write!(f, "s3:{}/{}", at.endpoint.as_str().trim_end_matches('/'), at.bucket)?;
                if at.prefix.is_empty() { Ok(()) } else { write!(f, "/{}", at.prefix) }
            }
            Self::Azure(at) => write!(f, "azure:{}:/{}", at.container, at.prefix),
        }
    }
}

const FORMS: &str = "write /path, s3:https://host/bucket/prefix or azure:container:/prefix; ./name is a directory whose name has a colon";
const S3_FORM: &str =
    "write s3:https://host/bucket/prefix, with credentials in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY";
const AZURE_FORM: &str = "write azure:container:/prefix, with credentials in AZURE_ACCOUNT_NAME and AZURE_ACCOUNT_KEY";

impl Location {
    /// Reads an address, with credentials from this process's environment.
    ///
    /// # Errors
    /// Names what is wrong, and the remedy.
    pub fn from_env(text: &str) -> Result<Self, InvalidLocation> {
        Self::parse(text, |name| std::env::var(name).ok())
    }

    /// Reads an address; `variable` looks up what an environment would hold. Variables that are empty count as missing.
    ///
    /// # Errors
    /// Names what is wrong, and the remedy.
    pub fn parse(text: &str, variable: impl Fn(&str) -> Option<String>) -> Result<Self, InvalidLocation> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let wrong = |problem: String| InvalidLocation::new("repository", problem, FORMS);
        if text.is_empty() {
            return Err(wrong("it is empty".into()));
        }
        match text.split_once(':') {
            Some(("s3", rest)) => s3(rest, &variable).map(Self::S3),
            Some(("azure", rest)) => azure(rest, &variable).map(Self::Azure),
            Some(("local", "")) => Err(wrong("local: names no directory".into())),
            Some(("local", path)) => Ok(Self::Local(path.into())),
            Some((scheme, _)) if !scheme.contains('/') => {
                Err(wrong(format!("{scheme}: is no kind of place that is known here")))
            }
            _ => Ok(Self::Local(text.into())),
        }
    }
}

fn required(
    variable: &impl Fn(&str) -> Option<String>,
    name: &'static str,
    hint: &'static str,
) -> Result<String, InvalidLocation> {
    variable(name).ok_or_else(|| InvalidLocation::new(name, "it is not set, and the repository needs it", hint))
}

fn s3(text: &str, variable: &impl Fn(&str) -> Option<String>) -> Result<S3Location, InvalidLocation> {
    let wrong = |problem: &str| InvalidLocation::new("repository", problem, S3_FORM);
    let (scheme, rest, is_url) = match text.split_once("://") {
        Some((scheme @ ("https" | "http"), rest)) => (scheme, rest, true),
        Some(("", rest)) => ("https", rest, false),
        Some(_) => return Err(wrong("S3 is spoken over https (or http) only")),
        None => ("https", text.trim_start_matches("//"), false),
    };
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let endpoint = endpoint(&format!("{scheme}://{host}"), "repository", S3_FORM)?;
    let path = if is_url {
        if path.contains(['?', '#']) {
            return Err(wrong("a query or fragment has no meaning here"));
        }
        decode(path).ok_or_else(|| wrong("its path is not well percent-encoded"))?
    } else {
        path.to_owned()
    };
    let (bucket, prefix) = path.split_once('/').unwrap_or((&path, ""));
    let usable = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if !(3..=63).contains(&bucket.len()) || !bucket.chars().all(usable) {
        return Err(wrong(&format!("{bucket:?} is not the name of a bucket")));
    }
    let region = variable("AWS_REGION").or_else(|| variable("AWS_DEFAULT_REGION"));
    let region = region.or_else(|| region_of(endpoint.host_str().unwrap_or_default()));
    Ok(S3Location {
        prefix: prefix_of(prefix, S3_FORM)?,
        bucket: bucket.to_owned(),
        endpoint,
        // What a service without regions expects, too.
        region: region.unwrap_or_else(|| "us-east-1".to_owned()),
        access_key_id: required(variable, "AWS_ACCESS_KEY_ID", "set it to the id of an access key")?,
        secret_access_key: Secret::new(required(
            variable,
            "AWS_SECRET_ACCESS_KEY",
            "set it to the secret of the access key",
        )?),
        session_token: variable("AWS_SESSION_TOKEN").map(Secret::new),
    })
}

/// The region in a host name of Amazon's, such as `s3.eu-central-1.amazonaws.com`.
fn region_of(host: &str) -> Option<String> {
    let name = host.strip_suffix(".amazonaws.com.cn").or_else(|| host.strip_suffix(".amazonaws.com"))?;
    let region = name.rsplit('.').next()?;
    let region = region.strip_prefix("s3-").unwrap_or(region);
    (region != "s3").then(|| region.to_owned())
}

fn azure(text: &str, variable: &impl Fn(&str) -> Option<String>) -> Result<AzureLocation, InvalidLocation> {
    let wrong = |problem: &str| InvalidLocation::new("repository", problem, AZURE_FORM);
    let (container, prefix) = text.split_once(':').ok_or_else(|| wrong("the colon after the container is missing"))?;
    let usable = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let named = (3..=63).contains(&container.len()) && container.chars().all(usable);
    if !named && container != "$root" {
        return Err(wrong(&format!("{container:?} is not the name of a container")));
    }
    let account = required(variable, "AZURE_ACCOUNT_NAME", "set it to the name of the storage account")?;
    if !account.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit()) {
        let hint = "set it to the name alone, without a host";
        return Err(InvalidLocation::new("AZURE_ACCOUNT_NAME", "it is not the name of a storage account", hint));
    }
    let credential = match (variable("AZURE_ACCOUNT_KEY"), variable("AZURE_ACCOUNT_SAS")) {
        (Some(key), _) => AzureCredential::Key(Secret::new(key)),
        (None, Some(signature)) => AzureCredential::Signature(Secret::new(signature.trim_start_matches('?'))),
        (None, None) => {
            let hint = "set it to the key of the storage account, or AZURE_ACCOUNT_SAS to a signature";
            return Err(InvalidLocation::new("AZURE_ACCOUNT_KEY", "it is not set, and the repository needs it", hint));
        }
    };
    let endpoint = match variable("AZURE_STORAGE_ENDPOINT") {
        Some(text) => endpoint(&text, "AZURE_STORAGE_ENDPOINT", "write https://account.blob.core.windows.net")?,
        None => {
            let suffix = variable("AZURE_ENDPOINT_SUFFIX").unwrap_or_else(|| "core.windows.net".to_owned());
            endpoint(&format!("https://{account}.blob.{suffix}"), "AZURE_ENDPOINT_SUFFIX", "write core.windows.net")?
        }
    };
    Ok(AzureLocation {
        endpoint,
        account,
        container: container.to_owned(),
        prefix: prefix_of(prefix, AZURE_FORM)?,
        credential,
    })
}

fn endpoint(text: &str, field: &'static str, hint: &'static str) -> Result<Url, InvalidLocation> {
    let wrong = |problem: String| InvalidLocation::new(field, problem, hint);
    // The text itself is not shown before it is known to hold no password.
    let url = Url::parse(text).map_err(|error| wrong(format!("its host is not one: {error}")))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong("credentials do not belong into an address, which others can see".into()));
    }
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
        return Err(wrong("it names no host to be reached over https".into()));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(wrong("a query or fragment has no meaning here".into()));
    }
    Ok(url)
}

/// A prefix of keys that every store and every client of it understands in the same way.
fn prefix_of(text: &str, hint: &'static str) -> Result<String, InvalidLocation> {
    let prefix = text.trim_matches('/');
    let bad = |part: &str| matches!(part, "" | "." | "..") || part.chars().any(char::is_control);
    if !prefix.is_empty() && prefix.split('/').any(bad) {
        let problem = format!("the prefix {prefix:?} has an empty part, a dot for a part, or a control character");
        return Err(InvalidLocation::new("repository", problem, hint));
    }
    Ok(prefix.to_owned())
}

fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        if *first == b'%' {
            let digits = after.get(..2)?;
            bytes.push(hex::decode(digits).ok()?[0]);
            rest = &after[2..];
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests;
