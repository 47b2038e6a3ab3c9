//! What is done with containers: made, started, stopped, frozen, looked at, removed.

use std::fs;
use std::path::PathBuf;

use jiff::{SignedDuration, Timestamp};
use perennial_core::engine::{
    ContainerSpec, Effect, EngineError, LayerAccess, ObservedPod, ObservedSet, Presence, SetSpec,
};
use perennial_core::id::PodId;
use perennial_core::permit::{DeletePermit, Ground};
use perennial_core::spec::{Backend, Resources, is_at_or_below};
use perennial_core::volume::{NEVER_PERSISTED, SetNumber};
use sha2::{Digest, Sha256};

use super::calls::CPUS;
use super::container::{
    Behaviour, Container, ForeignKind, KILLED, Layer, Life, Limits, Mount, RECORD, SetKind, Starter, TERMINATED,
    behaviour, listens, says,
};
use super::faults::Fate;
use super::sets::{ENGINE_FILES, Marker, Progress};
use super::tree::remove_any;
use super::{Deleted, Deletion, Shared, State, broken, conflict, not_found, overwrite, rejected};

/// A container cannot have more processors than the host.
fn check_processors(limits: &Resources) -> Result<(), EngineError> {
    match limits.nano_cpus {
        Some(asked) if asked > u64::from(CPUS) * 1_000_000_000 => {
            Err(rejected(format!("there are only {CPUS} processors")))
        }
        _ => Ok(()),
    }
}

impl State {
    /// Whether the pod's processes run, and are not frozen.
    pub(super) fn is_written(&self, pod: PodId) -> bool {
        self.containers.values().any(|c| c.pod == pod && c.life == Life::Running)
    }

    /// Whether the pod's own container is attached to the set.
    pub(super) fn refers(&self, pod: PodId, set: SetNumber, backend: Backend) -> bool {
        let own = self.by_pod.get(&pod).and_then(|id| self.containers.get(id));
        own.is_some_and(|c| c.set == set && c.backend() == backend) || self.foreign_refers(pod, set)
    }

    pub(super) fn foreign_refers(&self, pod: PodId, set: SetNumber) -> bool {
        self.foreign.get(&pod).is_some_and(|list| list.iter().any(|f| f.set == set))
    }

    /// The processes that outlived a container of one of these sets.
    pub(super) fn lingering(&self, sets: &[SetSpec]) -> Result<Vec<String>, EngineError> {
        if let Some(live) = sets.iter().find(|s| self.runs_on(s)) {
            return Err(conflict(format!("the container of pod {} runs", live.pod)));
        }
        let mut found = Vec::new();
        for set in sets {
            let list = self.foreign.get(&set.pod).into_iter().flatten();
            let lingering = list.filter(|f| f.set == set.number && f.kind == ForeignKind::Process);
            found.extend(lingering.map(|f| f.id.clone()));
        }
        Ok(found)
    }

    fn runs_on(&self, set: &SetSpec) -> bool {
        let own = self.by_pod.get(&set.pod).and_then(|id| self.containers.get(id));
        own.is_some_and(|c| c.is_live() && c.set == set.number)
    }

    pub(super) fn container(&self, id: &str) -> Result<&Container, EngineError> {
        self.containers.get(id).ok_or_else(|| not_found(format!("container {id}")))
    }

    /// Changes a container, records it, and tells the watchers.
    pub(super) fn change(
        &mut self,
        shared: &Shared,
        id: &str,
        change: impl FnOnce(&mut Container),
    ) -> Result<(), EngineError> {
        let container = self.containers.get_mut(id).ok_or_else(|| not_found(format!("container {id}")))?;
        change(container);
        let pod = container.pod;
        shared.record(container)?;
        self.changed(pod);
        self.said.tell();
        Ok(())
    }

    /// Drops a container and its layer.
    pub(super) fn forget(&mut self, shared: &Shared, id: &str) -> Result<(), EngineError> {
        let Some(container) = self.containers.get(id) else { return Ok(()) };
        let pod = container.pod;
        remove_any(&shared.container_directory(id)).map_err(|e| broken("remove container", &e))?;
        self.containers.remove(id);
        self.by_pod.remove(&pod);
        self.said.forget(id);
        self.changed(pod);
        Ok(())
    }
}

impl Shared {
    pub(super) fn container_directory(&self, id: &str) -> PathBuf {
        self.root.join("containers").join(id)
    }

    /// Where the container's changes outside volumes are.
    pub(super) fn layer_directory(&self, id: &str) -> PathBuf {
        self.container_directory(id).join("layer")
    }

    fn record(&self, container: &Container) -> Result<(), EngineError> {
        let bytes = serde_json::to_vec(container).map_err(|e| rejected(format!("write container: {e}")))?;
        let path = self.container_directory(&container.id).join(RECORD);
        overwrite(&path, &bytes).map_err(|e| broken("write container", &e))
    }

    /// A time later than `last`: every run has its own, even while the clock stands still.
    pub(super) fn started_now(&self, last: Option<Timestamp>) -> Timestamp {
        let now = self.clock.now();
        let after = last.and_then(|l| l.checked_add(SignedDuration::from_nanos(1)).ok());
        after.map_or(now, |after| now.max(after))
    }

    pub(super) fn observe(&self, state: &State, pod: PodId, sets: &[SetSpec]) -> Result<ObservedPod, EngineError> {
        let container = state.by_pod.get(&pod).and_then(|id| state.containers.get(id)).map(Container::observed);
        let foreign = state.foreign.get(&pod).into_iter().flatten().filter(|f| f.kind == ForeignKind::Container);
        let foreign = foreign.map(|f| f.id.clone()).collect();
        let observed = |set| Ok(ObservedSet { limit: Self::limit(state, set), ..self.observe_set(set)? });
        let sets = sets.iter().map(observed).collect::<Result<_, EngineError>>()?;
        Ok(ObservedPod { container, foreign, sets })
    }

    pub(super) fn container_ensure(
        &self,
        state: &mut State,
        wanted: &ContainerSpec,
    ) -> Result<(String, Effect), EngineError> {
        let made_from = ContainerSpec { spec: wanted.spec.of_container(), ..wanted.clone() };
        let fingerprint = hex::encode(Sha256::digest(format!("{made_from:?}")));
        let pod = wanted.pod;
        if let Some(id) = state.by_pod.get(&pod).cloned() {
            if state.container(&id)?.fingerprint != fingerprint {
                return Err(state.violation(conflict(format!("pod {pod} has another container, {id}"))));
            }
            let repaired = state.lost_definitions.remove(&(pod, wanted.set.number));
            return Ok((id, if repaired { Effect::Updated } else { Effect::Unchanged }));
        }
        let runtime = wanted.spec.runtime.as_deref();
        let runtime = match runtime {
            Some(name) => self.options.runtimes.iter().find(|r| r.name == name),
            None => self.options.runtimes.first(),
        };
        let Some(runtime) = runtime else {
            let name = wanted.spec.runtime.as_deref().unwrap_or_default();
            return Err(rejected(format!("the runtime {name} is unknown")));
        };
        check_processors(&wanted.spec.resources)?;
        let Some(image) = state.images.get(&wanted.set.image) else {
            return Err(not_found(format!("image {}", wanted.set.image)));
        };
        let stray = image.pinned.layout.declared.iter().find(|path| {
            let held = |base: &str| is_at_or_below(path, base);
            !wanted.set.volumes.iter().any(|v| held(&v.mount_path))
                && !NEVER_PERSISTED.iter().any(|n| held(&format!("/{n}")))
        });
        if let Some(path) = stray {
            return Err(rejected(format!("the image declares a volume at {path} that nobody owns")));
        }
        let marker = Self::marker(&self.set_directory(pod, wanted.set.backend, wanted.set.number))?;
        if marker.is_some_and(|m| m.state == Progress::Preparing) {
            let problem = format!("set {} of pod {pod} is not complete", wanted.set.number);
            return Err(state.violation(conflict(problem)));
        }
        state.made += 1;
        // The time keeps ids apart that two processes with the same seed and root make.
        let name = format!("{}/{}/{}/{}", self.options.seed, state.made, pod, self.clock.now());
        let id = hex::encode(Sha256::digest(name));
        let container = Container {
            id: id.clone(),
            pod,
            set: wanted.set.number,
            kind: match wanted.set.backend {
                Backend::Overlay => SetKind::Overlay,
                Backend::Engine => SetKind::Engine,
            },
            image: wanted.set.image.clone(),
            spec_generation: wanted.spec_generation,
            fingerprint,
            mounts: wanted
                .set
                .volumes
                .iter()
                .map(|v| Mount { volume: v.name.clone(), path: v.mount_path.clone() })
                .collect(),
            behaviour: behaviour(wanted),
            says: says(wanted),
            listens: listens(wanted),
            limits: Limits::of(&wanted.spec.resources),
            holds: 0,
            layer: if runtime.root_changes { Layer::Visible } else { Layer::Hidden },
            life: Life::Created,
            started_at: None,
            starter: Starter::Caller,
        };
        fs::create_dir_all(self.layer_directory(&id)).map_err(|e| broken("make container", &e))?;
        self.record(&container)?;
        state.lost_definitions.remove(&(pod, wanted.set.number));
        state.by_pod.insert(pod, id.clone());
        state.containers.insert(id.clone(), container);
        state.changed(pod);
        Ok((id, Effect::Created))
    }

    /// As the Docker Engine does: nothing but the limit of processes is taken away, a runtime that hides what it does knows no such
    /// change, and there are no more processors than there are.
    pub(super) fn container_limit(
        &self,
        state: &mut State,
        id: &str,
        limits: &Resources,
    ) -> Result<Effect, EngineError> {
        let container = state.container(id)?;
        let (has, wanted) = (container.limits, Limits::of(limits));
        if has.takes_away(wanted) {
            return Err(conflict("the engine takes no limit away from a container that exists"));
        }
        check_processors(limits)?;
        if has == wanted {
            return Ok(Effect::Unchanged);
        }
        if container.is_live() {
            if container.layer == Layer::Hidden {
                return Err(conflict("the runtime changes no limits"));
            }
            let holds = container.holds;
            if wanted.memory.is_some_and(|memory| has.memory.is_none_or(|has| memory < has) && holds >= memory) {
                return Err(conflict(format!("it uses {holds} bytes of memory")));
            }
        }
        state.change(self, id, |container| container.limits = wanted)?;
        Ok(Effect::Updated)
    }

    pub(super) fn container_remove(
        &self,
        state: &mut State,
        id: &str,
        permit: &DeletePermit,
    ) -> Result<Effect, EngineError> {
        if !permit.covers_container(id) {
            return Err(state.violation(rejected(format!("the permit ({permit}) does not cover container {id}"))));
        }
        let Some(container) = state.containers.get(id) else { return Ok(Effect::Unchanged) };
        let (pod, ran, starter) = (container.pod, container.started_at.is_some(), container.starter);
        let purge = matches!(permit.ground(), Ground::ConfirmedPurge { .. });
        if ran && matches!(permit.ground(), Ground::NeverStarted | Ground::Scratch) {
            let refusal = conflict(format!("container {id} has run and is removed as \"{permit}\""));
            return Err(if starter == Starter::Outsider { refusal } else { state.violation(refusal) });
        }
        if container.is_live() && !purge {
            let refusal = conflict(format!("container {id} runs and has to be stopped first"));
            return Err(if starter == Starter::Outsider { refusal } else { state.violation(refusal) });
        }
        let directory = self.set_directory(pod, container.backend(), container.set);
        let generation = Self::marker(&directory)?.and_then(|m| m.generation).filter(|_| ran);
        state.forget(self, id)?;
        state.deletions.push(Deletion {
            at: self.clock.now(),
            pod,
            what: Deleted::Container(id.to_owned()),
            generation,
            permit: permit.clone(),
        });
        Ok(Effect::Removed)
    }

    pub(super) fn container_start(
        &self,
        state: &mut State,
        fate: Fate,
        id: &str,
        set: &SetSpec,
        generation: u64,
    ) -> Result<Effect, EngineError> {
        let container = state.container(id)?;
        if container.pod != set.pod || container.set != set.number || container.backend() != set.backend {
            let problem = format!("container {id} is attached to another set than {}", set.number);
            return Err(state.violation(conflict(problem)));
        }
        let directory = self.set_directory(set.pod, set.backend, set.number);
        let marker = Self::marker(&directory)?;
        let marked = marker.as_ref().and_then(|m| m.generation);
        if container.is_live() {
            return match container.life {
                Life::Running if marked == Some(generation) => Ok(Effect::Unchanged),
                _ => Err(conflict(format!("container {id} runs already, with another generation or frozen"))),
            };
        }
        if marked.is_some_and(|m| m > generation) {
            let problem = format!("generation {generation} is older than what set {} holds", set.number);
            return Err(state.violation(conflict(problem)));
        }
        self.startable(state, id, set)?;
        state.limits.remove(&(set.pod, set.number));
        Self::write_marker(&directory, &Marker { state: Progress::Complete, generation: Some(generation) })?;
        if fate.halfway {
            return Err(EngineError::OutcomeUnknown { problem: format!("the connection broke while starting {id}") });
        }
        self.begin(state, id, Starter::Caller)?;
        Ok(Effect::Updated)
    }

    /// Whether everything a start needs is there and nobody else uses it.
    fn startable(&self, state: &State, id: &str, set: &SetSpec) -> Result<(), EngineError> {
        let container = state.container(id)?;
        match self.observe_set(set)?.presence {
            Presence::Whole => {}
            Presence::Absent => return Err(rejected(format!("set {} is not there", set.number))),
            Presence::Partial { missing } => {
                return Err(rejected(format!("set {} lacks {}", set.number, missing.join(", "))));
            }
        }
        if !state.images.contains_key(&container.image) {
            return Err(not_found(format!("image {}", container.image)));
        }
        if state.lost_definitions.contains(&(container.pod, container.set)) {
            return Err(conflict(format!("a volume definition of set {} is missing", container.set)));
        }
        if state.foreign_refers(container.pod, container.set) {
            return Err(conflict(format!("another container uses set {}", container.set)));
        }
        Ok(())
    }

    /// Begins a run; one whose command ends at once has ended when this returns.
    pub(super) fn begin(&self, state: &mut State, id: &str, starter: Starter) -> Result<(), EngineError> {
        let at = self.started_now(state.container(id)?.started_at);
        let lines = state.container(id)?.says.clone();
        state.said.add(id, self.clock.now(), lines);
        state.change(self, id, |c| {
            c.started_at = Some(at);
            c.starter = starter;
            c.holds = 0;
            c.life = match c.behaviour {
                Behaviour::Ends(code) => Life::Exited { code, oom: false },
                Behaviour::Obedient | Behaviour::Stubborn => Life::Running,
            };
        })
    }

    pub(super) fn container_stop(&self, state: &mut State, id: &str) -> Result<Effect, EngineError> {
        let container = state.container(id)?;
        if !container.is_live() {
            return Ok(Effect::Unchanged);
        }
        state.change(self, id, |c| {
            let code = if c.behaviour == Behaviour::Stubborn { KILLED } else { TERMINATED };
            c.life = Life::Exited { code, oom: false };
        })?;
        Ok(Effect::Updated)
    }

    pub(super) fn container_freeze(&self, state: &mut State, id: &str) -> Result<Effect, EngineError> {
        match state.container(id)?.life {
            Life::Frozen => Ok(Effect::Unchanged),
            Life::Running => {
                state.change(self, id, |c| c.life = Life::Frozen)?;
                Ok(Effect::Updated)
            }
            Life::Created | Life::Exited { .. } => Err(conflict(format!("container {id} does not run"))),
        }
    }

    pub(super) fn container_unfreeze(&self, state: &mut State, id: &str) -> Result<Effect, EngineError> {
        match state.container(id)?.life {
            Life::Running => Ok(Effect::Unchanged),
            Life::Frozen => {
                state.change(self, id, |c| c.life = Life::Running)?;
                Ok(Effect::Updated)
            }
            Life::Created | Life::Exited { .. } => Err(conflict(format!("container {id} does not run"))),
        }
    }

    pub(super) fn layer_access(&self, state: &State, id: &str) -> Result<LayerAccess, EngineError> {
        let container = state.container(id)?;
        if container.layer == Layer::Hidden {
            let reason = "the runtime keeps changes outside volumes where the host cannot see them".to_owned();
            return Ok(LayerAccess::Unreachable { reason });
        }
        let engine = NEVER_PERSISTED.iter().map(|n| (*n).to_owned());
        let engine = engine.chain(ENGINE_FILES.iter().map(|f| format!("etc/{f}"))).chain([".dockerenv".to_owned()]);
        let mounts = container.mounts.iter().map(|m| m.path.trim_start_matches('/').to_owned());
        Ok(LayerAccess::Local { path: self.layer_directory(id), exclude: mounts.chain(engine).collect() })
    }
}
