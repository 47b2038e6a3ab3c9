//! What the engine shows of a pod, and of everything that is ours.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use bollard::models::{ContainerStateStatusEnum, ContainerSummary};
use bollard::query_parameters::{
    EventsOptionsBuilder, ListContainersOptionsBuilder, ListVolumesOptionsBuilder, WaitContainerOptionsBuilder,
};
use futures::StreamExt;
use jiff::Timestamp;
use perennial_core::engine::{
    ContainerState, EngineError, ObservedContainer, ObservedPod, ObservedSet, Owned, SetSpec,
};
use perennial_core::id::{InstallationId, PodId};
use perennial_core::spec::Backend;

use super::client::{blocking, look, transient};
use super::container::{Seen, container_name};
use super::quota::Limits;
use super::storage::Storage;
use super::{DockerEngine, labels};

/// Exit code of a process that SIGKILL ended.
const KILLED: i64 = 137;
/// How long one look waits for a removal that is under way; most are over in a fraction of that.
const REMOVAL: Duration = Duration::from_secs(5);

/// The engine's answers about a pod: its volumes, what has the name of its container, all containers there are.
type Looked = (Vec<String>, Option<Seen>, Vec<ContainerSummary>);

impl DockerEngine {
    pub(super) async fn observe_pod(&self, pod: PodId, sets: &[SetSpec]) -> Result<ObservedPod, EngineError> {
        let mut names: HashSet<String> = sets.iter().flat_map(|s| self.names(s)).collect();
        // Sets that were not asked about count as well: whoever mounts one of the pod's volumes is seen.
        let mut looked = self.look_around(pod).await?;
        if let Some(own) = looked.1.as_ref().filter(|seen| seen.status == ContainerStateStatusEnum::REMOVING) {
            // What becomes of it is known in a moment, and whoever was woken by its end would find out much later.
            self.until_removed(&own.id).await;
            looked = self.look_around(pod).await?;
        }
        let (volumes, own, containers) = looked;
        names.extend(volumes);
        let mut observed = ObservedPod::default();
        if let Some(seen) = own {
            let mut container = container(&seen)?;
            self.look_for_oom(&seen, &mut container).await?;
            observed.container = Some(container);
        }
        let own = observed.container.as_ref().map(|c| c.id.as_str());
        for container in containers {
            let Some(id) = container.id.clone() else { continue };
            // Helpers are ours; what touches a set ends those that were left behind.
            let helper = self.scratch_of(&container).is_some();
            let own = Some(id.as_str()) == own || is_own(&container, pod, self.config.installation);
            if !own && !helper && self.refers(&container, pod, &names) {
                observed.foreign.push(id);
            }
        }
        for set in sets {
            observed.sets.push(self.observe_set(set).await?);
        }
        Ok(observed)
    }

    async fn look_around(&self, pod: PodId) -> Result<Looked, EngineError> {
        let name = container_name(pod);
        let (volumes, own, containers) =
            futures::try_join!(self.pod_volumes(pod), self.look_at(&name), self.all_containers())?;
        let own = own.filter(|seen| labels::pod_of(&seen.labels, self.config.installation) == Some(pod));
        Ok((volumes, own, containers))
    }

    /// Waits for the end of a removal, for a bounded time. Whatever the engine answers, the next look tells what is so.
    async fn until_removed(&self, id: &str) {
        let options = WaitContainerOptionsBuilder::default().condition("removed").build();
        let mut ends = Box::pin(self.docker.wait_container(id, Some(options)));
        if tokio::time::timeout(REMOVAL, ends.next()).await.is_err() {
            tracing::debug!(container = id, "its removal takes long");
        }
    }

    /// Corrects the engine's word on a memory kill: when the notice comes in after the end of the process, the engine
    /// only makes an event of it.
    async fn look_for_oom(&self, seen: &Seen, container: &mut ObservedContainer) -> Result<(), EngineError> {
        let limited = seen.inspected.host_config.as_ref().is_some_and(|h| h.memory.unwrap_or(0) > 0);
        let killed = ContainerState::Exited { code: Some(KILLED), oom: false };
        let Some(since) = container.started_at.filter(|_| limited && container.state == killed) else { return Ok(()) };
        let filters = HashMap::from([("container", vec![seen.id.as_str()]), ("event", vec!["oom"])]);
        let (since, until) = (since.as_second().to_string(), Timestamp::now().as_second().to_string());
        let options = EventsOptionsBuilder::default().since(&since).until(&until).filters(&filters).build();
        let events: Vec<_> = self.docker.events(Some(options)).collect().await;
        for event in events {
            event.map_err(|e| look("look for memory kills", e))?;
            container.state = ContainerState::Exited { code: Some(KILLED), oom: true };
        }
        Ok(())
    }

    async fn observe_set(&self, set: &SetSpec) -> Result<ObservedSet, EngineError> {
        let (presence, generation, limit) = match set.backend {
            Backend::Overlay => {
                let look = |limits: &Limits, storage: &Storage, set: &SetSpec| {
                    let (presence, generation) = storage.presence(set)?;
                    Ok((presence, generation, Some(limits.of(storage, set))))
                };
                self.with_limits(set, look).await?
            }
            Backend::Engine => (self.volumes_presence(set).await?, None, None),
        };
        Ok(ObservedSet { number: set.number, presence, generation, limit })
    }

    /// Names of all volumes that carry this pod's labels, of any set.
    async fn pod_volumes(&self, pod: PodId) -> Result<Vec<String>, EngineError> {
        let (ours, pod) = (self.config.installation.to_string(), pod.to_string());
        let filters = labels::filter(&[(labels::INSTALLATION, &ours), (labels::POD, &pod)]);
        let options = ListVolumesOptionsBuilder::default().filters(&filters).build();
        let listed = self.docker.list_volumes(Some(options)).await.map_err(|e| look("list the volumes", e))?;
        Ok(listed.volumes.unwrap_or_default().into_iter().map(|v| v.name).collect())
    }

    pub(super) async fn owned(&self) -> Result<Vec<Owned>, EngineError> {
        let installation = self.config.installation;
        let ours = installation.to_string();
        let filters = labels::filter(&[(labels::INSTALLATION, &ours)]);
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        let containers = self.docker.list_containers(Some(options)).await.map_err(|e| look("list containers", e))?;
        let mut owned = Vec::new();
        for container in containers {
            let labels = container.labels.unwrap_or_default();
            if let (Some(pod), Some(id)) = (labels::pod_of(&labels, installation), container.id) {
                owned.push(Owned::Container { pod, id });
            }
        }
        let options = ListVolumesOptionsBuilder::default().filters(&filters).build();
        let listed = self.docker.list_volumes(Some(options)).await.map_err(|e| look("list the volumes", e))?;
        let storage = self.storage.clone();
        let sets = blocking(move || storage.list_sets()).await?;
        let mut overlay: BTreeSet<_> = sets.into_iter().collect();
        let mut engine = BTreeSet::new();
        for volume in listed.volumes.unwrap_or_default() {
            let pod = labels::pod_of(&volume.labels, installation);
            let Some(found) = pod.zip(labels::set_of(&volume.labels)) else { continue };
            // A definition whose data is gone is still something of ours.
            let is_overlay = volume.options.get("type").is_some_and(|t| t == "overlay");
            if is_overlay {
                overlay.insert(found)
            } else {
                engine.insert(found)
            };
        }
        let of = |backend| move |(pod, number)| Owned::Set { pod, number, backend };
        owned.extend(overlay.into_iter().map(of(Backend::Overlay)));
        owned.extend(engine.into_iter().map(of(Backend::Engine)));
        Ok(owned)
    }
}

/// Whether a container of the list is the pod's own. It may be gone by the time it is looked at.
fn is_own(container: &ContainerSummary, pod: PodId, installation: InstallationId) -> bool {
    let name = container_name(pod);
    // The engine writes a slash before names.
    let is_named = container.names.iter().flatten().any(|n| n.strip_prefix('/') == Some(&name));
    is_named && container.labels.as_ref().is_some_and(|l| labels::pod_of(l, installation) == Some(pod))
}

/// The core's view of a pod's container.
fn container(seen: &Seen) -> Result<ObservedContainer, EngineError> {
    let state = seen.inspected.state.as_ref();
    let started = state.and_then(|s| s.started_at.as_deref()).unwrap_or_default();
    // The engine writes the year 1 for "never".
    let started_at = match started {
        "" => None,
        text if text.starts_with("0001-") => None,
        text => Some(text.parse::<Timestamp>().map_err(|e| transient(format!("the engine's time {text}: {e}")))?),
    };
    let exited = || ContainerState::Exited {
        code: state.and_then(|s| s.exit_code),
        oom: state.and_then(|s| s.oom_killed).unwrap_or(false),
    };
    let state = match seen.status {
        ContainerStateStatusEnum::RUNNING
        | ContainerStateStatusEnum::RESTARTING
        | ContainerStateStatusEnum::STOPPING => ContainerState::Running,
        ContainerStateStatusEnum::PAUSED => ContainerState::Frozen,
        ContainerStateStatusEnum::CREATED | ContainerStateStatusEnum::EMPTY if started_at.is_none() => {
            ContainerState::Created
        }
        // `docker rm -f` kills first. Taken for the end of a program, that would be a crash, and a moment later the container
        // is gone: what becomes of it is not known before.
        ContainerStateStatusEnum::REMOVING => {
            return Err(transient(format!("container {} is being removed", seen.id)));
        }
        _ => exited(),
    };
    let label = |name: &str| {
        let text = seen.labels.get(name).map(String::as_str).unwrap_or_default();
        text.parse::<u64>().map_err(|_| transient(format!("container {} has no usable label {name}", seen.id)))
    };
    let set = u32::try_from(label(labels::SET)?).map_err(|_| transient("a set number beyond 32 bits"))?;
    Ok(ObservedContainer { id: seen.id.clone(), state, started_at, set, spec_generation: label(labels::GENERATION)? })
}

#[cfg(test)]
mod tests {
    use bollard::models::{ContainerInspectResponse, ContainerState as EngineState};
    use perennial_core::spec::TenantId;

    use super::*;

    fn seen(status: ContainerStateStatusEnum) -> Seen {
        let labels = [(labels::SET, "1"), (labels::GENERATION, "1")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        let state = EngineState {
            started_at: Some("2026-01-10T12:00:00Z".to_owned()),
            exit_code: Some(KILLED),
            ..EngineState::default()
        };
        let inspected = ContainerInspectResponse { state: Some(state), ..ContainerInspectResponse::default() };
        Seen { id: "c".to_owned(), labels: labels.into(), status, inspected }
    }

    #[test]
    fn only_the_container_with_the_name_and_the_labels_is_the_pods_own() {
        let (ours, theirs) = (InstallationId::from_parts(1, [1; 10]), InstallationId::from_parts(1, [2; 10]));
        let (pod, other) = (PodId::from_parts(1, [1; 10]), PodId::from_parts(1, [2; 10]));
        let listed = |name: &str, installation: InstallationId, pod: PodId| ContainerSummary {
            names: Some(vec![format!("/{name}")]),
            labels: Some(labels::of_set(installation, &TenantId::default_tenant(), pod, 1)),
            ..ContainerSummary::default()
        };
        let name = container_name(pod);
        assert!(is_own(&listed(&name, ours, pod), pod, ours));
        // Renamed, and so beyond our control; somebody else's; another pod's.
        for foreign in [listed("renamed", ours, pod), listed(&name, theirs, pod), listed(&name, ours, other)] {
            assert!(!is_own(&foreign, pod, ours), "{foreign:?}");
        }
        assert!(!is_own(&ContainerSummary::default(), pod, ours));
    }

    #[test]
    fn a_container_that_is_being_removed_did_not_crash() {
        let exited = container(&seen(ContainerStateStatusEnum::EXITED)).map(|c| c.state);
        assert_eq!(exited, Ok(ContainerState::Exited { code: Some(KILLED), oom: false }));
        let removing = container(&seen(ContainerStateStatusEnum::REMOVING));
        assert!(matches!(removing, Err(EngineError::Transient { .. })), "{removing:?}");
    }
}
