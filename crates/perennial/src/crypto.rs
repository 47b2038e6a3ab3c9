//! The cryptography under TLS: *ring*, for the listener and for every client.
//!
//! Rejected: AWS-LC, the default of rustls. It needs CMake, and is a tenth of a first build.

use std::sync::Arc;

use tokio_rustls::rustls::crypto::{CryptoProvider, ring};

/// The provider for a TLS configuration that is made here.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// What a client for the web is made with. Without the cryptography it could not be.
pub(crate) fn web_client() -> reqwest::ClientBuilder {
    install();
    reqwest::Client::builder()
}

/// Makes it the one that libraries find when they ask for the process's own; whatever is installed already stays.
pub fn install() {
    // It fails only when there is one.
    let _ = ring::default_provider().install_default();
}
