//! SIGHUP: the files of the catalogue are looked at again.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::service::{App, Occasion};

/// Looks at the files of the catalogue on SIGHUP, until the server stops.
///
/// The signal is handled when this returns, and not only when the future first runs.
pub fn look_when_asked(app: App, mut stopping: watch::Receiver<bool>) -> impl Future<Output = ()> + Send {
    let hangup = signal(SignalKind::hangup());
    async move {
        let mut hangup = match hangup {
            Ok(hangup) => hangup,
            Err(error) => return tracing::warn!(%error, "SIGHUP cannot be handled: a new catalogue needs a restart"),
        };
        while !*stopping.borrow() {
            tokio::select! {
                _ = hangup.recv() => app.catalogue_look(Occasion::Asked).await,
                _ = stopping.changed() => return,
            }
        }
    }
}
