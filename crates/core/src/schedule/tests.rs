use super::*;
use crate::id::{OperationId, SnapshotId};
use crate::snapshot::{SnapshotKind, SnapshotState};
use crate::spec::{Backend, PodName, PodSpec, TenantId};
use crate::volume::{Origin, SetState, VolumeSet};

fn at(text: &str) -> Timestamp {
    text.parse().expect("a time")
}

fn schedule(text: &str, zone_name: &str) -> Schedule {
    Schedule::parse(text, zone(zone_name).expect("a zone")).expect("a schedule")
}

fn times(schedule: &Schedule, after: &str, count: usize) -> Vec<String> {
    let mut time = at(after);
    let mut next = || {
        time = schedule.next_after(time).expect("a time");
        time.to_string()
    };
    (0..count).map(|_| next()).collect()
}

#[test]
fn times_are_wall_times_of_the_zone() {
    let berlin = schedule("0 3 * * *", "Europe/Berlin");
    assert_eq!(
        times(&berlin, "2026-03-27T12:00:00Z", 3),
        ["2026-03-28T02:00:00Z", "2026-03-29T01:00:00Z", "2026-03-30T01:00:00Z"]
    );
    let days = schedule("@daily", "UTC");
    assert_eq!(times(&days, "2026-12-31T00:00:00Z", 1), ["2027-01-01T00:00:00Z"]);
}

#[test]
fn a_wall_time_that_is_skipped_comes_when_the_clock_changes() {
    // At 2:00 on 29 March 2026 clocks in Berlin go to 3:00.
    let berlin = schedule("30 2 * * *", "Europe/Berlin");
    assert_eq!(times(&berlin, "2026-03-28T02:00:00Z", 2), ["2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"]);
    // Of several skipped ones there is one, and none is doubled by the hour after.
    let often = schedule("*/20 * * * *", "Europe/Berlin");
    assert_eq!(
        times(&often, "2026-03-29T00:30:00Z", 4),
        ["2026-03-29T00:40:00Z", "2026-03-29T01:00:00Z", "2026-03-29T01:20:00Z", "2026-03-29T01:40:00Z"]
    );
}

#[test]
fn a_wall_time_that_is_repeated_comes_once() {
    // At 3:00 on 25 October 2026 clocks in Berlin go back to 2:00.
    let berlin = schedule("30 2 * * *", "Europe/Berlin");
    assert_eq!(times(&berlin, "2026-10-24T12:00:00Z", 2), ["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"]);
    let often = schedule("*/30 * * * *", "Europe/Berlin");
    assert_eq!(
        times(&often, "2026-10-24T23:50:00Z", 4),
        ["2026-10-25T00:00:00Z", "2026-10-25T00:30:00Z", "2026-10-25T02:00:00Z", "2026-10-25T02:30:00Z"]
    );
    // Asked in the repeated hour, too.
    assert_eq!(times(&often, "2026-10-25T01:15:00Z", 1), ["2026-10-25T02:00:00Z"]);
}

#[test]
fn what_is_wrong_is_named() {
    let field = |rules: SnapshotRules| match rules.validate() {
        Err(Error::InvalidInput { field, .. }) => field,
        other => format!("{other:?}"),
    };
    let text = |schedule: &str| SnapshotRules { schedule: Some(schedule.into()), ..SnapshotRules::default() };
    for bad in ["", "* * * *", "61 * * * *", "0 0 3 * * *", "every day", "0 0 31 2 *", &"1".repeat(300)] {
        assert_eq!(field(text(bad)), "snapshots.schedule", "{bad}");
    }
    for good in ["0 3 * * *", "*/5 0-6 1,15 * MON", "@hourly", OFF] {
        assert_eq!(field(text(good)), "Ok(())", "{good}");
    }
    let zone = |name: &str| SnapshotRules { time_zone: Some(name.into()), ..SnapshotRules::default() };
    assert_eq!(field(zone("Europe/Atlantis")), "snapshots.timeZone");
    assert_eq!(field(zone("Europe/Berlin")), "Ok(())");
    let keep = Keep { last: u32::MAX, ..Keep::default() };
    assert_eq!(field(SnapshotRules { keep: Some(keep), ..SnapshotRules::default() }), "snapshots.keep.last");
}

#[test]
fn a_pod_says_what_differs_from_the_installation() {
    let keep = |last| Some(Keep { last, ..Keep::default() });
    let installation =
        SnapshotRules { schedule: Some("0 3 * * *".into()), time_zone: Some("Asia/Tokyo".into()), keep: keep(7) };
    let rules = |pod: SnapshotRules| pod.over(&installation).expect("good rules");
    let own = rules(SnapshotRules { keep: keep(2), ..SnapshotRules::default() });
    assert_eq!((own.keep.last, own.zone.iana_name()), (2, Some("Asia/Tokyo")));
    assert_eq!(times(&own.schedule.expect("inherited"), "2026-01-01T00:00:00Z", 1), ["2026-01-01T18:00:00Z"]);
    assert!(rules(SnapshotRules { schedule: Some(OFF.into()), ..SnapshotRules::default() }).schedule.is_none());
    assert!(SnapshotRules::default().over(&SnapshotRules::default()).expect("good rules").schedule.is_none());
}

fn running(n: u64) -> Pod {
    let name = PodName::parse("dev").expect("a name");
    let id = PodId::from_parts(n, [u8::try_from(n % 251).expect("small"); 10]);
    let operation = OperationId::from_parts(0, [0; 10]);
    let mut pod =
        Pod::new(id, TenantId::default_tenant(), name, PodSpec::new("a"), operation, at("2026-01-01T00:00:00Z"));
    pod.goal = None;
    pod.data_generation = 3;
    pod.current = Some(1);
    pod.sets = vec![VolumeSet {
        number: 1,
        backend: Backend::Overlay,
        origin: Origin::Image,
        state: SetState::Complete,
        attached: Some(3),
        marked: Some(3),
        proof: None,
        volumes: Vec::new(),
    }];
    pod
}

/// Lets a server with this clock look, and records what a look records; answers how many snapshots it takes.
fn looks(pod: &mut Pod, schedule: &Schedule, clock: impl IntoIterator<Item = Timestamp>) -> usize {
    let mut taken = 0;
    for now in clock {
        match due(pod, Some(schedule), None, now) {
            Due::NotYet => {}
            Due::Pass(until) => pod.scheduled_until = Some(until),
            Due::Take(until) => {
                taken += 1;
                pod.scheduled_until = Some(until);
            }
        }
    }
    taken
}

fn minutes(from: &str, count: i32) -> impl Iterator<Item = Timestamp> {
    let from = at(from);
    (0..count).map(move |n| from + SignedDuration::from_mins(1) * n)
}

#[test]
fn each_time_is_taken_once() {
    let mut pod = running(1);
    let hourly = schedule("0 * * * *", "UTC");
    assert_eq!(looks(&mut pod, &hourly, minutes("2026-01-01T00:30:00Z", 24 * 60)), 24);
}

#[test]
fn times_missed_while_no_server_ran_are_made_up_once() {
    let mut pod = running(1);
    let hourly = schedule("0 * * * *", "UTC");
    assert_eq!(looks(&mut pod, &hourly, minutes("2026-03-01T00:30:00Z", 20)), 1);
}

#[test]
fn a_clock_that_jumps_makes_no_flood_and_no_silence() {
    let hourly = schedule("0 * * * *", "UTC");
    let mut pod = running(1);
    assert_eq!(looks(&mut pod, &hourly, minutes("2026-01-01T00:10:00Z", 60)), 1);
    // Ten years ahead and back, a few times: one for each step ahead, none for the step back.
    let jumps = ["2036-01-01T00:30:00Z", "2026-01-01T01:20:00Z", "2036-01-01T00:30:00Z", "2026-01-01T01:21:00Z"];
    assert_eq!(looks(&mut pod, &hourly, jumps.map(at)), 2);
    // Time goes on as it should.
    assert_eq!(looks(&mut pod, &hourly, minutes("2026-01-01T01:22:00Z", 180)), 3);
    // A clock that is put right by seconds makes nothing twice.
    let due_at = next_at(&pod, Some(&hourly)).expect("a time");
    let around = [due_at, due_at - SignedDuration::from_secs(2), due_at, due_at + SignedDuration::from_secs(1)];
    assert_eq!(looks(&mut pod, &hourly, around), 1);
}

#[test]
fn a_thousand_pods_do_not_begin_in_one_second() {
    let daily = schedule("0 3 * * *", "UTC");
    let mut at_second = std::collections::BTreeMap::new();
    for n in 0..1000 {
        let due_at = next_at(&running(n), Some(&daily)).expect("a time");
        let late = due_at.duration_since(at("2026-01-01T03:00:00Z"));
        assert!(!late.is_negative() && late < SPREAD, "{late}");
        assert_eq!(due(&running(n), Some(&daily), None, due_at - SignedDuration::from_secs(1)), Due::NotYet);
        assert!(matches!(due(&running(n), Some(&daily), None, due_at), Due::Take(_)));
        *at_second.entry(late.as_secs()).or_insert(0) += 1;
    }
    let most = at_second.values().max().copied().unwrap_or_default();
    assert!(most <= 15 && at_second.len() > 200, "{most} in one second, {} seconds", at_second.len());
}

#[test]
fn who_is_busy_released_or_new_is_left_alone() {
    let hourly = schedule("0 * * * *", "UTC");
    let noon = at("2026-01-01T12:30:00Z");
    let take = |pod: &Pod| due(pod, Some(&hourly), None, noon);
    assert!(matches!(take(&running(1)), Due::Take(_)));
    let mut busy = running(1);
    busy.tasks.push(crate::pod::Task {
        operation: OperationId::from_parts(1, [0; 10]),
        work: crate::pod::Work::Snapshot { snapshot: SnapshotId::from_parts(1, [0; 10]), accepted: None },
    });
    assert_eq!(take(&busy), Due::NotYet);
    for desired in [Desired::Stopped, Desired::Archived, Desired::Deleted] {
        let released = Pod { desired, ..running(1) };
        assert_eq!((take(&released), next_at(&released, Some(&hourly))), (Due::NotYet, None));
    }
    assert_eq!(take(&Pod { data_generation: 0, ..running(1) }), Due::NotYet);
    assert!(
        matches!(take(&Pod { scheduled_until: None, ..running(1) }), Due::Pass(_)),
        "an older record takes nothing yet"
    );
    assert_eq!(due(&running(1), None, None, noon), Due::NotYet);
}

#[test]
fn a_paused_pod_that_did_not_change_is_passed_over() {
    let hourly = schedule("0 * * * *", "UTC");
    let noon = at("2026-01-01T12:30:00Z");
    let paused = Pod { desired: Desired::Paused, ..running(1) };
    let row = Snapshot::pending(
        SnapshotId::from_parts(1, [0; 10]),
        paused.id,
        paused.tenant.clone(),
        SnapshotKind::Manual,
        at("2026-01-01T01:00:00Z"),
    );
    let same = Snapshot {
        state: SnapshotState::Verified,
        repository_id: Some("r".into()),
        set: Some(1),
        generation: 3,
        grade: Some(Grade::Stopped),
        ..row
    };
    assert!(matches!(due(&paused, Some(&hourly), Some(&same), noon), Due::Pass(_)));
    assert!(matches!(due(&running(1), Some(&hourly), Some(&same), noon), Due::Take(_)));
    let others = [
        Snapshot { generation: 2, ..same.clone() },
        Snapshot { set: Some(2), ..same.clone() },
        Snapshot { grade: Some(Grade::Frozen), ..same.clone() },
        Snapshot { state: SnapshotState::Uploaded, ..same.clone() },
    ];
    for other in &others {
        assert!(matches!(due(&paused, Some(&hourly), Some(other), noon), Due::Take(_)), "{other:?}");
    }
    assert!(matches!(due(&paused, Some(&hourly), None, noon), Due::Take(_)));
}
