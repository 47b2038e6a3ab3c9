use proptest::prelude::*;

use super::*;
use crate::id::PodId;
use crate::snapshot::Loss;
use crate::spec::TenantId;

fn at(text: &str) -> Timestamp {
    text.parse().expect("a time")
}

fn snapshot(n: u64, kind: SnapshotKind, created: Timestamp) -> Snapshot {
    let id = SnapshotId::from_parts(n, [0; 10]);
    let row = Snapshot::pending(id, PodId::from_parts(0, [0; 10]), TenantId::default_tenant(), kind, created);
    Snapshot { state: SnapshotState::Verified, repository_id: Some("r".into()), captured_at: Some(created), ..row }
}

/// Snapshots of one kind, a fixed time apart, the newest last.
fn series(kind: SnapshotKind, from: &str, step: SignedDuration, count: u64) -> Vec<Snapshot> {
    (0..count).map(|n| snapshot(n, kind, at(from) + step * i32::try_from(n).expect("small"))).collect()
}

/// The life of a pod as old as the oldest of these snapshots, up to a time.
fn until(now: Timestamp) -> Lifetime {
    Lifetime { born: at("2020-01-01T00:00:00Z"), now }
}

fn fates(snapshots: &[Snapshot], keep: &Keep, zone: &TimeZone) -> Vec<Fate> {
    decide(snapshots, keep, zone, until(at("2027-01-01T00:00:00Z")), &BTreeMap::new()).iter().map(|d| d.fate).collect()
}

fn kept_times(snapshots: &[Snapshot], keep: &Keep, zone: &TimeZone) -> Vec<String> {
    let fates = fates(snapshots, keep, zone);
    let kept = snapshots.iter().zip(fates).filter(|(_, fate)| *fate == Fate::Keep);
    kept.map(|(s, _)| s.created_at.to_string()).collect()
}

const HOUR: SignedDuration = SignedDuration::from_hours(1);

#[test]
fn the_newest_of_each_period_is_kept() {
    let hours = series(SnapshotKind::Scheduled, "2026-03-01T00:00:00Z", HOUR, 24 * 40);
    let daily = Keep { daily: 3, ..Keep::default() };
    assert_eq!(
        kept_times(&hours, &daily, &TimeZone::UTC),
        ["2026-04-07T23:00:00Z", "2026-04-08T23:00:00Z", "2026-04-09T23:00:00Z"]
    );
    let weekly = Keep { weekly: 2, ..Keep::default() };
    assert_eq!(kept_times(&hours, &weekly, &TimeZone::UTC), ["2026-04-05T23:00:00Z", "2026-04-09T23:00:00Z"]);
    let monthly = Keep { monthly: 9, yearly: 9, ..Keep::default() };
    assert_eq!(kept_times(&hours, &monthly, &TimeZone::UTC), ["2026-03-31T23:00:00Z", "2026-04-09T23:00:00Z"]);
    let last = Keep { last: 2, hourly: 3, ..Keep::default() };
    assert_eq!(kept_times(&hours, &last, &TimeZone::UTC).len(), 3);
}

#[test]
fn days_begin_at_midnight_of_the_time_zone() {
    let hours = series(SnapshotKind::Scheduled, "2026-03-28T00:00:00Z", HOUR, 72);
    let zone = jiff::tz::TimeZoneDatabase::bundled().get("Europe/Berlin").expect("a zone");
    let daily = Keep { daily: 3, ..Keep::default() };
    // Winter time ends on the 29th: midnight is 23:00 UTC before it and 22:00 after it.
    assert_eq!(
        kept_times(&hours, &daily, &zone),
        ["2026-03-29T21:00:00Z", "2026-03-30T21:00:00Z", "2026-03-30T23:00:00Z"]
    );
}

#[test]
fn a_period_without_a_snapshot_does_not_count() {
    let days = [1, 2, 20].map(|day| snapshot(day, SnapshotKind::Scheduled, at(&format!("2026-05-{day:02}T03:00:00Z"))));
    assert_eq!(
        fates(&days, &Keep { daily: 2, ..Keep::default() }, &TimeZone::UTC),
        [Fate::Forget, Fate::Keep, Fate::Keep]
    );
}

#[test]
fn within_counts_from_the_newest_snapshot_and_not_from_now() {
    let days = series(SnapshotKind::Scheduled, "2026-01-01T03:00:00Z", HOUR * 24, 10);
    let keep = Keep { within: Some(HOUR * 48), ..Keep::default() };
    assert_eq!(
        kept_times(&days, &keep, &TimeZone::UTC),
        ["2026-01-08T03:00:00Z", "2026-01-09T03:00:00Z", "2026-01-10T03:00:00Z"]
    );
}

#[test]
fn manual_ones_stay_until_they_are_deleted_by_hand() {
    let mut all = series(SnapshotKind::Manual, "2026-01-01T00:00:00Z", HOUR, 5);
    all.push(snapshot(99, SnapshotKind::Scheduled, at("2026-02-01T00:00:00Z")));
    let keep = Keep { last: 1, ..Keep::default() };
    assert!(fates(&all, &keep, &TimeZone::UTC).iter().all(|fate| *fate == Fate::Keep));
    let rotated = Keep { manual: Manual::Rotated, ..keep };
    assert_eq!(kept_times(&all, &rotated, &TimeZone::UTC), ["2026-02-01T00:00:00Z"]);
}

#[test]
fn many_stops_do_not_push_scheduled_ones_out() {
    let mut all = series(SnapshotKind::Scheduled, "2026-01-01T00:00:00Z", HOUR, 3);
    let stops = series(SnapshotKind::Final, "2026-02-01T00:00:00Z", HOUR, 50);
    all.extend(stops.into_iter().map(|s| Snapshot {
        id: SnapshotId::from_parts(1000 + u64::from(s.created_at.as_second().unsigned_abs() as u32), [1; 10]),
        ..s
    }));
    let kept = kept_times(&all, &Keep { last: 2, ..Keep::default() }, &TimeZone::UTC);
    assert_eq!(kept, ["2026-01-01T01:00:00Z", "2026-01-01T02:00:00Z", "2026-02-03T00:00:00Z", "2026-02-03T01:00:00Z"]);
}

#[test]
fn what_was_put_together_replaces_nothing_and_goes_when_a_newer_capture_is_there() {
    let of_pod = snapshot(1, SnapshotKind::Final, at("2026-01-01T00:00:00Z"));
    let composed = snapshot(2, SnapshotKind::Composed, at("2026-01-02T00:00:00Z"));
    let later = snapshot(3, SnapshotKind::Final, at("2026-01-03T00:00:00Z"));
    let newest = Keep { last: 1, minimum: 1, ..Keep::default() };
    let rows = [Snapshot { generation: 4, ..of_pod }, composed, later];
    assert_eq!(fates(&rows[..2], &newest, &TimeZone::UTC), [Fate::Keep, Fate::Keep]);
    assert!(!is_replaced(&Snapshot { generation: 0, ..rows[0].clone() }, &rows[1..2], at("2027-01-01T00:00:00Z")));
    assert_eq!(fates(&rows, &newest, &TimeZone::UTC), [Fate::Forget, Fate::Forget, Fate::Keep]);
    // Nor does it take the place of a capture in a rule.
    let two = Keep { last: 2, ..Keep::default() };
    assert_eq!(fates(&rows, &two, &TimeZone::UTC), [Fate::Keep, Fate::Forget, Fate::Keep]);
    let failed = Snapshot { state: SnapshotState::Failed, ..rows[1].clone() };
    assert_eq!(fates(&[failed, rows[2].clone()], &newest, &TimeZone::UTC), [Fate::Forget, Fate::Keep]);
}

#[test]
fn p20_a_policy_without_a_rule_forgets_nothing() {
    let all = series(SnapshotKind::Scheduled, "2020-01-01T00:00:00Z", HOUR * 24, 30);
    for keep in [Keep::default(), Keep { minimum: 1, ..Keep::default() }] {
        assert!(fates(&all, &keep, &TimeZone::UTC).iter().all(|fate| *fate == Fate::Keep));
    }
}

#[test]
fn p20_nothing_goes_because_time_passes() {
    // A pod nobody used for ten years: what there was when it was left is what there is.
    let all = series(SnapshotKind::Scheduled, "2026-01-01T00:00:00Z", HOUR * 24, 20);
    let keep = Keep { daily: 7, within: Some(HOUR * 24 * 10), ..Keep::default() };
    let then = decide(&all, &keep, &TimeZone::UTC, until(at("2026-01-20T01:00:00Z")), &BTreeMap::new());
    assert_eq!(then, decide(&all, &keep, &TimeZone::UTC, until(at("2036-01-20T00:00:00Z")), &BTreeMap::new()));
}

#[test]
fn what_is_in_use_unfinished_or_damaged_stays_and_says_why() {
    let mut all = series(SnapshotKind::Scheduled, "2026-01-01T00:00:00Z", HOUR, 8);
    all[0].state = SnapshotState::Pending;
    all[1].state = SnapshotState::Uploaded;
    all[2].losses = vec![Loss { path: "/volumes/home/x".into(), reason: "gone".into() }];
    all[3].state = SnapshotState::Failed;
    all[4].state = SnapshotState::Failed;
    all[4].repository_id = None;
    let in_use = BTreeMap::from([(all[5].id, "a restore".to_owned())]);
    let keep = Keep { last: 1, ..Keep::default() };
    let decisions = decide(&all, &keep, &TimeZone::UTC, until(at("2026-02-01T00:00:00Z")), &in_use);
    let said: Vec<String> = decisions.iter().map(|d| format!("{:?}: {}", d.fate, d.reasons.join("; "))).collect();
    assert_eq!(
        said,
        [
            "Keep: it is not finished",
            "Keep: it is not finished",
            "Keep: its owner accepted losses: delete it by hand",
            "Keep: it failed, and holds data: delete it by hand",
            "Forget: it failed and holds no data of its own, and a newer one succeeded",
            "Keep: in use: a restore",
            "Forget: no rule keeps it",
            "Keep: the newest verified snapshot always stays; last: number 1 of the newest 1",
        ]
    );
}

#[test]
fn a_newer_snapshot_that_a_drill_found_damaged_does_not_replace_a_good_one() {
    let mut all = series(SnapshotKind::Scheduled, "2026-01-01T00:00:00Z", HOUR, 3);
    all[2].damage = Some("a pack is damaged".to_owned());
    let keep = Keep { last: 1, ..Keep::default() };
    let decisions = decide(&all, &keep, &TimeZone::UTC, until(now()), &BTreeMap::new());
    let fates: Vec<Fate> = decisions.iter().map(|d| d.fate).collect();
    assert_eq!(fates, [Fate::Forget, Fate::Keep, Fate::Keep]);
    assert!(decisions[2].reasons.contains(&"a drill found damage: delete it by hand".to_owned()), "{decisions:?}");
    assert!(!is_replaced(&all[1], &all, now()) && is_replaced(&all[0], &all, now()));
}

#[test]
fn a_newer_snapshot_with_losses_does_not_replace_a_whole_one() {
    let mut all = series(SnapshotKind::Final, "2026-01-01T00:00:00Z", HOUR, 3);
    all[2].losses = vec![Loss { path: "/volumes/home/x".into(), reason: "gone".into() }];
    assert_eq!(
        fates(&all, &Keep { last: 1, ..Keep::default() }, &TimeZone::UTC),
        [Fate::Forget, Fate::Keep, Fate::Keep]
    );
    assert!(is_replaced(&all[0], &all, now()) && !is_replaced(&all[1], &all, now()));
}

#[test]
fn what_a_reset_replaced_stays_until_there_is_a_snapshot_a_week_newer() {
    let day = |d: u32| at(&format!("2026-05-{d:02}T03:00:00Z"));
    let mut all = vec![snapshot(1, SnapshotKind::Scheduled, day(1)), snapshot(2, SnapshotKind::Safety, day(1) + HOUR)];
    // The stop after it is of other data.
    all.push(snapshot(3, SnapshotKind::Final, day(1) + HOUR * 2));
    for keep in [Keep { last: 1, ..Keep::default() }, Keep { daily: 7, ..Keep::default() }] {
        assert!(fates(&all, &keep, &TimeZone::UTC).iter().all(|fate| *fate == Fate::Keep));
        // It does not count either: stops of the same day are counted among themselves.
        let stops = [snapshot(4, SnapshotKind::Final, day(1) + HOUR * 3)];
        let more: Vec<Snapshot> = all.iter().cloned().chain(stops).collect();
        assert_eq!(fates(&more, &keep, &TimeZone::UTC)[1..], [Fate::Keep, Fate::Forget, Fate::Keep]);
        let later: Vec<Snapshot> = more.into_iter().chain([snapshot(5, SnapshotKind::Final, day(9))]).collect();
        let fate = fates(&later, &keep, &TimeZone::UTC)[1];
        assert_eq!(fate, Fate::Forget, "{keep:?}");
    }
}

#[test]
fn snapshots_of_a_clock_that_was_wrong_stay_and_replace_nothing() {
    let mut all = series(SnapshotKind::Scheduled, "2026-05-01T03:00:00Z", HOUR * 24, 3);
    // Once ahead, and once started without the time.
    all.push(snapshot(50, SnapshotKind::Scheduled, at("2031-01-01T00:00:00Z")));
    all.push(snapshot(51, SnapshotKind::Scheduled, at("1970-01-01T00:01:00Z")));
    let keep = Keep { last: 1, daily: 1, within: Some(HOUR), minimum: 1, ..Keep::default() };
    assert_eq!(fates(&all, &keep, &TimeZone::UTC), [Fate::Forget, Fate::Forget, Fate::Keep, Fate::Keep, Fate::Keep]);
    assert!(!is_replaced(&all[2], &all, at("2027-01-01T00:00:00Z")));
    // Neither does one of older data, whatever its time says.
    let older = Snapshot { generation: 1, ..all[2].clone() };
    let newer = Snapshot { generation: 2, ..all[1].clone() };
    assert!(!is_replaced(&newer, std::slice::from_ref(&older), now()));
}

#[test]
fn numbers_beyond_reason_are_refused_by_name() {
    let field = |keep: Keep| match keep.validate("snapshots.keep") {
        Err(Error::InvalidInput { field, .. }) => field,
        other => format!("{other:?}"),
    };
    assert_eq!(field(Keep { daily: COUNT_MAX + 1, ..Keep::default() }), "snapshots.keep.daily");
    assert_eq!(field(Keep { minimum: COUNT_MAX + 1, ..Keep::default() }), "snapshots.keep.minimum");
    assert_eq!(field(Keep { within: Some(-HOUR), ..Keep::default() }), "snapshots.keep.within");
    assert_eq!(field(Keep { within: Some(WITHIN_MAX), last: COUNT_MAX, ..Keep::default() }), "Ok(())");
}

fn any_keep() -> impl Strategy<Value = Keep> {
    let within = prop::option::of((0_i64..3000).prop_map(SignedDuration::from_hours));
    let manual = prop_oneof![Just(Manual::Kept), Just(Manual::Rotated)];
    ((0_u32..4, 0_u32..4, 0_u32..4, 0_u32..4), (0_u32..4, 0_u32..3, 0_u32..4), within, manual).prop_map(
        |((last, hourly, daily, weekly), (monthly, yearly, minimum), within, manual)| Keep {
            last,
            hourly,
            daily,
            weekly,
            monthly,
            yearly,
            within,
            minimum,
            manual,
        },
    )
}

fn any_snapshots() -> impl Strategy<Value = Vec<Snapshot>> {
    let one = (0_u8..4, 0_u8..6, 0_i64..3_000_000, 0_u8..8).prop_map(|(kind, state, minute, odd)| {
        let kind = [SnapshotKind::Manual, SnapshotKind::Scheduled, SnapshotKind::Final, SnapshotKind::Safety]
            [usize::from(kind)];
        let mut row = snapshot(0, kind, at("2024-01-01T00:00:00Z") + SignedDuration::from_mins(minute));
        row.state = match state {
            0 => SnapshotState::Pending,
            1 => SnapshotState::Failed,
            _ => SnapshotState::Verified,
        };
        row.repository_id = row.repository_id.filter(|_| state > 1);
        if odd == 0 {
            row.losses = vec![Loss { path: "/x".into(), reason: "y".into() }];
        }
        row
    });
    prop::collection::vec(one, 0..40).prop_map(|mut rows| {
        for (n, row) in rows.iter_mut().enumerate() {
            row.id = SnapshotId::from_parts(u64::try_from(n).expect("small"), [2; 10]);
        }
        rows
    })
}

fn forgotten(snapshots: &[Snapshot], keep: &Keep, now: Timestamp) -> BTreeSet<SnapshotId> {
    let decisions = decide(snapshots, keep, &TimeZone::UTC, until(now), &BTreeMap::new());
    decisions.iter().filter(|d| d.fate == Fate::Forget).map(|d| d.snapshot).collect()
}

fn now() -> Timestamp {
    at("2030-01-01T00:00:00Z")
}

proptest! {
    #[test]
    fn never_empties_a_pod_and_keeps_the_minimum(rows in any_snapshots(), keep in any_keep()) {
        let gone = forgotten(&rows, &keep, now());
        let whole: Vec<&Snapshot> = rows.iter().filter(|s| is_whole(s)).collect();
        let left = whole.iter().filter(|s| !gone.contains(&s.id)).count();
        prop_assert!(left >= whole.len().min(keep.minimum.max(1) as usize));
        for newest in [rows.iter().filter(|s| s.is_restorable()).max_by_key(|s| dated_key(s)), whole.iter().copied().max_by_key(|s| dated_key(s))] {
            prop_assert!(newest.is_none_or(|s| !gone.contains(&s.id)));
        }
    }

    #[test]
    fn more_rules_never_forget_more(rows in any_snapshots(), keep in any_keep(), more in any_keep()) {
        prop_assume!(!keep.is_empty());
        let both = Keep {
            last: keep.last.max(more.last),
            hourly: keep.hourly.max(more.hourly),
            daily: keep.daily.max(more.daily),
            weekly: keep.weekly.max(more.weekly),
            monthly: keep.monthly.max(more.monthly),
            yearly: keep.yearly.max(more.yearly),
            within: keep.within.max(more.within),
            minimum: keep.minimum.max(more.minimum),
            manual: keep.manual,
        };
        prop_assert!(forgotten(&rows, &both, now()).is_subset(&forgotten(&rows, &keep, now())));
    }

    #[test]
    fn deciding_again_on_what_is_left_forgets_nothing(rows in any_snapshots(), keep in any_keep()) {
        let gone = forgotten(&rows, &keep, now());
        let left: Vec<Snapshot> = rows.into_iter().filter(|s| !gone.contains(&s.id)).collect();
        prop_assert!(forgotten(&left, &keep, now()).is_empty());
    }

    #[test]
    fn the_order_of_rows_does_not_matter(rows in any_snapshots(), keep in any_keep(), turn in 0_usize..40) {
        let mut turned = rows.clone();
        turned.rotate_left(turn.min(rows.len()));
        prop_assert_eq!(forgotten(&rows, &keep, now()), forgotten(&turned, &keep, now()));
    }

    #[test]
    fn a_clock_that_jumps_forgets_nothing_extra(rows in any_snapshots(), keep in any_keep(), hours in 0_i64..100_000) {
        let usual = forgotten(&rows, &keep, now());
        let back = now() - SignedDuration::from_hours(hours);
        prop_assert!(forgotten(&rows, &keep, back).is_subset(&usual));
        let ahead = now() + SignedDuration::from_hours(hours);
        prop_assert_eq!(forgotten(&rows, &keep, ahead), usual);
    }

    #[test]
    fn every_decision_has_a_reason(rows in any_snapshots(), keep in any_keep()) {
        let decisions = decide(&rows, &keep, &TimeZone::UTC, until(now()), &BTreeMap::new());
        prop_assert_eq!(decisions.len(), rows.len());
        prop_assert!(decisions.iter().all(|d| !d.reasons.is_empty()));
    }
}

#[test]
fn imported_snapshots_stay_and_never_stand_in_for_a_capture() {
    let day = at("2026-03-01T00:00:00Z");
    let captured = snapshot(1, SnapshotKind::Scheduled, day);
    let imported = snapshot(2, SnapshotKind::Imported, day + HOUR);
    let all = [captured.clone(), imported.clone()];
    // Rules that keep one: the capture is the newest there is, whatever was sent since.
    let one = Keep { last: 1, minimum: 1, manual: Manual::Rotated, ..Keep::default() };
    assert_eq!(fates(&all, &one, &TimeZone::UTC), [Fate::Keep, Fate::Keep]);
    assert!(!is_replaced(&captured, std::slice::from_ref(&imported), at("2027-01-01T00:00:00Z")));
    let older = Snapshot { generation: 0, ..captured };
    assert!(!is_replaced(&older, &[imported], at("2027-01-01T00:00:00Z")));
}
