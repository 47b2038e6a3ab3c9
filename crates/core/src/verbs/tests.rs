//! The table of verbs, and what holds for every verb on every state.

use super::*;
use crate::hook::Hook;
use crate::id::PodId;
use crate::operation::Problem;
use crate::schedule::SnapshotRules;
use crate::snapshot::SnapshotState;
use crate::spec::{Backend, PodName, Resources, TenantId};
use crate::volume::{Volume, VolumeSet};

fn now() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().expect("a time")
}

fn op(n: u8) -> OperationId {
    OperationId::from_parts(u64::from(n), [n; 10])
}

fn snap(n: u8) -> SnapshotId {
    SnapshotId::from_parts(u64::from(n), [n; 10])
}

/// The id of the goal that is in work in a state.
const GOAL: u8 = 1;
/// The id of the task that is in work in a state.
const TASK: u8 = 2;
/// The id of the request under test.
const NEW: u8 = 9;

fn order() -> Order {
    Order { operation: op(NEW), actor: "ann".into(), now: now() }
}

fn base() -> Pod {
    let name = PodName::parse("dev").expect("a name");
    Pod::new(
        PodId::from_parts(0, [0; 10]),
        TenantId::default_tenant(),
        name,
        PodSpec::new("debian:12"),
        op(GOAL),
        now(),
    )
}

/// A pod whose data is on the host.
fn on_host(desired: Desired, phase: Phase) -> Pod {
    let set = VolumeSet {
        number: 1,
        backend: Backend::Overlay,
        origin: Origin::Image,
        state: SetState::Complete,
        attached: Some(1),
        marked: Some(1),
        proof: None,
        volumes: vec![Volume { name: "home".into(), mount_path: "/home".into() }],
    };
    Pod {
        desired,
        phase,
        goal: None,
        sets: vec![set],
        current: Some(1),
        last_set: 1,
        source: None,
        data_generation: 1,
        version: 7,
        ..base()
    }
}

/// A pod whose data is in the repository.
fn released(desired: Desired, phase: Phase) -> Pod {
    Pod { current: None, source: Some(Origin::Snapshot(snap(1))), sets: Vec::new(), ..on_host(desired, phase) }
}

fn towards(pod: Pod, kind: OperationKind, previous: Desired) -> Pod {
    Pod { goal: Some(Goal { operation: op(GOAL), kind, previous, accepted: None }), ..pod }
}

fn with_task(mut pod: Pod, work: Work) -> Pod {
    pod.tasks.push(Task { operation: op(TASK), work });
    pod
}

fn trashed(mut pod: Pod, purge: bool) -> Pod {
    let purge_at = purge.then(|| now() + SignedDuration::from_hours(1));
    pod.trash = Some(Trash { deleted_at: now(), purge_at, actor: "bob".into() });
    pod
}

fn replace_work(switched: bool) -> Work {
    Work::Replace {
        origin: Origin::Image,
        parts: None,
        composed: None,
        safety: None,
        old: None,
        new: None,
        layer: None,
        switched,
        accepted: None,
    }
}

/// Every state a verb can meet.
fn states() -> Vec<(&'static str, Pod)> {
    use Desired::{Archived, Deleted, Paused, Running, Stopped};
    use OperationKind as K;
    let purge = Work::Purge { actor: "bob".into(), at: now() };
    vec![
        ("creating", base()),
        ("running", on_host(Running, Phase::Running)),
        ("broken", on_host(Running, Phase::Error)),
        ("pausing", towards(on_host(Paused, Phase::Pausing), K::Pause, Running)),
        ("paused", on_host(Paused, Phase::Paused)),
        ("resuming", towards(on_host(Running, Phase::Starting), K::Start, Paused)),
        ("stopping", towards(on_host(Stopped, Phase::Stopping), K::Stop, Running)),
        ("released", towards(released(Stopped, Phase::Stopping), K::Stop, Running)),
        ("stopped", released(Stopped, Phase::Stopped)),
        ("starting", towards(released(Running, Phase::Starting), K::Start, Stopped)),
        ("archiving", trashed(towards(on_host(Archived, Phase::Stopping), K::Archive, Running), false)),
        ("archived", trashed(released(Archived, Phase::Archived), false)),
        ("deleting", trashed(towards(on_host(Deleted, Phase::Deleting), K::Delete, Running), true)),
        ("deleted", trashed(released(Deleted, Phase::Deleted), true)),
        ("resetting", with_task(on_host(Running, Phase::Resetting), replace_work(false))),
        ("purging", trashed(with_task(released(Deleted, Phase::Deleting), purge), true)),
    ]
}

fn verified() -> Snapshot {
    let mut row = Snapshot::pending(snap(3), base().id, TenantId::default_tenant(), SnapshotKind::Manual, now());
    row.state = SnapshotState::Verified;
    row.repository_id = Some("abc".into());
    row
}

/// A part that the snapshot has.
fn home() -> Parts {
    Parts::new(vec!["system".into()], Vec::new(), crate::parts::Extra::Remove).expect("valid").expect("some")
}

type Verb = fn(&Pod) -> Result<Decision, Error>;

const VERBS: [(&str, Verb); 11] = [
    ("start", |p| start(p, &order())),
    ("pause", |p| pause(p, &order())),
    ("stop", |p| stop(p, None, &order())),
    ("restart", |p| restart(p, &order())),
    ("reset", |p| reset(p, None, &order())),
    ("restore", |p| restore(p, (&verified(), None), None, &order())),
    ("archive", |p| archive(p, None, &order())),
    ("delete", |p| delete(p, SignedDuration::from_hours(168), None, &order())),
    ("undelete", |p| undelete(p, &order())),
    ("snapshot", |p| snapshot(p, snap(4), None, &order())),
    ("purge", |p| purge(p, &order())),
];

/// What a verb did, in one word.
fn outcome(result: &Result<Decision, Error>) -> String {
    match result {
        Err(Error::Conflict { code, .. }) => (*code).to_owned(),
        Err(other) => format!("{other:?}"),
        Ok(decision) => match &decision.answer {
            Answer::Join(_) => "join".to_owned(),
            Answer::New(operation) if operation.state == OperationState::Succeeded => "done".to_owned(),
            Answer::New(_) => match decision.superseded.as_slice() {
                [] => "new".to_owned(),
                [one] if one.state == OperationState::Succeeded => "after".to_owned(),
                _ => "instead".to_owned(),
            },
        },
    }
}

/// new: begins · done: nothing to do · join: already in work · instead: cancels what was in work · after: what was in
/// work has succeeded · else the code of the conflict.
const TABLE: &str = "
state      start     pause       stop     restart         reset  restore archive  delete  undelete        snapshot     purge
creating   join      instead     instead  new             new    new     instead  instead pod-not-deleted new          instead
running    done      new         new      new             new    new     new      new     pod-not-deleted new          new
broken     new       new         new      new             new    new     new      new     pod-not-deleted new          new
pausing    instead   join        instead  pod-not-running new    new     instead  instead pod-not-deleted new          instead
paused     new       done        new      pod-not-running new    new     new      new     pod-not-deleted new          new
resuming   join      instead     instead  new             new    new     instead  instead pod-not-deleted new          instead
stopping   instead   instead     join     pod-not-running new    new     instead  instead pod-not-deleted pod-released instead
released   after     pod-stopped join     pod-not-running new    new     after    after   pod-not-deleted pod-released instead
stopped    new       pod-stopped done     pod-not-running new    new     new      new     pod-not-deleted pod-released new
starting   join      instead     instead  new             new    new     instead  instead pod-not-deleted new          instead
archiving  pod-archived pod-archived pod-archived pod-archived pod-archived pod-archived join instead instead pod-archived instead
archived   pod-archived pod-archived pod-archived pod-archived pod-archived pod-archived done new     new     pod-archived new
deleting   pod-deleted pod-deleted pod-deleted pod-deleted pod-deleted pod-deleted pod-deleted join instead pod-deleted instead
deleted    pod-deleted pod-deleted pod-deleted pod-deleted pod-deleted pod-deleted pod-deleted done new     pod-deleted new
resetting  new       new         new      new             new    new     new      new     pod-not-deleted new          instead
purging    pod-being-purged pod-being-purged pod-being-purged pod-being-purged pod-being-purged pod-being-purged pod-being-purged pod-being-purged pod-being-purged pod-being-purged join
";

#[test]
fn the_table_is_total_and_as_written() {
    let mut lines = TABLE.trim().lines();
    let head: Vec<&str> = lines.next().unwrap_or_default().split_whitespace().skip(1).collect();
    assert_eq!(head, VERBS.map(|(name, _)| name));
    let rows: Vec<Vec<&str>> = lines.map(|l| l.split_whitespace().collect()).collect();
    let states = states();
    assert_eq!(rows.len(), states.len());
    for (row, (state, pod)) in rows.iter().zip(&states) {
        assert_eq!(row[0], *state);
        for ((verb, act), expected) in VERBS.iter().zip(&row[1..]) {
            assert_eq!(outcome(&act(pod)), **expected, "{verb} of a {state} pod");
        }
    }
}

/// A verb never touches data, and what it says it did is what the pod says.
#[test]
fn every_verb_keeps_its_promises_on_every_state() {
    for (state, pod) in states() {
        for (verb, act) in VERBS {
            let Ok(decision) = act(&pod) else { continue };
            let case = format!("{verb} of a {state} pod");
            let next = &decision.pod;
            assert_eq!((&next.sets, next.current, next.source), (&pod.sets, pod.current, pod.source), "{case}");
            assert_eq!(
                (next.data_generation, next.spec_generation),
                (pod.data_generation, pod.spec_generation),
                "{case}"
            );
            assert_eq!(
                (next.version, &next.container, &next.layer),
                (pod.version, &pod.container, &pod.layer),
                "{case}"
            );
            let waits = |id| {
                next.goal.as_ref().is_some_and(|g| g.operation == id) || next.tasks.iter().any(|t| t.operation == id)
            };
            match &decision.answer {
                Answer::New(operation) => {
                    assert_eq!(operation.id, op(NEW), "{case}");
                    assert_eq!(waits(op(NEW)), !operation.state.is_terminal(), "{case}");
                }
                Answer::Join(id) => assert!(waits(*id), "{case}"),
            }
            for ended in &decision.superseded {
                assert!(ended.state.is_terminal() && !waits(ended.operation), "{case}");
            }
            // Nobody who waited is forgotten.
            let before = pod.goal.iter().map(|g| g.operation).chain(pod.tasks.iter().map(|t| t.operation));
            for id in before {
                let ended = decision.superseded.iter().any(|s| s.operation == id);
                assert!(waits(id) != ended, "{case}: {id:?}");
            }
            let hidden = matches!(next.desired, Desired::Archived | Desired::Deleted);
            assert_eq!(next.trash.is_some(), hidden, "{case}");
            assert!(next.failed.is_none() && next.retry == Retry::default(), "{case}");
        }
    }
}

#[test]
fn a_start_before_the_commit_cancels_the_stop_and_goes_back_on_failure() {
    let stopping = towards(on_host(Desired::Stopped, Phase::Stopping), OperationKind::Stop, Desired::Running);
    let decision = start(&stopping, &order()).expect("start");
    assert_eq!(decision.superseded, [Superseded { operation: op(GOAL), state: OperationState::Cancelled }]);
    assert_eq!(decision.pod.goal.map(|g| g.previous), Some(Desired::Running));
}

#[test]
fn a_start_after_the_commit_lets_the_stop_succeed() {
    let done = towards(released(Desired::Stopped, Phase::Stopping), OperationKind::Stop, Desired::Running);
    let decision = start(&done, &order()).expect("start");
    assert_eq!(decision.superseded, [Superseded { operation: op(GOAL), state: OperationState::Succeeded }]);
    assert_eq!(decision.pod.goal.map(|g| g.previous), Some(Desired::Stopped));
    assert_eq!(decision.pod.source, Some(Origin::Snapshot(snap(1))));
}

#[test]
fn a_start_forgets_crashes() {
    let mut pod = on_host(Desired::Running, Phase::Starting);
    pod.crash.count = 5;
    pod.crash.not_before = Some(now());
    pod.failed = Some(Problem { code: "x".into(), message: "x".into(), hint: String::new() });
    let decision = start(&pod, &order()).expect("start");
    assert_eq!((decision.pod.crash.count, decision.pod.crash.not_before), (0, None));
    assert_eq!(outcome(&Ok(decision)), "new");
}

#[test]
fn stop_of_a_pod_that_stops_by_pausing_pauses() {
    let mut pod = on_host(Desired::Running, Phase::Running);
    pod.spec.on_stop = OnStop::Pause;
    let decision = stop(&pod, None, &order()).expect("stop");
    assert_eq!(decision.pod.desired, Desired::Paused);
    assert_eq!(decision.pod.goal.map(|g| g.kind), Some(OperationKind::Stop));
    // The data is in the repository already: there is nothing to pause.
    let mut pod = released(Desired::Stopped, Phase::Stopped);
    pod.spec.on_stop = OnStop::Pause;
    assert_eq!(outcome(&stop(&pod, None, &order())), "done");
}

#[test]
fn work_that_a_stop_makes_pointless_ends_with_it() {
    let pod =
        with_task(on_host(Desired::Running, Phase::Running), Work::Snapshot { snapshot: snap(5), accepted: None });
    let decision = stop(&pod, None, &order()).expect("stop");
    assert_eq!(decision.dropped, [snap(5)]);
    assert!(decision.pod.tasks.is_empty());
    let decision = pause(&pod, &order()).expect("pause");
    assert_eq!(decision.pod.tasks.len(), 1, "a paused pod can be captured");
    let pod = with_task(on_host(Desired::Running, Phase::Running), Work::Restart { before: None });
    assert!(pause(&pod, &order()).expect("pause").pod.tasks.is_empty());
}

#[test]
fn the_undelete_window_is_a_column_set_by_the_delete() {
    let window = SignedDuration::from_hours(168);
    let decision = delete(&on_host(Desired::Running, Phase::Running), window, None, &order()).expect("delete");
    assert_eq!(decision.pod.trash.and_then(|t| t.purge_at), Some(now() + window));
    let decision = archive(&on_host(Desired::Running, Phase::Running), None, &order()).expect("archive");
    assert_eq!(decision.pod.trash.map(|t| t.purge_at), Some(None));
    // Deleting again does not prolong it.
    let (_, deleted) = states().into_iter().find(|(name, _)| *name == "deleted").expect("in the list");
    let again = delete(&deleted, SignedDuration::from_hours(1000), None, &order()).expect("delete again");
    assert_eq!(again.pod.trash, deleted.trash);
}

#[test]
fn accepted_losses_reach_a_stop_that_is_in_work() {
    let stopping = towards(on_host(Desired::Stopped, Phase::Stopping), OperationKind::Stop, Desired::Running);
    let accepted = Acceptance { paths: vec!["/volumes/home/x".into()], actor: "ann".into() };
    let decision = stop(&stopping, Some(accepted.clone()), &order()).expect("stop");
    assert_eq!(decision.answer, Answer::Join(op(GOAL)));
    assert_eq!(decision.pod.goal.and_then(|g| g.accepted), Some(accepted));
}

#[test]
fn only_verified_snapshots_of_the_tenant_are_restored() {
    let pod = on_host(Desired::Running, Phase::Running);
    let pending = Snapshot { state: SnapshotState::Uploaded, ..verified() };
    assert_eq!(outcome(&restore(&pod, (&pending, None), None, &order())), "snapshot-not-restorable");
    let foreign = Snapshot { tenant: TenantId::parse("other").expect("a tenant"), ..verified() };
    assert!(matches!(restore(&pod, (&foreign, None), None, &order()), Err(Error::NotFound { .. })));
}

#[test]
fn the_queue_is_bounded() {
    let mut pod = on_host(Desired::Running, Phase::Running);
    for _ in 0..TASKS_MAX {
        pod.tasks.push(Task { operation: op(TASK), work: Work::Restart { before: None } });
    }
    assert_eq!(outcome(&restart(&pod, &order())), "too-much-queued");
}

fn running(id: OperationId, kind: OperationKind) -> Operation {
    Operation { state: OperationState::Running, ..operation(&base(), kind, &Order { operation: id, ..order() }) }
}

#[test]
fn cancel_goes_back_until_the_point_of_no_return() {
    let code = |result: Result<Cancelled, Error>| match result {
        Err(Error::Conflict { code, .. }) => code,
        other => panic!("{other:?}"),
    };
    let stopping = towards(on_host(Desired::Stopped, Phase::Stopping), OperationKind::Stop, Desired::Running);
    let stop = running(op(GOAL), OperationKind::Stop);
    assert_eq!(cancel(&stopping, &stop, now()).expect("cancel").pod.desired, Desired::Running);
    let done = towards(released(Desired::Stopped, Phase::Stopping), OperationKind::Stop, Desired::Running);
    assert_eq!(code(cancel(&done, &stop, now())), "operation-committed");
    let ended = Operation { state: OperationState::Succeeded, ..stop };
    assert_eq!(code(cancel(&stopping, &ended, now())), "operation-ended");

    let create = running(op(GOAL), OperationKind::Create);
    assert_eq!(cancel(&base(), &create, now()).expect("cancel").pod.desired, Desired::Stopped);

    let deleting =
        trashed(towards(on_host(Desired::Deleted, Phase::Deleting), OperationKind::Delete, Desired::Running), true);
    let cancelled = cancel(&deleting, &running(op(GOAL), OperationKind::Delete), now()).expect("cancel").pod;
    assert_eq!((cancelled.desired, cancelled.trash), (Desired::Running, None));

    let reset = running(op(TASK), OperationKind::Reset);
    let pod = with_task(on_host(Desired::Running, Phase::Resetting), replace_work(false));
    assert!(cancel(&pod, &reset, now()).expect("cancel").pod.tasks.is_empty());
    let pod = with_task(on_host(Desired::Running, Phase::Resetting), replace_work(true));
    assert_eq!(code(cancel(&pod, &reset, now())), "operation-committed");
    let pod = with_task(on_host(Desired::Running, Phase::Running), Work::Purge { actor: "a".into(), at: now() });
    assert_eq!(code(cancel(&pod, &running(op(TASK), OperationKind::Purge), now())), "operation-committed");
}

#[test]
fn a_patch_counts_and_keeps_what_the_data_depends_on() {
    let pod = on_host(Desired::Running, Phase::Running);
    assert_eq!(patch(&pod, pod.spec.clone(), now()), Ok(None));
    let spec = PodSpec { stop_timeout: 30, ..pod.spec.clone() };
    let next = patch(&pod, spec, now()).expect("patch").expect("a change");
    assert_eq!((next.spec_generation, next.version), (pod.spec_generation + 1, pod.version));
    let image = PodSpec { image: "debian:13".into(), ..pod.spec.clone() };
    assert!(matches!(patch(&pod, image, now()), Err(Error::Conflict { code: "spec-field-fixed", .. })));
    let wrong = PodSpec { stop_timeout: 999_999, ..pod.spec.clone() };
    assert!(matches!(patch(&pod, wrong, now()), Err(Error::InvalidInput { .. })));
}

#[test]
fn rules_of_snapshots_and_limits_need_no_restart() {
    let pod = on_host(Desired::Running, Phase::Running);
    let rules = SnapshotRules { schedule: Some("0 3 * * *".into()), ..SnapshotRules::default() };
    let spec = PodSpec { snapshots: rules, ..pod.spec.clone() };
    let later = now() + SignedDuration::from_hours(1);
    let next = patch(&pod, spec.clone(), later).expect("patch").expect("a change");
    assert_eq!((next.spec_generation, next.scheduled_until), (pod.spec_generation, Some(later)));
    let disk = PodSpec { resources: Resources { disk: Some(1 << 30), ..Resources::default() }, ..pod.spec.clone() };
    let next = patch(&pod, disk, later).expect("patch").expect("a change");
    assert_eq!((next.spec_generation, next.scheduled_until), (pod.spec_generation, pod.scheduled_until));
    let limits = Resources { memory: Some(64 << 20), pids: Some(9), nano_cpus: Some(1 << 30), ..Resources::default() };
    let next = patch(&pod, PodSpec { resources: limits, ..pod.spec.clone() }, later).expect("patch").expect("a change");
    assert_eq!((next.spec.resources, next.spec_generation), (limits, pod.spec_generation));
    let both = patch(&pod, PodSpec { stop_timeout: 30, ..spec }, later).expect("patch").expect("a change");
    assert_eq!(both.spec_generation, pod.spec_generation + 1);
}

#[test]
fn a_scheduled_snapshot_hides_no_failure_and_hurries_no_retry() {
    let mut pod = on_host(Desired::Running, Phase::Running);
    let problem = Problem { code: "c".into(), message: "m".into(), hint: String::new() };
    pod.failed = Some(problem);
    pod.retry = Retry { count: 3, not_before: Some(now()), problem: None };
    let asked = scheduled_snapshot(&pod, snap(9), now(), &order()).expect("taken");
    assert_eq!((&asked.pod.failed, &asked.pod.retry), (&pod.failed, &pod.retry));
    assert_eq!(asked.pod.scheduled_until, Some(now()));
    assert_eq!(asked.snapshot.map(|s| s.kind), Some(SnapshotKind::Scheduled));
    let gone = released(Desired::Stopped, Phase::Stopped);
    assert!(scheduled_snapshot(&gone, snap(9), now(), &order()).is_err());
    let started = start(&Pod { scheduled_until: None, ..gone }, &order()).expect("started");
    assert_eq!(started.pod.scheduled_until, Some(order().now), "what passed while it was stopped is not made up");
}

#[test]
fn the_copy_a_pod_lives_from_is_depended_on() {
    assert!(depends_on(&released(Desired::Stopped, Phase::Stopped), snap(1)));
    assert!(!depends_on(&released(Desired::Stopped, Phase::Stopped), snap(2)));
    let work = Work::Replace {
        origin: Origin::Snapshot(snap(3)),
        parts: None,
        composed: Some(Composed { snapshot: snap(7), base: snap(8) }),
        safety: Some(snap(4)),
        old: None,
        new: None,
        layer: None,
        switched: false,
        accepted: None,
    };
    let pod = with_task(on_host(Desired::Running, Phase::Running), work);
    for needed in [3, 4, 7, 8] {
        assert!(depends_on(&pod, snap(needed)), "{needed}");
    }
    let pod = Pod { capture: Some(snap(6)), ..on_host(Desired::Stopped, Phase::Stopping) };
    assert!(depends_on(&pod, snap(6)));
}

#[test]
fn parts_of_another_backend_or_that_are_not_there_are_refused() {
    let pod = on_host(Desired::Running, Phase::Running);
    let ours = pod.current_set().expect("a set").backend;
    let theirs = if ours == Backend::Overlay { Backend::Engine } else { Backend::Overlay };
    let row = Snapshot { backend: Some(theirs), ..verified() };
    let whole = restore(&pod, (&row, None), None, &order());
    assert!(whole.is_ok(), "everything moves between backends");
    assert_eq!(outcome(&restore(&pod, (&row, Some(home())), None, &order())), "snapshot-of-another-backend");
    let other = Parts { volumes: vec!["nothing".into()], ..home() };
    let refused = restore(&pod, (&verified(), Some(other)), None, &order());
    assert!(matches!(&refused, Err(Error::InvalidInput { field, .. }) if field == "volumes"), "{refused:?}");
}

#[test]
fn a_clone_is_made_from_what_a_pod_has_in_every_state() {
    let image = || crate::pod::PinnedImage {
        id: "sha256:1".into(),
        digest: None,
        layout: crate::volume::ImageLayout::default(),
    };
    for (state, pod) in states() {
        let pod = Pod { image: pod.image.clone().or_else(|| (state != "creating").then(image)), ..pod };
        let found = match fork_source(&pod, None, snap(4), &order()) {
            Ok(ForkSource::Stored(id)) => format!("stored {}", id == snap(1)),
            Ok(ForkSource::Taken(id, decision)) => {
                assert_eq!(decision.snapshot.as_ref().map(|row| row.id), Some(id), "{state}");
                "taken".to_owned()
            }
            Ok(ForkSource::Host(of, set)) => {
                assert_eq!((of, Some(set)), (pod.id, pod.current), "{state}");
                "host".to_owned()
            }
            Err(Error::Conflict { code, .. }) => code.to_owned(),
            Err(other) => panic!("{state}: {other:?}"),
        };
        let expected = match state {
            "creating" => "pod-never-ran",
            "running" | "broken" | "pausing" | "paused" | "resuming" => "host",
            // What replaces the data comes first.
            "resetting" => "taken",
            "stopping" => "pod-released",
            "released" | "stopped" => "stored true",
            // On its way: what it has on the host is being made.
            "starting" => "taken",
            "archiving" | "archived" => "pod-archived",
            "deleting" | "deleted" => "pod-deleted",
            "purging" => "pod-being-purged",
            other => panic!("{other}"),
        };
        assert_eq!(found, expected, "{state}");
        // A snapshot that is named will do in any state but one.
        let named = fork_source(&pod, Some(&verified()), snap(4), &order());
        assert_eq!(named.is_ok(), state != "purging", "{state}: {named:?}");
    }
    let mut hooked = on_host(Desired::Running, Phase::Running);
    hooked.image = Some(image());
    assert!(matches!(fork_source(&hooked, None, snap(4), &order()), Ok(ForkSource::Host(..))));
    let hook = Hook { command: vec!["/dump".into()], user: None, timeout: 30 };
    hooked.spec.hooks.before = Some(hook);
    let found = fork_source(&hooked, None, snap(4), &order());
    assert!(matches!(found, Ok(ForkSource::Taken(..))), "what its hook writes is part of it: {found:?}");
    let foreign = Snapshot { pod: PodId::from_parts(9, [9; 10]), ..verified() };
    let refused = fork_source(&on_host(Desired::Running, Phase::Running), Some(&foreign), snap(4), &order());
    assert!(matches!(&refused, Err(Error::InvalidInput { field, .. }) if field == "snapshotId"), "{refused:?}");
}

/// What its source's data became since is another's.
#[test]
fn a_clone_that_is_made_elsewhere_has_the_data_that_was_asked_for() {
    let pod = on_host(Desired::Running, Phase::Running);
    let set = pod.current.expect("a set");
    let row = |n, kind, of| Snapshot { id: snap(n), pod: pod.id, kind, set: Some(of), ..verified() };
    let captured = [
        row(20, SnapshotKind::Final, set + 1),
        Snapshot { state: SnapshotState::Failed, ..row(19, SnapshotKind::Safety, set) },
        // Of that set, but of before it was asked for.
        row(18, SnapshotKind::Manual, set),
        row(17, SnapshotKind::Safety, set),
        row(16, SnapshotKind::Final, set),
    ];
    let decided =
        |pod: &Pod, captured: &[Snapshot]| match fork_source_elsewhere((pod, set), captured, snap(4), &order()) {
            Ok(ForkSource::Stored(id)) => format!("stored {}", id == snap(17)),
            Ok(ForkSource::Taken(id, _)) => format!("taken {}", id == snap(4)),
            Err(Error::Conflict { code, .. }) => code.to_owned(),
            other => panic!("{other:?}"),
        };
    assert_eq!(decided(&pod, &captured), "taken true", "it is there still");
    let replace = Work::Replace {
        origin: Origin::Image,
        parts: None,
        composed: None,
        safety: None,
        old: None,
        new: None,
        layer: None,
        switched: false,
        accepted: None,
    };
    assert_eq!(
        decided(&with_task(pod.clone(), replace), &captured),
        "pod-busy",
        "a snapshot would be of what comes then"
    );
    // Released, and whatever its next start is from now; or replaced, whether it runs or not.
    for source in [Origin::Image, Origin::Snapshot(snap(9))] {
        let stopped = Pod { source: Some(source), id: pod.id, ..released(Desired::Stopped, Phase::Stopped) };
        assert_eq!(decided(&stopped, &captured), "stored true");
        assert_eq!(decided(&stopped, &captured[..3]), REPLACED);
    }
    let mut replaced = pod.clone();
    replaced.sets.iter_mut().for_each(|s| s.number += 1);
    replaced.current = Some(set + 1);
    assert_eq!(decided(&replaced, &captured), "stored true");
    assert_eq!(decided(&replaced, &[]), REPLACED);
}

#[test]
fn an_import_waits_for_nothing_and_changes_nothing_of_the_pod() {
    let layout = crate::volume::ImageLayout::default();
    let image = crate::pod::PinnedImage { id: "sha256:1".into(), digest: None, layout };
    let failed = Some(Problem { code: "c".into(), message: "m".into(), hint: String::new() });
    for (state, pod) in states() {
        let pod = Pod { image: Some(image.clone()), failed: failed.clone(), ..pod };
        let asked = import(&pod, snap(NEW), Import::default(), &order());
        let living = require_living(&pod).is_ok();
        let Ok(decision) = asked else {
            assert!(!living, "{state}: {asked:?}");
            continue;
        };
        assert!(living, "{state}");
        let row = decision.snapshot.expect("a row");
        assert_eq!((row.kind, row.state), (SnapshotKind::Imported, SnapshotState::Pending), "{state}");
        let mut same = decision.pod.clone();
        assert!(matches!(same.tasks.pop().map(|t| t.work), Some(Work::Import { .. })), "{state}");
        assert_eq!(Pod { updated_at: pod.updated_at, ..same }, pod, "{state}: nothing else changes");
        // A stop leaves it where it is: it needs nothing that a stop takes away.
        if let Ok(stopping) = stop(&decision.pod, None, &order()) {
            assert!(stopping.pod.tasks.iter().any(|t| matches!(t.work, Work::Import { .. })), "{state}");
        }
    }
    let never = import(&on_host(Desired::Running, Phase::Running), snap(NEW), Import::default(), &order());
    assert!(matches!(never, Err(Error::Conflict { code: "pod-without-image", .. })), "{never:?}");
}
