//! Archives that become snapshots: who may send one, and what becomes of it when it came.

use axum::body::Bytes;
use futures::Stream;
use perennial_core::Error;
use perennial_core::id::PodId;
use perennial_core::pod::{Import, Pod};
use perennial_core::snapshot::SnapshotState;
use perennial_core::spec::{Backend, TenantId};
use perennial_core::{verbs, volume};

use super::App;
use super::act::{Outcome, Request};
use crate::import::Devices;
use crate::import::receive::{Expected, receive};
use crate::library::PodPath;

/// Longest comment, in characters.
const COMMENT_MAX: usize = 200;

impl App {
    /// Receives an archive and has a snapshot of the pod made of it. Nothing of the pod changes.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for an archive that is refused, and then nothing of it is left; [`Error::Conflict`], see
    /// [`verbs::import`]; [`Error::Unavailable`] when it cannot be received now.
    pub async fn snapshot_import<E: std::fmt::Display>(
        &self,
        request: Request<'_>,
        pod: PodId,
        import: Import,
        body: impl Stream<Item = Result<Bytes, E>> + Send,
    ) -> Result<Outcome, Error> {
        let at = check(&import)?;
        let id = self.snapshot_id();
        // What would be refused in the end is refused before anything is sent.
        let (record, _) = self.pod(request.caller, pod).await?;
        verbs::import(&record, id, import.clone(), &self.order(request.caller))?;
        let expected = expected(&record, at, &import);
        let turn = self.imports.turn(&record.tenant);
        let turn = turn.map_err(|problem| Error::Unavailable { problem: problem.to_owned() })?;
        let waiting = self.imports_of(&record.tenant).await?;
        let received = receive(&self.imports, (id, turn, waiting), body, expected).await;
        // It may have taken hours: whoever sent it may not be allowed to any more, and that is the reason then.
        let caller = self.access.again(request.caller).await?;
        let request = Request { caller: &caller, once: request.once };
        let mut received = received?;
        // Before the commit: a client that goes away now must not take along what is recorded already.
        received.keep();
        let outcome = self.act(request, pod, |pod, order| verbs::import(pod, id, import.clone(), order)).await;
        match &outcome {
            // Written or not, nobody knows: what nobody needs goes by itself.
            Ok(_) | Err(Error::Unavailable { .. }) => {}
            Err(_) => self.imports.remove(id),
        }
        outcome
    }

    /// Bytes of the archives of a tenant that wait to become snapshots.
    async fn imports_of(&self, tenant: &TenantId) -> Result<u64, Error> {
        let waiting = self
            .imports
            .waiting()
            .map_err(|error| Error::Unavailable { problem: format!("received archives cannot be listed: {error}") })?;
        let mut bytes = 0_u64;
        for id in waiting {
            if self.store.snapshot_fetch(id).await?.is_some_and(|row| row.tenant == *tenant) {
                bytes = bytes.saturating_add(self.imports.size(id));
            }
        }
        Ok(bytes)
    }

    /// Removes received archives that no operation waits for any more.
    pub async fn imports_sweep(&self) {
        let waiting = match self.imports.waiting() {
            Ok(waiting) => waiting,
            Err(error) => return tracing::warn!(%error, "list received archives"),
        };
        for id in waiting {
            match self.store.snapshot_fetch(id).await {
                Ok(Some(row)) if row.state == SnapshotState::Pending => {}
                Ok(_) => self.imports.remove(id),
                Err(error) => tracing::warn!(snapshot = %id, %error, "look up a received archive"),
            }
        }
    }
}

/// Checks what can be checked without the archive; returns the names of the path that it belongs below.
fn check(import: &Import) -> Result<Vec<Vec<u8>>, Error> {
    if import.comment.chars().count() > COMMENT_MAX || import.comment.chars().any(char::is_control) {
        let problem = format!("is longer than {COMMENT_MAX} characters, or more than a line");
        return Err(Error::invalid("comment", problem, "write one short line"));
    }
    let Some(into) = &import.into else { return Ok(Vec::new()) };
    let path = PodPath::parse(into.as_bytes()).map_err(|error| match error {
        Error::InvalidInput { problem, hint, .. } => Error::invalid("into", problem, hint),
        other => other,
    })?;
    let names: Vec<Vec<u8>> = path.names().map(<[u8]>::to_vec).collect();
    let never = |top: &Vec<u8>| volume::NEVER_PERSISTED.iter().any(|n| n.as_bytes() == top.as_slice());
    if names.first().is_some_and(never) {
        return Err(Error::invalid("into", "nothing below it is ever kept", "choose another place, such as /home/me"));
    }
    Ok(names)
}

fn expected(pod: &Pod, at: Vec<Vec<u8>>, import: &Import) -> Expected {
    let layout = pod.image.as_ref().map(|image| image.layout.clone()).unwrap_or_default();
    let whole = import.into.is_none();
    let volumes = if whole { volume::layout(&pod.spec.profile, Backend::Engine, &layout) } else { Vec::new() };
    let devices = if import.allow_devices { Devices::Allowed } else { Devices::Refused };
    Expected { at, volumes, devices }
}
