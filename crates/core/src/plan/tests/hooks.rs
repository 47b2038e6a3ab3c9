//! What an owed hook comes before, and what it waits for.

use super::*;
use crate::hook::{Hook, OwedHook};
use crate::record::HookEnd;

fn owing(pod: Pod) -> Pod {
    let hook = |word: &str| Hook { command: vec![word.into()], user: None, timeout: 30 };
    let (before, after) = (hook("quiesce"), hook("resume"));
    let run = WriterStamp { container: "c1".into(), started_at: None };
    Pod {
        hook: Some(OwedHook { snapshot: SnapshotId::from_parts(3, [3; 10]), set: 1, run, before, after, tries: 0 }),
        ..pod
    }
}

fn is_run(next: &Next) -> bool {
    matches!(next, Next::Act(Action::RunHook { container }) if container == "c1")
}

fn settled(next: Next) -> HookEnd {
    match next {
        Next::Act(Action::Record(Record::HookSettled(end))) => end,
        other => panic!("{other:?}"),
    }
}

#[test]
fn p21_an_owed_hook_comes_before_everything_but_a_purge() {
    let (running, frozen) = (observed(Some(ContainerState::Running)), observed(Some(ContainerState::Frozen)));
    assert!(is_run(&next(&owing(pod()), &running, &[])));
    assert!(is_run(&next(&owing(stopping(pod())), &running, &[])));
    let foreign = ObservedPod { foreign: vec!["other".into()], ..running.clone() };
    assert!(is_run(&next(&owing(pod()), &foreign, &[])));
    // A frozen container can run nothing.
    assert!(matches!(next(&owing(pod()), &frozen, &[]), Next::Act(Action::Unfreeze { .. })));
    let mut purged = owing(pod());
    let work = Work::Purge { actor: "admin".into(), at: at(0) };
    purged.tasks.push(Task { operation: OperationId::from_parts(4, [4; 10]), work });
    assert!(matches!(next(&purged, &running, &[]), Next::Act(Action::Stop { .. })));
    assert!(!is_run(&next(&pod(), &running, &[])), "nothing is owed");
}

#[test]
fn p21_an_owed_hook_waits_for_the_next_run_of_its_container() {
    let owing = owing(pod());
    let ended = next(&owing, &observed(Some(EXITED)), &[]);
    assert!(!is_run(&ended) && !matches!(ended, Next::Act(Action::Record(Record::HookSettled(_)))), "{ended:?}");
    let mut another = observed(Some(ContainerState::Running));
    another.container.as_mut().unwrap().started_at = Some(at(9));
    assert!(is_run(&next(&owing, &another, &[])));
}

#[test]
fn p21_an_owed_hook_ends_with_its_data_and_when_nobody_answers() {
    let running = observed(Some(ContainerState::Running));
    let replaced = Pod { current: Some(2), sets: vec![set(1, Some(1)), set(2, Some(2))], ..owing(pod()) };
    assert_eq!(settled(next(&replaced, &running, &[])), HookEnd::NotNeeded);
    // What it would have ended is in the snapshot that the stop took: that is told.
    let released = Pod { current: None, ..owing(stopping(pod())) };
    assert!(matches!(settled(next(&released, &observed(None), &[])), HookEnd::Failed(_)));
    let mut tried = owing(pod());
    while is_run(&next(&tried, &running, &[])) {
        let consequences = crate::record::apply(&mut tried, &Record::HookTried, at(20));
        assert_eq!(consequences, crate::record::Consequences::default());
        assert!(tried.hook.as_ref().unwrap().tries < 100, "it is tried for ever");
    }
    let end = settled(next(&tried, &running, &[]));
    let consequences = crate::record::apply(&mut tried, &Record::HookSettled(end), at(20));
    assert!(tried.hook.is_none() && tried.hook_failed.is_some() && consequences.event.is_some());
}
