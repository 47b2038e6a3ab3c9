//! What is remembered of a pod's container: its limits, its runs, its ends, and whether it works.

use jiff::Timestamp;

use super::{Consequences, POD_STILL_UNHEALTHY, POD_UNHEALTHY, Record, crash_delay_seconds, event, stopped};
use crate::health::{Found, Health, RESTARTS_MAX, Verdict, told};
use crate::pod::{CrashLoop, Desired, LayerGap, Pod};
use crate::snapshot::WriterStamp;

pub(super) fn apply(pod: &mut Pod, record: &Record, now: Timestamp) -> Consequences {
    match record {
        Record::ContainerReady(container) => {
            pod.container = Some(container.clone());
            Consequences::default()
        }
        Record::Limiting => {
            if let Some(container) = &mut pod.container {
                container.limits = None;
            }
            Consequences::default()
        }
        Record::Limited { limits, changed } => {
            let Some(container) = &mut pod.container else { return Consequences::default() };
            (container.limits, container.refused) = (Some(*limits), None);
            if *changed {
                event("pod.limits-changed", "its container has other limits now, without a restart")
            } else {
                Consequences::default()
            }
        }
        Record::LimitsRefused(refused) => {
            let Some(container) = &mut pod.container else { return Consequences::default() };
            // Told once, however often it is tried; and not of one that is made anew in a moment.
            let is_told = container.refusal(&refused.wanted).is_none() && (refused.live || !refused.anew);
            container.refused = Some(refused.clone());
            if is_told {
                event("pod.limits-refused", format!("the pod goes on with the limits it had: {}", refused.problem))
            } else {
                Consequences::default()
            }
        }
        Record::ContainerGone => {
            pod.container = None;
            run_is_over(pod);
            event("pod.container-removed", "container removed")
        }
        Record::ContainerLost => {
            pod.container = None;
            run_is_over(pod);
            pod.crash.last = None;
            let captured_at = pod.layer.as_ref().map(|l| l.captured_at);
            pod.layer_gap = pod.keeps_layer().then_some(LayerGap { captured_at, lost_at: now });
            event("pod.container-lost", "the container was removed by somebody else; it is made again")
        }
        Record::StoppedRun(stamp) => {
            pod.crash.last = Some(stamp.clone());
            run_is_over(pod);
            let mut consequences = stopped(pod);
            consequences.event = Some(("pod.container-stopped", "container stopped".to_owned()));
            consequences
        }
        Record::Crashed { stamp, code, oom } => {
            run_is_over(pod);
            count_crash(&mut pod.crash, now);
            pod.crash = CrashLoop { last: Some(stamp.clone()), exit_code: *code, oom: *oom, ..pod.crash.clone() };
            let cause = if *oom { " for lack of memory" } else { "" };
            let code = code.map_or_else(|| "an unknown exit code".to_owned(), |c| format!("exit code {c}"));
            event("pod.crashed", format!("the pod's program ended by itself{cause} with {code}; it is started again"))
        }
        Record::Stable => {
            pod.crash.count = 0;
            pod.crash.not_before = None;
            Consequences::default()
        }
        Record::LayerCaptured(layer) => {
            pod.layer = Some(layer.clone());
            Consequences::default()
        }
        _ => Consequences::default(),
    }
}

/// One more in a row; the next start waits for longer.
fn count_crash(crash: &mut CrashLoop, now: Timestamp) {
    crash.count = crash.count.saturating_add(1);
    let delay = jiff::SignedDuration::from_secs(crash_delay_seconds(crash.count));
    crash.not_before = now.checked_add(delay).ok();
}

/// What was known of the health of a run ends with it; that the pod is ill stays until it answers, or is not to run any more.
fn run_is_over(pod: &mut Pod) {
    let runs_on = pod.desired == Desired::Running;
    pod.health = pod.health.take().filter(|health| health.verdict.is_ill() && runs_on);
}

pub(super) fn apply_health(pod: &mut Pod, run: &WriterStamp, found: &Found, now: Timestamp) -> Consequences {
    let ill_since = pod.health.as_ref().filter(|health| health.verdict.is_ill()).map(|health| health.since);
    // Found once more because nothing was done about it: that is no second time.
    let is_paid = pod.health.as_ref().is_some_and(|health| health.condemned(run));
    let last = pod.health.take().and_then(|health| health.problem);
    let health = |verdict, problem| Health { verdict, run: run.clone(), found_at: now, since: now, problem };
    match found {
        Found::Works => {
            pod.health = Some(health(Verdict::Healthy, last));
            ill_since.map_or_else(Consequences::default, |since| {
                event("pod.healthy", format!("the pod answers its health check again; it did not since {since}"))
            })
        }
        Found::Unknown(why) => {
            pod.health = Some(health(Verdict::Unasked, Some(told(why))));
            Consequences::default()
        }
        Found::Fails(why) => {
            let why = told(why);
            let given_up = pod.crash.count >= RESTARTS_MAX && !is_paid;
            let (verdict, follows) = if given_up {
                (Verdict::GivenUp, "restarts did not help, so it is left as it is")
            } else {
                if !is_paid {
                    count_crash(&mut pod.crash, now);
                }
                (Verdict::Unhealthy, "it is restarted")
            };
            pod.health = Some(Health { since: ill_since.unwrap_or(now), ..health(verdict, Some(why.clone())) });
            // Whoever is written to is told once, however often it is tried.
            let (kind, still) = if ill_since.is_some() { (POD_STILL_UNHEALTHY, "still ") } else { (POD_UNHEALTHY, "") };
            event(kind, format!("the pod {still}does not answer its health check ({why}); {follows}"))
        }
    }
}
