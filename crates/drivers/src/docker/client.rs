//! The connection to an engine, and what its answers mean.
//!
//! An answer is an answer: 404 is a proven absence, 4xx a refusal. No answer after a request was sent is
//! [`EngineError::OutcomeUnknown`]; only a connection that was never made proves that nothing happened (law 5).

use std::time::Duration;

use bollard::Docker;
use bollard::errors::Error as Bollard;
use perennial_core::engine::EngineError;

use super::ssh::{self, Address};
use super::tunnel::Tunnel;

/// How long an ordinary request may take; long ones say so themselves.
pub(super) const REQUEST: Duration = Duration::from_secs(120);
/// How long loading, saving or exporting an image may be silent.
pub(super) const LONG: Duration = Duration::from_secs(3600);
/// The oldest API this driver speaks (Docker 20.10).
const API_MIN: (usize, usize) = (1, 41);

/// Connects to the given host, else to `DOCKER_HOST`, else to the local socket. The connection lasts as long as the
/// tunnel that comes with it.
pub(super) async fn connect(
    host: Option<&str>,
    ssh_options: &[String],
) -> Result<(Docker, Option<Tunnel>), EngineError> {
    let from_env = std::env::var("DOCKER_HOST").ok().filter(|h| !h.is_empty());
    let host = host.map(str::to_owned).or(from_env);
    let tunnel = match host.as_deref().filter(|host| host.starts_with(ssh::SCHEME)) {
        Some(host) => Some(Tunnel::open(&Address::parse(host)?, ssh_options).await?),
        None => None,
    };
    let client = match (&tunnel, host) {
        (Some(tunnel), _) => Docker::connect_with_host(&format!("unix://{}", tunnel.socket().display())),
        (None, Some(host)) => Docker::connect_with_host(&host),
        (None, None) => Docker::connect_with_unix_defaults(),
    };
    let client = client.map_err(|e| fail("connect to the engine", e))?.with_timeout(REQUEST);
    let client = client.negotiate_version().await.map_err(|e| behind(tunnel.as_ref(), e))?;
    let version = client.client_version();
    if (version.major_version, version.minor_version) < API_MIN {
        return Err(rejected(format!(
            "the engine speaks API {}.{}, and {}.{} is needed (Docker 20.10)",
            version.major_version, version.minor_version, API_MIN.0, API_MIN.1
        )));
    }
    Ok((client, tunnel))
}

/// Says why an engine does not tell its version. A tunnel takes connections whether or not there is an engine at its
/// other end; only what `ssh` says of that tells why they are closed.
fn behind(tunnel: Option<&Tunnel>, error: Bollard) -> EngineError {
    let error = look("ask the engine for its version", error);
    let said = tunnel.map(Tunnel::said).filter(|said| !said.is_empty());
    match (error, said) {
        (EngineError::Transient { problem }, Some(said)) => transient(format!("{problem}; ssh says: {said}")),
        (error, _) => error,
    }
}

/// Says what a failed call means; `doing` is a bare verb phrase.
pub(super) fn fail(doing: &str, error: Bollard) -> EngineError {
    match error {
        Bollard::DockerResponseServerError { status_code, message } => answered(doing, status_code, &message),
        Bollard::DockerStreamError { error } => streamed(doing, &error),
        Bollard::SocketNotFoundError(path) => transient(format!("{doing}: no engine at {path}")),
        Bollard::UnsupportedURISchemeError { uri } => rejected(format!("{doing}: {uri} is not an engine address")),
        Bollard::HyperLegacyError { err } if err.is_connect() => transient(format!("{doing}: {}", chain(&err))),
        Bollard::JsonSerdeError { .. } | Bollard::URLEncodedError { .. } | Bollard::URLParseError { .. } => {
            rejected(format!("{doing}: {error}"))
        }
        Bollard::RequestTimeoutError => unknown(format!("{doing}: no answer in time")),
        other => unknown(format!("{doing}: {}", chain(&other))),
    }
}

/// Says what a failed look means: whatever went wrong, it changed nothing, so it may simply be repeated.
pub(super) fn look(doing: &str, error: Bollard) -> EngineError {
    match fail(doing, error) {
        EngineError::OutcomeUnknown { problem } => EngineError::Transient { problem },
        other => other,
    }
}

/// `None` for a proven absence.
pub(super) fn found<T>(doing: &str, result: Result<T, Bollard>) -> Result<Option<T>, EngineError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Bollard::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
        Err(e) => Err(look(doing, e)),
    }
}

/// Whether the engine said that it is so already (304 of start, stop).
pub(super) const fn not_modified(error: &Bollard) -> bool {
    matches!(error, Bollard::DockerResponseServerError { status_code: 304, .. })
}

/// Whether the engine said that there is no such thing.
pub(super) const fn not_found(error: &Bollard) -> bool {
    matches!(error, Bollard::DockerResponseServerError { status_code: 404, .. })
}

fn answered(doing: &str, status: u16, message: &str) -> EngineError {
    let problem = format!("{doing}: {}", message.trim());
    let says = |text: &str| message.to_ascii_lowercase().contains(text);
    match status {
        404 => EngineError::NotFound { what: problem },
        409 => EngineError::Conflict { problem },
        400..=499 => rejected(problem),
        // The engine answers 500 for much that is nobody's accident.
        500.. if says("port is already allocated") || says("address already in use") => {
            EngineError::Conflict { problem }
        }
        500.. if says("unknown runtime") || says("no such image") || says("invalid mount") => rejected(problem),
        _ => transient(problem),
    }
}

/// What an error inside a stream of pull or load means: the engine itself gave up, so it did not happen.
fn streamed(doing: &str, message: &str) -> EngineError {
    let problem = format!("{doing}: {}", message.trim());
    let says = |text: &str| message.to_ascii_lowercase().contains(text);
    if says("not found") || says("manifest unknown") || says("does not exist") {
        EngineError::NotFound { what: problem }
    } else if says("denied") || says("unauthorized") || says("invalid") || says("not an archive") {
        rejected(problem)
    } else {
        transient(problem)
    }
}

/// The error and its sources in one line: hyper's own text says only "client error".
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let more = source.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = source.source();
    }
    text
}

/// A refusal.
pub(super) fn rejected(problem: impl Into<String>) -> EngineError {
    EngineError::Rejected { problem: problem.into() }
}

/// A contradiction.
pub(super) fn conflict(problem: impl Into<String>) -> EngineError {
    EngineError::Conflict { problem: problem.into() }
}

/// It did not happen, and may later.
pub(super) fn transient(problem: impl Into<String>) -> EngineError {
    EngineError::Transient { problem: problem.into() }
}

/// Nobody knows.
pub(super) fn unknown(problem: impl Into<String>) -> EngineError {
    EngineError::OutcomeUnknown { problem: problem.into() }
}

/// A local file operation failed: nothing of it counts, and it may work later.
pub(super) fn io(doing: impl std::fmt::Display) -> impl FnOnce(std::io::Error) -> EngineError {
    move |e| transient(format!("{doing}: {e}"))
}

/// Runs blocking work off the async threads.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, EngineError> + Send + 'static,
) -> Result<T, EngineError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(unknown(format!("a worker ended early: {e}"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status_code: u16, message: &str) -> EngineError {
        fail("try", Bollard::DockerResponseServerError { status_code, message: message.to_owned() })
    }

    #[test]
    fn answers_and_silence_are_told_apart() {
        assert!(matches!(answer(404, "No such container"), EngineError::NotFound { .. }));
        assert!(matches!(answer(409, "in use"), EngineError::Conflict { .. }));
        assert!(matches!(answer(400, "Unknown runtime specified x"), EngineError::Rejected { .. }));
        assert!(matches!(answer(500, "no space left on device"), EngineError::Transient { .. }));
        assert!(matches!(answer(500, "port is already allocated"), EngineError::Conflict { .. }));
        assert!(matches!(fail("try", Bollard::RequestTimeoutError), EngineError::OutcomeUnknown { .. }));
        assert!(matches!(look("look", Bollard::RequestTimeoutError), EngineError::Transient { .. }));
    }

    #[test]
    fn a_missing_socket_proves_that_nothing_happened() {
        let error = Bollard::SocketNotFoundError("/nowhere".into());
        assert!(matches!(fail("try", error), EngineError::Transient { .. }));
    }
}
