use proptest::prelude::*;

use super::*;

const DAY: i64 = 24 * 3600;
const WINDOW: SignedDuration = SignedDuration::from_hours(7 * 24);

fn plan(name: &str) -> PlanName {
    PlanName::parse(name).expect("a name")
}

/// So many days after the beginning.
fn day(days: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + days * DAY).expect("a time")
}

fn at(now: Timestamp, pod: PodSeen) -> Circumstances {
    Circumstances { now, pod, undelete_window: WINDOW }
}

fn active() -> Standing {
    Standing { state: SubscriptionState::Active, plan: plan("basic"), expires_at: Some(day(30)), end: None }
}

fn end(days: i64) -> End {
    End { at: day(days), resume: Resume::Start, trash_at: day(days + 60), warned: 0, purge_at: None, purged: false }
}

/// One of every kind that there is, with its pod as it is then.
fn all() -> Vec<(&'static str, Option<Standing>, PodSeen)> {
    let ended = |state, end| Some(Standing { state, end: Some(end), ..active() });
    let deleted = End { warned: 3, purge_at: Some(day(97)), ..end(30) };
    let (running, resting, in_trash) = (PodSeen::Running, PodSeen::Resting, PodSeen::Deleted(day(97)));
    let (expired, cancelled) = (SubscriptionState::Expired, SubscriptionState::Cancelled);
    vec![
        ("none", None, PodSeen::Gone),
        ("active", Some(active()), running),
        ("active for good", Some(Standing { expires_at: None, ..active() }), resting),
        ("expired", ended(expired, end(30)), resting),
        ("expired, did not run", ended(expired, End { resume: Resume::Leave, ..end(30) }), resting),
        ("expired, warned", ended(expired, End { warned: 3, ..end(30) }), resting),
        ("expired, archived by its owner", ended(expired, end(30)), PodSeen::Archived),
        ("expired, deleted", ended(expired, deleted), in_trash),
        ("expired, deleted by its owner", ended(expired, end(30)), in_trash),
        ("expired, purged", ended(expired, End { purged: true, ..deleted }), PodSeen::Gone),
        ("cancelled", ended(cancelled, end(10)), resting),
        ("cancelled, deleted", ended(cancelled, deleted), in_trash),
        ("cancelled, purged by its owner", ended(cancelled, end(10)), PodSeen::Gone),
    ]
}

fn requests() -> Vec<(&'static str, Request)> {
    let expires_at = Some(day(1000));
    vec![
        ("create", Request::Create { plan: plan("basic"), expires_at: None }),
        ("create other", Request::Create { plan: plan("pro"), expires_at: None }),
        ("expire", Request::Expire),
        ("cancel", Request::Cancel),
        ("renew", Request::Renew { expires_at, gone: PodGone::Refuse }),
        ("renew anew", Request::Renew { expires_at, gone: PodGone::MakeNew }),
        ("change plan", Request::ChangePlan { plan: plan("pro") }),
        ("same plan", Request::ChangePlan { plan: plan("basic") }),
        ("tick", Request::Tick),
    ]
}

/// What a request leads to, in short: the state, and what is asked for; or the reason why not.
fn told(current: Option<&Standing>, request: &Request, about: Circumstances) -> String {
    match step(current, request, about) {
        Ok(Step { standing, asks }) => {
            let state = standing.map_or_else(|| "None".to_owned(), |s| format!("{:?}", s.state));
            let asks = asks.iter().map(|ask| match ask {
                Ask::Create(plan) => format!(" create({plan})"),
                Ask::Adapt(plan) => format!(" adapt({plan})"),
                Ask::Warn(days) => format!(" warn({days})"),
                other => format!(" {}", format!("{other:?}").to_lowercase()),
            });
            format!("{state}{}", asks.collect::<String>())
        }
        Err(Error::Conflict { code, hint, .. }) => {
            assert!(!hint.is_empty(), "{code}");
            code.to_owned()
        }
        Err(Error::NotFound { .. }) => "not-found".to_owned(),
        Err(other) => panic!("{other:?}"),
    }
}

/// Every request in every state, on day 20.
#[test]
fn every_request_in_every_state() {
    let table = "\
none: create=Active create(basic); create other=Active create(pro); expire=not-found; cancel=not-found; \
renew=not-found; renew anew=not-found; change plan=not-found; same plan=not-found; tick=None
active: create=Active; create other=subscription-active; expire=Expired pause; cancel=Cancelled pause; renew=Active; \
renew anew=Active; change plan=Active adapt(pro); same plan=Active; tick=Active
active for good: create=Active; create other=subscription-active; expire=Expired; cancel=Cancelled; renew=Active; \
renew anew=Active; change plan=Active adapt(pro); same plan=Active; tick=Active
expired: create=subscription-ended; create other=subscription-ended; expire=Expired; cancel=Cancelled; \
renew=Active start; renew anew=Active start; change plan=subscription-ended; same plan=subscription-ended; \
tick=Expired
expired, did not run: create=subscription-ended; create other=subscription-ended; expire=Expired; cancel=Cancelled; \
renew=Active; renew anew=Active; change plan=subscription-ended; same plan=subscription-ended; tick=Expired
expired, warned: create=subscription-ended; create other=subscription-ended; expire=Expired; cancel=Cancelled; \
renew=Active start; renew anew=Active start; change plan=subscription-ended; same plan=subscription-ended; \
tick=Expired
expired, archived by its owner: create=subscription-ended; create other=subscription-ended; expire=Expired; \
cancel=Cancelled; renew=Active undelete start; renew anew=Active undelete start; change plan=subscription-ended; \
same plan=subscription-ended; tick=Expired
expired, deleted: create=subscription-ended; create other=subscription-ended; expire=Expired; cancel=Cancelled; \
renew=Active undelete start; renew anew=Active undelete start; change plan=subscription-ended; \
same plan=subscription-ended; tick=Expired
expired, deleted by its owner: create=subscription-ended; create other=subscription-ended; expire=Expired; \
cancel=Cancelled; renew=Active undelete start; renew anew=Active undelete start; change plan=subscription-ended; \
same plan=subscription-ended; tick=Expired
expired, purged: create=subscription-ended; create other=subscription-ended; expire=Expired; cancel=Cancelled; \
renew=subscription-pod-gone; renew anew=Active create(basic); change plan=subscription-ended; \
same plan=subscription-ended; tick=Expired
cancelled: create=subscription-ended; create other=subscription-ended; expire=Cancelled; cancel=Cancelled; \
renew=Active start; renew anew=Active start; change plan=subscription-ended; same plan=subscription-ended; \
tick=Cancelled
cancelled, deleted: create=subscription-ended; create other=subscription-ended; expire=Cancelled; cancel=Cancelled; \
renew=Active undelete start; renew anew=Active undelete start; change plan=subscription-ended; \
same plan=subscription-ended; tick=Cancelled
cancelled, purged by its owner: create=subscription-ended; create other=subscription-ended; expire=Cancelled; \
cancel=Cancelled; renew=subscription-pod-gone; renew anew=Active create(basic); change plan=subscription-ended; \
same plan=subscription-ended; tick=Cancelled";
    let row = |(name, current, pod): &(&str, Option<Standing>, PodSeen)| {
        let cell = |(asked, request): &(&str, Request)| {
            format!("{asked}={}", told(current.as_ref(), request, at(day(20), *pod)))
        };
        let cells: Vec<String> = requests().iter().map(cell).collect();
        format!("{name}: {}", cells.join("; "))
    };
    let found: Vec<String> = all().iter().map(row).collect();
    assert_eq!(found.join("\n"), table);
}

/// What becomes of a pod of which something is asked.
fn pod_after(pod: PodSeen, asks: &[Ask], now: Timestamp) -> PodSeen {
    asks.iter().fold(pod, |pod, ask| match ask {
        Ask::Create(_) | Ask::Start => PodSeen::Running,
        Ask::Pause | Ask::Undelete => PodSeen::Resting,
        Ask::Delete => PodSeen::Deleted(later(now, WINDOW)),
        Ask::Adapt(_) | Ask::Warn(_) => pod,
    })
}

#[test]
fn every_request_may_come_twice() {
    for (name, current, pod) in all() {
        for (asked, request) in requests() {
            for days in [0, 20, 31, 90, 98, 2000] {
                // A renewal until then is refused by then, the first time as well.
                let Ok(once) = step(current.as_ref(), &request, at(day(days), pod)) else { continue };
                let Some(mut before) = once.standing else { continue };
                let mut pod = pod_after(pod, &once.asks, day(days));
                if asked == "tick" {
                    // One thing at a time: it comes to rest.
                    for _ in 0..WARNINGS.len() + 3 {
                        let more = step(Some(&before), &request, at(day(days), pod)).expect("a tick");
                        pod = pod_after(pod, &more.asks, day(days));
                        before = more.standing.expect("it stays");
                    }
                }
                match step(Some(&before), &request, at(day(days), pod)) {
                    Ok(twice) => {
                        assert_eq!((twice.standing, twice.asks), (Some(before), vec![]), "{name}: {asked}");
                    }
                    Err(error) => panic!("{name}: {asked}: {error}"),
                }
            }
        }
    }
}

#[test]
fn the_end_pauses_what_runs_and_remembers_it() {
    for (request, state) in
        [(Request::Expire, SubscriptionState::Expired), (Request::Cancel, SubscriptionState::Cancelled)]
    {
        for (pod, resume, asks) in
            [(PodSeen::Running, Resume::Start, vec![Ask::Pause]), (PodSeen::Resting, Resume::Leave, Vec::new())]
        {
            let done = step(Some(&active()), &request, at(day(5), pod)).expect("it ends");
            let ended = done.standing.expect("it is kept");
            assert_eq!((ended.state, &done.asks), (state, &asks));
            assert_eq!(ended.end, Some(End { resume, ..end(5) }), "60 days from the end, not from the last change");
            let back = Request::Renew { expires_at: None, gone: PodGone::Refuse };
            let back = step(Some(&ended), &back, at(day(40), PodSeen::Resting)).expect("it comes back");
            let start = if resume == Resume::Start { vec![Ask::Start] } else { Vec::new() };
            assert_eq!((back.asks, back.standing), (start, Some(Standing { expires_at: None, ..active() })));
        }
    }
}

#[test]
fn a_deletion_that_failed_is_tried_again_a_day_later() {
    let deleted = End { warned: 3, purge_at: Some(day(97)), ..end(30) };
    let mut current = Standing { state: SubscriptionState::Expired, end: Some(deleted), ..active() };
    let mut asked = Vec::new();
    for hours in 0..60 {
        let now = later(day(90), SignedDuration::from_hours(hours));
        let done = step(Some(&current), &Request::Tick, at(now, PodSeen::Resting)).expect("a tick");
        asked.extend(done.asks.into_iter().map(|ask| (hours, ask)));
        current = done.standing.expect("it stays");
    }
    assert_eq!(asked, [(24, Ask::Delete), (49, Ask::Delete)]);
}

#[test]
fn what_is_due_next_is_known_and_nothing_is_asked_for_before() {
    for (name, current, pod) in all() {
        let Some(mut current) = current else { continue };
        let mut pod = pod;
        for _ in 0..10 {
            let Some(due) = current.due_at() else { break };
            let early = step(Some(&current), &Request::Tick, at(later(due, -SignedDuration::from_secs(1)), pod));
            assert_eq!(early.expect("a tick").asks, [], "{name}: before {due}");
            let done = step(Some(&current), &Request::Tick, at(due, pod)).expect("a tick");
            pod = match pod {
                PodSeen::Deleted(_) => PodSeen::Gone,
                pod => pod_after(pod, &done.asks, due),
            };
            current = done.standing.expect("it stays");
        }
        assert_eq!(current.due_at().is_none(), current.expires_at.is_none() || pod == PodSeen::Gone, "{name}: it ends");
    }
}

#[test]
fn the_pod_goes_no_way_that_its_subscription_forbids() {
    let desired = [Desired::Running, Desired::Paused, Desired::Stopped, Desired::Archived, Desired::Deleted];
    let refused = |state| {
        let mut found = Vec::new();
        for before in desired {
            for after in desired.into_iter().filter(|after| *after != before) {
                if allows(state, before, after).is_err() {
                    found.push(format!("{before:?} {after:?}"));
                }
            }
        }
        found.join(", ")
    };
    assert_eq!(
        refused(SubscriptionState::Active),
        "Running Archived, Running Deleted, Paused Archived, Paused Deleted, Stopped Archived, Stopped Deleted, \
         Archived Deleted, Deleted Archived"
    );
    let ended = "Paused Running, Stopped Running, Archived Running, Archived Paused, Archived Stopped, Deleted Running, \
                 Deleted Paused, Deleted Stopped";
    assert_eq!(refused(SubscriptionState::Expired), ended);
    assert_eq!(refused(SubscriptionState::Cancelled), ended);
}

#[test]
fn a_cancellation_after_the_end_does_not_begin_the_time_anew() {
    let ended = Standing { state: SubscriptionState::Expired, end: Some(End { warned: 2, ..end(30) }), ..active() };
    let done = step(Some(&ended), &Request::Cancel, at(day(80), PodSeen::Resting)).expect("it is cancelled");
    assert_eq!(done.standing.expect("it is kept").end, ended.end);
}

#[test]
fn an_end_in_the_past_is_refused() {
    for request in [
        Request::Create { plan: plan("basic"), expires_at: Some(day(5)) },
        Request::Renew { expires_at: Some(day(5)), gone: PodGone::Refuse },
        Request::Renew { expires_at: Some(day(4)), gone: PodGone::MakeNew },
    ] {
        let current = matches!(request, Request::Renew { .. }).then(active);
        match step(current.as_ref(), &request, at(day(5), PodSeen::Running)) {
            Err(Error::InvalidInput { field, .. }) => assert_eq!(field, "expiresAt"),
            other => panic!("{other:?}"),
        }
    }
}

/// Looks at a subscription day by day, from one day to another, and tells what was asked for on which.
fn days(mut current: Standing, mut pod: PodSeen, days: std::ops::RangeInclusive<i64>) -> (Standing, Vec<(i64, Ask)>) {
    let mut asked = Vec::new();
    for n in days {
        let done = step(Some(&current), &Request::Tick, at(day(n), pod)).expect("a tick");
        pod = match pod {
            PodSeen::Deleted(at) if at <= day(n) => PodSeen::Gone,
            pod => pod_after(pod, &done.asks, day(n)),
        };
        asked.extend(done.asks.into_iter().map(|ask| (n, ask)));
        current = done.standing.expect("it stays");
    }
    (current, asked)
}

#[test]
fn time_alone_ends_warns_and_deletes() {
    let (done, asked) = days(active(), PodSeen::Running, 0..=200);
    assert_eq!(
        asked,
        [(30, Ask::Pause), (76, Ask::Warn(14)), (83, Ask::Warn(7)), (89, Ask::Warn(1)), (90, Ask::Delete)]
    );
    let end = done.end.expect("it ended");
    assert_eq!((end.trash_at, end.purge_at, end.purged), (day(90), Some(day(97)), true));
}

#[test]
fn a_server_that_slept_through_the_warnings_gives_them_and_their_days() {
    let ended = Standing { state: SubscriptionState::Expired, end: Some(end(30)), ..active() };
    let (done, asked) = days(ended, PodSeen::Resting, 400..=430);
    assert_eq!(asked, [(400, Ask::Warn(14)), (407, Ask::Warn(7)), (413, Ask::Warn(1)), (414, Ask::Delete)]);
    assert_eq!(done.end.expect("it ended").trash_at, day(414), "and says when");
}

#[test]
fn a_clock_at_the_end_of_all_calendars_is_no_panic() {
    for now in [Timestamp::MIN, Timestamp::MAX] {
        for (_, current, pod) in all() {
            for (_, request) in requests() {
                let _ = step(current.as_ref(), &request, at(now, pod));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever the clock does, forwards and backwards: nothing is deleted without its three warnings in their order, and after
    /// each of them about as many days went by, by the clock that gave it, as it had announced.
    #[test]
    fn no_jump_of_the_clock_deletes_without_warnings(jumps in proptest::collection::vec(-1000_i64..100 * 24, 1..60)) {
        let mut current = active();
        let mut pod = PodSeen::Running;
        let mut hour = 0_i64;
        let mut warned: Vec<(u8, Timestamp)> = Vec::new();
        for jump in jumps {
            // Now and then backwards.
            hour = (hour + jump).max(0);
            let now = later(day(0), SignedDuration::from_hours(hour));
            let done = step(Some(&current), &Request::Tick, at(now, pod)).expect("a tick");
            prop_assert!(done.asks.len() <= 1);
            pod = pod_after(pod, &done.asks, now);
            for ask in done.asks {
                match ask {
                    Ask::Warn(days) => warned.push((days, now)),
                    Ask::Delete => {
                        let given: Vec<u8> = warned.iter().map(|(days, _)| *days).collect();
                        prop_assert_eq!(&given, &WARNINGS);
                        for (days, when) in &warned {
                            let announced = SignedDuration::from_hours(24 * i64::from(*days)) - LATE;
                            prop_assert!(now.duration_since(*when) >= announced, "{days} days: {when} and {now}");
                        }
                    }
                    Ask::Pause => {}
                    other => prop_assert!(false, "{other:?}"),
                }
            }
            let next = done.standing.expect("it stays");
            // What has happened stays so.
            prop_assert!(current.end.is_none() || next.end.is_some());
            if let (Some(before), Some(after)) = (current.end, next.end) {
                prop_assert!(after.trash_at >= before.trash_at && after.warned >= before.warned);
                prop_assert!(before.purge_at.is_none() || after.purge_at == before.purge_at);
                prop_assert!(!before.purged || after.purged);
            }
            current = next;
        }
    }
}
