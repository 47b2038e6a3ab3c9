//! What the living pods of a tenant may take together. Pure.
//!
//! A pod counts from the moment it is asked for until it is archived or deleted, whether it runs or not: what is stopped can be started
//! again without asking for room. What is counted are the limits that pods have, not what they use. A pod without a limit of some
//! kind may take everything, so where a tenant has a quota of that kind no such pod comes to it.

use crate::spec::Resources;

/// Bounds of a tenant; `None` is no bound of that kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Quota {
    /// Living pods.
    pub pods: Option<u32>,
    /// CPU time of all of them, in billionths of a CPU.
    pub nano_cpus: Option<u64>,
    /// Memory of all of them, in bytes.
    pub memory: Option<u64>,
    /// What the volumes of all of them may take, in bytes.
    pub disk: Option<u64>,
}

/// The limits of pods of one kind, added up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sum {
    /// Of those that have one.
    pub limited: u64,
    /// How many have none.
    pub unlimited: u32,
}

impl Sum {
    const fn add(&mut self, limit: Option<u64>) {
        match limit {
            Some(limit) => self.limited = self.limited.saturating_add(limit),
            None => self.unlimited = self.unlimited.saturating_add(1),
        }
    }
}

/// What living pods may take together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// How many there are.
    pub pods: u32,
    /// CPU time, in billionths of a CPU.
    pub nano_cpus: Sum,
    /// Memory, in bytes.
    pub memory: Sum,
    /// Volumes, in bytes.
    pub disk: Sum,
}

impl Usage {
    /// What these pods may take.
    pub fn of<'a>(pods: impl IntoIterator<Item = &'a Resources>) -> Self {
        let mut usage = Self::default();
        for limits in pods {
            usage.pods = usage.pods.saturating_add(1);
            usage.nano_cpus.add(limits.nano_cpus);
            usage.memory.add(limits.memory);
            usage.disk.add(limits.disk);
        }
        usage
    }
}

/// What a quota stands against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exceeded {
    /// One sentence: what is bounded, and what there is.
    pub problem: String,
    /// What can be done.
    pub hint: &'static str,
}

impl Quota {
    /// Says what of a change is beyond the quota; a change that takes no more of something than was taken before is not, however
    /// much that is.
    #[must_use]
    pub fn exceeded(&self, before: &Usage, after: &Usage) -> Option<Exceeded> {
        let pods = self.pods.filter(|most| after.pods > *most && after.pods > before.pods).map(|most| Exceeded {
            problem: format!("the tenant may have {most} pods, and has {}", before.pods),
            hint: "archive or delete one, or ask an administrator for more",
        });
        let kinds = [
            ("CPU time", self.nano_cpus, before.nano_cpus, after.nano_cpus, cpus as fn(u64) -> String, CPUS),
            ("memory", self.memory, before.memory, after.memory, bytes, MEMORY),
            ("disk", self.disk, before.disk, after.disk, bytes, DISK),
        ];
        pods.or_else(|| {
            kinds.into_iter().find_map(|(what, most, before, after, said, hint)| {
                let most = most?;
                if after.unlimited > before.unlimited {
                    let problem =
                        format!("the {what} of the tenant's pods is bounded, and this one has no limit of its own");
                    return Some(Exceeded { problem, hint });
                }
                let is_beyond = after.limited > most && after.limited > before.limited;
                is_beyond.then(|| Exceeded {
                    problem: format!(
                        "the tenant's pods may have {} of {what} together, have {}, and would have {}",
                        said(most),
                        said(before.limited),
                        said(after.limited)
                    ),
                    hint: "make it or another pod smaller, or ask an administrator for more",
                })
            })
        })
    }
}

const CPUS: &str = "set resources.cpus (--cpus)";
const MEMORY: &str = "set resources.memory (--memory)";
const DISK: &str = "set resources.disk (--disk)";

fn cpus(nano: u64) -> String {
    let (whole, rest) = (nano / 1_000_000_000, nano % 1_000_000_000);
    let text = format!("{whole}.{rest:09}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// In the largest unit that says it exactly.
fn bytes(bytes: u64) -> String {
    let units = [("Ti", 1_u64 << 40), ("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)];
    let fits = units.iter().find(|(_, unit)| bytes >= *unit && bytes.is_multiple_of(*unit));
    fits.map_or_else(|| bytes.to_string(), |(name, unit)| format!("{}{name}", bytes / unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn pod(gib: u64) -> Resources {
        Resources {
            nano_cpus: Some(gib * 500_000_000),
            memory: Some(gib * GIB),
            disk: Some(10 * gib * GIB),
            ..Resources::default()
        }
    }

    fn usage(pods: &[Resources]) -> Usage {
        Usage::of(pods)
    }

    #[test]
    fn each_kind_is_bounded_by_itself() {
        let (before, after) = (usage(&[pod(1)]), usage(&[pod(1), pod(2)]));
        let none = Quota::default();
        assert_eq!(none.exceeded(&before, &after), None);
        let just = Quota { pods: Some(2), nano_cpus: Some(1_500_000_000), memory: Some(3 * GIB), disk: Some(30 * GIB) };
        assert_eq!(just.exceeded(&before, &after), None, "as much as there may be");
        for (quota, problem) in [
            (Quota { pods: Some(1), ..just }, "the tenant may have 1 pods, and has 1"),
            (
                Quota { nano_cpus: Some(1_499_999_999), ..just },
                "the tenant's pods may have 1.499999999 of CPU time together, have 0.5, and would have 1.5",
            ),
            (
                Quota { memory: Some(2 * GIB), ..just },
                "the tenant's pods may have 2Gi of memory together, have 1Gi, and would have 3Gi",
            ),
            (
                Quota { disk: Some(30 * GIB - 1), ..just },
                "the tenant's pods may have 32212254719 of disk together, have 10Gi, and would have 30Gi",
            ),
        ] {
            assert_eq!(quota.exceeded(&before, &after).map(|e| e.problem).as_deref(), Some(problem));
        }
    }

    #[test]
    fn what_takes_no_more_than_before_is_allowed_however_much_it_is() {
        let tight = Quota { pods: Some(1), nano_cpus: Some(1), memory: Some(1), disk: Some(1) };
        let many = usage(&[pod(4), pod(4), Resources::default()]);
        assert_eq!(tight.exceeded(&many, &many), None);
        assert_eq!(tight.exceeded(&many, &usage(&[pod(4), pod(2), Resources::default()])), None, "it gets less");
        assert_eq!(tight.exceeded(&many, &usage(&[pod(4)])), None);
        assert!(tight.exceeded(&many, &usage(&[pod(4), pod(5), Resources::default()])).is_some());
    }

    #[test]
    fn where_something_is_bounded_no_pod_without_a_limit_comes_to_it() {
        let before = usage(&[pod(1)]);
        for (limits, hint) in [
            (Resources { nano_cpus: None, ..pod(1) }, CPUS),
            (Resources { memory: None, ..pod(1) }, MEMORY),
            (Resources { disk: None, ..pod(1) }, DISK),
        ] {
            let after = usage(&[pod(1), limits]);
            let all = Quota { pods: None, nano_cpus: Some(u64::MAX), memory: Some(u64::MAX), disk: Some(u64::MAX) };
            assert_eq!(all.exceeded(&before, &after).map(|e| e.hint), Some(hint));
            assert_eq!(Quota::default().exceeded(&before, &after), None);
            // Nor does one that is there lose its limit.
            assert!(all.exceeded(&before, &usage(&[limits])).is_some());
        }
    }

    #[test]
    fn sums_do_not_overflow() {
        let huge = Resources { memory: Some(u64::MAX), ..pod(1) };
        let quota = Quota { memory: Some(u64::MAX - 1), ..Quota::default() };
        assert!(quota.exceeded(&usage(&[huge]), &usage(&[huge, huge])).is_none(), "it is as much as before");
        assert!(quota.exceeded(&usage(&[pod(1)]), &usage(&[pod(1), huge])).is_some());
    }
}
