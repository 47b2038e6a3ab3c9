//! The laws, tried on the plan and the permits one by one.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod hooks;

use super::*;
use crate::engine::{ObservedContainer, ObservedSet, SetLimit};
use crate::health::{Found, HealthCheck, Probe};
use crate::id::{OperationId, PodId};
use crate::operation::OperationKind;
use crate::permit::Denied;
use crate::pod::{Acceptance, Goal, LayerCapture, PinnedImage, ReadyContainer, RefusedLimits, Task};
use crate::snapshot::{Loss, SnapshotState, WriterStamp};
use crate::spec::{Backend, DeclaredVolume, PodName, PodSpec, Profile, Resources, TenantId};
use crate::volume::{ImageLayout, SetState, Volume};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).unwrap()
}

fn stamp() -> WriterStamp {
    WriterStamp { container: "c1".into(), started_at: Some(at(0)) }
}

fn set(number: SetNumber, attached: Option<u64>) -> VolumeSet {
    VolumeSet {
        number,
        backend: Backend::Overlay,
        origin: Origin::Image,
        state: SetState::Complete,
        attached,
        marked: attached,
        proof: None,
        volumes: vec![Volume { name: "data".into(), mount_path: "/data".into() }],
    }
}

/// A pod that runs on set 1 with data generation 1.
fn pod() -> Pod {
    let operation = OperationId::from_parts(1, [1; 10]);
    let name = PodName::parse("dev").unwrap();
    let id = PodId::from_parts(1, [0; 10]);
    let mut pod = Pod::new(id, TenantId::default_tenant(), name, PodSpec::new("image"), operation, at(0));
    pod.goal = None;
    pod.image = Some(PinnedImage { id: "sha256:1".into(), digest: None, layout: ImageLayout::default() });
    pod.data_generation = 1;
    pod.sets = vec![set(1, Some(1))];
    pod.current = Some(1);
    pod.last_set = 1;
    pod.source = None;
    pod.container = Some(ReadyContainer {
        id: "c1".into(),
        set: 1,
        spec_generation: 1,
        limits: Some(Resources::default()),
        refused: None,
    });
    pod.data_seen_at = Some(at(0));
    pod
}

fn container(state: ContainerState) -> ObservedContainer {
    ObservedContainer { id: "c1".into(), state, started_at: Some(at(0)), set: 1, spec_generation: 1 }
}

const EXITED: ContainerState = ContainerState::Exited { code: Some(0), oom: false };

fn whole(number: SetNumber) -> ObservedSet {
    ObservedSet { number, presence: Presence::Whole, generation: Some(1), limit: Some(SetLimit::default()) }
}

fn observed(state: Option<ContainerState>) -> ObservedPod {
    ObservedPod { container: state.map(container), foreign: Vec::new(), sets: vec![whole(1)] }
}

fn stopping(mut pod: Pod) -> Pod {
    pod.desired = Desired::Stopped;
    let operation = OperationId::from_parts(2, [2; 10]);
    pod.goal = Some(Goal { operation, kind: OperationKind::Stop, previous: Desired::Running, accepted: None });
    pod.crash.last = Some(stamp());
    pod
}

/// A verified final snapshot of the pod's data after the run `c1`.
fn verified(pod: &Pod) -> Snapshot {
    let id = SnapshotId::from_parts(3, [3; 10]);
    Snapshot {
        state: SnapshotState::Verified,
        set: Some(1),
        generation: 1,
        grade: Some(Grade::Stopped),
        writer: Some(stamp()),
        repository_id: Some("aa".into()),
        captured_at: Some(at(10)),
        ..Snapshot::pending(id, pod.id, pod.tenant.clone(), SnapshotKind::Final, at(5))
    }
}

fn next(pod: &Pod, observed: &ObservedPod, snapshots: &[Snapshot]) -> Next {
    planned(pod, observed, snapshots).next
}

fn planned(pod: &Pod, observed: &ObservedPod, snapshots: &[Snapshot]) -> Plan {
    let live_passed: Vec<SnapshotId> = snapshots.iter().map(|s| s.id).collect();
    plan(Input {
        pod,
        observed,
        snapshots,
        live_passed: &live_passed,
        layer_checked: Some(at(0)),
        layer_hidden: false,
        policy: &Policy::default(),
        now: at(20),
    })
}

fn deletes(next: &Next) -> bool {
    matches!(
        next,
        Next::Act(Action::RemoveContainer { .. } | Action::DeleteSet { .. } | Action::PurgeEverything { .. })
    )
}

#[test]
fn law_1_every_missing_part_of_the_proof_denies_the_permit() {
    let mut pod = pod();
    pod.current = None;
    let good = verified(&pod);
    let quiet = observed(Some(EXITED));
    assert!(DeletePermit::captured_set(&pod, 1, &good, &quiet).is_ok());
    let denied = |snapshot: Snapshot| DeletePermit::captured_set(&pod, 1, &snapshot, &quiet).unwrap_err();
    let loss = Loss { path: "/volumes/data/x".into(), reason: "unreadable".into() };
    let other = PodId::from_parts(9, [9; 10]);
    assert_eq!(denied(Snapshot { pod: other, ..good.clone() }), Denied::OtherPod);
    for state in [SnapshotState::Pending, SnapshotState::Uploaded, SnapshotState::Failed] {
        assert_eq!(denied(Snapshot { state, ..good.clone() }), Denied::NotVerified);
    }
    assert_eq!(denied(Snapshot { repository_id: None, ..good.clone() }), Denied::NotVerified);
    assert_eq!(denied(Snapshot { losses: vec![loss], ..good.clone() }), Denied::HasLosses);
    assert_eq!(denied(Snapshot { set: Some(2), ..good.clone() }), Denied::OtherGeneration);
    assert_eq!(denied(Snapshot { generation: 0, ..good.clone() }), Denied::OtherGeneration);
    assert_eq!(denied(Snapshot { grade: Some(Grade::Frozen), ..good.clone() }), Denied::WriterAlive);
    let older = Some(WriterStamp { started_at: Some(at(-9)), ..stamp() });
    assert_eq!(denied(Snapshot { writer: older, ..good.clone() }), Denied::WriterAlive);
    let live = observed(Some(ContainerState::Running));
    assert_eq!(DeletePermit::captured_set(&pod, 1, &good, &live), Err(Denied::WriterAlive));
    let foreign = ObservedPod { foreign: vec!["x".into()], ..quiet.clone() };
    assert_eq!(DeletePermit::captured_set(&pod, 1, &good, &foreign), Err(Denied::WriterAlive));
    pod.current = Some(1);
    assert_eq!(DeletePermit::captured_set(&pod, 1, &good, &quiet), Err(Denied::InUse));
}

#[test]
fn law_1_what_ran_is_never_never_started() {
    let pod = pod();
    let quiet = observed(Some(EXITED));
    assert_eq!(DeletePermit::never_started_set(&pod, 1, &quiet), Err(Denied::EverStarted));
    // Its container may be gone; the record remembers.
    assert_eq!(DeletePermit::never_started_set(&pod, 1, &observed(None)), Err(Denied::EverStarted));
    assert_eq!(DeletePermit::never_started_container(&pod, &quiet), Err(Denied::EverStarted));
    let mut fresh = pod.clone();
    fresh.sets = vec![set(1, None)];
    // The record says it never ran; the engine says that its container did.
    assert_eq!(DeletePermit::never_started_set(&fresh, 1, &quiet), Err(Denied::EverStarted));
    let created = ObservedPod {
        container: Some(ObservedContainer { started_at: None, ..container(ContainerState::Created) }),
        ..quiet
    };
    assert!(DeletePermit::never_started_set(&fresh, 1, &created).is_ok());
}

#[test]
fn law_1_a_purge_needs_its_confirmed_task_and_a_layer_capture_its_run() {
    let pod = pod();
    let quiet = observed(Some(EXITED));
    assert_eq!(DeletePermit::purged_set(&pod, 1), Err(Denied::NotConfirmed));
    assert_eq!(DeletePermit::purged_snapshots(&pod), Err(Denied::NotConfirmed));
    let layer = |after_stop, writer| LayerCapture { repository_id: None, captured_at: at(1), writer, after_stop };
    let permit = |layer: LayerCapture| DeletePermit::layer_captured_container(&pod, &layer, &quiet);
    assert!(permit(layer(true, Some(stamp()))).is_ok());
    assert_eq!(permit(layer(false, Some(stamp()))), Err(Denied::WriterAlive));
    assert_eq!(permit(layer(true, None)), Err(Denied::WriterAlive));
}

#[test]
fn law_1_a_container_goes_without_a_capture_only_if_the_pod_keeps_nothing_of_it() {
    let mut pod = pod();
    let (quiet, live) = (observed(Some(EXITED)), observed(Some(ContainerState::Running)));
    assert_eq!(DeletePermit::container_without_data(&pod, &quiet), Err(Denied::EverStarted));
    let removed = |pod: &Pod| {
        let outdated = Pod { spec_generation: 2, ..pod.clone() };
        next(&outdated, &quiet, &[])
    };
    pod.crash.last = Some(stamp());
    assert_eq!(removed(&pod), Next::Act(Action::CaptureLayer { container: "c1".into() }));
    let data = DeclaredVolume { name: "data".into(), mount_path: "/data".into(), size: None };
    pod.spec.profile = Profile::Declared(vec![data]);
    assert_eq!(DeletePermit::container_without_data(&pod, &live), Err(Denied::WriterAlive));
    let permit = DeletePermit::container_without_data(&pod, &quiet).unwrap();
    assert_eq!(removed(&pod), Next::Act(Action::RemoveContainer { container: "c1".into(), permit }));
}

#[test]
fn law_1_what_somebody_else_started_is_captured_although_we_never_attached_it() {
    let mut pod = stopping(pod());
    pod.sets = vec![set(1, None)];
    pod.source = Some(Origin::Image);
    let started = observed(Some(EXITED));
    assert_eq!(next(&pod, &started, &[]), Next::Act(Action::Record(Record::Attached { set: 1 })));
    crate::record::apply(&mut pod, &Record::Attached { set: 1 }, at(20));
    assert_eq!(next(&pod, &started, &[]), Next::Act(Action::BeginCapture { kind: SnapshotKind::Final }));
    assert_eq!(next(&pod, &observed(None), &[]), Next::Act(Action::BeginCapture { kind: SnapshotKind::Final }));
}

#[test]
fn law_1_accepted_losses_cover_exactly_themselves() {
    let mut pod = pod();
    pod.current = None;
    let loss = |path: &str| Loss { path: path.into(), reason: "unreadable".into() };
    let damaged = Snapshot { losses: vec![loss("/volumes/data/a"), loss("/volumes/data/b")], ..verified(&pod) };
    let quiet = observed(Some(EXITED));
    let accepting = |paths: &[&str]| {
        let accepted = Acceptance { paths: paths.iter().map(|p| (*p).to_owned()).collect(), actor: "owner".into() };
        DeletePermit::accepted_set(&pod, 1, &damaged, &accepted, &quiet)
    };
    assert_eq!(accepting(&["/volumes/data/a"]), Err(Denied::HasLosses));
    assert!(accepting(&["/volumes/data/a", "/volumes/data/b"]).is_ok());
}

#[test]
fn law_1_nothing_is_deleted_before_the_commit_that_makes_the_snapshot_authoritative() {
    let pod = stopping(pod());
    let mut capturing = pod.clone();
    let snapshot = verified(&pod);
    capturing.capture = Some(snapshot.id);
    for state in [SnapshotState::Pending, SnapshotState::Uploaded] {
        let row = Snapshot { state, ..snapshot.clone() };
        let step = next(&capturing, &observed(Some(EXITED)), &[row]);
        assert!(!deletes(&step) && !matches!(step, Next::Act(Action::Record(Record::Released { .. }))), "{step:?}");
    }
    let committed = next(&capturing, &observed(Some(EXITED)), std::slice::from_ref(&snapshot));
    assert_eq!(committed, Next::Act(Action::Record(Record::Released { snapshot: snapshot.id })));
}

#[test]
fn law_1_a_write_after_the_capture_means_a_new_capture() {
    let mut pod = stopping(pod());
    let snapshot = verified(&pod);
    pod.capture = Some(snapshot.id);
    let again = ObservedPod {
        container: Some(ObservedContainer { started_at: Some(at(15)), ..container(EXITED) }),
        ..observed(None)
    };
    assert_eq!(next(&pod, &again, &[snapshot]), Next::Act(Action::BeginCapture { kind: SnapshotKind::Final }));
}

#[test]
fn law_2_without_data_and_without_a_source_nothing_starts() {
    let mut pod = pod();
    pod.sets.clear();
    pod.current = None;
    let nothing = ObservedPod::default();
    assert!(matches!(next(&pod, &nothing, &[]), Next::Act(Action::Record(Record::ContainerGone)) | Next::Blocked(_)));
    pod.container = None;
    assert!(matches!(next(&pod, &nothing, &[]), Next::Blocked(p) if p.code == "no-source"));
}

#[test]
fn law_2_lost_volumes_start_nothing_and_say_since_when() {
    let pod = pod();
    for state in [None, Some(EXITED), Some(ContainerState::Running)] {
        let mut gone = observed(state);
        gone.sets[0].presence = Presence::Absent;
        let plan = planned(&pod, &gone, &[]);
        let Next::Blocked(problem) = &plan.next else { panic!("{:?}", plan.next) };
        assert_eq!(problem.code, "volume-data-lost");
        assert!(problem.message.contains(&at(0).to_string()));
        assert_eq!(plan.phase, Phase::Error);
    }
}

#[test]
fn law_2_older_data_or_an_older_database_start_nothing() {
    let mut pod = pod();
    pod.data_generation = 5;
    pod.sets[0].attached = Some(5);
    pod.sets[0].marked = Some(5);
    let with = |generation| {
        let mut seen = observed(Some(EXITED));
        seen.sets[0].generation = Some(generation);
        next(&pod, &seen, &[])
    };
    assert!(matches!(with(4), Next::Blocked(p) if p.code == "data-older-than-recorded"));
    assert!(matches!(with(6), Next::Blocked(p) if p.code == "database-older-than-data"));
    assert!(!matches!(with(5), Next::Blocked(_)));
}

#[test]
fn law_3_a_partial_set_is_a_repair_state() {
    let mut partial = observed(None);
    partial.sets[0].presence = Presence::Partial { missing: vec!["data".into()] };
    assert!(matches!(next(&pod(), &partial, &[]), Next::Blocked(p) if p.code == "volume-data-partial"));
}

#[test]
fn law_4_an_upload_is_verified_before_it_counts() {
    let mut pod = stopping(pod());
    let uploaded = Snapshot { state: SnapshotState::Uploaded, ..verified(&pod) };
    pod.capture = Some(uploaded.id);
    let step = next(&pod, &observed(Some(EXITED)), std::slice::from_ref(&uploaded));
    assert_eq!(step, Next::Act(Action::Verify { snapshot: uploaded.id }));
    assert!(!uploaded.is_restorable());
}

#[test]
fn law_5_a_set_the_engine_did_not_tell_about_is_not_gone() {
    let unknown = ObservedPod { sets: Vec::new(), ..observed(None) };
    assert!(matches!(next(&pod(), &unknown, &[]), Next::Blocked(p) if p.code == "volume-state-unknown"));
    // What is left over is deleted through the engine, never just forgotten.
    let mut released = stopping(pod());
    released.current = None;
    released.container = None;
    released.source = Some(Origin::Snapshot(verified(&released).id));
    released.sets[0].state = SetState::Retired;
    released.sets[0].proof = Some(verified(&released).id);
    let step = next(&released, &unknown, &[verified(&released)]);
    assert!(matches!(step, Next::Act(Action::DeleteSet { set: 1, .. })), "{step:?}");
}

#[test]
fn law_6_a_foreign_container_stops_everything() {
    for pod in [pod(), stopping(pod())] {
        let foreign = ObservedPod { foreign: vec!["stranger".into()], ..observed(Some(EXITED)) };
        let step = next(&pod, &foreign, &[]);
        let ended = matches!(&step, Next::Act(Action::Record(Record::GoalFailed(p))) if p.code == "foreign-writer");
        assert!(ended || matches!(&step, Next::Blocked(p) if p.code == "foreign-writer"), "{step:?}");
    }
}

#[test]
fn law_7_a_leftover_without_proof_is_quarantined() {
    let mut pod = stopping(pod());
    pod.current = None;
    pod.container = None;
    pod.source = Some(Origin::Image);
    pod.sets[0].state = SetState::Retired;
    assert_eq!(next(&pod, &observed(None), &[]), Next::Act(Action::Record(Record::SetQuarantined(1))));
}

#[test]
fn a_stop_is_live_pass_then_stop_then_capture() {
    let mut pod = stopping(pod());
    pod.crash.last = None;
    let running = observed(Some(ContainerState::Running));
    assert_eq!(next(&pod, &running, &[]), Next::Act(Action::BeginCapture { kind: SnapshotKind::Final }));
    let pending = Snapshot { state: SnapshotState::Pending, set: None, ..verified(&pod) };
    pod.capture = Some(pending.id);
    let step = |state, live_passed: &[SnapshotId]| {
        plan(Input {
            pod: &pod,
            observed: &observed(Some(state)),
            snapshots: std::slice::from_ref(&pending),
            live_passed,
            layer_checked: None,
            layer_hidden: false,
            policy: &Policy::default(),
            now: at(20),
        })
        .next
    };
    assert!(matches!(step(ContainerState::Running, &[]), Next::Act(Action::LivePass { .. })));
    assert!(matches!(step(ContainerState::Running, &[pending.id]), Next::Act(Action::Stop { .. })));
    assert!(matches!(step(EXITED, &[pending.id]), Next::Act(Action::Capture { grade: Grade::Stopped, .. })));
}

#[test]
fn a_settled_pod_stays_settled() {
    let running = planned(&pod(), &observed(Some(ContainerState::Running)), &[]);
    assert!(matches!(running.next, Next::Settled { .. }), "{:?}", running.next);
    assert_eq!(running.phase, Phase::Running);
}

#[test]
fn a_restart_waits_for_another_run() {
    let mut pod = pod();
    pod.tasks =
        vec![Task { operation: OperationId::from_parts(4, [4; 10]), work: Work::Restart { before: Some(stamp()) } }];
    let step = next(&pod, &observed(Some(ContainerState::Running)), &[]);
    assert!(matches!(step, Next::Act(Action::Stop { .. })), "{step:?}");
}

// ---- snapshots that are put together --------------------------------------------------------------------------------

fn row(n: u8, state: SnapshotState) -> Snapshot {
    let id = SnapshotId::from_parts(u64::from(n), [n; 10]);
    let row = Snapshot::pending(id, pod().id, TenantId::default_tenant(), SnapshotKind::Composed, at(0));
    Snapshot { state, repository_id: Some("r".into()), ..row }
}

fn decided(pod: &Pod, snapshots: &[Snapshot], seen: &ObservedPod) -> Next {
    let policy = Policy::default();
    decide(&Input {
        pod,
        observed: seen,
        snapshots,
        live_passed: &[],
        layer_checked: None,
        layer_hidden: false,
        policy: &policy,
        now: at(10),
    })
}

/// A restore of parts whose safety snapshot is 3, out of snapshot 5.
fn parts_in_work(composed: Option<(u8, u8)>) -> Pod {
    let id = |n: u8| SnapshotId::from_parts(u64::from(n), [n; 10]);
    let parts = Parts { volumes: vec!["data".into()], paths: Vec::new(), extra: crate::parts::Extra::Remove };
    let work = Work::Replace {
        origin: Origin::Snapshot(id(5)),
        parts: Some(parts),
        composed: composed.map(|(snapshot, base)| crate::pod::Composed { snapshot: id(snapshot), base: id(base) }),
        safety: Some(id(3)),
        old: None,
        new: None,
        layer: None,
        switched: false,
        accepted: None,
    };
    let mut pod = pod();
    pod.crash.last = Some(stamp());
    pod.tasks = vec![Task { operation: OperationId::from_parts(4, [4; 10]), work }];
    pod
}

#[test]
fn parts_are_put_together_and_read_back_before_anything_is_replaced() {
    let seen = observed(Some(EXITED));
    let safety = Snapshot { kind: SnapshotKind::Safety, ..verified(&pod()) };
    let wanted = row(5, SnapshotState::Verified);
    let of = |composed, more: Vec<Snapshot>| {
        let rows = [vec![safety.clone(), wanted.clone()], more].concat();
        decided(&parts_in_work(composed), &rows, &seen)
    };
    assert_eq!(of(None, vec![]), Next::Act(Action::BeginCompose { base: safety.id }));
    // Over a base that is not the newest capture, it is begun anew.
    let begun = |state| of(Some((7, 3)), vec![row(7, state)]);
    assert_eq!(
        of(Some((7, 6)), vec![row(7, SnapshotState::Verified)]),
        Next::Act(Action::BeginCompose { base: safety.id })
    );
    assert!(
        matches!(begun(SnapshotState::Pending), Next::Act(Action::Compose { recipe: Recipe::Parts { base, wanted, .. }, .. })
        if base == safety.id && wanted == row(5, SnapshotState::Verified).id)
    );
    let own = row(7, SnapshotState::Verified).id;
    assert_eq!(begun(SnapshotState::Uploaded), Next::Act(Action::Verify { snapshot: own }));
    assert_eq!(begun(SnapshotState::Verified), Next::Act(Action::AllocateSet { origin: Origin::Snapshot(own) }));
    assert!(matches!(begun(SnapshotState::Failed), Next::Blocked(problem) if problem.code == "snapshot-failed"));
    // Lost volumes are no base: what would be kept of them is not there.
    let lost = ObservedSet { presence: Presence::Absent, generation: None, ..whole(1) };
    let seen = ObservedPod { sets: vec![lost], ..observed(None) };
    let rows = [safety.clone(), wanted.clone()];
    assert!(matches!(decided(&parts_in_work(None), &rows, &seen), Next::Blocked(p) if p.code == "volume-data-lost"));
}

#[test]
fn a_set_that_was_filled_before_somebody_wrote_again_is_not_switched_to() {
    let mut pod = parts_in_work(Some((7, 3)));
    let stale = VolumeSet { origin: Origin::Snapshot(row(6, SnapshotState::Verified).id), ..set(2, None) };
    pod.sets.push(stale);
    if let Work::Replace { new, .. } = &mut pod.tasks[0].work {
        *new = Some(2);
    }
    let safety = Snapshot { kind: SnapshotKind::Safety, ..verified(&self::pod()) };
    let rows = [safety, row(5, SnapshotState::Verified), row(7, SnapshotState::Verified)];
    let seen = ObservedPod { sets: vec![whole(1), whole(2)], ..observed(Some(EXITED)) };
    let own = row(7, SnapshotState::Verified).id;
    assert_eq!(decided(&pod, &rows, &seen), Next::Act(Action::AllocateSet { origin: Origin::Snapshot(own) }));
}

/// Law 1: what no snapshot holds is data from the moment it is whole, although nothing ever ran on it.
#[test]
fn law_1_a_copy_on_the_host_goes_only_when_it_is_captured() {
    let source = Origin::Pod { pod: crate::id::PodId::from_parts(9, [9; 10]), set: 3 };
    let mut clone = pod();
    (clone.sets, clone.current, clone.container, clone.data_generation) = (Vec::new(), None, None, 0);
    (clone.source, clone.last_set) = (Some(source), 0);
    clone.fork = Some(crate::pod::Fork { identity: crate::pod::Identity::Renewed, composed: None });
    let nothing = ObservedPod::default();
    assert_eq!(decided(&clone, &[], &nothing), Next::Act(Action::AllocateSet { origin: source }));
    let preparing = VolumeSet { origin: source, state: SetState::Preparing, ..set(1, None) };
    crate::record::apply(&mut clone, &Record::SetAllocated(preparing), at(11));
    assert_eq!(decided(&clone, &[], &nothing), Next::Act(Action::FillSet { set: 1 }));
    // Half of it is nobody's data.
    assert!(DeletePermit::never_started_set(&clone, 1, &nothing).is_ok());
    crate::record::apply(&mut clone, &Record::SetCompleted { set: 1, layer: None, gap: None }, at(11));
    assert_eq!((clone.source, clone.fork, clone.current), (None, None, Some(1)));
    assert_eq!(DeletePermit::never_started_set(&clone, 1, &nothing), Err(Denied::EverStarted));
    // Lost, it is not made anew from what its source has become since.
    let lost = ObservedSet { number: 1, presence: Presence::Absent, generation: None, limit: None };
    let seen = ObservedPod { sets: vec![lost], ..ObservedPod::default() };
    assert!(matches!(decided(&clone, &[], &seen), Next::Act(Action::Record(Record::GoalFailed(_))) | Next::Blocked(_)));
    // A stop captures it first, and so does the end of a clone that was never started.
    let operation = OperationId::from_parts(1, [1; 10]);
    clone.goal = Some(Goal { operation, kind: OperationKind::Clone, previous: Desired::Running, accepted: None });
    let problem =
        crate::operation::Problem { code: "engine-refused".into(), message: "no".into(), hint: String::new() };
    crate::record::apply(&mut clone, &Record::Attached { set: 1 }, at(12));
    crate::record::apply(&mut clone, &Record::GoalFailed(problem), at(12));
    assert_eq!((clone.desired, &clone.goal), (Desired::Stopped, &None));
    let seen = ObservedPod { sets: vec![whole(1)], ..ObservedPod::default() };
    assert_eq!(decided(&clone, &[], &seen), Next::Act(Action::BeginCapture { kind: SnapshotKind::Final }));
}

#[test]
fn a_clone_waits_for_its_source_and_starts_from_nothing_but_its_own() {
    let source = row(5, SnapshotState::Verified).id;
    let mut clone = pod();
    (clone.sets, clone.current, clone.container, clone.data_generation) = (Vec::new(), None, None, 0);
    clone.source = Some(Origin::Snapshot(source));
    clone.fork = Some(crate::pod::Fork { identity: crate::pod::Identity::Renewed, composed: None });
    let operation = OperationId::from_parts(2, [2; 10]);
    clone.goal = Some(Goal { operation, kind: OperationKind::Clone, previous: Desired::Running, accepted: None });
    let nothing = ObservedPod::default();
    for waits in [SnapshotState::Pending, SnapshotState::Uploaded] {
        assert_eq!(decided(&clone, &[row(5, waits)], &nothing), Next::Wait { until: at(11) });
    }
    for gone in [vec![], vec![row(5, SnapshotState::Failed)]] {
        assert!(matches!(decided(&clone, &gone, &nothing), Next::Blocked(p) if p.code == "clone-source-failed"));
    }
    let there = row(5, SnapshotState::Verified);
    assert_eq!(
        decided(&clone, std::slice::from_ref(&there), &nothing),
        Next::Act(Action::BeginCompose { base: source })
    );
    clone.fork = clone.fork.map(|fork| crate::pod::Fork {
        composed: Some(crate::pod::Composed { snapshot: row(7, SnapshotState::Pending).id, base: source }),
        ..fork
    });
    let with = |state| [there.clone(), row(7, state)];
    let composing = decided(&clone, &with(SnapshotState::Pending), &nothing);
    assert!(matches!(composing, Next::Act(Action::Compose { recipe: Recipe::Fork { .. }, .. })), "{composing:?}");
    let own = Origin::Snapshot(row(7, SnapshotState::Verified).id);
    let forked = Record::Forked(Some(own));
    assert_eq!(decided(&clone, &with(SnapshotState::Verified), &nothing), Next::Act(Action::Record(forked.clone())));
    crate::record::apply(&mut clone, &forked, at(11));
    assert_eq!((clone.source, clone.fork), (Some(own), None));
    assert_eq!(
        decided(&clone, &with(SnapshotState::Verified), &nothing),
        Next::Act(Action::AllocateSet { origin: own })
    );
}

#[test]
fn law_1_an_imported_snapshot_proves_nothing() {
    let pod = stopping(pod());
    let imported = Snapshot {
        kind: SnapshotKind::Imported,
        set: None,
        generation: 0,
        grade: None,
        writer: None,
        ..verified(&pod)
    };
    assert!(!deletes(&next(&pod, &observed(Some(ContainerState::Exited { code: None, oom: false })), &[imported])));
}

#[test]
fn d13_a_running_pod_is_limited_and_advice_is_called_so() {
    let mut pod = pod();
    pod.spec.resources.disk = Some(1 << 30);
    let seen = |state: Option<ContainerState>, limit: Option<SetLimit>| ObservedPod {
        sets: vec![ObservedSet { limit, ..whole(1) }],
        ..observed(state)
    };
    let running = |limit| seen(Some(ContainerState::Running), limit);
    let limit = |bytes, enforced| Some(SetLimit { bytes, enforced });
    let is_advice = |observed: &ObservedPod| {
        planned(&pod, observed, &[]).conditions.iter().any(|c| c.kind == ConditionKind::DiskLimitAdvisory)
    };
    let act = |bytes| Next::Act(Action::LimitSet { set: 1, bytes });
    let none = running(limit(None, false));
    assert_eq!((next(&pod, &none, &[]), is_advice(&none)), (act(Some(1 << 30)), false));
    assert_eq!(next(&pod, &running(limit(Some(1), true)), &[]), act(Some(1 << 30)));
    let kept = running(limit(Some(1 << 30), true));
    assert!(matches!(next(&pod, &kept, &[]), Next::Settled { .. }) && !is_advice(&kept));
    for advice in [running(limit(Some(1 << 30), false)), running(None)] {
        assert!(matches!(next(&pod, &advice, &[]), Next::Settled { .. }) && is_advice(&advice));
    }
    // Nobody who starts is kept from it for want of room.
    let ended = seen(Some(ContainerState::Created), limit(None, false));
    assert!(matches!(next(&pod, &ended, &[]), Next::Act(Action::Launch { .. })));
    let unlimited = Pod { spec: PodSpec::new("image"), ..pod.clone() };
    assert_eq!(next(&unlimited, &kept, &[]), act(None));
}

#[test]
fn d18_limits_are_changed_where_they_can_be_and_else_with_the_next_container() {
    let mut pod = pod();
    pod.crash.last = Some(stamp());
    pod.spec.resources.memory = Some(1 << 30);
    let limits = Resources { memory: Some(1 << 30), ..Resources::default() };
    let act = Next::Act(Action::LimitContainer { container: "c1".into(), limits });
    let (running, ended) = (observed(Some(ContainerState::Running)), observed(Some(EXITED)));
    assert_eq!((next(&pod, &running, &[]), next(&pod, &ended, &[])), (act.clone(), act.clone()));
    // Whoever waits for a start does not wait for that.
    let starting = Pod { goal: stopping(pod.clone()).goal, ..pod.clone() };
    assert!(!matches!(next(&starting, &running, &[]), Next::Act(Action::LimitContainer { .. })));
    let shown = |pod: &Pod, observed: &ObservedPod| {
        let conditions = planned(pod, observed, &[]).conditions;
        conditions.iter().filter(|c| c.kind == ConditionKind::RestartRequired).map(|c| c.reason).collect::<Vec<_>>()
    };
    // Nor does whoever waits for a snapshot.
    let mut busy = pod.clone();
    busy.tasks.push(Task { operation: OperationId::from_parts(3, [3; 10]), work: Work::Restart { before: None } });
    assert!(!matches!(next(&busy, &running, &[]), Next::Act(Action::LimitContainer { .. })));
    // Before the engine is asked, nobody knows any more which it has: what was wanted before is another change then.
    let mut asking = pod.clone();
    crate::record::apply(&mut asking, &Record::Limiting, at(19));
    asking.spec.resources = Resources::default();
    let back = Next::Act(Action::LimitContainer { container: "c1".into(), limits: Resources::default() });
    assert_eq!(next(&asking, &running, &[]), back);
    let refusal = |live, anew, problem: &str| {
        Record::LimitsRefused(RefusedLimits { wanted: limits, problem: problem.into(), at: at(20), live, anew })
    };
    let told = crate::record::apply(&mut pod, &refusal(true, true, "it uses 7"), at(20)).event;
    assert_eq!(told.map(|(kind, _)| kind), Some("pod.limits-refused"));
    let again = crate::record::apply(&mut pod, &refusal(true, true, "it uses 8"), at(20)).event;
    assert!(again.is_none(), "told once");
    assert!(matches!(next(&pod, &running, &[]), Next::Settled { wake: Some(_) }));
    assert_eq!((shown(&pod, &running), shown(&pod, &ended)), (vec!["limits-refused"], vec![]));
    // What was refused while it ran is asked for again once it has ended.
    assert_eq!(next(&pod, &ended, &[]), act);
    // A container that cannot have them makes room for one that can; what was in it is captured first.
    crate::record::apply(&mut pod, &refusal(false, true, "no"), at(20));
    assert_eq!(next(&pod, &ended, &[]), Next::Act(Action::CaptureLayer { container: "c1".into() }));
    // Where none can, this one is better than none, and a restart does not help.
    let mut absurd = pod.clone();
    crate::record::apply(&mut absurd, &refusal(false, false, "no"), at(20));
    assert!(matches!(next(&absurd, &ended, &[]), Next::Act(Action::Launch { .. })));
    assert_eq!(shown(&absurd, &running), Vec::<&str>::new());
    let conditions = planned(&absurd, &running, &[]).conditions;
    assert!(conditions.iter().any(|c| c.kind == ConditionKind::LimitsRefused), "{conditions:?}");
    let outdated = Pod { spec_generation: 2, ..pod.clone() };
    assert_eq!(shown(&outdated, &running), ["spec-changed"]);
    // What is wanted now was not refused.
    let mut other = pod.clone();
    other.spec.resources.memory = Some(2 << 30);
    assert!(matches!(next(&other, &running, &[]), Next::Act(Action::LimitContainer { .. })));
    let told = |changed| crate::record::apply(&mut pod.clone(), &Record::Limited { limits, changed }, at(21)).event;
    assert_eq!((told(true).map(|(kind, _)| kind), told(false)), (Some("pod.limits-changed"), None));
    crate::record::apply(&mut pod, &Record::Limited { limits, changed: true }, at(21));
    assert!(matches!(next(&pod, &running, &[]), Next::Settled { .. }));
    assert_eq!(shown(&pod, &running), Vec::<&str>::new());
}

#[test]
fn d17_a_run_that_is_ill_ends_before_anything_that_may_fail_again_and_again() {
    let mut pod = pod();
    pod.spec.health = Some(HealthCheck::of(Probe::Tcp { port: 80 }));
    // What is left over and cannot go, and limits that the engine does not take, would come first otherwise.
    pod.sets.push(VolumeSet { state: SetState::Retired, ..set(2, Some(1)) });
    pod.spec.resources = Resources { disk: Some(1 << 30), memory: Some(1 << 30), ..Resources::default() };
    let running = observed(Some(ContainerState::Running));
    let stop = Next::Act(Action::Stop { container: "c1".into() });
    assert_ne!(next(&pod, &running, &[]), stop);
    let fails = Record::Health { run: stamp(), found: Found::Fails("no answer".into()) };
    let told = crate::record::apply(&mut pod, &fails, at(19)).event;
    assert_eq!(told.map(|(kind, _)| kind), Some(crate::record::POD_UNHEALTHY));
    assert_eq!(next(&pod, &running, &[]), stop);
    // Found once more because nobody acted on it: the same run counts once.
    assert_eq!(pod.crash.count, 1);
    crate::record::apply(&mut pod, &fails, at(20));
    assert_eq!((pod.crash.count, next(&pod, &running, &[])), (1, stop));
}
