//! The engine trait: each method is one [`SimEngine::call`] around what the other files do.

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use perennial_core::engine::{
    Capabilities, ChangeSink, ContainerSpec, Copying, Effect, Engine, EngineError, Fill, LayerAccess, LogRange,
    LogReader, MoverChannel, ObservedPod, Owned, Program, Ran, SetAccess, SetSpec, Still, VolumeUsage,
};
use perennial_core::health::{Answer, Probe};
use perennial_core::id::PodId;
use perennial_core::permit::DeletePermit;
use perennial_core::pod::PinnedImage;
use perennial_core::progress::Progress;
use perennial_core::spec::{Backend, Resources};
use tokio::sync::mpsc;

use super::output::Output;
use super::{Shared, SimEngine, broken};

/// Processors that the simulated host has.
pub(super) const CPUS: u32 = 64;

#[async_trait]
impl Engine for SimEngine {
    async fn capabilities(&self) -> Result<Capabilities, EngineError> {
        let options = &self.shared.options;
        self.call("capabilities", |_, _| {
            Ok(Capabilities {
                version: concat!("simulator ", env!("CARGO_PKG_VERSION")).to_owned(),
                runtimes: options.runtimes.clone(),
                default_runtime: options.runtimes.first().map(|r| r.name.clone()).unwrap_or_default(),
                backends: options.backends.clone(),
                cpus: Some(CPUS),
                notes: Vec::new(),
            })
        })
        .await
    }

    async fn image_resolve(&self, reference: &str) -> Result<Option<PinnedImage>, EngineError> {
        self.call("image_resolve", |state, _| self.shared.image_resolve(state, reference)).await
    }

    async fn image_offered(&self, reference: &str) -> Result<(), EngineError> {
        self.call("image_offered", |state, _| self.shared.image_offered(state, reference)).await
    }

    async fn image_pull(&self, reference: &str, _progress: &Progress) -> Result<(), EngineError> {
        self.call("image_pull", |state, _| self.shared.image_pull(state, reference)).await
    }

    async fn image_export(&self, image: &str, into: &Path, progress: &Progress) -> Result<(), EngineError> {
        self.call("image_export", |state, fate| Shared::image_export(state, fate, image, into, progress)).await
    }

    async fn image_import(&self, from: &Path, progress: &Progress) -> Result<(), EngineError> {
        self.call("image_import", |state, fate| self.shared.image_import(state, fate, from, progress)).await
    }

    async fn observe(&self, pod: PodId, sets: &[SetSpec]) -> Result<ObservedPod, EngineError> {
        self.call("observe", |state, _| self.shared.observe(state, pod, sets)).await
    }

    async fn lingering(&self, sets: &[SetSpec]) -> Result<Vec<String>, EngineError> {
        self.call("lingering", |state, _| {
            sets.iter().for_each(|set| state.end_movers(set.pod, set.number));
            state.lingering(sets)
        })
        .await
    }

    async fn set_prepare(&self, set: &SetSpec, fill: Fill) -> Result<Effect, EngineError> {
        self.call("set_prepare", |state, fate| {
            state.end_movers(set.pod, set.number);
            self.shared.set_prepare(state, fate, set, fill)
        })
        .await
    }

    async fn set_copying(&self, set: &SetSpec) -> Result<Option<Copying>, EngineError> {
        let copying = self.shared.options.copying.filter(|_| set.backend == Backend::Overlay);
        self.call("set_copying", |_, _| Ok(copying)).await
    }

    async fn set_snapshot(&self, from: &SetSpec, to: &SetSpec) -> Result<Effect, EngineError> {
        self.call("set_snapshot", |state, fate| self.shared.set_snapshot(state, fate, from, to)).await
    }

    async fn set_still(&self, set: &SetSpec) -> Result<Still, EngineError> {
        self.call("set_still", |state, fate| self.shared.set_still(state, fate, set)).await
    }

    async fn stills_sweep(&self) -> Result<Effect, EngineError> {
        self.call("stills_sweep", |state, _| self.shared.stills_sweep(state)).await
    }

    async fn set_complete(&self, set: &SetSpec) -> Result<Effect, EngineError> {
        self.call("set_complete", |state, _| self.shared.set_complete(state, set)).await
    }

    async fn set_access(&self, set: &SetSpec) -> Result<SetAccess, EngineError> {
        self.call("set_access", |state, _| self.shared.set_access(state, set)).await
    }

    async fn set_usage(&self, set: &SetSpec) -> Result<Vec<VolumeUsage>, EngineError> {
        self.call("set_usage", |_, _| self.shared.set_usage(set)).await
    }

    async fn set_limit(&self, set: &SetSpec, bytes: Option<u64>) -> Result<Effect, EngineError> {
        self.call("set_limit", |state, _| self.shared.set_limit(state, set, bytes)).await
    }

    async fn set_delete(&self, set: &SetSpec, permit: &DeletePermit) -> Result<Effect, EngineError> {
        self.call("set_delete", |state, fate| {
            state.end_movers(set.pod, set.number);
            self.shared.set_delete(state, fate, set, permit)
        })
        .await
    }

    async fn container_ensure(&self, container: &ContainerSpec) -> Result<(String, Effect), EngineError> {
        self.call("container_ensure", |state, _| self.shared.container_ensure(state, container)).await
    }

    async fn container_limit(&self, id: &str, limits: &Resources) -> Result<Effect, EngineError> {
        self.call("container_limit", |state, _| self.shared.container_limit(state, id, limits)).await
    }

    async fn container_remove(&self, id: &str, permit: &DeletePermit) -> Result<Effect, EngineError> {
        self.call("container_remove", |state, _| self.shared.container_remove(state, id, permit)).await
    }

    async fn container_start(&self, id: &str, set: &SetSpec, generation: u64) -> Result<Effect, EngineError> {
        self.call("container_start", |state, fate| {
            state.end_movers(set.pod, set.number);
            self.shared.container_start(state, fate, id, set, generation)
        })
        .await
    }

    async fn container_stop(&self, id: &str, _grace_seconds: u32) -> Result<Effect, EngineError> {
        self.call("container_stop", |state, _| self.shared.container_stop(state, id)).await
    }

    async fn container_freeze(&self, id: &str) -> Result<Effect, EngineError> {
        self.call("container_freeze", |state, _| self.shared.container_freeze(state, id)).await
    }

    async fn container_unfreeze(&self, id: &str) -> Result<Effect, EngineError> {
        self.call("container_unfreeze", |state, _| self.shared.container_unfreeze(state, id)).await
    }

    async fn container_run(&self, id: &str, program: &Program, progress: &Progress) -> Result<Ran, EngineError> {
        self.program_run(id, program, progress).await
    }

    async fn container_rejoin(
        &self,
        id: &str,
        program: &Program,
        progress: &Progress,
    ) -> Result<Option<Ran>, EngineError> {
        self.program_rejoin(id, program, progress).await
    }

    async fn container_probe(&self, id: &str, probe: &Probe, within: Duration) -> Result<Answer, EngineError> {
        self.health_probe(id, probe, within).await
    }

    async fn container_logs(&self, id: &str, range: LogRange) -> Result<Box<dyn LogReader>, EngineError> {
        let output = self.call("container_logs", |state, _| Output::open(&self.shared, state, id, range)).await?;
        Ok(Box::new(output))
    }

    async fn layer_access(&self, id: &str) -> Result<LayerAccess, EngineError> {
        self.call("layer_access", |state, _| self.shared.layer_access(state, id)).await
    }

    async fn mover_open(&self, set: &SetSpec) -> Result<MoverChannel, EngineError> {
        self.call("mover_open", |state, _| self.shared.mover_open(state, set)).await
    }

    async fn list_owned(&self) -> Result<Vec<Owned>, EngineError> {
        self.call("list_owned", |state, _| {
            let mut found = self.shared.list_sets().map_err(|e| broken("list sets", &e))?;
            let containers = state.containers.values();
            found.extend(containers.map(|c| Owned::Container { pod: c.pod, id: c.id.clone() }));
            Ok(found)
        })
        .await
    }

    async fn watch(&self, sink: &dyn ChangeSink) -> Result<(), EngineError> {
        let (sender, mut changes) = mpsc::unbounded_channel();
        self.call("watch", |state, _| {
            state.watchers.push(sender);
            Ok(())
        })
        .await?;
        while let Some(pod) = changes.recv().await {
            sink.pod_changed(pod);
        }
        Err(EngineError::Transient { problem: "the connection to the simulated engine ended".to_owned() })
    }
}
