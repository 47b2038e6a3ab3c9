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

fn at(now: Timestamp, pod: PodWish) -> Circumstances {
    Circumstances { now, pod, undelete_window: WINDOW }
}

fn active() -> Subscription {
    Subscription { state: SubscriptionState::Active, plan: plan("basic"), expires_at: Some(day(30)), end: None }
}

fn end(days: i64) -> End {
    End { at: day(days), resume: Resume::Start, trash_at: day(days + 60), warned: 0, purge_at: None, purged: false }
}

/// One of every kind that there is.
fn all() -> Vec<(&'static str, Option<Subscription>)> {
    let ended = |state, end| Some(Subscription { state, end: Some(end), ..active() });
    let deleted = End { warned: 3, purge_at: Some(day(97)), ..end(30) };
    vec![
        ("none", None),
        ("active", Some(active())),
        ("active for good", Some(Subscription { expires_at: None, ..active() })),
        ("expired", ended(SubscriptionState::Expired, end(30))),
        ("expired, did not run", ended(SubscriptionState::Expired, End { resume: Resume::Leave, ..end(30) })),
        ("expired, warned", ended(SubscriptionState::Expired, End { warned: 3, ..end(30) })),
        ("expired, deleted", ended(SubscriptionState::Expired, deleted)),
        ("expired, purged", ended(SubscriptionState::Expired, End { purged: true, ..deleted })),
        ("cancelled", ended(SubscriptionState::Cancelled, end(10))),
        ("cancelled, deleted", ended(SubscriptionState::Cancelled, deleted)),
        ("cancelled, purged", ended(SubscriptionState::Cancelled, End { purged: true, ..deleted })),
    ]
}

fn requests() -> Vec<(&'static str, Request)> {
    let expires_at = Some(day(1000));
    vec![
        ("create", Request::Create { plan: plan("basic"), expires_at }),
        ("create other", Request::Create { plan: plan("pro"), expires_at }),
        ("expire", Request::Expire),
        ("cancel", Request::Cancel),
        ("renew", Request::Renew { expires_at }),
        ("resubscribe", Request::Resubscribe { expires_at }),
        ("change plan", Request::ChangePlan { plan: plan("pro") }),
        ("same plan", Request::ChangePlan { plan: plan("basic") }),
        ("tick", Request::Tick),
    ]
}

/// What a request leads to, in short: the state, and what is asked for; or the reason why not.
fn told(current: Option<&Subscription>, request: &Request, about: Circumstances) -> String {
    match step(current, request, about) {
        Ok(Step { subscription, asks }) => {
            let state = subscription.map_or_else(|| "None".to_owned(), |s| format!("{:?}", s.state));
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

/// Every request in every state, on day 20, the pod being wanted running.
#[test]
fn every_request_in_every_state() {
    let table = "\
none: create=Active create(basic); create other=Active create(pro); expire=not-found; cancel=not-found; renew=not-found; \
resubscribe=not-found; change plan=not-found; same plan=not-found; tick=None
active: create=Active; create other=subscription-active; expire=Expired pause; cancel=Cancelled pause; renew=Active; \
resubscribe=Active; change plan=Active adapt(pro); same plan=Active; tick=Active
active for good: create=Active; create other=subscription-active; expire=Expired pause; cancel=Cancelled pause; renew=Active; \
resubscribe=Active; change plan=Active adapt(pro); same plan=Active; tick=Active
expired: create=subscription-ended; create other=subscription-ended; expire=Expired; cancel=Cancelled; renew=Active start; \
resubscribe=Active start; change plan=subscription-ended; same plan=subscription-ended; tick=Expired
expired, did not run: create=subscription-ended; create other=subscription-ended; expire=Expired; cancel=Cancelled; renew=Active; \
resubscribe=Active; change plan=subscription-ended; same plan=subscription-ended; tick=Expired
expired, warned: create=subscription-ended; create other=subscription-ended; expire=Expired; cancel=Cancelled; renew=Active start; \
resubscribe=Active start; change plan=subscription-ended; same plan=subscription-ended; tick=Expired
expired, deleted: create=subscription-ended; create other=subscription-ended; expire=Expired; cancel=Cancelled; \
renew=Active undelete start; resubscribe=Active undelete start; change plan=subscription-ended; same plan=subscription-ended; \
tick=Expired
expired, purged: create=subscription-ended; create other=subscription-ended; expire=Expired; cancel=Cancelled; \
renew=subscription-pod-gone; resubscribe=Active create(basic); change plan=subscription-ended; same plan=subscription-ended; \
tick=Expired
cancelled: create=subscription-ended; create other=subscription-ended; expire=Cancelled; cancel=Cancelled; \
renew=subscription-cancelled; resubscribe=Active start; change plan=subscription-ended; same plan=subscription-ended; tick=Cancelled
cancelled, deleted: create=subscription-ended; create other=subscription-ended; expire=Cancelled; cancel=Cancelled; \
renew=subscription-cancelled; resubscribe=Active undelete start; change plan=subscription-ended; same plan=subscription-ended; \
tick=Cancelled
cancelled, purged: create=subscription-ended; create other=subscription-ended; expire=Cancelled; cancel=Cancelled; \
renew=subscription-cancelled; resubscribe=Active create(basic); change plan=subscription-ended; same plan=subscription-ended; \
tick=Cancelled";
    let row = |(name, current): &(&str, Option<Subscription>)| {
        let cells: Vec<String> = requests()
            .iter()
            .map(|(asked, request)| {
                format!("{asked}={}", told(current.as_ref(), request, at(day(20), PodWish::Running)))
            })
            .collect();
        format!("{name}: {}", cells.join("; "))
    };
    let found: Vec<String> = all().iter().map(row).collect();
    assert_eq!(found.join("\n"), table);
}

#[test]
fn every_request_may_come_twice() {
    for (name, current) in all() {
        for (asked, request) in requests() {
            for days in [0, 20, 31, 90, 98, 2000] {
                let about = at(day(days), PodWish::Running);
                // A renewal until then is refused by then, the first time as well.
                let Ok(once) = step(current.as_ref(), &request, about) else { continue };
                let Some(mut before) = once.subscription else { continue };
                if asked == "tick" {
                    // One thing at a time: it comes to rest.
                    for _ in 0..WARNINGS.len() + 3 {
                        before = step(Some(&before), &request, about).expect("a tick").subscription.expect("it stays");
                    }
                }
                match step(Some(&before), &request, about) {
                    Ok(twice) => {
                        assert_eq!((twice.subscription, twice.asks), (Some(before), vec![]), "{name}: {asked}")
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
            [(PodWish::Running, Resume::Start, vec![Ask::Pause]), (PodWish::Resting, Resume::Leave, Vec::new())]
        {
            let done = step(Some(&active()), &request, at(day(5), pod)).expect("it ends");
            let ended = done.subscription.expect("it is kept");
            assert_eq!((ended.state, &done.asks), (state, &asks));
            assert_eq!(ended.end, Some(End { resume, ..end(5) }), "60 days from the end, not from the last change");
            // Somebody may have started or stopped it since: what counts is the end.
            let back = Request::Resubscribe { expires_at: None };
            let back = step(Some(&ended), &back, at(day(40), PodWish::Resting)).expect("it comes back");
            let start = if resume == Resume::Start { vec![Ask::Start] } else { Vec::new() };
            assert_eq!((back.asks, back.subscription), (start, Some(Subscription { expires_at: None, ..active() })));
        }
    }
}

#[test]
fn a_cancellation_after_the_end_does_not_begin_the_time_anew() {
    let ended = Subscription { state: SubscriptionState::Expired, end: Some(End { warned: 2, ..end(30) }), ..active() };
    let done = step(Some(&ended), &Request::Cancel, at(day(80), PodWish::Resting)).expect("it is cancelled");
    assert_eq!(done.subscription.expect("it is kept").end, ended.end);
}

#[test]
fn an_end_in_the_past_is_refused() {
    for request in [
        Request::Create { plan: plan("basic"), expires_at: Some(day(5)) },
        Request::Renew { expires_at: Some(day(5)) },
        Request::Resubscribe { expires_at: Some(day(4)) },
    ] {
        let current = matches!(request, Request::Renew { .. } | Request::Resubscribe { .. }).then(active);
        match step(current.as_ref(), &request, at(day(5), PodWish::Running)) {
            Err(Error::InvalidInput { field, .. }) => assert_eq!(field, "expiresAt"),
            other => panic!("{other:?}"),
        }
    }
}

/// Looks at a subscription day by day, from one day to another, and tells what was asked for on which.
fn days(mut current: Subscription, days: std::ops::RangeInclusive<i64>) -> (Subscription, Vec<(i64, Ask)>) {
    let mut asked = Vec::new();
    for n in days {
        let done = step(Some(&current), &Request::Tick, at(day(n), PodWish::Running)).expect("a tick");
        asked.extend(done.asks.into_iter().map(|ask| (n, ask)));
        current = done.subscription.expect("it stays");
    }
    (current, asked)
}

#[test]
fn time_alone_ends_warns_and_deletes() {
    let (done, asked) = days(active(), 0..=200);
    assert_eq!(
        asked,
        [(30, Ask::Pause), (76, Ask::Warn(14)), (83, Ask::Warn(7)), (89, Ask::Warn(1)), (90, Ask::Delete)]
    );
    let end = done.end.expect("it ended");
    assert_eq!((end.trash_at, end.purge_at, end.purged), (day(90), Some(day(97)), true));
}

#[test]
fn a_server_that_slept_through_the_warnings_gives_them_and_their_days() {
    let ended = Subscription { state: SubscriptionState::Expired, end: Some(end(30)), ..active() };
    let (done, asked) = days(ended, 400..=430);
    assert_eq!(asked, [(400, Ask::Warn(14)), (407, Ask::Warn(7)), (413, Ask::Warn(1)), (414, Ask::Delete)]);
    assert_eq!(done.end.expect("it ended").trash_at, day(414), "and says when");
}

#[test]
fn a_clock_at_the_end_of_all_calendars_is_no_panic() {
    for now in [Timestamp::MIN, Timestamp::MAX] {
        for (_, current) in all() {
            for (_, request) in requests() {
                let _ = step(current.as_ref(), &request, at(now, PodWish::Running));
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
        let mut hour = 0_i64;
        let mut warned: Vec<(u8, Timestamp)> = Vec::new();
        for jump in jumps {
            // Now and then backwards.
            hour = (hour + jump).max(0);
            let now = later(day(0), SignedDuration::from_hours(hour));
            let done = step(Some(&current), &Request::Tick, at(now, PodWish::Running)).expect("a tick");
            prop_assert!(done.asks.len() <= 1);
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
            let next = done.subscription.expect("it stays");
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
