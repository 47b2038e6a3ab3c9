use super::*;
use crate::engine::{ContainerState, ObservedContainer};
use crate::id::OperationId;
use crate::orphans::{Compared, ComparedSet, Orphan};
use crate::permit::{DeletePermit, Denied, Ground};
use crate::pod::Condition;
use crate::spec::{Backend, PodName, PodSpec, TenantId};
use crate::volume::SetState;

const DAY: SignedDuration = SignedDuration::from_hours(24);

fn at(days: i32) -> Timestamp {
    Timestamp::UNIX_EPOCH + DAY * days
}

fn pod(n: u8) -> PodId {
    PodId::from_parts(1, [n; 10])
}

fn set(n: u8) -> Owned {
    Owned::Set { pod: pod(n), number: 1, backend: Backend::Overlay }
}

fn orphan(n: u8, quarantined: Option<Timestamp>) -> OrphanedPod {
    let quarantine = quarantined.map(|at| Quarantine { at, actor: "user:root".to_owned(), until: at + WINDOW });
    let noted = Noted { pod: pod(n), first_seen_at: at(0), quarantine, is_ending: false };
    OrphanedPod { noted, things: vec![set(n)], alive: None }
}

/// An engine with so many pods of the database, and so many of nobody.
fn compared(known: u8, orphans: u8) -> Comparison {
    let one =
        |n| Compared { pod: pod(n), containers: vec![format!("c{n}")], sets: Vec::new(), differences: Vec::new() };
    Comparison {
        pods: (100..100 + known).map(one).collect(),
        orphans: (0..orphans).map(|n| Orphan { what: set(n) }).collect(),
        suspicion: None,
    }
}

fn steps(orphans: Vec<OrphanedPod>, held: Option<Timestamp>, now: Timestamp) -> Vec<Step> {
    let plan = plan(&[], &compared(1, 1), orphans, &BTreeSet::new(), held, now);
    assert_eq!(plan.halted, None);
    plan.items.iter().map(|item| item.step).collect()
}

#[test]
fn law_7_an_orphan_is_listed_for_a_day_then_quarantined_and_deleted_after_its_window() {
    let day = |now| steps(vec![orphan(1, None)], None, now);
    assert_eq!(day(at(0)), [Step::Keep]);
    assert_eq!(day(at(1) - SignedDuration::from_secs(1)), [Step::Keep]);
    assert_eq!(day(at(1)), [Step::Quarantine]);
    assert_eq!(day(at(1000)), [Step::Quarantine], "however old it is, somebody has to ask first");
    let quarantined = |now| steps(vec![orphan(1, Some(at(1)))], None, now);
    assert_eq!(quarantined(at(8) - SignedDuration::from_secs(1)), [Step::Keep]);
    assert_eq!(quarantined(at(8)), [Step::Delete]);
}

#[test]
fn p17_what_lives_and_what_nobody_looked_at_for_long_stays() {
    let living = OrphanedPod { alive: Some("its container c runs".to_owned()), ..orphan(1, Some(at(1))) };
    assert_eq!(steps(vec![living], None, at(100)), [Step::Keep]);
    assert_eq!(steps(vec![orphan(1, Some(at(1)))], Some(at(101)), at(100)), [Step::Keep]);
    let container = |state| ObservedPod {
        container: Some(ObservedContainer { id: "c".into(), state, started_at: None, set: 1, spec_generation: 1 }),
        ..ObservedPod::default()
    };
    let exited = ContainerState::Exited { code: Some(0), oom: false };
    for (observed, expected) in [
        (ObservedPod::default(), false),
        (container(exited), false),
        (container(ContainerState::Running), true),
        (container(ContainerState::Frozen), true),
        (ObservedPod { foreign: vec!["other".to_owned()], ..ObservedPod::default() }, true),
    ] {
        assert_eq!(alive(&observed).is_some(), expected, "{observed:?}");
        let ending = Noted { is_ending: true, ..orphan(1, Some(at(1))).noted };
        let permit = DeletePermit::orphaned_set(&ending, 1, &observed, at(8));
        assert_eq!(permit.err(), expected.then_some(Denied::WriterAlive));
    }
}

/// Nothing may be deleted that is still only listed, whose window is open, or that may still be taken over.
#[test]
fn law_1_the_end_of_an_orphan_takes_consent_a_window_and_that_it_is_nobodys_for_good() {
    let none = ObservedPod::default();
    let ending = |quarantined| Noted { is_ending: true, ..orphan(1, quarantined).noted };
    for (noted, now) in [
        (ending(None), at(100)),
        (ending(Some(at(1))), at(8) - SignedDuration::from_nanos(1)),
        (orphan(1, Some(at(1))).noted, at(100)),
    ] {
        assert_eq!(DeletePermit::orphaned_set(&noted, 1, &none, now), Err(Denied::NotConfirmed));
        assert_eq!(DeletePermit::orphaned_container(&noted, "c", &none, now), Err(Denied::NotConfirmed));
    }
    let permit = DeletePermit::orphaned_set(&ending(Some(at(1))), 1, &none, at(8)).unwrap();
    assert_eq!(permit.ground(), &Ground::ConfirmedPurge { actor: "user:root".to_owned() });
    assert!(permit.covers_set(pod(1), 1) && !permit.covers_set(pod(1), 2) && !permit.covers_set(pod(2), 1));
    let permit = DeletePermit::orphaned_container(&ending(Some(at(1))), "c", &none, at(8)).unwrap();
    assert!(permit.covers_container("c") && !permit.covers_container("d"));
}

#[test]
fn law_7_a_clean_up_halts_when_more_than_three_and_more_than_five_percent_are_orphans() {
    let halted = |known, orphans, named: &[u8]| {
        let named = named.iter().map(|n| pod(*n)).collect();
        plan(&[], &compared(known, orphans), Vec::new(), &named, None, at(1)).halted
    };
    assert_eq!(halted(0, 3, &[]), None, "three are not many");
    assert!(halted(0, 4, &[]).is_some_and(|why| why.contains("4 of 4 pods")));
    assert!(halted(75, 4, &[]).is_some());
    assert_eq!(halted(76, 4, &[]), None, "five percent are not many");
    assert_eq!(halted(0, 4, &[1]), None, "who names a pod does not infer");
    let mut older = compared(100, 1);
    older.pods[7].sets =
        vec![ComparedSet { number: 2, backend: Backend::Overlay, recorded: Some(SetState::Complete), is_there: true }];
    assert_eq!(plan(&[], &older, Vec::new(), &BTreeSet::new(), None, at(1)).halted, None);
    older.pods[7].sets[0].recorded = None;
    let named = plan(&[], &older, Vec::new(), &BTreeSet::from([pod(0)]), None, at(1));
    assert!(named.halted.is_some_and(|why| why.contains("may be an old copy")));
}

/// A copy of last week knows the same sets of a pod that was started since.
#[test]
fn law_7_a_clean_up_halts_where_data_is_newer_than_the_database() {
    let name = PodName::parse("dev").unwrap();
    let operation = OperationId::from_parts(1, [1; 10]);
    let mut newer = Pod::new(pod(100), TenantId::default_tenant(), name, PodSpec::new("debian:12"), operation, at(0));
    let halted =
        |pods: &[Pod]| plan(pods, &compared(100, 1), Vec::new(), &BTreeSet::from([pod(0)]), None, at(1)).halted;
    assert_eq!(halted(std::slice::from_ref(&newer)), None);
    newer.conditions = vec![Condition {
        kind: ConditionKind::GenerationMismatch,
        reason: "database-older".to_owned(),
        message: String::new(),
        since: at(0),
    }];
    assert!(halted(&[newer]).is_some_and(|why| why.contains("may be an old copy")));
}

#[test]
fn a_plan_is_known_by_what_it_does_to_what() {
    let text = |orphans: Vec<OrphanedPod>, named: &[u8], days| {
        let named = named.iter().map(|n| pod(*n)).collect();
        plan(&[], &compared(1, 2), orphans, &named, None, at(days)).text()
    };
    let both = || vec![orphan(1, None), orphan(2, Some(at(1)))];
    let expected = format!("delete {}: set 1 overlay\nquarantine {}: set 1 overlay\n", pod(2), pod(1));
    assert_eq!(text(both(), &[], 8), expected);
    assert_eq!(text(both(), &[], 9), expected, "the next day it is the same plan");
    assert_ne!(text(both(), &[2], 9), expected);
    let more =
        OrphanedPod { things: vec![set(1), Owned::Container { pod: pod(1), id: "c".into() }], ..orphan(1, None) };
    assert_ne!(text(vec![more, orphan(2, Some(at(1)))], &[], 9), expected);
    assert_eq!(text(both(), &[], 0), "");
}
