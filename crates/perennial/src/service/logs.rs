//! What a pod's program writes.

use perennial_core::Error;
use perennial_core::engine::{EngineError, LogRange, LogReader};
use perennial_core::id::PodId;
use perennial_core::pod::Pod;

use super::{App, Caller};

impl App {
    /// Reads what the program of the pod's present container wrote; containers that are gone took theirs with them.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a pod that the caller may not see; [`Error::Conflict`] when it has no container, or its engine
    /// keeps nothing of what it writes; [`Error::Unavailable`] when the engine does not answer.
    pub async fn pod_logs(&self, caller: &Caller, id: PodId, range: LogRange) -> Result<Box<dyn LogReader>, Error> {
        let (pod, _) = self.pod(caller, id).await?;
        let observed = self.engine.observe(pod.id, &[]).await;
        let observed = observed.map_err(|error| Error::Unavailable { problem: error.to_string() })?;
        let container = observed.container.ok_or_else(|| no_container(&pod))?;
        self.engine.container_logs(&container.id, range).await.map_err(|error| match error {
            EngineError::NotFound { .. } => no_container(&pod),
            EngineError::Rejected { problem } => Error::conflict(
                "logs-not-kept",
                problem,
                "set another logging driver for the engine, and restart the pod with a changed specification",
            ),
            other => Error::Unavailable { problem: other.to_string() },
        })
    }
}

fn no_container(pod: &Pod) -> Error {
    Error::conflict(
        "no-container",
        format!("pod {} has no container, and what one wrote goes with it", pod.name),
        "start the pod; perennial pod events tells what became of it",
    )
}
