//! What is shown: the phase, and what is worth knowing.

use super::{Action, Finding, Input, Next};
use crate::health::{RESTARTS_MAX, Verdict};
use crate::operation::Problem;
use crate::pod::{ConditionKind, Desired, LayerGap, Phase, Pod, Retry, Work};
use crate::spec::Profile;
use crate::volume::{Origin, SetState};

/// Crashes in a row from which on a pod is said to loop.
const CRASH_LOOP_FROM: u32 = 3;

fn add(found: &mut Vec<Finding>, kind: ConditionKind, reason: &'static str, message: String) {
    found.push(Finding { kind, reason, message });
}

pub(super) fn findings(input: &Input<'_>) -> Vec<Finding> {
    let pod = input.pod;
    let mut found = Vec::new();
    if pod.crash.count >= CRASH_LOOP_FROM {
        let reason = if pod.crash.oom { "out-of-memory" } else { "exited" };
        let next = pod.crash.not_before.map_or_else(String::new, |t| format!("; next start at {t}"));
        let code = match pod.crash.exit_code {
            // No crash for whoever wrote the program: the word alone would be a riddle.
            Some(0) => "0: it finishes without an error, and a pod needs a command that goes on".to_owned(),
            Some(code) => code.to_string(),
            None => "unknown".to_owned(),
        };
        let ill = if is_ill(pod) { ", or was restarted because it did not answer," } else { "" };
        add(
            &mut found,
            ConditionKind::CrashLoop,
            reason,
            format!(
                "its program ended by itself{ill} {} times in a row, last with exit code {code}{next}",
                pod.crash.count
            ),
        );
    }
    found.extend(health(pod));
    if let Some(container) = &input.observed.container
        && container.is_live()
        && container.spec_generation != pod.spec_generation
    {
        add(
            &mut found,
            ConditionKind::RestartRequired,
            "spec-changed",
            "the specification changed; restart the pod to apply it".to_owned(),
        );
    }
    // One of a kind: what is made anew has its limits too.
    let of_limits = limits_refused(input).filter(|refused| found.iter().all(|known| known.kind != refused.kind));
    found.extend(of_limits);
    if let Some(gap) = &pod.layer_gap {
        add(&mut found, ConditionKind::SystemLayerStale, "container-lost", stale(pod, gap));
    }
    if input.layer_hidden && pod.spec.profile == Profile::Universal && pod.current.is_some() {
        add(
            &mut found,
            ConditionKind::SystemLayerNotCaptured,
            "runtime-hides-it",
            "this runtime keeps changes outside the volumes where they cannot be captured: they end with the container"
                .to_owned(),
        );
    }
    found.extend(advisory_limit(input));
    found.extend(retrying(&pod.retry));
    if let Some(problem) = &pod.failed {
        add(&mut found, ConditionKind::Failed, "operation-failed", problem.message.clone());
    }
    if let Some(problem) = &pod.snapshot_failed {
        add(&mut found, ConditionKind::SnapshotFailed, "last-snapshot-failed", problem.message.clone());
    }
    if let Some(problem) = pod.hook_failed.as_ref().filter(|_| pod.spec.hooks.after.is_some()) {
        add(&mut found, ConditionKind::HookFailed, "after-hook-failed", problem.message.clone());
    }
    if let Some(problem) =
        pod.current_set().filter(|s| s.attached.is_some()).and_then(|s| super::data_problem(input, s))
    {
        found.extend(of_block(&problem));
    }
    let kept: Vec<String> =
        pod.sets.iter().filter(|s| s.state == SetState::Quarantined).map(|s| s.number.to_string()).collect();
    if !kept.is_empty() {
        add(
            &mut found,
            ConditionKind::Quarantined,
            "no-proof",
            format!("kept because nothing proves a copy: set {}", kept.join(", ")),
        );
    }
    found
}

fn is_ill(pod: &Pod) -> bool {
    pod.health.as_ref().is_some_and(|health| health.verdict.is_ill())
}

/// What is wrong with a pod that is to run, as far as its health check tells.
fn health(pod: &Pod) -> Option<Finding> {
    let health = pod.health.as_ref().filter(|_| pod.desired == Desired::Running && pod.spec.health.is_some())?;
    let why = health.problem.as_deref().unwrap_or("no reason is known");
    let (kind, reason, message) = match health.verdict {
        Verdict::Healthy => return None,
        Verdict::Unhealthy => (
            ConditionKind::Unhealthy,
            "health-check-failed",
            format!("it does not answer its health check since {}: {why}; it is restarted", health.since),
        ),
        Verdict::GivenUp => (
            ConditionKind::Unhealthy,
            "health-check-failed",
            format!(
                "it does not answer its health check since {}: {why}; {RESTARTS_MAX} restarts did not help, so it is left as it is",
                health.since
            ),
        ),
        Verdict::Unasked => {
            (ConditionKind::HealthUnknown, "cannot-be-asked", format!("nobody knows whether it works: {why}"))
        }
    };
    Some(Finding { kind, reason, message })
}

/// That a running container goes on with other limits than its pod has.
fn limits_refused(input: &Input<'_>) -> Option<Finding> {
    let ready = input.pod.container.as_ref()?;
    let live = input.observed.container.as_ref().is_some_and(|c| c.is_live() && c.id == ready.id);
    let refused = ready.refusal(&ready.lacks_limits(&input.pod.spec).filter(|_| live)?)?;
    let (kind, help) = if refused.anew {
        (ConditionKind::RestartRequired, "restart it to apply the new ones")
    } else {
        (ConditionKind::LimitsRefused, "ask for others")
    };
    let message = format!("the pod runs with the limits it had: {}; {help}", refused.problem);
    Some(Finding { kind, reason: "limits-refused", message })
}

/// Told of a running pod only: what its file system can do is seen when it was asked to.
fn advisory_limit(input: &Input<'_>) -> Option<Finding> {
    let limit = input.pod.spec.resources.disk?;
    let live = input.observed.container.as_ref().is_some_and(crate::engine::ObservedContainer::is_live);
    let set = input.observed.set(input.pod.current.filter(|_| live)?)?;
    let (reason, why) = match set.limit {
        None => ("backend-has-none", "the engine's own volumes have no limit"),
        Some(set) if set.bytes == Some(limit) && !set.enforced => {
            ("file-system-has-none", "the storage root's file system does not limit a directory")
        }
        Some(_) => return None,
    };
    let message = format!("the disk limit of {limit} bytes is not enforced: {why}");
    Some(Finding { kind: ConditionKind::DiskLimitAdvisory, reason, message })
}

/// What is shown while a failed step is being tried again.
#[must_use]
pub fn retrying(retry: &Retry) -> Option<Finding> {
    let problem = retry.problem.as_ref()?;
    let message = format!("{} (tried {} times)", problem.message, retry.count);
    Some(Finding { kind: ConditionKind::Retrying, reason: "last-try-failed", message })
}

/// Both times, and whether there was anything to lose at the earlier one.
fn stale(pod: &Pod, gap: &LayerGap) -> String {
    let captured = gap.captured_at.map_or_else(|| "never".to_owned(), |t| t.to_string());
    let newest = pod.layer.as_ref().filter(|layer| gap.captured_at == Some(layer.captured_at));
    let was_empty = newest.is_some_and(|layer| layer.repository_id.is_none());
    let then = if was_empty { " (there was nothing then)" } else { "" };
    format!("the container was lost at {}; what no volume holds was last captured: {captured}{then}", gap.lost_at)
}

/// The condition a block is shown as.
pub(super) fn of_block(problem: &Problem) -> Option<Finding> {
    let (kind, reason) = match problem.code.as_str() {
        "volume-data-lost" => (ConditionKind::DataLost, "volumes-missing"),
        "no-source" => (ConditionKind::DataLost, "no-source"),
        "volume-data-partial" => (ConditionKind::DataPartial, "volumes-missing"),
        "data-older-than-recorded" => (ConditionKind::GenerationMismatch, "data-older"),
        "database-older-than-data" => (ConditionKind::GenerationMismatch, "database-older"),
        "foreign-writer" => (ConditionKind::ForeignWriter, "other-container"),
        _ => return None,
    };
    Some(Finding { kind, reason, message: problem.message.clone() })
}

pub(super) fn phase(input: &Input<'_>, next: &Next) -> Phase {
    let pod = input.pod;
    let data_missing =
        pod.current_set().filter(|s| s.attached.is_some()).is_some_and(|s| super::data_problem(input, s).is_some());
    if matches!(next, Next::Blocked(_)) || data_missing {
        return Phase::Error;
    }
    if let Some(Work::Replace { origin, .. }) = pod.tasks.first().map(|t| &t.work) {
        return if matches!(origin, Origin::Image) { Phase::Resetting } else { Phase::Restoring };
    }
    if matches!(pod.tasks.first().map(|t| &t.work), Some(Work::Purge { .. })) {
        return Phase::Deleting;
    }
    let settled = matches!(next, Next::Settled { .. } | Next::Act(Action::Record(crate::record::Record::GoalReached)));
    let provisioned = pod.source != Some(Origin::Image) || pod.sets.iter().any(|s| s.attached.is_some());
    if settled && pod.failed.is_some() && !provisioned && pod.desired.releases_host() {
        return Phase::Error;
    }
    let live = input.observed.container.as_ref().is_some_and(crate::engine::ObservedContainer::is_live);
    match pod.desired {
        Desired::Running if live => Phase::Running,
        Desired::Running if pod.goal.as_ref().is_some_and(|g| g.kind.makes_pod()) => Phase::Creating,
        Desired::Running => Phase::Starting,
        Desired::Paused => {
            if live {
                Phase::Pausing
            } else {
                Phase::Paused
            }
        }
        Desired::Stopped => {
            if settled {
                Phase::Stopped
            } else {
                Phase::Stopping
            }
        }
        Desired::Archived => {
            if settled {
                Phase::Archived
            } else {
                Phase::Stopping
            }
        }
        Desired::Deleted => {
            if settled {
                Phase::Deleted
            } else {
                Phase::Deleting
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::id::{OperationId, PodId};
    use crate::pod::LayerCapture;
    use crate::spec::{PodName, PodSpec, TenantId};

    #[test]
    fn a_lost_layer_is_told_with_both_times_even_when_it_was_empty() {
        let at = |second| Timestamp::from_second(second).expect("a time");
        let name = PodName::parse("dev").expect("a name");
        let (id, operation) = (PodId::from_parts(0, [0; 10]), OperationId::from_parts(0, [0; 10]));
        let mut pod = Pod::new(id, TenantId::default_tenant(), name, PodSpec::new("debian:12"), operation, at(0));
        let captured = |repository_id: Option<&str>| LayerCapture {
            repository_id: repository_id.map(str::to_owned),
            captured_at: at(60),
            writer: None,
            after_stop: false,
        };
        let gap = LayerGap { captured_at: Some(at(60)), lost_at: at(120) };
        let told = "the container was lost at 1970-01-01T00:02:00Z; what no volume holds was last captured: ";
        pod.layer = Some(captured(Some("abc")));
        assert_eq!(stale(&pod, &gap), format!("{told}1970-01-01T00:01:00Z"));
        pod.layer = Some(captured(None));
        assert_eq!(stale(&pod, &gap), format!("{told}1970-01-01T00:01:00Z (there was nothing then)"));
        assert_eq!(stale(&pod, &LayerGap { captured_at: None, lost_at: at(120) }), format!("{told}never"));
    }
}
