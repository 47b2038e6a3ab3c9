//! TLS by files: what is shown to clients, read again while the server runs, and a listener that shakes hands.
//!
//! Hands are shaken beside accepting, each with a time limit, so that a client that says nothing keeps nobody waiting.
//! Rejected: a library that serves by itself (axum's own way of draining requests would have been lost).

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::serve::Listener;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{self, ServerConfig};
use tokio_rustls::server::TlsStream;

use crate::config::TlsFiles;
use crate::crypto;

/// How long a client may take to shake hands.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Most handshakes at the same time; more connections wait to be accepted.
const HANDSHAKES_MAX: usize = 256;
/// How often the files are looked at.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// Why certificate or key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or holds something else.
    #[error("{path}: {problem}")]
    File {
        /// Which.
        path: String,
        /// What.
        problem: String,
    },
    /// Both can be read, and cannot be used together.
    #[error("{cert} and {key} do not fit: {source}")]
    Pair {
        /// The certificate's file.
        cert: String,
        /// The key's file.
        key: String,
        /// What the library says.
        source: rustls::Error,
    },
    /// The library refuses its own defaults.
    #[error("set up TLS: {0}")]
    Library(#[source] rustls::Error),
}

impl TlsError {
    /// How to go on.
    #[must_use]
    pub const fn hint(&self) -> &str {
        match self {
            Self::File { .. } => "server.tls.cert is the certificate chain and server.tls.key its private key, as PEM",
            Self::Pair { .. } => "server.tls.key has to be the private key of the first certificate in server.tls.cert",
            Self::Library(_) => "",
        }
    }
}

/// Whether the files hold something new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reread {
    /// The same as before.
    Unchanged,
    /// New connections see the new certificate.
    Replaced,
}

/// The server's certificate and key: what the files held when they were good last.
#[derive(Debug)]
pub struct Certificate {
    files: TlsFiles,
    current: RwLock<Arc<CertifiedKey>>,
}

impl Certificate {
    /// Reads the files.
    ///
    /// # Errors
    /// [`TlsError`] saying which file, or that the two do not fit.
    pub fn load(files: TlsFiles) -> Result<Self, TlsError> {
        let current = RwLock::new(Arc::new(read(&files)?));
        Ok(Self { files, current })
    }

    /// Reads the files again; what was good before stays in use when they are not.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn reread(&self) -> Result<Reread, TlsError> {
        let new = read(&self.files)?;
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        if current.cert == new.cert {
            return Ok(Reread::Unchanged);
        }
        *current = Arc::new(new);
        Ok(Reread::Replaced)
    }

    /// Puts TLS before a listener.
    ///
    /// # Errors
    /// [`TlsError::Library`].
    pub fn listener(self: &Arc<Self>, tcp: TcpListener) -> Result<TlsListener, TlsError> {
        let builder = ServerConfig::builder_with_provider(crypto::provider())
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Library)?;
        let mut config =
            builder.with_no_client_auth().with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(TlsListener { tcp, acceptor: TlsAcceptor::from(Arc::new(config)), handshakes: JoinSet::new() })
    }

    /// Reads the files again on SIGHUP and every minute, until the server stops.
    ///
    /// The signal is handled when this returns, and not only when the future first runs.
    pub fn keep_fresh(self: Arc<Self>, stopping: watch::Receiver<bool>) -> impl Future<Output = ()> + Send {
        let hangup = signal(SignalKind::hangup());
        async move {
            match hangup {
                Ok(hangup) => self.reread_when_asked(hangup, stopping).await,
                Err(error) => tracing::warn!(%error, "SIGHUP cannot be handled: a new certificate needs a restart"),
            }
        }
    }

    async fn reread_when_asked(&self, mut hangup: Signal, mut stopping: watch::Receiver<bool>) {
        let mut said = String::new();
        while !*stopping.borrow() {
            let asked = tokio::select! {
                _ = hangup.recv() => true,
                () = tokio::time::sleep(LOOK_AGAIN) => false,
                _ = stopping.changed() => return,
            };
            match self.reread() {
                Ok(Reread::Replaced) => tracing::info!("the certificate was replaced"),
                Ok(Reread::Unchanged) if asked => tracing::info!("the certificate is the same as before"),
                Ok(Reread::Unchanged) => said.clear(),
                Err(error) if asked || said != error.to_string() => {
                    said = error.to_string();
                    tracing::warn!(%error, "the new certificate cannot be used, the old one stays");
                }
                Err(_) => {}
            }
        }
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

fn read(files: &TlsFiles) -> Result<CertifiedKey, TlsError> {
    let wrong = |path: &Path, error: rustls::pki_types::pem::Error| TlsError::File {
        path: path.display().to_string(),
        problem: match error {
            rustls::pki_types::pem::Error::Io(error) => error.to_string(),
            rustls::pki_types::pem::Error::NoItemsFound => "holds no private key".to_owned(),
            other => other.to_string(),
        },
    };
    let chain = CertificateDer::pem_file_iter(&files.cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| wrong(&files.cert, error))?;
    if chain.is_empty() {
        let path = files.cert.display().to_string();
        return Err(TlsError::File { path, problem: "holds no certificate".to_owned() });
    }
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| wrong(&files.key, error))?;
    CertifiedKey::from_der(chain, key, &crypto::provider()).map_err(|source| TlsError::Pair {
        cert: files.cert.display().to_string(),
        key: files.key.display().to_string(),
        source,
    })
}

/// Accepts connections and shakes hands with many clients at a time.
pub struct TlsListener {
    tcp: TcpListener,
    acceptor: TlsAcceptor,
    handshakes: JoinSet<Option<(TlsStream<TcpStream>, SocketAddr)>>,
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let has_room = self.handshakes.len() < HANDSHAKES_MAX;
            tokio::select! {
                Some(done) = self.handshakes.join_next() => {
                    if let Ok(Some(connection)) = done {
                        return connection;
                    }
                }
                (stream, address) = Listener::accept(&mut self.tcp), if has_room => {
                    let acceptor = self.acceptor.clone();
                    self.handshakes.spawn(shake_hands(acceptor, stream, address));
                }
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.tcp.local_addr()
    }
}

/// `None` when it did not come to a connection: strangers, scanners and clients without trust are no news.
async fn shake_hands(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    address: SocketAddr,
) -> Option<(TlsStream<TcpStream>, SocketAddr)> {
    match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => Some((stream, address)),
        Ok(Err(error)) => {
            tracing::debug!(%address, %error, "no TLS");
            None
        }
        Err(_) => {
            tracing::debug!(%address, "no TLS in time");
            None
        }
    }
}
