//! From a location to a backend.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::{BackoffConfig, Certificate, ClientOptions, RetryConfig};
use reqwest::Url;

use super::location::{AzureCredential, AzureLocation, InvalidLocation, Location, S3Location};
use super::object::{ObjectBackend, Patience};
use super::problem::Secret;
use super::{Backend, LocalBackend};

/// How a bucket is named in a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Addressing {
    /// Amazon's by host, everybody else's by path.
    #[default]
    Auto,
    /// `https://host/bucket/key`.
    Path,
    /// `https://bucket.host/key`.
    Host,
}

/// What a location does not say.
#[derive(Debug, Clone, Default)]
pub struct ConnectOptions {
    /// Authorities (PEM) that are trusted for TLS, and no others; without it those of the system.
    pub ca_file: Option<PathBuf>,
    /// Whether http is spoken with other machines, too: everybody on the way reads the requests.
    pub allow_http: bool,
    /// How buckets are named.
    pub addressing: Addressing,
    /// Connections, time-outs and retries.
    pub patience: Patience,
}

impl Location {
    /// Makes the backend for this place; the place itself is not asked yet.
    ///
    /// # Errors
    /// Names the option that cannot be used, and the remedy.
    pub fn connect(&self, options: &ConnectOptions) -> Result<Arc<dyn Backend>, InvalidLocation> {
        match self {
            Self::Local(path) => Ok(Arc::new(LocalBackend::new(path))),
            Self::S3(at) => s3(at, &self.to_string(), options),
            Self::Azure(at) => azure(at, &self.to_string(), options),
        }
    }
}

/// Sees to it that TLS has its cryptography: ring, unless the program chose another already.
fn install_crypto() {
    // It fails only when there is one.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

fn client(endpoint: &Url, options: &ConnectOptions) -> Result<ClientOptions, InvalidLocation> {
    install_crypto();
    let is_plain = endpoint.scheme() == "http";
    if is_plain && !options.allow_http && !is_loopback(endpoint) {
        let hint = "use https, or allow plain http when everybody on the way may read along (--allow-http)";
        return Err(InvalidLocation::new("repository", "http is not encrypted and leaves this machine", hint));
    }
    let patience = &options.patience;
    let mut client = ClientOptions::new()
        .with_allow_http(is_plain)
        .with_connect_timeout(patience.connect)
        .with_timeout(patience.request);
    if let Some(path) = &options.ca_file {
        let wrong = |problem: String| {
            let problem = format!("{}: {problem}", path.display());
            InvalidLocation::new("ca-file", problem, "name a file with certificates in the form of PEM")
        };
        let pem = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
        let authorities = Certificate::from_pem_bundle(&pem).map_err(|error| wrong(error.to_string()))?;
        if authorities.is_empty() {
            return Err(wrong("there is no certificate in it".into()));
        }
        client = client.with_no_system_certificates(true);
        for authority in authorities {
            client = client.with_root_certificate(authority);
        }
    }
    Ok(client)
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn retry(patience: &Patience) -> RetryConfig {
    RetryConfig { backoff: BackoffConfig::default(), max_retries: patience.retries, retry_timeout: patience.retry_for }
}

fn finish(
    store: Arc<dyn object_store::ObjectStore>,
    prefix: &str,
    name: &str,
    patience: &Patience,
    secrets: Vec<Secret>,
) -> Result<Arc<dyn Backend>, InvalidLocation> {
    match ObjectBackend::new(store, prefix, name, patience, secrets) {
        Ok(backend) => Ok(Arc::new(backend)),
        Err(error) => Err(InvalidLocation::new("repository", error.to_string(), "choose another prefix")),
    }
}

fn s3(at: &S3Location, name: &str, options: &ConnectOptions) -> Result<Arc<dyn Backend>, InvalidLocation> {
    let client = client(&at.endpoint, options)?;
    let host = at.endpoint.host_str().unwrap_or_default();
    let amazon = host.ends_with(".amazonaws.com") || host.ends_with(".amazonaws.com.cn");
    // A dot in the bucket's name does not match the wildcard of the service's certificate.
    let by_host = match options.addressing {
        Addressing::Auto => amazon && !at.bucket.contains('.'),
        Addressing::Path => false,
        Addressing::Host => true,
    };
    let mut endpoint = at.endpoint.clone();
    if by_host && endpoint.set_host(Some(&format!("{}.{host}", at.bucket))).is_err() {
        let hint = "have the bucket named in the path instead (--bucket-lookup path)";
        return Err(InvalidLocation::new("bucket-lookup", format!("{host} cannot have a bucket before it"), hint));
    }
    let mut builder = AmazonS3Builder::new()
        .with_endpoint(endpoint.as_str().trim_end_matches('/'))
        .with_virtual_hosted_style_request(by_host)
        .with_bucket_name(&at.bucket)
        .with_region(&at.region)
        .with_access_key_id(&at.access_key_id)
        .with_secret_access_key(at.secret_access_key.reveal())
        .with_allow_http(at.endpoint.scheme() == "http")
        // One object at a time is removed here, and not every service knows how to remove many.
        .with_disable_bulk_delete(true)
        .with_client_options(client)
        .with_retry(retry(&options.patience));
    let mut secrets = vec![at.secret_access_key.clone()];
    if let Some(token) = &at.session_token {
        builder = builder.with_token(token.reveal());
        secrets.push(token.clone());
    }
    let store = builder.build().map_err(|error| {
        InvalidLocation::new("repository", error.to_string(), "check the address and the credentials")
    })?;
    finish(Arc::new(store), &at.prefix, name, &options.patience, secrets)
}

fn azure(at: &AzureLocation, name: &str, options: &ConnectOptions) -> Result<Arc<dyn Backend>, InvalidLocation> {
    let client = client(&at.endpoint, options)?;
    let builder = MicrosoftAzureBuilder::new()
        .with_endpoint(at.endpoint.as_str().trim_end_matches('/').to_owned())
        .with_account(&at.account)
        .with_container_name(&at.container)
        .with_allow_http(at.endpoint.scheme() == "http")
        .with_client_options(client)
        .with_retry(retry(&options.patience));
    let (builder, secrets) = match &at.credential {
        AzureCredential::Key(key) => (builder.with_access_key(key.reveal()), vec![key.clone()]),
        AzureCredential::Signature(text) => {
            let pairs: Vec<(String, String)> = Url::parse(&format!("https://h/?{}", text.reveal()))
                .map(|url| url.query_pairs().into_owned().collect())
                .unwrap_or_default();
            let mut secrets = vec![text.clone()];
            secrets.extend(pairs.iter().filter(|(name, _)| name == "sig").map(|(_, value)| Secret::new(value)));
            (builder.with_sas_authorization(pairs), secrets)
        }
    };
    // A key that is not base64 is quoted in the library's message.
    let store = builder.build().map_err(|_| {
        let hint = "AZURE_ACCOUNT_KEY is base64 as the portal shows it";
        InvalidLocation::new("AZURE_ACCOUNT_KEY", "the credentials of the storage account cannot be used", hint)
    })?;
    finish(Arc::new(store), &at.prefix, name, &options.patience, secrets)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connect(text: &str, options: &ConnectOptions) -> Result<Arc<dyn Backend>, InvalidLocation> {
        Location::parse(text, |_| Some("abc123==".to_owned())).unwrap().connect(options)
    }

    #[test]
    fn plain_http_stays_on_this_machine() {
        let options = ConnectOptions::default();
        for text in ["s3:http://127.0.0.1:1/bucket", "s3:http://[::1]:1/bucket", "s3:http://localhost/bucket"] {
            connect(text, &options).unwrap();
        }
        let error = connect("s3:http://store.example/bucket", &options).unwrap_err();
        assert!(error.to_string().contains("not encrypted"), "{error}");
        connect("s3:http://store.example/bucket", &ConnectOptions { allow_http: true, ..options }).unwrap();
    }

    #[test]
    fn authorities_are_read_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ca.pem");
        for content in [None, Some("no certificate")] {
            if let Some(content) = content {
                std::fs::write(&file, content).unwrap();
            }
            let options = ConnectOptions { ca_file: Some(file.clone()), ..ConnectOptions::default() };
            assert_eq!(connect("s3:https://h.example/bucket", &options).unwrap_err().field, "ca-file");
        }
    }

    #[test]
    fn an_address_of_numbers_has_no_bucket_before_it() {
        let options = ConnectOptions { addressing: Addressing::Host, ..ConnectOptions::default() };
        let error = connect("s3:https://127.0.0.1/bucket", &options).unwrap_err();
        assert_eq!(error.field, "bucket-lookup");
        connect("s3:https://store.example/bucket", &options).unwrap();
    }
}
