//! Keeping a pod running, and pausing it.

use jiff::Timestamp;

use super::{Action, Input, Next, compose, data_problem, leftovers, problem};
use crate::engine::{ContainerState, ObservedContainer, Presence};
use crate::health::Verdict;
use crate::pod::{Pod, ReadyContainer};
use crate::record::Record;
use crate::spec::Resources;
use crate::volume::{Origin, SetState, VolumeSet};

pub(super) fn run(input: &Input<'_>) -> Next {
    let pod = input.pod;
    if pod.image.is_none() {
        return Next::Act(Action::PinImage);
    }
    let Some(set) = pod.current_set() else { return make_set(input) };
    if let Some(step) = check_data(input, set) {
        return step;
    }
    if let Some(step) = leftovers::remove(input, leftovers::Keep::Current) {
        return step;
    }
    match &input.observed.container {
        None => without_container(input, set),
        Some(container) => with_container(input, set, container),
    }
}

/// Makes the set the pod's data goes into: only from the source that is recorded, never from nothing (law 2).
fn make_set(input: &Input<'_>) -> Next {
    let pod = input.pod;
    // What a stop left behind goes first, so that the old container cannot be taken for the new one.
    if let Some(step) = leftovers::remove(input, leftovers::Keep::Current) {
        return step;
    }
    // A copy on the host gets its identity where it is made.
    if let Some(fork) = pod.fork
        && !matches!(pod.source, Some(Origin::Pod { .. }))
    {
        return compose::fork(input, fork);
    }
    let preparing = pod.sets.iter().find(|s| s.state == SetState::Preparing && Some(s.origin) == pod.source);
    match (preparing, pod.source) {
        (Some(set), _) => Next::Act(Action::FillSet { set: set.number }),
        (None, Some(origin)) => Next::Act(Action::AllocateSet { origin }),
        (None, None) => Next::Blocked(problem(
            "no-source",
            "nothing is recorded that this pod could start from".to_owned(),
            "restore one of its snapshots: perennial pod restore",
        )),
    }
}

/// Refuses to go on with data that is not whole, unless it never ran and can be made again.
fn check_data(input: &Input<'_>, set: &VolumeSet) -> Option<Next> {
    let found = data_problem(input, set)?;
    let whole = input.observed.set(set.number).is_none_or(|s| s.presence == Presence::Whole);
    if set.attached.is_none() && input.pod.source.is_some() && !whole {
        return Some(Next::Act(Action::Record(Record::SetAbandoned(set.number))));
    }
    Some(Next::Blocked(found))
}

fn without_container(input: &Input<'_>, set: &VolumeSet) -> Next {
    if let Some(ready) = &input.pod.container {
        return Next::Act(Action::Record(if was_lost(input, set, ready) {
            Record::ContainerLost
        } else {
            Record::ContainerGone
        }));
    }
    Next::Act(Action::MakeContainer { set: set.number })
}

/// Whether changes outside volumes may have gone with the missing container.
fn was_lost(input: &Input<'_>, set: &VolumeSet, ready: &ReadyContainer) -> bool {
    let captured = input
        .pod
        .layer
        .as_ref()
        .is_some_and(|l| l.after_stop && l.writer.as_ref().is_some_and(|w| w.container == ready.id));
    set.attached.is_some() && ready.set == set.number && !captured
}

fn with_container(input: &Input<'_>, set: &VolumeSet, container: &ObservedContainer) -> Next {
    let pod = input.pod;
    let ready = pod.container.as_ref().is_some_and(|r| r.id == container.id);
    if !ready {
        // Made by an attempt that did not get to record it: its system layer may be half put back. One that ran was
        // ready when it was started, so it is adopted.
        if container.started_at.is_none() {
            return leftovers::remove_container(input, container);
        }
        let adopted = ReadyContainer {
            id: container.id.clone(),
            set: container.set,
            spec_generation: container.spec_generation,
            limits: None,
            refused: None,
        };
        return Next::Act(Action::Record(Record::ContainerReady(adopted)));
    }
    match &container.state {
        ContainerState::Running => running(input, set, container),
        ContainerState::Frozen => Next::Act(Action::Unfreeze { container: container.id.clone() }),
        ContainerState::Exited { code, oom } if pod.crash.last.as_ref() != Some(&container.stamp()) => {
            // A run that nobody has accounted for: the one just launched whose answer was lost, or a crash.
            if set.marked != set.attached {
                return Next::Act(Action::Record(Record::Started { set: set.number }));
            }
            // Ended by us, and the server died before it could say so.
            if pod.health.as_ref().is_some_and(|health| health.condemned(&container.stamp())) {
                return Next::Act(Action::Record(Record::StoppedRun(container.stamp())));
            }
            Next::Act(Action::Record(Record::Crashed { stamp: container.stamp(), code: *code, oom: *oom }))
        }
        ContainerState::Created | ContainerState::Exited { .. } => ended(input, set, container),
    }
}

/// A container that does not run and whose last run, if any, is accounted for.
fn ended(input: &Input<'_>, set: &VolumeSet, container: &ObservedContainer) -> Next {
    if container.spec_generation != input.pod.spec_generation {
        return leftovers::remove_container(input, container);
    }
    if let Some((ready, limits)) = lacking(input) {
        // What was refused while it ran may be taken now.
        match ready.refusal(&limits).filter(|refused| !refused.live) {
            None => return Next::Act(Action::LimitContainer { container: container.id.clone(), limits }),
            Some(refused) if refused.anew => return leftovers::remove_container(input, container),
            // The engine makes no container like that: this one is better than none.
            Some(_) => {}
        }
    }
    // Somebody who waits for a start is not made to wait for a crash's delay.
    let waited_for = input.pod.goal.is_some() || !input.pod.tasks.is_empty();
    match input.pod.crash.not_before {
        Some(at) if at > input.now && !waited_for => Next::Settled { wake: Some(at) },
        _ => launch(set, container),
    }
}

/// The container that is recorded, and the limits that it has to get.
fn lacking<'a>(input: &Input<'a>) -> Option<(&'a ReadyContainer, Resources)> {
    let ready = input.pod.container.as_ref()?;
    Some((ready, ready.lacks_limits(&input.pod.spec)?))
}

fn launch(set: &VolumeSet, container: &ObservedContainer) -> Next {
    Next::Act(Action::Launch { container: container.id.clone(), set: set.number })
}

fn running(input: &Input<'_>, set: &VolumeSet, container: &ObservedContainer) -> Next {
    let pod = input.pod;
    // The attach is committed before every start of ours, so somebody else started this one.
    if set.attached.is_none() || pod.source.is_some() {
        return Next::Act(Action::Stop { container: container.id.clone() });
    }
    if set.marked != set.attached {
        return Next::Act(Action::Record(Record::Started { set: set.number }));
    }
    // Before anything that may fail again and again: what is ill is not kept from being helped.
    if pod.may_be_asked() && pod.health.as_ref().is_some_and(|health| health.ends(&container.stamp(), input.now)) {
        return Next::Act(Action::Stop { container: container.id.clone() });
    }
    if let Some(step) = leftovers::remove(input, leftovers::Keep::OnlyCurrent) {
        return step;
    }
    // Only now: a start needs room, and a pod that is full must start as well.
    if let Some(limit) = input.observed.set(set.number).and_then(|s| s.limit)
        && limit.bytes != pod.spec.resources.disk
    {
        return Next::Act(Action::LimitSet { set: set.number, bytes: pod.spec.resources.disk });
    }
    if pod.goal.is_some() {
        return Next::Settled { wake: None };
    }
    // Neither a start nor a snapshot waits for it. What is refused may be taken later, when the pod needs less.
    let mut retry = None;
    if let Some((ready, limits)) = lacking(input).filter(|_| pod.tasks.is_empty()) {
        let refused = ready.refusal(&limits).and_then(|r| r.at.checked_add(input.policy.limits_retry).ok());
        match refused {
            Some(at) if at > input.now => retry = Some(at),
            _ => return Next::Act(Action::LimitContainer { container: container.id.clone(), limits }),
        }
    }
    let stable = stable_since(pod, container).and_then(|t| t.checked_add(input.policy.stable_after).ok());
    let stable = stable.filter(|_| pod.crash.count > 0);
    if stable.is_some_and(|t| t <= input.now) {
        return Next::Act(Action::Record(Record::Stable));
    }
    if !pod.keeps_layer() {
        return Next::Settled { wake: stable.into_iter().chain(retry).min() };
    }
    let last = pod.layer.as_ref().map(|l| l.captured_at).max(input.layer_checked).or(container.started_at);
    let due = last.and_then(|t| t.checked_add(input.policy.layer_interval).ok());
    if due.is_some_and(|t| t <= input.now) && pod.tasks.is_empty() {
        return Next::Act(Action::CaptureLayer { container: container.id.clone() });
    }
    Next::Settled { wake: due.into_iter().chain(stable).chain(retry).min() }
}

/// Since when a run has gone on as it should: one that is ill, or has not answered yet, has proven nothing by going on.
fn stable_since(pod: &Pod, container: &ObservedContainer) -> Option<Timestamp> {
    let began = container.started_at?;
    if pod.spec.health.is_none() {
        return Some(began);
    }
    let health = pod.health.as_ref()?;
    match health.verdict {
        Verdict::Healthy => Some(began.max(health.since)),
        Verdict::Unasked => Some(began),
        Verdict::Unhealthy | Verdict::GivenUp => None,
    }
}

pub(super) fn pause(input: &Input<'_>) -> Next {
    if let Some(step) = stop_live(input) {
        return step;
    }
    // Paused on its way from stopped or new: the data belongs on the host all the same.
    if input.pod.image.is_none() {
        return Next::Act(Action::PinImage);
    }
    if input.pod.current.is_none() {
        return make_set(input);
    }
    // Half made by a start that was overtaken: nobody will start it.
    if let Some(container) = &input.observed.container
        && container.started_at.is_none()
        && input.pod.container.as_ref().is_none_or(|ready| ready.id != container.id)
    {
        return leftovers::remove_container(input, container);
    }
    // Captured while the container still exists, so that even `docker rm` of a paused pod loses nothing.
    if let (Some(container), Some(set)) = (&input.observed.container, input.pod.current_set())
        && container.set == set.number
        && container.started_at.is_some()
        && input.pod.keeps_layer()
        && !layer_is_captured(input, container)
    {
        return Next::Act(Action::CaptureLayer { container: container.id.clone() });
    }
    leftovers::remove(input, leftovers::Keep::OnlyCurrent).unwrap_or(Next::Settled { wake: None })
}

/// Whether the newest capture is of this very run, after it ended.
pub(super) fn layer_is_captured(input: &Input<'_>, container: &ObservedContainer) -> bool {
    input.pod.layer.as_ref().is_some_and(|l| l.after_stop && l.writer.as_ref() == Some(&container.stamp()))
}

/// Stops the container if it may be writing.
pub(super) fn stop_live(input: &Input<'_>) -> Option<Next> {
    let container = input.observed.container.as_ref().filter(|c| c.is_live())?;
    Some(Next::Act(Action::Stop { container: container.id.clone() }))
}
