//! What the database knows against what an engine has: differences, and things of ours that belong to no pod. Pure, and nothing is done
//! about any of it here (law 7).
//!
//! What is on the engine has to be listed before the pods are read: of what is made meanwhile the pod is known then. A pod that is being
//! worked on may differ for a moment.

use std::collections::BTreeMap;

use crate::engine::Owned;
use crate::id::PodId;
use crate::pod::{Desired, Pod};
use crate::spec::Backend;
use crate::volume::{SetNumber, SetState};

/// From this many unknown things on it is asked whether they are more than half of all.
const SUSPECT_FROM: usize = 3;

/// A pod in both worlds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compared {
    /// Which.
    pub pod: PodId,
    /// Its containers on the engine.
    pub containers: Vec<String>,
    /// Its sets, those of the database and those of the engine.
    pub sets: Vec<ComparedSet>,
    /// What does not fit, one sentence each.
    pub differences: Vec<String>,
}

/// A volume set in both worlds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ComparedSet {
    /// Which.
    pub number: SetNumber,
    /// Where.
    pub backend: Backend,
    /// What the database says of it; `None`: it knows none.
    pub recorded: Option<SetState>,
    /// Whether something of it is on the engine.
    pub is_there: bool,
}

/// Something of ours on the engine that belongs to no pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Orphan {
    /// What it is.
    pub what: Owned,
}

/// Everything that was compared.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Comparison {
    /// The pods, in the order they came in.
    pub pods: Vec<Compared>,
    /// What belongs to none of them.
    pub orphans: Vec<Orphan>,
    /// Why the database itself may be the wrong one; `None` when nothing says so.
    pub suspicion: Option<String>,
}

#[derive(Default)]
struct Found {
    containers: Vec<String>,
    sets: Vec<(SetNumber, Backend)>,
}

/// Compares.
#[must_use]
pub fn compare(pods: &[Pod], owned: &[Owned]) -> Comparison {
    let mut found: BTreeMap<PodId, Found> = BTreeMap::new();
    for one in owned {
        match one {
            Owned::Container { pod, id } => found.entry(*pod).or_default().containers.push(id.clone()),
            Owned::Set { pod, number, backend } => found.entry(*pod).or_default().sets.push((*number, *backend)),
        }
    }
    let compared = pods.iter().map(|pod| compare_one(pod, found.remove(&pod.id).unwrap_or_default())).collect();
    let orphans: Vec<Orphan> =
        owned.iter().filter(|one| found.contains_key(&pod_of(one))).map(|one| Orphan { what: one.clone() }).collect();
    let is_suspect = orphans.len() >= SUSPECT_FROM && orphans.len() * 2 > owned.len();
    let suspicion = is_suspect.then(|| {
        format!(
            "{} of {} things on the engine belong to no pod of the database: it may be another installation's, or an older copy",
            orphans.len(),
            owned.len()
        )
    });
    Comparison { pods: compared, orphans, suspicion }
}

/// Whose it says it is.
#[must_use]
pub const fn pod_of(owned: &Owned) -> PodId {
    match owned {
        Owned::Container { pod, .. } | Owned::Set { pod, .. } => *pod,
    }
}

fn compare_one(pod: &Pod, found: Found) -> Compared {
    let Found { containers, sets: on_engine } = found;
    let mut differences = Vec::new();
    match (&pod.container, containers.as_slice()) {
        (Some(recorded), there) if !there.contains(&recorded.id) => {
            differences.push(format!("container {} is recorded, and not on the engine", recorded.id));
        }
        (None, [first, ..]) => differences.push(format!("container {first} is on the engine, and not recorded")),
        _ => {}
    }
    if containers.len() > 1 {
        differences.push(format!("{} containers carry its label", containers.len()));
    }
    if pod.desired == Desired::Running && pod.goal.is_none() && pod.tasks.is_empty() && containers.is_empty() {
        differences.push("it is to run, and has no container".to_owned());
    }
    let mut sets: Vec<ComparedSet> = pod
        .sets
        .iter()
        .map(|set| ComparedSet {
            number: set.number,
            backend: set.backend,
            recorded: Some(set.state),
            is_there: on_engine.contains(&(set.number, set.backend)),
        })
        .collect();
    for (number, backend) in on_engine {
        if !sets.iter().any(|set| (set.number, set.backend) == (number, backend)) {
            differences.push(format!("set {number} is on the engine, and not recorded"));
            sets.push(ComparedSet { number, backend, recorded: None, is_there: true });
        }
    }
    let lost =
        |set: &&ComparedSet| !set.is_there && matches!(set.recorded, Some(SetState::Complete | SetState::Quarantined));
    for set in sets.iter().filter(lost) {
        differences.push(format!("set {} is recorded as data, and nothing of it is on the engine", set.number));
    }
    Compared { pod: pod.id, containers, sets, differences }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::id::OperationId;
    use crate::pod::ReadyContainer;
    use crate::spec::{PodName, PodSpec, Resources, TenantId};
    use crate::volume::{Origin, VolumeSet};

    fn pod(n: u8) -> Pod {
        let id = PodId::from_parts(1, [n; 10]);
        let name = PodName::parse("dev").unwrap();
        let operation = OperationId::from_parts(1, [n; 10]);
        let spec = PodSpec::new("debian:12");
        let mut pod = Pod::new(id, TenantId::default_tenant(), name, spec, operation, Timestamp::UNIX_EPOCH);
        pod.goal = None;
        let limits = Some(Resources::default());
        pod.container = Some(ReadyContainer { id: format!("c{n}"), set: 1, spec_generation: 1, limits, refused: None });
        pod.sets = vec![VolumeSet {
            number: 1,
            backend: Backend::Overlay,
            origin: Origin::Image,
            state: SetState::Complete,
            attached: Some(1),
            marked: Some(1),
            proof: None,
            volumes: Vec::new(),
        }];
        pod
    }

    fn container(n: u8, id: &str) -> Owned {
        Owned::Container { pod: PodId::from_parts(1, [n; 10]), id: id.to_owned() }
    }

    fn set(n: u8, number: SetNumber) -> Owned {
        Owned::Set { pod: PodId::from_parts(1, [n; 10]), number, backend: Backend::Overlay }
    }

    #[test]
    fn what_fits_has_no_differences() {
        let found = compare(&[pod(1), pod(2)], &[container(1, "c1"), set(1, 1), container(2, "c2"), set(2, 1)]);
        assert!(found.pods.iter().all(|pod| pod.differences.is_empty()), "{found:?}");
        assert_eq!((found.orphans, found.suspicion), (Vec::new(), None));
    }

    #[test]
    fn every_difference_is_told() {
        let told = |pod: Pod, owned: &[Owned]| compare(&[pod], owned).pods.remove(0).differences.join("; ");
        assert_eq!(
            told(pod(1), &[]),
            "container c1 is recorded, and not on the engine; it is to run, and has no container; set 1 is recorded as data, \
             and nothing of it is on the engine"
        );
        assert_eq!(
            told(pod(1), &[container(1, "c1"), container(1, "other"), set(1, 1), set(1, 2)]),
            "2 containers carry its label; set 2 is on the engine, and not recorded"
        );
        let unrecorded = Pod { container: None, ..pod(1) };
        assert_eq!(
            told(unrecorded, &[container(1, "c1"), set(1, 1)]),
            "container c1 is on the engine, and not recorded"
        );
    }

    #[test]
    fn what_belongs_to_no_pod_is_an_orphan_and_many_of_them_are_a_suspicion() {
        let orphans = [container(7, "x"), set(7, 1)];
        let found = compare(&[pod(1)], &[&[container(1, "c1"), set(1, 1)], orphans.as_slice()].concat());
        assert_eq!(
            found.orphans.iter().map(|orphan| &orphan.what).collect::<Vec<_>>(),
            orphans.iter().collect::<Vec<_>>()
        );
        assert_eq!(found.suspicion, None);
        // A database that was lost: everything that lives looks like nobody's.
        let all: Vec<Owned> = (1..5).flat_map(|n| [container(n, "c"), set(n, 1)]).collect();
        let found = compare(&[], &all);
        assert!(found.suspicion.is_some_and(|text| text.contains("8 of 8")));
    }
}
