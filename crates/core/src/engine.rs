//! The driver seam: what runs containers, seen from the side that decides.
//!
//! Drivers decide nothing. Every call is safe to repeat, and a call that did not answer has an unknown outcome, never
//! a failed one (law 5).
//!
//! - `observed`: what an engine shows;
//! - `sets`: volume sets, and how their bytes are reached;
//! - `programs`: what is run beside a pod's own program; `logs`: what that one writes.

mod logs;
mod observed;
mod programs;
mod sets;

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;

use crate::health::{Answer, Probe};
use crate::id::PodId;
use crate::permit::DeletePermit;
use crate::pod::PinnedImage;
use crate::progress::Progress;
use crate::spec::{Backend, PodName, PodSpec, Resources, TenantId};

pub use logs::{LogEnd, LogRange, LogReader, LogStamps};
pub use observed::{ContainerState, ObservedContainer, ObservedPod, ObservedSet, Owned, Presence, SetLimit};
pub use programs::{OUTPUT_MAX, Program, ProgramEnd, Ran, Remains};
pub use sets::{Copying, Fill, LayerAccess, MoverChannel, SetAccess, SetSpec, Still, VolumePath, VolumeUsage};

/// What a call changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It was so already.
    Unchanged,
    /// It was made.
    Created,
    /// It was changed.
    Updated,
    /// It was removed.
    Removed,
}

/// Why an engine call did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// The engine answered that there is no such thing.
    #[error("{what} does not exist")]
    NotFound {
        /// What, such as `image debian:12`.
        what: String,
    },
    /// The engine's state contradicts the request: in use, mounted, another owner.
    #[error("{problem}")]
    Conflict {
        /// What contradicts it.
        problem: String,
    },
    /// The engine refused; repeating does not help.
    #[error("{problem}")]
    Rejected {
        /// The engine's reason.
        problem: String,
    },
    /// It did not happen, and may work later.
    #[error("{problem}")]
    Transient {
        /// What went wrong.
        problem: String,
    },
    /// Nobody knows whether it happened.
    #[error("outcome unknown: {problem}")]
    OutcomeUnknown {
        /// What went wrong.
        problem: String,
    },
}

/// What an engine offers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Capabilities {
    /// Name and version, for people.
    pub version: String,
    /// Runtimes that may be asked for, with what each was seen to do.
    pub runtimes: Vec<RuntimeInfo>,
    /// The runtime taken when a pod names none.
    pub default_runtime: String,
    /// Backends that work here, best first.
    pub backends: Vec<Backend>,
    /// Processors of its host: a pod is given no more; `None` when it does not say.
    pub cpus: Option<u32>,
    /// Why a backend is not offered, for `doctor`.
    pub notes: Vec<String>,
}

/// What a probe saw of one runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeInfo {
    /// Its name.
    pub name: String,
    /// Whether overlay volumes can be listed, written and read on it.
    pub overlay_volumes: bool,
    /// Whether changes outside volumes reach the container's layer on the host, where they can be captured.
    pub root_changes: bool,
    /// Whether it can freeze a running container.
    pub freeze: bool,
}

impl Capabilities {
    /// The runtime of this name, or the default one.
    #[must_use]
    pub fn runtime(&self, name: Option<&str>) -> Option<&RuntimeInfo> {
        let name = name.unwrap_or(&self.default_runtime);
        self.runtimes.iter().find(|r| r.name == name)
    }

    /// The backend for a pod: the one it asks for if it works with this runtime, else the best that does.
    #[must_use]
    pub fn backend(&self, asked: Option<Backend>, runtime: &RuntimeInfo) -> Option<Backend> {
        let works = |b: Backend| self.backends.contains(&b) && (b != Backend::Overlay || runtime.overlay_volumes);
        match asked {
            Some(backend) => works(backend).then_some(backend),
            None => self.backends.iter().copied().find(|b| works(*b)),
        }
    }
}

/// A container as the engine has to make it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerSpec {
    /// Whose.
    pub pod: PodId,
    /// The pod's tenant: decides the network.
    pub tenant: TenantId,
    /// The pod's name: the host name inside.
    pub name: PodName,
    /// The set to attach.
    pub set: SetSpec,
    /// The specification.
    pub spec: PodSpec,
    /// Its generation; a label.
    pub spec_generation: u64,
}

/// Told by an engine that something of a pod changed, within a second of it.
pub trait ChangeSink: Send + Sync {
    /// The container of this pod started, ended, or went.
    fn pod_changed(&self, pod: PodId);
}

/// Runs pods on one engine. Every call is safe to repeat; a timeout means "unknown", never "failed".
#[async_trait]
pub trait Engine: Send + Sync {
    /// Tells what the engine offers; probes once and remembers.
    async fn capabilities(&self) -> Result<Capabilities, EngineError>;

    /// Resolves a reference or id to an image the engine has; `None` is a proven absence.
    async fn image_resolve(&self, reference: &str) -> Result<Option<PinnedImage>, EngineError>;

    /// Asks whether pods can be made of an image: the engine has it, or its registry says so. Nothing is pulled.
    ///
    /// [`EngineError::NotFound`] when neither has it, [`EngineError::Rejected`] when the registry refuses it.
    async fn image_offered(&self, reference: &str) -> Result<(), EngineError>;

    /// Pulls an image from its registry.
    async fn image_pull(&self, reference: &str, progress: &Progress) -> Result<(), EngineError>;

    /// Writes the image to a file that [`Engine::image_import`] takes, durable when it returns.
    async fn image_export(&self, image: &str, into: &Path, progress: &Progress) -> Result<(), EngineError>;

    /// Loads an image from such a file.
    async fn image_import(&self, from: &Path, progress: &Progress) -> Result<(), EngineError>;

    /// Looks at a pod's container and at the given sets.
    async fn observe(&self, pod: PodId, sets: &[SetSpec]) -> Result<ObservedPod, EngineError>;

    /// Names the processes that have one of these sets mounted; empty when none has. The pod's container must not run.
    ///
    /// An engine that was killed can leave a process that no container shows any more. Looking for one costs more than
    /// [`Engine::observe`], so it is asked only when something is wanted of the sets.
    async fn lingering(&self, sets: &[SetSpec]) -> Result<Vec<String>, EngineError>;

    /// Makes the set's volumes anew: whatever an earlier try of the same set left is removed first.
    ///
    /// Only for a set that is being prepared and never ran; a set that carries the complete marker is refused.
    async fn set_prepare(&self, set: &SetSpec, fill: Fill) -> Result<Effect, EngineError>;

    /// Tells how a set can be copied beside itself; `None` where its bytes are not on this host.
    async fn set_copying(&self, set: &SetSpec) -> Result<Option<Copying>, EngineError>;

    /// Makes the prepared set `to` a copy of the set `from` at one instant, with the same volumes and of the same image.
    ///
    /// Only for [`Copying::Instant`]. Whoever writes into `from` has been stopped or frozen. `to` stays one that is being
    /// prepared; when the call fails, it has to be prepared again.
    async fn set_snapshot(&self, from: &SetSpec, to: &SetSpec) -> Result<Effect, EngineError>;

    /// Makes a still of a set: all of it, at one instant. Nothing is said of what it was made of by then when the call fails or
    /// is not answered; that goes with the next sweep.
    ///
    /// Only for [`Copying::Instant`]. Whoever writes into the set has been frozen. What the storage does not copy together with
    /// the set, such as a volume that lies elsewhere, makes it a [`EngineError::Conflict`].
    async fn set_still(&self, set: &SetSpec) -> Result<Still, EngineError>;

    /// Deletes the stills of this installation that nobody reads any more: those that are done with, and those that were left
    /// behind. One that cannot be deleted now is an error, and goes with a later sweep or with its set.
    async fn stills_sweep(&self) -> Result<Effect, EngineError>;

    /// Marks a prepared set complete, durably.
    async fn set_complete(&self, set: &SetSpec) -> Result<Effect, EngineError>;

    /// Tells how a set's bytes are reached. A volume that is missing is left out; a set of which nothing is there is
    /// [`EngineError::NotFound`].
    async fn set_access(&self, set: &SetSpec) -> Result<SetAccess, EngineError>;

    /// Tells what each volume of a set takes up, in the set's order. It looks at every file, so it is for people only.
    async fn set_usage(&self, set: &SetSpec) -> Result<Vec<VolumeUsage>, EngineError>;

    /// Limits what the volumes of a set may take together, or takes the limit away; a pod may be running on it.
    ///
    /// What cannot be enforced is kept as advice: [`ObservedSet::limit`] tells. A start takes the limit away, because a pod
    /// that is full must start as well, so it is set again afterwards.
    async fn set_limit(&self, set: &SetSpec, bytes: Option<u64>) -> Result<Effect, EngineError>;

    /// Deletes a set: its volumes, directories and marker. Refuses while any container refers to it.
    async fn set_delete(&self, set: &SetSpec, permit: &DeletePermit) -> Result<Effect, EngineError>;

    /// Makes the pod's container, not started; the network and volume definitions it needs are made too.
    ///
    /// Returns its id. A container of the pod that differs in set or specification is a `Conflict`.
    async fn container_ensure(&self, container: &ContainerSpec) -> Result<(String, Effect), EngineError>;

    /// Gives a container other limits, whether it runs or not; `disk` is not looked at.
    ///
    /// [`EngineError::Conflict`] for what the engine or the runtime cannot change in this container as it is, and for less memory
    /// than it uses: nobody in it is ended for that. [`EngineError::Rejected`] for what no container can have. After both it has the
    /// limits that it had.
    async fn container_limit(&self, id: &str, limits: &Resources) -> Result<Effect, EngineError>;

    /// Removes a container. Its system layer goes with it; its volumes do not.
    async fn container_remove(&self, id: &str, permit: &DeletePermit) -> Result<Effect, EngineError>;

    /// Starts a container after writing the data generation beside its data.
    ///
    /// Checks first that the mounted volumes are the ones meant and that nothing else uses them.
    async fn container_start(&self, id: &str, set: &SetSpec, generation: u64) -> Result<Effect, EngineError>;

    /// Asks the container to stop, then ends it after `grace_seconds`; returns once it has ended.
    async fn container_stop(&self, id: &str, grace_seconds: u32) -> Result<Effect, EngineError>;

    /// Freezes all processes of the container.
    async fn container_freeze(&self, id: &str) -> Result<Effect, EngineError>;

    /// Lets them go on.
    async fn container_unfreeze(&self, id: &str) -> Result<Effect, EngineError>;

    /// Runs a program in a running container and waits for its end. One whose time is over, or that is cancelled, is ended
    /// where the engine can do that. Not safe to repeat in itself: what it does twice is the program's business.
    ///
    /// A program that cannot be started (there is none of this name, or no such user) is [`EngineError::Rejected`]; a container
    /// that does not run, or is frozen, is a [`EngineError::Conflict`].
    async fn container_run(&self, id: &str, program: &Program, progress: &Progress) -> Result<Ran, EngineError>;

    /// Waits for a program that [`container_run`](Self::container_run) began and whose end nobody saw: at most as long as the
    /// program may take, from now, then it is ended as there. What it said before is not known any more. `None`: none of it
    /// goes on in the container, because it has ended or was never started.
    ///
    /// A container that does not run, or is frozen, is a [`EngineError::Conflict`].
    async fn container_rejoin(
        &self,
        id: &str,
        program: &Program,
        progress: &Progress,
    ) -> Result<Option<Ran>, EngineError>;

    /// Asks a running container whether its program works, within this time. Safe to repeat as far as a program that it runs is.
    ///
    /// Only the container's own address is connected to, and no redirect is followed. [`Answer::Unasked`] where it cannot be reached
    /// from here; a container that does not run, or is frozen, is a [`EngineError::Conflict`].
    async fn container_probe(&self, id: &str, probe: &Probe, within: Duration) -> Result<Answer, EngineError>;

    /// Reads what the container's program wrote, output and error output in one. It is kept with the container, whether it
    /// runs or not, as long as the engine keeps it; what programs beside it say is not among it.
    ///
    /// An engine that does not keep it is [`EngineError::Rejected`].
    async fn container_logs(&self, id: &str, range: LogRange) -> Result<Box<dyn LogReader>, EngineError>;

    /// Tells how the container's system layer is reached, for reading, and before its first start for writing.
    async fn layer_access(&self, id: &str) -> Result<LayerAccess, EngineError>;

    /// Runs a helper container with the set's volumes mounted, and talks to it. It ends when its input does; one that an
    /// earlier call left behind is ended first, as it is before anything else happens to the set.
    async fn mover_open(&self, set: &SetSpec) -> Result<MoverChannel, EngineError>;

    /// Lists everything that carries this installation's labels.
    async fn list_owned(&self) -> Result<Vec<Owned>, EngineError>;

    /// Reports changes to `sink` until the connection to the engine ends.
    async fn watch(&self, sink: &dyn ChangeSink) -> Result<(), EngineError>;
}
