//! What a container is limited to: CPU time, memory, processes.
//!
//! The engine changes all of it while a container runs, and takes only the limit of processes away: another number that is left out, or
//! zero, stays as it was. A kernel with the second version of control groups ends processes of who has more memory than a new limit leaves; the first
//! refuses such a limit. Neither is asked to: a pod that uses more goes on with what it has.

use bollard::errors::Error as Bollard;
use bollard::models::{ContainerMemoryStats, ContainerStateStatusEnum, ContainerUpdateBody, HostConfig};
use bollard::query_parameters::StatsOptionsBuilder;
use futures::TryStreamExt as _;
use perennial_core::engine::{Effect, EngineError};
use perennial_core::spec::Resources;

use super::DockerEngine;
use super::client::{conflict, fail, look, rejected, transient};

/// How the engine is told that there is no limit of processes.
const NO_PIDS_LIMIT: i64 = -1;

/// Limits in the engine's numbers; `None` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Numbers {
    pub(super) nano_cpus: Option<i64>,
    pub(super) memory: Option<i64>,
    /// Memory and swap together. Who says nothing of swap gets as much as memory, as by the engine itself.
    pub(super) memory_and_swap: Option<i64>,
    pub(super) memory_reservation: Option<i64>,
    pub(super) pids: Option<i64>,
}

impl Numbers {
    pub(super) fn of(limits: &Resources) -> Result<Self, EngineError> {
        let signed = |field: &str, value: Option<u64>| match value.map(i64::try_from) {
            None => Ok(None),
            Some(Ok(value)) => Ok(Some(value)),
            Some(Err(_)) => Err(rejected(format!("{field} is out of range"))),
        };
        let both = limits.memory.map(|memory| memory.saturating_add(limits.memory_swap.unwrap_or(memory)));
        Ok(Self {
            nano_cpus: signed("resources.cpus", limits.nano_cpus)?,
            memory: signed("resources.memory", limits.memory)?,
            memory_and_swap: signed("resources.memorySwap", both)?,
            memory_reservation: signed("resources.memoryReservation", limits.memory_reservation)?,
            pids: limits.pids.map(i64::from),
        })
    }

    /// Those of a container that exists; the engine shows zero, or less, where there is none.
    fn seen(host: &HostConfig) -> Self {
        let some = |value: Option<i64>| value.filter(|value| *value > 0);
        Self {
            nano_cpus: some(host.nano_cpus),
            memory: some(host.memory),
            memory_and_swap: some(host.memory_swap),
            memory_reservation: some(host.memory_reservation),
            pids: some(host.pids_limit),
        }
    }

    /// Whether these are the wanted ones. Where the kernel does not count swap, the engine says that there is no limit of it.
    fn is(&self, wanted: &Self) -> bool {
        Self { memory_and_swap: self.memory_and_swap.or(wanted.memory_and_swap), ..*self } == *wanted
    }

    /// A limit that is there and not wanted any more.
    fn taken_away(&self, wanted: &Self) -> Option<&'static str> {
        let pairs = [
            ("cpus", self.nano_cpus, wanted.nano_cpus),
            ("memory", self.memory, wanted.memory),
            ("memoryReservation", self.memory_reservation, wanted.memory_reservation),
        ];
        pairs.into_iter().find(|(_, has, wants)| has.is_some() && wants.is_none()).map(|(field, ..)| field)
    }
}

impl DockerEngine {
    pub(super) async fn limit(&self, id: &str, limits: &Resources) -> Result<Effect, EngineError> {
        let seen = self.ours(id).await?;
        let wanted = Numbers::of(limits)?;
        let host = seen.inspected.host_config.as_ref();
        let has = Numbers::seen(host.ok_or_else(|| transient("the engine's container has no configuration"))?);
        if let Some(field) = has.taken_away(&wanted) {
            return Err(conflict(format!("the engine takes no limit of {field} away from a container that exists")));
        }
        let live = matches!(seen.status, ContainerStateStatusEnum::RUNNING | ContainerStateStatusEnum::PAUSED);
        if let Some(memory) = wanted.memory.filter(|memory| live && has.memory.is_none_or(|has| *memory < has)) {
            let used = self.memory_used(&seen.id).await?;
            if used >= memory.unsigned_abs() {
                return Err(conflict(format!("it uses {used} bytes of memory, and the new limit is {memory}")));
            }
        }
        let is_same = has.is(&wanted);
        if is_same && !live {
            return Ok(Effect::Unchanged);
        }
        let body = ContainerUpdateBody {
            nano_cpus: wanted.nano_cpus,
            memory: wanted.memory,
            memory_swap: wanted.memory_and_swap,
            memory_reservation: wanted.memory_reservation,
            pids_limit: wanted.pids.or_else(|| has.pids.map(|_| NO_PIDS_LIMIT)),
            ..ContainerUpdateBody::default()
        };
        match self.docker.update_container(&seen.id, body).await {
            Ok(()) if is_same => Ok(Effect::Unchanged),
            Ok(()) => Ok(Effect::Updated),
            // What a runtime refuses is an accident in the engine's eyes; it has put the old limits back by then. That they are the same
            // already is the engine's word, which it writes down before the kernel has them: hence the question, where it is taken.
            Err(Bollard::DockerResponseServerError { status_code: 500.., .. }) if live && is_same => {
                Ok(Effect::Unchanged)
            }
            Err(Bollard::DockerResponseServerError { status_code: 500.., message }) if live => {
                Err(conflict(message.trim()))
            }
            Err(error) => Err(fail("change the container's limits", error)),
        }
    }

    /// What the container's processes hold of memory, in bytes.
    async fn memory_used(&self, id: &str) -> Result<u64, EngineError> {
        let options = StatsOptionsBuilder::default().stream(false).one_shot(true).build();
        let mut answers = std::pin::pin!(self.docker.stats(id, Some(options)));
        let first = answers.try_next().await.map_err(|e| look("ask what the container uses", e))?;
        let first = first.ok_or_else(|| transient("the engine does not say what the container uses"))?;
        Ok(first.memory_stats.as_ref().map_or(0, held))
    }
}

/// What cannot be given back at once: pages of files can, whether they were used lately or not.
fn held(memory: &ContainerMemoryStats) -> u64 {
    let of = |name: &str| memory.stats.as_ref().and_then(|stats| stats.get(name)).copied();
    // The first version of control groups counts what is below in numbers of its own.
    let files =
        ["inactive_file", "active_file"].map(|name| of(&format!("total_{name}")).or_else(|| of(name)).unwrap_or(0));
    files.into_iter().fold(memory.usage.unwrap_or(0), u64::saturating_sub)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn swap_that_nobody_names_is_as_much_as_memory() {
        let limits = Resources { memory: Some(100 << 20), ..Resources::default() };
        assert_eq!(Numbers::of(&limits).expect("numbers").memory_and_swap, Some(200 << 20));
        let none = Resources { memory_swap: Some(0), ..limits };
        assert_eq!(Numbers::of(&none).expect("numbers").memory_and_swap, Some(100 << 20));
        assert_eq!(Numbers::of(&Resources::default()).expect("numbers"), Numbers::default());
        let absurd = Resources { nano_cpus: Some(u64::MAX), ..Resources::default() };
        assert!(matches!(Numbers::of(&absurd), Err(EngineError::Rejected { .. })));
    }

    #[test]
    fn what_is_zero_or_less_is_no_limit() {
        let host = HostConfig { memory: Some(0), memory_swap: Some(-1), pids_limit: Some(7), ..HostConfig::default() };
        assert_eq!(Numbers::seen(&host), Numbers { pids: Some(7), ..Numbers::default() });
    }

    #[test]
    fn swap_that_nobody_counts_is_no_difference() {
        let wanted = Numbers { memory: Some(1), memory_and_swap: Some(2), ..Numbers::default() };
        assert!(wanted.is(&wanted));
        assert!(Numbers { memory_and_swap: None, ..wanted }.is(&wanted));
        assert!(!Numbers { memory_and_swap: Some(3), ..wanted }.is(&wanted));
        assert!(!Numbers { memory: None, ..wanted }.is(&wanted));
    }

    #[test]
    fn a_limit_that_goes_is_named() {
        let has = Numbers { pids: Some(7), memory: Some(1), ..Numbers::default() };
        assert_eq!(has.taken_away(&Numbers { pids: Some(7), ..Numbers::default() }), Some("memory"));
        assert_eq!(has.taken_away(&Numbers { memory: Some(2), ..Numbers::default() }), None, "that one can go");
        assert_eq!(has.taken_away(&Numbers { nano_cpus: Some(1), ..has }), None);
    }

    #[test]
    fn pages_of_files_are_not_held() {
        let stats =
            |pairs: &[(&str, u64)]| pairs.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect::<HashMap<_, _>>();
        let memory = |usage, pairs: &[(&str, u64)]| ContainerMemoryStats {
            usage: Some(usage),
            stats: Some(stats(pairs)),
            ..ContainerMemoryStats::default()
        };
        assert_eq!(held(&memory(100, &[("inactive_file", 30), ("active_file", 20)])), 50);
        // The first version tells both of the group alone and of all below it.
        assert_eq!(held(&memory(100, &[("inactive_file", 0), ("total_inactive_file", 30)])), 70);
        assert_eq!(held(&memory(10, &[("inactive_file", 30)])), 0);
        assert_eq!(held(&ContainerMemoryStats::default()), 0);
    }
}
