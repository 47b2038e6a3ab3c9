//! A decorator that asks a fault tap before and after every engine call.
//!
//! The site of a call is `engine.` and the method's name. Every method has one, the reading ones too: a lost answer to
//! an observation has to be survived like any other (law 5).

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use perennial_core::engine::{
    Capabilities, ChangeSink, ContainerSpec, Copying, Effect, Engine, EngineError, Fill, LayerAccess, LogRange,
    LogReader, MoverChannel, ObservedPod, Owned, Program, Ran, SetAccess, SetSpec, Still, VolumeUsage,
};
use perennial_core::fault::{Moment, Tap, Verdict};
use perennial_core::health::{Answer, Probe};
use perennial_core::id::PodId;
use perennial_core::permit::DeletePermit;
use perennial_core::pod::PinnedImage;
use perennial_core::progress::Progress;
use perennial_core::spec::Resources;

/// An engine whose every call passes a tap.
pub struct Tapped<E: ?Sized> {
    inner: Arc<E>,
    tap: Arc<dyn Tap>,
}

impl<E: ?Sized> Clone for Tapped<E> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner), tap: Arc::clone(&self.tap) }
    }
}

impl<E: Engine + ?Sized> Tapped<E> {
    /// Puts the tap around the engine.
    #[must_use]
    pub fn new(inner: Arc<E>, tap: Arc<dyn Tap>) -> Self {
        Self { inner, tap }
    }

    /// The engine behind the tap.
    #[must_use]
    pub const fn inner(&self) -> &Arc<E> {
        &self.inner
    }

    /// Asks the tap, calls, asks again.
    async fn through<T: Send>(
        &self,
        site: &str,
        call: impl Future<Output = Result<T, EngineError>> + Send,
    ) -> Result<T, EngineError> {
        match self.tap.at(site, Moment::Before) {
            Verdict::Go => {}
            Verdict::Fail => {
                return Err(EngineError::Transient { problem: format!("{site} failed before it did anything") });
            }
            Verdict::Die => return std::future::pending().await,
        }
        let answer = call.await;
        match self.tap.at(site, Moment::After) {
            Verdict::Go => answer,
            Verdict::Fail => Err(EngineError::OutcomeUnknown { problem: format!("the answer to {site} was lost") }),
            Verdict::Die => std::future::pending().await,
        }
    }
}

#[async_trait]
impl<E: Engine + ?Sized> Engine for Tapped<E> {
    async fn capabilities(&self) -> Result<Capabilities, EngineError> {
        self.through("engine.capabilities", self.inner.capabilities()).await
    }

    async fn image_resolve(&self, reference: &str) -> Result<Option<PinnedImage>, EngineError> {
        self.through("engine.image_resolve", self.inner.image_resolve(reference)).await
    }

    async fn image_offered(&self, reference: &str) -> Result<(), EngineError> {
        self.through("engine.image_offered", self.inner.image_offered(reference)).await
    }

    async fn image_pull(&self, reference: &str, progress: &Progress) -> Result<(), EngineError> {
        self.through("engine.image_pull", self.inner.image_pull(reference, progress)).await
    }

    async fn image_export(&self, image: &str, into: &Path, progress: &Progress) -> Result<(), EngineError> {
        self.through("engine.image_export", self.inner.image_export(image, into, progress)).await
    }

    async fn image_import(&self, from: &Path, progress: &Progress) -> Result<(), EngineError> {
        self.through("engine.image_import", self.inner.image_import(from, progress)).await
    }

    async fn observe(&self, pod: PodId, sets: &[SetSpec]) -> Result<ObservedPod, EngineError> {
        self.through("engine.observe", self.inner.observe(pod, sets)).await
    }

    async fn lingering(&self, sets: &[SetSpec]) -> Result<Vec<String>, EngineError> {
        self.through("engine.lingering", self.inner.lingering(sets)).await
    }

    async fn set_prepare(&self, set: &SetSpec, fill: Fill) -> Result<Effect, EngineError> {
        self.through("engine.set_prepare", self.inner.set_prepare(set, fill)).await
    }

    async fn set_copying(&self, set: &SetSpec) -> Result<Option<Copying>, EngineError> {
        self.through("engine.set_copying", self.inner.set_copying(set)).await
    }

    async fn set_snapshot(&self, from: &SetSpec, to: &SetSpec) -> Result<Effect, EngineError> {
        self.through("engine.set_snapshot", self.inner.set_snapshot(from, to)).await
    }

    async fn set_still(&self, set: &SetSpec) -> Result<Still, EngineError> {
        self.through("engine.set_still", self.inner.set_still(set)).await
    }

    async fn stills_sweep(&self) -> Result<Effect, EngineError> {
        self.through("engine.stills_sweep", self.inner.stills_sweep()).await
    }

    async fn set_complete(&self, set: &SetSpec) -> Result<Effect, EngineError> {
        self.through("engine.set_complete", self.inner.set_complete(set)).await
    }

    async fn set_access(&self, set: &SetSpec) -> Result<SetAccess, EngineError> {
        self.through("engine.set_access", self.inner.set_access(set)).await
    }

    async fn set_usage(&self, set: &SetSpec) -> Result<Vec<VolumeUsage>, EngineError> {
        self.through("engine.set_usage", self.inner.set_usage(set)).await
    }

    async fn set_limit(&self, set: &SetSpec, bytes: Option<u64>) -> Result<Effect, EngineError> {
        self.through("engine.set_limit", self.inner.set_limit(set, bytes)).await
    }

    async fn set_delete(&self, set: &SetSpec, permit: &DeletePermit) -> Result<Effect, EngineError> {
        self.through("engine.set_delete", self.inner.set_delete(set, permit)).await
    }

    async fn container_ensure(&self, container: &ContainerSpec) -> Result<(String, Effect), EngineError> {
        self.through("engine.container_ensure", self.inner.container_ensure(container)).await
    }

    async fn container_limit(&self, id: &str, limits: &Resources) -> Result<Effect, EngineError> {
        self.through("engine.container_limit", self.inner.container_limit(id, limits)).await
    }

    async fn container_remove(&self, id: &str, permit: &DeletePermit) -> Result<Effect, EngineError> {
        self.through("engine.container_remove", self.inner.container_remove(id, permit)).await
    }

    async fn container_start(&self, id: &str, set: &SetSpec, generation: u64) -> Result<Effect, EngineError> {
        self.through("engine.container_start", self.inner.container_start(id, set, generation)).await
    }

    async fn container_stop(&self, id: &str, grace_seconds: u32) -> Result<Effect, EngineError> {
        self.through("engine.container_stop", self.inner.container_stop(id, grace_seconds)).await
    }

    async fn container_freeze(&self, id: &str) -> Result<Effect, EngineError> {
        self.through("engine.container_freeze", self.inner.container_freeze(id)).await
    }

    async fn container_unfreeze(&self, id: &str) -> Result<Effect, EngineError> {
        self.through("engine.container_unfreeze", self.inner.container_unfreeze(id)).await
    }

    async fn container_run(&self, id: &str, program: &Program, progress: &Progress) -> Result<Ran, EngineError> {
        self.through("engine.container_run", self.inner.container_run(id, program, progress)).await
    }

    async fn container_rejoin(
        &self,
        id: &str,
        program: &Program,
        progress: &Progress,
    ) -> Result<Option<Ran>, EngineError> {
        self.through("engine.container_rejoin", self.inner.container_rejoin(id, program, progress)).await
    }

    async fn container_probe(&self, id: &str, probe: &Probe, within: Duration) -> Result<Answer, EngineError> {
        self.through("engine.container_probe", self.inner.container_probe(id, probe, within)).await
    }

    async fn container_logs(&self, id: &str, range: LogRange) -> Result<Box<dyn LogReader>, EngineError> {
        self.through("engine.container_logs", self.inner.container_logs(id, range)).await
    }

    async fn layer_access(&self, id: &str) -> Result<LayerAccess, EngineError> {
        self.through("engine.layer_access", self.inner.layer_access(id)).await
    }

    async fn mover_open(&self, set: &SetSpec) -> Result<MoverChannel, EngineError> {
        self.through("engine.mover_open", self.inner.mover_open(set)).await
    }

    async fn list_owned(&self) -> Result<Vec<Owned>, EngineError> {
        self.through("engine.list_owned", self.inner.list_owned()).await
    }

    async fn watch(&self, sink: &dyn ChangeSink) -> Result<(), EngineError> {
        self.through("engine.watch", self.inner.watch(sink)).await
    }
}
