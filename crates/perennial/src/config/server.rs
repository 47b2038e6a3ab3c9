//! `[server]`: how the server is reached.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::error::{ConfigError, value};

/// `[server]` of the file.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileServer {
    #[serde(default)]
    pub tls: FileTls,
}

/// `[server.tls]` of the file.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileTls {
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
}

/// How the server is reached.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ServerSection {
    /// Where certificate and key are; `None` to serve plain HTTP.
    pub tls: Option<TlsFiles>,
}

impl ServerSection {
    /// Whether there is nothing to show.
    pub(super) const fn is_empty(&self) -> bool {
        self.tls.is_none()
    }
}

/// The files that TLS needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TlsFiles {
    /// The certificate and those between it and its authority, PEM.
    pub cert: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
}

impl TlsFiles {
    /// The two files, which are of no use alone.
    pub(super) fn both(cert: Option<PathBuf>, key: Option<PathBuf>) -> Result<Option<Self>, ConfigError> {
        let place = |key: &'static str, path: PathBuf| {
            std::path::absolute(path).map_err(|e| value(key, e.to_string(), "write the path of a PEM file"))
        };
        let hint = "TLS needs both: a certificate and its private key";
        match (cert, key) {
            (Some(cert), Some(key)) => {
                Ok(Some(Self { cert: place("server.tls.cert", cert)?, key: place("server.tls.key", key)? }))
            }
            (None, None) => Ok(None),
            (Some(_), None) => Err(value("server.tls.key", "is missing", hint)),
            (None, Some(_)) => Err(value("server.tls.cert", "is missing", hint)),
        }
    }
}
