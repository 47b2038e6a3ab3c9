//! The engine's events, reduced to "something of this pod changed".

use bollard::query_parameters::EventsOptionsBuilder;
use futures::StreamExt;
use perennial_core::engine::{ChangeSink, EngineError};

use super::client::{look, transient};
use super::{DockerEngine, labels};

/// What happens to a container that a decision may depend on.
const TELLING: [&str; 7] = ["start", "die", "oom", "destroy", "pause", "unpause", "create"];

impl DockerEngine {
    pub(super) async fn follow(&self, sink: &dyn ChangeSink) -> Result<(), EngineError> {
        let ours = self.config.installation.to_string();
        let mut filters = labels::filter(&[(labels::INSTALLATION, &ours)]);
        filters.insert("type".to_owned(), vec!["container".to_owned()]);
        let options = EventsOptionsBuilder::default().filters(&filters).build();
        let mut events = Box::pin(self.docker.events(Some(options)));
        while let Some(event) = events.next().await {
            let event = event.map_err(|e| look("follow the engine's events", e))?;
            // The health check's actions carry their command after a colon.
            let action = event.action.as_deref().unwrap_or_default();
            if !TELLING.contains(&action) {
                continue;
            }
            let labels = event.actor.and_then(|a| a.attributes).unwrap_or_default();
            if let Some(pod) = labels::pod_of(&labels, self.config.installation) {
                sink.pod_changed(pod);
            }
        }
        Err(transient("the engine ended its stream of events"))
    }
}
